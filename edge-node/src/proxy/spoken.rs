//! Purges that are asked for here as of any proxy (`PURGE`, `BAN`, …): translated, and handed to a control
//! plane. Only from addresses that the site's `purge_from` names; such a request never goes to the origin,
//! which may believe it because of where it comes from.

use cluster::purge::spoken::{METHODS, Spoken, in_words, translate};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use tokio::time::{Duration, Instant, timeout};

use super::{Proxy, target};
use crate::{
    error::{ERROR_TYPE, Kind, ServeError},
    metrics::{Outcome, Source},
    payload::Payload,
    serve::Connection,
    upstream::asking_purge::NotPurged,
};

/// Largest body of such a request: nobody sends one that means anything.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Until that body must be there.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a request of this kind is refused.
enum Refused {
    /// As any request would be.
    Serve(ServeError),
    /// With this status and these words.
    Told(StatusCode, String),
}

/// Whether a request asks for a purge.
pub(super) fn is_spoken(method: &Method) -> bool {
    METHODS.contains(&method.as_str())
}

impl Proxy {
    /// Answers a request for which [`is_spoken`].
    pub(super) async fn purge(
        &self,
        request: Request<Incoming>,
        connection: &Connection,
        started: Instant,
    ) -> Response<Payload> {
        let what = format!("{} {}", request.method(), request.uri());
        let has_end = request.version() == Version::HTTP_2;
        // Only of a request that is taken the body is read to its end.
        let (status, text, closes) = match self.hand_on(request, connection).await {
            Ok(text) => (StatusCode::OK, text, false),
            Err(Refused::Serve(error)) => {
                return self.error_answer(None, what, started, &error, !has_end);
            }
            Err(Refused::Told(status, text)) => (status, format!("{text}\n"), !has_end),
        };
        let outcome = match status {
            StatusCode::OK => Outcome::Pass,
            _ => Outcome::Error,
        };
        let mut trace = self.trace(None, outcome, Source::Memory, status);
        trace.what = what;
        trace.started = started;
        let mut fields = HeaderMap::new();
        fields.insert(header::CONTENT_TYPE, ERROR_TYPE);
        fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if closes {
            fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let mut response = Response::new(Payload::whole(text.into(), trace));
        *response.status_mut() = status;
        *response.headers_mut() = fields;
        response
    }

    async fn hand_on(
        &self,
        request: Request<Incoming>,
        connection: &Connection,
    ) -> Result<String, Refused> {
        let host = target::host_of(&request).map_err(Refused::Serve)?;
        let Some(selected) = self.shared.sites.load().select(&host) else {
            let error = ServeError::new(Kind::UnknownHost, &host);
            return Err(Refused::Serve(error));
        };
        let site = selected.ruling.site.clone();
        let from = connection.from.ip();
        if !site.purge_from.iter().any(|network| network.contains(from)) {
            let text = match site.purge_from.is_empty() {
                true => "Purges are not taken here; the control plane takes them.",
                false => "Purges are not taken from this address.",
            };
            return Err(Refused::Told(StatusCode::FORBIDDEN, text.to_owned()));
        }
        let (head, body) = request.into_parts();
        let body = timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect())
            .await
            .map_err(|_| Refused::Serve(ServeError::new(Kind::RequestBody, "too slow")))?
            .map_err(
                |error| match error.is::<http_body_util::LengthLimitError>() {
                    true => Refused::Serve(ServeError::new(Kind::BodyTooLarge, "")),
                    false => Refused::Serve(ServeError::new(Kind::RequestBody, error)),
                },
            )?
            .to_bytes();
        let mut fields = head.headers;
        // A target that names its host does so in place of the field.
        if let Ok(host) = HeaderValue::try_from(&*host) {
            fields.insert(header::HOST, host);
        }
        let spoken = translate(head.method.as_str(), &head.uri, &fields, &body);
        let Spoken { mut request, .. } =
            spoken.map_err(|error| Refused::Told(error.status, error.to_string()))?;
        request.site.clone_from(&site.name);
        match self.shared.upstream.ask_purge(&request).await {
            Ok(status) => Ok(in_words(&status)),
            Err(NotPurged::Refused { status, reason }) => Err(Refused::Told(status, reason)),
            Err(NotPurged::Unavailable(reason)) => {
                tracing::warn!(site = %site.name, %from, reason, "a purge was not handed on");
                let text = "No control plane takes purges now; try again.".to_owned();
                Err(Refused::Told(StatusCode::SERVICE_UNAVAILABLE, text))
            }
        }
    }
}
