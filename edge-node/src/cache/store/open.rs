//! Opening the store: whose directory it is, what is on disk, and what of it can be believed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    thread,
};

use cluster::clock::Clock;
use tokio::{sync::Semaphore, time::Instant};
use tracing::{info, warn};

use super::{
    COLD_READ, Counters, DISK_BYTES_MIN, OnEvicted, QUEUE_BYTES, QUEUE_RECORD_BYTES_MIN,
    READ_AROUNDS_MAX, Shared, Store, StoreConfig,
    proofs::Proofs,
    table::{At, Table},
    writer::{Sealed, Writer},
};
use crate::cache::{
    buffers::Buffers,
    index::{self, Images, Index, IndexError},
    pool::Pool,
    segment::{End, Entry, Segment},
};

/// Version of the layout of the data directory.
const VERSION: u32 = 1;
/// Size of a segment, unless the budget is small or very large.
const SEGMENT_BYTES: u64 = 64 << 20;
/// Smallest segment: twice the largest record.
const SEGMENT_BYTES_MIN: u64 = 4 << 20;
/// Largest segment: offsets are 32 bits wide.
const SEGMENT_BYTES_MAX: u64 = 1 << 31;
/// A small budget is cut into this many segments, so that reclaiming one is a small loss.
const SEGMENTS_MIN: u64 = 16;
/// A large one into this many: each is an open file, and 1024 are what a process usually may have.
const SEGMENTS_MAX: u64 = 512;
/// Every start begins a segment, however little the one before had written; beyond this many the
/// oldest go, full or not.
pub(super) const SEGMENT_FILES_MAX: usize = 640;
/// How many damaged things of a kind are kept for whoever wants to look at them, ...
const ASIDE_MAX: usize = 2;
/// ... as long as they take no more than this share of the budget.
const ASIDE_SHARE: u64 = 8;
const INDEX_ASIDE: &str = "index.damaged-";
const SEGMENT_ASIDE: &str = "segment.damaged-";

/// Why the store cannot be opened. Each is the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The data directory is something else, or below something else.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// The data directory.
        path: PathBuf,
    },
    /// This process may not write there.
    #[error("{} cannot be written: {source}", path.display())]
    NotWritable {
        /// What could not be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A later version of this program has written there.
    #[error(
        "{} has data of version {found}, and this program knows up to {known}; \
         use the newer program or another directory",
        path.display()
    )]
    NewerVersion {
        /// The data directory.
        path: PathBuf,
        /// The version found.
        found: u32,
        /// The version this program writes.
        known: u32,
    },
    /// The file that states the version states none: probably not a data directory of this program.
    #[error("{} does not state a version", path.display())]
    BadVersion {
        /// That file.
        path: PathBuf,
    },
    /// Another process uses the directory.
    #[error("{} is in use by another process", path.display())]
    Locked {
        /// The data directory.
        path: PathBuf,
    },
    /// A budget that leaves no room to turn.
    #[error("a disk cache of {found} bytes is too small; the least is {DISK_BYTES_MIN}")]
    BudgetTooSmall {
        /// The budget asked for.
        found: u64,
    },
    /// Anything else that the system said.
    #[error("{}: {source}", path.display())]
    Io {
        /// What it was about.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl OpenError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
                Self::NotADirectory { path }
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::NotWritable { path, source }
            }
            _ => Self::Io { path, source },
        }
    }
}

pub(super) fn segments_dir(dir: &Path) -> PathBuf {
    dir.join("segments")
}

pub(super) fn index_dir(dir: &Path) -> PathBuf {
    dir.join("index")
}

