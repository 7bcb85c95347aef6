//! What goes through an edge, byte by byte: a test speaks for the client and for the origin, so each
//! step happens only after the one before it has been seen at the other end.

use std::time::Duration;

use harness::{
    client::{get_h2c, post_h2c},
    cluster::{Cluster, HOST, Plan},
    origin::Answer,
    wire::{Wire, WireOrigin},
};
use tokio::time::sleep;

use crate::{SECOND, alone, started, stored};

/// One edge, and an origin that the test plays.
async fn between() -> (WireOrigin, Cluster) {
    let origin = WireOrigin::start().await.expect("a free port");
    let cluster = started(Plan::alone(&origin.url())).await;
    (origin, cluster)
}

/// A request without a body.
fn ask(method: &str, target: &str, fields: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n")
}

/// An answer of known length, and the end of its connection: the next request comes over another,
/// instead of over either.
fn answer(fields: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\n{fields}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

fn hints(link: &str) -> String {
    format!("HTTP/1.1 103 Early Hints\r\nlink: {link}\r\n\r\n")
}

const FOREVER: &str = "Cache-Control: max-age=600\r\n";
const NEVER: &str = "Cache-Control: no-store\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn interim_answers_reach_the_client_before_the_final_one() {
    let (origin, cluster) = between().await;
    let mut client = Wire::open(cluster.edges[0].http).await.unwrap();
    // A fill, a pass by method, and a fill that turns out to be for one client only.
    for (request, kind) in [
        (ask("GET", "/fill", ""), FOREVER),
        (ask("DELETE", "/pass", ""), FOREVER),
        (ask("GET", "/private", ""), NEVER),
    ] {
        client.say(&request).await.unwrap();
        let mut upstream = origin.accept().await.unwrap();
        upstream.head().await.unwrap();
        upstream
            .say("HTTP/1.1 102 Processing\r\n\r\n")
            .await
            .unwrap();
        let processing = client.head().await.unwrap();
        assert_eq!(processing, "HTTP/1.1 102 Processing\r\n\r\n");
        // RFC 9110 §7.6.1: what is for one connection stays there.
        let said = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x-hop\r\nX-Hop: 1\r\nContent-Length: 3\r\n\r\n";
        upstream.say(said).await.unwrap();
        assert_eq!(client.head().await.unwrap(), hints("</a>"));
        // One packet brings both: neither is lost.
        let both = hints("</b>") + &answer(kind, "done");
        upstream.say(both).await.unwrap();
        assert_eq!(client.head().await.unwrap(), hints("</b>"));
        let head = client.head().await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(!head.to_ascii_lowercase().contains("link:"), "{head}");
        assert_eq!(&client.exactly(4).await.unwrap()[..], b"done");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_answer_has_no_interim_ones() {
    let (origin, cluster) = between().await;
    let edge = &cluster.edges[0];
    let mut client = Wire::open(edge.http).await.unwrap();
    client.say(ask("GET", "/", "")).await.unwrap();
    let mut upstream = origin.accept().await.unwrap();
    upstream.head().await.unwrap();
    let stale = "ETag: \"a\"\r\nCache-Control: max-age=1, stale-while-revalidate=600\r\n";
    upstream
        .say(hints("</a>") + &answer(stale, "body"))
        .await
        .unwrap();
    assert_eq!(client.head().await.unwrap(), hints("</a>"));
    client.until("body").await.unwrap();
    stored(edge, "/").await;
    sleep(2 * SECOND).await;

    // Served as it is and validated behind: what the origin says meanwhile is for nobody.
    client.say(ask("GET", "/", "")).await.unwrap();
    let mut upstream = origin.accept().await.unwrap();
    upstream.head().await.unwrap();
    upstream.say(hints("</b>")).await.unwrap();
    let head = client.head().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    client.until("body").await.unwrap();
    // Nor for the next request on the same connection.
    client.say(ask("DELETE", "/", "")).await.unwrap();
    let mut other = origin.accept().await.unwrap();
    other.head().await.unwrap();
    upstream.say(hints("</c>")).await.unwrap();
    upstream
        .say("HTTP/1.1 304 Not Modified\r\n\r\n")
        .await
        .unwrap();
    other.say(answer("", "deleted")).await.unwrap();
    let head = client.head().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn interim_answers_stand_between_pipelined_answers() {
    let (origin, cluster) = between().await;
    let mut client = Wire::open_narrow(cluster.edges[0].http).await.unwrap();
    // A long answer that the client does not read yet, and two requests behind it.
    let long = "x".repeat(16 << 20);
    let requests = ["/1", "/2", "/3"].map(|target| ask("DELETE", target, ""));
    client.say(requests.concat()).await.unwrap();
    // More hints than the sockets between edge and client hold.
    let many: String = (0..16).map(|n| hints(&format!("</{n:04000}>"))).collect();
    let first = many.clone() + &answer("", &long);
    let speaking = tokio::spawn(async move {
        let others =
            [2, 3].map(|n| hints(&format!("</{n}>")) + &answer("", &format!("answer {n}")));
        let [second, third] = others;
        for (n, said) in [(1, first), (2, second), (3, third)] {
            let mut upstream = origin.accept().await.unwrap();
            let head = upstream.head().await.unwrap();
            assert!(head.starts_with(&format!("DELETE /{n} ")), "{head}");
            upstream.say(said).await.unwrap();
        }
    });
    assert_eq!(
        &client.exactly(many.len()).await.unwrap()[..],
        many.as_bytes()
    );
    let head = client.head().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(client.exactly(long.len()).await.unwrap() == long.as_bytes());
    for n in [2, 3] {
        assert_eq!(client.head().await.unwrap(), hints(&format!("</{n}>")));
        let head = client.head().await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let body = format!("answer {n}");
        assert_eq!(client.exactly(body.len()).await.unwrap(), body.as_bytes());
    }
    speaking.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_knows_no_interim_answers() {
    let (origin, cluster) = between().await;
    let mut client = Wire::open(cluster.edges[0].http).await.unwrap();
    let request = format!("GET / HTTP/1.0\r\nHost: {HOST}\r\n\r\n");
    client.say(request).await.unwrap();
    let mut upstream = origin.accept().await.unwrap();
    upstream.head().await.unwrap();
    let said = hints("</a>") + &answer(NEVER, "old");
    upstream.say(said).await.unwrap();
    let all = client.rest().await.unwrap();
    assert!(all.starts_with("HTTP/1.0 200 OK\r\n"), "{all}");
    assert!(all.ends_with("\r\n\r\nold"), "{all}");
}

/// A request that will send its body when it is told to.
fn expecting(method: &str, target: &str) -> String {
    ask(
        method,
        target,
        "Content-Length: 5\r\nExpect: 100-continue\r\n",
    )
}

const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_asked_for_when_the_origin_asks_for_it() {
    // RFC 9110 §10.1.1
    let (origin, cluster) = between().await;
    let mut client = Wire::open(cluster.edges[0].http).await.unwrap();
    client.say(expecting("POST", "/")).await.unwrap();
    let mut upstream = origin.accept().await.unwrap();
    let head = upstream.head().await.unwrap().to_ascii_lowercase();
    assert!(head.contains("\r\nexpect: 100-continue\r\n"), "{head}");
    upstream.say(hints("</a>")).await.unwrap();
    assert_eq!(client.head().await.unwrap(), hints("</a>"));
    upstream.say(CONTINUE).await.unwrap();
    assert_eq!(client.head().await.unwrap(), CONTINUE);
    client.say("hello").await.unwrap();
    assert_eq!(&upstream.exactly(5).await.unwrap()[..], b"hello");
    upstream.say(answer("", "thanks")).await.unwrap();
    let head = client.head().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    client.until("thanks").await.unwrap();
    // The client's connection goes on.
    client.say(ask("DELETE", "/", "")).await.unwrap();
    let mut upstream = origin.accept().await.unwrap();
    let head = upstream.head().await.unwrap();
    assert!(head.starts_with("DELETE / "), "{head}");
    assert!(!head.to_ascii_lowercase().contains("expect"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_says_nothing_gets_the_body_all_the_same() {
    let (origin, cluster) = between().await;
    let mut client = Wire::open(cluster.edges[0].http).await.unwrap();
    client.say(expecting("PUT", "/")).await.unwrap();
    let mut upstream = origin.accept().await.unwrap();
    upstream.head().await.unwrap();
    assert_eq!(client.head().await.unwrap(), CONTINUE);
    client.say("hello").await.unwrap();
    assert_eq!(&upstream.exactly(5).await.unwrap()[..], b"hello");
    upstream.say(answer("", "thanks")).await.unwrap();
    client.until("thanks").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_refused_need_not_send_its_body() {
    let (origin, cluster) = between().await;
    let edge = cluster.edges[0].http;
    for status in [
        "417 Expectation Failed",
        "401 Unauthorized",
        "413 Payload Too Large",
        "200 OK",
    ] {
        let mut client = Wire::open(edge).await.unwrap();
        client.say(expecting("POST", "/")).await.unwrap();
        let mut upstream = origin.accept().await.unwrap();
        upstream.head().await.unwrap();
        let said = format!("HTTP/1.1 {status}\r\nContent-Length: 6\r\n\r\n");
        upstream.say(&said).await.unwrap();
        // Longer than the edge would wait for a 100, before the rest of the answer.
        let head = client.head().await.unwrap();
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status}\r\n")),
            "{head}"
        );
        // Where the next request would begin, nobody could say.
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        sleep(3 * SECOND / 2).await;
        upstream.say("sorry!").await.unwrap();
        assert_eq!(client.rest().await.unwrap(), "sorry!", "{status}");
        // The origin is not left waiting for the body either.
        assert_eq!(upstream.rest().await.unwrap(), "", "{status}");
    }
}

/// The origin's answer in chunks, with a trailer behind it, in the parts that are said one by one.
fn trailed(kind: &str) -> [String; 2] {
    let head = format!(
        "HTTP/1.1 200 OK\r\n{kind}Trailer: grpc-status, x-hop\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n"
    );
    let end = "0\r\nGrpc-Status: 0\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n";
    [head, end.to_owned()]
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_go_through_in_both_directions() {
    // RFC 9110 §6.5, RFC 9112 §7.1.2
    let (origin, cluster) = between().await;
    let mut client = Wire::open(cluster.edges[0].http).await.unwrap();
    let fields =
        "TE: trailers\r\nConnection: te\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n";
    client.say(ask("POST", "/", fields)).await.unwrap();
    client
        .say("5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n")
        .await
        .unwrap();
    let mut upstream = origin.accept().await.unwrap();
    let head = upstream.head().await.unwrap().to_ascii_lowercase();
    for field in ["te: trailers", "connection: te", "trailer: x-sum"] {
        assert!(
            head.contains(&format!("\r\n{field}\r\n")),
            "{field}: {head}"
        );
    }
    let body = upstream.until("0\r\n").await.unwrap() + &upstream.head().await.unwrap();
    assert_eq!(
        body.to_ascii_lowercase(),
        "5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n"
    );
    upstream.say(trailed("").concat()).await.unwrap();
    let head = client.head().await.unwrap().to_ascii_lowercase();
    assert!(
        head.contains("\r\ntrailer: grpc-status, x-hop\r\n"),
        "{head}"
    );
    let body = client.until("0\r\n").await.unwrap() + &client.head().await.unwrap();
    assert_eq!(
        body.to_ascii_lowercase(),
        "4\r\nbody\r\n0\r\ngrpc-status: 0\r\n\r\n"
    );

    // Who does not take them is not sent any, and the origin is not told otherwise.
    client.say(ask("DELETE", "/", "")).await.unwrap();
    let mut upstream = origin.next(upstream).await.unwrap();
    let head = upstream.head().await.unwrap().to_ascii_lowercase();
    assert!(!head.contains("\r\nte:"), "{head}");
    upstream.say(trailed("").concat()).await.unwrap();
    client.head().await.unwrap();
    assert_eq!(
        client.until("0\r\n\r\n").await.unwrap(),
        "4\r\nbody\r\n0\r\n\r\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_of_a_cacheable_answer_go_to_those_who_are_there() {
    let (origin, cluster) = between().await;
    let edge = &cluster.edges[0];
    let request = ask("GET", "/", "TE: trailers\r\nConnection: te\r\n");
    let [head, end] = trailed(FOREVER);
    let mut upstream = None;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Wire::open(edge.http).await.unwrap();
        client.say(&request).await.unwrap();
        if upstream.is_none() {
            let mut wire = origin.accept().await.unwrap();
            wire.head().await.unwrap();
            wire.say(&head).await.unwrap();
            upstream = Some(wire);
        }
        let head = client.head().await.unwrap().to_ascii_lowercase();
        assert!(
            head.contains("\r\ntrailer: grpc-status, x-hop\r\n"),
            "{head}"
        );
        clients.push(client);
    }
    upstream.unwrap().say(end).await.unwrap();
    for mut client in clients {
        let body = client.until("0\r\n").await.unwrap() + &client.head().await.unwrap();
        assert_eq!(body, "4\r\nbody\r\n0\r\ngrpc-status: 0\r\n\r\n");
    }
    stored(edge, "/").await;
    let mut client = Wire::open(edge.http).await.unwrap();
    client.say(&request).await.unwrap();
    let head = client.head().await.unwrap().to_ascii_lowercase();
    assert!(
        head.contains("\r\ncontent-length: 4\r\n") && !head.contains("trailer"),
        "{head}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_client_gets_its_status_from_an_http_1_origin() {
    let (origin, cluster) = between().await;
    let edge = cluster.edges[0].http;
    let calling = tokio::spawn(async move {
        let body = "\0\0\0\0\u{5}hello".into();
        let fields = [("te", "trailers"), ("content-type", "application/grpc")];
        post_h2c(edge, HOST, "/greeter/hello", &fields, body).await
    });
    let mut upstream = origin.accept().await.unwrap();
    let head = upstream.head().await.unwrap();
    assert!(
        head.starts_with("POST /greeter/hello HTTP/1.1\r\n"),
        "{head}"
    );
    assert!(head.contains("te: trailers\r\n"), "{head}");
    assert!(
        upstream
            .until("hello")
            .await
            .unwrap()
            .ends_with("\0\0\0\0\u{5}hello")
    );
    // gRPC servers do not announce their trailers, and HTTP/2 does not want it.
    let said = trailed("Content-Type: application/grpc\r\n").concat();
    let said = said.replace("Trailer: grpc-status, x-hop\r\n", "");
    upstream.say(said).await.unwrap();
    let (parts, body, trailers) = calling.await.unwrap().unwrap();
    assert_eq!((parts.status.as_u16(), &body[..]), (200, &b"body"[..]));
    assert_eq!(parts.headers["content-type"], "application/grpc");
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(trailers.len(), 1, "{trailers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_target_goes_through_byte_for_byte() {
    // RFC 9112 §3.2.1, RFC 9110 §7.1
    let (origin, cluster) = between().await;
    let mut client = Wire::open(cluster.edges[0].http).await.unwrap();
    let absolute = format!("http://{HOST}");
    let bare = format!("{absolute}?q");
    for (method, sent, seen) in [
        ("GET", "/", "/"),
        ("GET", "//a//b/../c", "//a//b/../c"),
        ("GET", "/a/./b", "/a/./b"),
        ("GET", "/%2F%2f%7e%7E~", "/%2F%2f%7e%7E~"),
        ("GET", "/%", "/%"),
        ("GET", "/%zz", "/%zz"),
        ("GET", "/?a=%20+b&&c", "/?a=%20+b&&c"),
        ("GET", "/a;x=1;y,z", "/a;x=1;y,z"),
        ("GET", "/trailing?", "/trailing?"),
        ("GET", "/??", "/??"),
        ("GET", "/:@!$&'()*+,=", "/:@!$&'()*+,="),
        ("GET", "/|\"{}[]^\\", "/|\"{}[]^\\"),
        ("GET", "/?|{}[]^`\\", "/?|{}[]^`\\"),
        ("GET", "/ä", "/ä"),
        ("POST", "/%41?%41", "/%41?%41"),
        // §3.2.2
        ("GET", &format!("{absolute}/x?y"), "/x?y"),
        ("GET", &format!("HTTP://{HOST}/x"), "/x"),
        ("GET", &absolute, "/"),
        ("GET", &bare, "/?q"),
        // §3.2.4
        ("OPTIONS", "*", "*"),
        ("OPTIONS", "/", "/"),
    ] {
        client.say(ask(method, sent, "")).await.unwrap();
        let mut upstream = tokio::select! {
            upstream = origin.accept() => upstream.unwrap(),
            refused = client.head() => panic!("{sent}: {refused:?}"),
        };
        let head = upstream.head().await.unwrap();
        let line = head.lines().next().unwrap();
        assert_eq!(line, format!("{method} {seen} HTTP/1.1"), "{sent}");
        upstream.say(answer(NEVER, "ok")).await.unwrap();
        client.until("\r\n\r\nok").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_in_the_target_is_the_one_that_counts() {
    // RFC 9112 §3.2.2
    let (origin, cluster) = between().await;
    let edge = cluster.edges[0].http;
    let mut client = Wire::open(edge).await.unwrap();
    let request = format!("GET http://{HOST}/ HTTP/1.1\r\nHost: elsewhere.test\r\n\r\n");
    client.say(request).await.unwrap();
    let mut upstream = origin.accept().await.unwrap();
    let head = upstream.head().await.unwrap().to_ascii_lowercase();
    assert!(head.contains(&format!("\r\nhost: {HOST}\r\n")), "{head}");
    assert_eq!(head.matches("\r\nhost:").count(), 1, "{head}");
    assert!(!head.contains("elsewhere"), "{head}");
    let request = format!("GET http://elsewhere.test/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let mut client = Wire::open(edge).await.unwrap();
    client.say(request).await.unwrap();
    let head = client.head().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 421 "), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn max_forwards_is_counted_down_and_ends_here_at_nought() {
    // RFC 9110 §7.6.2
    let (origin, cluster) = between().await;
    let mut client = Wire::open(cluster.edges[0].http).await.unwrap();
    for (method, sent, seen) in [
        ("OPTIONS", "5", Some("4")),
        ("TRACE", "1", Some("0")),
        ("OPTIONS", "x", Some("x")),
        ("GET", "0", Some("0")),
    ] {
        let field = format!("Max-Forwards: {sent}\r\n");
        client.say(ask(method, "/", &field)).await.unwrap();
        let mut upstream = origin.accept().await.unwrap();
        let head = upstream.head().await.unwrap();
        let found = head.lines().find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("max-forwards: ")
                .map(str::to_owned)
        });
        assert_eq!(found.as_deref(), seen, "{method} {sent}");
        upstream.say(answer(NEVER, "ok")).await.unwrap();
        client.until("\r\n\r\nok").await.unwrap();
    }
    for (method, status) in [("OPTIONS", 200), ("TRACE", 405)] {
        let fields = "Max-Forwards: 0\r\nCookie: secret\r\n";
        client.say(ask(method, "/", fields)).await.unwrap();
        let head = client.head().await.unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert!(head.contains("\r\nallow: GET, HEAD, "), "{head}");
        assert!(!head.contains("secret"), "{head}");
        let length = head
            .lines()
            .find_map(|l| l.strip_prefix("content-length: "));
        let body = client
            .exactly(length.unwrap().parse().unwrap())
            .await
            .unwrap();
        assert!(!body.windows(6).any(|w| w == b"secret"));
    }
}

/// The fields of a head, as they are spelled.
fn fields(head: &str) -> Vec<&str> {
    let (_, fields) = head.trim_end().split_once("\r\n").unwrap_or_default();
    fields.split("\r\n").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_keep_their_spelling_and_their_order() {
    // RFC 9110 §5.3: the order of equal names matters, that of others may to somebody.
    let (origin, cluster) = between().await;
    let mut client = Wire::open(cluster.edges[0].http).await.unwrap();
    let sent = "X-One: 1\r\nConnection: keep-alive, x-hop\r\nACCEPT: a\r\nx-hop: 1\r\nIf-Range: \"a\"\r\nx-TWO: b\r\nX-Two: a\r\nx-empty:\r\nUser-agent: me\r\n";
    for (method, target, kind) in [
        ("DELETE", "/pass", NEVER),
        ("GET", "/private", NEVER),
        ("GET", "/fill", FOREVER),
    ] {
        client.say(ask(method, target, sent)).await.unwrap();
        let mut upstream = origin.accept().await.unwrap();
        let head = upstream.head().await.unwrap();
        let mut expected = vec![
            "Host: site.test",
            "X-One: 1",
            "ACCEPT: a",
            "If-Range: \"a\"",
            "x-TWO: b",
            "X-Two: a",
            "x-empty:",
            "User-agent: me",
        ];
        if method == "GET" {
            // A fill is for everybody.
            expected.retain(|field| !field.starts_with("If-Range"));
        }
        assert_eq!(fields(&head)[..expected.len()], expected, "{target}");
        let said = "X-A: 1\r\nKeep-Alive: timeout=5\r\nSet-Cookie: a\r\nx-b: 2\r\nSET-COOKIE: b\r\nWWW-authenticate: Basic\r\n";
        upstream
            .say(answer(&format!("{said}{kind}"), "ok"))
            .await
            .unwrap();
        let head = client.head().await.unwrap();
        client.exactly(2).await.unwrap();
        if kind == NEVER {
            let expected = [
                "X-A: 1",
                "Set-Cookie: a",
                "SET-COOKIE: b",
                "x-b: 2",
                "WWW-authenticate: Basic",
                "Cache-Control: no-store",
                "Content-Length: 2",
            ];
            let seen = fields(&head);
            assert_eq!(seen[..expected.len()], expected, "{target}");
        }
    }
}

/// The same for requests that hyper never sees.
#[tokio::test(flavor = "multi_thread")]
async fn fields_of_plain_requests_keep_their_spelling_and_their_order() {
    let (origin, cluster) = between().await;
    let mut client = Wire::open(cluster.edges[0].http).await.unwrap();
    let sent = "X-One: 1\r\nACCEPT: a\r\nx-TWO: b\r\nX-Two: a\r\nx-empty:\r\nUser-agent: me\r\n";
    for (target, kind) in [("/private", NEVER), ("/fill", FOREVER), ("/private", NEVER)] {
        client.say(ask("GET", target, sent)).await.unwrap();
        let mut upstream = origin.accept().await.unwrap();
        let head = upstream.head().await.unwrap();
        let expected = [
            "Host: site.test",
            "X-One: 1",
            "ACCEPT: a",
            "x-TWO: b",
            "X-Two: a",
            "x-empty:",
            "User-agent: me",
        ];
        assert_eq!(fields(&head)[..expected.len()], expected, "{target}");
        let said = "X-A: 1\r\nKeep-Alive: timeout=5\r\nx-b: 2\r\nSet-Cookie: a\r\nSET-COOKIE: b\r\nWWW-authenticate: Basic\r\n";
        let said = answer(&format!("{said}{kind}"), "ok").replace("200 OK", "200 Fine");
        upstream.say(said).await.unwrap();
        let head = client.head().await.unwrap();
        client.exactly(2).await.unwrap();
        if kind == NEVER {
            assert!(head.starts_with("HTTP/1.1 200 Fine\r\n"), "{head}");
            let expected = [
                "X-A: 1",
                "x-b: 2",
                "Set-Cookie: a",
                "SET-COOKIE: b",
                "WWW-authenticate: Basic",
                "Cache-Control: no-store",
                "Content-Length: 2",
            ];
            assert_eq!(fields(&head)[..expected.len()], expected, "{target}");
            assert!(head.contains("\r\ndate: "), "{head}");
        }
    }
}

/// hyper, which is told that the node stops, does not know of a request that is answered beneath it.
#[tokio::test(flavor = "multi_thread")]
async fn a_plain_request_that_waits_while_the_node_stops_is_answered() {
    let (origin, mut cluster) = between().await;
    let mut client = Wire::open(cluster.edges[0].http).await.unwrap();
    client.say(ask("GET", "/", "")).await.unwrap();
    let mut upstream = origin.accept().await.unwrap();
    upstream.head().await.unwrap();
    let address = cluster.edges[0].http;
    let late = async {
        // It stops: nobody new is let in.
        while Wire::open(address).await.is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
        upstream.say(answer(FOREVER, "late")).await.unwrap();
        let head = client.head().await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert_eq!(client.exactly(4).await.unwrap(), "late");
    };
    let (ended, ()) = tokio::join!(cluster.edges[0].terminate(), late);
    assert!(ended.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_status_and_reason_goes_through() {
    // RFC 9110 §15, RFC 9112 §4
    let (origin, cluster) = between().await;
    let mut client = Wire::open(cluster.edges[0].http).await.unwrap();
    for method in ["GET", "POST"] {
        for line in [
            "200 Fine by me",
            "299 Just So",
            "226 IM Used",
            "300 Multiple Choices",
            "399 ",
            "418 I'm a teapot",
            "451 Gone \"dark\"",
            "499 Client Closed",
            "520 Web Server Returned an Unknown Error",
            "599 Tab\there",
            "600 Beyond",
            "799 Far Beyond",
            "999 Request denied",
        ] {
            client.say(ask(method, "/", "")).await.unwrap();
            let mut upstream = origin.accept().await.unwrap();
            upstream.head().await.unwrap();
            let said = answer(NEVER, "body").replace("200 OK", line);
            upstream.say(said).await.unwrap();
            let head = client.head().await.unwrap();
            let expected = format!("HTTP/1.1 {line}");
            assert_eq!(head.lines().next(), Some(&*expected), "{method}");
            assert_eq!(&client.exactly(4).await.unwrap()[..], b"body");
        }
    }
}

/// A request with a body that must not get to anybody, and another behind it that must not be heard.
fn smuggling(fields: &str, body: &str) -> Vec<u8> {
    let hidden = "GET /smuggled HTTP/1.1\r\nHost: site.test\r\n\r\n";
    (ask("POST", "/", fields) + body + hidden).into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_doubtful_end_is_refused_and_its_connection_closed() {
    let (origin, cluster) = alone().await;
    let chunked = "Transfer-Encoding: chunked\r\n";
    let coded = |value: &str| format!("Transfer-Encoding:{value}\r\n");
    let sized = |value: &str| format!("Content-Length:{value}\r\n");
    let with_body = format!("{}hello", ask("POST", "/before", &sized("5")));
    let after_chunks = format!(
        "{}5\r\nhello\r\n0\r\nA: b\r\n\r\n",
        ask("POST", "/before", chunked)
    );
    let both = ask("POST", "/", &format!("{}{chunked}", sized("3"))) + "0\r\n\r\n";
    let old = |fields: &str| format!("POST / HTTP/1.0\r\nHost: {HOST}\r\n{fields}\r\n0\r\n\r\n");
    let refused: Vec<(&str, Vec<u8>)> = vec![
        // RFC 9112 §6.1 and §6.3
        ("both lengths", both.clone().into()),
        ("both behind a body", format!("{with_body}{both}").into()),
        ("both behind chunks", format!("{after_chunks}{both}").into()),
        ("both behind empty lines", format!("\r\n\r\n{both}").into()),
        (
            "two lengths",
            smuggling(&(sized("5") + &sized("6")), "hello"),
        ),
        ("a plus", smuggling(&sized("+5"), "hello")),
        ("a list of lengths", smuggling(&sized("5, 5"), "hello")),
        ("two numbers", smuggling(&sized("5 5"), "hello")),
        ("a hex length", smuggling(&sized("0x5"), "hello")),
        ("a negative length", smuggling(&sized("-5"), "hello")),
        ("no length", smuggling(&sized(""), "hello")),
        ("a huge length", smuggling(&sized(&"9".repeat(25)), "hello")),
        (
            "chunked twice",
            smuggling(&coded("chunked, chunked"), "0\r\n\r\n"),
        ),
        (
            "chunked in two fields",
            smuggling(&(coded("chunked") + chunked), "0\r\n\r\n"),
        ),
        ("nearly chunked", smuggling(&coded("xchunked"), "0\r\n\r\n")),
        (
            "chunked and more",
            smuggling(&coded("chunked, identity"), "0\r\n\r\n"),
        ),
        ("identity", smuggling(&coded("identity"), "0\r\n\r\n")),
        (
            "a vertical tab",
            smuggling(&coded("\u{b}chunked"), "0\r\n\r\n"),
        ),
        ("chunks in HTTP/1.0", old(chunked).into()),
        // §5.1 and §5.2
        (
            "a space before the colon",
            smuggling("Content-Length : 5\r\n", "hello"),
        ),
        ("a folded field", smuggling("X: a\r\n b\r\n", "")),
        (
            "a bare CR",
            smuggling("X: a\rContent-Length: 5\r\n", "hello"),
        ),
        ("a NUL", smuggling("X: a\0b\r\n", "")),
        ("no colon", smuggling("X\r\n", "")),
        ("no name", smuggling(": x\r\n", "")),
        (
            "a space first",
            ask("GET", "/", "").replace("Host", " Host").into(),
        ),
        // §7.1
        (
            "a huge chunk",
            smuggling(chunked, &format!("{}\r\nhello", "f".repeat(17))),
        ),
        (
            "no chunk size",
            smuggling(chunked, "\r\nhello\r\n0\r\n\r\n"),
        ),
        (
            "a chunk size with a sign",
            smuggling(chunked, "+5\r\nhello\r\n0\r\n\r\n"),
        ),
        (
            "a chunk size in C",
            smuggling(chunked, "0x5\r\nhello\r\n0\r\n\r\n"),
        ),
        (
            "a bare LF behind a size",
            smuggling(chunked, "5\nhello\r\n0\r\n\r\n"),
        ),
        (
            "a bare LF in an extension",
            smuggling(chunked, "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        ),
        (
            "a chunk that is too long",
            smuggling(chunked, "5\r\nhello!\r\n0\r\n\r\n"),
        ),
        (
            "no line end behind a chunk",
            smuggling(chunked, "5\r\nhello0\r\n\r\n"),
        ),
        (
            "no colon in a trailer",
            smuggling(chunked, "5\r\nhello\r\n0\r\nx\r\n\r\n"),
        ),
        // §3
        ("a fragment", ask("GET", "/a#b", "").into()),
        ("a space in the target", ask("GET", "/a b", "").into()),
        ("an angle bracket", ask("GET", "/<a>", "").into()),
        ("a control character", ask("GET", "/\u{1}", "").into()),
        ("no path", ask("GET", HOST, "").into()),
        ("a star", ask("GET", "*", "").into()),
        (
            "another scheme",
            ask("GET", &format!("ftp://{HOST}/"), "").into(),
        ),
        // §3.2
        (
            "two hosts",
            ask("GET", "/", &format!("Host: {HOST}\r\n")).into(),
        ),
        ("no host", "GET / HTTP/1.1\r\n\r\n".into()),
        (
            "no host but a target",
            format!("GET http://{HOST}/ HTTP/1.1\r\n\r\n").into(),
        ),
        ("an empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n".into()),
        (
            "a host with a user",
            format!("GET / HTTP/1.1\r\nHost: u@{HOST}\r\n\r\n").into(),
        ),
        (
            "a host with a path",
            format!("GET / HTTP/1.1\r\nHost: {HOST}/x\r\n\r\n").into(),
        ),
        (
            "a host with a space",
            format!("GET / HTTP/1.1\r\nHost: {HOST} x\r\n\r\n").into(),
        ),
    ];
    origin.route("/before", Answer::status(204));
    let before = refused
        .iter()
        .filter(|(what, _)| what.ends_with("body") || what.ends_with("chunks"));
    let before = before.count() as u64;
    for (what, request) in refused {
        let mut client = Wire::open(cluster.edges[0].http).await.unwrap();
        client.say(request).await.unwrap();
        let said = client.rest().await.unwrap();
        let said = said
            .strip_prefix("HTTP/1.1 204")
            .map_or(&*said, |rest| rest.split_once("\r\n\r\n").unwrap().1);
        assert!(
            said.starts_with("HTTP/1.1 400 ") || said.starts_with("HTTP/1.0 400 "),
            "{what}: {said}"
        );
        assert_eq!(said.matches("HTTP/1.").count(), 1, "{what}: {said}");
    }
    assert_eq!(origin.requests(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_let_through_is_framed_anew_and_once() {
    // RFC 9112 §6.3
    let (origin, cluster) = between().await;
    let edge = cluster.edges[0].http;
    let length = "\r\ncontent-length: 5\r\n";
    let chunks = "\r\ntransfer-encoding: chunked\r\n";
    for (what, request, framing, body) in [
        (
            "one length, twice",
            ask("POST", "/", "Content-Length: 5\r\nContent-Length: 5\r\n") + "hello",
            length,
            "hello",
        ),
        (
            "zeros before a length",
            ask("POST", "/", "Content-Length: \t 005 \r\n") + "hello",
            "\r\ncontent-length: 005\r\n",
            "hello",
        ),
        (
            "chunks with extensions",
            ask("PUT", "/", "Transfer-Encoding: \t CHUNKED\r\n")
                + "3;a=\"b\"\r\nhel\r\n02 \r\nlo\r\n0;x\r\n\r\n",
            chunks,
            "lo\r\n0\r\n\r\n",
        ),
        (
            "a GET with a body",
            ask("GET", "/", "Transfer-Encoding: chunked\r\n") + "5\r\nhello\r\n0\r\n\r\n",
            chunks,
            "5\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "lines that end in LF, behind empty ones",
            format!("\r\n\nPOST / HTTP/1.1\nHost: {HOST}\nContent-Length: 5\n\nhello"),
            length,
            "hello",
        ),
    ] {
        let mut client = Wire::open(edge).await.unwrap();
        client.say(request).await.unwrap();
        let mut upstream = origin.accept().await.unwrap();
        let head = upstream.head().await.unwrap().to_ascii_lowercase();
        assert!(head.contains(framing), "{what}: {head}");
        let lengths = ["content-length:", "transfer-encoding:"];
        let count: usize = lengths.iter().map(|name| head.matches(name).count()).sum();
        assert_eq!(count, 1, "{what}: {head}");
        upstream.until(body).await.unwrap();
        upstream.say(answer(NEVER, "ok")).await.unwrap();
        client.until("\r\n\r\nok").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_refused_within_its_body_learns_why() {
    // RFC 9112 §9.6: a reset would take the answer away from it.
    let (_origin, cluster) = between().await;
    let mut client = Wire::open(cluster.edges[0].http).await.unwrap();
    let request = format!(
        "POST / HTTP/1.1\r\nHost: elsewhere.test\r\nContent-Length: {}\r\n\r\n",
        1 << 30
    );
    client.say(request).await.unwrap();
    client.say(vec![b'x'; 1 << 20]).await.unwrap();
    let head = client.head().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 421 "), "{head}");
    assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
    // Who closes at once resets what comes after.
    for _ in 0..4 {
        client.say(vec![b'x'; 1 << 20]).await.unwrap();
    }
    client.end().await.unwrap();
    let body = client.rest().await.unwrap();
    assert!(body.starts_with("No site"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_begins_behind_interim_answers_and_as_the_origin_spells_it() {
    // RFC 9110 §7.8
    let (origin, cluster) = between().await;
    let mut client = Wire::open(cluster.edges[0].http).await.unwrap();
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: a\r\n";
    client.say(ask("GET", "/", upgrade)).await.unwrap();
    let mut upstream = origin.accept().await.unwrap();
    let head = upstream.head().await.unwrap();
    assert!(head.contains("\r\nSec-WebSocket-Key: a\r\n"), "{head}");
    let said = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: b\r\n\r\n";
    upstream.say(hints("</a>") + said + "first").await.unwrap();
    assert_eq!(client.head().await.unwrap(), hints("</a>"));
    let head = client.head().await.unwrap();
    assert!(
        head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"),
        "{head}"
    );
    assert!(head.contains("\r\nSec-WebSocket-Accept: b\r\n"), "{head}");
    assert_eq!(&client.exactly(5).await.unwrap()[..], b"first");
    // What looks like a request with a body in there is none, and one end may fall silent before the
    // other.
    let bytes = ask("POST", "/#", "Content-Length: 9\r\n");
    client.say(&bytes).await.unwrap();
    assert_eq!(
        upstream.exactly(bytes.len()).await.unwrap(),
        bytes.as_bytes()
    );
    upstream.end().await.unwrap();
    assert_eq!(client.rest().await.unwrap(), "");
    client.say("last words").await.unwrap();
    client.end().await.unwrap();
    assert_eq!(upstream.rest().await.unwrap(), "last words");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_2_client_gets_the_final_answer_only() {
    let (origin, cluster) = between().await;
    let edge = cluster.edges[0].http;
    let asking = tokio::spawn(async move { get_h2c(edge, HOST, "/").await });
    let mut upstream = origin.accept().await.unwrap();
    upstream.head().await.unwrap();
    upstream
        .say(hints("</a>") + &answer(NEVER, "final"))
        .await
        .unwrap();
    let answer = asking.await.unwrap().unwrap();
    assert_eq!((answer.status, answer.bytes), (200, 5));
    assert!(!answer.headers.contains_key("link"), "{:?}", answer.headers);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_expected_of_a_request_without_a_body_or_of_http_1_0() {
    // RFC 9110 §10.1.1
    let (origin, cluster) = between().await;
    let edge = cluster.edges[0].http;
    let old = format!(
        "POST / HTTP/1.0\r\nHost: {HOST}\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nhi"
    );
    for request in [
        ask("GET", "/", "Expect: 100-continue\r\n"),
        ask("POST", "/", "Expect: 100-continue\r\n"),
        old,
    ] {
        let mut client = Wire::open(edge).await.unwrap();
        client.say(&request).await.unwrap();
        let mut upstream = origin.accept().await.unwrap();
        let head = upstream.head().await.unwrap().to_ascii_lowercase();
        assert!(!head.contains("expect"), "{request}: {head}");
        upstream.say(answer(NEVER, "ok")).await.unwrap();
        let head = client.head().await.unwrap();
        assert!(head.contains(" 200 OK\r\n"), "{request}: {head}");
    }
}
