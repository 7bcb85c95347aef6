//! Pages of the purge log, from control planes or from peers.

use std::time::Duration;

use cluster::{
    auth,
    node::{NodeId, NodeInfo},
    purge::{Position, SCOPES_MAX},
    wire::{self, ErrorAnswer, PURGE_PAGE_BYTES_MAX, PURGE_PAGE_MAX, PURGES, PurgePage},
};
use futures_util::future::select_ok;
use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::{
    Upstream,
    control::{ControlError, ControlPlanes},
    peer::PeerError,
    pool::{self, Patience, Reuse},
};

/// A page, and what JSON puts around it.
const BYTES_MAX: usize = PURGE_PAGE_BYTES_MAX + (64 << 10);

/// The question for what comes behind a place.
fn path_behind(Position { log, seq }: Position) -> String {
    format!("{PURGES}?log={log}&after={seq}&limit={PURGE_PAGE_MAX}")
}

/// How long pages may take. Who is silent is found out soon; who sends, however slowly, is listened to for longer.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// For a connection, and for the head of each page.
    pub head: Duration,
    /// When the last page must be there.
    pub by: Instant,
}

impl Pace {
    fn patience(self) -> Patience {
        let left = self.by.saturating_duration_since(Instant::now());
        let each = self.head.min(left).max(Duration::from_millis(1));
        Patience {
            connect: each,
            head: each,
        }
    }
}

/// What is wrong with a page, if anything is.
fn check(page: PurgePage) -> Result<PurgePage, String> {
    let fits = page.records.len() <= PURGE_PAGE_MAX
        && page.records.iter().all(|record| {
            record.at.log == page.log && (1..=SCOPES_MAX).contains(&record.purge.scopes.len())
        });
    if fits {
        Ok(page)
    } else {
        Err("not a page of the purge log".to_owned())
    }
}

impl ControlPlanes {
    /// What comes behind `after` in the purge log, from the first control plane that answers in time;
    /// all are asked at once.
    ///
    /// # Errors
    ///
    /// What was wrong with the last to answer.
    pub async fn purges(
        &self,
        after: Position,
        reuse: Reuse,
        pace: Pace,
    ) -> Result<PurgePage, ControlError> {
        let path = path_behind(after);
        let asked = self.bases().iter().map(|base| {
            let url = format!("{base}{path}");
            let path = &path;
            Box::pin(async move {
                let page = self.purge_page(&url, path, after, reuse, pace).await;
                page.map_err(|reason| ControlError { url, reason })
            })
        });
        let asked: Vec<_> = asked.collect();
        if asked.is_empty() {
            return Err(ControlError {
                url: String::new(),
                reason: "no control plane configured".into(),
            });
        }
        select_ok(asked).await.map(|(page, _)| page)
    }

    async fn purge_page(
        &self,
        url: &str,
        path: &str,
        after: Position,
        reuse: Reuse,
        pace: Pace,
    ) -> Result<PurgePage, String> {
        let request = || pool::get(url, self.fields(path)).map_err(|e| e.to_string());
        let document = self
            .pool()
            .document_over::<String>(reuse, request, pace.patience(), BYTES_MAX, pace.by)
            .await?;
        match document.head.status {
            StatusCode::OK => {}
            // One that is older than purges has taken none.
            StatusCode::NOT_FOUND if after.log == 0 => {
                return Ok(PurgePage {
                    log: 0,
                    head: 0,
                    through: 0,
                    records: Vec::new(),
                    age_ms: None,
                    now_ms: None,
                });
            }
            status => {
                let said: Option<ErrorAnswer> = serde_json::from_slice(&document.body).ok();
                return Err(format!(
                    "{status} {}",
                    said.map_or(String::new(), |e| e.error)
                ));
            }
        }
        if let Some(secret) = self.secret() {
            let mac = document.head.headers.get(wire::MAC_FIELD);
            let mac = mac.and_then(|mac| mac.to_str().ok());
            let mac = mac.ok_or("the page carries no proof of its author")?;
            if !auth::verify_document(secret, path, &document.body, mac) {
                return Err("whoever wrote the page does not know the cluster's secret".into());
            }
        }
        let page = serde_json::from_slice(&document.body);
        check(page.map_err(|e| format!("not the document expected: {e}"))?)
    }
}

impl Upstream {
    /// Whether control planes are configured.
    pub fn has_control_planes(&self) -> bool {
        self.0.planes.any()
    }

    /// What comes behind `after` in the purge log, by a control plane; see [`ControlPlanes::purges`].
    ///
    /// # Errors
    ///
    /// None answered.
    pub async fn purges_by_control(
        &self,
        after: Position,
        reuse: Reuse,
        pace: Pace,
    ) -> Result<PurgePage, ControlError> {
        self.0.planes.purges(after, reuse, pace).await
    }

    /// The same by a peer, as far as it remembers.
    ///
    /// # Errors
    ///
    /// It did not answer.
    pub async fn purges_by_peer(
        &self,
        peer: &NodeInfo,
        after: Position,
        reuse: Reuse,
        pace: Pace,
    ) -> Result<PurgePage, PeerError> {
        let asker = self.0.asker.as_ref().ok_or(PeerError::Denied)?;
        let (path, addr) = (path_behind(after), self.0.address(peer));
        let request = || asker.request(&peer.id, addr, &path, HeaderMap::new());
        let document = asker
            .pool
            .document_over::<PeerError>(reuse, request, pace.patience(), BYTES_MAX, pace.by)
            .await?;
        if document.head.status != StatusCode::OK {
            let status = document.head.status;
            return Err(PeerError::Garbage(format!("status {status}")));
        }
        let page = serde_json::from_slice(&document.body);
        check(page.map_err(|e| PeerError::Garbage(e.to_string()))?).map_err(PeerError::Garbage)
    }

    /// This node's name.
    pub fn me(&self) -> &NodeId {
        &self.0.me
    }
}
