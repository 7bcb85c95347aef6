//! Whether a small object goes to disk at once, or has to be asked for a second time first. Pure.
//!
//! Some three quarters of what a CDN fetches is never asked for again. To write all of it costs nothing
//! while the ring of segments turns slowly, and it is the better promise: what was committed survives a
//! crash, a restart is warm, other nodes may be told. When the ring turns fast, the same writes wear the
//! disk and push out what is asked for. So the ring itself decides: once what it gives up is younger
//! than `TURN_MIN`, a new small object stays in memory until the next request for it, and one that
//! leaves memory before that was a one-hit wonder and is gone. That slows the ring until it turns
//! slowly enough again.
//!
//! **What is held back is not committed:** it is not claimed towards other nodes, and a crash loses it.
//! Never held back are large bodies (they have no other place), variants (their marker is of no use
//! without them), and what replaces or renews an object that is on disk.

use std::time::Duration;

/// How long the ring should take to turn: disks that are made to be read are rated for about one write
/// of their whole size a day.
const TURN_MIN: Duration = Duration::from_hours(24);

/// Whether new small objects are held back. `turn`: the age of the oldest segment in a ring that is
/// full; `None`: it is not full, or the oldest is from before this process.
pub fn holds_back(turn: Option<Duration>) -> bool {
    turn.is_some_and(|turn| turn < TURN_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_that_turns_within_a_day_holds_back() {
        for (turn, held) in [
            (None, false),
            (Some(Duration::ZERO), true),
            (Some(TURN_MIN - Duration::from_nanos(1)), true),
            (Some(TURN_MIN), false),
        ] {
            assert_eq!(holds_back(turn), held, "{turn:?}");
        }
    }
}
