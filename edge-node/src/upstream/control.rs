//! What the control plane hands out: documents with a proof of who wrote them, and the site registry
//! that this node follows. The node goes on without a control plane, with what it was last told.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use cluster::{
    auth::{self, Signer},
    clock::Clock,
    node::Role,
    secret::ClusterSecret,
    site::{SiteMap, SiteSet},
    view::ClusterView,
    wire,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::de::DeserializeOwned;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::pool::{self, Patience, Pool};

/// For a connection and the head of an answer; the document has twice as long.
const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(2),
    head: Duration::from_secs(5),
};
/// Until a document must be there. Control planes are tried one after the other.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(15);
/// How often the registry is asked for without any hint in gossip.
const SITES_INTERVAL: Duration = Duration::from_secs(60);
/// Least time from a pull that brought something new to the next, whatever anybody says: many changes in
/// a row are pulled together.
const SITES_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// The same after a pull that brought nothing though there should have been something: gossip may be
/// behind, or two control planes differ.
const SITES_INTERVAL_IDLE: Duration = Duration::from_secs(5);
/// Such pulls that come quicker: the control plane that was asked may be a moment behind the one that
/// told of the change.
const SITES_PULLS_QUICK: u32 = 5;
/// First wait after a failure; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// How long to wait after the `nth` failure in a row.
pub(super) fn retry_after(nth: u32) -> Duration {
    RETRY_MIN
        .saturating_mul(1 << nth.saturating_sub(1).min(16))
        .min(RETRY_MAX)
}

/// Why no control plane gave a document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{url}: {reason}")]
pub struct ControlError {
    /// The last one asked.
    pub url: String,
    /// What was wrong with it.
    pub reason: String,
}

/// The configured control planes. Clones share connections.
#[derive(Clone)]
pub struct ControlPlanes {
    pool: Pool,
    bases: Arc<[String]>,
    secret: Option<ClusterSecret>,
    signing: Option<(Signer, Clock)>,
}

impl ControlPlanes {
    /// At these base URLs, in order of preference. With a secret, only documents that carry a proof
    /// of knowing it are taken.
    pub fn new(pool: Pool, bases: &[String], secret: Option<ClusterSecret>) -> Self {
        let bases = bases
            .iter()
            .map(|base| base.trim_end_matches('/').to_owned())
            .collect();
        Self {
            pool,
            bases,
            secret,
            signing: None,
        }
    }

    /// Proves who asks, to those that do not answer everybody.
    #[must_use]
    pub fn signing(mut self, signer: Signer, clock: Clock) -> Self {
        self.signing = Some((signer, clock));
        self
    }

    /// The fields of a question for `path`: who asks, where that is to be proved.
    pub(super) fn fields(&self, path: &str) -> HeaderMap {
        let Some((signer, clock)) = &self.signing else {
            return HeaderMap::new();
        };
        let all = wire::CONTROL_PLANES.parse().expect("it is a name");
        let fields = signer.sign(&all, "GET", path, clock.unix_ms());
        let fields = fields.into_iter().map(|(name, value)| {
            let value = HeaderValue::try_from(value).expect("names and digits");
            (HeaderName::from_static(name), value)
        });
        fields.collect()
    }

    /// Whether there are any.
    pub fn any(&self) -> bool {
        !self.bases.is_empty()
    }

