//! Several origins of a site: which is asked, what happens when one fails, and how that is seen. And what
//! origins learn of clients.

use anyhow::ensure;
use cluster::{
    quantity::Span,
    site::{
        origin::{HealthRule, Origin as SiteOrigin},
        privacy::{ClientAddress, Privacy},
        rules::Statuses,
    },
};
use harness::{
    client::{Client, Response},
    cluster::{Node, Plan},
    origin::{Answer, Origin, Seen},
    process::eventually,
};
use http::Method;

use crate::{SECOND, started};

/// An origin that answers everything below `/o/`, and says that it is well.
async fn origin(name: &'static str, objects: usize) -> Origin {
    let origin = Origin::start().await.unwrap();
    say(&origin, name, objects, 200);
    origin
}

fn say(origin: &Origin, name: &'static str, objects: usize, status: u16) {
    for n in 0..objects {
        let answer = Answer::bytes(name).with_status(status).max_age(600);
        origin.route(&format!("/o/{n}"), answer);
    }
    origin.route("/health", Answer::bytes("well").with_status(status));
}

fn weighed(origin: &Origin, weight: u32, backup: bool) -> SiteOrigin {
    SiteOrigin {
        weight,
        backup,
        ..SiteOrigin::from(&*origin.url())
    }
}

async fn fetched(edge: &Node, objects: std::ops::Range<usize>) -> Vec<String> {
    let mut bodies = Vec::new();
    for n in objects {
        let answer = edge.get(&format!("/o/{n}")).await.unwrap();
        assert_eq!(answer.status, 200, "{n}: {}", answer.text());
        bodies.push(answer.text());
    }
    bodies
}

fn count(bodies: &[String], name: &str) -> usize {
    bodies.iter().filter(|body| *body == name).count()
}

/// `origins` of what `/explain` says.
async fn explained(edge: &Node, path: &str) -> serde_json::Value {
    let path = format!("/explain?url=http://site.test{path}");
    edge.ask(&path).await.unwrap().json().unwrap()["origins"].clone()
}

/// Objects are shared by weight, and each stays with its origin; when that cannot be reached, another has
/// it, and the backup only when nobody else is there.
#[tokio::test(flavor = "multi_thread")]
async fn objects_are_shared_by_weight_and_go_on_when_an_origin_is_gone() {
    const OBJECTS: usize = 400;
    let (a, b) = (origin("a", OBJECTS).await, origin("b", OBJECTS).await);
    let last = origin("backup", OBJECTS).await;
    let plan = Plan::alone(&a.url()).site(|site| {
        site.origins = vec![
            weighed(&a, 1, false),
            weighed(&b, 3, false),
            weighed(&last, 9, true),
        ];
    });
    let cluster = started(plan).await;
    let edge = &cluster.edges[0];
    let bodies = fetched(edge, 0..200).await;
    let from_b = count(&bodies, "b");
    assert!(
        (125..175).contains(&from_b),
        "{from_b} of 200, of which 150 are due"
    );
    assert_eq!(from_b + count(&bodies, "a"), 200);
    let told = explained(edge, "/o/0").await;
    let first = told[0]["url"].as_str().unwrap();
    assert_eq!(first == b.url(), bodies[0] == "b", "{told}");
    assert_eq!(told[2]["why"], "a backup, asked when no other is well");

    drop(b);
    let bodies = fetched(edge, 200..300).await;
    assert_eq!(count(&bodies, "a"), 100);
    drop(a);
    let bodies = fetched(edge, 300..OBJECTS).await;
    assert_eq!(count(&bodies, "backup"), 100);
    let told = explained(edge, "/o/300").await;
    assert_eq!(told[0]["url"], last.url(), "{told}");
    assert_eq!(told[1]["standing"], "unreachable", "{told}");
}

/// What a site names as failing goes to the next origin, if it may be asked twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_says_so_goes_to_the_next_origin_for_what_is_safe() {
    let (bad, good) = (origin("bad", 0).await, origin("good", 2).await);
    say(&bad, "busy", 2, 503);
    let plan = Plan::alone(&bad.url()).site(|site| {
        site.origins = vec![weighed(&bad, 1, false), weighed(&good, 1, true)];
        site.failover = vec![Statuses {
            first: 502,
            last: 504,
        }];
    });
    let cluster = started(plan).await;
    let edge = &cluster.edges[0];
    assert_eq!(fetched(edge, 0..2).await, ["good", "good"]);
    assert_eq!((bad.requests(), good.requests()), (2, 2));
    let host = [("host", "site.test")];
    let send = Client::new();
    let posted = send
        .send(Method::POST, &edge.url("/o/0"), &host, "x".into())
        .await;
    assert_eq!(posted.unwrap().status, 503);
    assert_eq!((bad.requests(), good.requests()), (3, 2));
}

