//! Everybody and where they are: an immutable snapshot, made anew whenever gossip tells something.
//!
//! Names are resolved here, beside the requests and never for one: a snapshot is published with the
//! addresses known so far, and again when more are.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use cluster::{
    geo::GeoPoint,
    membership::Membership,
    net::Net,
    node::{NodeId, NodeInfo, Phase, Role},
    view::ClusterView,
    wire::{NodeStatus, Place},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tracing::debug;

use crate::{
    places::{Places, configured_place, point_of},
    rank::Seat,
};

/// How long an address found for a name is believed.
const NAME_TTL: Duration = Duration::from_secs(60);
/// A new atlas is made this often even if nothing seems to have changed: the departed are forgotten
/// in time, names looked up again.
const REVIEW_TIME: Duration = Duration::from_secs(5);
/// How long a resolver may think about one name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most names looked up at once: a cluster of thousands must not flood its resolver.
const LOOKUPS_MAX: usize = 32;

/// Everybody and where they are.
#[derive(Debug, Default)]
pub struct Atlas {
    seats: BTreeMap<NodeId, Located>,
    departed: Vec<Located>,
}

/// A node and where it is.
#[derive(Clone, Debug)]
pub struct Located {
    node: Arc<NodeInfo>,
    place: Option<Place>,
    point: Option<GeoPoint>,
    region: String,
}

impl Atlas {
    /// Puts everybody in their place. `address_of` tells what a host name resolved to, if it did.
    pub fn new(
        view: &ClusterView,
        departed: Vec<NodeInfo>,
        places: &Places,
        address_of: impl Fn(&str) -> Option<IpAddr>,
    ) -> Self {
        let locate = |node: Arc<NodeInfo>| Located::new(node, places, &address_of);
        Self {
            seats: view
                .nodes()
                .map(|node| (node.id.clone(), locate(node.clone())))
                .collect(),
            departed: departed
                .into_iter()
                .filter(|node| view.node(&node.id).is_none())
                .map(|node| locate(Arc::new(node)))
                .collect(),
        }
    }

    /// The living node of this name.
    pub fn seat(&self, id: &NodeId) -> Option<Seat<'_>> {
        self.seats.get(id).map(Located::seat)
    }

    /// Everybody alive.
    pub fn seats(&self) -> impl Iterator<Item = Seat<'_>> {
        self.seats.values().map(Located::seat)
    }

    /// Edges that fell silent without having said that they were about to end.
    pub fn silent_edges(&self) -> impl Iterator<Item = &NodeId> {
        let nodes = self.departed.iter().map(|l| &l.node);
        nodes
            .filter(|node| node.role == Role::Edge && node.phase != Phase::Draining)
            .map(|node| &node.id)
    }

    /// Everybody alive, then those that fell silent, each in order of their names.
    pub fn statuses(&self) -> Vec<NodeStatus> {
        let alive = self.seats.values().map(|l| l.status(true));
        alive
            .chain(self.departed.iter().map(|l| l.status(false)))
            .collect()
    }

    /// How many nodes are in which state, for every state there is.
    pub fn states(&self) -> [(&'static str, usize); 4] {
        let alive = |phase| {
            let nodes = self.seats.values();
            nodes.filter(|l| l.node.phase == phase).count()
        };
        [
            ("ready", alive(Phase::Ready)),
            ("starting", alive(Phase::Starting)),
            ("draining", alive(Phase::Draining)),
            ("departed", self.departed.len()),
        ]
    }
}

impl Located {
    /// Configured coordinates are believed; else the first of the node's addresses that a place is
    /// known for says where it is.
    fn new(
        node: Arc<NodeInfo>,
        places: &Places,
        address_of: impl Fn(&str) -> Option<IpAddr>,
    ) -> Self {
        let mut region = node.region.clone();
        let mut place = node.location.map(configured_place);
        for host in hosts_of(&node) {
            if place.is_some() && !region.is_empty() {
                break;
            }
            let Some(address) = host.parse().ok().or_else(|| address_of(host)) else {
                continue;
            };
            let known = places.of(address);
            if region.is_empty() {
                region = known.region;
            }
            place = place.or(known.place);
        }
        Self {
            point: place.as_ref().and_then(point_of),
            node,
            place,
            region,
        }
    }

