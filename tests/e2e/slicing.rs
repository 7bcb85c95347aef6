//! Ranges of a large object that nobody holds: each piece of them is fetched once for the cluster, and kept as an
//! object of its own.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use cluster::site::rules::{RangeMiss, Shield};
use futures_util::future::join_all;
use harness::{
    cache_status::Source,
    client::Response,
    cluster::{Cluster, Node, Plan},
    origin::{Answer, Origin},
    pattern::Pattern,
};
use http::Method;
use serde_json::json;

use crate::{SECOND, admitting::call, heard_of, homing};

const PATH: &str = "/film";
const PIECE: u64 = 1 << 20;
const BYTES: u64 = 24 * PIECE + 5;

/// Edges in front of an object that has versions, of which a miss of a range fetches the range.
struct Scene {
    origin: Origin,
    version: Arc<AtomicU64>,
    cluster: Cluster,
}

impl Scene {
    async fn new(edges: usize, shield: Shield, change: fn(Answer) -> Answer) -> Self {
        let origin = Origin::start().await.unwrap();
        let version = Arc::new(AtomicU64::new(1));
        let newest = version.clone();
        origin.route_by(PATH, move |_| {
            let version = newest.load(Ordering::SeqCst);
            let answer = Answer::pattern(&Pattern::new(version, BYTES))
                .max_age(600)
                .field("etag", format!("\"{version}\""))
                .field("surrogate-key", "films");
            change(answer).into()
        });
        let plan = Plan::new(edges, &origin.url()).site(|site| {
            site.range_miss = Some(RangeMiss::Part);
            site.shield = Some(shield);
        });
        Self {
            cluster: homing::settled(plan).await,
            origin,
            version,
        }
    }

