//! An HTTP client that measures, hashes and, when asked to, breaks the rules.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, Method, Request, Uri};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::{
    client::legacy::{Client as Pooled, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout},
};

use crate::{cache_status::CacheStatus, pattern::Pattern};

/// Longest wait for a head, and for each next part of a body. Generous: machines that run tests are
/// shared.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest wait for a raw connection to be closed by the other side.
const RAW_PATIENCE: Duration = Duration::from_secs(20);
/// Size of the parts of a body that is sent.
const CHUNK_BYTES: usize = 64 << 10;

type Body = BoxBody<Bytes, io::Error>;

/// A client with a pool of kept connections.
#[derive(Clone)]
pub struct Client {
    pooled: Pooled<HttpConnector, Body>,
}

/// A response that fits into memory.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Header fields.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// A response whose body was hashed as it came, and dropped.
#[derive(Clone, Debug)]
pub struct Digested {
    /// Status code.
    pub status: u16,
    /// Header fields.
    pub headers: HeaderMap,
    /// Length of the body.
    pub bytes: u64,
    /// Hash of the body.
    pub hash: blake3::Hash,
    /// When the first byte of the body was there (the end, if there was none).
    pub first_byte: Instant,
    /// When the last was.
    pub last_byte: Instant,
}

impl Response {
    /// A header field, if it is there and readable.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What the edge says it did.
    pub fn cache_status(&self) -> CacheStatus {
        cache_status(&self.headers)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    ///
    /// It is none; the error holds its beginning.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("{}: {:.200}", self.status, self.text()))
    }
}

impl Digested {
    /// What the edge says it did.
    pub fn cache_status(&self) -> CacheStatus {
        cache_status(&self.headers)
    }
}

