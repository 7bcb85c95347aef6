//! Paths, header fields and bodies that nodes exchange over HTTP. The control plane and the edges
//! know each other only through this file.

mod registry;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    node::{Load, NodeId, Phase, Role},
    purge::{Position, Record, Scope},
    site::SiteSet,
};

pub use self::registry::{
    SiteAction, SiteChanged, SiteDifference, SiteHistory, SiteRollback, SiteVersion, SitesPut,
    SitesPutAnswer,
};

/// Peer listener: `GET {HOLD}/{key as 32 hex digits}` asks for an object from storage only.
pub const HOLD: &str = "/v1/hold";
/// Peer listener: `GET {FILL}/{key}` asks the home of a key for an object, which it fetches if need be.
pub const FILL: &str = "/v1/fill";
/// Peer listener: `GET {OFFER}/{key}` tells that an object is wanted in the node's region; it may fetch it.
pub const OFFER: &str = "/v1/offer";
/// Peer listener: `GET {CHANGED}/{key}` tells that a client has changed what an object is of: what is stored
/// of it, and what others have from before, is not to be used.
pub const CHANGED: &str = "/v1/changed";
/// Peer listener: `GET {DIGEST}?since=epoch,seq` asks for what changed in the digest.
pub const DIGEST: &str = "/v1/digest";
/// Peer listener: `POST {WARM}?body={hash}` with a [`WarmBatch`] asks a node to fetch URLs ahead of
/// demand; answered with a line of JSON for each, a [`WarmStep`], as they come in, and empty lines
/// as signs of life. Control plane: the jobs that do so.
pub const WARM: &str = "/v1/warm";
/// Most URLs in one batch.
pub const WARM_BATCH_MAX: usize = 256;
/// Longest URL in a batch, in bytes: what an edge takes from a client at least.
pub const WARM_URL_BYTES_MAX: usize = 8 << 10;
/// Most bytes of a batch: as many URLs of the greatest length, and what JSON puts around them.
pub const WARM_BATCH_BYTES_MAX: usize = WARM_BATCH_MAX * (WARM_URL_BYTES_MAX + 16) + 1024;
/// Longest silence in the answer to a batch, in seconds; a sign of life comes three times as often.
pub const WARM_SILENCE_MAX_S: u64 = 15;
/// Peer listener: `POST {PURGES}?body={hash}` with a [`PurgePush`] hands a node records of the purge
/// log, answered by [`PurgeApplied`] once they are applied and on disk. Peer listener and control
/// plane: `GET {PURGES}?log=L&after=N&limit=K` is answered by a [`PurgePage`]; the control plane's has
/// a MAC as all of its documents. Control plane: `POST {PURGES}` with a [`PurgeRequest`].
pub const PURGES: &str = "/v1/purges";
/// Most records in one page or push.
pub const PURGE_PAGE_MAX: usize = 1_000;
/// Most bytes of a page or a push: a page ends before it would be longer.
pub const PURGE_PAGE_BYTES_MAX: usize = 4 << 20;
/// Peer listener: `GET {PING}` is answered by 204 at once: how long that takes is the round trip.
pub const PING: &str = "/v1/ping";
/// Control plane: the site registry. Peer listener: `GET {SITES}?version=V` tells that there is such a
/// version of it, to be pulled at once; answered by 204.
pub const SITES: &str = "/v1/sites";
/// Largest site registry, in bytes of JSON: [`crate::site::SITES_MAX`] sites of 3 KiB.
pub const SITES_BYTES_MAX: usize = 32 << 20;
/// Control plane: ranked peers of one node.
pub const PEERS: &str = "/v1/peers";
/// Control plane: ranked edges for one client.
pub const EDGES: &str = "/v1/edges";
/// Control plane: everybody.
pub const NODES: &str = "/v1/nodes";

