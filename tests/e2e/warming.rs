//! URLs fetched ahead of demand: by the operator's command, through restarts of everybody, and out of
//! the way of those who ask.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use cluster::{
    quantity::Span,
    wire::{WarmNode, WarmSource, WarmState, WarmStatus},
};
use harness::{
    cache_status::Source,
    client::{Client, Response},
    cluster::{Cluster, HOST, Node, Plan},
    origin::{Answer, Origin},
    process::{eventually, run},
};
use http::Method;
use serde_json::json;
use tokio::sync::watch;

use crate::{SECOND, heard_of, started, stored};

const JSON: (&str, &str) = ("content-type", "application/json");

/// A request to the control plane.
async fn call(control: &Node, method: Method, path: &str, body: &serde_json::Value) -> Response {
    let body = Bytes::from(body.to_string());
    let url = control.url(path);
    let sent = Client::new().send(method, &url, &[JSON], body).await;
    sent.unwrap()
}

/// Takes a job.
async fn taken(control: &Node, job: &serde_json::Value) -> WarmStatus {
    let answer = call(control, Method::POST, "/v1/warm", job).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    let status: WarmStatus = serde_json::from_slice(&answer.body).unwrap();
    let at = format!("/v1/warm/{}", status.id);
    assert_eq!(answer.field("location"), Some(&*at));
    status
}

/// The plan, started; its control plane knows every edge.
async fn known(plan: Plan) -> Cluster {
    let cluster = started(plan).await;
    let control = cluster.control.as_ref().unwrap();
    eventually("the control plane knows all edges", async || {
        let nodes = control.ask("/v1/nodes").await?.text();
        let ready = nodes.matches(r#""phase":"ready""#).count();
        ensure!(ready > cluster.edges.len(), "{nodes}");
        Ok(())
    })
    .await
    .unwrap();
    cluster
}

async fn looked_at(control: &Node, id: &str) -> Result<WarmStatus> {
    let answer = control.ask(&format!("/v1/warm/{id}")).await?;
    ensure!(answer.status == 200, "{}", answer.text());
    Ok(serde_json::from_slice(&answer.body)?)
}

/// Waits until `fits` holds of a job.
async fn until(control: &Node, id: &str, fits: impl Fn(&WarmStatus) -> bool) -> WarmStatus {
    eventually("the job is so far", async || {
        let status = looked_at(control, id).await?;
        ensure!(fits(&status), "{status:?}");
        Ok(status)
    })
    .await
    .unwrap()
}

fn is_done(status: &WarmStatus) -> bool {
    status.state == WarmState::Done
}

fn settled(status: &WarmStatus) -> usize {
    let nodes = status.nodes.iter();
    nodes.map(|node| node.done + node.failed).sum()
}

fn from(node: &WarmNode, source: WarmSource) -> usize {
    node.sources.get(&source).map_or(0, |tally| tally.objects)
}

/// Of what varies by `Accept-Encoding`, what browsers and programs ask for is there; of what varies by another
/// field, what a request without it gets.
#[tokio::test(flavor = "multi_thread")]
async fn the_encodings_that_clients_ask_for_are_fetched_as_well() {
    let origin = Origin::start().await.unwrap();
    origin.route_by("/page", |seen| {
        let coding = match seen.field("accept-encoding") {
            None => "identity",
            Some(said) if said.contains("zstd") => "zstd",
            Some(said) if said.contains("br") => "br",
            Some(_) => "gzip",
        };
        let answer = Answer::bytes(format!("{coding:8}"))
            .max_age(600)
            .field("vary", "accept-encoding")
            .field("x-coding", coding);
        answer.into()
    });
    let spoken = Answer::bytes("hello").max_age(600);
    origin.route("/spoken", spoken.field("vary", "accept-language"));
    let cluster = known(Plan::new(1, &origin.url())).await;
    let control = cluster.control.as_ref().unwrap();
    let job = json!({"site": "site", "urls": ["/page", "/spoken"]});
    let job = taken(control, &job).await;
    let done = until(control, &job.id, is_done).await;
    assert_eq!((done.nodes[0].done, done.nodes[0].bytes), (2, 4 * 8 + 5));
    assert_eq!(origin.requests(), 5);
    let url = cluster.edges[0].url("/page");
    for (accepted, coding) in [
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip, deflate, br", "br"),
        ("br, deflate, gzip", "br"),
        ("gzip", "gzip"),
    ] {
        let fields = [("host", HOST), ("accept-encoding", accepted)];
        let answer = Client::new().get_with(&url, &fields).await.unwrap();
        assert_eq!(answer.field("x-coding"), Some(coding), "{accepted}");
        assert!(answer.cache_status().hit, "{accepted}: {answer:?}");
    }
    assert_eq!(origin.requests(), 5);
}

/// The edges find each other's objects, and the origin is asked once for each: what one edge has been
/// given, the others get from it.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_edge_was_given_the_others_get_from_it() {
    const OBJECTS: usize = 20;
    let origin = Origin::start().await.unwrap();
    let paths: Vec<_> = (0..OBJECTS).map(|n| format!("/{n}")).collect();
    for path in &paths {
        origin.route(path, Answer::bytes(path.repeat(100)).max_age(600));
    }
    let cluster = known(Plan::new(3, &origin.url())).await;
    cluster.settled().await.unwrap();
    let control = cluster.control.as_ref().unwrap();
    let first = json!({"site": "site", "urls": paths, "nodes": ["edge-1"]});
    let job = taken(control, &first).await;
    let done = until(control, &job.id, is_done).await;
    let [one] = &done.nodes[..] else {
        panic!("{done:?}")
    };
    let bytes = paths.iter().map(|path| path.len() as u64 * 100).sum();
    assert_eq!(
        (one.done, one.failed, one.bytes),
        (OBJECTS, 0, bytes),
        "{one:?}"
    );
    assert_eq!(from(one, WarmSource::Origin), OBJECTS, "{one:?}");
    assert_eq!(origin.requests(), OBJECTS as u64);
    for edge in &cluster.edges[1..] {
        heard_of(edge, "edge-1", OBJECTS as u64).await.unwrap();
    }
    let list = paths.join("\n");
    let job = taken(control, &json!({"site": "site", "list": list})).await;
    let done = until(control, &job.id, is_done).await;
    assert_eq!(
        from(&done.nodes[0], WarmSource::Stored),
        OBJECTS,
        "{done:?}"
    );
    for other in &done.nodes[1..] {
        // A digest claims by 16 bits, so a peer that has nothing may be asked in vain; rarely.
        assert!(from(other, WarmSource::Peer) > OBJECTS / 2, "{other:?}");
        assert_eq!((other.done, other.bytes), (OBJECTS, bytes), "{other:?}");
    }
    for edge in &cluster.edges {
        for path in &paths {
            let answer = edge.get(path).await.unwrap();
            assert_eq!(answer.cache_status().source(), Source::Hit, "{path}");
            assert_eq!(answer.text(), path.repeat(100));
        }
    }
    let warmed = cluster.edges[1].metric("edge_warmed_total", &["from=\"peer\""]);
    assert!(warmed.await.unwrap() > 0.0);
    // Nobody had asked for any of it.
    let requests = cluster.edges[1].metric("edge_requests_total", &["outcome=\"miss\""]);
    assert!(requests.await.unwrap() < 0.5);
    // The origin is not told of a client that is not there.
    let seen = &origin.seen(&paths[0])[0];
    assert_eq!(seen.field("x-forwarded-for"), None);
    assert!(seen.field("forwarded").unwrap().starts_with("for=unknown;"));
}

