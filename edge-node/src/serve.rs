//! Listeners: accept, bound, serve, drain. What is served is the caller's business.

pub mod framing;
pub mod idle;
pub mod interim;
pub mod quick;
mod stream;

use std::{
    any::Any,
    convert::Infallible,
    future::poll_fn,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use cluster::net::Listener;
use http::{Request, Response, Version};
use hyper::{body::Incoming, rt::Executor, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    time::Instant,
};
use tracing::{debug, warn};

use self::{
    framing::Flaw,
    idle::{OnClosed, Roster, Usher, Watched},
    interim::{Interim, Outbox},
    quick::Quick,
};
use crate::config::LimitsSection;

/// Pause after a failed accept: a process without file descriptors recovers only by time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// HTTP/2 receive window per stream and per connection: uploads at 10 Gbit/s over 1 ms, or at
/// 80 Mbit/s over 100 ms, while 256 streams cannot ask for more than the connection's.
const H2_STREAM_WINDOW: u32 = 1 << 20;
const H2_CONNECTION_WINDOW: u32 = 4 << 20;
/// Streams a client may reset before they were served (CVE-2023-44487) until it is cut off.
const H2_RESETS_MAX: usize = 64;
/// For how long a peer may take nothing of an answer. Where an object is shared out, a home tells who asks of pieces
/// far ahead, and sends few itself to who was late: a node takes these when it comes to them, and the socket has
/// room again only when a mebibyte of them has gone. One that is gone keeps two blocks of 64 KiB so long.
const PEER_WRITE_TIMEOUT: Duration = Duration::from_secs(180);

/// What a listener allows a connection.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// Connections at once.
    pub connections: usize,
    /// Largest request head, in bytes.
    pub head_bytes_max: usize,
    /// Longest time for a request head, or between requests.
    pub head_timeout: Duration,
    /// Longest time the other side may take nothing.
    pub write_timeout: Duration,
    /// Streams at once per HTTP/2 connection; 0: HTTP/1.1 only.
    pub h2_streams: u32,
    /// Whether requests remember how their fields were spelled, for what is forwarded.
    pub keeps_case: bool,
    /// Nothing is written before [`Connection::admit`] was called: who is not admitted does not get
    /// a byte, not even an error.
    pub gated: bool,
    /// Whether a connection that waits for its next request goes when a new one finds no place, and who
    /// is told.
    pub closes_idle: Option<OnClosed>,
}

impl ConnectionLimits {
    /// Limits of the public listener.
    pub fn public(limits: &LimitsSection) -> Self {
        Self {
            connections: limits.connections,
            head_bytes_max: usize::try_from(limits.head.0).unwrap_or(usize::MAX),
            head_timeout: limits.head_timeout.0,
            write_timeout: limits.write_timeout.0,
            h2_streams: limits.h2_streams,
            keeps_case: true,
            gated: false,
            closes_idle: None,
        }
    }

    /// Limits of the peer listener: a cluster's worth of connections, HTTP/1.1, only who proves to
    /// know the secret.
    pub fn peer() -> Self {
        Self {
            connections: 4096,
            head_bytes_max: 64 << 10,
            head_timeout: Duration::from_secs(120),
            write_timeout: PEER_WRITE_TIMEOUT,
            h2_streams: 0,
            keeps_case: false,
            gated: true,
            closes_idle: None,
        }
    }

    /// Limits of the admin listener.
    pub fn admin() -> Self {
        Self {
            connections: 128,
            head_bytes_max: 16 << 10,
            head_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            h2_streams: 16,
            keeps_case: false,
            gated: false,
            closes_idle: None,
        }
    }
}

/// One accepted connection, as the service sees it.
#[derive(Debug)]
pub struct Connection {
    /// Who opened it.
    pub from: SocketAddr,
    admitted: AtomicBool,
    requests: AtomicU64,
    /// Requests that hyper did not see when their answers were begun.
    beneath: AtomicU64,
    /// The first request with a flaw. Its connection is closed, so no other counts.
    flawed: OnceLock<(u64, Flaw)>,
    outbox: Arc<Outbox>,
    /// Answers that hyper has done with.
    ended: Arc<AtomicU64>,
    /// Whether it speaks another protocol from now on.
    tunnel: AtomicBool,
    /// Whether a request that hyper does not know of is owed an answer.
    owes_quickly: AtomicBool,
    owed: Notify,
    prepared: Mutex<Option<Prepared>>,
    /// How often its task has had its turn.
    turns: AtomicU64,
}

