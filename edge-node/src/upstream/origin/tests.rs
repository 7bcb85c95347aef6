use async_trait::async_trait;
use cluster::{net::SystemNet, quantity::Span};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};

use super::super::{
    plain::Spelling,
    pool::{FIELDS_MAX, HEAD_BYTES_MAX},
};
use super::*;
use crate::upstream::scripted::{Counted, Scripted, pending, read_head};

const KEY: Key = Key(7);

struct Bench {
    origins: Origins,
    events: Arc<Counted>,
    site: Site,
}

impl Bench {
    fn new(urls: &[&str]) -> Self {
        Self::over(Pool::new(Arc::new(SystemNet)), urls)
    }

    fn over(pool: Pool, urls: &[&str]) -> Self {
        let events = Arc::new(Counted::default());
        let mut site = Site::new("www", &["*"], urls);
        site.connect_timeout = Span(Duration::from_secs(20));
        site.first_byte_timeout = Span(Duration::from_secs(20));
        site.between_bytes_timeout = Span(Duration::from_secs(20));
        Self {
            origins: Origins::new(pool, events.clone()),
            events,
            site,
        }
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<OriginBody>, OriginError> {
        let place = self.origins.enter(&self.site).await.unwrap();
        self.origins
            .fetch(&self.site, KEY, "www.example.com", request, place)
            .await
    }

    /// The whole body, or the failure of head or body.
    async fn whole(&self, request: Request<Body>) -> Result<Bytes, OriginError> {
        Ok(self
            .send(request)
            .await?
            .into_body()
            .collect()
            .await?
            .to_bytes())
    }

    fn attempts(&self) -> usize {
        self.events.of("origin www")
    }
}

/// For a plain exchange, if its answer is one.
fn get(path: &str) -> Request<Body> {
    let mut request = Request::get(path).body(empty()).unwrap();
    request.extensions_mut().insert(Spelling::default());
    request
}

fn post(body: &'static str) -> Request<Body> {
    let body = Full::from(body)
        .map_err(|never| match never {})
        .boxed_unsync();
    Request::post("/").body(body).unwrap()
}

fn backup(bench: &mut Bench, n: usize) {
    bench.site.origins[n].backup = true;
}

async fn say(mut stream: TcpStream, text: &str) {
    read_head(&mut stream).await;
    stream.write_all(text.as_bytes()).await.ok();
    stream.flush().await.ok();
    stream.shutdown().await.ok();
    // What the client still sends is read, so that closing does not reset what was said.
    let mut rest = [0; 1024];
    while matches!(stream.read(&mut rest).await, Ok(n) if n > 0) {}
}

async fn answering(text: &'static str) -> Scripted {
    Scripted::start(move |_, stream| say(stream, text)).await
}

/// An origin that answers `text`, and the heads of what it is asked.
async fn overheard(text: &'static str) -> (Scripted, mpsc::Receiver<String>) {
    let (seen, heads) = mpsc::channel(2);
    let origin = Scripted::start(move |_, mut stream| {
        let seen = seen.clone();
        async move {
            seen.send(read_head(&mut stream).await).await.unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
        }
    })
    .await;
    (origin, heads)
}

#[tokio::test]
async fn the_origin_sees_the_path_the_fields_and_the_host_it_is_known_by() {
    let (origin, mut heads) =
        overheard("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx: y\r\n\r\nhi").await;
    let mut bench = Bench::new(&[&origin.url()]);
    let mut request = get("http://client.said/a/b?c=d");
    request
        .headers_mut()
        .insert("via", "1.1 edge".try_into().unwrap());
    let answer = bench.send(request).await.unwrap();
    assert_eq!(answer.headers()["x"], "y");
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hi");
    let head = heads.recv().await.unwrap();
    assert!(head.starts_with("GET /a/b?c=d HTTP/1.1\r\n"), "{head}");
    assert!(
        head.contains("host: www.example.com\r\n") && head.contains("via: 1.1 edge\r\n"),
        "{head}"
    );

    bench.site.origin_host = Some("backend.test".into());
    bench.whole(get("/")).await.unwrap();
    assert!(
        heads
            .recv()
            .await
            .unwrap()
            .contains("host: backend.test\r\n")
    );
}

#[tokio::test]
async fn what_an_origin_can_do_wrong_has_a_name() {
    for (text, kind) in [
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", Fault::Garbage),
        ("HTTP/1.1 2x0 OK\r\n\r\n", Fault::Garbage),
        ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", Fault::Garbage),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
            Fault::Garbage,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            Fault::Garbage,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\nxx",
            Fault::Garbage,
        ),
        // RFC 9110 §15.2.2
        (
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
            Fault::Garbage,
        ),
        ("", Fault::ClosedEarly),
        ("HTTP/1.1 200 OK\r\ncontent-le", Fault::ClosedEarly),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
            Fault::ClosedEarly,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n",
            Fault::ClosedEarly,
        ),
    ] {
        let origin = answering(text).await;
        let bench = Bench::new(&[&origin.url()]);
        let error = bench.whole(get("/")).await.unwrap_err();
        assert_eq!(
            (error.kind, &error.origin),
            (kind, &origin.url()),
            "{text:?}: {error}"
        );
        assert_eq!(bench.attempts(), 1, "{text:?}");
    }
}

