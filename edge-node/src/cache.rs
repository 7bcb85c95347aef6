//! The object cache: one question ([`Cache::lookup`]), one answer ([`Lookup`]), and the right to
//! fill what is missing ([`Filler`]).
//!
//! Modules in reading order: the [`key`] of a request (it reads [`cookie`]s and [`percent`]-encoding)
//! and its variants ([`vary`]); what may be stored and reused ([`policy`], pure), and what else decides
//! that ([`standing`], pure); an [`entry`], its fields [`packed`], and the [`fill`] that makes it grow; a
//! fetch that is `under_way`, whom it need not wait for (`passing`, pure), and what is fetched for it
//! ([`Filler`], [`Writing`]); the tiers ([`memory`], then [`store`] over [`segment`] files and their
//! [`index`], read on a [`pool`] of threads of their own), the [`pieces`] of large bodies in both, small
//! bodies that are [`shelved`], and `finding` something there; what goes to disk at once ([`admission`],
//! pure), and what is claimed to others (`claims`).
//!
//! **Invariant:** the cache knows no upstream. It says that something is missing; who asks whom for
//! it is decided elsewhere.
//!
//! **Locks:** all are held for a few instructions and never across an await.

pub mod admission;
pub mod buffers;
mod changes;
mod claims;
pub mod cookie;
pub mod entry;
pub mod fill;
mod filler;
mod finding;
pub mod index;
pub mod key;
pub mod memory;
pub mod meta;
pub mod packed;
mod passing;
pub mod percent;
pub mod pieces;
pub mod policy;
pub mod pool;
pub mod refusals;
pub mod segment;
pub mod shelved;
pub mod standing;
pub mod store;
#[cfg(test)]
mod tests;
mod under_way;
pub mod vary;
mod writing;

use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use cluster::{
    digest::Holdings,
    key::{Key, KeyMap},
    manifest::PieceHash,
    node::DigestVersion,
};
use http::HeaderMap;
use tokio::{sync::Semaphore, time::Instant};
use tracing::{debug, warn};

use self::{
    changes::Changes,
    entry::{Body, Entry},
    finding::Found,
    memory::{Item, Memory},
    passing::Passing,
    pieces::Pieces,
    policy::{CacheControl, Reuse, Rules, Why},
    store::{Store, StoreStats},
    under_way::{Fill, Told},
};
pub use self::{
    filler::{Filler, Following, Onlooker},
    standing::{Judge, Standing},
    writing::Writing,
};
use crate::{error::ServeError, metrics::TierUsage};

/// Pieces up to this size are hashed where they are; larger ones on the pool, since a runtime
/// thread must not be kept longer than some 100 µs.
const HASH_INLINE_MAX: usize = 128 << 10;
/// Fills of one key that may wait for the disk, one behind the other; each holds its object's body.
const UNWRITTEN_FILLS_MAX: usize = 4;
/// How often a lookup starts over when what it saw has changed under it.
const LOOKUP_TRIES: usize = 4;
/// Objects that are on their way to disk because they were asked for again; one for which there is no
/// place is asked for once more, or is not worth it.
const ADMITTING_MAX: usize = 64;

/// What the cache says to a request. The only thing `proxy` branches on.
pub enum Lookup {
    /// It may be used as it is.
    Fresh(Arc<Entry>),
    /// It is there, but has to be validated first, or may be used once more while somebody does.
    Stale {
        /// The response.
        entry: Arc<Entry>,
        /// Why it must not be used before; `None`: it may (`stale-while-revalidate`, `max-stale`).
        must: Option<Why>,
        /// Whether this request is the one to validate it.
        turn: Turn,
    },
    /// Somebody is fetching it.
    Filling(Following),
    /// It is not there; whoever gets this must fetch it.
    Absent(Filler),
    /// The client wants it from storage only, and from there it cannot have it.
    Unavailable,
    /// Its last answers could not be shared: go ahead without waiting for anybody.
    Pass,
}

/// Whether a request fetches, or follows one that does.
pub enum Turn {
    /// Fetch.
    Fill(Filler),
    /// Follow.
    Follow(Following),
}

/// What came of a fill, told to everybody who waits for it.
#[derive(Clone)]
pub enum Outcome {
    /// A response that may be shared; its body may still be growing.
    Shared(Arc<Entry>),
    /// The stored response still holds.
    Refreshed(Arc<Entry>),
    /// The answer was not for everybody.
    NotShared,
    /// The answer says nothing of what others ask for: look again.
    Again,
    /// There is no answer.
    Failed(ServeError),
}

