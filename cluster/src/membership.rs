//! Who is in the cluster: chitchat underneath, a `watch` of views above. The only file that names
//! chitchat, with the ones below it.
//!
//! chitchat is given a socket of ours, so that everything it says is sealed (see `socket`), and no
//! names, because it would resolve them past [`Net`]; seeds are resolved and greeted here.
//!
//! Gossip's notice of death is background truth, two to three seconds late on purpose (see
//! `detector`): whoever fetches from a peer judges that peer by its own experience first.

mod socket;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chitchat::{
    ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, NodeState, spawn_chitchat,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{error, info, warn};

use self::socket::{OpenSocket, SealedSocket};
use crate::{
    clock::Clock,
    net::Net,
    node::{NodeId, NodeInfo, Phase, UnreadableNode, VALUE_BYTES_MAX},
    secret::ClusterSecret,
    view::ClusterView,
};

/// Shortest gossip interval; below, a node would do little else.
pub const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// Most seeds; one that answers is enough.
pub const SEEDS_MAX: usize = 64;
/// How long a node that fell silent is remembered, here and by chitchat. Longer, and dead nodes
/// would swell every gossip message.
pub const DEPARTED_TIME: Duration = Duration::from_secs(600);
/// Most nodes remembered after they fell silent; the longest gone gives way.
pub const DEPARTED_MAX: usize = 256;

/// Most nodes that gossip carries: a message names all of them, by 41 bytes and the name, and chitchat has
/// no message longer than 65,507 bytes. With names of 20 letters that is this many, with names of the
/// longest kind 620; beyond, messages are not sent (`send_failures`).
///
/// Each round, a node exchanges such messages with three others, and is asked by three on average: that
/// is about 20 bytes on the wire per node of the cluster and message, six messages out and six in. At
/// 300 ms and 100 nodes, 40 kB/s either way; 1,000 nodes need an interval of 3 s for the same.
pub const NODES_MAX: usize = 1_000;

/// How long chitchat remembers that a key was deleted.
const DELETED_KEY_TIME: Duration = Duration::from_secs(60);
/// Seeds are greeted this often while nobody else is there: they may be starting, too.
const SEEK_ALONE: Duration = Duration::from_secs(1);
/// And this often later, so that parts of a cluster that lost each other meet again.
const SEEK_TOGETHER: Duration = Duration::from_secs(30);
/// How long a name may take to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most addresses of one seed name that are greeted.
const ADDRESSES_PER_SEED_MAX: usize = 16;
/// How long chitchat may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the view is made anew even if nothing seems to have changed.
const REVIEW_INTERVAL: Duration = Duration::from_secs(1);
/// Two nodes of one name are normal for as long as a restarted node's former self is not found dead:
/// at most this many gossip intervals.
const NAMESAKE_INTERVALS: u32 = 80;
/// Most sources and nodes that are logged about, once each. Beyond, only counters tell.
const LOGGED_MAX: usize = 256;

/// What joining takes.
#[derive(Debug)]
pub struct MembershipConfig {
    /// Name of the cluster; nodes of another name are not heard.
    pub cluster_name: String,
    /// This node, as it describes itself at first.
    pub me: NodeInfo,
    /// Boot time in Unix milliseconds: tells this life of the node from its former ones.
    pub generation: u64,
    /// Where to listen for gossip; port 0 takes any.
    pub listen: SocketAddr,
    /// `host:port` that others reach [`listen`](Self::listen) at; empty: as listened.
    pub advertise: String,
    /// `host:port` of nodes to greet. Names need not resolve yet; this node may be among them.
    pub seeds: Vec<String>,
    /// The cluster's secret.
    pub secret: ClusterSecret,
    /// Time between two gossip rounds.
    pub interval: Duration,
}

/// This node's membership in the cluster. Dropping it falls silent without a word, as a crash does;
/// [`leave`](Self::leave) says goodbye.
#[derive(Debug)]
pub struct Membership {
    me: watch::Sender<NodeInfo>,
    view: watch::Receiver<Arc<ClusterView>>,
    departed: Departed,
    stats: Arc<GossipStats>,
    gossip: Gossip,
    address: SocketAddr,
    interval: Duration,
    /// Aborted when dropped.
    _tasks: JoinSet<()>,
}

impl Membership {
    /// Starts to gossip. The view holds this node at once, and others as they are heard.
    ///
    /// # Errors
    ///
    /// What in the configuration or on this machine stands in the way. Seeds do not: they may come
    /// later.
    pub async fn join(
        config: MembershipConfig,
        net: Arc<dyn Net>,
        clock: Clock,
    ) -> Result<Self, MembershipError> {
        if config.interval < INTERVAL_MIN {
            return Err(MembershipError::Interval(config.interval));
        }
        if config.seeds.len() > SEEDS_MAX {
            return Err(MembershipError::TooManySeeds(config.seeds.len()));
        }
        for (key, value) in config.me.to_keys() {
            if value.len() > VALUE_BYTES_MAX {
                return Err(MembershipError::ValueTooLong { key });
            }
        }
        let bind = |source| MembershipError::Bind {
            at: config.listen,
            source,
        };
        let datagrams = net.datagrams(config.listen).await.map_err(bind)?;
        let address = advertised(&config.advertise, datagrams.local_addr(), &*net).await?;

        let mut me = config.me;
        me.gossip = address.to_string();
        let stats = Arc::new(GossipStats::default());
        let id = ChitchatId::new(me.id.as_str(), config.generation, address);
        let socket = SealedSocket::new(
            datagrams,
            &config.secret,
            &config.cluster_name,
            clock,
            Arc::clone(&stats),
        );
        let published: BTreeMap<_, _> = me.to_keys().into_iter().collect();
        let handle = spawn_chitchat(
            ChitchatConfig {
                chitchat_id: id.clone(),
                cluster_id: config.cluster_name,
                gossip_interval: config.interval,
                listen_addr: config.listen,
                seed_nodes: Vec::new(),
                failure_detector_config: detector(config.interval),
                marked_for_deletion_grace_period: DELETED_KEY_TIME,
                catchup_callback: None,
                extra_liveness_predicate: Some(Box::new(describes_itself)),
            },
            published
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone()))
                .collect(),
            &OpenSocket::new(socket),
        )
        .await
        .map_err(|e| MembershipError::Gossip(e.to_string()))?;
        info!(node = %me.id, %address, "joined gossip");

