//! Receipts: what became of each purge at each edge. Kept for the last [`KEPT_MAX`] purges; of older ones
//! it is known up to where every edge has applied the log.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use cluster::{
    clock::Clock,
    node::NodeId,
    purge::{Position, Record},
    wire::{PurgeReceipt, PurgeState, PurgeStatus, PurgeWait},
};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

/// Purges whose receipts are kept.
pub const KEPT_MAX: usize = 1_000;
/// Longest time that an answer waits for edges.
pub const WAIT_MAX: Duration = Duration::from_secs(10);
/// An edge that has not answered for so long is late: a little less, so that the answer says so.
const LATE_AFTER: Duration = Duration::from_secs(9);
/// An edge that has not taken anything for so long, and was asked, is not waited for.
pub const UNREACHABLE_AFTER: Duration = Duration::from_secs(2);

/// What became of each purge at each edge.
#[derive(Debug)]
pub struct Receipts {
    clock: Clock,
    known: Mutex<Known>,
    /// Counts what happens to any of them.
    news: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Known {
    purges: BTreeMap<u64, Tracked>,
    /// Those that some edge has not acknowledged.
    open: BTreeSet<u64>,
    edges: BTreeMap<NodeId, Edge>,
    /// Edges that fell silent, and have not come back: they may be serving all the same.
    silent: BTreeSet<NodeId>,
}

/// An edge that gossip hears from.
#[derive(Debug, Default)]
struct Edge {
    applied: Position,
    /// Since when it has taken nothing, and why.
    failing: Option<(Instant, String)>,
    /// Whether purges wait for it: one that is only starting has them before it serves.
    counts: bool,
}

#[derive(Debug)]
struct Tracked {
    record: Record,
    /// Who has applied up to here has its effect: its own number, or that of what superseded it.
    needs: u64,
    /// In milliseconds after it was taken; `None`: not yet.
    edges: BTreeMap<NodeId, Option<u64>>,
    /// Those that were silent when it was taken, and have not been heard of since: nobody waits for them, but
    /// who asks shall know of them.
    silent: BTreeSet<NodeId>,
    is_told: bool,
}

impl Tracked {
    fn slowest(&self) -> u64 {
        self.edges.values().flatten().copied().max().unwrap_or(0)
    }
}

/// A purge that every live edge has acknowledged now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Complete {
    /// Its number.
    pub seq: u64,
    /// How long the slowest took, in milliseconds.
    pub elapsed_ms: u64,
}

