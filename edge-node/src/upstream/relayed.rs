//! What is said between a home and who asks it, on the wire.
//!
//! `GET /v1/fill/{key}?level=region` (or `cluster`) asks the home of a key for an object, which it fetches
//! if it does not have it. `cdn-site`, `cdn-host` and `cdn-target` say what the key is the name of: the home
//! makes the key of them again, so they need no MAC of their own. `cdn-have` is the entity tag of what the
//! asker has. The other fields are those of the client that [may reach peers](super::peer::may_reach_peers).
//!
//! `cdn-purged` says which purges the asker knows: a home that does not know all of them catches up first, or
//! says that it is behind.
//!
//! `cdn-next: known` says that the asker knows of another home: one that has too much to do sends it on to that.
//! `cdn-next: asked` says that this is that other one.
//!
//! `cdn-slice: PIECE,KEY` says that it is not the object of that URL, but the piece of this number of what has this
//! key; so it does in a question to a holder.
//!
//! `cdn-fellows: 1` says that the asker can get pieces from other nodes that ask at the same time.
//!
//! Answered at once by 200, or 503 when busy, and by [frames](Frame) as soon as there is something to say;
//! while there is not, one that says so, so that a home that waits is told from one that is gone.

use std::{fmt, time::Duration};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use cluster::{
    key::Key,
    manifest::{FIELDS_MAX, Manifest, PieceHash},
    node::NodeId,
    purge::Position,
    wire,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{
    home::Home,
    peer::{Asker, Frames, PIECE_TIMEOUT, PeerError, Verdict, may_reach_peers},
    pool::Answer,
};

/// Question: the site's name.
pub const SITE_FIELD: &str = "cdn-site";
/// Question: the host as it stands in keys.
pub const HOST_FIELD: &str = "cdn-host";
/// Question: path and query.
pub const TARGET_FIELD: &str = "cdn-target";
/// Question: which piece of the object is wanted as an object of its own, and the key of the whole, `PIECE,KEY`.
pub const SLICE_FIELD: &str = "cdn-slice";
/// Question: the entity tag of what the asker has.
pub const HAVE_FIELD: &str = "cdn-have";
/// Question: of what has the entity tag that the asker has, only the pieces from this one on.
pub const FROM_FIELD: &str = "cdn-from";
/// Question: the object may be [shared out](super::wants).
pub const FELLOWS_FIELD: &str = "cdn-fellows";
/// Question: the asker knows whom it can be sent on to; or it asks that one.
pub const NEXT_FIELD: &str = "cdn-next";
/// What that says to a first home …
const KNOWN: &str = "known";
/// … and to a second one.
const ASKED: &str = "asked";
/// Question: up to which place in the purge log the asker lacks nothing, `LOG,NUMBER`.
pub const PURGED_FIELD: &str = "cdn-purged";
/// Question: the nodes that the request has been through (RFC 8586).
pub const LOOP_FIELD: HeaderName = HeaderName::from_static("cdn-loop");

/// Bytes of a body that are verified, and seen, together: the first of them must not wait for a whole
/// piece.
pub const BLOCK_BYTES: usize = 64 << 10;
/// How often a home says that it is still there: often enough that a lost one is missed within the
/// [silence](super::peer::BETWEEN_BYTES_TIMEOUT) that peers may keep.
pub const BEAT: Duration = Duration::from_secs(1);
/// Largest frame: a head with all fields that an origin may send, and some room.
const FRAME_BYTES_MAX: usize = 512 << 10;
const FRAME_HEAD_BYTES: usize = 5;
/// A frame of this length at most only says that the home is still there, or how it ended.
pub const SIGN_BYTES_MAX: usize = 64;

/// What a home is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The key.
    pub key: Key,
    /// The site's name.
    pub site: &'a str,
    /// The host as it stands in the key.
    pub host: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// That the key is a slice's, and of what.
    pub slice: Option<Slice>,
    /// The client's fields; those that tell of it stay here.
    pub fields: &'a HeaderMap,
    /// The entity tag of what is here already.
    pub have: Option<&'a HeaderValue>,
    /// With such a tag, a strong one: the first piece that is not here. 0: nothing of what is here is to be
    /// gone on from.
    pub from: u32,
    /// Pieces of it may come from others that ask for it.
    pub shares: bool,
    /// Up to which place in the purge log the asker lacks nothing.
    pub purged: Position,
}

