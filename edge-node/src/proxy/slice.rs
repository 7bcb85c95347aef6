//! Ranges of large objects that nobody holds. Each piece that such a range touches is an object of its own, a
//! *slice*, under a key of its own: the origin's 206 for that piece, whose `Content-Range` says of what it is a
//! part. So a slice is claimed, fetched from its home, relayed, stored, told of in digests, validated and purged like
//! any object, and whoever wants the same piece, on any edge, waits for the same fetch.
//!
//! Nobody gets a slice as such: here they are put together, in order, as long as they are of one version for
//! certain (RFC 9110 §13.1.5, RFC 9111 §3.4).

use std::{collections::VecDeque, ops::Range, sync::Arc, sync::OnceLock};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use tokio::task::JoinHandle;
use tracing::{debug, info};

use super::{
    Asked, Proxy,
    answer::{How, response},
    home, part,
    relay::Found,
};
use crate::{
    cache::{
        entry::{Body, BodyStream, Entry, Reading},
        fill::BodyError,
        key,
        policy::{
            self,
            part::{Extent, Part},
            validator,
        },
    },
    deliver::{self, Content, Delivery, cache_status::Fwd},
    error::{Kind, ServeError},
    forward,
    metrics::Outcome,
    payload::Payload,
    upstream::{
        plain::Spelling,
        relayed::{Refusal, Slice},
    },
};

/// Slices that are fetched before the client comes to them: as many as a peer's first answer has pieces. So a
/// transfer over a long way moves 4 MiB a round trip, and a client that leaves has cost no more than that.
const AHEAD_MAX: usize = 4;
/// How often a slice is fetched anew because what is stored of it is older than those before it.
const TRIES: usize = 2;

/// What of an object an answer for a slice is: the whole of that slice, or nothing that can be kept as such.
/// `bytes_max` is how long an object may be that is kept. Pure.
pub(super) fn extent(piece: u32, status: StatusCode, fields: &HeaderMap, bytes_max: u64) -> Extent {
    let part = Part::of(fields).filter(|_| status == StatusCode::PARTIAL_CONTENT);
    match part {
        Some(part) if part.range == bytes_of(piece, part.of) && part.of <= bytes_max => {
            Extent::Whole(Some(part.length()))
        }
        _ => Extent::Unknown,
    }
}

/// Whether two slices are of the same version of an object of `length` bytes.
fn is_of(slice: &Entry, other: &Entry, length: u64) -> bool {
    validator::same_strong_validator(&other.head.headers, &slice.head.headers)
        && Part::of(&slice.head.headers).is_some_and(|part| part.of == length)
}

/// The bytes of a piece of a body of `length` bytes.
fn bytes_of(piece: u32, length: u64) -> Range<u64> {
    part::bytes_of(&(piece..piece.saturating_add(1)), length)
}

impl Asked {
    /// The key of its URL, of which it may want a slice.
    pub(super) fn whole_key(&self) -> cluster::key::Key {
        self.slice.map_or(self.key, |slice| slice.whole)
    }

    /// Where what it is about begins in the object.
    pub(super) fn begins(&self) -> u64 {
        let piece = self.slice.map_or(0, |slice| slice.piece);
        bytes_of(piece, u64::MAX).start
    }

    /// The `Range` of what it is about from byte `from` on, counted from where it begins.
    pub(super) fn rest(&self, from: u64) -> HeaderValue {
        let start = self.begins() + from;
        let text = match self.slice {
            Some(slice) => format!("bytes={start}-{}", bytes_of(slice.piece, u64::MAX).end - 1),
            None => format!("bytes={start}-"),
        };
        HeaderValue::try_from(text).expect("digits and a dash")
    }

    /// Which slices of an object of `length` bytes, if that is known, it wants; `None` where it gets none, so that
    /// it does not get what is not for everybody.
    fn slices(&self, length: Option<u64>) -> Option<Range<u32>> {
        let may_share = !self.headers.contains_key(header::AUTHORIZATION);
        (may_share && self.method == Method::GET).then(|| part::sliced(&self.headers, length))?
    }

