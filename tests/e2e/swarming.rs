//! One large object that ten edges want at the same time, over uplinks that are as narrow as the origin's:
//! nobody could send it to all others in time, so all of them have to.

use std::{sync::LazyLock, time::Duration};

use futures_util::future::join_all;
use harness::{
    client::{Client, Digested},
    cluster::{Cluster, HOST, Lines, Node, Plan},
    origin::{Answer, Origin},
    pattern::Pattern,
    proxy::{Conditions, Proxy},
    region::REGIONS,
};
use tokio::{task::JoinHandle, time::Instant};

use crate::{heard_of, homing, stored};

const EDGES: usize = 10;

/// The object's size; `SWARM_BYTES` may say another.
static BYTES: LazyLock<u64> = LazyLock::new(|| given("SWARM_BYTES").unwrap_or(64 << 20));
/// Bytes per second of each edge's uplink, and of the origin's: thirteen seconds for the whole object. Where
/// `SWARM_LINE` says another rate, it should be one at which the machine is not what limits.
static LINE: LazyLock<u64> = LazyLock::new(|| given("SWARM_LINE").unwrap_or(5 << 20));

fn given(name: &str) -> Option<u64> {
    let text = std::env::var_os(name)?.into_string().unwrap();
    Some(text.parse().unwrap_or_else(|e| panic!("{name}: {e}")))
}

/// How long `percent` of one transfer over one line take.
fn share_of_transfer(percent: u64) -> Duration {
    Duration::from_millis(*BYTES * 10 * percent / *LINE)
}

fn narrow(bytes_per_s: u64) -> Conditions {
    Conditions {
        bytes_per_s: Some(bytes_per_s),
        ..Conditions::default()
    }
}

struct Scene {
    origin: Origin,
    line: Proxy,
    cluster: Cluster,
    body: Pattern,
}

impl Scene {
    async fn new(seed: u64) -> Self {
        let origin = Origin::start().await.unwrap();
        let line = Proxy::start(&origin.address().to_string(), narrow(*LINE))
            .await
            .unwrap();
        let url = format!("http://{}", line.address());
        let mut plan = Plan::new(EDGES, &url).lines(Lines::Uplinks);
        plan.regions = vec![REGIONS[0]; EDGES];
        let cluster = homing::settled(plan).await;
        for edge in 0..EDGES {
            cluster.uplink(edge).set(narrow(*LINE));
        }
        let body = Pattern::new(seed, *BYTES);
        Self {
            origin,
            line,
            cluster,
            body,
        }
    }

    /// A path whose home is the first edge, and that the origin knows.
    async fn path(&self, name: &str) -> String {
        let path = homing::path_at(&self.cluster.edges[0], name).await;
        let answer = Answer::pattern(&self.body)
            .max_age(600)
            .field("etag", "\"1\"");
        self.origin.route(&path, answer);
        path
    }

    /// How long one transfer over one line takes.
    async fn direct(&self) -> Duration {
        let answer = Answer::pattern(&self.body);
        self.origin.route("/direct", answer);
        let url = format!("http://{}/direct", self.line.address());
        self.took(fetch(&url).await, 200)
    }

    fn took(&self, (took, answer): (Duration, Digested), status: u16) -> Duration {
        assert_eq!((answer.status, answer.hash), (status, self.body.hash()));
        took
    }

    /// How long it takes until the last of all edges has all of `path`, and how many copies the origin sends.
    async fn everybody(&self, path: &str) -> (Duration, f64) {
        let before = self.origin.body_bytes();
        let fetching = self.cluster.edges.iter().map(|edge| begin(edge, path));
        let (took, copies) = self.fetched(fetching.collect(), before).await;
        println!("{path}: {took:.1?}");
        (took.into_iter().max().unwrap(), copies)
    }

    /// How long each of `fetching` has taken for the right bytes, and how many copies the origin has sent since it
    /// had sent `before`.
    async fn fetched(&self, fetching: Vec<Fetching>, before: u64) -> (Vec<Duration>, f64) {
        let fetched = join_all(fetching).await.into_iter();
        let took = fetched.map(|fetched| self.took(fetched.unwrap(), 200));
        let took = took.collect();
        let copies = (self.origin.body_bytes() - before) as f64 / *BYTES as f64;
        (took, copies)
    }

    /// How often the edges have answered questions of others like that.
    async fn answered(&self, answer: &str) -> f64 {
        let label = format!("answer=\"{answer}\"");
        let mut sum = 0.0;
        for edge in &self.cluster.edges {
            let counted = edge.metric("edge_peer_answers_total", &[&label]).await;
            // One may have been killed.
            sum += counted.unwrap_or(0.0);
        }
        sum
    }

    /// How many bytes the edges have sent to clients that came from there.
    async fn sent(&self, source: &str) -> f64 {
        let label = format!("source=\"{source}\"");
        let mut sum = 0.0;
        for edge in &self.cluster.edges {
            let sent = edge.metric("edge_response_bytes_total", &[&label]).await;
            sum += sent.unwrap();
        }
        sum
    }
}

async fn fetch(url: &str) -> (Duration, Digested) {
    let begun = Instant::now();
    let answer = Client::new().digest(url, &[("host", HOST)]).await.unwrap();
    (begun.elapsed(), answer)
}

type Fetching = JoinHandle<(Duration, Digested)>;

