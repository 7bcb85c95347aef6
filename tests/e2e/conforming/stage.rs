//! Where a case plays: asks the edge, answers for the origin, and compares.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use harness::{
    client::{Client, Response},
    cluster::HOST,
    origin::{Origin, Script, Seen},
};
use http::Method;

use super::row::{Case, Check, Exchange, Forwarding, Origins, filled_in};

/// From the end of an answer until an edge has it in its store. Who comes before that shares it with
/// those who waited for it, which the scenes are about.
const SETTLED: Duration = Duration::from_millis(250);
/// How long an edge may take to ask the origin behind a client's back.
const BEHIND_WITHIN: Duration = Duration::from_secs(20);
/// Fields by which a cache asks whether what it has still holds.
const CONDITIONS: [&str; 2] = ["if-none-match", "if-modified-since"];

/// Where a case plays: a path on the origin, what the origin would answer now, what it was asked.
pub(super) struct Stage {
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
    pub(super) fn new(origin: &Origin, number: usize, case: &Case) -> Self {
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

    fn scene(&self) -> MutexGuard<'_, Scene> {
        self.scene.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Case {
    pub(super) async fn run(
        &self,
        stage: &Stage,
        client: &Client,
        edge: &str,
    ) -> Result<(), String> {
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
                (Err(_), false) if exchange.free => continue,
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
        if !exchange.free {
            self.compare(number, answer)?;
        }
        exchange
            .checks
            .iter()
            .try_for_each(|check| check.judge(answer, seen, base))
    }

    /// Whether the client got the status and the body that it should.
    fn compare(&self, number: usize, answer: &Response) -> Result<(), String> {
        let exchange = &self.exchanges[number - 1];
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
        // Where the edge may choose, either answer is right, unless the row says which.
        let free = exchange.forwarding == Forwarding::Either
            && exchange.of.is_none()
            && exchange.body.is_none();
        if body.is_some_and(|body| !free && answer.text() != body) {
            return Err(format!("not the answer of {source}"));
        }
        Ok(())
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
            // An empty `date` or `content-length` is none at all.
            let none = matches!(name.as_str(), "date" | "content-length") && value.is_empty();
            if !none {
                text += &format!("{name}: {}\r\n", filled_in(value, base));
            }
        }
        if !own("date") {
            text += &format!("date: {}\r\n", filled_in("{+0}", base));
        }
        let bodiless = matches!(status, 204 | 304);
        if !bodiless && !own("content-length") && !own("transfer-encoding") {
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
            Self::BodyLacks(part) => (!answer.text().contains(part), format!("{part:?} in it")),
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
