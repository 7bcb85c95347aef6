//! How the origin is asked whether a stored answer still holds, and how clients ask the same of the
//! edge (RFC 9111 §4.3, RFC 9110 §13).

use super::{A_SECOND_PASSES, Case, EARLIER, Exchange, LATER, MODIFIED, case, get, head};

const NONE_MATCH: &str = "if-none-match";
const SINCE: &str = "if-modified-since";

pub(super) fn cases() -> Vec<Case> {
    let mut cases = asked_of_the_origin();
    cases.extend(renewed());
    cases.extend(of_variants());
    cases.extend(asked_by_clients());
    cases.extend(by_head());
    cases
}

fn stale() -> Exchange {
    get().cc("max-age=1")
}

fn later() -> Exchange {
    get().after(A_SECOND_PASSES)
}

fn asked_of_the_origin() -> Vec<Case> {
    let section = "9111 §4.3.1";
    let mut cases = vec![
        case(section, "a strong entity tag is sent")
            .then(stale().says("etag", "\"a\""))
            .then(
                later()
                    .answers(304)
                    .says("etag", "\"a\"")
                    .validated()
                    .with("if-none-match", "\"a\""),
            ),
        case(section, "a weak entity tag is sent as it is")
            .then(stale().says("etag", "W/\"a\""))
            .then(
                later()
                    .answers(304)
                    .says("etag", "W/\"a\"")
                    .validated()
                    .with("if-none-match", "W/\"a\""),
            ),
        case(section, "a date is sent")
            .then(stale().says("last-modified", MODIFIED))
            .then(
                later()
                    .answers(304)
                    .validated()
                    .with("if-modified-since", MODIFIED),
            ),
        case(section, "tag and date are both sent")
            .then(
                stale()
                    .says("etag", "\"a\"")
                    .says("last-modified", MODIFIED),
            )
            .then(
                later()
                    .answers(304)
                    .says("etag", "\"a\"")
                    .validated()
                    .with("if-none-match", "\"a\"")
                    .with("if-modified-since", MODIFIED),
            ),
        case(section, "without validators there is no condition")
            .then(stale())
            .then(later()),
        case(section, "an entity tag with a comma is sent whole")
            .then(stale().says("etag", "\"a,b\""))
            .then(
                later()
                    .answers(304)
                    .says("etag", "\"a,b\"")
                    .validated()
                    .with("if-none-match", "\"a,b\""),
            ),
        case(
            section,
            "the edge's tag is sent, not the client's that differs",
        )
        .then(stale().says("etag", "\"a\""))
        .then(
            later()
                .asks("if-none-match", "\"b\"")
                .answers(304)
                .says("etag", "\"a\"")
                .validated()
                .of(1),
        ),
        case("9111 §4.3.3", "200 replaces")
            .then(stale().says("etag", "\"a\""))
            .then(later().cc("max-age=60").says("etag", "\"b\"").validated())
            .then(get().hit().of(2).has("etag", "\"b\"")),
        case("9111 §4.3.3", "404 replaces")
            .then(stale().says("etag", "\"a\""))
            .then(later().answers(404).cc("max-age=60").validated())
            .then(get().hit().of(2)),
        case("9111 §4.3.3", "200 that may not be stored removes")
            .then(stale().says("etag", "\"a\""))
            .then(later().cc("no-store").validated())
            .then(get().asked()),
        case(
            "9111 §4.3.3",
            "503 goes on to the client, and leaves what is stored",
        )
        .then(stale().says("etag", "\"a\""))
        .then(later().answers(503).validated())
        .then(get().answers(304).says("etag", "\"a\"").validated().of(1)),
        case(
            "9111 §4.3.3",
            "500 that has a lifetime does not outlive the error unasked for",
        )
        .then(stale().says("etag", "\"a\""))
        .then(later().answers(500).validated())
        .then(get().cc("max-age=60").says("etag", "\"c\"").asked())
        .then(get().hit().of(3)),
        case(
            "9111 §4.3.2",
            "a client's condition that holds for the stale answer gets a 304 after validation",
        )
        .then(stale().says("etag", "\"a\""))
        .then(
            later()
                .asks("if-none-match", "\"a\"")
                .answers(304)
                .says("etag", "\"a\"")
                .asked()
                .gets(304),
        ),
        case(
            "9111 §4.3.2",
            "a client's condition when the origin has something new gets a 200",
        )
        .then(stale().says("etag", "\"a\""))
        .then(
            later()
                .asks("if-none-match", "\"a\"")
                .cc("max-age=60")
                .says("etag", "\"b\"")
                .asked(),
        )
        .then(get().hit().of(2)),
        case(
            "9111 §4.3.2",
            "a client's condition on a miss does not leave a 304 for others",
        )
        .then(
            get()
                .asks("if-none-match", "\"a\"")
                .cc("max-age=60")
                .says("etag", "\"a\"")
                .asked()
                .either()
                .gets(304),
        )
        .then(get().either().gets(200)),
    ];
    for status in [500, 502, 503, 504] {
        cases.push(
            case(
                "9111 §4.3.3",
                format!("{status} while validating goes on to the client"),
            )
            .then(stale().says("etag", "\"a\""))
            .then(
                later()
                    .answers(status)
                    .says("x-own", "1")
                    .validated()
                    .has("x-own", "1"),
            ),
        );
    }
    cases
}

