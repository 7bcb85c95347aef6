//! Where to get the pieces of an object that is shared out: the thinking of [`super::fellows`]. Pure: it is
//! told what happened and what time it is, and says what to ask next.
//!
//! When several nodes want one large object at the same time, its home sends each piece to one of them only,
//! and tells the others who that is. Those ask it: a piece that comes from the home unasked is *pushed*, the
//! others are asked for one by one. Who is late with what the reader waits for, or fails, is named to the home,
//! which gives the piece itself, or says who has it by now. So the home always knows whom not to trust with
//! more, and need not send a piece to everybody because one node is slow.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::Duration,
};

use cluster::node::NodeId;
use tokio::time::Instant;

/// Patience with a fellow while nothing is known of how long pieces take.
const PATIENCE_FIRST: Duration = Duration::from_secs(1);
/// A fellow is late when a piece has taken so many times what pieces take on average …
const LATE_FACTOR: f64 = 2.0;
/// … and a moment more, within which a busy machine may just not have looked.
const LATE_GRACE: Duration = Duration::from_millis(250);
/// Longest patience with what the reader waits for: beyond, the home is the better choice however slow all others
/// are.
const PATIENCE_MAX: Duration = Duration::from_secs(5);
/// The same with what it does not wait for yet.
const PATIENCE_AHEAD_MAX: Duration = Duration::from_secs(60);
/// Questions to the home at once, beside that for the piece that the reader waits for: it has one line for all that
/// ask, and when everybody asks it for a whole window, that is full for longer than anybody waits.
const HOME_AT_ONCE_MAX: usize = 2;
/// Questions for one piece that the home may fail, each after seconds of silence; then it is lost. One may stall
/// on a full line; one that has died would keep the reader for as many times as it is asked.
const HOME_FAILED_MAX: u32 = 2;
/// Pause before a home is asked again that did not give a piece.
const HOME_PAUSE: Duration = Duration::from_secs(1);
/// Weight of the newest piece in the average.
const TOOK_ALPHA: f64 = 0.25;
/// Pause before somebody who does not have a piece yet, or is busy, is asked again.
const PAUSE: Duration = Duration::from_millis(50);
/// The home is asked so often for one piece; then it has nothing more to say.
const HOME_ASKED_MAX: u32 = 8;

/// Whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// Who was said to have it.
    Fellow(NodeId),
    /// The home, because this one did not give it.
    Home(NodeId),
}

/// What to ask next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Number of the question, for what is told of it later.
    pub question: u64,
    /// Which piece.
    pub piece: u32,
    /// Whom.
    pub whom: Whom,
}

/// How a question ended that brought no piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Ask again: it is busy, or the piece is not there yet.
    Later,
    /// This one has it.
    Elsewhere(NodeId),
    /// It cannot, or failed.
    Failed,
    /// Nobody wanted it any more: it had come from elsewhere.
    Dropped,
}

/// The state of one fetch of an object that is shared out.
#[derive(Debug)]
pub struct Wants {
    count: u32,
    window: u32,
    /// The first piece that is not here.
    next: u32,
    /// Since when the reader waits for it.
    next_since: Instant,
    /// The pieces from `next` on, as far as they were told of.
    slots: VecDeque<Slot>,
    questions: BTreeMap<u64, Question>,
    asked: u64,
    /// Who was late or failed, and has not been in time since: with them, nobody waits until it is the reader's turn.
    distrusted: HashSet<NodeId>,
    /// Average seconds from a question to its piece.
    took: Option<f64>,
    is_stuck: bool,
}

#[derive(Debug)]
struct Slot {
    is_here: bool,
    /// `None`: the home sends it unasked.
    holder: Option<Holder>,
    home_asked: u32,
    home_failed: u32,
}

#[derive(Debug)]
struct Holder {
    id: NodeId,
    since: Instant,
    not_before: Instant,
    failed: bool,
}

#[derive(Debug)]
struct Question {
    piece: u32,
    whom: Whom,
    since: Instant,
}