/// Which piece of which object is kept as an object of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The piece's number.
    pub piece: u32,
    /// The key of the object.
    pub whole: Key,
}

/// An object without its bytes, as a home tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayHead {
    /// What it is. Its length and pieces are not known yet, and say nothing.
    pub about: Manifest,
    /// Length of the body, if it is known.
    pub length: Option<u64>,
    /// Its age in milliseconds.
    pub age_ms: u64,
    /// The origin was asked for this very question.
    pub asked_for_you: bool,
    /// The body begins with this piece.
    pub from: u32,
}

/// Why a home gives no object. None of it is the home's fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The answer is not for everybody, or was asked for by others: ask for yourself.
    Pass,
    /// The fill that is under way may itself wait for who asks.
    Crossed,
    /// The site, or the way its keys are made, is another there.
    Unknown,
    /// It has more to do than it is allowed to.
    Busy,
    /// The origin could not be asked.
    OriginFailed {
        /// The site's origin did not answer in time; else it could not be reached, or not be understood.
        fault: OriginFault,
        /// For the log.
        detail: String,
    },
    /// The origin answered with an error.
    OriginError {
        /// Its status, 500 or above.
        status: u16,
        /// Its fields.
        fields: Vec<(String, Vec<u8>)>,
        /// Its body.
        body: Vec<u8>,
    },
    /// The origin has as many requests from there as it may have: do not ask it instead.
    OriginBusy,
    /// It does not know yet of purges that the asker knows.
    Behind,
    /// The site has taken it down.
    TakenDown,
    /// It has more to do than others, and leaves this to the next home.
    SentOn,
}

/// A piece of an object that is shared out, and where it is to be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceAt {
    /// Its number.
    pub index: u32,
    /// Its hash.
    pub hash: PieceHash,
    /// Which node has it, or will have it shortly; `None`: it comes now, in blocks.
    pub holder: Option<NodeId>,
}

/// How an origin failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OriginFault {
    /// It cannot be reached.
    Unreachable,
    /// Its answer cannot be understood.
    BadAnswer,
    /// It did not answer in time.
    Timeout,
}

impl Refusal {
    /// One word, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Crossed => "crossed",
            Self::Unknown => "unknown",
            Self::Busy => "busy",
            Self::OriginBusy => "origin_busy",
            Self::Behind => "behind",
            Self::TakenDown => "taken_down",
            Self::SentOn => "sent_on",
            Self::OriginFailed { .. } | Self::OriginError { .. } => "origin_failed",
        }
    }
}

/// What an answer consists of, each with its kind (one byte) and length (u32, little-endian): any number of
/// [`Frame::Wait`] anywhere; a head, blocks, perhaps pieces, and an end; or a head of what the asker has; or a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Nothing to say yet.
    Wait,
    /// An object, whose bytes follow.
    Head(Box<RelayHead>),
    /// The asker has it already.
    Same(Box<RelayHead>),
    /// Bytes, after their BLAKE3 hash.
    Block(Bytes),
    /// From here on the body comes by pieces: where this one is.
    Piece(PieceAt),
    /// The end of the body, of which so many bytes were in blocks. Without it, the body was cut.
    End(u64),
    /// The home's own source failed within the body.
    Failed(String),
    /// No object.
    Refused(Refusal),
}

const WAIT: u8 = 0;
const HEAD: u8 = 1;
const SAME: u8 = 2;
const BLOCK: u8 = 3;
const END: u8 = 4;
const FAILED: u8 = 5;
const REFUSED: u8 = 6;
const PIECE: u8 = 7;

