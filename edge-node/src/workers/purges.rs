//! Keeps up with the purge log: checks once a second that nothing is missing here, pulls what is, checks for
//! requests that come while this node is cut off, and tells others how far it is.
//!
//! A check asks the control planes, all at once, and where none answers the peers that are furthest. It is
//! done when nothing is missing of what it was told; what peers tell counts as of when a control plane told it.

use std::{
    cmp::Reverse,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cluster::{
    membership::Membership,
    node::{NodeInfo, Role},
    purge::Position,
    view::ClusterView,
    wire::PurgePage,
};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at},
};
use tracing::{debug, info, warn};

use crate::{
    purges::{
        Checks, Purges,
        pull::{Batch, Pull},
        watch::{CHECK_EVERY, CHECK_WAIT_MAX, CUT_OFF},
    },
    upstream::{Upstream, pool::Reuse, purging::Pace},
};

/// How long a control plane, or a peer, may be silent before the head of a page.
const SILENCE_MAX: Duration = Duration::from_millis(1_500);
/// How long the pages of one pull may take: the largest (4 MiB) over a line of 2 Mbit/s, and some more. The next
/// pull goes on behind the last whole page, so what does not get this far never arrives.
const PULL_MAX: Duration = Duration::from_secs(30);
/// Pages that one check pulls at most; the next goes on.
const PAGES_MAX: usize = 1_000;
/// Peers that one check asks.
const PEERS_ASKED: usize = 3;
/// While a node catches up, it looks so often.
const CATCHING_UP_EVERY: Duration = Duration::from_millis(200);
/// How long a node that starts waits for a control plane before the word of peers is enough.
const CONTROL_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long it waits for anybody before it is ready all the same, and asks the origin first.
const SETTLE_MAX: Duration = Duration::from_secs(4);
/// How far a clock must be off to be told of: well before [requests between nodes](cluster::auth::TIME_WINDOW)
/// are refused, and more than clocks that are kept right are ever apart.
const CLOCK_TOLD_MS: u64 = 5_000;
/// By how many seconds what is told of a clock must change before it is told anew.
const CLOCK_NEWS_S: u64 = 1;
/// Checks for requests at once; each takes [`CHECK_WAIT_MAX`] at most …
const ON_DEMAND_MAX: usize = 8;
/// … and they begin so far apart, for all requests that wait then.
const ON_DEMAND_EVERY: Duration = Duration::from_millis(40);

