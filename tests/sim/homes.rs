//! Checkers over whole clusters in simulated time: while edges die, fall silent and come back, and the origin
//! changes what it has in the middle of bodies, no request goes further than edge → home of the region → home
//! of the cluster → origin, no body is of two versions, nobody sends its peers more than its limit, and every
//! fetch ends within its budget.
//!
//! `SIM_SEED` replays one run, `SIM_RUNS` makes more of them.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use cluster::net::{BoxStream, Datagrams, Listener, Net};
use edge_node::{
    config::ConfigFile,
    edge::{Edge, Environment},
};
use futures_util::{StreamExt, stream};
use harness::{
    cluster::write_secret,
    pattern::Pattern,
    simulation::{Heard, SimNet, Simulation, sim_clock},
};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep, timeout},
};

/// Edges and their regions.
const EDGES: [(&str, &str); 5] = [
    ("edge-1", "eu"),
    ("edge-2", "eu"),
    ("edge-3", "eu"),
    ("edge-4", "us"),
    ("edge-5", "us"),
];
const OBJECTS: u64 = 12;
/// Rounds of a run: something happens, and clients fetch meanwhile.
const ROUNDS: usize = 14;
/// Runs where `SIM_RUNS` does not say.
const RUNS: u64 = 2;
/// Real time per simulated millisecond: disks are real.
const PACE: Duration = Duration::from_micros(300);
/// What an origin may take until its head is there (1 s in line, 1 s to connect, 3 s), 2 s for the way to
/// it, and then four sources (two homes of each level) that each fall silent for 3 s within the body, the
/// body itself, and the noise of real disks.
const BUDGET: Duration = Duration::from_secs(30);
/// How long an answer is fresh.
const FRESH: Duration = Duration::from_secs(5);
/// How long after the origin was asked for it the last client can come for what is still on its way: as long as it is
/// fresh a fill of it may begin, and followers join it while that lasts: a body of two pieces, which three fetch
/// through one line at the upload limit, after a home that fell silent.
const OLD_MAX: Duration = FRESH.saturating_add(Duration::from_secs(20));
/// What an edge sends its peers at most, in bytes per second.
const UPLOAD: u64 = 512 << 10;
/// Seconds over which that is looked at, and what may have been allowed before and be written within.
const WINDOW_S: u64 = 4;
const UPLOAD_SLACK: u64 = 768 << 10;
/// Nodes that a request may have been through at the origin.
const NODES_MAX: usize = 3;

/// From nothing to more than two pieces.
fn object(n: u64, version: u64) -> Pattern {
    Pattern::new(n + 1_000 * version, n * n * n * 1_600)
}

/// What is written to peers: bytes by edge and simulated second.
type Written = Arc<Mutex<BTreeMap<(&'static str, u64), u64>>>;

/// What the origin has, and what it saw.
#[derive(Default)]
struct Facts {
    versions: HashMap<u64, u64>,
    /// When it last began to send that version of that object.
    sent: HashMap<(u64, u64), Instant>,
    /// Answers that were cut or missing, with their reason.
    cut: u64,
    /// By the number of nodes that they had been through.
    requests: BTreeMap<usize, u64>,
}

type Shared = Arc<Mutex<Facts>>;

/// The network of an edge, which counts what its peer listener sends.
struct Counted(&'static str, Written);

struct CountedListener(Box<dyn Listener>, &'static str, Written);

struct CountedStream(BoxStream, &'static str, Written);

#[async_trait]
impl Net for Counted {
    async fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let listener = SimNet.listen(at).await?;
        Ok(match at.port() {
            7947 => Box::new(CountedListener(listener, self.0, self.1.clone())),
            _ => listener,
        })
    }

    async fn connect(&self, to: &str) -> io::Result<BoxStream> {
        SimNet.connect(to).await
    }

    async fn datagrams(&self, at: SocketAddr) -> io::Result<Arc<dyn Datagrams>> {
        SimNet.datagrams(at).await
    }

    async fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        SimNet.resolve(name).await
    }
}

#[async_trait]
impl Listener for CountedListener {
    async fn accept(&self) -> io::Result<(BoxStream, SocketAddr)> {
        let (stream, from) = self.0.accept().await?;
        let counted = CountedStream(stream, self.1, self.2.clone());
        Ok((Box::new(counted), from))
    }

    fn local_addr(&self) -> SocketAddr {
        self.0.local_addr()
    }
}

impl AsyncRead for CountedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for CountedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.0).poll_write(context, bytes);
        if let (Poll::Ready(Ok(count)), Some(now)) = (&written, turmoil::sim_elapsed()) {
            let mut all = self.2.lock().unwrap();
            *all.entry((self.1, now.as_secs())).or_default() += *count as u64;
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

async fn origin(facts: Shared) -> turmoil::Result {
    let listener = SimNet.listen(([0, 0, 0, 0], 80).into()).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let facts = facts.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = answer(&facts, &request);
            async move { Ok::<_, Infallible>(answer) }
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // Who has crashed is gone.
            let _ = serving.await;
        });
    }
}

