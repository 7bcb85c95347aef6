//! Every number this node tells Prometheus. The only file that names the prometheus crate.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cluster::{membership::NODES_MAX, node::NodeId};
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::upstream::{Events, gate::Traffic};

/// How a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// From a stored, fresh object.
    Hit,
    /// From a stored object past its freshness, as a directive or an error allows.
    Stale,
    /// From a stored object after the origin said that it still holds.
    Revalidated,
    /// From a fill that this request began.
    Miss,
    /// From a fill that another request began.
    Collapsed,
    /// Passed through; nothing was stored.
    Pass,
    /// With an error of ours.
    Error,
}

impl Outcome {
    const ALL: [Self; 7] = [
        Self::Hit,
        Self::Stale,
        Self::Revalidated,
        Self::Miss,
        Self::Collapsed,
        Self::Pass,
        Self::Error,
    ];

    /// The value of the `outcome` label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Revalidated => "revalidated",
            Self::Miss => "miss",
            Self::Collapsed => "collapsed",
            Self::Pass => "pass",
            Self::Error => "error",
        }
    }
}

/// Why something was shed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shed {
    /// A fetch that nobody waited for, and that would have had to wait: a validation behind a stale
    /// answer, or one whose clients had left.
    Unwanted,
    /// A miss, while as many fills as allowed were under way.
    Fills,
    /// A request to an origin for which too many others waited.
    OriginQueueFull,
    /// A request to an origin that waited for too long.
    OriginQueueTimeout,
    /// A miss whose home had more to do than it, or the origin, may do at once.
    Home,
    /// A connection that waited for its next request, for a new one.
    IdleConnection,
}

impl Shed {
    const ALL: [Self; 6] = [
        Self::Unwanted,
        Self::Fills,
        Self::OriginQueueFull,
        Self::OriginQueueTimeout,
        Self::Home,
        Self::IdleConnection,
    ];

    /// The value of the `reason` label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unwanted => "unwanted",
            Self::Fills => "fills",
            Self::OriginQueueFull => "origin-queue-full",
            Self::OriginQueueTimeout => "origin-queue-timeout",
            Self::Home => "home",
            Self::IdleConnection => "idle-connection",
        }
    }
}

/// Where the bytes of a response came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The memory tier.
    Memory,
    /// The disk tier.
    Disk,
    /// Another edge, which held it.
    Peer,
    /// The home of the key, which fetched it for this node.
    Home,
    /// The origin.
    Origin,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Memory,
        Self::Disk,
        Self::Peer,
        Self::Home,
        Self::Origin,
    ];

    /// The value of the `source` label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Peer => "peer",
            Self::Home => "home",
            Self::Origin => "origin",
        }
    }
}

/// The counters of one site, resolved once.
#[derive(Debug)]
pub struct SiteMetrics {
    requests: [IntCounter; Outcome::ALL.len()],
    bytes: [IntCounter; Source::ALL.len()],
    /// Requests sent to the site's origins.
    pub origin_requests: IntCounter,
}

/// What the tiers hold, as gauges to set at each scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct TierUsage {
    /// Bytes used.
    pub bytes: u64,
    /// Objects held.
    pub objects: u64,
    /// Objects evicted since the start.
    pub evicted: u64,
}

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    bytes: IntCounterVec,
    duration: [Histogram; Outcome::ALL.len()],
    origin_requests: IntCounterVec,
    origin_in_flight: IntGaugeVec,
    origin_queue: IntGaugeVec,
    origin_healthy: IntGaugeVec,
    taken_down: IntCounterVec,
    shed: [IntCounter; Shed::ALL.len()],
    peer_requests: IntCounterVec,
    peer_served: IntCounterVec,
    warmed: IntCounterVec,
    fill_orders: IntCounterVec,
    offers: IntCounterVec,
    changes: IntCounterVec,
    hedges: IntCounterVec,
    denied: IntCounter,
    cache_bytes: IntGaugeVec,
    cache_objects: IntGaugeVec,
    evictions: IntCounterVec,
    store: HashMap<&'static str, IntCounter>,
    members: IntGaugeVec,
    /// Never changes; kept, so that it is told.
    _members_max: IntGauge,
    gossip: IntCounterVec,
    purge_seq: IntGauge,
    clock_ahead: IntGauge,
    purge_scopes: IntGauge,
    purge_table_bytes: IntGauge,
    purges_applied: IntCounterVec,
    purge_refused: IntCounterVec,
    sites_version: IntGauge,
    digests: IntGaugeVec,
    digest_pulls: IntCounterVec,
    in_flight: IntGauge,
    sites: Mutex<HashMap<String, Arc<SiteMetrics>>>,
    /// Digests that claimed an object which the peer then did not have.
    pub digest_false_hits: IntCounter,
    /// Pieces from peers that did not match their hash.
    pub peer_corrupt_pieces: IntCounter,
    store_failures: IntCounter,
    /// Bytes of responses sent so far; what load is computed from.
    pub sent_bytes: AtomicU64,
}

