//! The registry as the store has it: its keys, what a change puts there, and all of it read at once.

use cluster::site::BadSite;
use tokio::task::spawn_blocking;

use super::{
    OpenError, TRIES_MAX,
    snapshot::{Head, Record, Records, Snapshot},
};
use crate::store::{Change, Item, PAGE_MAX, Store, StoreError, Watch};

const FAMILY: &str = "sites/";
/// The version and hash of all sites together.
pub(super) const SET: &str = "sites/set";
const NOW: &str = "sites/now/";
const WAS: &str = "sites/was/";
/// Versions of a site that are remembered, and so many bytes of them at most (but always the last).
pub const HISTORY_MAX: usize = 100;
const HISTORY_BYTES_MAX: usize = 4 << 20;

/// The registry as the store has it.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) head: Head,
    /// That in which `sites/set` was put.
    pub(super) revision: u64,
    pub(super) records: Records,
}

impl Stored {
    pub(super) async fn load_and_watch(store: &Store) -> Result<(Self, Watch), OpenError> {
        let (stored, revision) = Self::load(store).await?;
        let watch = store.watch(FAMILY, revision).await?;
        Ok((stored, watch))
    }

    /// All of it, and the revision from which on it has to be watched.
    pub(super) async fn load(store: &Store) -> Result<(Self, u64), OpenError> {
        for _ in 0..TRIES_MAX {
            let set = store.get(SET).await?;
            let (items, revision) = listed(store, NOW).await?;
            if store.get(SET).await? != set {
                // Some of the sites are of this version, some of that.
                continue;
            }
            let mut stored = Self {
                head: Head::default(),
                revision: 0,
                records: Records::new(),
            };
            for item in items.into_iter().chain(set) {
                stored.put(&item.key, &item.value, item.revision)?;
            }
            return Ok((stored, revision));
        }
        Err(OpenError::Busy)
    }

    fn put(&mut self, key: &str, value: &[u8], revision: u64) -> Result<(), OpenError> {
        let damaged = |error: serde_json::Error| OpenError::Damaged {
            key: key.to_owned(),
            reason: error.to_string(),
        };
        if key == SET {
            self.head = serde_json::from_slice(value).map_err(damaged)?;
            self.revision = revision;
        } else if let Some(name) = key.strip_prefix(NOW) {
            let record = serde_json::from_slice(value).map_err(damaged)?;
            self.records.insert(name.to_owned(), record);
        }
        Ok(())
    }

    /// Takes over a commit; whether the set has another version by it.
    pub(super) fn apply(&mut self, revision: u64, changes: Vec<Change>) -> Result<bool, OpenError> {
        let before = self.revision;
        if revision <= before {
            // It was there when all of it was read.
            return Ok(false);
        }
        for change in changes {
            match change {
                Change::Put { key, value } => self.put(&key, &value, revision)?,
                Change::Delete { key } => {
                    if let Some(name) = key.strip_prefix(NOW) {
                        self.records.remove(name);
                    }
                }
            }
        }
        Ok(self.revision != before)
    }

    pub(super) async fn compiled(&self) -> Result<Snapshot, BadSite> {
        let (version, revision, records) = (self.head.version, self.revision, self.records.clone());
        let compiling = spawn_blocking(move || Snapshot::new(version, revision, records));
        compiling.await.unwrap_or_else(|error| {
            Err(BadSite {
                site: String::new(),
                field: "site",
                reason: error.to_string(),
            })
        })
    }
}

/// What is remembered of a site, the oldest first.
pub(super) async fn past(store: &Store, name: &str) -> Result<Vec<Item>, StoreError> {
    let (items, _) = listed(store, &format!("{WAS}{name}/")).await?;
    Ok(items)
}

/// All items below a prefix, and the revision of the first page.
async fn listed(store: &Store, prefix: &str) -> Result<(Vec<Item>, u64), StoreError> {
    let mut items: Vec<Item> = Vec::new();
    let mut revision = None;
    loop {
        let after = items.last().map(|item| item.key.clone());
        let page = store.list(prefix, PAGE_MAX, after.as_deref()).await?;
        let revision = *revision.get_or_insert(page.revision);
        let ends = !page.more || page.items.is_empty();
        items.extend(page.items);
        if ends {
            return Ok((items, revision));
        }
    }
}

/// What a version of a site puts into the store.
pub(super) fn changes_of(name: &str, record: &Record) -> Vec<Change> {
    let now = format!("{NOW}{name}");
    let value = json(record);
    vec![
        match record.site {
            Some(_) => Change::put(now, value.clone()),
            None => Change::delete(now),
        },
        Change::put(was(name, record.version), value),
    ]
}

/// The keys of what need not be remembered any more once there is one more version.
pub(super) fn too_old<'a>(name: &'a str, past: &'a [Item]) -> impl Iterator<Item = String> + 'a {
    let mut bytes = 0;
    let kept = past
        .iter()
        .rev()
        .take(HISTORY_MAX - 1)
        .take_while(move |item| {
            bytes += item.value.len();
            bytes <= HISTORY_BYTES_MAX
        });
    let old = past.len() - kept.count();
    debug_assert!(
        past.iter()
            .all(|item| item.key.starts_with(&format!("{WAS}{name}/")))
    );
    past.iter().take(old).map(|item| item.key.clone())
}

/// Where a version is remembered; the numbers sort as texts.
pub(super) fn was(name: &str, version: u64) -> String {
    format!("{WAS}{name}/{version:020}")
}

pub(super) fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("records are plain data with text keys")
}
