//! Scenarios on real files, with real crashes.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use blake3::Hash;
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::cache::{
    index,
    segment::{Entry, HEADER_BYTES, encode_record},
};

const MIB: u64 = 1 << 20;

/// Bytes that only `seed` yields.
fn bytes_of(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes.into()
}

fn key(n: u64) -> Key {
    Key::of(&[b"test", &n.to_le_bytes()])
}

fn config(dir: &Path, disk_bytes_max: u64) -> StoreConfig {
    StoreConfig {
        dir: dir.into(),
        disk_bytes_max,
        read_threads: 2,
    }
}

/// Opens the store, waiting for the one before to let go of the directory.
fn open(dir: &Path, disk_bytes_max: u64) -> Store {
    open_hearing(dir, disk_bytes_max, Arc::new(|_: &[Key]| {}))
}

fn open_hearing(dir: &Path, disk_bytes_max: u64, on_evicted: OnEvicted) -> Store {
    for _ in 0..1000 {
        match Store::open(&config(dir, disk_bytes_max), Arc::clone(&on_evicted)) {
            Err(OpenError::Locked { .. }) => pause(),
            opened => return opened.unwrap(),
        }
    }
    panic!("the directory stays locked");
}

fn pause() {
    #[expect(clippy::disallowed_methods, reason = "no runtime runs on this thread")]
    std::thread::sleep(Duration::from_millis(10));
}

/// Stores an inline object whose metadata is the hash of its body.
async fn put(store: &Store, n: u64, seed: u64, len: usize) -> Result<(), AppendError> {
    let body = bytes_of(seed, len);
    let meta = Bytes::copy_from_slice(blake3::hash(&body).as_bytes());
    let id = store.next_object_id();
    store
        .append_object(key(n), id, CLAIMED, meta, Body::Inline(body))
        .await
}

/// Stores an object of `count` pieces; its metadata are their hashes.
async fn put_large(
    store: &Store,
    n: u64,
    seed: u64,
    count: u32,
    len: usize,
) -> Result<(), AppendError> {
    let id = store.next_object_id();
    let mut meta = Vec::new();
    for index in 0..count {
        let body = bytes_of(seed + u64::from(index), len);
        meta.extend_from_slice(blake3::hash(&body).as_bytes());
        if let Err(error) = store.append_piece(id, index, body).await {
            store.forget_pieces(id);
            return Err(error);
        }
    }
    let done = store
        .append_object(key(n), id, 0, meta.into(), Body::Pieces(count))
        .await;
    if done.is_err() {
        store.forget_pieces(id);
    }
    done
}

/// Reads and verifies all of an object; the hash of its body, all pieces together. `None`: absent.
async fn get(store: &Store, n: u64) -> Result<Option<Hash>, ReadError> {
    let decode = |object: StoredObject| match &object.body {
        Body::Inline(body) => (*blake3::hash(body).as_bytes() == *object.meta).then_some(object),
        Body::Pieces(count) => (object.meta.len() == *count as usize * 32).then_some(object),
    };
    let Some(object) = store.read_object(key(n), decode).await? else {
        return Ok(None);
    };
    let count = match object.body {
        Body::Inline(body) => return Ok(Some(blake3::hash(&body))),
        Body::Pieces(count) => count,
    };
    let Some(pieces) = store.pieces(object.object, 0..count) else {
        return Ok(None);
    };
    let mut all = Vec::new();
    for (piece, hash) in pieces.iter().zip(object.meta.as_chunks::<32>().0) {
        all.extend_from_slice(&store.read_piece(piece, hash).await?);
    }
    Ok(Some(blake3::hash(&all)))
}

fn small(seed: u64, len: usize) -> Hash {
    blake3::hash(&bytes_of(seed, len))
}

fn large(seed: u64, count: u32, len: usize) -> Hash {
    let indices = 0..u64::from(count);
    let body: Vec<u8> = indices.flat_map(|n| bytes_of(seed + n, len)).collect();
    blake3::hash(&body)
}

/// What a crash at this moment would leave: the files as the system has them.
fn crashed_copy(dir: &Path) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                fs::create_dir(&to).unwrap();
                copy(&entry.path(), &to);
            } else {
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    let to = tempfile::tempdir().unwrap();
    copy(dir, to.path());
    to
}

fn segment_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(open::segments_dir(dir))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

fn damaged(dir: &Path, what: &str) -> usize {
    fs::read_dir(dir)
        .unwrap()
        .filter(|e| {
            let name = e.as_ref().unwrap().file_name();
            name.to_str().unwrap().starts_with(what)
        })
        .count()
}

