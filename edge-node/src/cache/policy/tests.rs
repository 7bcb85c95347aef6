use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;

/// Sun, 06 Nov 1994 08:49:37 GMT, and a quarter of a second.
const NOW_MS: u64 = 784_111_777_250;
const DATE: (&str, &str) = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        let name: HeaderName = name.parse().unwrap();
        map.append(name, value.parse().unwrap());
    }
    map
}

fn said(text: &str) -> CacheControl {
    CacheControl::parse([text.as_bytes()])
}

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap()
}

/// What a plain GET gets from the policy.
fn get(code: u16, fields: &[(&str, &str)]) -> Result<Freshness, Unstorable> {
    let request = RequestFacts::of(&Method::GET, &HeaderMap::new());
    storable(
        &request,
        status(code),
        &map(fields),
        &Rules::default(),
        NOW_MS,
    )
}

fn freshness(fields: &[(&str, &str)]) -> Freshness {
    Freshness::of(StatusCode::OK, &map(fields), &Rules::default(), NOW_MS)
}

#[test]
fn a_shared_cache_stores_what_it_may() {
    let cc = |value| ("cache-control", value);
    let etag = ("etag", "\"a\"");
    let modified = ("last-modified", "Sun, 06 Nov 1994 07:09:37 GMT");
    for (code, fields, expected) in [
        // RFC 9111 §3: explicit freshness makes any final status storable
        (200, vec![cc("max-age=60")], None),
        (200, vec![cc("s-maxage=60")], None),
        (
            200,
            vec![("expires", "Sun, 06 Nov 1994 09:49:37 GMT")],
            None,
        ),
        (302, vec![cc("max-age=60")], None),
        (403, vec![cc("max-age=60")], None),
        (503, vec![cc("max-age=60")], None),
        (299, vec![cc("max-age=60")], None),
        (599, vec![cc("max-age=60")], None),
        // not final, or about one request only, or never (RFC 6585)
        (101, vec![cc("max-age=60")], Some(Unstorable::Status)),
        (600, vec![cc("max-age=60")], Some(Unstorable::Status)),
        (206, vec![cc("max-age=60")], Some(Unstorable::Status)),
        (304, vec![cc("max-age=60"), etag], Some(Unstorable::Status)),
        (412, vec![cc("max-age=60")], Some(Unstorable::Status)),
        (416, vec![cc("max-age=60")], Some(Unstorable::Status)),
        (429, vec![cc("max-age=60")], Some(Unstorable::Status)),
        // §3, §4.2.2, RFC 9110 §15.1: heuristically cacheable statuses
        (200, vec![modified], None),
        (404, vec![modified], None),
        (301, vec![etag], None),
        (302, vec![modified], Some(Unstorable::NoFreshness)),
        (500, vec![modified, etag], Some(Unstorable::NoFreshness)),
        (200, vec![], Some(Unstorable::NeverReusable)),
        (302, vec![cc("public"), modified], None), // §5.2.2.9
        // stale at once: worth storing only if it can be validated, or used stale
        (200, vec![etag], None),
        (200, vec![cc("max-age=0")], Some(Unstorable::NeverReusable)),
        (200, vec![cc("max-age=0"), etag], None),
        (200, vec![cc("no-cache"), etag], None),
        (
            200,
            vec![cc("no-cache, max-age=60")],
            Some(Unstorable::NeverReusable),
        ),
        (200, vec![cc("max-age=0, stale-while-revalidate=9")], None),
        (200, vec![cc("max-age=0, stale-if-error=9")], None),
        (
            200,
            vec![cc("max-age=0, stale-if-error=9, must-revalidate")],
            Some(Unstorable::NeverReusable),
        ),
        (200, vec![("expires", "0")], Some(Unstorable::NeverReusable)),
        (200, vec![cc("max-age=x"), etag], None),
        // §5.2.2.5, §5.2.2.7
        (
            200,
            vec![cc("no-store, max-age=60")],
            Some(Unstorable::NoStore),
        ),
        (
            200,
            vec![cc("max-age=60"), cc("No-Store")],
            Some(Unstorable::NoStore),
        ),
        (
            200,
            vec![cc("private, max-age=60")],
            Some(Unstorable::Private),
        ),
        (
            200,
            vec![cc("Private, public, s-maxage=60")],
            Some(Unstorable::Private),
        ),
        (200, vec![cc("private=\"x-a\", max-age=60")], None),
        // §5.2.2.3
        (200, vec![cc("must-understand, no-store, max-age=60")], None),
        (
            299,
            vec![cc("must-understand, max-age=60")],
            Some(Unstorable::MustUnderstand),
        ),
        (
            200,
            vec![cc("must-understand, no-store, private, max-age=60")],
            Some(Unstorable::Private),
        ),
        // cookies
        (
            200,
            vec![cc("max-age=60"), ("set-cookie", "a=b")],
            Some(Unstorable::SetCookie),
        ),
        (
            200,
            vec![cc("s-maxage=60"), ("set-cookie", "a=b")],
            Some(Unstorable::SetCookie),
        ),
        (
            200,
            vec![cc("public, max-age=60"), ("set-cookie", "a=b")],
            None,
        ),
        (
            200,
            vec![cc("max-age=60, private=set-cookie"), ("set-cookie", "a=b")],
            None,
        ),
        (
            200,
            vec![
                cc("max-age=60, no-cache=\"Set-Cookie\""),
                ("set-cookie", "a=b"),
            ],
            None,
        ),
        // §4.1
        (
            200,
            vec![cc("max-age=60"), ("vary", "*")],
            Some(Unstorable::Vary),
        ),
        (
            200,
            vec![cc("max-age=60"), ("vary", "a, *")],
            Some(Unstorable::Vary),
        ),
        (200, vec![cc("max-age=60"), ("vary", "a")], None),
    ] {
        assert_eq!(get(code, &fields).err(), expected, "{code} {fields:?}");
    }
}

