//! Which peer or edge comes first for somebody, and why: the expected cost in milliseconds of
//! asking it. Pure.
//!
//! What was measured beats what the map says, the map beats region labels, and labels beat nothing.

use cluster::{
    geo::GeoPoint,
    node::{Load, NodeId, NodeInfo},
    wire::{RankedEdge, RankedPeer},
};

/// Round trip per kilometre: light in fibre goes 200 km in a millisecond, there and back, on cables
/// half as long again as the great circle. Between 49 cloud regions the median is 0.017.
pub const MS_PER_KM: f64 = 1.5 * 2.0 / 200.0;
/// Round trip over no distance at all. With [`MS_PER_KM`] it is within a third of the median at all
/// distances between cloud regions (9 ms measured under 300 km, 235 ms over 12,000 km).
pub const NEAR_MS: f64 = 5.0;
/// Expected within a region, when either place is unknown.
pub const SAME_REGION_MS: f64 = 15.0;
/// Expected between regions, when either place is unknown: about half the globe's way.
pub const ELSEWHERE_MS: f64 = 150.0;
/// Requests under way that double the cost of a node: it answers, but others answer sooner.
pub const IN_FLIGHT_DOUBLES: f64 = 200.0;
/// Bytes per second that double the cost of a node: a gigabit's worth.
pub const BYTES_PER_S_DOUBLES: f64 = 125e6;
/// Bound on what load adds: past it, a far node is better in any case, and all are alike.
pub const LOAD_FACTOR_MAX: f64 = 9.0;
/// Least round trip per kilometre that light in fibre allows. One measured below it says that a
/// place is wrong, or simulated (many nodes on one machine); then the places decide.
const LIGHT_MS_PER_KM: f64 = 2.0 / 200.0;
/// Shortest round trip that is believed; a clock's grain must not make a node free of cost.
const RTT_MS_MIN: f64 = 0.1;

/// A node and where it is.
#[derive(Clone, Copy, Debug)]
pub struct Seat<'a> {
    /// The node, as it last described itself.
    pub node: &'a NodeInfo,
    /// Where it is, as far as known.
    pub point: Option<GeoPoint>,
    /// Its region, empty when unknown.
    pub region: &'a str,
}

/// From where somebody without measurements looks at the edges.
#[derive(Clone, Copy, Debug, Default)]
pub struct Vantage<'a> {
    /// Where they are, as far as known.
    pub point: Option<GeoPoint>,
    /// Their region, empty when unknown.
    pub region: &'a str,
}

/// The expected cost of asking somebody, without their load: the measured round trip, else what
/// the distance makes likely, else what the regions do.
pub fn expected_ms(rtt_ms: Option<f64>, distance_km: Option<f64>, same_region: bool) -> f64 {
    match (rtt_ms, distance_km) {
        (Some(rtt), km) => rtt.max(RTT_MS_MIN).max(km.unwrap_or(0.0) * LIGHT_MS_PER_KM),
        (None, Some(km)) => NEAR_MS + km * MS_PER_KM,
        (None, None) if same_region => SAME_REGION_MS,
        (None, None) => ELSEWHERE_MS,
    }
}

/// What a node's load adds to its cost, as a multiple of it: 0 when idle.
pub fn load_factor(load: Load) -> f64 {
    let requests = f64::from(load.in_flight) / IN_FLIGHT_DOUBLES;
    let bytes = load.bytes_per_s as f64 / BYTES_PER_S_DOUBLES;
    requests.max(bytes).min(LOAD_FACTOR_MAX)
}

/// The peers of `me` that may be sent work, best first, at most `limit`.
pub fn peers_for<'a>(
    me: &Seat<'_>,
    others: impl Iterator<Item = Seat<'a>>,
    limit: usize,
) -> Vec<RankedPeer> {
    let peers = others
        .filter(|other| other.node.is_serving_edge() && other.node.id != me.node.id)
        .map(|other| {
            let rtt_ms = round_trip_ms(me.node, other.node);
            let distance_km = distance_km(me.point, other.point);
            let expected = expected_ms(rtt_ms, distance_km, same_region(me.region, other.region));
            RankedPeer {
                id: other.node.id.clone(),
                region: other.region.to_owned(),
                peer_addr: other.node.peer.clone(),
                distance_km,
                rtt_ms,
                load: other.node.load,
                score: expected * (1.0 + load_factor(other.node.load)),
            }
        });
    best_first(peers.collect(), limit, |peer| (peer.score, &peer.id))
}