#[tokio::test]
async fn an_answer_says_once_how_long_it_is() {
    // RFC 9112 §6.3
    for (fields, body, length) in [
        ("transfer-encoding: chunked", "2\r\nhi\r\n0\r\n\r\n", None),
        (
            "content-length: 9\r\ntransfer-encoding: chunked",
            "2\r\nhi\r\n0\r\n\r\n",
            None,
        ),
        ("content-length: 2", "hi", Some("2")),
        ("content-length: 2, 2", "hi", Some("2")),
        ("content-length: 2\r\ncontent-length: 2", "hi", Some("2")),
    ] {
        let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{body}");
        let origin = answering(Box::leak(text.into_boxed_str())).await;
        let answer = Bench::new(&[&origin.url()]).send(get("/")).await.unwrap();
        let lengths: Vec<_> = answer.headers().get_all(CONTENT_LENGTH).iter().collect();
        assert_eq!(lengths, Vec::from_iter(length), "{fields}");
        let whole = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(whole, "hi", "{fields}");
    }
}

#[tokio::test]
async fn a_banner_before_any_request_is_not_http() {
    let origin = Scripted::start(|_, mut stream| async move {
        stream.write_all(b"220 mail.test ESMTP\r\n").await.unwrap();
        read_head(&mut stream).await;
    })
    .await;
    let error = Bench::new(&[&origin.url()])
        .whole(get("/"))
        .await
        .unwrap_err();
    assert_eq!(error.kind, Fault::Garbage, "{error}");
}

#[tokio::test]
async fn an_oversized_head_is_cut_off() {
    let long = format!(
        "HTTP/1.1 200 OK\r\nx: {}\r\n\r\n",
        "y".repeat(2 * HEAD_BYTES_MAX)
    );
    let many = format!(
        "HTTP/1.1 200 OK\r\n{}\r\n",
        "x: y\r\n".repeat(FIELDS_MAX + 1)
    );
    for text in [long, many] {
        let origin = answering(Box::leak(text.into_boxed_str())).await;
        let error = Bench::new(&[&origin.url()])
            .whole(get("/"))
            .await
            .unwrap_err();
        assert_eq!(error.kind, Fault::TooLarge, "{error}");
    }
}

#[tokio::test]
async fn an_origin_that_cannot_be_reached_says_why() {
    let gone = Scripted::refusing().await;
    let plain = Scripted::start(|_, mut stream| async move {
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .ok();
        read_head(&mut stream).await;
    })
    .await;
    for (url, kind) in [
        (gone.clone(), Fault::Connect),
        ("http://no-such-host.invalid".into(), Fault::Connect),
        (plain.url().replace("http:", "https:"), Fault::Tls),
    ] {
        let error = Bench::new(&[&url]).whole(get("/")).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
    }
}

