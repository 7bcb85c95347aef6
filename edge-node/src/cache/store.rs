//! The disk tier: objects in segment files, a table of them in RAM, an index that spares the next
//! start the reading of the segments.
//!
//! ```text
//! lookups ─▶ table (RAM) ─▶ pool of reading threads ─▶ segments, by pread
//! appends ─▶ queue bounded by bytes ─▶ one writer thread ─▶ newest segment ─▶ table ─▶ answer
//!                                                        └─▶ index, written behind
//! ```
//!
//! - **Durable:** what was acknowledged is in the operating system's hands, so no crash of this
//!   process loses it; a segment is synced to the disk when it is full. A start replays what the
//!   index does not cover from the segments; a record cut short, a large object that lacks a piece
//!   and pieces of no object are dropped.
//! - **Bounded:** segments, index and what was set aside stay within the budget, but for
//!   [`DISK_SLACK_BYTES`]. When it is spent the oldest segment goes; what has hits left in it is copied
//!   to the newest for one of them, up to half a segment. An object of which more than that stands
//!   in one segment lives for one turn of the ring. How fast it turns decides whether the cache writes
//!   everything or only what was asked for twice ([`admission`](super::admission)).
//! - **Honest:** headers and metadata carry a check, bodies are checked by whoever knows their hash,
//!   on the reading thread. A body that has been proved once is known again by its CRC for a while.
//!   What fails is an error, never bytes.
//!
//! Deliberately absent: waiting for the disk on every append (a power cut may cost the newest
//! objects; it never yields wrong ones), and any order of eviction finer than the segment.

mod open;
mod proofs;
mod table;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread::Thread,
    time::Duration,
};

use bytes::Bytes;
use cluster::key::Key;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, timeout},
};

pub use self::{open::OpenError, proofs::crc};
use self::{
    proofs::Proofs,
    table::{PIECES_MAX, Slot, Span, Table},
    writer::{Job, Work},
};
use super::{
    buffers::Buffers,
    pool::{Pool, PoolClosed},
    segment::{Kind, RECORD_BYTES_MAX, Record, Segment, record_len},
};

/// Flag of objects that the node's digest lists.
pub const CLAIMED: u8 = 1;
/// Smallest disk budget: four of the smallest segments.
pub const DISK_BYTES_MIN: u64 = 16 << 20;
/// How far the disk may run over its budget: what the index grows by between two looks at it, and
/// blocks of which files fill only a part.
pub const DISK_SLACK_BYTES: u64 = 4 << 20;

/// A record up to this size is small: one read for each of those that are asked for together is too much.
const SMALL_RECORD_BYTES: u32 = 64 << 10;
/// A read of a small record that takes longer came from the disk itself; from the system's cache it
/// takes some microseconds, from the fastest disks twice this.
const COLD_READ: Duration = Duration::from_micros(50);
/// What is read behind a small record that came from the disk: a page and what it refers to were asked
/// for, and so stored, one after the other. As much as a disk reads in the time it takes to get there.
const READ_AROUND_BYTES: usize = 256 << 10;
/// How many such reads go on at once; beyond that the disk has better things to do.
const READ_AROUNDS_MAX: usize = 2;
/// Most bytes that wait to be written: a tenth of a second of a slow disk. Who finds it full waits.
const QUEUE_BYTES: usize = 16 << 20;
/// How long a small object waits for a place there, and with it who asked for it: a burst is written
/// down, while a disk that stands still does not hold up misses.
const PLACE_WAIT_MAX: Duration = Duration::from_millis(100);
/// Largest record that is read without the pool when the system has it in its cache: to copy and hash it
/// takes some 30 µs, and a runtime thread must not be kept longer than some 100.
pub const AT_HAND_BYTES_MAX: u32 = 128 << 10;
/// What the smallest record counts in the queue, so that it bounds records as well.
const QUEUE_RECORD_BYTES_MIN: usize = 4 << 10;
/// Most flag changes kept for the index; one that is lost is told again by the record.
const FLAGGED_MAX: usize = 1 << 16;

