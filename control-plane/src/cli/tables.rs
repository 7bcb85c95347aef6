//! Tables for people: readable at 80 columns, whatever nodes are called.

use std::collections::BTreeMap;

use cluster::wire::{EdgesAnswer, NodesAnswer, PeersAnswer, Place};

use crate::api::status::{phase, role};

pub(super) fn nodes_table(answer: &NodesAnswer) -> String {
    let rows = answer.nodes.iter().map(|node| {
        [
            node.id.to_string(),
            role(node).to_owned(),
            match (node.alive, node.clock_ahead_s) {
                (false, _) => "gone",
                (true, 0) => phase(node),
                (true, _) => "clock",
            }
            .to_owned(),
            node.region.clone(),
            node.location.as_ref().map_or_else(String::new, place),
            node.load.in_flight.to_string(),
            per_second(node.load.bytes_per_s),
            node.sites_version.to_string(),
        ]
    });
    let mut text = table(
        [
            "NODE", "ROLE", "STATE", "REGION", "PLACE", "REQS", "RATE", "SITES",
        ],
        rows,
        [14, 7, 8, 8, 14, 5, 6, 10],
    );
    let known = answer
        .nodes
        .iter()
        .filter(|node| node.alive && node.clock_ahead_s != 0);
    let known = known.map(|node| (&node.id, node.clock_ahead_s));
    let unheard = answer.clocks_off.iter().map(|off| (&off.node, off.ahead_s));
    let off: BTreeMap<_, _> = known.chain(unheard).collect();
    for (id, ahead_s) in off {
        let way = if ahead_s > 0 { "ahead" } else { "behind" };
        let by = ahead_s.unsigned_abs();
        text += &format!("clock: {id}'s is {by} s {way}; beyond 30 s it is kept out\n");
    }
    text
}

pub(super) fn peers_table(answer: &PeersAnswer) -> String {
    let rows = answer.peers.iter().map(|peer| {
        [
            peer.id.to_string(),
            peer.region.clone(),
            peer.peer_addr.clone(),
            kilometres(peer.distance_km),
            peer.rtt_ms
                .map_or_else(String::new, |ms| format!("{ms:.1}")),
            peer.load.in_flight.to_string(),
            format!("{:.1}", peer.score),
        ]
    });
    table(
        [
            "PEER", "REGION", "ADDRESS", "KM", "RTT MS", "REQS", "SCORE MS",
        ],
        rows,
        [16, 10, 21, 6, 7, 5, 8],
    )
}

pub(super) fn edges_table(answer: &EdgesAnswer) -> String {
    let rows = answer.edges.iter().map(|edge| {
        [
            edge.id.to_string(),
            edge.region.clone(),
            edge.http.clone(),
            kilometres(edge.distance_km),
            edge.load.in_flight.to_string(),
            format!("{:.1}", edge.score),
        ]
    });
    let at = answer.location.as_ref().map_or_else(
        || "an unknown place".to_owned(),
        |p| format!("{} ({})", place(p), p.source),
    );
    let table = table(
        ["EDGE", "REGION", "CLIENTS", "KM", "REQS", "SCORE MS"],
        rows,
        [16, 12, 28, 6, 5, 8],
    );
    format!("{} is in {at}\n{table}", answer.client)
}

fn place(place: &Place) -> String {
    match (&place.city, &place.country) {
        (Some(city), Some(country)) => format!("{city}, {country}"),
        (_, Some(country)) => country.clone(),
        _ => format!("{:.2}, {:.2}", place.latitude, place.longitude),
    }
}

/// How long it is from one time to another, in its largest unit.
pub(super) fn ago(from_ms: u64, to_ms: u64) -> String {
    let s = to_ms.saturating_sub(from_ms) / 1_000;
    match s {
        0..60 => format!("{s}s"),
        60..3_600 => format!("{}m", s / 60),
        3_600..86_400 => format!("{}h", s / 3_600),
        _ => format!("{}d", s / 86_400),
    }
}

