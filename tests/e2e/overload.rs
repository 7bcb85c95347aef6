//! More than a node or an origin may do at once: what is stored is served, the rest waits in line or is
//! told to come back, and when the crowd is gone nobody has to help.

use std::time::Duration;

use anyhow::{Result, ensure};
use cluster::{quantity::Span, site::Site};
use harness::{
    client::{Client, Response},
    cluster::{Cluster, HOST, Node, Plan},
    origin::{Answer, Origin},
    process::eventually,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::timeout,
};

use crate::{SECOND, started, stored};

/// Longer than any test takes: what must not happen by a timeout does not.
const LONG: Span = Span(Duration::from_secs(300));

/// An edge in front of an origin that holds its answers back until it is let go.
struct Stage {
    origin: Origin,
    cluster: Cluster,
    open: watch::Sender<bool>,
}

impl Stage {
    /// With so many requests at the origin at once, so many in line, and no hurry.
    async fn new(concurrency: u32, queue: u32, change: impl FnOnce(&mut Site)) -> Self {
        Self::with(concurrency, queue, change, |plan| plan).await
    }

    async fn with(
        concurrency: u32,
        queue: u32,
        change: impl FnOnce(&mut Site),
        plan: impl FnOnce(Plan) -> Plan,
    ) -> Self {
        let origin = Origin::start().await.expect("a free port");
        let alone = Plan::alone(&origin.url()).site(|site| {
            site.origin_concurrency = Some(concurrency);
            site.origin_queue = Some(queue);
            site.origin_queue_timeout = Some(LONG);
            site.first_byte_timeout = LONG;
            change(site);
        });
        Self {
            cluster: started(plan(alone)).await,
            origin,
            open: watch::Sender::new(false),
        }
    }

    fn edge(&self) -> &Node {
        &self.cluster.edges[0]
    }

    /// An answer that is held back.
    fn held(&self) -> Answer {
        Answer::bytes("here it is")
            .max_age(600)
            .held(self.open.subscribe())
    }

    /// So many requests, each for something else that the origin holds back.
    fn misses(&self, count: usize) -> JoinSet<Result<Response>> {
        let mut misses = JoinSet::new();
        for number in 0..count {
            let path = format!("/held/{number}");
            self.origin.route(&path, self.held());
            self.ask(&mut misses, &path);
        }
        misses
    }

    fn ask(&self, asking: &mut JoinSet<Result<Response>>, path: &str) {
        let url = self.edge().url(path);
        asking.spawn(async move { Client::new().get_with(&url, &[("host", HOST)]).await });
    }

    /// Waits until a metric has this value.
    async fn until(&self, name: &str, label: &str, value: f64) {
        let what = format!("{name}{{{label}}} is {value}");
        let check = async || {
            let now = self.edge().metric(name, &[label]).await?;
            ensure!((now - value).abs() < 0.5, "it is {now}");
            Ok(())
        };
        eventually(&what, check).await.unwrap();
    }

    async fn shed(&self, reason: &str) -> f64 {
        let label = format!("reason=\"{reason}\"");
        self.edge()
            .metric("edge_shed_total", &[&label])
            .await
            .unwrap()
    }
}

const SITE: &str = "site=\"site\"";

/// Whether a client is told to come back.
fn comes_back(answer: &Response) -> bool {
    let detail = answer.cache_status().detail;
    answer.status == 503
        && answer.field("retry-after") == Some("5")
        && detail.as_deref() == Some("overloaded")
}

/// The whole story: a crowd of misses, an origin that takes few at once, hits meanwhile, and after.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_misses_spares_the_origin_and_does_not_touch_hits() {
    const AT_ONCE: u32 = 3;
    const IN_LINE: u32 = 5;
    const CROWD: usize = 40;
    let stage = Stage::new(AT_ONCE, IN_LINE, |_| ()).await;
    stage
        .origin
        .route("/hot", Answer::bytes("hot").max_age(600));
    stored(stage.edge(), "/hot").await;

    let mut crowd = stage.misses(CROWD);
    let taken = usize::try_from(AT_ONCE + IN_LINE).unwrap();
    for _ in taken..CROWD {
        let answer = crowd.join_next().await.unwrap().unwrap().unwrap();
        assert!(comes_back(&answer), "{answer:?}");
    }
    stage
        .until("edge_origin_queue", SITE, f64::from(IN_LINE))
        .await;
    stage
        .until("edge_origin_requests_in_flight", SITE, f64::from(AT_ONCE))
        .await;
    // Nobody else is answered yet: what comes now is answered before them.
    for _ in 0..100 {
        let answer = stage.edge().get("/hot").await.unwrap();
        assert!(
            answer.status == 200 && answer.cache_status().hit,
            "{answer:?}"
        );
    }
    assert!(crowd.try_join_next().is_none());
    let shed = stage.shed("origin-queue-full").await;
    assert!((shed - (CROWD - taken) as f64).abs() < 0.5, "{shed}");

    stage.open.send_replace(true);
    for answer in crowd.join_all().await {
        assert_eq!(answer.unwrap().status, 200);
    }
    assert_eq!(stage.origin.most_unanswered(), u64::from(AT_ONCE));
    stage.until("edge_origin_queue", SITE, 0.0).await;
    stage.origin.route("/after", Answer::bytes("after"));
    assert_eq!(stage.edge().get("/after").await.unwrap().status, 200);
}