impl Frame {
    /// Writes it behind what is in `out`.
    ///
    /// # Errors
    ///
    /// It is larger than a frame may be, or than numbers can tell.
    pub fn write(&self, out: &mut BytesMut) -> Result<(), PeerError> {
        let encoded = |value: postcard::Result<Vec<u8>>| value.map_err(|e| garbage(e.to_string()));
        let (kind, payload): (u8, Vec<u8>) = match self {
            Self::Wait => (WAIT, Vec::new()),
            Self::Head(head) => (HEAD, encoded(postcard::to_stdvec(head))?),
            Self::Same(head) => (SAME, encoded(postcard::to_stdvec(head))?),
            Self::Block(bytes) => {
                let hash = *blake3::hash(bytes).as_bytes();
                put_head(out, BLOCK, hash.len() + bytes.len())?;
                out.put(&hash[..]);
                out.put(&bytes[..]);
                return Ok(());
            }
            Self::Piece(at) => (PIECE, encoded(postcard::to_stdvec(at))?),
            Self::End(total) => (END, total.to_le_bytes().to_vec()),
            Self::Failed(detail) => (FAILED, detail.as_bytes().to_vec()),
            Self::Refused(refusal) => (REFUSED, encoded(postcard::to_stdvec(refusal))?),
        };
        put_head(out, kind, payload.len())?;
        out.put(&payload[..]);
        Ok(())
    }

    /// Reads it back; `block` is the number of a block, for whoever is told that it is wrong.
    fn read(kind: u8, mut payload: Bytes, block: u32) -> Result<Self, PeerError> {
        let unclear = |e: postcard::Error| garbage(e.to_string());
        let checked = |head: RelayHead| {
            let about = &head.about;
            let fits = (200..=599).contains(&about.status) && about.fields.len() <= FIELDS_MAX;
            fits.then(|| Box::new(head))
                .ok_or_else(|| garbage("a head that cannot be".into()))
        };
        Ok(match kind {
            WAIT => Self::Wait,
            HEAD => Self::Head(checked(postcard::from_bytes(&payload).map_err(unclear)?)?),
            SAME => Self::Same(checked(postcard::from_bytes(&payload).map_err(unclear)?)?),
            BLOCK if payload.len() > size_of::<blake3::Hash>() => {
                let hash = payload.split_to(size_of::<blake3::Hash>());
                if blake3::hash(&payload).as_bytes()[..] != hash[..] {
                    return Err(PeerError::Corrupt { piece: block });
                }
                Self::Block(payload)
            }
            PIECE => Self::Piece(postcard::from_bytes(&payload).map_err(unclear)?),
            END if payload.len() == size_of::<u64>() => Self::End(payload.get_u64_le()),
            FAILED => Self::Failed(String::from_utf8_lossy(&payload).into_owned()),
            REFUSED => Self::Refused(postcard::from_bytes(&payload).map_err(unclear)?),
            _ => return Err(garbage(format!("a frame of kind {kind}"))),
        })
    }
}

fn put_head(out: &mut BytesMut, kind: u8, length: usize) -> Result<(), PeerError> {
    if length > FRAME_BYTES_MAX {
        return Err(garbage(format!("a frame of {length} bytes")));
    }
    out.reserve(FRAME_HEAD_BYTES + length);
    out.put_u8(kind);
    out.put_u32_le(u32::try_from(length).expect("under the bound"));
    Ok(())
}

fn garbage(detail: String) -> PeerError {
    PeerError::Garbage(detail)
}

/// What a home says.
#[derive(Debug)]
pub enum Told {
    /// An object, whose bytes come now.
    Object(Box<Relayed>),
    /// What is here already still holds, with this head.
    Same(Box<RelayHead>),
    /// No object.
    Refused(Refusal),
}

/// Why a body that a home relays ended before its time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    /// The home failed; another may do.
    #[error("home {0}")]
    Home(PeerError),
    /// What it fetches from failed.
    #[error("{0}")]
    Source(String),
}