#[tokio::test]
async fn objects_are_stored_replaced_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 64 * MIB);
    assert_eq!(get(&store, 1).await.unwrap(), None);
    put(&store, 1, 10, 5000).await.unwrap();
    put(&store, 2, 20, 0).await.unwrap();
    put_large(&store, 3, 30, 3, 100_000).await.unwrap();
    assert_eq!(get(&store, 1).await.unwrap().unwrap(), small(10, 5000));
    assert_eq!(get(&store, 2).await.unwrap().unwrap(), small(0, 0));
    let whole = large(30, 3, 100_000);
    assert_eq!(get(&store, 3).await.unwrap().unwrap(), whole);
    assert_eq!(store.stats().objects, 3);

    put(&store, 1, 11, 70).await.unwrap();
    assert_eq!(get(&store, 1).await.unwrap().unwrap(), small(11, 70));
    put_large(&store, 1, 12, 2, 10).await.unwrap();
    assert_eq!(get(&store, 1).await.unwrap().unwrap(), large(12, 2, 10));
    put(&store, 1, 13, 7).await.unwrap();
    assert_eq!(get(&store, 1).await.unwrap().unwrap(), small(13, 7));

    let removal = store.remove(key(1));
    assert!(!store.contains(key(1)), "invisible before it is awaited");
    removal.await.unwrap();
    assert_eq!(get(&store, 1).await.unwrap(), None);

    assert_eq!(store.claimed_keys(), [key(2)]);
    assert!(store.set_flags(key(3), CLAIMED | 4) && !store.set_flags(key(1), 1));
    assert_eq!(store.flags(key(3)), Some(CLAIMED | 4));
    assert_eq!(store.claimed_keys().len(), 2);
}

#[tokio::test]
async fn behind_a_small_object_that_came_from_the_disk_more_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), 64 * MIB);
    for n in 0..3 {
        put(&store, n, n, 4_000).await.unwrap();
    }
    put(&store, 9, 9, 1 << 20).await.unwrap();
    let after = async |store: &Store, n| {
        assert!(get(store, n).await.unwrap().is_some());
        store.stats().reads_around_total
    };
    // Nothing takes an hour: all of it is in the system's cache.
    store.cold_read = Duration::from_secs(3600);
    assert_eq!(after(&store, 0).await, 0);
    // All that takes any time at all came from the disk.
    store.cold_read = Duration::ZERO;
    assert_eq!(after(&store, 1).await, 1);
    assert_eq!(after(&store, 9).await, 1, "large");
    // However many ask, only so many are read for the system.
    let places = u32::try_from(READ_AROUNDS_MAX).unwrap();
    let _taken = store.reads_around.acquire_many(places).await.unwrap();
    assert_eq!(after(&store, 2).await, 1, "the disk is busy with that");
}

#[tokio::test]
async fn new_metadata_keep_the_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 64 * MIB);
    let id = store.next_object_id();
    let piece = store.append_piece(id, 0, bytes_of(1, 100)).await.unwrap();
    for meta in ["first", "second"] {
        store
            .append_object(key(1), id, 0, meta.into(), Body::Pieces(1))
            .await
            .unwrap();
    }
    let read = store.read_object(key(1), Some).await.unwrap().unwrap();
    assert_eq!((&read.meta[..], read.object), (&b"second"[..], id));
    assert_eq!(store.pieces(id, 0..1).unwrap().len(), 1);
    let hash = small(1, 100);
    let body = store.read_piece(&piece, hash.as_bytes()).await.unwrap();
    assert_eq!(body, bytes_of(1, 100));
    store.forget_pieces(id);
    assert!(
        store.pieces(id, 0..1).is_some(),
        "the object has come to be"
    );
}

#[tokio::test]
async fn what_cannot_be_stored_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 64 * MIB);
    let id = store.next_object_id();
    let torn = |count| store.append_object(key(1), id, 0, Bytes::new(), Body::Pieces(count));
    assert!(matches!(torn(1).await, Err(AppendError::Torn)));
    assert!(matches!(torn(0).await, Err(AppendError::Torn)));
    assert!(matches!(torn(1 << 16).await, Err(AppendError::TooLarge)));
    store.append_piece(id, 1, bytes_of(1, 9)).await.unwrap();
    assert!(matches!(torn(2).await, Err(AppendError::Torn)));
    store.append_piece(id, 0, bytes_of(0, 9)).await.unwrap();
    store.forget_pieces(id);
    assert!(matches!(torn(2).await, Err(AppendError::Torn)));
    assert!(store.pieces(id, 0..1).is_none() && !store.contains(key(1)));
    let big = put(&store, 1, 1, RECORD_BYTES_MAX).await;
    assert!(matches!(big, Err(AppendError::TooLarge)));
    let far = store.append_piece(id, 1 << 16, Bytes::new()).await;
    assert!(matches!(far, Err(AppendError::TooLarge)));

    put(&store, 2, 2, 10).await.unwrap();
    store.close().await;
    assert!(matches!(
        put(&store, 3, 3, 10).await,
        Err(AppendError::Closed)
    ));
    assert!(matches!(
        store.remove(key(9)).await,
        Err(AppendError::Closed)
    ));
    assert_eq!(get(&store, 2).await.unwrap().unwrap(), small(2, 10));
    store.close().await;
}

