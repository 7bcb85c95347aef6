//! The policy engine of a shared HTTP cache: what is stored, how long it is fresh, when it may be
//! reused, validated, or served stale (RFC 9111, RFC 5861, RFC 8246). No clock, lock or await.
//!
//! A response is judged once, by [`storable`], which also computes its [`Freshness`]; afterwards
//! each decision ([`reuse`], [`may_serve_on_error`]) is arithmetic on that. Times are Unix
//! milliseconds.

pub mod directives;
pub mod fields;
pub mod list;
pub mod part;
pub mod rules;
pub mod targeted;
pub mod validator;

use std::{fmt, time::Duration};

use http::{HeaderMap, Method, StatusCode, header};
use serde::{Deserialize, Serialize};

pub use self::{
    directives::CacheControl,
    fields::{
        combined, divided_fields, freshen, freshen_by_head, storable_fields, strip_hop_by_hop,
    },
    rules::{Rules, Ttl},
    validator::conditional_fields,
};
use self::{
    directives::{SECONDS_MAX, seconds},
    list::members,
    validator::{date, date_of, has_validator},
};
use super::vary::{self, Vary};
use targeted::Governing;

/// The part of its age when it was sent that a response without explicit lifetime stays fresh:
/// the 10 % that RFC 9111 §4.2.2 calls typical.
pub const HEURISTIC_PERCENT: u32 = 10;
/// Longest heuristic lifetime: nobody promised anything, so within a day the origin is asked.
pub const HEURISTIC_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What matters of a request.
#[derive(Clone, Debug)]
pub struct RequestFacts<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Whether it carries `Authorization`.
    pub authorized: bool,
    /// Its `Cache-Control`, or `Pragma`.
    pub cache_control: CacheControl,
}

impl<'a> RequestFacts<'a> {
    /// The facts of a request as received.
    pub fn of(method: &'a Method, headers: &HeaderMap) -> Self {
        Self {
            method,
            authorized: headers.contains_key(header::AUTHORIZATION),
            cache_control: CacheControl::of_request(headers),
        }
    }
}

/// Why a response is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unstorable {
    /// Only answers to GET are stored.
    Method,
    /// The request says `no-store`.
    RequestNoStore,
    /// Its status is not final, says something about one request only (304, 412, 416), or is never
    /// stored by its definition (428, 429, 431, 511: RFC 6585). A 206 is judged as the 200 that it is a
    /// part of ([`part`]), or not at all.
    Status,
    /// It says `must-understand`, and this cache has no rules for its status.
    MustUnderstand,
    /// It says `no-store`.
    NoStore,
    /// It says `private`.
    Private,
    /// The request was authorized, and nothing in the answer allows it to be shared.
    Authorization,
    /// It sets a cookie, and the origin does not say `public`, nor that the cookie be withheld.
    SetCookie,
    /// It varies by something that cannot be told from a request, or by too many fields.
    Vary,
    /// The origin gives it no lifetime, and its status allows none to be guessed.
    NoFreshness,
    /// It would be stale at once and could not be validated.
    NeverReusable,
}

impl Unstorable {
    /// Whether it follows from the answer alone, so that the next one will hardly be different.
    pub const fn is_lasting(&self) -> bool {
        !matches!(
            self,
            Self::Method | Self::RequestNoStore | Self::Authorization
        )
    }

    /// A label for metrics and `Cache-Status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::RequestNoStore => "request-no-store",
            Self::Status => "status",
            Self::MustUnderstand => "must-understand",
            Self::NoStore => "no-store",
            Self::Private => "private",
            Self::Authorization => "authorization",
            Self::SetCookie => "set-cookie",
            Self::Vary => "vary",
            Self::NoFreshness => "no-freshness",
            Self::NeverReusable => "never-reusable",
        }
    }
}

