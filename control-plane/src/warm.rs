//! Warming: jobs that have edges fetch URLs ahead of demand.
//!
//! The control plane pushes batches and reads what comes of them, as it will push purges: an edge keeps
//! nothing of a job, so there is nothing that its restart could lose, and to cancel is to hang up. What
//! is remembered is remembered here: the job from the moment it is acknowledged, and how far each node
//! is with it, at most `SAVE_EVERY` behind. After a restart of either side a job goes on from there;
//! what is fetched twice is found stored the second time.
//!
//! The edges of a job are those that were there when it was taken. One that is away has its share when
//! it is back, as long as the job lives.

pub mod job;
mod push;

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use cluster::{
    auth::Signer,
    clock::Clock,
    net::Net,
    node::{NodeId, Phase},
    wire::{WarmBatch, WarmState, WarmStatus},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::{info, warn};

use self::{
    job::{Job, Progress},
    push::Pusher,
};
use crate::{atlas::Atlas, data_dir::DataDir, error::StartError};

/// Most jobs that run at once: each is a connection to each of its edges.
pub const RUNNING_MAX: usize = 16;
/// Most jobs that are remembered; of those that have ended, the oldest go first.
pub const KEPT_MAX: usize = 64;
/// How long a job lives: an edge that is away for longer has other things to catch up with.
pub const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How often progress is written down: what a crash makes edges look up once more.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// First pause after an edge did not take a batch; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

const PREFIX: &str = "warm-";
const JOB_SUFFIX: &str = ".json";
const PROGRESS_SUFFIX: &str = ".progress.json";

/// All jobs. Cheap to clone.
#[derive(Clone)]
pub struct Warming(Arc<Inner>);

struct Inner {
    dir: Arc<DataDir>,
    clock: Clock,
    jobs: Mutex<BTreeMap<String, Arc<Record>>>,
    /// There is a job that nobody works at.
    taken: Notify,
}

/// A job, and how it stands.
struct Record {
    job: Job,
    state: watch::Sender<WarmState>,
    run: Mutex<Run>,
}

#[derive(Default)]
struct Run {
    nodes: BTreeMap<NodeId, Progress>,
    troubles: BTreeMap<NodeId, String>,
    /// Whether it is in the hands of [`Warming::run`].
    is_worked_at: bool,
    /// Whether there is something to write down.
    is_unsaved: bool,
}

/// How a job stands, as it is written down.
#[derive(Serialize, Deserialize)]
struct Saved {
    state: WarmState,
    nodes: BTreeMap<NodeId, Progress>,
}

/// Why a job was not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// There are enough.
    #[error("{RUNNING_MAX} jobs are running: wait for one to end, or cancel one")]
    TooMany,
    /// It could not be written down.
    #[error("the job could not be written down: {0}")]
    Disk(io::Error),
}

impl Warming {
    /// The jobs that the data directory knows. A file that is damaged is set aside. Blocks.
    ///
    /// # Errors
    ///
    /// The directory cannot be read.
    pub fn open(dir: Arc<DataDir>, clock: Clock) -> Result<Self, StartError> {
        let failed = |source| StartError::File {
            name: "warm-*.json",
            source,
        };
        let mut jobs = BTreeMap::new();
        for name in dir.names().map_err(failed)? {
            let id = name
                .strip_prefix(PREFIX)
                .and_then(|rest| rest.strip_suffix(JOB_SUFFIX))
                .filter(|id| !id.contains('.'));
            let Some(id) = id else { continue };
            let Some(job) = parsed::<Job>(&dir, &name).map_err(failed)? else {
                continue;
            };
            let saved = parsed::<Saved>(&dir, &progress_file(id)).map_err(failed)?;
            jobs.insert(id.to_owned(), Arc::new(Record::new(job, saved)));
        }
        Ok(Self(Arc::new(Inner {
            dir,
            clock,
            jobs: Mutex::new(jobs),
            taken: Notify::new(),
        })))
    }

