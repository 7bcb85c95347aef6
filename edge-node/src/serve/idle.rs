//! Connections that wait for their next request: when a new client finds no place, the one that has
//! waited for the longest goes.
//!
//! Clients keep connections in store, and a node that is out of places would serve nobody new while it
//! waits for those who ask for nothing. What a connection does costs it a counter, no clock and no lock:
//! only a node that is out of places looks at all of them, at most once a second.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use cluster::net::BoxStream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use super::Connection;

/// How long a connection must have been idle, and how often it is looked for such. A client that has
/// just been answered is about to ask for more.
const IDLE_MIN: Duration = Duration::from_secs(1);
/// How long one that was told to go may take before the next is told.
const GOING: Duration = Duration::from_millis(20);

/// Is called for each connection that goes.
#[derive(Clone)]
pub struct OnClosed(Arc<dyn Fn() + Send + Sync>);

impl OnClosed {
    /// Calls `count`, on the listener's task: it must not block.
    pub fn new(count: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(count))
    }
}

impl fmt::Debug for OnClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnClosed")
    }
}

/// What can be seen of a connection from outside.
#[derive(Debug)]
pub(super) struct Presence {
    connection: Arc<Connection>,
    /// Grows with everything that is read or written; odd while the client takes nothing of what is
    /// ready for it. Only the connection's task writes it.
    moves: AtomicU64,
    told: Notify,
    /// Whether it is to go after its answers, idle or not.
    closing: AtomicBool,
}

impl Presence {
    /// How far the connection has moved, if it waits for its next request.
    fn idle_at(&self) -> Option<u64> {
        let moves = self.moves.load(Ordering::Relaxed);
        let is_idle = moves.is_multiple_of(2) && self.connection.is_answered();
        is_idle.then_some(moves)
    }

    fn moved(&self, is_stuck: bool) {
        let moves = self.moves.load(Ordering::Relaxed);
        let next = (moves | 1) + 1 + u64::from(is_stuck);
        self.moves.store(next, Ordering::Relaxed);
    }

    /// Returns when the connection is to go, and is idle if that matters: to be awaited by its own task,
    /// so that nothing comes in between.
    pub(super) async fn goes(&self) {
        loop {
            self.told.notified().await;
            if self.closing.load(Ordering::Acquire) || self.idle_at().is_some() {
                // hyper does not know of what is owed beneath it.
                return self.connection.has_paid().await;
            }
        }
    }
}

/// Every connection of a listener. A clone-able handle.
#[derive(Clone, Debug, Default)]
pub(super) struct Roster(Arc<Mutex<Present>>);

#[derive(Debug, Default)]
struct Present {
    accepted: u64,
    /// In the order in which they were accepted.
    connections: BTreeMap<u64, Seen>,
}

#[derive(Debug)]
struct Seen {
    presence: Arc<Presence>,
    /// How far it had moved when it was last looked at, and since when it has been there.
    moves: u64,
    since: Instant,
}

/// A connection's line in the roster. Dropping it strikes the line out.
#[derive(Debug)]
pub(super) struct Line {
    roster: Roster,
    number: u64,
}

impl Roster {
    pub(super) fn enter(&self, connection: Arc<Connection>, now: Instant) -> (Arc<Presence>, Line) {
        let presence = Arc::new(Presence {
            connection,
            moves: AtomicU64::new(0),
            told: Notify::new(),
            closing: AtomicBool::new(false),
        });
        let seen = Seen {
            presence: presence.clone(),
            moves: 0,
            since: now,
        };
        let mut present = self.present();
        present.accepted += 1;
        let number = present.accepted;
        present.connections.insert(number, seen);
        let roster = self.clone();
        (presence, Line { roster, number })
    }

    /// Has all of them go, each after what it is owed.
    pub(super) fn close(&self) {
        for Seen { presence, .. } in self.present().connections.values() {
            presence.closing.store(true, Ordering::Release);
            presence.told.notify_one();
        }
    }

    /// Those that have not moved for [`IDLE_MIN`] as far as anybody has looked, the oldest first.
    fn look(&self, now: Instant) -> VecDeque<(Arc<Presence>, u64)> {
        let mut idle = Vec::new();
        for seen in self.present().connections.values_mut() {
            match seen.presence.idle_at() {
                Some(moves) if moves == seen.moves => {
                    if now.duration_since(seen.since) >= IDLE_MIN {
                        idle.push((seen.since, seen.presence.clone(), moves));
                    }
                }
                Some(moves) => (seen.moves, seen.since) = (moves, now),
                None => seen.since = now,
            }
        }
        idle.sort_by_key(|(since, ..)| *since);
        let idle = idle.into_iter();
        idle.map(|(_, presence, moves)| (presence, moves)).collect()
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.0
            .lock()
            .expect("no code panics while it holds this lock")
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.roster.present().connections.remove(&self.number);
    }
}

