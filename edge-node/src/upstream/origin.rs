//! The origin: where objects come from. Asks the site's origins in the order in which they
//! [stand](super::standing) and guards what comes back.

use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use cluster::{
    key::Key,
    site::{Site, origin::Origin, rules::Statuses},
};
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri,
    header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE},
    request::Parts,
    uri::PathAndQuery,
};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;

use super::{
    Events,
    gate::{Gate, Limits, Place, Refused, Traffic},
    lane::{Begun, Lane},
    pool::{
        Answer, Arriving, Body, Fault, Heard, Patience, Pool, Reuse, SendError, Silence, Withheld,
        body_fault, empty, in_full,
    },
    standing::{OriginReport, Standings},
};

/// Most origins that are asked for one request: the client has waited for each of them.
const ORIGINS_TRIED_MAX: usize = 4;
/// Most pools for origins that are known by another name over TLS. Each is small; beyond that they begin
/// anew.
const NAMED_POOLS_MAX: usize = 256;

/// Why an origin gave no (complete) answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("origin {origin} {kind}: {detail}")]
pub struct OriginError {
    /// What went wrong; [`Fault::RequestBody`] is the client's fault, everything else the origin's.
    pub kind: Fault,
    /// Its base URL, as the site names it.
    pub origin: String,
    /// The details, for the log.
    pub detail: String,
}

/// Speaks to origins.
pub struct Origins {
    pool: Pool,
    /// Connections to origins that have a certificate for another name than that in their URL, by that.
    named: Mutex<HashMap<String, Pool>>,
    events: Arc<dyn Events>,
    standings: Standings,
    /// By the site's name; those of sites that are gone leave with [`Self::traffic`].
    gates: Mutex<HashMap<String, Gate>>,
}

impl Origins {
    /// Over these connections.
    pub fn new(pool: Pool, events: Arc<dyn Events>) -> Self {
        Self {
            pool,
            named: Mutex::default(),
            events,
            standings: Standings::default(),
            gates: Mutex::default(),
        }
    }

    /// Waits until the site's origins may be asked once more.
    ///
    /// # Errors
    ///
    /// They have enough to do.
    pub async fn enter(&self, site: &Site) -> Result<Place, Refused> {
        let gate = self.gate(&site.name);
        gate.enter(Limits::of(site)).await
    }

    /// The way of plain exchanges with the site's origin, if it has but one, for which they are.
    pub fn lane(&self, site: &Site) -> Option<Lane> {
        Lane::new(site, self.pool.kept().clone(), self.gate(&site.name))
    }

