//! The purge log: records in the store, and the same in memory, in order.
//!
//! A purge is one item below `purges/`, and the revision of its commit is its number: numbers grow, whoever
//! takes a purge, but not by one. What every control plane knows of the log comes from watching the store,
//! so all of them see the same records in the same order, their own as well.
//!
//! Which log it is stands under a key of its own. Who finds none begins one; so a store that was lost is
//! noticed by itself. One that was set back is noticed by nodes that have applied more than it knows, and
//! then the log is a new one as well: all nodes take all of it again.

pub mod retained;

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use cluster::{
    clock::Clock,
    purge::{Position, Purge, Record},
    wire::{PURGE_PAGE_BYTES_MAX, PURGE_PAGE_MAX, PurgePage},
};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tracing::{error, info, warn};

use self::retained::{Retained, Stored, Upkeep};
use crate::store::{
    COMMIT_MAX, Change, Committed, Condition, Item, News, PAGE_MAX, Store, StoreError,
    VALUE_BYTES_MAX,
};

/// All that the log has in the store.
const FAMILY: &str = "purges/";
/// Which log it is, as decimal digits.
const LOG_KEY: &str = "purges/log";
/// Below it, the records.
const RECORDS: &str = "purges/records/";
/// How long to wait after the store failed; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Records that may wait for who tracks what becomes of them; the log waits with them.
const ARRIVALS_MAX: usize = 256;

/// The purge log. Cheap to clone.
#[derive(Clone)]
pub struct PurgeLog(Arc<Inner>);

struct Inner {
    store: Store,
    clock: Clock,
    retained: Mutex<Retained>,
    /// Where the log ends; its log is 0 until the store has been read.
    head: watch::Sender<Position>,
    /// The farthest place that any node has told of.
    seen: watch::Sender<Position>,
}

/// What happens to the log, for who tracks what becomes of its records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A record came, and with it nothing is left of others.
    Record {
        /// The record.
        record: Box<Record>,
        /// Numbers of those of which nothing is left.
        superseded: Vec<u64>,
    },
    /// The log is this one now.
    Log(u64),
}

/// Why a purge has no place in the log.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// It does not fit into the store.
    #[error("{0} bytes, more than {VALUE_BYTES_MAX}: make several purges of it")]
    TooLarge(usize),
    /// The store failed, or takes no such thing.
    #[error("{}{}", .0, what_then(.0))]
    Store(#[from] StoreError),
}

/// What is to be done about a purge of which it is not known whether it was taken.
fn what_then(error: &StoreError) -> &'static str {
    match error {
        StoreError::Failed(_) => {
            "; it may have the purge all the same: ask again, twice does no harm"
        }
        StoreError::Refused(_) => "",
    }
}

