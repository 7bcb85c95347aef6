//! Ranges of large objects that nobody holds. Each piece that such a range touches is an object of its own, a
//! *slice*, under a key of its own: the origin's 206 for that piece, whose `Content-Range` says of what it is a
//! part. So a slice is claimed, fetched from its home, relayed, stored, told of in digests, validated and purged like
//! any object, and whoever wants the same piece, on any edge, waits for the same fetch.
//!
//! Nobody gets a slice as such: here they are put together, in order, as long as they are of one version for
//! certain (RFC 9110 §13.1.5, RFC 9111 §3.4).

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};

use bytes::Bytes;
use cluster::{key::Key, manifest::PIECE_BYTES};
use futures_util::{StreamExt as _, stream};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tracing::{debug, info};

use super::{
    Asked, Proxy,
    answer::{How, response},
    home, part,
    relay::Found,
};
use crate::{
    cache::{
        Lookup,
        entry::{Body, BodyStream, Entry, Reading},
        fill::BodyError,
        key,
        policy::{
            self, CacheControl, Rules,
            part::{Extent, Part},
            validator,
        },
    },
    deliver::{self, Content, Delivery, cache_status::Fwd, range},
    error::{Kind, ServeError},
    forward,
    metrics::Source,
    payload::{BySource, Payload},
    upstream::{
        Upstream,
        origin::OriginBody,
        plain::Spelling,
        relayed::{Refusal, Slice},
    },
};

/// Slices that are fetched before the client comes to them: as many as a peer's first answer has pieces. So a
/// transfer over a long way moves 4 MiB a round trip, and a client that leaves has cost no more than that.
const AHEAD_MAX: usize = 4;
/// How often a slice is tried to be had, be it of an older version or not to be had just now …
const TRIES: u32 = 3;
/// … after this, twice this, ….
const PAUSE: Duration = Duration::from_secs(1);
/// It is of the bytes in one answer (RFC 9530 §2), which are put together with others here.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");

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

/// Whether two slices, or a slice and what is stored of the whole, are of the same version for certain.
fn is_same_version(one: &Entry, other: &Entry) -> bool {
    let length = |entry: &Entry| match Part::of(&entry.head.headers) {
        Some(part) => Some(part.of),
        None => entry.length(),
    };
    validator::same_strong_validator(&one.head.headers, &other.head.headers)
        && length(one) == length(other)
}

/// Whether the bytes of a slice come from elsewhere, be it for this request or for others.
fn is_fetched(slice: &Entry, how: &How) -> bool {
    how.is_fetched() || matches!(slice.body, Body::Growing(_))
}

/// The slices from which a miss of this request is answered, as far as they are known without the `length` of the
/// object; `None` if it is answered in another way.
pub fn wanted_slices(
    request: (&Method, &HeaderMap, &CacheControl),
    (rules, upstream): (&Rules, &Upstream),
    key: Key,
    length: Option<u64>,
) -> Option<Range<u32>> {
    // The range is fetched only, and others could use that, or it is too long to be kept as a part.
    let is_worth_it = |pieces: &Range<u32>| pieces.len() > 1 || upstream.has_peers();
    let pieces = slices_of(request, length).filter(is_worth_it)?;
    // What somebody holds whole is had from there.
    (!rules.fill_whole && upstream.holders(key).is_empty()).then_some(pieces)
}

/// Which slices of an object of `length` bytes, if that is known, a request wants; `None` where it gets none: what is
/// not for everybody, or must be had without asking anybody.
fn slices_of(
    (method, headers, said): (&Method, &HeaderMap, &CacheControl),
    length: Option<u64>,
) -> Option<Range<u32>> {
    let is_own = headers.contains_key(header::AUTHORIZATION) || said.only_if_cached;
    (!is_own && *method == Method::GET).then(|| part::sliced(headers, length))?
}

/// The bytes of a piece of a body of `length` bytes.
fn bytes_of(piece: u32, length: u64) -> Range<u64> {
    part::bytes_of(&(piece..piece.saturating_add(1)), length)
}

