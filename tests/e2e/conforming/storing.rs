//! What is kept, and which of its fields (RFC 9111 §3).

use super::{Case, Exchange, MODIFIED, case, get, head, kept, kept_if, not_kept, request};

/// Final statuses, and whether a lifetime may be guessed for them (RFC 9110 §15.1).
const STATUSES: [(u16, bool); 27] = [
    (200, true),
    (203, true),
    (204, true),
    (299, false),
    (300, true),
    (301, true),
    (302, false),
    (303, false),
    (307, false),
    (308, true),
    (400, false),
    (403, false),
    (404, true),
    (405, true),
    (409, false),
    (410, true),
    (414, true),
    (418, false),
    (422, false),
    (451, false),
    (499, false),
    (500, false),
    (501, true),
    (502, false),
    (503, false),
    (504, false),
    (599, false),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = by_status();
    cases.extend(by_directive());
    cases.extend(by_method());
    cases.extend(authorized());
    cases.extend(fields());
    cases.extend(parts());
    cases
}

fn by_status() -> Vec<Case> {
    let mut cases = Vec::new();
    for (status, guessed) in STATUSES {
        cases.push(kept(
            "9111 §3",
            format!("{status} with max-age is kept"),
            get().answers(status).cc("max-age=60"),
        ));
        cases.push(kept(
            "9111 §3",
            format!("{status} with Expires is kept"),
            get().answers(status).says("expires", "{+60}"),
        ));
        cases.push(kept_if(
            guessed,
            "9111 §4.2.2",
            format!("{status} with Last-Modified only"),
            get().answers(status).says("last-modified", MODIFIED),
        ));
        cases.push(kept(
            "9111 §4.2.2",
            format!("{status} with Last-Modified and public is kept"),
            get()
                .answers(status)
                .says("last-modified", MODIFIED)
                .cc("public"),
        ));
    }
    // 304 and 206 are about one request; the others are never stored by RFC 6585.
    for status in [412, 416] {
        cases.push(not_kept(
            "9110 §15.5",
            format!("{status} is about one request"),
            get().answers(status).cc("max-age=60"),
        ));
    }
    for status in [428, 429, 431, 511] {
        cases.push(not_kept(
            "6585",
            format!("{status} is never kept"),
            get().answers(status).cc("max-age=60"),
        ));
    }
    cases
}

