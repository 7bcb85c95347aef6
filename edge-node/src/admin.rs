//! The admin listener: `/metrics /livez /readyz /explain /peers`, for the operator and Prometheus.

mod explain;
mod why;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use axum::{
    BoxError, Json, Router,
    error_handling::HandleErrorLayer,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use cluster::{clock::Clock, node::NodeId, wire::ErrorAnswer};
use tokio::sync::watch;
use tower::ServiceBuilder;

use crate::{
    cache::{Cache, refusals::Refusals},
    metrics::Metrics,
    purges::Purges,
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
    /// What is known of purges.
    pub purges: Purges,
    /// The cache.
    pub cache: Cache,
    /// The upstream.
    pub upstream: Upstream,
    /// Why answers were not stored.
    pub refusals: Refusals,
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
        .route("/explain", get(explain::explain))
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

fn failure(status: StatusCode, error: &str, field: Option<&str>) -> Response {
    let body = ErrorAnswer {
        error: error.to_owned(),
        field: field.map(str::to_owned),
    };
    (status, Json(body)).into_response()
}
