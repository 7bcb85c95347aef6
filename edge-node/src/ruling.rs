//! A site as requests are judged by it: what its owner rules, compiled once per version of the sites.
//! Pure.

pub mod access;
pub mod path;
pub mod takedown;

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use cluster::site::{
    Site,
    rules::{PathRule, Pattern, RangeMiss, Statuses},
};
use http::HeaderMap;

use self::{
    access::{Gate, Verdict, Visit},
    path::{Prefix, Readings},
    takedown::Takedowns,
};
use crate::cache::{
    cookie::cookies,
    key::KeyRules,
    policy::{Rules, Ttl},
};

/// A site and its rules.
#[derive(Debug)]
pub struct Ruling {
    /// The site, as written.
    pub site: Arc<Site>,
    /// What of a request names an object.
    pub key: KeyRules,
    /// What names the whole of a URL, where that has several objects.
    pub whole_key: Option<KeyRules>,
    /// What must not be served.
    pub takedowns: Takedowns,
    gates: Vec<Gate>,
    bypass_paths: Vec<Prefix>,
    /// By the beginning of the path; the longest first.
    by_path: Vec<(Prefix, Arc<Rules>)>,
    otherwise: Arc<Rules>,
    plain: bool,
}

impl Ruling {
    /// Compiles the rules of `site`, which has been checked. `honour_client` is what the node does
    /// where the site does not say.
    pub fn new(site: Arc<Site>, honour_client: bool) -> Self {
        let mut rules: Vec<_> = site
            .rule
            .iter()
            .map(|r| (Prefix::new(&r.path), r))
            .collect();
        // Stable: among rules for one path, the first stays the first.
        rules.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.canonical().len()));
        let mut by_path: Vec<(Prefix, Arc<Rules>)> = Vec::new();
        for (prefix, _) in &rules {
            if by_path.iter().any(|(known, _)| known == prefix) {
                continue;
            }
            let around = rules.iter().filter(|(p, _)| p.is_around(prefix));
            let around: Vec<_> = around.map(|(_, rule)| *rule).collect();
            by_path.push((
                prefix.clone(),
                Arc::new(compiled(&site, &around, honour_client)),
            ));
        }
        let bypass = &site.bypass;
        let plain = site.access.is_empty()
            && site.takedown.is_empty()
            && by_path.is_empty()
            && [
                bypass.paths.len(),
                bypass.headers.len(),
                bypass.cookies.len(),
            ] == [0; 3]
            && [site.key.headers.len(), site.key.cookies.len()] == [0; 2];
        let key = KeyRules::of(&site);
        Self {
            plain,
            whole_key: key.splits().then(|| key.unsplit()),
            takedowns: Takedowns::new(&site, &key),
            key,
            gates: site.access.iter().map(Gate::new).collect(),
            bypass_paths: site.bypass.paths.iter().map(|p| Prefix::new(p)).collect(),
            by_path,
            otherwise: Arc::new(compiled(&site, &[], honour_client)),
            site,
        }
    }

    /// A request's path in as many forms as the rules need to see: without rules about paths, in one.
    pub fn read<'p>(&self, path: &'p [u8]) -> Readings<'p> {
        let matters = !self.by_path.is_empty()
            || !self.bypass_paths.is_empty()
            || self.takedowns.is_about_urls()
            || self.gates.iter().any(Gate::is_about_paths);
        match matters {
            true => Readings::of(path),
            false => Readings::as_sent(path),
        }
    }

    /// What holds for a path. If it can be read as one under other rules, none of them does, only the
    /// site's own: else `/static/..%2Faccount` would be kept for as long as `/static/` is, with what
    /// the origin says to `/account`.
    pub fn rules(&self, path: &Readings<'_>) -> &Arc<Rules> {
        let found = self.find(|prefix| path.names(prefix));
        let agrees = |form: &[u8]| Arc::ptr_eq(found, self.find(|prefix| prefix.begins(form)));
        if path.others().all(agrees) {
            found
        } else {
            &self.otherwise
        }
    }

    fn find(&self, fits: impl Fn(&Prefix) -> bool) -> &Arc<Rules> {
        let found = self.by_path.iter().find(|(prefix, _)| fits(prefix));
        found.map_or(&self.otherwise, |(_, rules)| rules)
    }

    /// What holds where no rule for a path does.
    pub fn usual(&self) -> &Arc<Rules> {
        &self.otherwise
    }

    /// Whether the same holds for every request: nothing of it but its host and target counts.
    pub fn is_plain(&self) -> bool {
        self.plain
    }

    /// Judges a request for `query` under `host`. `country` is asked only when it matters; it says `None`
    /// for what nobody knows.
    pub fn judge<'a>(
        &self,
        visit: Visit<'_>,
        query: Option<&str>,
        host: &str,
        country: impl Fn(IpAddr) -> Option<&'a str>,
    ) -> Verdict {
        match self.takedowns.of_url(visit.path, query, host, &self.key) {
            Some(place) => Verdict::Gone { place },
            None => access::judge(&self.gates, visit, country),
        }
    }

    /// The rule by which a request goes straight to the origin, if there is one.
    pub fn bypass(&self, path: &Readings<'_>, headers: &HeaderMap) -> Option<Bypass<'_>> {
        let rule = &self.site.bypass;
        let mut prefixes = self.bypass_paths.iter().zip(&rule.paths);
        if let Some((_, written)) = prefixes.find(|(prefix, _)| path.any_begins_with(prefix)) {
            return Some(Bypass::Path(written));
        }
        let in_headers = |pattern: &&Pattern| {
            let mut names = headers.keys().map(|name| name.as_str().as_bytes());
            names.any(|name| pattern.fits_in_any_case(name))
        };
        if let Some(pattern) = rule.headers.iter().find(in_headers) {
            return Some(Bypass::Header(pattern));
        }
        let in_cookies = |pattern: &&Pattern| cookies(headers).any(|(name, _)| pattern.fits(name));
        rule.cookies.iter().find(in_cookies).map(Bypass::Cookie)
    }
}

