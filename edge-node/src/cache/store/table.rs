//! The table in RAM: where every object and every piece stands on disk.
//!
//! It is what the records say when read in the order in which they were written; the same
//! [`Table::apply`] follows the writer and replays the log at a start. Pure: no disk, no clock, and
//! no lock is held longer than it takes to walk one shard.
//!
//! Locks are taken in the order shard, large; never two shards at once.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, Hasher},
    num::NonZeroU32,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use cluster::key::{Key, KeyHashes};

use super::super::segment::{Entry, Kind};

/// Shards of the table: enough that no lookup waits long for a walk over one of them (1/64 of a
/// million objects is 0.1 ms).
const SHARDS: usize = 64;
/// What is popular is copied so often after its last hit, and no more. With one hit instead of three a
/// popular object goes whenever one turn happens to miss it, which costs a point of the hit ratio.
const HITS_MAX: u8 = 3;
/// Most pieces of one object: a body of 64 GiB in pieces of 1 MiB.
pub(super) const PIECES_MAX: u32 = 1 << 16;

/// Where a record begins. Later records are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    pub(super) segment: u32,
    pub(super) offset: u32,
}

/// Where a record is, whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) at: At,
    pub(super) len: NonZeroU32,
}

impl Span {
    pub(super) fn new(at: At, len: u32) -> Self {
        let len = NonZeroU32::new(len).expect("a record has a header");
        Self { at, len }
    }
}

/// One object, as the table knows it: 16 bytes beside its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) span: Span,
    pub(super) flags: u8,
    /// Its body is in pieces.
    pub(super) large: bool,
    /// Hits that it has to its credit, at most [`HITS_MAX`]: each lets it outlive one turn of the ring.
    pub(super) hits: u8,
}

/// What stands in a segment and was hit since it was written there: one object, or what of a large
/// object is there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hot {
    pub(super) bytes: u64,
    pub(super) spans: Vec<Span>,
}

/// Keys as bytes: a `u128` would be aligned to 16 and cost a third more memory.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Bytes([u8; 16]);

impl Hash for Bytes {
    fn hash<H: Hasher>(&self, to: &mut H) {
        to.write_u128(u128::from_le_bytes(self.0));
    }
}

type Shard = HashMap<Bytes, Slot, KeyHashes>;

pub(super) struct Table {
    shards: Box<[Mutex<Shard>]>,
    large: Mutex<Large>,
    /// Keys may come from strangers; so which shard is theirs is ours to know.
    hasher: KeyHashes,
}

/// Objects whose bodies are in pieces.
#[derive(Default)]
struct Large {
    objects: HashMap<u64, Pieces>,
    of_key: HashMap<Bytes, u64, KeyHashes>,
}

/// The pieces of one object that are on disk.
#[derive(Default)]
struct Pieces {
    /// The object's key and how many pieces it has; nothing while it is being filled.
    head: Option<(Key, u32)>,
    spans: Vec<Option<Span>>,
}

impl Pieces {
    fn whole(&self, count: u32) -> bool {
        self.spans
            .get(..count as usize)
            .is_some_and(|spans| spans.iter().all(Option::is_some))
    }

    fn any_in(&self, segment: u32) -> bool {
        self.spans.iter().flatten().any(|s| s.at.segment == segment)
    }
}

