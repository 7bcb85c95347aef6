//! The cache as a whole: who fills, who follows, and what is there afterwards.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use cluster::manifest::PIECE_BYTES;
use futures_util::StreamExt;
use http::{HeaderMap, StatusCode};

use super::standing::Lenient;
use super::{
    entry::{Head, Provenance, Reading},
    fill::BodyError,
    meta::{Meta, Small},
    passing::PASS_FOR,
    policy::Freshness,
    store::StoreConfig,
    vary::Vary,
    *,
};
use crate::{error::Kind, metrics::Source};

const NOW: u64 = 1_800_000_000_000;
const KEY: Key = Key(7);

fn open(dir: &Path, object_max: u64) -> Cache {
    open_with(dir, 16 << 20, object_max)
}

fn open_with(dir: &Path, memory_bytes_max: u64, object_max: u64) -> Cache {
    let config = StoreConfig {
        dir: dir.to_owned(),
        disk_bytes_max: 256 << 20,
        read_threads: 2,
    };
    let store = Store::open(&config, Arc::new(|_| {})).unwrap();
    let holdings = Arc::new(Mutex::new(Holdings::new(1)));
    Cache::new(Memory::new(memory_bytes_max), store, holdings, object_max)
}

fn fields(list: &[(&'static str, &'static str)]) -> HeaderMap {
    list.iter()
        .map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap()))
        .collect::<HeaderMap>()
}

async fn look(cache: &Cache, headers: &HeaderMap) -> Lookup {
    let said = CacheControl::default();
    cache
        .lookup(Ask {
            key: KEY,
            headers,
            said: &said,
            rules: &Rules::default(),
            judge: &Lenient,
            now_ms: NOW,
        })
        .await
}

async fn filler(cache: &Cache) -> Filler {
    match look(cache, &HeaderMap::new()).await {
        Lookup::Absent(filler) => filler,
        _ => panic!("expected to be the one that fills"),
    }
}

fn head(headers: HeaderMap, request: &HeaderMap) -> Head {
    let selected_by = match vary::selecting_fields(&headers) {
        Vary::Fields(fields) => vary::normal_values(&fields, request),
        _ => Vec::new(),
    };
    Head {
        status: StatusCode::OK,
        freshness: Freshness::of(StatusCode::OK, &headers, &Rules::default(), NOW),
        headers: headers.into(),
        asked_ms: NOW,
        selected_by,
        length: None,
        part: None,
        fetched_by: "edge-1".parse().unwrap(),
        fetched_at: NOW,
        as_of: cluster::purge::Position::default(),
    }
}

fn plain() -> Head {
    head(
        fields(&[("cache-control", "max-age=60")]),
        &HeaderMap::new(),
    )
}

async fn read(entry: &Entry, cache: &Cache) -> Result<Vec<u8>, BodyError> {
    let mut all = Vec::new();
    match entry.open(0..entry.length().unwrap_or(u64::MAX), cache)? {
        Reading::Whole(bytes) => all.extend_from_slice(&bytes),
        Reading::Stream(mut stream) => {
            while let Some(bytes) = stream.next().await {
                all.extend_from_slice(&bytes?);
            }
        }
    }
    Ok(all)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| (i.wrapping_mul(31) >> 3) as u8)
        .collect()
}