    fn seat(&self) -> Seat<'_> {
        Seat {
            node: &self.node,
            point: self.point,
            region: &self.region,
        }
    }

    fn status(&self, alive: bool) -> NodeStatus {
        let node = &self.node;
        NodeStatus {
            id: node.id.clone(),
            role: node.role,
            alive,
            phase: node.phase,
            region: self.region.clone(),
            location: self.place.clone(),
            http: node.http.clone(),
            peer: node.peer.clone(),
            load: node.load,
            sites_version: node.sites_version,
            purge_seq: node.purged.seq,
            clock_ahead_s: node.clock_ahead_s,
        }
    }
}

/// The hosts a node can be reached at, the most telling first: peers and clients come from outside,
/// gossip may come through a tunnel.
fn hosts_of(node: &NodeInfo) -> impl Iterator<Item = &str> {
    let http = node.http.split_once("://").map_or("", |(_, rest)| rest);
    let http = http.split('/').next().unwrap_or_default();
    [node.peer.as_str(), http, node.gossip.as_str()]
        .into_iter()
        .map(host_of)
        .filter(|host| !host.is_empty() && !host.contains('{'))
}

/// The host of `host`, `host:port`, `[v6]:port` or a bare IPv6 address, without brackets.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    match authority.rsplit_once(':') {
        Some((host, _)) if !host.contains(':') => host,
        _ => authority,
    }
}

/// Publishes an [`Atlas`] whenever the cluster's view changes, a name gets another address, or time
/// has passed; until gossip ends.
pub async fn keep(
    membership: Arc<Membership>,
    places: Arc<Places>,
    net: Arc<dyn Net>,
    atlas: watch::Sender<Arc<Atlas>>,
) {
    let mut views = membership.view();
    let mut names = Names::new(net);
    loop {
        let view = views.borrow_and_update().clone();
        let departed = membership.departed();
        let new = Atlas::new(&view, departed, &places, |host| names.address(host));
        atlas.send_replace(Arc::new(new));
        names.ask(&view);
        tokio::select! {
            changed = views.changed() => if changed.is_err() {
                return;
            },
            () = names.learn() => {}
            () = sleep(REVIEW_TIME) => {}
        }
    }
}

/// The addresses of host names, as far as they were looked up.
struct Names {
    net: Arc<dyn Net>,
    /// A name that does not resolve is remembered as well, or it would be asked for all the time.
    known: HashMap<String, (Option<IpAddr>, Instant)>,
    asked: HashSet<String>,
    lookups: JoinSet<(String, Option<IpAddr>)>,
}

impl Names {
    fn new(net: Arc<dyn Net>) -> Self {
        Self {
            net,
            known: HashMap::new(),
            asked: HashSet::new(),
            lookups: JoinSet::new(),
        }
    }

    fn address(&self, host: &str) -> Option<IpAddr> {
        self.known.get(host)?.0
    }

    /// Begins to look up what the view names and is not known or no longer believed, and forgets
    /// what it does not name.
    fn ask(&mut self, view: &ClusterView) {
        let named: BTreeSet<&str> = view
            .nodes()
            .flat_map(|node| hosts_of(node))
            .filter(|host| host.parse::<IpAddr>().is_err())
            .collect();
        self.known.retain(|host, _| named.contains(host.as_str()));
        for host in named {
            if self.lookups.len() >= LOOKUPS_MAX {
                return;
            }
            let known = self.known.get(host);
            let due = known.is_none_or(|(_, at)| at.elapsed() >= NAME_TTL);
            if due && self.asked.insert(host.to_owned()) {
                self.lookups
                    .spawn(look_up(self.net.clone(), host.to_owned()));
            }
        }
    }

    /// Waits until an address has changed; for ever if nothing is being looked up.
    async fn learn(&mut self) {
        while let Some(answer) = self.lookups.join_next().await {
            let (host, address) = answer.expect("a lookup neither panics nor is aborted");
            self.asked.remove(&host);
            let before = self.known.insert(host, (address, Instant::now()));
            if before.and_then(|(address, _)| address) != address {
                return;
            }
        }
        std::future::pending().await
    }
}

