//! A site: a set of hosts served from a set of origins under one cache policy. And the map from a
//! request's host to its site. What a site's owner may rule is in [`rules`].

pub mod rules;
mod words;

use std::{collections::HashMap, sync::Arc, time::Duration};

use http::Uri;
use serde::{Deserialize, Serialize};

use self::rules::{Access, BypassRule, KeyRule, PathRule, QueryRule, RULES_MAX, RangeMiss, Shield};
use crate::quantity::{Bytes, Span};

/// Most sites a registry may hold.
pub const SITES_MAX: usize = 10_000;
/// Most hosts of one site.
pub const HOSTS_MAX: usize = 1_000;
/// Most origins of one site.
pub const ORIGINS_MAX: usize = 32;
/// Most fields that [`Site::targets`] may name: each is looked for in every answer.
pub const TARGETS_MAX: usize = 8;
/// [`Site::origin_concurrency`] where a site does not say: over what most origins have workers for, and
/// with answers within 100 ms still ten thousand requests a second.
pub const ORIGIN_CONCURRENCY_DEFAULT: u32 = 1_024;
/// [`Site::origin_queue`] where a site does not say: a burst of four times what goes on at once. One
/// that waits costs some KiB.
pub const ORIGIN_QUEUE_DEFAULT: u32 = 4_096;
/// [`Site::origin_queue_timeout`] where a site does not say: about as long as people wait for a page.
pub const ORIGIN_QUEUE_TIMEOUT_DEFAULT: Span = Span(Duration::from_secs(5));
/// [`Site::purge_limit`] where a site does not say: longer than a control plane takes to start anew.
pub const PURGE_LIMIT_DEFAULT: Span = Span(Duration::from_secs(30));
/// Most of both: one address has no more ports towards an origin, and no more needs to wait for them.
pub const ORIGIN_REQUESTS_MAX: u32 = 65_536;

/// A site as it is written in configuration files and handed from the control plane to the edges.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// Its name: 1 to 64 of `a-z 0-9 . _ -`.
    pub name: String,
    /// Host names it answers to, without port: `www.example.com`, `*.example.com` (any name below,
    /// not the name itself), or `*` for every host.
    pub hosts: Vec<String>,
    /// Base URLs of its origins, `http://host[:port]` or `https://…`; the first that answers is used.
    pub origins: Vec<String>,
    /// `Host` to send to the origin; the client's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin_host: Option<String>,
    /// How long an answer stays fresh when the origin says nothing and nothing can be inferred from
    /// its `Last-Modified`. `0s`: not at all.
    #[serde(default = "default_ttl")]
    pub default_ttl: Span,
    /// How long to wait for a connection to the origin.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Span,
    /// How long to wait for the head of the origin's answer.
    #[serde(default = "first_byte_timeout")]
    pub first_byte_timeout: Span,
    /// Longest silence of the origin within a body.
    #[serde(default = "between_bytes_timeout")]
    pub between_bytes_timeout: Span,
    /// Most requests that a node has at the origins at once; [`ORIGIN_CONCURRENCY_DEFAULT`] when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin_concurrency: Option<u32>,
    /// Most requests that wait on a node until others have ended; more are answered by 503.
    /// [`ORIGIN_QUEUE_DEFAULT`] when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin_queue: Option<u32>,
    /// How long one waits before it is answered by 503; [`ORIGIN_QUEUE_TIMEOUT_DEFAULT`] when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin_queue_timeout: Option<Span>,
    /// Largest body that is stored; larger ones pass through. The node's own limit holds as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_max: Option<Bytes>,
    /// How long a stale answer may be used while it is validated, where the origin does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_while_revalidate: Option<Span>,
    /// How long a stale answer may be used when the origin fails, where it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_if_error: Option<Span>,
    /// Whether a client's `no-cache` or `max-age` makes the cache ask the origin; as the node has it
    /// when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub honour_client_reload: Option<bool>,
    /// What a range of an object that is not stored starts; the whole when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_miss: Option<RangeMiss>,
    /// Who asks the origin for what no node holds; [`Shield::Region`] when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shield: Option<Shield>,
    /// How long a node may go on answering from its cache when it has heard neither of a control plane nor
    /// of any peer, so that a purge may have passed it by; then it asks the origin first.
    /// [`PURGE_LIMIT_DEFAULT`] when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purge_limit: Option<Span>,
    /// Response fields whose directives count before `Cache-Control` (RFC 9213), the most specific
    /// first; `CDN-Cache-Control` and `Surrogate-Control` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<Vec<String>>,
    /// Whether those fields go on to the client, as for a CDN in front of this one; they do when
    /// absent. `Surrogate-Control` never does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward_targets: Option<bool>,
    /// Who denies requests, as a URL: told with every 451 (RFC 7725 §4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_by: Option<String>,
    /// Which query parameters name an object.
    #[serde(default, skip_serializing_if = "is_default")]
    pub query: QueryRule,
    /// What else names one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub key: KeyRule,
    /// What goes straight to the origin.
    #[serde(default, skip_serializing_if = "is_default")]
    pub bypass: BypassRule,
    /// What differs by path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rule: Vec<PathRule>,
    /// Who is served.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub access: Vec<Access>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

