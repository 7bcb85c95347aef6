//! Fan-out: every live edge gets what it lacks of the purge log, at once and all of them together.
//!
//! One worker per edge. It has a connection ready, sends everything that the edge lacks in the order of the
//! log, and goes on until the edge has it or has left gossip; who asked for a purge need not wait for that.
//! An edge that gossip shows behind is sent to as well. What comes twice does no harm: several control
//! planes do this at the same time, each for all edges.

mod push;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use cluster::{
    auth::Signer,
    clock::Clock,
    net::Net,
    node::{NodeId, Phase, Role},
    purge::Position,
    wire::{ClockOff, PURGE_PAGE_MAX, PurgePush},
};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep},
};
use tracing::{debug, info};

use self::push::Link;
use crate::{
    atlas::Atlas,
    metrics::Metrics,
    purge_log::{Arrival, PurgeLog},
    receipts::{Complete, Receipts},
};

/// First pause after an edge did not take what it was sent; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Pause before a connection that ended is made anew while there is nothing to send.
const LINK_PAUSE: Duration = Duration::from_secs(1);
/// For so long after an answer gossip may still tell of the time before it.
const GOSSIP_LAG: Duration = Duration::from_secs(5);

/// What workers share.
#[derive(Clone)]
pub struct Fanout {
    /// The log.
    pub log: PurgeLog,
    /// What became of what.
    pub receipts: Arc<Receipts>,
    /// Metrics of the process.
    pub metrics: Arc<Metrics>,
    /// The network.
    pub net: Arc<dyn Net>,
    /// Signs what is sent to edges.
    pub signer: Signer,
    /// The wall clock.
    pub clock: Clock,
}

/// Where an edge is, and what gossip says that it has applied.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    address: String,
    purged: Position,
    /// By how much its clock is off.
    clock_ahead_s: i64,
}

