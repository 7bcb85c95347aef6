//! Hits for plain requests ([`crate::serve::quick`]), in memory or in the system's cache: the same journey
//! with everything left out that a hit does not need. What this cannot decide makes the whole journey, but
//! is written without hyper as well if its answer comes whole.

use std::{
    io,
    net::IpAddr,
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use cluster::{clock::Clock, key::Key, site::privacy::Privacy};
use futures_util::TryStreamExt;
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version,
    header,
};
use http_body::Body as _;
use hyper::{body::Incoming, ext::ReasonPhrase};
use tokio::time::Instant;

use super::{Asked, Caller, InFlight, LastSite, Parts, Proxy, target};
use crate::{
    cache::{
        Filler,
        entry::{Body, Entry, Hot, Reading, Stamped},
        key,
        policy::{self, CacheControl, Reuse, Rules, validator},
    },
    deliver::{
        self, Content,
        cache_status::{self, CACHE_STATUS},
        conditional::{self, Verdict as Verdict304},
        range::{self, Ranges},
    },
    error::{Kind, ServeError},
    forward,
    metrics::{Outcome, SiteMetrics, Source},
    payload::Payload,
    purges::Named,
    ruling::{
        Ruling,
        access::{Verdict, Visit},
        path::Readings,
    },
    serve::{
        Connection,
        quick::{self, Answer, Chunks, Class, Later, Plain, Quick, Session, class},
    },
    sites::{Selected, Sites},
    upstream::{lane::Lane, plain::Spelling},
};

/// Longest head of most answers: one allocation instead of several.
pub(super) const HEAD_BYTES_USUAL: usize = 512;

impl Quick for Proxy {
    fn session(&self, connection: &Arc<Connection>) -> Box<dyn Session> {
        Box::new(Hits {
            proxy: self.clone(),
            connection: connection.clone(),
            site: None,
            key: None,
            asked: Asking::now(&self.shared.clock),
            hop: None,
            source: Source::Memory,
            from_disk: Arc::default(),
        })
    }
}

/// Answers the plain requests of one HTTP/1.1 connection.
struct Hits {
    proxy: Proxy,
    connection: Arc<Connection>,
    /// That of the last request: clients mostly stay with one host.
    site: Option<Arc<Known>>,
    /// What the request names for which there was no answer at once.
    key: Option<Key>,
    /// When that was asked.
    asked: Asking,
    /// What this node adds to requests that go on, and to which site.
    hop: Option<(Arc<Known>, Vec<u8>)>,
    /// Where the last answer's body came from, but for what is counted in `from_disk`.
    source: Source,
    from_disk: Arc<AtomicU64>,
}

/// When a request was read, by the clock that measures and the one that others have.
#[derive(Clone, Copy)]
pub(super) struct Asking {
    pub(super) at: Instant,
    pub(super) ms: u64,
}

impl Asking {
    fn now(clock: &Clock) -> Self {
        Self {
            at: Instant::now(),
            ms: clock.unix_ms(),
        }
    }
}

/// A host as it was sent, and what it came to.
pub(super) struct Known {
    sent: String,
    sites: Arc<Sites>,
    pub(super) ruling: Arc<Ruling>,
    pub(super) host: String,
    pub(super) metrics: Arc<SiteMetrics>,
    /// The shortest way to the origin, where all requests are served by the same rules.
    pub(super) lane: Option<Lane>,
}

/// What a plain request wants.
struct Wanted<'a> {
    client: IpAddr,
    method: &'a Method,
    target: &'a str,
    /// All of its fields, or only the selective ones if no rule looks at others.
    headers: &'a HeaderMap,
    key: Key,
    now_ms: u64,
}

/// What a plain request hits.
struct Hit<'a> {
    entry: Arc<Entry>,
    rules: &'a Arc<Rules>,
    /// The body and where it was; `None`: it is in pieces.
    body: Option<(Bytes, Source)>,
    now_ms: u64,
}

