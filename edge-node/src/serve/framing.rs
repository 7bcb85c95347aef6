//! Finds HTTP/1 request heads that hyper accepts and a proxy should not.
//!
//! - Both `Content-Length` and `Transfer-Encoding`: RFC 9112 §6.1 lets a server refuse such a request,
//!   and a proxy in front of other people's origins should: it is how requests are smuggled. hyper
//!   resolves the ambiguity safely (the transfer coding wins, and what goes on to the origin is framed
//!   anew) but drops the evidence.
//! - A fragment in the target (§3.2): hyper cuts it off, so the origin would see another target.
//!
//! Both are gone once hyper has parsed the head, so they are looked for in the bytes, as is whether a head that
//! is too long has a request line that is. The scanner follows bodies by their length or their chunks. Where hyper will refuse what it reads, and on
//! HTTP/2, it no longer knows where heads begin, and stays silent.

/// What is wrong with a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It tells the length of its body in two ways.
    TwoLengths,
    /// Its target has a fragment.
    Fragment,
}

/// Follows the bytes of one connection from the client.
#[derive(Debug)]
pub struct Scanner {
    at: At,
    head: Vec<u8>,
    head_bytes_max: usize,
    heads: u64,
    /// The last head was too long before its first line ended.
    line_too_long: bool,
    /// Line ends behind the last request: hyper may hold a part of them.
    line_ends: bool,
}

#[derive(Debug)]
enum At {
    Head,
    Body { left: u64 },
    Chunked(Chunked),
    Lost,
}

impl Scanner {
    /// Starts at the first byte of a connection; heads longer than `head_bytes_max` are not followed.
    pub fn new(head_bytes_max: usize) -> Self {
        Self {
            at: At::Head,
            head: Vec::new(),
            head_bytes_max,
            heads: 0,
            line_too_long: false,
            line_ends: false,
        }
    }

    /// Whether nothing was scanned yet.
    pub fn is_at_start(&self) -> bool {
        matches!(self.at, At::Head) && self.head.is_empty() && self.heads == 0
    }

    /// Whether the client has a request to make, or to complete, given that so many were answered.
    pub fn owes(&self, answered: u64) -> bool {
        matches!(self.at, At::Head) && self.heads == answered
    }

    /// How many requests there were, if the bytes so far are whole requests and nothing else.
    pub fn whole_requests(&self) -> Option<u64> {
        let between = matches!(self.at, At::Head) && self.head.is_empty() && !self.line_ends;
        between.then_some(self.heads)
    }

    /// Takes what was read; returns the number (from 1) of a request with a flaw, if its head ends
    /// within `bytes`. Nothing is looked for behind it.
    pub fn scan(&mut self, mut bytes: &[u8]) -> Option<(u64, Flaw)> {
        while !bytes.is_empty() {
            match &mut self.at {
                At::Lost => return None,
                At::Body { left } => {
                    bytes = skip(left, bytes);
                    if *left == 0 {
                        self.at = At::Head;
                    }
                }
                At::Chunked(chunked) => match chunked.follow(bytes) {
                    Ok(None) => return None,
                    Ok(Some(rest)) => {
                        bytes = rest;
                        self.at = At::Head;
                    }
                    Err(Malformed) => self.lose(),
                },
                At::Head => {
                    // RFC 9112 §2.2: empty lines before a request are none of it.
                    if self.head.is_empty() {
                        let first = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n'));
                        bytes = &bytes[first.unwrap_or(bytes.len())..];
                        self.line_ends |= first != Some(0);
                    }
                    // An end may lie across two reads; a head that came whole is not copied.
                    let found = if self.head.is_empty() {
                        end_of_head(bytes, 0).map(|end| (read(&bytes[..end]), end))
                    } else {
                        let before = self.head.len();
                        self.head.extend_from_slice(bytes);
                        end_of_head(&self.head, before.saturating_sub(3))
                            .map(|end| (read(&self.head[..end]), end.saturating_sub(before)))
                    };
                    let Some((framing, used)) = found else {
                        if self.head.is_empty() {
                            self.head.extend_from_slice(bytes);
                        }
                        // As hyper counts.
                        if self.head.len() >= self.head_bytes_max {
                            let line = &self.head[..self.head_bytes_max];
                            self.line_too_long = !line.contains(&b'\n');
                            self.lose();
                        }
                        return None;
                    };
                    self.head.clear();
                    self.heads += 1;
                    self.line_ends = false;
                    bytes = &bytes[used..];
                    match framing {
                        Ok(Framing::Length(0)) => {}
                        Ok(Framing::Length(left)) => self.at = At::Body { left },
                        Ok(Framing::Chunked) => self.at = At::Chunked(Chunked::Size(None)),
                        Ok(Framing::Unknown) => self.lose(),
                        Err(flaw) => {
                            self.lose();
                            return Some((self.heads, flaw));
                        }
                    }
                }
            }
        }
        None
    }