impl fmt::Display for Unstorable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a shared cache may store this answer (RFC 9111 §3), and how fresh it then is.
///
/// `headers` are those received, before anything is stripped; `asked_ms` is when the request for
/// them was sent. A response that is stale at once is storable if it can be validated. One that
/// sets a cookie is storable only if the origin says `public`, or names `Set-Cookie` in
/// `no-cache="…"` or `private="…"`; the cookie itself is never stored ([`storable_fields`]), for
/// `public` is often said by frameworks that do not know of the cookies set elsewhere in them.
///
/// # Errors
///
/// The first rule that forbids it.
pub fn storable(
    request: &RequestFacts<'_>,
    status: StatusCode,
    headers: &HeaderMap,
    rules: &Rules,
    asked_ms: u64,
) -> Result<Freshness, Unstorable> {
    if request.method != Method::GET {
        return Err(Unstorable::Method);
    }
    if request.cache_control.no_store {
        return Err(Unstorable::RequestNoStore);
    }
    if !(200..=599).contains(&status.as_u16())
        || matches!(
            status.as_u16(),
            206 | 304 | 412 | 416 | 428 | 429 | 431 | 511
        )
    {
        return Err(Unstorable::Status);
    }
    let governing = Governing::of(headers, &rules.targets);
    let said = &governing.said;
    if said.must_understand && !is_understood(status) {
        return Err(Unstorable::MustUnderstand);
    }
    // §5.2.2.3: who understands the status ignores the `no-store` meant for those who do not.
    if said.no_store && !said.must_understand {
        return Err(Unstorable::NoStore);
    }
    if said.private {
        return Err(Unstorable::Private);
    }
    if request.authorized && !is_for_everybody(said) {
        return Err(Unstorable::Authorization); // §3.5
    }
    let cookie = headers.contains_key(header::SET_COOKIE);
    if cookie && !said.public && !said.withheld.contains(&header::SET_COOKIE) {
        return Err(Unstorable::SetCookie);
    }
    if vary::selecting_fields(headers) == Vary::Any {
        return Err(Unstorable::Vary);
    }
    let freshness = Freshness::from_parts(&governing, status, headers, rules, asked_ms);
    if freshness.basis == Basis::Nothing && !may_guess(said, status) {
        return Err(Unstorable::NoFreshness);
    }
    if !freshness.is_ever_reusable() && !has_validator(headers) {
        return Err(Unstorable::NeverReusable);
    }
    Ok(freshness)
}

/// How fresh a stored response is, and what its origin allows once it is not. Computed once, when
/// it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freshness {
    /// The moment at which its age was 0, in Unix milliseconds.
    born_ms: i64,
    /// From which age on it is stale.
    pub lifetime: Duration,
    /// Where the lifetime comes from.
    pub basis: Basis,
    /// How long it may be used stale while it is validated (RFC 5861 §3).
    pub stale_while_revalidate: Duration,
    /// How long it may be used stale instead of an error (RFC 5861 §4).
    pub stale_if_error: Duration,
    /// Never to be used without validation (RFC 9111 §5.2.2.4).
    pub no_cache: bool,
    /// Not to be used stale, whoever allows it: `must-revalidate`, `proxy-revalidate`, or
    /// `s-maxage`, which implies the latter (RFC 9111 §4.2.4, §5.2.2.10).
    pub must_revalidate: bool,
    /// Does not change while it is fresh (RFC 8246).
    pub immutable: bool,
    /// May be given to a request with `Authorization` (§3.5).
    pub for_everybody: bool,
}

/// What a lifetime was computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Basis {
    /// The site's rule, whatever the origin says.
    Rule,
    /// `s-maxage`.
    SMaxage,
    /// `max-age`.
    MaxAge,
    /// `Expires`, less `Date`.
    Expires,
    /// A part of the time since `Last-Modified`.
    Heuristic,
    /// The site's rule or default, where the origin says nothing.
    Site,
    /// Nothing: it is stale at once.
    Nothing,
}

impl Basis {
    /// Whether the origin has said it.
    pub const fn is_explicit(self) -> bool {
        matches!(self, Self::SMaxage | Self::MaxAge | Self::Expires)
    }

    /// A word for explanations.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rule => "ttl-rule",
            Self::SMaxage => "s-maxage",
            Self::MaxAge => "max-age",
            Self::Expires => "expires",
            Self::Heuristic => "last-modified",
            Self::Site => "default-ttl",
            Self::Nothing => "nothing",
        }
    }
}

impl Freshness {
    /// The freshness of a response that is known to be storable (it came from a peer). Its stored
    /// fields give the same as the received ones did.
    pub fn of(status: StatusCode, headers: &HeaderMap, rules: &Rules, asked_ms: u64) -> Self {
        let governing = Governing::of(headers, &rules.targets);
        Self::from_parts(&governing, status, headers, rules, asked_ms)
    }

