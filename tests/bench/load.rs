//! What `tests/bench/rivals` measures with, where wrk and h2load have no mode for it: the origin that
//! all caches stand before, the bare server that none can beat, and two kinds of load.
//!
//! Every object follows from its target, so whoever asks can check every byte:
//!
//! - `/o/1k`, `/o/64k`, `/o/1m`, `/o/32m`, and `/s/0` to `/s/19999` of 1 to 8 KiB;
//! - `/d/0` to `/d/8191` of 16 to 48 KiB: 256 MiB together, for tiers that are smaller than that;
//! - `/miss/…`: 1 KiB, as many as one likes;
//! - `/slow/…`: 64 KiB, after half a second;
//! - `/stats`: how many requests there were, itself not counted.

#![expect(
    clippy::print_stdout,
    reason = "this is a command; what it says goes to the terminal"
)]

use std::{
    collections::HashMap,
    convert::Infallible,
    hash::{DefaultHasher, Hash, Hasher},
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Barrier,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::{Parser, Subcommand};
use harness::pattern::Pattern;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{rt::TokioIo, server::conn::auto};
use serde_json::json;
use tokio::{net::TcpListener, time::Instant};

const LARGE: [(&str, usize); 4] = [
    ("/o/1k", 1 << 10),
    ("/o/64k", 64 << 10),
    ("/o/1m", 1 << 20),
    ("/o/32m", LARGEST),
];
const LARGEST: usize = 32 << 20;
const SMALL: usize = 20_000;
const DISK: usize = 8192;
const MISS_BYTES: usize = 1 << 10;
const SLOW_BYTES: usize = 64 << 10;
const SLOW: Duration = Duration::from_millis(500);
/// Connections that warm a cache.
const WARMERS: usize = 8;
/// Longest silence of a server; one that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest line of an answer's head.
const LINE_BYTES_MAX: u64 = 16 << 10;
/// Many clients are many threads, and none of them needs much.
const STACK_BYTES: usize = 128 << 10;

#[derive(Parser)]
enum Command {
    /// Serves the objects, and counts.
    Origin { listen: SocketAddr },
    /// Serves the objects out of a map, over HTTP/1.1 and h2c: what hyper and the kernel cost.
    Bare { listen: SocketAddr },
    #[command(flatten)]
    Load(Load),
}

/// Each prints one line of JSON.
#[derive(Subcommand)]
enum Load {
    /// Asks once for all that is stored, and compares every byte: for `/o` and `/s`, or for `/d`.
    Warm {
        server: SocketAddr,
        #[arg(long)]
        disk: bool,
    },
    /// Asks at a fixed rate, whatever the server does.
    Paced {
        server: SocketAddr,
        target: String,
        connections: u32,
        rate: u32,
        seconds: u32,
    },
    /// Asks for one object by many clients at the same moment.
    Herd {
        server: SocketAddr,
        target: String,
        clients: usize,
    },
}

fn main() -> Result<()> {
    let said = match Command::parse() {
        Command::Origin { listen } => {
            let (objects, requests) = (Objects::new(), AtomicU64::new(0));
            return serve(listen, async move |target| {
                if target == "/stats" {
                    let requests = requests.load(Ordering::Relaxed);
                    let body = json!({ "requests": requests }).to_string();
                    return Some(Object::new(target, body.into(), "no-store"));
                }
                requests.fetch_add(1, Ordering::Relaxed);
                if target.starts_with("/slow/") {
                    tokio::time::sleep(SLOW).await;
                }
                objects.find(target)
            });
        }
        Command::Bare { listen } => {
            let objects = Objects::new();
            let found = stored(false)
                .chain(stored(true))
                .map(|target| (objects.find(&target), target));
            let map: HashMap<String, Object> = found
                .filter_map(|(object, target)| Some((target, object?)))
                .collect();
            return serve(listen, async move |target| map.get(target).cloned());
        }
        Command::Load(Load::Warm { server, disk }) => warm(server, disk)?,
        Command::Load(Load::Paced {
            server,
            target,
            connections,
            rate,
            seconds,
        }) => paced(server, &target, connections, rate, seconds)?,
        Command::Load(Load::Herd {
            server,
            target,
            clients,
        }) => herd(server, &target, clients)?,
    };
    println!("{said}");
    Ok(())
}

// --- objects

/// Targets of everything that a warm cache holds; of what it is to hold on `disk`, or of all else.
fn stored(disk: bool) -> Box<dyn Iterator<Item = String>> {
    let large = LARGE.iter().map(|(target, _)| (*target).to_owned());
    match disk {
        true => Box::new((0..DISK).map(|n| format!("/d/{n}"))),
        false => Box::new(large.chain((0..SMALL).map(|n| format!("/s/{n}")))),
    }
}

/// All objects: slices of one body.
struct Objects(Bytes);

impl Objects {
    fn new() -> Self {
        Self(Pattern::new(1, LARGEST as u64).bytes())
    }

    fn find(&self, target: &str) -> Option<Object> {
        let mut hasher = DefaultHasher::new();
        target.hash(&mut hasher);
        let number = usize::try_from(hasher.finish() >> 32).expect("32 bits fit");
        let length = match target.split('/').nth(1)? {
            "o" => LARGE.iter().find(|(large, _)| *large == target)?.1,
            "s" => 1024 + number % 7169,
            "d" => (16 << 10) + number % (32 << 10),
            "miss" => MISS_BYTES,
            "slow" => SLOW_BYTES,
            _ => return None,
        };
        let start = number % (LARGEST - length + 1);
        let body = self.0.slice(start..start + length);
        Some(Object::new(target, body, "max-age=3600"))
    }
}

/// A body and the fields that describe it.
#[derive(Clone)]
struct Object {
    fields: HeaderMap,
    body: Bytes,
}

impl Object {
    fn new(target: &str, body: Bytes, cache_control: &'static str) -> Self {
        let tag = format!("\"{target}\"");
        let fields = [
            (header::CONTENT_TYPE, "application/octet-stream"),
            (header::CACHE_CONTROL, cache_control),
            (header::LAST_MODIFIED, "Mon, 01 Jan 2024 00:00:00 GMT"),
            (header::ACCEPT_RANGES, "bytes"),
        ];
        let mut fields: HeaderMap = fields
            .map(|(name, value)| (name, HeaderValue::from_static(value)))
            .into_iter()
            .collect();
        fields.insert(header::CONTENT_LENGTH, body.len().into());
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            fields.insert(header::ETAG, tag);
        }
        Self { fields, body }
    }

    /// The answer to a request with these fields.
    fn answer(self, asked: &HeaderMap) -> Response<Full<Bytes>> {
        let Self { mut fields, body } = self;
        let is_known = asked
            .get(header::IF_NONE_MATCH)
            .is_some_and(|tag| fields.get(header::ETAG) == Some(tag));
        let range = asked
            .get(header::RANGE)
            .and_then(|range| parse_range(range.to_str().ok()?));
        let (status, body) = match range {
            _ if is_known => {
                fields.remove(header::CONTENT_LENGTH);
                (StatusCode::NOT_MODIFIED, Bytes::new())
            }
            Some((first, last)) if first <= last && last < body.len() => {
                let range = format!("bytes {first}-{last}/{}", body.len());
                fields.extend(
                    HeaderValue::try_from(range).map(|range| (header::CONTENT_RANGE, range)),
                );
                fields.insert(header::CONTENT_LENGTH, (last - first + 1).into());
                (StatusCode::PARTIAL_CONTENT, body.slice(first..=last))
            }
            _ => (StatusCode::OK, body),
        };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        *response.headers_mut() = fields;
        response
    }
}

