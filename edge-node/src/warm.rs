//! Fetching ahead of demand, as the control plane asks for on the peer listener: a batch of URLs comes
//! in, and what came of each goes out as soon as it is known. Nothing of it is kept here: who asks
//! remembers, and asks again for what it has not heard of; what is stored then is found stored.
//!
//! Such fetches give way to those of clients ([`Proxy::warm`]).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cluster::{
    key::Key,
    wire::{WARM_SILENCE_MAX_S, WarmBatch, WarmResult, WarmSource, WarmStep},
};
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::debug;

use crate::{
    metrics::Metrics,
    proxy::{Again, Cold, Proxy},
};

/// Fetches ahead of demand at once on this node, whatever asked for them: enough to fill a line of
/// 100 ms to the origin with small files, few beside the fills that clients may have.
pub const FETCHES_MAX: usize = 8;
/// Offers that wait for their turn; what is offered beyond is not taken.
const OFFERS_MAX: usize = 64;
/// How often a URL is tried before it counts as failed.
const TRIES_MAX: u32 = 3;
/// Pause after a failure; doubles with each.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How often a node that has more important work is asked again, with [`BUSY_PAUSE`] between: ten
/// minutes. A node that is busy for longer tells so, rather than holding up the rest for ever.
const BUSY_TRIES_MAX: u32 = 600;
const BUSY_PAUSE: Duration = Duration::from_secs(1);
/// Longest silence in an answer; the one who reads it waits three times as long.
const SILENCE: Duration = Duration::from_secs(WARM_SILENCE_MAX_S / 3);

/// Fetches ahead of demand. A clone-able handle.
#[derive(Clone)]
pub struct Warmer {
    proxy: Proxy,
    places: Arc<Semaphore>,
    offers: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Warmer {
    /// Fetches by means of `proxy`.
    pub fn new(proxy: Proxy, metrics: Arc<Metrics>) -> Self {
        let places = Arc::new(Semaphore::new(FETCHES_MAX));
        Self {
            proxy,
            places,
            offers: Arc::new(Semaphore::new(OFFERS_MAX)),
            metrics,
        }
    }

    /// Fetches what is in `batch`, as the answer is read: what came of each URL on a line, as they come
    /// in. Dropping it begins no further fetch.
    pub fn batch(&self, batch: WarmBatch) -> BoxStream<'static, Bytes> {
        let (warmer, site) = (self.clone(), Arc::<str>::from(batch.site));
        let steps = stream::iter(batch.urls.into_iter().enumerate())
            .map(move |(url, text)| {
                let (warmer, site) = (warmer.clone(), site.clone());
                async move {
                    let result = warmer.fetched(&site, &text).await;
                    WarmStep { url, result }
                }
            })
            .buffer_unordered(FETCHES_MAX)
            .boxed();
        let next = |mut steps: BoxStream<'static, WarmStep>| async move {
            let line = match timeout(SILENCE, steps.next()).await {
                Ok(step) => line(&step?),
                Err(_) => Bytes::from_static(b"\n"),
            };
            Some((line, steps))
        };
        stream::unfold(steps, next).boxed()
    }

    /// Fetches what a peer offers, if there is room for it now, and says whether there is.
    pub fn offered(&self, key: Key, site: &str, url: String) -> bool {
        let Ok(place) = self.offers.clone().try_acquire_owned() else {
            return false;
        };
        let (warmer, site) = (self.clone(), site.to_owned());
        tokio::spawn(async move {
            let Ok(_fetching) = warmer.places.acquire().await else {
                return;
            };
            match warmer.proxy.warm(&site, &url, Some(key)).await {
                Ok((from, _)) => warmer.metrics.warmed(from.label()),
                Err(error) => debug!(url, %error, "what was offered was not fetched"),
            }
            drop(place);
        });
        true
    }

    /// What came of one URL.
    async fn fetched(&self, site: &str, url: &str) -> WarmResult {
        match self.fetch(site, url).await {
            Ok((from, bytes)) => {
                self.metrics.warmed(from.label());
                WarmResult::Held { from, bytes }
            }
            Err(Cold { reason, .. }) => {
                self.metrics.warmed("failed");
                WarmResult::Failed { reason }
            }
        }
    }

    async fn fetch(&self, site: &str, url: &str) -> Result<(WarmSource, u64), Cold> {
        let (mut failures, mut waits) = (0, 0);
        loop {
            let place = self.places.acquire().await;
            // A future that is polled among others must not be large.
            let cold = match Box::pin(self.proxy.warm(site, url, None)).await {
                Ok(warmed) => return Ok(warmed),
                Err(cold) => cold,
            };
            drop(place);
            match cold.again {
                Again::Later if failures + 1 < TRIES_MAX => {
                    sleep(RETRY_PAUSE * (1 << failures)).await;
                    failures += 1;
                }
                Again::WhenIdle if waits < BUSY_TRIES_MAX => {
                    sleep(BUSY_PAUSE).await;
                    waits += 1;
                }
                Again::Never | Again::Later | Again::WhenIdle => return Err(cold),
            }
        }
    }
}

fn line(step: &WarmStep) -> Bytes {
    let mut line = serde_json::to_vec(step).expect("plain data with text keys");
    line.push(b'\n');
    line.into()
}
