//! Measures how far the origins are, for sites that have homes for the whole cluster: at once when they come,
//! then every few minutes.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::time::{MissedTickBehavior, interval};

use crate::{sites::Sites, upstream::Upstream};

/// Pause between two looks at the sites.
const EVERY: Duration = Duration::from_secs(1);

/// Runs until it is dropped.
pub async fn run(upstream: Upstream, sites: Arc<ArcSwap<Sites>>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let sites = sites.load_full();
        upstream.measure_origins(sites.all()).await;
    }
}
