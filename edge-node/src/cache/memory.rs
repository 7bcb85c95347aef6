//! The hot tier: what can be answered without touching the disk. The only file that names
//! quick_cache.

use std::sync::Arc;

use cluster::key::Key;
use quick_cache::{DefaultHashBuilder, Lifecycle, Weighter, sync};

use super::entry::{Entry, Variants};

/// Share of the tier that one object may take: larger ones stay on disk, where the page cache
/// serves them, rather than push out a hundred small ones.
const OBJECT_SHARE: u64 = 64;
/// What the tier's own bookkeeping takes per item, in bytes.
const ITEM_OVERHEAD: u64 = 128;

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
    items: Arc<sync::Cache<Key, Item, ByBytes, DefaultHashBuilder, CountEvictions>>,
    object_bytes_max: u64,
    evicted: Arc<std::sync::atomic::AtomicU64>,
}

impl Memory {
    /// A tier of at most `bytes_max` bytes.
    pub fn new(bytes_max: u64) -> Self {
        let evicted = Arc::default();
        // Room for objects of 4 KiB on average; the weight, not this estimate, is the bound.
        let estimate = usize::try_from(bytes_max / 4096)
            .unwrap_or(usize::MAX)
            .max(64);
        let items = sync::Cache::with(
            estimate,
            bytes_max,
            ByBytes,
            DefaultHashBuilder::default(),
            CountEvictions(Arc::clone(&evicted)),
        );
        let object_bytes_max =
            (bytes_max / OBJECT_SHARE).min(cluster::manifest::PIECE_BYTES as u64);
        Self {
            items: Arc::new(items),
            object_bytes_max,
            evicted,
        }
    }

    /// What stands under `key`.
    pub fn find(&self, key: Key) -> Option<Item> {
        self.items.get(&key)
    }

    /// Puts `item` under `key`, in place of what was there.
    pub fn insert(&self, key: Key, item: Item) {
        self.items.insert(key, item);
    }

    /// Forgets `key`.
    pub fn remove(&self, key: Key) {
        self.items.remove(&key);
    }

    /// Largest body that is kept here.
    pub fn object_bytes_max(&self) -> u64 {
        self.object_bytes_max
    }

    /// Bytes and objects held, and objects evicted since the start.
    pub fn usage(&self) -> (u64, u64, u64) {
        let evicted = self.evicted.load(std::sync::atomic::Ordering::Relaxed);
        (self.items.weight(), self.items.len() as u64, evicted)
    }
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Item> for ByBytes {
    fn weight(&self, _: &Key, item: &Item) -> u64 {
        ITEM_OVERHEAD
            + match item {
                Item::Entry(entry) => entry.memory_bytes(),
                Item::Variants(variants) => variants.memory_bytes(),
            }
    }
}

#[derive(Clone)]
struct CountEvictions(Arc<std::sync::atomic::AtomicU64>);

impl Lifecycle<Key, Item> for CountEvictions {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), _: Key, _: Item) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}