const fn default_ttl() -> Span {
    Span(Duration::ZERO)
}

const fn connect_timeout() -> Span {
    Span(Duration::from_secs(3))
}

const fn first_byte_timeout() -> Span {
    Span(Duration::from_secs(15))
}

const fn between_bytes_timeout() -> Span {
    Span(Duration::from_secs(10))
}

/// What is wrong with a site.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("site {site:?}: {field}: {reason}")]
pub struct BadSite {
    /// The site's name, as far as it can be told.
    pub site: String,
    /// The offending field.
    pub field: &'static str,
    /// What is wrong with it, with the value.
    pub reason: String,
}

impl Site {
    /// A site with default rules.
    pub fn new(name: &str, hosts: &[&str], origins: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            hosts: hosts.iter().map(|&h| h.to_owned()).collect(),
            origins: origins.iter().map(|&o| o.to_owned()).collect(),
            origin_host: None,
            default_ttl: default_ttl(),
            connect_timeout: connect_timeout(),
            first_byte_timeout: first_byte_timeout(),
            between_bytes_timeout: between_bytes_timeout(),
            origin_concurrency: None,
            origin_queue: None,
            origin_queue_timeout: None,
            object_max: None,
            stale_while_revalidate: None,
            stale_if_error: None,
            honour_client_reload: None,
            range_miss: None,
            shield: None,
            purge_limit: None,
            targets: None,
            forward_targets: None,
            blocked_by: None,
            query: QueryRule::default(),
            key: KeyRule::default(),
            bypass: BypassRule::default(),
            rule: Vec::new(),
            access: Vec::new(),
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// The first field that cannot be meant, with its value and the reason.
    pub fn check(&self) -> Result<(), BadSite> {
        let bad = |field, reason| {
            Err(BadSite {
                site: self.name.clone(),
                field,
                reason,
            })
        };
        let name_fits = (1..=64).contains(&self.name.len())
            && self
                .name
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'));
        if !name_fits {
            return bad(
                "name",
                format!("1 to 64 of a-z, 0-9, '.', '_' and '-', not {:?}", self.name),
            );
        }
        if !(1..=HOSTS_MAX).contains(&self.hosts.len()) {
            return bad(
                "hosts",
                format!("needs 1 to {HOSTS_MAX} hosts, has {}", self.hosts.len()),
            );
        }
        if let Some(host) = self.hosts.iter().find(|h| !is_host_pattern(h)) {
            return bad(
                "hosts",
                format!("{host:?} is not a host name, \"*.name\" or \"*\" (no port)"),
            );
        }
        if !(1..=ORIGINS_MAX).contains(&self.origins.len()) {
            return bad(
                "origins",
                format!("needs 1 to {ORIGINS_MAX}, has {}", self.origins.len()),
            );
        }
        for origin in &self.origins {
            if let Err(reason) = check_origin(origin) {
                return bad("origins", format!("{origin:?}: {reason}"));
            }
        }
        if let Some(host) = &self.origin_host
            && http::uri::Authority::try_from(host.as_str()).is_err()
        {
            return bad("origin_host", format!("{host:?} is not a host"));
        }
        for (field, span) in [
            ("connect_timeout", self.connect_timeout),
            ("first_byte_timeout", self.first_byte_timeout),
            ("between_bytes_timeout", self.between_bytes_timeout),
            (
                "origin_queue_timeout",
                self.origin_queue_timeout
                    .unwrap_or(ORIGIN_QUEUE_TIMEOUT_DEFAULT),
            ),
        ] {
            if span.0.is_zero() || span.0 > Duration::from_secs(3600) {
                return bad(field, format!("must be over 0s and at most 1h, not {span}"));
            }
        }
        for (field, least, count) in [
            ("origin_concurrency", 1, self.origin_concurrency),
            ("origin_queue", 0, self.origin_queue),
        ] {
            if let Some(count) = count
                && !(least..=ORIGIN_REQUESTS_MAX).contains(&count)
            {
                return bad(
                    field,
                    format!("{least} to {ORIGIN_REQUESTS_MAX}, not {count}"),
                );
            }
        }
        self.check_rules()
            .or_else(|(field, reason)| bad(field, reason))
    }

    fn check_rules(&self) -> Result<(), rules::Bad> {
        for (field, count) in [("rule", self.rule.len()), ("access", self.access.len())] {
            if count > RULES_MAX {
                return Err((field, format!("{count} of them, at most {RULES_MAX}")));
            }
        }
        rules::span("default_ttl", Some(self.default_ttl))?;
        rules::span("stale_while_revalidate", self.stale_while_revalidate)?;
        rules::span("stale_if_error", self.stale_if_error)?;
        let targets = self.targets.as_deref().unwrap_or_default();
        if targets.len() > TARGETS_MAX {
            let reason = format!("{} fields, at most {TARGETS_MAX}", targets.len());
            return Err(("targets", reason));
        }
        rules::header_names("targets", targets)?;
        // These fields do not go on to clients, so another kind of field must not slip in.
        let is_target = |name: &&String| {
            let name = name.to_ascii_lowercase();
            name.ends_with("-control") && name != "cache-control"
        };
        if let Some(name) = targets.iter().find(|name| !is_target(name)) {
            let reason = format!("{name:?} is not a field such as \"CDN-Cache-Control\"");
            return Err(("targets", reason));
        }
        if let Some(url) = &self.blocked_by
            && !is_web_address(url)
        {
            let reason = format!("{url:?} is not http://… or https://…");
            return Err(("blocked_by", reason));
        }
        self.query.check()?;
        self.key.check()?;
        self.bypass.check()?;
        self.rule.iter().try_for_each(PathRule::check)?;
        self.access.iter().try_for_each(Access::check)
    }

    /// Who asks the origin for what no node holds.
    pub fn shield(&self) -> Shield {
        self.shield.unwrap_or_default()
    }

    /// Whether a request's country decides anything, so that a geo database is needed.
    pub fn names_countries(&self) -> bool {
        self.access.iter().any(|rule| !rule.countries.is_empty())
    }
}

/// Whether `url` can stand in a `Link`: an absolute URL in ASCII without `>`.
fn is_web_address(url: &str) -> bool {
    let web = url.parse::<Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some()
    });
    web && url
        .bytes()
        .all(|b| b.is_ascii_graphic() && !matches!(b, b'<' | b'>' | b'"'))
}

