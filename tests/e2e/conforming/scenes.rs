//! What takes more than one exchange at a time, or an origin that goes away.

use harness::{
    client::{Client, digest},
    cluster::HOST,
    origin::Answer,
    pattern::Pattern,
    process::eventually,
};

use super::A_SECOND_PASSES;
use crate::{SECOND, alone, stored};

/// RFC 9111 §4: a response may answer several requests if it may be reused for each of them.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_while_an_answer_arrives_shares_it() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let body = Pattern::new(1, 1 << 20);
    let slow = Answer::pattern(&body).slowly(64 << 10, SECOND / 8);
    origin.route("/page", slow.max_age(60));
    let (url, host) = (edge.url("/page"), [("host", HOST)]);
    let (parts, first) = Client::new().begin_get(&url, &host).await.unwrap();
    let second = Client::new().digest(&url, &host).await.unwrap();
    let first = digest(parts, first).await.unwrap();
    assert_eq!((first.hash, second.hash), (body.hash(), body.hash()));
    assert_eq!(origin.seen("/page").len(), 1);
    let said = |answer: &harness::client::Digested| {
        let field = answer.headers.get("cache-status").unwrap();
        field.to_str().unwrap().to_owned()
    };
    // RFC 9211 §2.7.
    assert!(said(&second).contains("; collapsed"), "{}", said(&second));
    assert!(!said(&first).contains("; collapsed"), "{}", said(&first));
}

/// Between the end of an answer and its being stored there is no moment in which the origin is
/// asked again.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_at_once_after_an_answer_does_not_bother_the_origin() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    for number in 0..100 {
        let path = format!("/page-{number}");
        origin.route(&path, Answer::bytes(path.clone()).max_age(60));
        for _ in 0..3 {
            assert_eq!(edge.get(&path).await.unwrap().text(), path);
        }
        assert_eq!(origin.seen(&path).len(), 1, "{path}");
    }
}

/// RFC 9111 §4 and §5.2.2.4: what must be validated for every request answers one.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_while_an_answer_arrives_that_must_be_validated_asks_for_itself() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let body = Pattern::new(1, 1 << 20);
    for (path, said, age) in [
        ("/no-cache", "no-cache, max-age=60", "0"),
        ("/stale", "max-age=60", "90"),
        ("/at-once", "max-age=0", "0"),
    ] {
        let slow = Answer::pattern(&body).slowly(64 << 10, SECOND / 8);
        let slow = slow.field("cache-control", said).field("age", age);
        origin.route(path, slow.field("etag", "\"a\""));
        let (url, host) = (edge.url(path), [("host", HOST)]);
        let (_parts, _first) = Client::new().begin_get(&url, &host).await.unwrap();
        let second = Client::new().digest(&url, &host).await.unwrap();
        assert_eq!(second.hash, body.hash(), "{path}");
        assert_eq!(origin.seen(path).len(), 2, "{path}");
    }
}

/// RFC 9111 §5.2.1.4: who wants it validated does not get what was on its way before.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "an answer that is still arriving is handed even to who says no-cache"]
async fn who_says_no_cache_while_an_answer_arrives_asks_for_itself() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let body = Pattern::new(1, 1 << 20);
    let slow = Answer::pattern(&body).slowly(64 << 10, SECOND / 8);
    origin.route("/page", slow.max_age(60).field("etag", "\"a\""));
    let (url, host) = (edge.url("/page"), ("host", HOST));
    let (_parts, _first) = Client::new().begin_get(&url, &[host]).await.unwrap();
    let said = [host, ("cache-control", "no-cache")];
    let second = Client::new().digest(&url, &said).await.unwrap();
    assert_eq!(second.hash, body.hash());
    assert_eq!(origin.seen("/page").len(), 2);
}

/// RFC 5861 §3: one request validates, however many are answered meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_stale_is_validated_behind_once_for_all() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let said = "max-age=1, stale-while-revalidate=60";
    let answer = |text: &'static str| Answer::bytes(text).field("cache-control", said);
    origin.route("/page", answer("old"));
    stored(edge, "/page").await;
    tokio::time::sleep(A_SECOND_PASSES).await;
    let before = origin.seen("/page").len();
    origin.route("/page", answer("new").head_after(SECOND * 2));
    let asked = async || {
        anyhow::ensure!(origin.seen("/page").len() > before);
        Ok(())
    };
    assert_eq!(edge.get("/page").await.unwrap().text(), "old");
    eventually("the origin is asked behind", asked)
        .await
        .unwrap();
    for _ in 0..20 {
        assert_eq!(edge.get("/page").await.unwrap().text(), "old");
    }
    assert_eq!(origin.seen("/page").len(), before + 1);
}

/// RFC 9111 §4.2.4 and RFC 5861 §4, when nobody listens any more.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_outlives_an_origin_that_is_gone() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let rows = [
        ("/fresh", "max-age=600", 200),
        ("/behind", "max-age=1, stale-while-revalidate=60", 200),
        ("/window", "max-age=1, stale-if-error=60", 200),
        ("/passed", "max-age=1, stale-if-error=0", 502),
        ("/none", "max-age=1", 502),
        (
            "/must",
            "max-age=1, stale-if-error=60, must-revalidate",
            502,
        ),
        ("/no-cache", "no-cache, stale-if-error=60", 502),
        ("/shared", "s-maxage=1, stale-if-error=60", 502),
    ];
    for (path, said, _) in rows {
        let answer = Answer::bytes(path).field("cache-control", said);
        origin.route(path, answer.field("etag", "\"a\""));
        assert_eq!(edge.get(path).await.unwrap().status, 200);
    }
    drop(origin);
    tokio::time::sleep(A_SECOND_PASSES).await;
    for (path, said, status) in rows {
        let answer = edge.get(path).await.unwrap();
        assert_eq!(answer.status, status, "{said}");
        assert!(status != 200 || answer.text() == path, "{said}");
    }
    let unknown = edge.get("/unknown").await.unwrap();
    assert_eq!(unknown.status, 502);
    // RFC 9110 §15.6: an error of the gateway's own is nobody's to keep.
    assert_eq!(unknown.field("cache-control"), Some("no-store"));
}
