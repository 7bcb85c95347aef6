//! What holds for every store; the embedded one is asked.

use std::{collections::BTreeMap, fs, path::Path};

use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::*;

fn open(dir: &Path) -> Store {
    Store::embedded(&dir.join("store")).unwrap()
}

fn keys(page: &Page) -> Vec<(&str, u64)> {
    let items = page.items.iter();
    items.map(|item| (&*item.key, item.revision)).collect()
}

async fn put(store: &Store, key: &str, value: &str) -> u64 {
    let change = Change::put(key, value.to_owned());
    match store.commit(vec![], vec![change]).await.unwrap() {
        Committed::At(revision) => revision,
        Committed::Conflict => panic!("without a condition"),
    }
}

fn commit(revision: u64, changes: &[Change]) -> News {
    News::Commit {
        revision,
        changes: changes.to_vec(),
    }
}

#[tokio::test]
async fn what_is_committed_is_found_by_key_and_by_revision_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert_eq!(store.get("a/1").await.unwrap(), None);
    assert_eq!(store.list("a/", 10, None).await.unwrap(), Page::default());
    for (n, key) in ["a/2", "b/1", "a/1", "a/3", "a/2"].iter().enumerate() {
        assert_eq!(put(&store, key, &format!("v{n}")).await, n as u64 + 1);
    }
    let gone = vec![Change::delete("a/3"), Change::put("a/4", "v5")];
    let both = store.commit(vec![], gone).await.unwrap();
    assert_eq!(both, Committed::At(6));
    let mut store = Some(store);
    for _ in 0..2 {
        let store = store.take().unwrap_or_else(|| open(dir.path()));
        let item = store.get("a/2").await.unwrap().unwrap();
        assert_eq!((&item.value[..], item.revision), (&b"v4"[..], 5));
        assert_eq!(store.get("a/3").await.unwrap(), None);
        let all = store.list("a/", 10, None).await.unwrap();
        assert_eq!(keys(&all), [("a/1", 3), ("a/2", 5), ("a/4", 6)]);
        assert_eq!((all.revision, all.more), (6, false));
        let some = store.list("a/", 1, Some("a/1")).await.unwrap();
        assert_eq!((keys(&some), some.more), (vec![("a/2", 5)], true));
        let late = store.since("a/", 3, 10).await.unwrap();
        assert_eq!(keys(&late), [("a/2", 5), ("a/4", 6)]);
        let first = store.since("a/", 0, 1).await.unwrap();
        assert_eq!((keys(&first), first.more), (vec![("a/1", 3)], true));
        let none = store.since("a/", u64::MAX, 1).await.unwrap();
        assert_eq!((keys(&none), none.revision), (vec![], 6));
        assert_eq!(
            keys(&store.since("a/4", 0, 10).await.unwrap()),
            [("a/4", 6)]
        );
    }
}

#[tokio::test]
async fn who_watches_is_told_everything_in_order_or_that_something_was_missed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, "a/1", "x").await;
    let mut late = store.watch("a/", 1).await.unwrap();
    let mut again = store.watch("a/", 0).await.unwrap();
    put(&store, "b/1", "x").await;
    put(&store, "a/2", "x").await;
    let changes = vec![
        Change::delete("a/1"),
        Change::put("b/1", "y"),
        Change::put("a/1/2", ""),
    ];
    store.commit(vec![], changes.clone()).await.unwrap();
    let of_a = [changes[0].clone(), changes[2].clone()];
    assert_eq!(
        again.next().await,
        commit(1, &[Change::put("a/1", "x")]),
        "what came before is told as well"
    );
    for watch in [&mut late, &mut again] {
        assert_eq!(watch.next().await, commit(3, &[Change::put("a/2", "x")]));
        assert_eq!(watch.next().await, commit(4, &of_a));
    }
    // Of what was before this process, no deletion is known.
    drop((store, again));
    let store = open(dir.path());
    let mut old = store.watch("a/", 3).await.unwrap();
    assert_eq!(old.next().await, News::Reset);
    assert_eq!(old.next().await, News::Reset);
    let mut ahead = store.watch("a/", 5).await.unwrap();
    assert_eq!(ahead.next().await, News::Reset);
    let mut now = store.watch("a/", 4).await.unwrap();
    put(&store, "a/1", "z").await;
    assert_eq!(now.next().await, commit(5, &[Change::put("a/1", "z")]));
    // The store of `late` is gone.
    assert_eq!(late.next().await, News::Reset);
}