impl Wants {
    /// The pieces from `first` to `count`, with at most `window` of them told of and not given to the reader.
    pub fn new(first: u32, count: u32, window: u32, now: Instant) -> Self {
        Self {
            count,
            window: window.max(1),
            next: first,
            next_since: now,
            slots: VecDeque::new(),
            questions: BTreeMap::new(),
            asked: 0,
            distrusted: HashSet::new(),
            took: None,
            is_stuck: false,
        }
    }

    /// The next piece that the home will tell of, if there is room for it.
    pub fn hears(&self) -> Option<u32> {
        let told = self.next + self.slots.len() as u32;
        let has_room = self.slots.len() < self.window as usize;
        (told < self.count && has_room).then_some(told)
    }

    /// The home told where that piece is; without a `holder` it sends it itself.
    pub fn told(&mut self, holder: Option<NodeId>, now: Instant) {
        let holder = holder.map(|id| Holder {
            id,
            since: now,
            not_before: now,
            failed: false,
        });
        self.slots.push_back(Slot {
            is_here: false,
            holder,
            home_asked: 0,
            home_failed: 0,
        });
    }

    /// The next question to ask now, if any; to be called until there is none.
    pub fn ask(&mut self, now: Instant) -> Option<Ask> {
        let at_home = |q: &&Question| matches!(q.whom, Whom::Home(_));
        let at_home = self.questions.values().filter(at_home).count();
        let (piece, whom) = (self.next..).zip(&self.slots).find_map(|(piece, slot)| {
            let holder = slot.holder.as_ref().filter(|_| !slot.is_here)?;
            let is_asked = |home| {
                let mut questions = self.questions.values();
                questions.any(|q| q.piece == piece && matches!(q.whom, Whom::Home(_)) == home)
            };
            if now < holder.not_before || is_asked(true) {
                None
            } else if holder.failed || self.late_at(piece, holder) <= now {
                let has_room = piece == self.next || at_home < HOME_AT_ONCE_MAX;
                has_room.then(|| (piece, Whom::Home(holder.id.clone())))
            } else if is_asked(false) {
                None
            } else {
                Some((piece, Whom::Fellow(holder.id.clone())))
            }
        })?;
        if let Whom::Home(late) = &whom {
            self.distrusted.insert(late.clone());
            let slot = &mut self.slots[(piece - self.next) as usize];
            slot.home_asked += 1;
            if slot.home_asked > HOME_ASKED_MAX {
                self.is_stuck = true;
                return None;
            }
        }
        let question = self.asked;
        self.asked += 1;
        let asked = Question {
            piece,
            whom: whom.clone(),
            since: now,
        };
        self.questions.insert(question, asked);
        Some(Ask {
            question,
            piece,
            whom,
        })
    }

    /// When [`Wants::ask`] may have something new though nothing happens.
    pub fn look_again_at(&self, now: Instant) -> Option<Instant> {
        let missing = (self.next..).zip(&self.slots).filter(|(_, s)| !s.is_here);
        let times = missing.filter_map(|(piece, slot)| {
            let holder = slot.holder.as_ref()?;
            Some([self.late_at(piece, holder), holder.not_before])
        });
        times.flatten().filter(|at| *at > now).min()
    }

    /// A piece came, and is right. `false`: it had come before.
    pub fn arrived(&mut self, piece: u32, now: Instant) -> bool {
        let at = piece.checked_sub(self.next);
        let Some(slot) = at.and_then(|at| self.slots.get_mut(at as usize)) else {
            return false;
        };
        if std::mem::replace(&mut slot.is_here, true) {
            return false;
        }
        while self.slots.pop_front_if(|slot| slot.is_here).is_some() {
            self.next += 1;
            self.next_since = now;
        }
        true
    }

    /// The answer to `question` was its piece.
    pub fn answered(&mut self, question: u64, now: Instant) -> bool {
        let Some(asked) = self.questions.remove(&question) else {
            return false;
        };
        let took = now.saturating_duration_since(asked.since).as_secs_f64();
        if let Whom::Fellow(id) = &asked.whom
            && took <= self.usual().as_secs_f64()
        {
            self.distrusted.remove(id);
        }
        let average = |old: f64| old + TOOK_ALPHA * (took - old);
        self.took = Some(self.took.map_or(took, average));
        self.arrived(asked.piece, now)
    }

