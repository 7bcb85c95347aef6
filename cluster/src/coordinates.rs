//! Network coordinates: where a node is by round trips, so that those between two nodes that never
//! spoke can be predicted. Vivaldi with height (Dabek et al., SIGCOMM 2004), begun on the globe. Pure.
//!
//! A node stands on a globe on which a millisecond is 1/[`MS_PER_KM`] km. What is learnt is by how much it
//! is to be *shifted* from there, through the globe's three dimensions, and how high it stands above
//! them all (its access link). A prediction is the geographic estimate, plus what the shifts of both
//! change in the straight line between them, plus both heights: a node that has measured nothing is
//! predicted by geography, and one without a known place is placed by round trips alone.
//!
//! Between 49 cloud regions with half of the pairs never measured (`tests/planet`), the median error
//! is 8 ms, against 15 by distance; 11 if the straight line through the globe stands for the way
//! around it, and 11 as well by plain Vivaldi from nowhere, in 2 to 5 dimensions. Neither a fourth
//! dimension nor Serf's adjustment term makes it better.

use std::time::Duration;

use rand::{Rng, RngExt as _};
use serde::Serialize;

use crate::{
    geo::{EARTH_RADIUS_KM, GeoPoint},
    proximity::{MS_PER_KM, NEAR_MS},
};

const DIMENSIONS: usize = 3;
/// Radius of the globe in milliseconds of round trip.
const GLOBE_MS: f64 = EARTH_RADIUS_KM * MS_PER_KM;
/// How far a sample moves a node, and its error (the paper's c_c and c_e, there 0.25). By samples of the
/// same pairs over and over, slower is better: 2 points more of the choices are right.
const STEP: f64 = 0.1;
/// How much of a shift each sample takes back: pairs that are measured say less about all others than
/// geography does. Without it, a node that measures one peer in five chooses worse the longer it does.
const GRAVITY: f64 = 0.005;
/// Error of a node whose place is known and nothing else: half of the predictions are within a third.
const ERROR_PLACED: f64 = 0.5;
/// Error of a node of which nothing is known.
const ERROR_UNPLACED: f64 = 1.0;
/// Errors are relative; below, a lucky node would stop learning.
const ERROR_MIN: f64 = 0.02;
const ERROR_MAX: f64 = 1.5;
/// Above this error a prediction is no better than a guess.
const ERROR_USABLE: f64 = 0.6;
/// Least height: half of what a round trip over no distance takes, at the start.
const HEIGHT_MIN_MS: f64 = 0.05;
/// Samples are taken as within these: what is shorter is the grain of a clock, what is longer is a
/// stall, not a distance.
const SAMPLE_MS: (f64, f64) = (0.1, 2_000.0);
/// Bound on what another node may say of itself.
const SHIFT_MS_MAX: f64 = 10_000.0;

/// A coordinate is told to others once it has moved by this much: about what a prediction is worth.
const TOLD_MOVE_MS: f64 = 2.0;
/// Or its error has changed by this much.
const TOLD_ERROR: f64 = 0.1;
/// Or once in this time if it has moved at all.
const TOLD_AFTER: Duration = Duration::from_secs(600);

/// Where a node is by round trips.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Coordinate {
    /// Its place on the globe; `None`: its middle.
    #[serde(skip)]
    start: Option<GeoPoint>,
    shift_ms: [f64; DIMENSIONS],
    height_ms: f64,
    /// Average relative error of its predictions.
    error: f64,
}

/// A round trip that nobody measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// The round trip, in milliseconds.
    pub ms: f64,
    /// How far off it is on average, in milliseconds.
    pub margin_ms: f64,
}

impl Coordinate {
    /// A node that has measured nothing, at `place`.
    pub fn at(place: Option<GeoPoint>) -> Self {
        Self {
            start: place,
            shift_ms: [0.0; DIMENSIONS],
            height_ms: NEAR_MS / 2.0,
            error: match place {
                Some(_) => ERROR_PLACED,
                None => ERROR_UNPLACED,
            },
        }
    }

