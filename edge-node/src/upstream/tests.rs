use std::ops::Range;

use bytes::Bytes;
use cluster::{digest::Holdings, manifest::Manifest, node::Phase};
use http_body_util::Full;
use hyper::body::Incoming;

use super::{health::Standing, schedule::FIRST_PIECES, *};
use crate::upstream::scripted::{Counted, Scripted, config, eventually, serving};

const BODY: &[u8] = b"the very bytes";
const FIRST: Range<u32> = 0..FIRST_PIECES;

fn id(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn key() -> Key {
    Key::of(&[b"www", b"/"])
}

/// How a peer answers when it is asked for an object.
#[derive(Clone, Copy)]
enum Manner {
    Honest,
    Forgetful,
    Lying,
    Busy,
}

/// An edge whose digest claims [`key`].
async fn edge(name: &str, manner: Manner) -> (Scripted, NodeInfo) {
    let mut holdings = Holdings::new(7);
    holdings.add(key());
    let mut node = NodeInfo::new(id(name), Role::Edge);
    node.phase = Phase::Ready;
    node.digest = Some(holdings.version());
    let digest = holdings.answer(None).encode();
    let server = serving(move |request: Request<Incoming>| {
        let digest = digest.clone();
        let asked_for_digest = request.uri().path() == cluster::wire::DIGEST;
        async move {
            if asked_for_digest {
                Response::new(Full::from(digest))
            } else {
                held(manner)
            }
        }
    })
    .await;
    node.peer = server.address();
    (server, node)
}

fn held(manner: Manner) -> Response<Full<Bytes>> {
    let manifest = Manifest {
        status: 200,
        fields: vec![],
        selected_by: vec![],
        length: BODY.len() as u64,
        pieces: vec![*blake3::hash(BODY).as_bytes()],
        fetched_by: id("edge-9"),
        fetched_at: 1,
        as_of: cluster::purge::Position::default(),
    };
    let mut body = peer::encode_answer_head(&manifest.encode().unwrap()).to_vec();
    match manner {
        Manner::Honest => body.extend_from_slice(BODY),
        Manner::Lying => body.extend_from_slice(b"the evil bytes"),
        Manner::Forgetful => {
            return Response::builder()
                .status(404)
                .body(Full::default())
                .unwrap();
        }
        Manner::Busy => {
            return Response::builder()
                .status(503)
                .body(Full::default())
                .unwrap();
        }
    }
    let mut answer = Response::new(Full::from(body));
    peer::set_age(answer.headers_mut(), Duration::ZERO);
    answer
}

struct Bench {
    upstream: Upstream,
    events: Arc<Counted>,
    view: watch::Sender<Arc<ClusterView>>,
    tasks: Vec<(&'static str, JoinHandle<()>)>,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn new(nodes: impl IntoIterator<Item = NodeInfo>) -> Self {
        let nodes: Vec<NodeInfo> = nodes.into_iter().collect();
        let peers = nodes.len();
        let view = watch::Sender::new(Arc::new(ClusterView::new(nodes)));
        let events = Arc::<Counted>::default();
        let dir = tempfile::tempdir().unwrap();
        let upstream = Upstream::new(UpstreamConfig {
            data_dir: dir.path().to_owned(),
            ..config(id("me"), view.subscribe(), events.clone())
        });
        let tasks = upstream.spawn();
        let digests = || {
            upstream
                .peers_report()
                .iter()
                .filter(|p| p.digest.is_some())
                .count()
        };
        eventually(|| digests() == peers).await;
        Self {
            upstream,
            events,
            view,
            tasks,
            _dir: dir,
        }
    }

    fn holders(&self) -> Vec<String> {
        self.upstream
            .holders(key())
            .into_iter()
            .map(|c| c.id.to_string())
            .collect()
    }

    /// Asks the best holder; all bytes, or the first error.
    async fn ask(&self) -> Result<Vec<u8>, PeerError> {
        let candidate = self.upstream.holders(key()).remove(0);
        let asked = self
            .upstream
            .ask(&candidate, key(), &HeaderMap::new(), &FIRST)
            .await;
        let mut pieces = asked?.pieces;
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece?);
        }
        Ok(bytes)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|(_, task)| task.abort());
    }
}

