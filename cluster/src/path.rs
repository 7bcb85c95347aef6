//! Paths of URLs, as RFC 3986 reads them. Pure.

use std::borrow::Cow;

/// An absolute path without `.` and `..` (RFC 3986 §5.2.4). It is shorter for each that was there. Empty segments
/// stay, and what is percent-encoded is not looked into.
pub fn without_dot_segments(path: &[u8]) -> Cow<'_, [u8]> {
    let is_dots = |segment: &[u8]| matches!(segment, b"." | b"..");
    let segments = || path.split(|byte| *byte == b'/');
    if !segments().any(is_dots) {
        return Cow::Borrowed(path);
    }
    let mut plain = Vec::with_capacity(path.len());
    // Before the first slash there is nothing.
    for segment in segments().skip(1) {
        match segment {
            b"." => {}
            b".." => plain.truncate(plain.iter().rposition(|byte| *byte == b'/').unwrap_or(0)),
            _ => {
                plain.push(b'/');
                plain.extend_from_slice(segment);
            }
        }
    }
    // What ends with dots names a directory.
    if segments().next_back().is_some_and(is_dots) {
        plain.push(b'/');
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str) -> String {
        String::from_utf8(without_dot_segments(path.as_bytes()).into_owned()).unwrap()
    }

    #[test]
    fn dot_segments_are_removed_as_rfc_3986_does() {
        // §5.2.4, and §5.4 merged with its base, /b/c/d;p.
        for (path, plain) in [
            ("/a/b/c/./../../g", "/a/g"),
            ("/mid/content=5/../6", "/mid/6"),
            ("/b/c/g", "/b/c/g"),
            ("/b/c/./g", "/b/c/g"),
            ("/b/c/g/", "/b/c/g/"),
            ("/b/c/.", "/b/c/"),
            ("/b/c/./", "/b/c/"),
            ("/b/c/..", "/b/"),
            ("/b/c/../", "/b/"),
            ("/b/c/../g", "/b/g"),
            ("/b/c/../..", "/"),
            ("/b/c/../../", "/"),
            ("/b/c/../../g", "/g"),
            ("/b/c/../../../g", "/g"),
            ("/b/c/../../../../g", "/g"),
            ("/./g", "/g"),
            ("/../g", "/g"),
            ("/b/c/g.", "/b/c/g."),
            ("/b/c/.g", "/b/c/.g"),
            ("/b/c/g..", "/b/c/g.."),
            ("/b/c/..g", "/b/c/..g"),
            ("/b/c/./../g", "/b/g"),
            ("/b/c/./g/.", "/b/c/g/"),
            ("/b/c/g/./h", "/b/c/g/h"),
            ("/b/c/g/../h", "/b/c/h"),
            ("/b/c/g;x=1/./y", "/b/c/g;x=1/y"),
            ("/b/c/g;x=1/../y", "/b/c/y"),
        ] {
            assert_eq!(text(path), plain, "{path}");
        }
    }

    #[test]
    fn empty_segments_stay_and_what_is_encoded_is_no_dot() {
        for (path, plain) in [
            ("/", "/"),
            ("/.", "/"),
            ("/..", "/"),
            ("//..", "/"),
            ("/..//", "//"),
            ("/a//../b", "/a/b"),
            ("/a/.//b", "/a//b"),
            ("/a/%2e%2e/b", "/a/%2e%2e/b"),
            ("/...", "/..."),
        ] {
            assert_eq!(text(path), plain, "{path}");
        }
    }
}
