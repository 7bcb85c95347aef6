//! The metrics of a control plane. The only file that names prometheus.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use cluster::{membership::GossipStats, node::NodeId};
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, core::Collector, process_collector::ProcessCollector,
};

/// Most edges with a series of their own; further ones are counted together as `other`.
pub const EDGES_MAX: usize = 256;

/// What a scrape is answered with.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Bounds of `control_plane_purge_duration_seconds`: from a cluster in one room to what is late.
const PURGE_SECONDS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 5.0];

/// How purges stand at a scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct Purges {
    /// The last number of the log.
    pub head: u64,
    /// Scopes that are retained.
    pub scopes: usize,
    /// Receipts by state, of the purges of which they are kept.
    pub receipts: [(&'static str, usize); 4],
    /// How old the oldest purge is that a live edge has not acknowledged.
    pub oldest_open: Duration,
    /// Whether the store fails.
    pub is_store_away: bool,
}

/// The metrics of one control plane, in a registry of their own.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// `control_plane_nodes{state}`.
    nodes: IntGaugeVec,
    /// `control_plane_steered_total{edge,reason}`.
    steered: IntCounterVec,
    /// `control_plane_steering_failures_total{reason}`.
    steering_failures: IntCounterVec,
    /// `control_plane_answers_total{resource,code}`.
    answers: IntCounterVec,
    /// `control_plane_geo_lookups_total{result}`.
    geo_lookups: IntCounterVec,
    /// `control_plane_sites_version`.
    sites_version: IntGauge,
    /// `control_plane_sites`.
    sites: IntGauge,
    /// `control_plane_purges_total{outcome}`.
    purges: IntCounterVec,
    /// `control_plane_purge_duration_seconds`.
    purge_duration: Histogram,
    /// `control_plane_purge_receipts{state}`.
    receipts: IntGaugeVec,
    /// `control_plane_purge_scopes`.
    purge_scopes: IntGauge,
    /// `control_plane_purge_log_head`.
    purge_head: IntGauge,
    /// `control_plane_purge_unacknowledged_seconds`.
    oldest_open: Gauge,
    /// `control_plane_store_up`.
    store_up: IntGauge,
    edges: Mutex<HashSet<NodeId>>,
}

impl Metrics {
    /// Registers everything, with a registry of so many `sites` and this version.
    pub fn new(sites_version: u64, sites: usize) -> Self {
        let registry = Registry::new();
        let version = Opts::new(
            "control_plane_build_info",
            "Version of this program; always 1.",
        )
        .const_label("version", env!("CARGO_PKG_VERSION"));
        let build = registered(&registry, IntGauge::with_opts(version));
        build.set(1);
        let version_gauge = gauge(
            &registry,
            "sites_version",
            "Version of the site registry handed out.",
        );
        let sites_gauge = gauge(&registry, "sites", "Sites handed out.");
        if let Err(error) = registry.register(Box::new(ProcessCollector::for_self())) {
            tracing::warn!(%error, "no metrics of the process itself");
        }
        let duration = HistogramOpts::new(
            "purge_duration_seconds",
            "Time from taking a purge until every live edge has acknowledged it.",
        )
        .namespace("control_plane")
        .buckets(PURGE_SECONDS.to_vec());
        let receipts = opts(
            "purge_receipts",
            "Receipts by state, of the purges of which they are kept.",
        );
        let oldest_open = opts(
            "purge_unacknowledged_seconds",
            "Age of the oldest purge that a live edge has not acknowledged; 0 when there is none.",
        );
        let nodes = IntGaugeVec::new(opts("nodes", "Nodes known, by state."), &["state"]);
        let metrics = Self {
            sites_version: version_gauge,
            sites: sites_gauge,
            nodes: registered(&registry, nodes),
            steered: counters(
                &registry,
                "steered_total",
                "Clients sent to an edge.",
                &["edge", "reason"],
            ),
            steering_failures: counters(
                &registry,
                "steering_failures_total",
                "Clients sent nowhere.",
                &["reason"],
            ),
            answers: counters(
                &registry,
                "answers_total",
                "Answers of the API, by resource and status.",
                &["resource", "code"],
            ),
            geo_lookups: counters(
                &registry,
                "geo_lookups_total",
                "Clients looked up, by how their place became known.",
                &["result"],
            ),
            purges: counters(
                &registry,
                "purges_total",
                "Purges asked for here, by what the answer said.",
                &["outcome"],
            ),
            purge_duration: registered(&registry, Histogram::with_opts(duration)),
            receipts: registered(&registry, IntGaugeVec::new(receipts, &["state"])),
            purge_scopes: gauge(
                &registry,
                "purge_scopes",
                "Distinct scopes that the purge log retains.",
            ),
            purge_head: gauge(
                &registry,
                "purge_log_head",
                "Number of the last record of the purge log.",
            ),
            oldest_open: registered(&registry, Gauge::with_opts(oldest_open)),
            store_up: gauge(
                &registry,
                "store_up",
                "Whether the store did what it was last asked for.",
            ),
            edges: Mutex::new(HashSet::new()),
            registry,
        };
        metrics.handed_out(sites_version, sites);
        metrics
    }

