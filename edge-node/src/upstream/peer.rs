//! One question to one peer: do you hold this object? The answer is its manifest and then its pieces,
//! each verified before anybody sees it.
//!
//! On the wire: `GET /v1/hold/{key}` with the fields that select a variant and `cdn-pieces: A-B`, the
//! first and the last piece wanted; all of them when absent. Answered 200 with the age in `age` and
//! `cdn-age-ms`, and a body of the manifest's length (u32, little-endian), the manifest, and the bytes of
//! those pieces that there are; or 404 with `cdn-answer: miss` or `stale`; or 429 or 503 when busy.
//!
//! Who has the manifest names what it wants: `cdn-pieces-hash`, the [`run_hash`] of those pieces. Then the
//! answer is their bytes and nothing else, of whatever version they are and however old; or 404 with
//! `cdn-answer: other` when the holder's pieces are not these.
//!
//! A single piece can be had of an object that is still coming in, as soon as it is there. Who does not have it
//! yet waits a moment for it, and then says `cdn-answer: not-yet`. Who asks the home of an object that is
//! [shared out](super::wants), because another did not give a piece, names that one in `cdn-late`; the home
//! gives the piece, or says `cdn-answer: elsewhere` and in `cdn-holder` who has it by now.

use std::{fmt, ops::Range, sync::Arc, time::Duration};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use cluster::{
    auth::Signer,
    clock::Clock,
    key::Key,
    manifest::{MANIFEST_BYTES_MAX, Manifest, PieceHash, run_hash},
    node::NodeId,
    wire,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout};

use super::{
    health::Health,
    pool::{self, Answer, Fault, Incoming, Patience, Pool},
    relayed,
};

/// Request: the first and the last piece to send, `A-B`; all when absent.
pub const PIECES_FIELD: &str = "cdn-pieces";
/// Request: the hash of those pieces' hashes, in hexadecimal; then no manifest is sent.
pub const PIECES_HASH_FIELD: &str = "cdn-pieces-hash";
/// Answer: the object's current age in milliseconds, which `Age` tells in seconds only.
pub const AGE_MS_FIELD: &str = "cdn-age-ms";
/// Request: who was to give this piece, and did not in time.
pub const LATE_FIELD: &str = "cdn-late";
/// Answer: who has the piece.
pub const HOLDER_FIELD: &str = "cdn-holder";
/// Answer: `miss`, `stale`, `other`, `not-yet` or `elsewhere` with a 404, `busy` with a 503.
pub const ANSWER_FIELD: &str = "cdn-answer";

/// For a connection to a peer: more than a round trip around the globe, and loss on the way.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The same where the round trip is known: so many of them …
const CONNECT_ROUND_TRIPS: f64 = 4.0;
/// … and what a busy machine at either end adds.
const CONNECT_NOISE: Duration = Duration::from_millis(250);
/// For the head of its answer, and again for the manifest: beyond, the origin is the better choice.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest silence within a body.
pub const BETWEEN_BYTES_TIMEOUT: Duration = Duration::from_secs(3);
/// For a piece as a whole, or a peer could drip bytes for ever. Slower than 35 kB/s is no help.
pub const PIECE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a peer gave no (complete) object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It does not hold it.
    #[error("does not hold it")]
    Miss,
    /// It holds it, but would not serve it any more.
    #[error("holds it, but no longer fresh")]
    Stale,
    /// It holds something else under that key.
    #[error("holds another version")]
    Other,
    /// The site has taken it down, as far as it knows.
    #[error("says that it is taken down")]
    TakenDown,
    /// What was asked for has not come in there yet.
    #[error("does not have it yet")]
    NotYet,
    /// Another has it.
    #[error("says that {0} has it")]
    Elsewhere(NodeId),
    /// It has too much to do.
    #[error("is busy")]
    Busy,
    /// It failed lately; it was not asked.
    #[error("is ejected")]
    Ejected,
    /// No connection.
    #[error("cannot be reached: {0}")]
    Connect(String),
    /// No answer in time.
    #[error("does not answer in time")]
    Timeout,
    /// It fell silent within its answer, or drips.
    #[error("stalls within its answer")]
    Stalled,
    /// It does not take us for a member of the cluster.
    #[error("refuses this node")]
    Denied,
    /// It closed the connection before the end. A node that does not take us for a member does so
    /// without a word.
    #[error("closed the connection early")]
    ClosedEarly,
    /// A piece is not what the manifest says.
    #[error("sent a wrong piece {piece}")]
    Corrupt {
        /// Which one.
        piece: u32,
    },
    /// What it says cannot be understood.
    #[error("sent what cannot be understood: {0}")]
    Garbage(String),
}

impl PeerError {
    /// One word, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Miss => "miss",
            Self::Stale => "stale",
            Self::Other => "other",
            Self::TakenDown => "taken_down",
            Self::NotYet => "not_yet",
            Self::Elsewhere(_) => "elsewhere",
            Self::Busy => "busy",
            Self::Ejected => "ejected",
            Self::Connect(_) => "connect",
            Self::Timeout => "timeout",
            Self::Stalled => "stalled",
            Self::Denied => "denied",
            Self::ClosedEarly => "closed_early",
            Self::Corrupt { .. } => "corrupt",
            Self::Garbage(_) => "garbage",
        }
    }
}

