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

use super::{
    pool::{self, Answer, Fault, Incoming, Patience, Pool},
    relayed,
};

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
        // So that it can tell others what is wanted.
        selecting.extend(relayed::naming(fields));
        if from_piece > 0 {
            selecting.insert(FROM_PIECE_FIELD, from_piece.into());
        }
        let patience = Patience {
            connect: CONNECT_TIMEOUT,
            head: HEAD_TIMEOUT,
        };
        let asked = Instant::now();
        // A second attempt is signed anew: who did see the first would take it for a replay.
        let request = || self.request(to, addr, &path, selecting.clone());
        let Answer {
            response,
            round_trip,
            ..
        } = self.pool.ask(request, patience).await?;
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
        let mut bytes = Frames::new(incoming);
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

    fn asker() -> Asker {
        Asker {
            pool: Pool::new(Arc::new(SystemNet)),
            signer: Signer::new(secret(), id("edge-1")),
            clock: Clock::system(),
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
            as_of: 0,
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

    async fn ask(peer: &Scripted, from_piece: u32) -> Result<PeerObject, PeerError> {
        let fields = HeaderMap::new();
        let held = asker()
            .hold(&id("edge-2"), &peer.address(), Key(7), &fields, from_piece)
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
            ("cdn-from-piece", "1"),
            ("host", "www.example.com"),
            ("connection", "close"),
        ] {
            fields.insert(name, value.try_into().unwrap());
        }
        let asker = asker();
        let held = asker
            .hold(&id("edge-2"), &peer.address(), Key(7), &fields, 0)
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
            "cdn-time",
            "host",
            "x-variant",
        ];
        assert_eq!(names, expected);
        assert_eq!(seen["cdn-node"], "edge-1");
        assert_eq!(seen["host"], peer.address());
    }

    #[tokio::test]
    async fn a_body_can_be_taken_up_at_any_piece() {
        let (body, manifest) = object(2 * PIECE_BYTES + 5);
        let peer = serving({
            let (body, manifest) = (body.clone(), manifest.clone());
            move |request: Request<Incoming>| {
                let from = request.headers().get(FROM_PIECE_FIELD);
                let from: usize = from.map_or(0, |n| n.to_str().unwrap().parse().unwrap());
                let answer = answer(&manifest, &body[(from * PIECE_BYTES).min(body.len())..]);
                async move { answer }
            }
        })
        .await;
        for from in 0..4 {
            let object = ask(&peer, from).await.unwrap();
            assert_eq!(object.pieces.position(), from);
            let (pieces, error) = all(object.pieces).await;
            let rest = &body[(from as usize * PIECE_BYTES).min(body.len())..];
            assert!(
                pieces.concat() == rest && error.is_none(),
                "from {from}: {error:?}"
            );
        }
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
            let object = ask(&peer, 0).await.unwrap();
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
        let (pieces, error) = all(ask(&peer, 0).await.unwrap().pieces).await;
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
        let mut object = ask(&peer, 0).await.unwrap();
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
            let told = match ask(&peer, 0).await {
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
            .hold(&id("edge-2"), addr, Key(7), &HeaderMap::new(), 0)
            .await
            .unwrap_err();
        assert_eq!(error.label(), "connect");
        let error = asker()
            .hold(
                &id("edge-2"),
                "not an address",
                Key(7),
                &HeaderMap::new(),
                0,
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
            match ask(&peer, 0).await {
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
            [timeout.clone(), timeout.clone(), timeout]
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
                .hold(&id("edge-2"), &peer.address(), Key(7), &HeaderMap::new(), 0)
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
