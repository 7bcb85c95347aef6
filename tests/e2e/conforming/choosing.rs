//! Which stored answer is for whom: cache keys and `Vary` (RFC 9111 §2, §4.1).

use super::{Case, Exchange, case, get, kept, not_kept};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = keys();
    cases.extend(selected());
    cases.extend(many());
    cases
}

fn fresh() -> Exchange {
    get().cc("max-age=60")
}

fn keys() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, one, other, same) in [
        ("queries are told apart", "/?a=1", "/?a=2", false),
        ("a query and none are told apart", "/", "/?a=1", false),
        ("an empty query and none are told apart", "/", "/?", false),
        (
            "the order in a query counts",
            "/?a=1&b=2",
            "/?b=2&a=1",
            false,
        ),
        ("the case of a path counts", "/A", "/a", false),
        ("one query is one key", "/?a=1", "/?a=1", true),
        ("a slash at the end counts", "/a", "/a/", false),
        ("an encoded slash is no slash", "/a%2Fb", "/a/b", false),
        ("an encoded letter is the letter", "/%61", "/a", true),
        (
            "the case of an encoding does not count",
            "/%c3%A9",
            "/%C3%a9",
            true,
        ),
        (
            "plus and an encoded space are told apart",
            "/?a=+",
            "/?a=%20",
            false,
        ),
    ] {
        let second = get().at(other);
        let second = if same { second.hit() } else { second };
        cases.push(case("9111 §2", name).then(fresh().at(one)).then(second));
    }
    for (host, same) in [
        ("SITE.TEST", true),
        ("site.test:80", true),
        ("www.site.test", false),
    ] {
        let second = get().asks("host", host);
        let second = if same { second.hit() } else { second };
        let verb = if same { "the same" } else { "another" };
        cases.push(
            case("9110 §4.2.3", format!("{host} is {verb} host"))
                .then(fresh())
                .then(second),
        );
    }
    for (name, value) in [
        ("accept", "text/html"),
        ("accept-encoding", "gzip"),
        ("accept-language", "de"),
        ("cookie", "a=1"),
        ("user-agent", "x"),
        ("referer", "http://a.test/"),
        ("origin", "http://a.test"),
        ("x-own", "1"),
    ] {
        cases.push(
            case(
                "9111 §4.1",
                format!("{name} does not matter unless Vary says so"),
            )
            .then(fresh())
            .then(get().asks(name, value).hit()),
        );
    }
    cases
}