    /// So many sites of this version are handed out from now on.
    pub fn handed_out(&self, version: u64, sites: usize) {
        self.sites_version
            .set(i64::try_from(version).unwrap_or(i64::MAX));
        self.sites.set(i64::try_from(sites).unwrap_or(i64::MAX));
    }

    /// A client was sent to `edge`.
    pub fn steered(&self, edge: &NodeId, reason: &str) {
        let mut edges = self.edges.lock().unwrap_or_else(PoisonError::into_inner);
        let named = edges.contains(edge) || edges.len() < EDGES_MAX && edges.insert(edge.clone());
        drop(edges);
        let edge = if named { edge.as_str() } else { "other" };
        self.steered.with_label_values(&[edge, reason]).inc();
    }

    /// A client could not be sent anywhere, for one of a few reasons.
    pub fn not_steered(&self, reason: &'static str) {
        self.steering_failures.with_label_values(&[reason]).inc();
    }

    /// A resource was answered.
    pub fn answered(&self, resource: &'static str, status: u16) {
        let code = status.to_string();
        self.answers.with_label_values(&[resource, &code]).inc();
    }

    /// A purge was answered: `complete`, `incomplete`, `accepted` (nobody, or not everybody, was waited
    /// for), `refused` (the asker's mistake), `failed` (the store's).
    pub fn purged(&self, outcome: &'static str) {
        self.purges.with_label_values(&[outcome]).inc();
    }

    /// A purge was acknowledged by every live edge, the last one after this long.
    pub fn purge_complete(&self, elapsed_ms: u64) {
        let ms = u32::try_from(elapsed_ms).unwrap_or(u32::MAX);
        self.purge_duration.observe(f64::from(ms) / 1000.0);
    }

    /// A client was looked up; `result` as [`crate::places::Known::source`] says it.
    pub fn looked_up(&self, result: &str) {
        self.geo_lookups.with_label_values(&[result]).inc();
    }

