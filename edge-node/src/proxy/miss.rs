//! Plain misses, led beneath hyper: what the client sent goes on as it came, and the origin's answer
//! becomes what is stored and what the client gets, without a header map.
//!
//! This is for a plain request ([`quick`]) for what is stored nowhere, to a site with one origin and one
//! set of rules, and for an answer that is for everybody by what it says itself. Nothing is decided here
//! that is not decided elsewhere: whatever needs more than this goes on along the whole journey, with the
//! fill and the exchange that were begun.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use cluster::key::Key;
use http::{HeaderMap, HeaderName, Method, StatusCode, Version, header};
use tokio::runtime::Handle;

use super::{
    InFlight, Proxy,
    purged::Moment,
    quick::{Asking, HEAD_BYTES_USUAL, Known, answered, write_field, write_status},
    shedding::FillPlace,
};
use crate::{
    cache::{
        Filler,
        entry::{Head, Provenance},
        meta::Small,
        packed::Packed,
        policy::{self, CacheControl, RequestFacts, Rules, lines::Lines, validator},
    },
    deliver::cache_status::{CacheStatus, Fwd, Handled},
    forward::{self, Hop, Onward},
    metrics::Outcome,
    serve::{
        Connection,
        quick::{self, Answer, Later, Plain},
    },
    upstream::{
        home::Level,
        lane::Ready,
        paying::{self, Sample},
        plain::Seen,
    },
};

/// Fields of an answer with which it is not stored, or not handed out, as it came.
const SPECIAL: [&str; 13] = [
    "age",
    "cache-status",
    "http2-settings",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "set-cookie",
    "te",
    "trailer",
    "upgrade",
    "vary",
    "via",
];

/// A plain miss that a request leads.
struct Miss {
    proxy: Proxy,
    known: Arc<Known>,
    connection: Arc<Connection>,
    key: Key,
    /// The request's head.
    head: Bytes,
    filler: Filler,
    place: FillPlace,
    asked: Asking,
}

impl Proxy {
    /// Begins to lead the fill for a request, if it is a plain miss, of this key and read then. `hop` is what
    /// this node adds to requests that go on ([`Proxy::hop_fields`]).
    pub(super) fn lead(
        &self,
        known: &Arc<Known>,
        (key, asked): (Key, Asking),
        request: &Plain<'_>,
        hop: &[u8],
        connection: &Arc<Connection>,
    ) -> Option<Later> {
        let lane = known.lane.as_ref()?;
        let mut names = request.fields().map(|(name, _)| name);
        if request.is_head
            || !request.target.bytes().all(is_sound)
            || names.any(|name| forward::onward(name) == Onward::Other)
            || !self.shared.upstream.is_for_origin(&known.ruling.site, key)
        {
            return None;
        }
        let place = self.fill_place_at_once()?;
        let filler = self.shared.cache.claim_absent(key, asked.at)?;
        filler.reaches(Level::Origin as u8);
        let Some(mut ready) = lane.take() else {
            drop(place);
            let asked = self.asked_plainly(known, request, connection)?;
            let answer = answered(self.clone(), connection.clone(), asked, Some(filler));
            return Some(Box::pin(answer));
        };
        let host = lane.host().unwrap_or(&known.host);
        write_onward(request, host, hop, ready.request());
        let miss = Miss {
            proxy: self.clone(),
            known: known.clone(),
            connection: connection.clone(),
            key,
            head: Bytes::copy_from_slice(request.head),
            filler,
            place,
            asked,
        };
        Some(Box::pin(Leading(Some(Box::pin(miss.lead(ready))))))
    }

    /// What this node adds to a client's requests that go on to the origin.
    pub(super) fn hop_fields(&self, known: &Known, connection: &Connection) -> Vec<u8> {
        let mut fields = HeaderMap::new();
        let hop = Hop {
            me: &self.shared.me,
            client: connection.from.ip(),
            host: &known.host,
            version: Version::HTTP_11,
        };
        forward::add_hop(&mut fields, &hop);
        let mut written = Vec::new();
        for (name, value) in &fields {
            write_field(name, &[value.as_bytes()], &mut written);
        }
        written
    }

