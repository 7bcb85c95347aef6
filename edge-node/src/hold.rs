//! The peer listener: questions of other edges. `hold` questions and digests are answered from storage only,
//! and make this node ask nobody. `fill` questions, asked of the home of a key, may make it ask homes of a
//! lower level or the origin ([`Proxy::relay`]), nobody else; so requests between nodes cannot loop.
//!
//! What the control plane asks for here, to [fetch ahead of demand](crate::warm), begins journeys of
//! its own, which end like those of clients: with questions to others, and never with such a wish. So does
//! what a peer offers because it is [hot](crate::offering); of one object, that happens once a minute.
//!
//! Who does not prove to know the cluster's secret is cut off without a byte
//! ([`crate::serve::ConnectionLimits::gated`]).

use std::{
    collections::HashSet,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use cluster::{
    auth::{self, Verifier},
    clock::Clock,
    key::Key,
    manifest::PIECE_BYTES,
    node::DigestVersion,
    wire::{self, WarmBatch},
};
use futures_util::stream::{BoxStream, StreamExt as _};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc::Receiver},
    time::timeout,
};
use tracing::warn;

use crate::{
    cache::{Cache, entry::Reading, fill::BodyError},
    metrics::Metrics,
    offering::Offering,
    proxy::{Proxy, Question},
    serve::{Connection, NotAdmitted},
    upstream::{home::Level, peer, relayed},
    warm::Warmer,
};

/// Objects handed to peers at once. More are told at once that this node is busy, and ask elsewhere.
const TRANSFERS_MAX: usize = 256;
/// Questions to fill at once: each may wait for the origin, and holds two blocks of 64 KiB at most.
const RELAYS_MAX: usize = 1024;
/// Addresses whose first refusal was logged; beyond that, refusals are only counted.
const LOGGED_MAX: usize = 1024;
/// Longest time for the body of a batch to come in.
const BATCH_TIMEOUT: Duration = Duration::from_secs(30);
/// Batches at once: some jobs, of some control planes.
const BATCHES_MAX: usize = 32;

/// Answers peers. A clone-able handle.
#[derive(Clone)]
pub struct Hold {
    shared: Arc<Shared>,
}

struct Shared {
    cache: Cache,
    proxy: Proxy,
    verifier: Verifier,
    metrics: Arc<Metrics>,
    clock: Clock,
    warmer: Warmer,
    offering: Offering,
    transfers: Arc<Semaphore>,
    batches: Arc<Semaphore>,
    relays: Arc<Semaphore>,
    logged: Mutex<HashSet<IpAddr>>,
}

impl Hold {
    /// Answers whoever `verifier` accepts: from `cache`, or with what `proxy` fetches, as a home or ahead of
    /// demand.
    pub fn new(
        cache: Cache,
        proxy: Proxy,
        verifier: Verifier,
        metrics: Arc<Metrics>,
        clock: Clock,
        offering: Offering,
    ) -> Self {
        let transfers = Arc::new(Semaphore::new(TRANSFERS_MAX));
        let relays = Arc::new(Semaphore::new(RELAYS_MAX));
        let batches = Arc::new(Semaphore::new(BATCHES_MAX));
        let warmer = Warmer::new(proxy.clone(), metrics.clone());
        let logged = Mutex::default();
        Self {
            shared: Arc::new(Shared {
                cache,
                proxy,
                verifier,
                metrics,
                clock,
                warmer,
                offering,
                transfers,
                batches,
                relays,
                logged,
            }),
        }
    }

    /// Answers one question.
    ///
    /// # Errors
    ///
    /// The sender is not known: the connection must be closed without an answer.
    pub async fn handle(
        &self,
        request: Request<Incoming>,
        connection: &Connection,
    ) -> Result<Response<Answer>, NotAdmitted> {
        let target = request.uri().path_and_query().map_or("", |pq| pq.as_str());
        let field = |name: &str| request.headers().get(name)?.to_str().ok();
        let now = self.shared.clock.unix_ms();
        let verified = self
            .shared
            .verifier
            .verify(request.method().as_str(), target, field, now);
        let from = match verified {
            Ok(from) => from,
            Err(denied) => {
                self.shared.metrics.peer_denied();
                self.log_once(connection.from.ip(), &denied);
                return Err(NotAdmitted);
            }
        };
        connection.admit();
        if request.method() == Method::POST && request.uri().path() == wire::WARM {
            return Ok(self.warm(request).await);
        }
        if request.method() != Method::GET {
            return Ok(answer(StatusCode::METHOD_NOT_ALLOWED, Answer::Empty));
        }
        let path = request.uri().path();
        if path == wire::DIGEST {
            return Ok(self.digest(request.uri().query()).await);
        }
        let key_behind = |prefix| path.strip_prefix(prefix)?.strip_prefix('/')?.parse().ok();
        if let Some(key) = key_behind(wire::OFFER) {
            return Ok(self.offered(key, request.headers()));
        }
        if let Some(key) = key_behind(wire::FILL) {
            self.shared.offering.asked(key, &from, request.headers());
            let level = Level::of_query(request.uri().query());
            return Ok(self.fill(key, level, request.headers(), connection.from.ip()));
        }
        match key_behind(wire::HOLD) {
            Some(key) => {
                let answer = self.hold(key, &request).await;
                if answer.status() == StatusCode::OK {
                    self.shared.offering.asked(key, &from, request.headers());
                }
                Ok(answer)
            }
            None => Ok(answer(StatusCode::NOT_FOUND, Answer::Empty)),
        }
    }

