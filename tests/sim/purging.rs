//! Checkers over purges in whole clusters of real edges in simulated time: while edges die and come back, links
//! break and heal, and the purge log cannot be reached, no edge answers with what it has acknowledged as
//! purged, whatever it has stored, has on its way, or gets from peers and homes. After all is healed, every edge
//! has everything, and what they have kept of purges is the same.
//!
//! `SIM_SEED` replays one run, `SIM_RUNS` makes more of them.

use std::{
    collections::HashMap,
    convert::Infallible,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use cluster::{
    auth::{self, Signer},
    net::Net as _,
    purge::{Position, Purge, Record, Scope, Table},
    secret::ClusterSecret,
    wire::{MAC_FIELD, PURGES, PurgePage, PurgePush},
};
use edge_node::{
    config::ConfigFile,
    edge::{Edge, Environment},
    purges::journal::Journal,
};
use harness::{
    cluster::write_secret,
    simulation::{SimNet, Simulation, sim_clock},
};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep, timeout};

/// Edges and their regions.
const EDGES: [(&str, &str); 4] = [
    ("edge-1", "eu"),
    ("edge-2", "eu"),
    ("edge-3", "eu"),
    ("edge-4", "us"),
];
const OBJECTS: u64 = 14;
/// Rounds of a run: something happens, and clients fetch meanwhile.
const ROUNDS: usize = 12;
/// Runs where `SIM_RUNS` does not say.
const RUNS: u64 = 2;
/// Real time per simulated millisecond: disks are real.
const PACE: Duration = Duration::from_micros(300);
/// For an answer: a home that has fallen silent, and the next.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// For an acknowledgement.
const PUSH_MAX: Duration = Duration::from_secs(2);
/// Until everybody has everything.
const HEALED_MAX: Duration = Duration::from_secs(60);
const LOG: u64 = 7;
const SCOPES_MAX: usize = 1_000_000;