    /// What is stored of an answer to a plain miss, if that is all of it, and it is for everybody; and the
    /// head of the answer to the client.
    fn storable(
        &self,
        key: Key,
        rules: &Rules,
        seen: &Seen<'_>,
        Moment { ms, as_of }: Moment,
    ) -> Option<(Small, Vec<u8>)> {
        let length = seen.body.len();
        let fits = length as u64 <= rules.object_bytes_max && self.shared.cache.takes_whole(length);
        if seen.status != StatusCode::OK || !fits {
            return None;
        }
        let received = Received(seen);
        if !is_stored_as_it_came(seen, &rules.targets) {
            return None;
        }
        validator::date_of(&received, &header::DATE)?;
        let facts = RequestFacts {
            method: &Method::GET,
            authorized: false,
            cache_control: CacheControl::default(),
        };
        let status = StatusCode::OK;
        let head = Head {
            freshness: policy::storable(&facts, status, &received, rules, ms).ok()?,
            status,
            headers: Packed::default(),
            asked_ms: ms,
            selected_by: Vec::new(),
            length: Some(length as u64),
            part: None,
            fetched_by: self.shared.me.clone(),
            fetched_at: ms,
            as_of,
        };
        let written = self.miss_head(key, &head, seen);
        Some((
            Small::together(head, stored_fields(seen), seen.body)?,
            written,
        ))
    }

    /// The head of the answer to the client that led the miss, as `deliver` would make it.
    fn miss_head(&self, key: Key, head: &Head, seen: &Seen<'_>) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES_USUAL);
        write_status(head.status, None, &mut out);
        let mut says_ranges = false;
        for (name, value) in stored_fields(seen) {
            says_ranges |= name.eq_ignore_ascii_case("accept-ranges");
            let at = out.len();
            out.extend_from_slice(name.as_bytes());
            out[at..].make_ascii_lowercase();
            for part in [b": ", value, b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
        if !says_ranges {
            out.extend_from_slice(b"accept-ranges: bytes\r\n");
        }
        let (node, digits) = (self.shared.me.as_str(), key.digits());
        let status = CacheStatus {
            node,
            handled: Handled::Forwarded {
                why: Fwd::UriMiss,
                status: Some(head.status.as_u16()),
                stored: true,
                collapsed: false,
            },
            ttl_s: Some(head.freshness.ttl_s(self.now())),
            key: Some(digits.as_str()),
            detail: Some("origin"),
        };
        out.extend_from_slice(b"cache-status: ");
        status.write(&mut out);
        for part in [b"\r\nvia: 1.1 ", node.as_bytes(), b"\r\n\r\n"] {
            out.extend_from_slice(part);
        }
        out
    }
}

impl Miss {
    async fn lead(self, ready: Ready) -> Option<Answer> {
        let Self {
            proxy,
            known,
            connection,
            key,
            head,
            filler,
            place,
            asked: Asking { at: started, ms },
        } = self;
        let metrics = &proxy.shared.metrics;
        let in_flight = InFlight::new(metrics);
        let moment = Moment {
            ms,
            as_of: proxy.shared.purges.as_of(),
        };
        let rules = known.ruling.usual();
        let sent = || known.metrics.origin_requests.inc();
        let mut stored = None;
        let mut take = |seen: &Seen<'_>| {
            stored = proxy.storable(key, rules, seen, moment);
            stored.is_some()
        };
        let lane = known.lane.as_ref()?;
        let asked = lane.ask(ready, started, ms, sent, &mut take);
        let begun = asked.await.err().flatten();
        if let Some((small, written)) = stored {
            let took = started.elapsed();
            let upstream = &proxy.shared.upstream;
            if upstream.has_peers() {
                let first = Sample {
                    first: took,
                    rest: Duration::ZERO,
                    bytes: small.body.len() as u64,
                };
                let (site, path) = (&known.ruling.site, path_of(&head));
                upstream.took(site, path, paying::From::Origin, first);
            }
            let answer = Answer {
                head: written.into(),
                body: quick::Body::Bytes(small.body.clone()),
                counts: None,
            };
            if let Some(rest) = filler.share_small(small, Provenance::Origin) {
                rest.await;
            }
            metrics.answered(Outcome::Miss, took);
            known.metrics.request(Outcome::Miss);
            return Some(answer);
        }
        // Both are taken again, by what goes on with it.
        drop((in_flight, place));
        let asked = quick::again(&head, |request| {
            let mut asked = proxy.asked_plainly(&known, request, &connection)?;
            asked.begun = begun.map(|begun| (begun, moment.as_of)).into();
            asked.started = started;
            Some(asked)
        })?;
        // Seldom needed, and large.
        Box::pin(answered(proxy.clone(), connection, asked, Some(filler))).await
    }
}

/// A miss in the hands of the request that leads it; dropped with its client's connection, it goes on for
/// others.
struct Leading(Option<Later>);

impl Future for Leading {
    type Output = Option<Answer>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Answer>> {
        let Some(miss) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let answer = ready!(miss.as_mut().poll(context));
        self.0 = None;
        Poll::Ready(answer)
    }
}

impl Drop for Leading {
    fn drop(&mut self) {
        // Without a runtime the process is about to end.
        if let (Some(miss), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(miss);
        }
    }
}

/// The path in a request's head.
fn path_of(head: &[u8]) -> &str {
    let target = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    let path = target.split(|byte| *byte == b'?').next();
    std::str::from_utf8(path.unwrap_or_default()).unwrap_or_default()
}

/// Whether this may stand in a target that goes on without having been read: what RFC 3986 §2 has in
/// paths and queries.
fn is_sound(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&byte)
}

