//! Tables of purges on several nodes, fed with a log as a cluster feeds them: pushes that get lost, come
//! twice and in any order, pages of the log and of peers, crashes that take with them what was not synced,
//! and a control plane that loses its log and begins another. No node says better of an object than the
//! log does, and in the end all say the same.
//!
//! `SIM_SEED` replays one run, `SIM_RUNS` makes more of them.

use std::collections::BTreeSet;

use cluster::purge::{
    Named, Naming, Object, Passage, Position, Purge, Record, Scope, Step, Table, Verdict,
    table::Said,
};
use edge_node::purges::{journal::Frame, recent::Recent};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// Runs where `SIM_RUNS` does not say.
const RUNS: u64 = 300;
const NODES: usize = 3;
/// Things that happen in a run.
const EVENTS: usize = 120;
/// Most pages that it takes to learn all there is: each has a record, or ends it.
const PAGES_MAX: usize = 1_000;

struct AsSent;

impl Naming for AsSent {
    fn name(&self, _: &str, sent: &str) -> Named {
        Named::AsSent(sent.as_bytes().to_vec())
    }
}

fn step(record: &Record) -> Step {
    Step::of(record, &AsSent)
}

/// The side of the control plane: this log, and those that it has lost.
#[derive(Default)]
struct Log {
    log: u64,
    records: Vec<Record>,
    lost: Vec<Record>,
    /// Records that later ones say all of are not told.
    is_terse: bool,
}

impl Log {
    fn append(&mut self, random: &mut StdRng, purge: Purge) {
        let prev = self.head();
        let seq = prev + random.random_range(1..=3);
        self.records.push(Record {
            at: Position { log: self.log, seq },
            prev,
            purge,
            taken_at: 0,
            by: String::new(),
        });
    }

    fn head(&self) -> u64 {
        self.records.last().map_or(0, |record| record.at.seq)
    }

    fn place(&self) -> Position {
        Position {
            log: self.log,
            seq: self.head(),
        }
    }

    fn begin_anew(&mut self) {
        self.log += 1_000;
        self.lost.append(&mut self.records);
    }

    fn all(&self) -> impl Iterator<Item = &Record> {
        self.lost.iter().chain(&self.records)
    }

    /// Whether later ones up to there hit all that this one does, at least as hard.
    fn is_superseded(&self, record: &Record, to: Position) -> bool {
        record.purge.scopes.iter().all(|scope| {
            self.records.iter().any(|later| {
                later.at > record.at
                    && later.at <= to
                    && later.purge.soft <= record.purge.soft
                    && later.purge.site == record.purge.site
                    && later.purge.scopes.contains(scope)
            })
        })
    }

    /// What a node is told that has everything up to `after`: a page, and what it stands for.
    fn page(&self, after: Position, limit: usize) -> (Vec<Record>, Passage) {
        let from = Position {
            log: self.log,
            seq: if after.log == self.log { after.seq } else { 0 },
        };
        let mut behind = self.records.iter().filter(|record| record.at > from);
        // What it leaves out is said again before its end: who has it may lack nothing up to there.
        let last = behind.clone().nth(limit).map(|_| behind.nth(limit - 1));
        let to = last
            .flatten()
            .map_or_else(|| self.place(), |record| record.at);
        let told = self.records.iter().filter(|record| {
            let is_said = self.is_terse && self.is_superseded(record, to);
            record.at > from && record.at <= to && !is_said
        });
        let records = told.cloned().collect();
        (records, Passage { from, to })
    }
}

/// A node: its table, what it remembers for peers, and its disk.
struct Node {
    table: Table,
    recent: Recent,
    snapshot: Vec<u8>,
    frames: Vec<Frame>,
    /// So many frames a crash cannot take away.
    synced: usize,
    scopes_max: usize,
    /// What it has acknowledged one by one, beyond what `applied` says.
    acknowledged: BTreeSet<Position>,
}

impl Node {
    fn new(scopes_max: usize) -> Self {
        let table = Table::new(scopes_max);
        Self {
            snapshot: table.to_bytes(),
            table,
            recent: Recent::default(),
            frames: Vec::new(),
            synced: 0,
            scopes_max,
            acknowledged: BTreeSet::new(),
        }
    }