    /// The round trip to `other`; `None` while either knows too little.
    pub fn predict(&self, other: &Self) -> Option<Prediction> {
        let error = self.error.max(other.error);
        let learnt = error <= ERROR_USABLE && (self.has_learnt() && other.has_learnt());
        learnt.then(|| {
            let ms = self.round_trip_ms(other);
            Prediction {
                ms,
                margin_ms: ms * (self.error + other.error) / 2.0,
            }
        })
    }

    /// A round trip of `rtt_ms` to a node at `other` was measured. `rng` parts two nodes in the same
    /// spot. What light could not do in that time says that a place is wrong or simulated: it is not
    /// learnt from.
    pub fn observe(&mut self, other: &Self, rtt_ms: f64, rng: &mut impl Rng) {
        if !rtt_ms.is_finite() || rtt_ms < SAMPLE_MS.0 || faster_than_light(self, other, rtt_ms) {
            return;
        }
        let rtt_ms = rtt_ms.min(SAMPLE_MS.1);
        let predicted = self.round_trip_ms(other);
        let weight = self.error / (self.error + other.error);
        let off = (predicted - rtt_ms).abs() / rtt_ms;
        self.error += STEP * weight * (off - self.error);
        self.error = self.error.clamp(ERROR_MIN, ERROR_MAX);

        let force = STEP * weight * (rtt_ms - predicted);
        let (mine, theirs) = (self.position(), other.position());
        let mut away: [f64; DIMENSIONS] = std::array::from_fn(|i| mine[i] - theirs[i]);
        let mut apart = length(away);
        if apart < HEIGHT_MIN_MS {
            away = std::array::from_fn(|_| rng.random_range(-1.0..1.0));
            apart = length(away).max(f64::MIN_POSITIVE);
        }
        let heights = self.height_ms + other.height_ms;
        // The share of the way that is height takes that share of the force.
        self.height_ms += heights * force / (apart + heights).max(1.0);
        self.height_ms = self.height_ms.clamp(HEIGHT_MIN_MS, SHIFT_MS_MAX);
        for (shift, away) in self.shift_ms.iter_mut().zip(away) {
            *shift = (*shift + away / apart * force) * (1.0 - GRAVITY);
            *shift = shift.clamp(-SHIFT_MS_MAX, SHIFT_MS_MAX);
        }
    }

    /// Whether others should hear of it, who were told `told` that long ago.
    pub fn is_news(&self, told: &Self, ago: Duration) -> bool {
        let moved: [f64; DIMENSIONS] = std::array::from_fn(|i| self.shift_ms[i] - told.shift_ms[i]);
        let moved = length(moved) + (self.height_ms - told.height_ms).abs();
        moved >= TOLD_MOVE_MS
            || (self.error - told.error).abs() >= TOLD_ERROR
            || self.start != told.start
            || (ago >= TOLD_AFTER && self != told)
    }

    /// Average relative error of its predictions.
    pub fn error(&self) -> f64 {
        self.error
    }

    /// As gossip carries it, in at most 48 bytes: shift, height, error. The start is the node's place.
    pub fn to_text(&self) -> String {
        let [x, y, z] = self.shift_ms;
        format!(
            "{x:.1},{y:.1},{z:.1},{:.1},{:.2}",
            self.height_ms, self.error
        )
    }

    /// Reads what [`to_text`](Self::to_text) wrote, of a node at `place`; `None` if it is nothing that a
    /// node could be at.
    pub fn from_text(text: &str, place: Option<GeoPoint>) -> Option<Self> {
        let mut numbers = [0.0_f64; DIMENSIONS + 2];
        let mut parts = text.split(',');
        for number in &mut numbers {
            *number = parts.next()?.parse().ok()?;
        }
        let [x, y, z, height_ms, error] = numbers;
        let shift_ms = [x, y, z];
        let fits = parts.next().is_none()
            && shift_ms.iter().all(|shift| shift.abs() <= SHIFT_MS_MAX)
            && (0.0..=SHIFT_MS_MAX).contains(&height_ms)
            && (ERROR_MIN..=ERROR_MAX).contains(&error);
        fits.then_some(Self {
            start: place,
            shift_ms,
            height_ms,
            error,
        })
    }