    async fn warm(&self, request: Request<Incoming>) -> Response<Answer> {
        let Ok(place) = self.shared.batches.clone().try_acquire_owned() else {
            return answer(StatusCode::SERVICE_UNAVAILABLE, Answer::Empty);
        };
        let proof = request.uri().query().unwrap_or_default().to_owned();
        let body = Limited::new(request.into_body(), wire::WARM_BATCH_BYTES_MAX);
        let Ok(Ok(body)) = timeout(BATCH_TIMEOUT, body.collect()).await else {
            return answer(StatusCode::PAYLOAD_TOO_LARGE, Answer::Empty);
        };
        let body = body.to_bytes();
        if auth::body_parameter(&body) != proof {
            return answer(StatusCode::FORBIDDEN, Answer::Empty);
        }
        match serde_json::from_slice::<WarmBatch>(&body) {
            Ok(batch) if batch.urls.len() <= wire::WARM_BATCH_MAX => {
                self.shared.metrics.peer_answered("warm");
                let lines = self.shared.warmer.batch(batch);
                answer(StatusCode::OK, Answer::Lines(lines, place))
            }
            Ok(_) | Err(_) => answer(StatusCode::BAD_REQUEST, Answer::Empty),
        }
    }

    fn offered(&self, key: Key, fields: &HeaderMap) -> Response<Answer> {
        let text = |name: &str| fields.get(name).and_then(|value| value.to_str().ok());
        let (Some(site), Some(host), Some(target)) = (
            text(relayed::SITE_FIELD),
            text(relayed::HOST_FIELD),
            text(relayed::TARGET_FIELD),
        ) else {
            return answer(StatusCode::BAD_REQUEST, Answer::Empty);
        };
        self.shared.metrics.peer_answered("offer");
        let url = format!("http://{host}{target}");
        match self.shared.warmer.offered(key, site, url) {
            true => answer(StatusCode::ACCEPTED, Answer::Empty),
            false => answer(StatusCode::SERVICE_UNAVAILABLE, Answer::Empty),
        }
    }

    async fn digest(&self, query: Option<&str>) -> Response<Answer> {
        let since = query
            .and_then(|q| q.strip_prefix("since="))
            .and_then(|text| {
                let (epoch, seq) = text.split_once(',')?;
                Some(DigestVersion {
                    epoch: epoch.parse().ok()?,
                    seq: seq.parse().ok()?,
                })
            });
        let cache = self.shared.cache.clone();
        let encoded = self
            .shared
            .cache
            .store()
            .pool()
            .run(move || cache.digest(since))
            .await;
        self.shared.metrics.peer_answered("digest");
        match encoded {
            Ok(bytes) => answer(StatusCode::OK, Answer::Whole(Some(bytes.into()))),
            Err(_) => answer(StatusCode::SERVICE_UNAVAILABLE, Answer::Empty),
        }
    }