#[tokio::test]
async fn one_fills_others_follow_and_a_restart_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 1 << 30);
    let filler = filler(&cache).await;
    let Lookup::Filling(second) = look(&cache, &HeaderMap::new()).await else {
        panic!("the second request follows");
    };
    let mut writing = filler.share(plain(), Provenance::Origin);
    writing.write(Bytes::from_static(b"hello ")).await.unwrap();
    let Outcome::Shared(entry) = second.outcome().await else {
        panic!("it is shared")
    };
    let Reading::Stream(mut early) = entry.open(0..11, &cache).unwrap() else {
        panic!("it is still growing");
    };
    assert_eq!(
        early.next().await.unwrap().unwrap(),
        "hello ",
        "before the body is complete"
    );
    writing.write(Bytes::from_static(b"world")).await.unwrap();
    assert_eq!(early.next().await.unwrap().unwrap(), "world");
    writing.commit().await;
    assert!(early.next().await.is_none());
    let Lookup::Fresh(entry) = look(&cache, &HeaderMap::new()).await else {
        panic!("stored")
    };
    assert_eq!(read(&entry, &cache).await.unwrap(), b"hello world");
    cache.store().close().await;
    drop((cache, entry, early));

    let cache = open(dir.path(), 1 << 30);
    let Lookup::Fresh(entry) = look(&cache, &HeaderMap::new()).await else {
        panic!("still there")
    };
    assert_eq!(read(&entry, &cache).await.unwrap(), b"hello world");
    assert_eq!(
        cache.digest_version().seq,
        1,
        "what is on disk is claimed again"
    );
}

#[tokio::test]
async fn a_large_body_is_the_same_for_the_early_the_late_and_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 1 << 30);
    let body = pattern(9 * PIECE_BYTES + 12_345);
    let mut writing = filler(&cache).await.share(plain(), Provenance::Origin);
    let entry = writing.entry().clone();
    let (early, cached) = (entry.clone(), cache.clone());
    let early = tokio::spawn(async move { read(&early, &cached).await });
    for chunk in body.chunks(100_000) {
        writing.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    let (late, cached) = (entry.clone(), cache.clone());
    let late = tokio::spawn(async move { read(&late, &cached).await });
    writing.commit().await;
    assert!(early.await.unwrap().unwrap() == body);
    assert!(late.await.unwrap().unwrap() == body);
    let Lookup::Fresh(entry) = look(&cache, &HeaderMap::new()).await else {
        panic!("stored")
    };
    assert!(matches!(entry.body, Body::Pieces { .. }));
    assert!(read(&entry, &cache).await.unwrap() == body);
}

#[tokio::test]
async fn pieces_may_come_in_any_order_and_are_there_for_others_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 1 << 30);
    let body = pattern(7 * PIECE_BYTES + 12_345);
    let hash = |piece: &[u8]| *blake3::hash(piece).as_bytes();
    assert!(cache.coming_in(KEY).is_none());
    let mut writing = filler(&cache).await.share(plain(), Provenance::Origin);
    let (entry, cached) = (writing.entry().clone(), cache.clone());
    let reading = tokio::spawn(async move { read(&entry, &cached).await });
    let (entry, growing) = cache.coming_in(KEY).unwrap();
    assert_eq!(entry.object, writing.entry().object);
    // The first as it comes, the others by pieces.
    let (first, others) = body.split_at(PIECE_BYTES);
    writing.write(Bytes::copy_from_slice(first)).await.unwrap();
    let others: Vec<_> = (1..).zip(others.chunks(PIECE_BYTES)).collect();
    for at in [6, 1, 0, 4, 2, 3, 5] {
        let (index, piece) = others[at];
        let bytes = Bytes::copy_from_slice(piece);
        writing.put(index, bytes, hash(piece)).await.unwrap();
        assert_eq!(growing.piece_hash(index).await.unwrap(), hash(piece));
        assert!(growing.read_piece(index).await.unwrap() == piece);
    }
    assert_eq!(writing.length(), body.len() as u64);
    writing.commit().await;
    assert!(reading.await.unwrap().unwrap() == body);
    let (last, piece) = others[6];
    assert_eq!(growing.piece_hash(last).await.unwrap(), hash(piece));
    assert_eq!(growing.piece_hash(8).await, Err(BodyError::Gone));
    let Lookup::Fresh(entry) = look(&cache, &HeaderMap::new()).await else {
        panic!("stored")
    };
    assert!(read(&entry, &cache).await.unwrap() == body);
    assert_eq!(entry.manifest().unwrap().pieces.len(), 8);
}