impl Asked {
    /// The key of its URL, of which it may want a slice.
    pub(super) fn object_key(&self) -> Key {
        self.slice.map_or(self.key, |slice| slice.whole)
    }

    /// Where what it is about begins in the object.
    pub(super) fn begins(&self) -> u64 {
        let piece = self.slice.map_or(0, |slice| slice.piece);
        bytes_of(piece, u64::MAX).start
    }

    /// The `Range` of what it is about from byte `from` on, counted from where it begins.
    pub(super) fn rest(&self, from: u64) -> HeaderValue {
        let end = |slice: Slice| bytes_of(slice.piece, u64::MAX).end;
        let end = self.slice.map_or(u64::MAX, end);
        range::field(&(self.begins() + from..end), u64::MAX)
    }

    fn request(&self) -> (&Method, &HeaderMap, &CacheControl) {
        (&self.method, &self.headers, &self.said)
    }

    /// Whether a slice is from before a change of its object.
    pub(super) fn is_from_before(&self, fetched_ms: u64) -> bool {
        self.changed_ms
            .is_some_and(|changed_ms| fetched_ms <= changed_ms)
    }

    /// The request for a slice of what this one is about.
    fn for_slice(&self, piece: u32, proxy: &Proxy) -> Self {
        let mut headers = self.headers.clone();
        policy::fields::remove(&mut headers, |name| forward::selects(name.as_str()));
        let whole = self.key;
        Self {
            key: key::slice_key(whole, piece),
            slice: Some(Slice { piece, whole }),
            changed_ms: proxy.shared.cache.changed_ms(whole),
            headers,
            method: Method::GET,
            extensions: Extensions::new(),
            spelling: Some(Spelling::default()),
            takes_trailers: false,
            interim: None,
            forwarded: OnceLock::new(),
            begun: Mutex::default(),
            is_sure: AtomicBool::new(true),
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
            unknown_ms: self.unknown_ms,
            now_ms: proxy.now(),
            started: self.started,
            level: self.level,
        }
    }
}

/// What comes of a slice.
enum Sliced {
    /// It, complete or coming in, what it is of the object, and how this node has come to it.
    Entry(Arc<Entry>, Part, How),
    /// The origin's own word that it failed.
    Failed(Box<Response<OriginBody>>),
    /// Nothing that could be shared.
    Nothing,
}

/// The range that slices are put together for.
#[derive(Clone)]
struct Wanted {
    proxy: Proxy,
    asked: Arc<Asked>,
    /// The object, as the first slice tells of it; without its bytes.
    object: Arc<Entry>,
    /// The piece that the answer begins with.
    first: u32,
    /// What is still to be delivered.
    range: Range<u64>,
    /// Counts what is read from disk …
    from_disk: Arc<AtomicU64>,
    /// … and what comes from elsewhere.
    fetched: Arc<BySource>,
}

/// Slices that are still to come, in order.
struct Rest {
    wanted: Wanted,
    /// What is delivered now, and of which piece.
    now: BodyStream,
    piece: u32,
    /// How often one that ends too early may be gone on with.
    tries: u32,
    ahead: VecDeque<JoinHandle<Result<BodyStream, BodyError>>>,
    /// Pieces nobody was asked for yet.
    left: Range<u32>,
}

/// Under what it is remembered that an object is not had in slices: no body has so many pieces.
fn unsliced(whole: Key) -> Key {
    key::slice_key(whole, u32::MAX)
}

impl Proxy {
    /// Whether a miss of this request is to be answered from slices before its range is fetched as such.
    pub(super) fn prefers_slices(&self, asked: &Asked) -> bool {
        let by = (&*asked.rules, &self.shared.upstream);
        wanted_slices(asked.request(), by, asked.key, None).is_some()
    }

