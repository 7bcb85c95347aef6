//! How others ask for purges: the requests that Fastly's API, Varnish and the plugins of content systems
//! for these send, and the purge that each means. Pure.
//!
//! | who | what is sent |
//! | --- | --- |
//! | Fastly's API | `POST /service/{site}/purge/{key}`, `POST /service/{site}/purge` with `Surrogate-Key` or JSON, `POST /service/{site}/purge_all`, `POST /purge/{host}/{path}`; `Fastly-Soft-Purge: 1` |
//! | Varnish, W3 Total Cache, WP Rocket, Proxy Cache Purge | `PURGE` of a URL; `X-Purge-Method: regex` or no such field, and `.*` at the end: what begins like this |
//! | vmod xkey | `PURGE` or `PURGEKEYS` with `xkey-purge`, `xkey-softpurge` |
//! | Magento | `PURGE /` with `X-Magento-Tags-Pattern` |
//! | FOSHttpCache | `PURGE`; `PURGEKEYS` or `PURGETAGS`; `BAN` with `X-Cache-Tags`, or with `X-Host`, `X-Url`, `X-Content-Type` |
//! | Drupal's purgers | `BAN` or `PURGE` with `Cache-Tags`, `Purge-Cache-Tags`, `Surrogate-Key` |
//!
//! **Invariant:** more than was asked for may never go unsaid, nor less: what cannot be said with the scopes
//! there are is refused, with the field that says it.

mod pattern;
#[cfg(test)]
mod tests;

use http::{HeaderMap, StatusCode, Uri, header::HOST};
use serde::Deserialize;

use self::pattern::{Paths, Tags};
use super::SCOPES_MAX;
use crate::wire::{PurgeReceipt, PurgeRequest, PurgeState, PurgeStatus};

/// The methods of caches that purge; all else goes on as it is.
pub const METHODS: [&str; 4] = ["PURGE", "BAN", "PURGEKEYS", "PURGETAGS"];
/// What paths of Fastly's API begin with.
pub const FASTLY: [&str; 2] = ["/service/", "/purge/"];
/// Fields with tags, in the order in which they are looked at; `true`: what they name is only stale.
const TAG_FIELDS: [(&str, bool); 11] = [
    ("xkey-purge", false),
    ("xkey-softpurge", true),
    ("x-magento-tags-pattern", false),
    ("x-cache-tags-pattern", false),
    ("surrogate-key", false),
    ("cache-tags", false),
    ("cache-tag", false),
    ("x-cache-tags", false),
    ("x-cache-tag", false),
    ("purge-cache-tags", false),
    ("xkey", false),
];
/// Fields that say what shall go in ways for which there is no scope.
const UNTRANSLATABLE: [&str; 4] = [
    "x-purge-regex",
    "x-ban-regex",
    "x-url-regex",
    "x-ban-expression",
];
const SOFT: &str = "fastly-soft-purge";

/// A purge that somebody has asked for in their way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spoken {
    /// What it means; `site` is empty where it is told by the host.
    pub request: PurgeRequest,
    /// The host whose site is meant, with its port if it has one.
    pub host: Option<String>,
    /// How the answer has to look.
    pub dialect: Dialect,
}

/// How an answer has to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `{"status": "ok", "id": "…"}`.
    Fastly,
    /// `{"key": "id", …}` for every key that was named.
    FastlyKeys,
    /// 200 and a line of text.
    Proxy,
}

/// Why a request is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Unspoken {
    /// The status to answer with.
    pub status: StatusCode,
    /// The field, or part of the request, that says what cannot be.
    pub field: String,
    /// Why.
    pub reason: String,
}

impl Unspoken {
    fn new(status: StatusCode, field: &str, reason: impl ToString) -> Self {
        Self {
            status,
            field: field.to_owned(),
            reason: reason.to_string(),
        }
    }

    fn malformed(field: &str, reason: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, field, reason)
    }

    fn untranslatable(field: &str, reason: impl ToString) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, field, reason)
    }
}

/// What became of a purge, for who asked for it as of a proxy: a line, and one for each edge that lacks it.
pub fn in_words(status: &PurgeStatus) -> String {
    let is_done = |node: &&PurgeReceipt| node.state == PurgeState::Acknowledged;
    let (done, open): (Vec<_>, Vec<_>) = status.nodes.iter().partition(is_done);
    let mut text = format!(
        "Purged: {} is acknowledged by {} of {} edges, the last after {} ms\n",
        status.seq,
        done.len(),
        status.nodes.len(),
        status.elapsed_ms
    );
    for node in open {
        let reason = node.reason.as_deref().unwrap_or("has not answered yet");
        text.push_str(&format!("{}: {reason}\n", node.node));
    }
    text
}

/// Whether a request with this method and path asks for a purge in one of these ways.
pub fn is_spoken(method: &str, path: &str) -> bool {
    let fastly = || FASTLY.iter().any(|begins| path.starts_with(begins));
    METHODS.contains(&method) || (method == "POST" && fastly())
}

