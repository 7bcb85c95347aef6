//! What else than its freshness decides whether a stored response may be used: purges. Pure.

use super::{
    entry::Entry,
    policy::{self, CacheControl, Freshness, Reuse, Rules, Why},
};

/// How a stored response stands, apart from its freshness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is known against it.
    Good,
    /// It is as if its lifetime had just ended.
    Stale,
    /// Whether something is known against it, this node cannot tell at the moment: the origin can.
    Unsure,
    /// It must not be used any more, not even to ask whether it still holds.
    Gone,
}

/// Tells how stored responses to one request stand.
pub trait Judge: Sync {
    /// How this one does.
    fn standing(&self, entry: &Entry) -> Standing;
}

/// For whom everything stands.
pub struct Lenient;

impl Judge for Lenient {
    fn standing(&self, _: &Entry) -> Standing {
        Standing::Good
    }
}

impl Standing {
    /// [`policy::reuse`] of a response that stands like this, and is not gone.
    pub fn reuse(
        self,
        stored: &Freshness,
        request: &CacheControl,
        rules: &Rules,
        now_ms: u64,
    ) -> Reuse {
        let reuse = policy::reuse(stored, request, rules, now_ms);
        let judged = match (self, reuse) {
            (Self::Good, reuse) | (_, reuse @ (Reuse::Validate(_) | Reuse::Unavailable)) => reuse,
            (Self::Stale, Reuse::Fresh | Reuse::StaleWhileRevalidate)
                if !stored.must_revalidate && !stored.stale_while_revalidate.is_zero() =>
            {
                Reuse::StaleWhileRevalidate
            }
            (Self::Stale, Reuse::StaleAccepted) => Reuse::StaleAccepted,
            (Self::Stale | Self::Unsure | Self::Gone, _) => Reuse::Validate(Why::Stale),
        };
        match judged {
            Reuse::Validate(_) if request.only_if_cached => Reuse::Unavailable,
            judged => judged,
        }
    }

    /// [`policy::may_serve_on_error`] of a response that stands like this: what is not good only where a
    /// stale one would do.
    pub fn may_serve_on_error(
        self,
        stored: &Freshness,
        request: &CacheControl,
        rules: &Rules,
        now_ms: u64,
    ) -> bool {
        let may = policy::may_serve_on_error(stored, request, rules, now_ms);
        may && match self {
            Self::Good => true,
            Self::Stale | Self::Unsure => !policy::stale_if_error(stored, request, rules).is_zero(),
            Self::Gone => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, StatusCode};

    use super::*;

    fn freshness(said: &'static str) -> Freshness {
        let mut headers = HeaderMap::new();
        headers.insert("cache-control", HeaderValue::from_static(said));
        Freshness::of(StatusCode::OK, &headers, &Rules::default(), 1_000)
    }

    fn request(said: &'static str) -> CacheControl {
        let mut headers = HeaderMap::new();
        headers.insert("cache-control", HeaderValue::from_static(said));
        CacheControl::of_request(&headers)
    }

    #[test]
    fn what_is_soft_purged_is_used_where_a_stale_response_is() {
        use Reuse::{Fresh, StaleAccepted, StaleWhileRevalidate, Unavailable, Validate};
        let validate = Validate(Why::Stale);
        for (said, asked, now_ms, good, soft, unsure) in [
            ("max-age=60", "", 2_000, Fresh, validate, validate),
            (
                "max-age=60, stale-while-revalidate=10",
                "",
                2_000,
                Fresh,
                StaleWhileRevalidate,
                validate,
            ),
            (
                "max-age=60, stale-while-revalidate=10, must-revalidate",
                "",
                2_000,
                Fresh,
                validate,
                validate,
            ),
            (
                "max-age=60, stale-while-revalidate=10",
                "",
                65_000,
                StaleWhileRevalidate,
                StaleWhileRevalidate,
                validate,
            ),
            (
                "max-age=60, stale-while-revalidate=10",
                "",
                75_000,
                validate,
                validate,
                validate,
            ),
            (
                "max-age=60",
                "max-stale",
                75_000,
                StaleAccepted,
                StaleAccepted,
                validate,
            ),
            (
                "max-age=60",
                "only-if-cached",
                2_000,
                Fresh,
                Unavailable,
                Unavailable,
            ),
            (
                "no-cache",
                "",
                2_000,
                Validate(Why::NoCache),
                Validate(Why::NoCache),
                Validate(Why::NoCache),
            ),
        ] {
            let (stored, request) = (freshness(said), request(asked));
            let reuse =
                |standing: Standing| standing.reuse(&stored, &request, &Rules::default(), now_ms);
            assert_eq!(reuse(Standing::Good), good, "{said} {asked}");
            assert_eq!(reuse(Standing::Stale), soft, "{said} {asked}");
            assert_eq!(reuse(Standing::Unsure), unsure, "{said} {asked}");
        }
    }

    #[test]
    fn an_error_brings_back_what_may_be_stale_and_never_what_is_gone() {
        for (said, good, stale) in [
            ("max-age=60", true, false),
            ("max-age=60, stale-if-error=10", true, true),
            (
                "max-age=60, stale-if-error=10, must-revalidate",
                true,
                false,
            ),
            ("no-cache, stale-if-error=10", false, false),
        ] {
            let stored = freshness(said);
            let may = |standing: Standing| {
                standing.may_serve_on_error(&stored, &request(""), &Rules::default(), 2_000)
            };
            assert_eq!(may(Standing::Good), good, "{said}");
            assert_eq!(may(Standing::Stale), stale, "{said}");
            assert_eq!(may(Standing::Unsure), stale, "{said}");
            assert!(!may(Standing::Gone), "{said}");
        }
    }
}
