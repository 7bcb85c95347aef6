//! Why answers were not stored, kept for whoever asks later. Written when an answer is refused, never
//! looked at by a request.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use cluster::{key::Key, quantity::Bytes};
use http::{HeaderMap, HeaderName, StatusCode, header};

use super::{
    policy::{Rules, Unstorable, rules::CDN_CACHE_CONTROL, targeted::Governing},
    vary::VARY_FIELDS_MAX,
};

/// Keys of which it is remembered why they are not stored; the oldest go first. About 200 bytes each.
pub const REFUSALS_MAX: usize = 16_384;

/// What is remembered. A clone-able handle.
#[derive(Clone, Debug, Default)]
pub struct Refusals {
    shared: Arc<Mutex<Remembered>>,
}

#[derive(Debug, Default)]
struct Remembered {
    by_key: HashMap<Key, Refusal>,
    /// Oldest first.
    order: VecDeque<Key>,
}

/// Why an answer was not stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In words, citing what is responsible.
    pub why: String,
    /// When, in Unix milliseconds.
    pub at_ms: u64,
}

impl Refusals {
    /// Remembers why the answer for `key` was not stored.
    pub fn remember(&self, key: Key, refusal: Refusal) {
        let mut remembered = self.lock();
        if remembered.by_key.insert(key, refusal).is_some() {
            return;
        }
        remembered.order.push_back(key);
        if remembered.order.len() > REFUSALS_MAX
            && let Some(oldest) = remembered.order.pop_front()
        {
            remembered.by_key.remove(&oldest);
        }
    }

    /// Why the last answer for `key` was not stored, if it was not.
    pub fn find(&self, key: Key) -> Option<Refusal> {
        self.lock().by_key.get(&key).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.shared
            .lock()
            .expect("no code panics while it holds this lock")
    }
}

impl Refusal {
    /// For an answer that may not be shared.
    pub fn of(
        reason: Unstorable,
        status: StatusCode,
        headers: &HeaderMap,
        rules: &Rules,
        at_ms: u64,
    ) -> Self {
        let why = in_words(reason, status, headers, rules);
        Self { why, at_ms }
    }

    /// For an answer whose body is larger than may be stored.
    pub fn too_large(length: u64, limit: u64, at_ms: u64) -> Self {
        let (length, limit) = (Bytes(length), Bytes(limit));
        let why =
            format!("the body of {length} is larger than what is stored: {limit} (object_max)");
        Self { why, at_ms }
    }

    /// For a part of an object that is not kept as a part.
    pub fn partial(at_ms: u64) -> Self {
        let why =
            "the origin answered with a part that is too large to keep, or not fresh".to_owned();
        Self { why, at_ms }
    }
}

fn in_words(reason: Unstorable, status: StatusCode, headers: &HeaderMap, rules: &Rules) -> String {
    let governing = Governing::of(headers, &rules.targets);
    let field = field_name(&governing.field);
    let status = status.as_u16();
    match reason {
        Unstorable::Method => "only answers to GET are stored".to_owned(),
        Unstorable::RequestNoStore => "the request said `no-store` in Cache-Control".to_owned(),
        Unstorable::Status => format!("answers of status {status} are never stored"),
        Unstorable::MustUnderstand => format!(
            "the origin's last answer said `must-understand` in {field}, and this cache has no rules \
             for status {status}"
        ),
        Unstorable::NoStore => format!("the origin's last answer said `no-store` in {field}"),
        Unstorable::Private => format!("the origin's last answer said `private` in {field}"),
        Unstorable::Authorization => format!(
            "the last request carried Authorization, and its answer did not say `public`, `s-maxage` \
             or `must-revalidate` in {field}"
        ),
        Unstorable::SetCookie => format!(
            "the origin's last answer had Set-Cookie, and did not say `public` or \
             `no-cache=\"set-cookie\"` in {field}"
        ),
        Unstorable::Vary => format!(
            "the origin's last answer said `*`, or more than {VARY_FIELDS_MAX} fields, in Vary"
        ),
        Unstorable::NoFreshness => format!(
            "the origin's last answer had no lifetime in {field} or Expires, no rule of the site gives \
             one, and for status {status} none may be guessed"
        ),
        Unstorable::NeverReusable => {
            let said = &governing.said;
            let cause = match (said.no_cache, said.s_maxage, said.max_age) {
                (true, ..) => format!("said `no-cache` in {field}"),
                (_, Some(0), _) => format!("said `s-maxage=0` in {field}"),
                (_, None, Some(0)) => format!("said `max-age=0` in {field}"),
                _ if headers.contains_key(header::EXPIRES) => "had expired by Expires".to_owned(),
                _ => format!("had no lifetime in {field} or Expires"),
            };
            format!(
                "the origin's last answer {cause}, and has no ETag or Last-Modified to validate it by"
            )
        }
    }
}