/// Where and how much.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The data directory; created if its parent exists.
    pub dir: PathBuf,
    /// Bytes on disk for segments and index together, at least [`DISK_BYTES_MIN`].
    pub disk_bytes_max: u64,
    /// Threads that read; 0: whoever asks reads (for simulations).
    pub read_threads: usize,
}

/// The open store. A clone-able handle; when the last one goes, what was appended is still written.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    queue: mpsc::SyncSender<Job>,
    /// The thread that works on the queue.
    writer: Thread,
    room: Arc<Semaphore>,
    pool: Pool,
    buffers: Buffers,
    /// [`COLD_READ`], but for tests.
    cold_read: Duration,
    reads_around: Arc<Semaphore>,
}

/// What readers and the writer share.
struct Shared {
    table: Table,
    proofs: Proofs,
    segments: RwLock<BTreeMap<u32, Arc<Segment>>>,
    dir: PathBuf,
    /// Keys whose flags changed since the index last heard of them.
    flagged: Mutex<Vec<Key>>,
    /// Whether new small objects should prove themselves before they are appended.
    holds_back: AtomicBool,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    segment_bytes: AtomicU64,
    index_bytes: AtomicU64,
    aside_bytes: AtomicU64,
    evicted_objects: AtomicU64,
    reinserted: AtomicU64,
    rebuilds: AtomicU64,
    lost_segments: AtomicU64,
    checksum_failures: AtomicU64,
    write_errors: AtomicU64,
    lost_behind: AtomicU64,
    appended_bytes: AtomicU64,
    read_bytes: AtomicU64,
    reads_around: AtomicU64,
}

/// Hears the keys of objects that went with their segment, or that nobody waited for and could not be
/// written, on the writer's thread, which it must not hold up. Objects that were replaced or removed are not among them.
pub type OnEvicted = Arc<dyn Fn(&[Key]) + Send + Sync>;

/// The body of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// All of it, beside its metadata.
    Inline(Bytes),
    /// It is in this many pieces (at least one), stored before the object is.
    Pieces(u32),
}

/// An object as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObject {
    /// Identity of the object; names its pieces.
    pub object: u64,
    /// The caller's bits, as they are now.
    pub flags: u8,
    /// What the caller stored beside the body; proved by the record's check.
    pub meta: Bytes,
    /// The body, not proved.
    pub body: Body,
}

/// One piece on disk. Holding it keeps it readable, whatever is evicted meanwhile.
#[derive(Clone, Debug)]
pub struct PieceRef {
    segment: Arc<Segment>,
    span: Span,
    object: u64,
    index: u32,
}

impl PieceRef {
    /// Of which object it is, and which piece of it.
    pub fn name(&self) -> (u64, u32) {
        (self.object, self.index)
    }
}

/// Why something was not stored.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// The disk has no room (or the quota, or the largest file size, is reached).
    #[error("the disk is full")]
    DiskFull,
    /// The disk failed.
    #[error("the disk failed: {0}")]
    Io(Arc<io::Error>),
    /// Larger than [`RECORD_BYTES_MAX`], or more than 65536 pieces.
    #[error("too large to be stored")]
    TooLarge,
    /// Pieces of the object are missing: never stored, forgotten, or evicted before it was whole.
    #[error("pieces of the object are missing")]
    Torn,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// Why something was not read. Whatever it is, what was asked for is as good as absent.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is not what was stored: the caller should remove the object.
    #[error("what is on disk is not what was stored")]
    Corrupt,
    /// The disk failed.
    #[error("the disk failed: {0}")]
    Io(#[from] io::Error),
    /// The reading threads are gone.
    #[error(transparent)]
    Closed(#[from] PoolClosed),
}

/// The store in numbers. Counters run from the opening.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Bytes of segments, index and what was set aside.
    pub disk_bytes: u64,
    /// Bytes of the index alone.
    pub index_bytes: u64,
    /// Objects stored.
    pub objects: u64,
    /// Segment files.
    pub segments: u64,
    /// Objects that went with their segment.
    pub evicted_objects_total: u64,
    /// Records copied to a newer segment because they were hit.
    pub reinserted_total: u64,
    /// Times a damaged index was set aside.
    pub rebuilds_total: u64,
    /// Segments whose files were gone.
    pub lost_segments_total: u64,
    /// Reads that were not what was stored.
    pub checksum_failures_total: u64,
    /// Failed writes, of segments or index.
    pub write_errors_total: u64,
    /// Objects of [`Store::append_behind`] that could not be written.
    pub lost_behind_total: u64,
    /// Bytes of records written, copies included.
    pub appended_bytes_total: u64,
    /// Bytes of records read to be served.
    pub read_bytes_total: u64,
    /// Reads of what stands behind a small object that came from the disk itself.
    pub reads_around_total: u64,
}