/// One row for each pair of requests: `vary` of the answer, the fields of the two, and whether they
/// select the same.
fn selected() -> Vec<Case> {
    type Fields = &'static [(&'static str, &'static str)];
    let rows: [(&str, &str, Fields, Fields, bool); 55] = [
        (
            "a field that matches",
            "X-A",
            &[("x-a", "1")],
            &[("x-a", "1")],
            true,
        ),
        (
            "a field that differs",
            "X-A",
            &[("x-a", "1")],
            &[("x-a", "2")],
            false,
        ),
        ("a field that is absent in both", "X-A", &[], &[], true),
        (
            "a field that is absent later",
            "X-A",
            &[("x-a", "1")],
            &[],
            false,
        ),
        (
            "a field that is absent first",
            "X-A",
            &[],
            &[("x-a", "1")],
            false,
        ),
        (
            "a field that is empty later",
            "X-A",
            &[],
            &[("x-a", "")],
            false,
        ),
        (
            "the case of a name",
            "x-A",
            &[("X-a", "1")],
            &[("x-A", "1")],
            true,
        ),
        (
            "the case of a value",
            "X-A",
            &[("x-a", "a")],
            &[("x-a", "A")],
            false,
        ),
        (
            "other fields",
            "X-A",
            &[("x-a", "1"), ("x-b", "1")],
            &[("x-a", "1"), ("x-b", "2")],
            true,
        ),
        (
            "two fields that match",
            "X-A, X-B",
            &[("x-a", "1"), ("x-b", "2")],
            &[("x-b", "2"), ("x-a", "1")],
            true,
        ),
        (
            "two fields, the second of which differs",
            "X-A, X-B",
            &[("x-a", "1"), ("x-b", "2")],
            &[("x-a", "1"), ("x-b", "3")],
            false,
        ),
        (
            "two fields, the first of which differs",
            "X-A, X-B",
            &[("x-a", "1"), ("x-b", "2")],
            &[("x-a", "3"), ("x-b", "2")],
            false,
        ),
        (
            "two fields whose values are exchanged",
            "X-A, X-B",
            &[("x-a", "1"), ("x-b", "2")],
            &[("x-a", "2"), ("x-b", "1")],
            false,
        ),
        (
            "two fields, one of which is absent in both",
            "X-A, X-B",
            &[("x-a", "1")],
            &[("x-a", "1")],
            true,
        ),
        (
            "two fields, one of which is absent later",
            "X-A, X-B",
            &[("x-a", "1"), ("x-b", "2")],
            &[("x-a", "1")],
            false,
        ),
        (
            "no space in Vary",
            "X-A,X-B",
            &[("x-a", "1"), ("x-b", "2")],
            &[("x-a", "1"), ("x-b", "3")],
            false,
        ),
        (
            "empty members of Vary",
            ", X-A ,,",
            &[("x-a", "1")],
            &[("x-a", "1")],
            true,
        ),
        (
            "empty members of Vary, and a difference",
            ", X-A ,,",
            &[("x-a", "1")],
            &[("x-a", "2")],
            false,
        ),
        (
            "lines that are one list",
            "X-A",
            &[("x-a", "1"), ("x-a", "2")],
            &[("x-a", "1, 2")],
            true,
        ),
        (
            "lines in another order",
            "X-A",
            &[("x-a", "1"), ("x-a", "2")],
            &[("x-a", "2"), ("x-a", "1")],
            false,
        ),
        (
            "whitespace around commas",
            "X-A",
            &[("x-a", "1,2")],
            &[("x-a", "1 ,  2")],
            true,
        ),
        (
            "whitespace around a value",
            "X-A",
            &[("x-a", "1")],
            &[("x-a", "  1  ")],
            true,
        ),
        (
            "whitespace within quotes",
            "X-A",
            &[("x-a", "\"a,b\"")],
            &[("x-a", "\"a, b\"")],
            false,
        ),
        (
            "Accept that matches",
            "Accept",
            &[("accept", "text/html")],
            &[("accept", "text/html")],
            true,
        ),
        (
            "Accept that differs",
            "Accept",
            &[("accept", "text/html")],
            &[("accept", "text/plain")],
            false,
        ),
        (
            "Accept-Language that differs",
            "Accept-Language",
            &[("accept-language", "de")],
            &[("accept-language", "en")],
            false,
        ),
        (
            "Accept-Language in another case",
            "Accept-Language",
            &[("accept-language", "en-GB")],
            &[("accept-language", "EN-gb")],
            true,
        ),
        (
            "Accept-Language with whitespace",
            "Accept-Language",
            &[("accept-language", "en, de;q=0.5")],
            &[("accept-language", "en , de; q=0.5")],
            true,
        ),
        (
            "Accept-Language listed in another order than by weight",
            "Accept-Language",
            &[("accept-language", "en, de;q=0.5")],
            &[("accept-language", "de;q=0.5, en")],
            true,
        ),
        (
            "Accept-Language of equal weights in another order",
            "Accept-Language",
            &[("accept-language", "en, de")],
            &[("accept-language", "de, en")],
            true,
        ),
        (
            "Accept-Language of other weights",
            "Accept-Language",
            &[("accept-language", "en, de;q=0.5")],
            &[("accept-language", "en;q=0.5, de")],
            false,
        ),
        (
            "Accept-Language with weights written differently",
            "Accept-Language",
            &[("accept-language", "en, de;q=0.5")],
            &[("accept-language", "en;q=1.0, de;q=0.500")],
            true,
        ),
        (
            "Accept-Language with a range more",
            "Accept-Language",
            &[("accept-language", "en, de")],
            &[("accept-language", "en, de, fr")],
            false,
        ),
        (
            "Accept-Encoding that differs",
            "Accept-Encoding",
            &[("accept-encoding", "gzip")],
            &[("accept-encoding", "br")],
            false,
        ),
        (
            "Accept-Encoding with whitespace",
            "Accept-Encoding",
            &[("accept-encoding", "gzip,br")],
            &[("accept-encoding", "gzip, br")],
            true,
        ),
        (
            "Accept-Encoding in another order",
            "Accept-Encoding",
            &[("accept-encoding", "gzip, br")],
            &[("accept-encoding", "br, gzip")],
            true,
        ),
        (
            "Accept-Encoding in another case",
            "Accept-Encoding",
            &[("accept-encoding", "GZip")],
            &[("accept-encoding", "gzip")],
            true,
        ),
        (
            "Accept-Encoding of other weights",
            "Accept-Encoding",
            &[("accept-encoding", "gzip, br;q=0.5")],
            &[("accept-encoding", "gzip;q=0.5, br")],
            false,
        ),
        (
            "Accept-Encoding that is absent, and identity",
            "Accept-Encoding",
            &[],
            &[("accept-encoding", "gzip")],
            false,
        ),
        (
            "Accept-Encoding with a weight of nought",
            "Accept-Encoding",
            &[("accept-encoding", "gzip")],
            &[("accept-encoding", "gzip;q=0")],
            false,
        ),
        (
            "Accept-Encoding with a weight of one",
            "Accept-Encoding",
            &[("accept-encoding", "gzip")],
            &[("accept-encoding", "gzip;q=1.0")],
            true,
        ),
        (
            "Accept-Encoding with everything else refused",
            "Accept-Encoding",
            &[("accept-encoding", "gzip")],
            &[("accept-encoding", "gzip, *;q=0")],
            false,
        ),
        (
            "Accept-Encoding that is empty and that is absent",
            "Accept-Encoding",
            &[],
            &[("accept-encoding", "")],
            false,
        ),
        (
            "Accept-Language with a weight of nought",
            "Accept-Language",
            &[("accept-language", "en")],
            &[("accept-language", "en;q=0")],
            false,
        ),
        (
            "Accept-Language with a subtag",
            "Accept-Language",
            &[("accept-language", "en")],
            &[("accept-language", "en-US")],
            false,
        ),
        (
            "Accept-Language of any language",
            "Accept-Language",
            &[("accept-language", "en")],
            &[("accept-language", "*")],
            false,
        ),
        (
            "Accept-Language with weights that are none",
            "Accept-Language",
            &[("accept-language", "en;q=x, de")],
            &[("accept-language", "en, de;q=x")],
            false,
        ),
        (
            "Accept with parameters of another order of types",
            "Accept",
            &[("accept", "text/html;level=1")],
            &[("accept", "text/html;level=2")],
            false,
        ),
        (
            "Cookie on two lines and another",
            "Cookie",
            &[("cookie", "a=1; b=2")],
            &[("cookie", "a=1")],
            false,
        ),
        (
            "Cookie that differs",
            "Cookie",
            &[("cookie", "a=1")],
            &[("cookie", "a=2")],
            false,
        ),
        (
            "Origin that differs",
            "Origin",
            &[("origin", "http://a.test")],
            &[("origin", "http://b.test")],
            false,
        ),
        (
            "Origin that is absent later",
            "Origin",
            &[("origin", "http://a.test")],
            &[],
            false,
        ),
        (
            "User-Agent that differs",
            "User-Agent",
            &[("user-agent", "a")],
            &[("user-agent", "b")],
            false,
        ),
        (
            "an unknown field of the client's that is forwarded",
            "Sec-Fetch-Mode",
            &[("sec-fetch-mode", "cors")],
            &[("sec-fetch-mode", "navigate")],
            false,
        ),
        (
            "a name that is no token",
            "X-A, b@d name",
            &[("x-a", "1")],
            &[("x-a", "2")],
            false,
        ),
    ];
    let ask = |exchange: Exchange, fields: Fields| {
        (fields.iter()).fold(exchange, |all, (name, value)| all.asks(name, value))
    };
    let mut cases = Vec::new();
    for (name, vary, first, second, same) in rows {
        let second = ask(get(), second);
        let second = if same { second.hit() } else { second };
        let verb = if same { "is the same" } else { "is another" };
        cases.push(
            case("9111 §4.1", format!("Vary: {name}, {verb}"))
                .then(ask(fresh().says("vary", vary), first))
                .then(second),
        );
    }
    for vary in ["*", "X-A, *", "*, X-A", " * ", "x-a,*"] {
        cases.push(not_kept(
            "9111 §4.1",
            format!("Vary: {vary:?} never matches"),
            fresh().says("vary", vary),
        ));
    }
    cases.push(not_kept(
        "9111 §4.1",
        "Vary: * on a second line never matches",
        fresh().says("vary", "x-a").says("vary", "*"),
    ));
    cases.push(kept(
        "9111 §4.1",
        "an empty Vary varies by nothing",
        fresh().says("vary", ""),
    ));
    cases.push(
        case("9111 §4.1", "several lines of Vary are one list")
            .then(
                fresh()
                    .says("vary", "X-A")
                    .says("vary", "X-B")
                    .asks("x-b", "1"),
            )
            .then(get().asks("x-b", "2")),
    );
    cases.push(
        case("9111 §4.1", "Vary goes on to the client")
            .then(fresh().says("vary", "X-A"))
            .then(get().hit().has("vary", "X-A")),
    );
    cases
}

