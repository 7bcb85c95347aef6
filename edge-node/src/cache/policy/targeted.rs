//! Which of a response's cache directives count here: those of a targeted field (RFC 9213) if there is
//! one, else `Cache-Control`. The only file that names sfv.

use http::{HeaderName, header};
use sfv::{BareItem, Dictionary, ListEntry, Parser};

use super::{
    directives::{Argument, CacheControl},
    lines::Lines,
    list::members,
    rules::SURROGATE_CONTROL,
};

/// The directives that govern a response, and where they stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Governing {
    /// What is said.
    pub said: CacheControl,
    /// In which field.
    pub field: HeaderName,
}

impl Governing {
    /// The first of `targets` that is there, not empty and valid (RFC 9213 §2.2); else
    /// `Cache-Control`.
    pub fn of(headers: &impl Lines, targets: &[HeaderName]) -> Self {
        for field in targets {
            if !headers.has(field) {
                continue;
            }
            let said = match field == SURROGATE_CONTROL {
                true => surrogate(headers),
                false => targeted(headers, field),
            };
            if let Some(said) = said {
                let field = field.clone();
                return Self { said, field };
            }
        }
        Self {
            said: CacheControl::of(headers),
            field: header::CACHE_CONTROL,
        }
    }

    /// Whether `Cache-Control` and `Expires` are to be ignored (RFC 9213 §2.2).
    pub fn is_targeted(&self) -> bool {
        self.field != header::CACHE_CONTROL
    }
}

/// A targeted field: a Dictionary (RFC 9213 §2.1). `None` when it is empty, or broken anywhere: then it
/// counts as absent. A directive whose value is of another type than its own takes its strictest
/// meaning, as in `Cache-Control`.
fn targeted(headers: &impl Lines, field: &HeaderName) -> Option<CacheControl> {
    let mut joined: Vec<u8> = Vec::new();
    for line in headers.lines(field) {
        if !joined.is_empty() {
            joined.extend_from_slice(b", "); // RFC 9651 §4.2
        }
        joined.extend_from_slice(line);
    }
    let dictionary: Dictionary = Parser::new(&joined).parse().ok()?;
    if dictionary.is_empty() {
        return None;
    }
    let mut said = CacheControl::default();
    for (name, value) in &dictionary {
        // Parameters mean nothing (RFC 9213 §2.1).
        let argument = match value {
            ListEntry::InnerList(_) => Argument::Malformed,
            ListEntry::Item(item) => match &item.bare_item {
                BareItem::Boolean(true) => Argument::None,
                BareItem::Boolean(false) => continue,
                BareItem::Integer(number) => Argument::Text(number.to_string().into_bytes().into()),
                // Field names (RFC 9111 §5.2.2.4, §5.2.2.7); no number is a String.
                BareItem::String(names) if matches!(name.as_str(), "no-cache" | "private") => {
                    Argument::Text(names.as_str().as_bytes().into())
                }
                BareItem::Token(token) => Argument::Text(token.as_str().as_bytes().into()),
                _ => Argument::Malformed,
            },
        };
        said.add(name.as_str().as_bytes(), argument);
    }
    Some(said)
}

/// `Surrogate-Control` (Edge Architecture Specification 1.0 §2.1): `no-store`, and `max-age=60` or
/// `max-age=60+30`, of which the second is for how long it may be used stale while it is validated.
/// Fastly also has the windows of RFC 5861 in it. What is about content, such as `content="ESI/1.0"`,
/// and what is addressed to another surrogate (`max-age=60;other`) means nothing here. `None` when
/// nothing of it is about caching.
fn surrogate(headers: &impl Lines) -> Option<CacheControl> {
    let mut said = CacheControl::default();
    let mut found = false;
    let name = SURROGATE_CONTROL;
    for member in headers.lines(&name).flat_map(members) {
        if member.contains(&b';') {
            continue;
        }
        let (name, value) = match member.iter().position(|b| *b == b'=') {
            Some(equals) => (&member[..equals], Some(&member[equals + 1..])),
            None => (member, None),
        };
        let name = name.to_ascii_lowercase();
        let text = |bytes: &[u8]| Argument::Text(bytes.to_vec().into());
        match (&name[..], value) {
            (b"no-store", _) => said.add(b"no-store", Argument::None),
            (b"max-age", Some(value)) => {
                let mut parts = value.splitn(2, |b| *b == b'+');
                said.add(&name, text(parts.next().unwrap_or_default()));
                if let Some(extension) = parts.next() {
                    said.add(b"stale-while-revalidate", text(extension));
                }
            }
            (b"stale-while-revalidate" | b"stale-if-error", Some(value)) => {
                said.add(&name, text(value));
            }
            _ => continue,
        }
        found = true;
    }
    found.then_some(said)
}