        let gossip = Gossip(Arc::new(handle));
        let live = gossip.0.with_chitchat(|c| c.live_nodes_watcher()).await;
        let (view_sender, view) = watch::channel(Arc::new(ClusterView::new([me.clone()])));
        let (me, me_receiver) = watch::channel(me);
        let departed = Departed::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(
            Reviewer {
                id,
                gossip: gossip.clone(),
                me: me_receiver,
                live,
                published,
                view: view_sender,
                departed: departed.clone(),
                stats: Arc::clone(&stats),
                namesake_time: config.interval * NAMESAKE_INTERVALS,
                namesakes: HashMap::new(),
                outgrown: false,
                logged: HashSet::new(),
            }
            .run(),
        );
        tasks.spawn(seek(config.seeds, net, gossip.clone(), view.clone()));
        let stopped = gossip.0.termination_watcher();
        tasks.spawn(async move {
            if let Err(reason) = stopped.await {
                error!(%reason, "gossip has stopped; the view of the cluster is frozen");
            }
        });
        Ok(Self {
            me,
            view,
            departed,
            stats,
            gossip,
            address,
            interval: config.interval,
            _tasks: tasks,
        })
    }

    /// Everybody alive, always the newest; this node is in it from the beginning.
    pub fn view(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.view.clone()
    }

    /// Changes what this node says of itself; only what became different is told. A value longer
    /// than [`VALUE_BYTES_MAX`] is not told, and the name and the gossip address cannot change.
    pub fn update(&self, change: impl FnOnce(&mut NodeInfo)) {
        self.me.send_if_modified(|me| {
            let mut changed = me.clone();
            change(&mut changed);
            changed.id.clone_from(&me.id);
            changed.gossip.clone_from(&me.gossip);
            let differs = changed != *me;
            *me = changed;
            differs
        });
    }

    /// Nodes that fell silent within [`DEPARTED_TIME`], as they last described themselves.
    pub fn departed(&self) -> Vec<NodeInfo> {
        self.departed.list()
    }

    /// What gossip has done so far.
    pub fn stats(&self) -> Arc<GossipStats> {
        Arc::clone(&self.stats)
    }

    /// Where others reach this node's gossip.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells the others that this node is going, gives them two rounds to hear it, and falls silent.
    pub async fn leave(self) {
        self.update(|me| me.phase = Phase::Draining);
        sleep(2 * self.interval).await;
        let stopped = self.gossip.0.termination_watcher();
        if self.gossip.0.initiate_shutdown().is_ok() {
            // Whether it stopped well, badly or too late: dropping it stops it for certain.
            let _ = timeout(STOP_TIMEOUT, stopped).await;
        }
        info!("left gossip");
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.gossip.0.abort();
    }
}

