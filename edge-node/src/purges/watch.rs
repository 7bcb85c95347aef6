//! How sure a node is to have heard of every purge. Pure.
//!
//! Purges come by themselves, so silence can mean that there are none, or that this node is cut off. What
//! tells both apart is a *check*: somebody is asked for the end of the log, and nothing of it is missing here.
//! That holds for the moment at which the check began, whenever its answer came: what a process finds in its
//! sockets when it goes on after a stop is from before.
//!
//! A peer knows no more than a control plane once told it, or whoever told it. So it says how long ago that was,
//! and its word counts as of then: nodes that are cut off together do not make each other any surer.

use std::time::Duration;

/// Without a check for so long, a node is cut off, and checks before it answers from its cache. It is also how
/// old the word of a control plane may be without anybody asking how old a site allows it to be.
pub const CUT_OFF: Duration = Duration::from_secs(2);
/// Time from one check to the next while all is well.
pub const CHECK_EVERY: Duration = Duration::from_secs(1);
/// How long a request waits for a check that begins after it came: a round trip around the globe.
pub const CHECK_WAIT_MAX: Duration = Duration::from_millis(300);

/// What is known of checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Nobody has to be asked.
    Off,
    /// There was no check yet that nothing was missing. When a control plane last said so before this start, if
    /// that is known: what was known then is on disk, so it still counts for others.
    CatchingUp(Option<u64>),
    /// There was one.
    Heard(Heard),
}

/// When what is known was known to be all, in Unix milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// When a control plane last said so, to this node or to those from whom it has it.
    head_ms: u64,
    /// When the last check by anybody began.
    checked_ms: u64,
}

impl Watch {
    /// Of a node for which no control plane is configured.
    pub const fn off() -> Self {
        Self::Off
    }

    /// Of one that has just started; see [`Watch::CatchingUp`].
    pub const fn on(head_ms: Option<u64>) -> Self {
        Self::CatchingUp(head_ms)
    }

    /// A check that began at `asked_ms` found nothing missing of what a control plane said `age_ms` before
    /// that, or later. Says whether it was the first.
    pub fn heard(&mut self, asked_ms: u64, age_ms: u64, now_ms: u64) -> bool {
        let asked_ms = asked_ms.min(now_ms);
        let fresh = Heard {
            head_ms: asked_ms.saturating_sub(age_ms),
            checked_ms: asked_ms,
        };
        match *self {
            Self::Off => false,
            Self::CatchingUp(_) => {
                *self = Self::Heard(fresh);
                true
            }
            Self::Heard(before) => {
                // A clock that was set back must not make the last one last.
                let newer = |before_ms: u64, fresh_ms: u64| match before_ms > now_ms {
                    true => fresh_ms,
                    false => before_ms.max(fresh_ms),
                };
                *self = Self::Heard(Heard {
                    head_ms: newer(before.head_ms, fresh.head_ms),
                    checked_ms: newer(before.checked_ms, fresh.checked_ms),
                });
                false
            }
        }
    }

    /// Until when there is no doubt, in Unix milliseconds, whatever a site allows.
    pub fn sure_until_ms(self) -> u64 {
        match self {
            Self::Off => u64::MAX,
            Self::CatchingUp(_) => 0,
            Self::Heard(heard) => heard.head_ms.saturating_add(millis(CUT_OFF)),
        }
    }

    /// Whether objects may be used that may be so old as `limit` allows to have heard of no control plane.
    pub fn is_sure(self, now_ms: u64, limit: Duration) -> bool {
        match self {
            Self::Off => true,
            Self::CatchingUp(_) => false,
            Self::Heard(heard) => {
                now_ms < self.sure_until_ms()
                    || now_ms.saturating_sub(heard.head_ms) <= millis(limit)
            }
        }
    }

    /// Whether a check could change the answer: not where somebody was asked just now, and not where it is
    /// sought all the time anyway, and the origin is asked until then.
    pub fn is_worth_a_check(self, now_ms: u64, limit: Duration) -> bool {
        self.is_cut_off(now_ms) && self.is_sure(now_ms, limit)
    }

    /// Whether nobody has answered a check for a moment.
    fn is_cut_off(self, now_ms: u64) -> bool {
        match self {
            Self::Off | Self::CatchingUp(_) => false,
            Self::Heard(heard) => now_ms >= heard.checked_ms.saturating_add(millis(CUT_OFF)),
        }
    }

    /// How many milliseconds ago a control plane said what is known here, for others. `None`: that is not
    /// known, or by a clock that was set back.
    pub fn age_ms(self, now_ms: u64) -> Option<u64> {
        now_ms.checked_sub(self.head_ms()?)
    }

    /// When a control plane last said so, in Unix milliseconds.
    pub fn head_ms(self) -> Option<u64> {
        match self {
            Self::Off => None,
            Self::CatchingUp(head_ms) => head_ms,
            Self::Heard(heard) => Some(heard.head_ms),
        }
    }

    /// Whether there was a check that nothing was missing, or need be none.
    pub fn has_caught_up(self) -> bool {
        !matches!(self, Self::CatchingUp(_))
    }

    /// Why there is doubt, in words.
    pub fn doubt(self, now_ms: u64) -> Option<&'static str> {
        match self {
            Self::CatchingUp(_) => Some("catching up with purges"),
            _ if now_ms < self.sure_until_ms() => None,
            _ if self.is_cut_off(now_ms) => Some("cut off from the control plane and all peers"),
            _ => Some("cut off from the control plane, as are the peers that answer"),
        }
    }
}

