//! Which pieces of an object to ask of whom, and when: the thinking of [`super::many`]. Pure: it is told
//! what happened and what time it is, and says what to ask next.
//!
//! Pieces go to the reader in order, so what counts is when a piece is *needed*. The next ones are asked
//! of whoever would have them first; a slow holder gets pieces so far ahead that it will have sent them
//! in time. What the reader waits for is asked again elsewhere once another would have had it twice over,
//! and the first copy wins. Nobody has more on its way than its way holds.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    time::Duration,
};

use tokio::time::Instant;

/// Pieces that the first question to the first holder asks for, before the size of the object is known:
/// most objects fit, and what is larger goes on with everybody.
pub const FIRST_PIECES: u32 = 4;
/// Pieces ahead of the reader, in memory or on their way, that every fetch may have: two each of the
/// first holder and of three others.
pub const WINDOW_MIN: u32 = 8;
/// The same of a fetch that found room for more: a second of a fast line, or as much as lets a holder at
/// a tenth of the others' rate take part.
pub const WINDOW_MAX: u32 = 32;
/// Copies of one piece on their way at once: one more than one pays for a piece at most.
pub const COPIES_MAX: u8 = 2;
/// Pieces on their way from one holder: a line of 100 ms at 80 MB/s, and no more of the window.
const HOLDER_PIECES_MAX: u32 = 16;
/// Work for a holder beyond its round trips, so that the way stays filled and questions are few.
const AHEAD: Duration = Duration::from_millis(25);
/// How far ahead of the reader pieces are asked for, by the rate at which it took the last ones.
const READ_AHEAD: Duration = Duration::from_secs(2);
/// Assumed of a holder while nothing at all is known: 12.5 MB/s, a tenth of a gigabit.
const PIECE_TIME_UNKNOWN: f64 = (1 << 20) as f64 / 12.5e6;
/// Weight of the newest piece in a holder's average.
const PIECE_TIME_ALPHA: f64 = 0.25;
/// A piece that the reader waits for is late when another would have had it this many times over …
const LATE_FACTOR: f64 = 2.0;
/// … and a moment more, within which a busy machine may just not have looked.
const LATE_GRACE: Duration = Duration::from_millis(50);
/// First pause after a holder said that it cannot now; doubles with each in a row.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// A holder that says so this many times in a row is given up: the last pause was over a second.
const PAUSES_MAX: u32 = 6;

/// How a question ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All that was asked for came.
    Done,
    /// The holder cannot now: it is busy, or does not have those pieces yet.
    Later,
    /// It cannot at all, or failed.
    Failed,
    /// Nobody wanted the rest any more: it had come from elsewhere.
    Dropped,
}

/// What to ask next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Number of the question, for what is told of it later.
    pub question: u64,
    /// Whom: the number that [`Schedule::add`] gave.
    pub holder: usize,
    /// Which pieces.
    pub pieces: Range<u32>,
}

/// Where the fetch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Every piece was taken.
    Complete,
    /// Something is on its way, or may be asked for.
    Going,
    /// The next piece is to be had from nobody.
    Stuck,
}

/// The state of one fetch from many holders.
#[derive(Debug)]
pub struct Schedule {
    count: u32,
    next: u32,
    window_max: u32,
    /// The pieces from `next` on, as far as anybody was asked.
    slots: VecDeque<Slot>,
    holders: Vec<Holder>,
    questions: BTreeMap<u64, Question>,
    asked: u64,
    taken_at: Instant,
    /// Average seconds between two pieces that the reader took.
    reader_time: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    copies: u8,
    ready: bool,
}

#[derive(Debug)]
struct Holder {
    /// `None`: given up.
    free_at: Option<Instant>,
    in_flight: u32,
    /// Average seconds between two of its pieces while it had work.
    piece_time: Option<f64>,
    round_trip: f64,
    /// Its last piece, or when it got work after having none.
    moved_at: Instant,
    pauses: u32,
    arrived: u32,
}

#[derive(Debug)]
struct Question {
    holder: usize,
    /// What is still to come of it.
    pieces: Range<u32>,
    moved_at: Instant,
}

impl Schedule {
    /// A fetch of the pieces from `first` to `count`, with at most `window_max` of them ahead of the reader.
    pub fn new(first: u32, count: u32, window_max: u32, now: Instant) -> Self {
        Self {
            count,
            next: first,
            window_max: window_max.max(1),
            slots: VecDeque::new(),
            holders: Vec::new(),
            questions: BTreeMap::new(),
            asked: 0,
            taken_at: now,
            reader_time: None,
        }
    }