    async fn hold(&self, key: Key, request: &Request<Incoming>) -> Response<Answer> {
        let Shared {
            cache,
            metrics,
            clock,
            ..
        } = &*self.shared;
        let refuse = |word: &'static str, status| {
            metrics.peer_answered(word);
            let mut response = answer(status, Answer::Empty);
            response
                .headers_mut()
                .insert(peer::ANSWER_FIELD, HeaderValue::from_static(word));
            response
        };
        let Ok(place) = self.shared.transfers.clone().try_acquire_owned() else {
            return refuse("busy", StatusCode::SERVICE_UNAVAILABLE);
        };
        let Some(entry) = cache.stored(key, request.headers()).await else {
            return refuse("miss", StatusCode::NOT_FOUND);
        };
        let (freshness, now_ms) = (&entry.head.freshness, clock.unix_ms());
        if freshness.no_cache || !freshness.is_fresh(now_ms) {
            cache.disclaim(key);
            return refuse("stale", StatusCode::NOT_FOUND);
        }
        let from_piece: u64 = request
            .headers()
            .get(peer::FROM_PIECE_FIELD)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .unwrap_or(0);
        let Some((manifest, encoded)) = entry
            .manifest()
            .and_then(|m| m.encode().ok().map(|bytes| (m, bytes)))
        else {
            return refuse("miss", StatusCode::NOT_FOUND);
        };
        let start = from_piece
            .saturating_mul(PIECE_BYTES as u64)
            .min(manifest.length);
        let Ok(reading) = entry.open(start..manifest.length, cache) else {
            cache.forget(entry.key).await;
            return refuse("miss", StatusCode::NOT_FOUND);
        };
        metrics.peer_answered("object");
        let head = peer::encode_answer_head(&encoded);
        let transfer = Transfer::new(metrics.clone(), place);
        let mut response = answer(
            StatusCode::OK,
            Answer::Object(head, Some(reading), transfer),
        );
        peer::set_age(response.headers_mut(), freshness.age(now_ms));
        response
    }

    fn fill(
        &self,
        key: Key,
        level: Option<Level>,
        fields: &HeaderMap,
        from: IpAddr,
    ) -> Response<Answer> {
        let Shared { proxy, metrics, .. } = &*self.shared;
        let Some(level) = level else {
            return answer(StatusCode::BAD_REQUEST, Answer::Empty);
        };
        let Ok(place) = self.shared.relays.clone().try_acquire_owned() else {
            metrics.peer_answered("busy");
            return answer(StatusCode::SERVICE_UNAVAILABLE, Answer::Empty);
        };
        metrics.peer_answered("fill");
        let question = Question {
            key,
            level,
            from,
            fields: fields.clone(),
        };
        let transfer = Transfer::new(metrics.clone(), place);
        answer(
            StatusCode::OK,
            Answer::Fill(proxy.relay(question), transfer),
        )
    }

    fn log_once(&self, from: IpAddr, denied: &auth::Denied) {
        let mut logged = self
            .shared
            .logged
            .lock()
            .expect("no code panics while it holds this lock");
        if logged.len() < LOGGED_MAX && logged.insert(from) {
            warn!(%from, reason = %denied, "peer request refused; further ones from there are only counted");
        }
    }
}

fn answer(status: StatusCode, body: Answer) -> Response<Answer> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

/// An object on its way to a peer: holds its place, and counts in this node's load.
pub struct Transfer {
    metrics: Arc<Metrics>,
    _place: OwnedSemaphorePermit,
}

impl Transfer {
    fn new(metrics: Arc<Metrics>, place: OwnedSemaphorePermit) -> Self {
        metrics.in_flight().inc();
        Self {
            metrics,
            _place: place,
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.metrics.in_flight().dec();
    }
}

/// The body of an answer to a peer.
pub enum Answer {
    /// None.
    Empty,
    /// All at once.
    Whole(Option<Bytes>),
    /// The manifest, then the bytes of the pieces; the transfer keeps its place until the end.
    Object(Bytes, Option<Reading>, Transfer),
    /// Line by line, as they come; the batch keeps its place until the end.
    Lines(BoxStream<'static, Bytes>, OwnedSemaphorePermit),
    /// Frames as they come ([`crate::upstream::relayed`]).
    Fill(Receiver<Bytes>, Transfer),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let bytes = match &mut *self {
            Self::Empty => None,
            Self::Whole(bytes) => bytes.take().map(Ok),
            Self::Lines(lines, _) => std::task::ready!(lines.poll_next_unpin(context)).map(Ok),
            Self::Fill(frames, _) => std::task::ready!(frames.poll_recv(context)).map(Ok),
            Self::Object(head, reading, _) => {
                if head.is_empty() {
                    match reading {
                        None => None,
                        Some(Reading::Whole(bytes)) => {
                            let bytes = std::mem::take(bytes);
                            *reading = None;
                            (!bytes.is_empty()).then_some(Ok(bytes))
                        }
                        Some(Reading::Stream(stream)) => {
                            std::task::ready!(stream.as_mut().poll_next(context))
                        }
                    }
                } else {
                    Some(Ok(std::mem::take(head)))
                }
            }
        };
        if let (Self::Object(_, _, transfer) | Self::Fill(_, transfer), Some(Ok(bytes))) =
            (&*self, &bytes)
        {
            transfer.metrics.sent(bytes.len() as u64);
        }
        Poll::Ready(bytes.map(|read| read.map(Frame::data)))
    }
}
