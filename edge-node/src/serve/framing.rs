//! Finds HTTP/1 request heads that carry both `Content-Length` and `Transfer-Encoding`.
//!
//! RFC 9112 §6.1 lets a server refuse such a request, and a proxy in front of other people's
//! origins should: it is how requests are smuggled. hyper resolves the ambiguity safely (the
//! transfer coding wins, and what goes on to the origin is framed anew) but drops the evidence, so
//! it is looked for in the bytes. The scanner follows bodies by their `Content-Length`; after a
//! chunked body, and on HTTP/2, it no longer knows where heads begin and stays silent.

/// Follows the bytes of one connection from the client.
#[derive(Debug)]
pub struct Scanner {
    at: At,
    head: Vec<u8>,
    head_bytes_max: usize,
    heads: u64,
}

#[derive(Debug)]
enum At {
    Head,
    Body { left: u64 },
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
        }
    }

    /// Takes what was read; returns the number (from 1) of a request with ambiguous framing, if its
    /// head ends within `bytes`.
    pub fn scan(&mut self, mut bytes: &[u8]) -> Option<u64> {
        while !bytes.is_empty() {
            match &mut self.at {
                At::Lost => return None,
                At::Body { left } => {
                    let skipped = usize::try_from(*left)
                        .unwrap_or(usize::MAX)
                        .min(bytes.len());
                    *left -= skipped as u64;
                    if *left == 0 {
                        self.at = At::Head;
                    }
                    bytes = &bytes[skipped..];
                }
                At::Head => {
                    // An end may lie across two reads; a head that came whole is not copied.
                    let found = if self.head.is_empty() {
                        end_of_head(bytes, 0).map(|end| (framing(&bytes[..end]), end))
                    } else {
                        let before = self.head.len();
                        self.head.extend_from_slice(bytes);
                        end_of_head(&self.head, before.saturating_sub(3))
                            .map(|end| (framing(&self.head[..end]), end.saturating_sub(before)))
                    };
                    let Some((framing, used)) = found else {
                        if self.head.is_empty() {
                            self.head.extend_from_slice(bytes);
                        }
                        if self.head.len() > self.head_bytes_max {
                            self.lose();
                        }
                        return None;
                    };
                    self.head.clear();
                    self.heads += 1;
                    bytes = &bytes[used..];
                    match framing {
                        Framing::Length(left) if left > 0 => self.at = At::Body { left },
                        Framing::Length(_) => {}
                        Framing::Coded => self.lose(),
                        Framing::Both => {
                            self.lose();
                            return Some(self.heads);
                        }
                    }
                }
            }
        }
        None
    }

    fn lose(&mut self) {
        self.at = At::Lost;
        self.head = Vec::new();
    }
}

enum Framing {
    Length(u64),
    Coded,
    Both,
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

fn framing(head: &[u8]) -> Framing {
    if head.starts_with(b"PRI * HTTP/2") {
        return Framing::Coded;
    }
    let mut length = None;
    let mut coded = false;
    for line in head.split(|&b| b == b'\n').skip(1) {
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
        (Some(_), true) => Framing::Both,
        (None, true) => Framing::Coded,
        (length, false) => Framing::Length(length.unwrap_or(0)),
    }
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

    fn scan_in(parts: &[&[u8]]) -> Option<u64> {
        let mut scanner = Scanner::new(1024);
        parts.iter().filter_map(|part| scanner.scan(part)).next()
    }

    #[test]
    fn both_lengths_are_found_behind_other_requests() {
        assert_eq!(scan_in(&[BOTH.as_bytes()]), Some(1));
        assert_eq!(
            scan_in(&[format!("{PLAIN}{WITH_BODY}{BOTH}").as_bytes()]),
            Some(3)
        );
        assert_eq!(
            scan_in(&[format!("{PLAIN}{WITH_BODY}{CHUNKED}{PLAIN}").as_bytes()]),
            None
        );
    }

    #[test]
    fn a_body_that_looks_like_a_head_is_no_head() {
        let body = format!(
            "POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{BOTH}",
            BOTH.len()
        );
        assert_eq!(scan_in(&[body.as_bytes()]), None);
        assert_eq!(
            scan_in(&[format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{BOTH}").as_bytes()]),
            None
        );
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(cuts in prop::collection::vec(0usize..400, 0..8)) {
            let all = format!("{PLAIN}{WITH_BODY}{PLAIN}{BOTH}");
            let mut cuts: Vec<_> = cuts.into_iter().map(|c| c.min(all.len())).collect();
            cuts.extend([0, all.len()]);
            cuts.sort_unstable();
            let parts: Vec<_> = cuts.windows(2).map(|w| &all.as_bytes()[w[0]..w[1]]).collect();
            prop_assert_eq!(scan_in(&parts), Some(4));
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
