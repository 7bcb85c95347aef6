//! Plain exchanges: a GET without a body over a kept TCP connection, answered whole and at once, beneath
//! the HTTP client. That is what most misses are, and a client with a task for each connection, channels
//! to it and bodies that stream costs more than all the rest of such a miss.
//!
//! An answer is taken here if it is HTTP/1.1 with one `Content-Length` of at most 64 KiB and
//! all of it comes together. Whatever else comes is no exchange of this kind: what was read goes to the
//! HTTP client together with the connection (`Plainly::Odd`), which reads the answer as if it had asked
//! itself. No rule of HTTP beyond the framing of plain answers is decided here.

mod kept;
mod replayed;

use std::{
    future::poll_fn,
    io,
    mem::{self, MaybeUninit},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use cluster::net::BoxStream;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use hyper::ext::ReasonPhrase;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, timeout_at},
};

pub(super) use self::{
    kept::{Idle, Kept},
    replayed::Replayed,
};
use crate::alarm::Alarm;

/// Longest body taken here: what comes in one with its head, mostly.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Longest head taken here, and most fields; the HTTP client takes more.
const HEAD_BYTES_MAX: usize = 16 << 10;
const FIELDS_MAX: usize = 64;
/// What is read at once, on the stack.
const READ_BYTES: usize = 16 << 10;
/// How long the rest of a body may take that did not come with its head: many servers write twice. Who
/// waits for the head waits for this as well.
const REST_WITHIN: Duration = Duration::from_millis(2);

/// How the fields of a message are spelled and ordered by who sent it, as far as that is not how they are
/// written anyway.
#[derive(Clone, Debug, Default)]
pub struct Spelling(Option<Arc<str>>);

impl Spelling {
    /// That of fields with these names.
    pub fn of<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Self {
        let is_lower = |name: &str| !name.bytes().any(|b| b.is_ascii_uppercase());
        if names.clone().all(is_lower) {
            return Self(None);
        }
        let mut all = String::with_capacity(128);
        names.for_each(|name| {
            all.push_str(name);
            all.push('\n');
        });
        Self(Some(all.into()))
    }

    /// How the field with this name, the `nth` of its name, is spelled.
    fn name<'a>(&'a self, name: &'a str, nth: usize) -> &'a str {
        let Self(Some(all)) = self else { return name };
        let same = all
            .lines()
            .filter(|spelled| spelled.eq_ignore_ascii_case(name));
        same.clone()
            .nth(nth)
            .or_else(|| same.clone().next_back())
            .unwrap_or(name)
    }

    /// Writes `headers`, spelled so, each with its line end.
    pub fn write(&self, headers: &HeaderMap, out: &mut Vec<u8>) {
        let (mut last, mut nth) = (None, 0);
        for (name, value) in headers {
            nth = if last == Some(name) { nth + 1 } else { 0 };
            last = Some(name);
            out.extend_from_slice(self.name(name.as_str(), nth).as_bytes());
            out.extend_from_slice(if value.is_empty() { b":" } else { b": " });
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// An answer that came whole, in the bytes it was read into.
pub struct Seen<'a> {
    /// Its status code.
    pub status: u16,
    /// Its body.
    pub body: &'a [u8],
    fields: &'a [httparse::Header<'a>],
}

impl<'a> Seen<'a> {
    /// Names and values of its header fields, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + Clone {
        self.fields.iter().map(|field| (field.name, field.value))
    }
}

