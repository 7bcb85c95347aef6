//! What is retained of the purge log: the records of which something is still the last word on a scope.
//! Pure.
//!
//! A scope is hit again by the same scope, or by [`Scope::All`], as long as that is not softer. Of a record
//! nothing is kept once all of its scopes were hit again later; one of which most were is written anew with
//! what is left. So the log has at most some twice as many scopes as there are distinct ones, and of these
//! at most [`SCOPES_MAX`]: beyond, the oldest of the site that has most become one purge of all of it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use cluster::purge::{Position, Purge, Record, Scope};
use serde::{Deserialize, Serialize};

/// Most scopes that are retained: some 300 MB here, and as many as an edge with much memory keeps.
pub const SCOPES_MAX: usize = 1_000_000;
/// A record with so few scopes is not worth being written anew.
const REWRITTEN_MIN: usize = 8;
/// What a record has beside its purge when it is on its way, in bytes.
const RECORD_BYTES: usize = 160;

/// A record, as the store has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Its number, once it has been written anew; else the revision of its commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// What was asked for, or what is left of it.
    pub purge: Purge,
    /// When it was taken, in Unix milliseconds.
    pub taken_at: u64,
    /// Who asked for it.
    pub by: String,
}

/// What is to be done in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upkeep {
    /// Nothing of it counts any more.
    Delete {
        /// The item's key.
        key: String,
        /// The record's number.
        seq: u64,
    },
    /// Only this of it counts.
    Rewrite {
        /// The item's key.
        key: String,
        /// The revision of the item.
        revision: u64,
        /// What it shall hold.
        stored: Stored,
    },
}

/// The records that are retained, in order.
#[derive(Debug, Default)]
pub struct Retained {
    log: u64,
    records: BTreeMap<u64, Entry>,
    keys: HashMap<String, u64>,
    sites: HashMap<String, SiteScopes>,
    scopes: usize,
    /// Records that are worth less than what they take.
    worn: BTreeSet<u64>,
}

#[derive(Debug)]
struct Entry {
    key: String,
    revision: u64,
    stored: Arc<Stored>,
    /// How many of its scopes it has the last word on.
    live: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
struct SiteScopes {
    all: Hits,
    others: HashMap<Scope, Hits>,
}

/// The numbers of the records that hit a scope last; 0: none. A soft hit before a hard one says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Hits {
    hard: u64,
    soft: u64,
}

impl Hits {
    /// Whether a hit by the record `seq` would say nothing.
    fn covers(self, seq: u64, soft: bool) -> bool {
        self.hard > seq || (soft && self.soft > seq)
    }

    /// Takes out what a hit by the record `seq` leaves nothing of.
    fn give_up(&mut self, seq: u64, soft: bool) -> [u64; 2] {
        let mut given = [0, 0];
        if !soft && self.hard < seq {
            given[0] = std::mem::take(&mut self.hard);
        }
        if self.soft < seq {
            given[1] = std::mem::take(&mut self.soft);
        }
        given
    }
}

impl Retained {
    /// Nothing of the log `log`.
    pub fn new(log: u64) -> Self {
        Self {
            log,
            ..Self::default()
        }
    }

    /// Which log: see [`Position::log`].
    pub fn log(&self) -> u64 {
        self.log
    }

    /// All records are those of another log from now on.
    pub fn set_log(&mut self, log: u64) {
        self.log = log;
    }

    /// Where the log ends.
    pub fn head(&self) -> Position {
        Position {
            log: self.log,
            seq: self.records.keys().next_back().copied().unwrap_or(0),
        }
    }

    /// How many scopes are retained.
    pub fn scopes(&self) -> usize {
        self.scopes
    }