#[tokio::test]
async fn a_body_over_the_limit_passes_to_whoever_follows_and_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 2 * PIECE_BYTES as u64);
    let body = pattern(12 * PIECE_BYTES);
    let mut writing = filler(&cache).await.share(plain(), Provenance::Origin);
    let (entry, cached) = (writing.entry().clone(), cache.clone());
    let follower = entry.open(0..u64::MAX, &cached).unwrap();
    let follower = tokio::spawn(async move {
        let mut all = Vec::new();
        let mut stream = follower.into_stream();
        while let Some(bytes) = stream.next().await {
            all.extend_from_slice(&bytes.unwrap());
        }
        all
    });
    for chunk in body.chunks(300_000) {
        writing.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    writing.commit().await;
    assert!(follower.await.unwrap() == body);
    assert!(matches!(
        look(&cache, &HeaderMap::new()).await,
        Lookup::Absent(_)
    ));
}

#[tokio::test]
async fn nobody_waits_for_a_filler_that_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 1 << 30);
    let filler = filler(&cache).await;
    let following = filler.follow();
    drop(filler);
    let Outcome::Failed(error) = following.outcome().await else {
        panic!("there is no answer")
    };
    assert_eq!(error.kind, Kind::Internal);
    assert!(matches!(
        look(&cache, &HeaderMap::new()).await,
        Lookup::Absent(_)
    ));
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_and_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 1 << 30);
    let mut writing = filler(&cache).await.share(plain(), Provenance::Origin);
    writing
        .write(Bytes::from(pattern(2 * PIECE_BYTES + 5)))
        .await
        .unwrap();
    let entry = writing.entry().clone();
    writing.fail(BodyError::Source("cut".into()));
    assert_eq!(
        read(&entry, &cache).await,
        Err(BodyError::Source("cut".into()))
    );
    assert!(matches!(
        look(&cache, &HeaderMap::new()).await,
        Lookup::Absent(_)
    ));
}

#[tokio::test]
async fn who_cannot_share_goes_ahead_alone_for_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 1 << 30);
    let filler = filler(&cache).await;
    let Lookup::Filling(other) = look(&cache, &HeaderMap::new()).await else {
        panic!("follows")
    };
    filler.not_shared(true);
    assert!(matches!(other.outcome().await, Outcome::NotShared));
    assert!(matches!(
        look(&cache, &HeaderMap::new()).await,
        Lookup::Pass
    ));
    let later = Instant::now() + PASS_FOR;
    assert!(!cache.passing().is_passing(KEY, later));
    assert!(matches!(
        look(&cache, &HeaderMap::new()).await,
        Lookup::Absent(_)
    ));
}

#[tokio::test]
async fn variants_stand_side_by_side_and_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let answer = || fields(&[("cache-control", "max-age=60"), ("vary", "Accept-Language")]);
    let (en, fr) = (
        fields(&[("accept-language", "en")]),
        fields(&[("accept-language", "fr")]),
    );
    let cache = open(dir.path(), 1 << 30);
    for request in [&en, &fr] {
        let Lookup::Absent(filler) = look(&cache, request).await else {
            panic!("not there yet")
        };
        let mut writing = filler.share(head(answer(), request), Provenance::Origin);
        let body = request["accept-language"].as_bytes().to_vec();
        writing.write(body.into()).await.unwrap();
        writing.commit().await;
    }
    cache.store().close().await;
    drop(cache);
    let cache = open(dir.path(), 1 << 30);
    for request in [&en, &fr] {
        let Lookup::Fresh(entry) = look(&cache, request).await else {
            panic!("there")
        };
        let body = read(&entry, &cache).await.unwrap();
        assert_eq!(body, request["accept-language"].as_bytes());
    }
    assert!(matches!(
        look(&cache, &HeaderMap::new()).await,
        Lookup::Absent(_)
    ));
    cache.forget(KEY).await;
    assert!(
        matches!(look(&cache, &en).await, Lookup::Absent(_)),
        "all variants go together"
    );
}

