//! The client's request as it goes on to the origin: what of it is for this hop only stays here, and
//! what the origin says before it answers finds its way back.

use std::sync::PoisonError;

use cluster::purge::Position;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};

use super::{Asked, Proxy, answer::response};
use crate::{
    cache::policy,
    error::{Kind, ServeError},
    forward,
    metrics::{Outcome, Source},
    payload::Payload,
    upstream::{
        lane::Begun,
        pool::{self, OnInterim},
    },
};

impl Asked {
    /// A request to the origin on behalf of this one. Interim responses to it go to the client until
    /// the final one does, if the client's request has [opened the way](crate::serve::interim).
    pub(super) fn onward(
        &self,
        method: Method,
        mut headers: HeaderMap,
        body: pool::Body,
    ) -> Request<pool::Body> {
        if let Some(left) = forward::forwards_left(&method, &headers) {
            headers.insert(header::MAX_FORWARDS, left.saturating_sub(1).into());
        }
        // Anew for this connection (RFC 9110 §10.1.4); none is dropped on the way. Not beside an upgrade:
        // nothing follows a tunnel.
        if self.takes_trailers && !headers.contains_key(header::CONNECTION) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        let mut request = Request::new(body);
        *request.uri_mut() = self.uri.clone();
        *request.method_mut() = method;
        *request.headers_mut() = headers;
        // Among them how the client spells its fields; hyper writes them so again.
        *request.extensions_mut() = self.extensions.clone();
        if let Some(spelling) = &self.spelling {
            request.extensions_mut().insert(spelling.clone());
        }
        if let Some(interim) = self.interim.clone() {
            let tell = OnInterim::new(move |status, fields| {
                let mut fields = fields.clone();
                policy::strip_hop_by_hop(&mut fields);
                // RFC 9110 §8.6 and §6.5: an interim response has no content.
                for name in [header::CONTENT_LENGTH, header::TRAILER] {
                    fields.remove(name);
                }
                interim.send(status, &fields);
            });
            request.extensions_mut().insert(tell);
        }
        request
    }

    /// The exchange that was begun for it, once, and the place in the purge log as of which it was.
    pub(super) fn begun(&self) -> Option<(Begun, Position)> {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        begun.take()
    }

    /// From now on, until it has its final response, this request's client gets interim ones.
    pub(super) fn open_interim(&self) {
        if let Some(interim) = &self.interim {
            interim.open();
        }
    }
}

impl Proxy {
    /// The answer of this node, if the request may not be forwarded (RFC 9110 §7.6.2).
    pub(super) fn last_stop(&self, asked: &Asked) -> Option<Result<Response<Payload>, ServeError>> {
        if forward::forwards_left(&asked.method, &asked.headers) != Some(0) {
            return None;
        }
        if asked.method == Method::TRACE {
            return Some(Err(ServeError::new(Kind::Trace, "")));
        }
        let status = StatusCode::OK;
        let mut headers = HeaderMap::new();
        headers.insert(header::ALLOW, forward::ALLOW);
        // RFC 9110 §9.3.7: what a request with Max-Forwards is answered with says how long it is.
        headers.insert(header::CONTENT_LENGTH, 0.into());
        let trace = self.trace(Some(asked), Outcome::Pass, Source::Memory, status);
        Some(Ok(response(status, headers, Payload::empty(trace))))
    }
}