#[tokio::test]
async fn a_restart_is_warm_whether_it_was_closed_dropped_or_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), 64 * MIB);
    let headless = store.next_object_id();
    for round in 0..4 {
        for n in 0..200 {
            put(&store, n, n + round, 2000).await.unwrap();
        }
        put_large(&store, 1000 + round, round, 3, 50_000)
            .await
            .unwrap();
        store
            .append_piece(headless, 0, bytes_of(1, 10))
            .await
            .unwrap();
        put(&store, 500, 500, 10).await.unwrap();
        store.remove(key(500)).await.unwrap();
        store.remove(key(7)).await.unwrap();
        let copy;
        let mut path = dir.path();
        match round {
            0 => {
                store.set_flags(key(3), 6);
                store.close().await;
            }
            1 => {}
            2 => {
                copy = crashed_copy(dir.path());
                path = copy.path();
            }
            _ => {
                copy = crashed_copy(dir.path());
                fs::remove_dir_all(open::index_dir(copy.path())).unwrap();
                path = copy.path();
            }
        }
        drop(store);
        let again = open(path, 64 * MIB);
        assert_eq!(again.stats().objects, 200 + round);
        for n in (0..200).filter(|n| *n != 7) {
            assert_eq!(
                get(&again, n).await.unwrap().unwrap(),
                small(n + round, 2000)
            );
        }
        assert!(!again.contains(key(7)) && !again.contains(key(500)));
        for n in 0..=round {
            assert_eq!(
                get(&again, 1000 + n).await.unwrap().unwrap(),
                large(n, 3, 50_000)
            );
        }
        assert!(
            again.pieces(headless, 0..1).is_none(),
            "nobody asks for it any more"
        );
        let flags = if round == 0 { 6 } else { CLAIMED };
        assert_eq!(again.flags(key(3)), Some(flags));
        assert_eq!(again.stats().rebuilds_total, 0);
        again.close().await;
        drop(again);
        store = open(dir.path(), 64 * MIB);
    }
}

#[test]
fn a_directory_that_is_not_ours_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |path: &Path, budget| {
        Store::open(&config(path, budget), Arc::new(|_: &[Key]| {}))
            .err()
            .unwrap()
    };
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = refused(&path, 64 * MIB);
        assert!(matches!(error, OpenError::NotADirectory { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()));
    }
    let data = dir.path().join("data");
    let small = refused(&data, MIB);
    assert!(matches!(small, OpenError::BudgetTooSmall { .. }), "{small}");
    let store = open(&data, 64 * MIB);
    let locked = refused(&data, 64 * MIB);
    assert!(matches!(locked, OpenError::Locked { .. }), "{locked}");
    drop(store);
    drop(open(&data, 64 * MIB));

    for (version, newer) in [("2\n", true), ("0", false), ("no number", false)] {
        fs::write(data.join("VERSION"), version).unwrap();
        let error = loop {
            match refused(&data, 64 * MIB) {
                OpenError::Locked { .. } => pause(),
                error => break error,
            }
        };
        assert_eq!(
            matches!(
                error,
                OpenError::NewerVersion {
                    found: 2,
                    known: 1,
                    ..
                }
            ),
            newer
        );
        assert_eq!(matches!(error, OpenError::BadVersion { .. }), !newer);
    }
}

#[tokio::test]
async fn a_damaged_index_is_rebuilt_from_the_segments() {
    let origin = tempfile::tempdir().unwrap();
    let store = open(origin.path(), 64 * MIB);
    for n in 0..3000 {
        put(&store, n, n, 300).await.unwrap();
    }
    put_large(&store, 5000, 5000, 4, 10_000).await.unwrap();
    store.remove(key(0)).await.unwrap();
    store.close().await;

    let scribble = |seed: u64| {
        move |index: &Path| {
            let db = fs::OpenOptions::new()
                .write(true)
                .open(index.join("db"))
                .unwrap();
            let len = db.metadata().unwrap().len();
            for n in 0..20 {
                let noise = bytes_of(seed * 100 + n, 108);
                let at = u64::from_le_bytes(noise[100..].try_into().unwrap()) % len;
                db.write_all_at(&noise[..100], at).unwrap();
            }
        }
    };
    type Damage = Box<dyn Fn(&Path)>;
    let mut damages: Vec<(&str, Damage)> = vec![
        (
            "cut",
            Box::new(|index| {
                let db = fs::OpenOptions::new()
                    .write(true)
                    .open(index.join("db"))
                    .unwrap();
                db.set_len(db.metadata().unwrap().len() / 2).unwrap();
            }),
        ),
        (
            "emptied",
            Box::new(|index| fs::write(index.join("db"), "").unwrap()),
        ),
        (
            "no conf",
            Box::new(|index| fs::remove_file(index.join("conf")).unwrap()),
        ),
        (
            "noise",
            Box::new(|index| {
                for name in ["db", "conf"] {
                    fs::write(index.join(name), bytes_of(1, 100_000)).unwrap();
                }
            }),
        ),
        (
            "a file",
            Box::new(|index| {
                fs::remove_dir_all(index).unwrap();
                fs::write(index, "not a directory").unwrap();
            }),
        ),
        ("gone", Box::new(|index| fs::remove_dir_all(index).unwrap())),
        (
            "died opening it",
            Box::new(|index| {
                fs::write(index.with_extension("opening"), "").unwrap();
            }),
        ),
    ];
    for seed in 0..8 {
        damages.push(("scribbled", Box::new(scribble(seed))));
    }
    for (what, damage) in damages {
        let dir = crashed_copy(origin.path());
        damage(&open::index_dir(dir.path()));
        let store = open(dir.path(), 64 * MIB);
        let rebuilds = store.stats().rebuilds_total;
        assert_eq!(
            damaged(dir.path(), "index.damaged-") as u64,
            rebuilds,
            "{what}"
        );
        if ["noise", "a file", "died opening it"].contains(&what) {
            assert_eq!(rebuilds, 1, "{what}");
        }
        for n in 1..3000 {
            assert_eq!(
                get(&store, n).await.unwrap().unwrap(),
                small(n, 300),
                "{what}"
            );
        }
        let whole = get(&store, 5000).await.unwrap().unwrap();
        assert_eq!(whole, large(5000, 4, 10_000), "{what}");
        assert!(!store.contains(key(0)), "{what}");
        // The new index is as good as the old one.
        put(&store, 0, 1, 10).await.unwrap();
        store.close().await;
        let store = open(dir.path(), 64 * MIB);
        assert_eq!(store.stats().rebuilds_total, 0, "{what}");
        assert_eq!(store.stats().objects, 3001, "{what}");
    }
}

