//! The side of a fill that fetches: who has a [`Filler`] owes an answer to everybody who follows.

use std::sync::{Arc, Mutex, atomic::Ordering};

use bytes::Bytes;
use cluster::{
    key::Key,
    manifest::{MANIFEST_BYTES_MAX, Manifest, PieceHash},
};
use futures_util::future::BoxFuture;
use http::HeaderMap;
use tokio::{
    sync::{Semaphore, oneshot, watch},
    time::Instant,
};
use tracing::{debug, warn};

use super::{
    Cache, Outcome, Shared, Writing,
    entry::{Body, Entry, Head, Provenance, Variant, Variants},
    fill::{Growing, UNWRITTEN_PIECES_MAX},
    key,
    memory::Item,
    meta::{Meta, Small},
    policy::validator::EntityTag,
    store::{self, CLAIMED, Place},
    under_way::{Fill, Progress, Told},
    vary::{self, Vary},
};
use crate::error::ServeError;

/// Waits for what comes of a fill.
pub enum Following {
    /// It is not known yet.
    Waits(watch::Receiver<Progress>),
    /// It is.
    Knows(Outcome),
}

impl Following {
    /// How far the fill reaches ([`Filler::reaches`]). That is said as soon as it begins; `None` if it has
    /// ended.
    pub async fn reach(&mut self) -> Option<u8> {
        let Self::Waits(progress) = self else {
            return None;
        };
        let said = |progress: &Progress| progress.reach.is_some() || progress.outcome.is_some();
        progress.wait_for(said).await.ok()?.reach
    }

    /// Whether it is known already what came of it: then it was asked for before this request came.
    pub fn is_known(&self) -> bool {
        match self {
            Self::Waits(progress) => progress.borrow().outcome.is_some(),
            Self::Knows(_) => true,
        }
    }

    /// What came of it.
    pub async fn outcome(self) -> Outcome {
        let mut progress = match self {
            Self::Waits(progress) => progress,
            Self::Knows(outcome) => return outcome,
        };
        let ended = progress
            .wait_for(|progress| progress.outcome.is_some())
            .await;
        ended
            .ok()
            .and_then(|progress| progress.outcome.clone())
            .unwrap_or_else(|| Outcome::Failed(abandoned()))
    }
}

/// Knows what comes of a fill and does not wait for it: for whom nobody need be held up.
pub struct Onlooker(Arc<Fill>);

impl Onlooker {
    /// What came of it; `None` as long as that is not known.
    pub fn outcome(&self) -> Option<Outcome> {
        match &*self.0.told() {
            Told::All(outcome) => Some(outcome.clone()),
            Told::Nothing { .. } => None,
        }
    }

    /// Since when that is known.
    pub fn known_at(&self) -> Option<Instant> {
        self.0.known_at.get().copied()
    }
}

fn abandoned() -> ServeError {
    ServeError::new(crate::error::Kind::Internal, "the fill was abandoned")
}

/// The right, and the duty, to fetch what is missing. Dropping it without a conclusion tells
/// everybody who waits that there will be no answer.
pub struct Filler {
    pub(super) cache: Cache,
    pub(super) primary: Key,
    /// The key that was claimed, under which this fill is found by others.
    pub(super) claimed: Key,
    /// That of a variant, under which it is found as well.
    pub(super) variant: Option<Key>,
    pub(super) variants: Option<Arc<Variants>>,
    /// Variants that had to go for this one.
    pub(super) dropped: Vec<Variant>,
    pub(super) fill: Arc<Fill>,
    /// How far the body to come [reaches](Growing::reaches).
    pub(super) body_reach: u8,
    /// Who gets it when it fails, instead of the end.
    pub(super) rescue: Option<oneshot::Sender<(Self, ServeError)>>,
    pub(super) concluded: bool,
}

impl Filler {
    pub(super) fn new(
        cache: &Cache,
        key: Key,
        variants: Option<Arc<Variants>>,
        fill: Arc<Fill>,
    ) -> Self {
        Self {
            cache: cache.clone(),
            primary: fill.primary,
            claimed: key,
            variant: None,
            variants,
            dropped: Vec::new(),
            fill,
            body_reach: 0,
            rescue: None,
            concluded: false,
        }
    }

    /// Waits for what comes of this fill, like anybody else.
    pub fn follow(&self) -> Following {
        self.fill.follow()
    }

    /// Says whose answer this fill may have to wait for from now on, a number that means something to those who
    /// fill: when it begins, and when that has become less. Who must not wait for such can tell before it follows
    /// ([`Following::reach`]).
    pub fn reaches(&self, reach: u8) {
        self.fill.reaches(reach);
    }

