//! What this node knows of purges: the [table](cluster::purge::Table) that every answer from cache is judged
//! by, on disk before a purge is acknowledged ([`journal`]), the latest records for peers that miss some
//! ([`recent`]), and how sure this node can be that it has heard of all ([`watch`]).
//!
//! **In force at once:** a purge counts from the moment on that its record is in the table, whatever is
//! missing before it; it is acknowledged when it is on disk as well. What is judged by the table is an
//! object's `as_of`, the place in the log that the table had reached before the origin was asked for it. So
//! what was on its way when a purge came is invalid when it is there.
//!
//! **What a hit pays:** the table has a *generation*, which moves with every change. An entry remembers
//! at which it was found good; as long as that is the current one, two numbers are compared.
//!
//! **Locks:** the table's is held for one record, or one question, and never across an await.

pub mod journal;
pub mod pull;
pub mod recent;
pub mod tags;
pub mod watch;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use cluster::{
    clock::Clock,
    purge::{Hit, Object, Passage, Position, Record, Step, Table, Verdict},
    site::PURGE_LIMIT_DEFAULT,
    wire::{PURGE_PAGE_BYTES_MAX, PURGE_PAGE_MAX, PurgePage},
};
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch as channel},
    time::timeout,
};
use tracing::{debug, info, warn};

use self::{
    journal::{Frame, Journal},
    recent::Recent,
    tags::tags,
    watch::{CHECK_WAIT_MAX, Watch},
};
use crate::{
    cache::{
        Standing,
        entry::Entry,
        key::{self, KeyRules},
    },
    sites::Sites,
};

/// When a control plane was last heard, for the next start: [`LastHeard`] as JSON.
const HEARD: &str = "purges.heard";
/// How often that is written.
const WRITE_HEARD_EVERY_MS: u64 = 5_000;
/// Batches that may wait to be written; each is a page at most. Who finds no room waits.
const JOBS_MAX: usize = 64;
/// Batches that are synced together.
const GROUP_MAX: usize = 256;
/// Requests that may wait for a check at once; more are judged as if it had failed.
const CHECKS_MAX: usize = 4_096;

/// What this node knows of purges. A clone-able handle.
#[derive(Clone)]
pub struct Purges {
    shared: Arc<Shared>,
}

struct Shared {
    table: RwLock<Table>,
    /// Moves with every change of the table; never 0.
    generation: AtomicU64,
    /// Until when, in Unix milliseconds, hits need no second thought.
    sure_until_ms: AtomicU64,
    watch: Mutex<Watch>,
    /// The last place that is on disk.
    applied: channel::Sender<Position>,
    recent: Mutex<Recent>,
    sites: Arc<ArcSwap<Sites>>,
    clock: Clock,
    jobs: Option<mpsc::Sender<Job>>,
    /// Asks for a check that begins from now on.
    checks: mpsc::Sender<oneshot::Sender<()>>,
    /// Something is missing.
    gap: Notify,
    /// Where it is kept when a control plane was last heard, and what stands there.
    heard: Option<PathBuf>,
    heard_written_ms: AtomicU64,
    /// By how many milliseconds this node's clock is ahead of a control plane's.
    clock_ahead_ms: AtomicI64,
    counts: Counts,
}

/// Purges applied since the start, by what they hit.
#[derive(Debug, Default)]
struct Counts([AtomicU64; KINDS.len()]);

/// What a purge may hit, for metrics.
const KINDS: [&str; 4] = ["url", "prefix", "tag", "all"];

/// Why purges were not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotApplied {
    /// This node is in no cluster.
    #[error("this node takes no purges: it is in no cluster")]
    Alone,
    /// They are in force, but could not be written.
    #[error("purges could not be written: {0}")]
    Disk(String),
    /// The node is about to stop.
    #[error("this node is stopping")]
    Stopping,
}

/// What the next start finds of when a control plane was last heard.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct LastHeard {
    /// When it last said that nothing is missing here, in Unix milliseconds.
    head_ms: u64,
    /// Up to which place nothing was missing then, or somewhat later.
    place: Position,
}

impl LastHeard {
    /// What was written in `dir`, for a node that has everything up to `applied`. `None`: it was written by a
    /// version that did not say the place, or purges were lost since, and nobody can vouch for these.
    fn read(dir: &Path, applied: Position) -> Option<Self> {
        let bytes = std::fs::read(dir.join(HEARD)).ok()?;
        let heard: Self = serde_json::from_slice(&bytes)
            .inspect_err(|error| info!(%error, "when a control plane was last heard is unknown"))
            .ok()?;
        if applied < heard.place {
            warn!(?applied, lost = ?heard.place, "purges on disk are not all that were there");
            return None;
        }
        Some(heard)
    }
}

