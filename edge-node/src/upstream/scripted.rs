//! Servers that do exactly what a test tells them, byte by byte.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use cluster::{
    clock::Clock, net::SystemNet, node::NodeId, secret::ClusterSecret, view::ClusterView,
};
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};

use super::{Events, UpstreamConfig};

pub(super) use std::future::pending;

/// What the upstream of `me` is made of: the real network and clock, a secret, and nothing from before.
pub(super) fn config(
    me: NodeId,
    view: watch::Receiver<Arc<ClusterView>>,
    events: Arc<Counted>,
) -> UpstreamConfig {
    let secret = b"0123456789abcdef0123456789abcdef";
    UpstreamConfig {
        me,
        secret: Some(ClusterSecret::from_bytes(secret).unwrap()),
        net: Arc::new(SystemNet),
        clock: Clock::system(),
        view,
        control_planes: vec![],
        sites_version: 0,
        data_dir: PathBuf::new(),
        reach: HashMap::new(),
        hedge: true,
        events,
    }
}

/// A server on loopback that runs a script per connection. Dropping it closes all of them.
pub(super) struct Scripted {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Scripted {
    /// Runs `script` for each connection, with its number from 0.
    pub(super) async fn start<S, F>(script: S) -> Self
    where
        S: Fn(usize, TcpStream) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = connections.clone();
        let accepting = tokio::spawn(async move {
            let mut running = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                running.spawn(script(counter.fetch_add(1, Ordering::SeqCst), stream));
            }
        });
        Self {
            address,
            connections,
            accepting,
        }
    }

    /// A base URL where nobody listens.
    pub(super) async fn refusing() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn address(&self) -> String {
        self.address.to_string()
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// An HTTP/1.1 server on loopback that answers with `handler`.
pub(super) async fn serving<H, F>(handler: H) -> Scripted
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    Scripted::start(move |_, stream| {
        let handler = handler.clone();
        async move {
            let answer = service_fn(move |request| {
                let answer = handler(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            // Clients that break off are part of some tests.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        }
    })
    .await
}

/// Keeps what is counted.
#[derive(Default)]
pub(super) struct Counted(Mutex<Vec<String>>);

impl Counted {
    pub(super) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(super) fn of(&self, what: &str) -> usize {
        self.all().iter().filter(|counted| *counted == what).count()
    }

    fn count(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }
}

impl Events for Counted {
    fn origin_attempt(&self, site: &str) {
        self.count(format!("origin {site}"));
    }

    fn peer_result(&self, peer: &NodeId, result: &'static str) {
        self.count(format!("{peer} {result}"));
    }

    fn digest_false_hit(&self, peer: &NodeId) {
        self.count(format!("{peer} false hit"));
    }

    fn hedged(&self, result: &'static str) {
        self.count(format!("hedge {result}"));
    }

    fn digest_pulled(&self, peer: &NodeId, result: &'static str) {
        self.count(format!("{peer} digest {result}"));
    }

    fn ordered(&self, site: &str, first: &'static str) {
        self.count(format!("{site} {first} first"));
    }
}

/// Reads up to the end of a head; what it read if the other end closes before.
pub(super) async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// Waits until `holds`, for as long as a busy machine may need.
pub(super) async fn eventually(holds: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < patience, "it did not come to that");
        sleep(Duration::from_millis(5)).await;
    }
}
