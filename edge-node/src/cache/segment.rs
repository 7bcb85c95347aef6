//! Segment files: append-only runs of records that say themselves what they are.
//!
//! ```text
//! record = header (64 bytes) | meta | body                         numbers are little-endian
//! header = "CDNr" | format 1 | kind 1 | flags 1 | 0 | key 16 | object 8 | index 4
//!        | meta_len 4 | body_len 4 | check 20
//! check  = first 20 bytes of BLAKE3(header without check | meta)
//! ```
//!
//! The segments are the truth: whatever else the store keeps can be told again from them. A record
//! is looked for only where the one before it ends, never by searching for the magic: bodies are
//! chosen by strangers, and may contain what looks like records. The check therefore covers what
//! decides where the next record begins; bodies have hashes of their own, which their owner keeps
//! in `meta`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSliceMut},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use cluster::key::Key;
use rustix::io::{ReadWriteFlags, preadv2};

use super::buffers::Buffers;

/// Size of a record's header.
pub const HEADER_BYTES: usize = 64;
/// Largest record: a manifest and a piece at their largest, with their header; half of the smallest
/// segment, so that a segment half full of what was kept has room for it.
pub const RECORD_BYTES_MAX: usize = 2 << 20;
/// Version of the record format.
const FORMAT: u8 = 1;
const MAGIC: [u8; 4] = *b"CDNr";
const CHECK_AT: usize = 44;
/// How much a scan reads at once: a small body or the headers around a large one.
const SCAN_BYTES: usize = 32 << 10;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An object: `meta`, and the body if `index`, the number of its pieces, is 0.
    Object = 1,
    /// Piece `index` of the body of `object`.
    Piece = 2,
    /// From here on there is no object of this key.
    Tombstone = 3,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Object, Self::Piece, Self::Tombstone]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// What a record says of itself, without `meta` and body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// The caller's bits.
    pub flags: u8,
    /// Name of the object; zero for pieces.
    pub key: Key,
    /// Identity of the object; zero for tombstones.
    pub object: u64,
    /// Number of a piece; of an object, how many pieces it has (0: the body is in the record).
    pub index: u32,
    /// Length of the whole record, at least [`HEADER_BYTES`].
    pub len: u32,
}

/// Size of an encoded [`Entry`].
pub const ENTRY_BYTES: usize = 34;

impl Entry {
    /// The entry as the index keeps it.
    pub fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&[self.kind as u8, self.flags]);
        to.extend_from_slice(&self.key.0.to_le_bytes());
        to.extend_from_slice(&self.object.to_le_bytes());
        to.extend_from_slice(&self.index.to_le_bytes());
        to.extend_from_slice(&self.len.to_le_bytes());
    }

    /// Reads what [`Entry::encode`] wrote.
    pub fn decode(bytes: &[u8; ENTRY_BYTES]) -> Option<Self> {
        let entry = Self {
            kind: Kind::of(bytes[0])?,
            flags: bytes[1],
            key: Key(u128::from_le_bytes(array(bytes, 2))),
            object: u64::from_le_bytes(array(bytes, 18)),
            index: u32::from_le_bytes(array(bytes, 26)),
            len: u32::from_le_bytes(array(bytes, 30)),
        };
        (HEADER_BYTES..=RECORD_BYTES_MAX)
            .contains(&(entry.len as usize))
            .then_some(entry)
    }
}

/// Appends a record to `to`. `entry.len` must be the length that comes out.
pub fn encode_record(entry: &Entry, meta: &[u8], body: &[u8], to: &mut Vec<u8>) {
    let len = record_len(meta.len(), body.len());
    assert_eq!(len, entry.len as usize, "a record is as long as it says");
    let start = to.len();
    to.reserve(len);
    to.extend_from_slice(&MAGIC);
    to.extend_from_slice(&[FORMAT, entry.kind as u8, entry.flags, 0]);
    to.extend_from_slice(&entry.key.0.to_le_bytes());
    to.extend_from_slice(&entry.object.to_le_bytes());
    to.extend_from_slice(&entry.index.to_le_bytes());
    for part in [meta, body] {
        let part = u32::try_from(part.len()).expect("RECORD_BYTES_MAX is far below 4 GiB");
        to.extend_from_slice(&part.to_le_bytes());
    }
    let check = check(&to[start..], meta);
    to.extend_from_slice(&check);
    to.extend_from_slice(meta);
    to.extend_from_slice(body);
}

