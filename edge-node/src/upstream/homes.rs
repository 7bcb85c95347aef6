//! Homes that are asked for one thing: one after the other as they refuse or fail, and side by side when one
//! is silent. A home that has begun to answer is waited for, however long its origin takes: it says that it is
//! there. One that says nothing gets company after [`patience`]; who is the first to tell something counts.

use std::{future::Future, pin::Pin, time::Duration};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::{
    Upstream,
    health::Severity,
    home::{Home, Level, Reached, reach},
    peer::{CONNECT_TIMEOUT, HEAD_TIMEOUT, PeerError, connect_timeout},
    relayed::{Told, Wanted},
};

/// A home is silent when it has said nothing for so many times what is late for it: company costs a request
/// at the origin.
const LATE_TIMES: u32 = 2;
/// Nobody is silent sooner than this: a home that shares two cores with seven others and four hundred clients
/// takes that long to say anything, and company for it costs the second request at the origin that homes are
/// there to spare.
const SILENCE_MIN: Duration = Duration::from_millis(800);
/// Who is woken so much too late has itself been away, and does not know who was silent.
const LAG_MAX: Duration = Duration::from_millis(50);

/// How long a home may say nothing at all before the next is asked beside it: what a new connection to it may
/// take, several round trips and the noise of a busy machine, or more where its answers are late more often.
/// `late_after` is the 95th percentile of these.
pub fn patience(round_trip_ms: Option<f64>, late_after: Option<Duration>) -> Duration {
    let late = late_after.unwrap_or_default().saturating_mul(LATE_TIMES);
    connect_timeout(round_trip_ms)
        .max(late)
        .clamp(SILENCE_MIN, CONNECT_TIMEOUT)
}

/// What came of one home.
enum Said {
    /// It answers.
    Reached(usize, Reached),
    /// This is what it tells, or how it failed.
    Told(usize, Result<Told, PeerError>),
}

/// A home that was asked and has not begun to answer.
struct Silent {
    home: usize,
    asked: Instant,
    /// From then on it is late.
    until: Instant,
    patience: Duration,
}

/// The homes on a way, as they are asked.
pub struct Homes<'a> {
    upstream: Upstream,
    way: &'a [Home],
    wanted: Wanted<'a>,
    /// How many were asked.
    asked: usize,
    silent: Vec<Silent>,
    /// How many answer and have not told anything.
    answering: usize,
    saying: FuturesUnordered<Pin<Box<dyn Future<Output = Said> + Send + 'a>>>,
}

impl Upstream {
    /// Asks the homes on this `way` for what is `wanted`, as far as it takes.
    pub fn homes<'a>(&self, way: &'a [Home], wanted: Wanted<'a>) -> Homes<'a> {
        Homes {
            upstream: self.clone(),
            way,
            wanted,
            asked: 0,
            silent: Vec::new(),
            answering: 0,
            saying: FuturesUnordered::new(),
        }
    }
}

impl Homes<'_> {
    /// What a home says: its number on the way, and what it tells, or how it failed. `None` when all have
    /// been asked, and nobody answers any more. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<(usize, Result<Told, PeerError>)> {
        loop {
            let now = Instant::now();
            let waits = self.answering > 0 || self.silent.iter().any(|silent| now < silent.until);
            if !waits && self.asked < self.way.len() {
                self.ask(now);
                continue;
            }
            if !waits {
                self.leave_silent(now);
                return None;
            }
            // While one answers, nobody else is asked.
            let due = match self.answering {
                0 => self.silent.iter().map(|silent| silent.until).max(),
                _ => None,
            };
            let due = due.unwrap_or(now + HEAD_TIMEOUT);
            tokio::select! {
                biased;
                said = self.saying.next() => match said? {
                    Said::Reached(home, reached) => {
                        self.silent.retain(|silent| silent.home != home);
                        self.answering += 1;
                        let told = async move { Said::Told(home, reached.told().await) };
                        self.saying.push(Box::pin(told));
                    }
                    Said::Told(home, told) => {
                        let before = self.silent.len();
                        self.silent.retain(|silent| silent.home != home);
                        if self.silent.len() == before {
                            self.answering -= 1;
                        }
                        if told.is_ok() {
                            self.leave_silent(Instant::now());
                        }
                        return Some((home, told));
                    }
                },
                () = sleep_until(due) => {
                    let now = Instant::now();
                    if now > due + LAG_MAX {
                        self.silent.iter_mut().for_each(|silent| silent.again(now));
                    }
                }
            }
        }
    }

    /// For whose answer it may have to wait from now on.
    pub fn reach(&self) -> Level {
        let silent = self.silent.iter().map(|silent| self.way[silent.home].level);
        let left = self.way[self.asked..].iter().map(|home| home.level);
        match self.answering {
            0 => silent.chain(left).max().unwrap_or(Level::Origin),
            // Who that is, is not known here.
            _ => reach(self.way),
        }
    }

    /// How many of the way have been asked.
    pub fn asked(&self) -> usize {
        self.asked
    }

    /// Asks the next one.
    fn ask(&mut self, now: Instant) {
        let number = self.asked;
        let home = &self.way[number];
        let health = &self.upstream.0.health;
        let patience = patience(
            health.of(&home.id).round_trip_ms(),
            health.late_after(&home.id),
        );
        self.asked += 1;
        self.silent.push(Silent {
            home: number,
            asked: now,
            until: now + patience,
            patience,
        });
        let (upstream, wanted) = (self.upstream.clone(), self.wanted);
        self.saying.push(Box::pin(async move {
            match upstream.reach_home(home, wanted).await {
                Ok(reached) => Said::Reached(number, reached),
                Err(error) => Said::Told(number, Err(error)),
            }
        }));
    }

    /// Whoever is late and has been overtaken is not asked first by the next who comes.
    fn leave_silent(&mut self, now: Instant) {
        for silent in self.silent.iter().filter(|silent| silent.until <= now) {
            let peer = &self.way[silent.home].id;
            let ms = (now - silent.asked).as_millis();
            warn!(%peer, ms, "home is silent, another is asked");
            let health = &self.upstream.0.health;
            health.with(peer, |h| h.failed(Severity::Failed, "silent", now));
        }
    }
}

impl Silent {
    /// The wait begins again, but the question does not outlive its own bound.
    fn again(&mut self, now: Instant) {
        self.until = (now + self.patience).min(self.asked + HEAD_TIMEOUT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_follows_what_was_measured() {
        let ms = Duration::from_millis;
        for (round_trip_ms, late_after_ms, expected_ms) in [
            (None, None, 1_000),
            (Some(0.2), None, 800),
            (Some(0.2), Some(2), 800),
            (Some(30.0), Some(40), 800),
            // Its answers vary.
            (Some(1.0), Some(450), 900),
            (Some(1.0), Some(3_000), 1_000),
            (Some(400.0), Some(10), 1_000),
        ] {
            let patience = patience(round_trip_ms, late_after_ms.map(ms));
            let off = patience.abs_diff(ms(expected_ms));
            assert!(
                off < ms(1),
                "{round_trip_ms:?} {late_after_ms:?}: {patience:?}"
            );
        }
    }
}
