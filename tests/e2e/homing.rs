//! The home of a key: whatever the crowd, the origin is asked once for a region, or for the whole cluster.

use std::{collections::HashSet, fmt, time::Duration};

use anyhow::{Result, ensure};
use bytes::Bytes;
use cluster::{
    auth::Signer,
    clock::Clock,
    key::Key,
    secret::ClusterSecret,
    site::{Site, rules::Shield},
    wire::FILL,
};
use futures_util::future::join_all;
use harness::{
    cache_status::Source,
    client::{Client, Response},
    cluster::{Cluster, HOST, Node, Plan},
    origin::{Answer, Origin, Seen},
    pattern::Pattern,
    process::eventually,
    region::REGIONS,
};
use http_body_util::BodyExt as _;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};
use toml::Value;

use crate::{SECOND, started, stored};

/// Edges in three regions: three, three, and two.
fn three_regions(origin: &str) -> Plan {
    let mut plan = Plan::new(8, origin);
    plan.regions = [0, 0, 0, 1, 1, 1, 2, 2].map(|at| REGIONS[at]).to_vec();
    plan
}

/// Edges in one region.
fn one_region(edges: usize, origin: &str, shield: Shield) -> Plan {
    let mut plan = Plan::new(edges, origin).site(|site| site.shield = Some(shield));
    plan.regions = vec![REGIONS[0]; edges];
    plan
}

pub(crate) async fn settled(plan: Plan) -> Cluster {
    let cluster = started(plan).await;
    settle(&cluster).await;
    cluster
}

/// Waits until everybody knows of everybody that it serves.
async fn settle(cluster: &Cluster) {
    cluster.settled().await.unwrap();
    for edge in &cluster.edges {
        eventually(&format!("{} sees all serve", edge.id), async || {
            let peers = edge.ask("/peers").await?.json()?;
            let peers = peers["peers"].as_array().cloned().unwrap_or_default();
            ensure!(
                peers.iter().all(|peer| peer["phase"] == "ready"),
                "{peers:?}"
            );
            Ok(())
        })
        .await
        .unwrap();
    }
}

async fn explain(edge: &Node, path: &str) -> serde_json::Value {
    let question = format!("/explain?url=http://{HOST}{path}");
    edge.ask(&question).await.unwrap().json().unwrap()
}

/// Who is the home of `path` in the region of `edge`, by its own word.
async fn home_of(edge: &Node, path: &str) -> String {
    let explained = explain(edge, path).await;
    let home = &explained["homes"]["region"][0]["id"];
    home.as_str()
        .unwrap_or_else(|| panic!("{explained}"))
        .to_owned()
}

/// A path whose home in the region is `edge`.
pub(crate) async fn path_at(edge: &Node, name: &str) -> String {
    for n in 0..200 {
        let path = format!("/{name}-{n}");
        if home_of(edge, &path).await == edge.id {
            return path;
        }
    }
    panic!("{} is home of nothing", edge.id)
}

/// When the clients of a crowd had their first byte, and when their last, from the first to the last of them.
struct Crowd {
    first: Vec<Duration>,
    last: Vec<Duration>,
}

impl Crowd {
    /// One client for each of `urls`, all at once; each gets `body` and nothing else.
    async fn at(urls: impl Iterator<Item = String>, host: &str, body: &Bytes) -> Self {
        let began = Instant::now();
        let asking = urls.map(|url| {
            let (host, body) = (host.to_owned(), body.clone());
            tokio::spawn(async move {
                let client = Client::new();
                client.exactly(&url, &[("host", &host)], &body).await
            })
        });
        let answers = join_all(asking.collect::<Vec<_>>()).await.into_iter();
        let answers = answers.map(|answer| answer.unwrap().unwrap());
        let took = answers.map(|(first, last)| (first - began, last - began));
        let (mut first, mut last): (Vec<_>, Vec<_>) = took.unzip();
        first.sort_unstable();
        last.sort_unstable();
        Self { first, last }
    }

