//! The policy engine of a shared HTTP cache: what is stored, how long it is fresh, when it may be
//! reused, validated, or served stale (RFC 9111, RFC 5861, RFC 8246). No clock, lock or await.
//!
//! A response is judged once, by [`storable`], which also computes its [`Freshness`]; afterwards
//! each decision ([`reuse`], [`may_serve_on_error`]) is arithmetic on that. Times are Unix
//! milliseconds.

pub mod directives;
pub mod fields;
pub mod lines;
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
    lines::Lines,
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
    headers: &impl Lines,
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
    let cookie = headers.has(&header::SET_COOKIE);
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
    pub fn of(status: StatusCode, headers: &impl Lines, rules: &Rules, asked_ms: u64) -> Self {
        let governing = Governing::of(headers, &rules.targets);
        Self::from_parts(&governing, status, headers, rules, asked_ms)
    }

    fn from_parts(
        governing: &Governing,
        status: StatusCode,
        headers: &impl Lines,
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
    let window = stale_if_error(stored, request, rules);
    !stored.no_cache && stored.is_within(window, now_ms)
}

/// How long past its lifetime `stored` may be used instead of an error.
pub fn stale_if_error(stored: &Freshness, request: &CacheControl, rules: &Rules) -> Duration {
    if stored.must_revalidate {
        return Duration::ZERO;
    }
    let wished = request.stale_if_error.filter(|_| rules.honour_client);
    secs(wished.unwrap_or(0)).max(stored.stale_if_error)
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
    headers: &impl Lines,
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
    let name = header::EXPIRES;
    let expires = headers.lines(&name).filter(|_| !governing.is_targeted());
    if let Some(expires) = expires.map(|value| date(value).unwrap_or(0)).min() {
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
fn born_ms(headers: &impl Lines, asked_ms: u64) -> i64 {
    let asked = clamp(asked_ms);
    // §5.1: of several values the first counts, and one that is no number is ignored.
    let name = header::AGE;
    let age = headers.lines(&name).next();
    let age = age.and_then(|value| members(value).next());
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
mod tests;
