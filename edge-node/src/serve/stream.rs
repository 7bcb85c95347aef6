//! The stream of one connection, with what hyper does not watch: a client that takes nothing, or says
//! nothing; heads with flaws; and the gate in front of those who are not admitted. And with what hyper
//! does not send: interim responses, and [quick answers](super::quick).

use std::{
    io,
    mem::MaybeUninit,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use cluster::net::BoxStream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::yield_now,
    time::{Instant, Sleep, sleep},
};

use super::{
    Connection, ConnectionLimits,
    framing::Scanner,
    quick::{self, Chunks, Counts, Later, Session, Tried},
};
use crate::{alarm::Alarm, error::Kind};

/// What is read at once while quick answers are possible: more than most heads, and a few of them
/// when a client pipelines.
const READ_BYTES: usize = 4 << 10;

/// Small writes of an HTTP/2 connection that go out as one: a frame each, they would cost a system call
/// each. Larger ones are not worth the copy.
const GATHERED_BYTES_MAX: usize = 64 << 10;
const GATHER_BYTES_MAX: usize = 16 << 10;

/// What of a body goes out before the other connections of the thread have their turn: a client that is as
/// fast as we are would take all of it at once. To write this much takes some 0.3 ms.
const TURN_BYTES_MAX: usize = 2 << 20;

/// How hyper begins its own answers to a head that it cannot read, and to one that is too long.
const REFUSALS: [(&[u8], Kind); 2] = [
    (b"HTTP/1.1 400 Bad Request\r\n", Kind::BadHead),
    (
        b"HTTP/1.1 431 Request Header Fields Too Large\r\n",
        Kind::HeadTooLarge,
    ),
];
/// What hyper writes in them, each of which is a field of no more than that.
const REFUSAL_FIELDS: [&[u8]; 3] = [b"connection:", b"content-length:", b"date:"];

/// How long a client that is still sending is listened to after the last word to it (RFC 9112 §9.6):
/// closing at once would reset the connection, and the client might lose the answer that tells it to
/// stop. Long enough for that answer to arrive and for what is on its way; no upload's worth.
const LINGER: Duration = Duration::from_secs(2);
/// What is read of it at a time.
const LINGER_BYTES: usize = 16 << 10;

pub(super) struct Guarded {
    stream: BoxStream,
    connection: Arc<Connection>,
    scanner: Scanner,
    gated: bool,
    write_timeout: Duration,
    /// Since when the client has taken nothing of what is ready for it.
    stalled_since: Option<Instant>,
    stalled: Alarm,
    /// Whether the time for a head is kept here; hyper keeps it where it sees every head.
    keeps_time: bool,
    head_timeout: Duration,
    /// Since when the client has owed a request.
    waiting_since: Instant,
    waited: Alarm,
    /// Answers that hyper has written to the last byte.
    written: u64,
    /// What is left of interim responses that the client has a part of.
    interim: Bytes,
    session: Option<Box<dyn Session>>,
    head_bytes_max: usize,
    /// Read, and neither answered nor given to hyper.
    ahead: BytesMut,
    /// Written by hyper over HTTP/2, and to go out with what follows; `None` on HTTP/1.
    gathered: Option<BytesMut>,
    /// In which turn of the connection's task HTTP/2 flushed what is gathered: it goes out in the next.
    due: Option<u64>,
    /// The quick answer that is waited for, to a request whose head of this length `ahead` begins with.
    later: Option<(Later, usize)>,
    /// The quick answer that is being written.
    answer: Option<Written>,
    fields: Vec<u8>,
    /// The last turn of the connection's task in which something of an answer went out, and how much.
    turn: u64,
    turn_bytes: usize,
    lingering: Option<Pin<Box<Sleep>>>,
}

/// A quick answer on its way: what the client does not have yet of it.
struct Written {
    head: Bytes,
    /// Where what is left of the fields begins.
    fields_at: usize,
    /// The body, or what is there of it.
    chunk: Bytes,
    /// Where more of it comes from, and how much.
    more: Option<Chunks>,
    /// Who hears what became of it; `None`: the session.
    counts: Option<Box<dyn Counts>>,
    /// How many bytes of the body the client has.
    sent: u64,
}