    fn slowest(&self) -> (Duration, Duration) {
        let slowest = |took: &[Duration]| *took.last().expect("there are clients");
        (slowest(&self.first), slowest(&self.last))
    }
}

impl fmt::Display for Crowd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = |took: &[Duration]| {
            let at = |percent: usize| took[(took.len() * percent).div_ceil(100) - 1].as_secs_f64();
            format!("{:.2}/{:.2}/{:.2} s", at(50), at(99), at(100))
        };
        let (first, last) = (words(&self.first), words(&self.last));
        write!(f, "first byte p50/p99/max {first}, last {last}")
    }
}

/// The scene: 8 edges in 3 regions, 50 clients on each, one cold object of 8 MiB, from an origin that
/// takes a second. What the machine takes for that is what as many clients take that ask one server that has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stampede_reaches_the_origin_once_for_the_cluster_or_the_region() {
    const CLIENTS: usize = 50;
    let origin = Origin::start().await.unwrap();
    let pattern = Pattern::new(1, 8 << 20);
    let body = pattern.bytes();
    let sites = [Shield::None, Shield::Region, Shield::Cluster].map(|shield| {
        let name = format!("{shield:?}").to_lowercase();
        let mut site = Site::new(&name, &[&format!("{name}.test")], &[&origin.url()]);
        site.shield = Some(shield);
        site
    });
    let mut plan = three_regions(&origin.url());
    let written = sites.iter().map(|site| Value::try_from(site).unwrap());
    plan.control_settings
        .insert("site".into(), Value::Array(written.collect()));
    let cluster = settled(plan).await;

    let from_memory = Answer::bytes(body.clone()).head_after(SECOND);
    origin.route("/direct", from_memory);
    let url = format!("{}/direct", origin.url());
    let one = Crowd::at(std::iter::once(url.clone()), HOST, &body).await;
    println!("one client of the origin: {one}");
    let (_, direct) = one.slowest();
    let everybody = cluster.edges.len() * CLIENTS;
    // The first crowd pays for memory that has not been touched before.
    let mut bare = Crowd::at(std::iter::repeat_n(url.clone(), everybody), HOST, &body).await;
    println!("{everybody} clients of the origin: {bare}");
    let again = Crowd::at(std::iter::repeat_n(url, everybody), HOST, &body).await;
    println!("{everybody} clients of the origin: {again}");
    if again.slowest().1 < bare.slowest().1 {
        bare = again;
    }

    // One crowd right after the other: how busy nodes were with the one before is still told, and known to some.
    for (site, most) in sites.iter().zip([8, 3, 1]) {
        let path = format!("/{}", site.name);
        let answer = Answer::pattern(&pattern).max_age(600).head_after(SECOND);
        origin.route(&path, answer);
        let before = origin.requests();
        let edges = cluster.edges.iter();
        let urls = edges.flat_map(|edge| std::iter::repeat_n(edge.url(&path), CLIENTS));
        let crowd = Crowd::at(urls, &site.hosts[0], &body).await;
        let asked = origin.requests() - before;
        let ((first, last), (_, bare)) = (crowd.slowest(), bare.slowest());
        let ratio = last.as_secs_f64() / bare.as_secs_f64();
        println!(
            "shield = {}: {asked} requests at the origin, {crowd}, {ratio:.2} of what one server takes",
            site.name
        );
        assert!(
            (1..=most).contains(&asked),
            "{asked} requests with shield = {}",
            site.name
        );
        // It is told when somebody has waited for nothing; the rest is what the machine takes for 3.3 GB.
        assert!(first < direct * 5, "{first:?} against {direct:?}");
    }
}

