//! Purges on the peer listener: a control plane pushes records, peers ask for those that they miss.

use bytes::Bytes;
use cluster::{
    auth,
    purge::SCOPES_MAX,
    wire::{ErrorAnswer, PURGE_PAGE_BYTES_MAX, PURGE_PAGE_MAX, PurgeApplied, PurgePush},
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use tokio::time::timeout;
use tracing::debug;

use super::{Answer, BATCH_TIMEOUT, Hold, answer};
use crate::{cache::entry::Entry, purges::NotApplied, upstream::relayed};

/// Longest body: as many records as may come, and what JSON puts around them.
const BODY_BYTES_MAX: usize = PURGE_PAGE_BYTES_MAX + (64 << 10);

impl Hold {
    /// Takes records in; answered once they are on disk.
    pub(super) async fn purge(&self, request: Request<Incoming>) -> Response<Answer> {
        let Ok(_place) = self.shared.pushes.clone().try_acquire_owned() else {
            return refused(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many pushes at once",
                None,
            );
        };
        let proof = request.uri().query().unwrap_or_default().to_owned();
        let body = Limited::new(request.into_body(), BODY_BYTES_MAX);
        let Ok(Ok(body)) = timeout(BATCH_TIMEOUT, body.collect()).await else {
            let error = "the push is too large or too slow";
            return refused(StatusCode::PAYLOAD_TOO_LARGE, error, None);
        };
        let body = body.to_bytes();
        if auth::body_parameter(&body) != proof {
            let error = "the body is not the one that was signed";
            return refused(StatusCode::FORBIDDEN, error, None);
        }
        let push: PurgePush = match serde_json::from_slice(&body) {
            Ok(push) => push,
            Err(error) => {
                let error = format!("not a push of purges: {error}");
                return refused(StatusCode::BAD_REQUEST, &error, None);
            }
        };
        if push.records.len() > PURGE_PAGE_MAX {
            let error = format!("more than {PURGE_PAGE_MAX} records");
            return refused(StatusCode::BAD_REQUEST, &error, Some("records"));
        }
        let odd = push
            .records
            .iter()
            .find(|record| !(1..=SCOPES_MAX).contains(&record.purge.scopes.len()));
        if let Some(odd) = odd {
            let error = format!("record {} has no scopes, or too many", odd.at.seq);
            return refused(StatusCode::BAD_REQUEST, &error, Some("scopes"));
        }
        self.shared.metrics.peer_answered("purge");
        match self.shared.purges.apply(push.records, None).await {
            Ok(applied) => told(StatusCode::OK, &PurgeApplied { applied }),
            Err(error @ NotApplied::Alone) => {
                refused(StatusCode::NOT_FOUND, &error.to_string(), None)
            }
            Err(error) => refused(StatusCode::SERVICE_UNAVAILABLE, &error.to_string(), None),
        }
    }

    /// Tells a peer what it misses, as far as it is remembered here.
    pub(super) fn purges(&self, query: Option<&str>) -> Response<Answer> {
        let number = |name: &str| -> Result<Option<u64>, ()> {
            let parameters = query.unwrap_or_default().split('&');
            let mut values =
                parameters.filter_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            let value = values.next().map(str::parse);
            value.transpose().map_err(drop)
        };
        let (Ok(log), Ok(after), Ok(limit)) = (number("log"), number("after"), number("limit"))
        else {
            let error = "log, after and limit are numbers";
            return refused(StatusCode::BAD_REQUEST, error, None);
        };
        let limit = limit.and_then(|limit| usize::try_from(limit).ok());
        let limit = limit.unwrap_or(PURGE_PAGE_MAX);
        let (log, after) = (log.unwrap_or(0), after.unwrap_or(0));
        self.shared.metrics.peer_answered("purges");
        told(StatusCode::OK, &self.shared.purges.page(log, after, limit))
    }

    /// Whether what is stored may have been purged without this node having heard of it: then nobody is given it
    /// who asks for what there is now.
    pub(super) fn is_in_doubt(&self, fields: &HeaderMap) -> bool {
        let site = fields.get(relayed::SITE_FIELD);
        let site = site.and_then(|site| site.to_str().ok()).unwrap_or_default();
        !self.shared.purges.is_sure_of(site)
    }

    /// Whether what is stored was purged, as far as the question says what it is.
    pub(super) fn is_purged(&self, fields: &HeaderMap, entry: &Entry) -> bool {
        let text = |name: &str| fields.get(name).and_then(|value| value.to_str().ok());
        let (Some(site), Some(host), Some(target)) = (
            text(relayed::SITE_FIELD),
            text(relayed::HOST_FIELD),
            text(relayed::TARGET_FIELD),
        ) else {
            return false;
        };
        let is_purged = self.shared.purges.has_hit(site, host, target, entry);
        if is_purged {
            debug!(site, host, target, "a peer asks for what was purged");
        }
        is_purged
    }
}

fn told(status: StatusCode, what: &impl Serialize) -> Response<Answer> {
    let body = serde_json::to_vec(what).expect("plain data with text keys");
    answer(status, Answer::Whole(Some(Bytes::from(body))))
}

fn refused(status: StatusCode, error: &str, field: Option<&str>) -> Response<Answer> {
    let body = ErrorAnswer {
        error: error.to_owned(),
        field: field.map(str::to_owned),
    };
    told(status, &body)
}
