//! Where a key lives: its *homes*, the nodes that fetch it for the others. Pure.
//!
//! Weighted rendezvous hashing: every node has a score for every key, and the highest is the first home.
//! Whoever computes it from the same view finds the same, a node that leaves gives up only its own keys,
//! and one that joins takes only what becomes its own. A region's homes are among its own nodes. The
//! cluster's are among those [near the origin](near_origin); as the scores are the same, the cluster's
//! home is also the home of its own region, and nothing goes through two nodes there.
//!
//! **Bounded load**: a node that [has too much to do](has_too_much) sends who asks it first on to the next. It
//! alone decides that, from what it knows itself: what others have heard of its load does not count, or two nodes
//! that have heard differently would have two homes for one key.

use crate::{
    key::Key,
    node::{Load, NodeId, NodeInfo},
};

/// Homes of a key that are asked, one after the other: the second covers one that has just died. A third
/// would cost a client more than the origin does.
pub const HOMES_ASKED_MAX: usize = 2;
/// Most nodes that share the cluster's keys of one site: when one is lost, its keys and as many of the others
/// move, to who comes after it, and it carries a share of what all regions ask. Few enough that connections
/// to them are kept.
pub const NEAR_ORIGIN_MAX: usize = 16;
/// A node that is this many times as far from the origin as the nearest is not near it.
const NEAR_ORIGIN_FACTOR: f64 = 2.0;
/// Differences below this, in milliseconds, are noise.
const NEAR_ORIGIN_MS: f64 = 10.0;
/// A node with more than this many times the mean load of the candidates has too much to do. Less would follow the
/// noise of gossip.
pub const SPILL_FACTOR: f64 = 1.5;
/// Load below which no node has too much to do, however little the others have (see [`load`]).
pub const SPILL_LOAD_MIN: f64 = 1.0;
/// Capacity of a node that does not say: what an edge has by default.
pub const CAPACITY_DEFAULT: u64 = 10 << 30;
/// Requests under way that are one full load.
const IN_FLIGHT_FULL: f64 = 200.0;
/// Bytes per second that are one full load: a gigabit's worth.
const BYTES_PER_S_FULL: f64 = 125e6;

/// The homes of `key` in `region`, the first one first. Nodes without a region are a region together.
pub fn region_homes<'a>(
    key: Key,
    region: &str,
    nodes: impl IntoIterator<Item = &'a NodeInfo>,
) -> Vec<&'a NodeInfo> {
    let of_region = |node: &&NodeInfo| node.is_serving_edge() && node.region == region;
    order(key, nodes.into_iter().filter(of_region).collect())
}

/// The homes of `key`, of `site`, in the whole cluster, the first one first.
pub fn cluster_homes<'a>(
    key: Key,
    site: &str,
    nodes: impl IntoIterator<Item = &'a NodeInfo>,
) -> Vec<&'a NodeInfo> {
    order(key, near_origin(site, nodes))
}

/// The serving nodes that may be homes for the whole cluster: the nearest to the origin by what they measured. Who
/// has not told of it counts as near: every node measures before it serves, so it is the site that is new, and all
/// think alike of it from the beginning. Who finds the origin far, or [out of reach](crate::node::UNREACHABLE_MS), leaves.
pub fn near_origin<'a>(
    site: &str,
    nodes: impl IntoIterator<Item = &'a NodeInfo>,
) -> Vec<&'a NodeInfo> {
    let serving = nodes.into_iter().filter(|node| node.is_serving_edge());
    let serving: Vec<&NodeInfo> = serving.collect();
    let time = |node: &&'a NodeInfo| node.origins_ms.get(site).copied();
    let Some(best) = serving.iter().filter_map(time).min_by(f64::total_cmp) else {
        return serving;
    };
    let limit = (best * NEAR_ORIGIN_FACTOR).max(best + NEAR_ORIGIN_MS);
    let times = serving
        .iter()
        .map(|node| (time(node).unwrap_or(best), *node));
    let mut near: Vec<(f64, &NodeInfo)> = times.filter(|(ms, _)| *ms <= limit).collect();
    near.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.id.cmp(&b.1.id)));
    let nearest = near.into_iter().take(NEAR_ORIGIN_MAX);
    nearest.map(|(_, node)| node).collect()
}

/// `nodes` in the order in which they are homes of `key`: by score.
pub fn order(key: Key, nodes: Vec<&NodeInfo>) -> Vec<&NodeInfo> {
    let scored = nodes.into_iter().map(|node| (score(key, node), node));
    let mut scored: Vec<(f64, &NodeInfo)> = scored.collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.id.cmp(&b.1.id)));
    scored.into_iter().map(|(_, node)| node).collect()
}