    /// Looks up what is asked for in slices.
    ///
    /// # Errors
    ///
    /// It is to be had so: what is here of it, if anything, does not do. The whole is not claimed then, so that
    /// nobody waits for what nobody fetches.
    pub(super) async fn look_up_slices(&self, asked: &Asked) -> Result<Lookup, Option<Arc<Entry>>> {
        if self.shared.cache.is_absent(asked.key) {
            return Err(None);
        }
        match self.shared.cache.lookup(self.ask(asked)).await {
            Lookup::Absent(filler) => {
                filler.again();
                Err(None)
            }
            Lookup::Fresh(part) if !deliver::suffices(&asked.method, &asked.headers, &part) => {
                Err(Some(part))
            }
            looked_up => Ok(looked_up),
        }
    }

    /// Whether what a request asks for is a slice, and its object is not had in such for now.
    pub(super) fn is_unsliced(&self, asked: &Asked) -> bool {
        let slice = asked.slice.as_ref();
        slice.is_some_and(|slice| self.shared.cache.is_passing(unsliced(slice.whole)))
    }

    /// The origin does not send what could be shared of `whole` in slices: for a while nobody asks for any.
    pub(super) fn leave_unsliced(&self, whole: Key) {
        self.shared.cache.start_passing(unsliced(whole));
    }

    /// Answers a request for a range from the slices that it touches; `stored` is what is here of the object, and
    /// does not do. `None` if that cannot be: it does not want one range; or the origin does not send parts, or none
    /// that can be kept, or not with a validator that tells versions apart.
    ///
    /// # Errors
    ///
    /// Those of a fetch.
    pub(super) async fn answer_from_slices(
        &self,
        asked: &Arc<Asked>,
        stored: Option<&Entry>,
        fwd: Fwd,
    ) -> Result<Option<Response<Payload>>, ServeError> {
        let length = stored.and_then(Entry::length);
        let Some(wanted) = slices_of(asked.request(), length) else {
            return Ok(None);
        };
        asked.forwarded.get_or_init(|| fwd);
        let (first, Part { range, of }, how) = match self.first_slice(asked, wanted.start).await? {
            Sliced::Entry(slice, part, how) => (slice, part, how),
            Sliced::Failed(answer) => return Ok(Some(self.passed_whole(asked, *answer, fwd))),
            Sliced::Nothing => return Ok(None),
        };
        let is_older = |stored: &Entry| {
            !is_same_version(stored, &first) && first.head.fetched_at <= stored.head.fetched_at
        };
        if stored.is_some_and(is_older) {
            // Of the two versions, nobody is given the older one for it.
            self.forget_slice(asked, part::touched(&range).start).await;
            return Ok(None);
        }
        let mut head = first.head.clone();
        for name in [header::CONTENT_RANGE, header::TRAILER, CONTENT_DIGEST] {
            head.headers.remove(name);
        }
        head.part = Some(Part { range: 0..of, of });
        let nothing = Body::Whole(Bytes::new());
        let object = Entry::new(asked.key, 0, head, nothing, first.from.clone());
        let Delivery {
            mut head,
            content,
            length,
        } = deliver::plan(&asked.method, &asked.headers, &object, self.now());
        let range = match content {
            Content::Range(range) if head.status == StatusCode::PARTIAL_CONTENT => Some(range),
            Content::None => None,
            Content::Range(_) | Content::Multipart(_) => return Ok(None),
        };
        let pieces = range.as_ref().map_or(0..0, part::touched);
        if pieces.len() > 1 && !is_same_version(&first, &first) {
            self.leave_unsliced(asked.key);
            return Ok(None);
        }
        let is_fetched = is_fetched(&first, &how);
        let source = match is_fetched {
            true => first.from.source(),
            false => first.source,
        };
        let how = How {
            fwd: match how.fwd {
                Some(Fwd::Stale | Fwd::Request) | None => how.fwd,
                Some(_) => Some(fwd),
            },
            fwd_status: match how.fwd_status {
                // As what it is stored; the origin's word was another.
                Some(StatusCode::OK) => Some(StatusCode::PARTIAL_CONTENT),
                status => status,
            },
            ..how
        };
        self.tell_kept(asked, &how, &first, &mut head.headers);
        let mut trace = self.trace(Some(asked), how.outcome, source, head.status);
        let Some(range) = range else {
            let payload = Payload::empty(trace);
            return Ok(Some(response(head.status, head.headers, payload)));
        };
        let wanted = Wanted {
            proxy: self.clone(),
            asked: asked.clone(),
            object: Arc::new(object),
            first: pieces.start,
            range,
            from_disk: trace.from_disk.clone(),
            fetched: trace.fetched.insert(Arc::default()).clone(),
        };
        let Ok(now) = wanted.open(&first, pieces.start, is_fetched) else {
            self.shared.cache.forget(first.key).await;
            return Ok(None);
        };
        let mut rest = Rest {
            wanted,
            now,
            piece: pieces.start,
            tries: TRIES,
            ahead: VecDeque::new(),
            left: pieces.start + 1..pieces.end,
        };
        rest.look_ahead();
        let bytes = stream::unfold(Some(rest), async |rest| rest?.next().await);
        let bytes = Reading::Stream(Box::pin(bytes));
        let payload = Payload::reading(bytes, length, trace);
        Ok(Some(response(head.status, head.headers, payload)))
    }

