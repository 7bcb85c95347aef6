//! Parts that fit together, and those that only seem to (RFC 9111 §3.3, §3.4, RFC 9110 §14.4).

use super::{A_SECOND_PASSES, Case, Exchange, LATER, MODIFIED, case, get, head, request};

const WHOLE: &str = "0123456789";
const FIRST: &str = "bytes 0-4/10";
const LAST: &str = "bytes 5-9/10";

pub(super) fn cases() -> Vec<Case> {
    let mut cases = kept();
    cases.extend(strange());
    cases.extend(other_versions());
    cases
}

/// What the origin says to a request for the first half.
fn first() -> Exchange {
    get()
        .asks("range", "bytes=0-4")
        .answers(206)
        .says("content-range", FIRST)
        .content("01234")
}

/// What it says to a request for the other one.
fn last() -> Exchange {
    get()
        .asks("range", "bytes=5-9")
        .answers(206)
        .says("content-range", LAST)
        .content("56789")
}

fn tagged(exchange: Exchange) -> Exchange {
    exchange.cc("max-age=60").says("etag", "\"a\"")
}

/// A request for all of it, which an origin answers with all of it.
fn all() -> Exchange {
    get().content(WHOLE).asked().gets(200).body(WHOLE)
}

/// The first half once more.
fn again() -> Exchange {
    get().asks("range", "bytes=0-4")
}

fn kept() -> Vec<Case> {
    let section = "9111 §3.3";
    let mut cases = vec![
        case(section, "a suffix is answered from the last part")
            .then(tagged(last()))
            .then(
                get()
                    .asks("range", "bytes=-5")
                    .hit()
                    .gets(206)
                    .body("56789"),
            ),
        case(section, "an open range is answered from the last part")
            .then(tagged(last()))
            .then(get().asks("range", "bytes=7-").hit().gets(206).body("789")),
        case(section, "a range across the end of a part is asked for")
            .then(tagged(first()))
            .then(
                get()
                    .asks("range", "bytes=3-7")
                    .answers(206)
                    .cc("max-age=60")
                    .says("etag", "\"a\"")
                    .says("content-range", "bytes 3-7/10")
                    .content("34567")
                    .asked()
                    .gets(206)
                    .body("34567"),
            ),
        case(section, "a part is for who may have the answer")
            .then(tagged(first()).says("vary", "X-A").asks("x-a", "1"))
            .then(again().asks("x-a", "2").asked()),
        case(section, "a stale part is not used without being validated")
            .then(first().cc("max-age=1").says("etag", "\"a\""))
            .then(again().after(A_SECOND_PASSES).asked()),
        case(section, "a part that POST made doubtful is not used")
            .then(tagged(first()))
            .then(request("POST"))
            .then(again().asked()),
        case(section, "a condition that a part fulfils is answered")
            .then(tagged(first()))
            .then(again().asks("if-none-match", "\"a\"").either().gets(304)),
        case(section, "If-Range with another tag does not get a part")
            .then(tagged(first()))
            .then(
                again()
                    .asks("if-range", "\"b\"")
                    .content(WHOLE)
                    .asked()
                    .gets(200),
            ),
        case(section, "HEAD does not get the length of a part")
            .then(tagged(first()))
            .then(
                head()
                    .content(WHOLE)
                    .either()
                    .gets(200)
                    .has("content-length", "10"),
            ),
        case(section, "a part that is all of it may be taken for it")
            .then(
                tagged(get().asks("range", "bytes=0-"))
                    .answers(206)
                    .says("content-range", "bytes 0-9/10")
                    .content(WHOLE),
            )
            .then(get().content(WHOLE).either().gets(200).body(WHOLE)),
        case("9111 §3.4", "parts with one strong date make a whole")
            .then(first().cc("max-age=60").says("last-modified", MODIFIED))
            .then(
                last()
                    .cc("max-age=60")
                    .says("last-modified", MODIFIED)
                    .asked()
                    .of(2),
            )
            .then(get().content(WHOLE).either().gets(200).body(WHOLE)),
        case(
            "9111 §3.4",
            "a part in the middle does not make a whole of the others",
        )
        .then(
            tagged(get().asks("range", "bytes=0-2"))
                .answers(206)
                .says("content-range", "bytes 0-2/10")
                .content("012"),
        )
        .then(tagged(last()).asked().of(2))
        .then(all()),
    ];
    for said in ["no-store", "private, max-age=60"] {
        cases.push(
            case(section, format!("a part with {said} is not kept"))
                .then(first().cc(said).says("etag", "\"a\""))
                .then(again().asked()),
        );
    }
    cases.push(
        case(section, "a part for Authorization is not kept")
            .then(tagged(first()).asks("authorization", "Basic eDp5"))
            .then(again().asked()),
    );
    cases.push(
        case(section, "a part with a cookie is not kept")
            .then(tagged(first()).says("set-cookie", "id=1"))
            .then(again().asked()),
    );
    cases
}

