//! The writer: one thread that appends, keeps the disk within its budget, and tells the index.

use std::{
    collections::VecDeque,
    fs::File,
    io, mem,
    path::PathBuf,
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use cluster::key::Key;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};
use tracing::{error, warn};

use super::{
    AppendError, Body, OnEvicted, PieceRef, Shared, lock, open,
    table::{At, Span},
};
use crate::cache::{
    admission,
    index::{Index, IndexError},
    segment::{Entry, Kind, Record, Segment, encode_record, record_len},
};

/// How many bytes are gathered for one write: enough that system calls do not count.
const WRITE_BATCH_BYTES: usize = 4 << 20;
/// How long the first of a batch waits for more while nobody waits for any of them: waking this thread
/// for an object costs a miss more than writing it, and what a crash of this process loses is bounded by
/// this.
const GATHER_FOR: Duration = Duration::from_millis(10);
/// How long the index may lag behind the segments: what a start after a crash reads from them.
const INDEX_INTERVAL: Duration = Duration::from_millis(500);
/// How many records it may lag, so that its size is looked at before it has grown much: 8192
/// entries are 280 kB, some 550 kB of sled.
const INDEX_LAG_MAX: usize = 8192;
/// When to try again after the index failed.
const INDEX_RETRY: Duration = Duration::from_secs(60);
/// How often a failing disk is told of.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);
/// Most bytes copied when a segment is reclaimed, besides half a segment: appends wait meanwhile,
/// and a quarter of a second is what they can.
const REINSERT_BYTES_MAX: u64 = 256 << 20;

/// Something to be written, and its share of the queue, held until it is.
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) permit: OwnedSemaphorePermit,
}

type Reply<T> = oneshot::Sender<Result<T, AppendError>>;

pub(super) enum Work {
    Piece {
        object: u64,
        index: u32,
        body: bytes::Bytes,
        reply: Reply<PieceRef>,
    },
    Object {
        key: Key,
        object: u64,
        flags: u8,
        meta: bytes::Bytes,
        body: Body,
        /// `None`: nobody waits, see [`super::Store::append_behind`].
        reply: Option<Reply<()>>,
    },
    Remove {
        key: Key,
        reply: Reply<()>,
    },
    Close {
        reply: Reply<()>,
    },
}

/// A record in the buffer, and what is to happen once it is on disk.
pub(super) struct Pending {
    offset: u32,
    entry: Entry,
    then: Then,
}

enum Then {
    Piece(Reply<PieceRef>),
    Object(Reply<()>),
    /// An object that nobody waits for.
    Behind(Key),
    Removed(Reply<()>),
    /// A copy of the record that stands there.
    Moved(At),
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) on_evicted: OnEvicted,
    pub(super) dir: PathBuf,
    pub(super) disk_bytes_max: u64,
    pub(super) segment_bytes: u32,
    /// Nothing while the index is broken.
    pub(super) index: Option<Index>,
    pub(super) next_segment: u32,
    /// Full segments, oldest first.
    pub(super) sealed: VecDeque<Sealed>,
    pub(super) active: Option<Active>,
    pub(super) buffer: Vec<u8>,
    pub(super) pending: Vec<Pending>,
    pub(super) unindexed: Unindexed,
    pub(super) index_failed: Option<Instant>,
    pub(super) index_due: Instant,
    pub(super) complained: Option<Instant>,
    /// Bytes that may still be copied into the active segment.
    pub(super) reinsert_bytes: u64,
    /// Whether the ring has been full, so that the age of its oldest segment tells how fast it turns.
    pub(super) full: bool,
    /// Which of the full segments was last looked at, whether its file is still there.
    pub(super) looked_at: usize,
    /// Keeps other processes out of the directory for as long as this one writes.
    pub(super) _lock: File,
}

/// The segment that is written to, and how far it is.
pub(super) struct Active {
    segment: Arc<Segment>,
    end: u32,
    begun: Instant,
}