#[tokio::test]
async fn a_holder_is_found_asked_and_reported() {
    let (_server, mut node) = edge("edge-1", Manner::Honest).await;
    node.region = "eu".into();
    let bench = Bench::new([node.clone()]).await;
    assert!(
        bench
            .upstream
            .holders(Key::of(&[b"something else"]))
            .is_empty()
    );
    assert_eq!(bench.holders(), ["edge-1"]);
    assert_eq!(bench.ask().await.unwrap(), BODY);
    assert_eq!(bench.events.of("edge-1 hit"), 1);
    assert_eq!(
        bench.upstream.round_trips().keys().collect::<Vec<_>>(),
        [&node.id]
    );

    let report = serde_json::to_value(bench.upstream.peers_report()).unwrap();
    let report = &report[0];
    assert_eq!(report["id"], "edge-1");
    assert_eq!(report["region"], "eu");
    assert_eq!(report["rank"], 1);
    assert_eq!(report["ejected"], false);
    assert_eq!(report["digest"]["objects"], 1);
    assert_eq!(report["peer_addr"], node.peer);
    assert!(
        report["rtt_ms"].is_number() && report["score"].is_number(),
        "{report}"
    );
    let candidate = serde_json::to_value(&bench.upstream.holders(key())[0]).unwrap();
    assert!(
        candidate["why"].as_str().unwrap().ends_with("ms measured"),
        "{candidate}"
    );

    // It drains: nobody is sent there any more.
    node.phase = Phase::Draining;
    bench.view.send_replace(Arc::new(ClusterView::new([node])));
    assert!(bench.holders().is_empty());
}

#[tokio::test]
async fn a_peer_that_died_is_ejected_at_once() {
    let (server, node) = edge("edge-1", Manner::Honest).await;
    let bench = Bench::new([node]).await;
    drop(server);
    let error = bench.ask().await.unwrap_err();
    assert!(
        matches!(error, PeerError::Connect(_) | PeerError::ClosedEarly),
        "{error}"
    );
    assert!(bench.holders().is_empty());
    let report = &bench.upstream.peers_report()[0];
    assert!(report.ejected && report.errors > 0.0 && report.last_failure.is_some());
    // After its time one question may try again, and no second one beside it.
    eventually(|| !bench.holders().is_empty()).await;
    let candidate = bench.upstream.holders(key()).remove(0);
    let fields = HeaderMap::new();
    let (one, two) = tokio::join!(
        bench.upstream.ask(&candidate, key(), &fields, &FIRST),
        bench.upstream.ask(&candidate, key(), &fields, &FIRST),
    );
    assert!(matches!(one, Err(PeerError::Connect(_))));
    assert_eq!(two.unwrap_err(), PeerError::Ejected);
}

#[tokio::test]
async fn a_peer_that_sends_wrong_bytes_is_ejected_for_long() {
    let (_server, node) = edge("edge-1", Manner::Lying).await;
    let bench = Bench::new([node]).await;
    assert_eq!(
        bench.ask().await.unwrap_err(),
        PeerError::Corrupt { piece: 0 }
    );
    assert_eq!(bench.events.of("edge-1 corrupt"), 1);
    let health = bench.upstream.0.health.of(&id("edge-1"));
    let later = Instant::now() + health::EJECTED_MAX / 2;
    assert_eq!(health.standing(later), Standing::Ejected);
}

#[tokio::test]
async fn a_false_claim_or_a_refusal_ejects_nobody() {
    let (_a, forgetful) = edge("edge-1", Manner::Forgetful).await;
    let bench = Bench::new([forgetful]).await;
    assert_eq!(bench.ask().await.unwrap_err(), PeerError::Miss);
    assert_eq!(bench.events.of("edge-1 false hit"), 1);
    assert_eq!(bench.holders(), ["edge-1"]);

    let (_b, busy) = edge("edge-2", Manner::Busy).await;
    let bench = Bench::new([busy]).await;
    assert_eq!(bench.ask().await.unwrap_err(), PeerError::Busy);
    assert_eq!(bench.upstream.peers_report()[0].standing, Standing::Busy);
    assert_eq!(bench.holders(), ["edge-2"]);
}

#[tokio::test]
async fn an_answer_nobody_waits_for_is_no_verdict() {
    let (_server, node) = edge("edge-1", Manner::Honest).await;
    let bench = Bench::new([node]).await;
    let candidate = bench.upstream.holders(key()).remove(0);
    drop(
        bench
            .upstream
            .ask(&candidate, key(), &HeaderMap::new(), &FIRST)
            .await
            .unwrap(),
    );
    assert_eq!(bench.events.of("edge-1 abandoned"), 1);
    assert_eq!(bench.ask().await.unwrap(), BODY);
}

#[tokio::test]
async fn a_standalone_edge_has_no_peers_and_no_background() {
    let events = Arc::<Counted>::default();
    let (_, view) = watch::channel(Arc::default());
    let upstream = Upstream::new(UpstreamConfig {
        secret: None,
        ..config(id("me"), view, events)
    });
    assert!(upstream.spawn().is_empty());
    assert!(upstream.holders(key()).is_empty() && upstream.peers_report().is_empty());
}
