//! Cache keys: from a canonical request to the name of its object, and on to that of a variant.

use std::borrow::Cow;

use cluster::{
    key::Key,
    purge::Named,
    site::{Site, rules::QueryRule},
};
use http::{HeaderMap, HeaderName};

use super::{
    cookie::cookies,
    percent::{decoded, is_unreserved, is_well_encoded, octet},
};

/// What of a request names an object besides its host and path: a site's rules, compiled.
#[derive(Clone, Debug, Default)]
pub struct KeyRules {
    /// `None`: the query counts as sent.
    query: Option<QueryRule>,
    headers: Vec<HeaderName>,
    cookies: Vec<Vec<u8>>,
}

impl KeyRules {
    /// Whether one URL has several keys, by what a request's fields and cookies say.
    pub fn splits(&self) -> bool {
        !self.headers.is_empty() || !self.cookies.is_empty()
    }

    /// The rules by which a URL has one key: the name of all that it has.
    pub fn unsplit(&self) -> Self {
        Self {
            query: self.query.clone(),
            ..Self::default()
        }
    }

    /// What is left of a query (what is behind the `?`) in a key; what is left of nothing is nothing.
    pub fn query_of(&self, query: &str) -> Vec<u8> {
        let sent = ["/?", query].concat();
        let mut target = canonical(sent.as_bytes());
        if let Some(rule) = &self.query {
            target = Cow::Owned(with_ruled_query(&target, rule));
        }
        let question = target.iter().position(|b| *b == b'?');
        question.map_or_else(Vec::new, |at| target[at + 1..].to_vec())
    }

    /// The rules of `site`, which has been checked.
    pub fn of(site: &Site) -> Self {
        let names = site.key.headers.iter();
        let cookies = site.key.cookies.iter();
        Self {
            query: (site.query != QueryRule::default()).then(|| site.query.clone()),
            headers: names.filter_map(|name| name.parse().ok()).collect(),
            cookies: cookies.map(|name| name.as_bytes().to_vec()).collect(),
        }
    }
}

/// The key of what `site` answers to GET for `path_and_query` under `host` (as the site map gives
/// it: lower case, no port), to a request with these header fields.
///
/// The path and the query count as sent, except for what RFC 3986 §6.2.2 calls equivalent without
/// asking the server: the case of hex digits in percent-encodings and the encoding of unreserved
/// characters; an empty path is `/`, and a fragment does not count. Dot segments do count: they go
/// to the origin as sent, and an origin may tell `/a/../b` from `/b`; treating equals as different
/// costs a second copy, treating different ones as equal would serve the wrong one.
pub fn key(
    site: &str,
    host: &str,
    path_and_query: &str,
    headers: &HeaderMap,
    rules: &KeyRules,
) -> Key {
    let target = named_target(path_and_query, rules);
    if rules.headers.is_empty() && rules.cookies.is_empty() {
        return Key::of(&[site.as_bytes(), host.as_bytes(), &target]);
    }
    // A name, then for each of its values a sign and the value; cookies behind a sign of their own.
    // No name is such a sign, so the list can be read in one way only.
    let mut parts = vec![site.as_bytes(), host.as_bytes(), &target];
    for name in &rules.headers {
        parts.push(name.as_str().as_bytes());
        let values = headers.get_all(name).iter();
        parts.extend(values.flat_map(|value| [&b"="[..], value.as_bytes()]));
    }
    parts.push(b";");
    for own in &rules.cookies {
        parts.push(own);
        let values = cookies(headers).filter(|(name, _)| name == own);
        parts.extend(values.flat_map(|(_, value)| [&b"="[..], value]));
    }
    Key::of(&parts)
}

/// A path and query as they stand in keys.
pub fn named_target<'t>(path_and_query: &'t str, rules: &KeyRules) -> Cow<'t, [u8]> {
    let target = canonical(path_and_query.as_bytes());
    match &rules.query {
        Some(rule) => Cow::Owned(with_ruled_query(&target, rule)),
        None => target,
    }
}

