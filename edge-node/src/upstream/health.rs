//! What this node has lived through with each peer lately: failures, refusals, round trips. A peer
//! that fails is ejected here at once; gossip's failure detector is only the background truth.
//!
//! [`PeerHealth`] is a state machine that is told the time; [`Health`] is a map of them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use cluster::node::NodeId;
use serde::Serialize;
use tokio::time::Instant;

use super::hedge::{self, Recent};

/// First ejection: long enough to spare the requests of a moment, short enough for a hiccup.
pub const EJECTED_MIN: Duration = Duration::from_secs(1);
/// Longest ejection. A peer that is really gone leaves the view before.
pub const EJECTED_MAX: Duration = Duration::from_secs(60);
/// How long one request may hold the right to probe a peer, should its outcome never be told.
const PROBE_MAX: Duration = Duration::from_secs(30);
/// How long a peer that said it is busy is asked later than others.
const BUSY_FOR: Duration = Duration::from_secs(2);
/// Weight of the newest outcome in the error average.
const ERRORS_ALPHA: f64 = 0.3;
/// Errors are forgotten by half in this time, or a peer that nobody asks would stay bad for ever.
const ERRORS_HALF_LIFE: Duration = Duration::from_secs(30);
/// Weight of the newest round trip in its average (RFC 6298 §2 takes 1/8 for many more samples).
const ROUND_TRIP_ALPHA: f64 = 0.2;
/// One round trip counts for at most this many times the average: a stall is not a longer way, and a way
/// that did become longer is believed after some more.
const ROUND_TRIP_JUMP_MAX: f64 = 2.0;
/// Weight of the newest transfer in the average rate.
const RATE_ALPHA: f64 = 0.3;

/// How a failure weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It did not work.
    Failed,
    /// It sent what its own manifest denies: ejected for [`EJECTED_MAX`] at once.
    Lied,
}

/// Whether a peer may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Yes.
    Good,
    /// Yes, but it said lately that it is busy.
    Busy,
    /// One request may find out whether it is back.
    HalfOpen,
    /// No.
    Ejected,
}

/// What is known of one peer.
#[derive(Clone, Debug, Default)]
pub struct PeerHealth {
    errors: f64,
    errors_at: Option<Instant>,
    /// Ejections since the last success.
    ejections: u32,
    ejected_until: Option<Instant>,
    probing_until: Option<Instant>,
    busy_until: Option<Instant>,
    round_trip: Option<(f64, Instant)>,
    /// What the last answers took, in milliseconds.
    answers: Recent,
    bytes_per_s: Option<f64>,
    false_hits: u64,
    last_failure: Option<&'static str>,
}

impl PeerHealth {
    /// Whether it may be asked at `now`.
    pub fn standing(&self, now: Instant) -> Standing {
        let ahead = |until: Option<Instant>| until.is_some_and(|until| now < until);
        if ahead(self.ejected_until) || ahead(self.probing_until) {
            Standing::Ejected
        } else if self.ejected_until.is_some() {
            Standing::HalfOpen
        } else if ahead(self.busy_until) {
            Standing::Busy
        } else {
            Standing::Good
        }
    }

    /// Whether one request may go out now; of a half-open peer, the first that asks takes the probe.
    pub fn admit(&mut self, now: Instant) -> bool {
        let standing = self.standing(now);
        if standing == Standing::HalfOpen {
            self.probing_until = Some(now + PROBE_MAX);
        }
        standing != Standing::Ejected
    }

    /// It did what was asked, or said properly that it cannot.
    pub fn succeeded(&mut self, now: Instant) {
        self.observe(0.0, now);
        // What began before an ejection does not end it: that is for the probe.
        if self.ejected_until.is_none_or(|until| now >= until) {
            self.ejections = 0;
            self.ejected_until = None;
            self.probing_until = None;
        }
    }

    /// It failed in the way that `label` names, and is ejected.
    pub fn failed(&mut self, severity: Severity, label: &'static str, now: Instant) {
        self.observe(1.0, now);
        self.last_failure = Some(label);
        // The many requests that a dying peer fails at once are one failure.
        let again = self.ejected_until.is_none_or(|until| now >= until);
        if again {
            self.ejections = self.ejections.saturating_add(1);
            self.probing_until = None;
        }
        let length = match severity {
            Severity::Lied => EJECTED_MAX,
            Severity::Failed => ejection(self.ejections),
        };
        if again || severity == Severity::Lied {
            self.ejected_until = Some(now + length);
        }
    }

    /// It is too busy to answer; not a failure.
    pub fn refused(&mut self, now: Instant) {
        self.succeeded(now);
        self.busy_until = Some(now + BUSY_FOR);
    }

    /// It does not have what its digest claims; not a failure.
    pub fn missed(&mut self, now: Instant) {
        self.succeeded(now);
        self.false_hits += 1;
    }

    /// Nobody waited for the outcome: gives back the right to probe.
    pub fn abandoned(&mut self) {
        self.probing_until = None;
    }

