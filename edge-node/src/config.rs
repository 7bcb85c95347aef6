//! What the operator wrote ([`ConfigFile`]) and what it means ([`Config`]); checked once, at start.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use cluster::{
    geo::{Database, GeoPoint},
    node::NodeId,
    quantity::{Bytes, Span},
    secret::ClusterSecret,
    site::{Site, SiteMap, SiteSet},
};
use serde::{Deserialize, Serialize};

/// Smallest disk tier: room for a handful of segments.
pub const DISK_BYTES_MIN: u64 = 32 << 20;

/// What `cache.purge_scopes` may be: one purge at least, and some GiB of memory at most.
pub const PURGE_SCOPES: std::ops::RangeInclusive<usize> = 1_000..=50_000_000;

/// Most fills at once, however large the machine: each is a task and an entry of a table.
pub const FILLS_MAX: usize = 1 << 20;

/// The configuration file, as written. Every key can also come from the environment
/// (`EDGE_CACHE__MEMORY=64MiB`).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigFile {
    /// Who this node is.
    pub node: NodeSection,
    /// Where it listens.
    pub listen: ListenSection,
    /// What others should use to reach it.
    pub advertise: AdvertiseSection,
    /// The cluster it belongs to; without a secret it stands alone.
    pub cluster: ClusterSection,
    /// What it may use for objects.
    pub cache: CacheSection,
    /// Bounds on clients.
    pub limits: LimitsSection,
    /// What peers may have of this node, and this node of them.
    pub peer: PeerSection,
    /// What tells countries.
    #[serde(skip_serializing_if = "is_unset")]
    pub geo: GeoSection,
    /// Sites, used when no control plane distributes them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub site: Vec<Site>,
}

/// `[node]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeSection {
    /// Name in the cluster; the host name when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Label of the place, such as `eu-west`.
    pub region: String,
    /// Degrees north; together with `longitude`, or neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latitude: Option<f64>,
    /// Degrees east.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longitude: Option<f64>,
    /// Where objects, sites and rankings are kept.
    pub data_dir: PathBuf,
}

impl Default for NodeSection {
    fn default() -> Self {
        Self {
            id: None,
            region: String::new(),
            latitude: None,
            longitude: None,
            data_dir: PathBuf::from("./data"),
        }
    }
}

/// `[listen]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListenSection {
    /// For clients: HTTP/1.1 and cleartext HTTP/2.
    pub http: SocketAddr,
    /// For peers.
    pub peer: SocketAddr,
    /// For gossip (UDP).
    pub gossip: SocketAddr,
    /// For the operator and for Prometheus.
    pub admin: SocketAddr,
}

impl Default for ListenSection {
    fn default() -> Self {
        Self {
            http: ([0, 0, 0, 0], 8080).into(),
            peer: ([0, 0, 0, 0], 7947).into(),
            gossip: ([0, 0, 0, 0], 7946).into(),
            admin: ([127, 0, 0, 1], 9090).into(),
        }
    }
}

/// `[advertise]`: absent keys are taken from `[listen]`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdvertiseSection {
    /// `host:port` or base URL for clients; `{host}` in it stands for a site's host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// `host:port` of the peer listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// `host:port` of gossip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gossip: Option<String>,
}

/// `[cluster]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterSection {
    /// Name of the cluster; nodes of another name are not heard.
    pub name: String,
    /// `host:port` of the gossip of some nodes.
    pub seeds: Vec<String>,
    /// Base URLs of the control planes; the first that answers is used.
    pub control_plane: Vec<String>,
    /// File with the cluster's secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// Time between gossip rounds.
    pub gossip_interval: Span,
    /// Bytes a second of hot objects that this node offers to others, on average; 0: none.
    pub offers: Bytes,
    /// How this node reaches certain peers, when not by the address they advertise: id → `host:port`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub reach: BTreeMap<String, String>,
}

impl Default for ClusterSection {
    fn default() -> Self {
        Self {
            name: "cdn".into(),
            seeds: Vec::new(),
            control_plane: Vec::new(),
            secret_file: None,
            gossip_interval: Span(Duration::from_millis(300)),
            offers: Bytes(8 << 20),
            reach: BTreeMap::new(),
        }
    }
}

/// `[cache]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheSection {
    /// Memory for hot objects.
    pub memory: Bytes,
    /// Disk for all objects, index included.
    pub disk: Bytes,
    /// Largest body that is stored.
    pub object_max: Bytes,
    /// Threads that read from disk.
    pub disk_threads: usize,
    /// Scopes of which the last purge is remembered, each some 64 bytes of memory. When there are more, the
    /// oldest of the site that has most are forgotten, and what it has stored from before is fetched again.
    pub purge_scopes: usize,
    /// Whether a client's `Cache-Control: no-cache` or `max-age` makes this cache ask the origin.
    pub honour_client_reload: bool,
}