/// What a request asks of the cache.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    /// The key of its URL.
    pub key: Key,
    /// Its header fields, for variants.
    pub headers: &'a HeaderMap,
    /// Its `Cache-Control`.
    pub said: &'a CacheControl,
    /// The site's rules.
    pub rules: &'a Rules,
    /// Knows what is against what is stored.
    pub judge: &'a dyn Judge,
    /// Now, in Unix milliseconds.
    pub now_ms: u64,
}

/// The object cache. A clone-able handle.
#[derive(Clone)]
pub struct Cache {
    shared: Arc<Shared>,
}

struct Shared {
    memory: Memory,
    store: Store,
    pieces: Pieces,
    fills: Mutex<KeyMap<Arc<Fill>>>,
    passing: Mutex<Passing>,
    changes: Changes,
    holdings: Arc<Mutex<Holdings>>,
    withdrawals: Mutex<claims::Withdrawals>,
    object_bytes_max: u64,
    store_failures: AtomicU64,
    held_back: AtomicU64,
    admitting: Arc<Semaphore>,
}

impl Cache {
    /// A cache of two tiers. `holdings` is what this node claims to hold; the caller has the store
    /// report evictions to it.
    pub fn new(
        memory: Memory,
        store: Store,
        holdings: Arc<Mutex<Holdings>>,
        object_bytes_max: u64,
    ) -> Self {
        {
            let mut held = holdings.lock().expect("nobody panicked with it yet");
            store.claimed_keys().into_iter().for_each(|key| {
                held.add(key);
            });
        }
        Self {
            shared: Arc::new(Shared {
                pieces: Pieces::new(memory.clone(), store.clone()),
                memory,
                changes: Changes::open(store.dir()),
                store,
                fills: Mutex::default(),
                passing: Mutex::default(),
                holdings,
                withdrawals: Mutex::default(),
                object_bytes_max,
                store_failures: AtomicU64::new(0),
                held_back: AtomicU64::new(0),
                admitting: Arc::new(Semaphore::new(ADMITTING_MAX)),
            }),
        }
    }

    /// Looks `ask` up, once. See [`Lookup`]. What is found may be a part that does not hold what the
    /// request wants: [`Cache::claim_rest`].
    pub async fn lookup(&self, ask: Ask<'_>) -> Lookup {
        for _ in 0..LOOKUP_TRIES {
            let found = self.find(ask.key, ask.headers).await;
            let (mut stale, mut is_gone) = (None, false);
            if let Some(entry) = &found.entry {
                let standing = ask.judge.standing(entry);
                is_gone = standing == Standing::Gone;
                match standing.reuse(&entry.head.freshness, ask.said, ask.rules, ask.now_ms) {
                    _ if is_gone && ask.said.only_if_cached => return Lookup::Unavailable,
                    _ if is_gone => {}
                    Reuse::Fresh => return Lookup::Fresh(entry.clone()),
                    Reuse::Unavailable => return Lookup::Unavailable,
                    // What is left of a part is not worth a validation of its own.
                    _ if entry.head.part.is_some() => {}
                    Reuse::StaleWhileRevalidate | Reuse::StaleAccepted => {
                        stale = Some((entry.clone(), None));
                    }
                    Reuse::Validate(why) => stale = Some((entry.clone(), Some(why))),
                }
            } else if ask.said.only_if_cached {
                return Lookup::Unavailable;
            }
            let usable = matches!(stale, Some((_, None)));
            // Who wants nothing of the exchange stored asks for itself (RFC 9111 §5.2.1.5).
            if !usable && (ask.said.no_store || self.passing().is_passing(ask.key, Instant::now()))
            {
                return Lookup::Pass;
            }
            let Some(turn) = self.claim(ask, &found) else {
                continue;
            };
            if is_gone && let Turn::Fill(filler) = &turn {
                filler.forget_stored().await;
            }
            return match (stale, turn) {
                (Some((entry, must)), turn) => Lookup::Stale { entry, must, turn },
                (None, Turn::Fill(filler)) => Lookup::Absent(filler),
                (None, Turn::Follow(following)) => Lookup::Filling(following),
            };
        }
        Lookup::Pass
    }

    /// The turn to fetch what `entry`, a part, lacks; `None` when it is no longer what is stored.
    pub async fn claim_rest(&self, ask: Ask<'_>, entry: &Entry) -> Option<Turn> {
        let found = self.find(ask.key, ask.headers).await;
        (found.object == entry.object).then(|| self.claim(ask, &found))?
    }

    /// The stored response for a key and these header fields, from storage only, fresh or not.
    pub async fn stored(&self, key: Key, headers: &HeaderMap) -> Option<Arc<Entry>> {
        self.find(key, headers).await.entry
    }

