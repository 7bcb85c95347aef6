use std::{path::Path, time::UNIX_EPOCH};

use cluster::quantity::Span;

use super::{
    stored::HISTORY_MAX,
    wishes::{delete, put},
    *,
};

fn site(name: &str) -> Site {
    Site::new(name, &[&format!("{name}.test")], &["http://o.example.com"])
}

struct Bench {
    dir: tempfile::TempDir,
    now_s: u64,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, now_s: 1_000 }
    }

    fn store(&self) -> Store {
        Store::embedded(&Path::new(self.dir.path()).join("store")).unwrap()
    }

    fn parts(&self, store: Store, me: &str, sites: &[&str]) -> SitesParts {
        SitesParts {
            store,
            me: me.parse().unwrap(),
            configured: sites.iter().map(|name| site(name)).collect(),
            private: PrivateOrigins::All(false),
            version_before: 0,
            clock: Clock::tokio(UNIX_EPOCH + Duration::from_secs(self.now_s)),
        }
    }

    async fn open(&self, sites: &[&str]) -> Sites {
        Sites::open(self.parts(self.store(), "cp", sites))
            .await
            .unwrap()
    }
}

/// Opened, and following the store.
fn kept(sites: &Sites) -> tokio::task::JoinHandle<()> {
    tokio::spawn(sites.clone().keep())
}

async fn changed(sites: &Sites, wish: Wish) -> SiteChanged {
    sites
        .change(wish, Expected::Anything, vec![])
        .await
        .unwrap()
}

#[tokio::test]
async fn the_version_grows_with_every_change_of_the_file_and_with_nothing_else() {
    let mut bench = Bench::new();
    assert_eq!(bench.open(&[]).await.now().version(), 0);
    for (now_s, file, version) in [
        (1_000, &["a"][..], 1_000),
        (2_000, &["a"], 1_000),
        (2_000, &["a", "b"], 2_000),
        // The clock was set back.
        (500, &["b"], 2_001),
        (9_000, &["b"], 2_001),
        (500, &[], 2_002),
        (500, &[], 2_002),
    ] {
        bench.now_s = now_s;
        let sites = bench.open(file).await;
        assert_eq!(sites.now().version(), version, "{file:?}");
        let names: Vec<_> = sites.now().records().keys().cloned().collect();
        assert_eq!(names, file);
    }
    // What was handed out before there was a store counts, too.
    let other = Bench::new();
    let mut parts = other.parts(other.store(), "cp", &["a"]);
    parts.version_before = 5_000;
    assert_eq!(Sites::open(parts).await.unwrap().now().version(), 5_001);
}

#[tokio::test]
async fn what_is_changed_is_there_after_a_restart_with_its_history() {
    let bench = Bench::new();
    let sites = bench.open(&["a"]).await;
    let keeper = kept(&sites);
    let first = changed(&sites, put(site("b"))).await;
    assert_eq!(
        (first.version, first.set_version, first.changed),
        (1_001, 1_001, true)
    );
    assert!(sites.now().site("b").is_some(), "it is seen at once");
    let again = changed(&sites, put(site("b"))).await;
    assert_eq!(
        (again.version, again.changed, again.diff.len()),
        (1_001, false, 0)
    );
    let mut longer = site("b");
    longer.default_ttl = Span(Duration::from_secs(60));
    let second = changed(&sites, put(longer)).await;
    assert_eq!(second.diff[0].field, "default_ttl");
    changed(&sites, delete("b")).await;
    assert!(sites.now().site("b").is_none());
    let back = sites
        .roll_back("b", first.version, "you".into(), Expected::Anything, vec![])
        .await
        .unwrap();
    assert_eq!(sites.now().site("b"), Some(&site("b")));
    let missing = sites
        .roll_back("b", 7, "you".into(), Expected::Anything, vec![])
        .await;
    assert!(missing.unwrap_err().to_string().contains("no version 7"));
    // At the time of a deletion there was none.
    let deleted = sites.former("b", second.version + 1).await;
    assert!(deleted.is_err());

    keeper.abort();
    let _ = keeper.await;
    drop(sites);
    let sites = bench.open(&["a"]).await;
    assert_eq!(sites.now().version(), back.set_version);
    assert_eq!(sites.now().site("b"), Some(&site("b")));
    let history = sites.history("b").await.unwrap().unwrap();
    let told: Vec<_> = history
        .versions
        .iter()
        .map(|v| (v.version, v.action, v.by.as_str(), v.current))
        .collect();
    assert_eq!(
        told,
        [
            (1_004, SiteAction::Rollback { to: 1_001 }, "you", true),
            (1_003, SiteAction::Delete, "me", false),
            (1_002, SiteAction::Put, "me", false),
            (1_001, SiteAction::Put, "me", false),
        ]
    );
    assert_eq!(sites.history("c").await.unwrap(), None);
    let of_file = sites.history("a").await.unwrap().unwrap();
    assert_eq!(of_file.in_file_of.as_deref(), Some("cp"));
    let refused = sites.change(delete("a"), Expected::Anything, vec![]).await;
    assert!(matches!(
        refused,
        Err(ChangeError::Refused(Refusal::InFile { .. }))
    ));
}

