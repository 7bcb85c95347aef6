//! What the operator wrote ([`ConfigFile`]) and what it means ([`Config`]); checked once, at start.

mod store;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use cluster::{
    geo::Database,
    membership::SEEDS_MAX,
    network::Network,
    node::NodeId,
    quantity::Span,
    secret::ClusterSecret,
    site::{Site, SiteMap, SiteSet, outside::PrivateOrigins},
};
use serde::{Deserialize, Serialize};

pub use self::store::{ETCD_MEMBERS_MAX, ETCD_PREFIX_BYTES_MAX, EtcdSection, StoreAddress};
use crate::places::{NETWORKS_MAX, NetworkPlace};

/// What environment variables of this process begin with.
pub const ENV_PREFIX: &str = "CONTROL_PLANE_";
/// Where the operator's commands find the control plane.
pub const API_VARIABLE: &str = "CONTROL_PLANE_API";
/// The token that they ask with.
pub const TOKEN_VARIABLE: &str = "CONTROL_PLANE_TOKEN";
/// A file with that token.
pub const TOKEN_FILE_VARIABLE: &str = "CONTROL_PLANE_TOKEN_FILE";
/// A file with the certificates that they believe.
pub const API_CA_VARIABLE: &str = "CONTROL_PLANE_API_CA";
/// The variables with the prefix that are no configuration keys.
pub const COMMAND_VARIABLES: [&str; 4] = [
    API_VARIABLE,
    API_CA_VARIABLE,
    TOKEN_VARIABLE,
    TOKEN_FILE_VARIABLE,
];

/// The configuration file, as written. Every key can also come from the environment
/// (`CONTROL_PLANE_LISTEN__HTTP=127.0.0.1:7900`).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigFile {
    /// Where tokens, sites and the purge log are kept: `"embedded"`, in the data directory; or
    /// `"etcd://host:2379,host2:2379"`, for several control planes that stand in for each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// How to speak to etcd.
    pub etcd: EtcdSection,
    /// Who this node is.
    pub node: NodeSection,
    /// Where it listens.
    pub listen: ListenSection,
    /// What others should use to reach it.
    pub advertise: AdvertiseSection,
    /// The cluster it watches.
    pub cluster: ClusterSection,
    /// Who may ask.
    pub api: ApiSection,
    /// How addresses become places.
    pub geo: GeoSection,
    /// How clients are steered.
    pub steer: SteerSection,
    /// Bounds on clients.
    pub limits: LimitsSection,
    /// Which origins sites may have that come in over the API.
    pub origins: OriginsSection,
    /// What the edges serve. These sites are in the registry, and are changed here only.
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
    /// Where the site registry is kept.
    pub data_dir: PathBuf,
}

impl Default for NodeSection {
    fn default() -> Self {
        Self {
            id: None,
            data_dir: PathBuf::from("./control-plane-data"),
        }
    }
}

/// `[listen]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListenSection {
    /// The API, the status page, metrics.
    pub http: SocketAddr,
    /// Gossip (UDP).
    pub gossip: SocketAddr,
    /// Clients that are to be steered.
    pub steer: SocketAddr,
}

impl Default for ListenSection {
    fn default() -> Self {
        Self {
            http: ([0, 0, 0, 0], 7900).into(),
            gossip: ([0, 0, 0, 0], 7946).into(),
            steer: ([0, 0, 0, 0], 8088).into(),
        }
    }
}

/// `[advertise]`: absent keys are taken from `[listen]`, and from the machine where that listens on
/// all its addresses.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdvertiseSection {
    /// `host:port` of the API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
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
    /// File with the cluster's secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// Time between gossip rounds.
    pub gossip_interval: Span,
}

impl Default for ClusterSection {
    fn default() -> Self {
        Self {
            name: "cdn".into(),
            seeds: Vec::new(),
            secret_file: None,
            gossip_interval: Span(Duration::from_millis(300)),
        }
    }
}

/// `[api]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiSection {
    /// Whether everybody may read sites, nodes, purges and jobs. Otherwise that takes a token; without
    /// any token, this machine. Health and metrics are open in any case.
    pub public_read: bool,
}

impl Default for ApiSection {
    fn default() -> Self {
        Self { public_read: true }
    }
}

/// `[geo]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GeoSection {
    /// Path of a MaxMind database, City or Country. Absent: the one that ships with the project.
    /// `"none"`: no database; region labels and coordinates still rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// Networks whose place the operator knows better.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network: Vec<NetworkPlace>,
}

/// `[steer]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SteerSection {
    /// Proxies whose `X-Forwarded-For` is believed; from all others it is not looked at.
    pub trust_forwarded: Vec<Network>,
}

/// `[origins]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OriginsSection {
    /// Whether sites that come in over the API may name origins on this machine or in private networks:
    /// `true`, `false`, or the networks in which they may be. Sites in this file may name any.
    pub allow_private: PrivateOrigins,
}

