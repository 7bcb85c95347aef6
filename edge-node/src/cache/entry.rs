//! A cached response: its head, and a body that is whole, in pieces on disk, or still growing.

use std::{
    fmt,
    ops::Range,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use cluster::{
    key::Key,
    manifest::{Manifest, PIECE_BYTES, PieceHash},
    node::NodeId,
    purge::Position,
    site::takedown::{content_hash, content_hash_of},
};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{
    Cache,
    fill::{BodyError, Follower, Growing},
    packed::Packed,
    policy::{Freshness, Rules, part::Part},
    shelved::Shelved,
    store::PieceRef,
};
use crate::metrics::Source;

/// Pieces read ahead of a client: one on its way from disk while one goes out. A slow client holds
/// this many pieces of [`PIECE_BYTES`] and no more.
const READ_AHEAD: usize = 2;
/// Most header fields by which variants of one key may be told apart, and most such lists of fields.
pub const SPECS_MAX: usize = 4;
/// Most variants of one key; the oldest go first. Sites that vary by language and coding have a few
/// dozen; one that varies by `User-Agent` must not fill the cache with one page.
pub const VARIANTS_MAX: usize = 128;
/// Most entity tags of stored variants that a request for another one offers to the origin: what fits
/// into the head of a request anywhere.
pub const OFFERS_MAX: usize = 16;
/// How often the store hears that an entry in memory is used: often against the hours that a turn of
/// its ring takes, seldom against the hits of a hot entry, each of which would take a lock.
const TOUCH_EVERY_S: u32 = 8;
/// Everything of a response but its body.
#[derive(Clone, Debug)]
pub struct Head {
    /// Status code.
    pub status: StatusCode,
    /// Header fields as stored.
    pub headers: Packed,
    /// When it was asked for, in Unix milliseconds; ages count from there.
    pub asked_ms: u64,
    /// How long it may be used: computed once, when it is stored.
    pub freshness: Freshness,
    /// The request's values of the fields in `Vary`.
    pub selected_by: Vec<(String, Option<Vec<u8>>)>,
    /// Length of the whole body, if known (while it grows it may not be).
    pub length: Option<u64>,
    /// Which part of the whole is here; `None`: all of it.
    pub part: Option<Part>,
    /// Which edge fetched it from the origin.
    pub fetched_by: NodeId,
    /// When, in Unix milliseconds by that edge's clock.
    pub fetched_at: u64,
    /// The place in the purge log that it is known to be newer than.
    pub as_of: Position,
}

impl Head {
    /// What a peer needs to know of it.
    pub fn manifest(&self, length: u64, pieces: Vec<PieceHash>) -> Manifest {
        let fields = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()));
        Manifest {
            status: self.status.as_u16(),
            fields: fields.collect(),
            selected_by: self.selected_by.clone(),
            length,
            pieces,
            fetched_by: self.fetched_by.clone(),
            fetched_at: self.fetched_at,
            as_of: self.as_of,
        }
    }

    /// The head that a manifest describes, asked for at `asked_ms`.
    pub fn from_manifest(
        manifest: &Manifest,
        headers: HeaderMap,
        freshness: Freshness,
        asked_ms: u64,
    ) -> Self {
        Self {
            status: status_of(manifest),
            headers: headers.into(),
            asked_ms,
            freshness,
            selected_by: manifest.selected_by.clone(),
            length: Some(manifest.length),
            part: None,
            fetched_by: manifest.fetched_by.clone(),
            fetched_at: manifest.fetched_at,
            as_of: manifest.as_of,
        }
    }

    fn bytes(&self) -> u64 {
        let size = self.headers.size();
        (size.bytes + 48 * size.fields) as u64 + 256
    }
}

/// The status that a manifest names.
pub fn status_of(manifest: &Manifest) -> StatusCode {
    StatusCode::from_u16(manifest.status).unwrap_or(StatusCode::OK)
}

/// The header fields that a manifest names.
pub fn fields_of(manifest: &Manifest) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(manifest.fields.len() + 1);
    for (name, value) in &manifest.fields {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers
}

