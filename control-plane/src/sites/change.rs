//! What becomes of the registry by a change, and whether it may. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use axum::http::Uri;
use cluster::{
    site::{BadSite, Site, SiteMap, origin::Origin, outside::PrivateOrigins},
    wire::{SITES_BYTES_MAX, SiteAction},
};

use super::snapshot::{Record, Records, Snapshot};
use crate::store::COMMIT_BYTES_MAX;

/// Largest site, in bytes of JSON: the store has it twice, and takes a megabyte at once.
pub const SITE_BYTES_MAX: usize = 500 << 10;

/// Most sites of one change: three changes each, within what the store takes at once.
pub const SITES_AT_ONCE_MAX: usize = 40;

/// What a site shall be from now on.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Its name.
    pub name: String,
    /// `None`: gone.
    pub site: Option<Site>,
    /// How that comes.
    pub action: SiteAction,
    /// Who wants it.
    pub by: String,
}

/// What must hold of a site before it is changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nothing.
    Anything,
    /// It is there.
    There,
    /// It is not.
    Absent,
    /// It has one of these versions.
    Versions(Vec<u64>),
}

/// What a change is judged by beside the sites themselves.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Private origins that may be named.
    pub private: PrivateOrigins,
    /// Base URLs at which the cluster's nodes listen: for clients, for each other, for operators.
    pub nodes: Vec<String>,
}

/// Why a change is not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The site cannot be meant, alone or beside the others.
    #[error(transparent)]
    Bad(#[from] BadSite),
    /// It is too large to be kept.
    #[error(
        "site {name:?} is {bytes} bytes of JSON, at most {SITE_BYTES_MAX}; move what is long to another site"
    )]
    TooLarge {
        /// Its name.
        name: String,
        /// How long it is.
        bytes: usize,
    },
    /// They are more than the store takes at once.
    #[error("{0} sites, at most {SITES_AT_ONCE_MAX} in one change: make several of it")]
    TooMany(usize),
    /// They are larger than what the store takes at once.
    #[error("{0} bytes to write, at most {COMMIT_BYTES_MAX} in one change: make several of it")]
    TooLargeAtOnce(usize),
    /// One change cannot make two things of a site.
    #[error("site {0:?} is there twice")]
    Twice(String),
    /// All sites together are too large to be handed out.
    #[error("all sites together would be {0} bytes of JSON, at most {SITES_BYTES_MAX}")]
    TooLargeTogether(usize),
    /// There is no such site.
    #[error("no site {0:?}; GET /v1/sites lists them")]
    Unknown(String),
    /// It is not as expected.
    #[error("site {name:?} {}; look at it again", found.map_or("is not there".to_owned(), |v| format!("is at version {v}")))]
    Outdated {
        /// Its name.
        name: String,
        /// The version that it has.
        found: Option<u64>,
    },
    /// The configuration file says what it is.
    #[error("site {name:?} is in the configuration file of {file}: change it there and restart it")]
    InFile {
        /// Its name.
        name: String,
        /// The control plane whose file it is.
        file: String,
    },
}

/// The sites after a change, and what it consists of.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Everything from now on.
    pub after: Snapshot,
    /// What is new, by the names of sites; empty: nothing differs.
    pub fresh: BTreeMap<String, Record>,
}

/// A wish, and what must hold before it is made.
pub type Asked = (Wish, Expected);