/// `bytes=a-b`; who measures asks for nothing else.
fn parse_range(range: &str) -> Option<(usize, usize)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

// --- servers

/// Serves on one thread what `find` finds.
fn serve(listen: SocketAddr, find: impl AsyncFn(&str) -> Option<Object> + 'static) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let listener = TcpListener::bind(listen).await?;
        let find = std::rc::Rc::new(find);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let find = find.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let find = find.clone();
                async move {
                    let found = find(request.uri().path()).await;
                    Ok::<_, Infallible>(match found {
                        Some(object) => object.answer(request.headers()),
                        None => {
                            let mut response = Response::new(Full::default());
                            *response.status_mut() = StatusCode::NOT_FOUND;
                            response
                        }
                    })
                }
            });
            tokio::task::spawn_local(async move {
                // A client that hangs up is its own business.
                let _ = auto::Builder::new(LocalExecutor)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    })
}

/// Runs what HTTP/2 spawns on this thread.
#[derive(Clone)]
struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

// --- clients

/// A client on one connection.
struct Client {
    stream: BufReader<TcpStream>,
    server: SocketAddr,
    body: Vec<u8>,
}

impl Client {
    fn open(server: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream: BufReader::with_capacity(64 << 10, stream),
            server,
            body: Vec::new(),
        })
    }

    /// Asks; the body of the answer, which is a 200.
    fn get(&mut self, target: &str) -> Result<&[u8]> {
        let request = format!("GET {target} HTTP/1.1\r\nHost: {}\r\n\r\n", self.server);
        self.stream.get_mut().write_all(request.as_bytes())?;
        let status = self.line()?;
        ensure!(
            status.split(' ').nth(1) == Some("200"),
            "{target}: {status}"
        );
        let (mut length, mut chunked) = (0, false);
        loop {
            let line = self.line()?.to_ascii_lowercase();
            match line.split_once(':') {
                Some(("content-length", value)) => length = value.trim().parse()?,
                Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
                Some(_) => {}
                None => break,
            }
        }
        self.body.clear();
        if !chunked {
            self.take(length)?;
            return Ok(&self.body);
        }
        loop {
            let line = self.line()?;
            let size = line.split(';').next().unwrap_or_default();
            let length = usize::from_str_radix(size.trim(), 16).context("size of a chunk")?;
            self.take(length)?;
            self.line()?;
            if length == 0 {
                return Ok(&self.body);
            }
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let mut limited = self.stream.by_ref().take(LINE_BYTES_MAX);
        limited.read_line(&mut line)?;
        ensure!(line.ends_with("\r\n"), "the server hung up");
        line.truncate(line.len() - 2);
        Ok(line)
    }

    fn take(&mut self, length: usize) -> Result<()> {
        ensure!(length <= LARGEST, "no object is this large");
        let start = self.body.len();
        self.body.resize(start + length, 0);
        Ok(self.stream.read_exact(&mut self.body[start..])?)
    }
}