    pub(super) fn bases(&self) -> &[String] {
        &self.bases
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(super) fn secret(&self) -> Option<&ClusterSecret> {
        self.secret.as_ref()
    }

    /// The document at `path` (with its query) from the first control plane that has a valid one that
    /// `accept` takes.
    ///
    /// # Errors
    ///
    /// What was wrong with the last one asked.
    pub async fn document<T: DeserializeOwned>(
        &self,
        path: &str,
        bytes_max: usize,
        accept: impl Fn(&T) -> Result<(), String>,
    ) -> Result<(T, Bytes), ControlError> {
        let mut last = ControlError {
            url: String::new(),
            reason: "no control plane configured".into(),
        };
        for base in &*self.bases {
            let url = format!("{base}{path}");
            let checked = match self.bytes(&url, path, bytes_max).await {
                Ok(bytes) => serde_json::from_slice(&bytes)
                    .map_err(|e| format!("not the document expected: {e}"))
                    .and_then(|document| accept(&document).map(|()| (document, bytes))),
                Err(reason) => Err(reason),
            };
            match checked {
                Ok(document) => return Ok(document),
                Err(reason) => last = ControlError { url, reason },
            }
        }
        Err(last)
    }

    async fn bytes(&self, url: &str, path: &str, bytes_max: usize) -> Result<Bytes, String> {
        let request = || pool::get(url, self.fields(path)).map_err(|e| e.to_string());
        let deadline = Instant::now() + DOCUMENT_TIMEOUT;
        let document = self
            .pool
            .document::<String>(request, PATIENCE, bytes_max, deadline)
            .await?;
        if document.head.status != http::StatusCode::OK {
            let said: Option<wire::ErrorAnswer> = serde_json::from_slice(&document.body).ok();
            return Err(format!(
                "{} {}",
                document.head.status,
                said.map_or(String::new(), |e| e.error)
            ));
        }
        if let Some(secret) = &self.secret {
            let mac = document
                .head
                .headers
                .get(wire::MAC_FIELD)
                .and_then(|mac| mac.to_str().ok());
            let mac = mac.ok_or("the document carries no proof of its author")?;
            if !auth::verify_document(secret, path, &document.body, mac) {
                return Err("whoever wrote the document does not know the cluster's secret".into());
            }
        }
        Ok(document.body)
    }
}

impl fmt::Debug for ControlPlanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ControlPlanes").field(&self.bases).finish()
    }
}

/// Follows the site registry for as long as it runs: pulls it when a control plane has told of a version, or
/// has one in gossip, that is not `known`, and once in a while in any case; and publishes each registry that
/// differs.
///
/// Control planes decide what is newest: an older version than ours means that an operator restored
/// one, and is taken as well. But where somebody has a newer one, that is looked for first.
pub async fn follow_sites(
    planes: ControlPlanes,
    mut view: watch::Receiver<Arc<ClusterView>>,
    mut told: watch::Receiver<u64>,
    sites: watch::Sender<Option<Arc<SiteSet>>>,
    mut known: u64,
) {
    let (mut failures, mut in_vain) = (0, 0);
    loop {
        let gossiped = control_planes(&view.borrow()).max().unwrap_or(0);
        let newest = gossiped.max(*told.borrow_and_update());
        // At the least: what was here already, if anybody still has it.
        let least = if gossiped >= known { known } else { 0 };
        match pull(&planes, newest, least).await {
            Err(error) => {
                failures += 1;
                match failures {
                    1 => {
                        warn!(%error, "site registry cannot be pulled, going on with what is known")
                    }
                    _ => debug!(%error, failures, "site registry cannot be pulled"),
                }
                sleep(retry_after(failures)).await;
                continue;
            }
            Ok(set) => {
                failures = 0;
                let new = set.version != known || sites.borrow().is_none();
                if new {
                    info!(
                        version = set.version,
                        before = known,
                        sites = set.sites.len(),
                        "site registry pulled"
                    );
                    known = set.version;
                    sites.send_replace(Some(Arc::new(set)));
                }
                in_vain = if new || newest == known {
                    0
                } else {
                    in_vain + 1
                };
            }
        }
        match in_vain {
            0 | 1..=SITES_PULLS_QUICK => sleep(SITES_INTERVAL_MIN).await,
            _ => {
                // Unless there is other news than that.
                let _ = timeout(SITES_INTERVAL_IDLE, told.changed()).await;
                continue;
            }
        }
        let differs = view.wait_for(|view| control_planes(view).any(|version| version != known));
        let hears = told.wait_for(|told| *told > known);
        let waited = async {
            tokio::select! {
                seen = differs => seen.is_err(),
                heard = hears => heard.is_err(),
            }
        };
        let is_gone = matches!(timeout(SITES_INTERVAL, waited).await, Ok(true));
        if is_gone {
            sleep(SITES_INTERVAL).await;
        }
    }
}

