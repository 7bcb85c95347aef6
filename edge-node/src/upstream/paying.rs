//! Whether it pays to ask peers before the origin, for each site and class of sizes, by what both took
//! lately. [`Balance`] is pure and is told the time; [`Paying`] is a map of them.
//!
//! What is compared is what a client waits for: the first byte, and for large bodies also the time that a
//! body of the usual length takes. The way to the origin counts as it is from here: through homes where the
//! site has them. A peer that was asked in vain counts with the time it took and with what came after.
//!
//! **What an operator can rely on.** Peers come first until both have been measured, and as long as they do
//! not make requests slower. Sparing the origin is worth something in itself where a site says so: with a
//! `shield`, peers come first unless they are slower by more than a factor ([`patience`]), and the origin is
//! not asked only to see what it takes. Where the origin comes first, peers are asked when it fails.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cluster::{
    manifest::PIECE_BYTES,
    site::{Site, rules::Shield},
};
use serde::Serialize;
use tokio::time::Instant;

/// From here on a body is large: it comes in more than one piece, and takes longer than its first byte.
pub const LARGE_FROM: u64 = PIECE_BYTES as u64;
/// Of so many decisions, one tries the order that does not pay, so that it is known when it does.
pub const TRY_EVERY: u32 = 50;
/// A side that was measured in so short a time needs no trial.
const FRESH: Duration = Duration::from_secs(10);
/// A side that was not measured for so long counts as not measured at all.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// Fewer samples than this say nothing.
const SAMPLES_MIN: u32 = 5;
/// Weight of the newest sample.
const ALPHA: f64 = 0.1;
/// By how much peers must be slower before the origin comes first, and faster before they do again: two
/// that are equal are not to take turns.
const MARGIN: f64 = 1.1;
/// And by how many milliseconds: what nobody notices is not worth a request to the origin.
const MARGIN_MS: f64 = 1.0;
/// The same where the origin is to be spared.
const SHIELD_MARGIN_MS: f64 = 10.0;
/// How much slower than the origin peers may be for the sake of an origin that a site shields, in its
/// region or in the whole cluster.
pub const SHIELD_REGION_PATIENCE: f64 = 2.0;
/// See [`SHIELD_REGION_PATIENCE`].
pub const SHIELD_CLUSTER_PATIENCE: f64 = 4.0;
/// Sites that are remembered; more than one node serves in earnest.
const SITES_MAX: usize = 10_000;
/// File name extensions of one site whose sizes are remembered; others are taken together.
const EXTENSIONS_MAX: usize = 64;
/// Longest extension that is one.
const EXTENSION_BYTES_MAX: usize = 8;

/// How much slower than the origin peers may be.
pub fn patience(shield: Shield) -> f64 {
    match shield {
        Shield::None => 1.0,
        Shield::Region => SHIELD_REGION_PATIENCE,
        Shield::Cluster => SHIELD_CLUSTER_PATIENCE,
    }
}

/// Who is asked first for what peers claim to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Those who hold it.
    PeersFirst,
    /// The origin, or the homes on the way there; peers if that fails.
    OriginFirst,
}

impl Order {
    fn other(self) -> Self {
        match self {
            Self::PeersFirst => Self::OriginFirst,
            Self::OriginFirst => Self::PeersFirst,
        }
    }
}

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Who is asked first.
    pub order: Order,
    /// Only to see how it is.
    pub is_trial: bool,
}

/// From where something came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// A peer that held it.
    Peer,
    /// The origin, through homes or not.
    Origin,
}

/// What was seen of one fetch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Until the first byte, or until all of it where it comes at once.
    pub first: Duration,
    /// From the first byte to the last.
    pub rest: Duration,
    /// Length of the body.
    pub bytes: u64,
}

/// Peers and the origin in comparison, for one site and one class of sizes.
#[derive(Clone, Debug, Default)]
pub struct Balance {
    peers: Side,
    origin: Side,
    /// Usual length of a body.
    bytes: Mean,
    /// Decisions since the last trial.
    since_trial: u32,
    order: Option<Order>,
}

/// What one side takes.
#[derive(Clone, Debug, Default)]
struct Side {
    first_ms: Mean,
    ms_per_byte: Mean,
    samples: u32,
    last: Option<Instant>,
}