#[tokio::test]
async fn few_of_the_damaged_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..5 {
        let store = open(dir.path(), 64 * MIB);
        assert_eq!(store.stats().rebuilds_total, u64::from(n > 0));
        put(&store, n, n, 10).await.unwrap();
        store.close().await;
        assert!(damaged(dir.path(), "index.damaged-") <= 2);
        fs::write(open::index_dir(dir.path()).join("conf"), bytes_of(n, 1000)).unwrap();
    }
    let store = open(dir.path(), 64 * MIB);
    assert_eq!(store.stats().objects, 5);
    assert_eq!(damaged(dir.path(), "index.damaged-"), 2);
    let du = index::bytes_on_disk(dir.path());
    assert!(store.stats().disk_bytes <= du && du < store.stats().disk_bytes + MIB);
}

#[tokio::test]
async fn damaged_bodies_and_headers_are_errors_not_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 64 * MIB);
    for n in 0..4 {
        put(&store, n, n, 1000).await.unwrap();
    }
    put_large(&store, 4, 40, 2, 1000).await.unwrap();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&segment_files(dir.path())[0])
        .unwrap();
    let record = HEADER_BYTES as u64 + 32 + 1000;
    file.write_all_at(b"scribbled", record + 500).unwrap(); // the body of 1
    file.write_all_at(b"scribbled", 2 * record + 10).unwrap(); // the header of 2
    file.write_all_at(b"scribbled", 4 * record + 500).unwrap(); // the first piece of 4
    for (n, corrupt) in [(0, false), (1, true), (2, true), (3, false), (4, true)] {
        let read = get(&store, n).await;
        assert_eq!(
            matches!(read, Err(ReadError::Corrupt)),
            corrupt,
            "{n}: {read:?}"
        );
    }
    assert_eq!(store.stats().checksum_failures_total, 3);
    file.set_len(3 * record).unwrap();
    assert!(matches!(get(&store, 3).await, Err(ReadError::Corrupt)));
    store.remove(key(1)).await.unwrap();
    assert_eq!(get(&store, 1).await.unwrap(), None);
}

#[tokio::test]
async fn lost_and_foreign_segments_are_no_reason_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 64 * MIB);
    // 4 MiB segments; object 0 is in the first, then replaced in the second.
    for n in 0..30 {
        put(&store, n, n, 300_000).await.unwrap();
        if n == 20 {
            put(&store, 0, 777, 10).await.unwrap();
            put_large(&store, 100, 100, 20, 300_000).await.unwrap();
        }
    }
    store.close().await;
    drop(store);
    let files = segment_files(dir.path());
    assert!(files.len() >= 4);
    fs::remove_file(&files[1]).unwrap();
    fs::write(
        dir.path().join("segments/00000009.seg"),
        bytes_of(1, 10_000),
    )
    .unwrap();
    fs::write(dir.path().join("segments/00000010.seg"), "").unwrap();
    fs::write(dir.path().join("segments/notes.txt"), "hello").unwrap();
    fs::write(dir.path().join("segments/-0000011.seg"), "hello").unwrap();
    fs::create_dir(dir.path().join("segments/00000012.seg")).unwrap();

    let store = open(dir.path(), 64 * MIB);
    assert!(
        get(&store, 0).await.unwrap().is_none(),
        "what was replaced stays so"
    );
    assert!(!store.contains(key(100)), "it lost pieces");
    let mut there = 0;
    for n in 1..30 {
        if let Some(body) = get(&store, n).await.unwrap() {
            assert_eq!(body, small(n, 300_000));
            there += 1;
        }
    }
    assert!((14..29).contains(&there), "{there}");
    assert_eq!(store.stats().objects, there);
    assert_eq!(damaged(dir.path(), "segment.damaged-"), 1);
    put(&store, 0, 5, 10).await.unwrap();
    assert_eq!(get(&store, 0).await.unwrap().unwrap(), small(5, 10));
}