    fn from_parts(
        governing: &Governing,
        status: StatusCode,
        headers: &HeaderMap,
        rules: &Rules,
        asked_ms: u64,
    ) -> Self {
        let said = &governing.said;
        let (lifetime, basis) = lifetime(governing, status, headers, rules, asked_ms);
        let window = |said: Option<u32>, rule| said.map_or(rule, secs);
        Self {
            born_ms: born_ms(headers, asked_ms),
            lifetime,
            basis,
            stale_while_revalidate: window(
                said.stale_while_revalidate,
                rules.stale_while_revalidate,
            ),
            stale_if_error: window(said.stale_if_error, rules.stale_if_error),
            no_cache: said.no_cache && basis != Basis::Rule,
            must_revalidate: said.must_revalidate
                || said.proxy_revalidate
                || said.s_maxage.is_some(),
            immutable: said.immutable,
            for_everybody: is_for_everybody(said),
        }
    }

    /// Its age (RFC 9111 §4.2.3).
    pub fn age(&self, now_ms: u64) -> Duration {
        let age_ms = clamp(now_ms).saturating_sub(self.born_ms);
        Duration::from_millis(u64::try_from(age_ms).unwrap_or(0))
    }

    /// Its age in whole seconds, as the `Age` field has it (§5.1).
    pub fn age_s(&self, now_ms: u64) -> u64 {
        self.age(now_ms).as_secs().min(SECONDS_MAX.into())
    }

    /// For how many more seconds it is fresh; negative when it has been stale (RFC 9211 §2.5).
    pub fn ttl_s(&self, now_ms: u64) -> i64 {
        let lifetime = clamp(self.lifetime.as_secs());
        lifetime.saturating_sub(clamp(self.age(now_ms).as_secs()))
    }

    /// Whether it is fresh (§4.2).
    pub fn is_fresh(&self, now_ms: u64) -> bool {
        self.age(now_ms) < self.lifetime
    }

    /// Whether it is fresh, or has been stale for less than `window`.
    fn is_within(&self, window: Duration, now_ms: u64) -> bool {
        self.age(now_ms) < self.lifetime.saturating_add(window)
    }

    /// Whether there can be a moment at which it is used without validation.
    fn is_ever_reusable(&self) -> bool {
        let stale = self.stale_while_revalidate.max(self.stale_if_error);
        let stale = if self.must_revalidate {
            Duration::ZERO
        } else {
            stale
        };
        !self.no_cache && !(self.lifetime + stale).is_zero()
    }
}

/// May a stored response answer a request?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// It is fresh: use it.
    Fresh,
    /// It is stale; use it, and validate it behind the client's back (RFC 5861 §3).
    StaleWhileRevalidate,
    /// It is stale, and the client takes it so (`max-stale`).
    StaleAccepted,
    /// Not before the origin has confirmed it.
    Validate(Why),
    /// Not before the origin has confirmed it, but the client wants the origin left alone
    /// (`only-if-cached`): 504 (RFC 9111 §5.2.1.7).
    Unavailable,
}

/// Why a stored response must be validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is stale.
    Stale,
    /// Its origin says `no-cache`.
    NoCache,
    /// It is fresh, but the request asks for more.
    Request,
}

/// Whether `stored` may answer a request that says `request` (RFC 9111 §4).
///
/// `no-store` in a request does not matter here (§5.2.1.5), and `only-if-cached` is honoured in
/// any case, for it spares the origin.
pub fn reuse(stored: &Freshness, request: &CacheControl, rules: &Rules, now_ms: u64) -> Reuse {
    match judge(stored, request, rules, now_ms) {
        Reuse::Validate(_) if request.only_if_cached => Reuse::Unavailable,
        judged => judged,
    }
}

fn judge(stored: &Freshness, request: &CacheControl, rules: &Rules, now_ms: u64) -> Reuse {
    let fresh = stored.is_fresh(now_ms);
    if stored.no_cache {
        return Reuse::Validate(Why::NoCache);
    }
    if rules.honour_client && is_refused(stored, request, now_ms) {
        return Reuse::Validate(if fresh { Why::Request } else { Why::Stale });
    }
    if fresh {
        return Reuse::Fresh;
    }
    if stored.must_revalidate {
        return Reuse::Validate(Why::Stale);
    }
    if stored.is_within(stored.stale_while_revalidate, now_ms) {
        return Reuse::StaleWhileRevalidate;
    }
    let accepted = request.max_stale.filter(|_| rules.honour_client);
    let stale_for = stored.age(now_ms).saturating_sub(stored.lifetime);
    if accepted.is_some_and(|max| max == SECONDS_MAX || stale_for <= secs(max)) {
        return Reuse::StaleAccepted;
    }
    Reuse::Validate(Why::Stale)
}

