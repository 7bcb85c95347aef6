//! One edge as the shared HTTP cache of the RFCs, row by row: each [`Case`] cites the section that
//! it follows from, and is a handful of exchanges on a path of its own.
//!
//! All cases run against one edge at once, so that their pauses cost nothing. What fails is told
//! together. `TESTS_ROWS=Vary` runs those whose section or name contains the word.
//!
//! - [`storing`]: what is kept, and which of its fields;
//! - [`choosing`]: which stored answer is for whom: keys and `Vary`;
//! - [`aging`]: how long it is fresh;
//! - [`expired`]: what may be done with it afterwards;
//! - [`validating`]: how the origin is asked whether it still holds, and how clients ask;
//! - [`changing`]: methods that make it doubtful;
//! - [`asking`]: what clients ask of the cache;
//! - [`cutting`]: ranges of it;
//! - [`telling`]: what `Cache-Status` says of all this;
//! - [`scenes`]: what is no sequence of exchanges.

mod aging;
mod asking;
mod changing;
mod choosing;
mod cutting;
mod expired;
mod gaps;
mod scenes;
mod storing;
mod telling;
mod validating;

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use harness::{
    client::{Client, Response},
    cluster::HOST,
    origin::{Origin, Script, Seen},
};
use http::Method;
use tokio::{sync::Semaphore, task::JoinSet};

use self::gaps::KNOWN_GAPS;
use crate::alone;

