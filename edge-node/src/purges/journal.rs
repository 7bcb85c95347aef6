//! Purges on disk: a snapshot of the table, and behind it a file to which each change is appended, synced
//! before it is acknowledged.
//!
//! A tail that was cut is dropped: what it said was not acknowledged. A file that is lost or damaged takes
//! with it that anything was applied which it said; then that is asked for again, before this node answers
//! from its cache. What was taken in twice is in force once.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use cluster::purge::{Passage, Step, Table};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::cache::store::crc;

const LOG: &str = "purges.log";
const SNAPSHOT: &str = "purges.snapshot";
/// How a snapshot begins; another version of it another way.
const MAGIC: &[u8; 8] = b"purges-1";
/// Longest frame: the largest purge takes a tenth.
const FRAME_BYTES_MAX: usize = 1 << 20;
const FRAME_HEAD_BYTES: usize = 8;
/// The file grows to this, and to twice a snapshot, before that is written anew.
const LOG_BYTES_MIN: u64 = 4 << 20;
/// Frames that wait until the disk takes them again; when there are more, the whole table is written then.
const PENDING_MAX: usize = 10_000;

/// A change, as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Frame {
    /// A purge.
    Step(Step),
    /// Nothing is missing in between.
    Passage(Passage),
}

/// The files.
pub struct Journal {
    dir: PathBuf,
    log: File,
    /// How much of it is good.
    length: u64,
    snapshot_bytes: u64,
    /// What could not be written.
    pending: Vec<Frame>,
    /// Some of that was let go of.
    is_behind: bool,
}

impl Journal {
    /// Reads what is in `dir`, as far as it is good, into a table of so many scopes.
    ///
    /// # Errors
    ///
    /// The files cannot be read or made.
    pub fn open(dir: &Path, scopes_max: usize) -> io::Result<(Self, Table)> {
        let read = match std::fs::read(dir.join(SNAPSHOT)) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut table = match &read {
            None => None,
            Some(bytes) => {
                let table = sealed(bytes).and_then(|body| Table::from_bytes(body, scopes_max));
                if table.is_none() {
                    warn!("purges on disk are damaged; all of them are asked for again");
                }
                table
            }
        }
        .unwrap_or_else(|| Table::new(scopes_max));
        let mut log = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(dir.join(LOG))?;
        let mut bytes = Vec::new();
        log.read_to_end(&mut bytes)?;
        let mut good = 0;
        while let Some((frame, length)) = first_frame(&bytes[good..]) {
            match frame {
                Frame::Step(step) => {
                    table.take(&step);
                }
                Frame::Passage(passage) => table.pass(passage),
            }
            good += length;
        }
        if good < bytes.len() {
            let lost = bytes.len() - good;
            warn!(
                bytes = lost,
                "the end of the purges on disk was cut off and is dropped"
            );
        }
        let journal = Self {
            dir: dir.to_owned(),
            log,
            length: good as u64,
            snapshot_bytes: read.map_or(0, |bytes| bytes.len() as u64),
            pending: Vec::new(),
            is_behind: false,
        };
        Ok((journal, table))
    }

    /// Writes `frames`, and what could not be written before, and syncs them to the disk; `table` gives all
    /// there is, for when the file has grown long.
    ///
    /// # Errors
    ///
    /// Not all of it is on disk. The next call tries again.
    pub fn append(
        &mut self,
        frames: Vec<Frame>,
        table: impl FnOnce() -> Vec<u8>,
    ) -> io::Result<()> {
        self.pending.extend(frames);
        let written = if self.is_behind {
            self.compact(&table())
        } else if self.pending.is_empty() {
            return Ok(());
        } else {
            self.write(table)
        };
        match &written {
            Ok(()) => {
                self.pending.clear();
                self.is_behind = false;
            }
            Err(_) if self.pending.len() > PENDING_MAX => {
                self.pending.clear();
                self.is_behind = true;
            }
            Err(_) => {}
        }
        written
    }