async fn look_up(net: Arc<dyn Net>, host: String) -> (String, Option<IpAddr>) {
    // The port is of no interest, but a resolver wants one.
    let address = match timeout(RESOLVE_TIMEOUT, net.resolve(&format!("{host}:0"))).await {
        Ok(Ok(addresses)) => addresses.first().map(|a| a.ip().to_canonical()),
        Ok(Err(error)) => {
            debug!(host, %error, "name does not resolve");
            None
        }
        Err(_) => None,
    };
    (host, address)
}

#[cfg(test)]
mod tests {
    use cluster::node::Role;

    use super::*;
    use crate::places::NetworkPlace;

    #[test]
    fn hosts_are_found_in_every_way_to_write_an_address() {
        for (text, host) in [
            ("edge:7947", "edge"),
            ("10.0.0.1:1", "10.0.0.1"),
            ("[2001:db8::1]:1", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("edge", "edge"),
            ("", ""),
        ] {
            assert_eq!(host_of(text), host);
        }
    }

    #[test]
    fn a_node_is_where_it_says_else_where_its_first_known_address_is() {
        let places = Places::new(
            vec![NetworkPlace {
                cidr: "10.7.0.0/16".parse().unwrap(),
                region: "lab".into(),
                latitude: Some(1.0),
                longitude: Some(2.0),
            }],
            Some(cluster::geo::GeoDb::shipped()),
        );
        let located = |peer: &str, http: &str, gossip: &str, at: Option<GeoPoint>| {
            let mut node = NodeInfo::new("e".parse().unwrap(), Role::Edge);
            (node.peer, node.http) = (peer.into(), http.into());
            (node.gossip, node.location) = (gossip.into(), at);
            let atlas = Atlas::new(&ClusterView::new([node]), vec![], &places, |host| {
                (host == "ams.test").then(|| [193, 0, 6, 139].into())
            });
            let status = atlas.statuses().remove(0);
            let place = status.location;
            let source = place.as_ref().map_or("unknown", |p| p.source.as_str());
            (
                source.to_owned(),
                status.region,
                atlas.seats().next().unwrap().point,
            )
        };
        let here = GeoPoint::new(5.0, 6.0);
        let (source, _, point) = located("ams.test:1", "", "", here);
        assert_eq!((source.as_str(), point), ("configured", here));
        assert_eq!(located("ams.test:1", "", "", None).0, "city");
        assert_eq!(
            located("other.test:1", "http://ams.test/", "", None).0,
            "city"
        );
        assert_eq!(
            located("192.168.0.1:1", "http://{host}:8081", "193.0.6.139:1", None).0,
            "city"
        );
        let (source, region, point) = located("10.7.1.1:1", "", "193.0.6.139:1", None);
        assert_eq!((source.as_str(), region.as_str()), ("configured", "lab"));
        assert_eq!(point, GeoPoint::new(1.0, 2.0));
        let (source, region, point) = located("", "", "127.0.0.1:1", None);
        assert_eq!(
            (source.as_str(), region.as_str(), point),
            ("unknown", "", None)
        );
    }

    #[test]
    fn the_departed_are_listed_until_they_return() {
        let node = |id: &str| NodeInfo::new(id.parse().unwrap(), Role::Edge);
        let places = Places::new(vec![], None);
        let view = ClusterView::new([node("b"), node("a")]);
        let atlas = Atlas::new(&view, vec![node("a"), node("c")], &places, |_| None);
        let told: Vec<_> = atlas
            .statuses()
            .into_iter()
            .map(|s| (s.id.to_string(), s.alive))
            .collect();
        assert_eq!(
            told,
            [("a".into(), true), ("b".into(), true), ("c".into(), false)]
        );
        assert_eq!(atlas.states()[1], ("starting", 2));
        assert_eq!(atlas.states()[3], ("departed", 1));
        assert!(atlas.seat(&"c".parse().unwrap()).is_none());
    }
}
