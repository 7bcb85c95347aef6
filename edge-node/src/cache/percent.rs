//! Percent-encoding (RFC 3986 §2.1).

use std::borrow::Cow;

/// What `text` stands for. A percent sign that is not followed by two hex digits stands for itself.
pub fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'%') {
        return Cow::Borrowed(text);
    }
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = tail;
        let byte = match (first, tail) {
            (b'%', [high, low, tail @ ..]) => octet(*high, *low).inspect(|_| rest = tail),
            _ => None,
        };
        plain.push(byte.unwrap_or(*first));
    }
    Cow::Owned(plain)
}

/// Whether every percent sign is followed by two hex digits.
pub fn is_well_encoded(text: &[u8]) -> bool {
    let mut behind = text.split(|b| *b == b'%').skip(1);
    behind.all(|rest| matches!(rest, [high, low, ..] if octet(*high, *low).is_some()))
}

/// The byte that two hex digits stand for.
pub fn octet(high: u8, low: u8) -> Option<u8> {
    let hex = |digit: u8| char::from(digit).to_digit(16);
    let byte = hex(high)? << 4 | hex(low)?;
    u8::try_from(byte).ok()
}

/// Whether it means the same encoded or not (RFC 3986 §2.3).
pub const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded_once() {
        for (text, plain) in [
            ("/a", "/a"),
            ("/%61%2F%2f", "/a//"),
            ("%2561", "%61"),
            ("%%611%", "%a1%"),
            ("%4", "%4"),
            ("%zz", "%zz"),
        ] {
            assert_eq!(decoded(text.as_bytes()), plain.as_bytes(), "{text}");
        }
    }
}