impl Fanout {
    /// Keeps a worker for every live edge, until it is dropped.
    pub async fn run(
        self,
        mut atlas: watch::Receiver<Arc<Atlas>>,
        mut arrivals: mpsc::Receiver<Arrival>,
    ) {
        let mut tasks = JoinSet::new();
        let mut workers = BTreeMap::<NodeId, (watch::Sender<Target>, AbortHandle)>::new();
        atlas.mark_changed();
        loop {
            tokio::select! {
                Some(arrival) = arrivals.recv() => match arrival {
                    Arrival::Record { record, superseded } => {
                        self.complete(self.receipts.track(*record, &superseded));
                    }
                    Arrival::Log(log) => self.receipts.begin(log),
                },
                changed = atlas.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = atlas.borrow_and_update().clone();
                    self.survey(&now, &mut workers, &mut tasks);
                }
            }
            while tasks.try_join_next().is_some() {}
        }
    }

    /// Gives every live edge a worker, and takes those away that have no edge any more.
    fn survey(
        &self,
        atlas: &Atlas,
        workers: &mut BTreeMap<NodeId, (watch::Sender<Target>, AbortHandle)>,
        tasks: &mut JoinSet<()>,
    ) {
        let seats: Vec<_> = atlas.seats().collect();
        for seat in &seats {
            self.log.seen(seat.node.purged);
        }
        let edges = seats
            .iter()
            .map(|seat| seat.node)
            .filter(|node| node.role == Role::Edge && !node.peer.is_empty());
        let counted = edges
            .clone()
            .map(|node| (node.id.clone(), node.phase != Phase::Starting));
        self.receipts.alive(counted);
        self.receipts.silent(atlas.silent_edges().cloned());
        let alive: BTreeSet<_> = edges.clone().map(|node| node.id.clone()).collect();
        workers.retain(|id, (_, worker)| {
            let stays = alive.contains(id);
            if !stays {
                worker.abort();
            }
            stays
        });
        for node in edges {
            let target = Target {
                address: node.peer.clone(),
                purged: node.purged,
                clock_ahead_s: node.clock_ahead_s,
            };
            match workers.get(&node.id) {
                Some((known, _)) => {
                    known.send_if_modified(|known| {
                        let is_new = *known != target;
                        *known = target;
                        is_new
                    });
                }
                None => {
                    let (targets, watched) = watch::channel(target);
                    let worker = tasks.spawn(self.clone().serve(node.id.clone(), watched));
                    workers.insert(node.id.clone(), (targets, worker));
                }
            }
        }
    }

    /// Sends one edge what it lacks, for as long as it is there.
    async fn serve(self, node: NodeId, mut target: watch::Receiver<Target>) {
        let mut head = self.log.head();
        let mut link: Option<Link> = None;
        let mut known = target.borrow().purged;
        self.settle(&node, &[], known);
        let mut answered: Option<Instant> = None;
        let mut pause = PAUSE_MIN;
        loop {
            let now = target.borrow_and_update().clone();
            let end = *head.borrow_and_update();
            let gossip_is_new = answered.is_none_or(|at| at.elapsed() > GOSSIP_LAG);
            if now.purged > known || (now.purged < known && gossip_is_new) {
                known = now.purged;
                self.settle(&node, &[], known);
            }
            if link
                .as_ref()
                .is_some_and(|link| !link.leads_to(&now.address))
            {
                link = None;
            }
            if end.seq == 0 || known >= end {
                // Nothing to send: a connection is ready all the same.
                let opened = link.as_ref().is_some_and(Link::is_open);
                if !opened {
                    link = Link::open(&*self.net, &now.address).await.ok();
                }
                let ended = async {
                    if let Some(link) = &mut link {
                        link.ended().await;
                    }
                    sleep(LINK_PAUSE).await;
                };
                tokio::select! {
                    Ok(()) = head.changed() => {}
                    Ok(()) = target.changed() => {}
                    () = ended => {}
                    // What gossip says counts from some time on.
                    () = sleep(GOSSIP_LAG) => {}
                    // Where nobody tells any more, all of this is about to end.
                    else => return,
                }
                continue;
            }
            let mut page = self.log.page(Some(known.log), known.seq, PURGE_PAGE_MAX);
            if page.through < page.head {
                page.unlink();
            }
            let pushed: Vec<_> = page.records.iter().map(|record| record.at.seq).collect();
            if pushed.is_empty() {
                // It has applied what the log does not know; the log is asked about it.
                self.log.seen(known);
                sleep(PAUSE_MAX).await;
                continue;
            }
            let batch = PurgePush {
                records: page.records,
            };
            let sent = Box::pin(self.push(&mut link, &node, &now.address, &batch)).await;
            let trouble = match sent {
                Ok(applied) => {
                    answered = Some(Instant::now());
                    self.log.seen(applied);
                    self.settle(&node, &pushed, applied);
                    let advanced = applied > known;
                    known = applied;
                    debug!(%node, records = pushed.len(), ?applied, "purges applied");
                    if advanced {
                        pause = PAUSE_MIN;
                        continue;
                    }
                    "applied nothing of what it was sent".to_owned()
                }
                Err(trouble) => {
                    link = None;
                    let trouble = match now.clock_ahead_s {
                        0 => trouble,
                        ahead_s => {
                            let node = node.clone();
                            format!("{}: {trouble}", ClockOff { node, ahead_s })
                        }
                    };
                    self.receipts.failed(&node, trouble.clone());
                    trouble
                }
            };
            debug!(%node, %trouble, "purges are sent again");
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Sends one batch, over the connection that is there or over a new one.
    async fn push(
        &self,
        link: &mut Option<Link>,
        node: &NodeId,
        address: &str,
        batch: &PurgePush,
    ) -> Result<Position, String> {
        let body =
            bytes::Bytes::from(serde_json::to_vec(batch).expect("plain data with text keys"));
        if let Some(kept) = link.as_mut().filter(|link| link.is_open()) {
            let now = self.clock.unix_ms();
            match kept.push(&self.signer, node, now, body.clone()).await {
                // It may have ended at that very moment: what is sent twice does no harm.
                Err(_) if !kept.is_open() => {}
                answered => return answered,
            }
        }
        let opened = link.insert(Link::open(&*self.net, address).await?);
        let now = self.clock.unix_ms();
        opened.push(&self.signer, node, now, body).await
    }

    fn settle(&self, node: &NodeId, pushed: &[u64], applied: Position) {
        self.complete(self.receipts.acknowledged(node, pushed, applied));
    }

    fn complete(&self, purges: impl IntoIterator<Item = Complete>) {
        for complete in purges {
            self.metrics.purge_complete(complete.elapsed_ms);
            info!(
                seq = complete.seq,
                ms = complete.elapsed_ms,
                "purge acknowledged everywhere"
            );
        }
    }
}
