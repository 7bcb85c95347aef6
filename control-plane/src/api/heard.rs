//! Refused requests are heard out: who is still sending a body when the answer comes and the connection goes
//! loses the answer with it, and sees a broken connection instead of what is wrong.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body, extract::Request, http::header::EXPECT, middleware::Next, response::Response,
};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::{sync::oneshot, time::timeout};

/// Most of a body that is read for nothing: twice the largest that is taken anywhere (a job's list of URLs).
const HEARD_BYTES_MAX: u64 = 32 << 20;
/// Longest time for that: a refusal shall not wait for who sends slowly.
const HEARD_TIME_MAX: Duration = Duration::from_secs(2);

/// Answers; what a refused request has left of its body is read before, within bounds.
pub(super) async fn out(request: Request, next: Next) -> Response {
    // Who waits to be told to go on sends nothing as long as nobody reads.
    let waits = request.headers().contains_key(EXPECT);
    let (send, mut left) = oneshot::channel();
    let request = request.map(|body| {
        Body::new(Lent {
            body: Some(body),
            back: Some(send),
        })
    });
    let answer = next.run(request).await;
    let is_refusal = answer.status().is_client_error() && !waits;
    if let (true, Ok(body)) = (is_refusal, left.try_recv()) {
        // What is sent after that is lost, and so is the answer, perhaps.
        let _ = timeout(HEARD_TIME_MAX, read(body)).await;
    }
    answer
}

async fn read(mut body: Body) {
    let mut heard = 0;
    while let Some(Ok(frame)) = body.frame().await {
        heard += frame.data_ref().map_or(0, |data| data.len() as u64);
        if heard > HEARD_BYTES_MAX {
            return;
        }
    }
}

/// A body that is given back when it is dropped before its end.
struct Lent {
    body: Option<Body>,
    back: Option<oneshot::Sender<Body>>,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let rest = self.body.take().filter(|body| !body.is_end_stream());
        let (Some(rest), Some(back)) = (rest, self.back.take()) else {
            return;
        };
        // Nobody listens any more: the request was dropped as a whole.
        let _ = back.send(rest);
    }
}
