//! `Cache-Status`: what this cache did with a request, for whoever wonders (RFC 9211).

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};

/// The field's name.
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Largest integer of a structured field, in either direction (RFC 9651 §3.3.1).
const INTEGER_MAX: i64 = 999_999_999_999_999;

/// Longest text of most: one allocation instead of several.
const TEXT_BYTES_USUAL: usize = 160;

/// One cache's account of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheStatus<'a> {
    /// Which cache: the node's name.
    pub node: &'a str,
    /// What it did.
    pub handled: Handled,
    /// For how many more seconds the response is fresh; negative when it is stale (§2.5).
    pub ttl_s: Option<i64>,
    /// The cache key (§2.7).
    pub key: Option<&'a str>,
    /// Anything else: `peer:<id>` or `origin`, where the bytes came from, or what went wrong
    /// (§2.8).
    pub detail: Option<&'a str>,
}

/// Hit or miss, or neither; never both (§2.1, §2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// Answered from what is stored, without asking anybody.
    Hit,
    /// Answered by the cache itself, from nothing that is stored, and without asking anybody.
    Generated,
    /// Somebody else was asked.
    Forwarded {
        /// Why.
        why: Fwd,
        /// Status code of the next hop's answer, where it is not the one sent on (§2.3).
        status: Option<u16>,
        /// Whether that answer is now stored (§2.6).
        stored: bool,
        /// Whether the request waited for another one's answer (§2.6).
        collapsed: bool,
    },
}

/// Why a request went on to the next hop (§2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fwd {
    /// The cache is configured not to handle it.
    Bypass,
    /// Its method has to go on.
    Method,
    /// Nothing is stored for the URL.
    UriMiss,
    /// Something is stored for the URL, but not for these request fields.
    VaryMiss,
    /// Nothing is stored, and it is not known which of the two it is.
    Miss,
    /// Something fresh is stored, but the request does not want it.
    Request,
    /// Something is stored, but it is stale.
    Stale,
    /// Something is stored, but not all of what was asked for.
    Partial,
}

impl Fwd {
    /// Its token.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Miss => "miss",
            Self::Request => "request",
            Self::Stale => "stale",
            Self::Partial => "partial",
        }
    }
}

impl CacheStatus<'_> {
    /// The member as a field value.
    pub fn value(&self) -> HeaderValue {
        let mut text = Vec::with_capacity(TEXT_BYTES_USUAL);
        self.write(&mut text);
        HeaderValue::try_from(text).expect("strings hold printable ASCII only")
    }

    /// Writes the same behind what stands in `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut digits = itoa::Buffer::new();
        let mut push = |parts: &[&str]| {
            for part in parts {
                out.extend_from_slice(part.as_bytes());
            }
        };
        match is_token(self.node) {
            true => push(&[self.node]),
            false => push(&["\"", &in_string(self.node), "\""]),
        }
        match self.handled {
            Handled::Hit => push(&["; hit"]),
            Handled::Generated => {}
            Handled::Forwarded {
                why,
                status,
                stored,
                collapsed,
            } => {
                push(&["; fwd=", why.as_str()]);
                if let Some(status) = status {
                    push(&["; fwd-status=", digits.format(status)]);
                }
                if stored {
                    push(&["; stored"]);
                }
                if collapsed {
                    push(&["; collapsed"]);
                }
            }
        }
        if let Some(ttl_s) = self.ttl_s {
            let ttl_s = ttl_s.clamp(-INTEGER_MAX, INTEGER_MAX);
            push(&["; ttl=", digits.format(ttl_s)]);
        }
        for (name, value) in [("; key=\"", self.key), ("; detail=\"", self.detail)] {
            if let Some(value) = value {
                push(&[name, &in_string(value), "\""]);
            }
        }
    }

    /// Appends the member behind those of the caches nearer to the origin (§2).
    pub fn append_to(&self, response: &mut HeaderMap) {
        response.append(CACHE_STATUS, self.value());
    }
}

/// Whether a text can be written as a token (RFC 9651 §3.3.4).
pub fn is_token(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b":/!#$%&'*+-.^_`|~".contains(&b);
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '*') && text.bytes().all(inner)
}

