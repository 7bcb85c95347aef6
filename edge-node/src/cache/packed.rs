//! The header fields of a stored response, packed as they stand on disk; and a map of them once somebody
//! looks for one. Most of what a large tier holds is never looked at again, and a map takes several
//! allocations and some 100 bytes for each field.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::OnceLock,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Serialize, Serializer, ser::SerializeSeq};

use super::policy::lines::Lines;

/// Header fields, packed or as a map: reads like a map either way.
#[derive(Clone, Default)]
pub struct Packed {
    /// A sequence of names and values, as [`Fields`] encodes; `None`: there is only the map.
    bytes: Option<Bytes>,
    map: OnceLock<Box<HeaderMap>>,
}

/// How much header fields are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// How many there are.
    pub fields: usize,
    /// Bytes of their names and values.
    pub bytes: usize,
}

impl Packed {
    /// What [`Fields`] has encoded.
    pub(super) fn new(bytes: Bytes) -> Self {
        Self {
            bytes: Some(bytes),
            map: OnceLock::new(),
        }
    }

    /// How much they are, without a map if there is none yet.
    pub fn size(&self) -> Size {
        match (&self.bytes, self.map.get()) {
            (Some(bytes), None) => Size::of(unpacked(bytes)),
            _ => Size::of(
                self.iter()
                    .map(|(name, value)| (name.as_ref(), value.as_bytes())),
            ),
        }
    }

    /// How many bytes [`Packed::encode`] makes of fields.
    pub(super) fn encoded_bytes<'a>(fields: impl Iterator<Item = (&'a str, &'a [u8])>) -> usize {
        let (mut count, mut sum) = (0, 0);
        for (name, value) in fields {
            count += 1;
            sum += number_bytes(name.len()) + name.len() + number_bytes(value.len()) + value.len();
        }
        sum + number_bytes(count)
    }

    /// Appends fields to `out` as [`Fields`] encodes them, names in lower case.
    pub(super) fn encode<'a>(
        fields: impl Iterator<Item = (&'a str, &'a [u8])> + Clone,
        out: &mut Vec<u8>,
    ) {
        push_number(fields.clone().count(), out);
        for (name, value) in fields {
            push_number(name.len(), out);
            let at = out.len();
            out.extend_from_slice(name.as_bytes());
            out[at..].make_ascii_lowercase();
            push_number(value.len(), out);
            out.extend_from_slice(value);
        }
    }

    /// The map of them, for who changes it.
    pub fn into_map(self) -> HeaderMap {
        let Self { bytes, map } = self;
        match map.into_inner() {
            Some(map) => *map,
            None => bytes.as_deref().map_or_else(HeaderMap::new, map_of),
        }
    }

    /// A copy of the map, for who changes it.
    pub fn to_map(&self) -> HeaderMap {
        match (self.map.get(), &self.bytes) {
            (Some(map), _) => (**map).clone(),
            (None, Some(bytes)) => map_of(bytes),
            (None, None) => HeaderMap::new(),
        }
    }

    fn map(&self) -> &HeaderMap {
        self.map
            .get_or_init(|| Box::new(self.bytes.as_deref().map_or_else(HeaderMap::new, map_of)))
    }
}

impl From<HeaderMap> for Packed {
    fn from(map: HeaderMap) -> Self {
        Self {
            bytes: None,
            map: OnceLock::from(Box::new(map)),
        }
    }
}

impl Deref for Packed {
    type Target = HeaderMap;

    fn deref(&self) -> &HeaderMap {
        self.map()
    }
}

impl DerefMut for Packed {
    fn deref_mut(&mut self) -> &mut HeaderMap {
        self.map();
        self.bytes = None;
        self.map.get_mut().expect("it was made just now")
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.map().fmt(f)
    }
}

/// Encodes as the fields of a [`Manifest`](cluster::manifest::Manifest) do.
pub(super) struct Fields<'a>(pub(super) &'a HeaderMap);

/// Encodes as a sequence of bytes does, in one go.
struct Value<'a>(&'a [u8]);

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_seq(Some(self.0.len()))?;
        for (name, value) in self.0 {
            fields.serialize_element(&(name.as_str(), Value(value.as_bytes())))?;
        }
        fields.end()
    }
}

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl Size {
    fn of<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        fields.fold(Self::default(), |sum, (name, value)| Self {
            fields: sum.fields + 1,
            bytes: sum.bytes + name.len() + value.len(),
        })
    }
}

impl Lines for Packed {
    fn lines<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        self.map().lines(name)
    }
}

fn map_of(packed: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(unpacked(packed).count());
    for (name, value) in unpacked(packed) {
        let name = HeaderName::from_bytes(name);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers
}

/// Names and values of what [`Fields`] has encoded.
fn unpacked(packed: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = packed;
    let count = take_number(&mut rest).unwrap_or(0);
    (0..count).map_while(move |_| Some((take_bytes(&mut rest)?, take_bytes(&mut rest)?)))
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take_number(rest)?;
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(bytes)
}

/// Numbers as postcard has them: seven bits in a byte, the lowest first, the high bit on all but the last.
fn take_number(rest: &mut &[u8]) -> Option<usize> {
    let mut number = 0;
    for shift in (0..usize::BITS).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        number |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// How many bytes a number takes.
fn number_bytes(number: usize) -> usize {
    (usize::BITS - (number | 1).leading_zeros()).div_ceil(7) as usize
}

fn push_number(mut number: usize, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(0x80 | (number & 0x7f) as u8);
        number >>= 7;
    }
    out.push((number & 0x7f) as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_reads_like_the_map_that_it_was() {
        let mut map = HeaderMap::new();
        for (name, value) in [
            ("content-type", "text/plain"),
            ("x-a", ""),
            ("x-a", "2"),
            ("etag", "\"1\""),
        ] {
            map.append(name, value.parse().unwrap());
        }
        let long = "x".repeat(70_000);
        map.append("x-long", long.parse().unwrap());
        map.append("x-latin", HeaderValue::from_bytes(b"\xe4").unwrap());
        let bytes = postcard::to_allocvec(&Fields(&map)).unwrap();
        let mut same = Vec::new();
        let fields: Vec<_> = map
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        Packed::encode(fields.iter().copied(), &mut same);
        assert_eq!(same, bytes);
        assert_eq!(Packed::encoded_bytes(fields.into_iter()), bytes.len());
        for cut in 0..200 {
            assert!(map_of(&bytes[..cut]).len() < map.len());
        }
        let packed = Packed::new(bytes.into());
        let plain = Packed::from(map.clone());
        assert_eq!(packed.size(), plain.size());
        assert_eq!(packed.to_map(), map);
        assert!(packed.map.get().is_none(), "nobody has looked for a field");
        assert_eq!(packed.get_all("x-a").iter().collect::<Vec<_>>(), ["", "2"]);
        assert_eq!(packed.size(), plain.size());
        assert_eq!(packed.clone().into_map(), map);
        let mut changed = packed;
        changed.insert("x-a", "3".parse().unwrap());
        assert_eq!(changed.get("x-a").unwrap(), "3");
        assert_eq!(changed.to_map().len(), map.len() - 1);
        assert_eq!(Packed::default().len(), 0);
    }
}
