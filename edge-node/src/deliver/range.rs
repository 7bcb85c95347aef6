//! Range requests: which bytes of a stored body a client gets, and how several ranges are laid
//! out in one answer (RFC 9110 §13.1.5, §14, §15.3.7).

use std::{io::Write, ops::Range};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};

use crate::cache::policy::validator::{EntityTag, date, only, strong_last_modified};

/// Most ranges that one request gets; with more, it gets the whole (RFC 9110 §14.2 allows to
/// ignore the field). Readers that know a file's structure ask for a few dozen at once.
pub const RANGES_MAX: usize = 64;

/// What a GET is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ranges {
    /// The whole body (200).
    Whole,
    /// One part of it (206); never empty, and within the body.
    One(Range<u64>),
    /// Two or more parts (206, multipart/byteranges), in the order asked for; together at most as
    /// long as the body.
    Many(Vec<Range<u64>>),
    /// None of it (416).
    Unsatisfiable,
}

/// Which bytes of a stored body of `length` bytes a request asks for. `request` is that of a GET,
/// whose other preconditions hold, and the answer without `Range` would be a 200 with the fields
/// `stored`; otherwise `Range` means nothing (RFC 9110 §13.2.2, §14.2).
pub fn requested(request: &HeaderMap, stored: &HeaderMap, length: u64) -> Ranges {
    match only(request, &header::RANGE) {
        Some(range) if if_range_holds(request, stored) => parse(range.as_bytes(), length),
        _ => Ranges::Whole,
    }
}

/// Whether the client's part, if it names one in `If-Range`, belongs to the stored response
/// (RFC 9110 §13.1.5): the same strong tag, or exactly the same and strong modification date.
pub fn if_range_holds(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if !request.contains_key(header::IF_RANGE) {
        return true;
    }
    let Some(condition) = only(request, &header::IF_RANGE) else {
        return false;
    };
    if let Some(tag) = EntityTag::parse(condition.as_bytes()) {
        return EntityTag::of(stored).is_some_and(|own| own.strongly_matches(&tag));
    }
    let asked = date(condition.as_bytes());
    asked.is_some() && asked == strong_last_modified(stored)
}

/// Evaluates the value of a `Range` field against a body of `length` bytes.
///
/// A unit other than bytes, anything that breaks the grammar, more than [`RANGES_MAX`] ranges, or
/// ranges that overlap so much that they are longer than the body: the whole, as RFC 9110 §14.2
/// has it. So does any valid range of an empty body, since there is no part of nothing, and
/// clients that ask for `bytes=0-` on principle should not get an error.
pub fn parse(value: &[u8], length: u64) -> Ranges {
    let Some(set) = range_set(value) else {
        return Ranges::Whole;
    };
    let mut asked = 0;
    let mut total: u64 = 0;
    let mut found: Vec<Range<u64>> = Vec::new();
    for spec in set.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
        if spec.is_empty() {
            continue; // RFC 9110 §5.6.1.2
        }
        asked += 1;
        let Some(range) = resolve(spec, length) else {
            return Ranges::Whole;
        };
        if asked > RANGES_MAX {
            return Ranges::Whole;
        }
        if !range.is_empty() {
            // A sum past the type is past every body's length.
            let Some(sum) = total.checked_add(range.end - range.start) else {
                return Ranges::Whole;
            };
            total = sum;
            found.push(range);
        }
    }
    if asked == 0 || length == 0 || total > length {
        return Ranges::Whole;
    }
    match found.len() {
        0 => Ranges::Unsatisfiable,
        1 => Ranges::One(found.swap_remove(0)),
        _ => Ranges::Many(found),
    }
}

/// What follows `bytes=`; units are case-insensitive (RFC 9110 §14.1).
fn range_set(value: &[u8]) -> Option<&[u8]> {
    let (unit, set) = value.trim_ascii().split_at_checked(6)?;
    unit.eq_ignore_ascii_case(b"bytes=").then_some(set)
}