    /// How many requests the origins of each site have, and how many wait. What is known of sites that
    /// are not `served` any more is forgotten.
    pub fn traffic(&self, served: impl Fn(&str) -> bool) -> Vec<(String, Traffic)> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.retain(|site, _| served(site));
        let traffic = |(site, gate): (&String, &Gate)| (site.clone(), gate.traffic());
        gates.iter().map(traffic).collect()
    }

    fn gate(&self, site: &str) -> Gate {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        match gates.get(site) {
            Some(gate) => gate.clone(),
            None => gates.entry(site.to_owned()).or_default().clone(),
        }
    }

    /// How the site's origins stand for `key`, in the order in which they are asked for it.
    pub fn report(&self, site: &Site, key: Key) -> Vec<OriginReport> {
        self.standings.report(site, key, Instant::now())
    }

    /// What is known of how all origins stand.
    pub(super) fn standings(&self) -> &Standings {
        &self.standings
    }

    /// The connections to an origin.
    pub(super) fn pool(&self, origin: &Origin) -> Pool {
        let Some(name) = &origin.sni else {
            return self.pool.clone();
        };
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = named.get(name) {
            return pool.clone();
        }
        if named.len() >= NAMED_POOLS_MAX {
            named.clear();
        }
        let pool = self.pool.named(name);
        named.insert(name.clone(), pool.clone());
        pool
    }

    /// Sends `request`, which is for the object of `key`, to that of the site's origins whose it is, and
    /// returns its answer. Of `request`, method, path, query, fields, extensions and body are used; the
    /// fields must already be those meant for the origin, and the method must not be `CONNECT`. `Host`
    /// becomes what the origin or the site say, or else `host`.
    ///
    /// An idempotent request without a body is sent once more, over a new connection, when a used
    /// one closed without a byte of the answer (RFC 9110 §9.2.2). The next origin is asked when this one
    /// could not be connected to; and for a safe request without a body, which may be repeated, also when
    /// it fails to answer, or answers with a status for which the site wants that. So no other request is
    /// seen by two. The `place` is kept until the answer's body has ended, or is dropped; a tunnel does not
    /// keep it.
    ///
    /// # Errors
    ///
    /// The last origin's failure.
    pub async fn fetch(
        &self,
        site: &Site,
        key: Key,
        host: &str,
        request: Request<Body>,
        place: Place,
    ) -> Result<Response<OriginBody>, OriginError> {
        let (mut parts, mut body) = request.into_parts();
        let is_bare = body.is_end_stream();
        let repeatable = is_bare && parts.method.is_idempotent();
        let is_safe = is_bare && parts.method.is_safe() && !parts.headers.contains_key(UPGRADE);
        let (mut last, mut poor) = (None, None);
        let order = self.standings.order(site, key, Instant::now());
        let tried = order.len().min(ORIGINS_TRIED_MAX);
        for (n, (origin, _)) in order.into_iter().take(tried).enumerate() {
            let host = site.host_towards(origin, host);
            let asked = self
                .ask(site, origin, host, &mut parts, body, repeatable)
                .await;
            let (response, withheld) = match asked {
                Ok(answered) => answered,
                Err(SendError {
                    fault,
                    detail,
                    body: untouched,
                    ..
                }) => {
                    last = Some(OriginError {
                        kind: fault,
                        origin: origin.url.clone(),
                        detail,
                    });
                    if fault.is_connect() && site.origins.len() > 1 {
                        self.standings.shun(origin, Instant::now());
                    }
                    body = match untouched {
                        _ if is_safe => empty(),
                        Some(again) if fault.is_connect() => again,
                        _ => break,
                    };
                    continue;
                }
            };
            let status = response.status().as_u16();
            let is_poor = || {
                let within = |s: &Statuses| (s.first..=s.last).contains(&status);
                site.failover.iter().any(within)
            };
            if is_safe && n + 1 < tried && is_poor() {
                // Should the others fail altogether, it is better than nothing.
                poor = Some((response, withheld, origin));
                body = empty();
                continue;
            }
            return guarded(response, withheld, &parts.headers, place, site, &origin.url);
        }
        if let Some((response, withheld, origin)) = poor {
            return guarded(response, withheld, &parts.headers, place, site, &origin.url);
        }
        Err(last.unwrap_or_else(|| OriginError {
            kind: Fault::Connect,
            origin: String::new(),
            detail: "the site has no origin".into(),
        }))
    }

    /// Asks one origin.
    async fn ask(
        &self,
        site: &Site,
        origin: &Origin,
        host: &str,
        parts: &mut Parts,
        body: Body,
        repeatable: bool,
    ) -> Result<(Response<Arriving>, Option<Withheld>), SendError> {
        let patience = Patience {
            connect: site.connect_timeout.0,
            head: site.first_byte_timeout.0,
        };
        let unusable = |detail| SendError {
            fault: Fault::Connect,
            detail,
            reused: false,
            body: None,
        };
        let host = match HeaderValue::try_from(host) {
            Ok(host) => host,
            Err(e) => return Err(unusable(format!("host {host:?}: {e}"))),
        };
        if repeatable {
            parts.headers.insert(HOST, host.clone());
            if let Some(plainly) = self.ask_plainly(site, &origin.url, parts, patience).await {
                return plainly.map(|response| (response, None));
            }
        }
        let uri = uri_at(&origin.url, parts.uri.path_and_query())
            .map_err(|e| unusable(format!("not a base URL: {e}")))?;
        let build = |body| {
            let mut request = Request::new(body);
            *request.method_mut() = parts.method.clone();
            *request.uri_mut() = uri.clone();
            *request.headers_mut() = parts.headers.clone();
            *request.extensions_mut() = parts.extensions.clone();
            request.headers_mut().insert(HOST, host.clone());
            request
        };
        let pool = self.pool(origin);
        self.events.origin_attempt(&site.name);
        let mut sent = pool.send(build(body), patience, Reuse::Allowed).await;
        if repeatable && matches!(&sent, Err(e) if e.reused) {
            self.events.origin_attempt(&site.name);
            sent = pool.send(build(empty()), patience, Reuse::Never).await;
        }
        let Answer {
            response, withheld, ..
        } = sent?;
        Ok((response.map(Arriving::Stream), withheld))
    }

    /// The answer to `request`, which was sent in the site's [lane](Self::lane), as [`Self::fetch`] gives
    /// it.
    ///
    /// # Errors
    ///
    /// The origin's failure.
    pub async fn conclude(
        &self,
        site: &Site,
        request: Request<Body>,
        begun: Begun,
    ) -> Result<Response<OriginBody>, OriginError> {
        let Begun {
            plainly, by, place, ..
        } = begun;
        let url = site.origins.first().map_or("", |origin| &origin.url);
        let (parts, _) = request.into_parts();
        match Pool::concluded(plainly, &parts, by).await {
            Ok(response) => guarded(response, None, &parts.headers, place, site, url),
            Err(SendError { fault, detail, .. }) => Err(OriginError {
                kind: fault,
                origin: url.to_owned(),
                detail,
            }),
        }
    }

    /// Asks one origin in a [plain exchange](super::plain); `None` if that is not for this request.
    async fn ask_plainly(
        &self,
        site: &Site,
        origin: &str,
        parts: &Parts,
        patience: Patience,
    ) -> Option<Result<Response<Arriving>, SendError>> {
        let ask = |reuse| self.pool.send_plainly(origin, parts, patience, reuse);
        let mut sent = ask(Reuse::Allowed).await?;
        self.events.origin_attempt(&site.name);
        if matches!(&sent, Err(e) if e.reused) {
            sent = ask(Reuse::Never).await?;
            self.events.origin_attempt(&site.name);
        }
        Some(sent)
    }
}

