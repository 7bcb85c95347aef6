//! The words in which rows are written: a case is a sequence of exchanges, and an exchange is what a
//! client asks, what an origin would answer, and what is expected of the edge between them.

use std::time::{Duration, SystemTime};

use http::Method;

/// A row: what a cache does in a sequence of exchanges.
pub(super) struct Case {
    /// Number and section of the RFC.
    pub(super) section: &'static str,
    pub(super) name: String,
    pub(super) exchanges: Vec<Exchange>,
}

/// What a client asks, what an origin would answer, and what is expected of an edge between them.
#[derive(Clone)]
pub(super) struct Exchange {
    pub(super) pause: Duration,
    pub(super) method: Method,
    pub(super) at: String,
    pub(super) asks: Vec<(String, String)>,
    pub(super) sends: &'static str,
    pub(super) origin: Origins,
    pub(super) forwarding: Forwarding,
    /// Which exchange's answer the client gets, counted from 1, where it is not the obvious one.
    pub(super) of: Option<usize>,
    pub(super) status: Option<u16>,
    pub(super) body: Option<String>,
    /// Whether the client gets no whole answer.
    pub(super) fails: bool,
    /// Whether only the checks judge what the client gets.
    pub(super) free: bool,
    pub(super) checks: Vec<Check>,
}

/// What the origin does when it is asked.
#[derive(Clone)]
pub(super) enum Origins {
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
pub(super) enum Forwarding {
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
pub(super) enum Check {
    Has(String, String),
    Lacks(String),
    Part(String, String),
    LacksPart(String, String),
    BodyPart(String),
    BodyLacks(String),
    OriginSaw(String, String),
    OriginSawNo(String),
}

pub(super) fn case(section: &'static str, name: impl Into<String>) -> Case {
    Case {
        section,
        name: name.into(),
        exchanges: Vec::new(),
    }
}

/// A GET that the origin would answer with 200, and that is forwarded.
pub(super) fn get() -> Exchange {
    request("GET")
}

pub(super) fn head() -> Exchange {
    request("HEAD")
}

pub(super) fn request(method: &str) -> Exchange {
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
        free: false,
        checks: Vec::new(),
    }
}

/// A case of an answer and a second GET that must be a hit.
pub(super) fn kept(section: &'static str, name: impl Into<String>, answer: Exchange) -> Case {
    case(section, name).then(answer).then(get().hit())
}

/// A case of an answer and a second GET that must get an answer of its own.
pub(super) fn not_kept(section: &'static str, name: impl Into<String>, answer: Exchange) -> Case {
    case(section, name).then(answer).then(get().asked())
}

/// A case of an answer that is used a second time or not.
pub(super) fn kept_if(
    is_kept: bool,
    section: &'static str,
    name: impl Into<String>,
    answer: Exchange,
) -> Case {
    if is_kept {
        kept(section, name, answer)
    } else {
        not_kept(section, name, answer)
    }
}

impl Exchange {
    // The request.

