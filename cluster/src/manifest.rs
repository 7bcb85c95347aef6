//! What names an object's pieces: everything a node must know of an object to verify it, store it
//! and serve it, without its bytes.
//!
//! A body is cut into pieces of [`PIECE_BYTES`]; the last may be shorter. Each piece has a BLAKE3
//! hash, so whoever sends it, it can be told from anything else.

use serde::{Deserialize, Serialize};

use crate::{node::NodeId, purge::Position};

/// Size of every piece of a body but the last: large enough that a 20 GiB body has a manifest under
/// 1 MiB, small enough that one is verified before a reader would notice the wait.
pub const PIECE_BYTES: usize = 1 << 20;
/// Largest encoded manifest: 64 KiB of header fields and the pieces of a 24 GiB body.
pub const MANIFEST_BYTES_MAX: usize = 896 << 10;
/// Most header fields of an object.
pub const FIELDS_MAX: usize = 256;

/// The BLAKE3 hash of a piece.
pub type PieceHash = [u8; 32];

/// What names some pieces in a row, whichever versions of an object have them: the BLAKE3 hash of their
/// hashes.
pub fn run_hash<'a>(pieces: impl IntoIterator<Item = &'a PieceHash>) -> PieceHash {
    let mut hasher = blake3::Hasher::new();
    for hash in pieces {
        hasher.update(hash);
    }
    *hasher.finalize().as_bytes()
}

/// An object without its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Status code of the response.
    pub status: u16,
    /// Header fields as stored, in order; hop-by-hop fields are not among them.
    pub fields: Vec<(String, Vec<u8>)>,
    /// Request header fields that selected this variant, by the response's `Vary`: lower-case name
    /// and normalised value (`None`: the field was absent).
    pub selected_by: Vec<(String, Option<Vec<u8>>)>,
    /// Length of the body in bytes.
    pub length: u64,
    /// One hash per piece, in order.
    pub pieces: Vec<PieceHash>,
    /// Which edge fetched it from the origin.
    pub fetched_by: NodeId,
    /// When that was, in Unix milliseconds by that edge's clock.
    pub fetched_at: u64,
    /// The place in the purge log that the fetch is known to be newer than: that which the fetching
    /// edge had reached before it asked the origin.
    pub as_of: Position,
}

/// Why bytes are not a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadManifest {
    /// Longer than [`MANIFEST_BYTES_MAX`].
    #[error("manifest is larger than {MANIFEST_BYTES_MAX} bytes")]
    TooLarge,
    /// Not the encoding of a manifest.
    #[error("manifest cannot be decoded: {0}")]
    Undecodable(String),
    /// Decodes, but its parts contradict each other.
    #[error("manifest contradicts itself: {0}")]
    Inconsistent(&'static str),
}

impl Manifest {
    /// How many pieces a body of `length` bytes has; an empty body has none.
    pub fn piece_count(length: u64) -> u64 {
        length.div_ceil(PIECE_BYTES as u64)
    }

    /// How long piece `index` is.
    pub fn piece_length(&self, index: u32) -> usize {
        let start = u64::from(index) * PIECE_BYTES as u64;
        let left = self.length.saturating_sub(start).min(PIECE_BYTES as u64);
        usize::try_from(left).expect("a piece is at most PIECE_BYTES long")
    }

    /// The manifest as bytes (postcard).
    ///
    /// # Errors
    ///
    /// [`BadManifest::TooLarge`]: such an object cannot be passed on.
    pub fn encode(&self) -> Result<Vec<u8>, BadManifest> {
        let bytes =
            postcard::to_stdvec(self).map_err(|e| BadManifest::Undecodable(e.to_string()))?;
        if bytes.len() > MANIFEST_BYTES_MAX {
            Err(BadManifest::TooLarge)
        } else {
            Ok(bytes)
        }
    }

    /// Reads a manifest, from a peer or from disk, and checks that its parts agree.
    ///
    /// # Errors
    ///
    /// Anything that is not the encoding of a consistent manifest.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadManifest> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(BadManifest::TooLarge);
        }
        let manifest: Self =
            postcard::from_bytes(bytes).map_err(|e| BadManifest::Undecodable(e.to_string()))?;
        if manifest.pieces.len() as u64 != Self::piece_count(manifest.length) {
            return Err(BadManifest::Inconsistent("number of pieces and length"));
        }
        if manifest.fields.len() > FIELDS_MAX {
            return Err(BadManifest::Inconsistent("too many header fields"));
        }
        if !(200..=599).contains(&manifest.status) {
            return Err(BadManifest::Inconsistent("status is not final"));
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(length: u64, pieces: usize) -> Manifest {
        Manifest {
            status: 200,
            fields: vec![("etag".into(), b"\"a\"".to_vec())],
            selected_by: vec![("accept-encoding".into(), None)],
            length,
            pieces: vec![[7; 32]; pieces],
            fetched_by: "edge-1".parse().unwrap(),
            fetched_at: 1,
            as_of: Position { log: 3, seq: 4 },
        }
    }

    #[test]
    fn a_manifest_survives_its_encoding() {
        for (length, pieces) in [(0, 0), (1, 1), (1 << 20, 1), ((1 << 20) + 1, 2)] {
            let one = manifest(length, pieces);
            assert_eq!(Manifest::decode(&one.encode().unwrap()).unwrap(), one);
        }
        assert_eq!(manifest((1 << 20) + 1, 2).piece_length(1), 1);
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_refused() {
        assert!(Manifest::decode(&manifest(5, 2).encode().unwrap()).is_err());
        assert!(
            Manifest::decode(
                &Manifest {
                    status: 100,
                    ..manifest(0, 0)
                }
                .encode()
                .unwrap()
            )
            .is_err()
        );
        assert!(Manifest::decode(b"not a manifest").is_err());
        assert!(Manifest::decode(&vec![0; MANIFEST_BYTES_MAX + 1]).is_err());
    }
}