/// The edges that clients may be sent to, best first for whoever is at `vantage`, at most `limit`.
pub fn edges_for<'a>(
    vantage: Vantage<'_>,
    nodes: impl Iterator<Item = Seat<'a>>,
    limit: usize,
) -> Vec<RankedEdge> {
    let edges = nodes
        .filter(|seat| seat.node.is_serving_edge() && seat.node.http.contains("://"))
        .map(|seat| {
            let distance_km = distance_km(vantage.point, seat.point);
            let expected = expected_ms(None, distance_km, same_region(vantage.region, seat.region));
            RankedEdge {
                id: seat.node.id.clone(),
                region: seat.region.to_owned(),
                http: seat.node.http.clone(),
                distance_km,
                load: seat.node.load,
                score: expected * (1.0 + load_factor(seat.node.load)),
            }
        });
    best_first(edges.collect(), limit, |edge| (edge.score, &edge.id))
}

/// What `me` measured to `other`; else what `other` measured to `me`.
fn round_trip_ms(me: &NodeInfo, other: &NodeInfo) -> Option<f64> {
    let measured = me.round_trips_ms.get(&other.id);
    measured
        .or_else(|| other.round_trips_ms.get(&me.id))
        .copied()
}

fn distance_km(a: Option<GeoPoint>, b: Option<GeoPoint>) -> Option<f64> {
    Some(a?.distance_km(b?))
}

fn same_region(a: &str, b: &str) -> bool {
    !a.is_empty() && a == b
}

fn best_first<T>(mut all: Vec<T>, limit: usize, key: impl Fn(&T) -> (f64, &NodeId)) -> Vec<T> {
    all.sort_by(|a, b| {
        let ((score_a, id_a), (score_b, id_b)) = (key(a), key(b));
        score_a.total_cmp(&score_b).then_with(|| id_a.cmp(id_b))
    });
    all.truncate(limit);
    all
}

#[cfg(test)]
mod tests {
    use cluster::node::{Phase, Role};
    use proptest::prelude::*;

    use super::*;

    const FRANKFURT: (f64, f64) = (50.11, 8.68);
    const PARIS: (f64, f64) = (48.86, 2.35);
    const VIRGINIA: (f64, f64) = (39.04, -77.49);
    const SINGAPORE: (f64, f64) = (1.35, 103.82);

    fn edge(id: &str) -> NodeInfo {
        let mut node = NodeInfo::new(id.parse().unwrap(), Role::Edge);
        node.phase = Phase::Ready;
        node.peer = format!("{id}:7947");
        node.http = format!("http://{id}:8080");
        node
    }

