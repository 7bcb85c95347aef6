//! Everything this node asks of others: objects of peers and origins, digests, rankings, sites.
//!
//! [`Upstream`] is the one handle; in reading order, the modules behind it:
//! [`origin`] where objects come from, [`standing`] which origin is asked, [`checks`] whether it is well,
//! [`lane`] the shortest way there; [`gate`] how many at once;
//! [`peer`] one question to one peer; [`select`] which peer to ask, [`hedge`] when to ask a second as well;
//! [`many`] an object from many of them, [`schedule`] which pieces of whom; [`home`] who fetches for
//! others, [`homes`] how several of them are asked, and [`relayed`] what one says then; [`digest`] what peers
//! hold; [`health`] how they have behaved; [`changed`] who hears of changes; [`paying`] whether they are faster
//! than the origin; [`ranking`] how far they are, [`probe`] how that is found out; [`nearness`] how far origins
//! are; [`control`] what the control plane says, [`purging`] what was purged, [`asking_purge`] what
//! is to be; [`pool`] the
//! connections under all of them, and [`plain`] those that need no HTTP client.
//!
//! **Invariant:** nothing here knows of the cache; it takes and gives HTTP messages, keys and
//! manifests. Nothing here waits for anybody without a deadline.

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
pub mod ranking;
pub mod relayed;
pub mod schedule;
#[cfg(test)]
mod scripted;
pub mod select;
pub mod standing;
pub mod wants;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    ops::Range,
    path::PathBuf,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use cluster::{
    auth::Signer,
    clock::Clock,
    coordinates::Coordinate,
    digest::Digest,
    key::Key,
    manifest::{Manifest, PIECE_BYTES},
    net::Net,
    node::{Load, NodeId, NodeInfo, Phase, ROUND_TRIPS_MAX, Role},
    secret::ClusterSecret,
    site::{Site, SiteSet},
    view::ClusterView,
    wire::PeersAnswer,
};
use http::{HeaderMap, Request, Response};
use serde::Serialize;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tracing::{info, warn};

use self::{
    control::ControlPlanes,
    digest::{DigestPuller, Digests},
    gate::{Place, Refused, Traffic},
    health::{Health, Severity, Standing},
    hedge::Budget,
    home::Level,
    lane::{Begun, Lane},
    many::{Gathering, Spare},
    nearness::Nearnesses,
    origin::{OriginBody, OriginError, Origins},
    paying::{Comparison, Decision, Order, Paying, Sample},
    peer::{Asker, PeerError, PeerObject, PieceStream, Run},
    pool::{Body, Pool},
    probe::Position,
    ranking::Placed,
    schedule::FIRST_PIECES,
    select::{Candidate, Claim},
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
}