/// What a request means for which [`is_spoken`].
///
/// # Errors
///
/// It cannot be meant, or not be said with the scopes there are.
pub fn translate(
    method: &str,
    target: &Uri,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Spoken, Unspoken> {
    let soft = soft(headers)?;
    for field in UNTRANSLATABLE {
        if headers.contains_key(field) {
            return Err(Unspoken::untranslatable(
                field,
                "there are no patterns here",
            ));
        }
    }
    if method == "POST" {
        return fastly(target, headers, body, soft);
    }
    let host = host(target, headers)?;
    let mut request = PurgeRequest {
        soft,
        ..PurgeRequest::default()
    };
    let tags = match tags(headers)? {
        None if method.starts_with("PURGE") && method != "PURGE" => {
            let reason = "missing; it names what shall go";
            return Err(Unspoken::malformed("xkey-purge", reason));
        }
        tags => tags,
    };
    match tags {
        Some((tags, is_soft)) => {
            request.soft |= is_soft;
            for field in ["x-host", "x-url", "x-content-type"] {
                if restricts(headers, field) {
                    let reason = "cannot be asked for together with tags";
                    return Err(Unspoken::untranslatable(field, reason));
                }
            }
            match tags {
                Tags::All => request.all = true,
                Tags::Named(tags) => request.tags = tags,
            }
        }
        None if method == "BAN"
            && headers
                .keys()
                .any(|name| BAN_FIELDS.contains(&name.as_str())) =>
        {
            ban(headers, &mut request)?;
        }
        None => purge(target, headers, &host, &mut request)?,
    }
    Ok(Spoken {
        request,
        host: Some(host),
        dialect: Dialect::Proxy,
    })
}

const BAN_FIELDS: [&str; 3] = ["x-host", "x-url", "x-content-type"];

/// `PURGE` of one URL, or of what begins like it.
fn purge(
    target: &Uri,
    headers: &HeaderMap,
    host: &str,
    request: &mut PurgeRequest,
) -> Result<(), Unspoken> {
    let sent = target.path_and_query().map_or("/", |sent| sent.as_str());
    let method = text(headers, "x-purge-method")?.unwrap_or("");
    let begins = sent.strip_suffix(".*");
    match method.to_ascii_lowercase().as_str() {
        "" | "default" => match begins {
            Some(begins) => request.prefixes.push(format!("//{host}{begins}")),
            None => request.urls.push(format!("//{host}{sent}")),
        },
        "exact" => request.urls.push(format!("//{host}{sent}")),
        "regex" => match pattern::paths(sent) {
            Ok(Paths::All) => request.prefixes.push(format!("//{host}/")),
            Ok(Paths::Begin(begins)) => request.prefixes.push(format!("//{host}{begins}")),
            Ok(Paths::One(path)) => request.urls.push(format!("//{host}{path}")),
            Err(reason) => return Err(Unspoken::untranslatable("path", reason)),
        },
        _ => {
            let reason = "\"default\", \"exact\" or \"regex\"";
            return Err(Unspoken::untranslatable("x-purge-method", reason));
        }
    }
    Ok(())
}

/// `BAN` with patterns for hosts and paths.
fn ban(headers: &HeaderMap, request: &mut PurgeRequest) -> Result<(), Unspoken> {
    if restricts(headers, "x-content-type") {
        let reason = "objects are not known by their type: tag them";
        return Err(Unspoken::untranslatable("x-content-type", reason));
    }
    let hosts = match text(headers, "x-host")?.filter(|_| restricts(headers, "x-host")) {
        None => None,
        Some(pattern) => match pattern::names(pattern) {
            Ok(hosts) => Some(hosts),
            Err(reason) => return Err(Unspoken::untranslatable("x-host", reason)),
        },
    };
    let paths = match text(headers, "x-url")? {
        None => Paths::All,
        Some(pattern) => {
            pattern::paths(pattern).map_err(|reason| Unspoken::untranslatable("x-url", reason))?
        }
    };
    // Any host is any one of the site.
    let on = match &hosts {
        None => vec![String::new()],
        Some(hosts) => hosts.iter().map(|host| format!("//{host}")).collect(),
    };
    match (paths, hosts) {
        (Paths::All, None) => request.all = true,
        (Paths::All, Some(_)) => request.prefixes = on.iter().map(|on| format!("{on}/")).collect(),
        (Paths::Begin(begins), _) => {
            request.prefixes = on.iter().map(|on| format!("{on}{begins}")).collect();
        }
        (Paths::One(path), _) => {
            request.urls = on.iter().map(|on| format!("{on}{path}")).collect();
        }
    }
    Ok(())
}

/// Whether a field is there and asks for less than everything.
fn restricts(headers: &HeaderMap, field: &str) -> bool {
    let mut values = headers.get_all(field).iter();
    values.any(|value| !matches!(value.as_bytes(), b".*" | b"^.*$" | b"^.*" | b""))
}

/// The body of Fastly's bulk purges.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    surrogate_keys: Vec<String>,
}

