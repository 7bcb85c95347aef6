//! Several edges: each object crosses the ocean once.

use cluster::site::rules::Shield;
use harness::{
    cache_status::Source,
    client::Client,
    cluster::{HOST, Lines, Plan},
    mirror::Mirror,
    origin::{Answer, Origin},
    pattern::Pattern,
    proxy::Conditions,
};

use crate::{Docs, SECOND, heard_of, started, stored};

/// Files of the mirror in these tests. The whole set: `TESTS_MIRROR_FILES=1000000`.
fn files_max() -> usize {
    let given = std::env::var_os("TESTS_MIRROR_FILES");
    given.map_or(1_500, |v| {
        v.to_str().expect("a number").parse().expect("a number")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_through_one_edge_feeds_the_others() {
    let docs = Docs::new().await;
    let mirror = Mirror::of(&docs.root, files_max()).unwrap();
    let cluster = started(Plan::new(3, &docs.origin.url())).await;
    cluster.settled().await.unwrap();
    let [one, two, three] = &cluster.edges[..] else {
        unreachable!()
    };

    let tally = mirror.fetch(&one.url(""), HOST, 8).await;
    println!("edge-1: {tally}");
    assert_eq!((tally.equal, tally.failed), (mirror.files(), 0), "{tally}");
    assert_eq!(tally.origin, mirror.files(), "{tally}");
    assert_eq!(docs.origin.requests(), mirror.files() as u64);

    for edge in [two, three] {
        let before = docs.origin.requests();
        heard_of(edge, "edge-1", mirror.files() as u64)
            .await
            .unwrap();
        let tally = mirror.fetch(&edge.url(""), HOST, 8).await;
        println!("{}: {tally}", edge.id);
        assert_eq!((tally.equal, tally.failed), (mirror.files(), 0), "{tally}");
        let asked = docs.origin.requests() - before;
        assert!(
            asked * 50 < mirror.files() as u64,
            "{asked} reached the origin; {tally}"
        );
        assert_eq!((tally.unsaid, tally.origin as u64), (0, asked), "{tally}");
    }
    let again = mirror.fetch(&one.url(""), HOST, 8).await;
    assert_eq!(again.hits, mirror.files(), "{again}");
    let answered = one.metric("edge_response_bytes_total", &[]).await.unwrap();
    assert!(answered >= 2.0 * mirror.bytes() as f64, "{answered}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nearest_holder_is_asked_and_another_when_it_is_out_of_reach() {
    let origin = Origin::start().await.unwrap();
    let body = Pattern::new(1, 3 << 20);
    // Frankfurt is nearer to Virginia than to Singapore.
    let cluster = started(Plan::new(3, &origin.url()).lines(Lines::Perfect)).await;
    cluster.settled().await.unwrap();
    let [frankfurt, virginia, singapore] = &cluster.edges[..] else {
        unreachable!()
    };
    for path in ["/near", "/far", "/nobody"] {
        origin.route(path, Answer::pattern(&body).max_age(600));
    }
    for (path, holders) in [
        ("/near", &[virginia, singapore][..]),
        ("/far", &[singapore]),
    ] {
        for holder in holders {
            holder.get(path).await.unwrap();
            stored(holder, path).await;
        }
    }
    heard_of(frankfurt, "edge-2", 1).await.unwrap();
    heard_of(frankfurt, "edge-3", 2).await.unwrap();
    let before = origin.requests();

    let near = frankfurt.get("/near").await.unwrap();
    assert_eq!(near.body, body.bytes());
    assert!(
        matches!(near.cache_status().source(), Source::Peer(_)),
        "{:?}",
        near.cache_status()
    );
    let cut = Conditions {
        cut: true,
        ..Conditions::default()
    };
    cluster.line(0, 2).set(cut);
    let far = frankfurt.get("/far").await.unwrap();
    assert_eq!((far.status, far.body.len()), (200, 3 << 20));
    assert_eq!(far.body, body.bytes());
    // Its only holder is out of reach, so this came from the origin, and nobody noticed.
    assert_eq!(far.cache_status().source(), Source::Origin);
    assert_eq!(origin.requests(), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_falls_silent_midway_does_not_hurt_the_client() {
    let origin = Origin::start().await.unwrap();
    let body = Pattern::new(2, 8 << 20);
    origin.route(
        "/big",
        Answer::pattern(&body).max_age(600).field("etag", "\"v\""),
    );
    let cluster = started(Plan::new(2, &origin.url()).lines(Lines::Perfect)).await;
    cluster.settled().await.unwrap();
    let [holder, asker] = &cluster.edges[..] else {
        unreachable!()
    };
    holder.get("/big").await.unwrap();
    stored(holder, "/big").await;
    heard_of(asker, "edge-1", 1).await.unwrap();
    // Two MiB a second, then nothing.
    let slow = Conditions {
        bytes_per_s: Some(2 << 20),
        ..Conditions::default()
    };
    cluster.line(1, 0).set(slow);
    let url = asker.url("/big");
    let fetching = tokio::spawn(async move { Client::new().digest(&url, &[("host", HOST)]).await });
    tokio::time::sleep(SECOND * 2).await;
    assert!(!fetching.is_finished());
    cluster.line(1, 0).set(Conditions {
        stalled: true,
        ..slow
    });
    let answer = fetching.await.unwrap().unwrap();
    assert_eq!((answer.status, answer.hash), (200, body.hash()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_plane_ranks_by_distance_and_steers() {
    let origin = Origin::start().await.unwrap();
    origin.route("/a", Answer::bytes("a").max_age(60));
    let mut cluster = started(Plan::new(3, &origin.url())).await;
    cluster.settled().await.unwrap();
    let names = |answer: &serde_json::Value, list: &str| -> Vec<String> {
        let list = answer[list].as_array().cloned().unwrap_or_default();
        list.iter()
            .map(|p| p["id"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    let control = cluster.control();
    harness::process::eventually("everybody is ranked", async || {
        let peers = control.ask("/v1/peers?node=edge-1").await?.json()?;
        // Virginia before Singapore, seen from Frankfurt.
        anyhow::ensure!(names(&peers, "peers") == ["edge-2", "edge-3"], "{peers}");
        Ok(())
    })
    .await
    .unwrap();
    // Addresses of well-known public resolvers, by the database that ships with the project.
    let edges = control
        .ask("/v1/edges?client=8.8.8.8")
        .await
        .unwrap()
        .json()
        .unwrap();
    assert_eq!(
        names(&edges, "edges").first().map(String::as_str),
        Some("edge-2"),
        "{edges}"
    );
    let nodes = control.ask("/v1/nodes").await.unwrap().json().unwrap();
    assert_eq!(
        names(&nodes, "nodes"),
        ["control", "edge-1", "edge-2", "edge-3"]
    );

    let steer = control.steer.unwrap();
    let client = Client::new();
    let url = format!("http://{steer}/a?b=c");
    let steered = client.get_with(&url, &[("host", HOST)]).await.unwrap();
    assert_eq!(steered.status, 307);
    let location = steered.field("location").unwrap().to_owned();
    let ports: Vec<_> = cluster.edges.iter().map(|e| e.http.port()).collect();
    assert!(
        ports
            .iter()
            .any(|p| location == format!("http://{HOST}:{p}/a?b=c")),
        "{location}"
    );
    let stranger = client
        .get_with(&url, &[("host", "elsewhere.test")])
        .await
        .unwrap();
    assert!((400..500).contains(&stranger.status), "{}", stranger.status);
}

/// A peer behind a slow line does not make requests slower than the origin does: after some of them the
/// origin comes first, the peer is tried now and then, and asked when the origin fails.
#[tokio::test(flavor = "multi_thread")]
async fn peers_that_do_not_pay_are_asked_when_the_origin_fails() {
    const OBJECTS: usize = 80;
    let origin = Origin::start().await.unwrap();
    for n in 0..OBJECTS {
        origin.route(&format!("/held/{n}"), Answer::bytes("held").max_age(600));
        origin.route(&format!("/new/{n}"), Answer::bytes("new").max_age(600));
    }
    let plan = Plan::new(2, &origin.url()).lines(Lines::Perfect);
    let cluster = started(plan.site(|site| site.shield = Some(Shield::None))).await;
    cluster.settled().await.unwrap();
    let [holder, asker] = &cluster.edges[..] else {
        unreachable!()
    };
    for n in 0..OBJECTS {
        holder.get(&format!("/held/{n}")).await.unwrap();
    }
    heard_of(asker, "edge-1", OBJECTS as u64).await.unwrap();
    // Each way, for a peer whose origin is next door.
    let slow = Conditions::delay(SECOND / 5);
    cluster.line(1, 0).set(slow);
    for n in 0..10 {
        let answer = asker.get(&format!("/new/{n}")).await.unwrap();
        assert_eq!(answer.cache_status().source(), Source::Origin);
    }
    let mut from_peer = Vec::new();
    for n in 0..OBJECTS - 1 {
        let answer = asker.get(&format!("/held/{n}")).await.unwrap();
        assert_eq!((answer.status, &*answer.text()), (200, "held"));
        if matches!(answer.cache_status().source(), Source::Peer(_)) {
            from_peer.push(n);
        }
    }
    let url = format!("/explain?url=http://{HOST}/held/x");
    let told = asker.ask(&url).await.unwrap().text();
    // A few until it is known, then one in fifty at most.
    let (first, later) = from_peer.split_at(from_peer.partition_point(|n| *n < 20));
    assert!((1..15).contains(&first.len()), "{from_peer:?} {told}");
    assert!(later.len() <= 2, "{from_peer:?} {told}");

    let last = format!("/held/{}", OBJECTS - 1);
    let url = format!("/explain?url=http://{HOST}{last}");
    let told = asker.ask(&url).await.unwrap().json().unwrap();
    assert_eq!(told["order"]["order"], "origin_first", "{told}");
    let then = told["then"].as_str().unwrap();
    assert!(
        then.ends_with("and asked of \"edge-1\" if that fails"),
        "{told}"
    );
    assert!(told["why"].to_string().contains("they take"), "{told}");
    let orders = asker.metric("edge_fill_orders_total", &["first=\"origin\""]);
    assert!(orders.await.unwrap() > 30.0);

    origin.route(&last, Answer::status(503));
    let rescued = asker.get(&last).await.unwrap();
    assert_eq!((rescued.status, &*rescued.text()), (200, "held"));
    assert!(matches!(rescued.cache_status().source(), Source::Peer(_)));
    // Where nobody has it either, the client is told.
    origin.route("/new/20", Answer::status(503));
    assert_eq!(asker.get("/new/20").await.unwrap().status, 503);
}

/// What two nodes of a region have asked for, the others are offered, and have before they ask.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_hot_in_a_region_is_there_before_it_is_asked_for() {
    let origin = Origin::start().await.unwrap();
    let body = Pattern::new(3, 300_000);
    origin.route("/hot", Answer::pattern(&body).max_age(600));
    let mut plan = Plan::new(4, &origin.url()).site(|site| site.shield = Some(Shield::None));
    plan.regions = vec![plan.regions[0]; 4];
    let cluster = started(plan).await;
    cluster.settled().await.unwrap();
    let [holder, one, two, other] = &cluster.edges[..] else {
        unreachable!()
    };
    holder.get("/hot").await.unwrap();
    stored(holder, "/hot").await;
    for edge in [one, two, other] {
        heard_of(edge, "edge-1", 1).await.unwrap();
    }
    // At once, so that neither can ask the other.
    for answer in <[_; 2]>::from(tokio::join!(one.get("/hot"), two.get("/hot"))) {
        let answer = answer.unwrap();
        assert_eq!(answer.body, body.bytes());
        assert_eq!(
            answer.cache_status().source(),
            Source::Peer("edge-1".into())
        );
    }
    harness::process::eventually("the fourth has it", async || {
        let warmed = other.metric("edge_warmed_total", &[]).await?;
        anyhow::ensure!(warmed > 0.5, "{warmed}");
        Ok(())
    })
    .await
    .unwrap();
    let answer = other.get("/hot").await.unwrap();
    assert_eq!(answer.cache_status().source(), Source::Hit);
    assert_eq!(answer.body, body.bytes());
    assert_eq!(origin.requests(), 1);
    let taken = holder.metric("edge_offers_total", &["result=\"taken\""]);
    assert!((taken.await.unwrap() - 1.0).abs() < 0.5);
    // Who has asked is offered nothing.
    for edge in [one, two] {
        let warmed = edge.metric("edge_warmed_total", &[]).await.unwrap();
        assert!(warmed < 0.5, "{warmed}");
    }
}

/// What no peer can serve takes no millisecond longer than where there are no peers. A busy machine may take longer
/// over one of them for a while; what a miss costs shows in every round.
#[tokio::test(flavor = "multi_thread")]
async fn a_miss_that_no_peer_can_serve_costs_what_it_costs_alone() {
    const MISSES: usize = 300;
    const ROUNDS_MAX: usize = 5;
    let origin = Origin::start().await.unwrap();
    for n in 0..MISSES {
        let path = format!("/held/{n}");
        origin.route(&path, Answer::bytes("held").max_age(600));
    }
    let alone = started(Plan::alone(&origin.url())).await;
    let together = started(Plan::new(3, &origin.url())).await;
    together.settled().await.unwrap();
    let [holder, asker, _] = &together.edges[..] else {
        unreachable!()
    };
    for n in 0..MISSES {
        holder.get(&format!("/held/{n}")).await.unwrap();
    }
    heard_of(asker, "edge-1", MISSES as u64).await.unwrap();
    for round in 0..ROUNDS_MAX {
        let mut took = [Vec::new(), Vec::new()];
        for n in 0..MISSES {
            let path = format!("/{round}/{n}");
            origin.route(&path, Answer::bytes("new").max_age(600));
            // In turns, so that both meet the same machine.
            for (edge, took) in [&alone.edges[0], asker].into_iter().zip(&mut took) {
                let begun = tokio::time::Instant::now();
                let answer = edge.get(&path).await.unwrap();
                took.push(begun.elapsed());
                assert_eq!(answer.cache_status().source(), Source::Origin);
            }
        }
        let [alone, together] = took.map(|mut took| {
            took.sort();
            took[MISSES / 2]
        });
        println!("a miss takes {alone:?} alone, {together:?} among peers");
        if together < alone + SECOND / 1000 {
            return;
        }
    }
    panic!("a miss takes a millisecond longer among peers, in each of {ROUNDS_MAX} rounds");
}
