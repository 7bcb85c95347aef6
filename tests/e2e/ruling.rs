//! What a site's owner rules, as clients and origins notice it.

use std::net::Ipv4Addr;

use anyhow::ensure;
use cluster::site::Site;
use harness::{
    cache_status::Source,
    client::{Client, Response, raw, raw_status},
    cluster::{Cluster, HOST, Node, Plan},
    origin::{Answer, Origin, Script},
    process::{eventually, run},
};
use http::Method;
use toml::{Table, Value};

use crate::{heard_of, started, stored};

/// Gives `site` these rules, written as under `[[site]]`.
fn rule(site: &mut Site, rules: &str) {
    let mut written = Table::try_from(&*site).expect("a site can be written");
    written.extend(rules.parse::<Table>().expect("the rules can be read"));
    *site = written.try_into().expect("the rules are a site's");
}

/// One edge alone, under these rules, in front of a scripted origin.
async fn ruled(rules: &str) -> (Origin, Cluster) {
    let origin = Origin::start().await.expect("a free port");
    let plan = Plan::alone(&origin.url()).site(|site| rule(site, rules));
    (origin, started(plan).await)
}

/// Replaces the rules in the edge's file and starts it again.
async fn ruled_anew(edge: &mut Node, rules: &str) {
    edge.terminate().await.expect("it ends");
    let mut config = edge.read_config().expect("it has a configuration");
    let Some(Value::Array(sites)) = config.get_mut("site") else {
        panic!("no site in {config}");
    };
    let mut site: Site = sites[0].clone().try_into().expect("a site");
    rule(&mut site, rules);
    sites[0] = Value::try_from(&site).expect("a site can be written");
    edge.write_config(&config).expect("it can be written");
    edge.start().await.expect("it starts");
}

/// How often the origin was asked for `path`.
fn asked(origin: &Origin, path: &str) -> usize {
    origin.seen(path).len()
}

