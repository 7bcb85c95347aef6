//! The embedded store: one thread has the database. It answers questions in the order in which they come,
//! and takes commits that come together to the disk together. Nothing is told to anybody, not even to who
//! only reads, before it is there.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tracing::{error, info};

use super::{
    Change, Committed, Condition, Item, News, Page, StoreError, WATCH_WAITING_MAX,
    sled::{Database, Failure},
};

/// Questions that may wait for the thread; who asks waits with them.
const WAITING_MAX: usize = 256;
/// Most questions that are answered between two flushes: what one crowd may cost its first.
const GROUP_MAX: usize = 64;
/// Commits that are remembered for who begins to watch behind them, ...
const HISTORY_MAX: usize = 1_024;
/// ... and the bytes that they may have.
const HISTORY_BYTES_MAX: usize = 8 << 20;
/// Most watches at once: some per part of this process.
const WATCHES_MAX: usize = 64;
/// How long a store that failed is left alone before it is opened again.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// The embedded store. Cheap to clone; it is closed when the last clone is dropped.
#[derive(Clone)]
pub(super) struct Embedded(mpsc::Sender<Asked>);

/// A question, and where its answer goes.
enum Asked {
    Get(String, Answer<Option<Item>>),
    List {
        prefix: String,
        limit: usize,
        after: Option<String>,
        answer: Answer<Page>,
    },
    Since {
        prefix: String,
        revision: u64,
        limit: usize,
        answer: Answer<Page>,
    },
    Commit(Vec<Condition>, Vec<Change>, Answer<Committed>),
    Watch(String, u64, Answer<mpsc::Receiver<News>>),
}

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

