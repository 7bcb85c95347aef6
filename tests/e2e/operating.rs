//! What operators see: metrics that Prometheus takes, commands that answer, an edge that explains
//! itself.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};
use harness::{
    client::Client,
    cluster::Plan,
    origin::{Answer, Origin},
    process::{Process, checkout, eventually, free_port, run},
};

use crate::{installed, started, stored};

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_takes_what_every_node_says() {
    let origin = Origin::start().await.unwrap();
    origin.route("/a", Answer::bytes("a").max_age(60));
    let cluster = started(Plan::new(3, &origin.url())).await;
    cluster.settled().await.unwrap();
    // A label's series appear with the first request.
    for edge in &cluster.edges {
        edge.get("/a").await.unwrap();
        stored(edge, "/a").await;
    }
    for node in cluster.nodes() {
        let text = node.ask("/metrics").await.unwrap().text();
        let families: &[&str] = if node.steer.is_some() {
            &["control_plane_nodes"]
        } else {
            &[
                "edge_requests_total",
                "edge_response_bytes_total",
                "edge_request_duration_seconds",
                "edge_cache_bytes",
                "edge_cache_objects",
                "edge_members",
                "edge_purge_seq_applied",
                "edge_digest_false_hits_total",
            ]
        };
        for family in families {
            assert!(
                text.contains(&format!("# TYPE {family} ")),
                "{}: no {family}",
                node.id
            );
        }
        if let Some(promtool) = installed("promtool") {
            let mut check = Command::new(promtool)
                .args(["check", "metrics"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            check
                .stdin
                .take()
                .unwrap()
                .write_all(text.as_bytes())
                .unwrap();
            let output = check.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success() && said.is_empty(),
                "{}: {said}",
                node.id
            );
        }
    }
    let edge = &cluster.edges[0];
    let hits = edge
        .metric("edge_requests_total", &["site=\"site\"", "outcome=\"hit\""])
        .await;
    assert!(hits.unwrap() >= 1.0);
    assert_eq!(
        edge.metric("edge_origin_requests_total", &["site=\"site\""])
            .await
            .unwrap(),
        1.0
    );

    let Some(prometheus) = installed("prometheus") else {
        return;
    };
    // The configuration that ships with the project, with this cluster's ports.
    let shipped = fs::read_to_string(checkout().join("deploy/prometheus-local.yml")).unwrap();
    let mut config = shipped.replace(
        "alerts.yml",
        checkout().join("deploy/alerts.yml").to_str().unwrap(),
    );
    let control = cluster.control.as_ref().unwrap();
    let ports = [
        ("9091", &cluster.edges[0]),
        ("9092", &cluster.edges[1]),
        ("9093", &cluster.edges[2]),
        ("7900", control),
    ];
    for (usual, node) in ports {
        let usual = format!("127.0.0.1:{usual}");
        assert!(config.contains(&usual), "{shipped}");
        config = config.replace(&usual, &format!("127.0.0.1:{}", node.admin.port()));
    }
    config = config
        .replace("scrape_interval: 5s", "scrape_interval: 1s")
        .replace("scrape_timeout: 4s", "scrape_timeout: 1s");
    let file = cluster.root.join("prometheus.yml");
    fs::write(&file, config).unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let data = cluster.root.join("prometheus");
    let args = [
        format!("--config.file={}", file.display()),
        format!("--web.listen-address={address}"),
        format!("--storage.tsdb.path={}", data.display()),
    ];
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let _process = Process::start("prometheus", &prometheus, &args, &[]).unwrap();
    let client = Client::new();
    eventually("every node is scraped", async || {
        let url = format!("http://{address}/api/v1/query?query=up");
        let answer = client.get(&url).await?.json()?;
        let series = answer["data"]["result"].as_array().context("no result")?;
        let up = series.iter().filter(|s| s["value"][1] == "1").count();
        ensure!(
            (up, series.len()) == (4, 4),
            "{up} of {}: {answer}",
            series.len()
        );
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_commands_answer() {
    let origin = Origin::start().await.unwrap();
    let cluster = started(Plan::new(2, &origin.url())).await;
    cluster.settled().await.unwrap();
    let control = cluster.control.as_ref().unwrap();
    let api = control.url("");
    let ask = async |words: &[&str]| {
        let args = [words, &["--api", &api]].concat();
        run(&control.binary, &args, &[]).await.unwrap()
    };
    eventually("the nodes are listed", async || {
        let (status, table) = ask(&["nodes"]).await;
        ensure!(
            status.success() && table.contains("edge-1") && table.contains("edge-2"),
            "{table}"
        );
        Ok(())
    })
    .await
    .unwrap();
    for (words, key) in [
        (&["nodes", "--json"][..], "nodes"),
        (&["peers", "--node", "edge-1", "--json"], "peers"),
        (&["edges", "--client", "8.8.8.8", "--json"], "edges"),
    ] {
        let (status, said) = ask(words).await;
        assert!(status.success(), "{words:?}: {said}");
        let json: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert!(
            !json[key].as_array().unwrap().is_empty(),
            "{words:?}: {said}"
        );
    }
    let (status, said) = ask(&["peers", "--node", "nobody"]).await;
    assert!(!status.success() && said.contains("nobody"), "{said}");
    let healthy = ["healthy", "--admin", &cluster.edges[0].admin.to_string()];
    let (status, said) = run(&cluster.edges[0].binary, &healthy, &[]).await.unwrap();
    assert!(status.success(), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_explains_what_it_has_and_why() {
    let (origin, cluster) = crate::alone().await;
    let edge = &cluster.edges[0];
    origin.route("/a", Answer::bytes("a").max_age(600));
    edge.get("/a").await.unwrap();
    stored(edge, "/a").await;
    let known = edge.ask("/explain?url=http://site.test/a").await.unwrap();
    assert_eq!(known.status, 200, "{}", known.text());
    let known = known.json().unwrap();
    let key = known["key"].as_str().unwrap();
    assert!(key.parse::<cluster::key::Key>().is_ok(), "{known}");
    let unknown = edge
        .ask("/explain?url=http://site.test/b")
        .await
        .unwrap()
        .json()
        .unwrap();
    assert_ne!(known["key"], unknown["key"]);
    assert_eq!(edge.ask("/livez").await.unwrap().status, 200);
    assert!(edge.ask("/explain?url=nonsense").await.unwrap().status >= 400);
}