fn by_directive() -> Vec<Case> {
    let mut cases = Vec::new();
    for (section, said, is_kept) in [
        ("9111 §5.2.2.5", "no-store", false),
        ("9111 §5.2.2.5", "no-store, max-age=60", false),
        ("9111 §5.2.2.5", "max-age=60, no-store", false),
        ("9111 §5.2.2.5", "max-age=60, No-Store", false),
        ("9111 §5.2.2.5", "max-age=60, NO-STORE, public", false),
        ("9111 §5.2.2.5", "max-age=60,no-store", false),
        ("9111 §5.2.2.5", "max-age=60 , no-store ,", false),
        ("9111 §5.2.2.7", "private, max-age=60", false),
        ("9111 §5.2.2.7", "max-age=60, Private", false),
        ("9111 §5.2.2.7", "private, public, s-maxage=60", false),
        ("9111 §5.2.2.7", "private=\"x-a\", max-age=60", true),
        ("9111 §5.2.2.9", "public, max-age=60", true),
        ("9111 §5.2.2.9", "Public, Max-Age=60", true),
        ("9111 §5.2.2.3", "must-understand, max-age=60", true),
        (
            "9111 §5.2.2.3",
            "must-understand, no-store, max-age=60",
            true,
        ),
        (
            "9111 §5.2.2.3",
            "no-store, must-understand, max-age=60",
            true,
        ),
        ("9111 §5.2.3", "x-no-store, max-age=60", true),
        ("9111 §5.2.3", "no-store-ever, max-age=60", true),
        ("9111 §5.2.3", "x=\"no-store\", max-age=60", true),
        ("9111 §5.2.3", "x=\"a, no-store\", max-age=60", true),
        ("9111 §5.2.3", "x=\"a\\\", no-store\", max-age=60", true),
        ("9111 §5.2.2.6", "no-transform, max-age=60", true),
        ("9111 §5.2.2.5", "max-age=60, no-store=1", false),
        ("9111 §5.2.2.5", "max-age=60, no-store=\"x\"", false),
        ("9111 §5.2", "max-age=60, , ,", true),
    ] {
        let answer = get().cc(said);
        cases.push(kept_if(is_kept, section, said, answer));
    }
    cases.push(not_kept(
        "9111 §5.2.2.5",
        "no-store on a second line",
        get().cc("max-age=60").cc("no-store"),
    ));
    cases.push(not_kept(
        "9111 §5.2.2.7",
        "private on a second line",
        get().cc("max-age=60").cc("private"),
    ));
    cases.push(not_kept(
        "9111 §5.2.2.3",
        "must-understand of a status that is not understood",
        get().answers(299).cc("must-understand, max-age=60"),
    ));
    cases.push(not_kept(
        "9111 §5.2.2.3",
        "must-understand of another status that is not understood",
        get()
            .answers(599)
            .cc("must-understand, no-store, max-age=60"),
    ));
    cases.push(not_kept(
        "9111 §5.2.2.4",
        "no-cache is asked for every time",
        get().cc("no-cache, max-age=60"),
    ));
    cases.push(
        case("9111 §5.2.2.4", "no-cache is validated every time")
            .then(get().cc("no-cache, max-age=60").says("etag", "\"a\""))
            .then(get().answers(304).says("etag", "\"a\"").validated())
            .then(get().answers(304).says("etag", "\"a\"").validated()),
    );
    cases.push(not_kept(
        "this project",
        "a cookie is nobody else's",
        get().cc("max-age=60").says("set-cookie", "id=1"),
    ));
    cases.push(
        case(
            "this project",
            "an answer that is public is kept without its cookie",
        )
        .then(get().cc("public, max-age=60").says("set-cookie", "id=1"))
        .then(get().hit().lacks("set-cookie")),
    );
    for named in ["no-cache=\"set-cookie\"", "private=\"Set-Cookie\""] {
        cases.push(
            case(
                "this project",
                format!("an answer with {named} is kept without its cookie"),
            )
            .then(
                get()
                    .cc(&format!("max-age=60, {named}"))
                    .says("set-cookie", "id=1"),
            )
            .then(get().hit().lacks("set-cookie")),
        );
    }
    cases.push(not_kept(
        "9111 §5.4",
        "Pragma in an answer gives no lifetime",
        get().says("pragma", "public"),
    ));
    cases.push(kept(
        "9111 §5.4",
        "Pragma: no-cache in an answer means nothing",
        get().cc("max-age=60").says("pragma", "no-cache"),
    ));
    cases
}