fn check_origin(origin: &str) -> Result<(), &'static str> {
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
    match uri.path_and_query().map(http::uri::PathAndQuery::as_str) {
        None | Some("/") => Ok(()),
        Some(_) => Err("must not have a path"),
    }
}

fn is_host_pattern(host: &str) -> bool {
    let name = host.strip_prefix("*.").unwrap_or(host);
    host == "*"
        || host.len() <= 253
            && (name.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label
                        .bytes()
                        .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
            }) || name
                .strip_prefix('[')
                .and_then(|n| n.strip_suffix(']'))
                .is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok()))
}

/// All sites of a version, as the control plane hands them out and an edge keeps them on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteSet {
    /// Grows with every change.
    pub version: u64,
    /// The sites.
    pub sites: Vec<Site>,
}

/// From a request's host to its site. Built once per [`SiteSet`], then only read.
#[derive(Clone, Debug, Default)]
pub struct SiteMap {
    version: u64,
    sites: Vec<Arc<Site>>,
    exact: HashMap<String, Arc<Site>>,
    /// By the part after `*.`.
    below: HashMap<String, Arc<Site>>,
    every: Option<Arc<Site>>,
    /// This node's advertised names: `None` around `{host}` means a plain name.
    own: Vec<OwnName>,
}

#[derive(Clone, Debug)]
enum OwnName {
    Plain(String),
    Around { before: String, after: String },
}