/// Makes room, one connection at a time.
#[derive(Debug, Default)]
pub(super) struct Usher {
    roster: Roster,
    idle: VecDeque<(Arc<Presence>, u64)>,
    looked: Option<Instant>,
}

impl Usher {
    pub(super) fn new(roster: Roster) -> Self {
        Self {
            roster,
            ..Self::default()
        }
    }

    /// Has idle connections go, one after the other, for as long as it is polled.
    pub(super) async fn make_room(&mut self, closed: &OnClosed) {
        loop {
            match self.idle.pop_front() {
                Some((presence, moves)) if presence.idle_at() == Some(moves) => {
                    presence.told.notify_one();
                    (closed.0)();
                    sleep(GOING).await;
                }
                Some(_) => {}
                None => {
                    if let Some(looked) = self.looked {
                        sleep_until(looked + IDLE_MIN).await;
                    }
                    let now = Instant::now();
                    self.looked = Some(now);
                    self.idle = self.roster.look(now);
                }
            }
        }
    }
}

/// A stream that tells when it moves.
pub(super) struct Watched {
    stream: BoxStream,
    presence: Arc<Presence>,
}

impl Watched {
    pub(super) fn new(stream: BoxStream, presence: Arc<Presence>) -> Self {
        Self { stream, presence }
    }

    fn told<T>(&self, written: Poll<T>) -> Poll<T> {
        self.presence.moved(written.is_pending());
        written
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            self.presence.moved(false);
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.told(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.told(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Stage {
        roster: Roster,
        begun: Instant,
        all: Vec<(Arc<Presence>, Line)>,
    }

    impl Stage {
        /// Connections accepted at these milliseconds.
        fn new(accepted: &[u64]) -> Self {
            let (roster, begun) = (Roster::default(), Instant::now());
            let enter = |at: &u64| {
                let connection = Connection::new(([127, 0, 0, 1], 1).into());
                roster.enter(Arc::new(connection), begun + Duration::from_millis(*at))
            };
            let all = accepted.iter().map(enter).collect();
            Self { roster, begun, all }
        }

        /// Numbers of those that are idle after so many milliseconds, the oldest first.
        fn idle(&self, at: u64) -> Vec<usize> {
            let idle = self.roster.look(self.begun + Duration::from_millis(at));
            let number = |(found, _): &(Arc<Presence>, u64)| {
                let mut all = self.all.iter();
                all.position(|(presence, _)| Arc::ptr_eq(presence, found))
                    .unwrap()
            };
            idle.iter().map(number).collect()
        }
    }

    #[test]
    fn the_oldest_goes_first_and_who_moves_stays() {
        let mut stage = Stage::new(&[500, 0, 900]);
        assert!(stage.idle(999).is_empty());
        assert_eq!(stage.idle(1_500), [1, 0]);
        stage.all[1].0.moved(false);
        assert_eq!(stage.idle(1_900), [0, 2]);
        // Seen with this move at 1,900 for the first time.
        assert_eq!(stage.idle(2_899), [0, 2]);
        assert_eq!(stage.idle(2_900), [0, 2, 1]);
        stage.all.remove(0);
        assert_eq!(stage.idle(2_900), [1, 0]);
    }

    #[test]
    fn who_is_owed_an_answer_is_not_idle() {
        let stage = Stage::new(&[0, 0, 0]);
        let connection = &stage.all[0].0.connection;
        let _ = connection.next_flaw();
        let answering = connection.answering();
        // Of a quick answer, a part is still to be written.
        stage.all[1].0.moved(true);
        assert_eq!(stage.idle(5_000), [2]);
        drop(answering);
        stage.all[1].0.moved(false);
        assert_eq!(stage.idle(5_500), [2]);
        assert_eq!(stage.idle(6_000), [2, 0]);
        assert_eq!(stage.idle(6_500), [2, 0, 1]);
        stage.all[2].0.connection.becomes_tunnel();
        assert_eq!(stage.idle(6_500), [0, 1]);
    }
}
