use std::io::Write;

use async_trait::async_trait;
use chitchat::{ChitchatMessage, Deserializable, Serializable};

use super::*;
use crate::{
    net::{BoxStream, Datagrams, Listener, SystemNet},
    node::{DigestVersion, Role},
    seal::Sealer,
};

const SECRET: &str = "0123456789abcdef";
const INTERVAL: Duration = Duration::from_millis(50);
/// The first message of a round among that many nodes, as chitchat writes it.
fn syn(nodes: usize, name: impl Fn(usize) -> String) -> ChitchatMessage {
    // Its magic number, protocol 0, SYN.
    let mut bytes = 45_139_u16.to_le_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(u16::try_from(nodes).unwrap().to_le_bytes());
    let mut random = 7_u64;
    for node in 0..nodes {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let name = name(node);
        bytes.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
        bytes.extend(name.as_bytes());
        // Generation, address, heartbeat, last collection, newest version.
        bytes.extend((1_790_000_000_000 + (random >> 34)).to_le_bytes());
        bytes.push(4);
        bytes.extend(&random.to_le_bytes()[4..8]);
        bytes.extend(7946_u16.to_le_bytes());
        bytes.extend((1_000_000 + (random >> 50)).to_le_bytes());
        bytes.extend((random >> 56).to_le_bytes());
        bytes.extend((random >> 48).to_le_bytes());
    }
    bytes.extend([4, 0]);
    bytes.extend(b"test");
    let mut rest = &bytes[..];
    let message = ChitchatMessage::deserialize(&mut rest).unwrap();
    assert!(rest.is_empty() && message.serialize_to_vec() == bytes);
    message
}

#[test]
fn as_many_nodes_as_said_fit_into_a_message_and_it_is_small_on_the_wire() {
    let sealer = Sealer::new(
        &ClusterSecret::from_bytes(SECRET.as_bytes()).unwrap(),
        "test",
    );
    let name = |node| format!("edge-{node:04}.frankfurt");
    for nodes in [100, NODES_MAX] {
        let message = syn(nodes, name).serialize_to_vec();
        let datagrams = sealer.seal(&message, 1_790_000_000_000).unwrap();
        let bytes: usize = datagrams.iter().map(Vec::len).sum();
        println!(
            "{nodes} nodes: {} bytes, {bytes} on the wire",
            message.len()
        );
        assert!(bytes < 25 * nodes, "{nodes}: {bytes}");
    }
    let longest = |node| format!("{node:064}");
    assert!(
        sealer
            .seal(&syn(620, longest).serialize_to_vec(), 1)
            .is_ok()
    );
    assert!(
        sealer
            .seal(&syn(2_000, name).serialize_to_vec(), 1)
            .is_err()
    );
}

/// For what takes a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Setup {
    id: &'static str,
    secret: &'static str,
    cluster: &'static str,
    generation: u64,
    listen: &'static str,
    seeds: Vec<String>,
    net: Arc<dyn Net>,
}

fn setup(id: &'static str, seeds: &[&Membership]) -> Setup {
    Setup {
        id,
        secret: SECRET,
        cluster: "test",
        generation: 1,
        listen: "127.0.0.1:0",
        seeds: seeds.iter().map(|m| m.address().to_string()).collect(),
        net: Arc::new(SystemNet),
    }
}

impl Setup {
    fn config(&self) -> MembershipConfig {
        let mut me = NodeInfo::new(self.id.parse().unwrap(), Role::Edge);
        me.peer = format!("{}:7947", self.id);
        me.phase = Phase::Ready;
        MembershipConfig {
            cluster_name: self.cluster.to_owned(),
            me,
            generation: self.generation,
            listen: self.listen.parse().unwrap(),
            advertise: String::new(),
            seeds: self.seeds.clone(),
            secret: ClusterSecret::from_bytes(self.secret.as_bytes()).unwrap(),
            interval: INTERVAL,
        }
    }

    async fn join(self) -> Membership {
        let config = self.config();
        Membership::join(config, self.net, Clock::system())
            .await
            .unwrap()
    }
}

async fn until(member: &Membership, what: &str, holds: impl Fn(&ClusterView) -> bool) {
    let mut view = member.view();
    let waited = timeout(PATIENCE, view.wait_for(|view| holds(view))).await;
    assert!(
        waited.is_ok(),
        "never saw: {what}; {:?}",
        names(&member.view().borrow())
    );
}

fn names(view: &ClusterView) -> Vec<String> {
    view.nodes().map(|node| node.id.to_string()).collect()
}

async fn sees(member: &Membership, expected: &[&str]) {
    until(member, &format!("{expected:?}"), |view| {
        names(view) == expected
    })
    .await;
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !holds() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}