/// A path and query as purges name them, where the site's rules are these; `None`: they are not known.
pub fn named(path_and_query: &str, rules: Option<&KeyRules>) -> Named {
    let canonical = canonical(path_and_query.as_bytes()).into_owned();
    match rules.map(|rules| &rules.query) {
        None => Named::Unknown(canonical),
        Some(None) => Named::AsSent(canonical),
        Some(Some(rule)) => Named::Ruled {
            ruled: with_ruled_query(&canonical, rule),
            canonical,
        },
    }
}

/// The path of a target in the form in which it is named; what is the same object has the same.
pub fn canonical_path(path: &[u8]) -> Cow<'_, [u8]> {
    canonical(path)
}

/// A canonical target with only those parameters that name an object. Parameters of one name keep
/// their order, for which of them an origin takes is its own business.
fn with_ruled_query(target: &[u8], rule: &QueryRule) -> Vec<u8> {
    let Some(question) = target.iter().position(|b| *b == b'?') else {
        return target.to_vec();
    };
    let (path, query) = (&target[..question], &target[question + 1..]);
    let counts = |name: &[u8]| match &rule.only {
        Some(only) => only.iter().any(|pattern| pattern.fits(name)),
        None => !rule.ignore.iter().any(|pattern| pattern.fits(name)),
    };
    let named = query
        .split(|b| *b == b'&')
        .map(|sent| (name_of(sent), sent));
    let mut kept: Vec<_> = named.filter(|(name, _)| counts(name)).collect();
    if rule.sort {
        kept.sort_by(|(a, _), (b, _)| a.cmp(b));
    }
    let mut ruled = path.to_vec();
    for (n, (_, sent)) in kept.iter().enumerate() {
        ruled.push(if n == 0 { b'?' } else { b'&' });
        ruled.extend_from_slice(sent);
    }
    ruled
}

/// A parameter's name as forms encode it (WHATWG URL §5.1).
fn name_of(parameter: &[u8]) -> Cow<'_, [u8]> {
    let end = parameter.iter().position(|b| *b == b'=');
    let name = &parameter[..end.unwrap_or(parameter.len())];
    if !name.contains(&b'+') {
        return decoded(name);
    }
    let spaced: Vec<u8> = name
        .iter()
        .map(|b| if *b == b'+' { b' ' } else { *b })
        .collect();
    Cow::Owned(decoded(&spaced).into_owned())
}

/// The key of one variant of `primary`: the one selected by these values
/// ([`super::vary::normal_values`]). `salt` tells apart what else must not share a name.
pub fn variant_key(primary: Key, salt: u64, fields: &[(String, Option<Vec<u8>>)]) -> Key {
    let (primary, salt) = (primary.0.to_le_bytes(), salt.to_le_bytes());
    let mut parts: Vec<&[u8]> = vec![&primary, &salt];
    for (name, value) in fields {
        parts.push(name.as_bytes());
        match value {
            Some(value) => parts.extend([&b"="[..], value]),
            None => parts.push(b""),
        }
    }
    Key::of(&parts)
}

/// The key of a slice of `whole`: its piece of this number, kept as an object of its own.
pub fn slice_key(whole: Key, piece: u32) -> Key {
    Key::of(&[b"slice", &whole.0.to_le_bytes(), &piece.to_le_bytes()])
}