#[tokio::test]
async fn a_record_cut_short_ends_its_segment() {
    for cut in [1, 64, 3000] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), 64 * MIB);
        for n in 0..3 {
            put(&store, n, n, 5000).await.unwrap();
        }
        let copy = crashed_copy(dir.path());
        let path = segment_files(copy.path()).remove(0);
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() - cut).unwrap();
        for _ in 0..2 {
            let store = open(copy.path(), 64 * MIB);
            assert_eq!(store.stats().objects, 2);
            assert_eq!(get(&store, 1).await.unwrap().unwrap(), small(1, 5000));
            assert_eq!(get(&store, 2).await.unwrap(), None);
            store.close().await;
        }
    }
}

#[tokio::test]
async fn many_short_lives_leave_no_crowd_of_files() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), 64 * MIB).close().await;
    let most = u32::try_from(open::SEGMENT_FILES_MAX).unwrap();
    for id in 1..=most + 50 {
        let mut record = Vec::new();
        let entry = Entry {
            kind: Kind::Object,
            flags: 0,
            key: key(u64::from(id)),
            object: 1,
            index: 0,
            len: 64,
        };
        encode_record(&entry, &[], &[], &mut record);
        let segment = Segment::create(&open::segments_dir(dir.path()), id).unwrap();
        segment.write(0, &record).unwrap();
    }
    let store = open(dir.path(), 64 * MIB);
    put(&store, 0, 0, 10).await.unwrap();
    assert!(segment_files(dir.path()).len() <= open::SEGMENT_FILES_MAX);
    assert!(!store.contains(key(1)) && store.contains(key(u64::from(most + 50))));
}

/// Writes objects of many sizes, `bytes` in all, from eight tasks; says how large the directory was
/// at its largest.
async fn churn(store: &Store, dir: &Path, first: u64, bytes: u64, sizes: &'static [usize]) -> u64 {
    let next = Arc::new(AtomicU64::new(first));
    let written = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (store, next, written) = (store.clone(), Arc::clone(&next), Arc::clone(&written));
            tokio::spawn(async move {
                while written.load(Relaxed) < bytes {
                    let n = next.fetch_add(1, Relaxed);
                    let len = sizes[usize::try_from(n).unwrap() % sizes.len()];
                    written.fetch_add(len as u64, Relaxed);
                    put(&store, n, n, len).await.unwrap();
                }
            })
        })
        .collect();
    let mut largest = 0;
    while !tasks.iter().all(tokio::task::JoinHandle::is_finished) {
        let dir = dir.to_owned();
        let du = tokio::task::spawn_blocking(move || index::bytes_on_disk(&dir));
        largest = largest.max(du.await.unwrap());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for task in tasks {
        task.await.unwrap();
    }
    largest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_disk_is_bounded_whatever_the_sizes() {
    let mixed: &[usize] = &[100, 3000, 20_000, 1_000_000, 50];
    for (budget, sizes, turns) in [
        (16 * MIB, mixed, 10),
        (64 * MIB, mixed, 10),
        (16 * MIB, &[60], 1),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), budget);
        let largest = churn(&store, dir.path(), 0, turns * budget, sizes).await;
        assert!(
            largest <= budget + DISK_SLACK_BYTES,
            "{largest} of {budget}"
        );
        assert!(
            largest > budget / 2,
            "the budget is used: {largest} of {budget}"
        );
        let stats = store.stats();
        assert!(stats.evicted_objects_total > 0 && stats.objects > 0);
        store.close().await;
        let du = index::bytes_on_disk(dir.path());
        assert!(du <= budget + DISK_SLACK_BYTES, "{du} of {budget}");
        // A smaller budget is kept from the first moment.
        if budget > 16 * MIB {
            let store = open(dir.path(), 16 * MIB);
            churn(&store, dir.path(), 1 << 40, MIB, sizes).await;
            let du = index::bytes_on_disk(dir.path());
            assert!(du <= 16 * MIB + DISK_SLACK_BYTES, "{du}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_hit_outlives_its_segment_and_the_rest_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let evicted = Arc::new(Mutex::new(HashSet::<Key>::new()));
    let hear = Arc::clone(&evicted);
    let store = open_hearing(
        dir.path(),
        32 * MIB,
        Arc::new(move |keys: &[Key]| lock(&hear).extend(keys)),
    );
    for n in 0..20 {
        put(&store, n, n, 10_000).await.unwrap();
    }
    put_large(&store, 20, 20, 5, 100_000).await.unwrap();
    put_large(&store, 21, 21, 5, 100_000).await.unwrap();
    for turn in 0..6 {
        for n in (0..20).step_by(2).chain([20]) {
            store.touch(key(n));
        }
        churn(&store, dir.path(), 1000 * (turn + 1), 12 * MIB, &[200_000]).await;
    }
    for n in 0..20 {
        let body = get(&store, n).await.unwrap();
        let hot = n % 2 == 0;
        assert_eq!(body, hot.then(|| small(n, 10_000)), "{n}");
        assert_eq!(lock(&evicted).contains(&key(n)), !hot, "{n}");
    }
    assert_eq!(
        get(&store, 20).await.unwrap().unwrap(),
        large(20, 5, 100_000)
    );
    assert!(!store.contains(key(21)) && lock(&evicted).contains(&key(21)));
    let stats = store.stats();
    assert!(stats.reinserted_total >= 16, "{stats:?}");
    assert_eq!(stats.evicted_objects_total, lock(&evicted).len() as u64);
    assert_eq!(stats.rebuilds_total + stats.write_errors_total, 0);

    // All of that is on disk too, with and without an index.
    store.close().await;
    let copy = crashed_copy(dir.path());
    fs::remove_dir_all(open::index_dir(copy.path())).unwrap();
    for dir in [dir.path(), copy.path()] {
        let again = open(dir, 32 * MIB);
        assert_eq!(again.stats().objects, stats.objects);
        for n in (0..20).step_by(2) {
            assert_eq!(get(&again, n).await.unwrap().unwrap(), small(n, 10_000));
        }
        assert_eq!(
            get(&again, 20).await.unwrap().unwrap(),
            large(20, 5, 100_000)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_object_is_whole_or_absent() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 16 * MIB);
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for n in 0..150 {
                // Eight pieces of 300 kB: an object spans two segments now and then.
                match put_large(&store, n % 10, n, 8, 300_000).await {
                    Ok(()) | Err(AppendError::Torn) => {}
                    Err(error) => panic!("{error}"),
                }
                store.touch(key(n % 4));
            }
        }
    });
    let mut read = 0;
    while !writer.is_finished() {
        for n in 0..10 {
            let offered = store.contains(key(n));
            let object = store.read_object(key(n), Some).await.unwrap();
            let Some(object) = object.filter(|_| offered) else {
                continue;
            };
            let Some(pieces) = store.pieces(object.object, 0..8) else {
                continue; // replaced or evicted since
            };
            for (piece, hash) in pieces.iter().zip(object.meta.as_chunks::<32>().0) {
                store.read_piece(piece, hash).await.unwrap();
            }
            read += 1;
        }
    }
    writer.await.unwrap();
    assert!(read > 0);
    let whole = |store: &Store| {
        let store = store.clone();
        async move {
            let mut there = 0;
            for n in 0..10 {
                let body = get(&store, n).await.unwrap();
                assert_eq!(body.is_some(), store.contains(key(n)), "{n} is torn");
                there += u64::from(body.is_some());
            }
            there
        }
    };
    let there = whole(&store).await;
    assert!(there > 0);
    store.close().await;
    let copy = crashed_copy(dir.path());
    fs::remove_dir_all(open::index_dir(copy.path())).unwrap();
    for dir in [dir.path(), copy.path()] {
        assert!(whole(&open(dir, 16 * MIB)).await > 0);
    }
}