impl Receipts {
    /// None yet. The clock is the one by which purges are taken.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            known: Mutex::default(),
            news: watch::Sender::new(0),
        }
    }

    /// From now on tells what becomes of `record`; `superseded` are those of which nothing is left. An edge
    /// may have applied it already. Gives it if every live edge has, and there is one.
    pub fn track(&self, record: Record, superseded: &[u64]) -> Option<Complete> {
        let ms = self.clock.unix_ms().saturating_sub(record.taken_at);
        let mut known = self.known();
        let seq = record.at.seq;
        for old in superseded {
            if let Some(old) = known.purges.get_mut(old) {
                old.needs = old.needs.max(seq);
            }
        }
        let counting = known.edges.iter().filter(|(_, edge)| edge.counts);
        let has_it = |edge: &Edge| (edge.applied >= record.at).then_some(ms);
        let edges: BTreeMap<_, _> = counting
            .map(|(id, edge)| (id.clone(), has_it(edge)))
            .collect();
        let is_told = !edges.is_empty() && edges.values().all(Option::is_some);
        let tracked = Tracked {
            record,
            needs: seq,
            edges,
            silent: known.silent.clone(),
            is_told,
        };
        known.purges.insert(seq, tracked);
        known.open.insert(seq);
        while known.purges.len() > KEPT_MAX {
            let oldest = known.purges.pop_first();
            if let Some((seq, _)) = oldest {
                known.open.remove(&seq);
            }
        }
        drop(known);
        self.tell();
        is_told.then_some(Complete {
            seq,
            elapsed_ms: ms,
        })
    }

    /// The log is this one now, and every edge takes all of it again.
    pub fn begin(&self, log: u64) {
        for tracked in self.known().purges.values_mut() {
            tracked.record.at.log = log;
        }
    }

    /// These edges, with whether purges wait for them, are alive, and no others.
    pub fn alive(&self, edges: impl Iterator<Item = (NodeId, bool)>) {
        let mut known = self.known();
        let Known {
            purges,
            open,
            edges: now,
            ..
        } = &mut *known;
        let mut before = std::mem::take(now);
        for (id, counts) in edges {
            let mut edge = before.remove(&id).unwrap_or_default();
            let is_back = counts && !edge.counts;
            edge.counts = counts;
            for seq in open.iter().filter(|_| is_back) {
                let tracked = purges.get_mut(seq);
                if let Some(tracked) = tracked.filter(|tracked| tracked.silent.contains(&id)) {
                    tracked.silent.remove(&id);
                    tracked.edges.entry(id.clone()).or_insert(None);
                }
            }
            now.insert(id, edge);
        }
        drop(known);
        self.tell();
    }

    /// These edges fell silent; of others that did, it is not known any more.
    pub fn silent(&self, edges: impl Iterator<Item = NodeId>) {
        self.known().silent = edges.collect();
    }

    /// An edge has acknowledged `pushed`, and has applied everything up to `applied`. Gives the purges
    /// that are complete with that, once.
    pub fn acknowledged(&self, node: &NodeId, pushed: &[u64], applied: Position) -> Vec<Complete> {
        let now = self.clock.unix_ms();
        let mut known = self.known();
        let Known {
            purges,
            open,
            edges,
            ..
        } = &mut *known;
        if let Some(edge) = edges.get_mut(node) {
            edge.failing = None;
            edge.applied = applied;
        }
        let mut complete = Vec::new();
        open.retain(|seq| {
            let Some(tracked) = purges.get_mut(seq) else {
                return false;
            };
            let needs = Position {
                log: tracked.record.at.log,
                seq: tracked.needs,
            };
            if pushed.contains(seq) || applied >= needs {
                let ms = now.saturating_sub(tracked.record.taken_at);
                let receipt = tracked.edges.entry(node.clone()).or_insert(None);
                receipt.get_or_insert(ms);
                tracked.silent.remove(node);
            }
            let waits = |(id, ms): (&NodeId, &Option<u64>)| ms.is_none() && edges.contains_key(id);
            if !tracked.is_told && !tracked.edges.iter().any(waits) {
                tracked.is_told = true;
                complete.push(Complete {
                    seq: *seq,
                    elapsed_ms: tracked.slowest(),
                });
            }
            // One that is away now may come back.
            tracked.edges.values().any(Option::is_none) || !tracked.silent.is_empty()
        });
        drop(known);
        self.tell();
        complete
    }

    /// An edge did not take what was sent to it.
    pub fn failed(&self, node: &NodeId, reason: String) {
        if let Some(edge) = self.known().edges.get_mut(node) {
            let since = edge.failing.take();
            let since = since.map_or_else(Instant::now, |(since, _)| since);
            edge.failing = Some((since, reason));
        }
        self.tell();
    }

    /// What became of a purge; `None` when it is not kept.
    pub fn status(&self, seq: u64) -> Option<PurgeStatus> {
        let known = self.known();
        let tracked = known.purges.get(&seq)?;
        let age_ms = self.clock.unix_ms().saturating_sub(tracked.record.taken_at);
        let is_old = u128::from(age_ms) >= LATE_AFTER.as_millis();
        let silent = tracked.silent.iter().map(|id| (id, &None));
        let everybody: BTreeMap<_, _> = silent.chain(&tracked.edges).collect();
        let nodes = everybody.into_iter().map(|(id, ms)| {
            let edge = known.edges.get(id);
            let (state, reason) = match (ms, edge) {
                (Some(_), _) => (PurgeState::Acknowledged, None),
                (None, None) => (
                    PurgeState::Unreachable,
                    Some("fell silent; it gets the purge before it is ready again".into()),
                ),
                (None, Some(edge)) => match &edge.failing {
                    Some((_, reason)) => (PurgeState::Unreachable, Some(reason.clone())),
                    None if is_old => (PurgeState::Late, Some("has not answered yet".into())),
                    None => (PurgeState::Pending, None),
                },
            };
            PurgeReceipt {
                node: id.clone(),
                state,
                ms: *ms,
                reason,
            }
        });
        let is_missing =
            |(id, ms): (&NodeId, &Option<u64>)| ms.is_none() && known.edges.contains_key(id);
        // Where no edge is known, nothing shows that there is none.
        let is_heard = !known.edges.is_empty() && !tracked.edges.is_empty();
        let complete = is_heard && !tracked.edges.iter().any(is_missing);
        Some(status_of(
            &tracked.record,
            complete,
            tracked.slowest(),
            nodes.collect(),
        ))
    }

    /// What is known of a purge of which no receipts are kept: which edges have applied the log beyond it.
    pub fn of_old(&self, record: &Record) -> PurgeStatus {
        let known = self.known();
        let counting = known.edges.iter().filter(|(_, edge)| edge.counts);
        let nodes: Vec<_> = counting
            .map(|(id, edge)| PurgeReceipt {
                node: id.clone(),
                state: match edge.applied >= record.at {
                    true => PurgeState::Acknowledged,
                    false => PurgeState::Late,
                },
                ms: None,
                reason: None,
            })
            .collect();
        let complete = !nodes.is_empty()
            && nodes
                .iter()
                .all(|node| node.state == PurgeState::Acknowledged);
        status_of(record, complete, 0, nodes)
    }

    /// Waits until nobody needs to be waited for any more, at most until `deadline`.
    pub async fn settle(&self, seq: u64, wait: PurgeWait, deadline: Instant) {
        let mut news = self.news.subscribe();
        loop {
            news.mark_unchanged();
            let Some(next) = self.waits_until(seq, wait) else {
                return;
            };
            let until = next.min(deadline);
            if timeout_at(until, news.changed()).await.is_err() && until == deadline {
                return;
            }
        }
    }

    /// Until when at most nothing changes by itself; `None`: there is nobody to wait for.
    fn waits_until(&self, seq: u64, wait: PurgeWait) -> Option<Instant> {
        let far = Instant::now() + WAIT_MAX;
        let known = self.known();
        let Some(tracked) = known.purges.get(&seq) else {
            // It is on its way from the store.
            return Some(far);
        };
        let acknowledged = tracked.edges.values().flatten().count();
        let enough = match wait {
            PurgeWait::All => tracked.edges.len(),
            PurgeWait::Quorum => tracked.edges.len() / 2 + 1,
            PurgeWait::None => 0,
        };
        if acknowledged >= enough.min(tracked.edges.len()) {
            return None;
        }
        let missing = tracked.edges.iter().filter(|(_, ms)| ms.is_none());
        let alive = missing.filter_map(|(id, _)| known.edges.get(id));
        // Of those that are waited for, the one that is given up last.
        let until = alive.map(|edge| match &edge.failing {
            None => far,
            Some((since, _)) => *since + UNREACHABLE_AFTER,
        });
        until.max().filter(|until| *until > Instant::now())
    }

    /// How old the oldest purge is that an edge which is alive has not acknowledged; zero: there is none.
    pub fn oldest_open(&self) -> Duration {
        let known = self.known();
        let is_missing =
            |(id, ms): (&NodeId, &Option<u64>)| ms.is_none() && known.edges.contains_key(id);
        let mut open = known.open.iter().filter_map(|seq| known.purges.get(seq));
        let oldest = open.find(|tracked| tracked.edges.iter().any(is_missing));
        oldest.map_or(Duration::ZERO, |tracked| {
            let age_ms = self.clock.unix_ms().saturating_sub(tracked.record.taken_at);
            Duration::from_millis(age_ms)
        })
    }

    /// How many receipts there are in each state, of all purges that are kept.
    pub fn states(&self) -> [(&'static str, usize); 4] {
        let known = self.known();
        let (mut acknowledged, mut pending, mut unreachable, mut away) = (0, 0, 0, 0);
        for tracked in known.purges.values() {
            away += tracked.silent.len();
            for (id, ms) in &tracked.edges {
                match (ms, known.edges.get(id)) {
                    (Some(_), _) => acknowledged += 1,
                    (None, None) => away += 1,
                    (None, Some(edge)) if edge.failing.is_some() => unreachable += 1,
                    (None, Some(_)) => pending += 1,
                }
            }
        }
        [
            ("acknowledged", acknowledged),
            ("pending", pending),
            ("unreachable", unreachable),
            ("departed", away),
        ]
    }

    fn tell(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known
            .lock()
            .expect("no code panics while it holds this lock")
    }
}

