//! A node's compact summary of the keys it holds: 16 bits per key, in buckets, with deltas.
//!
//! A key falls into one of `2^bits` buckets by the high bits of its upper half and leaves there a
//! fingerprint, the 16 low bits of the same half. A snapshot lists, per bucket, the fingerprints in
//! order; with some 32 of them per bucket that is about 2.05 bytes per key, and a key that is not
//! held is claimed with a probability of about load / 65,536 (1 in 1,365 at the largest load). A
//! delta lists what came and went. Every version carries the sum of a hash of every entry, so a
//! receiver that has lost track notices, and asks for a snapshot.
//!
//! [`Holdings`] is the node that holds, [`Digest`] the node that asks. An *era* is a stretch of
//! versions with the same number of buckets; deltas do not reach across eras.

use std::{
    collections::{HashSet, VecDeque},
    mem::size_of,
    sync::Arc,
};

use crate::{
    key::{Key, KeyHashes},
    node::DigestVersion,
};

/// Most keys in a digest: 32 MiB of fingerprints. Keys beyond are held but not announced.
pub const KEYS_MAX: usize = 1 << 24;
/// Most changes remembered for deltas; who is further behind gets a snapshot. 1 MiB of memory.
pub const CHANGES_MAX: usize = 1 << 16;
/// Largest answer: [`KEYS_MAX`] fingerprints, and a byte or more per bucket.
pub const ANSWER_BYTES_MAX: usize = 2 * KEYS_MAX + 3 * (1 << BITS_MAX) + HEADER_BYTES;

/// Buckets are at most this many bits: 16 keys in each at [`KEYS_MAX`].
const BITS_MAX: u8 = 20;
/// A new era has at most this many keys per bucket on average, and more than half of it.
const LOAD_AT_START: usize = 32;
/// An era ends when the average load leaves this range: below, buckets cost more than they hold;
/// above, false claims become frequent.
const LOAD_MIN: usize = 10;
const LOAD_MAX: usize = 48;
/// Keys are kept in this many parts, so that a snapshot shares them and a change copies one.
const PARTS_BITS: u32 = 10;

const FORMAT: u8 = 1;
const SNAPSHOT: u8 = 0;
const DELTA: u8 = 1;
/// Format, kind, bits; epoch, seq, seq before, number of keys, sum.
const HEADER_BYTES: usize = 3 + 5 * 8;

/// The part of a key that digests know; buckets and fingerprints are both taken from it.
fn half(key: Key) -> u64 {
    (key.0 >> 64) as u64
}

/// Bucket and fingerprint as one number, so that entries sort by bucket first.
fn entry(half: u64, bits: u8) -> u64 {
    let bucket = half.checked_shr(64 - u32::from(bits)).unwrap_or(0);
    bucket << 16 | half & 0xffff
}