/// Where a body is.
#[derive(Clone)]
pub enum Body {
    /// In memory.
    Whole(Bytes),
    /// On disk, beside the head. The cache reads it before it hands such an entry out.
    Shelved(Arc<Shelved>),
    /// On disk, in pieces.
    Pieces {
        /// Hash of each piece.
        hashes: Arc<[PieceHash]>,
        /// Length of all of them together.
        length: u64,
    },
    /// On its way from a peer or the origin.
    Growing(Arc<Growing>),
}

/// Where an entry's bytes came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provenance {
    /// Read back from the store.
    Store,
    /// Another edge, which held it.
    Peer(NodeId),
    /// The home of its key, which fetched it for this node.
    Home(NodeId),
    /// The origin.
    Origin,
}

impl Provenance {
    /// What the bytes count as while they arrive.
    pub fn source(&self) -> Source {
        match self {
            Self::Store => Source::Disk,
            Self::Peer(_) => Source::Peer,
            Self::Home(_) => Source::Home,
            Self::Origin => Source::Origin,
        }
    }
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store => f.write_str("store"),
            Self::Peer(id) => write!(f, "peer:{id}"),
            Self::Home(id) => write!(f, "home:{id}"),
            Self::Origin => f.write_str("origin"),
        }
    }
}

/// The heads of hits on an entry, but for what changes with time.
pub struct Hot {
    /// The rules under which they were made.
    pub rules: Arc<Rules>,
    /// The fields of a hit on all of it.
    pub fields: HeaderMap,
    /// The same with those that change with the second, as last made.
    pub stamped: ArcSwapOption<Stamped>,
    /// The same with the status line, as it goes out over HTTP/1.1.
    pub head: Bytes,
    /// The head of a 304 for it, over HTTP/1.1.
    pub not_modified: Bytes,
    /// The head of a 206 for one range, over HTTP/1.1, but for the fields that say which.
    pub partial: OnceLock<Bytes>,
}

/// The fields of a hit in one second of its life.
pub struct Stamped {
    /// Its age then.
    pub age_s: u64,
    /// All of its fields.
    pub fields: HeaderMap,
}

/// A cached response.
pub struct Entry {
    /// Its key in the store: the variant's, if there are variants.
    pub key: Key,
    /// Number of this very object; another response under the same key has another.
    pub object: u64,
    /// Everything but the body.
    pub head: Head,
    /// The body.
    pub body: Body,
    /// Where it came from.
    pub from: Provenance,
    /// Where a body that is whole was when it was asked for: what was read for one request is that
    /// request's alone, what memory holds is not.
    pub source: Source,
    /// Heads of hits on it, made at the first one: most entries of a large tier have none.
    pub hot: OnceLock<Box<Hot>>,
    /// Fields that are not stored, for the one client whose request fetched it (RFC 9111 §3.1,
    /// §5.2.2.4, §5.2.2.7; its cookies among them).
    pub withheld: Mutex<Option<Box<HeaderMap>>>,
    memory_bytes: u64,
    /// What names its body, once somebody wanted to know.
    content: OnceLock<Box<PieceHash>>,
    /// When the store last heard that it is used, in Unix seconds.
    touched_s: AtomicU32,
    /// It is in memory only, until somebody asks for it again.
    pub held_back: AtomicBool,
    /// At which generation of the purges it was last found good; 0: it was not judged yet.
    pub proved: AtomicU64,
}

impl Entry {
    /// An entry of these parts.
    pub fn new(key: Key, object: u64, head: Head, body: Body, from: Provenance) -> Self {
        // The head counts five times: as stored, and in four forms as written for hits.
        let memory_bytes = 5 * head.bytes()
            + match &body {
                Body::Whole(bytes) => bytes.len() as u64,
                Body::Pieces { hashes, .. } => 32 * hashes.len() as u64,
                Body::Shelved(_) | Body::Growing(_) => 0,
            };
        Self {
            key,
            object,
            head,
            body,
            from,
            memory_bytes,
            source: Source::Memory,
            hot: OnceLock::new(),
            withheld: Mutex::default(),
            content: OnceLock::new(),
            touched_s: AtomicU32::new(0),
            held_back: AtomicBool::new(false),
            proved: AtomicU64::new(0),
        }
    }