/// Takes an answer as it was read, if it is one for which no [`Response`] has to be made.
pub type Take<'t> = &'t mut (dyn FnMut(&Seen<'_>) -> bool + Send);

/// What came of an exchange.
pub(super) enum Plainly {
    /// The whole answer.
    Whole(Response<Bytes>),
    /// It is not plain: a connection on which the request was sent, to go on with.
    Odd(Replayed),
    /// A used connection was closed without a byte of an answer.
    Closed,
    /// No answer came.
    Failed(Failure, String),
}

/// Why no answer came.
pub(super) enum Failure {
    Connect,
    ConnectTimeout,
    HeadTimeout,
    ClosedEarly,
}

/// A connection that an exchange is on.
pub(super) struct Exchange<'a> {
    kept: &'a Arc<Kept>,
    authority: &'a str,
    stream: BoxStream,
    out: Vec<u8>,
    alarm: Alarm,
    used: bool,
}

impl Exchange<'_> {
    /// Sends a GET for `target` with these fields, and reads the answer.
    pub(super) async fn get(
        mut self,
        target: &str,
        headers: &HeaderMap,
        spelling: &Spelling,
        by: Instant,
    ) -> Plainly {
        self.out.clear();
        for part in ["GET ", target, " HTTP/1.1\r\n"] {
            self.out.extend_from_slice(part.as_bytes());
        }
        spelling.write(headers, &mut self.out);
        self.out.extend_from_slice(b"\r\n");
        let plainly = self.exchanged(by, &mut |_| false).await;
        plainly.expect("nobody has taken it")
    }

    /// Sends what is written, and reads the answer; `None`: `take` has taken it.
    async fn exchanged(mut self, by: Instant, take: Take<'_>) -> Option<Plainly> {
        let mut read = Vec::new();
        let mut alarm = mem::take(&mut self.alarm);
        let answered = {
            let mut asked = pin!(async {
                self.send().await?;
                self.receive(&mut read, take).await
            });
            poll_fn(|context| match asked.as_mut().poll(context) {
                Poll::Ready(answered) => Poll::Ready(Ok(answered)),
                Poll::Pending => alarm.poll_at(by, context).map(Err),
            })
            .await
        };
        Some(match answered {
            Ok(Ok(Received::Whole { response, keeps })) => {
                if keeps {
                    let Self { stream, out, .. } = self;
                    let idle = Idle {
                        stream,
                        out,
                        alarm,
                        since: Instant::now(),
                    };
                    self.kept.keep(self.authority, idle);
                }
                Plainly::Whole(response?)
            }
            Ok(Ok(Received::Odd)) => {
                self.kept.skip(self.authority);
                Plainly::Odd(Replayed::new(read.into(), self.stream))
            }
            Ok(Ok(Received::Nothing)) if self.used => Plainly::Closed,
            Ok(Err(_)) if self.used && read.is_empty() => Plainly::Closed,
            Ok(Ok(Received::Nothing)) => {
                let detail = "connection closed before an answer".to_owned();
                Plainly::Failed(Failure::ClosedEarly, detail)
            }
            Ok(Err(error)) => Plainly::Failed(Failure::ClosedEarly, error.to_string()),
            Err(()) => Plainly::Failed(Failure::HeadTimeout, "no answer in time".to_owned()),
        })
    }

    async fn send(&mut self) -> io::Result<()> {
        let mut at = 0;
        poll_fn(|context| {
            while at < self.out.len() {
                let written = Pin::new(&mut self.stream).poll_write(context, &self.out[at..]);
                match ready!(written)? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    count => at += count,
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Reads until it is known what the answer is; what was read of one that is not whole, in `before`.
    async fn receive(&mut self, before: &mut Vec<u8>, take: Take<'_>) -> io::Result<Received> {
        let mut rest_by = None;
        loop {
            let read = poll_fn(|context| self.poll_receive(context, before, take));
            let read = match rest_by {
                None => read.await?,
                Some(by) => match timeout_at(by, read).await {
                    Ok(read) => read?,
                    Err(_) => return Ok(Received::Odd),
                },
            };
            match read {
                Read::Received(received) => return Ok(received),
                Read::PartOfHead => {}
                Read::PartOfBody => {
                    rest_by.get_or_insert_with(|| Instant::now() + REST_WITHIN);
                }
            }
        }
    }

    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        before: &mut Vec<u8>,
        take: Take<'_>,
    ) -> Poll<io::Result<Read>> {
        let mut space = [const { MaybeUninit::uninit() }; READ_BYTES];
        let mut read = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut read))?;
        let read = read.filled();
        let received = match (read.is_empty(), before.is_empty()) {
            (true, true) => Read::Received(Received::Nothing),
            // Whatever is wrong, the HTTP client finds words for it.
            (true, false) => Read::Received(Received::Odd),
            (false, true) => {
                let parsed = parse(read, take);
                if !matches!(parsed, Read::Received(Received::Whole { .. })) {
                    before.extend_from_slice(read);
                }
                parsed
            }
            (false, false) => {
                before.extend_from_slice(read);
                parse(before, take)
            }
        };
        Poll::Ready(Ok(received))
    }
}

enum Read {
    Received(Received),
    PartOfHead,
    PartOfBody,
}

enum Received {
    Whole {
        /// `None`: it was [taken](Take).
        response: Option<Response<Bytes>>,
        /// Whether the connection stays open behind it.
        keeps: bool,
    },
    Odd,
    Nothing,
}

/// What an answer that begins with `bytes` is; `take` is offered one that is whole.
fn parse(bytes: &[u8], take: Take<'_>) -> Read {
    const ODD: Read = Read::Received(Received::Odd);
    let mut space = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut answer = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let parsed = config.parse_response_with_uninit_headers(&mut answer, bytes, &mut space);
    let head_bytes = match parsed {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Read::PartOfHead,
        Ok(httparse::Status::Partial) | Err(_) => return ODD,
    };
    let (Some(1), Some(code)) = (answer.version, answer.code) else {
        return ODD;
    };
    let (mut length, mut keeps) = (None, true);
    for field in &*answer.headers {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        match field.name.len() {
            10 if is("connection") => keeps &= field.value.eq_ignore_ascii_case(b"keep-alive"),
            14 if is("content-length") => {
                if length.is_some() {
                    return ODD;
                }
                length = digits(field.value);
                if length.is_none() {
                    return ODD;
                }
            }
            17 if is("transfer-encoding") => return ODD,
            _ => {}
        }
    }
    let length = match (code, length) {
        (..200, _) | (204, Some(_)) => return ODD,
        (204 | 304, _) => 0,
        (_, Some(length)) if length <= BODY_BYTES_MAX => length,
        _ => return ODD,
    };
    let rest = &bytes[head_bytes..];
    if rest.len() < length {
        return Read::PartOfBody;
    }
    // What comes unasked behind an answer belongs to no request.
    keeps &= rest.len() == length;
    let (head, body) = (&bytes[..head_bytes], &rest[..length]);
    let seen = Seen {
        status: code,
        body,
        fields: &*answer.headers,
    };
    let response = match take(&seen) {
        true => None,
        false => match response(head, &answer, code, body) {
            None => return ODD,
            response => response,
        },
    };
    Read::Received(Received::Whole { response, keeps })
}

/// A length in digits, and nothing else.
fn digits(value: &[u8]) -> Option<usize> {
    let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(value).ok()?.parse();
    number.ok().filter(|_| is_number)
}

fn response(
    head: &[u8],
    answer: &httparse::Response<'_, '_>,
    code: u16,
    body: &[u8],
) -> Option<Response<Bytes>> {
    // One allocation for all values.
    let own = Bytes::copy_from_slice(head);
    let of_own = |part: &[u8]| {
        let from = part.as_ptr().addr().checked_sub(head.as_ptr().addr())?;
        (from + part.len() <= own.len()).then(|| own.slice(from..from + part.len()))
    };
    let mut response = Response::new(match body {
        [] => Bytes::new(),
        body => Bytes::copy_from_slice(body),
    });
    let status = StatusCode::from_u16(code).ok()?;
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.reserve(answer.headers.len());
    for field in &*answer.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        let value = match field.value {
            [] => HeaderValue::from_static(""),
            value => HeaderValue::from_maybe_shared(of_own(value)?).ok()?,
        };
        headers.append(name, value);
    }
    let spelling = Spelling::of(answer.headers.iter().map(|field| field.name));
    if spelling.0.is_some() {
        response.extensions_mut().insert(spelling);
    }
    let phrase = answer.reason.unwrap_or_default();
    if status.canonical_reason() != Some(phrase) {
        let phrase = ReasonPhrase::try_from(phrase.as_bytes()).ok()?;
        response.extensions_mut().insert(phrase);
    }
    Some(response)
}