fn fastly(target: &Uri, headers: &HeaderMap, body: &[u8], soft: bool) -> Result<Spoken, Unspoken> {
    let path = target.path();
    let mut spoken = Spoken {
        request: PurgeRequest {
            soft,
            ..PurgeRequest::default()
        },
        host: None,
        dialect: Dialect::Fastly,
    };
    let request = &mut spoken.request;
    if let Some(url) = path.strip_prefix("/purge/") {
        let query = target
            .query()
            .map_or_else(String::new, |query| format!("?{query}"));
        let url = url
            .trim_start_matches("http://")
            .trim_start_matches("https://");
        let host = url.split('/').next().unwrap_or_default();
        if host.is_empty() {
            return Err(Unspoken::malformed("path", "/purge/{host}/{path}"));
        }
        request.urls.push(format!("//{url}{query}"));
        spoken.host = Some(host.to_owned());
        return Ok(spoken);
    }
    let rest = path.strip_prefix("/service/").unwrap_or_default();
    let (site, what) = rest.split_once('/').unwrap_or((rest, ""));
    request.site = decoded(site).ok_or_else(|| Unspoken::malformed("site", "not text"))?;
    match what {
        "purge_all" => request.all = true,
        "purge" => {
            spoken.dialect = Dialect::FastlyKeys;
            request.tags = if headers.contains_key("surrogate-key") {
                let mut keys = Vec::new();
                for value in headers.get_all("surrogate-key") {
                    let value = value.to_str();
                    let value =
                        value.map_err(|_| Unspoken::malformed("surrogate-key", "not text"))?;
                    keys.extend(value.split_whitespace().map(str::to_owned));
                }
                keys
            } else {
                let keys: Keys = serde_json::from_slice(body)
                    .map_err(|error| Unspoken::malformed("surrogate_keys", error))?;
                keys.surrogate_keys
            };
            if request.tags.is_empty() {
                return Err(Unspoken::malformed("surrogate-key", "names no key"));
            }
        }
        _ => match what.strip_prefix("purge/").filter(|key| !key.is_empty()) {
            Some(key) => {
                let key = decoded(key).ok_or_else(|| Unspoken::malformed("key", "not text"))?;
                request.tags.push(key);
            }
            None => {
                let reason = "purge, purge/{key} or purge_all";
                return Err(Unspoken::new(StatusCode::NOT_FOUND, "path", reason));
            }
        },
    }
    Ok(spoken)
}

/// What the fields with tags name, and whether it is only stale; `None`: there are none.
fn tags(headers: &HeaderMap) -> Result<Option<(Tags, bool)>, Unspoken> {
    let mut found: Option<(Tags, bool)> = None;
    for (field, soft) in TAG_FIELDS {
        for value in headers.get_all(field) {
            let value = value
                .to_str()
                .map_err(|_| Unspoken::malformed(field, "not text"))?;
            let tags =
                pattern::tags(value).map_err(|reason| Unspoken::untranslatable(field, reason))?;
            found = match (found, tags) {
                (None, tags) => Some((tags, soft)),
                (Some((_, known)), _) if known != soft => {
                    let reason = "hard and soft purges are asked for one by one";
                    return Err(Unspoken::untranslatable(field, reason));
                }
                (Some((Tags::Named(mut known), _)), Tags::Named(tags)) => {
                    known.extend(tags);
                    Some((Tags::Named(known), soft))
                }
                _ => Some((Tags::All, soft)),
            };
            if let Some((Tags::Named(tags), _)) = &found
                && tags.len() > SCOPES_MAX
            {
                let reason = format!("more than {SCOPES_MAX}: make several requests of them");
                return Err(Unspoken::new(StatusCode::PAYLOAD_TOO_LARGE, field, reason));
            }
        }
    }
    if let Some((Tags::Named(tags), _)) = &found
        && tags.is_empty()
    {
        return Err(Unspoken::malformed("tags", "none is named"));
    }
    Ok(found)
}

fn soft(headers: &HeaderMap) -> Result<bool, Unspoken> {
    match text(headers, SOFT)? {
        Some("1" | "true") => Ok(true),
        None | Some("0" | "false" | "") => Ok(false),
        Some(_) => Err(Unspoken::malformed(SOFT, "1 or 0")),
    }
}

/// The host that a request is for.
fn host(target: &Uri, headers: &HeaderMap) -> Result<String, Unspoken> {
    if let Some(authority) = target.authority() {
        return Ok(authority.as_str().to_owned());
    }
    let host = text(headers, HOST.as_str())?.filter(|host| !host.is_empty());
    let host = host.ok_or_else(|| Unspoken::malformed("host", "missing"))?;
    Ok(host.to_owned())
}

fn text<'a>(headers: &'a HeaderMap, field: &str) -> Result<Option<&'a str>, Unspoken> {
    let value = headers
        .get(field)
        .map(|value| value.to_str().map(str::trim));
    value
        .transpose()
        .map_err(|_| Unspoken::malformed(field, "not text"))
}

/// A part of a path, as text.
fn decoded(part: &str) -> Option<String> {
    let mut plain = Vec::with_capacity(part.len());
    let mut bytes = part.bytes();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? << 4 | digit()?).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(plain).ok()
}