    /// Takes what the store has under `key` since `revision`; gives the record's number, and those of which
    /// nothing is left now. Records may come in any order, and more than once.
    pub fn put(&mut self, key: String, revision: u64, stored: Stored) -> (u64, Vec<u64>) {
        let seq = stored.seq.unwrap_or(revision);
        self.delete(&key);
        let stored = Arc::new(stored);
        let encoded = serde_json::to_vec(&*stored).map_or(0, |bytes| bytes.len());
        let entry = Entry {
            key: key.clone(),
            revision,
            stored: stored.clone(),
            live: 0,
            bytes: encoded + RECORD_BYTES,
        };
        self.records.insert(seq, entry);
        self.keys.insert(key, seq);
        let mut ended = Vec::new();
        for scope in &stored.purge.scopes {
            self.hit(&stored.purge, scope, seq, &mut ended);
        }
        self.wear(seq);
        (seq, ended)
    }

    /// The store has nothing under `key` any more.
    pub fn delete(&mut self, key: &str) {
        let Some(seq) = self.keys.remove(key) else {
            return;
        };
        self.worn.remove(&seq);
        let Some(entry) = self.records.remove(&seq) else {
            return;
        };
        let purge = &entry.stored.purge;
        let Some(site) = self.sites.get_mut(&purge.site) else {
            return;
        };
        for scope in &purge.scopes {
            let hits = match scope {
                Scope::All => Some(&mut site.all),
                other => site.others.get_mut(other),
            };
            let Some(hits) = hits else { continue };
            for place in [&mut hits.hard, &mut hits.soft] {
                if *place == seq {
                    *place = 0;
                    self.scopes -= 1;
                }
            }
            if *scope != Scope::All && *hits == Hits::default() {
                site.others.remove(scope);
            }
        }
    }

    /// The record of this number.
    pub fn record(&self, seq: u64) -> Option<Record> {
        let entry = self.records.get(&seq)?;
        let before = self.records.range(..seq).next_back();
        Some(self.told(seq, before.map_or(0, |(before, _)| *before), entry))
    }

    /// The records behind `after`, at most `limit`, and of at most `bytes_max` bytes unless the first has
    /// more; and up to which number one lacks nothing with them.
    pub fn page(&self, after: u64, limit: usize, bytes_max: usize) -> (Vec<Record>, u64) {
        let mut prev = self.records.range(..=after).next_back();
        let (mut records, mut bytes) = (Vec::new(), 0);
        for (seq, entry) in self.records.range(after.saturating_add(1)..) {
            bytes += entry.bytes;
            if records.len() >= limit || (bytes > bytes_max && !records.is_empty()) {
                return (records, prev.map_or(0, |(seq, _)| *seq));
            }
            records.push(self.told(*seq, prev.map_or(0, |(seq, _)| *seq), entry));
            prev = Some((seq, entry));
        }
        (records, self.head().seq.max(after))
    }

    /// Behind which number the last `count` records are.
    pub fn before_last(&self, count: usize) -> u64 {
        let before = self.records.keys().rev().nth(count);
        before.copied().unwrap_or(0)
    }

    /// What is to be done in the store; nothing is told twice.
    pub fn upkeep(&mut self) -> Vec<Upkeep> {
        let worn = std::mem::take(&mut self.worn);
        let mut all: Vec<_> = worn.iter().filter_map(|seq| self.mended(*seq)).collect();
        if self.scopes > SCOPES_MAX {
            all.extend(self.folded());
        }
        all
    }

    fn told(&self, seq: u64, prev: u64, entry: &Entry) -> Record {
        Record {
            at: Position { log: self.log, seq },
            prev,
            purge: entry.stored.purge.clone(),
            taken_at: entry.stored.taken_at,
            by: entry.stored.by.clone(),
        }
    }