impl Written {
    fn new(answer: quick::Answer) -> Self {
        let quick::Answer { head, body, counts } = answer;
        let (chunk, more) = match body {
            quick::Body::Bytes(bytes) => (bytes, None),
            quick::Body::Chunks(chunks) => (Bytes::new(), Some(chunks)),
        };
        Self {
            head,
            fields_at: 0,
            chunk,
            more,
            counts,
            sent: 0,
        }
    }

    /// Sees to it that there is a chunk, unless the body has ended.
    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.chunk.is_empty()
            && let Some(more) = &mut self.more
        {
            match ready!(more.poll_next(context)) {
                Some(chunk) => self.chunk = chunk?,
                None => self.more = None,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// What can be written at once.
    fn slices<'a>(&'a self, fields: &'a [u8]) -> [io::IoSlice<'a>; 3] {
        [&self.head[..], &fields[self.fields_at..], &self.chunk].map(io::IoSlice::new)
    }

    /// The client has `count` bytes more.
    fn advance(&mut self, fields: &[u8], mut count: usize) {
        let of_head = count.min(self.head.len());
        self.head.advance(of_head);
        count -= of_head;
        let of_fields = count.min(fields.len() - self.fields_at);
        self.fields_at += of_fields;
        count -= of_fields;
        self.chunk.advance(count);
        self.sent += count as u64;
    }
}

/// What hyper refuses a request for, if this is its own word; answers of others have more to say. Pure.
fn refusal(answer: &[u8]) -> Option<Kind> {
    let of = |(line, kind): (&[u8], Kind)| Some((answer.strip_prefix(line)?, kind));
    let (fields, kind) = REFUSALS.into_iter().find_map(of)?;
    let mut lines = fields
        .strip_suffix(b"\r\n\r\n")?
        .split(|byte| *byte == b'\n');
    let is_hypers = |line: &[u8]| REFUSAL_FIELDS.iter().any(|name| line.starts_with(name));
    lines.all(is_hypers).then_some(kind)
}

impl Guarded {
    pub(super) fn new(
        stream: BoxStream,
        limits: &ConnectionLimits,
        connection: Arc<Connection>,
        session: Option<Box<dyn Session>>,
    ) -> Self {
        Self {
            stream,
            connection,
            scanner: Scanner::new(limits.head_bytes_max),
            gated: limits.gated,
            write_timeout: limits.write_timeout,
            stalled_since: None,
            stalled: Alarm::default(),
            keeps_time: session.is_some(),
            head_timeout: limits.head_timeout,
            waiting_since: Instant::now(),
            waited: Alarm::default(),
            written: 0,
            interim: Bytes::new(),
            session,
            head_bytes_max: limits.head_bytes_max,
            ahead: BytesMut::new(),
            gathered: None,
            due: None,
            later: None,
            answer: None,
            fields: Vec::new(),
            turn: 0,
            turn_bytes: 0,
            lingering: None,
        }
    }

    /// Whether hyper has whole requests only, and has answered all of them to the last byte: then what
    /// comes next is a request, and an answer may be written.
    fn is_between(&self) -> bool {
        self.scanner.whole_requests() == Some(self.written)
            && !self.connection.tunnel.load(Ordering::Acquire)
    }

