//! A connection that goes over to the HTTP client in the middle of an exchange.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes};
use cluster::net::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection on which a request was sent, and a part of its answer read, for the HTTP client: it writes
/// its request into the void, and reads the answer from the beginning.
pub(in crate::upstream) struct Replayed {
    read: Bytes,
    stream: BoxStream,
    /// Whether the client has written: before, an answer would be one to no request.
    asked: bool,
    reader: Option<Waker>,
}

impl Replayed {
    pub(super) fn new(read: Bytes, stream: BoxStream) -> Self {
        Self {
            read,
            stream,
            asked: false,
            reader: None,
        }
    }
}

impl AsyncRead for Replayed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.asked {
            self.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read[..length]);
        self.read.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replayed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.asked = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
