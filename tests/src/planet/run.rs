//! The run itself: a queue of events in virtual time. What is decided is decided by the project's own
//! code: digests, ranking, selection, health, coordinates, placement.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use cluster::{
    coordinates::Coordinate,
    digest::Digest,
    key::Key,
    node::{NodeId, NodeInfo},
    placement,
    site::rules::Shield,
    view::ClusterView,
};
use edge_node::upstream::{
    digest::subscriptions,
    health::{PeerHealth, Severity, Standing},
    home::{self, Level, Spilling, may_join},
    peer::connect_timeout,
    ranking,
    select::{self, Claim, HOLDERS_ASKED_BY_HOME_MAX, HOLDERS_ASKED_MAX},
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tokio::time::Instant;

use super::{
    demand::Demand,
    edge::{Edge, State},
    outcome::{Outcome, Source},
    plan::{Plan, Strategy},
    world::{World, noisy},
};

/// Before the first request: nodes find each other and measure.
const WARM_UP_MS: f64 = 90e3;
/// The same for a cluster that is started under load: they have found each other.
const COLD_MS: f64 = 3e3;
/// How long requests come in.
const DEMAND_MS: f64 = 240e3;
/// Gossip has told everybody, and digests were pulled.
const TOLD_EVERY_MS: f64 = 2e3;
/// A node that fell silent is in the view for so long.
const NOTICED_AFTER_MS: f64 = 4e3;
const PROBE_EVERY_MS: f64 = 1e3;
/// Every node has measured its way to the origin.
const ORIGIN_MEASURED_BY_MS: f64 = 1e3;
const RANK_EVERY_MS: f64 = 30e3;
/// How long who dies is dead.
const DEAD_MS: f64 = 60e3;
/// What an edge needs for an answer from its store, and a slow one more.
const SERVICE_MS: f64 = 0.2;
const SLOW_MS: f64 = 300.0;
/// What the origin thinks before it answers.
const ORIGIN_MS: f64 = 80.0;
/// What one connection has on its way, in bytes: a far sender is a slow one.
const WINDOW_BYTES: f64 = 1e6;
/// A signed question for a digest and the head of its answer, in bytes.
const PULL_BYTES: u64 = 500;
/// Neighbours that are probed in turn; see the edge's `probe`.
const PROBED_IN_TURN: usize = 30;
/// Points of each node on the ring of consistent hashing.
const RING_POINTS: u64 = 64;
/// The one site.
const SITE: &str = "www";

pub(super) type FetchId = usize;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    /// A client wants the next object.
    Request,
    /// A question has reached the node it was sent to.
    Reach(FetchId, Step),
    /// A question has failed: a miss, or nobody answered.
    Failed(FetchId, usize, Fault),
    /// The first byte is there, from whom, and when the last will be (ms).
    Head(FetchId, Source, f64),
    /// All of it is there.
    Done(FetchId),
    Tell,
    Probe(usize),
    /// Measures its way to the origin.
    Measure(usize),
    Rank(usize),
    Die(usize),
    Return(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Miss,
    Silent,
    /// It waits for who asks, perhaps, or sends on to the next home; not its fault.
    Crossed,
}

/// Whom a fetch asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// From its store only.
    Hold(usize),
    /// As a home, of which kind, and whether it may send on to the next one.
    Fill(usize, Level, bool),
    Origin,
}

#[derive(Clone, Copy, Debug)]
enum Waiter {
    /// A client, and since when (ms).
    Client(f64),
    /// Another node's fetch.
    Fetch(FetchId),
}

struct Fetch {
    node: usize,
    object: u32,
    steps: VecDeque<Step>,
    /// How far it asks.
    reach: Level,
    asked_ms: f64,
    waiters: Vec<Waiter>,
    /// From whom, and when the last byte will be there, once the first is.
    head: Option<(Source, f64)>,
}

/// An event with its time in microseconds and its number: a total order.
struct Queued(u64, u64, Event);

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

