//! What is kept of purges: for each scope the last place in the log that hit it. Pure.
//!
//! Scopes are kept in segments, the oldest first. When there is no room for another one, the oldest segment
//! of the site that has most is forgotten, and everything of the site from before its newest scope counts
//! as hit from then on (its *floor*): that costs fetches, and is never wrong.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
};

use serde::{Deserialize, Serialize};

use super::{
    Position,
    scope::{self, Kind, Mark, Step},
};

/// Most scopes in one segment: what a hash table of 65,536 places takes before it grows.
const SEGMENT_SCOPES_MAX: usize = 57_344;
/// A table has so many segments at least when it is full, so that little is forgotten at once.
const SEGMENTS_MIN: usize = 8;
/// Records remembered that came before the one in front of them; those with greater numbers are in
/// force, but asked for again.
const AHEAD_MAX: usize = 4_096;
/// What the name of a site and its own marks take, beside its scopes, in bytes.
const SITE_BYTES: usize = 256;

/// The places that hit a scope last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// So that what is older is gone.
    pub hard: Position,
    /// So that what is older is stale.
    pub soft: Position,
}

impl Marks {
    fn of(at: Position, soft: bool) -> Self {
        let none = Position::default();
        match soft {
            true => Self {
                hard: none,
                soft: at,
            },
            false => Self {
                hard: at,
                soft: none,
            },
        }
    }

    fn join(&mut self, other: Self) {
        self.hard = self.hard.max(other.hard);
        self.soft = self.soft.max(other.soft);
    }

    fn newest(self) -> Position {
        self.hard.max(self.soft)
    }

    /// What of it says more than `floor` does.
    fn above(self, floor: Self) -> Self {
        let over =
            |at: Position, floor: Position| if at > floor { at } else { Position::default() };
        let hard = over(self.hard, floor.hard);
        let soft = over(self.soft, floor.newest().max(hard));
        Self { hard, soft }
    }
}

/// What a purge says of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is newer than all that hit it.
    Good,
    /// A soft purge hit it: it is as if its lifetime had ended.
    Stale,
    /// It must not be used any more.
    Gone,
}

/// An object, as purges know it.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    /// The site's name.
    pub site: &'a str,
    /// The host, as cache keys have it.
    pub host: &'a str,
    /// Path and query, as the site's rules name it.
    pub target: &'a [u8],
    /// The tags that its origin gave it.
    pub tags: &'a [&'a [u8]],
    /// The place that it is known to be newer than.
    pub as_of: Position,
}

/// What hit an object, for explanations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hit {
    /// The scope.
    pub scope: String,
    /// The place in the log.
    pub at: Position,
    /// Whether only softly.
    pub soft: bool,
}

/// That who has everything up to `from`, and what came with it, has everything up to `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    /// Where a page of the log began.
    pub from: Position,
    /// Where it ended.
    pub to: Position,
}

/// All that is kept of purges on one node, or in one simulation.
#[derive(Clone, Debug)]
pub struct Table {
    sites: HashMap<String, SiteScopes>,
    /// Of every site.
    floor: Marks,
    applied: Position,
    /// Places beyond a gap, each with the number before it.
    ahead: BTreeMap<Position, u64>,
    scopes: usize,
    scopes_max: usize,
}

#[derive(Clone, Debug, Default)]
struct SiteScopes {
    floor: Marks,
    /// The last place that hit anything.
    newest: Position,
    segments: VecDeque<Segment>,
    /// Lengths that prefixes have, of all that there ever were.
    lengths: BTreeSet<u16>,
}

#[derive(Clone, Debug, Default)]
struct Segment {
    scopes: HashMap<u128, Marks, BuildHasherDefault<Hashed>>,
    newest: Position,
}

/// For keys that are hashes already.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }
}

/// A table as it is written down.
#[derive(Serialize, Deserialize)]
struct Snapshot {
    floor: Marks,
    applied: Position,
    ahead: Vec<(Position, u64)>,
    sites: Vec<SiteSnapshot>,
}

#[derive(Serialize, Deserialize)]
struct SiteSnapshot {
    name: String,
    floor: Marks,
    lengths: BTreeSet<u16>,
    /// The oldest first.
    scopes: Vec<(u128, Marks)>,
}

