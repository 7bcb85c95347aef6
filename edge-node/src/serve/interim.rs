//! Interim responses (RFC 9110 §15.2) on their way to an HTTP/1.1 client.
//!
//! hyper's server knows one response to a request, and of the interim ones only 100. So their heads
//! are written under it, by the stream of the connection, when hyper flushes it. That puts them where
//! they belong, for hyper (1.12, `proto/h1`)
//!
//! - answers one request of a connection at a time, and polls the service before it flushes;
//! - flushes the stream only when its own buffer is empty, so never within a message, and never
//!   before the end of the response to an earlier request;
//! - has no byte of the final response before the service has returned it; and the service returns
//!   it after [`Interim::end`], when nothing waits here any more.
//!
//! There are none on HTTP/2: h2 could send them (`SendResponse::send_informational`), but hyper keeps
//! that handle of a stream to itself. And none for HTTP/1.0, which does not know them (§15.2).

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, StatusCode};

/// Bytes of heads that may wait for a client that takes nothing: several times what a page of early
/// hints needs. What does not fit is dropped, for it was advice only.
const WAITING_BYTES_MAX: usize = 64 << 10;

/// The right to send interim responses to one request.
#[derive(Clone, Debug)]
pub struct Interim {
    outbox: Arc<Outbox>,
    request: u64,
}

/// What waits to be written ahead of a final response; one per connection.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Whether a request has opened it. Lets all others, cached answers among them, pass by the lock.
    open: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the request that has opened it; 0: none has.
    request: u64,
    waiting: BytesMut,
    /// Whether the stream has taken bytes and not come back for more: they may be under way.
    taken: bool,
    /// The connection's task, which writes.
    connection: Option<Waker>,
    /// The request that has its final response and waits for all of this to be written.
    ending: Option<Waker>,
}

impl Interim {
    pub(super) fn new(outbox: Arc<Outbox>, request: u64) -> Self {
        Self { outbox, request }
    }

    /// From now until [`end`](Self::end), what is sent goes to the client.
    pub fn open(&self) {
        self.outbox.lock().request = self.request;
        self.outbox.open.store(true, Ordering::Release);
    }

    /// Sends an interim response at once, if the request is still without its final one.
    ///
    /// `fields` must be fit for an interim response: no connection-specific ones, and no length.
    pub fn send(&self, status: StatusCode, fields: &HeaderMap) {
        let mut state = self.outbox.lock();
        if state.request != self.request {
            return;
        }
        let head = encode(status, fields);
        if state.waiting.len() + head.len() > WAITING_BYTES_MAX {
            return;
        }
        state.waiting.extend_from_slice(&head);
        if let Some(connection) = state.connection.take() {
            connection.wake();
        }
    }

    /// Waits until the client has what was sent (a proxy must forward it, §15.2), and lets nothing
    /// follow. To be called in the service, before it returns the final response. A client that takes
    /// nothing is given up by the stream's write timeout.
    pub async fn end(&self) {
        // The task that reads this is the one that opened it.
        if !self.outbox.open.load(Ordering::Relaxed) {
            return;
        }
        poll_fn(|context| {
            let mut state = self.outbox.lock();
            if state.taken || !state.waiting.is_empty() {
                state.ending = Some(context.waker().clone());
                return Poll::Pending;
            }
            state.request = 0;
            self.outbox.open.store(false, Ordering::Release);
            Poll::Ready(())
        })
        .await;
    }
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no code panics while it holds this lock")
    }

    /// What is to be written now; called by the stream once it has written what it took before. When
    /// there is nothing, the task of `context` is woken by the next head.
    pub(super) fn take(&self, context: &mut Context<'_>) -> Option<Bytes> {
        if !self.open.load(Ordering::Acquire) {
            return None;
        }
        let mut state = self.lock();
        state.taken = !state.waiting.is_empty();
        if state.taken {
            return Some(state.waiting.split().freeze());
        }
        state.connection = Some(context.waker().clone());
        if let Some(ending) = state.ending.take() {
            ending.wake();
        }
        None
    }
}

fn encode(status: StatusCode, fields: &HeaderMap) -> BytesMut {
    let mut head = BytesMut::new();
    head.put_slice(b"HTTP/1.1 ");
    head.put_slice(status.as_str().as_bytes());
    // RFC 9112 §4: the space stays where there is no reason.
    head.put_slice(b" ");
    head.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    head.put_slice(b"\r\n");
    for (name, value) in fields {
        head.put_slice(name.as_str().as_bytes());
        head.put_slice(b": ");
        head.put_slice(value.as_bytes());
        head.put_slice(b"\r\n");
    }
    head.put_slice(b"\r\n");
    head
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use futures_util::FutureExt;

    use super::*;

    const HINTS: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";

    fn hints() -> (StatusCode, HeaderMap) {
        let mut fields = HeaderMap::new();
        fields.insert("link", "</a>".parse().unwrap());
        (StatusCode::EARLY_HINTS, fields)
    }

    fn send(interim: &Interim) {
        let (status, fields) = hints();
        interim.send(status, &fields);
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn take(outbox: &Outbox) -> Option<Bytes> {
        outbox.take(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_head_is_written_as_rfc_9112_wants_it() {
        let (status, fields) = hints();
        assert_eq!(&encode(status, &fields)[..], HINTS);
        let unknown = StatusCode::from_u16(199).unwrap();
        assert_eq!(
            &encode(unknown, &HeaderMap::new())[..],
            b"HTTP/1.1 199 \r\n\r\n"
        );
    }

    #[test]
    fn only_the_open_request_is_sent_anything() {
        let outbox = Arc::new(Outbox::default());
        let (one, two) = (
            Interim::new(outbox.clone(), 1),
            Interim::new(outbox.clone(), 2),
        );
        send(&one);
        assert_eq!(take(&outbox), None);
        one.open();
        send(&one);
        send(&two);
        assert_eq!(take(&outbox).as_deref(), Some(HINTS));
        assert_eq!(take(&outbox), None);
        one.end().now_or_never().expect("everything is written");
        two.open();
        send(&one);
        assert_eq!(take(&outbox), None);
    }

    #[test]
    fn the_end_waits_for_what_was_sent_and_wakes_when_it_is_written() {
        let outbox = Arc::new(Outbox::default());
        let interim = Interim::new(outbox.clone(), 1);
        interim.open();
        send(&interim);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut end = Box::pin(interim.end());
        let mut end = || end.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(end().is_pending());
        assert_eq!(take(&outbox).as_deref(), Some(HINTS));
        // Taken is not yet written.
        assert!(end().is_pending() && !woken.0.load(Ordering::Relaxed));
        assert_eq!(take(&outbox), None);
        assert!(woken.0.load(Ordering::Relaxed) && end().is_ready());
    }

    #[test]
    fn the_connection_is_woken_by_a_head_and_what_is_over_the_bound_is_dropped() {
        let outbox = Arc::new(Outbox::default());
        let interim = Interim::new(outbox.clone(), 1);
        interim.open();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        assert_eq!(outbox.take(&mut Context::from_waker(&waker)), None);
        for _ in 0..WAITING_BYTES_MAX {
            send(&interim);
        }
        assert!(woken.0.load(Ordering::Relaxed));
        let waiting = take(&outbox).unwrap();
        assert_eq!(waiting.len(), WAITING_BYTES_MAX / HINTS.len() * HINTS.len());
    }
}
