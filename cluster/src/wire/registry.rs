//! What is said about the site registry, beside the sites themselves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The answer to a change of a site, and to `POST /v1/sites/{name}/check`, which changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteChanged {
    /// The site's name.
    pub site: String,
    /// The version of the site from now on; of a check, the one it has.
    pub version: u64,
    /// The version of all sites from now on; of a check, the one they have.
    pub set_version: u64,
    /// Whether it differs from what was there.
    pub changed: bool,
    /// In what.
    pub diff: Vec<SiteDifference>,
}

/// The body of `POST /v1/sites`: sites that are made or replaced together, or, with `?check=true`, only
/// looked at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SitesPut {
    /// The sites.
    pub sites: Vec<serde_json::Map<String, serde_json::Value>>,
    /// By name, the version that must be replaced; 0: the site must not be there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub versions: BTreeMap<String, u64>,
}

/// The answer to `POST /v1/sites`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SitesPutAnswer {
    /// What became of each, in the same order.
    pub sites: Vec<SiteChanged>,
}

/// One difference between two versions of a site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteDifference {
    /// The field, as a dotted path.
    pub field: String,
    /// What it says no longer: a value, or a member of a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<serde_json::Value>,
    /// What it says from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub added: Option<serde_json::Value>,
}

/// The answer to `GET /v1/sites/{name}/history`: the newest version first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteHistory {
    /// The site's name.
    pub site: String,
    /// The configuration file that the site is in, by the control plane's name; such a site cannot be
    /// changed in another way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_file_of: Option<String>,
    /// Its versions, as far as they are remembered.
    pub versions: Vec<SiteVersion>,
}

/// One version of a site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteVersion {
    /// Its number: that of the set of all sites in which it came.
    pub version: u64,
    /// When it came, in Unix milliseconds.
    pub at_ms: u64,
    /// Who made it.
    pub by: String,
    /// How it came.
    pub action: SiteAction,
    /// Whether it is the one that is served.
    pub current: bool,
}

/// How a version of a site came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SiteAction {
    /// It was put.
    Put,
    /// It was taken from the configuration file.
    File,
    /// It is a former version again.
    Rollback {
        /// Which.
        to: u64,
    },
    /// The site was deleted.
    Delete,
}

/// The body of `POST /v1/sites/{name}/rollback`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteRollback {
    /// The version that shall be served again.
    pub version: u64,
}