    /// One more holder, and what is known of it: its round trip and seconds per piece.
    pub fn add(&mut self, round_trip: Duration, piece_time: Option<f64>, now: Instant) -> usize {
        self.holders.push(Holder {
            free_at: Some(now),
            in_flight: 0,
            piece_time,
            round_trip: round_trip.as_secs_f64(),
            moved_at: now,
            pauses: 0,
            arrived: 0,
        });
        self.holders.len() - 1
    }

    /// A question that was asked already: `holder` sends the next pieces, up to `end`.
    pub fn adopt(&mut self, holder: usize, end: u32, now: Instant) -> Ask {
        let pieces = self.next..end.clamp(self.next, self.count);
        self.begin(holder, pieces, now)
    }

    /// The next question to ask now, if any; to be called until there is none.
    pub fn ask(&mut self, now: Instant) -> Option<Ask> {
        let (holder, pieces) = self.fresh(now).or_else(|| {
            let again = self.again(now)?;
            (again.due <= now).then_some((again.holder, again.pieces))
        })?;
        Some(self.begin(holder, pieces, now))
    }

    /// When [`Schedule::ask`] may have something new though nothing happens.
    pub fn look_again_at(&self, now: Instant) -> Option<Instant> {
        let late = self.again(now).map(|again| again.due);
        let paused = self.holders.iter().filter_map(|h| h.free_at);
        paused.filter(|at| *at > now).chain(late).min()
    }

    /// The next piece of `question` came, and was right. `false`: it had come from elsewhere before.
    pub fn arrived(&mut self, question: u64, now: Instant) -> bool {
        let Some(asked) = self.questions.get_mut(&question) else {
            return false;
        };
        let piece = asked.pieces.start;
        asked.pieces.start += 1;
        asked.moved_at = now;
        let holder = &mut self.holders[asked.holder];
        holder.in_flight -= 1;
        holder.pauses = 0;
        holder.arrived += 1;
        holder.sample(now);
        holder.moved_at = now;
        let slot = piece.checked_sub(self.next);
        match slot.and_then(|at| self.slots.get_mut(at as usize)) {
            Some(slot) => {
                slot.copies -= 1;
                !std::mem::replace(&mut slot.ready, true)
            }
            None => false,
        }
    }

    /// `question` came to its end; what is missing of it may be asked for again.
    pub fn ended(&mut self, question: u64, how: Ended, now: Instant) {
        let Some(Question { holder, pieces, .. }) = self.questions.remove(&question) else {
            return;
        };
        let missing = pieces.len() as u32;
        for piece in pieces {
            let slot = piece.checked_sub(self.next);
            if let Some(slot) = slot.and_then(|at| self.slots.get_mut(at as usize)) {
                slot.copies -= 1;
            }
        }
        let holder = &mut self.holders[holder];
        holder.in_flight -= missing;
        match how {
            Ended::Done if missing == 0 => {}
            Ended::Done | Ended::Failed => holder.free_at = None,
            // It would have taken at least this long.
            Ended::Dropped => holder.sample(now),
            Ended::Later => {
                holder.pauses += 1;
                let pause = PAUSE_MIN * (1 << holder.pauses.min(16));
                let free_at = holder.free_at.map(|at| at.max(now + pause));
                holder.free_at = free_at.filter(|_| holder.pauses < PAUSES_MAX);
            }
        }
    }

    /// Questions of which nobody wants the rest any more. End each with [`Ended::Dropped`].
    pub fn pointless(&self) -> Vec<u64> {
        let unwanted = |piece: u32| match piece.checked_sub(self.next) {
            None => true,
            Some(at) => self.slots.get(at as usize).is_none_or(|slot| slot.ready),
        };
        let pointless = |q: &Question| !q.pieces.is_empty() && q.pieces.clone().all(unwanted);
        let questions = self.questions.iter().filter(|(_, q)| pointless(q));
        questions.map(|(number, _)| *number).collect()
    }

    /// Hands the next piece to the reader, if it is there: its number.
    pub fn take(&mut self, now: Instant) -> Option<u32> {
        self.slots.pop_front_if(|slot| slot.ready)?;
        let took = now.saturating_duration_since(self.taken_at).as_secs_f64();
        self.reader_time = Some(average(self.reader_time, took));
        self.taken_at = now;
        self.next += 1;
        Some(self.next - 1)
    }

