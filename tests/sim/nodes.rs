//! Whole nodes in a simulated network: the real edge and the real control plane with real disks,
//! while links break and hosts crash. Clients see right bytes and no error.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use cluster::net::Net;
use futures_util::{StreamExt, stream};
use harness::{
    cache_status::{CacheStatus, Source},
    cluster::write_secret,
    pattern::Pattern,
    simulation::{SimNet, Simulation, sim_clock},
};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep, timeout};

const EDGES: [&str; 3] = ["edge-1", "edge-2", "edge-3"];
const OBJECTS: u64 = 24;
/// Simulated time after which something has hung.
const LIMIT: Duration = Duration::from_secs(60);
/// Real time per simulated millisecond: what a slow disk read needs to look like one.
const PACE: Duration = Duration::from_micros(300);

/// Object `n`: from nothing to more than two pieces.
fn object(n: u64) -> Pattern {
    Pattern::new(n, n * n * n * 200)
}

struct World {
    simulation: Simulation,
    /// Hosts to crash (`false`) or to start again (`true`), as the scenario wishes.
    wishes: Wishes,
    origin_requests: Arc<AtomicU64>,
    _dir: tempfile::TempDir,
}

type Wishes = Arc<Mutex<Vec<(&'static str, bool)>>>;

impl World {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut simulation = Simulation::new();
        simulation.pace = PACE;
        let secret = dir.path().join("secret");
        write_secret(&secret)?;
        let origin_requests = Arc::new(AtomicU64::new(0));
        let counter = origin_requests.clone();
        simulation
            .sim
            .host("origin", move || origin(counter.clone()));
        let control = format!(
            "[node]\nid = \"control\"\ndata_dir = {:?}\n\
             [listen]\nhttp = \"0.0.0.0:7900\"\ngossip = \"0.0.0.0:7946\"\nsteer = \"0.0.0.0:8088\"\n\
             [advertise]\nhttp = \"control:7900\"\ngossip = \"control:7946\"\n\
             [cluster]\nname = \"sim\"\nseeds = [\"edge-1:7946\"]\nsecret_file = {secret:?}\n\
             [geo]\ndatabase = \"none\"\n\
             [[site]]\nname = \"sim\"\nhosts = [\"site.test\"]\norigins = [\"http://origin:80\"]\n",
            dir.path().join("control"),
        );
        simulation.sim.host("control", move || {
            let config = control.clone();
            async move { Ok(run_control(&config).await?) }
        });
        for (name, longitude) in EDGES.iter().zip([8, -79, 103]) {
            let config = format!(
                "[node]\nid = \"{name}\"\nlatitude = 10.0\nlongitude = {longitude}.0\ndata_dir = {:?}\n\
                 [listen]\nhttp = \"0.0.0.0:8080\"\npeer = \"0.0.0.0:7947\"\ngossip = \"0.0.0.0:7946\"\n\
                 admin = \"0.0.0.0:9090\"\n\
                 [advertise]\nhttp = \"{name}:8080\"\npeer = \"{name}:7947\"\ngossip = \"{name}:7946\"\n\
                 [cluster]\nname = \"sim\"\nseeds = [\"control:7946\", \"edge-1:7946\"]\n\
                 control_plane = [\"http://control:7900\"]\nsecret_file = {secret:?}\n\
                 [cache]\nmemory = \"1MiB\"\ndisk = \"256MiB\"\n",
                dir.path().join(name),
            );
            simulation.sim.host(*name, move || {
                let config = config.clone();
                async move { Ok(run_edge(&config).await?) }
            });
        }
        Ok(Self {
            simulation,
            wishes: Wishes::default(),
            origin_requests,
            _dir: dir,
        })
    }

    /// Runs `scenario` on a host of its own until it is done.
    fn run<F>(mut self, scenario: impl FnOnce(Scenario) -> F)
    where
        F: Future<Output = Result<()>> + 'static,
    {
        let scenario = scenario(Scenario {
            wishes: self.wishes.clone(),
            origin_requests: self.origin_requests.clone(),
        });
        self.simulation
            .sim
            .client("client", async move { Ok(scenario.await?) });
        loop {
            for (host, up) in self.wishes.lock().unwrap().drain(..) {
                if up {
                    self.simulation.sim.bounce(host);
                } else {
                    self.simulation.sim.crash(host);
                }
            }
            if self.simulation.step().unwrap() {
                return;
            }
        }
    }
}

async fn run_control(config: &str) -> Result<()> {
    use control_plane::{
        config::ConfigFile,
        control::{Control, Environment},
    };
    let environment = Environment {
        net: Arc::new(SimNet),
        clock: sim_clock(),
    };
    let config = toml::from_str::<ConfigFile>(config)?.check("control")?;
    Control::build(config, environment)
        .await?
        .run(std::future::pending())
        .await;
    Ok(())
}

