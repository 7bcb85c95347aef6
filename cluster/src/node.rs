//! One node as the others see it, and the gossip keys that say so.
//!
//! A node's state is a handful of short strings under fixed keys (at most [`KEYS_MAX`] keys of at
//! most [`VALUE_BYTES_MAX`] bytes): chitchat sends keys one after the other, and a large value
//! would hold up all that follow. Large things are *versions* here and bodies over HTTP.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize, Serializer};

use crate::{coordinates::Coordinate, geo::GeoPoint, purge::Position};

/// Most gossip keys a node may publish.
pub const KEYS_MAX: usize = 16;
/// Longest value of a gossip key, in bytes.
pub const VALUE_BYTES_MAX: usize = 1024;
/// Most round trips a node publishes (the peers it measured most recently).
pub const ROUND_TRIPS_MAX: usize = 32;
/// What a node tells as its time to an origin that it cannot reach, in milliseconds: farther than anything.
pub const UNREACHABLE_MS: f64 = 1e6;
/// Most sites whose origin's time a node publishes.
pub const ORIGINS_MAX: usize = 32;

/// A node's name: 1 to 64 of `a-z 0-9 . _ -`, unique in the cluster, stable over restarts. Clones share
/// it: every stored object names the node that fetched it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is not a node's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a node id is 1 to 64 characters of a-z, 0-9, '.', '_' and '-', not {0:?}")]
pub struct BadNodeId(String);

impl FromStr for NodeId {
    type Err = BadNodeId;

    fn from_str(text: &str) -> Result<Self, BadNodeId> {
        let fits = (1..=64).contains(&text.len())
            && text
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'));
        if fits {
            Ok(Self(text.into()))
        } else {
            Err(BadNodeId(text.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for NodeId {
    type Error = BadNodeId;

    fn try_from(text: String) -> Result<Self, BadNodeId> {
        text.parse()
    }
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.as_str().to_owned()
    }
}

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Serves clients and peers from its cache.
    Edge,
    /// Watches, ranks and steers; serves no content.
    Control,
}

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Up, but not yet able to serve everything it should.
    Starting,
    /// Serving.
    Ready,
    /// Finishing what it has begun; send it nothing new.
    Draining,
}

/// How busy a node is, over its last gossip interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Requests under way on the public and the peer listener.
    pub in_flight: u32,
    /// Bytes of responses sent per second.
    pub bytes_per_s: u64,
}

/// Which digest a node offers: `epoch` is new at every start, `seq` grows with every change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestVersion {
    /// Boot time of the node in Unix milliseconds; digests of two epochs have nothing in common.
    pub epoch: u64,
    /// Number of the last change within the epoch.
    pub seq: u64,
}

/// One node, as it last described itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeInfo {
    /// The node's name.
    pub id: NodeId,
    /// What it is for.
    pub role: Role,
    /// The operator's label for the place, such as `eu-west`; empty when not given.
    pub region: String,
    /// Where it says it is; the control plane may know better.
    pub location: Option<GeoPoint>,
    /// Base URL for clients, without a trailing slash; may hold `{host}` (see [`crate::site::SiteMap`]).
    pub http: String,
    /// `host:port` of the peer listener (edges), or of the API (control plane).
    pub peer: String,
    /// Address that gossip about it comes from.
    pub gossip: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// How busy it is.
    pub load: Load,
    /// What digest it offers; `None` when it offers none.
    pub digest: Option<DigestVersion>,
    /// Up to which place in the purge log nothing is missing.
    pub purged: Position,
    /// Version of the site registry it serves (edges) or offers (control plane).
    pub sites_version: u64,
    /// Round trips it measured to others, in milliseconds.
    pub round_trips_ms: BTreeMap<NodeId, f64>,
    /// Where it is by round trips; `None` until it has learnt.
    pub coordinate: Option<Coordinate>,
    /// What its cache holds at most, in bytes; 0 when it does not say. Keys are shared by it.
    pub capacity_bytes: u64,
    /// By how many seconds its clock is ahead of the control planes', or behind if negative; 0 when they agree as
    /// far as [requests between nodes](crate::auth) need it, or it does not know.
    pub clock_ahead_s: i64,
    /// Time to the origins of sites, as it measured it, in milliseconds.
    pub origins_ms: BTreeMap<String, f64>,
}

impl NodeInfo {
    /// A node as it is at birth: nothing measured, nothing offered.
    pub fn new(id: NodeId, role: Role) -> Self {
        Self {
            id,
            role,
            region: String::new(),
            location: None,
            http: String::new(),
            peer: String::new(),
            gossip: String::new(),
            phase: Phase::Starting,
            load: Load::default(),
            digest: None,
            purged: Position::default(),
            sites_version: 0,
            round_trips_ms: BTreeMap::new(),
            coordinate: None,
            capacity_bytes: 0,
            clock_ahead_s: 0,
            origins_ms: BTreeMap::new(),
        }
    }

