//! What a site's owner decides about caching, as the policy engine reads it: chosen once per request
//! by its path, then only read.

use std::{ops::RangeInclusive, time::Duration};

use http::{HeaderMap, HeaderName, StatusCode};

/// `CDN-Cache-Control` (RFC 9213 §3).
pub const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");
/// `Surrogate-Control` (Edge Architecture Specification 1.0), which Fastly and Varnish sites send.
pub const SURROGATE_CONTROL: HeaderName = HeaderName::from_static("surrogate-control");

/// What the site's owner decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Whether a client may ask for more, or less, freshness than the origin does: `no-cache`,
    /// `max-age`, `min-fresh`, `max-stale`, `stale-if-error` in requests.
    pub honour_client: bool,
    /// Lifetimes by status; the first that names the status counts.
    pub ttls: Vec<Ttl>,
    /// How long a response stays fresh when neither the origin nor [`Self::ttls`] say anything and
    /// its `Last-Modified` gives nothing to infer from. Only where a heuristic lifetime is allowed.
    pub default_ttl: Duration,
    /// How long a stale response may be used while it is validated, where the origin says nothing.
    pub stale_while_revalidate: Duration,
    /// How long a stale response may be used instead of an error, where the origin says nothing.
    pub stale_if_error: Duration,
    /// Response fields whose directives count instead of `Cache-Control` and `Expires`, the most
    /// specific first (RFC 9213 §2.2).
    pub targets: Vec<HeaderName>,
    /// Whether [`Self::targets`] go on to the client, for a CDN in front of this one (RFC 9213 §3), all
    /// but `Surrogate-Control`, which is always for the nearest surrogate only.
    pub forward_targets: bool,
    /// Largest body that is stored, in bytes; larger ones pass.
    pub object_bytes_max: u64,
    /// Whether a range that misses starts the fill of the whole object; else only that part is
    /// fetched, and kept as a part.
    pub fill_whole: bool,
}

/// How long responses of some statuses stay fresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ttl {
    /// The status codes it is for.
    pub statuses: RangeInclusive<u16>,
    /// How long.
    pub lifetime: Duration,
    /// Whether it counts even where the origin gives a lifetime, or says `no-cache`. What forbids
    /// storing (`no-store`, `private`, cookies, authorization) holds in any case.
    pub overrides: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            honour_client: true,
            ttls: Vec::new(),
            default_ttl: Duration::ZERO,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            targets: vec![CDN_CACHE_CONTROL, SURROGATE_CONTROL],
            forward_targets: true,
            object_bytes_max: u64::MAX,
            fill_whole: true,
        }
    }
}

impl Rules {
    /// Takes out of an answer to a client what was meant for this cache alone.
    pub fn consume_targets(&self, headers: &mut HeaderMap) {
        for target in &self.targets {
            if !self.forward_targets || *target == SURROGATE_CONTROL {
                headers.remove(target);
            }
        }
    }

    /// The lifetime for a status, where there is one.
    pub fn ttl(&self, status: StatusCode) -> Option<&Ttl> {
        let status = status.as_u16();
        self.ttls.iter().find(|ttl| ttl.statuses.contains(&status))
    }
}
