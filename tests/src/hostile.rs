//! What arrives from the network, as functions of arbitrary bytes that panic on a defect. The fuzz
//! targets in `fuzz/` and the replay below call the same ones.

use cluster::{
    digest::{Digest, Holdings},
    key::Key,
    manifest::Manifest,
    seal::{MESSAGE_BYTES_MAX, Opener, Sealer},
    secret::ClusterSecret,
};

/// Takes arbitrary bytes; panics on a defect.
pub type Target = fn(&[u8]);

/// Every target, by the name of its corpus.
pub const TARGETS: [(&str, Target); 7] = [
    ("gossip", gossip),
    ("digest", digest),
    ("manifest", manifest),
    (
        "cache_control",
        edge_node::cache::policy::directives::fuzz_cache_control,
    ),
    ("exchange", edge_node::cache::policy::fuzz_exchange),
    (
        "targeted",
        edge_node::cache::policy::targeted::fuzz_targeted,
    ),
    ("range", edge_node::deliver::range::fuzz_range),
];

const NOW_MS: u64 = 1_767_225_600_000;

/// A datagram of a stranger; and a message of our own, whole and with one byte changed on the way.
pub fn gossip(data: &[u8]) {
    let secret = |text| ClusterSecret::from_bytes(text).expect("long enough");
    let ours = secret(b"a secret for the fuzzer");
    let from = ([127, 0, 0, 1], 1).into();
    let mut opener = Opener::new(&ours, "fuzz");
    assert!(opener.open(from, data, NOW_MS).is_err());

    let ([at, flip, rest @ ..], true) = (data, data.len() <= MESSAGE_BYTES_MAX) else {
        return;
    };
    let datagrams = Sealer::new(&ours, "fuzz")
        .seal(rest, NOW_MS)
        .expect("short enough");
    let (last, before) = datagrams.split_last().expect("at least one");
    for datagram in before {
        assert_eq!(opener.open(from, datagram, NOW_MS), Ok(None));
    }
    let mut changed = last.clone();
    let at = usize::from(*at) * changed.len() / 256;
    changed[at] ^= *flip | 1;
    assert!(opener.open(from, &changed, NOW_MS).is_err());
    assert!(opener.open(from, &last[..at], NOW_MS).is_err());
    let mut stranger = Opener::new(&secret(b"a secret of somebody else"), "fuzz");
    assert!(stranger.open(from, last, NOW_MS).is_err());
    assert_eq!(opener.open(from, last, NOW_MS), Ok(Some(rest.to_vec())));
    assert!(opener.open(from, last, NOW_MS).is_err(), "replayed");
}

/// A peer's answer about its holdings, as bytes and as changes; and one with a byte changed.
pub fn digest(data: &[u8]) {
    let mut hostile = Digest::empty();
    if hostile.apply(data).is_ok() {
        // No more memory than the sender had to send for.
        assert!(hostile.memory_bytes() <= 4096 + 16 * data.len());
        hostile.contains(Key(0));
    }
    // Each byte adds or removes one of few keys.
    let key = |n: u8| Key::of(&[&[n % 61]]);
    let mut holdings = Holdings::new(1);
    let mut known = Digest::empty();
    for (i, byte) in data.iter().take(512).enumerate() {
        if byte & 1 == 0 {
            holdings.add(key(byte >> 1));
        } else {
            holdings.remove(key(byte >> 1));
        }
        if i % 17 == 0 {
            update(&mut known, &holdings);
        }
    }
    update(&mut known, &holdings);
    assert_eq!(known.len(), holdings.len());
    let mut again = holdings;
    for n in 0..61 {
        // Never wrongly denied.
        if again.remove(key(n)) {
            assert!(known.contains(key(n)));
        }
    }
    let before = known.version();
    if known.apply(data).is_err() {
        assert_eq!(known.version(), before);
    }
}

fn update(known: &mut Digest, holdings: &Holdings) {
    let answer = holdings.answer(known.version()).encode();
    known.apply(&answer).expect("our own answer");
    assert_eq!(known.version(), Some(holdings.version()));
}