impl From<pool::SendError> for PeerError {
    fn from(error: pool::SendError) -> Self {
        match error.fault {
            Fault::Connect | Fault::ConnectTimeout | Fault::Tls => Self::Connect(error.to_string()),
            Fault::HeadTimeout => Self::Timeout,
            Fault::BodyTimeout => Self::Stalled,
            Fault::ClosedEarly | Fault::RequestBody => Self::ClosedEarly,
            Fault::Garbage | Fault::TooLarge => Self::Garbage(error.to_string()),
        }
    }
}

/// An object as a peer holds it.
#[derive(Debug)]
pub struct PeerObject {
    /// What it is.
    pub manifest: Manifest,
    /// How old it is at most: the age the peer gave, and the time its answer took (RFC 9111 §4.2.3).
    pub age: Duration,
    /// Its bytes, as far as they were asked for.
    pub pieces: PieceStream,
}

/// Pieces in a row of an object whose manifest is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    first: u32,
    /// Hash and length of each, in order.
    expected: Vec<(PieceHash, usize)>,
    /// Who did not give it in time.
    late: Option<NodeId>,
}

impl Run {
    /// Piece `index` alone, which is so long and has this hash; it is asked for because `late` did not give it.
    pub fn one(index: u32, hash: PieceHash, length: usize, late: Option<NodeId>) -> Self {
        Self {
            first: index,
            expected: vec![(hash, length)],
            late,
        }
    }

    /// The pieces of `wanted` that `manifest` names.
    pub fn of(manifest: &Manifest, wanted: Range<u32>) -> Self {
        let hashes = manifest.pieces.iter().zip(0_u32..);
        let hashes = hashes.skip(wanted.start as usize).take(wanted.len());
        Self {
            first: wanted.start,
            expected: hashes
                .map(|(hash, index)| (*hash, manifest.piece_length(index)))
                .collect(),
            late: None,
        }
    }

    fn hash(&self) -> PieceHash {
        run_hash(self.expected.iter().map(|(hash, _)| hash))
    }

    /// As they come in `bytes`.
    fn arriving(self, bytes: Frames) -> PieceStream {
        let mut expected = self.expected;
        expected.reverse();
        PieceStream {
            bytes,
            expected,
            next: self.first,
            verdict: None,
        }
    }
}

/// Told once how it went with a peer's pieces; dropped untold when nobody waited for the end.
pub(super) type Verdict = Box<dyn FnOnce(Result<(), &PeerError>) + Send>;

/// The pieces of an object, in order, each exactly as long and with the hash that the manifest says.
/// Dropping it before the end closes the connection.
pub struct PieceStream {
    bytes: Frames,
    /// Hashes and lengths of what is still to come, the next one last.
    expected: Vec<(PieceHash, usize)>,
    next: u32,
    verdict: Option<Verdict>,
}

impl PieceStream {
    /// The next piece; `None` after the last one, and after an error. Nothing is lost when the
    /// future is dropped.
    ///
    /// # Errors
    ///
    /// The peer failed; pieces that came before are good.
    pub async fn next(&mut self) -> Option<Result<Bytes, PeerError>> {
        let (hash, length) = *self.expected.last()?;
        let piece = self.next;
        let taken = timeout(PIECE_TIMEOUT, self.bytes.take(length)).await;
        let checked = taken.unwrap_or(Err(PeerError::Stalled)).and_then(|bytes| {
            if blake3::hash(&bytes) == blake3::Hash::from_bytes(hash) {
                Ok(bytes)
            } else {
                Err(PeerError::Corrupt { piece })
            }
        });
        match &checked {
            Ok(_) => {
                self.expected.pop();
                self.next += 1;
            }
            Err(_) => self.expected.clear(),
        }
        if self.expected.is_empty()
            && let Some(tell) = self.verdict.take()
        {
            tell(checked.as_ref().map(drop));
        }
        Some(checked)
    }

    /// The number of the piece that comes next.
    pub fn position(&self) -> u32 {
        self.next
    }

    /// The number behind the last piece that is to come.
    pub fn end(&self) -> u32 {
        self.next + u32::try_from(self.expected.len()).expect("a manifest bounds it")
    }

    /// Has `verdict` told how it goes; at once if there is nothing to come.
    pub(super) fn report_to(&mut self, verdict: Verdict) {
        if self.expected.is_empty() {
            verdict(Ok(()));
        } else {
            self.verdict = Some(verdict);
        }
    }
}

impl fmt::Debug for PieceStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PieceStream")
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

/// A body that is taken in parts of known length.
pub(super) struct Frames {
    incoming: Incoming,
    frame: Bytes,
    /// What is there of a part that spans frames.
    partial: BytesMut,
}