    /// Whether the client is in the middle of a body, as far as it has been followed.
    pub fn is_within_body(&self) -> bool {
        matches!(self.at, At::Body { .. } | At::Chunked(_))
    }

    /// Whether the client has sent a request line that is longer than a head may be, and all requests before it,
    /// so many, were answered.
    pub fn has_long_line(&self, answered: u64) -> bool {
        self.line_too_long && self.heads == answered
    }

    fn lose(&mut self) {
        self.at = At::Lost;
        self.head = Vec::new();
    }
}

/// Where in a chunked body (RFC 9112 §7.1) the scanner is.
#[derive(Clone, Copy, Debug)]
enum Chunked {
    /// Among the digits of a chunk's size; `None` before the first.
    Size(Option<u64>),
    /// Behind them, up to the end of the line.
    Extension(u64),
    /// In a chunk of which that much is left, with the end of its line.
    Data(u64),
    /// In the trailers; whether the line has anything but its end.
    Trailers { empty: bool },
}

/// hyper will refuse it.
#[derive(Debug)]
struct Malformed;

impl Chunked {
    /// Goes on in `bytes`; the rest of them when the body ends there.
    fn follow<'a>(&mut self, mut bytes: &'a [u8]) -> Result<Option<&'a [u8]>, Malformed> {
        while let Some((&byte, rest)) = bytes.split_first() {
            if let Self::Data(left) = self {
                bytes = skip(left, bytes);
                if *left == 0 {
                    *self = Self::Size(None);
                }
                continue;
            }
            bytes = rest;
            *self = match (*self, byte) {
                (Self::Size(size), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                    let digit = char::from(byte).to_digit(16).unwrap_or(0);
                    let size = size.unwrap_or(0).checked_mul(16).ok_or(Malformed)?;
                    Self::Size(Some(size + u64::from(digit)))
                }
                (Self::Size(None), _) => return Err(Malformed),
                (Self::Size(Some(0)) | Self::Extension(0), b'\n') => Self::Trailers { empty: true },
                (Self::Size(Some(size)) | Self::Extension(size), b'\n') => {
                    Self::Data(size.checked_add(2).ok_or(Malformed)?)
                }
                (Self::Size(Some(size)) | Self::Extension(size), _) => Self::Extension(size),
                (Self::Trailers { empty: true }, b'\n') => return Ok(Some(rest)),
                (Self::Trailers { .. }, b'\n') => Self::Trailers { empty: true },
                (Self::Trailers { empty }, b'\r') => Self::Trailers { empty },
                (Self::Trailers { .. }, _) => Self::Trailers { empty: false },
                (Self::Data(_), _) => unreachable!("data is skipped above"),
            };
        }
        Ok(None)
    }
}

/// What of `bytes` lies behind the `left` ones, which are counted down.
fn skip<'a>(left: &mut u64, bytes: &'a [u8]) -> &'a [u8] {
    let skipped = usize::try_from(*left)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    *left -= skipped as u64;
    &bytes[skipped..]
}

enum Framing {
    Length(u64),
    Chunked,
    /// Not HTTP/1.
    Unknown,
}

/// The end of the empty line that ends a head, looked for from `from` on.
fn end_of_head(bytes: &[u8], mut from: usize) -> Option<usize> {
    while let Some(newline) = bytes[from..].iter().position(|&b| b == b'\n') {
        let at = from + newline + 1;
        match &bytes[at..] {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => from = at,
        }
    }
    None
}

fn read(head: &[u8]) -> Result<Framing, Flaw> {
    if head.starts_with(b"PRI * HTTP/2") {
        return Ok(Framing::Unknown);
    }
    let mut lines = head.split(|&b| b == b'\n');
    if lines
        .next()
        .is_some_and(|line| line.contains(&b'#') && has_fragment(line))
    {
        return Err(Flaw::Fragment);
    }
    let mut length = None;
    let mut coded = false;
    for line in lines {
        let Some(colon) = line.iter().position(|&b| b == b':') else {
            continue;
        };
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            coded = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let number = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
            length = Some(number.unwrap_or(0));
        }
    }
    match (length, coded) {
        (Some(_), true) => Err(Flaw::TwoLengths),
        (None, true) => Ok(Framing::Chunked),
        (length, false) => Ok(Framing::Length(length.unwrap_or(0))),
    }
}

