//! How well the tiers choose: traces of `key,size` replayed through the memory tier and the disk tier as
//! they are, beside small reference implementations of LRU, SIEVE, S3-FIFO and W-TinyLFU of the same
//! size. Prints object and byte hit ratios and judges nothing.
//!
//! `cargo bench --bench tiers` makes its own traces, by a seed; `cargo bench --bench tiers -- FILE BYTES`
//! replays lines of `key,size` through a tier of that many bytes. Time is the place in the trace: none
//! of these policies looks at a clock.

#![expect(
    clippy::print_stdout,
    reason = "this is a command; what it says goes to the terminal"
)]

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque, hash_map::DefaultHasher},
    env, fs,
    hash::{Hash, Hasher},
    sync::Arc,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use cluster::key::Key;
use edge_node::cache::{
    entry::{Body, Entry, Head, Provenance},
    memory::{Item, Memory},
    policy::{Freshness, Rules},
    store::{self, Store, StoreConfig},
};
use http::{HeaderMap, StatusCode};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

const SEED: u64 = 7;
/// Requests of a trace; the first fifth warms up and is not counted.
const REQUESTS: usize = 1_000_000;
/// Keys that a popularity is spread over.
const KEYS: usize = 100_000;
const MEMORY_BYTES: u64 = 256 << 20;
/// The disk tier is replayed for real, so at a scale that a minute is enough for.
const DISK_BYTES: u64 = 64 << 20;
const DISK_SCALE: u64 = 8;
const DISK_REQUESTS: usize = 200_000;
/// What an entry weighs beside its body, in the memory tier and so in all.
const OVERHEAD: u64 = 384;
/// Largest object, as it stands in one piece.
const SIZE_MAX: u64 = 1 << 20;

#[derive(Clone, Copy)]
struct Request {
    key: u64,
    size: u64,
}

/// A cache of objects: says whether the object was there, and takes it in if not.
trait Policy {
    fn ask(&mut self, request: Request) -> bool;
}

type Made = Box<dyn FnMut(u64) -> Box<dyn Policy>>;

fn main() -> Result<()> {
    let args: Vec<_> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let traces = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => synthetic(REQUESTS),
        [file, bytes] => {
            let trace = read(file)?;
            let bytes = bytes.parse().context("a number of bytes")?;
            heading("memory", bytes);
            row(
                "trace",
                &trace,
                bytes,
                &mut references(Box::new(Tier::boxed)),
            );
            return Ok(());
        }
        _ => anyhow::bail!("usage: tiers [FILE BYTES]"),
    };
    heading("memory", MEMORY_BYTES);
    for (name, trace) in &traces {
        row(
            name,
            trace,
            MEMORY_BYTES,
            &mut references(Box::new(Tier::boxed)),
        );
    }
    heading("disk", DISK_BYTES);
    for (name, mut trace) in synthetic(DISK_REQUESTS) {
        trace
            .iter_mut()
            .for_each(|r| r.size = r.size / DISK_SCALE + 1);
        row(
            name,
            &trace,
            DISK_BYTES,
            &mut references(Box::new(Ring::boxed)),
        );
    }
    Ok(())
}

fn references(ours: Made) -> [Made; 5] {
    [
        ours,
        Box::new(|bytes| Box::new(Lru::new(bytes))),
        Box::new(|bytes| Box::new(Sieve::new(bytes))),
        Box::new(|bytes| Box::new(S3Fifo::new(bytes))),
        Box::new(|bytes| Box::new(TinyLfu::new(bytes))),
    ]
}

fn heading(tier: &str, bytes: u64) {
    println!(
        "\n{:28} {:>13} {:>13} {:>13} {:>13} {:>13}",
        format!("{tier} of {} MiB, % obj/byte", bytes >> 20),
        "this tier",
        "LRU",
        "SIEVE",
        "S3-FIFO",
        "W-TinyLFU"
    );
}

fn row(name: &str, trace: &[Request], bytes: u64, policies: &mut [Made]) {
    let mut line = format!("{name:28}");
    for made in policies {
        let mut policy = made(bytes);
        let (warm, counted) = trace.split_at(trace.len() / 5);
        warm.iter().for_each(|request| {
            policy.ask(*request);
        });
        let (mut objects, mut hit_bytes, mut all_bytes) = (0, 0, 0);
        for request in counted {
            all_bytes += request.size;
            if policy.ask(*request) {
                objects += 1;
                hit_bytes += request.size;
            }
        }
        let percent = |part: u64, of: u64| 100.0 * part as f64 / of as f64;
        line += &format!(
            "   {:5.1}/{:5.1}",
            percent(objects, counted.len() as u64),
            percent(hit_bytes, all_bytes)
        );
    }
    println!("{line}");
}