/// The registry: in version `newest` or a newer one if there can be one, else of `least` or newer.
async fn pull(planes: &ControlPlanes, newest: u64, least: u64) -> Result<SiteSet, ControlError> {
    let mut pulled = pull_since(planes, newest.max(least)).await;
    if pulled.is_err() && newest > least {
        pulled = pull_since(planes, least).await;
    }
    pulled
}

async fn pull_since(planes: &ControlPlanes, least: u64) -> Result<SiteSet, ControlError> {
    let fits = |set: &SiteSet| {
        if set.version < least {
            return Err(format!("has version {} only", set.version));
        }
        SiteMap::new(set).map(drop).map_err(|e| e.to_string())
    };
    let pulled = planes
        .document(wire::SITES, wire::SITES_BYTES_MAX, fits)
        .await;
    pulled.map(|(set, _)| set)
}

fn control_planes(view: &ClusterView) -> impl Iterator<Item = u64> {
    let planes = view.nodes().filter(|node| node.role == Role::Control);
    planes.map(|node| node.sites_version)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use cluster::{net::SystemNet, node::NodeInfo, site::Site};
    use http::{Request, Response};
    use http_body_util::Full;
    use hyper::body::Incoming;

    use super::*;
    use crate::upstream::scripted::{Scripted, eventually, serving};

    fn secret(text: &str) -> ClusterSecret {
        ClusterSecret::from_bytes(text.repeat(4).as_bytes()).unwrap()
    }

    type Shelf = Arc<Mutex<SiteSet>>;

    /// A control plane that signs with `secret`.
    async fn control_plane(shelf: Shelf, secret: Option<ClusterSecret>) -> Scripted {
        serving(move |request: Request<Incoming>| {
            let path = request.uri().path_and_query().unwrap().as_str();
            let body = serde_json::to_vec(&*shelf.lock().unwrap()).unwrap();
            let mut answer = Response::builder();
            if let Some(secret) = &secret {
                answer = answer.header(wire::MAC_FIELD, auth::document_mac(secret, path, &body));
            }
            if path != wire::SITES {
                answer = answer.status(404);
            }
            let answer = answer.body(Full::from(body)).unwrap();
            async move { answer }
        })
        .await
    }

    fn shelf(version: u64, hosts: &[&str]) -> Shelf {
        let sites = vec![Site::new("www", hosts, &["http://origin.test"])];
        Arc::new(Mutex::new(SiteSet { version, sites }))
    }

    fn planes(servers: &[&Scripted], secret: Option<ClusterSecret>) -> ControlPlanes {
        let bases: Vec<String> = servers.iter().map(|server| server.url() + "/").collect();
        ControlPlanes::new(Pool::new(Arc::new(SystemNet)), &bases, secret)
    }

    async fn sites(planes: &ControlPlanes) -> Result<SiteSet, ControlError> {
        let accept = |set: &SiteSet| SiteMap::new(set).map(drop).map_err(|e| e.to_string());
        planes
            .document(wire::SITES, wire::SITES_BYTES_MAX, accept)
            .await
            .map(|(set, _)| set)
    }

    #[tokio::test]
    async fn only_whoever_knows_the_secret_hands_out_documents() {
        let ours = secret("0123456789abcdef");
        let good = control_plane(shelf(3, &["a.test"]), Some(ours.clone())).await;
        let foreign = control_plane(shelf(4, &["b.test"]), Some(secret("fedcba9876543210"))).await;
        let unsigned = control_plane(shelf(5, &["c.test"]), None).await;
        let ask = |servers: &[&Scripted]| {
            let planes = planes(servers, Some(ours.clone()));
            async move { sites(&planes).await.map(|set| set.version) }
        };
        assert_eq!(ask(&[&foreign, &unsigned, &good]).await, Ok(3));
        let error = ask(&[&foreign]).await.unwrap_err();
        assert!(
            error.reason.contains("does not know the cluster's secret"),
            "{error}"
        );
        let error = ask(&[&unsigned]).await.unwrap_err();
        assert!(error.reason.contains("no proof"), "{error}");
        // Without a secret there is nothing to check against.
        assert_eq!(sites(&planes(&[&unsigned], None)).await.unwrap().version, 5);
    }

    #[tokio::test]
    async fn the_next_control_plane_is_asked_when_one_is_of_no_use() {
        let broken = shelf(1, &["not a host"]);
        let broken = control_plane(broken, None).await;
        let wordy = serving(|_| async { Response::new(Full::from(vec![b' '; 100])) }).await;
        let good = control_plane(shelf(2, &["a.test"]), None).await;
        let gone = Scripted::refusing().await;
        let bases = [gone, broken.url(), wordy.url(), good.url()];
        let planes = ControlPlanes::new(Pool::new(Arc::new(SystemNet)), &bases, None);
        assert_eq!(sites(&planes).await.unwrap().version, 2);
        let cut = planes
            .document::<SiteSet>(wire::SITES, 50, |_| Ok(()))
            .await
            .unwrap_err();
        assert!(cut.reason.contains("over 50 bytes"), "{cut}");
        let none = planes
            .document::<SiteSet>("/v1/none", 5000, |_| Ok(()))
            .await
            .unwrap_err();
        assert!(none.reason.contains("404"), "{none}");
    }

    #[tokio::test]
    async fn a_registry_that_changed_is_pulled_when_gossip_says_so() {
        let shelf = shelf(1, &["a.test"]);
        let server = control_plane(shelf.clone(), None).await;
        let view = watch::Sender::new(Arc::<ClusterView>::default());
        let published = watch::Sender::new(None);
        let told = watch::Sender::new(0);
        let follow = follow_sites(
            planes(&[&server], None),
            view.subscribe(),
            told.subscribe(),
            published.clone(),
            0,
        );
        let running = tokio::spawn(follow);
        let version = || {
            published
                .borrow()
                .as_ref()
                .map(|set: &Arc<SiteSet>| set.version)
        };
        eventually(|| version() == Some(1)).await;
        shelf.lock().unwrap().version = 2;
        let mut control = NodeInfo::new("control".parse().unwrap(), Role::Control);
        control.sites_version = 2;
        view.send_replace(Arc::new(ClusterView::new([control])));
        eventually(|| version() == Some(2)).await;
        // Told of, it is pulled before gossip knows.
        shelf.lock().unwrap().version = 3;
        told.send_replace(3);
        eventually(|| version() == Some(3)).await;
        running.abort();
    }

    #[tokio::test]
    async fn of_two_control_planes_the_one_that_has_the_newer_version_is_believed() {
        let (old, new) = (shelf(1, &["a.test"]), shelf(2, &["a.test"]));
        let (behind, ahead) = (
            control_plane(old, None).await,
            control_plane(new, None).await,
        );
        let planes = planes(&[&behind, &ahead], None);
        let pulled =
            async |newest, least| pull(&planes, newest, least).await.map(|set| set.version);
        assert_eq!(pulled(2, 0).await, Ok(2));
        assert_eq!(pulled(0, 0).await, Ok(1));
        // Nobody has it yet: what there is is taken, but nothing older than what is here.
        assert_eq!(pulled(3, 0).await, Ok(1));
        assert_eq!(pulled(3, 2).await, Ok(2));
        assert!(
            pulled(3, 3)
                .await
                .unwrap_err()
                .reason
                .contains("has version 2 only")
        );
    }
}
