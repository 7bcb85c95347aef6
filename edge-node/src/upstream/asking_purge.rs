//! A purge that was asked for here, handed to a control plane: it has the log.

use std::time::Duration;

use bytes::Bytes;
use cluster::{
    auth,
    node::NodeId,
    wire::{CONTROL_PLANES, ErrorAnswer, PURGES, PurgeRequest, PurgeStatus},
};
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use tokio::time::Instant;

use super::{
    Upstream,
    pool::{Body, Patience},
};

/// For a connection, and for an answer: a control plane waits for edges up to ten seconds.
const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(2),
    head: Duration::from_secs(14),
};
/// Until an answer must be there. Control planes are asked one after the other.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Largest answer: a purge of as many scopes as there may be, and a receipt from every node.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Why a purge was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotPurged {
    /// It makes no sense; asking again would be in vain.
    Refused {
        /// The control plane's status.
        status: StatusCode,
        /// Its words.
        reason: String,
    },
    /// No control plane answers; the last one's reason.
    Unavailable(String),
}

impl Upstream {
    /// Has the first control plane that answers take a purge, and wait for its receipts.
    ///
    /// # Errors
    ///
    /// None has taken it. After [`NotPurged::Unavailable`] one may have all the same.
    pub async fn ask_purge(&self, request: &PurgeRequest) -> Result<PurgeStatus, NotPurged> {
        let body = Bytes::from(serde_json::to_vec(request).expect("plain data with text keys"));
        let mut last = "no control plane is configured on this node".to_owned();
        for base in self.0.planes.bases() {
            match self.ask_purge_of(base, &body).await {
                Ok((StatusCode::OK, answer)) => match serde_json::from_slice(&answer) {
                    Ok(status) => return Ok(status),
                    Err(error) => last = format!("{base}: not the answer expected: {error}"),
                },
                Ok((status, answer)) => {
                    let said: Option<ErrorAnswer> = serde_json::from_slice(&answer).ok();
                    let reason = said.map_or_else(String::new, |said| said.error);
                    let is_final = status.is_client_error()
                        && !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
                    if is_final {
                        return Err(NotPurged::Refused { status, reason });
                    }
                    last = format!("{base}: {status} {reason}");
                }
                Err(reason) => last = format!("{base}: {reason}"),
            }
        }
        Err(NotPurged::Unavailable(last))
    }

    async fn ask_purge_of(&self, base: &str, body: &Bytes) -> Result<(StatusCode, Bytes), String> {
        let path = format!("{PURGES}?{}", auth::body_parameter(body));
        let to: NodeId = CONTROL_PLANES.parse().expect("it is a name");
        let uri: Uri = format!("{base}{path}")
            .parse()
            .map_err(|error| format!("is no URL: {error}"))?;
        // Asked again, it is signed again: no two requests are the same.
        let request = || -> Result<Request<Body>, String> {
            let full = Full::new(body.clone()).map_err(|never| match never {});
            let mut request = Request::new(full.boxed_unsync());
            *request.method_mut() = http::Method::POST;
            *request.uri_mut() = uri.clone();
            let fields = request.headers_mut();
            let host = uri.authority().map_or("", |authority| authority.as_str());
            let value = |text: &str| HeaderValue::try_from(text).map_err(|e| e.to_string());
            fields.insert(header::HOST, value(host)?);
            fields.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            );
            if let Some(asker) = &self.0.asker {
                let now = asker.clock.unix_ms();
                for (name, text) in asker.signer.sign(&to, "POST", &path, now) {
                    fields.insert(name, value(&text)?);
                }
            }
            Ok(request)
        };
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let pool = self.0.planes.pool();
        let answer = pool
            .document::<String>(request, PATIENCE, ANSWER_BYTES_MAX, deadline)
            .await?;
        Ok((answer.head.status, answer.body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_plane_is_waited_for_as_long_as_it_waits() {
        assert!(PATIENCE.head > Duration::from_secs(10));
        assert!(ANSWER_TIMEOUT > PATIENCE.connect + PATIENCE.head);
        assert!(CONTROL_PLANES.parse::<NodeId>().is_ok());
    }
}