/// Whether the client does not want `stored` without validation (RFC 9111 §5.2.1).
fn is_refused(stored: &Freshness, request: &CacheControl, now_ms: u64) -> bool {
    let age = stored.age(now_ms);
    let fresh = stored.is_fresh(now_ms);
    // RFC 8246 §2: a reload of what cannot have changed is not passed on, unless it is forced.
    let max_age = request.max_age.filter(|_| !(fresh && stored.immutable));
    request.no_cache
        || max_age.is_some_and(|max| age > secs(max))
        // §5.2.1.1: who names a greatest age wants nothing stale, unless it says `max-stale` too.
        || (max_age.is_some() && !fresh && request.max_stale.is_none())
        || request.min_fresh.is_some_and(|min| stored.lifetime < age + secs(min))
}

/// Whether `stored` may be used instead of an error: the origin cannot be reached, or
/// [`is_error`] (RFC 5861 §4). The window that counts is the larger of the response's own and, if
/// the site honours clients, the request's.
///
/// What is still fresh may always be used, even if the client had asked for validation: that is a
/// preference (RFC 9111 §5.2.1.4). What says `no-cache` never is, and once stale what must be
/// revalidated is not either.
pub fn may_serve_on_error(
    stored: &Freshness,
    request: &CacheControl,
    rules: &Rules,
    now_ms: u64,
) -> bool {
    let wished = request.stale_if_error.filter(|_| rules.honour_client);
    let window = secs(wished.unwrap_or(0)).max(stored.stale_if_error);
    let window = if stored.must_revalidate {
        Duration::ZERO
    } else {
        window
    };
    !stored.no_cache && stored.is_within(window, now_ms)
}

/// Whether a status counts as an error for `stale-if-error` (RFC 5861 §4).
pub fn is_error(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

/// Whether this answer to this method means that what is stored for the URL may have changed:
/// unsafe methods, or methods of unknown safety, answered by 2xx or 3xx (RFC 9111 §4.4).
pub fn invalidates(method: &Method, status: StatusCode) -> bool {
    !method.is_safe() && (status.is_success() || status.is_redirection())
}

/// Whether an answer may be shared although a request was authorized (RFC 9111 §3.5).
fn is_for_everybody(said: &CacheControl) -> bool {
    said.public || said.must_revalidate || said.s_maxage.is_some()
}

/// Freshness lifetime: the first of the sources that is there (RFC 9111 §4.2.1, §4.2.2), unless the
/// site's owner has decided otherwise.
fn lifetime(
    governing: &Governing,
    status: StatusCode,
    headers: &HeaderMap,
    rules: &Rules,
    asked_ms: u64,
) -> (Duration, Basis) {
    let said = &governing.said;
    let ttl = rules.ttl(status);
    if let Some(ttl) = ttl.filter(|ttl| ttl.overrides) {
        return (ttl.lifetime, Basis::Rule);
    }
    if let Some(s) = said.s_maxage {
        return (secs(s), Basis::SMaxage);
    }
    if let Some(s) = said.max_age {
        return (secs(s), Basis::MaxAge);
    }
    let sent = date_of(headers, &header::DATE).unwrap_or(asked_ms / 1000);
    // §5.3: what is no date lies in the past; of several, the earliest counts (§4.2.1).
    let expires = headers.get_all(header::EXPIRES).iter();
    let expires = expires.filter(|_| !governing.is_targeted());
    if let Some(expires) = expires.map(|v| date(v.as_bytes()).unwrap_or(0)).min() {
        let seconds = expires.saturating_sub(sent).min(SECONDS_MAX.into());
        return (Duration::from_secs(seconds), Basis::Expires);
    }
    if let Some(ttl) = ttl {
        return (ttl.lifetime, Basis::Site);
    }
    if !may_guess(said, status) {
        return (Duration::ZERO, Basis::Nothing);
    }
    let modified = date_of(headers, &header::LAST_MODIFIED);
    if let Some(unchanged_s) = modified.and_then(|modified| sent.checked_sub(modified)) {
        let guess = Duration::from_secs(unchanged_s) / 100 * HEURISTIC_PERCENT;
        return (guess.min(HEURISTIC_MAX), Basis::Heuristic);
    }
    if rules.default_ttl.is_zero() {
        (Duration::ZERO, Basis::Nothing)
    } else {
        (rules.default_ttl.min(secs(SECONDS_MAX)), Basis::Site)
    }
}

/// Whether a lifetime may be guessed (RFC 9111 §4.2.2): the status is heuristically cacheable
/// (RFC 9110 §15.1), or the response is marked as cacheable.
fn may_guess(said: &CacheControl, status: StatusCode) -> bool {
    said.public
        || matches!(
            status.as_u16(),
            200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501
        )
}

/// Whether this cache does what RFC 9110 §15 asks of caches for this status: the final ones
/// defined there, less those that are never stored.
fn is_understood(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200..=205 | 300..=303 | 305 | 307 | 308 | 400..=411 | 413..=415 | 417 | 421 | 422 | 426
            | 500..=505
    )
}

