//! What goes on to the origin: the client's request without what was meant for this hop, and with
//! what the origin may want to know about the hops before it. Pure.

use std::net::{IpAddr, Ipv4Addr};

use cluster::{
    node::NodeId,
    site::privacy::{ClientAddress, Privacy},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};

use crate::cache::policy;

/// This CDN's name in `CDN-Loop` (RFC 8586).
const CDN_ID: &str = "geo-cdn";
const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Fields that make a request conditional or partial, or announce content. A fill fetches the whole
/// object for everybody, so they stay here.
const SELECTIVE: [HeaderName; 7] = [
    header::EXPECT,
    header::RANGE,
    header::IF_RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
];

/// Other fields by which clients tell origins of another host, scheme, target or method than those of the
/// request. An answer that is for everybody must not depend on what one client says in them.
const OVERRIDING: [&str; 9] = [
    "forwarded",
    "x-host",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-host",
    "x-original-url",
    "x-real-ip",
    "x-rewrite-url",
];

/// Fields in which proxies tell the client's address to whoever is behind them.
const TELLING_ADDRESS: [&str; 9] = [
    "cf-connecting-ip",
    "fastly-client-ip",
    "forwarded",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-forwarded-for",
    "x-original-forwarded-for",
    "x-real-ip",
];

/// How many fields [`add_hop`] adds.
const FIELDS_ADDED: usize = 6;

/// How a request reached this node.
#[derive(Clone, Copy, Debug)]
pub struct Hop<'a> {
    /// This node.
    pub me: &'a NodeId,
    /// The client's address; unspecified where there is none.
    pub client: IpAddr,
    /// The host the client asked for, as it wrote it.
    pub host: &'a str,
    /// The protocol version of the client's request.
    pub version: Version,
}

/// Whether the request has been through this node before (RFC 8586 §3).
pub fn is_loop(headers: &HeaderMap, me: &NodeId) -> bool {
    let mine = loop_member(me);
    headers
        .get_all(CDN_LOOP)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|member| member.trim() == mine)
}

/// Says in `headers` that the request has been through this node.
pub fn join_loop(headers: &mut HeaderMap, me: &NodeId) {
    append_to_list(headers, CDN_LOOP, loop_member(me));
}

fn loop_member(me: &NodeId) -> String {
    [CDN_ID, "; node=", me.as_str()].concat()
}

/// Drops what the origin is not to learn of the client; see [`hop_client`] for the address.
pub fn conceal(headers: &mut HeaderMap, privacy: &Privacy) {
    if *privacy == Privacy::default() {
        return;
    }
    policy::fields::remove(headers, |name| {
        let name = name.as_str();
        let tells_agent = || name == "user-agent" || name.starts_with("sec-ch-ua");
        !privacy.user_agent && tells_agent()
            || !privacy.referer && name == "referer"
            || !privacy.cookies && name == "cookie"
            || privacy.client_address != ClientAddress::Full && TELLING_ADDRESS.contains(&name)
    });
}

/// What the origin learns of the client's address; unspecified for nothing.
pub fn hop_client(client: IpAddr, privacy: &Privacy) -> IpAddr {
    let told = privacy.client_address.told(client);
    told.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

/// Adds this hop to `headers`, which hold no hop-by-hop fields any more: `Via` (RFC 9110 §7.6.3),
/// `Forwarded` (RFC 7239) and its older relatives, and `CDN-Loop`.
pub fn add_hop(headers: &mut HeaderMap, hop: &Hop<'_>) {
    let client = hop.client.to_canonical();
    headers.reserve(FIELDS_ADDED);
    let node = match client {
        // RFC 7239 §6.2: nobody asked for it.
        address if address.is_unspecified() => "unknown".to_owned(),
        IpAddr::V4(address) => address.to_string(),
        // RFC 7239 §6: an IPv6 address is bracketed and so must be quoted.
        IpAddr::V6(address) => format!("\"[{address}]\""),
    };
    let host = hop.host.replace(['"', '\\'], "");
    append_to_list(
        headers,
        FORWARDED,
        format!("for={node};host=\"{host}\";proto=http"),
    );
    if !client.is_unspecified() {
        append_to_list(headers, X_FORWARDED_FOR, client.to_string());
    }
    // What a client says of its own protocol and host is no more true than what it sends.
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    set(headers, X_FORWARDED_HOST, hop.host);
    append_to_list(headers, header::VIA, via(hop.version, hop.me));
    join_loop(headers, hop.me);
}

/// One member of `Via` for a message received with `version`.
pub fn via(version: Version, me: &NodeId) -> String {
    let version = match version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    };
    [version, " ", me.as_str()].concat()
}

/// What this node can be asked for; by the origin's leave, as every other method.
pub const ALLOW: HeaderValue =
    HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// How often a request may still be forwarded (RFC 9110 §7.6.2). `None`: no limit, or none that can