/// Whether the target of a request line has a `#`; a method may have one.
fn has_fragment(line: &[u8]) -> bool {
    let target = line.split(|&b| b == b' ').nth(1);
    target.is_some_and(|target| target.contains(&b'#'))
}
#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const WITH_BODY: &str = "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello";
    const CHUNKED: &str = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    const BOTH: &str =
        "POST / HTTP/1.1\r\ncontent-length: 4\r\nTRANSFER-ENCODING : chunked\r\n\r\n0\r\n\r\n";

    fn scan_in(parts: &[&[u8]]) -> Option<(u64, Flaw)> {
        let mut scanner = Scanner::new(1024);
        parts.iter().filter_map(|part| scanner.scan(part)).next()
    }

    fn scan(text: &str) -> Option<(u64, Flaw)> {
        scan_in(&[text.as_bytes()])
    }

    #[test]
    fn both_lengths_are_found_behind_other_requests() {
        for (before, number) in [
            ("", 1),
            // RFC 9112 §2.2
            ("\r\n\r\n", 1),
            ("\n\n", 1),
            (PLAIN, 2),
            (WITH_BODY, 2),
            (&format!("{PLAIN}{WITH_BODY}\r\n"), 3),
            // §7.1
            (CHUNKED, 2),
            (&format!("{CHUNKED}{PLAIN}{CHUNKED}{WITH_BODY}"), 5),
            (
                &CHUNKED.replace("0\r\n", "0a\r\n0123456789\r\n1;x=\"y\"\r\nz\r\n00 \r\n"),
                2,
            ),
            (&CHUNKED.replace("0\r\n", "0\r\nA: b\r\nC: \r\n"), 2),
            (&CHUNKED.replace("0\r\n", "2\r\n\r\n\r\n0\r\n"), 2),
        ] {
            let found = scan(&format!("{before}{BOTH}"));
            assert_eq!(found, Some((number, Flaw::TwoLengths)), "{before:?}");
        }
        assert_eq!(scan(&format!("{PLAIN}{WITH_BODY}{CHUNKED}{PLAIN}")), None);
    }

    #[test]
    fn a_fragment_is_found_in_the_target_only() {
        for (head, flawed) in [
            ("GET /a#b HTTP/1.1\r\n\r\n", true),
            ("GET /a?b#c HTTP/1.1\nHost: a\n\n", true),
            ("G#T /a HTTP/1.1\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nX: #\r\n\r\n", false),
        ] {
            let found = scan(&format!("{PLAIN}{head}"));
            assert_eq!(found, flawed.then_some((2, Flaw::Fragment)), "{head:?}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_told_from_fields_that_are() {
        let long = "x".repeat(1024);
        for (text, expected) in [
            (format!("GET /{long}"), [true, false]),
            (format!("{PLAIN}\r\nGET /{long} HTTP/1.1"), [false, true]),
            (format!("GET / HTTP/1.1\r\nX: {long}"), [false; 2]),
            (format!("{WITH_BODY}GET /"), [false; 2]),
            (
                format!("POST / HTTP/1.1\r\nContent-Length: 9999\r\n\r\n{long}"),
                [false; 2],
            ),
        ] {
            for size in [100, text.len()] {
                let mut scanner = Scanner::new(1024);
                for part in text.as_bytes().chunks(size) {
                    scanner.scan(part);
                }
                let found = [0, 1].map(|answered| scanner.has_long_line(answered));
                assert_eq!(found, expected, "{text:.40} {size}");
            }
        }
    }

    #[test]
    fn a_body_that_looks_like_a_head_is_no_head() {
        let length = BOTH.len();
        for body in [
            format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{BOTH}"),
            CHUNKED.replace("0\r\n", &format!("{length:X}\r\n{BOTH}\r\n0\r\n")),
            format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{BOTH}"),
            // Chunks that hyper refuses.
            CHUNKED.replace("0\r\n", &format!("{}\r\n{BOTH}", "f".repeat(17))),
            CHUNKED.replace("0\r\n", &format!("x\r\n{BOTH}")),
        ] {
            assert_eq!(scan(&body), None, "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(cuts in prop::collection::vec(0usize..400, 0..8)) {
            let chunks = CHUNKED.replace("0\r\n", "3;x\r\n\r\n0\r\n0\r\nA: b\r\n");
            let all = format!("{PLAIN}{WITH_BODY}{chunks}\r\n{BOTH}");
            let mut cuts: Vec<_> = cuts.into_iter().map(|c| c.min(all.len())).collect();
            cuts.extend([0, all.len()]);
            cuts.sort_unstable();
            let parts: Vec<_> = cuts.windows(2).map(|w| &all.as_bytes()[w[0]..w[1]]).collect();
            prop_assert_eq!(scan_in(&parts), Some((4, Flaw::TwoLengths)));
        }

        #[test]
        fn nothing_panics(reads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8)) {
            let mut scanner = Scanner::new(256);
            for read in reads {
                scanner.scan(&read);
            }
        }
    }
}
