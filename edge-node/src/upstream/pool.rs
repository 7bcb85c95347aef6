//! Connections to origins, peers and control planes. The only file that names the HTTP client, with the
//! ones below it.
//!
//! HTTP/1.1 over whatever [`Net`] opens, with TLS for `https`. Every wait has a deadline, every head
//! a size, and every failure says which of the two ends is to blame (see [`Fault`]).

mod connecting;
mod fault;
mod patient;
#[cfg(test)]
mod tests;
mod upload;

use std::{
    fmt,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use cluster::net::Net;
use http::{HeaderMap, Request, Response, Uri, header};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt as _, Empty, combinators::UnsyncBoxBody};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector};
use hyper_util::{
    client::legacy::{Client, connect::capture_connection},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::pki_types::ServerName;
use tokio::time::{Instant, timeout, timeout_at};

pub(super) use self::patient::{Heard, Silence};
use self::{
    connecting::{Connector, Tcp},
    fault::{blame, fault_of},
    upload::{Upload, uploading},
};
pub use self::{
    fault::{Fault, SendError, body_fault, in_full},
    patient::patient,
    upload::{OnInterim, Withheld},
};
use super::plain::{Kept, Plainly, Replayed, Spelling};

pub use hyper::body::Incoming;

/// Largest head of an answer. What real origins send fits eight times over.
pub const HEAD_BYTES_MAX: usize = 64 << 10;
/// Most header fields of an answer; the same number that a manifest may hold.
pub const FIELDS_MAX: usize = cluster::manifest::FIELDS_MAX;
/// Most idle connections kept per host: enough for a mirror run to find warm ones, few enough that a
/// thousand origins do not eat the file descriptors.
pub(super) const IDLE_PER_HOST_MAX: usize = 256;
/// How long a connection stays open without work. Below the keep-alive of common origins (nginx
/// and Apache close after 60 s and 5 s), so that few requests meet a connection that is closing.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Any error, as bodies carry it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of a request.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A body without bytes.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a connection, with TLS where it applies.
    pub connect: Duration,
    /// For the head of the answer, counted from when the other end has to act: while a request's
    /// body still comes in slowly, it is the sender who is waited for.
    pub head: Duration,
}

/// Which connection to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// An idle one if there is one.
    Allowed,
    /// One that nobody has used.
    Never,
}

/// An answer, and how long it took.
#[derive(Debug)]
pub struct Answer {
    /// The answer; its body has no deadline of its own.
    pub response: Response<Incoming>,
    /// From having a connection to having the head.
    pub round_trip: Duration,
    /// The request's body, if the answer came before it was asked for: it will not be sent. To be
    /// kept until the answer has been read.
    pub withheld: Option<Withheld>,
}

/// The body of an answer.
#[derive(Debug)]
pub enum Arriving {
    /// As it comes.
    Stream(Incoming),
    /// All of it has come; empty once it was taken.
    Whole(Bytes),
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Stream(incoming) => Pin::new(incoming).poll_frame(cx),
            Self::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Stream(incoming) => incoming.is_end_stream(),
            Self::Whole(bytes) => bytes.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Stream(incoming) => incoming.size_hint(),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

/// A small answer, read to its end.
#[derive(Debug)]
pub struct Document {
    /// The head.
    pub head: http::response::Parts,
    /// The body.
    pub body: Bytes,
    /// From having a connection to having the head.
    pub round_trip: Duration,
}

/// A pool of connections. Clones share it.
#[derive(Clone)]
pub struct Pool {
    pooled: Client<Connector, Upload>,
    fresh: Client<Connector, Upload>,
    kept: Arc<Kept>,
    net: Arc<dyn Net>,
}

impl Pool {
    /// A pool over `net` that trusts the certificate authorities Mozilla trusts.
    pub fn new(net: Arc<dyn Net>) -> Self {
        Self::with_name(net, None)
    }

    /// The same over connections of their own, on which the other end must have a certificate for `name`.
    #[must_use]
    pub fn named(&self, name: &str) -> Self {
        Self::with_name(self.net.clone(), Some(name))
    }

    fn with_name(net: Arc<dyn Net>, name: Option<&str>) -> Self {
        let plain = net.clone();
        let roots = hyper_rustls::HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
            .expect("ring offers the default protocol versions");
        let mut builder = roots.https_or_http();
        // A site's check lets nothing else through; without it, the certificate must be for the URL's host.
        let name = name.and_then(|name| ServerName::try_from(name.to_owned()).ok());
        if let Some(name) = name {
            builder = builder.with_server_name_resolver(FixedServerNameResolver::new(name));
        }
        Self::over(builder.enable_http1().wrap_connector(Tcp(net)), plain)
    }

