//! The object cache: one question ([`Cache::lookup`]), one answer ([`Lookup`]), and the right to
//! fill what is missing ([`Filler`]).
//!
//! Modules in reading order: the [`key`] of a request (it reads [`cookie`]s and [`percent`]-encoding)
//! and its variants ([`vary`]); what may be
//! stored and reused ([`policy`], pure), and what else decides that ([`standing`], pure); an [`entry`], its fields [`packed`], and the [`fill`] that makes it grow; the tiers
//! ([`memory`], then [`store`] over [`segment`] files and their [`index`], read on a [`pool`] of
//! threads of their own), the [`pieces`] of large bodies in both, and small bodies that are [`shelved`];
//! what of it goes to disk at once ([`admission`], pure).
//!
//! **Invariant:** the cache knows no upstream. It says that something is missing; who asks whom for
//! it is decided elsewhere.
//!
//! **Locks:** all are held for a few instructions and never across an await.

pub mod admission;
pub mod buffers;
mod claims;
pub mod cookie;
pub mod entry;
pub mod fill;
mod filler;
pub mod index;
pub mod key;
pub mod memory;
pub mod meta;
pub mod packed;
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
pub mod vary;
mod writing;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use cluster::{
    digest::Holdings,
    key::{Key, KeyMap},
    manifest::PieceHash,
    node::DigestVersion,
};
use http::{HeaderMap, HeaderName};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tracing::{debug, warn};

use self::{
    entry::{Body, Entry, Provenance, Variants},
    memory::{Item, Memory},
    meta::Meta,
    pieces::Pieces,
    policy::{CacheControl, Reuse, Rules, Why},
    shelved::Shelved,
    store::{AT_HAND_BYTES_MAX, CLAIMED, Store, StoreStats, StoredObject},
};
pub use self::{
    filler::{Filler, Following, Onlooker},
    standing::{Judge, Standing},
    writing::Writing,
};
use crate::{
    error::ServeError,
    metrics::{Source, TierUsage},
};

/// Pieces up to this size are hashed where they are; larger ones on the pool, since a runtime
/// thread must not be kept longer than some 100 µs.
const HASH_INLINE_MAX: usize = 128 << 10;
/// How long requests for a key whose answer could not be shared go ahead by themselves.
const PASS_FOR: Duration = Duration::from_secs(10);
/// Keys remembered as invalidated by requests, and for how long at least when there are more: a peer
/// may hold the old object for as long as that is fresh; most are for a day or less.
const DOUBTS_MAX: usize = 65_536;
const DOUBT_FOR_MS: u64 = 24 * 60 * 60 * 1000;
/// Keys remembered as not shareable; when there is no room for another, it is not remembered.
const PASSING_MAX: usize = 65_536;
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
    /// When keys were invalidated by requests, in Unix milliseconds.
    doubts: Mutex<KeyMap<u64>>,
    holdings: Arc<Mutex<Holdings>>,
    withdrawals: Mutex<claims::Withdrawals>,
    object_bytes_max: u64,
    store_failures: AtomicU64,
    held_back: AtomicU64,
    admitting: Arc<Semaphore>,
}

/// One fetch under way.
struct Fill {
    /// The key of its URL.
    primary: Key,
    /// What it brings is not wanted any more.
    is_cancelled: AtomicBool,
    /// The one whose place it took while that was still being written.
    before: Option<Arc<Self>>,
    told: Mutex<Told>,
    /// Since when it is known what comes of it.
    known_at: OnceLock<Instant>,
}

/// What is known of a fill. Most are followed by nobody, and need nothing by which to tell.
enum Told {
    /// Not what came of it.
    Nothing {
        /// See [`Filler::reaches`].
        reach: Option<u8>,
        /// Who waits for it.
        followers: Option<watch::Sender<Progress>>,
    },
    /// What came of it.
    All(Outcome),
}

/// What those who wait for a fill are told.
pub struct Progress {
    reach: Option<u8>,
    outcome: Option<Outcome>,
}