/// Why a node cannot take part in gossip. All are the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The interval is too short.
    #[error("a gossip interval of {0:?} is shorter than {INTERVAL_MIN:?}")]
    Interval(Duration),
    /// More than [`SEEDS_MAX`].
    #[error("{0} gossip seeds are more than {SEEDS_MAX}")]
    TooManySeeds(usize),
    /// What the node says of itself does not fit.
    #[error("this node's {key:?} is longer than {VALUE_BYTES_MAX} bytes")]
    ValueTooLong {
        /// Which part of the description.
        key: &'static str,
    },
    /// The gossip address is taken, not ours, or not permitted.
    #[error("cannot listen for gossip at {at}: {source}")]
    Bind {
        /// Where.
        at: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// The advertised name has no address.
    #[error("the advertised gossip address {name:?} does not resolve: {reason}")]
    Advertise {
        /// As configured.
        name: String,
        /// The resolver's reason.
        reason: String,
    },
    /// Listening on every address and none of them is evidently the one for others.
    #[error(
        "cannot tell which of this machine's addresses other nodes reach for gossip ({0}): advertise one"
    )]
    NoOutwardAddress(io::Error),
    /// chitchat does not start.
    #[error("gossip does not start: {0}")]
    Gossip(String),
}

/// What gossip has done; every field but one only grows.
#[derive(Debug, Default)]
pub struct GossipStats {
    /// Datagrams sent.
    pub datagrams_sent: AtomicU64,
    /// Bytes in them.
    pub bytes_sent: AtomicU64,
    /// Datagrams that the system would not send, and messages too long to be sent.
    pub send_failures: AtomicU64,
    /// Datagrams received, whatever they were.
    pub datagrams_received: AtomicU64,
    /// Bytes in them.
    pub bytes_received: AtomicU64,
    /// Datagrams received that counted for nothing: not sealed by this cluster, old, repeated, or
    /// too many from one source.
    pub datagrams_rejected: AtomicU64,
    /// Messages given up because parts of them never came.
    pub messages_expired: AtomicU64,
    /// Nodes left out of the view now because their description is unreadable.
    pub unreadable_nodes: AtomicU64,
}