#[tokio::test]
async fn who_has_waited_too_long_comes_back_or_gets_what_is_stale() {
    let stage = Stage::new(1, 10, |site| {
        site.origin_queue_timeout = Some(Span(Duration::from_millis(200)));
    })
    .await;
    let brief = Answer::bytes("old").field("cache-control", "max-age=1, stale-if-error=600");
    stage.origin.route("/old", brief);
    stored(stage.edge(), "/old").await;
    tokio::time::sleep(2 * SECOND).await;

    let mut first = stage.misses(1);
    stage
        .until("edge_origin_requests_in_flight", SITE, 1.0)
        .await;
    let answer = stage.edge().get("/new").await.unwrap();
    assert!(comes_back(&answer), "{answer:?}");
    let answer = stage.edge().get("/old").await.unwrap();
    assert_eq!((answer.status, &answer.body[..]), (200, &b"old"[..]));
    assert!(stage.shed("origin-queue-timeout").await > 1.5);
    assert_eq!(stage.origin.seen("/old").len(), 1);

    stage.open.send_replace(true);
    let first = first.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(first.status, 200);
}

#[tokio::test]
async fn a_validation_behind_a_stale_answer_gives_way() {
    let stage = Stage::new(1, 10, |_| ()).await;
    let brief =
        Answer::bytes("old").field("cache-control", "max-age=1, stale-while-revalidate=600");
    stage.origin.route("/old", brief);
    stored(stage.edge(), "/old").await;
    tokio::time::sleep(2 * SECOND).await;

    let mut misses = stage.misses(2);
    stage.until("edge_origin_queue", SITE, 1.0).await;
    for _ in 0..3 {
        let answer = stage.edge().get("/old").await.unwrap();
        assert_eq!((answer.status, &answer.body[..]), (200, &b"old"[..]));
    }
    let what = "the validation is given up";
    let given_up = async || {
        ensure!(stage.shed("unwanted").await > 0.5);
        Ok(())
    };
    eventually(what, given_up).await.unwrap();
    // One is at the origin, one waits, and none before it.
    stage.until("edge_origin_queue", SITE, 1.0).await;
    assert_eq!(stage.origin.seen("/old").len(), 1);

    stage.open.send_replace(true);
    while let Some(answer) = misses.join_next().await {
        assert_eq!(answer.unwrap().unwrap().status, 200);
    }
    let validated = async || {
        stage.edge().get("/old").await?;
        ensure!(stage.origin.seen("/old").len() > 1);
        Ok(())
    };
    eventually("it is validated", validated).await.unwrap();
}

