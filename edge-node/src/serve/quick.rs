//! Plain requests, answered beneath hyper: a hit in memory needs no header map, no task and no body
//! type, and costs less than what hyper does for one. So may a plain request that has to be waited for,
//! if its answer is whole when it comes. httparse is named here for requests, and for answers in
//! `upstream/plain.rs`.
//!
//! While hyper waits for a request and owes no answer, the stream under it looks at what comes
//! in. A whole head of a plain request goes to the [`Session`]; if that has an answer, it is written,
//! and hyper never hears of it. Everything else goes to hyper, byte by byte as it came. Whatever is
//! not plain, or not surely a hit, takes the long way: no rule of HTTP is decided here.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::Stream;

use super::Connection;
use crate::error::Kind;

/// Most header fields of a plain request; browsers send some twenty.
const FIELDS_MAX: usize = 48;

/// Answers plain requests where it can. One per process.
pub trait Quick: Send + Sync + 'static {
    /// What answers on one connection.
    fn session(&self, connection: &Arc<Connection>) -> Box<dyn Session>;
}

/// Answers the plain requests of one connection, one after the other.
pub trait Session: Send {
    /// The answer to `request`, if it can be given at once; its head may end in `fields`, which is
    /// empty. `None`: it takes the long way.
    fn answer(&mut self, request: &Plain<'_>, fields: &mut Vec<u8>) -> Option<Answer>;

    /// Begins to answer the request for which [`Session::answer`] has just had none. `None`: it takes the
    /// long way.
    fn begin(&mut self, request: &Plain<'_>) -> Option<Later>;

    /// So many bytes of the last answer's body have gone out; called once per answer that does not count
    /// for itself.
    fn sent(&mut self, body_bytes: u64);

    /// The whole answer, head and body, to a request that hyper refuses without a word of why. `None`: as hyper does.
    fn refused(&mut self, _: Kind) -> Option<Bytes> {
        None
    }
}

/// An answer that has to be waited for; dropped when its client has left. `None`: the request goes to
/// hyper, for which what there is has been [prepared](Connection::prepare).
pub type Later = Pin<Box<dyn Future<Output = Option<Answer>> + Send>>;

/// Hears what became of an answer.
pub trait Counts: Send {
    /// So many bytes of its body have gone out; called once.
    fn sent(&mut self, body_bytes: u64);
}

/// An answer: `head`, what stands in the session's `fields`, and `body` go out as they are.
pub struct Answer {
    /// The head, or its beginning.
    pub head: Bytes,
    /// The body.
    pub body: Body,
    /// Who hears what became of it; `None`: its session.
    pub counts: Option<Box<dyn Counts>>,
}

/// The body of an answer.
pub enum Body {
    /// All of it.
    Bytes(Bytes),
    /// As it comes.
    Chunks(Chunks),
}

impl Body {
    /// None.
    pub const EMPTY: Self = Self::Bytes(Bytes::new());
}

/// A body that comes in chunks, and how long it is.
pub struct Chunks {
    stream: Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>,
    left: u64,
}

impl Chunks {
    /// A body of `length` bytes.
    pub fn new(
        length: u64,
        stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Self {
        Self {
            stream: Box::pin(stream),
            left: length,
        }
    }

    /// The next chunk. A body that is not as long as was said is an error: the client would take the next
    /// answer for its rest.
    pub(super) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Bytes>>> {
        let chunk = match ready!(self.stream.as_mut().poll_next(context)) {
            Some(Ok(chunk)) => chunk,
            None if self.left == 0 => return Poll::Ready(None),
            None => return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
        };
        Poll::Ready(Some(match self.left.checked_sub(chunk.len() as u64) {
            Some(left) => {
                self.left = left;
                Ok(chunk)
            }
            None => Err(io::ErrorKind::InvalidData.into()),
        }))
    }
}

/// A GET or HEAD over HTTP/1.1 for a path, without a body, an upgrade or an expectation, on a
/// connection that is to stay; with one `Host`.
pub struct Plain<'a> {
    /// Whether it is a HEAD.
    pub is_head: bool,
    /// Path and query, as sent.
    pub target: &'a str,
    /// The host, as sent.
    pub host: &'a str,
    /// All of its head, as sent.
    pub head: &'a [u8],
    fields: &'a [httparse::Header<'a>],
}

impl<'a> Plain<'a> {
    /// Names and values of its header fields, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + Clone {
        self.fields.iter().map(|field| (field.name, field.value))
    }
}

