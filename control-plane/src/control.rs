//! The composition root: builds the parts, leaf first, and ends them in reverse.

use std::{fmt, net::SocketAddr, sync::Arc};

use cluster::{
    auth::Signer,
    clock::Clock,
    membership::{Membership, MembershipConfig},
    net::{Listener, Net},
    node::{NodeInfo, Phase, Role},
    purge::Position,
};
use tokio::{sync::watch, task::JoinSet};
use tracing::{info, warn};

use crate::{
    api::{self, App, AppParts},
    atlas::{self, Atlas},
    config::Config,
    data_dir::DataDir,
    error::StartError,
    fanout::Fanout,
    keyring::Keyring,
    metrics::Metrics,
    nudge::Nudger,
    places::Places,
    purge_log::{self, PurgeLog},
    receipts::Receipts,
    serve::Server,
    sites::{Sites, SitesParts, snapshot::Snapshot},
    store::Store,
    warm::Warming,
};

/// The world a control plane lives in.
#[derive(Clone, Debug)]
pub struct Environment {
    /// The network.
    pub net: Arc<dyn Net>,
    /// The wall clock.
    pub clock: Clock,
}

/// A control plane, ready to run: its addresses are bound, and gossip knows of it.
pub struct Control {
    app: Arc<App>,
    atlas: watch::Sender<Arc<Atlas>>,
    places: Arc<Places>,
    membership: Membership,
    http: Box<dyn Listener>,
    steer: Box<dyn Listener>,
    net: Arc<dyn Net>,
    config: Config,
    warming: Warming,
    fanout: Fanout,
    keyring: Keyring,
    /// In use until the end.
    data_dir: Arc<DataDir>,
    sites: Sites,
    clock: Clock,
}

impl Control {
    /// Takes the data directory into use, opens the database, binds the listeners and joins gossip.
    ///
    /// # Errors
    ///
    /// What in the configuration or on this machine stands in the way, with its key.
    pub async fn build(mut config: Config, environment: Environment) -> Result<Self, StartError> {
        let Environment { net, clock } = environment;
        let FromDisk {
            data_dir,
            version_before,
            places,
            warming,
        } = tokio::task::spawn_blocking({
            let (config, clock) = (config.clone(), clock.clone());
            move || from_disk(config, &clock)
        })
        .await
        .expect("reading files neither panics nor is aborted")?;
        let store = Store::open(&config.store, &data_dir, net.clone()).await?;
        let keyring = Keyring::open(store.clone(), clock.clone())
            .await
            .map_err(StartError::Tokens)?;
        if let Err(error) = keyring.take_rescue(&data_dir).await {
            // It is tried again.
            warn!(%error, "the reset of tokens is not taken yet");
        }
        info!(database = places.describe(), "addresses are located");
        let sites = Sites::open(SitesParts {
            store: store.clone(),
            me: config.id.clone(),
            configured: std::mem::take(&mut config.sites),
            private: config.private_origins.clone(),
            version_before,
            clock: clock.clone(),
        })
        .await?;
        let version = sites.now().version();

        let http = listen(&net, "listen.http", config.listen.http).await?;
        let steer = listen(&net, "listen.steer", config.listen.steer).await?;

        let mut me = NodeInfo::new(config.id.clone(), Role::Control);
        me.phase = Phase::Ready;
        me.sites_version = version;
        let membership = Membership::join(
            MembershipConfig {
                cluster_name: config.cluster_name.clone(),
                me,
                generation: clock.unix_ms(),
                listen: config.listen.gossip,
                advertise: config.advertise.gossip.clone().unwrap_or_default(),
                seeds: config.seeds.clone(),
                secret: config.secret.clone(),
                interval: config.gossip_interval,
            },
            net.clone(),
            clock.clone(),
        )
        .await?;
        let api = config.advertise.http.clone().unwrap_or_else(|| {
            let mut at = http.local_addr();
            if at.ip().is_unspecified() {
                at.set_ip(membership.address().ip());
            }
            at.to_string()
        });
        membership.update(|me| {
            me.http = format!("http://{api}");
            me.peer = api;
        });

        let metrics = Arc::new(Metrics::new(version, sites.now().map().sites().len()));
        let fanout = Fanout {
            log: PurgeLog::new(store, clock.clone()),
            receipts: Arc::new(Receipts::new(clock.clone())),
            metrics: metrics.clone(),
            net: net.clone(),
            signer: Signer::new(config.secret.clone(), config.id.clone()),
            clock: clock.clone(),
        };
        let (atlas, atlases) = watch::channel(Arc::new(Atlas::default()));
        let places = Arc::new(places);
        let parts = AppParts {
            atlas: atlases,
            places: places.clone(),
            metrics,
            sites: sites.clone(),
            purge_log: fanout.log.clone(),
            receipts: fanout.receipts.clone(),
            warming: warming.clone(),
            keyring: keyring.clone(),
            gossip: membership.stats(),
            clock: clock.clone(),
        };
        let app = Arc::new(App::new(parts, &config));
        Ok(Self {
            app,
            atlas,
            places,
            membership,
            http,
            steer,
            net,
            config,
            warming,
            fanout,
            keyring,
            data_dir,
            sites,
            clock,
        })
    }

