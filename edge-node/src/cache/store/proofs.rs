//! Which bodies on disk have been proved, and by what they are known again: a CRC tells damage as surely
//! as disks do themselves, at a fifth of what a hash costs. The only file that names crc32fast.
//!
//! A table of fixed size in which a newer proof takes an older one's place; what it has forgotten is proved
//! once more. Without locks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::table::At;

/// Bodies that are known again, 8 bytes each: what a node serves from disk in minutes.
const PLACES_BITS: u32 = 17;
/// An odd number near 2^64 divided by the golden ratio: neighbours land far apart.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// What tells a body from one that was damaged.
pub fn crc(body: &[u8]) -> u32 {
    crc32fast::hash(body)
}

pub(super) struct Proofs(Box<[AtomicU64]>);

impl Proofs {
    pub(super) fn new() -> Self {
        Self((0..1 << PLACES_BITS).map(|_| AtomicU64::new(0)).collect())
    }

    /// Whether `body`, read at `at`, is what stood there when it was proved; if that is not known, asks
    /// `prove` and remembers.
    pub(super) fn holds(&self, at: At, body: &[u8], prove: impl FnOnce() -> bool) -> bool {
        let spread = (u64::from(at.segment) << 32 | u64::from(at.offset)).wrapping_mul(SPREAD);
        let place = &self.0[(spread >> (u64::BITS - PLACES_BITS)) as usize];
        // A place is told from others that share its slot by the low half, which the slot does not use.
        let proof = spread << 32 | u64::from(crc(body));
        // The slots begin as proofs of a body with a CRC of 0 at the very first place: never taken.
        if proof != 0 && place.load(Relaxed) == proof {
            return true;
        }
        let holds = prove();
        if holds {
            place.store(proof, Relaxed);
        }
        holds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_proved_is_known_again_there_and_nowhere_else() {
        let proofs = Proofs::new();
        let at = |offset| At { segment: 3, offset };
        assert!(!proofs.holds(at(0), b"body", || false));
        assert!(proofs.holds(at(0), b"body", || true));
        assert!(proofs.holds(at(0), b"body", || false), "known");
        assert!(!proofs.holds(at(0), b"bodx", || false));
        assert!(!proofs.holds(at(64), b"body", || false));
        let first = At {
            segment: 0,
            offset: 0,
        };
        assert!(!proofs.holds(first, b"", || false), "nothing is known");
    }

    #[test]
    fn two_places_that_share_a_slot_are_not_taken_for_each_other() {
        let proofs = Proofs::new();
        for offset in 0..1 << (PLACES_BITS + 1) {
            let at = At { segment: 1, offset };
            let proved = (0..2).map(|_| proofs.holds(at, b"x", || offset % 2 == 0));
            assert!(proved.eq([offset % 2 == 0; 2]), "{offset}");
        }
    }
}