    fn hit(&mut self, purge: &Purge, scope: &Scope, seq: u64, ended: &mut Vec<u64>) {
        let site = self.sites.entry(purge.site.clone()).or_default();
        if site.all.covers(seq, purge.soft) {
            return;
        }
        let hits = match scope {
            Scope::All => &mut site.all,
            other => site.others.entry(other.clone()).or_default(),
        };
        if hits.covers(seq, purge.soft) {
            return;
        }
        let mut given = hits.give_up(seq, purge.soft).to_vec();
        match purge.soft {
            true => hits.soft = seq,
            false => hits.hard = seq,
        }
        if *scope == Scope::All {
            site.others.retain(|_, hits| {
                given.extend(hits.give_up(seq, purge.soft));
                *hits != Hits::default()
            });
        }
        self.scopes += 1;
        if let Some(entry) = self.records.get_mut(&seq) {
            entry.live += 1;
        }
        for seq in given.into_iter().filter(|seq| *seq != 0) {
            self.scopes -= 1;
            if let Some(entry) = self.records.get_mut(&seq) {
                entry.live -= 1;
                if entry.live == 0 {
                    ended.push(seq);
                }
            }
            self.wear(seq);
        }
    }

    /// Notes a record of which too little is left.
    fn wear(&mut self, seq: u64) {
        if let Some(entry) = self.records.get(&seq) {
            let all = entry.stored.purge.scopes.len();
            if entry.live == 0 || (all > REWRITTEN_MIN && entry.live * 2 < all) {
                self.worn.insert(seq);
            }
        }
    }

    fn mended(&self, seq: u64) -> Option<Upkeep> {
        let entry = self.records.get(&seq)?;
        let key = entry.key.clone();
        if entry.live == 0 {
            return Some(Upkeep::Delete { key, seq });
        }
        let mut stored = (*entry.stored).clone();
        let site = self.sites.get(&stored.purge.site)?;
        stored.seq = Some(seq);
        stored.purge.scopes.retain(|scope| {
            let hits = match scope {
                Scope::All => Some(&site.all),
                other => site.others.get(other),
            };
            hits.is_some_and(|hits| hits.hard == seq || hits.soft == seq)
        });
        Some(Upkeep::Rewrite {
            key,
            revision: entry.revision,
            stored,
        })
    }