#[tokio::test]
async fn the_index_shrinks_with_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let mut index = index::Index::open(&path).unwrap();
    let entry = Entry {
        kind: Kind::Object,
        flags: 0,
        key: key(1),
        object: 1,
        index: 0,
        len: 100,
    };
    for segment in 1..=20 {
        index.append(segment, 0, &[entry; 40_000]).unwrap();
    }
    index.flush().unwrap();
    for segment in 1..20 {
        index.drop_segment(segment).unwrap();
    }
    let before = index.bytes_on_disk();
    assert!(index.compact().unwrap());
    let after = index.bytes_on_disk();
    assert!(after < before / 4, "{before} → {after}");
    assert!(!index.compact().unwrap());
    drop(index);
    let index = index::Index::open(&path).unwrap();
    assert_eq!(index.segment_after(0).unwrap(), Some(20));
    assert_eq!(index.image(20).unwrap().records.len(), 40_000);
    assert_eq!(index.image(20).unwrap().covered, 4_000_000);
}

/// A file system of its own, unmounted at the end.
struct Mount(TempDir);

impl Mount {
    fn tmpfs(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(dir.path())
            .stderr(Stdio::null())
            .status();
        done.is_ok_and(|status| status.success()).then(|| Self(dir))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_passes() {
    let Some(mount) = Mount::tmpfs(24 * MIB) else {
        eprintln!("SKIPPED: a file system of limited size can be mounted by root only");
        return;
    };
    let ballast = mount.0.path().join("ballast");
    fs::write(&ballast, vec![1; 8 << 20]).unwrap();
    let dir = mount.0.path().join("data");
    let store = open(&dir, 64 * MIB);
    let mut stored = Vec::new();
    let mut failed = 0;
    for n in 0..200 {
        match put(&store, n, n, 200_000).await {
            Ok(()) => stored.push(n),
            Err(AppendError::DiskFull) => failed += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(
        failed > 50 && stored.len() > 30,
        "{failed} {}",
        stored.len()
    );
    assert!(store.stats().write_errors_total >= failed);
    for n in &stored {
        assert_eq!(get(&store, *n).await.unwrap().unwrap(), small(*n, 200_000));
    }
    // What is stored survives a start on a disk that is still full.
    drop(store);
    let store = open(&dir, 64 * MIB);
    for n in &stored {
        assert_eq!(get(&store, *n).await.unwrap().unwrap(), small(*n, 200_000));
    }
    assert!(matches!(
        put(&store, 999, 1, 1 << 20).await,
        Err(AppendError::DiskFull)
    ));
    fs::remove_file(&ballast).unwrap();
    for n in 300..310 {
        put(&store, n, n, 200_000).await.unwrap();
        stored.push(n);
    }
    store.close().await;
    drop(store);
    let store = open(&dir, 64 * MIB);
    for n in &stored {
        assert_eq!(get(&store, *n).await.unwrap().unwrap(), small(*n, 200_000));
    }
    assert_eq!(store.stats().objects, stored.len() as u64);
}

// --- kill -9 ---

const TASKS: u64 = 4;
const KEYS: u64 = 15;
const CHILD_DIR: &str = "STORE_TEST_CHILD_DIR";
const CHILD_ROUND: &str = "STORE_TEST_CHILD_ROUND";

/// What task `task` does in step `step` of `round`: to which key, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Put(u64, usize),
    PutLarge(u64, u32),
    Remove,
}

fn step_of(round: u64, task: u64, step: u64) -> (u64, Step) {
    let seed = (round << 40) | (task << 32) | (step << 4);
    let dice = bytes_of(seed, 4);
    let n = task * KEYS + u64::from(dice[0]) % KEYS;
    let step = match dice[1] % 10 {
        0..6 => Step::Put(seed, usize::from(dice[2]) * 10),
        6..8 => Step::PutLarge(seed, 1 + u32::from(dice[2]) % 4),
        _ => Step::Remove,
    };
    (n, step)
}

fn body_after(step: Step) -> Option<Hash> {
    match step {
        Step::Put(seed, len) => Some(small(seed, len)),
        Step::PutLarge(seed, count) => Some(large(seed, count, 5000)),
        Step::Remove => None,
    }
}

fn child_var(name: &str) -> Option<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "how a test tells its child what to do"
    )]
    std::env::var(name).ok()
}

