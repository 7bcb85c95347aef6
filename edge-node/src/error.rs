//! Whose fault it was, and what the client is told. The one map from error to status.

use http::{HeaderValue, StatusCode};

/// Who caused an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client asked for something that cannot be.
    Client,
    /// The origin did not answer, or not in a way that can be passed on.
    Origin,
    /// This node.
    Us,
}

/// What went wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The head of the request is none (RFC 9112 §2.2, §3, §5).
    BadHead,
    /// The head of the request is over the limit.
    HeadTooLarge,
    /// The request line alone is (RFC 9110 §15.5.15).
    TargetTooLong,
    /// The request names no host, or more than one.
    NoHost,
    /// A target in a form that its method does not have (RFC 9112 §3.2).
    BadTarget,
    /// A host that no site answers to.
    UnknownHost,
    /// There is no site at all.
    NoSites,
    /// Both `Content-Length` and `Transfer-Encoding`, or `chunked` twice (RFC 9112 §6.1).
    AmbiguousLength,
    /// A `TRACE` that ends here: this node reflects nothing, for what it would reflect may be secret
    /// (RFC 9110 §9.3.8).
    Trace,
    /// A transfer coding besides `chunked` (RFC 9112 §6.1).
    UnknownCoding,
    /// `CONNECT`: this is no forward proxy.
    Connect,
    /// A rule of the site denies it.
    Denied,
    /// A rule of the site denies it, for legal reasons (RFC 7725).
    Blocked,
    /// The request has been through this node already (RFC 8586).
    Loop,
    /// `only-if-cached`, and it is not (RFC 9111 §5.2.1.7).
    OnlyIfCached,
    /// The request's body did not come to its end.
    RequestBody,
    /// The request's body is over the limit.
    BodyTooLarge,
    /// The origin cannot be reached.
    Unreachable,
    /// The origin's answer cannot be understood.
    BadAnswer,
    /// The origin did not answer in time.
    Timeout,
    /// There is more to do than this node is allowed to do at once.
    Overloaded,
    /// The origin has as many requests as it may have, here or at the home of what is asked for.
    OriginBusy,
    /// Something failed here.
    Internal,
}

/// An error that a client is told of.
#[derive(Clone, Debug)]
pub struct ServeError {
    /// What went wrong.
    pub kind: Kind,
    /// For the log only: may name addresses that are not the client's business.
    pub detail: String,
}

impl ServeError {
    /// An error with a detail for the log.
    pub fn new(kind: Kind, detail: impl ToString) -> Self {
        Self {
            kind,
            detail: detail.to_string(),
        }
    }

    /// Who caused it.
    pub fn side(&self) -> Side {
        match self.kind {
            Kind::BadHead
            | Kind::HeadTooLarge
            | Kind::TargetTooLong
            | Kind::NoHost
            | Kind::BadTarget
            | Kind::UnknownHost
            | Kind::NoSites
            | Kind::AmbiguousLength
            | Kind::UnknownCoding
            | Kind::Trace
            | Kind::Connect
            | Kind::Denied
            | Kind::Blocked
            | Kind::Loop
            | Kind::OnlyIfCached
            | Kind::RequestBody
            | Kind::BodyTooLarge => Side::Client,
            Kind::Unreachable | Kind::BadAnswer | Kind::Timeout => Side::Origin,
            Kind::Overloaded | Kind::OriginBusy | Kind::Internal => Side::Us,
        }
    }

