//! What the peers hold: their digests, pulled whenever gossip says that one has changed. Readers on
//! the request path never wait.

use std::{collections::HashMap, sync::Arc, time::Duration};

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
    /// Addresses of peer listeners that are not those in the view.
    pub reach: Arc<HashMap<NodeId, String>>,
    /// Learns of round trips and of peers that cannot be reached.
    pub health: Arc<Health>,
    /// Counts.
    pub events: Arc<dyn Events>,
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
        loop {
            let view = self.view.borrow_and_update().clone();
            let wake = self.begin(&view, &mut subscriptions, &mut pulls);
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
            let due = peer
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
        if digests.keys().any(|id| !subscriptions.contains_key(id)) {
            self.digests
                .change(|all| all.retain(|id, _| subscriptions.contains_key(id)));
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
    let request = asker.request(peer, addr, &path, HeaderMap::new())?;
    let patience = Patience {
        connect: CONNECT_TIMEOUT,
        head: HEAD_TIMEOUT,
    };
    let deadline = Instant::now() + PULL_TIMEOUT;
    let answer = asker
        .pool
        .document(request, patience, ANSWER_BYTES_MAX, deadline)
        .await;
    let answer = answer.map_err(PeerError::from)?;
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
