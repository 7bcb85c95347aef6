//! Everything this node asks of others: objects of peers and origins, digests, rankings, sites.
//!
//! [`Upstream`] is the one handle; in reading order, the modules behind it:
//! [`origin`] where objects come from, [`standing`] which origin is asked, [`checks`] whether it is well,
//! [`lane`] the shortest way there; [`gate`] how many at once;
//! [`asking`] who holds an object, and how they are asked; [`peer`] one question to one peer, and `question` what
//! its end says of that peer; [`select`] which peer to ask, [`hedge`] when to ask a second as well;
//! [`many`] an object from many of them, [`schedule`] which pieces of whom; [`home`] who fetches for
//! others, [`homes`] how several of them are asked, and [`relayed`] what one says then; [`digest`] what peers
//! hold; [`health`] how they have behaved, and [`report`] that for people; [`changed`] who hears of changes; [`paying`] whether they are faster
//! than the origin; [`ranking`] how far they are, [`probe`] how that is found out; [`nearness`] how far origins
//! are; [`control`] what the control plane says, [`purging`] what was purged, [`asking_purge`] what
//! is to be; [`pool`] the
//! connections under all of them, and [`plain`] those that need no HTTP client.
//!
//! **Invariant:** nothing here knows of the cache; it takes and gives HTTP messages, keys and
//! manifests. Nothing here waits for anybody without a deadline.

pub mod asking;
pub mod asking_purge;
pub mod changed;
pub mod checks;
pub mod control;
pub mod digest;
pub mod fellows;
pub mod gate;
pub mod health;
pub mod hedge;
pub mod home;
pub mod homes;
pub mod lane;
pub mod many;
pub mod nearness;
pub mod origin;
pub mod paying;
pub mod peer;
pub mod plain;
pub mod pool;
pub mod probe;
pub mod purging;
mod question;
pub mod ranking;
pub mod relayed;
pub mod report;
pub mod schedule;
#[cfg(test)]
mod scripted;
pub mod select;
pub mod standing;
#[cfg(test)]
mod tests;
pub mod wants;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use cluster::{
    auth::Signer,
    clock::Clock,
    coordinates::Coordinate,
    digest::Digest,
    key::Key,
    net::Net,
    node::{NodeId, NodeInfo, ROUND_TRIPS_MAX, Role},
    secret::ClusterSecret,
    site::{Site, SiteSet},
    view::ClusterView,
    wire::PeersAnswer,
};
use http::{HeaderMap, Request, Response};
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use self::{
    control::ControlPlanes,
    digest::{DigestPuller, Digests},
    gate::{Place, Refused, Traffic},
    health::Health,
    hedge::Budget,
    home::{Level, SpillingUntil},
    lane::{Begun, Lane},
    many::Spare,
    nearness::Nearnesses,
    origin::{OriginBody, OriginError, Origins},
    paying::{Comparison, Decision, Order, Paying, Sample},
    peer::{Asker, PeerError},
    pool::{Body, Pool},
    probe::Position,
    ranking::Placed,
    standing::{Due, OriginReport},
};

