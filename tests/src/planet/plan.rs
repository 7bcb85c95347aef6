//! What is simulated: how many nodes, which demand, which way of finding objects.

/// How a node that misses finds an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// It asks the origin.
    NoPeers,
    /// It asks the owner of the key by a ring over all nodes, wherever that is; the owner the origin.
    Hashing,
    /// It asks the nearest of those that claim it by distance alone; then the origin.
    Nearest,
    /// As the project does: by digests, measurements, coordinates, health; then the homes of the key.
    Measured,
}

impl Strategy {
    /// All, the project's own last.
    pub const ALL: [Self; 4] = [Self::NoPeers, Self::Hashing, Self::Nearest, Self::Measured];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoPeers => "no peers",
            Self::Hashing => "consistent hashing",
            Self::Nearest => "nearest by distance",
            Self::Measured => "this project",
        }
    }
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How objects are found.
    pub strategy: Strategy,
    /// Number of nodes.
    pub nodes: usize,
    /// Objects that may be wanted.
    pub objects: u32,
    /// Requests of clients.
    pub requests: u64,
    /// Of a hundred nodes, how many die within the run, each for a minute.
    pub dying: f64,
    /// Of a hundred nodes, how many are slow.
    pub slow: f64,
    /// Whether clients come as soon as nodes know of each other, before they have measured anything.
    pub cold: bool,
    /// What each node stores at most, in bytes.
    pub store_bytes: u64,
    /// A trace instead of the Zipf law: lines `key,size`.
    pub trace: Option<String>,
    /// The same seed gives the same run.
    pub seed: u64,
}

impl Plan {
    /// The run of this many nodes that `docs/simulation.md` shows.
    pub fn of(strategy: Strategy, nodes: usize) -> Self {
        Self {
            strategy,
            nodes,
            objects: 2_000,
            requests: (300 * nodes as u64).max(400_000),
            dying: 3.0,
            slow: 2.0,
            cold: false,
            store_bytes: 1 << 30,
            trace: None,
            seed: 1,
        }
    }
}
