//! Brings the gauges up to date with what the parts know. Called before every scrape.

use std::sync::{Arc, atomic::Ordering};

use arc_swap::ArcSwap;
use cluster::{
    clock::Clock,
    membership::Membership,
    node::{NodeId, Phase},
};

use crate::{
    cache::Cache,
    metrics::{Metrics, TierUsage},
    purges::Purges,
    sites::Sites,
    upstream::Upstream,
};

/// Handles of everything that has something to tell.
#[derive(Clone)]
pub struct Gauges {
    /// This node.
    pub me: NodeId,
    /// The cache.
    pub cache: Cache,
    /// The upstream.
    pub upstream: Upstream,
    /// Gossip, in a cluster.
    pub membership: Option<Arc<Membership>>,
    /// The sites served.
    pub sites: Arc<ArcSwap<Sites>>,
    /// The wall clock.
    pub clock: Clock,
    /// What is known of purges.
    pub purges: Purges,
    /// Where to tell it.
    pub metrics: Arc<Metrics>,
}

impl Gauges {
    /// Reads everything once.
    pub fn refresh(&self) {
        let metrics = &*self.metrics;
        metrics.tier("memory", self.cache.memory_usage());
        let disk = self.cache.disk_stats();
        metrics.tier(
            "disk",
            TierUsage {
                bytes: disk.disk_bytes,
                objects: disk.objects,
                evicted: disk.evicted_objects_total,
            },
        );
        metrics.store("edge_index_rebuilds_total", disk.rebuilds_total);
        metrics.store("edge_lost_segments_total", disk.lost_segments_total);
        metrics.store("edge_checksum_failures_total", disk.checksum_failures_total);
        metrics.store("edge_disk_write_errors_total", disk.write_errors_total);
        metrics.store("edge_reinserted_objects_total", disk.reinserted_total);
        metrics.store("edge_disk_written_bytes_total", disk.appended_bytes_total);
        metrics.store("edge_disk_read_bytes_total", disk.read_bytes_total);
        metrics.store("edge_disk_reads_around_total", disk.reads_around_total);
        metrics.store("edge_admission_held_back_total", self.cache.held_back());
        metrics.store_failures(self.cache.store_failures());
        let sites = self.sites.load();
        metrics.versions(self.purges.applied().seq, sites.version());
        metrics.clock(self.purges.clock_ahead_ms());
        let (scopes, bytes) = self.purges.size();
        metrics.purges(scopes, bytes, &self.purges.applied_by_kind());
        let origins = self.upstream.origin_traffic(|site| sites.serves(site));
        metrics.origins(&origins);
        metrics.origins_health(&self.upstream.origins_health());
        let Some(membership) = &self.membership else {
            metrics.members(&[("ready", 1), ("starting", 0), ("draining", 0), ("gone", 0)]);
            return;
        };
        let view = membership.view().borrow().clone();
        let count = |phase| view.nodes().filter(|node| node.phase == phase).count();
        metrics.members(&[
            ("ready", count(Phase::Ready)),
            ("starting", count(Phase::Starting)),
            ("draining", count(Phase::Draining)),
            ("gone", membership.departed().len()),
        ]);
        let stats = membership.stats();
        metrics.gossip(&[
            ("sent", stats.datagrams_sent.load(Ordering::Relaxed)),
            ("received", stats.datagrams_received.load(Ordering::Relaxed)),
            ("rejected", stats.datagrams_rejected.load(Ordering::Relaxed)),
            ("unsent", stats.send_failures.load(Ordering::Relaxed)),
        ]);
        let digests: Vec<_> = self
            .upstream
            .peers_report()
            .into_iter()
            .filter_map(|peer| Some((peer.id.to_string(), peer.digest?.objects)))
            .collect();
        metrics.digests(&digests);
    }
}