/// be read.
pub fn forwards_left(method: &Method, headers: &HeaderMap) -> Option<u64> {
    if !matches!(*method, Method::OPTIONS | Method::TRACE) {
        return None;
    }
    let mut values = headers.get_all(header::MAX_FORWARDS).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let digits = value.to_str().ok()?;
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    // More than fits is more than any path is long.
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

/// Whether who sent this takes trailers (RFC 9110 §10.1.4).
pub fn takes_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|member| member.trim().eq_ignore_ascii_case("trailers"))
}

/// Makes the fields of a client's request those of a request for everybody: drops what selects a part of
/// an object, or an object only under a condition, and what speaks of another target than the one whose
/// key the answer is stored under.
pub fn make_whole(headers: &mut HeaderMap) {
    policy::fields::remove(headers, |name| {
        SELECTIVE.contains(name)
            || OVERRIDING.contains(&name.as_str())
            || name.as_str().starts_with("x-forwarded-")
    });
}

/// Whether a request selects a part of an object, or an object only under a condition.
pub fn is_selective(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| SELECTIVE.contains(name))
}

/// Whether a field of this name, in any case, makes its request selective ([`is_selective`]).
pub fn selects(name: &str) -> bool {
    SELECTIVE
        .iter()
        .any(|field| name.eq_ignore_ascii_case(field.as_str()))
}

/// Makes one field of cookies that HTTP/2 carries in several (RFC 9113 §8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut lines = headers.get_all(header::COOKIE).iter();
    if let (Some(_), Some(_)) = (lines.next(), lines.next()) {
        let lines: Vec<_> = headers
            .get_all(header::COOKIE)
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
            headers.insert(header::COOKIE, joined);
        }
    }
}

/// What becomes of a field of a plain request ([`crate::serve::quick::Plain`]) that fetches for everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onward {
    /// It goes on as it came.
    Same,
    /// It is `Host`, and names the host that the origin knows.
    Host,
    /// It stays here.
    Stays,
    /// More has to be known of the request than this field.
    Other,
}

/// What becomes of a field of this name, in any case; what [`make_whole`] and [`add_hop`] would do.
pub fn onward(name: &str) -> Onward {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    let begins = |with: &str| {
        name.get(..with.len())
            .is_some_and(|b| b.eq_ignore_ascii_case(with))
    };
    let is_other = match name.as_bytes().first().map(u8::to_ascii_lowercase) {
        Some(b'h') if is("host") => return Onward::Host,
        Some(b'c') if is("connection") => return Onward::Stays,
        Some(b'c') => is("cdn-loop"),
        Some(b'f') => is("forwarded"),
        Some(b'h') => is("http2-settings"),
        Some(b'p') => begins("proxy-"),
        Some(b'v') => is("via"),
        Some(b'x') => begins("x-forwarded-") || OVERRIDING.into_iter().any(is),
        Some(b'e' | b'i' | b'r') => selects(name),
        Some(b'k' | b't' | b'u') => ["keep-alive", "te", "transfer-encoding", "upgrade"]
            .into_iter()
            .any(is),
        Some(_) => false,
        None => true,
    };
    if is_other {
        Onward::Other
    } else {
        Onward::Same
    }
}