impl Embedded {
    /// Opens the store in `dir`, and starts the thread that has it. Blocks.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let database = Database::open_or_begin(dir)?;
        let (questions, asked) = mpsc::channel(WAITING_MAX);
        let keeper = Keeper {
            history: History::new(database.revision()),
            database: Some(database),
            dir: dir.to_owned(),
            failed_at: None,
            unsaved: Vec::new(),
            watchers: Vec::new(),
        };
        thread::Builder::new()
            .name("store".into())
            .spawn(move || keeper.run(asked))?;
        Ok(Self(questions))
    }

    pub(super) async fn get(&self, key: &str) -> Result<Option<Item>, StoreError> {
        self.ask(|answer| Asked::Get(key.to_owned(), answer)).await
    }

    pub(super) async fn list(
        &self,
        prefix: &str,
        limit: usize,
        after: Option<&str>,
    ) -> Result<Page, StoreError> {
        self.ask(|answer| Asked::List {
            prefix: prefix.to_owned(),
            limit,
            after: after.map(str::to_owned),
            answer,
        })
        .await
    }

    pub(super) async fn since(
        &self,
        prefix: &str,
        revision: u64,
        limit: usize,
    ) -> Result<Page, StoreError> {
        self.ask(|answer| Asked::Since {
            prefix: prefix.to_owned(),
            revision,
            limit,
            answer,
        })
        .await
    }

    pub(super) async fn commit(
        &self,
        conditions: Vec<Condition>,
        changes: Vec<Change>,
    ) -> Result<Committed, StoreError> {
        self.ask(|answer| Asked::Commit(conditions, changes, answer))
            .await
    }

    pub(super) async fn watch(
        &self,
        prefix: &str,
        from: u64,
    ) -> Result<mpsc::Receiver<News>, StoreError> {
        self.ask(|answer| Asked::Watch(prefix.to_owned(), from, answer))
            .await
    }

    async fn ask<T>(&self, question: impl FnOnce(Answer<T>) -> Asked) -> Result<T, StoreError> {
        let gone = || StoreError::Failed("its thread has ended".into());
        let (answer, answered) = oneshot::channel();
        let sent = self.0.send(question(answer)).await;
        sent.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

/// What the thread has.
struct Keeper {
    /// `None` after it failed.
    database: Option<Database>,
    dir: PathBuf,
    failed_at: Option<Instant>,
    history: History,
    /// Commits that are not on disk yet.
    unsaved: Vec<Unsaved>,
    watchers: Vec<Watcher>,
}

struct Unsaved {
    committed: Committed,
    changes: Vec<Change>,
    answer: Answer<Committed>,
}

struct Watcher {
    prefix: String,
    news: mpsc::Sender<News>,
}

impl Keeper {
    fn run(mut self, mut asked: mpsc::Receiver<Asked>) {
        while let Some(first) = asked.blocking_recv() {
            self.reopen();
            let mut next = Some(first);
            let mut taken = 0;
            while let Some(question) = next {
                self.answer(question);
                taken += 1;
                next = (taken < GROUP_MAX).then(|| asked.try_recv().ok()).flatten();
            }
            self.save();
        }
        if let Some(database) = self.database {
            database.close();
        }
    }

    fn answer(&mut self, question: Asked) {
        match question {
            Asked::Commit(conditions, changes, answer) => self.commit(conditions, changes, answer),
            // Who asks no longer waits for the answer when sending it fails.
            Asked::Get(key, answer) => drop(answer.send(self.read(|db| db.get(&key)))),
            Asked::List {
                prefix,
                limit,
                after,
                answer,
            } => drop(answer.send(self.read(|db| db.list(&prefix, limit, after.as_deref())))),
            Asked::Since {
                prefix,
                revision,
                limit,
                answer,
            } => drop(answer.send(self.read(|db| db.since(&prefix, revision, limit)))),
            Asked::Watch(prefix, from, answer) => {
                self.save();
                drop(answer.send(self.watch(prefix, from)));
            }
        }
    }

    fn read<T>(
        &mut self,
        read: impl FnOnce(&Database) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        self.save();
        let done = read(self.database.as_ref().ok_or_else(unavailable)?);
        done.map_err(|failure| self.fail(failure))
    }

    fn commit(
        &mut self,
        conditions: Vec<Condition>,
        changes: Vec<Change>,
        answer: Answer<Committed>,
    ) {
        let Some(database) = &mut self.database else {
            return drop(answer.send(Err(unavailable())));
        };
        match database.commit(&conditions, &changes) {
            Ok((Committed::Conflict, _)) => {
                // What it conflicts with may be among them.
                self.save();
                drop(answer.send(Ok(Committed::Conflict)));
            }
            Ok((committed, changed)) => self.unsaved.push(Unsaved {
                committed,
                changes: if changed { changes } else { Vec::new() },
                answer,
            }),
            Err(failure) => {
                let error = self.fail(failure);
                drop(answer.send(Err(error)));
            }
        }
    }

    /// Takes to the disk what was committed, and tells everybody.
    fn save(&mut self) {
        if self.unsaved.is_empty() {
            return;
        }
        let saved = match &self.database {
            Some(database) => database.flush(),
            None => return self.unsaved.clear(),
        };
        if let Err(failure) = saved {
            self.fail(failure);
            return;
        }
        for Unsaved {
            committed,
            changes,
            answer,
        } in std::mem::take(&mut self.unsaved)
        {
            if let Committed::At(revision) = committed
                && !changes.is_empty()
            {
                self.watchers
                    .retain(|watcher| watcher.tell(revision, &changes));
                self.history.push(revision, changes);
            }
            drop(answer.send(Ok(committed)));
        }
    }

    fn watch(&mut self, prefix: String, from: u64) -> Result<mpsc::Receiver<News>, StoreError> {
        if self.database.is_none() {
            return Err(unavailable());
        }
        self.watchers.retain(|watcher| !watcher.news.is_closed());
        if self.watchers.len() >= WATCHES_MAX {
            let reason = format!("{WATCHES_MAX} watches are enough");
            return Err(StoreError::Refused(reason));
        }
        // One place more, for the word that something was missed.
        let (news, watch) = mpsc::channel(WATCH_WAITING_MAX + 1);
        let watcher = Watcher { prefix, news };
        let is_known = (self.history.complete_after..=self.history.revision).contains(&from);
        let mut told = self
            .history
            .commits
            .iter()
            .filter(|(revision, _)| *revision > from);
        if !is_known {
            drop(watcher.news.try_send(News::Reset));
        } else if told.all(|(revision, changes)| watcher.tell(*revision, changes)) {
            self.watchers.push(watcher);
        }
        Ok(watch)
    }

    /// Lets go of a database that failed. Commits that were under way may be found when it is opened
    /// again, or not; who watches must look.
    fn fail(&mut self, failure: Failure) -> StoreError {
        error!(%failure, "the store failed; it is opened again");
        let failed = StoreError::Failed(failure.to_string());
        if let Some(database) = self.database.take() {
            database.close();
        }
        self.failed_at = Some(Instant::now());
        for unsaved in self.unsaved.drain(..) {
            drop(unsaved.answer.send(Err(failed.clone())));
        }
        for watcher in self.watchers.drain(..) {
            drop(watcher.news.try_send(News::Reset));
        }
        failed
    }

    fn reopen(&mut self) {
        let Some(failed_at) = self.failed_at else {
            return;
        };
        if failed_at.elapsed() < REOPEN_PAUSE {
            return;
        }
        match Database::open_or_begin(&self.dir) {
            Ok(database) => {
                info!(revision = database.revision(), "the store is open again");
                self.history = History::new(database.revision());
                self.database = Some(database);
                self.failed_at = None;
            }
            Err(error) => {
                error!(%error, "the store cannot be opened");
                self.failed_at = Some(Instant::now());
            }
        }
    }
}

fn unavailable() -> StoreError {
    StoreError::Failed("its disk refused; see the log".into())
}

impl Watcher {
    /// Tells of a commit what is below the prefix. False: this one is not to be told anything any more.
    fn tell(&self, revision: u64, changes: &[Change]) -> bool {
        let below = changes
            .iter()
            .filter(|change| change.key().starts_with(&self.prefix));
        let changes: Vec<_> = below.cloned().collect();
        if changes.is_empty() {
            return !self.news.is_closed();
        }
        let is_last_place = self.news.capacity() <= 1;
        let news = match is_last_place {
            true => News::Reset,
            false => News::Commit { revision, changes },
        };
        self.news.try_send(news).is_ok() && !is_last_place
    }
}

/// The last commits, for who begins to watch behind them.
struct History {
    commits: VecDeque<(u64, Vec<Change>)>,
    bytes: usize,
    /// All commits after this revision are here.
    complete_after: u64,
    /// The last revision.
    revision: u64,
}

impl History {
    fn new(revision: u64) -> Self {
        Self {
            commits: VecDeque::new(),
            bytes: 0,
            complete_after: revision,
            revision,
        }
    }

    fn push(&mut self, revision: u64, changes: Vec<Change>) {
        self.revision = revision;
        self.bytes += bytes(&changes);
        self.commits.push_back((revision, changes));
        while self.commits.len() > HISTORY_MAX || self.bytes > HISTORY_BYTES_MAX {
            let Some((revision, changes)) = self.commits.pop_front() else {
                break;
            };
            self.bytes -= bytes(&changes);
            self.complete_after = revision;
        }
    }
}

fn bytes(changes: &[Change]) -> usize {
    let bytes = |change: &Change| match change {
        Change::Put { key, value } => key.len() + value.len(),
        Change::Delete { key } => key.len(),
    };
    changes.iter().map(bytes).sum()
}