/// A batch on its way into the table and to disk.
struct Job {
    records: Vec<Record>,
    passage: Option<Passage>,
    done: oneshot::Sender<Result<Position, NotApplied>>,
}

/// What a request names, as purges see it.
#[derive(Clone, Copy)]
pub struct Named<'a> {
    /// The site's name.
    pub site: &'a str,
    /// The host, as cache keys have it.
    pub host: &'a str,
    /// Path and query, as sent.
    pub target: &'a str,
    /// The site's rules of what names an object.
    pub rules: &'a KeyRules,
}

/// Requests for checks, for whoever makes them.
pub type Checks = mpsc::Receiver<oneshot::Sender<()>>;

impl Purges {
    /// Of a node that stands alone: there are none.
    pub fn none(sites: Arc<ArcSwap<Sites>>, clock: Clock) -> Self {
        let (checks, _) = mpsc::channel(1);
        Self::over(
            Table::new(1),
            Watch::off(),
            None,
            (None, checks),
            sites,
            clock,
        )
    }

    /// Opens what is known in `dir`, for at most `scopes_max` scopes. With `watches`, this node is sure of
    /// nothing before it has [caught up](Purges::heard). Also gives the requests for checks. Blocks.
    ///
    /// # Errors
    ///
    /// The directory cannot be used.
    pub fn open(
        dir: &Path,
        scopes_max: usize,
        watches: bool,
        sites: Arc<ArcSwap<Sites>>,
        clock: Clock,
    ) -> std::io::Result<(Self, Checks)> {
        let (mut journal, table) = Journal::open(dir, scopes_max)?;
        info!(applied = ?table.applied(), scopes = table.scopes(), "purges read");
        let (jobs, mut waiting) = mpsc::channel::<Job>(JOBS_MAX);
        let (checks, asked) = mpsc::channel(CHECKS_MAX);
        let watch = match watches {
            true => Watch::on(LastHeard::read(dir, table.applied()).map(|heard| heard.head_ms)),
            false => Watch::off(),
        };
        let purges = Self::over(
            table,
            watch,
            Some(jobs),
            (Some(dir.join(HEARD)), checks),
            sites,
            clock,
        );
        // Holds no handle that has a sender, so it ends with the last of them.
        let shared = Arc::downgrade(&purges.shared);
        std::thread::Builder::new()
            .name("purges".into())
            .spawn(move || {
                while let Some(first) = waiting.blocking_recv() {
                    let mut group = vec![first];
                    while group.len() < GROUP_MAX
                        && let Ok(next) = waiting.try_recv()
                    {
                        group.push(next);
                    }
                    let Some(shared) = shared.upgrade() else {
                        return;
                    };
                    shared.work(&mut journal, group);
                }
            })?;
        Ok((purges, asked))
    }