struct Run {
    plan: Plan,
    world: World,
    demand: Demand,
    keys: Vec<Key>,
    rng: SmallRng,
    /// What clients do, alike for all strategies.
    clients: SmallRng,
    queue: BinaryHeap<Reverse<Queued>>,
    pushed: u64,
    now_ms: f64,
    epoch: Instant,
    edges: Vec<Edge>,
    /// When who is dead died.
    died_ms: BTreeMap<usize, f64>,
    fetches: Vec<Fetch>,
    requests_left: u64,
    wanted: HashSet<u32>,
    /// As everybody sees it.
    seen: Vec<Option<Arc<NodeInfo>>>,
    regions: BTreeMap<String, Vec<Arc<NodeInfo>>>,
    near_origin: Vec<Arc<NodeInfo>>,
    ring: Vec<(u64, usize)>,
    /// What was last pulled of everybody.
    digests: Vec<Arc<Digest>>,
    outcome: Outcome,
}

/// Runs `plan` to its end.
///
/// # Errors
///
/// Its trace is none.
pub fn run(plan: Plan) -> Result<Outcome> {
    let mut places = SmallRng::seed_from_u64(plan.seed);
    let world = World::new(plan.nodes, plan.slow, &mut places);
    let regions = world.matrix.sites.iter().map(|site| site.region);
    let demand = match &plan.trace {
        Some(text) => Demand::trace(text)?,
        None => Demand::zipf(plan.objects, regions, &mut places),
    };
    let objects = u32::try_from(demand.sizes.len())?;
    let edge = |(number, machine): (usize, &super::world::Machine)| {
        let site = &world.matrix.sites[machine.site];
        Edge::new(number, site.region, site.point, plan.store_bytes)
    };
    let edges: Vec<Edge> = world.machines.iter().enumerate().map(edge).collect();
    let mut run = Run {
        keys: (0..objects).map(|o| Key::of(&[&o.to_le_bytes()])).collect(),
        rng: SmallRng::seed_from_u64(plan.seed ^ 1),
        clients: SmallRng::seed_from_u64(plan.seed ^ 2),
        queue: BinaryHeap::new(),
        pushed: 0,
        now_ms: 0.0,
        epoch: Instant::now(),
        seen: vec![None; edges.len()],
        digests: vec![Arc::default(); edges.len()],
        died_ms: BTreeMap::new(),
        fetches: Vec::new(),
        requests_left: plan.requests,
        wanted: HashSet::new(),
        regions: BTreeMap::new(),
        near_origin: Vec::new(),
        ring: Vec::new(),
        outcome: Outcome::new(plan.strategy, plan.nodes),
        edges,
        plan,
        world,
        demand,
    };
    run.begin();
    while let Some(Reverse(Queued(at_us, _, event))) = run.queue.pop() {
        run.now_ms = at_us as f64 / 1e3;
        run.handle(event);
    }
    Ok(run.end())
}

impl Run {
    fn begin(&mut self) {
        self.tell();
        for node in 0..self.edges.len() {
            let phase = node as f64 / self.edges.len() as f64;
            self.at(phase * ORIGIN_MEASURED_BY_MS, Event::Measure(node));
            if self.plan.strategy == Strategy::Measured {
                self.at(phase * PROBE_EVERY_MS, Event::Probe(node));
            }
            if self.has_digests() {
                // At once by distance, later by what was measured.
                self.rank(node);
                self.at((0.5 + phase) * RANK_EVERY_MS, Event::Rank(node));
            }
            if self.clients.random::<f64>() * 100.0 < self.plan.dying {
                let when = self.begin_ms() + self.clients.random::<f64>() * (DEMAND_MS - DEAD_MS);
                self.at(when, Event::Die(node));
            }
        }
        self.at(TOLD_EVERY_MS, Event::Tell);
        self.at(self.begin_ms(), Event::Request);
    }