    fn write(&mut self, table: impl FnOnce() -> Vec<u8>) -> io::Result<()> {
        let mut bytes = Vec::new();
        for frame in &self.pending {
            let body = postcard::to_stdvec(frame).map_err(io::Error::other)?;
            if body.len() > FRAME_BYTES_MAX {
                return Err(io::Error::other("a purge that is too large"));
            }
            bytes.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend_from_slice(&crc(&body).to_le_bytes());
            bytes.extend_from_slice(&body);
        }
        // What an earlier attempt left behind goes.
        self.log.set_len(self.length)?;
        self.log.seek(SeekFrom::Start(self.length))?;
        self.log.write_all(&bytes)?;
        self.log.sync_data()?;
        self.length += bytes.len() as u64;
        if self.length > LOG_BYTES_MIN.max(2 * self.snapshot_bytes)
            && let Err(error) = self.compact(&table())
        {
            warn!(%error, "purges on disk could not be compacted; the file grows on");
        }
        Ok(())
    }

    fn compact(&mut self, table: &[u8]) -> io::Result<()> {
        let new = self.dir.join(SNAPSHOT).with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(MAGIC)?;
        file.write_all(&crc(table).to_le_bytes())?;
        file.write_all(table)?;
        file.sync_all()?;
        std::fs::rename(&new, self.dir.join(SNAPSHOT))?;
        File::open(&self.dir)?.sync_all()?;
        self.snapshot_bytes = table.len() as u64;
        // From here on it only repeats what the snapshot says.
        self.log.set_len(0)?;
        self.length = 0;
        self.log.sync_all()
    }
}

/// What a snapshot says, if it is whole.
fn sealed(bytes: &[u8]) -> Option<&[u8]> {
    let (sum, body) = bytes.strip_prefix(MAGIC)?.split_first_chunk()?;
    (u32::from_le_bytes(*sum) == crc(body)).then_some(body)
}

/// The first frame in `bytes` and how long it is, if it is whole.
fn first_frame(bytes: &[u8]) -> Option<(Frame, usize)> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (sum, rest) = rest.split_first_chunk()?;
    let length = u32::from_le_bytes(*length) as usize;
    let body = rest.get(..length).filter(|_| length <= FRAME_BYTES_MAX)?;
    if crc(body) != u32::from_le_bytes(*sum) {
        return None;
    }
    Some((postcard::from_bytes(body).ok()?, FRAME_HEAD_BYTES + length))
}

#[cfg(test)]
mod tests {
    use cluster::purge::{Mark, Position};
    use tempfile::tempdir;

    use super::*;

    const SCOPES_MAX: usize = 100_000;

    fn at(seq: u64) -> Position {
        Position { log: 7, seq }
    }

    fn frame(seq: u64) -> Frame {
        Frame::Step(Step {
            at: at(seq),
            prev: seq - 1,
            site: "a".into(),
            soft: false,
            marks: vec![Mark::Exact(seq.into())],
        })
    }

    fn append(journal: &mut Journal, table: &mut Table, frames: &[Frame]) {
        for frame in frames {
            match frame {
                Frame::Step(step) => {
                    table.take(step);
                }
                Frame::Passage(passage) => table.pass(*passage),
            }
        }
        journal
            .append(frames.to_vec(), || table.to_bytes())
            .unwrap();
    }

    #[test]
    fn what_the_disk_did_not_take_is_written_when_it_does_again() {
        let dir = tempdir().unwrap();
        let (mut journal, mut table) = Journal::open(dir.path(), SCOPES_MAX).unwrap();
        // One that cannot be written to.
        let full = std::mem::replace(&mut journal.log, File::open(dir.path().join(LOG)).unwrap());
        for seq in 1..=3 {
            let Frame::Step(step) = frame(seq) else {
                unreachable!()
            };
            table.take(&step);
            assert!(
                journal
                    .append(vec![frame(seq)], || table.to_bytes())
                    .is_err()
            );
        }
        // Nothing is new now, and it is not acknowledged either.
        assert!(journal.append(Vec::new(), || table.to_bytes()).is_err());
        journal.log = full;
        journal.append(Vec::new(), || table.to_bytes()).unwrap();
        let (_, read) = Journal::open(dir.path(), SCOPES_MAX).unwrap();
        assert_eq!(read.said(), table.said());

        journal.log = File::open(dir.path().join(LOG)).unwrap();
        let many: Vec<_> = (4..=PENDING_MAX as u64 + 10).map(frame).collect();
        for frame in &many {
            let Frame::Step(step) = frame else {
                unreachable!()
            };
            table.take(step);
        }
        assert!(journal.append(many, || table.to_bytes()).is_err());
        assert!(journal.pending.is_empty());
        journal.log = OpenOptions::new()
            .write(true)
            .open(dir.path().join(LOG))
            .unwrap();
        journal.append(Vec::new(), || table.to_bytes()).unwrap();
        let (_, read) = Journal::open(dir.path(), SCOPES_MAX).unwrap();
        assert_eq!(read.said(), table.said());
    }

