//! Header fields: which are stored, which are forwarded, and how a 304 renews them
//! (RFC 9110 §7.6.1, RFC 9111 §3.1 and §3.2).

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{
    list::members,
    targeted::Governing,
    validator::{EntityTag, date_of, date_value, is_about, same_strong_validator},
};

/// Fields that concern one connection or one proxy, besides those that `Connection` names.
const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Fields that a 304 never changes, since they tell how the stored bytes are to be read
/// (RFC 9111 §3.2: `Content-Length`, what the stored response depends upon, and what the recipient
/// processes and removes). `Content-Type` is not among them: §3.2 lets it be renewed.
const OF_THE_BYTES: [&str; 4] = [
    "content-digest",
    "content-encoding",
    "content-length",
    "content-range",
];

/// Removes what must not be forwarded, in either direction: connection-specific fields, the fields
/// that `Connection` names, and proxy credentials, for a gateway is nobody's proxy.
///
/// `TE: trailers` and `Upgrade` are to be generated anew by whoever supports them on the next
/// connection.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named = named_by_connection(headers);
    remove(headers, |name| is_of_one_hop(name, &named));
}

fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|line| members(line.as_bytes()))
        .filter_map(|option| HeaderName::from_bytes(option).ok())
        .collect()
}

fn is_of_one_hop(name: &HeaderName, named: &[HeaderName]) -> bool {
    HOP_BY_HOP.contains(&name.as_str()) || named.contains(name)
}

/// Removes the fields that `unwanted` names. The others keep their order, in which they are forwarded;
/// [`HeaderMap::remove`] would put the last into the hole.
pub fn remove(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    if !headers.keys().any(&unwanted) {
        return;
    }
    let all = std::mem::take(headers);
    headers.reserve(all.len());
    let mut current = None;
    for (name, value) in all {
        current = name.or(current);
        let name = current
            .as_ref()
            .expect("a field's first value has its name");
        if !unwanted(name) {
            headers.append(name.clone(), value);
        }
    }
}

/// The fields of a response as they are stored. `targets` are the site's
/// (RFC 9213 §2.2). `received_ms` (Unix milliseconds) becomes its
/// `Date` when it has none that can be read (RFC 9110 §6.6.1).
///
/// Dropped: what [`strip_hop_by_hop`] drops, the fields named by `no-cache="…"` and `private="…"`
/// (RFC 9111 §3.1), and always `Set-Cookie`: where the origin allows such a response to be shared,
/// its content is shared and its cookie is not. The client whose request fetched the
/// response gets them nevertheless ([`divided_fields`]).
///
/// Kept: everything else. `Age` as received, for freshness is computed from it wherever the
/// response is stored; who delivers replaces it. `Via` and `Cache-Status` as received: they tell
/// the way from the origin, and this node's own members are appended at each delivery, never
/// stored.
pub fn storable_fields(
    received: &HeaderMap,
    targets: &[HeaderName],
    received_ms: u64,
) -> HeaderMap {
    divided_fields(received, targets, received_ms).0
}

/// The fields of a response as they are stored ([`storable_fields`]), and those that its sender wants
/// withheld from all but the client whose request fetched it: those named by `no-cache="…"` and
/// `private="…"`, and cookies.
pub fn divided_fields(
    received: &HeaderMap,
    targets: &[HeaderName],
    received_ms: u64,
) -> (HeaderMap, HeaderMap) {
    let named = named_by_connection(received);
    let mut to_withhold = Governing::of(received, targets).said.withheld;
    to_withhold.push(header::SET_COOKIE);
    let stays = |name: &HeaderName| !is_of_one_hop(name, &named) && !to_withhold.contains(name);
    let has_date = stays(&header::DATE) && date_of(received, &header::DATE).is_some();
    let kept = |name: &HeaderName| stays(name) && (has_date || name != header::DATE);
    let stored = compact(received, kept, !has_date, received_ms);
    let mut withheld = HeaderMap::new();
    for name in &to_withhold {
        for value in received.get_all(name) {
            withheld.append(name, value.clone());
        }
    }
    (stored, withheld)
}

