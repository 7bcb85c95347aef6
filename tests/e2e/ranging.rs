//! Parts of a large object that other edges hold: only what is wanted of it moves, and the origin sees nothing.

use anyhow::ensure;
use bytes::Bytes;
use cluster::site::rules::RangeMiss;
use futures_util::future::join_all;
use harness::{
    cache_status::Source,
    client::{Client, Response},
    cluster::{Cluster, HOST, Lines, Node, Plan},
    origin::{Answer, Origin},
    pattern::Pattern,
    process::eventually,
    region::REGIONS,
};

use crate::{heard_of, started, stored};

const BYTES: u64 = 64 << 20;
const PIECE: u64 = 1 << 20;

/// An object of 64 MiB that two of four edges hold, which the others know.
struct Scene {
    origin: Origin,
    cluster: Cluster,
    whole: Bytes,
}

const PATH: &str = "/large";

impl Scene {
    async fn new(miss: RangeMiss) -> Self {
        let origin = Origin::start().await.unwrap();
        let body = Pattern::new(71, BYTES);
        let answer = Answer::pattern(&body).max_age(600).field("etag", "\"1\"");
        origin.route(PATH, answer);
        let mut plan = Plan::new(4, &origin.url())
            .lines(Lines::Uplinks)
            // What is hot would be fetched ahead, whole.
            .edge_setting("cluster", "offers", "0B")
            .site(|site| site.range_miss = Some(miss));
        plan.regions = vec![REGIONS[0]; 4];
        let cluster = started(plan).await;
        cluster.settled().await.unwrap();
        for holder in &cluster.edges[..2] {
            let answer = Client::new()
                .digest(&holder.url(PATH), &[("host", HOST)])
                .await;
            assert_eq!(answer.unwrap().hash, body.hash());
            stored(holder, PATH).await;
            for edge in &cluster.edges[2..] {
                heard_of(edge, &holder.id, 1).await.unwrap();
            }
        }
        Self {
            origin,
            cluster,
            whole: body.bytes(),
        }
    }

    /// What moved between edges so far.
    fn moved(&self) -> u64 {
        (0..4).map(|edge| self.cluster.uplink(edge).carried()).sum()
    }

    /// Asks `edge` for bytes `first` to `last`, and checks that it gets them.
    async fn range(&self, edge: &Node, first: u64, last: u64) -> Response {
        let range = format!("bytes={first}-{last}");
        let answer = edge.get_with(PATH, &[("range", &range)]).await.unwrap();
        assert_eq!(answer.status, 206, "{answer:?}");
        let content = format!("bytes {first}-{last}/{BYTES}");
        assert_eq!(answer.field("content-range"), Some(&*content));
        let at = |position: u64| usize::try_from(position).unwrap();
        let expected = &self.whole[at(first)..=at(last)];
        assert!(answer.body == expected, "{range}: wrong bytes");
        answer
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_peers_hold_only_the_pieces_of_a_range_move() {
    for miss in [RangeMiss::Whole, RangeMiss::Part] {
        let scene = Scene::new(miss).await;
        let [.., edge, other] = &scene.cluster.edges[..] else {
            unreachable!()
        };
        let asked = scene.origin.requests();
        let before = scene.moved();
        let middle = 40 * PIECE + 1_000;
        let answer = scene.range(edge, middle, middle + (64 << 10) - 1).await;
        assert!(
            matches!(answer.cache_status().source(), Source::Peer(_)),
            "{:?}",
            answer.cache_status()
        );
        let moved = scene.moved() - before;
        println!("{miss:?}: {moved} bytes for 64 KiB of {BYTES}");
        // The piece that they lie in, what comes around it, and some gossip of digests.
        assert!(moved < PIECE + PIECE / 4, "{moved}");
        // The piece is kept.
        eventually("the piece is kept", async || {
            let again = scene.range(edge, middle + (64 << 10), middle + (128 << 10));
            let status = again.await.cache_status();
            ensure!(status.hit, "{status:?}");
            Ok(())
        })
        .await
        .unwrap();

        // Ten pieces come from both who hold them.
        let before: Vec<_> = (0..2).map(|e| scene.cluster.uplink(e).carried()).collect();
        scene.range(edge, 20 * PIECE - 5, 30 * PIECE + 5).await;
        for (holder, before) in before.into_iter().enumerate() {
            let sent = scene.cluster.uplink(holder).carried() - before;
            assert!(sent > PIECE && sent < 12 * PIECE, "{holder} sent {sent}");
        }
        // From the end, and behind it.
        let tail = edge
            .get_with(PATH, &[("range", "bytes=-100")])
            .await
            .unwrap();
        assert_eq!((tail.status, tail.body.len()), (206, 100));
        assert!(tail.body == scene.whole[scene.whole.len() - 100..]);
        let behind = other
            .get_with(PATH, &[("range", "bytes=99999999-")])
            .await
            .unwrap();
        assert_eq!(behind.status, 416);
        let content = format!("bytes */{BYTES}");
        assert_eq!(behind.field("content-range"), Some(&*content));

        // Many at once, each somewhere else: as a program that downloads in parts asks.
        let before = scene.moved();
        let parts = (0..8).map(|n| scene.range(other, n * 8 * PIECE, n * 8 * PIECE + 1_000));
        join_all(parts).await;
        let moved = scene.moved() - before;
        println!("{miss:?}: {moved} bytes for eight places at once");
        assert!(moved < 12 * PIECE, "{moved}");
        assert_eq!(scene.origin.requests(), asked, "the origin was asked");

        // A part is no whole.
        let url = other.url(PATH);
        let answer = Client::new().digest(&url, &[("host", HOST)]).await.unwrap();
        assert_eq!(answer.hash, Pattern::new(71, BYTES).hash());
        assert_eq!(scene.origin.requests(), asked);
        stored(other, PATH).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_whose_holder_dies_comes_from_the_other_or_the_origin() {
    let mut scene = Scene::new(RangeMiss::Whole).await;
    let asked = scene.origin.requests();
    scene.cluster.edges[0].kill9().await.unwrap();
    for n in 0..4 {
        let at = n * 9 * PIECE + 17;
        scene.range(&scene.cluster.edges[2], at, at + PIECE).await;
    }
    assert_eq!(scene.origin.requests(), asked);
    scene.cluster.edges[1].kill9().await.unwrap();
    scene.range(&scene.cluster.edges[3], 50, 60).await;
    assert!(scene.origin.requests() > asked);
}