pub(super) fn open(config: &StoreConfig, on_evicted: OnEvicted) -> Result<Store, OpenError> {
    let (dir, budget) = (&config.dir, config.disk_bytes_max);
    if budget < DISK_BYTES_MIN {
        return Err(OpenError::BudgetTooSmall { found: budget });
    }
    let lock = own(dir)?;
    let segments_dir = segments_dir(dir);
    fs::create_dir_all(&segments_dir).map_err(OpenError::at(&segments_dir))?;

    let counters = Counters::default();
    let found = Segment::open_all(&segments_dir).map_err(OpenError::at(&segments_dir))?;
    let images = Images::read(&index_dir(dir)).map_err(OpenError::at(dir))?;
    let loaded = load(Some(images), found).or_else(|(error, found)| {
        set_index_aside(dir, &counters, &error);
        load(None, found)
    });
    let Loaded {
        table,
        files,
        known,
        held,
    } = loaded.map_err(|(error, _)| OpenError::Io {
        path: index_dir(dir),
        source: io::Error::other(error),
    })?;
    let mut index = Index::open(&index_dir(dir))
        .and_then(|index| index.after_reading(held))
        .inspect_err(|error| warn!(%error, "no index; the next start reads the segments"))
        .ok();
    let next_segment = files.keys().chain(&known).max().map_or(1, |id| id + 1);

    let mut segments = BTreeMap::new();
    let mut sealed = Vec::new();
    for (id, file) in files {
        let last = id + 1 == next_segment;
        if let Some((segment, len)) = keep(dir, file, last, index.as_mut()) {
            let segment = Arc::new(segment);
            segments.insert(id, Arc::clone(&segment));
            sealed.push(Sealed {
                segment,
                len,
                begun: None,
            });
        }
    }
    table.drop_lost(|span| {
        sealed
            .binary_search_by_key(&span.at.segment, |sealed| sealed.segment.id)
            .is_ok_and(|n| u64::from(span.at.offset) + u64::from(span.len.get()) <= sealed[n].len)
    });
    let torn = table.drop_torn();
    for id in known.iter().filter(|id| !segments.contains_key(*id)) {
        warn!(
            segment = id,
            "segment file is gone; what was in it will be missed"
        );
        counters.lost_segments.fetch_add(1, Relaxed);
        if let Some(index) = &mut index {
            // It costs nothing but its place; the next start tries again.
            let _ = index.drop_segment(*id);
        }
    }
    let segment_bytes: u64 = sealed.iter().map(|sealed| sealed.len).sum();
    counters.segment_bytes.store(segment_bytes, Relaxed);
    counters
        .index_bytes
        .store(index::bytes_on_disk(&index_dir(dir)), Relaxed);
    counters
        .aside_bytes
        .store(prune_aside(dir, budget / ASIDE_SHARE), Relaxed);
    info!(
        dir = %dir.display(),
        objects = table.len(),
        segments = segments.len(),
        bytes = segment_bytes,
        torn,
        "disk cache open"
    );

    let shared = Arc::new(Shared {
        table,
        proofs: Proofs::new(),
        segments: RwLock::new(segments),
        dir: dir.clone(),
        flagged: Mutex::default(),
        holds_back: AtomicBool::new(false),
        counters,
    });
    let (queue, jobs) = mpsc::sync_channel(QUEUE_BYTES / QUEUE_RECORD_BYTES_MIN + 1);
    let no_thread = |source| OpenError::Io {
        path: dir.clone(),
        source,
    };
    let pool = Pool::new("store-read", config.read_threads).map_err(no_thread)?;
    let now = Instant::now();
    let writer = Writer {
        shared: Arc::clone(&shared),
        on_evicted,
        dir: dir.clone(),
        disk_bytes_max: budget,
        segment_bytes: u32::try_from(segment_size(budget)).expect("at most SEGMENT_BYTES_MAX"),
        index_failed: index.is_none().then_some(now),
        index,
        next_segment,
        sealed: sealed.into(),
        active: None,
        buffer: Vec::new(),
        pending: Vec::new(),
        unindexed: Default::default(),
        index_due: now,
        complained: None,
        reinsert_bytes: 0,
        full: false,
        looked_at: 0,
        _lock: lock,
    };
    let writer = thread::Builder::new()
        .name("store-writer".into())
        .spawn(move || writer.run(&jobs))
        .map_err(no_thread)?;
    Ok(Store {
        shared,
        queue,
        writer: writer.thread().clone(),
        room: Arc::new(Semaphore::new(QUEUE_BYTES)),
        pool,
        buffers: Buffers::default(),
        cold_read: COLD_READ,
        reads_around: Arc::new(Semaphore::new(READ_AROUNDS_MAX)),
    })
}

