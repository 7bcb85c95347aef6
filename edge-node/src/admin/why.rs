//! Why a request would be answered as it would: sentences that cite what is responsible. Pure.

use std::net::IpAddr;

use cluster::site::rules::Access;
use http::{HeaderMap, Method, header};

use crate::{
    cache::{
        entry::Head,
        policy::{self, Basis, CacheControl, Reuse, Rules, Why, targeted::Governing},
        refusals::{Refusal, field_name},
    },
    ruling::{Bypass, Ruling, access::Verdict},
    upstream::paying::{Comparison, Order},
};

/// A request, and all that decides what becomes of it.
#[derive(Clone)]
pub(super) struct Case<'a> {
    pub(super) ruling: &'a Ruling,
    pub(super) rules: &'a Rules,
    pub(super) verdict: Verdict,
    /// The takedown for which it is not served, in words.
    pub(super) taken_down: Option<&'a str>,
    pub(super) client: Option<IpAddr>,
    pub(super) method: &'a Method,
    pub(super) headers: &'a HeaderMap,
    pub(super) said: &'a CacheControl,
    pub(super) bypass: Option<Bypass<'a>>,
    pub(super) stored: Option<&'a Head>,
    /// Whether what is stored is enough, should it be a part only.
    pub(super) suffices: bool,
    /// Where a range is put together from slices: how many of them are here, of how many that are known of.
    pub(super) slices: Option<(usize, usize)>,
    pub(super) refusal: Option<&'a Refusal>,
    /// How peers and the origin compare.
    pub(super) order: &'a Comparison,
    /// The peer that would be asked first.
    pub(super) holder: Option<String>,
    /// The home that would be asked first.
    pub(super) home: Option<String>,
    pub(super) now_ms: u64,
}

/// What becomes of the request.
pub(super) fn then(case: &Case<'_>) -> String {
    let unavailable = "answered with 504: the request wants nothing but what is stored";
    if case.taken_down.is_some() {
        return "denied with 451, and asked of nobody".to_owned();
    }
    if let Verdict::Deny { status, .. } = case.verdict {
        return format!("denied with {status}");
    }
    if !case.is_cacheable() {
        return "sent to the origin".to_owned();
    }
    if case.said.only_if_cached && (case.bypass.is_some() || case.stored.is_none()) {
        return unavailable.to_owned();
    }
    if case.bypass.is_some() {
        return "sent to the origin, and the answer is not stored".to_owned();
    }
    let in_slices = match case.slices {
        Some((here, all)) if here == all => Some("put together from slices on this node"),
        Some(_) => Some(
            "put together from slices: each is had from this node, of who holds it, of its home or of the origin",
        ),
        None => None,
    };
    let Some(head) = case.stored else {
        if let Some(words) = in_slices {
            return words.to_owned();
        }
        return match (&case.holder, &case.home) {
            (Some(holder), None) if case.order.order == Order::OriginFirst => {
                format!("fetched from the origin, and asked of {holder} if that fails")
            }
            (Some(holder), Some(home)) if case.order.order == Order::OriginFirst => {
                format!(
                    "asked of its home {home}, then of the origin, and of {holder} if that fails"
                )
            }
            (Some(holder), None) => format!("asked of {holder}, then of the origin"),
            (Some(holder), Some(home)) => {
                format!("asked of {holder}, then of its home {home}, then of the origin")
            }
            (None, Some(home)) => {
                format!("asked of its home {home}, then of the origin: no peer claims it")
            }
            (None, None) => "fetched from the origin: no peer claims it".to_owned(),
        };
    };
    match case.reuse(head) {
        Reuse::Unavailable => unavailable,
        _ if !case.may_share(head) => "sent to the origin, for this request only",
        Reuse::Fresh if !case.suffices => {
            in_slices.unwrap_or("answered once the origin has sent the rest")
        }
        Reuse::Fresh => "answered from this node",
        Reuse::StaleWhileRevalidate | Reuse::StaleAccepted => {
            "answered from this node, and validated with the origin behind it"
        }
        Reuse::Validate(_) => "validated with the origin",
    }
    .to_owned()
}