    /// The slice that the answer begins with: that of piece `at`, if it is not from an end that is not known yet.
    ///
    /// # Errors
    ///
    /// Those of a fetch; or it is taken down.
    async fn first_slice(&self, asked: &Asked, at: u32) -> Result<Sliced, ServeError> {
        let found = self.slice(asked, at).await?;
        let Sliced::Entry(first, part, how) = &found else {
            return Ok(found);
        };
        let Some(pieces) = slices_of(asked.request(), Some(part.of)) else {
            return Ok(found);
        };
        if pieces.start != at {
            return self.slice(asked, pieces.start).await;
        }
        if !is_fetched(first, how)
            && pieces.len() > 1
            && let Ok(Ok(Sliced::Entry(next, ..))) = timeout(PAUSE, self.slice(asked, at + 1)).await
            && !is_same_version(&next, first)
            && next.head.fetched_at >= first.head.fetched_at
        {
            // It has changed since, and nobody could complete this one.
            self.forget_slice(asked, at).await;
            return self.slice(asked, at).await;
        }
        Ok(found)
    }

    /// A slice of what is asked for.
    ///
    /// # Errors
    ///
    /// Those of a fetch; or it is taken down.
    async fn slice(&self, asked: &Asked, piece: u32) -> Result<Sliced, ServeError> {
        let asked = Arc::new(asked.for_slice(piece, self));
        let (kind, detail) = match self.found(&asked).await {
            Found::Entry(slice, how) | Found::Instead(slice, how, _) => {
                self.body_admitted(&asked, &slice).await?;
                let part = Part::of(&slice.head.headers);
                let Some(part) = part.filter(|part| part.range == bytes_of(piece, part.of)) else {
                    self.shared.cache.forget(slice.key).await;
                    return Ok(Sliced::Nothing);
                };
                return Ok(Sliced::Entry(slice, part, how));
            }
            Found::Refused(Refusal::OriginError {
                status,
                fields,
                body,
            }) => {
                let answer = home::error_response(status, &fields, body).map(Box::new);
                return Ok(answer.map_or(Sliced::Nothing, Sliced::Failed));
            }
            Found::Refused(Refusal::OriginFailed { fault, detail }) => {
                (home::kind_of(fault), detail)
            }
            Found::Refused(Refusal::OriginBusy) => (Kind::OriginBusy, String::new()),
            Found::Refused(Refusal::Busy) => (Kind::Overloaded, String::new()),
            Found::Refused(Refusal::TakenDown) => (Kind::Blocked, String::new()),
            // Who asks for the range itself is told why.
            Found::Refused(_) => return Ok(Sliced::Nothing),
        };
        Err(ServeError::new(kind, detail))
    }

    /// Forgets a slice that is not of the newest version, and that others may have it.
    async fn forget_slice(&self, asked: &Asked, piece: u32) {
        let key = key::slice_key(asked.key, piece);
        self.shared.cache.outdate(key, self.now()).await;
    }

