//! What takes more than one exchange at a time, or an origin that goes away.

use harness::{
    cache_status::Source,
    client::{Client, digest},
    cluster::{HOST, Plan},
    origin::{Answer, Origin},
    pattern::Pattern,
    process::eventually,
};
use http::Method;

use super::A_SECOND_PASSES;
use crate::{SECOND, alone, heard_of, started, stored};

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

/// RFC 9111 §3: what could not be shared before does not stand in the way of what can.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_can_be_shared_again_is_kept_at_once() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    origin.route(
        "/page",
        Answer::bytes("mine").field("cache-control", "private"),
    );
    for _ in 0..2 {
        assert_eq!(edge.get("/page").await.unwrap().text(), "mine");
    }
    origin.route("/page", Answer::bytes("ours").max_age(60));
    for _ in 0..3 {
        assert_eq!(edge.get("/page").await.unwrap().text(), "ours");
    }
    assert_eq!(origin.seen("/page").len(), 3);
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

/// RFC 9111 §4.1: who waits for an answer that turns out to be for other fields asks for itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_variants_gets_each_its_own() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    origin.route_by("/page", |seen| {
        let value = seen.field("x-a").unwrap_or_default().to_owned();
        let answer = Answer::bytes(value).max_age(60).field("vary", "X-A");
        answer.head_after(SECOND / 2).into()
    });
    const VARIANTS: usize = 20;
    for _ in 0..2 {
        let visits = (0..3 * VARIANTS).map(|n| {
            let url = edge.url("/page");
            tokio::spawn(async move {
                let value = (n % VARIANTS).to_string();
                let fields = [("host", HOST), ("x-a", value.as_str())];
                let answer = Client::new().get_with(&url, &fields).await.unwrap();
                assert_eq!(answer.text(), value);
            })
        });
        for visit in visits.collect::<Vec<_>>() {
            visit.await.unwrap();
        }
        // Each variant was fetched once, however many waited for it.
        assert_eq!(origin.seen("/page").len(), VARIANTS);
        tokio::time::sleep(SECOND / 2).await;
    }
}

/// RFC 9111 §3.5, §5.2.1.5, §7.3: what one asked for secretly is not what another, who comes at the
/// same time, gets; whoever of the two comes first.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_does_not_get_what_was_meant_for_somebody_else() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    for (number, (first, second)) in [
        (("authorization", "Basic b25l"), ("x-name", "two")),
        (("x-name", "one"), ("authorization", "Basic dHdv")),
        (
            ("authorization", "Basic b25l"),
            ("authorization", "Basic dHdv"),
        ),
        (("cache-control", "no-store"), ("x-name", "two")),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/account-{number}");
        origin.route_by(&path, |seen| {
            let names = ["authorization", "x-name"];
            let name = names.iter().find_map(|name| seen.field(name));
            let answer = Answer::bytes(name.unwrap_or("one").to_owned()).max_age(60);
            answer.head_after(SECOND / 2).into()
        });
        let ask = |(name, value): (&'static str, &'static str)| {
            let url = edge.url(&path);
            async move {
                let fields = [("host", HOST), (name, value)];
                Client::new().get_with(&url, &fields).await.unwrap().text()
            }
        };
        let later = async {
            tokio::time::sleep(SECOND / 5).await;
            ask(second).await
        };
        let (one, two) = tokio::join!(ask(first), later);
        let name = |(name, value)| {
            if name == "cache-control" {
                "one"
            } else {
                value
            }
        };
        assert_eq!((one.as_str(), two.as_str()), (name(first), name(second)));
        assert_eq!(origin.seen(&path).len(), 2, "{path}");
    }
}

/// RFC 9111 §4.4: what was on its way when it became doubtful answers nobody who asks afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_post_made_doubtful_on_its_way_is_not_kept() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let (old, new) = (Pattern::new(1, 1 << 20), Pattern::new(2, 1 << 20));
    let slow = |body: &Pattern| {
        Answer::pattern(body)
            .max_age(60)
            .slowly(64 << 10, SECOND / 16)
    };
    origin.route("/page", slow(&old));
    let (url, host) = (edge.url("/page"), [("host", HOST)]);
    let (parts, first) = Client::new().begin_get(&url, &host).await.unwrap();
    origin.route_by("/page", move |seen| match seen.method.as_str() {
        "POST" => Answer::status(204).into(),
        _ => slow(&new).into(),
    });
    let posted = Client::new()
        .send(Method::POST, &url, &host, "x".into())
        .await;
    assert_eq!(posted.unwrap().status, 204);
    let new = Pattern::new(2, 1 << 20);
    let second = Client::new().digest(&url, &host).await.unwrap();
    assert_eq!(second.hash, new.hash());
    // Who began before still gets all of the old one, which comes to its end meanwhile.
    assert_eq!(digest(parts, first).await.unwrap().hash, old.hash());
    let third = Client::new().digest(&url, &host).await.unwrap();
    assert_eq!(third.hash, new.hash());
}

