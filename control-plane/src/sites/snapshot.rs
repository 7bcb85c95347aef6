//! All sites of a version, with who made them what they are. Immutable; pure.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use cluster::{
    site::{
        BadSite, Site, SiteMap, SiteSet,
        takedown::{content_hash_of, hash_in_hex},
    },
    wire::{SiteAction, SiteVersion},
};
use serde::{Deserialize, Serialize};

/// One version of a site, as the store has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its number: that of the set in which it came.
    pub version: u64,
    /// When it came, in Unix milliseconds.
    pub at_ms: u64,
    /// Who made it.
    pub by: String,
    /// How it came.
    pub action: SiteAction,
    /// The control plane in whose configuration file it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_file_of: Option<String>,
    /// The site; `None`: there was none from then on.
    pub site: Option<Arc<Site>>,
}

impl Record {
    /// What is told of it.
    pub fn told(&self, current: Option<u64>) -> SiteVersion {
        SiteVersion {
            version: self.version,
            at_ms: self.at_ms,
            by: self.by.clone(),
            action: self.action,
            current: current == Some(self.version),
        }
    }
}

/// What the store has of the set as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The version of the set.
    pub version: u64,
    /// The hash of the set as it is handed out: one version never names two contents.
    pub hash: String,
}

/// The sites, by name.
pub type Records = BTreeMap<String, Record>;

/// All sites of a version, ready to be handed out and looked up.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The revision of the store in which this version came; 0: none.
    pub revision: u64,
    records: Records,
    map: SiteMap,
    json: Bytes,
}

impl Snapshot {
    /// Checks all sites together, and prepares them. Takes long for thousands.
    ///
    /// # Errors
    ///
    /// The first site that cannot be meant, alone or beside the others.
    pub fn new(version: u64, revision: u64, records: Records) -> Result<Self, BadSite> {
        let sites = records.values().filter_map(|record| record.site.as_deref());
        let set = SiteSet {
            version,
            sites: sites.cloned().collect(),
        };
        let map = SiteMap::new(&set)?;
        let json = serde_json::to_vec(&set).expect("sites are plain data with text keys");
        Ok(Self {
            revision,
            records,
            map,
            json: json.into(),
        })
    }

    /// The version of the set.
    pub fn version(&self) -> u64 {
        self.map.version()
    }

    /// The site of this name.
    pub fn site(&self, name: &str) -> Option<&Site> {
        self.records.get(name)?.site.as_deref()
    }

    /// The version of the site of this name, and how it came.
    pub fn record(&self, name: &str) -> Option<&Record> {
        self.records.get(name)
    }

    /// All of them.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// From a host to its site.
    pub fn map(&self) -> &SiteMap {
        &self.map
    }

    /// The set as JSON, as edges get it.
    pub fn json(&self) -> Bytes {
        self.json.clone()
    }

    /// What the store has of it.
    pub fn head(&self) -> Head {
        Head {
            version: self.version(),
            hash: hash_in_hex(&content_hash_of(&self.json)),
        }
    }
}