    /// What comes in for `key` just now, if it is all of an object.
    pub fn coming_in(&self, key: Key) -> Option<(Arc<Entry>, Arc<fill::Growing>)> {
        let fill = self.fills().get(&key).cloned()?;
        let told = fill.told();
        let Told::All(Outcome::Shared(entry)) = &*told else {
            return None;
        };
        match &entry.body {
            Body::Growing(growing) if entry.head.part.is_none() => {
                Some((entry.clone(), growing.clone()))
            }
            _ => None,
        }
    }

    /// Forgets everything under `key`; a fill under way, be it of a variant, will not bring it back.
    pub async fn forget(&self, key: Key) {
        self.fills().retain(|at, fill| {
            let stays = *at != key && fill.primary != key;
            if !stays {
                fill.cancel();
            }
            stays
        });
        // First from disk: what is being read from there does not come into memory after this.
        let removal = self.shared.store.remove(key);
        self.shared.memory.remove(key);
        self.holdings().remove(key);
        if let Err(error) = removal.await {
            debug!(%key, %error, "removal could not be written");
        }
    }

    /// Forgets `key` because a client has changed what it names, and remembers it for a while: what
    /// others hold of it is from before ([`Cache::is_doubtful`]). That there was a change outlives a start.
    pub async fn invalidate(&self, key: Key, now_ms: u64) {
        let Shared { changes, store, .. } = &*self.shared;
        if let Some((file, until_ms)) = changes.mark_due(now_ms) {
            match store
                .run(move || changes::write_mark(&file, until_ms))
                .await
            {
                Some(Ok(())) => changes.marked(until_ms),
                Some(Err(error)) => {
                    warn!(%error, "after a start nobody will know of changes by clients")
                }
                None => {}
            }
        }
        self.outdate(key, now_ms).await;
    }

    /// The same because the origin has a newer version: where this is forgotten, that is found out again.
    pub async fn outdate(&self, key: Key, now_ms: u64) {
        self.shared.changes.note(key, now_ms);
        self.forget(key).await;
    }

    /// When `key` was invalidated here last, in Unix milliseconds; `None` if it was not, or that is forgotten.
    pub fn changed_ms(&self, key: Key) -> Option<u64> {
        self.shared.changes.at_ms(key)
    }

    /// Until when what was fetched may be from before a change that is not known here any more, in Unix milliseconds.
    pub fn unknown_ms(&self, now_ms: u64) -> u64 {
        self.shared.changes.unknown_ms(now_ms)
    }

    /// Whether what was fetched from the origin at `fetched_ms` is older than an invalidation here.
    pub fn is_doubtful(&self, key: Key, fetched_ms: u64) -> bool {
        self.changed_ms(key)
            .is_some_and(|at_ms| fetched_ms <= at_ms)
    }

    /// Whether requests for `key` go ahead by themselves, because the last answer could not be shared.
    pub fn is_passing(&self, key: Key) -> bool {
        self.passing().is_passing(key, Instant::now())
    }

    /// They do from now on, for a while.
    pub fn start_passing(&self, key: Key) {
        self.passing().add(key, Instant::now());
    }

    /// An answer for `key` can be shared again.
    pub fn stop_passing(&self, key: Key) {
        self.passing().stop(key);
    }

    /// Stops claiming `key` in the digest: what is stored is of no use to others.
    pub fn disclaim(&self, key: Key) {
        self.holdings().remove(key);
    }

    /// The newest version of what this node claims to hold.
    pub fn digest_version(&self) -> DigestVersion {
        self.holdings().version()
    }

    /// The digest, or what changed in it since `since`, encoded. Takes milliseconds when it is large:
    /// not for a runtime thread.
    pub fn digest(&self, since: Option<DigestVersion>) -> Vec<u8> {
        let answer = self.holdings().answer(since);
        answer.encode()
    }

    /// The disk tier.
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// Pieces of large bodies, in both tiers.
    pub fn pieces(&self) -> &Pieces {
        &self.shared.pieces
    }

    /// What the memory tier holds.
    pub fn memory_usage(&self) -> TierUsage {
        let (bytes, objects, evicted) = self.shared.memory.usage();
        TierUsage {
            bytes,
            objects,
            evicted,
        }
    }

    /// What the disk tier holds and has been through.
    pub fn disk_stats(&self) -> StoreStats {
        self.shared.store.stats()
    }

    /// Objects that could not be written to disk since the start.
    pub fn store_failures(&self) -> u64 {
        let behind = self.shared.store.stats().lost_behind_total;
        self.shared.store_failures.load(Ordering::Relaxed) + behind
    }

