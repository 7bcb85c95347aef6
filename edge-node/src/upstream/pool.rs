//! Connections to origins, peers and control planes. The only file that names the HTTP client.
//!
//! HTTP/1.1 over whatever [`Net`] opens, with TLS for `https`. Every wait has a deadline, every head
//! a size, and every failure says which of the two ends is to blame (see [`Fault`]).

use std::{
    fmt, io,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use cluster::net::{BoxStream, Net};
use http::{HeaderMap, Request, Response, StatusCode, Uri, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt as _, Empty, combinators::UnsyncBoxBody};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection, capture_connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep, sleep_until, timeout, timeout_at},
};

use super::plain::{Failure, Kept, Plainly, Replayed, Spelling};

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
/// How long a body that waits for `100 Continue` is kept back: the origin need not know of it
/// (RFC 9110 §10.1.1). As long as curl waits, for the same reason.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// Any error, as bodies carry it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of a request.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A body without bytes.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A client's body on its way to an origin, given up when the client is silent for `patience`.
pub fn patient(body: Incoming, patience: Duration) -> Body {
    Patient {
        body,
        silence: Silence::new(patience),
    }
    .boxed_unsync()
}

struct Patient {
    body: Incoming,
    silence: Silence,
}

impl http_body::Body for Patient {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Self { body, silence } = &mut *self;
        match silence.or_frame(body, cx) {
            Poll::Ready(Heard::Frame(frame)) => Poll::Ready(frame.map(|f| f.map_err(Into::into))),
            Poll::Ready(Heard::Nothing(patience)) => Poll::Ready(Some(Err(format!(
                "the client sent nothing for {patience:?}"
            )
            .into()))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The longest silence a reader puts up with; counted only while it waits.
pub(super) struct Silence {
    longest: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

/// What came of waiting.
pub(super) enum Heard {
    /// A frame, or the end.
    Frame(Option<Result<Frame<Bytes>, hyper::Error>>),
    /// Nothing for this long.
    Nothing(Duration),
}

impl Silence {
    pub(super) fn new(longest: Duration) -> Self {
        Self {
            longest,
            timer: None,
        }
    }

    pub(super) fn or_frame<B>(&mut self, body: &mut B, cx: &mut Context<'_>) -> Poll<Heard>
    where
        B: http_body::Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
            self.timer = None;
            return Poll::Ready(Heard::Frame(frame));
        }
        let longest = self.longest;
        ready!(
            self.timer
                .get_or_insert_with(|| Box::pin(sleep(longest)))
                .as_mut()
                .poll(cx)
        );
        Poll::Ready(Heard::Nothing(longest))
    }
}

/// Is told of interim responses as they come, all but 100 and 101; goes among the extensions of a
/// request.
#[derive(Clone)]
pub struct OnInterim(Arc<Tell>);

type Tell = dyn Fn(StatusCode, &HeaderMap) + Send + Sync;

impl OnInterim {
    /// Calls `tell` for each; it is called by the task of the connection and must not block.
    pub fn new(tell: impl Fn(StatusCode, &HeaderMap) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }
}

/// What went wrong with an exchange, and thereby whose fault it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The name does not resolve, or nobody accepts connections there.
    #[error("cannot be reached")]
    Connect,
    /// No connection within the deadline.
    #[error("does not accept the connection in time")]
    ConnectTimeout,
    /// TCP works, TLS does not: certificate, protocol version, or no TLS at all.
    #[error("fails the TLS handshake")]
    Tls,
    /// What it says is not HTTP/1.1.
    #[error("does not speak HTTP")]
    Garbage,
    /// The head of its answer is over [`HEAD_BYTES_MAX`] or [`FIELDS_MAX`], or a document over its bound.
    #[error("sends too much")]
    TooLarge,
    /// It closed the connection before the answer was complete.
    #[error("closed the connection early")]
    ClosedEarly,
    /// No head of an answer within the deadline.
    #[error("does not answer in time")]
    HeadTimeout,
    /// It fell silent within the body.
    #[error("fell silent within the body")]
    BodyTimeout,
    /// Whoever sends the request's body failed to: the client's fault.
    #[error("did not get the whole request")]
    RequestBody,
}

impl Fault {
    /// Whether no request can have reached the other end.
    pub fn is_connect(self) -> bool {
        matches!(self, Self::Connect | Self::ConnectTimeout | Self::Tls)
    }
}

/// Why an exchange failed.
#[derive(Debug)]
pub struct SendError {
    /// What went wrong.
    pub fault: Fault,
    /// The same in detail, for the log.
    pub detail: String,
    /// The connection had been used before, and closed without a byte of this answer: the other end
    /// may have closed it just as the request was on its way, and deserves a second try.
    pub reused: bool,
    /// The request's body, if nothing was taken from it.
    pub body: Option<Body>,
}

impl From<SendError> for String {
    fn from(error: SendError) -> Self {
        error.to_string()
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.fault, self.detail)
    }
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

/// What an error within the body of an answer means.
pub fn body_fault(error: &hyper::Error) -> Fault {
    if error.is_parse() {
        Fault::Garbage
    } else {
        Fault::ClosedEarly
    }
}

/// An error with all its causes.
pub fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// Reads from the client's error what happened: the fault, its detail, and whether a used connection
/// closed without a byte of the answer.
fn blame(error: &hyper_util::client::legacy::Error) -> (Fault, String, bool) {
    use std::error::Error as _;
    let detail = in_full(error);
    if error.is_connect() {
        let tcp = error
            .source()
            .is_some_and(|cause| cause.is::<NotConnected>());
        return (if tcp { Fault::Connect } else { Fault::Tls }, detail, false);
    }
    let mut extensions = http::Extensions::new();
    if let Some(info) = error.connect_info() {
        info.get_extras(&mut extensions);
    }
    let tally = extensions.get::<Arc<Tally>>();
    let mut cause = error.source();
    let hyper = loop {
        match cause {
            None => break None,
            Some(found) if found.is::<hyper::Error>() => {
                break found.downcast_ref::<hyper::Error>();
            }
            Some(other) => cause = other.source(),
        }
    };
    let spoke_first = tally.is_some_and(|t| t.spoke_unasked());
    let fault = match fault_of(hyper) {
        Fault::ClosedEarly if spoke_first => Fault::Garbage,
        fault => fault,
    };
    let reused = fault == Fault::ClosedEarly && tally.is_some_and(|t| t.used_and_unanswered());
    (fault, detail, reused)
}

fn fault_of(error: Option<&hyper::Error>) -> Fault {
    match error {
        Some(e) if e.is_parse_too_large() => Fault::TooLarge,
        Some(e) if e.is_parse() => Fault::Garbage,
        Some(e) if e.is_user() => Fault::RequestBody,
        _ => Fault::ClosedEarly,
    }
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Connect => Self::Connect,
            Failure::ConnectTimeout => Self::ConnectTimeout,
            Failure::HeadTimeout => Self::HeadTimeout,
            Failure::ClosedEarly => Self::ClosedEarly,
        }
    }
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

/// The same request with a body that can be watched, and whose interim responses are told.
fn uploading(request: Request<Body>) -> (Request<Upload>, Upload) {
    let (mut parts, body) = request.into_parts();
    let told = parts.extensions.remove::<OnInterim>();
    let hold = if expects_continue(&parts.headers) && !body.is_end_stream() {
        Hold::ForContinue(None)
    } else {
        Hold::Released
    };
    let upload = Upload(Arc::new(Mutex::new(Uploading {
        body,
        hold,
        writer: None,
        touched: false,
        sender_is_late: false,
        last: Instant::now(),
    })));
    let mut request = Request::from_parts(parts, upload.clone());
    *request.version_mut() = Version::HTTP_11;
    let held = upload.clone();
    hyper::ext::on_informational(&mut request, move |interim| {
        if interim.status() == StatusCode::CONTINUE {
            held.release();
        } else if let Some(OnInterim(tell)) = &told {
            tell(interim.status(), interim.headers());
        }
    });
    (request, upload)
}

fn expects_continue(headers: &HeaderMap) -> bool {
    headers
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// A request's body that can be had back while nothing was taken from it.
#[derive(Clone)]
struct Upload(Arc<Mutex<Uploading>>);

struct Uploading {
    body: Body,
    hold: Hold,
    /// The task of the connection, while the body is kept back.
    writer: Option<Waker>,
    touched: bool,
    /// The connection would take more, but its sender has nothing yet.
    sender_is_late: bool,
    last: Instant,
}

/// Whether a body is kept back (RFC 9110 §10.1.1).
enum Hold {
    /// It is not, or no longer.
    Released,
    /// Until the other end says 100, or the timer ends.
    ForContinue(Option<Pin<Box<Sleep>>>),
    /// For good: the final answer came first, and is being read.
    Answered,
    /// The answer has been read. The connection can carry no other request behind half of this one.
    Over,
}

/// A body that will not be sent. Dropping it closes the connection that waits for the body.
#[derive(Debug)]
pub struct Withheld(Upload);

impl Drop for Withheld {
    fn drop(&mut self) {
        self.0.turn(Hold::Over);
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upload")
    }
}

impl Upload {
    /// The other end wants the body.
    fn release(&self) {
        self.turn(Hold::Released);
    }

    /// The other end has answered: a body that is still kept back stays so.
    fn withhold(&self) -> Option<Withheld> {
        let held = self.with(|u| {
            let held = matches!(u.hold, Hold::ForContinue(_));
            if held {
                u.hold = Hold::Answered;
            }
            held
        });
        held.then(|| Withheld(self.clone()))
    }

    fn turn(&self, hold: Hold) {
        let writer = self.with(|u| {
            u.hold = hold;
            u.writer.take()
        });
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Uploading) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn reclaim(&self) -> Option<Body> {
        self.with(|u| (!u.touched).then(|| std::mem::replace(&mut u.body, empty())))
    }

    /// Waits until it has been the other end's turn for `patience`.
    async fn outwaited(&self, since: Instant, patience: Duration) {
        let mut until = since + patience;
        loop {
            sleep_until(until).await;
            let now = Instant::now();
            until = self.with(|u| {
                if u.sender_is_late {
                    now
                } else {
                    u.last.max(since)
                }
            }) + patience;
            if until <= now {
                return;
            }
        }
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.with(|u| {
            match &mut u.hold {
                Hold::Released => {}
                Hold::ForContinue(timer) => {
                    let timer = timer.get_or_insert_with(|| Box::pin(sleep(CONTINUE_WAIT)));
                    if timer.as_mut().poll(cx).is_pending() {
                        u.writer = Some(cx.waker().clone());
                        u.sender_is_late = true;
                        return Poll::Pending;
                    }
                    u.hold = Hold::Released;
                }
                Hold::Answered => {
                    u.writer = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Hold::Over => {
                    return Poll::Ready(Some(Err("answered without the request's body".into())));
                }
            }
            u.touched = true;
            let polled = Pin::new(&mut u.body).poll_frame(cx);
            u.sender_is_late = polled.is_pending();
            u.last = Instant::now();
            polled
        })
    }

    fn is_end_stream(&self) -> bool {
        self.with(|u| u.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|u| u.body.size_hint())
    }
}

/// TCP failed, as opposed to TLS above it.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct NotConnected(io::Error);

/// Opens plain connections to the host and port of a URI.
#[derive(Clone)]
struct Tcp(Arc<dyn Net>);

type Connecting<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl tower::Service<Uri> for Tcp {
    type Response = TokioIo<Tallied<BoxStream>>;
    type Error = NotConnected;
    type Future = Connecting<Self::Response, NotConnected>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NotConnected>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let net = self.0.clone();
        Box::pin(async move {
            let usual = if to.scheme_str() == Some("https") {
                443
            } else {
                80
            };
            let port = to.port_u16().unwrap_or(usual);
            let address = format!("{}:{port}", to.host().unwrap_or_default());
            let stream = net.connect(&address).await.map_err(NotConnected)?;
            Ok(TokioIo::new(Tallied::new(stream)))
        })
    }
}

/// Plain or TLS by the URI's scheme, with a tally of what was read above TLS.
#[derive(Clone)]
struct Connector(HttpsConnector<Tcp>);

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Tallied<TokioIo<MaybeHttpsStream<TokioIo<Tallied<BoxStream>>>>>>;
    type Error = BoxError;
    type Future = Connecting<Self::Response, BoxError>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connecting = self.0.call(to);
        Box::pin(async move { Ok(TokioIo::new(Tallied::new(TokioIo::new(connecting.await?)))) })
    }
}