#[tokio::test]
async fn what_was_forgotten_while_it_was_fetched_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 1 << 30);
    let mut writing = filler(&cache).await.share(plain(), Provenance::Origin);
    cache.forget(KEY).await;
    writing.write(Bytes::from_static(b"old")).await.unwrap();
    writing.commit().await;
    assert!(matches!(
        look(&cache, &HeaderMap::new()).await,
        Lookup::Absent(_)
    ));
}

#[tokio::test]
async fn a_scribbled_disk_gives_a_miss_and_never_other_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 1 << 30);
    let mut writing = filler(&cache).await.share(plain(), Provenance::Origin);
    writing.write(Bytes::from(vec![b'a'; 5000])).await.unwrap();
    writing.commit().await;
    cache.store().close().await;
    drop(cache);
    for file in std::fs::read_dir(dir.path().join("segments")).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes
            .windows(100)
            .position(|w| w.iter().all(|&b| b == b'a'))
        {
            bytes[at + 50] ^= 1;
            std::fs::write(path, bytes).unwrap();
        }
    }
    let cache = open(dir.path(), 1 << 30);
    assert!(matches!(
        look(&cache, &HeaderMap::new()).await,
        Lookup::Absent(_)
    ));
    assert_eq!(cache.disk_stats().checksum_failures_total, 1);
}

#[tokio::test]
async fn an_invalidation_during_the_fill_of_a_variant_is_not_undone() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 1 << 30);
    let varied = |value: &'static str| {
        let request = fields(&[("accept-language", value)]);
        let answer = fields(&[("cache-control", "max-age=60"), ("vary", "accept-language")]);
        (head(answer, &request), request)
    };
    let (german, asks_german) = varied("de");
    let writing = filler(&cache).await.share(german, Provenance::Origin);
    writing.commit().await;
    assert!(matches!(look(&cache, &asks_german).await, Lookup::Fresh(_)));

    let (english, asks_english) = varied("en");
    let Lookup::Absent(filler) = look(&cache, &asks_english).await else {
        panic!("another variant is missing")
    };
    let writing = filler.share(english, Provenance::Origin);
    cache.forget(KEY).await;
    writing.commit().await;
    for asks in [&asks_german, &asks_english] {
        assert!(matches!(look(&cache, asks).await, Lookup::Absent(_)));
    }
}

#[tokio::test]
async fn a_key_has_a_bounded_number_of_variants() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 1 << 30);
    let request = |n: usize| {
        let mut fields = HeaderMap::new();
        fields.insert("user-agent", n.to_string().parse().unwrap());
        fields
    };
    for n in 0..=entry::VARIANTS_MAX {
        let Lookup::Absent(filler) = look(&cache, &request(n)).await else {
            panic!("variant {n} is missing")
        };
        let answer = fields(&[("cache-control", "max-age=60"), ("vary", "user-agent")]);
        let writing = filler.share(head(answer, &request(n)), Provenance::Origin);
        writing.commit().await;
    }
    let newest = look(&cache, &request(entry::VARIANTS_MAX)).await;
    assert!(matches!(newest, Lookup::Fresh(_)));
    assert!(matches!(look(&cache, &request(1)).await, Lookup::Fresh(_)));
    assert!(matches!(look(&cache, &request(0)).await, Lookup::Absent(_)));
}

/// A cache with a memory tier of that size that has filled one body under [`KEY`].
async fn holding(dir: &Path, memory: u64, body: &[u8]) -> Cache {
    let cache = open_with(dir, memory, 1 << 30);
    let mut writing = filler(&cache).await.share(plain(), Provenance::Origin);
    writing.write(Bytes::copy_from_slice(body)).await.unwrap();
    writing.commit().await;
    cache
}

async fn fresh(cache: &Cache) -> Arc<Entry> {
    match look(cache, &HeaderMap::new()).await {
        Lookup::Fresh(entry) => entry,
        _ => panic!("it is stored"),
    }
}

