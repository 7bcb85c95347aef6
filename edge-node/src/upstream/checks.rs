//! Active checks: asks the origins of sites that have a `[site.health]` whether they are well, each node
//! for itself. What comes of it is in [`super::standing`].

use std::time::Duration;

use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt as _, Limited};
use tokio::time::{Instant, timeout};

use super::{
    Upstream,
    pool::{Patience, Pool, empty},
    standing::Due,
};

/// So much of an answer is read, so that its connection can be used again.
const BODY_BYTES_READ_MAX: usize = 64 << 10;
/// Who asks.
const USER_AGENT: HeaderValue = HeaderValue::from_static("geo-cdn-health");

impl Upstream {
    /// Asks an origin whether it is well, and remembers the answer.
    pub async fn check_origin(&self, check: Due) {
        let origins = &self.0.origins;
        let answer = ask(&origins.pool(&check.origin), &check).await;
        origins.standings().learn(&check, answer, Instant::now());
    }
}

async fn ask(pool: &Pool, check: &Due) -> Result<(), String> {
    let within = check.rule.timeout.0;
    match timeout(within, status(pool, check, within)).await {
        Ok(Ok(status)) if check.rule.expects(status) => Ok(()),
        Ok(Ok(status)) => Err(format!("answered {status}")),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(format!("no answer within {within:?}")),
    }
}

async fn status(pool: &Pool, check: &Due, within: Duration) -> Result<u16, String> {
    let base = check.origin.url.trim_end_matches('/');
    let url = format!("{base}{}", check.rule.path);
    let host = HeaderValue::try_from(&check.host).map_err(|error| error.to_string())?;
    let request = || -> Result<_, String> {
        let request = Request::get(&url)
            .header(header::HOST, &host)
            .header(header::USER_AGENT, USER_AGENT)
            .body(empty());
        request.map_err(|error| error.to_string())
    };
    let patience = Patience {
        connect: within,
        head: within,
    };
    let answer = pool.ask::<String>(request, patience).await?;
    let status = answer.response.status().as_u16();
    let body = Limited::new(answer.response.into_body(), BODY_BYTES_READ_MAX);
    // What it says beyond its status is of no interest, nor whether it comes to an end.
    let _ = timeout(within, body.collect()).await;
    Ok(status)
}