/// The form in which a path and query are named. Where a percent sign is not followed by two hex
/// digits nothing is decoded, or `%%411` would become `%A1`, which is another path.
fn canonical(sent: &[u8]) -> Cow<'_, [u8]> {
    let end = sent.iter().position(|b| *b == b'#');
    let sent = &sent[..end.unwrap_or(sent.len())];
    let encoded = sent.contains(&b'%') && is_well_encoded(sent);
    let pathless = matches!(sent, [] | [b'?', ..]);
    if !encoded && !pathless {
        return Cow::Borrowed(sent);
    }
    let mut plain = Vec::with_capacity(sent.len() + 1);
    if pathless {
        plain.push(b'/');
    }
    let mut rest = sent;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'%', [high, low, tail @ ..]) if encoded => {
                match octet(*high, *low) {
                    Some(byte) if is_unreserved(byte) => plain.push(byte),
                    _ => plain.extend([b'%', high.to_ascii_uppercase(), low.to_ascii_uppercase()]),
                }
                rest = tail;
            }
            _ => plain.push(*first),
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use http::header;
    use proptest::prelude::*;

    use super::*;

    /// The key under no rules.
    fn key(site: &str, host: &str, target: &str) -> Key {
        super::key(site, host, target, &HeaderMap::new(), &KeyRules::default())
    }

    fn rule(text: &str) -> QueryRule {
        toml::from_str(text).unwrap()
    }

    fn ruled(target: &str, rule: &QueryRule) -> String {
        let ruled = with_ruled_query(&canonical(target.as_bytes()), rule);
        String::from_utf8(ruled).unwrap()
    }

    fn rules(text: &str) -> KeyRules {
        let mut site = Site::new("a", &["*"], &["http://o"]);
        site.key = toml::from_str(text).unwrap();
        KeyRules::of(&site)
    }

    fn text(sent: &str) -> String {
        String::from_utf8(canonical(sent.as_bytes()).into_owned()).unwrap()
    }

    #[test]
    fn only_what_is_equivalent_without_asking_is_the_same() {
        for (sent, canonical) in [
            ("/a/b?c=d", "/a/b?c=d"),
            ("", "/"), // RFC 3986 §6.2.3
            ("?q", "/?q"),
            ("*", "*"),
            ("/a#b", "/a"),
            ("#b", "/"),
            ("/%61%2D%2e%5f%7E", "/a-._~"),     // §6.2.2.2
            ("/%3a%2f%c3%a9", "/%3A%2F%C3%A9"), // §6.2.2.1
            ("/?a=%41&b=%26", "/?a=A&b=%26"),
            ("/A", "/A"),
            ("/a/../b/./c//d", "/a/../b/./c//d"),
            ("/%2541", "/%2541"),
            ("/%%411", "/%%411"),
            ("/%41%4", "/%41%4"),
            ("/%4g%41", "/%4g%41"),
            ("?%41%", "/?%41%"),
            ("/a?", "/a?"),
        ] {
            assert_eq!(text(sent), canonical, "{sent}");
        }
    }

    #[test]
    fn keys_differ_where_requests_do() {
        let one = key("www", "a.test", "/x");
        assert_eq!(one, key("www", "a.test", "/%78"));
        for other in [
            key("api", "a.test", "/x"),
            key("www", "b.test", "/x"),
            key("www", "a.test", "/X"),
            key("www", "a.test", "/x?"),
            key("wwwa", ".test", "/x"),
        ] {
            assert_ne!(one, other);
        }
        let field = |name: &str, value: Option<&str>| {
            vec![(name.to_owned(), value.map(|v| v.as_bytes().to_vec()))]
        };
        let variants = [
            variant_key(one, 0, &[]),
            variant_key(one, 1, &[]),
            variant_key(one, 0, &field("a", None)),
            variant_key(one, 0, &field("a", Some(""))),
            variant_key(one, 0, &field("a", Some("b"))),
            variant_key(one, 0, &field("b", Some("b"))),
            variant_key(one, 0, &[field("a", None), field("b", None)].concat()),
            one,
        ];
        for (n, a) in variants.iter().enumerate() {
            assert!(variants[..n].iter().all(|b| a != b), "{n}");
        }
    }

    #[test]
    fn a_query_counts_as_the_site_rules() {
        let tracking = rule("ignore = ['utm_*', 'fbclid', 'a b']");
        let only = rule("only = ['id', 'page[*']\nsort = true");
        let nothing = rule("only = []");
        let sorted = rule("sort = true");
        for (rule, sent, counts) in [
            (&tracking, "/a", "/a"),
            (&tracking, "/a?utm_source=x", "/a"),
            (&tracking, "/a?utm%5Fsource=x&%66bclid", "/a"),
            (&tracking, "/a?b=1&utm_a=2&c=3&utm_b", "/a?b=1&c=3"),
            (&tracking, "/a?a+b=1&a%20b=2&c=a+b", "/a?c=a+b"),
            (&tracking, "/a?utm=1&UTM_x=2", "/a?utm=1&UTM_x=2"),
            (&tracking, "/a?c=?utm_a=1", "/a?c=?utm_a=1"),
            (&tracking, "/a?", "/a?"),
            (&tracking, "/utm_a=1", "/utm_a=1"),
            (
                &only,
                "/a?x=1&page[2]=b&id=7&page%5B1%5D=a",
                "/a?id=7&page%5B1%5D=a&page[2]=b",
            ),
            (&only, "/a?x", "/a"),
            (&nothing, "/a?b=1&&c", "/a"),
            (&sorted, "/a?b=2&a=1&b=1", "/a?a=1&b=2&b=1"),
            (&sorted, "/a?b=1&a=1&b=2", "/a?a=1&b=1&b=2"),
            (&sorted, "?b&&a", "/?&a&b"),
        ] {
            assert_eq!(ruled(sent, rule), counts, "{sent}");
        }
    }

    #[test]
    fn fields_and_cookies_count_where_the_site_rules_so() {
        let rules = rules("headers = ['X-Device', 'X-Plan']\ncookies = ['currency']");
        let of = |fields: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, value.parse().unwrap());
            }
            super::key("a", "a.test", "/x", &headers, &rules)
        };
        let different = [
            of(&[]),
            of(&[("x-device", "")]),
            of(&[("x-device", "tv")]),
            of(&[("x-device", "TV")]),
            of(&[("x-device", "tv"), ("x-device", "tv")]),
            of(&[("x-plan", "tv")]),
            of(&[("cookie", "currency=")]),
            of(&[("cookie", "currency=EUR")]),
            of(&[("cookie", "Currency=EUR; currency=USD")]),
            of(&[("cookie", "currency=EUR; currency=USD")]),
            of(&[("cookie", "currency=EUR"), ("x-device", "tv")]),
        ];
        for (n, a) in different.iter().enumerate() {
            assert!(different[..n].iter().all(|b| a != b), "{n}");
        }
        let same = [("x-other", "1"), ("cookie", "session=9; currency=EUR; b=2")];
        assert_eq!(of(&same), of(&[("cookie", "currency=EUR")]));
    }

    #[test]
    fn a_site_without_rules_keeps_its_keys() {
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, "a=b".parse().unwrap());
        let site = Site::new("www", &["*"], &["http://o"]);
        let key = super::key("www", "a.test", "/x?b&a", &headers, &KeyRules::of(&site));
        assert_eq!(key, Key::of(&[b"www", b"a.test", b"/x?b&a"]));
    }

    proptest! {
        /// What a query rule keeps is a part of what was sent: for every kept name, the same
        /// parameters in the same order.
        #[test]
        fn requests_that_differ_in_a_kept_parameter_stay_different(
            one in "/a(\\?[ab&=%126+]{0,10})?",
            other in "/a(\\?[ab&=%126+]{0,10})?",
            ignored in "[ab12]?",
            sort: bool,
        ) {
            let ignore = (!ignored.is_empty()).then(|| ignored.clone().try_into().unwrap());
            let rule = QueryRule { ignore: ignore.into_iter().collect(), only: None, sort };
            let kept = |target: &str| {
                let canonical = canonical(target.as_bytes()).into_owned();
                let query = canonical.splitn(2, |b| *b == b'?').nth(1).map(<[u8]>::to_vec);
                let mut by_name = std::collections::BTreeMap::<Vec<u8>, Vec<Vec<u8>>>::new();
                for sent in query.iter().flat_map(|query| query.split(|b| *b == b'&')) {
                    let name = name_of(sent).into_owned();
                    if ignored.is_empty() || name != ignored.as_bytes() {
                        by_name.entry(name).or_default().push(sent.to_vec());
                    }
                }
                by_name
            };
            if ruled(&one, &rule) == ruled(&other, &rule) {
                prop_assert_eq!(kept(&one), kept(&other));
            }
            if sort && kept(&one) == kept(&other) {
                prop_assert_eq!(ruled(&one, &rule), ruled(&other, &rule));
            }
        }

        #[test]
        fn a_canonical_form_is_its_own(sent in "[/?#%a-f0-9A-F.]{0,12}") {
            let once = canonical(sent.as_bytes()).into_owned();
            prop_assert_eq!(&*canonical(&once), &once[..]);
        }
    }
}
