//! One filler, many followers: a body while it grows, and the right to make it grow.
//!
//! **Who may write:** only the [`Filler`](super::Filler)'s task appends; a body goes from growing to ended only
//! once. Followers hold a position and are woken by a `watch`; they never poll.
//!
//! **Where the bytes are:** the piece that is growing is in memory as the chunks that arrived. A
//! finished piece is held until the store has it ([`UNWRITTEN_PIECES_MAX`] at most), and is afterwards
//! read from whichever tier has it ([`Pieces`]). When nothing can be stored (disk full, body over the limit), pieces
//! stay in memory until the slowest follower has passed them, and the filler waits for it
//! ([`WINDOW_PIECES`]); such a body takes no new followers.
//!
//! **Who else may have them:** other nodes, piece by piece, as soon as a piece's hash is known. Of a body that
//! comes in from several nodes at once, pieces that came before their turn are in memory until it is theirs;
//! who fetches them bounds how many.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use cluster::manifest::{PIECE_BYTES, PieceHash};
use http::HeaderMap;
use tokio::sync::{Notify, watch};

use super::{pieces::Pieces, store::PieceRef};

/// Finished pieces that may wait for the disk, per fill: enough to hide one slow write, small
/// enough that a thousand fills of large bodies do not fill the memory.
pub const UNWRITTEN_PIECES_MAX: usize = 4;
/// Pieces kept in memory for followers of a body that is not stored.
pub const WINDOW_PIECES: usize = 4;

/// Why a body that others were following ended before its time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Its source failed: a short body, a broken connection, silence.
    #[error("the body's source failed: {0}")]
    Source(String),
    /// A part that a follower still needed is no longer there.
    #[error("a part of the body is no longer there")]
    Gone,
    /// The fill ended without saying why: its task is gone.
    #[error("the fill was abandoned")]
    Abandoned,
}

/// A body that is growing, or has just ended.
pub struct Growing {
    state: Mutex<State>,
    /// Moves with every change that a follower could wait for.
    changed: watch::Sender<()>,
    /// Told when a follower moves on or leaves; only a fill without storage waits for it.
    passed: Notify,
    pieces: Pieces,
    trailers: OnceLock<HeaderMap>,
    /// Bytes that others sent than who tells of the object.
    from_peers: AtomicU64,
    /// See [`Growing::reaches`].
    reach: AtomicU8,
}

struct State {
    done: Vec<Piece>,
    /// Of the pieces that are done; that of the last one may not be known yet.
    hashes: Vec<PieceHash>,
    /// Pieces that came before their turn.
    ahead: BTreeMap<u32, (Bytes, PieceHash)>,
    tail: Vec<Bytes>,
    tail_bytes: usize,
    end: Option<Result<(), BodyError>>,
    /// Position of each follower, by a number of its own.
    followers: HashMap<u64, u64>,
    next_follower: u64,
    /// Whether finished pieces go to the store.
    stored: bool,
}

enum Piece {
    Memory(Bytes),
    Disk(PieceRef, PieceHash, usize),
    Gone,
}

