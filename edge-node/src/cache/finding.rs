//! Looking for what is stored, in memory and then on disk, under a key and its variants; what is read from
//! disk, or asked for again, changes its place.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use cluster::key::Key;
use http::{HeaderMap, HeaderName};
use tracing::warn;

use super::{
    Cache, Shared,
    entry::{Body, Entry, Provenance, Variants},
    key,
    memory::Item,
    meta::Meta,
    shelved::Shelved,
    store::{self, AT_HAND_BYTES_MAX, CLAIMED, StoredObject},
    vary,
};
use crate::metrics::Source;

impl Cache {
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

    pub(super) async fn find(&self, key: Key, headers: &HeaderMap) -> Found {
        match self.item(key).await {
            None => Found::new(None, vec![key], None),
            Some(Item::Entry(entry)) => Found::new(Some(entry), vec![key], None),
            // As one of the first versions may have written it.
            Some(Item::Variants(variants)) if variants.specs.is_empty() => {
                Found::new(None, vec![key], None)
            }
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
    pub(super) async fn item(&self, key: Key) -> Option<Item> {
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

pub(super) struct Found {
    pub(super) entry: Option<Arc<Entry>>,
    /// Object number of `entry`; 0 without one.
    pub(super) object: u64,
    /// Keys under which it could stand, the likeliest first; never empty.
    pub(super) candidates: Vec<Key>,
    pub(super) variants: Option<Arc<Variants>>,
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