    /// `question` ended without its piece.
    pub fn ended(&mut self, question: u64, how: Ended, now: Instant) {
        let Some(Question { piece, whom, .. }) = self.questions.remove(&question) else {
            return;
        };
        let at = piece.checked_sub(self.next);
        let slot = at.and_then(|at| self.slots.get_mut(at as usize));
        let Some(Slot {
            holder: Some(holder),
            home_failed,
            ..
        }) = slot
        else {
            return;
        };
        match (how, whom) {
            (Ended::Dropped, _) => {}
            (Ended::Later, _) => holder.not_before = now + PAUSE,
            (Ended::Elsewhere(id), Whom::Home(_)) => {
                let (since, not_before, failed) = (now, now, false);
                *holder = Holder {
                    id,
                    since,
                    not_before,
                    failed,
                };
            }
            (Ended::Failed, Whom::Home(_)) => {
                holder.not_before = now + HOME_PAUSE;
                *home_failed += 1;
                self.is_stuck |= *home_failed >= HOME_FAILED_MAX;
            }
            // Of one who was replaced meanwhile, nothing more is of interest.
            (_, Whom::Fellow(id)) if id == holder.id => holder.failed = true,
            _ => {}
        }
    }

    /// Questions whose pieces came from elsewhere, or are asked of another by now. End each with
    /// [`Ended::Dropped`].
    pub fn pointless(&self) -> Vec<u64> {
        let is_pointless = |asked: &Question| {
            let at = asked.piece.checked_sub(self.next);
            let slot = at.and_then(|at| self.slots.get(at as usize));
            let slot = slot.filter(|slot| !slot.is_here);
            match (slot.and_then(|slot| slot.holder.as_ref()), &asked.whom) {
                (None, _) => true,
                (Some(_), Whom::Home(_)) => false,
                (Some(holder), Whom::Fellow(id)) => holder.id != *id,
            }
        };
        let questions = self.questions.iter();
        let pointless = questions.filter(|(_, asked)| is_pointless(asked));
        pointless.map(|(number, _)| *number).collect()
    }

    /// Every piece is here.
    pub fn is_complete(&self) -> bool {
        self.next == self.count
    }

    /// The home has failed to give a piece.
    pub fn is_stuck(&self) -> bool {
        self.is_stuck
    }

    /// Who takes longer for a piece is slower than is usual.
    fn usual(&self) -> Duration {
        let usual = self.took.map_or(PATIENCE_FIRST, |took| {
            Duration::from_secs_f64((LATE_FACTOR * took).min(1e6)) + LATE_GRACE
        });
        usual.min(PATIENCE_AHEAD_MAX)
    }

