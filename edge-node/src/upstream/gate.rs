//! The gate before the origins of a site: so many requests are through at once, so many wait in line,
//! and none waits longer than it may. Who came first goes first.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use cluster::site::{
    ORIGIN_CONCURRENCY_DEFAULT, ORIGIN_QUEUE_DEFAULT, ORIGIN_QUEUE_TIMEOUT_DEFAULT, Site,
};
use tokio::{sync::oneshot, time::timeout};

/// What a site's origins are spared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests that are through at once.
    pub places: usize,
    /// Requests that wait.
    pub queue: usize,
    /// How long one may wait.
    pub wait: Duration,
}

impl Limits {
    /// What the owner of `site` rules, or else what is usual.
    pub fn of(site: &Site) -> Self {
        let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
        Self {
            places: count(
                site.origin_concurrency
                    .unwrap_or(ORIGIN_CONCURRENCY_DEFAULT),
            ),
            queue: count(site.origin_queue.unwrap_or(ORIGIN_QUEUE_DEFAULT)),
            wait: site
                .origin_queue_timeout
                .unwrap_or(ORIGIN_QUEUE_TIMEOUT_DEFAULT)
                .0,
        }
    }
}

/// Why a request was not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The line is as long as it may be.
    #[error("too many requests to the origin wait already")]
    Full,
    /// No place became free in time.
    #[error("no request to the origin ended in time")]
    Late,
}

/// How busy a gate is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests that are through.
    pub inside: usize,
    /// Requests that wait.
    pub waiting: usize,
}

/// A gate. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<Mutex<Line<oneshot::Sender<Place>>>>);

/// The right to have one request at the origins. Dropping it lets the next one through.
#[derive(Debug)]
pub struct Place(Gate);

impl Gate {
    /// Waits for a place. Dropping the future gives up the turn, or the place that has just been given.
    ///
    /// `limits` hold from now on for everybody: a site may have got others.
    ///
    /// # Errors
    ///
    /// There is no place, and it cannot wait for one, or has.
    pub async fn enter(&self, limits: Limits) -> Result<Place, Refused> {
        let enters = {
            let mut line = self.line();
            line.places = limits.places;
            line.enters()
        };
        if enters {
            return Ok(Place(self.clone()));
        }
        self.call();
        let (caller, called) = oneshot::channel();
        let arrival = self.line().arrive(limits.queue, caller);
        let ticket = match arrival {
            Arrival::Enters => return Ok(Place(self.clone())),
            Arrival::Waits(ticket) => ticket,
            Arrival::TurnedAway => return Err(Refused::Full),
        };
        let mut turn = Turn {
            gate: self,
            ticket,
            called,
        };
        match timeout(limits.wait, &mut turn.called).await {
            Ok(place) => {
                Ok(place.expect("who waits keeps the ticket, and is called before it goes"))
            }
            Err(_) => Err(Refused::Late),
        }
    }

    /// The same, for who would rather not wait.
    pub fn enter_at_once(&self, limits: Limits) -> Option<Place> {
        let mut line = self.line();
        line.places = limits.places;
        line.enters().then(|| Place(self.clone()))
    }

    /// How busy it is.
    pub fn traffic(&self) -> Traffic {
        let line = self.line();
        Traffic {
            inside: line.inside,
            waiting: line.waiting.len(),
        }
    }

    /// Lets in those who are next while there is room.
    fn call(&self) {
        loop {
            let next = self.line().next();
            let Some(caller) = next else { return };
            // Who gave up in this moment does not take it: the place is dropped, and free again.
            let _ = caller.send(Place(self.clone()));
        }
    }

    fn line(&self) -> MutexGuard<'_, Line<oneshot::Sender<Place>>> {
        self.0
            .lock()
            .expect("no code panics while it holds this lock")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.line().inside -= 1;
        self.0.call();
    }
}