#[tokio::test]
async fn a_large_body_is_read_from_disk_once_and_then_from_memory() {
    let dir = tempfile::tempdir().unwrap();
    let body = pattern(32 * PIECE_BYTES);
    let cache = holding(dir.path(), 256 << 20, &body).await;
    for _ in 0..3 {
        assert!(read(&*fresh(&cache).await, &cache).await.unwrap() == body);
    }
    assert_eq!(cache.disk_stats().read_bytes_total, 0, "just written");
    cache.store().close().await;
    drop(cache);

    let cache = open_with(dir.path(), 256 << 20, 1 << 30);
    assert!(read(&*fresh(&cache).await, &cache).await.unwrap() == body);
    let once = cache.disk_stats().read_bytes_total;
    assert!(once >= body.len() as u64, "{once}");
    let entry = fresh(&cache).await;
    for _ in 0..3 {
        assert!(read(&entry, &cache).await.unwrap() == body);
    }
    let piece = PIECE_BYTES as u64;
    for range in [
        0..1,
        piece - 1..piece + 1,
        5 * piece..6 * piece,
        7..31 * piece,
    ] {
        let mut all = Vec::new();
        let mut stream = entry.open(range.clone(), &cache).unwrap().into_stream();
        while let Some(bytes) = stream.next().await {
            all.extend_from_slice(&bytes.unwrap());
        }
        let wanted = range.start as usize..range.end as usize;
        assert!(all == body[wanted], "{range:?}");
    }
    assert_eq!(cache.disk_stats().read_bytes_total, once);
}

#[tokio::test]
async fn an_object_takes_its_pieces_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let body = pattern(8 * PIECE_BYTES);
    let cache = holding(dir.path(), 64 << 20, &body).await;
    let entry = fresh(&cache).await;
    let usage = cache.memory_usage();
    assert!(usage.bytes > body.len() as u64, "{}", usage.bytes);
    assert_eq!(usage.objects, 1, "pieces are not objects");
    cache.forget(KEY).await;
    let usage = cache.memory_usage();
    assert_eq!((usage.bytes, usage.objects), (0, 0));
    assert_eq!(read(&entry, &cache).await, Err(BodyError::Gone));

    // A fill that breaks off leaves none behind either.
    let mut writing = filler(&cache).await.share(plain(), Provenance::Origin);
    writing.write(body.into()).await.unwrap();
    writing.fail(BodyError::Source("cut".into()));
    assert_eq!(cache.memory_usage().bytes, 0);
}

#[tokio::test]
async fn what_the_disk_has_lost_is_gone_unless_one_piece_answers_it() {
    let dir = tempfile::tempdir().unwrap();
    let body = pattern(3 * PIECE_BYTES);
    let cache = holding(dir.path(), 64 << 20, &body).await;
    let entry = fresh(&cache).await;
    // As if its segment had been reclaimed: the store no longer knows it, memory does.
    cache.store().remove(KEY).await.unwrap();
    assert_eq!(read(&entry, &cache).await, Err(BodyError::Gone));
    let Ok(Reading::Whole(part)) = entry.open(10..20, &cache) else {
        panic!("it lies within a piece that memory has")
    };
    assert_eq!(part, body[10..20]);
}

/// Small objects that are asked for again and again keep their place while as much as the tier holds
/// many times over passes through it once.
#[test]
fn a_pass_over_a_large_file_does_not_push_out_small_objects() {
    const SMALL: u64 = 4_000;
    const PIECES: u32 = 4_096;
    let memory = Memory::new(128 << 20);
    let piece = Bytes::from(vec![0; PIECE_BYTES]);
    let small = |n: u64| {
        let body = Body::Whole(piece.slice(..4096));
        let entry = Entry::new(Key(n.into()), n, plain(), body, Provenance::Origin);
        Item::Entry(Arc::new(entry))
    };
    let mut asked = 0;
    let mut hits = 0;
    for index in 0..PIECES {
        memory.insert_piece(u64::MAX, index, piece.clone());
        for n in 0..20 {
            // Every small object once per 200 pieces, more than the tier holds.
            let n = (u64::from(index) * 20 + n) % SMALL;
            let found = memory.find(Key(n.into())).is_some();
            if !found {
                memory.insert(Key(n.into()), small(n));
            }
            if index > PIECES / 2 {
                asked += 1;
                hits += u32::from(found);
            }
        }
    }
    assert!(hits * 100 >= asked * 99, "{hits} of {asked}");
}

