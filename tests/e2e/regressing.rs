//! Bugs that were there once, each as a test named after what it kept from being true.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use anyhow::ensure;
use bytes::Bytes;
use cluster::site::{
    Site,
    rules::{RangeMiss, Shield},
};
use harness::{
    client::{Client, Response, get_h2c, post_h2c},
    cluster::{HOST, Node, Plan, set},
    origin::{Answer, Origin, Script, Seen},
    process::eventually,
    wire::{Wire, WireOrigin},
};
use http::{HeaderMap, Method};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{SECOND, admitting::call, alone, homing, started, stored};

/// A request without a body.
fn ask(method: &str, target: &str, fields: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n")
}

/// An answer that is stored and stale from the beginning: its time ran out on the way here.
fn stale(answer: Answer) -> Answer {
    answer.max_age(60).field("age", "60")
}

/// Answers as `by` says of a request, and of whether it only asks if something has changed.
fn answers(
    origin: &Origin,
    path: &str,
    by: impl Fn(&Seen, bool) -> Answer + Send + Sync + 'static,
) {
    origin.route_by(path, move |seen| {
        by(seen, seen.field("if-none-match").is_some()).into()
    });
}

/// How often all of `path` was asked for, and how often whether it has changed.
fn asked_for(origin: &Origin, path: &str) -> (usize, usize) {
    let seen = origin.seen(path);
    let validations = seen.iter().filter(|s| s.field("if-none-match").is_some());
    let validations = validations.count();
    (seen.len() - validations, validations)
}

fn raw(text: &'static str) -> Script {
    Script::Raw(Bytes::from_static(text.as_bytes()))
}

/// What a client gets that comes by itself, not in time to share what another has just fetched.
async fn get(edge: &Node, path: &str, fields: &[(&str, &str)]) -> Response {
    eventually("nobody shares what is on its way", async || {
        let answer = edge.get_with(path, fields).await?;
        let status = answer.field("cache-status").unwrap_or_default();
        ensure!(!status.contains("; collapsed"), "{status}");
        Ok(answer)
    })
    .await
    .expect("an answer of its own")
}

/// What a client gets from the store.
async fn hit(edge: &Node, path: &str, fields: &[(&str, &str)]) -> Response {
    eventually("it is a hit", async || {
        let answer = edge.get_with(path, fields).await?;
        ensure!(answer.cache_status().hit, "{:?}", answer.cache_status());
        Ok(answer)
    })
    .await
    .expect("a hit")
}

