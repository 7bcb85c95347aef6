//! What `Cache-Status` says (RFC 9211).

use super::{A_SECOND_PASSES, Case, case, get, head, request};

pub(super) fn cases() -> Vec<Case> {
    let stored = || get().cc("max-age=60").says("etag", "\"a\"");
    vec![
        case("9211 §2.1", "a hit is a hit, with its ttl")
            .then(stored())
            .then(
                get()
                    .hit()
                    .tells("edge-1; hit")
                    .part("cache-status", "ttl="),
            ),
        case("9211 §2.2", "a first request is a uri-miss that is stored")
            .then(stored().tells("fwd=uri-miss").tells("; stored")),
        case("9211 §2.2", "a request for another variant is a vary-miss")
            .then(stored().says("vary", "X-A").asks("x-a", "1"))
            .then(
                stored()
                    .says("vary", "X-A")
                    .asks("x-a", "2")
                    .asked()
                    .tells("fwd=vary-miss"),
            ),
        case("9211 §2.2", "what is stale is told so")
            .then(get().cc("max-age=1").says("etag", "\"a\""))
            .then(
                get()
                    .after(A_SECOND_PASSES)
                    .answers(304)
                    .says("etag", "\"a\"")
                    .validated()
                    .tells("fwd=stale")
                    .tells("fwd-status=304"),
            ),
        case("9211 §2.2", "what is stale and replaced is told so")
            .then(get().cc("max-age=1").says("etag", "\"a\""))
            .then(
                get()
                    .after(A_SECOND_PASSES)
                    .cc("max-age=60")
                    .validated()
                    .tells("fwd=stale")
                    .tells("; stored"),
            ),
        case(
            "9211 §2.2",
            "a request that does not want what is fresh is told so",
        )
        .then(stored())
        .then(
            stored()
                .asks("cache-control", "no-cache")
                .asked()
                .tells("fwd=request"),
        ),
        case("9211 §2.2", "max-age=0 does not want what is fresh either")
            .then(stored())
            .then(
                stored()
                    .asks("cache-control", "max-age=0")
                    .asked()
                    .tells("fwd=request"),
            ),
        case("9211 §2.2", "no-cache of what is not there is a miss").then(
            stored()
                .asks("cache-control", "no-cache")
                .tells("fwd=uri-miss"),
        ),
        case(
            "9211 §2.2",
            "what is fresh and confirmed on request is told so",
        )
        .then(stored())
        .then(
            get()
                .asks("cache-control", "no-cache")
                .answers(304)
                .says("etag", "\"a\"")
                .validated()
                .tells("fwd=request")
                .tells("fwd-status=304"),
        ),
        case("9211 §2.2", "a variant that a 304 selects is told so")
            .then(stored().says("vary", "X-A").asks("x-a", "1"))
            .then(
                stored()
                    .says("vary", "X-A")
                    .asks("x-a", "2")
                    .answers(304)
                    .validated()
                    .tells("fwd=vary-miss")
                    .tells("fwd-status=304"),
            ),
        case("9211 §2.2", "what is missing of a part is told so")
            .then(
                stored()
                    .asks("range", "bytes=0-4")
                    .answers(206)
                    .says("content-range", "bytes 0-4/10")
                    .content("01234"),
            )
            .then(
                stored()
                    .answers(206)
                    .says("content-range", "bytes 5-9/10")
                    .content("56789")
                    .asked()
                    .gets(200)
                    .body("0123456789")
                    .tells("fwd=partial"),
            ),
        case("9211 §2.1", "a part that is kept is a hit")
            .then(
                stored()
                    .asks("range", "bytes=0-4")
                    .answers(206)
                    .says("content-range", "bytes 0-4/10")
                    .content("01234"),
            )
            .then(
                get()
                    .asks("range", "bytes=1-2")
                    .hit()
                    .gets(206)
                    .body("12")
                    .tells("; hit"),
            ),
        case(
            "9211 §2.2",
            "what is never stored is told to be a miss every time",
        )
        .then(
            get()
                .cc("no-store")
                .tells("fwd=")
                .lacks_part("cache-status", "stored"),
        )
        .then(
            get()
                .cc("no-store")
                .tells("fwd=")
                .lacks_part("cache-status", "hit"),
        ),
        case("9211 §2.1", "a hit has no reason to go forward")
            .then(stored())
            .then(get().hit().lacks_part("cache-status", "fwd")),
        case("9211 §2.2", "an origin that does not answer is told")
            .then(get().closes().gets(502).tells("fwd=")),
        case(
            "9211 §2.2",
            "a validation that fails is told to be of what is stale",
        )
        .then(get().cc("max-age=1, must-revalidate").says("etag", "\"a\""))
        .then(
            get()
                .after(A_SECOND_PASSES)
                .closes()
                .asked()
                .gets(502)
                .tells("fwd=stale"),
        ),
        case("9211 §2.2", "a POST that fails is told to be one")
            .then(request("POST").closes().gets(502).tells("fwd=method")),
        case(
            "9211 §2.2",
            "only-if-cached of what is not there is neither a hit nor goes forward",
        )
        .then(
            get()
                .asks("cache-control", "only-if-cached")
                .hit()
                .gets(504)
                .tells("edge-1; detail=\"only-if-cached\""),
        ),
        case("9211 §2.2", "a POST is told to be one").then(request("POST").tells("fwd=method")),
        case("9211 §2.2", "an unknown method is told to be one")
            .then(request("FOO").tells("fwd=method")),
        case("9211 §2.2", "a GET with a body passes by").then(get().sends("x").tells("fwd=bypass")),
        case(
            "9211 §2.3",
            "an answer that is not stored is not told to be",
        )
        .then(
            get()
                .cc("no-store")
                .tells("fwd=uri-miss")
                .tells("detail=\"origin\""),
        ),
        case("9211 §2.6", "a hit has a ttl that falls")
            .then(get().cc("max-age=600"))
            .then(get().after(A_SECOND_PASSES).hit().tells("ttl=598")),
        case("9211 §2.5", "a stale hit has a negative ttl")
            .then(
                get()
                    .cc("max-age=60, stale-while-revalidate=60")
                    .says("age", "90"),
            )
            .then(get().behind().tells("hit").tells("ttl=-30")),
        case(
            "9211 §2.5",
            "a stale answer instead of an error has a negative ttl, and the origin was asked",
        )
        .then(
            get()
                .cc("max-age=60, stale-if-error=60")
                .says("age", "90")
                .says("etag", "\"a\""),
        )
        .then(
            get()
                .answers(503)
                .validated()
                .of(1)
                .tells("fwd=stale; ttl=-30"),
        ),
        case("9211 §2", "what other caches said stays in front")
            .then(
                stored()
                    .says("cache-status", "shield; hit")
                    .tells("shield; hit, edge-1; fwd=uri-miss"),
            )
            .then(get().hit().tells("shield; hit, edge-1; hit")),
        case("9211 §2.1", "a 304 from the store is a hit")
            .then(stored())
            .then(
                get()
                    .asks("if-none-match", "\"a\"")
                    .hit()
                    .gets(304)
                    .tells("; hit"),
            ),
        case("9211 §2.1", "a part from the store is a hit")
            .then(stored())
            .then(
                get()
                    .asks("range", "bytes=0-1")
                    .hit()
                    .gets(206)
                    .tells("; hit"),
            ),
        case("9211 §2.1", "a HEAD from the store is a hit")
            .then(stored())
            .then(head().hit().tells("; hit")),
        case(
            "9211 §2.2",
            "what is not there and only wanted from the store is no hit",
        )
        .then(
            get()
                .asks("cache-control", "only-if-cached")
                .hit()
                .gets(504),
        ),
    ]
}