/// A home with far more to do than the others has the next one fetch what is new: it alone decides that, so the
/// origin is asked once all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_home_with_too_much_to_do_has_the_next_one_fetch() {
    let origin = Origin::start().await.unwrap();
    let cluster = settled(one_region(3, &origin.url(), Shield::Region)).await;
    let home = &cluster.edges[0];
    let new = path_at(home, "new").await;
    let other = path_at(home, "other").await;
    for path in [&new, &other] {
        origin.route(path, Answer::bytes("new").max_age(600).head_after(SECOND));
    }
    let busy = Busy::new(&origin, home, &new).await;
    // What others have heard of that makes no difference.
    for edge in &cluster.edges {
        assert_eq!(home_of(edge, &new).await, home.id);
    }
    let next = |explained: serde_json::Value| explained["homes"]["region"][1]["id"].clone();
    // It says so to who asks.
    let second = next(explain(home, &other).await);
    let third = cluster.edges.iter();
    let mut third = third.filter(|edge| edge.id != home.id && second != edge.id);
    let third = third.next().unwrap();
    let answer = third.get(&other).await.unwrap();
    assert_eq!(answer.text(), "new");
    let source = answer.cache_status().source();
    assert!(
        matches!(&source, Source::Home(id) if second == *id),
        "{source:?}"
    );
    let sent_on = third.metric("edge_peer_requests_total", &["result=\"sent_on\""]);
    let sent_on = sent_on.await.unwrap();
    assert!((sent_on - 1.0).abs() < 0.1, "{sent_on}");
    // And does the same for its own clients.
    let next = next(explain(home, &new).await);
    let asked = cluster.edges.iter().map(|edge| edge.get(&new));
    for (edge, answer) in cluster.edges.iter().zip(join_all(asked).await) {
        let answer = answer.unwrap();
        assert_eq!(answer.text(), "new");
        let source = match answer.cache_status().source() {
            Source::Home(id) => id,
            _ => edge.id.clone(),
        };
        assert_eq!(next, source, "{}", edge.id);
    }
    for path in [&new, &other] {
        assert_eq!(origin.seen(path).len(), 1, "{path}");
    }
    busy.ends().await;
}

/// The second home of the cluster fetches for its own clients what the first has sent on to it; the first, whose clients
/// want it then, waits for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_home_of_the_cluster_waits_for_whom_it_has_sent_on() {
    let origin = Origin::start().await.unwrap();
    let cluster = settled(one_region(3, &origin.url(), Shield::Cluster)).await;
    let home = &cluster.edges[0];
    let path = path_at(home, "new").await;
    origin.route(&path, Answer::bytes("new").max_age(600).head_after(SECOND));
    let busy = Busy::new(&origin, home, &path).await;
    let explained = explain(home, &path).await;
    let second = &explained["homes"]["cluster"][1]["id"];
    let second = cluster
        .edges
        .iter()
        .find(|edge| *second == edge.id)
        .unwrap();
    let later = async {
        sleep(SECOND / 4).await;
        home.get(&path).await
    };
    let (one, other) = tokio::join!(second.get(&path), later);
    assert_eq!(
        (one.unwrap().text(), other.unwrap().text()),
        ("new".into(), "new".into())
    );
    assert_eq!(origin.seen(&path).len(), 1);
    busy.ends().await;
}

/// Clients that keep an edge busy, so that as a home it sends on.
struct Busy {
    open: watch::Sender<bool>,
    waiting: Vec<JoinHandle<Result<Response>>>,
}

impl Busy {
    /// Until `home`, that of `path`, sends it on.
    async fn new(origin: &Origin, home: &Node, path: &str) -> Self {
        const CLIENTS: usize = 260;
        let busy = path_at(home, "busy").await;
        let (open, held) = watch::channel(false);
        origin.route(&busy, Answer::bytes("at last").max_age(600).held(held));
        let waiting = (0..CLIENTS)
            .map(|_| {
                let url = home.url(&busy);
                tokio::spawn(async move { Client::new().get_with(&url, &[("host", HOST)]).await })
            })
            .collect();
        eventually("the home has too much to do", async || {
            let explained = explain(home, path).await;
            let why = explained["homes"]["region"][0]["why"].to_string();
            ensure!(why.contains("sends on"), "{why}");
            Ok(())
        })
        .await
        .unwrap();
        Self { open, waiting }
    }