/// The bytes that one range-spec means (RFC 9110 §14.1.2), empty if it cannot be satisfied;
/// `None` if it breaks the grammar.
fn resolve(spec: &[u8], length: u64) -> Option<Range<u64>> {
    let dash = spec.iter().position(|b| *b == b'-')?;
    let (first, last) = (&spec[..dash], &spec[dash + 1..]);
    if first.is_empty() {
        return Some(length.saturating_sub(position(last)?)..length);
    }
    let first = position(first)?;
    let end = if last.is_empty() {
        length
    } else {
        let last = position(last)?;
        if last < first {
            return None;
        }
        last.saturating_add(1).min(length)
    };
    Some(first.min(end)..end)
}

/// A position in a body; one too large for the type lies behind every body.
fn position(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = digits.iter().map(|d| u64::from(d - b'0'));
    Some(digits.fold(0u64, |n, d| n.saturating_mul(10).saturating_add(d)))
}

/// Parses arbitrary bytes as a `Range` field, their first eight as the body's length, and checks
/// what must always hold. For fuzzing; panics on a defect.
#[doc(hidden)]
pub fn fuzz_range(data: &[u8]) {
    let Some((length, value)) = data.split_first_chunk() else {
        return;
    };
    let length = u64::from_le_bytes(*length);
    let within = |r: &Range<u64>| r.start < r.end && r.end <= length;
    match parse(value, length) {
        Ranges::Whole => {}
        Ranges::One(range) => assert!(within(&range)),
        Ranges::Many(ranges) => {
            assert!((2..=RANGES_MAX).contains(&ranges.len()));
            assert!(ranges.iter().all(within));
            assert!(ranges.iter().map(|r| r.end - r.start).sum::<u64>() <= length);
            let parts = Multipart::new(ranges, None, length, 0);
            assert!(parts.parts.iter().all(|p| within(&p.range)));
        }
        Ranges::Unsatisfiable => assert!(length > 0),
    }
}

/// The `Range` that asks for `range` of a body of `length` bytes.
pub fn field(range: &Range<u64>, length: u64) -> HeaderValue {
    let last = match range.end < length {
        true => (range.end - 1).to_string(),
        false => String::new(),
    };
    HeaderValue::try_from(format!("bytes={}-{last}", range.start)).expect("it is visible ASCII")
}

/// The `Content-Range` of a part, which is never empty (RFC 9110 §14.4).
pub fn content_range(range: &Range<u64>, length: u64) -> HeaderValue {
    HeaderValue::try_from(content_range_text(range, length)).expect("it is visible ASCII")
}

/// Appends the fields of a 206 that say which part it is, as they stand in an HTTP/1.1 head.
pub fn write_fields(range: &Range<u64>, length: u64, out: &mut Vec<u8>) {
    let part = range.end - range.start;
    let last = range.end - 1;
    let start = range.start;
    // A vector takes everything.
    let _ = write!(
        out,
        "content-range: bytes {start}-{last}/{length}\r\ncontent-length: {part}\r\n"
    );
}

/// The `Content-Range` of a 416 (RFC 9110 §15.5.17).
pub fn unsatisfied_range(length: u64) -> HeaderValue {
    HeaderValue::try_from(format!("bytes */{length}")).expect("it is visible ASCII")
}

fn content_range_text(range: &Range<u64>, length: u64) -> String {
    format!("bytes {}-{}/{length}", range.start, range.end - 1)
}

/// The layout of a multipart/byteranges answer (RFC 9110 §14.6): for each part its `head`, then
/// the bytes of its `range`; after the last part, `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Multipart {
    /// `Content-Type` of the answer, instead of the stored one. It has no `Content-Range`.
    pub content_type: HeaderValue,
    /// `Content-Length` of the answer.
    pub length: u64,
    /// The parts.
    pub parts: Vec<Part>,
    /// What closes the answer.
    pub end: Bytes,
}

/// One part of a [`Multipart`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What goes before the bytes.
    pub head: Bytes,
    /// Which bytes of the body follow.
    pub range: Range<u64>,
}

