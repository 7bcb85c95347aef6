//! What clients have changed, and when: what is held of it from before is not used any more. Where many objects
//! belong to one URL (slices, and what is keyed by fields or cookies), nothing but this tells that they are from before.
//!
//! It is in memory. What outlives a start is until when there may have been changes: of what is older than that nobody
//! here knows whether it still holds, and the origin is asked once.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use cluster::key::{Key, KeyMap};

/// Keys remembered. When there are more, the older half is forgotten.
const KEYS_MAX: usize = 65_536;
/// A mark on disk is good for changes up to so much later: then there is one write a minute, however many changes.
const MARK_AHEAD_MS: u64 = 60_000;
/// The mark, in the data directory: Unix milliseconds, in digits.
const FILE: &str = "changed";

/// What is known of changes.
pub(super) struct Changes {
    /// When keys were changed, in Unix milliseconds.
    known: Mutex<KeyMap<u64>>,
    /// The mark that an earlier life has left.
    left_ms: u64,
    /// When this one was asked for the first time: what it has fetched itself is from later.
    begun_ms: OnceLock<u64>,
    /// When the newest of the changes was that are forgotten.
    forgotten_ms: AtomicU64,
    /// Until when the mark on disk is good.
    marked_ms: AtomicU64,
    file: PathBuf,
}

impl Changes {
    /// Reads the mark that an earlier life has left in `dir`. What cannot be read counts as the highest.
    pub(super) fn open(dir: &Path) -> Self {
        let file = dir.join(FILE);
        let left_ms = match fs::read_to_string(&file) {
            Ok(text) => text.trim().parse().unwrap_or(u64::MAX),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(_) => u64::MAX,
        };
        Self {
            known: Mutex::default(),
            left_ms,
            begun_ms: OnceLock::new(),
            forgotten_ms: AtomicU64::new(0),
            marked_ms: AtomicU64::new(0),
            file,
        }
    }

    /// A client has changed `key`.
    pub(super) fn note(&self, key: Key, now_ms: u64) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEYS_MAX {
            let mut times: Vec<u64> = known.values().copied().collect();
            let middle = times.len() / 2;
            let forgotten_ms = *times.select_nth_unstable(middle).1;
            known.retain(|_, at_ms| *at_ms > forgotten_ms);
            self.forgotten_ms.fetch_max(forgotten_ms, Ordering::Relaxed);
        }
        known.insert(key, now_ms);
    }

    /// When `key` was changed last; `None` if it was not, or that is forgotten.
    pub(super) fn at_ms(&self, key: Key) -> Option<u64> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&key).copied()
    }

    /// What was fetched until then may be from before a change that is forgotten.
    pub(super) fn unknown_ms(&self, now_ms: u64) -> u64 {
        // What is fetched for who asks first may be of the same millisecond.
        let begun_ms = *self.begun_ms.get_or_init(|| now_ms.saturating_sub(1));
        let forgotten_ms = self.forgotten_ms.load(Ordering::Relaxed);
        self.left_ms.min(begun_ms).max(forgotten_ms)
    }

    /// The mark that is due for a change at `now_ms`, and where it goes.
    pub(super) fn mark_due(&self, now_ms: u64) -> Option<(PathBuf, u64)> {
        let is_due = now_ms >= self.marked_ms.load(Ordering::Acquire);
        is_due.then(|| (self.file.clone(), now_ms.saturating_add(MARK_AHEAD_MS)))
    }

    /// It is on disk.
    pub(super) fn marked(&self, until_ms: u64) {
        self.marked_ms.fetch_max(until_ms, Ordering::AcqRel);
    }
}

/// Writes a mark as a whole: a crash leaves the old one or the new one. Blocks.
pub(super) fn write_mark(file: &Path, until_ms: u64) -> io::Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, until_ms.to_string())?;
    fs::File::open(&new)?.sync_all()?;
    fs::rename(new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> Key {
        Key::of(&[&n.to_le_bytes()])
    }

    #[test]
    fn what_is_forgotten_is_not_taken_for_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let changes = Changes::open(dir.path());
        assert_eq!(changes.unknown_ms(500), 0);
        let at_ms = |n: usize| 1_000 + n as u64;
        for n in 0..KEYS_MAX {
            changes.note(key(n), at_ms(n));
        }
        assert_eq!(changes.at_ms(key(7)), Some(at_ms(7)));
        changes.note(key(KEYS_MAX), at_ms(KEYS_MAX));
        let half = KEYS_MAX / 2;
        assert_eq!(changes.unknown_ms(at_ms(KEYS_MAX)), at_ms(half));
        for (n, known) in [
            (7, false),
            (half, false),
            (half + 1, true),
            (KEYS_MAX, true),
        ] {
            assert_eq!(changes.at_ms(key(n)), known.then_some(at_ms(n)), "{n}");
        }
    }

    #[test]
    fn a_mark_outlives_the_process_and_is_written_once_a_minute() {
        let dir = tempfile::tempdir().unwrap();
        let changes = Changes::open(dir.path());
        let (file, until_ms) = changes.mark_due(5_000).unwrap();
        assert_eq!(until_ms, 65_000);
        write_mark(&file, until_ms).unwrap();
        changes.marked(until_ms);
        assert_eq!(changes.mark_due(64_999), None);
        assert_eq!(changes.mark_due(65_000).unwrap().1, 125_000);
        assert_eq!(Changes::open(dir.path()).unknown_ms(70_000), 65_000);
        // It is ahead of its time, and what cannot be understood is the highest.
        for text in ["65000", "soon"] {
            fs::write(&file, text).unwrap();
            let changes = Changes::open(dir.path());
            assert_eq!(
                [10_000, 90_000].map(|now| changes.unknown_ms(now)),
                [9_999; 2]
            );
        }
    }
}
