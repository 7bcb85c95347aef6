//! A real HTTP/1.1 origin on a socket of its own: from a directory, or exactly as a test says,
//! lies and silence included.
//!
//! It writes its answers byte by byte itself, because no proper HTTP server would send a wrong
//! length.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::sleep,
};

use crate::pattern::Pattern;

/// Longest head of a request. Larger than an edge lets through, so that the edge's limit shows.
const HEAD_BYTES_MAX: usize = 256 << 10;
/// Size of the pieces that a body is written in, unless scripted otherwise.
const CHUNK_BYTES: usize = 64 << 10;
/// Most requests remembered in detail; counting goes on.
const SEEN_MAX: usize = 100_000;

/// A running origin. Dropping it closes its socket and every connection.
pub struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    routes: Mutex<HashMap<String, Route>>,
    directory: Option<Directory>,
    seen: Mutex<Vec<Seen>>,
    requests: AtomicU64,
    unanswered: AtomicU64,
    most_unanswered: AtomicU64,
    body_bytes: AtomicU64,
}

type Route = Arc<dyn Fn(&Seen) -> Script + Send + Sync>;

/// A request, as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// The request target with its query.
    pub target: String,
    /// Header fields in order, names in lower case.
    pub fields: Vec<(String, String)>,
    /// Length of the body.
    pub body_bytes: u64,
    /// Hash of the body.
    pub body_hash: blake3::Hash,
}