/// A host's site, and the host under which its objects are known.
#[derive(Clone, Debug)]
pub struct Selected {
    /// The site.
    pub site: Arc<Site>,
    /// The host in cache keys and towards the origin.
    pub host: String,
}

impl SiteMap {
    /// Checks and indexes `set`.
    ///
    /// # Errors
    ///
    /// A site that fails [`Site::check`], a name or host that two sites claim, or more than
    /// [`SITES_MAX`] sites.
    pub fn new(set: &SiteSet) -> Result<Self, BadSite> {
        let mut map = Self {
            version: set.version,
            ..Self::default()
        };
        if set.sites.len() > SITES_MAX {
            let reason = format!("{} sites, at most {SITES_MAX}", set.sites.len());
            return Err(BadSite {
                site: String::new(),
                field: "site",
                reason,
            });
        }
        for site in &set.sites {
            site.check()?;
            let bad = |field, reason| BadSite {
                site: site.name.clone(),
                field,
                reason,
            };
            if map.sites.iter().any(|s| s.name == site.name) {
                return Err(bad("name", "another site has this name".into()));
            }
            let site = Arc::new(site.clone());
            for host in &site.hosts {
                let taken = if host == "*" {
                    map.every.replace(site.clone())
                } else if let Some(name) = host.strip_prefix("*.") {
                    map.below.insert(name.to_owned(), site.clone())
                } else {
                    map.exact.insert(host.clone(), site.clone())
                };
                if let Some(other) = taken {
                    return Err(bad(
                        "hosts",
                        format!("{host:?} is also claimed by {:?}", other.name),
                    ));
                }
            }
            map.sites.push(site);
        }
        Ok(map)
    }

    /// Lets clients come in under the names this node advertises, as a redirect to it makes them.
    ///
    /// `base` is the advertised URL. With `{host}` in it (`http://{host}.fra.cdn.example`), what
    /// stands in its place is the site's host. Without, the plain name stands for the only site,
    /// under that site's first full host name; with several sites it stands for none.
    #[must_use]
    pub fn with_own_name(mut self, base: &str) -> Self {
        let name = base.split_once("://").map_or(base, |(_, rest)| rest);
        let name = without_port(name.split('/').next().unwrap_or_default()).to_ascii_lowercase();
        self.own.push(match name.split_once("{host}") {
            Some((before, after)) => OwnName::Around {
                before: before.into(),
                after: after.into(),
            },
            None => OwnName::Plain(name),
        });
        self
    }

    /// The version of the set it was built from.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Every site.
    pub fn sites(&self) -> &[Arc<Site>] {
        &self.sites
    }

    /// The site for a `Host` (with or without port, in any case), if there is one.
    pub fn select(&self, host: &str) -> Option<Selected> {
        let host = normal_host(host);
        self.listed(&host)
            .or_else(|| self.under_own_name(&host))
            .or_else(|| {
                let site = self.every.clone()?;
                Some(Selected { site, host })
            })
    }

    fn listed(&self, host: &str) -> Option<Selected> {
        let below = || {
            let mut rest = host;
            while let Some((_, parent)) = rest.split_once('.') {
                if let Some(site) = self.below.get(parent) {
                    return Some(site);
                }
                rest = parent;
            }
            None
        };
        let site = self.exact.get(host).or_else(below)?.clone();
        Some(Selected {
            site,
            host: host.to_owned(),
        })
    }

