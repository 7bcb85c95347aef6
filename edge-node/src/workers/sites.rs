//! Follows the site registry: takes each new version over at once, keeps it on disk, and so starts
//! without the control plane.

use std::{io, path::Path, sync::Arc};

use arc_swap::ArcSwap;
use cluster::{
    membership::Membership,
    node::Phase,
    site::{BadSite, SiteMap, SiteSet},
};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{admin::Readiness, config::Config, upstream::Upstream};

/// The registry's copy in the data directory.
const FILE: &str = "sites.json";

/// The sites to start with: the last that the control plane handed out, or those of the file.
///
/// # Errors
///
/// A site of the configuration file that cannot be meant.
pub fn load(config: &Config) -> Result<SiteMap, BadSite> {
    let distributed = config
        .cluster
        .as_ref()
        .is_some_and(|c| !c.control_planes.is_empty());
    if distributed {
        match read(&config.data_dir.join(FILE)) {
            Ok(set) => match SiteMap::new(&set) {
                Ok(map) => return Ok(map),
                Err(error) => warn!(%error, "sites kept on disk are of no use"),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => warn!(%error, "sites kept on disk cannot be read"),
        }
    }
    SiteMap::new(&config.sites)
}

/// Takes over what the control plane hands out, until it is dropped. Says when this node is ready.
pub async fn follow(
    config: Config,
    upstream: Upstream,
    sites: Arc<ArcSwap<SiteMap>>,
    membership: Option<Arc<Membership>>,
    readiness: watch::Sender<Readiness>,
) {
    let mut handed_out = upstream.sites();
    loop {
        let newest = handed_out.borrow_and_update().clone();
        if let Some(set) = newest {
            take_over(&config, &set, &sites, membership.as_deref()).await;
        }
        let able = !sites.load().sites().is_empty();
        if able && *readiness.borrow() == Readiness::NotReady("starting") {
            readiness.send_replace(Readiness::Ready);
            if let Some(membership) = &membership {
                membership.update(|me| me.phase = Phase::Ready);
            }
            info!("ready");
        }
        if handed_out.changed().await.is_err() {
            // Nobody hands anything out: the file's sites stay. Stay with them, to be stopped.
            return std::future::pending().await;
        }
    }
}

async fn take_over(
    config: &Config,
    set: &SiteSet,
    sites: &ArcSwap<SiteMap>,
    membership: Option<&Membership>,
) {
    if set.version == sites.load().version() {
        return;
    }
    let mut map = match SiteMap::new(set) {
        Ok(map) => map,
        Err(error) => return warn!(%error, version = set.version, "sites refused"),
    };
    if let Some(membership) = membership {
        let own = membership
            .view()
            .borrow()
            .node(&config.id)
            .map(|me| me.http.clone());
        if let Some(own) = own {
            map = map.with_own_name(&own);
        }
    }
    sites.store(Arc::new(map));
    if let Some(membership) = membership {
        membership.update(|me| me.sites_version = set.version);
    }
    info!(
        version = set.version,
        sites = set.sites.len(),
        "sites taken over"
    );
    let (path, set) = (config.data_dir.join(FILE), set.clone());
    let written = tokio::task::spawn_blocking(move || write(&path, &set)).await;
    if let Ok(Err(error)) = written {
        warn!(%error, "sites could not be kept on disk");
    }
}

fn read(path: &Path) -> io::Result<SiteSet> {
    serde_json::from_slice(&std::fs::read(path)?).map_err(io::Error::from)
}

fn write(path: &Path, set: &SiteSet) -> io::Result<()> {
    super::replace_file(path, &serde_json::to_vec_pretty(set)?)
}