/// What is true, and what each edge has promised.
#[derive(Default)]
struct Facts {
    /// At the origin.
    versions: HashMap<u64, u64>,
    log: Vec<Record>,
    /// The oldest version of an object that an edge may answer with.
    promised: HashMap<(&'static str, u64), u64>,
    acknowledged: u64,
    refetched: u64,
}

type Shared = Arc<Mutex<Facts>>;

/// The tags of an object.
fn tags(n: u64) -> [String; 2] {
    [format!("of-{}", n % 3), format!("n{n}")]
}

/// What a purge hits.
fn covers(scope: &Scope, n: u64) -> bool {
    match scope {
        Scope::Url(url) => *url == format!("/{n}"),
        Scope::Prefix(begins) => format!("/{n}").starts_with(begins),
        Scope::Tag(tag) => tags(n).contains(tag),
        Scope::All => true,
    }
}

type Answer = Response<Full<Bytes>>;

/// Serves what `by` answers on `port`.
async fn serve<F>(
    port: u16,
    by: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
) -> turmoil::Result
where
    F: Future<Output = Answer> + Send + 'static,
{
    let listener = SimNet.listen(([0, 0, 0, 0], port).into()).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let by = by.clone();
        let service = service_fn(move |request| {
            let answer = by(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // Who has crashed is gone.
            let _ = serving.await;
        });
    }
}

/// The version that there is when a request comes, a moment later.
async fn origin_answers(facts: Shared, request: Request<Incoming>) -> Answer {
    let n: u64 = request.uri().path()[1..].parse().unwrap_or(0);
    let version = facts.lock().unwrap().versions.get(&n).copied().unwrap_or(0);
    sleep(Duration::from_millis(rand::random_range(0..400))).await;
    let etag = format!("\"{version}\"");
    let is_same = request
        .headers()
        .get("if-none-match")
        .is_some_and(|tag| *tag == etag);
    let answer = Response::builder()
        .status(if is_same { 304 } else { 200 })
        .header("cache-control", "max-age=3600")
        .header("etag", etag)
        .header("x-version", version)
        .header("surrogate-key", tags(n).join(" "));
    let body = match is_same {
        true => Bytes::new(),
        false => format!("{n} {version}")
            .repeat(50 * usize::try_from(n).unwrap())
            .into(),
    };
    answer.body(Full::from(body)).expect("valid fields")
}

/// A page of the log, with a proof of who wrote it.
async fn log_answers(facts: Shared, secret: ClusterSecret, request: Request<Incoming>) -> Answer {
    if request.uri().path() != PURGES {
        let nothing = Response::builder().status(404).body(Full::default());
        return nothing.expect("no fields");
    }
    let target = request.uri().path_and_query().map_or("", |pq| pq.as_str());
    let number = |name: &str| -> u64 {
        let query = request.uri().query().unwrap_or_default();
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let value = pairs.find(|(own, _)| *own == name);
        value.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
    };
    let after = if number("log") == LOG {
        number("after")
    } else {
        0
    };
    let facts = facts.lock().unwrap();
    let behind = facts.log.iter().filter(|record| record.at.seq > after);
    let records: Vec<_> = behind.take(3).cloned().collect();
    let head = facts.log.last().map_or(0, |record| record.at.seq);
    let page = PurgePage {
        log: LOG,
        head,
        through: records.last().map_or(head, |record| record.at.seq),
        records,
    };
    let body = serde_json::to_vec(&page).expect("plain data with text keys");
    let mac = auth::document_mac(&secret, target, &body);
    let answer = Response::builder().header(MAC_FIELD, mac);
    answer.body(Full::from(body)).expect("valid fields")
}

async fn send(at: &str, request: Request<Full<Bytes>>) -> Result<(http::response::Parts, Bytes)> {
    let stream = SimNet.connect(at).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let (parts, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await;
    driver.abort();
    Ok((parts, body?.to_bytes()))
}

async fn get(at: &str, path: &str) -> Result<(http::response::Parts, Bytes)> {
    let request = Request::get(path).header("host", "site.test");
    send(at, request.body(Full::default())?).await
}

/// A client's fetch: nothing that the edge had promised not to serve before it was asked.
async fn fetch(edge: &'static str, n: u64, facts: &Shared) -> Result<()> {
    let promised = facts.lock().unwrap().promised.get(&(edge, n)).copied();
    let (at, path) = (format!("{edge}:8080"), format!("/{n}"));
    let fetched = timeout(ANSWER_MAX, get(&at, &path));
    let (parts, body) = fetched
        .await
        .context("no answer in time")?
        .context("no answer")?;
    ensure!(parts.status == 200, "status {}", parts.status);
    let version: u64 = parts.headers["x-version"].to_str()?.parse()?;
    let status = parts.headers["cache-status"].to_str()?.to_owned();
    ensure!(
        promised.is_none_or(|least| version >= least),
        "version {version} where {promised:?} was promised: {status}"
    );
    let expected = format!("{n} {version}").repeat(50 * usize::try_from(n)?);
    ensure!(
        body == expected,
        "not the body of version {version}: {status}"
    );
    if promised == Some(version) && version > 0 {
        facts.lock().unwrap().refetched += 1;
    }
    Ok(())
}

/// Changes what is purged at the origin, takes the purge into the log, and pushes it to everybody at once.
async fn purge(scope: Scope, soft: bool, up: &[&'static str], signer: &Signer, facts: &Shared) {
    let (record, least) = {
        let mut facts = facts.lock().unwrap();
        let hit: Vec<_> = (0..OBJECTS).filter(|n| covers(&scope, *n)).collect();
        for n in &hit {
            *facts.versions.entry(*n).or_default() += 1;
        }
        let least: Vec<_> = hit.iter().map(|n| (*n, facts.versions[n])).collect();
        let prev = facts.log.last().map_or(0, |record| record.at.seq);
        let record = Record {
            at: Position {
                log: LOG,
                seq: prev + 2,
            },
            prev,
            purge: Purge {
                site: "sim".to_owned(),
                scopes: vec![scope],
                soft,
            },
            taken_at: 0,
            by: "sim".to_owned(),
        };
        facts.log.push(record.clone());
        (record, least)
    };
    let push = |edge: &'static str| {
        let (record, least) = (&record, &least);
        async move {
            let records = vec![record.clone()];
            let body = serde_json::to_vec(&PurgePush { records }).expect("plain data");
            let path = format!("{PURGES}?{}", auth::body_parameter(&body));
            let to = edge.parse().expect("a name");
            let mut request = Request::builder().method(Method::POST).uri(&path);
            for (name, value) in signer.sign(&to, "POST", &path, sim_clock().unix_ms()) {
                request = request.header(name, value);
            }
            let request = request.body(Full::from(body)).expect("valid fields");
            let at = format!("{edge}:7947");
            let Ok(Ok((parts, _))) = timeout(PUSH_MAX, send(&at, request)).await else {
                return;
            };
            if parts.status != 200 {
                return;
            }
            let mut facts = facts.lock().unwrap();
            facts.acknowledged += 1;
            for (n, version) in least {
                let promised = facts.promised.entry((edge, *n)).or_default();
                *promised = (*promised).max(*version);
            }
        }
    };
    futures_util::future::join_all(up.iter().map(|edge| push(edge))).await;
}

/// Hosts to crash (`false`) or to start again (`true`).
type Wishes = Arc<Mutex<Vec<(&'static str, bool)>>>;

fn names() -> impl Iterator<Item = &'static str> {
    EDGES.iter().map(|(edge, _)| *edge)
}

/// Waits until an edge is ready.
async fn ready(edge: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        if let Ok((parts, _)) = get(&format!("{edge}:9090"), "/readyz").await
            && parts.status == 200
        {
            return Ok(());
        }
        ensure!(began.elapsed() < HEALED_MAX, "{edge} is not ready");
        sleep(Duration::from_millis(100)).await;
    }
}

async fn applied(edge: &str) -> Result<u64> {
    let (_, text) = get(&format!("{edge}:9090"), "/metrics").await?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("edge_purge_seq_applied "));
    Ok(line.context("no such metric")?.parse()?)
}