    /// When the holder of a piece is late with it: once the reader waits for it, or at once for one that was
    /// late before.
    fn late_at(&self, piece: u32, holder: &Holder) -> Instant {
        if piece == self.next {
            holder.since.max(self.next_since) + self.usual().min(PATIENCE_MAX)
        } else if self.distrusted.contains(&holder.id) {
            // As long as pieces take when a whole window of them is on its way.
            holder.since + self.usual()
        } else {
            // Not before the reader comes to it; far enough to be looked at again before.
            holder.since + PATIENCE_MAX * 60
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn id(number: usize) -> NodeId {
        format!("edge-{number}").parse().unwrap()
    }

    /// All questions that are to be asked now, in words.
    fn asks(wants: &mut Wants, now: Instant) -> Vec<(u64, String)> {
        let asks = std::iter::from_fn(|| wants.ask(now));
        asks.map(|ask| {
            let words = match ask.whom {
                Whom::Fellow(id) => format!("{} of {id}", ask.piece),
                Whom::Home(late) => format!("{} of home, {late} late", ask.piece),
            };
            (ask.question, words)
        })
        .collect()
    }

    fn words(asks: &[(u64, String)]) -> Vec<&str> {
        asks.iter().map(|(_, words)| words.as_str()).collect()
    }

    #[test]
    fn pieces_are_asked_of_who_has_them_and_the_late_are_named() {
        let begun = Instant::now();
        let mut wants = Wants::new(3, 9, 4, begun);
        assert_eq!(wants.hears(), Some(3));
        for holder in [Some(id(1)), None, Some(id(1)), Some(id(2))] {
            wants.told(holder, begun);
        }
        assert_eq!(wants.hears(), None, "the window is full");
        let first = asks(&mut wants, begun);
        let all = ["3 of edge-1", "5 of edge-1", "6 of edge-2"];
        assert_eq!(words(&first), all);
        assert!(wants.arrived(4, begun + MS) && !wants.arrived(4, begun + MS));
        // Only what the reader waits for is late.
        let late = begun + PATIENCE_FIRST;
        assert_eq!(wants.look_again_at(begun), Some(late));
        let second = asks(&mut wants, late);
        let home = [
            "3 of home, edge-1 late",
            // The one who was late is not waited for any longer.
            "5 of home, edge-1 late",
        ];
        assert_eq!(words(&second), home);
        wants.ended(second[1].0, Ended::Elsewhere(id(7)), late);
        assert_eq!(wants.pointless(), [first[1].0], "another has it by now");
        wants.ended(first[1].0, Ended::Dropped, late);
        let third = asks(&mut wants, late);
        assert_eq!(words(&third), ["5 of edge-7"]);
        assert!(wants.answered(second[0].0, late));
        assert_eq!(wants.pointless(), [first[0].0]);
        assert_eq!(wants.hears(), Some(7), "there is room for two more");
    }

    #[test]
    fn who_fails_is_named_at_once_and_who_is_not_ready_is_asked_again() {
        let now = Instant::now();
        let mut wants = Wants::new(0, 2, 8, now);
        wants.told(Some(id(1)), now);
        wants.told(Some(id(2)), now);
        let first = asks(&mut wants, now);
        wants.ended(first[0].0, Ended::Failed, now);
        wants.ended(first[1].0, Ended::Later, now);
        let second = asks(&mut wants, now);
        assert_eq!(words(&second), ["0 of home, edge-1 late"]);
        let third = asks(&mut wants, now + PAUSE);
        assert_eq!(words(&third), ["1 of edge-2"]);
    }

    /// Ten edges shared 1 GiB out over narrow lines. The home's was full, a question to it stalled, and five of
    /// them took it for lost while it relayed to them, and asked the next home for all that was left.
    #[test]
    fn a_home_that_does_not_give_a_piece_at_once_is_asked_again() {
        let mut now = Instant::now();
        let mut wants = Wants::new(0, 1, 8, now);
        wants.told(Some(id(1)), now);
        let first = asks(&mut wants, now);
        wants.ended(first[0].0, Ended::Failed, now);
        for failed in 1..=HOME_FAILED_MAX {
            let home = asks(&mut wants, now);
            assert_eq!(words(&home), ["0 of home, edge-1 late"]);
            wants.ended(home[0].0, Ended::Failed, now);
            assert!(asks(&mut wants, now).is_empty());
            assert_eq!(wants.is_stuck(), failed == HOME_FAILED_MAX);
            assert_eq!(wants.look_again_at(now), Some(now + HOME_PAUSE));
            now += HOME_PAUSE;
        }
    }

    #[test]
    fn the_home_is_not_asked_for_a_whole_window_at_once() {
        let now = Instant::now();
        let mut wants = Wants::new(0, 9, 8, now);
        (0..8).for_each(|_| wants.told(Some(id(1)), now));
        let first = asks(&mut wants, now);
        assert_eq!(first.len(), 8);
        let late = now + PATIENCE_FIRST;
        let second = asks(&mut wants, late);
        let home = ["0 of home, edge-1 late", "1 of home, edge-1 late"];
        assert_eq!(words(&second), home);
        assert!(wants.answered(second[0].0, late));
        // What the reader waits for now is asked for already; another may be.
        assert_eq!(words(&asks(&mut wants, late)), ["2 of home, edge-1 late"]);
    }

    #[test]
    fn who_is_in_time_again_is_trusted_again() {
        let now = Instant::now();
        let mut wants = Wants::new(0, 9, 8, now);
        (0..3).for_each(|_| wants.told(Some(id(1)), now));
        let first = asks(&mut wants, now);
        let late = now + PATIENCE_FIRST;
        let second = asks(&mut wants, late);
        assert_eq!(
            second.len(),
            2,
            "the reader's, and one that is late as well"
        );
        assert!(wants.answered(first[0].0, late));
        wants.told(Some(id(1)), late);
        let third = asks(&mut wants, late);
        assert!(
            wants.answered(first[2].0, late) && wants.answered(third.last().unwrap().0, late + MS)
        );
        wants.told(Some(id(1)), late + MS);
        asks(&mut wants, late + MS);
        // One that is not the reader's has time again.
        let much_later = late + PATIENCE_MAX;
        let home = asks(&mut wants, much_later);
        assert!(
            home.iter().all(|(_, words)| !words.starts_with('4')),
            "{home:?}"
        );
    }

    #[test]
    fn a_home_that_only_sends_on_and_on_is_given_up() {
        let now = Instant::now();
        let mut wants = Wants::new(0, 1, 8, now);
        wants.told(Some(id(0)), now);
        let mut homes = 0;
        for round in 1.. {
            let Some(ask) = wants.ask(now) else { break };
            let how = match ask.whom {
                Whom::Fellow(_) => Ended::Failed,
                Whom::Home(_) => {
                    homes += 1;
                    Ended::Elsewhere(id(round))
                }
            };
            wants.ended(ask.question, how, now);
        }
        assert!(wants.is_stuck());
        assert_eq!(homes, HOME_ASKED_MAX);
    }

    /// What a fellow does with a question: after so many milliseconds, the piece or this.
    fn manner() -> impl Strategy<Value = (u32, Option<Ended>)> {
        let how = prop_oneof![
            4 => Just(None),
            1 => Just(Some(Ended::Later)),
            1 => Just(Some(Ended::Failed)),
        ];
        (0..8_000_u32, how)
    }

    proptest! {
        /// Whatever fellows do, with a home that gives what it is asked for: every piece comes, once, with no
        /// more than two questions for it at a time, and never more told of than the window has room for.
        #[test]
        fn every_piece_comes_once(
            count in 1..40_u32,
            window in 1..12_u32,
            holders in prop::collection::vec(prop::option::of(0..4_usize), 40),
            manners in prop::collection::vec(manner(), 1..50),
        ) {
            let mut now = Instant::now();
            let mut wants = Wants::new(0, count, window, now);
            let mut events: BTreeMap<(Instant, u64), (u64, u32, Option<Ended>)> = BTreeMap::new();
            let mut came = HashSet::new();
            let mut asked = 0_u64;
            for _ in 0..10_000 {
                for question in wants.pointless() {
                    events.retain(|_, event| event.0 != question);
                    wants.ended(question, Ended::Dropped, now);
                }
                if let Some(piece) = wants.hears() {
                    prop_assert!(wants.slots.len() < window as usize);
                    let holder = holders[piece as usize];
                    wants.told(holder.map(id), now);
                    if holder.is_none() {
                        asked += 1;
                        events.insert((now + MS * 20, asked), (u64::MAX, piece, None));
                    }
                    continue;
                }
                while let Some(ask) = wants.ask(now) {
                    asked += 1;
                    let (ms, how) = match ask.whom {
                        Whom::Home(_) => (30, None),
                        Whom::Fellow(_) => manners[asked as usize % manners.len()].clone(),
                    };
                    let event = (ask.question, ask.piece, how);
                    events.insert((now + MS * ms, asked), event);
                    let same = wants.questions.values().filter(|q| q.piece == ask.piece);
                    prop_assert!(same.count() <= 2);
                }
                if wants.is_complete() {
                    break;
                }
                let look = wants.look_again_at(now);
                match events.pop_first() {
                    Some((key, event)) if look.is_some_and(|look| look < key.0) => {
                        now = look.unwrap();
                        events.insert(key, event);
                    }
                    Some(((at, _), (question, piece, how))) => {
                        now = at;
                        let is_new = match how {
                            Some(how) => {
                                wants.ended(question, how, now);
                                continue;
                            }
                            None if question == u64::MAX => wants.arrived(piece, now),
                            None => wants.answered(question, now),
                        };
                        prop_assert!(!is_new || came.insert(piece));
                    }
                    None => now = look.expect("something will happen"),
                }
            }
            prop_assert!(wants.is_complete() && !wants.is_stuck(), "{wants:?}");
            prop_assert_eq!(came.len(), count as usize);
        }
    }
}