/// When a silent node counts as dead: about ten to twelve intervals after its last sign of life,
/// whatever its age.
///
/// chitchat divides the silence by the mean of the last intervals between signs of life, smoothed
/// by five imagined ones. Signs reach a node by many ways, so the measured mean is far below the
/// gossip interval; with a large window an old node would be declared dead for a stall of a few
/// hundred milliseconds, and with a large imagined interval a young one only after half a minute.
/// With a window as small as the imagination is strong, neither happens: at 200 ms, between 1.6 s
/// (old) and 4 s (killed in its first second). Longer intervals than `max_interval` are not learnt
/// from, which bounds the wait at 77 intervals even on the worst of links.
fn detector(gossip_interval: Duration) -> FailureDetectorConfig {
    FailureDetectorConfig {
        phi_threshold: 8.0,
        sampling_window_size: 5,
        max_interval: gossip_interval * 10,
        initial_interval: gossip_interval * 2,
        dead_node_grace_period: DEPARTED_TIME,
    }
}

/// chitchat sends keys one after the other; a node is there once the necessary ones are.
fn describes_itself(state: &NodeState) -> bool {
    ["role", "phase", "peer"]
        .iter()
        .all(|key| state.get(key).is_some())
}

/// The address that others should send gossip to.
async fn advertised(
    advertise: &str,
    local: SocketAddr,
    net: &dyn Net,
) -> Result<SocketAddr, MembershipError> {
    let mut address = local;
    if !advertise.is_empty() {
        let fail = |reason| MembershipError::Advertise {
            name: advertise.to_owned(),
            reason,
        };
        let found = timeout(RESOLVE_TIMEOUT, net.resolve(advertise))
            .await
            .map_err(|_| fail(format!("no answer within {RESOLVE_TIMEOUT:?}")))?
            .map_err(|e| fail(e.to_string()))?;
        address = *found
            .iter()
            .find(|one| one.is_ipv4() == local.is_ipv4())
            .or_else(|| found.first())
            .ok_or_else(|| fail("it has no address".to_owned()))?;
    }
    if address.port() == 0 {
        address.set_port(local.port());
    }
    if address.ip().is_unspecified() {
        let outward = outward_address(address.ip()).map_err(MembershipError::NoOutwardAddress)?;
        address.set_ip(outward);
    }
    Ok(address)
}

/// The address from which this machine would speak to the world. Nothing is sent: connecting a
/// datagram socket only asks the routing table. (The targets are reserved for documentation.)
///
/// # Errors
///
/// The system's error: no route, most likely.
pub fn outward_address(like: IpAddr) -> io::Result<IpAddr> {
    let target = match like {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::new(192, 0, 2, 1)),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    };
    let socket = std::net::UdpSocket::bind((like, 0))?;
    socket.connect((target, 9))?;
    Ok(socket.local_addr()?.ip())
}

/// chitchat's handle, shared by the tasks.
#[derive(Clone)]
struct Gossip(Arc<ChitchatHandle>);

impl std::fmt::Debug for Gossip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gossip")
    }
}

/// Greets the seeds, again and again: names may not resolve yet, nodes may not be up yet, and parts
/// of a cluster may have lost each other.
async fn seek(
    seeds: Vec<String>,
    net: Arc<dyn Net>,
    gossip: Gossip,
    view: watch::Receiver<Arc<ClusterView>>,
) {
    let mut unresolved = HashSet::new();
    let mut waited = SEEK_TOGETHER;
    while !seeds.is_empty() {
        let alone = view.borrow().len() <= 1;
        if alone || waited >= SEEK_TOGETHER {
            waited = Duration::ZERO;
            let mut answers = JoinSet::new();
            for seed in &seeds {
                let (seed, net) = (seed.clone(), Arc::clone(&net));
                answers.spawn(async move {
                    let found = timeout(RESOLVE_TIMEOUT, net.resolve(&seed)).await;
                    (
                        seed,
                        found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
                    )
                });
            }
            while let Some(Ok((seed, found))) = answers.join_next().await {
                match found {
                    Ok(addresses) => {
                        unresolved.remove(&seed);
                        for address in addresses.into_iter().take(ADDRESSES_PER_SEED_MAX) {
                            // Fails only when gossip has stopped, which is logged elsewhere.
                            let _ = gossip.0.gossip(address);
                        }
                    }
                    Err(reason) => {
                        if unresolved.insert(seed.clone()) {
                            warn!(%seed, %reason, "seed does not resolve; will go on trying");
                        }
                    }
                }
            }
        }
        sleep(SEEK_ALONE).await;
        waited += SEEK_ALONE;
    }
}

