//! Purges as plugins ask Fastly or Varnish for them, at a control plane or an edge.

use std::path::Path;

use harness::{cluster::HOST, origin::Answer, process::run};
use http::Method;

use super::{PAGES, Stage};
use crate::installed;

/// What curl is told with these arguments: the status, and the body.
async fn curl(binary: &Path, arguments: &[&str]) -> (u16, String) {
    let fixed = ["-sS", "-m", "20", "-w", "\n%{http_code}"];
    let arguments = [&fixed[..], arguments].concat();
    let (_, said) = run(binary, &arguments, &[]).await.unwrap();
    let (body, code) = said.trim_end().rsplit_once('\n').unwrap_or(("", &said));
    (code.trim().parse().unwrap_or(0), body.to_owned())
}

/// The control plane, and an edge, are asked as plugins ask: each row as its documentation has it.
#[tokio::test(flavor = "multi_thread")]
async fn plugins_are_understood_wherever_they_ask() {
    let Some(binary) = installed("curl") else {
        return;
    };
    let stage = Stage::with(2, |plan| {
        plan.site(|site| site.purge_from = vec!["127.0.0.0/8".parse().unwrap()])
    })
    .await;
    let host = format!("host: {HOST}");
    let at_control = stage.control().url("");
    let at_edge = format!("http://{}", stage.cluster.edges[1].http);
    let varnish: [(&str, &str, &[&str], &[&str]); 8] = [
        ("PURGE", "/a", &[], &["/a"]),
        ("PURGE", "/.*", &["X-Purge-Method: regex"], &PAGES),
        (
            "PURGE",
            "/img/.*",
            &["X-Purge-Method: regex"],
            &["/img/1", "/img/2"],
        ),
        (
            "PURGE",
            "/",
            &["X-Magento-Tags-Pattern: ((^|,)a(,|$))|((^|,)b(,|$))"],
            &["/a", "/b"],
        ),
        (
            "PURGEKEYS",
            "/",
            &["xkey-purge: a img-2"],
            &["/a", "/img/2"],
        ),
        (
            "BAN",
            "/",
            &["X-Cache-Tags: (^|,)(b|img\\-1)(,|$)"],
            &["/b", "/img/1"],
        ),
        (
            "BAN",
            "/",
            &["X-Host: .*", "X-Url: ^/img/.*", "X-Content-Type: .*"],
            &["/img/1", "/img/2"],
        ),
        ("BAN", "/", &["Cache-Tags: all"], &PAGES),
    ];
    for (n, (method, path, fields, gone)) in varnish.into_iter().enumerate() {
        for base in [&at_control, &at_edge] {
            stage.clean().await;
            stage.old_everywhere().await;
            let url = format!("{base}{path}");
            let mut arguments = vec!["--path-as-is", "-X", method, "-H", &host];
            arguments.extend(fields.iter().flat_map(|field| ["-H", field]));
            arguments.push(&url);
            let (code, said) = curl(&binary, &arguments).await;
            assert_eq!(code, 200, "{n} at {base}: {said}");
            assert!(
                said.contains("is acknowledged by 2 of 2 edges"),
                "{n}: {said}"
            );
            assert_eq!(stage.gone().await, gone, "{n} at {base}");
        }
    }
    let fastly: [(&str, &[&str], &str, &[&str]); 5] = [
        ("/service/site/purge/b", &[], "\"status\":\"ok\"", &["/b"]),
        (
            "/service/site/purge",
            &["-H", "Surrogate-Key: a img-1"],
            "\"img-1\":",
            &["/a", "/img/1"],
        ),
        (
            "/service/site/purge",
            &["-d", r#"{"surrogate_keys": ["b"]}"#],
            "\"b\":",
            &["/b"],
        ),
        ("/service/site/purge_all", &[], "\"status\":\"ok\"", &PAGES),
        (
            &format!("/purge/{HOST}/a"),
            &[],
            "\"status\":\"ok\"",
            &["/a"],
        ),
    ];
    for (path, more, words, gone) in fastly {
        stage.clean().await;
        stage.old_everywhere().await;
        let url = format!("{at_control}{path}");
        let arguments = [
            &["-X", "POST", "-H", "Accept: application/json"][..],
            more,
            &[&*url],
        ];
        let (code, said) = curl(&binary, &arguments.concat()).await;
        assert!(code == 200 && said.contains(words), "{path}: {code} {said}");
        assert_eq!(stage.gone().await, gone, "{path}");
    }

    // What cannot be said, at both places; nothing is purged.
    stage.clean().await;
    stage.old_everywhere().await;
    for (method, fields, expected) in [
        ("BAN", "X-Url: \\.png$", 501),
        ("PURGE", "X-Purge-Method: fuzzy", 501),
        ("PURGEKEYS", "x-other: 1", 400),
    ] {
        for base in [&at_control, &at_edge] {
            let url = format!("{base}/");
            let (code, said) =
                curl(&binary, &["-X", method, "-H", &host, "-H", fields, &url]).await;
            assert_eq!(code, expected, "{method} {fields}: {said}");
        }
    }
    assert_eq!(stage.gone().await, [""; 0]);
    assert!(
        stage
            .origin
            .seen("/a")
            .iter()
            .all(|seen| seen.method == "GET"),
        "the origin heard of it"
    );
}

/// What each plugin puts on answers, and how it purges what has it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_plugin_tags_it_can_purge() {
    let stage = Stage::with(1, |plan| {
        plan.site(|site| site.purge_from = vec!["127.0.0.0/8".parse().unwrap()])
    })
    .await;
    let edge = &stage.cluster.edges[0];
    let client = harness::client::Client::new();
    for (n, (field, tags, method, asked, value)) in [
        ("Surrogate-Key", "one two", "PURGE", "Surrogate-Key", "one"),
        ("Cache-Tag", "one,two", "BAN", "Cache-Tag", "one"),
        ("Cache-Tags", "node:1 two", "BAN", "Cache-Tags", "node:1"),
        (
            "Purge-Cache-Tags",
            "one two",
            "BAN",
            "Purge-Cache-Tags",
            "one",
        ),
        ("X-Cache-Tag", "one", "BAN", "X-Cache-Tag", "one"),
        (
            "X-Cache-Tags",
            "one,two",
            "BAN",
            "X-Cache-Tags",
            "(^|,)(one)(,|$)",
        ),
        (
            "X-Cache-Tags",
            "one,two",
            "PURGETAGS",
            "X-Cache-Tags",
            "one",
        ),
        ("xkey", "one two", "PURGEKEYS", "xkey-purge", "one"),
        ("xkey", "one two", "PURGE", "xkey", "one"),
        (
            "X-Magento-Tags",
            "cat_p_1,store",
            "PURGE",
            "X-Magento-Tags-Pattern",
            "((^|,)cat_p_1(,|$))",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let (tagged, other) = (format!("/tagged/{n}"), format!("/other/{n}"));
        let answer = || Answer::bytes("page").max_age(600);
        stage.origin.route(&tagged, answer().field(field, tags));
        stage.origin.route(&other, answer().field(field, "three"));
        let is_hit = async |path: &str| edge.get(path).await.unwrap().cache_status().hit;
        for base in [stage.control().url(""), edge.url("")] {
            for path in [&tagged, &other] {
                is_hit(path).await;
                assert!(is_hit(path).await, "{field}: {path}");
            }
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let fields = [("host", HOST), (asked, value)];
            let url = format!("{}/", base.trim_end_matches('/'));
            let purged = client.send(method, &url, &fields, "".into()).await.unwrap();
            assert_eq!(purged.status, 200, "{field}: {}", purged.text());
            assert!(!is_hit(&tagged).await, "{asked} at {base}");
            assert!(is_hit(&other).await, "{asked} at {base}");
        }
    }
}
