//! What the steps of a request cost by themselves: `cargo bench --bench parts`, or `-- key` for those
//! that have `key` in their name.

use std::{hint::black_box, sync::Arc};

use bytes::Bytes;
use cluster::{
    digest::{Digest, Holdings},
    key::Key,
    node::{NodeInfo, Phase, Role},
    proximity::Way,
};
use control_plane::rank::{Seat, peers_for};
use criterion::Criterion;
use edge_node::{
    cache::{
        entry::{Body, Entry, Head, Provenance},
        key::{KeyRules, key},
        memory::{Item, Memory},
        policy::{self, CacheControl, Freshness, RequestFacts, Rules},
        vary,
    },
    deliver::{
        self,
        cache_status::{CacheStatus, Handled},
        range,
    },
    upstream::{
        health::Standing,
        ranking::Placed,
        select::{self, Claim},
    },
};
use harness::region::REGIONS;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use rand::{SeedableRng, rngs::SmallRng};

const NOW_MS: u64 = 1_700_000_000_000;
/// Entries in memory and keys in a digest: more than the processor's caches hold.
const KEYS: u64 = 1_000_000;
const ENTRIES: u64 = 20_000;
const MEMORY_BYTES: u64 = 256 << 20;
const BODY_BYTES: usize = 1 << 10;
/// Nodes that a control plane ranks, and holders that an edge chooses from.
const NODES: usize = 100;
const HOLDERS: usize = 8;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    finding(&mut criterion);
    judging(&mut criterion);
    delivering(&mut criterion);
    asking(&mut criterion);
    criterion.final_summary();
}

fn finding(criterion: &mut Criterion) {
    let asked = fields(&[("accept-encoding", "gzip, br"), ("accept-language", "en")]);
    criterion.bench_function("key", |bench| {
        let rules = KeyRules::default();
        bench.iter(|| {
            let target = black_box("/assets/app.css?v=3");
            key("www", "www.example.com", target, &asked, &rules)
        });
    });
    criterion.bench_function("key: what has to be normalised", |bench| {
        let rules = KeyRules::default();
        bench.iter(|| {
            let target = black_box("/%7euser/%e2%82%ac?q=%41");
            key("www", "www.example.com", target, &asked, &rules)
        });
    });
    criterion.bench_function("memory: find", |bench| {
        let memory = Memory::new(MEMORY_BYTES);
        for n in 0..ENTRIES {
            memory.insert(nth(n), Item::Entry(Arc::new(entry(nth(n)))));
        }
        let mut n = 0;
        bench.iter(|| {
            n = (n + 7919) % ENTRIES;
            memory.find(nth(n))
        });
    });
    criterion.bench_function("vary: matches", |bench| {
        let names = ["accept-encoding", "accept-language"].map(HeaderName::from_static);
        let selected_by = vary::normal_values(&names, &asked);
        bench.iter(|| vary::matches(black_box(&selected_by), black_box(&asked)));
    });
    criterion.bench_function("digest: contains", |bench| {
        let mut holdings = Holdings::new(NOW_MS);
        (0..KEYS).for_each(|n| {
            holdings.add(nth(n));
        });
        let mut digest = Digest::empty();
        digest
            .apply(&holdings.answer(None).encode())
            .expect("a snapshot applies to nothing");
        let mut n = 0;
        bench.iter(|| {
            // Every other key is not there.
            n = (n + 7919) % (2 * KEYS);
            digest.contains(nth(n))
        });
    });
}

fn judging(criterion: &mut Criterion) {
    let (rules, method) = (Rules::default(), Method::GET);
    criterion.bench_function("policy: storable", |bench| {
        let headers = response();
        let request = RequestFacts::of(&method, &HeaderMap::new());
        bench.iter(|| {
            let headers = black_box(&headers);
            policy::storable(&request, StatusCode::OK, headers, &rules, NOW_MS)
        });
    });
    criterion.bench_function("policy: reuse", |bench| {
        let stored = Freshness::of(StatusCode::OK, &response(), &rules, NOW_MS);
        let said = CacheControl::default();
        bench.iter(|| policy::reuse(black_box(&stored), &said, &rules, black_box(NOW_MS + 1)));
    });
}

