//! A TCP line between two places: delay each way, limited rate, stalls, cuts and wrong bytes, changed at
//! will while connections run.
//!
//! The delay keeps order and throughput: bytes are stamped as they come in and leave when they are
//! due, as many in flight as the line holds.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};

/// Most bytes read at once.
const READ_BYTES: usize = 64 << 10;
/// Most reads in flight one way: 16 MiB, a 300 ms line at 400 Mbit/s.
const IN_FLIGHT_MAX: usize = 256;
/// How much a limited line takes in before it is its turn: connections share it fairly, and a new one
/// does not wait behind megabytes of others.
const QUEUE: Duration = Duration::from_millis(20);
/// A read of that size is of a body: no head is so long.
const BODY_READ_BYTES: usize = 16 << 10;

/// How the line is. The default is a perfect one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Delay one way.
    pub one_way: Duration,
    /// Bytes per second each way, of all connections together; unlimited when `None`.
    pub bytes_per_s: Option<u64>,
    /// One request in so many, which are small, waits for so long on its way.
    pub hiccup: Option<(u32, Duration)>,
    /// Some bytes of the bodies of answers become others.
    pub corrupted: bool,
    /// Nothing moves, nothing breaks.
    pub stalled: bool,
    /// Connections are broken, and new ones closed at once.
    pub cut: bool,
}

impl Conditions {
    /// A good line of this delay.
    pub fn delay(one_way: Duration) -> Self {
        Self {
            one_way,
            ..Self::default()
        }
    }
}

/// A listening proxy. Dropping it breaks its connections.
pub struct Proxy {
    address: SocketAddr,
    conditions: watch::Sender<Conditions>,
    line: Arc<Line>,
    accepting: JoinHandle<()>,
}

/// Tells the line's conditions from who connects; asked once for each connection.
pub type ByClient = Arc<dyn Fn(SocketAddr) -> Option<Duration> + Send + Sync>;

impl Proxy {
    /// A line to `to` (`host:port`), on a free loopback port.
    ///
    /// # Errors
    ///
    /// The system's error on binding a socket.
    pub async fn start(to: &str, conditions: Conditions) -> io::Result<Self> {
        Self::start_by(to, conditions, Arc::new(|_| None)).await
    }

    /// A line whose delay depends on who connects, where `by` knows it.
    ///
    /// # Errors
    ///
    /// The system's error on binding a socket.
    pub async fn start_by(to: &str, conditions: Conditions, by: ByClient) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (conditions, watched) = watch::channel(conditions);
        let line = Arc::<Line>::default();
        let accepting = tokio::spawn(accept(listener, to.to_owned(), watched, by, line.clone()));
        Ok(Self {
            address,
            conditions,
            line,
            accepting,
        })
    }

    /// Where to connect instead of the real place.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes of answers that have come over it so far.
    pub fn carried(&self) -> u64 {
        self.line.carried.load(Ordering::Relaxed)
    }

    /// Changes the line, for bytes that come in from now on.
    pub fn set(&self, conditions: Conditions) {
        self.conditions.send_replace(conditions);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    to: String,
    conditions: watch::Receiver<Conditions>,
    by: ByClient,
    line: Arc<Line>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = listener.accept().await;
        while connections.try_join_next().is_some() {}
        let Ok((client, from)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (to, conditions, by) = (to.clone(), conditions.clone(), by.clone());
        let line = line.clone();
        connections.spawn(async move {
            // Either side may break off; the other then notices.
            let _ = carry(client, from, &to, conditions, by, &line).await;
        });
    }
}

/// What the connections of a line share.
#[derive(Default)]
struct Line {
    requests: AtomicU32,
    /// Bytes of answers.
    carried: AtomicU64,
    /// When each way has sent what it took in.
    free: [Mutex<Option<Instant>>; 2],
}

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    There,
    Back,
}