impl PurgeLog {
    /// The log in `store`; it is empty until [`PurgeLog::run`] has read it.
    pub fn new(store: Store, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            store,
            clock,
            retained: Mutex::new(Retained::new(0)),
            head: watch::Sender::new(Position::default()),
            seen: watch::Sender::new(Position::default()),
        }))
    }

    /// Where the log ends, now and whenever that changes; its log is 0 until the store has been read.
    pub fn head(&self) -> watch::Receiver<Position> {
        self.0.head.subscribe()
    }

    /// How many scopes are retained.
    pub fn scopes(&self) -> usize {
        self.retained().scopes()
    }

    /// Whether the store fails that has it.
    pub fn is_store_away(&self) -> bool {
        self.0.store.is_away()
    }

    /// Gives a purge its place in the log. When this returns, it survives a crash.
    ///
    /// # Errors
    ///
    /// It has none, unless the store failed: then it may have one.
    pub async fn append(&self, purge: Purge, by: String) -> Result<Position, NotTaken> {
        let taken_at = self.0.clock.unix_ms();
        let stored = Stored {
            seq: None,
            purge,
            taken_at,
            by,
        };
        let value = serde_json::to_vec(&stored).expect("plain data with text keys");
        if value.len() > VALUE_BYTES_MAX {
            return Err(NotTaken::TooLarge(value.len()));
        }
        let key = format!(
            "{RECORDS}{taken_at:012x}-{:016x}",
            RandomState::new().hash_one(&value)
        );
        let commit = || {
            let changes = vec![Change::put(key.clone(), value.clone())];
            self.0
                .store
                .commit(vec![Condition::absent(key.clone())], changes)
        };
        // A store whose answer was lost may have it: then it says that there is such a key.
        let committed = match commit().await {
            Err(StoreError::Failed(_)) => commit().await?,
            other => other?,
        };
        let seq = match committed {
            Committed::At(revision) => revision,
            Committed::Conflict => match self.0.store.get(&key).await? {
                Some(item) if item.value == value => item.revision,
                _ => return Err(StoreError::Failed("its record is gone".into()).into()),
            },
        };
        let log = self.0.head.borrow().log;
        Ok(Position { log, seq })
    }

    /// The record of this number, if it is retained.
    pub fn record(&self, seq: u64) -> Option<Record> {
        self.retained().record(seq)
    }

    /// What comes behind `after` in the log `log`; another log is told from its beginning.
    pub fn page(&self, log: Option<u64>, after: u64, limit: usize) -> PurgePage {
        let retained = self.retained();
        let head = retained.head();
        let is_another = log.is_some_and(|log| log != head.log);
        let after = if is_another { 0 } else { after };
        let limit = limit.clamp(1, PURGE_PAGE_MAX);
        let (records, through) = retained.page(after, limit, PURGE_PAGE_BYTES_MAX);
        PurgePage {
            log: head.log,
            head: head.seq,
            through: through.min(head.seq),
            records,
            age_ms: None,
            now_ms: Some(self.0.clock.unix_ms()),
        }
    }

    /// The last `count` records, at most [`PURGE_PAGE_MAX`], in their order.
    pub fn last(&self, count: usize) -> PurgePage {
        let count = count.clamp(1, PURGE_PAGE_MAX);
        let after = self.retained().before_last(count);
        self.page(None, after, count)
    }

    /// A node has applied everything up to `position`.
    pub fn seen(&self, position: Position) {
        self.0.seen.send_if_modified(|farthest| {
            let is_farther = position > *farthest;
            if is_farther {
                *farthest = position;
            }
            is_farther
        });
    }

    /// Follows the store, and keeps it tidy, until it is dropped. What comes to the log is told to
    /// `arrivals`, except for what was there before.
    pub async fn run(self, arrivals: mpsc::Sender<Arrival>) {
        let mut pause = RETRY_MIN;
        loop {
            let before = *self.0.head.borrow();
            match self.follow(&arrivals).await {
                Ok(()) => {}
                Err(error) => warn!(%error, "the purge log cannot be followed"),
            }
            if *self.0.head.borrow() != before {
                pause = RETRY_MIN;
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Reads all of the log, then follows it. Ends well when something was missed.
    async fn follow(&self, arrivals: &mpsc::Sender<Arrival>) -> Result<(), StoreError> {
        let mut identity = self.identity().await?;
        let known = self.0.head.borrow().seq;
        let mut retained = Retained::new(identity.log);
        let mut watch_from = None;
        let mut after = 0;
        loop {
            let page = self.0.store.since(RECORDS, after, PAGE_MAX).await?;
            watch_from.get_or_insert(page.revision);
            after = page.items.last().map_or(after, |item| item.revision);
            for item in page.items {
                take(&mut retained, item);
            }
            if !page.more {
                break;
            }
        }
        // What came while nothing was heard.
        let missed = retained.page(known, usize::MAX, usize::MAX).0;
        let was_read = std::mem::replace(&mut *self.retained(), retained).log() != 0;
        self.publish();
        if was_read {
            for record in missed {
                tell(arrivals, record, Vec::new()).await;
            }
        }
        let from = watch_from.unwrap_or(0);
        let mut watch = self.0.store.watch(FAMILY, from).await?;
        let mut seen = self.0.seen.subscribe();
        seen.mark_changed();
        info!(
            log = identity.log,
            head = self.0.head.borrow().seq,
            scopes = self.scopes(),
            "purge log read"
        );
        self.tidy().await?;
        loop {
            let news = tokio::select! {
                news = watch.next() => news,
                Ok(()) = seen.changed() => {
                    let farthest = *seen.borrow_and_update();
                    if farthest > *self.0.head.borrow() {
                        identity = self.doubt(farthest, identity).await?;
                    }
                    continue;
                }
            };
            let News::Commit { revision, changes } = news else {
                info!("the purge log is read anew");
                return Ok(());
            };
            for change in changes {
                self.apply(revision, change, &mut identity, arrivals).await;
            }
            self.tidy().await?;
        }
    }

    async fn apply(
        &self,
        revision: u64,
        change: Change,
        identity: &mut Identity,
        arrivals: &mpsc::Sender<Arrival>,
    ) {
        match change {
            Change::Put { key, value } if key == LOG_KEY => {
                let Some(log) = number(&value) else {
                    return error!("the purge log has a name that is no number");
                };
                *identity = Identity { log, revision };
                self.retained().set_log(log);
                self.publish();
                // Who tracks the records ends only with this process.
                let _ = arrivals.send(Arrival::Log(log)).await;
            }
            Change::Put { key, value } => {
                let item = Item {
                    key,
                    value,
                    revision,
                };
                let told = {
                    let mut retained = self.retained();
                    let head = retained.head().seq;
                    take(&mut retained, item)
                        // What was written anew is no news.
                        .filter(|(seq, _)| *seq > head)
                        .and_then(|(seq, ended)| Some((retained.record(seq)?, ended)))
                };
                if let Some((record, ended)) = told {
                    tell(arrivals, record, ended).await;
                }
                self.publish();
            }
            Change::Delete { key } => self.retained().delete(&key),
        }
    }

    /// Which log it is; begins one if there is none.
    async fn identity(&self) -> Result<Identity, StoreError> {
        loop {
            if let Some(item) = self.0.store.get(LOG_KEY).await? {
                let log = number(&item.value).ok_or_else(|| {
                    StoreError::Failed(format!("{LOG_KEY} holds what is no number"))
                })?;
                let revision = item.revision;
                return Ok(Identity { log, revision });
            }
            let log = self.0.clock.unix_ms().max(1);
            let begun = vec![Change::put(LOG_KEY, log.to_string())];
            self.0
                .store
                .commit(vec![Condition::absent(LOG_KEY)], begun)
                .await?;
            info!(log, "a purge log is begun");
        }
    }

    /// A node has applied more than is known here. That may be because the store is ahead of what was heard
    /// of it; if it is not, it was set back, and the log must be a new one.
    async fn doubt(&self, farthest: Position, known: Identity) -> Result<Identity, StoreError> {
        let identity = self.identity().await?;
        let revision = self.0.store.list(RECORDS, 1, None).await?.revision;
        let reaches = Position {
            log: identity.log,
            seq: revision,
        };
        if reaches >= farthest {
            return Ok(known);
        }
        let Some(after) = farthest.log.checked_add(1) else {
            error!("a node has applied purges of a log after which there can be none");
            return Ok(known);
        };
        let log = self.0.clock.unix_ms().max(after);
        let condition = vec![Condition::at(LOG_KEY, identity.revision)];
        let begun = vec![Change::put(LOG_KEY, log.to_string())];
        // Another control plane may have been first; either way the watch tells.
        self.0.store.commit(condition, begun).await?;
        warn!(
            log,
            ?farthest,
            ours = ?reaches,
            "nodes have applied purges that the store does not know: a new purge log is begun"
        );
        Ok(known)
    }

    /// Deletes from the store what no longer counts.
    async fn tidy(&self) -> Result<(), StoreError> {
        let mut upkeep = self.retained().upkeep();
        let mut is_alone = true;
        while is_alone && !upkeep.is_empty() {
            let mut deleted = Vec::new();
            for task in std::mem::take(&mut upkeep) {
                match task {
                    Upkeep::Delete { key, .. } => deleted.push(key),
                    Upkeep::Rewrite {
                        key,
                        revision,
                        stored,
                    } => is_alone &= self.rewrite(key, revision, stored).await?,
                }
            }
            // What is of no use here is of no use anywhere: without conditions.
            for some in deleted.chunks(COMMIT_MAX) {
                let changes = some.iter().cloned().map(Change::delete).collect();
                self.0.store.commit(Vec::new(), changes).await?;
                let mut retained = self.retained();
                some.iter().for_each(|key| retained.delete(key));
            }
            if is_alone {
                upkeep = self.retained().upkeep();
            }
        }
        Ok(())
    }

    /// False: another control plane was first, and the watch tells of it.
    async fn rewrite(
        &self,
        key: String,
        revision: u64,
        stored: Stored,
    ) -> Result<bool, StoreError> {
        let value = serde_json::to_vec(&stored).expect("plain data with text keys");
        let condition = vec![Condition::at(key.clone(), revision)];
        let change = vec![Change::put(key.clone(), value)];
        match self.0.store.commit(condition, change).await? {
            Committed::At(revision) => {
                self.retained().put(key, revision, stored);
                Ok(true)
            }
            Committed::Conflict => Ok(false),
        }
    }

    fn publish(&self) {
        let head = self.retained().head();
        self.0.head.send_if_modified(|known| {
            let is_new = *known != head;
            *known = head;
            is_new
        });
    }

    fn retained(&self) -> MutexGuard<'_, Retained> {
        self.0
            .retained
            .lock()
            .expect("no code panics while it holds this lock")
    }
}

impl fmt::Debug for PurgeLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PurgeLog").finish_non_exhaustive()
    }
}