/// Why, a sentence each, in the order in which it is decided.
pub(super) fn why(case: &Case<'_>) -> Vec<String> {
    let site = &case.ruling.site;
    if let Some(words) = case.taken_down {
        return vec![format!("taken down by site {}: {words}", site.name)];
    }
    if let Verdict::Deny { rule, .. } = case.verdict {
        let words = site.access.get(rule).map(Access::in_words);
        let (number, words) = (rule + 1, words.unwrap_or_default());
        return vec![format!(
            "access rule {number} of site {}: {words}",
            site.name
        )];
    }
    let mut why = Vec::new();
    let by_client = |rule: &Access| !rule.addresses.is_empty() || !rule.countries.is_empty();
    if case.client.is_none() && site.access.iter().any(by_client) {
        let open = "access rules for addresses and countries were not looked at: ask with \
                    &client=ADDRESS";
        why.push(open.to_owned());
    }
    if !case.is_cacheable() {
        let method = case.method;
        why.push(format!(
            "only GET and HEAD are answered from the cache, not {method}"
        ));
        return why;
    }
    if let Some(bypass) = case.bypass {
        why.push(bypass_in_words(bypass, &site.name));
        return why;
    }
    match (case.stored, case.refusal) {
        (Some(head), _) => why.extend(case.stored_in_words(head)),
        (None, Some(refusal)) => why.push(case.refusal_in_words(refusal)),
        (None, None) => why.push("nothing is stored that fits the request".to_owned()),
    }
    why.extend(case.slices.map(|(here, all)| {
        format!("a range of what nobody holds is had in slices of 1 MiB, {here} of {all} are here")
    }));
    why.extend(case.request_in_words());
    if case.stored.is_none() && case.holder.is_some() {
        why.push(case.order.in_words());
    }
    why
}

fn bypass_in_words(bypass: Bypass<'_>, site: &str) -> String {
    let (what, list) = match bypass {
        Bypass::Path(path) => (format!("for a path that begins with {path}"), "paths"),
        Bypass::Header(name) => (format!("with a header field {name}"), "headers"),
        Bypass::Cookie(name) => (format!("with a cookie {name}"), "cookies"),
    };
    format!("requests {what} go to the origin: bypass.{list} of site {site}")
}