/// What a table says, in one order: two that say the same are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    applied: Position,
    floor: Marks2,
    sites: BTreeMap<String, (Marks2, BTreeMap<u128, Marks2>)>,
}

type Marks2 = (Position, Position);

impl Table {
    /// An empty one, for at most so many scopes.
    pub fn new(scopes_max: usize) -> Self {
        Self {
            sites: HashMap::new(),
            floor: Marks::default(),
            applied: Position::default(),
            ahead: BTreeMap::new(),
            scopes: 0,
            scopes_max: scopes_max.max(1),
        }
    }

    /// Up to which place nothing is missing.
    pub fn applied(&self) -> Position {
        self.applied
    }

    /// Whether there are records beyond a gap.
    pub fn has_gap(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// How many scopes are remembered, sites counted as well.
    pub fn scopes(&self) -> usize {
        self.scopes + self.sites.len()
    }

    /// What it takes in memory, roughly.
    pub fn bytes(&self) -> usize {
        let segments = self.sites.values().flat_map(|site| &site.segments);
        let places = segments.map(|segment| segment.scopes.capacity() * 8 / 7);
        let each = size_of::<(u128, Marks)>() + 1;
        places.sum::<usize>() * each + self.sites.len() * SITE_BYTES
    }

    /// Takes a purge in. It is in force when this returns, whatever came before or is missing. To take it
    /// again, or after later ones, makes no difference. Says whether it was news.
    pub fn take(&mut self, step: &Step) -> bool {
        let marks = Marks::of(step.at, step.soft);
        let mut is_news = false;
        for mark in &step.marks {
            is_news |= self.mark(&step.site, *mark, marks);
        }
        if step.at > self.applied {
            is_news |= self.ahead.insert(step.at, step.prev).is_none();
            if self.ahead.len() > AHEAD_MAX {
                self.ahead.pop_last();
            }
            self.advance();
        }
        is_news
    }

    /// Takes in that nothing was left out of a page of the log.
    pub fn pass(&mut self, Passage { from, to }: Passage) {
        let in_turn = from.log == to.log && (from <= self.applied || from.seq == 0);
        if in_turn && to > self.applied {
            self.applied = to;
        }
        self.advance();
    }

    /// Whether nothing at all of a site was hit since `as_of`.
    pub fn is_untouched(&self, site: &str, as_of: Position) -> bool {
        let site = self.sites.get(site);
        let newest = site.map(|site| site.newest).unwrap_or_default();
        as_of >= newest.max(self.floor.newest())
    }

    /// What purges say of an object.
    pub fn judge(&self, object: &Object<'_>) -> Verdict {
        if self.is_untouched(object.site, object.as_of) {
            return Verdict::Good;
        }
        let site = self.sites.get(object.site);
        let mut marks = self.floor;
        if let Some(site) = site {
            marks.join(site.floor);
            site.each(object, |_, hit| {
                marks.join(hit);
                marks.hard > object.as_of
            });
        }
        if marks.hard > object.as_of {
            Verdict::Gone
        } else if marks.soft > object.as_of {
            Verdict::Stale
        } else {
            Verdict::Good
        }
    }

    /// Everything that hit an object, the newest first.
    pub fn hits(&self, object: &Object<'_>) -> Vec<Hit> {
        let mut hits = Vec::new();
        let mut add = |scope: &str, marks: Marks| {
            for (at, soft) in [(marks.hard, false), (marks.soft, true)] {
                if at > object.as_of {
                    let scope = scope.to_owned();
                    hits.push(Hit { scope, at, soft });
                }
            }
        };
        add("older than what is remembered of all sites", self.floor);
        if let Some(site) = self.sites.get(object.site) {
            add(
                "all of the site, or older than what is remembered of it",
                site.floor,
            );
            site.each(object, |scope, marks| {
                add(&scope.to_string(), marks);
                false
            });
        }
        hits.sort_by_key(|hit| (std::cmp::Reverse(hit.at), hit.soft));
        hits
    }

    /// All of it, as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let site = |(name, site): (&String, &SiteScopes)| SiteSnapshot {
            name: name.clone(),
            floor: site.floor,
            lengths: site.lengths.clone(),
            scopes: (site.segments.iter())
                .flat_map(|segment| segment.scopes.iter().map(|(hash, marks)| (*hash, *marks)))
                .collect(),
        };
        let snapshot = Snapshot {
            floor: self.floor,
            applied: self.applied,
            ahead: self.ahead.iter().map(|(at, prev)| (*at, *prev)).collect(),
            sites: self.sites.iter().map(site).collect(),
        };
        postcard::to_stdvec(&snapshot).expect("plain data of known length")
    }

    /// Reads it back; `None` if that is not what these bytes are.
    pub fn from_bytes(bytes: &[u8], scopes_max: usize) -> Option<Self> {
        let snapshot: Snapshot = postcard::from_bytes(bytes).ok()?;
        let mut table = Self {
            floor: snapshot.floor,
            applied: snapshot.applied,
            ahead: snapshot.ahead.into_iter().collect(),
            ..Self::new(scopes_max)
        };
        for site in snapshot.sites {
            let own = table.sites.entry(site.name.clone()).or_default();
            own.floor = site.floor;
            own.newest = site.floor.newest();
            own.lengths = site.lengths;
            for (hash, marks) in site.scopes {
                table.put(&site.name, hash, marks);
            }
        }
        Some(table)
    }

    /// What it says.
    pub fn said(&self) -> Said {
        let pair = |marks: Marks| (marks.hard, marks.soft);
        let sites = self.sites.iter().map(|(name, site)| {
            let mut floor = site.floor;
            floor.join(self.floor);
            let scopes = site.segments.iter().flat_map(|segment| &segment.scopes);
            let scopes = scopes
                .map(|(hash, marks)| (*hash, marks.above(floor)))
                .filter(|(_, marks)| *marks != Marks::default())
                .map(|(hash, marks)| (hash, pair(marks)));
            let own = site.floor.above(Marks::default());
            (name.clone(), (pair(own), scopes.collect()))
        });
        Said {
            applied: self.applied,
            floor: pair(self.floor.above(Marks::default())),
            sites: sites.collect(),
        }
    }

    /// Goes on to the last place before a gap. A later log counts from its first record: what of an
    /// earlier one is missing, nobody has any more.
    fn advance(&mut self) {
        loop {
            self.ahead = self.ahead.split_off(&Position {
                seq: self.applied.seq.saturating_add(1),
                ..self.applied
            });
            let applied = self.applied;
            let later = Position {
                log: applied.log.saturating_add(1),
                seq: 0,
            };
            let first = self.ahead.iter().next();
            let next = first
                .filter(|(at, prev)| at.log == applied.log && **prev <= applied.seq)
                .or_else(|| {
                    let mut later = self.ahead.range(later..);
                    later.next().filter(|(_, prev)| **prev == 0)
                });
            match next {
                Some((at, _)) => self.applied = *at,
                None => return,
            }
        }
    }

    fn mark(&mut self, site: &str, mark: Mark, marks: Marks) -> bool {
        if !self.sites.contains_key(site) {
            self.sites.insert(site.to_owned(), SiteScopes::default());
        }
        let Some(own) = self.sites.get_mut(site) else {
            return false;
        };
        match mark {
            Mark::All => {
                let before = own.floor;
                own.floor.join(marks);
                own.newest = own.newest.max(marks.newest());
                let hard = own.floor.hard;
                let scopes = &mut self.scopes;
                own.segments.retain(|segment| {
                    let stays = segment.newest > hard;
                    *scopes -= if stays { 0 } else { segment.scopes.len() };
                    stays
                });
                let is_news = own.floor != before;
                self.make_room();
                is_news
            }
            Mark::Exact(hash) => self.put(site, hash, marks),
            Mark::Prefix { hash, length } => {
                own.lengths.insert(length);
                self.put(site, hash, marks)
            }
        }
    }

    /// Remembers one scope.
    fn put(&mut self, site: &str, hash: u128, marks: Marks) -> bool {
        let segment_max = (self.scopes_max / SEGMENTS_MIN).clamp(1, SEGMENT_SCOPES_MAX);
        let Some(site) = self.sites.get_mut(site) else {
            return false;
        };
        if marks.above(site.floor) == Marks::default() {
            return false;
        }
        let (mut joined, mut known) = (marks, Marks::default());
        // It belongs to the newest now.
        let found = site.segments.iter_mut().rev();
        if let Some(before) = found.filter_map(|s| s.scopes.remove(&hash)).next() {
            joined.join(before);
            known = before;
            self.scopes -= 1;
        }
        let has_room = |segment: &Segment| segment.scopes.len() < segment_max;
        if !site.segments.back().is_some_and(has_room) {
            site.segments.push_back(Segment::default());
        }
        if let Some(segment) = site.segments.back_mut() {
            segment.scopes.insert(hash, joined);
            segment.newest = segment.newest.max(joined.newest());
            self.scopes += 1;
        }
        site.newest = site.newest.max(marks.newest());
        self.make_room();
        joined != known
    }

    fn make_room(&mut self) {
        while self.scopes() > self.scopes_max {
            let count = |site: &SiteScopes| -> usize {
                site.segments
                    .iter()
                    .map(|segment| segment.scopes.len())
                    .sum()
            };
            let most = self.sites.values_mut().max_by_key(|site| count(site));
            match most.and_then(|site| Some((site.segments.pop_front()?, site))) {
                Some((segment, site)) => {
                    self.scopes -= segment.scopes.len();
                    site.floor.hard = site.floor.hard.max(segment.newest);
                    site.newest = site.newest.max(segment.newest);
                }
                // Nothing but names of sites: no cluster has so many.
                None => {
                    let newest = self.sites.values().map(|site| site.newest).max();
                    self.floor.hard = self.floor.hard.max(newest.unwrap_or_default());
                    self.sites.clear();
                    return;
                }
            }
        }
    }
}

