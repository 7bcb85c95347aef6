//! What the peers hold: their digests, pulled whenever gossip says that one has changed. Readers on
//! the request path never wait.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use cluster::{
    digest::{ANSWER_BYTES_MAX, Digest},
    node::{DigestVersion, NodeId, NodeInfo},
    view::ClusterView,
    wire,
};
use http::{HeaderMap, StatusCode};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tracing::{debug, warn};

use super::{
    Events,
    control::retry_after,
    health::{Health, Severity},
    peer::{Asker, CONNECT_TIMEOUT, PeerError},
    pool::Patience,
};

/// Most peers whose digests are kept, the nearest: memory and traffic do not grow with the cluster beyond
/// that. Who is farther is hardly ever a better choice than the home of the key.
pub const SUBSCRIPTIONS_MAX: usize = 64;
/// A peer that was among them stays until this many are nearer: ranks that change places with every
/// measurement must not cost snapshots.
const SUBSCRIPTIONS_KEPT: usize = SUBSCRIPTIONS_MAX + SUBSCRIPTIONS_MAX / 4;
/// How often it is looked who is nearest, in clusters with more.
const NEAREST_INTERVAL: Duration = Duration::from_secs(30);
/// Most pulls at once: a snapshot may take tens of megabytes while it is read.
const PULLS_MAX: usize = 4;
/// Least time between two pulls from a peer, so that one that changes all the time is asked for
/// deltas worth a request. Digests are seconds old at most.
const PULL_INTERVAL_MIN: Duration = Duration::from_millis(500);
/// For the head of the answer; a large snapshot is encoded before it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// For a snapshot of the largest size over ten megabits per second.
const PULL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the digest of a peer that left the view is kept: it may only have been out of sight.
const KEPT_FOR: Duration = Duration::from_secs(30);

/// The digests of all peers. Clones share them.
#[derive(Clone, Default)]
pub struct Digests(Arc<ArcSwap<HashMap<NodeId, Arc<Digest>>>>);

impl Digests {
    /// All of them, as of now.
    pub fn load(&self) -> Arc<HashMap<NodeId, Arc<Digest>>> {
        self.0.load_full()
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<NodeId, Arc<Digest>>)) {
        let mut all = HashMap::clone(&self.0.load());
        change(&mut all);
        self.0.store(Arc::new(all));
    }
}

/// Keeps [`Digests`] current for as long as it runs. There must be one only.
pub struct DigestPuller {
    /// Where they are published.
    pub digests: Digests,
    /// How peers are asked.
    pub asker: Asker,
    /// This node, which pulls nothing from itself.
    pub me: NodeId,
    /// Who is there, and with which version.
    pub view: watch::Receiver<Arc<ClusterView>>,
    /// Every other edge, the nearest first.
    pub nearest: Nearest,
    /// Addresses of peer listeners that are not those in the view.
    pub reach: Arc<HashMap<NodeId, String>>,
    /// Learns of round trips and of peers that cannot be reached.
    pub health: Arc<Health>,
    /// Counts.
    pub events: Arc<dyn Events>,
}

/// Tells every other edge, the nearest first.
pub type Nearest = Arc<dyn Fn() -> Vec<NodeId> + Send + Sync>;

/// Whose digests are wanted; `None`: everybody's, for they are few.
#[derive(Default)]
struct Wanted {
    peers: Option<HashSet<NodeId>>,
    looked: Option<Instant>,
}

impl Wanted {
    /// Looks again if it is time to.
    fn look(&mut self, others: usize, nearest: &Nearest, now: Instant) {
        if others <= SUBSCRIPTIONS_MAX {
            *self = Self::default();
        } else if self.looked.is_none_or(|at| now >= at + NEAREST_INTERVAL) {
            self.looked = Some(now);
            let before = self.peers.take().unwrap_or_default();
            self.peers = Some(subscriptions(&nearest(), &before).into_iter().collect());
        }
    }

    fn has(&self, peer: &NodeId) -> bool {
        self.peers.as_ref().is_none_or(|peers| peers.contains(peer))
    }
}

/// Whose digests to have, the nearest first: those in `before` that are still near, and the nearest
/// beside them, at most [`SUBSCRIPTIONS_MAX`].
pub fn subscriptions<T: Clone + Eq + Hash>(nearest: &[T], before: &HashSet<T>) -> Vec<T> {
    let near = &nearest[..nearest.len().min(SUBSCRIPTIONS_KEPT)];
    let kept = near.iter().filter(|peer| before.contains(peer));
    let fresh = near.iter().filter(|peer| !before.contains(peer));
    let chosen: HashSet<&T> = kept.chain(fresh).take(SUBSCRIPTIONS_MAX).collect();
    near.iter()
        .filter(|peer| chosen.contains(peer))
        .cloned()
        .collect()
}

