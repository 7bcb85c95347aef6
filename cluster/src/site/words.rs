//! What a site's rules mean, in sentences, for the operator who wrote them.

use super::{
    ORIGIN_CONCURRENCY_DEFAULT, ORIGIN_QUEUE_DEFAULT, ORIGIN_QUEUE_TIMEOUT_DEFAULT, Site,
    privacy::ClientAddress,
    rules::{Access, Action, PathRule, Pattern, RangeMiss, Shield, Statuses},
};
use crate::quantity::Span;

impl Site {
    /// What this site's rules mean, as comments to put behind a configuration, which stays one.
    pub fn in_comments(&self) -> String {
        let mut text = format!("\n# Site {}:\n", self.name);
        for sentence in self.in_words() {
            text.push_str("# - ");
            text.push_str(&sentence);
            text.push('\n');
        }
        text
    }

    /// What this site's rules mean, a sentence each.
    pub fn in_words(&self) -> Vec<String> {
        let urls: Vec<_> = self.origins.iter().map(ToString::to_string).collect();
        let mut words = vec![format!("{} from {}", and(&self.hosts), or(&urls))];
        words.extend(self.origins_in_words());
        words.push(self.freshness_in_words());
        words.extend(self.rule.iter().flat_map(PathRule::in_words));
        if !self.rule.is_empty() {
            let order = "where several of these paths fit, the longest counts first; what it leaves \
                         open, the next may say, and at last the site";
            words.push(order.to_owned());
        }
        words.extend(self.origin_limits_in_words());
        words.push(shield(self.shield()).to_owned());
        words.push(self.targets_in_words());
        let all = Windows {
            stale_while_revalidate: self.stale_while_revalidate,
            stale_if_error: self.stale_if_error,
        };
        words.extend(all.in_words());
        words.push(match self.honour_client_reload {
            Some(honoured) => reloads(honoured).to_owned(),
            None => {
                "a client's reload counts as the node's cache.honour_client_reload has it".into()
            }
        });
        words.extend(self.range_miss.map(|miss| ranges(miss).to_owned()));
        words.extend(
            self.object_max
                .map(|max| format!("bodies over {max} are not stored")),
        );
        words.extend(self.key_in_words());
        words.extend(self.bypass_in_words());
        words.extend(self.access_in_words());
        words.extend(self.privacy_in_words());
        words.extend(
            self.takedown
                .iter()
                .map(|t| format!("451 for {}", t.in_words())),
        );
        words
    }

    fn origins_in_words(&self) -> Vec<String> {
        let mut words = Vec::new();
        let statuses =
            |list: &[Statuses]| or(&list.iter().map(Statuses::to_string).collect::<Vec<_>>());
        if self.origins.len() > 1 {
            let usual = self.origins.iter().filter(|origin| !origin.backup);
            let total: u32 = usual.clone().map(|origin| origin.weight).sum();
            let shares = usual.map(|origin| format!("{} of {total} to {origin}", origin.weight));
            words.push(format!(
                "objects go by their names, {}",
                and(&shares.collect::<Vec<_>>())
            ));
            let backups = self.origins.iter().filter(|origin| origin.backup);
            let backups: Vec<_> = backups.map(ToString::to_string).collect();
            if !backups.is_empty() {
                words.push(format!(
                    "only while none of these is well, to {}",
                    or(&backups)
                ));
            }
            let when = match &self.failover[..] {
                [] => String::new(),
                some => format!(", or answers a safe one with {}", statuses(some)),
            };
            words.push(format!(
                "the next origin is asked when one cannot be connected to, fails a safe request{when}"
            ));
        }
        for origin in &self.origins {
            words.extend(
                origin
                    .host
                    .as_ref()
                    .map(|h| format!("{origin} is asked for host {h}")),
            );
            words.extend(
                origin
                    .sni
                    .as_ref()
                    .map(|n| format!("{origin} must be {n} by its certificate")),
            );
        }
        words.extend(self.health.as_ref().map(|health| {
            format!(
                "each edge asks each origin for {} every {}, and takes it for well after {} answers of \
                 status {} within {}, and for ill after {} others",
                health.path,
                health.interval,
                health.healthy_after,
                statuses(&health.expect),
                health.timeout,
                health.unhealthy_after,
            )
        }));
        words
    }