/// Turns what chitchat knows into views, and what this node says of itself into keys.
struct Reviewer {
    id: ChitchatId,
    gossip: Gossip,
    me: watch::Receiver<NodeInfo>,
    live: watch::Receiver<BTreeMap<ChitchatId, NodeState>>,
    published: BTreeMap<&'static str, String>,
    view: watch::Sender<Arc<ClusterView>>,
    departed: Departed,
    stats: Arc<GossipStats>,
    namesake_time: Duration,
    /// Names that two live nodes bear: since when, and whether that was logged.
    namesakes: HashMap<NodeId, (Instant, bool)>,
    /// There are more nodes than gossip carries, and that was logged.
    outgrown: bool,
    /// Unreadable nodes and reasons that were logged.
    logged: HashSet<(String, String)>,
}

/// Whether so many nodes are more than gossip carries, and whether that is news to who knew what was `before`.
/// It is told once, and again after there were clearly fewer.
fn outgrown(nodes: usize, before: bool) -> (bool, bool) {
    let outgrown = nodes > NODES_MAX || before && nodes > NODES_MAX / 10 * 9;
    (outgrown, outgrown && !before)
}

impl Reviewer {
    /// Ends when the [`Membership`] or chitchat is dropped.
    async fn run(mut self) {
        let mut review = interval(REVIEW_INTERVAL);
        review.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = self.live.changed() => if changed.is_err() { return },
                changed = self.me.changed() => match changed {
                    Ok(()) => self.publish().await,
                    Err(_) => return,
                },
                _ = review.tick() => {}
            }
            self.review();
        }
    }

    /// Tells chitchat what changed in this node's description.
    async fn publish(&mut self) {
        let mut keys: BTreeMap<_, _> = self.me.borrow_and_update().to_keys().into_iter().collect();
        keys.retain(|key, value| {
            let fits = value.len() <= VALUE_BYTES_MAX;
            if !fits {
                warn!(
                    key,
                    bytes = value.len(),
                    "too long to be told to other nodes"
                );
            }
            fits
        });
        let chitchat = self.gossip.0.chitchat();
        let mut chitchat = chitchat.lock().await;
        let state = chitchat.self_node_state();
        for (key, value) in &keys {
            if self.published.get(key) != Some(value) {
                state.set(key, value);
            }
        }
        for key in self.published.keys().filter(|key| !keys.contains_key(*key)) {
            state.delete(key);
        }
        self.published = keys;
    }

    /// Makes a new view.
    fn review(&mut self) {
        let me = self.me.borrow().clone();
        let found = {
            let live = self.live.borrow_and_update();
            found(live.iter().filter(|(id, _)| **id != self.id), &me.id)
        };
        self.stats
            .unreadable_nodes
            .store(found.unreadable.len() as u64, Ordering::Relaxed);
        for (node, reason) in found.unreadable {
            if self.logged.len() < LOGGED_MAX && self.logged.insert((node.clone(), reason.clone()))
            {
                warn!(node, reason, "node left out of the view");
            }
        }
        self.complain_of(&found.namesakes);

        let mut members = found.others;
        members.insert(me.id.clone(), me);
        let before = Arc::clone(&self.view.borrow());
        let same = before.len() == members.len()
            && before
                .nodes()
                .all(|node| members.get(&node.id) == Some(&**node));
        if same {
            return;
        }
        for node in members
            .values()
            .filter(|node| before.node(&node.id).is_none())
        {
            info!(node = %node.id, gossip = %node.gossip, "node is alive");
        }
        for node in before
            .nodes()
            .filter(|node| !members.contains_key(&node.id))
        {
            info!(node = %node.id, gossip = %node.gossip, phase = ?node.phase, "node fell silent");
        }
        self.complain_of_size(members.len());
        self.departed.note(&before, &members);
        self.view
            .send_replace(Arc::new(ClusterView::new(members.into_values())));
    }

    /// Logs, once each time that it grows so large, that the cluster has more nodes than gossip carries.
    fn complain_of_size(&mut self, nodes: usize) {
        let (outgrown, is_news) = outgrown(nodes, self.outgrown);
        if is_news {
            warn!(
                nodes,
                most = NODES_MAX,
                "more nodes than gossip carries: it gets slower, and then stops being sent"
            );
        }
        self.outgrown = outgrown;
    }

    /// Logs, once, names that two nodes have borne for longer than a restart explains.
    fn complain_of(&mut self, current: &HashSet<NodeId>) {
        self.namesakes.retain(|name, _| current.contains(name));
        for name in current {
            let (since, logged) = self
                .namesakes
                .entry(name.clone())
                .or_insert_with(|| (Instant::now(), false));
            if !*logged && since.elapsed() > self.namesake_time {
                *logged = true;
                error!(node = %name, "two live nodes have the same id; the one started later is seen");
            }
        }
    }
}

