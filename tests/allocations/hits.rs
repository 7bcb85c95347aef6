//! What a hit in memory allocates: a budget for each kind of hit.

use harness::{
    origin::{Answer, Origin},
    pattern::Pattern,
};
use tokio::runtime;

use super::measuring::{REQUESTS, edge, fewest_allocations};

const SIZE: u64 = 1 << 10;
const SIZE_LARGER: u64 = 64 << 10;

/// A kind of hit, and what a batch of it may allocate.
struct Kind {
    name: &'static str,
    request: &'static str,
    /// How the answer begins, so that what is counted is what was meant.
    status: &'static str,
    body_bytes: u64,
    /// Allocations per hit: what it takes today. Whoever needs one more has to say here what for.
    budget: usize,
}

const KINDS: [Kind; 6] = [
    Kind {
        name: "a small object",
        request: "GET /small HTTP/1.1\r\nhost: a.test\r\n\r\n",
        status: "HTTP/1.1 200 ",
        body_bytes: SIZE,
        budget: 0,
    },
    Kind {
        name: "a small object, for a browser",
        request: "GET /small HTTP/1.1\r\nhost: a.test\r\nuser-agent: Mozilla/5.0\r\naccept: */*\r\n\
                  accept-language: en\r\naccept-encoding: gzip, br\r\ncookie: a=b\r\n\r\n",
        status: "HTTP/1.1 200 ",
        body_bytes: SIZE,
        budget: 0,
    },
    Kind {
        name: "a larger object",
        request: "GET /larger HTTP/1.1\r\nhost: a.test\r\n\r\n",
        status: "HTTP/1.1 200 ",
        body_bytes: SIZE_LARGER,
        budget: 0,
    },
    Kind {
        name: "a head",
        request: "HEAD /small HTTP/1.1\r\nhost: a.test\r\n\r\n",
        status: "HTTP/1.1 200 ",
        body_bytes: 0,
        budget: 0,
    },
    Kind {
        name: "what the client has",
        request: "GET /small HTTP/1.1\r\nhost: a.test\r\nif-none-match: \"1\"\r\n\r\n",
        status: "HTTP/1.1 304 ",
        body_bytes: 0,
        // The condition is judged on a header map; the answer's head is there.
        budget: 3,
    },
    Kind {
        name: "a range",
        request: "GET /larger HTTP/1.1\r\nhost: a.test\r\nrange: bytes=1000-1999\r\n\r\n",
        status: "HTTP/1.1 206 ",
        body_bytes: 1_000,
        // As above: the range is judged on the same map, and its parts are listed.
        budget: 4,
    },
];

#[test]
fn a_hit_in_memory_keeps_to_its_budget_of_allocations() {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let origin = runtime.block_on(async {
        let origin = Origin::start().await.unwrap();
        for (path, length) in [("/small", SIZE), ("/larger", SIZE_LARGER)] {
            let answer = Answer::pattern(&Pattern::new(length, length));
            origin.route(path, answer.max_age(3_600).field("etag", "\"1\""));
        }
        origin
    });
    let address = edge(&runtime, dir.path(), &origin.url());

    let mut over = Vec::new();
    for kind in &KINDS {
        let budget = u64::try_from(kind.budget * REQUESTS).unwrap();
        let body_bytes = usize::try_from(kind.body_bytes).unwrap();
        let fewest = fewest_allocations(&runtime, address, budget, |client| {
            let head = client.ask(kind.request, body_bytes);
            assert!(head.starts_with(kind.status), "{}: {head}", kind.name);
        });
        if fewest > budget {
            over.push(format!("{}: {fewest}, and not {budget}", kind.name));
        }
    }
    assert!(over.is_empty(), "allocations in {REQUESTS} hits: {over:#?}");
    // Everything but the first request for each object was a hit.
    assert_eq!(origin.requests(), 2);
}