/// An average of logarithms: one fetch that stalled weighs little, a lasting change soon tells.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    ln: f64,
    samples: u32,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.samples = self.samples.saturating_add(1);
        // The first ones count alike.
        let weight = ALPHA.max(1.0 / f64::from(self.samples));
        self.ln += weight * (value.max(1e-9).ln() - self.ln);
    }

    fn value(&self) -> Option<f64> {
        (self.samples > 0).then(|| self.ln.exp())
    }
}

impl Side {
    fn add(&mut self, sample: Sample, is_large: bool, now: Instant) {
        if self.is_forgotten(now) {
            *self = Self::default();
        }
        self.first_ms.add(sample.first.as_secs_f64() * 1e3);
        if is_large && sample.bytes > 0 {
            let ms = sample.rest.as_secs_f64() * 1e3;
            self.ms_per_byte.add(ms / sample.bytes as f64);
        }
        self.samples = self.samples.saturating_add(1);
        self.last = Some(now);
    }

    fn is_forgotten(&self, now: Instant) -> bool {
        self.last
            .is_some_and(|last| now.saturating_duration_since(last) > FORGOTTEN)
    }

    fn is_fresh(&self, now: Instant) -> bool {
        self.last
            .is_some_and(|last| now.saturating_duration_since(last) < FRESH)
    }

    /// What a body of `bytes` takes in milliseconds, once that is known.
    fn cost_ms(&self, bytes: f64, now: Instant) -> Option<f64> {
        let known = self.samples >= SAMPLES_MIN && !self.is_forgotten(now);
        let first = self.first_ms.value().filter(|_| known)?;
        Some(first + self.ms_per_byte.value().unwrap_or(0.0) * bytes)
    }
}

impl Balance {
    /// Notes what a fetch took.
    pub fn add(&mut self, from: From, sample: Sample, now: Instant) {
        let is_large = sample.bytes >= LARGE_FROM;
        if is_large {
            self.bytes.add(sample.bytes as f64);
        }
        match from {
            From::Peer => self.peers.add(sample, is_large, now),
            From::Origin => self.origin.add(sample, is_large, now),
        }
    }

    /// Who is to be asked first, where peers may be slower by the factor `patience`; counts for trials.
    pub fn decide(&mut self, patience: f64, now: Instant) -> Decision {
        let order = self.order(patience, now);
        self.order = Some(order);
        self.since_trial = self.since_trial.saturating_add(1);
        let other = match order {
            Order::PeersFirst => &self.origin,
            Order::OriginFirst => &self.peers,
        };
        // An origin that is to be spared is not asked only to see what it takes: misses tell that.
        let may_try = order == Order::OriginFirst || patience <= 1.0;
        let is_trial = may_try && self.since_trial >= TRY_EVERY && !other.is_fresh(now);
        if is_trial {
            self.since_trial = 0;
        }
        Decision {
            order: if is_trial { order.other() } else { order },
            is_trial,
        }
    }

    /// Who is asked first but for trials.
    pub fn order(&self, patience: f64, now: Instant) -> Order {
        let [Some(peers), Some(origin)] = self.costs_ms(now) else {
            return Order::PeersFirst;
        };
        let bearable = origin * patience;
        let margin_ms = if patience > 1.0 {
            SHIELD_MARGIN_MS
        } else {
            MARGIN_MS
        };
        match self.order {
            Some(Order::OriginFirst) if peers > bearable / MARGIN => Order::OriginFirst,
            Some(Order::OriginFirst) => Order::PeersFirst,
            _ if peers > bearable * MARGIN + margin_ms => Order::OriginFirst,
            _ => Order::PeersFirst,
        }
    }

    /// What peers and the origin take in milliseconds, as far as that is known.
    pub fn costs_ms(&self, now: Instant) -> [Option<f64>; 2] {
        let bytes = self.bytes.value().unwrap_or(0.0);
        [&self.peers, &self.origin].map(|side| side.cost_ms(bytes, now))
    }
}

/// Small and large bodies of one site.
#[derive(Debug, Default)]
struct Classes {
    small: Balance,
    large: Balance,
    /// By extension, how often bodies were large lately, from 0 to 1.
    large_share: HashMap<Extension, f64>,
}