#[test]
fn requests_forbid_storing() {
    let ask = |method, request: &[(&str, &str)], answer: &str| {
        let (request, answer) = (map(request), map(&[("cache-control", answer)]));
        let request = RequestFacts::of(&method, &request);
        storable(&request, StatusCode::OK, &answer, &Rules::default(), NOW_MS).err()
    };
    assert_eq!(ask(Method::GET, &[], "max-age=60"), None);
    for method in [Method::HEAD, Method::POST, "get".parse().unwrap()] {
        assert_eq!(ask(method, &[], "max-age=60"), Some(Unstorable::Method));
    }
    // RFC 9111 §5.2.1.5
    let no_store = [("cache-control", "NO-STORE")];
    assert_eq!(
        ask(Method::GET, &no_store, "max-age=60"),
        Some(Unstorable::RequestNoStore)
    );
    // §3.5
    let authorized = [("authorization", "Basic x")];
    for (answer, expected) in [
        ("max-age=60", Some(Unstorable::Authorization)),
        (
            "max-age=60, proxy-revalidate",
            Some(Unstorable::Authorization),
        ),
        ("max-age=60, public", None),
        ("max-age=60, must-revalidate", None),
        ("s-maxage=60", None),
        ("s-maxage=60, private", Some(Unstorable::Private)),
    ] {
        assert_eq!(ask(Method::GET, &authorized, answer), expected, "{answer}");
    }
}