impl Growing {
    /// An empty body whose finished pieces can be read back from `pieces`, and that [reaches](Growing::reaches) so
    /// far.
    pub fn new(pieces: Pieces, reach: u8) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                done: Vec::new(),
                hashes: Vec::new(),
                ahead: BTreeMap::new(),
                tail: Vec::new(),
                tail_bytes: 0,
                end: None,
                followers: HashMap::new(),
                next_follower: 0,
                stored: true,
            }),
            changed: watch::Sender::new(()),
            passed: Notify::new(),
            pieces,
            trailers: OnceLock::new(),
            from_peers: AtomicU64::new(0),
            reach: AtomicU8::new(reach),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no code panics while it holds this lock")
    }

    /// A follower that will read from `position` on.
    ///
    /// # Errors
    ///
    /// [`BodyError::Gone`] when the body is not stored and that part has been dropped already.
    pub fn follow(self: &Arc<Self>, position: u64) -> Result<Follower, BodyError> {
        let mut state = self.lock();
        let index = piece_index(position);
        if matches!(state.done.get(index), Some(Piece::Gone)) {
            return Err(BodyError::Gone);
        }
        let number = state.next_follower;
        state.next_follower += 1;
        state.followers.insert(number, position);
        drop(state);
        Ok(Follower {
            body: self.clone(),
            number,
            position,
            cursor: (0, 0, 0),
            changed: self.changed.subscribe(),
        })
    }

    /// Appends a chunk of the piece that is growing; `chunk` must not reach beyond its end.
    pub fn push(&self, chunk: Bytes) {
        let mut state = self.lock();
        debug_assert!(state.end.is_none() && state.tail_bytes + chunk.len() <= PIECE_BYTES);
        state.tail_bytes += chunk.len();
        state.tail.push(chunk);
        drop(state);
        self.changed.send_replace(());
    }

    /// How many bytes are missing to the end of the growing piece.
    pub fn room(&self) -> usize {
        PIECE_BYTES - self.lock().tail_bytes
    }

    /// How many bytes there are so far.
    pub fn length(&self) -> u64 {
        let state = self.lock();
        let (last, before) = match state.done.split_last() {
            Some((Piece::Memory(last), before)) => (last.len(), before),
            // The last piece of all is the only one that may be shorter.
            Some((Piece::Disk(_, _, length), before)) => (*length, before),
            Some((Piece::Gone, before)) => (PIECE_BYTES, before),
            None => (0, &[][..]),
        };
        (before.len() * PIECE_BYTES + last + state.tail_bytes) as u64
    }

    /// Closes the growing piece and returns its number and bytes; `None` when it is empty.
    pub fn finish_piece(&self) -> Option<(u32, Bytes)> {
        let mut state = self.lock();
        if state.tail_bytes == 0 {
            return None;
        }
        // Always a copy: a chunk is a slice of a read buffer many times its size, which it would
        // keep alive for as long as the object stays in memory.
        let mut whole = BytesMut::with_capacity(state.tail_bytes);
        state
            .tail
            .iter()
            .for_each(|chunk| whole.extend_from_slice(chunk));
        let bytes = whole.freeze();
        let index = u32::try_from(state.done.len()).expect("object_max keeps pieces under 2^32");
        state.done.push(Piece::Memory(bytes.clone()));
        state.tail.clear();
        state.tail_bytes = 0;
        Some((index, bytes))
    }

    /// So many of the bytes come from peers, and not from where the entry says that it is from.
    pub fn came_from_peers(&self, bytes: u64) {
        self.from_peers.fetch_add(bytes, Ordering::Relaxed);
    }

    /// How many of so many bytes that were `sent` of it came from peers: as large a part as of all.
    pub fn from_peers(&self, sent: u64) -> u64 {
        let from_peers = self.from_peers.load(Ordering::Relaxed);
        if from_peers == 0 {
            return 0;
        }
        let part = u128::from(sent) * u128::from(from_peers) / u128::from(self.length().max(1));
        u64::try_from(part).map_or(sent, |part| part.min(sent))
    }

    /// The next piece that is done and whose hash was not known has this one.
    pub fn hashed(&self, hash: PieceHash) {
        self.lock().hashes.push(hash);
        self.changed.send_replace(());
    }

    /// Piece `index` came before its turn, and has this hash.
    pub fn put_ahead(&self, index: u32, bytes: Bytes, hash: PieceHash) {
        self.lock().ahead.insert(index, (bytes, hash));
        self.changed.send_replace(());
    }

    /// Closes the next piece, if it came before its turn: its number, bytes and hash. One that is shorter than
    /// others, the last, becomes the growing one, and is closed like any other.
    pub fn finish_ahead(&self) -> Option<(u32, Bytes, PieceHash)> {
        let mut state = self.lock();
        let index = u32::try_from(state.done.len()).ok()?;
        let (bytes, hash) = state.ahead.remove(&index)?;
        debug_assert!(state.tail_bytes == 0 && state.hashes.len() == state.done.len());
        let is_full = bytes.len() == PIECE_BYTES;
        if is_full {
            state.done.push(Piece::Memory(bytes.clone()));
            state.hashes.push(hash);
        } else {
            state.tail_bytes = bytes.len();
            state.tail.push(bytes.clone());
        }
        drop(state);
        self.changed.send_replace(());
        is_full.then_some((index, bytes, hash))
    }

    /// Waits until piece `index` is here, in its turn or before: its hash.
    ///
    /// # Errors
    ///
    /// The body ended before.
    pub async fn piece_hash(&self, index: u32) -> Result<PieceHash, BodyError> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            {
                let state = self.lock();
                let ahead = || state.ahead.get(&index).map(|(_, hash)| hash);
                if let Some(hash) = state.hashes.get(index as usize).or_else(ahead) {
                    return Ok(*hash);
                }
                match &state.end {
                    Some(Err(error)) => return Err(error.clone()),
                    Some(Ok(())) => return Err(BodyError::Gone),
                    None => {}
                }
            }
            if changed.changed().await.is_err() {
                return Err(BodyError::Abandoned);
            }
        }
    }

    /// The bytes of a piece that [is here](Growing::piece_hash).
    ///
    /// # Errors
    ///
    /// It is no longer, or cannot be read back.
    pub async fn read_piece(&self, index: u32) -> Result<Bytes, BodyError> {
        let (piece, hash) = {
            let state = self.lock();
            if let Some((bytes, _)) = state.ahead.get(&index) {
                return Ok(bytes.clone());
            }
            match state.done.get(index as usize) {
                Some(Piece::Memory(bytes)) => return Ok(bytes.clone()),
                Some(Piece::Disk(piece, hash, _)) => (piece.clone(), *hash),
                Some(Piece::Gone) | None => return Err(BodyError::Gone),
            }
        };
        let read = self.pieces.read(&piece, &hash).await;
        read.map(|(bytes, _)| bytes)
            .map_err(|error| BodyError::Source(error.to_string()))
    }

    /// Piece `index` can be read from the store from now on.
    pub fn stored(&self, index: u32, piece: PieceRef, hash: PieceHash) {
        if let Some(slot) = self.lock().done.get_mut(index as usize)
            && let Piece::Memory(bytes) = slot
        {
            *slot = Piece::Disk(piece, hash, bytes.len());
        }
    }

    /// From now on nothing is stored: finished pieces live in memory only until they are passed.
    pub fn stop_storing(&self) {
        self.lock().stored = false;
    }

    /// Waits until there is room in memory for another piece of a body that is not stored. `false`
    /// when nobody follows any more.
    pub async fn room_in_window(&self) -> bool {
        loop {
            let passed = self.passed.notified();
            {
                let mut state = self.lock();
                let Some(slowest) = state.followers.values().min().copied() else {
                    return false;
                };
                let passed_pieces = piece_index(slowest).min(state.done.len());
                for piece in &mut state.done[..passed_pieces] {
                    if matches!(piece, Piece::Memory(_)) {
                        *piece = Piece::Gone;
                    }
                }
                let kept = state.done[passed_pieces..]
                    .iter()
                    .filter(|p| matches!(p, Piece::Memory(_)))
                    .count();
                if kept < WINDOW_PIECES {
                    return true;
                }
            }
            passed.await;
        }
    }

    /// The trailers that came behind the body; to be told before its end.
    ///
    /// They are for those who are there when it ends, and not stored: what is cached has a length, and
    /// HTTP/1.1 has no trailers beside one (RFC 9110 §6.5.1 lets them be discarded).
    pub fn trail(&self, trailers: HeaderMap) {
        // A body has one trailer section.
        let _ = self.trailers.set(trailers);
    }

    /// The trailers, if the body has ended with any.
    pub fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.get()
    }

    /// Whose answers the rest of this body may have to wait for: a number that means something to those who fill, as
    /// [of a fill](super::Filler::reaches) before it.
    pub fn reaches(&self, reach: u8) {
        self.reach.store(reach, Ordering::SeqCst);
    }

    /// How far it [reaches](Growing::reaches); `None` when it has ended.
    pub fn reach(&self) -> Option<u8> {
        let grows = self.lock().end.is_none();
        grows.then(|| self.reach.load(Ordering::SeqCst))
    }

    /// Waits for its end, and says how that was; follows nothing, and holds nothing up.
    ///
    /// # Errors
    ///
    /// It ended before its time.
    pub async fn ended(&self) -> Result<(), BodyError> {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(how) = &self.lock().end {
                return how.clone();
            }
            // The sender lives as long as this does.
            let _ = changed.changed().await;
        }
    }

    /// Ends the body; only the first call counts.
    pub fn end(&self, how: Result<(), BodyError>) {
        let mut state = self.lock();
        if state.end.is_none() {
            state.end = Some(how);
        }
        drop(state);
        self.changed.send_replace(());
    }
}