    /// With that pause before it.
    pub(super) fn after(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// Of this path below the case's own.
    pub(super) fn at(self, at: &str) -> Self {
        let at = at.to_owned();
        Self { at, ..self }
    }

    pub(super) fn asks(mut self, name: &str, value: &str) -> Self {
        self.asks.push((name.into(), value.into()));
        self
    }

    pub(super) fn sends(self, sends: &'static str) -> Self {
        Self { sends, ..self }
    }

    // The origin's answer. In values, `{base}` is the case's path; `{+60}` is the date in a minute,
    // and `{rfc850 +60}` and `{asctime +60}` are the same in the obsolete forms.

    pub(super) fn answers(mut self, code: u16) -> Self {
        if let Origins::Answer { status, .. } = &mut self.origin {
            *status = code;
        }
        self
    }

    pub(super) fn says(mut self, name: &str, value: &str) -> Self {
        if let Origins::Answer { fields, .. } = &mut self.origin {
            fields.push((name.into(), value.into()));
        }
        self
    }

    pub(super) fn cc(self, value: &str) -> Self {
        self.says("cache-control", value)
    }

    /// With this body instead of `answer <number>`.
    pub(super) fn content(mut self, text: impl Into<String>) -> Self {
        if let Origins::Answer { body, .. } = &mut self.origin {
            *body = Some(text.into());
        }
        self
    }

    pub(super) fn closes(self) -> Self {
        let origin = Origins::Closes;
        Self { origin, ..self }
    }

    pub(super) fn breaks(self) -> Self {
        let origin = Origins::Breaks;
        Self { origin, ..self }
    }

    // What is expected.

    pub(super) fn hit(self) -> Self {
        self.forwarding(Forwarding::Hit)
    }

    pub(super) fn validated(self) -> Self {
        self.forwarding(Forwarding::Validated)
    }

    pub(super) fn asked(self) -> Self {
        self.forwarding(Forwarding::Asked)
    }

    pub(super) fn behind(self) -> Self {
        self.forwarding(Forwarding::Behind)
    }

    pub(super) fn either(self) -> Self {
        self.forwarding(Forwarding::Either)
    }

    pub(super) fn forwarding(self, forwarding: Forwarding) -> Self {
        Self { forwarding, ..self }
    }

    /// The client gets what the origin answered in exchange `number`.
    pub(super) fn of(self, number: usize) -> Self {
        let of = Some(number);
        Self { of, ..self }
    }

    /// The client gets this status; the body does not matter unless it is given.
    pub(super) fn gets(self, status: u16) -> Self {
        let status = Some(status);
        Self { status, ..self }
    }

    pub(super) fn body(self, body: impl Into<String>) -> Self {
        let body = Some(body.into());
        Self { body, ..self }
    }

    /// The client gets anything that passes the checks; even no whole answer.
    pub(super) fn gets_anything(self) -> Self {
        Self {
            free: true,
            ..self.either()
        }
    }

    /// The client gets no whole answer.
    pub(super) fn fails(self) -> Self {
        Self {
            fails: true,
            ..self
        }
    }

    pub(super) fn check(mut self, check: Check) -> Self {
        self.checks.push(check);
        self
    }

    pub(super) fn has(self, name: &str, value: &str) -> Self {
        self.check(Check::Has(name.into(), value.into()))
    }

    pub(super) fn lacks(self, name: &str) -> Self {
        self.check(Check::Lacks(name.into()))
    }

    pub(super) fn part(self, name: &str, part: &str) -> Self {
        self.check(Check::Part(name.into(), part.into()))
    }

    pub(super) fn body_part(self, part: &str) -> Self {
        self.check(Check::BodyPart(part.into()))
    }

    pub(super) fn body_lacks(self, part: &str) -> Self {
        self.check(Check::BodyLacks(part.into()))
    }

    pub(super) fn lacks_part(self, name: &str, part: &str) -> Self {
        self.check(Check::LacksPart(name.into(), part.into()))
    }

    /// `Cache-Status` contains this.
    pub(super) fn tells(self, part: &str) -> Self {
        self.part("cache-status", part)
    }

    /// The origin got this field.
    pub(super) fn with(self, name: &str, value: &str) -> Self {
        self.check(Check::OriginSaw(name.into(), value.into()))
    }

    /// The origin did not get this field.
    pub(super) fn without(self, name: &str) -> Self {
        self.check(Check::OriginSawNo(name.into()))
    }

    /// What the client is to get of the origin's answers: which one's status and body.
    pub(super) fn source(&self, number: usize) -> usize {
        let obvious = match (&self.forwarding, &self.origin) {
            (Forwarding::Hit | Forwarding::Behind, _) => 1,
            (Forwarding::Validated | Forwarding::Asked, Origins::Answer { status: 304, .. }) => 1,
            _ => number,
        };
        self.of.unwrap_or(obvious)
    }
}

impl Case {
    pub(super) fn then(mut self, exchange: Exchange) -> Self {
        self.exchanges.push(exchange);
        self
    }

    pub(super) fn title(&self) -> String {
        format!("{} {}", self.section, self.name)
    }
}

/// `value` with what stands in braces replaced.
pub(super) fn filled_in(value: &str, base: &str) -> String {
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