    fn over(
        table: Table,
        watch: Watch,
        jobs: Option<mpsc::Sender<Job>>,
        (heard, checks): (Option<PathBuf>, mpsc::Sender<oneshot::Sender<()>>),
        sites: Arc<ArcSwap<Sites>>,
        clock: Clock,
    ) -> Self {
        let shared = Shared {
            heard,
            heard_written_ms: AtomicU64::new(0),
            applied: channel::Sender::new(table.applied()),
            table: RwLock::new(table),
            generation: AtomicU64::new(1),
            sure_until_ms: AtomicU64::new(watch.sure_until_ms()),
            watch: Mutex::new(watch),
            recent: Mutex::default(),
            sites,
            clock,
            jobs,
            checks,
            gap: Notify::new(),
            clock_ahead_ms: AtomicI64::new(0),
            counts: Counts::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Takes records in, and that nothing was left out among them; returns up to which place nothing is
    /// missing once all of it is on disk. Once begun it comes to its end, whether or not anybody waits.
    ///
    /// # Errors
    ///
    /// They are in force, but might not be after a restart.
    pub async fn apply(
        &self,
        records: Vec<Record>,
        passage: Option<Passage>,
    ) -> Result<Position, NotApplied> {
        let jobs = self.shared.jobs.as_ref().ok_or(NotApplied::Alone)?;
        let (done, applied) = oneshot::channel();
        let job = Job {
            records,
            passage,
            done,
        };
        jobs.send(job).await.map_err(|_| NotApplied::Stopping)?;
        applied.await.map_err(|_| NotApplied::Stopping)?
    }

    /// Up to which place nothing is missing here: what an object is known to be newer than that is asked
    /// for from now on.
    pub fn as_of(&self) -> Position {
        self.shared.table().applied()
    }

    /// Up to which place nothing is missing, on disk as well.
    pub fn applied(&self) -> Position {
        *self.shared.applied.borrow()
    }

    /// Waits until nothing is missing up to `place`, for so long; says whether that is so.
    pub async fn catch_up(&self, place: Position, wait_max: Duration) -> bool {
        let mut applied = self.shared.applied.subscribe();
        if *applied.borrow() >= place {
            return true;
        }
        self.shared.gap.notify_one();
        let there = timeout(wait_max, applied.wait_for(|applied| *applied >= place)).await;
        matches!(there, Ok(Ok(_)))
    }

    /// Follows [`Purges::applied`].
    pub fn applied_watch(&self) -> channel::Receiver<Position> {
        self.shared.applied.subscribe()
    }

    /// Writes down when a control plane was last heard, and what is known since then, if that is due. Peers that
    /// start anew when none is there go by it, as this node does then by theirs.
    pub async fn write_heard(&self) {
        let head_ms = self.shared.watch().head_ms();
        let written_ms = &self.shared.heard_written_ms;
        let (Some(heard), Some(head_ms)) = (&self.shared.heard, head_ms) else {
            return;
        };
        if head_ms.abs_diff(written_ms.load(Ordering::Relaxed)) < WRITE_HEARD_EVERY_MS {
            return;
        }
        // Taken after the moment, so that all that was known then is below it.
        let place = self.as_of();
        let written = serde_json::to_vec(&LastHeard { head_ms, place }).expect("it is numbers");
        match tokio::fs::write(heard, written).await {
            Ok(()) => written_ms.store(head_ms, Ordering::Relaxed),
            Err(error) => debug!(%error, "it could not be written when a control plane was heard"),
        }
    }

    /// Now, in Unix milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.shared.clock.unix_ms()
    }

    /// Whether purges have hit what is stored for this URL, where that is all that is known of a request.
    pub fn has_hit(&self, site: &str, host: &str, target: &str, entry: &Entry) -> bool {
        let sites = self.shared.sites.load();
        let sent = KeyRules::default();
        let named = Named {
            site,
            host,
            target,
            rules: sites.ruling(site).map_or(&sent, |ruling| &ruling.key),
        };
        self.standing(named, entry, true) != Standing::Good
    }

    /// Waits until something is known to be missing.
    pub async fn gap(&self) {
        self.shared.gap.notified().await;
    }

    /// Records behind number `after` of `log`, at most so many, for a peer that misses them.
    pub fn page(&self, log: u64, after: u64, limit: usize) -> PurgePage {
        // First, so that the page has all that it says so of; and only where all of it is on disk.
        let (known, age_ms) = (self.as_of(), self.age_ms());
        let (limit, applied) = (limit.min(PURGE_PAGE_MAX), self.applied());
        let recent = self.shared.recent();
        PurgePage {
            age_ms: age_ms.filter(|_| applied >= known),
            ..recent.page(applied, log, after, limit, PURGE_PAGE_BYTES_MAX)
        }
    }

    fn age_ms(&self) -> Option<u64> {
        self.shared.watch().age_ms(self.shared.clock.unix_ms())
    }

    /// What purges say of a stored response to what `named` names. `is_sure`: whether this node can
    /// answer from cache at all ([`Purges::is_sure`]).
    pub fn standing(&self, named: Named<'_>, entry: &Entry, is_sure: bool) -> Standing {
        let generation = self.shared.generation.load(Ordering::Relaxed);
        if entry.proved.load(Ordering::Relaxed) != generation {
            match self.verdict(named, &entry.head.headers, entry.head.as_of) {
                Verdict::Good => entry.proved.store(generation, Ordering::Relaxed),
                Verdict::Stale => {
                    return if is_sure {
                        Standing::Stale
                    } else {
                        Standing::Unsure
                    };
                }
                Verdict::Gone => return Standing::Gone,
            }
        }
        match is_sure {
            true => Standing::Good,
            false => Standing::Unsure,
        }
    }

    /// Whether a stored response may be used at once, as far as purges go. Costs a hit two loads.
    pub fn lets_pass(&self, named: Named<'_>, entry: &Entry, now_ms: u64) -> bool {
        now_ms < self.shared.sure_until_ms.load(Ordering::Relaxed)
            && self.standing(named, entry, true) == Standing::Good
    }

    /// Whether nothing at all of a site was purged since `as_of`.
    pub fn is_untouched(&self, site: &str, as_of: Position) -> bool {
        self.shared.table().is_untouched(site, as_of)
    }

    /// What purges say of a response with these fields, which is as of that place.
    pub fn verdict(&self, named: Named<'_>, headers: &HeaderMap, as_of: Position) -> Verdict {
        if self.is_untouched(named.site, as_of) {
            return Verdict::Good;
        }
        self.shared.asked(named, headers, as_of, Table::judge)
    }

    /// Everything that hit such a response, the newest first.
    pub fn hits(&self, named: Named<'_>, headers: &HeaderMap, as_of: Position) -> Vec<Hit> {
        self.shared.asked(named, headers, as_of, Table::hits)
    }

    /// Whether this node, which may go so long without hearing of anybody, can answer from cache. When
    /// it has heard of nobody for a moment, that is asked anew, and waited for; see [`watch`].
    pub async fn is_sure(&self, limit: Duration) -> bool {
        let now_ms = self.shared.clock.unix_ms();
        if now_ms < self.shared.sure_until_ms.load(Ordering::Relaxed) {
            return true;
        }
        let watch = *self.shared.watch();
        if !watch.is_worth_a_check(now_ms, limit) {
            return watch.is_sure(now_ms, limit);
        }
        let (done, checked) = oneshot::channel();
        if self.shared.checks.try_send(done).is_ok() {
            // Whether in time, or at all, is seen by what it has changed.
            let _ = timeout(CHECK_WAIT_MAX, checked).await;
        }
        self.shared
            .watch()
            .is_sure(self.shared.clock.unix_ms(), limit)
    }

    /// Whether it can without asking anybody, for a site of that name.
    pub fn is_sure_of(&self, site: &str) -> bool {
        let sites = self.shared.sites.load();
        let limit = sites
            .ruling(site)
            .and_then(|ruling| ruling.site.purge_limit);
        let limit = limit.unwrap_or(PURGE_LIMIT_DEFAULT).0;
        let now_ms = self.shared.clock.unix_ms();
        self.shared.watch().is_sure(now_ms, limit)
    }

    /// Nothing was missing here of what somebody knew at `asked_ms`, and a control plane `age_ms` before that.
    pub fn heard(&self, asked_ms: u64, age_ms: u64) {
        let now_ms = self.shared.clock.unix_ms();
        let mut watch = self.shared.watch();
        if watch.heard(asked_ms, age_ms, now_ms) {
            info!(applied = ?self.applied(), "purges caught up");
        }
        let until_ms = watch.sure_until_ms();
        self.shared.sure_until_ms.store(until_ms, Ordering::Relaxed);
    }

    /// A control plane that was asked at `asked_ms` by this node's clock, and has just answered, says what time it
    /// is there.
    pub fn told_time(&self, asked_ms: u64, control_ms: u64) {
        let ahead_ms = watch::clock_ahead_ms(asked_ms, self.now_ms(), control_ms);
        self.shared
            .clock_ahead_ms
            .store(ahead_ms, Ordering::Relaxed);
    }

    /// By how many milliseconds this node's clock is ahead of a control plane's, at least; behind, if negative.
    pub fn clock_ahead_ms(&self) -> i64 {
        self.shared.clock_ahead_ms.load(Ordering::Relaxed)
    }

    /// Why this node cannot be sure of what it has in its cache; `None`: it can.
    pub fn doubt(&self) -> Option<&'static str> {
        self.shared.watch().doubt(self.shared.clock.unix_ms())
    }

