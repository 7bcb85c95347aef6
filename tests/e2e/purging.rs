//! Purges: what an edge has acknowledged, or was told of before it answers again, it does not serve.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::ensure;
use cluster::{purge::Scope, site::Site};
use harness::{
    client::{Client, get_h2c},
    cluster::{Cluster, HOST, Lines, Node, Plan, write_secret},
    origin::{Answer, Origin, Seen},
    pattern::Pattern,
    process::eventually,
    proxy::{Conditions, Proxy},
    purger::Purger,
};
use http::Method;
use tokio::{sync::watch, time::sleep};

use crate::{SECOND, heard_of, started, stored};

/// An origin whose pages have versions, edges in front of it, and a purge log.
struct Stage {
    origin: Origin,
    version: Arc<AtomicU64>,
    purger: Purger,
    /// The way from the edges to the purge log.
    line: Proxy,
    cluster: Cluster,
    _secret: tempfile::TempDir,
}

/// Pages that the origin has, with two tags each: `all`, and the page's name.
const PAGES: [&str; 6] = ["/a", "/b", "/img/1", "/img/2", "/c?x=1", "/c?x=2"];

impl Stage {
    async fn new(edges: usize) -> Self {
        Self::with(edges, |_| {}).await
    }

    async fn with(edges: usize, change: impl FnOnce(&mut Site)) -> Self {
        let origin = Origin::start().await.unwrap();
        let version = Arc::new(AtomicU64::new(1));
        for page in PAGES {
            let (path, version) = (page.split('?').next().unwrap(), version.clone());
            origin.route_by(path, move |seen| {
                page_of(seen, version.load(Ordering::SeqCst)).into()
            });
        }
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        write_secret(&secret).unwrap();
        let purger = Purger::start(&secret).await.unwrap();
        let line = Proxy::start(&purger.address(), Conditions::default())
            .await
            .unwrap();
        let urls = vec![toml::Value::from(format!("http://{}", line.address()))];
        let mut plan = Plan::new(edges, &origin.url())
            .lines(Lines::Perfect)
            .edge_setting("cluster", "name", "test")
            .edge_setting("cluster", "secret_file", secret.to_str().unwrap())
            .edge_setting("cluster", "control_plane", urls)
            .site(change);
        plan.control_plane = false;
        plan.env = vec![("RUST_LOG".into(), "info,edge_node=debug".into())];
        let cluster = started(plan).await;
        cluster.settled().await.unwrap();
        Self {
            origin,
            version,
            purger,
            line,
            cluster,
            _secret: dir,
        }
    }

    fn edge(&self) -> &Node {
        &self.cluster.edges[0]
    }

    /// The next version of all pages is at the origin from now on.
    fn next_version(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
    }
}

fn page_of(seen: &Seen, version: u64) -> Answer {
    let tag = format!("\"{version}\"");
    if seen.field("if-none-match") == Some(&tag) {
        return Answer::status(304).field("etag", tag);
    }
    let name = seen.path().trim_matches('/').replace('/', "-");
    Answer::bytes(format!("{} version {version}", seen.target))
        .max_age(600)
        .field("etag", tag)
        .field("surrogate-key", format!("all {name}"))
}

/// The version of a page that the edge answers with, and whether that was a hit.
async fn version(edge: &Node, page: &str) -> (u64, bool) {
    let answer = edge.get(page).await.unwrap();
    assert_eq!(answer.status, 200, "{page}: {}", answer.text());
    let text = answer.text();
    let version = text.rsplit(' ').next().unwrap().parse().unwrap();
    (version, answer.cache_status().hit)
}

async fn all_hits(edge: &Node, version_expected: u64) {
    for page in PAGES {
        version(edge, page).await;
        assert_eq!(
            version(edge, page).await,
            (version_expected, true),
            "{page}"
        );
    }
}

fn url(text: &str) -> Scope {
    Scope::Url(text.to_owned())
}

fn prefix(text: &str) -> Scope {
    Scope::Prefix(text.to_owned())
}