    /// Fails when the client has owed a request for too long.
    fn poll_patience(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // While an answer is owed it is not the client's turn; an HTTP/2 connection may be
        // silent for as long as its client's system gives a sign of life.
        let owes =
            self.scanner.owes(self.written) && !self.connection.tunnel.load(Ordering::Acquire);
        if !self.keeps_time || !owes {
            return Poll::Pending;
        }
        let until = self.waiting_since + self.head_timeout;
        ready!(self.waited.poll_at(until, context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Writes what is left of the quick answer.
    fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(written) = &mut self.answer {
            let turn = self.connection.turn();
            if self.turn != turn {
                (self.turn, self.turn_bytes) = (turn, 0);
            }
            if self.turn_bytes >= TURN_BYTES_MAX {
                // Wakes the task when the runtime has looked for what else is ready.
                let _ = pin!(yield_now()).poll(context);
                return Poll::Pending;
            }
            let waits = match written.poll_chunk(context) {
                Poll::Ready(Ok(())) => false,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => true,
            };
            let slices = written.slices(&self.fields);
            if slices.iter().all(|slice| slice.is_empty()) {
                if waits {
                    return Poll::Pending;
                }
                self.end_answer();
                self.waiting_since = Instant::now();
                break;
            }
            let count = Pin::new(&mut self.stream).poll_write_vectored(context, &slices);
            let count = ready!(self.watch(count, context))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.turn_bytes += count;
            if let Some(written) = &mut self.answer {
                written.advance(&self.fields, count);
            }
        }
        Poll::Ready(Ok(()))
    }

    fn end_answer(&mut self) {
        let Some(mut written) = self.answer.take() else {
            return;
        };
        match (&mut written.counts, &mut self.session) {
            (Some(counts), _) => counts.sent(written.sent),
            (None, Some(session)) => session.sent(written.sent),
            (None, None) => {}
        }
        if self.connection.owes_quickly.load(Ordering::Relaxed) {
            self.connection.owes_quickly(false);
        }
    }

    /// Waits for the quick answer that was begun. `false`: its request is for hyper, or its client has
    /// left, and nothing is ahead any more.
    fn poll_later(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let Some((later, head_bytes)) = &mut self.later else {
            return Poll::Ready(Ok(false));
        };
        let head_bytes = *head_bytes;
        if let Poll::Ready(answer) = later.as_mut().poll(context) {
            self.later = None;
            let Some(answer) = answer else {
                self.connection.owes_quickly(false);
                return Poll::Ready(Ok(false));
            };
            self.ahead.advance(head_bytes);
            self.fields.clear();
            self.answer = Some(Written::new(answer));
            return Poll::Ready(Ok(true));
        }
        while let Poll::Ready(written) = self.poll_interim(context) {
            written?;
            match self.connection.outbox.take(context) {
                Some(interim) => self.interim = interim,
                None => break,
            }
        }
        // Whoever leaves is not waited for. One that has sent more requests has not left before they are
        // answered, even if it has ended: they have their turn first.
        while self.ahead.len() == head_bytes {
            let mut space = [const { MaybeUninit::uninit() }; READ_BYTES];
            let mut read = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                self.later = None;
                self.connection.owes_quickly(false);
                self.ahead.clear();
                self.session = None;
                return Poll::Ready(Ok(false));
            }
            self.ahead.extend_from_slice(read.filled());
        }
        Poll::Pending
    }

    /// Answers what stands in `bytes` as far as that can be done at once; gives what is left, and
    /// whether that is for hyper.
    fn poll_quick<'a>(
        &mut self,
        context: &mut Context<'_>,
        mut bytes: &'a [u8],
    ) -> io::Result<(&'a [u8], bool)> {
        while !bytes.is_empty() {
            let Some(session) = &mut self.session else {
                return Ok((bytes, true));
            };
            match quick::try_answer(&mut **session, bytes, &mut self.fields) {
                Tried::Answered(answer, length) => {
                    bytes = &bytes[length..];
                    let written = Written::new(answer);
                    if written.more.is_some() {
                        self.connection.owes_quickly(true);
                    }
                    self.answer = Some(written);
                    match self.poll_answer(context) {
                        Poll::Ready(written) => written?,
                        Poll::Pending => return Ok((bytes, false)),
                    }
                }
                Tried::Begun(later, length) => {
                    self.later = Some((later, length));
                    self.connection.owes_quickly(true);
                    return Ok((bytes, false));
                }
                Tried::Partial => return Ok((bytes, bytes.len() >= self.head_bytes_max)),
                Tried::Other => return Ok((bytes, true)),
            }
        }
        Ok((bytes, false))
    }

