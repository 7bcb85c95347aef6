//! The composition root: builds the parts, leaf first, and ends them in reverse.

use std::{fmt, net::SocketAddr, sync::Arc};

use cluster::{
    auth::Signer,
    clock::Clock,
    membership::{Membership, MembershipConfig},
    net::{Listener, Net},
    node::{NodeInfo, Phase, Role},
};
use tokio::{sync::watch, task::JoinSet};
use tracing::{info, warn};

use crate::{
    api::{self, App, AppParts},
    atlas::{self, Atlas},
    config::Config,
    data_dir::DataDir,
    error::StartError,
    keyring::Keyring,
    metrics::Metrics,
    places::Places,
    serve::Server,
    sites::Sites,
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
    keyring: Keyring,
    /// In use until the end.
    data_dir: Arc<DataDir>,
}

impl Control {
    /// Takes the data directory into use, opens the database, binds the listeners and joins gossip.
    ///
    /// # Errors
    ///
    /// What in the configuration or on this machine stands in the way, with its key.
    pub async fn build(config: Config, environment: Environment) -> Result<Self, StartError> {
        let Environment { net, clock } = environment;
        let FromDisk {
            data_dir,
            sites,
            places,
            warming,
        } = tokio::task::spawn_blocking({
            let (config, clock) = (config.clone(), clock.clone());
            move || from_disk(config, &clock)
        })
        .await
        .expect("reading files neither panics nor is aborted")?;
        let store = Store::open(&config.store, &data_dir, net.clone()).await?;
        let keyring = Keyring::open(store, clock.clone())
            .await
            .map_err(StartError::Tokens)?;
        if let Err(error) = keyring.take_rescue(&data_dir).await {
            // It is tried again.
            warn!(%error, "the reset of tokens is not taken yet");
        }
        info!(database = places.describe(), "addresses are located");

        let http = listen(&net, "listen.http", config.listen.http).await?;
        let steer = listen(&net, "listen.steer", config.listen.steer).await?;

        let mut me = NodeInfo::new(config.id.clone(), Role::Control);
        me.phase = Phase::Ready;
        me.sites_version = sites.version();
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

        let (atlas, atlases) = watch::channel(Arc::new(Atlas::default()));
        let places = Arc::new(places);
        let parts = AppParts {
            atlas: atlases,
            places: places.clone(),
            metrics: Metrics::new(sites.version(), sites.map().sites().len()),
            sites,
            warming: warming.clone(),
            keyring: keyring.clone(),
            gossip: membership.stats(),
            clock,
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
            keyring,
            data_dir,
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
        let signer = Signer::new(self.config.secret.clone(), self.config.id.clone());
        let atlases = self.atlas.subscribe();
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

/// What is read from files at start.
struct FromDisk {
    data_dir: Arc<DataDir>,
    sites: Sites,
    places: Places,
    warming: Warming,
}

fn from_disk(config: Config, clock: &Clock) -> Result<FromDisk, StartError> {
    let data_dir = Arc::new(DataDir::open(&config.data_dir)?);
    let database = config.database.open()?;
    let sites = Sites::open(config.sites, &data_dir, clock)?;
    let warming = Warming::open(data_dir.clone(), clock.clone())?;
    Ok(FromDisk {
        data_dir,
        sites,
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
