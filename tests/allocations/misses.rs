//! What a plain miss allocates on the thread that answers it: fetched over a connection that was kept, and
//! stored.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    thread,
};

use tokio::runtime;

use super::measuring::{REQUESTS, edge, fewest_allocations};

/// What it takes today, the last of them for tables that grow. Whoever needs one more has to say here what
/// for.
const BUDGET: usize = 10;
const BODY_BYTES: usize = 1 << 10;

#[test]
fn a_plain_miss_keeps_to_its_budget_of_allocations() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    // Threads of their own, so that nothing of theirs is counted; they end with their connections.
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || answer(stream.unwrap()));
        }
    });
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let address = edge(&runtime, dir.path(), &origin);
    let mut count = 0;
    let budget = u64::try_from(BUDGET * REQUESTS).unwrap();
    let fewest = fewest_allocations(&runtime, address, budget, |client| {
        count += 1;
        let request = format!(
            "GET /{count} HTTP/1.1\r\nhost: a.test\r\nuser-agent: a\r\naccept: */*\r\n\r\n"
        );
        let head = client.ask(&request, BODY_BYTES);
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(
            head.contains("fwd=uri-miss; fwd-status=200; stored"),
            "{head}"
        );
    });
    assert!(
        fewest <= budget,
        "allocations in {REQUESTS} misses: {fewest}, and not {budget}"
    );
}

/// Answers every request on a connection with the same.
fn answer(mut to: TcpStream) {
    to.set_nodelay(true).unwrap();
    let body = "x".repeat(BODY_BYTES);
    let answer = format!(
        "HTTP/1.1 200 OK\r\ndate: Mon, 06 Jul 2026 08:00:00 GMT\r\ncontent-type: text/plain\r\n\
         content-length: {BODY_BYTES}\r\ncache-control: max-age=2000000000\r\netag: \"1\"\r\n\r\n{body}"
    );
    let mut lines = BufReader::new(to.try_clone().unwrap()).lines();
    while let Some(Ok(line)) = lines.next() {
        if line.is_empty() && to.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}
