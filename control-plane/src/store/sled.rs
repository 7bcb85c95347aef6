//! The embedded store. The only file that names sled.
//!
//! One thread has the database: it answers questions in the order in which they come, and takes commits
//! that come together to the disk together. Nothing is told to anybody, not even to who only reads,
//! before it is there.
//!
//! | key in sled | holds |
//! | --- | --- |
//! | `m/format`, `m/revision` | the version of this layout; the store's revision |
//! | `k/` key | the item's revision (8 bytes), its value |
//! | `r/` family, revision (8 bytes), key | nothing: finds items by revision |
//!
//! A commit is one batch, which sled applies whole or not at all. sled 0.34 is not maintained: it may fail
//! to open, or panic. What cannot be opened is set aside and the store begins anew, at revision 0; whoever
//! builds on the store must be able to tell that (the purge log has an identity, the sites a version that
//! never goes back).

use std::{
    collections::VecDeque,
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tracing::{error, info, warn};

use super::{
    Change, Committed, Condition, Item, News, PAGE_BYTES_MAX, Page, StoreError, WATCH_WAITING_MAX,
    family,
};

/// Version of the layout.
const FORMAT: u32 = 1;
const FORMAT_KEY: &[u8] = b"m/format";
const REVISION_KEY: &[u8] = b"m/revision";
const ITEMS: &[u8] = b"k/";
const REVISIONS: &[u8] = b"r/";

/// sled's page cache: what is read often is kept by who reads it.
const CACHE_BYTES: u64 = 16 << 20;
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
/// How often, and how long apart, to try again while the last owner's threads let go of the lock.
const LOCK_TRIES: u32 = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Attempts to open that did not end, before it is set aside: a process may also be killed while it opens.
const OPENINGS_MAX: usize = 3;
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
            history: History::new(database.revision),
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
                info!(revision = database.revision, "the store is open again");
                self.history = History::new(database.revision);
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

/// sled, and how the items lie in it.
struct Database {
    db: ::sled::Db,
    /// Of the last commit, on disk or not.
    revision: u64,
}

/// What went wrong in sled.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The system refuses; what is on disk may be good.
    #[error("{0}")]
    Io(io::Error),
    /// What is on disk makes no sense, or sled does not.
    #[error("{0}")]
    Damaged(String),
}

impl From<::sled::Error> for Failure {
    fn from(error: ::sled::Error) -> Self {
        match error {
            ::sled::Error::Io(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                Self::Io(error)
            }
            other => Self::Damaged(other.to_string()),
        }
    }
}