    /// Writes what was gathered.
    fn poll_gathered(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(gathered) = self.gathered.as_mut().filter(|g| !g.is_empty()) {
            let written = Pin::new(&mut self.stream).poll_write(context, gathered);
            let count = ready!(self.watch(written, context))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if let Some(gathered) = &mut self.gathered {
                gathered.advance(count);
            }
        }
        self.due = None;
        Poll::Ready(Ok(()))
    }

    /// Takes small writes over HTTP/2 in.
    fn gather(&mut self, slices: &[io::IoSlice<'_>]) -> Option<usize> {
        let gathered = self.gathered.as_mut()?;
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        let fits = length <= GATHER_BYTES_MAX && gathered.len() + length <= GATHERED_BYTES_MAX;
        fits.then(|| {
            slices
                .iter()
                .for_each(|slice| gathered.extend_from_slice(slice));
            length
        })
    }

    /// Takes in hyper's own refusal of a request, for which another goes out that says why.
    fn take_refusal(&mut self, answer: &[u8]) -> Option<usize> {
        // It is no body's, nor a tunnel's: all that was asked is answered.
        let is_between = self.connection.has_had(self.written);
        let kind = match refusal(answer).filter(|_| is_between)? {
            Kind::HeadTooLarge if self.scanner.has_long_line(self.written) => Kind::TargetTooLong,
            kind => kind,
        };
        self.interim = self.session.as_mut()?.refused(kind)?;
        Some(answer.len())
    }

    /// Gives bytes to hyper, and has the scanner follow.
    fn hand_over(&mut self, bytes: &[u8]) {
        if self.scanner.is_at_start() && bytes.starts_with(b"PRI * HTTP/2") {
            self.gathered = Some(BytesMut::new());
        }
        if !self.connection.tunnel.load(Ordering::Acquire)
            && let Some(flawed) = self.scanner.scan(bytes)
        {
            // The scanner finds no second.
            let _ = self.connection.flawed.set(flawed);
        }
    }

    fn may_write(&self) -> io::Result<()> {
        if self.gated && !self.connection.admitted.load(Ordering::Acquire) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "not admitted",
            ));
        }
        Ok(())
    }

    /// Passes `written` on, unless it has been pending for too long.
    fn watch<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled_since = None;
            return written;
        }
        let since = *self.stalled_since.get_or_insert_with(Instant::now);
        ready!(self.stalled.poll_at(since + self.write_timeout, context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Takes what the client still sends, until it ends or [`LINGER`] is over.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let over = self
            .lingering
            .get_or_insert_with(|| Box::pin(sleep(LINGER)));
        if over.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let mut sink = [0; LINGER_BYTES];
        loop {
            let mut sink = ReadBuf::new(&mut sink);
            match ready!(Pin::new(&mut self.stream).poll_read(context, &mut sink)) {
                Ok(()) if !sink.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
    }

    /// Writes the rest of what was begun: nothing else may come between.
    fn poll_interim(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.interim.is_empty() {
            self.may_write()?;
            let written = Pin::new(&mut self.stream).poll_write(context, &self.interim);
            let count = ready!(self.watch(written, context))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.interim.advance(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.due.is_some_and(|due| due != this.connection.turn())
            && let Poll::Ready(written) = this.poll_gathered(context)
        {
            written?;
        }
        loop {
            ready!(this.poll_answer(context))?;
            let was_late = this.later.is_some();
            if was_late && ready!(this.poll_later(context))? {
                continue;
            }
            let mut for_hyper = !this.ahead.is_empty();
            if for_hyper && !was_late && this.session.is_some() && this.is_between() {
                let ahead = this.ahead.split().freeze();
                let (rest, is_for_hyper) = this.poll_quick(context, &ahead)?;
                this.ahead.extend_from_slice(rest);
                if this.answer.is_some() || this.later.is_some() {
                    continue;
                }
                for_hyper = is_for_hyper;
            }
            if for_hyper {
                let length = this.ahead.len().min(buffer.remaining());
                let bytes = this.ahead.split_to(length);
                this.hand_over(&bytes);
                buffer.put_slice(&bytes);
                return Poll::Ready(Ok(()));
            }
            if this.session.is_none() || !this.is_between() {
                let before = buffer.filled().len();
                let read = Pin::new(&mut this.stream).poll_read(context, buffer);
                if read.is_pending() {
                    return this.poll_patience(context);
                }
                this.hand_over(&buffer.filled()[before..]);
                return read;
            }
            let mut space = [const { MaybeUninit::uninit() }; READ_BYTES];
            let mut read = ReadBuf::uninit(&mut space);
            match Pin::new(&mut this.stream).poll_read(context, &mut read) {
                Poll::Pending => return this.poll_patience(context),
                Poll::Ready(result) => result?,
            }
            let read = read.filled();
            if read.is_empty() {
                // The end; hyper gets what there is before it.
                let bytes = this.ahead.split();
                let length = bytes.len().min(buffer.remaining());
                this.hand_over(&bytes[..length]);
                buffer.put_slice(&bytes[..length]);
                this.session = None;
                return Poll::Ready(Ok(()));
            }
            if this.ahead.is_empty() {
                let (rest, for_hyper) = this.poll_quick(context, read)?;
                if for_hyper && rest.len() <= buffer.remaining() {
                    this.hand_over(rest);
                    buffer.put_slice(rest);
                    return Poll::Ready(Ok(()));
                }
                // What was begun is polled before anything is read.
                this.ahead.extend_from_slice(rest);
            } else {
                this.ahead.extend_from_slice(read);
            }
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.end_answer();
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.may_write()?;
        ready!(self.poll_interim(context))?;
        let taken = self.take_refusal(bytes);
        if let Some(length) = taken.or_else(|| self.gather(&[io::IoSlice::new(bytes)])) {
            return Poll::Ready(Ok(length));
        }
        ready!(self.poll_gathered(context))?;
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.may_write()?;
        ready!(self.poll_interim(context))?;
        let taken = slices.first().and_then(|first| self.take_refusal(first));
        if let Some(length) = taken.or_else(|| self.gather(slices)) {
            return Poll::Ready(Ok(length));
        }
        ready!(self.poll_gathered(context))?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_interim(context))?;
            match self.connection.outbox.take(context) {
                Some(interim) => self.interim = interim,
                None => break,
            }
        }
        if self
            .gathered
            .as_ref()
            .is_some_and(|gathered| !gathered.is_empty())
        {
            // HTTP/2 flushes after every frame, and others may be ready in this moment: in its next turn,
            // which begins with a look for what the client sends, all of them go out as one.
            if self.due.is_none() {
                self.due = Some(self.connection.turn());
                context.waker().wake_by_ref();
            }
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        let flushed = self.watch(flushed, context);
        // hyper flushes when it has written all it has.
        let ended = self.connection.ended.load(Ordering::Acquire);
        if flushed.is_ready() && self.written != ended {
            self.written = ended;
            self.waiting_since = Instant::now();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_answer(context))?;
        ready!(self.poll_gathered(context))?;
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        }
        // Who is not admitted is not waited for either.
        let is_tunnel = self.connection.tunnel.load(Ordering::Acquire);
        if self.scanner.is_within_body() && !is_tunnel && self.may_write().is_ok() {
            ready!(self.poll_linger(context));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        future::poll_fn,
        sync::{Mutex, atomic::AtomicUsize},
    };

    use bytes::Bytes;
    use futures_util::{StreamExt, stream};
    use http::{HeaderMap, Method, Request, Response, StatusCode};
    use http_body_util::{BodyExt, Empty, Full};
    use hyper::{
        body::Incoming,
        server::conn::{http1, http2},
        service::service_fn,
    };
    use hyper_util::rt::TokioIo;
    use proptest::prelude::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split},
        sync::Notify,
    };

    use super::{
        super::{Streams, framing::Flaw, quick::Plain},
        *,
    };
    use crate::config::LimitsSection;

    /// Ways to write one request, and what may stand between two.
    const MESSAGES: [(&str, usize); 8] = [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1),
        ("GET / HTTP/1.1\nHost: a\n\n", 1),
        ("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n\r\n\r\n\n", 1),
        (
            "PUT / HTTP/1.1\r\nTransfer-Encoding:chunked\r\n\r\n0\r\n\r\n",
            1,
        ),
        (
            "PUT / HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n003 ;a=\"b\"\r\n\r\n\n\r\nA\r\n0\r\n\r\n0\r\n\r\n\r\n0;x\r\nA: \r\nB: 0\r\n\r\n",
            1,
        ),
        ("\r\n", 0),
        ("\n\r\n", 0),
        (
            "OPTIONS * HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nG",
            1,
        ),
    ];
    const BOTH: &str =
        "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";

    /// What is told of each request that hyper finds in `text`.
    async fn told(text: String, read_bytes: usize) -> Vec<Option<Flaw>> {
        let connection = Arc::new(Connection::new(([127, 0, 0, 1], 1).into()));
        let (client, server) = duplex(read_bytes);
        let limits = ConnectionLimits::admin();
        let stream = Guarded::new(Box::new(server), &limits, connection.clone(), None);
        let told = Mutex::new(Vec::new());
        let service = service_fn(|request: Request<Incoming>| {
            told.lock().unwrap().push(connection.next_flaw());
            async {
                let _ = request.into_body().collect().await;
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        });
        let (mut answers, mut requests) = split(client);
        let serve = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let ask = async {
            let _ = requests.write_all(text.as_bytes()).await;
            let _ = requests.shutdown().await;
        };
        let mut sink = Vec::new();
        let _ = tokio::join!(serve, ask, answers.read_to_end(&mut sink));
        told.into_inner().unwrap()
    }

    /// A response that hyper has taken is still on its way to a slow client when the next request, which
    /// came in behind a body that was answered early, has an interim response. Over streams that take
    /// many slices at once hyper waits in such a case, over others it does not.
    #[tokio::test]
    async fn an_interim_response_waits_for_the_response_before_it() {
        let connection = Arc::new(Connection::new(([127, 0, 0, 1], 1).into()));
        let (mut client, server) = duplex(256);
        let limits = ConnectionLimits::admin();
        let stream = Guarded::new(Box::new(server), &limits, connection.clone(), None);
        let (first, second) = (Notify::new(), Notify::new());
        let service = service_fn(|request: Request<Incoming>| {
            let _ = connection.next_flaw();
            let interim = connection.interim(request.version()).expect("HTTP/1.1");
            let (first, second) = (&first, &second);
            async move {
                if request.method() == Method::PUT {
                    tokio::spawn(request.into_body().collect());
                    first.notify_one();
                    return Ok::<_, Infallible>(Response::new(Full::new(
                        vec![b'1'; 1 << 20].into(),
                    )));
                }
                interim.open();
                interim.send(StatusCode::EARLY_HINTS, &HeaderMap::new());
                second.notify_one();
                interim.end().await;
                Ok(Response::new(Full::new(Bytes::from_static(b"2"))))
            }
        });
        let serve = http1::Builder::new()
            .writev(false)
            .serve_connection(TokioIo::new(stream), service);
        let ask = async {
            let put = "PUT / HTTP/1.1\r\nContent-Length: 2\r\n\r\nh";
            client.write_all(put.as_bytes()).await.unwrap();
            first.notified().await;
            let get = "iGET / HTTP/1.1\r\nConnection: close\r\n\r\n";
            client.write_all(get.as_bytes()).await.unwrap();
            second.notified().await;
            let mut answers = Vec::new();
            client.read_to_end(&mut answers).await.unwrap();
            String::from_utf8(answers).unwrap()
        };
        let (served, answers) = tokio::join!(serve, ask);
        served.unwrap();
        let (one, rest) = answers.split_once("\r\n\r\n").unwrap();
        assert!(one.starts_with("HTTP/1.1 200 OK\r\n"), "{one}");
        let (body, rest) = rest.split_at(1 << 20);
        assert!(body.bytes().all(|b| b == b'1'));
        let rest = rest
            .strip_prefix("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n")
            .unwrap_or_else(|| panic!("{rest}"));
        assert!(rest.ends_with("\r\n\r\n2"), "{rest}");
    }

    /// A stream that counts what is written to it.
    struct Counting(DuplexStream, Arc<AtomicUsize>);

    impl AsyncRead for Counting {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(context, buffer)
        }
    }

    impl AsyncWrite for Counting {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.0).poll_write(context, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(context)
        }

        fn poll_shutdown(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(context)
        }
    }

    /// HTTP/2 flushes after every frame; a write for each of them is most of what a small answer costs.
    #[tokio::test]
    async fn answers_over_http2_go_out_together() {
        const ANSWERS: usize = 64;
        let connection = Arc::new(Connection::new(([127, 0, 0, 1], 1).into()));
        let (client, server) = duplex(1 << 20);
        let writes = Arc::new(AtomicUsize::new(0));
        let counting = Counting(server, writes.clone());
        let limits = ConnectionLimits::public(&LimitsSection::default());
        let stream = Guarded::new(Box::new(counting), &limits, connection.clone(), None);
        let service = service_fn(|_: Request<Incoming>| async {
            let body = Full::new(Bytes::from(vec![b'x'; 1 << 10]));
            Ok::<_, Infallible>(Response::new(body))
        });
        let serve = http2::Builder::new(Streams).serve_connection(TokioIo::new(stream), service);
        let mut serve = Box::pin(serve);
        tokio::spawn(poll_fn(move |context| {
            connection.turns.fetch_add(1, Ordering::Relaxed);
            serve.as_mut().poll(context)
        }));
        let (sender, driver) = hyper::client::conn::http2::handshake(Streams, TokioIo::new(client))
            .await
            .unwrap();
        tokio::spawn(driver);
        let asked = (0..ANSWERS).map(|_| {
            let mut sender = sender.clone();
            async move {
                let request = Request::get("http://a/").body(Empty::<Bytes>::new());
                let answer = sender.send_request(request.unwrap()).await.unwrap();
                answer.into_body().collect().await.unwrap().to_bytes().len()
            }
        });
        let lengths = futures_util::future::join_all(asked).await;
        assert!(lengths.iter().all(|length| *length == 1 << 10));
        let writes = writes.load(Ordering::Relaxed);
        assert!(writes <= ANSWERS / 4, "{writes} writes");
    }

    /// Answers with a body that is said to be four bytes long.
    struct Four(&'static [&'static str]);

    impl Session for Four {
        fn answer(&mut self, _: &Plain<'_>, fields: &mut Vec<u8>) -> Option<quick::Answer> {
            fields.extend_from_slice(b"fields;");
            let chunks = self.0.iter().map(|chunk| match *chunk {
                "!" => Err(io::Error::other("bad")),
                chunk => Ok(Bytes::from_static(chunk.as_bytes())),
            });
            // The first chunk is late.
            let late = stream::once(sleep(Duration::from_millis(1)));
            let chunks = late.map(|()| Ok(Bytes::new())).chain(stream::iter(chunks));
            Some(quick::Answer {
                head: Bytes::from_static(b"head;"),
                body: quick::Body::Chunks(Chunks::new(4, chunks)),
                counts: None,
            })
        }

        fn begin(&mut self, _: &Plain<'_>) -> Option<Later> {
            None
        }

        fn sent(&mut self, _: u64) {}
    }

    /// A client must not take the next answer for the rest of a body.
    #[tokio::test]
    async fn a_body_that_does_not_come_to_its_length_ends_its_connection() {
        let cases: [(&[&str], &str); 5] = [
            (&["1", "", "234"], "head;fields;1234head;fields;1234"),
            (&[], "head;fields;"),
            (&["12"], "head;fields;12"),
            (&["12", "!"], "head;fields;12"),
            (&["12", "345"], "head;fields;12"),
        ];
        for (chunks, expected) in cases {
            let connection = Arc::new(Connection::new(([127, 0, 0, 1], 1).into()));
            let (mut client, server) = duplex(64 << 10);
            let limits = ConnectionLimits::admin();
            let session = Box::new(Four(chunks));
            let stream = Guarded::new(Box::new(server), &limits, connection.clone(), Some(session));
            let service = service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            });
            let serve = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let ask = async {
                let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2);
                client.write_all(get.as_bytes()).await.unwrap();
                client.shutdown().await.unwrap();
                let mut answers = String::new();
                client.read_to_string(&mut answers).await.unwrap();
                answers
            };
            let serve = async {
                let _ = serve.await;
                assert!(connection.is_answered(), "{chunks:?}");
            };
            let (_, answers) = tokio::join!(serve, ask);
            assert_eq!(answers, expected, "{chunks:?}");
        }
    }

    /// Takes all that is written at once, and lets nobody else have a turn meanwhile.
    struct Taking {
        request: &'static [u8],
        taken: Arc<AtomicUsize>,
    }

    impl AsyncRead for Taking {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            buffer.put_slice(std::mem::take(&mut self.request));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Taking {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.taken.fetch_add(bytes.len(), Ordering::Relaxed);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Answers with so many chunks of [`CHUNK_BYTES`], all of which are there.
    struct Large(usize);

    const CHUNK_BYTES: usize = 1 << 20;

    impl Session for Large {
        fn answer(&mut self, _: &Plain<'_>, _: &mut Vec<u8>) -> Option<quick::Answer> {
            let chunk = Bytes::from(vec![0; CHUNK_BYTES]);
            let chunks = stream::iter(vec![chunk; self.0]).map(Ok);
            let length = (self.0 * CHUNK_BYTES) as u64;
            Some(quick::Answer {
                head: Bytes::new(),
                body: quick::Body::Chunks(Chunks::new(length, chunks)),
                counts: None,
            })
        }

        fn begin(&mut self, _: &Plain<'_>) -> Option<Later> {
            None
        }

        fn sent(&mut self, _: u64) {}
    }

    #[tokio::test]
    async fn a_client_that_takes_everything_gets_so_much_in_a_turn() {
        const CHUNKS: usize = 64;
        let connection = Arc::new(Connection::new(([127, 0, 0, 1], 1).into()));
        let taken = Arc::new(AtomicUsize::new(0));
        let taking = Taking {
            request: b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            taken: taken.clone(),
        };
        let limits = ConnectionLimits::admin();
        let session = Box::new(Large(CHUNKS));
        let stream = Guarded::new(Box::new(taking), &limits, connection.clone(), Some(session));
        let service = service_fn(|_: Request<Incoming>| async {
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        });
        let serve = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let mut serve = Box::pin(serve);
        let _ = poll_fn(|context| {
            connection.turns.fetch_add(1, Ordering::Relaxed);
            let before = taken.load(Ordering::Relaxed);
            let served = serve.as_mut().poll(context);
            let after = taken.load(Ordering::Relaxed);
            assert!(after - before < TURN_BYTES_MAX + CHUNK_BYTES);
            served
        })
        .await;
        assert_eq!(taken.load(Ordering::Relaxed), CHUNKS * CHUNK_BYTES);
    }

    proptest! {
        /// hyper and the scanner agree on where requests begin.
        #[test]
        fn a_flaw_is_told_for_the_request_that_has_it(
            before in prop::collection::vec(0..MESSAGES.len(), 0..8),
            read_bytes in 1_usize..200,
        ) {
            let before: Vec<_> = before.into_iter().map(|n| MESSAGES[n]).collect();
            let text: String = before.iter().map(|(text, _)| *text).chain([BOTH]).collect();
            let count: usize = before.iter().map(|(_, count)| count).sum();
            let mut expected = vec![None; count];
            expected.push(Some(Flaw::TwoLengths));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            prop_assert_eq!(runtime.block_on(told(text, read_bytes)), expected);
        }
    }
}
