//! The stores of a control plane: the embedded one and a real etcd do the same.

use std::{collections::BTreeMap, sync::Arc};

use cluster::net::SystemNet;
use control_plane::{
    store::{
        COMMIT_MAX, Change, Committed, Condition, EtcdConfig, News, Page, Store, StoreError,
        VALUE_BYTES_MAX, WATCH_WAITING_MAX,
    },
    tls::Tls,
};
use harness::{client::Client, etcd::Etcd, process::run};
use http::Method;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;

use crate::{SECOND, installed};

/// Longest time to be told of a commit.
const TOLD_WITHIN: std::time::Duration = std::time::Duration::from_secs(20);

fn config(etcd: &Etcd, prefix: &str) -> EtcdConfig {
    EtcdConfig {
        members: etcd.members(),
        prefix: prefix.into(),
        name: "control".into(),
        user: None,
        tls: None,
    }
}

async fn connected(config: EtcdConfig) -> Store {
    Store::etcd(config, Arc::new(SystemNet)).await.unwrap()
}

/// Checks both, each time a store with nothing in it; others have something in the same etcd.
async fn both(check: impl AsyncFn(Store)) {
    let dir = tempfile::tempdir().unwrap();
    check(Store::embedded(&dir.path().join("store")).unwrap()).await;
    let Some(binary) = installed("etcd") else {
        return;
    };
    let etcd = Etcd::start(&binary, 1).await.unwrap();
    for foreign in ["geo", "geo-cdm/a/1", "geo-cdn", "geo-cdn0"] {
        let key = foreign.to_owned();
        let others = connected(config(&etcd, &key)).await;
        put(&others, "a/1", "another's").await;
    }
    check(connected(config(&etcd, "geo-cdn/")).await).await;
}

async fn put(store: &Store, key: &str, value: &str) -> u64 {
    let change = Change::put(key, value.to_owned());
    match store.commit(vec![], vec![change]).await.unwrap() {
        Committed::At(revision) => revision,
        Committed::Conflict => panic!("without a condition"),
    }
}

async fn revision(store: &Store) -> u64 {
    store.list("a/", 1, None).await.unwrap().revision
}

fn keys(page: &Page, base: u64) -> Vec<(&str, u64)> {
    let items = page.items.iter();
    items
        .map(|item| (&*item.key, item.revision - base))
        .collect()
}

fn commit(revision: u64, changes: &[Change]) -> News {
    News::Commit {
        revision,
        changes: changes.to_vec(),
    }
}