/// For whom a request to a control plane is signed: whoever asks knows its URL, not its name.
pub const CONTROL_PLANES: &str = "control-planes";

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
    /// Nodes whose clocks are so far off that gossip drops what they send: they may be missing above, or gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clocks_off: Vec<ClockOff>,
}

/// A node whose clock is off, by the time that its requests carry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockOff {
    /// The node.
    pub node: NodeId,
    /// By how many seconds it is ahead of the control plane's, or behind if negative.
    pub ahead_s: i64,
}

impl std::fmt::Display for ClockOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let way = if self.ahead_s > 0 {
            "ahead of"
        } else {
            "behind"
        };
        let by = self.ahead_s.unsigned_abs();
        write!(
            f,
            "its clock is {by} s {way} this control plane's, and it takes nothing from other nodes"
        )
    }
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
    /// By how many seconds its clock is ahead of the control planes', or behind if negative; 0 when they agree,
    /// or it does not know.
    #[serde(default)]
    pub clock_ahead_s: i64,
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

/// URLs to fetch ahead of demand, all of one site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmBatch {
    /// The site's name.
    pub site: String,
    /// Absolute URLs; at most [`WARM_BATCH_MAX`].
    pub urls: Vec<String>,
}

/// What came of one URL of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmStep {
    /// Its place in the batch, from 0 on.
    pub url: usize,
    /// What came of it.
    #[serde(flatten)]
    pub result: WarmResult,
}

/// What came of one URL on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WarmResult {
    /// The node holds it, fresh.
    Held {
        /// Where it came from.
        from: WarmSource,
        /// How long its body is.
        bytes: u64,
    },
    /// It does not.
    Failed {
        /// Why, in words.
        reason: String,
    },
}

/// Where what a node was to fetch came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WarmSource {
    /// It was there already.
    Stored,
    /// Another edge, which held it.
    Peer,
    /// The home of its key, which fetched it.
    Home,
    /// The origin.
    Origin,
}

impl WarmSource {
    /// Its name, as in JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Peer => "peer",
            Self::Home => "home",
            Self::Origin => "origin",
        }
    }
}

/// The body of `POST /v1/warm`: what to fetch ahead of demand, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WarmRequest {
    /// The site's name.
    pub site: String,
    /// URLs of the site, or paths on its first host.
    pub urls: Vec<String>,
    /// The same, one a line; empty lines and those that begin with `#` say nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub list: String,
    /// The edges that shall have them; with no `regions` either, all of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeId>,
    /// The regions whose edges shall have them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub regions: Vec<String>,
}

/// The answer to `GET /v1/warm`: the newest job first, and without what failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmList {
    /// The jobs.
    pub jobs: Vec<WarmStatus>,
}

/// The answer to `GET /v1/warm/{id}`: how far a job is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmStatus {
    /// Its name.
    pub id: String,
    /// The site.
    pub site: String,
    /// How it stands.
    pub state: WarmState,
    /// How many URLs there are, each of them for every node.
    pub urls: usize,
    /// When it was taken, in Unix milliseconds.
    pub taken_at: u64,
    /// When it is given up, in Unix milliseconds.
    pub expires_at: u64,
    /// How far each node is.
    pub nodes: Vec<WarmNode>,
}

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WarmState {
    /// It goes on.
    Running,
    /// Every node has had every URL; some may have failed.
    Done,
    /// The operator has ended it.
    Cancelled,
    /// Its time ran out.
    Expired,
}

/// How far one node is with a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmNode {
    /// The node.
    pub node: NodeId,
    /// URLs that it holds, fresh.
    pub done: usize,
    /// URLs that it could not get.
    pub failed: usize,
    /// Bytes of what it holds.
    pub bytes: u64,
    /// By where it came from.
    pub sources: BTreeMap<WarmSource, WarmTally>,
    /// The first of those that failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<WarmFailure>,
    /// Why it does not go on at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// How much came from somewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmTally {
    /// Objects.
    pub objects: usize,
    /// Bytes of their bodies.
    pub bytes: u64,
}