    /// Whether it rests on more than geography.
    fn has_learnt(&self) -> bool {
        self.shift_ms != [0.0; DIMENSIONS]
    }

    fn round_trip_ms(&self, other: &Self) -> f64 {
        let straight = distance(self.position(), other.position());
        // On the globe the way leads around it; what is learnt are differences of straight lines.
        let around = match (self.start, other.start) {
            (Some(a), Some(b)) => a.distance_km(b) * MS_PER_KM - distance(on_globe(a), on_globe(b)),
            _ => 0.0,
        };
        (straight + around + self.height_ms + other.height_ms).max(SAMPLE_MS.0)
    }

    fn position(&self) -> [f64; DIMENSIONS] {
        let start = self.start.map_or([0.0; DIMENSIONS], on_globe);
        std::array::from_fn(|i| start[i] + self.shift_ms[i])
    }
}

fn faster_than_light(a: &Coordinate, b: &Coordinate, rtt_ms: f64) -> bool {
    match (a.start, b.start) {
        (Some(a), Some(b)) => rtt_ms < a.distance_km(b) * crate::proximity::LIGHT_MS_PER_KM,
        _ => false,
    }
}

fn on_globe(point: GeoPoint) -> [f64; DIMENSIONS] {
    let (lat, lon) = (
        point.latitude().to_radians(),
        point.longitude().to_radians(),
    );
    [lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()].map(|axis| axis * GLOBE_MS)
}

fn distance(a: [f64; DIMENSIONS], b: [f64; DIMENSIONS]) -> f64 {
    length(std::array::from_fn(|i| a[i] - b[i]))
}

