//! Misses over a connection to the origin that was kept: they take the shortest way, and nobody notices.

use harness::{
    cluster::{Cluster, HOST, Plan},
    process::eventually,
    wire::{Wire, WireOrigin},
};

use crate::{started, stored};

/// What makes an answer one that is for everybody.
const SHARED: &str = "Date: Mon, 06 Jul 2026 08:00:00 GMT\r\nCache-Control: max-age=2000000000\r\n";

/// Stands in no field.
const BODY: &str = "<body>";

/// One edge, an origin that the test plays, and the connection between them, which is kept and has the
/// next request if `kept`.
async fn between(kept: bool) -> (WireOrigin, Option<Wire>, Cluster) {
    let origin = WireOrigin::start().await.unwrap();
    let cluster = started(Plan::alone(&origin.url())).await;
    if !kept {
        return (origin, None, cluster);
    }
    let mut client = Wire::open(cluster.edges[0].http).await.unwrap();
    client.say(ask("/before", "")).await.unwrap();
    let mut upstream = origin.accept().await.unwrap();
    upstream.head().await.unwrap();
    upstream.say(answer(SHARED, "before")).await.unwrap();
    client.until("before").await.unwrap();
    (origin, Some(upstream), cluster)
}

fn ask(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\n{fields}Host: {HOST}\r\n\r\n")
}

fn answer(fields: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {length}\r\n\r\n{body}")
}

/// What origin and client heard of one request, and then the client of another for the same; without
/// what differs from one run to the next.
async fn heard(kept: bool, fields: &str, said: &str) -> [String; 3] {
    let (origin, upstream, cluster) = between(kept).await;
    let mut client = Wire::open(cluster.edges[0].http).await.unwrap();
    client.say(ask("/it?a=1", fields)).await.unwrap();
    let mut upstream = match upstream {
        // It must be this one: else what is tested is not what was meant.
        Some(upstream) => upstream,
        None => origin.accept().await.unwrap(),
    };
    let asked = upstream.head().await.unwrap();
    upstream.say(said).await.unwrap();
    let first = client.until(BODY).await.unwrap();
    if said.contains("chunked") {
        // Its end is still to come, and until it is known later clients follow.
        stored(&cluster.edges[0], "/it?a=1").await;
    }
    let mut later = Wire::open(cluster.edges[0].http).await.unwrap();
    later.say(ask("/it?a=1", fields)).await.unwrap();
    let second = tokio::select! {
        second = later.until(BODY) => second.unwrap(),
        // It was not for everybody.
        again = async { origin.next(upstream).await.unwrap().head().await.unwrap() } => again,
    };
    let id = cluster.edges[0].id.to_string();
    [asked, first, second].map(|text| steady(&text, &id))
}

