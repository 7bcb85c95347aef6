//! What a purge is asked for with, and the [`Purge`] that it means. Pure.

use std::{fmt, sync::Arc};

use axum::http::{StatusCode, Uri};
use cluster::{
    purge::{Purge, SCOPE_BYTES_MAX, SCOPES_MAX, Scope},
    site::{Site, SiteMap},
    wire::PurgeRequest,
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

use crate::error::ApiError;

/// Reads a request, and names the field that is not what it should be.
///
/// # Errors
///
/// 400: it is no JSON. 422: it is not what a request is.
pub(super) fn read(body: &[u8]) -> Result<PurgeRequest, ApiError> {
    let value: Written = serde_json::from_slice(body)
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, format!("not JSON: {error}")))?;
    let Written::Fields(written) = value else {
        let reason = "not an object: {\"site\": …, \"urls\": […]}";
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, reason));
    };
    let mut fields = Map::new();
    for (name, value) in written {
        if fields.insert(name.clone(), value).is_some() {
            let name: String = name.chars().take(64).collect();
            return Err(wrong(&name, "given twice"));
        }
    }
    let mut take = |name: &str| fields.remove(name);
    let request = PurgeRequest {
        site: field("site", take("site"))?,
        urls: field("urls", take("urls"))?,
        prefixes: field("prefixes", take("prefixes"))?,
        tags: field("tags", take("tags"))?,
        all: field("all", take("all"))?,
        soft: field("soft", take("soft"))?,
        wait: field("wait", take("wait"))?,
    };
    match fields.keys().next() {
        Some(other) => {
            let other: String = other.chars().take(64).collect();
            let reason = "no such field; there are site, urls, prefixes, tags, all, soft and wait";
            Err(wrong(&other, reason))
        }
        None => Ok(request),
    }
}

