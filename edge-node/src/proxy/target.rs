//! What a request is for: the form of its target, and its one host (RFC 9112 §3.2); and whether there
//! is no doubt about where it ends (§6). Pure.

use http::{HeaderMap, Method, Request, Uri, Version, header, uri::Authority};

use crate::{
    error::{Kind, ServeError},
    serve::framing::Flaw,
};

/// The one host that a request is for: of its target, or else of `Host`.
///
/// # Errors
///
/// A target in a form that its method does not have, or not exactly one valid host.
pub(super) fn host_of<B>(request: &Request<B>) -> Result<String, ServeError> {
    let (uri, version) = (request.uri(), request.version());
    if !fits(request.method(), uri, version) {
        return Err(ServeError::new(Kind::BadTarget, uri));
    }
    let bad = |detail: &str| Err(ServeError::new(Kind::NoHost, detail));
    let mut fields = request.headers().get_all(header::HOST).iter();
    let field = match (fields.next(), fields.next()) {
        (Some(one), None) => match one.to_str().ok().and_then(host) {
            Some(field) => Some(field),
            None => return bad("Host is none"),
        },
        (None, _) => None,
        (Some(_), Some(_)) => return bad("several Hosts"),
    };
    let target = match uri.authority() {
        Some(authority) => match host(authority.as_str()) {
            Some(target) => Some(target),
            None => return bad("the target's host is none"),
        },
        None => None,
    };
    match (target, field) {
        (None, None) => bad("no Host"),
        // Required even when the target names one.
        (Some(_), None) if version == Version::HTTP_11 => bad("no Host"),
        // RFC 9113 §8.3.1: where both are there, they name the same.
        (Some(target), Some(field))
            if version == Version::HTTP_2 && !target.eq_ignore_ascii_case(field) =>
        {
            bad("Host and :authority differ")
        }
        // §3.2.2: a host in the target is the one that counts.
        (Some(host), _) | (None, Some(host)) => Ok(host.to_owned()),
    }
}

/// Refuses a request whose end another server might see elsewhere.
///
/// # Errors
///
/// What the scanner found, and transfer codings other than one `chunked`: hyper would take that one
/// off, and the others would go on unnamed.
pub(super) fn framing(flaw: Option<Flaw>, headers: &HeaderMap) -> Result<(), ServeError> {
    match flaw {
        Some(Flaw::TwoLengths) => return Err(ServeError::new(Kind::AmbiguousLength, "")),
        Some(Flaw::Fragment) => return Err(ServeError::new(Kind::BadTarget, "a fragment")),
        None => {}
    }
    let mut chunked = 0;
    for value in headers.get_all(header::TRANSFER_ENCODING) {
        for coding in value.as_bytes().split(|&b| b == b',') {
            if !coding.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                let detail = String::from_utf8_lossy(coding);
                return Err(ServeError::new(Kind::UnknownCoding, detail));
            }
            chunked += 1;
        }
    }
    match chunked {
        0 | 1 => Ok(()),
        _ => Err(ServeError::new(Kind::AmbiguousLength, "chunked twice")),
    }
}

/// `text`, if it is a host and perhaps a port. What comes before an `@` is for nobody to see
/// (RFC 9110 §4.2.4).
pub(super) fn host(text: &str) -> Option<&str> {
    let is_sound = |authority: Authority| {
        let port = text.strip_prefix(authority.host());
        // `http` does not read what stands behind a host before somebody wants the port.
        let digits = port.map(|port| port.strip_prefix(':').unwrap_or(port));
        !authority.host().is_empty()
            && digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
    };
    text.parse().is_ok_and(is_sound).then_some(text)
}