/// RFC 9111 §3.2: what a 304 changes of what is stored.
fn renewed() -> Vec<Case> {
    let mut cases = vec![
        case("9111 §4.3.4", "a 304 makes fresh again")
            .then(stale().says("etag", "\"a\""))
            .then(
                later()
                    .answers(304)
                    .cc("max-age=60")
                    .says("etag", "\"a\"")
                    .validated(),
            )
            .then(get().after(A_SECOND_PASSES).hit()),
        case(
            "9111 §4.3.4",
            "a 304 without a lifetime renews the stored one",
        )
        .then(stale().says("etag", "\"a\""))
        .then(later().answers(304).says("etag", "\"a\"").validated())
        .then(get().hit()),
        case(
            "9111 §4.3.4",
            "a 304 without any validator is for the one that was asked about",
        )
        .then(stale().says("etag", "\"a\""))
        .then(later().answers(304).cc("max-age=60").validated())
        .then(get().after(A_SECOND_PASSES).hit()),
        case("9111 §4.3.4", "a 304 renews the age")
            .then(
                get()
                    .cc("max-age=60")
                    .says("etag", "\"a\"")
                    .says("age", "90"),
            )
            .then(get().answers(304).says("etag", "\"a\"").validated())
            .then(get().hit().has("age", "0")),
        case("9111 §4.3.4", "a weak tag in a 304 is about the strong one")
            .then(stale().says("etag", "\"a\""))
            .then(
                later()
                    .answers(304)
                    .cc("max-age=60")
                    .says("etag", "W/\"a\"")
                    .validated(),
            )
            .then(get().hit()),
        case("9111 §4.3.4", "a 304 is about what has a weak tag")
            .then(stale().says("etag", "W/\"a\""))
            .then(
                later()
                    .answers(304)
                    .cc("max-age=60")
                    .says("etag", "W/\"a\"")
                    .validated(),
            )
            .then(get().after(A_SECOND_PASSES).hit()),
        case("9111 §4.3.4", "a 304 may give up the lifetime")
            .then(get().cc("max-age=60").says("etag", "\"a\""))
            .then(
                get()
                    .asks("cache-control", "no-cache")
                    .answers(304)
                    .cc("no-cache")
                    .says("etag", "\"a\"")
                    .validated(),
            )
            .then(get().answers(304).says("etag", "\"a\"").validated()),
        case("9111 §4.3.4", "a 304 may bring an age")
            .then(stale().says("etag", "\"a\""))
            .then(
                later()
                    .answers(304)
                    .says("etag", "\"a\"")
                    .cc("max-age=60")
                    .says("age", "30")
                    .validated()
                    .has("age", "30"),
            ),
        case("9111 §4.3.4", "a 304 with no-store is the last of it")
            .then(stale().says("etag", "\"a\""))
            .then(
                later()
                    .answers(304)
                    .cc("no-store")
                    .says("etag", "\"a\"")
                    .asked()
                    .gets(200)
                    .either(),
            )
            .then(get().asked()),
        case(
            "9111 §4.3.4",
            "a 304 for another tag is not for what is stored",
        )
        .then(stale().says("etag", "\"a\"").says("x-own", "old"))
        .then(
            later()
                .answers(304)
                .cc("max-age=60")
                .says("etag", "\"b\"")
                .asked()
                .gets(200)
                .body("answer 2"),
        )
        .then(get().either().gets(200).lacks_part("x-own", "old")),
        case("9111 §3.2", "a 304 adds fields")
            .then(stale().says("etag", "\"a\""))
            .then(
                later()
                    .answers(304)
                    .says("etag", "\"a\"")
                    .says("x-new", "1")
                    .cc("max-age=60")
                    .validated()
                    .has("x-new", "1"),
            )
            .then(get().hit().has("x-new", "1")),
        case("9111 §3.2", "a 304 leaves fields that it does not name")
            .then(stale().says("etag", "\"a\"").says("x-old", "1"))
            .then(
                later()
                    .answers(304)
                    .says("etag", "\"a\"")
                    .cc("max-age=60")
                    .validated(),
            )
            .then(get().hit().has("x-old", "1")),
        case("9111 §3.2", "a 304 replaces all lines of a field")
            .then(
                stale()
                    .says("etag", "\"a\"")
                    .says("x-a", "1")
                    .says("x-a", "2"),
            )
            .then(
                later()
                    .answers(304)
                    .says("etag", "\"a\"")
                    .says("x-a", "3")
                    .cc("max-age=60")
                    .validated(),
            )
            .then(get().hit().has("x-a", "3")),
        case("9111 §3.1", "a 304's hop-by-hop fields are not kept")
            .then(stale().says("etag", "\"a\""))
            .then(
                later()
                    .answers(304)
                    .says("etag", "\"a\"")
                    .cc("max-age=60")
                    .says("keep-alive", "timeout=5")
                    .says("connection", "x-hop")
                    .says("x-hop", "1")
                    .validated(),
            )
            .then(get().hit().lacks("keep-alive").lacks("x-hop")),
        case(
            "9111 §4.3.4",
            "a 304 that makes it private is the last of it",
        )
        .then(stale().says("etag", "\"a\""))
        .then(
            later()
                .answers(304)
                .cc("private")
                .says("etag", "\"a\"")
                .either()
                .gets(200),
        )
        .then(get().asked()),
        case("this project", "a 304's cookie is nobody else's")
            .then(stale().says("etag", "\"a\""))
            .then(
                later()
                    .answers(304)
                    .cc("max-age=60")
                    .says("etag", "\"a\"")
                    .says("set-cookie", "id=1")
                    .either()
                    .gets(200),
            )
            .then(get().either().lacks("set-cookie")),
    ];
    for (name, value, new) in [
        ("content-type", "text/plain", "text/html"),
        ("content-language", "de", "en"),
        ("content-location", "/a", "/b"),
        ("content-disposition", "inline", "attachment"),
        ("content-security-policy", "default-src a", "default-src b"),
        (
            "expires",
            "Fri, 01 Jan 2100 00:00:00 GMT",
            "Sat, 01 Jan 2101 00:00:00 GMT",
        ),
        ("last-modified", MODIFIED, LATER),
        ("server", "a", "b"),
        ("set-nothing", "a", "b"),
        ("x-own", "a", "b"),
        ("link", "</a>", "</b>"),
        ("clear-site-data", "\"cache\"", "\"cookies\""),
    ] {
        cases.push(
            case("9111 §3.2", format!("a 304 replaces {name}"))
                .then(stale().says("etag", "\"a\"").says(name, value))
                .then(
                    later()
                        .answers(304)
                        .says("etag", "\"a\"")
                        .cc("max-age=60")
                        .says(name, new)
                        .validated(),
                )
                .then(get().hit().has(name, new)),
        );
    }
    for (name, value, new) in [
        ("content-encoding", "x-a", "x-b"),
        ("content-range", "bytes 0-7/8", "bytes 0-1/2"),
        ("content-length", "8", "36"),
        ("etag", "\"a\"", "\"a\""),
    ] {
        cases.push(
            case("9111 §3.2", format!("a 304 leaves {name}"))
                .then(
                    stale()
                        .says("x-tag", "1")
                        .says(name, value)
                        .says("last-modified", MODIFIED),
                )
                .then(
                    later()
                        .answers(304)
                        .cc("max-age=60")
                        .says(name, new)
                        .validated(),
                )
                .then(get().hit().has(name, value)),
        );
    }
    cases
}