fn get<'a>(view: &'a ClusterView, id: &str) -> Option<&'a Arc<NodeInfo>> {
    view.node(&id.parse().unwrap())
}

fn rejected(member: &Membership) -> u64 {
    member.stats().datagrams_rejected.load(Ordering::Relaxed)
}

#[tokio::test]
async fn three_nodes_find_each_other_through_one_seed_and_hear_of_changes() {
    let a = setup("a", &[]).join().await;
    assert_eq!(names(&a.view().borrow()), ["a"], "at once");
    let b = setup("b", &[&a]).join().await;
    let c = setup("c", &[&a, &b]).join().await;
    for member in [&a, &b, &c] {
        sees(member, &["a", "b", "c"]).await;
    }
    let b_at = b.address().to_string();
    assert_eq!(get(&c.view().borrow(), "b").unwrap().gossip, b_at);

    b.update(|me| {
        me.load.in_flight = 7;
        me.digest = Some(DigestVersion { epoch: 1, seq: 2 });
        me.id = "z".parse().unwrap();
    });
    let changed = |view: &ClusterView| {
        get(view, "b").is_some_and(|b| b.load.in_flight == 7 && b.digest.is_some())
    };
    until(&b, "its own change", changed).await;
    until(&c, "b's load and digest", changed).await;
    b.update(|me| me.digest = None);
    until(&a, "b's digest gone", |view| {
        get(view, "b").is_some_and(|b| b.digest.is_none() && b.load.in_flight == 7)
    })
    .await;
    let stats = a.stats();
    assert!(stats.datagrams_sent.load(Ordering::Relaxed) > 0);
    assert!(stats.bytes_received.load(Ordering::Relaxed) > 0);
}

#[tokio::test]
async fn leaving_is_heard_and_dying_is_noticed() {
    let a = setup("a", &[]).join().await;
    let b = setup("b", &[&a]).join().await;
    let c = setup("c", &[&a]).join().await;
    sees(&a, &["a", "b", "c"]).await;

    let mut view = a.view();
    let watcher = tokio::spawn(async move {
        let drains =
            |view: &Arc<ClusterView>| get(view, "b").is_some_and(|b| b.phase == Phase::Draining);
        view.wait_for(drains).await.unwrap();
    });
    b.leave().await;
    timeout(PATIENCE, watcher).await.unwrap().unwrap();
    drop(c);
    sees(&a, &["a"]).await;
    let gone: Vec<_> = a
        .departed()
        .into_iter()
        .map(|n| (n.id.to_string(), n.phase))
        .collect();
    assert_eq!(
        gone,
        [("b".into(), Phase::Draining), ("c".into(), Phase::Ready)]
    );
}

#[tokio::test]
async fn a_restarted_node_shows_once_and_as_it_is_now() {
    let a = setup("a", &[]).join().await;
    let b = setup("b", &[&a]).join().await;
    sees(&a, &["a", "b"]).await;
    drop(b);
    let mut again = setup("b", &[&a]);
    again.generation = 2;
    let b = again.join().await;
    b.update(|me| me.region = "new".into());
    until(&a, "b's second life", |view| {
        get(view, "b").is_some_and(|b| b.region == "new")
    })
    .await;
    sees(&b, &["a", "b"]).await;
    assert!(a.departed().is_empty());
}