    fn privacy_in_words(&self) -> Vec<String> {
        let privacy = &self.privacy;
        let address = match privacy.client_address {
            ClientAddress::Full => None,
            ClientAddress::Truncated => {
                Some("of a client's address, origins learn the network only")
            }
            ClientAddress::None => Some("origins do not learn a client's address"),
        };
        let hidden = [
            (privacy.user_agent, "User-Agent"),
            (privacy.referer, "Referer"),
            (privacy.cookies, "Cookie"),
        ];
        let hidden = hidden.into_iter().filter(|(told, _)| !told);
        let hidden: Vec<_> = hidden.map(|(_, name)| name.to_owned()).collect();
        let mut words: Vec<String> = address.map(str::to_owned).into_iter().collect();
        if !hidden.is_empty() {
            words.push(format!("origins do not get a client's {}", or(&hidden)));
        }
        words
    }

    fn origin_limits_in_words(&self) -> Option<String> {
        let Self {
            origin_concurrency,
            origin_queue,
            origin_queue_timeout,
            ..
        } = self;
        if origin_concurrency.is_none() && origin_queue.is_none() && origin_queue_timeout.is_none()
        {
            return None;
        }
        Some(format!(
            "each edge has at most {} requests at the origins at once, and lets {} more wait for up to {}; \
             others are answered by what is stale where that is allowed, else by 503",
            origin_concurrency.unwrap_or(ORIGIN_CONCURRENCY_DEFAULT),
            origin_queue.unwrap_or(ORIGIN_QUEUE_DEFAULT),
            origin_queue_timeout.unwrap_or(ORIGIN_QUEUE_TIMEOUT_DEFAULT),
        ))
    }

    fn freshness_in_words(&self) -> String {
        match self.default_ttl.0.is_zero() {
            true => "answers are fresh for as long as the origin says; where it says nothing, and \
                     nothing can be inferred from Last-Modified, not at all"
                .to_owned(),
            false => format!(
                "answers are fresh for as long as the origin says; where it says nothing, and \
                 nothing can be inferred from Last-Modified, for {}",
                self.default_ttl
            ),
        }
    }

    fn targets_in_words(&self) -> String {
        let usual = || {
            vec![
                "CDN-Cache-Control".to_owned(),
                "Surrogate-Control".to_owned(),
            ]
        };
        let targets = self.targets.clone().unwrap_or_else(usual);
        if targets.is_empty() {
            return "of the origin's directives, those in Cache-Control count".to_owned();
        }
        let forwarded = match self.forward_targets {
            None | Some(true) => "go on to clients (Surrogate-Control never does)",
            Some(false) => "do not go on to clients",
        };
        let several = match targets.len() {
            1 => "",
            _ => " (the first of them that is there)",
        };
        format!(
            "directives in {}{several} count instead of those in Cache-Control and Expires, and \
             {forwarded}",
            or(&targets)
        )
    }

    fn key_in_words(&self) -> Vec<String> {
        let mut words = Vec::new();
        let query = &self.query;
        if !query.ignore.is_empty() {
            words.push(format!(
                "the query {} no part in telling objects apart, though the origin gets {}",
                match &query.ignore[..] {
                    [one] => format!("parameter {} has", one.in_words()),
                    _ => format!("parameters {} have", and(&patterns(&query.ignore))),
                },
                if query.ignore.len() == 1 {
                    "it"
                } else {
                    "them"
                },
            ));
        }
        match query.only.as_deref() {
            None => {}
            Some([]) => words.push("the query has no part in telling objects apart".to_owned()),
            Some(only) => words.push(format!(
                "of the query only {} tells objects apart, though the origin gets all of it",
                or(&patterns(only))
            )),
        }
        if query.sort {
            words.push("the order of query parameters does not matter".to_owned());
        }
        for (what, names) in [
            ("header field", &self.key.headers),
            ("cookie", &self.key.cookies),
        ] {
            if !names.is_empty() {
                words.push(format!(
                    "each value of the {what} {} has an object of its own, and so has its absence",
                    or(names)
                ));
            }
        }
        words
    }

    fn bypass_in_words(&self) -> Vec<String> {
        let bypass = &self.bypass;
        let mut words = Vec::new();
        for (what, names) in [
            ("for a path that begins with", bypass.paths.clone()),
            ("with a header field", patterns(&bypass.headers)),
            ("with a cookie", patterns(&bypass.cookies)),
        ] {
            if !names.is_empty() {
                words.push(format!(
                    "a request {what} {} goes straight to the origin, and nothing is stored",
                    or(&names)
                ));
            }
        }
        words
    }

