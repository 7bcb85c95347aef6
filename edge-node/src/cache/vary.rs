//! `Vary`: which request fields select among the variants of a URL, and when two requests select
//! the same one (RFC 9110 §12.5.5, RFC 9111 §4.1).

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::policy::{
    lines::Lines,
    list::{is_tchar, members},
};

/// Most fields that a response may vary by; one with more is treated as varying by everything.
/// Real sites name one to five, and every further one multiplies the variants.
pub const VARY_FIELDS_MAX: usize = 16;

/// Fields that are no lists, so that whitespace beside a comma may mean something in them.
const NOT_LISTS: [&str; 10] = [
    "authorization",
    "content-type",
    "date",
    "from",
    "if-modified-since",
    "if-unmodified-since",
    "origin",
    "proxy-authorization",
    "referer",
    "user-agent",
];

/// What a response varies by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vary {
    /// Nothing: one response for all requests.
    None,
    /// `*`, something that is no field name, or more than [`VARY_FIELDS_MAX`] fields: no later
    /// request can be known to select it.
    Any,
    /// These fields of the request, sorted, each once.
    Fields(Vec<HeaderName>),
}

/// Request fields that this node writes anew for every client: what an origin makes of them is for one
/// client only.
const WRITTEN_PER_CLIENT: [&str; 6] = [
    "cdn-loop",
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-port",
    "x-real-ip",
];
/// Those that it writes in the same way for every request with the same key.
const WRITTEN_PER_KEY: [&str; 2] = ["x-forwarded-host", "x-forwarded-proto"];

/// What a response with these headers varies by.
pub fn selecting_fields(response: &impl Lines) -> Vary {
    let mut fields = Vec::new();
    let name = header::VARY;
    for member in response.lines(&name).flat_map(members) {
        match HeaderName::from_bytes(member) {
            Ok(name) if WRITTEN_PER_KEY.contains(&name.as_str()) => {}
            Ok(name) if member != b"*" && !WRITTEN_PER_CLIENT.contains(&name.as_str()) => {
                if !fields.contains(&name) {
                    if fields.len() == VARY_FIELDS_MAX {
                        return Vary::Any;
                    }
                    fields.push(name);
                }
            }
            _ => return Vary::Any,
        }
    }
    if fields.is_empty() {
        return Vary::None;
    }
    fields.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    Vary::Fields(fields)
}

/// The values that a request has for `fields`, in the same order and in normal form, to be stored
/// with the response (`None`: the field is absent, which differs from empty).
pub fn normal_values(fields: &[HeaderName], request: &HeaderMap) -> Vec<(String, Option<Vec<u8>>)> {
    let value = |name: &HeaderName| normal_value(name.as_str(), request).map(Cow::into_owned);
    let pair = |name: &HeaderName| (name.as_str().to_owned(), value(name));
    fields.iter().map(pair).collect()
}

/// The values that a request has for the fields by which a response was selected, of which the origin says that it
/// selects that one, too.
pub fn selecting_as_well(
    selected_by: &[(String, Option<Vec<u8>>)],
    request: &HeaderMap,
) -> Vec<(String, Option<Vec<u8>>)> {
    let value = |name: &str| normal_value(name, request).map(Cow::into_owned);
    let pairs = selected_by
        .iter()
        .map(|(name, _)| (name.clone(), value(name)));
    pairs.collect()
}

/// Whether a request selects the response that was stored with `selected_by`, the
/// [`normal_values`] of the request it answered.
pub fn matches(selected_by: &[(String, Option<Vec<u8>>)], request: &HeaderMap) -> bool {
    selected_by.iter().all(|(name, stored)| {
        // What is in normal form already need not be brought into it.
        let mut lines = request.get_all(name).iter();
        let as_stored = lines.next().map(HeaderValue::as_bytes) == stored.as_deref();
        as_stored && lines.next().is_none()
            || normal_value(name, request).as_deref() == stored.as_deref()
    })
}

/// Whether a request takes content that is coded as a stored response's: by the name of each coding, or by `*` (RFC
/// 9110 §12.5.3). One without the field is taken for one that decodes nothing, whatever it may accept.
pub fn takes_coding(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let Some(coded) = combined("content-encoding", stored, b", ") else {
        return true;
    };
    let accepted = combined("accept-encoding", request, b", ").unwrap_or_default();
    let accepted = members(&accepted).filter_map(weighted);
    let accepted: Vec<_> = accepted
        .map(|(coding, weight)| (coding_name(coding), weight))
        .collect();
    let weight = |name: &[u8]| {
        let listed = accepted.iter().find(|(coding, _)| coding == name);
        listed.map(|(_, weight)| *weight)
    };
    members(&coded).map(coding_name).all(|coding| {
        coding == b"identity"
            || weight(&coding)
                .or_else(|| weight(b"*"))
                .is_some_and(|weight| weight > 0)
    })
}

