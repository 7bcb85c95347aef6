//! Connections, plain or over TLS, that know how much they have read.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use cluster::net::{BoxStream, Net};
use http::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::BoxError;

/// TCP failed, as opposed to TLS above it.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct NotConnected(io::Error);

/// Opens plain connections to the host and port of a URI.
#[derive(Clone)]
pub(super) struct Tcp(pub(super) Arc<dyn Net>);

pub(super) type Connecting<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

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
pub(super) struct Connector(pub(super) HttpsConnector<Tcp>);

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
pub(super) struct Tally {
    read: AtomicU64,
    /// `read` at the last write, plus one; 0 before the first.
    read_at_write: AtomicU64,
}

impl Tally {
    pub(super) fn used_and_unanswered(&self) -> bool {
        let read = self.read.load(Relaxed);
        read > 0 && read + 1 == self.read_at_write.load(Relaxed)
    }

    pub(super) fn spoke_unasked(&self) -> bool {
        self.read.load(Relaxed) > 0 && self.read_at_write.load(Relaxed) == 0
    }
}

pub(super) struct Tallied<T> {
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
