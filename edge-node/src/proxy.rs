//! The journey of a request: receive → lookup → fetch → deliver. Only this file introduces the cache
//! and the upstream to each other.
//!
//! A client is always a follower of an entry, complete or growing: hit, miss and collapsed request
//! are delivered by the same code. The fetch has a task of its own (`proxy/fetch.rs`), so a client that
//! hangs up does not take the answer away from others.

mod fetch;
mod tunnel;
mod upload;

pub use self::upload::UploadLimits;

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
};

use arc_swap::ArcSwap;
use cluster::{
    clock::Clock,
    key::Key,
    node::NodeId,
    site::{Site, SiteMap},
};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    cache::{
        Ask, Cache, Lookup, Outcome as Filled, Turn,
        entry::{self, Body, Entry},
        key,
        policy::{self, CacheControl, RequestFacts, Rules},
        vary,
    },
    deliver::{
        self, Content, Delivery,
        cache_status::{CacheStatus, Fwd, Handled},
        range,
    },
    error::{ERROR_TYPE, Kind, ServeError, Side},
    forward::{self, Hop},
    metrics::{Metrics, Outcome, SiteMetrics, Source},
    payload::{Payload, Trace},
    serve::Connection,
    upstream::{Upstream, origin::OriginBody, pool},
};

/// How often a request starts over because what it followed turned out not to be for it.
const ROUNDS_MAX: usize = 4;
/// A range that begins further than this behind what has arrived is fetched by itself: the client
/// would wait for bytes it does not want.
const RANGE_AHEAD_MAX: u64 = 8 << 20;

/// Answers clients. A clone-able handle.
#[derive(Clone)]
pub struct Proxy {
    shared: Arc<Shared>,
}

struct Shared {
    me: NodeId,
    cache: Cache,
    upstream: Upstream,
    sites: Arc<ArcSwap<SiteMap>>,
    metrics: Arc<Metrics>,
    clock: Clock,
    honour_client: bool,
    upload: UploadLimits,
}

/// What [`Proxy::new`] needs.
pub struct ProxyParts {
    /// This node.
    pub me: NodeId,
    /// Where objects are.
    pub cache: Cache,
    /// Where they come from.
    pub upstream: Upstream,
    /// The sites served, in their newest version.
    pub sites: Arc<ArcSwap<SiteMap>>,
    /// Metrics of the process.
    pub metrics: Arc<Metrics>,
    /// The wall clock.
    pub clock: Clock,
    /// Whether a client's cache directives are heeded.
    pub honour_client: bool,
    /// What a request's body may be.
    pub upload: UploadLimits,
}

/// A request that has a site.
struct Asked {
    site: Arc<Site>,
    site_metrics: Arc<SiteMetrics>,
    /// The host as it stands in keys and towards the origin.
    host: String,
    /// The host as the client wrote it.
    host_sent: String,
    key: Key,
    method: Method,
    uri: Uri,
    version: Version,
    /// Without hop-by-hop fields.
    headers: HeaderMap,
    said: CacheControl,
    rules: Rules,
    client: IpAddr,
    now_ms: u64,
    started: Instant,
}

impl Asked {
    /// The facts of the request that fills: always a GET.
    fn facts(&self) -> RequestFacts<'static> {
        RequestFacts {
            method: &Method::GET,
            authorized: self.headers.contains_key(header::AUTHORIZATION),
            cache_control: self.said.clone(),
        }
    }
}