/// RFC 9111 §4.1 and §4.3.1: what is stored under other fields may still be what is meant.
fn of_variants() -> Vec<Case> {
    let by = |value: &str, tag: &str| {
        get()
            .cc("max-age=60")
            .says("vary", "X-A")
            .says("etag", tag)
            .asks("x-a", value)
    };
    vec![
        case(
            "9111 §4.3.1",
            "a miss by Vary offers the stored tag, and a 304 selects it",
        )
        .then(by("1", "\"a\""))
        .then(
            by("2", "\"a\"")
                .answers(304)
                .validated()
                .of(1)
                .with("if-none-match", "\"a\""),
        ),
        case("9111 §4.3.1", "a 304 selects one of several variants")
            .then(by("1", "\"a\""))
            .then(by("2", "\"b\"").asked())
            .then(by("3", "\"b\"").answers(304).validated().of(2)),
        case(
            "9111 §4.3.1",
            "what a 304 selected is kept for those fields",
        )
        .then(by("1", "\"a\""))
        .then(by("2", "\"a\"").answers(304).validated().of(1))
        .then(get().asks("x-a", "2").hit()),
        case(
            "9111 §4.3.4",
            "a 304 without a tag selects none of several variants",
        )
        .then(by("1", "\"a\""))
        .then(by("2", "\"b\"").asked())
        .then(
            get()
                .cc("max-age=60")
                .says("vary", "X-A")
                .asks("x-a", "3")
                .answers(304)
                .asked()
                .gets(200)
                .body("answer 3"),
        ),
        case(
            "9111 §4.3.4",
            "a 304 with a tag that was not offered selects none",
        )
        .then(by("1", "\"a\""))
        .then(
            by("2", "\"z\"")
                .answers(304)
                .asked()
                .gets(200)
                .body("answer 2"),
        ),
        case(
            "9111 §4.3.2",
            "a client's own tag on another variant gets its 304",
        )
        .then(by("1", "\"a\""))
        .then(
            by("2", "\"c\"")
                .asks("if-none-match", "\"c\"")
                .asked()
                .gets(304)
                .body(""),
        )
        .then(get().asks("x-a", "1").hit()),
        case(
            "9111 §4.3.1",
            "a variant that was stored for Authorization only is not offered to others",
        )
        .then(by("1", "\"a\"").asks("authorization", "Basic eDp5"))
        .then(
            by("2", "\"a\"")
                .answers(304)
                .without("if-none-match")
                .gets(200),
        ),
        case(
            "9111 §4.3.1",
            "a variant that POST made doubtful is not answered with",
        )
        .then(by("1", "\"a\""))
        .then(super::request("POST"))
        .then(by("2", "\"b\"").asked().gets(200).body("answer 3")),
        case("9111 §4.1", "a 200 to the offered tags is another variant")
            .then(by("1", "\"a\""))
            .then(by("2", "\"b\"").asked())
            .then(get().asks("x-a", "1").hit())
            .then(get().asks("x-a", "2").hit().of(2)),
    ]
}

