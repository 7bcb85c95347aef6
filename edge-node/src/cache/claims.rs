//! What of the objects here is told to other nodes: what they get when they ask for it, which a holder gives
//! away only as long as it is fresh. How large it is does not matter: a small object costs who asks one round
//! trip, as it would at the origin, and whether that pays is measured there for small and large ones apart.
//!
//! A claim is withdrawn when the object's life ends. Beyond [`WITHDRAWALS_MAX`] at once, and after a restart,
//! that takes the first who asks in vain.

use std::{
    collections::{BTreeMap, hash_map::Entry as Slot},
    sync::MutexGuard,
};

use cluster::key::{Key, KeyMap};

use super::{Cache, entry::Head, policy::Freshness};

/// An object with less life than this is not claimed: before others have heard of it, one or two seconds, and
/// have fetched it, little would be left.
const LIFE_MIN_MS: u64 = 5_000;
/// A claim is withdrawn so long before the end of life, for that is how long others do not hear of it.
const LAG_MS: u64 = 2_000;
/// Claims whose end is remembered: 8 MiB at most.
const WITHDRAWALS_MAX: usize = 1 << 17;
/// The same with ends that were put off since: what is renewed beyond that ends when it would have before.
const ENDS_MAX: usize = 2 * WITHDRAWALS_MAX;

/// Until when an object with this freshness is to be claimed, in Unix milliseconds; `None`: not at all.
///
/// A validator makes nothing worth claiming: whoever asks may not use what is stale, and asks the home or the
/// origin whether its own copy holds.
fn claimed_until(freshness: &Freshness, now_ms: u64) -> Option<u64> {
    let life = freshness.lifetime.checked_sub(freshness.age(now_ms))?;
    let life_ms = u64::try_from(life.as_millis()).unwrap_or(u64::MAX);
    let is_worth_it = !freshness.no_cache && life_ms >= LIFE_MIN_MS;
    is_worth_it.then(|| now_ms.saturating_add(life_ms - LAG_MS))
}

/// When claims end. Pure.
#[derive(Debug, Default)]
pub(super) struct Withdrawals {
    until_s: KeyMap<u64>,
    due: BTreeMap<u64, Vec<Key>>,
    /// Keys in `due`, some of them several times.
    ends: usize,
}

impl Withdrawals {
    /// `key` is claimed until then. Of several objects under it, variants, the one that lives longest counts.
    fn claimed(&mut self, key: Key, until_s: u64) {
        if self.ends >= ENDS_MAX {
            return;
        }
        let is_full = self.until_s.len() >= WITHDRAWALS_MAX;
        match self.until_s.entry(key) {
            Slot::Occupied(known) if *known.get() >= until_s => return,
            Slot::Occupied(mut known) => {
                known.insert(until_s);
            }
            Slot::Vacant(_) if is_full => return,
            Slot::Vacant(new) => {
                new.insert(until_s);
            }
        }
        self.due.entry(until_s).or_default().push(key);
        self.ends += 1;
    }

    /// The next claims to end by now, of one second; empty when there are none.
    fn ended(&mut self, now_s: u64) -> Vec<Key> {
        while let Some(first) = self.due.first_entry().filter(|first| *first.key() <= now_s) {
            let (at, mut keys) = first.remove_entry();
            self.ends -= keys.len();
            // What was renewed since ends later.
            keys.retain(|key| self.until_s.get(key) == Some(&at));
            for key in &keys {
                self.until_s.remove(key);
            }
            if !keys.is_empty() {
                return keys;
            }
        }
        Vec::new()
    }
}

impl Cache {
    /// Tells others that an object with this head is here under `key`, if it is worth asking for.
    pub(super) fn announce(&self, key: Key, head: &Head) {
        match claimed_until(&head.freshness, head.asked_ms) {
            Some(until_ms) => {
                self.withdrawals().claimed(key, until_ms / 1_000);
                self.holdings().add(key);
            }
            None => {
                self.holdings().remove(key);
            }
        }
    }

    /// Withdraws the claims of what is about to become stale. To be called every second or so.
    pub fn withdraw_ended(&self, now_ms: u64) {
        loop {
            let ended = self.withdrawals().ended(now_ms / 1_000);
            if ended.is_empty() {
                return;
            }
            let mut holdings = self.holdings();
            for key in ended {
                holdings.remove(key);
            }
        }
    }

    fn withdrawals(&self) -> MutexGuard<'_, Withdrawals> {
        let withdrawals = self.shared.withdrawals.lock();
        withdrawals.expect("no code panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use http::{HeaderMap, StatusCode, header};
    use proptest::prelude::*;

    use super::*;
    use crate::cache::policy::Rules;

    #[test]
    fn what_is_fresh_for_a_while_is_claimed_until_it_no_longer_is() {
        const NOW: u64 = 1_790_000_000_000;
        for (control, age_s, for_ms) in [
            ("max-age=600", 0, Some(598_000)),
            ("max-age=600", 590, Some(8_000)),
            ("max-age=600", 594, Some(4_000)),
            ("max-age=600", 596, None),
            ("max-age=600", 10_000, None),
            ("max-age=5", 0, Some(3_000)),
            ("max-age=4", 0, None),
            ("max-age=0, stale-while-revalidate=600", 0, None),
            ("max-age=600, no-cache", 0, None),
            ("s-maxage=60, max-age=0", 0, Some(58_000)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CACHE_CONTROL, control.parse().unwrap());
            headers.insert(header::AGE, age_s.into());
            headers.insert(header::ETAG, "\"1\"".parse().unwrap());
            let freshness = Freshness::of(StatusCode::OK, &headers, &Rules::default(), NOW);
            let until = claimed_until(&freshness, NOW);
            assert_eq!(until.map(|at| at - NOW), for_ms, "{control}, {age_s} s old");
        }
    }

    proptest! {
        /// Every claim ends when it should, once, whatever was said of the same key before; and no more
        /// are remembered than may be.
        #[test]
        fn claims_end_in_time(said in prop::collection::vec((0..20_u128, 0..50_u64), 0..200)) {
            let mut withdrawals = Withdrawals::default();
            let mut expected: HashMap<Key, u64> = HashMap::new();
            for (key, until) in said {
                withdrawals.claimed(Key(key), until);
                let latest = expected.entry(Key(key)).or_default();
                *latest = until.max(*latest);
            }
            for now in 0..50 {
                loop {
                    let ended = withdrawals.ended(now);
                    if ended.is_empty() {
                        break;
                    }
                    for key in ended {
                        prop_assert_eq!(expected.remove(&key), Some(now));
                    }
                }
            }
            prop_assert!(expected.is_empty());
            prop_assert!(withdrawals.due.is_empty() && withdrawals.until_s.is_empty());
            prop_assert_eq!(withdrawals.ends, 0);
        }
    }

    #[test]
    fn of_more_than_may_be_remembered_the_end_is_not() {
        let mut withdrawals = Withdrawals::default();
        for key in 0..WITHDRAWALS_MAX as u128 + 10 {
            withdrawals.claimed(Key(key), 7);
        }
        assert_eq!(withdrawals.ended(7).len(), WITHDRAWALS_MAX);
        // Nor is what is renewed without end.
        for until in 0..ENDS_MAX as u64 * 2 {
            withdrawals.claimed(Key(1), until);
        }
        assert_eq!(withdrawals.ends, ENDS_MAX);
    }
}
