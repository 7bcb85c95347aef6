//! Conditional requests: whether a stored response is sent, or only the word that the client
//! already has it (RFC 9110 §13, RFC 9111 §4.3.2).

use http::{HeaderMap, HeaderName, StatusCode, header};

use crate::cache::policy::validator::{EntityTag, date, date_of, only};

/// What a request's preconditions come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answer as if there were none.
    Proceed,
    /// 304, with the [`not_modified_fields`].
    NotModified,
    /// 412.
    PreconditionFailed,
}

/// Evaluates the preconditions of a GET or HEAD that would be answered by the stored `status` and
/// fields, in the order of RFC 9110 §13.2.2. `Range` and `If-Range` come after this.
///
/// The first two steps are those of an origin server, which a cache may leave out, and a gateway
/// is towards its clients (RFC 9110 §3.7): they are done, since a client that says `If-Match`
/// wants to hear of another version rather than mix its bytes with what it has.
pub fn evaluate(request: &HeaderMap, status: StatusCode, stored: &HeaderMap) -> Verdict {
    // RFC 9110 §13.2.1: only where the answer would otherwise be a success.
    if !status.is_success() {
        return Verdict::Proceed;
    }
    let own = EntityTag::of(stored);
    if request.contains_key(header::IF_MATCH) {
        let matches = |tag: &EntityTag<'_>| own.is_some_and(|own| own.strongly_matches(tag));
        if !names(request, &header::IF_MATCH, matches) {
            return Verdict::PreconditionFailed;
        }
    } else if let Some(since) = asked_date(request, &header::IF_UNMODIFIED_SINCE)
        && date_of(stored, &header::LAST_MODIFIED).is_some_and(|modified| modified > since)
    {
        return Verdict::PreconditionFailed;
    }
    if request.contains_key(header::IF_NONE_MATCH) {
        let matches = |tag: &EntityTag<'_>| own.is_some_and(|own| own.weakly_matches(tag));
        if names(request, &header::IF_NONE_MATCH, matches) {
            return Verdict::NotModified;
        }
    } else if let Some(since) = asked_date(request, &header::IF_MODIFIED_SINCE)
        && changed(stored).is_some_and(|changed| changed <= since)
    {
        return Verdict::NotModified;
    }
    Verdict::Proceed
}

/// What becomes of an answer that was asked for without the client's conditions: a 304 or a 412 with these
/// fields and without its body, where they say so.
pub fn shortened(
    request: &HeaderMap,
    status: StatusCode,
    fields: &HeaderMap,
) -> Option<(StatusCode, HeaderMap)> {
    match evaluate(request, status, fields) {
        Verdict::Proceed => None,
        Verdict::NotModified => Some((StatusCode::NOT_MODIFIED, not_modified_fields(fields))),
        Verdict::PreconditionFailed => {
            let mut fields = fields.clone();
            for name in [
                header::CONTENT_TYPE,
                header::CONTENT_ENCODING,
                header::CONTENT_RANGE,
                header::TRAILER,
            ] {
                fields.remove(name);
            }
            fields.insert(header::CONTENT_LENGTH, 0.into());
            Some((StatusCode::PRECONDITION_FAILED, fields))
        }
    }
}

/// The fields of a 304 for a stored response (RFC 9110 §15.4.5): all but those that describe the
/// content which is not sent, or say how parts of it are had. `Last-Modified` stays only where there is no `ETag` to go by.
pub fn not_modified_fields(stored: &HeaderMap) -> HeaderMap {
    let mut fields = stored.clone();
    for name in [
        "accept-ranges",
        "content-digest",
        "content-encoding",
        "content-language",
        "content-length",
        "content-range",
        "content-type",
        "repr-digest",
    ] {
        fields.remove(name);
    }
    if EntityTag::of(stored).is_some() {
        fields.remove(header::LAST_MODIFIED);
    }
    fields
}

