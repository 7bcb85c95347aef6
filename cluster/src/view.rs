//! An immutable snapshot of the live cluster, published through a `watch`.
//!
//! **Invariant:** readers borrow the newest view and cannot change it; nobody on the request path
//! ever speaks to the gossip underneath.

use std::{collections::BTreeMap, sync::Arc};

use crate::node::{NodeId, NodeInfo, Role};

/// Everybody who is alive right now, this node included.
#[derive(Clone, Debug, Default)]
pub struct ClusterView {
    members: BTreeMap<NodeId, Arc<NodeInfo>>,
}

impl ClusterView {
    /// A view of these nodes.
    pub fn new(members: impl IntoIterator<Item = NodeInfo>) -> Self {
        Self {
            members: members
                .into_iter()
                .map(|n| (n.id.clone(), Arc::new(n)))
                .collect(),
        }
    }

    /// The node of this name, if it is alive.
    pub fn node(&self, id: &NodeId) -> Option<&Arc<NodeInfo>> {
        self.members.get(id)
    }

    /// Everybody, in order of their names.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<NodeInfo>> {
        self.members.values()
    }

    /// Every edge but `me`, whatever its phase.
    pub fn peers_of<'a>(&'a self, me: &'a NodeId) -> impl Iterator<Item = &'a Arc<NodeInfo>> {
        self.nodes()
            .filter(move |n| n.role == Role::Edge && n.id != *me)
    }

    /// Every edge that may be sent work.
    pub fn serving_edges(&self) -> impl Iterator<Item = &Arc<NodeInfo>> {
        self.nodes().filter(|n| n.is_serving_edge())
    }

    /// How many nodes are alive.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether nobody is alive (only before the first gossip round).
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}