    /// A round trip took `ms` milliseconds.
    pub fn measured(&mut self, ms: f64, now: Instant) {
        self.answers.push(ms);
        let average = self.round_trip.map_or(ms, |(old, _)| {
            old + ROUND_TRIP_ALPHA * (ms.min(ROUND_TRIP_JUMP_MAX * old) - old)
        });
        self.round_trip = Some((average, now));
    }

    /// A large object, or a part of one, came at this rate.
    pub fn transferred(&mut self, bytes_per_s: f64) {
        let average = self.bytes_per_s;
        self.bytes_per_s =
            Some(average.map_or(bytes_per_s, |old| old + RATE_ALPHA * (bytes_per_s - old)));
    }

    /// Average rate of what it sent, once there was something large.
    pub fn bytes_per_s(&self) -> Option<f64> {
        self.bytes_per_s
    }

    /// What its last answers took.
    pub fn answers(&self) -> &Recent {
        &self.answers
    }

    /// Average of failures, from 0 (none) to 1 (nothing works).
    pub fn errors(&self, now: Instant) -> f64 {
        let age = self
            .errors_at
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.errors * 0.5_f64.powf(age.as_secs_f64() / ERRORS_HALF_LIFE.as_secs_f64())
    }

    /// Average round trip in milliseconds, once there is one.
    pub fn round_trip_ms(&self) -> Option<f64> {
        self.round_trip.map(|(ms, _)| ms)
    }

    /// How often it did not have what its digest claims.
    pub fn false_hits(&self) -> u64 {
        self.false_hits
    }

    /// What it last failed at.
    pub fn last_failure(&self) -> Option<&'static str> {
        self.last_failure
    }

    fn observe(&mut self, outcome: f64, now: Instant) {
        self.errors = self.errors(now) * (1.0 - ERRORS_ALPHA) + ERRORS_ALPHA * outcome;
        self.errors_at = Some(now);
    }
}

/// How long the `nth` ejection in a row lasts.
fn ejection(nth: u32) -> Duration {
    EJECTED_MIN
        .saturating_mul(1 << nth.saturating_sub(1).min(16))
        .min(EJECTED_MAX)
}

/// The health of every peer. As many entries as [`Health::retain`] lets stand.
#[derive(Debug, Default)]
pub struct Health {
    peers: Mutex<HashMap<NodeId, PeerHealth>>,
    /// What the last answers of all peers took, in medians of the peer.
    answers: Mutex<Recent>,
}

impl Health {
    /// What is known of `peer` now.
    pub fn of(&self, peer: &NodeId) -> PeerHealth {
        self.all(|peers| peers.get(peer).cloned().unwrap_or_default())
    }

    /// Changes what is known of `peer`.
    pub fn with<T>(&self, peer: &NodeId, change: impl FnOnce(&mut PeerHealth) -> T) -> T {
        self.all(|peers| match peers.get_mut(peer) {
            Some(health) => change(health),
            None => change(peers.entry(peer.clone()).or_default()),
        })
    }

    /// An answer of `peer` took `ms` milliseconds, or that long already when nobody waited any more.
    pub fn answered(&self, peer: &NodeId, ms: f64) {
        let median = self.with(peer, |health| {
            health.measured(ms, Instant::now());
            health.answers.percentile(0.5)
        });
        if let Some(median) = median {
            self.all_answers(|all| all.push(ms / median.max(1e-3)));
        }
    }

    /// After which time an answer of `peer` is late; `None` while too little is known.
    pub fn late_after(&self, peer: &NodeId) -> Option<Duration> {
        let own = self.all(|peers| peers.get(peer).map(|health| health.answers.clone()))?;
        self.all_answers(|all| hedge::delay(&own, all))
    }

    /// Forgets the peers that `keep` denies.
    pub fn retain(&self, keep: impl Fn(&NodeId) -> bool) {
        self.all(|peers| peers.retain(|id, _| keep(id)));
    }

    /// The `most` round trips measured last, in milliseconds.
    pub fn round_trips(&self, most: usize) -> BTreeMap<NodeId, f64> {
        let mut measured: Vec<(Instant, NodeId, f64)> = self.all(|peers| {
            let known = peers
                .iter()
                .filter_map(|(id, health)| Some((id, health.round_trip?)));
            known.map(|(id, (ms, at))| (at, id.clone(), ms)).collect()
        });
        measured.sort_by(|a, b| (b.0, &a.1).cmp(&(a.0, &b.1)));
        measured
            .into_iter()
            .take(most)
            .map(|(_, id, ms)| (id, ms))
            .collect()
    }

