//! `Cache-Control` (RFC 9111 §5.2, RFC 5861, RFC 8246): one parser for requests and responses.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, header};

use super::{
    lines::Lines,
    list::{is_tchar, members},
};

/// Largest number of seconds there is; larger ones mean this one (RFC 9111 §1.2.2).
pub const SECONDS_MAX: u32 = 1 << 31;
/// Most fields that `no-cache="…"` and `private="…"` may name together; with more they are taken
/// as naming none, which is the stricter meaning. Nobody writes more than a handful.
pub const WITHHELD_MAX: usize = 64;

/// Longest directive name that is known.
const NAME_MAX: usize = "stale-while-revalidate".len();

/// Fields without which this cache would misread what it stored. A response that wants one of
/// them withheld is treated as if it had named no fields at all, as §5.2.2.4 and §5.2.2.7 foresee.
const NEEDED: [&str; 8] = [
    "age",
    "cache-control",
    "content-encoding",
    "content-length",
    "content-range",
    "date",
    "expires",
    "vary",
];

/// What `Cache-Control` says, over all its lines. Parsed once; afterwards only fields are read.
///
/// Where a directive occurs more than once, or cannot be read, the stricter meaning counts
/// (§4.2.1): the least lifetime, the unqualified form, a lifetime of 0 for one that is no number.
/// Directives that only forbid are seen even with an argument they should not have; `public` and
/// `only-if-cached` are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheControl {
    /// Nothing of the exchange may be stored (§5.2.1.5, §5.2.2.5).
    pub no_store: bool,
    /// Nothing may be reused without validation (§5.2.1.4; §5.2.2.4 when it names no fields).
    pub no_cache: bool,
    /// The content may not be transformed (§5.2.1.6, §5.2.2.6).
    pub no_transform: bool,
    /// Only a stored response will do (§5.2.1.7).
    pub only_if_cached: bool,
    /// Once stale, never without validation (§5.2.2.2).
    pub must_revalidate: bool,
    /// The same for shared caches (§5.2.2.8).
    pub proxy_revalidate: bool,
    /// Only for caches that know what the status code means to them (§5.2.2.3).
    pub must_understand: bool,
    /// Not for shared caches (§5.2.2.7 when it names no fields).
    pub private: bool,
    /// May be stored where other rules would forbid it (§5.2.2.9).
    pub public: bool,
    /// Does not change while it is fresh (RFC 8246).
    pub immutable: bool,
    /// Freshness lifetime, or the greatest age a client accepts, in seconds (§5.2.1.1, §5.2.2.1).
    pub max_age: Option<u32>,
    /// Freshness lifetime for shared caches in seconds (§5.2.2.10).
    pub s_maxage: Option<u32>,
    /// For how many more seconds a response must be fresh (§5.2.1.3).
    pub min_fresh: Option<u32>,
    /// For how many seconds a response may have been stale (§5.2.1.2); [`SECONDS_MAX`] when the
    /// client does not care.
    pub max_stale: Option<u32>,
    /// For how many seconds a stale response may be used while it is validated (RFC 5861 §3).
    pub stale_while_revalidate: Option<u32>,
    /// For how many seconds a stale response may be used instead of an error (RFC 5861 §4).
    pub stale_if_error: Option<u32>,
    /// Fields named by `no-cache="…"` or `private="…"`: they must not be reused, the rest may be.
    pub withheld: Vec<HeaderName>,
}

impl CacheControl {
    /// What a response, or a request, says in `Cache-Control`.
    pub fn of(headers: &impl Lines) -> Self {
        Self::parse(headers.lines(&header::CACHE_CONTROL))
    }

    /// What a request says; without `Cache-Control`, `Pragma: no-cache` counts (§5.4).
    pub fn of_request(headers: &HeaderMap) -> Self {
        let mut found = Self::of(headers);
        if !headers.contains_key(header::CACHE_CONTROL) {
            let pragma = headers.get_all(header::PRAGMA);
            found.no_cache = pragma
                .iter()
                .flat_map(|line| members(line.as_bytes()))
                .any(|member| member.eq_ignore_ascii_case(b"no-cache"));
        }
        found
    }