impl Large {
    /// Forgets the large object of `key`, pieces and all, unless it is `but`.
    fn forget_key(&mut self, key: Key, but: Option<u64>) {
        if let Some(object) = self.of_key.get(&bytes(key)).copied()
            && Some(object) != but
        {
            self.of_key.remove(&bytes(key));
            self.objects.remove(&object);
        }
    }
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            large: Mutex::default(),
            hasher: KeyHashes::default(),
        }
    }

    pub(super) fn slot(&self, key: Key) -> Option<Slot> {
        self.shard(key).get(&bytes(key)).copied()
    }

    /// Changes the slot of `key`, if there is one; says whether there was.
    pub(super) fn change(&self, key: Key, change: impl FnOnce(&mut Slot)) -> bool {
        self.shard(key).get_mut(&bytes(key)).map(change).is_some()
    }

    /// Credits the object of `key`, if there is one, with a hit.
    pub(super) fn touch(&self, key: Key) {
        self.change(key, |slot| slot.hits = (slot.hits + 1).min(HITS_MAX));
    }

    /// These pieces of `object`, if all of them are there.
    pub(super) fn pieces(&self, object: u64, numbers: Range<u32>) -> Option<Vec<Span>> {
        let large = self.large();
        let spans = &large.objects.get(&object)?.spans;
        let spans = spans.get(numbers.start as usize..numbers.end as usize)?;
        spans.iter().copied().collect()
    }

    pub(super) fn whole(&self, object: u64, count: u32) -> bool {
        let large = self.large();
        large.objects.get(&object).is_some_and(|p| p.whole(count))
    }

    /// What the record at `at` says. Records must come in the order in which they were written.
    ///
    /// A large object is taken over even if pieces are missing; see [`Table::drop_torn`].
    pub(super) fn apply(&self, at: At, entry: &Entry) {
        let span = Span::new(at, entry.len);
        match entry.kind {
            Kind::Object => self.install(span, entry),
            Kind::Piece if entry.index < PIECES_MAX => {
                let mut large = self.large();
                let spans = &mut large.objects.entry(entry.object).or_default().spans;
                let index = entry.index as usize;
                if spans.len() <= index {
                    spans.resize(index + 1, None);
                }
                spans[index] = Some(span);
            }
            Kind::Piece => {}
            Kind::Tombstone => {
                self.remove(entry.key);
            }
        }
    }

    fn install(&self, span: Span, entry: &Entry) {
        let (key, object) = (entry.key, entry.object);
        let mut shard = self.shard(key);
        let mut slot = Slot {
            span,
            flags: entry.flags,
            large: entry.index > 0,
            hits: 0,
        };
        if slot.large {
            let mut large = self.large();
            large.forget_key(key, Some(object));
            let pieces = large.objects.entry(object).or_default();
            match pieces.head {
                // Nobody gives two objects one number; if it happened, the second is no object.
                Some((other, _)) if other != key => return,
                // A new head for the same pieces: what was hot stays so.
                Some(_) => slot.hits = shard.get(&bytes(key)).map_or(0, |old| old.hits),
                None => {}
            }
            pieces.head = Some((key, entry.index));
            large.of_key.insert(bytes(key), object);
        } else if shard.get(&bytes(key)).is_some_and(|old| old.large) {
            self.large().forget_key(key, None);
        }
        shard.insert(bytes(key), slot);
    }

    /// Removes the object of `key` and its pieces; says whether there was one.
    pub(super) fn remove(&self, key: Key) -> bool {
        let mut shard = self.shard(key);
        let old = shard.remove(&bytes(key));
        if old.is_some_and(|slot| slot.large) {
            self.large().forget_key(key, None);
        }
        old.is_some()
    }

    /// Forgets the pieces of an object that never came to be. One that did is left alone.
    pub(super) fn forget_pieces(&self, object: u64) {
        let mut large = self.large();
        if large.objects.get(&object).is_some_and(|p| p.head.is_none()) {
            large.objects.remove(&object);
        }
    }

    /// A record was copied: whoever stood at `from` stands at `to`, unless it is gone meanwhile.
    /// That has cost an object one of its hits.
    pub(super) fn moved(&self, from: At, to: Span, entry: &Entry) {
        match entry.kind {
            Kind::Object => {
                self.change(entry.key, |slot| {
                    if slot.span.at == from {
                        slot.span = to;
                        slot.hits = slot.hits.saturating_sub(1);
                    }
                });
            }
            Kind::Piece => {
                let mut large = self.large();
                if let Some(pieces) = large.objects.get_mut(&entry.object)
                    && let Some(Some(span)) = pieces.spans.get_mut(entry.index as usize)
                    && span.at == from
                {
                    *span = to;
                }
            }
            Kind::Tombstone => {}
        }
    }

    /// What in `segment` deserves to be kept, smallest first: that keeps the most objects.
    pub(super) fn hot(&self, segment: u32) -> Vec<Hot> {
        let mut hot = Vec::new();
        let mut large_heads = Vec::new();
        for shard in &self.shards {
            for (key, slot) in &*lock(shard) {
                if slot.hits > 0 && slot.large {
                    large_heads.push((*key, slot.span));
                } else if slot.hits > 0 && slot.span.at.segment == segment {
                    hot.push(Hot {
                        bytes: u64::from(slot.span.len.get()),
                        spans: vec![slot.span],
                    });
                }
            }
        }
        let large = self.large();
        for (key, head) in large_heads {
            let pieces = large.of_key.get(&key).and_then(|o| large.objects.get(o));
            let Some(pieces) = pieces else { continue };
            let spans: Vec<_> = pieces
                .spans
                .iter()
                .flatten()
                .copied()
                .chain([head])
                .filter(|span| span.at.segment == segment)
                .collect();
            if !spans.is_empty() {
                hot.push(Hot {
                    bytes: spans.iter().map(|s| u64::from(s.len.get())).sum(),
                    spans,
                });
            }
        }
        hot.sort_by_key(|hot| hot.bytes);
        hot
    }

    /// Removes every object of which anything stands in `segment`, and gives back their keys.
    pub(super) fn evict(&self, segment: u32) -> Vec<Key> {
        let mut evicted = Vec::new();
        for shard in &self.shards {
            lock(shard).retain(|key, slot| {
                let stays = slot.span.at.segment != segment;
                if !stays {
                    evicted.push(key_of(*key));
                    if slot.large {
                        self.large().forget_key(key_of(*key), None);
                    }
                }
                stays
            });
        }
        self.evict_large(|pieces| pieces.any_in(segment), &mut evicted);
        evicted
    }

    /// Removes large objects that lack a piece, and pieces that belong to no object. For the end of
    /// a replay.
    pub(super) fn drop_torn(&self) -> usize {
        let mut torn = Vec::new();
        self.evict_large(
            |pieces| !pieces.head.is_some_and(|(_, count)| pieces.whole(count)),
            &mut torn,
        );
        torn.len()
    }

    /// Removes what stands in no segment, or beyond the end of one.
    pub(super) fn drop_lost(&self, there: impl Fn(Span) -> bool) {
        for shard in &self.shards {
            lock(shard).retain(|key, slot| {
                let stays = there(slot.span);
                if !stays && slot.large {
                    self.large().forget_key(key_of(*key), None);
                }
                stays
            });
        }
        for pieces in self.large().objects.values_mut() {
            for span in &mut pieces.spans {
                *span = span.filter(|span| there(*span));
            }
        }
    }

    fn evict_large(&self, gone: impl Fn(&Pieces) -> bool, evicted: &mut Vec<Key>) {
        let mut heads = Vec::new();
        self.large().objects.retain(|object, pieces| {
            if !gone(pieces) {
                return true;
            }
            heads.extend(pieces.head.map(|(key, _)| (key, *object)));
            pieces.head.is_some()
        });
        for (key, object) in heads {
            // Another object may have taken the key since.
            let mut shard = self.shard(key);
            let mut large = self.large();
            if large.of_key.get(&bytes(key)) == Some(&object) {
                large.forget_key(key, None);
                shard.remove(&bytes(key));
                evicted.push(key);
            } else {
                large.objects.remove(&object);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// The keys whose flags contain `bits`.
    pub(super) fn keys_with(&self, bits: u8) -> Vec<Key> {
        let mut keys = Vec::new();
        for shard in &self.shards {
            let shard = lock(shard);
            let with = shard.iter().filter(|(_, slot)| slot.flags & bits == bits);
            keys.extend(with.map(|(key, _)| key_of(*key)));
        }
        keys
    }

    fn shard(&self, key: Key) -> MutexGuard<'_, Shard> {
        lock(&self.shards[shard_of(self.hasher.hash_one(key))])
    }

    fn large(&self) -> MutexGuard<'_, Large> {
        lock(&self.large)
    }
}