/// Whether `node`, one of `nodes`, has too much to do to be the home of anything new.
pub fn has_too_much(node: &NodeId, nodes: &[&NodeInfo]) -> bool {
    let limit = spill_limit(nodes);
    nodes
        .iter()
        .any(|known| known.id == *node && load(known) > limit)
}

/// The load above which one of these nodes has too much to do. It is above the mean, so there is always one that
/// has not.
pub fn spill_limit(nodes: &[&NodeInfo]) -> f64 {
    let sum: f64 = nodes.iter().map(|node| load(node)).sum();
    let mean = sum / nodes.len().max(1) as f64;
    (mean * SPILL_FACTOR).max(SPILL_LOAD_MIN)
}

/// How much a node has to do; 1 is a full load for any.
pub fn load(node: &NodeInfo) -> f64 {
    let Load {
        in_flight,
        bytes_per_s,
    } = node.load;
    f64::from(in_flight) / IN_FLIGHT_FULL + bytes_per_s as f64 / BYTES_PER_S_FULL
}

/// The score of `node` for `key`; the highest is the home. With `-w / ln h`, `h` uniform in (0, 1), a node
/// gets its share of keys by weight, whatever the others are.
pub fn score(key: Key, node: &NodeInfo) -> f64 {
    let weight = match node.capacity_bytes {
        0 => CAPACITY_DEFAULT,
        bytes => bytes,
    };
    share(key, node.id.as_str(), weight as f64)
}

/// The score for `key` of what has this name and weight.
pub fn share(key: Key, name: &str, weight: f64) -> f64 {
    let hash = hash(key, name);
    // 53 bits are what a float holds; the half keeps it from 0 and 1.
    let uniform = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    weight / -uniform.ln()
}

/// The same on every node and in every version: FNV-1a of the name, mixed with the key. A miss computes it
/// for every node of the region, so it must take nanoseconds.
fn hash(key: Key, id: &str) -> u64 {
    let name = id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let (low, high) = (key.0 as u64, (key.0 >> 64) as u64);
    mix(mix(name ^ low) ^ high)
}

