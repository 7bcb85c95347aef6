//! Connections that are kept for plain exchanges, and which origins are left to the HTTP client.

use std::{
    collections::HashMap,
    future::poll_fn,
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use cluster::{
    key::KeyHashes,
    net::{BoxStream, Net},
};
use tokio::{
    io::{AsyncRead as _, ReadBuf},
    time::{Instant, sleep, timeout_at},
};

use super::{Exchange, Failure, Plainly, Take};
use crate::{
    alarm::Alarm,
    upstream::pool::{IDLE_PER_HOST_MAX, IDLE_TIMEOUT},
};

/// How often those that have been idle for too long are looked for, while there are any.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// Requests for which an origin is left to the HTTP client after an answer that was not plain: its
/// connection was lost by that, and the next answers are likely to be of its kind.
const ODD_SKIPS: u32 = 32;
/// Origins remembered; more than any registry of sites names. Beyond it, nothing is kept.
const ORIGINS_MAX: usize = 4096;

/// Connections that wait for the next plain exchange.
pub(in crate::upstream) struct Kept {
    net: Arc<dyn Net>,
    origins: Mutex<ByAuthority>,
    /// Whether a task looks for those that have been idle for too long.
    is_swept: AtomicBool,
}

/// Who chooses the origins of sites chooses their names as well.
type ByAuthority = HashMap<String, Origin, KeyHashes>;

#[derive(Default)]
struct Origin {
    /// The one that was used last comes last.
    idle: Vec<Idle>,
    skips: u32,
}

pub(in crate::upstream) struct Idle {
    pub(super) stream: BoxStream,
    /// Room for the next request.
    pub(in crate::upstream) out: Vec<u8>,
    /// For the next answer.
    pub(super) alarm: Alarm,
    pub(super) since: Instant,
}

impl Kept {
    pub(in crate::upstream) fn new(net: Arc<dyn Net>) -> Self {
        Self {
            net,
            origins: Mutex::default(),
            is_swept: AtomicBool::new(false),
        }
    }

    fn origins(&self) -> MutexGuard<'_, ByAuthority> {
        self.origins
            .lock()
            .expect("no code panics while it holds this lock")
    }

    /// Whether the next request to `authority` (`host` or `host:port`) should be tried here.
    pub(in crate::upstream) fn takes(&self, authority: &str) -> bool {
        match self.origins().get_mut(authority) {
            Some(Origin { skips, .. }) if *skips > 0 => {
                *skips -= 1;
                false
            }
            _ => true,
        }
    }

    /// A connection to `authority`, one that waits if there is one and it may be `used`.
    pub(in crate::upstream) async fn open<'a>(
        self: &'a Arc<Self>,
        authority: &'a str,
        by: Instant,
        used: bool,
    ) -> Result<Exchange<'a>, (Failure, String)> {
        while let Some(Idle {
            mut stream,
            out,
            alarm,
            since,
        }) = used.then(|| self.last_used(authority)).flatten()
        {
            if since.elapsed() < IDLE_TIMEOUT && is_silent(&mut stream).await {
                return Ok(Exchange {
                    kept: self,
                    authority,
                    stream,
                    out,
                    alarm,
                    used: true,
                });
            }
        }
        let with_port;
        let address = match authority.rsplit_once(':') {
            Some((_, port)) if port.bytes().all(|b| b.is_ascii_digit()) => authority,
            _ => {
                with_port = format!("{authority}:80");
                &with_port
            }
        };
        match timeout_at(by, self.net.connect(address)).await {
            Ok(Ok(stream)) => Ok(Exchange {
                kept: self,
                authority,
                stream,
                out: Vec::new(),
                alarm: Alarm::default(),
                used: false,
            }),
            Ok(Err(error)) => Err((Failure::Connect, error.to_string())),
            Err(_) => Err((Failure::ConnectTimeout, "no connection in time".to_owned())),
        }
    }

    fn last_used(&self, authority: &str) -> Option<Idle> {
        self.origins().get_mut(authority)?.idle.pop()
    }

    /// A connection that waits, if the next request to `authority` should be tried here; it may have been
    /// closed meanwhile.
    pub(in crate::upstream) fn take(&self, authority: &str) -> Option<Idle> {
        let mut origins = self.origins();
        let origin = origins.get_mut(authority).filter(|o| o.skips == 0)?;
        let mut idle = origin.idle.pop()?;
        idle.out.clear();
        Some(idle)
    }

    /// Sends what was written into `idle`, `now`, and reads the answer; `None`: `take` has taken it.
    pub(in crate::upstream) async fn ask(
        self: &Arc<Self>,
        authority: &str,
        idle: Idle,
        [now, by]: [Instant; 2],
        sent: impl FnOnce(),
        take: Take<'_>,
    ) -> Option<Plainly> {
        let Idle {
            mut stream,
            out,
            alarm,
            since,
        } = idle;
        if now.saturating_duration_since(since) >= IDLE_TIMEOUT || !is_silent(&mut stream).await {
            return Some(Plainly::Closed);
        }
        sent();
        let exchange = Exchange {
            kept: self,
            authority,
            stream,
            out,
            alarm,
            used: true,
        };
        exchange.exchanged(by, take).await
    }

    fn with(&self, authority: &str, change: impl FnOnce(&mut Origin)) {
        let mut origins = self.origins();
        if let Some(origin) = origins.get_mut(authority) {
            change(origin);
        } else if origins.len() < ORIGINS_MAX {
            change(origins.entry(authority.to_owned()).or_default());
        }
    }

    pub(super) fn keep(self: &Arc<Self>, authority: &str, idle: Idle) {
        self.with(authority, |origin| {
            if origin.idle.len() < IDLE_PER_HOST_MAX {
                origin.idle.push(idle);
            }
        });
        if !self.is_swept.load(Ordering::Relaxed) && !self.is_swept.swap(true, Ordering::AcqRel) {
            let kept = Arc::downgrade(self);
            tokio::spawn(async move {
                loop {
                    sleep(SWEEP_EVERY).await;
                    if !kept.upgrade().is_some_and(|kept| kept.sweep(IDLE_TIMEOUT)) {
                        return;
                    }
                }
            });
        }
    }

    pub(super) fn skip(&self, authority: &str) {
        self.with(authority, |origin| origin.skips = ODD_SKIPS);
    }

    /// Closes what has been idle for `idle_max` or more. `false`: nothing is left, and the sweeper goes.
    fn sweep(&self, idle_max: Duration) -> bool {
        let mut origins = self.origins();
        origins.retain(|_, origin| {
            origin.idle.retain(|idle| idle.since.elapsed() < idle_max);
            // An origin may change, or be gone.
            origin.skips /= 2;
            !origin.idle.is_empty() || origin.skips > 0
        });
        let is_swept = !origins.is_empty();
        // Under the lock: what is kept after this finds that nobody sweeps.
        self.is_swept.store(is_swept, Ordering::Release);
        is_swept
    }
}

