//! The journey of a request: receive → lookup → fetch → deliver. Only this file introduces the cache
//! and the upstream to each other.
//!
//! A client is always a follower of an entry, complete or growing: hit, miss and collapsed request
//! are delivered by the same code. The fetch outlives the request that leads it (`proxy/fetch.rs`), so a
//! client that hangs up does not take the answer away from others.

mod answer;
mod changed;
mod fetch;
mod holders;
mod home;
mod invalidation;
mod miss;
mod onward;
mod order;
mod part;
mod pass;
mod purged;
mod quick;
mod relay;
mod shedding;
mod slice;
mod spoken;
mod swarm;
mod takedown;
mod target;
mod tunnel;
mod upload;
mod warm;

pub use self::{
    relay::Question,
    slice::wanted_slices,
    upload::UploadLimits,
    warm::{Again, Cold},
};

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, OnceLock, atomic::AtomicBool},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use cluster::{clock::Clock, key::Key, node::NodeId, purge::Position, site::Site};
use http::{Extensions, HeaderMap, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::Instant;

use self::{answer::How, shedding::Fills};
use crate::{
    cache::{
        Ask, Cache, Filler, Lookup, Outcome as Filled, Turn,
        entry::{Body, Entry},
        key,
        policy::{self, CacheControl, RequestFacts, Reuse, Rules, Why},
        refusals::Refusals,
        vary,
    },
    deliver::{self, cache_status::Fwd, range},
    error::{Kind, ServeError},
    forward::{self, Hop},
    metrics::{Metrics, Outcome, SiteMetrics},
    payload::Payload,
    purges::Purges,
    ruling::{
        Ruling,
        access::{Verdict, Visit},
    },
    serve::{Connection, framing::Flaw, interim::Interim},
    sites::{Selected, Sites},
    upstream::{Upstream, home::Level, lane::Begun, plain::Spelling, relayed::Slice},
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
    sites: Arc<ArcSwap<Sites>>,
    purges: Purges,
    metrics: Arc<Metrics>,
    clock: Clock,
    refusals: Refusals,
    upload: UploadLimits,
    fills: Fills,
    swarms: swarm::Swarms,
    telling: changed::Telling,
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
    pub sites: Arc<ArcSwap<Sites>>,
    /// What is known of purges.
    pub purges: Purges,
    /// Metrics of the process.
    pub metrics: Arc<Metrics>,
    /// The wall clock.
    pub clock: Clock,
    /// Why answers were not stored.
    pub refusals: Refusals,
    /// What a request's body may be.
    pub upload: UploadLimits,
    /// Fills at once.
    pub fills_max: usize,
}

/// The site that a connection has asked for last. Clients mostly stay with one.
#[derive(Default)]
pub struct LastSite(ArcSwapOption<quick::Known>);

/// A request that has a site.
struct Asked {
    site: Arc<Site>,
    ruling: Arc<Ruling>,
    /// Whether it is served at all.
    verdict: Verdict,
    /// Whether the site has it go straight to the origin.
    bypasses: bool,
    site_metrics: Arc<SiteMetrics>,
    /// The host as it stands in keys and towards the origin.
    host: String,
    /// The host as the client wrote it.
    host_sent: String,
    key: Key,
    /// The key is that of a slice …
    slice: Option<Slice>,
    /// … whose object was changed then, in Unix milliseconds.
    changed_ms: Option<u64>,
    method: Method,
    uri: Uri,
    version: Version,
    /// Without hop-by-hop fields.
    headers: HeaderMap,
    said: CacheControl,
    rules: Arc<Rules>,
    client: IpAddr,
    /// What hyper remembers of the request, its spelling among it.
    extensions: Extensions,
    /// The same where it is known here; `None` where only hyper knows.
    spelling: Option<Spelling>,
    /// Whether the client takes trailers.
    takes_trailers: bool,
    /// The way for interim responses, where the protocol has one.
    interim: Option<Interim>,
    /// The exchange with the origin that was begun before it was known that all of this is needed, and
    /// the place in the purge log that had been reached then.
    begun: Mutex<Option<(Begun, Position)>>,
    /// Knows how what is stored stands.
    purges: Purges,
    /// Of what was fetched until then nobody here knows whether a client has changed it since.
    unknown_ms: u64,
    /// Whether this node can answer from its cache.
    is_sure: AtomicBool,
    now_ms: u64,
    started: Instant,
    /// Who asks: a client, or another node of which.
    level: Level,
    /// Who asks knows of another home that may fetch it instead.
    may_be_sent_on: bool,
    /// Until when the fill must know what comes of it, once homes were asked.
    deadline: OnceLock<Instant>,
    /// Why somebody else is asked for it, once that is so.
    forwarded: OnceLock<Fwd>,
}

/// A request in flight, up to its answer, with which its trace goes on; or until its client leaves.
struct InFlight<'a>(Option<&'a Metrics>);