    /// Whether what was fetched from the origin at `fetched_ms` is older than a change of it that is known here.
    pub(super) fn is_doubtful(&self, asked: &Asked, fetched_ms: u64) -> bool {
        self.shared.cache.is_doubtful(asked.key, fetched_ms) || asked.is_from_before(fetched_ms)
    }
}

impl Wanted {
    /// How long the object is.
    fn length(&self) -> u64 {
        self.object.length().unwrap_or(0)
    }

    /// What of a piece is wanted, by its place in the object.
    fn of_piece(&self, piece: u32) -> Range<u64> {
        let bytes = bytes_of(piece, self.length());
        self.range.start.max(bytes.start)..self.range.end.min(bytes.end)
    }

    /// What is wanted of a slice, be it here or fetched.
    fn open(&self, slice: &Entry, piece: u32, is_fetched: bool) -> Result<BodyStream, BodyError> {
        let begins = bytes_of(piece, self.length()).start;
        let Range { start, end } = self.of_piece(piece);
        let (cache, range) = (&self.proxy.shared.cache, start - begins..end - begins);
        let bytes = slice.open_counted(range, cache, &self.from_disk)?;
        Ok(match is_fetched {
            true => self.counted(slice.from.source(), bytes),
            false => bytes.into_stream(),
        })
    }

    /// Counts bytes that are from there, as they come.
    fn counted(&self, source: Source, bytes: Reading) -> BodyStream {
        let fetched = self.fetched.clone();
        let count = move |read: &Result<Bytes, BodyError>| {
            let bytes = read.as_ref().map_or(0, Bytes::len);
            fetched.add(source, bytes as u64);
        };
        Box::pin(bytes.into_stream().inspect(count))
    }

    /// The slice of a later piece, if it is of the same version. One that is older than the first is fetched
    /// anew; where it is newer, this body cannot be brought to its end, and the first is of no use any more. What
    /// cannot be shared is had for this client alone; what failed is tried again.
    async fn later(self, piece: u32) -> Result<BodyStream, BodyError> {
        let Self {
            proxy,
            asked,
            object,
            ..
        } = &self;
        let cache = &proxy.shared.cache;
        let mut failed = changed();
        for turn in 1..=TRIES {
            match proxy.slice(asked, piece).await {
                Ok(Sliced::Entry(slice, _, how)) if is_same_version(&slice, object) => {
                    match self.open(&slice, piece, is_fetched(&slice, &how)) {
                        Ok(bytes) => return Ok(bytes),
                        // Evicted in this moment.
                        Err(_) => cache.forget(slice.key).await,
                    }
                    continue;
                }
                Ok(Sliced::Entry(slice, ..)) if slice.head.fetched_at < object.head.fetched_at => {
                    debug!(uri = %asked.uri, piece, "a slice is of an older version");
                    proxy.forget_slice(asked, piece).await;
                    continue;
                }
                Ok(Sliced::Entry(..)) => {
                    info!(uri = %asked.uri, piece, "the object has changed between its slices");
                    proxy.forget_slice(asked, self.first).await;
                    return Err(changed());
                }
                Ok(Sliced::Nothing) => return self.alone(piece).await,
                Ok(Sliced::Failed(answer)) => {
                    failed = BodyError::Source(format!("origin answered {}", answer.status()));
                }
                Err(error) if error.kind == Kind::Blocked => {
                    return Err(BodyError::Source(error.detail));
                }
                Err(error) => failed = BodyError::Source(error.detail),
            }
            if turn < TRIES {
                sleep(PAUSE * turn).await;
            }
        }
        Err(failed)
    }

