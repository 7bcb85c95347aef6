//! From an entry to a response: HEAD, conditions, ranges, and the fields that say how old it is and
//! where it came from.

pub mod cache_status;
pub mod conditional;
pub mod range;

use std::{
    future::ready,
    ops::Range,
    sync::{Arc, atomic::AtomicU64},
};

use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use self::{
    conditional::Verdict,
    range::{Multipart, Ranges},
};
use crate::cache::{
    Cache,
    entry::{Entry, Reading},
    fill::BodyError,
};

/// Status and fields of a response.
pub struct ResponseHead {
    /// Status code.
    pub status: StatusCode,
    /// Header fields.
    pub headers: HeaderMap,
}

/// What to answer with, decided.
pub struct Delivery {
    /// Status and fields.
    pub head: ResponseHead,
    /// What of the entry to send.
    pub content: Content,
    /// How many bytes that are, if it is known.
    pub length: Option<u64>,
}

/// What of an entry's body to send.
pub enum Content {
    /// Nothing.
    None,
    /// One range, or the whole.
    Range(Range<u64>),
    /// Several ranges.
    Multipart(Multipart),
}

/// Plans the answer to a GET or HEAD for `entry`.
pub fn plan(method: &Method, request: &HeaderMap, entry: &Entry, now_ms: u64) -> Delivery {
    let stored = &entry.head;
    let length = entry.length();
    let mut headers = stored.headers.to_map();
    headers.insert(header::AGE, stored.freshness.age_s(now_ms).into());
    let send_body = method != Method::HEAD;
    if stored.status == StatusCode::OK {
        match conditional::evaluate(request, stored.status, &stored.headers) {
            Verdict::Proceed => {}
            Verdict::NotModified => {
                let headers = conditional::not_modified_fields(&headers);
                let head = ResponseHead {
                    status: StatusCode::NOT_MODIFIED,
                    headers,
                };
                return Delivery {
                    head,
                    content: Content::None,
                    length: None,
                };
            }
            Verdict::PreconditionFailed => {
                headers.remove(header::CONTENT_TYPE);
                headers.remove(header::CONTENT_ENCODING);
                headers.insert(header::CONTENT_LENGTH, 0.into());
                let head = ResponseHead {
                    status: StatusCode::PRECONDITION_FAILED,
                    headers,
                };
                return Delivery {
                    head,
                    content: Content::None,
                    length: None,
                };
            }
        }
        if length.is_some() {
            headers
                .entry(header::ACCEPT_RANGES)
                .or_insert(HeaderValue::from_static("bytes"));
        }
        if let Some(length) = length
            && method == Method::GET
        {
            match range::requested(request, &stored.headers, length) {
                Ranges::One(range) => {
                    let content = range::content_range(&range, length);
                    headers.insert(header::CONTENT_RANGE, content);
                    let length = range.end - range.start;
                    headers.insert(header::CONTENT_LENGTH, length.into());
                    let head = ResponseHead {
                        status: StatusCode::PARTIAL_CONTENT,
                        headers,
                    };
                    return Delivery {
                        head,
                        content: Content::Range(range),
                        length: Some(length),
                    };
                }
                Ranges::Unsatisfiable => {
                    headers.insert(header::CONTENT_RANGE, range::unsatisfied_range(length));
                    headers.remove(header::CONTENT_TYPE);
                    headers.remove(header::CONTENT_ENCODING);
                    headers.insert(header::CONTENT_LENGTH, 0.into());
                    let status = StatusCode::RANGE_NOT_SATISFIABLE;
                    let head = ResponseHead { status, headers };
                    return Delivery {
                        head,
                        content: Content::None,
                        length: None,
                    };
                }
                Ranges::Many(ranges) => {
                    let kind = headers.get(header::CONTENT_TYPE);
                    let multipart = Multipart::new(ranges, kind, length, rand::random());
                    headers.insert(header::CONTENT_TYPE, multipart.content_type.clone());
                    headers.insert(header::CONTENT_LENGTH, multipart.length.into());
                    let length = Some(multipart.length);
                    let head = ResponseHead {
                        status: StatusCode::PARTIAL_CONTENT,
                        headers,
                    };
                    return Delivery {
                        head,
                        content: Content::Multipart(multipart),
                        length,
                    };
                }
                Ranges::Whole => {}
            }
        }
    }
    match length {
        // RFC 9110 §8.6.
        _ if stored.status == StatusCode::NO_CONTENT => {
            headers.remove(header::CONTENT_LENGTH);
        }
        Some(length) => {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        None => {}
    }
    let content = if send_body {
        Content::Range(0..length.unwrap_or(u64::MAX))
    } else {
        Content::None
    };
    Delivery {
        head: ResponseHead {
            status: stored.status,
            headers,
        },
        content,
        length,
    }
}

/// Opens several ranges of an entry as one body.
///
/// # Errors
///
/// A part of the body has been evicted.
pub fn open_parts(
    entry: &Entry,
    multipart: Multipart,
    cache: &Cache,
    from_disk: &Arc<AtomicU64>,
) -> Result<Reading, BodyError> {
    let mut parts = Vec::with_capacity(multipart.parts.len() + 1);
    for part in multipart.parts {
        let body = entry
            .open_counted(part.range, cache, from_disk)?
            .into_stream();
        parts.push(stream::once(ready(Ok(part.head))).chain(body).boxed());
    }
    parts.push(stream::once(ready(Ok(multipart.end))).boxed());
    Ok(Reading::Stream(stream::iter(parts).flatten().boxed()))
}

/// Whether a part holds all that this request gets of the object. A whole object always does.
pub fn suffices(method: &Method, request: &HeaderMap, entry: &Entry) -> bool {
    let stored = &entry.head;
    let Some(part) = &stored.part else {
        return true;
    };
    let within =
        |range: &Range<u64>| part.range.start <= range.start && range.end <= part.range.end;
    method == Method::HEAD
        || conditional::evaluate(request, stored.status, &stored.headers) != Verdict::Proceed
        || match range::requested(request, &stored.headers, part.of) {
            Ranges::Whole => false,
            Ranges::One(range) => within(&range),
            Ranges::Many(ranges) => ranges.iter().all(within),
            Ranges::Unsatisfiable => true,
        }
}
