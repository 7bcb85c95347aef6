//! Header fields as rules read them: by name. Most come as a map; those of a plain miss are judged in the
//! bytes that they were read into.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Header fields that can be looked up.
pub trait Lines {
    /// The values of the fields of this name, in order.
    fn lines<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]>;

    /// Whether there is a field of this name.
    fn has(&self, name: &HeaderName) -> bool {
        self.lines(name).next().is_some()
    }
}

impl Lines for HeaderMap {
    fn lines<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        self.get_all(name).iter().map(HeaderValue::as_bytes)
    }

    fn has(&self, name: &HeaderName) -> bool {
        self.contains_key(name)
    }
}