impl<'a> InFlight<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.in_flight().inc();
        Self(Some(metrics))
    }

    /// It has an answer, whose trace counts it from now on.
    fn goes_on(mut self) {
        self.0 = None;
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if let Some(metrics) = self.0 {
            metrics.in_flight().dec();
        }
    }
}

/// The head of a request.
struct Parts {
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
    extensions: Extensions,
}

/// Who asks, and how.
struct Caller {
    /// Unspecified: there is none.
    client: IpAddr,
    host_sent: String,
    interim: Option<Interim>,
    spelling: Option<Spelling>,
    site_metrics: Arc<SiteMetrics>,
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
            purges,
            metrics,
            clock,
            refusals,
            upload,
            fills_max,
        } = parts;
        let shared = Shared {
            me,
            cache,
            upstream,
            sites,
            purges,
            metrics,
            clock,
            refusals,
            upload,
            fills: Fills::new(fills_max),
            swarms: swarm::Swarms::default(),
            telling: changed::Telling::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// A control plane says that it has this version of the sites.
    pub fn sites_nudged(&self, version: u64) {
        self.shared.upstream.sites_nudged(version);
    }

    /// Answers one request; errors are answers, too.
    pub async fn handle(
        &self,
        request: Request<Incoming>,
        connection: &Connection,
    ) -> Response<Payload> {
        let mut response = match connection.prepared() {
            Some(response) => {
                let _ = connection.next_flaw();
                response
            }
            None => self.respond(request, connection).await,
        };
        response.body_mut().hold(connection.answering());
        response
    }

    async fn respond(
        &self,
        request: Request<Incoming>,
        connection: &Connection,
    ) -> Response<Payload> {
        let started = Instant::now();
        let in_flight = InFlight::new(&self.shared.metrics);
        let flaw = connection.next_flaw();
        if spoken::is_spoken(request.method()) {
            if let Err(error) = target::framing(flaw, request.headers()) {
                in_flight.goes_on();
                let what = format!("{} {}", request.method(), request.uri());
                return self.error_answer(None, what, started, &error, true);
            }
            let response = Box::pin(self.purge(request, connection, started)).await;
            in_flight.goes_on();
            return response;
        }
        let what = format!("{} {}", request.method(), request.uri());
        // Of a refused request nobody reads the body, and the next one would begin behind it.
        let closes = request.version() != Version::HTTP_2 && !request.body().is_end_stream();
        let (asked, upgrade, body) = match self.receive(request, connection, flaw, started) {
            Ok(received) => received,
            Err(error) => {
                in_flight.goes_on();
                return self.error_answer(None, what, started, &error, closes);
            }
        };
        let asked = Arc::new(asked);
        let response = match self.answer(&asked, upgrade, Some(body)).await {
            Ok(response) => response,
            Err(error) => self.error_answer(Some(&asked), what, started, &error, closes),
        };
        in_flight.goes_on();
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            connection.becomes_tunnel();
        }
        self.finish(&asked, response).await
    }

    /// From bytes to a request with a site and a key, or a reason why there is none.
    fn receive(
        &self,
        mut request: Request<Incoming>,
        connection: &Connection,
        flaw: Option<Flaw>,
        started: Instant,
    ) -> Result<(Asked, Option<hyper::upgrade::OnUpgrade>, Incoming), ServeError> {
        target::framing(flaw, request.headers())?;
        if request.method() == Method::CONNECT {
            return Err(ServeError::new(Kind::Connect, ""));
        }
        let host_sent = target::host_of(&request)?;
        let sites = self.shared.sites.load();
        let Some(selected) = sites.select(&host_sent) else {
            let kind = if sites.is_empty() {
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
        let takes_trailers = forward::takes_trailers(&parts.headers);
        if upgrade.is_none() {
            policy::strip_hop_by_hop(&mut parts.headers);
        }
        let is_h2 = parts.version == Version::HTTP_2;
        if is_h2 {
            forward::join_cookies(&mut parts.headers);
        }
        let site_metrics = self.shared.metrics.site(&selected.ruling.site.name);
        let caller = Caller {
            client: connection.from.ip(),
            host_sent,
            interim: connection.interim(parts.version),
            // On HTTP/1.1 hyper knows, and tells nobody; on HTTP/2 there is but one.
            spelling: is_h2.then(Spelling::default),
            site_metrics,
            started,
        };
        let parts = Parts {
            method: parts.method,
            uri: parts.uri,
            version: parts.version,
            headers: parts.headers,
            extensions: parts.extensions,
        };
        let asked = self.asked(&sites, selected, parts, caller, takes_trailers);
        Ok((asked, upgrade, body))
    }

    fn asked(
        &self,
        sites: &Sites,
        selected: Selected,
        parts: Parts,
        caller: Caller,
        takes_trailers: bool,
    ) -> Asked {
        let target = parts.uri.path_and_query().map_or("/", |pq| pq.as_str());
        let Selected { ruling, host } = selected;
        let path = ruling.read(parts.uri.path().as_bytes());
        let visit = Visit {
            path: &path,
            method: &parts.method,
            client: Some(caller.client).filter(|client| !client.is_unspecified()),
        };
        let rules = ruling.rules(&path).clone();
        let said = CacheControl::of_request(&parts.headers);
        let said = match rules.honour_client {
            true => said,
            // What spares the origin is heeded in any case.
            false => CacheControl {
                only_if_cached: said.only_if_cached,
                ..CacheControl::default()
            },
        };
        let bypasses = ruling.bypass(&path, &parts.headers).is_some();
        let now_ms = self.shared.clock.unix_ms();
        let site = &ruling.site;
        let key = key::key(&site.name, &host, target, &parts.headers, &ruling.key);
        let mut headers = parts.headers;
        if parts.method == Method::HEAD && !bypasses {
            // RFC 9110 §14.2: a range is of a GET.
            for name in [header::RANGE, header::IF_RANGE] {
                headers.remove(name);
            }
        }
        // From here on, nobody learns what the origin is not to learn.
        forward::conceal(&mut headers, &site.privacy);
        Asked {
            verdict: ruling.judge(visit, parts.uri.query(), &host, |address| {
                sites.country(address)
            }),
            bypasses,
            rules,
            key,
            slice: None,
            changed_ms: None,
            site_metrics: caller.site_metrics,
            site: ruling.site.clone(),
            ruling,
            host,
            host_sent: caller.host_sent,
            method: parts.method,
            uri: parts.uri,
            version: parts.version,
            said,
            headers,
            client: caller.client,
            extensions: parts.extensions,
            spelling: caller.spelling,
            takes_trailers,
            interim: caller.interim,
            begun: Mutex::default(),
            purges: self.shared.purges.clone(),
            unknown_ms: self.shared.cache.unknown_ms(now_ms),
            is_sure: AtomicBool::new(true),
            now_ms,
            started: caller.started,
            level: Level::Client,
            may_be_sent_on: false,
            deadline: OnceLock::new(),
            forwarded: OnceLock::new(),
        }
    }

    /// Answers a request that has no body and asks for no tunnel; errors are answers, too. With a `filler`
    /// it leads that fill.
    async fn conclude(&self, asked: &Arc<Asked>, filler: Option<Filler>) -> Response<Payload> {
        let in_flight = InFlight::new(&self.shared.metrics);
        let answer = match filler {
            None => self.answer(asked, None, None).await,
            filler => self.answer_from_cache(asked, filler).await,
        };
        let response = match answer {
            Ok(response) => response,
            Err(error) => {
                let what = format!("{} {}", asked.method, asked.uri);
                self.error_answer(Some(asked), what, asked.started, &error, false)
            }
        };
        in_flight.goes_on();
        self.finish(asked, response).await
    }

    /// What every answer goes through last.
    async fn finish(&self, asked: &Asked, mut response: Response<Payload>) -> Response<Payload> {
        if let Some(interim) = &asked.interim {
            interim.end().await;
        }
        let via = forward::via(Version::HTTP_11, &self.shared.me);
        forward::append_to_list(response.headers_mut(), header::VIA, via);
        response
    }

    /// The journey.
    async fn answer(
        &self,
        asked: &Arc<Asked>,
        upgrade: Option<hyper::upgrade::OnUpgrade>,
        body: Option<Incoming>,
    ) -> Result<Response<Payload>, ServeError> {
        self.admitted(asked)?;
        if let Some(last) = self.last_stop(asked) {
            return last;
        }
        if let Some(upgrade) = upgrade {
            return self.tunnel(asked, upgrade).await;
        }
        let cacheable_method = matches!(asked.method, Method::GET | Method::HEAD);
        let has_body = body.as_ref().is_some_and(|body| !body.is_end_stream());
        if !cacheable_method || has_body {
            let fwd = if cacheable_method {
                Fwd::Bypass
            } else {
                Fwd::Method
            };
            return self.pass(asked, body, fwd).await;
        }
        if asked.bypasses {
            if asked.said.only_if_cached {
                return Err(ServeError::new(Kind::OnlyIfCached, ""));
            }
            return self.pass(asked, None, Fwd::Bypass).await;
        }
        self.answer_from_cache(asked, None).await
    }

    /// The journey from the lookup on, or from where it has led to this `filler`.
    async fn answer_from_cache(
        &self,
        asked: &Arc<Asked>,
        mut filler: Option<Filler>,
    ) -> Result<Response<Payload>, ServeError> {
        asked.make_sure().await;
        let ask = self.ask(asked);
        let mut in_slices = filler.is_none() && self.prefers_slices(asked);
        let target = asked.uri.path_and_query().map_or("/", |pq| pq.as_str());
        for _ in 0..ROUNDS_MAX {
            let looked_up = match filler.take() {
                Some(filler) => Lookup::Absent(filler),
                None if in_slices => match self.look_up_slices(asked).await {
                    Ok(looked_up) => looked_up,
                    Err(stored) => {
                        in_slices = false;
                        let stored = stored.as_deref();
                        let sliced = self.answer_from_slices(asked, stored, Fwd::UriMiss);
                        match sliced.await? {
                            Some(response) => return Ok(response),
                            None => continue,
                        }
                    }
                },
                None => self.shared.cache.lookup(ask).await,
            };
            let found = match looked_up {
                Lookup::Fresh(entry)
                    if self.is_outdated(&asked.ruling, &asked.host, target, &entry) =>
                {
                    self.shared.cache.forget(entry.key).await;
                    Found::Nothing
                }
                Lookup::Fresh(entry)
                    if !deliver::suffices(&asked.method, &asked.headers, &entry) =>
                {
                    match self.shared.cache.claim_rest(ask, &entry).await {
                        Some(turn) => self.fetched(asked, turn, Some(entry), Fwd::Partial).await?,
                        None => Found::Nothing,
                    }
                }
                Lookup::Fresh(entry) => Found::Entry(entry, How::hit(Outcome::Hit)),
                // Its validation would speak of an answer that this request may not have.
                Lookup::Stale { entry, turn, .. } if !self.may_share(asked, &entry) => {
                    if let Turn::Fill(filler) = turn {
                        filler.again();
                    }
                    return self.pass(asked, None, Fwd::Stale).await;
                }
                Lookup::Stale {
                    entry,
                    must: None,
                    turn,
                } if !self.is_outdated(&asked.ruling, &asked.host, target, &entry) => {
                    if let Turn::Fill(filler) = turn {
                        // Behind this answer.
                        drop(self.begin_fill(filler, asked, Some(entry.clone()), Method::GET));
                    }
                    Found::Entry(entry, How::hit(Outcome::Stale))
                }
                Lookup::Stale { entry, must, turn } => {
                    let fwd = match must {
                        Some(Why::Request) => Fwd::Request,
                        Some(Why::Stale | Why::NoCache) | None => Fwd::Stale,
                    };
                    self.fetched(asked, turn, Some(entry), fwd).await?
                }
                Lookup::Filling(fill) => {
                    self.fetched(asked, Turn::Follow(fill), None, Fwd::UriMiss)
                        .await?
                }
                // A HEAD, too, fetches the whole: its answer is that of a GET without the body, and
                // whoever asks for the head mostly wants the rest.
                Lookup::Absent(filler) => {
                    let fwd = if filler.varies() {
                        Fwd::VaryMiss
                    } else {
                        Fwd::UriMiss
                    };
                    self.fetched(asked, Turn::Fill(filler), None, fwd).await?
                }
                Lookup::Unavailable => return Err(ServeError::new(Kind::OnlyIfCached, "")),
                Lookup::Pass => return self.pass(asked, None, Fwd::UriMiss).await,
            };
            match found {
                Found::Entry(entry, how) => {
                    if !self.may_share(asked, &entry) {
                        return self.pass(asked, None, Fwd::Request).await;
                    }
                    if self.is_elsewhere(asked, &entry) {
                        if let Some(response) = self.pass_from_holders(asked).await? {
                            return Ok(response);
                        }
                        let sliced = self.answer_from_slices(asked, Some(&entry), Fwd::Partial);
                        if let Some(response) = sliced.await? {
                            return Ok(response);
                        }
                    }
                    if self.is_far_ahead(asked, &entry) {
                        return self.pass(asked, None, Fwd::Request).await;
                    }
                    if deliver::suffices(&asked.method, &asked.headers, &entry)
                        && let Some(response) =
                            self.deliver(asked, &asked.headers, &entry, how).await?
                    {
                        return Ok(response);
                    }
                }
                Found::Answer(response) => return Ok(*response),
                Found::Nothing => {}
            }
        }
        self.pass(asked, None, Fwd::UriMiss).await
    }

    fn ask<'a>(&self, asked: &'a Asked) -> Ask<'a> {
        Ask {
            key: asked.key,
            headers: &asked.headers,
            said: &asked.said,
            rules: &asked.rules,
            judge: asked,
            now_ms: asked.now_ms,
        }
    }

    /// Fetches, or follows whoever fetches, and says what this request gets from it.
    async fn fetched(
        &self,
        asked: &Arc<Asked>,
        turn: Turn,
        stored: Option<Arc<Entry>>,
        fwd: Fwd,
    ) -> Result<Found, ServeError> {
        asked.forwarded.get_or_init(|| fwd);
        let (mut filling, fill) = match turn {
            Turn::Follow(fill) => (None, fill),
            Turn::Fill(filler) => {
                let fill = filler.follow();
                asked.open_interim();
                let method = asked.method.clone();
                (
                    Some(self.begin_fill(filler, asked, stored.clone(), method)),
                    fill,
                )
            }
        };
        let leads = filling.is_some();
        let said = match fill.is_known() {
            true => asked.said.clone(),
            // What the client would rather not have from a cache is on its way from the origin.
            false => CacheControl::default(),
        };
        let filled = match &mut filling {
            Some(filling) => filling.outcome(fill).await,
            None => fill.outcome().await,
        };
        match filled {
            // Under the same URL, but another variant than this request selects.
            Filled::Shared(entry) if !vary::matches(&entry.head.selected_by, &asked.headers) => {
                Ok(Found::Nothing)
            }
            // It was asked for before a purge that is older than this request.
            Filled::Shared(entry) | Filled::Refreshed(entry)
                if !leads && !asked.may_have(&entry) =>
            {
                Ok(Found::Nothing)
            }
            // What must be validated was fetched for the one who leads; the others ask for themselves, all
            // at once.
            Filled::Shared(entry) | Filled::Refreshed(entry)
                if !leads && !self.may_follow(asked, &said, &entry) =>
            {
                let response = self.pass_validating(asked, &entry, fwd).await?;
                Ok(Found::Answer(Box::new(response)))
            }
            Filled::Shared(entry) => {
                let how = How::filled(leads, fwd, entry.head.status);
                Ok(Found::Entry(entry, how))
            }
            Filled::Refreshed(entry) => Ok(Found::Entry(entry, How::refreshed(leads, fwd))),
            Filled::NotShared | Filled::Again => {
                let handed_over = match filling {
                    Some(filling) => filling.own_answer().await,
                    None if matches!(filled, Filled::Again) => return Ok(Found::Nothing),
                    None => None,
                };
                let response = match handed_over {
                    Some(answer) => self.passed_whole(asked, answer, fwd),
                    None => self.pass(asked, None, fwd).await?,
                };
                Ok(Found::Answer(Box::new(response)))
            }
            Filled::Failed(error) => match stored {
                Some(entry) if self.outlives(asked, &entry) => {
                    Ok(Found::Entry(entry, How::instead_of(&error, fwd)))
                }
                _ => Err(error),
            },
        }
    }

    /// Whether an answer fetched for another request may be this one's, which says `said`, without the
    /// origin being asked (RFC 9111 §4).
    fn may_follow(&self, asked: &Asked, said: &CacheControl, entry: &Entry) -> bool {
        let now_ms = self.shared.clock.unix_ms();
        matches!(
            policy::reuse(&entry.head.freshness, said, &asked.rules, now_ms),
            Reuse::Fresh | Reuse::StaleWhileRevalidate | Reuse::StaleAccepted
        )
    }

    /// Whether a stored answer may be shared with this very request (RFC 9111 §3.5).
    fn may_share(&self, asked: &Asked, entry: &Entry) -> bool {
        entry.head.freshness.for_everybody || !asked.headers.contains_key(header::AUTHORIZATION)
    }

    /// Whether what comes in is not what the client wants, or only much later.
    fn is_elsewhere(&self, asked: &Asked, entry: &Entry) -> bool {
        matches!(entry.body, Body::Growing(_))
            && (self.is_far_ahead(asked, entry)
                || !deliver::suffices(&asked.method, &asked.headers, entry))
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
            range::Ranges::One(range) => {
                range.start > entry.offset() + growing.length() + RANGE_AHEAD_MAX
            }
            _ => false,
        }
    }

    fn hop<'a>(&'a self, asked: &'a Asked) -> Hop<'a> {
        Hop {
            me: &self.shared.me,
            client: forward::hop_client(asked.client, &asked.site.privacy),
            host: &asked.host_sent,
            version: asked.version,
        }
    }
}

/// What a request is answered with.
enum Found {
    /// An entry, complete or growing.
    Entry(Arc<Entry>, How),
    /// An answer for this request only.
    Answer(Box<Response<Payload>>),
    /// Nothing: what was there is gone, or was for others. Look again.
    Nothing,
}
