//! What an unsafe request that went through here makes doubtful (RFC 9111 §4.4): here before its answer goes
//! out, and at the nodes that would bring back what was before, as soon as they hear of it.

use std::{sync::Arc, time::Duration};

use cluster::{key::Key, node::NodeId};
use futures_util::{StreamExt as _, stream};
use http::HeaderMap;
use tokio::{sync::Semaphore, time::timeout};
use tracing::debug;

use super::{Asked, Proxy, invalidation};
use crate::cache::key;

/// Changes that others are being told of at once. Of more than that they do not hear: what they have lasts as
/// long as it says.
const TELLING_MAX: usize = 256;
/// Nodes told at once of one change.
const AT_ONCE: usize = 8;
/// The answer waits so long for others to have heard: then whoever has it, and asks another node, mostly sees
/// what it has done.
const WAIT_MAX: Duration = Duration::from_millis(250);

/// How many changes others may be told of at once. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Telling(Arc<Semaphore>);

impl Default for Telling {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(TELLING_MAX)))
    }
}

/// A key that was invalidated.
struct Doubtful {
    key: Key,
    /// It names all objects of a URL that has several, or may be had in slices.
    is_of_many: bool,
}

impl Proxy {
    /// Invalidates what `asked`, which was answered with `answer`, has changed.
    pub(super) async fn changed(&self, asked: &Asked, answer: &HeaderMap) {
        let doubtful = self.doubtful(asked, answer);
        let now_ms = self.now();
        for Doubtful { key, .. } in &doubtful {
            self.shared.cache.invalidate(*key, now_ms).await;
        }
        let upstream = &self.shared.upstream;
        let told: Vec<(Key, NodeId, String)> = doubtful
            .iter()
            .flat_map(|doubtful| {
                let key = doubtful.key;
                let concerned = upstream.concerned(&asked.site, key, doubtful.is_of_many);
                concerned.into_iter().map(move |(id, addr)| (key, id, addr))
            })
            .collect();
        if told.is_empty() {
            return;
        }
        let Ok(place) = self.shared.telling.0.clone().try_acquire_owned() else {
            return self.shared.metrics.told_changed("busy");
        };
        let proxy = self.clone();
        let telling = tokio::spawn(async move {
            let _place = place;
            stream::iter(told)
                .for_each_concurrent(AT_ONCE, |(key, to, addr)| {
                    let proxy = proxy.clone();
                    async move {
                        let upstream = &proxy.shared.upstream;
                        let result = match upstream.tell_changed(&to, &addr, key).await {
                            Ok(()) => "told",
                            Err(error) => {
                                debug!(peer = %to, %error, "peer does not hear of a change");
                                "failed"
                            }
                        };
                        proxy.shared.metrics.told_changed(result);
                    }
                })
                .await;
        });
        // Whoever does not hear in time hears later.
        let _ = timeout(WAIT_MAX, telling).await;
    }

    fn doubtful(&self, asked: &Asked, answer: &HeaderMap) -> Vec<Doubtful> {
        let (site, rules) = (&asked.site.name, &asked.ruling.key);
        let named = invalidation::named(answer, &asked.uri, &asked.host_sent);
        let mut doubtful = Vec::new();
        for target in std::iter::once(asked.target().to_owned()).chain(named) {
            let key = key::key(site, &asked.host, &target, &asked.headers, rules);
            doubtful.push(Doubtful {
                key,
                // Who has slices of it does not claim it. Where a miss fetches the whole, they are held against that.
                is_of_many: !asked.rules.fill_whole,
            });
            if let Some(key) = super::pass::whole_key(&asked.ruling, &asked.host, &target) {
                doubtful.push(Doubtful {
                    key,
                    is_of_many: true,
                });
            }
        }
        doubtful
    }
}