#[test]
fn the_first_source_of_a_lifetime_counts() {
    let cc = |value| ("cache-control", value);
    let hour = ("expires", "Sun, 06 Nov 1994 09:49:37 GMT");
    let minute = ("expires", "Sun, 06 Nov 1994 08:50:37 GMT");
    let thousand_s = ("last-modified", "Sun, 06 Nov 1994 08:32:57 GMT");
    let years = ("last-modified", "Sat, 06 Nov 1982 08:32:57 GMT");
    let future = ("last-modified", "Sun, 06 Nov 1994 08:49:38 GMT");
    for (fields, seconds, basis) in [
        // RFC 9111 §4.2.1
        (vec![cc("max-age=1, s-maxage=2"), hour], 2, Basis::SMaxage),
        (vec![cc("max-age=1"), hour, DATE], 1, Basis::MaxAge),
        (vec![cc("max-age=x"), hour, DATE], 0, Basis::MaxAge),
        (vec![cc("max-age=2147483649")], 1 << 31, Basis::MaxAge),
        (vec![hour, DATE], 3600, Basis::Expires),
        (
            vec![hour, ("date", "Sun, 06 Nov 1994 09:39:37 GMT")],
            600,
            Basis::Expires,
        ),
        (vec![hour, minute, DATE], 60, Basis::Expires),
        (vec![minute, hour, DATE], 60, Basis::Expires),
        (vec![hour, ("expires", "0"), DATE], 0, Basis::Expires),
        // §5.3, and RFC 9110 §6.6.1 for the missing Date
        (vec![hour], 3600, Basis::Expires),
        (vec![hour, ("date", "now")], 3600, Basis::Expires),
        (vec![("expires", "0"), DATE], 0, Basis::Expires),
        (vec![("expires", ""), DATE], 0, Basis::Expires),
        (
            vec![("expires", "Sun, 06 Nov 1994 08:49:36 GMT"), DATE],
            0,
            Basis::Expires,
        ),
        (
            vec![("expires", "Fri, 31 Dec 9999 23:59:59 GMT"), DATE],
            1 << 31,
            Basis::Expires,
        ),
        // §4.2.2
        (vec![thousand_s, DATE], 100, Basis::Heuristic),
        (vec![thousand_s], 100, Basis::Heuristic),
        (vec![years, DATE], 86_400, Basis::Heuristic),
        (vec![future, DATE], 0, Basis::Nothing),
        (vec![("last-modified", "x")], 0, Basis::Nothing),
        (vec![], 0, Basis::Nothing),
    ] {
        let found = freshness(&fields);
        assert_eq!(found.lifetime, Duration::from_secs(seconds), "{fields:?}");
        assert_eq!(found.basis, basis, "{fields:?}");
    }
    let rules = Rules {
        default_ttl: Duration::from_secs(7),
        ..Rules::default()
    };
    for (code, fields, seconds) in [
        (200, vec![], 7),
        (404, vec![], 7),
        (302, vec![], 0),
        (200, vec![thousand_s, DATE], 100),
        (200, vec![cc("max-age=1")], 1),
        (200, vec![("expires", "0")], 0),
    ] {
        let found = Freshness::of(status(code), &map(&fields), &rules, NOW_MS);
        assert_eq!(
            found.lifetime,
            Duration::from_secs(seconds),
            "{code} {fields:?}"
        );
    }
}

#[test]
fn age_is_what_upstream_says_or_what_the_date_shows() {
    let age = |value| ("age", value);
    for (fields, seconds) in [
        (vec![], 0),
        (vec![DATE], 0),
        // RFC 9111 §5.1
        (vec![age("100")], 100),
        (vec![age("100"), DATE], 100),
        (vec![age("0100")], 100),
        (vec![age("100, 7")], 100),
        (vec![age("100"), age("7")], 100),
        (vec![age("7"), age("100")], 7),
        (vec![age("-7")], 0),
        (vec![age("7.5")], 0),
        (vec![age("x, 7")], 0),
        (vec![age("")], 0),
        (vec![age("99999999999999999999")], 1 << 31),
        // §4.2.3
        (vec![("date", "Sun, 06 Nov 1994 08:49:07 GMT")], 30),
        (
            vec![("date", "Sun, 06 Nov 1994 08:49:07 GMT"), age("7")],
            30,
        ),
        (
            vec![("date", "Sun, 06 Nov 1994 08:49:07 GMT"), age("70")],
            70,
        ),
        (vec![("date", "Sun, 06 Nov 1994 09:49:37 GMT")], 0),
        (vec![("date", "yesterday")], 0),
    ] {
        let found = freshness(&fields);
        assert_eq!(
            found.age(NOW_MS),
            Duration::from_secs(seconds),
            "{fields:?}"
        );
        assert_eq!(
            found.age_s(NOW_MS + 5999),
            (seconds + 5).min(1 << 31),
            "{fields:?}"
        );
    }
    let found = freshness(&[("cache-control", "max-age=60"), age("50")]);
    assert_eq!(
        [0, 9_999, 10_000, 20_000].map(|ms| found.ttl_s(NOW_MS + ms)),
        [10, 1, 0, -10]
    );
    assert!(found.is_fresh(NOW_MS + 9_999) && !found.is_fresh(NOW_MS + 10_000));
    assert_eq!(found.age(NOW_MS - 60_000), Duration::ZERO); // a clock that was set back
}