    fn seat(node: &NodeInfo, place: Option<(f64, f64)>) -> Seat<'_> {
        Seat {
            node,
            point: place.and_then(|(lat, lon)| GeoPoint::new(lat, lon)),
            region: &node.region,
        }
    }

    fn order(me: &Seat<'_>, others: &[Seat<'_>]) -> Vec<String> {
        let ranked = peers_for(me, others.iter().copied(), 100);
        ranked.into_iter().map(|p| p.id.to_string()).collect()
    }

    #[test]
    fn nearer_is_better_until_a_round_trip_is_measured() {
        let [mut me, near, far] = ["me", "near", "far"].map(edge);
        let seats = [seat(&near, Some(PARIS)), seat(&far, Some(SINGAPORE))];
        assert_eq!(order(&seat(&me, Some(FRANKFURT)), &seats), ["near", "far"]);
        // Own measurements: a poor path to the near one.
        me.round_trips_ms.insert("near".parse().unwrap(), 300.0);
        me.round_trips_ms.insert("far".parse().unwrap(), 160.0);
        assert_eq!(order(&seat(&me, Some(FRANKFURT)), &seats), ["far", "near"]);
        // Faster than light: the places are simulated, and decide.
        me.round_trips_ms.insert("near".parse().unwrap(), 2.0);
        me.round_trips_ms.insert("far".parse().unwrap(), 1.0);
        assert_eq!(order(&seat(&me, Some(FRANKFURT)), &seats), ["near", "far"]);
        me.round_trips_ms.clear();
        // The other's measurement, where there is no own one.
        let mut measuring = near.clone();
        measuring.round_trips_ms.insert("me".parse().unwrap(), 1.0);
        let seats = [seat(&measuring, Some(PARIS)), seats[1]];
        assert_eq!(order(&seat(&me, Some(FRANKFURT)), &seats), ["near", "far"]);
        let ranked = peers_for(&seat(&me, Some(FRANKFURT)), seats.into_iter(), 1);
        assert_eq!(ranked.len(), 1);
        assert_eq!(ranked[0].rtt_ms, Some(1.0));
        assert_eq!(ranked[0].peer_addr, "near:7947");
        assert!((ranked[0].distance_km.unwrap() - 479.0).abs() < 10.0);
    }

    #[test]
    fn without_places_the_same_region_comes_first_and_then_the_name() {
        let mut nodes = ["me", "z", "a", "b"].map(edge);
        nodes[0].region = "eu".into();
        nodes[1].region = "eu".into();
        let seats: Vec<_> = nodes.iter().map(|n| seat(n, None)).collect();
        assert_eq!(order(&seats[0], &seats), ["z", "a", "b"]);
        // Two nodes without a label are not in the same region.
        assert_eq!(order(&seats[2], &seats), ["b", "me", "z"]);
    }

    #[test]
    fn a_busy_neighbour_costs_more_than_an_idle_node_somewhat_farther() {
        let [me, mut busy, idle] = ["me", "busy", "idle"].map(edge);
        busy.load.in_flight = 400;
        let at = |n| seat(n, Some(FRANKFURT));
        let seats = [at(&busy), seat(&idle, Some(PARIS)), at(&me)];
        assert_eq!(order(&at(&me), &seats), ["idle", "busy"]);
        let swamped = NodeInfo {
            load: Load {
                in_flight: u32::MAX,
                bytes_per_s: u64::MAX,
            },
            ..busy.clone()
        };
        let seats = [at(&swamped), seat(&idle, Some(SINGAPORE))];
        assert_eq!(order(&at(&me), &seats), ["busy", "idle"], "load is bounded");
    }

    #[test]
    fn only_serving_edges_are_ranked() {
        let [me, mut starting, mut draining, mut control] =
            ["me", "starting", "draining", "control"].map(edge);
        starting.phase = Phase::Starting;
        draining.phase = Phase::Draining;
        control.role = Role::Control;
        let seats = [&me, &starting, &draining, &control].map(|n| seat(n, None));
        assert!(order(&seats[0], &seats).is_empty());
        let edges = edges_for(Vantage::default(), seats.into_iter(), 9);
        assert_eq!(edges.len(), 1);
        let mut unreachable = me.clone();
        unreachable.http = String::new();
        let seats = [seat(&unreachable, None)];
        assert!(edges_for(Vantage::default(), seats.into_iter(), 9).is_empty());
    }

    #[test]
    fn clients_get_the_nearest_edge() {
        let nodes = ["fra", "iad", "sin"].map(edge);
        let places = [FRANKFURT, VIRGINIA, SINGAPORE];
        let seats: Vec<_> = nodes
            .iter()
            .zip(places)
            .map(|(n, p)| seat(n, Some(p)))
            .collect();
        for ((lat, lon), first) in [
            ((52.37, 4.90), "fra"),    // Amsterdam
            ((45.50, -73.57), "iad"),  // Montreal
            ((-6.21, 106.85), "sin"),  // Jakarta
            ((-33.87, 151.21), "sin"), // Sydney
        ] {
            let vantage = Vantage {
                point: GeoPoint::new(lat, lon),
                region: "",
            };
            let ranked = edges_for(vantage, seats.iter().copied(), 9);
            assert_eq!(ranked[0].id.as_str(), first);
        }
    }

    proptest! {
        /// Whatever nodes say of themselves, scores are finite, positive and in order.
        #[test]
        fn scores_are_finite_and_sorted(
            facts in proptest::collection::vec(
                (any::<u32>(), any::<u64>(), proptest::option::of((-90.0..=90.0, -180.0..=180.0)),
                 proptest::option::of(0.0..1e9f64)),
                0..12,
            )
        ) {
            let me = edge("me");
            let nodes: Vec<_> = facts.iter().enumerate().map(|(i, (in_flight, bytes_per_s, place, rtt))| {
                let mut node = edge(&format!("n{i}"));
                node.load = Load { in_flight: *in_flight, bytes_per_s: *bytes_per_s };
                if let Some(rtt) = rtt {
                    node.round_trips_ms.insert(me.id.clone(), *rtt);
                }
                (node, *place)
            }).collect();
            let seats = nodes.iter().map(|(n, p)| seat(n, *p));
            let ranked = peers_for(&seat(&me, Some(PARIS)), seats, 100);
            prop_assert_eq!(ranked.len(), facts.len());
            prop_assert!(ranked.iter().all(|p| p.score.is_finite() && p.score > 0.0));
            prop_assert!(ranked.is_sorted_by(|a, b| a.score <= b.score));
        }

        /// All else equal, load and distance only ever make a node worse.
        #[test]
        fn cost_grows_with_load_and_distance(km in 0.0..20_000f64, more in 0.0..1_000f64, n in any::<u32>()) {
            prop_assert!(expected_ms(None, Some(km), false) <= expected_ms(None, Some(km + more), false));
            let load = |in_flight| load_factor(Load { in_flight, bytes_per_s: 0 });
            prop_assert!(load(n) <= load(n.saturating_add(1)));
        }
    }
}