/// Makes `dir` ours: it exists, nobody else uses it, and its version is one we know.
fn own(dir: &Path) -> Result<File, OpenError> {
    fs::create_dir_all(dir).map_err(OpenError::at(dir))?;
    let path = dir.join("LOCK");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(OpenError::at(dir))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::Locked { path: dir.into() }),
        Err(TryLockError::Error(source)) => return Err(OpenError::Io { path, source }),
    }
    let path = dir.join("VERSION");
    let stated = match fs::read_to_string(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            return Err(OpenError::BadVersion { path });
        }
        stated => stated.map_err(OpenError::at(&path))?,
    };
    match stated.trim().parse::<u32>() {
        Ok(VERSION) => {}
        Ok(found) if found > VERSION => {
            return Err(OpenError::NewerVersion {
                path: dir.into(),
                found,
                known: VERSION,
            });
        }
        // Empty: a stop between creating and writing it.
        Err(_) if stated.trim().is_empty() => {
            fs::write(&path, format!("{VERSION}\n")).map_err(OpenError::at(&path))?;
        }
        _ => return Err(OpenError::BadVersion { path }),
    }
    Ok(lock)
}

/// Opens the index; sets a damaged one aside and begins another.
pub(super) fn open_index(dir: &Path, counters: &Counters) -> Result<Index, IndexError> {
    Index::open(&index_dir(dir)).or_else(|error| {
        set_index_aside(dir, counters, &error);
        Index::open(&index_dir(dir))
    })
}

fn set_index_aside(dir: &Path, counters: &Counters, error: &IndexError) {
    counters.rebuilds.fetch_add(1, Relaxed);
    let to = aside(dir, INDEX_ASIDE);
    warn!(%error, aside = %to.display(), "index is damaged; it is set aside and rebuilt from the segments");
    if let Err(error) = fs::rename(index_dir(dir), &to) {
        warn!(%error, "damaged index cannot be set aside");
    }
}

fn aside(dir: &Path, prefix: &str) -> PathBuf {
    (Clock::system().unix_ms()..)
        .map(|ms| dir.join(format!("{prefix}{ms}")))
        .find(|path| !path.exists())
        .expect("some millisecond is free")
}

/// What is on disk, put together.
struct Loaded {
    table: Table,
    files: BTreeMap<u32, Found>,
    /// Segments that the index knows of.
    known: BTreeSet<u32>,
    /// What of the index that takes, in bytes.
    held: u64,
}

/// A segment file, and what of it the index did not know.
struct Found {
    segment: Segment,
    len: u64,
    covered: u32,
    tail: Vec<Entry>,
    end: io::Result<End>,
}

/// Reads the log from its beginning: what the index tells of it, and the rest from the segments. A
/// segment that is gone is read too, as far as the index knows it: what it replaced or removed must
/// not come back.
fn load(
    images: Option<Images>,
    segments: Vec<Segment>,
) -> Result<Loaded, (IndexError, Vec<Segment>)> {
    let mut loaded = Loaded {
        table: Table::new(),
        files: BTreeMap::new(),
        known: BTreeSet::new(),
        held: 0,
    };
    let mut unread = segments.into_iter().peekable();
    for image in images.into_iter().flatten() {
        let (id, image) = match image {
            Ok(image) => image,
            Err(error) => {
                let read = loaded.files.into_values().map(|file| file.segment);
                return Err((error, read.chain(unread).collect()));
            }
        };
        while let Some(segment) = unread.next_if(|segment| segment.id < id) {
            loaded.read(segment, 0);
        }
        loaded.known.insert(id);
        loaded.held += image.held;
        for (offset, entry) in &image.records {
            let at = At {
                segment: id,
                offset: *offset,
            };
            loaded.table.apply(at, entry);
        }
        if let Some(segment) = unread.next_if(|segment| segment.id == id) {
            loaded.read(segment, image.covered);
        }
    }
    for segment in unread {
        loaded.read(segment, 0);
    }
    Ok(loaded)
}

