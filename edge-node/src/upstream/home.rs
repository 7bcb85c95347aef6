//! The homes of a key ([`cluster::placement`]): which of them a fill asks ([`Way`]), and how far it may.
//! What is said then is in [`relayed`].
//!
//! **No question goes in a circle**: every fill has a [`Level`], may ask questions of lower levels only, and
//! a question may wait only for a fill that reaches lower than itself ([`may_join`]). So along any chain
//! of questions and waiting fills the level falls, whatever each node thinks of who is home.

use std::time::Duration;

use cluster::{
    key::Key,
    node::{NodeId, NodeInfo},
    placement::{self, HOMES_ASKED_MAX},
    site::{Site, rules::Shield},
    view::ClusterView,
};
use serde::Serialize;

use super::{
    Inner, Upstream,
    peer::{Frames, PeerError},
    question::Question,
    relayed::{self, Told, Wanted},
};

/// How far a fill reaches, or from how high a question comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The origin is asked, or a holder's storage; nobody waits for another fill.
    Origin,
    /// The home for the whole cluster is asked.
    Cluster,
    /// The home for the region is asked.
    Region,
    /// A client asks.
    Client,
}

impl Level {
    /// The word for it in a question.
    pub fn word(self) -> &'static str {
        match self {
            Self::Origin => "origin",
            Self::Cluster => "cluster",
            Self::Region => "region",
            Self::Client => "client",
        }
    }

    /// The level of a question with this query; only these two are asked.
    pub fn of_query(query: Option<&str>) -> Option<Self> {
        match query? {
            "level=region" => Some(Self::Region),
            "level=cluster" => Some(Self::Cluster),
            _ => None,
        }
    }
}

/// Whether a question of `level` may wait for a fill that `reaches` so far (as a number).
pub fn may_join(level: Level, reaches: u8) -> bool {
    reaches < level as u8
}

/// A home to ask.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Home {
    /// Its name.
    pub id: NodeId,
    /// `host:port` of its peer listener, as reached from here.
    pub addr: String,
    /// As what it is asked.
    pub level: Level,
}

/// The homes that a fill asks, one after the other, before the origin.
pub type Way = Vec<Home>;

/// How far a fill reaches that goes this way.
pub fn reach(way: &[Home]) -> Level {
    way.iter()
        .map(|home| home.level)
        .max()
        .unwrap_or(Level::Origin)
}

/// Whom `me` asks for a question of `level`, as level and name; then the origin. `region` and `cluster` are
/// the homes of the key, the first one first.
pub fn way(
    level: Level,
    shield: Shield,
    me: &NodeId,
    region: &[NodeId],
    cluster: &[NodeId],
) -> Vec<(Level, NodeId)> {
    let regional = shield != Shield::None && level > Level::Region;
    let global = shield == Shield::Cluster && level > Level::Cluster;
    if global && cluster.first() == Some(me) {
        // The end of every way.
        return Vec::new();
    }
    let mut way: Vec<(Level, NodeId)> = Vec::new();
    for (asks, level, homes) in [
        (regional, Level::Region, region),
        (global, Level::Cluster, cluster),
    ] {
        // Where it is this node's turn, it does what the home does.
        let before_me = homes.iter().take_while(|id| *id != me);
        for id in before_me.take(if asks { HOMES_ASKED_MAX } else { 0 }) {
            if !way.iter().any(|(_, asked)| asked == id) {
                way.push((level, id.clone()));
            }
        }
    }
    way
}

