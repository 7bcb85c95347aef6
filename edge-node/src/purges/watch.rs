//! How sure a node is to have heard of every purge. Pure.
//!
//! Purges come by themselves, so silence can mean that there are none, or that this node is cut off. What
//! tells both apart is a *check*: somebody is asked for the end of the log, and nothing of it is missing here.
//! That holds for the moment at which the check began, whenever its answer came: what a process finds in its
//! sockets when it goes on after a stop is from before.

use std::time::Duration;

/// Without a check for so long, a node is cut off, and checks before it answers from its cache.
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
    /// There was no check yet that nothing was missing.
    CatchingUp,
    /// When the last began, in Unix milliseconds.
    Heard(u64),
}

impl Watch {
    /// Of a node for which no control plane is configured.
    pub const fn off() -> Self {
        Self::Off
    }

    /// Of one that has just started.
    pub const fn on() -> Self {
        Self::CatchingUp
    }

    /// A check that began at `asked_ms` found nothing missing. Says whether it was the first.
    pub fn heard(&mut self, asked_ms: u64, now_ms: u64) -> bool {
        let asked_ms = asked_ms.min(now_ms);
        match *self {
            Self::Off => false,
            Self::CatchingUp => {
                *self = Self::Heard(asked_ms);
                true
            }
            Self::Heard(before_ms) => {
                // A clock that was set back must not make the last one last.
                *self = Self::Heard(if before_ms > now_ms {
                    asked_ms
                } else {
                    before_ms.max(asked_ms)
                });
                false
            }
        }
    }

    /// Until when there is no doubt, in Unix milliseconds.
    pub fn sure_until_ms(self) -> u64 {
        match self {
            Self::Off => u64::MAX,
            Self::CatchingUp => 0,
            Self::Heard(at_ms) => at_ms.saturating_add(millis(CUT_OFF)),
        }
    }

    /// Whether objects may be used that may be so old as `limit` allows to have heard of nobody.
    pub fn is_sure(self, now_ms: u64, limit: Duration) -> bool {
        match self {
            Self::Off => true,
            Self::CatchingUp => false,
            Self::Heard(at_ms) => {
                now_ms < self.sure_until_ms() || now_ms.saturating_sub(at_ms) <= millis(limit)
            }
        }
    }

    /// Whether a check could change the answer: not where it is sought all the time anyway, and the
    /// origin is asked until then.
    pub fn is_worth_a_check(self, now_ms: u64, limit: Duration) -> bool {
        matches!(self, Self::Heard(_)) && self.is_sure(now_ms, limit)
    }

    /// Whether there was a check that nothing was missing, or need be none.
    pub fn has_caught_up(self) -> bool {
        self != Self::CatchingUp
    }

    /// Why there is doubt, in words.
    pub fn doubt(self, now_ms: u64) -> Option<&'static str> {
        match self {
            Self::CatchingUp => Some("catching up with purges"),
            _ if now_ms < self.sure_until_ms() => None,
            _ => Some("cut off from the control plane and all peers"),
        }
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
        let mut watch = Watch::on();
        assert!(!watch.is_sure(1_000, LIMIT) && !watch.has_caught_up());
        assert!(!watch.is_worth_a_check(1_000, LIMIT));
        assert_eq!(watch.sure_until_ms(), 0);
        assert!(watch.heard(1_000, 1_200));
        assert_eq!(watch.sure_until_ms(), 3_000);
        for (now_ms, limit, sure, worth) in [
            (1_200, LIMIT, true, true),
            (3_000, LIMIT, true, true),
            (31_000, LIMIT, true, true),
            (31_001, LIMIT, false, false),
            (2_999, Duration::ZERO, true, true),
            (3_000, Duration::ZERO, false, false),
        ] {
            assert_eq!(watch.is_sure(now_ms, limit), sure, "{now_ms}");
            assert_eq!(watch.is_worth_a_check(now_ms, limit), worth, "{now_ms}");
        }
        assert_eq!(watch.doubt(2_999), None);
        assert!(watch.doubt(3_000).is_some());
        // An answer that comes late says nothing new.
        assert!(!watch.heard(900, 50_000));
        assert_eq!(watch.sure_until_ms(), 3_000);
        assert!(!watch.heard(50_000, 50_100));
        assert!(watch.is_sure(50_100, Duration::ZERO));
    }

    #[test]
    fn a_clock_that_is_set_back_makes_nobody_sure_for_longer() {
        let mut watch = Watch::on();
        watch.heard(100_000, 100_000);
        assert!(!watch.heard(5_000, 5_100));
        assert_eq!(watch.sure_until_ms(), 7_000);
    }

    #[test]
    fn where_nobody_has_to_be_asked_there_is_no_doubt() {
        let mut watch = Watch::off();
        assert!(!watch.heard(1, 1));
        assert!(watch.is_sure(u64::MAX - 1, Duration::ZERO) && watch.has_caught_up());
        assert!(!watch.is_worth_a_check(1, LIMIT));
        assert_eq!(watch.doubt(1), None);
    }
}