    /// Whether clients and peers may be sent to it.
    pub fn is_serving_edge(&self) -> bool {
        self.role == Role::Edge && self.phase == Phase::Ready
    }

    /// The gossip keys that describe this node, with their values. `id` and `gossip` travel in
    /// chitchat's own node identity.
    pub fn to_keys(&self) -> Vec<(&'static str, String)> {
        let mut keys = vec![
            ("role", text_of(self.role)),
            ("region", self.region.clone()),
            ("http", self.http.clone()),
            ("peer", self.peer.clone()),
            ("phase", text_of(self.phase)),
            (
                "load",
                format!("{},{}", self.load.in_flight, self.load.bytes_per_s),
            ),
            ("purge", format!("{},{}", self.purged.log, self.purged.seq)),
            ("sites", self.sites_version.to_string()),
        ];
        if let Some(point) = self.location {
            keys.push(("geo", format!("{},{}", point.latitude(), point.longitude())));
        }
        if let Some(digest) = self.digest {
            keys.push(("digest", format!("{},{}", digest.epoch, digest.seq)));
        }
        if let Some(coordinate) = self.coordinate {
            keys.push(("at", coordinate.to_text()));
        }
        let round_trips = self.round_trips_ms.iter().take(ROUND_TRIPS_MAX);
        let origins = self.origins_ms.iter().take(ORIGINS_MAX);
        for (key, times) in [("rtt", times(round_trips)), ("origins", times(origins))] {
            if !times.is_empty() {
                keys.push((key, times));
            }
        }
        if self.capacity_bytes > 0 {
            keys.push(("capacity", self.capacity_bytes.to_string()));
        }
        if self.clock_ahead_s != 0 {
            keys.push(("clock", self.clock_ahead_s.to_string()));
        }
        debug_assert!(keys.len() <= KEYS_MAX);
        keys
    }

    /// Reads a node back from its gossip keys.
    ///
    /// # Errors
    ///
    /// The first key that is missing (`role`, `phase`, `peer`) or unreadable. A node that cannot be
    /// read is left out of the view as a whole: half a description would mislead.
    pub fn from_keys<'a>(
        id: NodeId,
        gossip: String,
        get: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Self, UnreadableNode> {
        let required = |key: &'static str| get(key).ok_or_else(|| unreadable(key, "missing"));
        let mut node = Self::new(id, value_of("role", required("role")?)?);
        node.gossip = gossip;
        node.phase = value_of("phase", required("phase")?)?;
        node.peer = required("peer")?.to_owned();
        node.http = get("http").unwrap_or_default().to_owned();
        node.region = get("region").unwrap_or_default().to_owned();
        if let Some(text) = get("geo") {
            let (latitude, longitude): (f64, f64) = pair("geo", text)?;
            node.location =
                Some(GeoPoint::new(latitude, longitude).ok_or_else(|| unreadable("geo", text))?);
        }
        if let Some(text) = get("at") {
            let at = Coordinate::from_text(text, node.location);
            node.coordinate = Some(at.ok_or_else(|| unreadable("at", text))?);
        }
        if let Some(text) = get("load") {
            let (in_flight, bytes_per_s) = pair("load", text)?;
            node.load = Load {
                in_flight,
                bytes_per_s,
            };
        }
        if let Some(text) = get("digest") {
            let (epoch, seq) = pair("digest", text)?;
            node.digest = Some(DigestVersion { epoch, seq });
        }
        if let Some(text) = get("purge") {
            let (log, seq) = pair("purge", text)?;
            node.purged = Position { log, seq };
        }
        if let Some(text) = get("sites") {
            node.sites_version = number("sites", text)?;
        }
        if let Some(text) = get("capacity") {
            node.capacity_bytes = number("capacity", text)?;
        }
        if let Some(text) = get("clock") {
            node.clock_ahead_s = number("clock", text)?;
        }
        for time in times_of("rtt", get("rtt"), ROUND_TRIPS_MAX) {
            let (id, ms) = time?;
            let id = id.parse().map_err(|_| unreadable("rtt", id))?;
            node.round_trips_ms.insert(id, ms);
        }
        for time in times_of("origins", get("origins"), ORIGINS_MAX) {
            let (site, ms) = time?;
            node.origins_ms.insert(site.to_owned(), ms);
        }
        Ok(node)
    }
}