    /// Takes a job for these URLs and nodes. When this returns, it survives a crash.
    ///
    /// # Errors
    ///
    /// It was not taken.
    pub async fn take(
        &self,
        site: String,
        urls: Vec<String>,
        nodes: Vec<NodeId>,
    ) -> Result<WarmStatus, NotTaken> {
        let now = self.0.clock.unix_ms();
        let (record, forgotten) = {
            let mut jobs = self.jobs();
            if jobs.values().filter(|record| record.is_running()).count() >= RUNNING_MAX {
                return Err(NotTaken::TooMany);
            }
            let mut forgotten = Vec::new();
            while jobs.len() >= KEPT_MAX {
                let ended = jobs.values().filter(|record| !record.is_running());
                let Some(oldest) = ended.min_by_key(|record| record.job.taken_at) else {
                    break;
                };
                let id = oldest.job.id.clone();
                jobs.remove(&id);
                forgotten.push(id);
            }
            // Two in one millisecond have two names.
            let id = (now..)
                .map(|number| format!("{number:x}"))
                .find(|id| !jobs.contains_key(id))
                .expect("fewer jobs than numbers");
            let job = Job {
                id: id.clone(),
                site,
                urls,
                nodes,
                taken_at: now,
                expires_at: now + u64::try_from(LIFETIME.as_millis()).unwrap_or(u64::MAX),
            };
            let record = Arc::new(Record::new(job, None));
            // Nobody works at it before it is written down.
            record.run().is_worked_at = true;
            jobs.insert(id, record.clone());
            (record, forgotten)
        };
        let written = self.blocking({
            let record = record.clone();
            move |dir| {
                for id in forgotten {
                    remove(dir, &id);
                }
                write(dir, &job_file(&record.job.id), &record.job)
            }
        });
        if let Err(error) = written.await {
            self.jobs().remove(&record.job.id);
            return Err(NotTaken::Disk(error));
        }
        let (id, site) = (&record.job.id, &record.job.site);
        info!(%id, %site, urls = record.job.urls.len(), nodes = record.job.nodes.len(), "warming job taken");
        record.run().is_worked_at = false;
        self.0.taken.notify_one();
        Ok(record.status())
    }

    /// How the job of this name stands.
    pub fn status(&self, id: &str) -> Option<WarmStatus> {
        Some(self.record(id)?.status())
    }

    /// How all jobs stand, the newest first; without their failures.
    pub fn statuses(&self) -> Vec<WarmStatus> {
        let mut all: Vec<_> = self.jobs().values().map(|record| record.status()).collect();
        all.sort_by_key(|status| std::cmp::Reverse(status.taken_at));
        let nodes = all.iter_mut().flat_map(|status| &mut status.nodes);
        nodes.for_each(|node| node.failures.clear());
        all
    }

    /// Ends a job; one that has ended stays as it is. Fetches that edges are at go on. When this
    /// returns, it stays cancelled after a crash.
    ///
    /// # Errors
    ///
    /// It could not be written down, and may run again after a restart.
    pub async fn cancel(&self, id: &str) -> io::Result<Option<WarmStatus>> {
        let Some(record) = self.record(id) else {
            return Ok(None);
        };
        record.end(WarmState::Cancelled);
        self.save(&record).await?;
        Ok(Some(record.status()))
    }

