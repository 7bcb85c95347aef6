//! In which order this node's peers stand, and why: by the control plane's ranking, and by distance
//! for whoever it does not know. [`order`] is pure; [`follow_ranking`] keeps the ranking current.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use cluster::{
    node::{NodeId, NodeInfo},
    proximity::Way,
    view::ClusterView,
    wire::{self, PeersAnswer, RankedPeer},
};
use tokio::{io::AsyncWriteExt as _, time::sleep};
use tracing::{debug, info, warn};

use super::control::{ControlPlanes, retry_after};

/// Largest ranking: 10,000 peers of 400 bytes.
const RANKING_BYTES_MAX: usize = 4 << 20;
/// A ranking is pulled anew after two thirds of its life, but neither more often nor more seldom.
const PULL_INTERVAL: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(3600));
/// The last ranking, in the node's data directory.
const FILE: &str = "peers.json";

/// A peer, and how far it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// The peer, as it last described itself.
    pub node: Arc<NodeInfo>,
    /// What is known of the way there.
    pub way: Way,
    /// Expected cost of a question in milliseconds, without load and failures.
    pub cost_ms: f64,
}

/// Every other edge of `view`, best first.
///
/// Peers that `ranking` knows keep its order, even when it has expired: an old order is better than
/// none. Peers unknown to it come in before the first one that is farther, by round trip, distance
/// or region; without a ranking, that alone decides. `measured` are this node's own round trips in
/// milliseconds.
pub fn order(
    ranking: Option<&PeersAnswer>,
    me: &NodeInfo,
    view: &ClusterView,
    measured: &BTreeMap<NodeId, f64>,
) -> Vec<Placed> {
    let ranks: HashMap<&NodeId, (usize, &RankedPeer)> = ranking
        .filter(|ranking| ranking.node == me.id)
        .map(|ranking| {
            ranking
                .peers
                .iter()
                .enumerate()
                .map(|(i, p)| (&p.id, (i, p)))
                .collect()
        })
        .unwrap_or_default();
    let (mut ranked, mut unranked) = (Vec::new(), Vec::new());
    for peer in view.peers_of(&me.id) {
        let rank = ranks.get(&peer.id).copied();
        let placed = place(
            rank.map(|(_, r)| r),
            me,
            peer,
            measured.get(&peer.id).copied(),
        );
        match rank {
            Some((i, _)) => ranked.push((i, placed)),
            None => unranked.push(placed),
        }
    }
    ranked.sort_by_key(|(i, _)| *i);
    let mut all: Vec<Placed> = ranked.into_iter().map(|(_, placed)| placed).collect();
    unranked.sort_by(|a, b| {
        a.cost_ms
            .total_cmp(&b.cost_ms)
            .then_with(|| a.node.id.cmp(&b.node.id))
    });
    let mut from = 0;
    for peer in unranked {
        from += all[from..]
            .iter()
            .take_while(|p| p.cost_ms <= peer.cost_ms)
            .count();
        all.insert(from, peer);
        from += 1;
    }
    all
}

/// What `ranking` says of `peer`, if it is `me`'s.
pub fn rank_of<'a>(
    ranking: Option<&'a PeersAnswer>,
    me: &NodeId,
    peer: &NodeId,
) -> Option<&'a RankedPeer> {
    let ranking = ranking.filter(|ranking| ranking.node == *me)?;
    ranking.peers.iter().find(|ranked| ranked.id == *peer)
}

/// Where `peer` stands, as `me` sees it; `measured` is this node's own round trip in milliseconds.
pub fn place(
    ranked: Option<&RankedPeer>,
    me: &NodeInfo,
    peer: &Arc<NodeInfo>,
    measured: Option<f64>,
) -> Placed {
    let known = Way::between(me, peer);
    let way = Way {
        measured_ms: measured,
        reported_ms: known.reported_ms.or_else(|| ranked?.rtt_ms),
        distance_km: ranked.and_then(|r| r.distance_km).or(known.distance_km),
        ..known
    };
    Placed {
        node: peer.clone(),
        cost_ms: way.cost().0,
        way,
    }
}

/// Keeps `current` the newest ranking for `me` that a control plane gave, for as long as it runs, and
/// the same on disk, from where it is read at the start.
pub async fn follow_ranking(
    planes: ControlPlanes,
    me: NodeId,
    data_dir: PathBuf,
    current: Arc<ArcSwapOption<PeersAnswer>>,
) {
    let file = data_dir.join(FILE);
    match read(&file).await {
        Ok(Some(ranking)) if ranking.node == me => current.store(Some(Arc::new(ranking))),
        Ok(_) => {}
        Err(error) => {
            warn!(file = %file.display(), %error, "last ranking cannot be read, going on without")
        }
    }
    let path = format!("{}?node={me}", wire::PEERS);
    let mut failures = 0;
    loop {
        let accept = |answer: &PeersAnswer| match answer.node == me {
            true => Ok(()),
            false => Err(format!("the ranking of {}", answer.node)),
        };
        match planes.document(&path, RANKING_BYTES_MAX, accept).await {
            Ok((answer, bytes)) => {
                if failures > 0 || current.load().is_none() {
                    info!(
                        peers = answer.peers.len(),
                        ttl_s = answer.ttl_s,
                        "ranking pulled"
                    );
                }
                failures = 0;
                let pause = Duration::from_secs(answer.ttl_s).saturating_mul(2) / 3;
                current.store(Some(Arc::new(answer)));
                if let Err(error) = write(&file, &bytes).await {
                    warn!(file = %file.display(), %error, "ranking cannot be kept on disk");
                }
                sleep(pause.clamp(PULL_INTERVAL.0, PULL_INTERVAL.1)).await;
            }
            Err(error) => {
                failures += 1;
                match failures {
                    // The first may just be early: the control plane has not heard of this node.
                    2 => warn!(%error, "ranking cannot be pulled, going on with what is known"),
                    _ => debug!(%error, failures, "ranking cannot be pulled"),
                }
                sleep(retry_after(failures)).await;
            }
        }
    }
}

