//! The admin listener: `/metrics /livez /readyz /explain /peers`, for the operator and Prometheus.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use axum::{
    BoxError, Json, Router,
    error_handling::HandleErrorLayer,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use cluster::{clock::Clock, node::NodeId, wire::ErrorAnswer};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tower::ServiceBuilder;

use crate::{
    cache::{Cache, entry, key},
    metrics::Metrics,
    sites::Sites,
    upstream::Upstream,
};

/// Longest time for an answer; an operator's question may need the disk.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers at once; an operator and a few scrapers need far fewer.
const ANSWERS_MAX: usize = 32;

/// What the admin listener tells of.
#[derive(Clone)]
pub struct Admin {
    /// This node.
    pub me: NodeId,
    /// The sites served.
    pub sites: Arc<ArcSwap<Sites>>,
    /// The cache.
    pub cache: Cache,
    /// The upstream.
    pub upstream: Upstream,
    /// Metrics of the process.
    pub metrics: Arc<Metrics>,
    /// The wall clock.
    pub clock: Clock,
    /// Whether this node can serve, and why not.
    pub ready: watch::Receiver<Readiness>,
    /// Brings gauges up to date before a scrape.
    pub refresh: Arc<dyn Fn() + Send + Sync>,
}

/// Whether a node can serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It can.
    Ready,
    /// It cannot (any more), for this reason.
    NotReady(&'static str),
}

/// The routes.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/peers", get(peers))
        .route("/explain", get(explain))
        .with_state(admin)
        .layer(
            ServiceBuilder::new()
                .layer(HandleErrorLayer::new(overloaded))
                .load_shed()
                .concurrency_limit(ANSWERS_MAX)
                .timeout(ANSWER_TIMEOUT),
        )
}

async fn overloaded(error: BoxError) -> Response {
    let why = if error.is::<tower::timeout::error::Elapsed>() {
        "took too long"
    } else {
        "busy"
    };
    failure(StatusCode::SERVICE_UNAVAILABLE, why, None)
}

async fn ready(State(admin): State<Admin>) -> Response {
    match &*admin.ready.borrow() {
        Readiness::Ready => "ready\n".into_response(),
        Readiness::NotReady(why) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
        }
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    (admin.refresh)();
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (kind, admin.metrics.text()).into_response()
}

async fn peers(State(admin): State<Admin>) -> Response {
    Json(serde_json::json!({ "node": admin.me, "peers": admin.upstream.peers_report() }))
        .into_response()
}

#[derive(Deserialize)]
struct ExplainQuery {
    url: Option<String>,
}

/// Why this node would answer a URL as it would.
#[derive(Serialize)]
struct Explained {
    url: String,
    site: String,
    host: String,
    key: String,
    stored: Option<Stored>,
    holders: Vec<serde_json::Value>,
    then: String,
}

#[derive(Serialize)]
struct Stored {
    tier: &'static str,
    status: u16,
    length: Option<u64>,
    variant: Vec<(String, Option<String>)>,
    age_s: f64,
    lifetime_s: f64,
    lifetime_from: &'static str,
    ttl_s: i64,
    fresh: bool,
    stale_while_revalidate_s: u64,
    stale_if_error_s: u64,
    etag: Option<String>,
    last_modified: Option<String>,
    tags: Vec<String>,
    as_of: u64,
    fetched_by: NodeId,
    fetched_at_ms: u64,
    from: String,
}

async fn explain(
    State(admin): State<Admin>,
    Query(query): Query<ExplainQuery>,
    headers: HeaderMap,
) -> Response {
    let Some(url) = query.url else {
        return failure(
            StatusCode::BAD_REQUEST,
            "needs ?url=http://host/path",
            Some("url"),
        );
    };
    let Some((host, target)) = url.parse::<Uri>().ok().and_then(|uri| {
        let target = uri
            .path_and_query()
            .map_or("/", |pq| pq.as_str())
            .to_owned();
        Some((uri.authority()?.as_str().to_owned(), target))
    }) else {
        let why = "not a URL with scheme, host and path";
        return failure(StatusCode::BAD_REQUEST, why, Some("url"));
    };
    let Some(selected) = admin.sites.load().select(&host) else {
        return failure(
            StatusCode::NOT_FOUND,
            "no site answers to this host",
            Some("url"),
        );
    };
    let key = key::key(
        &selected.ruling.site.name,
        &selected.host,
        &target,
        &headers,
        &selected.ruling.key,
    );
    let entry = admin.cache.stored(key, &headers).await;
    let now_ms = admin.clock.unix_ms();
    let stored = entry.map(|entry| {
        let head = &entry.head;
        let text = |name| Some(head.headers.get(name)?.to_str().ok()?.to_owned());
        Stored {
            tier: match entry.body {
                entry::Body::Whole(_) => "memory",
                entry::Body::Pieces { .. } => "disk",
                entry::Body::Growing(_) => "growing",
            },
            status: head.status.as_u16(),
            length: entry.length(),
            variant: head
                .selected_by
                .iter()
                .map(|(name, value)| {
                    let value = value
                        .as_ref()
                        .map(|v| String::from_utf8_lossy(v).into_owned());
                    (name.clone(), value)
                })
                .collect(),
            age_s: head.freshness.age(now_ms).as_secs_f64(),
            lifetime_s: head.freshness.lifetime.as_secs_f64(),
            lifetime_from: head.freshness.basis.as_str(),
            ttl_s: head.freshness.ttl_s(now_ms),
            fresh: !head.freshness.no_cache && head.freshness.is_fresh(now_ms),
            stale_while_revalidate_s: head.freshness.stale_while_revalidate.as_secs(),
            stale_if_error_s: head.freshness.stale_if_error.as_secs(),
            etag: text(header::ETAG),
            last_modified: text(header::LAST_MODIFIED),
            tags: entry::tags(&head.headers),
            as_of: head.as_of,
            fetched_by: head.fetched_by.clone(),
            fetched_at_ms: head.fetched_at,
            from: entry.from.to_string(),
        }
    });
    let holders: Vec<_> = admin
        .upstream
        .holders(key)
        .iter()
        .map(|candidate| serde_json::to_value(candidate).unwrap_or_default())
        .collect();
    let then = match (&stored, holders.first()) {
        (Some(stored), _) if stored.fresh => "answered from this node".to_owned(),
        (Some(_), _) => "validated with the origin".to_owned(),
        (None, Some(first)) => format!("asked of {}, then of the origin", first["id"]),
        (None, None) => "fetched from the origin: no peer claims it".to_owned(),
    };
    let explained = Explained {
        url,
        site: selected.ruling.site.name.clone(),
        host: selected.host,
        key: key.to_string(),
        stored,
        holders,
        then,
    };
    Json(explained).into_response()
}

fn failure(status: StatusCode, error: &str, field: Option<&str>) -> Response {
    let body = ErrorAnswer {
        error: error.to_owned(),
        field: field.map(str::to_owned),
    };
    (status, Json(body)).into_response()
}
