//! A body that stays on disk while its head is in memory: each hit reads it from the system's cache. Pure.
//!
//! What the system has in its cache need not be held twice, and a tier that is full gives something up
//! for all that it takes in. So what is read from there comes into memory as a head alone, and the body
//! follows when it has been read often. A working set larger than the tier would otherwise push itself
//! through it, with an insertion and an eviction for each hit.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::store::AT_HAND_BYTES_MAX;

/// Reads after which a body is kept in memory: so few that what is popular is there soon, and so many
/// that of a working set larger than the tier few hits push something out. What is pushed out takes its
/// head along, which the next hit has to decode anew: with 8 in place of 64 a uniform working set of four
/// times the tier cost a quarter more per hit, against a bare server in the same run.
const READS_MAX: u32 = 64;
/// Smaller bodies are not worth it: their heads take as much, up to some 2 KiB.
const BYTES_MIN: u64 = 8 << 10;

/// What has to be known of such a body.
#[derive(Debug)]
pub struct Shelved {
    length: u64,
    reads: AtomicU32,
}

impl Shelved {
    /// A body of `length` bytes; `None` if it is better kept, or if to read it takes too long for a
    /// runtime thread.
    pub fn new(length: u64) -> Option<Self> {
        let fits = BYTES_MIN <= length && length < u64::from(AT_HAND_BYTES_MAX);
        fits.then(|| Self {
            length,
            reads: AtomicU32::new(0),
        })
    }

    /// Its length.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Counts a read; true once, when there have been enough of them for the body to be kept.
    pub fn is_worth_keeping(&self) -> bool {
        self.reads.fetch_add(1, Relaxed) == READS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_often_is_worth_keeping_once() {
        let shelved = Shelved::new(BYTES_MIN).unwrap();
        let kept: Vec<_> = (0..100).filter(|_| shelved.is_worth_keeping()).collect();
        assert_eq!(kept, [READS_MAX]);
        assert!(Shelved::new(BYTES_MIN - 1).is_none());
        assert!(Shelved::new(AT_HAND_BYTES_MAX.into()).is_none());
    }
}