/// Whether an idle connection is open, and says nothing unasked. Costs a system call only if it is not.
async fn is_silent(stream: &mut BoxStream) -> bool {
    poll_fn(|context| {
        let mut space = [MaybeUninit::uninit()];
        let read = Pin::new(&mut *stream).poll_read(context, &mut ReadBuf::uninit(&mut space));
        Poll::Ready(read.is_pending())
    })
    .await
}

#[cfg(test)]
mod tests {
    use cluster::net::SystemNet;
    use http::HeaderMap;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::upstream::{
        plain::{Spelling, tests::Bench},
        scripted::{Scripted, pending, read_head},
    };

    #[tokio::test]
    async fn a_connection_that_nobody_uses_is_closed() {
        let (closed, mut is_closed) = tokio::sync::mpsc::channel(1);
        let origin = Scripted::start(move |_, mut stream| {
            let closed = closed.clone();
            async move {
                read_head(&mut stream).await;
                let said = b"HTTP/1.1 204 No Content\r\n\r\n";
                stream.write_all(said).await.unwrap();
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await.unwrap();
                closed.send(()).await.unwrap();
            }
        })
        .await;
        let (kept, authority) = (Arc::new(Kept::new(Arc::new(SystemNet))), origin.address());
        let by = Instant::now() + Duration::from_secs(20);
        let Ok(exchange) = kept.open(&authority, by, true).await else {
            panic!("it listens")
        };
        let (fields, spelling) = (HeaderMap::new(), Spelling::default());
        let answer = exchange.get("/", &fields, &spelling, by).await;
        assert!(matches!(answer, Plainly::Whole(_)));
        assert!(kept.sweep(IDLE_TIMEOUT), "not yet");
        assert!(is_closed.try_recv().is_err());
        assert!(!kept.sweep(Duration::ZERO));
        is_closed.recv().await.unwrap();
    }

    #[tokio::test]
    async fn a_kept_connection_that_has_spoken_or_closed_is_not_used() {
        for unasked in ["HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", ""] {
            let origin = Scripted::start(move |connection, mut stream| async move {
                read_head(&mut stream).await;
                let said = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{connection}");
                stream.write_all(said.as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
                sleep(Duration::from_millis(20)).await;
                stream.write_all(unasked.as_bytes()).await.ok();
                if unasked.is_empty() {
                    return;
                }
                pending::<()>().await;
            })
            .await;
            let bench = Bench::new(&origin);
            assert_eq!(bench.get().await, "0");
            sleep(Duration::from_millis(100)).await;
            assert_eq!(bench.get().await, "1", "{unasked}");
        }
    }
}