    /// Whether it has once had everything that somebody knew, or nobody has to be asked.
    pub fn has_caught_up(&self) -> bool {
        self.shared.watch().has_caught_up()
    }

    /// How many scopes are remembered, and what they take in bytes.
    pub fn size(&self) -> (usize, usize) {
        let table = self.shared.table();
        (table.scopes(), table.bytes())
    }

    /// Scopes applied since the start, by what they are.
    pub fn applied_by_kind(&self) -> [(&'static str, u64); KINDS.len()] {
        let counts = &self.shared.counts.0;
        std::array::from_fn(|kind| (KINDS[kind], counts[kind].load(Ordering::Relaxed)))
    }
}

impl Shared {
    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked<T>(
        &self,
        named: Named<'_>,
        headers: &HeaderMap,
        as_of: Position,
        ask: impl Fn(&Table, &Object<'_>) -> T,
    ) -> T {
        let target = key::named_target(named.target, named.rules);
        let tags = tags(headers);
        let object = Object {
            site: named.site,
            host: named.host,
            target: &target,
            tags: &tags,
            as_of,
        };
        ask(&self.table(), &object)
    }

    /// Takes a group of batches in, writes them, and says so.
    fn work(&self, journal: &mut Journal, group: Vec<Job>) {
        let sites = self.sites.load();
        let mut frames = Vec::new();
        for job in &group {
            for record in &job.records {
                let step = Step::of(record, &**sites);
                let is_news = {
                    let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
                    table.take(&step)
                };
                if is_news {
                    self.generation.fetch_add(1, Ordering::Release);
                    self.counts.add(record);
                    frames.push(Frame::Step(step));
                }
            }
            if let Some(passage) = job.passage {
                let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
                let before = table.applied();
                table.pass(passage);
                if table.applied() != before {
                    frames.push(Frame::Passage(passage));
                }
            }
        }
        let written = journal.append(frames, || self.table().to_bytes());
        let (applied, has_gap) = {
            let table = self.table();
            (table.applied(), table.has_gap())
        };
        if let Err(error) = &written {
            warn!(%error, "purges could not be written; they are in force, and not acknowledged");
        } else {
            self.applied.send_replace(applied);
        }
        if has_gap {
            self.gap.notify_one();
        }
        for Job {
            records,
            passage,
            done,
        } in group
        {
            self.recent().add(records, passage);
            let told = match &written {
                Ok(()) => Ok(applied),
                Err(error) => Err(NotApplied::Disk(error.to_string())),
            };
            // Whoever asked may have left.
            let _ = done.send(told);
        }
    }
}

impl Counts {
    fn add(&self, record: &Record) {
        use cluster::purge::Scope;
        for scope in &record.purge.scopes {
            let kind = match scope {
                Scope::Url(_) => 0,
                Scope::Prefix(_) => 1,
                Scope::Tag(_) => 2,
                Scope::All => 3,
            };
            self.0[kind].fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use cluster::purge::{Purge, Scope};
    use tempfile::tempdir;

    use super::*;

    fn record(seq: u64) -> Record {
        Record {
            at: Position { log: 7, seq },
            prev: seq - 1,
            purge: Purge {
                site: "a".into(),
                scopes: vec![Scope::All],
                soft: false,
            },
            taken_at: 0,
            by: String::new(),
        }
    }

    /// A node that is started anew while no control plane is there vouches for what it knows: not for purges that
    /// it knew when it was told that these are all, and has lost since.
    #[tokio::test]
    async fn nobody_vouches_for_purges_that_were_lost() {
        let dir = tempdir().unwrap();
        let started = || {
            let (purges, _) =
                Purges::open(dir.path(), 100, true, Arc::default(), Clock::system()).unwrap();
            purges
        };
        let vouches = || started().page(7, 0, 10).age_ms.is_some();
        assert!(!vouches());
        let purges = started();
        let records = (1..=2).map(record).collect();
        purges.apply(records, None).await.unwrap();
        purges.heard(purges.now_ms(), 0);
        purges.write_heard().await;
        assert!(vouches());
        // What comes later does not count against it.
        purges.apply(vec![record(3)], None).await.unwrap();
        assert!(vouches());

        let journal = dir.path().join("purges.log");
        let all = std::fs::read(&journal).unwrap();
        let mut bad = all.clone();
        bad[all.len() / 2] ^= 1;
        std::fs::write(&journal, bad).unwrap();
        assert!(!vouches(), "the second is damaged");
        std::fs::remove_file(&journal).unwrap();
        assert!(!vouches(), "all are gone");
        std::fs::write(&journal, &all).unwrap();
        assert!(vouches());
        // From before the place was written beside the moment.
        let now_ms = purges.now_ms().to_string();
        std::fs::write(dir.path().join(HEARD), now_ms).unwrap();
        assert!(!vouches(), "it does not say what was known");
    }
}
