//! A timer that is set anew only when it goes off: what is put off with every write or request costs none of
//! them a timer.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer for one moment after the other.
#[derive(Default)]
pub(crate) struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Ready at `until`, which later calls may put off; one that draws it nearer costs a timer.
    pub(crate) fn poll_at(&mut self, until: Instant, context: &mut Context<'_>) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if sleep.deadline() > until {
            sleep.as_mut().reset(until);
        }
        loop {
            ready!(sleep.as_mut().poll(context));
            if sleep.deadline() >= until {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(until);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_put_off_and_drawn_nearer() {
        let begun = Instant::now();
        let mut alarm = Alarm::default();
        for (seconds, waits) in [(5, false), (10, true), (60, false), (20, true)] {
            let until = begun + Duration::from_secs(seconds);
            let at = poll_fn(|context| alarm.poll_at(until, context));
            if waits {
                at.await;
                assert!((until..until + Duration::from_millis(5)).contains(&Instant::now()));
            } else {
                assert!(at.now_or_never().is_none());
            }
        }
    }
}