fn cache_status(headers: &HeaderMap) -> CacheStatus {
    let fields = headers.get_all("cache-status").iter();
    let values: Vec<_> = fields.filter_map(|v| v.to_str().ok()).collect();
    CacheStatus::parse(&values.join(", "))
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    /// A client with no connections yet.
    pub fn new() -> Self {
        Self::from_connector(HttpConnector::new())
    }

    /// A client that speaks from this local address.
    pub fn bound_to(address: IpAddr) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_local_address(Some(address));
        Self::from_connector(connector)
    }

    fn from_connector(mut connector: HttpConnector) -> Self {
        connector.set_nodelay(true);
        let pooled = Pooled::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(connector);
        Self { pooled }
    }

    /// GET.
    ///
    /// # Errors
    ///
    /// No whole response came in time; this holds for every method here.
    pub async fn get(&self, url: &str) -> Result<Response> {
        self.get_with(url, &[]).await
    }

    /// GET with header fields; `host` among them replaces the URL's.
    ///
    /// # Errors
    ///
    /// As [`Client::get`].
    pub async fn get_with(&self, url: &str, fields: &[(&str, &str)]) -> Result<Response> {
        self.send(Method::GET, url, fields, Bytes::new()).await
    }

    /// Any method, with a body.
    ///
    /// # Errors
    ///
    /// As [`Client::get`].
    pub async fn send(
        &self,
        method: Method,
        url: &str,
        fields: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Response> {
        let body = Full::new(body).map_err(|never| match never {}).boxed();
        let (parts, body) = self.begin(method, url, fields, body).await?;
        let whole = timeout(PATIENCE, body.collect())
            .await
            .context("body took too long")?;
        Ok(Response {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: whole.context("body broke off")?.to_bytes(),
        })
    }

    /// Sends a pattern as a body of unknown length.
    ///
    /// # Errors
    ///
    /// As [`Client::get`].
    pub async fn upload(
        &self,
        url: &str,
        fields: &[(&str, &str)],
        pattern: &Pattern,
    ) -> Result<Response> {
        let chunks = stream::unfold((pattern.clone(), 0), |(pattern, at)| async move {
            (at < pattern.length()).then(|| {
                let chunk = pattern.chunk(at, CHUNK_BYTES);
                let next = at + chunk.len() as u64;
                (Ok(Frame::data(chunk)), (pattern, next))
            })
        });
        let body = BodyExt::boxed(StreamBody::new(Box::pin(chunks)));
        let (parts, body) = self.begin(Method::POST, url, fields, body).await?;
        let whole = timeout(PATIENCE, body.collect())
            .await
            .context("body took too long")?;
        Ok(Response {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: whole.context("body broke off")?.to_bytes(),
        })
    }

    /// GET, hashing the body as it comes.
    ///
    /// # Errors
    ///
    /// As [`Client::get`].
    pub async fn digest(&self, url: &str, fields: &[(&str, &str)]) -> Result<Digested> {
        let (parts, body) = self.begin(Method::GET, url, fields, empty()).await?;
        digest(parts, body).await
    }

    /// GET of what must be `body` and nothing else, byte by byte: of the ways to make sure the one that costs
    /// least, where many clients share a machine with what they measure. When its first byte was there, and its
    /// last.
    ///
    /// # Errors
    ///
    /// As [`Client::get`], and what comes is another status or other bytes.
    pub async fn exactly(
        &self,
        url: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> Result<(Instant, Instant)> {
        let (parts, mut came) = self.begin(Method::GET, url, fields, empty()).await?;
        ensure!(parts.status == 200, "status {}", parts.status);
        let (mut left, mut first_byte) = (body, None);
        while let Some(frame) = timeout(PATIENCE, came.frame())
            .await
            .context("body fell silent")?
        {
            if let Ok(data) = frame.context("body broke off")?.into_data() {
                first_byte.get_or_insert_with(Instant::now);
                let at = body.len() - left.len();
                let rest = left.strip_prefix(&data[..]);
                left = rest.with_context(|| format!("wrong bytes from {at} on"))?;
            }
        }
        ensure!(left.is_empty(), "{} bytes are missing", left.len());
        let last_byte = Instant::now();
        Ok((first_byte.unwrap_or(last_byte), last_byte))
    }

    /// GET up to the first byte of the body, leaving the rest to come; for a client that hangs up.
    ///
    /// # Errors
    ///
    /// As [`Client::get`].
    pub async fn begin_get(
        &self,
        url: &str,
        fields: &[(&str, &str)],
    ) -> Result<(http::response::Parts, Incoming)> {
        self.begin(Method::GET, url, fields, empty()).await
    }

    async fn begin(
        &self,
        method: Method,
        url: &str,
        fields: &[(&str, &str)],
        body: Body,
    ) -> Result<(http::response::Parts, Incoming)> {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let sent = self.pooled.request(request.body(body).context("request")?);
        let response = timeout(PATIENCE, sent)
            .await
            .context("head took too long")?
            .with_context(|| format!("no response to {url}"))?;
        Ok(response.into_parts())
    }
}

fn empty() -> Body {
    Full::default().map_err(|never| match never {}).boxed()
}

/// Reads a body to its end, hashing it.
///
/// # Errors
///
/// The body breaks off, or falls silent for a minute.
pub async fn digest(parts: http::response::Parts, mut body: Incoming) -> Result<Digested> {
    let mut hasher = blake3::Hasher::new();
    let (mut bytes, mut first_byte) = (0, None);
    while let Some(frame) = timeout(PATIENCE, body.frame())
        .await
        .context("body fell silent")?
    {
        if let Ok(data) = frame.context("body broke off")?.into_data() {
            first_byte.get_or_insert_with(Instant::now);
            bytes += data.len() as u64;
            hasher.update(&data);
        }
    }
    let last_byte = Instant::now();
    Ok(Digested {
        status: parts.status.as_u16(),
        headers: parts.headers,
        bytes,
        hash: hasher.finalize(),
        first_byte: first_byte.unwrap_or(last_byte),
        last_byte,
    })
}

/// GET over HTTP/2 without TLS (prior knowledge), on a connection of its own.
///
/// # Errors
///
/// No whole response came in time.
pub async fn get_h2c(edge: SocketAddr, host: &str, path: &str) -> Result<Digested> {
    let stream = TcpStream::connect(edge).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let uri: Uri = format!("http://{host}{path}").parse()?;
    let request = Request::get(uri).body(empty())?;
    let answer = timeout(PATIENCE, sender.send_request(request)).await;
    let (parts, body) = answer.context("head took too long")??.into_parts();
    let digested = digest(parts, body).await;
    driver.abort();
    digested
}

/// POST over HTTP/2 without TLS (prior knowledge), on a connection of its own: head, body and
/// trailers of the answer.
///
/// # Errors
///
/// No whole response came in time.
pub async fn post_h2c(
    edge: SocketAddr,
    host: &str,
    path: &str,
    fields: &[(&str, &str)],
    body: Bytes,
) -> Result<(http::response::Parts, Bytes, HeaderMap)> {
    let stream = TcpStream::connect(edge).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut request = Request::post(format!("http://{host}{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let answer = timeout(
        PATIENCE,
        sender.send_request(request.body(Full::new(body))?),
    )
    .await;
    let (parts, body) = answer.context("head took too long")??.into_parts();
    let whole = timeout(PATIENCE, body.collect()).await;
    let whole = whole.context("body took too long")??;
    let trailers = whole.trailers().cloned().unwrap_or_default();
    driver.abort();
    Ok((parts, whole.to_bytes(), trailers))
}

/// Sends `request` as it is and reads until the other side closes, or for 20 seconds.
///
/// # Errors
///
/// No connection, or it breaks.
pub async fn raw(to: SocketAddr, request: &[u8]) -> Result<Bytes> {
    let socket = TcpSocket::new_v4()?;
    let mut stream = timeout(RAW_PATIENCE, socket.connect(to)).await??;
    // The other side may rightly close before it has read everything.
    let _ = stream.write_all(request).await;
    let mut answer = BytesMut::new();
    let reading = async {
        while stream.read_buf(&mut answer).await? > 0 {}
        io::Result::Ok(())
    };
    match timeout(RAW_PATIENCE, pin!(reading)).await {
        Ok(Err(error)) if answer.is_empty() => bail!("nothing but {error}"),
        _ => Ok(answer.freeze()),
    }
}

/// The status code at the beginning of a raw answer.
pub fn raw_status(answer: &[u8]) -> Option<u16> {
    let text = answer.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    std::str::from_utf8(text).ok()?.parse().ok()
}
