//! What is sent, as the documentation or the source of who sends it has it, and what it means.

use http::HeaderName;
use proptest::prelude::*;

use super::*;

/// A request as text: a line with method and target, then fields, then after an empty line the body.
fn spoken(text: &str) -> Result<Spoken, Unspoken> {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.lines().map(str::trim);
    let (method, target) = lines.next().unwrap().split_once(' ').unwrap();
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').unwrap();
        let name: HeaderName = name.parse().unwrap();
        headers.append(name, value.trim().parse().unwrap());
    }
    let target: Uri = target.parse().unwrap();
    assert!(is_spoken(method, target.path()), "{text}");
    translate(method, &target, &headers, body.as_bytes())
}

/// What it hits, in short.
fn told(spoken: &Spoken) -> String {
    let PurgeRequest {
        site,
        urls,
        prefixes,
        tags,
        all,
        soft,
        ..
    } = &spoken.request;
    let mut parts = Vec::new();
    match (&spoken.host, &**site) {
        (Some(host), "") => parts.push(format!("at {host}")),
        (_, site) => parts.push(format!("site {site}")),
    }
    parts.extend(urls.iter().map(|url| format!("url {url}")));
    parts.extend(prefixes.iter().map(|prefix| format!("prefix {prefix}")));
    parts.extend(tags.iter().map(|tag| format!("tag {tag}")));
    parts.extend(all.then(|| "all".to_owned()));
    parts.extend(soft.then(|| "soft".to_owned()));
    parts.join(", ")
}