impl Default for CacheSection {
    fn default() -> Self {
        Self {
            memory: Bytes(256 << 20),
            disk: Bytes(10 << 30),
            object_max: Bytes(20 << 30),
            disk_threads: 8,
            purge_scopes: 1_000_000,
            honour_client_reload: true,
        }
    }
}

/// `[limits]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSection {
    /// Connections on the public listener. When they run out, the one that has waited for its next
    /// request for the longest is closed; where none does, new ones wait in the system's queue.
    pub connections: usize,
    /// Objects that are fetched at once; a miss beyond them is answered by 503. One that waits for its
    /// origin takes some KiB, one whose body comes faster than the disk takes it 5 MiB.
    pub fills: usize,
    /// Largest request head.
    pub head: Bytes,
    /// Longest time from the first to the last byte of a request head, or of silence between
    /// requests on a kept connection.
    pub head_timeout: Span,
    /// Largest request body.
    pub body: Bytes,
    /// Longest silence within a request's body.
    pub body_timeout: Span,
    /// Longest time a client may take nothing of what is ready for it.
    pub write_timeout: Span,
    /// Streams at once on an HTTP/2 connection.
    pub h2_streams: u32,
    /// How long running transfers may take to finish at shutdown.
    pub drain: Span,
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self {
            connections: 16_384,
            // Over what one site may have at its origins and in line, so that one alone does not
            // stop the others.
            fills: 8_192,
            head: Bytes(64 << 10),
            head_timeout: Span(Duration::from_secs(60)),
            body: Bytes(1 << 30),
            body_timeout: Span(Duration::from_secs(30)),
            write_timeout: Span(Duration::from_secs(60)),
            h2_streams: 256,
            drain: Span(Duration::from_secs(30)),
        }
    }
}

/// `[peer]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeerSection {
    /// Objects, or parts of them, on their way to peers at once. More are told at once that this node is
    /// busy, and ask elsewhere.
    pub uploads: usize,
    /// Bytes per second of all of them together; 0 for no limit. When more than a second's worth is
    /// promised already, peers are told that this node is busy.
    pub upload_bytes_per_s: Bytes,
    /// Whether a second holder is asked when the first is later than usual; for one fetch in twenty at
    /// most.
    pub hedge: bool,
}

impl Default for PeerSection {
    fn default() -> Self {
        Self {
            uploads: 256,
            upload_bytes_per_s: Bytes(0),
            hedge: true,
        }
    }
}

/// Slowest upload that is any help to a peer: a first answer, of 4 MiB, in under half the time that the
/// peer bears for one piece.
const UPLOAD_BYTES_PER_S_MIN: u64 = 256 << 10;

/// `[geo]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GeoSection {
    /// Path of a MaxMind database, City or Country, for access rules that name countries. Absent: the
    /// one that ships with the project. `"none"`: no database, so every country is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
}

fn is_unset(geo: &GeoSection) -> bool {
    *geo == GeoSection::default()
}

/// A value that cannot be meant.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct BadConfig {
    /// The key, as a dotted path.
    pub key: &'static str,
    /// What is wrong, with the value.
    pub reason: String,
}

fn bad(key: &'static str, reason: impl ToString) -> BadConfig {
    BadConfig {
        key,
        reason: reason.to_string(),
    }
}

/// The configuration, as meant.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name in the cluster.
    pub id: NodeId,
    /// Label of the place.
    pub region: String,
    /// The configured place.
    pub location: Option<GeoPoint>,
    /// Where objects, sites and rankings are kept.
    pub data_dir: PathBuf,
    /// Addresses to listen on.
    pub listen: ListenSection,
    /// Addresses to tell others.
    pub advertise: AdvertiseSection,
    /// The cluster, if this node is in one.
    pub cluster: Option<ClusterConfig>,
    /// Sites of the file.
    pub sites: SiteSet,
    /// What it may use for objects.
    pub cache: CacheSection,
    /// Bounds on clients.
    pub limits: LimitsSection,
    /// What peers may have of this node, and this node of them.
    pub peer: PeerSection,
    /// What tells countries, if a site names some.
    pub database: Database,
}

/// What a node needs to be in a cluster.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Name of the cluster.
    pub name: String,
    /// Where gossip begins.
    pub seeds: Vec<String>,
    /// Base URLs of the control planes.
    pub control_planes: Vec<String>,
    /// What every node of the cluster knows.
    pub secret: ClusterSecret,
    /// Time between gossip rounds.
    pub gossip_interval: Duration,
    /// Bytes a second of hot objects that this node offers to others; 0: none.
    pub offers: Bytes,
    /// Address overrides for peers.
    pub reach: HashMap<NodeId, String>,
}