async fn next(watch: &mut control_plane::store::Watch) -> News {
    let next = tokio::time::timeout(TOLD_WITHIN, watch.next()).await;
    next.expect("it is told in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_is_found_by_key_and_by_revision() {
    both(async |store| {
        let base = revision(&store).await;
        assert_eq!(store.get("a/1").await.unwrap(), None);
        assert!(store.list("a/", 10, None).await.unwrap().items.is_empty());
        for (n, key) in ["a/2", "b/1", "a/1", "a/3", "a/2"].iter().enumerate() {
            let at = put(&store, key, &format!("v{n}")).await;
            assert_eq!(at, base + n as u64 + 1);
        }
        let both = vec![Change::delete("a/3"), Change::put("a/4", "v5")];
        let done = store.commit(vec![], both).await.unwrap();
        assert_eq!(done, Committed::At(base + 6));
        let item = store.get("a/2").await.unwrap().unwrap();
        assert_eq!((&item.value[..], item.revision), (&b"v4"[..], base + 5));
        assert_eq!(store.get("a/3").await.unwrap(), None);
        let all = store.list("a/", 10, None).await.unwrap();
        assert_eq!(keys(&all, base), [("a/1", 3), ("a/2", 5), ("a/4", 6)]);
        assert_eq!((all.revision, all.more), (base + 6, false));
        let exact = store.list("a/", 3, None).await.unwrap();
        assert_eq!((exact.items.len(), exact.more), (3, false));
        let some = store.list("a/", 1, Some("a/1")).await.unwrap();
        assert_eq!((keys(&some, base), some.more), (vec![("a/2", 5)], true));
        let late = store.since("a/", base + 3, 10).await.unwrap();
        assert_eq!(keys(&late, base), [("a/2", 5), ("a/4", 6)]);
        let first = store.since("a/", base, 1).await.unwrap();
        assert_eq!((keys(&first, base), first.more), (vec![("a/1", 3)], true));
        let two = store.since("a/", base, 3).await.unwrap();
        assert_eq!((two.items.len(), two.more), (3, false));
        let none = store.since("a/", u64::MAX, 1).await.unwrap();
        assert_eq!((none.items.len(), none.revision), (0, base + 6));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_happens_whole_or_not_at_all_and_is_told_so() {
    both(async |store| {
        let first = put(&store, "a/1", "x").await;
        let change = || vec![Change::put("a/1", "y"), Change::put("a/2", "y")];
        for conditions in [
            vec![Condition::absent("a/1")],
            vec![Condition::at("a/1", first), Condition::at("a/2", first)],
            vec![Condition::at("a/1", first + 1)],
        ] {
            let conflict = store.commit(conditions, change()).await.unwrap();
            assert_eq!(conflict, Committed::Conflict);
        }
        assert_eq!(store.get("a/2").await.unwrap(), None);
        let holds = vec![Condition::at("a/1", first), Condition::absent("a/2")];
        let done = store.commit(holds, change()).await.unwrap();
        assert_eq!(done, Committed::At(first + 1));
        for changes in [vec![], vec![Change::delete("a/9")]] {
            let none = store.commit(vec![], changes).await.unwrap();
            assert_eq!(none, Committed::At(first + 1));
        }
        // As large as one may be; a part of a commit is never told by itself.
        let many: Vec<_> = (0..COMMIT_MAX)
            .map(|n| Change::put(format!("a/many/{n:03}"), "v"))
            .collect();
        let done = store.commit(vec![], many).await.unwrap();
        assert_eq!(done, Committed::At(first + 2));
        let page = store.since("a/many/", first, 1).await.unwrap();
        assert_eq!((page.items.len(), page.more), (COMMIT_MAX, false));
        put(&store, "a/many/one more", "v").await;
        let page = store.since("a/many/", first, 5).await.unwrap();
        assert_eq!((page.items.len(), page.more), (COMMIT_MAX, true));
        let again = store.since("a/many/", page.items[0].revision, 5).await;
        let again = again.unwrap();
        assert_eq!((again.items.len(), again.more), (1, false));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_is_told_everything_in_order_or_that_something_was_missed() {
    both(async |store| {
        let base = revision(&store).await;
        put(&store, "a/1", "x").await;
        let mut late = store.watch("a/", base + 1).await.unwrap();
        let mut again = store.watch("a/", base).await.unwrap();
        put(&store, "b/1", "x").await;
        put(&store, "a/2", "x").await;
        let changes = vec![
            Change::delete("a/1"),
            Change::put("b/1", "y"),
            Change::put("a/1/2", ""),
        ];
        store.commit(vec![], changes.clone()).await.unwrap();
        let of_a = [changes[0].clone(), changes[2].clone()];
        let first = next(&mut again).await;
        assert_eq!(first, commit(base + 1, &[Change::put("a/1", "x")]));
        for watch in [&mut late, &mut again] {
            let second = next(watch).await;
            assert_eq!(second, commit(base + 3, &[Change::put("a/2", "x")]));
            assert_eq!(next(watch).await, commit(base + 4, &of_a));
        }
        let mut ahead = store.watch("a/", base + 1_000).await.unwrap();
        assert_eq!(next(&mut ahead).await, News::Reset);

        let mut slow = store.watch("a/", base + 4).await.unwrap();
        let mut commits = tokio::task::JoinSet::new();
        for n in 0..WATCH_WAITING_MAX + 10 {
            let store = store.clone();
            commits.spawn(async move { put(&store, &format!("a/{n}"), "x").await });
        }
        let mut revisions = commits.join_all().await;
        revisions.sort_unstable();
        let all = base + 5..base + 15 + WATCH_WAITING_MAX as u64;
        assert!(revisions.into_iter().eq(all), "each has one of its own");
        // Until it has been told of more than may wait.
        tokio::time::sleep(2 * SECOND).await;
        for n in 0..WATCH_WAITING_MAX as u64 {
            let told = next(&mut slow).await;
            assert!(
                matches!(told, News::Commit { revision, .. } if revision == base + 5 + n),
                "{n}: {told:?}"
            );
        }
        assert_eq!(next(&mut slow).await, News::Reset);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_ends_before_it_is_too_large_and_what_is_beyond_a_bound_is_refused() {
    both(async |store| {
        let base = revision(&store).await;
        let large = "x".repeat(VALUE_BYTES_MAX);
        for n in 0..6 {
            put(&store, &format!("a/{n}"), &large).await;
        }
        let page = store.list("a/", 10, None).await.unwrap();
        assert!(page.more && (1..6).contains(&page.items.len()));
        let mut found = page.items;
        while found.len() < 6 {
            let after = found.last().unwrap().key.clone();
            let page = store.list("a/", 10, Some(&after)).await.unwrap();
            assert!(!page.items.is_empty() && page.items[0].value == large);
            found.extend(page.items);
        }
        let mut from = base;
        for _ in 0..6 {
            let page = store.since("a/", from, 1).await.unwrap();
            assert_eq!(page.items[0].value, large);
            from = page.items[0].revision;
        }
        // Many small ones behind them, in as few answers as may be.
        let small = (0..300).map(|n| Change::put(format!("a/small/{n:03}"), "v"));
        let small: Vec<_> = small.collect();
        for some in small.chunks(COMMIT_MAX) {
            store.commit(vec![], some.to_vec()).await.unwrap();
        }
        let page = store.list("a/small/", 299, None).await.unwrap();
        assert_eq!((page.items.len(), page.more), (299, true));
        for (changes, told) in [
            (vec![Change::put("a", "")], "family/rest"),
            (vec![Change::put("a/1", large.clone() + "x")], "more than"),
            (
                vec![Change::delete("a/1"), Change::put("a/1", "")],
                "changed twice",
            ),
        ] {
            match store.commit(vec![], changes).await {
                Err(StoreError::Refused(reason)) => assert!(reason.contains(told), "{reason}"),
                other => panic!("{told}: {other:?}"),
            }
        }
    })
    .await;
}

/// Beside a map and a counter. Half of the conditions are meant to hold.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_does_what_a_map_does() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    both(async |store| {
        let mut dice = StdRng::seed_from_u64(seed);
        let (mut map, mut at) = (BTreeMap::<String, u64>::new(), revision(&store).await);
        let name = |n: u32| format!("{}/{n}", if n.is_multiple_of(2) { "a" } else { "b" });
        let mut watch = store.watch("a/", at).await.unwrap();
        for step in 0..200 {
            let meant = dice.random_bool(0.7);
            let conditions: Vec<_> = (0..dice.random_range(0..3))
                .map(|_| {
                    let key = name(dice.random_range(0..6));
                    let known = map.get(&key).copied().unwrap_or(0);
                    Condition::at(key, known + u64::from(!meant))
                })
                .collect();
            let mut changes = BTreeMap::new();
            for _ in 0..dice.random_range(0..4) {
                changes.insert(name(dice.random_range(0..6)), dice.random_bool(0.6));
            }
            let asked: Vec<_> = (changes.iter())
                .map(|(key, put)| match put {
                    true => Change::put(key, step.to_string()),
                    false => Change::delete(key),
                })
                .collect();
            let holds = meant || conditions.is_empty();
            let done = store.commit(conditions, asked.clone()).await.unwrap();
            if !holds {
                assert_eq!(done, Committed::Conflict, "seed {seed}, step {step}");
                continue;
            }
            let is_change = |(key, put): (&String, &bool)| *put || map.contains_key(key);
            let changed = changes.iter().any(is_change);
            at += u64::from(changed);
            assert_eq!(done, Committed::At(at), "seed {seed}, step {step}");
            let told: Vec<_> = (asked.into_iter())
                .filter(|change| change.key().starts_with("a/"))
                .filter(|change| {
                    map.contains_key(change.key()) || matches!(change, Change::Put { .. })
                })
                .collect();
            for (key, put) in &changes {
                match put {
                    true => drop(map.insert(key.clone(), at)),
                    false => drop(map.remove(key)),
                }
            }
            while changed && !told.is_empty() {
                let News::Commit { revision, changes } = next(&mut watch).await else {
                    panic!("seed {seed}, step {step}: it missed something");
                };
                // Deletions of what was not there may be told or not, also where nothing else is.
                if revision < at {
                    let is_put = |change: &Change| matches!(change, Change::Put { .. });
                    assert!(!changes.iter().any(is_put), "seed {seed}, step {step}");
                    continue;
                }
                let news: Vec<_> = (changes.into_iter())
                    .filter(|change| told.contains(change))
                    .collect();
                assert_eq!((revision, news), (at, told), "seed {seed}, step {step}");
                break;
            }
            let listed = store.list("a/", 10, None).await.unwrap();
            let of_a = || map.iter().filter(|(key, _)| key.starts_with("a/"));
            let expected: Vec<_> = of_a().map(|(key, at)| (key.as_str(), *at)).collect();
            assert_eq!(keys(&listed, 0), expected, "seed {seed}, step {step}");
            assert_eq!(listed.revision, at, "seed {seed}, step {step}");
            let from = at.saturating_sub(3);
            let late = store.since("a/", from, 10).await.unwrap();
            let mut expected: Vec<_> = of_a()
                .filter(|(_, at)| **at > from)
                .map(|(key, at)| (key.as_str(), *at))
                .collect();
            expected.sort_by_key(|(key, at)| (*at, key.to_owned()));
            assert_eq!(keys(&late, 0), expected, "seed {seed}, step {step}");
        }
    })
    .await;
}

/// One of three members is killed at a time while two clients write and one watches.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_etcd_that_dies_loses_nothing_and_holds_nobody_up() {
    let Some(binary) = installed("etcd") else {
        return;
    };
    let mut etcd = Etcd::start(&binary, 3).await.unwrap();
    let store = connected(config(&etcd, "geo-cdn/")).await;
    let base = revision(&store).await;
    let mut watch = store.watch("a/", base).await.unwrap();
    let writing = |writer: usize, count: usize| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for n in 0..count {
                let key = format!("a/{writer}/{n}");
                let change = vec![Change::put(&key, "v")];
                let once = vec![Condition::absent(&key)];
                match store.commit(once, change).await {
                    Ok(Committed::At(revision)) => acknowledged.push((revision, key)),
                    // It may have happened, or not.
                    Ok(Committed::Conflict) | Err(_) => {}
                }
                tokio::time::sleep(SECOND / 50).await;
            }
            acknowledged
        })
    };
    let writers = [writing(1, 400), writing(2, 400)];
    for member in [0, 1, 2] {
        tokio::time::sleep(SECOND).await;
        etcd.kill9(member).await.unwrap();
        tokio::time::sleep(SECOND).await;
        etcd.restart(member).await.unwrap();
    }
    let mut acknowledged = Vec::new();
    for writer in writers {
        let written = writer.await.unwrap();
        assert!(written.len() > 200, "only {} of 400", written.len());
        acknowledged.extend(written);
    }
    acknowledged.sort();
    let mut told = Vec::new();
    while told.last().map(|(revision, _)| *revision) < acknowledged.last().map(|(at, _)| *at) {
        match next(&mut watch).await {
            News::Commit { revision, changes } => {
                told.extend(changes.iter().map(|c| (revision, c.key().to_owned())));
            }
            News::Reset => panic!("nothing was compacted"),
        }
    }
    assert!(told.is_sorted(), "in order, none twice");
    for (revision, key) in acknowledged {
        let item = store.get(&key).await.unwrap().unwrap();
        assert_eq!(item.revision, revision);
        assert!(
            told.contains(&(revision, key.clone())),
            "{key} was not told"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_etcd_compacted_is_missed_and_what_it_is_away_for_is_said() {
    let Some(binary) = installed("etcd") else {
        return;
    };
    let mut etcd = Etcd::start(&binary, 1).await.unwrap();
    let store = connected(config(&etcd, "geo-cdn/")).await;
    let first = put(&store, "a/1", "x").await;
    let last = put(&store, "a/1", "y").await;
    let url = format!("{}/v3/kv/compaction", etcd.client(0));
    let body = json!({"revision": last}).to_string();
    let client = Client::new();
    let sent = client.send(Method::POST, &url, &[], body.into()).await;
    assert_eq!(sent.unwrap().status, 200);
    let mut old = store.watch("a/", first - 1).await.unwrap();
    assert_eq!(next(&mut old).await, News::Reset);
    let mut watch = store.watch("a/", last).await.unwrap();

    etcd.kill9(0).await.unwrap();
    let change = vec![Change::put("a/2", "z")];
    for failed in [
        store.commit(vec![], change).await.unwrap_err(),
        store.get("a/1").await.unwrap_err(),
        store.watch("a/", last).await.unwrap_err(),
    ] {
        let told = failed.to_string();
        let member = &etcd.members()[0];
        assert!(
            told.contains("etcd: ") && told.contains(member) && told.contains("reached"),
            "{told}"
        );
    }
    etcd.restart(0).await.unwrap();
    let next_one = put(&store, "a/2", "z").await;
    // It goes on where it was.
    let told = next(&mut watch).await;
    assert_eq!(told, commit(next_one, &[Change::put("a/2", "z")]));
}

async fn etcdctl(etcd: &Etcd, arguments: &[&str]) {
    let binary = installed("etcdctl").unwrap();
    let at = etcd.client(0);
    let arguments = [&["--endpoints", at][..], arguments].concat();
    let (status, said) = run(&binary, &arguments, &[("ETCDCTL_API", "3")])
        .await
        .unwrap();
    assert!(status.success(), "{arguments:?}: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_lets_in_whom_it_knows() {
    let (Some(binary), Some(_)) = (installed("etcd"), installed("etcdctl")) else {
        return;
    };
    let etcd = Etcd::start(&binary, 1).await.unwrap();
    for arguments in [
        &["user", "add", "root:r00t"][..],
        &["user", "add", "cdn:secret"],
        &["role", "add", "cdn"],
        &[
            "role",
            "grant-permission",
            "cdn",
            "--prefix=true",
            "readwrite",
            "geo-cdn/",
        ],
        &["user", "grant-role", "cdn", "cdn"],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        etcdctl(&etcd, arguments).await;
    }
    let with = |user: Option<(&str, &str)>, prefix: &str| EtcdConfig {
        user: user.map(|(name, password)| (name.to_owned(), password.to_owned())),
        ..config(&etcd, prefix)
    };
    let store = connected(with(Some(("cdn", "secret")), "geo-cdn/")).await;
    let at = put(&store, "a/1", "x").await;
    let mut watch = store.watch("a/", at - 1).await.unwrap();
    let told = next(&mut watch).await;
    assert_eq!(told, commit(at, &[Change::put("a/1", "x")]));
    for (user, prefix, told) in [
        (None, "geo-cdn/", "does not let us in"),
        (
            Some(("cdn", "wrong")),
            "geo-cdn/",
            "does not let us in: user \"cdn\"",
        ),
        (Some(("cdn", "secret")), "another/", "does not let us in"),
    ] {
        let refused = Store::etcd(with(user, prefix), Arc::new(SystemNet)).await;
        let error = refused.unwrap_err().to_string();
        assert!(error.contains(told) && !error.contains("secret"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_is_spoken_to_over_tls_by_who_has_a_certificate() {
    let (Some(binary), Some(openssl)) = (installed("etcd"), installed("openssl")) else {
        return;
    };
    let etcd = Etcd::start_over_tls(&binary, &openssl).await.unwrap();
    let pem = etcd.pem.as_ref().unwrap();
    let [ca, certificate, key] =
        [&pem.ca, &pem.certificate, &pem.key].map(|file| std::fs::read(file).unwrap());
    let with = |ca: Option<&Vec<u8>>, identity: Option<(&Vec<u8>, &Vec<u8>)>| EtcdConfig {
        tls: Some(Tls {
            ca: ca.cloned(),
            identity: identity.map(|(certificate, key)| (certificate.clone(), key.clone())),
        }),
        ..config(&etcd, "geo-cdn/")
    };
    let ours = Some((&certificate, &key));
    let store = connected(with(Some(&ca), ours)).await;
    let at = put(&store, "a/1", "x").await;
    let mut watch = store.watch("a/", at - 1).await.unwrap();
    let told = next(&mut watch).await;
    assert_eq!(told, commit(at, &[Change::put("a/1", "x")]));
    assert!(!store.is_away());
    // Nobody else is believed, or let in; both are tried for as long as etcd may take to be there.
    let strangers = [
        (with(None, ours), "certificate"),
        // Over TLS 1.3 a client is done before it is refused, so the words may be lost with the connection.
        (with(Some(&ca), None), "127.0.0.1"),
        (
            EtcdConfig {
                tls: None,
                ..config(&etcd, "geo-cdn/")
            },
            "",
        ),
    ];
    let tried = strangers.map(async |(config, told)| {
        let refused = Store::etcd(config, Arc::new(SystemNet)).await;
        let error = refused.unwrap_err().to_string();
        assert!(error.to_lowercase().contains(told), "{error}");
    });
    futures_util::future::join_all(tried).await;
}
