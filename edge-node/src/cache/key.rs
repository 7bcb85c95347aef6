//! Cache keys: from a canonical request to the name of its object, and on to that of a variant.

use std::borrow::Cow;

use cluster::key::Key;

/// The key of what `site` answers to GET for `path_and_query` under `host` (as the site map gives
/// it: lower case, no port).
///
/// The path and the query count as sent, except for what RFC 3986 §6.2.2 calls equivalent without
/// asking the server: the case of hex digits in percent-encodings and the encoding of unreserved
/// characters; an empty path is `/`, and a fragment does not count. Dot segments do count: they go
/// to the origin as sent, and an origin may tell `/a/../b` from `/b`; treating equals as different
/// costs a second copy, treating different ones as equal would serve the wrong one.
pub fn key(site: &str, host: &str, path_and_query: &str) -> Key {
    Key::of(&[
        site.as_bytes(),
        host.as_bytes(),
        &canonical(path_and_query.as_bytes()),
    ])
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
                let byte = hex(*high).zip(hex(*low)).map(|(h, l)| h << 4 | l);
                match byte {
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

fn is_well_encoded(text: &[u8]) -> bool {
    let mut behind = text.split(|b| *b == b'%').skip(1);
    behind.all(|rest| matches!(rest, [h, l, ..] if hex(*h).is_some() && hex(*l).is_some()))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|d| u8::try_from(d).ok())
}

/// RFC 3986 §2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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

    proptest! {
        #[test]
        fn a_canonical_form_is_its_own(sent in "[/?#%a-f0-9A-F.]{0,12}") {
            let once = canonical(sent.as_bytes()).into_owned();
            prop_assert_eq!(&*canonical(&once), &once[..]);
        }
    }
}