    /// The piece that the reader gets next.
    pub fn position(&self) -> u32 {
        self.next
    }

    /// Where it stands.
    pub fn progress(&self) -> Progress {
        let waits_for_nobody = self.slots.front().is_none_or(|s| !s.ready && s.copies == 0);
        if self.next == self.count {
            Progress::Complete
        } else if waits_for_nobody && self.holders.iter().all(|h| h.free_at.is_none()) {
            Progress::Stuck
        } else {
            Progress::Going
        }
    }

    /// Bytes per second of `holder`, once measured in this fetch.
    pub fn bytes_per_s(&self, holder: usize, piece_bytes: usize) -> Option<f64> {
        let holder = &self.holders[holder];
        let measured = holder.piece_time.filter(|_| holder.arrived > 1)?;
        Some(piece_bytes as f64 / measured.max(1e-6))
    }

    /// Pieces ahead of the reader that may be held or on their way now.
    fn window(&self) -> u32 {
        let wanted = self.reader_time.map_or(f64::INFINITY, |time| {
            READ_AHEAD.as_secs_f64() / time.max(1e-6)
        });
        (wanted as u32).clamp(WINDOW_MIN.min(self.window_max), self.window_max)
    }

    /// Who may be asked now.
    fn usable(&self, now: Instant) -> impl Iterator<Item = (usize, &Holder)> {
        let usable = move |h: &Holder| h.free_at.is_some_and(|at| at <= now);
        let holders = self.holders.iter().enumerate();
        holders.filter(move |(_, h)| usable(h))
    }

    /// Pieces that nobody was asked for, or that got lost.
    fn fresh(&self, now: Instant) -> Option<(usize, Range<u32>)> {
        let end = self.count.min(self.next.saturating_add(self.window()));
        let is_open = |piece: &u32| match self.slots.get((piece - self.next) as usize) {
            Some(slot) => slot.copies == 0 && !slot.ready,
            None => true,
        };
        let first_open = (self.next..end).find(is_open)?;
        let unknown = self.piece_time_unknown();
        let finish = |h: &Holder| h.finish(unknown);
        let soonest = self.usable(now).map(|(_, h)| finish(h));
        let soonest = soonest.min_by(f64::total_cmp)?;
        let together: f64 = self.usable(now).map(|(_, h)| 1.0 / h.time(unknown)).sum();
        let mut free: Vec<_> = self
            .usable(now)
            .filter(|(_, h)| h.in_flight <= h.allowed(unknown) / 2)
            .collect();
        free.sort_by(|a, b| finish(a.1).total_cmp(&finish(b.1)));
        free.into_iter().find_map(|(number, holder)| {
            let takes = finish(holder);
            // When the reader comes to this piece, at the rate of all together.
            let in_time = |piece: &u32| {
                let needed = f64::from(piece - self.next) / together;
                takes <= needed.max(soonest * LATE_FACTOR)
            };
            let first = (first_open..end).find(|p| is_open(p) && in_time(p))?;
            let most = holder.allowed(unknown) - holder.in_flight;
            let end = end.min(first + most);
            let end = (first..end).find(|p| !is_open(p)).unwrap_or(end);
            Some((number, first..end))
        })
    }

    /// The pieces that the reader waits for, from whoever else would have them first.
    fn again(&self, now: Instant) -> Option<Again> {
        let copies = self.slots.front().filter(|slot| !slot.ready)?.copies;
        if copies == 0 || copies >= COPIES_MAX {
            return None;
        }
        let mut holding = self
            .questions
            .values()
            .filter(|q| q.pieces.contains(&self.next));
        let waited_for = holding.next()?;
        let unknown = self.piece_time_unknown();
        let others = self.usable(now).filter(|(number, holder)| {
            *number != waited_for.holder && holder.in_flight < holder.allowed(unknown)
        });
        let (number, holder) =
            others.min_by(|a, b| a.1.finish(unknown).total_cmp(&b.1.finish(unknown)))?;
        let patience = Duration::from_secs_f64(LATE_FACTOR * holder.finish(unknown));
        let most = self.next + holder.allowed(unknown) - holder.in_flight;
        let is_late = |piece: &u32| {
            let slot = self.slots.get((piece - self.next) as usize);
            slot.is_some_and(|slot| !slot.ready && slot.copies < COPIES_MAX)
        };
        let end = most.min(waited_for.pieces.end);
        let end = (self.next..end).find(|p| !is_late(p)).unwrap_or(end);
        Some(Again {
            due: waited_for.moved_at + patience + LATE_GRACE,
            holder: number,
            pieces: self.next..end,
        })
    }