impl Classes {
    fn is_large(&self, path: &str) -> bool {
        let share = self.large_share.get(&extension(path));
        share.is_some_and(|share| *share > 0.5)
    }

    fn learn(&mut self, path: &str, is_large: bool) {
        let mut extension = extension(path);
        if !self.large_share.contains_key(&extension) && self.large_share.len() >= EXTENSIONS_MAX {
            extension = Extension::default();
        }
        let now = f64::from(u8::from(is_large));
        let share = self.large_share.entry(extension).or_insert(now);
        *share += 0.2 * (now - *share);
    }

    fn class(&mut self, is_large: bool) -> &mut Balance {
        match is_large {
            true => &mut self.large,
            false => &mut self.small,
        }
    }
}

/// What the last segment of a path ends with, in lower case; files of one kind are mostly of one size.
fn extension(path: &str) -> Extension {
    let file = path.rsplit('/').next().unwrap_or_default();
    let extension = file.rsplit_once('.').map_or("", |(_, extension)| extension);
    let mut padded = Extension::default();
    if let Some(start) = padded.get_mut(..extension.len()) {
        start.copy_from_slice(extension.as_bytes());
    }
    padded.make_ascii_lowercase();
    padded
}

/// With zeros behind it; nothing but zeros where there is none.
type Extension = [u8; EXTENSION_BYTES_MAX];

/// What is known of all sites.
#[derive(Debug, Default)]
pub struct Paying {
    sites: Mutex<HashMap<String, Classes>>,
}

/// How peers and the origin compare for a URL, for whoever asks why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Who is asked first.
    pub order: Order,
    /// The class of sizes that the path is taken for: `small` or `large`.
    pub size: &'static str,
    /// What a peer takes in milliseconds, once that is known.
    pub peers_ms: Option<f64>,
    /// What the origin takes.
    pub origin_ms: Option<f64>,
    /// By which factor peers may be slower.
    pub patience: f64,
}

impl Comparison {
    /// Why, in a sentence.
    pub fn in_words(&self) -> String {
        let Self { size, patience, .. } = self;
        let (Some(peers), Some(origin)) = (self.peers_ms, self.origin_ms) else {
            return format!(
                "peers come first: for {size} bodies not both have been measured lately"
            );
        };
        let measured =
            format!("for {size} bodies they take {peers:.1} ms, the origin {origin:.1} ms");
        match self.order {
            Order::PeersFirst if *patience > 1.0 => format!(
                "peers come first: {measured}, and the site's shield bears {patience} times as much"
            ),
            Order::PeersFirst => format!("peers come first: {measured}"),
            Order::OriginFirst => {
                format!("the origin comes first, and peers if it fails: {measured}")
            }
        }
    }
}

impl Paying {
    /// Who is asked first for `path` of `site`.
    pub fn decide(&self, site: &Site, path: &str, now: Instant) -> Decision {
        let mut sites = self.sites();
        match sites.get_mut(&site.name) {
            Some(classes) => {
                let is_large = classes.is_large(path);
                let patience = patience(site.shield());
                classes.class(is_large).decide(patience, now)
            }
            None => Decision {
                order: Order::PeersFirst,
                is_trial: false,
            },
        }
    }

    /// Notes what a fetch for `path` of `site` took.
    pub fn add(&self, site: &Site, path: &str, from: From, sample: Sample, now: Instant) {
        let mut sites = self.sites();
        if !sites.contains_key(&site.name) {
            if sites.len() >= SITES_MAX {
                return;
            }
            sites.insert(site.name.clone(), Classes::default());
        }
        if let Some(classes) = sites.get_mut(&site.name) {
            let is_large = sample.bytes >= LARGE_FROM;
            classes.learn(path, is_large);
            classes.class(is_large).add(from, sample, now);
        }
    }

    /// Notes that peers were asked for `path` of `site` in vain, which `first` says it took altogether.
    pub fn add_vain(&self, site: &Site, path: &str, first: Duration, now: Instant) {
        if let Some(classes) = self.sites().get_mut(&site.name) {
            let sample = Sample {
                first,
                rest: Duration::ZERO,
                bytes: 0,
            };
            let is_large = classes.is_large(path);
            classes.class(is_large).add(From::Peer, sample, now);
        }
    }