/// Whether the target has one of the forms that `method` may have. `CONNECT` has its own.
fn fits(method: &Method, uri: &Uri, version: Version) -> bool {
    match (uri.scheme_str(), uri.authority()) {
        (Some(scheme), _) => matches!(scheme, "http" | "https"),
        (None, Some(_)) => version == Version::HTTP_2,
        (None, None) => uri.path() != "*" || method == Method::OPTIONS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(version: Version, line: &str, hosts: &[&str]) -> Result<String, Kind> {
        let (method, target) = line.split_once(' ').unwrap();
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .version(version);
        for host in hosts {
            request = request.header("host", *host);
        }
        host_of(&request.body(()).unwrap()).map_err(|error| error.kind)
    }

    #[test]
    fn chunked_is_the_one_transfer_coding_and_comes_once() {
        // RFC 9112 §6.1
        for (values, expected) in [
            (&[][..], Ok(())),
            (&["chunked"], Ok(())),
            (&["Chunked "], Ok(())),
            (&["chunked, chunked"], Err(Kind::AmbiguousLength)),
            (&["chunked", "chunked"], Err(Kind::AmbiguousLength)),
            (&["gzip, chunked"], Err(Kind::UnknownCoding)),
            (&["gzip", "chunked"], Err(Kind::UnknownCoding)),
            (&["chunked;x=1"], Err(Kind::UnknownCoding)),
            (&[""], Err(Kind::UnknownCoding)),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::TRANSFER_ENCODING, value.parse().unwrap());
            }
            let found = framing(None, &headers).map_err(|error| error.kind);
            assert_eq!(found, expected, "{values:?}");
        }
    }

    #[test]
    fn a_request_is_for_one_host() {
        let (old, one, two) = (Version::HTTP_10, Version::HTTP_11, Version::HTTP_2);
        for (version, line, hosts, expected) in [
            // RFC 9112 §3.2
            (one, "GET /", &["a.test"][..], Ok("a.test")),
            (one, "GET /", &["a.test:8080"], Ok("a.test:8080")),
            (one, "GET /", &["[2001:db8::1]:80"], Ok("[2001:db8::1]:80")),
            (one, "GET /", &[], Err(Kind::NoHost)),
            (old, "GET /", &[], Err(Kind::NoHost)),
            (one, "GET /", &["a.test", "a.test"], Err(Kind::NoHost)),
            (one, "GET /", &[""], Err(Kind::NoHost)),
            (one, "GET /", &["user@a.test"], Err(Kind::NoHost)),
            (one, "GET /", &["a.test/path"], Err(Kind::NoHost)),
            (one, "GET /", &["a.test b.test"], Err(Kind::NoHost)),
            (one, "GET /", &["a.test, b.test"], Err(Kind::NoHost)),
            (one, "GET /", &["http://a.test"], Err(Kind::NoHost)),
            (one, "GET /", &["a.test?q"], Err(Kind::NoHost)),
            (one, "GET /", &[":80"], Err(Kind::NoHost)),
            (one, "GET /", &["a.test:"], Ok("a.test:")),
            (one, "GET /", &["a.test:abc"], Err(Kind::NoHost)),
            (one, "GET /", &["[2001:db8::1]x"], Err(Kind::NoHost)),
            // §3.2.2
            (one, "GET http://a.test/x", &["b.test"], Ok("a.test")),
            (one, "GET HTTPS://a.test/", &["a.test"], Ok("a.test")),
            (one, "GET http://a.test/", &[], Err(Kind::NoHost)),
            (one, "GET http://a.test/", &["b.test/"], Err(Kind::NoHost)),
            (
                one,
                "GET http://a.test/",
                &["b", "a.test"],
                Err(Kind::NoHost),
            ),
            (
                one,
                "GET http://u:p@a.test/",
                &["a.test"],
                Err(Kind::NoHost),
            ),
            (old, "GET http://a.test/", &[], Ok("a.test")),
            (one, "GET ftp://a.test/", &["a.test"], Err(Kind::BadTarget)),
            // §3.2.3
            (one, "GET a.test", &["a.test"], Err(Kind::BadTarget)),
            (one, "GET a.test:80", &["a.test"], Err(Kind::BadTarget)),
            // §3.2.4
            (one, "OPTIONS *", &["a.test"], Ok("a.test")),
            (one, "GET *", &["a.test"], Err(Kind::BadTarget)),
            // RFC 9113 §8.3.1
            (two, "GET http://a.test/", &[], Ok("a.test")),
            (two, "GET http://a.test/", &["A.test"], Ok("a.test")),
            (two, "GET http://a.test/", &["b.test"], Err(Kind::NoHost)),
        ] {
            assert_eq!(
                host(version, line, hosts),
                expected.map(str::to_owned),
                "{version:?} {line} {hosts:?}"
            );
        }
    }
}