    /// The same of the body that will be [shared](Filler::share); see [`Growing::reaches`]. Where nothing is said, it
    /// waits for nobody who waits.
    pub fn body_reaches(&mut self, reach: u8) {
        self.body_reach = reach;
    }

    /// Knows what comes of this fill, without being one who waits for it.
    pub fn look_on(&self) -> Onlooker {
        Onlooker(self.fill.clone())
    }

    /// Returns once nobody waits for what comes of this fill.
    pub async fn deserted(&self) {
        let followers = match &*self.fill.told() {
            Told::Nothing {
                followers: Some(followers),
                ..
            } => followers.clone(),
            _ => return,
        };
        followers.closed().await;
    }

    /// Whether the URL has variants, of which the request selects none that is stored.
    pub fn varies(&self) -> bool {
        self.variants.is_some()
    }

    /// The entity tags of the URL's other variants, for `If-None-Match`: the origin may answer that one
    /// of them is what this request selects (RFC 9111 §4.3.1).
    pub fn offers(&self) -> Vec<&str> {
        self.variants
            .as_ref()
            .map_or_else(Vec::new, |variants| variants.tags())
    }

    /// The stored variant that has this tag; whatever else the origin says, one that is stored under no
    /// tag was not offered. A strong tag names none that is stored under a weak one (RFC 9111 §4.3.4).
    pub async fn offered(&self, tag: &EntityTag<'_>) -> Option<Arc<Entry>> {
        let variants = self.variants.as_ref()?;
        for variant in &variants.known {
            let own = variant
                .tag
                .as_deref()
                .and_then(|own| EntityTag::parse(own.as_bytes()));
            if own.is_some_and(|own| own.weakly_matches(tag) && (tag.weak || !own.weak))
                && let Some(Item::Entry(entry)) = self.cache.item(variant.at).await
            {
                return Some(entry);
            }
        }
        None
    }

    /// The answer may be shared: everybody follows its body from here on. With a `Vary` in `head`
    /// the entry stands under its variant's key.
    pub fn share(self, head: Head, from: Provenance) -> Writing {
        self.share_first(head, from, HeaderMap::new())
    }

    /// The same, with fields for the one client whose request fetched it.
    pub fn share_first(mut self, head: Head, from: Provenance, withheld: HeaderMap) -> Writing {
        let growing = Growing::new(self.cache.shared.pieces.clone(), self.body_reach);
        let object = self.cache.shared.store.next_object_id();
        let key = self.place(&head);
        let body = Body::Growing(growing.clone());
        let mut entry = Entry::new(key, object, head, body, from);
        entry.withheld = Mutex::new((!withheld.is_empty()).then(|| Box::new(withheld)));
        let entry = Arc::new(entry);
        if key != self.claimed {
            let mut fills = self.cache.fills();
            if self.is_current() {
                fills.entry(key).or_insert_with(|| self.fill.clone());
            }
            drop(fills);
            self.variant = Some(key);
        }
        self.conclude(Outcome::Shared(entry.clone()));
        Writing {
            filler: self,
            entry,
            growing,
            hashes: Vec::new(),
            unwritten: Arc::new(Semaphore::new(UNWRITTEN_PIECES_MAX)),
            storing: true,
        }
    }

    /// The answer may be shared, and all of its body is here. Gives both back if it has to go the way of
    /// larger ones: with a `Vary`, as a part, or because memory does not [take it](Cache::takes_whole).
    ///
    /// # Errors
    ///
    /// `self` and `head`.
    pub async fn share_whole(
        mut self,
        mut head: Head,
        from: Provenance,
        withheld: HeaderMap,
        bytes: Bytes,
    ) -> Result<(), Box<(Self, Head, HeaderMap)>> {
        let fits = self.cache.takes_whole(bytes.len());
        let is_plain = vary::selecting_fields(&head.headers) == Vary::None
            && self.claimed == self.primary
            && head.part.is_none();
        if !fits || !is_plain {
            return Err(Box::new((self, head, withheld)));
        }
        self.variants = None;
        head.length = Some(bytes.len() as u64);
        let withheld = (!withheld.is_empty()).then(|| Box::new(withheld));
        let Small { head, meta, body } = Small::new(head, bytes);
        let mut entry = self.entry_of(head, body.clone(), from);
        entry.withheld = Mutex::new(withheld);
        self.keep_small(Arc::new(entry), storable(meta), body).await;
        Ok(())
    }