fn begin(edge: &Node, path: &str) -> Fetching {
    let url = edge.url(path);
    tokio::spawn(async move { fetch(&url).await })
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_edges_pass_an_object_on_to_each_other_while_it_comes_in() {
    let scene = Scene::new(61).await;
    let direct = scene.direct().await;
    let path = scene.path("equal").await;
    let (equal, copies) = scene.everybody(&path).await;
    let pieces = scene.answered("piece").await;
    println!("direct {direct:.1?}, ten edges {equal:.1?}, {copies:.3} copies, {pieces} pieces");
    assert!((1.0..=1.1).contains(&copies), "{copies}");
    assert!(equal * 10 <= direct * 18, "{equal:?} against {direct:?}");
    // Each piece goes from the one who has it to the eight others.
    assert!(pieces >= (*BYTES >> 20) as f64 * 7.0, "{pieces}");
    // And what clients got of it counts as from peers: eight ninths for each of nine edges, and not the rest.
    let from_peers = scene.sent("peer").await;
    let (least, most) = (*BYTES as f64 * 7.0, *BYTES as f64 * 8.1);
    assert!((least..most).contains(&from_peers), "{from_peers}");

    let path = scene.path("slow").await;
    scene.cluster.uplink(4).set(narrow(*LINE / 10));
    let (slow, copies) = scene.everybody(&path).await;
    let sent_on = scene.answered("elsewhere").await;
    println!("with a slow one {slow:.1?}, {copies:.3} copies, sent on {sent_on} times");
    assert!((1.0..=1.1).contains(&copies), "{copies}");
    assert!(slow * 10 <= direct * 22, "{slow:?} against {direct:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_is_killed_and_one_is_corrupted_and_nobody_else_notices() {
    let mut scene = Scene::new(62).await;
    let path = scene.path("broken").await;
    scene.cluster.uplink(3).set(Conditions {
        corrupted: true,
        ..narrow(*LINE)
    });
    let before = scene.origin.body_bytes();
    let edges = scene.cluster.edges.iter();
    let mut fetching: Vec<_> = edges.map(|edge| begin(edge, &path)).collect();
    tokio::time::sleep(share_of_transfer(40)).await;
    let victim = fetching.remove(6);
    assert!(!victim.is_finished());
    victim.abort();
    scene.cluster.edges[6].kill9().await.unwrap();
    let (took, copies) = scene.fetched(fetching, before).await;
    println!("{took:.1?}, {copies:.3} copies");
    assert!((1.0..=1.1).contains(&copies), "{copies}");
    let mut ejected = 0;
    for edge in &scene.cluster.edges {
        // One was killed.
        let Ok(peers) = edge.ask("/peers").await else {
            continue;
        };
        let peers = peers.json().unwrap();
        let peers = peers["peers"].as_array().unwrap();
        let liar = peers.iter().find(|peer| peer["id"] == "edge-4");
        let caught = liar.is_some_and(|liar| liar["last_failure"] == "corrupt");
        ejected += usize::from(caught);
    }
    // All but the home, which fetches from nobody.
    assert_eq!(ejected, EDGES - 3);
}

/// The home dies while it shares the object out: everybody goes on from what it has.
#[tokio::test(flavor = "multi_thread")]
async fn a_home_is_killed_midway_and_no_client_notices() {
    let mut scene = Scene::new(63).await;
    let path = scene.path("orphaned").await;
    let before = scene.origin.body_bytes();
    let edges = scene.cluster.edges[1..].iter();
    let fetching: Vec<_> = edges.map(|edge| begin(edge, &path)).collect();
    tokio::time::sleep(share_of_transfer(47)).await;
    assert!(fetching.iter().all(|fetching| !fetching.is_finished()));
    let pieces = scene.answered("piece").await;
    assert!(pieces > 8.0, "it is not shared out yet: {pieces}");
    scene.cluster.edges[0].kill9().await.unwrap();
    // What comes of it must not take the test a minute.
    scene.line.set(narrow(*LINE * 8));
    let (took, copies) = scene.fetched(fetching, before).await;
    println!("home killed after {pieces} pieces: {took:.1?}, {copies:.3} copies");
    // What the home had, and the rest once more for the next home; not for everybody.
    assert!(copies < 3.0, "{copies}");
}

/// One edge has all of it already, and all others want it.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_edge_holds_the_others_pass_on_to_each_other_as_well() {
    let scene = Scene::new(64).await;
    let path = scene.path("held").await;
    scene.line.set(Conditions::default());
    let (holder, others) = scene.cluster.edges.split_first().unwrap();
    scene.took(begin(holder, &path).await.unwrap(), 200);
    stored(holder, &path).await;
    for edge in others {
        heard_of(edge, &holder.id, 1).await.unwrap();
    }
    scene.line.set(narrow(*LINE));
    let before = scene.origin.body_bytes();
    let fetching = others.iter().map(|edge| begin(edge, &path));
    let (took, copies) = scene.fetched(fetching.collect(), before).await;
    println!("held: {took:.1?}, {copies:.3} copies");
    let sent = |edge| scene.cluster.uplink(edge).carried() as f64 / *BYTES as f64;
    let sent: Vec<_> = (0..EDGES).map(sent).collect();
    println!("copies sent by each: {sent:.2?}");
    assert!(copies < 0.1, "{copies}");
    // One line would have been full for nine transfers.
    assert!(sent[0] < 4.0, "{sent:?}");
    let last = took.into_iter().max().unwrap();
    assert!(last < share_of_transfer(400), "{last:?}");
}
