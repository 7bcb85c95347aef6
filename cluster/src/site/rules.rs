//! What a site's owner may rule: how long answers are kept by path and status, what names an object,
//! what goes straight to the origin, and who is served at all. As written, and checked; pure.

use std::fmt;

use http::{HeaderName, Method};
use serde::{Deserialize, Serialize};

use crate::{
    network::Network,
    quantity::{Bytes, Span},
};

/// Most `[[site.rule]]`s, and most `[[site.access]]`es: every request walks along them.
pub const RULES_MAX: usize = 100;
/// Most members of [`PathRule::status`]: every rule repeats those of the shorter paths around it.
pub const STATUSES_MAX: usize = 20;
/// Most members of any list in a rule: each may be looked at for every request.
pub const LIST_MAX: usize = 200;
/// Longest path, name or pattern in a rule.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Longest lifetime or window: ten years. Whatever is longer is a slip.
pub const SPAN_DAYS_MAX: u64 = 3650;
/// A country in [`Access::countries`]: that of addresses whose country nobody knows.
pub const UNKNOWN_COUNTRY: &str = "??";

/// `[site.query]`: which query parameters name an object. The origin gets all of them, as sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueryRule {
    /// Parameters that do not: `"fbclid"`, or `"utm_*"` for all that begin so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<Pattern>,
    /// The only parameters that do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only: Option<Vec<Pattern>>,
    /// Whether their order does not matter. Parameters of one name keep theirs.
    #[serde(skip_serializing_if = "is_false")]
    pub sort: bool,
}

/// `[site.key]`: what else of a request names an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeyRule {
    /// Header fields, whose values count as sent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// Cookies, whose values count as sent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cookies: Vec<String>,
}

/// `[site.bypass]`: requests that go straight to the origin, and whose answers are not stored. One
/// of these is enough.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BypassRule {
    /// What the path begins with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// A header field of this name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<Pattern>,
    /// A cookie of this name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cookies: Vec<Pattern>,
}

/// `[[site.rule]]`: what holds for paths that begin like this, where it differs from the site. Of
/// several rules for a path, the longest counts first; what it leaves open, the next may say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathRule {
    /// What the path begins with.
    #[serde(default = "root")]
    pub path: String,
    /// The statuses that `ttl` or `ttl_override` is for: `404`, `"500-599"`. Absent: 200 to 299.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub status: Vec<Statuses>,
    /// How long an answer stays fresh when the origin does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Span>,
    /// How long it stays fresh whatever the origin says of freshness, `no-cache` included. What must
    /// not be shared (`no-store`, `private`, cookies, authorization) still is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_override: Option<Span>,
    /// As [`super::Site::stale_while_revalidate`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_while_revalidate: Option<Span>,
    /// As [`super::Site::stale_if_error`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_if_error: Option<Span>,
    /// As [`super::Site::honour_client_reload`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub honour_client_reload: Option<bool>,
    /// As [`super::Site::range_miss`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_miss: Option<RangeMiss>,
    /// As [`super::Site::object_max`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_max: Option<Bytes>,
}

impl Default for PathRule {
    fn default() -> Self {
        Self {
            path: root(),
            status: Vec::new(),
            ttl: None,
            ttl_override: None,
            stale_while_revalidate: None,
            stale_if_error: None,
            honour_client_reload: None,
            range_miss: None,
            object_max: None,
        }
    }
}

/// `[[site.access]]`: who is served. A rule is for the requests that fit all of its lists; an absent
/// list fits every request. The first rule that is for a request decides; without any it is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// What becomes of the request.
    pub action: Action,
    /// Status of the answer to a denied request: 403 or 451. Absent: 403.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What the path begins with, however it is written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// Methods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Where the client's address is: `"10.0.0.0/8"`, `"2001:db8::/32"`, or one address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Network>,
    /// The country of the client's address, as ISO 3166-1 alpha-2 has it; [`UNKNOWN_COUNTRY`] where
    /// the geo database does not know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub countries: Vec<String>,
}

/// What an access rule does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Serves it.
    Allow,
    /// Does not.
    Deny,
}

/// What a range of an object that is not stored starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RangeMiss {
    /// The fetch of the whole object.
    Whole,
    /// The fetch of that part, in whole pieces where others may want them or it is longer than one.
    Part,
}

/// Who asks the origin for what no node holds; everybody else asks those. See [`crate::placement`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shield {
    /// Every node by itself.
    None,
    /// One node in each region. What people expect of a cluster: the origin is spared, and the way of a
    /// miss is longer by a hop between neighbours only, never by an ocean.
    #[default]
    Region,
    /// One node in the whole cluster: for origins that are dear or slow. A miss may cross an ocean twice.
    Cluster,
}

fn root() -> String {
    "/".to_owned()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// A name, or with `*` at its end the beginning of names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    name: String,
    open: bool,
}

/// A text that is no [`Pattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a name such as \"id\", or a beginning such as \"utm_*\"")]
pub struct BadPattern(String);

impl Pattern {
    /// Whether `name` is meant.
    pub fn fits(&self, name: &[u8]) -> bool {
        self.fits_by(name, <[u8]>::eq)
    }