/// What comes of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The next bytes: of the body, or of the piece that was told of last.
    Bytes(Bytes),
    /// Where a piece is. All that follows is told by pieces.
    Piece(PieceAt),
}

/// An object as a home relays it, perhaps while it still comes in.
pub struct Relayed {
    /// What it is.
    pub head: RelayHead,
    frames: Frames,
    total: u64,
    blocks: u32,
    ended: bool,
    pub(super) verdict: Option<Verdict>,
}

impl fmt::Debug for Relayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relayed")
            .field("head", &self.head)
            .finish_non_exhaustive()
    }
}

impl Relayed {
    /// What comes next, bytes verified; `None` after the end and after an error.
    ///
    /// # Errors
    ///
    /// The home, or its source, failed; what came before is good.
    pub async fn next(&mut self) -> Option<Result<Said, RelayError>> {
        while !self.ended {
            let frame = next_frame(&mut self.frames, self.blocks).await;
            let failed = match frame {
                Ok(Frame::Wait) => continue,
                Ok(Frame::Block(bytes)) => {
                    self.total += bytes.len() as u64;
                    self.blocks += 1;
                    return Some(Ok(Said::Bytes(bytes)));
                }
                Ok(Frame::Piece(at)) => return Some(Ok(Said::Piece(at))),
                Ok(Frame::End(total)) if total == self.total => None,
                Ok(Frame::End(total)) => {
                    let detail = format!("{} bytes of {total}", self.total);
                    Some(RelayError::Home(garbage(detail)))
                }
                Ok(Frame::Failed(detail)) => Some(RelayError::Source(detail)),
                Ok(_) => Some(RelayError::Home(garbage("a frame out of place".into()))),
                Err(error) => Some(RelayError::Home(error)),
            };
            self.ended = true;
            if let Some(tell) = self.verdict.take() {
                tell(match &failed {
                    Some(RelayError::Home(error)) => Err(error),
                    Some(RelayError::Source(_)) | None => Ok(()),
                });
            }
            return failed.map(Err);
        }
        None
    }
}

async fn next_frame(frames: &mut Frames, block: u32) -> Result<Frame, PeerError> {
    let frame = async {
        let mut head = frames.take(FRAME_HEAD_BYTES).await?;
        let (kind, length) = (head.get_u8(), head.get_u32_le() as usize);
        if length > FRAME_BYTES_MAX {
            return Err(garbage(format!("a frame of {length} bytes")));
        }
        let payload = match length {
            0 => Bytes::new(),
            length => frames.take(length).await?,
        };
        Frame::read(kind, payload, block)
    };
    let taken = timeout(PIECE_TIMEOUT, frame).await;
    taken.unwrap_or(Err(PeerError::Timeout))
}

impl Asker {
    /// Asks `home` for what is `wanted`, until it begins to answer: it does at once, whatever it waits for.
    /// Also returns how long that took.
    ///
    /// # Errors
    ///
    /// The home failed.
    pub(super) async fn fill(
        &self,
        home: &Home,
        wanted: Wanted<'_>,
    ) -> Result<(Frames, Duration), PeerError> {
        let path = format!("{}/{}?level={}", wire::FILL, wanted.key, home.level.word());
        let mut fields = question_fields(wanted)?;
        let next = match (home.level.is_next(), home.may_send_on) {
            (true, _) => Some(ASKED),
            (false, true) => Some(KNOWN),
            (false, false) => None,
        };
        if let Some(next) = next {
            fields.insert(NEXT_FIELD, HeaderValue::from_static(next));
        }
        let patience = self.patience(&home.id);
        // A second attempt is signed anew: who did see the first would take it for a replay.
        let request = || self.request(&home.id, &home.addr, &path, fields.clone());
        let Answer {
            response,
            round_trip,
            ..
        } = self.pool.ask(request, patience).await?;
        let (head, incoming) = response.into_parts();
        match head.status {
            StatusCode::OK => {}
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                return Err(PeerError::Busy);
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(PeerError::Denied),
            other => return Err(garbage(format!("status {other}"))),
        }
        Ok((Frames::new(incoming), round_trip))
    }
}