impl Frames {
    pub(super) fn new(incoming: Incoming) -> Self {
        Self {
            incoming,
            frame: Bytes::new(),
            partial: BytesMut::new(),
        }
    }

    /// The next `length` bytes, without a copy where one frame holds them.
    pub(super) async fn take(&mut self, length: usize) -> Result<Bytes, PeerError> {
        loop {
            if self.partial.is_empty() && self.frame.len() >= length {
                return Ok(self.frame.split_to(length));
            }
            let missing = length - self.partial.len();
            if self.partial.is_empty() {
                self.partial.reserve(length);
            }
            self.partial
                .put(self.frame.split_to(missing.min(self.frame.len())));
            if self.partial.len() == length {
                return Ok(self.partial.split().freeze());
            }
            let frame = timeout(BETWEEN_BYTES_TIMEOUT, self.incoming.frame()).await;
            self.frame = match frame.map_err(|_| PeerError::Stalled)? {
                None => return Err(PeerError::ClosedEarly),
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(e)) if pool::body_fault(&e) == Fault::Garbage => {
                    return Err(PeerError::Garbage(pool::in_full(&e)));
                }
                Some(Err(_)) => return Err(PeerError::ClosedEarly),
            };
        }
    }
}

/// How questions reach peers: the connections, who asks, and what time it is.
#[derive(Clone, Debug)]
pub struct Asker {
    /// The connections.
    pub pool: Pool,
    /// Signs as this node.
    pub signer: Signer,
    /// The time in signatures.
    pub clock: Clock,
    /// How far peers are.
    pub health: Arc<Health>,
}

/// How long a connection to a peer at this round trip may take, in milliseconds: several round trips, and
/// `CONNECT_NOISE`. Whoever is in its prime answers then; a machine that has died never does, and a packet
/// that was lost is sent again only after a second.
pub fn connect_timeout(round_trip_ms: Option<f64>) -> Duration {
    let Some(ms) = round_trip_ms else {
        return CONNECT_TIMEOUT;
    };
    let ms = ms.clamp(0.0, CONNECT_TIMEOUT.as_secs_f64() * 1e3);
    let trips = Duration::from_secs_f64(CONNECT_ROUND_TRIPS * ms / 1e3);
    CONNECT_TIMEOUT.min(trips + CONNECT_NOISE)
}

impl Asker {
    /// How long to wait for `to`.
    pub fn patience(&self, to: &NodeId) -> Patience {
        Patience {
            connect: connect_timeout(self.health.of(to).round_trip_ms()),
            head: HEAD_TIMEOUT,
        }
    }

    /// A signed `GET` of `path_and_query` from `to`, which listens at `addr`.
    pub fn request(
        &self,
        to: &NodeId,
        addr: &str,
        path_and_query: &str,
        fields: HeaderMap,
    ) -> Result<http::Request<pool::Body>, PeerError> {
        let unusable = |e: String| PeerError::Connect(format!("{addr:?}: {e}"));
        let mut request = pool::get(&format!("http://{addr}{path_and_query}"), fields)
            .map_err(|e| unusable(e.to_string()))?;
        for (name, value) in self
            .signer
            .sign(to, "GET", path_and_query, self.clock.unix_ms())
        {
            let value = HeaderValue::try_from(value).map_err(|e| unusable(e.to_string()))?;
            request
                .headers_mut()
                .insert(HeaderName::from_static(name), value);
        }
        Ok(request)
    }

    /// Tells `to`, which listens at `addr`, that the object `key` is wanted around it; `about` says of
    /// which URL it is.
    ///
    /// # Errors
    ///
    /// It does not take it, or could not be asked.
    pub async fn offer(
        &self,
        to: &NodeId,
        addr: &str,
        key: Key,
        about: &HeaderMap,
    ) -> Result<(), PeerError> {
        let path = format!("{}/{key}", wire::OFFER);
        let patience = Patience {
            connect: CONNECT_TIMEOUT,
            head: HEAD_TIMEOUT,
        };
        let request = || self.request(to, addr, &path, about.clone());
        let answer = self.pool.ask(request, patience).await?;
        match answer.response.status() {
            StatusCode::ACCEPTED => Ok(()),
            StatusCode::SERVICE_UNAVAILABLE => Err(PeerError::Busy),
            other => Err(PeerError::Garbage(format!("status {other}"))),
        }
    }

    /// Asks `to`, which listens at `addr`, for the object `key`: its manifest, and those of the pieces in
    /// `wanted` that there are. Of `fields`, those that tell of the client stay here
    /// ([`may_reach_peers`]). Also returns how long the head of the answer took.
    ///
    /// # Errors
    ///
    /// It does not have it, or failed before the manifest was there.
    pub async fn hold(
        &self,
        to: &NodeId,
        addr: &str,
        key: Key,
        fields: &HeaderMap,
        wanted: Range<u32>,
    ) -> Result<(PeerObject, Duration), PeerError> {
        let asked = Instant::now();
        let fields = selecting(fields, &wanted);
        let (head, mut bytes, round_trip) = self.exchange(to, addr, key, fields).await?;
        let age = age_of(&head).ok_or_else(|| PeerError::Garbage("no age".into()))?;
        let manifest = timeout(HEAD_TIMEOUT, manifest(&mut bytes)).await;
        let manifest = manifest.unwrap_or(Err(PeerError::Timeout))?;
        let pieces = Run::of(&manifest, wanted).arriving(bytes);
        let object = PeerObject {
            manifest,
            age: age + asked.elapsed(),
            pieces,
        };
        Ok((object, round_trip))
    }