fn delivering(criterion: &mut Criterion) {
    let entry = entry(nth(1));
    let mut plan = |name: &str, asked: HeaderMap| {
        criterion.bench_function(name, |bench| {
            bench.iter(|| deliver::plan(&Method::GET, black_box(&asked), &entry, NOW_MS));
        });
    };
    plan("deliver: all of it", HeaderMap::new());
    plan("deliver: a 304", fields(&[("if-none-match", "\"1\"")]));
    plan("deliver: a range", fields(&[("range", "bytes=100-199")]));
    criterion.bench_function("range: parse", |bench| {
        bench.iter(|| range::parse(black_box(b"bytes=65536-131071"), 32 << 20));
    });
    criterion.bench_function("cache-status: value", |bench| {
        let status = CacheStatus {
            node: "fra-1",
            handled: Handled::Hit,
            ttl_s: Some(3_599),
            key: None,
            detail: None,
        };
        bench.iter(|| black_box(&status).value());
    });
}

fn asking(criterion: &mut Criterion) {
    let nodes: Vec<_> = (0..NODES).map(|n| Arc::new(node(n))).collect();
    criterion.bench_function("select: choose", |bench| {
        let placed: Vec<_> = nodes[..HOLDERS].iter().map(placed).collect();
        let claims: Vec<_> = placed
            .iter()
            .map(|placed| Claim {
                placed,
                addr: &placed.node.peer,
                standing: Standing::Good,
                errors: 0.0,
                bytes_per_s: Some(1e7 * placed.cost_ms),
            })
            .collect();
        let mut rng = SmallRng::seed_from_u64(1);
        bench.iter(|| select::choose(black_box(&claims), 1e6, &mut rng));
    });
    criterion.bench_function("rank: peers of a node", |bench| {
        let seats: Vec<_> = nodes
            .iter()
            .zip(REGIONS.iter().cycle())
            .map(|(node, region)| Seat {
                node,
                point: Some(region.point()),
                region: &node.region,
            })
            .collect();
        bench.iter(|| peers_for(&seats[0], black_box(&seats).iter().copied(), HOLDERS));
    });
}

fn nth(n: u64) -> Key {
    Key::of(&[&n.to_le_bytes()])
}

fn fields(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let named = fields.iter().map(|&(name, value)| {
        let name = HeaderName::from_static(name);
        (name, HeaderValue::from_static(value))
    });
    named.collect()
}

/// What origins usually say.
fn response() -> HeaderMap {
    fields(&[
        ("date", "Tue, 14 Nov 2023 22:13:20 GMT"),
        ("server", "nginx"),
        ("content-type", "text/css; charset=utf-8"),
        ("content-length", "1024"),
        ("last-modified", "Mon, 13 Nov 2023 10:00:00 GMT"),
        ("etag", "\"1\""),
        (
            "cache-control",
            "public, max-age=3600, stale-while-revalidate=60",
        ),
        ("vary", "accept-encoding"),
    ])
}

fn entry(key: Key) -> Entry {
    let headers = response();
    let head = Head {
        status: StatusCode::OK,
        freshness: Freshness::of(StatusCode::OK, &headers, &Rules::default(), NOW_MS),
        headers: headers.into(),
        asked_ms: NOW_MS,
        selected_by: Vec::new(),
        length: Some(BODY_BYTES as u64),
        part: None,
        fetched_by: "fra-1".parse().expect("a name"),
        fetched_at: NOW_MS,
        as_of: cluster::purge::Position::default(),
    };
    let body = Body::Whole(Bytes::from_static(&[0; BODY_BYTES]));
    Entry::new(key, 1, head, body, Provenance::Origin)
}

fn node(n: usize) -> NodeInfo {
    NodeInfo {
        peer: format!("node-{n}:7947"),
        phase: Phase::Ready,
        ..NodeInfo::new(format!("node-{n}").parse().expect("a name"), Role::Edge)
    }
}

fn placed(node: &Arc<NodeInfo>) -> Placed {
    Placed {
        node: node.clone(),
        way: Way {
            measured_ms: Some(10.0),
            distance_km: Some(500.0),
            ..Way::default()
        },
        cost_ms: 10.0,
    }
}