    /// What a holder of which nothing is known may be: as good as the best.
    fn piece_time_unknown(&self) -> f64 {
        let known = self.holders.iter().filter_map(|h| h.piece_time);
        known.min_by(f64::total_cmp).unwrap_or(PIECE_TIME_UNKNOWN)
    }

    fn begin(&mut self, holder: usize, pieces: Range<u32>, now: Instant) -> Ask {
        let reach = (pieces.end - self.next) as usize;
        if self.slots.len() < reach {
            self.slots.resize(reach, Slot::default());
        }
        for piece in pieces.clone() {
            self.slots[(piece - self.next) as usize].copies += 1;
        }
        let asked = &mut self.holders[holder];
        if asked.in_flight == 0 {
            asked.moved_at = now;
        }
        asked.in_flight += pieces.len() as u32;
        let question = self.asked;
        self.asked += 1;
        self.questions.insert(
            question,
            Question {
                holder,
                pieces: pieces.clone(),
                moved_at: now,
            },
        );
        Ask {
            question,
            holder,
            pieces,
        }
    }
}

struct Again {
    due: Instant,
    holder: usize,
    pieces: Range<u32>,
}

impl Holder {
    fn time(&self, unknown: f64) -> f64 {
        self.piece_time.unwrap_or(unknown).max(1e-6)
    }

    /// In how many seconds it would have sent one piece more.
    fn finish(&self, unknown: f64) -> f64 {
        self.round_trip + f64::from(self.in_flight + 1) * self.time(unknown)
    }

    /// Pieces that may be on their way from it: what two round trips and [`AHEAD`] hold.
    fn allowed(&self, unknown: f64) -> u32 {
        let seconds = 2.0 * self.round_trip + AHEAD.as_secs_f64();
        ((seconds / self.time(unknown)).ceil() as u32).clamp(2, HOLDER_PIECES_MAX)
    }

    fn sample(&mut self, now: Instant) {
        let took = now.saturating_duration_since(self.moved_at).as_secs_f64();
        self.piece_time = Some(average(self.piece_time, took));
    }
}