/// RFC 9110 §14: ranges of what nobody has yet, all at once.
#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_a_cold_object_are_its_bytes() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    const LENGTH: u64 = 3 << 20;
    let body = Pattern::new(3, LENGTH);
    let slow = Answer::pattern(&body).max_age(60).field("etag", "\"a\"");
    origin.route("/file", slow.slowly(64 << 10, SECOND / 50));
    let places = [
        (0, 1),
        (1, 1000),
        (LENGTH - 1, LENGTH),
        (0, LENGTH),
        (1 << 20, 2 << 20),
    ];
    let visits = places.into_iter().cycle().take(20).map(|(start, end)| {
        let (url, hash) = (edge.url("/file"), body.hash_of(start, end));
        tokio::spawn(async move {
            let range = format!("bytes={start}-{}", end - 1);
            let fields = [("host", HOST), ("range", range.as_str())];
            let part = Client::new().digest(&url, &fields).await.unwrap();
            assert_eq!((part.status, part.bytes), (206, end - start), "{range}");
            assert_eq!(part.hash, hash, "{range}");
        })
    });
    for visit in visits.collect::<Vec<_>>() {
        visit.await.unwrap();
    }
    assert_eq!(edge.get("/file").await.unwrap().body, body.bytes());
}

/// Who waits for somebody whose answer fails is told so, or asks for itself; nobody waits for ever.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_an_answer_that_fails_waits_no_longer() {
    let (origin, cluster) = alone().await;
    let edge = &cluster.edges[0];
    let close = Answer::pattern(&Pattern::new(4, 1 << 20)).max_age(60);
    origin.route("/late", Answer::status(503).head_after(SECOND / 2));
    origin.route("/cut", close.head_after(SECOND / 2).cut_after(300_000));
    for (path, whole) in [("/late", true), ("/cut", false)] {
        let visits = (0..10).map(|_| {
            let url = edge.url(path);
            tokio::spawn(async move { Client::new().get_with(&url, &[("host", HOST)]).await })
        });
        for visit in visits.collect::<Vec<_>>() {
            let answer = visit.await.unwrap();
            // What is cut must look cut: a length that is not reached, or a status that says so.
            let failed = answer.as_ref().map_or(true, |answer| answer.status >= 500);
            assert!(failed && answer.is_ok() >= whole, "{path}: {answer:?}");
        }
    }
}

/// RFC 9111 §3: what is kept on disk is what was kept, with its age, its variants, and its rules.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_means_the_same_after_a_restart() {
    let (origin, mut cluster) = alone().await;
    let tagged = |text: &'static str, said: &str| {
        let answer = Answer::bytes(text).field("cache-control", said);
        answer.field("etag", format!("\"{text}\""))
    };
    origin.route("/fresh", tagged("fresh", "max-age=600").field("x-own", "1"));
    origin.route("/aged", tagged("aged", "max-age=600").field("age", "100"));
    origin.route("/always", tagged("always", "no-cache"));
    origin.route("/error", tagged("error", "max-age=1, stale-if-error=600"));
    origin.route(
        "/must",
        tagged("must", "max-age=1, stale-if-error=600, must-revalidate"),
    );
    origin.route(
        "/moved",
        Answer::status(301).max_age(600).field("location", "/fresh"),
    );
    origin.route_by("/varied", |seen| {
        let value = seen.field("x-a").unwrap_or_default().to_owned();
        Answer::bytes(value)
            .max_age(600)
            .field("vary", "X-A")
            .into()
    });
    let body = Pattern::new(5, 3 << 20);
    origin.route("/large", Answer::pattern(&body).max_age(600));
    let once = [
        "/fresh", "/aged", "/always", "/error", "/must", "/moved", "/large",
    ];
    let varied = |value: &'static str| [("x-a", value)];
    {
        let edge = &cluster.edges[0];
        for path in once {
            edge.get(path).await.unwrap();
        }
        for value in ["1", "2"] {
            edge.get_with("/varied", &varied(value)).await.unwrap();
        }
        stored(edge, "/large").await;
    }
    tokio::time::sleep(A_SECOND_PASSES).await;
    cluster.edges[0].terminate().await.unwrap();
    cluster.edges[0].start().await.unwrap();

    let edge = &cluster.edges[0];
    let age = |answer: &harness::client::Response| answer.field("age").unwrap().parse::<u32>();
    let fresh = edge.get("/fresh").await.unwrap();
    assert_eq!(
        (fresh.text().as_str(), fresh.field("x-own")),
        ("fresh", Some("1"))
    );
    assert!((2..100).contains(&age(&fresh).unwrap()));
    let aged = edge.get("/aged").await.unwrap();
    assert!((102..200).contains(&age(&aged).unwrap()));
    let moved = edge.get("/moved").await.unwrap();
    assert_eq!(
        (moved.status, moved.field("location")),
        (301, Some("/fresh"))
    );
    for value in ["2", "1"] {
        let answer = edge.get_with("/varied", &varied(value)).await.unwrap();
        assert_eq!(answer.text(), value);
    }
    let range = [("range", "bytes=2000000-2000099")];
    let part = edge.get_with("/large", &range).await.unwrap();
    assert_eq!(
        (part.status, &part.body[..]),
        (206, &body.bytes()[2_000_000..2_000_100])
    );
    let always = edge.get("/always").await.unwrap();
    assert_eq!((always.status, always.text().as_str()), (200, "always"));
    for (path, asked) in [
        ("/fresh", 1),
        ("/aged", 1),
        ("/moved", 1),
        ("/varied", 2),
        ("/large", 1),
        ("/always", 2),
    ] {
        assert_eq!(origin.seen(path).len(), asked, "{path}");
    }
    let seen = origin.seen("/always");
    assert_eq!(seen[1].field("if-none-match"), Some("\"always\""));

    drop(origin);
    let error = edge.get("/error").await.unwrap();
    assert_eq!((error.status, error.text().as_str()), (200, "error"));
    assert_eq!(edge.get("/must").await.unwrap().status, 502);
}

