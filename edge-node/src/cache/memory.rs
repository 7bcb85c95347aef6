//! The hot tier: objects, and pieces of large ones, that can be answered without touching the disk.
//! The only file that names quick_cache.
//!
//! Small objects and pieces share one budget, so that it goes to whatever is asked for. What comes in
//! stands in a small probation first and is promoted by a second use: a pass over a file larger than
//! the tier pushes out its own pieces, not what is hot.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use bytes::Bytes;
use cluster::{key::Key, manifest::PIECE_BYTES};
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter, sync};

use super::entry::{Body, Entry, Variants};

/// Share of the tier that one object or piece may take: one that is larger stays on disk, where the
/// page cache serves it, rather than push out all else.
const ITEM_SHARE: u64 = 16;
/// What the tier's own bookkeeping takes per item, in bytes.
const ITEM_OVERHEAD: u64 = 128;
/// What has been evicted is remembered by name, to be let in for good if it comes back soon: this many
/// names per object of 4 KiB that fits, so one per 20 KiB. More of them let in what comes back no
/// sooner than the tier turns over: with two and a half times as many, periodic scans took 17 points
/// off the hit ratio (`tests/bench/tiers.rs`).
const REMEMBERED_SHARE: f64 = 0.2;
/// The tier is cut into shards, each with a lock and a budget of its own; a shard has room for this
/// many pieces at least, so that where the keys happen to fall does not decide what stays.
const SHARD_PIECES_MIN: u64 = 32;
/// Most shards per processor: enough that two threads seldom meet in one.
const SHARDS_PER_CPU: usize = 4;

/// What stands under a key.
#[derive(Clone)]
pub enum Item {
    /// A response.
    Entry(Arc<Entry>),
    /// The key has variants: where to look further.
    Variants(Arc<Variants>),
}

/// The memory tier. A clone-able handle.
#[derive(Clone)]
pub struct Memory {
    held: Arc<sync::Cache<Name, Held, ByBytes, DefaultHashBuilder, Counts>>,
    counts: Counts,
    item_bytes_max: u64,
}

/// By what something is found. The number of an object is never given twice, so a piece that outlives
/// its object is found by nobody.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Name {
    Item(Key),
    Piece { object: u64, index: u32 },
}

#[derive(Clone)]
enum Held {
    Item(Item),
    Piece(Bytes),
}

impl Memory {
    /// A tier of at most `bytes_max` bytes.
    pub fn new(bytes_max: u64) -> Self {
        // Room for objects of 4 KiB on average; the weight, not this estimate, is the bound.
        let estimate = usize::try_from(bytes_max / 4096)
            .unwrap_or(usize::MAX)
            .max(64);
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let shards = usize::try_from(bytes_max / (SHARD_PIECES_MIN * PIECE_BYTES as u64))
            .unwrap_or(usize::MAX)
            .clamp(1, cpus * SHARDS_PER_CPU);
        let options = OptionsBuilder::new()
            .estimated_items_capacity(estimate)
            .weight_capacity(bytes_max)
            .ghost_allocation(REMEMBERED_SHARE)
            .shards(shards)
            .build()
            .expect("both capacities are set");
        let counts = Counts::default();
        let held = sync::Cache::with_options(
            options,
            ByBytes,
            DefaultHashBuilder::default(),
            counts.clone(),
        );
        Self {
            held: Arc::new(held),
            counts,
            item_bytes_max: (bytes_max / ITEM_SHARE).min(PIECE_BYTES as u64),
        }
    }

    /// What stands under `key`.
    pub fn find(&self, key: Key) -> Option<Item> {
        match self.held.get(&Name::Item(key))? {
            Held::Item(item) => Some(item),
            Held::Piece(_) => None,
        }
    }

    /// Whether `bytes` more fit without anything going for them.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.held.weight() + ITEM_OVERHEAD + bytes <= self.held.capacity()
    }

    /// What stands under `key`, without that counting as a use of it.
    pub fn peek(&self, key: Key) -> Option<Item> {
        match self.held.peek(&Name::Item(key))? {
            Held::Item(item) => Some(item),
            Held::Piece(_) => None,
        }
    }

    /// Puts `item` under `key`, in place of what was there.
    pub fn insert(&self, key: Key, item: Item) {
        let (name, new) = (Name::Item(key), object_of(&item));
        if let Some(Held::Item(old)) = self.held.peek(&name)
            && object_of(&old) != new
        {
            self.forget_pieces_of(&old);
        }
        self.held.insert(name, Held::Item(item));
    }

    /// Forgets `key`, and the pieces of the object under it.
    pub fn remove(&self, key: Key) {
        if let Some((_, Held::Item(item))) = self.held.remove(&Name::Item(key)) {
            self.forget_pieces_of(&item);
        }
    }

    /// Piece `index` of `object`.
    pub fn piece(&self, object: u64, index: u32) -> Option<Bytes> {
        match self.held.get(&Name::Piece { object, index })? {
            Held::Piece(bytes) => Some(bytes),
            Held::Item(_) => None,
        }
    }

    /// Keeps a piece, which must have been verified: whoever finds it here does not do so again.
    pub fn insert_piece(&self, object: u64, index: u32, bytes: Bytes) {
        if bytes.len() as u64 <= self.item_bytes_max {
            self.counts.pieces.fetch_add(1, Relaxed);
            let name = Name::Piece { object, index };
            self.held.insert(name, Held::Piece(bytes));
        }
    }

    /// Forgets the first `count` pieces of `object`.
    pub fn forget_pieces(&self, object: u64, count: usize) {
        for index in (0..).take(count) {
            if self.held.remove(&Name::Piece { object, index }).is_some() {
                self.counts.pieces.fetch_sub(1, Relaxed);
            }
        }
    }

    fn forget_pieces_of(&self, item: &Item) {
        if let Item::Entry(entry) = item
            && let Body::Pieces { hashes, .. } = &entry.body
        {
            self.forget_pieces(entry.object, hashes.len());
        }
    }

    /// Largest body that is kept here in one.
    pub fn object_bytes_max(&self) -> u64 {
        self.item_bytes_max
    }

    /// Bytes and objects held, and objects evicted since the start.
    pub fn usage(&self) -> (u64, u64, u64) {
        let pieces = self.counts.pieces.load(Relaxed);
        let objects = (self.held.len() as u64).saturating_sub(pieces);
        let evicted = self.counts.evicted.load(Relaxed);
        (self.held.weight(), objects, evicted)
    }
}

/// Number of the object in `item`; markers of variants have none.
fn object_of(item: &Item) -> Option<u64> {
    match item {
        Item::Entry(entry) => Some(entry.object),
        Item::Variants(_) => None,
    }
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Name, Held> for ByBytes {
    fn weight(&self, _: &Name, held: &Held) -> u64 {
        ITEM_OVERHEAD
            + match held {
                Held::Item(Item::Entry(entry)) => entry.memory_bytes(),
                Held::Item(Item::Variants(variants)) => variants.memory_bytes(),
                Held::Piece(bytes) => bytes.len() as u64,
            }
    }
}

/// Pieces held, and objects evicted since the start.
#[derive(Clone, Default)]
struct Counts {
    pieces: Arc<AtomicU64>,
    evicted: Arc<AtomicU64>,
}

impl Lifecycle<Name, Held> for Counts {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), name: Name, _: Held) {
        match name {
            Name::Item(_) => self.evicted.fetch_add(1, Relaxed),
            Name::Piece { .. } => self.pieces.fetch_sub(1, Relaxed),
        };
    }
}
