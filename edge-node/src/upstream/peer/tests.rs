use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use cluster::{
    auth::Verifier,
    manifest::{PIECE_BYTES, run_hash},
    net::SystemNet,
    secret::ClusterSecret,
};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::upstream::scripted::{Scripted, pending, read_head, serving};

fn secret() -> ClusterSecret {
    ClusterSecret::from_bytes(b"0123456789abcdef0123456789abcdef").unwrap()
}

fn id(name: &str) -> NodeId {
    name.parse().unwrap()
}

#[test]
fn a_near_peer_has_less_time_to_connect() {
    for (round_trip_ms, expected_ms) in [
        (None, 1_000),
        (Some(0.0), 250),
        (Some(10.0), 290),
        (Some(150.0), 850),
        (Some(300.0), 1_000),
        (Some(f64::MAX), 1_000),
    ] {
        let within = connect_timeout(round_trip_ms);
        assert_eq!(within.as_millis(), expected_ms, "{round_trip_ms:?}");
    }
}

fn asker() -> Asker {
    Asker {
        pool: Pool::new(Arc::new(SystemNet)),
        signer: Signer::new(secret(), id("edge-1")),
        clock: Clock::system(),
        health: Arc::default(),
    }
}

/// Bytes that repeat nowhere at piece boundaries, and their manifest.
fn object(length: usize) -> (Vec<u8>, Manifest) {
    let body: Vec<u8> = (0..length).map(|i| (i / 7 + i % 251) as u8).collect();
    let manifest = Manifest {
        status: 200,
        fields: vec![("etag".into(), b"\"a\"".to_vec())],
        selected_by: vec![],
        length: length as u64,
        pieces: body
            .chunks(PIECE_BYTES)
            .map(|piece| *blake3::hash(piece).as_bytes())
            .collect(),
        fetched_by: id("edge-2"),
        fetched_at: 1,
        as_of: cluster::purge::Position::default(),
    };
    (body, manifest)
}

fn answer(manifest: &Manifest, bytes: &[u8]) -> Response<Full<Bytes>> {
    let mut body = encode_answer_head(&manifest.encode().unwrap()).to_vec();
    body.extend_from_slice(bytes);
    let mut answer = Response::new(Full::from(body));
    set_age(answer.headers_mut(), Duration::from_millis(61_500));
    answer
}

const ALL: Range<u32> = 0..u32::MAX;

async fn ask(peer: &Scripted) -> Result<PeerObject, PeerError> {
    let fields = HeaderMap::new();
    let held = asker()
        .hold(&id("edge-2"), &peer.address(), Key(7), &fields, ALL)
        .await;
    held.map(|(object, _)| object)
}

/// The pieces, and the error they ended with.
async fn all(mut pieces: PieceStream) -> (Vec<Bytes>, Option<PeerError>) {
    let mut good = Vec::new();
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => good.push(piece),
            Err(error) => {
                assert!(
                    pieces.next().await.is_none(),
                    "nothing comes after an error"
                );
                return (good, Some(error));
            }
        }
    }
    (good, None)
}