impl fmt::Debug for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Origins")
    }
}

/// An answer to a request with these fields, with what guards its body.
fn guarded(
    mut response: Response<Arriving>,
    withheld: Option<Withheld>,
    asked: &HeaderMap,
    place: Place,
    site: &Site,
    origin: &str,
) -> Result<Response<OriginBody>, OriginError> {
    let garbage = |detail: &str| OriginError {
        kind: Fault::Garbage,
        origin: origin.to_owned(),
        detail: detail.to_owned(),
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !asked.contains_key(UPGRADE) {
        return Err(garbage("switches protocols unasked"));
    }
    frame_once(response.headers_mut()).map_err(garbage)?;
    Ok(response.map(|incoming| OriginBody {
        // Whoever has an answer without a body may need to ask once more; one that is here is done with.
        place: matches!(&incoming, Arriving::Stream(s) if !s.is_end_stream()).then_some(place),
        incoming,
        _withheld: withheld,
        silence: Silence::new(site.between_bytes_timeout.0),
        origin: origin.to_owned(),
    }))
}

fn uri_at(origin: &str, path: Option<&PathAndQuery>) -> Result<Uri, http::Error> {
    let mut parts = Uri::try_from(origin)?.into_parts();
    parts.path_and_query = Some(
        path.cloned()
            .unwrap_or_else(|| PathAndQuery::from_static("/")),
    );
    Ok(Uri::from_parts(parts)?)
}

/// Leaves at most one word on how long an answer is, the one that hyper went by (RFC 9112 §6.3): two
/// are how answers are smuggled to a client that goes by the other.
fn frame_once(headers: &mut HeaderMap) -> Result<(), &'static str> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => {}
        (Some(one), None) if one.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            headers.remove(CONTENT_LENGTH);
        }
        // §6.1: nobody has asked for another; hyper would leave it in, unnamed.
        (Some(_), _) => return Err("a transfer coding besides chunked"),
    }
    // hyper has made sure that all lengths are the same.
    let length = headers.get(CONTENT_LENGTH).map(HeaderValue::as_bytes);
    let first = length.and_then(|length| length.split(|&b| b == b',').next());
    if let Some(Ok(one)) = first.map(|length| HeaderValue::from_bytes(length.trim_ascii())) {
        headers.insert(CONTENT_LENGTH, one);
    }
    Ok(())
}

/// The body of an origin's answer. Yields an [`OriginError`] when the origin is silent for the
/// site's `between_bytes_timeout`, or closes before the length it promised (a body that ends with
/// its connection promised none, RFC 9112 §6.3). Dropping it unread closes the connection.
pub struct OriginBody {
    incoming: Arriving,
    /// Until the end.
    place: Option<Place>,
    /// The request's own body, when the origin did not want it: kept as long as this.
    _withheld: Option<Withheld>,
    silence: Silence,
    origin: String,
}

impl OriginBody {
    /// The body of an answer that another node has had from the origin.
    pub fn relayed(bytes: Bytes) -> Self {
        Self {
            incoming: Arriving::Whole(bytes),
            place: None,
            _withheld: None,
            silence: Silence::new(Duration::MAX),
            origin: String::new(),
        }
    }

    /// All of it, if it is here already and nothing was taken from it.
    pub fn whole(&self) -> Option<Bytes> {
        match &self.incoming {
            Arriving::Whole(bytes) => Some(bytes.clone()),
            Arriving::Stream(_) => None,
        }
    }
}

impl http_body::Body for OriginBody {
    type Data = Bytes;
    type Error = OriginError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, OriginError>>> {
        let Self {
            incoming,
            place,
            silence,
            origin,
            ..
        } = &mut *self;
        let (kind, detail) = match ready!(silence.or_frame(incoming, cx)) {
            Heard::Frame(None) => {
                *place = None;
                return Poll::Ready(None);
            }
            Heard::Frame(Some(Ok(frame))) => return Poll::Ready(Some(Ok(frame))),
            Heard::Frame(Some(Err(e))) => (body_fault(&e), in_full(&e)),
            Heard::Nothing(longest) => (Fault::BodyTimeout, format!("nothing for {longest:?}")),
        };
        Poll::Ready(Some(Err(OriginError {
            kind,
            origin: origin.clone(),
            detail,
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl fmt::Debug for OriginBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OriginBody")
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
