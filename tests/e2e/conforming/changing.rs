//! Methods that make stored answers doubtful (RFC 9111 §4.4).

use super::{Case, Exchange, case, get, request};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for method in ["POST", "PUT", "DELETE", "PATCH", "M-SEARCH", "FOO"] {
        cases.push(
            case("9111 §4.4", format!("{method} makes its target doubtful"))
                .then(stored())
                .then(request(method))
                .then(get().asked()),
        );
        for status in [201, 202, 204, 301, 302, 303] {
            cases.push(
                case(
                    "9111 §4.4",
                    format!("{method} answered by {status} makes its target doubtful"),
                )
                .then(stored())
                .then(request(method).answers(status))
                .then(get().asked()),
            );
        }
        for status in [400, 403, 404, 409, 500, 503] {
            cases.push(
                case(
                    "9111 §4.4",
                    format!("{method} answered by {status} changes nothing"),
                )
                .then(stored())
                .then(request(method).answers(status))
                .then(get().hit()),
            );
        }
    }
    for method in ["OPTIONS", "TRACE"] {
        let section = "9110 §9.2.1";
        cases.push(
            case(section, format!("{method}, which is safe, changes nothing"))
                .then(stored())
                .then(request(method))
                .then(get().hit()),
        );
    }
    for field in ["location", "content-location"] {
        for method in ["POST", "PUT", "DELETE", "PATCH", "FOO"] {
            cases.push(pointed(
                &format!("{method}'s {field}"),
                method,
                "/",
                field,
                "{base}/item/5",
                true,
            ));
        }
        // The reference, from where, and whether it names `/item/5` of this host.
        for (name, from, reference, same) in [
            ("an absolute path", "/", "{base}/item/5", true),
            ("a whole URL", "/", "http://site.test{base}/item/5", true),
            (
                "a whole URL with its host in another case",
                "/",
                "http://SITE.test{base}/item/5",
                true,
            ),
            (
                "a whole URL with the usual port",
                "/",
                "http://site.test:80{base}/item/5",
                true,
            ),
            (
                "a reference without a scheme",
                "/",
                "//site.test{base}/item/5",
                true,
            ),
            ("a relative path", "/", "item/5", true),
            ("a relative path with a dot", "/", "./item/5", true),
            ("a relative path beside it", "/item/4", "5", true),
            ("a relative path upwards", "/other/x", "../item/5", true),
            ("a path with dots within", "/", "{base}/x/../item/5", true),
            ("a path with a fragment", "/", "{base}/item/5#part", true),
            ("an encoded path", "/", "{base}/%69tem/5", true),
            (
                "another host",
                "/",
                "http://elsewhere.test{base}/item/5",
                false,
            ),
            (
                "another host without a scheme",
                "/",
                "//elsewhere.test{base}/item/5",
                false,
            ),
            (
                "another port",
                "/",
                "http://site.test:8{base}/item/5",
                false,
            ),
            ("another path", "/", "{base}/item/6", false),
            ("no reference", "/", "http://[::", false),
        ] {
            let name = format!("{field} as {name}");
            cases.push(pointed(&name, "POST", from, field, reference, same));
        }
        cases.push(
            case("9111 §4.4", format!("{field} as a query"))
                .then(stored().at("/item/5?q"))
                .then(request("POST").at("/item/5").says(field, "?q"))
                .then(get().at("/item/5?q").asked()),
        );
        cases.push(
            case(
                "9111 §4.4",
                format!("{field} of a failed POST changes nothing"),
            )
            .then(stored().at("/item/5"))
            .then(request("POST").answers(400).says(field, "{base}/item/5"))
            .then(get().at("/item/5").hit()),
        );
        cases.push(
            case("9111 §4.4", format!("{field} of a GET changes nothing"))
                .then(stored().at("/item/5"))
                .then(get().says(field, "{base}/item/5"))
                .then(get().at("/item/5").hit()),
        );
    }
    cases.push(
        case("9111 §4.4", "POST makes all variants doubtful")
            .then(stored().says("vary", "X-A").asks("x-a", "1"))
            .then(stored().says("vary", "X-A").asks("x-a", "2"))
            .then(request("POST"))
            .then(get().asks("x-a", "1").asked())
            .then(get().asks("x-a", "2").asked()),
    );
    cases.push(
        case("9111 §4.4", "POST leaves other queries")
            .then(stored().at("/?a=1"))
            .then(request("POST").at("/?a=2"))
            .then(get().at("/?a=1").hit()),
    );
    cases.push(
        case("9111 §4.4", "what comes after a POST is kept")
            .then(stored())
            .then(request("POST"))
            .then(stored())
            .then(get().hit().of(3)),
    );
    cases.push(
        case(
            "9111 §4.4",
            "a POST that the origin does not answer changes nothing",
        )
        .then(stored())
        .then(request("POST").closes().gets(502))
        .then(get().hit()),
    );
    cases
}

fn stored() -> Exchange {
    get().cc("max-age=60")
}

/// `method` on `from`, answered with a field that names `/item/5`, or does not.
fn pointed(name: &str, method: &str, from: &str, field: &str, value: &str, same: bool) -> Case {
    let again = get().at("/item/5");
    let (verb, again) = if same {
        ("makes that doubtful", again.asked())
    } else {
        ("changes nothing", again.hit())
    };
    case("9111 §4.4", format!("{name} {verb}"))
        .then(stored().at("/item/5"))
        .then(request(method).at(from).says(field, value))
        .then(again)
}