    /// Works at all jobs, and writes their progress down, until it is dropped.
    pub async fn run(self, atlas: watch::Receiver<Arc<Atlas>>, net: Arc<dyn Net>, signer: Signer) {
        let clock = self.0.clock.clone();
        let pusher = Pusher { net, signer, clock };
        let mut work = JoinSet::new();
        let mut ticks = interval(SAVE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.0.taken.notified() => {}
                _ = ticks.tick() => self.save_all().await,
            }
            while work.try_join_next().is_some() {}
            let records: Vec<_> = self.jobs().values().cloned().collect();
            for record in records {
                if record.is_running() && !std::mem::replace(&mut record.run().is_worked_at, true) {
                    work.spawn(drive(record, atlas.clone(), pusher.clone()));
                }
            }
        }
    }

    /// Writes down what has not been.
    pub async fn save_all(&self) {
        let records: Vec<_> = self.jobs().values().cloned().collect();
        for record in records {
            if let Err(error) = self.save(&record).await {
                warn!(id = record.job.id, %error, "progress of a warming job could not be written down");
            }
        }
    }

    async fn save(&self, record: &Arc<Record>) -> io::Result<()> {
        let Some(saved) = record.unsaved() else {
            return Ok(());
        };
        let file = progress_file(&record.job.id);
        let written = self.blocking(move |dir| write(dir, &file, &saved)).await;
        if written.is_err() {
            record.run().is_unsaved = true;
        }
        written
    }

    async fn blocking(
        &self,
        work: impl FnOnce(&DataDir) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let dir = self.0.dir.clone();
        tokio::task::spawn_blocking(move || work(&dir))
            .await
            .map_err(io::Error::other)?
    }

    fn record(&self, id: &str) -> Option<Arc<Record>> {
        self.jobs().get(id).cloned()
    }

    fn jobs(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Record>>> {
        self.0
            .jobs
            .lock()
            .expect("no code panics while it holds this lock")
    }
}

impl fmt::Debug for Warming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Warming").finish_non_exhaustive()
    }
}

impl Record {
    fn new(job: Job, saved: Option<Saved>) -> Self {
        let saved = saved.unwrap_or(Saved {
            state: WarmState::Running,
            nodes: BTreeMap::new(),
        });
        let run = Run {
            nodes: saved.nodes,
            ..Run::default()
        };
        Self {
            job,
            state: watch::Sender::new(saved.state),
            run: Mutex::new(run),
        }
    }

    fn run(&self) -> MutexGuard<'_, Run> {
        self.run
            .lock()
            .expect("no code panics while it holds this lock")
    }

    fn is_running(&self) -> bool {
        *self.state.borrow() == WarmState::Running
    }

    /// It runs no more; the first reason stays.
    fn end(&self, state: WarmState) {
        let ends = self.state.send_if_modified(|now| {
            let ends = *now == WarmState::Running;
            if ends {
                *now = state;
            }
            ends
        });
        if ends {
            let mut run = self.run();
            run.troubles.clear();
            run.is_unsaved = true;
            info!(id = self.job.id, ?state, "warming job has ended");
        }
    }

    fn trouble(&self, node: &NodeId, trouble: Option<String>) {
        let mut run = self.run();
        match trouble {
            Some(trouble) if self.is_running() => run.troubles.insert(node.clone(), trouble),
            _ => run.troubles.remove(node),
        };
    }

    /// What is to be written down, if anything.
    fn unsaved(&self) -> Option<Saved> {
        let mut run = self.run();
        std::mem::take(&mut run.is_unsaved).then(|| Saved {
            state: *self.state.borrow(),
            nodes: run.nodes.clone(),
        })
    }

    fn status(&self) -> WarmStatus {
        let job = &self.job;
        let run = self.run();
        let nodes = job.nodes.iter().map(|node| {
            let trouble = run.troubles.get(node).cloned();
            let progress = run.nodes.get(node).cloned().unwrap_or_default();
            progress.told(node.clone(), trouble)
        });
        WarmStatus {
            id: job.id.clone(),
            site: job.site.clone(),
            state: *self.state.borrow(),
            urls: job.urls.len(),
            taken_at: job.taken_at,
            expires_at: job.expires_at,
            nodes: nodes.collect(),
        }
    }
}