fn tag(text: &str) -> Scope {
    Scope::Tag(text.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_scope_takes_away_what_it_names_and_leaves_the_rest() {
    let stage = Stage::new(1).await;
    let edge = stage.edge();
    let cases = [
        (url("/a"), &["/a"][..]),
        (url(&format!("//{HOST}/c?x=1")), &["/c?x=1"]),
        (url("//other.test/b"), &[]),
        (prefix("/img/"), &["/img/1", "/img/2"]),
        (prefix(&format!("//{HOST}/c")), &["/c?x=1", "/c?x=2"]),
        (tag("b"), &["/b"]),
        (tag("B"), &[]),
        (tag("all"), &PAGES),
        (Scope::All, &PAGES),
    ];
    for (now, (scope, gone)) in (1..).zip(cases) {
        stage
            .purger
            .purge(edge, &[Scope::All], false)
            .await
            .unwrap();
        all_hits(edge, now).await;
        stage.next_version();
        stage
            .purger
            .purge(edge, std::slice::from_ref(&scope), false)
            .await
            .unwrap();
        for page in PAGES {
            let expected = match gone.contains(&page) {
                true => (now + 1, false),
                false => (now, true),
            };
            assert_eq!(version(edge, page).await, expected, "{scope:?} {page}");
            if gone.contains(&page) {
                assert_eq!(
                    version(edge, page).await,
                    (now + 1, true),
                    "{scope:?} {page}"
                );
            }
        }
    }
    let applied = edge
        .metric("edge_purges_applied_total", &["kind=\"tag\""])
        .await
        .unwrap();
    assert_eq!(applied, 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_is_gone_in_whatever_way_it_is_asked_for() {
    let stage = Stage::new(1).await;
    let edge = stage.edge();
    let client = Client::new();
    let ways = ["get", "h2", "head", "range", "condition", "only-if-cached"];
    for (now, way) in (1..).zip(ways) {
        version(edge, "/a").await;
        assert_eq!(version(edge, "/a").await, (now, true), "{way}");
        stage.next_version();
        let asked = stage.origin.seen("/a").len();
        stage.purger.purge(edge, &[url("/a")], false).await.unwrap();
        let (old, new) = (format!("\"{now}\""), format!("\"{}\"", now + 1));
        let get = async |fields: &[(&str, &str)]| edge.get_with("/a", fields).await.unwrap();
        match way {
            "get" => assert_eq!(get(&[]).await.field("etag"), Some(&*new)),
            "h2" => {
                let answer = get_h2c(edge.http, HOST, "/a").await.unwrap();
                assert_eq!(answer.headers["etag"], new);
            }
            "head" => {
                let (url, fields) = (edge.url("/a"), [("host", HOST)]);
                let sent = client.send(Method::HEAD, &url, &fields, "".into());
                assert_eq!(sent.await.unwrap().field("etag"), Some(&*new));
            }
            "range" => {
                let answer = get(&[("range", "bytes=0-1")]).await;
                assert_eq!((answer.status, answer.field("etag")), (206, Some(&*new)));
            }
            "condition" => {
                let answer = get(&[("if-none-match", &old)]).await;
                assert_eq!((answer.status, answer.field("etag")), (200, Some(&*new)));
            }
            _ => {
                let answer = get(&[("cache-control", "only-if-cached")]).await;
                assert_eq!(answer.status, 504);
            }
        }
        // Nor was the origin asked whether the old one still holds.
        let later = stage.origin.seen("/a").split_off(asked);
        let asks_for_old = |seen: &Seen| seen.field("if-none-match") == Some(&old);
        assert!(!later.iter().any(asks_for_old), "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_soft_purged_is_validated_and_stands_again() {
    let stage = Stage::new(1).await;
    let edge = stage.edge();
    version(edge, "/a").await;
    let asked = stage.origin.requests();
    stage.purger.purge(edge, &[url("/a")], true).await.unwrap();
    let explained = edge
        .ask(&format!("/explain?url=http://{HOST}/a"))
        .await
        .unwrap();
    let explained = explained.json().unwrap();
    assert_eq!(explained["purges"]["verdict"], "stale", "{explained}");
    assert_eq!(explained["purges"]["hit_by"][0]["scope"], "url /a");
    let answer = edge.get("/a").await.unwrap();
    let status = answer.cache_status();
    assert_eq!(
        (status.hit, status.fwd.as_deref()),
        (false, Some("stale")),
        "{status:?}"
    );
    assert_eq!(stage.origin.requests(), asked + 1);
    let seen = stage.origin.seen("/a");
    assert_eq!(seen.last().unwrap().field("if-none-match"), Some("\"1\""));
    // The origin has confirmed it, after the purge.
    assert_eq!(version(edge, "/a").await, (1, true));
    assert_eq!(stage.origin.requests(), asked + 1);
    // Softly purged again, with a newer one at the origin.
    stage.next_version();
    stage.purger.purge(edge, &[tag("a")], true).await.unwrap();
    assert_eq!(version(edge, "/a").await, (2, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_does_not_bring_back_what_is_gone() {
    let stage = Stage::with(1, |site| {
        site.stale_if_error = Some("1h".parse().unwrap());
        site.stale_while_revalidate = Some("1h".parse().unwrap());
    })
    .await;
    let edge = stage.edge();
    for page in ["/a", "/b"] {
        version(edge, page).await;
        stage.origin.route(page, Answer::status(503));
    }
    stage.purger.purge(edge, &[url("/a")], true).await.unwrap();
    stage.purger.purge(edge, &[url("/b")], false).await.unwrap();
    for _ in 0..3 {
        assert_eq!(edge.get("/a").await.unwrap().status, 200);
        assert_eq!(edge.get("/b").await.unwrap().status, 503);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_on_its_way_when_the_purge_came_is_for_those_who_waited_then() {
    let stage = Stage::new(1).await;
    let edge = stage.edge();
    // With its head still to come, and with its body.
    let body = Pattern::new(3, 3 << 20);
    for (path, headless) in [("/head", true), ("/body", false)] {
        let (open, held) = watch::channel(false);
        let old = Answer::pattern(&body)
            .max_age(600)
            .field("surrogate-key", "late");
        let old = match headless {
            true => old.held(held),
            false => old.slowly(256 << 10, Duration::from_millis(250)),
        };
        stage.origin.route(path, old);
        let (at, client) = (edge.url(path), Client::new());
        let early = tokio::spawn(async move { client.get_with(&at, &[("host", HOST)]).await });
        eventually("the origin is asked", async || {
            ensure!(!stage.origin.seen(path).is_empty());
            Ok(())
        })
        .await
        .unwrap();
        // Some of the body is here.
        sleep(Duration::from_millis(if headless { 0 } else { 600 })).await;
        stage.origin.route(path, Answer::bytes("new").max_age(600));
        stage
            .purger
            .purge(edge, &[tag("late")], false)
            .await
            .unwrap();
        if headless {
            open.send_replace(true);
        }
        let late = edge.get(path).await.unwrap();
        assert_eq!(late.text(), "new", "{path}");
        let early = early.await.unwrap().unwrap();
        assert_eq!(early.body, body.bytes(), "{path}");
        sleep(Duration::from_millis(300)).await;
        let last = edge.get(path).await.unwrap();
        assert_eq!(
            (last.text().as_str(), last.cache_status().hit),
            ("new", true)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_behind_does_not_bring_it_back() {
    let stage = Stage::new(2).await;
    let [behind, ahead] = &stage.cluster.edges[..] else {
        unreachable!()
    };
    for page in PAGES {
        version(behind, page).await;
        stored(behind, page).await;
    }
    heard_of(ahead, "edge-1", PAGES.len() as u64).await.unwrap();
    stage.next_version();
    // It hears of it before long; the other asks it at once, and for all.
    stage
        .purger
        .purge(ahead, &[tag("all")], false)
        .await
        .unwrap();
    let asked = PAGES.map(|page| version(ahead, page));
    for (page, answer) in PAGES
        .iter()
        .zip(futures_util::future::join_all(asked).await)
    {
        assert_eq!(answer.0, 2, "{page}");
    }
    eventually("the other has caught up", async || {
        let seqs = [behind, ahead].map(|edge| edge.metric("edge_purge_seq_applied", &[]));
        let [one, other] = seqs;
        ensure!(one.await? == other.await?);
        Ok(())
    })
    .await
    .unwrap();
    for page in PAGES {
        assert_eq!(version(behind, page).await.0, 2, "{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_that_was_acknowledged_survives_kill_9() {
    let mut stage = Stage::new(1).await;
    all_hits(stage.edge(), 1).await;
    eventually("all is on disk", async || {
        let held = stage
            .edge()
            .metric("edge_cache_objects", &["tier=\"disk\""])
            .await?;
        ensure!(held >= PAGES.len() as f64, "{held}");
        Ok(())
    })
    .await
    .unwrap();
    sleep(Duration::from_millis(200)).await;
    stage.next_version();
    stage
        .purger
        .purge(stage.edge(), &[url("/a")], false)
        .await
        .unwrap();
    stage.cluster.edges[0].kill9().await.unwrap();
    // Whoever is asked later says that nothing was missed: it is on this disk, or nowhere.
    stage.purger.forget();
    stage.cluster.edges[0].start().await.unwrap();
    assert_eq!(version(stage.edge(), "/a").await, (2, false));
    assert_eq!(version(stage.edge(), "/b").await, (1, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_purged_while_a_node_was_away_is_not_its_first_answer() {
    let mut stage = Stage::new(1).await;
    all_hits(stage.edge(), 1).await;
    stage.cluster.edges[0].terminate().await.unwrap();
    stage.next_version();
    for page in 0..250 {
        stage.purger.log(&[url(&format!("/nothing/{page}"))], false);
    }
    stage.purger.log(&[url("/a")], false);
    // It is asked before it is ready.
    stage.line.set(Conditions {
        stalled: true,
        ..Conditions::default()
    });
    stage.cluster.edges[0].launch().unwrap();
    let edge = stage.edge();
    let first = eventually("it listens", async || edge.get("/a").await)
        .await
        .unwrap();
    assert!(first.text().ends_with("version 2"), "{}", first.text());
    assert!(!first.cache_status().hit);
    let ready = edge.ask("/readyz").await.unwrap();
    assert_eq!(
        (ready.status, ready.text().trim()),
        (503, "catching up with purges")
    );
    // What was not purged is confirmed by the origin.
    assert!(!version(edge, "/b").await.1);
    stage.line.set(Conditions::default());
    stage.cluster.edges[0].ready().await.unwrap();
    let edge = stage.edge();
    eventually("it has caught up", async || {
        let seq = edge.metric("edge_purge_seq_applied", &[]).await?;
        ensure!(seq == 753.0, "{seq}");
        Ok(())
    })
    .await
    .unwrap();
    version(edge, "/b").await;
    assert!(version(edge, "/b").await.1);
}

/// An edge that has everything, cut off from the purge log while the origin has something new.
async fn cut_off() -> Stage {
    let stage = Stage::new(1).await;
    all_hits(stage.edge(), 1).await;
    stage.line.set(Conditions {
        cut: true,
        ..Conditions::default()
    });
    stage.next_version();
    stage
}

async fn reaches(edge: &Node, seq: u64) {
    eventually("it has everything", async || {
        let applied = edge.metric("edge_purge_seq_applied", &[]).await?;
        ensure!(applied == seq as f64, "{applied} of {seq}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_page_does_not_acknowledge_what_it_left_out() {
    let stage = cut_off().await;
    let (edge, purger) = (stage.edge(), &stage.purger);
    let early = purger.log(&[url("/a")], false);
    let others: Vec<_> = (0..150)
        .map(|n| purger.log(&[url(&format!("/nothing/{n}"))], false))
        .collect();
    let late = purger.log(&[url("/a")], false);
    purger.leave_out(&early);
    purger.silent_from(Some(1));
    stage.line.set(Conditions::default());
    eventually("the first page is there", async || {
        let applied = edge
            .metric("edge_purges_applied_total", &["kind=\"url\""])
            .await?;
        ensure!(applied == 100.0, "{applied}");
        Ok(())
    })
    .await
    .unwrap();
    // What a control plane would take for a receipt of the first.
    let applied = purger.push(edge, &others[..1]).await.unwrap();
    assert!(applied < early.at, "{applied:?}");
    assert_eq!(
        edge.metric("edge_purge_seq_applied", &[]).await.unwrap(),
        0.0
    );
    purger.silent_from(None);
    reaches(edge, late.at.seq).await;
    assert_eq!(version(edge, "/a").await, (2, false));
    assert_eq!(version(edge, "/b").await, (1, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_interrupted_goes_on_where_it_was() {
    let stage = cut_off().await;
    let (edge, purger) = (stage.edge(), &stage.purger);
    let log = |n| purger.log(&[url(&format!("/nothing/{n}"))], false).at.seq;
    let seqs: Vec<_> = (0..1_050).map(log).collect();
    let before = purger.asked().len();
    // Once it hangs, and once the line breaks.
    for silent_from in [seqs[299], seqs[699]] {
        purger.silent_from(Some(silent_from));
        stage.line.set(Conditions::default());
        eventually("it has come that far", async || {
            ensure!(purger.asked().contains(&silent_from));
            Ok(())
        })
        .await
        .unwrap();
        assert_eq!(
            edge.metric("edge_purge_seq_applied", &[]).await.unwrap(),
            0.0
        );
        if silent_from == seqs[699] {
            stage.line.set(Conditions {
                cut: true,
                ..Conditions::default()
            });
            sleep(SECOND).await;
        }
    }
    purger.silent_from(None);
    stage.line.set(Conditions::default());
    reaches(edge, *seqs.last().unwrap()).await;
    let asked = purger.asked().split_off(before);
    assert!(asked.is_sorted(), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_stopped_during_a_purge_asks_before_its_first_answer() {
    let mut stage = Stage::new(1).await;
    all_hits(stage.edge(), 1).await;
    stage.cluster.edges[0].process().freeze();
    sleep(SECOND * 3).await;
    stage.next_version();
    stage.purger.log(&[tag("all")], false);
    stage.cluster.edges[0].process().thaw();
    let edge = stage.edge();
    for page in PAGES {
        assert_eq!(version(edge, page).await, (2, false), "{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_answers_for_a_while_and_is_right_as_soon_as_it_is_not() {
    let stage = Stage::with(1, |site| site.purge_limit = Some("20s".parse().unwrap())).await;
    let edge = stage.edge();
    all_hits(edge, 1).await;
    stage.line.set(Conditions {
        cut: true,
        ..Conditions::default()
    });
    sleep(SECOND * 3).await;
    stage.next_version();
    stage.purger.log(&[url("/a")], false);
    // Nobody can tell it.
    assert_eq!(version(edge, "/a").await, (1, true));
    stage.line.set(Conditions::default());
    assert_eq!(version(edge, "/a").await, (2, false));
    assert_eq!(version(edge, "/b").await, (1, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_for_long_asks_the_origin_first() {
    let stage = Stage::with(1, |site| site.purge_limit = Some("4s".parse().unwrap())).await;
    let edge = stage.edge();
    all_hits(edge, 1).await;
    stage.line.set(Conditions {
        stalled: true,
        ..Conditions::default()
    });
    sleep(SECOND * 6).await;
    stage.next_version();
    stage.purger.log(&[url("/a")], false);
    assert_eq!(version(edge, "/a").await, (2, false));
    let explained = edge
        .ask(&format!("/explain?url=http://{HOST}/a"))
        .await
        .unwrap();
    let doubt = explained.json().unwrap()["purges"]["doubt"].clone();
    assert!(doubt.as_str().unwrap().starts_with("cut off"), "{doubt}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_tags_are_bounded_and_change_nothing() {
    let stage = Stage::new(1).await;
    let edge = stage.edge();
    all_hits(edge, 1).await;
    let tags = |of: u64| -> Vec<Scope> {
        (0..1_000)
            .map(|n| tag(&format!("t{}", of * 1_000 + n)))
            .collect()
    };
    let mut waiting = Vec::new();
    for of in 0..100 {
        waiting.push(stage.purger.log(&tags(of), false));
        if waiting.len() == 20 {
            let applied = stage.purger.push(edge, &waiting).await.unwrap();
            assert_eq!(applied, waiting.last().unwrap().at);
            waiting.clear();
        }
    }
    let scopes = edge.metric("edge_purge_scopes", &[]).await.unwrap();
    assert_eq!(scopes, 100_001.0);
    let bytes = edge.metric("edge_purge_table_bytes", &[]).await.unwrap();
    assert!(bytes < 8e6, "{bytes}");
    all_hits(edge, 1).await;
    stage.next_version();
    stage
        .purger
        .purge(edge, &[tag("a"), tag("t7")], false)
        .await
        .unwrap();
    assert_eq!(version(edge, "/a").await, (2, false));
    assert_eq!(version(edge, "/b").await, (1, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_cannot_be_meant_is_refused_and_changes_nothing() {
    let stage = Stage::new(1).await;
    let edge = stage.edge();
    all_hits(edge, 1).await;
    let record = stage.purger.log(&[], false);
    let refused = stage.purger.push(edge, &[record]).await.unwrap_err();
    assert!(refused.to_string().starts_with("400"), "{refused}");
    let many = stage.purger.log(&vec![Scope::All; 1_001], false);
    let refused = stage.purger.push(edge, &[many]).await.unwrap_err();
    assert!(refused.to_string().contains("scopes"), "{refused}");
    // Nobody who does not know the secret.
    let peer = edge.peer.unwrap();
    let sent = Client::new()
        .send(
            Method::POST,
            &format!("http://{peer}/v1/purges"),
            &[],
            "{}".into(),
        )
        .await;
    assert!(sent.is_err());
    assert_eq!(version(edge, "/a").await, (1, true));
}

/// A purge that an operator asks the control plane for, and waits for.
async fn ask_for(control: &Node, wish: serde_json::Value) -> serde_json::Value {
    let (url, json) = (
        control.url("/v1/purges"),
        [("content-type", "application/json")],
    );
    let body = wish.to_string().into();
    let answer = Client::new().send(Method::POST, &url, &json, body).await;
    let answer = answer.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json().unwrap()
}

fn states(purge: &serde_json::Value) -> Vec<&str> {
    let nodes = purge["nodes"].as_array().unwrap();
    nodes
        .iter()
        .map(|node| node["state"].as_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_purges_everywhere_and_whoever_was_away_hears_of_it() {
    let origin = Origin::start().await.unwrap();
    let now = Arc::new(AtomicU64::new(1));
    for page in ["/a", "/b"] {
        let now = now.clone();
        origin.route_by(page, move |seen| {
            page_of(seen, now.load(Ordering::SeqCst)).into()
        });
    }
    let next = || now.fetch_add(1, Ordering::SeqCst) + 1;
    let mut cluster = started(Plan::new(3, &origin.url())).await;
    cluster.settled().await.unwrap();
    for edge in &cluster.edges {
        for page in ["/a", "/b"] {
            version(edge, page).await;
            stored(edge, page).await;
        }
    }
    let newest = next();
    let wish = serde_json::json!({"site": "site", "urls": ["/a"], "wait": "all"});
    let purged = ask_for(cluster.control(), wish.clone()).await;
    assert_eq!(states(&purged), ["acknowledged"; 3], "{purged}");
    assert_eq!(purged["complete"], true);
    for edge in &cluster.edges {
        let (version_now, _) = version(edge, "/a").await;
        assert_eq!(version_now, newest, "{}", edge.id);
        assert_eq!(version(edge, "/b").await, (1, true), "{}", edge.id);
    }

    // One is away while the next comes, and a third.
    cluster.edges[2].kill9().await.unwrap();
    for wish in [
        serde_json::json!({"site": "site", "tags": ["b"], "wait": "quorum"}),
        serde_json::json!({"site": "site", "prefixes": ["/nothing"], "wait": "none"}),
    ] {
        next();
        ask_for(cluster.control(), wish).await;
    }
    let newest = now.load(Ordering::SeqCst);
    cluster.edges[2].start().await.unwrap();
    for edge in &cluster.edges {
        assert_eq!(version(edge, "/b").await.0, newest, "{}", edge.id);
    }

    // One that has lost its data begins a log that comes after the one that is lost.
    for edge in &cluster.edges {
        version(edge, "/a").await;
        stored(edge, "/a").await;
    }
    let data_dir = cluster.control().data_dir.clone();
    cluster.control().kill9().await.unwrap();
    std::fs::remove_dir_all(&data_dir).unwrap();
    cluster.control().start().await.unwrap();
    let newest = next();
    eventually(
        "every edge acknowledges a purge of the new log",
        async || {
            let control = cluster.control.as_ref().unwrap();
            let purged = ask_for(control, wish.clone()).await;
            ensure!(states(&purged) == ["acknowledged"; 3], "{purged}");
            Ok(())
        },
    )
    .await
    .unwrap();
    for edge in &cluster.edges {
        assert_eq!(version(edge, "/a").await.0, newest, "{}", edge.id);
    }
}