fn kilometres(km: Option<f64>) -> String {
    km.map_or_else(String::new, |km| format!("{km:.0}"))
}

pub(super) fn per_second(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes}B"),
        1_000..1_000_000 => format!("{}kB", bytes / 1_000),
        1_000_000..1_000_000_000 => format!("{}MB", bytes / 1_000_000),
        _ => format!("{}GB", bytes / 1_000_000_000),
    }
}

/// Columns as wide as they need to be, but not wider than `widths`: what is longer is cut, so that
/// a line has at most the widths and a space between each.
pub(super) fn table<const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
    widths: [usize; N],
) -> String {
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(rows);
    let mut fitting = [0; N];
    for line in &lines {
        for ((fit, cell), width) in fitting.iter_mut().zip(line).zip(widths) {
            *fit = cell.chars().count().min(width).max(*fit);
        }
    }
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (cell, fit) in line.iter().zip(fitting) {
            let cell: String = if cell.chars().count() > fit {
                cell.chars().take(fit - 1).chain(['…']).collect()
            } else {
                // What a terminal would obey comes from other nodes; none of it is wanted.
                cell.clone()
            };
            let cell: String = cell
                .chars()
                .map(|c| if c.is_control() { '?' } else { c })
                .collect();
            row.push_str(&format!("{cell:fit$} "));
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use cluster::{
        node::{Load, NodeInfo, Phase, Role},
        view::ClusterView,
        wire::RankedPeer,
    };

    use super::*;
    use crate::{atlas::Atlas, places::Places};

    fn assert_fits(table: &str) {
        for line in table.lines() {
            assert!(
                line.chars().count() <= 80,
                "{} {line:?}",
                line.chars().count()
            );
        }
    }

    #[test]
    fn tables_fit_80_columns_whatever_nodes_are_called() {
        let long = "x".repeat(64);
        let mut node = NodeInfo::new(long.parse().unwrap(), Role::Control);
        node.region = "eu\x1b[31m-central-1-and-more".into();
        node.phase = Phase::Draining;
        node.location = cluster::geo::GeoPoint::new(-50.111_111, -108.682_222);
        node.sites_version = 1_780_000_000;
        node.load = Load {
            in_flight: 12_345,
            bytes_per_s: 999_000_000,
        };
        let view = ClusterView::new([node.clone()]);
        let atlas = Atlas::new(&view, vec![], &Places::new(vec![], None), |_| None);
        let nodes = nodes_table(&NodesAnswer {
            nodes: atlas.statuses(),
            clocks_off: Vec::new(),
        });
        assert_fits(&nodes);
        assert!(
            nodes.contains("xxxxxxxxxxxxx… control draining eu?[31m… "),
            "{nodes}"
        );
        let peer = RankedPeer {
            id: node.id.clone(),
            region: long.clone(),
            peer_addr: format!("{long}:7947"),
            distance_km: Some(20_015.0),
            rtt_ms: Some(12_345.6),
            load: node.load,
            score: 12_345.6,
            why: String::new(),
        };
        assert_fits(&peers_table(&PeersAnswer {
            node: node.id.clone(),
            generated_at: 0,
            ttl_s: 30,
            peers: vec![peer.clone()],
        }));
        assert_fits(&edges_table(&EdgesAnswer {
            client: "1.2.3.4".into(),
            location: None,
            edges: vec![cluster::wire::RankedEdge {
                id: node.id,
                region: long.clone(),
                http: long.clone(),
                distance_km: Some(20_015.0),
                load: peer.load,
                score: 12_345.6,
            }],
        }));
        assert_fits(&super::super::sites::sites_table(
            &cluster::wire::SitesAnswer {
                version: 1,
                sites: vec![cluster::site::Site::new(&long, &[&long, &long], &[&long])],
            },
        ));
    }
}