    fn under_own_name(&self, host: &str) -> Option<Selected> {
        self.own.iter().find_map(|own| match own {
            OwnName::Around { before, after } => {
                let inner = host
                    .strip_prefix(before.as_str())?
                    .strip_suffix(after.as_str())?;
                self.listed(inner)
            }
            OwnName::Plain(name) => {
                let [only] = self.sites.as_slice() else {
                    return None;
                };
                let canonical = only.hosts.iter().find(|h| !h.starts_with('*'))?;
                (name == host).then(|| Selected {
                    site: only.clone(),
                    host: canonical.clone(),
                })
            }
        })
    }
}

/// Lower case, without port and trailing dot.
fn normal_host(host: &str) -> String {
    let name = without_port(host.trim());
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') && port.bytes().all(|b| b.is_ascii_digit()) => {
            if name.contains(':') && !name.ends_with(']') {
                host
            } else {
                name
            }
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(sites: &[Site]) -> SiteMap {
        SiteMap::new(&SiteSet {
            version: 1,
            sites: sites.to_vec(),
        })
        .unwrap()
    }

    fn name_and_host(map: &SiteMap, host: &str) -> Option<(String, String)> {
        map.select(host).map(|s| (s.site.name.clone(), s.host))
    }

    #[test]
    fn the_most_specific_host_wins() {
        let map = map(&[
            Site::new("www", &["www.example.com"], &["http://o:1"]),
            Site::new("wild", &["*.example.com"], &["http://o:1"]),
            Site::new("rest", &["*"], &["http://o:1"]),
        ]);
        for (host, site) in [
            ("www.example.com", "www"),
            ("WWW.Example.com.:8080", "www"),
            ("a.b.example.com", "wild"),
            ("example.com", "rest"),
            ("[::1]:80", "rest"),
        ] {
            assert_eq!(map.select(host).unwrap().site.name, site, "{host}");
        }
        assert_eq!(map.select("[::1]:80").unwrap().host, "[::1]");
    }

    #[test]
    fn an_unknown_host_has_no_site() {
        let map = map(&[Site::new("www", &["www.example.com"], &["http://o:1"])]);
        assert!(map.select("example.com").is_none());
        assert!(map.select("").is_none());
    }

    #[test]
    fn an_advertised_name_leads_to_the_site_under_its_own_host() {
        let one = [Site::new(
            "www",
            &["www.example.com", "*.example.com"],
            &["http://o:1"],
        )];
        let two = [one[0].clone(), Site::new("b", &["b.test"], &["http://o:2"])];
        let plain = "http://edge1.cdn.net:8080";
        let around = "http://{host}.edge1.cdn.net";
        let www = Some(("www".to_owned(), "www.example.com".to_owned()));
        assert_eq!(
            name_and_host(&map(&one).with_own_name(plain), "edge1.cdn.net:8080"),
            www
        );
        assert_eq!(
            name_and_host(&map(&two).with_own_name(plain), "edge1.cdn.net"),
            None
        );
        let map = map(&two).with_own_name(around);
        assert_eq!(name_and_host(&map, "www.example.com.edge1.cdn.net"), www);
        assert_eq!(name_and_host(&map, "other.test.edge1.cdn.net"), None);
    }

    /// What is absent is not written either: an edge that does not know of it still takes the site.
    #[test]
    fn a_site_without_rules_is_written_as_before() {
        let site = Site::new("a", &["a.test"], &["http://o:80"]);
        let json = serde_json::to_value(&site).unwrap();
        let keys: Vec<_> = json
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let known = [
            "between_bytes_timeout",
            "connect_timeout",
            "default_ttl",
            "first_byte_timeout",
            "hosts",
            "name",
            "origins",
        ];
        assert_eq!(keys, known);
        assert!(!site.names_countries());
    }

    #[test]
    fn impossible_sites_are_refused_by_field() {
        let good = Site::new("a", &["a.test"], &["http://o:80"]);
        let with = |change: fn(&mut Site)| {
            let mut site = good.clone();
            change(&mut site);
            site.check().unwrap_err().field
        };
        assert_eq!(with(|s| s.name = "A b".into()), "name");
        assert_eq!(with(|s| s.hosts = vec![]), "hosts");
        assert_eq!(with(|s| s.hosts = vec!["a.test:80".into()]), "hosts");
        assert_eq!(with(|s| s.origins = vec![]), "origins");
        assert_eq!(with(|s| s.origins = vec!["ftp://o".into()]), "origins");
        assert_eq!(with(|s| s.origins = vec!["http://u:p@o".into()]), "origins");
        assert_eq!(
            with(|s| s.origins = vec!["http://o/path".into()]),
            "origins"
        );
        assert_eq!(with(|s| s.origin_host = Some("a b".into())), "origin_host");
        assert_eq!(
            with(|s| s.first_byte_timeout = Span(Duration::ZERO)),
            "first_byte_timeout"
        );
        let written = |text: &str| {
            let name = "name = 'a'\nhosts = ['a.test']\norigins = ['http://o']\n";
            toml::from_str::<Site>(&format!("{name}{text}"))
        };
        for (text, field) in [
            ("default_ttl = '4000d'", "default_ttl"),
            ("origin_concurrency = 0", "origin_concurrency"),
            ("origin_concurrency = 65537", "origin_concurrency"),
            ("origin_queue = 65537", "origin_queue"),
            ("origin_queue_timeout = '0s'", "origin_queue_timeout"),
            ("targets = ['a b-control']", "targets"),
            ("targets = ['Cache-Control']", "targets"),
            ("targets = ['Set-Cookie']", "targets"),
            ("blocked_by = 'me'", "blocked_by"),
            ("blocked_by = 'ftp://a'", "blocked_by"),
            ("[query]\nonly = []\nignore = ['a']", "query.ignore"),
            ("[key]\nheaders = ['']", "key.headers"),
            ("[key]\ncookies = ['a=b']", "key.cookies"),
            ("[bypass]\npaths = ['admin']", "bypass.paths"),
            ("[[rule]]\npath = '/a?b'\nttl = '1s'", "rule.path"),
            ("[[rule]]\npath = '/a'", "rule"),
            ("[[rule]]\nttl = '1s'\nttl_override = '1s'", "rule.ttl"),
            ("[[rule]]\nstatus = [404]", "rule.status"),
            ("[[rule]]\nttl_override = '3651d'", "rule.ttl_override"),
            ("[[access]]\naction = 'deny'\nstatus = 404", "access.status"),
            (
                "[[access]]\naction = 'allow'\nstatus = 403",
                "access.status",
            ),
            (
                "[[access]]\naction = 'deny'\npaths = ['*.php']",
                "access.paths",
            ),
            (
                "[[access]]\naction = 'deny'\nmethods = ['post']",
                "access.methods",
            ),
            (
                "[[access]]\naction = 'deny'\ncountries = ['fr']",
                "access.countries",
            ),
            (
                "[[access]]\naction = 'deny'\ncountries = ['France']",
                "access.countries",
            ),
        ] {
            let error = written(text).unwrap().check().unwrap_err();
            assert_eq!(error.field, field, "{text}: {error}");
        }
        let many = "[[rule]]\nttl = '1s'\n".repeat(RULES_MAX + 1);
        assert_eq!(written(&many).unwrap().check().unwrap_err().field, "rule");
        for (text, told) in [
            ("[query]\nignore = ['*a']", "utm_*"),
            ("[[rule]]\nstatus = [99]\nttl = '1s'", "99 is not a status"),
            ("[[access]]\naction = 'drop'", "drop"),
            ("[[access]]\npaths = ['/']", "action"),
            (
                "[[access]]\naction = 'deny'\naddresses = ['10.1.0.0/8']",
                "10.0.0.0/8",
            ),
            ("range_miss = 'all'", "whole"),
            ("shield = 'all'", "shield = 'all'"),
            ("shield = 'all'", "`region`"),
            ("[bypas]", "bypas"),
        ] {
            let error = written(text).unwrap_err().to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
        let twice = SiteSet {
            version: 1,
            sites: vec![
                good.clone(),
                Site {
                    name: "b".into(),
                    ..good
                },
            ],
        };
        assert_eq!(SiteMap::new(&twice).unwrap_err().field, "hosts");
    }
}
