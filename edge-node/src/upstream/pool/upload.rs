//! The body of a request on its way: kept back until the other end wants it, and had back while nothing
//! was taken from it.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::{Body, BoxError, empty};

/// How long a body that waits for `100 Continue` is kept back: the origin need not know of it
/// (RFC 9110 §10.1.1). As long as curl waits, for the same reason.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

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

/// The same request with a body that can be watched, and whose interim responses are told.
pub(super) fn uploading(request: Request<Body>) -> (Request<Upload>, Upload) {
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
pub(super) struct Upload(Arc<Mutex<Uploading>>);

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
    pub(super) fn withhold(&self) -> Option<Withheld> {
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

    pub(super) fn reclaim(&self) -> Option<Body> {
        self.with(|u| (!u.touched).then(|| std::mem::replace(&mut u.body, empty())))
    }

    /// Waits until it has been the other end's turn for `patience`.
    pub(super) async fn outwaited(&self, since: Instant, patience: Duration) {
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