/// A field's name as people write it.
pub fn field_name(name: &HeaderName) -> String {
    if *name == CDN_CACHE_CONTROL {
        return "CDN-Cache-Control".to_owned();
    }
    let mut written = String::with_capacity(name.as_str().len());
    let mut capital = true;
    for c in name.as_str().chars() {
        written.push(if capital { c.to_ascii_uppercase() } else { c });
        capital = c == '-';
    }
    written
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::cache::policy::{RequestFacts, storable};

    const NOW_MS: u64 = 784_111_777_250;

    #[test]
    fn a_refusal_cites_the_directive_and_its_field() {
        let set_cookie = ("set-cookie", "a=b");
        let request = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            headers
        };
        for (status, fields, asked, told) in [
            (
                200,
                vec![("cache-control", "no-store")],
                None,
                "`no-store` in Cache-Control",
            ),
            (
                200,
                vec![("cache-control", "max-age=9, private")],
                None,
                "`private` in Cache-Control",
            ),
            (
                200,
                vec![
                    ("cdn-cache-control", "no-store"),
                    ("cache-control", "max-age=9"),
                ],
                None,
                "`no-store` in CDN-Cache-Control",
            ),
            (
                200,
                vec![
                    ("surrogate-control", "no-store"),
                    ("cache-control", "max-age=9"),
                ],
                None,
                "`no-store` in Surrogate-Control",
            ),
            (
                200,
                vec![("cache-control", "max-age=9"), set_cookie],
                None,
                "had Set-Cookie",
            ),
            (206, vec![], None, "status 206"),
            (
                299,
                vec![("cache-control", "must-understand")],
                None,
                "no rules for status 299",
            ),
            (
                200,
                vec![("cache-control", "max-age=9"), ("vary", "*")],
                None,
                "in Vary",
            ),
            (302, vec![], None, "for status 302 none may be guessed"),
            (
                200,
                vec![("cache-control", "no-cache")],
                None,
                "said `no-cache` in Cache-Control, and",
            ),
            (
                200,
                vec![("cache-control", "max-age=0")],
                None,
                "`max-age=0` in Cache-Control, and",
            ),
            (
                200,
                vec![("cache-control", "s-maxage=0, max-age=9")],
                None,
                "`s-maxage=0` in",
            ),
            (200, vec![("expires", "0")], None, "expired by Expires"),
            (
                200,
                vec![("cache-control", "max-age=9")],
                Some(("cache-control", "no-store")),
                "the request said `no-store`",
            ),
            (
                200,
                vec![("cache-control", "max-age=9")],
                Some(("authorization", "x")),
                "the last request carried Authorization",
            ),
        ] {
            let asked = asked.map_or_else(HeaderMap::new, |(name, value)| request(name, value));
            let mut headers = HeaderMap::new();
            for (name, value) in &fields {
                headers.append(*name, value.parse().unwrap());
            }
            let (status, rules) = (StatusCode::from_u16(status).unwrap(), Rules::default());
            let facts = RequestFacts::of(&Method::GET, &asked);
            let reason = storable(&facts, status, &headers, &rules, NOW_MS).unwrap_err();
            let refusal = Refusal::of(reason, status, &headers, &rules, NOW_MS);
            assert!(refusal.why.contains(told), "{fields:?}: {}", refusal.why);
        }
        let large = Refusal::too_large(2 << 20, 1 << 20, NOW_MS);
        assert!(
            large.why.contains("2MiB") && large.why.contains("1MiB"),
            "{}",
            large.why
        );
    }

    #[test]
    fn the_oldest_refusals_are_forgotten_first() {
        let refusals = Refusals::default();
        let refusal = |at_ms| Refusal {
            why: String::new(),
            at_ms,
        };
        for n in 0..=REFUSALS_MAX as u64 {
            refusals.remember(Key(n.into()), refusal(n));
            refusals.remember(Key(n.into()), refusal(n + 1));
        }
        assert_eq!(refusals.find(Key(0)), None);
        assert_eq!(refusals.find(Key(1)), Some(refusal(2)));
        assert_eq!(refusals.lock().order.len(), REFUSALS_MAX);
        assert_eq!(refusals.lock().by_key.len(), REFUSALS_MAX);
    }
}