impl Line {
    /// What a read becomes on its way, and when the line will have sent it.
    fn take(&self, way: Way, now: &Conditions, bytes: &mut BytesMut, from: Instant) -> Instant {
        let mut sent = from;
        if way == Way::Back {
            self.carried
                .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        if let Some(rate) = now.bytes_per_s {
            let free = &mut *self.free[way as usize]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let begins = free.map_or(from, |free| free.max(from));
            sent = begins + Duration::from_secs_f64(bytes.len() as f64 / rate.max(1) as f64);
            *free = Some(sent);
        }
        match now.hiccup {
            Some((every, length)) if way == Way::There => {
                let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
                if number.is_multiple_of(every) {
                    sent += length;
                }
            }
            _ => {}
        }
        if now.corrupted && way == Way::Back && bytes.len() >= BODY_READ_BYTES {
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
        }
        sent
    }
}

async fn carry(
    client: TcpStream,
    from: SocketAddr,
    to: &str,
    mut conditions: watch::Receiver<Conditions>,
    by: ByClient,
    line: &Line,
) -> io::Result<()> {
    let accepted = Instant::now();
    if conditions.borrow().cut {
        return Ok(());
    }
    // The lookup reads files of the process table.
    let own = tokio::task::spawn_blocking(move || by(from)).await?;
    let one_way = move |c: &Conditions| own.unwrap_or(c.one_way);
    let server = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((client_in, client_out), (server_in, server_out)) =
        (client.into_split(), server.into_split());
    // The kernel answered the client's connection at once; the far end would have, one round later.
    let shaken = accepted + one_way(&conditions.borrow()) * 2;
    let watched = conditions.clone();
    let cut = conditions.wait_for(|c| c.cut);
    tokio::select! {
        _ = cut => Ok(()),
        result = async {
            tokio::try_join!(
                pass(client_in, server_out, shaken, watched.clone(), one_way, (line, Way::There)),
                pass(server_in, client_out, shaken, watched.clone(), one_way, (line, Way::Back)),
            )
        } => result.map(|_| ()),
    }
}

/// One way of one connection.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shaken: Instant,
    mut conditions: watch::Receiver<Conditions>,
    one_way: impl Fn(&Conditions) -> Duration,
    (line, way): (&Line, Way),
) -> io::Result<()> {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Bytes)>(IN_FLIGHT_MAX);
    let read_conditions = conditions.clone();
    let reading = async move {
        let mut free = shaken;
        loop {
            let mut buffer = BytesMut::with_capacity(READ_BYTES);
            if from.read_buf(&mut buffer).await? == 0 {
                return io::Result::Ok(());
            }
            let now = *read_conditions.borrow();
            free = line.take(way, &now, &mut buffer, free.max(Instant::now()));
            let due = free + one_way(&now);
            if sender.send((due, buffer.freeze())).await.is_err() {
                return Ok(());
            }
            if now.bytes_per_s.is_some() {
                sleep_until(free - QUEUE).await;
            }
        }
    };
    let writing = async move {
        while let Some((due, bytes)) = receiver.recv().await {
            sleep_until(due).await;
            if conditions.wait_for(|c| !c.stalled).await.is_err() {
                break;
            }
            to.write_all(&bytes).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(reading, writing).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::Client,
        origin::{Answer, Origin},
        pattern::Pattern,
    };

    async fn line(conditions: Conditions) -> (Origin, Proxy, String) {
        let origin = Origin::start().await.unwrap();
        let pattern = Pattern::new(3, 4 << 20);
        origin.route("/big", Answer::pattern(&pattern));
        origin.route("/small", Answer::bytes("ok"));
        let proxy = Proxy::start(&origin.address().to_string(), conditions)
            .await
            .unwrap();
        let url = format!("http://{}", proxy.address());
        (origin, proxy, url)
    }

    #[tokio::test]
    async fn a_delayed_line_keeps_order_and_throughput() {
        let one_way = Duration::from_millis(100);
        let (_origin, _proxy, url) = line(Conditions::delay(one_way)).await;
        let client = Client::new();
        let begun = Instant::now();
        assert_eq!(
            client.get(&format!("{url}/small")).await.unwrap().body,
            "ok"
        );
        // One round for the connection, one for request and answer.
        assert!(begun.elapsed() >= one_way * 4);
        let begun = Instant::now();
        let big = client.digest(&format!("{url}/big"), &[]).await.unwrap();
        assert_eq!(big.hash, Pattern::new(3, 4 << 20).hash());
        assert!(begun.elapsed() >= one_way * 2);
        // 64 KiB pieces one after the other would take 64 delays.
        assert!(begun.elapsed() < one_way * 40);
    }

    #[tokio::test]
    async fn a_limited_line_takes_its_time() {
        let (_origin, _proxy, url) = line(Conditions {
            bytes_per_s: Some(8 << 20),
            ..Conditions::default()
        })
        .await;
        let begun = Instant::now();
        let big = Client::new()
            .digest(&format!("{url}/big"), &[])
            .await
            .unwrap();
        assert_eq!(big.bytes, 4 << 20);
        assert!(begun.elapsed() >= Duration::from_millis(490));
    }

    #[tokio::test]
    async fn connections_share_a_limited_line() {
        let (_origin, _proxy, url) = line(Conditions {
            bytes_per_s: Some(16 << 20),
            ..Conditions::default()
        })
        .await;
        let begun = Instant::now();
        let fetching = (0..3).map(|_| {
            let url = format!("{url}/big");
            async move { Client::new().digest(&url, &[]).await.unwrap().bytes }
        });
        let got = futures_util::future::join_all(fetching).await;
        assert_eq!(got, [4 << 20; 3]);
        assert!(begun.elapsed() >= Duration::from_millis(740));
    }

    #[tokio::test]
    async fn a_line_can_corrupt_bodies_and_hold_requests_up() {
        let (_origin, proxy, url) = line(Conditions {
            corrupted: true,
            ..Conditions::default()
        })
        .await;
        let client = Client::new();
        assert_eq!(
            client.get(&format!("{url}/small")).await.unwrap().body,
            "ok"
        );
        let big = client.digest(&format!("{url}/big"), &[]).await.unwrap();
        assert_eq!(big.bytes, 4 << 20);
        assert_ne!(big.hash, Pattern::new(3, 4 << 20).hash());
        let wait = Duration::from_millis(300);
        proxy.set(Conditions {
            hiccup: Some((3, wait)),
            ..Conditions::default()
        });
        let mut late = 0;
        for _ in 0..9 {
            let begun = Instant::now();
            client.get(&format!("{url}/small")).await.unwrap();
            late += u32::from(begun.elapsed() >= wait);
        }
        assert!(late >= 3, "{late}");
    }

    #[tokio::test]
    async fn a_line_can_be_stalled_and_cut() {
        let (_origin, proxy, url) = line(Conditions::default()).await;
        let client = Client::new();
        let small = format!("{url}/small");
        client.get(&small).await.unwrap();
        proxy.set(Conditions {
            stalled: true,
            ..Conditions::default()
        });
        let waiting = tokio::spawn({
            let (client, small) = (client.clone(), small.clone());
            async move { client.get(&small).await }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!waiting.is_finished());
        proxy.set(Conditions::default());
        assert_eq!(waiting.await.unwrap().unwrap().status, 200);
        proxy.set(Conditions {
            cut: true,
            ..Conditions::default()
        });
        assert!(client.get(&small).await.is_err());
        proxy.set(Conditions::default());
        assert_eq!(client.get(&small).await.unwrap().status, 200);
    }
}
