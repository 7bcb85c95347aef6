//! The body of a response on its way to the client, and the one place where a request ends: what was
//! sent is counted when this is dropped.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;
use tracing::debug;

use crate::{
    cache::{
        entry::{BodyStream, Reading},
        fill::Growing,
        policy,
    },
    metrics::{Metrics, Outcome, SiteMetrics, Source},
    serve::{Answering, quick::Counts},
    upstream::origin::OriginBody,
};

/// A response's body, or why it ended early.
pub struct Payload {
    bytes: Content,
    length: Option<u64>,
    /// The cached body that is growing, if trailers may come behind it.
    growing: Option<Arc<Growing>>,
    /// `None`: the answer was counted when it was made.
    trace: Option<Box<Trace>>,
    /// Tells the connection that the answer has ended.
    answering: Option<Answering>,
    /// Bytes of body sent so far.
    sent: u64,
}

enum Content {
    Empty,
    Whole(Bytes),
    Reading(BodyStream),
    Origin(Box<OriginBody>),
}

/// What is known of a request when it ends: one access event and the counters.
pub struct Trace {
    /// Metrics of the process.
    pub metrics: Arc<Metrics>,
    /// Metrics of the site; `None` when there is no site.
    pub site: Option<Arc<SiteMetrics>>,
    /// Name of the site, for the log as well.
    pub site_name: String,
    /// Method and target, for the log.
    pub what: String,
    /// When its head was there.
    pub started: Instant,
    /// How it was answered.
    pub outcome: Outcome,
    /// Where the bytes come from that are not counted in `from_disk`.
    pub source: Source,
    /// Bytes of body that were read from disk for it; some of them may not have been sent.
    pub from_disk: Arc<AtomicU64>,
    /// The body that comes in meanwhile, some of it perhaps from peers.
    pub growing: Option<Arc<Growing>>,
    /// Of a body that is put together: what of it came from elsewhere than memory and disk. `source` is that of its
    /// beginning.
    pub fetched: Option<Arc<BySource>>,
    /// Status of the answer.
    pub status: StatusCode,
    /// Bytes of body sent.
    pub sent: u64,
}

/// Bytes of one body, by where they came from.
#[derive(Debug, Default)]
pub struct BySource([AtomicU64; Source::ALL.len()]);