#[cfg(test)]
mod tests {
    use cluster::{net::SystemNet, site::Site};
    use http::Request;
    use http_body_util::BodyExt as _;
    use tokio::io::AsyncWriteExt as _;

    use super::{
        super::{
            origin::Origins,
            pool::{Pool, empty},
            scripted::{Counted, Scripted, pending, read_head},
        },
        *,
    };

    fn whole(bytes: &str) -> Option<(Response<Bytes>, bool)> {
        match parse(bytes.as_bytes(), &mut |_| false) {
            Read::Received(Received::Whole { response, keeps }) => Some((response?, keeps)),
            _ => None,
        }
    }

    #[test]
    fn an_answer_that_came_whole_is_taken_as_it_is() {
        let said = "HTTP/1.1 200 Fine\r\nX-A: 1\r\nx-b:\r\nContent-Length: 2\r\nx-a: 2\r\n\r\nhi";
        let (response, keeps) = whole(said).unwrap();
        assert!(keeps);
        assert_eq!(
            (response.status(), &response.body()[..]),
            (StatusCode::OK, &b"hi"[..])
        );
        let values: Vec<_> = response.headers().get_all("x-a").iter().collect();
        assert_eq!(values, ["1", "2"]);
        assert_eq!(response.headers()["x-b"], "");
        let phrase = response.extensions().get::<ReasonPhrase>().unwrap();
        assert_eq!(phrase.as_bytes(), b"Fine");
        let mut written = Vec::new();
        let spelling = response.extensions().get::<Spelling>().unwrap();
        spelling.write(response.headers(), &mut written);
        let written = String::from_utf8(written).unwrap();
        assert_eq!(written, "X-A: 1\r\nx-a: 2\r\nx-b:\r\nContent-Length: 2\r\n");
        for (said, stays) in [
            (
                "HTTP/1.1 200 OK\r\nconnection: Keep-Alive\r\ncontent-length: 0\r\n\r\n",
                true,
            ),
            (
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
                false,
            ),
            (
                "HTTP/1.1 200 OK\r\nconnection: x-a\r\ncontent-length: 0\r\n\r\n",
                false,
            ),
            // What comes behind it is nobody's answer.
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\n",
                false,
            ),
            ("HTTP/1.1 204 No Content\r\n\r\n", true),
            (
                "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n",
                true,
            ),
        ] {
            let (response, keeps) = whole(said).unwrap();
            assert_eq!((keeps, response.body().len()), (stays, 0), "{said}");
        }
    }

    #[test]
    fn an_answer_that_is_taken_needs_no_response() {
        let said = "HTTP/1.1 200 OK\r\nX-A: 1\r\ncontent-length: 2\r\n\r\nhi";
        let mut taken = Vec::new();
        let mut take = |seen: &Seen<'_>| {
            let (name, value) = seen.fields().next().unwrap();
            taken.push((
                seen.status,
                name.to_owned(),
                value.to_vec(),
                seen.body.to_vec(),
            ));
            true
        };
        for length in [said.len() - 1, said.len()] {
            let read = parse(&said.as_bytes()[..length], &mut take);
            let is_taken = matches!(
                read,
                Read::Received(Received::Whole {
                    response: None,
                    keeps: true
                })
            );
            assert_eq!(is_taken, length == said.len());
        }
        assert_eq!(taken, [(200, "X-A".into(), b"1".into(), b"hi".into())]);
    }

    #[test]
    fn what_is_not_plain_is_left_to_the_http_client() {
        for said in [
            "HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nuntil it closes",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\ncontent-length: \r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 70000\r\n\r\n",
            "HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\nx : y\r\ncontent-length: 0\r\n\r\n",
            "220 mail.test ESMTP\r\n",
        ] {
            let odd = matches!(
                parse(said.as_bytes(), &mut |_| false),
                Read::Received(Received::Odd)
            );
            assert!(odd, "{said}");
        }
        let long = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(HEAD_BYTES_MAX));
        assert!(matches!(
            parse(long.as_bytes(), &mut |_| false),
            Read::Received(Received::Odd)
        ));
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
        assert!(matches!(
            parse(&head.as_bytes()[..30], &mut |_| false),
            Read::PartOfHead
        ));
        assert!(matches!(
            parse(format!("{head}four").as_bytes(), &mut |_| false),
            Read::PartOfBody
        ));
    }

    pub(super) struct Bench {
        origins: Origins,
        site: Site,
    }

    impl Bench {
        pub(super) fn new(origin: &Scripted) -> Self {
            Self {
                origins: Origins::new(Pool::new(Arc::new(SystemNet)), Arc::new(Counted::default())),
                site: Site::new("www", &["*"], &[&origin.url()]),
            }
        }

        pub(super) async fn get(&self) -> Bytes {
            let mut request = Request::get("/").body(empty()).unwrap();
            request.extensions_mut().insert(Spelling::default());
            let place = self.origins.enter(&self.site).await.unwrap();
            let answer = self
                .origins
                .fetch(&self.site, cluster::key::Key(0), "www.test", request, place)
                .await;
            answer
                .unwrap()
                .into_body()
                .collect()
                .await
                .unwrap()
                .to_bytes()
        }
    }

    #[tokio::test]
    async fn one_connection_serves_plain_answers_however_they_are_cut() {
        let origin = Scripted::start(|_, mut stream| async move {
            stream.set_nodelay(true).unwrap();
            for cuts in [&[90][..], &[45, 90], &[10, 44, 90]] {
                read_head(&mut stream).await;
                let said = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{}",
                    "x".repeat(50)
                );
                let mut from = 0;
                for to in cuts {
                    let to = (*to).min(said.len());
                    stream.write_all(&said.as_bytes()[from..to]).await.unwrap();
                    tokio::task::yield_now().await;
                    from = to;
                }
                stream.write_all(&said.as_bytes()[from..]).await.unwrap();
            }
            pending::<()>().await;
        })
        .await;
        let bench = Bench::new(&origin);
        for _ in 0..3 {
            assert_eq!(bench.get().await, "x".repeat(50));
        }
        // A body that is late by more than is waited for costs its connection, and nothing else.
        assert!(origin.connections() <= 3);
    }

    #[tokio::test]
    async fn an_answer_that_is_not_plain_is_whole_nevertheless_and_the_next_is_not_tried() {
        let origin = Scripted::start(|_, mut stream| async move {
            loop {
                read_head(&mut stream).await;
                let said = "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\
                            transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
                if stream.write_all(said.as_bytes()).await.is_err() {
                    return;
                }
            }
        })
        .await;
        let bench = Bench::new(&origin);
        for _ in 0..5 {
            assert_eq!(bench.get().await, "hi");
        }
        // The first one's, which ends with it, and the HTTP client's, which stays.
        assert_eq!(origin.connections(), 2);
    }
}
