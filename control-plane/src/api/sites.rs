//! `GET /v1/sites` and `GET /v1/sites/{name}`: what the edges serve.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::{
        HeaderMap, HeaderValue, StatusCode, Uri,
        header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH},
    },
    response::{IntoResponse, Response},
};
use cluster::site::Site;

use super::App;
use crate::error::ApiError;

/// Answers with all sites and their version, and a MAC; or with 304 to who has this version.
pub(super) async fn all(State(app): State<Arc<App>>, uri: Uri, fields: HeaderMap) -> Response {
    let etag = format!("\"{}\"", app.sites.version());
    let has_it = fields
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|tag| tag.trim().trim_start_matches("W/"))
        .any(|tag| tag == etag || tag == "*");
    let mut answer = if has_it {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        app.signed(&uri, app.sites.json())
    };
    let etag = HeaderValue::try_from(etag).expect("digits in quotes");
    answer.headers_mut().insert(ETAG, etag);
    let no_cache = HeaderValue::from_static("no-cache");
    answer.headers_mut().insert(CACHE_CONTROL, no_cache);
    answer
}

/// Answers with one site.
pub(super) async fn one(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<Site>, ApiError> {
    let site = app.sites.site(&name).cloned();
    site.map(Json)
        .ok_or_else(|| ApiError::not_found(format!("no site {name:?}")))
}
