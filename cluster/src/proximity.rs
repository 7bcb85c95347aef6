//! What asking another node costs, and what that rests on: the one estimate that edges and the control
//! plane share. Pure.
//!
//! What was measured beats what is predicted, a prediction beats the map, the map beats region labels,
//! and labels beat nothing.

use serde::Serialize;

use crate::{
    coordinates::Prediction,
    geo::GeoPoint,
    node::{Load, NodeInfo},
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
/// Least round trip per kilometre that light in fibre allows. One measured below it says that a
/// place is wrong, or simulated (many nodes on one machine); then the places decide.
pub const LIGHT_MS_PER_KM: f64 = 2.0 / 200.0;
/// Shortest round trip that is believed; a clock's grain must not make a node free of cost.
const RTT_MS_MIN: f64 = 0.1;

/// Requests under way that double the cost of a node: it answers, but others answer sooner.
pub const IN_FLIGHT_DOUBLES: f64 = 200.0;
/// Bytes per second that double the cost of a node: a gigabit's worth.
pub const BYTES_PER_S_DOUBLES: f64 = 125e6;
/// Bound on what load adds: past it, a far node is better in any case, and all are alike.
pub const LOAD_FACTOR_MAX: f64 = 9.0;

/// What an estimate rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// A round trip that this node measured.
    Measured,
    /// A round trip that the other measured, or the control plane knows of.
    Reported,
    /// What the coordinates of both say.
    Coordinates,
    /// The distance.
    Distance,
    /// The same region label, for want of anything better.
    Region,
    /// Nothing is known.
    Unknown,
}

/// What is known of the way between two nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Way {
    /// Round trip in milliseconds as measured by the one that asks.
    pub measured_ms: Option<f64>,
    /// Round trip in milliseconds as measured by the other.
    pub reported_ms: Option<f64>,
    /// What their coordinates predict.
    pub predicted: Option<Prediction>,
    /// Great-circle distance in kilometres, when both places are known.
    pub distance_km: Option<f64>,
    /// Whether both bear the same region label.
    pub same_region: bool,
}

impl Way {
    /// Between `me` and `other`, by what they say of themselves.
    pub fn between(me: &NodeInfo, other: &NodeInfo) -> Self {
        Self {
            measured_ms: me.round_trips_ms.get(&other.id).copied(),
            reported_ms: other.round_trips_ms.get(&me.id).copied(),
            predicted: me
                .coordinate
                .zip(other.coordinate)
                .and_then(|(mine, theirs)| mine.predict(&theirs)),
            distance_km: distance_km(me.location, other.location),
            same_region: same_region(&me.region, &other.region),
        }
    }

    /// The round trip that somebody measured.
    pub fn rtt_ms(&self) -> Option<f64> {
        self.measured_ms.or(self.reported_ms)
    }

    /// Expected cost of a question in milliseconds, without load and failures, and what it rests on.
    pub fn cost(&self) -> (f64, Why) {
        let possible = |ms: f64| {
            let light = self.distance_km.unwrap_or(0.0) * LIGHT_MS_PER_KM;
            ms.max(RTT_MS_MIN).max(light)
        };
        match *self {
            Self {
                measured_ms: Some(ms),
                ..
            } => (possible(ms), Why::Measured),
            Self {
                reported_ms: Some(ms),
                ..
            } => (possible(ms), Why::Reported),
            Self {
                predicted: Some(by),
                ..
            } => (possible(by.ms), Why::Coordinates),
            Self {
                distance_km: Some(km),
                ..
            } => (NEAR_MS + km * MS_PER_KM, Why::Distance),
            Self {
                same_region: true, ..
            } => (SAME_REGION_MS, Why::Region),
            _ => (ELSEWHERE_MS, Why::Unknown),
        }
    }

    /// The reason for [`cost`](Self::cost) in words, for people.
    pub fn explain(&self) -> String {
        let (ms, why) = self.cost();
        let km = || self.distance_km.unwrap_or_default();
        match why {
            Why::Measured | Why::Reported => {
                let ms = self.rtt_ms().unwrap_or(ms);
                let word = if why == Why::Measured {
                    "measured"
                } else {
                    "reported"
                };
                match self.distance_km {
                    Some(km) => format!("{ms:.1} ms {word}, {km:.0} km"),
                    None => format!("{ms:.1} ms {word}"),
                }
            }
            Why::Coordinates => {
                let margin = self.predicted.map_or(0.0, |by| by.margin_ms);
                format!("{ms:.1} ms predicted by coordinates ± {margin:.1}")
            }
            Why::Distance => format!("{ms:.1} ms by distance, {:.0} km", km()),
            Why::Region => format!("{ms:.0} ms by the same region"),
            Why::Unknown => "nothing known of its place".to_owned(),
        }
    }
}

/// What a node's load adds to its cost, as a multiple of it: 0 when idle.
pub fn load_factor(load: Load) -> f64 {
    let requests = f64::from(load.in_flight) / IN_FLIGHT_DOUBLES;
    let bytes = load.bytes_per_s as f64 / BYTES_PER_S_DOUBLES;
    requests.max(bytes).min(LOAD_FACTOR_MAX)
}

/// Great-circle distance in kilometres; `None` when either place is unknown.
pub fn distance_km(a: Option<GeoPoint>, b: Option<GeoPoint>) -> Option<f64> {
    Some(a?.distance_km(b?))
}

/// Whether both bear the same label; no label is none.
pub fn same_region(a: &str, b: &str) -> bool {
    !a.is_empty() && a == b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_knowledge_beats_the_next_and_says_so() {
        let mut way = Way {
            measured_ms: Some(40.0),
            reported_ms: Some(41.0),
            predicted: Some(Prediction {
                ms: 60.0,
                margin_ms: 12.0,
            }),
            distance_km: Some(1_000.0),
            same_region: true,
        };
        let said = |way: &Way, cost: f64, why: Why, words: &str| {
            assert_eq!(way.cost(), (cost, why));
            assert_eq!(way.explain(), words);
        };
        said(&way, 40.0, Why::Measured, "40.0 ms measured, 1000 km");
        way.measured_ms = None;
        said(&way, 41.0, Why::Reported, "41.0 ms reported, 1000 km");
        way.reported_ms = None;
        let words = "60.0 ms predicted by coordinates ± 12.0";
        said(&way, 60.0, Why::Coordinates, words);
        way.predicted = None;
        said(&way, 20.0, Why::Distance, "20.0 ms by distance, 1000 km");
        way.distance_km = None;
        said(&way, 15.0, Why::Region, "15 ms by the same region");
        way.same_region = false;
        said(&way, 150.0, Why::Unknown, "nothing known of its place");
    }

    #[test]
    fn nothing_is_faster_than_light() {
        let way = Way {
            measured_ms: Some(0.2),
            distance_km: Some(9_000.0),
            ..Way::default()
        };
        assert_eq!(way.cost(), (90.0, Why::Measured));
        let here = Way {
            measured_ms: Some(0.0),
            ..Way::default()
        };
        assert_eq!(here.cost().0, RTT_MS_MIN);
    }
}