fn fwd(answer: &Response) -> Option<String> {
    answer.cache_status().fwd
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lifetime_overrides_what_the_origin_says_of_freshness_but_not_what_is_private() {
    let (origin, cluster) = ruled(
        "[[rule]]\npath = '/static/'\nttl_override = '1h'\n[[rule]]\npath = '/pages/'\nttl = '1h'",
    )
    .await;
    let edge = &cluster.edges[0];
    for (path, field, value, is_kept) in [
        ("/static/no-cache", "cache-control", "no-cache", true),
        ("/static/stale", "cache-control", "max-age=0", true),
        ("/static/silent", "x-nothing", "", true),
        ("/static/private", "cache-control", "private", false),
        ("/static/no-store", "cache-control", "no-store", false),
        ("/static/cookie", "set-cookie", "a=b", false),
        ("/pages/silent", "x-nothing", "", true),
        ("/pages/no-cache", "cache-control", "no-cache", false),
        ("/silent", "x-nothing", "", false),
    ] {
        origin.route(path, Answer::bytes("body").field(field, value));
        edge.get(path).await.unwrap();
        if is_kept {
            stored(edge, path).await;
            assert_eq!(asked(&origin, path), 1, "{path}");
        } else {
            assert!(!edge.get(path).await.unwrap().cache_status().hit, "{path}");
            assert_eq!(asked(&origin, path), 2, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_kept_for_as_long_as_the_rule_for_its_status_says() {
    let (origin, cluster) = ruled(
        "[[rule]]\nstatus = [404, '500-503']\nttl = '1h'\n\
         [[rule]]\npath = '/soon/'\nstatus = [404]\nttl = '1s'",
    )
    .await;
    let edge = &cluster.edges[0];
    for (path, status) in [("/gone", 404), ("/broken", 503)] {
        origin.route(path, Answer::status(status));
        assert_eq!(edge.get(path).await.unwrap().status, status);
        stored(edge, path).await;
        assert_eq!(asked(&origin, path), 1);
    }
    origin.route("/odd", Answer::status(504));
    edge.get("/odd").await.unwrap();
    edge.get("/odd").await.unwrap();
    assert_eq!(asked(&origin, "/odd"), 2);

    assert_eq!(edge.get("/soon/there").await.unwrap().status, 404);
    origin.route("/soon/there", Answer::bytes("here").max_age(60));
    eventually("the 404 is asked about again", async || {
        let answer = edge.get("/soon/there").await?;
        ensure!(answer.status == 200, "{}", answer.status);
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_answer_is_used_within_the_sites_windows() {
    let (origin, cluster) = ruled(
        "stale_if_error = '1h'\n[[rule]]\npath = '/strict/'\nstale_if_error = '0s'\n\
         [[rule]]\npath = '/swift/'\nstale_while_revalidate = '1h'",
    )
    .await;
    let edge = &cluster.edges[0];
    let stale = |body: &str| {
        let tag = format!("\"{body}\"");
        Answer::bytes(body.to_owned()).max_age(0).field("etag", tag)
    };
    for path in ["/page", "/strict/page"] {
        origin.route(path, stale("old"));
        edge.get(path).await.unwrap();
        eventually("it is stored", async || {
            let explained = edge
                .ask(&format!("/explain?url=http://{HOST}{path}"))
                .await?;
            ensure!(
                !explained.json()?["stored"].is_null(),
                "{}",
                explained.text()
            );
            Ok(())
        })
        .await
        .unwrap();
        origin.route(path, Script::Close);
    }
    let page = edge.get("/page").await.unwrap();
    assert_eq!((page.status, page.text().as_str()), (200, "old"));
    assert_eq!(edge.get("/strict/page").await.unwrap().status, 502);

    origin.route("/swift/page", stale("old"));
    edge.get("/swift/page").await.unwrap();
    stored(edge, "/swift/page").await;
    origin.route("/swift/page", stale("new"));
    eventually("it is validated behind the client", async || {
        let answer = edge.get("/swift/page").await?;
        ensure!(answer.cache_status().hit, "{:?}", answer.cache_status());
        ensure!(answer.text() == "new", "{}", answer.text());
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_is_honoured_where_the_site_says_so() {
    let (origin, cluster) = ruled(
        "honour_client_reload = false\n[[rule]]\npath = '/live/'\nhonour_client_reload = true",
    )
    .await;
    let edge = &cluster.edges[0];
    for (path, times) in [("/page", 1), ("/live/page", 2)] {
        origin.route(path, Answer::bytes("a").max_age(600));
        edge.get(path).await.unwrap();
        stored(edge, path).await;
        let reload = [("cache-control", "no-cache")];
        edge.get_with(path, &reload).await.unwrap();
        assert_eq!(asked(&origin, path), times, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_that_do_not_count_are_sent_but_share_an_object() {
    let (origin, cluster) = ruled("[query]\nignore = ['utm_*', 'fbclid']\nsort = true").await;
    let edge = &cluster.edges[0];
    origin.route_by("/a", |seen| {
        Answer::bytes(seen.target.clone()).max_age(600).into()
    });
    let first = "/a?b=2&utm_source=x&a=1&%66bclid=";
    assert_eq!(edge.get(first).await.unwrap().text(), first);
    stored(edge, first).await;
    for same in ["/a?a=1&b=2", "/a?utm_medium=y&b=2&a=1"] {
        let answer = edge.get(same).await.unwrap();
        assert_eq!(
            (answer.text().as_str(), answer.cache_status().hit),
            (first, true),
            "{same}"
        );
    }
    for other in [
        "/a?a=1",
        "/a?a=1&b=2&c",
        "/a?a=2&b=1",
        "/a?a=1&b=2&b=3",
        "/a?a=1&b=3&b=2",
    ] {
        assert_eq!(edge.get(other).await.unwrap().text(), other);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_and_cookies_in_the_key_have_objects_of_their_own() {
    let (origin, cluster) = ruled("[key]\nheaders = ['X-Device']\ncookies = ['currency']").await;
    let edge = &cluster.edges[0];
    origin.route_by("/a", |seen| {
        let said = |name| seen.field(name).unwrap_or("none").to_owned();
        let body = format!("{} {}", said("x-device"), said("cookie"));
        Answer::bytes(body).max_age(600).into()
    });
    let fields: [&[(&str, &str)]; 5] = [
        &[],
        &[("x-device", "tv")],
        &[("x-device", "")],
        &[("cookie", "currency=EUR")],
        &[("x-device", "tv"), ("cookie", "currency=EUR")],
    ];
    for fields in fields {
        let first = edge.get_with("/a", fields).await.unwrap();
        assert_eq!(fwd(&first).as_deref(), Some("uri-miss"), "{fields:?}");
        eventually("it is stored", async || {
            let again = edge.get_with("/a", fields).await?;
            ensure!(again.cache_status().hit && again.body == first.body);
            Ok(())
        })
        .await
        .unwrap();
    }
    assert_eq!(asked(&origin, "/a"), 5);
    let same = [("cookie", "theme=dark; currency=EUR"), ("x-other", "1")];
    assert!(edge.get_with("/a", &same).await.unwrap().cache_status().hit);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_bypasses_the_cache_goes_to_the_origin_and_is_not_stored() {
    let (origin, cluster) =
        ruled("[bypass]\npaths = ['/cart/']\nheaders = ['X-Preview']\ncookies = ['session*']")
            .await;
    let edge = &cluster.edges[0];
    for path in ["/page", "/cart/1"] {
        origin.route_by(path, |seen| {
            let who = seen.field("cookie").unwrap_or("nobody").to_owned();
            Answer::bytes(who).max_age(600).into()
        });
    }
    let mine = [("cookie", "a=b; session_id=me")];
    for _ in 0..2 {
        let answer = edge.get_with("/page", &mine).await.unwrap();
        assert_eq!(fwd(&answer).as_deref(), Some("bypass"));
        assert_eq!(answer.text(), "a=b; session_id=me");
        let answer = edge.get_with("/page", &[("x-preview", "")]).await.unwrap();
        assert_eq!(fwd(&answer).as_deref(), Some("bypass"));
        assert_eq!(
            fwd(&edge.get("/cart/1").await.unwrap()).as_deref(),
            Some("bypass")
        );
    }
    assert_eq!((asked(&origin, "/page"), asked(&origin, "/cart/1")), (4, 2));
    assert_eq!(edge.get("/page").await.unwrap().text(), "nobody");
    stored(edge, "/page").await;
    // What is stored for others is not given to who bypasses.
    let answer = edge.get_with("/page", &mine).await.unwrap();
    assert_eq!(answer.text(), "a=b; session_id=me");
    let only = [mine[0], ("cache-control", "only-if-cached")];
    assert_eq!(edge.get_with("/page", &only).await.unwrap().status, 504);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_request_reaches_neither_cache_nor_origin() {
    let (origin, cluster) = ruled(
        "blocked_by = 'https://legal.test/'\n\
         [[access]]\naction = 'allow'\npaths = ['/admin/']\naddresses = ['127.0.0.2']\n\
         [[access]]\naction = 'deny'\npaths = ['/admin/']\n\
         [[access]]\naction = 'deny'\nmethods = ['DELETE']\n\
         [[access]]\naction = 'deny'\naddresses = ['127.0.0.3/32']\nstatus = 451",
    )
    .await;
    let edge = &cluster.edges[0];
    for path in ["/admin/", "/page"] {
        origin.route(path, Answer::bytes("a").max_age(600));
    }
    // It is in the cache when others ask for it.
    let trusted = Client::bound_to(Ipv4Addr::new(127, 0, 0, 2).into());
    let host = [("host", HOST)];
    let url = edge.url("/admin/");
    let opened = trusted.get_with(&url, &host).await.unwrap();
    assert_eq!(opened.status, 200);
    eventually("it is stored", async || {
        let again = trusted.get_with(&url, &host).await?;
        ensure!(again.cache_status().hit);
        Ok(())
    })
    .await
    .unwrap();
    let before = origin.requests();
    for path in [
        "/admin/",
        "/admin/x",
        "/%61dmin/",
        "/%61%64%6d%69%6e%2f",
        "/%2561dmin/",
        "/x/../admin/",
        "/x/%2e%2e/admin/",
        "/x/..%2Fadmin/",
        "/./admin/",
        "//admin/",
        "/admin;a/x",
        "/x/..;/admin/",
        "/x\\..\\admin/",
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n");
        let answer = raw(edge.http, request.as_bytes()).await.unwrap();
        let status = raw_status(&answer);
        // A path that HTTP does not know is a bad request, and no way around either.
        let is_refused = status == Some(403) || (status == Some(400) && path.contains('\\'));
        assert!(is_refused, "{path}: {status:?}");
    }
    let denied = edge.get("/admin/").await.unwrap();
    assert_eq!(denied.status, 403);
    assert_eq!((fwd(&denied), denied.cache_status().hit), (None, false));
    assert_eq!(denied.field("cache-control"), Some("no-store"));
    assert_eq!(denied.field("link"), None);
    let client = Client::new();
    let (page, nothing) = (edge.url("/page"), bytes::Bytes::new());
    let deleted = client
        .send(Method::DELETE, &page, &host, nothing.clone())
        .await
        .unwrap();
    assert_eq!(deleted.status, 403);
    // RFC 7725 §4
    let blocked = Client::bound_to(Ipv4Addr::new(127, 0, 0, 3).into());
    let answer = blocked.get_with(&page, &host).await.unwrap();
    assert_eq!(answer.status, 451);
    assert_eq!((fwd(&answer), answer.cache_status().hit), (None, false));
    assert_eq!(
        answer.field("link"),
        Some("<https://legal.test/>; rel=\"blocked-by\"")
    );
    let head = blocked
        .send(Method::HEAD, &page, &host, nothing)
        .await
        .unwrap();
    assert_eq!((head.status, head.body.len()), (451, 0));
    assert_eq!(origin.requests(), before);

    assert_eq!(edge.get("/page").await.unwrap().status, 200);
    assert_eq!(edge.get("/administration").await.unwrap().status, 404);
    let errors = edge
        .metric(
            "edge_requests_total",
            &["site=\"site\"", "outcome=\"error\""],
        )
        .await;
    assert!(errors.unwrap() >= 15.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_country_is_blocked_by_the_operators_database() {
    let origin = Origin::start().await.unwrap();
    origin.route("/film", Answer::bytes("film").max_age(600));
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("country.mmdb");
    std::fs::write(&database, database_of("XX")).unwrap();
    let rules = "[[access]]\naction = 'deny'\ncountries = ['XX']\nstatus = 451";
    let plan = Plan::alone(&origin.url())
        .site(|site| rule(site, rules))
        .edge_setting("geo", "database", database.to_str().unwrap());
    let mut cluster = started(plan).await;
    let edge = &mut cluster.edges[0];
    let answer = edge.get("/film").await.unwrap();
    assert_eq!((answer.status, asked(&origin, "/film")), (451, 0));
    // The same node explains it, for this address and for one that the database does not know.
    for (client, then) in [
        ("127.0.0.1", "denied with 451"),
        ("::1", "fetched from the origin: "),
    ] {
        let question = format!("/explain?client={client}&url=http://{HOST}/film");
        let told = edge.ask(&question).await.unwrap().json().unwrap();
        assert!(told["then"].as_str().unwrap().starts_with(then), "{told}");
    }
    // Nobody knows where loopback is, says the database that is built in.
    edge.terminate().await.unwrap();
    let mut config = edge.read_config().unwrap();
    config.remove("geo");
    edge.write_config(&config).unwrap();
    edge.start().await.unwrap();
    assert_eq!(edge.get("/film").await.unwrap().status, 200);
    let unknown = "[[access]]\naction = 'deny'\ncountries = ['??']\nstatus = 451";
    ruled_anew(edge, unknown).await;
    assert_eq!(edge.get("/film").await.unwrap().status, 451);
    edge.terminate().await.unwrap();
    edge.configure("geo", "database", "/nonexistent.mmdb")
        .unwrap();
    let error = format!("{:#}", edge.start().await.unwrap_err());
    assert!(
        error.contains("geo.database") && error.contains("/nonexistent.mmdb"),
        "{error}"
    );
}

/// A MaxMind database in which every IPv4 address is in one country: one node, both of whose
/// branches lead to the one record.
fn database_of(country: &str) -> Vec<u8> {
    let text = |s: &str| [&[0x40 | u8::try_from(s.len()).unwrap()], s.as_bytes()].concat();
    // Unsigned numbers of up to 32 bits, by their type; 64 bits and arrays are extended types.
    let number = |kind: u8, n: u8| vec![kind << 5 | 1, n];
    let map = |entries: &[(&str, Vec<u8>)]| {
        let mut bytes = vec![0xe0 | u8::try_from(entries.len()).unwrap()];
        for (key, value) in entries {
            bytes.extend([text(key), value.clone()].concat());
        }
        bytes
    };
    let (nodes, separator) = (1, 16);
    let record = [0, 0, nodes + separator];
    let mut bytes = [record, record].concat();
    bytes.extend([0; 16]);
    bytes.extend(map(&[("country_code", text(country))]));
    bytes.extend(b"\xab\xcd\xefMaxMind.com");
    bytes.extend(map(&[
        ("binary_format_major_version", number(5, 2)),
        ("binary_format_minor_version", number(5, 0)),
        ("build_epoch", vec![1, 2, 9]),
        ("database_type", text("Test")),
        ("description", map(&[("en", text("test"))])),
        ("ip_version", number(5, 4)),
        ("languages", vec![0, 4]),
        ("node_count", number(6, nodes)),
        ("record_size", number(5, 24)),
    ]));
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn directives_meant_for_this_cache_are_consumed() {
    let (origin, mut cluster) =
        ruled("targets = ['X-Edge-Cache-Control', 'Surrogate-Control']\nforward_targets = false")
            .await;
    let edge = &mut cluster.edges[0];
    let answer = |own: &str| {
        Answer::bytes("a")
            .field("surrogate-control", "max-age=1")
            .field("x-edge-cache-control", own)
            .field("cdn-cache-control", "no-store")
            .field("cache-control", "no-cache")
    };
    origin.route("/kept", answer("max-age=600"));
    origin.route("/passed", answer("no-store"));
    for path in ["/kept", "/passed"] {
        let answer = edge.get(path).await.unwrap();
        assert_eq!(answer.field("x-edge-cache-control"), None, "{path}");
        assert_eq!(answer.field("surrogate-control"), None, "{path}");
        assert_eq!(
            answer.field("cdn-cache-control"),
            Some("no-store"),
            "{path}"
        );
        assert_eq!(answer.field("cache-control"), Some("no-cache"), "{path}");
    }
    stored(edge, "/kept").await;
    let hit = edge.get("/kept").await.unwrap();
    assert_eq!(hit.field("x-edge-cache-control"), None);
    assert!(!edge.get("/passed").await.unwrap().cache_status().stored);

    ruled_anew(edge, "forward_targets = true").await;
    let hit = edge.get("/kept").await.unwrap();
    assert!(hit.cache_status().hit, "{:?}", hit.cache_status());
    assert_eq!(hit.field("x-edge-cache-control"), Some("max-age=600"));
    assert_eq!(hit.field("surrogate-control"), None);
    let passed = edge.get("/passed").await.unwrap();
    assert_eq!(passed.field("x-edge-cache-control"), Some("no-store"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_misses_fetches_what_the_site_says() {
    let (origin, cluster) = ruled("[[rule]]\npath = '/parts/'\nrange_miss = 'part'").await;
    let edge = &cluster.edges[0];
    for (path, range_seen) in [("/whole", None), ("/parts/a", Some("bytes=2-4"))] {
        origin.route_by(path, |seen| {
            let whole = Answer::bytes("0123456789")
                .max_age(600)
                .field("etag", "\"v\"");
            if seen.field("range").is_none() {
                return whole.into();
            }
            let part = "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 2-4/10\r\n\
                        content-length: 3\r\ncache-control: max-age=600\r\netag: \"v\"\r\n\
                        connection: close\r\n\r\n234";
            Script::Raw(part.into())
        });
        let answer = edge
            .get_with(path, &[("range", "bytes=2-4")])
            .await
            .unwrap();
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (206, "234"),
            "{path}"
        );
        let seen = origin.seen(path);
        assert_eq!(
            (seen.len(), seen[0].field("range")),
            (1, range_seen),
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_larger_than_a_rule_allows_passes() {
    let (origin, cluster) =
        ruled("object_max = '1KiB'\n[[rule]]\npath = '/large/'\nobject_max = '1MiB'").await;
    let edge = &cluster.edges[0];
    for (path, times) in [("/file", 2), ("/large/file", 1)] {
        origin.route(path, Answer::bytes(vec![7; 2_000]).max_age(600));
        let first = edge.get(path).await.unwrap();
        assert_eq!(first.body.len(), 2_000);
        if times == 1 {
            stored(edge, path).await;
        }
        edge.get(path).await.unwrap();
        assert_eq!(asked(&origin, path), times, "{path}");
    }
    let told = explained(edge, "/file", "").await;
    assert!(
        told["why"][0].as_str().unwrap().contains("object_max"),
        "{told}"
    );
}

async fn explained(edge: &Node, path: &str, more: &str) -> serde_json::Value {
    let question = format!("/explain?url=http://{HOST}{path}{more}");
    edge.ask(&question).await.unwrap().json().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn new_rules_hold_for_what_is_stored_already() {
    let (origin, mut cluster) = ruled("").await;
    let edge = &mut cluster.edges[0];
    origin.route("/page", Answer::bytes("a").max_age(600));
    origin.route("/silent", Answer::bytes("a"));
    edge.get("/page").await.unwrap();
    stored(edge, "/page").await;
    edge.get("/silent").await.unwrap();
    edge.get("/silent").await.unwrap();
    assert_eq!(asked(&origin, "/silent"), 2);
    let rules = "[[rule]]\nttl = '1h'\n[[access]]\naction = 'deny'\npaths = ['/page']";
    ruled_anew(edge, rules).await;
    assert_eq!(edge.get("/page").await.unwrap().status, 403);
    edge.get("/silent").await.unwrap();
    stored(edge, "/silent").await;
    ruled_anew(edge, "access = []\n[bypass]\npaths = ['/silent']").await;
    assert!(edge.get("/page").await.unwrap().cache_status().hit);
    assert_eq!(
        fwd(&edge.get("/silent").await.unwrap()).as_deref(),
        Some("bypass")
    );
    assert_eq!(asked(&origin, "/page"), 1);
}

/// The control plane hands the rules to every edge, so that all name an object alike.
#[tokio::test(flavor = "multi_thread")]
async fn peers_name_objects_by_the_same_rules() {
    let origin = Origin::start().await.unwrap();
    origin.route("/a", Answer::bytes("a").max_age(600));
    let rules = "[query]\nignore = ['utm_*']\n[key]\ncookies = ['currency']";
    let cluster = started(Plan::new(2, &origin.url()).site(|site| rule(site, rules))).await;
    cluster.settled().await.unwrap();
    let [one, two] = &cluster.edges[..] else {
        unreachable!()
    };
    let euro = [("cookie", "currency=EUR")];
    eventually("it is stored", async || {
        let answer = one.get_with("/a?utm_source=one", &euro).await?;
        ensure!(answer.cache_status().hit, "{:?}", answer.cache_status());
        Ok(())
    })
    .await
    .unwrap();
    heard_of(two, "edge-1", 1).await.unwrap();
    let answer = two.get_with("/a?utm_source=two", &euro).await.unwrap();
    assert_eq!(
        answer.cache_status().source(),
        Source::Peer("edge-1".into())
    );
    let other = two.get("/a").await.unwrap();
    assert_eq!(other.cache_status().source(), Source::Origin);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_says_before_it_starts_what_its_rules_mean() {
    let rules = "[query]\nignore = ['utm_*']\n[bypass]\ncookies = ['session*']\n\
                 [[rule]]\npath = '/static/'\nttl_override = '1h'\n\
                 [[access]]\naction = 'deny'\npaths = ['/admin/']";
    let plan = Plan::alone("http://127.0.0.1:9").site(|site| rule(site, rules));
    let cluster = plan.prepare().await.unwrap();
    let edge = &cluster.edges[0];
    let check = ["check", "--config", edge.config.to_str().unwrap()];
    let (status, said) = run(&edge.binary, &check, &[]).await.unwrap();
    assert!(status.success(), "{said}");
    for sentence in [
        "# Site site:",
        "# - site.test and *.site.test from http://127.0.0.1:9",
        "# - under /static/: answers of status 200-299 are fresh for 1h whatever the origin says; what \
         it keeps private, or says no-store to, is still not stored",
        "# - the query parameter utm_… has no part in telling objects apart, though the origin gets it",
        "# - a request with a cookie session… goes straight to the origin, and nothing is stored",
        "# - access rule 1: a request for a path that begins with /admin/ is denied with 403",
        "# - every other request is served",
    ] {
        assert!(
            said.lines().any(|line| line == sentence),
            "no {sentence:?} in {said}"
        );
    }
    // What it says is still a configuration, and means the same.
    edge.write_config(&said.parse().unwrap()).unwrap();
    let (status, again) = run(&edge.binary, &check, &[]).await.unwrap();
    assert!(status.success());
    assert_eq!(again, said);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_explains_why_not() {
    let (origin, cluster) = ruled(
        "[bypass]\ncookies = ['session*']\n[[access]]\naction = 'deny'\nmethods = ['DELETE']",
    )
    .await;
    let edge = &cluster.edges[0];
    origin.route(
        "/kept",
        Answer::bytes("a").field("cdn-cache-control", "max-age=600"),
    );
    origin.route(
        "/private",
        Answer::bytes("a").field("cache-control", "private"),
    );
    for path in ["/kept", "/private"] {
        edge.get(path).await.unwrap();
    }
    stored(edge, "/kept").await;
    for (path, more, then, why) in [
        (
            "/kept",
            "",
            "answered from this node",
            "max-age=600 in CDN-Cache-Control: fresh for ",
        ),
        (
            "/private",
            "",
            "fetched from the origin",
            "said `private` in Cache-Control",
        ),
        (
            "/kept",
            "&header=Cookie:session=1",
            "sent to the origin",
            "bypass.cookies of site site",
        ),
        (
            "/kept",
            "&header=Cache-Control:no-cache",
            "validated with",
            "honour_client_reload",
        ),
        (
            "/kept",
            "&header=Authorization:x",
            "sent to the origin",
            "with Authorization",
        ),
        (
            "/kept",
            "&method=DELETE",
            "denied with 403",
            "access rule 1 of site site",
        ),
        (
            "/new",
            "&header=Range:bytes=0-1",
            "fetched from the origin",
            "range_miss",
        ),
    ] {
        let told = explained(edge, path, more).await;
        assert!(
            told["then"].as_str().unwrap().starts_with(then),
            "{path}{more}: {told}"
        );
        let mut sentences = told["why"].as_array().unwrap().iter();
        let cites = sentences.any(|sentence| sentence.as_str().unwrap().contains(why));
        assert!(cites, "{path}{more}: {told}");
    }
    assert_eq!(
        edge.ask("/explain?url=http://site.test/&client=me")
            .await
            .unwrap()
            .status,
        400
    );
}
