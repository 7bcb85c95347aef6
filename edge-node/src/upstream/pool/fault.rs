//! What goes wrong with an exchange, and whose fault that is.

use std::{fmt, sync::Arc};

use super::{
    Body,
    connecting::{NotConnected, Tally},
};
use crate::upstream::plain::Failure;

/// What went wrong with an exchange, and thereby whose fault it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The name does not resolve, or nobody accepts connections there.
    #[error("cannot be reached")]
    Connect,
    /// No connection within the deadline.
    #[error("does not accept the connection in time")]
    ConnectTimeout,
    /// TCP works, TLS does not: certificate, protocol version, or no TLS at all.
    #[error("fails the TLS handshake")]
    Tls,
    /// What it says is not HTTP/1.1.
    #[error("does not speak HTTP")]
    Garbage,
    /// The head of its answer is over [`HEAD_BYTES_MAX`](super::HEAD_BYTES_MAX) or
    /// [`FIELDS_MAX`](super::FIELDS_MAX), or a document over its bound.
    #[error("sends too much")]
    TooLarge,
    /// It closed the connection before the answer was complete.
    #[error("closed the connection early")]
    ClosedEarly,
    /// No head of an answer within the deadline.
    #[error("does not answer in time")]
    HeadTimeout,
    /// It fell silent within the body.
    #[error("fell silent within the body")]
    BodyTimeout,
    /// Whoever sends the request's body failed to: the client's fault.
    #[error("did not get the whole request")]
    RequestBody,
}

impl Fault {
    /// Whether no request can have reached the other end.
    pub fn is_connect(self) -> bool {
        matches!(self, Self::Connect | Self::ConnectTimeout | Self::Tls)
    }
}

/// Why an exchange failed.
#[derive(Debug)]
pub struct SendError {
    /// What went wrong.
    pub fault: Fault,
    /// The same in detail, for the log.
    pub detail: String,
    /// The connection had been used before, and closed without a byte of this answer: the other end
    /// may have closed it just as the request was on its way, and deserves a second try.
    pub reused: bool,
    /// The request's body, if nothing was taken from it.
    pub body: Option<Body>,
}

impl From<SendError> for String {
    fn from(error: SendError) -> Self {
        error.to_string()
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.fault, self.detail)
    }
}

/// What an error within the body of an answer means.
pub fn body_fault(error: &hyper::Error) -> Fault {
    if error.is_parse() {
        Fault::Garbage
    } else {
        Fault::ClosedEarly
    }
}

/// An error with all its causes.
pub fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// Reads from the client's error what happened: the fault, its detail, and whether a used connection
/// closed without a byte of the answer.
pub(super) fn blame(error: &hyper_util::client::legacy::Error) -> (Fault, String, bool) {
    use std::error::Error as _;
    let detail = in_full(error);
    if error.is_connect() {
        let tcp = error
            .source()
            .is_some_and(|cause| cause.is::<NotConnected>());
        return (if tcp { Fault::Connect } else { Fault::Tls }, detail, false);
    }
    let mut extensions = http::Extensions::new();
    if let Some(info) = error.connect_info() {
        info.get_extras(&mut extensions);
    }
    let tally = extensions.get::<Arc<Tally>>();
    let mut cause = error.source();
    let hyper = loop {
        match cause {
            None => break None,
            Some(found) if found.is::<hyper::Error>() => {
                break found.downcast_ref::<hyper::Error>();
            }
            Some(other) => cause = other.source(),
        }
    };
    let spoke_first = tally.is_some_and(|t| t.spoke_unasked());
    let fault = match fault_of(hyper) {
        Fault::ClosedEarly if spoke_first => Fault::Garbage,
        fault => fault,
    };
    let reused = fault == Fault::ClosedEarly && tally.is_some_and(|t| t.used_and_unanswered());
    (fault, detail, reused)
}

pub(super) fn fault_of(error: Option<&hyper::Error>) -> Fault {
    match error {
        Some(e) if e.is_parse_too_large() => Fault::TooLarge,
        Some(e) if e.is_parse() => Fault::Garbage,
        Some(e) if e.is_user() => Fault::RequestBody,
        _ => Fault::ClosedEarly,
    }
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Connect => Self::Connect,
            Failure::ConnectTimeout => Self::ConnectTimeout,
            Failure::HeadTimeout => Self::HeadTimeout,
            Failure::ClosedEarly => Self::ClosedEarly,
        }
    }
}