impl Multipart {
    /// Lays out `ranges` (those of [`Ranges::Many`]) of a body of `length` bytes whose stored
    /// `Content-Type` is given. `boundary` must not be guessable by who wrote the body, so that it
    /// cannot occur there: 128 random bits.
    pub fn new(
        ranges: Vec<Range<u64>>,
        content_type: Option<&HeaderValue>,
        length: u64,
        boundary: u128,
    ) -> Self {
        let mut parts: Vec<Part> = Vec::with_capacity(ranges.len());
        for range in ranges {
            let line = if parts.is_empty() { "" } else { "\r\n" };
            let mut head = format!("{line}--{boundary:032x}\r\n").into_bytes();
            if let Some(content_type) = content_type {
                head.extend_from_slice(b"Content-Type: ");
                head.extend_from_slice(content_type.as_bytes());
                head.extend_from_slice(b"\r\n");
            }
            let place = content_range_text(&range, length);
            head.extend_from_slice(format!("Content-Range: {place}\r\n\r\n").as_bytes());
            let head = head.into();
            parts.push(Part { head, range });
        }
        let end = Bytes::from(format!("\r\n--{boundary:032x}--\r\n"));
        let bodies = parts
            .iter()
            .map(|p| p.head.len() as u64 + p.range.end - p.range.start);
        let length = bodies.fold(end.len() as u64, u64::saturating_add);
        let content_type = format!("multipart/byteranges; boundary={boundary:032x}");
        Self {
            content_type: HeaderValue::try_from(content_type).expect("it is visible ASCII"),
            length,
            parts,
            end,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use proptest::prelude::*;

    use super::*;

    const EARLY: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const LATE: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            let name: HeaderName = name.parse().unwrap();
            map.append(name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn ranges_are_read_as_rfc_9110_14_has_them() {
        use Ranges::{Many, One, Unsatisfiable, Whole};
        for (value, expected) in [
            // §14.1.2, its own examples, on 10,000 bytes
            ("bytes=0-499", One(0..500)),
            ("bytes=500-999", One(500..1000)),
            ("bytes=-500", One(9500..10_000)),
            ("bytes=9500-", One(9500..10_000)),
            ("bytes=0-0,-1", Many(vec![0..1, 9999..10_000])),
            (
                "bytes= 0-999, 4500-5499, -1000",
                Many(vec![0..1000, 4500..5500, 9000..10_000]),
            ),
            ("bytes=500-600,601-999", Many(vec![500..601, 601..1000])),
            ("bytes=500-700,601-999", Many(vec![500..701, 601..1000])),
            // clamped, and unsatisfiable ones left out
            ("bytes=0-", One(0..10_000)),
            ("bytes=9999-10000", One(9999..10_000)),
            ("bytes=0-99999999999999999999999", One(0..10_000)),
            ("bytes=-10001", One(0..10_000)),
            ("bytes=-99999999999999999999999", One(0..10_000)),
            ("bytes=10000-", Unsatisfiable),
            ("bytes=10000-10001", Unsatisfiable),
            ("bytes=99999999999999999999999-", Unsatisfiable),
            ("bytes=-0", Unsatisfiable),
            ("bytes=-0,10000-", Unsatisfiable),
            ("bytes=10000-,5-5", One(5..6)),
            // §14.1: units are case-insensitive; §5.6.1.2: empty members
            ("BYTES=0-0", One(0..1)),
            ("bytes=,0-0 ,,", One(0..1)),
            // not understood, or broken: ignored (§14.2)
            ("", Whole),
            ("bytes", Whole),
            ("bytes=", Whole),
            ("bytes=,", Whole),
            ("bytes=-", Whole),
            ("bytes=1-0", Whole),
            ("bytes=0-1,1-0", Whole),
            ("bytes=a-b", Whole),
            ("bytes=0-1-2", Whole),
            ("bytes=0", Whole),
            ("bytes=+0-1", Whole),
            ("bytes=0 - 1", Whole),
            ("bytes=--1", Whole),
            ("bytes:0-1", Whole),
            ("bytes =0-1", Whole),
            ("items=0-1", Whole),
            // longer than the body
            ("bytes=0-,0-", Whole),
            ("bytes=0-5000,4000-", Whole),
        ] {
            assert_eq!(parse(value.as_bytes(), 10_000), expected, "{value}");
        }
        for value in ["bytes=0-", "bytes=0-0", "bytes=-1", "bytes=-0", "bytes=5-"] {
            assert_eq!(parse(value.as_bytes(), 0), Whole, "{value}");
        }
        assert_eq!(parse(b"bytes=0-", u64::MAX), One(0..u64::MAX));
        assert_eq!(
            parse(b"bytes=18446744073709551615-", u64::MAX),
            Unsatisfiable
        );
        let spec = |count: usize| format!("bytes={}", ["0-0"].repeat(count).join(","));
        assert!(matches!(
            parse(spec(RANGES_MAX).as_bytes(), 10_000),
            Many(_)
        ));
        assert_eq!(parse(spec(RANGES_MAX + 1).as_bytes(), 10_000), Whole);
    }

    #[test]
    fn if_range_needs_a_strong_match() {
        // RFC 9110 §13.1.5
        let stored = map(&[("etag", "\"a\""), ("last-modified", EARLY), ("date", LATE)]);
        let weak = map(&[
            ("etag", "W/\"a\""),
            ("last-modified", EARLY),
            ("date", EARLY),
        ]);
        for (condition, of_stored, of_weak) in [
            ("\"a\"", true, false),
            ("W/\"a\"", false, false),
            ("\"b\"", false, false),
            ("\"a\", \"b\"", false, false),
            (EARLY, true, false),
            ("Sun Nov  6 08:49:37 1994", true, false),
            (LATE, false, false),
            ("*", false, false),
            ("", false, false),
        ] {
            let request = map(&[("if-range", condition), ("range", "bytes=0-0")]);
            assert_eq!(if_range_holds(&request, &stored), of_stored, "{condition}");
            assert_eq!(if_range_holds(&request, &weak), of_weak, "{condition}");
            let expected = if of_stored {
                Ranges::One(0..1)
            } else {
                Ranges::Whole
            };
            assert_eq!(requested(&request, &stored, 9), expected, "{condition}");
        }
        let twice = map(&[("if-range", "\"a\""), ("if-range", "\"a\"")]);
        assert!(!if_range_holds(&twice, &stored));
        let bare = map(&[("range", "bytes=0-0")]);
        assert_eq!(requested(&bare, &HeaderMap::new(), 9), Ranges::One(0..1));
        let two = map(&[("range", "bytes=0-0"), ("range", "bytes=1-1")]);
        assert_eq!(requested(&two, &stored, 9), Ranges::Whole);
        assert_eq!(requested(&HeaderMap::new(), &stored, 9), Ranges::Whole);
    }

    #[test]
    fn parts_are_laid_out_as_multipart() {
        // RFC 9110 §14.6, RFC 2046 §5.1.1
        let kind = HeaderValue::from_static("text/plain");
        let answer = Multipart::new(vec![0..2, 8..10], Some(&kind), 10, 0xab);
        let body = b"0123456789";
        let mut text = Vec::new();
        for part in &answer.parts {
            text.extend_from_slice(&part.head);
            let range = usize::try_from(part.range.start).unwrap()
                ..usize::try_from(part.range.end).unwrap();
            text.extend_from_slice(&body[range]);
        }
        text.extend_from_slice(&answer.end);
        let b = "000000000000000000000000000000ab";
        let expected = format!(
            "--{b}\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/10\r\n\r\n01\r\n\
             --{b}\r\nContent-Type: text/plain\r\nContent-Range: bytes 8-9/10\r\n\r\n89\r\n\
             --{b}--\r\n"
        );
        assert_eq!(String::from_utf8(text).unwrap(), expected);
        assert_eq!(answer.length, expected.len() as u64);
        assert_eq!(
            answer.content_type,
            format!("multipart/byteranges; boundary={b}")
        );
        assert_eq!(content_range(&(0..2), 10), "bytes 0-1/10");
        assert_eq!(unsatisfied_range(10), "bytes */10");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_range_field(data: Vec<u8>) {
            fuzz_range(&data);
        }

        #[test]
        fn ranges_stay_within_the_body(
            length in prop_oneof![0u64..40, any::<u64>()],
            value in r"bytes=([0-9]{0,3}-([0-9]{0,3}|[0-9]{19,21})[, ]{0,2}){0,5}",
        ) {
            fuzz_range(&[&length.to_le_bytes(), value.as_bytes()].concat());
        }
    }
}