    /// Parses the lines of a `Cache-Control` field. Never fails: what is unknown is ignored, what
    /// is broken is taken as its strictest meaning.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut found = Self::default();
        for member in lines.into_iter().flat_map(members) {
            let (name, argument) = split(member);
            let mut lower = [0; NAME_MAX];
            if let Some(lower) = lower.get_mut(..name.len()) {
                lower.copy_from_slice(name);
                lower.make_ascii_lowercase();
                found.add(lower, argument);
            }
        }
        found
    }

    /// Adds one directive, its name in lower case.
    pub(super) fn add(&mut self, name: &[u8], argument: Argument<'_>) {
        let bare = argument == Argument::None;
        match name {
            b"no-store" => self.no_store = true,
            b"no-cache" => self.no_cache |= !self.withhold(&argument),
            b"private" => self.private |= !self.withhold(&argument),
            b"no-transform" => self.no_transform = true,
            b"must-revalidate" => self.must_revalidate = true,
            b"proxy-revalidate" => self.proxy_revalidate = true,
            b"must-understand" => self.must_understand = true,
            b"only-if-cached" => self.only_if_cached |= bare,
            b"public" => self.public |= bare,
            b"immutable" => self.immutable = true, // RFC 8246 §2: an argument is ignored
            b"max-age" => least(&mut self.max_age, argument.seconds().unwrap_or(0)),
            b"s-maxage" => least(&mut self.s_maxage, argument.seconds().unwrap_or(0)),
            b"stale-while-revalidate" => {
                least(
                    &mut self.stale_while_revalidate,
                    argument.seconds().unwrap_or(0),
                );
            }
            b"stale-if-error" => {
                least(&mut self.stale_if_error, argument.seconds().unwrap_or(0));
            }
            b"max-stale" => {
                let any = bare.then_some(SECONDS_MAX);
                least(
                    &mut self.max_stale,
                    any.or_else(|| argument.seconds()).unwrap_or(0),
                );
            }
            b"min-fresh" => self.min_fresh = self.min_fresh.max(argument.seconds()),
            _ => {}
        }
    }

    /// Takes over the field names in `argument`; false when it does not name fields properly.
    fn withhold(&mut self, argument: &Argument<'_>) -> bool {
        let Argument::Text(text) = argument else {
            return false;
        };
        let before = self.withheld.len();
        for member in members(text) {
            match HeaderName::from_bytes(member) {
                Ok(name)
                    if self.withheld.len() < WITHHELD_MAX && !NEEDED.contains(&name.as_str()) =>
                {
                    self.withheld.push(name);
                }
                _ => return false,
            }
        }
        self.withheld.len() > before
    }
}

/// Parses arbitrary bytes as `Cache-Control` lines, one per line of text, and checks what must
/// always hold. For fuzzing; panics on a defect.
#[doc(hidden)]
pub fn fuzz_cache_control(data: &[u8]) {
    let parse =
        |extra: &'static [u8]| CacheControl::parse(data.split(|b| *b == b'\n').chain([extra]));
    let found = parse(b"");
    for seconds in [
        found.max_age,
        found.s_maxage,
        found.min_fresh,
        found.max_stale,
        found.stale_while_revalidate,
        found.stale_if_error,
    ] {
        assert!(seconds.is_none_or(|s| s <= SECONDS_MAX));
    }
    assert!(found.withheld.len() <= WITHHELD_MAX);
    assert_eq!(found, parse(b" ,, unknown=\"private, no-store\""));
    let stricter = parse(b"Max-Age=1, NO-STORE, private, no-cache");
    assert!(stricter.no_store && stricter.private && stricter.no_cache);
    assert!(stricter.max_age <= Some(1) && stricter.max_age.is_some());
}