/// Which log it is, and the revision that says so.
#[derive(Clone, Copy, Debug)]
struct Identity {
    log: u64,
    revision: u64,
}

fn take(retained: &mut Retained, item: Item) -> Option<(u64, Vec<u64>)> {
    match serde_json::from_slice(&item.value) {
        Ok(stored) => Some(retained.put(item.key, item.revision, stored)),
        Err(error) => {
            error!(key = item.key, %error, "a record of the purge log is unreadable, and left out");
            None
        }
    }
}

async fn tell(arrivals: &mpsc::Sender<Arrival>, record: Record, superseded: Vec<u64>) {
    let record = Box::new(record);
    // Who tracks the records ends only with this process.
    let _ = arrivals.send(Arrival::Record { record, superseded }).await;
}

/// A channel for what comes to the log.
pub fn arrivals() -> (mpsc::Sender<Arrival>, mpsc::Receiver<Arrival>) {
    mpsc::channel(ARRIVALS_MAX)
}

fn number(text: &[u8]) -> Option<u64> {
    str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use cluster::purge::Scope;
    use tokio::task::JoinSet;

    use super::*;

    fn purge(tags: &[&str]) -> Purge {
        let tag = |tag: &&str| Scope::Tag((*tag).to_owned());
        Purge {
            site: "www".into(),
            scopes: tags.iter().map(tag).collect(),
            soft: false,
        }
    }

    /// A control plane's log, followed.
    async fn followed(
        store: &Store,
        tasks: &mut JoinSet<()>,
    ) -> (PurgeLog, mpsc::Receiver<Arrival>) {
        let log = PurgeLog::new(store.clone(), Clock::system());
        let (told, arrivals) = arrivals();
        tasks.spawn(log.clone().run(told));
        log.head().wait_for(|head| head.log != 0).await.unwrap();
        (log, arrivals)
    }

    async fn arrived(arrivals: &mut mpsc::Receiver<Arrival>) -> (u64, Vec<u64>) {
        match arrivals.recv().await.unwrap() {
            Arrival::Record { record, superseded } => (record.at.seq, superseded),
            Arrival::Log(log) => panic!("log {log}"),
        }
    }

    fn numbers(log: &PurgeLog) -> Vec<u64> {
        let page = log.page(None, 0, 100);
        page.records.iter().map(|record| record.at.seq).collect()
    }

    #[tokio::test]
    async fn whoever_takes_a_purge_all_see_it_in_one_order_and_what_is_over_leaves_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::embedded(&dir.path().join("store")).unwrap();
        let mut tasks = JoinSet::new();
        let (one, mut first) = followed(&store, &mut tasks).await;
        let (other, mut second) = followed(&store, &mut tasks).await;
        assert_eq!(one.head().borrow().log, other.head().borrow().log);
        let mut taken = Vec::new();
        for (log, tags) in [
            (&one, &["a", "b"][..]),
            (&other, &["c"]),
            (&one, &["a", "b"]),
        ] {
            let at = log.append(purge(tags), "me".into()).await.unwrap();
            taken.push(at.seq);
        }
        for arrivals in [&mut first, &mut second] {
            assert_eq!(arrived(arrivals).await, (taken[0], vec![]));
            assert_eq!(arrived(arrivals).await, (taken[1], vec![]));
            assert_eq!(arrived(arrivals).await, (taken[2], vec![taken[0]]));
        }
        // Once both have tidied up, neither has more than what still counts, nor has the store; a third
        // one sees the same.
        for log in [&one, &other] {
            let mut head = log.head();
            head.wait_for(|head| head.seq == taken[2]).await.unwrap();
            while numbers(log) != taken[1..] {
                tokio::task::yield_now().await;
            }
        }
        loop {
            let page = store.list(RECORDS, 10, None).await.unwrap();
            if page.items.len() == 2 {
                break;
            }
            tokio::task::yield_now().await;
        }
        let (third, _) = followed(&store, &mut tasks).await;
        assert_eq!(numbers(&third), taken[1..]);
        let large = vec!["x"; VALUE_BYTES_MAX];
        let refused = one.append(purge(&large), "me".into()).await;
        assert!(matches!(refused, Err(NotTaken::TooLarge(_))));
    }

    #[tokio::test]
    async fn a_log_is_begun_anew_only_when_the_store_does_not_know_what_nodes_have_applied() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::embedded(&dir.path().join("store")).unwrap();
        let mut tasks = JoinSet::new();
        let (log, mut arrivals) = followed(&store, &mut tasks).await;
        let at = log.append(purge(&["a"]), "me".into()).await.unwrap();
        assert_eq!(arrived(&mut arrivals).await.0, at.seq);
        let mut head = log.head();
        head.wait_for(|head| *head == at).await.unwrap();
        // The store is ahead of the log: nothing is lost.
        store
            .commit(vec![], vec![Change::put("sites/x", "")])
            .await
            .unwrap();
        let beside = Position {
            seq: at.seq + 1,
            ..at
        };
        log.seen(beside);
        let next = log.append(purge(&["b"]), "me".into()).await.unwrap();
        assert_eq!(arrived(&mut arrivals).await.0, next.seq);
        head.wait_for(|head| *head == next).await.unwrap();
        for beyond in [
            Position {
                seq: next.seq + 1_000,
                ..next
            },
            Position {
                log: next.log + 1_000_000_000,
                seq: 1,
            },
        ] {
            log.seen(beyond);
            let now = *head.wait_for(|head| head.log > beyond.log).await.unwrap();
            assert_eq!(now.seq, next.seq, "the records are those of the new log");
            assert_eq!(arrivals.recv().await, Some(Arrival::Log(now.log)));
            assert_eq!(numbers(&log), [at.seq, next.seq]);
        }
        // Nobody can come after that: it is said in the log of this process, and nothing happens.
        let before = *head.borrow();
        log.seen(Position {
            log: u64::MAX,
            seq: 1,
        });
        log.append(purge(&["c"]), "me".into()).await.unwrap();
        head.changed().await.unwrap();
        assert_eq!(head.borrow().log, before.log);
    }
}
