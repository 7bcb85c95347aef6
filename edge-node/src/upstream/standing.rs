//! How the origins of sites stand: by what requests met, and by what the [checks](super::checks) of sites
//! that have some found. Each node knows it for itself.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cluster::{
    key::Key,
    placement,
    site::{
        Site,
        origin::{HealthRule, Origin},
    },
};
use serde::Serialize;
use tokio::time::Instant;
use tracing::{info, warn};

/// How long an origin that could not be reached is tried last: short, since one that came back
/// should get its place back soon; long enough that not every request pays for the attempt.
pub(super) const SHUNNED_FOR: Duration = Duration::from_secs(5);
/// Most origins that a node checks, over all sites: at an interval of ten seconds, 400 questions a second.
/// What is beyond is judged by what requests meet.
pub const CHECKED_MAX: usize = 4_096;
/// Within this time after a site has come, each of its origins is checked for the first time.
const FIRST_WITHIN: Duration = Duration::from_millis(500);
/// How far the time between two checks of an origin may be from its interval, so that the nodes of a
/// cluster do not ask together.
const JITTER: f64 = 0.1;

/// Whether an origin is asked before others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Nothing speaks against it.
    Well,
    /// It could not be connected to a moment ago.
    Unreachable,
    /// It fails its checks.
    Ill,
}

/// The site's origins in the order in which they are asked for `key`: those that are well before those that
/// are not, the others before backups, and among their like by weighted rendezvous hashing.
///
/// By the key and not in turn, because then an origin with a cache of its own holds an object once, an
/// object's validators do not change with each fetch where origins make them by themselves, what is missing
/// of an object is asked of the origin that has sent the beginning, and there is no state to keep: all nodes
/// choose alike. When an origin fails, its objects go to all others by their weights.
pub fn order(
    key: Key,
    origins: &[Origin],
    standing: impl Fn(&Origin) -> Standing,
) -> Vec<(&Origin, Standing)> {
    if let [one] = origins {
        return vec![(one, standing(one))];
    }
    let score = |origin: &Origin| placement::share(key, &origin.url, f64::from(origin.weight));
    let mut order: Vec<_> = origins
        .iter()
        .map(|origin| (standing(origin), origin.backup, score(origin), origin))
        .collect();
    order.sort_by(|a, b| {
        (a.0, a.1)
            .cmp(&(b.0, b.1))
            .then_with(|| b.2.total_cmp(&a.2))
    });
    let found = order.into_iter();
    found
        .map(|(standing, .., origin)| (origin, standing))
        .collect()
}

/// What checks say of one origin.
#[derive(Clone, Debug)]
pub(super) struct Checked {
    rule: HealthRule,
    /// What the site says of it; when that changes, its checks begin anew.
    origin: Origin,
    host: String,
    is_ill: bool,
    /// Answers in a row that speak against what it is held for.
    against: u32,
    /// `None`: one is under way.
    due: Option<Instant>,
    /// What was wrong with the last answer.
    flaw: Option<String>,
}

/// A check that is due.
#[derive(Clone, Debug)]
pub struct Due {
    /// The site.
    pub site: String,
    /// The origin.
    pub origin: Origin,
    /// `Host` to ask for.
    pub host: String,
    /// How to ask, and for what.
    pub rule: HealthRule,
}

impl Checked {
    fn new(site: &Site, origin: &Origin, rule: &HealthRule, due: Instant) -> Self {
        let first = site.hosts.iter().find(|host| !host.contains('*'));
        let authority = origin.url.split_once("://").map_or("", |(_, rest)| rest);
        let usual = first.map_or_else(|| authority.trim_end_matches('/'), String::as_str);
        Self {
            rule: rule.clone(),
            origin: origin.clone(),
            host: site.host_towards(origin, usual).to_owned(),
            is_ill: false,
            against: 0,
            due: Some(due),
            flaw: None,
        }
    }

    /// It answered as it should, or not. Whether it is held for something else from now on.
    fn learn(&mut self, answer: Result<(), String>, due: Instant) -> bool {
        self.due = Some(due);
        let speaks_against = answer.is_ok() == self.is_ill;
        self.flaw = answer.err();
        self.against = if speaks_against { self.against + 1 } else { 0 };
        let needed = match self.is_ill {
            true => self.rule.healthy_after,
            false => self.rule.unhealthy_after,
        };
        let changes = self.against >= needed;
        if changes {
            self.is_ill = !self.is_ill;
            self.against = 0;
        }
        changes
    }
}