/// Why a request goes straight to the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass<'a> {
    /// For its path.
    Path(&'a str),
    /// For a header field.
    Header(&'a Pattern),
    /// For a cookie.
    Cookie(&'a Pattern),
}

impl fmt::Display for Bypass<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "bypass.paths has {path}"),
            Self::Header(name) => write!(f, "bypass.headers has {name}"),
            Self::Cookie(name) => write!(f, "bypass.cookies has {name}"),
        }
    }
}

/// What `rules` say together, the first to say something counting, and `site` where none does.
fn compiled(site: &Site, rules: &[&PathRule], honour_client: bool) -> Rules {
    let usual = Rules::default();
    let first = |said: fn(&PathRule) -> Option<Duration>, own: Option<Duration>| {
        rules
            .iter()
            .find_map(|rule| said(rule))
            .or(own)
            .unwrap_or_default()
    };
    let targets = site.targets.as_ref().map(|names| {
        let names = names.iter().filter_map(|name| name.parse().ok());
        names.collect()
    });
    let said = |rule: &&PathRule| rule.honour_client_reload;
    let honour = rules.iter().find_map(said).or(site.honour_client_reload);
    let miss = rules
        .iter()
        .find_map(|rule| rule.range_miss)
        .or(site.range_miss);
    let object_max = rules
        .iter()
        .find_map(|rule| rule.object_max)
        .or(site.object_max);
    Rules {
        honour_client: honour.unwrap_or(honour_client),
        ttls: rules.iter().flat_map(|rule| ttls(rule)).collect(),
        default_ttl: site.default_ttl.0,
        stale_while_revalidate: first(
            |rule| Some(rule.stale_while_revalidate?.0),
            site.stale_while_revalidate.map(|span| span.0),
        ),
        stale_if_error: first(
            |rule| Some(rule.stale_if_error?.0),
            site.stale_if_error.map(|span| span.0),
        ),
        targets: targets.unwrap_or(usual.targets),
        forward_targets: site.forward_targets.unwrap_or(usual.forward_targets),
        object_bytes_max: object_max.map_or(usual.object_bytes_max, |max| max.0),
        fill_whole: miss.map_or(usual.fill_whole, |miss| miss == RangeMiss::Whole),
    }
}

