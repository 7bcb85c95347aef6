//! How far the origins of sites are from here: what a connection to them takes. Everybody measures it
//! alike and before the first object is asked for, so that all agree early on who is near
//! ([`cluster::placement::near_origin`]), and the origin's own work is not in it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use cluster::{
    net::Net,
    node::{ORIGINS_MAX, UNREACHABLE_MS},
    site::{Site, origin::Origin, rules::Shield},
};
use futures_util::{StreamExt as _, stream};
use tokio::time::{Instant, timeout};
use tracing::debug;

/// Time between two measurements of a site. Of a thousand nodes, an origin sees three connections a second.
pub const MEASURED_EVERY: Duration = Duration::from_secs(300);
/// The same while too few have succeeded: the first one pays for the name's resolution.
const MEASURED_EVERY_FIRST: Duration = Duration::from_secs(2);
/// Successes until a site is measured at leisure.
const FIRST: u32 = 3;
/// Failures in a row after which an origin is not near any more.
const FAILURES_MAX: u32 = 3;
/// Who does not answer in this time is not near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Origins of a site that are tried; the nearest counts.
const ORIGINS_MEASURED_MAX: usize = 4;
/// Sites measured at the same time.
const AT_ONCE_MAX: usize = 8;
/// How much of the difference to a longer time is believed: the shortest of the last is the way.
const DRIFT: f64 = 0.25;
/// What is told changes only when the time has become so many times longer or shorter: keys must not move
/// with noise.
const NEWS_FACTOR: f64 = 1.25;

/// What is known of one site.
#[derive(Clone, Copy, Debug, Default)]
struct Nearness {
    /// Measured and told, in milliseconds.
    times: Option<(f64, f64)>,
    successes: u32,
    failures: u32,
    due: Option<Instant>,
}

impl Nearness {
    /// It was measured: `None` when no origin could be reached.
    fn learn(&mut self, ms: Option<f64>, now: Instant) {
        match ms {
            Some(ms) => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                self.times = Some(match self.times {
                    None => (ms, ms),
                    Some((known, told)) => {
                        let ms = ms.min(known + DRIFT * (ms - known).max(0.0));
                        let same = (told / NEWS_FACTOR..told * NEWS_FACTOR).contains(&ms);
                        (ms, if same { told } else { ms })
                    }
                });
            }
            None => {
                self.failures = self.failures.saturating_add(1);
                self.successes = 0;
                if self.failures >= FAILURES_MAX {
                    self.times = None;
                }
            }
        }
        let pause = match self.successes < FIRST {
            // An origin that is gone for long is looked for ever more seldom.
            true => MEASURED_EVERY_FIRST.saturating_mul(1 << self.failures.min(16)),
            false => MEASURED_EVERY,
        };
        self.due = Some(now + pause.min(MEASURED_EVERY));
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| due <= now)
    }
}

/// What is known of all sites whose homes are chosen by it.
#[derive(Debug, Default)]
pub(super) struct Nearnesses(Mutex<HashMap<String, Nearness>>);

impl Nearnesses {
    /// Times to the origins of sites, in milliseconds, to tell everybody; [`UNREACHABLE_MS`] where there is none.
    pub(super) fn told(&self) -> BTreeMap<String, f64> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = |near: &Nearness| near.times.map_or(UNREACHABLE_MS, |(_, told)| told);
        let told = known.iter().map(|(site, near)| (site.clone(), told(near)));
        told.collect()
    }

    /// Measures what is due among `sites`, which are all; what is known of others is forgotten. Sites beyond
    /// [`ORIGINS_MAX`] could not be told of.
    pub(super) async fn measure(&self, net: &dyn Net, sites: impl Iterator<Item = &Site>) {
        let now = Instant::now();
        let mut sites: Vec<&Site> = sites.filter(|s| s.shield() == Shield::Cluster).collect();
        sites.sort_by(|a, b| a.name.cmp(&b.name));
        sites.truncate(ORIGINS_MAX);
        {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|name, _| sites.iter().any(|site| site.name == *name));
            sites.retain(|s| known.get(&s.name).is_none_or(|near| near.is_due(now)));
        }
        stream::iter(sites)
            .for_each_concurrent(AT_ONCE_MAX, |site| async move {
                let ms = connect_ms(net, site).await;
                debug!(site = site.name, ms, "origin measured");
                let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let near = known.entry(site.name.clone()).or_default();
                near.learn(ms, Instant::now());
            })
            .await;
    }
}