/// Where this node stands with one peer's digest.
struct Subscription {
    pulling: bool,
    failures: u32,
    not_before: Instant,
    seen: Instant,
}

struct Pulled {
    digest: Arc<Digest>,
    /// What it took for the head, when the answer was small.
    round_trip: Option<Duration>,
    kind: &'static str,
}

impl DigestPuller {
    /// Runs until it is dropped or gossip ends.
    pub async fn run(mut self) {
        let mut subscriptions: HashMap<NodeId, Subscription> = HashMap::new();
        let mut pulls: JoinSet<(NodeId, Result<Pulled, PullError>)> = JoinSet::new();
        let mut wanted = Wanted::default();
        loop {
            let view = self.view.borrow_and_update().clone();
            let others = view.peers_of(&self.me).count();
            wanted.look(others, &self.nearest, Instant::now());
            let wake = self.begin(&view, &wanted, &mut subscriptions, &mut pulls);
            tokio::select! {
                changed = self.view.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                Some(done) = pulls.join_next() => match done {
                    Ok((peer, result)) => self.end(&peer, result, &mut subscriptions),
                    Err(error) => {
                        warn!(%error, "a digest pull ended abnormally");
                        // Which one is not known; those under way will say so themselves.
                        subscriptions.retain(|_, s| !s.pulling);
                    }
                },
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Begins what is due, forgets who is long gone, and says when to look again.
    fn begin(
        &self,
        view: &ClusterView,
        wanted: &Wanted,
        subscriptions: &mut HashMap<NodeId, Subscription>,
        pulls: &mut JoinSet<(NodeId, Result<Pulled, PullError>)>,
    ) -> Instant {
        let now = Instant::now();
        let digests = self.digests.load();
        let mut wake = now + KEPT_FOR;
        for peer in view.peers_of(&self.me) {
            let subscription = subscriptions
                .entry(peer.id.clone())
                .or_insert(Subscription {
                    pulling: false,
                    failures: 0,
                    not_before: now,
                    seen: now,
                });
            subscription.seen = now;
            let mine = digests.get(&peer.id);
            let due = wanted.has(&peer.id)
                && peer
                    .digest
                    .is_some_and(|theirs| is_behind(mine.and_then(|d| d.version()), theirs));
            if !due || subscription.pulling || peer.peer.is_empty() {
                continue;
            }
            if subscription.not_before > now {
                wake = wake.min(subscription.not_before);
            } else if pulls.len() < PULLS_MAX {
                subscription.pulling = true;
                pulls.spawn(self.pull(peer, mine.cloned()));
            }
        }
        subscriptions.retain(|_, s| s.pulling || now < s.seen + KEPT_FOR);
        let keep = |id: &NodeId| subscriptions.contains_key(id) && wanted.has(id);
        if !digests.keys().all(keep) {
            self.digests.change(|all| all.retain(|id, _| keep(id)));
        }
        self.health.retain(|id| subscriptions.contains_key(id));
        wake
    }

    fn end(
        &self,
        peer: &NodeId,
        result: Result<Pulled, PullError>,
        subscriptions: &mut HashMap<NodeId, Subscription>,
    ) {
        let now = Instant::now();
        let Some(subscription) = subscriptions.get_mut(peer) else {
            return;
        };
        subscription.pulling = false;
        match result {
            Ok(pulled) => {
                self.events.digest_pulled(peer, pulled.kind);
                subscription.failures = 0;
                subscription.not_before = now + PULL_INTERVAL_MIN;
                if let Some(round_trip) = pulled.round_trip {
                    let ms = round_trip.as_secs_f64() * 1e3;
                    self.health.with(peer, |h| h.measured(ms, now));
                }
                self.digests
                    .change(|all| drop(all.insert(peer.clone(), pulled.digest)));
            }
            Err(error) => {
                self.events.digest_pulled(peer, "failed");
                subscription.failures += 1;
                subscription.not_before = now + retry_after(subscription.failures);
                if let PullError::Peer(PeerError::Connect(_)) = error {
                    self.health
                        .with(peer, |h| h.failed(Severity::Failed, "connect", now));
                }
                match subscription.failures {
                    1 => warn!(%peer, %error, "digest cannot be pulled"),
                    failures => debug!(%peer, %error, failures, "digest cannot be pulled"),
                }
            }
        }
    }

    fn pull(
        &self,
        peer: &NodeInfo,
        mine: Option<Arc<Digest>>,
    ) -> impl Future<Output = (NodeId, Result<Pulled, PullError>)> + Send + 'static {
        let asker = self.asker.clone();
        let id = peer.id.clone();
        let addr = self.reach.get(&peer.id).unwrap_or(&peer.peer).clone();
        async move {
            let known = mine.unwrap_or_default();
            let result = match pull_once(&asker, &id, &addr, &known).await {
                // What we have and what it sent do not fit together: begin anew.
                Err(PullError::Bad(error)) if known.version().is_some() => {
                    debug!(peer = %id, %error, "digest delta does not fit, pulling a snapshot");
                    pull_once(&asker, &id, &addr, &Arc::default()).await
                }
                result => result,
            };
            (id, result)
        }
    }
}

/// Whether gossip tells of a newer digest than ours. Gossip may also lag behind what was pulled.
fn is_behind(mine: Option<DigestVersion>, theirs: DigestVersion) -> bool {
    mine.is_none_or(|mine| mine.epoch != theirs.epoch || mine.seq < theirs.seq)
}

#[derive(Debug, thiserror::Error)]
enum PullError {
    #[error("{0}")]
    Peer(#[from] PeerError),
    #[error("answered {0}")]
    Status(StatusCode),
    #[error(transparent)]
    Bad(#[from] cluster::digest::BadDigest),
    #[error("could not be read: {0}")]
    Unread(#[from] tokio::task::JoinError),
}

async fn pull_once(
    asker: &Asker,
    peer: &NodeId,
    addr: &str,
    known: &Arc<Digest>,
) -> Result<Pulled, PullError> {
    let (path, kind) = match known.version() {
        Some(DigestVersion { epoch, seq }) => {
            (format!("{}?since={epoch},{seq}", wire::DIGEST), "delta")
        }
        None => (wire::DIGEST.to_owned(), "snapshot"),
    };
    let request = || asker.request(peer, addr, &path, HeaderMap::new());
    let patience = Patience {
        connect: CONNECT_TIMEOUT,
        head: HEAD_TIMEOUT,
    };
    let deadline = Instant::now() + PULL_TIMEOUT;
    let answer = asker
        .pool
        .document(request, patience, ANSWER_BYTES_MAX, deadline)
        .await?;
    if answer.head.status != StatusCode::OK {
        return Err(PullError::Status(answer.head.status));
    }
    let mut digest = Digest::clone(known);
    let body = answer.body;
    // Milliseconds for a large one: not on a runtime thread.
    let digest =
        tokio::task::spawn_blocking(move || digest.apply(&body).map(|()| Arc::new(digest)))
            .await??;
    let round_trip = (kind == "delta").then_some(answer.round_trip);
    Ok(Pulled {
        digest,
        round_trip,
        kind,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use cluster::{
        auth::{Signer, Verifier},
        clock::Clock,
        digest::Holdings,
        key::Key,
        net::SystemNet,
        node::Role,
        secret::ClusterSecret,
    };
    use http::{Request, Response};
    use http_body_util::Full;
    use hyper::body::Incoming;

    use super::*;
    use crate::upstream::{
        health::Standing,
        pool::Pool,
        scripted::{Counted, Scripted, eventually, serving},
    };

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn key(n: u32) -> Key {
        Key::of(&[&n.to_le_bytes()])
    }

    fn secret() -> ClusterSecret {
        ClusterSecret::from_bytes(b"0123456789abcdef0123456789abcdef").unwrap()
    }

    /// A peer with a real digest. `garble` answers to `?since=` with something else.
    async fn peer(holdings: Arc<Mutex<Holdings>>, garble: bool) -> Scripted {
        let verifier = Arc::new(Verifier::new(secret(), id("peer")));
        serving(move |request: Request<Incoming>| {
            let field = |name: &str| request.headers().get(name)?.to_str().ok();
            let target = request.uri().path_and_query().unwrap().as_str();
            verifier
                .verify("GET", target, field, Clock::system().unix_ms())
                .unwrap();
            let since = request.uri().query().map(|query| {
                let (epoch, seq) = query
                    .strip_prefix("since=")
                    .unwrap()
                    .split_once(',')
                    .unwrap();
                DigestVersion {
                    epoch: epoch.parse().unwrap(),
                    seq: seq.parse().unwrap(),
                }
            });
            let body = match since {
                Some(_) if garble => b"no digest".to_vec(),
                since => holdings.lock().unwrap().answer(since).encode(),
            };
            async move { Response::new(Full::from(Bytes::from(body))) }
        })
        .await
    }

    struct Bench {
        digests: Digests,
        health: Arc<Health>,
        events: Arc<Counted>,
        view: watch::Sender<Arc<ClusterView>>,
        addr: String,
    }

    impl Bench {
        fn puller(addr: String) -> (Self, DigestPuller) {
            let bench = Self {
                digests: Digests::default(),
                health: Arc::default(),
                events: Arc::default(),
                view: watch::Sender::new(Arc::default()),
                addr,
            };
            let puller = DigestPuller {
                digests: bench.digests.clone(),
                asker: Asker {
                    pool: Pool::new(Arc::new(SystemNet)),
                    signer: Signer::new(secret(), id("me")),
                    clock: Clock::system(),
                    health: bench.health.clone(),
                },
                me: id("me"),
                view: bench.view.subscribe(),
                nearest: Arc::new(Vec::new),
                reach: Arc::default(),
                health: bench.health.clone(),
                events: bench.events.clone(),
            };
            (bench, puller)
        }

        /// What gossip says of the peer's digest.
        fn gossip(&self, version: DigestVersion) {
            let mut peer = NodeInfo::new(id("peer"), Role::Edge);
            peer.peer.clone_from(&self.addr);
            peer.digest = Some(version);
            let mut me = NodeInfo::new(id("me"), Role::Edge);
            me.digest = Some(version);
            self.view
                .send_replace(Arc::new(ClusterView::new([me, peer])));
        }

        fn claims(&self, key: Key) -> bool {
            self.digests
                .load()
                .get(&id("peer"))
                .is_some_and(|digest| digest.contains(key))
        }
    }

    #[test]
    fn the_nearest_are_subscribed_to_and_stay_while_they_are_near() {
        let mut nearest: Vec<usize> = (0..500).collect();
        let first = subscriptions(&nearest, &HashSet::new());
        assert_eq!(first, nearest[..SUBSCRIPTIONS_MAX]);
        // Somewhat farther now, and far away.
        nearest[..SUBSCRIPTIONS_KEPT].rotate_left(10);
        nearest.swap(0, 400);
        let before = first.iter().copied().collect();
        let next = subscriptions(&nearest, &before);
        let fresh = next.iter().filter(|peer| !before.contains(peer)).count();
        assert_eq!((next.len(), fresh), (SUBSCRIPTIONS_MAX, 1));
        assert!(next.is_sorted_by_key(|peer| nearest.iter().position(|p| p == peer)));
        assert_eq!(subscriptions(&[1, 2], &HashSet::from([9])), [1, 2]);
    }

    #[tokio::test]
    async fn of_many_peers_only_the_nearest_are_pulled_and_the_others_forgotten() {
        let holdings = Arc::new(Mutex::new(Holdings::new(7)));
        holdings.lock().unwrap().add(key(1));
        let server = peer(holdings.clone(), false).await;
        let (bench, mut puller) = Bench::puller(server.address());
        let crowd = |i: usize| id(&format!("edge-{i:03}"));
        puller.nearest = Arc::new(move || {
            std::iter::once(id("peer"))
                .chain((0..200).map(crowd))
                .collect()
        });
        let version = holdings.lock().unwrap().version();
        let node = |name: NodeId, addr: &str| {
            let mut node = NodeInfo::new(name, Role::Edge);
            node.peer = addr.to_owned();
            node.digest = Some(version);
            node
        };
        // A few at first: the last of the crowd is known, too.
        let stranger = node(crowd(199), &bench.addr);
        bench
            .digests
            .change(|all| drop(all.insert(crowd(199), Arc::default())));
        let mut all = vec![node(id("peer"), &bench.addr), stranger];
        all.extend((0..199).map(|i| node(crowd(i), "")));
        bench.view.send_replace(Arc::new(ClusterView::new(all)));
        let running = tokio::spawn(puller.run());
        eventually(|| bench.claims(key(1))).await;
        eventually(|| !bench.digests.load().contains_key(&crowd(199))).await;
        assert_eq!(bench.events.all(), ["peer digest snapshot"]);
        running.abort();
    }

    #[tokio::test]
    async fn what_a_peer_holds_is_known_soon_after_gossip_says_that_it_changed() {
        let holdings = Arc::new(Mutex::new(Holdings::new(7)));
        for n in 0..1000 {
            holdings.lock().unwrap().add(key(n));
        }
        let server = peer(holdings.clone(), false).await;
        let (bench, puller) = Bench::puller(server.address());
        let running = tokio::spawn(puller.run());
        bench.gossip(holdings.lock().unwrap().version());
        eventually(|| bench.claims(key(999))).await;
        assert!(!bench.claims(key(1000)) && !bench.digests.load().contains_key(&id("me")));

        let changed = {
            let mut holdings = holdings.lock().unwrap();
            holdings.add(key(1000));
            holdings.remove(key(0));
            holdings.version()
        };
        bench.gossip(changed);
        eventually(|| bench.claims(key(1000)) && !bench.claims(key(0))).await;
        assert_eq!(
            bench.events.all(),
            ["peer digest snapshot", "peer digest delta"]
        );
        // A delta is a small request: it tells the round trip.
        assert!(bench.health.of(&id("peer")).round_trip_ms().is_some());

        // Restarted: another epoch, nothing held.
        *holdings.lock().unwrap() = Holdings::new(8);
        bench.gossip(DigestVersion { epoch: 8, seq: 0 });
        eventually(|| !bench.claims(key(1000))).await;
        running.abort();
    }

    #[tokio::test]
    async fn a_delta_that_does_not_fit_is_followed_by_a_snapshot() {
        let holdings = Arc::new(Mutex::new(Holdings::new(7)));
        holdings.lock().unwrap().add(key(1));
        let server = peer(holdings.clone(), true).await;
        let (bench, puller) = Bench::puller(server.address());
        let running = tokio::spawn(puller.run());
        bench.gossip(holdings.lock().unwrap().version());
        eventually(|| bench.claims(key(1))).await;
        holdings.lock().unwrap().add(key(2));
        bench.gossip(holdings.lock().unwrap().version());
        eventually(|| bench.claims(key(2))).await;
        assert_eq!(bench.events.of("peer digest snapshot"), 2);
        running.abort();
    }

    #[tokio::test]
    async fn a_peer_that_cannot_be_reached_is_ejected_and_asked_again_later() {
        let holdings = Arc::new(Mutex::new(Holdings::new(7)));
        holdings.lock().unwrap().add(key(1));
        let nobody = Scripted::refusing().await;
        let (mut bench, puller) = Bench::puller(nobody.trim_start_matches("http://").into());
        let running = tokio::spawn(puller.run());
        bench.gossip(holdings.lock().unwrap().version());
        eventually(|| bench.events.of("peer digest failed") > 0).await;
        assert_eq!(bench.health.of(&id("peer")).last_failure(), Some("connect"));
        assert_ne!(
            bench.health.of(&id("peer")).standing(Instant::now()),
            Standing::Good
        );
        let server = peer(holdings.clone(), false).await;
        bench.addr = server.address();
        bench.gossip(holdings.lock().unwrap().version());
        eventually(|| bench.claims(key(1))).await;
        running.abort();
    }

    #[tokio::test]
    async fn the_digest_of_a_peer_out_of_sight_is_kept_for_a_while() {
        let (bench, puller) = Bench::puller(String::new());
        bench
            .digests
            .change(|all| drop(all.insert(id("peer"), Arc::default())));
        let (mut subscriptions, wanted) = (HashMap::new(), Wanted::default());
        let mut pulls = JoinSet::new();
        bench.gossip(DigestVersion::default());
        let view = bench.view.borrow().clone();
        puller.begin(&view, &wanted, &mut subscriptions, &mut pulls);
        let nobody = ClusterView::default();
        puller.begin(&nobody, &wanted, &mut subscriptions, &mut pulls);
        assert_eq!(bench.digests.load().len(), 1);
        subscriptions.get_mut(&id("peer")).unwrap().seen -= KEPT_FOR;
        puller.begin(&nobody, &wanted, &mut subscriptions, &mut pulls);
        assert!(bench.digests.load().is_empty() && subscriptions.is_empty());
    }

    #[test]
    fn gossip_may_be_ahead_of_us_or_behind() {
        let v = |epoch, seq| DigestVersion { epoch, seq };
        for (mine, theirs, behind) in [
            (None, v(7, 0), true),
            (Some(v(7, 3)), v(7, 3), false),
            (Some(v(7, 3)), v(7, 4), true),
            (Some(v(7, 4)), v(7, 3), false),
            (Some(v(7, 4)), v(8, 0), true),
            // Restarted with a clock that was set back.
            (Some(v(7, 4)), v(6, 0), true),
        ] {
            assert_eq!(is_behind(mine, theirs), behind, "{mine:?} {theirs:?}");
        }
    }
}
