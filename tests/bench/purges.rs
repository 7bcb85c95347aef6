//! What purges by tag cost, by how many tags and objects there are: from the request at the control plane to
//! the last receipt, and each lookup at the edge afterwards. A real edge and a real control plane, filled
//! through the edge. Prints a table and judges nothing; `cargo bench --bench purges`, or `-- 1000000 100000`
//! for so many objects and tags at most.

#![expect(
    clippy::print_stdout,
    reason = "this is a command; what it says goes to the terminal"
)]

use std::{
    env,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use cluster::wire::PurgeStatus;
use harness::{
    client::Client,
    cluster::{Cluster, HOST, Node, Plan},
    origin::{Answer, Origin},
    process::eventually,
};
use http::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    task::JoinSet,
    time::Instant,
};

/// The most objects and tags, unless the command line says otherwise; the least.
const OBJECTS: u64 = 1_000_000;
const TAGS: u64 = 100_000;
const OBJECTS_FEW: u64 = 1_000;
const TAGS_FEW: u64 = 10;
/// Purges that are measured.
const PURGES: u64 = 300;
/// Objects that are looked up after each, which none of them hits.
const HOT: u64 = 1_000;
/// Purges after which lookups are measured.
const LOOKED_UP: u64 = 30;
/// Tags of one purge while the log is made.
const SCOPES: u64 = 1_000;
/// Connections that fill the edge.
const FILLERS: u64 = 64;
const BODY_BYTES: usize = 1_000;
/// One path, so that the origin finds it; the query tells objects apart.
const PATH: &str = "/object";

#[tokio::main]
async fn main() -> Result<()> {
    let numbers = env::args().skip(1).filter(|arg| arg != "--bench");
    let numbers: Result<Vec<u64>, _> = numbers.map(|arg| arg.parse()).collect();
    let numbers = numbers.context("usage: purges [OBJECTS [TAGS]]")?;
    let objects_max = numbers.first().copied().unwrap_or(OBJECTS);
    let tags_max = numbers.get(1).copied().unwrap_or(TAGS);
    println!(
        "| objects | tags purged | purge, p50 / p99 | of it, until the receipt, p50 | first hit after a purge | next hit | table | edge, control plane: memory |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for objects in [OBJECTS_FEW, objects_max] {
        for tags in [TAGS_FEW, tags_max] {
            println!("{}", measure(objects, tags).await?);
        }
    }
    Ok(())
}

/// One row of the table.
async fn measure(objects: u64, tags: u64) -> Result<String> {
    let origin = Origin::start().await?;
    origin.route_by(PATH, move |seen| {
        let number = seen.target.rsplit('?').next().and_then(|n| n.parse().ok());
        let tag = match number.unwrap_or(0_u64) {
            hot if hot < HOT => format!("hot-{}", hot % TAGS_FEW),
            other => format!("tag-{}", other % tags),
        };
        let answer = Answer::bytes(vec![b'x'; BODY_BYTES]).max_age(86_400);
        answer.field("surrogate-key", format!("all {tag}")).into()
    });
    let cluster = Plan::new(1, &origin.url()).start().await?;
    cluster.settled().await?;
    let (edge, control) = (&cluster.edges[0], cluster.control.as_ref().context("one")?);
    let none = json!({"site": "site", "tags": ["none"]});
    eventually("the edge gives a receipt", async || {
        purge(control, none.clone()).await.map(drop)
    })
    .await?;
    for from in (0..tags).step_by(usize::try_from(SCOPES)?) {
        let named = from..(from + SCOPES).min(tags);
        let named: Vec<_> = named.map(|tag| format!("tag-{tag}")).collect();
        purge(control, json!({"site": "site", "tags": named})).await?;
    }
    fill(edge.http, HOT + objects).await?;
    eventually("all is on disk", async || {
        let held = edge
            .metric("edge_cache_objects", &["tier=\"disk\""])
            .await?;
        ensure!(held >= (HOT + objects) as f64, "{held}");
        Ok(())
    })
    .await?;
    let (mut took, mut told) = (Vec::new(), Vec::new());
    let (mut first, mut next) = (Vec::new(), Vec::new());
    let mut line = Line::to(edge.http).await?;
    line.hot().await?;
    for n in 0..PURGES {
        let begun = Instant::now();
        let tag = format!("tag-{}", n * 37 % tags);
        let status = purge(control, json!({"site": "site", "tags": [tag]})).await?;
        took.push(begun.elapsed());
        told.push(Duration::from_millis(status.elapsed_ms));
        if n % (PURGES / LOOKED_UP) == 0 {
            first.push(line.hot().await?);
            next.push(line.hot().await?);
        }
    }
    row(&cluster, objects, tags, [took, told, first, next]).await
}