impl Session for Hits {
    fn answer(&mut self, request: &Plain<'_>, out: &mut Vec<u8>) -> Option<Answer> {
        let shared = &self.proxy.shared;
        self.asked = Asking::now(&shared.clock);
        self.key = None;
        self.site = Some(self.proxy.know(self.site.take(), request.host)?);
        let known = self.site.as_deref()?;
        let method = method_of(request);
        let headers = match known.ruling.is_plain() {
            true => only(request, forward::selects),
            false => only(request, |_| true),
        };
        let varied = |names: &[HeaderName]| {
            let is_named = |name: &str| names.iter().any(|n| name.eq_ignore_ascii_case(n.as_str()));
            only(request, is_named)
        };
        let client = self.connection.from.ip();
        let key = known.key(request.target, &headers);
        self.key = Some(key);
        let wanted = Wanted {
            client,
            method: &method,
            target: request.target,
            headers: &headers,
            key,
            now_ms: self.asked.ms,
        };
        let hit = self.proxy.hit(known, wanted, varied)?;
        self.source = hit
            .body
            .as_ref()
            .map_or(Source::Memory, |(_, source)| *source);
        self.from_disk.store(0, Ordering::Relaxed);
        let (head, range) = self.proxy.wire(&hit, &method, &headers, out)?;
        let body = self.proxy.body(&hit, range, &self.from_disk)?;
        self.proxy
            .hit_fields(&hit, |name, parts| write_field(&name, parts, out));
        out.extend_from_slice(b"\r\n");
        let took = self.asked.at.elapsed();
        shared.metrics.answered(Outcome::Hit, took);
        known.metrics.request(Outcome::Hit);
        Some(Answer {
            head,
            body,
            counts: None,
        })
    }

    fn begin(&mut self, request: &Plain<'_>) -> Option<Later> {
        let (known, connection) = (self.site.as_ref()?, &self.connection);
        let hop = match self.hop.take() {
            Some((site, hop)) if Arc::ptr_eq(&site, known) => hop,
            _ => self.proxy.hop_fields(known, connection),
        };
        let led = self.key.and_then(|key| {
            self.proxy
                .lead(known, (key, self.asked), request, &hop, connection)
        });
        self.hop = Some((known.clone(), hop));
        if led.is_some() {
            self.source = Source::Origin;
            self.from_disk.store(0, Ordering::Relaxed);
            return led;
        }
        let asked = self.proxy.asked_plainly(known, request, connection)?;
        let (proxy, connection) = (self.proxy.clone(), connection.clone());
        Some(Box::pin(answered(proxy, connection, asked, None)))
    }

    fn sent(&mut self, body_bytes: u64) {
        self.proxy.shared.metrics.sent(body_bytes);
        if let Some(known) = &self.site {
            let from_disk = self.from_disk.load(Ordering::Relaxed).min(body_bytes);
            known.metrics.bytes(Source::Disk, from_disk);
            known.metrics.bytes(self.source, body_bytes - from_disk);
        }
    }

    fn refused(&mut self, kind: Kind) -> Option<Bytes> {
        let proxy = &self.proxy;
        InFlight::new(&proxy.shared.metrics).goes_on();
        let (what, error) = ("a refused head".to_owned(), ServeError::new(kind, ""));
        let mut response = proxy.error_answer(None, what, Instant::now(), &error, false);
        let via = forward::via(Version::HTTP_11, &proxy.shared.me);
        forward::append_to_list(response.headers_mut(), header::VIA, via);
        let (head, body) = proxy.written(&mut response)?;
        let head = head.strip_suffix(b"\r\n")?;
        Some([head, b"connection: close\r\n\r\n", &body].concat().into())
    }
}

/// The answer to a plain request at the end of the whole journey; `None`: hyper writes it.
pub(super) fn answered(
    proxy: Proxy,
    connection: Arc<Connection>,
    asked: Asked,
    filler: Option<Filler>,
) -> impl Future<Output = Option<Answer>> + Send {
    // Not in the future, which would be larger by it.
    let asked = Arc::new(asked);
    async move {
        let mut response = proxy.conclude(&asked, filler).await;
        match proxy.written(&mut response) {
            Some((head, body)) => Some(Answer {
                head,
                body: quick::Body::Bytes(body),
                counts: Some(Box::new(response.into_body())),
            }),
            None => {
                connection.prepare(response);
                None
            }
        }
    }
}