#[test]
fn a_stored_response_is_reused_as_both_sides_allow() {
    use Reuse::{Fresh, StaleAccepted, StaleWhileRevalidate, Unavailable, Validate};
    let stale = Validate(Why::Stale);
    let asked = Validate(Why::Request);
    for (response, age_s, request, expected) in [
        // RFC 9111 §4.2
        ("max-age=60", 59, "", Fresh),
        ("max-age=60", 60, "", stale),
        // RFC 5861 §3
        (
            "max-age=60, stale-while-revalidate=30",
            60,
            "",
            StaleWhileRevalidate,
        ),
        (
            "max-age=60, stale-while-revalidate=30",
            89,
            "",
            StaleWhileRevalidate,
        ),
        ("max-age=60, stale-while-revalidate=30", 90, "", stale),
        ("max-age=60, stale-if-error=30", 60, "", stale),
        // RFC 9111 §4.2.4: forbidden, whoever allows it
        (
            "max-age=60, stale-while-revalidate=30, must-revalidate",
            60,
            "max-stale",
            stale,
        ),
        (
            "max-age=60, stale-while-revalidate=30, proxy-revalidate",
            60,
            "max-stale",
            stale,
        ),
        (
            "s-maxage=60, stale-while-revalidate=30",
            60,
            "max-stale",
            stale,
        ),
        ("max-age=60, must-revalidate", 59, "", Fresh),
        // §5.2.2.4
        ("no-cache, max-age=60", 0, "", Validate(Why::NoCache)),
        (
            "no-cache, max-age=60, stale-while-revalidate=9",
            61,
            "max-stale",
            Validate(Why::NoCache),
        ),
        ("no-cache=\"x\", max-age=60", 0, "", Fresh),
        // §5.2.1.4
        ("max-age=60", 0, "no-cache", asked),
        ("max-age=60", 60, "no-cache", stale),
        // §5.2.1.1
        ("max-age=60", 10, "max-age=10", Fresh),
        ("max-age=60", 11, "max-age=10", asked),
        ("max-age=60", 1, "max-age=0", asked),
        ("max-age=60", 0, "max-age=x", Fresh),
        (
            "max-age=60, stale-while-revalidate=30",
            70,
            "max-age=100",
            stale,
        ),
        ("max-age=60", 70, "max-age=100, max-stale=10", StaleAccepted),
        ("max-age=60", 70, "max-age=50, max-stale=20", stale),
        // §5.2.1.3
        ("max-age=60", 50, "min-fresh=10", Fresh),
        ("max-age=60", 51, "min-fresh=10", asked),
        (
            "max-age=60, stale-while-revalidate=30",
            61,
            "min-fresh=0",
            stale,
        ),
        // §5.2.1.2
        ("max-age=60", 70, "max-stale=10", StaleAccepted),
        ("max-age=60", 71, "max-stale=10", stale),
        ("max-age=60", 9_999_999, "max-stale", StaleAccepted),
        ("max-age=60", 61, "max-stale=x", stale),
        (
            "max-age=60, stale-while-revalidate=30",
            70,
            "max-stale",
            StaleWhileRevalidate,
        ),
        // §5.2.1.5, §5.2.1.7
        ("max-age=60", 0, "no-store", Fresh),
        ("max-age=60", 0, "only-if-cached", Fresh),
        ("max-age=60", 60, "only-if-cached", Unavailable),
        ("max-age=60", 0, "only-if-cached, no-cache", Unavailable),
        ("max-age=60", 61, "only-if-cached, max-stale", StaleAccepted),
        // RFC 8246 §2
        ("max-age=60, immutable", 10, "max-age=0", Fresh),
        ("max-age=60, immutable", 10, "no-cache", asked),
        ("max-age=60, immutable", 60, "max-age=0", stale),
    ] {
        let stored = freshness(&[("cache-control", response)]);
        let now_ms = NOW_MS + age_s * 1000;
        let found = reuse(&stored, &said(request), &Rules::default(), now_ms);
        assert_eq!(found, expected, "{response:?} at {age_s} s for {request:?}");
    }
    let deaf = Rules {
        honour_client: false,
        ..Rules::default()
    };
    let stored = freshness(&[("cache-control", "max-age=60")]);
    let all = said("no-cache, max-age=0, min-fresh=90, max-stale");
    assert_eq!(reuse(&stored, &all, &deaf, NOW_MS), Fresh);
    assert_eq!(reuse(&stored, &all, &deaf, NOW_MS + 60_000), stale);
    let now_ms = NOW_MS + 60_000;
    assert_eq!(
        reuse(&stored, &said("only-if-cached"), &deaf, now_ms),
        Unavailable
    );
}

