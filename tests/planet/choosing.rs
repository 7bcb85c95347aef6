//! How often the peer that is chosen is the best one, or hardly worse: 49 sites with real round trips.

use cluster::{
    coordinates::Coordinate,
    node::{NodeInfo, Role},
    proximity::{MS_PER_KM, NEAR_MS, Way},
};
use edge_node::upstream::health::PeerHealth;
use harness::planet::world::{Matrix, noisy};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng, seq::IndexedRandom as _};
use tokio::time::Instant;

/// A choice is right if no other candidate is better by more.
const WITHIN_MS: f64 = 10.0;
/// Samples that each node takes in the warm-up: one a second, as the edge's prober does, for ten minutes.
const SAMPLES: usize = 600;

struct Sites {
    matrix: Matrix,
    nodes: Vec<NodeInfo>,
    /// What each node measured of each other, as its health tells it.
    health: Vec<Vec<PeerHealth>>,
    held_out: Vec<Vec<bool>>,
}

impl Sites {
    /// After the warm-up, in which a share of the pairs never spoke.
    fn warm(seed: u64, held_out: f64) -> Self {
        let matrix = Matrix::shipped();
        let count = matrix.sites.len();
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut sites = Self {
            nodes: (matrix.sites.iter())
                .map(|site| {
                    let mut node = NodeInfo::new(site.id.parse().unwrap(), Role::Edge);
                    node.location = Some(site.point);
                    node
                })
                .collect(),
            health: vec![vec![PeerHealth::default(); count]; count],
            held_out: vec![vec![false; count]; count],
            matrix,
        };
        for a in 0..count {
            for b in 0..a {
                let out = rng.random::<f64>() < held_out;
                (sites.held_out[a][b], sites.held_out[b][a]) = (out, out);
            }
        }
        let mut coordinates: Vec<Coordinate> = (sites.nodes.iter())
            .map(|node| Coordinate::at(node.location))
            .collect();
        for _ in 0..SAMPLES {
            for a in 0..count {
                let b = rng.random_range(0..count);
                let Some(ms) = sites.matrix.measured_ms(a, b) else {
                    continue;
                };
                if sites.held_out[a][b] {
                    continue;
                }
                let health = &mut sites.health[a][b];
                health.measured(noisy(ms, &mut rng), Instant::now());
                let smoothed = health.round_trip_ms().unwrap();
                // As gossip has it.
                let text = coordinates[b].to_text();
                let theirs = Coordinate::from_text(&text, sites.nodes[b].location).unwrap();
                coordinates[a].observe(&theirs, smoothed, &mut rng);
            }
        }
        for (node, coordinate) in sites.nodes.iter_mut().zip(coordinates) {
            node.coordinate = Some(coordinate);
        }
        sites
    }

    fn way(&self, a: usize, b: usize) -> Way {
        Way {
            measured_ms: self.health[a][b].round_trip_ms(),
            ..Way::between(&self.nodes[a], &self.nodes[b])
        }
    }

    /// Share of right choices among `candidates` of each node that `eligible` lets stand.
    fn right(
        &self,
        candidates: usize,
        eligible: impl Fn(usize, usize) -> bool,
        cost: impl Fn(usize, usize) -> f64,
    ) -> f64 {
        let mut rng = SmallRng::seed_from_u64(9);
        let (mut right, mut all) = (0, 0);
        for a in 0..self.nodes.len() {
            let others: Vec<(usize, f64)> = (0..self.nodes.len())
                .filter(|&b| a != b && eligible(a, b))
                .filter_map(|b| Some((b, self.matrix.measured_ms(a, b)?)))
                .collect();
            if others.len() < candidates {
                continue;
            }
            for _ in 0..200 {
                let set: Vec<&(usize, f64)> = others.sample(&mut rng, candidates).collect();
                let best = set.iter().map(|(_, ms)| *ms).fold(f64::MAX, f64::min);
                let by_cost =
                    |x: &&&(usize, f64), y: &&&(usize, f64)| cost(a, x.0).total_cmp(&cost(a, y.0));
                let chosen = set.iter().min_by(by_cost).unwrap();
                all += 1;
                right += usize::from(chosen.1 <= best + WITHIN_MS);
            }
        }
        f64::from(u32::try_from(right).unwrap()) / f64::from(all)
    }

    fn km(&self, a: usize, b: usize) -> f64 {
        self.matrix.sites[a]
            .point
            .distance_km(self.matrix.sites[b].point)
    }
}

#[test]
fn what_was_measured_chooses_right_where_distance_does_not() {
    let sites = Sites::warm(1, 0.0);
    for candidates in [2, 4, 8] {
        let by_distance = sites.right(candidates, |_, _| true, |a, b| sites.km(a, b));
        let chosen = sites.right(candidates, |_, _| true, |a, b| sites.way(a, b).cost().0);
        println!("of {candidates}: by distance {by_distance:.3}, as chosen {chosen:.3}");
        assert!(chosen >= 0.97, "of {candidates}: {chosen}");
        assert!(by_distance < 0.93, "of {candidates}: {by_distance}");
    }
}

#[test]
fn pairs_that_never_spoke_are_predicted_well_enough_to_choose() {
    for seed in 1..=3 {
        for held_out in [0.3, 0.5, 0.8] {
            let sites = Sites::warm(seed, held_out);
            for candidates in [2, 4, 8] {
                let unspoken = |a: usize, b: usize| sites.held_out[a][b];
                let by_distance = sites.right(candidates, unspoken, |a, b| sites.km(a, b));
                let chosen = sites.right(candidates, unspoken, |a, b| sites.way(a, b).cost().0);
                println!(
                    "seed {seed}, {held_out} held out, of {candidates}: by distance {by_distance:.3}, by coordinates {chosen:.3}"
                );
                assert!(
                    chosen >= 0.9,
                    "{held_out} held out, of {candidates}: {chosen}"
                );
                if held_out <= 0.5 {
                    assert!(chosen > by_distance + 0.02);
                }
            }
            let pairs = (0..sites.nodes.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
            let unspoken = pairs.filter(|&(a, b)| sites.held_out[a][b]);
            let mut off: Vec<(f64, f64)> = unspoken
                .filter_map(|(a, b)| {
                    let truth = sites.matrix.measured_ms(a, b)?;
                    let way = sites.way(a, b);
                    assert!(way.measured_ms.is_none());
                    let by_distance = NEAR_MS + sites.km(a, b) * MS_PER_KM;
                    Some(((way.cost().0 - truth).abs(), (by_distance - truth).abs()))
                })
                .collect();
            let median = |off: &mut Vec<(f64, f64)>, of: fn(&(f64, f64)) -> f64| {
                off.sort_by(|x, y| of(x).total_cmp(&of(y)));
                of(&off[off.len() / 2])
            };
            let (predicted, by_distance) = (median(&mut off, |o| o.0), median(&mut off, |o| o.1));
            println!(
                "seed {seed}, {held_out} held out: off by {predicted:.1} ms, by distance {by_distance:.1}"
            );
            assert!(predicted < 0.8 * by_distance, "{predicted} {by_distance}");
        }
    }
}
