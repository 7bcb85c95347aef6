//! The client's request as it goes on to the origin: what of it is for this hop only stays here, and
//! what the origin says before it answers finds its way back.

use http::{HeaderMap, HeaderValue, Method, Request, header};

use super::Asked;
use crate::{
    cache::policy,
    upstream::pool::{self, OnInterim},
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
        // Anew for this connection (RFC 9110 §10.1.4); none is dropped on the way. Not beside an upgrade:
        // nothing follows a tunnel.
        if self.takes_trailers && !headers.contains_key(header::CONNECTION) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = headers;
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

    /// From now on, until it has its final response, this request's client gets interim ones.
    pub(super) fn open_interim(&self) {
        if let Some(interim) = &self.interim {
            interim.open();
        }
    }
}