    /// What is wanted of a piece, from the origin, if it is of the same version there.
    async fn alone(&self, piece: u32) -> Result<BodyStream, BodyError> {
        let Self {
            proxy,
            asked,
            object,
            ..
        } = self;
        let (of, range, stored) = (self.length(), self.of_piece(piece), &object.head.headers);
        let asked = asked.for_slice(piece, proxy);
        let mut headers = proxy.whole(&asked);
        headers.insert(header::RANGE, range::field(&range, of));
        if let Some(condition) = validator::range_condition(stored) {
            headers.insert(header::IF_RANGE, condition);
        }
        let asking = proxy.ask_origin(None, &asked, Method::GET, headers);
        let (response, _) = asking.await.map_err(|e| BodyError::Source(e.detail))?;
        let fields = response.headers();
        let length = range.end - range.start;
        let is_wanted = response.status() == StatusCode::PARTIAL_CONTENT
            && validator::same_strong_validator(stored, fields)
            && Part::of(fields) == Some(Part { range, of });
        if !is_wanted {
            return Err(changed());
        }
        // The client may be slow, and others wait for the line.
        let body = Limited::new(response.into_body(), PIECE_BYTES).collect();
        let body = body.await.map_err(|e| BodyError::Source(e.to_string()))?;
        let bytes = body.to_bytes();
        match bytes.len() as u64 == length {
            true => Ok(self.counted(Source::Origin, Reading::Whole(bytes))),
            false => Err(BodyError::Source("a part of another length".to_owned())),
        }
    }
}

impl Rest {
    /// Has the next slices fetched: the longer the client stays, the further ahead.
    fn look_ahead(&mut self) {
        let delivered = (self.piece - self.wanted.first) as usize;
        while self.ahead.len() < AHEAD_MAX.min(delivered + 1)
            && let Some(piece) = self.left.next()
        {
            self.ahead
                .push_back(tokio::spawn(self.wanted.clone().later(piece)));
        }
    }

    /// The next bytes, and what comes then.
    async fn next(mut self) -> Option<(Result<Bytes, BodyError>, Option<Self>)> {
        loop {
            let next = match self.now.next().await {
                Some(Ok(bytes)) => {
                    self.wanted.range.start += bytes.len() as u64;
                    return Some((Ok(bytes), Some(self)));
                }
                Some(Err(error)) if !self.wanted.of_piece(self.piece).is_empty() => {
                    let Some(tries) = self.tries.checked_sub(1) else {
                        return Some((Err(error), None));
                    };
                    self.tries = tries;
                    info!(uri = %self.wanted.asked.uri, piece = self.piece, %error, "a slice has ended too early");
                    self.wanted.clone().later(self.piece).await
                }
                Some(Err(_)) | None => {
                    self.piece += 1;
                    self.look_ahead();
                    let next = self.ahead.front_mut()?.await;
                    self.ahead.pop_front();
                    next.unwrap_or_else(|error| Err(BodyError::Source(error.to_string())))
                }
            };
            match next {
                Ok(bytes) => self.now = bytes,
                Err(error) => return Some((Err(error), None)),
            }
        }
    }
}

impl Drop for Rest {
    /// What is under way for others goes on.
    fn drop(&mut self) {
        self.ahead.iter().for_each(JoinHandle::abort);
    }
}

fn changed() -> BodyError {
    BodyError::Source("the object has changed at the origin meanwhile".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_all_of_one_piece_and_nothing_else() {
        const MAX: u64 = 10 << 20;
        let whole = |length| Extent::Whole(Some(length));
        for (piece, status, content, expected) in [
            (0, 206, "bytes 0-1048575/3000000", whole(1 << 20)),
            (2, 206, "bytes 2097152-2999999/3000000", whole(902_848)),
            // All that there is.
            (0, 206, "bytes 0-9/10", whole(10)),
            (0, 206, "bytes 0-1048574/3000000", Extent::Unknown),
            (1, 206, "bytes 0-1048575/3000000", Extent::Unknown),
            (0, 206, "bytes 0-2097151/3000000", Extent::Unknown),
            (0, 206, "bytes 0-1048575/*", Extent::Unknown),
            (0, 206, "bytes 0-1048575/10485761", Extent::Unknown),
            (0, 200, "bytes 0-1048575/3000000", Extent::Unknown),
            (0, 206, "", Extent::Unknown),
        ] {
            let mut fields = HeaderMap::new();
            fields.insert(header::CONTENT_RANGE, content.parse().unwrap());
            let status = StatusCode::from_u16(status).unwrap();
            let extent = extent(piece, status, &fields, MAX);
            assert_eq!(extent, expected, "{status} {content}");
        }
    }
}