async fn read(file: &Path) -> io::Result<Option<PeersAnswer>> {
    match tokio::fs::metadata(file).await {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(found) if found.len() > RANKING_BYTES_MAX as u64 => {
            return Err(io::Error::other("too large to be a ranking"));
        }
        found => found?,
    };
    Ok(Some(serde_json::from_slice(&tokio::fs::read(file).await?)?))
}

/// Whole or not at all: written beside, synced, then renamed.
async fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = file.with_extension("json.new");
    let mut new = tokio::fs::File::create(&beside).await?;
    new.write_all(bytes).await?;
    new.sync_all().await?;
    tokio::fs::rename(&beside, file).await
}

#[cfg(test)]
mod tests {
    use cluster::{
        geo::GeoPoint,
        net::SystemNet,
        node::{Load, Role},
        proximity::Why,
    };
    use http::{Request, Response};
    use http_body_util::Full;
    use hyper::body::Incoming;
    use proptest::prelude::*;

    use super::*;
    use crate::upstream::{
        pool::Pool,
        scripted::{Scripted, eventually, serving},
    };

    fn node(id: &str, region: &str, place: Option<(f64, f64)>) -> NodeInfo {
        let mut node = NodeInfo::new(id.parse().unwrap(), Role::Edge);
        node.region = region.into();
        node.location = place.and_then(|(lat, lon)| GeoPoint::new(lat, lon));
        node
    }

    const FRANKFURT: Option<(f64, f64)> = Some((50.1, 8.7));
    const PARIS: Option<(f64, f64)> = Some((48.9, 2.4));
    const TOKYO: Option<(f64, f64)> = Some((35.7, 139.7));

    fn cluster() -> (NodeInfo, ClusterView) {
        let me = node("me", "eu", FRANKFURT);
        let view = ClusterView::new([
            me.clone(),
            node("tokyo", "ap", TOKYO),
            node("paris", "eu", PARIS),
            node("nowhere", "", None),
            node("somewhere", "eu", None),
            NodeInfo::new("control".parse().unwrap(), Role::Control),
        ]);
        (me, view)
    }

    fn ranking(ids: &[&str]) -> PeersAnswer {
        let peers = ids.iter().enumerate().map(|(i, id)| RankedPeer {
            id: id.parse().unwrap(),
            region: String::new(),
            peer_addr: String::new(),
            distance_km: None,
            rtt_ms: None,
            load: Load::default(),
            score: i as f64,
            why: String::new(),
        });
        PeersAnswer {
            node: "me".parse().unwrap(),
            generated_at: 0,
            ttl_s: 60,
            peers: peers.collect(),
        }
    }

    fn names(placed: &[Placed]) -> Vec<&str> {
        placed.iter().map(|p| p.node.id.as_str()).collect()
    }

    #[test]
    fn without_a_ranking_distance_decides_then_region_then_name() {
        let (me, view) = cluster();
        let placed = order(None, &me, &view, &BTreeMap::new());
        assert_eq!(names(&placed), ["paris", "somewhere", "tokyo", "nowhere"]);
        let why: Vec<Why> = placed.iter().map(|p| p.way.cost().1).collect();
        assert_eq!(
            why,
            [Why::Distance, Why::Region, Why::Distance, Why::Unknown]
        );
        let km = placed[0].way.distance_km.unwrap();
        assert!((450.0..500.0).contains(&km), "{km}");
    }

    #[test]
    fn a_measured_round_trip_beats_the_map() {
        let (me, view) = cluster();
        assert_eq!(
            names(&order(None, &me, &view, &BTreeMap::new()))[0],
            "paris"
        );
        let measured =
            [("tokyo", 110.0), ("paris", 180.0)].map(|(id, ms)| (id.parse().unwrap(), ms));
        let placed = order(None, &me, &view, &measured.into());
        let place = |name| names(&placed).iter().position(|n| *n == name);
        assert!(
            place("tokyo") < place("paris"),
            "a poor path to the near one"
        );
        let tokyo = &placed[place("tokyo").unwrap()];
        assert_eq!(tokyo.way.explain(), "110.0 ms measured, 9331 km");
    }

