//! An object that its home shares out among those who want it at the same time: the I/O around [`Wants`],
//! which does the thinking. What the home says comes through a task of its own, and so does each question to
//! a fellow.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use bytes::{Bytes, BytesMut};
use cluster::{
    key::Key,
    manifest::{PIECE_BYTES, PieceHash},
    node::NodeId,
};
use http::HeaderMap;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};

use super::{
    Upstream,
    home::Home,
    peer::{PeerError, Run},
    relayed::{PieceAt, RelayError, Relayed, Said},
    schedule::WINDOW_MAX,
    select::Candidate,
    wants::{Ask, Ended, Wants, Whom},
};

/// What the home says that may wait to be heard: blocks of 64 KiB.
const SAID_WAITING_MAX: usize = 2;

/// A piece that came, and is right.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Its number.
    pub index: u32,
    /// Its hash.
    pub hash: PieceHash,
    /// Its bytes.
    pub bytes: Bytes,
    /// Another node sent it than the home.
    pub from_peer: bool,
}

/// The pieces of an object that is shared out, in the order in which they come. Dropping it ends all questions.
pub struct Fellows {
    upstream: Upstream,
    key: Key,
    fields: HeaderMap,
    home: Home,
    length: u64,
    wants: Wants,
    /// Of the pieces that were told of and are not here.
    hashes: BTreeMap<u32, PieceHash>,
    /// What the home sends just now, and as much as is here of it.
    pushed: Option<(u32, BytesMut)>,
    said: mpsc::Receiver<Result<Said, RelayError>>,
    questions: JoinSet<()>,
    /// Their tasks, which pieces they are for, and whether others than the home are asked.
    running: HashMap<u64, (AbortHandle, u32, bool)>,
    told: mpsc::Sender<(u64, Result<Bytes, PeerError>)>,
    hears: mpsc::Receiver<(u64, Result<Bytes, PeerError>)>,
    _room: Option<OwnedSemaphorePermit>,
}

/// What is asked for, and of which home.
#[derive(Debug)]
pub struct SharedOut<'a> {
    /// The key.
    pub key: Key,
    /// The client's fields; those that tell of it stay here.
    pub fields: &'a HeaderMap,
    /// Who shares it out.
    pub home: &'a Home,
    /// Length of the whole.
    pub length: u64,
}

impl Upstream {
    /// The pieces of an object of which `relayed` tells where they are, beginning with `first`.
    pub fn fellows(&self, what: &SharedOut<'_>, relayed: Relayed, first: PieceAt) -> Fellows {
        Fellows::new(self.clone(), what, relayed, first)
    }

    /// A node as somebody who can be asked for pieces; `None` if it is not known here.
    fn fellow(&self, id: &NodeId) -> Option<Candidate> {
        let view = self.0.view.borrow().clone();
        let addr = self.0.address(view.node(id)?).to_owned();
        Some(somebody(id.clone(), addr))
    }
}

fn somebody(id: NodeId, addr: String) -> Candidate {
    Candidate {
        id,
        addr,
        region: String::new(),
        score: 0.0,
        round_trip_ms: 0.0,
        why: String::new(),
    }
}

impl Fellows {
    fn new(upstream: Upstream, what: &SharedOut<'_>, mut relayed: Relayed, first: PieceAt) -> Self {
        let now = Instant::now();
        let count = what.length.div_ceil(PIECE_BYTES as u64);
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let (window, room) = upstream.0.spare.window(count.saturating_sub(first.index));
        let (say, said) = mpsc::channel(SAID_WAITING_MAX);
        let mut questions = JoinSet::new();
        questions.spawn(async move {
            while let Some(said) = relayed.next().await {
                // Who listens may have left.
                let _ = say.send(said).await;
            }
        });
        // As many as can be told of, with two questions each.
        let (told, hears) = mpsc::channel(WINDOW_MAX as usize * 2);
        let mut fellows = Self {
            upstream,
            key: what.key,
            fields: what.fields.clone(),
            home: what.home.clone(),
            length: what.length,
            wants: Wants::new(first.index, count, window, now),
            hashes: BTreeMap::new(),
            pushed: None,
            said,
            questions,
            running: HashMap::new(),
            told,
            hears,
            _room: room,
        };
        fellows.tell(first, now);
        fellows
    }

    /// The next piece that comes, whichever it is; `None` when all are here. Nothing is lost when the future
    /// is dropped.
    ///
    /// # Errors
    ///
    /// The home failed; pieces that came before are good.
    pub async fn next(&mut self) -> Option<Result<Piece, RelayError>> {
        loop {
            let now = Instant::now();
            self.ask(now);
            if self.wants.is_complete() {
                // Only the end of what the home says is still to come.
                while self.said.recv().await.is_some() {}
                return None;
            }
            if self.wants.is_stuck() {
                let detail = "does not give a piece that it told of".to_owned();
                return Some(Err(RelayError::Home(PeerError::Garbage(detail))));
            }
            let look_again_at = self.wants.look_again_at(now);
            let listens = self.pushed.is_some() || self.wants.hears().is_some();
            let came = tokio::select! {
                Some((question, result)) = self.hears.recv() => self.hear(question, result),
                said = self.said.recv(), if listens => match said {
                    Some(Ok(said)) => match self.listen(said) {
                        Ok(came) => came,
                        Err(error) => return Some(Err(RelayError::Home(error))),
                    },
                    Some(Err(error)) => return Some(Err(error)),
                    None => return Some(Err(RelayError::Home(PeerError::ClosedEarly))),
                },
                () = sleep_until(look_again_at.unwrap_or(now)), if look_again_at.is_some() => None,
            };
            if let Some(piece) = came {
                return Some(Ok(piece));
            }
        }
    }