#[test]
fn errors_are_covered_only_where_somebody_said_so() {
    for (response, age_s, request, expected) in [
        // RFC 5861 §4
        ("max-age=60, stale-if-error=30", 89, "", true),
        ("max-age=60, stale-if-error=30", 90, "", false),
        ("max-age=60", 60, "", false),
        ("max-age=60", 89, "stale-if-error=30", true),
        (
            "max-age=60, stale-if-error=30",
            89,
            "stale-if-error=1",
            true,
        ),
        ("max-age=60, stale-while-revalidate=30", 61, "", false),
        // fresh, but the client wanted it validated
        ("max-age=60", 59, "no-cache", true),
        // RFC 9111 §4.2.4
        (
            "max-age=60, stale-if-error=30, must-revalidate",
            60,
            "",
            false,
        ),
        (
            "max-age=60, stale-if-error=30, must-revalidate",
            59,
            "",
            true,
        ),
        (
            "s-maxage=60, stale-if-error=30",
            60,
            "stale-if-error=30",
            false,
        ),
        ("no-cache, max-age=60, stale-if-error=30", 0, "", false),
    ] {
        let stored = freshness(&[("cache-control", response)]);
        let now_ms = NOW_MS + age_s * 1000;
        let found = may_serve_on_error(&stored, &said(request), &Rules::default(), now_ms);
        assert_eq!(found, expected, "{response:?} at {age_s} s for {request:?}");
    }
    let errors: Vec<_> = (100..=999).filter(|code| is_error(status(*code))).collect();
    assert_eq!(errors, [500, 502, 503, 504]);
}

#[test]
fn unsafe_methods_that_succeed_invalidate() {
    // RFC 9111 §4.4
    for (method, code, expected) in [
        ("POST", 200, true),
        ("PUT", 204, true),
        ("DELETE", 303, true),
        ("PATCH", 301, true),
        ("FROB", 200, true),
        ("POST", 404, false),
        ("POST", 500, false),
        ("GET", 200, false),
        ("HEAD", 200, false),
        ("OPTIONS", 200, false),
        ("TRACE", 200, false),
    ] {
        let method = method.parse().unwrap();
        assert_eq!(
            invalidates(&method, status(code)),
            expected,
            "{method} {code}"
        );
    }
}

/// RFC 9111 §4.2.3 as it is written, in seconds.
fn age_by_the_book(age: u64, date: u64, asked: u64, answered: u64, now: u64) -> u64 {
    let apparent_age = answered.saturating_sub(date);
    let response_delay = answered - asked;
    let corrected_age_value = age + response_delay;
    let corrected_initial_age = apparent_age.max(corrected_age_value);
    let resident_time = now - answered;
    corrected_initial_age + resident_time
}

fn some_response() -> impl Strategy<Value = HeaderMap> {
    let directive = prop::sample::select(vec![
        "max-age=60",
        "max-age=5",
        "max-age=x",
        "s-maxage=30",
        "public",
        "private",
        "private=\"x\"",
        "no-store",
        "no-cache",
        "must-revalidate",
        "immutable",
        "stale-while-revalidate=20",
        "stale-if-error=20",
        "must-understand",
        "\"",
    ]);
    let control = prop::collection::vec(directive, 0..4).prop_map(|all| all.join(", "));
    let other = prop_oneof![
        Just(("etag", "\"a\"".to_owned())),
        Just(("set-cookie", "a=b".to_owned())),
        Just(("last-modified", "Sun, 06 Nov 1994 08:32:57 GMT".to_owned())),
        Just(("expires", "Sun, 06 Nov 1994 09:49:37 GMT".to_owned())),
        Just(("date", DATE.1.to_owned())),
        "[0-9]{1,12}".prop_map(|age| ("age", age)),
        "[ -~]{0,20}".prop_map(|text| ("expires", text)),
        "[ -~]{0,20}".prop_map(|text| ("cache-control", text)),
        "[ -~]{0,20}".prop_map(|text| ("vary", text)),
    ];
    let others = prop::collection::vec(other, 0..5);
    (control, others).prop_map(|(control, others)| {
        let mut map = map(&[("cache-control", &control)]);
        for (name, value) in others {
            map.append(name, HeaderValue::from_str(&value).unwrap());
        }
        map
    })
}

