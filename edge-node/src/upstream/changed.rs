//! Who else hears that a client has changed an object at its origin, by a request that went through here: its
//! homes, which would bring back what they have from before, and those who hold it.

use std::collections::HashSet;

use cluster::{key::Key, node::NodeId, placement::HOMES_ASKED_MAX, site::Site, wire};
use http::{HeaderMap, StatusCode};

use super::{
    Upstream,
    peer::{Asker, CONNECT_TIMEOUT, HEAD_TIMEOUT, PeerError},
    pool::Patience,
};

/// Most nodes that hear of one change: the homes, and as many holders as digests are known of, by half. Who does
/// not hear goes on until what it has is stale, as any cache beside this one would.
pub const TOLD_MAX: usize = 32;

/// Whom to tell, each once and not `me`: first the homes, then the others. Pure.
fn told(
    me: &NodeId,
    homes: impl Iterator<Item = NodeId>,
    others: impl Iterator<Item = NodeId>,
) -> Vec<NodeId> {
    let mut seen = HashSet::from([me.clone()]);
    let all = homes.chain(others);
    all.filter(|id| seen.insert(id.clone()))
        .take(TOLD_MAX)
        .collect()
}

impl Upstream {
    /// Who should hear that the object `key` has changed, and at which address: its homes and its holders, or
    /// else, where the site has several keys for one URL and this names them all, every edge.
    pub fn concerned(&self, site: &Site, key: Key, is_of_many: bool) -> Vec<(NodeId, String)> {
        let inner = &*self.0;
        if inner.asker.is_none() {
            return Vec::new();
        }
        let view = self.view();
        let homes = inner.homes(&view, site, key);
        let homes = homes
            .iter()
            .flat_map(|homes| homes.iter().take(HOMES_ASKED_MAX))
            .map(|node| node.id.clone());
        let digests = inner.digests.load();
        let holds = |id: &NodeId| digests.get(id).is_some_and(|digest| digest.contains(key));
        let others = view
            .serving_edges()
            .filter(|node| is_of_many || holds(&node.id))
            .map(|node| node.id.clone());
        told(&inner.me, homes, others)
            .into_iter()
            .filter_map(|id| {
                let addr = inner.address(view.node(&id)?).to_owned();
                Some((id, addr))
            })
            .collect()
    }

    /// Tells a node that the object `key` has changed.
    ///
    /// # Errors
    ///
    /// It could not be told.
    pub async fn tell_changed(&self, to: &NodeId, addr: &str, key: Key) -> Result<(), PeerError> {
        let asker = self.0.asker.as_ref().ok_or(PeerError::Denied)?;
        asker.changed(to, addr, key).await
    }
}

impl Asker {
    async fn changed(&self, to: &NodeId, addr: &str, key: Key) -> Result<(), PeerError> {
        let path = format!("{}/{key}", wire::CHANGED);
        let patience = Patience {
            connect: CONNECT_TIMEOUT,
            head: HEAD_TIMEOUT,
        };
        let request = || self.request(to, addr, &path, HeaderMap::new());
        let answer = self.pool.ask(request, patience).await?;
        match answer.response.status() {
            StatusCode::NO_CONTENT => Ok(()),
            other => Err(PeerError::Garbage(format!("status {other}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_come_first_and_nobody_twice() {
        let id = |name: &str| -> NodeId { name.parse().unwrap() };
        let ids = |names: &str| -> Vec<NodeId> { names.split_whitespace().map(id).collect() };
        for (homes, others, expected) in [
            ("", "", ""),
            ("a b", "", "a b"),
            ("a me b", "c a me", "a b c"),
            ("", "me", ""),
            ("b b", "b a", "b a"),
        ] {
            let told = told(&id("me"), ids(homes).into_iter(), ids(others).into_iter());
            assert_eq!(told, ids(expected), "{homes} and {others}");
        }
        let many = (0..100).map(|n| id(&format!("edge-{n}")));
        assert_eq!(told(&id("me"), std::iter::empty(), many).len(), TOLD_MAX);
    }
}