    fn over(https: HttpsConnector<Tcp>, plain: Arc<dyn Net>) -> Self {
        let client = |idle_max| {
            Client::builder(TokioExecutor::new())
                .timer(TokioTimer::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_max_idle_per_host(idle_max)
                .http1_max_buf_size(HEAD_BYTES_MAX)
                .http1_max_headers(FIELDS_MAX)
                .http1_preserve_header_case(true)
                .set_host(false)
                .build(Connector(https.clone()))
        };
        Self {
            pooled: client(IDLE_PER_HOST_MAX),
            fresh: client(0),
            kept: Arc::new(Kept::new(plain.clone())),
            net: plain,
        }
    }

    /// Sends `request`, whose URI is absolute and whose `Host` is set, and waits for the head of the
    /// answer. Upgrades (101) keep hyper's upgrade extension; interim responses go to an [`OnInterim`]
    /// among the extensions.
    ///
    /// A body that comes with `Expect: 100-continue` is not read before the other end has said so, or
    /// a second is over; and never once the answer is there.
    ///
    /// # Errors
    ///
    /// No answer in time, or none that is HTTP. Nothing is retried here except a request that a
    /// closing connection never took.
    pub async fn send(
        &self,
        request: Request<Body>,
        patience: Patience,
        reuse: Reuse,
    ) -> Result<Answer, SendError> {
        let (mut request, upload) = uploading(request);
        let mut captured = capture_connection(&mut request);
        let client = match reuse {
            Reuse::Allowed => &self.pooled,
            Reuse::Never => &self.fresh,
        };
        let failed = |(fault, detail, reused)| SendError {
            fault,
            detail,
            reused,
            body: upload.reclaim(),
        };

        let answered = |response, round_trip| Answer {
            response,
            round_trip,
            withheld: upload.withhold(),
        };

        let mut answer = pin!(client.request(request));
        let connected = tokio::select! {
            biased;
            result = &mut answer => return match result {
                Ok(response) => Ok(answered(response, Duration::ZERO)),
                Err(e) => Err(failed(blame(&e))),
            },
            waited = timeout(patience.connect, captured.wait_for_connection_metadata()) => waited.is_ok(),
        };
        if !connected {
            let detail = format!("no connection within {:?}", patience.connect);
            return Err(failed((Fault::ConnectTimeout, detail, false)));
        }
        let asked = Instant::now();
        tokio::select! {
            biased;
            result = &mut answer => match result {
                Ok(response) => Ok(answered(response, asked.elapsed())),
                Err(e) => Err(failed(blame(&e))),
            },
            () = upload.outwaited(asked, patience.head) => {
                let detail = format!("no answer within {:?}", patience.head);
                Err(failed((Fault::HeadTimeout, detail, false)))
            }
        }
    }

    /// Sends a GET without a body, of these parts, if it is one for a [plain exchange](super::plain): over
    /// plain TCP, with [`Spelling`] among the extensions, and nothing in it that the connection or an
    /// answer would have to be another for. `None`: it is for [`Self::send`], and was not sent.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub async fn send_plainly(
        &self,
        origin: &str,
        parts: &http::request::Parts,
        patience: Patience,
        reuse: Reuse,
    ) -> Option<Result<Response<Arriving>, SendError>> {
        let authority = plain_authority(origin)?;
        let spelling = parts.extensions.get::<Spelling>()?;
        let other = [
            header::CONNECTION,
            header::UPGRADE,
            header::EXPECT,
            header::TE,
        ];
        if parts.method != http::Method::GET
            || other.iter().any(|name| parts.headers.contains_key(name))
            || !self.kept.takes(authority)
        {
            return None;
        }
        let target = parts.uri.path_and_query().map_or("/", |pq| pq.as_str());
        let failed = |fault, detail, reused| SendError {
            fault,
            detail,
            reused,
            body: None,
        };
        let by = Instant::now() + patience.connect;
        let opened = self.kept.open(authority, by, reuse == Reuse::Allowed);
        let exchange = match opened.await {
            Ok(exchange) => exchange,
            Err((failure, detail)) => return Some(Err(failed(failure.into(), detail, false))),
        };
        let by = Instant::now() + patience.head;
        let answer = exchange.get(target, &parts.headers, spelling, by).await;
        Some(Self::concluded(answer, parts, by).await)
    }

