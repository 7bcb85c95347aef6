//! Whole clusters in virtual time: small ones of those that `cargo planet` runs.

use harness::planet::{
    outcome::Outcome,
    plan::{Plan, Strategy},
    run,
};

fn small(strategy: Strategy, nodes: usize) -> Plan {
    Plan {
        objects: 100,
        requests: 15_000,
        ..Plan::of(strategy, nodes)
    }
}

fn outcome(strategy: Strategy, nodes: usize) -> Outcome {
    run(small(strategy, nodes)).unwrap()
}

#[test]
fn a_seed_replays_exactly_and_another_does_not() {
    let one = outcome(Strategy::Measured, 40);
    assert_eq!(
        one.fingerprint(),
        outcome(Strategy::Measured, 40).fingerprint()
    );
    let other = run(Plan {
        seed: 2,
        ..small(Strategy::Measured, 40)
    });
    assert_ne!(one.fingerprint(), other.unwrap().fingerprint());
}

#[test]
fn peers_chosen_by_measurement_beat_the_other_ways() {
    let ours = outcome(Strategy::Measured, 60);
    assert!(ours.answered() > 14_000, "{}", ours.answered());
    for strategy in [Strategy::NoPeers, Strategy::Hashing, Strategy::Nearest] {
        let theirs = outcome(strategy, 60);
        let (ours, theirs) = (ours.first(), theirs.first());
        assert!(
            ours.mean < theirs.mean,
            "{}: {ours:?} {theirs:?}",
            strategy.name()
        );
        assert!(
            ours.p99 <= theirs.p99,
            "{}: {ours:?} {theirs:?}",
            strategy.name()
        );
    }
}

#[test]
fn the_origin_is_asked_hardly_more_than_once_for_an_object_whatever_the_number_of_nodes() {
    for nodes in [10, 60] {
        let per_object = outcome(Strategy::Measured, nodes).origin_per_object();
        assert!((1.0..1.3).contains(&per_object), "{nodes}: {per_object}");
    }
}

#[test]
fn a_trace_is_simulated_as_well() {
    let trace: String = (0..3_000)
        .map(|i| format!("/{},{}\n", i * i % 97, 1_000 + i % 7))
        .collect();
    let plan = Plan {
        trace: Some(trace),
        ..small(Strategy::Measured, 20)
    };
    assert!(run(plan).unwrap().objects <= 97);
    let broken = Plan {
        trace: Some("nonsense".into()),
        ..small(Strategy::Measured, 20)
    };
    assert!(run(broken).is_err());
}
