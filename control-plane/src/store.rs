//! The store: a small transactional map with one counter of revisions, in which a control plane keeps what
//! it answers for. Made after etcd's third API, so that etcd can stand in for the embedded one.
//!
//! Every commit that changes something takes the next *revision*; an item knows the one that it was last
//! changed by. What a commit says is on disk before it is acknowledged. Keys are text of the form
//! `family/rest`; `purges/` and `sites/` are families, and nobody writes into somebody else's.
//!
//! Who wants to follow a family lists it, notes the revision of the *first* page, and watches from there.

mod embedded;
mod etcd;
mod sled;

use std::{
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use cluster::net::Net;
use tokio::sync::mpsc;

pub use self::etcd::EtcdConfig;
use crate::{config::StoreAddress, data_dir::DataDir, error::StartError};

/// The embedded store's part of the data directory.
const DIRECTORY: &str = "store";
/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 512;
/// Largest value, in bytes: etcd takes requests of 1.5 MiB.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Most conditions, and most changes, of one commit: etcd takes 128, one of which marks the commit.
pub const COMMIT_MAX: usize = 127;
/// Most bytes of all keys and values of one commit.
pub const COMMIT_BYTES_MAX: usize = VALUE_BYTES_MAX + (VALUE_BYTES_MAX >> 2);
/// Most items of one page.
pub const PAGE_MAX: usize = 1_000;
/// A page ends once it has this many bytes.
pub const PAGE_BYTES_MAX: usize = 4 << 20;
/// News that may wait for who watches; who falls further behind is told to begin anew.
pub const WATCH_WAITING_MAX: usize = 1_024;

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Bytes,
    /// The revision of the commit that put it.
    pub revision: u64,
}

/// Some items.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In the order that was asked for.
    pub items: Vec<Item>,
    /// The store's revision when the page was made: all commits up to it are in, none after it.
    pub revision: u64,
    /// Whether there are further ones.
    pub more: bool,
}

/// What a commit does to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It holds this from now on.
    Put {
        /// The key.
        key: String,
        /// What it holds.
        value: Bytes,
    },
    /// It holds nothing from now on; nothing happens if it held nothing.
    Delete {
        /// The key.
        key: String,
    },
}

impl Change {
    /// `key` holds `value` from now on.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self::Put {
            key: key.into(),
            value: value.into(),
        }
    }

    /// `key` holds nothing from now on.
    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// How long it is, as the store counts it.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value } => key.len() + value.len(),
            Self::Delete { key } => key.len(),
        }
    }

    /// The key that it changes.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// What must hold for a commit to happen: the key was last put by this revision; 0: it holds nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The key.
    pub key: String,
    /// The revision of its item.
    pub revision: u64,
}

impl Condition {
    /// `key` was last put by `revision`; 0: it holds nothing.
    pub fn at(key: impl Into<String>, revision: u64) -> Self {
        Self {
            key: key.into(),
            revision,
        }
    }

    /// `key` holds nothing.
    pub fn absent(key: impl Into<String>) -> Self {
        Self::at(key, 0)
    }
}

/// What became of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// It happened as this revision, and is on disk. One that changed nothing (no changes, or only
    /// deletions of what was not there) took no revision, and this is the store's.
    At(u64),
    /// A condition does not hold; nothing was changed.
    Conflict,
}

/// What who watches is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A commit: all that it changed below the prefix, in the order in which it was asked for.
    /// Deletions of what was not there may be among them.
    Commit {
        /// Its revision.
        revision: u64,
        /// What it changed; not empty.
        changes: Vec<Change>,
    },
    /// Something was missed: list, and watch anew. Nothing comes after it.
    Reset,
}

/// Follows the commits below a prefix. Dropping it ends that.
#[derive(Debug)]
pub struct Watch(mpsc::Receiver<News>);

