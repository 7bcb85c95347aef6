//! A path in every form in which somebody behind this cache may read it, so that a rule about it
//! cannot be walked around by writing it differently.

use std::borrow::Cow;

use crate::cache::{key::canonical_path, percent::decoded};

/// How often a path is decoded at most: an origin decodes it once, a server between here and there
/// may have done so before, and nobody is known to do it more often.
const DECODINGS_MAX: usize = 3;

/// What a rule says that paths begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    canonical: Box<[u8]>,
    decoded: Box<[u8]>,
}

impl Prefix {
    /// From the path as an operator writes it: `/café/` and `/caf%c3%a9/` are the same.
    pub fn new(written: &str) -> Self {
        Self {
            canonical: canonical_path(sendable(written).as_bytes()).into(),
            decoded: decoded(written.as_bytes()).into(),
        }
    }

    /// In the form in which objects are named.
    pub fn canonical(&self) -> &[u8] {
        &self.canonical
    }

    /// Whether every path that begins like `other` begins like this.
    pub fn is_around(&self, other: &Self) -> bool {
        other.canonical.starts_with(&self.canonical)
    }

    /// Whether a decoded form of a path begins so.
    pub fn begins(&self, form: &[u8]) -> bool {
        form.starts_with(&self.decoded) || form.starts_with(&self.canonical)
    }
}

/// A path or query as it can be sent, from what an operator writes.
pub fn sendable(written: &str) -> String {
    let mut sendable = String::with_capacity(written.len());
    for byte in written.bytes() {
        match byte {
            b'!'..=b'~' => sendable.push(char::from(byte)),
            _ => sendable.extend(['%', digit(byte >> 4), digit(byte & 15)]),
        }
    }
    sendable
}

fn digit(value: u8) -> char {
    char::from_digit(value.into(), 16)
        .expect("four bits are a hex digit")
        .to_ascii_uppercase()
}

/// The forms of a request's path.
#[derive(Debug)]
pub struct Readings<'a> {
    canonical: Cow<'a, [u8]>,
    /// Decoded and resolved, in all ways that give something else.
    others: Vec<Vec<u8>>,
}

impl<'a> Readings<'a> {
    /// Reads a path. Most have one form only, and nothing is allocated for them.
    pub fn of(path: &'a [u8]) -> Self {
        let canonical = canonical_path(path);
        let mut others = Vec::new();
        if !is_plain(path) {
            let mut plain = canonical.clone();
            for _ in 0..=DECODINGS_MAX {
                for parameters in [true, false] {
                    let resolved = resolved(&plain, parameters);
                    if *resolved != *canonical && !others.contains(&resolved) {
                        others.push(resolved);
                    }
                }
                let next = decoded(&plain).into_owned();
                if *next == *plain {
                    break;
                }
                plain = Cow::Owned(next);
            }
        }
        Self { canonical, others }
    }

    /// A path as it was sent, for whom it is all the same.
    pub fn as_sent(path: &'a [u8]) -> Self {
        Self {
            canonical: Cow::Borrowed(path),
            others: Vec::new(),
        }
    }

    /// Whether the path begins so in the form in which objects are named.
    pub fn names(&self, prefix: &Prefix) -> bool {
        self.canonical.starts_with(&prefix.canonical)
    }

    /// All that it may be read as, first the form in which objects are named.
    pub fn forms(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&*self.canonical).chain(self.others())
    }

    /// What else it may be read as.
    pub fn others(&self) -> impl Iterator<Item = &[u8]> {
        self.others.iter().map(Vec::as_slice)
    }

    /// Whether it begins so in any form: for what must not get through.
    pub fn any_begins_with(&self, prefix: &Prefix) -> bool {
        self.names(prefix) || self.others().any(|form| prefix.begins(form))
    }

    /// Whether it begins so in every form: for what alone may get through.
    pub fn all_begin_with(&self, prefix: &Prefix) -> bool {
        self.names(prefix) && self.others().all(|form| prefix.begins(form))
    }
}

