//! Crowds: as many clients at once as the machine allows, for an answer that is nobody else's.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use cluster::quantity::Span;
use harness::cluster::{HOST, Plan};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
    sync::{Barrier, Semaphore, watch},
    task::JoinSet,
    time::timeout,
};

use crate::{SECOND, started};

/// Clients at once, where the system lets a process have two sockets for each: this one plays
/// clients and origin, and the edge has one towards each.
const CLIENTS_MAX: usize = 10_000;
/// Descriptors that other tests of this process may hold meanwhile.
const DESCRIPTORS_SPARE: usize = 2_000;
/// Requests of each client, one after another on one connection.
const ROUNDS: usize = 2;
/// Connections that are opened at the same time, so that no queue of the system runs over.
const OPENING_MAX: usize = 256;
/// Connections that wait to be accepted by the origin; the system may allow fewer.
const ACCEPT_QUEUE: u32 = 4_096;
/// Longest head that origin and clients read.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Longest wait of a client for an answer. The machine may be busy; nothing is judged by it.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the origin holds requests at most: an edge that has forgotten meanwhile that nobody
/// shares sends one ahead, and the others wait for that.
const HELD_FOR: Duration = Duration::from_secs(10);
/// Memory that an edge may take for each client: buffers of two connections and what is known of a
/// request.
const CLIENT_BYTES_MAX: usize = 64 << 10;
/// Memory that it may take beside that.
const EDGE_BYTES_MAX: usize = 256 << 20;

/// Nobody gets another's answer, nobody queues behind another, and nothing grows without bound.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_wants_what_cannot_be_shared_is_served_side_by_side() {
    let descriptors = descriptors();
    let spare = DESCRIPTORS_SPARE.min(descriptors / 2);
    let clients = (descriptors - spare).min(2 * CLIENTS_MAX) / 2;
    let origin = Origin::start(clients).await.unwrap();
    let plan = Plan::alone(&format!("http://{}", origin.address)).site(|site| {
        // Two cores play everybody; that must not look like an origin that is down.
        site.connect_timeout = Span(PATIENCE);
        site.first_byte_timeout = Span(PATIENCE);
        site.origin_concurrency = Some(u32::try_from(clients).unwrap());
    });
    let mut cluster = started(plan).await;
    let edge = cluster.edges[0].http;

    let gate = Arc::new(Barrier::new(clients));
    let opening = Arc::new(Semaphore::new(OPENING_MAX));
    let mut crowd = JoinSet::new();
    for client in 0..clients {
        crowd.spawn(visit(edge, client, gate.clone(), opening.clone()));
    }
    let (mut most_bytes, mut numbers) = (0, Vec::new());
    while !crowd.is_empty() {
        if let Ok(Some(visited)) = timeout(SECOND / 10, crowd.join_next()).await {
            numbers.extend(visited.unwrap().unwrap());
        } else {
            let bytes = cluster.edges[0].process().resident_bytes().unwrap();
            most_bytes = most_bytes.max(usize::try_from(bytes).unwrap());
        }
    }
    let most_at_once = origin.shared.most_at_once.load(Ordering::SeqCst);
    println!(
        "{clients} clients, up to {most_at_once} at the origin at once, edge took up to {} MiB",
        most_bytes >> 20
    );
    // Each answer is told apart by its number; each client has checked that its name is in it.
    assert_eq!(numbers.len(), clients * ROUNDS);
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), clients * ROUNDS, "an answer was given twice");
    let asked = origin.shared.requests.load(Ordering::SeqCst);
    assert_eq!(asked, clients * ROUNDS);
    // Had they queued, they would not have been there at once.
    assert!(most_at_once > clients / 2, "{most_at_once} of {clients}");
    let bound = EDGE_BYTES_MAX + clients * CLIENT_BYTES_MAX;
    assert!(most_bytes < bound, "{} MiB resident", most_bytes >> 20);
    let ready = cluster.edges[0].ask("/readyz").await.unwrap();
    assert_eq!(ready.status, 200);
}