#[tokio::test]
async fn every_silence_has_a_deadline() {
    let short = Span(Duration::from_millis(100));
    let silent = Scripted::start(|_, mut stream| async move {
        read_head(&mut stream).await;
        pending::<()>().await;
    })
    .await;
    let halting = Scripted::start(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
            .await
            .unwrap();
        pending::<()>().await;
    })
    .await;

    let mut bench = Bench::new(&[&silent.url()]);
    bench.site.first_byte_timeout = short;
    assert_eq!(
        bench.whole(get("/")).await.unwrap_err().kind,
        Fault::HeadTimeout
    );
    assert_eq!(
        bench.whole(post("all of it")).await.unwrap_err().kind,
        Fault::HeadTimeout
    );

    let mut bench = Bench::new(&[&halting.url()]);
    bench.site.between_bytes_timeout = short;
    let mut body = bench.send(get("/")).await.unwrap().into_body();
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "half"
    );
    assert_eq!(
        body.frame().await.unwrap().unwrap_err().kind,
        Fault::BodyTimeout
    );

    // Nobody answers the handshake; nobody answers at all.
    let mut bench = Bench::new(&[&silent.url().replace("http:", "https:")]);
    bench.site.connect_timeout = short;
    assert_eq!(
        bench.whole(get("/")).await.unwrap_err().kind,
        Fault::ConnectTimeout
    );
    let mut bench = Bench::over(Pool::new(Arc::new(BlackHole)), &["http://origin.test"]);
    bench.site.connect_timeout = short;
    assert_eq!(
        bench.whole(get("/")).await.unwrap_err().kind,
        Fault::ConnectTimeout
    );
}

/// A network that never answers.
struct BlackHole;

#[async_trait]
impl cluster::net::Net for BlackHole {
    async fn listen(
        &self,
        _: std::net::SocketAddr,
    ) -> std::io::Result<Box<dyn cluster::net::Listener>> {
        pending().await
    }
    async fn connect(&self, _: &str) -> std::io::Result<cluster::net::BoxStream> {
        pending().await
    }
    async fn datagrams(
        &self,
        _: std::net::SocketAddr,
    ) -> std::io::Result<Arc<dyn cluster::net::Datagrams>> {
        pending().await
    }
    async fn resolve(&self, _: &str) -> std::io::Result<Vec<std::net::SocketAddr>> {
        pending().await
    }
}

#[tokio::test]
async fn the_next_origin_gets_the_whole_body_when_the_first_is_down() {
    let gone = Scripted::refusing().await;
    let up = Scripted::start(|_, mut stream| async move {
        read_head(&mut stream).await;
        let mut body = [0; 5];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"hello");
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nwelcome")
            .await
            .unwrap();
    })
    .await;
    let mut bench = Bench::new(&[&gone, &up.url()]);
    backup(&mut bench, 1);
    assert_eq!(bench.whole(post("hello")).await.unwrap(), "welcome");
    assert_eq!(bench.attempts(), 2);
    // For a while the one that is up is asked first.
    assert_eq!(bench.whole(post("hello")).await.unwrap(), "welcome");
    assert_eq!(bench.attempts(), 3);
}

#[tokio::test]
async fn an_origin_that_took_what_must_not_be_repeated_is_not_followed_by_another() {
    let bad = answering("").await;
    let good = answering("HTTP/1.1 200 OK\r\n\r\n").await;
    let mut bench = Bench::new(&[&bad.url(), &good.url()]);
    backup(&mut bench, 1);
    for request in [post("pay"), Request::post("/").body(empty()).unwrap()] {
        let error = bench.whole(request).await.unwrap_err();
        assert_eq!((error.kind, error.origin), (Fault::ClosedEarly, bad.url()));
    }
    assert_eq!((good.connections(), bench.attempts()), (0, 2));
}