/// Length of a record of that much `meta` and body.
pub fn record_len(meta: usize, body: usize) -> usize {
    HEADER_BYTES + meta + body
}

/// A record as it was read, its header and `meta` proved by the check, its body not proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it says of itself.
    pub entry: Entry,
    /// What its owner wrote beside the body.
    pub meta: Bytes,
    /// The body, or nothing.
    pub body: Bytes,
}

impl Record {
    /// Reads the record that `bytes` are, exactly.
    pub fn decode(bytes: Bytes) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
        let (entry, meta_len) = decode_header(header)?;
        let meta = rest.get(..meta_len)?;
        if bytes.len() != entry.len as usize
            || check(&header[..CHECK_AT], meta) != header[CHECK_AT..]
        {
            return None;
        }
        Some(Self {
            entry,
            meta: bytes.slice(HEADER_BYTES..HEADER_BYTES + meta_len),
            body: bytes.slice(HEADER_BYTES + meta_len..),
        })
    }
}

fn decode_header(header: &[u8; HEADER_BYTES]) -> Option<(Entry, usize)> {
    if header[..4] != MAGIC || header[4] != FORMAT || header[7] != 0 {
        return None;
    }
    let meta = u32::from_le_bytes(array(header, 36)) as usize;
    let body = u32::from_le_bytes(array(header, 40)) as usize;
    let len = record_len(meta, body);
    if len > RECORD_BYTES_MAX {
        return None;
    }
    let entry = Entry {
        kind: Kind::of(header[5])?,
        flags: header[6],
        key: Key(u128::from_le_bytes(array(header, 8))),
        object: u64::from_le_bytes(array(header, 24)),
        index: u32::from_le_bytes(array(header, 32)),
        len: u32::try_from(len).expect("RECORD_BYTES_MAX is far below 4 GiB"),
    };
    Some((entry, meta))
}

fn check(header: &[u8], meta: &[u8]) -> [u8; 20] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(header);
    hasher.update(meta);
    array(hasher.finalize().as_bytes(), 0)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// One segment file, open. Whoever holds it can read it, even after it was unlinked.
#[derive(Debug)]
pub struct Segment {
    /// Its number; later segments have higher numbers, and no number is used twice.
    pub id: u32,
    path: PathBuf,
    file: File,
}

/// How a scan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At the end of the file, after a whole record.
    Clean,
    /// At a record that the file is too short for: what a stop in the middle of a write leaves.
    Torn(u32),
    /// At something that is no record.
    Garbage(u32),
}