/// The moment at which the age of a response was 0.
///
/// RFC 9111 §4.2.3 has the age as the greater of two, plus the time since the response came:
/// `max(0, response_time − Date)` and `Age + (response_time − request_time)`. With the time since
/// then added, `response_time` falls out of both (and the 0 never counts, for the second is then
/// greater): `max(now − Date, Age + now − request_time)`. Hence age 0 was at the earlier of `Date`
/// and `request_time − Age`. `Date` has whole seconds and is compared in whole seconds, or every
/// response would seem half a second old.
fn born_ms(headers: &HeaderMap, asked_ms: u64) -> i64 {
    let asked = clamp(asked_ms);
    // §5.1: of several values the first counts, and one that is no number is ignored.
    let age = headers.get(header::AGE);
    let age = age.and_then(|value| members(value.as_bytes()).next());
    let age_s = age.and_then(seconds).unwrap_or(0);
    let by_age = asked.saturating_sub(i64::from(age_s) * 1000);
    let sent_s = date_of(headers, &header::DATE);
    let by_date = sent_s.map_or(asked, |s| clamp(s) * 1000 + asked % 1000);
    by_age.min(by_date)
}

fn clamp(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

const fn secs(seconds: u32) -> Duration {
    Duration::from_secs(seconds as u64)
}

/// Takes arbitrary bytes as the fields of a request and, behind an empty line, those of its answer, and
/// checks what must always hold. For fuzzing; panics on a defect.
#[doc(hidden)]
pub fn fuzz_exchange(data: &[u8]) {
    const NOW_MS: u64 = 784_111_777_250;
    let (mut request, mut answer) = (HeaderMap::new(), HeaderMap::new());
    let mut map = &mut request;
    for line in data.split(|b| *b == b'\n').take(64) {
        let mut parts = line.splitn(2, |b| *b == b':');
        let (name, value) = (parts.next().unwrap_or_default(), parts.next());
        let name = http::HeaderName::from_bytes(name);
        let value = http::HeaderValue::from_bytes(value.unwrap_or_default().trim_ascii());
        if line.is_empty() {
            map = &mut answer;
        } else if let (Ok(name), Ok(value)) = (name, value) {
            map.append(name, value);
        }
    }
    let (facts, rules) = (RequestFacts::of(&Method::GET, &request), Rules::default());
    let judge = |headers: &HeaderMap| storable(&facts, StatusCode::OK, headers, &rules, NOW_MS);
    let judged = judge(&answer);
    let mut forbidden = answer.clone();
    for target in &rules.targets {
        forbidden.remove(target);
    }
    forbidden.append(
        header::CACHE_CONTROL,
        http::HeaderValue::from_static("no-store"),
    );
    assert!(judge(&forbidden).is_err() || CacheControl::of(&forbidden).must_understand);
    let Ok(freshness) = judged else {
        return;
    };
    let ages = [0, 1, 1000, 1 << 40].map(|later| freshness.age(NOW_MS + later));
    assert!(ages.is_sorted());
    reuse(&freshness, &facts.cache_control, &rules, NOW_MS);
    let stored = storable_fields(&answer, &rules.targets, NOW_MS);
    assert!(!stored.contains_key(header::SET_COOKIE) && !stored.contains_key(header::CONNECTION));
    freshen(&stored, &answer, &rules.targets, NOW_MS);
    part::Extent::of(StatusCode::PARTIAL_CONTENT, &answer);
    if let Vary::Fields(fields) = vary::selecting_fields(&stored) {
        assert!(vary::matches(
            &vary::normal_values(&fields, &request),
            &request
        ));
    }
}

#[cfg(test)]
mod tests {
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
}