/// What chitchat's live nodes, other than this one, amount to.
struct Found {
    others: BTreeMap<NodeId, NodeInfo>,
    /// Nodes, and why they cannot be read.
    unreadable: Vec<(String, String)>,
    /// Names that more than one node bears.
    namesakes: HashSet<NodeId>,
}

fn found<'a>(live: impl Iterator<Item = (&'a ChitchatId, &'a NodeState)>, me: &NodeId) -> Found {
    let mut found = Found {
        others: BTreeMap::new(),
        unreadable: Vec::new(),
        namesakes: HashSet::new(),
    };
    let mut seen = HashSet::from([me.clone()]);
    // In order of name and generation: the newest incarnation of a node comes last, and stays.
    for (id, state) in live {
        let name: NodeId = match id.node_id.parse() {
            Ok(name) => name,
            Err(reason) => {
                found
                    .unreadable
                    .push((format!("{id:?}"), format!("{reason}")));
                continue;
            }
        };
        if !seen.insert(name.clone()) {
            found.namesakes.insert(name.clone());
        }
        if name == *me {
            continue;
        }
        let address = id.gossip_advertise_addr.to_string();
        match NodeInfo::from_keys(name.clone(), address, |key| state.get(key)) {
            Ok(node) => {
                found.others.insert(name, node);
            }
            Err(reason @ UnreadableNode { .. }) => {
                found.others.remove(&name);
                found.unreadable.push((name.into(), reason.to_string()));
            }
        }
    }
    found
}

/// Nodes that fell silent, and when.
#[derive(Clone, Debug, Default)]
struct Departed(Arc<Mutex<BTreeMap<NodeId, (NodeInfo, Instant)>>>);

impl Departed {
    fn note(&self, before: &ClusterView, now: &BTreeMap<NodeId, NodeInfo>) {
        let mut gone = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for node in before.nodes().filter(|node| !now.contains_key(&node.id)) {
            gone.insert(node.id.clone(), (NodeInfo::clone(node), Instant::now()));
        }
        gone.retain(|id, (_, since)| !now.contains_key(id) && since.elapsed() < DEPARTED_TIME);
        while gone.len() > DEPARTED_MAX {
            let longest = gone.iter().min_by_key(|(_, (_, since))| *since);
            if let Some(id) = longest.map(|(id, _)| id.clone()) {
                gone.remove(&id);
            }
        }
    }

    fn list(&self) -> Vec<NodeInfo> {
        let gone = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gone.values()
            .filter(|(_, since)| since.elapsed() < DEPARTED_TIME)
            .map(|(node, _)| node.clone())
            .collect()
    }
}
