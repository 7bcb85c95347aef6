//! Which pieces of an object a range needs. Pure.

use std::ops::Range;

use cluster::manifest::PIECE_BYTES;
use http::{HeaderMap, header};

use crate::{
    cache::policy::validator::only,
    deliver::range::{self, Ranges},
    upstream::schedule::FIRST_PIECES,
};

/// All pieces of a body of `length` bytes.
pub(super) fn all(length: u64) -> Range<u32> {
    0..number(length.div_ceil(PIECE_BYTES as u64))
}

/// The bytes of `pieces` of a body of `length` bytes.
pub(super) fn bytes_of(pieces: &Range<u32>, length: u64) -> Range<u64> {
    let at = |piece: u32| (u64::from(piece) * PIECE_BYTES as u64).min(length);
    at(pieces.start)..at(pieces.end)
}

/// The pieces that are asked for before the length of the body is known, if the request wants a range: the
/// first of those that it needs, as many as a first answer has; none where they cannot be told yet.
pub(super) fn pieces_at_first(request: &HeaderMap) -> Option<Range<u32>> {
    let wanted = only(request, &header::RANGE)?;
    // Behind every body, and with that length a range from the end begins there, too.
    let range = match range::parse(wanted.as_bytes(), u64::MAX) {
        Ranges::One(range) => range,
        Ranges::Many(ranges) => hull(&ranges)?,
        Ranges::Whole | Ranges::Unsatisfiable => return None,
    };
    let pieces = touched(&range);
    // A piece has a number below the greatest one.
    let start = pieces.start.min(u32::MAX - 1);
    let end = pieces.end.min(start.saturating_add(FIRST_PIECES));
    Some(start..end.max(start + 1))
}

/// The pieces of a body of `length` bytes, stored with these fields, that the request needs: those of its
/// range; all of them where it wants most of the body from its beginning on.
pub(super) fn pieces(request: &HeaderMap, stored: &HeaderMap, length: u64) -> Range<u32> {
    let all = all(length);
    let wanted = match range::requested(request, stored, length) {
        Ranges::Whole => return all,
        Ranges::One(range) => range,
        Ranges::Many(ranges) => match hull(&ranges) {
            Some(hull) => hull,
            None => return all,
        },
        // To say so takes the length only; a part has to be something.
        Ranges::Unsatisfiable => 0..1,
    };
    let pieces = touched(&wanted);
    let is_most = pieces.start == 0 && pieces.len() * 2 > all.len();
    match is_most {
        true => all,
        false => pieces.start..pieces.end.min(all.end),
    }
}

/// The pieces that the one range touches that a request wants of a body of `length` bytes, as far as that can be
/// told before the length is known: of a range from the end, the first piece, which tells it. `None` where it wants
/// several ranges, or all of the body.
pub(super) fn sliced(request: &HeaderMap, length: Option<u64>) -> Option<Range<u32>> {
    let wanted = only(request, &header::RANGE)?;
    let most = length.unwrap_or(u64::MAX);
    match range::parse(wanted.as_bytes(), most) {
        Ranges::One(range) if range == (0..most) => None,
        Ranges::One(range) => {
            let pieces = touched(&range);
            let is_known = pieces.start < u32::MAX - 1;
            Some(if is_known { pieces } else { 0..1 })
        }
        _ => None,
    }
}

/// The pieces that these bytes touch.
pub(super) fn touched(range: &Range<u64>) -> Range<u32> {
    let piece = PIECE_BYTES as u64;
    number(range.start / piece)..number(range.end.div_ceil(piece))
}

fn hull(ranges: &[Range<u64>]) -> Option<Range<u64>> {
    let start = ranges.iter().map(|range| range.start).min()?;
    let end = ranges.iter().map(|range| range.end).max()?;
    Some(start..end)
}

