//! Connections that a test speaks on byte by byte, from either end: for what no library lets through.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};

/// Longest wait for what the other end is to say. Generous: machines that run tests are shared.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most that is read while looking for something.
const READ_BYTES_MAX: usize = 64 << 20;

/// An origin of which a test plays every connection.
pub struct WireOrigin {
    listener: TcpListener,
    address: SocketAddr,
}

impl WireOrigin {
    /// Listens.
    ///
    /// # Errors
    ///
    /// The system's error on binding a socket.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next connection to it.
    ///
    /// # Errors
    ///
    /// Nobody comes.
    pub async fn accept(&self) -> Result<Wire> {
        let accepted = timeout(PATIENCE, self.listener.accept()).await;
        let (stream, _) = accepted.context("nobody connects to the origin")??;
        Ok(Wire::over(stream))
    }

    /// The connection that the next request comes over: `open`, or a new one.
    ///
    /// # Errors
    ///
    /// Nobody comes.
    pub async fn next(&self, mut open: Wire) -> Result<Wire> {
        if !open.read.is_empty() {
            return Ok(open);
        }
        tokio::select! {
            accepted = self.accept() => accepted,
            more = open.more() => match more {
                Ok(true) => Ok(open),
                Ok(false) | Err(_) => self.accept().await,
            },
        }
    }
}

/// One end of a connection.
pub struct Wire {
    stream: TcpStream,
    read: BytesMut,
}

impl Wire {
    /// A connection to `to`.
    ///
    /// # Errors
    ///
    /// Nobody accepts it.
    pub async fn open(to: SocketAddr) -> Result<Self> {
        Ok(Self::over(TcpStream::connect(to).await?))
    }

    /// The same with the least receive buffer the system gives, so that the other end soon notices
    /// when nothing is read here.
    ///
    /// # Errors
    ///
    /// Nobody accepts it.
    pub async fn open_narrow(to: SocketAddr) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(1)?;
        Ok(Self::over(socket.connect(to).await?))
    }

    fn over(stream: TcpStream) -> Self {
        Self {
            stream,
            read: BytesMut::new(),
        }
    }

    /// Says `text`, at once.
    ///
    /// # Errors
    ///
    /// The other end is gone.
    pub async fn say(&mut self, text: impl AsRef<[u8]>) -> Result<()> {
        let written = timeout(PATIENCE, self.stream.write_all(text.as_ref())).await;
        Ok(written.context("the other end takes nothing")??)
    }

    /// Says that nothing follows.
    ///
    /// # Errors
    ///
    /// The other end is gone.
    pub async fn end(&mut self) -> Result<()> {
        Ok(self.stream.shutdown().await?)
    }

    /// The next head, with the empty line that ends it.
    ///
    /// # Errors
    ///
    /// It does not come.
    pub async fn head(&mut self) -> Result<String> {
        self.until("\r\n\r\n").await
    }

    /// What comes up to and with `mark`.
    ///
    /// # Errors
    ///
    /// It does not come.
    pub async fn until(&mut self, mark: &str) -> Result<String> {
        let mark = mark.as_bytes();
        loop {
            let found = self.read.windows(mark.len()).position(|w| w == mark);
            if let Some(at) = found {
                let text = self.read.split_to(at + mark.len());
                return Ok(String::from_utf8_lossy(&text).into_owned());
            }
            let more = self.more().await;
            let said = String::from_utf8_lossy(&self.read).into_owned();
            ensure!(
                more.with_context(|| format!("after {said:?}"))?,
                "closed after {said:?}"
            );
        }
    }

    /// The next `length` bytes.
    ///
    /// # Errors
    ///
    /// There are fewer.
    pub async fn exactly(&mut self, length: usize) -> Result<Bytes> {
        while self.read.len() < length {
            ensure!(self.more().await?, "closed after {} bytes", self.read.len());
        }
        Ok(self.read.split_to(length).freeze())
    }

    /// Everything up to the end of the connection.
    ///
    /// # Errors
    ///
    /// It is not closed.
    pub async fn rest(&mut self) -> Result<String> {
        loop {
            match self.more().await {
                Ok(true) => {}
                Ok(false) => break,
                // Closed by somebody who had not read everything: also an end.
                Err(error) if is_reset(&error) => break,
                Err(error) => {
                    let said = String::from_utf8_lossy(&self.read).into_owned();
                    return Err(error.context(format!("after {said:?}")));
                }
            }
        }
        let all = self.read.split();
        Ok(String::from_utf8_lossy(&all).into_owned())
    }

    async fn more(&mut self) -> Result<bool> {
        ensure!(self.read.len() < READ_BYTES_MAX, "it does not end");
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await;
        Ok(read.context("the other end says nothing")?? > 0)
    }
}

fn is_reset(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|e| e.kind() == io::ErrorKind::ConnectionReset)
}