/// `[limits]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSection {
    /// Connections on each of the listeners; more wait in the system's queue.
    pub connections: usize,
    /// How long requests may take to finish at shutdown.
    pub drain: Span,
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self {
            connections: 4_096,
            drain: Span(Duration::from_secs(10)),
        }
    }
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
    /// Where the site registry is kept.
    pub data_dir: PathBuf,
    /// Which store to use.
    pub store: StoreAddress,
    /// Addresses to listen on.
    pub listen: ListenSection,
    /// Addresses to tell others.
    pub advertise: AdvertiseSection,
    /// Name of the cluster.
    pub cluster_name: String,
    /// Where gossip begins.
    pub seeds: Vec<String>,
    /// What every node of the cluster knows.
    pub secret: ClusterSecret,
    /// Time between gossip rounds.
    pub gossip_interval: Duration,
    /// Who may ask.
    pub api: ApiSection,
    /// Which address database to use.
    pub database: Database,
    /// Networks whose place the operator knows better.
    pub networks: Vec<NetworkPlace>,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trust_forwarded: Vec<Network>,
    /// Bounds on clients.
    pub limits: LimitsSection,
    /// Private origins that sites may name that come in over the API.
    pub private_origins: PrivateOrigins,
    /// What the edges serve.
    pub sites: Vec<Site>,
}

impl ConfigFile {
    /// Checks every value and reads the secret.
    ///
    /// # Errors
    ///
    /// The first key whose value cannot be meant.
    pub fn check(self, host_name: &str) -> Result<Config, BadConfig> {
        let id: NodeId = match &self.node.id {
            Some(id) => id.parse().map_err(|e| bad("node.id", e))?,
            None => host_name.to_ascii_lowercase().parse().map_err(|e| {
                let reason = format!("not set, and the host name does not serve: {e}");
                bad("node.id", reason)
            })?,
        };
        let store = StoreAddress::named(self.store.as_deref(), &self.etcd, id.as_str())?;
        if self.cluster.seeds.len() > SEEDS_MAX {
            return Err(bad("cluster.seeds", format!("at most {SEEDS_MAX}")));
        }
        if !(1..=64).contains(&self.cluster.name.len()) {
            return Err(bad("cluster.name", "1 to 64 characters"));
        }
        for seed in &self.cluster.seeds {
            host_and_port("cluster.seeds", seed)?;
        }
        let interval = self.cluster.gossip_interval;
        if !(Duration::from_millis(50)..=Duration::from_secs(10)).contains(&interval.0) {
            let reason = format!("50ms to 10s, not {interval}");
            return Err(bad("cluster.gossip_interval", reason));
        }
        let secret_file = self.cluster.secret_file.as_deref().ok_or_else(|| {
            let reason = "missing: without a secret, anybody could join the cluster";
            bad("cluster.secret_file", reason)
        })?;
        let secret = ClusterSecret::load(secret_file).map_err(|e| bad("cluster.secret_file", e))?;
        if self.geo.network.len() > NETWORKS_MAX {
            return Err(bad("geo.network", format!("at most {NETWORKS_MAX}")));
        }
        for network in &self.geo.network {
            check_network(network)?;
        }
        if self.limits.connections == 0 {
            return Err(bad("limits.connections", "0 would serve nobody"));
        }
        let sites = SiteSet {
            version: 0,
            sites: self.site,
        };
        SiteMap::new(&sites).map_err(|e| bad("site", e))?;
        for (key, address) in [
            ("advertise.http", &self.advertise.http),
            ("advertise.gossip", &self.advertise.gossip),
        ] {
            if let Some(address) = address {
                host_and_port(key, address)?;
            }
        }
        Ok(Config {
            id,
            data_dir: self.node.data_dir,
            store,
            advertise: self.advertise,
            listen: self.listen,
            cluster_name: self.cluster.name,
            seeds: self.cluster.seeds,
            secret,
            gossip_interval: interval.0,
            api: self.api,
            database: Database::named(self.geo.database.as_deref()),
            networks: self.geo.network,
            trust_forwarded: self.steer.trust_forwarded,
            limits: self.limits,
            private_origins: self.origins.allow_private,
            sites: sites.sites,
        })
    }
}