/// What happens, round by round, and what clients see of it.
async fn scenario(seed: u64, secret: ClusterSecret, wishes: Wishes, facts: Shared) -> Result<()> {
    for edge in names() {
        ready(edge).await?;
    }
    let signer = Signer::new(secret, "log".parse()?);
    let mut random = StdRng::seed_from_u64(seed);
    let mut down: Option<&'static str> = None;
    let mut cut: Option<(&'static str, Vec<&'static str>)> = None;
    for round in 0..ROUNDS {
        let up: Vec<_> = names().filter(|edge| Some(*edge) != down).collect();
        let fetches: Vec<_> = (0..10)
            .map(|_| {
                let edge = up[random.random_range(0..up.len())];
                // A few are wanted by many.
                let n = random
                    .random_range(0..OBJECTS)
                    .min(random.random_range(0..OBJECTS));
                let (facts, wait) = (&facts, random.random_range(0..1_500));
                async move {
                    sleep(Duration::from_millis(wait)).await;
                    let fetched = fetch(edge, n, facts).await;
                    fetched.with_context(|| format!("/{n} of {edge} in round {round}"))
                }
            })
            .collect();
        let purges: Vec<_> = (0..random.random_range(1..4))
            .map(|_| {
                let n = random.random_range(0..OBJECTS);
                let scope = match random.random_range(0..8) {
                    0..3 => Scope::Url(format!("/{n}")),
                    3 => Scope::Prefix(format!("/{}", n % 10)),
                    4..7 => Scope::Tag(tags(n)[random.random_range(0..2)].clone()),
                    _ => Scope::All,
                };
                let soft = random.random_range(0..4) == 0;
                let wait = random.random_range(0..1_500);
                let (up, signer, facts) = (&up, &signer, &facts);
                async move {
                    sleep(Duration::from_millis(wait)).await;
                    purge(scope, soft, up, signer, facts).await;
                }
            })
            .collect();
        let (fetched, _) = tokio::join!(
            futures_util::future::try_join_all(fetches),
            futures_util::future::join_all(purges)
        );
        fetched?;
        match random.random_range(0..5) {
            0 => match down.take() {
                Some(edge) => {
                    wishes.lock().unwrap().push((edge, true));
                    // It is asked as soon as it listens, before it has caught up.
                    let began = Instant::now();
                    while fetch(edge, 1, &facts).await.is_err_and(|error| {
                        let is_down = error.to_string() == "no answer";
                        is_down && began.elapsed() < HEALED_MAX
                    }) {
                        sleep(Duration::from_millis(20)).await;
                    }
                    for n in 0..OBJECTS {
                        let fetched = fetch(edge, n, &facts).await;
                        fetched.with_context(|| format!("/{n} of {edge}, just started"))?;
                    }
                }
                None => {
                    let edge = up[random.random_range(0..up.len())];
                    wishes.lock().unwrap().push((edge, false));
                    sleep(Duration::from_millis(5)).await;
                    down = Some(edge);
                }
            },
            1 | 2 => match cut.take() {
                Some((edge, from)) => from.iter().for_each(|other| turmoil::repair(edge, *other)),
                None => {
                    let edge = EDGES[random.random_range(0..EDGES.len())].0;
                    // From the log alone, or from everybody but the origin.
                    let mut from = vec!["log"];
                    if random.random::<bool>() {
                        from.extend(names().filter(|other| *other != edge));
                    }
                    from.iter()
                        .for_each(|other| turmoil::partition(edge, *other));
                    cut = Some((edge, from));
                }
            },
            _ => {}
        }
    }
    if let Some((edge, from)) = cut.take() {
        from.iter().for_each(|other| turmoil::repair(edge, *other));
    }
    if let Some(edge) = down.take() {
        wishes.lock().unwrap().push((edge, true));
    }
    let head = facts
        .lock()
        .unwrap()
        .log
        .last()
        .map_or(0, |record| record.at.seq);
    for edge in names() {
        let began = Instant::now();
        while applied(edge).await.ok() != Some(head) {
            ensure!(
                began.elapsed() < HEALED_MAX,
                "{edge} does not catch up with {head}"
            );
            sleep(Duration::from_millis(100)).await;
        }
        {
            let mut facts = facts.lock().unwrap();
            for n in 0..OBJECTS {
                let version = facts.versions.get(&n).copied().unwrap_or(0);
                facts.promised.insert((edge, n), version);
            }
        }
        for n in 0..OBJECTS {
            let fetched = fetch(edge, n, &facts).await;
            fetched.with_context(|| format!("/{n} of {edge}, healed"))?;
        }
    }
    Ok(())
}