async fn row(
    cluster: &Cluster,
    objects: u64,
    tags: u64,
    mut times: [Vec<Duration>; 4],
) -> Result<String> {
    times.iter_mut().for_each(|times| times.sort_unstable());
    let at = |of: usize, percent: usize| {
        let times = &times[of];
        times[(times.len() - 1) * percent / 100].as_secs_f64()
    };
    let (edge, control) = (&cluster.edges[0], cluster.control.as_ref().context("one")?);
    let scopes = edge.metric("edge_purge_scopes", &[]).await?;
    let table = edge.metric("edge_purge_table_bytes", &[]).await?;
    let memory = async |node: &Node| node.metric("process_resident_memory_bytes", &[]).await;
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    Ok(format!(
        "| {objects} | {tags} | {:.2} / {:.2} ms | {:.0} ms | {:.1} µs | {:.1} µs | {scopes} scopes, {:.1} MiB | {:.0}, {:.0} MiB |",
        at(0, 50) * 1e3,
        at(0, 99) * 1e3,
        at(1, 50) * 1e3,
        at(2, 50) * 1e6 / HOT as f64,
        at(3, 50) * 1e6 / HOT as f64,
        mib(table),
        mib(memory(edge).await?),
        mib(memory(control).await?),
    ))
}

async fn purge(control: &Node, wish: Value) -> Result<PurgeStatus> {
    let url = control.url("/v1/purges");
    let fields = [("content-type", "application/json")];
    let client = Client::new();
    let answer = client.send(Method::POST, &url, &fields, wish.to_string().into());
    let answer = answer.await?;
    ensure!(answer.status == 200, "{}", answer.text());
    let status: PurgeStatus = serde_json::from_slice(&answer.body)?;
    ensure!(status.complete && status.nodes.len() == 1, "{status:?}");
    Ok(status)
}

/// Has the edge fetch all objects.
async fn fill(edge: SocketAddr, objects: u64) -> Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let mut fillers = JoinSet::new();
    for _ in 0..FILLERS {
        let next = next.clone();
        fillers.spawn(async move {
            let mut line = Line::to(edge).await?;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= objects {
                    return anyhow::Ok(());
                }
                line.get(number).await?;
            }
        });
    }
    while let Some(filled) = fillers.join_next().await {
        filled??;
    }
    Ok(())
}

/// A kept connection to the edge, and nothing on it that costs more than the request.
struct Line {
    stream: BufReader<TcpStream>,
    head: String,
    body: Vec<u8>,
}

impl Line {
    async fn to(edge: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(edge).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
            head: String::new(),
            body: vec![0; BODY_BYTES],
        })
    }

    /// Gets an object; says whether that was a hit.
    async fn get(&mut self, number: u64) -> Result<bool> {
        let request = format!("GET {PATH}?{number} HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await?;
        self.head.clear();
        while !self.head.ends_with("\r\n\r\n") {
            let read = self.stream.read_line(&mut self.head).await?;
            ensure!(read > 0, "the edge hangs up");
        }
        ensure!(self.head.starts_with("HTTP/1.1 200"), "{}", self.head);
        self.stream.read_exact(&mut self.body).await?;
        Ok(self.head.contains("; hit"))
    }

    /// Gets all that no purge hits, and says how long it took.
    async fn hot(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        for number in 0..HOT {
            ensure!(self.get(number).await?, "{number} is no hit");
        }
        Ok(begun.elapsed())
    }
}
