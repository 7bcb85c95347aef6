//! The HTTP API: one file per resource. Every answer is made from snapshots; none waits, but for the
//! disk to have what changes something, and for edges to acknowledge a purge.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use axum::{
    Router,
    body::Body,
    extract::{Query, Request, State, rejection::QueryRejection},
    http::{
        HeaderName, HeaderValue, StatusCode, Uri,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use cluster::{
    auth::{Verifier, document_mac},
    clock::Clock,
    membership::GossipStats,
    network::Network,
    node::NodeId,
    purge::spoken::is_spoken,
    secret::ClusterSecret,
    wire::{CONTROL_PLANES, EDGES, MAC_FIELD, NODES, PEERS, PURGES, SITES, WARM},
};
use serde::Serialize;
use tokio::sync::watch;

use self::openapi::Description;

use self::clocks::Clocks;
use crate::{
    access::{OPENAPI, TOKENS},
    atlas::Atlas,
    config::Config,
    error::ApiError,
    keyring::Keyring,
    metrics,
    metrics::Metrics,
    places::Places,
    purge_log::PurgeLog,
    receipts::Receipts,
    sites::Sites,
    warm::Warming,
};

pub mod clocks;
mod edges;
mod gate;
mod heard;
pub mod nodes;
mod openapi;
pub mod peers;
pub mod purges;
mod sent;
pub mod sites;
pub mod status;
pub mod steering;
pub mod tokens;
pub mod warm;

/// Most entries of a ranking that may be asked for.
pub const LIMIT_MAX: usize = 1_000;
/// Entries of a ranking when no limit is given: more than anybody tries.
pub const LIMIT_DEFAULT: usize = 32;

/// What the handlers share.
#[derive(Debug)]
pub struct App {
    id: NodeId,
    atlas: watch::Receiver<Arc<Atlas>>,
    places: Arc<Places>,
    metrics: Arc<Metrics>,
    sites: Sites,
    purge_log: PurgeLog,
    receipts: Arc<Receipts>,
    gossip: Arc<GossipStats>,
    clock: Clock,
    warming: Warming,
    secret: ClusterSecret,
    /// Proves which node asks.
    verifier: Verifier,
    keyring: Keyring,
    clocks: Clocks,
    public_read: bool,
    trust_forwarded: Vec<Network>,
    /// Counts clients that take turns.
    turn: AtomicU64,
    stopping: AtomicBool,
}

/// What [`App::new`] needs.
#[derive(Debug)]
pub struct AppParts {
    /// Everybody and where they are.
    pub atlas: watch::Receiver<Arc<Atlas>>,
    /// Where addresses are.
    pub places: Arc<Places>,
    /// Metrics of the process.
    pub metrics: Arc<Metrics>,
    /// The site registry.
    pub sites: Sites,
    /// The purge log.
    pub purge_log: PurgeLog,
    /// What became of purges at each edge.
    pub receipts: Arc<Receipts>,
    /// Jobs that fetch ahead of demand.
    pub warming: Warming,
    /// The tokens.
    pub keyring: Keyring,
    /// What gossip counts.
    pub gossip: Arc<GossipStats>,
    /// The wall clock.
    pub clock: Clock,
}

impl App {
    /// Puts together what the handlers share.
    pub fn new(parts: AppParts, config: &Config) -> Self {
        let AppParts {
            atlas,
            places,
            metrics,
            sites,
            purge_log,
            receipts,
            warming,
            keyring,
            gossip,
            clock,
        } = parts;
        Self {
            id: config.id.clone(),
            atlas,
            places,
            metrics,
            sites,
            purge_log,
            receipts,
            gossip,
            clock,
            warming,
            secret: config.secret.clone(),
            clocks: Clocks::default(),
            verifier: Verifier::new(
                config.secret.clone(),
                CONTROL_PLANES.parse().expect("it is a name"),
            ),
            keyring,
            public_read: config.api.public_read,
            trust_forwarded: config.trust_forwarded.clone(),
            turn: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        }
    }

    /// From now on it says that it is not ready.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// So many sites of this version are handed out from now on.
    pub fn hand_out(&self, version: u64, sites: usize) {
        self.metrics.handed_out(version, sites);
    }

    fn atlas(&self) -> Arc<Atlas> {
        self.atlas.borrow().clone()
    }

    /// Ready: it sees at least itself, has read the purge log, and is not about to end.
    fn is_ready(&self) -> bool {
        let has_read = self.purge_log.head().borrow().log != 0;
        has_read && !self.stopping.load(Ordering::Relaxed) && self.atlas().seat(&self.id).is_some()
    }

    /// A JSON document that an edge can check with the cluster's secret: its MAC covers the path as
    /// asked for, query included, and the body.
    fn signed(&self, uri: &Uri, body: Bytes) -> Response {
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let mac = document_mac(&self.secret, path, &body);
        let mac = HeaderValue::try_from(mac).expect("a MAC is hex digits");
        let json = HeaderValue::from_static("application/json");
        let fields = [
            (CONTENT_TYPE, json),
            (HeaderName::from_static(MAC_FIELD), mac),
        ];
        (fields, Body::from(body)).into_response()
    }
}

/// Everything on the API listener.
pub fn router(app: Arc<App>) -> Router {
    resources()
        .layer(middleware::from_fn_with_state(app.clone(), purges::spoken))
        .layer(middleware::from_fn_with_state(app.clone(), gate::admitted))
        .layer(middleware::from_fn(heard::out))
        .layer(middleware::from_fn_with_state(app.clone(), counted))
        .with_state(app)
}

/// What there is, before it is asked who may have it. `openapi/` describes it.
fn resources() -> Router<Arc<App>> {
    let description = Description::new();
    Router::new()
        .route(PEERS, get(peers::ranked))
        .route(EDGES, get(edges::ranked))
        .route(NODES, get(nodes::all))
        .merge(sites::routes())
        .merge(purges::routes())
        .merge(warm::routes())
        .merge(tokens::routes())
        .route(OPENAPI, get(|| async move { description.answer() }))
        .route("/", get(status::page))
        .route("/metrics", get(scrape))
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .fallback(|| async { ApiError::not_found("no such resource") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "not possible with this method here; most resources can only be read, with GET",
            )
        })
}