/// What becomes of `before` by wishes that come together at `now_ms`: all of them, or none.
///
/// # Errors
///
/// It may not be.
pub fn plan(
    before: &Snapshot,
    asked: &[Asked],
    around: &Surroundings,
    now_ms: u64,
) -> Result<Planned, Refusal> {
    if asked.len() > SITES_AT_ONCE_MAX {
        return Err(Refusal::TooMany(asked.len()));
    }
    let version = next_version(before.version(), now_ms / 1000);
    let mut records: Records = before.records().clone();
    let mut fresh = BTreeMap::new();
    let mut names = BTreeSet::new();
    for (wish, expected) in asked {
        if !names.insert(&wish.name) {
            return Err(Refusal::Twice(wish.name.clone()));
        }
        by_itself(before, wish, expected, around)?;
        if before.site(&wish.name) == wish.site.as_ref() {
            continue;
        }
        let record = Record {
            version,
            at_ms: now_ms,
            by: wish.by.clone(),
            action: wish.action,
            in_file_of: None,
            site: wish.site.clone().map(Arc::new),
        };
        match &record.site {
            Some(_) => drop(records.insert(wish.name.clone(), record.clone())),
            None => drop(records.remove(&wish.name)),
        }
        fresh.insert(wish.name.clone(), record);
    }
    let after = match fresh.is_empty() {
        true => before.clone(),
        false => Snapshot::new(version, before.revision, records)?,
    };
    let bytes = after.json().len();
    let mut put = asked.iter().filter_map(|(wish, _)| wish.site.as_ref());
    if bytes > SITES_BYTES_MAX && put.clone().next().is_some() {
        return Err(Refusal::TooLargeTogether(bytes));
    }
    put.try_for_each(|site| no_way_back(site, after.map(), &around.nodes))?;
    Ok(Planned { after, fresh })
}

/// Whether a wish may be, whatever the sites beside it.
fn by_itself(
    before: &Snapshot,
    wish: &Wish,
    expected: &Expected,
    around: &Surroundings,
) -> Result<(), Refusal> {
    let Wish { name, site, .. } = wish;
    let known = before.record(name);
    let found = known.map(|record| record.version);
    let outdated = || Refusal::Outdated {
        name: name.clone(),
        found,
    };
    let unknown = || Refusal::Unknown(name.clone());
    match (expected, found) {
        (Expected::There, None) => return Err(unknown()),
        (Expected::Absent, Some(_)) => return Err(outdated()),
        (Expected::Versions(versions), found)
            if !found.is_some_and(|found| versions.contains(&found)) =>
        {
            return Err(outdated());
        }
        _ => {}
    }
    if site.is_none() && known.is_none() {
        return Err(unknown());
    }
    if let Some(file) = known.and_then(|record| record.in_file_of.as_ref()) {
        return Err(Refusal::InFile {
            name: name.clone(),
            file: file.clone(),
        });
    }
    if let Some(site) = site {
        site.check()?;
        let bytes = serde_json::to_vec(site).map_or(0, |json| json.len());
        if bytes > SITE_BYTES_MAX {
            return Err(Refusal::TooLarge {
                name: name.clone(),
                bytes,
            });
        }
        outside(site, &around.private)?;
    }
    Ok(())
}

/// The version behind `version`: never the same, and at least the present time, so that it grows even when
/// the store was lost.
pub fn next_version(version: u64, now_s: u64) -> u64 {
    now_s.max(version + 1)
}

fn bad(site: &Site, reason: String) -> BadSite {
    BadSite {
        site: site.name.clone(),
        field: "origins",
        reason,
    }
}

/// Whether every origin may be named by whoever asks over the API.
fn outside(site: &Site, private: &PrivateOrigins) -> Result<(), BadSite> {
    for origin in &site.origins {
        private.allow(origin).map_err(|kind| {
            let reason = format!(
                "{:?} is {kind}; origins.allow_private in the control plane's configuration may allow it",
                origin.url
            );
            bad(site, reason)
        })?;
    }
    Ok(())
}

