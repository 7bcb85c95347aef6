//! An answer as a test says it, and how it is sent: byte by byte by our own hand, because no proper HTTP server
//! would send a wrong length.

use std::{
    io,
    path::PathBuf,
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
    net::tcp,
    sync::watch,
    time::sleep,
};

use super::{CHUNK_BYTES, Seen, Shared, Unanswered, bad};
use crate::pattern::Pattern;

/// An answer, and how it is sent.
#[derive(Clone, Debug)]
pub struct Answer {
    status: u16,
    fields: Vec<(String, String)>,
    body: Body,
    framing: Framing,
    head_after: Duration,
    held: Option<watch::Receiver<bool>>,
    chunk_bytes: usize,
    chunk_every: Duration,
    cut_after: Option<u64>,
    knows_ranges: bool,
}

#[derive(Clone, Debug)]
enum Body {
    Bytes(Bytes),
    Pattern(Pattern),
    File(PathBuf, u64),
}

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// By its true length.
    Length,
    /// By this length, true or not.
    Claims(u64),
    /// In chunks.
    Chunked,
    /// By the end of the connection.
    UntilClose,
}

impl Answer {
    /// A 200 with this body.
    pub fn bytes(body: impl Into<Bytes>) -> Self {
        Self::with(Body::Bytes(body.into()))
    }

    /// A 200 with a pattern as body.
    pub fn pattern(pattern: &Pattern) -> Self {
        Self::with(Body::Pattern(pattern.clone()))
    }

    /// A 200 with a file of this length as body.
    pub(super) fn file(path: PathBuf, length: u64) -> Self {
        Self::with(Body::File(path, length))
    }

    /// An empty answer of this status.
    pub fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::bytes(Bytes::new())
        }
    }

    /// With this status.
    #[must_use]
    pub fn with_status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    fn with(body: Body) -> Self {
        Self {
            status: 200,
            fields: Vec::new(),
            body,
            framing: Framing::Length,
            head_after: Duration::ZERO,
            held: None,
            chunk_bytes: CHUNK_BYTES,
            chunk_every: Duration::ZERO,
            cut_after: None,
            knows_ranges: true,
        }
    }

    /// With one more header field.
    #[must_use]
    pub fn field(mut self, name: &str, value: impl Into<String>) -> Self {
        self.fields.push((name.to_owned(), value.into()));
        self
    }

    /// Fresh for that many seconds, for everybody.
    #[must_use]
    pub fn max_age(self, seconds: u32) -> Self {
        self.field("cache-control", format!("max-age={seconds}"))
    }

    /// With the end told in this way.
    #[must_use]
    pub fn framing(self, framing: Framing) -> Self {
        Self { framing, ..self }
    }

    /// With the head held back.
    #[must_use]
    pub fn head_after(self, head_after: Duration) -> Self {
        Self { head_after, ..self }
    }

    /// With the head held back until `open` turns true, or nobody can turn it any more.
    #[must_use]
    pub fn held(self, open: watch::Receiver<bool>) -> Self {
        Self {
            held: Some(open),
            ..self
        }
    }

    /// Written in pieces of this size with a pause after each.
    #[must_use]
    pub fn slowly(self, chunk_bytes: usize, chunk_every: Duration) -> Self {
        Self {
            chunk_bytes,
            chunk_every,
            ..self
        }
    }

    /// Always with the whole body, as an origin answers that does not know ranges.
    #[must_use]
    pub fn without_ranges(mut self) -> Self {
        self.knows_ranges = false;
        self
    }

    /// With the connection closed after that many bytes of the body.
    #[must_use]
    pub fn cut_after(self, body_bytes: u64) -> Self {
        Self {
            cut_after: Some(body_bytes),
            ..self
        }
    }

    fn length(&self) -> u64 {
        match &self.body {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::Pattern(pattern) => pattern.length(),
            Body::File(_, length) => *length,
        }
    }

    fn own(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }
}

pub(super) fn not_found() -> Answer {
    Answer {
        status: 404,
        ..Answer::bytes("not found\n").field("content-type", "text/plain; charset=utf-8")
    }
}