/// What stands behind a directive's name.
#[derive(Debug, PartialEq)]
pub(super) enum Argument<'a> {
    None,
    /// A token, or what was inside a quoted string.
    Text(Cow<'a, [u8]>),
    /// Something stands behind the name, but it is no argument.
    Malformed,
}

impl Argument<'_> {
    /// Delta-seconds (§1.2.2): digits and nothing else, clamped.
    fn seconds(&self) -> Option<u32> {
        match self {
            Self::Text(text) => seconds(text),
            _ => None,
        }
    }
}

/// Delta-seconds (RFC 9111 §1.2.2), clamped to [`SECONDS_MAX`].
pub fn seconds(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = text.iter().map(|d| u32::from(d - b'0'));
    let number = digits.fold(0u32, |n, d| n.saturating_mul(10).saturating_add(d));
    Some(number.min(SECONDS_MAX))
}

fn least(slot: &mut Option<u32>, seconds: u32) {
    *slot = Some(slot.map_or(seconds, |s| s.min(seconds)));
}

/// Splits a directive into its name and its argument.
fn split(member: &[u8]) -> (&[u8], Argument<'_>) {
    let end = member.iter().position(|b| !is_tchar(*b));
    let (name, rest) = member.split_at(end.unwrap_or(member.len()));
    let argument = match rest {
        [] => Argument::None,
        [b'=', b'"', quoted @ ..] => unquoted(quoted).map_or(Argument::Malformed, Argument::Text),
        [b'=', token @ ..] if !token.is_empty() && token.iter().all(|b| is_tchar(*b)) => {
            Argument::Text(Cow::Borrowed(token))
        }
        _ => Argument::Malformed,
    };
    (name, argument)
}