/// A request's value for a field in a form that is the same for all values known to mean the same
/// (RFC 9111 §4.1): lines are combined, whitespace beside commas goes, and what the field's own
/// definition makes equal is made the same.
fn normal_value<'a>(name: &str, request: &'a HeaderMap) -> Option<Cow<'a, [u8]>> {
    // RFC 9113 §8.2.3: HTTP/2 may split cookies over lines, and not at commas.
    let separator: &[u8] = if name == "cookie" { b"; " } else { b", " };
    let value = combined(name, request, separator)?;
    Some(match name {
        "cookie" => value,
        _ if NOT_LISTS.contains(&name) => value,
        "accept-encoding" => preferences(&value, codings).map_or_else(|| list(value), Cow::Owned),
        // Language tags and charsets are case-insensitive (RFC 9110 §8.5.1, §8.3.2).
        "accept-charset" | "accept-language" => {
            preferences(&value, |_| {}).map_or_else(|| list(value), Cow::Owned)
        }
        _ => list(value),
    })
}

/// The lines of a field, joined, without whitespace around any of them; empty lines add nothing.
fn combined<'a>(name: &str, request: &'a HeaderMap, separator: &[u8]) -> Option<Cow<'a, [u8]>> {
    let lines = request.get_all(name).iter();
    let mut lines = lines.map(|line| line.as_bytes().trim_ascii());
    let mut value = Cow::Borrowed(lines.next()?);
    for line in lines.filter(|line| !line.is_empty()) {
        if !value.is_empty() {
            value.to_mut().extend_from_slice(separator);
        }
        value.to_mut().extend_from_slice(line);
    }
    Some(value)
}

/// A list without empty members, and with one comma and one space between the others.
fn list(value: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    if !value.contains(&b',') {
        return value;
    }
    let members: Vec<_> = members(&value).collect();
    Cow::Owned(members.join(&b", "[..]))
}

/// The normal form of a list of preferences (RFC 9110 §12.4.2): its members in lower case, sorted, each
/// with its weight if that is not 1; `reduce` drops what its field says is the same without. `None` when
/// it breaks the grammar.
///
/// Only weights rank members; the order in which they stand has no meaning (§12.5.3, §12.5.4), and
/// whoever wants one before the other has to say so.
fn preferences(value: &[u8], reduce: impl FnOnce(&mut Vec<(Vec<u8>, u16)>)) -> Option<Vec<u8>> {
    let mut found = Vec::new();
    for member in members(value) {
        let (token, weight) = weighted(member)?;
        found.push((token.to_ascii_lowercase(), weight));
    }
    reduce(&mut found);
    found.sort_unstable();
    found.dedup();
    let written = found.into_iter().map(|(mut token, weight)| {
        if weight < WEIGHT_MAX {
            token.extend_from_slice(b";q=0");
            if weight > 0 {
                let digits = format!(".{weight:03}");
                token.extend_from_slice(digits.trim_end_matches('0').as_bytes());
            }
        }
        token
    });
    Some(written.collect::<Vec<_>>().join(&b", "[..]))
}

/// What `Accept-Encoding` adds to that (RFC 9110 §12.5.3): two names for one coding, and a weight of 0
/// where leaving the coding out says the same: unless it is `identity`, which is acceptable without
/// being listed, or unless there is a `*` that would cover it.
fn codings(found: &mut Vec<(Vec<u8>, u16)>) {
    for (coding, _) in &mut *found {
        *coding = coding_name(coding);
    }
    let covered = found.iter().any(|(coding, _)| coding == b"*");
    found.retain(|(coding, weight)| *weight > 0 || covered || coding == b"identity");
}

/// The one name of a content coding (RFC 9110 §8.4.1).
fn coding_name(coding: &[u8]) -> Vec<u8> {
    let name = coding.to_ascii_lowercase();
    match &name[..] {
        b"x-gzip" => b"gzip".to_vec(),
        b"x-compress" => b"compress".to_vec(),
        _ => name,
    }
}

/// Weight 1, in thousandths.
const WEIGHT_MAX: u16 = 1000;

