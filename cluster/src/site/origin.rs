//! An origin of a site: where it is, how much it takes, and how it is known to be well. As written, and
//! checked; pure.

use std::{fmt, time::Duration};

use http::{Uri, uri::Authority};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::{
    hosts::host_flaw,
    rules::{Bad, STATUSES_MAX, Statuses, TEXT_BYTES_MAX},
};
use crate::quantity::Span;

/// Largest weight: what is more is a slip, and hides the others.
pub const WEIGHT_MAX: u32 = 1_000;
/// Bounds of [`HealthRule::interval`]: oftener is a load of its own, less often is of no use.
pub const HEALTH_INTERVAL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3_600);
/// Longest [`HealthRule::timeout`].
pub const HEALTH_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// Most answers in a row until it is believed: more takes hours.
pub const HEALTH_AFTER_MAX: u32 = 20;

/// An origin: its base URL, or that with more to say. Written as `"http://host"` where there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Base URL, `http://host[:port]` or `https://…`.
    pub url: String,
    /// Its share of the objects beside the other origins', 1 to [`WEIGHT_MAX`].
    pub weight: u32,
    /// Whether it is asked only while no other is well.
    pub backup: bool,
    /// `Host` to send to it; the site's `origin_host`, or else the client's own, when absent.
    pub host: Option<String>,
    /// The name for which it must have a certificate; that in its URL when absent.
    pub sni: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    url: String,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    weight: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    backup: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sni: Option<String>,
}

const fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_one(weight: &u32) -> bool {
    *weight == 1
}

impl From<&str> for Origin {
    fn from(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            weight: 1,
            backup: false,
            host: None,
            sni: None,
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if *self == Self::from(self.url.as_str()) {
            return self.url.serialize(serializer);
        }
        let Self {
            url,
            weight,
            backup,
            host,
            sni,
        } = self.clone();
        Table {
            url,
            weight,
            backup,
            host,
            sni,
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Origin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written)
    }
}

/// Reads both forms. An untagged enum would say of neither what is wrong with it.
struct Written;