fn status_of(
    record: &Record,
    complete: bool,
    elapsed_ms: u64,
    nodes: Vec<PurgeReceipt>,
) -> PurgeStatus {
    PurgeStatus {
        seq: record.at.seq,
        log: record.at.log,
        site: record.purge.site.clone(),
        scopes: record.purge.scopes.clone(),
        soft: record.purge.soft,
        taken_at: record.taken_at,
        by: record.by.clone(),
        complete,
        elapsed_ms,
        nodes,
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use cluster::purge::{Purge, Scope};

    use super::*;

    const NOW: u64 = 1_000_000;

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn at(seq: u64) -> Position {
        Position { log: 9, seq }
    }

    fn record(seq: u64) -> Record {
        Record {
            at: at(seq),
            prev: 0,
            purge: Purge {
                site: "www".into(),
                scopes: vec![Scope::All],
                soft: false,
            },
            taken_at: NOW,
            by: "me".into(),
        }
    }

    fn receipts(edges: &[&str]) -> Receipts {
        let receipts = Receipts::new(Clock::tokio(UNIX_EPOCH + Duration::from_millis(NOW)));
        receipts.alive(edges.iter().map(|name| (id(name), true)));
        receipts
    }

    fn told(receipts: &Receipts, seq: u64) -> (bool, String) {
        let status = receipts.status(seq).unwrap();
        let nodes = status.nodes.iter().map(|node| {
            let ms = node.ms.map_or_else(String::new, |ms| format!(" {ms}"));
            format!("{} {:?}{ms}", node.node, node.state)
        });
        (status.complete, nodes.collect::<Vec<_>>().join(", "))
    }

    #[tokio::test(start_paused = true)]
    async fn receipts_name_everybody() {
        let receipts = receipts(&["a", "b", "c"]);
        receipts.alive(
            [
                (id("a"), true),
                (id("b"), true),
                (id("c"), true),
                (id("new"), false),
            ]
            .into_iter(),
        );
        receipts.track(record(5), &[]);
        tokio::time::advance(Duration::from_millis(30)).await;
        assert_eq!(receipts.acknowledged(&id("a"), &[5], at(5)), []);
        receipts.failed(&id("b"), "refused".into());
        let now = told(&receipts, 5);
        assert_eq!(
            now,
            (false, "a Acknowledged 30, b Unreachable, c Pending".into())
        );
        tokio::time::advance(WAIT_MAX).await;
        // `new` was not waited for, but says so.
        receipts.acknowledged(&id("new"), &[5], at(5));
        let later = told(&receipts, 5).1;
        assert_eq!(
            later,
            "a Acknowledged 30, b Unreachable, c Late, new Acknowledged 10030"
        );
        receipts.alive([(id("a"), true), (id("c"), true)].into_iter());
        let done = receipts.acknowledged(&id("c"), &[], at(7));
        assert_eq!(
            done,
            [Complete {
                seq: 5,
                elapsed_ms: 10_030
            }]
        );
        let (complete, text) = told(&receipts, 5);
        assert!(complete && text.contains("b Unreachable"), "{text}");
        // It is back.
        receipts.alive([(id("a"), true), (id("b"), true), (id("c"), true)].into_iter());
        assert!(!told(&receipts, 5).0);
        assert_eq!(
            receipts.acknowledged(&id("b"), &[5], at(5)),
            [],
            "told once"
        );
        assert!(told(&receipts, 5).0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_fell_silent_before_a_purge_is_named() {
        let receipts = receipts(&["a"]);
        receipts.silent([id("b"), id("c")].into_iter());
        let deadline = Instant::now() + WAIT_MAX;
        receipts.track(record(5), &[]);
        let done = receipts.acknowledged(&id("a"), &[5], at(5));
        assert_eq!(done.len(), 1);
        receipts.settle(5, PurgeWait::All, deadline).await;
        let now = told(&receipts, 5);
        let away = "a Acknowledged 0, b Unreachable, c Unreachable";
        assert_eq!(now, (true, away.into()));
        // It is back: starting first, then it counts, then it has it.
        receipts.alive([(id("a"), true), (id("b"), false)].into_iter());
        receipts.silent([id("c")].into_iter());
        assert!(told(&receipts, 5).0);
        receipts.alive([(id("a"), true), (id("b"), true)].into_iter());
        let now = told(&receipts, 5);
        let back = "a Acknowledged 0, b Pending, c Unreachable";
        assert_eq!(now, (false, back.into()));
        receipts.acknowledged(&id("b"), &[5], at(5));
        let now = told(&receipts, 5);
        let back = "a Acknowledged 0, b Acknowledged 0, c Unreachable";
        assert_eq!(now, (true, back.into()));
    }

    #[tokio::test(start_paused = true)]
    async fn without_any_edge_no_purge_is_complete() {
        let receipts = receipts(&[]);
        let begun = Instant::now();
        receipts.track(record(5), &[]);
        receipts.settle(5, PurgeWait::All, begun + WAIT_MAX).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(told(&receipts, 5), (false, String::new()));
        assert!(!receipts.of_old(&record(4)).complete);
        // It was away, or this control plane was.
        receipts.alive([(id("a"), true)].into_iter());
        receipts.acknowledged(&id("a"), &[5], at(5));
        assert_eq!(told(&receipts, 5), (true, "a Acknowledged 0".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_superseded_needs_what_superseded_it() {
        let receipts = receipts(&["a"]);
        receipts.track(record(5), &[]);
        receipts.track(record(6), &[]);
        assert_eq!(receipts.track(record(8), &[5]), None);
        receipts.acknowledged(&id("a"), &[], at(7));
        assert_eq!(told(&receipts, 5).1, "a Pending");
        assert_eq!(told(&receipts, 6).1, "a Acknowledged 0");
        let done = receipts.acknowledged(&id("a"), &[8], at(8));
        assert_eq!(done.iter().map(|d| d.seq).collect::<Vec<_>>(), [5, 8]);
        // What an edge has before it is told of here.
        let done = receipts.acknowledged(&id("a"), &[12], at(12));
        assert_eq!(done, []);
        assert_eq!(
            receipts.track(record(12), &[]).map(|done| done.seq),
            Some(12)
        );
        assert_eq!(told(&receipts, 12).1, "a Acknowledged 0");
        // Of another log, what was applied before says nothing.
        receipts.track(record(13), &[]);
        receipts.begin(10);
        receipts.acknowledged(&id("a"), &[], at(20));
        assert_eq!(told(&receipts, 13).1, "a Pending");
        receipts.acknowledged(&id("a"), &[], Position { log: 10, seq: 13 });
        assert_eq!(told(&receipts, 13).1, "a Acknowledged 0");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_waits_for_whom_it_shall_and_for_nobody_who_is_away() {
        let receipts = receipts(&["a", "b", "c"]);
        let begun = Instant::now();
        let deadline = begun + WAIT_MAX;
        receipts.track(record(5), &[]);
        receipts.settle(5, PurgeWait::None, deadline).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let quorum = receipts.settle(5, PurgeWait::Quorum, deadline);
        let acknowledge = async {
            for name in ["a", "b"] {
                tokio::time::sleep(Duration::from_millis(20)).await;
                receipts.acknowledged(&id(name), &[5], at(5));
            }
        };
        tokio::join!(quorum, acknowledge);
        assert_eq!(begun.elapsed(), Duration::from_millis(40));
        receipts.failed(&id("c"), "refused".into());
        receipts.settle(5, PurgeWait::All, deadline).await;
        let elapsed = begun.elapsed();
        assert!(
            elapsed >= UNREACHABLE_AFTER && elapsed < UNREACHABLE_AFTER * 2,
            "{elapsed:?}"
        );
        // Who is silent is waited for until the end; so is a record that has not come yet.
        for seq in [6, 7] {
            let begun = Instant::now();
            if seq == 6 {
                receipts.acknowledged(&id("c"), &[], at(5));
                receipts.track(record(6), &[]);
            }
            receipts.settle(seq, PurgeWait::All, begun + WAIT_MAX).await;
            assert_eq!(begun.elapsed(), WAIT_MAX);
        }
        receipts.alive([(id("a"), true)].into_iter());
        receipts.acknowledged(&id("a"), &[6], at(6));
        let begun = Instant::now();
        receipts.settle(6, PurgeWait::All, begun + WAIT_MAX).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_are_forgotten_and_still_known_by_what_was_applied() {
        let receipts = receipts(&["a", "b"]);
        for seq in 1..=KEPT_MAX as u64 + 1 {
            receipts.track(record(seq), &[]);
        }
        assert_eq!(receipts.status(1), None);
        receipts.acknowledged(&id("a"), &[], at(3));
        let old = receipts.of_old(&record(1));
        assert!(!old.complete);
        assert_eq!(old.nodes[0].state, PurgeState::Acknowledged);
        assert_eq!(old.nodes[1].state, PurgeState::Late);
        let states = receipts.states();
        assert_eq!(states[0], ("acknowledged", 2), "{states:?}");
    }
}