/// A turn in the line. Dropping it leaves the line, before the channel closes: so whoever stands in
/// line can be called.
struct Turn<'a> {
    gate: &'a Gate,
    ticket: u64,
    called: oneshot::Receiver<Place>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let caller = self.gate.line().waiting.remove(&self.ticket);
        // Not under the lock: what a channel holds may be a place.
        drop(caller);
    }
}

/// Who is inside, and who waits, by the number of the ticket that each drew.
#[derive(Debug)]
struct Line<W> {
    places: usize,
    inside: usize,
    waiting: BTreeMap<u64, W>,
    tickets: u64,
}

enum Arrival {
    Enters,
    Waits(u64),
    TurnedAway,
}

impl<W> Default for Line<W> {
    fn default() -> Self {
        Self {
            places: 0,
            inside: 0,
            waiting: BTreeMap::new(),
            tickets: 0,
        }
    }
}

impl<W> Line<W> {
    /// Whether who comes now need not wait; then it is inside.
    fn enters(&mut self) -> bool {
        let enters = self.inside < self.places && self.waiting.is_empty();
        self.inside += usize::from(enters);
        enters
    }

    fn arrive(&mut self, queue: usize, waiter: W) -> Arrival {
        if self.enters() {
            return Arrival::Enters;
        }
        if self.waiting.len() >= queue {
            return Arrival::TurnedAway;
        }
        self.tickets += 1;
        self.waiting.insert(self.tickets, waiter);
        Arrival::Waits(self.tickets)
    }