impl Known {
    /// What a request names.
    fn key(&self, target: &str, headers: &HeaderMap) -> Key {
        let ruling = &self.ruling;
        key::key(&ruling.site.name, &self.host, target, headers, &ruling.key)
    }
}

impl Proxy {
    /// The answer to a request over HTTP/2, if it is plain and a hit in memory.
    pub fn quick(
        &self,
        request: &Request<Incoming>,
        connection: &Connection,
        LastSite(last): &LastSite,
    ) -> Option<Response<Payload>> {
        let (uri, headers) = (request.uri(), request.headers());
        let plain = request.version() == Version::HTTP_2
            && matches!(*request.method(), Method::GET | Method::HEAD)
            && request.body().is_end_stream()
            && !forward::is_selective(headers)
            && headers
                .keys()
                .all(|name| class(name.as_str()) == Class::Any);
        let authority = uri.authority().filter(|_| plain)?.as_str();
        let started = Instant::now();
        let before = last.load_full();
        let known = self.know(before.clone(), authority)?;
        if !before.is_some_and(|before| Arc::ptr_eq(&before, &known)) {
            last.store(Some(known.clone()));
        }
        let target = uri.path_and_query()?.as_str();
        let varied = |_: &[HeaderName]| headers.clone();
        let client = connection.from.ip();
        let key = known.key(target, headers);
        let wanted = Wanted {
            client,
            method: request.method(),
            target,
            headers,
            key,
            now_ms: self.shared.clock.unix_ms(),
        };
        let hit = self.hit(&known, wanted, varied)?;
        let hot = self.hot(&hit)?;
        let (mut body, source) = hit.body.clone()?;
        if request.method() == Method::HEAD {
            body.clear();
        }
        self.metrics_of(&known, started, source, body.len() as u64);
        let mut response = Response::new(Payload::counted(body));
        *response.status_mut() = hit.entry.head.status;
        *response.headers_mut() = self.stamped(&hit, hot);
        Some(response)
    }

    /// All fields of a hit; those of a hit in the same second are the same.
    fn stamped(&self, hit: &Hit<'_>, hot: &Hot) -> HeaderMap {
        let age_s = hit.entry.head.freshness.age_s(hit.now_ms);
        let last = hot.stamped.load();
        if let Some(last) = last.as_ref().filter(|last| last.age_s == age_s) {
            return last.fields.clone();
        }
        let mut fields = hot.fields.clone();
        self.hit_fields(hit, |name, parts| {
            if let Ok(value) = HeaderValue::from_bytes(&parts.concat()) {
                fields.append(name, value);
            }
        });
        let stamped = Stamped {
            age_s,
            fields: fields.clone(),
        };
        hot.stamped.store(Some(Arc::new(stamped)));
        fields
    }

    /// What a plain request asks for, with nothing left to be found wrong with it.
    pub(super) fn asked_plainly(
        &self,
        known: &Known,
        request: &Plain<'_>,
        connection: &Connection,
    ) -> Option<Asked> {
        let uri = request.target.parse().ok()?;
        let mut headers = only(request, |_| true);
        policy::strip_hop_by_hop(&mut headers);
        let method = method_of(request);
        let caller = Caller {
            client: connection.from.ip(),
            host_sent: known.sent.clone(),
            interim: Some(connection.interim_beneath()),
            spelling: Some(Spelling::of(request.fields().map(|(name, _)| name))),
            site_metrics: known.metrics.clone(),
            started: Instant::now(),
        };
        let parts = Parts {
            method,
            uri,
            version: Version::HTTP_11,
            headers,
            extensions: Extensions::new(),
        };
        let selected = Selected {
            ruling: known.ruling.clone(),
            host: known.host.clone(),
        };
        Some(self.asked(&known.sites, selected, parts, caller, false))
    }