    fn tell(&mut self, at: PieceAt, now: Instant) {
        self.hashes.insert(at.index, at.hash);
        if at.holder.is_none() {
            self.pushed = Some((
                at.index,
                BytesMut::with_capacity(self.piece_length(at.index)),
            ));
        }
        self.wants.told(at.holder, now);
    }

    /// What the home says.
    fn listen(&mut self, said: Said) -> Result<Option<Piece>, PeerError> {
        let out_of_place = || PeerError::Garbage("a frame out of place".into());
        match (said, &mut self.pushed) {
            (Said::Piece(at), None) if self.wants.hears() == Some(at.index) => {
                self.tell(at, Instant::now());
                Ok(None)
            }
            (Said::Bytes(bytes), Some((index, piece))) => {
                let index = *index;
                piece.extend_from_slice(&bytes);
                let (is, length) = (piece.len(), self.piece_length(index));
                if is < length {
                    return Ok(None);
                }
                let bytes = self.pushed.take().expect("matched above").1.freeze();
                let hash = self.hashes.remove(&index).ok_or_else(out_of_place)?;
                if is > length || *blake3::hash(&bytes).as_bytes() != hash {
                    return Err(PeerError::Corrupt { piece: index });
                }
                let is_new = self.wants.arrived(index, Instant::now());
                Ok(is_new.then_some(Piece {
                    index,
                    hash,
                    bytes,
                    from_peer: false,
                }))
            }
            _ => Err(out_of_place()),
        }
    }

    /// What came of a question; its piece was verified.
    fn hear(&mut self, question: u64, result: Result<Bytes, PeerError>) -> Option<Piece> {
        let now = Instant::now();
        // Of a question that was dropped nothing more is heard.
        let (_, index, from_peer) = self.running.remove(&question)?;
        let how = match result {
            Ok(bytes) => {
                let is_new = self.wants.answered(question, now);
                let hash = self.hashes.remove(&index).filter(|_| is_new)?;
                return Some(Piece {
                    index,
                    hash,
                    bytes,
                    from_peer,
                });
            }
            Err(PeerError::Busy | PeerError::NotYet) => Ended::Later,
            Err(PeerError::Elsewhere(holder)) => Ended::Elsewhere(holder),
            Err(_) => Ended::Failed,
        };
        self.wants.ended(question, how, now);
        None
    }

    fn ask(&mut self, now: Instant) {
        for question in self.wants.pointless() {
            if let Some((task, ..)) = self.running.remove(&question) {
                task.abort();
            }
            self.wants.ended(question, Ended::Dropped, now);
        }
        while self.questions.try_join_next().is_some() {}
        while let Some(ask) = self.wants.ask(now) {
            self.start(ask);
        }
    }

    fn start(&mut self, ask: Ask) {
        let (question, index) = (ask.question, ask.piece);
        let from_peer = matches!(ask.whom, Whom::Fellow(_));
        let (whom, late) = match ask.whom {
            Whom::Fellow(id) => (self.upstream.fellow(&id), None),
            Whom::Home(late) => {
                let home = somebody(self.home.id.clone(), self.home.addr.clone());
                (Some(home), Some(late))
            }
        };
        let hash = self.hashes.get(&index).copied().unwrap_or_default();
        let run = Run::one(index, hash, self.piece_length(index), late);
        let (upstream, key, fields) = (self.upstream.clone(), self.key, self.fields.clone());
        let told = self.told.clone();
        let task = self.questions.spawn(async move {
            let piece = match whom {
                Some(whom) => match upstream.ask_pieces(&whom, key, &fields, run).await {
                    Ok(mut pieces) => pieces.next().await.unwrap_or(Err(PeerError::ClosedEarly)),
                    Err(error) => Err(error),
                },
                None => Err(PeerError::Connect("a node that is not known here".into())),
            };
            // Who reads may have left.
            let _ = told.send((question, piece)).await;
        });
        self.running.insert(question, (task, index, from_peer));
    }

    fn piece_length(&self, index: u32) -> usize {
        let start = u64::from(index) * PIECE_BYTES as u64;
        let left = self.length.saturating_sub(start).min(PIECE_BYTES as u64);
        usize::try_from(left).expect("a piece is at most PIECE_BYTES long")
    }
}

impl fmt::Debug for Fellows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fellows")
            .field("key", &self.key)
            .field("wants", &self.wants)
            .finish_non_exhaustive()
    }
}
