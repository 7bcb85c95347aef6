//! Bytes and durations as operators write them: `"256MiB"`, `"10GB"`, `"30s"`, `"500ms"`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// A number of bytes. Written as a plain number, or with `B`, `kB`, `MB`, `GB`, `TB` (powers of
/// 1,000) or `KiB`, `MiB`, `GiB`, `TiB` (powers of 1,024).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub struct Bytes(pub u64);

/// A length of time. Written with `ms`, `s`, `m`, `h` or `d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

/// A text that is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadQuantity {
    /// Not a number of bytes.
    #[error("{0:?} is not a size such as \"256MiB\", \"10GB\" or 4096")]
    Bytes(String),
    /// Not a length of time.
    #[error("{0:?} is not a duration such as \"500ms\", \"30s\", \"5m\", \"2h\" or \"7d\"")]
    Span(String),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

const BYTE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

const SPAN_UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// Splits `text` into a number and the factor of its unit; products that overflow are refused.
fn product(text: &str, units: &[(&str, u64)], bare: Option<u64>) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let factor = match units.iter().find(|(name, _)| *name == unit) {
        Some((_, factor)) => *factor,
        None if unit.is_empty() => bare?,
        None => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

impl FromStr for Bytes {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        product(text, &BYTE_UNITS, Some(1))
            .map(Self)
            .ok_or_else(|| BadQuantity::Bytes(text.into()))
    }
}

impl TryFrom<Written> for Bytes {
    type Error = BadQuantity;

    fn try_from(written: Written) -> Result<Self, BadQuantity> {
        match written {
            Written::Number(n) => Ok(Self(n)),
            Written::Text(text) => text.parse(),
        }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = BYTE_UNITS[..4]
            .iter()
            .find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor));
        match unit {
            Some((name, factor)) => write!(f, "{}{name}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> Self {
        bytes.to_string()
    }
}

impl FromStr for Span {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        product(text, &SPAN_UNITS, None)
            .map(|ms| Self(Duration::from_millis(ms)))
            .ok_or_else(|| BadQuantity::Span(text.into()))
    }
}

impl TryFrom<String> for Span {
    type Error = BadQuantity;

    fn try_from(text: String) -> Result<Self, BadQuantity> {
        text.parse()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        let unit = SPAN_UNITS
            .iter()
            .rev()
            .find(|(_, factor)| ms.is_multiple_of(u128::from(*factor)));
        match unit {
            Some((name, factor)) if ms > 0 => write!(f, "{}{name}", ms / u128::from(*factor)),
            _ => write!(f, "{ms}ms"),
        }
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes, again) in [
            ("256MiB", 256 << 20, "256MiB"),
            ("10GB", 10_000_000_000, "9765625KiB"),
            ("4096", 4096, "4KiB"),
            ("1 GiB", 1 << 30, "1GiB"),
            ("0", 0, "0B"),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)));
            assert_eq!(Bytes(bytes).to_string(), again);
        }
        for bad in ["", "MiB", "-1", "1.5GiB", "1 XB", "99999999999TiB"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn spans_are_read_and_written() {
        for (text, ms) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("2h", 7_200_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(ms))));
            assert_eq!(Span(Duration::from_millis(ms)).to_string(), text);
        }
        for bad in ["", "30", "s", "1w", "-5s"] {
            assert!(bad.parse::<Span>().is_err(), "{bad:?}");
        }
    }
}
