//! Who is in the cluster, while links break and heal and nodes come and go.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use cluster::{
    membership::{Membership, MembershipConfig},
    node::{NodeInfo, Phase, Role},
    secret::ClusterSecret,
};
use harness::simulation::{SimNet, Simulation, sim_clock};

const SECRET: &[u8] = b"the secret of the simulated cluster";
const LIMIT: Duration = Duration::from_secs(60);

/// What each node sees: names, and the load they say.
type Views = Arc<Mutex<BTreeMap<String, BTreeMap<String, u32>>>>;

struct Gossip {
    simulation: Simulation,
    views: Views,
}

impl Gossip {
    fn of(names: &[&'static str]) -> Self {
        let mut gossip = Self {
            simulation: Simulation::new(),
            views: Views::default(),
        };
        for name in names {
            gossip.add(name, SECRET);
        }
        gossip
    }

    fn add(&mut self, name: &'static str, secret: &'static [u8]) {
        let views = self.views.clone();
        self.simulation.sim.host(name, move || {
            let views = views.clone();
            async move {
                let mut me = NodeInfo::new(name.parse()?, Role::Edge);
                me.phase = Phase::Ready;
                me.peer = format!("{name}:7947");
                let clock = sim_clock();
                let config = MembershipConfig {
                    cluster_name: "sim".into(),
                    me,
                    generation: clock.unix_ms(),
                    listen: ([0, 0, 0, 0], 7946).into(),
                    advertise: format!("{name}:7946"),
                    seeds: vec!["a:7946".into(), "b:7946".into()],
                    secret: ClusterSecret::from_bytes(secret)?,
                    interval: Duration::from_millis(300),
                };
                let membership = Membership::join(config, Arc::new(SimNet), clock).await?;
                let view = membership.view();
                let mut beat = 0;
                loop {
                    let seen = view.borrow().clone();
                    let seen = seen.nodes().map(|n| (n.id.to_string(), n.load.in_flight));
                    views.lock().unwrap().insert(name.into(), seen.collect());
                    // A value that changes all the time must reach everybody, too.
                    beat += 1;
                    membership.update(|me| me.load.in_flight = beat);
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        });
    }

    /// Runs until each of `names` sees exactly `names`.
    fn agree(&mut self, names: &[&str]) {
        let expected: BTreeSet<_> = names.iter().map(|&n| n.to_owned()).collect();
        let views = self.views.clone();
        let outcome = self.simulation.until("", LIMIT, || {
            let views = views.lock().unwrap();
            names.iter().all(|name| {
                views
                    .get(*name)
                    .is_some_and(|v| v.keys().cloned().collect::<BTreeSet<_>>() == expected)
            })
        });
        assert!(
            outcome.is_ok(),
            "{names:?} do not agree: {outcome:?}, {:#?}",
            self.views.lock().unwrap()
        );
    }

    fn load_seen(&self, by: &str, of: &str) -> u32 {
        self.views.lock().unwrap()[by]
            .get(of)
            .copied()
            .unwrap_or_default()
    }
}

#[test]
fn nodes_find_each_other_and_hear_each_others_news() {
    let all = ["a", "b", "c", "d", "e"];
    let mut gossip = Gossip::of(&all);
    gossip.agree(&all);
    let before = gossip.load_seen("e", "d");
    gossip.simulation.pass(Duration::from_secs(10)).unwrap();
    assert!(gossip.load_seen("e", "d") > before);
    gossip.agree(&all);
}

#[test]
fn both_sides_of_a_partition_go_on_and_meet_again() {
    let all = ["a", "b", "c", "d", "e"];
    let mut gossip = Gossip::of(&all);
    gossip.agree(&all);
    // One side keeps both seeds, the other has none.
    for one in ["a", "b"] {
        for other in ["c", "d", "e"] {
            gossip.simulation.sim.partition(one, other);
        }
    }
    gossip.agree(&["a", "b"]);
    gossip.agree(&["c", "d", "e"]);
    gossip.simulation.pass(Duration::from_secs(120)).unwrap();
    for one in ["a", "b"] {
        for other in ["c", "d", "e"] {
            gossip.simulation.sim.repair(one, other);
        }
    }
    gossip.agree(&all);
}

#[test]
fn a_crashed_node_is_dropped_and_comes_back() {
    let all = ["a", "b", "c", "d"];
    let mut gossip = Gossip::of(&all);
    gossip.agree(&all);
    gossip.simulation.sim.crash("c");
    gossip.agree(&["a", "b", "d"]);
    gossip.simulation.sim.bounce("c");
    gossip.agree(&all);
}

#[test]
fn everybody_restarted_at_once_meets_again() {
    let all = ["a", "b", "c"];
    let mut gossip = Gossip::of(&all);
    gossip.agree(&all);
    for node in all {
        gossip.simulation.sim.crash(node);
    }
    gossip.views.lock().unwrap().clear();
    for node in all {
        gossip.simulation.sim.bounce(node);
    }
    gossip.agree(&all);
}

#[test]
fn a_lossy_network_does_not_tear_the_cluster_apart_for_good() {
    let all = ["a", "b", "c", "d"];
    let mut gossip = Gossip::of(&all);
    gossip.agree(&all);
    gossip.simulation.sim.set_fail_rate(0.2);
    gossip.simulation.pass(Duration::from_secs(60)).unwrap();
    gossip.simulation.sim.set_fail_rate(0.0);
    for (i, one) in all.iter().enumerate() {
        for other in &all[i + 1..] {
            gossip.simulation.sim.repair(*one, *other);
        }
    }
    gossip.agree(&all);
}

#[test]
fn a_node_with_another_secret_is_never_seen() {
    let all = ["a", "b", "c"];
    let mut gossip = Gossip::of(&all);
    gossip.add("intruder", b"another secret altogether");
    gossip.agree(&all);
    gossip.simulation.pass(Duration::from_secs(60)).unwrap();
    gossip.agree(&all);
    gossip.agree(&["intruder"]);
}