    fn take(&mut self, records: Vec<Record>, passage: Option<Passage>, is_synced: bool) {
        for record in &records {
            let step = step(record);
            self.table.take(&step);
            self.frames.push(Frame::Step(step));
        }
        if let Some(passage) = passage {
            self.table.pass(passage);
            self.frames.push(Frame::Passage(passage));
        }
        if is_synced {
            self.synced = self.frames.len();
            self.acknowledged
                .extend(records.iter().map(|record| record.at));
        }
        self.recent.add(records, passage);
    }

    fn compact(&mut self) {
        self.snapshot = self.table.to_bytes();
        self.frames.clear();
        self.synced = 0;
        // What was in force, and is on disk now, counts from now on.
    }

    fn crash(&mut self, random: &mut StdRng) {
        let kept = random.random_range(self.synced..=self.frames.len());
        self.frames.truncate(kept);
        self.synced = kept;
        self.table = Table::from_bytes(&self.snapshot, self.scopes_max).expect("as it was written");
        for frame in &self.frames {
            match frame {
                Frame::Step(step) => {
                    self.table.take(step);
                }
                Frame::Passage(passage) => self.table.pass(*passage),
            }
        }
        self.recent = Recent::default();
    }

    /// What it owes: all of its log up to where it is, and what it has acknowledged besides.
    fn owes(&self, record: &Record) -> bool {
        let applied = self.table.applied();
        (record.at.log == applied.log && record.at <= applied)
            || self.acknowledged.contains(&record.at)
    }
}

const SITES: [&str; 2] = ["one", "two"];
const HOSTS: [&str; 2] = ["a.test", "b.test"];
const TARGETS: [&str; 5] = ["/", "/a", "/a?x", "/ab", "/b"];
const TAGS: [&str; 3] = ["r", "s", "t"];

fn purge(random: &mut StdRng) -> Purge {
    let count = random.random_range(1..=2);
    let scopes = (0..count).map(|_| {
        let pick = |random: &mut StdRng, from: &[&'static str]| *from.choose(random).expect("some");
        let host = match random.random_range(0..3) {
            0 => format!("//{}", pick(random, &HOSTS)),
            _ => String::new(),
        };
        match random.random_range(0..8) {
            0..3 => Scope::Url(host + pick(random, &TARGETS)),
            3..5 => Scope::Prefix(host + pick(random, &TARGETS)),
            5..7 => Scope::Tag(pick(random, &TAGS).to_owned()),
            _ => Scope::All,
        }
    });
    Purge {
        scopes: scopes.collect(),
        site: (*SITES.choose(random).expect("some")).to_owned(),
        soft: random.random_bool(0.4),
    }
}

/// What a scope means, by its words.
fn covers(scope: &Scope, host: &str, target: &str, tag: &str) -> bool {
    let named = |text: &str| match text.strip_prefix("//") {
        None => Some(text.to_owned()),
        Some(rest) => rest.strip_prefix(host).map(str::to_owned),
    };
    match scope {
        Scope::Url(url) => named(url).is_some_and(|url| url == target),
        Scope::Prefix(begins) => named(begins).is_some_and(|begins| target.starts_with(&begins)),
        Scope::Tag(own) => own == tag,
        Scope::All => true,
    }
}

/// How bad it is.
fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Good => 0,
        Verdict::Stale => 1,
        Verdict::Gone => 2,
    }
}

/// No node says better of any object than all records do that it owes; with room for all scopes it says
/// nothing worse than all that there are, either.
fn check(nodes: &[Node], log: &Log, as_of: Position, exact: bool) {
    for (number, node) in nodes.iter().enumerate() {
        for site in SITES {
            for host in HOSTS {
                for target in TARGETS {
                    for tag in TAGS {
                        let tags = [tag.as_bytes()];
                        let object = Object {
                            site,
                            host,
                            target: target.as_bytes(),
                            tags: &tags,
                            as_of,
                        };
                        let hit = |counts: &dyn Fn(&Record) -> bool| {
                            let hits = log.all().filter(|record| {
                                record.at > as_of
                                    && record.purge.site == site
                                    && counts(record)
                                    && record
                                        .purge
                                        .scopes
                                        .iter()
                                        .any(|s| covers(s, host, target, tag))
                            });
                            hits.map(|r| if r.purge.soft { 1 } else { 2 })
                                .max()
                                .unwrap_or(0)
                        };
                        let judged = rank(node.table.judge(&object));
                        let least = hit(&|record| node.owes(record));
                        assert!(
                            judged >= least,
                            "node {number} says {judged}, not {least}, of {object:?}"
                        );
                        let most = hit(&|_| true);
                        assert!(
                            !exact || judged <= most,
                            "node {number} says {judged}, not {most}, of {object:?}"
                        );
                    }
                }
            }
        }
    }
}