impl Proxy {
    /// A proxy over these parts.
    pub fn new(parts: ProxyParts) -> Self {
        let ProxyParts {
            me,
            cache,
            upstream,
            sites,
            metrics,
            clock,
            honour_client,
            upload,
        } = parts;
        let shared = Shared {
            me,
            cache,
            upstream,
            sites,
            metrics,
            clock,
            honour_client,
            upload,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Answers one request; errors are answers, too.
    pub async fn handle(
        &self,
        request: Request<Incoming>,
        connection: &Connection,
    ) -> Response<Payload> {
        let started = Instant::now();
        self.shared.metrics.in_flight().inc();
        let ambiguous = connection.next_is_ambiguous();
        let what = format!("{} {}", request.method(), request.uri());
        let (asked, upgrade, body) = match self.receive(request, connection, ambiguous, started) {
            Ok(received) => received,
            Err(error) => return self.error_answer(None, what, started, &error),
        };
        let asked = Arc::new(asked);
        let mut response = match self.answer(&asked, upgrade, body).await {
            Ok(response) => response,
            Err(error) => self.error_answer(Some(&asked), what, started, &error),
        };
        let via = forward::via(Version::HTTP_11, &self.shared.me);
        forward::append_to_list(response.headers_mut(), header::VIA, &via);
        response
    }

    /// From bytes to a request with a site and a key, or a reason why there is none.
    fn receive(
        &self,
        mut request: Request<Incoming>,
        connection: &Connection,
        ambiguous: bool,
        started: Instant,
    ) -> Result<(Asked, Option<hyper::upgrade::OnUpgrade>, Incoming), ServeError> {
        if ambiguous {
            return Err(ServeError::new(Kind::AmbiguousLength, ""));
        }
        if request.method() == Method::CONNECT {
            return Err(ServeError::new(Kind::Connect, ""));
        }
        let host_sent = host_of(&request)?;
        let sites = self.shared.sites.load();
        let Some(selected) = sites.select(&host_sent) else {
            let kind = if sites.sites().is_empty() {
                Kind::NoSites
            } else {
                Kind::UnknownHost
            };
            return Err(ServeError::new(kind, &host_sent));
        };
        if forward::is_loop(request.headers(), &self.shared.me) {
            return Err(ServeError::new(Kind::Loop, ""));
        }
        let upgrade = tunnel::requested(&mut request);
        let (mut parts, body) = request.into_parts();
        if upgrade.is_none() {
            policy::strip_hop_by_hop(&mut parts.headers);
        }
        let target = parts.uri.path_and_query().map_or("/", |pq| pq.as_str());
        let rules = Rules {
            default_ttl: selected.site.default_ttl.0,
            honour_client: self.shared.honour_client,
        };
        let asked = Asked {
            key: key::key(&selected.site.name, &selected.host, target),
            site_metrics: self.shared.metrics.site(&selected.site.name),
            site: selected.site,
            host: selected.host,
            host_sent,
            method: parts.method,
            uri: parts.uri,
            version: parts.version,
            said: CacheControl::of_request(&parts.headers),
            rules,
            headers: parts.headers,
            client: connection.from.ip(),
            now_ms: self.shared.clock.unix_ms(),
            started,
        };
        Ok((asked, upgrade, body))
    }

    /// The journey.
    async fn answer(
        &self,
        asked: &Arc<Asked>,
        upgrade: Option<hyper::upgrade::OnUpgrade>,
        body: Incoming,
    ) -> Result<Response<Payload>, ServeError> {
        if let Some(upgrade) = upgrade {
            return self.tunnel(asked, upgrade).await;
        }
        let cacheable_method = matches!(asked.method, Method::GET | Method::HEAD);
        if !cacheable_method || !body.is_end_stream() {
            let fwd = if cacheable_method {
                Fwd::Bypass
            } else {
                Fwd::Method
            };
            return self.pass(asked, Some(body), fwd).await;
        }
        for _ in 0..ROUNDS_MAX {
            let ask = Ask {
                key: asked.key,
                headers: &asked.headers,
                said: &asked.said,
                rules: &asked.rules,
                now_ms: asked.now_ms,
            };
            let (followed, stale) = match self.shared.cache.lookup(ask).await {
                Lookup::Fresh(entry) => {
                    if !self.may_share(asked, &entry) {
                        return self.pass(asked, None, Fwd::Request).await;
                    }
                    match self.deliver(asked, &entry, How::hit(Outcome::Hit)).await {
                        Some(response) => return Ok(response),
                        None => continue,
                    }
                }
                Lookup::Stale {
                    entry,
                    usable: true,
                    turn,
                } if self.may_share(asked, &entry) => {
                    if let Turn::Fill(filler) = turn {
                        self.begin_fill(filler, asked, Some(entry.clone()));
                    }
                    match self.deliver(asked, &entry, How::hit(Outcome::Stale)).await {
                        Some(response) => return Ok(response),
                        None => continue,
                    }
                }
                Lookup::Unavailable => return Err(ServeError::new(Kind::OnlyIfCached, "")),
                Lookup::Stale { entry, turn, .. } => {
                    (self.follow(turn, asked, &Some(entry.clone())), Some(entry))
                }
                Lookup::Filling(following) => (Followed::Other(following), None),
                // A HEAD, too, fetches the whole: its answer is that of a GET without the body, and
                // whoever asks for the head mostly wants the rest.
                Lookup::Absent(filler) => (self.follow(Turn::Fill(filler), asked, &None), None),
                Lookup::Pass => return self.pass(asked, None, Fwd::UriMiss).await,
            };
            let (leads, own, outcome) = match followed {
                Followed::Own(own, following) => (true, Some(own), following.outcome().await),
                Followed::Other(following) => (false, None, following.outcome().await),
            };
            match outcome {
                Filled::Shared(entry) => {
                    if !vary::matches(&entry.head.selected_by, &asked.headers) {
                        continue;
                    }
                    if !self.may_share(asked, &entry) || self.is_far_ahead(asked, &entry) {
                        return self.pass(asked, None, Fwd::Request).await;
                    }
                    let fwd = if stale.is_some() {
                        Fwd::Stale
                    } else {
                        Fwd::UriMiss
                    };
                    match self
                        .deliver(asked, &entry, How::filled(leads, fwd, entry.head.status))
                        .await
                    {
                        Some(response) => return Ok(response),
                        None => continue,
                    }
                }
                Filled::Refreshed(entry) => {
                    if !self.may_share(asked, &entry) {
                        return self.pass(asked, None, Fwd::Request).await;
                    }
                    let mut how = How::filled(leads, Fwd::Stale, StatusCode::NOT_MODIFIED);
                    how.outcome = Outcome::Revalidated;
                    match self.deliver(asked, &entry, how).await {
                        Some(response) => return Ok(response),
                        None => continue,
                    }
                }
                Filled::NotShared => match own {
                    Some(own) => return self.hand_over(asked, own).await,
                    None => return self.pass(asked, None, Fwd::UriMiss).await,
                },
                Filled::Failed(error) => {
                    let usable = stale.filter(|entry| {
                        let freshness = &entry.head.freshness;
                        policy::may_serve_on_error(
                            freshness,
                            &asked.said,
                            &asked.rules,
                            asked.now_ms,
                        )
                    });
                    let Some(entry) = usable else {
                        return Err(error);
                    };
                    let mut how = How::hit(Outcome::Stale);
                    how.detail = Some(error.token().to_owned());
                    return self.deliver(asked, &entry, how).await.ok_or(error);
                }
            }
        }
        self.pass(asked, None, Fwd::UriMiss).await
    }

    fn follow(&self, turn: Turn, asked: &Arc<Asked>, stale: &Option<Arc<Entry>>) -> Followed {
        match turn {
            Turn::Follow(following) => Followed::Other(following),
            Turn::Fill(filler) => {
                let following = filler.follow();
                let own = self.begin_fill(filler, asked, stale.clone());
                Followed::Own(own, following)
            }
        }
    }

    /// Whether a stored answer may be shared with this very request (RFC 9111 §3.5).
    fn may_share(&self, asked: &Asked, entry: &Entry) -> bool {
        if !asked.headers.contains_key(header::AUTHORIZATION) {
            return true;
        }
        let said = CacheControl::of(&entry.head.headers);
        said.public || said.must_revalidate || said.s_maxage.is_some()
    }

    /// Whether the client wants only what is far from arriving.
    fn is_far_ahead(&self, asked: &Asked, entry: &Entry) -> bool {
        let Body::Growing(growing) = &entry.body else {
            return false;
        };
        let Some(length) = entry.length() else {
            return false;
        };
        match range::requested(&asked.headers, &entry.head.headers, length) {
            range::Ranges::One(range) => range.start > growing.length() + RANGE_AHEAD_MAX,
            _ => false,
        }
    }

    /// Hands `entry` out. `None`: a part of it has been evicted meanwhile.
    async fn deliver(
        &self,
        asked: &Asked,
        entry: &Arc<Entry>,
        how: How,
    ) -> Option<Response<Payload>> {
        let source = match &entry.body {
            Body::Growing(_) => entry.from.source(),
            Body::Whole(_) => Source::Memory,
            Body::Pieces { .. } => Source::Disk,
        };
        let delivery = deliver::plan(
            &asked.method,
            &asked.headers,
            entry,
            self.shared.clock.unix_ms(),
        );
        let Delivery {
            mut head,
            content,
            length,
        } = delivery;
        let cache = &self.shared.cache;
        let opened = match content {
            Content::None => Ok(None),
            Content::Range(range) => entry.open(range, cache).map(Some),
            Content::Multipart(multipart) => deliver::open_parts(entry, multipart, cache).map(Some),
        };
        let Ok(reading) = opened else {
            self.shared.cache.forget(entry.key).await;
            return None;
        };
        let detail = how
            .detail
            .or_else(|| how.filled.then(|| entry.from.to_string()));
        let ttl = entry.head.freshness.ttl_s(asked.now_ms);
        let handled = match how.fwd {
            None => Handled::Hit,
            Some(why) => Handled::Forwarded {
                why,
                status: how.fwd_status.map(|status| status.as_u16()),
                stored: how.leads,
                collapsed: !how.leads,
            },
        };
        let ttl_s = how.fwd.is_none().then_some(ttl);
        let node = self.shared.me.as_str();
        CacheStatus {
            node,
            handled,
            ttl_s,
            key: None,
            detail: detail.as_deref(),
        }
        .append_to(&mut head.headers);
        let trace = self.trace(Some(asked), how.outcome, source, head.status);
        let payload = match reading {
            Some(reading) => Payload::reading(reading, length, trace),
            None => Payload::empty(trace),
        };
        Some(response(head.status, head.headers, payload))
    }

    /// Streams an answer through that is for this request only.
    async fn pass(
        &self,
        asked: &Asked,
        body: Option<Incoming>,
        fwd: Fwd,
    ) -> Result<Response<Payload>, ServeError> {
        let mut headers = asked.headers.clone();
        forward::add_hop(&mut headers, &self.hop(asked));
        let limits = self.shared.upload;
        if body.is_some()
            && entry::content_length(&headers).is_some_and(|length| length > limits.bytes_max)
        {
            return Err(ServeError::new(Kind::BodyTooLarge, ""));
        }
        let (body, over) = match body {
            Some(body) => upload::bounded(body, limits),
            None => (pool::empty(), Arc::default()),
        };
        let mut request = Request::new(body);
        *request.method_mut() = asked.method.clone();
        *request.uri_mut() = asked.uri.clone();
        *request.headers_mut() = headers;
        let response = self
            .shared
            .upstream
            .origin(&asked.site, &asked.host, request)
            .await
            .map_err(|error| match over.load(Ordering::Acquire) {
                true => ServeError::new(Kind::BodyTooLarge, error),
                false => fetch::origin_failed(error),
            })?;
        if policy::invalidates(&asked.method, response.status()) {
            for key in self.invalidated(asked, response.headers()) {
                self.shared.cache.forget(key).await;
            }
        }
        Ok(self.passed(asked, response, fwd))
    }

    /// The keys that an unsafe request makes doubtful: its own, and those of same-host `Location`
    /// and `Content-Location` (RFC 9111 §4.4).
    fn invalidated(&self, asked: &Asked, headers: &HeaderMap) -> Vec<Key> {
        let mut keys = vec![asked.key];
        for name in [header::LOCATION, header::CONTENT_LOCATION] {
            let Some(target) = headers.get(name).and_then(|v| v.to_str().ok()) else {
                continue;
            };
            if let Some(target) = deliver::same_host_target(target, &asked.uri, &asked.host_sent) {
                keys.push(key::key(&asked.site.name, &asked.host, &target));
            }
        }
        keys
    }

    /// The answer to the request that led a fill whose answer was not for everybody.
    async fn hand_over(
        &self,
        asked: &Asked,
        own: oneshot::Receiver<Response<OriginBody>>,
    ) -> Result<Response<Payload>, ServeError> {
        match own.await {
            Ok(response) => Ok(self.passed(asked, response, Fwd::UriMiss)),
            Err(_) => self.pass(asked, None, Fwd::UriMiss).await,
        }
    }

    fn passed(&self, asked: &Asked, answer: Response<OriginBody>, fwd: Fwd) -> Response<Payload> {
        let (mut parts, body) = answer.into_parts();
        policy::strip_hop_by_hop(&mut parts.headers);
        let (status, node) = (Some(parts.status.as_u16()), self.shared.me.as_str());
        let handled = Handled::Forwarded {
            why: fwd,
            status,
            stored: false,
            collapsed: false,
        };
        CacheStatus {
            node,
            handled,
            ttl_s: None,
            key: None,
            detail: Some("origin"),
        }
        .append_to(&mut parts.headers);
        let trace = self.trace(Some(asked), Outcome::Pass, Source::Origin, parts.status);
        let payload = match asked.method {
            Method::HEAD => Payload::empty(trace),
            _ => Payload::origin(body, trace),
        };
        response(parts.status, parts.headers, payload)
    }

    fn error_answer(
        &self,
        asked: Option<&Asked>,
        what: String,
        started: Instant,
        error: &ServeError,
    ) -> Response<Payload> {
        let (status, sentence) = error.answer();
        tracing::debug!(what, side = ?error.side(), kind = error.token(), detail = error.detail, "error answered");
        let mut trace = self.trace(asked, Outcome::Error, Source::Memory, status);
        trace.what = what;
        trace.started = started;
        let text = format!("{sentence}\n");
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, ERROR_TYPE);
        headers.insert(
            header::CACHE_CONTROL,
            http::HeaderValue::from_static("no-store"),
        );
        let why = if error.side() == Side::Origin {
            Fwd::UriMiss
        } else {
            Fwd::Bypass
        };
        let handled = Handled::Forwarded {
            why,
            status: None,
            stored: false,
            collapsed: false,
        };
        let node = self.shared.me.as_str();
        CacheStatus {
            node,
            handled,
            ttl_s: None,
            key: None,
            detail: Some(error.token()),
        }
        .append_to(&mut headers);
        if matches!(error.kind, Kind::AmbiguousLength | Kind::NoHost) {
            headers.insert(header::CONNECTION, http::HeaderValue::from_static("close"));
        }
        if error.kind == Kind::Connect {
            headers.insert(header::ALLOW, http::HeaderValue::from_static("GET, HEAD"));
        }
        let is_head = asked.is_some_and(|asked| asked.method == Method::HEAD);
        headers.insert(header::CONTENT_LENGTH, text.len().into());
        let payload = if is_head {
            Payload::empty(trace)
        } else {
            Payload::whole(text.into(), trace)
        };
        response(status, headers, payload)
    }

    fn trace(
        &self,
        asked: Option<&Asked>,
        outcome: Outcome,
        source: Source,
        status: StatusCode,
    ) -> Trace {
        let started = asked.map_or_else(Instant::now, |asked| asked.started);
        self.shared.metrics.answered(outcome, started.elapsed());
        Trace {
            metrics: self.shared.metrics.clone(),
            site: asked.map(|asked| asked.site_metrics.clone()),
            site_name: asked.map_or_else(|| "".into(), |asked| asked.site.name.as_str().into()),
            what: asked.map_or_else(String::new, |asked| {
                format!("{} {}", asked.method, asked.uri)
            }),
            started,
            outcome,
            source,
            status,
            sent: 0,
        }
    }

    fn hop<'a>(&'a self, asked: &'a Asked) -> Hop<'a> {
        Hop {
            me: &self.shared.me,
            client: asked.client,
            host: &asked.host_sent,
            version: asked.version,
        }
    }
}

enum Followed {
    /// A fill that this request began, and where its answer comes if it is for this request only.
    Own(
        oneshot::Receiver<Response<OriginBody>>,
        crate::cache::Following,
    ),
    /// A fill that another request began.
    Other(crate::cache::Following),
}

/// How a request came to the entry it is answered with.
struct How {
    outcome: Outcome,
    fwd: Option<Fwd>,
    fwd_status: Option<StatusCode>,
    /// Whether this request began the fill.
    leads: bool,
    /// Whether a fill was needed.
    filled: bool,
    detail: Option<String>,
}

impl How {
    fn hit(outcome: Outcome) -> Self {
        Self {
            outcome,
            fwd: None,
            fwd_status: None,
            leads: false,
            filled: false,
            detail: None,
        }
    }