/// `kill -9` of an edge, then of the control plane, in the middle of a job: it goes on where it was, and
/// everything has been fetched in the end, and counted once.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_where_it_was_after_everybody_was_killed() {
    const OBJECTS: usize = 120;
    let origin = Origin::start().await.unwrap();
    let list: String = (0..OBJECTS).map(|n| format!("/{n}\n")).collect();
    for n in 0..OBJECTS {
        let answer = Answer::bytes("object").max_age(600);
        origin.route(&format!("/{n}"), answer.head_after(SECOND / 4));
    }
    let mut cluster = known(Plan::new(2, &origin.url())).await;
    cluster.settled().await.unwrap();
    let job = json!({"site": "site", "list": list});
    let job = taken(cluster.control.as_ref().unwrap(), &job).await;
    let begun = |status: &WarmStatus| status.nodes.iter().all(|node| node.done >= 10);
    let begun = until(cluster.control.as_ref().unwrap(), &job.id, begun).await;
    tokio::time::sleep(SECOND).await;
    cluster.edges[1].kill9().await.unwrap();
    let waits = |status: &WarmStatus| status.nodes[1].trouble.is_some();
    let killed = until(cluster.control.as_ref().unwrap(), &job.id, waits).await;
    assert_eq!(killed.state, WarmState::Running);
    // What is known now is on disk a second later.
    tokio::time::sleep(SECOND * 2).await;
    cluster.control().kill9().await.unwrap();
    cluster.edges[1].start().await.unwrap();
    cluster.control().start().await.unwrap();
    let control = cluster.control.as_ref().unwrap();
    let again = looked_at(control, &job.id).await.unwrap();
    assert!(settled(&again) >= settled(&killed), "{killed:?}\n{again:?}");
    let done = until(control, &job.id, is_done).await;
    for node in &done.nodes {
        assert_eq!((node.done, node.failed), (OBJECTS, 0), "{node:?}");
        assert_eq!(node.bytes, 6 * OBJECTS as u64, "{node:?}");
        assert_eq!(node.trouble, None);
    }
    // Nothing is lost that was there a second before its node was killed.
    let young = killed.nodes[1].done - begun.nodes[1].done;
    for (edge, may_lack) in cluster.edges.iter().zip([0, young]) {
        let mut lacks = Vec::new();
        for n in 0..OBJECTS {
            let answer = edge.get(&format!("/{n}")).await.unwrap();
            if answer.cache_status().source() != Source::Hit {
                lacks.push(n);
            }
        }
        assert!(lacks.len() <= may_lack, "{lacks:?}, of {may_lack}");
    }
    // It has ended for good.
    cluster.control().terminate().await.unwrap();
    cluster.control().start().await.unwrap();
    let control = cluster.control.as_ref().unwrap();
    assert_eq!(looked_at(control, &job.id).await.unwrap(), done);
}

