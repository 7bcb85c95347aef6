//! Which holder to ask, and why. Pure.

use cluster::{
    node::{Load, NodeId},
    proximity::load_factor,
};
use rand::{Rng, RngExt as _};
use serde::Serialize;

use super::{health::Standing, ranking::Placed};

/// Most holders asked for an object before the origin is: the second covers a digest that was wrong or a
/// peer that just died; a third would cost a client more than the origin does.
pub const HOLDERS_ASKED_MAX: usize = 2;
/// The same for a home, which somebody waits for who has asked holders already: one spares the origin the
/// objects that lie near an earlier home, and costs a round trip when its digest was wrong.
pub const HOLDERS_ASKED_BY_HOME_MAX: usize = 1;
/// Most holders that send pieces of one object: more would be waiting for each other's pieces.
pub const HOLDERS_MAX: usize = 8;
/// The choice is between this many at most.
const NEAR_HOLDERS_MAX: usize = 4;
/// And only between those that cost at most this much more than the best: choosing at random spreads
/// load over equals, it must not send requests across an ocean that the neighbour could answer.
const NEAR_FACTOR: f64 = 2.0;
/// And by no more than this many milliseconds: twice as far as the next continent is no equal.
const NEAR_MS: f64 = 10.0;
/// Once in so many choices somebody is asked first who is as near as the best and fell behind by what it did:
/// a rate or failures of long ago would stand for ever while nobody asks it again. Round trips need no such
/// trial, they are measured in turn ([`probe`](super::probe)). More often, and one choice in a hundred would
/// show it in its p99.
const TRIED_AGAIN_ONE_IN: u32 = 128;
/// Where everything fails, the cost is this many times higher (plus one).
const ERRORS_WEIGHT: f64 = 10.0;
/// What it costs to have said lately that one is busy.
const BUSY_FACTOR: f64 = 4.0;

/// A holder to ask, and why this one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// Its name.
    pub id: NodeId,
    /// Its region label.
    pub region: String,
    /// `host:port` of its peer listener, as reached from here.
    pub addr: String,
    /// Expected cost in milliseconds, with load and errors; lower is better.
    pub score: f64,
    /// Expected round trip in milliseconds.
    pub round_trip_ms: f64,
    /// Why it has this score.
    pub why: String,
}

/// A peer whose digest claims the object.
#[derive(Clone, Debug)]
pub struct Claim<'a> {
    /// The peer, and how far it is.
    pub placed: &'a Placed,
    /// `host:port` of its peer listener, as reached from here.
    pub addr: &'a str,
    /// Whether it may be asked.
    pub standing: Standing,
    /// Average of its failures, 0 to 1.
    pub errors: f64,
    /// Its rate with large objects, once there were some.
    pub bytes_per_s: Option<f64>,
}

/// Milliseconds that `bytes` take at a measured rate; none where nothing is measured, so that it will be.
pub fn transfer_ms(bytes: f64, bytes_per_s: Option<f64>) -> f64 {
    bytes_per_s.map_or(0.0, |rate| bytes / rate.max(1.0) * 1e3)
}

/// The expected cost in milliseconds of asking a peer: what its distance and its rate cost, times what its
/// load and its failures add.
pub fn score(cost_ms: f64, load: Load, standing: Standing, errors: f64) -> f64 {
    let busy = if standing == Standing::Busy {
        BUSY_FACTOR
    } else {
        1.0
    };
    cost_ms * (1.0 + load_factor(load)) * (1.0 + ERRORS_WEIGHT * errors) * busy
}

