//! What this node thinks of every other, for people.

use cluster::node::{Load, NodeId, Phase};
use serde::Serialize;
use tokio::time::Instant;

use super::{Upstream, health::Standing, ranking::Placed, select};

/// What this node thinks of one other live edge.
#[derive(Clone, Debug, Serialize)]
pub struct PeerReport {
    /// 1 is the best.
    pub rank: usize,
    /// Its name.
    pub id: NodeId,
    /// Its region label.
    pub region: String,
    /// `host:port` of its peer listener, as reached from here.
    pub peer_addr: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// Great-circle distance, when both places are known.
    pub distance_km: Option<f64>,
    /// Round trip in milliseconds, once measured.
    pub rtt_ms: Option<f64>,
    /// When its answer counts as late, in milliseconds, once there were enough.
    pub late_after_ms: Option<f64>,
    /// Its rate with large objects, once there were some.
    pub bytes_per_s: Option<f64>,
    /// How busy it says it is.
    pub load: Load,
    /// Expected cost of asking it, in milliseconds.
    pub score: f64,
    /// Average of its failures, 0 to 1.
    pub errors: f64,
    /// Whether it is left alone for now.
    pub ejected: bool,
    /// The same with more shades.
    pub standing: Standing,
    /// What it last failed at.
    pub last_failure: Option<&'static str>,
    /// How often it did not have what its digest claims.
    pub false_hits: u64,
    /// What is known of its holdings.
    pub digest: Option<DigestReport>,
    /// What its place rests on.
    pub why: String,
}

/// What is known of a peer's holdings.
#[derive(Clone, Debug, Serialize)]
pub struct DigestReport {
    /// The peer's start.
    pub epoch: u64,
    /// The last change within it.
    pub seq: u64,
    /// How many objects it claims.
    pub objects: usize,
    /// Memory it takes here.
    pub bytes: usize,
}

impl Upstream {
    /// Every other live edge, best first, and what this node thinks of it.
    pub fn peers_report(&self) -> Vec<PeerReport> {
        let inner = &*self.0;
        let now = Instant::now();
        let digests = inner.digests.load();
        let report = |(index, placed): (usize, Placed)| {
            let health = inner.health.of(&placed.node.id);
            let (standing, errors) = (health.standing(now), health.errors(now));
            let node = &placed.node;
            PeerReport {
                rank: index + 1,
                id: node.id.clone(),
                region: node.region.clone(),
                peer_addr: inner.address(node).to_owned(),
                phase: node.phase,
                distance_km: placed.way.distance_km,
                rtt_ms: placed.way.rtt_ms(),
                load: node.load,
                late_after_ms: inner
                    .health
                    .late_after(&node.id)
                    .map(|late| late.as_secs_f64() * 1e3),
                bytes_per_s: health.bytes_per_s(),
                score: select::score(
                    placed.cost_ms + select::transfer_ms(inner.usual_bytes(), health.bytes_per_s()),
                    node.load,
                    standing,
                    errors,
                ),
                errors,
                ejected: standing == Standing::Ejected,
                standing,
                last_failure: health.last_failure(),
                false_hits: health.false_hits(),
                digest: digests.get(&node.id).and_then(|digest| {
                    let version = digest.version()?;
                    Some(DigestReport {
                        epoch: version.epoch,
                        seq: version.seq,
                        objects: digest.len(),
                        bytes: digest.memory_bytes(),
                    })
                }),
                why: placed.way.explain(),
            }
        };
        inner.placed().into_iter().enumerate().map(report).collect()
    }
}
