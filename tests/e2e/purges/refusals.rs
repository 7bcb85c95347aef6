//! Purges that cannot be meant, or may not be asked for.

use harness::cluster::HOST;
use http::Method;
use serde_json::json;

use super::{Stage, log, post};

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_meant_is_refused_with_its_place_and_changes_nothing() {
    let stage = Stage::new(1).await;
    let control = stage.control();
    let before = log(control).await.unwrap();
    let long = "x".repeat(2_049);
    let many = vec!["/a"; 10_000];
    for (body, code, field) in [
        (json!({"site": "none", "all": true}), 404, "site"),
        (json!({"all": true}), 422, "site"),
        (json!({"site": "site"}), 422, "urls"),
        (
            json!({"site": "site", "urls": ["/a", "a b"]}),
            422,
            "urls[1]",
        ),
        (
            json!({"site": "site", "urls": ["http://other.test/"]}),
            422,
            "urls[0]",
        ),
        (json!({"site": "site", "tags": [long]}), 422, "tags[0]"),
        (json!({"site": "site", "urls": many}), 413, "urls"),
        (json!({"site": "site", "url": "/a"}), 422, "url"),
        (json!({"site": "site", "all": true, "wait": 3}), 422, "wait"),
    ] {
        let answer = post(control, &body).await;
        let text: String = body.to_string().chars().take(80).collect();
        assert_eq!(answer.status, code, "{text}: {}", answer.text());
        assert_eq!(answer.json().unwrap()["field"], field, "{text}");
    }
    let url = control.url("/v1/purges");
    let client = harness::client::Client::new();
    let broken = client
        .send(Method::POST, &url, &[], "{\"site\": ".into())
        .await;
    assert_eq!(broken.unwrap().status, 400);
    let large = client
        .send(Method::POST, &url, &[], vec![b' '; 3 << 20].into())
        .await;
    assert_eq!(large.unwrap().status, 413);
    for (path, code) in [
        ("/v1/purges/1000000", 404),
        ("/v1/purges/x", 404),
        ("/v1/purges?limit=0", 400),
        ("/v1/purges?limit=9999", 400),
        ("/v1/purges?after=x", 400),
        ("/v1/purges?befor=1", 400),
    ] {
        let answer = control.ask(path).await.unwrap();
        assert_eq!(answer.status, code, "{path}: {}", answer.text());
    }
    assert_eq!(log(control).await.unwrap(), before);
    let elsewhere = [("x-forwarded-for", "192.0.2.1")];
    let body = json!({"site": "site", "all": true}).to_string();
    let refused = client
        .send(Method::POST, &url, &elsewhere, body.into())
        .await;
    assert_eq!(refused.unwrap().status, 403);
    assert_eq!(log(control).await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_takes_purges_only_from_where_the_site_says() {
    let stage = Stage::with(1, |plan| {
        plan.site(|site| site.purge_from = vec!["192.0.2.0/24".parse().unwrap()])
    })
    .await;
    stage.old_everywhere().await;
    let edge = &stage.cluster.edges[0];
    let url = format!("http://{}/a", edge.http);
    let client = harness::client::Client::new();
    let before = stage.origin.seen("/a").len();
    for fields in [
        &[("host", HOST)][..],
        &[("host", HOST), ("x-forwarded-for", "192.0.2.1")],
    ] {
        for method in ["PURGE", "BAN", "PURGEKEYS"] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let answer = client.send(method, &url, fields, "".into()).await.unwrap();
            assert_eq!(answer.status, 403, "{}", answer.text());
        }
    }
    let purge = || Method::from_bytes(b"PURGE").unwrap();
    let other = [("host", "other.test")];
    let unknown = client.send(purge(), &url, &other, "".into()).await.unwrap();
    assert_eq!(unknown.status, 421);
    assert_eq!(stage.origin.seen("/a").len(), before);
    assert_eq!(stage.gone().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_without_a_control_plane_says_so() {
    let mut stage = Stage::with(1, |plan| {
        plan.site(|site| site.purge_from = vec!["127.0.0.1".parse().unwrap()])
    })
    .await;
    stage.cluster.control().kill9().await.unwrap();
    let url = format!("http://{}/a", stage.cluster.edges[0].http);
    let client = harness::client::Client::new();
    let purge = Method::from_bytes(b"PURGE").unwrap();
    let answer = client
        .send(purge, &url, &[("host", HOST)], "".into())
        .await
        .unwrap();
    assert_eq!(answer.status, 503, "{}", answer.text());
}
