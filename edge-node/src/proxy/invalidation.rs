//! Which URLs an unsafe request makes doubtful besides its own: those that its answer names in
//! `Location` and `Content-Location`, if they are of the same origin (RFC 9111 §4.4). Pure.

use cluster::path::without_dot_segments;
use http::{HeaderMap, Uri, header};

/// The path and query of every URL of the same origin that `answer` names, resolved against the
/// request's target (RFC 3986 §5.2). `host` is the request's, as sent.
pub(super) fn named<'a>(
    answer: &'a HeaderMap,
    target: &'a Uri,
    host: &'a str,
) -> impl Iterator<Item = String> + 'a {
    let fields = [header::LOCATION, header::CONTENT_LOCATION];
    let values = fields
        .into_iter()
        .filter_map(|name| answer.get(name)?.to_str().ok());
    values.filter_map(move |reference| resolve(reference, target, host))
}

/// Resolves `reference` against `target`; `None` when it leads to another origin. The scheme does not
/// tell origins apart: who ends TLS in front of this node has one origin under two.
pub(super) fn resolve(reference: &str, target: &Uri, host: &str) -> Option<String> {
    let reference = reference.split('#').next().unwrap_or_default().trim();
    let rest = match reference.split_once(':') {
        Some((scheme, rest)) if !scheme.contains(['/', '?']) => {
            let known = ["http", "https"]
                .iter()
                .any(|s| scheme.eq_ignore_ascii_case(s));
            known
                .then_some(rest)
                .filter(|rest| rest.starts_with("//"))?
        }
        _ => reference,
    };
    let rest = match rest.strip_prefix("//") {
        Some(rest) => {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            if !same_host(&rest[..end], host) {
                return None;
            }
            match &rest[end..] {
                path if path.starts_with('/') => path.to_owned(),
                query => format!("/{query}"),
            }
        }
        None => rest.to_owned(),
    };
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (&rest[..], None),
    };
    let (path, query) = if path.is_empty() {
        (target.path().to_owned(), query.or_else(|| target.query()))
    } else if path.starts_with('/') {
        (without_dots(path), query)
    } else {
        let directory = target
            .path()
            .rfind('/')
            .map_or("", |at| &target.path()[..at]);
        (without_dots(&format!("{directory}/{path}")), query)
    };
    Some(match query {
        Some(query) => format!("{path}?{query}"),
        None => path,
    })
}

/// Whether two authorities are one host and port.
fn same_host(one: &str, other: &str) -> bool {
    let plain = |host: &str| {
        let host = host.to_ascii_lowercase();
        let port = [":80", ":443", ":"]
            .iter()
            .find_map(|port| host.strip_suffix(port));
        port.map_or_else(|| host.clone(), str::to_owned)
    };
    plain(one) == plain(other)
}

/// An absolute path without `.` and `..`.
fn without_dots(path: &str) -> String {
    let plain = without_dot_segments(path.as_bytes()).into_owned();
    String::from_utf8(plain).expect("whole segments of a text are text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_resolved_within_the_origin() {
        let target: Uri = "/a/b/c?x=1".parse().unwrap();
        for (reference, expected) in [
            // RFC 9111 §4.4: the same origin only
            ("http://www.test/new", Some("/new")),
            ("HTTP://WWW.Test:80/new?q", Some("/new?q")),
            ("https://www.test", Some("/")),
            ("http://www.test?q", Some("/?q")),
            ("//www.test/x", Some("/x")),
            ("http://other.test/new", None),
            ("http://www.test:8080/new", None),
            ("//other.test/x", None),
            ("mailto:me@www.test", None),
            ("ftp://www.test/x", None),
            // RFC 3986 §5.4
            ("/new", Some("/new")),
            ("g", Some("/a/b/g")),
            ("item/5", Some("/a/b/item/5")),
            ("./g", Some("/a/b/g")),
            ("g/", Some("/a/b/g/")),
            ("?y", Some("/a/b/c?y")),
            ("g?y", Some("/a/b/g?y")),
            ("#s", Some("/a/b/c?x=1")),
            ("g#s", Some("/a/b/g")),
            ("", Some("/a/b/c?x=1")),
            (".", Some("/a/b/")),
            ("./", Some("/a/b/")),
            ("..", Some("/a/")),
            ("../", Some("/a/")),
            ("../g", Some("/a/g")),
            ("../..", Some("/")),
            ("../../g", Some("/g")),
            ("../../../g", Some("/g")),
            ("/./g", Some("/g")),
            ("/../g", Some("/g")),
            ("..g", Some("/a/b/..g")),
            ("./../g", Some("/a/g")),
            ("g;x=1/../y", Some("/a/b/y")),
            ("g?y/./x", Some("/a/b/g?y/./x")),
            ("g:h/i", None),
            ("./g:h", Some("/a/b/g:h")),
        ] {
            assert_eq!(
                resolve(reference, &target, "www.test").as_deref(),
                expected,
                "{reference}"
            );
        }
    }
}
