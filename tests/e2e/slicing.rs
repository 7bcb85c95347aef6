//! Ranges of a large object that nobody holds: each piece of them is fetched once for the cluster, and kept as an
//! object of its own.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use anyhow::ensure;
use bytes::Bytes;
use cluster::site::{
    Site,
    origin::Origin as SiteOrigin,
    rules::{RangeMiss, Shield},
    takedown::Takedown,
};
use futures_util::future::join_all;
use harness::{
    cache_status::Source,
    client::{Client, Response},
    cluster::{Cluster, HOST, Node, Plan},
    origin::{Answer, Origin},
    pattern::Pattern,
    process::eventually,
};
use http::Method;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
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
        Self::with(edges, |site| site.shield = Some(shield), change).await
    }

    async fn with(
        edges: usize,
        ruled: impl FnOnce(&mut Site),
        change: fn(Answer) -> Answer,
    ) -> Self {
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
            ruled(site);
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

    fn bytes(version: u64, first: u64, last: u64) -> Bytes {
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
        let silent = |edge: &Node| !edge.log().matching("home is silent").is_empty();
        // A home that this machine has kept from answering for most of a second is overtaken.
        let most = if cluster.edges.iter().any(silent) {
            2
        } else {
            1
        };
        assert!(
            (1..=most).contains(&asked.div_ceil(wholes + slices)),
            "{asked}"
        );
        assert!(sent <= most * (wholes * BYTES + slices * PIECE), "{sent}");
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
    let told = async |edge: &Node| {
        let header = format!("Range:bytes={}-{}", 4 * PIECE, 6 * PIECE - 1);
        let question = format!("/explain?url=http://{HOST}{PATH}&header={header}");
        edge.ask(&question).await.unwrap().json().unwrap()
    };
    let here = told(one).await;
    let words = here["why"].to_string();
    assert!(words.contains("1 of 2 are here"), "{here}");
    assert_eq!(here["slices"][1]["stored"]["fresh"], true, "{here}");
    let there = told(other).await;
    assert_eq!(there["slices"][0]["holders"], json!([]), "{there}");
    assert_eq!(there["slices"][1]["holders"], json!([one.id]), "{there}");
    let then = there["then"].as_str().unwrap();
    assert!(then.starts_with("put together from slices: "), "{there}");
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

/// What came later than the first slice was counted as if it had come from where that did.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_counted_by_where_each_slice_is_from() {
    let scene = Scene::new(1, Shield::None, as_it_is).await;
    let edge = &scene.cluster.edges[0];
    let counted = async |source: &str| {
        let label = format!("source=\"{source}\"");
        let counted = edge.metric("edge_response_bytes_total", &[&label]).await;
        counted.unwrap()
    };
    range(edge, 1, 0, PIECE - 1).await;
    range(edge, 1, 2 * PIECE, 3 * PIECE - 1).await;
    eventually("both are counted", async || {
        ensure!(counted("origin").await == 2.0 * PIECE as f64);
        Ok(())
    })
    .await
    .unwrap();
    // The first and the third are here.
    range(edge, 1, 10, 4 * PIECE - 1).await;
    eventually("each is counted", async || {
        let here = counted("memory").await + counted("disk").await;
        let all = (counted("origin").await, here);
        ensure!(
            all == (4.0 * PIECE as f64, (2 * PIECE - 10) as f64),
            "{all:?}"
        );
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_together_is_of_one_version() {
    let changes: [fn(Answer) -> Answer; 2] =
        [as_it_is, |answer| answer.field("vary", "accept-encoding")];
    for change in changes {
        let scene = Scene::new(2, Shield::Cluster, change).await;
        let edge = &scene.cluster.edges[0];
        range(edge, 1, 5 * PIECE, 8 * PIECE - 1).await;
        scene.next_version();
        range(edge, 2, 10 * PIECE, 11 * PIECE - 1).await;
        // It begins with the newer one: those that are older are fetched anew.
        range(edge, 2, 4 * PIECE, 7 * PIECE - 1).await;
        // It begins with an older one, and the next is newer.
        range(edge, 2, 7 * PIECE, 9 * PIECE).await;
        // The third one is newer, when the first has gone out already: it is cut, and never mixed.
        range(edge, 2, 13 * PIECE, 15 * PIECE - 1).await;
        scene.next_version();
        let asking = ask(edge, 13 * PIECE, 16 * PIECE).await;
        assert!(asking.is_err(), "{:?}", asking.map(|answer| answer.status));
        for edge in &scene.cluster.edges {
            range(edge, 3, 13 * PIECE, 18 * PIECE).await;
        }
    }
}

/// Of two origins with the same bytes each says by tags of its own what version they are.
#[tokio::test(flavor = "multi_thread")]
async fn all_slices_of_an_object_are_of_one_origin() {
    let origins = [
        Origin::start().await.unwrap(),
        Origin::start().await.unwrap(),
    ];
    for (n, origin) in origins.iter().enumerate() {
        let answer = Answer::pattern(&Pattern::new(1, BYTES)).max_age(600);
        origin.route(PATH, answer.field("etag", format!("\"at-{n}\"")));
    }
    let ruled = |site: &mut Site| {
        site.origins = origins
            .iter()
            .map(|o| SiteOrigin::from(&*o.url()))
            .collect();
    };
    let scene = Scene::with(2, ruled, as_it_is).await;
    for edge in &scene.cluster.edges {
        let answer = ask(edge, 3 * PIECE + 1, 12 * PIECE).await.unwrap();
        assert_eq!(answer.status, 206);
        assert!(
            answer.body == Scene::bytes(1, 3 * PIECE + 1, 12 * PIECE),
            "wrong bytes"
        );
    }
}

/// An origin that fails once, and one whose answers every client has validated for itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_later_slice_that_cannot_be_shared_does_not_end_the_body() {
    let scene = Scene::new(1, Shield::Region, as_it_is).await;
    let edge = &scene.cluster.edges[0];
    let failures = AtomicU64::new(0);
    scene.origin.route_by(PATH, move |seen| {
        let is_sixth = seen
            .field("range")
            .is_some_and(|range| range.contains(&format!("={}-", 6 * PIECE)));
        if is_sixth && failures.fetch_add(1, Ordering::SeqCst) < 2 {
            return Answer::status(503).into();
        }
        Answer::pattern(&Pattern::new(1, BYTES))
            .max_age(600)
            .field("etag", "\"1\"")
            .into()
    });
    range(edge, 1, 4 * PIECE, 9 * PIECE).await;

    let scene = Scene::new(1, Shield::Region, |answer| {
        answer
            .field("cache-control", "no-cache")
            .head_after(SECOND / 20)
    })
    .await;
    let edge = &scene.cluster.edges[0];
    join_all((0..6).map(|_| range(edge, 1, 4 * PIECE, 9 * PIECE))).await;
}

/// It ended the whole body, be it the first slice or a later one.
#[tokio::test(flavor = "multi_thread")]
async fn a_slice_that_ends_too_early_is_gone_on_with() {
    for shield in [Shield::None, Shield::Cluster] {
        let scene = Scene::new(2, shield, as_it_is).await;
        let cuts: Vec<_> = [4, 6]
            .map(|piece| format!("={}-", piece * PIECE))
            .into_iter()
            .collect();
        let left = Mutex::new(cuts);
        scene.origin.route_by(PATH, move |seen| {
            let answer = Answer::pattern(&Pattern::new(1, BYTES))
                .max_age(600)
                .field("etag", "\"1\"");
            let range = seen.field("range").unwrap_or_default();
            let mut left = left.lock().unwrap();
            let before = left.len();
            left.retain(|cut| !range.contains(cut));
            match before > left.len() {
                true => answer.cut_after(PIECE / 2).into(),
                false => answer.into(),
            }
        });
        range(&scene.cluster.edges[0], 1, 4 * PIECE + 9, 8 * PIECE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_down_is_not_had_in_slices() {
    let small = Pattern::new(3, 100_000);
    let hash = small.hash().to_hex().to_string();
    let taken_down = |site: &mut Site| {
        site.shield = Some(Shield::None);
        site.takedown.push(Takedown {
            url: None,
            prefix: None,
            hash: Some(hash),
            reason: "court order 7".to_owned(),
            by: "legal".to_owned(),
        });
    };
    let scene = Scene::with(2, taken_down, as_it_is).await;
    let answer = Answer::pattern(&small).max_age(600).field("etag", "\"1\"");
    scene.origin.route(PATH, answer);
    for edge in &scene.cluster.edges {
        for (first, last) in [(0, 2_000_000), (1, 2_000_000)] {
            assert_eq!(ask(edge, first, last).await.unwrap().status, 451);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_or_a_change_hits_all_slices() {
    let scene = Scene::new(4, Shield::Region, as_it_is).await;
    let control = scene.cluster.control.as_ref().unwrap();
    let mut version = 1;
    for scope in [
        json!({"site": "site", "urls": [PATH]}),
        json!({"site": "site", "tags": ["films"]}),
        json!(null),
    ] {
        for edge in &scene.cluster.edges[1..3] {
            range(edge, version, 3 * PIECE, 5 * PIECE).await;
        }
        scene.next_version();
        for edge in &scene.cluster.edges[1..3] {
            range(edge, version, 3 * PIECE, 5 * PIECE).await;
        }
        version += 1;
        if scope.is_null() {
            let client = Client::new();
            let url = scene.cluster.edges[0].url(PATH);
            let sent = client.send(Method::PUT, &url, &[("host", HOST)], Bytes::new());
            assert_eq!(sent.await.unwrap().status, 200);
        } else {
            // Only nodes that the control plane knows of are asked.
            eventually("all have purged it", async || {
                let purged = call(control, Method::POST, "/v1/purges", None, &scope).await;
                let purged = purged.json()?;
                let nodes = purged["nodes"].as_array().map_or(0, Vec::len);
                ensure!(nodes == 4 && purged["complete"] == true, "{purged}");
                Ok(())
            })
            .await
            .unwrap();
        }
        for edge in &scene.cluster.edges {
            range(edge, version, 3 * PIECE, 5 * PIECE).await;
        }
    }
}

/// What an edge knew of changes was gone with a start, and slices from before were hits again.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_hits_slices_though_the_node_starts_anew() {
    for is_killed in [false, true] {
        let mut scene = Scene::new(1, Shield::None, as_it_is).await;
        range(&scene.cluster.edges[0], 1, 3 * PIECE, 5 * PIECE).await;
        // Long enough for it to be on disk.
        tokio::time::sleep(2 * SECOND).await;
        let edge = &mut scene.cluster.edges[0];
        let client = Client::new();
        let url = edge.url(PATH);
        let post = client.send(Method::POST, &url, &[("host", HOST)], Bytes::new());
        assert_eq!(post.await.unwrap().status, 200);
        scene.version.fetch_add(1, Ordering::SeqCst);
        if is_killed {
            edge.kill9().await.unwrap();
        } else {
            edge.terminate().await.unwrap();
        }
        edge.start().await.unwrap();
        range(edge, 2, 3 * PIECE, 5 * PIECE).await;
        let answer = range(edge, 2, 3 * PIECE, 5 * PIECE).await;
        assert!(answer.cache_status().hit);
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
    let answer = range(edge, 1, 3 * PIECE, 5 * PIECE).await;
    let status = answer.field("cache-status").unwrap();
    assert!(status.contains("fwd=stale; fwd-status=304"), "{status}");
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
        // Four ranges, of which one was tried in slices on each edge.
        let asked = scene.origin.requests();
        assert!(asked <= 6, "{asked} requests at the origin");
    }
}

/// Clients that want anything of objects that change all the time, from all edges: whatever they get in full is of
/// one version, the one that its tag says.
#[tokio::test(flavor = "multi_thread")]
async fn random_ranges_of_what_changes_are_never_mixed() {
    const CLIENTS: u64 = 24;
    const TURNS: u64 = 16;
    for (seed, miss) in [(5, RangeMiss::Part), (6, RangeMiss::Whole)] {
        let ruled = |site: &mut Site| {
            site.shield = Some(Shield::Cluster);
            site.range_miss = Some(miss);
        };
        let scene = Scene::with(3, ruled, |answer| {
            answer
                .field("cache-control", "max-age=1")
                .slowly(256 << 10, SECOND / 100)
        })
        .await;
        let clients = (0..CLIENTS).map(|client| {
            let mut rng = StdRng::seed_from_u64(seed * 1_000 + client);
            let scene = &scene;
            async move {
                let (mut whole, mut cut) = (0, 0);
                for turn in 0..TURNS {
                    let edge = &scene.cluster.edges[rng.random_range(0..3)];
                    let first = rng.random_range(0..BYTES);
                    let last = (first + rng.random_range(0..4 * PIECE)).min(BYTES - 1);
                    if client == 0 && turn % 4 == 0 {
                        scene.next_version();
                    }
                    let Ok(answer) = ask(edge, first, last).await else {
                        cut += 1;
                        continue;
                    };
                    let version = answer.field("etag").unwrap().trim_matches('"');
                    // Nobody has to know ranges; then it is all of it.
                    let (first, last) = match answer.status {
                        206 => (first, last),
                        status => {
                            assert_eq!(status, 200);
                            (0, BYTES - 1)
                        }
                    };
                    let expected = Scene::bytes(version.parse().unwrap(), first, last);
                    assert!(answer.body == expected, "{first}-{last} of {version}");
                    whole += 1;
                }
                (whole, cut)
            }
        });
        let counts: Vec<(u64, u64)> = join_all(clients).await;
        let (whole, cut) = counts
            .iter()
            .fold((0, 0), |sum, n| (sum.0 + n.0, sum.1 + n.1));
        let asked = scene.origin.requests();
        println!("{miss:?}: {whole} in full, {cut} cut, {asked} requests at the origin");
        assert!(whole > cut * 2, "{whole} in full, {cut} cut");
    }
}