fn read(file: &str) -> Result<Vec<Request>> {
    let text = fs::read_to_string(file)?;
    let line = |line: &str| {
        let (key, size) = line.split_once(',').context("key,size")?;
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let size = size.trim().parse()?;
        Ok(Request {
            key: hasher.finish(),
            size,
        })
    };
    text.lines().map(line).collect()
}

// --- traces ---

fn synthetic(requests: usize) -> Vec<(&'static str, Vec<Request>)> {
    let mut traces = Vec::new();
    for (name, skew) in [
        ("zipf 0.8, 30 % one-hit", 0.8),
        ("zipf 0.9, 30 % one-hit", 0.9),
        ("zipf 1.0, 30 % one-hit", 1.0),
    ] {
        traces.push((
            name,
            zipf(requests, skew, |n, rank, random| {
                match random.random_bool(0.3) {
                    true => (1 << 40) + n as u64,
                    false => rank,
                }
            }),
        ));
    }
    let every = requests / 20;
    let scanned = KEYS / 5;
    traces.push((
        "zipf 0.9, scans",
        zipf(requests, 0.9, |n, rank, _| match n % every < every / 2 {
            true => (1 << 40) + (n % every % scanned) as u64,
            false => rank,
        }),
    ));
    traces.push((
        "zipf 0.9, shifting",
        zipf(requests, 0.9, |n, rank, _| {
            (rank + (n / every * KEYS / 20) as u64) % (KEYS as u64 * 2)
        }),
    ));
    let mut round = Vec::new();
    let mut bytes = 0;
    while bytes < MEMORY_BYTES * 12 / 10 {
        let key = round.len() as u64;
        bytes += size_of(key) + OVERHEAD;
        round.push(key);
    }
    if requests < REQUESTS {
        // The disk tier: as many objects as are 1.2 times that, at its scale.
        let at_scale = |key: &u64| size_of(*key) / DISK_SCALE + 1 + OVERHEAD;
        let mut left = DISK_BYTES * 12 / 10;
        let fits = |key: &u64| {
            left = left.saturating_sub(at_scale(key));
            left > 0
        };
        round = (0..).take_while(fits).collect();
    }
    let keys = round.iter().cycle().take(requests);
    let looped = keys.map(|key| Request {
        key: *key,
        size: size_of(*key),
    });
    traces.push(("loop of 1.2 times the tier", looped.collect()));
    traces
}

fn zipf(
    requests: usize,
    skew: f64,
    mut key: impl FnMut(usize, u64, &mut SmallRng) -> u64,
) -> Vec<Request> {
    let mut random = SmallRng::seed_from_u64(SEED);
    let mut total = 0.0;
    let up_to: Vec<f64> = (1..=KEYS)
        .map(|rank| {
            total += (rank as f64).powf(-skew);
            total
        })
        .collect();
    (0..requests)
        .map(|n| {
            let at = random.random::<f64>() * total;
            let rank = up_to.partition_point(|sum| *sum < at) as u64;
            let key = key(n, rank, &mut random);
            Request {
                key,
                size: size_of(key),
            }
        })
        .collect()
}

/// Log-normal, the same for every request of a key: half of all are below 12 KiB, one in six above 54.
fn size_of(key: u64) -> u64 {
    let mut random = SmallRng::seed_from_u64(SEED ^ key);
    let (a, b): (f64, f64) = (1.0 - random.random::<f64>(), random.random());
    let normal = (-2.0 * a.ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos();
    ((12_288.0 * (1.5 * normal).exp()) as u64).clamp(100, SIZE_MAX)
}

// --- ours ---

struct Tier {
    memory: Memory,
    zeros: Bytes,
}

impl Tier {
    fn boxed(bytes: u64) -> Box<dyn Policy> {
        Box::new(Self {
            memory: Memory::new(bytes),
            zeros: Bytes::from(vec![0; SIZE_MAX as usize]),
        })
    }
}

impl Policy for Tier {
    fn ask(&mut self, request: Request) -> bool {
        let key = Key(request.key.into());
        if self.memory.find(key).is_some() {
            return true;
        }
        let headers = HeaderMap::new();
        let head = Head {
            status: StatusCode::OK,
            freshness: Freshness::of(StatusCode::OK, &headers, &Rules::default(), 0),
            headers: headers.into(),
            asked_ms: 0,
            selected_by: Vec::new(),
            length: None,
            part: None,
            fetched_by: "edge-1".parse().expect("a name"),
            fetched_at: 0,
            as_of: cluster::purge::Position::default(),
        };
        let body = Body::Whole(self.zeros.slice(..request.size as usize));
        let entry = Entry::new(key, request.key, head, body, Provenance::Origin);
        self.memory.insert(key, Item::Entry(Arc::new(entry)));
        false
    }
}

struct Ring {
    runtime: tokio::runtime::Runtime,
    store: Store,
    zeros: Bytes,
    _dir: tempfile::TempDir,
}

impl Ring {
    fn boxed(bytes: u64) -> Box<dyn Policy> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = StoreConfig {
            dir: dir.path().to_owned(),
            disk_bytes_max: bytes,
            read_threads: 1,
        };
        Box::new(Self {
            runtime: tokio::runtime::Builder::new_current_thread()
                .build()
                .expect("a runtime"),
            store: Store::open(&config, Arc::new(|_| {})).expect("an empty directory"),
            zeros: Bytes::from(vec![0; SIZE_MAX as usize]),
            _dir: dir,
        })
    }
}