#[tokio::test]
async fn who_falls_behind_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut slow = store.watch("a/", 0).await.unwrap();
    let mut commits = tokio::task::JoinSet::new();
    for n in 0..WATCH_WAITING_MAX + 10 {
        let store = store.clone();
        commits.spawn(async move { put(&store, &format!("a/{n}"), "x").await });
    }
    let mut revisions: Vec<_> = commits.join_all().await;
    revisions.sort_unstable();
    let all = 1..=WATCH_WAITING_MAX as u64 + 10;
    assert!(
        revisions.into_iter().eq(all),
        "each commit has a revision of its own"
    );
    for n in 1..=WATCH_WAITING_MAX as u64 {
        assert!(matches!(slow.next().await, News::Commit { revision, .. } if revision == n));
    }
    assert_eq!(slow.next().await, News::Reset);
    // So is who begins behind what is remembered.
    let mut old = store.watch("a/", 0).await.unwrap();
    assert_eq!(old.next().await, News::Reset);
    let mut recent = store.watch("a/", 20).await.unwrap();
    assert!(matches!(
        recent.next().await,
        News::Commit { revision: 21, .. }
    ));
}

#[tokio::test]
async fn what_is_beyond_a_bound_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let large = "x".repeat(VALUE_BYTES_MAX + 1);
    let many: Vec<_> = (0..=COMMIT_MAX)
        .map(|n| Change::delete(format!("a/{n}")))
        .collect();
    for (changes, told) in [
        (vec![Change::put("a", "")], "family/rest"),
        (vec![Change::put("/a", "")], "family/rest"),
        (vec![Change::put("a/\0", "")], "family/rest"),
        (vec![Change::delete("a/".repeat(300))], "at most 512 bytes"),
        (vec![Change::put("a/1", large)], "more than 1048576"),
        (many, "at most 127"),
        (
            vec![Change::delete("a/1"), Change::put("a/1", "")],
            "changed twice",
        ),
        (
            (0..2)
                .map(|n| Change::put(format!("a/{n}"), "x".repeat(VALUE_BYTES_MAX)))
                .collect(),
            "more than 1310720",
        ),
    ] {
        match store.commit(vec![], changes).await {
            Err(StoreError::Refused(reason)) => assert!(reason.contains(told), "{reason}"),
            other => panic!("{told}: {other:?}"),
        }
    }
    assert!(store.list("a", 1, None).await.is_err());
    assert_eq!(store.list("a/", 1, None).await.unwrap().revision, 0);
}

#[tokio::test]
async fn a_page_ends_before_it_is_too_large_and_has_one_item_at_least() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let value = "x".repeat(VALUE_BYTES_MAX);
    for n in 0..6 {
        put(&store, &format!("a/{n}"), &value).await;
    }
    let page = store.list("a/", 10, None).await.unwrap();
    assert_eq!((page.items.len(), page.more), (3, true));
    let page = store.since("a/", 3, 10).await.unwrap();
    assert_eq!((page.items.len(), page.more), (3, false));
    assert_eq!(page.items[2].value, value);
    // What was in its parts is gone with it.
    for (value, revision) in [("", 7), (&value[..20_000], 8), ("x", 9), (&value[..], 10)] {
        put(&store, "a/5", value).await;
        let item = store.get("a/5").await.unwrap().unwrap();
        assert_eq!((item.value.len(), item.revision), (value.len(), revision));
    }
    drop(store);
    let blobs = dir.path().join("store/blobs").read_dir().unwrap();
    assert_eq!(blobs.count(), 0, "nothing is where sled does not sync");
    let item = open(dir.path()).get("a/5").await.unwrap().unwrap();
    assert_eq!(item.value, value);
}