fn length(vector: [f64; DIMENSIONS]) -> f64 {
    vector.iter().map(|axis| axis * axis).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng as _, rngs::SmallRng};

    use super::*;

    fn place(latitude: f64, longitude: f64) -> Option<GeoPoint> {
        GeoPoint::new(latitude, longitude)
    }

    /// Lets every pair of `nodes` measure `rtt_ms` of each other, over and over.
    fn learn(
        nodes: &mut [Coordinate],
        rounds: usize,
        rtt_ms: impl Fn(usize, usize) -> Option<f64>,
    ) {
        let mut rng = SmallRng::seed_from_u64(1);
        for _ in 0..rounds {
            for a in 0..nodes.len() {
                for b in 0..nodes.len() {
                    if let Some(ms) = rtt_ms(a, b).filter(|_| a != b) {
                        let other = nodes[b];
                        nodes[a].observe(&other, ms, &mut rng);
                    }
                }
            }
        }
    }

    #[test]
    fn who_has_measured_nothing_predicts_nothing() {
        let (a, b) = (
            Coordinate::at(place(50.0, 8.0)),
            Coordinate::at(place(1.0, 103.0)),
        );
        assert_eq!(a.predict(&b), None);
        assert!(Coordinate::at(None).predict(&a).is_none());
    }

    #[test]
    fn the_first_estimate_is_the_geographic_one() {
        let (a, b) = (place(50.0, 8.0), place(-33.0, 151.0));
        let km = a.unwrap().distance_km(b.unwrap());
        let ms = Coordinate::at(a).round_trip_ms(&Coordinate::at(b));
        assert!((ms - (NEAR_MS + km * MS_PER_KM)).abs() < 1e-6);
    }

    #[test]
    fn nodes_without_places_find_their_places_by_round_trips() {
        // Six on a line, 20 ms apart and each behind a link of 3 ms. The ends never speak.
        let truth = |a: usize, b: usize| 20.0 * a.abs_diff(b) as f64 + 6.0;
        let mut nodes = [Coordinate::at(None); 6];
        learn(&mut nodes, 400, |a, b| {
            (a.abs_diff(b) < 5).then_some(truth(a, b))
        });
        let ends = nodes[0].predict(&nodes[5]).unwrap();
        assert!((ends.ms - truth(0, 5)).abs() < 15.0, "{ends:?}");
        assert!(ends.margin_ms < 20.0);
    }

    #[test]
    fn a_poor_link_becomes_height_for_all_and_not_a_place() {
        let places = [
            (50.0, 8.0),
            (52.0, 4.0),
            (48.8, 2.3),
            (40.4, -3.7),
            (59.3, 18.0),
        ];
        let mut nodes = places.map(|(lat, lon)| Coordinate::at(place(lat, lon)));
        let start = nodes;
        let rtt_ms = |a: usize, b: usize| {
            // The last one is behind a link of 80 ms, and never speaks to the first.
            let last = if a == 4 || b == 4 { 80.0 } else { 0.0 };
            let spoke = (a.min(b), a.max(b)) != (0, 4);
            spoke.then(|| start[a].round_trip_ms(&start[b]) + last)
        };
        learn(&mut nodes, 300, rtt_ms);
        let truth = start[0].round_trip_ms(&start[4]) + 80.0;
        let predicted = nodes[0].predict(&nodes[4]).unwrap();
        assert!(
            (predicted.ms - truth).abs() < 20.0,
            "{predicted:?} for {truth}"
        );
        assert!(nodes[4].height_ms > 40.0, "{:?}", nodes[4]);
    }

    #[test]
    fn samples_faster_than_light_teach_nothing() {
        let mut me = Coordinate::at(place(50.0, 8.0));
        let other = Coordinate::at(place(35.7, 139.7));
        me.observe(&other, 0.5, &mut SmallRng::seed_from_u64(1));
        assert_eq!(me, Coordinate::at(place(50.0, 8.0)));
    }

    #[test]
    fn what_others_were_told_is_told_again_when_it_has_moved_or_after_long() {
        let told = Coordinate::at(place(50.0, 8.0));
        let mut now = told;
        assert!(!now.is_news(&told, TOLD_AFTER));
        now.shift_ms[1] += TOLD_MOVE_MS / 2.0;
        assert!(!now.is_news(&told, Duration::ZERO) && now.is_news(&told, TOLD_AFTER));
        now.height_ms += TOLD_MOVE_MS / 2.0;
        assert!(now.is_news(&told, Duration::ZERO));
    }

    #[test]
    fn what_no_node_could_be_at_is_not_read() {
        for bad in [
            "",
            "1,2,3,4",
            "1,2,3,4,0.5,6",
            "1,2,3,-4,0.5",
            "1,NaN,3,4,0.5",
            "1,2,3,4,0",
            "1,2,3,inf,1",
            "1e9,2,3,4,0.5",
            "1,2,3,4,9",
        ] {
            assert_eq!(Coordinate::from_text(bad, None), None, "{bad:?}");
        }
    }

    proptest! {
        /// Whatever is measured and whatever others say, a coordinate can be told, read and used.
        #[test]
        fn no_history_leaves_the_space(
            placed: bool,
            samples in prop::collection::vec(
                (prop::num::f64::ANY, -2e4..2e4_f64, 0.0..2e4_f64, prop::option::of((-90.0..90.0, -180.0..180.0))),
                0..60,
            ),
        ) {
            let mut rng = SmallRng::seed_from_u64(7);
            let start = place(50.0, 8.0).filter(|_| placed);
            let mut me = Coordinate::at(start);
            for (rtt_ms, shift, height, at) in samples {
                let at = at.and_then(|(lat, lon)| place(lat, lon));
                let text = format!("{shift},0,{},{height},0.3", -shift);
                if let Some(other) = Coordinate::from_text(&text, at) {
                    me.observe(&other, rtt_ms, &mut rng);
                    let ms = me.round_trip_ms(&other);
                    prop_assert!(ms.is_finite() && ms > 0.0);
                }
                let text = me.to_text();
                prop_assert!(text.len() <= 48);
                let read = Coordinate::from_text(&text, start);
                prop_assert!(read.is_some_and(|read| !read.is_news(&me, Duration::ZERO)), "{}", text);
            }
        }
    }
}
