//! The fields of a question and of its answer, as both sides write and read them.

use std::{ops::Range, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use cluster::{manifest::PieceHash, node::NodeId};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::upstream::relayed;

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

/// The fields of a question for the pieces of `wanted`.
pub(super) fn selecting(fields: &HeaderMap, wanted: &Range<u32>) -> HeaderMap {
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

/// How old the object is, by what the answer says.
pub(super) fn age_of(fields: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| fields.get(name)?.to_str().ok()?.parse::<u64>().ok();
    let seconds = || number(header::AGE.as_str()).map(Duration::from_secs);
    number(AGE_MS_FIELD)
        .map(Duration::from_millis)
        .or_else(seconds)
}
