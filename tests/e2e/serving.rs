//! One edge in front of one origin: what HTTP promises to clients and to origins.

use std::time::Duration;

use harness::{
    cache_status::Source,
    client::{Client, digest, get_h2c, raw, raw_status},
    cluster::HOST,
    origin::{Answer, Framing, Script},
    pattern::Pattern,
    process::{Binaries, Process, eventually, free_port},
};
use http::Method;

use crate::{SECOND, alone, stored};

/// Most that a node takes which holds nothing: some 24 MiB are usual.
const IDLE_BYTES_MAX: u64 = 40 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_fetched_once_and_answers_everybody_after() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let body = Pattern::new(1, 100_000);
    origin.route(
        "/page",
        Answer::pattern(&body).max_age(60).field("etag", "\"v1\""),
    );

    let first = edge.get("/page").await.unwrap();
    assert_eq!((first.status, &first.body), (200, &body.bytes()));
    let status = first.cache_status();
    assert_eq!(
        (status.node.as_str(), status.source()),
        ("edge-1", Source::Origin)
    );
    assert_eq!(status.fwd.as_deref(), Some("uri-miss"));
    assert!(status.stored && first.field("via").is_some());

    stored(edge, "/page").await;
    let second = edge.get("/page").await.unwrap();
    assert_eq!(second.body, first.body);
    assert!(second.field("age").is_some() && second.field("etag") == Some("\"v1\""));
    let ttl = second.cache_status().ttl.unwrap();
    assert!((1..=60).contains(&ttl), "{ttl}");

    let unchanged = edge
        .get_with("/page", &[("if-none-match", "\"v1\"")])
        .await
        .unwrap();
    assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
    let part = edge
        .get_with("/page", &[("range", "bytes=70000-70099")])
        .await
        .unwrap();
    assert_eq!(
        (part.status, &part.body[..]),
        (206, &body.bytes()[70_000..70_100])
    );
    assert_eq!(
        part.field("content-range"),
        Some("bytes 70000-70099/100000")
    );
    let beyond = edge
        .get_with("/page", &[("range", "bytes=100000-")])
        .await
        .unwrap();
    assert_eq!(beyond.status, 416);
    let url = edge.url("/page");
    let head = Client::new()
        .send(Method::HEAD, &url, &[("host", HOST)], "".into())
        .await
        .unwrap();
    assert_eq!(
        (head.status, head.field("content-length")),
        (200, Some("100000"))
    );
    assert_eq!(origin.seen("/page").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_private_is_asked_for_every_time() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    origin.route(
        "/private",
        Answer::bytes("p").field("cache-control", "Private, max-age=60"),
    );
    origin.route(
        "/no-store",
        Answer::bytes("n").field("cache-control", "no-store"),
    );
    origin.route(
        "/cookie",
        Answer::bytes("c").max_age(60).field("set-cookie", "id=1"),
    );
    origin.route("/authorized", Answer::bytes("a").max_age(60));
    for (path, fields) in [
        ("/private", &[][..]),
        ("/no-store", &[]),
        ("/cookie", &[]),
        ("/authorized", &[("authorization", "Basic eDp5")]),
    ] {
        for _ in 0..3 {
            let answer = edge.get_with(path, fields).await.unwrap();
            assert_eq!(
                (answer.status, answer.cache_status().hit),
                (200, false),
                "{path}"
            );
        }
        assert_eq!(origin.seen(path).len(), 3, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn variants_are_kept_apart() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    origin.route_by("/", |seen| {
        let language = seen.field("accept-language").unwrap_or("none").to_owned();
        Answer::bytes(language)
            .max_age(60)
            .field("vary", "Accept-Language")
            .into()
    });
    for _ in 0..2 {
        for language in ["de", "fr"] {
            let answer = edge
                .get_with("/", &[("accept-language", language)])
                .await
                .unwrap();
            assert_eq!(answer.text(), language);
        }
        tokio::time::sleep(SECOND / 4).await;
    }
    assert_eq!(origin.seen("/").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_went_stale_is_validated_not_fetched_again() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let body = Pattern::new(2, 50_000);
    origin.route(
        "/page",
        Answer::pattern(&body).max_age(1).field("etag", "\"v1\""),
    );
    assert_eq!(edge.get("/page").await.unwrap().body, body.bytes());
    tokio::time::sleep(SECOND * 5 / 2).await;
    assert_eq!(edge.get("/page").await.unwrap().body, body.bytes());
    let seen = origin.seen("/page");
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[1].field("if-none-match"), Some("\"v1\""));
    assert_eq!(origin.body_bytes(), 50_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_upload_streams_through() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    origin.route("/up", Answer::bytes("thanks"));
    let body = Pattern::new(3, 20 << 20);
    let fields = [("host", HOST)];
    let answer = Client::new()
        .upload(&edge.url("/up"), &fields, &body)
        .await
        .unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "thanks"));
    let seen = &origin.seen("/up")[0];
    assert_eq!((seen.body_bytes, seen.body_hash), (20 << 20, body.hash()));
    assert_eq!(seen.method, "POST");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_origin_learns_of_the_client_and_hop_by_hop_fields_stay_behind() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    origin.route(
        "/",
        Answer::bytes("x")
            .field("keep-alive", "timeout=5")
            .field("x-own", "1"),
    );
    let fields = [
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("te", "gzip"),
        ("x-forwarded-for", "192.0.2.7"),
    ];
    let answer = edge.get_with("/?q=1", &fields).await.unwrap();
    assert_eq!(
        (answer.field("keep-alive"), answer.field("x-own")),
        (None, Some("1"))
    );
    let seen = &origin.seen("/")[0];
    assert_eq!(
        (seen.target.as_str(), seen.field("host")),
        ("/?q=1", Some(HOST))
    );
    for gone in ["x-hop", "te"] {
        assert_eq!(seen.field(gone), None, "{gone}");
    }
    let forwarded_for = seen.field("x-forwarded-for").unwrap();
    assert!(forwarded_for.ends_with("127.0.0.1"), "{forwarded_for}");
    assert_eq!(seen.field("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.field("x-forwarded-host"), Some(HOST));
    assert!(seen.field("forwarded").unwrap().contains("127.0.0.1"));
    assert!(seen.field("via").is_some() && seen.field("cdn-loop").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_is_tunnelled() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (origin, cluster) = alone().await;
    origin.route("/chat", Script::Echo);
    let mut stream = tokio::net::TcpStream::connect(cluster.edges[0].http)
        .await
        .unwrap();
    let head = format!(
        "GET /chat HTTP/1.1\r\nhost: {HOST}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert_eq!(
        raw_status(&answer),
        Some(101),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    for word in ["hello", "and again"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut echo = vec![0; word.len()];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, word.as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_without_tls_is_spoken() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let body = Pattern::new(4, 3 << 20);
    origin.route(
        "/big",
        Answer::pattern(&body).max_age(60).framing(Framing::Chunked),
    );
    for _ in 0..2 {
        let answer = get_h2c(edge.http, HOST, "/big").await.unwrap();
        assert_eq!((answer.status, answer.hash), (200, body.hash()));
    }
    let stranger = get_h2c(edge.http, "elsewhere.test", "/big").await.unwrap();
    assert_eq!(stranger.status, 421);
    assert_eq!(origin.seen("/big").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_growing_body_is_shared_and_outlives_the_client_that_began_it() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let body = Pattern::new(5, 4 << 20);
    // Three seconds long.
    let slow = Answer::pattern(&body)
        .max_age(60)
        .slowly(128 << 10, Duration::from_millis(95));
    origin.route("/slow", slow);
    let fields = [("host", HOST)];
    let url = edge.url("/slow");
    let beginner = Client::new();
    let (parts, mut first) = beginner.begin_get(&url, &fields).await.unwrap();
    assert_eq!(parts.status, 200);
    http_body_util::BodyExt::frame(&mut first)
        .await
        .unwrap()
        .unwrap();
    // The second is under way while the first leaves.
    let (parts, second) = Client::new().begin_get(&url, &fields).await.unwrap();
    let second = tokio::spawn(digest(parts, second));
    drop(first);
    drop(beginner);
    let third = Client::new().digest(&url, &fields).await.unwrap();
    let second = second.await.unwrap().unwrap();
    assert_eq!((second.hash, third.hash), (body.hash(), body.hash()));
    // It had its first bytes long before the origin had sent the last.
    assert!(second.last_byte - second.first_byte > SECOND);
    assert_eq!(origin.seen("/slow").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_clients_of_a_cold_object_are_one_request_to_the_origin() {
    const CLIENTS: usize = 100;
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let body = Pattern::new(6, 2 << 20);
    // A second of thought, then three and a half of body.
    let slow = Answer::pattern(&body)
        .max_age(60)
        .head_after(SECOND)
        .slowly(64 << 10, Duration::from_millis(110));
    origin.route("/cold", slow);
    let clients = (0..CLIENTS).map(|_| {
        let url = edge.url("/cold");
        tokio::spawn(async move { Client::new().digest(&url, &[("host", HOST)]).await })
    });
    let mut first_bytes = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        let answer = client.await.unwrap().unwrap();
        assert_eq!((answer.status, answer.hash), (200, body.hash()));
        first_bytes.push(answer.first_byte);
    }
    let first = first_bytes.iter().min().unwrap();
    let spread = first_bytes.iter().max().unwrap().duration_since(*first);
    println!("first bytes of {CLIENTS} clients within {spread:?}");
    // 50 ms on a machine of its own; here, far less than the body takes.
    assert!(spread < SECOND, "{spread:?}");
    assert_eq!(origin.seen("/cold").len(), 1);
}

/// Regression: 20 MiB of it were histograms of the index that nobody reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_holds_nothing_takes_little_memory() {
    let origin = harness::origin::Origin::start().await.unwrap();
    let mut cluster = crate::started(harness::cluster::Plan::alone(&origin.url())).await;
    let bytes = cluster.edges[0].process().resident_bytes().unwrap();
    println!("{} MiB", bytes >> 20);
    assert!(bytes < IDLE_BYTES_MAX, "{} MiB resident", bytes >> 20);
}

/// The tier is what an operator sets aside for objects. Beside it a node takes some memory for what it is and
/// does, however many objects there are: so much at most, at any moment.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_takes_little_memory_beyond_the_tier() {
    const TIER_MIB: u64 = 32;
    const BEYOND_MIB: u64 = 150;
    const SMALL: usize = 20_000;
    const AT_ONCE: usize = 32;
    let origin = harness::origin::Origin::start().await.unwrap();
    let plan = harness::cluster::Plan::alone(&origin.url()).edge_setting(
        "cache",
        "memory",
        format!("{TIER_MIB}MiB"),
    );
    let mut cluster = crate::started(plan).await;
    // From 1 to 8 KiB: 90 MiB together.
    let bytes = Pattern::new(5, 8 << 10).bytes();
    let small = |n: usize| bytes.slice(..1024 + n * 7919 % 7169);
    for n in 0..SMALL {
        let answer = Answer::bytes(small(n)).max_age(3600);
        origin.route(&format!("/small/{n}"), answer);
    }
    let large = Pattern::new(6, 32 << 20);
    for n in 0..4 {
        let answer = Answer::pattern(&large).max_age(3600);
        origin.route(&format!("/large/{n}"), answer);
    }
    let edge = &cluster.edges[0];
    // All of them, and then some again: what was evicted comes back from disk.
    for step in [1, 8] {
        let asking = (0..AT_ONCE).map(|first| async move {
            let client = Client::new();
            for n in (first * step..SMALL).step_by(AT_ONCE * step) {
                let url = edge.url(&format!("/small/{n}"));
                let answer = client.get_with(&url, &[("host", HOST)]).await.unwrap();
                assert!(answer.body == small(n), "/small/{n}");
            }
        });
        futures_util::future::join_all(asking).await;
        let asking = (0..AT_ONCE).map(|n| {
            let (large, path) = (&large, format!("/large/{}", n % 4));
            async move {
                let (client, url) = (Client::new(), edge.url(&path));
                let whole = client.digest(&url, &[("host", HOST)]).await.unwrap();
                assert_eq!((whole.status, whole.hash), (200, large.hash()));
                let fields = [("host", HOST), ("range", "bytes=1000-66535")];
                let part = client.digest(&url, &fields).await.unwrap();
                let expected = (206, large.hash_of(1000, 66536));
                assert_eq!((part.status, part.hash), expected);
            }
        });
        futures_util::future::join_all(asking).await;
    }
    assert_eq!(origin.requests(), SMALL as u64 + 4);
    let held = edge.metric("edge_cache_bytes", &["tier=\"memory\""]);
    let held = held.await.unwrap() as u64;
    // Else there would be no tier to be beyond.
    assert!(held > TIER_MIB << 19, "{} KiB in memory", held >> 10);
    let peak = cluster.edges[0].process().peak_resident_bytes().unwrap();
    println!(
        "{} MiB beyond {TIER_MIB}",
        (peak >> 20) as i64 - TIER_MIB as i64
    );
    let bound = (TIER_MIB + BEYOND_MIB) << 20;
    assert!(peak < bound, "{} MiB resident at most", peak >> 20);
}

/// 4 GiB with `TESTS_BODY_MIB=4096`.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_larger_than_memory_passes_in_little_memory() {
    let mib = std::env::var_os("TESTS_BODY_MIB");
    let mib: u64 = mib.map_or(1024, |v| v.to_str().unwrap().parse().unwrap());
    let origin = harness::origin::Origin::start().await.unwrap();
    let plan = harness::cluster::Plan::alone(&origin.url())
        .edge_setting("cache", "memory", "64MiB")
        // An object may take three quarters of the disk at most.
        .edge_setting("cache", "disk", format!("{}MiB", mib * 3));
    let mut cluster = crate::started(plan).await;
    let body = Pattern::new(7, mib << 20);
    origin.route("/huge", Answer::pattern(&body).max_age(3600));
    let url = cluster.edges[0].url("/huge");
    let fetch = |url: String| {
        tokio::spawn(async move { Client::new().digest(&url, &[("host", HOST)]).await })
    };
    let mut most = 0;
    for (times, source) in [(1, Source::Origin), (2, Source::Hit)] {
        let fetching = fetch(url.clone());
        while !fetching.is_finished() {
            most = most.max(cluster.edges[0].process().resident_bytes().unwrap());
            tokio::time::sleep(SECOND / 20).await;
        }
        let answer = fetching.await.unwrap().unwrap();
        assert_eq!(
            (answer.bytes, answer.hash),
            (mib << 20, body.hash()),
            "time {times}"
        );
        assert_eq!(answer.cache_status().source(), source);
    }
    println!("{mib} MiB in at most {} MiB", most >> 20);
    assert!(most < 300 << 20, "{} MiB resident", most >> 20);
    assert_eq!(origin.seen("/huge").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_flag_makes_a_useful_cache() {
    let origin = harness::origin::Origin::start().await.unwrap();
    origin.route("/page", Answer::bytes("hello").max_age(60));
    let dir = tempfile::tempdir().unwrap();
    let (listen, admin) = (free_port(), free_port());
    let args = [
        "--origin",
        &origin.url(),
        "--listen",
        &format!("127.0.0.1:{listen}"),
        "--admin",
        &format!("127.0.0.1:{admin}"),
        "--data-dir",
        dir.path().to_str().unwrap(),
    ];
    let binary = &Binaries::find().await.unwrap().edge_node;
    let _edge = Process::start("alone", binary, &args, &[]).unwrap();
    let client = Client::new();
    let url = format!("http://127.0.0.1:{listen}/page");
    for host in ["one.example", "two.example", "127.0.0.1"] {
        let hit = eventually("a hit", async || {
            let answer = client.get_with(&url, &[("host", host)]).await?;
            anyhow::ensure!(answer.cache_status().hit, "{:?}", answer.cache_status());
            Ok(answer)
        });
        assert_eq!(hit.await.unwrap().text(), "hello");
    }
    let ready = client
        .get(&format!("http://127.0.0.1:{admin}/readyz"))
        .await
        .unwrap();
    assert_eq!(ready.status, 200);
    let bare = raw(
        ([127, 0, 0, 1], listen).into(),
        b"GET /page HTTP/1.0\r\nHost: a.test\r\n\r\n",
    )
    .await;
    assert!(bare.unwrap().ends_with(b"hello"));
}
