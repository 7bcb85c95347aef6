//! Tells the cluster how this node is: load, digest version, measured round trips and times to origins. Once a second,
//! so that what others know is seconds old at most.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use cluster::{membership::Membership, node::Load};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::gauges::Gauges;

const EVERY: Duration = Duration::from_secs(1);

/// Runs until it is dropped.
pub async fn run(gauges: Gauges, membership: Option<Arc<Membership>>) {
    let Some(membership) = membership else { return };
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = (Instant::now(), 0);
    loop {
        ticks.tick().await;
        let sent = gauges.metrics.sent_bytes.load(Ordering::Relaxed);
        let now = Instant::now();
        let took = (now - before.0).as_secs_f64().max(0.001);
        let bytes_per_s = ((sent - before.1) as f64 / took) as u64;
        before = (now, sent);
        let in_flight = u32::try_from(gauges.metrics.in_flight().get()).unwrap_or(0);
        let digest = gauges.cache.digest_version();
        let round_trips = gauges.upstream.round_trips();
        let sites = gauges.sites.load();
        let origins = gauges.upstream.origin_times(|site| sites.serves(site));
        membership.update(|me| {
            me.load = Load {
                in_flight,
                bytes_per_s,
            };
            me.digest = Some(digest);
            me.round_trips_ms = round_trips;
            me.origins_ms = origins;
        });
    }
}