/// `text` without what differs from one run to the next.
fn steady(text: &str, id: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let name = line
            .split(':')
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        if name == "age" {
            continue;
        }
        // The node's own, not the origin's: the next second may have begun.
        if name == "date" && !SHARED.contains(line) {
            lines.push("date: now".to_owned());
            continue;
        }
        let line = match line.split_once("; ttl=") {
            Some((before, rest)) => {
                let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-');
                format!("{before}{rest}")
            }
            None => line.to_owned(),
        };
        lines.push(line.replace(id, "node"));
    }
    lines.join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_and_answered_is_the_same_as_over_a_new_connection() {
    let tag = "ETag: \"1\"\r\nX-Mine: a\r\nx-empty:\r\n";
    let shared = |more: &str| answer(&format!("{SHARED}{more}"), BODY);
    for (fields, said) in [
        ("", shared(tag)),
        (
            "User-Agent: me\r\naccept:\r\nCookie: a=b\r\nX-Mine: 1\r\n",
            shared(tag),
        ),
        // What goes on to the origin only after it was read.
        (
            "X-Forwarded-For: 1.2.3.4\r\nX-Real-IP: 5.6.7.8\r\nVia: 1.1 a\r\n",
            shared(tag),
        ),
        ("If-None-Match: \"2\"\r\n", shared(tag)),
        // What is not stored as it came.
        ("", shared("Set-Cookie: a=b\r\n")),
        (
            "",
            shared("Age: 7\r\nVia: 1.1 b\r\nCache-Status: b; hit\r\n"),
        ),
        (
            "Accept-Language: de\r\n",
            shared("Vary: Accept-Language\r\n"),
        ),
        (
            "",
            shared("Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n"),
        ),
        ("", shared("Connection: close, X-Hop\r\nX-Hop: 1\r\n")),
        (
            "",
            shared("Surrogate-Control: max-age=5\r\nAccept-Ranges: none\r\n"),
        ),
        (
            "",
            answer(
                "Date: Mon, 06 Jul 2026 08:00:00 GMT\r\nETag: \"1\"\r\nX-A: 1\r\n\
                 Cache-Control: no-cache=\"x-a\", max-age=9\r\n",
                BODY,
            ),
        ),
        ("", answer("Cache-Control: no-store\r\n", BODY)),
        ("", shared(tag).replace("200 OK", "404 Not Found")),
        (
            "",
            format!(
                "HTTP/1.1 200 OK\r\n{SHARED}Transfer-Encoding: chunked\r\n\r\n6\r\n{BODY}\r\n0\r\n\r\n"
            ),
        ),
        (
            "",
            format!(
                "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{}",
                shared(tag)
            ),
        ),
    ] {
        let [kept, new] = [
            heard(true, fields, &said).await,
            heard(false, fields, &said).await,
        ];
        assert_eq!(kept, new, "{fields:?} {said:?}");
        assert!(kept[1].contains("fwd="), "{}", kept[1]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_bit_by_bit_is_an_answer() {
    let (_, upstream, cluster) = between(true).await;
    let mut client = Wire::open(cluster.edges[0].http).await.unwrap();
    client.say(ask("/bits", "")).await.unwrap();
    let mut upstream = upstream.unwrap();
    upstream.head().await.unwrap();
    for bit in answer(SHARED, "bits").as_bytes().chunks(11) {
        upstream.say(bit).await.unwrap();
        tokio::time::sleep(crate::SECOND / 100).await;
    }
    client.until("\r\n\r\nbits").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_closed_meanwhile_is_replaced() {
    let (origin, upstream, cluster) = between(true).await;
    let edge = &cluster.edges[0];
    let mut client = Wire::open(edge.http).await.unwrap();
    // With the request on it.
    client.say(ask("/closed", "")).await.unwrap();
    let mut upstream = upstream.unwrap();
    upstream.head().await.unwrap();
    drop(upstream);
    let mut upstream = origin.accept().await.unwrap();
    upstream.head().await.unwrap();
    upstream.say(answer(SHARED, "again")).await.unwrap();
    client.until("again").await.unwrap();
    // And before it.
    drop(upstream);
    client.say(ask("/closed-before", "")).await.unwrap();
    let mut upstream = origin.accept().await.unwrap();
    upstream.head().await.unwrap();
    upstream.say(answer(SHARED, "once more")).await.unwrap();
    client.until("once more").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_asks_the_origin_and_all_get_its_answer_even_when_that_one_leaves() {
    let (origin, upstream, cluster) = between(true).await;
    let edge = &cluster.edges[0];
    let mut leader = Wire::open(edge.http).await.unwrap();
    leader.say(ask("/all", "")).await.unwrap();
    let mut upstream = upstream.unwrap();
    upstream.head().await.unwrap();
    let mut others = Vec::new();
    for _ in 0..5 {
        let mut other = Wire::open(edge.http).await.unwrap();
        other.say(ask("/all", "")).await.unwrap();
        others.push(other);
    }
    drop(leader);
    // One more that nobody follows.
    let mut left = Wire::open(edge.http).await.unwrap();
    left.say(ask("/left", "")).await.unwrap();
    let mut second = origin.accept().await.unwrap();
    second.head().await.unwrap();
    second.say(answer(SHARED, "left")).await.unwrap();
    left.until("left").await.unwrap();
    left.say(ask("/left-again", "")).await.unwrap();
    second.head().await.unwrap();
    drop(left);
    tokio::time::sleep(crate::SECOND / 5).await;
    second.say(answer(SHARED, "nobody")).await.unwrap();
    upstream.say(answer(SHARED, "for all")).await.unwrap();
    for other in &mut others {
        let answer = other.until("for all").await.unwrap();
        assert!(answer.contains("fwd=uri-miss"), "{answer}");
        assert!(answer.contains("collapsed"), "{answer}");
    }
    eventually("what nobody waited for is stored", async || {
        let mut client = Wire::open(edge.http).await?;
        client
            .say(ask("/left-again", "Cache-Control: only-if-cached\r\n"))
            .await?;
        let head = client.head().await?;
        anyhow::ensure!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        Ok(())
    })
    .await
    .unwrap();
}
