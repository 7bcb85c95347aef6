//! The site registry: what the edges serve, and its version.
//!
//! **Invariant:** the version never goes backwards and never names two different contents, because
//! an edge keeps what it has until it hears of a higher one. A new version is at least the present
//! Unix time in seconds, so that this holds even when the data directory was lost.

use std::sync::Arc;

use bytes::Bytes;
use cluster::{
    clock::Clock,
    site::{Site, SiteMap, SiteSet},
};
use tracing::{info, warn};

use crate::{data_dir::DataDir, error::StartError};

/// Holds the last set that was handed out, as JSON.
const FILE: &str = "sites.json";

/// The sites of this run, ready to be handed out and looked up. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sites(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    set: SiteSet,
    map: SiteMap,
    json: Bytes,
}

impl Sites {
    /// Compares the configured sites with those handed out last, and gives them a version: the old
    /// one when they are the same, else a higher one, which is on disk before this returns. No
    /// sites at all, and never any before, are version 0. Blocks.
    ///
    /// # Errors
    ///
    /// A site that cannot be meant, or a data directory that does not take the new version.
    pub fn open(configured: Vec<Site>, dir: &DataDir, clock: &Clock) -> Result<Self, StartError> {
        let file = |e| StartError::File {
            name: FILE,
            source: e,
        };
        let stored = dir.read(FILE).map_err(file)?;
        let known = match stored.as_deref().map(serde_json::from_slice::<SiteSet>) {
            None => None,
            Some(Ok(set)) => Some(set),
            Some(Err(e)) => {
                let aside = dir.set_aside(FILE).map_err(file)?;
                warn!(error = %e, aside = %aside.display(), "stored sites are damaged, set aside");
                Some(SiteSet::default())
            }
        };
        let version = version_of(&configured, known.as_ref(), clock.unix_ms() / 1000);
        let set = SiteSet {
            version,
            sites: configured,
        };
        let map = SiteMap::new(&set)?;
        let json = serde_json::to_vec(&set).expect("sites are plain data with text keys");
        if known.is_none_or(|k| k.version != version) {
            dir.write(FILE, &json).map_err(file)?;
            info!(version, sites = set.sites.len(), "sites have a new version");
        }
        Ok(Self(Arc::new(Inner {
            set,
            map,
            json: json.into(),
        })))
    }

    /// The version of the set.
    pub fn version(&self) -> u64 {
        self.0.set.version
    }

    /// The site of this name.
    pub fn site(&self, name: &str) -> Option<&Site> {
        self.0.set.sites.iter().find(|s| s.name == name)
    }

    /// From a host to its site.
    pub fn map(&self) -> &SiteMap {
        &self.0.map
    }

    /// The set as JSON, as edges get it.
    pub fn json(&self) -> Bytes {
        self.0.json.clone()
    }
}

/// The version of `configured`, given what was handed out before.
fn version_of(configured: &[Site], known: Option<&SiteSet>, now_s: u64) -> u64 {
    match known {
        None if configured.is_empty() => 0,
        None => now_s.max(1),
        Some(known) if known.sites == configured && known.version > 0 => known.version,
        Some(known) => now_s.max(known.version + 1),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn site(name: &str) -> Site {
        Site::new(name, &[&format!("{name}.test")], &["http://o:80"])
    }

    #[tokio::test]
    async fn the_version_grows_with_every_change_and_with_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let open = |sites: &[&str], now_s| {
            let dir = DataDir::open(parent.path()).unwrap();
            let clock = Clock::tokio(UNIX_EPOCH + Duration::from_secs(now_s));
            Sites::open(sites.iter().map(|s| site(s)).collect(), &dir, &clock).unwrap()
        };
        assert_eq!(open(&[], 1_000).version(), 0);
        let first = open(&["a"], 1_000);
        assert_eq!(first.version(), 1_000);
        assert_eq!(open(&["a"], 2_000).version(), 1_000);
        assert_eq!(open(&["a", "b"], 2_000).version(), 2_000);
        // The clock was set back.
        assert_eq!(open(&["b"], 500).version(), 2_001);
        assert_eq!(open(&["b"], 9_000).version(), 2_001);
        assert_eq!(open(&[], 500).version(), 2_002);
        // A damaged file.
        std::fs::write(parent.path().join(FILE), "{").unwrap();
        assert_eq!(open(&["b"], 3_000).version(), 3_000);
        assert!(parent.path().join("sites.json.damaged").exists());
        let set: SiteSet = serde_json::from_slice(&first.json()).unwrap();
        assert_eq!((set.version, set.sites), (1_000, vec![site("a")]));
    }

    #[test]
    fn a_site_is_found_by_name_and_by_host() {
        let parent = tempfile::tempdir().unwrap();
        let dir = DataDir::open(parent.path()).unwrap();
        let sites = Sites::open(vec![site("a")], &dir, &Clock::system()).unwrap();
        assert!(sites.site("a").is_some() && sites.site("b").is_none());
        assert_eq!(sites.map().select("A.test:80").unwrap().site.name, "a");
        let twice = Sites::open(vec![site("a"), site("a")], &dir, &Clock::system());
        assert!(
            twice
                .unwrap_err()
                .to_string()
                .contains("another site has this name")
        );
    }
}