/// How many bytes a connection has given, now and when it was last written to. Tells a used
/// connection that closed in its peer's keep-alive timeout from an answer that broke off.
#[derive(Default)]
struct Tally {
    read: AtomicU64,
    /// `read` at the last write, plus one; 0 before the first.
    read_at_write: AtomicU64,
}

impl Tally {
    fn used_and_unanswered(&self) -> bool {
        let read = self.read.load(Relaxed);
        read > 0 && read + 1 == self.read_at_write.load(Relaxed)
    }

    fn spoke_unasked(&self) -> bool {
        self.read.load(Relaxed) > 0 && self.read_at_write.load(Relaxed) == 0
    }
}

struct Tallied<T> {
    stream: T,
    tally: Arc<Tally>,
}

impl<T> Tallied<T> {
    fn new(stream: T) -> Self {
        Self {
            stream,
            tally: Arc::default(),
        }
    }

    fn writes(&self) {
        self.tally
            .read_at_write
            .store(self.tally.read.load(Relaxed) + 1, Relaxed);
    }
}

impl<T> Connection for Tallied<T> {
    fn connected(&self) -> Connected {
        Connected::new().extra(self.tally.clone())
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Tallied<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.tally
            .read
            .fetch_add((buffer.filled().len() - before) as u64, Relaxed);
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Tallied<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writes();
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writes();
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
    };

