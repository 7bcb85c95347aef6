//! Which texts are host patterns: `www.example.com`, `*.example.com`, `*`, or an IPv6 address in brackets.
//! Pure.

use std::net::Ipv6Addr;

/// Longest host name (RFC 1035 §2.3.4, less the dot at its end), and longest label of one.
const HOST_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// Why `host` is no host pattern, as the end of a sentence about it; `None`: it is one.
pub(super) fn host_flaw(host: &str) -> Option<&'static str> {
    let name = host.strip_prefix("*.").unwrap_or(host);
    if host == "*" || bracketed(host).is_some() {
        return None;
    }
    if host.is_empty() {
        return Some("is empty");
    }
    if host.len() > HOST_BYTES_MAX {
        return Some("is longer than 253 characters");
    }
    if host.contains("://") || host.contains('/') {
        return Some("is a URL; only its host is wanted");
    }
    if host.contains(char::is_whitespace) {
        return Some("has a space in it");
    }
    if let Some((_, port)) = host.rsplit_once(':')
        && port.bytes().all(|b| b.is_ascii_digit())
    {
        return Some("has a port; every port is served");
    }
    if host.contains(|c: char| c.is_ascii_uppercase()) {
        return Some("is not in lower case");
    }
    if name.contains('*') {
        return Some("has a \"*\" elsewhere than as its first label");
    }
    if name.is_empty() {
        return Some("names nothing below its \"*.\"");
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Some("has an empty label: two dots in a row, or one at an end");
        }
        if label.len() > LABEL_BYTES_MAX {
            return Some("has a label of more than 63 characters");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Some("has a label that begins or ends with '-'");
        }
        let fits = |b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        if !label.bytes().all(fits) {
            return Some("has other characters than a-z, 0-9, '-' and '_' (write it in Punycode)");
        }
    }
    None
}

fn bracketed(host: &str) -> Option<Ipv6Addr> {
    let inner = host.strip_prefix('[')?.strip_suffix(']')?;
    inner.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_names_and_nothing_else() {
        for good in [
            "a",
            "a.test",
            "*.a.test",
            "*",
            "[::1]",
            "xn--caf-dma.test",
            "_a.test",
            "10.0.0.1",
        ] {
            assert_eq!(host_flaw(good), None, "{good}");
        }
        let long = format!("{}.test", "a.".repeat(130));
        let label = format!("{}.test", "a".repeat(64));
        for (bad, told) in [
            ("", "empty"),
            ("*.", "below"),
            ("a..b", "two dots"),
            (".a", "two dots"),
            ("a.", "two dots"),
            ("a b", "space"),
            (" a.test", "space"),
            ("a.test:80", "port"),
            ("[::1]:80", "port"),
            ("[::g]", "other characters"),
            ("http://a.test", "URL"),
            ("a.test/x", "URL"),
            ("A.test", "lower case"),
            ("a.*.test", "first label"),
            ("*a.test", "first label"),
            ("**", "first label"),
            ("café.test", "Punycode"),
            ("-n.test", "begins or ends"),
            ("*.n-.test", "begins or ends"),
            (&long, "253"),
            (&label, "63"),
        ] {
            let flaw = host_flaw(bad).unwrap_or_default();
            assert!(flaw.contains(told), "{bad:?}: {flaw:?}");
        }
    }
}