/// Works at one job until it ends, for whatever reason.
async fn drive(record: Arc<Record>, atlas: watch::Receiver<Arc<Atlas>>, pusher: Pusher) {
    let left_ms = record.job.expires_at.saturating_sub(pusher.clock.unix_ms());
    let mut nodes = JoinSet::new();
    for node in record.job.nodes.clone() {
        nodes.spawn(serve(record.clone(), node, atlas.clone(), pusher.clone()));
    }
    let all = async { while nodes.join_next().await.is_some() {} };
    let mut state = record.state.subscribe();
    let ends = tokio::select! {
        biased;
        _ = state.wait_for(|state| *state != WarmState::Running) => return,
        () = all => WarmState::Done,
        () = sleep(Duration::from_millis(left_ms)) => WarmState::Expired,
    };
    record.end(ends);
}

/// Hands one node its share, batch by batch.
async fn serve(
    record: Arc<Record>,
    node: NodeId,
    mut atlas: watch::Receiver<Arc<Atlas>>,
    pusher: Pusher,
) {
    let mut pause = RETRY_MIN;
    let urls = &record.job.urls;
    loop {
        let next = {
            let mut run = record.run();
            run.nodes.entry(node.clone()).or_default().next(urls.len())
        };
        if next.is_empty() {
            return record.trouble(&node, None);
        }
        let Some(at) = address(&atlas.borrow(), &node) else {
            record.trouble(
                &node,
                Some("is not ready, or not in the cluster now".into()),
            );
            // Where nobody tells any more who is there, all of this is about to end.
            if atlas.changed().await.is_err() {
                return;
            }
            continue;
        };
        let batch = WarmBatch {
            site: record.job.site.clone(),
            urls: next.iter().map(|index| urls[*index].clone()).collect(),
        };
        let mut news = false;
        let pushed = pusher.push(&node, &at, &batch, |step| {
            let Some(index) = next.get(step.url).copied() else {
                return;
            };
            let mut run = record.run();
            let progress = run.nodes.entry(node.clone()).or_default();
            if progress.settle(index, &urls[index], step.result) {
                (run.is_unsaved, news) = (true, true);
                run.troubles.remove(&node);
            }
        });
        let pushed = pushed.await;
        if news {
            pause = RETRY_MIN;
        }
        let trouble = match pushed {
            Ok(()) if news => continue,
            Ok(()) => "had nothing to say".to_owned(),
            Err(trouble) => trouble,
        };
        record.trouble(&node, Some(trouble));
        sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

/// The peer listener of `node`, if it takes work.
fn address(atlas: &Atlas, node: &NodeId) -> Option<String> {
    let seat = atlas.seat(node)?;
    (seat.node.phase == Phase::Ready && !seat.node.peer.is_empty()).then(|| seat.node.peer.clone())
}

fn job_file(id: &str) -> String {
    format!("{PREFIX}{id}{JOB_SUFFIX}")
}

fn progress_file(id: &str) -> String {
    format!("{PREFIX}{id}{PROGRESS_SUFFIX}")
}

fn parsed<T: for<'de> Deserialize<'de>>(dir: &DataDir, name: &str) -> io::Result<Option<T>> {
    let Some(bytes) = dir.read(name)? else {
        return Ok(None);
    };
    match serde_json::from_slice(&bytes) {
        Ok(parsed) => Ok(Some(parsed)),
        Err(error) => {
            let aside = dir.set_aside(name)?;
            warn!(%error, aside = %aside.display(), "a file of a warming job is damaged, set aside");
            Ok(None)
        }
    }
}

fn write(dir: &DataDir, name: &str, what: &impl Serialize) -> io::Result<()> {
    dir.write(name, &serde_json::to_vec(what)?)
}

/// Forgets a job's files, the progress last: without it, the job would begin anew at the next start.
fn remove(dir: &DataDir, id: &str) {
    let removed = dir
        .remove(&job_file(id))
        .and_then(|()| dir.remove(&progress_file(id)));
    if let Err(error) = removed {
        warn!(id, %error, "the files of a warming job could not be removed");
    }
}
