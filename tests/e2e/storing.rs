//! What the disk tier promises, kept by a real process: killed at any instant, with a disk that is full,
//! read-only, damaged or robbed. Each is a miss that mends itself, told by a metric and a line in the
//! log; none is a wrong byte or a dead node.

use std::{
    fs,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use harness::{
    client::Response,
    cluster::{Cluster, Node, Plan},
    origin::{Answer, Origin},
    pattern::Pattern,
    process::eventually,
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::Instant,
};

use crate::{SECOND, started};

/// A memory tier that keeps nothing to speak of: what is served was on disk.
const NO_MEMORY: &str = "64KiB";
/// The smallest disk: segments of 4 MiB.
const SMALL_DISK: &str = "32MiB";

/// Objects whose bodies tell which they are, at `/0`, `/1`, …
struct Objects {
    origin: Origin,
    bodies: Vec<Pattern>,
}

impl Objects {
    async fn new(count: usize, length: impl Fn(usize) -> u64) -> Self {
        let origin = Origin::start().await.expect("a free port");
        let bodies: Vec<_> = (0..count)
            .map(|n| Pattern::new(n as u64, length(n)))
            .collect();
        for (n, body) in bodies.iter().enumerate() {
            origin.route(&format!("/{n}"), Answer::pattern(body).max_age(3600));
        }
        Self { origin, bodies }
    }

    /// One edge in front of them, with these settings of its cache.
    async fn edge(&self, memory: &str, disk: &str) -> Cluster {
        let plan = Plan::alone(&self.origin.url())
            .edge_setting("cache", "memory", memory)
            .edge_setting("cache", "disk", disk);
        started(plan).await
    }

    /// Asks for object `n`; whatever else happens, what is a whole answer must be the right one.
    async fn get(&self, edge: &Node, n: usize) -> Result<Response> {
        let answer = edge.get(&format!("/{n}")).await?;
        ensure!(answer.status == 200, "/{n}: {}", answer.status);
        assert!(answer.body == self.bodies[n].bytes(), "/{n}: wrong bytes");
        Ok(answer)
    }

    /// Asks for all of them, a second time where an answer breaks off; how many were hits.
    async fn hits(&self, edge: &Node) -> usize {
        let mut hits = 0;
        for n in 0..self.bodies.len() {
            let answer = match self.get(edge, n).await {
                Ok(answer) => answer,
                Err(_) => self.get(edge, n).await.expect("the edge is alive"),
            };
            hits += usize::from(answer.cache_status().hit);
        }
        hits
    }

    /// Asks until all of them are hits: it has healed.
    async fn all_hit(&self, edge: &Node) {
        eventually("all are hits", async || {
            let hits = self.hits(edge).await;
            ensure!(hits == self.bodies.len(), "{hits} hits");
            Ok(())
        })
        .await
        .unwrap();
    }
}

/// Waits until a counter of the edge has counted.
async fn counted(edge: &Node, name: &str) {
    eventually(name, async || {
        let count = edge.metric(name, &[]).await?;
        ensure!(count >= 1.0);
        Ok(())
    })
    .await
    .unwrap();
}

fn told(edge: &Node, text: &str) -> bool {
    !edge.log().matching(text).is_empty()
}

/// The segment files, oldest first.
fn segments(edge: &Node) -> Vec<PathBuf> {
    let entries = fs::read_dir(edge.data_dir.join("segments")).unwrap();
    let mut found: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

/// Flips a bit every `step` bytes of every segment, from `from` on.
fn rot(edge: &Node, from: u64, step: usize) {
    for path in segments(edge) {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let length = file.metadata().unwrap().len();
        for at in (from..length).step_by(step) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        }
    }
}

/// Sizes of one page and what is on it: mostly small, some of several pieces.
fn mixed(n: usize) -> u64 {
    match n % 16 {
        15 => (2 << 20) + n as u64,
        n => 1 + (n * n * 900) as u64,
    }
}

/// Pieces that a client still has to get stay what they were, wherever it got the first ones from.
#[tokio::test]
async fn what_is_evicted_under_a_slow_client_reaches_it_unchanged() {
    /// More than the buffers on the way to a client hold.
    const LARGE_BYTES: u64 = 8 << 20;
    /// So many more of them turn the ring over as often as hits are remembered, and once more.
    const OTHERS: usize = 23;
    for memory in [NO_MEMORY, "16MiB"] {
        let objects = Objects::new(1, |_| LARGE_BYTES).await;
        let other = Bytes::from(vec![0; usize::try_from(LARGE_BYTES).unwrap()]);
        for n in 0..OTHERS {
            let answer = Answer::bytes(other.clone()).max_age(3600);
            objects.origin.route(&format!("/other/{n}"), answer);
        }
        let cluster = objects.edge(memory, SMALL_DISK).await;
        let edge = &cluster.edges[0];
        eventually("it is kept", async || {
            let hit = objects.get(edge, 0).await?.cache_status().hit;
            ensure!(hit);
            Ok(())
        })
        .await
        .unwrap();
        let mut slow = TcpStream::connect(edge.http).await.unwrap();
        let host = harness::cluster::HOST;
        let request = format!("GET /0 HTTP/1.1\r\nhost: {host}\r\n\r\n");
        slow.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![slow.read_u8().await.unwrap()];
        for n in 0..OTHERS {
            let status = edge.get(&format!("/other/{n}")).await.unwrap().status;
            assert_eq!(status, 200);
        }
        let again = objects.get(edge, 0).await.unwrap();
        assert!(!again.cache_status().hit, "{memory}: it was evicted");
        let head_bytes = loop {
            let end = answer.windows(4).position(|at| at == b"\r\n\r\n");
            if let Some(end) = end {
                break end + 4;
            }
            answer.push(slow.read_u8().await.unwrap());
        };
        assert!(answer.starts_with(b"HTTP/1.1 200 "));
        let mut body = vec![0; usize::try_from(LARGE_BYTES).unwrap()];
        slow.read_exact(&mut body).await.unwrap();
        assert_eq!(answer.len(), head_bytes);
        assert!(body == objects.bodies[0].bytes(), "{memory}: wrong bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_instant_it_loses_nothing_older_than_a_second() {
    const ROUNDS: u64 = 10;
    /// More than all rounds together can ask for.
    const OBJECTS: usize = 60_000;
    const CLIENTS: usize = 4;
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    // One in 64 is of several pieces.
    let objects = Objects::new(OBJECTS, |n| match n % 64 {
        63 => (2 << 20) + n as u64,
        n => 1 + (n * n * 3) as u64,
    })
    .await;
    let mut cluster = objects.edge(NO_MEMORY, "4GiB").await;
    let mut next = 0;
    let mut kept: Vec<usize> = Vec::new();
    for round in 0..ROUNDS {
        let begun = Instant::now();
        let dies = begun + SECOND + Duration::from_millis(random.random_range(100..900));
        let edge = &cluster.edges[0];
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let url = edge.url("");
            clients.spawn(async move {
                let mut done = Vec::new();
                for n in (next + client..OBJECTS).step_by(CLIENTS) {
                    let path = format!("{url}/{n}");
                    let fields = [("host", harness::cluster::HOST)];
                    let got = harness::client::Client::new()
                        .get_with(&path, &fields)
                        .await;
                    match got {
                        Ok(answer) if answer.status == 200 => done.push((n, Instant::now())),
                        _ => break,
                    }
                }
                done
            });
        }
        tokio::time::sleep_until(dies).await;
        let killed = Instant::now();
        cluster.edges[0].kill9().await.unwrap();
        let done: Vec<_> = clients.join_all().await.concat();
        let safe = done.iter().filter(|(_, at)| *at + SECOND < killed);
        let safe: Vec<_> = safe.map(|(n, _)| *n).collect();
        next = done
            .iter()
            .map(|(n, _)| n + 1 + CLIENTS)
            .max()
            .unwrap_or(next);
        eprintln!(
            "round {round}: {} answered, {} of them older",
            done.len(),
            safe.len()
        );
        kept.extend(safe);
        cluster.edges[0].start().await.unwrap();
        let edge = &cluster.edges[0];
        // Those of this round, and some of all others.
        let asked = kept.iter().rev().take(200);
        let old = kept.iter().step_by(kept.len() / 50 + 1);
        for n in asked.chain(old) {
            let answer = objects.get(edge, *n).await.unwrap();
            assert!(
                answer.cache_status().hit,
                "/{n} is lost (round {round}, seed {seed})"
            );
        }
        // What was under way is whole or absent: `get` compares every byte.
        for n in next.saturating_sub(3 * CLIENTS)..next.min(OBJECTS) {
            objects.get(edge, n).await.unwrap();
        }
    }
    assert!(kept.len() > 100, "too few to mean anything: {}", kept.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn bits_that_rot_while_it_runs_are_misses_that_heal() {
    let objects = Objects::new(48, mixed).await;
    let cluster = objects.edge(NO_MEMORY, "256MiB").await;
    let edge = &cluster.edges[0];
    objects.hits(edge).await;
    objects.all_hit(edge).await;
    rot(edge, 100, 1 << 10);
    let hits = objects.hits(edge).await;
    assert!(hits < objects.bodies.len(), "nothing was hurt");
    counted(edge, "edge_checksum_failures_total").await;
    assert!(told(edge, "of no use"));
    objects.all_hit(edge).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bits_that_rot_while_it_is_stopped_are_misses_that_heal() {
    let objects = Objects::new(48, mixed).await;
    let mut cluster = objects.edge(NO_MEMORY, "256MiB").await;
    let edge = &mut cluster.edges[0];
    objects.hits(edge).await;
    objects.all_hit(edge).await;
    edge.terminate().await.unwrap();
    rot(edge, 100, 1 << 10);
    edge.start().await.unwrap();
    let hits = objects.hits(edge).await;
    assert!(hits < objects.bodies.len(), "nothing was hurt");
    counted(edge, "edge_checksum_failures_total").await;
    objects.all_hit(edge).await;

    // And without the index, so that all is read from what has rotted.
    edge.terminate().await.unwrap();
    rot(edge, 4_000, 64 << 10);
    fs::remove_dir_all(edge.data_dir.join("index")).unwrap();
    edge.start().await.unwrap();
    objects.hits(edge).await;
    objects.all_hit(edge).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_vanishes_is_noticed_and_what_is_in_it_is_not_lost_twice() {
    let objects = Objects::new(48, mixed).await;
    let mut cluster = objects.edge(NO_MEMORY, "256MiB").await;
    let edge = &mut cluster.edges[0];
    objects.hits(edge).await;
    objects.all_hit(edge).await;
    // While it runs: all of them, the one that is written to included.
    let removed = segments(edge);
    removed
        .iter()
        .for_each(|path| fs::remove_file(path).unwrap());
    // They are missed one after the other, and can be read until then.
    eventually("all of them are missed", async || {
        objects.hits(edge).await;
        let missed = edge.metric("edge_lost_segments_total", &[]).await?;
        ensure!(missed >= removed.len() as f64, "{missed}");
        Ok(())
    })
    .await
    .unwrap();
    assert!(told(edge, "segment file is gone"));
    objects.all_hit(edge).await;
    // Now all of it stands in files that are there, or will within a second: that is the promise.
    tokio::time::sleep(SECOND).await;
    edge.kill9().await.unwrap();
    edge.start().await.unwrap();
    assert_eq!(objects.hits(edge).await, objects.bodies.len());

    // While it is stopped.
    edge.terminate().await.unwrap();
    fs::remove_file(&segments(edge)[0]).unwrap();
    edge.start().await.unwrap();
    counted(edge, "edge_lost_segments_total").await;
    objects.hits(edge).await;
    objects.all_hit(edge).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_goes_while_it_runs_costs_nothing_but_a_longer_start() {
    let objects = Objects::new(48, mixed).await;
    let mut cluster = objects.edge(NO_MEMORY, "256MiB").await;
    let edge = &mut cluster.edges[0];
    for n in 0..24 {
        objects.get(edge, n).await.unwrap();
    }
    fs::remove_dir_all(edge.data_dir.join("index")).unwrap();
    objects.hits(edge).await;
    objects.all_hit(edge).await;
    edge.kill9().await.unwrap();
    edge.start().await.unwrap();
    assert_eq!(objects.hits(edge).await, objects.bodies.len());

    // Scribbled over while it runs: what it read at its start is in memory, what it writes it cannot
    // know to be lost; so it is the next start that notices.
    for entry in fs::read_dir(edge.data_dir.join("index")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let length = fs::metadata(&path).unwrap().len();
            let garbage = Pattern::new(7, length).bytes();
            fs::File::options()
                .write(true)
                .open(path)
                .and_then(|file| file.write_all_at(&garbage, 0))
                .unwrap();
        }
    }
    objects.all_hit(edge).await;
    edge.kill9().await.unwrap();
    edge.start().await.unwrap();
    counted(edge, "edge_index_rebuilds_total").await;
    assert_eq!(objects.hits(edge).await, objects.bodies.len());
}

/// A mount that ends with the test.
struct Mount(PathBuf);

impl Mount {
    /// `None`: only root may.
    fn new(args: &[&str], at: &Path) -> Option<Self> {
        mount(args, at).then(|| Self(at.to_owned()))
    }
}

fn mount(args: &[&str], at: &Path) -> bool {
    Command::new("mount")
        .args(args)
        .arg(at)
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_is_served_from_and_filled_again_when_there_is_room() {
    let objects = Objects::new(100, |n| 300_000 + n as u64).await;
    let mut cluster = objects.edge(NO_MEMORY, "64MiB").await;
    let edge = &mut cluster.edges[0];
    edge.terminate().await.unwrap();
    fs::create_dir_all(&edge.data_dir).unwrap();
    let Some(_mount) = Mount::new(&["-t", "tmpfs", "-o", "size=24m", "tmpfs"], &edge.data_dir)
    else {
        eprintln!("SKIPPED: a file system of limited size can be mounted by root only");
        return;
    };
    let ballast = edge.data_dir.join("ballast");
    fs::write(&ballast, vec![1; 8 << 20]).unwrap();
    edge.start().await.unwrap();
    objects.hits(edge).await;
    counted(edge, "edge_disk_write_errors_total").await;
    counted(edge, "edge_store_failures_total").await;
    assert!(told(edge, "cache cannot be written"));
    let kept = objects.hits(edge).await;
    assert!((10..90).contains(&kept), "{kept}");
    // A start on a full disk.
    edge.kill9().await.unwrap();
    edge.start().await.unwrap();
    assert!(objects.hits(edge).await >= kept);
    fs::remove_file(ballast).unwrap();
    eventually("more is kept", async || {
        let now = objects.hits(edge).await;
        ensure!(now > kept + 10, "{now} after {kept}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_becomes_read_only_is_served_from_until_it_is_writable_again() {
    let objects = Objects::new(60, |n| 100_000 + n as u64).await;
    let cluster = objects.edge(NO_MEMORY, SMALL_DISK).await;
    let edge = &cluster.edges[0];
    for n in 0..20 {
        objects.get(edge, n).await.unwrap();
    }
    let dir = edge.data_dir.join("segments");
    let text = dir.to_str().context("a temporary directory").unwrap();
    // Permissions stop anybody but root, whom a read-only mount does stop.
    let mode = |mode| fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o555);
    let mounted = Mount::new(&["--bind", text], &dir);
    if mounted.is_some() {
        mount(&["-o", "remount,ro,bind"], &dir);
    }
    if fs::write(dir.join("probe"), b"").is_ok() {
        eprintln!("SKIPPED: nothing here makes a directory read-only for this user");
        return;
    }
    objects.hits(edge).await;
    counted(edge, "edge_disk_write_errors_total").await;
    assert!(told(edge, "cache cannot be written"));
    let kept = objects.hits(edge).await;
    assert!((10..60).contains(&kept), "{kept}");
    drop(mounted);
    mode(0o755);
    objects.all_hit(edge).await;
}