/// A segment that is not written to any more.
pub(super) struct Sealed {
    pub(super) segment: Arc<Segment>,
    pub(super) len: u64,
    /// When it was begun; nothing if an earlier process did.
    pub(super) begun: Option<Instant>,
}

/// Entries of consecutive records that the index does not have yet.
#[derive(Default)]
pub(super) struct Unindexed {
    from: Option<At>,
    entries: Vec<Entry>,
}

impl Work {
    /// Whether somebody waits for it to be done.
    fn is_awaited(&self) -> bool {
        !matches!(self, Self::Object { reply: None, .. })
    }
}

impl Writer {
    /// Works until it is told to close, or every handle is gone. Whoever queues something that is awaited
    /// unparks this thread, which may be gathering.
    pub(super) fn run(mut self, queue: &Receiver<Job>) {
        self.make_room();
        loop {
            let wait = self.index_due.saturating_duration_since(Instant::now());
            match queue.recv_timeout(wait) {
                Ok(job) => {
                    let (mut permits, mut gathers) = (Vec::new(), true);
                    let mut next = Some(job);
                    while let Some(Job { work, permit }) = next {
                        permits.push(permit);
                        if let Work::Close { reply } = work {
                            self.close();
                            drop(self);
                            let _ = reply.send(Ok(()));
                            return;
                        }
                        gathers &= !work.is_awaited();
                        self.take(work);
                        if self.buffer.len() >= WRITE_BATCH_BYTES {
                            break;
                        }
                        next = queue.try_recv().ok().or_else(|| {
                            if !mem::take(&mut gathers) {
                                return None;
                            }
                            thread::park_timeout(GATHER_FOR);
                            queue.try_recv().ok()
                        });
                    }
                    self.write_out();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.close(),
            }
            if Instant::now() >= self.index_due {
                self.index_due = Instant::now() + INDEX_INTERVAL;
                self.tell_index(true);
                self.give_up_lost();
                self.make_room();
                self.tell_turn();
            } else if self.unindexed.entries.len() >= INDEX_LAG_MAX {
                self.tell_index(false);
                self.make_room();
            }
        }
    }

    fn close(&mut self) {
        self.write_out();
        self.seal();
        self.tell_index(true);
        self.index = None;
    }

    /// Tells whoever asked that it was not written; they may have stopped waiting.
    fn failed(&self, then: Then, error: AppendError) {
        match then {
            Then::Piece(reply) => drop(reply.send(Err(error))),
            Then::Object(reply) | Then::Removed(reply) => drop(reply.send(Err(error))),
            Then::Behind(key) => {
                self.shared.counters.lost_behind.fetch_add(1, Relaxed);
                (self.on_evicted)(&[key]);
            }
            Then::Moved(_) => {}
        }
    }

    fn take(&mut self, work: Work) {
        let record = |kind, flags, key, object, index, len| Entry {
            kind,
            flags,
            key,
            object,
            index,
            len: u32::try_from(len).expect("RECORD_BYTES_MAX is far below 4 GiB"),
        };
        match work {
            Work::Piece {
                object,
                index,
                body,
                reply,
            } => {
                let len = record_len(0, body.len());
                let entry = record(Kind::Piece, 0, Key(0), object, index, len);
                self.append(entry, &[], &body, Then::Piece(reply));
            }
            Work::Object {
                key,
                object,
                flags,
                meta,
                body,
                reply,
            } => {
                let (count, body) = match body {
                    Body::Inline(body) => (0, body),
                    Body::Pieces(count) => (count, bytes::Bytes::new()),
                };
                let len = record_len(meta.len(), body.len());
                let entry = record(Kind::Object, flags, key, object, count, len);
                let then = reply.map_or(Then::Behind(key), Then::Object);
                self.append(entry, &meta, &body, then);
            }
            Work::Remove { key, reply } => {
                let len = record_len(0, 0);
                let entry = record(Kind::Tombstone, 0, key, 0, 0, len);
                self.append(entry, &[], &[], Then::Removed(reply));
            }
            Work::Close { .. } => {}
        }
    }

    fn append(&mut self, entry: Entry, meta: &[u8], body: &[u8], then: Then) {
        if let Err(error) = self.make_active(entry.len) {
            self.complain(&error);
            return self.failed(then, AppendError::from(&error));
        }
        // Pieces become known as they are written; those of this object may wait in the buffer.
        if entry.kind == Kind::Object && entry.index > 0 {
            self.write_out();
            if !self.shared.table.whole(entry.object, entry.index) {
                return self.failed(then, AppendError::Torn);
            }
        }
        let Some(active) = &self.active else {
            return self.failed(then, AppendError::Closed);
        };
        let offset = active.end + u32_len(&self.buffer);
        encode_record(&entry, meta, body, &mut self.buffer);
        self.pending.push(Pending {
            offset,
            entry,
            then,
        });
    }

    /// Writes the buffer and lets everybody know.
    fn write_out(&mut self) {
        let (buffer, pending) = (&mut self.buffer, mem::take(&mut self.pending));
        let Some(active) = self.active.as_mut().filter(|_| !pending.is_empty()) else {
            return;
        };
        let segment = Arc::clone(&active.segment);
        let written = segment.write(active.end, buffer).map_err(Arc::new);
        let counters = &self.shared.counters;
        let len = u32_len(buffer);
        if written.is_ok() {
            let at = At {
                segment: segment.id,
                offset: active.end,
            };
            self.unindexed.from.get_or_insert(at);
            active.end += len;
            counters.segment_bytes.fetch_add(u64::from(len), Relaxed);
            counters.appended_bytes.fetch_add(u64::from(len), Relaxed);
        }
        buffer.clear();
        if let Err(error) = &written {
            self.complain(error);
        }
        for record in pending {
            match &written {
                Ok(()) => self.written(&segment, record),
                Err(error) => self.failed(record.then, AppendError::from(error)),
            }
        }
    }

    fn written(&mut self, segment: &Arc<Segment>, record: Pending) {
        let Pending {
            offset,
            entry,
            then,
        } = record;
        self.unindexed.entries.push(entry);
        let table = &self.shared.table;
        let at = At {
            segment: segment.id,
            offset,
        };
        let span = Span::new(at, entry.len);
        // Whoever asked may have stopped waiting; what was written stands.
        match then {
            Then::Moved(from) => {
                table.moved(from, span, &entry);
                self.shared.counters.reinserted.fetch_add(1, Relaxed);
            }
            Then::Piece(reply) => {
                table.apply(at, &entry);
                drop(reply.send(Ok(PieceRef {
                    segment: Arc::clone(segment),
                    span,
                    object: entry.object,
                    index: entry.index,
                })));
            }
            Then::Object(reply) => {
                table.apply(at, &entry);
                let torn = entry.index > 0 && !table.whole(entry.object, entry.index);
                if torn {
                    // Its pieces were forgotten just now. The log says that it replaced what was
                    // there before, so nothing is there.
                    table.remove(entry.key);
                }
                let done = if torn { Err(AppendError::Torn) } else { Ok(()) };
                drop(reply.send(done));
            }
            // All of it is in this record.
            Then::Behind(_) => table.apply(at, &entry),
            Then::Removed(reply) => {
                table.apply(at, &entry);
                drop(reply.send(Ok(())));
            }
        }
    }

    /// Makes sure that the active segment has room for `len` bytes, by beginning a new one.
    fn make_active(&mut self, len: u32) -> Result<(), Arc<io::Error>> {
        if self.free_bytes() >= len {
            return Ok(());
        }
        self.write_out();
        if self.free_bytes() >= len {
            return Ok(());
        }
        self.seal();
        self.begin()?;
        self.make_room();
        self.tell_turn();
        Ok(())
    }

    fn free_bytes(&self) -> u32 {
        let used = |active: &Active| active.end + u32_len(&self.buffer);
        self.active
            .as_ref()
            .map_or(0, |active| self.segment_bytes.saturating_sub(used(active)))
    }

    fn begin(&mut self) -> Result<(), Arc<io::Error>> {
        let segment = Arc::new(Segment::create(
            &open::segments_dir(&self.dir),
            self.next_segment,
        )?);
        self.next_segment += 1;
        self.shared
            .segments_mut()
            .insert(segment.id, Arc::clone(&segment));
        self.reinsert_bytes = self.reinsert_bytes_max();
        self.active = Some(Active {
            segment,
            end: 0,
            begun: Instant::now(),
        });
        Ok(())
    }

    fn seal(&mut self) {
        if let Some(active) = self.active.take() {
            let Active {
                segment,
                end,
                begun,
            } = active;
            if let Err(error) = segment.sync() {
                self.complain(&Arc::new(error));
            }
            // The index hears of one segment at a time.
            self.tell_index(false);
            self.sealed.push_back(Sealed {
                segment,
                len: u64::from(end),
                begun: Some(begun),
            });
        }
    }

    fn reinsert_bytes_max(&self) -> u64 {
        u64::from(self.segment_bytes / 2).min(REINSERT_BYTES_MAX)
    }

    /// Reclaims the oldest segments until there is room on disk for all of the active segment, and
    /// for what the next reclaim copies before it frees anything; and until they are few enough.
    fn make_room(&mut self) {
        loop {
            let active = self.active.as_ref().map_or(0, |_| self.segment_bytes);
            let counters = &self.shared.counters;
            let used = self.sealed.iter().map(|sealed| sealed.len).sum::<u64>()
                + u64::from(active)
                + self.reinsert_bytes_max()
                + counters.index_bytes.load(Relaxed)
                + counters.aside_bytes.load(Relaxed);
            let files = self.sealed.len() + 1;
            if used <= self.disk_bytes_max && files <= open::SEGMENT_FILES_MAX {
                return;
            }
            if self.with_index(Index::compact) == Some(true) {
                self.measure_index();
                continue;
            }
            let Some(oldest) = self.sealed.pop_front() else {
                return;
            };
            self.full |= used > self.disk_bytes_max;
            self.reclaim(&oldest.segment, oldest.len);
        }
    }

    /// Lets the cache know whether it should be choosy.
    fn tell_turn(&self) {
        let oldest = self.sealed.front().filter(|_| self.full);
        let turn = oldest.and_then(|oldest| Some(oldest.begun?.elapsed()));
        let held_back = admission::holds_back(turn);
        self.shared.holds_back.store(held_back, Relaxed);
    }

    /// Lets go of segments whose files somebody has removed: of the active one at once, so that no more
    /// is acknowledged that the next start would miss; of the others one is looked at each time.
    fn give_up_lost(&mut self) {
        let gone = |active: &Active| active.segment.is_unlinked();
        let lost = if self.active.as_ref().is_some_and(gone) {
            self.write_out();
            self.seal();
            self.sealed.pop_back()
        } else {
            self.looked_at = (self.looked_at + 1) % self.sealed.len().max(1);
            let next = self.sealed.get(self.looked_at);
            match next.is_some_and(|sealed| sealed.segment.is_unlinked()) {
                true => self.sealed.remove(self.looked_at),
                false => None,
            }
        };
        let Some(lost) = lost else { return };
        warn!(
            segment = lost.segment.id,
            "segment file is gone; what is in use of it is written again"
        );
        self.shared.counters.lost_segments.fetch_add(1, Relaxed);
        if self.active.is_none()
            && let Err(error) = self.begin()
        {
            self.complain(&error);
        }
        self.reclaim(&lost.segment, lost.len);
    }

    fn reclaim(&mut self, segment: &Arc<Segment>, len: u64) {
        self.write_out();
        for hot in self.shared.table.hot(segment.id) {
            let room = self.reinsert_bytes.min(u64::from(self.free_bytes()));
            if hot.bytes > room {
                break;
            }
            for span in hot.spans {
                self.copy(segment, span);
            }
            self.reinsert_bytes -= hot.bytes;
        }
        self.write_out();
        // What was copied no longer stands there; so this is everything else.
        let evicted = self.shared.table.evict(segment.id);
        if !evicted.is_empty() {
            (self.on_evicted)(&evicted);
        }
        self.shared.segments_mut().remove(&segment.id);
        if let Err(error) = segment.unlink()
            && error.kind() != io::ErrorKind::NotFound
        {
            self.complain(&Arc::new(error));
        }
        let counters = &self.shared.counters;
        counters.segment_bytes.fetch_sub(len, Relaxed);
        counters
            .evicted_objects
            .fetch_add(evicted.len() as u64, Relaxed);
        self.with_index(|index| index.drop_segment(segment.id));
        self.measure_index();
    }

    fn copy(&mut self, from: &Segment, span: Span) {
        let read = from.read(span.at.offset, span.len.get());
        // What cannot be read is not worth keeping.
        let Some(record) = read.ok().and_then(Record::decode) else {
            return;
        };
        let mut entry = record.entry;
        if entry.kind == Kind::Object
            && let Some(slot) = self.shared.table.slot(entry.key)
        {
            entry.flags = slot.flags;
        }
        let offset = self
            .active
            .as_ref()
            .map_or(0, |active| active.end + u32_len(&self.buffer));
        encode_record(&entry, &record.meta, &record.body, &mut self.buffer);
        self.pending.push(Pending {
            offset,
            entry,
            then: Then::Moved(span.at),
        });
        if self.buffer.len() >= WRITE_BATCH_BYTES {
            self.write_out();
        }
    }

    /// Gives the index what it does not have yet.
    fn tell_index(&mut self, flush: bool) {
        self.reopen_index();
        let Unindexed { from, entries } = mem::take(&mut self.unindexed);
        let flagged = mem::take(&mut *lock(&self.shared.flagged));
        if from.is_none() && flagged.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        self.with_index(|index| {
            if let Some(at) = from {
                index.append(at.segment, at.offset, &entries)?;
            }
            for slot in flagged.into_iter().filter_map(|key| shared.table.slot(key)) {
                let at = slot.span.at;
                index.set_flags(at.segment, at.offset, slot.flags)?;
            }
            if flush { index.flush() } else { Ok(()) }
        });
        self.measure_index();
    }

    /// Calls the index, if there is one; if that fails, goes on without.
    fn with_index<T>(
        &mut self,
        call: impl FnOnce(&mut Index) -> Result<T, IndexError>,
    ) -> Option<T> {
        match call(self.index.as_mut()?) {
            Ok(answer) => Some(answer),
            Err(error) => {
                warn!(%error, retry_s = INDEX_RETRY.as_secs(), "index lost; the next start reads the segments");
                self.shared.counters.write_errors.fetch_add(1, Relaxed);
                self.index = None;
                self.index_failed = Some(Instant::now());
                None
            }
        }
    }

    fn reopen_index(&mut self) {
        if self
            .index_failed
            .is_some_and(|at| at.elapsed() >= INDEX_RETRY)
        {
            self.index_failed = None;
            match open::open_index(&self.dir, &self.shared.counters) {
                Ok(index) => self.index = Some(index),
                Err(error) => {
                    self.index_failed = Some(Instant::now());
                    warn!(%error, "index cannot be opened");
                }
            }
        }
    }

    fn measure_index(&self) {
        let bytes = crate::cache::index::bytes_on_disk(&open::index_dir(&self.dir));
        self.shared.counters.index_bytes.store(bytes, Relaxed);
    }

    fn complain(&mut self, error: &Arc<io::Error>) {
        self.shared.counters.write_errors.fetch_add(1, Relaxed);
        if self
            .complained
            .is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL)
        {
            self.complained = Some(Instant::now());
            error!(dir = %self.dir.display(), %error, "cache cannot be written; serving what it has");
        }
    }
}

fn u32_len(buffer: &[u8]) -> u32 {
    u32::try_from(buffer.len()).expect("a buffer is shorter than a segment")
}
