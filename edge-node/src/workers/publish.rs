//! Tells the cluster how this node is: load, digest version and times to origins once a second, so that
//! what others know is seconds old at most; where it is by round trips when that has changed.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use cluster::{coordinates::Coordinate, membership::Membership, node::Load};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::gauges::Gauges;

const EVERY: Duration = Duration::from_secs(1);
/// Measured round trips are hundreds of bytes, and every one of them changes all the time: of all nodes
/// together, this many tell theirs in a second. What gossip carries of them to each node does not grow
/// with the cluster then: 10 kB/s.
const TELLING_NODES: u32 = 16;

/// Runs until it is dropped.
pub async fn run(gauges: Gauges, membership: Option<Arc<Membership>>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let Some(membership) = membership else {
        // Nobody hears, but what is remembered for them has to go.
        loop {
            ticks.tick().await;
            gauges.cache.withdraw_ended(gauges.clock.unix_ms());
        }
    };
    let mut before = (Instant::now(), 0);
    let mut trips_told: Option<Instant> = None;
    let mut coordinate_told: Option<(Coordinate, Instant)> = None;
    loop {
        ticks.tick().await;
        let sent = gauges.metrics.sent_bytes.load(Ordering::Relaxed);
        let now = Instant::now();
        let took = (now - before.0).as_secs_f64().max(0.001);
        let bytes_per_s = ((sent - before.1) as f64 / took) as u64;
        before = (now, sent);
        let in_flight = u32::try_from(gauges.metrics.in_flight().get()).unwrap_or(0);
        gauges.cache.withdraw_ended(gauges.clock.unix_ms());
        let digest = gauges.cache.digest_version();
        let nodes = u32::try_from(gauges.upstream.view().len()).unwrap_or(u32::MAX);
        let trips_due = trips_told.is_none_or(|told| now - told >= pause(nodes));
        let round_trips = trips_due.then(|| gauges.upstream.round_trips());
        trips_told = if trips_due { Some(now) } else { trips_told };
        let coordinate = gauges.upstream.coordinate().filter(|coordinate| {
            coordinate_told.is_none_or(|(told, at)| coordinate.is_news(&told, now - at))
        });
        coordinate_told = coordinate.map(|c| (c, now)).or(coordinate_told);
        let origins = gauges.upstream.origin_times();
        membership.update(|me| {
            me.load = Load {
                in_flight,
                bytes_per_s,
            };
            me.digest = Some(digest);
            if let Some(round_trips) = round_trips {
                me.round_trips_ms = round_trips;
            }
            me.coordinate = coordinate.or(me.coordinate);
            me.origins_ms = origins;
        });
    }
}

/// Time between two tellings of the round trips, among that many nodes.
fn pause(nodes: u32) -> Duration {
    EVERY.max(EVERY * nodes / TELLING_NODES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_the_cluster_the_more_seldom_round_trips_are_told() {
        for (nodes, seconds) in [(1, 1.0), (16, 1.0), (40, 2.5), (2_000, 125.0)] {
            assert_eq!(pause(nodes).as_secs_f64(), seconds);
        }
        assert!(pause(u32::MAX) < Duration::MAX);
    }
}