proptest! {
    #[test]
    fn age_is_computed_by_the_book(
        age in 0u64..10_000, skew in -5_000i64..5_000, delay in 0u64..100, stay in 0u64..10_000,
    ) {
        let asked = NOW_MS / 1000;
        let date = asked.checked_add_signed(skew).unwrap();
        let mut headers = map(&[("age", &age.to_string())]);
        headers.insert("date", validator::date_value(date));
        let found = Freshness::of(StatusCode::OK, &headers, &Rules::default(), asked * 1000);
        let now = asked + delay + stay;
        let expected = age_by_the_book(age, date, asked, asked + delay, now);
        prop_assert_eq!(found.age_s(now * 1000), expected);
    }

    #[test]
    fn freshness_only_ever_ends(
        headers in some_response(), asked_ms: u64, early in 0u64..200_000, late in 0u64..200_000,
    ) {
        let stored = Freshness::of(StatusCode::OK, &headers, &Rules::default(), asked_ms);
        let (then, later) = (
            asked_ms.saturating_add(early),
            asked_ms.saturating_add(early).saturating_add(late),
        );
        prop_assert!(stored.age(then) <= stored.age(later));
        prop_assert!(stored.ttl_s(then) >= stored.ttl_s(later));
        let nothing = CacheControl::default();
        let rank = |now_ms| match reuse(&stored, &nothing, &Rules::default(), now_ms) {
            Reuse::Fresh => 0,
            Reuse::StaleWhileRevalidate => 1,
            _ => 2,
        };
        prop_assert!(rank(then) <= rank(later));
        let covered = |now_ms| may_serve_on_error(&stored, &nothing, &Rules::default(), now_ms);
        prop_assert!(covered(then) || !covered(later));
        prop_assert!(rank(then) > 0 || covered(then));
    }

    #[test]
    fn a_further_line_of_restrictions_never_permits_more(
        headers in some_response(),
        further in prop::sample::select(vec![
            "no-store", "private", "no-cache", "max-age=1", "max-age=x", "s-maxage=0",
            "must-revalidate", "unknown", "unknown=\"public\"", "",
        ]),
    ) {
        let request = RequestFacts::of(&Method::GET, &HeaderMap::new());
        let judge = |h: &HeaderMap| storable(&request, StatusCode::OK, h, &Rules::default(), NOW_MS);
        let before = judge(&headers);
        let mut stricter = headers;
        stricter.append("cache-control", HeaderValue::from_static(further));
        match (before, judge(&stricter)) {
            (Ok(before), Ok(after)) => {
                // `max-age` and `s-maxage` replace a weaker source, which may be shorter.
                if before.basis == after.basis {
                    prop_assert!(after.lifetime <= before.lifetime);
                }
                prop_assert!(after.no_cache >= before.no_cache);
                prop_assert!(after.must_revalidate >= before.must_revalidate);
            }
            // A lifetime permits storing what had none; nothing else here permits anything.
            (Err(before), Ok(_)) => prop_assert!(
                further.contains("age=")
                    && matches!(before, Unstorable::NoFreshness | Unstorable::NeverReusable)
            ),
            (_, Err(_)) => {}
        }
    }

    #[test]
    fn stored_fields_are_as_fresh_as_the_received_ones(
        headers in some_response(), delay_ms in 0u64..3_000,
    ) {
        let received = Freshness::of(StatusCode::OK, &headers, &Rules::default(), NOW_MS);
        let stored = storable_fields(&headers, &[], NOW_MS + delay_ms);
        let again = Freshness::of(StatusCode::OK, &stored, &Rules::default(), NOW_MS);
        prop_assert_eq!(received.age(NOW_MS), again.age(NOW_MS));
        prop_assert_eq!(received.no_cache, again.no_cache);
        if headers.contains_key("date") {
            prop_assert_eq!(received, again);
        }
    }
}