/// A cache whose ring of segments has just been turned over.
async fn under_pressure(dir: &Path) -> Cache {
    let config = StoreConfig {
        dir: dir.to_owned(),
        disk_bytes_max: store::DISK_BYTES_MIN,
        read_threads: 2,
    };
    let store = Store::open(&config, Arc::new(|_| {})).unwrap();
    let holdings = Arc::new(Mutex::new(Holdings::new(1)));
    let cache = Cache::new(Memory::new(16 << 20), store, holdings, 1 << 30);
    let body = Bytes::from(vec![0; PIECE_BYTES]);
    for n in 0..64 {
        let store = cache.store();
        let body = store::Body::Inline(body.clone());
        let (key, id) = (Key::of(&[b"churn", &[n]]), store.next_object_id());
        let append = store.append_object(key, id, 0, Bytes::new(), body);
        append.await.unwrap();
    }
    assert!(cache.store().holds_back());
    cache
}

async fn fill(cache: &Cache, body: &'static str) {
    let mut writing = filler(cache).await.share(plain(), Provenance::Origin);
    writing
        .write(Bytes::from_static(body.as_bytes()))
        .await
        .unwrap();
    writing.commit().await;
}

#[tokio::test]
async fn while_the_ring_turns_fast_only_what_is_asked_for_again_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let cache = under_pressure(dir.path()).await;
    let before = cache.digest_version().seq;
    fill(&cache, "once").await;
    assert_eq!(cache.held_back(), 1);
    assert!(!cache.store().contains(KEY), "held back");
    assert_eq!(cache.digest_version().seq, before, "and not claimed");

    let entry = fresh(&cache).await;
    assert_eq!(read(&entry, &cache).await.unwrap(), b"once");
    // Writing goes on behind; until it is done, all places are not free again.
    let _all = cache
        .shared
        .admitting
        .acquire_many(u32::try_from(ADMITTING_MAX).unwrap())
        .await
        .unwrap();
    assert!(cache.store().contains(KEY), "asked for again");
    assert_eq!(cache.digest_version().seq, before + 1);
}

#[tokio::test]
async fn what_was_invalidated_while_it_was_held_back_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let cache = under_pressure(dir.path()).await;
    fill(&cache, "old").await;
    // Asked for and invalidated at once: the write is still under way.
    let held = fresh(&cache).await;
    cache.forget(KEY).await;
    let all = u32::try_from(ADMITTING_MAX).unwrap();
    drop(cache.shared.admitting.acquire_many(all).await.unwrap());
    drop(held);
    assert!(!cache.store().contains(KEY));
    assert!(matches!(
        look(&cache, &HeaderMap::new()).await,
        Lookup::Absent(_)
    ));
}

#[tokio::test]
async fn what_replaces_an_object_on_disk_is_written_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let cache = under_pressure(dir.path()).await;
    fill(&cache, "held back").await;
    fresh(&cache).await;
    let all = u32::try_from(ADMITTING_MAX).unwrap();
    drop(cache.shared.admitting.acquire_many(all).await.unwrap());
    assert!(cache.store().contains(KEY));
    // It has gone stale; the next answer is another.
    let ask = Ask {
        key: KEY,
        headers: &HeaderMap::new(),
        said: &CacheControl::default(),
        rules: &Rules::default(),
        judge: &Lenient,
        now_ms: NOW + 3_600_000,
    };
    let Lookup::Stale {
        turn: Turn::Fill(filler),
        ..
    } = cache.lookup(ask).await
    else {
        panic!("it is stale")
    };
    let mut writing = filler.share(plain(), Provenance::Origin);
    writing.write(Bytes::from_static(b"newer")).await.unwrap();
    writing.commit().await;
    cache.shared.memory.remove(KEY);
    assert_eq!(read(&*fresh(&cache).await, &cache).await.unwrap(), b"newer");
    assert_eq!(cache.held_back(), 1);
}

