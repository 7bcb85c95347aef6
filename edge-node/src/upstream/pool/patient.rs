//! How long a reader puts up with silence.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep};

use super::{Body, BoxError};

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

/// How much longer is waited, once: a process that was stopped finds its timers due before it has read what has come
/// meanwhile.
const LAST_LOOK: Duration = Duration::from_millis(50);

/// The longest silence a reader puts up with; counted only while it waits.
pub(in crate::upstream) struct Silence {
    longest: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether this is the [`LAST_LOOK`].
    is_last: bool,
}

/// What came of waiting.
pub(in crate::upstream) enum Heard {
    /// A frame, or the end.
    Frame(Option<Result<Frame<Bytes>, hyper::Error>>),
    /// Nothing for this long.
    Nothing(Duration),
}

impl Silence {
    pub(in crate::upstream) fn new(longest: Duration) -> Self {
        Self {
            longest,
            timer: None,
            is_last: false,
        }
    }

    pub(in crate::upstream) fn or_frame<B>(
        &mut self,
        body: &mut B,
        cx: &mut Context<'_>,
    ) -> Poll<Heard>
    where
        B: http_body::Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
            (self.timer, self.is_last) = (None, false);
            return Poll::Ready(Heard::Frame(frame));
        }
        let longest = self.longest;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(longest)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if std::mem::replace(&mut self.is_last, true) {
                return Poll::Ready(Heard::Nothing(longest));
            }
            timer.as_mut().reset(Instant::now() + LAST_LOOK);
        }
    }
}
