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
    pub(super) fn window(&self, pieces: u32) -> (u32, Option<OwnedSemaphorePermit>) {
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
    /// These `pieces` of `manifest`. `holders` are asked, the first of which is sending
    /// `under_way` already.
    pub(super) fn new(
        upstream: Upstream,
        key: Key,
        fields: &HeaderMap,
        manifest: Arc<Manifest>,
        pieces: Range<u32>,
        under_way: Option<PieceStream>,
        holders: Vec<Candidate>,
    ) -> Self {
        let now = Instant::now();
        let count = u32::try_from(manifest.pieces.len()).unwrap_or(u32::MAX);
        let Range { start: from, end } = pieces;
        let end = end.min(count);
        let (window, room) = upstream.0.spare.window(end.saturating_sub(from));
        let mut schedule = Schedule::new(from, end, window, now);
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

#[cfg(test)]
mod tests {
    use cluster::{
        manifest::run_hash,
        node::{NodeId, NodeInfo, Role},
        view::ClusterView,
    };
    use http::{Request, Response};
    use http_body_util::Full;
    use hyper::body::Incoming;
    use tokio::{sync::watch, time::sleep};

    use super::*;
    use crate::upstream::{
        health::Standing,
        peer::{self, ANSWER_FIELD, asked_for},
        schedule::FIRST_PIECES,
        scripted::{Counted, Scripted, config, serving},
    };

    const PIECES: usize = 12;
    const ALL: Range<u32> = 0..u32::MAX;
    const FIRST: Range<u32> = 0..FIRST_PIECES;

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn body() -> Vec<u8> {
        let length = (PIECES - 1) * PIECE_BYTES + 77;
        (0..length).map(|i| (i / 9 + i % 241) as u8).collect()
    }

    fn manifest(body: &[u8]) -> Manifest {
        Manifest {
            status: 200,
            fields: vec![],
            selected_by: vec![],
            length: body.len() as u64,
            pieces: body
                .chunks(PIECE_BYTES)
                .map(|piece| *blake3::hash(piece).as_bytes())
                .collect(),
            fetched_by: id("edge-9"),
            fetched_at: 1,
            as_of: cluster::purge::Position::default(),
        }
    }

    /// How a peer answers when it is asked for pieces.
    #[derive(Clone, Copy)]
    enum Manner {
        Honest,
        /// After so many milliseconds.
        Late(u64),
        /// Another byte in every answer that has no manifest.
        Lying,
        /// It has something else.
        Other,
        Busy,
        /// Sends all but the last byte.
        Short,
    }

    async fn peer(manner: Manner) -> Scripted {
        let body = body();
        let manifest = manifest(&body);
        serving(move |request: Request<Incoming>| {
            let asked = asked_for(request.headers()).unwrap();
            let at = |piece: u32| (piece as usize * PIECE_BYTES).min(body.len());
            let (start, end) = (at(asked.pieces.start), at(asked.pieces.end));
            let mut bytes = body[start..end].to_vec();
            let refuse = |status: u16, word| {
                let answer = Response::builder()
                    .status(status)
                    .header(ANSWER_FIELD, word);
                answer.body(Full::default()).unwrap()
            };
            let answer = match (manner, asked.hash) {
                (Manner::Busy, _) => refuse(503, "busy"),
                (Manner::Other, Some(_)) => refuse(404, "other"),
                (_, Some(hash)) => {
                    let end = (asked.pieces.end as usize).min(PIECES);
                    let pieces = &manifest.pieces[asked.pieces.start as usize..end];
                    assert_eq!(hash, run_hash(pieces));
                    match manner {
                        Manner::Lying => bytes[0] ^= 1,
                        Manner::Short => bytes.truncate(bytes.len() - 1),
                        _ => {}
                    }
                    Response::new(Full::from(bytes))
                }
                (_, None) => {
                    let head = peer::encode_answer_head(&manifest.encode().unwrap());
                    let mut answer = Response::new(Full::from([&*head, &bytes].concat()));
                    peer::set_age(answer.headers_mut(), Duration::ZERO);
                    answer
                }
            };
            async move {
                if let Manner::Late(ms) = manner {
                    sleep(Duration::from_millis(ms)).await;
                }
                answer
            }
        })
        .await
    }

    fn candidate(number: usize, peer: &Scripted) -> Candidate {
        Candidate {
            id: id(&format!("edge-{number}")),
            region: String::new(),
            addr: peer.address(),
            score: 1.0,
            round_trip_ms: 1.0,
            why: String::new(),
        }
    }

    struct Bench {
        upstream: Upstream,
        events: Arc<Counted>,
        peers: Vec<Scripted>,
    }

    impl Bench {
        async fn new(manners: &[Manner]) -> Self {
            let mut peers = Vec::new();
            for manner in manners {
                peers.push(peer(*manner).await);
            }
            let me = NodeInfo::new(id("me"), Role::Edge);
            let view = watch::Sender::new(Arc::new(ClusterView::new([me])));
            let events = Arc::<Counted>::default();
            let upstream = Upstream::new(config(id("me"), view.subscribe(), events.clone()));
            Self {
                upstream,
                events,
                peers,
            }
        }

        fn candidates(&self) -> Vec<Candidate> {
            let peers = self.peers.iter().enumerate();
            peers
                .map(|(number, peer)| candidate(number, peer))
                .collect()
        }

        /// All bytes, and what it ended with if they are not.
        async fn gather(&self) -> (Vec<u8>, Option<NobodyLeft>) {
            let (key, fields, holders) = (Key(7), HeaderMap::new(), self.candidates());
            let answered = self.upstream.ask_first(&holders, key, &fields, FIRST).await;
            let object = answered.answer.unwrap();
            assert_eq!((answered.by, answered.asked), (0, 1));
            assert_eq!(object.pieces.end(), FIRST_PIECES);
            let manifest = Arc::new(object.manifest);
            let mut gathering =
                self.upstream
                    .gather(key, &fields, manifest, ALL, Some(object.pieces), holders);
            let mut bytes = Vec::new();
            while let Some(piece) = gathering.next().await {
                match piece {
                    Ok(piece) => bytes.extend_from_slice(&piece),
                    Err(nobody) => return (bytes, Some(nobody)),
                }
            }
            (bytes, None)
        }

        fn standing(&self, number: usize) -> Standing {
            let health = self.upstream.0.health.of(&id(&format!("edge-{number}")));
            health.standing(Instant::now())
        }
    }

    #[tokio::test]
    async fn who_lies_fails_is_busy_or_has_something_else_is_done_without() {
        let bench = Bench::new(&[
            Manner::Honest,
            Manner::Lying,
            Manner::Short,
            Manner::Busy,
            Manner::Other,
        ])
        .await;
        let (bytes, error) = bench.gather().await;
        assert!(bytes == body() && error.is_none(), "{error:?}");
        let standings: Vec<_> = (0..5).map(|number| bench.standing(number)).collect();
        assert_eq!(
            standings,
            [
                Standing::Good,
                Standing::Ejected,
                Standing::Ejected,
                Standing::Busy,
                Standing::Good
            ]
        );
        for told in ["edge-1 corrupt", "edge-2 closed_early", "edge-4 other"] {
            assert_eq!(bench.events.of(told), 1, "{told}: {:?}", bench.events.all());
        }
    }

    #[tokio::test]
    async fn when_nobody_is_left_it_is_said_from_where_on() {
        let bench = Bench::new(&[Manner::Lying, Manner::Other]).await;
        let (bytes, error) = bench.gather().await;
        assert!(bytes == body()[..FIRST_PIECES as usize * PIECE_BYTES]);
        assert_eq!(
            error,
            Some(NobodyLeft {
                piece: FIRST_PIECES
            })
        );
    }

    #[tokio::test]
    async fn room_beyond_the_least_is_given_away_once_and_comes_back() {
        let spare = Spare::default();
        let mut kept = Vec::new();
        let full = WINDOW_MAX - WINDOW_MIN;
        for _ in 0..SPARE_PIECES as u32 / full {
            let (window, room) = spare.window(1_000);
            assert_eq!(window, WINDOW_MAX);
            kept.push(room);
        }
        let rest = SPARE_PIECES as u32 % full;
        let (window, last) = spare.window(1_000);
        assert_eq!(window, WINDOW_MIN + rest);
        assert_eq!(spare.window(1_000).0, WINDOW_MIN);
        drop((kept, last));
        assert_eq!(spare.window(1_000).0, WINDOW_MAX);
        assert_eq!(spare.window(3).0, WINDOW_MIN);
    }

    #[tokio::test]
    async fn a_late_answer_is_overtaken_within_the_budget() {
        let bench = Bench::new(&[Manner::Late(1_500), Manner::Honest]).await;
        let (holders, fields) = (bench.candidates(), HeaderMap::new());
        for _ in 0..20 {
            bench.upstream.0.health.answered(&holders[0].id, 5.0);
            bench.upstream.hedge_after(&holders[0]);
        }
        let begun = Instant::now();
        let first = bench
            .upstream
            .ask_first(&holders, Key(7), &fields, FIRST)
            .await;
        assert!(first.answer.is_ok() && begun.elapsed() < Duration::from_millis(1_400));
        assert_eq!((first.by, first.asked), (1, 2));
        assert_eq!(bench.events.of("hedge won"), 1);
        assert_eq!(bench.standing(0), Standing::Good, "lateness is no failure");
        // What was saved up is spent: the next one waits.
        let next = bench
            .upstream
            .ask_first(&holders, Key(7), &fields, FIRST)
            .await;
        assert!(next.answer.is_ok());
        assert_eq!((next.by, next.asked), (0, 1));
        assert_eq!(bench.events.of("hedge denied"), 1);
    }
}