/// What a client gets of a fresh answer with `"a"` and a date, for these fields (RFC 9110 §13.2.2).
fn asked_by_clients() -> Vec<Case> {
    type Fields = &'static [(&'static str, &'static str)];
    let rows: [(&str, Fields, u16); 34] = [
        ("If-None-Match that holds", &[(NONE_MATCH, "\"a\"")], 304),
        ("If-None-Match that does not", &[(NONE_MATCH, "\"b\"")], 200),
        ("a weak If-None-Match", &[(NONE_MATCH, "W/\"a\"")], 304),
        (
            "If-None-Match with a list",
            &[(NONE_MATCH, "\"x\", \"a\" , \"y\"")],
            304,
        ),
        (
            "If-None-Match with a weak list",
            &[(NONE_MATCH, "W/\"x\", W/\"a\"")],
            304,
        ),
        (
            "If-None-Match on two lines",
            &[(NONE_MATCH, "\"x\""), (NONE_MATCH, "\"a\"")],
            304,
        ),
        ("If-None-Match: *", &[(NONE_MATCH, "*")], 304),
        ("If-None-Match without quotes", &[(NONE_MATCH, "a")], 200),
        (
            "If-None-Match in another case",
            &[(NONE_MATCH, "\"A\"")],
            200,
        ),
        (
            "If-None-Match with the tag's letter behind a comma within another",
            &[(NONE_MATCH, "\"x,a\"")],
            200,
        ),
        (
            "If-None-Match with empty members",
            &[(NONE_MATCH, ", \"a\",")],
            304,
        ),
        ("an empty If-None-Match", &[(NONE_MATCH, "")], 200),
        ("If-Modified-Since equal", &[(SINCE, MODIFIED)], 304),
        ("If-Modified-Since later", &[(SINCE, LATER)], 304),
        ("If-Modified-Since earlier", &[(SINCE, EARLIER)], 200),
        ("If-Modified-Since now", &[(SINCE, "{+0}")], 304),
        (
            "If-Modified-Since by RFC 850",
            &[(SINCE, "Sunday, 06-Nov-94 08:49:37 GMT")],
            304,
        ),
        (
            "If-Modified-Since by asctime",
            &[(SINCE, "Sun Nov  6 08:49:37 1994")],
            304,
        ),
        (
            "If-Modified-Since that is no date",
            &[(SINCE, "yesterday")],
            200,
        ),
        ("an empty If-Modified-Since", &[(SINCE, "")], 200),
        (
            "tag that holds, and an earlier date",
            &[(NONE_MATCH, "\"a\""), (SINCE, EARLIER)],
            304,
        ),
        (
            "tag that does not hold, and a later date",
            &[(NONE_MATCH, "\"b\""), (SINCE, LATER)],
            200,
        ),
        ("If-Match that holds", &[("if-match", "\"a\"")], 200),
        (
            "If-Match with a list that holds",
            &[("if-match", "\"x\", \"a\"")],
            200,
        ),
        ("If-Match: *", &[("if-match", "*")], 200),
        ("If-Match that does not hold", &[("if-match", "\"b\"")], 412),
        ("a weak If-Match", &[("if-match", "W/\"a\"")], 412),
        (
            "If-Unmodified-Since equal",
            &[("if-unmodified-since", MODIFIED)],
            200,
        ),
        (
            "If-Unmodified-Since later",
            &[("if-unmodified-since", LATER)],
            200,
        ),
        (
            "If-Unmodified-Since earlier",
            &[("if-unmodified-since", EARLIER)],
            412,
        ),
        (
            "If-Unmodified-Since that is no date",
            &[("if-unmodified-since", "x")],
            200,
        ),
        (
            "If-Match that holds, and an earlier If-Unmodified-Since",
            &[("if-match", "\"a\""), ("if-unmodified-since", EARLIER)],
            200,
        ),
        (
            "If-Match and If-None-Match that hold",
            &[("if-match", "\"a\""), (NONE_MATCH, "\"a\"")],
            304,
        ),
        (
            "If-Match that does not hold, If-None-Match that does",
            &[("if-match", "\"b\""), (NONE_MATCH, "\"a\"")],
            412,
        ),
    ];
    let stored = || {
        get()
            .cc("max-age=60")
            .says("etag", "\"a\"")
            .says("last-modified", MODIFIED)
            .says("content-type", "text/plain")
            .says("vary", "X-A")
    };
    let mut cases = Vec::new();
    for (name, fields, status) in rows {
        let second = (fields.iter()).fold(get(), |all, (name, value)| all.asks(name, value));
        let second = second.hit();
        let second = match status {
            200 => second,
            304 => second
                .gets(304)
                .body("")
                .has("etag", "\"a\"")
                .has("cache-control", "max-age=60")
                .has("vary", "X-A"),
            _ => second.gets(status),
        };
        let name = format!("{name}: {status}");
        cases.push(case("9110 §13.2.2", name).then(stored()).then(second));
    }
    cases.push(
        case("9110 §13.1.2", "If-None-Match and HEAD: 304")
            .then(stored())
            .then(head().asks(NONE_MATCH, "\"a\"").hit().gets(304)),
    );
    cases.push(
        case("9110 §13.1.2", "a weak stored tag and If-None-Match: 304")
            .then(get().cc("max-age=60").says("etag", "W/\"a\""))
            .then(get().asks(NONE_MATCH, "\"a\"").hit().gets(304)),
    );
    cases.push(
        case("9110 §13.1.1", "a weak stored tag and If-Match: 412")
            .then(get().cc("max-age=60").says("etag", "W/\"a\""))
            .then(get().asks("if-match", "W/\"a\"").hit().gets(412)),
    );
    cases.push(
        case(
            "9110 §13.1.3",
            "If-Modified-Since without Last-Modified, later than Date: 304 or 200",
        )
        .then(get().cc("max-age=60"))
        .then(get().asks(SINCE, EARLIER).hit()),
    );
    cases.push(
        case("9110 §13.2.1", "conditions do not matter for a stored 404")
            .then(get().answers(404).cc("max-age=60").says("etag", "\"a\""))
            .then(get().asks(NONE_MATCH, "\"a\"").hit()),
    );
    cases.push(
        case(
            "9111 §4.3.2",
            "If-None-Match on a miss fetches the whole for others",
        )
        .then(
            get()
                .asks(NONE_MATCH, "\"a\"")
                .cc("max-age=60")
                .says("etag", "\"a\"")
                .without(NONE_MATCH)
                .gets(304)
                .body(""),
        )
        .then(get().hit()),
    );
    for (name, value, status) in [
        ("if-none-match", "\"b\"", 200),
        ("if-modified-since", MODIFIED, 304),
        ("if-modified-since", EARLIER, 200),
        ("if-match", "\"a\"", 200),
        ("if-match", "\"b\"", 412),
        ("if-unmodified-since", MODIFIED, 200),
        ("if-unmodified-since", EARLIER, 412),
    ] {
        // The origin of a row knows of no conditions, so this is the edge's own doing.
        let first = stored().asks(name, value).without(name);
        let first = if status == 200 {
            first
        } else {
            first.gets(status)
        };
        cases.push(
            case(
                "9110 §13.2.1",
                format!("{name}: {value} on a miss is {status}, and leaves the whole"),
            )
            .then(first)
            .then(get().hit()),
        );
    }
    cases
}