/// What an entry adds to the sum (the finalizer of SplitMix64).
fn weight(entry: u64) -> u64 {
    let mut x = entry.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// The bits that a new era of `len` keys has.
fn bits_for(len: usize) -> u8 {
    (0..BITS_MAX)
        .find(|bits| len <= LOAD_AT_START << bits)
        .unwrap_or(BITS_MAX)
}

/// The keys that a node holds, as it tells others. 10 to 20 bytes of memory per key. A change costs some
/// hundred nanoseconds and an [`Answer`] a few microseconds, whatever the number of keys.
pub struct Holdings {
    version: DigestVersion,
    parts: Vec<Arc<Part>>,
    len: usize,
    /// The sum for every number of bits, so that a new era costs nothing.
    sums: [u64; BITS_MAX as usize + 1],
    bits: u8,
    /// Changes of this era, the last of which made the current version: (held from then on?, half).
    changes: VecDeque<(bool, u64)>,
}

/// Halves of keys that begin alike. In no order: each miss adds one, and a search in a tree costs a wait for
/// memory at every level; they are put in order for who asks for all of them.
type Part = HashSet<u64, KeyHashes>;

impl Holdings {
    /// Nothing held yet. `epoch` is the boot time of the node in Unix milliseconds.
    pub fn new(epoch: u64) -> Self {
        Self {
            version: DigestVersion { epoch, seq: 0 },
            parts: vec![Arc::default(); 1 << PARTS_BITS],
            len: 0,
            sums: [0; BITS_MAX as usize + 1],
            bits: 0,
            changes: VecDeque::new(),
        }
    }

    /// `key` is held from now on. Returns whether that is news; beyond [`KEYS_MAX`] it is not told.
    pub fn add(&mut self, key: Key) -> bool {
        let half = half(key);
        if self.len >= KEYS_MAX || !self.part(half).insert(half) {
            return false;
        }
        self.len += 1;
        self.changed(true, half);
        true
    }

    /// `key` is not held any longer. Returns whether that is news.
    pub fn remove(&mut self, key: Key) -> bool {
        let half = half(key);
        if !self.part(half).remove(&half) {
            return false;
        }
        self.len -= 1;
        self.changed(false, half);
        true
    }

    /// What others should have.
    pub fn version(&self) -> DigestVersion {
        self.version
    }

    /// How many keys are held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What brings somebody who has version `since` up to date: a delta, or a snapshot if a delta is
    /// not possible or not smaller. Take it under the lock, and [`Answer::encode`] it outside.
    pub fn answer(&self, since: Option<DigestVersion>) -> Answer {
        let delta = since
            .filter(|since| since.epoch == self.version.epoch)
            .and_then(|since| self.version.seq.checked_sub(since.seq))
            .and_then(|behind| usize::try_from(behind).ok())
            .filter(|behind| *behind <= self.changes.len() && *behind <= self.len / 2 + 16)
            .map(|behind| {
                let known = self.changes.len() - behind;
                self.changes.range(known..).copied().collect()
            });
        Answer {
            version: self.version,
            bits: self.bits,
            len: self.len,
            sum: self.sums[usize::from(self.bits)],
            content: match delta {
                Some(changes) => Content::Delta(changes),
                None => Content::Snapshot(self.parts.clone()),
            },
        }
    }

    fn part(&mut self, half: u64) -> &mut Part {
        let part = usize::try_from(half >> (64 - PARTS_BITS)).expect("PARTS_BITS is small");
        Arc::make_mut(&mut self.parts[part])
    }

    fn changed(&mut self, held: bool, half: u64) {
        for (sum, bits) in self.sums.iter_mut().zip(0u8..) {
            let weight = weight(entry(half, bits));
            *sum = if held {
                sum.wrapping_add(weight)
            } else {
                sum.wrapping_sub(weight)
            };
        }
        self.version.seq += 1;
        let sparse = self.bits > 0 && self.len < LOAD_MIN << self.bits;
        let crowded = self.bits < BITS_MAX && self.len > LOAD_MAX << self.bits;
        if sparse || crowded {
            self.bits = bits_for(self.len);
            self.changes.clear();
            return;
        }
        if self.changes.len() == CHANGES_MAX {
            self.changes.pop_front();
        }
        self.changes.push_back((held, half));
    }
}

/// What a node answers about its holdings; shares the keys with [`Holdings`] until encoded.
pub struct Answer {
    version: DigestVersion,
    bits: u8,
    len: usize,
    sum: u64,
    content: Content,
}

enum Content {
    Snapshot(Vec<Arc<Part>>),
    Delta(Vec<(bool, u64)>),
}

impl Answer {
    /// The bytes to send. A snapshot of many keys takes milliseconds: not on a runtime thread.
    pub fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (kind, before) = match &self.content {
            Content::Snapshot(_) => (SNAPSHOT, 0),
            Content::Delta(changes) => (DELTA, self.version.seq - changes.len() as u64),
        };
        bytes.extend([FORMAT, kind, self.bits]);
        for number in [
            self.version.epoch,
            self.version.seq,
            before,
            self.len as u64,
            self.sum,
        ] {
            bytes.extend(number.to_le_bytes());
        }
        match self.content {
            Content::Snapshot(parts) => {
                bytes.reserve_exact(2 * self.len + (2 << self.bits));
                // Keys come in order, so buckets do; fingerprints within a bucket do not.
                let in_order = |part: &Arc<Part>| {
                    let mut halves: Vec<u64> = part.iter().copied().collect();
                    halves.sort_unstable();
                    halves
                };
                let mut entries = parts
                    .iter()
                    .flat_map(in_order)
                    .map(|half| entry(half, self.bits))
                    .peekable();
                let mut fingerprints = Vec::with_capacity(2 * LOAD_MAX);
                for bucket in 0..1u64 << self.bits {
                    fingerprints.clear();
                    while let Some(entry) = entries.next_if(|entry| entry >> 16 == bucket) {
                        fingerprints.push(fingerprint(entry));
                    }
                    fingerprints.sort_unstable();
                    put_number(&mut bytes, fingerprints.len() as u64);
                    bytes.extend(fingerprints.iter().flat_map(|f| f.to_le_bytes()));
                }
            }
            Content::Delta(changes) => {
                for entries in net(changes, self.bits) {
                    put_number(&mut bytes, entries.len() as u64);
                    let mut last = 0;
                    for entry in entries {
                        put_number(&mut bytes, entry - last);
                        last = entry;
                    }
                }
            }
        }
        bytes
    }
}

