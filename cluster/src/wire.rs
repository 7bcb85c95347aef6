//! Paths, header fields and bodies that nodes exchange over HTTP. The control plane and the edges
//! know each other only through this file.

use serde::{Deserialize, Serialize};

use crate::{
    node::{Load, NodeId, Phase, Role},
    site::SiteSet,
};

/// Peer listener: `GET {HOLD}/{key as 32 hex digits}` asks for an object from storage only.
pub const HOLD: &str = "/v1/hold";
/// Peer listener: `GET {FILL}/{key}` asks the home of a key for an object, which it fetches if need be.
pub const FILL: &str = "/v1/fill";
/// Peer listener: `GET {DIGEST}?since=epoch,seq` asks for what changed in the digest.
pub const DIGEST: &str = "/v1/digest";
/// Peer listener: `GET {PING}` is answered by 204 at once: how long that takes is the round trip.
pub const PING: &str = "/v1/ping";
/// Control plane: the site registry.
pub const SITES: &str = "/v1/sites";
/// Control plane: ranked peers of one node.
pub const PEERS: &str = "/v1/peers";
/// Control plane: ranked edges for one client.
pub const EDGES: &str = "/v1/edges";
/// Control plane: everybody.
pub const NODES: &str = "/v1/nodes";

/// Who asks; part of a request's authentication (see [`crate::auth`]).
pub const NODE_FIELD: &str = "cdn-node";
/// When it was asked, in Unix milliseconds.
pub const TIME_FIELD: &str = "cdn-time";
/// 16 random bytes in hex, never used twice.
pub const NONCE_FIELD: &str = "cdn-nonce";
/// The MAC over the request, or over a document's body, in hex.
pub const MAC_FIELD: &str = "cdn-mac";

/// The answer to `GET /v1/peers?node=ID`: that node's peers, best first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeersAnswer {
    /// Whose peers these are.
    pub node: NodeId,
    /// When the ranking was made, in Unix milliseconds.
    pub generated_at: u64,
    /// How long it may be used; pull a new one before.
    pub ttl_s: u64,
    /// Best first.
    pub peers: Vec<RankedPeer>,
}

/// One peer in a ranking, and why it stands where it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankedPeer {
    /// The peer's name.
    pub id: NodeId,
    /// Its region label.
    pub region: String,
    /// `host:port` of its peer listener.
    pub peer_addr: String,
    /// Great-circle distance; `None` when either place is unknown.
    pub distance_km: Option<f64>,
    /// Measured round trip, when either of the two has measured it.
    pub rtt_ms: Option<f64>,
    /// How busy it is.
    pub load: Load,
    /// Expected cost in milliseconds; lower is better.
    pub score: f64,
    /// What the score rests on, in words.
    #[serde(default)]
    pub why: String,
}

/// The answer to `GET /v1/edges?client=IP`: edges for that client, best first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EdgesAnswer {
    /// The client's address.
    pub client: String,
    /// Where the database puts it.
    pub location: Option<Place>,
    /// Best first.
    pub edges: Vec<RankedEdge>,
}

/// One edge in a ranking for a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankedEdge {
    /// The edge's name.
    pub id: NodeId,
    /// Its region label.
    pub region: String,
    /// Its base URL for clients.
    pub http: String,
    /// Great-circle distance to the client; `None` when either place is unknown.
    pub distance_km: Option<f64>,
    /// How busy it is.
    pub load: Load,
    /// Expected cost in milliseconds; lower is better.
    pub score: f64,
}

/// The answer to `GET /v1/nodes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodesAnswer {
    /// Everybody, in order of their names.
    pub nodes: Vec<NodeStatus>,
}

/// One node, as the control plane sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub id: NodeId,
    /// What it is for.
    pub role: Role,
    /// Whether gossip hears from it. Nodes that fell silent stay listed for a while.
    pub alive: bool,
    /// Where it is in its life.
    pub phase: Phase,
    /// Its region label.
    pub region: String,
    /// Where it is.
    pub location: Option<Place>,
    /// Base URL for clients.
    pub http: String,
    /// `host:port` of its peer listener.
    pub peer: String,
    /// How busy it is.
    pub load: Load,
    /// Version of the site registry it serves.
    pub sites_version: u64,
    /// Last purge it applied.
    pub purge_seq: u64,
}

/// A place, and how it is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
    /// ISO 3166-1 code, when a database told the place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub country: Option<String>,
    /// City, when a database told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub city: Option<String>,
    /// `configured`, `city`, `country`.
    pub source: String,
}

/// The answer to `GET /v1/sites`.
pub type SitesAnswer = SiteSet;

/// The body of every error that a JSON API of the project answers with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorAnswer {
    /// What went wrong, in a sentence.
    pub error: String,
    /// The offending field or parameter, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}
