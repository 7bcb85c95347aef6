//! Keys that are not for everybody: who asks for one goes ahead without waiting for anybody. Pure.

use std::time::Duration;

use cluster::key::{Key, KeyMap};
use tokio::time::Instant;

/// How long requests for a key whose answer could not be shared go ahead by themselves.
pub(super) const PASS_FOR: Duration = Duration::from_secs(10);
/// Keys remembered as not shareable; when there is no room for another, it is not remembered.
const PASSING_MAX: usize = 65_536;

/// Keys whose last answer could not be shared, for [`PASS_FOR`].
#[derive(Default)]
pub(super) struct Passing {
    until: KeyMap<Instant>,
}

impl Passing {
    pub(super) fn is_passing(&mut self, key: Key, now: Instant) -> bool {
        if self.until.is_empty() {
            return false;
        }
        match self.until.get(&key) {
            Some(until) if *until > now => true,
            Some(_) => {
                self.until.remove(&key);
                false
            }
            None => false,
        }
    }

    pub(super) fn add(&mut self, key: Key, now: Instant) {
        if self.until.len() >= PASSING_MAX {
            self.until.retain(|_, until| *until > now);
        }
        if self.until.len() < PASSING_MAX {
            self.until.insert(key, now + PASS_FOR);
        }
    }

    pub(super) fn stop(&mut self, key: Key) {
        self.until.remove(&key);
    }
}