impl Upstream {
    /// The homes that a question of `level` for `key` makes this node ask, one after the other, before the
    /// origin.
    pub fn way(&self, site: &Site, key: Key, level: Level) -> Way {
        let inner = &*self.0;
        if inner.asker.is_none() || level <= Level::Cluster {
            return Way::new();
        }
        let view = inner.view.borrow().clone();
        let [region, cluster] = inner.homes(&view, site, key);
        let names = |homes: &[&'_ NodeInfo]| homes.iter().map(|node| node.id.clone()).collect();
        let (region, cluster): (Vec<_>, Vec<_>) = (names(&region), names(&cluster));
        way(level, site.shield(), &inner.me, &region, &cluster)
            .into_iter()
            .filter_map(|(level, id)| {
                let addr = inner.address(view.node(&id)?).to_owned();
                Some(Home { id, addr, level })
            })
            .collect()
    }

    /// Asks `home` for what is `wanted`, and waits until it is known what comes of it; the caller knows for
    /// how long. A home that fails, now or within the body, is ejected; one that only tells of its origin's
    /// failure is not.
    ///
    /// # Errors
    ///
    /// The home failed.
    pub async fn fill(&self, home: &Home, wanted: Wanted<'_>) -> Result<Told, PeerError> {
        self.reach_home(home, wanted).await?.told().await
    }

    /// The same, until the home begins to answer: from then on it says once a second that it is there.
    pub(super) async fn reach_home(
        &self,
        home: &Home,
        wanted: Wanted<'_>,
    ) -> Result<Reached, PeerError> {
        let asker = self.0.asker.as_ref().ok_or(PeerError::Denied)?;
        let question = self.0.question(&home.id)?;
        let asked = asker.fill(home, wanted).await;
        let ((frames, round_trip), question) = question.begun(asked)?;
        self.0.measured(&home.id, round_trip);
        Ok(Reached {
            question,
            frames,
            round_trip,
        })
    }

    /// The homes of `key`, and why, for people.
    pub fn homes_report(&self, site: &Site, key: Key) -> HomesReport {
        let inner = &*self.0;
        let view = inner.view.borrow().clone();
        let [region, cluster] = inner.homes(&view, site, key);
        let report = |homes: &[&NodeInfo]| -> Vec<HomeReport> {
            let limit = placement::spill_limit(homes);
            let most = homes.iter().take(HOMES_REPORTED_MAX);
            most.map(|node| HomeReport::of(node, &site.name, limit, node.id == inner.me))
                .collect()
        };
        HomesReport {
            shield: site.shield(),
            region: report(&region),
            cluster: report(&cluster),
            asked: self.way(site, key, Level::Client),
        }
    }
}

/// A home that has begun to answer.
pub(super) struct Reached {
    question: Question,
    frames: Frames,
    round_trip: Duration,
}

impl Reached {
    /// What it says.
    pub(super) async fn told(self) -> Result<Told, PeerError> {
        let told = relayed::told(self.frames, self.round_trip).await;
        let (mut told, question) = self.question.begun(told)?;
        match &mut told {
            Told::Object(relayed) => {
                relayed.verdict = Some(Box::new(move |result| question.end_as("filled", result)));
            }
            Told::Same(_) => question.end_as("same", Ok(())),
            Told::Refused(refusal) => question.end_as(refusal.label(), Ok(())),
        }
        Ok(told)
    }
}

impl Inner {
    /// The homes of `key` for this node's region and for the cluster, as far as the site has such.
    pub(super) fn homes<'a>(
        &self,
        view: &'a ClusterView,
        site: &Site,
        key: Key,
    ) -> [Vec<&'a NodeInfo>; 2] {
        let nodes = || view.nodes().map(|node| &**node);
        let region = view.node(&self.me).map_or("", |me| &me.region);
        match site.shield() {
            Shield::None => [vec![], vec![]],
            Shield::Region => [placement::region_homes(key, region, nodes()), vec![]],
            Shield::Cluster => [
                placement::region_homes(key, region, nodes()),
                placement::cluster_homes(key, &site.name, nodes()),
            ],
        }
    }
}

/// Most homes that are told of: enough to see who would follow.
const HOMES_REPORTED_MAX: usize = 5;

/// The homes of a key, as one node sees them.
#[derive(Clone, Debug, Serialize)]
pub struct HomesReport {
    /// What the site has.
    pub shield: Shield,
    /// Those of this node's region, the first one first.
    pub region: Vec<HomeReport>,
    /// Those of the cluster.
    pub cluster: Vec<HomeReport>,
    /// Whom this node would ask for a client before the origin.
    pub asked: Way,
}

/// A home, and why it stands where it stands.
#[derive(Clone, Debug, Serialize)]
pub struct HomeReport {
    /// Its name.
    pub id: NodeId,
    /// Why.
    pub why: String,
}

impl HomeReport {
    fn of(node: &NodeInfo, site: &str, limit: f64, is_me: bool) -> Self {
        let load = placement::load(node);
        let mut why = match load > limit {
            true => {
                format!("by its hash, behind those with less to do: load {load:.2} over {limit:.2}")
            }
            false => format!("by its hash; load {load:.2} of {limit:.2}"),
        };
        if let Some(ms) = node.origins_ms.get(site) {
            why.push_str(&format!(", {ms:.1} ms from the origin"));
        }
        if is_me {
            why.push_str("; this node");
        }
        let id = node.id.clone();
        Self { id, why }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, path::PathBuf, sync::Arc};