    /// Asks `to` for just these pieces of `key`.
    ///
    /// # Errors
    ///
    /// It does not have them, or failed before the first.
    pub async fn pieces(
        &self,
        to: &NodeId,
        addr: &str,
        key: Key,
        fields: &HeaderMap,
        run: Run,
    ) -> Result<PieceStream, PeerError> {
        let count = u32::try_from(run.expected.len()).unwrap_or(u32::MAX);
        let mut fields = selecting(fields, &(run.first..run.first.saturating_add(count)));
        let hash = blake3::Hash::from_bytes(run.hash()).to_hex();
        fields.insert(
            PIECES_HASH_FIELD,
            HeaderValue::from_str(&hash).expect("hexadecimal digits"),
        );
        let late = run.late.as_ref().map(|late| late.as_str());
        if let Some(Ok(late)) = late.map(HeaderValue::from_str) {
            fields.insert(LATE_FIELD, late);
        }
        let (_, bytes, _) = self.exchange(to, addr, key, fields).await?;
        Ok(run.arriving(bytes))
    }

    /// One question and the beginning of its answer, if it is 200.
    async fn exchange(
        &self,
        to: &NodeId,
        addr: &str,
        key: Key,
        fields: HeaderMap,
    ) -> Result<(HeaderMap, Frames, Duration), PeerError> {
        let path = format!("{}/{key}", wire::HOLD);
        let patience = self.patience(to);
        // A second attempt is signed anew: who did see the first would take it for a replay.
        let request = || self.request(to, addr, &path, fields.clone());
        let Answer {
            response,
            round_trip,
            ..
        } = self.pool.ask(request, patience).await?;
        let (head, incoming) = response.into_parts();
        let word = head.headers.get(ANSWER_FIELD).map(HeaderValue::as_bytes);
        match (head.status, word) {
            (StatusCode::OK, _) => {}
            (StatusCode::NOT_FOUND, Some(b"stale")) => return Err(PeerError::Stale),
            (StatusCode::NOT_FOUND, Some(b"other")) => return Err(PeerError::Other),
            (StatusCode::NOT_FOUND, Some(b"taken-down")) => return Err(PeerError::TakenDown),
            (StatusCode::NOT_FOUND, Some(b"not-yet")) => return Err(PeerError::NotYet),
            (StatusCode::NOT_FOUND, Some(b"elsewhere")) => {
                let holder = node_in(&head.headers, HOLDER_FIELD);
                let unclear = || PeerError::Garbage("no holder".into());
                return Err(PeerError::Elsewhere(holder.ok_or_else(unclear)?));
            }
            (StatusCode::NOT_FOUND, _) => return Err(PeerError::Miss),
            (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, _) => {
                return Err(PeerError::Busy);
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => return Err(PeerError::Denied),
            (other, _) => return Err(PeerError::Garbage(format!("status {other}"))),
        }
        Ok((head.headers, Frames::new(incoming), round_trip))
    }
}

/// The fields of a question for the pieces of `wanted`.
fn selecting(fields: &HeaderMap, wanted: &Range<u32>) -> HeaderMap {
    let mut selecting = HeaderMap::with_capacity(fields.len() + 5);
    for (name, value) in fields.iter().filter(|(name, _)| may_reach_peers(name)) {
        selecting.append(name, value.clone());
    }
    // So that it can tell others what is wanted.
    selecting.extend(relayed::naming(fields));
    let pieces = format!("{}-{}", wanted.start, wanted.end.saturating_sub(1));
    selecting.insert(
        PIECES_FIELD,
        HeaderValue::try_from(pieces).expect("digits and a dash"),
    );
    selecting
}

async fn manifest(bytes: &mut Frames) -> Result<Manifest, PeerError> {
    let length = bytes.take(size_of::<u32>()).await?.get_u32_le() as usize;
    if length > MANIFEST_BYTES_MAX {
        return Err(PeerError::Garbage(format!("a manifest of {length} bytes")));
    }
    let encoded = bytes.take(length).await?;
    Manifest::decode(&encoded).map_err(|e| PeerError::Garbage(e.to_string()))
}

/// Whether a request field may be passed on to peers: only what can select a variant and tells
/// nothing of the client, and nothing that belongs to one connection or to this protocol.
pub fn may_reach_peers(name: &HeaderName) -> bool {
    const KEPT_HERE: [HeaderName; 16] = [
        header::COOKIE,
        header::AUTHORIZATION,
        header::REFERER,
        header::USER_AGENT,
        header::FORWARDED,
        header::FROM,
        header::VIA,
        header::HOST,
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::EXPECT,
        header::ORIGIN,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    const KEPT_HERE_TOO: [&str; 4] = ["keep-alive", "x-real-ip", "true-client-ip", "client-ip"];
    const PREFIXES: [&str; 3] = ["x-forwarded-", "proxy-", "cdn-"];
    !KEPT_HERE.contains(name)
        && !KEPT_HERE_TOO.contains(&name.as_str())
        && !PREFIXES
            .iter()
            .any(|prefix| name.as_str().starts_with(prefix))
}

/// What a question wants, as the serving side reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Which pieces.
    pub pieces: Range<u32>,
    /// What they must be, from someone who has the manifest.
    pub hash: Option<PieceHash>,
}

/// The serving side: what is asked for; `None` if that cannot be understood.
pub fn asked_for(fields: &HeaderMap) -> Option<Asked> {
    let text = |name: &str| match fields.get(name) {
        Some(value) => value.to_str().ok().map(Some),
        None => Some(None),
    };
    let pieces = match text(PIECES_FIELD)? {
        Some(range) => {
            let (first, last) = range.split_once('-')?;
            let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
            first..last.max(first).checked_add(1)?
        }
        None => 0..u32::MAX,
    };
    let hash = match text(PIECES_HASH_FIELD)? {
        Some(hex) => Some(*blake3::Hash::from_hex(hex).ok()?.as_bytes()),
        None => None,
    };
    Some(Asked { pieces, hash })
}

/// The node that a field names.
pub fn node_in(fields: &HeaderMap, name: &str) -> Option<NodeId> {
    fields.get(name)?.to_str().ok()?.parse().ok()
}

/// The serving side: what a body begins with, before the bytes of the pieces.
pub fn encode_answer_head(manifest: &[u8]) -> Bytes {
    let mut head = BytesMut::with_capacity(size_of::<u32>() + manifest.len());
    head.put_u32_le(u32::try_from(manifest.len()).expect("a manifest is under 1 MiB"));
    head.put(manifest);
    head.freeze()
}

/// The serving side: tells the object's current age.
pub fn set_age(fields: &mut HeaderMap, age: Duration) {
    fields.insert(header::AGE, age.as_secs().into());
    fields.insert(
        AGE_MS_FIELD,
        u64::try_from(age.as_millis()).unwrap_or(u64::MAX).into(),
    );
}

fn age_of(fields: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| fields.get(name)?.to_str().ok()?.parse::<u64>().ok();
    let seconds = || number(header::AGE.as_str()).map(Duration::from_secs);
    number(AGE_MS_FIELD)
        .map(Duration::from_millis)
        .or_else(seconds)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    use cluster::{auth::Verifier, manifest::PIECE_BYTES, net::SystemNet, secret::ClusterSecret};
    use http::{Request, Response};
    use http_body_util::Full;
    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::upstream::scripted::{Scripted, pending, read_head, serving};

    fn secret() -> ClusterSecret {
        ClusterSecret::from_bytes(b"0123456789abcdef0123456789abcdef").unwrap()
    }

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    #[test]
    fn a_near_peer_has_less_time_to_connect() {
        for (round_trip_ms, expected_ms) in [
            (None, 1_000),
            (Some(0.0), 250),
            (Some(10.0), 290),
            (Some(150.0), 850),
            (Some(300.0), 1_000),
            (Some(f64::MAX), 1_000),
        ] {
            let within = connect_timeout(round_trip_ms);
            assert_eq!(within.as_millis(), expected_ms, "{round_trip_ms:?}");
        }
    }

    fn asker() -> Asker {
        Asker {
            pool: Pool::new(Arc::new(SystemNet)),
            signer: Signer::new(secret(), id("edge-1")),
            clock: Clock::system(),
            health: Arc::default(),
        }
    }

    /// Bytes that repeat nowhere at piece boundaries, and their manifest.
    fn object(length: usize) -> (Vec<u8>, Manifest) {
        let body: Vec<u8> = (0..length).map(|i| (i / 7 + i % 251) as u8).collect();
        let manifest = Manifest {
            status: 200,
            fields: vec![("etag".into(), b"\"a\"".to_vec())],
            selected_by: vec![],
            length: length as u64,
            pieces: body
                .chunks(PIECE_BYTES)
                .map(|piece| *blake3::hash(piece).as_bytes())
                .collect(),
            fetched_by: id("edge-2"),
            fetched_at: 1,
            as_of: cluster::purge::Position::default(),
        };
        (body, manifest)
    }

    fn answer(manifest: &Manifest, bytes: &[u8]) -> Response<Full<Bytes>> {
        let mut body = encode_answer_head(&manifest.encode().unwrap()).to_vec();
        body.extend_from_slice(bytes);
        let mut answer = Response::new(Full::from(body));
        set_age(answer.headers_mut(), Duration::from_millis(61_500));
        answer
    }

    const ALL: Range<u32> = 0..u32::MAX;

    async fn ask(peer: &Scripted) -> Result<PeerObject, PeerError> {
        let fields = HeaderMap::new();
        let held = asker()
            .hold(&id("edge-2"), &peer.address(), Key(7), &fields, ALL)
            .await;
        held.map(|(object, _)| object)
    }

    /// The pieces, and the error they ended with.
    async fn all(mut pieces: PieceStream) -> (Vec<Bytes>, Option<PeerError>) {
        let mut good = Vec::new();
        while let Some(piece) = pieces.next().await {
            match piece {
                Ok(piece) => good.push(piece),
                Err(error) => {
                    assert!(
                        pieces.next().await.is_none(),
                        "nothing comes after an error"
                    );
                    return (good, Some(error));
                }
            }
        }
        (good, None)
    }

    #[tokio::test]
    async fn a_peer_is_asked_as_a_member_and_learns_nothing_of_the_client() {
        let (body, manifest) = object(2 * PIECE_BYTES + 5);
        let verifier = Arc::new(Verifier::new(secret(), id("edge-2")));
        let seen: Arc<Mutex<HeaderMap>> = Arc::default();
        let peer = serving({
            let (body, manifest, seen) = (body.clone(), manifest.clone(), seen.clone());
            move |request: Request<Incoming>| {
                let field = |name: &str| request.headers().get(name)?.to_str().ok();
                let target = request.uri().path_and_query().unwrap().as_str();
                let from = verifier.verify("GET", target, field, Clock::system().unix_ms());
                assert_eq!(from, Ok(id("edge-1")));
                assert_eq!(target, "/v1/hold/00000000000000000000000000000007");
                *seen.lock().unwrap() = request.headers().clone();
                let answer = answer(&manifest, &body);
                async move { answer }
            }
        })
        .await;
        let mut fields = HeaderMap::new();
        for (name, value) in [
            ("accept-encoding", "br"),
            ("accept-language", "de"),
            ("x-variant", "b"),
            ("cookie", "a=b"),
            ("authorization", "Basic x"),
            ("referer", "http://r.test"),
            ("user-agent", "curl"),
            ("x-forwarded-for", "192.0.2.1"),
            ("forwarded", "for=192.0.2.1"),
            ("x-real-ip", "192.0.2.1"),
            ("proxy-authorization", "Basic x"),
            ("from", "a@b.test"),
            ("via", "1.1 me"),
            ("cdn-loop", "me"),
            ("cdn-node", "edge-9"),
            ("cdn-pieces", "1-1"),
            ("cdn-pieces-hash", "00"),
            ("host", "www.example.com"),
            ("connection", "close"),
        ] {
            fields.insert(name, value.try_into().unwrap());
        }
        let asker = asker();
        let held = asker
            .hold(&id("edge-2"), &peer.address(), Key(7), &fields, 0..4)
            .await;
        let (object, _) = held.unwrap();
        assert_eq!(object.manifest, manifest);
        assert!(
            object.age >= Duration::from_millis(61_500),
            "{:?}",
            object.age
        );
        let (pieces, error) = all(object.pieces).await;
        assert_eq!(
            (pieces.concat() == body, pieces.len(), error),
            (true, 3, None)
        );

        let seen = std::mem::take(&mut *seen.lock().unwrap());
        let mut names: Vec<&str> = seen.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let expected = [
            "accept-encoding",
            "accept-language",
            "cdn-mac",
            "cdn-node",
            "cdn-nonce",
            "cdn-pieces",
            "cdn-time",
            "host",
            "x-variant",
        ];
        assert_eq!(names, expected);
        assert_eq!(seen["cdn-node"], "edge-1");
        assert_eq!(seen["cdn-pieces"], "0-3");
        assert_eq!(seen["host"], peer.address());
    }

    #[tokio::test]
    async fn any_pieces_in_a_row_can_be_asked_for() {
        let (body, manifest) = object(2 * PIECE_BYTES + 5);
        let slice = |pieces: &Range<u32>| {
            let at = |piece: u32| (piece as usize * PIECE_BYTES).min(body.len());
            body[at(pieces.start)..at(pieces.end)].to_vec()
        };
        let peer = serving({
            let (body, manifest) = (body.clone(), manifest.clone());
            move |request: Request<Incoming>| {
                let asked = asked_for(request.headers()).unwrap();
                let at = |piece: u32| (piece as usize * PIECE_BYTES).min(body.len());
                let bytes = &body[at(asked.pieces.start)..at(asked.pieces.end)];
                let end = (asked.pieces.end as usize).min(3);
                let answer = match asked.hash {
                    None => answer(&manifest, bytes),
                    Some(hash)
                        if hash == run_hash(&manifest.pieces[asked.pieces.start as usize..end]) =>
                    {
                        Response::new(Full::from(bytes.to_vec()))
                    }
                    Some(_) => Response::builder()
                        .status(404)
                        .header(ANSWER_FIELD, "other")
                        .body(Full::default())
                        .unwrap(),
                };
                async move { answer }
            }
        })
        .await;
        let (asker, to, fields) = (asker(), id("edge-2"), HeaderMap::new());
        for (first, end) in [(0, 1), (0, 2), (0, 4), (1, 2), (1, 3), (2, 3)] {
            let wanted = first..end;
            let held = asker
                .hold(&to, &peer.address(), Key(7), &fields, wanted.clone())
                .await;
            let object = held.unwrap().0;
            assert_eq!(object.manifest, manifest);
            let (pieces, error) = all(object.pieces).await;
            assert!(pieces.concat() == slice(&wanted) && error.is_none());

            let run = Run::of(&manifest, wanted.clone());
            let sent = asker
                .pieces(&to, &peer.address(), Key(7), &fields, run)
                .await;
            let (pieces, error) = all(sent.unwrap()).await;
            assert!(pieces.concat() == slice(&wanted) && error.is_none());
        }
        let run = Run::of(&object(3 * PIECE_BYTES).1, 1..3);
        let other = asker
            .pieces(&to, &peer.address(), Key(7), &fields, run)
            .await;
        assert_eq!(other.map(drop).unwrap_err(), PeerError::Other);
    }

    #[test]
    fn what_is_asked_for_can_be_understood_or_not() {
        let asked = |pieces: Option<&str>, hash: Option<&str>| {
            let mut fields = HeaderMap::new();
            for (name, value) in [(PIECES_FIELD, pieces), (PIECES_HASH_FIELD, hash)] {
                if let Some(value) = value {
                    fields.insert(name, value.parse().unwrap());
                }
            }
            asked_for(&fields)
        };
        let pieces = |text| asked(Some(text), None).map(|asked| asked.pieces);
        assert_eq!(asked(None, None).unwrap().pieces, ALL);
        assert_eq!(pieces("0-3"), Some(0..4));
        assert_eq!(pieces("7-7"), Some(7..8));
        for wrong in ["", "3", "-", "1-", "-1", "a-b", "0-4294967295", "-1-2"] {
            assert_eq!(pieces(wrong), None, "{wrong:?}");
        }
        let hash = blake3::hash(b"");
        assert_eq!(
            asked(Some("0-0"), Some(&hash.to_hex())).unwrap().hash,
            Some(*hash.as_bytes())
        );
        assert_eq!(asked(Some("0-0"), Some("0g")), None);
    }

    #[tokio::test]
    async fn frames_may_be_cut_anywhere() {
        let (body, manifest) = object(PIECE_BYTES + 70_000);
        for cut in [1_000, 4_093, 65_536, PIECE_BYTES + 1] {
            let (whole, manifest) = (answer(&manifest, &body).into_body(), manifest.clone());
            let whole = whole.collect().await.unwrap().to_bytes();
            let peer = Scripted::start(move |_, mut stream| {
                let whole = whole.clone();
                async move {
                    read_head(&mut stream).await;
                    let head = b"HTTP/1.1 200 OK\r\nage: 1\r\ntransfer-encoding: chunked\r\n\r\n";
                    stream.write_all(head).await.unwrap();
                    for chunk in whole.chunks(cut) {
                        stream
                            .write_all(format!("{:x}\r\n", chunk.len()).as_bytes())
                            .await
                            .unwrap();
                        stream.write_all(chunk).await.unwrap();
                        stream.write_all(b"\r\n").await.unwrap();
                    }
                    stream.write_all(b"0\r\n\r\n").await.unwrap();
                }
            })
            .await;
            let object = ask(&peer).await.unwrap();
            assert_eq!(object.manifest, manifest);
            let (pieces, error) = all(object.pieces).await;
            assert!(
                pieces.concat() == body && error.is_none(),
                "cut {cut}: {error:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_wrong_piece_reaches_nobody() {
        let (mut body, manifest) = object(3 * PIECE_BYTES);
        body[PIECE_BYTES + 17] ^= 1;
        let peer = serving(move |_| {
            let answer = answer(&manifest, &body);
            async move { answer }
        })
        .await;
        let (pieces, error) = all(ask(&peer).await.unwrap().pieces).await;
        assert_eq!(
            (pieces.len(), error),
            (1, Some(PeerError::Corrupt { piece: 1 }))
        );
    }

    #[tokio::test]
    async fn an_object_without_body_is_whole_at_once() {
        let (_, manifest) = object(0);
        let peer = serving(move |_| {
            let answer = answer(&manifest, b"");
            async move { answer }
        })
        .await;
        let mut object = ask(&peer).await.unwrap();
        let told = Arc::new(AtomicUsize::new(0));
        let counter = told.clone();
        object.pieces.report_to(Box::new(move |result| {
            assert_eq!(result, Ok(()));
            counter.fetch_add(1, Ordering::SeqCst);
        }));
        assert!(object.pieces.next().await.is_none());
        assert_eq!(told.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn what_a_peer_can_say_has_a_name() {
        let (body, manifest) = object(100);
        let good = manifest.encode().unwrap();
        let head =
            |status: &str| format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").into_bytes();
        let with = |bytes: &[u8]| [b"HTTP/1.1 200 OK\r\nage: 1\r\n\r\n", bytes].concat();
        let whole = [&*encode_answer_head(&good), &body].concat();
        for (says, label) in [
            (head("404 Not Found\r\ncdn-answer: miss"), "miss"),
            (head("404 Not Found\r\ncdn-answer: stale"), "stale"),
            (head("404 Not Found\r\ncdn-answer: other"), "other"),
            (
                head("404 Not Found\r\ncdn-answer: taken-down"),
                "taken_down",
            ),
            (head("404 Not Found"), "miss"),
            (head("429 Too Many Requests"), "busy"),
            (head("503 Service Unavailable"), "busy"),
            (head("401 Unauthorized"), "denied"),
            (head("403 Forbidden"), "denied"),
            (head("500 Oh"), "garbage"),
            (b"nonsense\r\n\r\n".to_vec(), "garbage"),
            (b"".to_vec(), "closed_early"),
            ([b"HTTP/1.1 200 OK\r\n\r\n", &*whole].concat(), "garbage"),
            (with(b"\x01"), "closed_early"),
            (with(&encode_answer_head(&good)[..20]), "closed_early"),
            (with(&u32::MAX.to_le_bytes()), "garbage"),
            (with(&encode_answer_head(b"no manifest")), "garbage"),
            (with(&whole[..whole.len() - 1]), "closed_early"),
            (with(&whole), "hit"),
        ] {
            let text = String::from_utf8_lossy(&says[..says.len().min(60)]).into_owned();
            let peer = Scripted::start(move |_, mut stream| {
                let says = says.clone();
                async move {
                    read_head(&mut stream).await;
                    stream.write_all(&says).await.unwrap();
                }
            })
            .await;
            let told = match ask(&peer).await {
                Err(error) => error.label(),
                Ok(object) => all(object.pieces)
                    .await
                    .1
                    .map_or("hit", |error| error.label()),
            };
            assert_eq!(told, label, "{text:?}");
        }
        let nobody = Scripted::refusing().await;
        let addr = nobody.strip_prefix("http://").unwrap();
        let error = asker()
            .hold(&id("edge-2"), addr, Key(7), &HeaderMap::new(), ALL)
            .await
            .unwrap_err();
        assert_eq!(error.label(), "connect");
        let error = asker()
            .hold(
                &id("edge-2"),
                "not an address",
                Key(7),
                &HeaderMap::new(),
                ALL,
            )
            .await;
        assert_eq!(error.unwrap_err().label(), "connect");
    }

    #[tokio::test]
    async fn a_silent_peer_is_given_up() {
        let (body, manifest) = object(100);
        let whole = [&*encode_answer_head(&manifest.encode().unwrap()), &body].concat();
        let head = b"HTTP/1.1 200 OK\r\nage: 1\r\n\r\n";
        let silent_after = |says: Vec<u8>| async move {
            let peer = Scripted::start(move |_, mut stream| {
                let says = says.clone();
                async move {
                    read_head(&mut stream).await;
                    stream.write_all(&says).await.unwrap();
                    pending::<()>().await;
                }
            })
            .await;
            match ask(&peer).await {
                Err(error) => Some(error),
                Ok(object) => all(object.pieces).await.1,
            }
        };
        let (at_once, in_manifest, in_body) = tokio::join!(
            silent_after(Vec::new()),
            silent_after([head, &whole[..20]].concat()),
            silent_after([head, &whole[..whole.len() - 1]].concat()),
        );
        let timeout = Some(PeerError::Timeout);
        assert_eq!(
            [at_once, in_manifest, in_body],
            [timeout.clone(), timeout, Some(PeerError::Stalled)]
        );
    }

    #[tokio::test]
    async fn a_question_that_met_a_closing_connection_is_asked_again_under_a_new_signature() {
        let nonces: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = nonces.clone();
        let peer = Scripted::start(move |connection, mut stream| {
            let seen = seen.clone();
            async move {
                let miss = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
                // The first connection answers once, and closes when it is asked again.
                for answered in 0..2 {
                    let head = read_head(&mut stream).await;
                    let nonce = head.lines().find(|line| line.starts_with("cdn-nonce"));
                    seen.lock().unwrap().extend(nonce.map(str::to_owned));
                    if connection == 0 && answered == 1 {
                        return;
                    }
                    stream.write_all(miss).await.unwrap();
                }
            }
        })
        .await;
        let asker = asker();
        for _ in 0..2 {
            let held = asker
                .hold(
                    &id("edge-2"),
                    &peer.address(),
                    Key(7),
                    &HeaderMap::new(),
                    ALL,
                )
                .await;
            assert_eq!(held.unwrap_err(), PeerError::Miss);
        }
        assert_eq!(peer.connections(), 2);
        let mut nonces = nonces.lock().unwrap().clone();
        nonces.sort();
        nonces.dedup();
        assert_eq!(nonces.len(), 3);
    }
}
