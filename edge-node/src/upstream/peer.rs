//! One question to one peer: do you hold this object? The answer is its manifest and then its pieces,
//! each verified before anybody sees it.
//!
//! On the wire: `GET /v1/hold/{key}` with the fields that select a variant and `cdn-pieces: A-B`, the
//! first and the last piece wanted; all of them when absent. Answered 200 with the age in `age` and
//! `cdn-age-ms`, and a body of the manifest's length (u32, little-endian), the manifest, and the bytes of
//! those pieces that there are; or 404 with `cdn-answer: miss` or `stale`; or 429 or 503 when busy.
//!
//! Who has the manifest names what it wants: `cdn-pieces-hash`, the [`run_hash`](cluster::manifest::run_hash) of those pieces. Then the
//! answer is their bytes and nothing else, of whatever version they are and however old; or 404 with
//! `cdn-answer: other` when the holder's pieces are not these.
//!
//! A single piece can be had of an object that is still coming in, as soon as it is there. Who does not have it
//! yet waits a moment for it, and then says `cdn-answer: not-yet`. Who asks the home of an object that is
//! [shared out](super::wants), because another did not give a piece, names that one in `cdn-late`; the home
//! gives the piece, or says `cdn-answer: elsewhere` and in `cdn-holder` who has it by now.

mod failure;
mod pieces;
mod words;

#[cfg(test)]
mod tests;

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Buf as _;
use cluster::{
    auth::Signer,
    clock::Clock,
    key::Key,
    manifest::{MANIFEST_BYTES_MAX, Manifest},
    node::NodeId,
    wire,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::time::{Instant, timeout};

pub(super) use self::pieces::{Frames, Verdict};
use self::words::{age_of, selecting};
pub use self::{
    failure::PeerError,
    pieces::{BETWEEN_BYTES_TIMEOUT, PIECE_TIMEOUT, PieceStream, Run},
    words::{
        AGE_MS_FIELD, ANSWER_FIELD, Asked, HOLDER_FIELD, LATE_FIELD, PIECES_FIELD,
        PIECES_HASH_FIELD, asked_for, encode_answer_head, may_reach_peers, node_in, set_age,
    },
};
use super::{
    health::Health,
    pool::{self, Answer, Patience, Pool},
};

/// For a connection to a peer: more than a round trip around the globe, and loss on the way.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The same where the round trip is known: so many of them …
const CONNECT_ROUND_TRIPS: f64 = 4.0;
/// … and what a busy machine at either end adds.
const CONNECT_NOISE: Duration = Duration::from_millis(250);
/// For the head of its answer, and again for the manifest: beyond, the origin is the better choice.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(2);

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

async fn manifest(bytes: &mut Frames) -> Result<Manifest, PeerError> {
    let length = bytes.take(size_of::<u32>()).await?.get_u32_le() as usize;
    if length > MANIFEST_BYTES_MAX {
        return Err(PeerError::Garbage(format!("a manifest of {length} bytes")));
    }
    let encoded = bytes.take(length).await?;
    Manifest::decode(&encoded).map_err(|e| PeerError::Garbage(e.to_string()))
}
