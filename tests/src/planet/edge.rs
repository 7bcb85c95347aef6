//! A simulated edge: what it holds, and what it knows of others.

use std::collections::{BTreeMap, HashMap, VecDeque};

use cluster::{
    coordinates::Coordinate,
    digest::Holdings,
    geo::GeoPoint,
    key::Key,
    node::{NodeInfo, Phase, Role},
};
use edge_node::upstream::health::PeerHealth;

use super::run::FetchId;

/// How an edge stands with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// A fetch is under way.
    Filling(FetchId),
    /// It is there.
    Held,
}

/// One edge.
pub(super) struct Edge {
    /// As it describes itself.
    pub(super) info: NodeInfo,
    pub(super) alive: bool,
    pub(super) holdings: Holdings,
    pub(super) health: BTreeMap<usize, PeerHealth>,
    pub(super) coordinate: Coordinate,
    /// Whose digests it has, the nearest first.
    pub(super) neighbours: Vec<usize>,
    /// When what it sends now will have left.
    pub(super) uplink_free_ms: f64,
    /// Bytes it sent to others, ever and as last told by gossip.
    pub(super) sent_bytes: u64,
    pub(super) told_bytes: u64,
    states: HashMap<u32, State>,
    /// Held objects, the oldest first.
    ring: VecDeque<(u32, Key, u64)>,
    ring_bytes: u64,
    ring_bytes_max: u64,
}

impl Edge {
    pub(super) fn new(number: usize, region: &str, point: GeoPoint, store_bytes: u64) -> Self {
        let id = format!("edge-{number:04}");
        let mut info = NodeInfo::new(id.parse().expect("a node's name"), Role::Edge);
        info.phase = Phase::Ready;
        info.region = region.to_owned();
        info.location = Some(point);
        info.peer = format!("{id}:7947");
        info.capacity_bytes = store_bytes;
        Self {
            info,
            alive: true,
            holdings: Holdings::new(1),
            health: BTreeMap::new(),
            coordinate: Coordinate::at(Some(point)),
            neighbours: Vec::new(),
            uplink_free_ms: 0.0,
            sent_bytes: 0,
            told_bytes: 0,
            states: HashMap::new(),
            ring: VecDeque::new(),
            ring_bytes: 0,
            ring_bytes_max: store_bytes,
        }
    }

    pub(super) fn state(&self, object: u32) -> Option<State> {
        self.states.get(&object).copied()
    }

    pub(super) fn begin(&mut self, object: u32, fetch: FetchId) {
        self.states.insert(object, State::Filling(fetch));
    }

    /// The object has come whole. What is oldest gives way, as in the ring on disk.
    pub(super) fn commit(&mut self, object: u32, key: Key, bytes: u64) {
        self.states.insert(object, State::Held);
        self.holdings.add(key);
        self.ring.push_back((object, key, bytes));
        self.ring_bytes += bytes;
        while self.ring_bytes > self.ring_bytes_max
            && let Some((object, key, bytes)) = self.ring.pop_front()
        {
            self.ring_bytes -= bytes;
            self.states.remove(&object);
            self.holdings.remove(key);
        }
    }

    /// Dies; the fetches that were under way, in order.
    pub(super) fn die(&mut self) -> Vec<FetchId> {
        self.alive = false;
        let filling = self.states.values().filter_map(|state| match state {
            State::Filling(fetch) => Some(*fetch),
            State::Held => None,
        });
        let mut lost: Vec<FetchId> = filling.collect();
        lost.sort_unstable();
        self.states.retain(|_, state| *state == State::Held);
        lost
    }

    /// Starts again with what is on its disk; a digest of a new epoch.
    pub(super) fn restart(&mut self, epoch: u64) {
        self.alive = true;
        self.health.clear();
        self.holdings = Holdings::new(epoch);
        for (_, key, _) in &self.ring {
            self.holdings.add(*key);
        }
    }
}