    /// Whether `name` is meant, in any case.
    pub fn fits_in_any_case(&self, name: &[u8]) -> bool {
        self.fits_by(name, <[u8]>::eq_ignore_ascii_case)
    }

    fn fits_by(&self, name: &[u8], equal: fn(&[u8], &[u8]) -> bool) -> bool {
        let own = self.name.as_bytes();
        match name.split_at_checked(own.len()) {
            Some((first, rest)) => equal(first, own) && (self.open || rest.is_empty()),
            None => false,
        }
    }
}

impl TryFrom<String> for Pattern {
    type Error = BadPattern;

    fn try_from(text: String) -> Result<Self, BadPattern> {
        let (name, open) = match text.strip_suffix('*') {
            Some(name) => (name, true),
            None => (text.as_str(), false),
        };
        let fits = (open || !name.is_empty())
            && name.len() <= TEXT_BYTES_MAX
            && !name.contains(|c: char| c == '*' || c.is_control());
        if !fits {
            return Err(BadPattern(text.chars().take(80).collect()));
        }
        let name = name.to_owned();
        Ok(Self { name, open })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        f.write_str(if self.open { "*" } else { "" })
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.to_string()
    }
}

/// A status code, or all from one to another: `404`, `"404"`, `"500-599"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Statuses {
    /// The first.
    pub first: u16,
    /// The last; it counts, too.
    pub last: u16,
}

impl Statuses {
    /// What a rule is for that names none.
    pub const SUCCESS: Self = Self {
        first: 200,
        last: 299,
    };
}

/// A text that names no [`Statuses`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a status of 200 to 599, nor a range of them such as \"500-599\"")]
pub struct BadStatuses(String);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u16),
    Text(String),
}

impl TryFrom<Written> for Statuses {
    type Error = BadStatuses;

    fn try_from(written: Written) -> Result<Self, BadStatuses> {
        let (read, said) = match written {
            Written::Number(code) => (Some((code, code)), code.to_string()),
            Written::Text(text) => {
                let (first, last) = text.split_once('-').unwrap_or((&text, &text));
                let read = first.trim().parse().ok().zip(last.trim().parse().ok());
                (
                    read,
                    format!("{:?}", text.chars().take(80).collect::<String>()),
                )
            }
        };
        match read {
            Some((first, last)) if 200 <= first && first <= last && last <= 599 => {
                Ok(Self { first, last })
            }
            _ => Err(BadStatuses(said)),
        }
    }
}

impl From<Statuses> for Written {
    fn from(statuses: Statuses) -> Self {
        if statuses.first == statuses.last {
            Self::Number(statuses.first)
        } else {
            Self::Text(statuses.to_string())
        }
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        if first == last {
            write!(f, "{first}")
        } else {
            write!(f, "{first}-{last}")
        }
    }
}