/// Each node finds out by itself whether an origin is well, and shows it.
#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_fails_its_checks_is_asked_no_more_until_it_is_well() {
    const OBJECTS: usize = 60;
    let (a, b) = (origin("a", OBJECTS).await, origin("b", OBJECTS).await);
    let plan = Plan::alone(&a.url()).site(|site| {
        site.origins = vec![weighed(&a, 1, false), weighed(&b, 1, false)];
        site.health = Some(HealthRule {
            interval: Span(SECOND),
            timeout: Span(SECOND / 2),
            healthy_after: 1,
            unhealthy_after: 2,
            ..HealthRule::new("/health?deep=1")
        });
    });
    let cluster = started(plan).await;
    let edge = &cluster.edges[0];
    let healthy = async |expected: f64| {
        eventually("the checks say so", async || {
            let url = a.url();
            let healthy = edge
                .metric("edge_origin_healthy", &["site=\"site\"", &url])
                .await?;
            ensure!((healthy - expected).abs() < 0.1, "{healthy}");
            Ok(())
        })
        .await
        .unwrap();
    };
    healthy(1.0).await;
    let bodies = fetched(edge, 0..20).await;
    assert!(
        count(&bodies, "a") > 0 && count(&bodies, "b") > 0,
        "{bodies:?}"
    );
    // It still serves, but says that it is not well.
    a.route("/health", Answer::status(503));
    healthy(0.0).await;
    let bodies = fetched(edge, 20..40).await;
    assert_eq!(count(&bodies, "b"), 20);
    let told = explained(edge, "/o/1").await;
    assert_eq!(told[0]["url"], b.url(), "{told}");
    assert_eq!(told[1]["why"], "fails its checks: answered 503", "{told}");
    a.route("/health", Answer::bytes("well"));
    healthy(1.0).await;
    let bodies = fetched(edge, 40..OBJECTS).await;
    assert!(count(&bodies, "a") > 0, "{bodies:?}");
    let check = a.seen("/health").pop().unwrap();
    assert_eq!(
        (check.method.as_str(), check.target.as_str()),
        ("GET", "/health?deep=1")
    );
    assert_eq!(check.field("host"), Some("site.test"));
    // A second apart, a tenth more or less, for all the time that this took.
    let checks = a.seen("/health").len();
    tokio::time::sleep(SECOND * 3).await;
    let more = a.seen("/health").len() - checks;
    assert!((2..=4).contains(&more), "{more} checks in three seconds");
}

/// The fields of the one request for `path` that the origin has seen.
fn seen(origin: &Origin, path: &str) -> Seen {
    let mut seen = origin.seen(path);
    assert_eq!(seen.len(), 1, "{path}");
    seen.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_origin_learns_of_a_client_what_the_site_lets_it() {
    let origin = origin("o", 3).await;
    let told = [
        ("user-agent", "browser"),
        ("referer", "http://elsewhere.test/secret"),
        ("cookie", "session=1"),
        ("x-forwarded-for", "192.0.2.7"),
        ("accept", "text/x"),
    ];
    let ask = async |privacy: Privacy, n: usize| -> Response {
        let plan = Plan::alone(&origin.url()).site(|site| site.privacy = privacy);
        let cluster = started(plan).await;
        cluster.edges[0]
            .get_with(&format!("/o/{n}"), &told)
            .await
            .unwrap()
    };
    ask(Privacy::default(), 0).await;
    let all = seen(&origin, "/o/0");
    assert_eq!(all.field("user-agent"), Some("browser"));
    assert_eq!(all.field("cookie"), Some("session=1"));
    assert!(all.field("forwarded").unwrap().contains("for=127.0.0.1;"));
    let some = Privacy {
        client_address: ClientAddress::Truncated,
        user_agent: false,
        ..Privacy::default()
    };
    ask(some, 1).await;
    let some = seen(&origin, "/o/1");
    assert_eq!(some.field("user-agent"), None);
    assert_eq!(some.field("x-forwarded-for"), Some("127.0.0.0"));
    assert!(
        some.field("forwarded")
            .unwrap()
            .starts_with("for=127.0.0.0;")
    );
    assert_eq!(some.field("referer"), Some("http://elsewhere.test/secret"));
    let none = Privacy {
        client_address: ClientAddress::None,
        user_agent: false,
        referer: false,
        cookies: false,
    };
    let answer = ask(none, 2).await;
    assert_eq!(answer.text(), "o");
    let none = seen(&origin, "/o/2");
    assert_eq!(none.field("accept"), Some("text/x"));
    for name in ["user-agent", "referer", "cookie", "x-forwarded-for"] {
        assert_eq!(none.field(name), None, "{name}");
    }
    assert!(none.field("forwarded").unwrap().starts_with("for=unknown;"));
    assert!(
        none.fields
            .iter()
            .all(|(_, value)| !value.contains("127.0.0.1")
                || value.contains(&origin.address().to_string())),
        "{:?}",
        none.fields
    );
}
