//! A control plane in this process, on real sockets, with edges that gossip with it: what users,
//! edges and Prometheus get from it.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on stops where it is"
)]

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use axum::http::{HeaderMap, Request, StatusCode};
use bytes::Bytes;
use cluster::{
    auth::verify_document,
    clock::Clock,
    geo::GeoPoint,
    membership::{Membership, MembershipConfig},
    net::SystemNet,
    node::{Load, NodeInfo, Phase, Role},
    secret::ClusterSecret,
    site::SiteSet,
    wire::{EdgesAnswer, ErrorAnswer, NodesAnswer, PeersAnswer},
};
use control_plane::{
    config::ConfigFile,
    control::{Control, Environment},
};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// Patience of these tests; nothing takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(60);

struct Cluster {
    http: SocketAddr,
    steer: SocketAddr,
    gossip: SocketAddr,
    secret: ClusterSecret,
    data: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

const SITES: &str = "
    [[site]]
    name = 'www'
    hosts = ['www.example.com']
    origins = ['http://origin.example.com']
    [[site]]
    name = 'img'
    hosts = ['*.img.example.com']
    origins = ['http://origin.example.com']";

impl Cluster {
    /// Starts a control plane with `more` in its configuration.
    async fn start(more: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), more).await
    }

    async fn start_in(data: tempfile::TempDir, more: &str) -> Self {
        let secret_file = data.path().join("secret");
        if !secret_file.exists() {
            std::fs::write(&secret_file, cluster::secret::generate()).unwrap();
        }
        let mut file: ConfigFile = toml::from_str(more).unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        file.node.id = Some("control".into());
        file.node.data_dir = data.path().join("data");
        (file.listen.http, file.listen.gossip, file.listen.steer) = (any, any, any);
        file.cluster.name = "test".into();
        file.cluster.secret_file = Some(secret_file);
        file.cluster.gossip_interval = "100ms".parse().unwrap();
        let config = file.check("").unwrap();
        let secret = config.secret.clone();
        let environment = Environment {
            net: Arc::new(SystemNet),
            clock: Clock::system(),
        };
        let control = Control::build(config, environment).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let (http, steer, gossip) = (
            control.http_addr(),
            control.steer_addr(),
            control.gossip_addr(),
        );
        let running = tokio::spawn(control.run(async {
            let _ = stopped.await;
        }));
        Self {
            http,
            steer,
            gossip,
            secret,
            data,
            stop: Some(stop),
            running,
        }
    }

    /// Lets an edge join, as a real one does.
    async fn edge(&self, id: &str, describe: impl FnOnce(&mut NodeInfo)) -> Membership {
        let mut me = NodeInfo::new(id.parse().unwrap(), Role::Edge);
        me.phase = Phase::Ready;
        me.http = format!("http://{id}.edges.test:8080");
        me.peer = "127.0.0.1:7947".into();
        describe(&mut me);
        let config = MembershipConfig {
            cluster_name: "test".into(),
            me,
            generation: Clock::system().unix_ms(),
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            advertise: String::new(),
            seeds: vec![self.gossip.to_string()],
            secret: self.secret.clone(),
            interval: Duration::from_millis(100),
        };
        Membership::join(config, Arc::new(SystemNet), Clock::system())
            .await
            .unwrap()
    }

    async fn get(&self, path: &str) -> Answer {
        ask(self.http, "GET", path, &[("host", "control")]).await
    }

    /// Asks until the answer is as wanted.
    async fn get_until<T: DeserializeOwned>(&self, path: &str, fits: impl Fn(&T) -> bool) -> T {
        timeout(PATIENCE, async {
            loop {
                let answer = self.get(path).await;
                if answer.status == StatusCode::OK
                    && let Ok(told) = serde_json::from_slice(&answer.body)
                    && fits(&told)
                {
                    return told;
                }
                sleep(Duration::from_millis(50)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{path} did not become as wanted"))
    }

    async fn edges_are(&self, count: usize) {
        let serving = |answer: &EdgesAnswer| answer.edges.len() == count;
        self.get_until("/v1/edges?client=127.0.0.1", serving).await;
    }

    async fn end(mut self) -> tempfile::TempDir {
        self.stop.take().unwrap().send(()).unwrap();
        timeout(PATIENCE, self.running).await.unwrap().unwrap();
        self.data
    }
}

struct Answer {
    status: StatusCode,
    fields: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", |v| v.to_str().unwrap())
    }

    fn error(&self) -> ErrorAnswer {
        serde_json::from_slice(&self.body).unwrap()
    }
}

async fn ask(at: SocketAddr, method: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
    let exchange = async {
        let stream = TcpStream::connect(at).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        Answer {
            status: head.status,
            fields: head.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    };
    timeout(PATIENCE, exchange).await.expect("an answer")
}

fn at(latitude: f64, longitude: f64) -> Option<GeoPoint> {
    GeoPoint::new(latitude, longitude)
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_and_clients_get_the_nearest_first_with_reasons() {
    let cluster = Cluster::start(SITES).await;
    let fra = cluster
        .edge("fra", |me| me.location = at(50.11, 8.68))
        .await;
    // No coordinates of its own: its address tells that it is in Amsterdam.
    let ams = |me: &mut NodeInfo| {
        me.peer = "193.0.6.139:7947".into();
        me.region = "eu-west".into();
        me.load = Load {
            in_flight: 7,
            bytes_per_s: 1_000,
        };
    };
    let _ams = cluster.edge("ams", ams).await;
    let _sin = cluster
        .edge("sin", |me| me.location = at(1.35, 103.82))
        .await;
    cluster.edges_are(3).await;

    let path = "/v1/peers?node=fra&limit=5";
    let answer = cluster.get(path).await;
    assert_eq!(answer.field("content-type"), "application/json");
    let mac = answer.field("cdn-mac");
    assert!(verify_document(&cluster.secret, path, &answer.body, mac));
    assert!(!verify_document(
        &cluster.secret,
        "/v1/peers?node=sin",
        &answer.body,
        mac
    ));
    let told: PeersAnswer = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((told.node.as_str(), told.ttl_s), ("fra", 30));
    assert!(told.generated_at > 1_700_000_000_000);
    let ids: Vec<_> = told.peers.iter().map(|p| p.id.as_str()).collect();
    assert_eq!(ids, ["ams", "sin"]);
    let near = &told.peers[0];
    assert!((near.distance_km.unwrap() - 364.0).abs() < 60.0, "{near:?}");
    assert_eq!(
        (near.region.as_str(), near.peer_addr.as_str()),
        ("eu-west", "193.0.6.139:7947")
    );
    assert_eq!((near.load.in_flight, near.rtt_ms), (7, None));

    // A measurement beats the map: the path to the near one is poor.
    fra.update(|me| {
        me.round_trips_ms.insert("ams".parse().unwrap(), 400.0);
        me.round_trips_ms.insert("sin".parse().unwrap(), 160.5);
    });
    let measured = |answer: &PeersAnswer| answer.peers[0].id.as_str() == "sin";
    let told = cluster.get_until(path, measured).await;
    assert_eq!(told.peers[0].rtt_ms, Some(160.5));
    let told: PeersAnswer = cluster
        .get_until("/v1/peers?node=fra&limit=1", |_| true)
        .await;
    assert_eq!(told.peers.len(), 1);

    // A client of the University of Tokyo, then one in Amsterdam.
    let told: EdgesAnswer = cluster
        .get_until("/v1/edges?client=133.11.0.1", |_| true)
        .await;
    assert_eq!(told.location.unwrap().country.as_deref(), Some("JP"));
    assert_eq!(told.edges[0].id.as_str(), "sin");
    let told: EdgesAnswer = cluster
        .get_until("/v1/edges?client=193.0.6.139", |_| true)
        .await;
    assert_eq!(told.edges[0].http, "http://ams.edges.test:8080");
    assert!(told.edges.is_sorted_by(|a, b| a.score <= b.score));

    // Draining, it is not recommended any more, but still listed.
    fra.update(|me| me.phase = Phase::Draining);
    cluster.edges_are(2).await;
    let told: NodesAnswer = cluster.get_until("/v1/nodes", |_| true).await;
    let nodes: Vec<_> = told
        .nodes
        .iter()
        .map(|n| {
            let source = n.location.as_ref().map_or("unknown", |p| &p.source);
            (n.id.as_str(), n.role, n.phase, n.alive, source)
        })
        .collect();
    assert_eq!(
        nodes,
        [
            ("ams", Role::Edge, Phase::Ready, true, "city"),
            ("control", Role::Control, Phase::Ready, true, "unknown"),
            ("fra", Role::Edge, Phase::Draining, true, "configured"),
            ("sin", Role::Edge, Phase::Ready, true, "configured"),
        ]
    );
    let version = told.nodes[1].sites_version;
    assert!(version > 1_700_000_000);
    assert_eq!(told.nodes[1].peer, cluster.http.to_string());

    // Gone, it is remembered as not alive.
    fra.leave().await;
    let gone = |answer: &NodesAnswer| answer.nodes.last().is_some_and(|n| !n.alive);
    let told = cluster.get_until("/v1/nodes", gone).await;
    assert_eq!(told.nodes.last().unwrap().id.as_str(), "fra");
    assert_eq!(
        cluster.get("/v1/peers?node=fra").await.status,
        StatusCode::NOT_FOUND
    );
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_questions_get_clear_answers() {
    let cluster = Cluster::start("").await;
    cluster
        .get_until::<NodesAnswer>("/v1/nodes", |a| a.nodes.len() == 1)
        .await;
    for (path, status, field) in [
        ("/v1/peers", 400, Some("node")),
        ("/v1/peers?node=A%20B", 400, Some("node")),
        ("/v1/peers?node=control&limit=0", 400, Some("limit")),
        ("/v1/peers?node=control&limit=x", 400, Some("limit")),
        ("/v1/peers?node=control&limt=3", 400, Some("limt")),
        ("/v1/peers?node=nobody", 404, None),
        ("/v1/edges", 400, Some("client")),
        ("/v1/edges?client=www.example.com", 400, Some("client")),
        ("/v1/sites/none", 404, None),
        ("/v1/else", 404, None),
    ] {
        let answer = cluster.get(path).await;
        assert_eq!(answer.status.as_u16(), status, "{path}");
        assert_eq!(answer.error().field.as_deref(), field, "{path}");
        assert!(!answer.error().error.is_empty());
    }
    let answer = ask(cluster.http, "POST", "/v1/nodes", &[("host", "c")]).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(answer.field("allow"), "GET,HEAD");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_request_for_a_site_is_sent_to_the_nearest_healthy_edge() {
    let more = "
        [steer]
        trust_forwarded = ['127.0.0.1']
        [[geo.network]]
        cidr = '198.51.100.0/24'
        latitude = 1.0
        longitude = 104.0";
    let cluster = Cluster::start(&format!("{more}\n{SITES}")).await;
    let steer =
        |method: &'static str, path: &'static str, host: &'static str, from: &'static str| {
            let at = cluster.steer;
            async move {
                ask(
                    at,
                    method,
                    path,
                    &[("host", host), ("x-forwarded-for", from)],
                )
                .await
            }
        };
    let nobody = steer("GET", "/", "www.example.com", "193.0.6.139").await;
    assert_eq!(nobody.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(nobody.field("retry-after"), "3");

    let fra = cluster
        .edge("fra", |me| me.location = at(50.11, 8.68))
        .await;
    let sin = |me: &mut NodeInfo| {
        me.location = at(1.35, 103.82);
        me.http = "http://{host}.sin.test".into();
    };
    let _sin = cluster.edge("sin", sin).await;
    let _starting = cluster
        .edge("starting", |me| me.phase = Phase::Starting)
        .await;
    cluster.edges_are(2).await;
    let everybody = |answer: &NodesAnswer| answer.nodes.len() == 4;
    cluster.get_until("/v1/nodes", everybody).await;

    let to_fra = "http://fra.edges.test:8080/a%20b/../c?x=%2F&y";
    let to_sin = "http://www.example.com.sin.test/a%20b/../c?x=%2F&y";
    let path = "/a%20b/../c?x=%2F&y";
    for (method, host, from, to) in [
        ("GET", "www.example.com", "193.0.6.139", to_fra),
        ("POST", "WWW.Example.com:8088", "193.0.6.139", to_fra),
        ("DELETE", "www.example.com", "133.11.0.1", to_sin),
        ("GET", "www.example.com", "198.51.100.7", to_sin),
        (
            "GET",
            "www.example.com",
            "6.6.6.6, 198.51.100.7, 127.0.0.1",
            to_sin,
        ),
    ] {
        let answer = steer(method, path, host, from).await;
        assert_eq!(
            answer.status,
            StatusCode::TEMPORARY_REDIRECT,
            "{method} {host}"
        );
        assert_eq!(answer.field("location"), to, "{method} {host} {from}");
        assert_eq!(answer.field("cache-control"), "no-store");
    }
    let wild = steer("GET", "/", "a.img.example.com", "133.11.0.1").await;
    assert_eq!(wild.field("location"), "http://a.img.example.com.sin.test/");

    // Nobody knows where loopback is: both take turns.
    let mut first = std::collections::BTreeSet::new();
    for _ in 0..8 {
        let answer = steer("GET", "/", "www.example.com", "unreadable").await;
        first.insert(answer.field("location").to_owned());
    }
    assert_eq!(first.len(), 2, "{first:?}");

    for (host, status) in [("example.org", 421), ("", 400), ("a b", 400)] {
        let answer = steer("GET", "/", host, "193.0.6.139").await;
        assert_eq!(answer.status.as_u16(), status, "{host:?}");
    }

    // The nearest drains: the other takes over.
    fra.update(|me| me.phase = Phase::Draining);
    cluster.edges_are(1).await;
    let answer = steer("GET", path, "www.example.com", "193.0.6.139").await;
    assert_eq!(answer.field("location"), to_sin);

    let metrics = String::from_utf8(cluster.get("/metrics").await.body.to_vec()).unwrap();
    for line in [
        "control_plane_steered_total{edge=\"fra\",reason=\"nearest\"} 2",
        "control_plane_steering_failures_total{reason=\"no-edge\"} 1",
        "control_plane_steering_failures_total{reason=\"unknown-host\"} 1",
        "control_plane_nodes{state=\"ready\"} 2",
        "control_plane_nodes{state=\"draining\"} 1",
        "control_plane_nodes{state=\"starting\"} 1",
        "control_plane_sites 2",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line}\n{metrics}");
    }
    let received = metrics
        .lines()
        .find_map(|l| l.strip_prefix("control_plane_gossip_received_datagrams_total "))
        .unwrap();
    assert!(received.parse::<u64>().unwrap() > 0);
    promtool_accepts(&metrics);
    cluster.end().await;
}

/// Prometheus' own opinion of the metrics, where its tool is installed.
#[expect(
    clippy::print_stdout,
    reason = "a part that is not tested should be told"
)]
fn promtool_accepts(metrics: &str) {
    let started = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = match started {
        Ok(promtool) => promtool,
        Err(error) => return println!("no promtool here: {error}"),
    };
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(metrics.as_bytes())
        .unwrap();
    let told = promtool.wait_with_output().unwrap();
    assert!(
        told.status.success(),
        "{}",
        String::from_utf8_lossy(&told.stderr)
    );
    assert!(
        told.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&told.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_sites_there_is_nothing_to_steer_to() {
    let cluster = Cluster::start("").await;
    let answer = ask(cluster.steer, "GET", "/", &[("host", "www.example.com")]).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sites_are_signed_and_their_version_outlives_the_process() {
    let cluster = Cluster::start(SITES).await;
    let answer = cluster.get("/v1/sites").await;
    let mac = answer.field("cdn-mac");
    assert!(verify_document(
        &cluster.secret,
        "/v1/sites",
        &answer.body,
        mac
    ));
    let set: SiteSet = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(set.sites.len(), 2);
    let etag = answer.field("etag").to_owned();
    assert_eq!(etag, format!("\"{}\"", set.version));
    let fields = [("host", "c"), ("if-none-match", etag.as_str())];
    let same = ask(cluster.http, "GET", "/v1/sites", &fields).await;
    assert_eq!(
        (same.status, same.body.len()),
        (StatusCode::NOT_MODIFIED, 0)
    );
    let one = cluster.get("/v1/sites/img").await;
    let one: cluster::site::Site = serde_json::from_slice(&one.body).unwrap();
    assert!(set.sites.contains(&one) && one.name == "img");

    let data = cluster.end().await;
    let again = Cluster::start_in(data, SITES).await;
    let kept: SiteSet = again.get_until("/v1/sites", |_| true).await;
    assert_eq!(kept, set);
    let data = again.end().await;
    let fewer = SITES
        .split("[[site]]")
        .take(2)
        .collect::<Vec<_>>()
        .join("[[site]]");
    let changed = Cluster::start_in(data, &fewer).await;
    let told: SiteSet = changed.get_until("/v1/sites", |_| true).await;
    assert!(told.version > set.version);
    assert_eq!(told.sites.len(), 1);
    // The edges hear of it by gossip.
    let edge = changed.edge("e", |_| ()).await;
    let heard = edge
        .view()
        .wait_for(|view| {
            let control = view.node(&"control".parse().unwrap());
            control.is_some_and(|c| c.sites_version == told.version)
        })
        .await
        .is_ok();
    assert!(heard);
    changed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_the_status_page_and_the_end() {
    let cluster = Cluster::start(SITES).await;
    let edge = cluster.edge("e", |me| me.region = "<b>".into()).await;
    cluster.edges_are(1).await;
    for (path, body) in [("/livez", "alive\n"), ("/readyz", "ready\n")] {
        let answer = cluster.get(path).await;
        assert_eq!(
            (answer.status, &answer.body[..]),
            (StatusCode::OK, body.as_bytes())
        );
    }
    let page = cluster.get("/").await;
    assert!(page.field("content-type").starts_with("text/html"));
    let page = String::from_utf8(page.body.to_vec()).unwrap();
    assert!(page.contains("<a href='https://db-ip.com'>IP Geolocation by DB-IP</a>"));
    assert!(
        page.contains("&lt;b&gt;") && !page.contains("<b>"),
        "{page}"
    );

    // An idle connection does not hold up the end; the others hear that it has gone.
    let idle = TcpStream::connect(cluster.http).await.unwrap();
    let mut view = edge.view();
    let id = "control".parse().unwrap();
    timeout(PATIENCE, view.wait_for(|v| v.node(&id).is_some()))
        .await
        .unwrap()
        .unwrap();
    let http = cluster.http;
    cluster.end().await;
    timeout(
        PATIENCE,
        view.wait_for(|v| v.node(&id).is_none_or(|n| n.phase == Phase::Draining)),
    )
    .await
    .unwrap()
    .unwrap();
    assert!(TcpStream::connect(http).await.is_err());
    drop(idle);
}