    use cluster::net::SystemNet;
    use rustls::{
        ClientConfig, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    };

    use super::*;

    /// For `localhost`, made for this test and worth nothing elsewhere:
    /// `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500
    /// -subj /CN=localhost -addext subjectAltName=DNS:localhost
    /// -addext basicConstraints=critical,CA:FALSE`
    const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBkzCCATigAwIBAgIUZq6S2gLlyxAk9oG6PdALalB5rJkwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzIyMDEyOVoYDzIxMjYxMDMw
MjIwMTI5WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAStbUZtUeO6zQVFRxMKhxrDWxN+lzfmtrZPhWf/VfdiEYiPM0iVStd8
C6YZOixEH6H0hOwYCssopkD+45fk9vJRo2YwZDAdBgNVHQ4EFgQU7wq6c1DUYD1M
oA27i9flYpU2Y38wHwYDVR0jBBgwFoAU7wq6c1DUYD1MoA27i9flYpU2Y38wFAYD
VR0RBA0wC4IJbG9jYWxob3N0MAwGA1UdEwEB/wQCMAAwCgYIKoZIzj0EAwIDSQAw
RgIhAP45gGr3CTPR4gAuLlrTp4IZeYbasCT8IfJOVOkN6tRsAiEA5xFIk7nuEFUF
v4ItCV0pXG7BehM4ggCwb9lXNVi3OnQ=
-----END CERTIFICATE-----
";
    const PRIVATE_KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgQiei5FmVaA1OZP2J
aIdRRvw/4Lvxt12/PphfeagGpiihRANCAAStbUZtUeO6zQVFRxMKhxrDWxN+lzfm
trZPhWf/VfdiEYiPM0iVStd8C6YZOixEH6H0hOwYCssopkD+45fk9vJR
-----END PRIVATE KEY-----
";

