//! The body of a client's request on its way to the origin: bounded in size and in silence.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::upstream::pool::{self, BoxError};

/// What a client may send.
#[derive(Clone, Copy, Debug)]
pub struct UploadLimits {
    /// Largest body, in bytes.
    pub bytes_max: u64,
    /// Longest silence within it.
    pub silence_max: Duration,
}

/// What has become of a request's body.
#[derive(Debug, Default)]
pub(super) struct Progress {
    touched: AtomicBool,
    over: AtomicBool,
}

impl Progress {
    /// Whether it turned out to be over the limit.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Whether nobody has asked for a byte of it. A client that expects 100 has not been told to go
    /// ahead then (RFC 9110 §10.1.1): hyper says so when the body is first read.
    pub(super) fn is_untouched(&self) -> bool {
        !self.touched.load(Ordering::Acquire)
    }
}

/// `body` within `limits`.
pub(super) fn bounded(body: Incoming, limits: UploadLimits) -> (pool::Body, Arc<Progress>) {
    let progress = Arc::new(Progress::default());
    let body = pool::patient(body, limits.silence_max);
    let left = limits.bytes_max;
    let bounded = Bounded {
        body,
        left,
        progress: progress.clone(),
    };
    (bounded.boxed_unsync(), progress)
}

struct Bounded {
    body: pool::Body,
    left: u64,
    progress: Arc<Progress>,
}

impl Body for Bounded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.progress.touched.store(true, Ordering::Release);
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(data)) = frame.as_ref().map(|f| f.as_ref().map(Frame::data_ref)) {
            match self
                .left
                .checked_sub(data.map_or(0, |bytes| bytes.len() as u64))
            {
                Some(left) => self.left = left,
                None => {
                    self.progress.over.store(true, Ordering::Release);
                    return Poll::Ready(Some(Err("the request's body is over the limit".into())));
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