    /// The answer that came of a plain exchange, or else comes until `by`.
    pub(super) async fn concluded(
        plainly: Plainly,
        parts: &http::request::Parts,
        by: Instant,
    ) -> Result<Response<Arriving>, SendError> {
        let failed = |fault, detail, reused| SendError {
            fault,
            detail,
            reused,
            body: None,
        };
        match plainly {
            Plainly::Whole(response) => Ok(response.map(Arriving::Whole)),
            Plainly::Odd(replayed) => {
                let mut request = Request::new(empty());
                *request.uri_mut() = parts.uri.clone();
                *request.headers_mut() = parts.headers.clone();
                *request.extensions_mut() = parts.extensions.clone();
                let answer = timeout_at(by, replay(request, replayed));
                match answer.await {
                    Ok(Ok(response)) => Ok(response.map(Arriving::Stream)),
                    Ok(Err(error)) => Err(failed(fault_of(Some(&error)), in_full(&error), false)),
                    Err(_) => {
                        let detail = "no answer in time".to_owned();
                        Err(failed(Fault::HeadTimeout, detail, false))
                    }
                }
            }
            Plainly::Closed => Err(failed(Fault::ClosedEarly, "closed".to_owned(), true)),
            Plainly::Failed(failure, detail) => Err(failed(failure.into(), detail, false)),
        }
    }

    /// Connections for plain exchanges.
    pub(super) fn kept(&self) -> &Arc<Kept> {
        &self.kept
    }

    /// Sends what `request` makes, a request that may be repeated, and makes and sends another over a
    /// new connection when a used one closed without a byte of the answer (RFC 9112 §9.3.1).
    ///
    /// # Errors
    ///
    /// As [`Self::send`], or `request`'s own.
    pub async fn ask<E: From<SendError>>(
        &self,
        request: impl Fn() -> Result<Request<Body>, E>,
        patience: Patience,
    ) -> Result<Answer, E> {
        match self.send(request()?, patience, Reuse::Allowed).await {
            Err(e) if e.reused => Ok(self.send(request()?, patience, Reuse::Never).await?),
            sent => Ok(sent?),
        }
    }

    /// The same, and reads the whole answer, of at most `bytes_max`, before `deadline`.
    ///
    /// # Errors
    ///
    /// As [`Self::ask`]; or a body that is too large, incomplete or late.
    pub async fn document<E: From<SendError>>(
        &self,
        request: impl Fn() -> Result<Request<Body>, E>,
        patience: Patience,
        bytes_max: usize,
        deadline: Instant,
    ) -> Result<Document, E> {
        self.document_over(Reuse::Allowed, request, patience, bytes_max, deadline)
            .await
    }

    /// The same over a connection of that kind.
    ///
    /// # Errors
    ///
    /// As [`Self::document`].
    pub async fn document_over<E: From<SendError>>(
        &self,
        reuse: Reuse,
        request: impl Fn() -> Result<Request<Body>, E>,
        patience: Patience,
        bytes_max: usize,
        deadline: Instant,
    ) -> Result<Document, E> {
        let Answer {
            response,
            round_trip,
            ..
        } = match reuse {
            Reuse::Allowed => self.ask(request, patience).await?,
            Reuse::Never => self.send(request()?, patience, reuse).await?,
        };
        let (head, mut body) = response.into_parts();
        let failed = |fault, detail: String| {
            E::from(SendError {
                fault,
                detail,
                reused: false,
                body: None,
            })
        };
        let mut bytes = BytesMut::new();
        loop {
            let frame = timeout_at(deadline, body.frame()).await;
            match frame.map_err(|_| failed(Fault::BodyTimeout, "document incomplete".into()))? {
                None => {
                    return Ok(Document {
                        head,
                        body: bytes.freeze(),
                        round_trip,
                    });
                }
                Some(Err(e)) => return Err(failed(body_fault(&e), in_full(&e))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        if bytes.len() + data.len() > bytes_max {
                            return Err(failed(Fault::TooLarge, format!("over {bytes_max} bytes")));
                        }
                        bytes.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pool")
    }
}

/// A `GET` of `url` with these fields and the `Host` that the URL names.
///
/// # Errors
///
/// `url` is not an absolute URL.
pub fn get(url: &str, fields: HeaderMap) -> Result<Request<Body>, http::Error> {
    let uri = Uri::try_from(url)?;
    let host = uri
        .authority()
        .map_or("", http::uri::Authority::as_str)
        .to_owned();
    let mut request = Request::get(uri).body(empty())?;
    *request.headers_mut() = fields;
    request.headers_mut().insert(header::HOST, host.try_into()?);
    Ok(request)
}

/// The authority of an origin over plain TCP that is no more than a host and perhaps a port.
pub(super) fn plain_authority(origin: &str) -> Option<&str> {
    let authority = origin.strip_prefix("http://")?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let is_other = |b: u8| matches!(b, b'/' | b'?' | b'#' | b'@');
    (!authority.is_empty() && !authority.bytes().any(is_other)).then_some(authority)
}

/// Reads the answer to a request that was sent already.
async fn replay(
    request: Request<Body>,
    connection: Replayed,
) -> Result<Response<Incoming>, hyper::Error> {
    let (request, _) = uploading(request);
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(FIELDS_MAX)
        .preserve_header_case(true)
        .handshake(TokioIo::new(connection))
        .await?;
    // Ends with the answer's body: the request was the last.
    tokio::spawn(connection);
    sender.send_request(request).await
}