fn check_network(network: &NetworkPlace) -> Result<(), BadConfig> {
    let cidr = network.cidr;
    match (network.latitude, network.longitude) {
        (None, None) if network.region.is_empty() => Err(bad(
            "geo.network",
            format!("{cidr} needs a region, or latitude and longitude"),
        )),
        (None, None) => Ok(()),
        (Some(latitude), Some(longitude)) => {
            match cluster::geo::GeoPoint::new(latitude, longitude) {
                Some(_) => Ok(()),
                None => Err(bad(
                    "geo.network",
                    format!("{cidr}: {latitude}, {longitude} is no place on Earth"),
                )),
            }
        }
        _ => Err(bad(
            "geo.network",
            format!("{cidr}: give latitude and longitude, or neither"),
        )),
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

    /// Reads a configuration with a good secret in it, unless `text` names another.
    fn read(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, cluster::secret::generate()).unwrap();
        let mut file: ConfigFile = toml::from_str(text).map_err(|e| e.to_string())?;
        file.cluster.secret_file.get_or_insert(path);
        file.check("Host-1").map_err(|e| e.to_string())
    }

    #[test]
    fn a_secret_is_all_it_takes() {
        let config = read("").unwrap();
        assert_eq!(config.id.as_str(), "host-1");
        assert_eq!(config.database, Database::Shipped);
        let error = ConfigFile::default().check("h").unwrap_err().to_string();
        assert!(error.starts_with("cluster.secret_file: missing"), "{error}");
    }

    #[test]
    fn what_is_written_is_meant() {
        let config = read(
            "[listen]\nhttp = '127.0.0.1:80'\n[advertise]\ngossip = 'cp.example:1'\n\
             [geo]\ndatabase = 'none'\n[[geo.network]]\ncidr = '10.0.0.0/8'\nregion = 'lab'\n\
             [steer]\ntrust_forwarded = ['127.0.0.1']\n\
             [[site]]\nname = 'a'\nhosts = ['a.test']\norigins = ['http://o']",
        )
        .unwrap();
        assert_eq!(config.listen.http.port(), 80);
        assert_eq!(config.advertise.gossip.as_deref(), Some("cp.example:1"));
        assert_eq!(config.database, Database::None);
        assert_eq!(config.networks[0].region, "lab");
        assert!(config.trust_forwarded[0].contains([127, 0, 0, 1].into()));
        assert_eq!(config.sites[0].name, "a");
    }

    #[test]
    fn impossible_values_are_refused_by_key() {
        for (text, told) in [
            ("[node]\nid = 'A B'", "node.id: "),
            (
                "store = 'redis://a'",
                "store: \"embedded\" or \"etcd://host:2379,host2:2379\", not \"redis://a\"",
            ),
            ("store = 'etcd://a'", "store: \"a\" is not host:port"),
            ("store = 'etcd://a:1,'", "store: \"\" is not host:port"),
            (
                "store = 'etcd://a:1,a:2,a:3,a:4,a:5,a:6,a:7,a:8,a:9,a:9'",
                "store: at most 9",
            ),
            (
                "store = 'etcd://a:1'\n[etcd]\nprefix = 'a b'",
                "etcd.prefix: ",
            ),
            (
                "store = 'etcd://a:1'\n[etcd]\ncredentials_file = '/nonexistent'",
                "etcd.credentials_file: /nonexistent: cannot be read",
            ),
            (
                "store = 'etcd://a:1'\n[etcd]\ncredentials_file = '/dev/null'",
                "etcd.credentials_file: /dev/null: must be one line",
            ),
            (
                "store = 'etcd://a:1'\n[etcd]\nca_file = '/dev/null'",
                "etcd.ca_file: only over TLS",
            ),
            (
                "store = 'etcds://a:1'\n[etcd]\nca_file = '/nonexistent'",
                "etcd.ca_file: /nonexistent: ",
            ),
            (
                "store = 'etcds://a:1'\n[etcd]\nca_file = '/dev/null'",
                "etcd.ca_file: no certificate in PEM",
            ),
            (
                "store = 'etcds://a:1'\n[etcd]\ncert_file = '/dev/null'",
                "etcd.key_file: missing",
            ),
            (
                "store = 'etcds://a:1'\n[etcd]\ncert_file = '/dev/null'\nkey_file = '/dev/null'",
                "etcd.cert_file: no certificate in PEM",
            ),
            ("[cluster]\nname = ''", "cluster.name: "),
            (
                "[cluster]\nseeds = ['a']",
                "cluster.seeds: \"a\" is not host:port",
            ),
            (
                "[cluster]\ngossip_interval = '1ms'",
                "cluster.gossip_interval: ",
            ),
            (
                "[cluster]\nsecret_file = '/nonexistent'",
                "cluster.secret_file: ",
            ),
            ("[advertise]\nhttp = 'http://a'", "advertise.http: "),
            ("[limits]\nconnections = 0", "limits.connections: "),
            ("[origins]\nallow_private = 'all'", "a list of networks"),
            (
                "[origins]\nallow_privat = true",
                "unknown field `allow_privat`",
            ),
            (
                "[[geo.network]]\ncidr = '10.0.0.0/8'",
                "geo.network: 10.0.0.0/8 needs",
            ),
            (
                "[[geo.network]]\ncidr = '10.0.0.0/8'\nlatitude = 1.0",
                "geo.network: ",
            ),
            (
                "[[geo.network]]\ncidr = '10.0.0.0/8'\nlatitude = 91.0\nlongitude = 0.0",
                "no place on Earth",
            ),
            (
                "[steer]\ntrust_forwarded = ['10.0.0.0/99']",
                "is not a network",
            ),
            (
                "[[site]]\nname = 'a'\nhosts = []\norigins = ['http://o']",
                "site: ",
            ),
            ("[nodes]", "unknown field `nodes`"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