    /// Objects that were held back from the disk until somebody asked for them again, whether or not
    /// anybody did.
    pub fn held_back(&self) -> u64 {
        self.shared.held_back.load(Ordering::Relaxed)
    }

    /// Largest body that is stored.
    pub fn object_bytes_max(&self) -> u64 {
        self.shared.object_bytes_max
    }

    fn fills(&self) -> MutexGuard<'_, KeyMap<Arc<Fill>>> {
        self.shared
            .fills
            .lock()
            .expect("no code panics while it holds this lock")
    }

    fn passing(&self) -> MutexGuard<'_, Passing> {
        self.shared
            .passing
            .lock()
            .expect("no code panics while it holds this lock")
    }

    fn holdings(&self) -> MutexGuard<'_, Holdings> {
        self.shared
            .holdings
            .lock()
            .expect("no code panics while it holds this lock")
    }

    /// Takes a fill that is missing, or follows the one under way. `None` when what was found is no
    /// longer what is there: look again.
    fn claim(&self, ask: Ask<'_>, found: &Found) -> Option<Turn> {
        let mut fills = self.fills();
        let under_way = found.candidates.iter().find_map(|key| fills.get(key));
        let before = match under_way {
            // What it fetched is what was found: only the disk does not have it yet.
            Some(fill)
                if found.entry.is_some()
                    && fill.has_brought(found.object)
                    && fill.with_before().count() < UNWRITTEN_FILLS_MAX =>
            {
                Some(fill.clone())
            }
            // What it fetches is not wanted any more, by those who come from now on.
            Some(fill)
                if fill.has_brought_what(|entry| ask.judge.standing(entry) == Standing::Gone) =>
            {
                fill.cancel();
                None
            }
            Some(fill) => {
                return Some(Turn::Follow(fill.follow()));
            }
            None => None,
        };
        // A fill may have been completed between the search and this lock.
        let now = found
            .candidates
            .iter()
            .find_map(|key| self.shared.memory.find(*key));
        let changed = match now {
            Some(Item::Entry(entry)) => entry.object != found.object,
            Some(Item::Variants(_)) => found.variants.is_none(),
            None => {
                found.entry.is_none()
                    && found
                        .candidates
                        .iter()
                        .any(|key| self.shared.store.contains(*key))
            }
        };
        if changed {
            return None;
        }
        let key = *found.candidates.first()?;
        let fill = Fill::new(ask.key, before);
        fills.insert(key, fill.clone());
        drop(fills);
        let variants = found.variants.clone();
        Some(Turn::Fill(Filler::new(self, key, variants, fill)))
    }

    /// The right to fetch what is stored nowhere here, not being fetched by anybody, and not known not to
    /// be for everybody. Holds locks for a few instructions only.
    pub fn claim_absent(&self, key: Key, now: Instant) -> Option<Filler> {
        if self.passing().is_passing(key, now) {
            return None;
        }
        let mut fills = self.fills();
        if !self.is_absent_among(&fills, key) {
            return None;
        }
        let fill = Fill::new(key, None);
        fills.insert(key, fill.clone());
        drop(fills);
        Some(Filler::new(self, key, None, fill))
    }

    /// Whether there would be such a right. It is not taken from anybody.
    pub fn is_absent(&self, key: Key) -> bool {
        !self.is_passing(key) && self.is_absent_among(&self.fills(), key)
    }

    fn is_absent_among(&self, fills: &KeyMap<Arc<Fill>>, key: Key) -> bool {
        let Shared { memory, store, .. } = &*self.shared;
        !fills.contains_key(&key) && memory.peek(key).is_none() && !store.contains(key)
    }

    /// Whether a body of so many bytes is kept in one step, see [`Filler::share_whole`].
    pub fn takes_whole(&self, bytes: usize) -> bool {
        let fits = self.shared.memory.object_bytes_max();
        bytes <= HASH_INLINE_MAX && bytes as u64 <= fits.min(self.shared.object_bytes_max)
    }

    async fn hash(&self, bytes: Bytes) -> PieceHash {
        if bytes.len() <= HASH_INLINE_MAX {
            return *blake3::hash(&bytes).as_bytes();
        }
        let hashed = bytes.clone();
        match self
            .shared
            .store
            .pool()
            .run(move || *blake3::hash(&hashed).as_bytes())
            .await
        {
            Ok(hash) => hash,
            // The pool is closing; the process is about to end.
            Err(_) => *blake3::hash(&bytes).as_bytes(),
        }
    }

    fn store_failed(&self, error: &dyn std::fmt::Display) {
        self.shared.store_failures.fetch_add(1, Ordering::Relaxed);
        debug!(%error, "object could not be written to disk");
    }
}