/// Whether no origin leads back to the nodes that would ask it: at an address of theirs, or under a host
/// that they serve, at a port where they do.
fn no_way_back(site: &Site, map: &SiteMap, nodes: &[String]) -> Result<(), BadSite> {
    let nodes: BTreeSet<(String, u16)> = nodes.iter().filter_map(|base| place(base)).collect();
    for origin in &site.origins {
        let Some((host, port)) = origin.address() else {
            continue;
        };
        let host = one_spelling(&host);
        let served = || served_under(&host, map).filter(|_| !names_host(site, origin));
        let reason = if nodes.contains(&(host.clone(), port)) {
            format!(
                "{:?} is where a node of the cluster serves: it would ask itself",
                origin.url
            )
        } else if let (true, Some(other)) = (nodes.iter().any(|(_, own)| *own == port), served()) {
            format!(
                "{:?} leads back to the edges, because {host} is a host of site {other:?}; give the \
                 origin's own name, or a `host` to ask it for",
                origin.url
            )
        } else {
            continue;
        };
        return Err(bad(site, reason));
    }
    Ok(())
}

fn names_host(site: &Site, origin: &Origin) -> bool {
    origin.host.is_some() || site.origin_host.is_some()
}

/// The site of which `host` is a host, other than by a `*` for all.
fn served_under(host: &str, map: &SiteMap) -> Option<String> {
    let site = map.select(host)?.site;
    // By `*` alone, the site has every host.
    let is_named = !site.hosts.iter().any(|own| own == "*") || {
        let others = site.hosts.iter().filter(|own| *own != "*");
        let others: Vec<&str> = others.map(String::as_str).collect();
        Site::new(&site.name, &others, &[]).has_host(host)
    };
    is_named.then(|| site.name.clone())
}

/// Host and port of a node's base URL; with `{host}` in it, the host is any.
fn place(base: &str) -> Option<(String, u16)> {
    let written = base.replace("{host}", "any-host");
    let uri: Uri = written.parse().ok()?;
    let usual = match uri.scheme_str() {
        Some("https") => 443,
        _ => 80,
    };
    let host = one_spelling(&uri.host()?.to_ascii_lowercase());
    Some((host, uri.port_u16().unwrap_or(usual)))
}