impl Fill {
    fn new(primary: Key, before: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self {
            primary,
            is_cancelled: AtomicBool::new(false),
            before,
            told: Mutex::new(Told::Nothing {
                reach: None,
                followers: None,
            }),
            known_at: OnceLock::new(),
        })
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told
            .lock()
            .expect("no code panics while it holds this lock")
    }

    fn follow(&self) -> Following {
        match &mut *self.told() {
            Told::Nothing { reach, followers } => {
                let begun = || Progress {
                    reach: *reach,
                    outcome: None,
                };
                let followers = followers.get_or_insert_with(|| watch::Sender::new(begun()));
                Following::Waits(followers.subscribe())
            }
            Told::All(outcome) => Following::Knows(outcome.clone()),
        }
    }

    fn tell(&self, outcome: Outcome) {
        let _ = self.known_at.set(Instant::now());
        let before = std::mem::replace(&mut *self.told(), Told::All(outcome.clone()));
        if let Told::Nothing {
            followers: Some(followers),
            ..
        } = before
        {
            followers.send_modify(|progress| progress.outcome = Some(outcome));
        }
    }

    fn reaches(&self, word: u8) {
        if let Told::Nothing { reach, followers } = &mut *self.told() {
            // The first word counts.
            let reach = *reach.get_or_insert(word);
            if let Some(followers) = followers {
                followers.send_modify(|progress| progress.reach = Some(reach));
            }
        }
    }

    fn has_brought(&self, object: u64) -> bool {
        self.has_brought_what(|entry| entry.object == object)
    }

    fn has_brought_what(&self, is_it: impl FnOnce(&Entry) -> bool) -> bool {
        match &*self.told() {
            Told::All(Outcome::Shared(entry) | Outcome::Refreshed(entry)) => is_it(entry),
            _ => false,
        }
    }

    /// This one and those whose place it took.
    fn with_before(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |fill| fill.before.as_deref())
    }

    fn cancel(&self) {
        for fill in self.with_before() {
            fill.is_cancelled.store(true, Ordering::Release);
        }
    }
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
                store,
                fills: Mutex::default(),
                passing: Mutex::default(),
                doubts: Mutex::default(),
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

    /// The stored response for a key, if it is in memory or can be read without waiting; its body may be
    /// shelved ([`Cache::body`]). `varied` gives the request's fields of these names. Holds a lock for a
    /// few instructions only.
    pub fn hot(
        &self,
        key: Key,
        varied: impl Fn(&[HeaderName]) -> HeaderMap,
        now_ms: u64,
    ) -> Option<Arc<Entry>> {
        let store = &self.shared.store;
        let entry = match self.at_hand(key)? {
            Item::Entry(entry) => entry,
            Item::Variants(variants) => variants.specs.iter().find_map(|spec| {
                let names = names(spec);
                let values = vary::normal_values(&names, &varied(&names));
                let variant = key::variant_key(key, variants.salt, &values);
                match self.at_hand(variants.place(variant))? {
                    Item::Entry(entry) => Some(entry),
                    Item::Variants(_) => None,
                }
            })?,
        };
        if entry.is_touch_due(now_ms) {
            store.touch(key);
            store.touch(entry.key);
        }
        self.admit(&entry);
        Some(entry)
    }

    /// The body of an entry that [`Cache::hot`] gave, and where it was, if it is small and can be had
    /// without waiting.
    pub fn body(&self, entry: &Entry) -> Option<(Bytes, Source)> {
        let shelved = match &entry.body {
            Body::Whole(bytes) => return Some((bytes.clone(), entry.source)),
            Body::Shelved(shelved) => shelved,
            Body::Pieces { .. } | Body::Growing(_) => return None,
        };
        let stored = self.shared.store.object_at_hand(entry.key, is_intact)?;
        let bytes = match stored.body {
            store::Body::Inline(bytes) if stored.object == entry.object => bytes,
            _ => return None,
        };
        if shelved.is_worth_keeping() {
            let whole = entry.with_body(Body::Whole(bytes.clone()));
            self.keep_read(entry.key, Item::Entry(Arc::new(whole)), true);
        }
        Some((bytes, Source::Disk))
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
    /// others hold of it is from before ([`Cache::is_doubtful`]).
    pub async fn invalidate(&self, key: Key, now_ms: u64) {
        {
            let mut doubts = self
                .shared
                .doubts
                .lock()
                .expect("no code panics while it holds this lock");
            if doubts.len() >= DOUBTS_MAX {
                doubts.retain(|_, at_ms| now_ms.saturating_sub(*at_ms) < DOUBT_FOR_MS);
            }
            if doubts.len() < DOUBTS_MAX {
                doubts.insert(key, now_ms);
            }
        }
        self.forget(key).await;
    }

    /// Whether what was fetched from the origin at `fetched_ms` is older than an invalidation here.
    pub fn is_doubtful(&self, key: Key, fetched_ms: u64) -> bool {
        let doubts = self
            .shared
            .doubts
            .lock()
            .expect("no code panics while it holds this lock");
        doubts.get(&key).is_some_and(|at_ms| fetched_ms <= *at_ms)
    }

    /// An answer for `key` can be shared again.
    pub fn stop_passing(&self, key: Key) {
        self.passing().until.remove(&key);
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

    async fn find(&self, key: Key, headers: &HeaderMap) -> Found {
        match self.item(key).await {
            None => Found::new(None, vec![key], None),
            Some(Item::Entry(entry)) => Found::new(Some(entry), vec![key], None),
            Some(Item::Variants(variants)) => {
                let mut candidates = Vec::with_capacity(variants.specs.len());
                for spec in &variants.specs {
                    let values = vary::normal_values(&names(spec), headers);
                    let variant = key::variant_key(key, variants.salt, &values);
                    candidates.push(variant);
                    let place = variants.place(variant);
                    if let Some(Item::Entry(entry)) = self.item(place).await {
                        return Found::new(Some(entry), vec![place], Some(variants));
                    }
                }
                Found::new(None, candidates, Some(variants))
            }
        }
    }

    /// What stands under one key, if it is in memory or can be read without waiting.
    fn at_hand(&self, key: Key) -> Option<Item> {
        if let Some(item) = self.shared.memory.find(key) {
            return Some(item);
        }
        self.read_at_hand(key)
    }

    fn read_at_hand(&self, key: Key) -> Option<Item> {
        let stored = self.shared.store.object_at_hand(key, is_intact)?;
        let item = item_of(key, stored)?;
        self.keep_read(key, item.clone(), false);
        Some(item)
    }

    /// Keeps what was read from disk: a body that the system has in its cache anyway only if there is
    /// room, or if it `is_wanted` more than that.
    fn keep_read(&self, key: Key, item: Item, is_wanted: bool) {
        let Shared { memory, store, .. } = &*self.shared;
        let kept = match &item {
            Item::Entry(entry) => match &entry.body {
                Body::Whole(bytes) => {
                    let fits = bytes.len() as u64 <= memory.object_bytes_max();
                    let wanted = is_wanted || memory.has_room(entry.memory_bytes());
                    let shelved = Shelved::new(bytes.len() as u64).filter(|_| !(fits && wanted));
                    let body = match shelved {
                        Some(shelved) => Body::Shelved(Arc::new(shelved)),
                        None if !fits => return,
                        // The buffer that it is in may be larger, and is wanted back.
                        None if bytes.len() < AT_HAND_BYTES_MAX as usize => {
                            Body::Whole(Bytes::copy_from_slice(bytes))
                        }
                        None => Body::Whole(bytes.clone()),
                    };
                    Item::Entry(Arc::new(entry.with_body(body)))
                }
                _ => item,
            },
            Item::Variants(_) => item,
        };
        // What came to be there or was taken away meanwhile is newer.
        let _fills = self.fills();
        let is_newest = match (memory.peek(key), &kept) {
            (None, _) => store.contains(key),
            (Some(Item::Entry(now)), Item::Entry(kept)) => {
                now.object == kept.object
                    && matches!(now.body, Body::Shelved(_))
                    && !matches!(kept.body, Body::Shelved(_))
            }
            _ => false,
        };
        if is_newest {
            memory.insert(key, kept);
        }
    }

    /// What stands under one key, from memory or else from disk, with its body if that is small.
    async fn item(&self, key: Key) -> Option<Item> {
        let Shared { memory, store, .. } = &*self.shared;
        let is_shelved =
            |item: &Item| matches!(item, Item::Entry(e) if matches!(e.body, Body::Shelved(_)));
        if let Some(item) = memory.find(key).filter(|item| !is_shelved(item)) {
            store.touch(key);
            if let Item::Entry(entry) = &item {
                self.admit(entry);
            }
            return Some(item);
        }
        if !store.contains(key) {
            return None;
        }
        if let Some(item) = self.read_at_hand(key) {
            store.touch(key);
            return Some(item);
        }
        let prove = move |stored| is_intact(&stored).then(|| item_of(key, stored))?;
        let item = match store.read_object(key, prove).await {
            Ok(item) => item?,
            Err(error) => {
                warn!(%key, %error, "an object on disk is of no use and is dropped");
                self.forget(key).await;
                return None;
            }
        };
        store.touch(key);
        self.keep_read(key, item.clone(), true);
        Some(item)
    }

    /// Writes an entry to disk that was held back: it has been asked for again.
    fn admit(&self, entry: &Arc<Entry>) {
        if !entry.held_back.load(Ordering::Relaxed) {
            return;
        }
        let Ok(place) = self.shared.admitting.clone().try_acquire_owned() else {
            return;
        };
        // Of those who ask at once, one writes.
        if !entry.held_back.swap(false, Ordering::Relaxed) {
            return;
        }
        let (cache, entry) = (self.clone(), entry.clone());
        tokio::spawn(async move {
            let _place = place;
            let Body::Whole(bytes) = &entry.body else {
                return;
            };
            let Some(meta) = Meta::encode_small(&entry.head, bytes) else {
                return;
            };
            let Shared { memory, store, .. } = &*cache.shared;
            let (key, body) = (entry.key, store::Body::Inline(bytes.clone()));
            let written = store
                .append_object(key, entry.object, CLAIMED, meta, body)
                .await;
            // What was invalidated or replaced while it was written must not be there again. (That
            // memory has evicted it meanwhile looks the same, and costs a miss.)
            match (written, memory.find(key)) {
                (Err(error), _) => cache.store_failed(&error),
                (Ok(()), Some(Item::Entry(now))) if now.object == entry.object => {
                    cache.announce(key, &entry.head);
                }
                // The newer one stays where it is; of the two on disk, nobody knows which is which.
                (Ok(()), Some(_)) => {
                    if let Err(error) = store.remove(key).await {
                        cache.store_failed(&error);
                    }
                }
                (Ok(()), None) => cache.forget(key).await,
            }
        });
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
        let key = found.candidates[0];
        let fill = Fill::new(ask.key, before);
        fills.insert(key, fill.clone());
        drop(fills);
        let variants = found.variants.clone();
        Some(Turn::Fill(Filler::new(self, key, variants, fill)))
    }

    /// The right to fetch what is stored nowhere here, not being fetched by anybody, and not known not to
    /// be for everybody. Holds locks for a few instructions only.
    pub fn claim_absent(&self, key: Key, now: Instant) -> Option<Filler> {
        let Shared { memory, store, .. } = &*self.shared;
        if self.passing().is_passing(key, now) {
            return None;
        }
        let mut fills = self.fills();
        if fills.contains_key(&key) || memory.peek(key).is_some() || store.contains(key) {
            return None;
        }
        let fill = Fill::new(key, None);
        fills.insert(key, fill.clone());
        drop(fills);
        Some(Filler::new(self, key, None, fill))
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
}

/// Whether the body of a record on disk is what its head describes.
fn is_intact(stored: &StoredObject) -> bool {
    let store::Body::Inline(bytes) = &stored.body else {
        return true;
    };
    Meta::is_of(&stored.meta, bytes)
}

/// What a record on disk says.
fn item_of(key: Key, stored: StoredObject) -> Option<Item> {
    let (head, manifest) = match Meta::decode(&stored.meta)? {
        Meta::Variants(variants) => return Some(Item::Variants(Arc::new(variants))),
        Meta::Object(head, manifest) => (head, manifest),
    };
    let body = match stored.body {
        store::Body::Inline(bytes) => Body::Whole(bytes),
        store::Body::Pieces(_) => Body::Pieces {
            hashes: manifest.pieces.into(),
            length: manifest.length,
        },
    };
    let mut entry = Entry::new(key, stored.object, *head, body, Provenance::Store);
    entry.source = Source::Disk;
    Some(Item::Entry(Arc::new(entry)))
}

fn names(spec: &[String]) -> Vec<HeaderName> {
    spec.iter()
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        .collect()
}

struct Found {
    entry: Option<Arc<Entry>>,
    /// Object number of `entry`; 0 without one.
    object: u64,
    /// Keys under which it could stand, the likeliest first; never empty.
    candidates: Vec<Key>,
    variants: Option<Arc<Variants>>,
}

impl Found {
    fn new(
        entry: Option<Arc<Entry>>,
        candidates: Vec<Key>,
        variants: Option<Arc<Variants>>,
    ) -> Self {
        let object = entry.as_ref().map_or(0, |entry| entry.object);
        Self {
            entry,
            object,
            candidates,
            variants,
        }
    }
}

impl Cache {
    fn store_failed(&self, error: &dyn std::fmt::Display) {
        self.shared.store_failures.fetch_add(1, Ordering::Relaxed);
        debug!(%error, "object could not be written to disk");
    }
}

/// Keys whose last answer could not be shared, for [`PASS_FOR`].
#[derive(Default)]
struct Passing {
    until: KeyMap<Instant>,
}

impl Passing {
    fn is_passing(&mut self, key: Key, now: Instant) -> bool {
        if self.until.is_empty() {
            return false;
        }
        match self.until.get(&key) {
            Some(until) if *until > now => true,
            Some(_) => {
                self.until.remove(&key);
                false
            }
            None => false,
        }
    }

    fn add(&mut self, key: Key, now: Instant) {
        if self.until.len() >= PASSING_MAX {
            self.until.retain(|_, until| *until > now);
        }
        if self.until.len() < PASSING_MAX {
            self.until.insert(key, now + PASS_FOR);
        }
    }
}