/// RFC 9111 §4: what another edge holds is used as if it were stored here, by the same rules.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_holds_is_used_as_if_it_were_stored_here() {
    let origin = Origin::start().await.unwrap();
    let cluster = started(Plan::new(2, &origin.url())).await;
    cluster.settled().await.unwrap();
    let [one, two] = &cluster.edges[..] else {
        unreachable!()
    };
    type Fields = &'static [(&'static str, &'static str)];
    const FRESH: (&str, &str) = ("cache-control", "max-age=600");
    const CDN_FRESH: (&str, &str) = ("cdn-cache-control", "max-age=600");
    // What the origin says, what the second edge is asked, and whether the first one may answer.
    let rows: [(Fields, Fields, bool); 13] = [
        (&[FRESH], &[], true),
        (&[FRESH, ("age", "100")], &[], true),
        (&[("cache-control", "max-age=1")], &[], false),
        (&[("cache-control", "no-cache")], &[], false),
        (&[CDN_FRESH, ("cache-control", "no-cache")], &[], true),
        (&[("cdn-cache-control", "max-age=1"), FRESH], &[], false),
        (&[FRESH], &[("cache-control", "no-cache")], false),
        (&[FRESH], &[("cache-control", "max-age=1")], false),
        (&[FRESH], &[("pragma", "no-cache")], false),
        (&[FRESH], &[("authorization", "Basic eDp5")], false),
        (&[FRESH, ("vary", "X-A")], &[], true),
        (&[FRESH, ("vary", "X-A")], &[("x-a", "2")], false),
        (
            &[
                ("cache-control", "public, max-age=600"),
                ("set-cookie", "a=1"),
            ],
            &[],
            true,
        ),
    ];
    let path = |number: usize| format!("/row-{number}");
    for (number, (said, ..)) in rows.iter().enumerate() {
        let answer = Answer::bytes(path(number)).field("etag", "\"a\"");
        let answer = (said.iter()).fold(answer, |all, (name, value)| all.field(name, *value));
        origin.route(&path(number), answer);
        one.get(&path(number)).await.unwrap();
    }
    // Of what has no life left nobody is told.
    let lasts = |said: &&(Fields, Fields, bool)| {
        let says = |what| said.0.iter().any(|(_, value)| *value == what);
        !says("max-age=1") && (!says("no-cache") || says("max-age=600"))
    };
    let lasting = rows.iter().filter(lasts).count();
    heard_of(two, "edge-1", lasting as u64).await.unwrap();
    tokio::time::sleep(A_SECOND_PASSES).await;
    for (number, (said, asked, shared)) in rows.iter().enumerate() {
        let answer = two.get_with(&path(number), asked).await.unwrap();
        assert_eq!(answer.text(), path(number));
        let source = if *shared {
            Source::Peer("edge-1".into())
        } else {
            Source::Origin
        };
        let status = answer.cache_status();
        assert_eq!(status.source(), source, "{said:?} {asked:?}: {status:?}");
        assert_eq!(answer.field("set-cookie"), None);
        let seen = origin.seen(&path(number)).len();
        assert_eq!(seen, if *shared { 1 } else { 2 }, "{said:?} {asked:?}");
        if *shared {
            let age: u32 = answer.field("age").unwrap().parse().unwrap();
            let before = if said.contains(&("age", "100")) {
                100
            } else {
                0
            };
            assert!((before + 2..before + 90).contains(&age), "{said:?}: {age}");
        }
    }
}

/// RFC 9111 §4.4: who has changed something does not get it from a peer as it was before.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_post_made_doubtful_does_not_come_back_from_a_peer() {
    let origin = Origin::start().await.unwrap();
    let cluster = started(Plan::new(2, &origin.url())).await;
    cluster.settled().await.unwrap();
    let [one, two] = &cluster.edges[..] else {
        unreachable!()
    };
    origin.route("/page", Answer::bytes("old").max_age(600));
    assert_eq!(one.get("/page").await.unwrap().text(), "old");
    heard_of(two, "edge-1", 1).await.unwrap();
    origin.route("/page", Answer::bytes("new").max_age(600));
    let url = two.url("/page");
    let host = [("host", HOST)];
    let posted = Client::new()
        .send(Method::POST, &url, &host, "x".into())
        .await;
    assert_eq!(posted.unwrap().status, 200);
    assert_eq!(two.get("/page").await.unwrap().text(), "new");
}