impl Loaded {
    /// Reads what the index does not cover of a segment.
    fn read(&mut self, segment: Segment, covered: u32) {
        let mut tail = Vec::new();
        let end = segment.scan(covered, |offset, entry| {
            let at = At {
                segment: segment.id,
                offset,
            };
            self.table.apply(at, &entry);
            tail.push(entry);
        });
        let found = Found {
            len: segment.file_len().unwrap_or(0),
            covered,
            tail,
            end,
            segment,
        };
        self.files.insert(found.segment.id, found);
    }
}

/// Settles what becomes of a segment file, and tells the index what it did not know of it. Gives
/// back the segment and the length of its file, unless it is none.
fn keep(dir: &Path, file: Found, last: bool, index: Option<&mut Index>) -> Option<(Segment, u64)> {
    let Found {
        segment,
        mut len,
        covered,
        tail,
        end,
    } = file;
    let id = segment.id;
    match end {
        Ok(End::Clean) => {}
        Ok(End::Garbage(0)) => {
            let to = aside(dir, SEGMENT_ASIDE);
            warn!(segment = id, aside = %to.display(), "segment is none of ours; it is set aside");
            if let Err(error) = segment.rename(&to) {
                warn!(%error, "foreign segment cannot be set aside");
            }
            return None;
        }
        Ok(End::Torn(at) | End::Garbage(at)) if last => {
            // What a stop in the middle of a write left behind.
            match segment.truncate(at) {
                Ok(()) => len = u64::from(at),
                Err(error) => warn!(segment = id, %error, "segment cannot be cut"),
            }
        }
        Ok(End::Torn(at) | End::Garbage(at)) => {
            warn!(
                segment = id,
                offset = at,
                "segment is damaged; what follows in it is lost"
            );
        }
        Err(error) => warn!(segment = id, %error, "segment cannot be read to its end"),
    }
    if len == 0 {
        // It was begun and never written to.
        let _ = segment.unlink();
        return None;
    }
    if let Some(index) = index
        && !tail.is_empty()
        && let Err(error) = index.append(id, covered, &tail)
    {
        warn!(segment = id, %error, "index does not take what it lacks");
    }
    Some((segment, len))
}

/// Keeps the newest few of what was set aside, within `bytes_max`; says what they take.
fn prune_aside(dir: &Path, bytes_max: u64) -> u64 {
    let names = |prefix: &str| -> Vec<(u64, PathBuf)> {
        let Ok(entries) = fs::read_dir(dir) else {
            return Vec::new();
        };
        let mut found: Vec<_> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let ms = path.file_name()?.to_str()?.strip_prefix(prefix)?;
                Some((ms.parse().ok()?, path))
            })
            .collect();
        found.sort_by(|a, b| b.cmp(a));
        found
    };
    let mut total = 0;
    for prefix in [INDEX_ASIDE, SEGMENT_ASIDE] {
        for (n, (_, path)) in names(prefix).into_iter().enumerate() {
            let bytes = index::bytes_on_disk(&path);
            if n < ASIDE_MAX && total + bytes <= bytes_max {
                total += bytes;
                continue;
            }
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            if let Err(error) = removed {
                warn!(path = %path.display(), %error, "what was set aside cannot be removed");
                total += bytes;
            }
        }
    }
    total
}

/// How large segments are under a budget.
fn segment_size(budget: u64) -> u64 {
    (budget / SEGMENTS_MIN)
        .min(SEGMENT_BYTES)
        .max(budget / SEGMENTS_MAX)
        .clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_fit_the_budget() {
        let mib = 1 << 20;
        for (budget, size) in [
            (16 * mib, 4 * mib),
            (256 * mib, 16 * mib),
            (10_240 * mib, 64 * mib),
            (1024 * 1024 * mib, 2048 * mib),
            (8 * 1024 * 1024 * mib, 2048 * mib),
        ] {
            assert_eq!(segment_size(budget), size, "{budget}");
        }
    }
}
