//! chitchat's socket, which is ours: whatever it says goes out sealed (see [`crate::seal`]), and only what opens
//! comes in, from each source no more than it may send.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use chitchat::{
    ChitchatMessage, Deserializable, Serializable,
    transport::{Socket, Transport},
};
use tokio::time::{Instant, sleep};
use tracing::{debug, error, warn};

use super::{GossipStats, LOGGED_MAX};
use crate::{
    clock::Clock,
    net::Datagrams,
    seal::{DATAGRAM_BYTES_MAX, Opener, Rejected, Sealer},
    secret::ClusterSecret,
};

/// Pause after the socket failed, so that a broken one does not keep a processor busy.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);

/// chitchat's socket: messages go out sealed, and only what opens comes in.
///
/// An error from here would end gossip for good, or make chitchat skip the rest of a round; so no
/// failure, of one peer or of the system, is ever handed up. Whatever fails is counted.
pub(super) struct SealedSocket {
    datagrams: Arc<dyn Datagrams>,
    sealer: Sealer,
    opener: Opener,
    clock: Clock,
    rates: Rates,
    /// Sources that were logged for sending what does not open.
    logged: HashSet<SocketAddr>,
    /// Whether the last attempt to receive failed, and that was logged.
    deaf: bool,
    stats: Arc<GossipStats>,
    /// One byte longer than any datagram of ours, so that longer ones are recognised.
    buffer: Box<[u8; DATAGRAM_BYTES_MAX + 1]>,
}

#[async_trait]
impl Socket for SealedSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let sealed = self
            .sealer
            .seal(&message.serialize_to_vec(), self.clock.unix_ms());
        let datagrams = sealed.unwrap_or_else(|reason| {
            error!(%reason, "gossip message not sent: too many nodes or keys");
            add(&self.stats.send_failures, 1);
            Vec::new()
        });
        for datagram in datagrams {
            match self.datagrams.send_to(&datagram, to).await {
                Ok(()) => {
                    add(&self.stats.datagrams_sent, 1);
                    add(&self.stats.bytes_sent, datagram.len() as u64);
                }
                Err(reason) => {
                    debug!(%to, %reason, "gossip datagram not sent");
                    add(&self.stats.send_failures, 1);
                    break;
                }
            }
        }
        Ok(())
    }

    /// May be cancelled: nothing is lost but a pause.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            match self.datagrams.recv_from(&mut self.buffer[..]).await {
                Ok((len, from)) => {
                    self.deaf = false;
                    if let Some(message) = self.accept(len, from) {
                        return Ok((from, message));
                    }
                }
                Err(reason) => {
                    if !std::mem::replace(&mut self.deaf, true) {
                        warn!(%reason, "cannot receive gossip; will go on trying");
                    }
                    sleep(RECEIVE_PAUSE).await;
                }
            }
        }
    }
}

impl SealedSocket {
    /// Over `datagrams`, for the cluster of this secret and name.
    pub(super) fn new(
        datagrams: Arc<dyn Datagrams>,
        secret: &ClusterSecret,
        cluster_name: &str,
        clock: Clock,
        stats: Arc<GossipStats>,
    ) -> Self {
        Self {
            datagrams,
            sealer: Sealer::new(secret, cluster_name),
            opener: Opener::new(secret, cluster_name),
            clock,
            rates: Rates::new(Instant::now()),
            logged: HashSet::new(),
            deaf: false,
            stats,
            buffer: Box::new([0; DATAGRAM_BYTES_MAX + 1]),
        }
    }

