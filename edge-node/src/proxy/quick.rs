//! Hits in memory for plain requests ([`crate::serve::quick`]): the same journey with everything left
//! out that a hit does not need. What this cannot decide takes the long way.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use tokio::time::Instant;

use super::{Proxy, target};
use crate::{
    cache::{
        entry::{Body, Entry},
        key,
        policy::{self, CacheControl, Reuse, Rules},
    },
    deliver::{self, Content, cache_status::CACHE_STATUS},
    forward,
    metrics::{Outcome, SiteMetrics, Source},
    ruling::{
        Ruling,
        access::{self, Verdict, Visit},
        path::Readings,
    },
    serve::quick::{Answer, Plain, Quick, Session},
    sites::Sites,
};

/// Request fields that decide what of an object is sent (RFC 9110 §13.1, §14.2).
const SELECTIVE: [&str; 6] = [
    "range",
    "if-range",
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
];

impl Quick for Proxy {
    fn session(&self, from: SocketAddr) -> Box<dyn Session> {
        Box::new(Hits {
            proxy: self.clone(),
            client: from.ip(),
            site: None,
        })
    }
}

/// Answers the plain requests of one connection.
struct Hits {
    proxy: Proxy,
    client: IpAddr,
    /// That of the last request: clients mostly stay with one host.
    site: Option<Known>,
}

/// A host as it was sent, and what it came to.
struct Known {
    sent: String,
    sites: Arc<Sites>,
    ruling: Arc<Ruling>,
    host: String,
    metrics: Arc<SiteMetrics>,
}

impl Session for Hits {
    fn answer(&mut self, request: &Plain<'_>, fields: &mut Vec<u8>) -> Option<Answer> {
        // Whoever reads the access log reads of every request.
        if tracing::enabled!(target: "access", tracing::Level::DEBUG) {
            return None;
        }
        let started = Instant::now();
        self.know(request.host)?;
        let (shared, known) = (&self.proxy.shared, self.site.as_ref()?);
        let ruling = &known.ruling;
        let headers = match ruling.is_plain() {
            true => only(request, |name| is_any_of(name, &SELECTIVE)),
            false => only(request, |_| true),
        };
        let rules = self.rules(request, known, &headers)?;
        let key = key::key(
            &ruling.site.name,
            &known.host,
            request.target,
            &headers,
            &ruling.key,
        );
        let now_ms = shared.clock.unix_ms();
        let varied = |names: &[HeaderName]| {
            only(request, |name| {
                names.iter().any(|n| name.eq_ignore_ascii_case(n.as_str()))
            })
        };
        let entry = shared.cache.hot(key, varied, now_ms)?;
        let anything = CacheControl::default();
        let fresh = policy::reuse(&entry.head.freshness, &anything, rules, now_ms) == Reuse::Fresh;
        let Body::Whole(body) = &entry.body else {
            return None;
        };
        if !fresh || entry.head.part.is_some() {
            return None;
        }
        let selective = headers
            .keys()
            .any(|name| is_any_of(name.as_str(), &SELECTIVE));
        let (head, body) = if selective {
            let method = if request.is_head {
                Method::HEAD
            } else {
                Method::GET
            };
            let plan = deliver::plan(&method, &headers, &entry, now_ms);
            let body = match plan.content {
                Content::None => Bytes::new(),
                Content::Range(range) => {
                    let at = |position| usize::try_from(position).unwrap_or(usize::MAX);
                    body.slice(at(range.start)..at(range.end).min(body.len()))
                }
                Content::Multipart(_) => return None,
            };
            let mut headers = plan.head.headers;
            headers.remove(header::AGE);
            self.proxy.finish(&mut headers, rules);
            write_head(plan.head.status, &headers, fields);
            (Bytes::new(), body)
        } else {
            let head = entry
                .hot_head
                .get_or_init(|| self.proxy.hot_head(&entry, rules));
            let body = if request.is_head {
                Bytes::new()
            } else {
                body.clone()
            };
            (head.clone(), body)
        };
        let age_s = entry.head.freshness.age_s(now_ms);
        let ttl_s = entry.head.freshness.ttl_s(now_ms);
        let node = shared.me.as_str();
        // As `CacheStatus` writes it: a node's name is always a token or fits a string as it is.
        let quote = if deliver::cache_status::is_token(node) {
            ""
        } else {
            "\""
        };
        write!(
            fields,
            "age: {age_s}\r\n{CACHE_STATUS}: {quote}{node}{quote}; hit; ttl={ttl_s}\r\n\r\n"
        )
        .ok()?;
        shared.metrics.answered(Outcome::Hit, started.elapsed());
        known.metrics.request(Outcome::Hit);
        Some(Answer { head, body })
    }

    fn sent(&mut self, body_bytes: u64) {
        self.proxy.shared.metrics.sent(body_bytes);
        if let Some(known) = &self.site {
            known.metrics.bytes(Source::Memory, body_bytes);
        }
    }
}

impl Hits {
    /// Makes sure that the site is that of `host`; `None` if there is none.
    fn know(&mut self, host: &str) -> Option<()> {
        let shared = &self.proxy.shared;
        let sites = shared.sites.load();
        let same = self
            .site
            .as_ref()
            .is_some_and(|known| known.sent == host && Arc::ptr_eq(&known.sites, &sites));
        if !same {
            self.site = None;
            let selected = sites.select(target::host(host)?)?;
            self.site = Some(Known {
                sent: host.to_owned(),
                metrics: shared.metrics.site(&selected.ruling.site.name),
                sites: Arc::clone(&sites),
                ruling: selected.ruling,
                host: selected.host,
            });
        }
        Some(())
    }

    /// The rules for a request that its site serves from the cache.
    fn rules<'a>(
        &self,
        request: &Plain<'_>,
        known: &'a Known,
        headers: &HeaderMap,
    ) -> Option<&'a Arc<Rules>> {
        let ruling = &known.ruling;
        if ruling.is_plain() {
            return Some(ruling.usual());
        }
        let path = request.target.split('?').next()?;
        let path = Readings::of(path.as_bytes());
        let method = if request.is_head {
            Method::HEAD
        } else {
            Method::GET
        };
        let visit = Visit {
            path: &path,
            method: &method,
            client: Some(self.client),
        };
        let sites = &known.sites;
        let verdict = access::judge(ruling.gates(), visit, |address| sites.country(address));
        let served = verdict == Verdict::Serve && ruling.bypass(&path, headers).is_none();
        served.then(|| ruling.rules(&path))
    }
}

impl Proxy {
    /// The head of a hit on `entry` as a whole, but for what changes with time.
    fn hot_head(&self, entry: &Entry, rules: &Rules) -> Bytes {
        let plan = deliver::plan(&Method::GET, &HeaderMap::new(), entry, 0);
        let mut headers = plan.head.headers;
        headers.remove(header::AGE);
        self.finish(&mut headers, rules);
        let mut head = Vec::with_capacity(1024);
        write_head(plan.head.status, &headers, &mut head);
        head.into()
    }

    /// What every answer goes through on its way out.
    fn finish(&self, headers: &mut HeaderMap, rules: &Rules) {
        rules.consume_targets(headers);
        let via = forward::via(Version::HTTP_11, &self.shared.me);
        forward::append_to_list(headers, header::VIA, &via);
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

fn is_any_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|n| name.eq_ignore_ascii_case(n))
}

/// Status line and fields, without the empty line behind them.
fn write_head(status: StatusCode, headers: &HeaderMap, out: &mut Vec<u8>) {
    let reason = status.canonical_reason().unwrap_or("");
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in headers {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}
