//! Gossip among simulated hosts: what takes minutes passes in moments, and links break on purpose.
//! chitchat draws its own random numbers, so runs differ; what is asserted holds for all of them.

#![expect(clippy::unwrap_used, reason = "a test, its helpers included")]

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, UNIX_EPOCH},
};

use async_trait::async_trait;
use cluster::{
    clock::Clock,
    membership::{Membership, MembershipConfig},
    net::{BoxStream, Datagrams, Listener, Net},
    node::{NodeInfo, Role},
    secret::ClusterSecret,
};
use turmoil::net::UdpSocket;

const PORT: u16 = 7946;
const INTERVAL: Duration = Duration::from_millis(200);

/// Datagrams and names of the simulation; nothing here needs streams.
#[derive(Debug)]
struct SimulatedNet;

struct SimulatedDatagrams(UdpSocket, SocketAddr);

#[async_trait]
impl Datagrams for SimulatedDatagrams {
    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        self.0.send_to(datagram, to).await.map(|_| ())
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.0.recv_from(buffer).await
    }

    fn local_addr(&self) -> SocketAddr {
        self.1
    }
}

#[async_trait]
impl Net for SimulatedNet {
    async fn listen(&self, _: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn connect(&self, _: &str) -> io::Result<BoxStream> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn datagrams(&self, at: SocketAddr) -> io::Result<Arc<dyn Datagrams>> {
        let socket = UdpSocket::bind(at).await?;
        let local = socket.local_addr()?;
        Ok(Arc::new(SimulatedDatagrams(socket, local)))
    }

    async fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        let (host, port) = name.split_once(':').expect("host:port");
        let port = port.parse().expect("a port");
        Ok(vec![(turmoil::lookup(host), port).into()])
    }
}

async fn join(id: &str) -> Membership {
    // Hosts are born at different times, and their clocks must agree all the same.
    let boot = turmoil::sim_elapsed().expect("inside the simulation");
    let mut me = NodeInfo::new(id.parse().unwrap(), Role::Edge);
    me.peer = format!("{id}:7947");
    let config = MembershipConfig {
        cluster_name: "simulated".into(),
        me,
        generation: u64::try_from(boot.as_millis()).unwrap(),
        listen: ([0, 0, 0, 0], PORT).into(),
        advertise: format!("{id}:{PORT}"),
        seeds: vec![format!("a:{PORT}")],
        secret: ClusterSecret::from_bytes(b"0123456789abcdef").unwrap(),
        interval: INTERVAL,
    };
    let clock = Clock::tokio(UNIX_EPOCH + Duration::from_secs(1_700_000_000) + boot);
    Membership::join(config, Arc::new(SimulatedNet), clock)
        .await
        .unwrap()
}

/// What each host sees, for the world outside of the simulation.
type Seen = Arc<Mutex<Vec<String>>>;

fn host(sim: &mut turmoil::Sim<'_>, id: &'static str) -> Seen {
    let seen = Seen::default();
    let told = Arc::clone(&seen);
    sim.host(id, move || {
        let told = Arc::clone(&told);
        async move {
            let member = join(id).await;
            let mut view = member.view();
            loop {
                *told.lock().unwrap() = view
                    .borrow_and_update()
                    .nodes()
                    .map(|n| n.id.to_string())
                    .collect();
                view.changed().await?;
            }
        }
    });
    seen
}

fn simulation() -> turmoil::Sim<'static> {
    turmoil::Builder::new()
        .tick_duration(Duration::from_millis(10))
        .min_message_latency(Duration::from_millis(10))
        .max_message_latency(Duration::from_millis(100))
        .udp_capacity(256)
        .simulation_duration(Duration::from_secs(3600))
        .build()
}

/// Simulated time until `holds`, at most `at_most`.
fn until(
    sim: &mut turmoil::Sim<'_>,
    what: &str,
    at_most: u64,
    holds: impl Fn() -> bool,
) -> Duration {
    let start = sim.elapsed();
    while !holds() {
        assert!(
            sim.elapsed() - start < Duration::from_secs(at_most),
            "not within {at_most} s: {what}"
        );
        sim.step().unwrap();
    }
    sim.elapsed() - start
}

fn run(sim: &mut turmoil::Sim<'_>, span: Duration) {
    let end = sim.elapsed() + span;
    while sim.elapsed() < end {
        sim.step().unwrap();
    }
}

fn sees(seen: &Seen, names: &[&str]) -> bool {
    *seen.lock().unwrap() == names
}

#[test]
fn death_is_noticed_as_soon_in_youth_as_in_age() {
    for age in [Duration::from_millis(800), Duration::from_secs(60)] {
        let mut sim = simulation();
        let a = host(&mut sim, "a");
        let b = host(&mut sim, "b");
        until(&mut sim, "a and b meet", 10, || {
            sees(&a, &["a", "b"]) && sees(&b, &["a", "b"])
        });
        let c = host(&mut sim, "c");
        run(&mut sim, age);
        assert!(sees(&c, &["a", "b", "c"]) && sees(&a, &["a", "b", "c"]));
        sim.crash("c");
        let noticed = until(&mut sim, "c is missed", 5, || {
            sees(&a, &["a", "b"]) && sees(&b, &["a", "b"])
        });
        println!("killed after {age:?}, noticed after {noticed:?}");
        assert!(
            noticed > Duration::from_secs(1),
            "a stall of a second is not a death"
        );
        sim.bounce("c");
        until(&mut sim, "c is back", 10, || {
            [&a, &b, &c].iter().all(|seen| sees(seen, &["a", "b", "c"]))
        });
    }
}

#[test]
fn nobody_is_missed_on_a_lossy_path() {
    let mut sim = turmoil::Builder::new()
        .tick_duration(Duration::from_millis(10))
        .max_message_latency(Duration::from_millis(300))
        .fail_rate(0.05)
        .repair_rate(0.5)
        .udp_capacity(256)
        .simulation_duration(Duration::from_secs(3600))
        .build();
    let names = ["a", "b", "c", "d"];
    let all: Vec<_> = names.iter().map(|id| host(&mut sim, id)).collect();
    until(&mut sim, "all meet", 30, || {
        all.iter().all(|seen| sees(seen, &names))
    });
    let end = sim.elapsed() + Duration::from_secs(120);
    while sim.elapsed() < end {
        sim.step().unwrap();
        for seen in &all {
            assert!(sees(seen, &names), "{seen:?} at {:?}", sim.elapsed());
        }
    }
}

#[test]
fn parts_of_a_cluster_meet_again_however_long_they_were_apart() {
    for apart in [Duration::from_secs(60), Duration::from_secs(660)] {
        let mut sim = simulation();
        let a = host(&mut sim, "a");
        let b = host(&mut sim, "b");
        let c = host(&mut sim, "c");
        let together = || [&a, &b, &c].iter().all(|seen| sees(seen, &["a", "b", "c"]));
        until(&mut sim, "all meet", 10, together);
        sim.partition("a", "b");
        sim.partition("a", "c");
        until(&mut sim, "each side sees itself", 10, || {
            sees(&a, &["a"]) && sees(&b, &["b", "c"]) && sees(&c, &["b", "c"])
        });
        run(&mut sim, apart);
        sim.repair("a", "b");
        sim.repair("a", "c");
        let met = until(&mut sim, "all meet again", 40, together);
        println!("apart for {apart:?}, met again after {met:?}");
    }
}