    /// The message that the datagram in the buffer completes, if any.
    fn accept(&mut self, len: usize, from: SocketAddr) -> Option<ChitchatMessage> {
        add(&self.stats.datagrams_received, 1);
        add(&self.stats.bytes_received, len as u64);
        if !self.rates.allow(from.ip(), Instant::now()) {
            add(&self.stats.datagrams_rejected, 1);
            return None;
        }
        let opened = self
            .opener
            .open(from, &self.buffer[..len], self.clock.unix_ms());
        self.stats
            .messages_expired
            .store(self.opener.expired(), Ordering::Relaxed);
        let rejected = match opened {
            Ok(None) => return None,
            Ok(Some(bytes)) => match ChitchatMessage::deserialize(&mut &bytes[..]) {
                Ok(message) => return Some(message),
                Err(_) => Rejected::Malformed,
            },
            Err(rejected) => rejected,
        };
        add(&self.stats.datagrams_rejected, 1);
        // The network repeats datagrams now and then; that says nothing of their sender.
        let worth_a_word = !matches!(rejected, Rejected::Replayed | Rejected::Full);
        if worth_a_word && self.logged.len() < LOGGED_MAX && self.logged.insert(from) {
            warn!(source = %from, reason = %rejected, "gossip refused; said once per source");
            if self.logged.len() == LOGGED_MAX {
                warn!("gossip refused from many sources; no more of them are logged");
            }
        }
        None
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// Hands chitchat the socket that is bound already.
pub(super) struct OpenSocket(Mutex<Option<SealedSocket>>);

impl OpenSocket {
    pub(super) fn new(socket: SealedSocket) -> Self {
        Self(Mutex::new(Some(socket)))
    }
}

#[async_trait]
impl Transport for OpenSocket {
    async fn open(&self, _: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match socket {
            Some(socket) => Ok(Box::new(socket)),
            None => anyhow::bail!("the gossip socket is in use already"),
        }
    }
}

/// How much gossip a source may send, checked before any cryptography: opening a datagram takes
/// microseconds, so nobody can make this node spend more than a few percent of a processor on it.
struct Rates {
    sources: HashMap<IpAddr, Allowance>,
    /// Shared by all sources beyond [`Self::SOURCES_MAX`].
    others: Allowance,
    tidied: Instant,
}

#[derive(Clone, Copy)]
struct Allowance {
    datagrams: f64,
    at: Instant,
}

impl Rates {
    /// A hundred nodes behind one address, at 200 ms.
    const PER_SECOND: f64 = 5_000.0;
    const BURST: f64 = 10_000.0;
    const SOURCES_MAX: usize = 1024;

    fn new(now: Instant) -> Self {
        Self {
            sources: HashMap::new(),
            others: Allowance::full(now),
            tidied: now,
        }
    }

    fn allow(&mut self, source: IpAddr, now: Instant) -> bool {
        let full = self.sources.len() >= Self::SOURCES_MAX && !self.sources.contains_key(&source);
        if full && now.duration_since(self.tidied) >= Duration::from_secs(1) {
            self.tidied = now;
            self.sources
                .retain(|_, allowance| allowance.refill(now) < Self::BURST);
        }
        let room = !full || self.sources.len() < Self::SOURCES_MAX;
        let allowance = if room {
            self.sources
                .entry(source)
                .or_insert_with(|| Allowance::full(now))
        } else {
            &mut self.others
        };
        if allowance.refill(now) < 1.0 {
            return false;
        }
        allowance.datagrams -= 1.0;
        true
    }
}

impl Allowance {
    fn full(now: Instant) -> Self {
        Self {
            datagrams: Rates::BURST,
            at: now,
        }
    }

    fn refill(&mut self, now: Instant) -> f64 {
        let earned = now.duration_since(self.at).as_secs_f64() * Rates::PER_SECOND;
        self.datagrams = (self.datagrams + earned).min(Rates::BURST);
        self.at = now;
        self.datagrams
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_source_has_its_allowance_and_many_sources_share_one() {
        let start = Instant::now();
        let mut rates = Rates::new(start);
        let source = |n: u32| IpAddr::from(Ipv4Addr::from(n));
        let allowed =
            |rates: &mut Rates, n, now| (0..20_000).filter(|_| rates.allow(source(n), now)).count();
        assert_eq!(allowed(&mut rates, 1, start), 10_000);
        assert_eq!(
            allowed(&mut rates, 1, start + Duration::from_secs(1)),
            5_000
        );
        assert_eq!(allowed(&mut rates, 2, start), 10_000);
        for n in 10..3_000 {
            rates.allow(source(n), start);
        }
        assert_eq!(rates.sources.len(), Rates::SOURCES_MAX);
        assert!(allowed(&mut rates, 5_000, start) < 10_000);
        assert!(rates.allow(source(5_000), start + Duration::from_secs(9)));
        assert_eq!(rates.sources.len(), 1);
    }
}