impl<'de> Visitor<'de> for Written {
    type Value = Origin;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an origin's URL, or a table with `url`")
    }

    fn visit_str<E>(self, url: &str) -> Result<Origin, E> {
        Ok(Origin::from(url))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Origin, A::Error> {
        let Table {
            url,
            weight,
            backup,
            host,
            sni,
        } = Table::deserialize(MapAccessDeserializer::new(map))?;
        Ok(Origin {
            url,
            weight,
            backup,
            host,
            sni,
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl Origin {
    /// Host and port that are connected to.
    pub fn address(&self) -> Option<(String, u16)> {
        let uri: Uri = self.url.parse().ok()?;
        let usual = match uri.scheme_str() {
            Some("https") => 443,
            _ => 80,
        };
        let host = uri.host()?.to_ascii_lowercase();
        Some((host, uri.port_u16().unwrap_or(usual)))
    }

    pub(super) fn check(&self) -> Result<(), Bad> {
        let here = |reason: String| format!("{:?}: {reason}", self.url);
        check_url(&self.url).map_err(|reason| ("origins", here(reason.to_owned())))?;
        if !(1..=WEIGHT_MAX).contains(&self.weight) {
            let reason = format!("weight must be 1 to {WEIGHT_MAX}, not {}", self.weight);
            return Err(("origins.weight", here(reason)));
        }
        if let Some(host) = &self.host
            && Authority::try_from(host.as_str()).is_err()
        {
            return Err(("origins.host", here(format!("{host:?} is not a host"))));
        }
        if let Some(name) = &self.sni {
            if !self.url.starts_with("https://") {
                let reason = "a name for TLS, but the URL is not https://";
                return Err(("origins.sni", here(reason.to_owned())));
            }
            let is_other = name.contains(['*', '[']);
            let flaw = host_flaw(name).or_else(|| is_other.then_some("is no name"));
            if let Some(flaw) = flaw {
                return Err(("origins.sni", here(format!("{name:?} {flaw}"))));
            }
        }
        Ok(())
    }
}

fn check_url(origin: &str) -> Result<(), &'static str> {
    let uri: Uri = origin.parse().map_err(|_| "not a URL")?;
    match uri.scheme_str() {
        Some("http" | "https") => {}
        _ => return Err("must begin with http:// or https://"),
    }
    let authority = uri.authority().ok_or("has no host")?;
    if authority.as_str().contains('@') {
        return Err("must not hold credentials");
    }
    if authority.host().is_empty() || authority.port_u16() == Some(0) {
        return Err("has no host, or port 0");
    }
    // What is no port is no number for `http`, and would be the usual one.
    let port = authority.as_str().strip_prefix(authority.host());
    let is_port = |digits: &str| digits.parse::<u16>().is_ok();
    let is_good = |rest: &str| rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
    if !port.is_some_and(is_good) {
        return Err("has a port that is none of 1 to 65535");
    }
    match uri.path_and_query().map(http::uri::PathAndQuery::as_str) {
        None | Some("/") => Ok(()),
        Some(_) => Err("must not have a path"),
    }
}

/// `[site.health]`: each node asks each origin of the site every now and then whether it is well. One
/// that is not is asked only if no other is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthRule {
    /// Path and query that are asked for, with GET.
    pub path: String,
    /// Time between two questions, give or take a tenth.
    #[serde(default = "interval")]
    pub interval: Span,
    /// How long an answer's head may take, connection included.
    #[serde(default = "timeout")]
    pub timeout: Span,
    /// Statuses of an origin that is well.
    #[serde(default = "expect")]
    pub expect: Vec<Statuses>,
    /// Good answers in a row after which an origin is well again.
    #[serde(default = "healthy_after")]
    pub healthy_after: u32,
    /// Bad ones after which it is not any more.
    #[serde(default = "unhealthy_after")]
    pub unhealthy_after: u32,
}

const fn interval() -> Span {
    Span(Duration::from_secs(10))
}

const fn timeout() -> Span {
    Span(Duration::from_secs(2))
}

fn expect() -> Vec<Statuses> {
    vec![Statuses {
        first: 200,
        last: 399,
    }]
}

const fn healthy_after() -> u32 {
    2
}

const fn unhealthy_after() -> u32 {
    3
}

impl HealthRule {
    /// With everything but the path as it is by default.
    pub fn new(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            interval: interval(),
            timeout: timeout(),
            expect: expect(),
            healthy_after: healthy_after(),
            unhealthy_after: unhealthy_after(),
        }
    }

    /// Whether an origin that answers so is well.
    pub fn expects(&self, status: u16) -> bool {
        let within = |statuses: &Statuses| (statuses.first..=statuses.last).contains(&status);
        self.expect.iter().any(within)
    }

    pub(super) fn check(&self) -> Result<(), Bad> {
        let path = &self.path;
        let fits = path.starts_with('/')
            && path.len() <= TEXT_BYTES_MAX
            && path.parse::<http::uri::PathAndQuery>().is_ok();
        if !fits {
            let reason = format!("{path:?} is not a path such as \"/healthz\"");
            return Err(("health.path", reason));
        }
        if !HEALTH_INTERVAL.contains(&self.interval.0) {
            let reason = format!("1s to 1h, not {}", self.interval);
            return Err(("health.interval", reason));
        }
        if self.timeout.0.is_zero() || self.timeout.0 > HEALTH_TIMEOUT_MAX {
            let reason = format!("over 0s and at most 1m, not {}", self.timeout);
            return Err(("health.timeout", reason));
        }
        if !(1..=STATUSES_MAX).contains(&self.expect.len()) {
            let reason = format!("needs 1 to {STATUSES_MAX}, has {}", self.expect.len());
            return Err(("health.expect", reason));
        }
        for (field, count) in [
            ("health.healthy_after", self.healthy_after),
            ("health.unhealthy_after", self.unhealthy_after),
        ] {
            if !(1..=HEALTH_AFTER_MAX).contains(&count) {
                return Err((field, format!("1 to {HEALTH_AFTER_MAX}, not {count}")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Listed {
        origins: Vec<Origin>,
    }

    #[test]
    fn an_origin_is_a_url_or_a_table() {
        let text = "origins = [\"http://a\", { url = \"https://b\", weight = 3, backup = true, \
                    host = \"h:8080\", sni = \"n.test\" }]\n";
        let read: Listed = toml::from_str(text).unwrap();
        assert_eq!(read.origins[0], Origin::from("http://a"));
        let [_, b] = &read.origins[..] else { panic!() };
        assert_eq!((b.weight, b.backup), (3, true));
        assert_eq!(
            (b.host.as_deref(), b.sni.as_deref()),
            (Some("h:8080"), Some("n.test"))
        );
        assert!(b.check().is_ok());
        // What is written is read again, in both forms and both languages.
        let again: Listed = toml::from_str(&toml::to_string(&read).unwrap()).unwrap();
        assert_eq!(again, read);
        let json = serde_json::to_string(&read).unwrap();
        assert!(
            json.starts_with(r#"{"origins":["http://a",{"url":"https://b","#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<Listed>(&json).unwrap(), read);
        let plain: Listed = toml::from_str("origins = [{ url = \"http://a\" }]").unwrap();
        assert_eq!(
            serde_json::to_string(&plain).unwrap(),
            r#"{"origins":["http://a"]}"#
        );
    }

    #[test]
    fn what_is_neither_says_what_it_should_be() {
        for (text, told) in [
            ("origins = [1]", "an origin's URL, or a table with `url`"),
            ("origins = [{ weight = 1 }]", "missing field `url`"),
            (
                "origins = [{ url = 'http://a', wait = 1 }]",
                "unknown field `wait`",
            ),
            ("origins = [{ url = 'http://a', weight = -1 }]", "-1"),
        ] {
            let error = toml::from_str::<Listed>(text).unwrap_err().to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn addresses_have_the_usual_ports() {
        for (url, expected) in [
            ("http://A.test", ("a.test", 80)),
            ("https://a.test/", ("a.test", 443)),
            ("https://[::1]:8443", ("[::1]", 8443)),
        ] {
            let address = Origin::from(url).address().unwrap();
            assert_eq!((&*address.0, address.1), expected);
        }
    }
}
