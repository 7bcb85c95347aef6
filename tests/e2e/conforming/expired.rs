//! What may be done with a stale answer (RFC 9111 §4.2.4, RFC 5861, RFC 8246).

use super::{A_SECOND_PASSES, Case, Exchange, case, get};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = behind();
    cases.extend(instead_of_errors());
    cases.extend(immutable());
    cases
}

/// A GET when what was fresh for a second no longer is.
fn later() -> Exchange {
    get().after(A_SECOND_PASSES)
}

fn behind() -> Vec<Case> {
    let mut cases = vec![
        case(
            "5861 §3",
            "within the window the stale answer is used, and validated behind",
        )
        .then(
            get()
                .cc("max-age=1, stale-while-revalidate=60")
                .says("etag", "\"a\""),
        )
        .then(
            later()
                .answers(304)
                .cc("max-age=60")
                .says("etag", "\"a\"")
                .behind()
                .of(1)
                .with("if-none-match", "\"a\""),
        )
        .then(get().after(A_SECOND_PASSES).hit()),
        case("5861 §3", "what comes behind replaces the stale answer")
            .then(get().cc("max-age=1, stale-while-revalidate=60"))
            .then(later().cc("max-age=60").behind())
            .then(get().after(A_SECOND_PASSES / 4).hit().of(2)),
        case("5861 §3", "an error behind leaves the stale answer")
            .then(get().cc("max-age=1, stale-while-revalidate=60, stale-if-error=60"))
            .then(later().answers(503).behind())
            .then(get().after(A_SECOND_PASSES / 4).answers(503).behind()),
        case("5861 §3", "max-age=0 has a window too")
            .then(get().cc("max-age=0, stale-while-revalidate=60"))
            .then(get().cc("max-age=0, stale-while-revalidate=60").behind()),
        case("5861 §3", "outside the window it is asked for first")
            .then(
                get()
                    .cc("max-age=1, stale-while-revalidate=1")
                    .says("etag", "\"a\""),
            )
            .then(later().after(A_SECOND_PASSES * 3 / 2).asked()),
        case("5861 §3", "no window, no stale answer")
            .then(
                get()
                    .cc("max-age=1, stale-while-revalidate=0")
                    .says("etag", "\"a\""),
            )
            .then(later().asked()),
        case("5861 §3", "a window that is no number is none")
            .then(
                get()
                    .cc("max-age=1, stale-while-revalidate=x")
                    .says("etag", "\"a\""),
            )
            .then(later().asked()),
        case("5861 §3", "a stale answer is told to be one")
            .then(get().cc("max-age=1, stale-while-revalidate=60"))
            .then(
                later()
                    .behind()
                    .has("age", "2")
                    .tells("hit")
                    .tells("ttl=-1"),
            ),
        case(
            "5861 §3",
            "a window counts from the end of the lifetime, with Age",
        )
        .then(
            get()
                .cc("max-age=60, stale-while-revalidate=60")
                .says("age", "90"),
        )
        .then(get().cc("max-age=60").behind()),
        case("5861 §3", "a window that Age has passed is none")
            .then(
                get()
                    .cc("max-age=60, stale-while-revalidate=60")
                    .says("age", "150"),
            )
            .then(get().asked()),
        case("5861 §3", "who says no-cache does not get a stale answer")
            .then(
                get()
                    .cc("max-age=1, stale-while-revalidate=60")
                    .says("etag", "\"a\""),
            )
            .then(
                later()
                    .asks("cache-control", "no-cache")
                    .cc("max-age=60")
                    .asked(),
            ),
        case("5861 §3", "who wants it fresh does not get a stale answer")
            .then(
                get()
                    .cc("max-age=1, stale-while-revalidate=60")
                    .says("etag", "\"a\""),
            )
            .then(
                later()
                    .asks("cache-control", "min-fresh=1")
                    .cc("max-age=60")
                    .asked(),
            ),
        case("5861 §3", "a range of a stale answer is one, too")
            .then(
                get()
                    .cc("max-age=1, stale-while-revalidate=60")
                    .says("etag", "\"a\""),
            )
            .then(
                later()
                    .asks("range", "bytes=0-1")
                    .cc("max-age=60")
                    .says("etag", "\"b\"")
                    .behind()
                    .gets(206)
                    .body("an")
                    .without("range"),
            )
            .then(get().after(A_SECOND_PASSES / 4).hit().of(2)),
        case("5861 §3", "what comes behind may be 404")
            .then(get().cc("max-age=1, stale-while-revalidate=60"))
            .then(later().answers(404).cc("max-age=60").behind())
            .then(get().after(A_SECOND_PASSES / 4).hit().of(2)),
        case("5861 §3", "what comes behind and is private removes")
            .then(get().cc("max-age=1, stale-while-revalidate=60"))
            .then(later().cc("private").behind())
            .then(get().after(A_SECOND_PASSES / 4).asked()),
        case("9213 §2", "CDN-Cache-Control may give the window")
            .then(
                get()
                    .says("cdn-cache-control", "max-age=1, stale-while-revalidate=60")
                    .cc("no-store"),
            )
            .then(later().cc("max-age=60").behind()),
    ];
    for forbidding in [
        "must-revalidate",
        "proxy-revalidate",
        "s-maxage=1",
        "no-cache",
    ] {
        cases.push(
            case("9111 §4.2.4", format!("{forbidding} forbids the window"))
                .then(
                    get()
                        .cc(&format!(
                            "max-age=1, stale-while-revalidate=60, {forbidding}"
                        ))
                        .says("etag", "\"a\""),
                )
                .then(later().asked()),
        );
    }
    cases
}

