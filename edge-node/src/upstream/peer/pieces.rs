//! Pieces of an object as they come in from a peer, each verified before anybody sees it.

use std::{fmt, ops::Range, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use cluster::{
    manifest::{Manifest, PieceHash, run_hash},
    node::NodeId,
};
use http_body_util::BodyExt as _;
use tokio::time::timeout;

use super::PeerError;
use crate::upstream::pool::{self, Fault, Incoming};

/// Longest silence within a body.
pub const BETWEEN_BYTES_TIMEOUT: Duration = Duration::from_secs(3);
/// For a piece as a whole, or a peer could drip bytes for ever. Slower than 35 kB/s is no help.
pub const PIECE_TIMEOUT: Duration = Duration::from_secs(30);

/// Pieces in a row of an object whose manifest is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub(super) first: u32,
    /// Hash and length of each, in order.
    pub(super) expected: Vec<(PieceHash, usize)>,
    /// Who did not give it in time.
    pub(super) late: Option<NodeId>,
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

    pub(super) fn hash(&self) -> PieceHash {
        run_hash(self.expected.iter().map(|(hash, _)| hash))
    }

    /// As they come in `bytes`.
    pub(super) fn arriving(self, bytes: Frames) -> PieceStream {
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
pub(in crate::upstream) type Verdict = Box<dyn FnOnce(Result<(), &PeerError>) + Send>;

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
    pub(in crate::upstream) fn report_to(&mut self, verdict: Verdict) {
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
pub(in crate::upstream) struct Frames {
    incoming: Incoming,
    frame: Bytes,
    /// What is there of a part that spans frames.
    partial: BytesMut,
}

impl Frames {
    pub(in crate::upstream) fn new(incoming: Incoming) -> Self {
        Self {
            incoming,
            frame: Bytes::new(),
            partial: BytesMut::new(),
        }
    }

    /// The next `length` bytes, without a copy where one frame holds them.
    pub(in crate::upstream) async fn take(&mut self, length: usize) -> Result<Bytes, PeerError> {
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