/// Parses arbitrary bytes as targeted fields, one line each, and checks what must always hold. For
/// fuzzing; panics on a defect.
#[doc(hidden)]
pub fn fuzz_targeted(data: &[u8]) {
    use super::{directives::SECONDS_MAX, rules::CDN_CACHE_CONTROL};
    let mut headers = http::HeaderMap::new();
    for line in data.split(|b| *b == b'\n').take(64) {
        if let Ok(value) = http::HeaderValue::from_bytes(line) {
            headers.append(CDN_CACHE_CONTROL, value.clone());
            headers.append(SURROGATE_CONTROL, value);
        }
    }
    for field in [CDN_CACHE_CONTROL, SURROGATE_CONTROL] {
        let found = Governing::of(&headers, std::slice::from_ref(&field));
        assert!(!found.is_targeted() || found.field == field);
        assert!(found.said.max_age.is_none_or(|s| s <= SECONDS_MAX));
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::{super::rules::CDN_CACHE_CONTROL, *};

    fn governing(fields: &[(&'static str, &str)]) -> Governing {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        Governing::of(&headers, &[CDN_CACHE_CONTROL, SURROGATE_CONTROL])
    }

    #[test]
    fn a_targeted_field_counts_where_it_is_valid() {
        const CDN: &str = "cdn-cache-control";
        let text = |value: &str| CacheControl::parse([value.as_bytes()]);
        for (lines, expected) in [
            // RFC 9213 §2.1, §2.2
            (vec!["max-age=60"], Some("max-age=60")),
            (
                vec!["max-age=60, must-revalidate"],
                Some("max-age=60, must-revalidate"),
            ),
            (vec!["max-age=60", "no-store"], Some("max-age=60, no-store")),
            (vec!["foobar, max-age=60"], Some("max-age=60")),
            (vec!["max-age=60;a=b;c, b=(1 2)"], Some("max-age=60")),
            (
                vec!["private=\"x-a\", max-age=1"],
                Some("private=\"x-a\", max-age=1"),
            ),
            (vec!["no-store=?0, max-age=60"], Some("max-age=60")),
            (vec!["foo"], Some("foo")),
            // RFC 9651 §4.2.2: the last of equal keys counts
            (vec!["max-age=60, max-age=30"], Some("max-age=30")),
            // another type: its strictest meaning
            (vec!["max-age=\"60\""], Some("max-age=0")),
            (vec!["max-age=60.5"], Some("max-age=0")),
            (vec!["max-age=-60"], Some("max-age=0")),
            (vec!["max-age"], Some("max-age=0")),
            (vec!["no-store=1"], Some("no-store")),
            // empty or broken: as if it were not there
            (vec![""], None),
            (vec!["max-age=60,"], None),
            (vec!["max-age=60, &"], None),
            (vec!["Max-Age=60"], None),
            (vec!["max-age= 60"], None),
            (vec!["max-age=60;"], None),
            (vec!["max-age=60", "é"], None),
        ] {
            let fields: Vec<_> = lines.iter().map(|line| (CDN, *line)).collect();
            let mut fields = fields.clone();
            fields.push(("cache-control", "no-cache"));
            let found = governing(&fields);
            assert_eq!(found.is_targeted(), expected.is_some(), "{lines:?}");
            assert_eq!(
                found.said,
                text(expected.unwrap_or("no-cache")),
                "{lines:?}"
            );
        }
    }

    #[test]
    fn a_surrogate_is_told_its_own_lifetime() {
        let text = |value: &str| CacheControl::parse([value.as_bytes()]);
        // Edge Architecture Specification 1.0 §2.1
        for (value, expected) in [
            ("max-age=60", Some("max-age=60")),
            ("Max-Age=60", Some("max-age=60")),
            (
                "max-age=60+30",
                Some("max-age=60, stale-while-revalidate=30"),
            ),
            ("no-store, content=\"ESI/1.0\"", Some("no-store")),
            (
                "max-age=60, stale-if-error=9",
                Some("max-age=60, stale-if-error=9"),
            ),
            ("max-age=60;other", None),
            ("no-store;abc, max-age=9", Some("max-age=9")),
            ("content=\"ESI/1.0\"", None),
            ("content=\"max-age=60, no-store\"", None),
            ("no-store-remote", None),
            ("max-age=x", Some("max-age=0")),
            ("", None),
        ] {
            let found = governing(&[("surrogate-control", value), ("cache-control", "private")]);
            assert_eq!(found.is_targeted(), expected.is_some(), "{value}");
            assert_eq!(found.said, text(expected.unwrap_or("private")), "{value}");
        }
    }

    #[test]
    fn the_first_target_wins() {
        let both = [
            ("surrogate-control", "max-age=1"),
            ("cdn-cache-control", "max-age=2"),
        ];
        assert_eq!(governing(&both).field, CDN_CACHE_CONTROL);
        let broken = [
            ("surrogate-control", "max-age=1"),
            ("cdn-cache-control", "max-age="),
        ];
        assert_eq!(governing(&broken).field, SURROGATE_CONTROL);
    }
}