const STORE_COUNTERS: [(&str, &str); 9] = [
    (
        "edge_index_rebuilds_total",
        "Times the index was damaged and rebuilt from the segments",
    ),
    (
        "edge_checksum_failures_total",
        "Reads from disk that did not match their checksum",
    ),
    (
        "edge_lost_segments_total",
        "Segment files that were removed under the cache",
    ),
    ("edge_disk_write_errors_total", "Writes to disk that failed"),
    (
        "edge_reinserted_objects_total",
        "Objects moved to a new segment because they were in use",
    ),
    (
        "edge_disk_written_bytes_total",
        "Bytes of records written to segments",
    ),
    (
        "edge_disk_read_bytes_total",
        "Bytes of records read from segments to be served",
    ),
    (
        "edge_disk_reads_around_total",
        "Reads of what stands behind a small object that came from the disk itself",
    ),
    (
        "edge_admission_held_back_total",
        "Objects kept in memory only until asked for again, because the disk turned over too fast",
    ),
];

impl Metrics {
    /// Registers everything on a new registry.
    ///
    /// # Panics
    ///
    /// When two metrics have one name: a mistake in this file, found by any test.
    pub fn new() -> Arc<Self> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let family = IntCounterVec::new(Opts::new(name, help), labels).expect("a valid name");
            registry
                .register(Box::new(family.clone()))
                .expect("names are unique");
            family
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let family = IntGaugeVec::new(Opts::new(name, help), labels).expect("a valid name");
            registry
                .register(Box::new(family.clone()))
                .expect("names are unique");
            family
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect("a valid name");
            registry
                .register(Box::new(counter.clone()))
                .expect("names are unique");
            counter
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect("a valid name");
            registry
                .register(Box::new(gauge.clone()))
                .expect("names are unique");
            gauge
        };
        // From a memory hit to a slow origin.
        let buckets = vec![
            0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
            2.5, 5.0, 10.0, 30.0,
        ];
        let duration = HistogramVec::new(
            HistogramOpts::new(
                "edge_request_duration_seconds",
                "Time from the request's head to the head of its response",
            )
            .buckets(buckets),
            &["outcome"],
        )
        .expect("a valid name");
        registry
            .register(Box::new(duration.clone()))
            .expect("names are unique");
        let shed = counters(
            "edge_shed_total",
            "What was given up because there was too much to do, by the limit that it met",
            &["reason"],
        );
        let build = gauges(
            "edge_build_info",
            "Always 1; the version is in the label",
            &["version"],
        );
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        #[cfg(target_os = "linux")]
        registry
            .register(Box::new(
                prometheus::process_collector::ProcessCollector::for_self(),
            ))
            .expect("names are unique");
        Arc::new(Self {
            requests: counters(
                "edge_requests_total",
                "Requests on the public listener, by how they were answered",
                &["site", "outcome"],
            ),
            bytes: counters(
                "edge_response_bytes_total",
                "Bytes of response bodies sent to clients, by where they came from",
                &["site", "source"],
            ),
            duration: Outcome::ALL.map(|o| duration.with_label_values(&[o.label()])),
            origin_requests: counters(
                "edge_origin_requests_total",
                "Requests sent to origins, revalidations and retries included",
                &["site"],
            ),
            origin_in_flight: gauges(
                "edge_origin_requests_in_flight",
                "Requests that origins have not answered to the end",
                &["site"],
            ),
            origin_queue: gauges(
                "edge_origin_queue",
                "Requests that wait until the origin has answered others",
                &["site"],
            ),
            taken_down: counters(
                "edge_taken_down_total",
                "Requests answered with 451 because the site has taken down what they want",
                &["site"],
            ),
            origin_healthy: gauges(
                "edge_origin_healthy",
                "Whether an origin does well in its checks, for sites that have its origins checked",
                &["site", "origin"],
            ),
            shed: Shed::ALL.map(|reason| shed.with_label_values(&[reason.label()])),
            peer_requests: counters(
                "edge_peer_requests_total",
                "Questions for objects, and for pieces of large ones, asked of peers, by what came of it",
                &["peer", "result"],
            ),
            peer_served: counters(
                "edge_peer_answers_total",
                "Questions of peers answered by this node, by the answer",
                &["answer"],
            ),
            changes: counters(
                "edge_changes_told_total",
                "Other nodes that were to hear of an unsafe request, by what came of it",
                &["result"],
            ),
            offers: counters(
                "edge_offers_total",
                "Hot objects offered to other nodes of a region, by what came of it",
                &["result"],
            ),
            fill_orders: counters(
                "edge_fill_orders_total",
                "Fills of what peers claim to hold, by who was asked first, and whether as a trial",
                &["site", "first"],
            ),
            warmed: counters(
                "edge_warmed_total",
                "URLs fetched ahead of demand, by where they came from; failed ones as failed",
                &["from"],
            ),
            hedges: counters(
                "edge_hedges_total",
                "Questions asked of a second peer because the first was late, by what came of it",
                &["result"],
            ),
            denied: counter(
                "edge_peer_denied_total",
                "Requests on the peer listener that did not prove to know the cluster's secret",
            ),
            cache_bytes: gauges("edge_cache_bytes", "Bytes in use by the cache", &["tier"]),
            cache_objects: gauges("edge_cache_objects", "Objects in the cache", &["tier"]),
            evictions: counters(
                "edge_evictions_total",
                "Objects evicted for lack of room",
                &["tier"],
            ),
            store: STORE_COUNTERS
                .iter()
                .map(|&(name, help)| (name, counter(name, help)))
                .collect(),
            members: gauges(
                "edge_members",
                "Nodes in this node's view, itself included",
                &["state"],
            ),
            _members_max: {
                let most = gauge(
                    "edge_members_max",
                    "Nodes that gossip carries; beyond, its messages are not sent",
                );
                most.set(as_i64(NODES_MAX as u64));
                most
            },
            gossip: counters(
                "edge_gossip_datagrams_total",
                "Gossip datagrams, by what came of them",
                &["result"],
            ),
            purge_seq: gauge("edge_purge_seq_applied", "Number of the last purge applied"),
            clock_ahead: gauge(
                "edge_clock_ahead_seconds",
                "By how much this node's clock is ahead of a control plane's",
            ),
            purge_scopes: gauge(
                "edge_purge_scopes",
                "Scopes of which the last purge is remembered",
            ),
            purge_table_bytes: gauge(
                "edge_purge_table_bytes",
                "Memory for what is remembered of purges",
            ),
            purges_applied: counters(
                "edge_purges_applied_total",
                "Scopes of purges that were applied, by kind",
                &["kind"],
            ),
            purge_refused: counters(
                "edge_purge_refused_total",
                "Answers of other nodes that were not taken because they were purged here",
                &["from"],
            ),
            sites_version: gauge("edge_sites_version", "Version of the site registry in use"),
            digests: gauges(
                "edge_digest_objects",
                "Objects that a peer's digest claims",
                &["peer"],
            ),
            digest_pulls: counters(
                "edge_digest_pulls_total",
                "Pulls of peers' digests, by what came of them",
                &["peer", "result"],
            ),
            in_flight: gauge(
                "edge_requests_in_flight",
                "Requests being answered right now",
            ),
            sites: Mutex::default(),
            digest_false_hits: counter(
                "edge_digest_false_hits_total",
                "Objects that a peer's digest claimed and the peer did not have",
            ),
            peer_corrupt_pieces: counter(
                "edge_peer_corrupt_pieces_total",
                "Pieces from peers that did not match their hash and were thrown away",
            ),
            store_failures: counter(
                "edge_store_failures_total",
                "Objects that could not be written to disk",
            ),
            sent_bytes: AtomicU64::new(0),
            registry,
        })
    }

    /// The counters of `site`; all of them exist from the first call on.
    pub fn site(&self, site: &str) -> Arc<SiteMetrics> {
        let mut sites = self
            .sites
            .lock()
            .expect("no code panics while it holds this lock");
        if let Some(metrics) = sites.get(site) {
            return metrics.clone();
        }
        let metrics = Arc::new(SiteMetrics {
            requests: Outcome::ALL.map(|o| self.requests.with_label_values(&[site, o.label()])),
            bytes: Source::ALL.map(|s| self.bytes.with_label_values(&[site, s.label()])),
            origin_requests: self.origin_requests.with_label_values(&[site]),
        });
        sites.insert(site.to_owned(), metrics.clone());
        metrics
    }

    /// A request for which there is no site.
    pub fn siteless_request(&self) {
        self.requests
            .with_label_values(&["", Outcome::Error.label()])
            .inc();
    }

    /// How long the head of an answer took.
    pub fn answered(&self, outcome: Outcome, took: Duration) {
        self.duration[outcome as usize].observe(took.as_secs_f64());
    }

    /// One more (or less) request being answered.
    pub fn in_flight(&self) -> &IntGauge {
        &self.in_flight
    }

    /// A question of a peer, and what it was told.
    pub fn peer_answered(&self, answer: &str) {
        self.peer_served.with_label_values(&[answer]).inc();
    }

    /// A URL was fetched ahead of demand, and where it came from; or `failed`.
    pub fn warmed(&self, from: &str) {
        self.warmed.with_label_values(&[from]).inc();
    }

    /// Another node was to hear of a change: `told`, `failed`, or `busy` when there was too much to tell.
    pub fn told_changed(&self, result: &'static str) {
        self.changes.with_label_values(&[result]).inc();
    }

    /// A hot object was offered to a node, or could not be.
    pub fn offered(&self, result: &'static str) {
        self.offers.with_label_values(&[result]).inc();
    }

    /// Somebody on the peer listener did not know the secret.
    pub fn peer_denied(&self) {
        self.denied.inc();
    }

    /// Sets what a tier holds.
    pub fn tier(&self, tier: &str, usage: TierUsage) {
        self.cache_bytes
            .with_label_values(&[tier])
            .set(as_i64(usage.bytes));
        self.cache_objects
            .with_label_values(&[tier])
            .set(as_i64(usage.objects));
        raise(&self.evictions.with_label_values(&[tier]), usage.evicted);
    }

    /// Raises one of the store's counters to `total`.
    pub fn store(&self, name: &str, total: u64) {
        if let Some(counter) = self.store.get(name) {
            raise(counter, total);
        }
    }

    /// Raises the number of objects that could not be stored to `total`.
    pub fn store_failures(&self, total: u64) {
        raise(&self.store_failures, total);
    }

    /// Sets how many members there are in each state.
    pub fn members(&self, states: &[(&str, usize)]) {
        for (state, count) in states {
            self.members
                .with_label_values(&[state])
                .set(as_i64(*count as u64));
        }
    }

    /// Raises the gossip counters to these totals.
    pub fn gossip(&self, totals: &[(&str, u64)]) {
        for (result, total) in totals {
            raise(&self.gossip.with_label_values(&[result]), *total);
        }
    }

    /// Sets the versions in use.
    pub fn versions(&self, purge_seq: u64, sites_version: u64) {
        self.purge_seq.set(as_i64(purge_seq));
        self.sites_version.set(as_i64(sites_version));
    }

    /// Sets by how much this node's clock is ahead of a control plane's.
    pub fn clock(&self, ahead_ms: i64) {
        self.clock_ahead.set(ahead_ms / 1_000);
    }

    /// Sets what is remembered of purges, and raises the counters of what they hit to these totals.
    pub fn purges(&self, scopes: usize, bytes: usize, totals: &[(&str, u64)]) {
        self.purge_scopes.set(as_i64(scopes as u64));
        self.purge_table_bytes.set(as_i64(bytes as u64));
        for (kind, total) in totals {
            raise(&self.purges_applied.with_label_values(&[kind]), *total);
        }
    }

    /// What a `peer` or a `home` brought was purged, as far as is known here.
    pub fn purge_refused(&self, from: &'static str) {
        self.purge_refused.with_label_values(&[from]).inc();
    }

    /// Something was given up.
    pub fn shed(&self, reason: Shed) {
        self.shed[reason as usize].inc();
    }

    /// A request to this site is for something that was taken down.
    pub fn taken_down(&self, site: &str) {
        self.taken_down.with_label_values(&[site]).inc();
    }

    /// Sets how busy the origins of each site are; sites that are gone disappear.
    pub fn origins(&self, sites: &[(String, Traffic)]) {
        self.origin_in_flight.reset();
        self.origin_queue.reset();
        for (site, traffic) in sites {
            for (gauges, count) in [
                (&self.origin_in_flight, traffic.inside),
                (&self.origin_queue, traffic.waiting),
            ] {
                gauges.with_label_values(&[site]).set(as_i64(count as u64));
            }
        }
    }

    /// Sets which origins, by site and URL, are well; those that are not checked any more disappear.
    pub fn origins_health(&self, origins: &[(String, String, bool)]) {
        self.origin_healthy.reset();
        for (site, origin, is_well) in origins {
            self.origin_healthy
                .with_label_values(&[site, origin])
                .set(i64::from(*is_well));
        }
    }

    /// Sets what each peer's digest claims; peers that are gone disappear.
    pub fn digests(&self, peers: &[(String, usize)]) {
        self.digests.reset();
        for (peer, objects) in peers {
            self.digests
                .with_label_values(&[peer])
                .set(as_i64(*objects as u64));
        }
    }

    /// Everything, in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        // Encoding into memory fails only for a family without metrics, which is left out anyway.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl SiteMetrics {
    /// One request was answered.
    pub fn request(&self, outcome: Outcome) {
        self.requests[outcome as usize].inc();
    }

    /// Bytes of a body were handed to a client's connection.
    pub fn bytes(&self, source: Source, bytes: u64) {
        self.bytes[source as usize].inc_by(bytes);
    }
}

