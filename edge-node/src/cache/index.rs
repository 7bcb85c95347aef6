//! The index: what the records of the segments say of themselves, kept in sled so that a start need
//! not read the segments. The only file that names sled.
//!
//! ```text
//! segment (u32 BE) | 0 | offset (u32 BE)  →  entries of the records from that offset on, in order
//! segment (u32 BE) | 1 | offset (u32 BE)  →  flags of that record, changed since it was written
//! "format"                                →  version of this layout
//! ```
//!
//! Keys are places, not cache keys, and a value holds the entries of up to 64 consecutive records:
//! with one sled entry per cache key a million objects cost three times the space, thirty times the
//! processor and six times the time to open. Nothing is ever updated in the middle: a segment's part
//! grows at its end and goes with the segment.
//!
//! The lengths of the entries of one value tell the offset where the next value must begin. So the
//! index proves itself how far it covers a segment; what it does not cover, the store reads from the
//! segment. There is no other checkpoint that could run ahead of what it covers.
//!
//! sled 0.34 is not maintained. It may fail to open, or panic, on what a crash left; it frees the
//! memory of large batches far too late (3 kB per operation were never given back), hence single
//! inserts here. The index is therefore never trusted to be there: whoever opens it sets a broken
//! one aside and reads the segments.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use super::segment::{ENTRY_BYTES, Entry};

/// Version of the layout.
const FORMAT: u32 = 1;
const FORMAT_KEY: &[u8] = b"format";
/// Entries per value: 2 KiB of them, half of the most that ever goes into sled.
const ENTRIES_PER_VALUE: usize = 64;
/// sled's page cache. Writes go to the right edge only, and reads happen at the start.
const SLED_CACHE_BYTES: u64 = 8 << 20;
/// The index is written anew when it takes this many times what it holds (normally 2), ...
const COMPACT_FACTOR: u64 = 4;
/// ... and at least this much: sled's own files and its unit of growth.
const COMPACT_BYTES_MIN: u64 = 16 << 20;
/// sled frees what it has dropped only as it goes on, some hundred pages in as many reads. This many,
/// some milliseconds, free what an index of a few million objects leaves behind: 36 bytes an object.
const FREEING_READS: usize = 10_000;
/// Images read ahead of whoever asks for them: up to some 2 MB each.
const IMAGES_AHEAD: usize = 1;
/// How often, and how long apart, to try again while the last owner's threads let go of the lock.
const LOCK_TRIES: u32 = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

const ENTRIES: u8 = 0;
const FLAGS: u8 = 1;

/// The open index.
pub struct Index {
    /// Always there, except while it is being replaced.
    db: Option<sled::Db>,
    dir: PathBuf,
    /// Bytes of all keys and values.
    held: u64,
}

/// The index cannot be used: damaged, of another version, or the disk refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("index: {0}")]
pub struct IndexError(String);

/// What the index knows of one segment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Records from the beginning of the segment on, without a gap, with their offsets.
    pub records: Vec<(u32, Entry)>,
    /// Where they end.
    pub covered: u32,
    /// What this takes of the index, in bytes.
    pub held: u64,
}

/// All that an index knows, one segment after the other.
pub struct Images(mpsc::Receiver<Result<(u32, Image), IndexError>>);

impl Images {
    /// Reads the index in `dir` on a thread of its own, and closes it in the end. sled keeps most of
    /// what it has read for as long as it is open, and beyond ([`Index::after_reading`]); what it frees
    /// goes back to the system, as nothing of ours lies in between.
    ///
    /// # Errors
    ///
    /// The system refused a thread. What else can fail comes in place of an image, as the last one.
    pub fn read(dir: &Path) -> io::Result<Self> {
        let (sender, images) = mpsc::sync_channel(IMAGES_AHEAD);
        let dir = dir.to_owned();
        thread::Builder::new()
            .name("index-read".into())
            .spawn(move || {
                let send = |image| sender.send(image).is_ok();
                let read = || {
                    let index = Index::open(&dir)?;
                    let mut id = index.segment_after(0)?;
                    while let Some(segment) = id {
                        if !send(Ok((segment, index.image(segment)?))) {
                            break;
                        }
                        id = index.segment_after(segment)?;
                    }
                    Ok(())
                };
                // Who has stopped listening does not want to hear of errors either.
                let _ = read().map_err(|error| send(Err(error)));
            })?;
        Ok(Self(images))
    }
}

impl Iterator for Images {
    type Item = Result<(u32, Image), IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.recv().ok()
    }
}