/// What a thread logs while it lives.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn capture(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || log.clone())
            .with_ansi(false)
            .with_env_filter("info,chitchat=off")
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn lines_with(&self, text: &str) -> usize {
        let bytes = self.0.lock().unwrap().clone();
        let log = String::from_utf8(bytes).unwrap();
        log.lines().filter(|line| line.contains(text)).count()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn who_does_not_know_the_secret_stays_outside_and_is_logged_once() {
    let log = Log::default();
    let _guard = log.capture();
    let a = setup("a", &[]).join().await;
    let _b = setup("b", &[&a]).join().await;
    let mut intruder = setup("intruder", &[&a]);
    intruder.secret = "guessed by somebody";
    let intruder = intruder.join().await;
    let mut neighbour = setup("neighbour", &[&a]);
    neighbour.cluster = "another";
    let neighbour = neighbour.join().await;
    sees(&a, &["a", "b"]).await;
    eventually("many refusals", || rejected(&a) >= 6).await;
    assert_eq!(names(&a.view().borrow()), ["a", "b"]);
    assert_eq!(names(&intruder.view().borrow()), ["intruder"]);
    assert_eq!(names(&neighbour.view().borrow()), ["neighbour"]);
    for stranger in [&intruder, &neighbour] {
        let source = format!("source={}", stranger.address());
        assert_eq!(log.lines_with(&source), 1, "{source}");
    }
}

#[tokio::test]
async fn two_nodes_of_one_name_are_logged_once() {
    let log = Log::default();
    let _guard = log.capture();
    let a = setup("a", &[]).join().await;
    let _first = setup("twin", &[&a]).join().await;
    let mut second = setup("twin", &[&a]);
    second.generation = 2;
    let _second = second.join().await;
    let text = "two live nodes have the same id";
    // Said by a and by both twins.
    eventually("three complaints", || log.lines_with(text) >= 3).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(log.lines_with(text), 3);
}

#[tokio::test]
async fn garbage_does_no_harm() {
    let a = setup("a", &[]).join().await;
    let hostile = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for len in 0..1400usize {
        let garbage = vec![u8::try_from(len % 251).unwrap(); len];
        hostile.send_to(&garbage, a.address()).await.unwrap();
    }
    eventually("garbage refused", || rejected(&a) > 100).await;
    let b = setup("b", &[&a]).join().await;
    sees(&a, &["a", "b"]).await;
    sees(&b, &["a", "b"]).await;
}

/// Loses, repeats and overtakes.
#[derive(Debug)]
struct BadNet;

struct BadDatagrams {
    inner: Arc<dyn Datagrams>,
    held: Mutex<Option<(Vec<u8>, SocketAddr)>>,
    sent: AtomicU64,
}

#[async_trait]
impl Datagrams for BadDatagrams {
    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        let n = self.sent.fetch_add(1, Ordering::Relaxed);
        match n % 20 {
            3 => return Err(io::ErrorKind::NetworkUnreachable.into()),
            7 => return Ok(()),
            11 => {
                *self.held.lock().unwrap() = Some((datagram.to_vec(), to));
                return Ok(());
            }
            15 => self.inner.send_to(datagram, to).await?,
            _ => {}
        }
        self.inner.send_to(datagram, to).await?;
        let held = self.held.lock().unwrap().take();
        if let Some((datagram, to)) = held {
            self.inner.send_to(&datagram, to).await?;
        }
        Ok(())
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.inner.recv_from(buffer).await
    }

    fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr()
    }
}

#[async_trait]
impl Net for BadNet {
    async fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Listener>> {
        SystemNet.listen(at).await
    }

    async fn connect(&self, to: &str) -> io::Result<BoxStream> {
        SystemNet.connect(to).await
    }

    async fn datagrams(&self, at: SocketAddr) -> io::Result<Arc<dyn Datagrams>> {
        Ok(Arc::new(BadDatagrams {
            inner: SystemNet.datagrams(at).await?,
            held: Mutex::default(),
            sent: AtomicU64::new(0),
        }))
    }

    async fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        SystemNet.resolve(name).await
    }
}

#[tokio::test]
async fn large_descriptions_arrive_over_a_bad_path() {
    let bad = |id, seeds: &[&Membership]| {
        let mut setup = setup(id, seeds);
        setup.net = Arc::new(BadNet);
        setup
    };
    let a = bad("a", &[]).join().await;
    let b = bad("b", &[&a]).join().await;
    let c = bad("c", &[&a]).join().await;
    // A kilobyte that compresses to half at best, so that descriptions take several datagrams.
    let noise = |seed: &str| -> String {
        let block = |i: u8| blake3::hash(&[seed.as_bytes(), &[i]].concat()).to_hex();
        (0..16).map(|i| block(i).to_string()).collect()
    };
    for (member, seed) in [(&a, "a"), (&b, "b"), (&c, "c")] {
        member.update(|me| {
            (me.region, me.http) = (noise(seed), noise("x"));
            for i in 0..32 {
                let peer = format!("{}-{i}", blake3::hash(seed.as_bytes()));
                me.round_trips_ms
                    .insert(peer[48..].parse().unwrap(), f64::from(i));
            }
        });
    }
    for member in [&a, &b, &c] {
        until(member, "everybody's long texts", |view| {
            ["a", "b", "c"].iter().all(|id| {
                get(view, id).is_some_and(|n| n.region == noise(id) && n.round_trips_ms.len() == 32)
            })
        })
        .await;
    }
    a.update(|me| me.region = "x".repeat(VALUE_BYTES_MAX + 1));
    a.update(|me| me.purged.seq = 9);
    until(&b, "what fits, without what does not", |view| {
        get(view, "a").is_some_and(|a| a.purged.seq == 9 && a.region.is_empty())
    })
    .await;
}