/// JSON whose fields are as they were written: a map would keep the last of those that have one name.
enum Written {
    Fields(Vec<(String, Value)>),
    Other,
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Written;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Written, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Written::Fields(fields))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Written, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Written::Other)
            }

            fn visit_unit<E>(self) -> Result<Written, E> {
                Ok(Written::Other)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Written, E> {
                Ok(Written::Other)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Written, E> {
                Ok(Written::Other)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Written, E> {
                Ok(Written::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Written, E> {
                Ok(Written::Other)
            }

            fn visit_str<E>(self, _: &str) -> Result<Written, E> {
                Ok(Written::Other)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

fn field<T: DeserializeOwned + Default>(name: &str, value: Option<Value>) -> Result<T, ApiError> {
    if value == Some(Value::Null) {
        return Err(wrong(name, "null; leave it out where nothing is meant"));
    }
    let value = value.map(serde_json::from_value).transpose();
    Ok(value
        .map_err(|error| wrong(name, error))?
        .unwrap_or_default())
}

/// The purge that is asked for.
///
/// # Errors
///
/// 404: no such site. 413: too many scopes. 422: something cannot be meant, with its place.
pub(super) fn purge(request: PurgeRequest, sites: &SiteMap) -> Result<Purge, ApiError> {
    if request.site.is_empty() {
        return Err(wrong("site", "missing"));
    }
    let named = |site: &&Arc<Site>| site.name == request.site;
    let Some(site) = sites.sites().iter().find(named) else {
        let name: String = request.site.chars().take(64).collect();
        let reason = format!("no site {name:?}; GET /v1/sites lists them");
        return Err(ApiError::field(StatusCode::NOT_FOUND, "site", reason));
    };
    let lists = [
        ("urls", &request.urls),
        ("prefixes", &request.prefixes),
        ("tags", &request.tags),
    ];
    let count: usize = lists.iter().map(|(_, list)| list.len()).sum();
    if count > SCOPES_MAX {
        let longest = lists.iter().max_by_key(|(_, list)| list.len());
        let reason = format!("{count} scopes, more than {SCOPES_MAX}: make several purges of them");
        return Err(ApiError::field(
            StatusCode::PAYLOAD_TOO_LARGE,
            longest.map_or("urls", |(name, _)| *name),
            reason,
        ));
    }
    let mut scopes = Vec::with_capacity(count);
    for (name, list) in lists {
        for (index, text) in list.iter().enumerate() {
            let scope = match name {
                "tags" => tag(text),
                _ => target(text, name == "prefixes", site, sites),
            };
            scopes.push(scope.map_err(|reason| wrong(&format!("{name}[{index}]"), reason))?);
        }
    }
    if request.all || scopes.contains(&Scope::All) {
        scopes = vec![Scope::All];
    }
    if scopes.is_empty() {
        let reason = "nothing to purge: give urls, prefixes, tags, or \"all\": true";
        return Err(wrong("urls", reason));
    }
    scopes.sort_unstable();
    scopes.dedup();
    Ok(Purge {
        site: request.site,
        scopes,
        soft: request.soft,
    })
}

fn wrong(field: &str, reason: impl ToString) -> ApiError {
    ApiError::field(StatusCode::UNPROCESSABLE_ENTITY, field, reason)
}

fn too_long(text: &str) -> Result<(), String> {
    match text.len() > SCOPE_BYTES_MAX {
        true => Err(format!("{} bytes, more than {SCOPE_BYTES_MAX}", text.len())),
        false => Ok(()),
    }
}

fn tag(text: &str) -> Result<Scope, String> {
    too_long(text)?;
    match text.trim() {
        "" => Err("empty".into()),
        tag if tag.contains(|c: char| c.is_control() || c.is_whitespace()) => {
            Err("a tag has no blanks: give each its place in the list".into())
        }
        tag => Ok(Scope::Tag(tag.to_owned())),
    }
}

/// A URL, or the beginning of one: whole, without its scheme, or a path on all hosts of the site. One that
/// ends with `*` is a beginning.
fn target(text: &str, is_prefix: bool, site: &Site, sites: &SiteMap) -> Result<Scope, String> {
    too_long(text)?;
    let text = text.trim();
    let shortened = text.strip_suffix('*');
    let is_prefix = is_prefix || shortened.is_some();
    let text = shortened.unwrap_or(text);
    let text = text.split('#').next().unwrap_or_default();
    let lower = text.get(..8).unwrap_or(text).to_ascii_lowercase();
    let rest = match &lower {
        _ if text.starts_with("//") => Some(&text[2..]),
        lower if lower.starts_with("http://") => Some(&text[7..]),
        lower if lower.starts_with("https://") => Some(&text[8..]),
        _ if text.starts_with('/') => None,
        _ => {
            let told: String = text.chars().take(80).collect();
            return Err(format!("{told:?} is neither http://host/path nor /path"));
        }
    };
    let (host, path) = match rest {
        None => (None, text),
        Some(rest) => {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            let (host, path) = rest.split_at(end);
            (Some(of_site(host, site, sites)?), path)
        }
    };
    let path = encoded(path);
    let path = match path.starts_with('/') {
        true => path,
        false => format!("/{path}"),
    };
    if path.parse::<Uri>().is_err() {
        return Err("the path has a character that no URL has".into());
    }
    let scope = match &host {
        // A beginning that everything has.
        None if is_prefix && path == "/" => return Ok(Scope::All),
        None => path,
        Some(host) => format!("//{host}{path}"),
    };
    too_long(&scope)?;
    Ok(match is_prefix {
        true => Scope::Prefix(scope),
        false => Scope::Url(scope),
    })
}

/// A host as scopes have it, if it is one of the site.
fn of_site(host: &str, site: &Site, sites: &SiteMap) -> Result<String, String> {
    let told = || host.chars().take(80).collect::<String>();
    let named = sites.select(host);
    if named.is_none_or(|selected| selected.site.name != site.name) {
        return Err(format!(
            "{:?} is not a host of site {:?}",
            told(),
            site.name
        ));
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    Ok(name.to_ascii_lowercase())
}

/// What is not ASCII as clients send it.
fn encoded(path: &str) -> String {
    if path.is_ascii() {
        return path.to_owned();
    }
    let mut text = String::with_capacity(path.len() * 3);
    for byte in path.bytes() {
        match byte.is_ascii() {
            true => text.push(char::from(byte)),
            false => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use cluster::site::SiteSet;

    use super::*;

    fn sites() -> SiteMap {
        let sites = vec![
            Site::new("www", &["www.test", "*.www.test"], &["http://o:80"]),
            Site::new("any", &["*.any.test"], &["http://o:80"]),
        ];
        SiteMap::new(&SiteSet { version: 1, sites }).unwrap()
    }

    fn asked(text: &str) -> Result<Purge, ApiError> {
        purge(read(text.as_bytes())?, &sites())
    }

    fn scopes(text: &str) -> String {
        let purge = asked(text).unwrap_or_else(|error| panic!("{text}: {error:?}"));
        serde_json::to_string(&purge.scopes).unwrap()
    }

    #[test]
    fn urls_are_meant_as_they_are_written() {
        for (written, meant) in [
            (
                r#""urls": ["http://www.test/a?b=c"]"#,
                r#"[{"url":"//www.test/a?b=c"}]"#,
            ),
            (
                r#""urls": ["HTTPS://WWW.test:443/A#x"]"#,
                r#"[{"url":"//www.test/A"}]"#,
            ),
            (
                r#""urls": ["//img.www.test"]"#,
                r#"[{"url":"//img.www.test/"}]"#,
            ),
            (
                r#""urls": ["http://www.test?q"]"#,
                r#"[{"url":"//www.test/?q"}]"#,
            ),
            (
                r#""urls": ["/a", "/a", "/ä"]"#,
                r#"[{"url":"/%C3%A4"},{"url":"/a"}]"#,
            ),
            (
                r#""urls": ["/a*", "http://www.test/*"]"#,
                r#"[{"prefix":"//www.test/"},{"prefix":"/a"}]"#,
            ),
            (
                r#""prefixes": ["/a/", "/b/*"]"#,
                r#"[{"prefix":"/a/"},{"prefix":"/b/"}]"#,
            ),
            (r#""prefixes": ["/"], "tags": ["x"]"#, r#"["all"]"#),
            (r#""urls": ["/*"]"#, r#"["all"]"#),
            (r#""all": true, "tags": ["x"]"#, r#"["all"]"#),
            (r#""tags": [" b ", "a"]"#, r#"[{"tag":"a"},{"tag":"b"}]"#),
        ] {
            let text = format!(r#"{{"site": "www", {written}}}"#);
            assert_eq!(scopes(&text), meant, "{written}");
        }
        let soft = asked(r#"{"site": "any", "all": true, "soft": true, "wait": "none"}"#).unwrap();
        assert!(soft.soft && soft.site == "any");
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        let long = format!(
            r#"{{"site": "www", "tags": ["a", "{}"]}}"#,
            "x".repeat(2_049)
        );
        let grows = format!(r#"{{"site": "www", "urls": ["/{}"]}}"#, "ä".repeat(900));
        let tags = vec!["\"x\""; SCOPES_MAX + 1].join(",");
        let many = format!(r#"{{"site": "www", "urls": ["/"], "tags": [{tags}]}}"#);
        for (text, status, field, words) in [
            ("{", 400, None, "not JSON"),
            ("[]", 422, None, "not an object"),
            ("{}", 422, Some("site"), "missing"),
            (r#"{"site": 3}"#, 422, Some("site"), "invalid type"),
            (
                r#"{"site": "www", "tags": ["a"], "tags": ["b"]}"#,
                422,
                Some("tags"),
                "given twice",
            ),
            (
                r#"{"site": "www", "all": true, "wait": null}"#,
                422,
                Some("wait"),
                "null; leave it out",
            ),
            ("[[1, {}], 2]", 422, None, "not an object"),
            ("-1.5", 422, None, "not an object"),
            ("null", 422, None, "not an object"),
            (
                r#"{"site": "w", "all": true}"#,
                404,
                Some("site"),
                "no site",
            ),
            (r#"{"site": "www"}"#, 422, Some("urls"), "nothing to purge"),
            (
                r#"{"site": "www", "url": ["/"]}"#,
                422,
                Some("url"),
                "no such field",
            ),
            (
                r#"{"site": "www", "urls": "/"}"#,
                422,
                Some("urls"),
                "invalid type",
            ),
            (
                r#"{"site": "www", "all": true, "wait": "some"}"#,
                422,
                Some("wait"),
                "unknown variant",
            ),
            (
                r#"{"site": "www", "urls": ["/", "b"]}"#,
                422,
                Some("urls[1]"),
                "neither",
            ),
            (
                r#"{"site": "www", "urls": ["ftp://www.test/"]}"#,
                422,
                Some("urls[0]"),
                "neither",
            ),
            (
                r#"{"site": "www", "prefixes": ["http://a.any.test/"]}"#,
                422,
                Some("prefixes[0]"),
                "not a host of site \\\"www\\\"",
            ),
            (
                r#"{"site": "www", "prefixes": ["http://www.te"]}"#,
                422,
                Some("prefixes[0]"),
                "not a host",
            ),
            (
                r#"{"site": "www", "urls": ["/a b"]}"#,
                422,
                Some("urls[0]"),
                "a character",
            ),
            (
                r#"{"site": "www", "tags": ["a", ""]}"#,
                422,
                Some("tags[1]"),
                "empty",
            ),
            (
                r#"{"site": "www", "tags": ["a b"]}"#,
                422,
                Some("tags[0]"),
                "no blanks",
            ),
            (&long, 422, Some("tags[1]"), "2049 bytes, more than 2048"),
            (&grows, 422, Some("urls[0]"), "more than 2048"),
            (&many, 413, Some("tags"), "1002 scopes, more than 1000"),
        ] {
            let error = format!("{:?}", asked(text).unwrap_err());
            let short: String = text.chars().take(80).collect();
            assert!(
                error.contains(&format!("status: {status}")),
                "{short}: {error}"
            );
            assert!(
                error.contains(&format!("field: {field:?}")),
                "{short}: {error}"
            );
            assert!(error.contains(words), "{short}: {error}");
        }
    }
}
