//! A body of any length that needs no storage: every byte follows from its seed and position.

use bytes::{Bytes, BytesMut};

/// Unit of the pattern: random bytes, the first eight replaced by the number of the block, so that
/// blocks that are lost, repeated or swapped show.
const BLOCK_BYTES: usize = 64 << 10;

/// A reproducible body.
#[derive(Clone, Debug)]
pub struct Pattern {
    length: u64,
    block: Bytes,
}

impl Pattern {
    /// A body of `length` bytes; bodies of different seeds differ.
    pub fn new(seed: u64, length: u64) -> Self {
        let mut block = BytesMut::zeroed(BLOCK_BYTES);
        let mut state = seed;
        for word in block.chunks_exact_mut(8) {
            // splitmix64: enough to be incompressible.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes());
        }
        Self {
            length,
            block: block.freeze(),
        }
    }

    /// Length of the body in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// At least one byte, at most to the end of a block and at most `max`, from position `at`
    /// (which is within the body).
    pub fn chunk(&self, at: u64, max: usize) -> Bytes {
        let index = at / BLOCK_BYTES as u64;
        let offset = usize::try_from(at % BLOCK_BYTES as u64).expect("less than a block");
        let left = usize::try_from(self.length - at).unwrap_or(usize::MAX);
        let end = (offset + max.max(1).min(left)).min(BLOCK_BYTES);
        if offset >= 8 {
            return self.block.slice(offset..end);
        }
        let mut bytes = BytesMut::from(&self.block[..end]);
        let stamp = index.to_le_bytes();
        let stamped = end.min(8);
        bytes[..stamped].copy_from_slice(&stamp[..stamped]);
        bytes.freeze().slice(offset..)
    }

    /// The whole body; for those that fit into memory.
    pub fn bytes(&self) -> Bytes {
        let mut all = BytesMut::new();
        self.each(0, self.length, |chunk| all.extend_from_slice(chunk));
        all.freeze()
    }

    /// Hash of the whole body.
    pub fn hash(&self) -> blake3::Hash {
        self.hash_of(0, self.length)
    }

    /// Hash of the bytes from `start` up to `end`.
    pub fn hash_of(&self, start: u64, end: u64) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        self.each(start, end, |chunk| {
            hasher.update(chunk);
        });
        hasher.finalize()
    }

    fn each(&self, start: u64, end: u64, mut with: impl FnMut(&[u8])) {
        let mut at = start;
        while at < end.min(self.length) {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let chunk = self.chunk(at, left);
            with(&chunk);
            at += chunk.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_the_same_however_it_is_cut() {
        let pattern = Pattern::new(7, 3 * BLOCK_BYTES as u64 + 5);
        let whole = pattern.bytes();
        assert_eq!(whole.len() as u64, pattern.length());
        for step in [1, 3, 8, 1000, BLOCK_BYTES + 1] {
            let mut at = BLOCK_BYTES as u64 - 20;
            for _ in 0..60 {
                if at >= pattern.length() {
                    break;
                }
                let chunk = pattern.chunk(at, step);
                let from = usize::try_from(at).unwrap();
                assert_eq!(chunk, whole[from..from + chunk.len()]);
                at += chunk.len() as u64;
            }
        }
        assert_eq!(pattern.hash(), blake3::hash(&whole));
        assert_eq!(pattern.hash_of(9, 70_000), blake3::hash(&whole[9..70_000]));
    }

    #[test]
    fn blocks_and_seeds_differ() {
        let pattern = Pattern::new(7, 4 * BLOCK_BYTES as u64);
        assert_ne!(
            pattern.chunk(0, 100),
            pattern.chunk(BLOCK_BYTES as u64, 100)
        );
        assert_ne!(pattern.hash(), Pattern::new(8, pattern.length()).hash());
    }
}