    /// The same for what the [cache takes](Cache::takes_whole), all of an object without a `Vary`, of a key
    /// that was [absent](Cache::claim_absent). What it gives, if anything, is left to be waited for: the
    /// disk is behind, or something has happened to the key meanwhile.
    pub fn share_small(
        mut self,
        Small { head, meta, body }: Small,
        from: Provenance,
    ) -> Option<BoxFuture<'static, ()>> {
        let entry = Arc::new(self.entry_of(head, body.clone(), from));
        let Some(meta) = storable(meta) else {
            self.conclude(Outcome::Shared(entry));
            return None;
        };
        let place = match self.holds_back(&entry) {
            true => None,
            false => {
                let bytes = meta.len() + body.len();
                let Some(place) = self.cache.shared.store.reserve_at_once(bytes) else {
                    return Some(Box::pin(self.keep_small(entry, Some(meta), body)));
                };
                Some(place)
            }
        };
        let kept = self.keep_placed(&entry, place, meta, body);
        self.conclude(Outcome::Shared(entry));
        match kept {
            Kept::Done => None,
            kept => Some(Box::pin(async move { self.finish(kept).await })),
        }
    }

    fn entry_of(&self, head: Head, body: Bytes, from: Provenance) -> Entry {
        let object = self.cache.shared.store.next_object_id();
        Entry::new(self.primary, object, head, Body::Whole(body), from)
    }

    async fn keep_small(mut self, entry: Arc<Entry>, meta: Option<Bytes>, body: Bytes) {
        let kept = match meta {
            Some(meta) => Some(self.keep_whole(entry.clone(), meta, body).await),
            None => None,
        };
        self.conclude(Outcome::Shared(entry));
        if let Some(kept) = kept {
            self.finish(kept).await;
        }
    }

    /// The stored `entry` still holds, with a new head that came `from` there. If it is another variant than the one this fill
    /// was for, the request selects it from now on.
    pub async fn refresh(mut self, entry: &Entry, head: Head, from: Provenance) {
        let object = entry.object;
        let (key, body) = (entry.key, entry.body.clone());
        let fresh = Arc::new(Entry::new(key, object, head, body, from));
        let shared = self.cache.shared.clone();
        let Shared { memory, store, .. } = &*shared;
        let fits =
            !matches!(&fresh.body, Body::Whole(b) if b.len() as u64 > memory.object_bytes_max());
        // What was invalidated meanwhile is not brought back by the word that it held before.
        if !self.is_current() || fits && !self.keep(fresh.key, Item::Entry(fresh.clone())) {
            return self.conclude(Outcome::Again);
        }
        let called = self.claimed;
        if called != entry.key {
            self.note(self.newest_variants(), called, entry.key, &fresh.head);
        }
        self.conclude(Outcome::Refreshed(fresh.clone()));
        if called != entry.key
            && let Err(error) = self.store_marker().await
        {
            self.cache.store_failed(&error);
        }
        self.cache.announce(self.primary, &fresh.head);
        if let Some(manifest) = fresh.manifest() {
            let body = match &fresh.body {
                Body::Whole(bytes) => store::Body::Inline(bytes.clone()),
                _ => store::Body::Pieces(piece_count(&manifest)),
            };
            let claimed = fresh.key == self.primary && fresh.head.part.is_none();
            let flags = store
                .flags(fresh.key)
                .unwrap_or(if claimed { CLAIMED } else { 0 });
            let (length, hashes) = (manifest.length, &manifest.pieces);
            if let Some(meta) = Meta::encode_object(&fresh.head, length, hashes)
                && let Err(error) = store
                    .append_object(fresh.key, object, flags, meta, body)
                    .await
            {
                self.cache.store_failed(&error);
            }
        }
        if !self.is_current() {
            self.cache.forget(fresh.key).await;
        }
    }

    /// Puts `item` into memory, unless what this fill brings is not wanted any more: under the lock that
    /// `forget` takes first.
    pub(super) fn keep(&self, key: Key, item: Item) -> bool {
        let _fills = self.cache.fills();
        let current = self.is_current();
        if current {
            self.cache.shared.memory.insert(key, item);
        }
        current
    }

    /// Keeps a body that is here in one, and not too large for memory: there at once, and on disk behind
    /// ([`Store::append_behind`]). When the disk is too far behind, or the ring turns fast, it is held back
    /// from there.
    pub(super) async fn keep_whole(&self, entry: Arc<Entry>, meta: Bytes, bytes: Bytes) -> Kept {
        let place = match self.holds_back(&entry) {
            true => None,
            false => {
                let store = &self.cache.shared.store;
                store.reserve(meta.len() + bytes.len()).await
            }
        };
        self.keep_placed(&entry, place, meta, bytes)
    }

    /// Whether an entry is held back from disk until somebody asks for it again.
    fn holds_back(&self, entry: &Entry) -> bool {
        let store = &self.cache.shared.store;
        let holds = entry.head.part.is_none() && store.holds_back() && !store.contains(entry.key);
        if holds {
            entry.held_back.store(true, Ordering::Relaxed);
        }
        holds
    }

    /// Keeps it, with its place in the queue to the disk if there is one.
    fn keep_placed(
        &self,
        entry: &Arc<Entry>,
        place: Option<Place>,
        meta: Bytes,
        bytes: Bytes,
    ) -> Kept {
        let Shared {
            store, held_back, ..
        } = &*self.cache.shared;
        let (key, object) = (entry.key, entry.object);
        let is_part = entry.head.part.is_some();
        let is_kept = self.keep(key, Item::Entry(entry.clone()));
        let mut late = None;
        if is_kept && !entry.held_back.load(Ordering::Relaxed) {
            // Before the store can say that it could not be written.
            let flags = match is_part {
                true => 0,
                false => {
                    self.cache.announce(key, &entry.head);
                    CLAIMED
                }
            };
            if store.contains(key) {
                // An older one, which must not be found again.
                late = Some((object, flags, meta, bytes));
            } else if !place
                .is_some_and(|place| store.append_behind(place, key, object, flags, meta, bytes))
                && !is_part
            {
                self.cache.holdings().remove(key);
                entry.held_back.store(true, Ordering::Relaxed);
            }
        }
        if entry.held_back.load(Ordering::Relaxed) {
            held_back.fetch_add(1, Ordering::Relaxed);
        }
        // What was invalidated meanwhile must not be there again.
        match (self.is_current(), late) {
            (false, _) => Kept::Invalid(key),
            (true, Some((object, flags, meta, bytes))) => Kept::Late {
                key,
                object,
                flags,
                meta,
                bytes,
            },
            (true, None) => Kept::Done,
        }
    }

    /// Does what is left to do for a small object that was kept.
    pub(super) async fn finish(&self, kept: Kept) {
        match kept {
            Kept::Done => {}
            Kept::Invalid(key) => self.cache.forget(key).await,
            Kept::Late {
                key,
                object,
                flags,
                meta,
                bytes,
            } => {
                let store = &self.cache.shared.store;
                let body = store::Body::Inline(bytes);
                if let Err(error) = store.append_object(key, object, flags, meta, body).await {
                    self.cache.store_failed(&error);
                }
                if !self.is_current() {
                    self.cache.forget(key).await;
                }
            }
        }
    }

    /// The key under which what is fetched is found first.
    pub fn key(&self) -> Key {
        self.claimed
    }

    /// The answer was for this one request. With `remember`, others that ask for it in the next
    /// seconds go ahead by themselves at once.
    pub fn not_shared(mut self, remember: bool) {
        if remember {
            self.cache.passing().add(self.primary, Instant::now());
        }
        self.conclude(Outcome::NotShared);
    }

    /// What is stored for the request is no longer what the origin says.
    pub async fn forget_stored(&self) {
        let Shared { memory, store, .. } = &*self.cache.shared;
        memory.remove(self.claimed);
        self.cache.holdings().remove(self.claimed);
        if let Err(error) = store.remove(self.claimed).await {
            debug!(%error, "removal could not be written");
        }
    }

    /// The answer was for this one request, and says nothing of what others ask for.
    pub fn again(mut self) {
        self.conclude(Outcome::Again);
    }

    /// There is no answer; unless somebody is to [rescue](Self::rescue) it, everybody is told.
    pub fn fail(mut self, error: ServeError) {
        let unsaved = match self.rescue.take() {
            Some(rescue) => rescue.send((self, error)).err(),
            None => Some((self, error)),
        };
        if let Some((mut filler, error)) = unsaved {
            filler.conclude(Outcome::Failed(error));
        }
    }

    /// When this fails, once, it is handed over, with the reason, to who can try something else.
    pub fn rescue(&mut self) -> oneshot::Receiver<(Self, ServeError)> {
        let (rescue, rescued) = oneshot::channel();
        self.rescue = Some(rescue);
        rescued
    }

    /// Whether somebody is there to try something else when this fails.
    pub fn has_rescue(&self) -> bool {
        self.rescue.is_some()
    }

    fn conclude(&mut self, outcome: Outcome) {
        self.concluded = true;
        self.fill.tell(outcome);
    }

    /// The key for a response with this head; notes the variants, if there are any.
    fn place(&mut self, head: &Head) -> Key {
        let Vary::Fields(fields) = vary::selecting_fields(&head.headers) else {
            self.variants = None;
            return self.primary;
        };
        let spec = fields.iter().map(|name| name.as_str().to_owned()).collect();
        let variants = self.newest_variants().with(spec);
        let key = key::variant_key(self.primary, variants.salt, &head.selected_by);
        self.note(variants, key, key, head);
        key
    }

    /// The variants as they are now: other fills may have added some, or an invalidation have taken
    /// all of them away.
    fn newest_variants(&self) -> Variants {
        match self.cache.shared.memory.find(self.primary) {
            Some(Item::Variants(newest)) => (*newest).clone(),
            _ => match self.variants.as_ref().filter(|_| self.is_current()) {
                Some(known) => (**known).clone(),
                None => Variants {
                    salt: self.cache.shared.store.next_object_id(),
                    specs: Vec::new(),
                    known: Vec::new(),
                },
            },
        }
    }

    /// Notes among `variants` that the one called `key` is stored `at`.
    fn note(&mut self, mut variants: Variants, key: Key, at: Key, head: &Head) {
        let tag = head.headers.get(http::header::ETAG);
        let tag = tag.and_then(|value| value.to_str().ok().map(str::to_owned));
        self.dropped.extend(variants.add(Variant { key, at, tag }));
        let variants = Arc::new(variants);
        self.variants = Some(variants.clone());
        // Under the lock that `forget` takes first: what it takes away is not brought back.
        let _fills = self.cache.fills();
        if self.is_current() {
            let marker = Item::Variants(variants);
            self.cache.shared.memory.insert(self.primary, marker);
        }
    }

    /// Keeps the marker on disk, and drops the variants that there was no room for.
    pub(super) async fn store_marker(&mut self) -> Result<(), store::AppendError> {
        let store = &self.cache.shared.store;
        if let Some(meta) = Meta::encode_variants(&self.newest_variants()) {
            let (marker, empty) = (store.next_object_id(), store::Body::Inline(Bytes::new()));
            store
                .append_object(self.primary, marker, CLAIMED, meta, empty)
                .await?;
        }
        for dropped in std::mem::take(&mut self.dropped) {
            self.cache.forget(dropped.at).await;
        }
        Ok(())
    }

    /// Whether what this fill brings is still wanted; a purge or an invalidation takes that away.
    pub(super) fn is_current(&self) -> bool {
        !self.fill.is_cancelled.load(Ordering::Acquire)
    }

    /// Whether no other fill has taken its place.
    pub(super) fn is_newest(&self) -> bool {
        let fills = self.cache.fills();
        let newest = fills.get(&self.claimed);
        newest.is_some_and(|fill| Arc::ptr_eq(fill, &self.fill))
    }

    pub(super) fn release(&self) {
        let mut fills = self.cache.fills();
        for key in [Some(self.claimed), self.variant].into_iter().flatten() {
            if fills
                .get(&key)
                .is_some_and(|fill| Arc::ptr_eq(fill, &self.fill))
            {
                fills.remove(&key);
            }
        }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        if !self.concluded {
            self.conclude(Outcome::Failed(abandoned()));
        }
        self.release();
    }
}

/// What is left to do for a small object that was kept.
#[must_use]
pub(super) enum Kept {
    Done,
    /// It was invalidated while it was, and has to go again.
    Invalid(Key),
    /// It replaces one on disk: until it is written, it is not the one that is found there.
    Late {
        key: Key,
        object: u64,
        flags: u8,
        meta: Bytes,
        bytes: Bytes,
    },
}

/// The meta block of what is to be stored; `None` if it cannot be.
pub(super) fn encode(head: &Head, length: u64, hashes: &[PieceHash]) -> Option<Bytes> {
    storable(Meta::encode_object(head, length, hashes))
}

fn storable(meta: Option<Bytes>) -> Option<Bytes> {
    let meta = meta.filter(|meta| meta.len() <= MANIFEST_BYTES_MAX);
    if meta.is_none() {
        warn!("object's head is too large to be stored");
    }
    meta
}

fn piece_count(manifest: &Manifest) -> u32 {
    u32::try_from(manifest.pieces.len()).unwrap_or(u32::MAX)
}