    /// The status it is answered with, and the sentence in the body.
    pub fn answer(&self) -> (StatusCode, &'static str) {
        match self.kind {
            Kind::BadHead => (
                StatusCode::BAD_REQUEST,
                "The request's head, or its framing, cannot be understood.",
            ),
            Kind::HeadTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "The request's head is larger than this server takes.",
            ),
            Kind::TargetTooLong => (
                StatusCode::URI_TOO_LONG,
                "The request's target is longer than this server takes.",
            ),
            Kind::NoHost => (
                StatusCode::BAD_REQUEST,
                "The request needs exactly one valid Host.",
            ),
            Kind::BadTarget => (
                StatusCode::BAD_REQUEST,
                "The request's target is none for its method.",
            ),
            Kind::UnknownHost => (
                StatusCode::MISDIRECTED_REQUEST,
                "No site on this server answers to this host.",
            ),
            Kind::NoSites => (StatusCode::NOT_FOUND, "This server has no sites yet."),
            Kind::AmbiguousLength => (
                StatusCode::BAD_REQUEST,
                "The request tells its length in more than one way.",
            ),
            Kind::UnknownCoding => (
                StatusCode::NOT_IMPLEMENTED,
                "The only transfer coding here is chunked.",
            ),
            Kind::Trace => (
                StatusCode::METHOD_NOT_ALLOWED,
                "TRACE goes on from here, but does not end here.",
            ),
            Kind::Connect => (
                StatusCode::METHOD_NOT_ALLOWED,
                "CONNECT is not possible here.",
            ),
            Kind::Denied => (StatusCode::FORBIDDEN, "This request is not served here."),
            Kind::Blocked => (
                StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS,
                "This is not available here for legal reasons.",
            ),
            Kind::Loop => (
                StatusCode::LOOP_DETECTED,
                "The request came back to where it has been.",
            ),
            Kind::OnlyIfCached => (StatusCode::GATEWAY_TIMEOUT, "Not in this cache."),
            Kind::RequestBody => (
                StatusCode::BAD_REQUEST,
                "The request's body did not arrive.",
            ),
            Kind::BodyTooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "The request's body is larger than this server takes.",
            ),
            Kind::Unreachable => (StatusCode::BAD_GATEWAY, "The origin cannot be reached."),
            Kind::BadAnswer => (
                StatusCode::BAD_GATEWAY,
                "The origin's answer could not be understood.",
            ),
            Kind::Timeout => (
                StatusCode::GATEWAY_TIMEOUT,
                "The origin did not answer in time.",
            ),
            Kind::Overloaded | Kind::OriginBusy => (
                StatusCode::SERVICE_UNAVAILABLE,
                "There are too many requests right now.",
            ),
            Kind::Internal => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "Something failed in this server.",
            ),
        }
    }

    /// Value of `Proxy-Status`-like detail in `Cache-Status`; a token.
    pub fn token(&self) -> &'static str {
        match self.kind {
            Kind::BadHead => "bad-head",
            Kind::HeadTooLarge => "head-too-large",
            Kind::TargetTooLong => "target-too-long",
            Kind::NoHost => "no-host",
            Kind::BadTarget => "bad-target",
            Kind::UnknownHost => "unknown-host",
            Kind::NoSites => "no-sites",
            Kind::AmbiguousLength => "ambiguous-length",
            Kind::UnknownCoding => "unknown-coding",
            Kind::Trace => "trace",
            Kind::Connect => "connect",
            Kind::Denied => "denied",
            Kind::Blocked => "blocked",
            Kind::Loop => "loop",
            Kind::OnlyIfCached => "only-if-cached",
            Kind::RequestBody => "request-body",
            Kind::BodyTooLarge => "body-too-large",
            Kind::Unreachable => "origin-unreachable",
            Kind::BadAnswer => "origin-bad-answer",
            Kind::Timeout => "origin-timeout",
            Kind::Overloaded | Kind::OriginBusy => "overloaded",
            Kind::Internal => "internal",
        }
    }
}

/// When to come back after [`Kind::Overloaded`] and [`Kind::OriginBusy`] (RFC 9110 §10.2.3), in seconds: whoever waits for an
/// origin at this moment has been answered by then, one way or the other, unless the site rules a longer
/// wait.
pub const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

/// The content type of error bodies.
pub const ERROR_TYPE: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