impl Watch {
    /// The next news, in the order of their revisions; [`News::Reset`] also when the store is gone.
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> News {
        self.0.recv().await.unwrap_or(News::Reset)
    }
}

/// Why the store did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// What was asked for is beyond a bound, or no key; nothing was changed.
    #[error("the store takes no such thing: {0}")]
    Refused(String),
    /// It cannot be reached, or its disk refuses. A commit may have happened or not: ask, or do it again.
    #[error("the store failed: {0}")]
    Failed(String),
}

/// Whether the store did what it was last asked for. A clone-able handle.
#[derive(Clone, Debug, Default)]
struct Health {
    is_away: Arc<AtomicBool>,
}

impl Health {
    /// Notes what came of a question or a change.
    fn note(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Relaxed);
    }
}

/// A store. Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub struct Store {
    kind: Kind,
    health: Health,
}

#[derive(Clone)]
enum Kind {
    Embedded(embedded::Embedded),
    Etcd(etcd::Etcd),
}

impl Store {
    /// The store that the configuration names.
    ///
    /// # Errors
    ///
    /// It cannot be opened, or does not answer within half a minute.
    pub async fn open(
        address: &StoreAddress,
        dir: &DataDir,
        net: Arc<dyn Net>,
    ) -> Result<Self, StartError> {
        match address {
            StoreAddress::Embedded => {
                let dir = dir.part(DIRECTORY);
                tokio::task::spawn_blocking(move || Self::embedded(&dir))
                    .await
                    .expect("opening neither panics nor is aborted")
            }
            StoreAddress::Etcd(config) => Ok(Self::etcd(config.clone(), net).await?),
        }
    }

    /// The store in etcd.
    ///
    /// # Errors
    ///
    /// It does not let us in, or does not answer within half a minute.
    pub async fn etcd(config: EtcdConfig, net: Arc<dyn Net>) -> Result<Self, StoreError> {
        let health = Health::default();
        let etcd = etcd::Etcd::open(config, net, health.clone()).await?;
        Ok(Self {
            kind: Kind::Etcd(etcd),
            health,
        })
    }

    /// The store in `dir`, which is made if it is not there; one that is damaged is set aside. Blocks.
    ///
    /// # Errors
    ///
    /// The disk refuses, or another process uses it.
    pub fn embedded(dir: &Path) -> Result<Self, StartError> {
        let embedded = embedded::Embedded::open(dir).map_err(StartError::Store)?;
        Ok(Self {
            kind: Kind::Embedded(embedded),
            health: Health::default(),
        })
    }

    /// Whether it fails: it cannot be reached, or its disk refuses.
    pub fn is_away(&self) -> bool {
        self.health.is_away.load(Ordering::Relaxed)
    }

    fn noted<T>(&self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        self.health.note(matches!(done, Err(StoreError::Failed(_))));
        done
    }

    /// What `key` holds.
    ///
    /// # Errors
    ///
    /// It is no key, or the store failed.
    pub async fn get(&self, key: &str) -> Result<Option<Item>, StoreError> {
        check_key(key)?;
        self.noted(match &self.kind {
            Kind::Embedded(store) => store.get(key).await,
            Kind::Etcd(store) => store.get(key).await,
        })
    }

    /// Items whose keys begin with `prefix` (`family/…`), by their keys, those behind the key `after`
    /// only; at most `limit`, and at most [`PAGE_MAX`]. Pages that follow each other may be of different
    /// revisions.
    ///
    /// # Errors
    ///
    /// The prefix is none, or the store failed.
    pub async fn list(
        &self,
        prefix: &str,
        limit: usize,
        after: Option<&str>,
    ) -> Result<Page, StoreError> {
        check_key(prefix)?;
        let limit = limit.clamp(1, PAGE_MAX);
        self.noted(match &self.kind {
            Kind::Embedded(store) => store.list(prefix, limit, after).await,
            Kind::Etcd(store) => store.list(prefix, limit, after).await,
        })
    }