fn average(before: Option<f64>, new: f64) -> f64 {
    before.map_or(new, |old| old + PIECE_TIME_ALPHA * (new - old))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A holder of a simulated fetch: a line of its own that sends one piece after the other.
    #[derive(Clone, Debug)]
    struct Simulated {
        round_trip: Duration,
        piece_time: Duration,
        /// Fails when it would send the piece after so many.
        dies_after: Option<u32>,
        /// Says nothing more after so many, for as long as a stall is borne.
        stalls_after: Option<u32>,
        /// Says so many times that it is busy, first.
        refuses: u32,
    }

    fn good(round_trip_ms: u32, piece_ms: u32) -> Simulated {
        Simulated {
            round_trip: MS * round_trip_ms,
            piece_time: MS * piece_ms,
            dies_after: None,
            stalls_after: None,
            refuses: 0,
        }
    }

    /// As the peer module gives up.
    const STALL: Duration = Duration::from_secs(3);

    #[derive(Debug, Default)]
    struct Outcome {
        took: Duration,
        /// In the order in which the reader got them.
        delivered: Vec<u32>,
        sent: u32,
        asked: Vec<Ask>,
        stuck_at: Option<u32>,
    }

    /// Runs a fetch of `count` pieces in virtual time. `reader` is what the reader takes per piece.
    fn run(count: u32, holders: &[Simulated], window: u32, reader: Duration) -> Outcome {
        #[derive(Clone, Copy, Debug)]
        enum What {
            Piece,
            End(Ended),
            ReaderFree,
        }
        let begun = Instant::now();
        let mut now = begun;
        let mut schedule = Schedule::new(0, count, window, now);
        let mut events: BTreeMap<(Instant, u64), (u64, What)> = BTreeMap::new();
        let mut serial = 0;
        let mut line_free: Vec<Instant> = vec![now; holders.len()];
        let mut sent = vec![0; holders.len()];
        let mut refused = vec![0; holders.len()];
        let mut live: BTreeSet<u64> = BTreeSet::new();
        let mut out = Outcome::default();
        let mut reader_free = true;
        for h in holders {
            schedule.add(h.round_trip, None, now);
        }
        let mut first = Some(schedule.adopt(0, FIRST_PIECES, now));
        for _ in 0..1_000_000 {
            for dropped in schedule.pointless() {
                live.remove(&dropped);
                schedule.ended(dropped, Ended::Dropped, now);
            }
            while let Some(ask) = first.take().or_else(|| schedule.ask(now)) {
                assert!(!ask.pieces.is_empty() && ask.pieces.end <= count, "{ask:?}");
                assert!(
                    ask.pieces.end - schedule.position() <= window.max(FIRST_PIECES),
                    "{ask:?}"
                );
                assert!(schedule.slots.iter().all(|s| s.copies <= COPIES_MAX));
                let h = &holders[ask.holder];
                live.insert(ask.question);
                let mut put = |at, what| {
                    serial += 1;
                    events.insert((at, serial), (ask.question, what));
                };
                if refused[ask.holder] < h.refuses {
                    refused[ask.holder] += 1;
                    put(now + h.round_trip, What::End(Ended::Later));
                } else {
                    let mut at = line_free[ask.holder].max(now + h.round_trip);
                    let mut end = Ended::Done;
                    for _ in ask.pieces.clone() {
                        if h.dies_after.is_some_and(|n| sent[ask.holder] >= n) {
                            end = Ended::Failed;
                            break;
                        }
                        if h.stalls_after.is_some_and(|n| sent[ask.holder] >= n) {
                            at += STALL;
                            end = Ended::Failed;
                            break;
                        }
                        sent[ask.holder] += 1;
                        at += h.piece_time;
                        put(at, What::Piece);
                    }
                    put(at, What::End(end));
                    line_free[ask.holder] = at;
                }
                out.asked.push(ask);
            }
            if reader_free && let Some(piece) = schedule.take(now) {
                out.delivered.push(piece);
                reader_free = false;
                serial += 1;
                events.insert((now + reader, serial), (u64::MAX, What::ReaderFree));
                continue;
            }
            match schedule.progress() {
                Progress::Complete => {
                    out.took = now - begun;
                    out.sent = sent.iter().sum();
                    return out;
                }
                Progress::Stuck => {
                    out.stuck_at = Some(schedule.position());
                    return out;
                }
                Progress::Going => {}
            }
            let next = events.first_key_value().map(|(key, _)| *key);
            let look = schedule.look_again_at(now).filter(|at| *at > now);
            match (next, look) {
                (Some((at, _)), Some(look)) if look < at => now = look,
                (Some(key), _) => {
                    let (question, what) = events.remove(&key).unwrap();
                    now = now.max(key.0);
                    match what {
                        What::ReaderFree => reader_free = true,
                        _ if !live.contains(&question) => {}
                        What::Piece => {
                            schedule.arrived(question, now);
                        }
                        What::End(how) => {
                            live.remove(&question);
                            schedule.ended(question, how, now);
                        }
                    }
                }
                (None, Some(look)) => now = look,
                (None, None) => panic!("nothing will ever happen: {schedule:?}"),
            }
        }
        panic!("no end: {schedule:?}");
    }

    fn whole(count: u32) -> Vec<u32> {
        (0..count).collect()
    }

    #[test]
    fn what_is_small_is_one_question_to_one_holder() {
        for count in 1..=FIRST_PIECES {
            let out = run(count, &[good(10, 5), good(1, 1)], WINDOW_MAX, MS);
            assert_eq!(out.delivered, whole(count));
            assert_eq!(out.asked.len(), 1, "{:?}", out.asked);
        }
    }

    #[test]
    fn four_equal_holders_are_nearly_four_times_as_fast_as_one() {
        let one = run(128, &[good(2, 100)], WINDOW_MAX, MS);
        let four = run(128, &vec![good(2, 100); 4], WINDOW_MAX, MS);
        assert_eq!(
            (&one.delivered, &four.delivered),
            (&whole(128), &whole(128))
        );
        assert!(one.took < MS * 13_500, "one idles: {:?}", one.took);
        assert!(four.took < one.took * 10 / 35, "{:?}", four.took);
        assert!(four.sent <= 132, "{} copies of pieces", four.sent);
    }

    #[test]
    fn a_long_way_is_kept_filled() {
        // 100 MB/s over 100 ms: a question at a time would take ten times as long.
        let out = run(256, &[good(100, 10)], WINDOW_MAX, MS);
        assert!(out.took < MS * 4_000, "{:?}", out.took);
    }

    #[test]
    fn a_holder_at_a_tenth_of_the_rate_holds_nobody_up() {
        let three = run(128, &vec![good(2, 100); 3], WINDOW_MAX, MS);
        for slow in 0..4 {
            let mut holders = vec![good(2, 100); 4];
            holders[slow] = good(2, 1_000);
            let out = run(128, &holders, WINDOW_MAX, MS);
            assert_eq!(out.delivered, whole(128));
            assert!(
                out.took < three.took * 13 / 10,
                "slow {slow}: {:?} against {:?}",
                out.took,
                three.took
            );
            assert!(out.sent <= 128 + 12, "slow {slow}: {} sent", out.sent);
        }
    }

    #[test]
    fn who_dies_or_stalls_is_replaced() {
        let all = run(128, &vec![good(2, 100); 4], WINDOW_MAX, MS);
        let dying = Simulated {
            dies_after: Some(7),
            ..good(2, 100)
        };
        let stalling = Simulated {
            stalls_after: Some(7),
            ..good(2, 100)
        };
        for bad in [dying, stalling] {
            for at in 0..4 {
                let mut holders = vec![good(2, 100); 4];
                holders[at] = bad.clone();
                let out = run(128, &holders, WINDOW_MAX, MS);
                assert_eq!(out.delivered, whole(128));
                assert!(out.took < all.took * 17 / 10, "{bad:?}: {:?}", out.took);
            }
        }
    }

    #[test]
    fn who_is_busy_is_asked_again_after_a_pause_and_not_for_ever() {
        let busy = |refuses| Simulated {
            refuses,
            ..good(2, 10)
        };
        let out = run(16, &[busy(3)], WINDOW_MAX, MS);
        assert_eq!(out.delivered, whole(16));
        let out = run(16, &[busy(1_000)], WINDOW_MAX, MS);
        assert_eq!(out.stuck_at, Some(0));
        assert_eq!(out.asked.len(), PAUSES_MAX as usize);
    }

    #[test]
    fn a_slow_reader_makes_the_window_small() {
        let now = Instant::now();
        let mut schedule = Schedule::new(0, 100, WINDOW_MAX, now);
        assert_eq!(schedule.window(), WINDOW_MAX);
        schedule.reader_time = Some(0.2);
        assert_eq!(schedule.window(), 10);
        schedule.reader_time = Some(5.0);
        assert_eq!(schedule.window(), WINDOW_MIN);
    }

    #[test]
    fn without_holders_it_is_stuck_where_it_stands() {
        let dying = Simulated {
            dies_after: Some(6),
            ..good(2, 10)
        };
        let out = run(40, &[dying.clone(), dying], WINDOW_MAX, MS);
        assert!((6..=12).contains(&out.stuck_at.unwrap()), "{out:?}");
        assert_eq!(out.delivered, whole(out.stuck_at.unwrap()));
    }

    fn any_holder() -> impl Strategy<Value = Simulated> {
        let faults = (
            prop::option::weighted(0.3, 0..20_u32),
            prop::option::weighted(0.2, 0..20_u32),
        );
        (0..200_u32, 1..800_u32, faults, 0..3_u32).prop_map(
            |(round_trip, piece, (dies_after, stalls_after), refuses)| Simulated {
                dies_after,
                stalls_after,
                refuses,
                ..good(round_trip, piece)
            },
        )
    }

    proptest! {
        /// Whatever the holders do: pieces come once each, in order, within window and copies; and it
        /// ends, complete if a holder is left that does not fail.
        #[test]
        fn every_piece_is_delivered_once_in_order(
            holders in prop::collection::vec(any_holder(), 1..6),
            count in 1..80_u32,
            window in 1..40_u32,
            reader_ms in 0..300_u32,
        ) {
            let out = run(count, &holders, window, MS * reader_ms);
            let end = out.stuck_at.unwrap_or(count);
            prop_assert_eq!(&out.delivered, &whole(end));
            let sound = holders.iter().any(|h| h.dies_after.is_none() && h.stalls_after.is_none());
            prop_assert!(!sound || out.stuck_at.is_none(), "stuck at {}", end);
        }
    }
}