impl Index {
    /// Opens the index in `dir`, or creates it. Blocks. Until it is told what it holds
    /// ([`Index::after_reading`]) it may be compacted once in vain.
    ///
    /// # Errors
    ///
    /// sled cannot read what is there, panicked over it, or did not survive it the last time.
    pub fn open(dir: &Path) -> Result<Self, IndexError> {
        let marker = marker(dir);
        if marker.exists() {
            let _ = fs::remove_file(&marker);
            return Err(IndexError("the last attempt to open it did not end".into()));
        }
        fs::write(&marker, b"").map_err(|e| IndexError(e.to_string()))?;
        let opened = Self::open_marked(dir);
        let _ = fs::remove_file(&marker);
        opened
    }

    fn open_marked(dir: &Path) -> Result<Self, IndexError> {
        let db = open_sled(dir)?;
        let mut index = Self {
            db: Some(db),
            dir: dir.to_owned(),
            held: 0,
        };
        let format = index.with(|db| db.get(FORMAT_KEY))?;
        match format.as_deref() {
            Some(found) if found == FORMAT.to_be_bytes() => {}
            Some(_) => return Err(IndexError("written by another version".into())),
            None if !index.with(|db| Ok(db.is_empty()))? => {
                return Err(IndexError("its format is not stated".into()));
            }
            None => index.put(FORMAT_KEY, &FORMAT.to_be_bytes())?,
        }
        Ok(index)
    }

    /// Notes that `images` bytes of it were read just now by somebody else: [`Index::compact`] goes by
    /// that, and what sled has dropped since is freed.
    ///
    /// # Errors
    ///
    /// sled failed.
    pub fn after_reading(mut self, images: u64) -> Result<Self, IndexError> {
        self.held = self.held.max(images);
        for _ in 0..FREEING_READS {
            self.with(|db| db.get(FORMAT_KEY).map(drop))?;
        }
        Ok(self)
    }

    /// The lowest segment above `after` that the index knows anything of.
    ///
    /// # Errors
    ///
    /// sled failed.
    pub fn segment_after(&self, after: u32) -> Result<Option<u32>, IndexError> {
        let Some(from) = after.checked_add(1) else {
            return Ok(None);
        };
        let first = self.with(|db| db.range(from.to_be_bytes()..).next().transpose())?;
        match first {
            Some((key, _)) if &*key != FORMAT_KEY => Ok(Some(place(&key)?.0)),
            _ => Ok(None),
        }
    }

    /// What the index knows of `segment`.
    ///
    /// # Errors
    ///
    /// sled failed, or holds what was never put there.
    pub fn image(&self, segment: u32) -> Result<Image, IndexError> {
        let mut image = Image::default();
        let pairs = self.with(|db| {
            db.scan_prefix(segment.to_be_bytes())
                .collect::<Result<Vec<_>, _>>()
        })?;
        for (key, value) in pairs {
            image.held += (key.len() + value.len()) as u64;
            match place(&key)? {
                (_, ENTRIES, offset) if offset == image.covered => {
                    let (entries, rest) = value.as_chunks::<ENTRY_BYTES>();
                    if !rest.is_empty() {
                        return Err(IndexError("a value has a wrong length".into()));
                    }
                    for bytes in entries {
                        let entry = Entry::decode(bytes)
                            .ok_or_else(|| IndexError("an entry makes no sense".into()))?;
                        image.records.push((image.covered, entry));
                        image.covered = image
                            .covered
                            .checked_add(entry.len)
                            .ok_or_else(|| IndexError("entries reach too far".into()))?;
                    }
                }
                // Behind a gap, left by a time without an index.
                (_, ENTRIES, _) => {}
                (_, _, offset) => {
                    let known = image.records.binary_search_by_key(&offset, |(at, _)| *at);
                    if let (Ok(n), [flags]) = (known, &*value) {
                        image.records[n].1.flags = *flags;
                    }
                }
            }
        }
        Ok(image)
    }

    /// Adds the entries of the records of `segment` from `offset` on, in order and without a gap.
    ///
    /// # Errors
    ///
    /// sled failed.
    pub fn append(
        &mut self,
        segment: u32,
        offset: u32,
        entries: &[Entry],
    ) -> Result<(), IndexError> {
        let mut offset = offset;
        for some in entries.chunks(ENTRIES_PER_VALUE) {
            let mut value = Vec::with_capacity(some.len() * ENTRY_BYTES);
            let mut next = offset;
            for entry in some {
                entry.encode(&mut value);
                next += entry.len;
            }
            self.put(&key(segment, ENTRIES, offset), &value)?;
            offset = next;
        }
        Ok(())
    }

    /// Notes the flags of the record at `offset` of `segment`.
    ///
    /// # Errors
    ///
    /// sled failed.
    pub fn set_flags(&mut self, segment: u32, offset: u32, flags: u8) -> Result<(), IndexError> {
        self.put(&key(segment, FLAGS, offset), &[flags])
    }