/// What tells requests beneath hyper from those of hyper, of which there are never so many.
const BENEATH: u64 = 1 << 63;

/// An answer for the service to find.
type Prepared = Box<dyn Any + Send>;

/// An answer on its way; dropped with its body, when hyper has all of it.
#[derive(Debug)]
pub struct Answering(Arc<AtomicU64>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

impl Connection {
    fn new(from: SocketAddr) -> Self {
        Self {
            from,
            admitted: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            beneath: AtomicU64::new(0),
            flawed: OnceLock::new(),
            outbox: Arc::default(),
            ended: Arc::default(),
            tunnel: AtomicBool::new(false),
            owes_quickly: AtomicBool::new(false),
            owed: Notify::new(),
            prepared: Mutex::default(),
            turns: AtomicU64::new(0),
        }
    }

    /// Leaves an answer for the request that hyper gets next.
    pub fn prepare(&self, answer: impl Any + Send) {
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(answer));
    }

    /// The answer that was left for the newest request.
    pub fn prepared<T: Any>(&self) -> Option<T> {
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        Some(*prepared.take()?.downcast().ok()?)
    }

    fn owes_quickly(&self, owes: bool) {
        self.owes_quickly.store(owes, Ordering::Release);
        if !owes {
            self.owed.notify_one();
        }
    }

    /// Returns when no quick answer is owed.
    async fn has_paid(&self) {
        while self.owes_quickly.load(Ordering::Acquire) {
            self.owed.notified().await;
        }
    }

    /// To be kept with the body of the answer to the newest request: until all answers are gone, quick
    /// ones would come between.
    pub fn answering(&self) -> Answering {
        Answering(self.ended.clone())
    }

    /// Whether every request has its answer, and more requests may come.
    fn is_answered(&self) -> bool {
        self.requests.load(Ordering::Acquire) == self.ended.load(Ordering::Acquire)
            && !self.tunnel.load(Ordering::Acquire)
            && !self.owes_quickly.load(Ordering::Acquire)
    }

    /// Whether hyper has had so many requests so far, none of which has made this a tunnel.
    fn has_had(&self, requests: u64) -> bool {
        self.requests.load(Ordering::Acquire) == requests && !self.tunnel.load(Ordering::Acquire)
    }

    /// Number of the present turn of the connection's task.
    fn turn(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Lets answers out on a gated listener.
    pub fn admit(&self) {
        self.admitted.store(true, Ordering::Release);
    }

    /// Called once per request, in order: what was wrong with its head that cannot be seen any more.
    pub fn next_flaw(&self) -> Option<Flaw> {
        let number = self.requests.fetch_add(1, Ordering::AcqRel) + 1;
        let &(flawed, flaw) = self.flawed.get()?;
        (flawed == number).then_some(flaw)
    }

    /// What comes from now on is no HTTP: nobody looks into it. To be called before the 101 is returned.
    pub fn becomes_tunnel(&self) {
        self.tunnel.store(true, Ordering::Release);
    }

    /// The way for interim responses to a request that is answered beneath hyper.
    pub fn interim_beneath(&self) -> Interim {
        // No number that another request gets, of hyper's or of these.
        let number = BENEATH | self.beneath.fetch_add(1, Ordering::Relaxed);
        Interim::new(self.outbox.clone(), number)
    }

    /// The way for interim responses to the newest request, if a request of this version has one.
    pub fn interim(&self, version: Version) -> Option<Interim> {
        let request = self.requests.load(Ordering::Acquire);
        (version == Version::HTTP_11).then(|| Interim::new(self.outbox.clone(), request))
    }
}

/// Accepts until `stop` turns true; then lets running exchanges finish for at most `drain`.
///
/// `service` makes the service of one connection.
pub async fn listen<S, B>(
    name: &'static str,
    listener: Box<dyn Listener>,
    limits: ConnectionLimits,
    mut stop: watch::Receiver<bool>,
    drain: Duration,
    quick: Option<Arc<dyn Quick>>,
    service: impl Fn(Arc<Connection>) -> S,
) where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let builder = builder(&limits, quick.is_some());
    let places = Arc::new(Semaphore::new(limits.connections));
    let roster = Roster::default();
    let mut usher = Usher::new(roster.clone());
    // Each connection has a sender; nobody sends.
    let (running, mut all_ended) = mpsc::channel::<Infallible>(1);
    loop {
        let room = async {
            match &limits.closes_idle {
                Some(closed) => usher.make_room(closed).await,
                None => std::future::pending().await,
            }
        };
        let place = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            place = places.clone().acquire_owned() => place.expect("the semaphore is never closed"),
            () = room => continue,
        };
        let (stream, from) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    debug!(listener = name, %error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = stopped(&mut stop) => break,
        };
        let connection = Arc::new(Connection::new(from));
        let (presence, line) = roster.enter(connection.clone(), Instant::now());
        let stream = Box::new(Watched::new(stream, presence.clone()));
        let session = quick.as_ref().map(|quick| quick.session(&connection));
        let stream = stream::Guarded::new(stream, &limits, connection.clone(), session);
        let served = builder
            .serve_connection_with_upgrades(TokioIo::new(stream), service(connection.clone()))
            .into_owned();
        // In the task it would be moved once more, and have room in it twice.
        let mut served = Box::pin(served);
        let running = running.clone();
        tokio::spawn(async move {
            let mut goes = pin!(presence.goes());
            let mut is_going = false;
            let ended = poll_fn(|context| {
                loop {
                    // Nobody else writes it.
                    let turn = connection.turn() + 1;
                    connection.turns.store(turn, Ordering::Relaxed);
                    if let Poll::Ready(ended) = served.as_mut().poll(context) {
                        return Poll::Ready(ended);
                    }
                    if is_going || goes.as_mut().poll(context).is_pending() {
                        return Poll::Pending;
                    }
                    is_going = true;
                    served.as_mut().graceful_shutdown();
                }
            })
            .await;
            if let Err(error) = ended {
                debug!(listener = name, %from, error = %error, "connection ended");
            }
            drop((line, place, running));
        });
    }
    drop((listener, running));
    roster.close();
    if tokio::time::timeout(drain, all_ended.recv()).await.is_err() {
        warn!(
            listener = name,
            "transfers were still running at the end of the drain time"
        );
    }
}