impl Seen {
    /// The first value of a header field.
    pub fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The target without its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

/// What to do with a request.
#[derive(Clone, Debug)]
pub enum Script {
    /// Answers.
    Answer(Answer),
    /// Writes these bytes, whatever they are, and closes.
    Raw(Bytes),
    /// Closes without a byte.
    Close,
    /// Keeps the connection and never says anything.
    Silence,
    /// Switches protocols, then sends back what it gets.
    Echo,
}

impl From<Answer> for Script {
    fn from(answer: Answer) -> Self {
        Self::Answer(answer)
    }
}

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

/// A directory as a site: files with ETag, Last-Modified and types, `index.html` for a directory.
#[derive(Clone, Debug)]
pub struct Directory {
    /// The root; nothing above it is served.
    pub root: PathBuf,
    /// `Cache-Control` of a file, by the path in the request.
    pub cache_control: fn(&str) -> Option<&'static str>,
}

impl Origin {
    /// An origin that has only what [`Origin::route`] gives it; anything else is a 404.
    ///
    /// # Errors
    ///
    /// The system's error on binding a socket.
    pub async fn start() -> io::Result<Self> {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), None).await
    }

    /// An origin at `at`, with a directory behind its routes.
    ///
    /// # Errors
    ///
    /// The system's error on binding the socket.
    pub async fn start_at(at: SocketAddr, directory: Option<Directory>) -> io::Result<Self> {
        let listener = TcpListener::bind(at).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            directory,
            ..Shared::default()
        });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Ok(Self {
            address,
            shared,
            accepting,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Does `script` with every request for `path`.
    pub fn route(&self, path: &str, script: impl Into<Script>) {
        let script = script.into();
        self.route_by(path, move |_| script.clone());
    }

    /// Does with a request for `path` what `by` says.
    pub fn route_by(&self, path: &str, by: impl Fn(&Seen) -> Script + Send + Sync + 'static) {
        let mut routes = lock(&self.shared.routes);
        routes.insert(path.to_owned(), Arc::new(by));
    }

    /// How many requests came in, for whatever.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// How many requests were here at once, at most, without a byte of their answers having gone out.
    pub fn most_unanswered(&self) -> u64 {
        self.shared.most_unanswered.load(Ordering::Relaxed)
    }

    /// How many bytes of bodies went out.
    pub fn body_bytes(&self) -> u64 {
        self.shared.body_bytes.load(Ordering::Relaxed)
    }

    /// The requests for `path`, oldest first.
    pub fn seen(&self, path: &str) -> Vec<Seen> {
        let seen = lock(&self.shared.seen);
        seen.iter().filter(|s| s.path() == path).cloned().collect()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with this task, which ends every connection.
    let mut connections = JoinSet::new();
    loop {
        let accepted = listener.accept().await;
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let shared = shared.clone();
                connections.spawn(async move {
                    // A peer that goes away is its own business.
                    let _ = converse(stream, &shared).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "origin cannot accept");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

type Reader = BufReader<tcp::OwnedReadHalf>;

async fn converse(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::with_capacity(CHUNK_BYTES, reader);
    while let Some(mut seen) = read_head(&mut reader).await? {
        if seen.field("expect").is_some() {
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        (seen.body_bytes, seen.body_hash) = read_body(&mut reader, &seen).await?;
        shared.requests.fetch_add(1, Ordering::Relaxed);
        {
            let mut all = lock(&shared.seen);
            if all.len() < SEEN_MAX {
                all.push(seen.clone());
            }
        }
        let route = lock(&shared.routes).get(seen.path()).cloned();
        let script = match (route, &shared.directory) {
            (Some(route), _) => route(&seen),
            (None, Some(directory)) => directory.find(&seen).await.into(),
            (None, None) => not_found().into(),
        };
        match script {
            Script::Answer(answer) => {
                if !respond(&mut writer, &seen, answer, shared).await? {
                    return Ok(());
                }
            }
            Script::Raw(bytes) => return writer.write_all(&bytes).await,
            Script::Close => return Ok(()),
            Script::Silence => {
                // Until the other side gives up.
                let mut sink = [0; 1024];
                while reader.read(&mut sink).await? > 0 {}
                return Ok(());
            }
            Script::Echo => {
                let protocol = seen.field("upgrade").unwrap_or("echo");
                let head = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n"
                );
                writer.write_all(head.as_bytes()).await?;
                tokio::io::copy_buf(&mut reader, &mut writer).await?;
                return Ok(());
            }
        }
    }
    Ok(())
}

fn bad(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

async fn read_line(reader: &mut Reader, budget: &mut usize) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    loop {
        let byte = match reader.read_u8().await {
            Ok(byte) => byte,
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && line.is_empty() => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        *budget = budget.checked_sub(1).ok_or_else(|| bad("head too long"))?;
        if byte == b'\n' {
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
        }
        line.push(byte);
    }
}

/// The next request up to its body; `None` when the connection ended between two requests.
async fn read_head(reader: &mut Reader) -> io::Result<Option<Seen>> {
    let mut budget = HEAD_BYTES_MAX;
    let Some(line) = read_line(reader, &mut budget).await? else {
        return Ok(None);
    };
    let mut words = line.split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(bad("request line"));
    };
    let mut seen = Seen {
        method: method.to_owned(),
        target: target.to_owned(),
        fields: Vec::new(),
        body_bytes: 0,
        body_hash: blake3::hash(b""),
    };
    loop {
        let line = read_line(reader, &mut budget).await?;
        let line = line.ok_or_else(|| bad("head ends early"))?;
        if line.is_empty() {
            return Ok(Some(seen));
        }
        let (name, value) = line.split_once(':').ok_or_else(|| bad("header field"))?;
        let field = (name.to_ascii_lowercase(), value.trim().to_owned());
        seen.fields.push(field);
    }
}

async fn read_body(reader: &mut Reader, seen: &Seen) -> io::Result<(u64, blake3::Hash)> {
    let mut hasher = blake3::Hasher::new();
    let mut total = 0;
    if seen.field("transfer-encoding").is_some() {
        loop {
            let mut budget = HEAD_BYTES_MAX;
            let line = read_line(reader, &mut budget).await?;
            let line = line.ok_or_else(|| bad("body ends early"))?;
            let length = u64::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16)
                .map_err(|_| bad("chunk size"))?;
            if length == 0 {
                // Trailers, then an empty line.
                while read_line(reader, &mut budget)
                    .await?
                    .is_some_and(|l| !l.is_empty())
                {}
                break;
            }
            read_exactly(reader, length, &mut hasher).await?;
            total += length;
            read_line(reader, &mut budget).await?;
        }
    } else if let Some(length) = seen.field("content-length") {
        total = length.parse().map_err(|_| bad("content-length"))?;
        read_exactly(reader, total, &mut hasher).await?;
    }
    Ok((total, hasher.finalize()))
}

async fn read_exactly(
    reader: &mut Reader,
    length: u64,
    hasher: &mut blake3::Hasher,
) -> io::Result<()> {
    let mut limited = reader.take(length);
    let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
    let mut read = 0;
    while limited.read_buf(&mut buffer).await? > 0 {
        read += buffer.len() as u64;
        hasher.update(&buffer);
        buffer.clear();
    }
    if read == length {
        Ok(())
    } else {
        Err(bad("body ends early"))
    }
}

fn not_found() -> Answer {
    Answer {
        status: 404,
        ..Answer::bytes("not found\n").field("content-type", "text/plain; charset=utf-8")
    }
}

impl Directory {
    async fn find(&self, seen: &Seen) -> Answer {
        if !matches!(seen.method.as_str(), "GET" | "HEAD") {
            return Answer::status(405).field("allow", "GET, HEAD");
        }
        let Some(relative) = relative_path(seen.path()) else {
            return not_found();
        };
        let mut file = self.root.join(relative);
        if seen.path().ends_with('/') {
            file.push("index.html");
        }
        let Ok(meta) = tokio::fs::metadata(&file).await else {
            return not_found();
        };
        if meta.is_dir() {
            return Answer::status(301).field("location", format!("{}/", seen.path()));
        }
        let modified = meta.modified().unwrap_or(UNIX_EPOCH);
        let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut answer = Answer::with(Body::File(file.clone(), meta.len()))
            .field("content-type", content_type(&file))
            .field(
                "etag",
                format!("\"{:x}-{:x}\"", since.as_millis(), meta.len()),
            )
            .field("last-modified", httpdate::fmt_http_date(modified))
            .field("accept-ranges", "bytes");
        if let Some(value) = (self.cache_control)(seen.path()) {
            answer = answer.field("cache-control", value);
        }
        answer
    }
}

/// The file below a root that a request's path names; `None` for what would leave the root.
fn relative_path(path: &str) -> Option<PathBuf> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let pair = [rest.next()?, rest.next()?];
            let text = std::str::from_utf8(&pair).ok()?;
            bytes.push(u8::from_str_radix(text, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    let text = String::from_utf8(bytes).ok()?;
    let mut relative = PathBuf::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => return None,
            _ if part.contains('\0') => return None,
            _ => relative.push(part),
        }
    }
    Some(relative)
}

fn content_type(file: &Path) -> &'static str {
    match file
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default()
    {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css",
        "js" => "text/javascript",
        "json" => "application/json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "txt" | "md" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

/// A request whose answer has not begun.
struct Unanswered<'a>(&'a Shared);

impl<'a> Unanswered<'a> {
    fn new(shared: &'a Shared) -> Self {
        let now = shared.unanswered.fetch_add(1, Ordering::Relaxed) + 1;
        shared.most_unanswered.fetch_max(now, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.unanswered.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Writes the answer; says whether the connection may go on.
async fn respond(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Client, raw};

    #[tokio::test]
    async fn a_directory_is_served_with_validators_ranges_and_404() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a b")).unwrap();
        std::fs::write(dir.path().join("a b/index.html"), "<p>hello</p>").unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        let directory = Directory {
            root: dir.path().join("a b"),
            cache_control: |_| Some("max-age=60"),
        };
        let at = (Ipv4Addr::LOCALHOST, 0).into();
        let origin = Origin::start_at(at, Some(directory)).await.unwrap();
        let client = Client::new();
        let page = client.get(&format!("{}/", origin.url())).await.unwrap();
        assert_eq!((page.status, &page.body[..]), (200, &b"<p>hello</p>"[..]));
        assert_eq!(page.field("content-type"), Some("text/html; charset=utf-8"));
        let tag = page.field("etag").unwrap();
        let url = format!("{}/index.html", origin.url());
        let again = client
            .get_with(&url, &[("if-none-match", tag)])
            .await
            .unwrap();
        assert_eq!((again.status, again.body.len()), (304, 0));
        let part = client
            .get_with(&url, &[("range", "bytes=3-7")])
            .await
            .unwrap();
        assert_eq!((part.status, &part.body[..]), (206, &b"hello"[..]));
        for missing in ["/none", "/%2e%2e/secret", "/../secret"] {
            let answer = raw(
                origin.address(),
                format!("GET {missing} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                    .as_bytes(),
            )
            .await
            .unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 404 "), "{missing}");
        }
        assert_eq!(origin.seen("/index.html").len(), 2);
    }

    #[tokio::test]
    async fn an_origin_does_as_it_is_told() {
        let origin = Origin::start().await.unwrap();
        let pattern = Pattern::new(1, 300_000);
        let answer = Answer::pattern(&pattern).field("etag", "\"a\"");
        origin.route("/chunked", answer.clone().framing(Framing::Chunked));
        origin.route("/close", answer.clone().framing(Framing::UntilClose));
        origin.route("/short", answer.clone().cut_after(1000));
        origin.route("/lie", answer.framing(Framing::Claims(400_000)));
        origin.route(
            "/garbage",
            Script::Raw(Bytes::from_static(b"\0\0\0nonsense\r\n\r\n")),
        );
        let client = Client::new();
        let url = |path: &str| format!("{}{path}", origin.url());
        for whole in ["/chunked", "/close"] {
            let answer = client.get(&url(whole)).await.unwrap();
            assert_eq!(blake3::hash(&answer.body), pattern.hash(), "{whole}");
        }
        for broken in ["/short", "/lie", "/garbage"] {
            assert!(client.get(&url(broken)).await.is_err(), "{broken}");
        }
        assert_eq!(origin.requests(), 5);
    }

    #[tokio::test]
    async fn uploads_are_hashed() {
        let origin = Origin::start().await.unwrap();
        origin.route("/up", Answer::status(204));
        let head = "POST /up HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
        let request = format!("{head}3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n");
        let answer = raw(origin.address(), request.as_bytes()).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 204 "));
        let seen = origin.seen("/up");
        assert_eq!(
            (seen[0].body_bytes, seen[0].body_hash),
            (5, blake3::hash(b"abcde"))
        );
    }
}