impl Policy for Ring {
    fn ask(&mut self, request: Request) -> bool {
        let key = Key(request.key.into());
        if self.store.contains(key) {
            self.store.touch(key);
            return true;
        }
        let body = self.zeros.slice(..request.size as usize);
        // As much metadata as makes it weigh what all others do.
        let meta = self.zeros.slice(..OVERHEAD as usize - 64);
        let body = store::Body::Inline(body);
        let append = self.store.append_object(key, request.key, 0, meta, body);
        self.runtime.block_on(append).expect("the disk takes it");
        false
    }
}

// --- references ---

fn weight(request: Request) -> u64 {
    request.size + OVERHEAD
}

/// A list of keys in the order of their last move, each with its weight.
#[derive(Default)]
struct Order {
    places: HashMap<u64, (u64, u64)>,
    keys: BTreeMap<u64, u64>,
    next: u64,
    bytes: u64,
}

impl Order {
    fn push(&mut self, key: u64, weight: u64) {
        self.next += 1;
        self.places.insert(key, (self.next, weight));
        self.keys.insert(self.next, key);
        self.bytes += weight;
    }

    fn remove(&mut self, key: u64) -> Option<u64> {
        let (place, weight) = self.places.remove(&key)?;
        self.keys.remove(&place);
        self.bytes -= weight;
        Some(weight)
    }

    fn touch(&mut self, key: u64) -> bool {
        let weight = self.remove(key);
        weight.map(|weight| self.push(key, weight)).is_some()
    }

    fn oldest(&self) -> Option<u64> {
        self.keys.values().next().copied()
    }

    fn pop(&mut self) -> Option<(u64, u64)> {
        let key = self.oldest()?;
        Some((key, self.remove(key)?))
    }
}

struct Lru {
    order: Order,
    bytes_max: u64,
}

impl Lru {
    fn new(bytes_max: u64) -> Self {
        Self {
            order: Order::default(),
            bytes_max,
        }
    }
}

impl Policy for Lru {
    fn ask(&mut self, request: Request) -> bool {
        if self.order.touch(request.key) {
            return true;
        }
        self.order.push(request.key, weight(request));
        while self.order.bytes > self.bytes_max {
            self.order.pop();
        }
        false
    }
}

struct Sieve {
    order: Order,
    visited: HashSet<u64>,
    hand: u64,
    bytes_max: u64,
}

impl Sieve {
    fn new(bytes_max: u64) -> Self {
        Self {
            order: Order::default(),
            visited: HashSet::new(),
            hand: 0,
            bytes_max,
        }
    }
}

impl Policy for Sieve {
    fn ask(&mut self, request: Request) -> bool {
        if self.order.places.contains_key(&request.key) {
            self.visited.insert(request.key);
            return true;
        }
        while self.order.bytes + weight(request) > self.bytes_max {
            let ahead = self.order.keys.range(self.hand..).next();
            let Some((place, key)) = ahead.or_else(|| self.order.keys.iter().next()) else {
                break;
            };
            let (place, key) = (*place, *key);
            self.hand = place + 1;
            if !self.visited.remove(&key) {
                self.order.remove(key);
            }
        }
        self.order.push(request.key, weight(request));
        false
    }
}

struct S3Fifo {
    small: Order,
    main: Order,
    ghost: VecDeque<u64>,
    ghosts: HashSet<u64>,
    used: HashMap<u64, u8>,
    bytes_max: u64,
}

