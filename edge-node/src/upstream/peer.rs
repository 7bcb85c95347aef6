//! One question to one peer: do you hold this object? The answer is its manifest and then its pieces,
//! each verified before anybody sees it.
//!
//! On the wire: `GET /v1/hold/{key}` with the fields that select a variant and, to go on within a
//! body, `cdn-from-piece: N`. Answered 200 with the age in `age` and `cdn-age-ms`, and a body of the
//! manifest's length (u32, little-endian), the manifest, and the body's bytes from piece `N` on; or
//! 404 with `cdn-answer: miss` or `stale`; or 429 or 503 when busy.

use std::{fmt, time::Duration};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use cluster::{
    auth::Signer,
    clock::Clock,
    key::Key,
    manifest::{MANIFEST_BYTES_MAX, Manifest, PieceHash},
    node::NodeId,
    wire,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout};

use super::pool::{self, Answer, Fault, Incoming, Patience, Pool, Reuse};

/// Request: the first piece to send; 0 when absent.
pub const FROM_PIECE_FIELD: &str = "cdn-from-piece";
/// Answer: the object's current age in milliseconds, which `Age` tells in seconds only.
pub const AGE_MS_FIELD: &str = "cdn-age-ms";
/// Answer: `miss` or `stale`, with a 404.
pub const ANSWER_FIELD: &str = "cdn-answer";

/// For a connection to a peer: more than a round trip around the globe, and loss on the way.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
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
    /// It has too much to do.
    #[error("is busy")]
    Busy,
    /// It failed lately; it was not asked.
    #[error("is ejected")]
    Ejected,
    /// No connection.
    #[error("cannot be reached: {0}")]
    Connect(String),
    /// No answer, or no more bytes, in time.
    #[error("does not answer in time")]
    Timeout,
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
            Self::Busy => "busy",
            Self::Ejected => "ejected",
            Self::Connect(_) => "connect",
            Self::Timeout => "timeout",
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
            Fault::HeadTimeout | Fault::BodyTimeout => Self::Timeout,
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
    /// Its bytes.
    pub pieces: PieceStream,
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
        let checked = taken.unwrap_or(Err(PeerError::Timeout)).and_then(|bytes| {
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
struct Frames {
    incoming: Incoming,
    frame: Bytes,
    /// What is there of a part that spans frames.
    partial: BytesMut,
}

impl Frames {
    /// The next `length` bytes, without a copy where one frame holds them.
    async fn take(&mut self, length: usize) -> Result<Bytes, PeerError> {
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
            self.frame = match frame.map_err(|_| PeerError::Timeout)? {
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
}

impl Asker {
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

    /// Asks `to`, which listens at `addr`, for the object `key` from piece `from_piece` on. Of
    /// `fields`, those that tell of the client stay here ([`may_reach_peers`]). Also returns how long
    /// the head of the answer took.
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
        from_piece: u32,
    ) -> Result<(PeerObject, Duration), PeerError> {
        let path = format!("{}/{key}", wire::HOLD);
        let mut selecting = HeaderMap::with_capacity(fields.len());
        for (name, value) in fields.iter().filter(|(name, _)| may_reach_peers(name)) {
            selecting.append(name, value.clone());
        }
        if from_piece > 0 {
            selecting.insert(FROM_PIECE_FIELD, from_piece.into());
        }
        let patience = Patience {
            connect: CONNECT_TIMEOUT,
            head: HEAD_TIMEOUT,
        };
        let asked = Instant::now();
        let request = self.request(to, addr, &path, selecting.clone())?;
        let mut sent = self.pool.send(request, patience, Reuse::Allowed).await;
        if matches!(&sent, Err(e) if e.reused) {
            // Signed anew: a peer that did see the first would take the second for a replay.
            let request = self.request(to, addr, &path, selecting)?;
            sent = self.pool.send(request, patience, Reuse::Never).await;
        }
        let Answer {
            response,
            round_trip,
        } = sent?;
        let (head, incoming) = response.into_parts();
        match head.status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => {
                let stale = head
                    .headers
                    .get(ANSWER_FIELD)
                    .is_some_and(|word| word == "stale");
                return Err(if stale {
                    PeerError::Stale
                } else {
                    PeerError::Miss
                });
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                return Err(PeerError::Busy);
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(PeerError::Denied),
            other => return Err(PeerError::Garbage(format!("status {other}"))),
        }
        let age = age_of(&head.headers).ok_or_else(|| PeerError::Garbage("no age".into()))?;
        let mut bytes = Frames {
            incoming,
            frame: Bytes::new(),
            partial: BytesMut::new(),
        };
        let manifest = timeout(HEAD_TIMEOUT, manifest(&mut bytes)).await;
        let manifest = manifest.unwrap_or(Err(PeerError::Timeout))?;
        let mut expected: Vec<(PieceHash, usize)> = (from_piece..)
            .zip(manifest.pieces.iter().skip(from_piece as usize))
            .map(|(index, hash)| (*hash, manifest.piece_length(index)))
            .collect();
        expected.reverse();
        let pieces = PieceStream {
            bytes,
            expected,
            next: from_piece,
            verdict: None,
        };
        Ok((
            PeerObject {
                manifest,
                age: age + asked.elapsed(),
                pieces,
            },
            round_trip,
        ))
    }
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
