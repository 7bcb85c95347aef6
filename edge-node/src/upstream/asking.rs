//! Asking those who hold an object: who they are, and the questions that they are asked.

use std::{
    ops::Range,
    pin::pin,
    sync::{Arc, PoisonError},
    time::Duration,
};

use cluster::{
    key::Key,
    manifest::{Manifest, PIECE_BYTES},
    node::NodeId,
};
use http::HeaderMap;
use tokio::time::{Instant, sleep};

use super::{
    Inner, Upstream,
    many::Gathering,
    peer::{Asker, PeerError, PeerObject, PieceStream, Run},
    question::Question,
    schedule::FIRST_PIECES,
    select::{self, Candidate, Claim},
};

/// Weight of the newest object in their average length.
const USUAL_BYTES_ALPHA: f64 = 0.05;

/// What came of asking for an object.
#[derive(Debug)]
pub struct Answered {
    /// It, or why there is none.
    pub answer: Result<PeerObject, PeerError>,
    /// Which of the candidates that is from.
    pub by: usize,
    /// How many of them have been asked.
    pub asked: usize,
}

impl Upstream {
    /// Who to ask for `key`, best first, by their digests: a local look, nobody is asked.
    pub fn holders(&self, key: Key) -> Vec<Candidate> {
        let inner = &*self.0;
        let digests = inner.digests.load();
        let claims = |id: &NodeId| digests.get(id).is_some_and(|digest| digest.contains(key));
        if inner.asker.is_none() || !digests.keys().any(claims) {
            return Vec::new();
        }
        let now = Instant::now();
        let placed = inner.placed_among(&digests, key);
        let claims: Vec<Claim<'_>> = placed
            .iter()
            .map(|placed| {
                let health = inner.health.of(&placed.node.id);
                Claim {
                    placed,
                    addr: inner.address(&placed.node),
                    standing: health.standing(now),
                    errors: health.errors(now),
                    bytes_per_s: health.bytes_per_s(),
                }
            })
            .collect();
        select::choose(&claims, inner.usual_bytes(), &mut rand::rng())
    }

    /// Asks the first of `candidates` for `key`, and when its answer is late the second as well: who
    /// answers first counts. `fields` are the client's; of these, the ones that tell of it stay here. The
    /// object comes with the pieces of `wanted`, some [`FIRST_PIECES`]; [`Upstream::gather`] gets the others.
    ///
    /// # Panics
    ///
    /// `candidates` is empty.
    pub async fn ask_first(
        &self,
        candidates: &[Candidate],
        key: Key,
        fields: &HeaderMap,
        wanted: Range<u32>,
    ) -> Answered {
        let answered = |by, asked, answer| Answered { answer, by, asked };
        let (first, second) = (&candidates[0], candidates.get(1));
        let asked = Instant::now();
        let mut answer = pin!(self.ask(first, key, fields, &wanted));
        let Some((second, delay)) = second.zip(self.hedge_after(first)) else {
            return answered(0, 1, answer.await);
        };
        tokio::select! {
            biased;
            answer = &mut answer => return answered(0, 1, answer),
            () = sleep(delay) => {}
        }
        if !self.may_hedge() {
            self.0.events.hedged("denied");
            return answered(0, 1, answer.await);
        }
        let mut hedge = pin!(self.ask(second, key, fields, &wanted));
        let result = tokio::select! {
            biased;
            first = &mut answer => match first {
                Ok(object) => answered(0, 2, Ok(object)),
                Err(_) => answered(1, 2, hedge.await),
            },
            second = &mut hedge => match second {
                Ok(object) => {
                    // Its own lateness is all that the first is blamed for.
                    let ms = asked.elapsed().as_secs_f64() * 1e3;
                    self.0.health.answered(&first.id, ms);
                    answered(1, 2, Ok(object))
                }
                Err(_) => answered(0, 2, answer.await),
            },
        };
        self.0.events.hedged(match (&result.answer, result.by) {
            (Ok(_), 0) => "lost",
            (Ok(_), _) => "won",
            (Err(_), _) => "failed",
        });
        result
    }

    pub(super) fn hedge_after(&self, first: &Candidate) -> Option<Duration> {
        let hedges = self.0.hedges.as_ref()?;
        hedges.lock().unwrap_or_else(PoisonError::into_inner).earn();
        self.0.health.late_after(&first.id)
    }

    fn may_hedge(&self) -> bool {
        let hedges = self.0.hedges.as_ref();
        hedges.is_some_and(|budget| {
            budget
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .spend()
        })
    }

    pub(super) async fn ask(
        &self,
        candidate: &Candidate,
        key: Key,
        fields: &HeaderMap,
        wanted: &Range<u32>,
    ) -> Result<PeerObject, PeerError> {
        let (asker, question) = self.admitted(candidate)?;
        let held = asker
            .hold(&candidate.id, &candidate.addr, key, fields, wanted.clone())
            .await;
        let ((mut object, round_trip), question) = question.begun(held)?;
        let ms = round_trip.as_secs_f64() * 1e3;
        self.0.health.answered(&candidate.id, ms);
        self.0.is_usual(object.manifest.length);
        question.watch(&mut object.pieces);
        Ok(object)
    }

    /// Asks one holder for just these pieces of `key`. A peer that fails, now or within them, is ejected.
    pub(super) async fn ask_pieces(
        &self,
        candidate: &Candidate,
        key: Key,
        fields: &HeaderMap,
        run: Run,
    ) -> Result<PieceStream, PeerError> {
        let (asker, question) = self.admitted(candidate)?;
        let sent = asker
            .pieces(&candidate.id, &candidate.addr, key, fields, run)
            .await;
        let (mut pieces, question) = question.begun(sent)?;
        question.watch(&mut pieces);
        Ok(pieces)
    }

    /// These `pieces` of `manifest`, in order, from all of `holders`; the first of these is sending
    /// `under_way` already, from the first of them on.
    pub fn gather(
        &self,
        key: Key,
        fields: &HeaderMap,
        manifest: Arc<Manifest>,
        pieces: Range<u32>,
        under_way: Option<PieceStream>,
        holders: Vec<Candidate>,
    ) -> Gathering {
        Gathering::new(
            self.clone(),
            key,
            fields,
            manifest,
            pieces,
            under_way,
            holders,
        )
    }

    /// A question that may go out.
    fn admitted(&self, candidate: &Candidate) -> Result<(&Asker, Question), PeerError> {
        let peer = &candidate.id;
        let asker = self.0.asker.as_ref().ok_or(PeerError::Denied)?;
        Ok((asker, self.0.question(peer)?))
    }
}

impl Inner {
    /// What a first answer usually has.
    pub(super) fn usual_bytes(&self) -> f64 {
        *self
            .usual_bytes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn is_usual(&self, length: u64) {
        let first = u64::from(FIRST_PIECES) * PIECE_BYTES as u64;
        let length = length.min(first) as f64;
        let mut usual = self
            .usual_bytes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *usual += USUAL_BYTES_ALPHA * (length - *usual);
    }
}