/// Reads a [head](Plain::head) once more.
pub fn again<T>(head: &[u8], read: impl FnOnce(&Plain<'_>) -> Option<T>) -> Option<T> {
    let mut space = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    request.parse_with_uninit_headers(head, &mut space).ok()?;
    read(&plain(&request, head)?)
}

/// What bytes at the beginning of a request came to.
pub(super) enum Tried {
    /// It was answered; its head was this long.
    Answered(Answer, usize),
    /// It has to be waited for; its head is this long.
    Begun(Later, usize),
    /// Its head is not complete.
    Partial,
    /// It is for hyper.
    Other,
}

/// Tries to answer the request that `bytes` begin with.
pub(super) fn try_answer(session: &mut dyn Session, bytes: &[u8], fields: &mut Vec<u8>) -> Tried {
    let mut space = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(bytes, &mut space) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Tried::Partial,
        Err(_) => return Tried::Other,
    };
    let Some(plain) = plain(&request, &bytes[..length]) else {
        return Tried::Other;
    };
    fields.clear();
    match session.answer(&plain, fields) {
        Some(answer) => Tried::Answered(answer, length),
        None => match session.begin(&plain) {
            Some(later) => Tried::Begun(later, length),
            None => Tried::Other,
        },
    }
}

fn plain<'a>(request: &'a httparse::Request<'_, 'a>, head: &'a [u8]) -> Option<Plain<'a>> {
    let is_head = match request.method? {
        "GET" => false,
        "HEAD" => true,
        _ => return None,
    };
    let target = request.path?;
    if request.version != Some(1) || !target.starts_with('/') || target.contains('#') {
        return None;
    }
    let mut host = None;
    for field in &*request.headers {
        match class(field.name) {
            Class::Any => {}
            Class::Host if host.is_none() => host = Some(std::str::from_utf8(field.value).ok()?),
            Class::Connection if field.value.eq_ignore_ascii_case(b"keep-alive") => {}
            Class::Host | Class::Connection | Class::Other => return None,
        }
    }
    Some(Plain {
        is_head,
        target,
        host: host.filter(|host| !host.is_empty())?,
        head,
        fields: &*request.headers,
    })
}

/// What a request field means for whether its request is plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nothing.
    Any,
    /// It is `Host`.
    Host,
    /// It is `Connection`.
    Connection,
    /// Means that the request is not plain.
    Other,
}

/// The class of a field, by its name in any case.
pub fn class(name: &str) -> Class {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    let other = match name.len() {
        2 => is("te"),
        4 if is("host") => return Class::Host,
        6 => is("expect") || is("pragma"),
        7 => is("upgrade"),
        8 => is("cdn-loop"),
        10 if is("connection") => return Class::Connection,
        10 => is("keep-alive"),
        13 => is("cache-control") || is("authorization"),
        14 => is("content-length"),
        16 => is("proxy-connection"),
        17 => is("transfer-encoding"),
        19 => is("proxy-authorization"),
        _ => false,
    };
    if other { Class::Other } else { Class::Any }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers everything with the target.
    #[derive(Default)]
    struct Echo;

    impl Session for Echo {
        fn answer(&mut self, request: &Plain<'_>, fields: &mut Vec<u8>) -> Option<Answer> {
            fields.extend_from_slice(request.host.as_bytes());
            Some(Answer {
                head: Bytes::copy_from_slice(request.target.as_bytes()),
                body: Body::EMPTY,
                counts: None,
            })
        }

        fn begin(&mut self, _: &Plain<'_>) -> Option<Later> {
            None
        }

        fn sent(&mut self, _: u64) {}
    }

    fn tried(head: &str) -> Option<usize> {
        match try_answer(&mut Echo, head.as_bytes(), &mut Vec::new()) {
            Tried::Answered(_, length) => Some(length),
            Tried::Partial => Some(0),
            Tried::Begun(..) | Tried::Other => None,
        }
    }

    #[test]
    fn only_plain_requests_are_answered_here() {
        let whole = "GET /a?b HTTP/1.1\r\nHost: a\r\nAccept: */*\r\nConnection: Keep-Alive\r\n\r\n";
        assert_eq!(tried(whole), Some(whole.len()));
        assert_eq!(tried(&format!("{whole}GET /next")), Some(whole.len()));
        let head = "HEAD / HTTP/1.1\r\nhost: a\r\n\r\n";
        assert_eq!(tried(head), Some(head.len()));
        for cut in [1, 10, 30, whole.len() - 1] {
            assert_eq!(tried(&whole[..cut]), Some(0), "{cut}");
        }
        for other in [
            "POST / HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET / HTTP/1.0\r\nhost: a\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET /#x HTTP/1.1\r\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: \r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nConnection: close\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nConnection: x-a\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nContent-Length: 0\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nUpgrade: x\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nExpect: 100-continue\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nAuthorization: x\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nCache-Control: no-cache\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nPragma: no-cache\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nTE: trailers\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nCDN-Loop: x\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\n folded: x\r\n\r\n",
            "GET / HTTP/1.1\r\nhost : a\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            assert_eq!(tried(other), None, "{other}");
        }
    }
}