async fn post(edge: &Node, path: &str) -> Response {
    let (client, url) = (Client::new(), edge.url(path));
    let sent = client.send(Method::POST, &url, &[("host", HOST)], Bytes::new());
    sent.await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_with_content_does_not_eat_the_next_request_of_its_connection() {
    // RFC 9110 §7.8: the content comes first, and in HTTP.
    let origin = WireOrigin::start().await.unwrap();
    let cluster = started(Plan::alone(&origin.url())).await;
    let edge = &cluster.edges[0];
    for (method, next) in [("POST", "/after-post"), ("GET", "/after-get")] {
        let content = ask("GET", "/smuggled", "");
        let length = content.len();
        let fields = format!("Connection: Upgrade\r\nUpgrade: foo\r\nContent-Length: {length}\r\n");
        let mut client = Wire::open(edge.http).await.unwrap();
        let request = ask(method, "/", &fields) + &content;
        client.say(request).await.unwrap();
        let mut upstream = origin.accept().await.unwrap();
        let head = upstream.head().await.unwrap().to_ascii_lowercase();
        assert!(!head.contains("\r\nupgrade:"), "{head}");
        let sent = upstream.exactly(length).await.unwrap();
        assert_eq!(&sent[..], content.as_bytes(), "{method}");
        let answer = |body: &str, fields: &str| {
            let length = body.len();
            let fixed = "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\n";
            format!("{fixed}{fields}Content-Length: {length}\r\n\r\n{body}")
        };
        upstream.say(answer("thanks", "")).await.unwrap();
        client.until("thanks").await.unwrap();

        let mut other = Wire::open(edge.http).await.unwrap();
        other.say(ask("GET", next, "")).await.unwrap();
        let mut upstream = origin.next(upstream).await.unwrap();
        let head = upstream.head().await.unwrap();
        assert!(head.starts_with(&format!("GET {next} ")), "{head}");
        upstream
            .say(answer("next", "Connection: close\r\n"))
            .await
            .unwrap();
        other.until("next").await.unwrap();
        assert_eq!(hit(edge, next, &[]).await.text(), "next", "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_led_around_the_rules_by_an_upgrade_to_h2c() {
    // RFC 9110 §7.8, RFC 7540 §3.2.1: it is for the next hop only.
    let (origin, cluster) = alone().await;
    for (path, upgrade) in [
        ("/first", "Upgrade: h2c, x\r\n"),
        ("/last", "Upgrade: x, H2C\r\n"),
        ("/two", "Upgrade: x\r\nUpgrade: h2c\r\n"),
    ] {
        origin.route_by(path, |seen| match seen.field("upgrade") {
            Some(_) => Script::Echo,
            None => Answer::bytes("in HTTP/1.1").into(),
        });
        let fields = "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n";
        let mut client = Wire::open(cluster.edges[0].http).await.unwrap();
        let request = ask("GET", path, &format!("{fields}{upgrade}"));
        client.say(request).await.unwrap();
        let head = client.head().await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{upgrade}: {head}");
        client.until("in HTTP/1.1").await.unwrap();
        let seen = origin.seen(path);
        assert_eq!(seen.len(), 1, "{upgrade}");
        for name in ["upgrade", "http2-settings"] {
            assert_eq!(seen[0].field(name), None, "{upgrade}");
        }
        let connection = seen[0].field("connection").unwrap_or_default();
        assert!(!connection.contains("pgrade"), "{upgrade}: {connection}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_client_says_of_host_and_target_is_not_in_a_fill_for_all() {
    // RFC 9111 §2: what is stored is what anybody gets who asks for the same.
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    for (path, host) in [
        ("/port", "site.test:1337"),
        ("/case", "SITE.Test"),
        ("/both", "Site.test:80"),
    ] {
        origin.route(path, Answer::bytes("body").max_age(600));
        let fields = [
            ("host", host),
            ("forwarded", "for=192.0.2.1;host=evil.test;proto=https"),
            ("x-forwarded-host", "evil.test"),
            ("x-forwarded-port", "1337"),
            ("x-original-url", "/evil"),
            ("x-rewrite-url", "/evil"),
            ("x-http-method-override", "DELETE"),
        ];
        edge.get_with(path, &fields).await.unwrap();
        let seen = origin.seen(path).pop().expect("it was asked for");
        let expected = "for=127.0.0.1;host=\"site.test\";proto=http";
        assert_eq!(seen.field("x-forwarded-host"), Some(HOST), "{host}");
        assert_eq!(seen.field("forwarded"), Some(expected), "{host}");
        for (name, _) in &fields[3..] {
            assert_eq!(seen.field(name), None, "{host}: {name}");
        }
        assert_eq!(hit(edge, path, &[]).await.text(), "body", "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_304_does_not_bring_back_what_was_invalidated() {
    // RFC 9111 §4.4
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let changed = Arc::new(AtomicBool::new(false));
    let (open, held) = tokio::sync::watch::channel(false);
    answers(&origin, "/", move |seen, validates| {
        if seen.method == "POST" {
            changed.store(true, Ordering::SeqCst);
            return Answer::bytes("done");
        }
        match (changed.load(Ordering::SeqCst), validates) {
            (true, _) => Answer::bytes("new").max_age(600).field("etag", "\"new\""),
            (false, false) => stale(Answer::bytes("old")).field("etag", "\"old\""),
            (false, true) => Answer::status(304)
                .max_age(600)
                .field("etag", "\"old\"")
                .held(held.clone()),
        }
    });
    assert_eq!(edge.get("/").await.unwrap().text(), "old");
    let meanwhile = async {
        eventually("the origin is asked whether it has changed", async || {
            ensure!(asked_for(&origin, "/").1 == 1);
            Ok(())
        })
        .await
        .expect("it is");
        assert_eq!(post(edge, "/").await.status, 200);
        open.send(true).expect("the origin waits for it");
    };
    tokio::join!(get(edge, "/", &[]), meanwhile);
    assert_eq!(get(edge, "/", &[]).await.text(), "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variant_called_the_same_as_another_is_not_what_replaced_that() {
    // RFC 9111 §4.1, §4.3.3
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let replaced = Arc::new(AtomicBool::new(false));
    let now = replaced.clone();
    answers(&origin, "/", move |seen, validates| {
        let answer = match (seen.field("accept-language"), validates) {
            (Some("en"), _) if now.load(Ordering::SeqCst) => Answer::bytes("new en")
                .max_age(600)
                .field("etag", "\"en-2\""),
            (Some("de"), true) if !now.load(Ordering::SeqCst) => {
                stale(Answer::status(304)).field("etag", "\"en-1\"")
            }
            (Some("de"), _) => Answer::bytes("de").max_age(600).field("etag", "\"de\""),
            _ => stale(Answer::bytes("en")).field("etag", "\"en-1\""),
        };
        answer.field("vary", "accept-language")
    });
    let text = async |language| {
        let fields = [("accept-language", language)];
        get(edge, "/", &fields).await.text()
    };
    assert_eq!(text("en").await, "en");
    assert_eq!(text("de").await, "en");
    let seen = origin.seen("/").pop().expect("it was asked for");
    assert_eq!(seen.field("if-none-match"), Some("\"en-1\""));
    replaced.store(true, Ordering::SeqCst);
    assert_eq!(text("en").await, "new en");
    assert_eq!(text("de").await, "de");
    assert_eq!(text("en").await, "new en");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_304_that_adds_vary_does_not_give_all_clients_the_same() {
    // RFC 9111 §4.1
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let varies = AtomicBool::new(false);
    answers(&origin, "/", move |seen, validates| {
        let tone = seen.field("x-tone").unwrap_or("none").to_owned();
        match (varies.swap(true, Ordering::SeqCst), validates) {
            (false, _) => stale(Answer::bytes(tone)).field("etag", "\"none\""),
            (true, true) if tone == "none" => Answer::status(304)
                .max_age(600)
                .field("etag", "\"none\"")
                .field("vary", "x-tone"),
            (true, _) => Answer::bytes(tone.clone())
                .max_age(600)
                .field("etag", format!("\"{tone}\""))
                .field("vary", "x-tone"),
        }
    });
    for _ in 0..2 {
        assert_eq!(get(edge, "/", &[]).await.text(), "none");
    }
    let loud = [("x-tone", "loud")];
    assert_eq!(get(edge, "/", &loud).await.text(), "loud");
    assert_eq!(hit(edge, "/", &[]).await.text(), "none");
    assert_eq!(hit(edge, "/", &loud).await.text(), "loud");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_varies_by_a_field_that_the_edge_writes_for_each_client_is_for_one() {
    // RFC 9111 §4.1: what the origin saw in it is not in the next client's request.
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    for name in ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"] {
        let path = format!("/{name}");
        let answer = Answer::bytes("for you").max_age(600).field("vary", name);
        origin.route(&path, answer);
        for times in 1..=3 {
            let answer = edge.get(&path).await.unwrap();
            assert!(!answer.cache_status().hit, "{name}: {answer:?}");
            assert_eq!(asked_for(&origin, &path), (times, 0), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_control_that_is_named_in_connection_is_heeded_nevertheless() {
    // RFC 9111 §5.2.2.4: with the field gone, the old date alone would make it fresh for long (§4.2.2).
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let answer = "HTTP/1.1 200 OK\r\nConnection: cache-control, close\r\nCache-Control: no-cache\r\nLast-Modified: Thu, 01 Jan 2015 00:00:00 GMT\r\nContent-Length: 4\r\n\r\nbody";
    origin.route("/", raw(answer));
    for times in 1..=3 {
        let answer = get(edge, "/", &[]).await;
        assert!(!answer.cache_status().hit, "{answer:?}");
        assert_eq!(answer.text(), "body");
        assert!(origin.seen("/").len() >= times, "the origin was asked");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_nothing_stored_does_not_evict_what_others_use() {
    // RFC 9111 §5.2.1.5, §3.5: it is said of the answer to this request.
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    for (path, field) in [
        ("/no-store", ("cache-control", "no-store")),
        ("/authorized", ("authorization", "Basic YTpi")),
    ] {
        answers(&origin, path, |_, validates| {
            if validates {
                Answer::status(304).max_age(600).field("etag", "\"a\"")
            } else {
                stale(Answer::bytes("body")).field("etag", "\"a\"")
            }
        });
        assert_eq!(edge.get(path).await.unwrap().text(), "body");
        assert_eq!(get(edge, path, &[field]).await.text(), "body", "{path}");
        // All of it was fetched once, but for the client who must have its own.
        stored(edge, path).await;
        let seen = origin.seen(path);
        let others = seen.iter().filter(|s| s.field(field.0).is_none());
        let fetched = others.filter(|s| s.field("if-none-match").is_none());
        assert_eq!(fetched.count(), 1, "{path}: {seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_does_not_evict_what_others_get_when_the_origin_fails() {
    // RFC 5861 §4
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let fails = Arc::new(AtomicBool::new(false));
    let now = fails.clone();
    answers(&origin, "/", move |seen, _| {
        if seen.field("x-bad").is_some() {
            Answer::status(400)
        } else if now.load(Ordering::SeqCst) {
            Answer::status(503)
        } else {
            Answer::bytes("body")
                .field("cache-control", "max-age=60, stale-if-error=600")
                .field("age", "60")
                .field("etag", "\"a\"")
        }
    });
    assert_eq!(edge.get("/").await.unwrap().text(), "body");
    assert_eq!(get(edge, "/", &[("x-bad", "1")]).await.status, 400);
    fails.store(true, Ordering::SeqCst);
    let answer = edge.get("/").await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "body"));
    assert_eq!(origin.seen("/").len(), 3, "the origin was asked first");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_does_not_make_others_pass() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    for status in [400, 403, 413, 431] {
        let path = format!("/{status}");
        answers(&origin, &path, move |seen, _| {
            if seen.field("x-bad").is_some() {
                Answer::status(status)
            } else {
                Answer::bytes("body").max_age(600)
            }
        });
        let bad = edge.get_with(&path, &[("x-bad", "1")]).await.unwrap();
        assert_eq!(bad.status, status);
        assert_eq!(edge.get(&path).await.unwrap().text(), "body");
        assert_eq!(hit(edge, &path, &[]).await.text(), "body");
        assert_eq!(asked_for(&origin, &path), (2, 0), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_withheld_from_others_reaches_the_client_that_fetched_it() {
    // RFC 9111 §5.2.2.7
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let answer = Answer::bytes("body")
        .field("cache-control", "public, max-age=60, private=\"x-a\"")
        .field("x-a", "for one")
        .field("x-b", "for all")
        .field("set-cookie", "a=b");
    origin.route("/", answer);
    let own = |answer: &Response| {
        ["x-a", "set-cookie", "x-b"].map(|name| answer.field(name).map(str::to_owned))
    };
    let first = edge.get("/").await.unwrap();
    let expected = ["for one", "a=b", "for all"].map(|value| Some(value.to_owned()));
    assert_eq!(own(&first), expected, "{first:?}");
    for _ in 0..2 {
        let later = edge.get("/").await.unwrap();
        assert_eq!(own(&later), [None, None, Some("for all".to_owned())]);
    }
    let stored = hit(edge, "/", &[]).await;
    assert_eq!(own(&stored), [None, None, Some("for all".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_204_from_the_store_has_no_length() {
    // RFC 9110 §8.6
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    origin.route("/", Answer::status(204).max_age(600));
    edge.get("/").await.unwrap();
    stored(edge, "/").await;
    let plain = edge.get("/").await.unwrap();
    assert_eq!((plain.status, plain.field("content-length")), (204, None));
    // A condition leads another way through the edge.
    let tagged = [("if-none-match", "\"other\"")];
    let asked = edge.get_with("/", &tagged).await.unwrap();
    assert_eq!((asked.status, asked.field("content-length")), (204, None));
    let over_h2 = get_h2c(edge.http, HOST, "/").await.unwrap();
    assert_eq!(over_h2.status, 204);
    assert!(!over_h2.headers.contains_key("content-length"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hit_announces_no_trailers() {
    // RFC 9110 §6.6.2: what was announced was not stored.
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nCache-Control: max-age=600\r\nETag: \"a\"\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nx-sum: 1\r\n\r\n";
    origin.route("/", raw(answer));
    edge.get("/").await.unwrap();
    stored(edge, "/").await;
    for (fields, status) in [
        (&[][..], 200),
        (&[("range", "bytes=1-2")], 206),
        (&[("if-none-match", "\"a\"")], 304),
        (&[("if-none-match", "\"b\"")], 200),
    ] {
        let hit = edge.get_with("/", fields).await.unwrap();
        assert_eq!((hit.status, hit.field("trailer")), (status, None));
    }
    let over_h2 = get_h2c(edge.http, HOST, "/").await.unwrap();
    assert!(over_h2.cache_status().hit);
    assert!(!over_h2.headers.contains_key("trailer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_that_http_2_splits_reach_the_origin_as_one_field() {
    // RFC 9113 §8.2.3
    let (origin, cluster) = alone().await;
    origin.route("/", Answer::bytes("done"));
    let cookies = [("cookie", "a=1"), ("cookie", "b=2; c=3"), ("cookie", "d=4")];
    let edge = cluster.edges[0].http;
    let (head, body, trailers) = post_h2c(edge, HOST, "/", &cookies, Bytes::from_static(b"x"))
        .await
        .unwrap();
    assert_eq!((head.status.as_u16(), &body[..]), (200, &b"done"[..]));
    assert_eq!(trailers, HeaderMap::new());
    let seen = origin.seen("/").pop().expect("it was asked for");
    let fields = seen.fields.iter().filter(|(name, _)| name == "cookie");
    let values: Vec<_> = fields.map(|(_, value)| value.as_str()).collect();
    assert_eq!(values, ["a=1; b=2; c=3; d=4"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn line_ends_between_requests_lose_none_of_them() {
    // RFC 9112 §2.2
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let (hit, miss) = (ask("GET", "/hit", ""), ask("GET", "/miss", ""));
    origin.route("/hit", Answer::bytes("from the store").max_age(600));
    let never = Answer::bytes("from the origin").field("cache-control", "no-store");
    origin.route("/miss", never);
    edge.get("/hit").await.unwrap();
    stored(edge, "/hit").await;
    // One packet each; `h` is a request that hits, `m` one that misses.
    for packets in [
        &["h\r", "\nm"][..],
        &["h\r", "\nh", "m"],
        &["h\n", "\nh\r\n", "mh"],
        &["m\r", "\nh", "m"],
        &["h", "\r", "\nh", "m"],
        &["m", "\r", "\nh", "h", "m"],
        &["mh\r", "\nhm\r", "\nh\r", "\nm"],
        &["h\n", "h\r\n\r", "\n\nh", "mh"],
    ] {
        let mut client = Wire::open(edge.http).await.unwrap();
        for packet in packets {
            let requests: String = (packet.chars())
                .map(|c| match c {
                    'h' => hit.clone(),
                    'm' => miss.clone(),
                    line_end => line_end.into(),
                })
                .collect();
            client.say(requests).await.unwrap();
            // With the answers in hand, the next packet does not melt into this one.
            for request in packet.chars() {
                let expected = match request {
                    'h' => "from the store",
                    'm' => "from the origin",
                    _ => continue,
                };
                let head = client.head().await.unwrap();
                let is_answer = head.starts_with("HTTP/1.1 200 OK\r\n");
                assert!(is_answer, "{packet:?} of {packets:?}: {head}");
                let body = client.exactly(expected.len()).await.unwrap();
                assert_eq!(&body[..], expected.as_bytes(), "{packets:?}");
            }
            if packet.trim().is_empty() {
                // Mostly long enough to be read alone; nothing fails if it is not.
                tokio::time::sleep(SECOND / 20).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_hold_for_an_answer_that_is_private() {
    // RFC 9110 §13.1: the edge asked without them, in case it could be stored.
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    for (path, (name, tag), status) in [
        ("/same", ("if-none-match", "\"a\""), 304),
        ("/other", ("if-none-match", "\"b\""), 200),
        ("/right", ("if-match", "\"a\""), 200),
        ("/wrong", ("if-match", "\"b\""), 412),
    ] {
        let answer = Answer::bytes("body")
            .field("cache-control", "private")
            .field("etag", "\"a\"");
        origin.route(path, answer);
        let answer = edge.get_with(path, &[(name, tag)]).await.unwrap();
        let body = if status == 200 { "body" } else { "" };
        assert_eq!((answer.status, answer.text().as_str()), (status, body));
        assert_eq!(answer.field("etag"), Some("\"a\""), "{path}");
    }
}

/// A key has the path as it was sent, because an origin may tell one spelling from another. A purge of `/dd` has
/// to hit all that are `/dd` to those that do not.
#[tokio::test(flavor = "multi_thread")]
async fn a_purge_hits_its_path_in_whatever_way_it_was_spelt() {
    let origin = Origin::start().await.unwrap();
    let spelt = ["/d/%2e%2E/dd", "/./dd", "/g?", "/in/../img/1"];
    for path in spelt.into_iter().chain(["/dd", "/g", "/g?x", "/img/1"]) {
        let routed = path.split('?').next().unwrap();
        origin.route(routed, Answer::bytes("old").max_age(600));
        origin.route(path, Answer::bytes("old").max_age(600));
    }
    let cluster = started(Plan::new(1, &origin.url())).await;
    cluster.settled().await.unwrap();
    let (control, edge) = (cluster.control.as_ref().unwrap(), &cluster.edges[0]);
    eventually("the control plane knows the edge", async || {
        let nodes = control.ask("/v1/nodes").await?.text();
        ensure!(
            nodes.contains(&edge.id) && nodes.contains("ready"),
            "{nodes}"
        );
        Ok(())
    })
    .await
    .unwrap();
    let filled = async |paths: &[&str]| {
        for path in paths {
            edge.get(path).await.unwrap();
            stored(edge, path).await;
        }
    };
    let is_hit = async |path: &str| edge.get(path).await.unwrap().cache_status().hit;
    let purge = async |wish: Value| {
        let purged = call(control, Method::POST, "/v1/purges", None, &wish).await;
        assert_eq!(
            purged.json().unwrap()["complete"],
            true,
            "{}",
            purged.text()
        );
    };
    filled(&spelt).await;
    filled(&["/g?x"]).await;
    purge(json!({"site": "site", "urls": ["/dd", "/g"], "prefixes": ["/img/"]})).await;
    for path in spelt {
        assert!(!is_hit(path).await, "{path}");
    }
    assert!(is_hit("/g?x").await, "another query is another object");
    // And the other way round.
    filled(&["/dd", "/g", "/img/1"]).await;
    purge(json!({"site": "site", "urls": ["/d/../dd", "/g?"], "prefixes": ["/x/../img/"]})).await;
    for path in ["/dd", "/g", "/img/1"] {
        assert!(!is_hit(path).await, "{path}");
    }
}

/// What a site had cached before it was deleted was served again when there was a site of its name.
#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_was_deleted_comes_back_with_nothing() {
    let origin = Origin::start().await.unwrap();
    origin.route("/a", Answer::bytes("old").max_age(600));
    let mut plan = Plan::new(1, &origin.url());
    set(&mut plan.control_settings, "origins", "allow_private", true);
    let cluster = started(plan).await;
    let (control, edge) = (cluster.control.as_ref().unwrap(), &cluster.edges[0]);
    let site = json!({"hosts": ["shop.test"], "origins": [origin.url()]});
    let shop = "/v1/sites/shop";
    let of_shop = async || edge.get_with("/a", &[("host", "shop.test")]).await;
    let served = async |text: &str| {
        eventually("the site is served", async || {
            let answer = of_shop().await?;
            ensure!(
                answer.status == 200 && answer.text() == text,
                "{}",
                answer.text()
            );
            Ok(answer)
        })
        .await
        .unwrap()
    };
    let put = call(control, Method::PUT, shop, None, &site).await;
    assert_eq!(put.status, 201, "{}", put.text());
    served("old").await;
    eventually("it is stored", async || {
        ensure!(of_shop().await?.cache_status().hit);
        Ok(())
    })
    .await
    .unwrap();
    let deleted = call(control, Method::DELETE, shop, None, &Value::Null).await;
    assert_eq!(deleted.status, 200, "{}", deleted.text());
    eventually("it is gone", async || {
        let answer = of_shop().await?;
        ensure!(answer.status != 200, "{}", answer.status);
        Ok(())
    })
    .await
    .unwrap();
    origin.route("/a", Answer::bytes("new").max_age(600));
    let put = call(control, Method::PUT, shop, None, &site).await;
    assert_eq!(put.status, 201, "{}", put.text());
    eventually("the site is served", async || {
        let answer = of_shop().await?;
        ensure!(answer.status == 200, "{}", answer.status);
        // The first answer that there is.
        assert_eq!(answer.text(), "new");
        Ok(())
    })
    .await
    .unwrap();
}

/// It was stored as a part, and the origin asked five times for the rest of it.
#[tokio::test]
async fn a_206_that_nobody_asked_for_costs_one_question() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    origin.route_by("/odd", |_| {
        raw("HTTP/1.1 206 Partial Content\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
             Cache-Control: max-age=600\r\nContent-Range: bytes 0-4/10\r\nContent-Length: 5\r\n\r\nhello")
    });
    for asked in 1..=3 {
        let answer = edge.get("/odd").await.unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (206, "hello"));
        assert_eq!(origin.seen("/odd").len(), asked);
    }
}

/// What a 304 told of a part was stored as if that were all, and answered everybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_a_304_selects_stays_a_part() {
    // RFC 9111 §3.3, §3.4
    let body = Bytes::from_iter((0..250_000).map(|n| (n % 251) as u8));
    let misses = [RangeMiss::Whole, RangeMiss::Part];
    for (miss, tag) in misses
        .into_iter()
        .flat_map(|miss| ["\"1\"", "W/\"1\""].map(|tag| (miss, tag)))
    {
        let origin = Origin::start().await.unwrap();
        let whole = body.clone();
        answers(&origin, "/", move |_, validates| {
            let answer = match validates {
                true => Answer::status(304),
                false => Answer::bytes(whole.clone()),
            };
            let answer = answer.max_age(600).field("etag", tag);
            answer.field("vary", "accept-encoding")
        });
        let plan = Plan::alone(&origin.url()).site(|site| site.range_miss = Some(miss));
        let cluster = started(plan).await;
        let edge = &cluster.edges[0];
        for (range, encoding) in [
            (Some(10..1_010), "gzip"),
            (Some(20..120), "br"),
            (Some(0..100), "gzip, deflate"),
            (None, "gzip, deflate"),
            (None, "gzip"),
            (Some(10..1_010), "zstd"),
        ] {
            let mut fields = vec![("accept-encoding", encoding)];
            let wanted = range
                .clone()
                .map(|range| format!("bytes={}-{}", range.start, range.end - 1));
            fields.extend(wanted.as_deref().map(|wanted| ("range", wanted)));
            let asked = origin.requests();
            let answer = edge.get_with("/", &fields).await.unwrap();
            let (status, expected) = match range.clone() {
                Some(range) => (206, body.slice(range)),
                None => (200, body.clone()),
            };
            let what = format!("{miss:?} {tag} {range:?} {encoding}");
            assert_eq!(answer.status, status, "{what}");
            assert!(answer.body == expected, "{what}");
            // Whether it is that one, and if so, the bytes.
            assert!(origin.requests() - asked <= 2, "{what}");
        }
    }
}

/// A HEAD went to the origin as a GET for the range, where a miss fetches that.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_of_a_get() {
    // RFC 9110 §14.2
    let origin = Origin::start().await.unwrap();
    let body = Bytes::from(vec![b'x'; 3_000_000]);
    origin.route("/", Answer::bytes(body).max_age(600).field("etag", "\"1\""));
    let site = |site: &mut Site| site.range_miss = Some(RangeMiss::Part);
    let cluster = started(Plan::alone(&origin.url()).site(site)).await;
    let client = Client::new();
    for range in ["bytes=2000000-", "bytes=10-20", "bytes=3000000-"] {
        let fields = [("host", HOST), ("range", range)];
        let url = cluster.edges[0].url("/");
        let sent = client.send(Method::HEAD, &url, &fields, Bytes::new());
        let answer = sent.await.unwrap();
        assert_eq!(answer.status, 200, "{range}");
        assert_eq!(answer.field("content-length"), Some("3000000"), "{range}");
        assert_eq!(answer.field("content-range"), None, "{range}");
    }
    let seen = origin.seen("/");
    assert!(seen.iter().all(|seen| seen.field("range").is_none()));
}

/// Both asked: the home, and then whoever had asked it, for what the home told of was of another variant.
#[tokio::test(flavor = "multi_thread")]
async fn a_variant_that_a_304_selects_is_shared_through_its_home() {
    let origin = Origin::start().await.unwrap();
    answers(&origin, "/", |_, validates| {
        let answer = match validates {
            true => Answer::status(304),
            false => Answer::bytes("for all"),
        };
        answer
            .max_age(600)
            .field("etag", "\"1\"")
            .field("vary", "accept-encoding")
    });
    let plan = Plan::new(3, &origin.url()).site(|site| site.shield = Some(Shield::Cluster));
    let cluster = homing::settled(plan).await;
    for (encoding, asked) in [("gzip", (1, 0)), ("br", (1, 1)), ("gzip, br", (1, 2))] {
        for edge in &cluster.edges {
            let fields = [("accept-encoding", encoding)];
            assert_eq!(edge.get_with("/", &fields).await.unwrap().text(), "for all");
        }
        assert_eq!(asked_for(&origin, "/"), asked, "{encoding}");
    }
}

/// nginx tells who takes no coding that its file has not changed since a tag that it had weakened for what it had
/// compressed; others have one weak tag for both. Either way, what was stored is not what this request selects.
#[tokio::test(flavor = "multi_thread")]
async fn who_takes_no_coding_gets_none() {
    // RFC 9111 §4.3.4, RFC 9110 §12.5.3
    for told in ["\"x\"", "W/\"x\""] {
        let (origin, cluster) = alone().await;
        let edge = &cluster.edges[0];
        answers(&origin, "/", move |seen, validates| {
            let zips = seen.field("accept-encoding") == Some("gzip");
            let answer = match (validates, zips) {
                (true, _) => Answer::status(304).field("etag", told),
                (false, true) => Answer::bytes("zipped")
                    .field("content-encoding", "gzip")
                    .field("etag", "W/\"x\""),
                (false, false) => Answer::bytes("plain").field("etag", told),
            };
            answer
                .max_age(600)
                .field("vary", "accept-encoding")
                .field("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        });
        let gzip = [("accept-encoding", "gzip")];
        assert_eq!(get(edge, "/", &gzip).await.text(), "zipped");
        for accepted in ["", "identity", "br", "identity;q=1, *;q=0"] {
            let fields = [("accept-encoding", accepted)];
            assert_eq!(get(edge, "/", &fields).await.text(), "plain", "{accepted}");
        }
        assert_eq!(get(edge, "/", &[]).await.text(), "plain");
        assert_eq!(hit(edge, "/", &gzip).await.text(), "zipped");
    }
}

/// A 304 to a request with `Authorization` renewed what is for everybody, under what that one said.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_is_authorized_for_does_not_become_everybodys() {
    // RFC 9111 §3.5
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    answers(&origin, "/", |seen, validates| {
        let (who, device) = (seen.field("authorization"), seen.field("x-device"));
        let answer = match (who, device, validates) {
            (None, Some("a"), _) => Answer::bytes("for all"),
            (None, ..) => Answer::status(401),
            (Some(_), _, true) => Answer::status(304).field("x-user", "bob"),
            (Some(_), ..) => Answer::bytes("for bob"),
        };
        answer
            .max_age(600)
            .field("etag", "\"1\"")
            .field("vary", "x-device")
    });
    let device = |name| ("x-device", name);
    assert_eq!(get(edge, "/", &[device("a")]).await.text(), "for all");
    let bob = [device("b"), ("authorization", "Basic Ym9i")];
    assert_eq!(get(edge, "/", &bob).await.text(), "for bob");
    assert_eq!(get(edge, "/", &[device("b")]).await.status, 401);
    let answer = hit(edge, "/", &[device("a")]).await;
    assert_eq!(answer.field("x-user"), None);
    let seen = origin.seen("/");
    let mut of_bob = seen
        .iter()
        .filter(|seen| seen.field("authorization").is_some());
    assert!(of_bob.all(|seen| seen.field("if-none-match").is_none()));
}

/// All variants were taken away while one of them was written: a marker without any of them ended the process.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_with_variants_that_changes_all_the_time_ends_nobody() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    origin.route_by("/", |_| {
        let answer = Answer::bytes(vec![b'x'; 4_000]).max_age(600);
        answer.field("vary", "x-device").into()
    });
    let url = edge.url("/");
    let until = tokio::time::Instant::now() + 2 * SECOND;
    let mut clients = JoinSet::new();
    for client in 0..6 {
        let url = url.clone();
        clients.spawn(async move {
            for n in client.. {
                if tokio::time::Instant::now() > until {
                    break;
                }
                let device = (n % 7).to_string();
                let fields = [("host", HOST), ("x-device", &*device)];
                let method = match n % 4 {
                    0 => Method::PUT,
                    _ => Method::GET,
                };
                let sent = Client::new()
                    .send(method, &url, &fields, Bytes::new())
                    .await;
                assert_eq!(sent.unwrap().status, 200);
            }
        });
    }
    clients.join_all().await;
    assert!(edge.log().matching("panicked").is_empty());
}

/// Who followed a fetch and had to ask for itself was answered as if it had set no conditions.
#[tokio::test(flavor = "multi_thread")]
async fn conditions_hold_for_who_has_followed_and_asks_for_itself() {
    // RFC 9110 §13.1
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let version = Arc::new(AtomicU64::new(1));
    let now = version.clone();
    origin.route_by("/", move |_| {
        // The second one is there before the first has been told of.
        let version = now.fetch_add(1, Ordering::SeqCst).min(2);
        Answer::bytes(version.to_string())
            .field("cache-control", "no-cache")
            .field("etag", format!("\"{version}\""))
            .head_after(SECOND / 2)
            .into()
    });
    for (name, value, status) in [("if-match", "\"1\"", 412), ("if-none-match", "\"2\"", 304)] {
        version.store(1, Ordering::SeqCst);
        let path = "/";
        let follows = async {
            tokio::time::sleep(SECOND / 5).await;
            edge.get_with(path, &[(name, value)]).await.unwrap()
        };
        let (first, second) = tokio::join!(edge.get(path), follows);
        assert_eq!(first.unwrap().status, 200);
        assert_eq!(second.status, status, "{name}");
    }
}

/// Its timers were due before it had read what had come meanwhile, and it took the origin for silent.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_stopped_reads_before_it_gives_up() {
    let origin = Origin::start().await.unwrap();
    let body = Bytes::from(vec![b'x'; 4 << 20]);
    let plan = Plan::alone(&origin.url());
    let plan = plan.site(|site| site.between_bytes_timeout = "1s".parse().unwrap());
    let mut cluster = started(plan).await;
    let edge = &mut cluster.edges[0];
    for path in ["/0", "/1", "/2"] {
        let answer = Answer::bytes(body.clone()).max_age(600);
        origin.route(path, answer.slowly(64 << 10, SECOND / 20));
        let url = edge.url(path);
        let getting = tokio::spawn(async move {
            let fields = [("host", HOST)];
            Client::new().get_with(&url, &fields).await
        });
        tokio::time::sleep(SECOND / 2).await;
        edge.process().freeze();
        tokio::time::sleep(SECOND * 3 / 2).await;
        edge.process().thaw();
        let answer = getting.await.unwrap();
        assert!(answer.unwrap().body == body, "{path}");
    }
}
