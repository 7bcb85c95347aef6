//! Parts of an object: what a 206 brought, what is missing of the rest, and how two parts make a larger
//! one (RFC 9111 §3.3, §3.4; RFC 9110 §14.4).

use std::ops::Range;

use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};

use super::validator::only;

/// A contiguous part of an object's body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Which bytes of the body; never empty, and never all of them where a part is kept as one.
    pub range: Range<u64>,
    /// Length of the whole body.
    pub of: u64,
}

/// What the body of an answer is, by its status and `Content-Range`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of the object; its length, where a 206 tells it.
    Whole(Option<u64>),
    /// A part of it.
    Part(Part),
    /// Something that cannot be kept: several parts, or a part of unknown place.
    Unknown,
}

impl Extent {
    /// The extent of an answer with this status and these fields.
    pub fn of(status: StatusCode, headers: &HeaderMap) -> Self {
        if status != StatusCode::PARTIAL_CONTENT {
            return Self::Whole(None);
        }
        Part::of(headers).map_or(Self::Unknown, Self::from)
    }
}

impl From<Part> for Extent {
    fn from(part: Part) -> Self {
        if part.range == (0..part.of) {
            Self::Whole(Some(part.of))
        } else {
            Self::Part(part)
        }
    }
}

/// Reads `bytes first-last/length`.
fn read(value: &[u8]) -> Option<Part> {
    let text = std::str::from_utf8(value).ok()?;
    let (unit, rest) = text.split_once(' ')?;
    let (range, of) = rest.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number = |text: &str| -> Option<u64> {
        text.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| text.parse().ok())?
    };
    let (first, last, of) = (number(first)?, number(last)?, number(of)?);
    let fits = unit.eq_ignore_ascii_case("bytes") && first <= last && last < of;
    fits.then(|| Part {
        range: first..last + 1,
        of,
    })
}

/// Two parts put together: some bytes of the one that is stored, the fetched one, and again some bytes
/// of the stored one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Which bytes of the stored part go before the fetched one, counted from its own beginning.
    pub before: Range<u64>,
    /// Which go behind it.
    pub after: Range<u64>,
    /// What they make together.
    pub extent: Extent,
}

impl Part {
    /// What the `Content-Range` of an answer says that it is; this may be all of the body.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        read(only(headers, &header::CONTENT_RANGE)?.as_bytes())
    }

    /// The one range of the body that is missing to make it whole; `None` when there are two.
    pub fn missing(&self) -> Option<Range<u64>> {
        match (self.range.start, self.range.end) {
            (0, end) => Some(end..self.of),
            (start, end) if end == self.of => Some(0..start),
            _ => None,
        }
    }

    /// How long the part is.
    pub fn length(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Joins this stored part and a fetched one of the same object; `None` when they do not touch.
    pub fn join(&self, fetched: &Self) -> Option<Joined> {
        let (own, new) = (&self.range, &fetched.range);
        if self.of != fetched.of || own.end < new.start || new.end < own.start {
            return None;
        }
        let range = own.start.min(new.start)..own.end.max(new.end);
        let part = Self { range, of: self.of };
        Some(Joined {
            before: 0..new.start.saturating_sub(own.start),
            after: new.end.saturating_sub(own.start).min(self.length())..self.length(),
            extent: part.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extent(status: u16, content_range: &[&'static str]) -> Extent {
        let mut headers = HeaderMap::new();
        for value in content_range {
            headers.append(header::CONTENT_RANGE, value.parse().unwrap());
        }
        Extent::of(StatusCode::from_u16(status).unwrap(), &headers)
    }

    fn part(range: Range<u64>, of: u64) -> Part {
        Part { range, of }
    }

    #[test]
    fn a_206_says_which_part_it_is() {
        // RFC 9110 §14.4
        for (lines, expected) in [
            (&["bytes 0-4/10"][..], Extent::Part(part(0..5, 10))),
            (&["Bytes 5-9/10"], Extent::Part(part(5..10, 10))),
            (&["bytes 0-9/10"], Extent::Whole(Some(10))),
            (&["bytes 0-4/*"], Extent::Unknown),
            (&["bytes */10"], Extent::Unknown),
            (&["bytes 4-0/10"], Extent::Unknown),
            (&["bytes 0-10/10"], Extent::Unknown),
            (&["bytes +0-4/10"], Extent::Unknown),
            (&["bytes 0-/10"], Extent::Unknown),
            (&["pages 0-4/10"], Extent::Unknown),
            (&["bytes 0-4/10", "bytes 5-9/10"], Extent::Unknown),
            (&["0-4/10"], Extent::Unknown),
            // multipart/byteranges has none in its head (§15.3.7.2)
            (&[], Extent::Unknown),
        ] {
            assert_eq!(extent(206, lines), expected, "{lines:?}");
        }
        assert_eq!(extent(200, &["bytes 0-4/10"]), Extent::Whole(None));
    }

    #[test]
    fn one_gap_can_be_closed() {
        assert_eq!(part(0..5, 10).missing(), Some(5..10));
        assert_eq!(part(5..10, 10).missing(), Some(0..5));
        assert_eq!(part(3..5, 10).missing(), None);
    }

    proptest! {
        /// RFC 9111 §3.4: whatever the order and overlap, the bytes come out right.
        #[test]
        fn parts_of_one_body_join_to_what_they_are_of(
            (a, b) in (0u64..20, 0u64..20), (c, d) in (0u64..20, 0u64..20),
        ) {
            let body: Vec<u8> = (0..20).collect();
            let own = part(a.min(b)..a.max(b) + 1, 21);
            let new = part(c.min(d)..c.max(d) + 1, 21);
            let bytes = |r: &Range<u64>| body.get(r.start as usize..(r.end as usize).min(20)).unwrap_or_default().to_vec();
            prop_assume!(own.range.end <= 20 && new.range.end <= 20);
            let touch = own.range.start <= new.range.end && new.range.start <= own.range.end;
            let joined = own.join(&new);
            prop_assert_eq!(joined.is_some(), touch);
            if let Some(joined) = joined {
                let stored = bytes(&own.range);
                let cut = |r: &Range<u64>| stored[r.start as usize..r.end as usize].to_vec();
                let all = [cut(&joined.before), bytes(&new.range), cut(&joined.after)].concat();
                let range = match joined.extent {
                    Extent::Part(part) => part.range,
                    _ => 0..21,
                };
                prop_assert_eq!(all, bytes(&range));
            }
        }
    }
}
