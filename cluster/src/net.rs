//! Sockets as a parameter: the machine's own, or those of a simulation.
//!
//! Three narrow doors (a listener, a connector, a datagram socket) are all the network this project
//! touches; `tests` walks through them with simulated hosts.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
};

/// A byte stream to somebody.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// A boxed [`Stream`]; vectored writes pass through the box.
pub type BoxStream = Box<dyn Stream>;

/// Accepts streams.
#[async_trait]
pub trait Listener: Send + Sync + 'static {
    /// The next stream, and who opened it.
    ///
    /// # Errors
    ///
    /// The system's error; the caller decides whether it passes (too many open files) or not.
    async fn accept(&self) -> io::Result<(BoxStream, SocketAddr)>;

    /// Where it listens: the port is the real one even if 0 was asked for.
    fn local_addr(&self) -> SocketAddr;
}

/// Sends and receives datagrams.
#[async_trait]
pub trait Datagrams: Send + Sync + 'static {
    /// Sends one datagram of at most 1,500 bytes.
    ///
    /// # Errors
    ///
    /// The system's error for this one datagram; later ones may pass.
    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()>;

    /// Waits for a datagram, and says how long it is and who sent it.
    ///
    /// # Errors
    ///
    /// The system's error; later calls may succeed.
    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)>;

    /// Where it is bound.
    fn local_addr(&self) -> SocketAddr;
}

/// The network.
#[async_trait]
pub trait Net: Send + Sync + 'static {
    /// Listens at `at`.
    ///
    /// # Errors
    ///
    /// The system's error (address in use, not permitted, …).
    async fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Listener>>;

    /// Opens a stream to `host:port`. The caller sets the deadline.
    ///
    /// # Errors
    ///
    /// The name does not resolve, or nobody answers there.
    async fn connect(&self, to: &str) -> io::Result<BoxStream>;

    /// Binds a datagram socket at `at`.
    ///
    /// # Errors
    ///
    /// The system's error.
    async fn datagrams(&self, at: SocketAddr) -> io::Result<Arc<dyn Datagrams>>;

    /// The addresses behind `host:port`, in the resolver's order.
    ///
    /// # Errors
    ///
    /// The name does not resolve.
    async fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>>;
}

/// The machine's own network.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemNet;

#[async_trait]
impl Net for SystemNet {
    async fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(listen_at(at)?))
    }

    async fn connect(&self, to: &str) -> io::Result<BoxStream> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    async fn datagrams(&self, at: SocketAddr) -> io::Result<Arc<dyn Datagrams>> {
        let socket = UdpSocket::bind(at).await?;
        let local = socket.local_addr()?;
        Ok(Arc::new(SystemDatagrams { socket, local }))
    }

    async fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host(name).await?.collect())
    }
}

/// Connections that may wait to be accepted: a burst that overflows the queue waits for a second each.
/// The system has a bound of its own.
const BACKLOG: u32 = 4096;

/// A silent client is asked for a sign of life after 20 s, and has three times 10 s for it: one whose
/// machine is gone keeps no place, whatever protocol it spoke.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(20))
    .with_interval(Duration::from_secs(10))
    .with_retries(3);

/// What the system takes for a client beyond what is on its way. The rest of a body goes out as the client's
/// acknowledgements come in; with less in store the sender is woken for every few of them: with 512 KiB a
/// body of 1 MiB costs a third more, and one of 32 MiB a tenth. A slow client has less there, since the system
/// gives a connection no more than some twice of what its path carries. What is on its way, and with it the
/// speed over long distances, is bounded by `tcp_wmem` only.
#[cfg(target_os = "linux")]
const UNSENT_BYTES_MAX: u32 = 2 << 20;

/// What the system takes in all for a client on this machine: before a node without TLS that is whoever ends
/// TLS. There is no way to fill, and what lies in between leaves the processor's cache: with the 4 MiB that
/// the system would come to, a body of 1 MiB costs a twelfth more and one of 32 MiB a fifth; with half of
/// this the node is woken too often.
#[cfg(target_os = "linux")]
const SAME_MACHINE_BYTES: usize = 1 << 20;

fn listen_at(at: SocketAddr) -> io::Result<SystemListener> {
    let socket = match at {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    prepare(&SockRef::from(&socket))?;
    socket.bind(at)?;
    let listener = socket.listen(BACKLOG)?;
    let local = listener.local_addr()?;
    Ok(SystemListener {
        listener,
        local,
        #[cfg(target_os = "linux")]
        holds_less_for_same_machine: may_set_to(SAME_MACHINE_BYTES).unwrap_or(false),
    })
}

/// Whether the system lets a socket have a buffer of so much (`wmem_max`). One that is set to less keeps
/// that, and is worse off than with the system's own, which grows with need.
#[cfg(target_os = "linux")]
fn may_set_to(bytes: usize) -> io::Result<bool> {
    let socket = TcpSocket::new_v4()?;
    hold(&SockRef::from(&socket), bytes)?;
    Ok(SockRef::from(&socket).send_buffer_size()? >= bytes)
}

/// The system doubles what it is asked for, and counts its own words in (`man 7 socket`).
#[cfg(target_os = "linux")]
fn hold(socket: &SockRef<'_>, bytes: usize) -> io::Result<()> {
    socket.set_send_buffer_size(bytes / 2)
}

/// Says how connections to clients behave. On Linux what a listener accepts has what was said to the
/// listener, and no connection costs the six calls that this is.
fn prepare(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    Ok(())
}

struct SystemListener {
    listener: TcpListener,
    local: SocketAddr,
    #[cfg(target_os = "linux")]
    holds_less_for_same_machine: bool,
}

impl SystemListener {
    async fn accept_tcp(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, from) = self.listener.accept().await?;
        #[cfg(not(target_os = "linux"))]
        prepare(&SockRef::from(&stream))?;
        #[cfg(target_os = "linux")]
        if self.holds_less_for_same_machine && from.ip().to_canonical().is_loopback() {
            hold(&SockRef::from(&stream), SAME_MACHINE_BYTES)?;
        }
        Ok((stream, from))
    }
}

#[async_trait]
impl Listener for SystemListener {
    async fn accept(&self) -> io::Result<(BoxStream, SocketAddr)> {
        let (stream, from) = self.accept_tcp().await?;
        Ok((Box::new(stream), from))
    }

    fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

struct SystemDatagrams {
    socket: UdpSocket,
    local: SocketAddr,
}

#[async_trait]
impl Datagrams for SystemDatagrams {
    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        self.socket.send_to(datagram, to).await.map(|_| ())
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.socket.recv_from(buffer).await
    }

    fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl fmt::Debug for dyn Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Net")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_accepted_behaves_as_was_said_to_the_listener() {
        let listener = listen_at(([127, 0, 0, 1], 0).into()).unwrap();
        let _client = TcpStream::connect(listener.local).await.unwrap();
        let accepted = listener.accept_tcp().await.unwrap().0;
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(
            socket.tcp_keepalive_time().unwrap(),
            Duration::from_secs(20)
        );
        assert_eq!(
            socket.tcp_keepalive_interval().unwrap(),
            Duration::from_secs(10)
        );
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        #[cfg(target_os = "linux")]
        {
            assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT_BYTES_MAX);
            let holds_less = socket.send_buffer_size().unwrap() == SAME_MACHINE_BYTES;
            assert_eq!(holds_less, may_set_to(SAME_MACHINE_BYTES).unwrap());
        }
    }
}
