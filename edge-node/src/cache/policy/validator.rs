//! Validators: entity tags, modification dates, and when two of them agree (RFC 9110 §8.8).

use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::lines::Lines;

/// Last second that an HTTP date can name: the end of the year 9999.
const DATE_MAX: u64 = 253_402_300_799;

/// An entity tag (RFC 9110 §8.8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntityTag<'a> {
    /// Whether it promises equivalence only, not equal bytes.
    pub weak: bool,
    /// What stands between the quotes.
    pub opaque: &'a [u8],
    /// Whether there are quotes. Many servers forget them, and their answers could never be validated
    /// if that were no tag; but it matches only what forgot them, too, and never strongly.
    pub quoted: bool,
}

impl<'a> EntityTag<'a> {
    /// Reads one entity tag, and nothing else.
    pub fn parse(text: &'a [u8]) -> Option<Self> {
        match Self::read(text)? {
            (tag, []) => Some(tag),
            _ => None,
        }
    }

    /// The tag of a response; `None` when it has none, several, or one that breaks the grammar.
    pub fn of(response: &'a HeaderMap) -> Option<Self> {
        only(response, &header::ETAG).and_then(|value| Self::parse(value.as_bytes()))
    }

    /// The tags of a list. What is no tag is skipped up to the next comma.
    pub fn list(mut line: &'a [u8]) -> impl Iterator<Item = Self> {
        std::iter::from_fn(move || {
            loop {
                line = line.trim_ascii_start();
                if let Some((tag, rest)) = Self::read(line) {
                    line = rest.trim_ascii_start();
                    if matches!(line, [] | [b',', ..]) {
                        return Some(tag);
                    }
                }
                let comma = line.iter().position(|b| *b == b',')?;
                line = &line[comma + 1..];
            }
        })
    }

    /// Reads the tag that `text` begins with, and what follows it.
    fn read(text: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (weak, rest) = match text.strip_prefix(b"W/") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let Some(rest) = rest.strip_prefix(b"\"") else {
            let end = rest
                .iter()
                .position(|b| !matches!(b, 0x21 | 0x23..=0x7e | 0x80..) || *b == b',');
            let (opaque, rest) = rest.split_at(end.unwrap_or(rest.len()));
            let is_word = !opaque.is_empty() && opaque != b"*";
            let tag = Self {
                weak,
                opaque,
                quoted: false,
            };
            return is_word.then_some((tag, rest));
        };
        let end = rest
            .iter()
            .position(|b| !matches!(b, 0x21 | 0x23..=0x7e | 0x80..))?;
        let opaque = &rest[..end];
        let rest = rest[end..].strip_prefix(b"\"")?;
        let tag = Self {
            weak,
            opaque,
            quoted: true,
        };
        Some((tag, rest))
    }

    /// Whether both promise the same bytes (§8.8.3.2).
    pub fn strongly_matches(&self, other: &EntityTag<'_>) -> bool {
        !self.weak && !other.weak && self.quoted && self.weakly_matches(other)
    }

    /// Whether both promise at least equivalence (§8.8.3.2).
    pub fn weakly_matches(&self, other: &EntityTag<'_>) -> bool {
        self.opaque == other.opaque && self.quoted == other.quoted
    }
}

/// An HTTP date in any of its three formats (RFC 9110 §5.6.7), in Unix seconds. Strict: wrong
/// case, zone, weekday or spacing, or a day that does not exist, is no date.
pub fn date(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    let time = httpdate::parse_http_date(text).ok()?;
    time.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs())
}

/// The date in the first line of a field.
pub fn date_of(headers: &impl Lines, name: &HeaderName) -> Option<u64> {
    headers.lines(name).next().and_then(date)
}

/// A time in Unix seconds as an HTTP date (IMF-fixdate).
pub fn date_value(unix_s: u64) -> HeaderValue {
    let time = UNIX_EPOCH + Duration::from_secs(unix_s.min(DATE_MAX));
    HeaderValue::try_from(httpdate::fmt_http_date(time)).expect("a date is visible ASCII")
}

/// A stored response's modification date where it is a strong validator: its `Date` is at least
/// one second later, so the content cannot have changed once more within the same second
/// (RFC 9110 §8.8.2.2).
pub fn strong_last_modified(stored: &HeaderMap) -> Option<u64> {
    let modified = date_of(stored, &header::LAST_MODIFIED)?;
    (date_of(stored, &header::DATE)? > modified).then_some(modified)
}