/// A host that can be written in several ways, in one: an IPv4 address that is written as IPv6, a name with
/// the dot of the root.
fn one_spelling(host: &str) -> String {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    match bare.unwrap_or(host).parse::<IpAddr>() {
        Ok(address) => address.to_canonical().to_string(),
        Err(_) => host.strip_suffix('.').unwrap_or(host).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sites::wishes::{delete, put};

    const NOW_MS: u64 = 1_700_000_000_000;

    fn site(name: &str, origin: &str) -> Site {
        Site::new(name, &[&format!("{name}.test")], &[origin])
    }

    fn around(nodes: &[&str]) -> Surroundings {
        Surroundings {
            private: PrivateOrigins::All(false),
            nodes: nodes.iter().map(|&node| node.to_owned()).collect(),
        }
    }

    fn planned(before: &Snapshot, wish: &Wish, expected: &Expected) -> Result<Planned, Refusal> {
        let asked = (wish.clone(), expected.clone());
        plan(before, &[asked], &around(&[]), NOW_MS)
    }

    fn with(sites: &[Site]) -> Snapshot {
        let mut all = Snapshot::default();
        for site in sites {
            all = planned(&all, &put(site.clone()), &Expected::Anything)
                .unwrap()
                .after;
        }
        all
    }

    #[test]
    fn every_change_has_a_version_and_what_is_no_change_has_none() {
        let a = site("a", "http://o.example.com");
        let one = with(std::slice::from_ref(&a));
        assert_eq!(
            (one.version(), one.record("a").unwrap().version),
            (NOW_MS / 1000, NOW_MS / 1000)
        );
        let again = planned(&one, &put(a), &Expected::Anything).unwrap();
        assert!(again.fresh.is_empty() && again.after.version() == one.version());
        let two = planned(
            &one,
            &put(site("b", "http://o.example.com")),
            &Expected::Absent,
        )
        .unwrap();
        assert_eq!(two.after.version(), one.version() + 1);
        assert_eq!(two.after.record("a").unwrap().version, one.version());
        let gone = planned(&two.after, &delete("a"), &Expected::There).unwrap();
        assert!(gone.after.site("a").is_none() && gone.after.site("b").is_some());
        assert_eq!(gone.fresh["a"].site, None);
        assert_eq!(gone.after.version(), one.version() + 2);
    }

    #[test]
    fn what_is_not_as_expected_is_not_changed() {
        let one = with(&[site("a", "http://o.example.com")]);
        let version = one.version();
        let other = put(site("a", "http://p.example.com"));
        for (wish, expected, told) in [
            (&other, Expected::Absent, "is at version 1700000000"),
            (
                &other,
                Expected::Versions(vec![7]),
                "is at version 1700000000",
            ),
            (
                &put(site("b", "http://o.example.com")),
                Expected::Versions(vec![7]),
                "is not there",
            ),
            (&delete("b"), Expected::Anything, "no site \"b\""),
            (&delete("b"), Expected::There, "no site \"b\""),
        ] {
            let refused = planned(&one, wish, &expected).unwrap_err().to_string();
            assert!(refused.contains(told), "{expected:?}: {refused}");
        }
        assert!(planned(&one, &other, &Expected::Versions(vec![7, version])).is_ok());
    }

    #[test]
    fn a_site_that_cannot_be_meant_beside_the_others_is_refused() {
        let one = with(&[site("a", "http://o.example.com")]);
        let twice = Site::new("b", &["a.test"], &["http://o.example.com"]);
        let refused = planned(&one, &put(twice), &Expected::Anything).unwrap_err();
        let Refusal::Bad(bad) = refused else {
            panic!("{refused}")
        };
        assert_eq!((bad.field, &*bad.site), ("hosts", "b"));
        let mut large = site("b", "http://o.example.com");
        large.bypass.paths = (0..200)
            .map(|n| format!("/{n}{}", "x".repeat(1_000)))
            .collect();
        large.rule = (0..90)
            .map(|n| cluster::site::rules::PathRule {
                path: format!("/{n}{}", "x".repeat(1_000)),
                object_max: Some(cluster::quantity::Bytes(1)),
                ..Default::default()
            })
            .collect();
        large.access = (0..20)
            .map(|_| cluster::site::rules::Access {
                action: cluster::site::rules::Action::Allow,
                status: None,
                paths: (0..20)
                    .map(|n| format!("/{n}{}", "x".repeat(1_000)))
                    .collect(),
                methods: vec![],
                addresses: vec![],
                countries: vec![],
            })
            .collect();
        let refused = planned(&one, &put(large), &Expected::Anything).unwrap_err();
        assert!(matches!(refused, Refusal::TooLarge { .. }), "{refused}");
    }

    #[test]
    fn several_sites_change_together_or_not_at_all() {
        let on = |name: &str, host: &str| Site::new(name, &[host], &["http://o.example.com"]);
        let together = |before: &Snapshot, sites: &[Site]| {
            let asked: Vec<_> = sites
                .iter()
                .map(|site| (put(site.clone()), Expected::Anything))
                .collect();
            plan(before, &asked, &around(&[]), NOW_MS)
        };
        let before = together(
            &Snapshot::default(),
            &[on("a", "x.test"), on("b", "y.test")],
        );
        let before = before.unwrap().after;
        assert_eq!(before.version(), NOW_MS / 1000);
        // One by one, one host would have two sites.
        let swapped = [on("a", "y.test"), on("b", "x.test")];
        assert!(together(&before, &swapped[..1]).is_err());
        let after = together(&before, &swapped).unwrap();
        assert_eq!(after.after.version(), before.version() + 1);
        let names: Vec<_> = after.fresh.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "b"]);
        // What is so already takes no new version.
        let some = together(&before, &[on("a", "x.test"), on("c", "z.test")]).unwrap();
        let names: Vec<_> = some.fresh.keys().map(String::as_str).collect();
        assert_eq!(names, ["c"]);
        assert_eq!(some.after.record("a").unwrap().version, before.version());
        for (sites, told) in [
            (vec![on("c", "z.test"), on("d", "x.test")], "x.test"),
            (
                vec![on("c", "z.test"), on("c", "v.test")],
                "\"c\" is there twice",
            ),
            (
                (0..41)
                    .map(|n| on(&format!("s{n}"), &format!("{n}.test")))
                    .collect(),
                "41 sites, at most 40",
            ),
        ] {
            let refused = together(&before, &sites).unwrap_err().to_string();
            assert!(refused.contains(told), "{refused}");
        }
    }

    #[test]
    fn what_is_in_the_file_is_changed_there() {
        let mut records = Records::new();
        let record = Record {
            version: 5,
            at_ms: 1,
            by: "file".into(),
            action: SiteAction::File,
            in_file_of: Some("cp-1".into()),
            site: Some(Arc::new(site("a", "http://127.0.0.1"))),
        };
        records.insert("a".into(), record);
        let one = Snapshot::new(5, 1, records).unwrap();
        for wish in [put(site("a", "http://o.example.com")), delete("a")] {
            let refused = planned(&one, &wish, &Expected::Anything).unwrap_err();
            assert!(
                refused.to_string().contains("configuration file of cp-1"),
                "{refused}"
            );
        }
    }

    #[test]
    fn origins_inside_are_for_the_operator_to_allow() {
        let inside = put(site("a", "http://10.0.0.1"));
        let refused = planned(&Snapshot::default(), &inside, &Expected::Anything).unwrap_err();
        let told = refused.to_string();
        assert!(
            told.contains("site \"a\": origins: ") && told.contains("a private address"),
            "{told}"
        );
        let allowed = Surroundings {
            private: PrivateOrigins::In(vec!["10.0.0.0/8".parse().unwrap()]),
            nodes: vec![],
        };
        let asked = (inside, Expected::Anything);
        let planned = plan(&Snapshot::default(), &[asked], &allowed, NOW_MS);
        assert!(planned.is_ok());
    }

    #[test]
    fn an_origin_that_leads_back_is_refused() {
        let nodes = [
            "http://{host}:8081",
            "http://edge-2.cdn.example.net:8080",
            "http://192.0.2.7:8080",
        ];
        let refused = |site: Site| {
            let before = with(&[Site::new(
                "w",
                &["*.w.test", "w.test"],
                &["http://o.example.com"],
            )]);
            let asked = (put(site), Expected::Anything);
            let planned = plan(&before, &[asked], &around(&nodes), NOW_MS);
            planned.err().map(|refusal| refusal.to_string())
        };
        for (origin, told) in [
            ("http://o.example.com", None),
            ("http://a.test:8081", Some("a host of site \"a\"")),
            ("http://A.test:8080", Some("a host of site \"a\"")),
            ("http://a.test", None),
            ("http://x.w.test:8081", Some("a host of site \"w\"")),
            (
                "http://edge-2.cdn.example.net:8080",
                Some("would ask itself"),
            ),
            ("http://edge-2.cdn.example.net:9000", None),
            (
                "http://edge-2.cdn.example.net.:8080",
                Some("would ask itself"),
            ),
            ("http://[::ffff:192.0.2.7]:8080", Some("would ask itself")),
        ] {
            let found = refused(site("a", origin));
            match told {
                None => assert_eq!(found, None, "{origin}"),
                Some(told) => {
                    let found = found.unwrap_or_default();
                    assert!(found.contains(told), "{origin}: {found}");
                }
            }
        }
        // Under another name, it is another server there.
        let mut other = site("a", "http://a.test:8081");
        other.origins[0].host = Some("origin.a.test".into());
        assert_eq!(refused(other), None);
        // A site for everything says nothing of hosts.
        let all = Site::new("a", &["*"], &["http://o.example.com:8081"]);
        assert_eq!(refused(all), None);
    }
}
