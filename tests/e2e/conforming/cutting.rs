//! Ranges of a stored answer (RFC 9110 §14).

use super::{Case, EARLIER, Exchange, MODIFIED, case, get, head};

const WHOLE: &str = "0123456789";

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (range, first, last) in [
        ("bytes=0-0", 0, 0),
        ("bytes=0-4", 0, 4),
        ("bytes=2-5", 2, 5),
        ("bytes=9-9", 9, 9),
        ("bytes=5-", 5, 9),
        ("bytes=0-", 0, 9),
        ("bytes=-3", 7, 9),
        ("bytes=-10", 0, 9),
        ("bytes=-100", 0, 9),
        ("bytes=5-100", 5, 9),
        ("bytes=5-99999999999999999999999", 5, 9),
        ("BYTES=2-5", 2, 5),
        ("bytes= 2-5", 2, 5),
        ("bytes=2-5,", 2, 5),
        ("bytes=,2-5", 2, 5),
        ("bytes=2-5, 100-200", 2, 5),
    ] {
        cases.push(
            case("9110 §14.2", format!("{range:?} is {first} to {last}"))
                .then(stored())
                .then(
                    get()
                        .asks("range", range)
                        .hit()
                        .gets(206)
                        .body(&WHOLE[first..=last])
                        .has("content-range", &format!("bytes {first}-{last}/10"))
                        .has("content-length", &format!("{}", last + 1 - first))
                        .has("etag", "\"a\"")
                        .has("cache-control", "max-age=60"),
                ),
        );
    }
    for range in [
        "bytes=10-",
        "bytes=10-20",
        "bytes=100-",
        "bytes=-0",
        "bytes=10-, 20-",
    ] {
        cases.push(
            case("9110 §15.5.17", format!("{range} is not satisfiable"))
                .then(stored())
                .then(
                    get()
                        .asks("range", range)
                        .hit()
                        .gets(416)
                        .has("content-range", "bytes */10"),
                ),
        );
    }
    for range in [
        "lines=0-4",
        "bytes",
        "bytes=",
        "bytes=a-b",
        "bytes=5-2",
        "bytes=2-a",
        "bytes=2",
        "bytes=--2",
        "bytes 2-5",
        "=2-5",
        "bytes=2 -5",
        "bytes=0x1-5",
        "bytes=2-5-7",
    ] {
        cases.push(
            case("9110 §14.2", format!("{range:?} is ignored"))
                .then(stored())
                .then(get().asks("range", range).hit().lacks("content-range")),
        );
    }
    cases.extend(several());
    cases.extend(conditions());
    cases.extend(others());
    cases
}

fn stored() -> Exchange {
    get()
        .content(WHOLE)
        .cc("max-age=60")
        .says("etag", "\"a\"")
        .says("last-modified", MODIFIED)
        .says("content-type", "text/plain")
}

fn several() -> Vec<Case> {
    let section = "9110 §14.6";
    vec![
        case(section, "two ranges are parts with their own Content-Range")
            .then(
                get()
                    .content("0123456789".repeat(100))
                    .cc("max-age=60")
                    .says("content-type", "text/plain"),
            )
            .then(
                get()
                    .asks("range", "bytes=0-1, 500-502")
                    .hit()
                    .gets(206)
                    .lacks("content-range")
                    .part("content-type", "multipart/byteranges; boundary=")
                    .body_part("Content-Range: bytes 0-1/1000\r\n\r\n01\r\n--")
                    .body_part("Content-Range: bytes 500-502/1000")
                    .body_part("\r\n\r\n012\r\n--"),
            ),
        case(
            "9110 §14.2",
            "two ranges that overlap are one, or the whole, or parts",
        )
        .then(stored())
        .then(get().asks("range", "bytes=0-4, 3-6").either().gets(206)),
        case("9110 §14.2", "ranges without number are not worth it")
            .then(stored())
            .then(
                get()
                    .asks("range", &format!("bytes={}", vec!["0-9"; 500].join(",")))
                    .hit()
                    .gets(200)
                    .body(WHOLE),
            ),
    ]
}