/// What comes of a question, whose answer began after this `round_trip`. The caller knows how long it wants
/// to wait.
///
/// # Errors
///
/// The home failed.
pub(super) async fn told(mut frames: Frames, round_trip: Duration) -> Result<Told, PeerError> {
    Ok(loop {
        match next_frame(&mut frames, 0).await? {
            Frame::Wait => {}
            Frame::Head(head) => {
                break Told::Object(Box::new(Relayed {
                    head: received(*head, round_trip),
                    frames,
                    total: 0,
                    blocks: 0,
                    ended: false,
                    verdict: None,
                }));
            }
            Frame::Same(head) => break Told::Same(Box::new(received(*head, round_trip))),
            Frame::Refused(refusal) => break Told::Refused(refusal),
            _ => return Err(garbage("a frame out of place".into())),
        }
    })
}

/// It is older by the time on its way (RFC 9111 §4.2.3), of which the head's round trip is a bound; the time
/// for which the home waited is not part of it.
fn received(mut head: RelayHead, round_trip: Duration) -> RelayHead {
    let way_ms = u64::try_from(round_trip.as_millis()).unwrap_or(u64::MAX);
    head.age_ms = head.age_ms.saturating_add(way_ms);
    head
}

/// Whether the asker can be sent on.
pub fn may_be_sent_on(fields: &HeaderMap) -> bool {
    fields.get(NEXT_FIELD).is_some_and(|next| next == KNOWN)
}

/// Whether this node is asked as the second home.
pub fn is_for_next(fields: &HeaderMap) -> bool {
    fields.get(NEXT_FIELD).is_some_and(|next| next == ASKED)
}

/// The fields of a question.
///
/// # Errors
///
/// What is wanted cannot be named in fields.
pub fn question_fields(wanted: Wanted<'_>) -> Result<HeaderMap, PeerError> {
    let mut fields = reaching_peers(wanted.fields);
    for (name, text) in [
        (SITE_FIELD, wanted.site),
        (HOST_FIELD, wanted.host),
        (TARGET_FIELD, wanted.target),
    ] {
        let value = HeaderValue::from_bytes(text.as_bytes());
        fields.insert(name, value.map_err(|e| garbage(e.to_string()))?);
    }
    let Position { log, seq } = wanted.purged;
    if let Ok(purged) = HeaderValue::try_from(format!("{log},{seq}")) {
        fields.insert(PURGED_FIELD, purged);
    }
    if let Some(Slice { piece, whole }) = wanted.slice
        && let Ok(slice) = HeaderValue::try_from(format!("{piece},{whole}"))
    {
        fields.insert(SLICE_FIELD, slice);
    }
    if wanted.shares {
        fields.insert(FELLOWS_FIELD, HeaderValue::from_static("1"));
    }
    if let Some(tag) = wanted.have {
        fields.insert(HAVE_FIELD, tag.clone());
        if wanted.from > 0 {
            fields.insert(FROM_FIELD, wanted.from.into());
        }
    }
    Ok(fields)
}

/// The first piece that the asker wants of what it has the beginning of; 0 where it does not say.
pub fn from_in(fields: &HeaderMap) -> u32 {
    let from = || fields.get(FROM_FIELD)?.to_str().ok()?.parse().ok();
    from().unwrap_or(0)
}

/// That a slice is asked for, and of what; `None` where it is a whole object.
pub fn slice_in(fields: &HeaderMap) -> Option<Slice> {
    let (piece, whole) = fields.get(SLICE_FIELD)?.to_str().ok()?.split_once(',')?;
    Some(Slice {
        piece: piece.parse().ok()?,
        whole: whole.parse().ok()?,
    })
}

/// Up to which place in the purge log an asker lacks nothing; no place, where it does not say.
pub fn purged_in(fields: &HeaderMap) -> Position {
    let place = || {
        let (log, seq) = fields.get(PURGED_FIELD)?.to_str().ok()?.split_once(',')?;
        Some(Position {
            log: log.parse().ok()?,
            seq: seq.parse().ok()?,
        })
    };
    place().unwrap_or_default()
}