impl Database {
    /// Opens what is in `dir`; if it is damaged, sets it aside and begins anew.
    fn open_or_begin(dir: &Path) -> io::Result<Self> {
        let opened = match begun_openings(dir)? {
            tries if tries > OPENINGS_MAX => {
                let reason = format!("the last {OPENINGS_MAX} attempts to open it did not end");
                Err(Failure::Damaged(reason))
            }
            _ => Self::open(dir),
        };
        let opened = match opened {
            Err(Failure::Damaged(reason)) => {
                let aside = dir.with_extension("damaged");
                if aside.exists() {
                    fs::remove_dir_all(&aside)?;
                }
                fs::rename(dir, &aside)?;
                warn!(%reason, aside = %aside.display(),
                    "the store is damaged: set aside, and begun anew");
                Self::open(dir)
            }
            other => other,
        };
        match fs::remove_file(marker(dir)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        opened.map_err(|failure| match failure {
            Failure::Io(error) => error,
            Failure::Damaged(reason) => io::Error::other(reason),
        })
    }

    fn open(dir: &Path) -> Result<Self, Failure> {
        let config = ::sled::Config::new()
            .path(dir)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None);
        let mut tries = 0;
        let db = loop {
            match guarded(|| config.open()) {
                Err(Failure::Io(error))
                    if error.to_string().contains("could not acquire lock")
                        && tries < LOCK_TRIES =>
                {
                    tries += 1;
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "a store is opened on a thread that may block"
                    )]
                    thread::sleep(LOCK_PAUSE);
                }
                opened => break opened?,
            }
        };
        let mut database = Self { db, revision: 0 };
        match database.read(FORMAT_KEY)? {
            Some(found) if *found == FORMAT.to_be_bytes() => {}
            Some(_) => return Err(Failure::Damaged("written by another version".into())),
            None if !guarded(|| Ok(database.db.is_empty()))? => {
                return Err(Failure::Damaged("its format is not stated".into()));
            }
            None => {
                guarded(|| database.db.insert(FORMAT_KEY, &FORMAT.to_be_bytes()))?;
                database.flush()?;
            }
        }
        if let Some(revision) = database.read(REVISION_KEY)? {
            database.revision = number(&revision)?;
        }
        Ok(database)
    }

    fn close(self) {
        // Nothing can be done if even this fails.
        let _ = guarded(|| {
            drop(self.db);
            Ok(())
        });
    }

    fn read(&self, key: &[u8]) -> Result<Option<::sled::IVec>, Failure> {
        guarded(|| self.db.get(key))
    }

    fn get(&self, key: &str) -> Result<Option<Item>, Failure> {
        let found = self.read(&item_key(key))?;
        found.map(|value| item(key.to_owned(), &value)).transpose()
    }

    fn list(&self, prefix: &str, limit: usize, after: Option<&str>) -> Result<Page, Failure> {
        let all = item_key(prefix);
        let from = match after {
            // The first key behind it.
            Some(after) => [&item_key(after)[..], b"\0"].concat().max(all.clone()),
            None => all.clone(),
        };
        let mut page = self.page();
        let mut room = Room::new(limit);
        guarded_all(self.db.range(from..), |key, value| {
            if !key.starts_with(&all) {
                return Ok(false);
            }
            let item = item(text(&key[ITEMS.len()..])?, &value)?;
            page.more = !room.takes(&item);
            if !page.more {
                page.items.push(item);
            }
            Ok(!page.more)
        })?;
        Ok(page)
    }

    fn since(&self, prefix: &str, revision: u64, limit: usize) -> Result<Page, Failure> {
        let all = [REVISIONS, family(prefix).as_bytes()].concat();
        let Some(first) = revision.checked_add(1) else {
            return Ok(self.page());
        };
        let from = [&all[..], &first.to_be_bytes()].concat();
        let mut page = self.page();
        let mut room = Room::new(limit);
        guarded_all(self.db.range(from..), |key, _| {
            let Some(rest) = key.strip_prefix(&all[..]) else {
                return Ok(false);
            };
            let (at, name) = rest
                .split_at_checked(8)
                .ok_or_else(|| Failure::Damaged("a key is too short".into()))?;
            let (at, name) = (number(at)?, text(name)?);
            if !name.starts_with(prefix) {
                return Ok(true);
            }
            let found = self.get(&name)?;
            let item = found.filter(|item| item.revision == at);
            let item = item.ok_or_else(|| Failure::Damaged(format!("{name} is not at {at}")))?;
            // A commit is told as a whole: it has a bound of its own.
            let same = page.items.last().is_some_and(|last| last.revision == at);
            page.more = !room.takes(&item) && !same;
            if !page.more {
                page.items.push(item);
            }
            Ok(!page.more)
        })?;
        Ok(page)
    }

    fn page(&self) -> Page {
        Page {
            revision: self.revision,
            ..Page::default()
        }
    }

    /// Makes the changes, not yet on disk, and says whether there were any.
    fn commit(
        &mut self,
        conditions: &[Condition],
        changes: &[Change],
    ) -> Result<(Committed, bool), Failure> {
        for Condition { key, revision } in conditions {
            if self.revision_of(key)?.unwrap_or(0) != *revision {
                return Ok((Committed::Conflict, false));
            }
        }
        let next = self.revision + 1;
        let mut batch = ::sled::Batch::default();
        let mut changed = false;
        for change in changes {
            let key = change.key();
            let old = self.revision_of(key)?;
            if let Some(old) = old {
                batch.remove(revision_key(key, old));
            }
            match change {
                Change::Put { value, .. } => {
                    batch.insert(item_key(key), [&next.to_be_bytes(), &value[..]].concat());
                    batch.insert(revision_key(key, next), &[]);
                    changed = true;
                }
                Change::Delete { .. } if old.is_some() => {
                    batch.remove(item_key(key));
                    changed = true;
                }
                Change::Delete { .. } => {}
            }
        }
        if changed {
            batch.insert(REVISION_KEY, &next.to_be_bytes());
            guarded(|| self.db.apply_batch(batch))?;
            self.revision = next;
        }
        Ok((Committed::At(self.revision), changed))
    }

    fn revision_of(&self, key: &str) -> Result<Option<u64>, Failure> {
        let found = self.read(&item_key(key))?;
        found
            .map(|value| number(value.get(..8).unwrap_or_default()))
            .transpose()
    }

    fn flush(&self) -> Result<(), Failure> {
        guarded(|| self.db.flush().map(drop))
    }
}