/// What is wrong with a rule: the field, and the reason with the value.
pub(super) type Bad = (&'static str, String);

impl QueryRule {
    pub(super) fn check(&self) -> Result<(), Bad> {
        bounded("query.ignore", &self.ignore)?;
        bounded("query.only", self.only.as_deref().unwrap_or_default())?;
        if self.only.is_some() && !self.ignore.is_empty() {
            let reason = "what is not in query.only is ignored already; give one of the two";
            return Err(("query.ignore", reason.to_owned()));
        }
        Ok(())
    }
}

impl KeyRule {
    pub(super) fn check(&self) -> Result<(), Bad> {
        bounded("key.headers", &self.headers)?;
        bounded("key.cookies", &self.cookies)?;
        header_names("key.headers", &self.headers)?;
        match self.cookies.iter().find(|name| !is_cookie_name(name)) {
            Some(name) => Err(("key.cookies", format!("{name:?} is not a cookie's name"))),
            None => Ok(()),
        }
    }
}

impl BypassRule {
    pub(super) fn check(&self) -> Result<(), Bad> {
        bounded("bypass.headers", &self.headers)?;
        bounded("bypass.cookies", &self.cookies)?;
        paths("bypass.paths", &self.paths)
    }
}

impl PathRule {
    pub(super) fn check(&self) -> Result<(), Bad> {
        paths("rule.path", std::slice::from_ref(&self.path))?;
        let here = |reason: &str| format!("for path {:?}: {reason}", self.path);
        if self.status.len() > STATUSES_MAX {
            let reason = format!("{} entries, at most {STATUSES_MAX}", self.status.len());
            return Err(("rule.status", here(&reason)));
        }
        match (self.ttl, self.ttl_override) {
            (Some(_), Some(_)) => {
                return Err(("rule.ttl", here("give ttl or ttl_override, not both")));
            }
            (None, None) if !self.status.is_empty() => {
                return Err(("rule.status", here("needs ttl or ttl_override")));
            }
            _ => {}
        }
        let said = Self {
            path: root(),
            ..self.clone()
        };
        if said == Self::default() {
            return Err(("rule", here("says nothing")));
        }
        span("rule.ttl", self.ttl)?;
        span("rule.ttl_override", self.ttl_override)?;
        span("rule.stale_while_revalidate", self.stale_while_revalidate)?;
        span("rule.stale_if_error", self.stale_if_error)
    }
}

impl Access {
    /// The status of the answer to a denied request.
    pub fn denied_with(&self) -> u16 {
        self.status.unwrap_or(403)
    }

    pub(super) fn check(&self) -> Result<(), Bad> {
        match (self.action, self.status) {
            (Action::Deny, None | Some(403 | 451)) | (Action::Allow, None) => {}
            (Action::Deny, Some(status)) => {
                return Err(("access.status", format!("403 or 451, not {status}")));
            }
            (Action::Allow, Some(_)) => {
                let reason = "what is allowed is answered by the site; only for action = \"deny\"";
                return Err(("access.status", reason.to_owned()));
            }
        }
        paths("access.paths", &self.paths)?;
        bounded("access.methods", &self.methods)?;
        bounded("access.addresses", &self.addresses)?;
        bounded("access.countries", &self.countries)?;
        let is_method = |name: &&String| {
            Method::from_bytes(name.as_bytes()).is_ok()
                && !name.bytes().any(|b| b.is_ascii_lowercase())
        };
        if let Some(name) = self.methods.iter().find(|name| !is_method(name)) {
            let reason = format!("{name:?} is not a method such as \"POST\" (in capitals)");
            return Err(("access.methods", reason));
        }
        let is_country = |code: &&String| {
            *code == UNKNOWN_COUNTRY
                || (code.len() == 2 && code.bytes().all(|b| b.is_ascii_uppercase()))
        };
        if let Some(code) = self.countries.iter().find(|code| !is_country(code)) {
            let reason =
                format!("{code:?} is not a country such as \"FR\", nor \"??\" for unknown");
            return Err(("access.countries", reason));
        }
        Ok(())
    }
}

pub(super) fn bounded<T>(field: &'static str, list: &[T]) -> Result<(), Bad> {
    if list.len() > LIST_MAX {
        return Err((field, format!("{} entries, at most {LIST_MAX}", list.len())));
    }
    Ok(())
}

pub(super) fn header_names(field: &'static str, names: &[String]) -> Result<(), Bad> {
    let bad = names.iter().find(|name| {
        name.len() > TEXT_BYTES_MAX || HeaderName::from_bytes(name.as_bytes()).is_err()
    });
    match bad {
        Some(name) => Err((field, format!("{name:?} is not a header field's name"))),
        None => Ok(()),
    }
}

pub(super) fn span(field: &'static str, span: Option<Span>) -> Result<(), Bad> {
    match span {
        Some(span) if span.0.as_secs() > SPAN_DAYS_MAX * 86_400 => {
            Err((field, format!("{span} is over {SPAN_DAYS_MAX}d")))
        }
        _ => Ok(()),
    }
}

pub(super) fn paths(field: &'static str, paths: &[String]) -> Result<(), Bad> {
    bounded(field, paths)?;
    let fits = |path: &&String| {
        path.starts_with('/')
            && path.len() <= TEXT_BYTES_MAX
            && !path.contains(|c: char| matches!(c, '?' | '#' | '*') || c.is_control())
    };
    match paths.iter().find(|path| !fits(path)) {
        Some(path) => Err((
            field,
            format!("{path:?} is not the beginning of a path, such as \"/static/\""),
        )),
        None => Ok(()),
    }
}

/// RFC 6265 §4.1.1: a token.
fn is_cookie_name(name: &str) -> bool {
    name.len() <= TEXT_BYTES_MAX && HeaderName::from_bytes(name.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.to_owned().try_into().unwrap()
    }

    #[test]
    fn a_pattern_is_a_name_or_a_beginning() {
        for (text, fits, differs) in [
            ("id", &["id"][..], &["ID", "i", "id2", ""][..]),
            ("utm_*", &["utm_", "utm_source"], &["utm", "UTM_a", ""]),
            ("*", &["", "a"], &[]),
        ] {
            let pattern = pattern(text);
            assert_eq!(pattern.to_string(), text);
            assert!(fits.iter().all(|n| pattern.fits(n.as_bytes())), "{text}");
            assert!(
                !differs.iter().any(|n| pattern.fits(n.as_bytes())),
                "{text}"
            );
        }
        assert!(pattern("X-Pre*").fits_in_any_case(b"x-preview"));
        for bad in ["", "*a", "a*b*", "a\nb"] {
            assert!(Pattern::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn statuses_are_read_and_written() {
        let read = |text: &str| Statuses::try_from(Written::Text(text.into()));
        for (text, first, last) in [
            ("404", 404, 404),
            ("500-599", 500, 599),
            ("200 - 200", 200, 200),
        ] {
            assert_eq!(read(text), Ok(Statuses { first, last }));
        }
        assert_eq!(read("500-599").unwrap().to_string(), "500-599");
        let json = serde_json::to_string(&[read("404").unwrap(), read("500-504").unwrap()]);
        assert_eq!(json.unwrap(), r#"[404,"500-504"]"#);
        for bad in ["", "abc", "99", "600", "404-400", "-404", "404-", "199-299"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        assert!(Statuses::try_from(Written::Number(101)).is_err());
    }
}