    /// The request for a slice of what this one is about.
    fn for_slice(&self, piece: u32, now_ms: u64) -> Self {
        let mut headers = self.headers.clone();
        policy::fields::remove(&mut headers, |name| forward::selects(name.as_str()));
        let whole = self.key;
        Self {
            key: key::slice_key(whole, piece),
            slice: Some(Slice { piece, whole }),
            headers,
            method: Method::GET,
            extensions: http::Extensions::new(),
            spelling: Some(Spelling::default()),
            takes_trailers: false,
            interim: None,
            forwarded: OnceLock::new(),
            begun: std::sync::Mutex::default(),
            is_sure: std::sync::atomic::AtomicBool::new(true),
            may_be_sent_on: false,
            deadline: OnceLock::new(),
            site: self.site.clone(),
            ruling: self.ruling.clone(),
            verdict: self.verdict,
            bypasses: self.bypasses,
            site_metrics: self.site_metrics.clone(),
            host: self.host.clone(),
            host_sent: self.host_sent.clone(),
            uri: self.uri.clone(),
            version: self.version,
            said: self.said.clone(),
            rules: self.rules.clone(),
            client: self.client,
            purges: self.purges.clone(),
            now_ms,
            started: self.started,
            level: self.level,
        }
    }
}

/// The range that slices are put together for, and the first of them.
#[derive(Clone)]
struct Wanted {
    proxy: Proxy,
    asked: Arc<Asked>,
    first: Arc<Entry>,
    range: Range<u64>,
    of: u64,
}

/// Slices that are still to come, in order.
struct Rest {
    wanted: Wanted,
    /// What is delivered now.
    now: BodyStream,
    ahead: VecDeque<JoinHandle<Result<BodyStream, BodyError>>>,
    /// Pieces nobody was asked for yet.
    left: Range<u32>,
}

impl Proxy {
    /// Whether a miss of this request is to be answered from slices before its range is fetched as such: a miss
    /// fetches the range only, and others could use that, or it is too long to be kept as a part. What somebody
    /// holds whole is had from there.
    pub(super) fn prefers_slices(&self, asked: &Asked) -> bool {
        let upstream = &self.shared.upstream;
        let is_worth_it = |pieces: Range<u32>| pieces.len() > 1 || upstream.has_peers();
        !asked.rules.fill_whole
            && asked.slices(None).is_some_and(is_worth_it)
            && upstream.holders(asked.key).is_empty()
    }

    /// Answers a request for a range from the slices that it touches, of an object of `length` bytes if that is
    /// known. `None` if that cannot be: it does not want one range; or the origin does not send parts, or none that can be kept, or not
    /// with a validator that tells versions apart.
    ///
    /// # Errors
    ///
    /// Those of a fetch.
    pub(super) async fn answer_from_slices(
        &self,
        asked: &Arc<Asked>,
        length: Option<u64>,
        fwd: Fwd,
    ) -> Result<Option<Response<Payload>>, ServeError> {
        let Some(at) = asked.slices(length).map(|pieces| pieces.start) else {
            return Ok(None);
        };
        asked.forwarded.get_or_init(|| fwd);
        let Some((mut first, mut leads)) = self.slice(asked, at).await? else {
            return Ok(None);
        };
        let Some(part) = Part::of(&first.head.headers) else {
            return Ok(None);
        };
        let mut head = first.head.clone();
        head.headers.remove(header::CONTENT_RANGE);
        let of = part.of;
        head.part = Some(Part { range: 0..of, of });
        let nothing = Body::Whole(Bytes::new());
        let object = Entry::new(asked.key, 0, head, nothing, first.from.clone());
        let Delivery {
            mut head,
            content: Content::Range(range),
            length,
        } = deliver::plan(&asked.method, &asked.headers, &object, self.now())
        else {
            return Ok(None);
        };
        let is_one_version = is_of(&first, &first, of);
        let pieces = part::touched(&range);
        if head.status != StatusCode::PARTIAL_CONTENT || (pieces.len() > 1 && !is_one_version) {
            return Ok(None);
        }
        if pieces.start != at {
            // From the end, and where that is was not known.
            match self.slice(asked, pieces.start).await? {
                Some((slice, is_led)) if is_of(&slice, &first, of) => {
                    (first, leads) = (slice, is_led);
                }
                _ => return Ok(None),
            }
        }
        let (how, source) = match leads || matches!(first.body, Body::Growing(_)) {
            true => (How::filled(leads, fwd, head.status), first.from.source()),
            false => (How::hit(Outcome::Hit), first.source),
        };
        asked.rules.consume_targets(&mut head.headers);
        self.tell_kept(asked, &how, &first, &mut head.headers);
        let wanted = Wanted {
            proxy: self.clone(),
            asked: asked.clone(),
            first: first.clone(),
            range,
            of,
        };
        let Ok(now) = wanted.open(&first, pieces.start) else {
            self.shared.cache.forget(first.key).await;
            return Ok(None);
        };
        let mut rest = Rest {
            wanted,
            now,
            ahead: VecDeque::new(),
            left: pieces.start + 1..pieces.end,
        };
        rest.look_ahead();
        let bytes = stream::unfold(Some(rest), async |rest| rest?.next().await);
        let trace = self.trace(Some(asked), how.outcome, source, head.status);
        let payload = Payload::reading(Reading::Stream(Box::pin(bytes)), length, trace);
        Ok(Some(response(head.status, head.headers, payload)))
    }