    fn all<T>(&self, act: impl FnOnce(&mut HashMap<NodeId, PeerHealth>) -> T) -> T {
        act(&mut self.peers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn all_answers<T>(&self, act: impl FnOnce(&mut Recent) -> T) -> T {
        act(&mut self.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn fail(health: &mut PeerHealth, now: Instant) {
        health.failed(Severity::Failed, "timeout", now);
    }

    #[test]
    fn each_ejection_in_a_row_lasts_twice_as_long() {
        let mut now = Instant::now();
        let mut health = PeerHealth::default();
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(health.admit(now));
            fail(&mut health, now);
            now += SECOND * seconds - Duration::from_millis(1);
            assert_eq!(health.standing(now), Standing::Ejected, "{seconds} s");
            now += Duration::from_millis(1);
            assert_eq!(health.standing(now), Standing::HalfOpen, "{seconds} s");
        }
        health.succeeded(now);
        assert_eq!(health.standing(now), Standing::Good);
        fail(&mut health, now);
        assert_eq!(health.standing(now + SECOND), Standing::HalfOpen);
    }

    #[test]
    fn one_request_probes_and_the_others_wait_for_it() {
        let start = Instant::now();
        let mut health = PeerHealth::default();
        fail(&mut health, start);
        let now = start + SECOND;
        assert!(!health.admit(start));
        assert!(health.admit(now));
        assert!(!health.admit(now));
        health.abandoned();
        assert!(
            health.admit(now),
            "a probe that nobody waited for is given back"
        );
        assert!(!health.admit(now));
        assert!(
            health.admit(now + PROBE_MAX),
            "a probe without outcome does not last"
        );
    }

    #[test]
    fn a_burst_of_failures_is_one() {
        let now = Instant::now();
        let mut health = PeerHealth::default();
        for _ in 0..50 {
            fail(&mut health, now);
        }
        assert_eq!(health.standing(now + SECOND), Standing::HalfOpen);
        // And what had begun before does not end the ejection.
        health.succeeded(now);
        assert_eq!(health.standing(now), Standing::Ejected);
    }

    #[test]
    fn a_liar_is_ejected_for_long_whatever_it_was_before() {
        let now = Instant::now();
        let mut health = PeerHealth::default();
        fail(&mut health, now);
        health.failed(Severity::Lied, "corrupt", now);
        health.succeeded(now);
        assert_eq!(
            health.standing(now + EJECTED_MAX - SECOND),
            Standing::Ejected
        );
        assert_eq!(health.standing(now + EJECTED_MAX), Standing::HalfOpen);
    }

    #[test]
    fn refusals_and_misses_are_no_failures() {
        let now = Instant::now();
        let mut health = PeerHealth::default();
        health.refused(now);
        assert_eq!(health.standing(now), Standing::Busy);
        assert_eq!(health.standing(now + BUSY_FOR), Standing::Good);
        health.missed(now);
        assert_eq!((health.false_hits(), health.errors(now)), (1, 0.0));
    }

    #[test]
    fn errors_and_round_trips_are_averages() {
        let now = Instant::now();
        let mut health = PeerHealth::default();
        fail(&mut health, now);
        let fresh = health.errors(now);
        assert!((health.errors(now + ERRORS_HALF_LIFE) - fresh / 2.0).abs() < 1e-9);
        health.measured(10.0, now);
        health.measured(20.0, now);
        assert_eq!(health.round_trip_ms(), Some(12.0));
        health.measured(1_000.0, now);
        let after_stall = health.round_trip_ms().unwrap();
        assert!((after_stall - 12.0 * 1.2).abs() < 1e-9, "{after_stall}");
        health.transferred(1e6);
        health.transferred(2e6);
        assert_eq!(health.bytes_per_s(), Some(1.3e6));
    }

    #[test]
    fn the_newest_round_trips_come_first() {
        let now = Instant::now();
        let health = Health::default();
        for i in 0..40_u32 {
            let id = format!("edge-{i:02}").parse().unwrap();
            health.with(&id, |h| h.measured(f64::from(i), now + SECOND * i));
        }
        let published = health.round_trips(32);
        assert_eq!(published.len(), 32);
        assert_eq!(published.keys().next().unwrap().as_str(), "edge-08");
        health.retain(|id| id.as_str() == "edge-39");
        assert_eq!(health.round_trips(32).len(), 1);
    }

    proptest! {
        /// Whatever happens, errors stay an average, nobody is ejected for longer than the bound,
        /// and an ejected peer gets one probe at most per ejection or lost probe.
        #[test]
        fn no_history_breaks_the_bounds(events in prop::collection::vec((0..6_u8, 0..90_u64), 0..200)) {
            let mut now = Instant::now();
            let mut health = PeerHealth::default();
            for (event, seconds) in events {
                now += SECOND * u32::try_from(seconds).unwrap();
                match event {
                    0 => health.succeeded(now),
                    1 => fail(&mut health, now),
                    2 => health.failed(Severity::Lied, "corrupt", now),
                    3 => health.refused(now),
                    4 => health.missed(now),
                    _ => {
                        let before = health.standing(now);
                        prop_assert_eq!(health.admit(now), before != Standing::Ejected);
                        if before == Standing::HalfOpen {
                            prop_assert!(!health.admit(now));
                        }
                    }
                }
                prop_assert!((0.0..=1.0).contains(&health.errors(now)));
                prop_assert_ne!(health.standing(now + EJECTED_MAX + PROBE_MAX), Standing::Ejected);
            }
        }
    }
}
