//! What other nodes have asked this one for lately, and so what their region wants. Pure; told the time.

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    time::Duration,
};

use cluster::{key::Key, node::NodeId};
use tokio::time::Instant;

/// So many nodes of a region that ask for one object within two windows make it hot there: the first may
/// be the only one, the second tells that it is not.
pub const ASKERS_HOT: usize = 2;
/// How long a window is.
const WINDOW: Duration = Duration::from_secs(30);
/// Most keys counted in one window, some 100 bytes each. What is hot comes early; what comes when all
/// places are taken is counted in the next window.
const KEYS_MAX: usize = 8_192;
/// Most askers remembered of one key in one window.
const ASKERS_MAX: usize = 32;

/// Counts who has asked for what, in two windows: the one that goes on, and the one before it.
#[derive(Debug, Default)]
pub struct Demand {
    current: HashMap<Key, Heat>,
    previous: HashMap<Key, Heat>,
    since: Option<Instant>,
}

/// Who has asked for one key. Names and regions by their hashes: a collision makes an object hot a
/// little late.
#[derive(Clone, Debug, Default)]
struct Heat {
    askers: Vec<(u64, u64)>,
    /// The regions in which it was found to be hot.
    told: Vec<u64>,
}

impl Demand {
    /// `node`, of `region`, has asked for `key`. If that makes it hot there, once until it has cooled down
    /// again: says who has asked ([`name`] of each).
    pub fn asked(
        &mut self,
        key: Key,
        node: &NodeId,
        region: &str,
        now: Instant,
    ) -> Option<Vec<u64>> {
        let since = *self.since.get_or_insert(now);
        let passed = now.saturating_duration_since(since);
        if passed >= WINDOW {
            self.previous = std::mem::take(&mut self.current);
            if passed >= 2 * WINDOW {
                self.previous.clear();
            }
            self.since = Some(now);
        }
        if self.current.len() >= KEYS_MAX && !self.current.contains_key(&key) {
            return None;
        }
        let (asker, region) = (name(node), hash(region));
        let heat = self.current.entry(key).or_default();
        if heat.askers.len() < ASKERS_MAX && !heat.askers.contains(&(asker, region)) {
            heat.askers.push((asker, region));
        }
        let before = self.previous.get(&key);
        let told = |heat: &Heat| heat.told.contains(&region);
        if told(heat) || before.is_some_and(told) {
            return None;
        }
        let earlier = before.map_or(&[][..], |heat| &heat.askers);
        let both = heat.askers.iter().chain(earlier);
        let mut askers: Vec<_> = both
            .filter(|(_, of)| *of == region)
            .map(|(asker, _)| *asker)
            .collect();
        askers.sort_unstable();
        askers.dedup();
        if askers.len() < ASKERS_HOT {
            return None;
        }
        heat.told.push(region);
        Some(askers)
    }
}

/// What a node is called among askers.
pub fn name(node: &NodeId) -> u64 {
    hash(node.as_str())
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// How many bytes may be given away: so many a second, and a debt that is paid before there is more, so
/// that a large object is possible, and the average kept.
#[derive(Debug)]
pub struct Budget {
    bytes_per_s: u64,
    left: f64,
    at: Option<Instant>,
}

impl Budget {
    /// For `bytes_per_s` on average; no more than one second's worth is saved up.
    pub fn new(bytes_per_s: u64) -> Self {
        Self {
            bytes_per_s,
            left: bytes_per_s as f64,
            at: None,
        }
    }

    /// Takes `bytes`, if there is anything left.
    pub fn take(&mut self, bytes: u64, now: Instant) -> bool {
        let most = self.bytes_per_s as f64;
        let since = self
            .at
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = Some(now);
        self.left = (self.left + most * since.as_secs_f64()).min(most);
        let is_left = self.left > 0.0;
        if is_left {
            self.left -= bytes as f64;
        }
        is_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn key(text: &str) -> Key {
        Key::of(&[text.as_bytes()])
    }

    fn id(text: &str) -> NodeId {
        text.parse().unwrap()
    }

    #[test]
    fn what_two_nodes_of_a_region_want_is_hot_there_once() {
        let (mut demand, begun) = (Demand::default(), Instant::now());
        let mut asked = |object: &str, node: &str, region: &str, after_s: u32| {
            let now = begun + SECOND * after_s;
            let hot = demand.asked(key(object), &id(node), region, now);
            hot.map(|askers| askers.len())
        };
        assert_eq!(asked("a", "eu-1", "eu", 0), None);
        // The same node again, another region, another object.
        assert_eq!(asked("a", "eu-1", "eu", 1), None);
        assert_eq!(asked("a", "us-1", "us", 1), None);
        assert_eq!(asked("b", "eu-2", "eu", 1), None);
        assert_eq!(asked("a", "eu-2", "eu", 2), Some(2));
        assert_eq!(asked("a", "eu-3", "eu", 3), None);
        // The window before counts, and what was told in it.
        assert_eq!(asked("a", "us-2", "us", 31), Some(2));
        assert_eq!(asked("a", "eu-4", "eu", 32), None);
        // It has cooled down.
        assert_eq!(asked("a", "eu-5", "eu", 100), None);
        assert_eq!(asked("a", "eu-6", "eu", 101), Some(2));
    }

    #[test]
    fn keys_and_askers_are_bounded() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        for n in 0..KEYS_MAX + 100 {
            demand.asked(key(&n.to_string()), &id("a"), "eu", now);
        }
        assert_eq!(demand.current.len(), KEYS_MAX);
        for n in 0..ASKERS_MAX + 100 {
            demand.asked(key("0"), &id(&format!("n{n}")), "eu", now);
        }
        assert_eq!(demand.current[&key("0")].askers.len(), ASKERS_MAX);
    }

    #[test]
    fn a_budget_is_kept_on_average() {
        let begun = Instant::now();
        for object in [1, 300, 1_000, 25_000] {
            let mut budget = Budget::new(1_000);
            let mut given = 0;
            for tenth in 0..1_000 {
                if budget.take(object, begun + SECOND / 10 * tenth) {
                    given += object;
                }
            }
            // A hundred seconds' worth, and at most one object and one second more.
            assert!(given <= 100_000 + object + 1_000, "{object}: {given}");
            assert!(object == 1 || given >= 90_000, "{object}: {given}");
        }
        assert!(!Budget::new(0).take(1, begun));
    }
}