    /// An answer as it goes out beneath hyper, its head and its body; `None` if hyper has to write it.
    fn written(&self, response: &mut Response<Payload>) -> Option<(Bytes, Bytes)> {
        let (status, fields, extensions) =
            (response.status(), response.headers(), response.extensions());
        let notes = [
            extensions.get::<ReasonPhrase>().is_some(),
            extensions.get::<Spelling>().is_some(),
        ];
        // hyper's own notes on how an answer is spelled are for hyper only.
        let is_known = extensions.len() == notes.into_iter().filter(|is_there| *is_there).count();
        let has_length = fields.contains_key(header::CONTENT_LENGTH)
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let for_hyper = !is_known
            || !has_length
            || fields.contains_key(header::CONNECTION)
            || fields.contains_key(header::TRANSFER_ENCODING)
            || status.is_informational();
        if for_hyper {
            return None;
        }
        let body = response.body_mut().take_whole()?;
        let (fields, extensions) = (response.headers(), response.extensions());
        let phrase = extensions.get::<ReasonPhrase>();
        let mut head = Vec::with_capacity(HEAD_BYTES_USUAL);
        write_status(status, phrase.map(ReasonPhrase::as_bytes), &mut head);
        match extensions.get::<Spelling>() {
            Some(spelling) => spelling.write(fields, &mut head),
            None => write_fields(fields, &mut head),
        }
        if !fields.contains_key(header::DATE) {
            let date = validator::date_value(self.shared.clock.unix_ms() / 1000);
            write_field(&header::DATE, &[date.as_bytes()], &mut head);
        }
        head.extend_from_slice(b"\r\n");
        Some((head.into(), body))
    }

    fn metrics_of(&self, known: &Known, started: Instant, source: Source, body_bytes: u64) {
        let metrics = &self.shared.metrics;
        metrics.answered(Outcome::Hit, started.elapsed());
        metrics.sent(body_bytes);
        known.metrics.request(Outcome::Hit);
        known.metrics.bytes(source, body_bytes);
    }

    /// What is known of `host`: `last`, if it is that; `None` if it belongs to no site.
    fn know(&self, last: Option<Arc<Known>>, host: &str) -> Option<Arc<Known>> {
        // Whoever reads the access log reads of every request: then there is no short way.
        if tracing::enabled!(target: "access", tracing::Level::DEBUG) {
            return None;
        }
        let sites = self.shared.sites.load();
        last.filter(|known| known.sent == host && Arc::ptr_eq(&known.sites, &sites))
            .or_else(|| {
                let selected = sites.select(target::host(host)?)?;
                Some(Arc::new(Known {
                    sent: host.to_owned(),
                    metrics: self.shared.metrics.site(&selected.ruling.site.name),
                    lane: self.lane(&selected.ruling),
                    sites: Arc::clone(&sites),
                    ruling: selected.ruling,
                    host: selected.host,
                }))
            })
    }

    fn lane(&self, ruling: &Ruling) -> Option<Lane> {
        let lane = || self.shared.upstream.lane(&ruling.site);
        // There, what a client sends goes on as it came.
        let tells_all = ruling.site.privacy == Privacy::default();
        (ruling.is_plain() && tells_all).then(lane)?
    }