#[test]
fn each_way_to_ask_means_what_its_documentation_says() {
    for (sent, means) in [
        // Fastly, developer.fastly.com/reference/api/purging: one key, ...
        ("POST /service/www/purge/key_1", "site www, tag key_1"),
        (
            "POST /service/www/purge/a%2Fb%20c\nFastly-Soft-Purge: 1",
            "site www, tag a/b c, soft",
        ),
        // ... several, by a field or a body, ...
        (
            "POST /service/www/purge\nSurrogate-Key: key_1 key_2 key_3",
            "site www, tag key_1, tag key_2, tag key_3",
        ),
        (
            "POST /service/www/purge\nContent-Type: application/json\n\n{\"surrogate_keys\": [\"key_1\", \"key_2\"]}",
            "site www, tag key_1, tag key_2",
        ),
        // ... everything, ...
        ("POST /service/www/purge_all", "site www, all"),
        // ... and one URL.
        (
            "POST /purge/www.test/path?q=1",
            "at www.test, url //www.test/path?q=1",
        ),
        (
            "PURGE http://www.test/path\nFastly-Soft-Purge: 1",
            "at www.test, url //www.test/path, soft",
        ),
        // Varnish, users-guide/purging: PURGE, and BAN of one URL.
        (
            "PURGE /foo?a=b\nHost: www.test",
            "at www.test, url //www.test/foo?a=b",
        ),
        (
            "BAN /foo\nHost: www.test",
            "at www.test, url //www.test/foo",
        ),
        // Proxy Cache Purge for WordPress (varnish-http-purge): one page, and with ?vhp-regex all below it.
        (
            "PURGE /2026/a-post/\nHost: www.test\nX-Purge-Method: default",
            "at www.test, url //www.test/2026/a-post/",
        ),
        (
            "PURGE /.*\nHost: www.test\nX-Purge-Method: regex",
            "at www.test, prefix //www.test/",
        ),
        (
            "PURGE /category/news/.*\nHost: www.test\nX-Purge-Method: regex",
            "at www.test, prefix //www.test/category/news/",
        ),
        // W3 Total Cache: everything, without a field.
        (
            "PURGE /.*\nHost: www.test",
            "at www.test, prefix //www.test/",
        ),
        // WP Rocket.
        (
            "PURGE /a/.*\nHost: www.test:8080\nX-Purge-Method: exact",
            "at www.test:8080, url //www.test:8080/a/.*",
        ),
        // vmod xkey.
        (
            "PURGE /\nHost: www.test\nxkey-purge: a b",
            "at www.test, tag a, tag b",
        ),
        // FOSHttpCache 2, Varnish client with tag_mode purgekeys.
        (
            "PURGEKEYS /\nHost: www.test\nxkey-softpurge: post-1 post-2",
            "at www.test, tag post-1, tag post-2, soft",
        ),
        // The same with tag_mode ban: names quoted by preg_quote; other fields say everything.
        (
            "BAN /\nHost: www.test\nX-Host: .*\nX-Url: .*\nX-Content-Type: .*\n\
             X-Cache-Tags: (^|,)(post\\-1|v1\\.2)(,|$)",
            "at www.test, tag post-1, tag v1.2",
        ),
        // FOSHttpCache 1.
        (
            "BAN /\nHost: www.test\nX-Cache-Tags: (post-1|post-2)(,.+)?$",
            "at www.test, tag post-1, tag post-2",
        ),
        // FOSHttpCache, Symfony client.
        (
            "PURGETAGS /\nHost: www.test\nX-Cache-Tags: post-1,post-2",
            "at www.test, tag post-1, tag post-2",
        ),
        // FOSHttpCache, ban and banPath.
        (
            "BAN /\nHost: www.test\nX-Host: .*\nX-Url: .*\nX-Content-Type: .*",
            "at www.test, all",
        ),
        (
            "BAN /\nHost: www.test\nX-Host: .*\nX-Url: ^/articles/.*\nX-Content-Type: .*",
            "at www.test, prefix /articles/",
        ),
        (
            "BAN /\nHost: www.test\nX-Host: ^(www.test|img\\.www\\.test)$\nX-Url: /a/b$",
            "at www.test, url //www.test/a/b, url //img.www.test/a/b",
        ),
        (
            "BAN /\nHost: www.test\nX-Host: www.test\nX-Url: .*",
            "at www.test, prefix //www.test/",
        ),
        // Magento 2, Magento\CacheInvalidate\Model\PurgeCache: tags, and everything.
        (
            "PURGE /\nHost: www.test\nX-Magento-Tags-Pattern: ((^|,)cat_p_1(,|$))|((^|,)cat_p(,|$))",
            "at www.test, tag cat_p_1, tag cat_p",
        ),
        (
            "PURGE /\nHost: www.test\nX-Magento-Tags-Pattern: .*",
            "at www.test, all",
        ),
        // Drupal: purge_purger_http, and varnish_purger with [invalidations:separated_pipe].
        (
            "BAN /\nHost: www.test\nPurge-Cache-Tags: node:1 node_list",
            "at www.test, tag node:1, tag node_list",
        ),
        (
            "BAN /\nHost: www.test\nCache-Tags: node:1|node:2",
            "at www.test, tag node:1, tag node:2",
        ),
        (
            "PURGE /\nHost: www.test\nSurrogate-Key: a b",
            "at www.test, tag a, tag b",
        ),
        (
            "BAN /\nHost: www.test\nCache-Tag: a, b",
            "at www.test, tag a, tag b",
        ),
    ] {
        match spoken(sent) {
            Ok(spoken) => assert_eq!(told(&spoken), means, "{sent}"),
            Err(error) => panic!("{sent}: {error}"),
        }
    }
}