/// The shard of a hash. The last gets twice as much as the first, and those between in geometric
/// steps: a map doubles when it is full, and if all of them did so at once, a table that has just
/// grown would take twice the memory it needs, and all lookups would wait at the same time. So it
/// takes 1.6 places per object at any size, and grows a shard at a time.
fn shard_of(hash: u64) -> usize {
    // The high half is below 2^32, so this is exact, in 0..1 before the logarithm and after it.
    let at = (1.0 + (hash >> 32) as f64 / 2f64.powi(32)).log2();
    ((at * SHARDS as f64) as usize).min(SHARDS - 1)
}

fn bytes(key: Key) -> Bytes {
    Bytes(key.0.to_le_bytes())
}

fn key_of(Bytes(bytes): Bytes) -> Key {
    Key(u128::from_le_bytes(bytes))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here panics half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(segment: u32) -> At {
        At { segment, offset: 0 }
    }

    fn entry(kind: Kind, object: u64, index: u32) -> Entry {
        Entry {
            kind,
            flags: 0,
            key: Key(1),
            object,
            index,
            len: 100,
        }
    }

    /// Object 7 of two pieces, in segments 1 and 2; its head in 2.
    fn large() -> Table {
        let table = Table::new();
        table.apply(at(1), &entry(Kind::Piece, 7, 0));
        table.apply(at(2), &entry(Kind::Piece, 7, 1));
        table.apply(at(2), &entry(Kind::Object, 7, 2));
        table
    }

    #[test]
    fn a_copy_of_what_changed_meanwhile_is_not_taken() {
        let (object, copy) = (entry(Kind::Object, 1, 0), Span::new(at(9), 100));
        let table = Table::new();
        table.apply(at(1), &object);
        for _ in 0..2 * HITS_MAX {
            table.touch(Key(1));
        }
        assert_eq!(table.hot(1).len(), 1);
        table.moved(at(1), copy, &object);
        assert_eq!(
            table.slot(Key(1)).map(|slot| (slot.span, slot.hits)),
            Some((copy, HITS_MAX - 1))
        );
        table.apply(at(10), &object);
        table.moved(at(9), Span::new(at(11), 100), &object);
        assert_eq!(table.slot(Key(1)).unwrap().span.at, at(10));
        table.remove(Key(1));
        table.moved(at(10), copy, &object);
        assert_eq!(table.slot(Key(1)), None);
    }

    #[test]
    fn an_object_goes_with_any_of_its_pieces() {
        for segment in [1, 2] {
            let table = large();
            assert_eq!(table.pieces(7, 0..2).unwrap().len(), 2);
            assert_eq!(table.evict(segment), [Key(1)]);
            assert_eq!((table.len(), table.pieces(7, 0..1)), (0, None));
        }
        let table = large();
        assert_eq!(table.evict(3), []);
        table.touch(Key(1));
        assert_eq!(table.hot(1)[0].spans.len(), 1);
        assert_eq!(table.hot(2)[0].bytes, 200);
    }

    #[test]
    fn a_replay_leaves_nothing_torn_and_no_piece_without_an_object() {
        let table = large();
        table.apply(at(3), &entry(Kind::Piece, 8, 0));
        table.drop_lost(|span| span.at.segment != 1);
        assert_eq!(table.drop_torn(), 1);
        assert_eq!(
            (table.len(), table.pieces(7, 0..1), table.pieces(8, 0..1)),
            (0, None, None)
        );
        let table = large();
        table.apply(at(4), &entry(Kind::Object, 8, 3));
        assert!(table.pieces(7, 0..1).is_none(), "replaced");
        assert_eq!(table.drop_torn(), 1);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn a_number_given_twice_makes_no_second_object() {
        let table = large();
        let mut other = entry(Kind::Object, 7, 2);
        other.key = Key(2);
        table.apply(at(3), &other);
        assert!(table.slot(Key(2)).is_none() && table.pieces(7, 0..2).is_some());
    }

    #[test]
    fn shards_grow_one_after_the_other() {
        assert_eq!((shard_of(0), shard_of(u64::MAX)), (0, SHARDS - 1));
        let mut sizes = [0_u32; SHARDS];
        for n in 0..1_u64 << 20 {
            sizes[shard_of(n << 44)] += 1;
        }
        // Each is larger than the one before by a 64th of an octave, and the last twice the first.
        for (one, next) in sizes.iter().zip(&sizes[1..]) {
            let grows = f64::from(*next) / f64::from(*one);
            assert!((1.005..1.017).contains(&grows), "{sizes:?}");
        }
        let all = f64::from(sizes[SHARDS - 1]) / f64::from(sizes[0]);
        assert!((1.95..2.0).contains(&all), "{all}");
    }

    #[test]
    fn a_slot_is_small() {
        assert_eq!(size_of::<(Bytes, Slot)>(), 32);
        assert_eq!(size_of::<Option<Span>>(), 12);
    }
}