    /// The fresh object in memory that answers a request, if its site serves it from there.
    fn hit<'a>(
        &self,
        known: &'a Known,
        wanted: Wanted<'_>,
        varied: impl Fn(&[HeaderName]) -> HeaderMap,
    ) -> Option<Hit<'a>> {
        let Wanted {
            client,
            method,
            target,
            headers,
            key,
            now_ms,
        } = wanted;
        let (ruling, shared) = (&known.ruling, &self.shared);
        let rules = if ruling.is_plain() {
            ruling.usual()
        } else {
            let (path, query) = match target.split_once('?') {
                Some((path, query)) => (path, Some(query)),
                None => (target, None),
            };
            let path = Readings::of(path.as_bytes());
            let visit = Visit {
                path: &path,
                method,
                client: Some(client),
            };
            let sites = &known.sites;
            let country = |address| sites.country(address);
            let verdict = ruling.judge(visit, query, &known.host, country);
            if verdict != Verdict::Serve || ruling.bypass(&path, headers).is_some() {
                return None;
            }
            ruling.rules(&path)
        };
        let entry = shared.cache.hot(key, varied, now_ms)?;
        let named = Named {
            site: &ruling.site.name,
            host: &known.host,
            target,
            rules: &ruling.key,
        };
        let is_unknown =
            ruling.whole_key.is_some() && entry.head.fetched_at <= shared.cache.unknown_ms(now_ms);
        if is_unknown
            || self.is_outdated(ruling, &known.host, target, &entry)
            || !shared.purges.lets_pass(named, &entry, now_ms)
        {
            return None;
        }
        let anything = CacheControl::default();
        let reuse = policy::reuse(&entry.head.freshness, &anything, rules, now_ms);
        if reuse != Reuse::Fresh || entry.head.part.is_some() {
            return None;
        }
        let body = match &entry.body {
            Body::Growing(_) => return None,
            Body::Pieces { .. } => None,
            Body::Whole(_) | Body::Shelved(_) => Some(shared.cache.body(&entry)?),
        };
        if ruling.takedowns.is_about_bodies() {
            let bytes = body.as_ref().map(|(bytes, _)| bytes);
            let hash = entry.content_hash(bytes)?;
            if ruling.takedowns.of_body(&hash).is_some() {
                return None;
            }
        }
        Some(Hit {
            entry,
            rules,
            body,
            now_ms,
        })
    }

    /// The head of a hit over HTTP/1.1 (its end, where it is not prepared, in `out`), and which range of
    /// the body goes with it.
    fn wire(
        &self,
        hit: &Hit<'_>,
        method: &Method,
        headers: &HeaderMap,
        out: &mut Vec<u8>,
    ) -> Option<(Bytes, Range<u64>)> {
        let entry = &hit.entry;
        let hot = self.hot(hit)?;
        if !forward::is_selective(headers) {
            let end = match *method {
                Method::HEAD => 0,
                _ => entry.length()?,
            };
            return Some((hot.head.clone(), 0..end));
        }
        let stored = &entry.head;
        match conditional::evaluate(headers, stored.status, &stored.headers) {
            Verdict304::NotModified => {
                return Some((hot.not_modified.clone(), 0..0));
            }
            Verdict304::Proceed if *method == Method::GET && stored.status == StatusCode::OK => {
                let length = entry.length()?;
                if let Ranges::One(range) = range::requested(headers, &stored.headers, length) {
                    range::write_fields(&range, length, out);
                    return Some((partial(hot), range));
                }
            }
            Verdict304::Proceed | Verdict304::PreconditionFailed => {}
        }
        let plan = deliver::plan(method, headers, entry, hit.now_ms);
        let range = match plan.content {
            Content::None => 0..0,
            Content::Range(range) => range,
            Content::Multipart(_) => return None,
        };
        write_head(
            plan.head.status,
            &self.finished(plan.head.headers, hit.rules),
            out,
        );
        Some((Bytes::new(), range))
    }

    /// So much of a hit's body; `None` if some of it has been evicted.
    fn body(
        &self,
        hit: &Hit<'_>,
        range: Range<u64>,
        from_disk: &Arc<AtomicU64>,
    ) -> Option<quick::Body> {
        if range.is_empty() {
            return Some(quick::Body::EMPTY);
        }
        if let Some((bytes, _)) = &hit.body {
            let at = |position| usize::try_from(position).unwrap_or(usize::MAX);
            let bytes = bytes.slice(at(range.start)..at(range.end).min(bytes.len()));
            return Some(quick::Body::Bytes(bytes));
        }
        let length = range.end - range.start;
        let opened = hit.entry.open_counted(range, &self.shared.cache, from_disk);
        Some(match opened.ok()? {
            Reading::Whole(bytes) => quick::Body::Bytes(bytes),
            Reading::Stream(stream) => {
                let chunks = stream.map_err(io::Error::other);
                quick::Body::Chunks(Chunks::new(length, chunks))
            }
        })
    }

    /// The heads of hits on an entry; `None` if they were made under other rules than now hold.
    fn hot<'a>(&self, hit: &'a Hit<'_>) -> Option<&'a Hot> {
        let hot = hit.entry.hot.get_or_init(|| {
            let plan = deliver::plan(&Method::GET, &HeaderMap::new(), &hit.entry, 0);
            let fields = self.finished(plan.head.headers, hit.rules);
            let (mut head, mut not_modified) = (Vec::new(), Vec::new());
            write_head(plan.head.status, &fields, &mut head);
            let fields_304 = conditional::not_modified_fields(&fields);
            write_head(StatusCode::NOT_MODIFIED, &fields_304, &mut not_modified);
            Box::new(Hot {
                rules: hit.rules.clone(),
                fields,
                stamped: ArcSwapOption::empty(),
                head: head.into(),
                not_modified: not_modified.into(),
                partial: OnceLock::new(),
            })
        });
        Arc::ptr_eq(&hot.rules, hit.rules).then_some(&**hot)
    }

    /// What every answer goes through on its way out; without `Age`, which comes last.
    fn finished(&self, mut headers: HeaderMap, rules: &Rules) -> HeaderMap {
        headers.remove(header::AGE);
        // What is stored has no trailers.
        headers.remove(header::TRAILER);
        rules.consume_targets(&mut headers);
        let via = forward::via(Version::HTTP_11, &self.shared.me);
        forward::append_to_list(&mut headers, header::VIA, via);
        headers
    }

    /// The fields that change with time, each value in parts.
    fn hit_fields(&self, hit: &Hit<'_>, mut add: impl FnMut(HeaderName, &[&[u8]])) {
        let freshness = &hit.entry.head.freshness;
        let mut digits = itoa::Buffer::new();
        let age_s = digits.format(freshness.age_s(hit.now_ms));
        add(header::AGE, &[age_s.as_bytes()]);
        // As `CacheStatus` writes it: a node's name is a token, or a string that needs no escapes.
        let node = self.shared.me.as_str();
        let quote = if cache_status::is_token(node) {
            ""
        } else {
            "\""
        };
        let ttl_s = digits.format(freshness.ttl_s(hit.now_ms));
        let parts = [quote, node, quote, "; hit; ttl=", ttl_s];
        add(CACHE_STATUS, &parts.map(str::as_bytes));
    }
}