    /// Where the API listens.
    pub fn http_addr(&self) -> SocketAddr {
        self.http.local_addr()
    }

    /// Where clients are steered.
    pub fn steer_addr(&self) -> SocketAddr {
        self.steer.local_addr()
    }

    /// Where others reach its gossip.
    pub fn gossip_addr(&self) -> SocketAddr {
        self.membership.address()
    }

    /// Serves until `shutdown` is ready; then tells the others, lets running requests finish, and
    /// leaves gossip.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (stop, stopping) = watch::channel(false);
        let membership = Arc::new(self.membership);
        let mut keeper = JoinSet::new();
        let signer = self.fanout.signer.clone();
        let (told, arrivals) = purge_log::arrivals();
        keeper.spawn(self.fanout.log.clone().run(told));
        keeper.spawn(announce(self.fanout.log.head(), membership.clone()));
        keeper.spawn(self.fanout.run(self.atlas.subscribe(), arrivals));
        let atlases = self.atlas.subscribe();
        let nudger = Nudger {
            net: self.net.clone(),
            signer: signer.clone(),
            clock: self.clock,
        };
        keeper.spawn(nudger.run(self.sites.follow(), self.atlas.subscribe()));
        keeper.spawn(tell_version(
            self.sites.follow(),
            membership.clone(),
            self.app.clone(),
        ));
        keeper.spawn(self.sites.keep());
        keeper.spawn(self.warming.clone().run(atlases, self.net.clone(), signer));
        keeper.spawn(self.keyring.keep(self.data_dir));
        keeper.spawn(atlas::keep(
            membership.clone(),
            self.places,
            self.net,
            self.atlas,
        ));
        info!(http = %self.http.local_addr(), steer = %self.steer.local_addr(),
            gossip = %membership.address(), node = %self.config.id, "serving");
        let mut servers = JoinSet::new();
        for (name, listener, router) in [
            ("http", self.http, api::router(self.app.clone())),
            ("steer", self.steer, api::steering::router(self.app.clone())),
        ] {
            let server = Server {
                name,
                listener,
                router,
                connections_max: self.config.limits.connections,
                drain_time: self.config.limits.drain.0,
            };
            servers.spawn(server.run(stopping.clone()));
        }
        shutdown.await;
        info!("draining");
        self.app.stop();
        membership.update(|me| me.phase = Phase::Draining);
        stop.send_replace(true);
        while servers.join_next().await.is_some() {}
        keeper.shutdown().await;
        self.warming.save_all().await;
        if let Some(membership) = Arc::into_inner(membership) {
            membership.leave().await;
        }
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Control({})", self.config.id)
    }
}

/// Tells in gossip where the purge log ends: that is how an edge learns that it lacks something.
async fn announce(mut head: watch::Receiver<Position>, membership: Arc<Membership>) {
    loop {
        let end = *head.borrow_and_update();
        membership.update(|me| me.purged = end);
        if head.changed().await.is_err() {
            return;
        }
    }
}

/// What is read from files at start.
struct FromDisk {
    data_dir: Arc<DataDir>,
    /// See [`version_before`].
    version_before: u64,
    places: Places,
    warming: Warming,
}

/// Tells everybody which version of the sites is handed out.
async fn tell_version(
    mut sites: watch::Receiver<Arc<Snapshot>>,
    membership: Arc<Membership>,
    app: Arc<App>,
) {
    while sites.changed().await.is_ok() {
        let (version, count) = {
            let now = sites.borrow_and_update();
            (now.version(), now.map().sites().len())
        };
        app.hand_out(version, count);
        membership.update(|me| me.sites_version = version);
    }
}

/// What was handed out before there was a store.
const SITES_BEFORE: &str = "sites.json";

/// The version of the sites that were handed out before there was a store; 0: none were.
fn version_before(dir: &DataDir) -> Result<u64, StartError> {
    let file = |source| StartError::File {
        name: SITES_BEFORE,
        source,
    };
    #[derive(serde::Deserialize)]
    struct Before {
        version: u64,
    }
    let before = dir.read(SITES_BEFORE).map_err(file)?;
    let read = |bytes: Vec<u8>| serde_json::from_slice::<Before>(&bytes).ok();
    Ok(before.and_then(read).map_or(0, |before| before.version))
}

fn from_disk(config: Config, clock: &Clock) -> Result<FromDisk, StartError> {
    let data_dir = Arc::new(DataDir::open(&config.data_dir)?);
    let database = config.database.open()?;
    let version_before = version_before(&data_dir)?;
    let warming = Warming::open(data_dir.clone(), clock.clone())?;
    Ok(FromDisk {
        data_dir,
        version_before,
        places: Places::new(config.networks, database),
        warming,
    })
}

async fn listen(
    net: &Arc<dyn Net>,
    listener: &'static str,
    at: SocketAddr,
) -> Result<Box<dyn Listener>, StartError> {
    net.listen(at).await.map_err(|source| StartError::Bind {
        listener,
        at,
        source,
    })
}