/// A URL that a node could not get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmFailure {
    /// The URL.
    pub url: String,
    /// Why.
    pub reason: String,
}

/// Records of the purge log, on their way to a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PurgePush {
    /// In the order of their numbers; at most [`PURGE_PAGE_MAX`].
    pub records: Vec<Record>,
}

/// A node's answer to a [`PurgePush`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgeApplied {
    /// Up to which place the node now lacks nothing. All that was pushed is in force whatever this
    /// says; a place in a later log tells the control plane that its own was lost and begun anew.
    pub applied: Position,
}

/// A part of the purge log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgePage {
    /// Which log: see [`Position::log`]. Who asked for another gets this one from its beginning.
    pub log: u64,
    /// The number of the last record of all.
    pub head: u64,
    /// Where the next page begins. Who had everything up to where the first page began, and applies all of
    /// them up to one that reaches `head`, has everything up to there. Not before: what a record on a later
    /// page hits again is left out on this one.
    pub through: u64,
    /// In the order of their numbers, without those whose every scope a later one hit again.
    pub records: Vec<Record>,
    /// From a node: so many milliseconds ago, or later, a control plane said that nothing is missing up to
    /// `head`, to it or to whoever told it. Absent: it cannot say. A control plane says it by answering.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// From a control plane: what time it is there, in Unix milliseconds, so that a node finds out that its
    /// clock is off before it finds out that nobody listens to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now_ms: Option<u64>,
}

impl PurgePage {
    /// Lets its records say nothing of what came before them: one that is left out may be made up for by one
    /// behind this page, and who has only this page must not conclude from who came before whom that it
    /// lacks nothing.
    pub fn unlink(&mut self) {
        for record in &mut self.records {
            record.prev = record.at.seq.saturating_sub(1);
        }
    }
}

/// The body of `POST /v1/purges`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PurgeRequest {
    /// The site's name.
    pub site: String,
    /// URLs of the site, or paths on all of its hosts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Beginnings of URLs, or of paths on all of its hosts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<String>,
    /// Tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// All of the site.
    pub all: bool,
    /// Mark stale only.
    pub soft: bool,
    /// Whom the answer waits for.
    pub wait: PurgeWait,
}

/// Whom the answer to a purge waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PurgeWait {
    /// Every live edge, each for a bounded time.
    #[default]
    All,
    /// More than half of them.
    Quorum,
    /// Nobody: the log has it, the edges will.
    None,
}

/// The answer to `POST /v1/purges` and to `GET /v1/purges/{seq}`: a purge and who has applied it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgeStatus {
    /// Its number in the log.
    pub seq: u64,
    /// The log.
    pub log: u64,
    /// The site.
    pub site: String,
    /// What it hits.
    pub scopes: Vec<Scope>,
    /// Whether it only marks stale.
    pub soft: bool,
    /// When it was taken, in Unix milliseconds.
    pub taken_at: u64,
    /// Who asked for it.
    pub by: String,
    /// Every live edge has acknowledged it, and there is one.
    pub complete: bool,
    /// How long the slowest of those that have acknowledged it took, in milliseconds.
    pub elapsed_ms: u64,
    /// What became of it at each edge.
    pub nodes: Vec<PurgeReceipt>,
}

/// What became of a purge at one edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgeReceipt {
    /// The edge.
    pub node: NodeId,
    /// How it stands.
    pub state: PurgeState,
    /// When it acknowledged, in milliseconds after the purge was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
    /// Why it has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How a purge stands at one edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PurgeState {
    /// Asked, and not answered yet.
    Pending,
    /// From now on the edge serves nothing that it hit.
    Acknowledged,
    /// Reachable, but it took longer than the answer waits.
    Late,
    /// It cannot be reached; it gets the purge before it is ready again.
    Unreachable,
}

/// The body of every error that a JSON API of the project answers with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorAnswer {
    /// What went wrong, in a sentence.
    pub error: String,
    /// The offending field or parameter, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}