    /// The same response with its body elsewhere.
    #[must_use]
    pub fn with_body(&self, body: Body) -> Self {
        let (head, from) = (self.head.clone(), self.from.clone());
        Self::new(self.key, self.object, head, body, from)
    }

    /// Whether the store should hear again that it is used; true once in `TOUCH_EVERY_S`.
    pub fn is_touch_due(&self, now_ms: u64) -> bool {
        let now_s = u32::try_from(now_ms / 1000).unwrap_or(u32::MAX);
        let touched_s = self.touched_s.load(Ordering::Relaxed);
        let due = now_s.abs_diff(touched_s) >= TOUCH_EVERY_S;
        if due {
            self.touched_s.store(now_s, Ordering::Relaxed);
        }
        due
    }

    /// How far its body [reaches](Growing::reaches) while it grows.
    pub fn reach(&self) -> Option<u8> {
        match &self.body {
            Body::Growing(growing) => growing.reach(),
            Body::Whole(_) | Body::Shelved(_) | Body::Pieces { .. } => None,
        }
    }

    /// Length of the whole body, if it is known.
    pub fn length(&self) -> Option<u64> {
        if let Some(part) = &self.head.part {
            return Some(part.of);
        }
        match &self.body {
            Body::Whole(bytes) => Some(bytes.len() as u64),
            Body::Shelved(shelved) => Some(shelved.length()),
            Body::Pieces { length, .. } => Some(*length),
            Body::Growing(_) => self.head.length,
        }
    }

    /// What it takes in memory, roughly: added up once, for who evicts it has nothing of it at hand.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// The manifest of a complete entry; `None` while it grows, and of a part.
    pub fn manifest(&self) -> Option<Manifest> {
        if self.head.part.is_some() {
            return None;
        }
        match &self.body {
            Body::Whole(bytes) => {
                let hashes = bytes
                    .chunks(PIECE_BYTES)
                    .map(|p| *blake3::hash(p).as_bytes())
                    .collect();
                Some(self.head.manifest(bytes.len() as u64, hashes))
            }
            Body::Pieces { hashes, length } => Some(self.head.manifest(*length, hashes.to_vec())),
            Body::Shelved(_) | Body::Growing(_) => None,
        }
    }

    /// The hashes of the pieces that a part has, and the number of the first; `None` of what is no part, or
    /// one that begins within a piece.
    pub fn part_pieces(&self) -> Option<(u32, Vec<PieceHash>)> {
        let start = self.head.part.as_ref()?.range.start;
        let first = u32::try_from(start / PIECE_BYTES as u64).ok()?;
        let hashes = match &self.body {
            _ if !start.is_multiple_of(PIECE_BYTES as u64) => return None,
            Body::Whole(bytes) => bytes
                .chunks(PIECE_BYTES)
                .map(|piece| *blake3::hash(piece).as_bytes())
                .collect(),
            Body::Pieces { hashes, .. } => hashes.to_vec(),
            Body::Shelved(_) | Body::Growing(_) => return None,
        };
        Some((first, hashes))
    }

    /// What [names its body](content_hash), given `bytes` where they are not here; `None` while it grows, and
    /// of a part.
    pub fn content_hash(&self, bytes: Option<&Bytes>) -> Option<PieceHash> {
        if self.head.part.is_some() {
            return None;
        }
        let known = || self.content.get().map(|hash| **hash);
        let of_bytes = |bytes: &Bytes| **self.content.get_or_init(|| content_hash_of(bytes).into());
        match (&self.body, bytes) {
            (Body::Pieces { hashes, .. }, _) => {
                Some(**self.content.get_or_init(|| content_hash(hashes).into()))
            }
            (Body::Whole(bytes), _) | (Body::Shelved(_), Some(bytes)) => Some(of_bytes(bytes)),
            (Body::Shelved(_), None) => known(),
            (Body::Growing(_), _) => None,
        }
    }