#[test]
fn what_cannot_be_said_is_refused_with_the_field_that_says_it() {
    let bans = [
        ("X-Url: \\.png$", "x-url"),
        ("X-Url: ^/[a-z]+", "x-url"),
        ("X-Url: .*\\.png", "x-url"),
        ("X-Host: .*\\.test$\nX-Url: /", "x-host"),
        ("X-Url: .*\nX-Content-Type: text/html", "x-content-type"),
        ("X-Url: ^/a\nCache-Tags: b", "x-url"),
        ("Cache-Tags: (^|,)a.*", "cache-tags"),
        ("Cache-Tags: a\\d", "cache-tags"),
        ("Cache-Tags: (a", "cache-tags"),
        ("Cache-Tags: ^a)b", "cache-tags"),
    ];
    let bans = bans.map(|(fields, field)| (format!("BAN /\nHost: a\n{fields}"), 501, field));
    let others = [
        ("PURGE /a", 400, "host"),
        ("PURGEKEYS /\nHost: a", 400, "xkey-purge"),
        ("PURGE /\nHost: a\nxkey-purge:", 400, "tags"),
        ("PURGE /\nHost: a\nFastly-Soft-Purge: maybe", 400, SOFT),
        (
            "PURGE /a\nHost: a\nX-Purge-Method: fuzzy",
            501,
            "x-purge-method",
        ),
        (
            "PURGE /a(b|c).*\nHost: a\nX-Purge-Method: regex",
            501,
            "path",
        ),
        ("PURGE /\nHost: a\nX-Purge-Regex: x", 501, "x-purge-regex"),
        (
            "PURGE /\nHost: a\nxkey-purge: a\nxkey-softpurge: b",
            501,
            "xkey-softpurge",
        ),
        ("POST /service/www/purge", 400, "surrogate_keys"),
        (
            "POST /service/www/purge\n\n{\"keys\": []}",
            400,
            "surrogate_keys",
        ),
        (
            "POST /service/www/purge\n\n{\"surrogate_keys\": []}",
            400,
            "surrogate-key",
        ),
        ("POST /service/www/details", 404, "path"),
        ("POST /service/www/purge/", 404, "path"),
        ("POST /service/www/purge/%zz", 400, "key"),
        ("POST /purge/", 400, "path"),
    ];
    let others = others.map(|(sent, status, field)| (sent.to_owned(), status, field));
    for (sent, status, field) in bans.into_iter().chain(others) {
        match spoken(&sent) {
            Ok(spoken) => panic!("{sent}: {}", told(&spoken)),
            Err(error) => assert_eq!(
                (error.status.as_u16(), &*error.field),
                (status, field),
                "{sent}: {error}"
            ),
        }
    }
    let many = "a ".repeat(SCOPES_MAX + 1);
    let error = spoken(&format!("PURGE /\nHost: a\nxkey-purge: {many}")).unwrap_err();
    assert_eq!(error.status, StatusCode::PAYLOAD_TOO_LARGE);
}

/// A plugin names a tag in a field of its own, and what has the tag in the field that the same plugin sends
/// with answers is found by it.
#[test]
fn objects_are_tagged_by_every_field_that_purges_them() {
    for (field, _) in TAG_FIELDS {
        let own = ["-purge", "-softpurge", "-pattern"]
            .iter()
            .find_map(|end| field.strip_suffix(end))
            .unwrap_or(field);
        assert!(crate::purge::TAG_FIELDS.contains(&own), "{field}");
    }
}

#[test]
fn all_else_is_no_purge() {
    for (method, path) in [
        ("GET", "/service/www/purge_all"),
        ("POST", "/a"),
        ("purge", "/"),
    ] {
        assert!(!is_spoken(method, path), "{method} {path}");
    }
}

proptest! {
    /// Names survive the way in which Magento and FOSHttpCache quote and list them.
    #[test]
    fn lists_of_names_are_read_back(names in proptest::collection::vec("[a-z0-9_:./-]{1,12}", 1..6)) {
        let quoted = |name: &String| {
            let quote = |c: char| match c.is_ascii_alphanumeric() || "_/".contains(c) {
                true => c.to_string(),
                false => format!("\\{c}"),
            };
            name.chars().map(quote).collect::<String>()
        };
        let all: Vec<_> = names.iter().map(quoted).collect();
        let fos = format!("(^|,)({})(,|$)", all.join("|"));
        let each = all.iter().map(|name| format!("((^|,){name}(,|$))"));
        let magento = each.collect::<Vec<_>>().join("|");
        for pattern in [fos, magento, all.join("|") + "$"] {
            prop_assert_eq!(pattern::names(&pattern), Ok(names.clone()), "{}", pattern);
        }
    }

    #[test]
    fn nothing_that_is_sent_does_any_harm(value in "[ -~]{0,40}") {
        let _ = (pattern::tags(&value), pattern::paths(&value), pattern::names(&value));
    }
}
