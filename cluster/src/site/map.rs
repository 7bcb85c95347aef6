//! From a request's host to its site.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{BadSite, SITES_MAX, Site};

/// All sites of a version, as the control plane hands them out and an edge keeps them on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteSet {
    /// Grows with every change.
    pub version: u64,
    /// The sites.
    pub sites: Vec<Site>,
}

/// From a request's host to its site. Built once per [`SiteSet`], then only read.
#[derive(Clone, Debug, Default)]
pub struct SiteMap {
    version: u64,
    sites: Vec<Arc<Site>>,
    exact: HashMap<String, Arc<Site>>,
    /// By the part after `*.`.
    below: HashMap<String, Arc<Site>>,
    every: Option<Arc<Site>>,
    /// This node's advertised names: `None` around `{host}` means a plain name.
    own: Vec<OwnName>,
}

#[derive(Clone, Debug)]
enum OwnName {
    Plain(String),
    Around { before: String, after: String },
}

/// A host's site, and the host under which its objects are known.
#[derive(Clone, Debug)]
pub struct Selected {
    /// The site.
    pub site: Arc<Site>,
    /// The host in cache keys and towards the origin.
    pub host: String,
}

impl SiteMap {
    /// Checks and indexes `set`.
    ///
    /// # Errors
    ///
    /// A site that fails [`Site::check`], a name or host that two sites claim, or more than
    /// [`SITES_MAX`] sites.
    pub fn new(set: &SiteSet) -> Result<Self, BadSite> {
        let mut map = Self {
            version: set.version,
            ..Self::default()
        };
        if set.sites.len() > SITES_MAX {
            let reason = format!("{} sites, at most {SITES_MAX}", set.sites.len());
            return Err(BadSite {
                site: String::new(),
                field: "site",
                reason,
            });
        }
        let mut names = HashSet::new();
        for site in &set.sites {
            site.check()?;
            let bad = |field, reason| BadSite {
                site: site.name.clone(),
                field,
                reason,
            };
            if !names.insert(&site.name) {
                return Err(bad("name", "another site has this name".into()));
            }
            let site = Arc::new(site.clone());
            for host in &site.hosts {
                let taken = if host == "*" {
                    map.every.replace(site.clone())
                } else if let Some(name) = host.strip_prefix("*.") {
                    map.below.insert(name.to_owned(), site.clone())
                } else {
                    map.exact.insert(host.clone(), site.clone())
                };
                if let Some(other) = taken {
                    return Err(bad(
                        "hosts",
                        format!("{host:?} is also claimed by {:?}", other.name),
                    ));
                }
            }
            map.sites.push(site);
        }
        Ok(map)
    }

    /// Lets clients come in under the names this node advertises, as a redirect to it makes them.
    ///
    /// `base` is the advertised URL. With `{host}` in it (`http://{host}.fra.cdn.example`), what
    /// stands in its place is the site's host. Without, the plain name stands for the only site,
    /// under that site's first full host name; with several sites it stands for none.
    #[must_use]
    pub fn with_own_name(mut self, base: &str) -> Self {
        let name = base.split_once("://").map_or(base, |(_, rest)| rest);
        let name = without_port(name.split('/').next().unwrap_or_default()).to_ascii_lowercase();
        self.own.push(match name.split_once("{host}") {
            Some((before, after)) => OwnName::Around {
                before: before.into(),
                after: after.into(),
            },
            None => OwnName::Plain(name),
        });
        self
    }

    /// The version of the set it was built from.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Every site.
    pub fn sites(&self) -> &[Arc<Site>] {
        &self.sites
    }

    /// The site for a `Host` (with or without port, in any case), if there is one.
    pub fn select(&self, host: &str) -> Option<Selected> {
        let host = normal_host(host);
        self.listed(&host)
            .or_else(|| self.under_own_name(&host))
            .or_else(|| {
                let site = self.every.clone()?;
                Some(Selected { site, host })
            })
    }

    fn listed(&self, host: &str) -> Option<Selected> {
        let below = || {
            let mut rest = host;
            while let Some((_, parent)) = rest.split_once('.') {
                if let Some(site) = self.below.get(parent) {
                    return Some(site);
                }
                rest = parent;
            }
            None
        };
        let site = self.exact.get(host).or_else(below)?.clone();
        Some(Selected {
            site,
            host: host.to_owned(),
        })
    }

    fn under_own_name(&self, host: &str) -> Option<Selected> {
        self.own.iter().find_map(|own| match own {
            OwnName::Around { before, after } => {
                let inner = host
                    .strip_prefix(before.as_str())?
                    .strip_suffix(after.as_str())?;
                self.listed(inner)
            }
            OwnName::Plain(name) => {
                let [only] = self.sites.as_slice() else {
                    return None;
                };
                let canonical = only.hosts.iter().find(|h| !h.starts_with('*'))?;
                (name == host).then(|| Selected {
                    site: only.clone(),
                    host: canonical.clone(),
                })
            }
        })
    }
}

/// A host as it stands in keys: in lower case, without port and trailing dot.
pub fn normal_host(host: &str) -> String {
    let name = without_port(host.trim());
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') && port.bytes().all(|b| b.is_ascii_digit()) => {
            if name.contains(':') && !name.ends_with(']') {
                host
            } else {
                name
            }
        }
        _ => host,
    }
}