/// By how many milliseconds a clock is ahead of another that showed `other_ms` at some moment between two moments
/// of ours; behind, if negative; 0 if they may agree.
pub fn clock_ahead_ms(from_ms: u64, until_ms: u64, other_ms: u64) -> i64 {
    let (first, last) = (from_ms.min(until_ms), from_ms.max(until_ms));
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    if other_ms < first {
        signed(first - other_ms)
    } else if other_ms > last {
        -signed(other_ms - last)
    } else {
        0
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn a_node_is_sure_from_its_first_check_on_and_as_long_as_it_hears() {
        let mut watch = Watch::on(None);
        assert!(!watch.is_sure(1_000, LIMIT) && !watch.has_caught_up());
        assert!(!watch.is_worth_a_check(1_000, LIMIT));
        assert_eq!(watch.sure_until_ms(), 0);
        assert!(watch.heard(1_000, 0, 1_200));
        assert_eq!(watch.sure_until_ms(), 3_000);
        for (now_ms, limit, sure, worth) in [
            (1_200, LIMIT, true, false),
            (2_999, LIMIT, true, false),
            (3_000, LIMIT, true, true),
            (31_000, LIMIT, true, true),
            (31_001, LIMIT, false, false),
            (2_999, Duration::ZERO, true, false),
            (3_000, Duration::ZERO, false, false),
        ] {
            assert_eq!(watch.is_sure(now_ms, limit), sure, "{now_ms}");
            assert_eq!(watch.is_worth_a_check(now_ms, limit), worth, "{now_ms}");
        }
        assert_eq!(watch.doubt(2_999), None);
        assert!(watch.doubt(3_000).is_some());
        // An answer that comes late says nothing new.
        assert!(!watch.heard(900, 0, 50_000));
        assert_eq!(watch.sure_until_ms(), 3_000);
        assert!(!watch.heard(50_000, 0, 50_100));
        assert!(watch.is_sure(50_100, Duration::ZERO));
    }

    #[test]
    fn what_a_peer_vouches_for_is_as_old_as_what_it_was_told() {
        let (mut near, mut far) = (Watch::on(None), Watch::on(None));
        assert_eq!(near.age_ms(900), None);
        near.heard(1_000, 0, 1_100);
        // The two are cut off together, and ask each other once a second.
        for now_ms in (2_000..=60_000).step_by(1_000) {
            let age_ms = near.age_ms(now_ms).unwrap();
            assert_eq!(age_ms, now_ms - 1_000);
            far.heard(now_ms - 10, age_ms, now_ms);
            near.heard(now_ms + 10, far.age_ms(now_ms + 15).unwrap(), now_ms + 20);
            let is_young = now_ms + 20 - 1_000 <= 30_000;
            assert_eq!(near.is_sure(now_ms + 20, LIMIT), is_young, "{now_ms}");
            assert!(!near.is_worth_a_check(now_ms + 20, LIMIT), "{now_ms}");
        }
        assert!(!far.is_sure(60_000, LIMIT));
        assert!(near.doubt(60_000).unwrap().contains("as are the peers"));
        // One hears of a control plane again, and the other of one that has.
        near.heard(61_000, 0, 61_010);
        far.heard(61_500, near.age_ms(61_510).unwrap(), 61_520);
        assert!(far.is_sure(61_520, LIMIT));
        assert_eq!(far.sure_until_ms(), 62_990);
    }

    /// All are started anew, and no control plane is there.
    #[test]
    fn what_was_heard_before_a_start_counts_for_others() {
        let (near, mut far) = (Watch::on(Some(1_000)), Watch::on(Some(500)));
        assert!(!near.is_sure(4_000, LIMIT));
        assert!(far.heard(4_000, near.age_ms(4_000).unwrap(), 4_010));
        for (now_ms, sure) in [(4_010, true), (31_000, true), (31_001, false)] {
            assert_eq!(far.is_sure(now_ms, LIMIT), sure, "{now_ms}");
        }
    }

    #[test]
    fn a_clock_that_is_set_back_makes_nobody_sure_for_longer() {
        let mut watch = Watch::on(None);
        watch.heard(100_000, 0, 100_000);
        // Nor does it vouch for others by it.
        assert_eq!(watch.age_ms(5_100), None);
        assert!(!watch.heard(5_000, 0, 5_100));
        assert_eq!(watch.sure_until_ms(), 7_000);
    }

    #[test]
    fn a_clock_is_off_by_what_the_way_does_not_explain() {
        for (from_ms, until_ms, other_ms, ahead_ms) in [
            (1_000, 1_300, 1_000, 0),
            (1_000, 1_300, 1_300, 0),
            (1_000, 1_300, 900, 100),
            (1_000, 1_300, 1_350, -50),
            (3_601_000, 3_601_020, 1_010, 3_599_990),
            (5, 5, u64::MAX, -i64::MAX),
        ] {
            let ahead = clock_ahead_ms(from_ms, until_ms, other_ms);
            assert_eq!(ahead, ahead_ms, "{from_ms} {until_ms} {other_ms}");
        }
    }

    #[test]
    fn where_nobody_has_to_be_asked_there_is_no_doubt() {
        let mut watch = Watch::off();
        assert!(!watch.heard(1, 0, 1));
        assert!(watch.is_sure(u64::MAX - 1, Duration::ZERO) && watch.has_caught_up());
        assert!(!watch.is_worth_a_check(1, LIMIT));
        assert_eq!(watch.doubt(1), None);
        assert_eq!(watch.age_ms(1), None);
    }
}