/// An object of 32 KiB that stands on disk and not in memory, which is full; nothing where the file system
/// cannot tell what the system has in its cache.
async fn on_disk_only(dir: &Path) -> Option<(Cache, Vec<u8>)> {
    let body = pattern(32 << 10);
    let cache = holding(dir, 1 << 20, &body).await;
    cache.shared.memory.remove(KEY);
    crowd(&cache);
    let can_tell = cache.store().object_at_hand(KEY, |_| true).is_some();
    can_tell.then_some((cache, body))
}

/// Fills the memory tier with what nobody asks for.
fn crowd(cache: &Cache) {
    for n in 0..400 {
        let body = Body::Whole(Bytes::from(vec![0; 4 << 10]));
        let key = Key(1000 + n);
        let entry = Entry::new(key, 1, plain(), body, Provenance::Origin);
        cache
            .shared
            .memory
            .insert(key, Item::Entry(Arc::new(entry)));
    }
}

fn hot(cache: &Cache) -> Option<(Bytes, Source)> {
    let entry = cache.hot(KEY, |_| HeaderMap::new(), NOW)?;
    cache.body(&entry)
}

#[tokio::test]
async fn what_the_system_has_in_its_cache_is_kept_once_it_has_been_read_often() {
    let dir = tempfile::tempdir().unwrap();
    let Some((cache, body)) = on_disk_only(dir.path()).await else {
        return;
    };
    let mut reads = 0;
    while reads < 100 {
        let (bytes, source) = hot(&cache).expect("it can be read without waiting");
        assert!(bytes == body);
        let entry = fresh(&cache).await;
        assert!(read(&entry, &cache).await.unwrap() == body, "nor otherwise");
        if source == Source::Memory {
            break;
        }
        reads += 1;
    }
    assert!((40..90).contains(&reads), "{reads}");
    cache.forget(KEY).await;
    assert!(hot(&cache).is_none());
}

#[tokio::test]
async fn damage_under_a_body_that_was_proved_before_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let Some((cache, body)) = on_disk_only(dir.path()).await else {
        return;
    };
    for _ in 0..3 {
        assert!(hot(&cache).is_some_and(|(bytes, _)| bytes == body));
    }
    for segment in std::fs::read_dir(dir.path().join("segments")).unwrap() {
        let path = segment.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() - 100;
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(hot(&cache).is_none());
    assert!(matches!(
        look(&cache, &HeaderMap::new()).await,
        Lookup::Absent(_)
    ));
    assert_eq!(cache.disk_stats().checksum_failures_total, 1);
    assert!(hot(&cache).is_none());
}

/// A head in memory outlives what it was the head of by no moment: the body that is read is its own.
#[tokio::test]
async fn a_shelved_body_is_not_taken_for_that_of_another_object() {
    let dir = tempfile::tempdir().unwrap();
    let Some((cache, _)) = on_disk_only(dir.path()).await else {
        return;
    };
    assert!(hot(&cache).is_some());
    let entry = cache.hot(KEY, |_| HeaderMap::new(), NOW).unwrap();
    assert!(matches!(entry.body, Body::Shelved(_)));
    let store = cache.store();
    let other = store.next_object_id();
    let (meta, body) = (Bytes::new(), store::Body::Inline(Bytes::from_static(b"x")));
    let append = store.append_object(KEY, other, 0, meta, body);
    append.await.unwrap();
    assert!(cache.body(&entry).is_none());
}