    /// A slice of what is asked for, complete or coming in, and whether it is fetched for this request; `None` if
    /// there is nothing that can be shared.
    async fn slice(
        &self,
        asked: &Asked,
        piece: u32,
    ) -> Result<Option<(Arc<Entry>, bool)>, ServeError> {
        let asked = Arc::new(asked.for_slice(piece, self.now()));
        let kind = match self.found(&asked).await {
            Found::Entry(slice, leads) => return Ok(Some((slice, leads))),
            Found::Refused(Refusal::OriginFailed { fault, detail }) => {
                return Err(ServeError::new(home::kind_of(fault), detail));
            }
            Found::Refused(Refusal::OriginBusy) => Kind::OriginBusy,
            Found::Refused(Refusal::Busy) => Kind::Overloaded,
            // Who asks for the range itself is told why.
            Found::Refused(_) => return Ok(None),
        };
        Err(ServeError::new(kind, "a slice could not be fetched"))
    }

    /// Whether what was fetched from the origin at `fetched_ms` is older than a change of it that is known here.
    pub(super) fn is_doubtful(&self, asked: &Asked, fetched_ms: u64) -> bool {
        self.shared.cache.is_doubtful(asked.key, fetched_ms) || self.is_of_before(asked, fetched_ms)
    }

    /// Whether a slice is from before a change of its object that is known here.
    pub(super) fn is_of_before(&self, asked: &Asked, fetched_ms: u64) -> bool {
        let cache = &self.shared.cache;
        let slice = asked.slice.as_ref();
        slice.is_some_and(|slice| cache.is_doubtful(slice.whole, fetched_ms))
    }
}

impl Wanted {
    /// What of a slice is wanted.
    fn open(&self, slice: &Entry, piece: u32) -> Result<BodyStream, BodyError> {
        let bytes = bytes_of(piece, self.of);
        let start = self.range.start.max(bytes.start) - bytes.start;
        let end = self.range.end.min(bytes.end) - bytes.start;
        let cache = &self.proxy.shared.cache;
        Ok(slice.open(start..end, cache)?.into_stream())
    }

    /// The slice of a later piece, if it is of the same version. One that is older than the first is fetched
    /// anew; where it is newer, this body cannot be brought to its end, and the first is of no use any more.
    async fn later(self, piece: u32) -> Result<BodyStream, BodyError> {
        let Self {
            proxy,
            asked,
            first,
            of,
            ..
        } = &self;
        let cache = &proxy.shared.cache;
        for _ in 0..TRIES {
            let found = proxy.slice(asked, piece).await;
            let found = found.map_err(|error| BodyError::Source(error.detail))?;
            let Some((slice, _)) = found else { break };
            let (own, its) = (&first.head, &slice.head);
            match is_of(&slice, first, *of) {
                true => match self.open(&slice, piece) {
                    Ok(bytes) => return Ok(bytes),
                    // Evicted in this moment.
                    Err(_) => cache.forget(slice.key).await,
                },
                false if its.fetched_at < own.fetched_at => {
                    debug!(uri = %asked.uri, piece, "a slice is of an older version");
                    cache.invalidate(slice.key, its.fetched_at).await;
                }
                false => {
                    info!(uri = %asked.uri, piece, "the object has changed between its slices");
                    cache.invalidate(first.key, own.fetched_at).await;
                    break;
                }
            }
        }
        let error = "the object has changed at the origin meanwhile".to_owned();
        Err(BodyError::Source(error))
    }
}

impl Rest {
    /// Has the next slices fetched.
    fn look_ahead(&mut self) {
        while self.ahead.len() < AHEAD_MAX
            && let Some(piece) = self.left.next()
        {
            self.ahead
                .push_back(tokio::spawn(self.wanted.clone().later(piece)));
        }
    }

    /// The next bytes, and what comes then.
    async fn next(mut self) -> Option<(Result<Bytes, BodyError>, Option<Self>)> {
        loop {
            match self.now.next().await {
                Some(Ok(bytes)) => return Some((Ok(bytes), Some(self))),
                Some(Err(error)) => return Some((Err(error), None)),
                None => {}
            }
            let next = self.ahead.pop_front()?;
            self.look_ahead();
            self.now = match next.await {
                Ok(Ok(bytes)) => bytes,
                Ok(Err(error)) => return Some((Err(error), None)),
                Err(error) => return Some((Err(BodyError::Source(error.to_string())), None)),
            };
        }
    }
}
