//! What came of a run.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::plan::Strategy;

/// Where a client's bytes came from, as its edge sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The edge's own store.
    Store,
    /// A peer that held it.
    Peer,
    /// A home of the key, which may have asked further.
    Home,
    /// The origin.
    Origin,
}

/// What is counted.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How objects were found.
    pub strategy: Strategy,
    /// Number of nodes.
    pub nodes: usize,
    /// Different objects that were wanted.
    pub objects: usize,
    /// Requests to the origin.
    pub origin_requests: u64,
    /// Bytes to clients, by [`Source`].
    pub bytes: [u64; 4],
    /// Peers that did not have what their digest claimed.
    pub false_hits: u64,
    /// Fetches in which nobody claimed what a neighbour held.
    pub false_misses: u64,
    /// Questions that nobody answered.
    pub timeouts: u64,
    /// Bytes of digests pulled, by node.
    pub digest_bytes: Vec<u64>,
    /// Memory of digests at the end, by node.
    pub digest_memory_bytes: Vec<u64>,
    /// Bytes sent to other nodes, by node.
    pub sent_bytes: Vec<u64>,
    /// How long clients came, in seconds.
    pub demand_s: f64,
    first_ms: Vec<f32>,
    last_ms: Vec<f32>,
}

impl Outcome {
    pub(super) fn new(strategy: Strategy, nodes: usize) -> Self {
        Self {
            strategy,
            nodes,
            objects: 0,
            origin_requests: 0,
            bytes: [0; 4],
            false_hits: 0,
            false_misses: 0,
            timeouts: 0,
            digest_bytes: vec![0; nodes],
            digest_memory_bytes: Vec::new(),
            sent_bytes: Vec::new(),
            demand_s: 0.0,
            first_ms: Vec::new(),
            last_ms: Vec::new(),
        }
    }

    /// A client got its first and its last byte after so many milliseconds.
    pub(super) fn client(&mut self, source: Source, bytes: u64, first_ms: f64, last_ms: f64) {
        self.bytes[source as usize] += bytes;
        self.first_ms.push(first_ms as f32);
        self.last_ms.push(last_ms as f32);
    }

    /// Clients that were answered.
    pub fn answered(&self) -> usize {
        self.first_ms.len()
    }

    /// Requests to the origin for each object that was wanted.
    pub fn origin_per_object(&self) -> f64 {
        self.origin_requests as f64 / self.objects.max(1) as f64
    }

    /// Time to first byte.
    pub fn first(&self) -> Times {
        Times::of(&self.first_ms)
    }

    /// Time to last byte.
    pub fn last(&self) -> Times {
        Times::of(&self.last_ms)
    }

    /// Share of the bytes that came from there.
    pub fn share(&self, source: Source) -> f64 {
        self.bytes[source as usize] as f64 / self.bytes.iter().sum::<u64>().max(1) as f64
    }

    /// Digest traffic of a node in bytes per second: mean and most.
    pub fn digest_rate(&self) -> (f64, f64) {
        let (mean, most) = spread(&self.digest_bytes);
        (mean / self.demand_s, most / self.demand_s)
    }

    /// Memory for digests of a node, in bytes: mean and most.
    pub fn digest_memory(&self) -> (f64, f64) {
        spread(&self.digest_memory_bytes)
    }

    /// What the busiest node sent to others, as a multiple of the mean.
    pub fn load_spread(&self) -> f64 {
        let (mean, most) = spread(&self.sent_bytes);
        most / mean.max(1.0)
    }

    /// A number that two runs share only if every client got every byte at the same time.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for ms in self.first_ms.iter().chain(&self.last_ms) {
            ms.to_bits().hash(&mut hasher);
        }
        (self.bytes, self.origin_requests, self.false_hits).hash(&mut hasher);
        (&self.digest_bytes, &self.sent_bytes).hash(&mut hasher);
        hasher.finish()
    }
}

/// Mean and greatest.
fn spread(values: &[u64]) -> (f64, f64) {
    let sum: u64 = values.iter().sum();
    let most = values.iter().copied().max().unwrap_or(0);
    (sum as f64 / values.len().max(1) as f64, most as f64)
}

/// Milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The mean.
    pub mean: f64,
    /// Half are at most this.
    pub p50: f64,
    /// 95 of 100 are at most this.
    pub p95: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// 999 of 1,000 are at most this.
    pub p999: f64,
}

impl Times {
    fn of(samples: &[f32]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f32::total_cmp);
        let at = |share: f64| {
            let index = (sorted.len() as f64 * share) as usize;
            f64::from(sorted.get(index).copied().unwrap_or_default())
        };
        let sum: f64 = sorted.iter().map(|ms| f64::from(*ms)).sum();
        Self {
            mean: sum / sorted.len().max(1) as f64,
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
        }
    }
}