/// Weight of the newest object in their average length.
const USUAL_BYTES_ALPHA: f64 = 0.05;

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

    /// Who to ask for `key`, best first, by their digests: a local look, nobody is asked.
    pub fn holders(&self, key: Key) -> Vec<Candidate> {
        let inner = &*self.0;
        let digests = inner.digests.load();
        let claims = |id: &NodeId| digests.get(id).is_some_and(|digest| digest.contains(key));
        if inner.asker.is_none() || !digests.keys().any(claims) {
            return Vec::new();
        }
        let now = Instant::now();
        let placed = inner.placed_among(&digests, key);
        let claims: Vec<Claim<'_>> = placed
            .iter()
            .map(|placed| {
                let health = inner.health.of(&placed.node.id);
                Claim {
                    placed,
                    addr: inner.address(&placed.node),
                    standing: health.standing(now),
                    errors: health.errors(now),
                    bytes_per_s: health.bytes_per_s(),
                }
            })
            .collect();
        select::choose(&claims, inner.usual_bytes(), &mut rand::rng())
    }

    /// Asks the first of `candidates` for `key`, and when its answer is late the second as well: who
    /// answers first counts. `fields` are the client's; of these, the ones that tell of it stay here. The
    /// object comes with the pieces of `wanted`, some [`FIRST_PIECES`]; [`Upstream::gather`] gets the others.
    ///
    /// # Panics
    ///
    /// `candidates` is empty.
    pub async fn ask_first(
        &self,
        candidates: &[Candidate],
        key: Key,
        fields: &HeaderMap,
        wanted: Range<u32>,
    ) -> Answered {
        let answered = |by, asked, answer| Answered { answer, by, asked };
        let (first, second) = (&candidates[0], candidates.get(1));
        let asked = Instant::now();
        let mut answer = pin!(self.ask(first, key, fields, &wanted));
        let Some((second, delay)) = second.zip(self.hedge_after(first)) else {
            return answered(0, 1, answer.await);
        };
        tokio::select! {
            biased;
            answer = &mut answer => return answered(0, 1, answer),
            () = sleep(delay) => {}
        }
        if !self.may_hedge() {
            self.0.events.hedged("denied");
            return answered(0, 1, answer.await);
        }
        let mut hedge = pin!(self.ask(second, key, fields, &wanted));
        let result = tokio::select! {
            biased;
            first = &mut answer => match first {
                Ok(object) => answered(0, 2, Ok(object)),
                Err(_) => answered(1, 2, hedge.await),
            },
            second = &mut hedge => match second {
                Ok(object) => {
                    // Its own lateness is all that the first is blamed for.
                    let ms = asked.elapsed().as_secs_f64() * 1e3;
                    self.0.health.answered(&first.id, ms);
                    answered(1, 2, Ok(object))
                }
                Err(_) => answered(0, 2, answer.await),
            },
        };
        self.0.events.hedged(match (&result.answer, result.by) {
            (Ok(_), 0) => "lost",
            (Ok(_), _) => "won",
            (Err(_), _) => "failed",
        });
        result
    }

    fn hedge_after(&self, first: &Candidate) -> Option<Duration> {
        let hedges = self.0.hedges.as_ref()?;
        hedges.lock().unwrap_or_else(PoisonError::into_inner).earn();
        self.0.health.late_after(&first.id)
    }

    fn may_hedge(&self) -> bool {
        let hedges = self.0.hedges.as_ref();
        hedges.is_some_and(|budget| {
            budget
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .spend()
        })
    }

    async fn ask(
        &self,
        candidate: &Candidate,
        key: Key,
        fields: &HeaderMap,
        wanted: &Range<u32>,
    ) -> Result<PeerObject, PeerError> {
        let (asker, question) = self.admitted(candidate)?;
        let held = asker
            .hold(&candidate.id, &candidate.addr, key, fields, wanted.clone())
            .await;
        let ((mut object, round_trip), question) = question.begun(held)?;
        let ms = round_trip.as_secs_f64() * 1e3;
        self.0.health.answered(&candidate.id, ms);
        self.0.is_usual(object.manifest.length);
        question.watch(&mut object.pieces);
        Ok(object)
    }

    /// Asks one holder for just these pieces of `key`. A peer that fails, now or within them, is ejected.
    async fn ask_pieces(
        &self,
        candidate: &Candidate,
        key: Key,
        fields: &HeaderMap,
        run: Run,
    ) -> Result<PieceStream, PeerError> {
        let (asker, question) = self.admitted(candidate)?;
        let sent = asker
            .pieces(&candidate.id, &candidate.addr, key, fields, run)
            .await;
        let (mut pieces, question) = question.begun(sent)?;
        question.watch(&mut pieces);
        Ok(pieces)
    }

    /// These `pieces` of `manifest`, in order, from all of `holders`; the first of these is sending
    /// `under_way` already, from the first of them on.
    pub fn gather(
        &self,
        key: Key,
        fields: &HeaderMap,
        manifest: Arc<Manifest>,
        pieces: Range<u32>,
        under_way: Option<PieceStream>,
        holders: Vec<Candidate>,
    ) -> Gathering {
        Gathering::new(
            self.clone(),
            key,
            fields,
            manifest,
            pieces,
            under_way,
            holders,
        )
    }

    /// A question that may go out.
    fn admitted(&self, candidate: &Candidate) -> Result<(&Asker, Question), PeerError> {
        let peer = &candidate.id;
        let asker = self.0.asker.as_ref().ok_or(PeerError::Denied)?;
        Ok((asker, self.0.question(peer)?))
    }

    /// Every other live edge, best first, and what this node thinks of it.
    pub fn peers_report(&self) -> Vec<PeerReport> {
        let inner = &*self.0;
        let now = Instant::now();
        let digests = inner.digests.load();
        let report = |(index, placed): (usize, Placed)| {
            let health = inner.health.of(&placed.node.id);
            let (standing, errors) = (health.standing(now), health.errors(now));
            let node = &placed.node;
            PeerReport {
                rank: index + 1,
                id: node.id.clone(),
                region: node.region.clone(),
                peer_addr: inner.address(node).to_owned(),
                phase: node.phase,
                distance_km: placed.way.distance_km,
                rtt_ms: placed.way.rtt_ms(),
                load: node.load,
                late_after_ms: inner
                    .health
                    .late_after(&node.id)
                    .map(|late| late.as_secs_f64() * 1e3),
                bytes_per_s: health.bytes_per_s(),
                score: select::score(
                    placed.cost_ms + select::transfer_ms(inner.usual_bytes(), health.bytes_per_s()),
                    node.load,
                    standing,
                    errors,
                ),
                errors,
                ejected: standing == Standing::Ejected,
                standing,
                last_failure: health.last_failure(),
                false_hits: health.false_hits(),
                digest: digests.get(&node.id).and_then(|digest| {
                    let version = digest.version()?;
                    Some(DigestReport {
                        epoch: version.epoch,
                        seq: version.seq,
                        objects: digest.len(),
                        bytes: digest.memory_bytes(),
                    })
                }),
                why: placed.way.explain(),
            }
        };
        inner.placed().into_iter().enumerate().map(report).collect()
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

    fn question(self: &Arc<Self>, peer: &NodeId) -> Result<Question, PeerError> {
        if !self.health.with(peer, |h| h.admit(Instant::now())) {
            self.events.peer_result(peer, PeerError::Ejected.label());
            return Err(PeerError::Ejected);
        }
        Ok(Question {
            inner: self.clone(),
            peer: peer.clone(),
            answered: false,
        })
    }

    fn measured(&self, peer: &NodeId, round_trip: Duration) {
        let ms = round_trip.as_secs_f64() * 1e3;
        self.health.with(peer, |h| h.measured(ms, Instant::now()));
    }

    fn address<'a>(&'a self, node: &'a NodeInfo) -> &'a str {
        self.reach.get(&node.id).unwrap_or(&node.peer)
    }

    /// What a first answer usually has.
    fn usual_bytes(&self) -> f64 {
        *self
            .usual_bytes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn is_usual(&self, length: u64) {
        let first = u64::from(FIRST_PIECES) * PIECE_BYTES as u64;
        let length = length.min(first) as f64;
        let mut usual = self
            .usual_bytes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *usual += USUAL_BYTES_ALPHA * (length - *usual);
    }
}

/// What came of asking for an object.
#[derive(Debug)]
pub struct Answered {
    /// It, or why there is none.
    pub answer: Result<PeerObject, PeerError>,
    /// Which of the candidates that is from.
    pub by: usize,
    /// How many of them have been asked.
    pub asked: usize,
}

/// A question that is under way. Dropped without an end, nobody waited for the answer.
struct Question {
    inner: Arc<Inner>,
    peer: NodeId,
    answered: bool,
}

impl Question {
    /// The beginning of its answer, if there is one; else this was the end.
    fn begun<T>(self, answer: Result<T, PeerError>) -> Result<(T, Self), PeerError> {
        match answer {
            Ok(answer) => Ok((answer, self)),
            Err(error) => {
                self.end(Err(&error));
                Err(error)
            }
        }
    }

    /// Ends as `pieces` do.
    fn watch(self, pieces: &mut PieceStream) {
        pieces.report_to(Box::new(move |result| self.end(result)));
    }

    fn end(self, result: Result<(), &PeerError>) {
        self.end_as("hit", result);
    }

    /// The same with another word for success.
    fn end_as(mut self, success: &'static str, result: Result<(), &PeerError>) {
        self.answered = true;
        let (peer, now) = (&self.peer, Instant::now());
        self.inner
            .events
            .peer_result(peer, result.map_or_else(PeerError::label, |()| success));
        if result == Err(&PeerError::Miss) {
            self.inner.events.digest_false_hit(peer);
        }
        let (before, after) = self.inner.health.with(peer, |health| {
            let before = health.standing(now);
            match result {
                Ok(())
                | Err(
                    PeerError::Stale
                    | PeerError::Other
                    | PeerError::TakenDown
                    | PeerError::NotYet
                    | PeerError::Elsewhere(_),
                ) => health.succeeded(now),
                Err(PeerError::Miss) => health.missed(now),
                Err(PeerError::Busy) => health.refused(now),
                Err(error @ PeerError::Corrupt { .. }) => {
                    health.failed(Severity::Lied, error.label(), now);
                }
                Err(error) => health.failed(Severity::Failed, error.label(), now),
            }
            (before, health.standing(now))
        });
        match (result, before, after) {
            (Err(error), Standing::Good | Standing::Busy, Standing::Ejected) => {
                warn!(%peer, %error, "peer ejected");
            }
            (_, Standing::Ejected | Standing::HalfOpen, Standing::Good | Standing::Busy) => {
                info!(%peer, "peer is back");
            }
            _ => {}
        }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        if !self.answered {
            self.inner.events.peer_result(&self.peer, "abandoned");
            self.inner
                .health
                .with(&self.peer, health::PeerHealth::abandoned);
        }
    }
}

/// What this node thinks of one other live edge.
#[derive(Clone, Debug, Serialize)]
pub struct PeerReport {
    /// 1 is the best.
    pub rank: usize,
    /// Its name.
    pub id: NodeId,
    /// Its region label.
    pub region: String,
    /// `host:port` of its peer listener, as reached from here.
    pub peer_addr: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// Great-circle distance, when both places are known.
    pub distance_km: Option<f64>,
    /// Round trip in milliseconds, once measured.
    pub rtt_ms: Option<f64>,
    /// When its answer counts as late, in milliseconds, once there were enough.
    pub late_after_ms: Option<f64>,
    /// Its rate with large objects, once there were some.
    pub bytes_per_s: Option<f64>,
    /// How busy it says it is.
    pub load: Load,
    /// Expected cost of asking it, in milliseconds.
    pub score: f64,
    /// Average of its failures, 0 to 1.
    pub errors: f64,
    /// Whether it is left alone for now.
    pub ejected: bool,
    /// The same with more shades.
    pub standing: Standing,
    /// What it last failed at.
    pub last_failure: Option<&'static str>,
    /// How often it did not have what its digest claims.
    pub false_hits: u64,
    /// What is known of its holdings.
    pub digest: Option<DigestReport>,
    /// What its place rests on.
    pub why: String,
}

/// What is known of a peer's holdings.
#[derive(Clone, Debug, Serialize)]
pub struct DigestReport {
    /// The peer's start.
    pub epoch: u64,
    /// The last change within it.
    pub seq: u64,
    /// How many objects it claims.
    pub objects: usize,
    /// Memory it takes here.
    pub bytes: usize,
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use cluster::{digest::Holdings, manifest::Manifest, net::SystemNet};
    use http_body_util::Full;
    use hyper::body::Incoming;

    use super::*;
    use crate::upstream::scripted::{Counted, Scripted, eventually, serving};

    const BODY: &[u8] = b"the very bytes";
    const FIRST: Range<u32> = 0..FIRST_PIECES;

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn key() -> Key {
        Key::of(&[b"www", b"/"])
    }

    /// How a peer answers when it is asked for an object.
    #[derive(Clone, Copy)]
    enum Manner {
        Honest,
        Forgetful,
        Lying,
        Busy,
    }

    /// An edge whose digest claims [`key`].
    async fn edge(name: &str, manner: Manner) -> (Scripted, NodeInfo) {
        let mut holdings = Holdings::new(7);
        holdings.add(key());
        let mut node = NodeInfo::new(id(name), Role::Edge);
        node.phase = Phase::Ready;
        node.digest = Some(holdings.version());
        let digest = holdings.answer(None).encode();
        let server = serving(move |request: Request<Incoming>| {
            let digest = digest.clone();
            let asked_for_digest = request.uri().path() == cluster::wire::DIGEST;
            async move {
                if asked_for_digest {
                    Response::new(Full::from(digest))
                } else {
                    held(manner)
                }
            }
        })
        .await;
        node.peer = server.address();
        (server, node)
    }

    fn held(manner: Manner) -> Response<Full<Bytes>> {
        let manifest = Manifest {
            status: 200,
            fields: vec![],
            selected_by: vec![],
            length: BODY.len() as u64,
            pieces: vec![*blake3::hash(BODY).as_bytes()],
            fetched_by: id("edge-9"),
            fetched_at: 1,
            as_of: cluster::purge::Position::default(),
        };
        let mut body = peer::encode_answer_head(&manifest.encode().unwrap()).to_vec();
        match manner {
            Manner::Honest => body.extend_from_slice(BODY),
            Manner::Lying => body.extend_from_slice(b"the evil bytes"),
            Manner::Forgetful => {
                return Response::builder()
                    .status(404)
                    .body(Full::default())
                    .unwrap();
            }
            Manner::Busy => {
                return Response::builder()
                    .status(503)
                    .body(Full::default())
                    .unwrap();
            }
        }
        let mut answer = Response::new(Full::from(body));
        peer::set_age(answer.headers_mut(), Duration::ZERO);
        answer
    }

    struct Bench {
        upstream: Upstream,
        events: Arc<Counted>,
        view: watch::Sender<Arc<ClusterView>>,
        tasks: Vec<(&'static str, JoinHandle<()>)>,
        _dir: tempfile::TempDir,
    }

    impl Bench {
        async fn new(nodes: impl IntoIterator<Item = NodeInfo>) -> Self {
            let nodes: Vec<NodeInfo> = nodes.into_iter().collect();
            let peers = nodes.len();
            let view = watch::Sender::new(Arc::new(ClusterView::new(nodes)));
            let events = Arc::<Counted>::default();
            let dir = tempfile::tempdir().unwrap();
            let secret = b"0123456789abcdef0123456789abcdef";
            let upstream = Upstream::new(UpstreamConfig {
                me: id("me"),
                secret: Some(ClusterSecret::from_bytes(secret).unwrap()),
                net: Arc::new(SystemNet),
                clock: Clock::system(),
                view: view.subscribe(),
                control_planes: vec![],
                sites_version: 0,
                data_dir: dir.path().to_owned(),
                reach: HashMap::new(),
                hedge: true,
                events: events.clone(),
            });
            let tasks = upstream.spawn();
            let digests = || {
                upstream
                    .peers_report()
                    .iter()
                    .filter(|p| p.digest.is_some())
                    .count()
            };
            eventually(|| digests() == peers).await;
            Self {
                upstream,
                events,
                view,
                tasks,
                _dir: dir,
            }
        }

        fn holders(&self) -> Vec<String> {
            self.upstream
                .holders(key())
                .into_iter()
                .map(|c| c.id.to_string())
                .collect()
        }

        /// Asks the best holder; all bytes, or the first error.
        async fn ask(&self) -> Result<Vec<u8>, PeerError> {
            let candidate = self.upstream.holders(key()).remove(0);
            let asked = self
                .upstream
                .ask(&candidate, key(), &HeaderMap::new(), &FIRST)
                .await;
            let mut pieces = asked?.pieces;
            let mut bytes = Vec::new();
            while let Some(piece) = pieces.next().await {
                bytes.extend_from_slice(&piece?);
            }
            Ok(bytes)
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            self.tasks.iter().for_each(|(_, task)| task.abort());
        }
    }

    #[tokio::test]
    async fn a_holder_is_found_asked_and_reported() {
        let (_server, mut node) = edge("edge-1", Manner::Honest).await;
        node.region = "eu".into();
        let bench = Bench::new([node.clone()]).await;
        assert!(
            bench
                .upstream
                .holders(Key::of(&[b"something else"]))
                .is_empty()
        );
        assert_eq!(bench.holders(), ["edge-1"]);
        assert_eq!(bench.ask().await.unwrap(), BODY);
        assert_eq!(bench.events.of("edge-1 hit"), 1);
        assert_eq!(
            bench.upstream.round_trips().keys().collect::<Vec<_>>(),
            [&node.id]
        );

        let report = serde_json::to_value(bench.upstream.peers_report()).unwrap();
        let report = &report[0];
        assert_eq!(report["id"], "edge-1");
        assert_eq!(report["region"], "eu");
        assert_eq!(report["rank"], 1);
        assert_eq!(report["ejected"], false);
        assert_eq!(report["digest"]["objects"], 1);
        assert_eq!(report["peer_addr"], node.peer);
        assert!(
            report["rtt_ms"].is_number() && report["score"].is_number(),
            "{report}"
        );
        let candidate = serde_json::to_value(&bench.upstream.holders(key())[0]).unwrap();
        assert!(
            candidate["why"].as_str().unwrap().ends_with("ms measured"),
            "{candidate}"
        );

        // It drains: nobody is sent there any more.
        node.phase = Phase::Draining;
        bench.view.send_replace(Arc::new(ClusterView::new([node])));
        assert!(bench.holders().is_empty());
    }

    #[tokio::test]
    async fn a_peer_that_died_is_ejected_at_once() {
        let (server, node) = edge("edge-1", Manner::Honest).await;
        let bench = Bench::new([node]).await;
        drop(server);
        let error = bench.ask().await.unwrap_err();
        assert!(
            matches!(error, PeerError::Connect(_) | PeerError::ClosedEarly),
            "{error}"
        );
        assert!(bench.holders().is_empty());
        let report = &bench.upstream.peers_report()[0];
        assert!(report.ejected && report.errors > 0.0 && report.last_failure.is_some());
        // After its time one question may try again, and no second one beside it.
        eventually(|| !bench.holders().is_empty()).await;
        let candidate = bench.upstream.holders(key()).remove(0);
        let fields = HeaderMap::new();
        let (one, two) = tokio::join!(
            bench.upstream.ask(&candidate, key(), &fields, &FIRST),
            bench.upstream.ask(&candidate, key(), &fields, &FIRST),
        );
        assert!(matches!(one, Err(PeerError::Connect(_))));
        assert_eq!(two.unwrap_err(), PeerError::Ejected);
    }

    #[tokio::test]
    async fn a_peer_that_sends_wrong_bytes_is_ejected_for_long() {
        let (_server, node) = edge("edge-1", Manner::Lying).await;
        let bench = Bench::new([node]).await;
        assert_eq!(
            bench.ask().await.unwrap_err(),
            PeerError::Corrupt { piece: 0 }
        );
        assert_eq!(bench.events.of("edge-1 corrupt"), 1);
        let health = bench.upstream.0.health.of(&id("edge-1"));
        let later = Instant::now() + health::EJECTED_MAX / 2;
        assert_eq!(health.standing(later), Standing::Ejected);
    }

    #[tokio::test]
    async fn a_false_claim_or_a_refusal_ejects_nobody() {
        let (_a, forgetful) = edge("edge-1", Manner::Forgetful).await;
        let bench = Bench::new([forgetful]).await;
        assert_eq!(bench.ask().await.unwrap_err(), PeerError::Miss);
        assert_eq!(bench.events.of("edge-1 false hit"), 1);
        assert_eq!(bench.holders(), ["edge-1"]);

        let (_b, busy) = edge("edge-2", Manner::Busy).await;
        let bench = Bench::new([busy]).await;
        assert_eq!(bench.ask().await.unwrap_err(), PeerError::Busy);
        assert_eq!(bench.upstream.peers_report()[0].standing, Standing::Busy);
        assert_eq!(bench.holders(), ["edge-2"]);
    }

    #[tokio::test]
    async fn an_answer_nobody_waits_for_is_no_verdict() {
        let (_server, node) = edge("edge-1", Manner::Honest).await;
        let bench = Bench::new([node]).await;
        let candidate = bench.upstream.holders(key()).remove(0);
        drop(
            bench
                .upstream
                .ask(&candidate, key(), &HeaderMap::new(), &FIRST)
                .await
                .unwrap(),
        );
        assert_eq!(bench.events.of("edge-1 abandoned"), 1);
        assert_eq!(bench.ask().await.unwrap(), BODY);
    }

    #[tokio::test]
    async fn a_standalone_edge_has_no_peers_and_no_background() {
        let events = Arc::<Counted>::default();
        let (_, view) = watch::channel(Arc::default());
        let upstream = Upstream::new(UpstreamConfig {
            me: id("me"),
            secret: None,
            net: Arc::new(SystemNet),
            clock: Clock::system(),
            view,
            control_planes: vec![],
            sites_version: 0,
            data_dir: PathBuf::new(),
            reach: HashMap::new(),
            hedge: true,
            events,
        });
        assert!(upstream.spawn().is_empty());
        assert!(upstream.holders(key()).is_empty() && upstream.peers_report().is_empty());
    }
}