    use bytes::BytesMut;
    use cluster::{
        clock::Clock,
        net::SystemNet,
        node::{Phase, Role},
        secret::ClusterSecret,
    };
    use http::{HeaderMap, Request, Response};
    use http_body_util::Full;
    use hyper::body::Incoming;
    use tokio::sync::watch;

    use super::*;
    use crate::upstream::{
        UpstreamConfig,
        relayed::{Frame, OriginFault, Refusal},
        scripted::{Counted, serving},
    };

    fn ids(names: &[&str]) -> Vec<NodeId> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    /// The way as `level:name` words.
    fn written(
        level: Level,
        shield: Shield,
        me: &str,
        region: &[&str],
        cluster: &[&str],
    ) -> String {
        let (region, cluster) = (ids(region), ids(cluster));
        let way = way(level, shield, &me.parse().unwrap(), &region, &cluster);
        let words: Vec<String> = way
            .iter()
            .map(|(level, id)| format!("{}:{id}", level.word()))
            .collect();
        words.join(" ")
    }

    #[test]
    fn who_is_asked() {
        let (region, cluster) = (["a", "b", "c", "d"], ["x", "a", "y"]);
        for (level, shield, me, expected) in [
            (Level::Client, Shield::None, "d", ""),
            (Level::Client, Shield::Region, "d", "region:a region:b"),
            // The home itself, and the one after it.
            (Level::Client, Shield::Region, "a", ""),
            (Level::Client, Shield::Region, "b", "region:a"),
            (
                Level::Client,
                Shield::Cluster,
                "d",
                "region:a region:b cluster:x",
            ),
            (Level::Client, Shield::Cluster, "a", "cluster:x"),
            (Level::Client, Shield::Cluster, "b", "region:a cluster:x"),
            (Level::Client, Shield::Cluster, "x", ""),
            (
                Level::Client,
                Shield::Cluster,
                "y",
                "region:a region:b cluster:x",
            ),
            (Level::Region, Shield::Region, "a", ""),
            // Another view than the asker's: still no question of its own level.
            (Level::Region, Shield::Region, "d", ""),
            (Level::Region, Shield::Cluster, "a", "cluster:x"),
            (Level::Region, Shield::Cluster, "d", "cluster:x cluster:a"),
            (Level::Region, Shield::Cluster, "x", ""),
            (Level::Cluster, Shield::Cluster, "x", ""),
            (Level::Cluster, Shield::Cluster, "d", ""),
            (Level::Cluster, Shield::Region, "d", ""),
        ] {
            let way = written(level, shield, me, &region, &cluster);
            assert_eq!(way, expected, "{level:?} {shield:?} {me}");
        }
        assert_eq!(written(Level::Client, Shield::Cluster, "a", &[], &[]), "");
    }

    /// Rule 6 of the design: whatever each node thinks of who is home, the level falls with every question
    /// and with every fill that is waited for.
    #[test]
    fn the_level_falls_along_every_way() {
        let levels = [Level::Origin, Level::Cluster, Level::Region, Level::Client];
        let views: [&[&str]; 4] = [&["a", "b"], &["b", "a"], &["c"], &[]];
        for level in [Level::Cluster, Level::Region, Level::Client] {
            for shield in [Shield::None, Shield::Region, Shield::Cluster] {
                for (region, cluster, me) in views.iter().flat_map(|r| {
                    let with = |c| ["a", "b", "d"].map(|me| (*r, c, me));
                    views.iter().flat_map(move |c| with(*c))
                }) {
                    let way = written(level, shield, me, region, cluster);
                    for word in way.split_whitespace() {
                        let asked = Level::of_query(Some(&format!(
                            "level={}",
                            word.split(':').next().unwrap()
                        )));
                        assert!(asked.unwrap() < level, "{level:?} {shield:?} {me}: {way}");
                        assert!(!word.ends_with(&format!(":{me}")), "{way}");
                    }
                }
            }
            for reaches in levels {
                assert_eq!(may_join(level, reaches as u8), reaches < level);
            }
        }
        assert!(!may_join(Level::Region, u8::MAX));
        for query in [None, Some("level=origin"), Some("level=client"), Some("")] {
            assert_eq!(Level::of_query(query), None);
        }
    }