impl S3Fifo {
    fn new(bytes_max: u64) -> Self {
        Self {
            small: Order::default(),
            main: Order::default(),
            ghost: VecDeque::new(),
            ghosts: HashSet::new(),
            used: HashMap::new(),
            bytes_max,
        }
    }

    fn evict(&mut self) {
        if self.small.bytes > self.bytes_max / 10 {
            while let Some((key, weight)) = self.small.pop() {
                if self.used.get(&key).copied().unwrap_or(0) > 1 {
                    self.used.insert(key, 0);
                    self.main.push(key, weight);
                    continue;
                }
                self.used.remove(&key);
                self.ghost.push_back(key);
                self.ghosts.insert(key);
                while self.ghost.len() > self.main.places.len().max(100) {
                    let gone = self.ghost.pop_front();
                    gone.map(|key| self.ghosts.remove(&key));
                }
                return;
            }
        }
        while let Some((key, weight)) = self.main.pop() {
            match self.used.get(&key).copied().unwrap_or(0) {
                0 => {
                    self.used.remove(&key);
                    return;
                }
                used => {
                    self.used.insert(key, used - 1);
                    self.main.push(key, weight);
                }
            }
        }
        self.small.pop();
    }
}

impl Policy for S3Fifo {
    fn ask(&mut self, request: Request) -> bool {
        let key = request.key;
        if self.small.places.contains_key(&key) || self.main.places.contains_key(&key) {
            let used = self.used.entry(key).or_default();
            *used = (*used + 1).min(3);
            return true;
        }
        while self.small.bytes + self.main.bytes + weight(request) > self.bytes_max {
            self.evict();
        }
        match self.ghosts.remove(&key) {
            true => self.main.push(key, weight(request)),
            false => self.small.push(key, weight(request)),
        }
        false
    }
}

struct TinyLfu {
    window: Order,
    probation: Order,
    protected: Order,
    sketch: Vec<u8>,
    asked: usize,
    bytes_max: u64,
}

impl TinyLfu {
    /// Counters of the sketch: several per object that fits.
    const COUNTERS: usize = 1 << 18;

    fn new(bytes_max: u64) -> Self {
        Self {
            window: Order::default(),
            probation: Order::default(),
            protected: Order::default(),
            sketch: vec![0; Self::COUNTERS],
            asked: 0,
            bytes_max,
        }
    }

    fn counters(key: u64) -> [usize; 4] {
        [1, 2, 3, 4].map(|row: u64| {
            let mut hasher = DefaultHasher::new();
            (row, key).hash(&mut hasher);
            hasher.finish() as usize % Self::COUNTERS
        })
    }

    fn frequency(&self, key: u64) -> u8 {
        let counters = Self::counters(key).map(|at| self.sketch[at]);
        counters.into_iter().min().unwrap_or(0)
    }

    fn count(&mut self, key: u64) {
        let least = self.frequency(key);
        for at in Self::counters(key) {
            if self.sketch[at] == least && least < 15 {
                self.sketch[at] += 1;
            }
        }
        self.asked += 1;
        if self.asked == 4 * Self::COUNTERS {
            self.asked = 0;
            self.sketch.iter_mut().for_each(|count| *count /= 2);
        }
    }
}

impl Policy for TinyLfu {
    fn ask(&mut self, request: Request) -> bool {
        let key = request.key;
        self.count(key);
        if self.window.touch(key) || self.protected.touch(key) {
            return true;
        }
        if let Some(weight) = self.probation.remove(key) {
            self.protected.push(key, weight);
            while self.protected.bytes > self.bytes_max / 100 * 79 {
                let Some((key, weight)) = self.protected.pop() else {
                    break;
                };
                self.probation.push(key, weight);
            }
            return true;
        }
        self.window.push(key, weight(request));
        while self.window.bytes > self.bytes_max / 100 {
            let Some((candidate, weight)) = self.window.pop() else {
                break;
            };
            let room = self.bytes_max / 100 * 99;
            let mut admitted = true;
            while self.probation.bytes + self.protected.bytes + weight > room {
                let victim = self.probation.oldest().or_else(|| self.protected.oldest());
                let Some(victim) = victim else { break };
                admitted = self.frequency(candidate) > self.frequency(victim);
                if !admitted {
                    break;
                }
                self.probation.remove(victim);
                self.protected.remove(victim);
            }
            if admitted {
                self.probation.push(candidate, weight);
            }
        }
        false
    }
}