    async fn ends(self) {
        self.open.send_replace(true);
        for answer in join_all(self.waiting).await {
            assert_eq!(answer.unwrap().unwrap().text(), "at last");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_relays_keeps_and_says_so() {
    let origin = Origin::start().await.unwrap();
    let cluster = settled(one_region(3, &origin.url(), Shield::Region)).await;
    let [home, one, two] = &cluster.edges[..] else {
        unreachable!()
    };
    let path = path_at(home, "page").await;
    // It comes in for seconds: what is there of it is passed on at once.
    let body = Pattern::new(2, 300 << 10);
    let answer = Answer::pattern(&body).max_age(600);
    origin.route(&path, answer.slowly(100 << 10, SECOND));
    let began = Instant::now();
    let url = one.url(&path);
    let answer = Client::new().digest(&url, &[("host", HOST)]).await.unwrap();
    assert_eq!(answer.hash, body.hash());
    assert_eq!(
        answer.cache_status().source(),
        Source::Home(home.id.clone())
    );
    let first = answer.first_byte - began;
    let last = answer.last_byte - began;
    assert!(last - first > SECOND, "{first:?} {last:?}");
    // The home keeps it.
    stored(home, &path).await;
    let answer = two.get(&path).await.unwrap();
    assert_eq!(answer.body, body.bytes());
    assert_eq!(origin.requests(), 1);
    let bytes = one
        .metric("edge_response_bytes_total", &["source=\"home\""])
        .await
        .unwrap();
    assert!(bytes >= body.bytes().len() as f64, "{bytes}");
    let filled = one
        .metric("edge_peer_requests_total", &["result=\"filled\""])
        .await
        .unwrap();
    assert!((filled - 1.0).abs() < 0.1, "{filled}");

    let other = path_at(home, "other").await;
    let explained = explain(one, &other).await;
    let then = explained["then"].as_str().unwrap_or_default();
    assert!(
        then.contains(&format!("its home \"{}\"", home.id)),
        "{explained}"
    );
    let why = explained["homes"]["region"][0]["why"].as_str();
    assert!(
        why.unwrap_or_default().contains("by its hash"),
        "{explained}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_is_killed_within_a_fill_is_not_missed() {
    let origin = Origin::start().await.unwrap();
    let mut cluster = settled(one_region(3, &origin.url(), Shield::Region)).await;
    let body = Pattern::new(3, 6 << 20);
    for (name, tag, head_after) in [
        ("tagged", true, Duration::ZERO),
        ("untagged", false, Duration::ZERO),
        ("headless", false, SECOND * 3),
    ] {
        let path = path_at(&cluster.edges[0], name).await;
        let mut answer = Answer::pattern(&body)
            .max_age(600)
            .head_after(head_after)
            .slowly(512 << 10, SECOND / 4);
        if tag {
            answer = answer.field("etag", "\"v\"");
        }
        origin.route(&path, answer);
        let urls: Vec<_> = cluster.edges[1..]
            .iter()
            .map(|edge| edge.url(&path))
            .collect();
        let clients: Vec<_> = urls
            .iter()
            .flat_map(|url| [url; 3])
            .map(|url| {
                let url = url.clone();
                tokio::spawn(async move { Client::new().digest(&url, &[("host", HOST)]).await })
            })
            .collect();
        sleep(SECOND * 3 / 2).await;
        assert!(clients.iter().all(|client| !client.is_finished()));
        cluster.edges[0].kill9().await.unwrap();
        for client in clients {
            let answer = client.await.unwrap().unwrap();
            assert_eq!((answer.status, answer.hash), (200, body.hash()), "{name}");
        }
        println!(
            "{name}: {} requests at the origin",
            origin.seen(&path).len()
        );
        cluster.edges[0].start().await.unwrap();
        settle(&cluster).await;
        // Until it is asked again, half-open.
        eventually("the home is back", async || {
            let peers = cluster.edges[1].ask("/peers").await?.json()?;
            let peers = peers["peers"].as_array().cloned().unwrap_or_default();
            ensure!(
                peers.iter().all(|peer| peer["ejected"] == false),
                "{peers:?}"
            );
            Ok(())
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_private_is_never_shared_through_a_home() {
    let origin = Origin::start().await.unwrap();
    let cluster = settled(one_region(3, &origin.url(), Shield::Region)).await;
    for (name, field, value) in [
        ("private", "cache-control", "private, max-age=600"),
        ("no-store", "cache-control", "no-store"),
        ("cookie", "set-cookie", "session=1"),
    ] {
        let path = path_at(&cluster.edges[0], name).await;
        let number = std::sync::atomic::AtomicU64::new(0);
        origin.route_by(&path, move |_| {
            let number = number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let answer = Answer::bytes(format!("for number {number} alone"))
                .head_after(SECOND / 4)
                .field(field, value);
            answer.into()
        });
        for _ in 0..2 {
            let asked = cluster
                .edges
                .iter()
                .flat_map(|edge| (0..5).map(|_| edge.get(&path)).collect::<Vec<_>>());
            let answers: Vec<Response> = (join_all(asked).await.into_iter())
                .collect::<Result<_>>()
                .unwrap();
            let own: HashSet<String> = answers.iter().map(Response::text).collect();
            assert_eq!(own.len(), 15, "{name}: {own:?}");
            assert!(answers.iter().all(|answer| answer.status == 200));
            assert!(
                name != "cookie" || answers.iter().all(|a| a.field("set-cookie") == Some(value))
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_gone_stale_is_validated_once_through_its_home() {
    let origin = Origin::start().await.unwrap();
    let cluster = settled(one_region(3, &origin.url(), Shield::Region)).await;
    let [home, one, two] = &cluster.edges[..] else {
        unreachable!()
    };
    let path = path_at(home, "stale").await;
    let body = Pattern::new(4, 2 << 20);
    let pattern = body.clone();
    let answer = move |seen: &Seen| {
        let answer = match seen.field("if-none-match") {
            Some("\"v1\"") => Answer::status(304),
            _ => Answer::pattern(&pattern),
        };
        answer.field("etag", "\"v1\"").max_age(2).into()
    };
    origin.route_by(&path, answer);
    for edge in [one, two] {
        assert_eq!(edge.get(&path).await.unwrap().status, 200);
    }
    assert_eq!(origin.requests(), 1);
    let sent = origin.body_bytes();
    sleep(SECOND * 3).await;
    let (a, b) = tokio::join!(one.get(&path), two.get(&path));
    for answer in [a.unwrap(), b.unwrap()] {
        assert_eq!(answer.body, body.bytes());
        let status = answer.cache_status();
        assert_eq!(status.source(), Source::Home(home.id.clone()), "{status:?}");
    }
    // One question, and not a byte of the body again.
    assert_eq!(origin.requests(), 2);
    assert_eq!(origin.body_bytes(), sent);
    let same = one
        .metric("edge_peer_requests_total", &["result=\"same\""])
        .await
        .unwrap();
    assert!((same - 1.0).abs() < 0.1, "{same}");
}

/// Whoever came beside the first got the origin's error, which each of them had asked for past the home.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_stale_is_everybodys_when_the_origin_fails_the_home() {
    // RFC 5861 §4
    let origin = Origin::start().await.unwrap();
    let plan = one_region(2, &origin.url(), Shield::Region);
    let plan = plan.site(|site| {
        site.stale_if_error = "1h".parse().ok();
        site.stale_while_revalidate = "0s".parse().ok();
    });
    let cluster = settled(plan).await;
    let [home, edge] = &cluster.edges[..] else {
        unreachable!()
    };
    let path = path_at(home, "page").await;
    let answer = Answer::bytes("as it was").max_age(1).field("etag", "\"1\"");
    origin.route(&path, answer);
    assert_eq!(edge.get(&path).await.unwrap().text(), "as it was");
    sleep(SECOND * 2).await;
    let fails = Answer::status(503).field("cache-control", "no-store");
    origin.route(&path, fails.head_after(SECOND / 4));
    let asked = origin.requests();
    for answer in join_all((0..5).map(|_| edge.get(&path))).await {
        let answer = answer.unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "as it was"));
        let status = answer.field("cache-status").unwrap();
        assert!(
            status.contains("fwd=stale;") && !status.contains("304"),
            "{status}"
        );
    }
    assert_eq!(origin.requests(), asked + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_fails_is_not_asked_again_and_nobody_else_is_blamed() {
    let origin = Origin::start().await.unwrap();
    let plan = one_region(3, &origin.url(), Shield::Region);
    let cluster = settled(plan.site(|site| site.stale_if_error = "1h".parse().ok())).await;
    let [home, one, two] = &cluster.edges[..] else {
        unreachable!()
    };
    let (page, broken) = (path_at(home, "page").await, path_at(home, "broken").await);
    origin.route(&page, Answer::bytes("as it was").max_age(1));
    assert_eq!(one.get(&page).await.unwrap().text(), "as it was");
    // An error of its own is handed on as it is.
    origin.route(
        &broken,
        Answer::bytes("sorry")
            .with_status(503)
            .field("x-why", "maintenance"),
    );
    let answer = one.get(&broken).await.unwrap();
    assert_eq!(
        (answer.status, answer.text().as_str(), answer.field("x-why")),
        (503, "sorry", Some("maintenance"))
    );
    assert_eq!(origin.seen(&broken).len(), 1);

    sleep(SECOND * 2).await;
    origin.route(&page, Answer::status(500));
    let before = origin.requests();
    assert_eq!(one.get(&page).await.unwrap().text(), "as it was");
    assert_eq!(origin.requests() - before, 1);
    drop(origin);
    let began = Instant::now();
    assert_eq!(one.get(&page).await.unwrap().text(), "as it was");
    let missing = path_at(home, "missing").await;
    let answer = two.get(&missing).await.unwrap();
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(began.elapsed() < SECOND * 10);
    for edge in [one, two] {
        let peers = edge.ask("/peers").await.unwrap().json().unwrap();
        for peer in peers["peers"].as_array().unwrap() {
            assert_eq!(peer["ejected"], false, "{peer}");
            assert_eq!(peer["errors"], 0.0, "{peer}");
        }
    }
}

/// A node that takes another one for the home asks it; that one may at the same moment wait for the first. So
/// it says that it will not wait, at once, and nobody waits for ever.
#[tokio::test(flavor = "multi_thread")]
async fn views_that_differ_do_not_make_nodes_wait_for_each_other() {
    let origin = Origin::start().await.unwrap();
    let cluster = settled(one_region(2, &origin.url(), Shield::Region)).await;
    let [home, other] = &cluster.edges[..] else {
        unreachable!()
    };
    let path = path_at(home, "crossed").await;
    let (open, held) = watch::channel(false);
    let answer = Answer::bytes("at last").max_age(600).held(held);
    origin.route(&path, answer);
    // `other` asks the home for its client, and the home asks the origin.
    let url = other.url(&path);
    let client = tokio::spawn(async move { Client::new().get_with(&url, &[("host", HOST)]).await });
    eventually("the origin is asked", async || {
        ensure!(origin.requests() == 1, "{}", origin.requests());
        Ok(())
    })
    .await
    .unwrap();
    // The home, if it took `other` for the home, would ask it like this.
    let crossed = ask_to_fill(&cluster, other, &path, "region").await;
    assert_eq!(crossed, [6, 1], "refused: crossed");
    // For whom the cluster's home is `other`, all the more.
    assert_eq!(ask_to_fill(&cluster, other, &path, "cluster").await, [6, 1]);
    assert!(!client.is_finished());
    // The fill of the home itself only waits for the origin: who asks there waits with it.
    let waiting = ask_to_fill(&cluster, home, &path, "region").await;
    assert_eq!(waiting[0], 0, "not yet");
    open.send_replace(true);
    assert_eq!(client.await.unwrap().unwrap().text(), "at last");
    assert_eq!(origin.requests(), 1);
}

/// Two homes had each lost the one that both fetched an object from, and each asked the other for the rest: what is
/// coming in was relayed to whoever asked, once its head was known. Both told each other that they were there, and
/// their clients waited for ever (`tests/sim/homes.rs`, one run of twenty).
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_still_coming_in_is_not_waited_for_in_a_circle() {
    let origin = Origin::start().await.unwrap();
    let cluster = settled(one_region(2, &origin.url(), Shield::Region)).await;
    let [home, other] = &cluster.edges[..] else {
        unreachable!()
    };
    let path = path_at(home, "circle").await;
    let body = Pattern::new(4, 640 << 10);
    let answer = Answer::pattern(&body).max_age(600);
    origin.route(&path, answer.slowly(64 << 10, SECOND));
    let url = other.url(&path);
    let (head, mut rest) = Client::new()
        .begin_get(&url, &[("host", HOST)])
        .await
        .unwrap();
    assert_eq!(head.status, 200);
    rest.frame().await.unwrap().unwrap();
    // It has the beginning from the home, and waits for the rest.
    for level in ["region", "cluster"] {
        let said = ask_to_fill(&cluster, other, &path, level).await;
        assert_eq!(said, [6, 1], "refused: crossed");
    }
    // The home waits for the origin only.
    let said = ask_to_fill(&cluster, home, &path, "region").await;
    assert_eq!(said, [1], "an object");
    let rest = rest.collect().await.unwrap().to_bytes();
    assert!(body.bytes().ends_with(&rest));
    // Who has all of it has nobody to wait for.
    stored(other, &path).await;
    let said = ask_to_fill(&cluster, other, &path, "region").await;
    assert_eq!(said, [1], "an object");
    assert_eq!(origin.requests(), 1);
}

/// Asks `node` as its peer would; the kind of the first frame of its answer, and of a refusal the reason.
async fn ask_to_fill(cluster: &Cluster, node: &Node, path: &str, level: &str) -> Vec<u8> {
    let explained = explain(node, path).await;
    let key: Key = explained["key"].as_str().unwrap().parse().unwrap();
    let target = format!("{}/{key}?level={level}", FILL);
    let secret = ClusterSecret::load(&cluster.secret).unwrap();
    let signer = Signer::new(secret, "edge-9".parse().unwrap());
    let to = node.id.parse().unwrap();
    let signed = signer.sign(&to, "GET", &target, Clock::system().unix_ms());
    let mut fields: Vec<(&str, &str)> = vec![
        ("cdn-site", "site"),
        ("cdn-host", HOST),
        ("cdn-target", path),
    ];
    fields.extend(signed.iter().map(|(name, value)| (*name, value.as_str())));
    let url = format!("http://{}{target}", node.peer.unwrap());
    let (head, mut body) = Client::new().begin_get(&url, &fields).await.unwrap();
    assert_eq!(head.status, 200);
    let frame = tokio::time::timeout(SECOND * 10, body.frame()).await;
    let bytes = frame.unwrap().unwrap().unwrap().into_data().unwrap();
    let mut said = vec![bytes[0]];
    if bytes[0] == 6 {
        said.push(bytes[5]);
    }
    said
}
