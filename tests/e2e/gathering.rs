//! One object from many holders at once, over lines that are narrow, slow, cut or lying; and questions
//! that are asked of a second holder when the first is late.

use std::time::Duration;

use anyhow::Result;
use cluster::site::rules::Shield;
use futures_util::{StreamExt, TryStreamExt, stream};
use harness::{
    client::{Client, Digested},
    cluster::{Cluster, HOST, Lines, Node, Plan},
    origin::{Answer, Origin},
    pattern::Pattern,
    proxy::Conditions,
};
use tokio::time::Instant;

use crate::{heard_of, started, stored};

/// Edges that hold the objects: the first ones. Those behind them ask.
const HOLDERS: usize = 4;
const BYTES: u64 = 48 << 20;
/// Of each line to a holder: eight seconds for the whole object.
const LINE_BYTES_PER_S: u64 = 6 << 20;

fn narrow(bytes_per_s: u64) -> Conditions {
    Conditions {
        bytes_per_s: Some(bytes_per_s),
        ..Conditions::default()
    }
}

/// [`HOLDERS`] and more edges, all in one place, with lines between them.
async fn neighbours(askers: usize, origin: &Origin, shield: Shield) -> Cluster {
    let plan = Plan::new(HOLDERS + askers, &origin.url())
        .lines(Lines::Perfect)
        // Nobody gets it but who asks.
        .edge_setting("cluster", "offers", 0)
        .site(move |site| site.shield = Some(shield))
        .edge_setting("node", "region", "here")
        .edge_setting("node", "latitude", 50.0)
        .edge_setting("node", "longitude", 8.0);
    let cluster = started(plan).await;
    cluster.settled().await.unwrap();
    cluster
}

/// Has the first `holders` edges hold `path`, as their number of object `objects`, and the others know.
async fn hold(cluster: &Cluster, holders: usize, path: &str, objects: u64) {
    let (holders, others) = cluster.edges.split_at(holders);
    for holder in holders {
        fetch(holder, path).await.unwrap();
        stored(holder, path).await;
    }
    for asker in &others[HOLDERS.saturating_sub(holders.len())..] {
        for holder in holders {
            heard_of(asker, &holder.id, objects).await.unwrap();
        }
    }
}

async fn fetch(edge: &Node, path: &str) -> Result<Digested> {
    Client::new()
        .digest(&edge.url(path), &[("host", HOST)])
        .await
}