/// Keeps up until it is dropped. Says in `settled` when this node need wait no longer before it is ready.
pub async fn follow(
    purges: Purges,
    upstream: Upstream,
    membership: Option<Arc<Membership>>,
    mut checks: Checks,
    settled: watch::Sender<bool>,
) {
    let Some(membership) = membership else {
        settled.send_replace(true);
        return std::future::pending().await;
    };
    let checker = Checker {
        purges: purges.clone(),
        upstream,
        view: membership.view(),
        started: Instant::now(),
        broken_off: Arc::default(),
    };
    let mut view = membership.view();
    let mut applied = purges.applied_watch();
    let mut ticks = interval(CATCHING_UP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next_due = Instant::now();
    let mut regular = JoinSet::new();
    let mut is_wanted = false;
    let mut on_demand = JoinSet::new();
    let mut on_demand_next = Instant::now();
    let mut clock_told_s = 0;
    loop {
        tokio::select! {
            Some(first) = asked(&mut checks, on_demand_next), if on_demand.len() < ON_DEMAND_MAX => {
                let mut waiting = vec![first];
                while let Ok(next) = checks.try_recv() {
                    waiting.push(next);
                }
                on_demand_next = Instant::now() + ON_DEMAND_EVERY;
                on_demand.spawn(checker.clone().check_for(waiting));
            }
            Some(_) = on_demand.join_next(), if !on_demand.is_empty() => {}
            Some(done) = regular.join_next(), if !regular.is_empty() => {
                if let Err(error) = done {
                    warn!(%error, "a check of purges broke off");
                }
            }
            _ = ticks.tick() => {
                let ahead_s = clock_ahead_s(purges.clock_ahead_ms());
                if ahead_s.abs_diff(clock_told_s) > CLOCK_NEWS_S {
                    clock_told_s = ahead_s;
                    warn_of_clock(ahead_s);
                    membership.update(|me| me.clock_ahead_s = ahead_s);
                }
                is_wanted |= Instant::now() >= next_due || !purges.has_caught_up();
            }
            () = purges.gap() => is_wanted = true,
            Ok(()) = view.changed() => {
                let told = newest(&view.borrow_and_update());
                is_wanted |= told > purges.as_of();
            }
            Ok(()) = applied.changed() => {
                let place = *applied.borrow_and_update();
                membership.update(|me| me.purged = place);
            }
        }
        if is_wanted && regular.is_empty() {
            is_wanted = false;
            next_due = Instant::now() + CHECK_EVERY;
            let checker = checker.clone();
            regular.spawn(async move {
                let pace = || Pace {
                    head: SILENCE_MAX,
                    by: Instant::now() + PULL_MAX,
                };
                checker.check(Reuse::Allowed, pace(), pace).await;
                checker.purges.write_heard().await;
            });
        }
        let is_settled = purges.has_caught_up() || checker.started.elapsed() >= SETTLE_MAX;
        if is_settled && !*settled.borrow() {
            if !purges.has_caught_up() {
                warn!(
                    "nobody tells which purges there were: the origin is asked before answers from cache"
                );
            }
            settled.send_replace(true);
        }
    }
}

/// What is told of a clock: whole seconds, once they are some.
fn clock_ahead_s(ahead_ms: i64) -> i64 {
    match ahead_ms.unsigned_abs() < CLOCK_TOLD_MS {
        true => 0,
        false => ahead_ms / 1_000,
    }
}

fn warn_of_clock(ahead_s: i64) {
    match ahead_s {
        0 => info!("this node's clock agrees with the control plane's again"),
        _ => warn!(
            ahead_s,
            "this node's clock is off: other nodes take nothing from it, nor it from them"
        ),
    }
}

/// The next request for a check, not before `from`.
async fn asked(checks: &mut Checks, from: Instant) -> Option<oneshot::Sender<()>> {
    sleep_until(from).await;
    match checks.recv().await {
        Some(asked) => Some(asked),
        None => std::future::pending().await,
    }
}

/// The furthest place that anybody tells of.
fn newest(view: &ClusterView) -> Position {
    let places = view.nodes().map(|node| node.purged);
    places.max().unwrap_or_default()
}

#[derive(Clone)]
struct Checker {
    purges: Purges,
    upstream: Upstream,
    view: watch::Receiver<Arc<ClusterView>>,
    started: Instant,
    /// The pull that came furthest without coming to its end: the next goes on from there.
    broken_off: Arc<Mutex<Option<Pull>>>,
}

/// What of the log is here now.
enum Taken {
    /// All of it.
    All,
    /// Not all, and this way there is no more of it.
    NotAll,
    /// What a pull has come to: there is more.
    Part,
}

impl Checker {
    /// Checks for requests, which hear of its end by their senders being dropped.
    async fn check_for(self, waiting: Vec<oneshot::Sender<()>>) {
        // A connection from before may hang for longer than the way was cut.
        let begun = Instant::now();
        let head = CHECK_WAIT_MAX / 2;
        let pace = |by| Pace { head, by };
        self.check(Reuse::Never, pace(begun + head), || {
            pace(begun + CHECK_WAIT_MAX)
        })
        .await;
        drop(waiting);
    }

    /// Makes sure that nothing is missing here, by a control plane at its pace, else by peers at theirs.
    async fn check(&self, reuse: Reuse, pace: Pace, peers_pace: impl FnOnce() -> Pace) {
        let asked_ms = self.purges.now_ms();
        let has_control = self.upstream.has_control_planes();
        if has_control && timeout_at(pace.by, self.pull_from_control(reuse, pace)).await == Ok(true)
        {
            return self.purges.heard(asked_ms, 0);
        }
        let is_starting = !self.purges.has_caught_up() && self.started.elapsed() < CONTROL_WAIT_MAX;
        let must_be_control = has_control && is_starting;
        if !must_be_control && let Some(age_ms) = self.pull_from_peers(reuse, peers_pace()).await {
            self.purges.heard(asked_ms, age_ms);
        }
    }

    async fn pull_from_control(&self, reuse: Reuse, pace: Pace) -> bool {
        let mut pull = self.pull();
        for _ in 0..PAGES_MAX {
            let asked_ms = self.purges.now_ms();
            let page = match self
                .upstream
                .purges_by_control(pull.after(), reuse, pace)
                .await
            {
                Ok(page) => page,
                Err(error) => {
                    debug!(%error, "purge log cannot be pulled");
                    return false;
                }
            };
            if let Some(control_ms) = page.now_ms {
                self.purges.told_time(asked_ms, control_ms);
            }
            if page.log < pull.after().log {
                // It has lost its own, and will see that by what nodes tell it.
                debug!(log = page.log, "a control plane has an older purge log");
                return false;
            }
            match self.take(&mut pull, page).await {
                Taken::All => return true,
                Taken::NotAll => return false,
                Taken::Part => {}
            }
        }
        false
    }

    /// How long before this, or less, a control plane told one of the peers what is all known here now. Who is in
    /// reach of one counts for more than who is first.
    async fn pull_from_peers(&self, reuse: Reuse, pace: Pace) -> Option<u64> {
        let peers = self.furthest_peers();
        let mut pulls: FuturesUnordered<_> = peers
            .iter()
            .map(|peer| self.pull_from_peer(peer, reuse, pace))
            .collect();
        let mut youngest = None;
        while let Ok(Some(told)) = timeout_at(pace.by, pulls.next()).await {
            let Some(age_ms) = told else { continue };
            // What gossip tells of as well, before anything is answered from cache for the first time.
            let is_all =
                self.purges.has_caught_up() || newest(&self.view.borrow()) <= self.purges.as_of();
            if is_all {
                let age_ms = age_ms.min(youngest.unwrap_or(u64::MAX));
                youngest = Some(age_ms);
                if Duration::from_millis(age_ms) < CUT_OFF {
                    break;
                }
            }
        }
        youngest
    }

    async fn pull_from_peer(&self, peer: &NodeInfo, reuse: Reuse, pace: Pace) -> Option<u64> {
        let mut pull = self.pull();
        for _ in 0..PAGES_MAX {
            let page = match self
                .upstream
                .purges_by_peer(peer, pull.after(), reuse, pace)
                .await
            {
                Ok(page) => page,
                Err(error) => {
                    debug!(peer = %peer.id, %error, "peer tells no purges");
                    return None;
                }
            };
            let age_ms = page.age_ms;
            match self.take(&mut pull, page).await {
                Taken::All => return age_ms,
                Taken::NotAll => return None,
                Taken::Part => {}
            }
        }
        None
    }

    /// A pull of what is missing now.
    fn pull(&self) -> Pull {
        Pull::begin(self.purges.as_of(), *self.broken_off())
    }

    fn broken_off(&self) -> MutexGuard<'_, Option<Pull>> {
        self.broken_off
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in the next page of a pull.
    async fn take(&self, pull: &mut Pull, page: PurgePage) -> Taken {
        let (before, count, log, through) =
            (pull.after(), page.records.len(), page.log, page.through);
        let applied = match pull.turn(page) {
            Batch::Nothing => None,
            Batch::Whole(records, passage) => Some(self.purges.apply(records, Some(passage)).await),
            Batch::Part(records, passage) => {
                let kept = self.purges.apply(records, None).await;
                Some(match (kept, passage) {
                    (Ok(_), Some(_)) => self.purges.apply(Vec::new(), passage).await,
                    (kept, _) => kept,
                })
            }
        };
        match applied {
            None => {}
            Some(Ok(_)) => info!(count, log, through, "purges pulled"),
            Some(Err(error)) => {
                warn!(%error, "purges that were pulled are not kept");
                return Taken::NotAll;
            }
        }
        if self.purges.as_of() >= pull.furthest() {
            return Taken::All;
        }
        let is_of_use = !pull.is_through();
        let kept = is_of_use.then(|| pull.further(*self.broken_off()));
        *self.broken_off() = kept;
        if is_of_use && pull.after() > before {
            Taken::Part
        } else {
            Taken::NotAll
        }
    }

    /// The peers that are furthest, in no order where they are equally far.
    fn furthest_peers(&self) -> Vec<Arc<NodeInfo>> {
        let view = self.view.borrow().clone();
        let mut peers: Vec<_> = view
            .nodes()
            .filter(|node| {
                node.role == Role::Edge && !node.peer.is_empty() && node.id != *self.upstream.me()
            })
            .map(|node| (Reverse(node.purged), rand::random::<u32>(), node.clone()))
            .collect();
        peers.sort_by_key(|(purged, random, _)| (*purged, *random));
        let peers = peers.into_iter().take(PEERS_ASKED);
        peers.map(|(_, _, node)| node).collect()
    }
}