impl Case<'_> {
    fn is_cacheable(&self) -> bool {
        matches!(*self.method, Method::GET | Method::HEAD)
    }

    fn reuse(&self, head: &Head) -> Reuse {
        policy::reuse(&head.freshness, self.said, self.rules, self.now_ms)
    }

    fn may_share(&self, head: &Head) -> bool {
        head.freshness.for_everybody || !self.headers.contains_key(header::AUTHORIZATION)
    }

    fn stored_in_words(&self, head: &Head) -> Vec<String> {
        let governing = Governing::of(&head.headers, &self.rules.targets);
        let field = field_name(&governing.field);
        let stored_s = self.now_ms.saturating_sub(head.asked_ms) / 1000;
        let age_s = head.freshness.age_s(self.now_ms);
        // A second of difference is the resolution of `Date`.
        let older = match age_s > stored_s + 1 {
            true => format!(" at an age of {} s", age_s - stored_s),
            false => String::new(),
        };
        let state = self.freshness_in_words(head, &field);
        let mut words = vec![format!("stored {stored_s} s ago{older}; {state}")];
        if let Some(part) = &head.part {
            let (first, last) = (part.range.start, part.range.end - 1);
            words.push(format!(
                "only bytes {first} to {last} of {} are stored",
                part.of
            ));
        }
        words.extend(self.reuse_in_words(head, &field));
        if !self.may_share(head) {
            words.push(format!(
                "not for a request with Authorization: the origin did not say `public`, `s-maxage` or \
                 `must-revalidate` in {field}"
            ));
        }
        if let Some(refusal) = self.refusal.filter(|refusal| refusal.at_ms > head.asked_ms) {
            words.push(self.refusal_in_words(refusal));
        }
        words
    }

    fn freshness_in_words(&self, head: &Head, field: &str) -> String {
        let freshness = &head.freshness;
        if freshness.no_cache {
            return format!("`no-cache` in {field}: never used before the origin has confirmed it");
        }
        let (seconds, site) = (freshness.lifetime.as_secs(), &self.ruling.site.name);
        let cause = match freshness.basis {
            Basis::Rule => format!("ttl_override of {seconds} s in a rule of site {site}"),
            Basis::SMaxage => format!("s-maxage={seconds} in {field}"),
            Basis::MaxAge => format!("max-age={seconds} in {field}"),
            Basis::Expires => format!("Expires, {seconds} s after Date"),
            Basis::Heuristic => format!("a tenth of the time since Last-Modified, {seconds} s"),
            Basis::Site if self.rules.ttl(head.status).is_some() => {
                format!("ttl of {seconds} s in a rule of site {site}")
            }
            Basis::Site => format!("default_ttl of {seconds} s of site {site}"),
            Basis::Nothing => format!("no lifetime in {field} or Expires"),
        };
        let ttl_s = freshness.ttl_s(self.now_ms);
        match freshness.is_fresh(self.now_ms) {
            true => format!("{cause}: fresh for {ttl_s} s more"),
            false => format!("{cause}: stale for {} s", ttl_s.saturating_neg()),
        }
    }

    fn reuse_in_words(&self, head: &Head, field: &str) -> Option<String> {
        let freshness = &head.freshness;
        let survives = || policy::may_serve_on_error(freshness, self.said, self.rules, self.now_ms);
        let words = match self.reuse(head) {
            Reuse::StaleWhileRevalidate => {
                let window_s = freshness.stale_while_revalidate.as_secs();
                format!(
                    "stale-while-revalidate of {window_s} s: used once more while it is validated"
                )
            }
            Reuse::StaleAccepted => "`max-stale` in the request: accepted stale".to_owned(),
            Reuse::Validate(Why::Request) => {
                "the request's Cache-Control or Pragma asks for more: honour_client_reload"
                    .to_owned()
            }
            Reuse::Validate(Why::Stale) if freshness.must_revalidate => format!(
                "`must-revalidate`, `proxy-revalidate` or `s-maxage` in {field}: never used stale"
            ),
            Reuse::Validate(Why::Stale) if survives() => {
                "stale-if-error: used stale if the origin fails".to_owned()
            }
            _ => return None,
        };
        Some(words)
    }

    fn refusal_in_words(&self, refusal: &Refusal) -> String {
        let ago_s = self.now_ms.saturating_sub(refusal.at_ms) / 1000;
        format!("not stored {ago_s} s ago: {}", refusal.why)
    }

    fn request_in_words(&self) -> Vec<String> {
        let (said, rules, absent) = (self.said, self.rules, self.stored.is_none());
        let has = |name| absent && self.headers.contains_key(name);
        let reloads = said.no_cache || said.max_age.is_some();
        [
            (
                reloads && !rules.honour_client,
                "`no-cache` or `max-age` in the request does not count: honour_client_reload",
            ),
            (
                said.no_store && absent,
                "`no-store` in the request: what it fetches is not stored",
            ),
            (
                has(header::AUTHORIZATION),
                "Authorization in the request: what it fetches is stored only if it says `public`, \
                 `s-maxage` or `must-revalidate`",
            ),
            (
                has(header::RANGE) && rules.fill_whole,
                "the range starts the fetch of the whole: range_miss",
            ),
            (
                has(header::RANGE) && !rules.fill_whole,
                "the range starts the fetch of that part only: range_miss",
            ),
        ]
        .into_iter()
        .filter(|(counts, _)| *counts)
        .map(|(_, words)| words.to_owned())
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cluster::site::Site;
    use http::StatusCode;

    use super::*;
    use crate::{
        cache::policy::Freshness,
        ruling::{access::Visit, path::Readings},
    };

    const STORED_MS: u64 = 784_111_777_000;
    const NOW_MS: u64 = STORED_MS + 12_000;

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    /// What becomes of a request to a site with these rules, and the reasons in one line.
    fn told(
        rules: &str,
        request: (&str, &str, &[(&'static str, &str)]),
        stored: Option<(u16, &[(&'static str, &str)])>,
        refusal: Option<&Refusal>,
    ) -> (String, String) {
        let known = "name = 'www'\nhosts = ['*']\norigins = ['http://o']\n";
        let site: Site = toml::from_str(&format!("{known}{rules}")).unwrap();
        let ruling = Ruling::new(Arc::new(site), true);
        let (method, path, fields) = request;
        let (method, path) = (method.parse().unwrap(), Readings::of(path.as_bytes()));
        let headers = map(fields);
        let visit = Visit {
            path: &path,
            method: &method,
            client: None,
        };
        let head = stored.map(|(status, fields)| {
            let (status, headers) = (StatusCode::from_u16(status).unwrap(), map(fields));
            let rules = ruling.rules(&path);
            Head {
                freshness: Freshness::of(status, &headers, rules, STORED_MS),
                status,
                headers: headers.into(),
                asked_ms: STORED_MS,
                part: None,
                selected_by: Vec::new(),
                length: None,
                fetched_by: "edge-1".parse().unwrap(),
                fetched_at: STORED_MS,
                as_of: cluster::purge::Position::default(),
            }
        });
        let case = Case {
            ruling: &ruling,
            rules: ruling.rules(&path),
            verdict: ruling.judge(visit, None, "a.test", |_| None),
            taken_down: None,
            client: None,
            method: &method,
            headers: &headers,
            said: &CacheControl::of_request(&headers),
            bypass: ruling.bypass(&path, &headers),
            stored: head.as_ref(),
            suffices: true,
            slices: None,
            refusal,
            order: &compared(Order::PeersFirst),
            holder: None,
            home: None,
            now_ms: NOW_MS,
        };
        (then(&case), why(&case).join("; "))
    }

    fn compared(order: Order) -> Comparison {
        Comparison {
            order,
            size: "small",
            peers_ms: Some(30.0),
            origin_ms: Some(10.0),
            patience: 1.0,
        }
    }

    #[test]
    fn who_is_asked_first_is_told_with_what_both_take() {
        for (order, expected) in [
            (
                Order::PeersFirst,
                "peers come first: for small bodies they take 30.0 ms, the origin 10.0 ms",
            ),
            (
                Order::OriginFirst,
                "the origin comes first, and peers if it fails: for small bodies they take 30.0 ms, \
                 the origin 10.0 ms",
            ),
        ] {
            assert_eq!(compared(order).in_words(), expected);
        }
        let shielded = Comparison {
            patience: 4.0,
            ..compared(Order::PeersFirst)
        };
        assert!(
            shielded
                .in_words()
                .ends_with("the site's shield bears 4 times as much")
        );
        let unknown = Comparison {
            origin_ms: None,
            ..compared(Order::PeersFirst)
        };
        assert!(
            unknown
                .in_words()
                .ends_with("not both have been measured lately")
        );
    }

    #[test]
    fn what_is_stored_is_explained_by_its_directives() {
        let max_age = ("cache-control", "max-age=60");
        for (rules, fields, stored, becomes, because) in [
            (
                "",
                &[][..],
                (200, &[max_age][..]),
                "answered from this node",
                "stored 12 s ago; max-age=60 in Cache-Control: fresh for 48 s more",
            ),
            (
                "",
                &[],
                (
                    200,
                    &[
                        ("cdn-cache-control", "max-age=60"),
                        ("cache-control", "no-cache"),
                    ],
                ),
                "answered from this node",
                "stored 12 s ago; max-age=60 in CDN-Cache-Control: fresh for 48 s more",
            ),
            (
                "",
                &[],
                (200, &[max_age, ("age", "20")]),
                "answered from this node",
                "stored 12 s ago at an age of 20 s; max-age=60 in Cache-Control: fresh for 28 s more",
            ),
            (
                "",
                &[],
                (200, &[("cache-control", "max-age=10, stale-if-error=60")]),
                "validated with the origin",
                "stored 12 s ago; max-age=10 in Cache-Control: stale for 2 s; stale-if-error: used \
                 stale if the origin fails",
            ),
            (
                "",
                &[],
                (
                    200,
                    &[("cache-control", "max-age=10, stale-while-revalidate=60")],
                ),
                "answered from this node, and validated with the origin behind it",
                "stored 12 s ago; max-age=10 in Cache-Control: stale for 2 s; \
                 stale-while-revalidate of 60 s: used once more while it is validated",
            ),
            (
                "",
                &[],
                (200, &[("cache-control", "s-maxage=10")]),
                "validated with the origin",
                "stored 12 s ago; s-maxage=10 in Cache-Control: stale for 2 s; `must-revalidate`, \
                 `proxy-revalidate` or `s-maxage` in Cache-Control: never used stale",
            ),
            (
                "",
                &[],
                (200, &[("cache-control", "no-cache")]),
                "validated with the origin",
                "stored 12 s ago; `no-cache` in Cache-Control: never used before the origin has \
                 confirmed it",
            ),
            (
                "[[rule]]\nttl_override = '1h'",
                &[],
                (200, &[("cache-control", "no-cache")]),
                "answered from this node",
                "stored 12 s ago; ttl_override of 3600 s in a rule of site www: fresh for 3588 s more",
            ),
            (
                "[[rule]]\nstatus = [404]\nttl = '20s'",
                &[],
                (404, &[]),
                "answered from this node",
                "stored 12 s ago; ttl of 20 s in a rule of site www: fresh for 8 s more",
            ),
            (
                "default_ttl = '20s'",
                &[],
                (200, &[]),
                "answered from this node",
                "stored 12 s ago; default_ttl of 20 s of site www: fresh for 8 s more",
            ),
            (
                "",
                &[("cache-control", "no-cache")],
                (200, &[max_age]),
                "validated with the origin",
                "stored 12 s ago; max-age=60 in Cache-Control: fresh for 48 s more; the request's \
                 Cache-Control or Pragma asks for more: honour_client_reload",
            ),
            (
                "honour_client_reload = false",
                &[("pragma", "no-cache")],
                (200, &[max_age]),
                "answered from this node",
                "stored 12 s ago; max-age=60 in Cache-Control: fresh for 48 s more; `no-cache` or \
                 `max-age` in the request does not count: honour_client_reload",
            ),
            (
                "",
                &[("authorization", "x")],
                (200, &[max_age]),
                "sent to the origin, for this request only",
                "stored 12 s ago; max-age=60 in Cache-Control: fresh for 48 s more; not for a request \
                 with Authorization: the origin did not say `public`, `s-maxage` or \
                 `must-revalidate` in Cache-Control",
            ),
            (
                "",
                &[("cache-control", "only-if-cached, no-cache")],
                (200, &[max_age]),
                "answered with 504: the request wants nothing but what is stored",
                "stored 12 s ago; max-age=60 in Cache-Control: fresh for 48 s more",
            ),
        ] {
            let found = told(rules, ("GET", "/", fields), Some(stored), None);
            assert_eq!(
                found,
                (becomes.into(), because.into()),
                "{rules} {fields:?} {stored:?}"
            );
        }
    }

    #[test]
    fn what_is_not_stored_is_explained_by_what_stands_against_it() {
        let refusal = Refusal {
            why: "the origin's last answer said `no-store` in Cache-Control".to_owned(),
            at_ms: NOW_MS - 3_000,
        };
        let rules = "[bypass]\ncookies = ['session*']\n[[access]]\naction = 'deny'\npaths = ['/x/']\n\
                     [[rule]]\npath = '/v/'\nrange_miss = 'part'";
        let fetched = "fetched from the origin: no peer claims it";
        let absent = "nothing is stored that fits the request";
        let unavailable = "answered with 504: the request wants nothing but what is stored";
        for (request, refusal, becomes, because) in [
            (("GET", "/", &[][..]), None, fetched, absent.to_owned()),
            (
                ("GET", "/", &[]),
                Some(&refusal),
                fetched,
                format!("not stored 3 s ago: {}", refusal.why),
            ),
            (
                ("GET", "/", &[("cookie", "sessionid=1")]),
                Some(&refusal),
                "sent to the origin, and the answer is not stored",
                "requests with a cookie session* go to the origin: bypass.cookies of site www".into(),
            ),
            (
                ("GET", "/a/../x/", &[]),
                None,
                "denied with 403",
                "access rule 1 of site www: a request for a path that begins with /x/ is denied with \
                 403"
                    .into(),
            ),
            (
                ("POST", "/", &[]),
                None,
                "sent to the origin",
                "only GET and HEAD are answered from the cache, not POST".into(),
            ),
            (
                ("GET", "/", &[("range", "bytes=0-1")]),
                None,
                fetched,
                format!("{absent}; the range starts the fetch of the whole: range_miss"),
            ),
            (
                ("GET", "/v/", &[("range", "bytes=0-1")]),
                None,
                fetched,
                format!("{absent}; the range starts the fetch of that part only: range_miss"),
            ),
            (
                ("GET", "/", &[("authorization", "x")]),
                None,
                fetched,
                format!(
                    "{absent}; Authorization in the request: what it fetches is stored only if it says \
                     `public`, `s-maxage` or `must-revalidate`"
                ),
            ),
            (
                ("HEAD", "/", &[("cache-control", "only-if-cached")]),
                None,
                unavailable,
                absent.to_owned(),
            ),
        ] {
            let found = told(rules, request, None, refusal);
            assert_eq!(found, (becomes.into(), because), "{request:?}");
        }
    }
}