/// The holders to ask one after the other, at most [`HOLDERS_MAX`]: the better of two taken at random from
/// the best few, then the best of the rest; now and then one that is tried again. Whoever does not serve or is
/// ejected is not among them.
/// `bytes` is what an object usually has, or a first answer of it.
pub fn choose(claims: &[Claim<'_>], bytes: f64, rng: &mut impl Rng) -> Vec<Candidate> {
    let mut ranked: Vec<(f64, &Claim<'_>)> = claims
        .iter()
        .filter(|c| c.standing != Standing::Ejected && c.placed.node.is_serving_edge())
        .map(|c| {
            (
                score(
                    c.placed.cost_ms + transfer_ms(bytes, c.bytes_per_s),
                    c.placed.node.load,
                    c.standing,
                    c.errors,
                ),
                c,
            )
        })
        .collect();
    ranked.sort_by(|a, b| {
        a.0.total_cmp(&b.0)
            .then_with(|| a.1.placed.node.id.cmp(&b.1.placed.node.id))
    });
    if let Some(&(best, _)) = ranked.first() {
        let near = ranked
            .iter()
            .take(NEAR_HOLDERS_MAX)
            .filter(|(score, _)| is_near(*score, best))
            .count();
        let nearest = ranked.iter().map(|(_, claim)| claim.placed.cost_ms);
        let nearest = nearest.fold(f64::MAX, f64::min);
        let fallen: Vec<usize> = (1..ranked.len())
            .filter(|&at| {
                let (score, claim) = ranked[at];
                !is_near(score, best)
                    && is_near(claim.placed.cost_ms, nearest)
                    && claim.standing != Standing::Busy
            })
            .collect();
        let first = if !fallen.is_empty() && rng.random_range(0..TRIED_AGAIN_ONE_IN) == 0 {
            fallen[rng.random_range(0..fallen.len())]
        } else if near > 2 {
            // The lower index is the better one.
            two_of(near, rng)
        } else {
            0
        };
        ranked[..=first].rotate_right(1);
    }
    let taken = ranked.into_iter().take(HOLDERS_MAX);
    taken
        .map(|(score, claim)| candidate(score, claim))
        .collect()
}

/// Whether what costs so much is as good as the best.
fn is_near(cost: f64, best: f64) -> bool {
    cost <= (best * NEAR_FACTOR).min(best + NEAR_MS)
}

/// The lower of two different numbers below `n`, taken at random.
fn two_of(n: usize, rng: &mut impl Rng) -> usize {
    let a = rng.random_range(0..n);
    let b = rng.random_range(0..n - 1);
    a.min(if b >= a { b + 1 } else { b })
}

fn candidate(score: f64, claim: &Claim<'_>) -> Candidate {
    let node = &claim.placed.node;
    let mut why = claim.placed.way.explain();
    if node.load.in_flight > 0 {
        why.push_str(&format!(", {} requests under way", node.load.in_flight));
    }
    if claim.errors > 0.01 {
        why.push_str(&format!(", {:.0} % errors", claim.errors * 100.0));
    }
    if let Some(rate) = claim.bytes_per_s {
        why.push_str(&format!(", {:.1} MB/s", rate / 1e6));
    }
    match claim.standing {
        Standing::Busy => why.push_str(", said it is busy"),
        Standing::HalfOpen => why.push_str(", probed after an ejection"),
        Standing::Good | Standing::Ejected => {}
    }
    Candidate {
        id: node.id.clone(),
        region: node.region.clone(),
        addr: claim.addr.to_owned(),
        score,
        round_trip_ms: claim.placed.way.rtt_ms().unwrap_or(claim.placed.cost_ms),
        why,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        sync::Arc,
    };

    use cluster::{
        node::{NodeInfo, Phase, Role},
        proximity::Way,
    };
    use proptest::prelude::*;
    use rand::{SeedableRng as _, rngs::SmallRng};

    use super::*;

    fn placed(id: &str, cost_ms: f64) -> Placed {
        let mut node = NodeInfo::new(id.parse().unwrap(), Role::Edge);
        node.phase = Phase::Ready;
        Placed {
            node: Arc::new(node),
            way: Way {
                measured_ms: Some(cost_ms),
                ..Way::default()
            },
            cost_ms,
        }
    }

    fn claim(placed: &Placed) -> Claim<'_> {
        Claim {
            placed,
            addr: "peer:7947",
            standing: Standing::Good,
            errors: 0.0,
            bytes_per_s: None,
        }
    }

    fn names(claims: &[Claim<'_>], seed: u64) -> Vec<String> {
        let chosen = choose(claims, 0.0, &mut SmallRng::seed_from_u64(seed));
        chosen.into_iter().map(|c| c.id.to_string()).collect()
    }

    #[test]
    fn the_near_holder_is_asked_first_and_the_next_one_after_it() {
        let (near, far, farther) = (
            placed("near", 2.0),
            placed("far", 90.0),
            placed("farther", 250.0),
        );
        for seed in 0..50 {
            let chosen = names(&[claim(&farther), claim(&near), claim(&far)], seed);
            assert_eq!(chosen, ["near", "far", "farther"]);
        }
    }

    #[test]
    fn a_measured_rate_counts_as_far_as_objects_are_large() {
        let (near, far) = (placed("near", 5.0), placed("far", 20.0));
        let slow = Claim {
            bytes_per_s: Some(1e6),
            ..claim(&near)
        };
        let quick = Claim {
            bytes_per_s: Some(100e6),
            ..claim(&far)
        };
        let claims = [slow, quick];
        let first = |bytes| choose(&claims, bytes, &mut SmallRng::seed_from_u64(1)).remove(0);
        assert_eq!(first(4e3).id.as_str(), "near");
        assert_eq!(first(1e6).id.as_str(), "far");
        assert_eq!(first(1e6).why, "20.0 ms measured, 100.0 MB/s");
    }

    #[test]
    fn equals_share_the_load() {
        let peers: Vec<Placed> = ["a", "b", "c", "d", "e"]
            .iter()
            .map(|id| placed(id, 10.0))
            .collect();
        let claims: Vec<Claim<'_>> = peers.iter().map(claim).collect();
        let mut first: BTreeMap<String, usize> = BTreeMap::new();
        for seed in 0..400 {
            *first.entry(names(&claims, seed).remove(0)).or_default() += 1;
        }
        // The better of two of four: 3, 2 and 1 of 6 times, and never the last.
        assert_eq!(first.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!(first.values().all(|&n| n > 30), "{first:?}");
    }

    #[test]
    fn only_equals_share_the_load() {
        let peers =
            [("a", 80.0), ("b", 89.0), ("c", 95.0), ("d", 150.0)].map(|(id, ms)| placed(id, ms));
        let claims: Vec<Claim<'_>> = peers.iter().map(claim).collect();
        for seed in 0..50 {
            assert_eq!(
                names(&claims, seed)[0],
                "a",
                "with two, the better one is taken"
            );
        }
        let peers =
            [("a", 80.0), ("b", 81.0), ("c", 89.0), ("d", 91.0)].map(|(id, ms)| placed(id, ms));
        let claims: Vec<Claim<'_>> = peers.iter().map(claim).collect();
        let first: BTreeSet<String> = (0..100)
            .map(|seed| names(&claims, seed).remove(0))
            .collect();
        assert_eq!(first, ["a", "b"].map(String::from).into());
    }

    #[test]
    fn who_was_slow_is_tried_again_now_and_then_unless_it_is_far() {
        let peers = [("quick", 10.0), ("once-slow", 10.0), ("once-failing", 11.0)];
        let [quick, slow, failing] = peers.map(|(id, ms)| placed(id, ms));
        let far = placed("far", 60.0);
        let claims = [
            Claim {
                bytes_per_s: Some(100e6),
                ..claim(&quick)
            },
            Claim {
                bytes_per_s: Some(1e5),
                ..claim(&slow)
            },
            Claim {
                errors: 0.9,
                ..claim(&failing)
            },
            claim(&far),
        ];
        let mut first: BTreeMap<String, u32> = BTreeMap::new();
        for seed in 0..10_000 {
            let chosen = choose(&claims, 1e6, &mut SmallRng::seed_from_u64(seed));
            assert_eq!(chosen.len(), 4);
            *first.entry(chosen[0].id.to_string()).or_default() += 1;
        }
        assert!(!first.contains_key("far"), "{first:?}");
        let tried = first["once-slow"] + first["once-failing"];
        let expected = 10_000 / TRIED_AGAIN_ONE_IN;
        assert!(
            (expected / 2..expected * 2).contains(&tried) && first["once-slow"] > 10,
            "{first:?}"
        );
    }

    #[test]
    fn load_errors_and_refusals_move_a_peer_back() {
        let (plain, mut loaded) = (placed("plain", 15.0), placed("loaded", 10.0));
        Arc::get_mut(&mut loaded.node).unwrap().load.in_flight = 400;
        assert_eq!(names(&[claim(&loaded), claim(&plain)], 1)[0], "plain");
        let shaky = placed("shaky", 10.0);
        let with_errors = Claim {
            errors: 0.3,
            ..claim(&shaky)
        };
        assert_eq!(names(&[with_errors, claim(&plain)], 1)[0], "plain");
        let busy = Claim {
            standing: Standing::Busy,
            ..claim(&shaky)
        };
        let chosen = choose(&[busy, claim(&plain)], 0.0, &mut SmallRng::seed_from_u64(1));
        assert_eq!(chosen[0].id.as_str(), "plain");
        assert_eq!(chosen[1].why, "10.0 ms measured, said it is busy");
    }

    proptest! {
        /// Never too many, never the same twice, never one that must not be asked, and always
        /// somebody if there is anybody.
        #[test]
        fn the_chosen_may_all_be_asked(
            peers in prop::collection::vec((0.1..500.0_f64, 0..4_u8, 0..3_u8), 0..12),
            seed: u64,
        ) {
            let placed: Vec<(Placed, Standing)> = peers.iter().enumerate().map(|(i, &(cost, standing, phase))| {
                let mut placed = placed(&format!("edge-{i}"), cost);
                Arc::get_mut(&mut placed.node).unwrap().phase =
                    [Phase::Starting, Phase::Ready, Phase::Draining][usize::from(phase)];
                let standings = [Standing::Good, Standing::Busy, Standing::HalfOpen, Standing::Ejected];
                (placed, standings[usize::from(standing)])
            }).collect();
            let claims: Vec<Claim<'_>> =
                placed.iter().map(|(p, standing)| Claim { standing: *standing, ..claim(p) }).collect();
            let askable = claims.iter()
                .filter(|c| c.standing != Standing::Ejected && c.placed.node.phase == Phase::Ready);
            let askable: Vec<String> = askable.map(|c| c.placed.node.id.to_string()).collect();
            let chosen = names(&claims, seed);
            prop_assert_eq!(chosen.len(), askable.len().min(HOLDERS_MAX));
            prop_assert!(chosen.iter().all(|id| askable.contains(id)));
            let different: BTreeSet<_> = chosen.iter().collect();
            prop_assert_eq!(different.len(), chosen.len());
        }
    }
}