    /// Who enters next, if there is room.
    fn next(&mut self) -> Option<W> {
        if self.inside >= self.places {
            return None;
        }
        let (_, waiter) = self.waiting.pop_first()?;
        self.inside += 1;
        Some(waiter)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, pin::Pin};

    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        places: 1,
        queue: 2,
        wait: Duration::from_secs(3600),
    };

    type Entering = Pin<Box<dyn Future<Output = Result<Place, Refused>>>>;

    fn entering(gate: &Gate, limits: Limits) -> Entering {
        let gate = gate.clone();
        Box::pin(async move { gate.enter(limits).await })
    }

    /// Begins to wait, and must not be through at once.
    fn waiting(gate: &Gate) -> Entering {
        let mut entering = entering(gate, LIMITS);
        assert!((&mut entering).now_or_never().is_none());
        entering
    }

    fn traffic(inside: usize, waiting: usize) -> Traffic {
        Traffic { inside, waiting }
    }

    #[tokio::test]
    async fn who_comes_first_goes_first_and_a_full_line_takes_nobody() {
        let gate = Gate::default();
        let inside = gate.enter(LIMITS).await.unwrap();
        let (mut second, mut third) = (waiting(&gate), waiting(&gate));
        assert_eq!(gate.enter(LIMITS).await.unwrap_err(), Refused::Full);
        assert_eq!(gate.traffic(), traffic(1, 2));
        drop(inside);
        // The one who is called has the place before having noticed: nobody slips in between.
        assert_eq!(gate.traffic(), traffic(1, 1));
        assert!((&mut third).now_or_never().is_none());
        let second = (&mut second).now_or_never().unwrap().unwrap();
        drop(second);
        drop(third.await.unwrap());
        assert_eq!(gate.traffic(), traffic(0, 0));
    }

    #[tokio::test]
    async fn nobody_waits_longer_than_allowed() {
        let gate = Gate::default();
        let _inside = gate.enter(LIMITS).await.unwrap();
        let wait = Duration::from_millis(20);
        let short = Limits { wait, ..LIMITS };
        assert_eq!(gate.enter(short).await.unwrap_err(), Refused::Late);
        assert!(gate.enter_at_once(LIMITS).is_none());
        assert_eq!(gate.traffic(), traffic(1, 0));
        let none = Limits { queue: 0, ..LIMITS };
        assert_eq!(gate.enter(none).await.unwrap_err(), Refused::Full);
    }

    #[tokio::test]
    async fn a_place_given_to_one_who_leaves_goes_to_the_next() {
        let gate = Gate::default();
        let inside = gate.enter(LIMITS).await.unwrap();
        let (called, mut next) = (waiting(&gate), waiting(&gate));
        drop(inside);
        drop(called);
        // Nobody overtakes who waits.
        assert!(gate.enter_at_once(LIMITS).is_none());
        assert!((&mut next).now_or_never().unwrap().is_ok());
        assert!(gate.enter_at_once(LIMITS).is_some());
    }

    #[tokio::test]
    async fn new_limits_hold_at_once() {
        let gate = Gate::default();
        let more = Limits {
            places: 3,
            ..LIMITS
        };
        let _first = gate.enter(LIMITS).await.unwrap();
        let second = waiting(&gate);
        let third = gate.enter(more).await.unwrap();
        let second = second.await.unwrap();
        assert_eq!(gate.traffic(), traffic(3, 0));
        // Who is inside stays; of those who leave then, the first two are not replaced.
        let mut fourth = waiting(&gate);
        drop(second);
        drop(third);
        assert!((&mut fourth).now_or_never().is_none());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Arrive { places: usize, queue: usize },
        GiveUp(usize),
        Leave(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (1_usize..4, 0_usize..5).prop_map(|(places, queue)| Step::Arrive { places, queue }),
            1 => any::<usize>().prop_map(Step::GiveUp),
            2 => any::<usize>().prop_map(Step::Leave),
        ]
    }

    /// What a gate promises, as simply as it can be said.
    #[derive(Default)]
    struct Model {
        places: usize,
        inside: Vec<usize>,
        line: VecDeque<usize>,
    }

    impl Model {
        fn admit(&mut self) {
            while self.inside.len() < self.places
                && let Some(next) = self.line.pop_front()
            {
                self.inside.push(next);
            }
        }
    }

    proptest! {
        /// Whatever happens in whatever order, those are inside who should be, and nobody is forgotten.
        #[test]
        fn a_gate_keeps_order(steps in prop::collection::vec(step(), 0..60), polls in any::<bool>()) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let _context = runtime.enter();
            let (gate, mut model) = (Gate::default(), Model::default());
            let mut asking: Vec<(usize, Entering)> = Vec::new();
            let mut places: Vec<(usize, Place)> = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Arrive { places: most, queue } => {
                        let limits = Limits { places: most, queue, wait: Duration::from_secs(3600) };
                        model.places = most;
                        model.admit();
                        let mut entering = entering(&gate, limits);
                        let refused = model.inside.len() >= most && model.line.len() >= queue;
                        match (&mut entering).now_or_never() {
                            Some(Ok(place)) => places.push((number, place)),
                            Some(Err(error)) => prop_assert!(refused && error == Refused::Full),
                            None => asking.push((number, entering)),
                        }
                        if !refused {
                            model.line.push_back(number);
                            model.admit();
                        }
                    }
                    Step::GiveUp(which) if !asking.is_empty() => {
                        let (number, entering) = asking.remove(which % asking.len());
                        drop(entering);
                        model.line.retain(|other| *other != number);
                        model.inside.retain(|other| *other != number);
                        model.admit();
                    }
                    Step::Leave(which) if !places.is_empty() => {
                        let (number, place) = places.remove(which % places.len());
                        drop(place);
                        model.inside.retain(|other| *other != number);
                        model.admit();
                    }
                    Step::GiveUp(_) | Step::Leave(_) => {}
                }
                // Sometimes nobody notices for a while that it has been called.
                if polls || number % 5 == 0 {
                    let mut still = Vec::new();
                    for (number, mut entering) in asking {
                        match (&mut entering).now_or_never() {
                            Some(place) => places.push((number, place.unwrap())),
                            None => still.push((number, entering)),
                        }
                    }
                    asking = still;
                    let mut inside: Vec<_> = places.iter().map(|(number, _)| *number).collect();
                    inside.sort_unstable();
                    model.inside.sort_unstable();
                    prop_assert_eq!(&inside, &model.inside);
                }
                let expected = Traffic { inside: model.inside.len(), waiting: model.line.len() };
                prop_assert_eq!(gate.traffic(), expected);
            }
        }
    }
}