/// Pieces that memory had were counted as read from disk.
#[tokio::test]
async fn pieces_from_memory_are_not_counted_as_read_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let body = pattern(4 * PIECE_BYTES);
    let cache = holding(dir.path(), 64 << 20, &body).await;
    cache.store().close().await;
    drop(cache);
    let cache = open_with(dir.path(), 64 << 20, 1 << 30);
    let entry = fresh(&cache).await;
    let piece = PIECE_BYTES as u64;
    for (range, expected) in [(10..2 * piece, 2 * piece - 10), (0..3 * piece, piece)] {
        let from_disk = Arc::new(AtomicU64::new(0));
        let reading = entry.open_counted(range, &cache, &from_disk).unwrap();
        let mut stream = reading.into_stream();
        while let Some(bytes) = stream.next().await {
            bytes.unwrap();
        }
        assert_eq!(from_disk.load(Ordering::Relaxed), expected);
    }
}

#[tokio::test]
async fn a_small_body_on_disk_is_known_by_its_crc_and_has_a_hash_for_peers() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), u64::MAX);
    let body = Bytes::from(pattern(1000));
    let filler = cache.claim_absent(KEY, Instant::now()).unwrap();
    assert!(cache.claim_absent(KEY, Instant::now()).is_none(), "claimed");
    let following = filler.follow();
    let head = Head {
        length: Some(1000),
        ..plain()
    };
    let meta = Meta::encode_small(&head, &body).unwrap();
    for (changed, holds) in [(None, true), (Some(0), false), (Some(999), false)] {
        let mut read = body.to_vec();
        changed.into_iter().for_each(|at: usize| read[at] ^= 1);
        assert_eq!(Meta::is_of(&meta, &read), holds, "{changed:?}");
    }
    for cut in 0..meta.len() {
        // As long as the CRC is there, nothing of it may panic.
        let _ = Meta::is_of(&meta[..cut], &body);
        let _ = Meta::decode(&meta[..cut]);
    }
    assert!(!Meta::is_of(&meta[..4], &body) && Meta::decode(&meta[..3]).is_none());

    let small = Small::new(head, body.clone());
    assert!(filler.share_small(small, Provenance::Origin).is_none());
    let Outcome::Shared(told) = following.outcome().await else {
        panic!("it was shared");
    };
    assert_eq!(read(&told, &cache).await.unwrap(), body);
    assert!(cache.claim_absent(KEY, Instant::now()).is_none(), "stored");
    cache.store().close().await;
    drop(cache);

    let cache = open(dir.path(), u64::MAX);
    assert!(cache.claim_absent(KEY, Instant::now()).is_none(), "on disk");
    let stored = cache.stored(KEY, &HeaderMap::new()).await.unwrap();
    assert_eq!(read(&stored, &cache).await.unwrap(), body);
    let manifest = stored.manifest().unwrap();
    assert_eq!(manifest.pieces, [*blake3::hash(&body).as_bytes()]);
    assert_eq!(manifest.length, 1000);
}

#[tokio::test]
async fn who_follows_late_is_told_at_once_and_nobody_waits_for_what_nobody_follows() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), u64::MAX);
    let filler = cache.claim_absent(KEY, Instant::now()).unwrap();
    filler.deserted().await;
    let first = filler.follow();
    let deserted = tokio::time::timeout(Duration::from_millis(10), filler.deserted());
    assert!(deserted.await.is_err(), "somebody follows");
    assert!(!first.is_known());
    let fill = filler.fill.clone();
    filler.again();
    let late = fill.follow();
    assert!(first.is_known() && late.is_known());
    for following in [first, late] {
        assert!(matches!(following.outcome().await, Outcome::Again));
    }
}

#[tokio::test]
async fn a_fill_comes_to_wait_for_less_and_never_for_more() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), 1 << 30);
    let filler = filler(&cache).await;
    for (said, holds) in [(3, 3), (1, 1), (4, 1)] {
        filler.reaches(said);
        assert_eq!(filler.follow().reach().await, Some(holds));
    }
}
