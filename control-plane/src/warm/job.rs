//! A warming job and how far each node is with it. Pure.
//!
//! **Invariant:** a URL counts once per node, however often it is told what came of it: so a batch
//! whose answer broke off can be asked for again.

use std::collections::{BTreeMap, BTreeSet};

use cluster::{
    node::NodeId,
    wire::{WARM_BATCH_MAX, WarmFailure, WarmNode, WarmResult, WarmSource, WarmTally},
};
use serde::{Deserialize, Serialize};

/// Failures of one node that are told with their URL; further ones are only counted.
pub const FAILURES_TOLD_MAX: usize = 100;
/// How far beyond the first URL without result others are asked for: one that is always cut off does
/// not hold up the rest for long, and little has to be remembered.
const WINDOW: usize = 4 * WARM_BATCH_MAX;

/// What to fetch ahead of demand, and where: as it was taken, and never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its name: digits and letters.
    pub id: String,
    /// The site.
    pub site: String,
    /// Absolute URLs, none twice.
    pub urls: Vec<String>,
    /// The edges that shall have them.
    pub nodes: Vec<NodeId>,
    /// When it was taken, in Unix milliseconds.
    pub taken_at: u64,
    /// When it is given up, in Unix milliseconds.
    pub expires_at: u64,
}

/// How far one node is with a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// All URLs before this one have a result.
    position: usize,
    /// Those behind it that have one as well.
    ahead: BTreeSet<usize>,
    done: usize,
    failed: usize,
    bytes: u64,
    sources: BTreeMap<WarmSource, WarmTally>,
    failures: Vec<WarmFailure>,
}

impl Progress {
    /// The URLs to ask for next, by their places among `urls`; none once all have a result.
    pub fn next(&self, urls: usize) -> Vec<usize> {
        (self.position..urls.min(self.position + WINDOW))
            .filter(|url| !self.ahead.contains(url))
            .take(WARM_BATCH_MAX)
            .collect()
    }

    /// What came of the URL at place `index`; says whether that is news.
    pub fn settle(&mut self, index: usize, url: &str, result: WarmResult) -> bool {
        if index < self.position || !self.ahead.insert(index) {
            return false;
        }
        while self.ahead.remove(&self.position) {
            self.position += 1;
        }
        match result {
            WarmResult::Held { from, bytes } => {
                self.done += 1;
                self.bytes += bytes;
                let tally = self.sources.entry(from).or_default();
                tally.objects += 1;
                tally.bytes += bytes;
            }
            WarmResult::Failed { reason } => {
                self.failed += 1;
                if self.failures.len() < FAILURES_TOLD_MAX {
                    let url = url.to_owned();
                    self.failures.push(WarmFailure { url, reason });
                }
            }
        }
        true
    }

    /// Everything that is known of `node`, and why it does not go on.
    pub fn told(&self, node: NodeId, trouble: Option<String>) -> WarmNode {
        WarmNode {
            node,
            done: self.done,
            failed: self.failed,
            bytes: self.bytes,
            sources: self.sources.clone(),
            failures: self.failures.clone(),
            trouble,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn result(index: usize) -> WarmResult {
        if index.is_multiple_of(3) {
            let reason = "answered 404".to_owned();
            return WarmResult::Failed { reason };
        }
        let from = if index.is_multiple_of(2) {
            WarmSource::Peer
        } else {
            WarmSource::Origin
        };
        let bytes = index as u64;
        WarmResult::Held { from, bytes }
    }

    proptest! {
        /// Answers break off anywhere, come in any order and more than once, and the process starts
        /// anew in between: in the end every URL counts once.
        #[test]
        fn every_url_counts_once(
            urls in 0..1_500_usize,
            cuts in prop::collection::vec((0..WARM_BATCH_MAX, any::<bool>()), 0..20),
        ) {
            let mut progress = Progress::default();
            let mut cuts = cuts.into_iter();
            loop {
                let mut batch = progress.next(urls);
                if batch.is_empty() {
                    break;
                }
                prop_assert!(batch.len() <= WARM_BATCH_MAX);
                let (heard, backwards) = cuts.next().unwrap_or((WARM_BATCH_MAX, false));
                if backwards {
                    batch.reverse();
                }
                for index in batch.iter().take(heard) {
                    prop_assert!(progress.settle(*index, "u", result(*index)));
                    prop_assert!(!progress.settle(*index, "u", result(*index)));
                }
                prop_assert!(progress.ahead.len() <= WINDOW);
                let kept = serde_json::to_vec(&progress).unwrap();
                progress = serde_json::from_slice(&kept).unwrap();
            }
            let told = progress.told("edge-1".parse().unwrap(), None);
            let failed = (0..urls).filter(|url| url.is_multiple_of(3)).count();
            prop_assert_eq!((told.done, told.failed), (urls - failed, failed));
            let bytes: usize = (0..urls).filter(|url| !url.is_multiple_of(3)).sum();
            prop_assert_eq!(told.bytes, bytes as u64);
            let tallied: u64 = told.sources.values().map(|tally| tally.bytes).sum();
            prop_assert_eq!(tallied, told.bytes);
            prop_assert_eq!(told.failures.len(), failed.min(FAILURES_TOLD_MAX));
        }
    }

    #[test]
    fn one_url_that_is_always_cut_off_does_not_hold_up_those_behind_it() {
        let mut progress = Progress::default();
        for _ in 0..10 {
            for index in progress.next(10_000) {
                if index > 0 {
                    progress.settle(index, "u", result(index));
                }
            }
        }
        assert_eq!(progress.next(10_000), [0]);
        assert_eq!(progress.done + progress.failed, WINDOW - 1);
        progress.settle(0, "u", result(0));
        assert_eq!(progress.next(10_000)[0], WINDOW);
        assert!(progress.ahead.is_empty());
    }
}