fn by_method() -> Vec<Case> {
    let mut cases = Vec::new();
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "FOO"] {
        cases.push(
            case("9111 §3", format!("an answer to {method} is not for GET"))
                .then(request(method).cc("max-age=60"))
                .then(get()),
        );
        cases.push(
            case("9111 §4", format!("{method} is always forwarded"))
                .then(get().cc("max-age=60"))
                .then(request(method).cc("max-age=60"))
                .then(request(method).cc("max-age=60")),
        );
    }
    cases.push(
        case(
            "9110 §9.3.3",
            "POST with freshness and its own Content-Location is for GET",
        )
        .then(
            request("POST")
                .sends("x")
                .cc("max-age=60")
                .says("content-location", "{base}/"),
        )
        .then(get().hit()),
    );
    cases.push(
        case(
            "9110 §9.3.3",
            "POST with another Content-Location is not for GET",
        )
        .then(
            request("POST")
                .sends("x")
                .cc("max-age=60")
                .says("content-location", "{base}/other"),
        )
        .then(get()),
    );
    cases.push(
        case(
            "9110 §9.3.3",
            "POST with Content-Location but no freshness is not for GET",
        )
        .then(
            request("POST")
                .sends("x")
                .says("last-modified", MODIFIED)
                .says("content-location", "{base}/"),
        )
        .then(get()),
    );
    cases.push(
        case("9110 §9.3.3", "a kept answer to POST is not for POST")
            .then(
                request("POST")
                    .sends("x")
                    .cc("max-age=60")
                    .says("content-location", "{base}/"),
            )
            .then(request("POST").sends("x")),
    );
    let posted =
        |answer: Exchange| (answer.sends("x").cc("max-age=60")).says("content-location", "{base}/");
    for (name, answer) in [
        ("of PUT", posted(request("PUT"))),
        ("of DELETE", posted(request("DELETE"))),
        ("of FOO", posted(request("FOO"))),
        (
            "of POST that is private",
            posted(request("POST")).cc("private"),
        ),
        (
            "of POST that is not to be stored",
            posted(request("POST")).cc("no-store"),
        ),
        (
            "of POST with a cookie",
            posted(request("POST")).says("set-cookie", "a=1"),
        ),
        (
            "of POST for Authorization",
            posted(request("POST")).asks("authorization", "x"),
        ),
        (
            "of POST that asked for no-store",
            posted(request("POST")).asks("cache-control", "no-store"),
        ),
        ("of POST that failed", posted(request("POST")).answers(500)),
        (
            "of POST that is stale",
            posted(request("POST")).says("age", "90"),
        ),
        (
            "of POST that varies by everything",
            posted(request("POST")).says("vary", "*"),
        ),
    ] {
        cases.push(
            case("9110 §9.3", format!("an answer {name} is not for GET"))
                .then(answer)
                .then(get().asked()),
        );
    }
    cases.push(
        case("9110 §9.3.3", "what POST leaves for GET varies")
            .then(posted(request("POST")).says("vary", "X-A").asks("x-a", "1"))
            .then(get().asks("x-a", "2").asked()),
    );
    cases.push(
        case(
            "9110 §9.3.3",
            "what POST leaves for GET is doubtful after the next",
        )
        .then(posted(request("POST")))
        .then(request("POST").sends("x"))
        .then(get().asked()),
    );
    cases.push(
        case("9110 §9.3.2", "HEAD is answered from a kept GET")
            .then(get().cc("max-age=60").says("x-own", "1"))
            .then(head().hit().has("x-own", "1").has("content-length", "8")),
    );
    cases.push(
        case("9110 §9.3.2", "an answer to HEAD has no body for GET")
            .then(head().cc("max-age=60"))
            .then(get().either()),
    );
    cases
}

fn authorized() -> Vec<Case> {
    let mut cases = Vec::new();
    for (said, shared) in [
        ("max-age=60", false),
        ("max-age=60, proxy-revalidate", false),
        ("max-age=60, public", true),
        ("max-age=60, must-revalidate", true),
        ("s-maxage=60", true),
        ("private, s-maxage=60", false),
    ] {
        cases.push(kept_if(
            shared,
            "9111 §3.5",
            format!("an answer to Authorization with {said}"),
            get().asks("authorization", "Basic eDp5").cc(said),
        ));
        let second = get().asks("authorization", "Basic eDp5");
        let second = if shared { second.hit() } else { second.asked() };
        cases.push(
            // §3.5 speaks of what was stored; that what is public before stays so is the origin's
            // to say, too.
            case("this project", format!("a kept {said} for Authorization"))
                .then(get().cc(said))
                .then(second),
        );
    }
    for (targeted, said, shared) in [
        ("max-age=60, public", "no-store", true),
        ("s-maxage=60", "max-age=60", true),
        ("max-age=60", "public, max-age=60", false),
    ] {
        let answer = get().asks("authorization", "Basic eDp5").cc(said);
        cases.push(kept_if(
            shared,
            "9213 §2.2",
            format!("an answer to Authorization with {said}, and for CDNs {targeted}"),
            answer.says("cdn-cache-control", targeted),
        ));
    }
    cases
}