    fn end(mut self) -> Outcome {
        self.outcome.objects = self.wanted.len();
        self.outcome.sent_bytes = self.edges.iter().map(|edge| edge.sent_bytes).collect();
        let memory = |edge: &Edge| {
            let digests = edge.neighbours.iter().map(|&peer| &self.digests[peer]);
            digests.map(|digest| digest.memory_bytes()).sum::<usize>() as u64
        };
        self.outcome.digest_memory_bytes = self.edges.iter().map(memory).collect();
        self.outcome.demand_s = DEMAND_MS / 1e3;
        self.outcome
    }

    fn at(&mut self, at_ms: f64, event: Event) {
        self.pushed += 1;
        let at_us = (at_ms.max(self.now_ms) * 1e3) as u64;
        self.queue.push(Reverse(Queued(at_us, self.pushed, event)));
    }

    fn has_digests(&self) -> bool {
        matches!(self.plan.strategy, Strategy::Measured | Strategy::Nearest)
    }

    /// When clients come.
    fn begin_ms(&self) -> f64 {
        if self.plan.cold { COLD_MS } else { WARM_UP_MS }
    }

    fn ended(&self) -> bool {
        self.now_ms > self.begin_ms() + DEMAND_MS
    }

    fn instant(&self) -> Instant {
        self.epoch + Duration::from_micros((self.now_ms * 1e3) as u64)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Request => self.request(),
            Event::Reach(fetch, step) => self.reach(fetch, step),
            Event::Failed(fetch, peer, fault) => self.failed(fetch, peer, fault),
            Event::Head(fetch, source, last_ms) => self.head(fetch, source, last_ms),
            Event::Done(fetch) => self.done(fetch),
            Event::Die(node) => self.die(node),
            Event::Return(node) => {
                self.edges[node].restart(self.now_ms as u64);
                self.died_ms.remove(&node);
            }
            Event::Tell if !self.ended() => {
                self.tell();
                self.at(self.now_ms + TOLD_EVERY_MS, Event::Tell);
            }
            Event::Probe(node) if !self.ended() => {
                self.probe(node);
                self.at(self.now_ms + PROBE_EVERY_MS, Event::Probe(node));
            }
            Event::Rank(node) if !self.ended() => {
                self.rank(node);
                self.at(self.now_ms + RANK_EVERY_MS, Event::Rank(node));
            }
            Event::Measure(node) => {
                let ms = noisy(self.world.origin_rtt_ms(node), &mut self.rng);
                self.edges[node].info.origins_ms.insert(SITE.to_owned(), ms);
            }
            Event::Tell | Event::Probe(_) | Event::Rank(_) => {}
        }
    }

    /// A client asks its edge. Who is dead has no clients: they are sent elsewhere.
    fn request(&mut self) {
        self.requests_left -= 1;
        if self.requests_left > 0 {
            let mean = DEMAND_MS / self.plan.requests as f64;
            let pause = -mean * (1.0 - self.clients.random::<f64>()).ln();
            self.at(self.now_ms + pause, Event::Request);
        }
        let node = self.clients.random_range(0..self.edges.len());
        let region = self.world.matrix.sites[self.world.machines[node].site].region;
        let object = self.demand.next(region, &mut self.clients);
        if !self.edges[node].alive {
            return;
        }
        self.wanted.insert(object);
        let since = Waiter::Client(self.now_ms);
        self.want(node, object, Level::Client, since);
    }

    /// `waiter` wants an object of `node`.
    fn want(&mut self, node: usize, object: u32, level: Level, waiter: Waiter) {
        match self.edges[node].state(object) {
            Some(State::Held) => self.serve(node, object, waiter, Source::Store, self.now_ms),
            Some(State::Filling(fetch)) if !self.joins(level, waiter, fetch) => {
                let Waiter::Fetch(asker) = waiter else { return };
                let way = noisy(
                    self.world.rtt_ms(node, self.fetches[asker].node) / 2.0,
                    &mut self.rng,
                );
                self.at(
                    self.now_ms + way,
                    Event::Failed(asker, node, Fault::Crossed),
                );
            }
            Some(State::Filling(fetch)) => match self.fetches[fetch].head {
                Some((source, last_ms)) => self.serve(node, object, waiter, source, last_ms),
                None => self.fetches[fetch].waiters.push(waiter),
            },
            None => {
                let fetch = self.fetches.len();
                let steps = self.steps(node, object, level);
                let fills = steps.iter().filter_map(|step| match step {
                    Step::Fill(_, level, _) => Some(*level),
                    Step::Hold(_) | Step::Origin => None,
                });
                self.fetches.push(Fetch {
                    reach: fills.max().unwrap_or(Level::Origin),
                    node,
                    object,
                    steps,
                    asked_ms: self.now_ms,
                    waiters: vec![waiter],
                    head: None,
                });
                self.edges[node].begin(object, fetch);
                self.advance(fetch);
            }
        }
    }

    /// Whether `waiter` may wait for a fetch that is under way: its own clients may.
    fn joins(&self, level: Level, waiter: Waiter, fetch: FetchId) -> bool {
        matches!(waiter, Waiter::Client(_)) || may_join(level, self.fetches[fetch].reach as u8)
    }

    /// `node` has the first byte, and will have the last at `last_ms`.
    fn serve(&mut self, node: usize, object: u32, waiter: Waiter, source: Source, last_ms: f64) {
        match waiter {
            Waiter::Client(since_ms) => {
                let first = self.now_ms + SERVICE_MS - since_ms;
                let last = (last_ms - since_ms).max(first);
                let bytes = self.demand.sizes[object as usize];
                self.outcome.client(source, bytes, first, last);
            }
            Waiter::Fetch(fetch) => self.deliver(fetch, node, last_ms),
        }
    }

    /// `from` sends what `fetch` wants; it has all of it at `last_ms`.
    fn deliver(&mut self, fetch: FetchId, from: usize, last_ms: f64) {
        let Fetch { node, object, .. } = self.fetches[fetch];
        let bytes = self.demand.sizes[object as usize];
        let machine = &self.world.machines[from];
        let (slow, factor) = if machine.slow {
            (SLOW_MS, 0.1)
        } else {
            (0.0, 1.0)
        };
        let uplink = machine.uplink * factor;
        let rtt_ms = self.world.rtt_ms(from, node);
        let way_ms = noisy(rtt_ms / 2.0, &mut self.rng);
        let head_ms = self.now_ms + SERVICE_MS + slow + way_ms;
        let rate = uplink.min(WINDOW_BYTES / rtt_ms);
        let edge = &mut self.edges[from];
        edge.uplink_free_ms = edge.uplink_free_ms.max(self.now_ms) + bytes as f64 / uplink;
        edge.sent_bytes += bytes;
        let all_ms = (head_ms + bytes as f64 / rate)
            .max(last_ms + way_ms)
            .max(edge.uplink_free_ms + way_ms);
        let source = match self.fetches[fetch].steps.front() {
            Some(Step::Hold(_)) => Source::Peer,
            _ => Source::Home,
        };
        self.at(head_ms, Event::Head(fetch, source, all_ms));
    }

    /// Asks whoever is next. The step that is under way stays the first one.
    fn advance(&mut self, fetch: FetchId) {
        let Fetch { node, object, .. } = self.fetches[fetch];
        self.fetches[fetch].asked_ms = self.now_ms;
        let now = self.instant();
        loop {
            match self.fetches[fetch].steps.front().copied() {
                Some(step @ (Step::Hold(peer) | Step::Fill(peer, ..))) => {
                    let measured = self.plan.strategy == Strategy::Measured;
                    if measured && !self.health(node, peer).admit(now) {
                        self.fetches[fetch].steps.pop_front();
                        continue;
                    }
                    let way = noisy(self.world.rtt_ms(node, peer) / 2.0, &mut self.rng);
                    self.at(self.now_ms + way, Event::Reach(fetch, step));
                }
                Some(Step::Origin) | None => {
                    let bytes = self.demand.sizes[object as usize];
                    let rtt_ms = self.world.origin_rtt_ms(node);
                    let took = noisy(rtt_ms, &mut self.rng) + ORIGIN_MS;
                    self.outcome.origin_requests += 1;
                    let head_ms = self.now_ms + took;
                    let last_ms = head_ms + bytes as f64 * rtt_ms / WINDOW_BYTES;
                    self.at(head_ms, Event::Head(fetch, Source::Origin, last_ms));
                }
            }
            return;
        }
    }

    fn reach(&mut self, fetch: FetchId, step: Step) {
        let Fetch {
            node,
            object,
            asked_ms,
            ..
        } = self.fetches[fetch];
        let (Step::Hold(peer) | Step::Fill(peer, ..)) = step else {
            return;
        };
        if !self.edges[peer].alive {
            let until = asked_ms + self.patience_ms(node, peer);
            return self.at(until, Event::Failed(fetch, peer, Fault::Silent));
        }
        match step {
            Step::Fill(_, level, true)
                if self.edges[peer].state(object).is_none()
                    && placement::has_too_much(
                        &self.edges[peer].info.id,
                        &self.candidates(peer, level),
                    ) =>
            {
                let way = noisy(self.world.rtt_ms(node, peer) / 2.0, &mut self.rng);
                self.at(
                    self.now_ms + way,
                    Event::Failed(fetch, peer, Fault::Crossed),
                );
            }
            Step::Fill(_, level, _) => self.want(peer, object, level, Waiter::Fetch(fetch)),
            _ if self.edges[peer].state(object) == Some(State::Held) => {
                self.deliver(fetch, peer, self.now_ms);
            }
            _ => {
                let way = noisy(self.world.rtt_ms(node, peer) / 2.0, &mut self.rng);
                self.at(self.now_ms + way, Event::Failed(fetch, peer, Fault::Miss));
            }
        }
    }

    fn failed(&mut self, fetch: FetchId, peer: usize, fault: Fault) {
        let node = self.fetches[fetch].node;
        let now = self.instant();
        let health = self.health(node, peer);
        match fault {
            Fault::Miss => {
                health.missed(now);
                self.outcome.false_hits += 1;
            }
            Fault::Silent => {
                health.failed(Severity::Failed, "silent", now);
                self.outcome.timeouts += 1;
            }
            Fault::Crossed => health.succeeded(now),
        }
        if self.edges[node].alive {
            self.fetches[fetch].steps.pop_front();
            self.advance(fetch);
        }
    }

    fn head(&mut self, fetch: FetchId, source: Source, last_ms: f64) {
        let Fetch {
            node,
            object,
            asked_ms,
            ..
        } = self.fetches[fetch];
        let under_way = self.edges[node].state(object) == Some(State::Filling(fetch));
        if !under_way || self.fetches[fetch].head.is_some() {
            return;
        }
        let now = self.instant();
        let asked = self.fetches[fetch].steps.front().copied();
        if let Some(Step::Hold(peer)) = asked {
            let took = self.now_ms - asked_ms;
            let health = self.health(node, peer);
            health.measured(took, now);
            health.succeeded(now);
        }
        if let Some(Step::Fill(peer, ..)) = asked {
            self.health(node, peer).succeeded(now);
        }
        self.fetches[fetch].head = Some((source, last_ms));
        for waiter in std::mem::take(&mut self.fetches[fetch].waiters) {
            self.serve(node, object, waiter, source, last_ms);
        }
        self.at(last_ms, Event::Done(fetch));
    }

    fn done(&mut self, fetch: FetchId) {
        let Fetch { node, object, .. } = self.fetches[fetch];
        if self.edges[node].state(object) == Some(State::Filling(fetch)) {
            let bytes = self.demand.sizes[object as usize];
            self.edges[node].commit(object, self.keys[object as usize], bytes);
        }
    }

    /// Whoever waits for its answers finds out when its patience ends. What it was sending goes on, as if
    /// the next holder had taken over.
    fn die(&mut self, node: usize) {
        self.died_ms.insert(node, self.now_ms);
        for lost in self.edges[node].die() {
            for waiter in std::mem::take(&mut self.fetches[lost].waiters) {
                if let Waiter::Fetch(fetch) = waiter {
                    let asker = self.fetches[fetch].node;
                    let until = self.now_ms + self.patience_ms(asker, node);
                    self.at(until, Event::Failed(fetch, node, Fault::Silent));
                }
            }
        }
        self.at(self.now_ms + DEAD_MS, Event::Return(node));
    }

    /// How long `node` waits for `peer` to show that it is there, by the edge's own code.
    fn patience_ms(&self, node: usize, peer: usize) -> f64 {
        let measured = match self.plan.strategy {
            Strategy::Measured => self.edges[node].health.get(&peer),
            _ => None,
        };
        let within = connect_timeout(measured.and_then(PeerHealth::round_trip_ms));
        within.as_secs_f64() * 1e3
    }

    fn health(&mut self, node: usize, peer: usize) -> &mut PeerHealth {
        self.edges[node].health.entry(peer).or_default()
    }

    /// Whom `node` asks for an object that it does not have, one after the other.
    fn steps(&mut self, node: usize, object: u32, level: Level) -> VecDeque<Step> {
        let key = self.keys[object as usize];
        let mut steps = VecDeque::new();
        match (self.plan.strategy, level) {
            (Strategy::NoPeers, _) => {}
            (Strategy::Hashing, Level::Client) => {
                let owner = self.owner(key);
                steps.extend((owner != node).then_some(Step::Fill(owner, Level::Region, false)));
            }
            (Strategy::Hashing, _) => {}
            (Strategy::Nearest, _) => {
                let holders = self.claiming(node, key);
                steps.extend(holders.iter().take(2).map(|&peer| Step::Hold(peer)));
                self.notice_false_miss(node, object, &holders);
            }
            (Strategy::Measured, level) => {
                let holders = self.claiming(node, key);
                if level == Level::Client {
                    self.notice_false_miss(node, object, &holders);
                }
                steps.extend(
                    self.chosen(node, &holders, level)
                        .into_iter()
                        .map(Step::Hold),
                );
                let homes = self.way(node, key, level);
                steps.extend(
                    homes
                        .iter()
                        .map(|home| Step::Fill(number_of(&home.id), home.level, home.may_send_on)),
                );
            }
        }
        steps.push_back(Step::Origin);
        steps
    }

    /// Who may be homes, as what `node` is asked for `level`.
    fn candidates(&self, node: usize, level: Level) -> Vec<&NodeInfo> {
        let region = &self.edges[node].info.region;
        let own = self.regions.get(region).map_or(&[][..], Vec::as_slice);
        let all = match level {
            Level::Region | Level::RegionNext => own,
            _ => &self.near_origin,
        };
        all.iter().map(|info| &**info).collect()
    }

    /// The homes that `node` asks, by the edge's own code.
    fn way(&self, node: usize, key: Key, level: Level) -> Vec<home::Step> {
        let me = &self.edges[node].info;
        let [region, cluster] = [Level::Region, Level::Cluster].map(|l| self.candidates(node, l));
        let spilling = Spilling {
            region: placement::has_too_much(&me.id, &region),
            cluster: placement::has_too_much(&me.id, &cluster),
        };
        let names = |homes: Vec<&NodeInfo>| homes.into_iter().map(|n| n.id.clone()).collect();
        let region: Vec<NodeId> = names(placement::region_homes(key, &me.region, region));
        let cluster: Vec<NodeId> = names(placement::order(key, cluster));
        home::way(level, Shield::Cluster, &me.id, &region, &cluster, spilling)
    }

    /// The neighbours that claim `key`, the nearest first.
    fn claiming(&self, node: usize, key: Key) -> Vec<usize> {
        let claims = |peer: &&usize| self.digests[**peer].contains(key);
        self.edges[node]
            .neighbours
            .iter()
            .filter(claims)
            .copied()
            .collect()
    }

    fn notice_false_miss(&mut self, node: usize, object: u32, holders: &[usize]) {
        let holds = |peer: &&usize| {
            let edge = &self.edges[**peer];
            edge.alive && edge.state(object) == Some(State::Held)
        };
        if holders.is_empty() && self.edges[node].neighbours.iter().any(|peer| holds(&peer)) {
            self.outcome.false_misses += 1;
        }
    }

    /// Which of them to ask, by the edge's own code.
    fn chosen(&mut self, node: usize, holders: &[usize], level: Level) -> Vec<usize> {
        let now = self.instant();
        let edge = &self.edges[node];
        let placed: Vec<_> = holders
            .iter()
            .filter_map(|&peer| {
                let health = edge.health.get(&peer);
                let measured = health.and_then(PeerHealth::round_trip_ms);
                let info = self.seen[peer].as_ref()?;
                Some((peer, ranking::place(None, &edge.info, info, measured)))
            })
            .collect();
        let claims: Vec<Claim<'_>> = placed
            .iter()
            .map(|(peer, placed)| {
                let health = edge.health.get(peer);
                Claim {
                    placed,
                    addr: &placed.node.peer,
                    standing: health.map_or(Standing::Good, |h| h.standing(now)),
                    errors: health.map_or(0.0, |h| h.errors(now)),
                    // Rates are not simulated: a transfer takes what its way takes.
                    bytes_per_s: None,
                }
            })
            .collect();
        let most = match level {
            Level::Client => HOLDERS_ASKED_MAX,
            _ => HOLDERS_ASKED_BY_HOME_MAX,
        };
        let chosen = select::choose(&claims, 0.0, &mut self.rng);
        let chosen = chosen.into_iter().take(most);
        chosen.map(|c| number_of(&c.id)).collect()
    }

    fn owner(&self, key: Key) -> usize {
        let at = (key.0 >> 64) as u64;
        let next = self.ring.partition_point(|(point, _)| *point < at);
        self.ring[next % self.ring.len()].1
    }

    /// What gossip and the pulls of digests bring, for all at once.
    fn tell(&mut self) {
        let seconds = TOLD_EVERY_MS / 1e3;
        let mut pulled = vec![0_u64; self.edges.len()];
        for (node, edge) in self.edges.iter_mut().enumerate() {
            if !edge.alive {
                continue;
            }
            let load = &mut edge.info.load;
            load.bytes_per_s = ((edge.sent_bytes - edge.told_bytes) as f64 / seconds) as u64;
            edge.told_bytes = edge.sent_bytes;
            let told = edge.info.coordinate;
            if told.is_none_or(|told| edge.coordinate.is_news(&told, Duration::ZERO)) {
                edge.info.coordinate = Some(edge.coordinate);
            }
            let version = self.digests[node].version();
            if version != Some(edge.holdings.version()) {
                let answer = edge.holdings.answer(version).encode();
                pulled[node] = PULL_BYTES + answer.len() as u64;
                let mut digest = Digest::clone(&self.digests[node]);
                digest
                    .apply(&answer)
                    .expect("a digest takes its node's answers");
                self.digests[node] = Arc::new(digest);
            }
        }
        if self.has_digests() {
            for (node, edge) in self.edges.iter().enumerate().filter(|(_, e)| e.alive) {
                let bytes = edge.neighbours.iter().map(|&peer| pulled[peer]);
                self.outcome.digest_bytes[node] += bytes.sum::<u64>();
            }
        }
        let noticed = |died: f64| self.now_ms - died > NOTICED_AFTER_MS;
        let live = (0..self.edges.len())
            .filter(|node| !self.died_ms.get(node).is_some_and(|died| noticed(*died)));
        let view = ClusterView::new(live.map(|node| self.edges[node].info.clone()));
        self.seen.fill(None);
        self.regions.clear();
        self.ring.clear();
        for info in view.nodes() {
            let node = number(info);
            self.seen[node] = Some(info.clone());
            self.regions
                .entry(info.region.clone())
                .or_default()
                .push(info.clone());
            for point in 0..RING_POINTS {
                let place = Key::of(&[info.id.as_str().as_bytes(), &point.to_le_bytes()]);
                self.ring.push(((place.0 >> 64) as u64, node));
            }
        }
        self.ring.sort_unstable();
        let near = placement::near_origin(SITE, view.nodes().map(|n| &**n));
        self.near_origin = near
            .into_iter()
            .filter_map(|n| self.seen[number(n)].clone())
            .collect();
    }

    /// One question to one peer, as the edge's own prober does it.
    fn probe(&mut self, node: usize) {
        let edge = &self.edges[node];
        let turn = (self.now_ms / PROBE_EVERY_MS) as usize;
        let in_turn = edge.neighbours.len().min(PROBED_IN_TURN);
        let peer = match turn % 2 {
            1 if in_turn > 0 => edge.neighbours[turn / 2 % in_turn],
            _ => self.rng.random_range(0..self.edges.len()),
        };
        if peer == node || !edge.alive {
            return;
        }
        let now = self.instant();
        if !self.edges[peer].alive {
            self.health(node, peer)
                .failed(Severity::Failed, "silent", now);
            return;
        }
        let slow = if self.world.machines[peer].slow {
            SLOW_MS
        } else {
            0.0
        };
        let took = noisy(self.world.rtt_ms(node, peer), &mut self.rng) + slow;
        let health = self.health(node, peer);
        health.measured(took, now);
        let smoothed = health.round_trip_ms().unwrap_or(took);
        let Some(info) = &self.seen[peer] else { return };
        let theirs = info
            .coordinate
            .unwrap_or_else(|| Coordinate::at(info.location));
        self.edges[node]
            .coordinate
            .observe(&theirs, smoothed, &mut self.rng);
    }

    /// Whose digests `node` has from now on.
    fn rank(&mut self, node: usize) {
        let edge = &self.edges[node];
        let others = self.seen.iter().enumerate();
        let mut ranked: Vec<(f64, usize)> = others
            .filter(|(peer, _)| *peer != node)
            .filter_map(|(peer, info)| {
                let info = info.as_ref()?;
                let cost = match self.plan.strategy {
                    Strategy::Measured => {
                        let health = edge.health.get(&peer);
                        let measured = health.and_then(PeerHealth::round_trip_ms);
                        ranking::place(None, &edge.info, info, measured).cost_ms
                    }
                    _ => edge.info.location?.distance_km(info.location?),
                };
                Some((cost, peer))
            })
            .collect();
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let nearest: Vec<usize> = ranked.into_iter().map(|(_, peer)| peer).collect();
        let before = edge.neighbours.iter().copied().collect();
        let neighbours = subscriptions(&nearest, &before);
        let fresh = neighbours
            .iter()
            .filter(|peer| !edge.neighbours.contains(peer));
        let bytes: u64 = fresh
            .map(|&peer| PULL_BYTES + 2 * self.digests[peer].len() as u64)
            .sum();
        self.outcome.digest_bytes[node] += bytes;
        self.edges[node].neighbours = neighbours;
    }
}

fn number(info: &NodeInfo) -> usize {
    number_of(&info.id)
}

/// The number in a name of ours.
fn number_of(id: &NodeId) -> usize {
    id.as_str()
        .trim_start_matches("edge-")
        .parse()
        .expect("edges bear numbers")
}