/// What stands between the quotes of a string (RFC 9651 §3.3.3); characters that one cannot hold become `?`.
fn in_string(value: &str) -> Cow<'_, str> {
    let is_plain = |b: u8| matches!(b, b' '..=b'~') && b != b'"' && b != b'\\';
    if value.bytes().all(is_plain) {
        return Cow::Borrowed(value);
    }
    let mut text = String::with_capacity(value.len() + 2);
    for c in value.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            ' '..='~' => text.push(c),
            _ => text.push('?'),
        }
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn forwarded(why: Fwd) -> Handled {
        Handled::Forwarded {
            why,
            status: None,
            stored: false,
            collapsed: false,
        }
    }

    fn of(node: &str, handled: Handled) -> CacheStatus<'_> {
        CacheStatus {
            node,
            handled,
            ttl_s: None,
            key: None,
            detail: None,
        }
    }

    #[test]
    fn members_are_written_as_the_contract_has_them() {
        let stored = Handled::Forwarded {
            why: Fwd::UriMiss,
            status: None,
            stored: true,
            collapsed: false,
        };
        let all = Handled::Forwarded {
            why: Fwd::Stale,
            status: Some(304),
            stored: true,
            collapsed: true,
        };
        for (status, expected) in [
            (
                CacheStatus {
                    ttl_s: Some(376),
                    ..of("edge-1", Handled::Hit)
                },
                "edge-1; hit; ttl=376",
            ),
            (
                CacheStatus {
                    ttl_s: Some(-412),
                    ..of("edge-1", Handled::Hit)
                },
                "edge-1; hit; ttl=-412",
            ),
            (
                CacheStatus {
                    detail: Some("peer:edge-2"),
                    ..of("edge-1", stored)
                },
                "edge-1; fwd=uri-miss; stored; detail=\"peer:edge-2\"",
            ),
            (
                CacheStatus {
                    ttl_s: Some(60),
                    key: Some("00ff"),
                    detail: Some("origin"),
                    ..of("edge-1", all)
                },
                "edge-1; fwd=stale; fwd-status=304; stored; collapsed; ttl=60; key=\"00ff\"; \
                 detail=\"origin\"",
            ),
            (of("*x", forwarded(Fwd::Bypass)), "*x; fwd=bypass"),
            (
                CacheStatus {
                    detail: Some("only-if-cached"),
                    ..of("edge-1", Handled::Generated)
                },
                "edge-1; detail=\"only-if-cached\"",
            ),
            // RFC 9211 §2: a name that is no token is a string.
            (of("1edge", Handled::Hit), "\"1edge\"; hit"),
            (
                of("CDN \"Co\" \\é\n", Handled::Hit),
                "\"CDN \\\"Co\\\" \\\\??\"; hit",
            ),
            (of("", forwarded(Fwd::VaryMiss)), "\"\"; fwd=vary-miss"),
            (
                CacheStatus {
                    ttl_s: Some(i64::MIN),
                    ..of("a", Handled::Hit)
                },
                "a; hit; ttl=-999999999999999",
            ),
        ] {
            assert_eq!(status.value(), expected);
        }
        let tokens = [Fwd::Method, Fwd::Miss, Fwd::Request, Fwd::Partial].map(Fwd::as_str);
        assert_eq!(tokens, ["method", "miss", "request", "partial"]);
    }

    #[test]
    fn it_is_appended_to_what_other_caches_said() {
        let mut headers = HeaderMap::new();
        headers.append(CACHE_STATUS, HeaderValue::from_static("shield; hit"));
        of("edge", forwarded(Fwd::Miss)).append_to(&mut headers);
        let lines: Vec<_> = headers.get_all(CACHE_STATUS).iter().collect();
        assert_eq!(lines, ["shield; hit", "edge; fwd=miss"]);
    }

    proptest! {
        #[test]
        fn any_text_can_be_said(node: String, detail: String, ttl_s: i64) {
            let status = CacheStatus {
                ttl_s: Some(ttl_s),
                detail: Some(&detail),
                ..of(&node, Handled::Hit)
            };
            prop_assert!(status.value().to_str().is_ok());
        }
    }
}
