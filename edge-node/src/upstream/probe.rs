//! A light question to one peer after the other, so that round trips are known before they matter; and
//! what this node learns from the answers: where it stands among the others (its coordinate).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cluster::{coordinates::Coordinate, node::NodeId, wire};
use http::{HeaderMap, StatusCode};
use rand::{Rng, RngExt as _};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::debug;

use super::{
    Inner,
    health::{Severity, Standing},
    peer::{Asker, CONNECT_TIMEOUT, HEAD_TIMEOUT, PeerError},
    pool::Patience,
    ranking::Placed,
};

/// Time between two questions, whatever the size of the cluster: a node asks, and on average is asked,
/// once a second.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Every other question goes to one of this many nearest peers in turn: their round trips decide what is
/// asked of whom, so they are kept fresh; each is a minute old at most. The others go to anybody.
const NEIGHBOURS: usize = 30;

/// Where this node stands by the round trips that it measured. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Position(Arc<Mutex<Option<Coordinate>>>);

impl Position {
    /// Its coordinate; `None` until a round trip was measured.
    pub fn coordinate(&self) -> Option<Coordinate> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, coordinate: Coordinate) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(coordinate);
    }
}

/// Asks for as long as it runs.
pub(super) async fn probe(inner: Arc<Inner>, asker: Asker) {
    let mut ticks = interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut probed: HashMap<NodeId, u64> = HashMap::new();
    let mut learnt: Option<Coordinate> = None;
    for turn in 1.. {
        ticks.tick().await;
        let mut placed = inner.placed();
        let now = Instant::now();
        placed.retain(|p| {
            !p.node.peer.is_empty()
                && inner.health.of(&p.node.id).standing(now) != Standing::Ejected
        });
        let Some(peer) = next(&mut placed, &probed, turn, &mut rand::rng()) else {
            continue;
        };
        probed.retain(|id, _| placed.iter().any(|p| p.node.id == *id));
        probed.insert(peer.node.id.clone(), turn);
        let Some(round_trip) = ask(&inner, &asker, &peer).await else {
            continue;
        };
        let smoothed = inner.health.with(&peer.node.id, |health| {
            health.measured(round_trip.as_secs_f64() * 1e3, Instant::now());
            health.round_trip_ms()
        });
        let location = inner
            .view
            .borrow()
            .node(&inner.me)
            .and_then(|me| me.location);
        let coordinate = learnt.get_or_insert_with(|| Coordinate::at(location));
        let theirs = peer.node.coordinate;
        let theirs = theirs.unwrap_or_else(|| Coordinate::at(peer.node.location));
        coordinate.observe(&theirs, smoothed.unwrap_or_default(), &mut rand::rng());
        inner.position.set(*coordinate);
    }
}

/// Whom to ask this turn: of the nearest the one that was asked longest ago, or anybody.
fn next(
    placed: &mut [Placed],
    probed: &HashMap<NodeId, u64>,
    turn: u64,
    rng: &mut impl Rng,
) -> Option<Placed> {
    if placed.is_empty() {
        return None;
    }
    if turn.is_multiple_of(2) {
        return placed.get(rng.random_range(0..placed.len())).cloned();
    }
    placed.sort_by(|a, b| a.cost_ms.total_cmp(&b.cost_ms));
    let nearest = placed.iter().take(NEIGHBOURS);
    nearest
        .min_by_key(|p| probed.get(&p.node.id).copied().unwrap_or(0))
        .cloned()
}

/// How long one question took; `None` when there was no proper answer.
async fn ask(inner: &Inner, asker: &Asker, peer: &Placed) -> Option<Duration> {
    let (id, addr) = (&peer.node.id, inner.address(&peer.node));
    let request = || asker.request(id, addr, wire::PING, HeaderMap::new());
    let patience = Patience {
        connect: CONNECT_TIMEOUT,
        head: HEAD_TIMEOUT,
    };
    let answered: Result<_, PeerError> = asker.pool.ask(request, patience).await;
    match answered {
        Ok(answer) if answer.response.status() == StatusCode::NO_CONTENT => {
            Some(answer.round_trip).filter(|took| !took.is_zero())
        }
        // Older than this question: other answers tell its round trip.
        Ok(_) => None,
        Err(error) => {
            debug!(peer = %id, %error, "probe failed");
            if let PeerError::Connect(_) = error {
                let now = Instant::now();
                let failed = |h: &mut super::health::PeerHealth| {
                    h.failed(Severity::Failed, error.label(), now);
                };
                inner.health.with(id, failed);
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use cluster::{
        node::{NodeInfo, Role},
        proximity::Way,
    };
    use rand::{SeedableRng as _, rngs::SmallRng};

    use super::*;

    fn placed(n: u32) -> Placed {
        Placed {
            node: Arc::new(NodeInfo::new(
                format!("edge-{n}").parse().unwrap(),
                Role::Edge,
            )),
            way: Way::default(),
            cost_ms: f64::from(n),
        }
    }

    #[test]
    fn the_nearest_are_asked_in_turn_and_everybody_now_and_then() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut peers: Vec<Placed> = (0..100).rev().map(placed).collect();
        let mut probed = HashMap::new();
        let mut asked = [0; 100];
        for turn in 1..=1_000 {
            let peer = next(&mut peers, &probed, turn, &mut rng).unwrap();
            probed.insert(peer.node.id.clone(), turn);
            asked[peer.cost_ms as usize] += 1;
        }
        let nearest = &asked[..NEIGHBOURS];
        assert!(nearest.iter().all(|&n| n >= 14), "{asked:?}");
        let others = &asked[NEIGHBOURS..];
        assert!(
            others.iter().sum::<u32>() > 300 && others.iter().all(|&n| n < 14),
            "{asked:?}"
        );
        assert!(next(&mut [], &probed, 1, &mut rng).is_none());
    }
}