#[tokio::test]
async fn what_is_safe_is_asked_of_the_next_when_an_origin_fails_to_answer() {
    let silent = Scripted::start(|_, mut stream| async move {
        read_head(&mut stream).await;
        pending::<()>().await;
    })
    .await;
    let good = answering("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood").await;
    for bad in [
        answering("").await,
        answering("SSH-2.0\r\n\r\n").await,
        silent,
    ] {
        let mut bench = Bench::new(&[&bad.url(), &good.url()]);
        bench.site.first_byte_timeout = Span(Duration::from_millis(200));
        backup(&mut bench, 1);
        assert_eq!(bench.whole(get("/")).await.unwrap(), "good");
        // It is not shunned for that: it does accept connections.
        assert_eq!(bench.whole(get("/")).await.unwrap(), "good");
        assert_eq!((bad.connections(), bench.attempts()), (2, 4));
    }
}

#[tokio::test]
async fn a_status_that_the_site_names_makes_a_safe_request_go_to_the_next() {
    let busy = answering("HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy").await;
    let good = answering("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood").await;
    let mut bench = Bench::new(&[&busy.url(), &good.url()]);
    backup(&mut bench, 1);
    assert_eq!(bench.whole(get("/")).await.unwrap(), "busy");
    bench.site.failover = vec![Statuses {
        first: 502,
        last: 504,
    }];
    assert_eq!(bench.whole(get("/")).await.unwrap(), "good");
    assert_eq!(bench.whole(post("pay")).await.unwrap(), "busy");
    // If nobody does better, the answer of one that could say something counts.
    let gone = Scripted::refusing().await;
    let mut bench = Bench::new(&[&busy.url(), &gone]);
    backup(&mut bench, 1);
    bench.site.failover = vec![Statuses {
        first: 503,
        last: 503,
    }];
    let answer = bench.send(get("/")).await.unwrap();
    assert_eq!(answer.status(), 503);
    assert_eq!(
        answer.into_body().collect().await.unwrap().to_bytes(),
        "busy"
    );
}

#[tokio::test]
async fn no_request_is_sent_to_more_origins_than_its_client_can_wait_for() {
    let bad: Vec<_> = [(); ORIGINS_TRIED_MAX + 2].map(|()| ()).to_vec();
    let mut origins = Vec::new();
    for () in bad {
        origins.push(answering("").await);
    }
    let urls: Vec<_> = origins.iter().map(Scripted::url).collect();
    let urls: Vec<_> = urls.iter().map(String::as_str).collect();
    let bench = Bench::new(&urls);
    bench.whole(get("/")).await.unwrap_err();
    assert_eq!(bench.attempts(), ORIGINS_TRIED_MAX);
}

#[tokio::test]
async fn an_origin_is_asked_for_its_own_host() {
    let (origin, mut heads) = overheard("HTTP/1.1 204 No Content\r\n\r\n").await;
    let mut bench = Bench::new(&[&origin.url()]);
    bench.site.origin_host = Some("site.test".into());
    bench.site.origins[0].host = Some("own.test:81".into());
    bench.whole(get("/")).await.unwrap();
    let head = heads.recv().await.unwrap();
    assert!(head.contains("host: own.test:81\r\n"), "{head}");
}

/// An origin that answers the first request of its first connection, and closes at the second.
async fn closing_at_the_second_request() -> Scripted {
    Scripted::start(|connection, mut stream| async move {
        read_head(&mut stream).await;
        let first = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n";
        stream.write_all(first).await.unwrap();
        stream
            .write_all(connection.to_string().as_bytes())
            .await
            .unwrap();
        read_head(&mut stream).await;
    })
    .await
}

#[tokio::test]
async fn a_used_connection_that_closes_unanswered_is_replaced_once() {
    let origin = closing_at_the_second_request().await;
    let bench = Bench::new(&[&origin.url()]);
    assert_eq!(bench.whole(get("/")).await.unwrap(), "0");
    assert_eq!(bench.whole(get("/")).await.unwrap(), "1");
    assert_eq!((origin.connections(), bench.attempts()), (2, 3));
}

