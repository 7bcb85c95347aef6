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
    let v6 = Site::new("a.b", &["a.test"], &["http://[2001:db8::1]:8080"]);
    assert!(v6.check().is_ok());
    assert_eq!(with(|s| s.name = "A b".into()), "name");
    assert_eq!(with(|s| s.hosts = vec![]), "hosts");
    assert_eq!(with(|s| s.hosts = vec!["a.test:80".into()]), "hosts");
    assert_eq!(with(|s| s.origins = vec![]), "origins");
    assert_eq!(with(|s| s.name = "..".into()), "name");
    assert_eq!(with(|s| s.origins = vec!["http://o:".into()]), "origins");
    assert_eq!(
        with(|s| s.origins = vec!["http://o:70000".into()]),
        "origins"
    );
    assert_eq!(
        with(|s| s.origins = vec!["http://[2001:db8::1]:99999".into()]),
        "origins"
    );
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
        ("failover = [502]\ntls = 'A'", "tls"),
        ("[privacy]\n[health]\npath = 'x'", "health.path"),
        (
            "[health]\npath = '/'\ninterval = '100ms'",
            "health.interval",
        ),
        ("[health]\npath = '/'\ntimeout = '0s'", "health.timeout"),
        ("[health]\npath = '/'\nexpect = []", "health.expect"),
        (
            "[health]\npath = '/'\nhealthy_after = 0",
            "health.healthy_after",
        ),
        (
            "[health]\npath = '/'\nunhealthy_after = 21",
            "health.unhealthy_after",
        ),
        (
            "[[takedown]]\nurl = 'http://b.test/'\nreason = 'r'\nby = 'b'",
            "takedown.url",
        ),
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
    let with_origins = |text: &str| {
        let site = format!("name = 'a'\nhosts = ['a.test']\norigins = [{text}]");
        toml::from_str::<Site>(&site).unwrap().check()
    };
    for (text, field) in [
        ("{ url = 'http://o', weight = 0 }", "origins.weight"),
        ("{ url = 'http://o', weight = 1001 }", "origins.weight"),
        ("{ url = 'http://o', backup = true }", "origins.backup"),
        ("{ url = 'http://o', host = 'a b' }", "origins.host"),
        ("{ url = 'http://o', sni = 'a.test' }", "origins.sni"),
        ("{ url = 'https://o', sni = '*.a.test' }", "origins.sni"),
        ("'http://o', { url = 'http://o', weight = 2 }", "origins"),
    ] {
        let error = with_origins(text).unwrap_err();
        assert_eq!(error.field, field, "{text}: {error}");
    }
    let good_ones = "'http://o', { url = 'https://p', backup = true, sni = 'p.test' }";
    assert_eq!(with_origins(good_ones), Ok(()));
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

#[test]
fn a_site_knows_its_own_hosts() {
    let site = Site::new("a", &["a.test", "*.b.test", "[::1]"], &["http://o"]);
    for (host, own) in [
        ("a.test", true),
        ("A.test:8080", true),
        ("x.y.b.test", true),
        ("[::1]:80", true),
        ("b.test", false),
        ("x.a.test", false),
    ] {
        assert_eq!(site.has_host(host), own, "{host}");
    }
}
