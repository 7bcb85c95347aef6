//! One object from many holders at once: the I/O around [`Schedule`], which does the thinking. Each
//! question has a task of its own that hands over verified pieces; whoever reads gets them in order.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    ops::Range,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use cluster::{
    key::Key,
    manifest::{Manifest, PIECE_BYTES},
};
use http::HeaderMap;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};

use super::{
    Upstream,
    peer::{PeerError, PieceStream, Run},
    schedule::{Ask, COPIES_MAX, Ended, Progress, Schedule, WINDOW_MAX, WINDOW_MIN},
    select::Candidate,
};

/// Pieces ahead of readers, beyond [`WINDOW_MIN`] each, of all fetches of this node together: 128 MiB.
/// Whoever comes when they are given away gets along with the least.
const SPARE_PIECES: usize = 128;

/// Room for the pieces that fetches hold ahead of their readers. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Spare(Arc<Semaphore>);

impl Default for Spare {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(SPARE_PIECES)))
    }
}

impl Spare {
    /// The window of one more fetch of `pieces`, and what keeps it.
    fn window(&self, pieces: u32) -> (u32, Option<OwnedSemaphorePermit>) {
        let more = pieces.min(WINDOW_MAX).saturating_sub(WINDOW_MIN);
        let available = u32::try_from(self.0.available_permits()).unwrap_or(u32::MAX);
        let more = more.min(available);
        match self.0.clone().try_acquire_many_owned(more) {
            Ok(permit) => (WINDOW_MIN + more, Some(permit)),
            Err(_) => (WINDOW_MIN, None),
        }
    }
}

/// No holder is left that could give the next piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no holder is left for piece {piece}")]
pub struct NobodyLeft {
    /// The piece that is missing.
    pub piece: u32,
}

/// The pieces of an object, in order, from whoever has them. Dropping it ends all questions.
pub struct Gathering {
    upstream: Upstream,
    key: Key,
    fields: HeaderMap,
    manifest: Arc<Manifest>,
    schedule: Schedule,
    holders: Vec<Candidate>,
    /// Pieces that came before their turn.
    early: BTreeMap<u32, Bytes>,
    questions: JoinSet<()>,
    running: HashMap<u64, (AbortHandle, Range<u32>)>,
    told: mpsc::Sender<(u64, Told)>,
    hears: mpsc::Receiver<(u64, Told)>,
    _room: Option<OwnedSemaphorePermit>,
}

/// What the task of a question has to say.
enum Told {
    Piece(Bytes),
    Ended(Result<(), PeerError>),
}

impl Gathering {
    /// The pieces of `manifest` from `from` on. `holders` are asked, the first of which is sending
    /// `under_way` already.
    pub(super) fn new(
        upstream: Upstream,
        key: Key,
        fields: &HeaderMap,
        manifest: Arc<Manifest>,
        from: u32,
        under_way: Option<PieceStream>,
        holders: Vec<Candidate>,
    ) -> Self {
        let now = Instant::now();
        let count = u32::try_from(manifest.pieces.len()).unwrap_or(u32::MAX);
        let (window, room) = upstream.0.spare.window(count.saturating_sub(from));
        let mut schedule = Schedule::new(from, count, window, now);
        for holder in &holders {
            let health = upstream.0.health.of(&holder.id);
            let piece_time = health
                .bytes_per_s()
                .map(|rate| PIECE_BYTES as f64 / rate.max(1.0));
            let round_trip = Duration::from_secs_f64(holder.round_trip_ms.clamp(0.0, 1e4) / 1e3);
            schedule.add(round_trip, piece_time, now);
        }
        // Every piece within the window, in as many copies as there can be, and an end for each.
        let (told, hears) = mpsc::channel(WINDOW_MAX as usize * usize::from(COPIES_MAX) * 2);
        let mut gathering = Self {
            upstream,
            key,
            fields: fields.clone(),
            manifest,
            schedule,
            holders,
            early: BTreeMap::new(),
            questions: JoinSet::new(),
            running: HashMap::new(),
            told,
            hears,
            _room: room,
        };
        if let Some(stream) = under_way {
            let ask = gathering.schedule.adopt(0, stream.end(), now);
            gathering.start(ask, Some(stream));
        }
        gathering
    }