/// What a connection to the nearest of the site's origins takes, in milliseconds.
async fn connect_ms(net: &dyn Net, site: &Site) -> Option<f64> {
    let addresses = site.origins.iter().filter_map(Origin::address);
    stream::iter(addresses.take(ORIGINS_MEASURED_MAX))
        .filter_map(|(host, port)| async move {
            let address = format!("{host}:{port}");
            let asked = Instant::now();
            let connected = timeout(CONNECT_TIMEOUT, net.connect(&address)).await;
            let took = asked.elapsed();
            connected.ok()?.ok()?;
            Some(took.as_secs_f64() * 1e3)
        })
        .collect::<Vec<f64>>()
        .await
        .into_iter()
        .min_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use cluster::net::SystemNet;
    use tokio::net::TcpListener;

    use super::*;

    fn times(near: &Nearness) -> (f64, f64) {
        near.times.unwrap()
    }

    #[test]
    fn what_is_told_moves_only_for_news() {
        let (mut near, now) = (Nearness::default(), Instant::now());
        assert!(near.is_due(now));
        near.learn(Some(90.0), now);
        assert_eq!(times(&near), (90.0, 90.0));
        assert!(!near.is_due(now) && near.is_due(now + MEASURED_EVERY_FIRST));
        // The name is resolved now; a queue on the way is not believed at once.
        near.learn(Some(20.0), now);
        near.learn(Some(24.0), now);
        assert_eq!(times(&near), (21.0, 20.0));
        assert!(!near.is_due(now + MEASURED_EVERY_FIRST) && near.is_due(now + MEASURED_EVERY));
        for _ in 0..30 {
            near.learn(Some(60.0), now);
        }
        let (ms, told) = times(&near);
        assert!(ms > 59.0 && (48.0..=60.0).contains(&told), "{ms} {told}");
    }

    #[test]
    fn who_cannot_reach_the_origin_is_not_near_it() {
        let (mut near, now) = (Nearness::default(), Instant::now());
        near.learn(Some(5.0), now);
        near.learn(None, now);
        near.learn(None, now);
        assert_eq!(times(&near), (5.0, 5.0));
        near.learn(None, now);
        assert_eq!(near.times, None);
        for _ in 0..100 {
            near.learn(None, now);
            assert!(near.is_due(now + MEASURED_EVERY));
        }
        near.learn(Some(7.0), now);
        assert_eq!(times(&near), (7.0, 7.0));
    }

    #[tokio::test]
    async fn the_nearest_origin_of_a_site_counts_and_only_with_a_shield_of_the_cluster() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = format!("http://{}", listener.local_addr().unwrap());
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone = format!("http://{}", closed.local_addr().unwrap());
        drop(closed);
        let site = |name, origins: &[&str], shield| {
            let mut site = Site::new(name, &["www.test"], origins);
            site.shield = Some(shield);
            site
        };
        let sites = [
            site("both", &[&gone, &here], Shield::Cluster),
            site("gone", &[&gone], Shield::Cluster),
            site("own", &[&here], Shield::Region),
        ];
        let known = Nearnesses::default();
        known.measure(&SystemNet, sites.iter()).await;
        let told = known.told();
        assert_eq!(told.keys().collect::<Vec<_>>(), ["both", "gone"]);
        assert!((0.0..1e3).contains(&told["both"]), "{told:?}");
        assert!(told["gone"] >= UNREACHABLE_MS);
        // It is no site any more.
        known.measure(&SystemNet, sites[2..].iter()).await;
        assert!(known.told().is_empty());
    }
}
