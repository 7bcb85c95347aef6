//! The sites as this node serves them: from a request's host to the site's compiled rules, and the geo
//! database where a rule needs one. Built once per version of the registry, then only read.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use cluster::{
    geo::GeoDb,
    purge::{Named, Naming},
    site::{Site, SiteMap},
};

use crate::{cache::key, ruling::Ruling};

/// All sites of a version.
#[derive(Clone, Debug, Default)]
pub struct Sites {
    map: SiteMap,
    /// By the site's name.
    rulings: HashMap<String, Arc<Ruling>>,
    geo: Option<Arc<GeoDb>>,
}

/// A host's site, and the host under which its objects are known.
#[derive(Clone, Debug)]
pub struct Selected {
    /// The site and its rules.
    pub ruling: Arc<Ruling>,
    /// The host in cache keys and towards the origin.
    pub host: String,
}

impl Sites {
    /// Compiles the rules of every site. `honour_client` is what the node does where a site does not
    /// say; `geo` tells countries, where a site names some.
    pub fn new(map: SiteMap, honour_client: bool, geo: Option<Arc<GeoDb>>) -> Self {
        let compiled = |site: &Arc<Site>| {
            let ruling = Ruling::new(site.clone(), honour_client);
            (site.name.clone(), Arc::new(ruling))
        };
        Self {
            rulings: map.sites().iter().map(compiled).collect(),
            map,
            geo,
        }
    }

    /// See [`SiteMap::with_own_name`].
    #[must_use]
    pub fn with_own_name(self, base: &str) -> Self {
        let map = self.map.with_own_name(base);
        Self { map, ..self }
    }

    /// The version of the set it was built from.
    pub fn version(&self) -> u64 {
        self.map.version()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.map.sites().is_empty()
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Site> {
        self.map.sites().iter().map(|site| &**site)
    }

    /// Whether there is a site of this name.
    pub fn serves(&self, name: &str) -> bool {
        self.rulings.contains_key(name)
    }

    /// The site for a `Host`, if there is one; see [`SiteMap::select`].
    pub fn select(&self, host: &str) -> Option<Selected> {
        let selected = self.map.select(host)?;
        Some(Selected {
            ruling: self.rulings.get(&selected.site.name)?.clone(),
            host: selected.host,
        })
    }

    /// The rules of the site of this name, if there is one.
    pub fn ruling(&self, name: &str) -> Option<&Arc<Ruling>> {
        self.rulings.get(name)
    }

    /// The country of an address, if anybody knows it.
    pub fn country(&self, address: IpAddr) -> Option<&str> {
        self.geo.as_ref()?.country(address)
    }

    /// The geo database, where one was needed.
    pub fn geo(&self) -> Option<Arc<GeoDb>> {
        self.geo.clone()
    }
}

impl Naming for Sites {
    fn name(&self, site: &str, sent: &str) -> Named {
        key::named(sent, self.ruling(site).map(|ruling| &ruling.key))
    }
}