/// Of the fields of a question, those that say of which URL it is.
pub fn naming(fields: &HeaderMap) -> HeaderMap {
    let names = [SITE_FIELD, HOST_FIELD, TARGET_FIELD];
    let named = names.into_iter().filter_map(|name| {
        let value = fields.get(name)?.clone();
        Some((HeaderName::from_static(name), value))
    });
    named.collect()
}

/// What of a client's fields goes to a home: what selects a variant, and where the request has been.
pub fn reaching_peers(fields: &HeaderMap) -> HeaderMap {
    let mut reaching = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields {
        if may_reach_peers(name) || *name == LOOP_FIELD {
            reaching.append(name, value.clone());
        }
    }
    reaching
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cluster::{auth::Signer, clock::Clock, net::SystemNet, secret::ClusterSecret};
    use http::{Request, Response};
    use http_body_util::Full;
    use hyper::body::Incoming;

    use super::*;
    use crate::upstream::{home::Level, pool::Pool, scripted::serving};

    fn head() -> RelayHead {
        RelayHead {
            about: Manifest {
                status: 200,
                fields: vec![("etag".into(), b"\"a\"".to_vec())],
                selected_by: vec![],
                length: 0,
                pieces: vec![],
                fetched_by: "edge-1".parse().unwrap(),
                fetched_at: 1,
                as_of: Position::default(),
            },
            length: None,
            age_ms: 5,
            asked_for_you: true,
            from: 0,
        }
    }

    #[test]
    fn frames_survive_their_encoding_and_a_flipped_bit_does_not() {
        let frames = [
            Frame::Wait,
            Frame::Head(Box::new(head())),
            Frame::Same(Box::new(head())),
            Frame::Block(Bytes::from_static(b"bytes")),
            Frame::Piece(PieceAt {
                index: 7,
                hash: [3; 32],
                holder: Some("edge-2".parse().unwrap()),
            }),
            Frame::End(5),
            Frame::Failed("why".into()),
            Frame::Refused(Refusal::Crossed),
            Frame::Refused(Refusal::OriginBusy),
            Frame::Refused(Refusal::OriginError {
                status: 503,
                fields: vec![],
                body: b"sorry".to_vec(),
            }),
        ];
        for frame in frames {
            let mut out = BytesMut::new();
            frame.write(&mut out).unwrap();
            let mut bytes = out.freeze();
            let (kind, length) = (bytes.get_u8(), bytes.get_u32_le());
            assert_eq!(length as usize, bytes.len());
            assert_eq!(Frame::read(kind, bytes, 0).unwrap(), frame);
        }
        let mut out = BytesMut::new();
        Frame::Block(Bytes::from_static(b"bytes"))
            .write(&mut out)
            .unwrap();
        let last = out.len() - 1;
        out[last] ^= 1;
        let bytes = out.freeze().slice(FRAME_HEAD_BYTES..);
        assert_eq!(
            Frame::read(BLOCK, bytes, 7).unwrap_err(),
            PeerError::Corrupt { piece: 7 }
        );
        let mut impossible = head();
        impossible.about.status = 100;
        let payload = postcard::to_stdvec(&impossible).unwrap();
        assert!(Frame::read(HEAD, payload.into(), 0).is_err());
        assert!(Frame::read(99, Bytes::new(), 0).is_err());
        assert!(Frame::read(END, Bytes::from_static(b"1"), 0).is_err());
    }

    fn encoded(frames: &[Frame]) -> Bytes {
        let mut out = BytesMut::new();
        frames
            .iter()
            .for_each(|frame| frame.write(&mut out).unwrap());
        out.freeze()
    }

    /// Asks a home that answers with these bytes; what comes of the body.
    async fn asked(answer: Bytes) -> Result<Vec<Result<Said, RelayError>>, PeerError> {
        let server = serving(move |_: Request<Incoming>| {
            let answer = answer.clone();
            async move { Response::new(Full::from(answer)) }
        })
        .await;
        let asker = Asker {
            pool: Pool::new(Arc::new(SystemNet)),
            signer: Signer::new(
                ClusterSecret::from_bytes(b"0123456789abcdef0123456789abcdef").unwrap(),
                "edge-1".parse().unwrap(),
            ),
            clock: Clock::system(),
            health: Arc::default(),
        };
        let home = Home {
            id: "edge-2".parse().unwrap(),
            addr: server.address(),
            level: Level::Region,
            may_send_on: true,
        };
        let wanted = Wanted {
            key: Key(7),
            site: "www",
            host: "www.test",
            target: "/a?b",
            slice: None,
            fields: &HeaderMap::new(),
            have: None,
            from: 0,
            shares: false,
            purged: Position { log: 3, seq: 4 },
        };
        let (frames, round_trip) = asker.fill(&home, wanted).await?;
        let mut heard = Vec::new();
        if let Told::Object(mut relayed) = told(frames, round_trip).await? {
            while let Some(bytes) = relayed.next().await {
                heard.push(bytes);
            }
        }
        Ok(heard)
    }

    #[tokio::test]
    async fn an_end_is_told_from_a_cut_and_from_a_lie() {
        let one = Frame::Block(Bytes::from_static(b"one"));
        let head = Frame::Head(Box::new(head()));
        let good = Ok(Said::Bytes(Bytes::from_static(b"one")));
        let whole = [head.clone(), Frame::Wait, one.clone(), Frame::End(3)];
        let heard = asked(encoded(&whole)).await.unwrap();
        assert_eq!(heard, std::slice::from_ref(&good));
        let home = |error| Err(RelayError::Home(error));
        let lost = asked(encoded(&[head.clone(), one.clone()])).await.unwrap();
        assert_eq!(lost, [good.clone(), home(PeerError::ClosedEarly)]);
        let short = asked(encoded(&[head.clone(), one.clone(), Frame::End(4)]));
        let Err(RelayError::Home(PeerError::Garbage(_))) = &short.await.unwrap()[1] else {
            panic!("three bytes are not four");
        };
        let failed = Frame::Failed("the origin is gone".into());
        let failed = asked(encoded(&[head.clone(), one.clone(), failed]))
            .await
            .unwrap();
        let source = Err(RelayError::Source("the origin is gone".into()));
        assert_eq!(failed, [good.clone(), source]);
        let mut bytes = encoded(&[head, one.clone(), one]).to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        let corrupt = asked(bytes.into()).await.unwrap();
        assert_eq!(corrupt, [good, home(PeerError::Corrupt { piece: 1 })]);
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error() {
        for frames in [
            &[][..],
            &[Frame::Wait],
            &[Frame::Block(Bytes::from_static(b"one"))],
            &[Frame::End(0)],
        ] {
            assert!(asked(encoded(frames)).await.is_err(), "{frames:?}");
        }
        let huge = Bytes::from_static(&[HEAD, 0xff, 0xff, 0xff, 0xff]);
        assert!(matches!(asked(huge).await, Err(PeerError::Garbage(_))));
    }

    #[test]
    fn what_tells_of_the_client_stays_here() {
        let mut fields = HeaderMap::new();
        for (name, value) in [
            ("accept-language", "de"),
            ("cookie", "a=b"),
            ("user-agent", "me"),
            ("cdn-level", "client"),
            ("cdn-loop", "geo-cdn; node=edge-9"),
            ("x-forwarded-for", "1.2.3.4"),
        ] {
            fields.insert(name, HeaderValue::from_static(value));
        }
        let names: Vec<String> = {
            let mut names: Vec<_> = reaching_peers(&fields)
                .keys()
                .map(ToString::to_string)
                .collect();
            names.sort();
            names
        };
        assert_eq!(names, ["accept-language", "cdn-loop"]);
    }
}
