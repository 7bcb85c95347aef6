//! A question to a peer that is under way, and what its end says of that peer.

use std::sync::Arc;

use cluster::node::NodeId;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    Inner,
    health::{self, Severity, Standing},
    peer::{PeerError, PieceStream},
};

/// A question that is under way. Dropped without an end, nobody waited for the answer.
pub(super) struct Question {
    inner: Arc<Inner>,
    peer: NodeId,
    answered: bool,
}

impl Inner {
    /// A question to `peer`, if it may be asked.
    pub(super) fn question(self: &Arc<Self>, peer: &NodeId) -> Result<Question, PeerError> {
        if !self.health.with(peer, |h| h.admit(Instant::now())) {
            self.events.peer_result(peer, PeerError::Ejected.label());
            return Err(PeerError::Ejected);
        }
        Ok(Question {
            inner: self.clone(),
            peer: peer.clone(),
            answered: false,
        })
    }
}

impl Question {
    /// The beginning of its answer, if there is one; else this was the end.
    pub(super) fn begun<T>(self, answer: Result<T, PeerError>) -> Result<(T, Self), PeerError> {
        match answer {
            Ok(answer) => Ok((answer, self)),
            Err(error) => {
                self.end(Err(&error));
                Err(error)
            }
        }
    }

    /// Ends as `pieces` do.
    pub(super) fn watch(self, pieces: &mut PieceStream) {
        pieces.report_to(Box::new(move |result| self.end(result)));
    }

    pub(super) fn end(self, result: Result<(), &PeerError>) {
        self.end_as("hit", result);
    }

    /// The same with another word for success.
    pub(super) fn end_as(mut self, success: &'static str, result: Result<(), &PeerError>) {
        self.answered = true;
        let (peer, now) = (&self.peer, Instant::now());
        self.inner
            .events
            .peer_result(peer, result.map_or_else(PeerError::label, |()| success));
        if result == Err(&PeerError::Miss) {
            self.inner.events.digest_false_hit(peer);
        }
        let (before, after) = self.inner.health.with(peer, |health| {
            let before = health.standing(now);
            match result {
                Ok(())
                | Err(
                    PeerError::Stale
                    | PeerError::Other
                    | PeerError::TakenDown
                    | PeerError::NotYet
                    | PeerError::Elsewhere(_),
                ) => health.succeeded(now),
                Err(PeerError::Miss) => health.missed(now),
                Err(PeerError::Busy) => health.refused(now),
                Err(error @ PeerError::Corrupt { .. }) => {
                    health.failed(Severity::Lied, error.label(), now);
                }
                Err(error) => health.failed(Severity::Failed, error.label(), now),
            }
            (before, health.standing(now))
        });
        match (result, before, after) {
            (Err(error), Standing::Good | Standing::Busy, Standing::Ejected) => {
                warn!(%peer, %error, "peer ejected");
            }
            (_, Standing::Ejected | Standing::HalfOpen, Standing::Good | Standing::Busy) => {
                info!(%peer, "peer is back");
            }
            _ => {}
        }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        if !self.answered {
            self.inner.events.peer_result(&self.peer, "abandoned");
            self.inner
                .health
                .with(&self.peer, health::PeerHealth::abandoned);
        }
    }
}