/// Whether two responses are known to be of the same bytes: the same strong entity tag, or without any
/// tags the same strong modification date (RFC 9110 §8.8, RFC 9111 §3.4).
pub fn same_strong_validator(one: &HeaderMap, other: &HeaderMap) -> bool {
    match (EntityTag::of(one), EntityTag::of(other)) {
        (Some(one), Some(other)) => one.strongly_matches(&other),
        (None, None) => {
            let date = strong_last_modified(one);
            date.is_some() && date == date_of(other, &header::LAST_MODIFIED)
        }
        _ => false,
    }
}

/// The validator that `If-Range` takes to fetch what is missing of a stored part (RFC 9110 §13.1.5);
/// `None` without a strong one.
pub fn range_condition(stored: &HeaderMap) -> Option<HeaderValue> {
    match EntityTag::of(stored) {
        Some(tag) if tag.strongly_matches(&tag) => stored.get(header::ETAG).cloned(),
        Some(_) => None,
        None => strong_last_modified(stored).map(date_value),
    }
}

/// Whether a stored response can be validated at all.
pub fn has_validator(stored: &impl Lines) -> bool {
    let name = header::ETAG;
    let mut tags = stored.lines(&name);
    let tag = tags.next().filter(|_| tags.next().is_none());
    tag.and_then(EntityTag::parse).is_some() || date_of(stored, &header::LAST_MODIFIED).is_some()
}

/// `If-None-Match` and `If-Modified-Since` that ask the origin whether `stored` is still right
/// (RFC 9111 §4.3.1). Both where there are both: the origin uses the one it prefers.
pub fn conditional_fields(stored: &HeaderMap) -> (Option<HeaderValue>, Option<HeaderValue>) {
    let tag = EntityTag::of(stored).and_then(|_| stored.get(header::ETAG));
    let modified = date_of(stored, &header::LAST_MODIFIED);
    let modified = modified.and_then(|_| stored.get(header::LAST_MODIFIED));
    (tag.cloned(), modified.cloned())
}

/// Whether a 304 speaks of the stored response (RFC 9111 §4.3.4), given that the request carried
/// that response's own validators:
///
/// - a strong tag must be the stored one; beside a stored weak tag of the same text, an equal and
///   strong modification date decides (nginx weakens the tag of what it compresses, but not that
///   of the 304 for it);
/// - a weak tag must match the stored one weakly;
/// - without tags, modification dates must not differ; a 304 without any validator is believed.
pub fn is_about(stored: &HeaderMap, not_modified: &HeaderMap) -> bool {
    let modified = date_of(not_modified, &header::LAST_MODIFIED);
    let same_strong_date = || modified.is_some() && strong_last_modified(stored) == modified;
    match (EntityTag::of(stored), EntityTag::of(not_modified)) {
        (Some(old), Some(new)) if old.weak && !new.weak => {
            old.weakly_matches(&new) && same_strong_date()
        }
        (Some(old), Some(new)) => old.weakly_matches(&new),
        (None, Some(_)) => same_strong_date(),
        (_, None) => {
            let before = date_of(stored, &header::LAST_MODIFIED);
            modified.is_none() || before.is_none() || modified == before
        }
    }
}