/// While clients have all places at the origin, a warming waits; they do not wait for it. A job that is
/// cancelled begins nothing more.
#[tokio::test(flavor = "multi_thread")]
async fn clients_come_first_and_a_cancelled_job_stops() {
    const PLACES: u32 = 2;
    let origin = Origin::start().await.unwrap();
    let open = watch::Sender::new(false);
    for n in 0..PLACES {
        let answer = Answer::bytes("held").max_age(600);
        origin.route(&format!("/held/{n}"), answer.held(open.subscribe()));
    }
    for n in 0..20 {
        origin.route(&format!("/{n}"), Answer::bytes("ahead").max_age(600));
    }
    let long = Span(Duration::from_secs(300));
    let plan = Plan::new(1, &origin.url()).site(|site| {
        site.origin_concurrency = Some(PLACES);
        site.first_byte_timeout = long;
        site.origin_queue_timeout = Some(long);
    });
    let cluster = known(plan).await;
    let (control, edge) = (cluster.control.as_ref().unwrap(), &cluster.edges[0]);
    let asking: Vec<_> = (0..PLACES)
        .map(|n| {
            let url = edge.url(&format!("/held/{n}"));
            tokio::spawn(async move { Client::new().get_with(&url, &[("host", HOST)]).await })
        })
        .collect();
    eventually("both are at the origin", async || {
        ensure!(origin.requests() == u64::from(PLACES));
        Ok(())
    })
    .await
    .unwrap();
    let urls: Vec<_> = (0..20).map(|n| format!("/{n}")).collect();
    let job = json!({"site": "site", "urls": urls});
    let (first, second) = (taken(control, &job).await, taken(control, &job).await);
    eventually("the warming gives way", async || {
        let shed = edge
            .metric("edge_shed_total", &["reason=\"unwanted\""])
            .await?;
        ensure!(shed > 8.0, "{shed}");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(origin.requests(), u64::from(PLACES));
    let queue = edge.metric("edge_origin_queue", &[]).await.unwrap();
    assert!(queue < 0.5, "{queue} stand in line");
    let status = looked_at(control, &first.id).await.unwrap();
    assert_eq!((status.state, settled(&status)), (WarmState::Running, 0));

    let at = format!("/v1/warm/{}", second.id);
    let answer = call(control, Method::DELETE, &at, &json!(null)).await;
    assert_eq!(answer.json().unwrap()["state"], "cancelled");
    open.send_replace(true);
    for answer in asking {
        let answer = answer.await.unwrap().unwrap();
        assert_eq!((answer.status, &*answer.text()), (200, "held"));
    }
    let done = until(control, &first.id, is_done).await;
    assert_eq!(done.nodes[0].done, 20, "{done:?}");
    let cancelled = looked_at(control, &second.id).await.unwrap();
    assert_eq!(
        (cancelled.state, settled(&cancelled)),
        (WarmState::Cancelled, 0)
    );
    let jobs = control.ask("/v1/warm").await.unwrap().json().unwrap();
    let jobs: Vec<_> = jobs["jobs"].as_array().unwrap().iter().collect();
    let states: Vec<_> = jobs
        .iter()
        .map(|job| job["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["cancelled", "done"]);
}

/// The operator's command: what it shows, how it ends, and what it says of what failed.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_waits_and_names_what_failed() {
    let origin = Origin::start().await.unwrap();
    origin.route("/good", Answer::bytes("good").max_age(600));
    origin.route("/gone", Answer::status(404).max_age(60));
    let private = Answer::bytes("mine").field("cache-control", "private, max-age=60");
    origin.route("/private", private);
    let cluster = known(Plan::new(2, &origin.url())).await;
    cluster.settled().await.unwrap();
    let control = cluster.control.as_ref().unwrap();
    let warm = async |more: &[&str]| {
        let api = control.url("");
        let args = [&["warm", "--api", &api], more].concat();
        let (status, output) = run(&control.binary, &args, &[]).await.unwrap();
        (status.code(), output)
    };
    let (code, output) = warm(&["--site", "site", "--url", "/good", "--wait"]).await;
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("2 of 2 fetches, 8B, 0 failed"), "{output}");
    for edge in &cluster.edges {
        stored(edge, "/good").await;
    }
    let list = cluster.root.join("list");
    std::fs::write(&list, "# what readers want\n/good\n/gone\n\n/private\n").unwrap();
    let list = list.to_string_lossy();
    let args = [
        "--site", "site", "--list", &list, "--node", "edge-2", "--wait",
    ];
    let (code, output) = warm(&args).await;
    assert_eq!(code, Some(1), "{output}");
    for words in [
        "3 of 3 fetches",
        "2 failed",
        "edge-2: http://site.test/gone: answered 404",
        "edge-2: http://site.test/private: may not be stored: ",
        "2 fetches failed; mend what the reasons name",
    ] {
        assert!(output.contains(words), "{words}: {output}");
    }
    let (code, output) = warm(&["--jobs", "--json"]).await;
    let jobs: serde_json::Value = serde_json::from_str(&output).unwrap();
    assert_eq!(code, Some(0));
    let id = jobs["jobs"][0]["id"].as_str().context("an id").unwrap();
    let (code, output) = warm(&["--status", id]).await;
    assert!(code == Some(0) && output.contains("done"), "{output}");
    for (args, code, words) in [
        (
            &["--site", "elsewhere", "--url", "/"][..],
            1,
            "site: no site \"elsewhere\"",
        ),
        (&["--site", "site"], 1, "give --url URL or --list FILE"),
        (
            &["--site", "site", "--list", "/none"],
            1,
            "/none: No such file",
        ),
        (&["--site", "site", "--url", "x"], 1, "urls[0]: "),
        (&["--status", "0"], 1, "GET /v1/warm lists them"),
        (&["--url", "/"], 2, "--site"),
        (&["--jobs", "--wait"], 2, "cannot be used with"),
    ] {
        let (ended, output) = warm(args).await;
        assert_eq!(ended, Some(code), "{args:?}: {output}");
        assert!(output.contains(words), "{args:?}: {output}");
    }
}

/// What must not be taken is refused with the right status, and the field is named.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_must_not_be_taken_is_refused() {
    let origin = Origin::start().await.unwrap();
    let cluster = known(Plan::new(1, &origin.url())).await;
    let control = cluster.control.as_ref().unwrap();
    let url = control.url("/v1/warm");
    let post = async |fields: &[(&str, &str)], body: &str| {
        let body = Bytes::from(body.to_owned());
        Client::new()
            .send(Method::POST, &url, fields, body)
            .await
            .unwrap()
    };
    let good = r#"{"site": "site", "urls": ["/"]}"#;
    let forwarded = ("x-forwarded-for", "192.0.2.1");
    let large = format!(r#"{{"site": "site", "list": "{}"}}"#, "x".repeat(17 << 20));
    for (fields, body, status, words) in [
        (&[JSON, forwarded][..], good, 403, "only from the machine"),
        (&[], good, 415, "Content-Type"),
        (&[JSON], "{", 400, "JSON"),
        (
            &[JSON],
            r#"{"site": "site", "url": "/"}"#,
            422,
            "unknown field `url`",
        ),
        (&[JSON], r#"{"site": "site", "urls": "/"}"#, 422, "urls"),
        (
            &[JSON],
            r#"{"site": "other", "urls": ["/"]}"#,
            400,
            "\"field\":\"site\"",
        ),
        (
            &[JSON],
            r#"{"site": "site", "urls": ["http://x.test/"]}"#,
            400,
            "\"field\":\"urls\"",
        ),
        (
            &[JSON],
            r#"{"site": "site", "urls": ["/"], "nodes": ["x"]}"#,
            400,
            "\"field\":\"nodes\"",
        ),
        (
            &[JSON],
            r#"{"site": "site", "urls": ["/"], "regions": ["x"]}"#,
            400,
            "\"field\":\"regions\"",
        ),
        (&[JSON], &large, 413, "make several jobs"),
    ] {
        let answer = post(fields, body).await;
        let told = answer.text();
        assert_eq!(answer.status, status, "{told}");
        assert!(told.contains(words), "{words}: {told}");
    }
    let listed = control.ask("/v1/warm").await.unwrap().text();
    assert_eq!(listed, r#"{"jobs":[]}"#);
    let answer = call(control, Method::DELETE, "/v1/warm/0", &json!(null)).await;
    assert_eq!(answer.status, 404);
    let answer = call(control, Method::PUT, "/v1/warm/0", &json!(null)).await;
    assert_eq!(answer.status, 405);
    assert_eq!(origin.requests(), 0);
}
