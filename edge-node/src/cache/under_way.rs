//! A fetch under way, as those see it who wait for what comes of it. Who fetches has a [`super::Filler`].

use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use cluster::key::Key;
use tokio::{sync::watch, time::Instant};

use super::{Following, Outcome, entry::Entry};

/// One fetch under way.
pub(super) struct Fill {
    /// The key of its URL.
    pub(super) primary: Key,
    /// What it brings is not wanted any more.
    pub(super) is_cancelled: AtomicBool,
    /// The one whose place it took while that was still being written.
    pub(super) before: Option<Arc<Self>>,
    pub(super) told: Mutex<Told>,
    /// Since when it is known what comes of it.
    pub(super) known_at: OnceLock<Instant>,
}

/// What is known of a fill. Most are followed by nobody, and need nothing by which to tell.
pub(super) enum Told {
    /// Not what came of it.
    Nothing {
        /// See [`super::Filler::reaches`].
        reach: Option<u8>,
        /// Who waits for it.
        followers: Option<watch::Sender<Progress>>,
    },
    /// What came of it.
    All(Outcome),
}

/// What those who wait for a fill are told.
pub struct Progress {
    pub(super) reach: Option<u8>,
    pub(super) outcome: Option<Outcome>,
}

impl Fill {
    pub(super) fn new(primary: Key, before: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self {
            primary,
            is_cancelled: AtomicBool::new(false),
            before,
            told: Mutex::new(Told::Nothing {
                reach: None,
                followers: None,
            }),
            known_at: OnceLock::new(),
        })
    }

    pub(super) fn told(&self) -> MutexGuard<'_, Told> {
        self.told
            .lock()
            .expect("no code panics while it holds this lock")
    }

    pub(super) fn follow(&self) -> Following {
        match &mut *self.told() {
            Told::Nothing { reach, followers } => {
                let begun = || Progress {
                    reach: *reach,
                    outcome: None,
                };
                let followers = followers.get_or_insert_with(|| watch::Sender::new(begun()));
                Following::Waits(followers.subscribe())
            }
            Told::All(outcome) => Following::Knows(outcome.clone()),
        }
    }

    pub(super) fn tell(&self, outcome: Outcome) {
        let _ = self.known_at.set(Instant::now());
        let before = std::mem::replace(&mut *self.told(), Told::All(outcome.clone()));
        if let Told::Nothing {
            followers: Some(followers),
            ..
        } = before
        {
            followers.send_modify(|progress| progress.outcome = Some(outcome));
        }
    }

    pub(super) fn reaches(&self, word: u8) {
        if let Told::Nothing { reach, followers } = &mut *self.told() {
            // Who may wait for it now may do so for good.
            let now = reach.map_or(word, |before| before.min(word));
            let reach = *reach.insert(now);
            if let Some(followers) = followers {
                followers.send_modify(|progress| progress.reach = Some(reach));
            }
        }
    }

    pub(super) fn has_brought(&self, object: u64) -> bool {
        self.has_brought_what(|entry| entry.object == object)
    }

    pub(super) fn has_brought_what(&self, is_it: impl FnOnce(&Entry) -> bool) -> bool {
        match &*self.told() {
            Told::All(Outcome::Shared(entry) | Outcome::Refreshed(entry)) => is_it(entry),
            _ => false,
        }
    }

    /// This one and those whose place it took.
    pub(super) fn with_before(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |fill| fill.before.as_deref())
    }

    pub(super) fn cancel(&self) {
        for fill in self.with_before() {
            fill.is_cancelled.store(true, Ordering::Release);
        }
    }
}