/// Whether a list of tags names the stored response: `*`, or a tag that matches.
fn names(
    request: &HeaderMap,
    field: &HeaderName,
    matches: impl Fn(&EntityTag<'_>) -> bool,
) -> bool {
    request.get_all(field).iter().any(|line| {
        let line = line.as_bytes();
        line.trim_ascii() == b"*" || EntityTag::list(line).any(|tag| matches(&tag))
    })
}

/// The date in a request's precondition; what is no date, or is several, is ignored (RFC 9110
/// §13.1.3, §13.1.4).
fn asked_date(request: &HeaderMap, field: &HeaderName) -> Option<u64> {
    only(request, field).and_then(|value| date(value.as_bytes()))
}

/// Since when the content is known to be what it is: `Last-Modified`, or else `Date`, which every
/// stored response has (RFC 9111 §4.3.2).
fn changed(stored: &HeaderMap) -> Option<u64> {
    if stored.contains_key(header::LAST_MODIFIED) {
        date_of(stored, &header::LAST_MODIFIED)
    } else {
        date_of(stored, &header::DATE)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const SENT: &str = "Sun, 06 Nov 1994 09:00:00 GMT";

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            let name: HeaderName = name.parse().unwrap();
            map.append(name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn preconditions_are_evaluated_in_order() {
        use Verdict::{NotModified, PreconditionFailed, Proceed};
        let (m, um) = ("if-match", "if-unmodified-since");
        let (nm, ms) = ("if-none-match", "if-modified-since");
        let stored = map(&[
            ("etag", "\"a\""),
            ("last-modified", MODIFIED),
            ("date", SENT),
        ]);
        for (request, expected) in [
            (vec![], Proceed),
            // RFC 9110 §13.1.2, RFC 9111 §4.3.2
            (vec![(nm, "\"a\"")], NotModified),
            (vec![(nm, "W/\"a\"")], NotModified),
            (vec![(nm, "\"b\", \"a\"")], NotModified),
            (vec![(nm, "\"b\""), (nm, "\"a\"")], NotModified),
            (vec![(nm, "*")], NotModified),
            (vec![(nm, "\"b\"")], Proceed),
            (vec![(nm, "\"*\"")], Proceed),
            (vec![(nm, "a")], Proceed),
            (vec![(nm, "")], Proceed),
            // §13.1.3: exactly then, later, earlier, in another format, and no date at all
            (vec![(ms, MODIFIED)], NotModified),
            (vec![(ms, SENT)], NotModified),
            (vec![(ms, BEFORE)], Proceed),
            (vec![(ms, "Sunday, 06-Nov-94 08:49:37 GMT")], NotModified),
            (vec![(ms, "0")], Proceed),
            (vec![(ms, MODIFIED), (ms, MODIFIED)], Proceed),
            // §13.1.3: ignored beside If-None-Match
            (vec![(nm, "\"b\""), (ms, MODIFIED)], Proceed),
            (vec![(nm, "\"a\""), (ms, BEFORE)], NotModified),
            // §13.1.1
            (vec![(m, "\"a\"")], Proceed),
            (vec![(m, "\"b\", \"a\"")], Proceed),
            (vec![(m, "*")], Proceed),
            (vec![(m, "W/\"a\"")], PreconditionFailed),
            (vec![(m, "\"b\"")], PreconditionFailed),
            // §13.1.4
            (vec![(um, MODIFIED)], Proceed),
            (vec![(um, BEFORE)], PreconditionFailed),
            (vec![(um, "0")], Proceed),
            // §13.2.2
            (vec![(m, "\"a\""), (um, BEFORE)], Proceed),
            (vec![(m, "\"b\""), (nm, "\"a\"")], PreconditionFailed),
            (vec![(m, "\"a\""), (nm, "\"a\"")], NotModified),
            (vec![(um, MODIFIED), (ms, MODIFIED)], NotModified),
        ] {
            let request = map(&request);
            assert_eq!(
                evaluate(&request, StatusCode::OK, &stored),
                expected,
                "{request:?}"
            );
            // §13.2.1
            assert_eq!(evaluate(&request, StatusCode::NOT_FOUND, &stored), Proceed);
        }
    }

    #[test]
    fn a_response_without_validators_goes_by_its_date() {
        // RFC 9111 §4.3.2
        let stored = map(&[("date", MODIFIED)]);
        for (request, expected) in [
            (("if-modified-since", MODIFIED), Verdict::NotModified),
            (("if-modified-since", BEFORE), Verdict::Proceed),
            (("if-unmodified-since", BEFORE), Verdict::Proceed), // RFC 9110 §13.1.4
            (("if-none-match", "\"a\""), Verdict::Proceed),
            (("if-match", "\"a\""), Verdict::PreconditionFailed),
        ] {
            assert_eq!(
                evaluate(&map(&[request]), StatusCode::OK, &stored),
                expected
            );
        }
        let unclear = map(&[("date", MODIFIED), ("last-modified", "yesterday")]);
        let request = map(&[("if-modified-since", SENT)]);
        assert_eq!(
            evaluate(&request, StatusCode::OK, &unclear),
            Verdict::Proceed
        );
    }

    #[test]
    fn a_304_says_nothing_of_content_it_does_not_have() {
        // RFC 9110 §15.4.5
        let kept = [
            ("content-location", "/a"),
            ("date", SENT),
            ("etag", "\"a\""),
            ("vary", "accept-encoding"),
            ("cache-control", "max-age=60"),
            ("expires", SENT),
            ("via", "1.1 x"),
        ];
        let mut stored = map(&kept);
        for (name, value) in [
            ("accept-ranges", "bytes"),
            ("content-type", "text/plain"),
            ("content-length", "5"),
            ("content-encoding", "gzip"),
            ("content-language", "en"),
            ("last-modified", MODIFIED),
        ] {
            stored.insert(name, value.parse().unwrap());
        }
        assert_eq!(not_modified_fields(&stored), map(&kept));
        let dated = map(&[("last-modified", MODIFIED), ("date", SENT)]);
        assert_eq!(not_modified_fields(&dated), dated);
    }

    #[test]
    fn a_412_says_nothing_of_content_it_does_not_have() {
        // RFC 9110 §14.4, §15.5.13
        let part = map(&[
            ("content-range", "bytes 0-4/10"),
            ("content-type", "text/plain"),
            ("content-length", "5"),
            ("etag", "\"a\""),
        ]);
        let request = map(&[("if-match", "\"b\"")]);
        let expected = map(&[("content-length", "0"), ("etag", "\"a\"")]);
        let shortened = shortened(&request, StatusCode::PARTIAL_CONTENT, &part);
        assert_eq!(shortened, Some((StatusCode::PRECONDITION_FAILED, expected)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_preconditions(values in prop::collection::vec(any::<Vec<u8>>(), 4)) {
            let names = ["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"];
            let mut request = HeaderMap::new();
            for (name, value) in names.into_iter().zip(&values) {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    request.append(name, value);
                }
            }
            for value in &values {
                let _ = EntityTag::list(value).count();
            }
            evaluate(&request, StatusCode::OK, &map(&[("etag", "\"a\""), ("date", SENT)]));
        }
    }
}
