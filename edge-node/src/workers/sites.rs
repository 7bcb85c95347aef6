//! Follows the site registry: takes each new version over at once, keeps it on disk, and so starts
//! without the control plane.

use std::{io, path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use cluster::{
    geo::{Database, GeoDb, GeoError},
    membership::Membership,
    node::Phase,
    site::{BadSite, SiteMap, SiteSet},
};
use tokio::{sync::watch, time::timeout};
use tracing::{info, warn};

use crate::{admin::Readiness, config::Config, sites::Sites, upstream::Upstream};

/// How a node begins, before it has sites.
pub const STARTING: Readiness = Readiness::NotReady("starting");
/// Before it knows which purges it has missed.
const CATCHING_UP: Readiness = Readiness::NotReady("catching up with purges");
/// The registry's copy in the data directory.
const FILE: &str = "sites.json";
/// How long a node waits to know how far the origins are before it serves all the same: some that never answer.
const MEASURING_MAX: Duration = Duration::from_secs(2);

/// Why sites cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SitesError {
    /// A site cannot be meant.
    #[error(transparent)]
    Site(#[from] BadSite),
    /// The database that tells countries cannot be used.
    #[error("geo.database: {0}")]
    Geo(#[from] GeoError),
}

/// The sites to start with: the last that the control plane handed out, or those of the file. Blocks.
///
/// # Errors
///
/// A site of the configuration file that cannot be meant, or a geo database that is needed and
/// cannot be used.
pub fn load(config: &Config) -> Result<Sites, SitesError> {
    compiled(config, kept_or_configured(config)?, None)
}

/// `map` with its rules compiled; reads the geo database if it is needed and not `known` yet. One
/// that the operator names is read in any case: a wrong path shows at start. Blocks.
fn compiled(config: &Config, map: SiteMap, known: Option<Arc<GeoDb>>) -> Result<Sites, SitesError> {
    let needed = matches!(config.database, Database::File(_))
        || map.sites().iter().any(|site| site.names_countries());
    let geo = match known {
        None if needed => config.database.open()?.map(Arc::new),
        known => known,
    };
    Ok(Sites::new(map, config.cache.honour_client_reload, geo))
}

fn kept_or_configured(config: &Config) -> Result<SiteMap, BadSite> {
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

/// Takes over what the control plane hands out, until it is dropped. Says when this node is ready: it has
/// sites, and is `settled` about purges.
pub async fn follow(
    config: Config,
    upstream: Upstream,
    sites: Arc<ArcSwap<Sites>>,
    membership: Option<Arc<Membership>>,
    mut settled: watch::Receiver<bool>,
    readiness: watch::Sender<Readiness>,
) {
    let mut handed_out = upstream.sites();
    loop {
        let newest = handed_out.borrow_and_update().clone();
        if let Some(set) = newest {
            take_over(&config, &set, &sites, membership.as_deref()).await;
        }
        let is_settled = *settled.borrow_and_update();
        let is_waiting = || matches!(*readiness.borrow(), STARTING | CATCHING_UP);
        let is_new = is_waiting() && is_settled && !sites.load().is_empty();
        if let (true, Some(membership)) = (is_new, &membership) {
            // Whoever hears that it serves knows how near it is to the origins.
            let own = sites.load_full();
            let _ = timeout(MEASURING_MAX, upstream.measure_origins(own.all())).await;
            membership.update(|me| me.origins_ms = upstream.origin_times());
        }
        if !is_waiting() || sites.load().is_empty() {
        } else if !is_settled {
            readiness.send_replace(CATCHING_UP);
        } else {
            readiness.send_replace(Readiness::Ready);
            if let Some(membership) = &membership {
                membership.update(|me| me.phase = Phase::Ready);
            }
            info!("ready");
        }
        tokio::select! {
            changed = handed_out.changed() => if changed.is_err() {
                // Nobody hands anything out: the file's sites stay. Stay with them, to be stopped.
                return std::future::pending().await;
            },
            Ok(()) = settled.changed() => {}
        }
    }
}

async fn take_over(
    config: &Config,
    set: &SiteSet,
    sites: &ArcSwap<Sites>,
    membership: Option<&Membership>,
) {
    if set.version == sites.load().version() {
        return;
    }
    let (own, new, known) = (config.clone(), set.clone(), sites.load().geo());
    // Thousands of sites, or a geo database, take longer than a runtime thread may be kept.
    let compiling = tokio::task::spawn_blocking(move || {
        let map = SiteMap::new(&new)?;
        compiled(&own, map, known)
    });
    let mut taken = match compiling.await {
        Ok(Ok(taken)) => taken,
        Ok(Err(error)) => return warn!(%error, version = set.version, "sites refused"),
        Err(error) => return warn!(%error, version = set.version, "sites could not be compiled"),
    };
    if let Some(membership) = membership {
        let own = membership
            .view()
            .borrow()
            .node(&config.id)
            .map(|me| me.http.clone());
        if let Some(own) = own {
            taken = taken.with_own_name(&own);
        }
    }
    sites.store(Arc::new(taken));
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