    /// Where the bytes that are here begin in the whole body.
    pub fn offset(&self) -> u64 {
        self.head.part.as_ref().map_or(0, |part| part.range.start)
    }

    /// Opens `range` of the whole body for reading.
    ///
    /// # Errors
    ///
    /// [`BodyError::Gone`]: some of it is not here, or has been evicted; to the reader this is a miss.
    pub fn open(&self, range: Range<u64>, cache: &Cache) -> Result<Reading, BodyError> {
        self.open_counted(range, cache, &Arc::default())
    }

    /// The same; `from_disk` counts the bytes of it that do not come from memory, as they come.
    ///
    /// # Errors
    ///
    /// As [`Entry::open`].
    pub fn open_counted(
        &self,
        range: Range<u64>,
        cache: &Cache,
        from_disk: &Arc<AtomicU64>,
    ) -> Result<Reading, BodyError> {
        let offset = self.offset();
        if range.start < offset {
            return Err(BodyError::Gone);
        }
        let range = range.start - offset..range.end.saturating_sub(offset);
        match &self.body {
            Body::Whole(bytes) => {
                let start = usize::try_from(range.start)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                let end = usize::try_from(range.end)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                Ok(Reading::Whole(bytes.slice(start..end.max(start))))
            }
            Body::Pieces { hashes, .. } => {
                let numbers = piece_numbers(&range).ok_or(BodyError::Gone)?;
                // A range within one piece needs no look at the disk if memory has it.
                if numbers.len() == 1
                    && let Some(piece) = cache.pieces().at_hand(self.object, numbers.start)
                {
                    let part = part_of(&piece, numbers.start, &range).ok_or(BodyError::Gone)?;
                    return Ok(Reading::Whole(part));
                }
                let pieces = cache
                    .pieces()
                    .of(self.object, numbers)
                    .ok_or(BodyError::Gone)?;
                let read = read_pieces(
                    self.key,
                    pieces,
                    hashes.clone(),
                    range,
                    cache.clone(),
                    from_disk.clone(),
                );
                Ok(Reading::Stream(Box::pin(read)))
            }
            Body::Shelved(_) => Err(BodyError::Gone),
            Body::Growing(growing) => {
                let follower = growing.follow(range.start)?;
                Ok(Reading::Stream(Box::pin(follow(follower, range))))
            }
        }
    }
}

/// Bytes of a body, on their way to somebody.
pub enum Reading {
    /// All of them at once.
    Whole(Bytes),
    /// As they come.
    Stream(BodyStream),
}

/// Bytes as they come.
pub type BodyStream = Pin<Box<dyn Stream<Item = Result<Bytes, BodyError>> + Send>>;

impl Reading {
    /// The bytes as they come, even if all of them are there.
    pub fn into_stream(self) -> BodyStream {
        match self {
            Self::Whole(bytes) => Box::pin(stream::once(std::future::ready(Ok(bytes)))),
            Self::Stream(stream) => stream,
        }
    }
}

/// Reads `pieces`, which are those that `range` touches: without waiting while memory has them, and
/// else up to [`READ_AHEAD`] of them ahead.
fn read_pieces(
    key: Key,
    pieces: Vec<PieceRef>,
    hashes: Arc<[PieceHash]>,
    range: Range<u64>,
    cache: Cache,
    from_disk: Arc<AtomicU64>,
) -> impl Stream<Item = Result<Bytes, BodyError>> + Send {
    stream::iter(pieces)
        .map(move |piece| {
            let (cache, range, from_disk) = (cache.clone(), range.clone(), from_disk.clone());
            let (_, index) = piece.name();
            let hash = hashes.get(index as usize).copied();
            async move {
                let hash = hash.ok_or(BodyError::Gone)?;
                match cache.pieces().read(&piece, &hash).await {
                    Ok((bytes, source)) => {
                        let part = part_of(&bytes, index, &range).ok_or(BodyError::Gone)?;
                        if source == Source::Disk {
                            from_disk.fetch_add(part.len() as u64, Ordering::Relaxed);
                        }
                        Ok(part)
                    }
                    Err(error) => {
                        warn!(%key, %error, "a piece on disk is of no use, its object is dropped");
                        cache.forget(key).await;
                        Err(BodyError::Source(error.to_string()))
                    }
                }
            }
        })
        .buffered(READ_AHEAD)
}