fn piece_index(position: u64) -> usize {
    usize::try_from(position / PIECE_BYTES as u64).unwrap_or(usize::MAX)
}

/// Reads a growing body at its own pace. Dropping it tells the filler that it has left.
pub struct Follower {
    body: Arc<Growing>,
    number: u64,
    position: u64,
    /// Chunks of the growing piece that lie before `position`: which piece, how many, and their bytes.
    cursor: (usize, usize, usize),
    changed: watch::Receiver<()>,
}

enum Next {
    Bytes(Bytes),
    Read(PieceRef, PieceHash, usize),
    End(Result<(), BodyError>),
    Wait,
}

impl Follower {
    /// The next bytes, as many as are there without copying (a chunk, or what is left of a piece);
    /// `None` at the end.
    ///
    /// # Errors
    ///
    /// The body ended early, or a part could not be read back.
    pub async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        loop {
            self.changed.mark_unchanged();
            let bytes = match self.look() {
                Next::Bytes(bytes) => bytes,
                Next::Read(piece, hash, offset) => {
                    match self.body.pieces.read(&piece, &hash).await {
                        Ok((bytes, _)) => bytes.slice(offset..),
                        Err(error) => return Some(Err(BodyError::Source(error.to_string()))),
                    }
                }
                Next::End(Ok(())) => return None,
                Next::End(Err(error)) => return Some(Err(error)),
                Next::Wait => {
                    if self.changed.changed().await.is_err() {
                        return Some(Err(BodyError::Abandoned));
                    }
                    continue;
                }
            };
            self.pass(self.position + bytes.len() as u64);
            return Some(Ok(bytes));
        }
    }

    /// What lies before `position` is no longer needed here.
    pub fn pass(&mut self, position: u64) {
        self.position = position;
        let mut state = self.body.lock();
        state.followers.insert(self.number, position);
        let waited_for = !state.stored;
        drop(state);
        if waited_for {
            self.body.passed.notify_one();
        }
    }

    fn look(&mut self) -> Next {
        let body = self.body.clone();
        let state = body.lock();
        let index = piece_index(self.position);
        let mut offset = usize::try_from(self.position % PIECE_BYTES as u64).unwrap_or(0);
        if let Some(piece) = state.done.get(index) {
            match piece {
                Piece::Memory(bytes) if offset < bytes.len() => {
                    return Next::Bytes(bytes.slice(offset..));
                }
                Piece::Disk(piece, hash, length) if offset < *length => {
                    return Next::Read(piece.clone(), *hash, offset);
                }
                Piece::Gone => return Next::End(Err(BodyError::Gone)),
                // The last piece, read to its end.
                Piece::Memory(_) | Piece::Disk(..) => {}
            }
        } else if index == state.done.len() {
            // From where the last look ended: a body may come in a million chunks.
            let (piece, passed, bytes) = self.cursor;
            let mut passed = if piece == index { passed } else { 0 };
            offset -= if piece == index { bytes } else { 0 };
            let mut skipped = if piece == index { bytes } else { 0 };
            while let Some(chunk) = state.tail.get(passed) {
                if offset < chunk.len() {
                    self.cursor = (index, passed, skipped);
                    return Next::Bytes(chunk.slice(offset..));
                }
                offset -= chunk.len();
                skipped += chunk.len();
                passed += 1;
            }
            self.cursor = (index, passed, skipped);
        }
        match &state.end {
            Some(end) => Next::End(end.clone()),
            None => Next::Wait,
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.body.lock().followers.remove(&self.number);
        self.body.passed.notify_one();
    }
}