#[tokio::test]
async fn a_connection_that_was_closed_idle_takes_no_request_away() {
    let (closed, mut is_closed) = mpsc::channel(1);
    let origin = Scripted::start(move |connection, mut stream| {
        let closed = closed.clone();
        async move {
            read_head(&mut stream).await;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{connection}");
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            closed.send(()).await.unwrap();
            // Until the other end has closed, too: nothing else comes.
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            assert!(connection > 0 || rest.is_empty(), "{rest:?}");
        }
    })
    .await;
    let bench = Bench::new(&[&origin.url()]);
    assert_eq!(bench.whole(get("/")).await.unwrap(), "0");
    is_closed.recv().await.unwrap();
    // Not idempotent, and sent for the first time: RFC 9110 §9.2.2 has nothing against it.
    assert_eq!(bench.whole(post("pay")).await.unwrap(), "1");
    assert_eq!((origin.connections(), bench.attempts()), (2, 2));
}

#[tokio::test]
async fn what_must_not_be_repeated_is_not() {
    for request in [
        post("pay"),
        Request::post("/").body(empty()).unwrap(),
        Request::put("/")
            .body(Full::from("x").map_err(|n| match n {}).boxed_unsync())
            .unwrap(),
    ] {
        let origin = closing_at_the_second_request().await;
        let bench = Bench::new(&[&origin.url()]);
        // Over the connection that the next request is to get.
        let first = Request::get("/").body(empty()).unwrap();
        assert_eq!(bench.whole(first).await.unwrap(), "0");
        let error = bench.whole(request).await.unwrap_err();
        assert_eq!(
            (error.kind, origin.connections()),
            (Fault::ClosedEarly, 1),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_slow_client_does_not_use_up_the_origins_time() {
    let origin = Scripted::start(|_, mut stream| async move {
        read_head(&mut stream).await;
        let mut body = vec![0; 12];
        stream.read_exact(&mut body).await.unwrap();
        stream
            .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            .await
            .unwrap();
    })
    .await;
    let mut bench = Bench::new(&[&origin.url()]);
    bench.site.first_byte_timeout = Span(Duration::from_millis(300));
    let slow = trickle(vec!["ab", "cd"], Duration::from_millis(800));
    let answer = bench
        .send(Request::post("/").body(slow).unwrap())
        .await
        .unwrap();
    assert_eq!(answer.status(), 204);
}

/// A chunked body whose parts are `gap` apart.
fn trickle(parts: Vec<&'static str>, gap: Duration) -> Body {
    let (tx, mut rx) = mpsc::channel(1);
    tokio::spawn(async move {
        for part in parts {
            tokio::time::sleep(gap).await;
            tx.send(Ok(Frame::data(Bytes::from(part)))).await.ok();
        }
    });
    StreamBody::new(futures_util::stream::poll_fn(move |cx| rx.poll_recv(cx))).boxed_unsync()
}

#[tokio::test]
async fn a_client_that_breaks_off_its_body_is_to_blame() {
    let origin = Scripted::start(|_, mut stream| async move {
        read_head(&mut stream).await;
        read_head(&mut stream).await;
    })
    .await;
    let broken = futures_util::stream::iter([
        Ok(Frame::data(Bytes::from("ab"))),
        Err("the client went away".into()),
    ]);
    let request = Request::post("/")
        .body(StreamBody::new(broken).boxed_unsync())
        .unwrap();
    let error = Bench::new(&[&origin.url()])
        .whole(request)
        .await
        .unwrap_err();
    assert_eq!(error.kind, Fault::RequestBody, "{error}");
}

#[tokio::test]
async fn an_upgraded_connection_is_handed_over() {
    let origin = Scripted::start(|_, mut stream| async move {
        let head = read_head(&mut stream).await;
        assert!(head.contains("upgrade: echo\r\n"), "{head}");
        let accept =
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
        stream.write_all(accept).await.unwrap();
        let (mut from, mut to) = stream.split();
        tokio::io::copy(&mut from, &mut to).await.unwrap();
    })
    .await;
    let mut request = get("/");
    request
        .headers_mut()
        .insert("connection", "upgrade".try_into().unwrap());
    request
        .headers_mut()
        .insert("upgrade", "echo".try_into().unwrap());
    let answer = Bench::new(&[&origin.url()]).send(request).await.unwrap();
    assert_eq!(answer.status(), 101);
    let mut tunnel = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    tunnel.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    tunnel.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");
}
