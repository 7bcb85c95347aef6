//! The composition root: builds every part leaf first, runs them, and stops them in reverse.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::ArcSwap;
use cluster::{
    auth::Verifier,
    clock::Clock,
    digest::Holdings,
    membership::{Membership, MembershipConfig, MembershipError},
    net::{Listener, Net, SystemNet},
    node::{NodeInfo, Phase, Role},
    view::ClusterView,
};
use futures_util::future::Either;
use hyper::service::service_fn;
use hyper_util::service::TowerToHyperService;
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
};
use tracing::{info, warn};

use crate::{
    admin::{self, Admin, Readiness},
    cache::{
        Cache,
        memory::Memory,
        refusals::Refusals,
        store::{OnEvicted, OpenError, Store, StoreConfig},
    },
    config::Config,
    hold::{Hold, uploads::Uploads},
    metrics::{Metrics, Shed},
    offering::Offering,
    proxy::{LastSite, Proxy, ProxyParts, UploadLimits},
    purges::{Checks, Purges},
    serve::{self, ConnectionLimits, idle::OnClosed},
    sites::Sites,
    upstream::{Upstream, UpstreamConfig},
    workers,
};

/// How long the admin listener outlives the others at shutdown: for a last scrape, no more.
const ADMIN_DRAIN: Duration = Duration::from_secs(1);

/// The world a node lives in; a simulation has its own.
#[derive(Clone)]
pub struct Environment {
    /// The network.
    pub net: Arc<dyn Net>,
    /// The wall clock.
    pub clock: Clock,
}

