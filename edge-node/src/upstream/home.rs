//! The homes of a key ([`cluster::placement`]): which of them a fill asks ([`Way`]), and how far it may.
//! What is said then is in [`relayed`].
//!
//! **No question goes in a circle**: every fill has a [`Level`], may ask questions of lower levels only, and
//! a question may wait only for a fill that reaches lower than itself ([`may_join`]). So along any chain
//! of questions and waiting fills the level falls, whatever each node thinks of who is home.

use std::{sync::PoisonError, time::Duration};

use cluster::{
    key::Key,
    node::{NodeId, NodeInfo, UNREACHABLE_MS},
    placement::{self, HOMES_ASKED_MAX},
    site::{Site, rules::Shield},
    view::ClusterView,
};
use serde::Serialize;
use tokio::time::Instant;

use super::{
    Inner, Upstream,
    peer::{Frames, PeerError},
    question::Question,
    relayed::{self, Told, Wanted},
};

/// How far a fill reaches, or from how high a question comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// The origin is asked, or a holder's storage; nobody waits for another fill.
    Origin,
    /// The first home for the whole cluster is asked.
    Cluster,
    /// The second one is, because the first has failed or sends on: it may itself be asking the first for a client,
    /// and who asks it then waits with that.
    ClusterNext,
    /// The first home for the region is asked.
    Region,
    /// The second one is.
    RegionNext,
    /// A client asks.
    Client,
}

impl Level {
    /// The word for it in a question.
    pub fn word(self) -> &'static str {
        match self {
            Self::Origin => "origin",
            Self::Cluster | Self::ClusterNext => "cluster",
            Self::Region | Self::RegionNext => "region",
            Self::Client => "client",
        }
    }

    /// Whether the second home is asked.
    pub fn is_next(self) -> bool {
        matches!(self, Self::ClusterNext | Self::RegionNext)
    }

    /// The level of a question with this query, to the second home or not; others are not asked.
    pub fn of_question(query: Option<&str>, is_next: bool) -> Option<Self> {
        match (query?, is_next) {
            ("level=region", false) => Some(Self::Region),
            ("level=region", true) => Some(Self::RegionNext),
            ("level=cluster", false) => Some(Self::Cluster),
            ("level=cluster", true) => Some(Self::ClusterNext),
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
    /// It may send the asker on to the next one when it has too much to do.
    pub may_send_on: bool,
}

/// Of which keys this node, where it is the first home, has others be the home for now: it has too much to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spilling {
    /// Of its region's.
    pub region: bool,
    /// Of the cluster's.
    pub cluster: bool,
}

impl Spilling {
    /// The same for a key of which this node is the cluster's first home (0), its second (1), or neither. What is too
    /// much for its region is no reason then to send that on: the next of the region would have nobody left to ask
    /// but this node, and fetch it beside it.
    #[must_use]
    fn of_key(self, place: Option<usize>) -> Self {
        let region = match place {
            Some(0) => self.cluster,
            Some(_) => false,
            None => self.region,
        };
        Self { region, ..self }
    }
}

/// Who has had too much to do sends others on for so long after: until what the next home has fetched meanwhile is
/// known by its digest, nobody is the home of the same key as well.
const SPILLING_FOR: Duration = Duration::from_secs(10);

/// Until when this node sends others on.
#[derive(Debug, Default)]
pub(super) struct SpillingUntil([Option<Instant>; 2]);

impl SpillingUntil {
    /// What to do now, when the region's and the cluster's keys are too much, or not.
    fn now(&mut self, too_much: [bool; 2], now: Instant) -> Spilling {
        for (until, too_much) in self.0.iter_mut().zip(too_much) {
            if too_much {
                *until = Some(now + SPILLING_FOR);
            }
        }
        let [region, cluster] = self.0.map(|until| until.is_some_and(|until| now < until));
        Spilling { region, cluster }
    }
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

/// A home to ask, without its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// As what it is asked.
    pub level: Level,
    /// Its name.
    pub id: NodeId,
    /// It may send the asker on to the next one.
    pub may_send_on: bool,
}

