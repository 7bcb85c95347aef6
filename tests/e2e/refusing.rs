//! What must be refused, and how clearly: bad configurations, bad requests, bad origins, strangers.

use std::{fs, path::Path, time::Duration};

use anyhow::ensure;
use cluster::quantity::Span;
use harness::{
    client::{Client, raw, raw_status},
    cluster::{HOST, Node, Plan, write_secret},
    origin::{Answer, Framing, Origin, Script},
    pattern::Pattern,
    process::{Process, eventually, run},
};
use toml::Value;

use crate::{SECOND, alone, started, stored};

/// Checks a node's configuration file; what the command says if it refuses it.
async fn refusal(node: &Node) -> Option<String> {
    let config = node.config.to_str().expect("a readable path");
    let (status, said) = run(&node.binary, &["check", "--config", config], &[])
        .await
        .expect("it runs");
    (!status.success()).then_some(said)
}

/// Starts a node that cannot start; what it says.
async fn failed_start(node: &mut Node) -> String {
    let error = node.start().await.expect_err("it must not start");
    format!("{error:#}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_be_meant_is_refused_by_key_and_value() {
    let mut cluster = Plan::new(2, "http://127.0.0.1:9").prepare().await.unwrap();
    let good = cluster.edges[0].read_config().unwrap();
    for (section, key, value, words) in [
        ("cache", "memry", Value::from("1MiB"), &["memry"][..]),
        ("cache", "memory", "lots".into(), &["cache.memory", "lots"]),
        ("cache", "disk", "1MiB".into(), &["cache.disk", "1MiB"]),
        ("node", "latitude", 91.0.into(), &["node.latitude", "91"]),
        ("node", "id", "No Name".into(), &["node.id", "No Name"]),
        (
            "listen",
            "http",
            "nowhere".into(),
            &["listen.http", "nowhere"],
        ),
        (
            "cluster",
            "seeds",
            Value::Array(vec!["no-port".into()]),
            &["cluster.seeds", "no-port"],
        ),
        (
            "cluster",
            "secret_file",
            "/nonexistent/secret".into(),
            &["cluster.secret_file", "/nonexistent/secret"],
        ),
        ("limits", "head", "1B".into(), &["limits.head", "1B"]),
        ("nonsense", "key", 1.into(), &["nonsense"]),
    ] {
        let edge = &cluster.edges[0];
        edge.configure(section, key, value).unwrap();
        let said = refusal(edge)
            .await
            .unwrap_or_else(|| panic!("{section}.{key} is accepted"));
        for word in words {
            assert!(
                said.contains(word),
                "{section}.{key}: no {word:?} in {said}"
            );
        }
        edge.write_config(&good).unwrap();
    }
    assert_eq!(refusal(&cluster.edges[0]).await, None);
    fs::write(&cluster.edges[0].config, "[node\nid = 1").unwrap();
    assert!(refusal(&cluster.edges[0]).await.is_some());

    let control = cluster.control();
    let good = control.read_config().unwrap();
    let foreign =
        harness::process::checkout().join("cluster/data/maxmind-test/GeoLite2-ASN-Test.mmdb");
    assert!(foreign.is_file());
    let junk = cluster.root.join("junk.mmdb");
    fs::write(&junk, "this is no database").unwrap();
    for path in [Path::new("/nonexistent.mmdb"), &junk, &foreign] {
        let path = path.to_str().unwrap();
        let control = cluster.control();
        control.configure("geo", "database", path).unwrap();
        let said = failed_start(control).await;
        assert!(said.contains(path) && said.contains("database"), "{said}");
    }
    let control = cluster.control();
    control.write_config(&good).unwrap();
    control.configure("listen", "htttp", "127.0.0.1:1").unwrap();
    assert!(refusal(control).await.unwrap().contains("htttp"));
    control.write_config(&good).unwrap();
    control.start().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_way_of_a_start_is_named() {
    let (_origin, mut cluster) = alone().await;
    // A second process on the same address, with a directory of its own.
    let (http, data_dir) = (cluster.edges[0].http, cluster.edges[0].data_dir.clone());
    let other = Plan::alone("http://127.0.0.1:9")
        .prepare()
        .await
        .unwrap()
        .edges
        .remove(0);
    let mut other = other;
    fs::create_dir_all(other.config.parent().unwrap()).unwrap();
    let mut config = cluster.edges[0].read_config().unwrap();
    let mut with = |section: &str, key: &str, value: &str| {
        harness::cluster::set(&mut config, section, key, value);
        config.clone()
    };
    let spare = cluster.root.join("spare");
    with("node", "data_dir", spare.to_str().unwrap());
    let admin = format!("127.0.0.1:{}", harness::process::free_port());
    other
        .write_config(&with("listen", "admin", &admin))
        .unwrap();
    let said = failed_start(&mut other).await;
    assert!(
        said.contains("listen.http") && said.contains(&http.to_string()),
        "{said}"
    );

    // The same directory, on another address.
    let free = format!("127.0.0.1:{}", harness::process::free_port());
    with("listen", "http", &free);
    other
        .write_config(&with("node", "data_dir", data_dir.to_str().unwrap()))
        .unwrap();
    let said = failed_start(&mut other).await;
    assert!(
        said.contains("in use") && said.contains(data_dir.to_str().unwrap()),
        "{said}"
    );

    // A file where the directory should be; a place where nobody may write; a later version's data.
    let file = cluster.root.join("file");
    fs::write(&file, "").unwrap();
    for unusable in [file.to_str().unwrap(), "/proc/cdn-data"] {
        other
            .write_config(&with("node", "data_dir", unusable))
            .unwrap();
        let said = failed_start(&mut other).await;
        assert!(
            said.contains("data_dir") && said.contains(unusable),
            "{said}"
        );
    }
    cluster.edges[0].terminate().await.unwrap();
    fs::write(data_dir.join("VERSION"), "99\n").unwrap();
    let said = failed_start(&mut cluster.edges[0]).await;
    assert!(
        said.contains("99") && said.contains(data_dir.to_str().unwrap()),
        "{said}"
    );
    // Nothing is lost by the attempt.
    fs::write(data_dir.join("VERSION"), "1\n").unwrap();
    cluster.edges[0].start().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_told_so_and_never_reach_the_origin() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let long = "x".repeat(100 << 10);
    for (what, request, statuses) in [
        (
            "an unknown host",
            "GET / HTTP/1.1\r\nHost: elsewhere.test\r\n\r\n".to_owned(),
            &[421][..],
        ),
        ("no host", "GET / HTTP/1.1\r\n\r\n".into(), &[400]),
        (
            "two hosts",
            format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nHost: b.test\r\n\r\n"),
            &[400],
        ),
        (
            "another's URL",
            "GET http://elsewhere.test/ HTTP/1.1\r\nHost: elsewhere.test\r\n\r\n".into(),
            &[421],
        ),
        (
            "a malformed request line",
            format!("GET / nonsense\r\nHost: {HOST}\r\n\r\n"),
            &[400],
        ),
        (
            "no request at all",
            "\u{1}\u{2}\u{3}\r\n\r\n".into(),
            &[400],
        ),
        (
            "a space in a field name",
            format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nbad name: x\r\n\r\n"),
            &[400],
        ),
        (
            "oversized fields",
            format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nx: {long}\r\n\r\n"),
            &[431],
        ),
        (
            "an oversized target",
            format!("GET /{long} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
            &[414],
        ),
        (
            "two lengths",
            format!(
                "POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            &[400],
        ),
        (
            "lengths that differ",
            format!(
                "POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"
            ),
            &[400],
        ),
        (
            "CONNECT",
            "CONNECT elsewhere.test:443 HTTP/1.1\r\nHost: elsewhere.test:443\r\n\r\n".into(),
            &[400, 405, 421],
        ),
    ] {
        // Whatever is kept open is closed by the next, so that reading comes to an end.
        let request =
            request + "GET / HTTP/1.1\r\nHost: elsewhere.test\r\nConnection: close\r\n\r\n";
        let answer = raw(edge.http, request.as_bytes()).await.unwrap();
        let status = raw_status(&answer);
        assert!(
            status.is_some_and(|s| statuses.contains(&s)),
            "{what}: {:.300}",
            String::from_utf8_lossy(&answer)
        );
        // RFC 9211 §2.2: nothing was forwarded.
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains("fwd="), "{what}: {answer:.600}");
        // Each says who has refused it, and why.
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        assert!(
            head.contains("cache-status: edge-1; detail="),
            "{what}: {answer:.600}"
        );
        assert!(body.contains(".\n"), "{what}: {answer:.600}");
    }
    assert_eq!(origin.requests(), 0);
    origin.route("/", Answer::bytes("still here").max_age(60));
    assert_eq!(edge.get("/").await.unwrap().text(), "still here");
    // What only reads like such a refusal is none.
    let text = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    let body = text.repeat(3);
    let answer = Answer::bytes(body.clone()).slowly(text.len(), SECOND / 20);
    origin.route("/text", answer);
    assert_eq!(edge.get("/text").await.unwrap().text(), body);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_over_the_limit_is_told_so_and_never_reaches_the_origin() {
    let (origin, mut cluster) = alone().await;
    origin.route("/upload", Answer::bytes("taken"));
    let edge = &mut cluster.edges[0];
    edge.configure("limits", "body", "64KiB").unwrap();
    edge.terminate().await.unwrap();
    edge.start().await.unwrap();
    let url = edge.url("/upload");
    let post = async |length: usize| {
        let body = vec![b'x'; length].into();
        let client = Client::new();
        let sent = client.send(http::Method::POST, &url, &[("host", HOST)], body);
        sent.await.unwrap().status
    };
    assert_eq!(post(100 << 10).await, 413);
    assert_eq!(origin.requests(), 0);
    assert_eq!(post(60 << 10).await, 200);
    assert_eq!(origin.requests(), 1);
}

/// The control plane closed while the client was sending, which then saw a broken connection and no answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_control_plane_is_not_lost_behind_the_body() {
    let origin = Origin::start().await.unwrap();
    let cluster = started(Plan::new(1, &origin.url())).await;
    let control = cluster.control.as_ref().unwrap().http;
    for (method, path, status) in [
        ("PUT", "/v1/sites/b", 413),
        ("POST", "/v1/purges", 413),
        ("POST", "/v1/tokens", 413),
        ("POST", "/v1/none", 404),
    ] {
        let length = 20 << 20;
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: control\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\nconnection: close\r\n\r\n"
        )
        .into_bytes();
        request.resize(request.len() + length, b' ');
        let answer = raw(control, &request).await.unwrap();
        assert_eq!(raw_status(&answer), Some(status), "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_misbehaves_is_reported_and_never_cached() {
    let origin = Origin::start().await.unwrap();
    let body = Pattern::new(1, 300_000);
    let good = Answer::pattern(&body).max_age(600);
    let plan = Plan::alone(&origin.url()).site(|site| {
        site.first_byte_timeout = Span(SECOND);
        site.between_bytes_timeout = Span(SECOND);
    });
    let cluster = started(plan).await;
    let edge = &cluster.edges[0];
    for (path, script) in [
        (
            "/garbage",
            Script::Raw("\u{0}nonsense nonsense\r\n\r\n".into()),
        ),
        (
            "/half-a-head",
            Script::Raw("HTTP/1.1 200 OK\r\ncontent-le".into()),
        ),
        (
            "/bad-length",
            Script::Raw("HTTP/1.1 200 OK\r\ncontent-length: ten\r\n\r\nabc".into()),
        ),
        ("/closes", Script::Close),
    ] {
        origin.route(path, script);
        let answer = edge.get(path).await.unwrap();
        assert_eq!(answer.status, 502, "{path}: {}", answer.text());
        assert_eq!(answer.cache_status().node, "edge-1", "{path}");
    }
    origin.route("/silent", Script::Silence);
    let answer = edge.get("/silent").await.unwrap();
    assert_eq!(
        (answer.status, answer.cache_status().node.as_str()),
        (504, "edge-1")
    );

    // Once the head is out, the only honest thing left is to break off.
    for (path, answer) in [
        ("/short", good.clone().cut_after(100_000)),
        (
            "/short-chunked",
            good.clone().framing(Framing::Chunked).cut_after(100_000),
        ),
        (
            "/promises-more",
            good.clone()
                .framing(Framing::Claims(400_000))
                .cut_after(300_000),
        ),
        (
            "/falls-silent",
            good.clone().slowly(100_000, Duration::from_secs(20)),
        ),
    ] {
        origin.route(path, answer);
        let url = edge.url(path);
        let outcome = Client::new().digest(&url, &[("host", HOST)]).await;
        assert!(
            outcome
                .as_ref()
                .is_err_and(|e| !format!("{e:#}").contains("too long")),
            "{path}: {outcome:?}"
        );
    }
    // And the moment the origin is well, so is the answer.
    for path in [
        "/garbage",
        "/closes",
        "/silent",
        "/short",
        "/short-chunked",
        "/promises-more",
        "/falls-silent",
    ] {
        origin.route(path, good.clone());
        let answer = edge.get(path).await.unwrap();
        assert_eq!(
            (answer.status, &answer.body),
            (200, &body.bytes()),
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing_but_the_caching() {
    let origin = Origin::start().await.unwrap();
    let body = Pattern::new(1, 1 << 20);
    for n in 0..60 {
        origin.route(&format!("/{n}"), Answer::pattern(&body).max_age(600));
    }
    let plan = Plan::alone(&origin.url()).edge_setting("cache", "memory", "4MiB");
    let mut cluster = plan.prepare().await.unwrap();
    let edge = &mut cluster.edges[0];
    fs::create_dir_all(&edge.data_dir).unwrap();
    // A file system of 24 MiB in a namespace of its own.
    let script = format!(
        "mount -t tmpfs -o size=24m none '{}' && exec '{}' --config '{}'",
        edge.data_dir.display(),
        edge.binary.display(),
        edge.config.display()
    );
    let unshare = Path::new("/usr/bin/unshare");
    let args = ["--user", "--map-root-user", "--mount", "sh", "-c"];
    let attempt = [&args[..], &["mount -t tmpfs none /mnt"]].concat();
    match run(unshare, &attempt, &[]).await {
        Ok((status, _)) if status.success() => {}
        outcome => {
            println!("skipped: no file system of one's own here: {outcome:?}");
            return;
        }
    }
    let args = [&args[..], &[script.as_str()]].concat();
    let process = Process::start("edge-1", unshare, &args, &[]).unwrap();
    let admin = edge.admin;
    eventually("it is ready", async || {
        let ready = Client::new().get(&format!("http://{admin}/readyz")).await?;
        ensure!(ready.status == 200);
        Ok(())
    })
    .await
    .unwrap();
    for n in 0..60 {
        let answer = edge.get(&format!("/{n}")).await.unwrap();
        assert_eq!((answer.status, &answer.body), (200, &body.bytes()), "/{n}");
    }
    let failures = edge
        .metric("edge_disk_write_errors_total", &[])
        .await
        .unwrap();
    assert!(failures >= 1.0, "{failures}");
    let said = process.log().matching("cache cannot be written");
    assert!((1..5).contains(&said.len()), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_the_secret_is_kept_out_and_logged_once() {
    let origin = Origin::start().await.unwrap();
    origin.route("/a", Answer::bytes("a").max_age(600));
    let mut cluster = started(Plan::new(3, &origin.url())).await;
    cluster.settled().await.unwrap();
    // The third edge loses the secret and comes back with another one, under another name.
    cluster.edges[2].terminate().await.unwrap();
    let wrong = cluster.root.join("wrong-secret");
    write_secret(&wrong).unwrap();
    let intruder = &mut cluster.edges[2];
    intruder
        .configure("cluster", "secret_file", wrong.to_str().unwrap())
        .unwrap();
    intruder.configure("node", "id", "intruder").unwrap();
    intruder.launch().unwrap();
    let rejected = "result=\"rejected\"";
    let [one, two, intruder] = &cluster.edges[..] else {
        unreachable!()
    };
    eventually("its datagrams arrive", async || {
        let count = one
            .metric("edge_gossip_datagrams_total", &[rejected])
            .await?;
        ensure!(count >= 10.0, "{count}");
        Ok(())
    })
    .await
    .unwrap();
    for (edge, others) in [(one, vec!["edge-2"]), (two, vec!["edge-1"])] {
        assert_eq!(edge.peers().await.unwrap(), others);
    }
    let nodes = cluster
        .control
        .as_ref()
        .unwrap()
        .ask("/v1/nodes")
        .await
        .unwrap()
        .text();
    assert!(!nodes.contains("intruder"), "{nodes}");
    // The datagrams are refused by the dozen and logged by the piece.
    let warnings = one.log().matching(" WARN ");
    let about: Vec<_> = warnings
        .iter()
        .filter(|l| l.contains("datagram") || l.contains("gossip"))
        .collect();
    assert!(about.len() <= 2, "{about:#?}");
    assert!(intruder.peers().await.unwrap_or_default().is_empty());

    // The peer listener gives it nothing.
    one.get("/a").await.unwrap();
    stored(one, "/a").await;
    let peer = one.peer.unwrap();
    for path in [
        "/v1/digest",
        "/v1/hold/00000000000000000000000000000000",
        "/a",
        "/",
    ] {
        for forged in [
            "",
            "cdn-node: edge-2\r\ncdn-time: 0\r\ncdn-nonce: 00\r\ncdn-mac: 00\r\n",
        ] {
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{forged}Connection: close\r\n\r\n");
            let answer = raw(peer, request.as_bytes()).await.unwrap();
            assert!(
                answer.is_empty(),
                "{path}: {}",
                String::from_utf8_lossy(&answer)
            );
        }
    }
    let warnings = one.log().matching("peer request refused");
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
}
