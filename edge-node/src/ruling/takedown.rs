//! What a site must not serve any more: its takedowns, indexed.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
};

use cluster::{
    manifest::PieceHash,
    site::{
        Site,
        takedown::{Takedown, Target},
    },
};

use super::path::{Prefix, Readings, sendable};
use crate::cache::key::KeyRules;

/// The takedowns of a site.
#[derive(Debug, Default)]
pub struct Takedowns {
    list: Vec<Takedown>,
    prefixes: Vec<(Prefix, usize)>,
    /// By every form of the path.
    urls: HashMap<Vec<u8>, Vec<Url>>,
    hashes: HashMap<PieceHash, usize>,
    /// Which of them were met since this version of the site is here.
    met: Vec<AtomicBool>,
}

/// A URL that is taken down, but for its path.
#[derive(Debug)]
struct Url {
    /// `None`: every host of the site.
    host: Option<String>,
    /// As it stands in keys; `None`: every query.
    query: Option<Vec<u8>>,
    place: usize,
}

impl Takedowns {
    /// Indexes the takedowns of `site`, which has been checked; `rules` are those of its keys.
    pub fn new(site: &Site, rules: &KeyRules) -> Self {
        let mut all = Self {
            list: site.takedown.clone(),
            met: site
                .takedown
                .iter()
                .map(|_| AtomicBool::new(false))
                .collect(),
            ..Self::default()
        };
        for (place, takedown) in site.takedown.iter().enumerate() {
            match takedown.target() {
                Some(Target::Prefix(prefix)) => all.prefixes.push((Prefix::new(prefix), place)),
                Some(Target::Hash(hash)) => {
                    all.hashes.entry(hash).or_insert(place);
                }
                Some(Target::Url { host, path, query }) => {
                    let path = sendable(path);
                    let query = query.map(sendable);
                    for form in Readings::of(path.as_bytes()).forms() {
                        let url = Url {
                            host: host.map(cluster::site::normal_host),
                            query: query.as_deref().map(|query| rules.query_of(query)),
                            place,
                        };
                        all.urls.entry(form.to_vec()).or_default().push(url);
                    }
                }
                None => {}
            }
        }
        all
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether it matters what a request's URL is.
    pub fn is_about_urls(&self) -> bool {
        !self.prefixes.is_empty() || !self.urls.is_empty()
    }

    /// Whether it matters what a body is.
    pub fn is_about_bodies(&self) -> bool {
        !self.hashes.is_empty()
    }

    /// The place of the one by which a URL is not served, under `rules`, if there is one. However the path
    /// may be read, it must not be one that is taken down.
    pub fn of_url(
        &self,
        path: &Readings<'_>,
        query: Option<&str>,
        host: &str,
        rules: &KeyRules,
    ) -> Option<usize> {
        let begins = |(prefix, _): &&(Prefix, usize)| path.any_begins_with(prefix);
        if let Some((_, place)) = self.prefixes.iter().find(begins) {
            return Some(*place);
        }
        if self.urls.is_empty() {
            return None;
        }
        let fits = |url: &&Url| {
            let own_host = url.host.as_deref().is_none_or(|own| own == host);
            let own_query = || match &url.query {
                None => true,
                Some(own) => *own == rules.query_of(query.unwrap_or_default()),
            };
            own_host && own_query()
        };
        let mut found = path.forms().filter_map(|form| self.urls.get(form));
        found.find_map(|urls| Some(urls.iter().find(fits)?.place))
    }

    /// The place of the one by which a body is not served, if there is one.
    pub fn of_body(&self, hash: &PieceHash) -> Option<usize> {
        self.hashes.get(hash).copied()
    }

    /// The one at this place.
    pub fn get(&self, place: usize) -> Option<&Takedown> {
        self.list.get(place)
    }

    /// Whether it is met for the first time, to be told once and not with each request.
    pub fn is_first(&self, place: usize) -> bool {
        let met = self.met.get(place);
        met.is_some_and(|met| !met.swap(true, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takedowns(text: &str) -> (Takedowns, KeyRules) {
        let known = "name = 'a'\nhosts = ['a.test', 'b.test']\norigins = ['http://o']\n";
        let site: Site = toml::from_str(&format!("{known}{text}")).unwrap();
        site.check().unwrap();
        let rules = KeyRules::of(&site);
        (Takedowns::new(&site, &rules), rules)
    }

    fn why() -> &'static str {
        "reason = 'r'\nby = 'b'\n"
    }

    #[test]
    fn a_url_is_gone_in_whatever_spelling() {
        let (all, rules) = takedowns(&format!(
            "[query]\nignore = ['utm_*']\n\
             [[takedown]]\nurl = '/film.mp4'\n{w}[[takedown]]\nurl = '/list?page=2'\n{w}\
             [[takedown]]\nurl = 'http://B.test:80/only'\n{w}[[takedown]]\nprefix = '/secret/'\n{w}\
             [[takedown]]\nurl = '/café'\n{w}[[takedown]]\nurl = '/none?'\n{w}",
            w = why()
        ));
        for (target, host, place) in [
            ("/film.mp4", "a.test", Some(0)),
            ("/film.mp4?x=1", "b.test", Some(0)),
            ("/%66ilm.mp4", "a.test", Some(0)),
            ("/x/../film.mp4", "a.test", Some(0)),
            ("//film.mp4", "a.test", Some(0)),
            ("/film%2emp4", "a.test", Some(0)),
            ("/film.mp4;v=1", "a.test", Some(0)),
            ("/film.mp4/", "a.test", None),
            ("/film.mp", "a.test", None),
            ("/list?page=2", "a.test", Some(1)),
            ("/list?page=2&utm_source=x", "a.test", Some(1)),
            ("/list?page=%32", "a.test", Some(1)),
            ("/list?page=3", "a.test", None),
            ("/list", "a.test", None),
            ("/only", "b.test", Some(2)),
            ("/only", "a.test", None),
            ("/secret/x", "a.test", Some(3)),
            ("/a/..%2Fsecret/x", "a.test", Some(3)),
            ("/secret", "a.test", None),
            ("/caf%C3%A9", "a.test", Some(4)),
            ("/caf%c3%a9", "a.test", Some(4)),
            ("/none", "a.test", Some(5)),
            ("/none?utm_x=1", "a.test", Some(5)),
            ("/none?x", "a.test", None),
        ] {
            let (path, query) = match target.split_once('?') {
                Some((path, query)) => (path, Some(query)),
                None => (target, None),
            };
            let path = Readings::of(path.as_bytes());
            assert_eq!(
                all.of_url(&path, query, host, &rules),
                place,
                "{target} {host}"
            );
        }
        assert!(all.is_about_urls() && !all.is_about_bodies());
        assert!(all.is_first(0) && !all.is_first(0) && all.is_first(1));
    }

    #[test]
    fn a_body_is_gone_by_its_hash() {
        let hash = blake3::hash(b"body");
        let text = format!("[[takedown]]\nhash = '{}'\n{}", hash.to_hex(), why());
        let (all, _) = takedowns(&text);
        assert_eq!(all.of_body(hash.as_bytes()), Some(0));
        assert_eq!(all.of_body(&[0; 32]), None);
        assert_eq!(all.get(0).unwrap().by, "b");
        assert!(all.is_about_bodies() && !all.is_about_urls() && !all.is_empty());
    }
}
