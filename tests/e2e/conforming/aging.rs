//! How long a stored answer is fresh (RFC 9111 §4.2, §5.1 to §5.3; RFC 9213).

use super::{Case, MODIFIED, case, get, kept, kept_if};

/// Rows that follow from one section: the fields of an answer, one after another, and whether it is
/// fresh when it comes. `{modified}` is a date long past.
type Section = (&'static str, &'static [(&'static str, bool)]);

const FRESH: bool = true;
const STALE: bool = false;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let tables = [LIFETIMES, EXPIRES, AGES, GUESSES, TARGETED, SURROGATE];
    for (section, rows) in tables.into_iter().flatten() {
        for (fields, fresh) in *rows {
            // With a validator, so that it is worth keeping even when it is stale at once.
            let answer = fields.split(" | ").fold(get(), |answer, field| {
                let (name, value) = field.split_once(':').unwrap_or((field, ""));
                answer.says(name, &value.trim_start().replace("{modified}", MODIFIED))
            });
            let verb = if *fresh { "is fresh" } else { "is stale" };
            let name = format!("{fields} {verb}");
            cases.push(kept_if(*fresh, section, name, answer.says("etag", "\"a\"")));
        }
    }
    cases.extend(others());
    cases
}

const LIFETIMES: &[Section] = &[
    (
        "9111 §4.2.1",
        &[
            ("cache-control: max-age=60", FRESH),
            ("cache-control: s-maxage=60", FRESH),
            ("cache-control: max-age=0, s-maxage=60", FRESH),
            ("cache-control: max-age=60, s-maxage=0", STALE),
            ("cache-control: max-age=60, s-maxage=x", STALE),
            ("cache-control: max-age=60; public", STALE),
            ("cache-control: max-age=60 public", STALE),
            ("cache-control: max-age=60, public; x", FRESH),
            ("cache-control: s-maxage=60, s-maxage=0", STALE),
            ("cache-control: s-maxage=0, s-maxage=60", STALE),
            ("cache-control: s-maxage=\"60\"", FRESH),
            ("cache-control: public | expires: {+60}", FRESH),
            ("cache-control: s-maxage=60 | expires: {-60}", FRESH),
            ("cache-control: s-maxage=0 | expires: {+60}", STALE),
            ("cache-control: max-age=60 | expires: {-60}", FRESH),
            ("cache-control: max-age=60 | expires: 0", FRESH),
            ("cache-control: max-age=0 | expires: {+60}", STALE),
            (
                "cache-control: max-age=0 | last-modified: {modified}",
                STALE,
            ),
            (
                "cache-control: max-age=60 | cache-control: s-maxage=0",
                STALE,
            ),
            ("cache-control: max-age=60, max-age=0", STALE),
            ("cache-control: max-age=0, max-age=60", STALE),
            (
                "cache-control: max-age=60 | cache-control: max-age=0",
                STALE,
            ),
            (
                "cache-control: max-age=0 | cache-control: max-age=60",
                STALE,
            ),
            ("cache-control: max-age=60, max-age=60", FRESH),
            ("cache-control: max-age=-60", STALE),
            ("cache-control: max-age=+60", STALE),
            ("cache-control: max-age=60.5", STALE),
            ("cache-control: max-age=6e1", STALE),
            ("cache-control: max-age=60s", STALE),
            ("cache-control: max-age=a60", STALE),
            ("cache-control: max-age='60'", STALE),
            ("cache-control: max-age=", STALE),
            ("cache-control: max-age", STALE),
            ("cache-control: max-age =60", STALE),
            ("cache-control: max-age= 60", STALE),
            (
                "cache-control: max-age=x | last-modified: {modified}",
                STALE,
            ),
        ],
    ),
    (
        "9111 §1.2.2",
        &[
            ("cache-control: max-age=2147483648", FRESH),
            ("cache-control: max-age=4294967296", FRESH),
            ("cache-control: max-age=99999999999999999999999", FRESH),
            ("cache-control: max-age=0060", FRESH),
        ],
    ),
    (
        "9111 §5.2",
        &[
            ("cache-control: max-age=\"60\"", FRESH),
            ("cache-control: MAX-AGE=60", FRESH),
            (
                "cache-control: Max-Age=0 | last-modified: {modified}",
                STALE,
            ),
            ("cache-control: max-age=0, S-MaxAge=60", FRESH),
            ("cache-control: public,max-age=60", FRESH),
            ("cache-control: public\t,\tmax-age=60", FRESH),
            ("cache-control: , ,max-age=60", FRESH),
        ],
    ),
    (
        "9111 §5.2.3",
        &[
            ("cache-control: x=\"max-age=60\"", STALE),
            ("cache-control: x=\"a, max-age=60\"", STALE),
            ("cache-control: x=\"a, max-age=0\", max-age=60", FRESH),
            ("cache-control: x=\"\\\", max-age=0\", max-age=60", FRESH),
            ("cache-control: x-max-age=60", STALE),
            ("cache-control: max-aged=60", STALE),
            ("cache-control: max-age=60, x=y", FRESH),
            ("cache-control: x=y, max-age=60", FRESH),
        ],
    ),
    ("9111 §4.2", &[("x-nothing: 1", STALE)]),
];

const EXPIRES: &[Section] = &[
    (
        "9111 §5.3",
        &[
            ("expires: {+60}", FRESH),
            ("expires: {-60}", STALE),
            ("expires: {+0}", STALE),
            ("expires: {rfc850 +60}", FRESH),
            ("expires: {rfc850 -60}", STALE),
            ("expires: {asctime +60}", FRESH),
            ("expires: {asctime -60}", STALE),
            ("expires: Fri, 31 Dec 9999 23:59:59 GMT", FRESH),
            ("expires: 0 | last-modified: {modified}", STALE),
            ("expires: -1 | last-modified: {modified}", STALE),
            ("expires: | last-modified: {modified}", STALE),
            ("expires: never | last-modified: {modified}", STALE),
            ("expires: 60 | last-modified: {modified}", STALE),
            (
                "expires: Thu, 31 Dec 2099 23:59:59 UTC | last-modified: {modified}",
                STALE,
            ),
            (
                "expires: Thu, 31 Dec 2099 23:59:59 EST | last-modified: {modified}",
                STALE,
            ),
            (
                "expires: Thu, 31 Dec 2099 23:59:59 +0100 | last-modified: {modified}",
                STALE,
            ),
            (
                "expires: Thu, 31 Dec 2099 23:59:59 | last-modified: {modified}",
                STALE,
            ),
            (
                "expires: 2099-12-31T23:59:59Z | last-modified: {modified}",
                STALE,
            ),
            (
                "expires: Thu, 31-Dec-2099 23:59:59 GMT | last-modified: {modified}",
                STALE,
            ),
            (
                "expires: Thu 31 Dec 2099 23:59:59 GMT | last-modified: {modified}",
                STALE,
            ),
            (
                "expires: Thu, 31 Dec 2099  23:59:59 GMT | last-modified: {modified}",
                STALE,
            ),
            (
                "expires: Fri, 1 Jan 2100 00:00:00 GMT | last-modified: {modified}",
                STALE,
            ),
            (
                "expires: Thu, 31 Dec 99 23:59:59 GMT | last-modified: {modified}",
                STALE,
            ),
            (
                "expires: Thu, 31 Dec 2099 25:59:59 GMT | last-modified: {modified}",
                STALE,
            ),
            (
                "expires: Thu, 32 Dec 2099 23:59:59 GMT | last-modified: {modified}",
                STALE,
            ),
            (
                "expires: \"Thu, 31 Dec 2099 23:59:59 GMT\" | last-modified: {modified}",
                STALE,
            ),
            ("expires: {+60} | expires: {-60}", STALE),
            ("expires: {-60} | expires: {+60}", STALE),
            ("expires: {+60} | date: {-30}", FRESH),
            ("expires: {+60} | date:", FRESH),
            ("expires: {+60} | date: today", FRESH),
        ],
    ),
    (
        "9111 §4.2.1",
        &[
            ("expires: {-90} | date: {-90}", STALE),
            ("expires: {+60} | date: {+90}", STALE),
        ],
    ),
];

const AGES: &[Section] = &[
    (
        "9111 §5.1",
        &[
            ("cache-control: max-age=60 | age: 30", FRESH),
            ("cache-control: max-age=60 | age: 90", STALE),
            ("cache-control: max-age=60 | age: 60", STALE),
            ("cache-control: s-maxage=60 | age: 90", STALE),
            ("expires: {+60} | age: 90", STALE),
            ("cache-control: max-age=60 | age: 0", FRESH),
            ("cache-control: max-age=4294967296 | age: 4294967296", STALE),
            ("cache-control: max-age=60 | age: 0090", STALE),
            ("cache-control: max-age=60 | age: 2147483648", STALE),
            (
                "cache-control: max-age=60 | age: 99999999999999999999",
                STALE,
            ),
            ("cache-control: max-age=60 | age: -90", FRESH),
            ("cache-control: max-age=60 | age: 90.5", FRESH),
            ("cache-control: max-age=60 | age: 90s", FRESH),
            ("cache-control: max-age=60 | age: \"90\"", FRESH),
            ("cache-control: max-age=60 | age:", FRESH),
            ("cache-control: max-age=60 | age: 30, 90", FRESH),
            ("cache-control: max-age=60 | age: 90, 30", STALE),
            ("cache-control: max-age=60 | age: 30 | age: 90", FRESH),
            ("cache-control: max-age=60 | age: 90 | age: 30", STALE),
        ],
    ),
    (
        "9111 §4.2.3",
        &[
            ("cache-control: max-age=60 | date: {-90}", STALE),
            ("cache-control: max-age=60 | date: {-30}", FRESH),
            ("cache-control: max-age=60 | date: {+90}", FRESH),
            ("cache-control: max-age=60 | date: {modified}", STALE),
            (
                "cache-control: max-age=60 | date: Fri, 31 Dec 9999 23:59:59 GMT",
                FRESH,
            ),
            ("cache-control: max-age=60 | date: {-90} | age: 1", STALE),
            ("cache-control: max-age=60 | date: {-1} | age: 90", STALE),
            ("cache-control: max-age=60 | date: {rfc850 -90}", STALE),
        ],
    ),
    (
        "9110 §6.6.1",
        &[
            ("cache-control: max-age=60 | date:", FRESH),
            ("cache-control: max-age=60 | date: yesterday", FRESH),
        ],
    ),
];

const GUESSES: &[Section] = &[(
    "9111 §4.2.2",
    &[
        ("last-modified: {modified}", FRESH),
        ("last-modified: Sunday, 06-Nov-94 08:49:37 GMT", FRESH),
        ("last-modified: Sun Nov  6 08:49:37 1994", FRESH),
        ("last-modified: {+0}", STALE),
        ("last-modified: {+600}", STALE),
        ("last-modified: long ago", STALE),
        ("last-modified: {-1000} | age: 20", FRESH),
        ("last-modified: {-1000} | age: 200", STALE),
        ("last-modified: {modified} | cache-control: no-cache", STALE),
        (
            "last-modified: {modified} | cache-control: must-revalidate",
            FRESH,
        ),
        ("cache-control: public", STALE),
        ("x-nothing: 1", STALE),
    ],
)];

/// RFC 9213: `CDN-Cache-Control` counts instead of `Cache-Control` and `Expires`.
const TARGETED: &[Section] = &[
    (
        "9213 §2.2",
        &[
            ("cdn-cache-control: max-age=60", FRESH),
            (
                "cdn-cache-control: max-age=60 | cache-control: max-age=0",
                FRESH,
            ),
            (
                "cdn-cache-control: max-age=60 | cache-control: s-maxage=0",
                FRESH,
            ),
            (
                "cdn-cache-control: max-age=60 | cache-control: no-store",
                FRESH,
            ),
            (
                "cdn-cache-control: max-age=60 | cache-control: no-cache",
                FRESH,
            ),
            (
                "cdn-cache-control: max-age=60 | cache-control: private",
                FRESH,
            ),
            ("cdn-cache-control: max-age=60 | expires: {-60}", FRESH),
            ("cdn-cache-control: max-age=60 | expires: 0", FRESH),
            (
                "cdn-cache-control: max-age=0 | cache-control: max-age=60",
                STALE,
            ),
            ("cdn-cache-control: max-age=0 | expires: {+60}", STALE),
            (
                "cdn-cache-control: no-store | cache-control: max-age=60",
                STALE,
            ),
            (
                "cdn-cache-control: no-cache | cache-control: max-age=60",
                STALE,
            ),
            (
                "cdn-cache-control: private | cache-control: max-age=60",
                STALE,
            ),
            ("cdn-cache-control: max-age=0, s-maxage=60", FRESH),
            ("cdn-cache-control: max-age=60 | age: 90", STALE),
            (
                "cdn-cache-control: max-age=600 | cache-control: max-age=60 | age: 90",
                FRESH,
            ),
            (
                "cdn-cache-control: x | cdn-cache-control: max-age=60",
                FRESH,
            ),
            (
                "cdn-cache-control: max-age=60 | cdn-cache-control: no-store",
                STALE,
            ),
        ],
    ),
    (
        "9213 §2.1",
        &[
            (
                "cdn-cache-control: max-age=60;x=1;y | cache-control: max-age=0",
                FRESH,
            ),
            (
                "cdn-cache-control: x=\"a, b\", max-age=60 | cache-control: max-age=0",
                FRESH,
            ),
            (
                "cdn-cache-control: x=(a b), max-age=60 | cache-control: max-age=0",
                FRESH,
            ),
            (
                "cdn-cache-control: max-age=0, max-age=60 | cache-control: max-age=0",
                FRESH,
            ),
            (
                "cdn-cache-control: max-age=60, max-age=0 | cache-control: max-age=60",
                STALE,
            ),
            ("cdn-cache-control: max-age=\"60\"", STALE),
            ("cdn-cache-control: max-age=60.5", STALE),
            ("cdn-cache-control: max-age", STALE),
            ("cdn-cache-control: max-age=-60", STALE),
            ("cdn-cache-control: max-age=?1", STALE),
            ("cdn-cache-control: max-age=(60)", STALE),
            ("cdn-cache-control: max-age=sixty", STALE),
            ("cdn-cache-control: max-age=:NjA=:", STALE),
            ("cdn-cache-control: x=1.5;y=\"z\", max-age=60;q=(", STALE),
            (
                "cdn-cache-control: max-age=60; | cdn-cache-control: no-store | cache-control: max-age=60",
                FRESH,
            ),
            (
                "cdn-cache-control: max-age=60\t,\tx | cache-control: max-age=0",
                FRESH,
            ),
            (
                "cdn-cache-control: max-age=60,x=*tok/en:1 | cache-control: max-age=0",
                FRESH,
            ),
            (
                "cdn-cache-control: *x, max-age=60 | cache-control: max-age=0",
                FRESH,
            ),
            (
                "cdn-cache-control: max-age=60, x=\"ä\" | cache-control: max-age=0",
                STALE,
            ),
            (
                "cdn-cache-control: max-age=60; | cache-control: max-age=0",
                STALE,
            ),
            (
                "cdn-cache-control: max-age=0; | cache-control: max-age=60",
                FRESH,
            ),
            (
                "cdn-cache-control: Max-Age=60 | cache-control: max-age=0",
                STALE,
            ),
            (
                "cdn-cache-control: Max-Age=0 | cache-control: max-age=60",
                FRESH,
            ),
            (
                "cdn-cache-control: No-Store | cache-control: max-age=60",
                FRESH,
            ),
            (
                "cdn-cache-control: max-age=60, | cache-control: max-age=0",
                STALE,
            ),
            (
                "cdn-cache-control: max-age=60, , x | cache-control: max-age=0",
                STALE,
            ),
            (
                "cdn-cache-control: max-age = 60 | cache-control: max-age=0",
                STALE,
            ),
            (
                "cdn-cache-control: max-age=1234567890123456 | cache-control: max-age=0",
                STALE,
            ),
            (
                "cdn-cache-control: max-age=60, x=\"a | cache-control: max-age=0",
                STALE,
            ),
            ("cdn-cache-control: | cache-control: max-age=60", FRESH),
            ("cdn-cache-control: | cache-control: max-age=0", STALE),
        ],
    ),
];

/// The Edge Architecture Specification's field, which CDNs heed like the one of RFC 9213.
const SURROGATE: &[Section] = &[(
    "Surrogate-Control",
    &[
        (
            "surrogate-control: max-age=60 | cache-control: max-age=0",
            FRESH,
        ),
        (
            "surrogate-control: max-age=0 | cache-control: max-age=60",
            STALE,
        ),
        ("surrogate-control: max-age=60 | expires: {-60}", FRESH),
        (
            "surrogate-control: max-age=60 | cache-control: no-cache",
            FRESH,
        ),
        (
            "surrogate-control: no-store | cache-control: max-age=60",
            STALE,
        ),
        (
            "surrogate-control: content=\"ESI/1.0\", max-age=60 | cache-control: max-age=0",
            FRESH,
        ),
        (
            "surrogate-control: content=\"ESI/1.0\" | cache-control: max-age=60",
            FRESH,
        ),
        (
            "surrogate-control: max-age=60 | cdn-cache-control: max-age=0",
            STALE,
        ),
    ],
)];

fn others() -> Vec<Case> {
    vec![
        kept(
            "9111 §4.2",
            "what is fresh for long is not asked for",
            get().cc("max-age=3600"),
        ),
        case("9111 §4.2", "what has become stale is asked for")
            .then(get().cc("max-age=1"))
            .then(get().after(super::A_SECOND_PASSES)),
        case("9111 §5.1", "Age counts from the origin's")
            .then(get().cc("max-age=600").says("age", "100"))
            .then(get().hit().part("age", "10")),
        case("9111 §5.1", "Age is there once")
            .then(get().cc("max-age=600").says("age", "100"))
            .then(get().after(super::A_SECOND_PASSES).hit().has("age", "102")),
        case("9111 §5.1", "what the origin has just made has no Age")
            .then(get().cc("max-age=60").lacks("age")),
        case(
            "9111 §5.1",
            "what the origin has just made and is not stored has no Age",
        )
        .then(get().cc("no-store").lacks("age")),
        case("9111 §5.1", "what the origin has just confirmed has no Age")
            .then(
                get()
                    .cc("max-age=60")
                    .says("age", "90")
                    .says("etag", "\"a\""),
            )
            .then(
                get()
                    .answers(304)
                    .says("etag", "\"a\"")
                    .validated()
                    .lacks("age"),
            ),
        case("9111 §5.1", "the Age of what another cache had goes on")
            .then(get().cc("max-age=60").says("age", "30").has("age", "30")),
        case("9111 §5.1", "a hit has an Age")
            .then(get().cc("max-age=60"))
            .then(get().hit().has("age", "0")),
        case("9111 §5.1", "Age grows")
            .then(get().cc("max-age=60"))
            .then(get().after(super::A_SECOND_PASSES).hit().has("age", "2")),
        case(
            "9213 §2.2",
            "CDN-Cache-Control of a 304 counts instead of its Cache-Control",
        )
        .then(get().cc("max-age=1").says("etag", "\"a\""))
        .then(
            get()
                .after(super::A_SECOND_PASSES)
                .answers(304)
                .cc("no-store")
                .says("cdn-cache-control", "max-age=60")
                .says("etag", "\"a\"")
                .validated(),
        )
        .then(get().hit()),
        case(
            "9213 §2.1",
            "a field that CDN-Cache-Control names is not kept",
        )
        .then(
            get()
                .says("cdn-cache-control", "max-age=60, private=\"x-a\"")
                .says("x-a", "1"),
        )
        .then(get().hit().lacks("x-a")),
        case(
            "9213 §2.2",
            "must-revalidate of CDN-Cache-Control forbids stale answers",
        )
        .then(
            get()
                .says(
                    "cdn-cache-control",
                    "max-age=1, stale-if-error=60, must-revalidate",
                )
                .cc("max-age=60, stale-if-error=60")
                .says("etag", "\"a\""),
        )
        .then(get().after(super::A_SECOND_PASSES).answers(503).asked()),
        case(
            "9213 §2.2",
            "must-revalidate of Cache-Control forbids nothing beside CDN-Cache-Control",
        )
        .then(
            get()
                .says("cdn-cache-control", "max-age=1, stale-if-error=60")
                .cc("must-revalidate, max-age=60")
                .says("etag", "\"a\""),
        )
        .then(
            get()
                .after(super::A_SECOND_PASSES)
                .answers(503)
                .validated()
                .of(1),
        ),
        case("9213 §2", "CDN-Cache-Control goes on to the client")
            .then(get().says("cdn-cache-control", "max-age=60"))
            .then(get().hit().has("cdn-cache-control", "max-age=60")),
    ]
}