#[tokio::test]
async fn a_peer_is_asked_as_a_member_and_learns_nothing_of_the_client() {
    let (body, manifest) = object(2 * PIECE_BYTES + 5);
    let verifier = Arc::new(Verifier::new(secret(), id("edge-2")));
    let seen: Arc<Mutex<HeaderMap>> = Arc::default();
    let peer = serving({
        let (body, manifest, seen) = (body.clone(), manifest.clone(), seen.clone());
        move |request: Request<Incoming>| {
            let field = |name: &str| request.headers().get(name)?.to_str().ok();
            let target = request.uri().path_and_query().unwrap().as_str();
            let from = verifier.verify("GET", target, field, Clock::system().unix_ms());
            assert_eq!(from, Ok(id("edge-1")));
            assert_eq!(target, "/v1/hold/00000000000000000000000000000007");
            *seen.lock().unwrap() = request.headers().clone();
            let answer = answer(&manifest, &body);
            async move { answer }
        }
    })
    .await;
    let mut fields = HeaderMap::new();
    for (name, value) in [
        ("accept-encoding", "br"),
        ("accept-language", "de"),
        ("x-variant", "b"),
        ("cookie", "a=b"),
        ("authorization", "Basic x"),
        ("referer", "http://r.test"),
        ("user-agent", "curl"),
        ("x-forwarded-for", "192.0.2.1"),
        ("forwarded", "for=192.0.2.1"),
        ("x-real-ip", "192.0.2.1"),
        ("proxy-authorization", "Basic x"),
        ("from", "a@b.test"),
        ("via", "1.1 me"),
        ("cdn-loop", "me"),
        ("cdn-node", "edge-9"),
        ("cdn-pieces", "1-1"),
        ("cdn-pieces-hash", "00"),
        ("host", "www.example.com"),
        ("connection", "close"),
    ] {
        fields.insert(name, value.try_into().unwrap());
    }
    let asker = asker();
    let held = asker
        .hold(&id("edge-2"), &peer.address(), Key(7), &fields, 0..4)
        .await;
    let (object, _) = held.unwrap();
    assert_eq!(object.manifest, manifest);
    assert!(
        object.age >= Duration::from_millis(61_500),
        "{:?}",
        object.age
    );
    let (pieces, error) = all(object.pieces).await;
    assert_eq!(
        (pieces.concat() == body, pieces.len(), error),
        (true, 3, None)
    );

    let seen = std::mem::take(&mut *seen.lock().unwrap());
    let mut names: Vec<&str> = seen.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    let expected = [
        "accept-encoding",
        "accept-language",
        "cdn-mac",
        "cdn-node",
        "cdn-nonce",
        "cdn-pieces",
        "cdn-time",
        "host",
        "x-variant",
    ];
    assert_eq!(names, expected);
    assert_eq!(seen["cdn-node"], "edge-1");
    assert_eq!(seen["cdn-pieces"], "0-3");
    assert_eq!(seen["host"], peer.address());
}

#[tokio::test]
async fn any_pieces_in_a_row_can_be_asked_for() {
    let (body, manifest) = object(2 * PIECE_BYTES + 5);
    let slice = |pieces: &Range<u32>| {
        let at = |piece: u32| (piece as usize * PIECE_BYTES).min(body.len());
        body[at(pieces.start)..at(pieces.end)].to_vec()
    };
    let peer = serving({
        let (body, manifest) = (body.clone(), manifest.clone());
        move |request: Request<Incoming>| {
            let asked = asked_for(request.headers()).unwrap();
            let at = |piece: u32| (piece as usize * PIECE_BYTES).min(body.len());
            let bytes = &body[at(asked.pieces.start)..at(asked.pieces.end)];
            let end = (asked.pieces.end as usize).min(3);
            let answer = match asked.hash {
                None => answer(&manifest, bytes),
                Some(hash)
                    if hash == run_hash(&manifest.pieces[asked.pieces.start as usize..end]) =>
                {
                    Response::new(Full::from(bytes.to_vec()))
                }
                Some(_) => Response::builder()
                    .status(404)
                    .header(ANSWER_FIELD, "other")
                    .body(Full::default())
                    .unwrap(),
            };
            async move { answer }
        }
    })
    .await;
    let (asker, to, fields) = (asker(), id("edge-2"), HeaderMap::new());
    for (first, end) in [(0, 1), (0, 2), (0, 4), (1, 2), (1, 3), (2, 3)] {
        let wanted = first..end;
        let held = asker
            .hold(&to, &peer.address(), Key(7), &fields, wanted.clone())
            .await;
        let object = held.unwrap().0;
        assert_eq!(object.manifest, manifest);
        let (pieces, error) = all(object.pieces).await;
        assert!(pieces.concat() == slice(&wanted) && error.is_none());

        let run = Run::of(&manifest, wanted.clone());
        let sent = asker
            .pieces(&to, &peer.address(), Key(7), &fields, run)
            .await;
        let (pieces, error) = all(sent.unwrap()).await;
        assert!(pieces.concat() == slice(&wanted) && error.is_none());
    }
    let run = Run::of(&object(3 * PIECE_BYTES).1, 1..3);
    let other = asker
        .pieces(&to, &peer.address(), Key(7), &fields, run)
        .await;
    assert_eq!(other.map(drop).unwrap_err(), PeerError::Other);
}