    fn filled(leads: bool, fwd: Fwd, status: StatusCode) -> Self {
        Self {
            outcome: if leads {
                Outcome::Miss
            } else {
                Outcome::Collapsed
            },
            fwd: Some(fwd),
            fwd_status: Some(status),
            leads,
            filled: true,
            detail: None,
        }
    }
}

fn response(status: StatusCode, headers: HeaderMap, payload: Payload) -> Response<Payload> {
    let mut response = Response::new(payload);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The one host that a request is for: of its target, or else of `Host` (RFC 9112 §3.2).
fn host_of<B>(request: &Request<B>) -> Result<String, ServeError> {
    let fields: Vec<_> = request.headers().get_all(header::HOST).iter().collect();
    let host = match (request.uri().authority(), fields.as_slice()) {
        // HTTP/2 may carry both, and then they must agree (RFC 9113 §8.3.1).
        (Some(authority), [] | [_]) => authority.as_str().to_owned(),
        (None, [one]) => match one.to_str() {
            Ok(text) => text.to_owned(),
            Err(_) => return Err(ServeError::new(Kind::NoHost, "Host is not text")),
        },
        _ => return Err(ServeError::new(Kind::NoHost, "no Host, or several")),
    };
    let fits = host
        .parse::<http::uri::Authority>()
        .is_ok_and(|a| !a.as_str().contains('@'));
    if fits {
        Ok(host)
    } else {
        Err(ServeError::new(Kind::NoHost, host))
    }
}