/// What is counted of all this; implemented where metrics are.
pub trait Events: Send + Sync + 'static {
    /// A request goes out to an origin of this site.
    fn origin_attempt(&self, site: &str);
    /// A question to a peer has ended: `hit`, `abandoned`, or a [`PeerError::label`]; one to a home `filled`,
    /// `same`, or a [`relayed::Refusal::label`].
    fn peer_result(&self, peer: &NodeId, result: &'static str);
    /// A peer does not have what its digest claims.
    fn digest_false_hit(&self, peer: &NodeId);
    /// A question was asked of a second peer as well, and `won`, `lost` or `failed`; or it was late and not
    /// asked, `denied` by the budget.
    fn hedged(&self, result: &'static str);
    /// A pull of a peer's digest has ended: `delta`, `snapshot` or `failed`.
    fn digest_pulled(&self, peer: &NodeId, result: &'static str);
    /// It was decided who is asked first for something of this site that peers claim to hold: `peers`,
    /// `origin`, or for a trial `peers_trial`, `origin_trial`.
    fn ordered(&self, site: &str, first: &'static str);
}

/// What an [`Upstream`] is made of.
pub struct UpstreamConfig {
    /// This node.
    pub me: NodeId,
    /// The cluster's secret. Without one, no peer is asked.
    pub secret: Option<ClusterSecret>,
    /// The network.
    pub net: Arc<dyn Net>,
    /// The time in signatures.
    pub clock: Clock,
    /// Who is there.
    pub view: watch::Receiver<Arc<ClusterView>>,
    /// Base URLs of the control planes, in order of preference.
    pub control_planes: Vec<String>,
    /// Version of the site registry that this node has from before; 0 for none.
    pub sites_version: u64,
    /// Where the last ranking is kept (`peers.json`).
    pub data_dir: PathBuf,
    /// Addresses of peer listeners, `host:port`, where they are not those in the view.
    pub reach: HashMap<NodeId, String>,
    /// Whether a second holder is asked when the first is late.
    pub hedge: bool,
    /// Counts.
    pub events: Arc<dyn Events>,
}

/// The handle to everything upstream. Clones are the same.
#[derive(Clone)]
pub struct Upstream(Arc<Inner>);

struct Inner {
    me: NodeId,
    net: Arc<dyn Net>,
    view: watch::Receiver<Arc<ClusterView>>,
    origins: Origins,
    asker: Option<Asker>,
    planes: ControlPlanes,
    digests: Digests,
    health: Arc<Health>,
    position: Position,
    ranking: Arc<ArcSwapOption<PeersAnswer>>,
    sites: watch::Sender<Option<Arc<SiteSet>>>,
    /// The last version of them that a control plane has told of.
    sites_told: watch::Sender<u64>,
    sites_version: u64,
    data_dir: PathBuf,
    reach: Arc<HashMap<NodeId, String>>,
    /// `None`: no hedges.
    hedges: Option<Mutex<Budget>>,
    /// Average length of what peers had, up to a first answer's.
    usual_bytes: Mutex<f64>,
    spare: Spare,
    events: Arc<dyn Events>,
    nearnesses: Nearnesses,
    paying: Paying,
    spilling: Mutex<SpillingUntil>,
}

impl Upstream {
    /// Connects nothing yet.
    pub fn new(config: UpstreamConfig) -> Self {
        let UpstreamConfig {
            me,
            secret,
            net,
            clock,
            view,
            control_planes,
            sites_version,
            data_dir,
            reach,
            hedge,
            events,
        } = config;
        // Origins get connections of their own, so that their number says nothing of peers.
        let pool = Pool::new(net.clone());
        let signer = secret.clone().map(|secret| Signer::new(secret, me.clone()));
        let mut planes = ControlPlanes::new(pool.clone(), &control_planes, secret);
        if let Some(signer) = &signer {
            planes = planes.signing(signer.clone(), clock.clone());
        }
        let health = Arc::<Health>::default();
        Self(Arc::new(Inner {
            origins: Origins::new(Pool::new(net.clone()), events.clone()),
            asker: signer.map(|signer| Asker {
                pool,
                signer,
                clock,
                health: health.clone(),
            }),
            net,
            planes,
            digests: Digests::default(),
            health,
            position: Position::default(),
            ranking: Arc::default(),
            sites: watch::Sender::new(None),
            sites_told: watch::Sender::new(0),
            me,
            view,
            sites_version,
            data_dir,
            reach: Arc::new(reach),
            hedges: hedge.then(Mutex::default),
            usual_bytes: Mutex::default(),
            spare: Spare::default(),
            events,
            nearnesses: Nearnesses::default(),
            paying: Paying::default(),
            spilling: Mutex::default(),
        }))
    }

    /// Starts what runs in the background, each with its name. Aborting a task ends it cleanly.
    pub fn spawn(&self) -> Vec<(&'static str, JoinHandle<()>)> {
        let inner = &*self.0;
        let mut tasks = Vec::new();
        if let Some(asker) = &inner.asker {
            let ranked = self.0.clone();
            let puller = DigestPuller {
                nearest: Arc::new(move || ranked.nearest()),
                digests: inner.digests.clone(),
                asker: asker.clone(),
                me: inner.me.clone(),
                view: inner.view.clone(),
                reach: inner.reach.clone(),
                health: inner.health.clone(),
                events: inner.events.clone(),
            };
            tasks.push(("digests", tokio::spawn(puller.run())));
            let probing = probe::probe(self.0.clone(), asker.clone());
            tasks.push(("probe", tokio::spawn(probing)));
        }
        if inner.planes.any() {
            let (planes, me) = (inner.planes.clone(), inner.me.clone());
            let follow =
                ranking::follow_ranking(planes, me, inner.data_dir.clone(), inner.ranking.clone());
            tasks.push(("ranking", tokio::spawn(follow)));
            let follow = control::follow_sites(
                inner.planes.clone(),
                inner.view.clone(),
                inner.sites_told.subscribe(),
                inner.sites.clone(),
                inner.sites_version,
            );
            tasks.push(("sites", tokio::spawn(follow)));
        }
        tasks
    }

    /// Waits until the site's origins may be asked once more; see [`Origins::enter`].
    ///
    /// # Errors
    ///
    /// They have enough to do.
    pub async fn place(&self, site: &Site) -> Result<Place, Refused> {
        self.0.origins.enter(site).await
    }

    /// How busy the origins of each site are; see [`Origins::traffic`].
    pub fn origin_traffic(&self, served: impl Fn(&str) -> bool) -> Vec<(String, Traffic)> {
        self.0.origins.traffic(served)
    }

    /// Asks the site's origins; see [`Origins::fetch`].
    ///
    /// # Errors
    ///
    /// No origin gave an answer.
    pub async fn origin(
        &self,
        site: &Site,
        key: Key,
        host: &str,
        request: Request<Body>,
        place: Place,
    ) -> Result<Response<OriginBody>, OriginError> {
        let origins = &self.0.origins;
        origins.fetch(site, key, host, request, place).await
    }

    /// How the site's origins stand for `key`; see [`Origins::report`].
    pub fn origins_report(&self, site: &Site, key: Key) -> Vec<OriginReport> {
        self.0.origins.report(site, key)
    }

    /// From now on the origins of `sites`, which are all there are, are checked where that is wanted.
    pub fn watch_origins<'a>(&self, sites: impl Iterator<Item = &'a Site>) {
        self.0.origins.standings().watch(sites, Instant::now());
    }

    /// At most `most` checks of origins that are due, for [`Upstream::check_origin`].
    pub fn origins_due(&self, most: usize) -> Vec<Due> {
        self.0.origins.standings().due(most, Instant::now())
    }

    /// By site and URL, whether the origins that are checked are well.
    pub fn origins_health(&self) -> Vec<(String, String, bool)> {
        self.0.origins.standings().health()
    }

    /// Measures how far the origins of `sites` are, where that decides who are the homes of their objects,
    /// and it was not done lately. These are all sites there are.
    pub async fn measure_origins(&self, sites: impl Iterator<Item = &Site>) {
        self.0.nearnesses.measure(&*self.0.net, sites).await;
    }

    /// Times to the origins of sites, to publish through gossip, in milliseconds.
    pub fn origin_times(&self) -> BTreeMap<String, f64> {
        self.0.nearnesses.told()
    }

    /// Whether there may be peers to ask.
    pub fn has_peers(&self) -> bool {
        self.0.asker.is_some()
    }

    /// Who is asked first for something at `path` that peers claim to hold; see [`paying`].
    pub fn decide(&self, site: &Site, path: &str) -> Order {
        let Decision { order, is_trial } = self.0.paying.decide(site, path, Instant::now());
        let first = match (order, is_trial) {
            (Order::PeersFirst, false) => "peers",
            (Order::PeersFirst, true) => "peers_trial",
            (Order::OriginFirst, false) => "origin",
            (Order::OriginFirst, true) => "origin_trial",
        };
        self.0.events.ordered(&site.name, first);
        order
    }

    /// Notes what a fetch for `path` took.
    pub fn took(&self, site: &Site, path: &str, from: paying::From, sample: Sample) {
        if !self.has_peers() {
            return;
        }
        self.0.paying.add(site, path, from, sample, Instant::now());
    }

    /// Notes that holders of something at `path` were asked in vain, and what it took in the end.
    pub fn in_vain(&self, site: &Site, path: &str, took: Duration) {
        self.0.paying.add_vain(site, path, took, Instant::now());
    }

    /// How peers and the origin compare for what is at `path`.
    pub fn compare(&self, site: &Site, path: &str) -> Comparison {
        self.0.paying.compare(site, path, Instant::now())
    }

    /// Who in `region` serves and does not claim `key`, but for this node, and at which address.
    pub fn lacking(&self, key: Key, region: &str) -> Vec<(NodeId, String)> {
        let inner = &*self.0;
        let digests = inner.digests.load();
        let claims = |id: &NodeId| digests.get(id).is_some_and(|digest| digest.contains(key));
        let view = self.view();
        let lacking = view
            .serving_edges()
            .filter(|node| node.region == region && node.id != inner.me && !claims(&node.id));
        lacking
            .map(|node| (node.id.clone(), inner.address(node).to_owned()))
            .collect()
    }

    /// Tells a node that `key` is wanted around it; see [`Asker::offer`]. Nobody waits for that, so it says
    /// nothing of the peer's health.
    ///
    /// # Errors
    ///
    /// It does not take it.
    pub async fn offer(
        &self,
        to: &NodeId,
        addr: &str,
        key: Key,
        about: &HeaderMap,
    ) -> Result<(), PeerError> {
        let asker = self.0.asker.as_ref().ok_or(PeerError::Denied)?;
        asker.offer(to, addr, key, about).await
    }

    /// The way of plain exchanges with the site's origin; see [`Origins::lane`].
    pub fn lane(&self, site: &Site) -> Option<Lane> {
        self.0.origins.lane(site)
    }

    /// The answer to a request that was sent in the site's lane; see [`Origins::conclude`].
    ///
    /// # Errors
    ///
    /// There is none.
    pub async fn conclude(
        &self,
        site: &Site,
        request: Request<Body>,
        begun: Begun,
    ) -> Result<Response<OriginBody>, OriginError> {
        self.0.origins.conclude(site, request, begun).await
    }

    /// Whether nobody but the origin is to be asked for `key` in a client's name: no digest claims it, and
    /// this node is its home.
    pub fn is_for_origin(&self, site: &Site, key: Key) -> bool {
        let inner = &*self.0;
        inner.asker.is_none()
            || !inner.digests.load().values().any(|d| d.contains(key))
                && self.way(site, key, Level::Client).is_empty()
    }

    /// Round trips to publish through gossip, in milliseconds: the newest, as many as fit there.
    pub fn round_trips(&self) -> BTreeMap<NodeId, f64> {
        self.0.health.round_trips(ROUND_TRIPS_MAX)
    }

    /// Where this node stands by the round trips that it measured, to publish through gossip; `None`
    /// until there is one.
    pub fn coordinate(&self) -> Option<Coordinate> {
        self.0.position.coordinate()
    }

    /// The newest site registry that a control plane gave; `None` until it gave one. Check nothing,
    /// it is valid; keep it on disk.
    pub fn sites(&self) -> watch::Receiver<Option<Arc<SiteSet>>> {
        self.0.sites.subscribe()
    }

    /// A control plane says that it has this version of the site registry.
    pub fn sites_nudged(&self, version: u64) {
        self.0.sites_told.send_replace(version);
    }

    /// Who is there now.
    pub fn view(&self) -> Arc<ClusterView> {
        self.0.view.borrow().clone()
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("me", &self.0.me)
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// Every other edge, in the order of ranks: for reports and now and then, not for every miss.
    fn placed(&self) -> Vec<Placed> {
        let view = self.view.borrow().clone();
        ranking::order(
            self.ranking.load().as_deref(),
            &self.myself(&view),
            &view,
            &self.health.round_trips(usize::MAX),
        )
    }

    /// The peers that claim `key`, in no order. What it costs does not grow with the cluster.
    fn placed_among(&self, digests: &HashMap<NodeId, Arc<Digest>>, key: Key) -> Vec<Placed> {
        let view = self.view.borrow().clone();
        let (me, ranking) = (self.myself(&view), self.ranking.load());
        let claiming = digests.iter().filter(|(_, digest)| digest.contains(key));
        claiming
            .filter_map(|(id, _)| view.node(id))
            .map(|peer| {
                let ranked = ranking::rank_of(ranking.as_deref(), &me.id, &peer.id);
                let measured = self.health.of(&peer.id).round_trip_ms();
                ranking::place(ranked, &me, peer, measured)
            })
            .collect()
    }

    /// This node, as it last described itself.
    fn myself(&self, view: &ClusterView) -> Arc<NodeInfo> {
        let stranger = || Arc::new(NodeInfo::new(self.me.clone(), Role::Edge));
        view.node(&self.me).cloned().unwrap_or_else(stranger)
    }

    /// Every other edge, the nearest first.
    fn nearest(&self) -> Vec<NodeId> {
        let mut placed = self.placed();
        placed.sort_by(|a, b| a.cost_ms.total_cmp(&b.cost_ms));
        placed.into_iter().map(|p| p.node.id.clone()).collect()
    }

    fn measured(&self, peer: &NodeId, round_trip: Duration) {
        let ms = round_trip.as_secs_f64() * 1e3;
        self.health.with(peer, |h| h.measured(ms, Instant::now()));
    }

    fn address<'a>(&'a self, node: &'a NodeInfo) -> &'a str {
        self.reach.get(&node.id).unwrap_or(&node.peer)
    }
}