impl BySource {
    /// So many more.
    pub fn add(&self, source: Source, bytes: u64) {
        self.0[source as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    fn of(&self, source: Source) -> u64 {
        self.0[source as usize].load(Ordering::Relaxed)
    }
}

/// Whether anybody reads of single requests; else a [`Trace`] can do without words.
pub fn is_logged() -> bool {
    tracing::enabled!(target: "access", tracing::Level::DEBUG)
        || tracing::enabled!(tracing::Level::DEBUG)
}

impl Payload {
    /// Sends nothing of it.
    pub fn cut(&mut self) {
        self.bytes = Content::Empty;
    }

    /// Takes all of the body, if it is here already. What is dropped then counts nothing as sent, but for
    /// what [`Counts`] is told.
    pub fn take_whole(&mut self) -> Option<Bytes> {
        let whole = match &mut self.bytes {
            Content::Empty => Bytes::new(),
            Content::Whole(bytes) => std::mem::take(bytes),
            Content::Origin(body) => body.whole()?,
            Content::Reading(_) => return None,
        };
        self.bytes = Content::Empty;
        Some(whole)
    }

    /// Tells the connection when it has ended.
    pub fn hold(&mut self, answering: Answering) {
        self.answering = Some(answering);
    }

    /// No body.
    pub fn empty(trace: Trace) -> Self {
        Self::new(Content::Empty, Some(0), Some(trace))
    }

    /// Bytes in memory.
    pub fn whole(bytes: Bytes, trace: Trace) -> Self {
        let length = Some(bytes.len() as u64);
        Self::new(Content::Whole(bytes), length, Some(trace))
    }

    /// Bytes in memory, of an answer that has been counted.
    pub fn counted(bytes: Bytes) -> Self {
        let length = Some(bytes.len() as u64);
        Self::new(Content::Whole(bytes), length, None)
    }

    /// A cached body; `length` if it is known.
    pub fn reading(reading: Reading, length: Option<u64>, trace: Trace) -> Self {
        match reading {
            Reading::Whole(bytes) => Self::whole(bytes, trace),
            Reading::Stream(stream) => Self::new(Content::Reading(stream), length, Some(trace)),
        }
    }

    /// The whole of a cached body that is growing, of unknown length, and the trailers behind it.
    pub fn growing(reading: Reading, growing: Arc<Growing>, trace: Trace) -> Self {
        let mut payload = Self::reading(reading, None, trace);
        payload.growing = Some(growing);
        payload
    }

    /// The origin's own body, passed through.
    pub fn origin(body: OriginBody, trace: Trace) -> Self {
        let length = body.size_hint().exact();
        Self::new(Content::Origin(Box::new(body)), length, Some(trace))
    }

    fn new(bytes: Content, length: Option<u64>, trace: Option<Trace>) -> Self {
        Self {
            bytes,
            length,
            growing: None,
            trace: trace.map(Box::new),
            answering: None,
            sent: 0,
        }
    }
}

impl Counts for Payload {
    fn sent(&mut self, body_bytes: u64) {
        self.sent = body_bytes;
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        if let Some(trace) = &mut self.trace {
            trace.sent = self.sent;
        }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let frame = match &mut this.bytes {
            Content::Empty => None,
            Content::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                this.bytes = Content::Empty;
                (!bytes.is_empty()).then(|| Ok(Frame::data(bytes)))
            }
            Content::Reading(stream) => match ready!(stream.as_mut().poll_next(context)) {
                Some(read) => Some(read.map(Frame::data).map_err(Into::into)),
                None => {
                    this.bytes = Content::Empty;
                    let growing = this.growing.take();
                    let trailers = growing.as_ref().and_then(|growing| growing.trailers());
                    trailers.map(|trailers| Ok(Frame::trailers(trailers.clone())))
                }
            },
            Content::Origin(body) => ready!(Pin::new(body.as_mut()).poll_frame(context))
                .map(|frame| frame.map_err(Into::into)),
        };
        let frame = frame.map(|read| read.map(without_hop_by_hop));
        if let Some(Ok(data)) = frame.as_ref().map(|f| f.as_ref().map(Frame::data_ref)) {
            this.sent += data.map_or(0, |bytes| bytes.len() as u64);
        }
        if let Some(Err(error)) = &frame {
            let error: &Self::Error = error;
            let what = this.trace.as_ref().map_or("", |trace| &trace.what);
            debug!(what, %error, "response ended early");
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.bytes {
            Content::Empty => true,
            Content::Whole(bytes) => bytes.is_empty(),
            Content::Reading(_) => self.length == Some(0),
            Content::Origin(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.bytes, self.length) {
            (Content::Empty, _) => SizeHint::with_exact(0),
            (Content::Whole(bytes), _) => SizeHint::with_exact(bytes.len() as u64),
            (Content::Origin(body), _) => body.size_hint(),
            (Content::Reading(_), Some(length)) => {
                SizeHint::with_exact(length.saturating_sub(self.sent))
            }
            (Content::Reading(_), None) => SizeHint::default(),
        }
    }
}

/// Trailers are forwarded by the same rule as fields (RFC 9110 §7.6.1); HTTP/2 would not have the
/// others at all.
fn without_hop_by_hop(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            policy::strip_hop_by_hop(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let from_disk = self.from_disk.load(Ordering::Relaxed).min(self.sent);
        if from_disk > 0 && from_disk == self.sent {
            self.source = Source::Disk;
        }
        self.metrics.in_flight().dec();
        self.metrics.sent(self.sent);
        match &self.site {
            Some(site) => {
                site.request(self.outcome);
                site.bytes(Source::Disk, from_disk);
                let mut others = self.sent - from_disk;
                let mut count = |source, bytes: u64| {
                    let bytes = bytes.min(others);
                    site.bytes(source, bytes);
                    others -= bytes;
                };
                if let Some(growing) = &self.growing {
                    count(Source::Peer, growing.from_peers(self.sent - from_disk));
                }
                if let Some(fetched) = &self.fetched {
                    for source in Source::ALL {
                        count(source, fetched.of(source));
                    }
                    count(Source::Memory, u64::MAX);
                }
                count(self.source, u64::MAX);
            }
            None => self.metrics.siteless_request(),
        }
        debug!(
            target: "access",
            site = %self.site_name,
            what = self.what,
            status = self.status.as_u16(),
            outcome = self.outcome.label(),
            source = self.source.label(),
            bytes = self.sent,
            ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "request"
        );
    }
}
