//! The hosts of a run: an origin whose objects have versions, the purge log, and real edges.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use cluster::net::Net;
use edge_node::{
    config::ConfigFile,
    edge::{Edge, Environment},
};
use futures_util::{StreamExt, stream};
use harness::{
    pattern::Pattern,
    simulation::{SimNet, sim_clock},
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::facts::{Facts, LIMIT, OBJECTS};

/// What an origin takes at most before its head, when nobody wishes for more.
const ORIGIN_WAIT_MAX_MS: u64 = 300;
/// The port of the control plane's machine that is as if one were on it.
const OPERATOR: u16 = 7999;
/// The control plane, as its operator reaches it.
pub(super) const CONTROL: &str = "control:7999";
/// How long a question for what nodes say of themselves may take.
const ASK_MAX: Duration = Duration::from_secs(3);

/// What everybody in a run shares.
#[derive(Clone)]
pub(super) struct Stage {
    facts: Arc<Mutex<Facts>>,
    /// Moves when a host is killed or starts.
    pub(super) changes: watch::Sender<u64>,
    /// Hosts to kill (`false`) or to start (`true`).
    pub(super) wishes: Arc<Mutex<Vec<(&'static str, bool)>>>,
    /// What the next answers of the origin take, by object, beyond what they would.
    holds: Arc<Mutex<[Duration; OBJECTS.len()]>>,
    /// How many requests there are now that must not wait for this machine.
    pub(super) careful: Arc<AtomicUsize>,
    /// Where all data directories are.
    pub(super) dir: PathBuf,
    /// How the site's edges ask the origin.
    pub(super) shield: &'static str,
}

impl Stage {
    pub(super) fn new(dir: &Path, shield: &'static str) -> Self {
        Self {
            facts: Arc::default(),
            changes: watch::Sender::new(0),
            wishes: Arc::default(),
            holds: Arc::default(),
            careful: Arc::default(),
            dir: dir.to_owned(),
            shield,
        }
    }

    pub(super) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap()
    }

    pub(super) fn note(&self, what: impl std::fmt::Display) {
        self.facts().note(now(), what);
    }

    /// Lets the next answer for an object take so long.
    pub(super) fn hold(&self, n: usize, wait: Duration) {
        self.holds.lock().unwrap()[n] = wait;
    }
}

/// While there is one, simulated time passes slowly.
pub(super) struct Careful(Arc<AtomicUsize>);

impl Careful {
    pub(super) fn new(stage: &Stage) -> Self {
        stage.careful.fetch_add(1, Ordering::Relaxed);
        Self(stage.careful.clone())
    }
}

impl Drop for Careful {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Simulated time since the beginning.
pub(super) fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

/// The bytes of a version.
pub(super) fn body(n: usize, version: u64) -> Bytes {
    Pattern::new(n as u64 + 1_000 * version, OBJECTS[n].bytes).bytes()
}

pub(super) async fn origin(stage: Stage, seed: u64) -> turmoil::Result {
    let random = Arc::new(Mutex::new(StdRng::seed_from_u64(seed)));
    let listener = SimNet.listen(([0, 0, 0, 0], 80).into()).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (stage, random) = (stage.clone(), random.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let wait = random.lock().unwrap().random_range(0..=ORIGIN_WAIT_MAX_MS);
            let stage = stage.clone();
            async move { Ok::<_, Infallible>(answer(&stage, request, wait).await) }
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // Who has crashed is gone.
            let _ = serving.await;
        });
    }
}

type Slow = UnsyncBoxBody<Bytes, Infallible>;

/// The version that there is when the question comes, some time later.
async fn answer(stage: &Stage, request: Request<Incoming>, wait_ms: u64) -> Response<Slow> {
    let target = request.uri().path_and_query().map_or("", |t| t.as_str());
    let Some(n) = OBJECTS.iter().position(|object| object.target == target) else {
        let empty = Full::default().boxed_unsync();
        return Response::builder()
            .status(404)
            .body(empty)
            .expect("no fields");
    };
    let object = &OBJECTS[n];
    let version = stage.facts().versions[n];
    let wait = Duration::from_millis(wait_ms) + std::mem::take(&mut stage.holds.lock().unwrap()[n]);
    let etag = format!("\"{n}-{version}\"");
    stage.note(format_args!(
        "  origin: {target} is version {version}, in {wait:?}"
    ));
    sleep(wait).await;
    let validated = request.headers().get("if-none-match");
    let is_same = object.has_etag && validated.is_some_and(|known| known == etag.as_str());
    let stale = if object.while_revalidating {
        ", stale-while-revalidate=600"
    } else {
        ""
    };
    let mut response = Response::builder()
        .header("cache-control", format!("max-age=86400{stale}"))
        .header("surrogate-key", object.tags)
        .header("x-version", version);
    if object.has_etag {
        response = response.header("etag", etag);
    }
    let parts = match is_same {
        true => {
            response = response.status(304);
            Vec::new()
        }
        false => {
            response = response.header("content-length", object.bytes);
            let (mut rest, mut parts) = (body(n, version), Vec::new());
            while !rest.is_empty() {
                parts.push(rest.split_to(rest.len().min(32 << 10)));
            }
            parts
        }
    };
    let parts = stream::iter(parts).then(|part| async move {
        sleep(Duration::from_millis(20)).await;
        Ok(Frame::data(part))
    });
    let body = StreamBody::new(parts).boxed_unsync();
    response.body(body).expect("the fields are valid")
}

