//! `GET` and `POST /v1/tokens`, `POST /v1/tokens/{id}/rotate`, `DELETE /v1/tokens/{id}`: for administrators.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State, rejection::JsonRejection},
    http::{HeaderValue, StatusCode, header::LOCATION},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};

use super::{
    App,
    gate::refused_by_keyring,
    sent::{Named, Sent, not_json},
};
use crate::{
    access::{Caller, TOKENS},
    error::ApiError,
    keyring::KeyringError,
    tokens::{GRACE_DEFAULT, TokenList, TokenMade, TokenRequest, TokenRotation, TokenStatus},
};

/// Largest request, in bytes: a name, and as many names of sites as there may be.
const REQUEST_BYTES_MAX: usize = 16 << 10;

/// What answers under [`TOKENS`].
pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route(TOKENS, get(all).post(create))
        .route(&format!("{TOKENS}/{{id}}"), delete(revoke))
        .route(&format!("{TOKENS}/{{id}}/rotate"), post(rotate))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
}

async fn all(State(app): State<Arc<App>>) -> Result<Json<TokenList>, ApiError> {
    let (tokens, now) = (app.keyring.tokens().map_err(refused)?, app.keyring.now_ms());
    let tokens = tokens.in_order();
    let tokens = tokens.iter().map(|token| token.status(now)).collect();
    Ok(Json(TokenList { tokens }))
}

async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    request: Result<Json<TokenRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(request) = request.map_err(|rejection| not_json(&rejection))?;
    let bad = |(field, reason): (&str, String)| ApiError::parameter(field, reason);
    request.check().map_err(bad)?;
    let sites = app.sites.now();
    let unknown = request.sites.iter().find(|name| sites.site(name).is_none());
    if let Some(name) = unknown {
        let reason = format!("no site {name:?}; GET /v1/sites lists them");
        return Err(ApiError::parameter("sites", reason));
    }
    let (token, secret) = app
        .keyring
        .create(&request, &caller)
        .await
        .map_err(refused)?;
    let at = HeaderValue::try_from(format!("{TOKENS}/{}", token.id)).expect("an id is hex digits");
    let made = TokenMade {
        token: secret,
        status: token.status(app.keyring.now_ms()),
    };
    Ok((StatusCode::CREATED, [(LOCATION, at)], Json(made)).into_response())
}

async fn rotate(
    State(app): State<Arc<App>>,
    caller: Caller,
    Named(id): Named,
    Sent(body): Sent,
) -> Result<Json<TokenMade>, ApiError> {
    let rotation = match body.is_empty() {
        true => TokenRotation::default(),
        false => serde_json::from_slice(&body)
            .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, error))?,
    };
    let bad = |(field, reason): (&str, String)| ApiError::parameter(field, reason);
    rotation.check().map_err(bad)?;
    let grace = rotation.grace.map_or(GRACE_DEFAULT, |grace| grace.0);
    let rotated = app.keyring.rotate(&id, grace, &caller).await;
    let (token, secret) = rotated.map_err(refused)?;
    Ok(Json(TokenMade {
        token: secret,
        status: token.status(app.keyring.now_ms()),
    }))
}

async fn revoke(
    State(app): State<Arc<App>>,
    caller: Caller,
    Named(id): Named,
) -> Result<Json<TokenStatus>, ApiError> {
    let revoked = app.keyring.revoke(&id, &caller).await.map_err(refused)?;
    Ok(Json(revoked.status(app.keyring.now_ms())))
}

fn refused(error: KeyringError) -> ApiError {
    refused_by_keyring(&error)
}