#[test]
fn what_is_asked_for_can_be_understood_or_not() {
    let asked = |pieces: Option<&str>, hash: Option<&str>| {
        let mut fields = HeaderMap::new();
        for (name, value) in [(PIECES_FIELD, pieces), (PIECES_HASH_FIELD, hash)] {
            if let Some(value) = value {
                fields.insert(name, value.parse().unwrap());
            }
        }
        asked_for(&fields)
    };
    let pieces = |text| asked(Some(text), None).map(|asked| asked.pieces);
    assert_eq!(asked(None, None).unwrap().pieces, ALL);
    assert_eq!(pieces("0-3"), Some(0..4));
    assert_eq!(pieces("7-7"), Some(7..8));
    for wrong in ["", "3", "-", "1-", "-1", "a-b", "0-4294967295", "-1-2"] {
        assert_eq!(pieces(wrong), None, "{wrong:?}");
    }
    let hash = blake3::hash(b"");
    assert_eq!(
        asked(Some("0-0"), Some(&hash.to_hex())).unwrap().hash,
        Some(*hash.as_bytes())
    );
    assert_eq!(asked(Some("0-0"), Some("0g")), None);
}

#[tokio::test]
async fn frames_may_be_cut_anywhere() {
    let (body, manifest) = object(PIECE_BYTES + 70_000);
    for cut in [1_000, 4_093, 65_536, PIECE_BYTES + 1] {
        let (whole, manifest) = (answer(&manifest, &body).into_body(), manifest.clone());
        let whole = whole.collect().await.unwrap().to_bytes();
        let peer = Scripted::start(move |_, mut stream| {
            let whole = whole.clone();
            async move {
                read_head(&mut stream).await;
                let head = b"HTTP/1.1 200 OK\r\nage: 1\r\ntransfer-encoding: chunked\r\n\r\n";
                stream.write_all(head).await.unwrap();
                for chunk in whole.chunks(cut) {
                    stream
                        .write_all(format!("{:x}\r\n", chunk.len()).as_bytes())
                        .await
                        .unwrap();
                    stream.write_all(chunk).await.unwrap();
                    stream.write_all(b"\r\n").await.unwrap();
                }
                stream.write_all(b"0\r\n\r\n").await.unwrap();
            }
        })
        .await;
        let object = ask(&peer).await.unwrap();
        assert_eq!(object.manifest, manifest);
        let (pieces, error) = all(object.pieces).await;
        assert!(
            pieces.concat() == body && error.is_none(),
            "cut {cut}: {error:?}"
        );
    }
}

#[tokio::test]
async fn a_wrong_piece_reaches_nobody() {
    let (mut body, manifest) = object(3 * PIECE_BYTES);
    body[PIECE_BYTES + 17] ^= 1;
    let peer = serving(move |_| {
        let answer = answer(&manifest, &body);
        async move { answer }
    })
    .await;
    let (pieces, error) = all(ask(&peer).await.unwrap().pieces).await;
    assert_eq!(
        (pieces.len(), error),
        (1, Some(PeerError::Corrupt { piece: 1 }))
    );
}