    /// The oldest quarter of the site that has most scopes, as one record.
    fn folded(&self) -> Option<Upkeep> {
        let size = |site: &SiteScopes| site.others.len();
        let (name, site) = self.sites.iter().max_by_key(|(_, site)| size(site))?;
        let others = site.others.values();
        let mut numbers: Vec<u64> = others
            .flat_map(|hits| [hits.hard, hits.soft])
            .filter(|seq| *seq != 0)
            .collect();
        if numbers.is_empty() {
            return None;
        }
        let quarter = numbers.len() / 4;
        let (_, last, _) = numbers.select_nth_unstable(quarter);
        let last = *last;
        let hard = site
            .others
            .values()
            .any(|hits| (1..=last).contains(&hits.hard));
        let entry = self.records.get(&last)?;
        Some(Upkeep::Rewrite {
            key: entry.key.clone(),
            revision: entry.revision,
            stored: Stored {
                seq: Some(last),
                purge: Purge {
                    site: name.clone(),
                    scopes: vec![Scope::All],
                    soft: !hard,
                },
                taken_at: entry.stored.taken_at,
                by: entry.stored.by.clone(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stored(site: &str, scopes: &[Scope], soft: bool) -> Stored {
        Stored {
            seq: None,
            purge: Purge {
                site: site.to_owned(),
                scopes: scopes.to_vec(),
                soft,
            },
            taken_at: 7,
            by: "me".into(),
        }
    }

    const NONE: [u64; 0] = [];

    fn tag(n: usize) -> Scope {
        Scope::Tag(format!("t{n}"))
    }

    fn numbers(page: &(Vec<Record>, u64)) -> Vec<(u64, u64)> {
        page.0.iter().map(|r| (r.prev, r.at.seq)).collect()
    }

    fn keep(retained: &mut Retained) {
        for upkeep in retained.upkeep() {
            match upkeep {
                Upkeep::Delete { key, .. } => retained.delete(&key),
                Upkeep::Rewrite { key, stored, .. } => drop(retained.put(key, 1 << 40, stored)),
            }
        }
    }

    #[test]
    fn a_record_goes_when_all_of_it_was_hit_again_at_least_as_hard() {
        let mut log = Retained::new(9);
        let put = |log: &mut Retained, seq: u64, scopes: &[Scope], soft| {
            let ended = log.put(format!("k{seq}"), seq, stored("a", scopes, soft)).1;
            keep(log);
            ended
        };
        assert_eq!(put(&mut log, 3, &[tag(1), tag(2)], false), NONE);
        assert_eq!(put(&mut log, 5, &[tag(1)], true), NONE, "softer");
        assert_eq!(put(&mut log, 8, &[tag(1)], false), [5]);
        assert_eq!(numbers(&log.page(0, 9, 9_999)), [(0, 3), (3, 8)]);
        assert_eq!(put(&mut log, 9, &[tag(2)], false), [3]);
        assert_eq!(numbers(&log.page(0, 9, 9_999)), [(0, 8), (8, 9)]);
        assert_eq!(put(&mut log, 12, &[Scope::All], true), NONE);
        assert_eq!(put(&mut log, 13, &[tag(3)], true), NONE);
        assert_eq!(put(&mut log, 14, &[Scope::All], true), [12, 13]);
        assert_eq!(put(&mut log, 20, &[Scope::All], false).len(), 3);
        assert_eq!(numbers(&log.page(0, 9, 9_999)), [(0, 20)]);
        assert_eq!(log.scopes(), 1);
        assert_eq!(log.head(), Position { log: 9, seq: 20 });
        // Another site is another one.
        log.put("k21".into(), 21, stored("b", &[tag(1)], false));
        assert_eq!(log.scopes(), 2);
    }

    #[test]
    fn a_page_says_up_to_where_it_goes() {
        let mut log = Retained::new(9);
        assert_eq!(log.page(0, 9, 9_999), (vec![], 0));
        for seq in [2, 4, 7] {
            log.put(
                format!("k{seq}"),
                seq,
                stored("a", &[tag(seq as usize)], false),
            );
        }
        let page = log.page(0, 2, 9_999);
        assert_eq!((numbers(&page), page.1), (vec![(0, 2), (2, 4)], 4));
        let page = log.page(3, 2, 9_999);
        assert_eq!((numbers(&page), page.1), (vec![(2, 4), (4, 7)], 7));
        let page = log.page(2, 9, 1);
        assert_eq!((numbers(&page), page.1), (vec![(2, 4)], 4), "one at least");
        assert_eq!(log.page(7, 9, 9_999), (vec![], 7));
        assert_eq!(log.page(u64::MAX, 9, 9_999).0, []);
        let last = [1, 2, 3, 4].map(|count| log.before_last(count));
        assert_eq!(last, [4, 2, 0, 0]);
    }

    #[test]
    fn a_record_of_which_little_is_left_is_written_anew_under_its_number() {
        let mut log = Retained::new(9);
        let many: Vec<_> = (0..20).map(tag).collect();
        log.put("k1".into(), 1, stored("a", &many, false));
        log.put("k2".into(), 2, stored("a", &many[..10], false));
        assert_eq!(log.upkeep(), []);
        log.put("k3".into(), 3, stored("a", &many[9..12], false));
        let upkeep = log.upkeep();
        let [
            Upkeep::Rewrite {
                key,
                revision: 1,
                stored,
            },
        ] = &upkeep[..]
        else {
            panic!("{upkeep:?}");
        };
        assert_eq!((&**key, stored.seq), ("k1", Some(1)));
        assert_eq!(stored.purge.scopes, many[12..]);
        assert_eq!(log.put(key.clone(), 4, stored.clone()), (1, vec![]));
        assert_eq!(log.scopes(), 20);
        assert_eq!(numbers(&log.page(0, 9, 99_999)), [(0, 1), (1, 2), (2, 3)]);
    }

    #[test]
    fn too_many_scopes_become_one_purge_of_the_site_they_are_of() {
        let mut log = Retained::new(9);
        let per_record = 1_000;
        let records = SCOPES_MAX / per_record;
        for seq in 1..=records {
            let scopes: Vec<_> = (0..per_record).map(|n| tag(seq * per_record + n)).collect();
            log.put(
                format!("k{seq}"),
                seq as u64,
                stored("a", &scopes, seq % 2 == 0),
            );
        }
        assert_eq!((log.scopes(), log.upkeep()), (SCOPES_MAX, vec![]));
        log.put("b".into(), 5_000, stored("b", &[tag(1)], true));
        keep(&mut log);
        // The rest of what the fold has worn.
        keep(&mut log);
        let quarter = SCOPES_MAX / 4;
        // The quarter, and what else was in the record in which it ended.
        assert!(log.scopes() <= SCOPES_MAX - quarter + 2, "{}", log.scopes());
        assert!(log.scopes() > SCOPES_MAX - quarter - 2 * per_record);
        let first = &log.page(0, 1, 1).0[0];
        assert_eq!(first.purge.scopes, [Scope::All]);
        assert!(!first.purge.soft, "one of them was hard");
        assert_eq!(first.at.seq, records as u64 / 4 + 1);
    }

    fn some_stored() -> impl Strategy<Value = Stored> {
        let scope = prop_oneof![
            4 => (0_usize..5).prop_map(tag),
            1 => Just(Scope::All),
        ];
        let scopes = proptest::collection::btree_set(scope, 1..4);
        ("[ab]", scopes, any::<bool>()).prop_map(|(site, scopes, soft)| {
            let all = scopes.contains(&Scope::All).then(|| vec![Scope::All]);
            let scopes = all.unwrap_or_else(|| scopes.into_iter().collect());
            stored(&site, &scopes, soft)
        })
    }

    /// For every scope of every site, the last hard hit, and the last soft one if it was later.
    fn effect<'a>(
        records: impl Iterator<Item = (u64, &'a Stored)>,
    ) -> BTreeMap<(String, usize), (u64, u64)> {
        let mut effect = BTreeMap::<_, (u64, u64)>::new();
        let mut records: Vec<_> = records.collect();
        records.sort_by_key(|(seq, _)| *seq);
        for (seq, stored) in records {
            for n in 0..5 {
                let scopes = &stored.purge.scopes;
                if scopes.contains(&tag(n)) || scopes.contains(&Scope::All) {
                    let hits = effect.entry((stored.purge.site.clone(), n)).or_default();
                    match stored.purge.soft {
                        true => hits.1 = seq,
                        false => *hits = (seq, 0),
                    }
                }
            }
        }
        effect
    }

    proptest! {
        /// What is retained says the same as the whole log, in whatever order it came and however often
        /// the store was tidied in between.
        #[test]
        fn nothing_that_counts_is_lost(
            history in proptest::collection::vec(some_stored(), 1..30),
            order in any::<u64>(),
            tidied in any::<u64>(),
        ) {
            let mut log = Retained::new(9);
            let mut numbered: Vec<_> = history.iter().enumerate().collect();
            if order % 2 == 1 {
                let len = numbered.len() as u64;
                numbered.sort_by_key(|(n, _)| (*n as u64).wrapping_mul(order) % (len + 7));
            }
            for (step, (n, stored)) in numbered.into_iter().enumerate() {
                let seq = n as u64 + 1;
                log.put(format!("k{seq}"), seq, stored.clone());
                if tidied >> (step % 64) & 1 == 1 {
                    keep(&mut log);
                }
            }
            keep(&mut log);
            let whole = history.iter().enumerate().map(|(n, s)| (n as u64 + 1, s));
            let kept: Vec<_> = log.page(0, 100, usize::MAX).0;
            let kept: Vec<_> = kept.into_iter().map(|r| (r.at.seq, Stored {
                seq: None, purge: r.purge, taken_at: 0, by: String::new(),
            })).collect();
            prop_assert_eq!(effect(kept.iter().map(|(seq, s)| (*seq, s))), effect(whole));
            // Distinct scopes, hard and soft, of two sites.
            prop_assert!(kept.len() <= 24);
            let live: usize = log.records.values().map(|entry| entry.live).sum();
            prop_assert_eq!(live, log.scopes());
        }
    }
}