/// Entries that came and entries that went, each in order. A key that did both does not appear: of a
/// key's changes only the first and the last count, and they alternate.
fn net(mut changes: Vec<(bool, u64)>, bits: u8) -> [Vec<u64>; 2] {
    let mut came_and_went = [Vec::new(), Vec::new()];
    changes.sort_by_key(|(_, half)| *half);
    for of_one in changes.chunk_by(|a, b| a.1 == b.1) {
        let (held, half) = of_one[0];
        if of_one.len() % 2 == 1 {
            came_and_went[usize::from(!held)].push(entry(half, bits));
        }
    }
    for entries in &mut came_and_went {
        entries.sort_unstable();
    }
    came_and_went
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the low 16 bits are what is meant"
)]
fn fingerprint(entry: u64) -> u16 {
    entry as u16
}

/// What another node says it holds. Two bytes of memory per key, and four per bucket.
#[derive(Clone, Debug, Default)]
pub struct Digest {
    version: Option<DigestVersion>,
    bits: u8,
    /// Where each bucket begins in `fingerprints`, and where the last one ends.
    starts: Vec<u32>,
    fingerprints: Vec<u16>,
    sum: u64,
}

impl Digest {
    /// Nothing known of the other node.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Whether the other node claims to hold `key`. Never wrongly denied, as of
    /// [`version`](Self::version).
    pub fn contains(&self, key: Key) -> bool {
        let entry = entry(half(key), self.bits);
        usize::try_from(entry >> 16)
            .ok()
            .and_then(|bucket| self.bucket(bucket))
            .is_some_and(|found| found.contains(&fingerprint(entry)))
    }

    /// What to ask for changes since; `None` asks for a snapshot.
    pub fn version(&self) -> Option<DigestVersion> {
        self.version
    }

    /// How many keys the other node holds.
    pub fn len(&self) -> usize {
        self.fingerprints.len()
    }

    /// Whether the other node holds nothing, or nothing is known of it.
    pub fn is_empty(&self) -> bool {
        self.fingerprints.is_empty()
    }