/// What a quoted string holds (RFC 9110 §5.6.4), given what follows its opening quote; nothing
/// may follow the closing one.
fn unquoted(text: &[u8]) -> Option<Cow<'_, [u8]>> {
    let end = text.iter().position(|b| matches!(b, b'"' | b'\\'))?;
    if text[end] == b'"' {
        return (end + 1 == text.len()).then_some(Cow::Borrowed(&text[..end]));
    }
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'"' => return bytes.as_slice().is_empty().then_some(Cow::Owned(plain)),
            b'\\' => plain.push(*bytes.next()?),
            _ => plain.push(byte),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> CacheControl {
        CacheControl::parse(text.split('\n').map(str::as_bytes))
    }

    #[test]
    fn numbers_are_read_as_written_or_taken_as_stale() {
        for (text, max_age) in [
            ("max-age=60", Some(60)),
            ("MaX-aGe=60", Some(60)),     // §5.2: names are case-insensitive
            ("max-age=\"60\"", Some(60)), // §5.2: token and quoted-string
            ("max-age=\"6\\0\"", Some(60)), // RFC 9110 §5.6.4: quoted-pair
            ("max-age=0060", Some(60)),   // §1.2.2: 1*DIGIT
            ("max-age=2147483648", Some(SECONDS_MAX)), // §1.2.2
            ("max-age=2147483649", Some(SECONDS_MAX)), // §1.2.2: clamped
            ("max-age=99999999999999", Some(SECONDS_MAX)),
            ("max-age", Some(0)), // §4.2.1: invalid means stale
            ("max-age=", Some(0)),
            ("max-age=-1", Some(0)),
            ("max-age=+60", Some(0)),
            ("max-age=1.5", Some(0)),
            ("max-age=60s", Some(0)),
            ("max-age='60'", Some(0)),
            ("max-age=\"60", Some(0)),
            ("max-age=\"60\"0", Some(0)),
            ("max-age =60", Some(0)),
            ("max-age= 60", Some(0)),
            ("max-age=60 public", Some(0)),
            ("max-age; public", Some(0)),
            ("max-age=60, max-age=1", Some(1)), // §4.2.1: the most restrictive
            ("max-age=1\nmax-age=60", Some(1)),
            ("max-age=60, max-age=x", Some(0)),
            ("x-max-age=60", None),
            ("x=\"max-age=60\"", None),
            ("x=\"\\\", max-age=60\"", None),
            ("max-age-=60", None),
            ("maxage=60", None),
            ("", None),
        ] {
            assert_eq!(parse(text).max_age, max_age, "{text:?}");
        }
        assert_eq!(
            parse("min-fresh=1, min-fresh=5, min-fresh=x").min_fresh,
            Some(5)
        );
        assert_eq!(parse("max-stale").max_stale, Some(SECONDS_MAX)); // §5.2.1.2
        assert_eq!(parse("max-stale, max-stale=3").max_stale, Some(3));
        assert_eq!(parse("max-stale=x").max_stale, Some(0));
        let windows = parse("stale-while-revalidate=30, stale-if-error=\"60\"");
        assert_eq!(windows.stale_while_revalidate, Some(30));
        assert_eq!(windows.stale_if_error, Some(60));
    }

    #[test]
    fn what_forbids_is_seen_and_what_permits_must_be_clean() {
        for text in [
            "no-store",
            "No-Store",
            " , no-store",
            "x, no-store",
            "x\nno-store",
            "no-store=1",
            "no-store; x",
            "x=\"y, no-store", // an unclosed quote hides nothing
        ] {
            assert!(parse(text).no_store, "{text:?}");
        }
        for text in [
            "x=\"no-store\"",
            "no-stored",
            "no store",
            "x=\"a\\\", no-store\"",
        ] {
            assert!(!parse(text).no_store, "{text:?}");
        }
        assert!(parse("public").public && parse("PUBLIC, max-age=1").public);
        assert!(!parse("public=1").public && !parse("public; max-age=1").public);
        assert!(parse("immutable").immutable && parse("immutable=no").immutable); // RFC 8246 §2
        assert!(parse("proxy-revalidate").proxy_revalidate);
        assert!(parse("must-understand").must_understand);
        assert!(parse("only-if-cached").only_if_cached);
    }

    #[test]
    fn fields_are_withheld_only_when_they_are_named_properly() {
        // §5.2.2.4 and §5.2.2.7; a cache may take the qualified form as the unqualified one.
        for (text, private, withheld) in [
            ("private", true, &[][..]),
            ("private=\"Set-Cookie\"", false, &["set-cookie"]),
            ("private=set-cookie", false, &["set-cookie"]),
            ("private=\"a, b\", private=\"c\"", false, &["a", "b", "c"]),
            ("private=\"a\", private", true, &["a"]),
            ("private=\"\"", true, &[]),
            ("private=", true, &[]),
            ("private=\"a b\"", true, &[]),
            ("private=\"set-cookie", true, &[]),
            ("private=\"Vary\"", true, &[]), // without it, variants would be mixed up
        ] {
            let found = parse(text);
            assert_eq!(found.private, private, "{text:?}");
            assert_eq!(found.withheld, withheld, "{text:?}");
        }
        let found = parse("no-cache=\"x\"");
        assert!(!found.no_cache && found.withheld == ["x"]);
        let many: Vec<_> = (0..=WITHHELD_MAX).map(|n| format!("f{n}")).collect();
        assert!(parse(&format!("no-cache=\"{}\"", many.join(","))).no_cache);
    }

    #[test]
    fn pragma_counts_only_without_cache_control() {
        let mut headers = HeaderMap::new();
        headers.insert("pragma", "x, No-Cache".parse().unwrap());
        assert!(CacheControl::of_request(&headers).no_cache);
        assert!(!CacheControl::of(&headers).no_cache); // §5.4: nothing in responses
        headers.insert("cache-control", "max-age=1".parse().unwrap());
        assert!(!CacheControl::of_request(&headers).no_cache);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed(data: Vec<u8>) {
            fuzz_cache_control(&data);
        }

        #[test]
        fn anything_like_a_directive_is_parsed(
            data in r#"((max-age|s-maxage|private|no-cache|no-store|public|x)[ =",\\a-c0-9\n]{0,6}){0,8}"#
        ) {
            fuzz_cache_control(data.as_bytes());
        }
    }
}