/// Splits `token [ OWS ";" OWS "q=" qvalue ]` (RFC 9110 §12.4.2) into the token and its weight in
/// thousandths.
fn weighted(member: &[u8]) -> Option<(&[u8], u16)> {
    let mut parts = member.split(|b| *b == b';').map(<[u8]>::trim_ascii);
    let token = parts.next()?;
    if token.is_empty() || !token.iter().all(|b| is_tchar(*b)) {
        return None;
    }
    let weight = match parts.next() {
        None => WEIGHT_MAX,
        Some([b'q' | b'Q', b'=', b'1', rest @ ..]) => match rest {
            [] => WEIGHT_MAX,
            [b'.', zeros @ ..] if zeros.len() <= 3 && zeros.iter().all(|d| *d == b'0') => {
                WEIGHT_MAX
            }
            _ => return None,
        },
        Some([b'q' | b'Q', b'=', b'0', rest @ ..]) => match rest {
            [] => 0,
            [b'.', digits @ ..] if digits.len() <= 3 && digits.iter().all(u8::is_ascii_digit) => {
                let digit = |n: usize| digits.get(n).map_or(0, |d| u16::from(d - b'0'));
                digit(0) * 100 + digit(1) * 10 + digit(2)
            }
            _ => return None,
        },
        Some(_) => return None,
    };
    parts.next().is_none().then_some((token, weight))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_coding_is_taken_by_name_or_by_star() {
        for (accepted, coded, expected) in [
            (None, None, true),
            (None, Some("gzip"), false),
            (None, Some("identity"), true),
            (Some(""), Some("gzip"), false),
            (Some("gzip"), Some("gzip"), true),
            (Some("GZIP;q=0.5, br"), Some("x-gzip"), true),
            (Some("gzip;q=0"), Some("gzip"), false),
            (Some("gzip;q=0, *"), Some("gzip"), false),
            (Some("*"), Some("br"), true),
            (Some("identity;q=1, *;q=0"), Some("gzip"), false),
            (Some("gzip"), Some("gzip, br"), false),
            (Some("gzip, br"), Some("gzip, br"), true),
            (Some("gzip nonsense"), Some("gzip"), false),
        ] {
            let field = |name, value: Option<&str>| {
                map(&value.map(|v| (name, v)).into_iter().collect::<Vec<_>>())
            };
            let request = field("accept-encoding", accepted);
            let stored = field("content-encoding", coded);
            assert_eq!(
                takes_coding(&request, &stored),
                expected,
                "{accepted:?} {coded:?}"
            );
        }
    }

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            let name: HeaderName = name.parse().unwrap();
            map.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        map
    }

    fn vary(lines: &[&str]) -> Vary {
        let lines: Vec<_> = lines.iter().map(|line| ("vary", *line)).collect();
        selecting_fields(&map(&lines))
    }

    fn fields(names: &[&'static str]) -> Vec<HeaderName> {
        names.iter().map(|n| HeaderName::from_static(n)).collect()
    }

    #[test]
    fn vary_names_fields_or_everything() {
        // RFC 9110 §12.5.5
        for (lines, expected) in [
            (&[][..], Vary::None),
            (&[""], Vary::None),
            (&[" , "], Vary::None),
            (&["Foo"], Vary::Fields(fields(&["foo"]))),
            (&["foo, BAR"], Vary::Fields(fields(&["bar", "foo"]))),
            (&["foo", "bar,FOO"], Vary::Fields(fields(&["bar", "foo"]))),
            (&["*"], Vary::Any),
            (&["foo, *"], Vary::Any),
            (&["foo", "*"], Vary::Any),
            (&["foo bar"], Vary::Any),
            // Written by this node, for each client and for each key.
            (&["X-Forwarded-For"], Vary::Any),
            (&["foo, via"], Vary::Any),
            (&["x-forwarded-proto, foo"], Vary::Fields(fields(&["foo"]))),
            (&["X-Forwarded-Host"], Vary::None),
        ] {
            assert_eq!(vary(lines), expected, "{lines:?}");
        }
        let names: Vec<_> = (0..=VARY_FIELDS_MAX).map(|n| format!("f{n}")).collect();
        assert_eq!(vary(&[&names.join(",")]), Vary::Any);
        assert_ne!(vary(&[&names[1..].join(",")]), Vary::Any);
    }

    #[test]
    fn requests_match_when_their_values_are_known_to_mean_the_same() {
        // RFC 9111 §4.1
        for (name, one, other, same) in [
            ("foo", &[][..], &[][..], true),
            ("foo", &[], &[""], false),
            ("foo", &["1"], &[], false),
            ("foo", &["1"], &["1 "], true),
            ("foo", &["1"], &["2"], false),
            ("foo", &["a"], &["A"], false), // nobody says that case does not matter
            ("foo", &["1", "2"], &["1, 2"], true),
            ("foo", &["1", "2"], &["1,2"], true),
            ("foo", &["1, 2"], &["1 ,\t2,"], true),
            ("foo", &["1, 2"], &["2, 1"], false),
            ("foo", &["\"1, 2\""], &["\"1,2\""], false),
            ("cookie", &["a=1", "b=2"], &["a=1; b=2"], true), // RFC 9113 §8.2.3
            ("cookie", &["a=1,2"], &["a=1, 2"], false),
            ("user-agent", &["a (x, y)"], &["a (x,y)"], false),
            ("accept-language", &["en, DE;q=0.5"], &["EN,de;q=0.5"], true),
            // RFC 9110 §12.5.4: only weights rank; how members are ordered means nothing.
            ("accept-language", &["en, de"], &["de, en"], true),
            (
                "accept-language",
                &["en;q=0.5, de"],
                &["DE , en;q=0.50"],
                true,
            ),
            (
                "accept-language",
                &["en;q=0.5, de"],
                &["en, de;q=0.5"],
                false,
            ),
            (
                "accept-charset",
                &["utf-8, *;q=0.1"],
                &["*;q=0.1,UTF-8"],
                true,
            ),
            ("accept-language", &["de;q=x, en"], &["en, de;q=x"], false),
            ("accept", &["a/b, c/d"], &["a/b,c/d"], true),
            // RFC 9110 §12.5.3 from here on.
            ("accept-encoding", &["gzip, br"], &["BR,GZip"], true),
            ("accept-encoding", &["gzip", "br"], &["br, gzip"], true),
            (
                "accept-encoding",
                &["gzip;q=1.0, br"],
                &["br;Q=1, gzip ; q=1.000"],
                true,
            ),
            ("accept-encoding", &["gzip;q=0.50"], &["gzip;q=0.5"], true),
            (
                "accept-encoding",
                &["gzip;q=0.5, br"],
                &["gzip, br;q=0.5"],
                false,
            ),
            ("accept-encoding", &["gzip, br;q=0"], &["gzip"], true),
            ("accept-encoding", &["gzip;q=0"], &[""], true),
            ("accept-encoding", &["*, br;q=0"], &["*"], false),
            ("accept-encoding", &["gzip, identity;q=0"], &["gzip"], false),
            ("accept-encoding", &["*;q=0"], &[""], false),
            ("accept-encoding", &["gzip, x-gzip"], &["gzip"], true), // §8.4.1
            ("accept-encoding", &[], &[""], false),
            ("accept-encoding", &["gzip;q=2"], &["gzip"], false),
            (
                "accept-encoding",
                &["gzip;q=x, br"],
                &["br, gzip;q=x"],
                false,
            ),
        ] {
            let request =
                |values: &[&str]| map(&values.iter().map(|v| (name, *v)).collect::<Vec<_>>());
            let names = [name.parse().unwrap()];
            let (one, other) = (request(one), request(other));
            let stored = normal_values(&names, &one);
            assert!(matches(&stored, &one), "{name} {stored:?}");
            assert_eq!(matches(&stored, &other), same, "{name}: {one:?} {other:?}");
            let stored = normal_values(&names, &other);
            assert_eq!(matches(&stored, &one), same, "{name}: {one:?} {other:?}");
        }
    }

    fn some_values() -> impl Strategy<Value = Vec<String>> {
        let value = prop_oneof![
            "[ -~\u{e9}]{0,12}",
            r#"((gzip|br|\*|identity|x-gzip)( ?; ?q=(0|1|0\.5|0\.05))?[, "]{0,3}){0,4}"#,
        ];
        prop::collection::vec(value, 0..3)
    }

    proptest! {
        #[test]
        fn a_normal_value_is_its_own_normal_value(
            name in prop::sample::select(vec!["foo", "accept-encoding", "accept-language", "cookie"]),
            values in some_values(),
        ) {
            let lines: Vec<_> = values.iter().map(|v| (name, v.as_str())).collect();
            let names = [name.parse().unwrap()];
            let stored = normal_values(&names, &map(&lines));
            if let Some(value) = &stored[0].1 {
                let text = String::from_utf8(value.clone()).unwrap();
                prop_assert_eq!(&normal_values(&names, &map(&[(name, &text)])), &stored);
            }
            prop_assert!(matches(&stored, &map(&lines)));
        }

        #[test]
        fn no_request_matches_that_differs_in_more_than_whitespace_and_commas(
            one in some_values(), other in some_values(),
        ) {
            let request = |values: &[String]| {
                map(&values.iter().map(|v| ("foo", v.as_str())).collect::<Vec<_>>())
            };
            let bare = |values: &[String]| values.join(",").replace([' ', ','], "");
            let stored = normal_values(&["foo".parse().unwrap()], &request(&one));
            if matches(&stored, &request(&other)) {
                prop_assert_eq!(bare(&one), bare(&other));
                prop_assert_eq!(one.is_empty(), other.is_empty());
            }
        }
    }
}