impl Store {
    /// The data directory.
    pub(super) fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Does what blocks where reads are done.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Option<T>> + Send + 'static {
        let done = self.pool.run(work);
        async move { done.await.ok() }
    }

    /// Opens the store in `config.dir`, or creates it, and brings the table up to what is on disk.
    /// Blocks, for as long as the index takes to read (seconds for millions of objects) or, without
    /// an index, the segments.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]. Damage is none: what is damaged is set aside.
    pub fn open(config: &StoreConfig, on_evicted: OnEvicted) -> Result<Self, OpenError> {
        open::open(config, on_evicted)
    }

    /// Whether there is an object of this key. A look into RAM.
    pub fn contains(&self, key: Key) -> bool {
        self.shared.table.slot(key).is_some()
    }

    /// Notes that the object was asked for, so that it outlives its segment. Nothing else does: a
    /// read may be a probe, and a hit may be served from memory.
    pub fn touch(&self, key: Key) {
        self.shared.table.touch(key);
    }

    /// Whether the ring turns so fast that a new small object should be asked for once more before it
    /// is appended; see [`admission`](super::admission).
    pub fn holds_back(&self) -> bool {
        self.shared.holds_back.load(Relaxed)
    }

    /// The caller's bits of an object.
    pub fn flags(&self, key: Key) -> Option<u8> {
        self.shared.table.slot(key).map(|slot| slot.flags)
    }

    /// Changes the caller's bits of an object; says whether there is one. Durable within a second
    /// or so, unless the index is lost: then the bits are those of the last append again.
    pub fn set_flags(&self, key: Key, flags: u8) -> bool {
        let mut changed = false;
        let there = self.shared.table.change(key, |slot| {
            changed = slot.flags != flags;
            slot.flags = flags;
        });
        if changed {
            let mut flagged = lock(&self.shared.flagged);
            if flagged.len() < FLAGGED_MAX {
                flagged.push(key);
            }
        }
        there
    }

    /// The keys of all objects with [`CLAIMED`] set.
    pub fn claimed_keys(&self) -> Vec<Key> {
        self.shared.table.keys_with(CLAIMED)
    }

    /// Reads an object: its metadata, and its body if that is inline. `decode` runs on the reading
    /// thread; it is the place to decode `meta` and to verify the body, and says by `None` that
    /// they are not what was stored.
    ///
    /// # Errors
    ///
    /// [`ReadError::Corrupt`] if the record's check or `decode` fails.
    pub async fn read_object<T, F>(&self, key: Key, decode: F) -> Result<Option<T>, ReadError>
    where
        F: FnOnce(StoredObject) -> Option<T> + Send + 'static,
        T: Send + 'static,
    {
        let Some((slot, segment)) = self.place(key) else {
            return Ok(None);
        };
        let (cold_read, read_from) = (self.cold_read, Arc::clone(&segment));
        let read = move || {
            let begun = Instant::now();
            let bytes = read_from.read(slot.span.at.offset, slot.span.len.get())?;
            let cold = begun.elapsed() >= cold_read;
            let object = object_of(key, slot, bytes).ok_or(ReadError::Corrupt)?;
            Ok((decode(object).ok_or(ReadError::Corrupt)?, cold))
        };
        let (object, cold) = self.counted(self.pool.run(read).await?, slot.span)?;
        if cold && slot.span.len.get() <= SMALL_RECORD_BYTES {
            self.read_around(segment, slot.span);
        }
        Ok(Some(object))
    }

    /// An object, if the system has its record in its cache and it is not too large to be read right
    /// here; `prove` says whether its body is what was stored, unless that is known. Does not block;
    /// whatever is wrong with it, [`Store::read_object`] will say.
    pub fn object_at_hand(
        &self,
        key: Key,
        prove: impl FnOnce(&StoredObject) -> bool,
    ) -> Option<StoredObject> {
        let (slot, segment) = self.place(key)?;
        let (offset, len) = (slot.span.at.offset, slot.span.len.get());
        if len > AT_HAND_BYTES_MAX {
            return None;
        }
        let record = segment.read_at_hand(offset, len, &self.buffers)?;
        let object = object_of(key, slot, record)?;
        let counters = &self.shared.counters;
        counters.read_bytes.fetch_add(u64::from(len), Relaxed);
        let holds = match &object.body {
            Body::Inline(body) => {
                let prove = || prove(&object);
                self.shared.proofs.holds(slot.span.at, body, prove)
            }
            Body::Pieces(_) => prove(&object),
        };
        holds.then_some(object)
    }

    /// Where the object of `key` stands.
    fn place(&self, key: Key) -> Option<(Slot, Arc<Segment>)> {
        // A miss between the two looks means that the segment went, perhaps after the object was
        // copied out of it; a second time in a row it may be called absent.
        (0..2).find_map(|_| {
            let slot = self.shared.table.slot(key)?;
            Some((slot, self.shared.segment(slot.span.at.segment)?))
        })
    }

    /// Has the system read what was stored after `span`, without anybody waiting for it. It stays in the
    /// system's cache, not in ours: whether it is wanted is not known, and there it costs neither a hash
    /// nor the place of something that is.
    fn read_around(&self, segment: Arc<Segment>, span: Span) {
        let Ok(place) = Arc::clone(&self.reads_around).try_acquire_owned() else {
            return;
        };
        self.shared.counters.reads_around.fetch_add(1, Relaxed);
        let behind = span.at.offset.saturating_add(span.len.get());
        let read = self.pool.run(move || {
            segment.warm(behind, READ_AROUND_BYTES);
            drop(place);
        });
        tokio::spawn(read);
    }

    /// These pieces of an object: all or nothing. A look into RAM. The object may still be filling;
    /// then they are among the pieces appended so far.
    pub fn pieces(&self, object: u64, numbers: Range<u32>) -> Option<Vec<PieceRef>> {
        let spans = self.shared.table.pieces(object, numbers.clone())?;
        let segments = self.shared.segments();
        numbers
            .zip(spans)
            .map(|(index, span)| {
                Some(PieceRef {
                    segment: Arc::clone(segments.get(&span.at.segment)?),
                    span,
                    object,
                    index,
                })
            })
            .collect()
    }

    /// Reads a piece and verifies it against its BLAKE3 hash, on a reading thread.
    ///
    /// # Errors
    ///
    /// [`ReadError::Corrupt`] if it does not match: the caller should remove the object.
    pub async fn read_piece(&self, piece: &PieceRef, hash: &[u8; 32]) -> Result<Bytes, ReadError> {
        let (span, piece, hash) = (piece.span, piece.clone(), *hash);
        let read = move || {
            let bytes = piece
                .segment
                .read(piece.span.at.offset, piece.span.len.get())?;
            let record = Record::decode(bytes).ok_or(ReadError::Corrupt)?;
            let entry = record.entry;
            let right = entry.kind == Kind::Piece
                && (entry.object, entry.index) == (piece.object, piece.index)
                && *blake3::hash(&record.body).as_bytes() == hash;
            right.then_some(record.body).ok_or(ReadError::Corrupt)
        };
        self.counted(self.pool.run(read).await?, span)
    }

    /// The pool of reading threads, for other work that blocks on the disk.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    fn counted<T>(&self, read: Result<T, ReadError>, span: Span) -> Result<T, ReadError> {
        let counters = &self.shared.counters;
        counters
            .read_bytes
            .fetch_add(u64::from(span.len.get()), Relaxed);
        // A file that ends before its record does is damage, not a failing disk.
        let read = read.map_err(|error| match error {
            ReadError::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => ReadError::Corrupt,
            other => other,
        });
        if matches!(read, Err(ReadError::Corrupt)) {
            counters.checksum_failures.fetch_add(1, Relaxed);
        }
        read
    }

    /// A number for a new object: random, so that it is new across restarts too.
    pub fn next_object_id(&self) -> u64 {
        rand::random()
    }

    /// Stores piece `index` of `object`, which the object's own record must follow; otherwise call
    /// [`Store::forget_pieces`]. Waits while the queue is full.
    ///
    /// # Errors
    ///
    /// See [`AppendError`]. The store goes on; a later append may succeed.
    pub async fn append_piece(
        &self,
        object: u64,
        index: u32,
        body: Bytes,
    ) -> Result<PieceRef, AppendError> {
        let len = record_len(0, body.len());
        if len > RECORD_BYTES_MAX || index >= PIECES_MAX {
            return Err(AppendError::TooLarge);
        }
        self.enqueue(len, |reply| Work::Piece {
            object,
            index,
            body,
            reply,
        })
        .await
    }

    /// Stores an object, in place of an older one of that key, and returns once it is visible. The
    /// pieces of a large body must have been appended. Giving the same `object` again replaces its
    /// metadata and keeps the pieces.
    ///
    /// # Errors
    ///
    /// See [`AppendError`]; then the older object, if any, is still there.
    pub async fn append_object(
        &self,
        key: Key,
        object: u64,
        flags: u8,
        meta: Bytes,
        body: Body,
    ) -> Result<(), AppendError> {
        let len = match &body {
            Body::Inline(body) => record_len(meta.len(), body.len()),
            Body::Pieces(_) => record_len(meta.len(), 0),
        };
        if len > RECORD_BYTES_MAX || matches!(body, Body::Pieces(PIECES_MAX..)) {
            return Err(AppendError::TooLarge);
        }
        if matches!(body, Body::Pieces(0)) {
            return Err(AppendError::Torn);
        }
        self.enqueue(len, |reply| Work::Object {
            key,
            object,
            flags,
            meta,
            body,
            reply: Some(reply),
        })
        .await
    }

    /// A place in the queue for an object of so many bytes in all; mostly there is one at once. `None`: it
    /// is too large, or the disk is so far behind that there is none for a tenth of a second.
    pub async fn reserve(&self, bytes: usize) -> Option<Place> {
        if let Some(place) = self.reserve_at_once(bytes) {
            return Some(place);
        }
        let weight = place_weight(bytes)?;
        let room = Arc::clone(&self.room);
        let permit = timeout(PLACE_WAIT_MAX, room.acquire_many_owned(weight)).await;
        Some(Place(permit.ok()?.ok()?))
    }

    /// The same, if there is one at once.
    pub fn reserve_at_once(&self, bytes: usize) -> Option<Place> {
        let weight = place_weight(bytes)?;
        let permit = Arc::clone(&self.room).try_acquire_many_owned(weight);
        Some(Place(permit.ok()?))
    }

    /// Stores an object whose body is `body` without anybody waiting for it: a task and two wake-ups
    /// would cost more than the record. It becomes visible in the order of appends and removals. One that
    /// cannot be written is told to [`OnEvicted`], and counted.
    ///
    /// `false`: the store is closed.
    pub fn append_behind(
        &self,
        Place(permit): Place,
        key: Key,
        object: u64,
        flags: u8,
        meta: Bytes,
        body: Bytes,
    ) -> bool {
        let work = Work::Object {
            key,
            object,
            flags,
            meta,
            body: Body::Inline(body),
            reply: None,
        };
        let is_queued = self.queue.try_send(Job { work, permit }).is_ok();
        if self.room.available_permits() < QUEUE_BYTES / 2 {
            // There must be room for the next, however large these are.
            self.writer.unpark();
        }
        is_queued
    }

    /// Removes the object of `key`: invisible when this returns, gone for good when the future is
    /// done. An append of the same key that is not done before that may be removed with it.
    ///
    /// # Errors
    ///
    /// The removal could not be written: the object may be back after a restart.
    pub fn remove(
        &self,
        key: Key,
    ) -> impl Future<Output = Result<(), AppendError>> + Send + 'static {
        self.shared.table.remove(key);
        let store = self.clone();
        async move {
            let len = record_len(0, 0);
            store
                .enqueue(len, |reply| Work::Remove { key, reply })
                .await
        }
    }

    /// Forgets the pieces of an object that will not come to be; if it has, does nothing.
    pub fn forget_pieces(&self, object: u64) {
        self.shared.table.forget_pieces(object);
    }

    /// Writes what waits, syncs it to the disk, and lets go of the directory. Reads go on; appends
    /// are refused from here on.
    pub async fn close(&self) {
        // Being closed already is as good.
        let _ = self.enqueue(0, |reply| Work::Close { reply }).await;
    }

    /// The store in numbers.
    pub fn stats(&self) -> StoreStats {
        let counters = &self.shared.counters;
        let index_bytes = counters.index_bytes.load(Relaxed);
        StoreStats {
            disk_bytes: counters.segment_bytes.load(Relaxed)
                + index_bytes
                + counters.aside_bytes.load(Relaxed),
            index_bytes,
            objects: self.shared.table.len() as u64,
            segments: self.shared.segments().len() as u64,
            evicted_objects_total: counters.evicted_objects.load(Relaxed),
            reinserted_total: counters.reinserted.load(Relaxed),
            rebuilds_total: counters.rebuilds.load(Relaxed),
            lost_segments_total: counters.lost_segments.load(Relaxed),
            checksum_failures_total: counters.checksum_failures.load(Relaxed),
            write_errors_total: counters.write_errors.load(Relaxed),
            lost_behind_total: counters.lost_behind.load(Relaxed),
            appended_bytes_total: counters.appended_bytes.load(Relaxed),
            read_bytes_total: counters.read_bytes.load(Relaxed),
            reads_around_total: counters.reads_around.load(Relaxed),
        }
    }

    async fn enqueue<T>(
        &self,
        len: usize,
        work: impl FnOnce(oneshot::Sender<Result<T, AppendError>>) -> Work,
    ) -> Result<T, AppendError> {
        let permit = Arc::clone(&self.room)
            .acquire_many_owned(queue_weight(len))
            .await
            .map_err(|_| AppendError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let work = work(reply);
        // Never full: its places outnumber the permits.
        self.queue
            .try_send(Job { work, permit })
            .map_err(|_| AppendError::Closed)?;
        // It does not gather while somebody waits.
        self.writer.unpark();
        answer.await.map_err(|_| AppendError::Closed)?
    }
}