#[tokio::test]
async fn who_leaves_the_line_is_not_asked_for() {
    let stage = Stage::new(1, 10, |_| ()).await;
    let mut first = stage.misses(1);
    stage
        .until("edge_origin_requests_in_flight", SITE, 1.0)
        .await;
    // One that would be stored, and one that goes through.
    let mut gone = Vec::new();
    for head in ["GET /gone", "DELETE /gone"] {
        let mut client = TcpStream::connect(stage.edge().http).await.unwrap();
        let request = format!("{head} HTTP/1.1\r\nhost: site.test\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        gone.push(client);
    }
    stage.until("edge_origin_queue", SITE, 2.0).await;
    drop(gone);
    stage.until("edge_origin_queue", SITE, 0.0).await;
    stage.open.send_replace(true);
    let first = first.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(first.status, 200);
    assert_eq!(stage.edge().get("/else").await.unwrap().status, 404);
    assert!(stage.origin.seen("/gone").is_empty());
}

#[tokio::test]
async fn a_place_is_kept_until_the_body_has_ended_or_the_client_has_left() {
    let stage = Stage::new(1, 10, |_| ()).await;
    // More than the buffers on the way hold.
    let large = Answer::bytes(vec![0; 64 << 20]).field("cache-control", "no-store");
    stage.origin.route("/large", large);
    stage.origin.route("/small", Answer::bytes("small"));
    let mut slow = TcpStream::connect(stage.edge().http).await.unwrap();
    let request = b"GET /large HTTP/1.1\r\nhost: site.test\r\n\r\n";
    slow.write_all(request).await.unwrap();
    slow.read_u8().await.unwrap();
    let mut next = JoinSet::new();
    stage.ask(&mut next, "/small");
    stage.until("edge_origin_queue", SITE, 1.0).await;
    assert!(stage.origin.seen("/small").is_empty());
    drop(slow);
    let answer = next.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(answer.status, 200);
}

/// Who leaves before the answer was in flight until then, and no longer.
#[tokio::test]
async fn a_request_whose_client_has_left_is_not_in_flight() {
    let stage = Stage::new(10, 10, |_| ()).await;
    let late = Answer::bytes("late").head_after(10 * SECOND);
    stage.origin.route("/late", late);
    // Beneath hyper, and through it.
    for fields in ["", "te: trailers\r\n"] {
        let mut client = TcpStream::connect(stage.edge().http).await.unwrap();
        let request = format!("GET /late HTTP/1.1\r\nhost: site.test\r\n{fields}\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        stage.until("edge_requests_in_flight", "", 1.0).await;
        drop(client);
        stage.until("edge_requests_in_flight", "", 0.0).await;
    }
}

/// Some answers make a second question necessary; with a single place, that must not wait for itself.
#[tokio::test]
async fn a_second_question_does_not_wait_for_the_place_of_the_first() {
    let stage = Stage::new(1, 10, |_| ()).await;
    // Confirmed, and no longer to be shared: what was stored goes, and the whole is fetched.
    stage.origin.route_by("/turns", |seen| {
        let control = match seen.field("if-none-match") {
            Some(_) => "no-store",
            None => "max-age=0",
        };
        let answer = Answer::bytes("turned").field("etag", "\"1\"");
        answer.field("cache-control", control).into()
    });
    for _ in 0..3 {
        let answer = stage.edge().get("/turns").await.unwrap();
        assert_eq!((answer.status, &answer.body[..]), (200, &b"turned"[..]));
    }
    let asked = stage.origin.seen("/turns");
    let conditions = asked.iter().filter(|s| s.field("if-none-match").is_some());
    assert!(conditions.count() > 0 && asked.len() > 3, "{asked:?}");
}

#[tokio::test]
async fn a_node_fills_so_much_at_once_and_no_more() {
    let few = |plan: Plan| plan.edge_setting("limits", "fills", 2);
    let stage = Stage::with(100, 100, |_| (), few).await;
    stage
        .origin
        .route("/hot", Answer::bytes("hot").max_age(600));
    stored(stage.edge(), "/hot").await;
    let mut misses = stage.misses(5);
    for _ in 0..3 {
        let answer = misses.join_next().await.unwrap().unwrap().unwrap();
        assert!(comes_back(&answer), "{answer:?}");
    }
    let answer = stage.edge().get("/hot").await.unwrap();
    assert!(
        answer.status == 200 && answer.cache_status().hit,
        "{answer:?}"
    );
    assert!((stage.shed("fills").await - 3.0).abs() < 0.5);

    stage.open.send_replace(true);
    for answer in misses.join_all().await {
        assert_eq!(answer.unwrap().status, 200);
    }
    let free = async || {
        let answer = stage.edge().get("/none").await?;
        ensure!(answer.status == 404, "{}", answer.status);
        Ok(())
    };
    eventually("a miss is fetched again", free).await.unwrap();
}

/// One place is kept free while anybody is idle: the oldest goes, whoever waits for an answer stays.
#[tokio::test]
async fn a_connection_that_asks_for_nothing_makes_room_for_a_new_one() {
    let few = |plan: Plan| plan.edge_setting("limits", "connections", 3);
    let stage = Stage::with(100, 100, |_| (), few).await;
    stage.origin.route("/hot", Answer::bytes("hot"));
    stage.origin.route("/held", stage.held());
    let mut first = Kept::new(stage.edge()).await;
    assert!(first.ask("/hot").await.ends_with("hot"));
    let mut second = Kept::new(stage.edge()).await;
    assert!(second.ask("/hot").await.ends_with("hot"));
    let mut waiting = Kept::new(stage.edge()).await;
    waiting.send("/held").await;

    first.is_closed().await;
    let mut new = Kept::new(stage.edge()).await;
    assert!(new.ask("/hot").await.ends_with("hot"));
    second.is_closed().await;
    assert!((stage.shed("idle-connection").await - 2.0).abs() < 0.5);
    // Now there is room again, and who is here may stay.
    tokio::time::sleep(2 * SECOND).await;
    assert!(new.ask("/hot").await.ends_with("hot"));
    stage.open.send_replace(true);
    assert!(waiting.answer().await.ends_with("here it is"));
}

/// A connection that a client keeps.
struct Kept(TcpStream);

impl Kept {
    async fn new(edge: &Node) -> Self {
        Self(TcpStream::connect(edge.http).await.unwrap())
    }

    async fn ask(&mut self, path: &str) -> String {
        self.send(path).await;
        self.answer().await
    }

    async fn send(&mut self, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
        self.0.write_all(request.as_bytes()).await.unwrap();
    }

    /// The whole answer; its length must be told.
    async fn answer(&mut self) -> String {
        let read = async {
            let mut text = String::new();
            loop {
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let lines = head.lines();
                    let mut length = lines.filter_map(|l| l.strip_prefix("content-length: "));
                    if length.next().unwrap().parse() == Ok(body.len()) {
                        return text;
                    }
                }
                text.push(char::from(self.0.read_u8().await.unwrap()));
            }
        };
        timeout(LONG.0, read).await.unwrap()
    }

    async fn is_closed(&mut self) {
        let ended = timeout(LONG.0, self.0.read_u8()).await;
        assert!(ended.unwrap().is_err());
    }
}
