//! When a question gets company: how late an answer must be before another peer is asked as well, and how
//! often that may happen. Pure.
//!
//! A peer is late after the 95th percentile of its own answers, or, should that be sooner, after its
//! median times what lies between median and 95th percentile of all peers: a peer that stalls often must
//! not thereby earn patience.

use std::time::Duration;

/// Answers remembered of each peer, and of all together: enough for a percentile, few enough to sort.
const REMEMBERED: usize = 64;
/// Answers of a peer before anything is concluded.
const LEARNED_MIN: usize = 8;
/// Below that, a wait is the noise of a machine, not of a peer …
const DELAY_MIN: Duration = Duration::from_millis(2);
/// … and below so many medians there is not enough to win.
const MEDIANS_MIN: f64 = 1.5;
/// Hedges per question, on average.
pub const SHARE_MAX: f64 = 0.05;
/// Hedges that may be saved up for a bad moment.
const SAVED_MAX: f64 = 10.0;

/// The last numbers of something, and their percentiles.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    values: Vec<f32>,
    at: usize,
}

impl Recent {
    /// One more; the oldest goes.
    pub fn push(&mut self, value: f64) {
        let value = value as f32;
        if self.values.len() < REMEMBERED {
            self.values.push(value);
        } else {
            self.values[self.at] = value;
        }
        self.at = (self.at + 1) % REMEMBERED;
    }

    /// The value that `share` of them, 0 to 1, do not exceed; `None` while there are too few.
    pub fn percentile(&self, share: f64) -> Option<f64> {
        if self.values.len() < LEARNED_MIN {
            return None;
        }
        let mut sorted = self.values.clone();
        sorted.sort_by(f32::total_cmp);
        let rank = (sorted.len() as f64 * share).ceil() as usize;
        let index = rank.saturating_sub(1).min(sorted.len() - 1);
        sorted.get(index).copied().map(f64::from)
    }
}

/// How long to wait for a peer whose answers took `own` (milliseconds), when answers of all peers took
/// `all` times the median of theirs; `None`: for as long as it takes, too little is known.
pub fn delay(own: &Recent, all: &Recent) -> Option<Duration> {
    let late = own.percentile(0.95)?;
    let median = own.percentile(0.5)?;
    let usual = all.percentile(0.95).map_or(late, |times| median * times);
    let delay = late.min(usual).max(median * MEDIANS_MIN);
    let delay = Duration::from_secs_f64(delay.max(0.0) / 1e3);
    Some(delay.max(DELAY_MIN))
}

/// What hedges may cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Budget {
    saved: f64,
}

impl Budget {
    /// A question was asked.
    pub fn earn(&mut self) {
        self.saved = (self.saved + SHARE_MAX).min(SAVED_MAX);
    }

    /// Whether one more may be asked beside it.
    pub fn spend(&mut self) -> bool {
        let may = self.saved >= 1.0;
        if may {
            self.saved -= 1.0;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn recent(values: impl IntoIterator<Item = f64>) -> Recent {
        let mut recent = Recent::default();
        values.into_iter().for_each(|v| recent.push(v));
        recent
    }

    #[test]
    fn percentiles_are_of_the_newest() {
        assert_eq!(recent([1.0; 7]).percentile(0.95), None);
        let hundred = recent((1..=100).map(f64::from));
        assert_eq!(hundred.percentile(0.0), Some(37.0));
        assert_eq!(hundred.percentile(0.5), Some(68.0));
        assert_eq!(hundred.percentile(0.95), Some(97.0));
        assert_eq!(hundred.percentile(1.0), Some(100.0));
    }

    #[test]
    fn a_peer_that_stalls_often_earns_no_patience() {
        let steady = recent((0..64).map(|i| 10.0 + f64::from(i % 4) * 4.0));
        let stalling = recent((0..64).map(|i| if i % 10 == 0 { 1_000.0 } else { 10.0 }));
        let usual = recent((0..64).map(|i| if i % 40 == 0 { 80.0 } else { 1.7 }));
        assert_eq!(delay(&steady, &usual), Some(Duration::from_millis(22)));
        let patience = delay(&stalling, &usual).unwrap();
        assert!(patience.abs_diff(Duration::from_millis(17)) < Duration::from_millis(1));
        // Who answers as evenly as a clock is not late by a hair.
        let even = recent([10.0; 64]);
        assert_eq!(delay(&even, &usual), Some(Duration::from_millis(15)));
        // Nothing to compare it with: then it is as it is.
        let alone = delay(&stalling, &Recent::default());
        assert_eq!(alone, Some(Duration::from_secs(1)));
        assert_eq!(delay(&Recent::default(), &usual), None);
        assert_eq!(delay(&recent([0.1; 20]), &usual), Some(DELAY_MIN));
    }

    proptest! {
        /// Never more than a share of the questions and what was saved up before.
        #[test]
        fn the_budget_holds(wanted in prop::collection::vec(any::<bool>(), 0..2_000)) {
            let mut budget = Budget::default();
            let mut spent = 0;
            for wants in &wanted {
                budget.earn();
                spent += u32::from(*wants && budget.spend());
            }
            prop_assert!(f64::from(spent) <= SHARE_MAX * wanted.len() as f64 + 1e-6);
        }
    }
}