type Slow = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

/// The newest version, 64 KiB at a time; it may change meanwhile. Half of the objects have an entity tag.
fn answer(facts: &Shared, request: &Request<Incoming>) -> Response<Slow> {
    let n: u64 = request.uri().path()[1..].parse().unwrap_or(0);
    let through = request.headers().get_all("cdn-loop").iter();
    let through = through.filter_map(|v| v.to_str().ok());
    let nodes = through.flat_map(|v| v.split(',')).count();
    let mut facts = facts.lock().unwrap();
    *facts.requests.entry(nodes).or_default() += 1;
    let version = facts.versions.get(&n).copied().unwrap_or(0);
    facts.sent.insert((n, version), Instant::now());
    let body = object(n, version).bytes();
    let length = body.len();
    let parts = (0..length).step_by(64 << 10).map(move |from| {
        let part = body.slice(from..(from + (64 << 10)).min(length));
        async move {
            sleep(Duration::from_millis(20)).await;
            Ok::<_, Infallible>(Frame::data(part))
        }
    });
    let mut response = Response::builder()
        .header("cache-control", format!("max-age={}", FRESH.as_secs()))
        .header("content-length", length)
        .header("x-version", version);
    if n.is_multiple_of(2) {
        response = response.header("etag", format!("\"{n}-{version}\""));
    }
    let body = StreamBody::new(stream::iter(parts).then(|part| part));
    response
        .body(body.boxed_unsync())
        .expect("the fields are valid")
}

