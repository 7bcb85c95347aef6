//! The peer listener: questions of other edges. `hold` questions and digests are answered from storage only,
//! and make this node ask nobody; one for a piece that is coming in waits for it a moment. `fill` questions,
//! asked of the home of a key, may make it ask homes of a lower level or the origin ([`Proxy::relay`]), and
//! those to which such a home shares out a large object for its pieces; nobody else. So requests between nodes
//! cannot loop.
//!
//! What the control plane asks for here, to [fetch ahead of demand](crate::warm), begins journeys of
//! its own, which end like those of clients: with questions to others, and never with such a wish. So does
//! what a peer offers because it is [hot](crate::offering); of one object, that happens once a minute.
//!
//! Who does not prove to know the cluster's secret is cut off without a byte
//! ([`crate::serve::ConnectionLimits::gated`]).

mod pieces;
mod purging;
pub mod uploads;

use std::{
    collections::HashSet,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use cluster::{
    auth::{self, Verifier},
    clock::Clock,
    key::Key,
    manifest::{PieceHash, run_hash},
    node::{DigestVersion, NodeId},
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

use self::uploads::{Upload, Uploads};

use crate::{
    cache::{
        Cache,
        entry::{Entry, Reading},
        fill::{BodyError, Growing},
    },
    metrics::Metrics,
    offering::Offering,
    proxy::{Proxy, Question},
    purges::Purges,
    serve::{Connection, NotAdmitted},
    upstream::{home::Level, peer, relayed},
    warm::Warmer,
};

/// How long a question waits for a piece that is coming in: shorter than the asker waits for the head of an
/// answer ([`peer::HEAD_TIMEOUT`]), with room for a slow way.
const PIECE_WAIT_MAX: Duration = Duration::from_secs(1);
/// Addresses whose first refusal was logged; beyond that, refusals are only counted.
const LOGGED_MAX: usize = 1024;
/// Longest time for the body of a batch to come in.
const BATCH_TIMEOUT: Duration = Duration::from_secs(30);
/// Batches at once: some jobs, of some control planes.
const BATCHES_MAX: usize = 32;
/// Pushes of purges at once, each of some MiB at most.
const PUSHES_MAX: usize = 32;

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
    batches: Arc<Semaphore>,
    pushes: Arc<Semaphore>,
    purges: Purges,
    uploads: Uploads,
    logged: Mutex<HashSet<IpAddr>>,
}

impl Hold {
    /// Answers whoever `verifier` accepts, as far as `uploads` allow: from `cache`, or with what `proxy`
    /// fetches, as a home or ahead of demand; tells `offering` what is asked for, and `purges` what is
    /// purged.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a part, and named where it is built"
    )]
    pub fn new(
        cache: Cache,
        proxy: Proxy,
        verifier: Verifier,
        uploads: Uploads,
        metrics: Arc<Metrics>,
        clock: Clock,
        offering: Offering,
        purges: Purges,
    ) -> Self {
        let batches = Arc::new(Semaphore::new(BATCHES_MAX));
        let pushes = Arc::new(Semaphore::new(PUSHES_MAX));
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
                batches,
                pushes,
                purges,
                uploads,
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
        if request.method() == Method::POST && request.uri().path() == wire::PURGES {
            return Ok(self.purge(request).await);
        }
        if request.method() != Method::GET {
            return Ok(answer(StatusCode::METHOD_NOT_ALLOWED, Answer::Empty));
        }
        let path = request.uri().path();
        if path == wire::DIGEST {
            return Ok(self.digest(request.uri().query()).await);
        }
        if path == wire::PURGES {
            return Ok(self.purges(request.uri().query()));
        }
        if path == wire::SITES {
            return Ok(self.nudged(request.uri().query()));
        }
        if path == wire::PING {
            self.shared.metrics.peer_answered("ping");
            return Ok(answer(StatusCode::NO_CONTENT, Answer::Empty));
        }
        let key_behind = |prefix| path.strip_prefix(prefix)?.strip_prefix('/')?.parse().ok();
        if let Some(key) = key_behind(wire::OFFER) {
            return Ok(self.offered(key, request.headers()));
        }
        if let Some(key) = key_behind(wire::CHANGED) {
            self.shared.metrics.peer_answered("changed");
            self.shared.cache.invalidate(key, now).await;
            return Ok(answer(StatusCode::NO_CONTENT, Answer::Empty));
        }
        if let Some(key) = key_behind(wire::FILL) {
            self.shared.offering.asked(key, &from, request.headers());
            let is_next = relayed::is_for_next(request.headers());
            let level = Level::of_question(request.uri().query(), is_next);
            let question = level.map(|level| Question {
                key,
                level,
                asker: from,
                from: connection.from.ip(),
                fields: request.headers().clone(),
            });
            return Ok(self.fill(question));
        }
        match key_behind(wire::HOLD) {
            Some(key) => {
                let answer = self.hold(key, &from, &request).await;
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

    /// There is a version of the sites that may not be here yet.
    fn nudged(&self, query: Option<&str>) -> Response<Answer> {
        let version = query.and_then(|q| q.strip_prefix("version=")?.parse().ok());
        let Some(version) = version else {
            return answer(StatusCode::BAD_REQUEST, Answer::Empty);
        };
        self.shared.metrics.peer_answered("sites");
        self.shared.proxy.sites_nudged(version);
        answer(StatusCode::NO_CONTENT, Answer::Empty)
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

    async fn hold(&self, key: Key, from: &NodeId, request: &Request<Incoming>) -> Response<Answer> {
        let Shared {
            cache,
            proxy,
            metrics,
            clock,
            ..
        } = &*self.shared;
        let refuse = |word, status| self.refuse(word, status);
        let Some(asked) = peer::asked_for(request.headers()) else {
            return answer(StatusCode::BAD_REQUEST, Answer::Empty);
        };
        let late = peer::node_in(request.headers(), peer::LATE_FIELD);
        let elsewhere = |entry: &Entry| {
            let late = late.as_ref()?;
            let holder = proxy.passed_over(entry.object, asked.pieces.start, late, from)?;
            Some(self.elsewhere(&holder))
        };
        if proxy.is_gone(request.headers(), None) {
            return refuse("taken-down", StatusCode::NOT_FOUND);
        }
        if let (Some(hash), 1) = (asked.hash, asked.pieces.len())
            && let Some((entry, growing)) = cache.coming_in(key)
        {
            if let Some(elsewhere) = elsewhere(&entry) {
                return elsewhere;
            }
            return self.hold_piece(&growing, asked.pieces.start, hash).await;
        }
        let Some(mut upload) = self.shared.uploads.begin() else {
            return refuse("busy", StatusCode::SERVICE_UNAVAILABLE);
        };
        let Some(entry) = cache.stored(key, request.headers()).await else {
            return refuse("miss", StatusCode::NOT_FOUND);
        };
        if proxy.is_gone(request.headers(), Some(&entry)) {
            return refuse("taken-down", StatusCode::NOT_FOUND);
        }
        if let Some(elsewhere) = elsewhere(&entry) {
            return elsewhere;
        }
        let (freshness, now_ms) = (&entry.head.freshness, clock.unix_ms());
        // Who names the pieces judges by the manifest whether they may be used.
        if asked.hash.is_none() && (freshness.no_cache || !freshness.is_fresh(now_ms)) {
            cache.disclaim(key);
            return refuse("stale", StatusCode::NOT_FOUND);
        }
        if asked.hash.is_none() && self.is_in_doubt(request.headers()) {
            // Its claim is good again as soon as this node has heard of a control plane.
            return refuse("stale", StatusCode::NOT_FOUND);
        }
        if let Some(slice) = relayed::slice_in(request.headers())
            && cache.is_doubtful(slice.whole, entry.head.fetched_at)
        {
            cache.disclaim(key);
            return refuse("stale", StatusCode::NOT_FOUND);
        }
        if asked.hash.is_none() && self.is_purged(request.headers(), &entry) {
            cache.disclaim(key);
            return refuse("stale", StatusCode::NOT_FOUND);
        }
        let (head, range) = match pieces::of(&entry, &asked) {
            Ok(pieces) => pieces,
            Err(word) => return refuse(word, StatusCode::NOT_FOUND),
        };
        upload.promise(head.len() as u64 + range.end - range.start);
        let reading = match range.is_empty() {
            // The manifest was wanted alone, or there is no more.
            true => Ok(Reading::Whole(Bytes::new())),
            false => entry.open(range, cache),
        };
        let Ok(reading) = reading else {
            cache.forget(entry.key).await;
            return refuse("miss", StatusCode::NOT_FOUND);
        };
        metrics.peer_answered("object");
        let transfer = Transfer::new(metrics.clone(), upload);
        let mut response = answer(
            StatusCode::OK,
            Answer::Object(head, Some(reading), transfer),
        );
        peer::set_age(response.headers_mut(), freshness.age(now_ms));
        response
    }

    /// Piece `index` of a body that is coming in, which has a hash of that [`run_hash`].
    async fn hold_piece(&self, growing: &Growing, index: u32, run: PieceHash) -> Response<Answer> {
        let Shared {
            uploads, metrics, ..
        } = &*self.shared;
        match timeout(PIECE_WAIT_MAX, growing.piece_hash(index)).await {
            Ok(Ok(hash)) if run_hash([&hash]) == run => {}
            Ok(Ok(_)) => return self.refuse("other", StatusCode::NOT_FOUND),
            Ok(Err(_)) => return self.refuse("miss", StatusCode::NOT_FOUND),
            Err(_) => return self.refuse("not-yet", StatusCode::NOT_FOUND),
        }
        let Some(mut upload) = uploads.begin() else {
            return self.refuse("busy", StatusCode::SERVICE_UNAVAILABLE);
        };
        let Ok(bytes) = growing.read_piece(index).await else {
            return self.refuse("miss", StatusCode::NOT_FOUND);
        };
        upload.promise(bytes.len() as u64);
        metrics.peer_answered("piece");
        let transfer = Transfer::new(metrics.clone(), upload);
        let body = Answer::Object(Bytes::new(), Some(Reading::Whole(bytes)), transfer);
        answer(StatusCode::OK, body)
    }

    fn refuse(&self, word: &'static str, status: StatusCode) -> Response<Answer> {
        self.shared.metrics.peer_answered(word);
        let mut response = answer(status, Answer::Empty);
        response
            .headers_mut()
            .insert(peer::ANSWER_FIELD, HeaderValue::from_static(word));
        response
    }

    /// Another has it.
    fn elsewhere(&self, holder: &NodeId) -> Response<Answer> {
        let mut response = self.refuse("elsewhere", StatusCode::NOT_FOUND);
        if let Ok(holder) = HeaderValue::from_str(holder.as_str()) {
            response.headers_mut().insert(peer::HOLDER_FIELD, holder);
        }
        response
    }

    fn fill(&self, question: Option<Question>) -> Response<Answer> {
        let Shared { proxy, metrics, .. } = &*self.shared;
        let Some(question) = question else {
            return answer(StatusCode::BAD_REQUEST, Answer::Empty);
        };
        let Some(upload) = self.shared.uploads.relay() else {
            metrics.peer_answered("busy");
            return answer(StatusCode::SERVICE_UNAVAILABLE, Answer::Empty);
        };
        metrics.peer_answered("fill");
        let transfer = Transfer::new(metrics.clone(), upload);
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
    upload: Upload,
    /// Read, and not sent yet.
    rest: Bytes,
}

impl Transfer {
    fn new(metrics: Arc<Metrics>, upload: Upload) -> Self {
        metrics.in_flight().inc();
        Self {
            metrics,
            upload,
            rest: Bytes::new(),
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
        let (transfer, read) = match &mut *self {
            Self::Empty => return Poll::Ready(None),
            Self::Whole(bytes) => return Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Lines(lines, _) => {
                let line = ready!(lines.poll_next_unpin(context));
                return Poll::Ready(line.map(|line| Ok(Frame::data(line))));
            }
            Self::Object(_, _, transfer) | Self::Fill(_, transfer) if !transfer.rest.is_empty() => {
                (transfer, None)
            }
            Self::Fill(frames, transfer) => match ready!(frames.poll_recv(context)) {
                // Who waits must hear that it is worth it, however many share the line.
                Some(bytes) if bytes.len() <= relayed::SIGN_BYTES_MAX => {
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                frame => (transfer, frame.map(Ok)),
            },
            Self::Object(head, _, transfer) if !head.is_empty() => {
                (transfer, Some(Ok(std::mem::take(head))))
            }
            Self::Object(_, reading, transfer) => {
                let read = match reading {
                    None => None,
                    Some(Reading::Whole(bytes)) => {
                        let bytes = std::mem::take(bytes);
                        *reading = None;
                        (!bytes.is_empty()).then_some(Ok(bytes))
                    }
                    Some(Reading::Stream(stream)) => ready!(stream.as_mut().poll_next(context)),
                };
                (transfer, read)
            }
        };
        if transfer.rest.is_empty() {
            match read {
                Some(Ok(bytes)) => transfer.rest = bytes,
                other => return Poll::Ready(other.map(|read| read.map(Frame::data))),
            }
        }
        let most = ready!(transfer.upload.poll_turn(context, transfer.rest.len()));
        let bytes = transfer.rest.split_to(most);
        transfer.metrics.sent(bytes.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}
