//! Comma-separated lists in field values (RFC 9110 §5.6.1), and what they are made of.

/// The members of one line of a list: split at the commas outside quoted strings, without the
/// whitespace around them; empty members are skipped, as §5.6.1.2 asks.
///
/// A quote that is never closed is an ordinary character, and so is every one behind it: a
/// directive that follows such a slip of the sender is still seen.
pub fn members(line: &[u8]) -> Members<'_> {
    Members {
        rest: Some(line),
        quotes: true,
    }
}

/// Iterates over the members of a list; see [`members`].
#[derive(Clone, Debug)]
pub struct Members<'a> {
    rest: Option<&'a [u8]>,
    /// Whether quotes still mean something; cleared by the first one that is never closed, which
    /// also keeps the whole walk linear.
    quotes: bool,
}

impl<'a> Iterator for Members<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let rest = self.rest?;
            let end = self.end_of_first(rest);
            self.rest = rest.get(end + 1..);
            let member = rest[..end].trim_ascii();
            if !member.is_empty() {
                return Some(member);
            }
        }
    }
}

impl Members<'_> {
    fn end_of_first(&mut self, line: &[u8]) -> usize {
        let mut opened = None;
        let mut at = 0;
        while at < line.len() {
            match (line[at], opened) {
                (b'"', None) if self.quotes => opened = Some(at),
                (b'"', Some(_)) => opened = None,
                (b'\\', Some(_)) => at += 1,
                (b',', None) => return at,
                _ => {}
            }
            at += 1;
        }
        let Some(opened) = opened else {
            return line.len();
        };
        self.quotes = false;
        let comma = line[opened..].iter().position(|b| *b == b',');
        comma.map_or(line.len(), |n| opened + n)
    }
}

/// Whether `byte` may stand in a token (RFC 9110 §5.6.2).
pub const fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_split_at_commas_outside_quotes() {
        for (line, expected) in [
            ("a, b ,c", vec!["a", "b", "c"]),
            (" , a,, ,", vec!["a"]),
            ("", vec![]),
            (r#"a="x, y", b"#, vec![r#"a="x, y""#, "b"]),
            (r#"a="x\", y", b"#, vec![r#"a="x\", y""#, "b"]),
            // The quotes pair up as the grammar says; the last one is never closed.
            (r#"a="x, b, c="d", e"#, vec![r#"a="x, b, c="d""#, "e"]),
            (r#"a="x, b"#, vec![r#"a="x"#, "b"]),
        ] {
            let found: Vec<_> = members(line.as_bytes()).collect();
            let expected: Vec<_> = expected.iter().map(|m| m.as_bytes()).collect();
            assert_eq!(found, expected, "{line}");
        }
    }
}