    #[test]
    fn what_was_written_is_there_again() {
        let dir = tempdir().unwrap();
        let (mut journal, mut table) = Journal::open(dir.path(), SCOPES_MAX).unwrap();
        assert_eq!(table.applied(), Position::default());
        append(&mut journal, &mut table, &[frame(1), frame(2)]);
        let passage = Passage {
            from: at(2),
            to: at(6),
        };
        append(
            &mut journal,
            &mut table,
            &[Frame::Passage(passage), frame(9)],
        );
        let (_, read) = Journal::open(dir.path(), SCOPES_MAX).unwrap();
        assert_eq!(read.said(), table.said());
        assert_eq!(read.applied(), at(6));
    }

    #[test]
    fn a_tail_that_was_cut_is_dropped_and_written_over() {
        let dir = tempdir().unwrap();
        let (mut journal, mut table) = Journal::open(dir.path(), SCOPES_MAX).unwrap();
        append(&mut journal, &mut table, &[frame(1)]);
        let one = std::fs::read(dir.path().join(LOG)).unwrap();
        append(&mut journal, &mut table, &[frame(2)]);
        let both = std::fs::read(dir.path().join(LOG)).unwrap();
        for length in one.len()..both.len() {
            std::fs::write(dir.path().join(LOG), &both[..length]).unwrap();
            let (mut journal, mut read) = Journal::open(dir.path(), SCOPES_MAX).unwrap();
            assert_eq!(read.applied(), at(1), "{length}");
            append(&mut journal, &mut read, &[frame(2)]);
            assert_eq!(std::fs::read(dir.path().join(LOG)).unwrap(), both);
        }
    }

    #[test]
    fn a_bit_that_has_flipped_takes_with_it_what_follows() {
        let dir = tempdir().unwrap();
        let (mut journal, mut table) = Journal::open(dir.path(), SCOPES_MAX).unwrap();
        append(&mut journal, &mut table, &[frame(1), frame(2), frame(3)]);
        let good = std::fs::read(dir.path().join(LOG)).unwrap();
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 1;
            std::fs::write(dir.path().join(LOG), &bad).unwrap();
            let (_, read) = Journal::open(dir.path(), SCOPES_MAX).unwrap();
            assert!(read.applied() < at(3), "{place}");
            assert_eq!(
                read.applied().seq,
                (place * 3 / good.len()) as u64,
                "{place}"
            );
        }
    }

    #[test]
    fn a_long_file_becomes_a_snapshot_and_one_without_it_says_that_nothing_was_applied() {
        let dir = tempdir().unwrap();
        let (mut journal, mut table) = Journal::open(dir.path(), SCOPES_MAX).unwrap();
        let mut seq = 0;
        while journal.snapshot_bytes == 0 {
            let frames: Vec<_> = (seq + 1..=seq + 1_000).map(frame).collect();
            seq += 1_000;
            append(&mut journal, &mut table, &frames);
        }
        append(&mut journal, &mut table, &[frame(seq + 1)]);
        assert!(journal.length < LOG_BYTES_MIN);
        let (_, read) = Journal::open(dir.path(), SCOPES_MAX).unwrap();
        assert_eq!(read.said(), table.said());
        assert_eq!(read.applied(), at(seq + 1));
        let path = dir.path().join(SNAPSHOT);
        let good = std::fs::read(&path).unwrap();
        for damage in [None, Some(0), Some(9), Some(good.len() / 2)] {
            match damage {
                None => std::fs::remove_file(&path).unwrap(),
                Some(place) => {
                    let mut bad = good.clone();
                    bad[place] ^= 1;
                    std::fs::write(&path, bad).unwrap();
                }
            }
            let (_, read) = Journal::open(dir.path(), SCOPES_MAX).unwrap();
            assert_eq!(read.applied(), Position::default(), "{damage:?}");
            assert!(read.has_gap());
        }
    }
}