/// The head of a 206 for one range of a hit, but for the fields that say which.
fn partial(hot: &Hot) -> Bytes {
    let head = hot.partial.get_or_init(|| {
        let mut fields = hot.fields.clone();
        fields.remove(header::CONTENT_LENGTH);
        let mut head = Vec::new();
        write_head(StatusCode::PARTIAL_CONTENT, &fields, &mut head);
        head.into()
    });
    head.clone()
}

fn method_of(request: &Plain<'_>) -> Method {
    match request.is_head {
        true => Method::HEAD,
        false => Method::GET,
    }
}

/// The fields of a request that `wanted` wants.
fn only(request: &Plain<'_>, wanted: impl Fn(&str) -> bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in request.fields().filter(|(name, _)| wanted(name)) {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers
}

/// Status line and fields, without the empty line behind them.
pub(super) fn write_head(status: StatusCode, headers: &HeaderMap, out: &mut Vec<u8>) {
    write_status(status, None, out);
    write_fields(headers, out);
}

/// The status line, with a phrase of its own or the usual one.
pub(super) fn write_status(status: StatusCode, phrase: Option<&[u8]>, out: &mut Vec<u8>) {
    let usual = status.canonical_reason().unwrap_or("").as_bytes();
    for part in [
        b"HTTP/1.1 ",
        status.as_str().as_bytes(),
        b" ",
        phrase.unwrap_or(usual),
        b"\r\n",
    ] {
        out.extend_from_slice(part);
    }
}

fn write_fields(headers: &HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in headers {
        write_field(name, &[value.as_bytes()], out);
    }
}

/// One field, its value in parts.
pub(super) fn write_field(name: &HeaderName, value: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    value.iter().for_each(|part| out.extend_from_slice(part));
    out.extend_from_slice(b"\r\n");
}