    /// How they compare for `path` of `site`.
    pub fn compare(&self, site: &Site, path: &str, now: Instant) -> Comparison {
        let mut sites = self.sites();
        let mut none = Classes::default();
        let classes = sites.get_mut(&site.name).unwrap_or(&mut none);
        let is_large = classes.is_large(path);
        let (balance, patience) = (classes.class(is_large), patience(site.shield()));
        let [peers_ms, origin_ms] = balance.costs_ms(now);
        Comparison {
            order: balance.order(patience, now),
            size: if is_large { "large" } else { "small" },
            peers_ms,
            origin_ms,
            patience,
        }
    }

    fn sites(&self) -> MutexGuard<'_, HashMap<String, Classes>> {
        self.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn small(ms: f64) -> Sample {
        Sample {
            first: MS.mul_f64(ms),
            rest: Duration::ZERO,
            bytes: 1_000,
        }
    }

    /// A balance after so many fetches from each side, and the time then.
    fn after(count: u32, peers: Sample, origin: Sample) -> (Balance, Instant) {
        let (mut balance, mut now) = (Balance::default(), Instant::now());
        for _ in 0..count {
            now += MS * 100;
            balance.add(From::Peer, peers, now);
            balance.add(From::Origin, origin, now);
        }
        (balance, now)
    }

    #[test]
    fn the_cheaper_side_comes_first_once_both_are_known() {
        use Order::{OriginFirst, PeersFirst};
        let none = patience(Shield::None);
        let (region, cluster) = (patience(Shield::Region), patience(Shield::Cluster));
        for (count, peers, origin, patience, expected) in [
            (0, 100.0, 1.0, none, PeersFirst),
            (SAMPLES_MIN - 1, 100.0, 1.0, none, PeersFirst),
            (SAMPLES_MIN, 100.0, 1.0, none, OriginFirst),
            (20, 100.0, 50.0, none, OriginFirst),
            (20, 50.0, 100.0, none, PeersFirst),
            // About the same.
            (20, 52.0, 50.0, none, PeersFirst),
            (20, 0.9, 0.2, none, PeersFirst),
            // A shield bears more, but not everything.
            (20, 95.0, 50.0, region, PeersFirst),
            (20, 120.0, 50.0, region, PeersFirst),
            (20, 125.0, 50.0, region, OriginFirst),
            (20, 9.0, 0.4, region, PeersFirst),
            (20, 190.0, 50.0, cluster, PeersFirst),
            (20, 240.0, 50.0, cluster, OriginFirst),
        ] {
            let (balance, now) = after(count, small(peers), small(origin));
            let order = balance.order(patience, now);
            assert_eq!(order, expected, "{count} {peers} {origin} {patience}");
        }
    }

    #[test]
    fn a_large_body_is_judged_by_all_of_the_time_it_takes() {
        let large = |first, rest| Sample {
            first: MS * first,
            rest: MS * rest,
            bytes: 10 * LARGE_FROM,
        };
        // A near peer on a thin line, a far origin on a wide one.
        let (balance, now) = after(20, large(5, 2_000), large(100, 500));
        assert_eq!(balance.order(1.0, now), Order::OriginFirst);
        let (balance, now) = after(20, large(5, 500), large(100, 500));
        assert_eq!(balance.order(1.0, now), Order::PeersFirst);
    }

    #[test]
    fn one_stall_changes_nothing_and_a_change_is_followed() {
        let (mut balance, mut now) = after(50, small(20.0), small(60.0));
        balance.decide(1.0, now);
        balance.add(From::Peer, small(2_000.0), now);
        assert_eq!(balance.order(1.0, now), Order::PeersFirst);
        for _ in 0..30 {
            now += MS;
            balance.add(From::Peer, small(200.0), now);
        }
        assert_eq!(balance.decide(1.0, now).order, Order::OriginFirst);
        // It takes more than being equal to come back.
        for _ in 0..100 {
            balance.add(From::Peer, small(58.0), now);
        }
        assert_eq!(balance.order(1.0, now), Order::OriginFirst);
        for _ in 0..100 {
            balance.add(From::Peer, small(40.0), now);
        }
        assert_eq!(balance.order(1.0, now), Order::PeersFirst);
    }

