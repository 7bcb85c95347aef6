//! Purges that are asked for as of Fastly or of Varnish, at whatever path they are asked for.

use std::sync::Arc;

use axum::{
    Json,
    body::{self, Body},
    extract::{Request, State},
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse, Response},
};
use cluster::{
    purge::spoken::{Dialect, Unspoken, is_spoken, translate},
    wire::{PurgeState, PurgeStatus},
};
use serde_json::{Map, json};

use super::{App, REQUEST_BYTES_MAX, perform, too_large};
use crate::{access::Caller, error::ApiError};

/// Answers what is asked for in one of these ways; all else goes on.
pub(in super::super) async fn spoken(
    State(app): State<Arc<App>>,
    caller: Caller,
    request: Request,
    next: Next,
) -> Response {
    if !is_spoken(request.method().as_str(), request.uri().path()) {
        return next.run(request).await;
    }
    match take(&app, &caller, request).await {
        Ok(answer) => answer,
        Err(error) => error.into_response(),
    }
}

async fn take(app: &App, caller: &Caller, request: Request<Body>) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let body = body::to_bytes(body, REQUEST_BYTES_MAX)
        .await
        .map_err(|_| too_large())?;
    let spoken = translate(head.method.as_str(), &head.uri, &head.headers, &body);
    let spoken = spoken.map_err(|error| {
        app.metrics.purged("refused");
        let Unspoken {
            status,
            field,
            reason,
        } = error;
        ApiError::field(status, &field, reason)
    })?;
    let mut request = spoken.request;
    if let Some(host) = &spoken.host {
        let sites = app.sites.now();
        let Some(selected) = sites.map().select(host) else {
            app.metrics.purged("refused");
            let host: String = host.chars().take(80).collect();
            let reason = format!("no site has the host {host:?}");
            return Err(ApiError::field(StatusCode::NOT_FOUND, "host", reason));
        };
        request.site.clone_from(&selected.site.name);
    }
    let tags = request.tags.clone();
    let status = perform(app, request, caller).await?;
    let id = format!("{}-{}", status.log, status.seq);
    Ok(match spoken.dialect {
        Dialect::Fastly => Json(json!({"status": "ok", "id": id})).into_response(),
        Dialect::FastlyKeys => {
            let ids = tags.into_iter().map(|tag| (tag, id.clone().into()));
            Json(ids.collect::<Map<_, _>>()).into_response()
        }
        Dialect::Proxy => told(&status).into_response(),
    })
}

/// A line for who reads it, and one for each edge that lacks it.
fn told(status: &PurgeStatus) -> String {
    let acknowledged = |state| state == PurgeState::Acknowledged;
    let (done, open): (Vec<_>, Vec<_>) = status
        .nodes
        .iter()
        .partition(|node| acknowledged(node.state));
    let mut text = format!(
        "Purged: {} is acknowledged by {} of {} edges, the last after {} ms\n",
        status.seq,
        done.len(),
        status.nodes.len(),
        status.elapsed_ms
    );
    for node in open {
        let reason = node.reason.as_deref().unwrap_or("has not answered yet");
        text.push_str(&format!("{}: {reason}\n", node.node));
    }
    text
}