    /// Memory in use, in bytes.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.starts.capacity() * size_of::<u32>()
            + self.fingerprints.capacity() * size_of::<u16>()
    }

    /// Takes an answer of the other node. A large one takes milliseconds: not on a runtime thread.
    ///
    /// # Errors
    ///
    /// Why it was not taken; the digest is as before. Go on with [`Digest::empty`], which asks for a
    /// snapshot. Never panics, whatever the bytes.
    pub fn apply(&mut self, bytes: &[u8]) -> Result<(), BadDigest> {
        if bytes.len() > ANSWER_BYTES_MAX {
            return Err(BadDigest::TooLarge);
        }
        let (&[format, kind, bits], mut rest) =
            bytes.split_first_chunk().ok_or(BadDigest::Malformed)?;
        let mut number = || {
            let (bytes, after) = rest.split_first_chunk().ok_or(BadDigest::Malformed)?;
            rest = after;
            Ok(u64::from_le_bytes(*bytes))
        };
        let (epoch, seq, before) = (number()?, number()?, number()?);
        let (len, sum) = (number()?, number()?);
        if format != FORMAT || bits > BITS_MAX {
            return Err(BadDigest::Malformed);
        }
        let len = usize::try_from(len)
            .ok()
            .filter(|len| *len <= KEYS_MAX)
            .ok_or(BadDigest::TooLarge)?;
        let mut next = match kind {
            SNAPSHOT => Self::from_snapshot(bits, len, rest)?,
            DELTA => {
                let old = DigestVersion { epoch, seq: before };
                if self.version != Some(old) || self.bits != bits {
                    return Err(BadDigest::OtherVersion);
                }
                self.with_delta(len, rest)?
            }
            _ => return Err(BadDigest::Malformed),
        };
        if next.fingerprints.len() != len || next.sum != sum {
            return Err(BadDigest::Diverged);
        }
        next.version = Some(DigestVersion { epoch, seq });
        *self = next;
        Ok(())
    }

    fn from_snapshot(bits: u8, len: usize, mut rest: &[u8]) -> Result<Self, BadDigest> {
        // Before memory is set aside: that much of it must be in the bytes at least.
        let buckets: usize = 1 << bits;
        if rest.len() < buckets + 2 * len {
            return Err(BadDigest::Malformed);
        }
        let mut digest = Self::with_capacity(bits, len);
        for bucket in 0..buckets as u64 {
            let count = take_count(&mut rest)?;
            if count > len - digest.fingerprints.len() || 2 * count > rest.len() {
                return Err(BadDigest::Malformed);
            }
            let (found, after) = rest.split_at(2 * count);
            rest = after;
            for pair in found.chunks_exact(2) {
                let one = u16::from_le_bytes([pair[0], pair[1]]);
                digest.sum = digest
                    .sum
                    .wrapping_add(weight(bucket << 16 | u64::from(one)));
                digest.fingerprints.push(one);
            }
            digest.close_bucket();
        }
        rest.is_empty()
            .then_some(digest)
            .ok_or(BadDigest::Malformed)
    }

    /// This digest with what came and without what went, in one pass over all three.
    fn with_delta(&self, len: usize, mut rest: &[u8]) -> Result<Self, BadDigest> {
        let came = take_entries(&mut rest)?;
        let went = take_entries(&mut rest)?;
        if !rest.is_empty() {
            return Err(BadDigest::Malformed);
        }
        if self.fingerprints.len() + came.len() != len + went.len() {
            return Err(BadDigest::Diverged);
        }
        let sum = came
            .iter()
            .fold(self.sum, |sum, e| sum.wrapping_add(weight(*e)));
        let sum = went.iter().fold(sum, |sum, e| sum.wrapping_sub(weight(*e)));
        let mut digest = Self::with_capacity(self.bits, len);
        let (mut came, mut went) = (came.into_iter().peekable(), went.into_iter().peekable());
        for (bucket, found) in (0u64..).zip(self.buckets()) {
            let untouched = |next: Option<&u64>| next.is_none_or(|entry| entry >> 16 != bucket);
            if untouched(came.peek()) && untouched(went.peek()) {
                digest.fingerprints.extend_from_slice(found);
                digest.close_bucket();
                continue;
            }
            for old in found {
                let old_entry = bucket << 16 | u64::from(*old);
                while let Some(new) = came.next_if(|new| *new <= old_entry) {
                    digest.fingerprints.push(fingerprint(new));
                }
                if went.next_if_eq(&old_entry).is_none() {
                    digest.fingerprints.push(*old);
                }
            }
            while let Some(new) = came.next_if(|new| new >> 16 == bucket) {
                digest.fingerprints.push(fingerprint(new));
            }
            digest.close_bucket();
        }
        // Something went that was not there, or lies outside every bucket.
        if came.next().is_some() || went.next().is_some() {
            return Err(BadDigest::Diverged);
        }
        digest.sum = sum;
        Ok(digest)
    }

    fn with_capacity(bits: u8, len: usize) -> Self {
        let mut starts = Vec::with_capacity((1 << bits) + 1);
        starts.push(0);
        Self {
            version: None,
            bits,
            starts,
            fingerprints: Vec::with_capacity(len),
            sum: 0,
        }
    }

    fn close_bucket(&mut self) {
        let end = u32::try_from(self.fingerprints.len()).expect("at most KEYS_MAX");
        self.starts.push(end);
    }

    fn bucket(&self, bucket: usize) -> Option<&[u16]> {
        let (start, end) = (self.starts.get(bucket)?, self.starts.get(bucket + 1)?);
        self.fingerprints.get(*start as usize..*end as usize)
    }

    fn buckets(&self) -> impl Iterator<Item = &[u16]> {
        (0..self.starts.len().saturating_sub(1)).filter_map(|bucket| self.bucket(bucket))
    }
}

/// Why an answer is not a digest, or not one for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadDigest {
    /// More than [`ANSWER_BYTES_MAX`] bytes or [`KEYS_MAX`] keys.
    #[error("the digest is too large")]
    TooLarge,
    /// Not an encoding of a digest.
    #[error("the digest cannot be decoded")]
    Malformed,
    /// A delta to a version that is not ours.
    #[error("the delta does not begin at our version")]
    OtherVersion,
    /// The sum says that we do not have what the holder thinks we have.
    #[error("the digest is not what its holder says it is")]
    Diverged,
}