    fn access_in_words(&self) -> Vec<String> {
        let rules = self.access.iter().zip(1..);
        let mut words: Vec<_> = rules
            .map(|(rule, number)| format!("access rule {number}: {}", rule.in_words()))
            .collect();
        let decides = |rule: &Access| rule.conditions().is_empty();
        if !self.access.is_empty() && !self.access.iter().any(decides) {
            words.push("every other request is served".to_owned());
        }
        words.extend(
            self.blocked_by
                .as_ref()
                .map(|url| format!("an answer with 451 names {url} as who blocks")),
        );
        words
    }
}

/// Windows for stale answers, of a site or of a path.
struct Windows {
    stale_while_revalidate: Option<Span>,
    stale_if_error: Option<Span>,
}

impl Windows {
    fn in_words(&self) -> Vec<String> {
        [
            (self.stale_while_revalidate, "while it is validated"),
            (self.stale_if_error, "when the origin fails"),
        ]
        .into_iter()
        .filter_map(|(window, when)| {
            let window = window?;
            Some(format!(
                "a stale answer may be used for {window} {when}, where the origin does not say"
            ))
        })
        .collect()
    }
}

impl PathRule {
    fn in_words(&self) -> Vec<String> {
        let mut words = Vec::new();
        let statuses = || match &self.status[..] {
            [] => Statuses::SUCCESS.to_string(),
            some => and(&some.iter().map(Statuses::to_string).collect::<Vec<_>>()),
        };
        if let Some(ttl) = self.ttl {
            words.push(format!(
                "answers of status {} are fresh for {ttl} where the origin does not say",
                statuses()
            ));
        }
        if let Some(ttl) = self.ttl_override {
            words.push(format!(
                "answers of status {} are fresh for {ttl} whatever the origin says; what it keeps \
                 private, or says no-store to, is still not stored",
                statuses()
            ));
        }
        let windows = Windows {
            stale_while_revalidate: self.stale_while_revalidate,
            stale_if_error: self.stale_if_error,
        };
        words.extend(windows.in_words());
        words.extend(self.honour_client_reload.map(|h| reloads(h).to_owned()));
        words.extend(self.range_miss.map(|miss| ranges(miss).to_owned()));
        words.extend(
            self.object_max
                .map(|max| format!("bodies over {max} are not stored")),
        );
        let under = |words| format!("under {}: {words}", self.path);
        words.into_iter().map(under).collect()
    }
}

impl Access {
    /// What this rule does, and with which requests.
    pub fn in_words(&self) -> String {
        let who = match &self.conditions()[..] {
            [] => "every request".to_owned(),
            conditions => format!("a request {}", conditions.join(" ")),
        };
        match self.action {
            Action::Allow => format!("{who} is served"),
            Action::Deny => format!("{who} is denied with {}", self.denied_with()),
        }
    }

    fn conditions(&self) -> Vec<String> {
        let addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        let unknown = |code: &String| match code == super::rules::UNKNOWN_COUNTRY {
            true => "a place unknown".to_owned(),
            false => code.clone(),
        };
        let countries: Vec<_> = self.countries.iter().map(unknown).collect();
        [
            ("by", &self.methods),
            ("for a path that begins with", &self.paths),
            ("from", &addresses),
            ("from", &countries),
        ]
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(what, list)| format!("{what} {}", or(list)))
        .collect()
    }
}

impl Pattern {
    /// `utm_…` for `utm_*`.
    fn in_words(&self) -> String {
        self.to_string().replace('*', "…")
    }
}

fn patterns(patterns: &[Pattern]) -> Vec<String> {
    patterns.iter().map(Pattern::in_words).collect()
}

fn reloads(honoured: bool) -> &'static str {
    match honoured {
        true => "a client's reload (no-cache, max-age) makes the cache ask the origin",
        false => {
            "a client's reload (no-cache, max-age) is answered from the cache like any request"
        }
    }
}