/// RFC 9111 §4.3.5: an answer to HEAD says how a stored answer to GET is.
fn by_head() -> Vec<Case> {
    let section = "9111 §4.3.5";
    let stored = || {
        get()
            .cc("max-age=1")
            .says("etag", "\"a\"")
            .says("last-modified", MODIFIED)
            .says("x-own", "old")
    };
    // An edge may ask for the whole instead; then that is what is stored.
    let forwarded = || {
        head()
            .asks("cache-control", "no-cache")
            .asked()
            .cc("max-age=60")
            .says("x-own", "new")
    };
    vec![
        case(section, "a HEAD with the same validators and length renews")
            .then(stored())
            .then(
                forwarded()
                    .says("etag", "\"a\"")
                    .says("last-modified", MODIFIED),
            )
            .then(
                get()
                    .after(A_SECOND_PASSES)
                    .hit()
                    .gets(200)
                    .has("x-own", "new"),
            ),
        case(section, "a HEAD with another tag makes it doubtful")
            .then(stored().cc("max-age=60"))
            .then(
                forwarded()
                    .says("etag", "\"b\"")
                    .says("last-modified", MODIFIED),
            )
            .then(get().either().gets(200).lacks_part("x-own", "old")),
        case(section, "a HEAD with another length makes it doubtful")
            .then(stored().cc("max-age=60"))
            .then(forwarded().says("etag", "\"a\"").content("a longer answer"))
            .then(get().either().gets(200).lacks_part("x-own", "old")),
        case(section, "a HEAD with another date makes it doubtful")
            .then(stored().cc("max-age=60"))
            .then(forwarded().says("last-modified", LATER))
            .then(get().either().gets(200).lacks_part("x-own", "old")),
        case(section, "a stale answer to GET is validated for HEAD")
            .then(stored())
            .then(
                head()
                    .after(A_SECOND_PASSES)
                    .answers(304)
                    .says("etag", "\"a\"")
                    .asked()
                    .gets(200)
                    .has("content-length", "8"),
            ),
    ]
}