    fn next_version(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    fn bytes(version: u64, first: u64, last: u64) -> bytes::Bytes {
        let at = |position: u64| usize::try_from(position).unwrap();
        Pattern::new(version, BYTES)
            .bytes()
            .slice(at(first)..at(last) + 1)
    }
}

async fn ask(edge: &Node, first: u64, last: u64) -> anyhow::Result<Response> {
    let range = format!("bytes={first}-{last}");
    edge.get_with(PATH, &[("range", &range)]).await
}

/// Asks for bytes `first` to `last`, which must be those of `version`.
async fn range(edge: &Node, version: u64, first: u64, last: u64) -> Response {
    let answer = ask(edge, first, last).await.unwrap();
    assert_eq!(answer.status, 206, "{answer:?}");
    let content = format!("bytes {first}-{last}/{BYTES}");
    assert_eq!(answer.field("content-range"), Some(&*content));
    let tag = format!("\"{version}\"");
    assert_eq!(answer.field("etag"), Some(&*tag));
    assert!(
        answer.body == Scene::bytes(version, first, last),
        "wrong bytes"
    );
    answer
}

fn as_it_is(answer: Answer) -> Answer {
    answer
}

/// Nobody has it, and many clients of several edges want the same part of it at once: each piece of that is fetched
/// once for the cluster, and the whole once where a range's miss starts that.
#[tokio::test(flavor = "multi_thread")]
async fn what_many_want_a_part_of_is_fetched_once() {
    const CLIENTS: usize = 20;
    const BYTES: u64 = 64 * PIECE;
    for (miss, first, wanted, wholes, slices) in [
        (RangeMiss::Whole, 0, 2 * PIECE, 1, 0),
        (RangeMiss::Whole, 30 * PIECE, 2 * PIECE, 1, 2),
        (RangeMiss::Part, 30 * PIECE, 2 * PIECE, 0, 2),
        (RangeMiss::Part, 30 * PIECE - 7, 7 * PIECE + 14, 0, 9),
        (RangeMiss::Part, BYTES - 10, 10, 0, 1),
    ] {
        let origin = Origin::start().await.unwrap();
        let body = Pattern::new(72, BYTES);
        let answer = Answer::pattern(&body).max_age(600).field("etag", "\"1\"");
        origin.route(PATH, answer.head_after(SECOND / 2));
        let plan = Plan::new(3, &origin.url()).site(|site| {
            site.range_miss = Some(miss);
            site.shield = Some(Shield::Cluster);
        });
        let cluster = homing::settled(plan).await;
        let at = |position: u64| usize::try_from(position).unwrap();
        let expected = body.bytes().slice(at(first)..at(first + wanted));
        let asking = cluster.edges.iter().flat_map(|edge| [edge; CLIENTS]);
        let asking = asking.map(|edge| async {
            let range = format!("bytes={first}-{}", first + wanted - 1);
            let answer = edge.get_with(PATH, &[("range", &range)]).await.unwrap();
            assert_eq!(answer.status, 206);
            assert!(answer.body == expected, "wrong bytes");
        });
        join_all(asking).await;
        let (asked, sent) = (origin.requests(), origin.body_bytes());
        println!("{miss:?} from {first} on: {asked} requests at the origin, {sent} bytes");
        assert_eq!(asked, wholes + slices);
        assert!(sent <= wholes * BYTES + slices * PIECE, "{sent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_are_hits_and_are_had_from_peers() {
    let scene = Scene::new(2, Shield::None, as_it_is).await;
    let [one, other] = &scene.cluster.edges[..] else {
        unreachable!()
    };
    let answer = range(one, 1, 5 * PIECE + 7, 8 * PIECE).await;
    let status = answer.cache_status();
    assert!(
        status.stored && status.source() == Source::Origin,
        "{status:?}"
    );
    assert_eq!(scene.origin.requests(), 4);
    // Whatever lies within them.
    let hit = range(one, 1, 6 * PIECE - 1, 7 * PIECE).await;
    assert!(hit.cache_status().hit);
    heard_of(other, &one.id, 4).await.unwrap();
    let answer = range(other, 1, 5 * PIECE, 9 * PIECE - 1).await;
    assert!(matches!(answer.cache_status().source(), Source::Peer(_)));
    assert_eq!(scene.origin.requests(), 4);
    // The last one is short, and says how long the whole is; what is from the end needs to know that.
    range(one, 1, BYTES - 3, BYTES - 1).await;
    let tail = one.get_with(PATH, &[("range", "bytes=-4")]).await.unwrap();
    assert_eq!(tail.status, 206);
    assert!(tail.body == Scene::bytes(1, BYTES - 4, BYTES - 1));
    let behind = ask(one, BYTES, BYTES + 1).await.unwrap();
    assert_eq!(behind.status, 416);
    // Conditions are judged as for the whole.
    let since = [("range", "bytes=0-9"), ("if-none-match", "\"1\"")];
    assert_eq!(one.get_with(PATH, &since).await.unwrap().status, 304);
    let since = [("range", "bytes=9000000-9000009"), ("if-range", "\"0\"")];
    let whole = one.get_with(PATH, &since).await.unwrap();
    assert_eq!((whole.status, whole.body.len() as u64), (200, BYTES));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_together_is_of_one_version() {
    let scene = Scene::new(2, Shield::Cluster, as_it_is).await;
    let edge = &scene.cluster.edges[0];
    range(edge, 1, 5 * PIECE, 8 * PIECE - 1).await;
    scene.next_version();
    range(edge, 2, 10 * PIECE, 11 * PIECE - 1).await;
    // It begins with the newer one: those that are older are fetched anew.
    range(edge, 2, 4 * PIECE, 7 * PIECE - 1).await;
    // It begins with the older one, which nobody can complete: it is cut, and never mixed.
    let asking = ask(edge, 7 * PIECE, 9 * PIECE).await;
    assert!(
        asking.is_err(),
        "{:?}",
        asking.map(|answer| answer.field("etag").map(str::to_owned))
    );
    for edge in &scene.cluster.edges {
        range(edge, 2, 4 * PIECE, 12 * PIECE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_or_a_change_hits_all_slices() {
    let scene = Scene::new(2, Shield::Cluster, as_it_is).await;
    let control = scene.cluster.control.as_ref().unwrap();
    let mut version = 1;
    for scope in [
        json!({"site": "site", "urls": [PATH]}),
        json!({"site": "site", "tags": ["films"]}),
        json!(null),
    ] {
        for edge in &scene.cluster.edges {
            range(edge, version, 3 * PIECE, 5 * PIECE).await;
        }
        scene.next_version();
        for edge in &scene.cluster.edges {
            range(edge, version, 3 * PIECE, 5 * PIECE).await;
        }
        version += 1;
        if scope.is_null() {
            let client = harness::client::Client::new();
            let url = scene.cluster.edges[0].url(PATH);
            let fields = [("host", harness::cluster::HOST)];
            let nothing = bytes::Bytes::new();
            let changed = client
                .send(Method::PUT, &url, &fields, nothing)
                .await
                .unwrap();
            assert_eq!(changed.status, 200);
        } else {
            let purged = call(control, Method::POST, "/v1/purges", None, &scope).await;
            assert!((200..300).contains(&purged.status), "{}", purged.text());
        }
        for edge in &scene.cluster.edges {
            range(edge, version, 3 * PIECE, 5 * PIECE).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_slice_is_validated_as_one() {
    let scene = Scene::new(1, Shield::Region, |answer| {
        answer.field("cache-control", "max-age=1")
    })
    .await;
    let edge = &scene.cluster.edges[0];
    range(edge, 1, 3 * PIECE, 5 * PIECE).await;
    let sent = scene.origin.body_bytes();
    tokio::time::sleep(2 * SECOND).await;
    range(edge, 1, 3 * PIECE, 5 * PIECE).await;
    assert_eq!(scene.origin.body_bytes(), sent, "all three still held");
    let seen = scene.origin.seen(PATH);
    assert_eq!(seen.len(), 6);
    assert!(
        seen[3..]
            .iter()
            .all(|seen| seen.field("if-none-match") == Some("\"1\""))
    );
}

/// An origin that does not know ranges, or cannot tell versions apart: nothing is put together of that, and
/// everybody gets the right bytes.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_put_together_is_fetched_as_before() {
    let changes: [fn(Answer) -> Answer; 3] = [
        Answer::without_ranges,
        |answer| answer.field("etag", "W/\"1\""),
        |answer| answer.field("cache-control", "private"),
    ];
    for change in changes {
        let scene = Scene::new(2, Shield::Region, change).await;
        for edge in &scene.cluster.edges {
            for first in [3 * PIECE, 3 * PIECE + 9] {
                let answer = ask(edge, first, 5 * PIECE).await.unwrap();
                assert_eq!(answer.status, 206);
                assert!(
                    answer.body == Scene::bytes(1, first, 5 * PIECE),
                    "wrong bytes"
                );
            }
        }
    }
}