impl ConfigFile {
    /// Checks every value and reads the secret.
    ///
    /// # Errors
    ///
    /// The first key whose value cannot be meant.
    pub fn check(self, host_name: &str) -> Result<Config, BadConfig> {
        let id = match &self.node.id {
            Some(id) => id.parse().map_err(|e| bad("node.id", e))?,
            None => host_name.to_ascii_lowercase().parse().map_err(|e| {
                bad(
                    "node.id",
                    format!("not set, and the host name does not serve: {e}"),
                )
            })?,
        };
        let location = match (self.node.latitude, self.node.longitude) {
            (Some(latitude), Some(longitude)) => {
                Some(GeoPoint::new(latitude, longitude).ok_or_else(|| {
                    bad(
                        "node.latitude",
                        format!("{latitude}, {longitude} is no place on Earth"),
                    )
                })?)
            }
            (None, None) => None,
            _ => {
                return Err(bad(
                    "node.latitude",
                    "give latitude and longitude, or neither",
                ));
            }
        };
        if self.node.region.len() > 64 || self.node.region.chars().any(char::is_control) {
            return Err(bad("node.region", "at most 64 printable characters"));
        }
        if self.cache.disk.0 < DISK_BYTES_MIN {
            let least = Bytes(DISK_BYTES_MIN);
            return Err(bad(
                "cache.disk",
                format!("{} is less than {least}", self.cache.disk),
            ));
        }
        if self.cache.object_max.0 == 0 {
            return Err(bad("cache.object_max", "0B would store nothing"));
        }
        if !(1..=256).contains(&self.cache.disk_threads) {
            return Err(bad(
                "cache.disk_threads",
                format!("1 to 256, not {}", self.cache.disk_threads),
            ));
        }
        if !PURGE_SCOPES.contains(&self.cache.purge_scopes) {
            return Err(bad(
                "cache.purge_scopes",
                format!(
                    "{} to {}, not {}",
                    PURGE_SCOPES.start(),
                    PURGE_SCOPES.end(),
                    self.cache.purge_scopes
                ),
            ));
        }
        let limits = &self.limits;
        if limits.connections == 0 {
            return Err(bad("limits.connections", "0 would serve nobody"));
        }
        if !(1..=FILLS_MAX).contains(&limits.fills) {
            let reason = format!("1 to {FILLS_MAX}, not {}", limits.fills);
            return Err(bad("limits.fills", reason));
        }
        if !(8192..=1 << 20).contains(&limits.head.0) {
            return Err(bad(
                "limits.head",
                format!("8KiB to 1MiB, not {}", limits.head),
            ));
        }
        if self.peer.uploads == 0 {
            return Err(bad("peer.uploads", "0 would help nobody"));
        }
        let rate = self.peer.upload_bytes_per_s;
        if (1..UPLOAD_BYTES_PER_S_MIN).contains(&rate.0) {
            let least = Bytes(UPLOAD_BYTES_PER_S_MIN);
            let reason = format!("0 for no limit, or at least {least}, not {rate}");
            return Err(bad("peer.upload_bytes_per_s", reason));
        }
        for (key, span) in [
            ("limits.head_timeout", limits.head_timeout),
            ("limits.body_timeout", limits.body_timeout),
            ("limits.write_timeout", limits.write_timeout),
        ] {
            if span.0.is_zero() {
                return Err(bad(key, "0s would cut everybody off"));
            }
        }
        let sites = SiteSet {
            version: 0,
            sites: self.site,
        };
        SiteMap::new(&sites).map_err(|e| bad("site", e))?;
        let cluster = self.cluster.check()?;
        if sites.sites.is_empty() && cluster.as_ref().is_none_or(|c| c.control_planes.is_empty()) {
            return Err(bad(
                "site",
                "nothing to serve: give a [[site]], or cluster.control_plane",
            ));
        }
        Ok(Config {
            id,
            region: self.node.region,
            location,
            data_dir: self.node.data_dir,
            listen: self.listen,
            advertise: self.advertise,
            cluster,
            sites,
            cache: self.cache,
            limits: self.limits,
            peer: self.peer,
            database: Database::named(self.geo.database.as_deref()),
        })
    }
}

