//! What a site takes down: gone on every node at once, and asked of nobody.

use harness::{
    cache_status::Source,
    origin::{Answer, Origin},
    pattern::Pattern,
    process::run,
};
use serde_json::{Value, json};

use crate::{
    heard_of,
    registering::{HOST, all_answer, cluster, get, put, site, told},
};

/// What a site takes down is 451 on every node, whether it was stored there or on a peer, and nobody is
/// asked for it; and when that is over, it is there as before.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_down_is_gone_on_every_node_and_asked_of_nobody() {
    let origin = Origin::start().await.unwrap();
    let large = Pattern::new(5, 3 << 20);
    origin.route("/large", Answer::pattern(&large).max_age(600));
    for path in ["/film", "/series/1", "/small", "/other"] {
        origin.route(path, Answer::bytes(path).max_age(600));
    }
    let cluster = cluster(2, &origin).await;
    let control = cluster.control.as_ref().unwrap();
    let [one, two] = &cluster.edges[..] else {
        panic!()
    };
    put(control, "api", &site(&origin)).await;
    all_answer(&cluster, "/film", 200).await;
    for path in ["/series/1", "/small", "/large", "/other"] {
        assert_eq!(get(one, path).await.status, 200);
    }
    heard_of(two, "edge-1", 5).await.unwrap();
    let hash = async |path: &str| -> String {
        let asked = format!("/explain?url=http://{HOST}{path}");
        let told = one.ask(&asked).await.unwrap().json().unwrap();
        let hash = told["stored"]["content_hash"].as_str();
        hash.unwrap_or_else(|| panic!("{told}")).to_owned()
    };
    let (small, large) = (hash("/small").await, hash("/large").await);
    assert_eq!(small, blake3::hash(b"/small").to_hex().as_str());
    // Of a file as well, without asking anybody.
    let file = cluster.root.join("small");
    std::fs::write(&file, "/small").unwrap();
    let args = ["hash", &file.to_string_lossy()];
    let (status, said) = run(&control.binary, &args, &[]).await.unwrap();
    assert!(status.success() && said.starts_with(&small), "{said}");
    let why = |what: Value| {
        let mut takedown = what;
        takedown["reason"] = "court order 7".into();
        takedown["by"] = "legal".into();
        takedown
    };
    let mut taken_down = site(&origin);
    taken_down["blocked_by"] = "https://authority.example/7".into();
    taken_down["takedown"] = json!([
        why(json!({"url": format!("http://{HOST}/film")})),
        why(json!({"prefix": "/series/"})),
        why(json!({"hash": small})),
        why(json!({"hash": large})),
    ]);
    let requests = origin.requests();
    put(control, "api", &taken_down).await;
    told("taken down", all_answer(&cluster, "/film", 451).await);
    for edge in &cluster.edges {
        for path in [
            "/film?x=1",
            "/%66ilm",
            "/series/1",
            "/series/2",
            "/small",
            "/large",
        ] {
            let answer = get(edge, path).await;
            assert_eq!(
                answer.status,
                451,
                "{} {path}: {:?}",
                edge.id,
                answer.cache_status()
            );
            let link = answer.field("link").unwrap_or_default();
            assert_eq!(
                link, "<https://authority.example/7>; rel=\"blocked-by\"",
                "{path}"
            );
        }
        let log = edge.log().matching("taken down, answered with 451");
        assert!(
            log.iter()
                .any(|line| line.contains("court order 7 (legal)")),
            "{log:?}"
        );
        assert!(
            edge.metric("edge_taken_down_total", &["site=\"api\""])
                .await
                .unwrap()
                > 4.0
        );
    }
    assert_eq!(origin.requests(), requests, "{} asked the origin", two.id);
    let told = two
        .ask(&format!("/explain?url=http://{HOST}/film"))
        .await
        .unwrap()
        .json()
        .unwrap();
    assert_eq!(told["then"], "denied with 451, and asked of nobody");
    // Peers hand out what is left, and only that.
    let other = get(two, "/other").await;
    assert_eq!((other.status, origin.requests()), (200, requests));
    assert!(
        matches!(other.cache_status().source(), Source::Peer(_)),
        "{:?}",
        other.cache_status()
    );
    put(control, "api", &site(&origin)).await;
    all_answer(&cluster, "/film", 200).await;
    assert_eq!(
        get(one, "/small").await.cache_status().source(),
        Source::Hit
    );
}