/// The value of a field that has exactly one line.
pub fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    match (lines.next(), lines.next()) {
        (Some(value), None) => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(text: &str) -> Option<(bool, &str)> {
        EntityTag::parse(text.as_bytes()).map(|t| (t.weak, std::str::from_utf8(t.opaque).unwrap()))
    }

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let fields = fields.iter();
        fields
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn entity_tags_follow_their_grammar() {
        // RFC 9110 §8.8.3
        assert_eq!(tag("\"xyzzy\""), Some((false, "xyzzy")));
        assert_eq!(tag("W/\"xyzzy\""), Some((true, "xyzzy")));
        assert_eq!(tag("\"\""), Some((false, "")));
        assert_eq!(tag("\"a,\\b\""), Some((false, "a,\\b")));
        // Without quotes.
        assert_eq!(tag("xyzzy"), Some((false, "xyzzy")));
        assert_eq!(tag("W/xyzzy"), Some((true, "xyzzy")));
        for bad in [
            "", "\"a", "a\"", "w/\"a\"", "\"a b\"", "\"a\"b", "a b", "a,b", "*", "W/", "W/*",
        ] {
            assert_eq!(tag(bad), None, "{bad}");
        }
    }

    #[test]
    fn tags_are_compared_as_the_table_says() {
        // RFC 9110 §8.8.3.2, the example table
        for (a, b, strong, weak) in [
            ("W/\"1\"", "W/\"1\"", false, true),
            ("W/\"1\"", "W/\"2\"", false, false),
            ("W/\"1\"", "\"1\"", false, true),
            ("\"1\"", "\"1\"", true, true),
        ] {
            let (a, b) = (
                EntityTag::parse(a.as_bytes()).unwrap(),
                EntityTag::parse(b.as_bytes()).unwrap(),
            );
            assert_eq!(
                (a.strongly_matches(&b), a.weakly_matches(&b)),
                (strong, weak)
            );
        }
    }

    #[test]
    fn a_tag_without_quotes_matches_only_its_like_and_weakly() {
        let tag = |text: &'static str| EntityTag::parse(text.as_bytes()).unwrap();
        assert!(tag("a").weakly_matches(&tag("a")) && !tag("a").strongly_matches(&tag("a")));
        assert!(!tag("a").weakly_matches(&tag("\"a\"")) && !tag("\"a\"").weakly_matches(&tag("a")));
        assert_eq!(range_condition(&map(&[("etag", "a")])), None);
    }

    #[test]
    fn a_list_of_tags_skips_what_is_none() {
        for (line, expected) in [
            ("\"a\", W/\"b\" ,\"c,d\"", vec!["a", "b", "c,d"]),
            (", ,\"a\",,", vec!["a"]),
            ("a, \"b\"", vec!["a", "b"]),
            ("\"a\"x, \"b\"", vec!["b"]),
            ("\"a b\", \"c\"", vec!["c"]),
            ("\"a", vec![]),
            ("*", vec![]),
        ] {
            let found: Vec<_> = EntityTag::list(line.as_bytes()).map(|t| t.opaque).collect();
            let expected: Vec<_> = expected.iter().map(|t| t.as_bytes()).collect();
            assert_eq!(found, expected, "{line}");
        }
    }

    #[test]
    fn dates_come_in_three_formats_and_no_other() {
        // RFC 9110 §5.6.7
        for good in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(date(good.as_bytes()), Some(784_111_777), "{good}");
        }
        for bad in [
            "",
            "0",
            "-1",
            "784111777",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 1994 08:49:37 gmt",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37 +0000",
            "sun, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 nov 1994 08:49:37 GMT",
            "Sun 06 Nov 1994 08:49:37 GMT",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun, 06  Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 94 08:49:37 GMT",
            "Sun, 06 Nov 1994 8:49:37 GMT",
            "Sun, 06 Nov 1994 08.49.37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Mon, 06 Nov 1994 08:49:37 GMT",
            "Thu, 31 Feb 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT, x",
        ] {
            assert_eq!(date(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(date_value(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(date_value(u64::MAX), "Fri, 31 Dec 9999 23:59:59 GMT");
    }

    #[test]
    fn a_304_is_believed_only_about_what_it_speaks_of() {
        // RFC 9111 §4.3.4
        let (early, late) = (
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:38 GMT",
        );
        let e = |tag| ("etag", tag);
        let m = |date| ("last-modified", date);
        let d = |date| ("date", date);
        for (stored, new, expected) in [
            (vec![e("\"a\"")], vec![e("\"a\"")], true),
            (vec![e("\"a\"")], vec![e("\"b\"")], false),
            (vec![e("\"a\"")], vec![e("W/\"a\"")], true),
            (vec![e("W/\"a\"")], vec![e("W/\"a\"")], true),
            (vec![e("W/\"a\"")], vec![e("\"a\"")], false),
            (
                vec![e("W/\"a\""), m(early), d(late)],
                vec![e("\"a\""), m(early)],
                true,
            ),
            (
                vec![e("W/\"a\""), m(early), d(early)],
                vec![e("\"a\""), m(early)],
                false,
            ),
            (
                vec![e("W/\"a\""), m(early), d(late)],
                vec![e("\"b\""), m(early)],
                false,
            ),
            (vec![m(early), d(late)], vec![e("\"a\""), m(early)], true),
            (vec![m(early), d(late)], vec![e("\"a\"")], false),
            (vec![m(early)], vec![m(early)], true),
            (vec![m(early)], vec![m(late)], false),
            (vec![m(early)], vec![], true),
            (vec![e("\"a\"")], vec![], true),
            (vec![], vec![], true),
        ] {
            assert_eq!(
                is_about(&map(&stored), &map(&new)),
                expected,
                "{stored:?} {new:?}"
            );
        }
    }

    #[test]
    fn validators_go_back_to_the_origin_as_they_came() {
        // RFC 9111 §4.3.1
        let weak = map(&[
            ("etag", "W/\"a\""),
            ("last-modified", "Sun Nov  6 08:49:37 1994"),
        ]);
        let (tag, modified) = conditional_fields(&weak);
        assert_eq!(tag.unwrap(), "W/\"a\"");
        assert_eq!(modified.unwrap(), "Sun Nov  6 08:49:37 1994");
        let broken = map(&[("etag", "a b"), ("last-modified", "yesterday")]);
        assert_eq!(conditional_fields(&broken), (None, None));
        assert!(!has_validator(&broken) && has_validator(&weak));
    }
}