    /// Items whose keys begin with `prefix` and that were put after `revision`, in the order of their
    /// revisions, those of one commit by their keys; at most `limit`, and at most [`PAGE_MAX`], but never
    /// a part of a commit. What was deleted is not told.
    ///
    /// # Errors
    ///
    /// The prefix is none, or the store failed.
    pub async fn since(
        &self,
        prefix: &str,
        revision: u64,
        limit: usize,
    ) -> Result<Page, StoreError> {
        check_key(prefix)?;
        let limit = limit.clamp(1, PAGE_MAX);
        self.noted(match &self.kind {
            Kind::Embedded(store) => store.since(prefix, revision, limit).await,
            Kind::Etcd(store) => store.since(prefix, revision, limit).await,
        })
    }

    /// Makes all of `changes`, if all of `conditions` hold; else none. When this returns, it is on disk.
    /// A key is changed once at most.
    ///
    /// # Errors
    ///
    /// It is beyond a bound, or the store failed.
    pub async fn commit(
        &self,
        conditions: Vec<Condition>,
        changes: Vec<Change>,
    ) -> Result<Committed, StoreError> {
        check_commit(&conditions, &changes)?;
        self.noted(match &self.kind {
            Kind::Embedded(store) => store.commit(conditions, changes).await,
            Kind::Etcd(store) => store.commit(conditions, changes).await,
        })
    }

    /// Follows the commits after the revision `from` that change something below `prefix`.
    ///
    /// # Errors
    ///
    /// The prefix is none, or the store failed.
    pub async fn watch(&self, prefix: &str, from: u64) -> Result<Watch, StoreError> {
        check_key(prefix)?;
        self.noted(match &self.kind {
            Kind::Embedded(store) => store.watch(prefix, from).await.map(Watch),
            Kind::Etcd(store) => store.watch(prefix, from).await.map(Watch),
        })
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.kind {
            Kind::Embedded(_) => "Store(embedded)",
            Kind::Etcd(_) => "Store(etcd)",
        })
    }
}

/// What a key begins with, the slash included: the store finds by it what was put lately.
fn family(key: &str) -> &str {
    key.split_inclusive('/').next().unwrap_or_default()
}

fn check_key(key: &str) -> Result<(), StoreError> {
    let family = family(key);
    let named = family
        .strip_suffix('/')
        .is_some_and(|name| !name.is_empty());
    if key.len() <= KEY_BYTES_MAX && named && !key.contains('\0') {
        return Ok(());
    }
    let told: String = key.chars().take(80).collect();
    Err(StoreError::Refused(format!(
        "a key is family/rest, at most {KEY_BYTES_MAX} bytes, not {told:?}"
    )))
}

fn check_commit(conditions: &[Condition], changes: &[Change]) -> Result<(), StoreError> {
    let refused = |reason: String| Err(StoreError::Refused(reason));
    if conditions.len() > COMMIT_MAX || changes.len() > COMMIT_MAX {
        return refused(format!(
            "at most {COMMIT_MAX} conditions and {COMMIT_MAX} changes"
        ));
    }
    let mut bytes = 0;
    for condition in conditions {
        check_key(&condition.key)?;
        bytes += condition.key.len();
    }
    for (n, change) in changes.iter().enumerate() {
        check_key(change.key())?;
        bytes += change.bytes();
        if let Change::Put { key, value } = change
            && value.len() > VALUE_BYTES_MAX
        {
            return refused(format!(
                "{key:?} would hold {} bytes, more than {VALUE_BYTES_MAX}",
                value.len()
            ));
        }
        if changes[..n].iter().any(|other| other.key() == change.key()) {
            return refused(format!("{:?} is changed twice", change.key()));
        }
    }
    match bytes > COMMIT_BYTES_MAX {
        true => refused(format!("{bytes} bytes, more than {COMMIT_BYTES_MAX}")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests;
