//! The `Cookie` field of requests (RFC 6265 §4.2.1).

use http::{HeaderMap, header};

/// Names and values of the cookies in a request, as sent and in order. A pair without `=` is a name
/// without a value.
pub fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    let lines = headers.get_all(header::COOKIE).iter();
    let pairs = lines.flat_map(|line| line.as_bytes().split(|b| *b == b';'));
    pairs
        .map(<[u8]>::trim_ascii)
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.iter().position(|b| *b == b'=') {
            Some(equals) => (pair[..equals].trim_ascii(), pair[equals + 1..].trim_ascii()),
            None => (pair, &b""[..]),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_told_apart_in_one_line_or_several() {
        let mut headers = HeaderMap::new();
        for line in ["a=1; b=x=y;c", " ; d = 4 ;a=2", ""] {
            headers.append(header::COOKIE, line.parse().unwrap());
        }
        let found: Vec<_> = cookies(&headers)
            .map(|(name, value)| [name, value].map(|b| str::from_utf8(b).unwrap()))
            .collect();
        let expected = [["a", "1"], ["b", "x=y"], ["c", ""], ["d", "4"], ["a", "2"]];
        assert_eq!(found, expected);
    }
}