/// Whether nobody can read another path in it.
fn is_plain(path: &[u8]) -> bool {
    !path.iter().any(|b| matches!(b, b'%' | b'\\' | b';'))
        && !path.windows(2).any(|two| matches!(two, b"//" | b"/."))
}

/// Without dot segments (RFC 3986 §5.2.4) and empty ones, as most servers look for files; with `\`
/// as `/`, as some do; and without what follows a `;` in a segment, as servlets do, unless
/// `parameters` stay.
fn resolved(path: &[u8], parameters: bool) -> Vec<u8> {
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut open = false;
    for segment in path.split(|b| matches!(b, b'/' | b'\\')) {
        let named = match segment.iter().position(|b| *b == b';') {
            Some(end) if !parameters => &segment[..end],
            _ => segment,
        };
        open = true;
        match named {
            b"" | b"." => {}
            b".." => drop(segments.pop()),
            _ => {
                segments.push(named);
                open = false;
            }
        }
    }
    let mut resolved = Vec::with_capacity(path.len() + 1);
    for segment in segments {
        resolved.push(b'/');
        resolved.extend_from_slice(segment);
    }
    if open {
        resolved.push(b'/');
    }
    resolved
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_cannot_be_disguised() {
        let admin = Prefix::new("/admin/");
        for path in [
            "/admin/",
            "/admin/x",
            "/%61dmin/x",
            "/%61%64%6D%69%6e%2Fx",
            "/%2561dmin/",
            "/%25%36%31dmin/",
            "/x/../admin/",
            "/x/..%2fadmin/",
            "/x/%2e%2E/admin/",
            "/x/%252e%252e/admin/",
            "/./admin/",
            "/../../admin/",
            "//admin//x",
            "/admin//",
            "/admin/.",
            "/admin/x/..",
            "/admin;a=b/x",
            "/x/..;/admin/",
            "/x\\..\\admin\\y",
            "/x%5c..%5cadmin%5cy",
            "/x/y/../../admin/",
        ] {
            let readings = Readings::of(path.as_bytes());
            assert!(readings.any_begins_with(&admin), "{path}: {readings:?}");
        }
        for path in [
            "/",
            "/admin",
            "/administrator/",
            "/x/admin/",
            "/admi%6",
            "*",
            "",
        ] {
            let readings = Readings::of(path.as_bytes());
            assert!(!readings.any_begins_with(&admin), "{path}: {readings:?}");
        }
    }

    #[test]
    fn what_alone_may_get_through_does_so_in_every_form() {
        let public = Prefix::new("/public/");
        for (path, all) in [
            ("/public/", true),
            ("/public/a", true),
            ("/%70ublic/a%20b", true),
            ("/public/a/../b", true),
            ("/public/caf%C3%A9/../%C3%A9", true),
            ("/public/../admin", false),
            ("/public/%2e%2e/admin", false),
            ("/public/%252e%252e/admin", false),
            ("/public/..;/admin", false),
            ("/public%2Fa", false),
            ("/x/../public/", false),
            ("/publi", false),
        ] {
            let readings = Readings::of(path.as_bytes());
            assert_eq!(
                readings.all_begin_with(&public),
                all,
                "{path}: {readings:?}"
            );
        }
    }

    #[test]
    fn a_prefix_may_be_written_as_people_read_it() {
        let [read, sent] = ["/café au lait/", "/caf%c3%a9%20au%20lait/"].map(Prefix::new);
        assert_eq!(read, sent);
        for prefix in [read, sent] {
            assert!(Readings::of(b"/caf%C3%A9%20au%20lait/1").names(&prefix));
            assert!(Readings::of("/café%20au%20lait/1".as_bytes()).any_begins_with(&prefix));
        }
    }

    proptest! {
        /// A resolved path is one that no server resolves any further.
        #[test]
        fn a_resolved_path_is_plain(path in "/[./a;\\\\]{0,12}") {
            let once = resolved(path.as_bytes(), false);
            prop_assert_eq!(&resolved(&once, false), &once);
            prop_assert!(once.starts_with(b"/"));
            prop_assert!(!once.windows(2).any(|two| two == b"//"));
        }
    }
}