/// Parts that say of themselves what cannot be.
fn strange() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, content_range, content) in [
        ("of unknown whole length", "bytes 0-4/*", "01234"),
        ("that ends before it begins", "bytes 4-0/10", "01234"),
        ("that is longer than the whole", "bytes 0-4/3", "01234"),
        ("shorter than its range", "bytes 0-9/10", "01234"),
        ("longer than its range", "bytes 0-1/10", "01234"),
        ("of another unit", "lines 0-4/10", "01234"),
        ("without a unit", "0-4/10", "01234"),
        ("in negative numbers", "bytes -5-4/10", "01234"),
        ("without an end", "bytes 0-/10", "01234"),
        ("that was not satisfiable", "bytes */10", "01234"),
        (
            "beyond all numbers",
            "bytes 0-99999999999999999999/99999999999999999999",
            "01234",
        ),
        ("with nothing in it", "bytes 0-4/10", ""),
    ] {
        cases.push(
            case(
                "9110 §14.4",
                format!("a part {name} is not taken for the whole"),
            )
            .then(
                tagged(again())
                    .answers(206)
                    .says("content-range", content_range)
                    .content(content)
                    .gets_anything(),
            )
            .then(all()),
        );
    }
    cases.push(
        case(
            "9110 §14.4",
            "a part with two Content-Range is not taken for the whole",
        )
        .then(
            tagged(first())
                .says("content-range", "bytes 5-9/10")
                .gets_anything(),
        )
        .then(all()),
    );
    cases.push(
        case(
            "9110 §14.6",
            "a part of several parts is not taken for the whole",
        )
        .then(
            tagged(get().asks("range", "bytes=0-0, 9-9"))
                .answers(206)
                .says("content-type", "multipart/byteranges; boundary=x")
                .content("--x\r\ncontent-range: bytes 0-0/10\r\n\r\n0\r\n--x--\r\n")
                .gets_anything(),
        )
        .then(all()),
    );
    cases.push(
        case(
            "9110 §15.3.7",
            "a part that nobody asked for is not taken for the whole",
        )
        .then(
            tagged(get())
                .answers(206)
                .says("content-range", FIRST)
                .content("01234")
                .gets_anything(),
        )
        .then(all()),
    );
    cases.push(
        case(
            "9110 §14.4",
            "another part than was asked for is not taken for it",
        )
        .then(tagged(last()).gets_anything())
        .then(
            tagged(again())
                .answers(206)
                .says("content-range", FIRST)
                .content("01234")
                .asked()
                .gets(206)
                .body("01234"),
        ),
    );
    cases
}

/// An origin that has something new when the rest is asked for, whatever it was asked.
fn other_versions() -> Vec<Case> {
    let section = "9111 §3.4";
    let newer = |exchange: Exchange| exchange.cc("max-age=60").says("etag", "\"b\"");
    let new_rest = || {
        newer(get())
            .answers(206)
            .says("content-range", LAST)
            .content("fghij")
    };
    vec![
        case(section, "the rest of something else is not glued to a part")
            .then(tagged(first()))
            .then(new_rest().gets_anything().body_lacks("01234fghij")),
        case(section, "the rest without a tag is not glued to a part")
            .then(tagged(first()))
            .then(
                get()
                    .answers(206)
                    .cc("max-age=60")
                    .says("content-range", LAST)
                    .content("fghij")
                    .gets_anything()
                    .body_lacks("01234fghij"),
            ),
        case(
            section,
            "the rest of a whole of another length is not glued to a part",
        )
        .then(tagged(first()))
        .then(
            tagged(get())
                .answers(206)
                .says("content-range", "bytes 5-9/11")
                .content("fghij")
                .gets_anything()
                .body_lacks("01234fghij"),
        ),
        case(section, "another place of the same is not glued to a part")
            .then(tagged(first()))
            .then(
                tagged(get())
                    .answers(206)
                    .says("content-range", "bytes 6-9/10")
                    .content("6789")
                    .gets_anything()
                    .body_lacks("012346789"),
            ),
        case(
            section,
            "the whole that comes instead of the rest is the whole",
        )
        .then(tagged(first()))
        .then(newer(get()).content("abcdefghij").asked())
        .then(get().hit().of(2))
        .then(again().hit().gets(206).body("abcde")),
        case(section, "an error instead of the rest is no whole")
            .then(tagged(first()))
            .then(get().answers(503).gets_anything().body_lacks("01234answer"))
            .then(all()),
        case(section, "416 instead of the rest is no whole")
            .then(tagged(first()))
            .then(
                get()
                    .answers(416)
                    .says("content-range", "bytes */3")
                    .gets_anything()
                    .body_lacks("01234"),
            ),
        case(
            section,
            "a part of something new does not change what is whole",
        )
        .then(tagged(get()).content(WHOLE))
        .then(
            new_rest()
                .asks("range", "bytes=5-9")
                .asks("cache-control", "no-cache")
                .gets_anything(),
        )
        .then(
            get()
                .content("abcdefghij")
                .either()
                .gets(200)
                .body_lacks("01234fghij"),
        ),
        case(section, "a part of the same with a later date is not glued")
            .then(first().cc("max-age=60").says("last-modified", MODIFIED))
            .then(
                last()
                    .content("fghij")
                    .cc("max-age=60")
                    .says("last-modified", LATER)
                    .asked()
                    .of(2),
            )
            .then(
                get()
                    .content("abcdefghij")
                    .asked()
                    .gets(200)
                    .body("abcdefghij"),
            ),
        case(section, "parts of other encodings are not glued")
            .then(
                tagged(first())
                    .says("content-encoding", "x-a")
                    .says("vary", "Accept-Encoding"),
            )
            .then(
                newer(get())
                    .content("abcdefghij")
                    .asks("accept-encoding", "x-b")
                    .says("vary", "Accept-Encoding")
                    .asked(),
            ),
        case(section, "the rest that breaks off is no whole")
            .then(tagged(first()))
            .then(
                tagged(get())
                    .answers(206)
                    .says("content-range", LAST)
                    .says("content-length", "5")
                    .content("56")
                    .gets_anything(),
            )
            .then(all()),
    ]
}