/// RFC 9110 §13.1.5 and §13.2.2.
fn conditions() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, value, status) in [
        ("the tag", "\"a\"", 206),
        ("another tag", "\"b\"", 200),
        ("the tag made weak", "W/\"a\"", 200),
        ("the tag without quotes", "a", 200),
        ("an earlier date", EARLIER, 200),
        ("a date that was long ago when it was sent", MODIFIED, 206),
        ("nothing", "", 200),
    ] {
        let asked = get()
            .asks("range", "bytes=2-5")
            .asks("if-range", value)
            .hit();
        let asked = if status == 206 {
            asked.gets(206).body(&WHOLE[2..=5])
        } else {
            asked.gets(200).body(WHOLE)
        };
        cases.push(
            case("9110 §13.1.5", format!("If-Range with {name}: {status}"))
                .then(stored())
                .then(asked),
        );
    }
    cases.push(
        case("9110 §13.1.5", "If-Range with a weak stored tag: 200")
            .then(
                get()
                    .content(WHOLE)
                    .cc("max-age=60")
                    .says("etag", "W/\"a\""),
            )
            .then(
                get()
                    .asks("range", "bytes=2-5")
                    .asks("if-range", "W/\"a\"")
                    .hit(),
            ),
    );
    cases.push(
        case(
            "9110 §13.1.5",
            "If-Range with a date that is not strong: 200",
        )
        .then(
            get()
                .content(WHOLE)
                .cc("max-age=60")
                .says("last-modified", "{+0}"),
        )
        .then(
            get()
                .asks("range", "bytes=2-5")
                .asks("if-range", "{+0}")
                .hit(),
        ),
    );
    cases.push(
        case(
            "9110 §13.2.2",
            "If-None-Match that holds comes before Range: 304",
        )
        .then(stored())
        .then(
            get()
                .asks("range", "bytes=2-5")
                .asks("if-none-match", "\"a\"")
                .hit()
                .gets(304),
        ),
    );
    cases.push(
        case(
            "9110 §13.2.2",
            "If-None-Match that does not hold lets Range through: 206",
        )
        .then(stored())
        .then(
            get()
                .asks("range", "bytes=2-5")
                .asks("if-none-match", "\"b\"")
                .hit()
                .gets(206)
                .body("2345"),
        ),
    );
    cases.push(
        case(
            "9110 §13.2.2",
            "If-Range that does not hold with a Range out of bounds: 200",
        )
        .then(stored())
        .then(
            get()
                .asks("range", "bytes=50-")
                .asks("if-range", "\"b\"")
                .hit()
                .gets(200)
                .body(WHOLE),
        ),
    );
    cases
}

fn others() -> Vec<Case> {
    vec![
        case("9110 §14.2", "Range does not matter to HEAD")
            .then(stored())
            .then(
                head()
                    .asks("range", "bytes=2-5")
                    .hit()
                    .has("content-length", "10"),
            ),
        case("9110 §14.2", "Range does not matter to a stored 404")
            .then(get().answers(404).content(WHOLE).cc("max-age=60"))
            .then(get().asks("range", "bytes=2-5").hit()),
        case("9110 §14.3", "what is stored accepts ranges")
            .then(stored())
            .then(get().hit().has("accept-ranges", "bytes")),
        case(
            "9110 §15.4.5",
            "a 304 has no say in ranges, by the short way",
        )
        .then(get().cc("max-age=60").says("etag", "\"a\""))
        .then(
            get()
                .asks("if-none-match", "\"a\"")
                .hit()
                .gets(304)
                .lacks("accept-ranges"),
        ),
        case(
            "9110 §15.4.5",
            "a 304 has no say in ranges, by the long way",
        )
        .then(get().cc("max-age=60").says("etag", "\"a\""))
        .then(
            get()
                .asks("if-none-match", "\"a\"")
                .asks("te", "trailers")
                .hit()
                .gets(304)
                .lacks("accept-ranges"),
        ),
        case(
            "9110 §14.2",
            "a range of a miss leaves the whole for others",
        )
        .then(
            get()
                .asks("range", "bytes=2-5")
                .content(WHOLE)
                .cc("max-age=60")
                .gets(206)
                .body("2345")
                .without("range"),
        )
        .then(get().hit()),
        case("9110 §14.2", "a range of what is stale is validated")
            .then(
                get()
                    .content(WHOLE)
                    .cc("max-age=60")
                    .says("age", "90")
                    .says("etag", "\"a\""),
            )
            .then(
                get()
                    .asks("range", "bytes=2-5")
                    .answers(304)
                    .cc("max-age=60")
                    .says("etag", "\"a\"")
                    .validated()
                    .gets(206)
                    .body("2345"),
            ),
        case("9110 §14.2", "a range of what has changed is of the new")
            .then(
                get()
                    .content(WHOLE)
                    .cc("max-age=60")
                    .says("age", "90")
                    .says("etag", "\"a\""),
            )
            .then(
                get()
                    .asks("range", "bytes=2-5")
                    .content("abcdefghij")
                    .cc("max-age=60")
                    .says("etag", "\"b\"")
                    .validated()
                    .gets(206)
                    .body("cdef"),
            ),
    ]
}