/// The object that `record` is, which stands where that of `key` should.
fn object_of(key: Key, slot: Slot, record: Bytes) -> Option<StoredObject> {
    let Record { entry, meta, body } = Record::decode(record)?;
    let body = match entry.index {
        0 => Body::Inline(body),
        count => Body::Pieces(count),
    };
    (entry.kind == Kind::Object && entry.key == key).then_some(StoredObject {
        object: entry.object,
        flags: slot.flags,
        meta,
        body,
    })
}

/// A place in the queue to the disk.
pub struct Place(OwnedSemaphorePermit);

/// What an object of so many bytes in all takes of the queue; `None`: it is too large.
fn place_weight(bytes: usize) -> Option<u32> {
    let len = record_len(0, bytes);
    (len <= RECORD_BYTES_MAX).then(|| queue_weight(len))
}

/// What a record of `len` bytes takes of the queue.
fn queue_weight(len: usize) -> u32 {
    let weight = len.clamp(QUEUE_RECORD_BYTES_MIN, QUEUE_BYTES);
    u32::try_from(weight).expect("QUEUE_BYTES is far below 4 GiB")
}

impl Shared {
    fn segment(&self, id: u32) -> Option<Arc<Segment>> {
        self.segments().get(&id).cloned()
    }

    fn segments(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<u32, Arc<Segment>>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn segments_mut(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<u32, Arc<Segment>>> {
        self.segments
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<&Arc<io::Error>> for AppendError {
    fn from(error: &Arc<io::Error>) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Self::DiskFull,
            _ => Self::Io(Arc::clone(error)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
