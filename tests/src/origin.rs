//! A real HTTP/1.1 origin on a socket of its own: from a directory, or exactly as a test says,
//! lies and silence included.

mod answer;
mod directory;

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, tcp},
    task::{JoinHandle, JoinSet},
    time::sleep,
};

use self::answer::{not_found, respond};
pub use self::{
    answer::{Answer, Framing},
    directory::Directory,
};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::{Client, raw},
        pattern::Pattern,
    };

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