/// Every bit of the result depends on every bit of `x` (the finalizer of SplitMix64).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::node::{Phase, Role, UNREACHABLE_MS};

    fn node(name: &str) -> NodeInfo {
        let mut node = NodeInfo::new(name.parse().unwrap(), Role::Edge);
        node.phase = Phase::Ready;
        node
    }

    fn edges(count: usize) -> Vec<NodeInfo> {
        (0..count).map(|i| node(&format!("edge-{i}"))).collect()
    }

    fn key(number: u64) -> Key {
        Key::of(&[&number.to_le_bytes()])
    }

    fn homes(number: u64, nodes: &[NodeInfo]) -> Vec<&str> {
        let homes = region_homes(key(number), "", nodes);
        homes.iter().map(|node| node.id.as_str()).collect()
    }

    #[test]
    fn only_serving_edges_of_the_region_are_homes() {
        let mut nodes = edges(6);
        nodes[0].phase = Phase::Draining;
        nodes[1].phase = Phase::Starting;
        nodes[2].role = Role::Control;
        nodes[3].region = "eu".into();
        let mut found = homes(1, &nodes);
        found.sort_unstable();
        assert_eq!(found, ["edge-4", "edge-5"]);
        assert_eq!(region_homes(key(1), "eu", &nodes)[0].id.as_str(), "edge-3");
        assert!(region_homes(key(1), "us", &nodes).is_empty());
        assert_eq!(cluster_homes(key(1), "www", &nodes).len(), 3);
    }

    /// An order that changes between versions would have two homes for every key during an upgrade.
    #[test]
    fn the_order_is_this_one() {
        let nodes = edges(5);
        let first: Vec<&str> = (0..12).map(|number| homes(number, &nodes)[0]).collect();
        assert_eq!(
            first.join(" ").replace("edge-", ""),
            "4 4 0 0 0 4 1 0 3 0 4 4"
        );
    }

    #[test]
    fn keys_are_shared_by_weight() {
        let mut nodes = edges(5);
        nodes[0].capacity_bytes = 3 * CAPACITY_DEFAULT;
        nodes[1].capacity_bytes = CAPACITY_DEFAULT / 2;
        let (mut counts, rounds) = (HashMap::<&str, f64>::new(), 20_000);
        for number in 0..rounds {
            *counts.entry(homes(number, &nodes)[0]).or_default() += 1.0;
        }
        for (node, weight) in nodes.iter().zip([3.0, 0.5, 1.0, 1.0, 1.0]) {
            let share = counts[node.id.as_str()] / rounds as f64;
            let expected = weight / 6.5;
            assert!(
                (share - expected).abs() < 0.1 * expected,
                "{}: {share:.3}, expected {expected:.3}",
                node.id
            );
        }
    }

    #[test]
    fn who_has_too_much_to_do_has_far_more_than_the_others() {
        let mut nodes = edges(4);
        let busy = nodes[0].id.clone();
        let before: Vec<String> = homes(7, &nodes).iter().map(|&n| n.to_owned()).collect();
        let mut too_much = |loads: [u32; 4]| {
            for (node, in_flight) in nodes.iter_mut().zip(loads) {
                node.load.in_flight = in_flight;
            }
            // The order does not depend on it, or nodes that have heard differently would not agree.
            assert_eq!(homes(7, &nodes), before);
            let all: Vec<&NodeInfo> = nodes.iter().collect();
            has_too_much(&busy, &all)
        };
        // Alone, but with little to do.
        assert!(!too_much([200, 0, 0, 0]));
        assert!(too_much([900, 0, 0, 0]));
        // All have as much to do.
        assert!(!too_much([900, 900, 900, 900]));
        assert!(!too_much([0, 900, 0, 0]));
        assert!(!has_too_much(&busy, &[]));
    }

    #[test]
    fn who_is_near_the_origin_has_the_keys_of_the_cluster() {
        let mut nodes = edges(8);
        assert_eq!(
            near_origin("www", &nodes).len(),
            8,
            "nobody has measured it"
        );
        for (node, ms) in nodes.iter_mut().zip([80.0, 20.0, 12.0, 14.0, 200.0, 21.0]) {
            node.origins_ms.insert("www".into(), ms);
        }
        let names = |site: &str| {
            let mut names: Vec<&str> = near_origin(site, &nodes)
                .iter()
                .map(|node| node.id.as_str())
                .collect();
            names.sort_unstable();
            names
        };
        // Two are too far, and two have not told.
        let near = ["edge-1", "edge-2", "edge-3", "edge-5", "edge-6", "edge-7"];
        assert_eq!(names("www"), near);
        assert_eq!(names("other").len(), 8);
        nodes[6].origins_ms.insert("www".into(), UNREACHABLE_MS);
        assert!(!near_origin("www", &nodes).contains(&&nodes[6]));
        for node in &mut nodes {
            node.origins_ms.insert("www".into(), UNREACHABLE_MS);
        }
        assert_eq!(near_origin("www", &nodes).len(), 8, "nobody can reach it");
    }

    #[test]
    fn no_more_are_near_than_connections_are_kept_to() {
        let mut nodes = edges(3 * NEAR_ORIGIN_MAX);
        for (number, node) in nodes.iter_mut().enumerate() {
            node.origins_ms
                .insert("www".into(), 5.0 + 0.1 * number as f64);
        }
        let near = near_origin("www", &nodes);
        assert_eq!(near.len(), NEAR_ORIGIN_MAX);
        assert!(
            near.iter()
                .all(|node| node.origins_ms["www"] < 5.0 + 0.1 * 16.0)
        );
    }

    proptest! {
        /// In whatever order the nodes are told, everybody finds the same.
        #[test]
        fn all_agree(number: u64, mut nodes in Just(edges(12)), swaps in prop::collection::vec((0..12_usize, 0..12_usize), 0..30)) {
            let before: Vec<String> = homes(number, &nodes).iter().map(|&n| n.to_owned()).collect();
            swaps.iter().for_each(|&(a, b)| nodes.swap(a, b));
            prop_assert_eq!(homes(number, &nodes), before);
        }

        /// Who leaves is taken out of the order, and nothing else moves; read from right to left, so is
        /// who joins.
        #[test]
        fn who_leaves_moves_nothing_else(number: u64, count in 2..20_usize, left in 0..20_usize) {
            let mut nodes = edges(count);
            let mut expected: Vec<String> = homes(number, &nodes).iter().map(|&n| n.to_owned()).collect();
            let gone = nodes.remove(left % count);
            expected.retain(|name| name != gone.id.as_str());
            prop_assert_eq!(homes(number, &nodes), expected);
        }

        /// Whatever the loads, somebody has not too much to do.
        #[test]
        fn not_everybody_has_too_much(loads in prop::collection::vec((0..5_000_u32, 0..1_000_000_000_u64), 1..20)) {
            let mut nodes = edges(loads.len());
            for (node, (in_flight, bytes_per_s)) in nodes.iter_mut().zip(loads) {
                node.load = Load { in_flight, bytes_per_s };
            }
            let all: Vec<&NodeInfo> = nodes.iter().collect();
            prop_assert!(nodes.iter().any(|node| !has_too_much(&node.id, &all)));
        }
    }
}
