//! What clients ask of the cache (RFC 9111 §5.2.1, §5.4).

use super::{A_SECOND_PASSES, Case, case, get, head, kept_if};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = of_what_is_fresh();
    cases.extend(of_what_is_stale());
    cases.extend(others());
    cases
}

/// Of an answer that is 30 seconds old and fresh for 30 more.
fn of_what_is_fresh() -> Vec<Case> {
    let mut cases = Vec::new();
    for (section, said, hit) in [
        ("9111 §5.2.1.1", "max-age=0", false),
        ("9111 §5.2.1.1", "max-age=10", false),
        ("9111 §5.2.1.1", "max-age=50", true),
        ("9111 §5.2.1.1", "max-age=3600", true),
        ("9111 §5.2.1.1", "Max-Age=0", false),
        ("9111 §5.2.1.1", "max-age=\"0\"", false),
        ("9111 §5.2.1.2", "max-stale", true),
        ("9111 §5.2.1.2", "max-stale=60", true),
        ("9111 §5.2.1.3", "min-fresh=10", true),
        ("9111 §5.2.1.3", "min-fresh=50", false),
        ("9111 §5.2.1.3", "min-fresh=3600", false),
        ("9111 §5.2.1.4", "no-cache", false),
        ("9111 §5.2.1.4", "No-Cache", false),
        ("9111 §5.2.1.4", "max-age=60, no-cache", false),
        ("9111 §5.2.1.5", "no-store", true),
        ("9111 §5.2.1.6", "no-transform", true),
        ("9111 §5.2.1.7", "only-if-cached", true),
        ("9111 §5.2.3", "x-unknown=1", true),
        ("9111 §5.2.3", "x=\"no-cache\"", true),
    ] {
        let second = get().asks("cache-control", said);
        let second = if hit { second.hit() } else { second.asked() };
        cases.push(
            case(section, format!("a request with {said}, of what is fresh"))
                .then(
                    get()
                        .cc("max-age=60")
                        .says("age", "30")
                        .says("etag", "\"a\""),
                )
                .then(second),
        );
    }
    cases
}

/// Of an answer that has been stale for 30 seconds.
fn of_what_is_stale() -> Vec<Case> {
    let mut cases = Vec::new();
    for (said, hit) in [
        ("max-stale", true),
        ("max-stale=50", true),
        ("max-stale=10", false),
        ("max-stale=0", false),
        ("max-stale=x", false),
        ("max-stale=50, max-age=30", false),
        ("max-stale=50, max-age=120", true),
        ("max-age=120", false),
        ("max-stale, no-cache", false),
    ] {
        let second = get().asks("cache-control", said);
        // Nobody forbids to validate behind what is used stale.
        let second = if hit {
            second.either().of(1)
        } else {
            second.asked()
        };
        let second = if hit { second.tells("hit") } else { second };
        cases.push(
            case(
                "9111 §5.2.1.2",
                format!("a request with {said}, of what is stale"),
            )
            .then(
                get()
                    .cc("max-age=60")
                    .says("age", "90")
                    .says("etag", "\"a\""),
            )
            .then(second),
        );
    }
    for forbidding in [
        "must-revalidate",
        "proxy-revalidate",
        "s-maxage=60",
        "no-cache",
    ] {
        cases.push(
            case("9111 §4.2.4", format!("{forbidding} forbids max-stale"))
                .then(
                    get()
                        .cc(&format!("max-age=60, {forbidding}"))
                        .says("age", "90")
                        .says("etag", "\"a\""),
                )
                .then(get().asks("cache-control", "max-stale=600").asked()),
        );
    }
    cases
}

fn others() -> Vec<Case> {
    let mut cases = vec![
        case(
            "9111 §5.2.1.7",
            "only-if-cached without anything stored is 504",
        )
        .then(
            get()
                .asks("cache-control", "only-if-cached")
                .hit()
                .gets(504),
        ),
        case("9111 §5.2.1.7", "only-if-cached of what is stale is 504")
            .then(get().cc("max-age=1").says("etag", "\"a\""))
            .then(
                get()
                    .after(A_SECOND_PASSES)
                    .asks("cache-control", "only-if-cached")
                    .hit()
                    .gets(504),
            ),
        case(
            "9111 §5.2.1.7",
            "only-if-cached and max-stale of what is stale is a hit",
        )
        .then(get().cc("max-age=1").says("etag", "\"a\""))
        .then(
            get()
                .after(A_SECOND_PASSES)
                .asks("cache-control", "only-if-cached, max-stale")
                .either()
                .gets(200)
                .tells("hit"),
        ),
        case("9111 §5.2.1.7", "only-if-cached of another variant is 504")
            .then(get().cc("max-age=60").says("vary", "X-A").asks("x-a", "1"))
            .then(
                get()
                    .asks("cache-control", "only-if-cached")
                    .asks("x-a", "2")
                    .hit()
                    .gets(504),
            ),
        case("9111 §5.2.1.7", "only-if-cached and HEAD").then(
            head()
                .asks("cache-control", "only-if-cached")
                .hit()
                .gets(504),
        ),
        case("9111 §5.2.1.4", "what no-cache fetches is kept")
            .then(get().cc("max-age=60").says("etag", "\"a\""))
            .then(
                get()
                    .asks("cache-control", "no-cache")
                    .cc("max-age=60")
                    .says("etag", "\"b\"")
                    .asked(),
            )
            .then(get().hit().of(2)),
        case("9111 §5.2.1.4", "no-cache is validated")
            .then(get().cc("max-age=60").says("etag", "\"a\""))
            .then(
                get()
                    .asks("cache-control", "no-cache")
                    .answers(304)
                    .says("etag", "\"a\"")
                    .validated(),
            ),
        case("9111 §5.2.1.4", "no-cache on a miss is a miss that is kept")
            .then(get().asks("cache-control", "no-cache").cc("max-age=60"))
            .then(get().hit()),
        case(
            "9111 §5.2.1.1",
            "max-age=0 on a miss is a miss that is kept",
        )
        .then(get().asks("cache-control", "max-age=0").cc("max-age=60"))
        .then(get().hit()),
    ];
    for (first, second) in [
        ("x", "no-cache"),
        ("no-cache", "x"),
        ("max-age=600", "max-age=0"),
    ] {
        cases.push(
            case(
                "9110 §5.3",
                format!("a request with {first} and {second} on two lines"),
            )
            .then(
                get()
                    .cc("max-age=60")
                    .says("age", "1")
                    .says("etag", "\"a\""),
            )
            .then(
                get()
                    .asks("cache-control", first)
                    .asks("cache-control", second)
                    .asked(),
            ),
        );
    }
    cases.push(kept_if(
        false,
        "9111 §5.2.1.5",
        "what no-store in a request fetched",
        get().asks("cache-control", "no-store").cc("max-age=60"),
    ));
    for (fields, hit) in [
        (&[("pragma", "no-cache")][..], false),
        (&[("pragma", "No-Cache")], false),
        (&[("pragma", "x, no-cache")], false),
        (&[("pragma", "x")], true),
        (
            &[("pragma", "no-cache"), ("cache-control", "max-age=60")],
            true,
        ),
        (&[("pragma", "no-cache"), ("cache-control", "x")], true),
    ] {
        let second = (fields.iter()).fold(get(), |all, (name, value)| all.asks(name, value));
        let second = if hit { second.hit() } else { second.asked() };
        cases.push(
            case("9111 §5.4", format!("a request with {fields:?}"))
                .then(get().cc("max-age=60").says("etag", "\"a\""))
                .then(second),
        );
    }
    cases
}