/// Those of `fields` that are `kept`, their values in one allocation of their own. As received, each is a
/// slice of the buffer it was read into, which it would keep alive for as long as it is stored. With a new
/// `Date` if it has to be `dated`.
fn compact(
    fields: &HeaderMap,
    kept: impl Fn(&HeaderName) -> bool,
    dated: bool,
    received_ms: u64,
) -> HeaderMap {
    let (mut length, mut count) = (0, usize::from(dated));
    for (_, value) in fields.iter().filter(|(name, _)| kept(name)) {
        length += value.len();
        count += 1;
    }
    let mut values = BytesMut::with_capacity(length);
    for (_, value) in fields.iter().filter(|(name, _)| kept(name)) {
        values.extend_from_slice(value.as_bytes());
    }
    let mut values = values.freeze();
    let mut compacted = HeaderMap::with_capacity(count);
    for (name, value) in fields.iter().filter(|(name, _)| kept(name)) {
        let own = values.split_to(value.len());
        let own = HeaderValue::from_maybe_shared(own).unwrap_or_else(|_| value.clone());
        compacted.append(name, own);
    }
    if dated {
        compacted.append(header::DATE, date_value(received_ms / 1000));
    }
    // A clone has no room for more fields, which is up to as much as the fields themselves take.
    compacted.clone()
}

/// The stored fields as a 304, received at `received_ms`, renews them; `None` when the 304 speaks
/// of another response than the stored one ([`is_about`]), which then has to be fetched whole.
///
/// Fields that the 304 carries replace the stored ones, except those that are never stored and
/// those that tell how the stored bytes are to be read. The stored `Age` goes in any case: it
/// belonged to the earlier answer. The result may be unstorable (the 304 may say `private`) and
/// may vary by other fields: judge it anew.
pub fn freshen(
    stored: &HeaderMap,
    not_modified: &HeaderMap,
    targets: &[HeaderName],
    received_ms: u64,
) -> Option<HeaderMap> {
    if !is_about(stored, not_modified) {
        return None;
    }
    renewed(stored, not_modified, targets, received_ms)
}

/// The same for the 200 to a HEAD (RFC 9111 §4.3.5): it speaks of the stored response of `length`
/// bytes if what it has of validators and of `Content-Length` is the same.
pub fn freshen_by_head(
    stored: &HeaderMap,
    length: u64,
    answer: &HeaderMap,
    targets: &[HeaderName],
    received_ms: u64,
) -> Option<HeaderMap> {
    let same = |name| !answer.contains_key(name) || answer.get(name) == stored.get(name);
    let same_length = answer
        .get(header::CONTENT_LENGTH)
        .is_none_or(|value| value.as_bytes() == length.to_string().as_bytes());
    if !(same(&header::ETAG) && same(&header::LAST_MODIFIED) && same_length) {
        return None;
    }
    renewed(stored, answer, targets, received_ms)
}

/// The fields of the whole object that a stored part and the fetched rest make (RFC 9111 §3.4): both
/// must have the same strong validator.
pub fn combined(
    stored: &HeaderMap,
    rest: &HeaderMap,
    targets: &[HeaderName],
    received_ms: u64,
) -> Option<HeaderMap> {
    same_strong_validator(stored, rest).then(|| renewed(stored, rest, targets, received_ms))?
}

/// `stored` with what `answer` has in place of its own (RFC 9111 §3.2).
fn renewed(
    stored: &HeaderMap,
    answer: &HeaderMap,
    targets: &[HeaderName],
    received_ms: u64,
) -> Option<HeaderMap> {
    let news = storable_fields(answer, targets, received_ms);
    let mut fields = stored.clone();
    fields.remove(header::AGE);
    for name in news.keys() {
        if OF_THE_BYTES.contains(&name.as_str()) {
            continue;
        }
        fields.remove(name);
        for value in news.get_all(name) {
            // More fields than a map can hold: no answer that anybody should keep.
            fields.try_append(name.clone(), value.clone()).ok()?;
        }
    }
    if is_weaker(stored, answer)
        && let Some(tag) = stored.get(header::ETAG)
    {
        fields.insert(header::ETAG, tag.clone());
    }
    withhold(&mut fields, targets);
    Some(fields)
}

