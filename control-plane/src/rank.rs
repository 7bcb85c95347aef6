//! Which peer or edge comes first for somebody, and why: the expected cost in milliseconds of
//! asking it, by [`cluster::proximity`]. Pure.

use cluster::{
    geo::GeoPoint,
    node::{NodeId, NodeInfo},
    proximity::{Way, distance_km, load_factor, same_region},
    wire::{RankedEdge, RankedPeer},
};

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

/// The peers of `me` that may be sent work, best first, at most `limit`.
pub fn peers_for<'a>(
    me: &Seat<'_>,
    others: impl Iterator<Item = Seat<'a>>,
    limit: usize,
) -> Vec<RankedPeer> {
    let peers = others
        .filter(|other| other.node.is_serving_edge() && other.node.id != me.node.id)
        .map(|other| {
            let way = Way {
                distance_km: distance_km(me.point, other.point),
                same_region: same_region(me.region, other.region),
                ..Way::between(me.node, other.node)
            };
            RankedPeer {
                id: other.node.id.clone(),
                region: other.region.to_owned(),
                peer_addr: other.node.peer.clone(),
                distance_km: way.distance_km,
                rtt_ms: way.rtt_ms(),
                load: other.node.load,
                score: way.cost().0 * (1.0 + load_factor(other.node.load)),
                why: way.explain(),
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
            let way = Way {
                distance_km: distance_km(vantage.point, seat.point),
                same_region: same_region(vantage.region, seat.region),
                ..Way::default()
            };
            RankedEdge {
                id: seat.node.id.clone(),
                region: seat.region.to_owned(),
                http: seat.node.http.clone(),
                distance_km: way.distance_km,
                load: seat.node.load,
                score: way.cost().0 * (1.0 + load_factor(seat.node.load)),
            }
        });
    best_first(edges.collect(), limit, |edge| (edge.score, &edge.id))
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
    use cluster::{
        coordinates::Coordinate,
        node::{Load, Phase, Role},
    };
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
        assert_eq!(ranked[0].why, "1.0 ms reported, 478 km");
        assert_eq!(ranked[0].peer_addr, "near:7947");
        assert!((ranked[0].distance_km.unwrap() - 479.0).abs() < 10.0);
    }

    #[test]
    fn where_nobody_measured_coordinates_decide() {
        let [mut me, mut near, mut far] = ["me", "near", "far"].map(edge);
        let at = |text, (lat, lon)| Coordinate::from_text(text, GeoPoint::new(lat, lon));
        me.coordinate = at("1.0,0.0,0.0,2.5,0.2", FRANKFURT);
        // A poor link of the near one.
        near.coordinate = at("1.0,0.0,0.0,250.0,0.2", PARIS);
        far.coordinate = at("1.0,0.0,0.0,2.5,0.2", SINGAPORE);
        let seats = [seat(&near, Some(PARIS)), seat(&far, Some(SINGAPORE))];
        let ranked = peers_for(&seat(&me, Some(FRANKFURT)), seats.into_iter(), 9);
        assert_eq!(ranked[0].id, far.id);
        let words = "ms predicted by coordinates ±";
        assert!(ranked.iter().all(|p| p.why.contains(words)), "{ranked:?}");
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
            let cost = |km| Way { distance_km: Some(km), ..Way::default() }.cost().0;
            prop_assert!(cost(km) <= cost(km + more));
            let load = |in_flight| load_factor(Load { in_flight, bytes_per_s: 0 });
            prop_assert!(load(n) <= load(n.saturating_add(1)));
        }
    }
}