async fn get(at: &str, path: &str) -> Result<(http::response::Parts, Result<Bytes>)> {
    let stream = SimNet.connect(at).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::get(path)
        .header("host", "site.test")
        .body(Empty::<Bytes>::new())?;
    let (parts, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await;
    driver.abort();
    Ok((parts, body.map(|b| b.to_bytes()).map_err(Into::into)))
}

/// A client's fetch: in time, and all of one version. Its end, or with that all of it, may be missing only where
/// nobody can have had the rest any more: the edge says that it has asked the origin for that, and got another
/// version; and so it was by what the origin knows.
async fn fetch(edge: &str, n: u64, facts: &Shared, heard: &Heard) -> Result<()> {
    let version = || facts.lock().unwrap().versions.get(&n).copied().unwrap_or(0);
    let (before, began) = (version(), Instant::now());
    let began_at = turmoil::sim_elapsed().context("not in a simulation")?;
    let fetched = timeout(BUDGET, get(&format!("{edge}:8080"), &format!("/{n}"))).await;
    let took = began.elapsed();
    let fetched = fetched.with_context(|| format!("not within {took:?}"))?;
    // `told`: which version it was, if that was said.
    let cut = |told: Option<u64>, error: anyhow::Error| {
        let said = heard.since(began_at).into_iter();
        let said: Vec<_> = said
            .filter(|said| said.contains(&format!("/{n}\";")))
            .collect();
        let is_reason = |said: &String| said.contains("has changed at the origin meanwhile");
        ensure!(said.iter().any(is_reason), "{error:#}: {said:?}");
        let mut facts = facts.lock().unwrap();
        let old = |version: &u64| {
            let sent = facts.sent.get(&(n, *version));
            sent.is_some_and(|sent| *sent + OLD_MAX > began)
        };
        let now = facts.versions.get(&n).copied().unwrap_or(0);
        let is_possible = match told {
            Some(told) => told < now && old(&told),
            None => (0..now).any(|version| old(&version)),
        };
        ensure!(is_possible, "version {told:?} of {now}: {error:#}");
        facts.cut += 1;
        Ok(())
    };
    let (parts, body) = match fetched {
        Ok(answer) => answer,
        // The head of an answer goes out with the first bytes of its body; where these cannot be had, neither does.
        Err(error) => return cut(None, error),
    };
    ensure!(parts.status == 200, "status {}", parts.status);
    let told = parts.headers.get("x-version").context("no version")?;
    let told: u64 = told.to_str()?.parse()?;
    ensure!(told <= version(), "version {told} of the future");
    // Without a purge, what is fresh may be what was; what is older is not served.
    let sent = facts.lock().unwrap().sent.get(&(n, told)).copied();
    let sent = sent.with_context(|| format!("version {told} was never sent"))?;
    ensure!(
        told >= before || sent + OLD_MAX > began,
        "version {told} of old"
    );
    match body {
        Ok(body) => ensure!(
            body == object(n, told).bytes(),
            "{} bytes are not version {told}",
            body.len()
        ),
        Err(error) => return cut(Some(told), error),
    }
    Ok(())
}

async fn ready() -> Result<()> {
    for (edge, _) in EDGES {
        let all_known = async || -> Result<bool> {
            let (_, body) = get(&format!("{edge}:9090"), "/peers").await?;
            let answer: serde_json::Value = serde_json::from_slice(&body?)?;
            let known = answer["peers"].as_array().context("no peers")?;
            Ok(known.iter().filter(|p| p["phase"] == "ready").count() == EDGES.len() - 1)
        };
        let began = Instant::now();
        while !all_known().await.unwrap_or(false) {
            ensure!(began.elapsed() < 2 * BUDGET, "{edge} does not know all");
            sleep(Duration::from_millis(200)).await;
        }
    }
    Ok(())
}

async fn run_edge(name: &'static str, config: &str, written: Written) -> Result<()> {
    let environment = Environment {
        net: Arc::new(Counted(name, written)),
        clock: sim_clock(),
    };
    let config = toml::from_str::<ConfigFile>(config)?.check("edge")?;
    let edge = loop {
        match Edge::build(config.clone(), environment.clone()).await {
            Ok(edge) => break edge,
            // Threads of the life before may still be letting go of the directory.
            Err(error) if error.to_string().contains("in use") => {
                sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    edge.run(std::future::pending()).await;
    Ok(())
}

/// Hosts to crash (`false`) or to start again (`true`).
type Wishes = Arc<Mutex<Vec<(&'static str, bool)>>>;

/// What happens to the cluster, round by round, and what clients see of it.
async fn scenario(seed: u64, wishes: Wishes, facts: Shared, heard: Heard) -> Result<()> {
    ready().await?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut crashed: Option<&'static str> = None;
    let mut silent: Option<&'static str> = None;
    for _ in 0..ROUNDS {
        let others = |of| {
            EDGES
                .map(|(edge, _)| edge)
                .into_iter()
                .filter(move |e| *e != of)
        };
        let serving: Vec<&str> = others(crashed.unwrap_or_default()).collect();
        let clients: Vec<_> = (0..5)
            .map(|_| {
                let edge = serving[random.random_range(0..serving.len())];
                let n = random.random_range(0..OBJECTS);
                let (facts, heard) = (&facts, &heard);
                let wait = random.random_range(0..600);
                async move {
                    sleep(Duration::from_millis(wait)).await;
                    let fetched = fetch(edge, n, facts, heard).await;
                    fetched.with_context(|| format!("/{n} of {edge}"))
                }
            })
            .collect();
        // Who asks is asked by nobody: a client of its own is no witness of a crash.
        let event = random.random_range(0..4);
        let victim = EDGES[random.random_range(0..EDGES.len())].0;
        let n = random.random_range(OBJECTS / 2..OBJECTS);
        let happens = async {
            sleep(Duration::from_millis(800)).await;
            match event {
                0 if crashed.is_some() => {
                    let edge = crashed.take().expect("it has crashed");
                    wishes.lock().unwrap().push((edge, true));
                }
                1 => match silent.take() {
                    Some(edge) => others(edge).for_each(|other| turmoil::repair(edge, other)),
                    None => {
                        others(victim).for_each(|other| turmoil::partition(victim, other));
                        silent = Some(victim);
                    }
                },
                _ => {
                    let mut facts = facts.lock().unwrap();
                    *facts.versions.entry(n).or_default() += 1;
                }
            }
        };
        let (fetched, ()) = tokio::join!(futures_util::future::try_join_all(clients), happens);
        fetched?;
        // It dies while nobody's client is connected to it, and its peers' questions to it are under way.
        if event == 0 && crashed.is_none() {
            let dying = victim;
            let asking = others(dying).map(|edge| fetch(edge, n, &facts, &heard));
            let asking = futures_util::future::try_join_all(asking);
            let dies = async {
                sleep(Duration::from_millis(300)).await;
                wishes.lock().unwrap().push((dying, false));
            };
            let (fetched, ()) = tokio::join!(asking, dies);
            fetched.with_context(|| format!("/{n} while {dying} died"))?;
            crashed = Some(dying);
        }
    }
    Ok(())
}

/// One run; the numbers of nodes that requests had been through at the origin, and how many answers were cut.
fn run() -> (BTreeMap<usize, u64>, u64) {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    write_secret(&secret).unwrap();
    let mut simulation = Simulation::new();
    simulation.pace = PACE;
    let (facts, written, wishes) = (Shared::default(), Written::default(), Wishes::default());
    let seen = facts.clone();
    simulation.sim.host("origin", move || origin(seen.clone()));
    for (name, region) in EDGES {
        let config = format!(
            "[node]\nid = \"{name}\"\nregion = \"{region}\"\ndata_dir = {:?}\n\
             [listen]\nhttp = \"0.0.0.0:8080\"\npeer = \"0.0.0.0:7947\"\ngossip = \"0.0.0.0:7946\"\n\
             admin = \"0.0.0.0:9090\"\n\
             [advertise]\nhttp = \"{name}:8080\"\npeer = \"{name}:7947\"\ngossip = \"{name}:7946\"\n\
             [cluster]\nname = \"sim\"\nseeds = [\"edge-1:7946\", \"edge-4:7946\"]\nsecret_file = {secret:?}\n\
             [cache]\nmemory = \"4MiB\"\ndisk = \"256MiB\"\n\
             [peer]\nupload_bytes_per_s = {UPLOAD}\n\
             [[site]]\nname = \"sim\"\nhosts = [\"site.test\"]\norigins = [\"http://origin:80\"]\n\
             shield = \"cluster\"\nconnect_timeout = \"1s\"\nfirst_byte_timeout = \"3s\"\n\
             origin_queue_timeout = \"1s\"\n",
            dir.path().join(name),
        );
        let written = written.clone();
        simulation.sim.host(name, move || {
            let (config, written) = (config.clone(), written.clone());
            async move { Ok(run_edge(name, &config, written).await?) }
        });
    }
    let (heard, _hearing) = Heard::begin("edge_node::payload");
    let story = scenario(simulation.seed, wishes.clone(), facts.clone(), heard);
    simulation.sim.client("client", async move {
        story.await.map_err(|e| format!("{e:#}").into())
    });
    loop {
        for (host, up) in wishes.lock().unwrap().drain(..) {
            match up {
                true => simulation.sim.bounce(host),
                false => simulation.sim.crash(host),
            }
        }
        if simulation.step().unwrap() {
            break;
        }
    }
    let written = written.lock().unwrap();
    for (edge, second) in written.keys() {
        let window = (*edge, *second)..(*edge, second + WINDOW_S);
        let sent: u64 = written.range(window).map(|(_, bytes)| bytes).sum();
        assert!(
            sent <= UPLOAD * WINDOW_S + UPLOAD_SLACK,
            "{edge} sent {sent} bytes in {WINDOW_S} s"
        );
    }
    let facts = facts.lock().unwrap();
    (facts.requests.clone(), facts.cut)
}

#[test]
fn whatever_dies_or_changes_the_promises_of_the_cluster_hold() {
    let runs = std::env::var_os("SIM_RUNS").and_then(|v| v.to_str()?.parse().ok());
    let (mut requests, mut cut) = (BTreeMap::<usize, u64>::new(), 0);
    for _ in 0..runs.unwrap_or(RUNS) {
        let (seen, cut_then) = run();
        cut += cut_then;
        for (nodes, count) in seen {
            *requests.entry(nodes).or_default() += count;
        }
    }
    println!("requests at the origin, by the nodes that they had been through: {requests:?}");
    println!("answers that were cut because the origin had changed what was sent: {cut}");
    let longest = requests.keys().last();
    assert!(
        longest.is_some_and(|nodes| *nodes <= NODES_MAX),
        "{requests:?}"
    );
    assert!(
        requests.contains_key(&NODES_MAX),
        "nobody came through two homes: {requests:?}"
    );
}