impl Segment {
    /// Creates segment `id` in `dir`.
    ///
    /// # Errors
    ///
    /// As the system says; also if there is one already.
    pub fn create(dir: &Path, id: u32) -> io::Result<Self> {
        let path = dir.join(format!("{id:08}.seg"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        Ok(Self { id, path, file })
    }

    /// Opens every segment in `dir`, lowest number first. Files with other names are left alone.
    ///
    /// # Errors
    ///
    /// As the system says.
    pub fn open_all(dir: &Path) -> io::Result<Vec<Self>> {
        let mut segments = Vec::new();
        for found in fs::read_dir(dir)? {
            let path = found?.path();
            let id = path
                .file_name()
                .and_then(|name| name.to_str()?.strip_suffix(".seg"))
                .filter(|stem| stem.len() >= 8 && stem.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|stem| stem.parse().ok());
            if let (Some(id), true) = (id, path.is_file()) {
                let file = OpenOptions::new().read(true).write(true).open(&path)?;
                segments.push(Self { id, path, file });
            }
        }
        segments.sort_by_key(|segment| segment.id);
        Ok(segments)
    }

    /// Length of the file.
    ///
    /// # Errors
    ///
    /// As the system says.
    pub fn file_len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Whether the file is gone from its directory: it can be read for as long as it is open, and is
    /// lost with the process.
    pub fn is_unlinked(&self) -> bool {
        self.file.metadata().is_ok_and(|file| file.nlink() == 0)
    }

    /// Reads `len` bytes at `offset`. Blocks.
    ///
    /// # Errors
    ///
    /// As the system says; `UnexpectedEof` if the file is shorter.
    pub fn read(&self, offset: u32, len: u32) -> io::Result<Bytes> {
        let mut bytes = vec![0; len as usize];
        self.file.read_exact_at(&mut bytes, u64::from(offset))?;
        Ok(Bytes::from(bytes))
    }

    /// The same, if the system has all of it in its cache. Does not block.
    pub fn read_at_hand(&self, offset: u32, len: u32, buffers: &Buffers) -> Option<Bytes> {
        buffers.filled(len as usize, |bytes| {
            let (mut into, flags) = ([IoSliceMut::new(bytes)], ReadWriteFlags::NOWAIT);
            let read = preadv2(&self.file, &mut into, u64::from(offset), flags);
            // Whatever else keeps it from being read, be it a file system that cannot tell, a read that
            // may block will say.
            read.is_ok_and(|read| read == len as usize)
        })
    }

    /// Reads up to `len` bytes at `offset` for nobody but the system, which keeps them in its cache.
    /// Blocks.
    pub fn warm(&self, offset: u32, len: usize) {
        // Whoever wants them will hear of it if they cannot be read.
        let _ = self.file.read_at(&mut vec![0; len], u64::from(offset));
    }

    /// Writes `bytes` at `offset`; if that fails in the middle, cuts off what was written, so that
    /// nothing but whole records ever stands in front of a later one.
    ///
    /// # Errors
    ///
    /// As the system says.
    pub fn write(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        self.file
            .write_all_at(bytes, u64::from(offset))
            .inspect_err(|_| {
                if let Err(error) = self.truncate(offset) {
                    tracing::warn!(path = %self.path.display(), %error, "segment cannot be cut");
                }
            })
    }

    /// Cuts the file at `len`.
    ///
    /// # Errors
    ///
    /// As the system says.
    pub fn truncate(&self, len: u32) -> io::Result<()> {
        self.file.set_len(u64::from(len))
    }

    /// Waits until what was written is on the disk itself.
    ///
    /// # Errors
    ///
    /// As the system says.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Removes the file. Those who hold the segment can still read it.
    ///
    /// # Errors
    ///
    /// As the system says.
    pub fn unlink(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }

    /// Renames the file.
    ///
    /// # Errors
    ///
    /// As the system says.
    pub fn rename(&self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)
    }

    /// Visits every whole record from `offset` on, which must be where a record begins. Reads
    /// headers and `meta` only.
    ///
    /// # Errors
    ///
    /// As the system says.
    pub fn scan(&self, offset: u32, mut visit: impl FnMut(u32, Entry)) -> io::Result<End> {
        let file_len = self.file_len()?;
        let mut window = Window {
            file: &self.file,
            file_len,
            start: 0,
            bytes: Vec::new(),
        };
        let mut at = offset;
        while u64::from(at) < file_len {
            let Some(header) = window.get(at, HEADER_BYTES)? else {
                let rest =
                    window.get(at, usize::try_from(file_len - u64::from(at)).unwrap_or(0))?;
                return Ok(match rest {
                    Some(rest) if rest.iter().zip(MAGIC).all(|(a, b)| *a == b) => End::Torn(at),
                    _ => End::Garbage(at),
                });
            };
            let header: [u8; HEADER_BYTES] = array(header, 0);
            let Some((entry, meta_len)) = decode_header(&header) else {
                return Ok(End::Garbage(at));
            };
            let end = u64::from(at) + u64::from(entry.len);
            let (true, Ok(next)) = (end <= file_len, u32::try_from(end)) else {
                return Ok(End::Torn(at));
            };
            let whole = window
                .get(at, HEADER_BYTES + meta_len)?
                .is_some_and(|read| {
                    check(&header[..CHECK_AT], &read[HEADER_BYTES..]) == header[CHECK_AT..]
                });
            if !whole {
                return Ok(End::Garbage(at));
            }
            visit(at, entry);
            at = next;
        }
        Ok(End::Clean)
    }
}

/// A part of a file in memory, moved forward as the scan goes.
struct Window<'a> {
    file: &'a File,
    file_len: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// `len` bytes at `at`, or nothing if the file is too short for them.
    fn get(&mut self, at: u32, len: usize) -> io::Result<Option<&[u8]>> {
        let at = u64::from(at);
        if at + len as u64 > self.file_len {
            return Ok(None);
        }
        if at < self.start || at + len as u64 > self.start + self.bytes.len() as u64 {
            let want = (self.file_len - at).min(len.max(SCAN_BYTES) as u64);
            self.bytes
                .resize(usize::try_from(want).expect("at most RECORD_BYTES_MAX"), 0);
            self.start = at;
            self.file.read_exact_at(&mut self.bytes, at)?;
        }
        let from = usize::try_from(at - self.start).expect("inside the window");
        Ok(Some(&self.bytes[from..from + len]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(kind: Kind, meta: &[u8], body: &[u8]) -> Entry {
        Entry {
            kind,
            flags: 5,
            key: Key::of(&[meta]),
            object: 77,
            index: 3,
            len: u32::try_from(record_len(meta.len(), body.len())).unwrap(),
        }
    }

    fn record(meta: &[u8], body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_record(&entry(Kind::Object, meta, body), meta, body, &mut bytes);
        bytes
    }

    fn scan(segment: &Segment) -> (Vec<(u32, Entry)>, End) {
        let mut found = Vec::new();
        let end = segment
            .scan(0, |at, entry| found.push((at, entry)))
            .unwrap();
        (found, end)
    }

    proptest! {
        #[test]
        fn records_survive_and_damage_to_header_or_meta_is_seen(
            meta in prop::collection::vec(any::<u8>(), 0..200),
            body in prop::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
            bit in 0..8u8,
        ) {
            let mut bytes = record(&meta, &body);
            let read = Record::decode(Bytes::from(bytes.clone())).unwrap();
            prop_assert_eq!(read.entry, entry(Kind::Object, &meta, &body));
            prop_assert_eq!(&read.meta[..], &meta[..]);
            prop_assert_eq!(&read.body[..], &body[..]);
            let at = at.index(HEADER_BYTES + meta.len());
            bytes[at] ^= 1u8 << bit;
            prop_assert_eq!(Record::decode(Bytes::from(bytes)), None);
        }

        #[test]
        fn no_bytes_make_a_scan_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let dir = tempfile::tempdir().unwrap();
            let segment = Segment::create(dir.path(), 1).unwrap();
            segment.write(0, &bytes).unwrap();
            prop_assert!(scan(&segment).0.is_empty());
        }
    }

    #[test]
    fn an_entry_survives_its_encoding() {
        let one = entry(Kind::Piece, b"meta", b"body");
        let mut bytes = Vec::new();
        one.encode(&mut bytes);
        assert_eq!(bytes.len(), ENTRY_BYTES);
        assert_eq!(Entry::decode(&array(&bytes, 0)), Some(one));
        assert_eq!(Entry::decode(&[0; ENTRY_BYTES]), None);
    }

    #[test]
    fn a_scan_ends_where_records_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut whole = record(b"one", &[1; 100_000]);
        whole.extend(record(&[2; 70_000], b"two"));
        whole.extend(record(b"", b""));
        let last = u32::try_from(whole.len()).unwrap();
        for (n, (tail, end)) in [
            (vec![], End::Clean),
            (record(b"x", b"yz")[..66].to_vec(), End::Torn(last)),
            (record(b"x", b"yz")[..10].to_vec(), End::Torn(last)),
            (b"CD".to_vec(), End::Torn(last)),
            (vec![0; 3], End::Garbage(last)),
            (vec![0; 5000], End::Garbage(last)),
        ]
        .into_iter()
        .enumerate()
        {
            let segment = Segment::create(dir.path(), u32::try_from(n).unwrap()).unwrap();
            segment.write(0, &whole).unwrap();
            segment.write(last, &tail).unwrap();
            let (found, ended) = scan(&segment);
            assert_eq!(ended, end);
            assert_eq!(found.len(), 3);
            for (at, entry) in found {
                let bytes = segment.read(at, entry.len).unwrap();
                assert_eq!(Record::decode(bytes).unwrap().entry, entry);
            }
        }
    }

    #[test]
    fn a_record_inside_a_body_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let segment = Segment::create(dir.path(), 1).unwrap();
        let mut bytes = record(b"outer", &record(b"inner", b"forged"));
        segment.write(0, &bytes).unwrap();
        assert_eq!(scan(&segment).0.len(), 1);
        bytes[50] ^= 1;
        segment.write(0, &bytes).unwrap();
        assert_eq!(scan(&segment), (vec![], End::Garbage(0)));
    }
}
