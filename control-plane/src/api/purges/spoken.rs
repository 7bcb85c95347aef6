//! Purges that are asked for as of Fastly or of Varnish, at whatever path they are asked for.

use std::sync::Arc;

use axum::{
    Json,
    body::{self, Body},
    extract::{FromRequestParts as _, Request, State},
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse, Response},
};
use cluster::purge::spoken::{Dialect, Unspoken, in_words, is_spoken, translate};
use serde_json::{Map, json};

use super::{App, REQUEST_BYTES_MAX, perform, too_large};
use crate::{access::Caller, error::ApiError};

/// Answers what is asked for in one of these ways; all else goes on.
pub(in super::super) async fn spoken(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Response {
    if !is_spoken(request.method().as_str(), request.uri().path()) {
        return next.run(request).await;
    }
    match take(&app, request).await {
        Ok(answer) => answer,
        Err(error) => error.into_response(),
    }
}

async fn take(app: &App, request: Request<Body>) -> Result<Response, ApiError> {
    let (mut head, body) = request.into_parts();
    let caller = Caller::from_request_parts(&mut head, &()).await?;
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
        let Some(selected) = app.sites.now().map().select(host) else {
            app.metrics.purged("refused");
            let host: String = host.chars().take(80).collect();
            let reason = format!("no site has the host {host:?}");
            return Err(ApiError::field(StatusCode::NOT_FOUND, "host", reason));
        };
        request.site.clone_from(&selected.site.name);
    }
    let tags = request.tags.clone();
    let status = perform(app, request, &caller).await?;
    let id = format!("{}-{}", status.log, status.seq);
    Ok(match spoken.dialect {
        Dialect::Fastly => Json(json!({"status": "ok", "id": id})).into_response(),
        Dialect::FastlyKeys => {
            let ids = tags.into_iter().map(|tag| (tag, id.clone().into()));
            Json(ids.collect::<Map<_, _>>()).into_response()
        }
        Dialect::Proxy => in_words(&status).into_response(),
    })
}