/// How much a page still takes; it takes one item always.
struct Room {
    items: usize,
    bytes: usize,
    is_new: bool,
}

impl Room {
    fn new(items: usize) -> Self {
        Self {
            items,
            bytes: PAGE_BYTES_MAX,
            is_new: true,
        }
    }

    fn takes(&mut self, item: &Item) -> bool {
        let bytes = item.key.len() + item.value.len();
        let takes = self.is_new || (self.items > 0 && bytes <= self.bytes);
        self.is_new = false;
        if takes {
            self.items = self.items.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(bytes);
        }
        takes
    }
}

fn item_key(key: &str) -> Vec<u8> {
    [ITEMS, key.as_bytes()].concat()
}

fn revision_key(key: &str, revision: u64) -> Vec<u8> {
    let family = family(key).as_bytes();
    [REVISIONS, family, &revision.to_be_bytes(), key.as_bytes()].concat()
}

fn item(key: String, value: &[u8]) -> Result<Item, Failure> {
    let (revision, value) = value
        .split_at_checked(8)
        .ok_or_else(|| Failure::Damaged(format!("{key} holds no revision")))?;
    Ok(Item {
        key,
        value: Bytes::copy_from_slice(value),
        revision: number(revision)?,
    })
}

fn number(bytes: &[u8]) -> Result<u64, Failure> {
    let bytes = bytes.try_into();
    let bytes = bytes.map_err(|_| Failure::Damaged("a number has a wrong length".into()))?;
    Ok(u64::from_be_bytes(bytes))
}

fn text(bytes: &[u8]) -> Result<String, Failure> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Failure::Damaged("a key is not text".into()))
}

/// Calls into sled; a panic in there is an error here.
fn guarded<T>(call: impl FnOnce() -> ::sled::Result<T>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Failure::Damaged("sled panicked".into())),
    }
}

/// Hands what an iterator gives to `each`, for as long as that says so.
fn guarded_all(
    mut pairs: ::sled::Iter,
    mut each: impl FnMut(&[u8], ::sled::IVec) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    while let Some((key, value)) = guarded(|| pairs.next().transpose())? {
        if !each(&key, value)? {
            break;
        }
    }
    Ok(())
}

/// Stands beside the database while it is being opened, and counts: sled may also die in ways that no
/// handler catches, and then it must not be tried for ever.
fn marker(dir: &Path) -> PathBuf {
    dir.with_extension("opening")
}

/// Notes that an attempt to open begins, and says how many there have been that did not end, with this one.
fn begun_openings(dir: &Path) -> io::Result<usize> {
    let marker = marker(dir);
    let mut tries = match fs::read(&marker) {
        Ok(tries) => tries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    tries.push(b'.');
    fs::write(&marker, &tries)?;
    Ok(tries.len())
}