/// How an origin stands, to be told.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OriginReport {
    /// Its base URL.
    pub url: String,
    /// Its share.
    pub weight: u32,
    /// Whether it is asked only while no other is well.
    pub backup: bool,
    /// How it stands.
    pub standing: Standing,
    /// Why it stands here in the order.
    pub why: String,
}

/// How all origins stand. Origins come from the site registry, which is bounded.
#[derive(Debug, Default)]
pub(super) struct Standings {
    /// Until when an origin, by its URL, is tried after the others. They leave the map when they are next
    /// looked at.
    shunned: Mutex<HashMap<String, Instant>>,
    /// By site, then by URL.
    checked: Mutex<HashMap<String, HashMap<String, Checked>>>,
}

impl Standings {
    /// The site's origins in the order in which they are asked for `key`.
    pub(super) fn order<'a>(
        &self,
        site: &'a Site,
        key: Key,
        now: Instant,
    ) -> Vec<(&'a Origin, Standing)> {
        if let [one] = &site.origins[..] {
            // There is no other, however it stands.
            return vec![(one, Standing::Well)];
        }
        order(key, &site.origins, |origin| self.of(site, origin, now))
    }

    /// How one stands.
    pub(super) fn of(&self, site: &Site, origin: &Origin, now: Instant) -> Standing {
        if site.health.is_some() {
            let checked = self.checked();
            let of_site = checked.get(&site.name);
            if of_site
                .and_then(|known| known.get(&origin.url))
                .is_some_and(|known| known.is_ill)
            {
                return Standing::Ill;
            }
        }
        let mut shunned = self.shunned();
        match shunned.get(&origin.url) {
            Some(until) if *until > now => Standing::Unreachable,
            Some(_) => {
                shunned.remove(&origin.url);
                Standing::Well
            }
            None => Standing::Well,
        }
    }

    /// It could not be connected to.
    pub(super) fn shun(&self, origin: &Origin, now: Instant) {
        let until = now + SHUNNED_FOR;
        self.shunned().insert(origin.url.clone(), until);
    }

    /// From now on these are all sites, and those of their origins are checked that shall be.
    pub(super) fn watch<'a>(&self, sites: impl Iterator<Item = &'a Site>, now: Instant) {
        let mut checked = self.checked();
        let mut before = std::mem::take(&mut *checked);
        let mut count = 0;
        for site in sites {
            let Some(rule) = &site.health else { continue };
            let mut known = before.remove(&site.name).unwrap_or_default();
            let mut own = HashMap::new();
            for origin in &site.origins {
                if count >= CHECKED_MAX {
                    warn!(
                        site = site.name,
                        origin = origin.url,
                        "not checked: over {CHECKED_MAX} origins"
                    );
                    continue;
                }
                count += 1;
                let due = now + FIRST_WITHIN.mul_f64(rand::random());
                let anew = Checked::new(site, origin, rule, due);
                let is_same = |old: &Checked| {
                    (&old.rule, &old.origin, &old.host) == (&anew.rule, &anew.origin, &anew.host)
                };
                let old = known.remove(&origin.url).filter(is_same);
                own.insert(origin.url.clone(), old.unwrap_or(anew));
            }
            checked.insert(site.name.clone(), own);
        }
    }

    /// At most `most` checks that are due. Each is under way from now on, until it is [told](Self::learn).
    pub(super) fn due(&self, most: usize, now: Instant) -> Vec<Due> {
        let mut checked = self.checked();
        let all = checked
            .iter_mut()
            .flat_map(|(site, origins)| origins.values_mut().map(move |origin| (site, origin)));
        all.filter(|(_, known)| known.due.is_some_and(|due| due <= now))
            .take(most)
            .map(|(site, known)| {
                known.due = None;
                Due {
                    site: site.clone(),
                    origin: known.origin.clone(),
                    host: known.host.clone(),
                    rule: known.rule.clone(),
                }
            })
            .collect()
    }

    /// What came of a check.
    pub(super) fn learn(&self, check: &Due, answer: Result<(), String>, now: Instant) {
        let jitter = 1.0 + JITTER * (2.0 * rand::random::<f64>() - 1.0);
        let due = now + check.rule.interval.0.mul_f64(jitter);
        let mut checked = self.checked();
        let of_site = checked.get_mut(&check.site);
        let Some(known) = of_site.and_then(|known| known.get_mut(&check.origin.url)) else {
            // The site has changed meanwhile.
            return;
        };
        if known.learn(answer, due) {
            let (site, origin) = (&check.site, &check.origin.url);
            match known.is_ill {
                true => warn!(site, origin, why = known.flaw, "origin fails its checks"),
                false => info!(site, origin, "origin is well again"),
            }
        }
    }

    /// By site and URL, whether the origins that are checked are well.
    pub(super) fn health(&self) -> Vec<(String, String, bool)> {
        let checked = self.checked();
        let all = checked.iter().flat_map(|(site, origins)| {
            let told =
                move |(url, known): (&String, &Checked)| (site.clone(), url.clone(), !known.is_ill);
            origins.iter().map(told)
        });
        all.collect()
    }

    /// The site's origins in the order in which they are asked for `key`, and why.
    pub(super) fn report(&self, site: &Site, key: Key, now: Instant) -> Vec<OriginReport> {
        let order = order(key, &site.origins, |origin| self.of(site, origin, now));
        let told = |(n, (origin, standing)): (usize, (&Origin, Standing))| OriginReport {
            url: origin.url.clone(),
            weight: origin.weight,
            backup: origin.backup,
            standing,
            why: self.why(site, origin, standing, n == 0),
        };
        order.into_iter().enumerate().map(told).collect()
    }

    fn why(&self, site: &Site, origin: &Origin, standing: Standing, is_first: bool) -> String {
        let flaw = || {
            let checked = self.checked();
            checked.get(&site.name)?.get(&origin.url)?.flaw.clone()
        };
        let words = match (standing, site.origins.len()) {
            (Standing::Well, 1) => "the only one",
            (Standing::Well, _) if origin.backup && is_first => "a backup, and no other is well",
            (Standing::Well, _) if origin.backup => "a backup, asked when no other is well",
            (Standing::Well, _) if is_first => "the object's own, by its name and the weights",
            (Standing::Well, _) => "asked when those before it fail",
            (Standing::Unreachable, _) => "could not be connected to in the last 5 s",
            (Standing::Ill, _) => {
                let flaw = flaw().unwrap_or_else(|| "until it has done well for longer".to_owned());
                return format!("fails its checks: {flaw}");
            }
        };
        words.to_owned()
    }

    fn shunned(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.shunned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn checked(&self) -> MutexGuard<'_, HashMap<String, HashMap<String, Checked>>> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origin(url: &str, weight: u32, backup: bool) -> Origin {
        Origin {
            weight,
            backup,
            ..Origin::from(url)
        }
    }

    fn key(n: usize) -> Key {
        Key::of(&[&n.to_le_bytes()])
    }

    fn urls<'a>(order: &[(&'a Origin, Standing)]) -> Vec<&'a str> {
        order
            .iter()
            .map(|(origin, _)| origin.url.as_str())
            .collect()
    }

    #[test]
    fn objects_go_to_origins_by_weight_and_stay_there() {
        let origins = [origin("http://a", 1, false), origin("http://b", 3, false)];
        let well = |_: &Origin| Standing::Well;
        let first = |n| order(key(n), &origins, well)[0].0.url.clone();
        let to_b = (0..10_000).filter(|n| first(*n) == "http://b").count();
        assert!((7_300..7_700).contains(&to_b), "{to_b} of 10000");
        assert!((0..100).all(|n| first(n) == first(n)));
        // Another one takes only what becomes its own.
        let more = [
            origins[0].clone(),
            origins[1].clone(),
            origin("http://c", 4, false),
        ];
        for n in 0..1_000 {
            let now = order(key(n), &more, well)[0].0.url.clone();
            assert!(now == "http://c" || now == first(n), "{n}");
        }
    }

    #[test]
    fn backups_and_those_that_are_not_well_come_last() {
        use Standing::{Ill, Unreachable, Well};
        let origins = [
            origin("a", 1, false),
            origin("b", 1_000, true),
            origin("c", 1_000, false),
        ];
        for (a, b, c, expected) in [
            (Well, Well, Ill, ["a", "b", "c"]),
            (Ill, Well, Unreachable, ["b", "c", "a"]),
            (Unreachable, Ill, Unreachable, ["", "", "b"]),
            (Ill, Unreachable, Well, ["c", "b", "a"]),
        ] {
            let standing = |origin: &Origin| match origin.url.as_str() {
                "a" => a,
                "b" => b,
                _ => c,
            };
            let found = order(key(7), &origins, standing);
            for (found, expected) in urls(&found).iter().zip(expected) {
                assert!(
                    expected.is_empty() || *found == expected,
                    "{a:?} {b:?} {c:?}"
                );
            }
        }
    }

    fn checked_site() -> Site {
        let mut site = Site::new("www", &["www.test"], &["http://a", "http://b"]);
        site.health = Some(HealthRule::new("/health"));
        site
    }

    #[test]
    fn an_origin_is_ill_after_some_bad_answers_and_well_after_some_good_ones() {
        let site = checked_site();
        let (standings, mut now) = (Standings::default(), Instant::now());
        standings.watch([&site].into_iter(), now);
        now += FIRST_WITHIN;
        assert_eq!(standings.due(1, now).len(), 1);
        let rest = standings.due(10, now);
        assert_eq!(rest.len(), 1, "one is under way already");
        let check = rest[0].clone();
        assert_eq!((&*check.host, &*check.rule.path), ("www.test", "/health"));
        let standing = || standings.of(&site, &check.origin, now);
        let bad = || Err("answered 500".to_owned());
        for (answer, expected) in [
            (bad(), Standing::Well),
            (bad(), Standing::Well),
            (Ok(()), Standing::Well),
            (bad(), Standing::Well),
            (bad(), Standing::Well),
            (bad(), Standing::Ill),
            (Ok(()), Standing::Ill),
            (bad(), Standing::Ill),
            (Ok(()), Standing::Ill),
            (Ok(()), Standing::Well),
        ] {
            standings.learn(&check, answer, now);
            assert_eq!(standing(), expected);
        }
        // The next is due an interval later, give or take a tenth.
        now += check.rule.interval.0.mul_f64(0.89);
        assert!(standings.due(10, now).is_empty());
        now += check.rule.interval.0.mul_f64(0.22);
        assert_eq!(standings.due(10, now).len(), 1);
    }

    #[test]
    fn what_is_known_outlives_a_new_version_of_the_site_but_not_another_origin() {
        let mut site = checked_site();
        let (standings, mut now) = (Standings::default(), Instant::now());
        standings.watch([&site].into_iter(), now);
        now += FIRST_WITHIN;
        for check in standings.due(10, now) {
            for _ in 0..3 {
                standings.learn(&check, Err("refused".to_owned()), now);
            }
        }
        let ill = |site: &Site| {
            let of = |origin| standings.of(site, origin, now) == Standing::Ill;
            site.origins.iter().filter(|origin| of(origin)).count()
        };
        assert_eq!(ill(&site), 2);
        let told = standings.report(&site, key(1), now);
        assert_eq!(told[0].why, "fails its checks: refused");
        site.default_ttl.0 = Duration::from_secs(9);
        standings.watch([&site].into_iter(), now);
        assert_eq!(ill(&site), 2);
        site.origins[0].host = Some("other.test".into());
        standings.watch([&site].into_iter(), now);
        assert_eq!(ill(&site), 1);
        standings.watch(std::iter::empty(), now);
        assert!(standings.health().is_empty());
    }

    #[test]
    fn one_that_could_not_be_reached_gets_its_place_back() {
        let site = Site::new("www", &["www.test"], &["http://a", "http://b"]);
        let (standings, mut now) = (Standings::default(), Instant::now());
        let first = standings.order(&site, key(3), now)[0].0;
        standings.shun(first, now);
        assert_eq!(
            standings.order(&site, key(3), now)[1],
            (first, Standing::Unreachable)
        );
        now += SHUNNED_FOR;
        assert_eq!(
            standings.order(&site, key(3), now)[0],
            (first, Standing::Well)
        );
    }

    proptest! {
        /// Every origin is in the order, once, and none that is not well, or a backup, before one that is
        /// better.
        #[test]
        fn an_order_leaves_nobody_out(
            seed in any::<usize>(),
            origins in prop::collection::vec((1..1_000_u32, any::<bool>(), 0..3_u8), 1..32),
        ) {
            let listed: Vec<_> = origins
                .iter()
                .enumerate()
                .map(|(n, (weight, backup, _))| origin(&n.to_string(), *weight, *backup))
                .collect();
            let standing = |origin: &Origin| match origins[origin.url.parse::<usize>().unwrap()].2 {
                0 => Standing::Well,
                1 => Standing::Unreachable,
                _ => Standing::Ill,
            };
            let order = order(key(seed), &listed, standing);
            let places: Vec<_> = order.iter().map(|(o, standing)| (*standing, o.backup)).collect();
            prop_assert!(places.is_sorted());
            let mut names = urls(&order);
            names.sort_unstable();
            names.dedup();
            prop_assert_eq!(names.len(), listed.len());
        }
    }
}