    /// Forgets all of `segment`.
    ///
    /// # Errors
    ///
    /// sled failed.
    pub fn drop_segment(&mut self, segment: u32) -> Result<(), IndexError> {
        let gone = self.with(|db| {
            let mut gone = 0;
            for key in db.scan_prefix(segment.to_be_bytes()).keys() {
                let key = key?;
                gone += db.remove(&key)?.map_or(0, |value| key.len() + value.len()) as u64;
            }
            Ok(gone)
        })?;
        self.held = self.held.saturating_sub(gone);
        Ok(())
    }

    /// Makes durable what was put so far. Blocks.
    ///
    /// # Errors
    ///
    /// sled or the disk failed.
    pub fn flush(&self) -> Result<(), IndexError> {
        self.with(|db| db.flush().map(drop))
    }

    /// Writes the index anew if it takes far more space than what it holds needs: sled reuses its
    /// file but never shrinks it. Says whether it takes less now. A crash in the middle costs a scan
    /// of the segments.
    ///
    /// # Errors
    ///
    /// sled or the disk failed.
    pub fn compact(&mut self) -> Result<bool, IndexError> {
        let (bytes, held) = (self.bytes_on_disk(), self.held);
        if bytes < COMPACT_BYTES_MIN || bytes < COMPACT_FACTOR * held {
            return Ok(false);
        }
        // Held in memory (34 bytes an object, less than the table above takes) so that the disk
        // need not hold two of them.
        let pairs = self.with(|db| db.iter().collect::<Result<Vec<_>, _>>())?;
        self.close();
        fs::remove_dir_all(&self.dir).map_err(|e| IndexError(e.to_string()))?;
        self.db = Some(open_sled(&self.dir)?);
        self.held = 0;
        for (key, value) in pairs {
            self.put(&key, &value)?;
        }
        self.flush()?;
        let now = self.bytes_on_disk();
        tracing::info!(bytes, held, now, "index compacted");
        Ok(now < bytes)
    }

    /// What the index takes on disk, in bytes. Blocks.
    pub fn bytes_on_disk(&self) -> u64 {
        bytes_on_disk(&self.dir)
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), IndexError> {
        let old = self.with(|db| db.insert(key, value))?;
        let old = old.map_or(0, |old| key.len() + old.len());
        self.held = (self.held + (key.len() + value.len()) as u64).saturating_sub(old as u64);
        Ok(())
    }

    fn with<T>(&self, call: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T, IndexError> {
        match &self.db {
            Some(db) => guarded(|| call(db)),
            None => Err(IndexError("lost while it was written anew".into())),
        }
    }

    fn close(&mut self) {
        let db = self.db.take();
        let _ = guarded(|| {
            drop(db);
            Ok(())
        });
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.close();
    }
}

/// Stands beside the index while it is being opened: sled may also die in ways that no handler
/// catches, and then the next start must not try again.
fn marker(dir: &Path) -> PathBuf {
    dir.with_extension("opening")
}

fn open_sled(dir: &Path) -> Result<sled::Db, IndexError> {
    let config = sled::Config::new()
        .path(dir)
        .mode(sled::Mode::LowSpace)
        .cache_capacity(SLED_CACHE_BYTES)
        .flush_every_ms(None);
    let mut tries = 0;
    loop {
        match guarded(|| config.open()) {
            Err(error) if error.0.contains("could not acquire lock") && tries < LOCK_TRIES => {
                tries += 1;
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the store is opened on a thread that may block"
                )]
                thread::sleep(LOCK_PAUSE);
            }
            opened => return opened,
        }
    }
}

/// Calls into sled; a panic in there is an error here.
fn guarded<T>(call: impl FnOnce() -> sled::Result<T>) -> Result<T, IndexError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(answer) => answer.map_err(|error| IndexError(error.to_string())),
        Err(_) => Err(IndexError("sled panicked".into())),
    }
}

fn key(segment: u32, what: u8, offset: u32) -> [u8; 9] {
    let mut key = [0; 9];
    key[..4].copy_from_slice(&segment.to_be_bytes());
    key[4] = what;
    key[5..].copy_from_slice(&offset.to_be_bytes());
    key
}

fn place(key: &[u8]) -> Result<(u32, u8, u32), IndexError> {
    let &[s0, s1, s2, s3, what, o0, o1, o2, o3] = key else {
        return Err(IndexError("a key has a wrong length".into()));
    };
    let segment = u32::from_be_bytes([s0, s1, s2, s3]);
    Ok((segment, what, u32::from_be_bytes([o0, o1, o2, o3])))
}

/// What `path` and everything in it take on disk, in bytes; what cannot be read counts nothing.
pub fn bytes_on_disk(path: &Path) -> u64 {
    fn walk(path: &Path) -> io::Result<u64> {
        let metadata = fs::symlink_metadata(path)?;
        let mut bytes = metadata.blocks() * 512;
        if metadata.is_dir() {
            for entry in fs::read_dir(path)? {
                bytes += walk(&entry?.path()).unwrap_or(0);
            }
        }
        Ok(bytes)
    }
    walk(path).unwrap_or(0)
}