#[test]
fn a_damaged_store_is_set_aside_and_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    for round in 0..3 {
        let store = open(dir.path());
        runtime.block_on(async {
            assert_eq!(store.list("a/", 1, None).await.unwrap().revision, 0);
            for n in 0..100 {
                put(&store, &format!("a/{n}"), "x").await;
            }
        });
        drop(store);
        // The next one waits until the last has let go of it.
        drop(open(dir.path()));
        let file = dir.path().join("store");
        match round {
            // Not even eight bytes would be looked at.
            0 => fs::write(file.join("conf"), "nonsense of some length").unwrap(),
            // Three starts that did not end.
            1 => fs::write(dir.path().join("store.opening"), "...").unwrap(),
            _ => {
                let bytes = fs::read(file.join("db")).unwrap();
                fs::write(file.join("db"), vec![0xa5; bytes.len()]).unwrap();
            }
        }
        drop(open(dir.path()));
        assert!(
            dir.path().join("store.damaged").is_dir(),
            "round {round}: nothing was set aside"
        );
        fs::remove_dir_all(dir.path().join("store.damaged")).unwrap();
    }
    // One or two do not count: a process may be killed while it starts.
    let store = open(dir.path());
    runtime.block_on(put(&store, "a/1", "x"));
    drop(store);
    fs::write(dir.path().join("store.opening"), "..").unwrap();
    let store = open(dir.path());
    let item = runtime.block_on(store.get("a/1")).unwrap();
    assert_eq!(item.unwrap().revision, 1);
}

#[test]
fn a_store_in_an_unusable_place_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let error = Store::embedded(&dir.path().join("file/store")).unwrap_err();
    assert!(error.to_string().starts_with("store: "), "{error}");
}

/// A commit of a generated history.
#[derive(Clone, Debug)]
struct Step {
    conditions: Vec<(u8, bool)>,
    changes: BTreeMap<u8, bool>,
    restart: bool,
}

fn step() -> impl Strategy<Value = Step> {
    (
        proptest::collection::vec((0_u8..6, any::<bool>()), 0..2),
        proptest::collection::btree_map(0_u8..6, any::<bool>(), 0..4),
        proptest::bool::weighted(0.1),
    )
        .prop_map(|(conditions, changes, restart)| Step {
            conditions,
            changes,
            restart,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Beside a map and a counter. Half of the conditions are meant to hold.
    #[test]
    fn a_store_does_what_a_map_does(steps in proptest::collection::vec(step(), 1..30)) {
        let dir = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let mut store = open(dir.path());
        let (mut map, mut revision) = (BTreeMap::<String, u64>::new(), 0);
        let name = |n: &u8| format!("{}/{n}", if n.is_multiple_of(2) { "a" } else { "b" });
        for Step { conditions, changes, restart } in steps {
            if restart {
                drop(store);
                store = open(dir.path());
            }
            let known = |key: &str| map.get(key).copied().unwrap_or(0);
            let holds = conditions.iter().all(|(_, meant)| *meant);
            let conditions = conditions.iter().map(|(n, meant)| {
                let key = name(n);
                let at = known(&key) + u64::from(!meant);
                Condition::at(key, at)
            });
            let asked = changes.iter().map(|(n, put)| match put {
                true => Change::put(name(n), vec![*n; 3]),
                false => Change::delete(name(n)),
            });
            let done = runtime.block_on(store.commit(conditions.collect(), asked.collect())).unwrap();
            if !holds {
                prop_assert_eq!(done, Committed::Conflict);
                continue;
            }
            let changes_something =
                changes.iter().any(|(n, put)| *put || map.contains_key(&name(n)));
            revision += u64::from(changes_something);
            prop_assert_eq!(done, Committed::At(revision));
            for (n, put) in &changes {
                match put {
                    true => drop(map.insert(name(n), revision)),
                    false => drop(map.remove(&name(n))),
                }
            }
            let listed = runtime.block_on(store.list("a/", 10, None)).unwrap();
            let of_a = || map.iter().filter(|(key, _)| key.starts_with("a/"));
            let expected: Vec<_> = of_a().map(|(key, at)| (key.as_str(), *at)).collect();
            prop_assert_eq!(keys(&listed), expected);
            prop_assert_eq!(listed.revision, revision);
            let from = revision.saturating_sub(3);
            let late = runtime.block_on(store.since("a/", from, 10)).unwrap();
            let mut expected: Vec<_> =
                of_a().filter(|(_, at)| **at > from).map(|(key, at)| (key.as_str(), *at)).collect();
            expected.sort_by_key(|(key, at)| (*at, key.to_owned()));
            prop_assert_eq!(keys(&late), expected);
        }
    }
}