/// Times in milliseconds under names, as many as fit into one value.
fn times<'a>(named: impl Iterator<Item = (&'a (impl fmt::Display + 'a), &'a f64)>) -> String {
    let mut text = String::new();
    for (name, ms) in named {
        let one = format!("{name}={ms:.1}");
        if text.len() + one.len() + 1 > VALUE_BYTES_MAX {
            break;
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&one);
    }
    text
}

/// The same read back, at most `most` of them.
fn times_of<'a>(
    key: &'static str,
    text: Option<&'a str>,
    most: usize,
) -> impl Iterator<Item = Result<(&'a str, f64), UnreadableNode>> {
    let all = text.into_iter().flat_map(|text| text.split(','));
    all.take(most).map(move |one| {
        let (name, ms) = one.split_once('=').ok_or_else(|| unreadable(key, one))?;
        let ms: f64 = number(key, ms)?;
        if ms.is_finite() && ms >= 0.0 {
            Ok((name, ms))
        } else {
            Err(unreadable(key, one))
        }
    })
}

/// A gossip key that says nothing a node could use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("gossip key {key:?} is unreadable: {value:?}")]
pub struct UnreadableNode {
    key: &'static str,
    value: String,
}

fn unreadable(key: &'static str, value: &str) -> UnreadableNode {
    UnreadableNode {
        key,
        value: value.chars().take(80).collect(),
    }
}

fn number<T: FromStr>(key: &'static str, text: &str) -> Result<T, UnreadableNode> {
    text.parse().map_err(|_| unreadable(key, text))
}

fn pair<A: FromStr, B: FromStr>(key: &'static str, text: &str) -> Result<(A, B), UnreadableNode> {
    let (a, b) = text.split_once(',').ok_or_else(|| unreadable(key, text))?;
    Ok((number(key, a)?, number(key, b)?))
}

/// The serde name of a unit variant.
fn text_of<T: Serialize>(value: T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => unreachable!("unit variants are strings"),
    }
}

fn value_of<T: for<'de> Deserialize<'de>>(
    key: &'static str,
    text: &str,
) -> Result<T, UnreadableNode> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|_| unreadable(key, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> NodeInfo {
        let mut node = NodeInfo::new("edge-1".parse().unwrap(), Role::Edge);
        node.region = "eu".into();
        node.location = GeoPoint::new(50.1, 8.7);
        node.http = "http://edge-1:8080".into();
        node.peer = "edge-1:7947".into();
        node.gossip = "10.0.0.1:7946".into();
        node.phase = Phase::Ready;
        node.load = Load {
            in_flight: 3,
            bytes_per_s: 1_000_000,
        };
        node.digest = Some(DigestVersion { epoch: 7, seq: 42 });
        node.sites_version = 5;
        node.purged = Position { log: 9, seq: 4 };
        node.round_trips_ms.insert("edge-2".parse().unwrap(), 12.5);
        node.coordinate = Coordinate::from_text("1.5,-20.0,0.0,3.1,0.25", node.location);
        node.capacity_bytes = 10 << 30;
        node.clock_ahead_s = -3_600;
        node.origins_ms.insert("www".into(), 31.5);
        node
    }

    fn read(keys: &[(&'static str, String)]) -> Result<NodeInfo, UnreadableNode> {
        NodeInfo::from_keys("edge-1".parse().unwrap(), "10.0.0.1:7946".into(), |key| {
            keys.iter()
                .find(|(k, _)| *k == key)
                .map(|(_, v)| v.as_str())
        })
    }

    #[test]
    fn a_node_survives_its_gossip_keys() {
        assert_eq!(read(&sample().to_keys()).unwrap(), sample());
    }

    #[test]
    fn an_unreadable_or_missing_key_names_itself() {
        for (key, value) in [
            ("geo", "91,0"),
            ("load", "x,1"),
            ("rtt", "edge-2=NaN"),
            ("at", "1,2,3"),
            ("origins", "www=-1"),
            ("capacity", "much"),
            ("clock", "late"),
            ("phase", "?"),
        ] {
            let mut keys = sample().to_keys();
            keys.iter_mut().find(|(k, _)| *k == key).unwrap().1 = value.into();
            assert_eq!(read(&keys).unwrap_err().key, key);
        }
        let keys: Vec<_> = sample()
            .to_keys()
            .into_iter()
            .filter(|(k, _)| *k != "peer")
            .collect();
        assert_eq!(read(&keys).unwrap_err().key, "peer");
    }

    #[test]
    fn node_ids_are_host_name_like() {
        for bad in ["", "Edge", "a b", "a/b", &"x".repeat(65)] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad:?}");
        }
        assert!("edge-1.fra_2".parse::<NodeId>().is_ok());
    }
}
