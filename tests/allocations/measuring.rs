//! An edge, a client of it, and the count of what the edge allocates for its requests.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    thread,
    time::Duration,
};

use cluster::site::Site;
use edge_node::{
    config::ConfigFile,
    edge::{Edge, Environment},
};
use tokio::runtime::Runtime;

/// Requests of a batch: enough that one allocation in a thousand of them shows.
pub(super) const REQUESTS: usize = 1_000;
/// Batches until one must have kept to the budget, after one that warms up. A batch takes milliseconds,
/// and the edge's own work comes by the second.
const BATCHES_MAX: usize = 50;
/// Longest head and body of an answer.
const ANSWER_BYTES_MAX: usize = 128 << 10;
/// Longest wait for an answer. The machine may be busy; nothing is judged by it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts an edge in front of `origin`; gives its address.
pub(super) fn edge(runtime: &Runtime, data_dir: &Path, origin: &str) -> SocketAddr {
    let edge = runtime.block_on(async {
        let mut file = ConfigFile::default();
        file.node.data_dir = data_dir.to_owned();
        file.listen.http = ([127, 0, 0, 1], 0).into();
        file.listen.admin = ([127, 0, 0, 1], 0).into();
        file.site = vec![Site::new("a", &["*"], &[origin])];
        let config = file.check("a").unwrap();
        Edge::build(config, Environment::real()).await.unwrap()
    });
    let address = edge.addresses().http;
    runtime.spawn(edge.run(std::future::pending()));
    address
}

/// What the edge allocates in the first batch of requests that keeps to `budget`; if none does, in the
/// best. `ask` makes one request.
pub(super) fn fewest_allocations(
    runtime: &Runtime,
    edge: SocketAddr,
    budget: u64,
    mut ask: impl FnMut(&mut Client) + Send,
) -> u64 {
    let (begin, begun) = std::sync::mpsc::channel();
    let (done, mut ended) = tokio::sync::mpsc::channel(1);
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut client = Client::open(edge);
            for () in begun {
                (0..REQUESTS).for_each(|_| ask(&mut client));
                done.blocking_send(()).unwrap();
            }
        });
        let mut batch = || {
            begin.send(()).unwrap();
            let counted = allocation_counter::measure(|| {
                let ended = runtime.block_on(ended.recv());
                ended.expect("the client got what it asked for");
            });
            counted.count_total
        };
        assert_ne!(
            batch(),
            0,
            "to accept a connection takes memory: nothing is counted"
        );
        let mut fewest = u64::MAX;
        for _ in 0..BATCHES_MAX {
            fewest = fewest.min(batch());
            if fewest <= budget {
                break;
            }
        }
        drop(begin);
        fewest
    })
}

/// A client on one connection.
pub(super) struct Client {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Client {
    fn open(edge: SocketAddr) -> Self {
        let stream = TcpStream::connect(edge).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let answer = vec![0; ANSWER_BYTES_MAX];
        Self { stream, answer }
    }

    /// Asks, and takes the whole answer; gives its head.
    pub(super) fn ask(&mut self, request: &str, body_bytes: usize) -> &str {
        self.stream.write_all(request.as_bytes()).unwrap();
        let (mut filled, mut head) = (0, None);
        while head.is_none_or(|head| filled < head + body_bytes) {
            let read = self.stream.read(&mut self.answer[filled..]).unwrap();
            assert_ne!(read, 0, "{request}: the edge hung up");
            filled += read;
            let end = |bytes: &[u8]| bytes.windows(4).position(|four| four == b"\r\n\r\n");
            head = head.or_else(|| end(&self.answer[..filled]).map(|end| end + 4));
        }
        let head = head.unwrap();
        assert_eq!(head, filled - body_bytes, "{request}");
        std::str::from_utf8(&self.answer[..head]).unwrap()
    }
}