fn many() -> Vec<Case> {
    let by = |value: &str| fresh().says("vary", "X-A").asks("x-a", value);
    let again = |value: &str| get().asks("x-a", value).hit();
    vec![
        case("9111 §4.1", "a second variant leaves the first")
            .then(by("1"))
            .then(by("2"))
            .then(again("1"))
            .then(again("2").of(2)),
        case("9111 §4.1", "three variants are three")
            .then(by("1"))
            .then(by("2"))
            .then(by("3"))
            .then(again("3").of(3))
            .then(again("2").of(2))
            .then(again("1")),
        case("9111 §4.1", "what does not vary any more is for everybody")
            .then(by("1"))
            .then(fresh().asks("x-a", "2"))
            .then(get().asks("x-a", "3").either().gets(200)),
        case(
            "9111 §4.1",
            "an answer by another field does not hide the variants",
        )
        .then(by("1"))
        .then(
            fresh()
                .says("vary", "X-A, X-B")
                .asks("x-a", "2")
                .asks("x-b", "1"),
        )
        .then(
            fresh()
                .says("vary", "X-A, X-B")
                .asks("x-a", "2")
                .asks("x-b", "2"),
        )
        .then(get().asks("x-a", "2").asks("x-b", "1").hit().of(2)),
        case(
            "9111 §4.1",
            "an error without Vary does not hide the variants",
        )
        .then(by("1"))
        .then(get().answers(500).asks("x-a", "2"))
        .then(again("1")),
        case("9111 §4.1", "a variant goes stale by itself")
            .then(by("1"))
            .then(get().cc("max-age=1").says("vary", "X-A").asks("x-a", "2"))
            .then(by("2").after(super::A_SECOND_PASSES))
            .then(again("1"))
            .then(again("2").of(3)),
        case(
            "9111 §4.1",
            "an answer that may not be shared does not hide the variants",
        )
        .then(by("1"))
        .then(get().cc("no-store").says("vary", "X-A").asks("x-a", "2"))
        .then(again("1")),
    ]
}
