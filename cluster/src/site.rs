//! A site: a set of hosts served from a set of origins under one cache policy. And the map from a
//! request's host to its site. What a site's owner may rule is in [`rules`]; where its objects come
//! from in [`origin`]; what must not be served any more in [`takedown`]; what origins learn of clients in
//! [`privacy`]. Which origins may be named by whom is judged in [`outside`].

mod hosts;
mod map;
pub mod origin;
pub mod outside;
pub mod privacy;
pub mod rules;
pub mod takedown;
mod words;

use std::time::Duration;

use http::Uri;
use serde::{Deserialize, Serialize};

pub use self::map::{Selected, SiteMap, SiteSet, normal_host};
use self::{
    hosts::host_flaw,
    origin::{HealthRule, Origin},
    privacy::Privacy,
    rules::{
        Access, BypassRule, KeyRule, LIST_MAX, PathRule, QueryRule, RULES_MAX, RangeMiss,
        STATUSES_MAX, Shield, Statuses,
    },
    takedown::{TAKEDOWNS_MAX, Takedown},
};
use crate::{
    network::Network,
    quantity::{Bytes, Span},
};

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
    /// Where its objects come from. Each object is asked of one of those that are well, chosen by the
    /// object's name and their weights, and of the next when that fails.
    pub origins: Vec<Origin>,
    /// `Host` to send to the origin; the client's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin_host: Option<String>,
    /// Statuses of an origin's answer to a safe request for which the next origin is asked; none when
    /// absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failover: Vec<Statuses>,
    /// The name of what it takes to serve its hosts over TLS. Kept and checked as a name; nodes do not
    /// serve TLS yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
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
    /// How long a node may go on answering from its cache when it has heard of no control plane, neither
    /// itself nor through peers, so that a purge may have passed it by; then it asks the origin first.
    /// [`PURGE_LIMIT_DEFAULT`] when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purge_limit: Option<Span>,
    /// Networks of whoever may ask for purges at the edges, by `PURGE`, `BAN` and the like; everybody else is
    /// answered by 403. None when absent: then purges are taken by the control plane only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub purge_from: Vec<Network>,
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
    /// How nodes find out whether its origins are well; by what requests meet, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthRule>,
    /// What the origin learns of a client.
    #[serde(default, skip_serializing_if = "is_default")]
    pub privacy: Privacy,
    /// What must not be served any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub takedown: Vec<Takedown>,
}

fn is_name(name: &str) -> bool {
    let fits = |b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    // Dots alone are a step in a path, and not a name, for much that reads URLs.
    let is_step = name.bytes().all(|b| b == b'.');
    (1..=64).contains(&name.len()) && name.bytes().all(fits) && !is_step
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
            origins: origins.iter().map(|&o| o.into()).collect(),
            origin_host: None,
            failover: Vec::new(),
            tls: None,
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
            purge_from: Vec::new(),
            targets: None,
            forward_targets: None,
            blocked_by: None,
            query: QueryRule::default(),
            key: KeyRule::default(),
            bypass: BypassRule::default(),
            rule: Vec::new(),
            access: Vec::new(),
            health: None,
            privacy: Privacy::default(),
            takedown: Vec::new(),
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
        if !is_name(&self.name) {
            return bad(
                "name",
                format!(
                    "1 to 64 of a-z, 0-9, '.', '_' and '-', and not dots alone, not {:?}",
                    self.name
                ),
            );
        }
        if !(1..=HOSTS_MAX).contains(&self.hosts.len()) {
            return bad(
                "hosts",
                format!("needs 1 to {HOSTS_MAX} hosts, has {}", self.hosts.len()),
            );
        }
        for host in &self.hosts {
            if let Some(flaw) = host_flaw(host) {
                let host: String = host.chars().take(80).collect();
                return bad(
                    "hosts",
                    format!("{host:?} is not a host name, \"*.name\" or \"*\": it {flaw}"),
                );
            }
        }
        if !(1..=ORIGINS_MAX).contains(&self.origins.len()) {
            return bad(
                "origins",
                format!("needs 1 to {ORIGINS_MAX}, has {}", self.origins.len()),
            );
        }
        for origin in &self.origins {
            origin
                .check()
                .or_else(|(field, reason)| bad(field, reason))?;
        }
        let urls = self.origins.iter().enumerate();
        for (n, origin) in urls {
            if self.origins[..n]
                .iter()
                .any(|other| other.url == origin.url)
            {
                return bad("origins", format!("{:?} is there twice", origin.url));
            }
        }
        if self.origins.iter().all(|origin| origin.backup) {
            let reason = "all are backups; of what?".to_owned();
            return bad("origins.backup", reason);
        }
        if let Some(name) = &self.tls
            && !is_name(name)
        {
            let reason = format!("1 to 64 of a-z, 0-9, '.', '_' and '-', not {name:?}");
            return bad("tls", reason);
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
        for (field, count, most) in [
            ("rule", self.rule.len(), RULES_MAX),
            ("access", self.access.len(), RULES_MAX),
            ("failover", self.failover.len(), STATUSES_MAX),
            ("takedown", self.takedown.len(), TAKEDOWNS_MAX),
            ("purge_from", self.purge_from.len(), LIST_MAX),
        ] {
            if count > most {
                return Err((field, format!("{count} of them, at most {most}")));
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
        self.access.iter().try_for_each(Access::check)?;
        self.health.iter().try_for_each(HealthRule::check)?;
        let is_own = |host: &str| self.has_host(host);
        self.takedown
            .iter()
            .try_for_each(|takedown| takedown.check(is_own))
    }

    /// Whether a host, with or without port, is one of the site's, whatever other sites have.
    pub fn has_host(&self, host: &str) -> bool {
        let host = normal_host(host);
        self.hosts.iter().any(|own| match own.strip_prefix('*') {
            None => *own == host,
            Some(end) => host.len() > end.len() && host.ends_with(end),
        })
    }

    /// `Host` towards an origin, for a request for `host`.
    pub fn host_towards<'a>(&'a self, origin: &'a Origin, host: &'a str) -> &'a str {
        let own = origin.host.as_deref().or(self.origin_host.as_deref());
        own.unwrap_or(host)
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

#[cfg(test)]
mod tests;