/// Writes a request as it goes on to the origin.
fn write_onward(request: &Plain<'_>, host: &str, hop: &[u8], out: &mut Vec<u8>) {
    for part in ["GET ", request.target, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for (name, value) in request.fields() {
        let value = match forward::onward(name) {
            Onward::Same => value,
            Onward::Host => host.as_bytes(),
            Onward::Stays | Onward::Other => continue,
        };
        let colon: &[u8] = if value.is_empty() { b":" } else { b": " };
        for part in [name.as_bytes(), colon, value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(hop);
    out.extend_from_slice(b"\r\n");
}

/// An answer's fields, as rules read them.
struct Received<'a>(&'a Seen<'a>);

impl Lines for Received<'_> {
    fn lines<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        let fields = self.0.fields();
        let is_it = |field: &str| field.eq_ignore_ascii_case(name.as_str());
        fields.filter_map(move |(field, value)| is_it(field).then_some(value))
    }
}

/// Whether the fields of an answer are stored as they came, but for what says that the connection stays open.
fn is_stored_as_it_came(seen: &Seen<'_>, targets: &[HeaderName]) -> bool {
    seen.fields().all(|(name, value)| {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        let is_special = SPECIAL.into_iter().any(is)
            || targets.iter().any(|target| is(target.as_str()))
            || is("connection") && !value.eq_ignore_ascii_case(b"keep-alive")
            || is("cache-control") && names_fields(value);
        !is_special
    })
}

/// The fields of such an answer that are stored. What httparse lets through can be stored as it is.
fn stored_fields<'a>(seen: &'a Seen<'_>) -> impl Iterator<Item = (&'a str, &'a [u8])> + Clone {
    let of_connection = ["connection", "keep-alive"];
    seen.fields().filter(move |(name, _)| {
        !of_connection
            .iter()
            .any(|other| name.eq_ignore_ascii_case(other))
    })
}

/// Whether a `Cache-Control` may name fields that are not for everybody (RFC 9111 §5.2.2.4, §5.2.2.7).
fn names_fields(value: &[u8]) -> bool {
    ["no-cache", "private"].into_iter().any(|word| {
        let mut windows = value.windows(word.len());
        windows.any(|window| window.eq_ignore_ascii_case(word.as_bytes()))
    })
}