fn warm(server: SocketAddr, disk: bool) -> Result<serde_json::Value> {
    let (objects, targets) = (Objects::new(), stored(disk).collect::<Vec<_>>());
    let next = AtomicUsize::new(0);
    let wrong = in_threads(WARMERS, |_| {
        let (mut client, mut wrong) = (Client::open(server)?, 0);
        while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
            let expected = objects.find(target).context("every target has an object")?;
            wrong += u64::from(client.get(target)? != expected.body);
        }
        Ok(wrong)
    })?;
    Ok(json!({ "wrong": wrong.iter().sum::<u64>() }))
}

/// Each connection has its own share of the schedule. A request that could not be sent in time because
/// the answer before it was late counts from when it was due, so a server that stalls is charged for
/// all that had to wait. One that was late because this thread woke late counts from when it was sent.
#[expect(
    clippy::disallowed_methods,
    reason = "a thread of its own for each connection; tokio's timer is no finer than a millisecond"
)]
fn paced(
    server: SocketAddr,
    target: &str,
    connections: u32,
    rate: u32,
    seconds: u32,
) -> Result<serde_json::Value> {
    ensure!(
        rate > 0 && connections > 0,
        "there has to be something to do"
    );
    let gap = Duration::from_secs(1) / rate;
    let start = Instant::now() + Duration::from_millis(100);
    let took = in_threads(connections as usize, |n| {
        let mut client = Client::open(server)?;
        let first = u32::try_from(n).context("connections are counted in 32 bits")?;
        let mut took = Vec::new();
        for request in (first..rate * seconds).step_by(connections as usize) {
            let due = start + gap * request;
            let ahead = due.saturating_duration_since(Instant::now());
            thread::sleep(ahead);
            let from = if ahead.is_zero() { due } else { Instant::now() };
            client.get(target)?;
            took.push(from.elapsed());
        }
        Ok(took)
    })?;
    Ok(percentiles(took.concat()))
}

/// The clients share a core, and the last one has its answer when all before it had their turn there. So
/// nothing is done meanwhile that is not part of being answered: memory is there before the gate opens, and
/// what came is compared, and the connection closed, when everybody has an answer.
fn herd(server: SocketAddr, target: &str, clients: usize) -> Result<serde_json::Value> {
    let object = Objects::new().find(target).context("no such object")?;
    let (ready, answered) = (Barrier::new(clients), Barrier::new(clients));
    let took = in_threads(clients, |_| {
        let client = Client::open(server).map(|mut client| {
            client.body.resize(object.body.len(), 1);
            client
        });
        ready.wait();
        let from = Instant::now();
        let got = client.and_then(|mut client| {
            client.get(target)?;
            Ok((from.elapsed(), client))
        });
        answered.wait();
        let (took, client) = got?;
        ensure!(client.body == object.body, "another body");
        Ok(took.saturating_sub(SLOW))
    })?;
    Ok(percentiles(took))
}

/// Does `work` on so many threads; what they return, or the first error.
fn in_threads<T: Send>(count: usize, work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|n| {
                let builder = thread::Builder::new().stack_size(STACK_BYTES);
                builder.spawn_scoped(scope, move || work(n))
            })
            .collect::<std::io::Result<_>>()?;
        let ended = threads.into_iter().map(|thread| thread.join());
        ended
            .map(|ended| match ended {
                Ok(ended) => ended,
                Err(_) => bail!("a client panicked"),
            })
            .collect()
    })
}

fn percentiles(mut took: Vec<Duration>) -> serde_json::Value {
    took.sort_unstable();
    let at = |share: f64| {
        let place = (took.len().saturating_sub(1) as f64 * share).round();
        took.get(place as usize)
            .map(|took| took.as_secs_f64() * 1e6)
    };
    json!({ "requests": took.len(), "p50_us": at(0.5), "p99_us": at(0.99) })
}