/// Adds `member` to the comma-separated list `name`, as one field.
pub fn append_to_list(headers: &mut HeaderMap, name: HeaderName, member: String) {
    let mut list: Vec<u8> = Vec::new();
    for value in headers.get_all(&name) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    // Mostly it is the first.
    let list = if list.is_empty() {
        member.into_bytes()
    } else {
        list.extend_from_slice(member.as_bytes());
        list
    };
    if let Ok(value) = HeaderValue::try_from(list) {
        headers.insert(name, value);
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(me: &NodeId, client: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(X_FORWARDED_FOR, HeaderValue::from_static("10.0.0.9"));
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("https"));
        headers.append(header::VIA, HeaderValue::from_static("1.1 a"));
        headers.append(header::VIA, HeaderValue::from_static("1.1 b"));
        let client = client.parse().unwrap();
        add_hop(
            &mut headers,
            &Hop {
                me,
                client,
                host: "www.test:8080",
                version: Version::HTTP_2,
            },
        );
        headers
    }

    #[test]
    fn a_field_goes_on_as_it_came_if_nothing_would_become_of_it_anyway() {
        let me: NodeId = "edge-1".parse().unwrap();
        let ours = hop(&me, "192.0.2.7");
        for (name, expected) in [
            ("Accept", Onward::Same),
            ("cookie", Onward::Same),
            ("X-Requested-With", Onward::Same),
            ("x-forward", Onward::Same),
            ("Referer", Onward::Same),
            ("trailer", Onward::Same),
            ("HOST", Onward::Host),
            ("Connection", Onward::Stays),
            ("", Onward::Other),
            ("Via", Onward::Other),
            ("CDN-Loop", Onward::Other),
            ("TE", Onward::Other),
            ("X-Forwarded-Port", Onward::Other),
            ("proxy-authenticate", Onward::Other),
            ("Proxy-Anything", Onward::Other),
        ] {
            assert_eq!(onward(name), expected, "{name}");
        }
        // Whatever is stripped, dropped or written by this node.
        let hop_by_hop = "connection http2-settings keep-alive proxy-authenticate te upgrade \
                          proxy-authentication-info proxy-authorization proxy-connection \
                          transfer-encoding";
        let selective = SELECTIVE.iter().map(HeaderName::as_str);
        let names = hop_by_hop.split(' ').chain(selective).chain(OVERRIDING);
        for name in names.chain(ours.keys().map(HeaderName::as_str)) {
            assert_ne!(onward(name), Onward::Same, "{name}");
            assert_ne!(onward(&name.to_uppercase()), Onward::Same, "{name}");
        }
    }

    #[test]
    fn the_origin_learns_of_every_hop() {
        let me: NodeId = "edge-1".parse().unwrap();
        let headers = hop(&me, "192.0.2.7");
        assert_eq!(headers["x-forwarded-for"], "10.0.0.9, 192.0.2.7");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-forwarded-host"], "www.test:8080");
        assert_eq!(
            headers["forwarded"],
            "for=192.0.2.7;host=\"www.test:8080\";proto=http"
        );
        assert_eq!(headers["via"], "1.1 a, 1.1 b, 2 edge-1");
        assert_eq!(headers["cdn-loop"], "geo-cdn; node=edge-1");
        let headers = hop(&me, "2001:db8::1");
        assert!(
            headers["forwarded"]
                .to_str()
                .unwrap()
                .starts_with("for=\"[2001:db8::1]\"")
        );
    }

    #[test]
    fn the_origin_learns_of_a_client_what_the_site_lets_it() {
        let sent = [
            ("user-agent", "browser"),
            ("sec-ch-ua-platform", "x"),
            ("referer", "http://a.test/secret"),
            ("cookie", "session=1"),
            ("x-forwarded-for", "192.0.2.7"),
            ("forwarded", "for=192.0.2.7"),
            ("x-real-ip", "192.0.2.7"),
            ("accept", "*/*"),
        ];
        let left = |text: &str, client: &str| {
            let privacy: Privacy = toml::from_str(text).unwrap();
            let mut headers = HeaderMap::new();
            for (name, value) in sent {
                headers.insert(name, HeaderValue::from_static(value));
            }
            conceal(&mut headers, &privacy);
            let mut names: Vec<_> = headers
                .keys()
                .map(|name| name.as_str().to_owned())
                .collect();
            names.sort_unstable();
            (
                names.join(" "),
                hop_client(client.parse().unwrap(), &privacy).to_string(),
            )
        };
        let all = "accept cookie forwarded referer sec-ch-ua-platform user-agent x-forwarded-for x-real-ip";
        for (text, names, client) in [
            ("", all, "198.51.100.9"),
            (
                "client_address = 'truncated'",
                "accept cookie referer sec-ch-ua-platform user-agent",
                "198.51.100.0",
            ),
            (
                "client_address = 'none'\nuser_agent = false",
                "accept cookie referer",
                "0.0.0.0",
            ),
            (
                "cookies = false\nreferer = false",
                "accept forwarded sec-ch-ua-platform user-agent x-forwarded-for x-real-ip",
                "198.51.100.9",
            ),
        ] {
            assert_eq!(
                left(text, "198.51.100.9"),
                (names.to_owned(), client.to_owned()),
                "{text}"
            );
        }
        assert_eq!(
            left("client_address = 'truncated'", "2001:db8:1:2::3").1,
            "2001:db8:1::"
        );
    }

    #[test]
    fn max_forwards_counts_for_options_and_trace() {
        // RFC 9110 §7.6.2
        for (method, values, left) in [
            (Method::OPTIONS, &["0"][..], Some(0)),
            (Method::TRACE, &["0012"], Some(12)),
            (
                Method::OPTIONS,
                &["99999999999999999999999"],
                Some(u64::MAX),
            ),
            (Method::OPTIONS, &[], None),
            (Method::OPTIONS, &["-1"], None),
            (Method::OPTIONS, &["+1"], None),
            (Method::OPTIONS, &["1, 2"], None),
            (Method::OPTIONS, &["1", "1"], None),
            (Method::OPTIONS, &["one"], None),
            (Method::OPTIONS, &[""], None),
            (Method::GET, &["0"], None),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::MAX_FORWARDS, HeaderValue::from_static(value));
            }
            assert_eq!(
                forwards_left(&method, &headers),
                left,
                "{method} {values:?}"
            );
        }
    }

    #[test]
    fn a_request_that_was_here_before_is_a_loop() {
        let me: NodeId = "edge-1".parse().unwrap();
        let headers = hop(&me, "192.0.2.7");
        assert!(is_loop(&headers, &me));
        assert!(!is_loop(&headers, &"edge-2".parse().unwrap()));
        assert!(!is_loop(&HeaderMap::new(), &me));
    }
}
