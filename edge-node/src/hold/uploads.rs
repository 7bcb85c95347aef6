//! What peers may have of this node at once: so many transfers, and so many bytes per second of all of
//! them. Whoever would have to wait for long is refused at once and asks elsewhere.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep_until},
};

/// Who comes when more than this is promised to others is refused: elsewhere it waits for less.
const BACKLOG_MAX: Duration = Duration::from_secs(1);
/// Sent in one go where there is a limit; transfers take turns by parts of this size.
const PART_BYTES: usize = 64 << 10;
/// What an idle line may send at once, beyond its rate.
const BURST: Duration = Duration::from_millis(20);
/// Questions to fill at once: each may wait for the origin, and holds two blocks of 64 KiB at most.
const RELAYS_MAX: usize = 1024;

/// The uploads of this node. Clones are the same.
#[derive(Clone, Debug)]
pub struct Uploads {
    places: Arc<Semaphore>,
    relays: Arc<Semaphore>,
    line: Option<Arc<Line>>,
}

#[derive(Debug)]
struct Line {
    bytes_per_s: u64,
    /// Promised and not sent yet.
    promised: AtomicU64,
    pace: Mutex<Pace>,
}

/// When the next part may be sent. Pure: a token bucket, counted in time.
#[derive(Debug)]
struct Pace {
    free_at: Instant,
}

impl Pace {
    /// When a part of `bytes` may go out that is ready at `now`.
    fn turn(&mut self, bytes: usize, bytes_per_s: u64, now: Instant) -> Instant {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let turn = self.free_at.max(earliest);
        self.free_at = turn + Duration::from_secs_f64(bytes as f64 / bytes_per_s.max(1) as f64);
        turn
    }
}

/// Whether somebody who comes when so much is promised is refused.
fn is_behind(promised: u64, bytes_per_s: u64) -> bool {
    promised as f64 > bytes_per_s as f64 * BACKLOG_MAX.as_secs_f64()
}

impl Uploads {
    /// At most `places` at once, and `bytes_per_s` of all of them together; 0 for no limit.
    pub fn new(places: usize, bytes_per_s: u64) -> Self {
        let line = Line {
            bytes_per_s,
            promised: AtomicU64::new(0),
            pace: Mutex::new(Pace {
                free_at: Instant::now(),
            }),
        };
        Self {
            places: Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS))),
            relays: Arc::new(Semaphore::new(RELAYS_MAX)),
            line: (bytes_per_s > 0).then(|| Arc::new(line)),
        }
    }

    /// A place for one more; `None` when this node is busy.
    pub fn begin(&self) -> Option<Upload> {
        let behind = |line: &Arc<Line>| is_behind(line.promised.load(Relaxed), line.bytes_per_s);
        if self.line.as_ref().is_some_and(behind) {
            return None;
        }
        Some(Upload {
            _place: self.places.clone().try_acquire_owned().ok()?,
            line: self.line.clone(),
            promised: 0,
            turn: None,
        })
    }

    /// A place for a question to fill; `None` when there are too many. It shares the line and is not refused
    /// for what is promised: elsewhere it would cost the origin a request.
    pub fn relay(&self) -> Option<Upload> {
        Some(Upload {
            _place: self.relays.clone().try_acquire_owned().ok()?,
            line: self.line.clone(),
            promised: 0,
            turn: None,
        })
    }
}

/// One upload: keeps its place, and what is still promised of it, until it is dropped.
#[derive(Debug)]
pub struct Upload {
    _place: OwnedSemaphorePermit,
    line: Option<Arc<Line>>,
    promised: u64,
    /// When the next part may be sent, and how many bytes it is.
    turn: Option<(Pin<Box<Sleep>>, usize)>,
}

impl Upload {
    /// That many bytes will be sent.
    pub fn promise(&mut self, bytes: u64) {
        if let Some(line) = &self.line {
            line.promised.fetch_add(bytes, Relaxed);
            self.promised += bytes;
        }
    }

    /// Waits for the turn of this upload: how many of the bytes `at_hand` may be sent now.
    pub fn poll_turn(&mut self, context: &mut Context<'_>, at_hand: usize) -> Poll<usize> {
        let Some(line) = &self.line else {
            return Poll::Ready(at_hand);
        };
        let (turn, bytes) = self.turn.get_or_insert_with(|| {
            let bytes = at_hand.min(PART_BYTES);
            let mut pace = line.pace.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = pace.turn(bytes, line.bytes_per_s, Instant::now());
            (Box::pin(sleep_until(turn)), bytes)
        });
        ready!(turn.as_mut().poll(context));
        let bytes = *bytes;
        self.turn = None;
        let sent = self.promised.min(bytes as u64);
        line.promised.fetch_sub(sent, Relaxed);
        self.promised -= sent;
        Poll::Ready(bytes)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            line.promised.fetch_sub(self.promised, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use proptest::prelude::*;

    use super::*;

    const RATE: u64 = 1 << 20;

    async fn send(upload: &mut Upload, bytes: usize) {
        upload.promise(bytes as u64);
        let mut left = bytes;
        while left > 0 {
            left -= poll_fn(|context| upload.poll_turn(context, left)).await;
        }
    }

    #[tokio::test]
    async fn all_together_keep_to_the_rate() {
        let uploads = Uploads::new(8, 16 * RATE);
        let begun = Instant::now();
        let transfers = (0..4).map(|_| {
            let mut upload = uploads.begin().unwrap();
            async move { send(&mut upload, 1 << 20).await }
        });
        futures_util::future::join_all(transfers).await;
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(225), "{took:?}");
    }

    #[tokio::test]
    async fn who_would_wait_for_long_is_refused_at_once() {
        let uploads = Uploads::new(8, RATE);
        let mut first = uploads.begin().unwrap();
        first.promise(RATE);
        let mut second = uploads.begin().expect("a second's worth may be promised");
        second.promise(1);
        assert!(uploads.begin().is_none());
        drop(first);
        assert!(uploads.begin().is_some(), "what is dropped is not promised");
        assert!(Uploads::new(8, 0).line.is_none());
    }

    #[test]
    fn places_come_back() {
        let uploads = Uploads::new(1, 0);
        let first = uploads.begin().unwrap();
        assert!(uploads.begin().is_none());
        drop(first);
        assert!(uploads.begin().is_some());
    }

    proptest! {
        /// Over any time, no more is sent than the rate allows, one burst and one part beyond.
        #[test]
        fn the_rate_is_never_exceeded(
            parts in prop::collection::vec((0..400_u64, 1..PART_BYTES), 1..200),
        ) {
            let begun = Instant::now();
            let mut pace = Pace { free_at: begun };
            let (mut now, mut sent) = (begun, Vec::new());
            for (pause_ms, bytes) in parts {
                now += Duration::from_millis(pause_ms);
                let turn = pace.turn(bytes, RATE, now).max(now);
                sent.push((turn, bytes));
            }
            for (i, (from, _)) in sent.iter().enumerate() {
                for (j, (until, _)) in sent.iter().enumerate().skip(i) {
                    let bytes: usize = sent[i..=j].iter().map(|(_, bytes)| bytes).sum();
                    let seconds = (*until - *from + BURST).as_secs_f64();
                    prop_assert!(bytes as f64 <= seconds * RATE as f64 + PART_BYTES as f64 + 1.0);
                }
            }
        }
    }
}