/// Numbers of the pieces that `range` touches.
fn piece_numbers(range: &Range<u64>) -> Option<Range<u32>> {
    let size = PIECE_BYTES as u64;
    let (start, end) = (range.start / size, range.end.div_ceil(size));
    Some(u32::try_from(start).ok()?..u32::try_from(end).ok()?)
}

/// What of piece `index` is in `range`; `None` if the piece is too short for that.
fn part_of(piece: &Bytes, index: u32, range: &Range<u64>) -> Option<Bytes> {
    let start = u64::from(index) * PIECE_BYTES as u64;
    let from = usize::try_from(range.start.saturating_sub(start)).ok()?;
    let to = usize::try_from((range.end - start).min(PIECE_BYTES as u64)).ok()?;
    (from <= to && to <= piece.len()).then(|| piece.slice(from..to))
}

fn follow(
    follower: Follower,
    range: Range<u64>,
) -> impl Stream<Item = Result<Bytes, BodyError>> + Send {
    let left = range.end - range.start;
    stream::unfold((Some(follower), left), |(follower, left)| async move {
        let mut follower = follower?;
        if left == 0 {
            return None;
        }
        match follower.next().await? {
            Ok(mut bytes) => {
                let take = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                bytes.truncate(take);
                Some((Ok(bytes), (Some(follower), left - take as u64)))
            }
            Err(error) => Some((Err(error), (None, 0))),
        }
    })
}

/// That a key has variants, how they are told apart, and which there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variants {
    /// Part of every variant's key; a new one makes all variants of before unreachable.
    pub salt: u64,
    /// Lists of field names, the newest first, at most [`SPECS_MAX`].
    pub specs: Vec<Vec<String>>,
    /// The variants, the newest first, at most [`VARIANTS_MAX`].
    pub known: Vec<Variant>,
}

/// One variant of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// What requests that select it are called.
    pub key: Key,
    /// Where it is stored: under its own key, or under that of another request which the origin has
    /// answered with the same representation.
    pub at: Key,
    /// Its entity tag.
    pub tag: Option<String>,
}

impl Variants {
    /// With `spec` as the newest list.
    #[must_use]
    pub fn with(mut self, spec: Vec<String>) -> Self {
        self.specs.retain(|s| *s != spec);
        self.specs.insert(0, spec);
        self.specs.truncate(SPECS_MAX);
        self
    }

    /// Adds `variant` as the newest; returns the ones that there is no room for any more.
    pub fn add(&mut self, variant: Variant) -> Vec<Variant> {
        // A new object under a key is not what others were told that it is.
        let is_object = variant.key == variant.at;
        self.known
            .retain(|known| known.key != variant.key && !(is_object && known.at == variant.at));
        self.known.insert(0, variant);
        self.known.split_off(self.known.len().min(VARIANTS_MAX))
    }

    /// Where the variant called `key` is stored.
    pub fn place(&self, key: Key) -> Key {
        self.known
            .iter()
            .find(|known| known.key == key)
            .map_or(key, |known| known.at)
    }

    /// The entity tags of what is stored, the newest first, each once, at most [`OFFERS_MAX`]
    /// (RFC 9111 §4.3.1).
    pub fn tags(&self) -> Vec<&str> {
        let mut tags: Vec<&str> = Vec::new();
        for tag in self.known.iter().filter_map(|known| known.tag.as_deref()) {
            if tags.len() < OFFERS_MAX && !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        tags
    }

    /// What it takes in memory, roughly.
    pub fn memory_bytes(&self) -> u64 {
        let names = self
            .specs
            .iter()
            .flatten()
            .map(|name| name.len() as u64 + 24);
        let known = self
            .known
            .iter()
            .map(|v| v.tag.as_ref().map_or(0, String::len) as u64 + 56);
        names.sum::<u64>() + known.sum::<u64>() + 64
    }
}

/// The length that a response's own head claims.
pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}