fn as_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Brings a counter up to a total that is kept elsewhere.
fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

impl Events for Metrics {
    fn origin_attempt(&self, site: &str) {
        self.site(site).origin_requests.inc();
    }

    fn peer_result(&self, peer: &NodeId, result: &'static str) {
        self.peer_requests
            .with_label_values(&[peer.as_str(), result])
            .inc();
        if result == "corrupt" {
            self.peer_corrupt_pieces.inc();
        }
    }

    fn digest_false_hit(&self, _: &NodeId) {
        self.digest_false_hits.inc();
    }

    fn hedged(&self, result: &'static str) {
        self.hedges.with_label_values(&[result]).inc();
    }

    fn digest_pulled(&self, peer: &NodeId, result: &'static str) {
        self.digest_pulls
            .with_label_values(&[peer.as_str(), result])
            .inc();
    }

    fn ordered(&self, site: &str, first: &'static str) {
        self.fill_orders.with_label_values(&[site, first]).inc();
    }
}

impl Metrics {
    /// Counts bytes sent, for this node's load.
    pub fn sent(&self, bytes: u64) {
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_of_the_contract_is_there_once_used() {
        let metrics = Metrics::new();
        metrics.site("a").request(Outcome::Hit);
        metrics.site("a").bytes(Source::Memory, 5);
        metrics.answered(Outcome::Hit, Duration::from_millis(1));
        metrics.peer_result(&"edge-2".parse().unwrap(), "ok");
        metrics.tier(
            "memory",
            TierUsage {
                bytes: 1,
                objects: 1,
                evicted: 3,
            },
        );
        metrics.tier(
            "memory",
            TierUsage {
                bytes: 1,
                objects: 1,
                evicted: 3,
            },
        );
        metrics.members(&[("ready", 1)]);
        metrics.shed(Shed::Fills);
        let traffic = Traffic {
            inside: 2,
            waiting: 1,
        };
        metrics.origins(&[("a".to_owned(), traffic)]);
        metrics.origins_health(&[("a".to_owned(), "http://o".to_owned(), true)]);
        let text = metrics.text();
        for line in [
            "edge_requests_total{outcome=\"hit\",site=\"a\"} 1",
            "edge_response_bytes_total{site=\"a\",source=\"memory\"} 5",
            "edge_request_duration_seconds_count{outcome=\"hit\"} 1",
            "edge_origin_requests_total{site=\"a\"} 0",
            "edge_origin_requests_in_flight{site=\"a\"} 2",
            "edge_origin_queue{site=\"a\"} 1",
            "edge_origin_healthy{origin=\"http://o\",site=\"a\"} 1",
            "edge_shed_total{reason=\"fills\"} 1",
            "edge_shed_total{reason=\"origin-queue-full\"} 0",
            "edge_peer_requests_total{peer=\"edge-2\",result=\"ok\"} 1",
            "edge_digest_false_hits_total 0",
            "edge_cache_bytes{tier=\"memory\"} 1",
            "edge_cache_objects{tier=\"memory\"} 1",
            "edge_evictions_total{tier=\"memory\"} 3",
            "edge_purge_seq_applied 0",
            "edge_members{state=\"ready\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
