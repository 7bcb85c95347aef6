//! Wall time as a parameter (after rustls' `TimeProvider`).
//!
//! Intervals are measured with `tokio::time::Instant`; only what is compared with dates of other
//! machines (freshness, request authentication) asks a [`Clock`].

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Tells the wall time.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// The machine's own clock.
    pub fn system() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the one place that reads the clock"
        )]
        Self(Arc::new(SystemTime::now))
    }

    /// A clock that starts at `start` and moves with tokio's time, which a test may pause.
    pub fn tokio(start: SystemTime) -> Self {
        let origin = tokio::time::Instant::now();
        Self(Arc::new(move || start + origin.elapsed()))
    }

    /// Now.
    pub fn now(&self) -> SystemTime {
        (self.0)()
    }

    /// Now, in milliseconds since the Unix epoch (0 before it).
    pub fn unix_ms(&self) -> u64 {
        let since = self
            .now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