fn run(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let is_small = random.random_bool(0.25);
    let scopes_max = if is_small {
        random.random_range(8..24)
    } else {
        1_000
    };
    let mut nodes: Vec<_> = (0..NODES).map(|_| Node::new(scopes_max)).collect();
    let mut log = Log {
        log: 1_000,
        is_terse: random.random_bool(0.5),
        ..Log::default()
    };
    let loses = random.random_bool(0.4);
    for _ in 0..EVENTS {
        let n = random.random_range(0..NODES);
        let is_synced = random.random_bool(0.8);
        match random.random_range(0..100) {
            0..25 => {
                let purge = purge(&mut random);
                log.append(&mut random, purge);
            }
            // Any record may come at any time, even one of a log that is no more.
            25..60 => {
                let all: Vec<_> = log.all().cloned().collect();
                let from = all.len().saturating_sub(6);
                if let Some(record) = all[from..].choose(&mut random) {
                    nodes[n].take(vec![record.clone()], None, is_synced);
                }
            }
            60..70 => {
                let after = nodes[n].table.applied();
                if after.log <= log.log {
                    let (records, passage) = log.page(after, random.random_range(1..4));
                    nodes[n].take(records, Some(passage), is_synced);
                }
            }
            70..80 => {
                let (from, after) = (
                    &nodes[random.random_range(0..NODES)],
                    nodes[n].table.applied(),
                );
                let page = from
                    .recent
                    .page(from.table.applied(), after.log, after.seq, 3, 1 << 20);
                let place = |seq| Position { log: page.log, seq };
                let from = if page.log == after.log {
                    after
                } else {
                    place(0)
                };
                let passage = Passage {
                    from,
                    to: place(page.through),
                };
                if !page.records.is_empty() || passage.to > after {
                    nodes[n].take(page.records, Some(passage), is_synced);
                }
            }
            80..86 => nodes[n].crash(&mut random),
            86..90 => nodes[n].compact(),
            90..92 if loses => log.begin_anew(),
            _ => {
                let place = log.all().map(|record| record.at).collect::<Vec<_>>();
                let as_of = place.choose(&mut random).copied().unwrap_or_default();
                check(&nodes, &log, as_of, !is_small);
            }
        }
    }
    if !log.lost.is_empty() {
        // What was lost on its way, nobody can tell any more: a control plane that begins anew purges all.
        for site in SITES {
            let all = Purge {
                site: site.to_owned(),
                scopes: vec![Scope::All],
                soft: false,
            };
            log.append(&mut random, all);
        }
    }
    let mut first: Option<Said> = None;
    for node in &mut nodes {
        let mut pages = 0;
        while node.table.applied() != log.place() {
            let (records, passage) = log.page(node.table.applied(), 5);
            node.take(records, Some(passage), true);
            pages += 1;
            assert!(pages < PAGES_MAX, "{:?} for ever", node.table.applied());
        }
        assert!(!node.table.has_gap());
        let said = node.table.said();
        // One that is too small forgets by the order in which it learns.
        if !is_small {
            assert_eq!(*first.get_or_insert_with(|| said.clone()), said);
        }
    }
    check(
        &nodes,
        &log,
        log.records.first().map(|r| r.at).unwrap_or_default(),
        !is_small,
    );
    check(&nodes, &log, Position::default(), !is_small);
}

#[test]
fn tables_that_hear_of_a_log_in_whatever_way_say_what_it_says() {
    let setting = |name| std::env::var_os(name)?.to_str()?.parse::<u64>().ok();
    let (from, runs) = match setting("SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (
            rand::random_range(0..1 << 32),
            setting("SIM_RUNS").unwrap_or(RUNS),
        ),
    };
    for seed in from..from + runs {
        let told = std::panic::catch_unwind(|| run(seed));
        assert!(told.is_ok(), "SIM_SEED={seed}");
    }
}
