//! The network of a simulation behind [`cluster::net::Net`], and what drives it.
//!
//! turmoil gives every host a runtime, a clock and sockets of its own; messages take time, links
//! break and heal as the test says. chitchat draws on the system's randomness, so two runs of one
//! seed differ: scenarios assert properties, not traces.

use std::{
    fmt, io,
    net::SocketAddr,
    ops::RangeInclusive,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Result, anyhow, bail};
use async_trait::async_trait;
use cluster::{
    clock::Clock,
    net::{BoxStream, Datagrams, Listener, Net},
};
use tracing::{
    Event, Metadata,
    field::{Field, Visit},
    subscriber::DefaultGuard,
};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::filter_fn,
    fmt::{format::Writer, time::FormatTime},
    layer::{Context as LayerContext, SubscriberExt as _},
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};
use turmoil::net::{TcpListener, TcpStream, UdpSocket};

/// Simulated time of one step.
pub const TICK: Duration = Duration::from_millis(1);
/// 2026-01-01, when every simulation begins.
const EPOCH_S: u64 = 1_767_225_600;

/// The simulated network, as seen by the host that uses it.
#[derive(Clone, Copy, Debug, Default)]
pub struct SimNet;

#[async_trait]
impl Net for SimNet {
    async fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let listener = TcpListener::bind(at).await?;
        let local = listener.local_addr()?;
        Ok(Box::new(SimListener { listener, local }))
    }

    async fn connect(&self, to: &str) -> io::Result<BoxStream> {
        Ok(Box::new(TcpStream::connect(address_of(to)?).await?))
    }

    async fn datagrams(&self, at: SocketAddr) -> io::Result<Arc<dyn Datagrams>> {
        let socket = UdpSocket::bind(at).await?;
        let local = socket.local_addr()?;
        Ok(Arc::new(SimDatagrams { socket, local }))
    }

    async fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(vec![address_of(name)?])
    }
}

/// Host names of the simulation are known without asking anybody.
fn address_of(name: &str) -> io::Result<SocketAddr> {
    if let Ok(address) = name.parse() {
        return Ok(address);
    }
    let bad = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} is not host:port"),
        )
    };
    let (host, port) = name.rsplit_once(':').ok_or_else(bad)?;
    let port = port.parse().map_err(|_| bad())?;
    Ok((turmoil::lookup(host), port).into())
}

struct SimListener {
    listener: TcpListener,
    local: SocketAddr,
}

#[async_trait]
impl Listener for SimListener {
    async fn accept(&self) -> io::Result<(BoxStream, SocketAddr)> {
        let (stream, from) = self.listener.accept().await?;
        Ok((Box::new(stream), from))
    }

    fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

struct SimDatagrams {
    socket: UdpSocket,
    local: SocketAddr,
}

#[async_trait]
impl Datagrams for SimDatagrams {
    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        self.socket.send_to(datagram, to).await.map(|_| ())
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.socket.recv_from(buffer).await
    }

    fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

/// The wall clock of the host that calls this, in step with everybody's.
pub fn sim_clock() -> Clock {
    let passed = turmoil::sim_elapsed().unwrap_or_default();
    Clock::tokio(SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH_S) + passed)
}

/// Prints what is logged from now on as far as `SIM_LOG` asks for it.
fn log() {
    if let Some(printing) = printing() {
        // A simulation before this one may have begun it.
        let _ = Registry::default().with(printing).try_init();
    }
}

fn printing<S>() -> Option<impl Layer<S>>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let filter = EnvFilter::try_from_env("SIM_LOG").ok()?;
    let printing = tracing_subscriber::fmt::layer().with_ansi(false);
    Some(printing.with_timer(SimTime).with_filter(filter))
}

/// What nodes have logged with one target, and when, in simulated time. Clones are the same.
#[derive(Clone, Debug)]
pub struct Heard {
    target: &'static str,
    said: Arc<Mutex<Vec<(Duration, String)>>>,
}

impl Heard {
    /// Hears what simulations of this thread log with `target`, until the guard is dropped; what `SIM_LOG` asks
    /// for is printed all the same.
    pub fn begin(target: &'static str) -> (Self, DefaultGuard) {
        let heard = Self {
            target,
            said: Arc::default(),
        };
        // An answer knows what it was asked for only where that is logged.
        let hears = move |event: &Metadata<'_>| [target, "access"].contains(&event.target());
        let hearing = heard.clone().with_filter(filter_fn(hears));
        let guard = Registry::default().with(hearing).with(printing());
        (heard, guard.set_default())
    }

