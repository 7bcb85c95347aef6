//! Tells every edge at once that the sites have a new version. Gossip says so as well, a round or a few
//! later; an edge that does not hear this hears that.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cluster::{
    auth::Signer,
    clock::Clock,
    net::Net,
    node::{NodeId, Role},
    wire::SITES,
};
use http_body_util::Empty;
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::debug;

use crate::{atlas::Atlas, sites::snapshot::Snapshot};

/// Edges told at the same time.
const AT_ONCE_MAX: usize = 64;
/// For one edge, all in all: gossip reaches it later than that anyway.
const WITHIN: Duration = Duration::from_secs(2);
/// Least time between two rounds: many changes in a row are one piece of news.
const EVERY: Duration = Duration::from_millis(50);

/// What it takes to speak to edges.
#[derive(Clone)]
pub struct Nudger {
    /// The network.
    pub net: Arc<dyn Net>,
    /// Proves who speaks.
    pub signer: Signer,
    /// The wall clock.
    pub clock: Clock,
}

impl Nudger {
    /// Tells of each new version, until it is dropped.
    pub async fn run(
        self,
        mut sites: watch::Receiver<Arc<Snapshot>>,
        atlas: watch::Receiver<Arc<Atlas>>,
    ) {
        let mut told = sites.borrow_and_update().version();
        while sites.changed().await.is_ok() {
            let version = sites.borrow_and_update().version();
            if version == told {
                continue;
            }
            told = version;
            let edges: Vec<_> = atlas
                .borrow()
                .statuses()
                .into_iter()
                .filter(|node| node.role == Role::Edge && node.alive && !node.peer.is_empty())
                .map(|node| (node.id, node.peer))
                .collect();
            let mut telling = JoinSet::new();
            for (id, at) in edges {
                if telling.len() >= AT_ONCE_MAX {
                    telling.join_next().await;
                }
                let nudger = self.clone();
                telling.spawn(async move {
                    let heard = timeout(WITHIN, nudger.tell(&id, &at, version)).await;
                    if let Ok(Err(error)) = heard {
                        debug!(edge = %id, error, "not told of new sites");
                    }
                });
            }
            while telling.join_next().await.is_some() {}
            sleep(EVERY).await;
        }
    }

    async fn tell(&self, edge: &NodeId, at: &str, version: u64) -> Result<(), String> {
        let stream = self
            .net
            .connect(at)
            .await
            .map_err(|error| error.to_string())?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let target = format!("{SITES}?version={version}");
        let mut request = Request::get(&target).header(header::HOST, at);
        for (name, value) in self.signer.sign(edge, "GET", &target, self.clock.unix_ms()) {
            request = request.header(name, value);
        }
        let request = request
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        // The connection ends with this.
        let answered = async {
            sender
                .send_request(request)
                .await
                .map_err(|error| error.to_string())
        };
        tokio::select! {
            answer = answered => answer.map(drop),
            ended = connection => ended.map_err(|error| error.to_string()),
        }
    }
}