#[tokio::test]
async fn an_object_without_body_is_whole_at_once() {
    let (_, manifest) = object(0);
    let peer = serving(move |_| {
        let answer = answer(&manifest, b"");
        async move { answer }
    })
    .await;
    let mut object = ask(&peer).await.unwrap();
    let told = Arc::new(AtomicUsize::new(0));
    let counter = told.clone();
    object.pieces.report_to(Box::new(move |result| {
        assert_eq!(result, Ok(()));
        counter.fetch_add(1, Ordering::SeqCst);
    }));
    assert!(object.pieces.next().await.is_none());
    assert_eq!(told.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_a_peer_can_say_has_a_name() {
    let (body, manifest) = object(100);
    let good = manifest.encode().unwrap();
    let head =
        |status: &str| format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").into_bytes();
    let with = |bytes: &[u8]| [b"HTTP/1.1 200 OK\r\nage: 1\r\n\r\n", bytes].concat();
    let whole = [&*encode_answer_head(&good), &body].concat();
    for (says, label) in [
        (head("404 Not Found\r\ncdn-answer: miss"), "miss"),
        (head("404 Not Found\r\ncdn-answer: stale"), "stale"),
        (head("404 Not Found\r\ncdn-answer: other"), "other"),
        (
            head("404 Not Found\r\ncdn-answer: taken-down"),
            "taken_down",
        ),
        (head("404 Not Found"), "miss"),
        (head("429 Too Many Requests"), "busy"),
        (head("503 Service Unavailable"), "busy"),
        (head("401 Unauthorized"), "denied"),
        (head("403 Forbidden"), "denied"),
        (head("500 Oh"), "garbage"),
        (b"nonsense\r\n\r\n".to_vec(), "garbage"),
        (b"".to_vec(), "closed_early"),
        ([b"HTTP/1.1 200 OK\r\n\r\n", &*whole].concat(), "garbage"),
        (with(b"\x01"), "closed_early"),
        (with(&encode_answer_head(&good)[..20]), "closed_early"),
        (with(&u32::MAX.to_le_bytes()), "garbage"),
        (with(&encode_answer_head(b"no manifest")), "garbage"),
        (with(&whole[..whole.len() - 1]), "closed_early"),
        (with(&whole), "hit"),
    ] {
        let text = String::from_utf8_lossy(&says[..says.len().min(60)]).into_owned();
        let peer = Scripted::start(move |_, mut stream| {
            let says = says.clone();
            async move {
                read_head(&mut stream).await;
                stream.write_all(&says).await.unwrap();
            }
        })
        .await;
        let told = match ask(&peer).await {
            Err(error) => error.label(),
            Ok(object) => all(object.pieces)
                .await
                .1
                .map_or("hit", |error| error.label()),
        };
        assert_eq!(told, label, "{text:?}");
    }
    let nobody = Scripted::refusing().await;
    let addr = nobody.strip_prefix("http://").unwrap();
    let error = asker()
        .hold(&id("edge-2"), addr, Key(7), &HeaderMap::new(), ALL)
        .await
        .unwrap_err();
    assert_eq!(error.label(), "connect");
    let error = asker()
        .hold(
            &id("edge-2"),
            "not an address",
            Key(7),
            &HeaderMap::new(),
            ALL,
        )
        .await;
    assert_eq!(error.unwrap_err().label(), "connect");
}

#[tokio::test]
async fn a_silent_peer_is_given_up() {
    let (body, manifest) = object(100);
    let whole = [&*encode_answer_head(&manifest.encode().unwrap()), &body].concat();
    let head = b"HTTP/1.1 200 OK\r\nage: 1\r\n\r\n";
    let silent_after = |says: Vec<u8>| async move {
        let peer = Scripted::start(move |_, mut stream| {
            let says = says.clone();
            async move {
                read_head(&mut stream).await;
                stream.write_all(&says).await.unwrap();
                pending::<()>().await;
            }
        })
        .await;
        match ask(&peer).await {
            Err(error) => Some(error),
            Ok(object) => all(object.pieces).await.1,
        }
    };
    let (at_once, in_manifest, in_body) = tokio::join!(
        silent_after(Vec::new()),
        silent_after([head, &whole[..20]].concat()),
        silent_after([head, &whole[..whole.len() - 1]].concat()),
    );
    let timeout = Some(PeerError::Timeout);
    assert_eq!(
        [at_once, in_manifest, in_body],
        [timeout.clone(), timeout, Some(PeerError::Stalled)]
    );
}

#[tokio::test]
async fn a_question_that_met_a_closing_connection_is_asked_again_under_a_new_signature() {
    let nonces: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = nonces.clone();
    let peer = Scripted::start(move |connection, mut stream| {
        let seen = seen.clone();
        async move {
            let miss = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
            // The first connection answers once, and closes when it is asked again.
            for answered in 0..2 {
                let head = read_head(&mut stream).await;
                let nonce = head.lines().find(|line| line.starts_with("cdn-nonce"));
                seen.lock().unwrap().extend(nonce.map(str::to_owned));
                if connection == 0 && answered == 1 {
                    return;
                }
                stream.write_all(miss).await.unwrap();
            }
        }
    })
    .await;
    let asker = asker();
    for _ in 0..2 {
        let held = asker
            .hold(
                &id("edge-2"),
                &peer.address(),
                Key(7),
                &HeaderMap::new(),
                ALL,
            )
            .await;
        assert_eq!(held.unwrap_err(), PeerError::Miss);
    }
    assert_eq!(peer.connections(), 2);
    let mut nonces = nonces.lock().unwrap().clone();
    nonces.sort();
    nonces.dedup();
    assert_eq!(nonces.len(), 3);
}