fn instead_of_errors() -> Vec<Case> {
    let mut cases = Vec::new();
    let tagged = |said: &str| get().cc(said).says("etag", "\"a\"");
    for status in [500, 502, 503, 504] {
        cases.push(
            case("5861 §4", format!("{status} within the window"))
                .then(tagged("max-age=1, stale-if-error=60"))
                .then(later().answers(status).validated().of(1)),
        );
        cases.push(
            case("5861 §4", format!("{status} outside the window"))
                .then(tagged("max-age=1, stale-if-error=1"))
                .then(
                    later()
                        .after(A_SECOND_PASSES * 3 / 2)
                        .answers(status)
                        .asked(),
                ),
        );
        cases.push(
            case("5861 §4", format!("{status} without a window"))
                .then(tagged("max-age=1"))
                .then(later().answers(status).asked()),
        );
    }
    for status in [400, 403, 404, 410, 501] {
        cases.push(
            case(
                "5861 §4",
                format!("{status} is no error that a stale answer replaces"),
            )
            .then(tagged("max-age=1, stale-if-error=60"))
            .then(later().answers(status).asked()),
        );
    }
    cases.push(
        case("5861 §4", "an origin that closes, within the window")
            .then(tagged("max-age=1, stale-if-error=60"))
            .then(later().closes().validated().of(1)),
    );
    cases.push(
        case(
            "5861 §4",
            "an origin that breaks off in its head, within the window",
        )
        .then(tagged("max-age=1, stale-if-error=60"))
        .then(later().breaks().validated().of(1)),
    );
    cases.push(
        case("5861 §4", "an origin that closes, outside the window")
            .then(tagged("max-age=1, stale-if-error=1"))
            .then(
                later()
                    .after(A_SECOND_PASSES * 3 / 2)
                    .closes()
                    .asked()
                    .gets(502),
            ),
    );
    cases.push(
        case("9111 §4.2.4", "an origin that closes, and no window")
            .then(tagged("max-age=1"))
            .then(later().closes().asked().gets(502)),
    );
    cases.push(
        case("9111 §4.2.4", "an origin that closes, and nothing stored")
            .then(get().closes().gets(502)),
    );
    cases.push(
        case("5861 §4", "a request may bring the window")
            .then(tagged("max-age=1"))
            .then(
                later()
                    .asks("cache-control", "stale-if-error=60")
                    .answers(503)
                    .validated()
                    .of(1),
            ),
    );
    for forbidding in [
        "must-revalidate",
        "proxy-revalidate",
        "s-maxage=1",
        "no-cache",
    ] {
        let said = format!("max-age=1, stale-if-error=60, {forbidding}");
        cases.push(
            case(
                "9111 §4.2.4",
                format!("{forbidding} forbids the stale answer on 503"),
            )
            .then(tagged(&said))
            .then(later().answers(503).asked()),
        );
        cases.push(
            case(
                "9111 §4.2.4",
                format!("{forbidding} forbids the stale answer on a closing origin"),
            )
            .then(tagged(&said))
            .then(later().closes().asked().gets(502)),
        );
    }
    cases.push(
        case("5861 §4", "after an error the origin is asked again")
            .then(tagged("max-age=1, stale-if-error=60"))
            .then(later().answers(503).validated().of(1))
            .then(get().cc("max-age=60").validated())
            .then(get().hit().of(3)),
    );
    cases
}

fn immutable() -> Vec<Case> {
    let stored = || get().cc("max-age=60, immutable").says("etag", "\"a\"");
    vec![
        case("8246 §2", "a reload of what is immutable is not passed on")
            .then(stored())
            .then(get().asks("cache-control", "max-age=0").hit()),
        case("8246 §2", "a forced reload of what is immutable is")
            .then(stored())
            .then(get().asks("cache-control", "no-cache").asked()),
        case("8246 §2", "what is immutable is validated when it is stale")
            .then(get().cc("max-age=1, immutable").says("etag", "\"a\""))
            .then(later().answers(304).says("etag", "\"a\"").validated()),
        case("8246 §2", "immutable with a value is immutable")
            .then(get().cc("max-age=60, immutable=1").says("etag", "\"a\""))
            .then(get().asks("cache-control", "max-age=0").hit()),
    ]
}
