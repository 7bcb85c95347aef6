//! In which order those are asked who may have what is missing, and what each of them took.

use std::sync::Arc;

use http::Method;
use tokio::time::Instant;
use tracing::debug;

use super::{Asked, Proxy, fetch::Own};
use crate::{
    cache::{
        Filler, Onlooker, Outcome,
        entry::{Body, Entry},
    },
    upstream::{
        home::{Level, Way},
        paying::{From, Order, Sample},
    },
};

impl Proxy {
    /// Fills from holders, then from afar; or the other way round where holders do not pay
    /// ([`crate::upstream::paying`]).
    pub(super) async fn fill(
        &self,
        mut filler: Filler,
        asked: &Asked,
        stored: Option<Arc<Entry>>,
        method: Method,
        way: Way,
        own: Own,
    ) {
        let upstream = &self.shared.upstream;
        let is_stale = stored
            .as_ref()
            .is_some_and(|entry| entry.head.part.is_none());
        // What is stale is validated where it came from. A home spares the origin whatever that takes, and has
        // other digests than who asks it.
        if is_stale || asked.level != Level::Client || !upstream.has_peers() {
            if !is_stale && asked.level != Level::Client {
                let holders = upstream.holders(asked.key);
                filler = match Box::pin(self.fill_from_peers(filler, asked, &holders)).await {
                    Ok(()) => return,
                    Err(filler) => filler,
                };
            }
            let filled = self.fill_from_afar(filler, asked, stored, method, way, own);
            return filled.await;
        }
        let (site, path) = (&*asked.site, asked.uri.path());
        let (begun, onlooker) = (Instant::now(), filler.look_on());
        let holders = upstream.holders(asked.key);
        let order = (!holders.is_empty()).then(|| upstream.decide(site, path));
        let mut rescued = None;
        match order {
            None => {}
            Some(Order::OriginFirst) => rescued = Some(filler.rescue()),
            Some(Order::PeersFirst) => {
                filler = match self.fill_from_peers(filler, asked, &holders).await {
                    Ok(()) => return self.took(asked, From::Peer, begun, &onlooker).await,
                    Err(filler) => filler,
                }
            }
        }
        let left = Instant::now();
        // Not in this future, which would be larger by it for every hit at a peer.
        Box::pin(self.fill_from_afar(filler, asked, stored, method, way, own)).await;
        if let Some((filler, error)) = rescued.and_then(|mut rescued| rescued.try_recv().ok()) {
            debug!(uri = %asked.uri, detail = error.detail, "origin failed, holders are asked");
            if let Err(filler) = self.fill_from_peers(filler, asked, &holders).await {
                filler.fail(error);
            }
            return;
        }
        if order == Some(Order::PeersFirst)
            && let Some(known) = onlooker.known_at()
        {
            upstream.in_vain(site, path, known - begun);
        }
        self.took(asked, From::Origin, left, &onlooker).await;
    }

    /// Notes what a fill took that began at `begun` and has come to its end.
    async fn took(&self, asked: &Asked, from: From, begun: Instant, onlooker: &Onlooker) {
        let (Some(Outcome::Shared(entry)), Some(known)) = (onlooker.outcome(), onlooker.known_at())
        else {
            return;
        };
        let bytes = match &entry.body {
            // It has ended.
            Body::Growing(growing) if growing.ended().await.is_ok() => growing.length(),
            Body::Growing(_) => return,
            _ => entry.length().unwrap_or(0),
        };
        if entry.head.status.is_success() {
            let sample = Sample {
                first: known - begun,
                rest: known.elapsed(),
                bytes,
            };
            let (site, path) = (&asked.site, asked.uri.path());
            self.shared.upstream.took(site, path, from, sample);
        }
    }
}
