//! `GET /explain?url=…`: what this node would do with a request, and why.
//!
//! The request is a GET with the header fields of the question itself; `&method=`, `&client=ADDRESS`
//! and `&header=Name:value` (any number of them) make it another.

use std::net::IpAddr;

use axum::{
    Json,
    extract::{Query, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use cluster::{
    key::Key,
    node::NodeId,
    purge::{Hit, Position, Verdict},
    site::takedown::{Takedown, hash_in_hex},
};
use serde::Serialize;

use super::{
    Admin, failure,
    why::{self, Case},
};
use crate::{
    cache::{
        entry::{self, Entry},
        key,
        policy::{self, CacheControl, Rules, part::Part},
    },
    deliver,
    proxy::wanted_slices,
    purges::{Named, Purges, tags::tag_names},
    ruling::{
        Ruling,
        access::{self, Visit},
    },
    upstream::{home::HomesReport, paying::Comparison, standing::OriginReport},
};

/// Why this node would answer a URL as it would.
#[derive(Serialize)]
struct Explained {
    url: String,
    site: String,
    host: String,
    key: String,
    stored: Option<Stored>,
    /// Where the answer to a range is put together from such: what is known of each, as far as the length is.
    slices: Vec<SliceReport>,
    purges: Purged,
    holders: Vec<serde_json::Value>,
    homes: HomesReport,
    order: Comparison,
    origins: Vec<OriginReport>,
    then: String,
    why: Vec<String>,
}

/// A piece of a range that is an object of its own.
#[derive(Serialize)]
struct SliceReport {
    piece: u32,
    key: String,
    stored: Option<Stored>,
    holders: Vec<NodeId>,
    home: Option<NodeId>,
}

/// What purges have to say.
#[derive(Serialize)]
struct Purged {
    /// Up to which place in the log nothing is missing here.
    applied: Position,
    /// Of what is stored: `good`, `stale` or `gone`.
    verdict: Option<&'static str>,
    /// What hit it, the newest first.
    hit_by: Vec<Hit>,
    /// Why this node does not answer from its cache at once, whatever is stored.
    doubt: Option<&'static str>,
}

#[derive(Serialize)]
struct Stored {
    tier: &'static str,
    status: u16,
    length: Option<u64>,
    /// As a takedown names it; `None` for a part, and while it grows.
    content_hash: Option<String>,
    variant: Vec<(String, Option<String>)>,
    age_s: f64,
    lifetime_s: f64,
    lifetime_from: &'static str,
    ttl_s: i64,
    fresh: bool,
    stale_while_revalidate_s: u64,
    stale_if_error_s: u64,
    etag: Option<String>,
    last_modified: Option<String>,
    tags: Vec<String>,
    as_of: Position,
    fetched_by: NodeId,
    fetched_at_ms: u64,
    from: String,
}

/// Most slices that are told of.
const SLICES_TOLD_MAX: usize = 64;

/// A question: what a URL is answered with, asked for like this.
#[derive(Debug)]
struct Question {
    url: String,
    host: String,
    target: Uri,
    method: Method,
    headers: HeaderMap,
    client: Option<IpAddr>,
}

/// The parameter that cannot be meant, and what is wrong with it.
type Unclear = (&'static str, &'static str);

impl Question {
    /// Reads the parameters of a question, whose own header fields are `headers`.
    fn parse(parameters: Vec<(String, String)>, mut headers: HeaderMap) -> Result<Self, Unclear> {
        policy::strip_hop_by_hop(&mut headers);
        let (mut url, mut method, mut client) = (None, Method::GET, None);
        let mut fields = HeaderMap::new();
        for (name, value) in parameters {
            match name.as_str() {
                "url" => url = Some(value),
                "method" => {
                    method = value.parse().map_err(|_| ("method", "not a method"))?;
                }
                "client" => {
                    let address = value.parse();
                    client = Some(address.map_err(|_| ("client", "not an IP address"))?);
                }
                "header" => {
                    let (name, value) = field(&value).ok_or(("header", "not Name:value"))?;
                    fields.append(name, value);
                }
                // A parameter that nobody here knows is no part of the question.
                _ => {}
            }
        }
        headers.extend(fields);
        let url = url.ok_or(("url", "needs ?url=http://host/path"))?;
        let unclear = ("url", "not a URL with scheme, host and path");
        let target: Uri = url.parse().map_err(|_| unclear)?;
        let host = target.authority().ok_or(unclear)?.as_str().to_owned();
        Ok(Self {
            url,
            host,
            target,
            method,
            headers,
            client,
        })
    }
}

fn field(text: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':')?;
    Some((name.trim().parse().ok()?, value.trim().parse().ok()?))
}

pub(super) async fn explain(
    State(admin): State<Admin>,
    Query(parameters): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Response {
    let question = match Question::parse(parameters, headers) {
        Ok(question) => question,
        Err((field, error)) => return failure(StatusCode::BAD_REQUEST, error, Some(field)),
    };
    let sites = admin.sites.load_full();
    let Some(selected) = sites.select(&question.host) else {
        let error = "no site answers to this host";
        return failure(StatusCode::NOT_FOUND, error, Some("url"));
    };
    let (ruling, method, headers) = (&*selected.ruling, &question.method, &question.headers);
    let target = question
        .target
        .path_and_query()
        .map_or("/", |pq| pq.as_str());
    let path = ruling.read(question.target.path().as_bytes());
    let visit = Visit {
        path: &path,
        method,
        client: question.client,
    };
    let (name, host) = (&ruling.site.name, &selected.host);
    let key = key::key(name, host, target, headers, &ruling.key);
    let entry = admin.cache.stored(key, headers).await;
    let holders: Vec<_> = admin
        .upstream
        .holders(key)
        .iter()
        .map(|candidate| serde_json::to_value(candidate).unwrap_or_default())
        .collect();
    let said = CacheControl::of_request(headers);
    let suffices = entry
        .as_ref()
        .is_some_and(|entry| deliver::suffices(method, headers, entry));
    let request = (method, headers, &said);
    let slices = match suffices {
        true => Vec::new(),
        false => slices(&admin, request, (ruling, ruling.rules(&path)), key).await,
    };
    let order = admin.upstream.compare(&ruling.site, question.target.path());
    let homes = admin.upstream.homes_report(&ruling.site, key);
    let refusal = admin.refusals.find(key);
    let query = question.target.query();
    let verdict = ruling.judge(visit, query, host, |address| sites.country(address));
    let content_hash = entry.as_ref().and_then(|entry| entry.content_hash(None));
    let takedowns = &ruling.takedowns;
    let taken_down = match verdict {
        access::Verdict::Gone { place } => Some(place),
        _ => content_hash.and_then(|hash| takedowns.of_body(&hash)),
    };
    let taken_down = taken_down.and_then(|place| takedowns.get(place));
    let taken_down = taken_down.map(Takedown::in_words);
    let now_ms = admin.clock.unix_ms();
    let case = Case {
        ruling,
        rules: ruling.rules(&path),
        verdict,
        taken_down: taken_down.as_deref(),
        client: question.client,
        method,
        headers,
        said: &said,
        bypass: ruling.bypass(&path, headers),
        stored: entry.as_ref().map(|entry| &entry.head),
        suffices,
        slices: (!slices.is_empty()).then(|| {
            let here = slices.iter().filter(|slice| slice.stored.is_some());
            (here.count(), slices.len())
        }),
        refusal: refusal.as_ref(),
        order: &order,
        holder: holders.first().map(|first| first["id"].to_string()),
        home: homes
            .asked
            .first()
            .map(|first| format!("{:?}", first.id.as_str())),
        now_ms,
    };
    let named = Named {
        site: name,
        host,
        target,
        rules: &ruling.key,
    };
    let purges = Purged::of(&admin.purges, named, entry.as_deref());
    let explained = Explained {
        then: why::then(&case),
        why: why::why(&case),
        site: name.clone(),
        host: host.clone(),
        key: key.to_string(),
        stored: entry.as_ref().map(|entry| Stored::of(entry, now_ms)),
        slices,
        purges,
        holders,
        homes,
        order: order.clone(),
        origins: admin.upstream.origins_report(&ruling.site, key),
        url: question.url,
    };
    Json(explained).into_response()
}

/// The slices of which this request would be answered.
async fn slices(
    admin: &Admin,
    request: (&Method, &HeaderMap, &CacheControl),
    (ruling, rules): (&Ruling, &Rules),
    key: Key,
) -> Vec<SliceReport> {
    let wanted =
        |length| wanted_slices(request, (rules, &admin.upstream), key, length).unwrap_or_default();
    let stored = async |piece| {
        let key = key::slice_key(key, piece);
        admin.cache.stored(key, request.1).await
    };
    let first = stored(wanted(None).start).await;
    let part = first.and_then(|first| Part::of(&first.head.headers));
    let pieces = match wanted(part.map(|part| part.of)) {
        // Its end is not known.
        pieces if pieces.end == u32::MAX => pieces.start..pieces.start + 1,
        pieces => pieces,
    };
    let mut told = Vec::new();
    for piece in pieces.take(SLICES_TOLD_MAX) {
        let (entry, key) = (stored(piece).await, key::slice_key(key, piece));
        let holders = admin.upstream.holders(key);
        let homes = admin.upstream.homes_report(&ruling.site, key);
        told.push(SliceReport {
            piece,
            key: key.to_string(),
            stored: entry.map(|entry| Stored::of(&entry, admin.clock.unix_ms())),
            holders: holders.into_iter().map(|holder| holder.id).collect(),
            home: homes.asked.first().map(|home| home.id.clone()),
        });
    }
    told
}

impl Purged {
    fn of(purges: &Purges, named: Named<'_>, stored: Option<&Entry>) -> Self {
        let judged = stored.map(|entry| {
            let (headers, as_of) = (&entry.head.headers, entry.head.as_of);
            let verdict = match purges.verdict(named, headers, as_of) {
                Verdict::Good => "good",
                Verdict::Stale => "stale",
                Verdict::Gone => "gone",
            };
            (verdict, purges.hits(named, headers, as_of))
        });
        let (verdict, hit_by) = judged.unzip();
        Self {
            applied: purges.applied(),
            verdict,
            hit_by: hit_by.unwrap_or_default(),
            doubt: purges.doubt(),
        }
    }
}

impl Stored {
    fn of(entry: &Entry, now_ms: u64) -> Self {
        let head = &entry.head;
        let text = |name| Some(head.headers.get(name)?.to_str().ok()?.to_owned());
        Self {
            tier: match entry.body {
                entry::Body::Whole(_) => "memory",
                entry::Body::Shelved(_) | entry::Body::Pieces { .. } => "disk",
                entry::Body::Growing(_) => "growing",
            },
            status: head.status.as_u16(),
            length: entry.length(),
            content_hash: entry.content_hash(None).as_ref().map(hash_in_hex),
            variant: head
                .selected_by
                .iter()
                .map(|(name, value)| {
                    let value = value
                        .as_ref()
                        .map(|v| String::from_utf8_lossy(v).into_owned());
                    (name.clone(), value)
                })
                .collect(),
            age_s: head.freshness.age(now_ms).as_secs_f64(),
            lifetime_s: head.freshness.lifetime.as_secs_f64(),
            lifetime_from: head.freshness.basis.as_str(),
            ttl_s: head.freshness.ttl_s(now_ms),
            fresh: !head.freshness.no_cache && head.freshness.is_fresh(now_ms),
            stale_while_revalidate_s: head.freshness.stale_while_revalidate.as_secs(),
            stale_if_error_s: head.freshness.stale_if_error.as_secs(),
            etag: text(header::ETAG),
            last_modified: text(header::LAST_MODIFIED),
            tags: tag_names(&head.headers),
            as_of: head.as_of,
            fetched_by: head.fetched_by.clone(),
            fetched_at_ms: head.fetched_at,
            from: entry.from.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(parameters: &[(&str, &str)]) -> Result<Question, Unclear> {
        let pairs = parameters
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        let mut own = HeaderMap::new();
        own.insert("accept", HeaderValue::from_static("*/*"));
        own.insert("connection", HeaderValue::from_static("close"));
        Question::parse(pairs.collect(), own)
    }

    #[test]
    fn a_question_is_about_a_get_unless_it_says_otherwise() {
        let url = ("url", "http://a.test:80/b?c");
        let plain = asked(&[url, ("x", "y")]).unwrap();
        assert_eq!((plain.method, plain.client), (Method::GET, None));
        assert_eq!(
            (plain.host.as_str(), plain.target.path()),
            ("a.test:80", "/b")
        );
        assert_eq!(plain.headers.len(), 1);
        let other = [
            url,
            ("method", "POST"),
            ("client", "::1"),
            ("header", "Cookie: a=b"),
            ("header", "cookie:c"),
            ("header", "Accept:text/css"),
        ];
        let other = asked(&other).unwrap();
        assert_eq!(other.method, Method::POST);
        assert!(other.client.is_some_and(|client| client.is_loopback()));
        let values = |name| other.headers.get_all(name).iter().collect::<Vec<_>>();
        assert_eq!(values("cookie"), ["a=b", "c"]);
        assert_eq!(values("accept"), ["text/css"]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_parameter() {
        let url = ("url", "http://a.test/");
        for (parameters, field) in [
            (&[][..], "url"),
            (&[("url", "/b")], "url"),
            (&[("url", "no url")], "url"),
            (&[url, ("method", "A B")], "method"),
            (&[url, ("client", "a.test")], "client"),
            (&[url, ("header", "cookie")], "header"),
            (&[url, ("header", ": a")], "header"),
        ] {
            let refused = asked(parameters).err().map(|(field, _)| field);
            assert_eq!(refused, Some(field), "{parameters:?}");
        }
    }
}