/// Writes a number in as few groups of 7 bits as it needs, low groups first (LEB128).
fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(0x80 | (number & 0x7f) as u8);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take_number(rest: &mut &[u8]) -> Result<u64, BadDigest> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let (&byte, after) = rest.split_first().ok_or(BadDigest::Malformed)?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(BadDigest::Malformed)
}

fn take_count(rest: &mut &[u8]) -> Result<usize, BadDigest> {
    usize::try_from(take_number(rest)?)
        .ok()
        .filter(|count| *count <= KEYS_MAX)
        .ok_or(BadDigest::TooLarge)
}

/// Entries in order, as [`Answer::encode`] writes them.
fn take_entries(rest: &mut &[u8]) -> Result<Vec<u64>, BadDigest> {
    let count = take_count(rest)?;
    if count > CHANGES_MAX {
        return Err(BadDigest::TooLarge);
    }
    let mut entries = Vec::with_capacity(count.min(rest.len()));
    let mut last = 0u64;
    for _ in 0..count {
        last = last
            .checked_add(take_number(rest)?)
            .ok_or(BadDigest::Malformed)?;
        entries.push(last);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn key(n: u64) -> Key {
        Key::of(&[&n.to_le_bytes()])
    }

    fn full(n: u64) -> Holdings {
        let mut holdings = Holdings::new(7);
        for i in 0..n {
            assert!(holdings.add(key(i)));
        }
        holdings
    }

    fn pull(holdings: &Holdings, digest: &mut Digest) -> usize {
        let bytes = holdings.answer(digest.version()).encode();
        digest.apply(&bytes).unwrap();
        assert_eq!(digest.version(), Some(holdings.version()));
        assert_eq!(digest.len(), holdings.len());
        bytes.len()
    }

    #[test]
    fn size_and_false_claims_stay_within_bounds_at_every_scale() {
        // Eras end at 48 keys per bucket, so these are the extremes as well as round numbers.
        for n in [1_000, 1_536, 1_537, 10_000, 98_304, 98_305, 1_000_000] {
            let holdings = full(n);
            let mut digest = Digest::empty();
            let wire = pull(&holdings, &mut digest) as f64 / n as f64;
            let memory = digest.memory_bytes() as f64 / n as f64;
            assert!(
                (0..n).all(|i| digest.contains(key(i))),
                "a held key is claimed"
            );
            let asked = 100_000;
            let wrong = (n..n + asked).filter(|i| digest.contains(key(*i))).count();
            let rate = wrong as f64 / asked as f64;
            println!("{n}: {wire:.3} B on the wire, {memory:.3} B in memory, {rate:.5} false");
            assert!(wire <= 2.5 && memory <= 2.5, "{n}: {wire} {memory}");
            assert!(rate < 1.0 / 1_000.0, "{n}: {rate}");
        }
    }

    #[test]
    fn false_claims_of_100_000_keys_are_under_1_in_1_000() {
        let mut digest = Digest::empty();
        pull(&full(100_000), &mut digest);
        let wrong = (100_000..1_100_000)
            .filter(|i| digest.contains(key(*i)))
            .count();
        assert!(wrong < 1_000, "{wrong} of a million");
    }

    #[test]
    fn a_few_changes_travel_as_a_small_delta() {
        let mut holdings = full(100_000);
        let mut digest = Digest::empty();
        pull(&holdings, &mut digest);
        for i in 0..500 {
            assert!(holdings.remove(key(i)));
            assert!(holdings.add(key(1_000_000 + i)));
            // Came and went in between: nobody needs to know.
            assert!(holdings.add(key(2_000_000 + i)));
            assert!(holdings.remove(key(2_000_000 + i)));
        }
        assert!(pull(&holdings, &mut digest) < 1000 * 6);
        assert!((500..100_000).all(|i| digest.contains(key(i))));
        assert!((0..500).all(|i| digest.contains(key(1_000_000 + i))));
        assert!((0..500).filter(|i| digest.contains(key(*i))).count() < 10);
        assert!(
            pull(&holdings, &mut digest) < 64,
            "no change is a header only"
        );
    }

    #[test]
    fn who_is_too_far_behind_or_of_another_epoch_gets_a_snapshot() {
        let mut holdings = full(300_000);
        let mut digest = Digest::empty();
        pull(&holdings, &mut digest);
        for i in 0..CHANGES_MAX as u64 + 1 {
            holdings.remove(key(i));
        }
        assert!(pull(&holdings, &mut digest) > 400_000);

        let restarted = Holdings::new(8);
        pull(&restarted, &mut digest);
        assert!(digest.is_empty() && !digest.contains(key(299_999)));
        let ahead = DigestVersion { epoch: 8, seq: 5 };
        assert!(matches!(
            restarted.answer(Some(ahead)).content,
            Content::Snapshot(_)
        ));
    }

    #[test]
    fn repeated_changes_are_harmless() {
        let mut holdings = full(100);
        let version = holdings.version();
        assert!(!holdings.add(key(5)) && !holdings.remove(key(1_000)));
        assert_eq!(holdings.version(), version);
    }

    #[test]
    fn an_answer_is_of_its_moment_and_one_that_does_not_fit_changes_nothing() {
        let mut holdings = full(1_000);
        let early = holdings.answer(None);
        holdings.remove(key(1));
        let late = holdings.answer(Some(early.version)).encode();
        holdings.remove(key(2));
        let later = holdings
            .answer(Some(DigestVersion {
                epoch: 7,
                seq: 1_001,
            }))
            .encode();
        let mut digest = Digest::empty();
        assert_eq!(digest.apply(&late), Err(BadDigest::OtherVersion));
        digest.apply(&early.encode()).unwrap();
        assert!(digest.contains(key(1)));
        assert_eq!(digest.apply(&later), Err(BadDigest::OtherVersion));
        assert!(digest.contains(key(1)));
        digest.apply(&late).unwrap();
        digest.apply(&later).unwrap();
        assert_eq!(digest.len(), 998);
    }

    #[test]
    fn a_receiver_that_diverged_notices() {
        let (mut ours, mut theirs) = (full(1_000), Holdings::new(7));
        for i in 5_000..6_000 {
            theirs.add(key(i));
        }
        let mut digest = Digest::empty();
        pull(&theirs, &mut digest);
        ours.add(key(7_000));
        let delta = ours.answer(Some(theirs.version())).encode();
        assert_eq!(digest.apply(&delta), Err(BadDigest::Diverged));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(u64, u64),
        Remove(u64, u64),
        Pull,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let one = prop_oneof![
            4 => (0..3_000u64, 1..400u64).prop_map(|(at, n)| Step::Add(at, n)),
            3 => (0..3_000u64, 1..400u64).prop_map(|(at, n)| Step::Remove(at, n)),
            2 => Just(Step::Pull),
        ];
        proptest::collection::vec(one, 1..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_receiver_equals_its_holder_after_every_pull(steps in steps()) {
            let mut holdings = Holdings::new(1);
            let mut held = HashSet::new();
            let mut digest = Digest::empty();
            for step in steps.into_iter().chain([Step::Pull]) {
                match step {
                    Step::Add(at, n) => for i in at..at + n {
                        prop_assert_eq!(holdings.add(key(i)), held.insert(i));
                    },
                    Step::Remove(at, n) => for i in at..at + n {
                        prop_assert_eq!(holdings.remove(key(i)), held.remove(&i));
                    },
                    Step::Pull => {
                        pull(&holdings, &mut digest);
                        prop_assert!(held.iter().all(|i| digest.contains(key(*i))));
                        let mut afresh = Digest::empty();
                        pull(&holdings, &mut afresh);
                        prop_assert_eq!(&digest.starts, &afresh.starts);
                        prop_assert_eq!(&digest.fingerprints, &afresh.fingerprints);
                    }
                }
            }
        }

        #[test]
        fn corrupt_bytes_are_refused_or_harmless(
            at in any::<proptest::sample::Index>(),
            to in any::<u8>(),
            cut in any::<proptest::sample::Index>(),
            noise in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut holdings = full(300);
            let mut digest = Digest::empty();
            let snapshot = holdings.answer(None).encode();
            digest.apply(&snapshot).unwrap();
            holdings.add(key(900));
            holdings.remove(key(3));
            let delta = holdings.answer(digest.version()).encode();
            for good in [snapshot, delta] {
                let mut bad = good.clone();
                let at = at.index(bad.len());
                bad[at] = to;
                let _ = digest.clone().apply(&bad);
                let _ = digest.clone().apply(&good[..cut.index(good.len())]);
                let _ = digest.clone().apply(&[&good[..HEADER_BYTES], &noise].concat());
            }
            let _ = digest.clone().apply(&noise);
            for kind in [SNAPSHOT, DELTA] {
                let _ = digest.clone().apply(&[&[FORMAT, kind, 2], &noise[..]].concat());
            }
        }
    }
}