/// How many descriptors this process may have, and its children after it.
fn descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum;
    let raised = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: most,
            maximum: most,
        },
    );
    let had = if raised.is_ok() { most } else { limit.current };
    had.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX))
}

/// One client: connects, waits for all others, and asks; then once more. The numbers it got.
async fn visit(
    edge: SocketAddr,
    client: usize,
    gate: Arc<Barrier>,
    opening: Arc<Semaphore>,
) -> Result<Vec<usize>> {
    let connected = {
        let _turn = opening.acquire().await?;
        timeout(PATIENCE, TcpStream::connect(edge)).await
    };
    let mut stream = BufReader::with_capacity(1 << 10, connected.context("connecting")??);
    let mut numbers = Vec::new();
    for _ in 0..ROUNDS {
        gate.wait().await;
        let request = format!("GET /now HTTP/1.1\r\nhost: {HOST}\r\nx-client: {client}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let answer = timeout(PATIENCE, exchange(&mut stream)).await;
        let (head, body) = answer.with_context(|| format!("client {client} waits"))??;
        ensure!(head.starts_with("http/1.1 200 "), "{head}");
        ensure!(
            !head.contains("; hit") && !head.contains("; collapsed"),
            "{head}"
        );
        let (number, name) = body.split_once(' ').context("no number")?;
        ensure!(name == client.to_string(), "client {client} got {body:?}");
        numbers.push(number.parse()?);
    }
    Ok(numbers)
}

/// Reads a message: its head in lower case, and its body, whose length it tells.
async fn exchange(stream: &mut BufReader<TcpStream>) -> Result<(String, String)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < HEAD_BYTES_MAX, "a head without end");
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) if head.is_empty() => bail!("closed"),
            Err(error) => return Err(error.into()),
        }
    }
    let head = String::from_utf8(head)?.to_ascii_lowercase();
    let length = field(&head, "content-length").map_or(Ok(0), str::parse)?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok((head, String::from_utf8(body)?))
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let line = head.lines().find_map(|line| line.strip_prefix(name));
    Some(line?.strip_prefix(':')?.trim())
}

/// An origin that numbers its answers. It takes a second for the first of each round, after which
/// an edge knows that they are nobody else's, and holds the others until half of the crowd is there.
struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

struct Shared {
    crowd: usize,
    /// In how many rounds half of the crowd has been here at once.
    rounds_open: watch::Sender<usize>,
    requests: AtomicUsize,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    connections: Mutex<JoinSet<()>>,
}

impl Origin {
    async fn start(crowd: usize) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let listener = socket.listen(ACCEPT_QUEUE)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            crowd,
            rounds_open: watch::channel(0).0,
            requests: AtomicUsize::new(0),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            connections: Mutex::default(),
        });
        let mut accepting = JoinSet::new();
        let accepts = shared.clone();
        accepting.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = accepts.clone();
                let mut connections = accepts
                    .connections
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                while connections.try_join_next().is_some() {}
                connections.spawn(async move {
                    // It ends when the edge closes.
                    let _ = shared.answer(stream).await;
                });
            }
        });
        Ok(Self {
            address,
            shared,
            _accepting: accepting,
        })
    }
}

impl Shared {
    async fn answer(&self, stream: TcpStream) -> Result<()> {
        let mut stream = BufReader::with_capacity(1 << 10, stream);
        loop {
            let (head, _) = exchange(&mut stream).await?;
            let number = self.requests.fetch_add(1, Ordering::SeqCst);
            let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_at_once.fetch_max(now, Ordering::SeqCst);
            let round = number / self.crowd;
            if number.is_multiple_of(self.crowd) {
                tokio::time::sleep(SECOND).await;
            } else {
                if now > self.crowd / 2 {
                    self.rounds_open.send_replace(round + 1);
                }
                let mut open = self.rounds_open.subscribe();
                let _ = timeout(HELD_FOR, open.wait_for(|rounds| *rounds > round)).await;
            }
            self.at_once.fetch_sub(1, Ordering::SeqCst);
            let body = format!("{number} {}", field(&head, "x-client").context("no name")?);
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncache-control: no-store\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await?;
        }
    }
}