/// Writes the answer; says whether the connection may go on.
pub(super) async fn respond(
    writer: &mut tcp::OwnedWriteHalf,
    seen: &Seen,
    answer: Answer,
    shared: &Shared,
) -> io::Result<bool> {
    {
        let _unanswered = Unanswered::new(shared);
        sleep(answer.head_after).await;
        if let Some(mut open) = answer.held.clone() {
            let _ = open.wait_for(|open| *open).await;
        }
    }
    let length = answer.length();
    let (status, from, to) = selection(seen, &answer);
    let mut head = format!("HTTP/1.1 {status} {}\r\n", reason(status));
    for (name, value) in &answer.fields {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if answer.own("date").is_none() {
        head.push_str(&format!("date: {}\r\n", httpdate::fmt_http_date(now())));
    }
    if status == 206 {
        head.push_str(&format!(
            "content-range: bytes {from}-{}/{length}\r\n",
            to - 1
        ));
    } else if status == 416 {
        head.push_str(&format!("content-range: bytes */{length}\r\n"));
    }
    let bodiless = status < 200 || status == 204 || status == 304;
    let framing = if status == 206 {
        Framing::Length
    } else {
        answer.framing
    };
    match framing {
        _ if bodiless => {}
        Framing::Length => head.push_str(&format!("content-length: {}\r\n", to - from)),
        Framing::Claims(length) => head.push_str(&format!("content-length: {length}\r\n")),
        Framing::Chunked => head.push_str("transfer-encoding: chunked\r\n"),
        Framing::UntilClose => head.push_str("connection: close\r\n"),
    }
    head.push_str("\r\n");
    writer.write_all(head.as_bytes()).await?;
    if bodiless || seen.method == "HEAD" {
        return Ok(framing != Framing::UntilClose && seen.field("connection") != Some("close"));
    }
    let end = answer.cut_after.map_or(to, |cut| to.min(from + cut));
    let mut source = Source::open(&answer.body, from).await?;
    let mut at = from;
    while at < end {
        let most = usize::try_from(end - at)
            .unwrap_or(usize::MAX)
            .min(answer.chunk_bytes);
        let chunk = source.next(at, most).await?;
        if framing == Framing::Chunked {
            writer
                .write_all(format!("{:x}\r\n", chunk.len()).as_bytes())
                .await?;
            writer.write_all(&chunk).await?;
            writer.write_all(b"\r\n").await?;
        } else {
            writer.write_all(&chunk).await?;
        }
        at += chunk.len() as u64;
        shared
            .body_bytes
            .fetch_add(chunk.len() as u64, Ordering::Relaxed);
        if !answer.chunk_every.is_zero() {
            sleep(answer.chunk_every).await;
        }
    }
    if answer.cut_after.is_some() {
        return Ok(false);
    }
    if framing == Framing::Chunked {
        writer.write_all(b"0\r\n\r\n").await?;
    }
    let honest = !matches!(framing, Framing::Claims(claimed) if claimed != length);
    let asked_to_close = seen.field("connection") == Some("close");
    Ok(honest && framing != Framing::UntilClose && !asked_to_close)
}

/// Status and selected bytes after conditions (RFC 9110, 13) and a single range (RFC 9110, 14).
fn selection(seen: &Seen, answer: &Answer) -> (u16, u64, u64) {
    let length = answer.length();
    let all = (answer.status, 0, length);
    if answer.status != 200 || !matches!(seen.method.as_str(), "GET" | "HEAD") {
        return all;
    }
    let etag = answer.own("etag");
    let unchanged = match (seen.field("if-none-match"), seen.field("if-modified-since")) {
        (Some(tags), _) => tags.split(',').any(|t| {
            let weak = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
            t.trim() == "*" || etag.is_some_and(|e| weak(e) == weak(t))
        }),
        (None, Some(since)) => answer.own("last-modified") == Some(since),
        (None, None) => false,
    };
    if unchanged {
        return (304, 0, 0);
    }
    let same = seen
        .field("if-range")
        .is_none_or(|tag| Some(tag) == etag || Some(tag) == answer.own("last-modified"));
    let range = seen.field("range").and_then(|r| r.strip_prefix("bytes="));
    let Some((first, last)) = range
        .filter(|_| same && answer.knows_ranges)
        .and_then(|r| r.split_once('-'))
    else {
        return all;
    };
    let (from, to) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, (last + 1).min(length)),
        (Ok(first), Err(_)) if last.is_empty() => (first, length),
        (Err(_), Ok(suffix)) if first.is_empty() => (length.saturating_sub(suffix), length),
        _ => return all,
    };
    if from < to {
        (206, from, to)
    } else {
        (416, 0, 0)
    }
}

enum Source<'a> {
    Bytes(&'a Bytes),
    Pattern(&'a Pattern),
    File(tokio::fs::File),
}

impl<'a> Source<'a> {
    async fn open(body: &'a Body, from: u64) -> io::Result<Self> {
        Ok(match body {
            Body::Bytes(bytes) => Self::Bytes(bytes),
            Body::Pattern(pattern) => Self::Pattern(pattern),
            Body::File(path, _) => {
                let mut file = tokio::fs::File::open(path).await?;
                if from > 0 {
                    file.seek(io::SeekFrom::Start(from)).await?;
                }
                Self::File(file)
            }
        })
    }

    async fn next(&mut self, at: u64, most: usize) -> io::Result<Bytes> {
        match self {
            Self::Bytes(bytes) => {
                let at = usize::try_from(at).expect("within bytes in memory");
                Ok(bytes.slice(at..at + most))
            }
            Self::Pattern(pattern) => Ok(pattern.chunk(at, most)),
            Self::File(file) => {
                let mut buffer = vec![0; most];
                let read = file.read(&mut buffer).await?;
                if read == 0 {
                    return Err(bad("file became shorter"));
                }
                buffer.truncate(read);
                Ok(buffer.into())
            }
        }
    }
}

fn now() -> SystemTime {
    cluster::clock::Clock::system().now()
}

fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status)
        .ok()
        .and_then(|s| s.canonical_reason())
        .unwrap_or("Unknown")
}