/// The control plane, and a way to it from its own machine: only from there changes are taken without a token.
pub(super) async fn control(stage: Stage, secret: PathBuf) -> Result<()> {
    use control_plane::{
        config::ConfigFile,
        control::{Control, Environment},
    };
    let environment = Environment {
        net: Arc::new(SimNet),
        clock: sim_clock(),
    };
    let config = format!(
        "[node]\nid = \"control\"\ndata_dir = {:?}\n\
         [listen]\nhttp = \"0.0.0.0:7900\"\ngossip = \"0.0.0.0:7946\"\nsteer = \"0.0.0.0:8088\"\n\
         [advertise]\nhttp = \"control:7900\"\ngossip = \"control:7946\"\n\
         [cluster]\nname = \"sim\"\nseeds = [\"edge-1:7946\", \"edge-2:7946\"]\nsecret_file = {secret:?}\n\
         [geo]\ndatabase = \"none\"\n\
         [[site]]\nname = \"sim\"\nhosts = [\"site.test\"]\norigins = [\"http://origin:80\"]\n\
         shield = \"{}\"\npurge_limit = \"{}s\"\nconnect_timeout = \"1s\"\nfirst_byte_timeout = \"5s\"\n",
        stage.dir.join("control"),
        stage.shield,
        LIMIT.as_secs(),
    );
    let config = toml::from_str::<ConfigFile>(&config)?.check("control")?;
    let control = loop {
        match Control::build(config.clone(), environment.clone()).await {
            Ok(control) => break control,
            // Threads of the life before may still be letting go of the directory.
            Err(error) if error.to_string().contains("another process") => {
                sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    let listener = SimNet.listen(([0, 0, 0, 0], OPERATOR).into()).await?;
    tokio::spawn(async move {
        while let Ok((mut outer, _)) = listener.accept().await {
            tokio::spawn(async move {
                if let Ok(mut inner) = SimNet.connect("127.0.0.1:7900").await {
                    // Whoever has left is gone.
                    let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
                }
            });
        }
    });
    control.run(std::future::pending()).await;
    Ok(())
}

/// What an edge is told before it starts.
pub(super) struct EdgePlan {
    pub(super) name: &'static str,
    pub(super) region: &'static str,
    pub(super) secret: PathBuf,
}

impl EdgePlan {
    fn config(&self, dir: &Path) -> String {
        let Self {
            name,
            region,
            secret,
        } = self;
        format!(
            "[node]\nid = \"{name}\"\nregion = \"{region}\"\ndata_dir = {:?}\n\
             [listen]\nhttp = \"0.0.0.0:8080\"\npeer = \"0.0.0.0:7947\"\ngossip = \"0.0.0.0:7946\"\n\
             admin = \"0.0.0.0:9090\"\n\
             [advertise]\nhttp = \"{name}:8080\"\npeer = \"{name}:7947\"\ngossip = \"{name}:7946\"\n\
             [cluster]\nname = \"sim\"\nseeds = [\"edge-1:7946\", \"edge-2:7946\"]\n\
             control_plane = [\"http://control:7900\"]\nsecret_file = {secret:?}\n\
             [cache]\nmemory = \"1MiB\"\ndisk = \"256MiB\"\ndisk_threads = 1\n",
            dir.join(name),
        )
    }
}

pub(super) async fn edge(plan: Arc<EdgePlan>, stage: Stage) -> Result<()> {
    let environment = Environment {
        net: Arc::new(SimNet),
        clock: sim_clock(),
    };
    let config = toml::from_str::<ConfigFile>(&plan.config(&stage.dir))?.check("edge")?;
    let edge = loop {
        match Edge::build(config.clone(), environment.clone()).await {
            Ok(edge) => break edge,
            // Threads of the life before may still be letting go of the directory.
            Err(error) if error.to_string().contains("another process") => {
                sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    edge.run(std::future::pending()).await;
    Ok(())
}

/// An answer.
pub(super) struct Answered {
    pub(super) status: StatusCode,
    pub(super) headers: http::HeaderMap,
    pub(super) body: Result<Bytes>,
}

/// Sends one request over a connection of its own.
pub(super) async fn send(
    at: &str,
    method: Method,
    target: &str,
    fields: &[(&str, String)],
    body: Bytes,
) -> Result<Answered> {
    let stream = SimNet.connect(at).await.context("no connection")?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = Guard(tokio::spawn(connection).abort_handle());
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in fields {
        request = request.header(*name, value);
    }
    let host = match at == CONTROL {
        true => "localhost",
        false => "site.test",
    };
    let request = request.header("host", host).body(Full::new(body))?;
    let (parts, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await;
    drop(driver);
    Ok(Answered {
        status: parts.status,
        headers: parts.headers,
        body: body.map(|b| b.to_bytes()).map_err(Into::into),
    })
}

/// Ends a task when it is dropped.
struct Guard(tokio::task::AbortHandle);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a node says at a path.
pub(super) async fn told(at: &str, path: &str) -> Result<String> {
    let asked = send(at, Method::GET, path, &[], Bytes::new());
    let answer = timeout(ASK_MAX, asked).await.context("hangs")??;
    ensure!(answer.status == 200, "status {}", answer.status);
    Ok(String::from_utf8(answer.body?.to_vec())?)
}