    #[test]
    fn round_trips_that_say_nothing_leave_the_order_to_the_map() {
        let (me, view) = cluster();
        let measured = [("tokyo", 0.2), ("paris", 0.4)].map(|(id, ms)| (id.parse().unwrap(), ms));
        assert_eq!(
            names(&order(None, &me, &view, &measured.into()))[0],
            "paris"
        );
    }

    #[test]
    fn the_control_planes_order_stands_and_strangers_are_placed_in_it() {
        let (me, view) = cluster();
        let placed = order(
            Some(&ranking(&["tokyo", "gone", "nowhere"])),
            &me,
            &view,
            &BTreeMap::new(),
        );
        assert_eq!(names(&placed), ["paris", "somewhere", "tokyo", "nowhere"]);
        let placed = order(
            Some(&ranking(&["nowhere", "paris"])),
            &me,
            &view,
            &BTreeMap::new(),
        );
        assert_eq!(names(&placed), ["somewhere", "tokyo", "nowhere", "paris"]);
        let all = ["nowhere", "tokyo", "somewhere", "paris"];
        assert_eq!(
            names(&order(Some(&ranking(&all)), &me, &view, &BTreeMap::new())),
            all
        );
    }

    #[test]
    fn somebody_elses_ranking_is_no_ranking() {
        let (me, view) = cluster();
        let other = PeersAnswer {
            node: "tokyo".parse().unwrap(),
            ..ranking(&["nowhere"])
        };
        assert_eq!(
            names(&order(Some(&other), &me, &view, &BTreeMap::new()))[0],
            "paris"
        );
    }

    #[tokio::test]
    async fn a_ranking_survives_on_disk_and_a_broken_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        assert!(read(&file).await.unwrap().is_none());
        let one = ranking(&["paris"]);
        write(&file, &serde_json::to_vec(&one).unwrap())
            .await
            .unwrap();
        assert_eq!(read(&file).await.unwrap(), Some(one));
        std::fs::write(&file, b"{").unwrap();
        assert!(read(&file).await.is_err());
    }

    #[tokio::test]
    async fn a_node_that_restarts_without_control_plane_still_has_its_ranking() {
        let answer = ranking(&["paris", "tokyo"]);
        let json = serde_json::to_vec(&answer).unwrap();
        let server = serving(move |request: Request<Incoming>| {
            assert!(request.uri().to_string().starts_with("/v1/peers?node=me"));
            let json = json.clone();
            async move { Response::new(Full::from(json)) }
        })
        .await;
        let dir = tempfile::tempdir().unwrap();
        let follow = |base: String, me: &str| {
            let current = Arc::<ArcSwapOption<PeersAnswer>>::default();
            let pool = Pool::new(Arc::new(SystemNet));
            let planes = ControlPlanes::new(pool, &[base], None);
            let (me, dir) = (me.parse().unwrap(), dir.path().to_owned());
            let running = tokio::spawn(follow_ranking(planes, me, dir, current.clone()));
            (current, running)
        };
        let (current, running) = follow(server.url(), "me");
        eventually(|| current.load().as_deref() == Some(&answer)).await;
        eventually(|| dir.path().join(FILE).exists()).await;
        running.abort();

        let gone = Scripted::refusing().await;
        let (current, running) = follow(gone.clone(), "me");
        eventually(|| current.load().as_deref() == Some(&answer)).await;
        running.abort();

        // Of another node that had this directory before, and from a control plane that errs.
        let (current, running) = follow(gone, "other");
        let (wrong, also_running) = follow(server.url(), "me2");
        sleep(Duration::from_millis(300)).await;
        assert!(current.load().is_none() && wrong.load().is_none());
        running.abort();
        also_running.abort();
    }

    proptest! {
        /// Everybody of the view stands in the order exactly once, and those the control plane
        /// ranks stand in its order.
        #[test]
        fn nobody_is_lost_and_the_ranking_is_kept(
            ranked in prop::collection::vec(0..12_u8, 0..12),
            places in prop::collection::vec(prop::option::of((-90.0..=90.0, -180.0..=180.0)), 8),
        ) {
            let me = node("me", "eu", FRANKFURT);
            let peers = places.iter().enumerate().map(|(i, place)| node(&format!("e{i}"), "", *place));
            let view = ClusterView::new(peers.chain([me.clone()]));
            let mut ids: Vec<String> = ranked.iter().map(|i| format!("e{i}")).collect();
            ids.sort();
            ids.dedup();
            ids.reverse();
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            let placed = order(Some(&ranking(&ids)), &me, &view, &BTreeMap::new());
            let names = names(&placed);
            let mut sorted = names.clone();
            sorted.sort_unstable();
            sorted.dedup();
            prop_assert_eq!(sorted.len(), 8);
            prop_assert_eq!(names.len(), 8);
            let kept: Vec<&str> = names.into_iter().filter(|n| ids.contains(n)).collect();
            let expected: Vec<&str> = ids.into_iter().filter(|id| view.node(&id.parse().unwrap()).is_some()).collect();
            prop_assert_eq!(kept, expected);
        }
    }
}