/// Whom `me` asks for a question of `level`; then the origin. `region` and `cluster` are the homes of the key, the
/// first one first.
///
/// Only the first home may send others on, to the second: so there is one node that decides who fetches a key.
pub fn way(
    level: Level,
    shield: Shield,
    me: &NodeId,
    region: &[NodeId],
    cluster: &[NodeId],
    spilling: Spilling,
) -> Vec<Step> {
    let regional = shield != Shield::None && level > Level::RegionNext;
    let global = shield == Shield::Cluster && level > Level::ClusterNext;
    let is_end = global && cluster.first() == Some(me);
    let mut way: Vec<Step> = Vec::new();
    // As many as there are levels for: [`HOMES_ASKED_MAX`].
    for (asks, levels, homes, spills) in [
        // Who is the cluster's home is the end of every way, or what the next one of the cluster is instead.
        (
            regional && !is_end,
            [Level::Region, Level::RegionNext] as [_; HOMES_ASKED_MAX],
            region,
            spilling.region,
        ),
        (
            global,
            [Level::Cluster, Level::ClusterNext],
            cluster,
            spilling.cluster,
        ),
    ] {
        for (turn, (id, level)) in homes.iter().zip(levels).enumerate() {
            if id == me {
                match turn == 0 && spills {
                    true => continue,
                    // Where it is this node's turn, it does what the home does.
                    false => break,
                }
            }
            if asks && !way.iter().any(|step| step.id == *id) {
                way.push(Step {
                    level,
                    id: id.clone(),
                    may_send_on: turn == 0 && homes.len() > 1,
                });
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
        if inner.asker.is_none() || level <= Level::ClusterNext {
            return Way::new();
        }
        let view = inner.view.borrow().clone();
        let [region, cluster] = inner.homes(&view, site, key);
        let names = |homes: &[&'_ NodeInfo]| homes.iter().map(|node| node.id.clone()).collect();
        let spilling = inner.spilling(&region, &cluster);
        let (region, cluster): (Vec<_>, Vec<_>) = (names(&region), names(&cluster));
        way(level, site.shield(), &inner.me, &region, &cluster, spilling)
            .into_iter()
            .filter_map(|step| {
                let Step {
                    level,
                    id,
                    may_send_on,
                } = step;
                let addr = inner.address(view.node(&id)?).to_owned();
                Some(Home {
                    id,
                    addr,
                    level,
                    may_send_on,
                })
            })
            .collect()
    }

    /// Whether who asks this node for `key` with a question of `level` is to ask the next home: this node is the
    /// first one, and has too much to do.
    pub fn sends_on(&self, site: &Site, key: Key, level: Level) -> bool {
        let inner = &*self.0;
        let view = inner.view.borrow().clone();
        let [region, cluster] = inner.homes(&view, site, key);
        let spilling = inner.spilling(&region, &cluster);
        let (homes, spills) = match level {
            Level::Region => (region, spilling.region),
            Level::Cluster => (cluster, spilling.cluster),
            _ => return false,
        };
        spills && homes.first().is_some_and(|first| first.id == inner.me)
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
    /// Whether this node has too much to do to be the home of anything new, among these.
    fn spilling(&self, region: &[&NodeInfo], cluster: &[&NodeInfo]) -> Spilling {
        let too_much = [region, cluster].map(|homes| placement::has_too_much(&self.me, homes));
        let mut until = self.spilling.lock().unwrap_or_else(PoisonError::into_inner);
        let mut homes = cluster.iter().take(HOMES_ASKED_MAX);
        let place = homes.position(|home| home.id == self.me);
        until.now(too_much, Instant::now()).of_key(place)
    }

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
                format!("by its hash, but sends on what is new: load {load:.2} over {limit:.2}")
            }
            false => format!("by its hash; load {load:.2} of {limit:.2}"),
        };
        match node.origins_ms.get(site) {
            Some(ms) if *ms >= UNREACHABLE_MS => why.push_str(", cannot reach the origin"),
            Some(ms) => why.push_str(&format!(", {ms:.1} ms from the origin")),
            None => {}
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
    use std::sync::Arc;

    use bytes::BytesMut;
    use cluster::node::{Phase, Role};
    use http::{HeaderMap, Request, Response};
    use http_body_util::Full;
    use hyper::body::Incoming;
    use tokio::sync::watch;

    use super::*;
    use crate::upstream::{
        relayed::{Frame, OriginFault, Refusal},
        scripted::{Counted, config, serving},
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
        spilling: Spilling,
    ) -> String {
        let (region, cluster) = (ids(region), ids(cluster));
        let way = way(
            level,
            shield,
            &me.parse().unwrap(),
            &region,
            &cluster,
            spilling,
        );
        let words: Vec<String> = way
            .iter()
            .map(|step| {
                let next = if step.level.is_next() { "-next" } else { "" };
                format!("{}{next}:{}", step.level.word(), step.id)
            })
            .collect();
        words.join(" ")
    }

    const CALM: Spilling = Spilling {
        region: false,
        cluster: false,
    };
    const BUSY: Spilling = Spilling {
        region: true,
        cluster: true,
    };

    #[test]
    fn who_is_asked() {
        let (region, cluster) = (["a", "b", "c", "d"], ["x", "a", "y"]);
        for (level, shield, me, expected) in [
            (Level::Client, Shield::None, "d", ""),
            (Level::Client, Shield::Region, "d", "region:a region-next:b"),
            // The home itself, and the one after it.
            (Level::Client, Shield::Region, "a", ""),
            (Level::Client, Shield::Region, "b", "region:a"),
            (
                Level::Client,
                Shield::Cluster,
                "d",
                "region:a region-next:b cluster:x",
            ),
            (Level::Client, Shield::Cluster, "a", "cluster:x"),
            (Level::Client, Shield::Cluster, "b", "region:a cluster:x"),
            (Level::Client, Shield::Cluster, "x", ""),
            (
                Level::Client,
                Shield::Cluster,
                "y",
                "region:a region-next:b cluster:x",
            ),
            (Level::Region, Shield::Region, "a", ""),
            // Another view than the asker's: still no question of its own level.
            (Level::Region, Shield::Region, "d", ""),
            (Level::Region, Shield::Cluster, "a", "cluster:x"),
            (
                Level::Region,
                Shield::Cluster,
                "d",
                "cluster:x cluster-next:a",
            ),
            (Level::Region, Shield::Cluster, "x", ""),
            (Level::Cluster, Shield::Cluster, "x", ""),
            (Level::Cluster, Shield::Cluster, "d", ""),
            (Level::Cluster, Shield::Region, "d", ""),
        ] {
            let way = written(level, shield, me, &region, &cluster, CALM);
            assert_eq!(way, expected, "{level:?} {shield:?} {me}");
        }
        let nobody = |spilling| written(Level::Client, Shield::Cluster, "a", &[], &[], spilling);
        assert_eq!((nobody(CALM), nobody(BUSY)), (String::new(), String::new()));
    }

    /// Who is the first home and has too much to do asks the next one, and has others ask it.
    #[test]
    fn a_first_home_with_too_much_to_do_has_the_next_one_fetch() {
        let (region, cluster) = (["a", "b", "c", "d"], ["x", "a", "y"]);
        for (level, shield, me, expected) in [
            (Level::Client, Shield::Region, "a", "region-next:b"),
            (Level::Client, Shield::Region, "b", "region:a"),
            (Level::Client, Shield::Region, "d", "region:a region-next:b"),
            (Level::Client, Shield::Cluster, "x", "cluster-next:a"),
            (Level::Region, Shield::Cluster, "x", "cluster-next:a"),
            (
                Level::Client,
                Shield::Cluster,
                "a",
                "region-next:b cluster:x",
            ),
            (Level::Region, Shield::Region, "a", ""),
            (Level::Cluster, Shield::Cluster, "x", ""),
        ] {
            let way = written(level, shield, me, &region, &cluster, BUSY);
            assert_eq!(way, expected, "{level:?} {shield:?} {me}");
        }
        // The only one has nobody to send on to.
        let alone = |me| written(Level::Client, Shield::Region, me, &["a"], &[], BUSY);
        assert_eq!((alone("a"), alone("b")), (String::new(), "region:a".into()));
        let [d, alone] = [&["a", "b", "d"][..], &["a"]].map(|region| {
            let (region, me) = (ids(region), "d".parse().unwrap());
            let way = way(Level::Client, Shield::Region, &me, &region, &[], BUSY);
            way.iter().map(|step| step.may_send_on).collect::<Vec<_>>()
        });
        assert_eq!((d, alone), (vec![true, false], vec![false]));
    }

    #[test]
    fn who_sends_on_does_so_for_a_while() {
        let (mut until, start) = (SpillingUntil::default(), Instant::now());
        let mut at = |ms, too_much| until.now(too_much, start + Duration::from_millis(ms));
        let only_region = Spilling {
            region: true,
            cluster: false,
        };
        assert_eq!(at(0, [false, false]), CALM);
        assert_eq!(at(10, [true, false]), only_region);
        assert_eq!(at(5_000, [true, false]), only_region);
        assert_eq!(at(14_999, [false, false]), only_region);
        assert_eq!(at(15_000, [false, false]), CALM);
        assert_eq!(at(15_001, [true, true]), BUSY);
    }

    #[test]
    fn the_homes_of_the_cluster_do_not_go_by_what_is_too_much_for_their_region() {
        for (region, cluster) in [(true, false), (false, true)] {
            let spilling = Spilling { region, cluster };
            assert_eq!(spilling.of_key(None), spilling);
            assert_eq!(spilling.of_key(Some(0)), if cluster { BUSY } else { CALM });
            assert!(!spilling.of_key(Some(1)).region);
        }
    }

    /// Rule 6 of the design: whatever each node thinks of who is home, the level falls with every question
    /// and with every fill that is waited for.
    #[test]
    fn the_level_falls_along_every_way() {
        let levels = [
            Level::Origin,
            Level::Cluster,
            Level::ClusterNext,
            Level::Region,
            Level::RegionNext,
            Level::Client,
        ];
        let views: [&[&str]; 4] = [&["a", "b"], &["b", "a"], &["c"], &[]];
        for level in levels {
            for shield in [Shield::None, Shield::Region, Shield::Cluster] {
                for (region, cluster, me) in views.iter().flat_map(|r| {
                    let with = |c| ["a", "b", "d"].map(|me| (*r, c, me));
                    views.iter().flat_map(move |c| with(*c))
                }) {
                    let [calm, busy] = [CALM, BUSY]
                        .map(|spilling| written(level, shield, me, region, cluster, spilling));
                    for (way, word) in [&calm, &busy]
                        .into_iter()
                        .flat_map(|way| way.split_whitespace().map(move |word| (way, word)))
                    {
                        let asked = word.split(':').next().unwrap();
                        let first = asked.strip_suffix("-next").unwrap_or(asked);
                        let query = format!("level={first}");
                        let asked = Level::of_question(Some(&query), asked != first);
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
            assert_eq!(Level::of_question(query, false), None);
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
        let view = watch::channel(Arc::new(ClusterView::new(nodes))).1;
        Upstream::new(config("edge-1".parse().unwrap(), view, events))
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
                slice: None,
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
