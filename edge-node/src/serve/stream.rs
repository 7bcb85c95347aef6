//! The stream of one connection, with what hyper does not watch: a client that takes nothing, or says
//! nothing; heads with flaws; and the gate in front of those who are not admitted. And with what hyper
//! does not send: interim responses, and [quick answers](super::quick).

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use cluster::net::BoxStream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep, sleep_until},
};

use super::{
    Connection, ConnectionLimits,
    framing::Scanner,
    quick::{self, Session, Tried},
};

/// What is read at once while quick answers are possible: more than most heads, and a few of them
/// when a client pipelines.
const READ_BYTES: usize = 4 << 10;

pub(super) struct Guarded {
    stream: BoxStream,
    connection: Arc<Connection>,
    scanner: Scanner,
    gated: bool,
    write_timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    /// Whether the time for a head is kept here; hyper keeps it where it sees every head.
    keeps_time: bool,
    head_timeout: Duration,
    /// Since when the client has owed a request.
    waiting_since: Instant,
    waited: Option<Pin<Box<Sleep>>>,
    /// Answers that hyper has written to the last byte.
    written: u64,
    /// What is left of interim responses that the client has a part of.
    interim: Bytes,
    session: Option<Box<dyn Session>>,
    head_bytes_max: usize,
    /// Read, and neither answered nor given to hyper.
    ahead: BytesMut,
    /// The quick answer that is being written.
    answer: Option<Written>,
    fields: Vec<u8>,
}

/// A quick answer on its way.
struct Written {
    answer: quick::Answer,
    /// How many of its bytes the client has.
    at: usize,
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
            stalled: None,
            keeps_time: session.is_some(),
            head_timeout: limits.head_timeout,
            waiting_since: Instant::now(),
            waited: None,
            written: 0,
            interim: Bytes::new(),
            session,
            head_bytes_max: limits.head_bytes_max,
            ahead: BytesMut::new(),
            answer: None,
            fields: Vec::new(),
        }
    }

    /// Whether hyper has whole requests only, and has answered all of them to the last byte: then what
    /// comes next is a request, and an answer may be written.
    fn is_between(&self) -> bool {
        self.scanner.whole_requests() == Some(self.written)
    }

    /// Fails when the client has owed a request for too long.
    fn poll_patience(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // While an answer is owed it is not the client's turn; on HTTP/2 hyper asks for signs of life.
        if !self.keeps_time || !self.scanner.owes(self.written) {
            return Poll::Pending;
        }
        let until = self.waiting_since + self.head_timeout;
        let waited = self
            .waited
            .get_or_insert_with(|| Box::pin(sleep_until(until)));
        while waited.as_mut().poll(context).is_ready() {
            if waited.deadline() >= until {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            waited.as_mut().reset(until);
        }
        Poll::Pending
    }

    /// Writes what is left of the quick answer.
    fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(Written { answer, at }) = &mut self.answer {
            let parts = [&answer.head[..], &self.fields, &answer.body];
            let length: usize = parts.iter().map(|part| part.len()).sum();
            let mut skipped = *at;
            let slices = parts.map(|part| {
                let from = skipped.min(part.len());
                skipped -= from;
                io::IoSlice::new(&part[from..])
            });
            let written = Pin::new(&mut self.stream).poll_write_vectored(context, &slices);
            match ready!(self.watch(written, context)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    if let Some(Written { at, .. }) = &mut self.answer {
                        *at += count;
                        if *at >= length {
                            self.end_answer();
                            self.waiting_since = Instant::now();
                        }
                    }
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn end_answer(&mut self) {
        if let (Some(Written { answer, at }), Some(session)) =
            (self.answer.take(), &mut self.session)
        {
            let head = answer.head.len() + self.fields.len();
            session.sent(at.saturating_sub(head) as u64);
        }
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
                    self.answer = Some(Written { answer, at: 0 });
                    match self.poll_answer(context) {
                        Poll::Ready(written) => written?,
                        Poll::Pending => return Ok((bytes, false)),
                    }
                }
                Tried::Partial => return Ok((bytes, bytes.len() >= self.head_bytes_max)),
                Tried::Other => return Ok((bytes, true)),
            }
        }
        Ok((bytes, false))
    }

    /// Gives bytes to hyper, and has the scanner follow.
    fn hand_over(&mut self, bytes: &[u8]) {
        if let Some(flawed) = self.scanner.scan(bytes) {
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
            self.stalled = None;
            return written;
        }
        let timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(timeout)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
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
        loop {
            ready!(this.poll_answer(context))?;
            let mut for_hyper = !this.ahead.is_empty();
            if for_hyper && this.session.is_some() && this.is_between() {
                let ahead = this.ahead.split().freeze();
                let (rest, is_for_hyper) = this.poll_quick(context, &ahead)?;
                this.ahead.extend_from_slice(rest);
                if this.answer.is_some() {
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
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
