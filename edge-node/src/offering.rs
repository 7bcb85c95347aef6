//! Hot objects are offered ahead: when several nodes of a region have asked this one for the same object,
//! the region's other nodes hear of it, and fetch it by their ordinary way if they want it.
//!
//! An offer is a name, not bytes: who takes it asks whom it would ask for a client, when it has nothing
//! better to do ([`crate::warm`]). What may come of offers in bytes is bounded by a budget
//! (`cluster.offers`), how many are on their way by [`OFFERS_MAX`]; what is beyond is not offered.

use std::sync::{Arc, Mutex, PoisonError};

use cluster::{key::Key, node::NodeId};
use http::HeaderMap;
use tokio::{sync::Semaphore, time::Instant};
use tracing::debug;

use crate::{
    cache::Cache,
    demand::{self, Budget, Demand},
    metrics::Metrics,
    upstream::{Upstream, relayed},
};

/// Objects that are being offered at once.
pub const OFFERS_MAX: usize = 16;
/// Most nodes to which one object is offered.
pub const NODES_MAX: usize = 32;

/// Offers what is hot. A clone-able handle.
#[derive(Clone)]
pub struct Offering(Arc<Inner>);

struct Inner {
    upstream: Upstream,
    cache: Cache,
    metrics: Arc<Metrics>,
    demand: Mutex<Demand>,
    budget: Mutex<Budget>,
    places: Arc<Semaphore>,
    is_off: bool,
}

impl Offering {
    /// Offers what `cache` holds; `bytes_per_s` may come of it, 0 for nothing.
    pub fn new(upstream: Upstream, cache: Cache, metrics: Arc<Metrics>, bytes_per_s: u64) -> Self {
        Self(Arc::new(Inner {
            upstream,
            cache,
            metrics,
            demand: Mutex::default(),
            budget: Mutex::new(Budget::new(bytes_per_s)),
            places: Arc::new(Semaphore::new(OFFERS_MAX)),
            is_off: bytes_per_s == 0,
        }))
    }

    /// `from` has asked for `key`, with `fields` that say of which URL it is.
    pub fn asked(&self, key: Key, from: &NodeId, fields: &HeaderMap) {
        if self.0.is_off {
            return;
        }
        let view = self.0.upstream.view();
        let Some(region) = view.node(from).map(|node| &node.region) else {
            return;
        };
        // A slice has no URL of its own by which it could be fetched ahead.
        if region.is_empty()
            || !fields.contains_key(relayed::TARGET_FIELD)
            || fields.contains_key(relayed::SLICE_FIELD)
        {
            return;
        }
        let hot = {
            let mut demand = self.0.demand.lock().unwrap_or_else(PoisonError::into_inner);
            demand.asked(key, from, region, Instant::now())
        };
        let Some(askers) = hot else { return };
        let Ok(place) = self.0.places.clone().try_acquire_owned() else {
            return self.0.metrics.offered("busy");
        };
        let (offering, region, about) = (self.clone(), region.clone(), relayed::naming(fields));
        tokio::spawn(async move {
            offering.offer(key, &region, &askers, &about).await;
            drop(place);
        });
    }

    async fn offer(&self, key: Key, region: &str, askers: &[u64], about: &HeaderMap) {
        let Inner {
            upstream,
            cache,
            metrics,
            ..
        } = &*self.0;
        // What has variants, or is still coming in, is not offered.
        let stored = cache.stored(key, &HeaderMap::new()).await;
        let whole = stored.filter(|entry| entry.key == key && entry.head.part.is_none());
        let Some(bytes) = whole.and_then(|entry| entry.length()) else {
            return metrics.offered("not_stored");
        };
        let lacking = upstream.lacking(key, region);
        let strangers = lacking
            .into_iter()
            .filter(|(id, _)| !askers.contains(&demand::name(id)));
        for (id, addr) in strangers.take(NODES_MAX) {
            let may = {
                let mut budget = self.0.budget.lock().unwrap_or_else(PoisonError::into_inner);
                budget.take(bytes, Instant::now())
            };
            if !may {
                return metrics.offered("over_budget");
            }
            match upstream.offer(&id, &addr, key, about).await {
                Ok(()) => metrics.offered("taken"),
                Err(error) => {
                    debug!(peer = %id, %error, "offer not taken");
                    metrics.offered("not_taken");
                }
            }
        }
    }
}
