//! What a hit in memory allocates, counted exactly: a budget for each kind of hit, on a whole edge.
//!
//! The edge runs on one runtime thread, and the counting allocator counts by thread. The client is
//! another thread with a blocking socket, so nothing that is its own is counted, and nothing has to be
//! subtracted. What the edge does by the clock (gauges, digests) may fall into one batch of hits, but
//! not into every one: one batch within the budget shows that hits keep to it.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use cluster::site::Site;
use edge_node::{
    config::ConfigFile,
    edge::{Edge, Environment},
};
use harness::{
    origin::{Answer, Origin},
    pattern::Pattern,
};
use tokio::runtime::{self, Runtime};

/// Hits of a batch: enough that one allocation in a thousand hits shows.
const HITS: usize = 1_000;
/// Batches until one must have kept to the budget, after one that warms up. A batch takes milliseconds,
/// and the edge's own work comes by the second.
const BATCHES_MAX: usize = 50;
/// Longest head and body of an answer.
const ANSWER_BYTES_MAX: usize = 128 << 10;
/// Longest wait for an answer. The machine may be busy; nothing is judged by it.
const PATIENCE: Duration = Duration::from_secs(60);
const SIZE: u64 = 1 << 10;
const SIZE_LARGER: u64 = 64 << 10;

/// A kind of hit, and what a batch of it may allocate.
struct Kind {
    name: &'static str,
    request: &'static str,
    /// How the answer begins, so that what is counted is what was meant.
    status: &'static str,
    body_bytes: u64,
    /// Allocations per hit: what it takes today. Whoever needs one more has to say here what for.
    budget: usize,
}

const KINDS: [Kind; 6] = [
    Kind {
        name: "a small object",
        request: "GET /small HTTP/1.1\r\nhost: a.test\r\n\r\n",
        status: "HTTP/1.1 200 ",
        body_bytes: SIZE,
        budget: 0,
    },
    Kind {
        name: "a small object, for a browser",
        request: "GET /small HTTP/1.1\r\nhost: a.test\r\nuser-agent: Mozilla/5.0\r\naccept: */*\r\n\
                  accept-language: en\r\naccept-encoding: gzip, br\r\ncookie: a=b\r\n\r\n",
        status: "HTTP/1.1 200 ",
        body_bytes: SIZE,
        budget: 0,
    },
    Kind {
        name: "a larger object",
        request: "GET /larger HTTP/1.1\r\nhost: a.test\r\n\r\n",
        status: "HTTP/1.1 200 ",
        body_bytes: SIZE_LARGER,
        budget: 0,
    },
    Kind {
        name: "a head",
        request: "HEAD /small HTTP/1.1\r\nhost: a.test\r\n\r\n",
        status: "HTTP/1.1 200 ",
        body_bytes: 0,
        budget: 0,
    },
    Kind {
        name: "what the client has",
        request: "GET /small HTTP/1.1\r\nhost: a.test\r\nif-none-match: \"1\"\r\n\r\n",
        status: "HTTP/1.1 304 ",
        body_bytes: 0,
        // The condition is judged on a header map; the answer's head is there.
        budget: 3,
    },
    Kind {
        name: "a range",
        request: "GET /larger HTTP/1.1\r\nhost: a.test\r\nrange: bytes=1000-1999\r\n\r\n",
        status: "HTTP/1.1 206 ",
        body_bytes: 1_000,
        // As above: the range is judged on the same map, and its parts are listed.
        budget: 4,
    },
];

#[test]
fn a_hit_in_memory_keeps_to_its_budget_of_allocations() {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (origin, edge) = runtime.block_on(async {
        let origin = Origin::start().await.unwrap();
        for (path, length) in [("/small", SIZE), ("/larger", SIZE_LARGER)] {
            let answer = Answer::pattern(&Pattern::new(length, length));
            origin.route(path, answer.max_age(3_600).field("etag", "\"1\""));
        }
        let mut file = ConfigFile::default();
        file.node.data_dir = dir.path().to_owned();
        file.listen.http = ([127, 0, 0, 1], 0).into();
        file.listen.admin = ([127, 0, 0, 1], 0).into();
        file.site = vec![Site::new("a", &["*"], &[&origin.url()])];
        let config = file.check("a").unwrap();
        let edge = Edge::build(config, Environment::real()).await.unwrap();
        (origin, edge)
    });
    let address = edge.addresses().http;
    runtime.spawn(edge.run(std::future::pending()));

    let mut over = Vec::new();
    for kind in &KINDS {
        let budget = u64::try_from(kind.budget * HITS).unwrap();
        let fewest = fewest_allocations(&runtime, address, kind, budget);
        if fewest > budget {
            over.push(format!("{}: {fewest}, and not {budget}", kind.name));
        }
    }
    assert!(over.is_empty(), "allocations in {HITS} hits: {over:#?}");
    // Everything but the first request for each object was a hit.
    assert_eq!(origin.requests(), 2);
}

/// What the edge allocates in the first batch of hits that keeps to `budget`; if none does, in the best.
fn fewest_allocations(runtime: &Runtime, edge: SocketAddr, kind: &Kind, budget: u64) -> u64 {
    let (begin, begun) = std::sync::mpsc::channel();
    let (done, mut ended) = tokio::sync::mpsc::channel(1);
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut client = Client::open(edge);
            for () in begun {
                (0..HITS).for_each(|_| client.ask(kind));
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
struct Client {
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

    /// Asks, and takes the whole answer.
    fn ask(&mut self, kind: &Kind) {
        self.stream.write_all(kind.request.as_bytes()).unwrap();
        let body_bytes = usize::try_from(kind.body_bytes).unwrap();
        let (mut filled, mut head) = (0, None);
        while head.is_none_or(|head| filled < head + body_bytes) {
            let read = self.stream.read(&mut self.answer[filled..]).unwrap();
            assert_ne!(read, 0, "{}: the edge hung up", kind.name);
            filled += read;
            let end = |bytes: &[u8]| bytes.windows(4).position(|four| four == b"\r\n\r\n");
            head = head.or_else(|| end(&self.answer[..filled]).map(|end| end + 4));
        }
        assert!(
            self.answer.starts_with(kind.status.as_bytes()),
            "{}",
            kind.name
        );
        assert_eq!(head, Some(filled - body_bytes), "{}", kind.name);
    }
}