    fn node(name: &str, region: &str, addr: &str) -> NodeInfo {
        let mut node = NodeInfo::new(name.parse().unwrap(), Role::Edge);
        node.phase = Phase::Ready;
        node.region = region.into();
        node.peer = addr.into();
        node
    }

    fn upstream(nodes: Vec<NodeInfo>, events: Arc<Counted>) -> Upstream {
        let secret = b"0123456789abcdef0123456789abcdef";
        Upstream::new(UpstreamConfig {
            me: "edge-1".parse().unwrap(),
            secret: Some(ClusterSecret::from_bytes(secret).unwrap()),
            net: Arc::new(SystemNet),
            clock: Clock::system(),
            view: watch::channel(Arc::new(ClusterView::new(nodes))).1,
            control_planes: vec![],
            sites_version: 0,
            data_dir: PathBuf::new(),
            reach: HashMap::new(),
            hedge: true,
            events,
        })
    }

    #[tokio::test]
    async fn the_way_leads_through_this_region_and_then_to_the_cluster() {
        let mut nodes: Vec<_> = (1..=3)
            .map(|n| node(&format!("edge-{n}"), "eu", ""))
            .collect();
        nodes.extend((4..=6).map(|n| node(&format!("edge-{n}"), "us", "")));
        let upstream = upstream(nodes, Arc::default());
        let mut site = Site::new("www", &["www.test"], &["http://origin.test"]);
        let (mut own, mut far) = (0, 0);
        for number in 0..200_u64 {
            let key = Key::of(&[&number.to_le_bytes()]);
            site.shield = Some(Shield::Region);
            let region = upstream.way(&site, key, Level::Client);
            let all = |way: &Way, ids: &[&str]| way.iter().all(|h| ids.contains(&h.id.as_str()));
            assert!(all(&region, &["edge-2", "edge-3"]), "{region:?}");
            own += usize::from(region.is_empty());
            site.shield = Some(Shield::Cluster);
            let cluster = upstream.way(&site, key, Level::Client);
            far += usize::from(cluster.iter().any(|home| home.level == Level::Cluster));
            let report = upstream.homes_report(&site, key);
            assert_eq!((report.region.len(), report.cluster.len()), (3, 5));
            assert_eq!(report.asked, cluster);
            site.shield = Some(Shield::None);
            assert!(upstream.way(&site, key, Level::Client).is_empty());
        }
        // A third of the keys are this node's own; for half of all, the cluster's home is in the other region.
        assert!((40..100).contains(&own), "{own}");
        assert!((60..160).contains(&far), "{far}");
    }

    #[tokio::test]
    async fn a_home_that_fails_is_ejected_and_one_whose_origin_fails_is_not() {
        let failed = Frame::Refused(Refusal::OriginFailed {
            fault: OriginFault::Unreachable,
            detail: "refused".into(),
        });
        for (frame, result, ejected) in [
            (Some(failed), "origin_failed", false),
            (Some(Frame::Refused(Refusal::Crossed)), "crossed", false),
            (None, "closed_early", true),
        ] {
            let mut bytes = BytesMut::new();
            frame
                .iter()
                .for_each(|frame| frame.write(&mut bytes).unwrap());
            let bytes = bytes.freeze();
            let server = serving(move |_: Request<Incoming>| {
                let bytes = bytes.clone();
                async move { Response::new(Full::from(bytes)) }
            })
            .await;
            let events = Arc::<Counted>::default();
            let home = node("edge-2", "", &server.address());
            let upstream = upstream(vec![node("edge-1", "", ""), home], events.clone());
            let site = Site::new("www", &["www.test"], &["http://origin.test"]);
            let key = (0..)
                .map(Key)
                .find(|key| !upstream.way(&site, *key, Level::Client).is_empty());
            let key = key.unwrap();
            let way = upstream.way(&site, key, Level::Client);
            let wanted = Wanted {
                key,
                site: "www",
                host: "www.test",
                target: "/",
                fields: &HeaderMap::new(),
                have: None,
                from: 0,
                shares: false,
                purged: cluster::purge::Position::default(),
            };
            let told = upstream.fill(&way[0], wanted).await;
            assert_eq!(told.is_err(), ejected);
            assert_eq!(events.of(&format!("edge-2 {result}")), 1);
            assert_eq!(upstream.peers_report()[0].ejected, ejected);
            if ejected {
                let again = upstream.fill(&way[0], wanted).await;
                assert_eq!(again.unwrap_err(), PeerError::Ejected);
            }
        }
    }
}