async fn run_edge(config: &str) -> Result<()> {
    let environment = Environment {
        net: Arc::new(SimNet),
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

/// One run; how many purges were acknowledged, and how many answers were just what had been promised.
fn run() -> (u64, u64) {
    let dir = tempfile::tempdir().unwrap();
    let secret_file = dir.path().join("secret");
    write_secret(&secret_file).unwrap();
    let secret = ClusterSecret::load(&secret_file).unwrap();
    let mut simulation = Simulation::new();
    simulation.pace = PACE;
    let (facts, wishes) = (Shared::default(), Wishes::default());
    let seen = facts.clone();
    simulation.sim.host("origin", move || {
        let facts = seen.clone();
        serve(80, move |request| origin_answers(facts.clone(), request))
    });
    let (told, signs) = (facts.clone(), secret.clone());
    simulation.sim.host("log", move || {
        let (facts, secret) = (told.clone(), signs.clone());
        serve(7900, move |request| {
            log_answers(facts.clone(), secret.clone(), request)
        })
    });
    for (name, region) in EDGES {
        let config = config(name, region, dir.path(), &secret_file);
        simulation.sim.host(name, move || {
            let config = config.clone();
            async move { Ok(run_edge(&config).await?) }
        });
    }
    let story = scenario(simulation.seed, secret, wishes.clone(), facts.clone());
    simulation
        .sim
        .client("client", async move { Ok(story.await?) });
    let seed = simulation.seed;
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
    drop(simulation);
    let kept = |name: &str| -> Table {
        let (_, table) = Journal::open(&dir.path().join(name), SCOPES_MAX).unwrap();
        table
    };
    let first = kept(EDGES[0].0).said();
    for edge in names() {
        assert_eq!(kept(edge).said(), first, "{edge}, seed {seed}");
    }
    let facts = facts.lock().unwrap();
    (facts.acknowledged, facts.refetched)
}

fn config(name: &str, region: &str, dir: &Path, secret: &Path) -> String {
    format!(
        "[node]\nid = \"{name}\"\nregion = \"{region}\"\ndata_dir = {:?}\n\
         [listen]\nhttp = \"0.0.0.0:8080\"\npeer = \"0.0.0.0:7947\"\ngossip = \"0.0.0.0:7946\"\n\
         admin = \"0.0.0.0:9090\"\n\
         [advertise]\nhttp = \"{name}:8080\"\npeer = \"{name}:7947\"\ngossip = \"{name}:7946\"\n\
         [cluster]\nname = \"sim\"\nseeds = [\"edge-1:7946\", \"edge-4:7946\"]\n\
         control_plane = [\"http://log:7900\"]\nsecret_file = {secret:?}\n\
         [cache]\nmemory = \"4MiB\"\ndisk = \"256MiB\"\n\
         [[site]]\nname = \"sim\"\nhosts = [\"site.test\"]\norigins = [\"http://origin:80\"]\n\
         connect_timeout = \"1s\"\nfirst_byte_timeout = \"3s\"\norigin_queue_timeout = \"1s\"\n",
        dir.join(name),
    )
}

#[test]
fn whatever_dies_or_is_cut_off_what_was_acknowledged_as_purged_stays_away() {
    let runs = std::env::var_os("SIM_RUNS").and_then(|v| v.to_str()?.parse().ok());
    let (mut acknowledged, mut refetched) = (0, 0);
    for _ in 0..runs.unwrap_or(RUNS) {
        let (purges, answers) = run();
        acknowledged += purges;
        refetched += answers;
    }
    println!(
        "{acknowledged} acknowledgements, {refetched} answers just as old as had been promised"
    );
    assert!(
        acknowledged > 20 && refetched > 20,
        "{acknowledged}, {refetched}"
    );
}
