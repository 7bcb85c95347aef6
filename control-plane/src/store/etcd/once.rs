//! What makes a change happen once, however many members it was sent to.
//!
//! A change also puts a *mark* of its own under a key that only its sender puts, on the condition that this key
//! was last put by the change before. So a second copy of it finds that condition broken, whenever it comes:
//! also from a member that was stopped and goes on an hour later. And the mark says which revision the first
//! copy had. A sender has several such keys, because it makes several changes at once.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::words::{Txn, TxnDone};

/// Changes at once, each with a key of its own; more wait.
const PLACES_MAX: usize = 64;
/// Below it, after the name of who makes the changes, are the keys of marks.
const FAMILY: &str = "commits/";

/// The keys of one sender.
pub(super) struct Places {
    /// What they begin with.
    prefix: String,
    /// No other process marks like this one.
    process: u64,
    marks: AtomicU64,
    made: AtomicUsize,
    free: Mutex<Vec<Place>>,
    at_once: Semaphore,
}

/// A key, and the revision that put it last as far as is known; 0: none.
#[derive(Clone, Copy, Debug)]
struct Place {
    number: usize,
    last: u64,
}

/// A key, for one change. Dropping it lets others have the key.
pub(super) struct Held<'a> {
    places: &'a Places,
    place: Place,
    _turn: Option<SemaphorePermit<'a>>,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It happened, as this revision.
    Made(u64),
    /// One of its conditions does not hold.
    Conflict,
    /// It did not and will not happen: its key was put by something else, which is known now.
    Anew,
}

impl Places {
    /// Of a sender of this name below `prefix`.
    pub(super) fn new(prefix: &str, name: &str) -> Self {
        Self {
            prefix: format!("{prefix}{FAMILY}{name}/"),
            process: RandomState::new().hash_one(name),
            marks: AtomicU64::new(0),
            made: AtomicUsize::new(0),
            free: Mutex::default(),
            at_once: Semaphore::new(PLACES_MAX),
        }
    }

    /// A key that nobody else here uses meanwhile.
    pub(super) async fn hold(&self) -> Held<'_> {
        // It is never closed.
        let turn = self.at_once.acquire().await.ok();
        let free = self
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let place = free.unwrap_or_else(|| Place {
            number: self.made.fetch_add(1, Ordering::Relaxed),
            last: 0,
        });
        Held {
            places: self,
            place,
            _turn: turn,
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let free = &self.places.free;
        free.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self.place);
    }
}

impl Held<'_> {
    fn key(&self) -> Vec<u8> {
        format!("{}{}", self.places.prefix, self.place.number).into_bytes()
    }

    /// A mark that there is not yet.
    pub(super) fn mark(&self) -> String {
        let number = self.places.marks.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}-{number}", self.places.process)
    }

    /// The change, so that it happens once.
    pub(super) fn once(&self, change: &Txn, mark: &str) -> Txn {
        let mut txn = change.clone();
        txn.last_put_by(self.key(), self.place.last);
        txn.put(self.key(), mark.to_owned().into());
        txn.or_else_get(self.key());
        txn
    }

    /// What keeps copies from happening that are still on their way.
    pub(super) fn end(&self, mark: &str) -> Txn {
        let mut txn = Txn::default();
        txn.put(self.key(), mark.to_owned().into());
        txn
    }

    /// What an answer to [`Held::once`] with this mark says.
    pub(super) fn outcome(&mut self, done: &TxnDone, mark: &str) -> Outcome {
        if done.succeeded {
            self.place.last = done.header.revision;
            return Outcome::Made(done.header.revision);
        }
        let found = done.found();
        let put_by = found.map_or(0, |found| found.mod_revision);
        if found.is_some_and(|found| found.value == mark.as_bytes()) {
            // Another copy was first.
            self.place.last = put_by;
            return Outcome::Made(put_by);
        }
        if put_by == self.place.last {
            return Outcome::Conflict;
        }
        self.place.last = put_by;
        Outcome::Anew
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde_json::json;

    use super::*;

    fn done(succeeded: bool, revision: u64, found: Option<(&str, u64)>) -> TxnDone {
        let kvs: Vec<_> = found
            .iter()
            .map(|(value, by)| json!({"value": STANDARD.encode(value), "mod_revision": by.to_string()}))
            .collect();
        let responses = match succeeded {
            true => json!([{"response_put": {"header": {"revision": "9"}}}]),
            false => json!([{"response_range": {"header": {"revision": "9"}, "kvs": kvs}}]),
        };
        let header = json!({"revision": revision.to_string()});
        let all = json!({"header": header, "succeeded": succeeded, "responses": responses});
        serde_json::from_value(all).unwrap()
    }

    #[tokio::test]
    async fn a_change_is_one_however_many_copies_of_it_were_sent() {
        let places = Places::new("p/", "control");
        let mut held = places.hold().await;
        let mark = held.mark();
        // The key is from an earlier life, and what was sent then may have come last.
        assert_eq!(
            held.outcome(&done(false, 6, Some(("old", 5))), &mark),
            Outcome::Anew
        );
        assert_eq!(
            held.outcome(&done(false, 6, Some(("old", 5))), &mark),
            Outcome::Conflict
        );
        assert_eq!(held.outcome(&done(true, 7, None), &mark), Outcome::Made(7));
        // Whoever asks for the same again learns which revision it had.
        assert_eq!(
            held.outcome(&done(false, 9, Some((&mark, 7))), &mark),
            Outcome::Made(7)
        );
        let other = held.mark();
        assert_ne!(mark, other);
        assert_eq!(
            held.outcome(&done(false, 9, Some((&mark, 7))), &other),
            Outcome::Conflict
        );
        // Nobody else has the key meanwhile.
        let second = places.hold().await;
        assert_ne!(held.key(), second.key());
        let first = held.key();
        drop(held);
        assert_eq!(places.hold().await.key(), first);
    }
}