fn fields() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, value) in [
        ("connection", "x-hop"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("proxy-authenticate", "Basic"),
        ("proxy-authentication-info", "x"),
        ("te", "gzip"),
        ("upgrade", "h2c"),
    ] {
        cases.push(
            case("9111 §3.1", format!("{name} is not kept"))
                .then(get().cc("max-age=60").says(name, value))
                .then(get().hit().lacks(name)),
        );
    }
    cases.push(
        case("9111 §3.1", "fields named by Connection are not kept")
            .then(
                get()
                    .cc("max-age=60")
                    .says("connection", "X-Hop, x-other")
                    .says("x-hop", "1")
                    .says("x-other", "2")
                    .says("x-own", "3")
                    .lacks("x-hop"),
            )
            .then(
                get()
                    .hit()
                    .lacks("x-hop")
                    .lacks("x-other")
                    .has("x-own", "3"),
            ),
    );
    for (directive, section) in [("no-cache", "9111 §5.2.2.4"), ("private", "9111 §5.2.2.7")] {
        cases.push(
            case(section, format!("fields named by {directive} are not kept"))
                .then(
                    get()
                        .cc(&format!("max-age=60, {directive}=\"X-A, x-b\""))
                        .says("x-a", "1")
                        .says("x-b", "2")
                        .says("x-c", "3"),
                )
                .then(get().hit().lacks("x-a").lacks("x-b").has("x-c", "3")),
        );
        cases.push(
            case(
                section,
                format!("a field named by {directive} without quotes is not kept"),
            )
            .then(
                get()
                    .cc(&format!("max-age=60, {directive}=x-a"))
                    .says("x-a", "1"),
            )
            .then(get().either().lacks("x-a")),
        );
    }
    for (name, value) in [
        ("content-type", "text/plain; charset=utf-8"),
        ("content-language", "de, en"),
        ("content-disposition", "attachment; filename=\"a\""),
        ("content-encoding", "x-none"),
        ("content-location", "/elsewhere"),
        ("content-security-policy", "default-src 'self'"),
        ("strict-transport-security", "max-age=60"),
        ("access-control-allow-origin", "*"),
        ("link", "</a>; rel=preload"),
        ("location", "/other"),
        ("last-modified", MODIFIED),
        ("etag", "W/\"a\""),
        ("expires", "Fri, 01 Jan 2100 00:00:00 GMT"),
        ("server", "scripted/1"),
        ("retry-after", "3"),
        ("warning", "199 - \"x\""),
        ("x-frame-options", "DENY"),
        ("x-empty", ""),
        ("x-commas", "a, b,c"),
        ("unknown-to-all", "\"q\""),
    ] {
        cases.push(
            case("9111 §3.1", format!("{name} is kept"))
                .then(get().cc("max-age=60").says(name, value).has(name, value))
                .then(get().hit().has(name, value)),
        );
    }
    cases.push(
        case("9112 §7.1", "a body in chunks is kept whole")
            .then(
                get()
                    .cc("max-age=60")
                    .says("transfer-encoding", "chunked")
                    .content("4\r\nansw\r\n4;x=y\r\ner 1\r\n0\r\n\r\n")
                    .gets(200)
                    .body("answer 1"),
            )
            .then(
                get()
                    .hit()
                    .gets(200)
                    .body("answer 1")
                    .lacks("transfer-encoding"),
            ),
    );
    cases.push(
        case("9112 §8", "a body in chunks that ends early is not kept")
            .then(
                get()
                    .cc("max-age=60")
                    .says("transfer-encoding", "chunked")
                    .content("4\r\nansw\r\n")
                    .fails(),
            )
            .then(get()),
    );
    cases.push(
        case(
            "9112 §8",
            "a body that ends with the connection is all there is",
        )
        .then(get().cc("max-age=60").says("content-length", ""))
        .then(get().either().gets(200)),
    );
    cases.push(
        case("9111 §3.1", "several lines of a field are kept in order")
            .then(get().cc("max-age=60").says("x-a", "1").says("x-a", "2"))
            .then(get().hit().has("x-a", "1, 2")),
    );
    cases.push(
        case("9111 §3.1", "Cache-Control goes on as it came")
            .then(get().cc("max-age=60, x-odd=\"1\""))
            .then(get().hit().has("cache-control", "max-age=60, x-odd=\"1\"")),
    );
    cases.push(
        case("9110 §6.6.1", "Date is kept as it came")
            .then(get().cc("max-age=2147483648").says("date", MODIFIED))
            .then(get().hit().has("date", MODIFIED)),
    );
    cases
}

