//! The name of an object on every node: the hash of its canonical request.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, Hasher, RandomState},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// A cache key: the first 16 bytes of a BLAKE3 hash, little-endian. Written as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key(pub u128);

impl Key {
    /// The key of what `parts` say together. Parts are length-prefixed, so no two lists collide.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(u128::from_le_bytes(bytes))
    }

    /// Its 32 hex digits.
    pub fn digits(self) -> Digits {
        let mut digits = [0; 32];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(self.0.to_be_bytes()) {
            for (digit, half) in pair.iter_mut().zip([byte >> 4, byte & 15]) {
                *digit = b"0123456789abcdef"[usize::from(half)];
            }
        }
        Digits(digits)
    }
}

/// A key as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digits([u8; 32]);

impl Digits {
    /// As text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("digits are ASCII")
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.digits().as_str())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A map by key. Keys are uniform already, so a multiplication finds their place where the usual hash takes
/// ten times as long; whose place is where is a secret of this map all the same, for strangers may choose
/// keys that have many bits in common.
pub type KeyMap<V> = HashMap<Key, V, KeyHashes>;

/// Hashes keys, under a secret of its own.
#[derive(Clone, Debug)]
pub struct KeyHashes([u64; 2]);

impl Default for KeyHashes {
    fn default() -> Self {
        let random = RandomState::new();
        // Odd, so that no bit of a key is lost.
        Self([0, 1].map(|n: u64| random.hash_one(n) | 1))
    }
}

impl BuildHasher for KeyHashes {
    type Hasher = KeyHasher;

    fn build_hasher(&self) -> KeyHasher {
        KeyHasher {
            secret: self.0,
            hash: 0,
        }
    }
}

/// The hash of one key, or of half of one; of anything else, one that is right and no more.
pub struct KeyHasher {
    secret: [u64; 2],
    hash: u64,
}

impl Hasher for KeyHasher {
    fn write_u128(&mut self, key: u128) {
        let [low, high] = halves(key);
        let product =
            u128::from(low ^ self.secret[0] ^ self.hash) * u128::from(high ^ self.secret[1]);
        // Once more: one of the factors may be small.
        self.hash = folded(u128::from(folded(product)) * u128::from(self.secret[1]));
    }

    fn write_u64(&mut self, half: u64) {
        self.write_u128(half.into());
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(16) {
            let mut padded = [0; 16];
            padded[..chunk.len()].copy_from_slice(chunk);
            self.write_u128(u128::from_le_bytes(padded));
        }
    }

    fn finish(&self) -> u64 {
        self.hash
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the low half is what is meant"
)]
fn halves(both: u128) -> [u64; 2] {
    [both as u64, (both >> 64) as u64]
}

fn folded(product: u128) -> u64 {
    let [low, high] = halves(product);
    low ^ high
}

/// A text that is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key is 32 hex digits")]
pub struct BadKey;

impl FromStr for Key {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(BadKey);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| BadKey)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_and_read() {
        let key = Key::of(&[b"site", b"www.example.com", b"/"]);
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(Key(0x1f0).to_string(), format!("{:032x}", 0x1f0));
        assert_ne!(Key::of(&[b"ab", b"c"]), Key::of(&[b"a", b"bc"]));
        for bad in ["", "+0000000000000000000000000000000", &"g".repeat(32)] {
            assert_eq!(bad.parse::<Key>(), Err(BadKey));
        }
    }

    #[test]
    fn keys_with_most_bits_in_common_are_spread() {
        let hashes = KeyHashes::default();
        assert_ne!(
            hashes.hash_one(Key(1)),
            KeyHashes::default().hash_one(Key(1))
        );
        for shift in [0, 7, 48, 64, 100, 116] {
            let mut low = [0_u32; 64];
            let mut high = [0_u32; 64];
            for n in 0..1_u128 << 12 {
                let hash = hashes.hash_one(Key(n << shift));
                low[usize::try_from(hash & 63).unwrap()] += 1;
                high[usize::try_from(hash >> 58).unwrap()] += 1;
            }
            // 64 each on average; six deviations.
            for counts in [low, high] {
                assert!(
                    counts.iter().all(|n| (16..=112).contains(n)),
                    "{shift}: {counts:?}"
                );
            }
        }
    }
}
