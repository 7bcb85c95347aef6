//! `POST /v1/purges`, `GET /v1/purges` and `GET /v1/purges/{seq}`: purges, and what became of them at each
//! edge. The same for those who ask as they ask Fastly or Varnish ([`cluster::purge::spoken`]).

mod asked;
mod spoken;

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{HeaderValue, StatusCode, Uri, header::LOCATION},
    response::{IntoResponse, Response},
    routing::get,
};
use cluster::{
    purge::{Purge, SCOPE_BYTES_MAX, SCOPES_MAX},
    wire::{PURGE_PAGE_MAX, PURGES, PurgeRequest, PurgeStatus, PurgeWait},
};
use serde::Deserialize;
use tokio::time::Instant;

pub(super) use self::spoken::spoken;
use super::{App, json, sent::Named};
use crate::{access::Caller, error::ApiError, purge_log::NotTaken, receipts::WAIT_MAX};

/// Largest request, in bytes: as many scopes as there may be, and what JSON puts around them.
pub const REQUEST_BYTES_MAX: usize = SCOPES_MAX * (SCOPE_BYTES_MAX + 16) + (64 << 10);

/// What answers under [`PURGES`].
pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route(PURGES, get(page).post(take))
        .route(&format!("{PURGES}/{{seq}}"), get(one))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
}

async fn take(
    State(app): State<Arc<App>>,
    caller: Caller,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(),
        status => ApiError::new(status, rejection.body_text()),
    })?;
    let request = asked::read(&body).inspect_err(|_| app.metrics.purged("refused"))?;
    let status = perform(&app, request, &caller).await?;
    let at = HeaderValue::try_from(format!("{PURGES}/{}", status.seq));
    let at = at.expect("a number is digits");
    Ok(([(LOCATION, at)], Json(status)).into_response())
}

fn too_large() -> ApiError {
    let reason = format!("larger than {REQUEST_BYTES_MAX} bytes: make several purges of it");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, reason)
}

/// Does what is asked for, and waits for whom the request says.
async fn perform(
    app: &App,
    request: PurgeRequest,
    caller: &Caller,
) -> Result<PurgeStatus, ApiError> {
    let by = caller.name.as_str();
    let deadline = Instant::now() + WAIT_MAX;
    let wait = request.wait;
    // First, so that nobody learns which other sites there are; no site at all is asked for below.
    let allowed = match request.site.is_empty() {
        true => Ok(()),
        false => caller.check_site(&request.site).map_err(ApiError::from),
    };
    let purge = allowed.and_then(|()| asked::purge(request, app.sites.now().map()));
    let purge = purge.inspect_err(|_| app.metrics.purged("refused"))?;
    if app.purge_log.head().borrow().log == 0 {
        app.metrics.purged("failed");
        let reason = "the purge log has not been read yet: try again";
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, reason));
    }
    let seq = append(app, purge.clone(), by).await?;
    app.receipts.settle(seq, wait, deadline).await;
    let status = app.receipts.status(seq);
    let status = status.or_else(|| {
        let record = app.purge_log.record(seq)?;
        Some(app.receipts.of_old(&record))
    });
    // The store has it, and has not told of it yet.
    let status = status.unwrap_or_else(|| PurgeStatus {
        seq,
        log: app.purge_log.head().borrow().log,
        site: purge.site,
        scopes: purge.scopes,
        soft: purge.soft,
        taken_at: app.clock.unix_ms(),
        by: by.to_owned(),
        complete: false,
        elapsed_ms: 0,
        nodes: Vec::new(),
    });
    app.metrics.purged(match (wait, status.complete) {
        (_, true) => "complete",
        (PurgeWait::All, false) => "incomplete",
        _ => "accepted",
    });
    Ok(app.clocks.named(status, app.clock.unix_ms()))
}

async fn append(app: &App, purge: Purge, by: &str) -> Result<u64, ApiError> {
    match app.purge_log.append(purge, by.to_owned()).await {
        Ok(position) => Ok(position.seq),
        Err(error @ NotTaken::TooLarge(_)) => {
            app.metrics.purged("refused");
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, error))
        }
        Err(error) => {
            app.metrics.purged("failed");
            Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error))
        }
    }
}

/// What part of the log is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    log: Option<u64>,
    after: Option<u64>,
    limit: Option<usize>,
    last: Option<usize>,
}

/// Answers with a part of the log, and a MAC.
async fn page(
    State(app): State<Arc<App>>,
    uri: Uri,
    part: Result<Query<Part>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(part) = part.map_err(|error| {
        let reason = error.body_text();
        let named = ["log", "after", "limit", "last"];
        let field = named.into_iter().find(|name| reason.contains(name));
        ApiError::parameter(field.unwrap_or("query"), reason)
    })?;
    let count = |name: &str, given: Option<usize>| {
        let count = given.unwrap_or(PURGE_PAGE_MAX);
        let reason = || format!("1 to {PURGE_PAGE_MAX}, not {count}");
        let is_good = (1..=PURGE_PAGE_MAX).contains(&count);
        is_good
            .then_some(count)
            .ok_or_else(|| ApiError::parameter(name, reason()))
    };
    let page = match part {
        Part {
            last: Some(_),
            log: None,
            after: None,
            limit: None,
        } => app.purge_log.last(count("last", part.last)?),
        Part { last: Some(_), .. } => {
            let reason = "goes with none of log, after and limit";
            return Err(ApiError::parameter("last", reason));
        }
        Part { log, after, .. } => {
            let limit = count("limit", part.limit)?;
            app.purge_log.page(log, after.unwrap_or(0), limit)
        }
    };
    if page.log == 0 {
        let reason = "the purge log has not been read yet: try again";
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, reason));
    }
    Ok(app.signed(&uri, json(&page)))
}

async fn one(
    State(app): State<Arc<App>>,
    caller: Caller,
    Named(seq): Named,
) -> Result<Json<PurgeStatus>, ApiError> {
    let number = seq.parse().ok().and_then(|seq| {
        let old = || Some(app.receipts.of_old(&app.purge_log.record(seq)?));
        app.receipts.status(seq).or_else(old)
    });
    if let Some(status) = &number {
        caller.check_site(&status.site)?;
    }
    let seq: String = seq.chars().take(64).collect();
    let named = number.map(|status| app.clocks.named(status, app.clock.unix_ms()));
    named.map(Json).ok_or_else(|| {
        ApiError::not_found(format!(
            "no purge {seq:?} is kept: it never was, or all that it hit was purged again; \
             GET {PURGES}?after=N lists them"
        ))
    })
}