/// Returns when `stop` has turned true, or can never turn.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Runs the streams of HTTP/2 connections: an answer that is there at once needs no task.
#[derive(Clone)]
struct Streams;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let mut stream = Box::pin(stream);
        // Nobody has to wake it: if there is more to do, its task begins with another look.
        let mut context = Context::from_waker(Waker::noop());
        if stream.as_mut().poll(&mut context).is_pending() {
            tokio::spawn(stream);
        }
    }
}

fn builder(limits: &ConnectionLimits, quick: bool) -> auto::Builder<Streams> {
    let mut builder = auto::Builder::new(Streams);
    if limits.h2_streams == 0 {
        builder = builder.http1_only();
    }
    builder
        .http1()
        .timer(TokioTimer::new())
        // With quick answers, the stream keeps the time: it sees heads that hyper does not.
        .header_read_timeout((!quick).then_some(limits.head_timeout))
        .preserve_header_case(limits.keeps_case)
        // Not `pipeline_flush`: with it hyper buffers a body without bound while the client is slow.
        .max_buf_size(limits.head_bytes_max);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.h2_streams.max(1))
        .max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX))
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_pending_accept_reset_streams(H2_RESETS_MAX);
    builder
}

/// Why a connection is closed without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not admitted")]
pub struct NotAdmitted;

impl From<Infallible> for NotAdmitted {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