async fn run_edge(config: &str) -> Result<()> {
    use edge_node::{
        config::ConfigFile,
        edge::{Edge, Environment},
    };
    let environment = Environment {
        net: Arc::new(SimNet),
        clock: sim_clock(),
    };
    let config = toml::from_str::<ConfigFile>(config)?.check("edge")?;
    let begun = Instant::now();
    let edge = loop {
        match Edge::build(config.clone(), environment.clone()).await {
            Ok(edge) => break edge,
            // Threads of the life before may still be letting go of the directory.
            Err(error) if begun.elapsed() < LIMIT && error.to_string().contains("in use") => {
                sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    edge.run(std::future::pending()).await;
    Ok(())
}

async fn origin(requests: Arc<AtomicU64>) -> turmoil::Result {
    let listener = SimNet.listen(([0, 0, 0, 0], 80).into()).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let requests = requests.clone();
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            requests.fetch_add(1, Ordering::Relaxed);
            async move { Ok::<_, Infallible>(origin_answer(&request)) }
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // A crashed client is its own business.
            let _ = serving.await;
        });
    }
}

fn origin_answer(request: &Request<hyper::body::Incoming>) -> Response<Full<Bytes>> {
    let n = request.uri().path().trim_start_matches('/').parse();
    let body = n.map_or_else(|_| Bytes::new(), |n| object(n).bytes());
    Response::builder()
        .header("cache-control", "max-age=3600")
        .header("etag", format!("\"{}\"", request.uri().path()))
        .body(Full::new(body))
        .expect("the fields are valid")
}

/// What a scenario does and asks.
#[derive(Clone)]
struct Scenario {
    wishes: Wishes,
    origin_requests: Arc<AtomicU64>,
}

impl Scenario {
    fn crash(&self, host: &'static str) {
        self.wishes.lock().unwrap().push((host, false));
    }

    fn restart(&self, host: &'static str) {
        self.wishes.lock().unwrap().push((host, true));
    }

    fn origin_requests(&self) -> u64 {
        self.origin_requests.load(Ordering::Relaxed)
    }

    /// Fetches every object from `edge`; each is right, or this is an error.
    async fn fetch_all(&self, edge: &'static str) -> Result<Vec<Source>> {
        stream::iter(0..OBJECTS)
            .map(|n| async move {
                fetch(edge, n)
                    .await
                    .with_context(|| format!("/{n} of {edge}"))
            })
            .buffer_unordered(3)
            .collect::<Vec<_>>()
            .await
            .into_iter()
            .collect()
    }