/// Counts answers; what is right now is not right later, so nobody may keep one unless it says so.
async fn counted(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let resource = match request.uri().path() {
        PEERS => "peers",
        EDGES => "edges",
        NODES => "nodes",
        path if path.starts_with(SITES) => "sites",
        path if path.starts_with(PURGES) => "purges",
        path if is_spoken(request.method().as_str(), path) => "purges",
        path if path.starts_with(WARM) => "warm",
        path if path.starts_with(TOKENS) => "tokens",
        OPENAPI => "openapi",
        "/metrics" => "metrics",
        "/livez" | "/readyz" => "health",
        "/" => "status",
        _ => "other",
    };
    let mut answer = next.run(request).await;
    let no_store = HeaderValue::from_static("no-store");
    answer
        .headers_mut()
        .entry(CACHE_CONTROL)
        .or_insert(no_store);
    app.metrics.answered(resource, answer.status().as_u16());
    answer
}

async fn scrape(State(app): State<Arc<App>>) -> Response {
    let purges = metrics::Purges {
        head: app.purge_log.head().borrow().seq,
        scopes: app.purge_log.scopes(),
        receipts: app.receipts.states(),
        oldest_open: app.receipts.oldest_open(),
        is_store_away: app.purge_log.is_store_away(),
    };
    let text = app
        .metrics
        .render(app.atlas().states(), &purges, &app.gossip);
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

async fn ready(State(app): State<Arc<App>>) -> (StatusCode, &'static str) {
    if app.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

/// The parameters of a ranking: one that says for whom, and how many.
#[derive(Debug)]
struct Asked {
    whom: String,
    limit: usize,
}

impl Asked {
    /// Reads the parameter `name` and the limit; any other is refused, because a misspelt limit
    /// would otherwise do nothing.
    fn read(
        name: &str,
        query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    ) -> Result<Self, ApiError> {
        let Query(pairs) = query.map_err(|e| ApiError::parameter("query", e))?;
        let (mut whom, mut limit) = (None, LIMIT_DEFAULT);
        for (key, value) in pairs {
            if key == name {
                whom = Some(value);
            } else if key == "limit" {
                limit = value
                    .parse()
                    .ok()
                    .filter(|limit| (1..=LIMIT_MAX).contains(limit))
                    .ok_or_else(|| {
                        let reason = format!("1 to {LIMIT_MAX}, not {value:?}");
                        ApiError::parameter("limit", reason)
                    })?;
            } else {
                let key: String = key.chars().take(64).collect();
                return Err(ApiError::parameter(&key, "no such parameter"));
            }
        }
        let whom = whom.ok_or_else(|| ApiError::parameter(name, "missing"))?;
        Ok(Self { whom, limit })
    }
}

fn json<T: Serialize>(answer: &T) -> Bytes {
    serde_json::to_vec(answer)
        .expect("answers are plain data with text keys")
        .into()
}