    /// Everything as Prometheus text, with the nodes and the gossip of this moment.
    pub fn render(
        &self,
        nodes: [(&'static str, usize); 4],
        purges: &Purges,
        gossip: &GossipStats,
    ) -> String {
        let signed = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (state, count) in purges.receipts {
            self.receipts.with_label_values(&[state]).set(signed(count));
        }
        self.purge_scopes.set(signed(purges.scopes));
        self.purge_head
            .set(i64::try_from(purges.head).unwrap_or(i64::MAX));
        self.oldest_open.set(purges.oldest_open.as_secs_f64());
        self.store_up.set(i64::from(!purges.is_store_away));
        for (state, count) in nodes {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.nodes.with_label_values(&[state]).set(count);
        }
        let mut families = self.registry.gather();
        families.extend(of_gossip(gossip).gather());
        TextEncoder::new()
            .encode_to_string(&families)
            .expect("families that were registered have names and values")
    }
}

/// The gossip counts for itself; what it has counted is copied at each scrape.
fn of_gossip(stats: &GossipStats) -> Registry {
    let registry = Registry::new();
    for (name, help, counter) in [
        (
            "gossip_sent_datagrams_total",
            "Gossip datagrams sent.",
            &stats.datagrams_sent,
        ),
        (
            "gossip_sent_bytes_total",
            "Bytes of gossip sent.",
            &stats.bytes_sent,
        ),
        (
            "gossip_send_failures_total",
            "Gossip that could not be sent.",
            &stats.send_failures,
        ),
        (
            "gossip_received_datagrams_total",
            "Gossip datagrams received.",
            &stats.datagrams_received,
        ),
        (
            "gossip_received_bytes_total",
            "Bytes of gossip received.",
            &stats.bytes_received,
        ),
        (
            "gossip_rejected_datagrams_total",
            "Gossip datagrams that counted for nothing: not of this cluster, old, repeated, too many.",
            &stats.datagrams_rejected,
        ),
        (
            "gossip_expired_messages_total",
            "Gossip given up because parts of it never came.",
            &stats.messages_expired,
        ),
    ] {
        registered(&registry, IntCounter::with_opts(opts(name, help)))
            .inc_by(counter.load(Ordering::Relaxed));
    }
    let unreadable = stats.unreadable_nodes.load(Ordering::Relaxed);
    gauge(
        &registry,
        "gossip_unreadable_nodes",
        "Nodes left out now because their description is unreadable.",
    )
    .set(i64::try_from(unreadable).unwrap_or(i64::MAX));
    registry
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("control_plane")
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    registered(registry, IntGauge::with_opts(opts(name, help)))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    registered(registry, IntCounterVec::new(opts(name, help), labels))
}

fn registered<M: Collector + Clone + 'static>(
    registry: &Registry,
    made: prometheus::Result<M>,
) -> M {
    let metric = made.expect("names and labels here are constants that a test has seen");
    registry
        .register(Box::new(metric.clone()))
        .expect("no name here is used twice, as a test has seen");
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded() {
        let metrics = Metrics::new(7, 1);
        for i in 0..EDGES_MAX + 10 {
            metrics.steered(&format!("edge-{i}").parse().unwrap(), "nearest");
        }
        metrics.steered(&"edge-0".parse().unwrap(), "nearest");
        metrics.purge_complete(80);
        let text = metrics.render(
            [
                ("ready", 1),
                ("starting", 0),
                ("draining", 0),
                ("departed", 2),
            ],
            &Purges {
                head: 42,
                scopes: 3,
                receipts: [
                    ("acknowledged", 2),
                    ("pending", 1),
                    ("unreachable", 0),
                    ("departed", 0),
                ],
                oldest_open: Duration::from_millis(2_500),
                is_store_away: true,
            },
            &GossipStats::default(),
        );
        let series = text
            .lines()
            .filter(|l| l.starts_with("control_plane_steered_total{"));
        assert_eq!(series.count(), EDGES_MAX + 1);
        for line in [
            "control_plane_steered_total{edge=\"other\",reason=\"nearest\"} 10",
            "control_plane_steered_total{edge=\"edge-0\",reason=\"nearest\"} 2",
            "control_plane_nodes{state=\"departed\"} 2",
            "control_plane_sites_version 7",
            "control_plane_purge_log_head 42",
            "control_plane_purge_receipts{state=\"acknowledged\"} 2",
            "control_plane_purge_unacknowledged_seconds 2.5",
            "control_plane_store_up 0",
            "control_plane_purge_duration_seconds_bucket{le=\"0.1\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