    /// A TLS server that answers each of `connections` with the name it was called by.
    fn tls_server(connections: usize) -> u16 {
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(PRIVATE_KEY.as_bytes()).unwrap(),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = Arc::new(config);
        std::thread::spawn(move || {
            for _ in 0..connections {
                let (stream, _) = listener.accept().unwrap();
                let tls = ServerConnection::new(config.clone()).unwrap();
                let mut stream = StreamOwned::new(tls, stream);
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    match stream.read_exact(&mut byte) {
                        Ok(()) => request.extend(byte),
                        Err(_) => break,
                    }
                }
                let name = stream.conn.server_name().unwrap_or("none").to_owned();
                let length = name.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{name}"
                );
            }
        });
        port
    }

    fn trusting(roots: RootCertStore) -> Pool {
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let https = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls);
        let tcp = Tcp(Arc::new(SystemNet));
        let https = https.https_or_http().enable_http1().wrap_connector(tcp);
        Pool::over(https, Arc::new(SystemNet))
    }

    async fn body_of(pool: &Pool, url: &str) -> Result<Bytes, String> {
        let limit = Duration::from_secs(20);
        let patience = Patience {
            connect: limit,
            head: limit,
        };
        let request = || {
            let mut request = get(url, HeaderMap::new()).unwrap();
            // What the request says of the host is not what the certificate is for.
            request
                .headers_mut()
                .insert("host", "www.example.com".try_into().unwrap());
            Ok::<_, String>(request)
        };
        Ok(pool
            .document(request, patience, 1000, Instant::now() + limit)
            .await?
            .body)
    }

    #[tokio::test]
    async fn an_https_origin_is_called_by_the_name_in_its_url_and_must_prove_it() {
        let port = tls_server(3);
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap())
            .unwrap();
        let pool = trusting(roots);
        let url = format!("https://localhost:{port}/");
        assert_eq!(body_of(&pool, &url).await.unwrap(), "localhost");
        // Another name, and an authority that nobody trusts.
        let other = body_of(&pool, &format!("https://127.0.0.1:{port}/"))
            .await
            .unwrap_err();
        assert!(other.starts_with("fails the TLS handshake"), "{other}");
        let stranger = body_of(&Pool::new(Arc::new(SystemNet)), &url)
            .await
            .unwrap_err();
        assert!(
            stranger.starts_with("fails the TLS handshake"),
            "{stranger}"
        );
    }
}