    /// The next piece; `None` after the last. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    ///
    /// Nobody is left who could give it; pieces that came before are good.
    pub async fn next(&mut self) -> Option<Result<Bytes, NobodyLeft>> {
        loop {
            let now = Instant::now();
            while let Ok(told) = self.hears.try_recv() {
                self.hear(told, now);
            }
            let taken = self.schedule.take(now);
            self.ask(now);
            if let Some(bytes) = taken.and_then(|piece| self.early.remove(&piece)) {
                return Some(Ok(bytes));
            }
            match self.schedule.progress() {
                Progress::Complete => return None,
                Progress::Stuck => {
                    let piece = self.schedule.position();
                    return Some(Err(NobodyLeft { piece }));
                }
                Progress::Going => {}
            }
            let look_again_at = self.schedule.look_again_at(now);
            tokio::select! {
                Some(told) = self.hears.recv() => self.hear(told, Instant::now()),
                () = sleep_until(look_again_at.unwrap_or(now)), if look_again_at.is_some() => {}
            }
        }
    }

    /// The number of the piece that comes next.
    pub fn position(&self) -> u32 {
        self.schedule.position()
    }

    fn hear(&mut self, (question, told): (u64, Told), now: Instant) {
        // Of a question that was dropped nothing more is heard.
        let Some((_, pieces)) = self.running.get_mut(&question) else {
            return;
        };
        match told {
            Told::Piece(bytes) => {
                let piece = pieces.start;
                pieces.start += 1;
                if self.schedule.arrived(question, now) {
                    self.early.insert(piece, bytes);
                }
            }
            Told::Ended(how) => {
                self.running.remove(&question);
                let ended = match how {
                    Ok(()) => Ended::Done,
                    Err(PeerError::Busy) => Ended::Later,
                    Err(_) => Ended::Failed,
                };
                self.schedule.ended(question, ended, now);
            }
        }
    }

    fn ask(&mut self, now: Instant) {
        for question in self.schedule.pointless() {
            if let Some((task, _)) = self.running.remove(&question) {
                task.abort();
            }
            self.schedule.ended(question, Ended::Dropped, now);
        }
        while self.questions.try_join_next().is_some() {}
        while let Some(ask) = self.schedule.ask(now) {
            self.start(ask, None);
        }
    }

    fn start(&mut self, ask: Ask, under_way: Option<PieceStream>) {
        let (question, told) = (ask.question, self.told.clone());
        let run = Run::of(&self.manifest, ask.pieces.clone());
        let (upstream, key, fields) = (self.upstream.clone(), self.key, self.fields.clone());
        let holder = self.holders[ask.holder].clone();
        let task = self.questions.spawn(async move {
            let stream = match under_way {
                Some(stream) => Ok(stream),
                None => upstream.ask_pieces(&holder, key, &fields, run).await,
            };
            let ended = match stream {
                Ok(stream) => hand_over(question, stream, &told).await,
                Err(error) => Err(error),
            };
            // Who reads may have left.
            let _ = told.send((question, Told::Ended(ended))).await;
        });
        self.running.insert(question, (task, ask.pieces));
    }
}

async fn hand_over(
    question: u64,
    mut stream: PieceStream,
    told: &mpsc::Sender<(u64, Told)>,
) -> Result<(), PeerError> {
    while let Some(piece) = stream.next().await {
        let _ = told.send((question, Told::Piece(piece?))).await;
    }
    Ok(())
}

impl Drop for Gathering {
    fn drop(&mut self) {
        for (number, holder) in self.holders.iter().enumerate() {
            if let Some(rate) = self.schedule.bytes_per_s(number, PIECE_BYTES) {
                let health = &self.upstream.0.health;
                health.with(&holder.id, |h| h.transferred(rate));
            }
        }
    }
}

impl fmt::Debug for Gathering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gathering")
            .field("key", &self.key)
            .field("next", &self.schedule.position())
            .finish_non_exhaustive()
    }
}