impl Environment {
    /// The machine itself.
    pub fn real() -> Self {
        Self {
            net: Arc::new(SystemNet),
            clock: Clock::system(),
        }
    }
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener's address cannot be had.
    #[error("listen.{listener} = \"{address}\": {error}")]
    Bind {
        /// Which listener.
        listener: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        error: io::Error,
    },
    /// The data directory cannot be used.
    #[error("node.data_dir: {0}")]
    Store(#[from] OpenError),
    /// What is known of purges cannot be kept.
    #[error("node.data_dir: purges: {0}")]
    Purges(io::Error),
    /// The sites of the file cannot be served.
    #[error(transparent)]
    Sites(#[from] workers::sites::SitesError),
    /// The node cannot join gossip.
    #[error("cluster: {0}")]
    Membership(#[from] MembershipError),
    /// The outward address cannot be told.
    #[error("advertise.{key}: cannot tell this host's address: {error}; set it")]
    Advertise {
        /// Which address is missing.
        key: &'static str,
        /// The system's reason.
        error: io::Error,
    },
    /// A task panicked while starting.
    #[error("starting: {0}")]
    Task(#[from] JoinError),
}

/// Where a node listens, with the real ports.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// For clients.
    pub http: SocketAddr,
    /// For the operator.
    pub admin: SocketAddr,
    /// For peers, in a cluster.
    pub peer: Option<SocketAddr>,
    /// For gossip, in a cluster.
    pub gossip: Option<SocketAddr>,
}

/// An edge node, built and bound, not yet serving.
pub struct Edge {
    config: Config,
    http: Box<dyn Listener>,
    admin: Box<dyn Listener>,
    peer: Option<(Box<dyn Listener>, Hold)>,
    membership: Option<Arc<Membership>>,
    cache: Cache,
    upstream: Upstream,
    sites: Arc<ArcSwap<Sites>>,
    purges: Purges,
    /// Requests for checks of purges, in a cluster.
    checks: Option<Checks>,
    refusals: Refusals,
    metrics: Arc<Metrics>,
    proxy: Proxy,
    clock: Clock,
    addresses: Addresses,
}

impl Edge {
    /// Builds every part and binds every socket. Nothing is served before [`Edge::run`].
    ///
    /// # Errors
    ///
    /// What the operator has to mend before this node can start.
    pub async fn build(config: Config, environment: Environment) -> Result<Self, StartError> {
        let Environment { net, clock } = environment;
        let metrics = Metrics::new();
        let boot_ms = clock.unix_ms();

        let http = bind(&*net, "http", config.listen.http).await?;
        let admin = bind(&*net, "admin", config.listen.admin).await?;
        let peer_listener = match &config.cluster {
            Some(_) => Some(bind(&*net, "peer", config.listen.peer).await?),
            None => None,
        };

        let holdings = Arc::new(Mutex::new(Holdings::new(boot_ms)));
        let store = open_store(&config, &holdings).await?;
        let memory = Memory::new(config.cache.memory.0);
        // A body near the size of the disk would push itself, and all else, out while it is written.
        let object_bytes_max = config.cache.object_max.0.min(config.cache.disk.0 / 4 * 3);
        let cache = Cache::new(memory, store, holdings, object_bytes_max);

        let loading = config.clone();
        let sites = tokio::task::spawn_blocking(move || workers::sites::load(&loading)).await??;
        let sites = Arc::new(ArcSwap::from_pointee(sites));
        let (purges, checks) = open_purges(&config, &sites, &clock).await?;

        let mut me = NodeInfo::new(config.id.clone(), Role::Edge);
        me.region.clone_from(&config.region);
        me.location = config.location;
        me.sites_version = sites.load().version();
        me.capacity_bytes = config.cache.disk.0;
        me.digest = Some(cache.digest_version());
        me.purged = purges.applied();
        let membership = match (&config.cluster, &peer_listener) {
            (Some(cluster), Some(peer)) => {
                let http = advertised("http", config.advertise.http.as_deref(), http.local_addr())?;
                me.http = if http.contains("://") {
                    http
                } else {
                    format!("http://{http}")
                };
                me.peer = advertised("peer", config.advertise.peer.as_deref(), peer.local_addr())?;
                let own = sites.load().as_ref().clone().with_own_name(&me.http);
                sites.store(Arc::new(own));
                let joined = MembershipConfig {
                    cluster_name: cluster.name.clone(),
                    me: me.clone(),
                    generation: boot_ms,
                    listen: config.listen.gossip,
                    advertise: config.advertise.gossip.clone().unwrap_or_default(),
                    seeds: workers::seeds::with_remembered(&cluster.seeds, &config.data_dir),
                    secret: cluster.secret.clone(),
                    interval: cluster.gossip_interval,
                };
                Some(Arc::new(
                    Membership::join(joined, net.clone(), clock.clone()).await?,
                ))
            }
            _ => None,
        };

        let cluster = config.cluster.as_ref();
        let alone = || watch::channel(Arc::new(ClusterView::new([me.clone()]))).1;
        let upstream = Upstream::new(UpstreamConfig {
            me: config.id.clone(),
            secret: cluster.map(|c| c.secret.clone()),
            net: net.clone(),
            clock: clock.clone(),
            view: membership
                .as_ref()
                .map_or_else(alone, |membership| membership.view()),
            control_planes: cluster
                .map(|c| c.control_planes.clone())
                .unwrap_or_default(),
            sites_version: sites.load().version(),
            data_dir: config.data_dir.clone(),
            reach: cluster.map(|c| c.reach.clone()).unwrap_or_default(),
            hedge: config.peer.hedge,
            events: metrics.clone(),
        });
        let refusals = Refusals::default();
        let proxy = Proxy::new(ProxyParts {
            me: config.id.clone(),
            cache: cache.clone(),
            upstream: upstream.clone(),
            sites: sites.clone(),
            purges: purges.clone(),
            metrics: metrics.clone(),
            clock: clock.clone(),
            refusals: refusals.clone(),
            upload: UploadLimits {
                bytes_max: config.limits.body.0,
                silence_max: config.limits.body_timeout.0,
            },
            fills_max: config.limits.fills,
        });
        let peer = match (&config.cluster, peer_listener) {
            (Some(cluster), Some(listener)) => {
                let verifier = Verifier::new(cluster.secret.clone(), config.id.clone());
                let uploads = Uploads::new(config.peer.uploads, config.peer.upload_bytes_per_s.0);
                let (metrics, clock) = (metrics.clone(), clock.clone());
                let offering = Offering::new(
                    upstream.clone(),
                    cache.clone(),
                    metrics.clone(),
                    cluster.offers.0,
                );
                let hold = Hold::new(
                    cache.clone(),
                    proxy.clone(),
                    verifier,
                    uploads,
                    metrics,
                    clock,
                    offering,
                    purges.clone(),
                );
                Some((listener, hold))
            }
            _ => None,
        };
        let addresses = Addresses {
            http: http.local_addr(),
            admin: admin.local_addr(),
            peer: peer.as_ref().map(|(listener, _)| listener.local_addr()),
            gossip: membership.as_ref().map(|m| m.address()),
        };
        Ok(Self {
            config,
            http,
            admin,
            peer,
            membership,
            cache,
            upstream,
            sites,
            purges,
            checks,
            refusals,
            metrics,
            proxy,
            clock,
            addresses,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Serves until `shutdown`; then takes nothing new, lets running transfers finish within
    /// `limits.drain`, leaves gossip, and writes down what it has.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self {
            config,
            membership,
            cache,
            upstream,
            sites,
            purges,
            checks,
            refusals,
            metrics,
            clock,
            ..
        } = self;
        let (stop, stopping) = watch::channel(false);
        let (stop_admin, stopping_admin) = watch::channel(false);
        let (readiness, ready) = watch::channel(workers::sites::STARTING);
        let drain = config.limits.drain.0;

        let mut listeners = JoinSet::new();
        let proxy = self.proxy;
        let fills = proxy.clone();
        let shedding = metrics.clone();
        let limits = ConnectionLimits {
            closes_idle: Some(OnClosed::new(move || shedding.shed(Shed::IdleConnection))),
            ..ConnectionLimits::public(&config.limits)
        };
        listeners.spawn(serve::listen(
            "http",
            self.http,
            limits,
            stopping.clone(),
            drain,
            Some(Arc::new(proxy.clone())),
            move |connection| {
                let (proxy, last) = (proxy.clone(), LastSite::default());
                service_fn(move |request| {
                    // What is quick must not carry a task's worth of state for what is not.
                    if let Some(answer) = proxy.quick(&request, &connection, &last) {
                        return Either::Left(std::future::ready(Ok::<_, Infallible>(answer)));
                    }
                    let (proxy, connection) = (proxy.clone(), connection.clone());
                    Either::Right(Box::pin(async move {
                        Ok(proxy.handle(request, &connection).await)
                    }))
                })
            },
        ));
        if let Some((listener, hold)) = self.peer {
            let limits = ConnectionLimits::peer();
            listeners.spawn(serve::listen(
                "peer",
                listener,
                limits,
                stopping.clone(),
                drain,
                None,
                move |connection| {
                    let hold = hold.clone();
                    service_fn(move |request| {
                        let (hold, connection) = (hold.clone(), connection.clone());
                        async move { hold.handle(request, &connection).await }
                    })
                },
            ));
        }

        let gauges = workers::gauges::Gauges {
            me: config.id.clone(),
            cache: cache.clone(),
            upstream: upstream.clone(),
            membership: membership.clone(),
            sites: sites.clone(),
            clock: clock.clone(),
            purges: purges.clone(),
            metrics: metrics.clone(),
        };
        let admin = admin::router(Admin {
            me: config.id.clone(),
            sites: sites.clone(),
            purges: purges.clone(),
            cache: cache.clone(),
            upstream: upstream.clone(),
            refusals,
            metrics: metrics.clone(),
            clock,
            ready,
            refresh: Arc::new({
                let gauges = gauges.clone();
                move || gauges.refresh()
            }),
        });
        let limits = ConnectionLimits::admin();
        let admin = tokio::spawn(serve::listen(
            "admin",
            self.admin,
            limits,
            stopping_admin,
            ADMIN_DRAIN,
            None,
            move |_| TowerToHyperService::new(admin.clone()),
        ));

        let background = upstream.spawn();
        let mut work = JoinSet::new();
        work.spawn(workers::checks::run(upstream.clone(), sites.clone()));
        work.spawn(workers::publish::run(gauges, membership.clone()));
        if membership.is_some() {
            work.spawn(workers::nearness::run(upstream.clone(), sites.clone()));
        }
        work.spawn(workers::seeds::remember(
            config.id.clone(),
            membership.clone(),
            config.data_dir.clone(),
        ));
        let (settled, is_settled) = watch::channel(checks.is_none());
        if let Some(checks) = checks {
            work.spawn(workers::purges::follow(
                purges,
                upstream.clone(),
                membership.clone(),
                checks,
                settled,
            ));
        }
        work.spawn(workers::sites::follow(
            config.clone(),
            upstream.clone(),
            sites,
            membership.clone(),
            is_settled,
            readiness.clone(),
        ));
        info!(id = %config.id, http = %self.addresses.http, admin = %self.addresses.admin, "serving");

        shutdown.await;
        info!("draining");
        readiness.send_replace(Readiness::NotReady("draining"));
        if let Some(membership) = &membership {
            membership.update(|me| me.phase = Phase::Draining);
        }
        stop.send_replace(true);
        while listeners.join_next().await.is_some() {}
        // A client may have its last byte before that is committed.
        fills.settle().await;
        work.shutdown().await;
        for (name, task) in background {
            task.abort();
            if task.await.is_err_and(|error| error.is_panic()) {
                warn!(task = name, "had panicked");
            }
        }
        stop_admin.send_replace(true);
        if let Err(error) = admin.await {
            warn!(%error, "admin listener failed");
        }
        // The workers are gone, so this is the last handle.
        if let Some(membership) = membership.and_then(Arc::into_inner) {
            membership.leave().await;
        }
        cache.store().close().await;
        info!("stopped");
    }
}

async fn bind(
    net: &dyn Net,
    listener: &'static str,
    address: SocketAddr,
) -> Result<Box<dyn Listener>, StartError> {
    net.listen(address).await.map_err(|error| StartError::Bind {
        listener,
        address,
        error,
    })
}

async fn open_store(config: &Config, holdings: &Arc<Mutex<Holdings>>) -> Result<Store, StartError> {
    let store = StoreConfig {
        dir: PathBuf::from(&config.data_dir),
        disk_bytes_max: config.cache.disk.0,
        read_threads: config.cache.disk_threads,
    };
    let holdings = holdings.clone();
    let on_evicted: OnEvicted = Arc::new(move |keys| {
        let mut held = holdings
            .lock()
            .expect("no code panics while it holds this lock");
        keys.iter().for_each(|key| {
            held.remove(*key);
        });
    });
    Ok(tokio::task::spawn_blocking(move || Store::open(&store, on_evicted)).await??)
}

/// What is known of purges; and the requests for checks, where this node is in a cluster.
async fn open_purges(
    config: &Config,
    sites: &Arc<ArcSwap<Sites>>,
    clock: &Clock,
) -> Result<(Purges, Option<Checks>), StartError> {
    let (sites, clock) = (sites.clone(), clock.clone());
    let Some(cluster) = &config.cluster else {
        return Ok((Purges::none(sites, clock), None));
    };
    let watches = !cluster.control_planes.is_empty();
    let (dir, scopes_max) = (config.data_dir.clone(), config.cache.purge_scopes);
    let opening = move || Purges::open(&dir, scopes_max, watches, sites, clock);
    let opened = tokio::task::spawn_blocking(opening).await?;
    let (purges, checks) = opened.map_err(StartError::Purges)?;
    Ok((purges, Some(checks)))
}

/// What to tell others: what the operator says, or else where this node listens, or else where the
/// system would send from.
fn advertised(
    key: &'static str,
    configured: Option<&str>,
    listening: SocketAddr,
) -> Result<String, StartError> {
    if let Some(configured) = configured {
        return Ok(configured.to_owned());
    }
    if !listening.ip().is_unspecified() {
        return Ok(listening.to_string());
    }
    let outward = cluster::membership::outward_address(listening.ip())
        .map_err(|error| StartError::Advertise { key, error })?;
    Ok(SocketAddr::new(outward, listening.port()).to_string())
}