/// RFC 9111 §3.3 and §3.4: partial content.
fn parts() -> Vec<Case> {
    let part = |range: &str, of: &str, content: &str| {
        get()
            .answers(206)
            .cc("max-age=60")
            .says("content-range", &format!("bytes {range}/{of}"))
            .content(content)
    };
    let whole = "0123456789";
    vec![
        case("9111 §3.3", "206 is never taken for the whole")
            .then(
                part("0-4", "10", "01234")
                    .says("etag", "\"a\"")
                    .asks("range", "bytes=0-4"),
            )
            .then(get().content(whole).asked().gets(200).body(whole)),
        case("9111 §3.3", "206 answers the same range")
            .then(
                part("0-4", "10", "01234")
                    .says("etag", "\"a\"")
                    .asks("range", "bytes=0-4"),
            )
            .then(get().asks("range", "bytes=0-4").hit()),
        case("9111 §3.3", "206 answers a range within it")
            .then(
                part("0-4", "10", "01234")
                    .says("etag", "\"a\"")
                    .asks("range", "bytes=0-4"),
            )
            .then(
                get()
                    .asks("range", "bytes=1-2")
                    .hit()
                    .gets(206)
                    .body("12")
                    .has("content-range", "bytes 1-2/10"),
            ),
        case("9111 §3.3", "206 does not answer a range outside of it")
            .then(
                part("0-4", "10", "01234")
                    .says("etag", "\"a\"")
                    .asks("range", "bytes=0-4"),
            )
            .then(
                part("5-9", "10", "56789")
                    .says("etag", "\"a\"")
                    .asks("range", "bytes=5-9")
                    .asked()
                    .of(2),
            ),
        case("9111 §3.4", "parts with one strong validator make a whole")
            .then(
                part("0-4", "10", "01234")
                    .says("etag", "\"a\"")
                    .asks("range", "bytes=0-4"),
            )
            .then(
                part("5-9", "10", "56789")
                    .says("etag", "\"a\"")
                    .asks("range", "bytes=5-9")
                    .asked()
                    .of(2),
            )
            .then(get().hit().gets(200).body(whole)),
        case(
            "9111 §3.3",
            "what is missing of a part is asked for by range",
        )
        .then(
            part("0-4", "10", "01234")
                .says("etag", "\"a\"")
                .asks("range", "bytes=0-4"),
        )
        .then(
            part("5-9", "10", "56789")
                .says("etag", "\"a\"")
                .forwarding(super::Forwarding::Asked)
                .with("range", "bytes=5-")
                .gets(200)
                .body(whole),
        ),
        case("9111 §3.4", "parts with different validators are not mixed")
            .then(
                part("0-4", "10", "01234")
                    .says("etag", "\"a\"")
                    .asks("range", "bytes=0-4"),
            )
            .then(
                part("5-9", "10", "fghij")
                    .says("etag", "\"b\"")
                    .asks("range", "bytes=5-9")
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
        case("9111 §3.4", "parts with a weak validator are not mixed")
            .then(
                part("0-4", "10", "01234")
                    .says("etag", "W/\"a\"")
                    .asks("range", "bytes=0-4"),
            )
            .then(
                part("5-9", "10", "fghij")
                    .says("etag", "W/\"a\"")
                    .asks("range", "bytes=5-9")
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
        case("9111 §3.4", "parts without a validator are not mixed")
            .then(part("0-4", "10", "01234").asks("range", "bytes=0-4"))
            .then(
                part("5-9", "10", "fghij")
                    .asks("range", "bytes=5-9")
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
        case("9111 §3.3", "206 without Content-Range is not kept")
            .then(
                get()
                    .answers(206)
                    .cc("max-age=60")
                    .content("01234")
                    .asks("range", "bytes=0-4"),
            )
            .then(get().content(whole).asked().gets(200).body(whole)),
        case(
            "9111 §3.3",
            "a body that ended early is not taken for the whole",
        )
        .then(get().cc("max-age=60").says("content-length", "20").fails())
        .then(get()),
    ]
}