#[tokio::test]
async fn no_more_versions_are_remembered_than_there_is_room_for() {
    let bench = Bench::new();
    let sites = bench.open(&[]).await;
    let _keeper = kept(&sites);
    for n in 0..HISTORY_MAX as u64 + 5 {
        let mut site = site("a");
        site.default_ttl = Span(Duration::from_secs(n));
        changed(&sites, put(site)).await;
    }
    let history = sites.history("a").await.unwrap().unwrap();
    assert_eq!(history.versions.len(), HISTORY_MAX);
    assert!(history.versions[0].current);
    assert_eq!(history.versions.last().unwrap().version, 1_000 + 5);
}

#[tokio::test]
async fn two_control_planes_on_one_store_change_it_in_turn_and_see_the_same() {
    let bench = Bench::new();
    let store = bench.store();
    let open = async |me| {
        Sites::open(bench.parts(store.clone(), me, &["file"]))
            .await
            .unwrap()
    };
    let (one, two) = (open("cp-1").await, open("cp-2").await);
    assert_eq!(
        two.now().version(),
        one.now().version(),
        "the second file says nothing new"
    );
    let _keepers = [kept(&one), kept(&two)];
    let mut changing = tokio::task::JoinSet::new();
    for n in 0..20 {
        let sites = if n % 2 == 0 { one.clone() } else { two.clone() };
        changing.spawn(async move { changed(&sites, put(site(&format!("s{n}")))).await.version });
    }
    let mut versions = changing.join_all().await;
    versions.sort_unstable();
    versions.dedup();
    assert_eq!(versions.len(), 20, "every change has a version of its own");
    let newest = *versions.last().unwrap();
    for sites in [&one, &two] {
        let mut follow = sites.follow();
        let now = follow
            .wait_for(|now| now.version() == newest)
            .await
            .unwrap()
            .clone();
        assert_eq!(now.records().len(), 21);
    }
    assert_eq!(one.now().json(), two.now().json());
    // Of two that expect the same version, one has it.
    let known = one.now().record("s1").unwrap().version;
    let mut other = site("s1");
    other.default_ttl = Span(Duration::from_secs(5));
    let expected = Expected::Versions(vec![known]);
    let (a, b) = tokio::join!(
        one.change(put(other), expected.clone(), vec![]),
        two.change(delete("s1"), expected, vec![]),
    );
    assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
    let lost = a.err().or_else(|| b.err()).unwrap();
    assert!(
        matches!(lost, ChangeError::Refused(Refusal::Outdated { .. })),
        "{lost}"
    );
}

#[tokio::test]
async fn a_check_changes_nothing_and_refuses_what_a_change_would() {
    let bench = Bench::new();
    let sites = bench.open(&["a"]).await;
    let before = sites.now().version();
    let told = sites
        .check(put(site("b")), Expected::Absent, vec![])
        .await
        .unwrap();
    assert_eq!(
        (told.version, told.set_version, told.changed),
        (0, before, true)
    );
    assert!(!told.diff.is_empty());
    let mut taken = site("b");
    taken.hosts = vec!["a.test".into()];
    let refused = sites
        .check(put(taken), Expected::Anything, vec![])
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("hosts"), "{refused}");
    assert_eq!(sites.now().version(), before);
    assert_eq!(sites.history("b").await.unwrap(), None);
}

#[tokio::test]
async fn a_file_of_many_sites_is_one_version_and_a_start_that_was_killed_is_made_good() {
    let bench = Bench::new();
    let names: Vec<_> = (0..150).map(|n| format!("s{n:03}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let sites = bench.open(&names).await;
    assert_eq!(
        (sites.now().version(), sites.now().records().len()),
        (1_000, 150)
    );
    drop(sites);
    // As it is left by a kill between two commits.
    let store = bench.store();
    let record = Record {
        version: 1_001,
        at_ms: 0,
        by: "x".into(),
        action: SiteAction::Put,
        in_file_of: None,
        site: Some(Arc::new(site("half"))),
    };
    store
        .commit(vec![], changes_of("half", &record))
        .await
        .unwrap();
    drop(store);
    let sites = bench.open(&names).await;
    assert_eq!(
        sites.now().version(),
        1_001,
        "the content is another, so the version is"
    );
    assert_eq!(sites.now().records().len(), 151);
}

#[tokio::test]
async fn sites_of_the_file_that_contradict_the_registry_stop_the_start() {
    let bench = Bench::new();
    let sites = bench.open(&[]).await;
    let keeper = kept(&sites);
    let mut taken = site("other");
    taken.hosts = vec!["a.test".into()];
    changed(&sites, put(taken)).await;
    keeper.abort();
    let _ = keeper.await;
    drop(sites);
    let error = Sites::open(bench.parts(bench.store(), "cp", &["a"]))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("\"a.test\" is also claimed by"),
        "{error}"
    );
}