/// A scope that covers an object.
enum Covering<'a> {
    Url(&'a str, &'a [u8]),
    Prefix(&'a str, &'a [u8]),
    Tag(&'a [u8]),
}

impl std::fmt::Display for Covering<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
        let at = |host: &str| match host {
            "" => String::new(),
            host => format!("//{host}"),
        };
        match self {
            Self::Url(host, target) => write!(f, "url {}{}", at(host), text(target)),
            Self::Prefix(host, begins) => write!(f, "prefix {}{}", at(host), text(begins)),
            Self::Tag(tag) => write!(f, "tag {}", text(tag)),
        }
    }
}

impl SiteScopes {
    /// The marks of every scope that covers the object, until one is `enough`.
    fn each(&self, object: &Object<'_>, mut enough: impl FnMut(Covering<'_>, Marks) -> bool) {
        if self.segments.is_empty() {
            return;
        }
        for tag in object.tags {
            let marks = self.find(scope::hash(Kind::Tag, "", tag));
            if marks.is_some_and(|m| enough(Covering::Tag(tag), m)) {
                return;
            }
        }
        let plain = scope::resolved(object.target);
        for target in [Some(object.target), plain.as_deref()]
            .into_iter()
            .flatten()
        {
            if self.names(object.host, target, &mut enough) {
                return;
            }
        }
    }

    /// The scopes that cover a target by its name; whether that was enough.
    fn names(
        &self,
        host: &str,
        target: &[u8],
        enough: &mut impl FnMut(Covering<'_>, Marks) -> bool,
    ) -> bool {
        for host in [host, ""] {
            let marks = self.find(scope::hash(Kind::Url, host, target));
            if marks.is_some_and(|m| enough(Covering::Url(host, target), m)) {
                return true;
            }
        }
        if self.lengths.is_empty() {
            return false;
        }
        for host in [host, ""] {
            let (mut hasher, mut hashed) = (scope::hasher(Kind::Prefix, host), 0);
            for length in &self.lengths {
                let length = usize::from(*length);
                let Some(more) = target.get(hashed..length) else {
                    break;
                };
                hasher.update(more);
                hashed = length;
                let marks = self.find(scope::half(&hasher));
                if marks.is_some_and(|m| enough(Covering::Prefix(host, &target[..length]), m)) {
                    return true;
                }
            }
        }
        false
    }

    fn find(&self, hash: u128) -> Option<Marks> {
        let mut segments = self.segments.iter().rev();
        segments.find_map(|segment| segment.scopes.get(&hash).copied())
    }
}