fn ttls(rule: &PathRule) -> Vec<Ttl> {
    let Some(lifetime) = rule.ttl_override.or(rule.ttl) else {
        return Vec::new();
    };
    let statuses = match &rule.status[..] {
        [] => &[Statuses::SUCCESS][..],
        some => some,
    };
    let ttl = |statuses: &Statuses| Ttl {
        statuses: statuses.first..=statuses.last,
        lifetime: lifetime.0,
        overrides: rule.ttl_override.is_some(),
    };
    statuses.iter().map(ttl).collect()
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    fn ruling(text: &str) -> Ruling {
        let known = "name = 'a'\nhosts = ['*']\norigins = ['http://o']\n";
        let site: Site = toml::from_str(&format!("{known}{text}")).unwrap();
        site.check().unwrap();
        Ruling::new(Arc::new(site), true)
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_site_without_rules_is_ruled_as_ever() {
        let ruling = ruling("");
        let rules = ruling.rules(&Readings::of(b"/a"));
        assert_eq!(**rules, Rules::default());
        assert_eq!(ruling.read(b"/a/..%2Fb").others().count(), 0);
        assert!(
            ruling
                .bypass(&Readings::of(b"/a"), &HeaderMap::new())
                .is_none()
        );
        let deaf = Ruling::new(ruling.site, false);
        assert!(!deaf.rules(&Readings::of(b"/a")).honour_client);
    }

    #[test]
    fn the_longest_path_counts_first_and_the_shorter_say_what_it_leaves_open() {
        let ruling = ruling(
            r"
            default_ttl = '5s'
            stale_if_error = '9s'
            honour_client_reload = false
            object_max = 1000
            range_miss = 'part'
            targets = ['X-Cache-Control']
            forward_targets = false
            [[rule]]
            status = [404, '500-599']
            ttl = '1s'
            stale_while_revalidate = '2s'
            [[rule]]
            path = '/a/b/'
            ttl_override = '3s'
            object_max = 7
            [[rule]]
            path = '/a/'
            stale_while_revalidate = '4s'
            range_miss = 'whole'
            honour_client_reload = true
            [[rule]]
            path = '/a/b/'
            status = [404]
            ttl = '6s'
            [[rule]]
            path = '/caf%c3%a9/%61'
            ttl = '8s'
            ",
        );
        let of = |path: &'static str| ruling.rules(&Readings::of(path.as_bytes())).clone();
        let ttl = |path, status: u16| {
            let rules = of(path);
            let ttl = rules.ttl(StatusCode::from_u16(status).unwrap());
            ttl.map(|ttl| (ttl.lifetime.as_secs(), ttl.overrides))
        };
        for (path, status, expected) in [
            ("/", 404, Some((1, false))),
            ("/", 200, None),
            ("/", 503, Some((1, false))),
            ("/a/", 404, Some((1, false))),
            ("/a/b", 200, None),
            ("/a/b/", 200, Some((3, true))),
            ("/a/b/c", 299, Some((3, true))),
            ("/a/b/c", 301, None),
            ("/a/b/c", 404, Some((6, false))),
            ("/a/b/c", 500, Some((1, false))),
            ("/%61/%62/c", 200, Some((3, true))),
            ("/caf%C3%A9/abc", 200, Some((8, false))),
            ("/caf%C3%A9/a//b%20c", 200, Some((8, false))),
            // Under one rule or under another: under none.
            ("/a/b/../c", 200, None),
            ("/a/b/..%2F..%2F..%2Fz", 404, None),
            ("/z/../a/b/c", 200, None),
            ("/a/b%2Fc", 200, None),
            ("/a//b/c", 200, None),
            ("*", 404, None),
        ] {
            assert_eq!(ttl(path, status), expected, "{path} {status}");
        }
        let windows = |path| (of(path).stale_while_revalidate, of(path).stale_if_error);
        assert_eq!(windows("/a/b/"), (secs(4), secs(9)));
        assert_eq!(windows("/z"), (secs(2), secs(9)));
        assert_eq!(windows("*"), (secs(0), secs(9)));
        assert!(of("/a/b/").honour_client && !of("/z").honour_client);
        assert!(of("/a/b/").fill_whole && !of("/z").fill_whole);
        let max = ["/a/b/", "/a/", "/z"].map(|path| of(path).object_bytes_max);
        assert_eq!(max, [7, 1000, 1000]);
        let rules = of("/a/b/");
        assert_eq!(
            (rules.default_ttl, &rules.targets[..]),
            (secs(5), &["x-cache-control".parse().unwrap()][..])
        );
        assert!(!rules.forward_targets);
    }

    #[test]
    fn a_request_bypasses_the_cache_by_path_field_or_cookie() {
        let ruling = ruling(
            "[bypass]\npaths = ['/cart/']\nheaders = ['X-Preview', 'x-debug-*']\n\
             cookies = ['session*', 'edit']",
        );
        for (path, field, rule) in [
            ("/", None, None),
            ("/cart", None, None),
            ("/cart/", None, Some("bypass.paths has /cart/")),
            ("/%63art/1", None, Some("bypass.paths has /cart/")),
            ("/a/..//cart/1", None, Some("bypass.paths has /cart/")),
            (
                "/",
                Some(("x-preview", "")),
                Some("bypass.headers has X-Preview"),
            ),
            ("/", Some(("x-previews", "")), None),
            (
                "/",
                Some(("x-debug-sql", "1")),
                Some("bypass.headers has x-debug-*"),
            ),
            (
                "/",
                Some(("cookie", "a=1; sessionid=2")),
                Some("bypass.cookies has session*"),
            ),
            ("/", Some(("cookie", "a=session; Edit=1; edited=1")), None),
            (
                "/",
                Some(("cookie", "edit")),
                Some("bypass.cookies has edit"),
            ),
        ] {
            let mut headers = HeaderMap::new();
            if let Some((name, value)) = field {
                headers.insert(name, value.parse().unwrap());
            }
            let found = ruling.bypass(&Readings::of(path.as_bytes()), &headers);
            let found = found.map(|bypass| bypass.to_string());
            assert_eq!(found.as_deref(), rule, "{path} {field:?}");
        }
        assert_ne!(ruling.read(b"/a/..%2Fcart/").others().count(), 0);
    }
}