/// How long `edge` takes for the whole of `path`, which is right.
async fn timed(edge: &Node, path: &str, body: &Pattern) -> Duration {
    let begun = Instant::now();
    let answer = fetch(edge, path).await.unwrap();
    assert_eq!((answer.status, answer.hash), (200, body.hash()));
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn four_holders_send_one_object_faster_than_one_and_a_slow_one_holds_nobody_up() {
    let origin = Origin::start().await.unwrap();
    let body = Pattern::new(41, BYTES);
    for path in ["/one", "/four", "/slow"] {
        origin.route(path, Answer::pattern(&body).max_age(600));
    }
    let cluster = neighbours(1, &origin, Shield::None).await;
    let asker = &cluster.edges[HOLDERS];
    hold(&cluster, HOLDERS, "/four", 1).await;
    hold(&cluster, HOLDERS, "/slow", 2).await;
    hold(&cluster, 1, "/one", 3).await;
    let at_origin = origin.requests();
    for holder in 0..HOLDERS {
        cluster.line(HOLDERS, holder).set(narrow(LINE_BYTES_PER_S));
    }
    let one = timed(asker, "/one", &body).await;
    let four = timed(asker, "/four", &body).await;
    cluster.line(HOLDERS, 2).set(narrow(LINE_BYTES_PER_S / 10));
    let slow = timed(asker, "/slow", &body).await;
    println!("from one holder {one:?}, from four {four:?}, with a slow one {slow:?}");
    assert_eq!(origin.requests(), at_origin);
    assert!(four * 2 < one, "{four:?} against {one:?}");
    assert!(slow * 10 < one * 7, "{slow:?} against {one:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_is_killed_and_one_whose_bytes_are_corrupted_are_replaced_midway() {
    let origin = Origin::start().await.unwrap();
    let body = Pattern::new(42, BYTES);
    origin.route("/big", Answer::pattern(&body).max_age(600));
    let mut cluster = neighbours(1, &origin, Shield::None).await;
    hold(&cluster, HOLDERS, "/big", 1).await;
    let at_origin = origin.requests();
    for holder in 0..HOLDERS {
        let line = cluster.line(HOLDERS, holder);
        line.set(narrow(LINE_BYTES_PER_S));
    }
    cluster.line(HOLDERS, 2).set(Conditions {
        corrupted: true,
        ..narrow(LINE_BYTES_PER_S)
    });
    let url = cluster.edges[HOLDERS].url("/big");
    let fetching = tokio::spawn(async move { Client::new().digest(&url, &[("host", HOST)]).await });
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(!fetching.is_finished());
    cluster.edges[1].kill9().await.unwrap();
    let answer = fetching.await.unwrap().unwrap();
    assert_eq!((answer.status, answer.hash), (200, body.hash()));
    assert_eq!(origin.requests(), at_origin);
    let asker = &cluster.edges[HOLDERS];
    let peers = asker.ask("/peers").await.unwrap().json().unwrap();
    let peer = |id: &str| {
        peers["peers"]
            .as_array()
            .unwrap()
            .iter()
            .find(|p| p["id"] == id)
    };
    let liar = peer("edge-3").unwrap();
    assert_eq!(liar["ejected"], true, "{liar}");
    assert_eq!(liar["last_failure"], "corrupt", "{liar}");
    let honest = peer("edge-1").unwrap();
    assert_eq!(honest["ejected"], false, "{honest}");
    assert!(honest["bytes_per_s"].as_f64().unwrap() > 0.0, "{honest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_keeps_to_its_upload_limit_and_tells_others_that_it_is_busy() {
    let origin = Origin::start().await.unwrap();
    let body = Pattern::new(43, 12 << 20);
    origin.route("/big", Answer::pattern(&body).max_age(600));
    let mut cluster = neighbours(1, &origin, Shield::None).await;
    let limited = &mut cluster.edges[0];
    limited.terminate().await.unwrap();
    let rate = limited.configure("peer", "upload_bytes_per_s", "2MiB");
    rate.unwrap();
    limited.start().await.unwrap();
    cluster.settled().await.unwrap();
    hold(&cluster, 1, "/big", 1).await;
    let [limited, other, .., asker] = &cluster.edges[..] else {
        unreachable!()
    };
    heard_of(other, &limited.id, 1).await.unwrap();
    let second = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        timed(other, "/big", &body).await
    };
    let (first, second) = tokio::join!(timed(asker, "/big", &body), second);
    let busy = limited.metric("edge_peer_answers_total", &["answer=\"busy\""]);
    let busy = busy.await.unwrap();
    println!("limited: {first:?}, turned away: {second:?}, busy {busy} times");
    assert!(first >= Duration::from_millis(5_800), "{first:?}");
    assert!(busy >= 1.0 && second < first, "{second:?}");
    // Once to fill it, once for who was turned away.
    assert_eq!(origin.requests(), 2);
    let peers = asker.ask("/peers").await.unwrap().json().unwrap();
    let peers = peers["peers"].as_array().unwrap();
    assert!(peers.iter().all(|p| p["ejected"] == false), "{peers:?}");
}

/// What the `share` slowest of sorted latencies begin with.
fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// Latencies are told from each other where the machine adds little to them, so a round counts in which a hit took
/// no longer than that at the same time, and one is enough: where several questions in a row stall, late answers look
/// usual for a while. In any other, what does not depend on time holds all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_holder_is_asked_when_the_first_is_late() {
    const LEARNING: usize = 80;
    const MEASURED: usize = 400;
    const STALL: Duration = Duration::from_secs(1);
    const STALLING: usize = 1;
    const STALLING_HAS_ONE_IN: usize = 3;
    /// Of a hit's p99: a tenth of what is measured, through five times as many processes.
    const NOISE_MAX: Duration = Duration::from_millis(20);
    /// As long as other tests may keep the machine busy: a round takes ten seconds, and a minute where it is.
    const ROUNDS_MAX: usize = 5;
    let origin = Origin::start().await.unwrap();
    // Where the origin is not to be spared, it is asked first: it is not late.
    let mut cluster = neighbours(2, &origin, Shield::Region).await;
    let without = &mut cluster.edges[HOLDERS + 1];
    without.terminate().await.unwrap();
    without.configure("peer", "hedge", false).unwrap();
    without.start().await.unwrap();
    cluster.settled().await.unwrap();
    let (holders, askers) = cluster.edges.split_at(HOLDERS);
    // The nearest holder holds every tenth question up for a second, and has every third object: it is asked first
    // for these, whatever the machine adds to the ways. Those who ask are too far from each other to help.
    for (asker, other) in [(HOLDERS, HOLDERS + 1), (HOLDERS + 1, HOLDERS)] {
        let far = Conditions::delay(Duration::from_millis(100));
        cluster.line(asker, other).set(far);
        for holder in 0..HOLDERS {
            let conditions = match holder {
                STALLING => Conditions {
                    hiccup: Some((10, STALL)),
                    ..Conditions::delay(Duration::from_millis(5))
                },
                _ => Conditions::delay(Duration::from_millis(15)),
            };
            cluster.line(asker, holder).set(conditions);
        }
    }
    let (mut asked, mut held, mut could_tell) = (0, [0; HOLDERS], false);
    for _ in 0..ROUNDS_MAX {
        let learning = if asked == 0 { LEARNING } else { 0 };
        let paths = asked..asked + learning + MEASURED;
        asked = paths.end;
        let paths: Vec<_> = paths.map(|n| format!("/{n}")).collect();
        for path in &paths {
            let body = Answer::bytes(format!("this is {path}"));
            origin.route(path, body.max_age(600));
        }
        for (at, holder) in holders.iter().enumerate() {
            let every = if at == STALLING {
                STALLING_HAS_ONE_IN
            } else {
                1
            };
            let fetching = paths.iter().step_by(every).map(|path| holder.get(path));
            let fetched = stream::iter(fetching).buffer_unordered(4);
            held[at] += fetched.try_collect::<Vec<_>>().await.unwrap().len() as u64;
            for asker in askers {
                heard_of(asker, &holder.id, held[at]).await.unwrap();
            }
        }
        let measure = async |edge: &Node| {
            let mut took = Vec::new();
            for (n, path) in paths.iter().enumerate() {
                let begun = Instant::now();
                let answer = edge.get(path).await.unwrap();
                assert_eq!(answer.text(), format!("this is {path}"));
                if n >= learning {
                    took.push(begun.elapsed());
                }
            }
            took.sort();
            took
        };
        let [one, two] = [0, 1].map(|asker| measure(&askers[asker]));
        let mut hits = Vec::new();
        let hitting = async {
            for path in paths.iter().cycle() {
                let begun = Instant::now();
                holders[0].get(path).await.unwrap();
                hits.push(begun.elapsed());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let (with, without) = tokio::select! {
            measured = async { tokio::join!(one, two) } => measured,
            () = hitting => unreachable!("there is always a next one"),
        };
        hits.sort();
        let [with, without, noise] = [with, without, hits].map(|took| percentile(&took, 0.99));
        let hedges = hedges(&askers[0]).await.unwrap();
        println!(
            "p99 {with:?}, with {hedges} hedges so far, {without:?} without, {noise:?} for hits"
        );
        assert!(hedges <= 0.05 * asked as f64, "{hedges} of {asked}");
        assert_eq!(self::hedges(&askers[1]).await.unwrap(), 0.0);
        assert!(without >= STALL, "{without:?}");
        assert!(hedges >= 1.0, "{hedges}");
        if noise <= NOISE_MAX && with * 5 <= without {
            return;
        }
        could_tell |= noise <= NOISE_MAX;
    }
    assert!(!could_tell, "p99 did not fall to a fifth in any round");
    println!("the machine was too busy to tell, {ROUNDS_MAX} times");
}

/// Questions that were asked of a second holder.
async fn hedges(asker: &Node) -> Result<f64> {
    let mut sum = 0.0;
    for result in ["won", "lost", "failed"] {
        let label = format!("result=\"{result}\"");
        sum += asker.metric("edge_hedges_total", &[&label]).await?;
    }
    Ok(sum)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_what_nobody_holds_waits_for_no_peer() {
    let origin = Origin::start().await.unwrap();
    origin.route("/held", Answer::bytes("held").max_age(600));
    origin.route("/new", Answer::bytes("new").max_age(600));
    let cluster = neighbours(1, &origin, Shield::None).await;
    hold(&cluster, HOLDERS, "/held", 1).await;
    let asker = &cluster.edges[HOLDERS];
    // Whoever waits for a peer is found out.
    let one_way = Duration::from_millis(400);
    for holder in 0..HOLDERS {
        cluster
            .line(HOLDERS, holder)
            .set(Conditions::delay(one_way));
    }
    let begun = Instant::now();
    assert_eq!(asker.get("/new").await.unwrap().text(), "new");
    assert!(begun.elapsed() < one_way * 2, "{:?}", begun.elapsed());
    let asked = || asker.metric("edge_peer_requests_total", &[]);
    assert_eq!(asked().await.unwrap(), 0.0);
    let begun = Instant::now();
    assert_eq!(asker.get("/held").await.unwrap().text(), "held");
    let took = begun.elapsed();
    assert!(took >= one_way * 2 && took < one_way * 4, "{took:?}");
    assert_eq!(asked().await.unwrap(), 1.0);
}