/// The child of `kill_9_loses_nothing_that_was_acknowledged`: writes until it is killed, and says
/// each thing once it is done.
#[test]
#[ignore = "a child process of another test"]
fn writes_until_killed() {
    let (Some(dir), Some(round)) = (child_var(CHILD_DIR), child_var(CHILD_ROUND)) else {
        return;
    };
    let round = round.parse().unwrap();
    Runtime::new().unwrap().block_on(async {
        let store = open(Path::new(&dir), 64 * MIB);
        println!("open {}", store.stats().rebuilds_total);
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let store = store.clone();
                tokio::spawn(async move {
                    for step in 0.. {
                        match step_of(round, task, step) {
                            (n, Step::Put(seed, len)) => put(&store, n, seed, len).await.unwrap(),
                            (n, Step::PutLarge(seed, count)) => {
                                put_large(&store, n, seed, count, 5000).await.unwrap();
                            }
                            (n, Step::Remove) => store.remove(key(n)).await.unwrap(),
                        }
                        let mut out = io::stdout().lock();
                        writeln!(out, "done {task} {step}").unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

#[test]
fn kill_9_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let child_test = format!(
        "{}::writes_until_killed",
        module_path!().split_once("::").unwrap().1
    );
    let mut last: HashMap<u64, Step> = HashMap::new();
    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([&child_test, "--exact", "--ignored", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .env(CHILD_ROUND, round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut done = [0; TASKS as usize];
        let mut acknowledged = 0;
        let mut rebuilds = None;
        for line in lines {
            let line = line.unwrap();
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["done", task, step] => {
                    let (task, step): (u64, u64) = (task.parse().unwrap(), step.parse().unwrap());
                    let (n, what) = step_of(round, task, step);
                    last.insert(n, what);
                    assert_eq!(done[usize::try_from(task).unwrap()], step);
                    done[usize::try_from(task).unwrap()] += 1;
                    acknowledged += 1;
                    if acknowledged == 200 + round * 150 {
                        child.kill().unwrap();
                    }
                }
                [.., "open", count] => rebuilds = Some(count.to_owned()),
                _ => {}
            }
        }
        child.wait().unwrap();
        assert!(acknowledged >= 200);
        assert_eq!(rebuilds.as_deref(), Some("0"));

        // One step of each task was under way; it may have come to pass.
        let under_way: HashMap<u64, Step> = (0..TASKS)
            .map(|task| step_of(round, task, done[usize::try_from(task).unwrap()]))
            .collect();
        let without_index = crashed_copy(dir.path());
        fs::remove_dir_all(open::index_dir(without_index.path())).unwrap();
        Runtime::new().unwrap().block_on(async {
            let lost = open(without_index.path(), 64 * MIB);
            let store = open(dir.path(), 64 * MIB);
            assert_eq!(store.stats().rebuilds_total, 0);
            for n in 0..TASKS * KEYS {
                let found = get(&store, n).await.unwrap();
                let before = last.get(&n).copied().unwrap_or(Step::Remove);
                let after = under_way.get(&n).copied();
                // A large object under way may have been removed, or not yet be there.
                if found == body_after(before) {
                } else if let Some(step) = after.filter(|step| found == body_after(*step)) {
                    last.insert(n, step);
                } else {
                    panic!("round {round}: {n} is neither {before:?} nor {after:?}");
                }
                assert_eq!(found, get(&lost, n).await.unwrap(), "{n} without the index");
            }
            store.close().await;
        });
    }
}

// --- any sequence of operations, against a map ---

#[derive(Clone, Debug)]
enum Op {
    Put(u64, usize),
    PutLarge(u64, u32),
    Refresh(u64),
    Remove(u64),
    Touch(u64),
    AbandonFill,
    /// 4 MiB of other objects: a segment.
    Fill,
    Close,
    Crash,
    LoseIndex,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let n = 0..6u64;
    let op = prop_oneof![
        6 => (n.clone(), 0..3000usize).prop_map(|(n, len)| Op::Put(n, len)),
        6 => (n.clone(), 1..5u32).prop_map(|(n, count)| Op::PutLarge(n, count)),
        2 => n.clone().prop_map(Op::Refresh),
        3 => n.clone().prop_map(Op::Remove),
        4 => n.prop_map(Op::Touch),
        1 => Just(Op::AbandonFill),
        3 => Just(Op::Fill),
        1 => Just(Op::Close),
        1 => Just(Op::Crash),
        1 => Just(Op::LoseIndex),
    ];
    prop::collection::vec(op, 1..40)
}

async fn behaves_like_a_map(ops: Vec<Op>) {
    let mut dir = tempfile::tempdir().unwrap();
    let evicted = Arc::new(Mutex::new(Vec::new()));
    let hear = Arc::clone(&evicted);
    let on_evicted: OnEvicted = Arc::new(move |keys: &[Key]| lock(&hear).extend_from_slice(keys));
    let open = |dir: &Path| open_hearing(dir, 16 * MIB, Arc::clone(&on_evicted));
    let mut store = open(dir.path());
    let mut model: HashMap<Key, Hash> = HashMap::new();
    let forget_evicted = |model: &mut HashMap<Key, Hash>| {
        for key in lock(&evicted).drain(..) {
            model.remove(&key);
        }
    };
    for (seed, op) in (1..).map(|n| n * 100).zip(ops) {
        let mut put_here = None;
        match op {
            Op::Put(n, len) => {
                put(&store, n, seed, len).await.unwrap();
                put_here = Some((n, small(seed, len)));
            }
            Op::PutLarge(n, count) => {
                put_large(&store, n, seed, count, 100_000).await.unwrap();
                put_here = Some((n, large(seed, count, 100_000)));
            }
            Op::Refresh(n) => {
                if let Some(old) = store.read_object(key(n), Some).await.unwrap() {
                    // A large body stays where it is; making room for the new record may evict it.
                    let done = store
                        .append_object(key(n), old.object, 9, old.meta, old.body)
                        .await;
                    match done {
                        Ok(()) => put_here = model.get(&key(n)).map(|body| (n, *body)),
                        Err(error) => assert!(matches!(error, AppendError::Torn), "{error}"),
                    }
                }
            }
            Op::Remove(n) => {
                store.remove(key(n)).await.unwrap();
                model.remove(&key(n));
            }
            Op::Touch(n) => store.touch(key(n)),
            Op::AbandonFill => {
                let id = store.next_object_id();
                for index in 0..3 {
                    let body = bytes_of(seed, 100_000);
                    store.append_piece(id, index, body).await.unwrap();
                }
                if seed % 200 == 0 {
                    store.forget_pieces(id);
                }
            }
            Op::Fill => {
                for n in 0..4 {
                    put(&store, seed + 1000 + n, seed, 1 << 20).await.unwrap();
                }
            }
            Op::Close => {
                store.close().await;
                store = open(dir.path());
            }
            Op::Crash | Op::LoseIndex => {
                let copy = crashed_copy(dir.path());
                if matches!(op, Op::LoseIndex) {
                    fs::remove_dir_all(open::index_dir(copy.path())).unwrap();
                }
                store.close().await;
                dir = copy;
                store = open(dir.path());
            }
        }
        if let Some((n, body)) = put_here {
            forget_evicted(&mut model);
            model.insert(key(n), body);
        }
        for n in 0..6 {
            // The writer may be evicting just now: gone already, and about to say so.
            let mut patience = 1000;
            loop {
                forget_evicted(&mut model);
                let found = get(&store, n).await.unwrap();
                let expected = model.get(&key(n)).copied();
                if found == expected && found.is_some() == store.contains(key(n)) {
                    break;
                }
                assert!(patience > 0, "{n}: {found:?} instead of {expected:?}");
                patience -= 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    store.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence_of_operations_behaves_like_a_map(ops in ops()) {
        Runtime::new().unwrap().block_on(behaves_like_a_map(ops));
    }
}
