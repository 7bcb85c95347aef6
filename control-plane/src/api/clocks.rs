//! Nodes whose clocks are off, as their own requests show. Gossip drops what such a node sends, so nobody sees it
//! there; but it asks for the purge log once a second, signed with the time that it takes it to be.
//!
//! Who can replay what a node once sent can have it named here, and no more than that.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use cluster::{
    membership::NODES_MAX,
    node::NodeId,
    wire::{ClockOff, PurgeReceipt, PurgeState, PurgeStatus},
};

/// After so long without such a request, its clock is right again, or it is gone.
const FORGOTTEN_MS: u64 = 10_000;

/// Whose clocks are off, and when that was seen.
#[derive(Debug, Default)]
pub(super) struct Clocks(Mutex<BTreeMap<NodeId, Seen>>);

#[derive(Clone, Copy, Debug)]
struct Seen {
    ahead_s: i64,
    at_ms: u64,
}

impl Clocks {
    /// A node has said at `now_ms` that it was `said_ms`.
    pub(super) fn note(&self, node: NodeId, said_ms: u64, now_ms: u64) {
        let apart_s = i64::try_from(now_ms.abs_diff(said_ms) / 1_000).unwrap_or(i64::MAX);
        let ahead_s = if said_ms > now_ms { apart_s } else { -apart_s };
        let mut nodes = self.nodes();
        if nodes.len() < NODES_MAX || nodes.contains_key(&node) {
            let at_ms = now_ms;
            nodes.insert(node, Seen { ahead_s, at_ms });
        }
    }

    /// All that were seen lately.
    pub(super) fn off(&self, now_ms: u64) -> Vec<ClockOff> {
        let mut nodes = self.nodes();
        nodes.retain(|_, seen| now_ms.abs_diff(seen.at_ms) < FORGOTTEN_MS);
        let off = nodes.iter().map(|(node, seen)| ClockOff {
            node: node.clone(),
            ahead_s: seen.ahead_s,
        });
        off.collect()
    }

    /// Names them in what became of a purge: they have not acknowledged it, and are there.
    pub(super) fn named(&self, mut status: PurgeStatus, now_ms: u64) -> PurgeStatus {
        for off in self.off(now_ms) {
            let reason = Some(off.to_string());
            match status.nodes.iter_mut().find(|own| own.node == off.node) {
                Some(own) if own.state == PurgeState::Acknowledged => continue,
                Some(own) => own.reason = reason,
                None => status.nodes.push(PurgeReceipt {
                    node: off.node,
                    state: PurgeState::Unreachable,
                    ms: None,
                    reason,
                }),
            }
            status.complete = false;
        }
        status
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<NodeId, Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_named_for_as_long_as_its_requests_show_it() {
        let clocks = Clocks::default();
        let node: NodeId = "late".parse().unwrap();
        let told = |now_ms| {
            clocks
                .off(now_ms)
                .iter()
                .map(|off| off.ahead_s)
                .collect::<Vec<_>>()
        };
        assert_eq!(told(100_000), [0; 0]);
        clocks.note(node.clone(), 3_700_500, 100_000);
        assert_eq!(told(109_999), [3_600]);
        clocks.note(node, 10_000, 109_999);
        assert_eq!(told(119_998), [-99]);
        assert_eq!(told(119_999), [0; 0]);
    }
}