impl ClusterSection {
    fn check(self) -> Result<Option<ClusterConfig>, BadConfig> {
        let Some(file) = &self.secret_file else {
            return if self.seeds.is_empty() && self.control_plane.is_empty() {
                Ok(None)
            } else {
                let reason = "needed with cluster.seeds and cluster.control_plane: without a secret, \
                              anybody could join";
                Err(bad("cluster.secret_file", reason))
            };
        };
        let secret =
            ClusterSecret::load(Path::new(file)).map_err(|e| bad("cluster.secret_file", e))?;
        if self.name.is_empty() || self.name.len() > 64 {
            return Err(bad("cluster.name", "1 to 64 characters"));
        }
        for seed in &self.seeds {
            host_and_port("cluster.seeds", seed)?;
        }
        for url in &self.control_plane {
            let fits = url.parse::<http::Uri>().is_ok_and(|u| {
                u.scheme_str() == Some("http") && u.authority().is_some() && u.path() == "/"
            });
            if !fits {
                return Err(bad(
                    "cluster.control_plane",
                    format!("{url:?} is not http://host:port"),
                ));
            }
        }
        let interval = self.gossip_interval.0;
        if !(Duration::from_millis(50)..=Duration::from_secs(10)).contains(&interval) {
            let reason = format!("50ms to 10s, not {}", self.gossip_interval);
            return Err(bad("cluster.gossip_interval", reason));
        }
        let mut reach = HashMap::new();
        for (id, address) in self.reach {
            host_and_port("cluster.reach", &address)?;
            reach.insert(id.parse().map_err(|e| bad("cluster.reach", e))?, address);
        }
        Ok(Some(ClusterConfig {
            name: self.name,
            seeds: self.seeds,
            control_planes: self.control_plane,
            secret,
            gossip_interval: interval,
            offers: self.offers,
            reach,
        }))
    }
}

fn host_and_port(key: &'static str, text: &str) -> Result<(), BadConfig> {
    let fits = text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if fits {
        Ok(())
    } else {
        Err(bad(key, format!("{text:?} is not host:port")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let file: ConfigFile = toml::from_str(text).map_err(|e| e.to_string())?;
        file.check("host-1").map_err(|e| e.to_string())
    }

    const SITE: &str = "[[site]]\nname = \"a\"\nhosts = [\"*\"]\norigins = [\"http://o:80\"]\n";

    #[test]
    fn a_site_is_all_it_takes() {
        let config = parse(SITE).unwrap();
        assert_eq!(config.id.as_str(), "host-1");
        assert!(config.cluster.is_none());
    }

    /// Nobody would notice a key there that is not one: all of it is commented out.
    #[test]
    fn the_example_of_a_site_can_be_meant() {
        let shipped = include_str!("../../deploy/edge.toml");
        let (_, example) = shipped.split_once("\n# [[site]]\n").unwrap();
        let is_setting = |line: &&str| {
            let key = line.split_once(" = ").map_or("", |(key, _)| key);
            line.starts_with('[') || (!key.is_empty() && !key.contains(' '))
        };
        let settings = example.lines().filter_map(|line| line.strip_prefix("# "));
        let settings: Vec<_> = settings.filter(is_setting).collect();
        let config = parse(&format!("[[site]]\n{}", settings.join("\n"))).unwrap();
        let [site] = &config.sites.sites[..] else {
            panic!("{:?}", config.sites);
        };
        assert_eq!((site.rule.len(), site.access.len()), (2, 4));
        assert!(site.bypass.cookies[0].fits(b"sessionid") && site.query.sort);
    }

    #[test]
    fn impossible_values_are_refused_by_key() {
        for (text, key) in [
            ("[node]\nlatitude = 91.0\nlongitude = 0.0", "node.latitude"),
            ("[node]\nlatitude = 1.0", "node.latitude"),
            ("[node]\nid = \"A B\"", "node.id"),
            ("[cache]\ndisk = \"1MiB\"", "cache.disk"),
            ("[cache]\nobject_max = 0", "cache.object_max"),
            ("[limits]\nfills = 0", "limits.fills"),
            ("[limits]\nfills = 1048577", "limits.fills"),
            ("[limits]\nhead = \"4KiB\"", "limits.head"),
            ("[peer]\nuploads = 0", "peer.uploads"),
            (
                "[peer]\nupload_bytes_per_s = \"255KiB\"",
                "peer.upload_bytes_per_s",
            ),
            ("[limits]\nhead_timeout = \"0s\"", "limits.head_timeout"),
            ("[cluster]\nseeds = [\"a:1\"]", "cluster.secret_file"),
            (
                "[cluster]\nsecret_file = \"/nonexistent\"",
                "cluster.secret_file",
            ),
        ] {
            let error = parse(&format!("{text}\n{SITE}")).unwrap_err();
            assert!(error.contains(key), "{text}: {error}");
        }
        assert!(parse("").unwrap_err().contains("nothing to serve"));
        assert!(
            parse("[cache]\nmemmory = 1")
                .unwrap_err()
                .contains("memmory")
        );
    }
}
