//! A lane: the way of [plain exchanges](super::plain) with the one origin of a site, looked up once and
//! used for many requests. What does not stay plain goes on as any other request does ([`Begun`]).

use std::{sync::Arc, time::Duration};

use cluster::site::Site;
use http::HeaderValue;
use tokio::time::Instant;

use super::{
    gate::{Gate, Limits, Place},
    plain::{Idle, Kept, Plainly, Take},
    pool::plain_authority,
};

/// The way of plain exchanges with the one origin of a site.
pub struct Lane {
    kept: Arc<Kept>,
    gate: Gate,
    limits: Limits,
    authority: String,
    host: Option<String>,
    patience: Duration,
}

impl Lane {
    /// The lane of a site with one origin, over plain TCP.
    pub(super) fn new(site: &Site, kept: Arc<Kept>, gate: Gate) -> Option<Self> {
        let [origin] = &site.origins[..] else {
            return None;
        };
        let host = origin.host.clone().or_else(|| site.origin_host.clone());
        let is_sound = |host: &String| HeaderValue::from_str(host).is_ok();
        host.as_ref().is_none_or(is_sound).then_some(())?;
        Some(Self {
            kept,
            gate,
            limits: Limits::of(site),
            authority: plain_authority(&origin.url)?.to_owned(),
            host,
            patience: site.first_byte_timeout.0,
        })
    }

    /// `Host` towards the origin, where it is always the same.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// A place at the origin and a connection, if both are there at once.
    pub fn take(&self) -> Option<Ready> {
        let place = self.gate.enter_at_once(self.limits)?;
        let idle = self.kept.take(&self.authority)?;
        Some(Ready { place, idle })
    }

    /// Sends the request that was written into `ready`, `now`, which is `asked_ms`, and reads the answer, for
    /// `take` to take; `sent` hears that it is sent.
    ///
    /// # Errors
    ///
    /// It was not taken: what there is instead; nothing if the connection was closed before.
    pub async fn ask(
        &self,
        ready: Ready,
        now: Instant,
        asked_ms: u64,
        sent: impl FnOnce(),
        take: Take<'_>,
    ) -> Result<(), Option<Begun>> {
        let Ready { place, idle } = ready;
        let by = now + self.patience;
        let asked = self.kept.ask(&self.authority, idle, [now, by], sent, take);
        match asked.await {
            None => Ok(()),
            Some(Plainly::Closed) => Err(None),
            Some(plainly) => Err(Some(Begun {
                plainly,
                by,
                place,
                asked_ms,
            })),
        }
    }
}

/// A place at the origin, and a connection to it that waits for a request.
pub struct Ready {
    place: Place,
    idle: Idle,
}

impl Ready {
    /// What is written here is what is sent.
    pub fn request(&mut self) -> &mut Vec<u8> {
        &mut self.idle.out
    }
}

/// An exchange that was begun in a lane and has not stayed plain; see
/// [`Upstream::conclude`](super::Upstream::conclude).
pub struct Begun {
    pub(super) plainly: Plainly,
    pub(super) by: Instant,
    pub(super) place: Place,
    /// When the origin was asked, in Unix milliseconds.
    pub asked_ms: u64,
}