/// An object's manifest.
pub fn manifest(data: &[u8]) {
    let Ok(manifest) = Manifest::decode(data) else {
        return;
    };
    let lengths = (0u32..).take(manifest.pieces.len());
    let sum: u64 = lengths.map(|i| manifest.piece_length(i) as u64).sum();
    assert_eq!(sum, manifest.length);
    let bytes = manifest.encode().expect("it was decoded");
    assert_eq!(Manifest::decode(&bytes).as_ref(), Ok(&manifest));
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    /// What fuzzing found worth keeping, and bytes around it; the seed is printed.
    #[test]
    fn no_target_fails_on_its_corpus_or_on_random_bytes() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        for (name, target) in TARGETS {
            let corpus = crate::process::checkout()
                .join("tests/fuzz/corpus")
                .join(name);
            let mut inputs: Vec<Vec<u8>> = std::fs::read_dir(&corpus)
                .unwrap_or_else(|e| panic!("{}: {e}", corpus.display()))
                .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
                .collect();
            assert!(!inputs.is_empty(), "{name} has no corpus");
            inputs.push(Vec::new());
            for _ in 0..400 {
                let mut input = inputs[random.random_range(0..inputs.len())].clone();
                for _ in 0..random.random_range(1..6) {
                    let at = random.random_range(0..=input.len());
                    match random.random_range(0..3) {
                        0 => input.insert(at, random.random()),
                        1 if at < input.len() => input[at] = random.random(),
                        _ => input.truncate(at),
                    }
                }
                inputs.push(input);
            }
            for input in &inputs {
                target(input);
            }
        }
    }

    /// Writes the corpus anew: valid inputs of each kind, for fuzzing to begin with.
    #[test]
    #[ignore = "writes into the checkout"]
    fn corpus_from_valid_inputs() {
        let write = |target: &str, name: &str, bytes: &[u8]| {
            let dir = crate::process::checkout()
                .join("tests/fuzz/corpus")
                .join(target);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join(name), bytes).unwrap();
        };
        let secret = ClusterSecret::from_bytes(b"a secret for the fuzzer").unwrap();
        let sealed = Sealer::new(&secret, "another")
            .seal(b"hello", NOW_MS)
            .unwrap();
        write("gossip", "sealed", &sealed[0]);
        write(
            "gossip",
            "message",
            b"\x80\x01a message that is sealed and opened",
        );
        let mut holdings = Holdings::new(1);
        for n in 0..100_u8 {
            holdings.add(Key::of(&[&[n]]));
        }
        write("digest", "snapshot", &holdings.answer(None).encode());
        let since = holdings.version();
        holdings.remove(Key::of(&[&[1]]));
        write("digest", "delta", &holdings.answer(Some(since)).encode());
        let manifest = Manifest {
            status: 200,
            fields: vec![("etag".into(), b"\"a\"".to_vec())],
            selected_by: vec![("accept-encoding".into(), Some(b"gzip".to_vec()))],
            length: (1 << 20) + 1,
            pieces: vec![[7; 32]; 2],
            fetched_by: "edge-1".parse().unwrap(),
            fetched_at: NOW_MS,
            as_of: cluster::purge::Position::default(),
        };
        write("manifest", "two-pieces", &manifest.encode().unwrap());
        let lines = "public, max-age=60, s-maxage=\"10\"\nPrivate=\"set-cookie, x\", no-cache, stale-while-revalidate=5";
        write("cache_control", "lines", lines.as_bytes());
        write(
            "cache_control",
            "quoted",
            b"ext=\"a\\\"b, no-store\", max-age=99999999999999999999",
        );
        let exchange = "accept-language: de, en;q=0.5\nauthorization: x\n\ndate: Sun, 06 Nov 1994 08:49:37 GMT\ncache-control: max-age=60, public, private=\"x-a\"\nage: 5\nvary: Accept-Language, cookie\netag: W/\"a\"\nset-cookie: a=b\nconnection: x-b\nx-a: 1\nx-b: 2";
        write("exchange", "vary", exchange.as_bytes());
        let part = "range: bytes=0-4\n\ncontent-range: bytes 0-4/10\nexpires: Sunday, 06-Nov-94 09:49:37 GMT\nlast-modified: Sun Nov  6 08:49:37 1994\ncdn-cache-control: max-age=60;x";
        write("exchange", "part", part.as_bytes());
        let lines = "max-age=60, no-cache=\"a, b\";x=1\nmax-age=60+30, content=\"ESI/1.0\"\nstale-if-error=(1 2)";
        write("targeted", "lines", lines.as_bytes());
        for (name, value) in [
            ("one", "bytes=0-99"),
            ("many", "bytes=0-1,5-9,-20"),
            ("open", "bytes=900-"),
        ] {
            write(
                "range",
                name,
                &[&1000_u64.to_le_bytes(), value.as_bytes()].concat(),
            );
        }
    }
}
