//! What the embedded store keeps, and how it lies on disk. The only file that names sled.
//!
//! | key in sled | holds |
//! | --- | --- |
//! | `m/format`, `m/revision` | the version of this layout; the store's revision |
//! | `k/` key | the item's revision (8 bytes), how long its value is (4 bytes), the beginning of that |
//! | `c/` key, 0, number (2 bytes) | a further part of its value |
//! | `r/` family, revision (8 bytes), key | nothing: finds items by revision |
//!
//! A value lies in parts, because what is too large for its log sled puts into files that it never takes to
//! the disk. It does not take its log there either, but only to where a crash of the process does no harm;
//! the rest is done here.
//!
//! A commit is one batch, which sled applies whole or not at all. sled 0.34 is not maintained: it may fail
//! to open, or panic. What cannot be opened is set aside and the store begins anew, at revision 0; whoever
//! builds on the store must be able to tell that (the purge log has an identity, the sites a version that
//! never goes back).

use std::{
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use tracing::warn;

use super::{Change, Committed, Condition, Item, PAGE_BYTES_MAX, Page, VALUE_BYTES_MAX, family};

/// Version of the layout.
const FORMAT: u32 = 1;
const FORMAT_KEY: &[u8] = b"m/format";
const REVISION_KEY: &[u8] = b"m/revision";
const ITEMS: &[u8] = b"k/";
const PARTS: &[u8] = b"c/";
const REVISIONS: &[u8] = b"r/";
/// Bytes before the value of an item.
const HEAD_BYTES: usize = 12;
/// Largest part of a value: a leaf of sled has up to 20 of them, and goes into a file of its own when it is
/// larger than a quarter of a segment, which is 128 KiB.
const PART_BYTES: usize = 4 << 10;

/// sled's name for its log, in its directory.
const LOG_FILE: &str = "db";
/// sled's page cache: what is read often is kept by who reads it.
const CACHE_BYTES: u64 = 16 << 20;
/// How often, and how long apart, to try again while the last owner's threads let go of the lock.
const LOCK_TRIES: u32 = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Attempts to open that did not end, before it is set aside: a process may also be killed while it opens.
const OPENINGS_MAX: usize = 3;

/// sled, and how the items lie in it.
pub(super) struct Database {
    db: ::sled::Db,
    /// What sled writes to.
    log: File,
    /// Of the last commit, on disk or not.
    revision: u64,
}

/// What went wrong in sled.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
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
    pub(super) fn open_or_begin(dir: &Path) -> io::Result<Self> {
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

    /// Of the last commit, on disk or not.
    pub(super) fn revision(&self) -> u64 {
        self.revision
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
        let log = File::open(dir.join(LOG_FILE)).map_err(Failure::Io)?;
        let mut database = Self {
            db,
            log,
            revision: 0,
        };
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

    pub(super) fn close(self) {
        // Nothing can be done if even this fails.
        let _ = guarded(|| {
            drop(self.db);
            Ok(())
        });
    }

    fn read(&self, key: &[u8]) -> Result<Option<::sled::IVec>, Failure> {
        guarded(|| self.db.get(key))
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Item>, Failure> {
        let found = self.read(&item_key(key))?;
        let item = found.map(|begins| self.item(key.to_owned(), &begins));
        item.transpose()
    }

    pub(super) fn list(
        &self,
        prefix: &str,
        limit: usize,
        after: Option<&str>,
    ) -> Result<Page, Failure> {
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
            let item = self.item(text(&key[ITEMS.len()..])?, &value)?;
            page.more = !room.takes(&item);
            if !page.more {
                page.items.push(item);
            }
            Ok(!page.more)
        })?;
        Ok(page)
    }

    pub(super) fn since(&self, prefix: &str, revision: u64, limit: usize) -> Result<Page, Failure> {
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
    pub(super) fn commit(
        &mut self,
        conditions: &[Condition],
        changes: &[Change],
    ) -> Result<(Committed, bool), Failure> {
        for Condition { key, revision } in conditions {
            if self.head_of(key)?.map_or(0, |head| head.revision) != *revision {
                return Ok((Committed::Conflict, false));
            }
        }
        let next = self.revision + 1;
        let mut batch = ::sled::Batch::default();
        let mut changed = false;
        for change in changes {
            let key = change.key();
            let old = self.head_of(key)?;
            if let Some(old) = &old {
                batch.remove(revision_key(key, old.revision));
                for n in 1..parts(old.bytes) {
                    batch.remove(part_key(key, n));
                }
            }
            match change {
                Change::Put { value, .. } => {
                    let mut parts = value.chunks(PART_BYTES);
                    let first = parts.next().unwrap_or_default();
                    let bytes = u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes();
                    batch.insert(
                        item_key(key),
                        [&next.to_be_bytes()[..], &bytes, first].concat(),
                    );
                    for (n, part) in parts.enumerate() {
                        batch.insert(part_key(key, n + 1), part);
                    }
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

    fn head_of(&self, key: &str) -> Result<Option<Head>, Failure> {
        let found = self.read(&item_key(key))?;
        found.map(|begins| Head::of(&begins)).transpose()
    }

    /// The item whose entry begins like this.
    fn item(&self, key: String, begins: &[u8]) -> Result<Item, Failure> {
        let head = Head::of(begins)?;
        let mut value = Vec::with_capacity(head.bytes.min(VALUE_BYTES_MAX));
        value.extend_from_slice(&begins[HEAD_BYTES..]);
        for n in 1..parts(head.bytes) {
            if let Some(part) = self.read(&part_key(&key, n))? {
                value.extend_from_slice(&part);
            }
        }
        if value.len() != head.bytes {
            return Err(Failure::Damaged(format!("a part of {key} is missing")));
        }
        Ok(Item {
            key,
            value: value.into(),
            revision: head.revision,
        })
    }

    pub(super) fn flush(&self) -> Result<(), Failure> {
        guarded(|| self.db.flush().map(drop))?;
        self.log.sync_data().map_err(Failure::Io)
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

fn part_key(key: &str, n: usize) -> Vec<u8> {
    let n = u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes();
    [PARTS, key.as_bytes(), b"\0", &n].concat()
}

/// How many parts a value of so many bytes has; one at least.
fn parts(bytes: usize) -> usize {
    bytes.div_ceil(PART_BYTES).max(1)
}

/// What an item's entry begins with.
struct Head {
    revision: u64,
    bytes: usize,
}

impl Head {
    fn of(begins: &[u8]) -> Result<Self, Failure> {
        let Some((&[r0, r1, r2, r3, r4, r5, r6, r7, b0, b1, b2, b3], _)) =
            begins.split_first_chunk::<HEAD_BYTES>()
        else {
            return Err(Failure::Damaged("an item is too short".into()));
        };
        let bytes = u32::from_be_bytes([b0, b1, b2, b3]);
        Ok(Self {
            revision: u64::from_be_bytes([r0, r1, r2, r3, r4, r5, r6, r7]),
            bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
        })
    }
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