/// How many cases run at once: most of them sleep, and an origin accepts no more at a time.
const AT_ONCE: usize = 100;
/// Long enough for what is fresh for a second to be stale, whatever part of a second is rounded.
const A_SECOND_PASSES: Duration = Duration::from_millis(2_300);
/// From the end of an answer until an edge has it in its store. Who comes before that shares it with
/// those who waited for it, which is what [`scenes`] are about.
const SETTLED: Duration = Duration::from_millis(50);
/// How long an edge may take to ask the origin behind a client's back.
const BEHIND_WITHIN: Duration = Duration::from_secs(20);
/// Fields by which a cache asks whether what it has still holds.
const CONDITIONS: [&str; 2] = ["if-none-match", "if-modified-since"];
/// A date long past, as a validator.
const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
/// An earlier and a later one.
const EARLIER: &str = "Sat, 05 Nov 1994 08:49:37 GMT";
const LATER: &str = "Mon, 07 Nov 1994 08:49:37 GMT";

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_does_as_the_rfcs_say() {
    let wanted = std::env::var_os("TESTS_ROWS").unwrap_or_default();
    let wanted = wanted.to_str().expect("a readable word");
    let cases: Vec<Case> = [
        storing::cases(),
        choosing::cases(),
        aging::cases(),
        expired::cases(),
        validating::cases(),
        changing::cases(),
        asking::cases(),
        cutting::cases(),
        telling::cases(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let names: BTreeSet<String> = cases.iter().map(Case::title).collect();
    assert_eq!(names.len(), cases.len(), "a row's name is there once");
    for gap in KNOWN_GAPS {
        assert!(names.contains(*gap), "no row is called {gap:?}");
    }

    let (origin, cluster) = alone().await;
    let (origin, edge) = (Arc::new(origin), cluster.edges[0].url(""));
    let (client, permits) = (Client::new(), Arc::new(Semaphore::new(AT_ONCE)));
    let mut running = JoinSet::new();
    for (number, case) in cases.into_iter().enumerate() {
        if !case.title().contains(wanted) {
            continue;
        }
        let (origin, client, permits) = (origin.clone(), client.clone(), permits.clone());
        let edge = edge.clone();
        running.spawn(async move {
            let _permit = permits.acquire().await.expect("it is never closed");
            let stage = Stage::new(&origin, number, &case);
            let failure = case.run(&stage, &client, &edge).await.err();
            (case.title(), failure)
        });
    }
    let (mut failures, mut gaps) = (Vec::new(), Vec::new());
    let total = running.len();
    for (title, failure) in running.join_all().await {
        let known = KNOWN_GAPS.contains(&title.as_str());
        match failure {
            Some(failure) if known => gaps.push(format!("{title}\n    {failure}")),
            Some(failure) => failures.push(format!("{title}\n    {failure}")),
            None if known => failures.push(format!("{title}\n    holds now: no gap any more")),
            None => {}
        }
    }
    gaps.sort();
    failures.sort();
    println!(
        "{total} rows, {} known gaps\n{}",
        gaps.len(),
        gaps.join("\n")
    );
    assert!(
        failures.is_empty(),
        "{} of {total} rows:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// A row: what a cache does in a sequence of exchanges.
struct Case {
    /// Number and section of the RFC.
    section: &'static str,
    name: String,
    exchanges: Vec<Exchange>,
}

/// What a client asks, what an origin would answer, and what is expected of an edge between them.
#[derive(Clone)]
struct Exchange {
    pause: Duration,
    method: Method,
    at: String,
    asks: Vec<(String, String)>,
    sends: &'static str,
    origin: Origins,
    forwarding: Forwarding,
    /// Which exchange's answer the client gets, counted from 1, where it is not the obvious one.
    of: Option<usize>,
    status: Option<u16>,
    body: Option<String>,
    /// Whether the client gets no whole answer.
    fails: bool,
    checks: Vec<Check>,
}

/// What the origin does when it is asked.
#[derive(Clone)]
enum Origins {
    Answer {
        status: u16,
        fields: Vec<(String, String)>,
        body: Option<String>,
    },
    /// Closes without a byte.
    Closes,
    /// Closes within the head.
    Breaks,
}

/// Whether the edge asks the origin.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Forwarding {
    /// It does not.
    Hit,
    /// It asks without a condition of its own.
    Miss,
    /// It asks whether what is stored still holds.
    Validated,
    /// It asks, with a condition or without.
    Asked,
    /// It answers from the store, and asks afterwards.
    Behind,
    /// It may.
    Either,
}

#[derive(Clone)]
enum Check {
    Has(String, String),
    Lacks(String),
    Part(String, String),
    LacksPart(String, String),
    BodyPart(String),
    OriginSaw(String, String),
    OriginSawNo(String),
}

fn case(section: &'static str, name: impl Into<String>) -> Case {
    Case {
        section,
        name: name.into(),
        exchanges: Vec::new(),
    }
}

/// A GET that the origin would answer with 200, and that is forwarded.
fn get() -> Exchange {
    request("GET")
}

fn head() -> Exchange {
    request("HEAD")
}

fn request(method: &str) -> Exchange {
    Exchange {
        pause: Duration::ZERO,
        method: Method::from_bytes(method.as_bytes()).expect("a token"),
        at: "/".into(),
        asks: Vec::new(),
        sends: "",
        origin: Origins::Answer {
            status: 200,
            fields: Vec::new(),
            body: None,
        },
        forwarding: Forwarding::Miss,
        of: None,
        status: None,
        body: None,
        fails: false,
        checks: Vec::new(),
    }
}

/// A case of an answer and a second GET that must be a hit.
fn kept(section: &'static str, name: impl Into<String>, answer: Exchange) -> Case {
    case(section, name).then(answer).then(get().hit())
}

/// A case of an answer and a second GET that must get an answer of its own.
fn not_kept(section: &'static str, name: impl Into<String>, answer: Exchange) -> Case {
    case(section, name).then(answer).then(get().asked())
}

/// A case of an answer that is used a second time or not.
fn kept_if(kept_: bool, section: &'static str, name: impl Into<String>, answer: Exchange) -> Case {
    if kept_ {
        kept(section, name, answer)
    } else {
        not_kept(section, name, answer)
    }
}

impl Exchange {
    // The request.

    /// With that pause before it.
    fn after(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// Of this path below the case's own.
    fn at(self, at: &str) -> Self {
        let at = at.to_owned();
        Self { at, ..self }
    }

    fn asks(mut self, name: &str, value: &str) -> Self {
        self.asks.push((name.into(), value.into()));
        self
    }

    fn sends(self, sends: &'static str) -> Self {
        Self { sends, ..self }
    }

    // The origin's answer. In values, `{base}` is the case's path; `{+60}` is the date in a minute,
    // and `{rfc850 +60}` and `{asctime +60}` are the same in the obsolete forms.

    fn answers(mut self, code: u16) -> Self {
        if let Origins::Answer { status, .. } = &mut self.origin {
            *status = code;
        }
        self
    }

    fn says(mut self, name: &str, value: &str) -> Self {
        if let Origins::Answer { fields, .. } = &mut self.origin {
            fields.push((name.into(), value.into()));
        }
        self
    }

    fn cc(self, value: &str) -> Self {
        self.says("cache-control", value)
    }

    /// With this body instead of `answer <number>`.
    fn content(mut self, text: impl Into<String>) -> Self {
        if let Origins::Answer { body, .. } = &mut self.origin {
            *body = Some(text.into());
        }
        self
    }

    fn closes(self) -> Self {
        let origin = Origins::Closes;
        Self { origin, ..self }
    }

    fn breaks(self) -> Self {
        let origin = Origins::Breaks;
        Self { origin, ..self }
    }

    // What is expected.

    fn hit(self) -> Self {
        self.forwarding(Forwarding::Hit)
    }

    fn validated(self) -> Self {
        self.forwarding(Forwarding::Validated)
    }

    fn asked(self) -> Self {
        self.forwarding(Forwarding::Asked)
    }

    fn behind(self) -> Self {
        self.forwarding(Forwarding::Behind)
    }

    fn either(self) -> Self {
        self.forwarding(Forwarding::Either)
    }

    fn forwarding(self, forwarding: Forwarding) -> Self {
        Self { forwarding, ..self }
    }

    /// The client gets what the origin answered in exchange `number`.
    fn of(self, number: usize) -> Self {
        let of = Some(number);
        Self { of, ..self }
    }

    /// The client gets this status; the body does not matter unless it is given.
    fn gets(self, status: u16) -> Self {
        let status = Some(status);
        Self { status, ..self }
    }

    fn body(self, body: impl Into<String>) -> Self {
        let body = Some(body.into());
        Self { body, ..self }
    }

    /// The client gets no whole answer.
    fn fails(self) -> Self {
        Self {
            fails: true,
            ..self
        }
    }

    fn check(mut self, check: Check) -> Self {
        self.checks.push(check);
        self
    }

    fn has(self, name: &str, value: &str) -> Self {
        self.check(Check::Has(name.into(), value.into()))
    }

    fn lacks(self, name: &str) -> Self {
        self.check(Check::Lacks(name.into()))
    }

    fn part(self, name: &str, part: &str) -> Self {
        self.check(Check::Part(name.into(), part.into()))
    }

    fn body_part(self, part: &str) -> Self {
        self.check(Check::BodyPart(part.into()))
    }

    fn lacks_part(self, name: &str, part: &str) -> Self {
        self.check(Check::LacksPart(name.into(), part.into()))
    }

    /// `Cache-Status` contains this.
    fn tells(self, part: &str) -> Self {
        self.part("cache-status", part)
    }

    /// The origin got this field.
    fn with(self, name: &str, value: &str) -> Self {
        self.check(Check::OriginSaw(name.into(), value.into()))
    }

    /// The origin did not get this field.
    fn without(self, name: &str) -> Self {
        self.check(Check::OriginSawNo(name.into()))
    }

    /// What the client is to get of the origin's answers: which one's status and body.
    fn source(&self, number: usize) -> usize {
        let obvious = match (&self.forwarding, &self.origin) {
            (Forwarding::Hit | Forwarding::Behind, _) => 1,
            (Forwarding::Validated | Forwarding::Asked, Origins::Answer { status: 304, .. }) => 1,
            _ => number,
        };
        self.of.unwrap_or(obvious)
    }
}

/// Where a case plays: a path on the origin, what the origin would answer now, what it was asked.
#[derive(Clone)]
struct Stage {
    base: String,
    scene: Arc<Mutex<Scene>>,
}

struct Scene {
    script: Script,
    /// Said to who does not ask for a 304 and can get none.
    unconditional: Option<Script>,
    seen: Vec<Seen>,
}

impl Scene {
    fn script(&self, seen: &Seen) -> Script {
        let conditional = CONDITIONS.iter().any(|name| seen.field(name).is_some());
        let script = match &self.unconditional {
            Some(script) if !conditional => script,
            _ => &self.script,
        };
        match script {
            Script::Raw(bytes) if seen.method == "HEAD" => {
                let end = bytes.windows(4).position(|w| w == b"\r\n\r\n");
                Script::Raw(bytes.slice(..end.map_or(bytes.len(), |at| at + 4)))
            }
            script => script.clone(),
        }
    }
}

impl Stage {
    fn new(origin: &Origin, number: usize, case: &Case) -> Self {
        let scene = Scene {
            script: Script::Close,
            unconditional: None,
            seen: Vec::new(),
        };
        let stage = Self {
            base: format!("/row-{number}"),
            scene: Arc::new(Mutex::new(scene)),
        };
        for exchange in &case.exchanges {
            let path = exchange.at.split('?').next().unwrap_or_default();
            let scene = stage.scene.clone();
            origin.route_by(&format!("{}{path}", stage.base), move |seen| {
                let mut scene = scene.lock().unwrap_or_else(PoisonError::into_inner);
                scene.seen.push(seen.clone());
                scene.script(seen)
            });
        }
        stage
    }

    fn set(&self, exchange: &Exchange, number: usize) {
        let unconditional = match &exchange.origin {
            Origins::Answer { status: 304, .. } => Some(exchange.clone().answers(200)),
            _ => None,
        };
        let mut scene = self.scene();
        scene.script = exchange.script(number, &self.base);
        scene.unconditional = unconditional.map(|e| e.script(number, &self.base));
    }

    fn seen(&self) -> Vec<Seen> {
        self.scene().seen.clone()
    }

    /// Waits until the origin was asked more than that many times, or has not been for long.
    async fn more_than(&self, asked: usize) {
        let waiting = async {
            while self.scene().seen.len() <= asked {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        // Who has not been asked is told so by the one who judges.
        let _ = tokio::time::timeout(BEHIND_WITHIN, waiting).await;
    }

    fn scene(&self) -> std::sync::MutexGuard<'_, Scene> {
        self.scene.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Case {
    fn then(mut self, exchange: Exchange) -> Self {
        self.exchanges.push(exchange);
        self
    }

    fn title(&self) -> String {
        format!("{} {}", self.section, self.name)
    }

    async fn run(&self, stage: &Stage, client: &Client, edge: &str) -> Result<(), String> {
        for (index, exchange) in self.exchanges.iter().enumerate() {
            let number = index + 1;
            let settled = if index == 0 { Duration::ZERO } else { SETTLED };
            tokio::time::sleep(exchange.pause.max(settled)).await;
            stage.set(exchange, number);
            let before = stage.seen().len();
            let answer = exchange.send(client, edge, &stage.base).await;
            let answer = match (answer, exchange.fails) {
                (Ok(answer), false) => answer,
                (Err(_), true) => continue,
                (Ok(_), true) => return Err(format!("{number}: the client got a whole answer")),
                (Err(error), false) => return Err(format!("{number}: {error:#}")),
            };
            if exchange.forwarding == Forwarding::Behind {
                stage.more_than(before).await;
            }
            let seen = stage.seen().split_off(before);
            if let Err(wrong) = self.judge(number, &answer, &seen, &stage.base) {
                let asked = (seen.iter()).map(|s| Fields(&s.method, &s.fields).to_string());
                let fields: Vec<_> = (answer.headers.iter())
                    .map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into()))
                    .collect();
                return Err(format!(
                    "{number}: {wrong}; client got {} {:?}, origin got [{}]",
                    Fields(&answer.status.to_string(), &fields),
                    answer.text(),
                    asked.collect::<Vec<_>>().join(", ")
                ));
            }
        }
        Ok(())
    }

    fn judge(
        &self,
        number: usize,
        answer: &Response,
        seen: &[Seen],
        base: &str,
    ) -> Result<(), String> {
        let exchange = &self.exchanges[number - 1];
        let conditional = seen.iter().any(|seen| {
            CONDITIONS.iter().any(|name| {
                let clients = exchange.asks.iter().find(|(n, _)| n == name);
                let clients = clients.map(|(_, value)| value.as_str());
                seen.field(name).is_some_and(|v| Some(v) != clients)
            })
        });
        let asked = !seen.is_empty();
        let right = match exchange.forwarding {
            Forwarding::Hit => !asked,
            Forwarding::Miss => asked && !conditional,
            Forwarding::Validated => conditional,
            Forwarding::Asked | Forwarding::Behind => asked,
            Forwarding::Either => true,
        };
        if !right {
            return Err(format!("not {:?}", exchange.forwarding));
        }
        let source = exchange.source(number);
        let origins = &self.exchanges[source - 1].origin;
        let (status, body) = match (exchange.status, origins) {
            (Some(status), _) => (status, exchange.body.clone()),
            (None, Origins::Answer { status, .. }) => {
                let body = exchange.body.clone();
                let body = body.unwrap_or_else(|| content(origins, source));
                let bodiless = exchange.method == Method::HEAD || matches!(status, 204 | 304);
                (*status, Some(if bodiless { String::new() } else { body }))
            }
            (None, _) => return Err("the row does not say which status".into()),
        };
        if answer.status != status {
            return Err(format!("not {status}"));
        }
        if body
            .is_some_and(|body| answer.text() != body && exchange.forwarding != Forwarding::Either)
        {
            return Err(format!("not the answer of {source}"));
        }
        exchange
            .checks
            .iter()
            .try_for_each(|check| check.judge(answer, seen, base))
    }
}

impl Exchange {
    async fn send(&self, client: &Client, edge: &str, base: &str) -> anyhow::Result<Response> {
        let url = format!("{edge}{base}{}", self.at);
        let mut fields = Vec::new();
        if !self.asks.iter().any(|(name, _)| name == "host") {
            fields.push(("host".to_owned(), HOST.to_owned()));
        }
        for (name, value) in &self.asks {
            fields.push((name.clone(), filled_in(value, base)));
        }
        let fields: Vec<_> = (fields.iter())
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        let method = self.method.clone();
        client.send(method, &url, &fields, self.sends.into()).await
    }

    /// What the origin writes, byte by byte: nothing is added that a row could want to be absent,
    /// except for `Date`, without which most rows would say something else than they mean.
    fn script(&self, number: usize, base: &str) -> Script {
        let (status, fields) = match &self.origin {
            Origins::Closes => return Script::Close,
            Origins::Breaks => return Script::Raw("HTTP/1.1 200 OK\r\ncontent-le".into()),
            Origins::Answer { status, fields, .. } => (*status, fields),
        };
        let body = content(&self.origin, number);
        let mut text = format!("HTTP/1.1 {status} Status\r\n");
        let own = |name: &str| fields.iter().any(|(n, _)| n == name);
        for (name, value) in fields {
            // An empty `date` is none at all.
            if name != "date" || !value.is_empty() {
                text += &format!("{name}: {}\r\n", filled_in(value, base));
            }
        }
        if !own("date") {
            text += &format!("date: {}\r\n", filled_in("{+0}", base));
        }
        let bodiless = matches!(status, 204 | 304);
        if !bodiless && !own("content-length") {
            text += &format!("content-length: {}\r\n", body.len());
        }
        text += "connection: close\r\n\r\n";
        if !bodiless {
            text += &body;
        }
        Script::Raw(text.into())
    }
}

fn content(origin: &Origins, number: usize) -> String {
    match origin {
        Origins::Answer {
            body: Some(body), ..
        } => body.clone(),
        _ => format!("answer {number}"),
    }
}

impl Check {
    fn judge(&self, answer: &Response, seen: &[Seen], base: &str) -> Result<(), String> {
        let got = |name: &str| {
            let values = answer.headers.get_all(name).iter();
            let texts = values.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
            texts.collect::<Vec<_>>().join(", ")
        };
        let origin_got = |name: &str| {
            let fields = seen.iter().flat_map(|s| &s.fields);
            let values = fields.filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
            values.collect::<Vec<_>>().join(", ")
        };
        let (holds, what) = match self {
            Self::Has(name, value) => (
                got(name) == filled_in(value, base),
                format!("no {name}: {value}"),
            ),
            Self::Lacks(name) => (!answer.headers.contains_key(name), format!("has {name}")),
            Self::BodyPart(part) => (answer.text().contains(part), format!("no {part:?} in it")),
            Self::LacksPart(name, part) => (!got(name).contains(part), format!("{part} in {name}")),
            Self::Part(name, part) => (got(name).contains(part), format!("no {part} in {name}")),
            Self::OriginSaw(name, value) => (
                origin_got(name) == *value,
                format!("origin was not asked with {name}: {value}"),
            ),
            Self::OriginSawNo(name) => (
                origin_got(name).is_empty(),
                format!("origin was asked with {name}"),
            ),
        };
        if holds { Ok(()) } else { Err(what) }
    }
}

/// A head on one line, without what says nothing here.
struct Fields<'a>(&'a str, &'a [(String, String)]);

impl fmt::Display for Fields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)?;
        let dull = |name: &str| {
            [
                "host",
                "via",
                "forwarded",
                "cdn-loop",
                "content-length",
                "connection",
            ]
            .contains(&name)
                || name.starts_with("x-forwarded")
        };
        let fields = self.1.iter().filter(|(name, _)| !dull(name));
        fields
            .into_iter()
            .try_for_each(|(name, value)| write!(f, " {name}={value:?}"))
    }
}

/// `value` with what stands in braces replaced.
fn filled_in(value: &str, base: &str) -> String {
    let mut text = String::new();
    let mut rest = value;
    while let Some((before, from)) = rest.split_once('{') {
        let (inside, after) = from.split_once('}').expect("braces are closed");
        let (form, seconds) = inside.split_once(' ').unwrap_or(("", inside));
        text += before;
        text += &match inside {
            "base" => base.to_owned(),
            _ => dated(form, seconds.parse().expect("seconds from now")),
        };
        rest = after;
    }
    text + rest
}

/// The moment that many seconds from now, in a form of RFC 9110 §5.6.7.
fn dated(form: &str, seconds: i64) -> String {
    let now = cluster::clock::Clock::system().now();
    let by = Duration::from_secs(seconds.unsigned_abs());
    let moment: SystemTime = if seconds < 0 { now - by } else { now + by };
    let date = httpdate::fmt_http_date(moment);
    let words: Vec<&str> = date.split([' ', ',']).filter(|w| !w.is_empty()).collect();
    let [weekday, day, month, year, time, _] = words[..] else {
        panic!("{date} has six words");
    };
    let long = |short: &str| match short {
        "Tue" => "Tuesday".to_owned(),
        "Wed" => "Wednesday".to_owned(),
        "Thu" => "Thursday".to_owned(),
        "Sat" => "Saturday".to_owned(),
        other => format!("{other}day"),
    };
    match form {
        "rfc850" => format!("{}, {day}-{month}-{} {time} GMT", long(weekday), &year[2..]),
        "asctime" => format!(
            "{weekday} {month} {:>2} {time} {year}",
            day.trim_start_matches('0')
        ),
        _ => date,
    }
}

#[test]
fn dates_are_written_in_three_forms() {
    assert_eq!(filled_in("a{base}b", "/x"), "a/xb");
    let moment = httpdate::parse_http_date(&dated("", 60)).expect("a date");
    for form in ["rfc850", "asctime"] {
        let parsed = httpdate::parse_http_date(&dated(form, 60)).expect(form);
        let apart = parsed.duration_since(moment).expect("no earlier");
        assert!(apart < Duration::from_secs(2), "{form}");
    }
}
