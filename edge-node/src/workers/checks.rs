//! Has the origins of sites that want it checked, each when it is due, never too many at once.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{sites::Sites, upstream::Upstream};

/// Pause between two looks at what is due; small beside the shortest interval, a second.
const EVERY: Duration = Duration::from_millis(100);
/// Checks at once: with a timeout of two seconds, what is due in ten of [`CHECKED_MAX`] origins of which a
/// tenth is silent.
///
/// [`CHECKED_MAX`]: crate::upstream::standing::CHECKED_MAX
const AT_ONCE_MAX: usize = 128;

/// Runs until it is dropped.
pub async fn run(upstream: Upstream, sites: Arc<ArcSwap<Sites>>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watched: Option<Arc<Sites>> = None;
    let mut checks = JoinSet::new();
    loop {
        ticks.tick().await;
        let newest = sites.load_full();
        if !watched
            .as_ref()
            .is_some_and(|old| Arc::ptr_eq(old, &newest))
        {
            upstream.watch_origins(newest.all());
            watched = Some(newest);
        }
        while checks.try_join_next().is_some() {}
        for due in upstream.origins_due(AT_ONCE_MAX - checks.len()) {
            let upstream = upstream.clone();
            checks.spawn(async move { upstream.check_origin(due).await });
        }
    }
}