    /// Waits until each of `edges` knows that each other of them holds at least `objects`.
    async fn agree(&self, edges: &[&'static str], objects: u64) -> Result<()> {
        for edge in edges {
            let begun = Instant::now();
            loop {
                let known = peers(edge).await.unwrap_or_default();
                let mut names: Vec<_> = known.iter().map(|(id, _)| id.as_str()).collect();
                names.sort_unstable();
                let others: Vec<_> = edges.iter().copied().filter(|e| e != edge).collect();
                if names == others && known.iter().all(|(_, held)| *held >= objects) {
                    break;
                }
                ensure!(
                    begun.elapsed() < LIMIT,
                    "{edge} knows {known:?}, not {others:?}"
                );
                sleep(Duration::from_millis(200)).await;
            }
        }
        Ok(())
    }
}

async fn get(at: &str, path: &str) -> Result<(http::response::Parts, Bytes)> {
    let exchange = async {
        let stream = SimNet.connect(at).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = Request::get(path)
            .header("host", "site.test")
            .body(Empty::<Bytes>::new())?;
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        driver.abort();
        Ok((parts, body))
    };
    timeout(LIMIT, exchange).await.context("hangs")?
}

async fn fetch(edge: &str, n: u64) -> Result<Source> {
    let (parts, body) = get(&format!("{edge}:8080"), &format!("/{n}")).await?;
    ensure!(parts.status == 200, "status {}", parts.status);
    ensure!(body == object(n).bytes(), "{} wrong bytes", body.len());
    let field = parts
        .headers
        .get("cache-status")
        .and_then(|v| v.to_str().ok());
    Ok(CacheStatus::parse(field.unwrap_or_default()).source())
}

/// Names, and how many objects each is known to hold.
async fn peers(edge: &str) -> Result<Vec<(String, u64)>> {
    let (_, body) = get(&format!("{edge}:9090"), "/peers").await?;
    let answer: serde_json::Value = serde_json::from_slice(&body)?;
    let list = answer["peers"].as_array().context("no peers")?;
    let one = |p: &serde_json::Value| {
        let held = p["digest"]["objects"].as_u64().unwrap_or_default();
        Some((p["id"].as_str()?.to_owned(), held))
    };
    Ok(list.iter().filter_map(one).collect())
}

async fn ready() -> Result<()> {
    for edge in EDGES {
        let begun = Instant::now();
        while !matches!(get(&format!("{edge}:9090"), "/readyz").await, Ok((p, _)) if p.status == 200)
        {
            ensure!(begun.elapsed() < LIMIT, "{edge} is not ready");
            sleep(Duration::from_millis(200)).await;
        }
    }
    Ok(())
}

#[test]
fn edges_share_and_a_partition_is_not_noticed_by_clients() {
    World::new().unwrap().run(|scenario| async move {
        ready().await?;
        scenario.agree(&EDGES, 0).await?;
        scenario.fetch_all("edge-1").await?;
        ensure!(scenario.origin_requests() == OBJECTS, "each object once");
        until_heard("edge-2", "edge-1").await?;
        until_heard("edge-3", "edge-1").await?;
        let sources = scenario.fetch_all("edge-2").await?;
        let from_origin = sources.iter().filter(|s| **s == Source::Origin).count();
        ensure!(from_origin <= 2, "{sources:?}");

        // Nobody hears anybody, but clients and the origin reach all.
        let others = ["control", "edge-1", "edge-2", "edge-3"];
        for (i, one) in others.iter().enumerate() {
            for other in &others[i + 1..] {
                turmoil::partition(*one, *other);
            }
        }
        for edge in ["edge-3", "edge-2", "edge-1"] {
            scenario.fetch_all(edge).await?;
        }
        sleep(Duration::from_secs(20)).await;
        for edge in EDGES {
            ensure!(peers(edge).await?.is_empty(), "{edge} still sees somebody");
            scenario.fetch_all(edge).await?;
        }
        for (i, one) in others.iter().enumerate() {
            for other in &others[i + 1..] {
                turmoil::repair(*one, *other);
            }
        }
        scenario.agree(&EDGES, OBJECTS).await
    });
}

#[test]
fn a_holder_that_crashes_while_others_fetch_from_it_is_not_missed() {
    World::new().unwrap().run(|scenario| async move {
        ready().await?;
        scenario.agree(&EDGES, 0).await?;
        scenario.fetch_all("edge-1").await?;
        until_heard("edge-2", "edge-1").await?;
        until_heard("edge-3", "edge-1").await?;
        sleep(Duration::from_secs(5)).await;
        let crashing = {
            let scenario = scenario.clone();
            tokio::spawn(async move {
                sleep(Duration::from_millis(600)).await;
                scenario.crash("edge-1");
            })
        };
        let (two, three) = tokio::join!(scenario.fetch_all("edge-2"), scenario.fetch_all("edge-3"));
        let (two, three) = (two?, three?);
        crashing.await?;
        let from_peers = |s: &[Source]| s.iter().filter(|s| matches!(s, Source::Peer(_))).count();
        ensure!(
            from_peers(&two) + from_peers(&three) > 0,
            "{two:?} {three:?}"
        );
        scenario.agree(&["edge-2", "edge-3"], OBJECTS).await?;

        // Back, with what it had.
        scenario.restart("edge-1");
        ready().await?;
        let before = scenario.origin_requests();
        let sources = scenario.fetch_all("edge-1").await?;
        ensure!(sources.iter().all(|s| *s == Source::Hit), "{sources:?}");
        ensure!(
            scenario.origin_requests() == before,
            "the origin was asked again"
        );
        scenario.agree(&EDGES, OBJECTS).await
    });
}

#[test]
fn whatever_breaks_between_nodes_clients_get_the_right_bytes() {
    let world = World::new().unwrap();
    let mut random = StdRng::seed_from_u64(world.simulation.seed);
    world.run(|scenario| async move {
        ready().await?;
        let nodes = ["control", "edge-1", "edge-2", "edge-3"];
        for _ in 0..40 {
            let one = nodes[random.random_range(0..nodes.len())];
            let other = nodes[random.random_range(0..nodes.len())];
            match random.random_range(0..5) {
                _ if one == other => {}
                0 | 1 => turmoil::partition(one, other),
                2 => turmoil::partition_oneway(one, other),
                _ => turmoil::repair(one, other),
            }
            let clients = (0..4).map(|_| {
                let edge = EDGES[random.random_range(0..EDGES.len())];
                let n = random.random_range(0..OBJECTS);
                async move {
                    let fetched = fetch(edge, n).await;
                    fetched.with_context(|| format!("/{n} of {edge}"))
                }
            });
            let clients: Vec<_> = clients.collect();
            futures_util::future::try_join_all(clients).await?;
            sleep(Duration::from_millis(random.random_range(0..2_000))).await;
        }
        for (i, one) in nodes.iter().enumerate() {
            for other in &nodes[i + 1..] {
                turmoil::repair(*one, *other);
            }
        }
        scenario.agree(&EDGES, 0).await
    });
}

/// Waits until `edge` knows that `of` holds every object.
async fn until_heard(edge: &str, of: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        let known = peers(edge).await.unwrap_or_default();
        if known.iter().any(|(id, held)| id == of && *held >= OBJECTS) {
            return Ok(());
        }
        ensure!(begun.elapsed() < LIMIT, "{edge} knows {known:?} of {of}");
        sleep(Duration::from_millis(200)).await;
    }
}