fn shield(shield: Shield) -> &'static str {
    match shield {
        Shield::None => "what no edge holds, each edge asks the origins for (shield = \"none\")",
        Shield::Region => {
            "what no edge holds, one edge of each region asks the origins for, and the others there ask it \
             (shield = \"region\")"
        }
        Shield::Cluster => {
            "what no edge holds, one edge of the whole cluster asks the origins for, and all others ask it \
             (shield = \"cluster\")"
        }
    }
}

fn ranges(miss: RangeMiss) -> &'static str {
    match miss {
        RangeMiss::Whole => "a range of what is not stored starts the fetch of the whole",
        RangeMiss::Part => "a range of what is not stored starts the fetch of that part only",
    }
}

fn and(list: &[String]) -> String {
    joined(list, "and")
}

fn or(list: &[String]) -> String {
    joined(list, "or")
}

fn joined(list: &[String], last: &str) -> String {
    match list {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., end] => format!("{} {last} {end}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_realistic_site_is_told_in_sentences() {
        let site: Site = toml::from_str(
            r#"
            name = "www"
            hosts = ["www.example.com", "*.example.com"]
            origins = ["https://origin.example.com"]
            stale_if_error = "1d"
            origin_concurrency = 200
            shield = "cluster"
            honour_client_reload = false
            targets = ["CDN-Cache-Control"]
            forward_targets = false
            blocked_by = "https://www.example.com/legal"
            [query]
            ignore = ["utm_*", "fbclid"]
            sort = true
            [key]
            cookies = ["currency"]
            [bypass]
            cookies = ["session*"]
            [[rule]]
            path = "/static/"
            ttl_override = "1h"
            object_max = "1GiB"
            [[rule]]
            status = [404, "500-504"]
            ttl = "10s"
            [[access]]
            action = "allow"
            paths = ["/admin/"]
            addresses = ["10.0.0.0/8"]
            [[access]]
            action = "deny"
            paths = ["/admin/"]
            [[access]]
            action = "deny"
            countries = ["XX", "??"]
            status = 451
            "#,
        )
        .unwrap();
        site.check().unwrap();
        assert_eq!(
            site.in_words(),
            [
                "www.example.com and *.example.com from https://origin.example.com",
                "answers are fresh for as long as the origin says; where it says nothing, and \
                 nothing can be inferred from Last-Modified, not at all",
                "under /static/: answers of status 200-299 are fresh for 1h whatever the origin says; \
                 what it keeps private, or says no-store to, is still not stored",
                "under /static/: bodies over 1GiB are not stored",
                "under /: answers of status 404 and 500-504 are fresh for 10s where the origin does \
                 not say",
                "where several of these paths fit, the longest counts first; what it leaves open, the \
                 next may say, and at last the site",
                "each edge has at most 200 requests at the origins at once, and lets 4096 more wait for up \
                 to 5s; others are answered by what is stale where that is allowed, else by 503",
                "what no edge holds, one edge of the whole cluster asks the origins for, and all others \
                 ask it (shield = \"cluster\")",
                "directives in CDN-Cache-Control count instead of those in Cache-Control and Expires, \
                 and do not go on to clients",
                "a stale answer may be used for 1d when the origin fails, where the origin does not \
                 say",
                "a client's reload (no-cache, max-age) is answered from the cache like any request",
                "the query parameters utm_… and fbclid have no part in telling objects apart, though \
                 the origin gets them",
                "the order of query parameters does not matter",
                "each value of the cookie currency has an object of its own, and so has its absence",
                "a request with a cookie session… goes straight to the origin, and nothing is stored",
                "access rule 1: a request for a path that begins with /admin/ from 10.0.0.0/8 is \
                 served",
                "access rule 2: a request for a path that begins with /admin/ is denied with 403",
                "access rule 3: a request from XX or a place unknown is denied with 451",
                "every other request is served",
                "an answer with 451 names https://www.example.com/legal as who blocks",
            ]
        );
    }

    #[test]
    fn a_site_without_rules_is_told_shortly() {
        let site = Site::new("a", &["a.test"], &["http://o:80"]);
        let words = site.in_words();
        assert_eq!(words[0], "a.test from http://o:80");
        let comments = site.in_comments();
        assert!(comments.starts_with("\n# Site a:\n# - a.test from http://o:80\n# - answers"));
        assert!(comments.lines().skip(1).all(|line| line.starts_with('#')));
        assert_eq!(words.len(), 5, "{words:?}");
    }
}