    #[test]
    fn what_was_measured_long_ago_counts_no_more() {
        let (mut balance, now) = after(50, small(100.0), small(10.0));
        assert_eq!(balance.order(1.0, now), Order::OriginFirst);
        let later = now + FORGOTTEN + MS;
        assert_eq!(balance.order(1.0, later), Order::PeersFirst);
        balance.add(From::Peer, small(1.0), later);
        assert_eq!(balance.costs_ms(later), [None, None]);
    }

    #[test]
    fn sizes_are_guessed_by_what_files_of_that_kind_were() {
        let site = Site::new("www", &["a.test"], &["http://o"]);
        let (paying, now) = (Paying::default(), Instant::now());
        let size = |path| paying.compare(&site, path, now).size;
        assert_eq!(size("/a.mp4"), "small");
        let large = Sample {
            bytes: LARGE_FROM,
            ..small(1.0)
        };
        for _ in 0..3 {
            paying.add(&site, "/b/c.MP4", From::Origin, large, now);
            paying.add(&site, "/b.d/e", From::Origin, small(1.0), now);
        }
        assert_eq!(size("/a.mp4"), "large");
        assert_eq!(size("/a.mp4/x"), "small");
        assert_eq!(size("/x.css"), "small");
        // Kinds are bounded, and what there is no room for is one kind.
        for n in 0..2 * EXTENSIONS_MAX {
            paying.add(&site, &format!("/a.k{n}"), From::Origin, large, now);
        }
        let known = paying.sites()["www"].large_share.len();
        assert!(known <= EXTENSIONS_MAX + 1, "{known}");
    }

    #[test]
    fn an_origin_that_is_to_be_spared_is_not_tried() {
        for (shield, expected) in [(Shield::None, 4), (Shield::Region, 0), (Shield::Cluster, 0)] {
            let (mut balance, mut now) = (Balance::default(), Instant::now());
            let mut trials = 0;
            for _ in 0..4 * TRY_EVERY {
                now += MS * 100;
                balance.add(From::Peer, small(20.0), now);
                trials += u32::from(balance.decide(patience(shield), now).is_trial);
            }
            assert_eq!(trials, expected, "{shield:?}");
        }
    }

    proptest! {
        /// Whatever both sides take, most requests go to the cheaper one soon, and soon after they have
        /// changed places; the other one is tried, but no more often than the budget says.
        #[test]
        fn it_converges_and_never_stops_measuring(
            near in 2.0..50.0_f64,
            times in 1.5..20.0_f64,
            peers_are_near in any::<bool>(),
            noise in prop::collection::vec(0.8..1.25_f64, 64),
            every_ms in 20..2_000_u32,
        ) {
            const ROUNDS: u32 = 2_000;
            let far = near * times + 3.0;
            let mut noise = noise.iter().cycle();
            let (mut balance, mut now) = (Balance::default(), Instant::now());
            for swapped in [false, true] {
                let (peers, origin) = match peers_are_near != swapped {
                    true => (near, far),
                    false => (far, near),
                };
                let (mut dear, mut trials, mut last) = (0, 0, [now; 2]);
                for round in 0..ROUNDS {
                    now += MS * every_ms;
                    // Misses of what nobody holds tell of the origin now and then.
                    if round % 3 == 0 {
                        balance.add(From::Origin, small(origin * noise.next().unwrap()), now);
                    }
                    let decision = balance.decide(1.0, now);
                    let (from, ms) = match decision.order {
                        Order::PeersFirst => (From::Peer, peers),
                        Order::OriginFirst => (From::Origin, origin),
                    };
                    balance.add(from, small(ms * noise.next().unwrap()), now);
                    last[usize::from(from == From::Origin)] = now;
                    trials += u32::from(decision.is_trial);
                    // Long enough for some trials, as rarely as they come.
                    if round >= ROUNDS / 2 {
                        dear += u32::from(ms > near.max(1.0) * 1.01);
                    }
                    let unmeasured = now - last[0];
                    let bound = MS * every_ms * (TRY_EVERY + 1) + FRESH;
                    prop_assert!(unmeasured <= bound.max(FORGOTTEN), "{unmeasured:?}");
                }
                prop_assert!(trials <= ROUNDS / TRY_EVERY);
                prop_assert!(dear <= ROUNDS / 2 / TRY_EVERY + SAMPLES_MIN + 1, "{dear} of {ROUNDS}");
            }
        }
    }
}