#[tokio::test]
async fn a_node_that_cannot_be_read_is_left_out_and_named() {
    let log = Log::default();
    let _guard = log.capture();
    let a = setup("a", &[]).join().await;
    let b = setup("b", &[&a]).join().await;
    sees(&a, &["a", "b"]).await;
    let chitchat = b.gossip.0.chitchat();
    chitchat.lock().await.self_node_state().set("load", "much");
    sees(&a, &["a"]).await;
    assert_eq!(a.stats().unreadable_nodes.load(Ordering::Relaxed), 1);
    chitchat.lock().await.self_node_state().set("purge", "0,1");
    sleep(4 * INTERVAL).await;
    assert_eq!(log.lines_with("node left out of the view"), 1);
    chitchat.lock().await.self_node_state().set("load", "1,1");
    sees(&a, &["a", "b"]).await;
    assert_eq!(a.stats().unreadable_nodes.load(Ordering::Relaxed), 0);
}

/// A net whose names appear later.
#[derive(Debug, Default)]
struct LateNames(Mutex<Option<SocketAddr>>);

#[async_trait]
impl Net for LateNames {
    async fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Listener>> {
        SystemNet.listen(at).await
    }

    async fn connect(&self, to: &str) -> io::Result<BoxStream> {
        SystemNet.connect(to).await
    }

    async fn datagrams(&self, at: SocketAddr) -> io::Result<Arc<dyn Datagrams>> {
        SystemNet.datagrams(at).await
    }

    async fn resolve(&self, _: &str) -> io::Result<Vec<SocketAddr>> {
        let address = *self.0.lock().unwrap();
        address
            .map(|a| vec![a])
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

#[tokio::test]
async fn seeds_may_come_later_and_be_this_node_itself() {
    let names = Arc::new(LateNames::default());
    let mut early = setup("early", &[]);
    early.seeds = vec!["seed:7946".into()];
    early.net = Arc::<LateNames>::clone(&names);
    let early = early.join().await;
    sleep(4 * INTERVAL).await;
    let mut late = setup("late", &[]);
    late.seeds = vec!["seed:7946".into()];
    late.net = Arc::<LateNames>::clone(&names);
    let late = late.join().await;
    *names.0.lock().unwrap() = Some(late.address());
    sees(&early, &["early", "late"]).await;
    sees(&late, &["early", "late"]).await;
}

#[tokio::test]
async fn what_stands_in_the_way_is_named() {
    let join = async |change: &dyn Fn(&mut MembershipConfig)| {
        let setup = setup("a", &[]);
        let mut config = setup.config();
        change(&mut config);
        let net = Arc::new(LateNames::default());
        Membership::join(config, net, Clock::system()).await
    };
    let taken = setup("taken", &[]).join().await;
    let at = taken.address();
    for (change, complaint) in [
        (
            &(|c: &mut MembershipConfig| c.advertise = "nowhere:7946".into())
                as &dyn Fn(&mut MembershipConfig),
            "\"nowhere:7946\" does not resolve".to_owned(),
        ),
        (
            &|c| c.listen = at,
            format!("cannot listen for gossip at {at}"),
        ),
        (&|c| c.interval = Duration::ZERO, "interval of 0ns".into()),
        (
            &|c| c.me.region = "x".repeat(1025),
            "\"region\" is longer".into(),
        ),
        (
            &|c| c.seeds = vec!["a:1".into(); 65],
            "65 gossip seeds".into(),
        ),
    ] {
        let message = join(change).await.unwrap_err().to_string();
        assert!(message.contains(&complaint), "{message}");
    }
}

#[tokio::test]
async fn advertised_addresses_are_what_others_can_reach() {
    let names = LateNames(Mutex::new(Some("10.1.2.3:0".parse().unwrap())));
    let local: SocketAddr = "0.0.0.0:7946".parse().unwrap();
    let address = advertised("me:0", local, &names).await.unwrap();
    assert_eq!(address.to_string(), "10.1.2.3:7946");
    let loopback: SocketAddr = "127.0.0.1:7946".parse().unwrap();
    assert_eq!(advertised("", loopback, &names).await.unwrap(), loopback);
    match advertised("", local, &names).await {
        Ok(address) => assert!(!address.ip().is_unspecified() && address.port() == 7946),
        Err(error) => assert!(matches!(error, MembershipError::NoOutwardAddress(_))),
    }
}

#[test]
fn that_the_cluster_is_too_large_is_told_once() {
    let mut told = false;
    for (nodes, is_outgrown, is_news) in [
        (1, false, false),
        (NODES_MAX, false, false),
        (NODES_MAX + 1, true, true),
        (NODES_MAX + 2, true, false),
        (NODES_MAX, true, false),
        (NODES_MAX + 1, true, false),
        (NODES_MAX / 10 * 9, false, false),
        (NODES_MAX + 1, true, true),
    ] {
        let said = outgrown(nodes, told);
        assert_eq!(said, (is_outgrown, is_news), "{nodes}");
        told = said.0;
    }
}