/// Whether the tag of what is stored promises less than that of the answer, which then is not its own: nginx weakens
/// the tag of what it compresses, but not that of the 304 for it.
fn is_weaker(stored: &HeaderMap, answer: &HeaderMap) -> bool {
    let is_weak = |fields| EntityTag::of(fields).map(|tag| tag.weak);
    (is_weak(stored), is_weak(answer)) == (Some(true), Some(false))
}

/// Removes what a response itself wants withheld, and cookies.
fn withhold(fields: &mut HeaderMap, targets: &[HeaderName]) {
    for name in Governing::of(fields, targets).said.withheld {
        fields.remove(name);
    }
    fields.remove(header::SET_COOKIE);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::directives::CacheControl, *};

    const NOW_MS: u64 = 784_111_777_500;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            let name: HeaderName = name.parse().unwrap();
            map.append(name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn what_belongs_to_one_connection_stays_there() {
        // RFC 9110 §7.6.1
        let mut headers = map(&[
            ("connection", "close, X-Mine"),
            ("connection", "keep-alive,, \"?"),
            ("x-mine", "1"),
            ("x-mine", "2"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic x"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x-yours", "3"),
            ("trailer", "x-checksum"),
        ]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("x-yours", "3"), ("trailer", "x-checksum")]));
    }

    #[test]
    fn everything_is_stored_but_what_must_not_be() {
        // RFC 9111 §3.1
        let stored = storable_fields(
            &map(&[
                ("connection", "x-hop"),
                ("x-hop", "1"),
                (
                    "cache-control",
                    "max-age=1, private=\"x-user\", no-cache=\"x-once\"",
                ),
                ("x-user", "me"),
                ("x-once", "now"),
                ("set-cookie", "a=b"),
                ("age", "7"),
                ("via", "1.1 other"),
                ("cache-status", "other; hit"),
                ("x-unknown", "1"),
                ("x-unknown", "2"),
            ]),
            &[],
            NOW_MS,
        );
        let expected = map(&[
            (
                "cache-control",
                "max-age=1, private=\"x-user\", no-cache=\"x-once\"",
            ),
            ("age", "7"),
            ("via", "1.1 other"),
            ("cache-status", "other; hit"),
            ("x-unknown", "1"),
            ("x-unknown", "2"),
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"), // RFC 9110 §6.6.1
        ]);
        assert_eq!(stored, expected);
        let dated = map(&[("date", "Sun Nov  6 08:49:30 1994")]);
        assert_eq!(storable_fields(&dated, &[], NOW_MS), dated);
        let misdated = map(&[("date", "today")]);
        let expected = map(&[("date", "Sun, 06 Nov 1994 08:49:37 GMT")]);
        assert_eq!(storable_fields(&misdated, &[], NOW_MS), expected);
    }

    #[test]
    fn a_head_renews_what_it_speaks_of() {
        // RFC 9111 §4.3.5
        let stored = map(&[
            ("etag", "\"a\""),
            ("last-modified", "Sun, 06 Nov 1994 08:00:00 GMT"),
            ("cache-control", "max-age=1"),
            ("x-kept", "old"),
        ]);
        for (fields, about) in [
            (vec![("cache-control", "max-age=9")], true),
            (vec![("etag", "\"a\""), ("content-length", "5")], true),
            (vec![("etag", "\"b\"")], false),
            (vec![("etag", "W/\"a\"")], false),
            (vec![("content-length", "6")], false),
            (
                vec![("last-modified", "Sun, 06 Nov 1994 08:00:01 GMT")],
                false,
            ),
        ] {
            let found = freshen_by_head(&stored, 5, &map(&fields), &[], NOW_MS);
            assert_eq!(found.is_some(), about, "{fields:?}");
        }
        let news = map(&[
            ("cache-control", "max-age=9"),
            ("x-new", "1"),
            ("content-length", "5"),
        ]);
        let found = freshen_by_head(&stored, 5, &news, &[], NOW_MS).unwrap();
        assert_eq!(found["cache-control"], "max-age=9");
        assert_eq!(
            (&found["x-kept"], &found["x-new"]),
            (&"old".parse().unwrap(), &"1".parse().unwrap())
        );
        assert!(!found.contains_key("content-length"));
    }

    #[test]
    fn a_304_renews_what_it_carries_and_nothing_of_the_bytes() {
        // RFC 9111 §3.2
        let stored = map(&[
            ("date", "Sun, 06 Nov 1994 08:00:00 GMT"),
            ("etag", "\"a\""),
            ("age", "100"),
            ("cache-control", "max-age=60"),
            ("content-type", "text/plain"),
            ("content-length", "5"),
            ("content-encoding", "gzip"),
            ("x-kept", "old"),
            ("x-many", "1"),
            ("x-many", "2"),
        ]);
        let not_modified = map(&[
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("etag", "\"a\""),
            ("cache-control", "max-age=120, no-cache=\"x-secret\""),
            ("content-type", "text/html"),
            ("content-length", "0"),
            ("content-encoding", "br"),
            ("content-range", "bytes 0-1/5"),
            ("content-digest", "sha-256=:x:"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("x-secret", "1"),
            ("set-cookie", "a=b"),
            ("x-many", "3"),
            ("x-new", "4"),
        ]);
        let expected = map(&[
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("etag", "\"a\""),
            ("cache-control", "max-age=120, no-cache=\"x-secret\""),
            ("content-type", "text/html"),
            ("content-length", "5"),
            ("content-encoding", "gzip"),
            ("x-kept", "old"),
            ("x-many", "3"),
            ("x-new", "4"),
        ]);
        assert_eq!(freshen(&stored, &not_modified, &[], NOW_MS), Some(expected));
        // RFC 9110 §6.6.1: an undated 304 is dated by its arrival.
        let undated = freshen(&stored, &HeaderMap::new(), &[], NOW_MS).unwrap();
        assert_eq!(undated["date"], "Sun, 06 Nov 1994 08:49:37 GMT");
        assert!(!undated.contains_key("age"));
        // RFC 9111 §4.3.4
        assert_eq!(
            freshen(&stored, &map(&[("etag", "\"b\"")]), &[], NOW_MS),
            None
        );
    }

    fn some_fields() -> impl Strategy<Value = HeaderMap> {
        let names = prop::sample::select(vec![
            "age",
            "cache-control",
            "connection",
            "content-digest",
            "content-encoding",
            "content-length",
            "content-range",
            "content-type",
            "date",
            "etag",
            "set-cookie",
            "x-a",
            "x-b",
        ]);
        let values = prop_oneof![
            Just("x-a, x-b".to_owned()),
            Just("private=\"x-a\"".to_owned()),
            Just("\"a\"".to_owned()),
            "[ -~\u{e9}]{0,12}",
        ];
        prop::collection::vec((names, values), 0..16).prop_map(|fields| {
            let mut map = HeaderMap::new();
            for (name, value) in fields {
                if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                    map.append(name, value);
                }
            }
            map
        })
    }

    proptest! {
        #[test]
        fn freshening_never_touches_what_tells_how_bytes_are_read(
            received in some_fields(), not_modified in some_fields()
        ) {
            let stored = storable_fields(&received, &[], NOW_MS);
            if let Some(fresh) = freshen(&stored, &not_modified, &[], NOW_MS + 1000) {
                for name in OF_THE_BYTES {
                    // What the renewed response wants withheld may go, nothing may come or change.
                    if fresh.contains_key(name) {
                        let (new, old) = (fresh.get_all(name), stored.get_all(name));
                        prop_assert!(new.iter().eq(old.iter()));
                    }
                }
                prop_assert!(!fresh.contains_key("set-cookie"));
                prop_assert!(!fresh.contains_key("connection"));
                for name in CacheControl::of(&fresh).withheld {
                    prop_assert!(!fresh.contains_key(name));
                }
                prop_assert!(date_of(&fresh, &header::DATE).is_some());
            }
        }

        #[test]
        fn what_is_stored_is_stored_again_unchanged(received in some_fields()) {
            let once = storable_fields(&received, &[], NOW_MS);
            prop_assert_eq!(&storable_fields(&once, &[], NOW_MS + 5000), &once);
        }
    }
}