    /// What was said since then, as fields and their values.
    pub fn since(&self, then: Duration) -> Vec<String> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let later = said.iter().rev().take_while(|(at, _)| *at >= then);
        later.map(|(_, words)| words.clone()).collect()
    }
}

impl<S: tracing::Subscriber> Layer<S> for Heard {
    fn on_event(&self, event: &Event<'_>, _: LayerContext<'_, S>) {
        if event.metadata().target() == self.target {
            let mut words = Words(String::new());
            event.record(&mut words);
            let at = turmoil::sim_elapsed().unwrap_or_default();
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            said.push((at, words.0));
        }
    }
}

struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push_str(&format!("{field}={value:?};"));
    }
}

/// Stamps events with simulated seconds.
struct SimTime;

impl FormatTime for SimTime {
    fn format_time(&self, out: &mut Writer<'_>) -> fmt::Result {
        let passed = turmoil::sim_elapsed().unwrap_or_default();
        write!(out, "{:.3}", passed.as_secs_f64())
    }
}

/// A simulation, its seed, and the pace it is driven at.
pub struct Simulation {
    /// turmoil's own handle, for partitions and crashes.
    pub sim: turmoil::Sim<'static>,
    /// What its randomness follows from.
    pub seed: u64,
    /// Real time that a step takes at least. Disks are real: without a pace, simulated deadlines
    /// would pass while a real thread reads.
    pub pace: Duration,
}

impl Simulation {
    /// A simulation with messages that take 1 to 100 ms. The seed is the variable `SIM_SEED`, else
    /// random, and printed either way. Where `SIM_LOG` says what of it, as `RUST_LOG` does elsewhere, what nodes
    /// log is printed too.
    pub fn new() -> Self {
        log();
        let given = std::env::var_os("SIM_SEED").and_then(|v| v.to_str()?.parse().ok());
        let seed = given.unwrap_or_else(rand::random);
        #[expect(clippy::print_stdout, reason = "a failing test must tell its seed")]
        {
            println!("SIM_SEED={seed}");
        }
        let latency = Duration::from_millis(1)..=Duration::from_millis(100);
        Self::of(seed, TICK, latency)
    }

    /// One of this seed, with steps of that much simulated time (no message takes less than one) and
    /// messages that take so long.
    pub fn of(seed: u64, tick: Duration, latency: RangeInclusive<Duration>) -> Self {
        let sim = turmoil::Builder::new()
            .rng_seed(seed)
            .enable_random_order()
            .tick_duration(tick)
            .min_message_latency(*latency.start())
            .max_message_latency(*latency.end())
            .simulation_duration(Duration::from_secs(24 * 3600))
            .tcp_capacity(64 * 1024)
            .udp_capacity(64 * 1024)
            .build();
        Self {
            sim,
            seed,
            pace: Duration::ZERO,
        }
    }

    /// Lets that much simulated time pass.
    ///
    /// # Errors
    ///
    /// A host's software failed.
    pub fn pass(&mut self, time: Duration) -> Result<()> {
        self.until("", time, || false).or_else(|error| {
            if error.to_string().starts_with(NOT_YET) {
                Ok(())
            } else {
                Err(error)
            }
        })
    }

    /// Runs until `holds`.
    ///
    /// # Errors
    ///
    /// It does not hold within `limit` of simulated time, or a host's software failed.
    pub fn until(
        &mut self,
        what: &str,
        limit: Duration,
        mut holds: impl FnMut() -> bool,
    ) -> Result<()> {
        let end = self.sim.elapsed() + limit;
        while !holds() {
            if self.sim.elapsed() >= end {
                bail!("{NOT_YET} {limit:?} (seed {}): {what}", self.seed);
            }
            self.step()?;
        }
        Ok(())
    }

    /// One tick; whether every client of the simulation is done.
    ///
    /// # Errors
    ///
    /// A host's software failed.
    pub fn step(&mut self) -> Result<bool> {
        let begun = tokio::time::Instant::now();
        let done = self.sim.step();
        if let Some(rest) = self.pace.checked_sub(begun.elapsed()) {
            #[expect(
                clippy::disallowed_methods,
                reason = "this thread drives the simulation; no task of it runs meanwhile"
            )]
            std::thread::sleep(rest);
        }
        done.map_err(|e| anyhow!("seed {}: {e}", self.seed))
    }
}

const NOT_YET: &str = "not within";

impl Default for Simulation {
    fn default() -> Self {
        Self::new()
    }
}
