//! Processes that are killed, stopped or damaged: what clients notice, which should be nothing.

use std::{fs, time::Duration};

use anyhow::ensure;
use harness::{
    client::{Client, digest},
    cluster::{HOST, Plan},
    mirror::Mirror,
    origin::{Answer, Origin},
    pattern::Pattern,
    process::eventually,
};

use crate::{Docs, alone, heard_of, started, stored};

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_killed_mid_mirror_is_not_missed_and_comes_back_warm() {
    let docs = Docs::new().await;
    let mirror = Mirror::of(&docs.root, 800).unwrap();
    let files = mirror.files();
    let mut cluster = started(Plan::new(2, &docs.origin.url())).await;
    cluster.settled().await.unwrap();
    let tally = mirror.fetch(&cluster.edges[0].url(""), HOST, 8).await;
    assert_eq!(tally.equal, files, "{tally}");
    let [victim, other] = &cluster.edges[..] else {
        unreachable!()
    };
    eventually("all is on disk", async || {
        let held = victim
            .metric("edge_cache_objects", &["tier=\"disk\""])
            .await?;
        ensure!(held >= files as f64, "{held} of {files}");
        Ok(())
    })
    .await
    .unwrap();
    heard_of(other, "edge-1", files as u64).await.unwrap();

    let url = other.url("");
    let running = tokio::spawn({
        let mirror = mirror.clone();
        async move { mirror.fetch(&url, HOST, 4).await }
    });
    eventually("the mirror is in the middle", async || {
        let from_peer = other
            .metric("edge_peer_requests_total", &["peer=\"edge-1\""])
            .await?;
        ensure!(from_peer >= files as f64 / 8.0, "{from_peer}");
        Ok(())
    })
    .await
    .unwrap();
    assert!(!running.is_finished());
    cluster.edges[0].kill9().await.unwrap();
    let tally = running.await.unwrap();
    println!("with a dying peer: {tally}");
    assert_eq!((tally.equal, tally.failed), (files, 0), "{tally}");
    assert!(tally.peers > 0 && tally.origin > 0, "{tally}");

    // Alone, so that what it serves is its own.
    cluster.edges[1].kill9().await.unwrap();
    cluster.edges[0].start().await.unwrap();
    let before = docs.origin.requests();
    let tally = mirror.fetch(&cluster.edges[0].url(""), HOST, 8).await;
    println!("after kill -9: {tally}");
    assert_eq!((tally.equal, tally.hits), (files, files), "{tally}");
    assert_eq!(docs.origin.requests(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn edges_go_on_and_restart_without_the_control_plane() {
    let origin = Origin::start().await.unwrap();
    for n in 0..6 {
        origin.route(
            &format!("/{n}"),
            Answer::bytes(format!("page {n}")).max_age(600),
        );
    }
    let mut cluster = started(Plan::new(3, &origin.url())).await;
    cluster.settled().await.unwrap();
    cluster.control().terminate().await.unwrap();
    for (n, edge) in cluster.edges.iter().enumerate() {
        assert_eq!(
            edge.get(&format!("/{n}")).await.unwrap().text(),
            format!("page {n}")
        );
    }
    // All at once: nobody is left to remember them but they themselves.
    for edge in &mut cluster.edges {
        assert!(edge.terminate().await.unwrap().success());
    }
    for edge in &mut cluster.edges {
        edge.launch().unwrap();
    }
    for edge in &mut cluster.edges {
        edge.ready().await.unwrap();
    }
    cluster.settled().await.unwrap();
    for (n, edge) in cluster.edges.iter().enumerate() {
        let kept = edge.get(&format!("/{n}")).await.unwrap();
        assert!(kept.cache_status().hit, "{:?}", kept.cache_status());
        let new = edge.get(&format!("/{}", n + 3)).await.unwrap();
        assert_eq!(new.text(), format!("page {}", n + 3));
    }
    // They still share.
    heard_of(&cluster.edges[1], "edge-1", 2).await.unwrap();
    let before = origin.requests();
    assert_eq!(cluster.edges[1].get("/3").await.unwrap().text(), "page 3");
    assert_eq!(origin.requests(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_origin_fresh_objects_are_served_and_others_fail_clearly() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    origin.route("/fresh", Answer::bytes("fresh").max_age(600));
    origin.route("/new", Answer::bytes("new").max_age(600));
    edge.get("/fresh").await.unwrap();
    stored(edge, "/fresh").await;
    let address = origin.address();
    drop(origin);
    eventually("the origin is gone", async || {
        ensure!(std::net::TcpStream::connect(address).is_err());
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(edge.get("/fresh").await.unwrap().text(), "fresh");
    let answer = edge.get("/new").await.unwrap();
    assert!(matches!(answer.status, 502 | 504), "{}", answer.status);
    let status = answer.cache_status();
    assert_eq!(
        (status.node.as_str(), status.hit),
        ("edge-1", false),
        "{status:?}"
    );
    assert!(
        !answer.text().contains(&address.to_string()),
        "{}",
        answer.text()
    );
    // And it comes back without anybody touching the edge.
    let origin = Origin::start_at(address, None).await.unwrap();
    origin.route("/new", Answer::bytes("new").max_age(600));
    eventually("it is served again", async || {
        ensure!(edge.get("/new").await?.status == 200);
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_is_asked_to_end_finishes_what_it_sends() {
    let origin = Origin::start().await.unwrap();
    let body = Pattern::new(1, 4 << 20);
    let slow = Answer::pattern(&body)
        .max_age(60)
        .slowly(128 << 10, Duration::from_millis(95));
    origin.route("/slow", slow);
    origin.route("/quick", Answer::bytes("quick").max_age(60));
    let mut cluster = started(Plan::new(2, &origin.url())).await;
    cluster.settled().await.unwrap();
    let fields = [("host", HOST)];
    let url = cluster.edges[0].url("/slow");
    let (parts, body_of_first) = Client::new().begin_get(&url, &fields).await.unwrap();
    let running = tokio::spawn(digest(parts, body_of_first));
    cluster.edges[0].process().ask_to_end();
    let quick = cluster.edges[0].url("/quick");
    eventually("new clients are turned away", async || {
        ensure!(Client::new().get_with(&quick, &fields).await.is_err());
        Ok(())
    })
    .await
    .unwrap();
    assert!(!running.is_finished(), "the transfer ended early");
    let answer = running.await.unwrap().unwrap();
    assert_eq!((answer.status, answer.hash), (200, body.hash()));
    let status = cluster.edges[0].process().wait().await.unwrap();
    assert!(status.success(), "{status}");
    eventually("the other has noticed", async || {
        let peers = cluster.edges[1].peers().await?;
        ensure!(peers.is_empty(), "{peers:?}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_is_rebuilt_from_the_segments() {
    const OBJECTS: usize = 60;
    let (origin, mut cluster) = alone().await;
    let edge = &mut cluster.edges[0];
    let bodies: Vec<_> = (0..OBJECTS)
        .map(|n| Pattern::new(n as u64, 1 + 3_000 * n as u64))
        .collect();
    for (n, body) in bodies.iter().enumerate() {
        origin.route(&format!("/{n}"), Answer::pattern(body).max_age(600));
        assert_eq!(edge.get(&format!("/{n}")).await.unwrap().body, body.bytes());
    }
    edge.terminate().await.unwrap();
    let mut damaged = 0;
    for entry in fs::read_dir(edge.data_dir.join("index")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let length = fs::metadata(&path).unwrap().len();
            let garbage = Pattern::new(99, length.max(64)).bytes();
            fs::write(&path, garbage).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    edge.start().await.unwrap();
    assert!(edge.metric("edge_index_rebuilds_total", &[]).await.unwrap() >= 1.0);
    for (n, body) in bodies.iter().enumerate() {
        let answer = edge.get(&format!("/{n}")).await.unwrap();
        assert_eq!(answer.body, body.bytes());
        assert!(
            answer.cache_status().hit,
            "/{n}: {:?}",
            answer.cache_status()
        );
    }
    assert_eq!(origin.requests(), OBJECTS as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_on_disk_never_reaches_a_client() {
    let origin = Origin::start().await.unwrap();
    // No memory tier to speak of: everything is read from disk.
    let plan = Plan::alone(&origin.url()).edge_setting("cache", "memory", "64KiB");
    let mut cluster = started(plan).await;
    let edge = &mut cluster.edges[0];
    let body = Pattern::new(1, 3 << 20);
    origin.route("/big", Answer::pattern(&body).max_age(600));
    edge.get("/big").await.unwrap();
    stored(edge, "/big").await;
    edge.terminate().await.unwrap();
    for entry in fs::read_dir(edge.data_dir.join("segments")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        // In the middle of the body, wherever it lies.
        let marker = body.chunk(1_500_000, 64);
        if let Some(at) = bytes.windows(64).position(|w| w == &marker[..]) {
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
    edge.start().await.unwrap();
    let fields = [("host", HOST)];
    // The one that meets the damage may be cut short, but is never told a lie.
    if let Ok(answer) = Client::new().digest(&edge.url("/big"), &fields).await {
        assert_eq!(answer.hash, body.hash());
    }
    eventually("it is fetched again", async || {
        let answer = Client::new().digest(&edge.url("/big"), &fields).await?;
        ensure!(answer.hash == body.hash(), "wrong bytes");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(origin.seen("/big").len(), 2);
    let counted = edge
        .metric("edge_checksum_failures_total", &[])
        .await
        .unwrap();
    assert!(counted >= 1.0, "{counted}");
}