fn number(pieces: u64) -> u32 {
    u32::try_from(pieces).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = PIECE_BYTES as u64;

    fn request(range: &str) -> HeaderMap {
        let mut fields = HeaderMap::new();
        if !range.is_empty() {
            fields.insert(header::RANGE, range.parse().unwrap());
        }
        fields
    }

    #[test]
    fn a_range_needs_the_pieces_that_it_touches() {
        let last = u32::MAX - 1..u32::MAX;
        for (range, at_first, of_ten_and_a_half) in [
            ("", None, 0..11),
            ("bytes=0-65535", Some(0..1), 0..1),
            ("bytes=1048575-1048576", Some(0..2), 0..2),
            ("bytes=5242880-5308415", Some(5..6), 5..6),
            ("bytes=2097152-8388607", Some(2..6), 2..8),
            // Most of it from the beginning on: all of it.
            ("bytes=0-", Some(0..4), 0..11),
            ("bytes=0-6291456", Some(0..4), 0..11),
            ("bytes=1048576-", Some(1..5), 1..11),
            ("bytes=-65536", Some(last.clone()), 10..11),
            ("bytes=-2097152", Some(last), 8..11),
            ("bytes=99999999-", Some(95..99), 0..1),
            ("bytes=1048576-1048577,3145728-3145729", Some(1..4), 1..4),
            ("bytes=0-1,-1", Some(0..4), 0..11),
            ("pages=0-1", None, 0..11),
        ] {
            let request = request(range);
            let first = pieces_at_first(&request);
            assert_eq!(first, at_first, "{range}");
            let length = 10 * MIB + MIB / 2;
            let pieces = pieces(&request, &HeaderMap::new(), length);
            assert_eq!(pieces, of_ten_and_a_half, "{range}");
        }
    }

    #[test]
    fn one_range_that_is_not_all_is_had_in_slices() {
        for (range, unknown, of_ten) in [
            ("", None, None),
            ("bytes=0-", None, None),
            ("bytes=0-10485759", Some(0..10), None),
            ("bytes=0-1048575", Some(0..1), Some(0..1)),
            ("bytes=1048575-1048576", Some(0..2), Some(0..2)),
            ("bytes=3145728-", Some(3..u32::MAX), Some(3..10)),
            ("bytes=-1", Some(0..1), Some(9..10)),
            ("bytes=-1048577", Some(0..1), Some(8..10)),
            ("bytes=99999999-", Some(95..u32::MAX), None),
            ("bytes=0-1,3-4", None, None),
            ("pages=1-2", None, None),
        ] {
            let request = request(range);
            assert_eq!(sliced(&request, None), unknown, "{range}");
            assert_eq!(sliced(&request, Some(10 * MIB)), of_ten, "{range}");
        }
    }

    #[test]
    fn a_range_of_another_version_is_all_of_this_one() {
        let mut request = request("bytes=1048576-1048577");
        request.insert(header::IF_RANGE, "\"old\"".parse().unwrap());
        let mut stored = HeaderMap::new();
        stored.insert(header::ETAG, "\"new\"".parse().unwrap());
        assert_eq!(pieces(&request, &stored, 4 * MIB), 0..4);
        stored.insert(header::ETAG, "\"old\"".parse().unwrap());
        assert_eq!(pieces(&request, &stored, 4 * MIB), 1..2);
    }

    proptest! {
        /// Whatever is asked for lies within the pieces, which lie within the body.
        #[test]
        fn pieces_hold_what_was_asked_for(
            start in 0..40 * MIB,
            more in 0..40 * MIB,
            length in 1..40 * MIB,
        ) {
            let request = request(&format!("bytes={start}-{}", start + more));
            let pieces = pieces(&request, &HeaderMap::new(), length);
            prop_assert!(!pieces.is_empty() && pieces.end <= all(length).end);
            let bytes = bytes_of(&pieces, length);
            if start < length {
                prop_assert!(bytes.start <= start && (start + more + 1).min(length) <= bytes.end);
            }
            prop_assert_eq!(bytes_of(&all(length), length), 0..length);
            let first = pieces_at_first(&request).unwrap();
            prop_assert!(!first.is_empty() && first.len() <= FIRST_PIECES as usize);
        }
    }
}
