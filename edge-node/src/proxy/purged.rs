//! What purges have to say on the journey of a request: how what is stored stands, whether this node may
//! answer from its cache at all, and when an origin was asked.

use std::sync::atomic::Ordering;

use cluster::{
    purge::{Position, Verdict},
    site::{PURGE_LIMIT_DEFAULT, Site},
};
use http::HeaderMap;
use tracing::debug;

use super::{Asked, Proxy};
use crate::{
    cache::{Judge, Standing, entry::Entry},
    purges::Named,
};

/// When an origin was asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// In Unix milliseconds.
    pub(super) ms: u64,
    /// The place in the purge log that this node had reached.
    pub(super) as_of: Position,
}

impl Moment {
    /// When it was asked by somebody who does not say what they knew of purges: whatever was ever
    /// purged may be from before.
    pub(super) fn unknown(ms: u64) -> Self {
        Self {
            ms,
            as_of: Position::default(),
        }
    }
}

impl Asked {
    /// What it names, as purges see it.
    pub(super) fn named(&self) -> Named<'_> {
        Named {
            site: &self.site.name,
            host: &self.host,
            target: self.target(),
            rules: &self.ruling.key,
        }
    }

    /// Finds out whether this node can answer it from its cache; waits a moment if it must ask for that.
    pub(super) async fn make_sure(&self) {
        let is_sure = self.purges.is_sure(limit(&self.site)).await;
        self.is_sure.store(is_sure, Ordering::Relaxed);
    }

    /// Whether an answer that was fetched while this request waited may be this one's, as far as purges go.
    pub(super) fn may_have(&self, entry: &Entry) -> bool {
        matches!(self.standing(entry), Standing::Good | Standing::Unsure)
    }
}

impl Judge for Asked {
    fn standing(&self, entry: &Entry) -> Standing {
        if self.is_from_before(entry.head.fetched_at) {
            return Standing::Gone;
        }
        let is_sure = self.is_sure.load(Ordering::Relaxed);
        let standing = self.purges.standing(self.named(), entry, is_sure);
        // Of an object that is all there is of its URL, nothing is left that a change has hit.
        let is_of_many = self.slice.is_some() || self.ruling.whole_key.is_some();
        match standing {
            Standing::Good if is_of_many && entry.head.fetched_at <= self.unknown_ms => {
                Standing::Unsure
            }
            standing => standing,
        }
    }
}

impl Proxy {
    /// Now, for a request to an origin that is about to be sent.
    pub(super) fn moment(&self) -> Moment {
        Moment {
            as_of: self.shared.purges.as_of(),
            ms: self.now(),
        }
    }

    /// Whether an answer that another node brought is newer than all purges known here; `from` says as
    /// what it was asked.
    pub(super) fn is_newer(
        &self,
        asked: &Asked,
        headers: &HeaderMap,
        as_of: Position,
        from: &'static str,
    ) -> bool {
        let is_newer = asked.purges.verdict(asked.named(), headers, as_of) == Verdict::Good;
        if !is_newer {
            debug!(uri = %asked.uri, from, ?as_of, "what another node brought was purged");
            self.shared.metrics.purge_refused(from);
        }
        is_newer
    }
}

/// How long a node may answer from its cache without hearing of anybody.
pub(super) fn limit(site: &Site) -> std::time::Duration {
    site.purge_limit.unwrap_or(PURGE_LIMIT_DEFAULT).0
}
