//! How a request is answered once it is known with what: an entry, the origin's own answer, or an
//! error. Every answer says in `Cache-Status` what happened, and carries the trace that is counted
//! when it ends.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use tokio::time::Instant;

use super::{Asked, Proxy};
use crate::{
    cache::{
        entry::{Body, Entry, Provenance},
        policy,
    },
    deliver::{
        self, Content, Delivery,
        cache_status::{CacheStatus, Fwd, Handled},
        conditional,
    },
    error::{ERROR_TYPE, Kind, RETRY_AFTER, ServeError},
    forward,
    metrics::{Outcome, Source},
    payload::{self, Payload, Trace},
    upstream::origin::OriginBody,
};

impl Proxy {
    /// Hands `entry` out, as `fields` want it. `None`: a part of it has been evicted meanwhile.
    ///
    /// # Errors
    ///
    /// Its body is taken down.
    pub(super) async fn deliver(
        &self,
        asked: &Asked,
        fields: &HeaderMap,
        entry: &Arc<Entry>,
        how: How,
    ) -> Result<Option<Response<Payload>>, ServeError> {
        self.body_admitted(asked, entry).await?;
        let source = match &entry.body {
            Body::Growing(_) => entry.from.source(),
            // It came in one.
            Body::Whole(_) if how.is_fetched() => entry.from.source(),
            Body::Whole(_) => entry.source,
            // As they come.
            Body::Shelved(_) | Body::Pieces { .. } => Source::Memory,
        };
        let from_disk = Arc::default();
        let delivery = deliver::plan(&asked.method, fields, entry, self.shared.clock.unix_ms());
        let Delivery {
            mut head,
            content,
            length,
        } = delivery;
        let cache = &self.shared.cache;
        let opened = match content {
            Content::None => Ok(None),
            Content::Range(range) => entry.open_counted(range, cache, &from_disk).map(Some),
            Content::Multipart(multipart) => {
                deliver::open_parts(entry, multipart, cache, &from_disk).map(Some)
            }
        };
        let Ok(reading) = opened else {
            self.shared.cache.forget(entry.key).await;
            return Ok(None);
        };
        self.tell_kept(asked, &how, entry, &mut head.headers);
        let mut trace = self.trace(Some(asked), how.outcome, source, head.status);
        trace.from_disk = from_disk;
        if let Body::Growing(growing) = &entry.body {
            trace.growing = Some(growing.clone());
        }
        // Trailers come behind a body whose length nobody knew, while it grows; see `Growing::trail`.
        if length.is_some() {
            head.headers.remove(header::TRAILER);
        }
        let payload = match (reading, &entry.body) {
            (Some(reading), Body::Growing(growing)) if length.is_none() => {
                Payload::growing(reading, growing.clone(), trace)
            }
            (Some(reading), _) => Payload::reading(reading, length, trace),
            (None, _) => Payload::empty(trace),
        };
        Ok(Some(response(head.status, head.headers, payload)))
    }

    /// Makes `headers`, those of `entry`, those of the answer to this request, and says how it came to that.
    pub(super) fn tell_kept(
        &self,
        asked: &Asked,
        how: &How,
        entry: &Entry,
        headers: &mut HeaderMap,
    ) {
        // RFC 9111 §5.1: `Age` says that the origin has not answered this very request.
        if how.leads
            && entry.from == Provenance::Origin
            && !entry.head.headers.contains_key(header::AGE)
        {
            headers.remove(header::AGE);
        }
        if how.leads
            && let Ok(mut withheld) = entry.withheld.lock()
            && let Some(withheld) = withheld.take()
        {
            headers.extend(*withheld);
        }
        asked.rules.consume_targets(headers);
        let filled_from = how.filled.then(|| entry.from.to_string());
        let detail = how.detail.clone().or(filled_from);
        let ttl = entry.head.freshness.ttl_s(self.now());
        let handled = match how.fwd {
            None => Handled::Hit,
            Some(why) => Handled::Forwarded {
                why,
                status: how.fwd_status.map(|status| status.as_u16()),
                stored: how.filled && how.leads,
                collapsed: how.filled && !how.leads,
            },
        };
        // Of use to whoever wonders about a miss; a hit does without.
        let key = how.fwd.map_or_else(String::new, |_| asked.key.to_string());
        CacheStatus {
            node: self.shared.me.as_str(),
            handled,
            ttl_s: (!how.filled || how.leads).then_some(ttl),
            key: how.fwd.map(|_| &*key),
            detail: detail.as_deref(),
        }
        .append_to(headers);
    }

    pub(super) fn passed(
        &self,
        asked: &Asked,
        answer: Response<OriginBody>,
        fwd: Fwd,
    ) -> Response<Payload> {
        let (mut parts, body) = answer.into_parts();
        policy::strip_hop_by_hop(&mut parts.headers);
        asked.rules.consume_targets(&mut parts.headers);
        self.tell_unstored(asked, fwd, parts.status, "origin", &mut parts.headers);
        let trace = self.trace(Some(asked), Outcome::Pass, Source::Origin, parts.status);
        let payload = match asked.method {
            Method::HEAD => Payload::empty(trace),
            _ => Payload::origin(body, trace),
        };
        let mut response = response(parts.status, parts.headers, payload);
        // Among them the reason phrase and how fields are spelled; hyper writes them so again.
        *response.extensions_mut() = parts.extensions;
        response
    }

    /// Says in `headers` that somebody else was asked, and that nothing is kept of what that one, named by
    /// `detail`, has sent.
    pub(super) fn tell_unstored(
        &self,
        asked: &Asked,
        why: Fwd,
        status: StatusCode,
        detail: &str,
        headers: &mut HeaderMap,
    ) {
        let handled = Handled::Forwarded {
            why,
            status: Some(status.as_u16()),
            stored: false,
            collapsed: false,
        };
        CacheStatus {
            node: self.shared.me.as_str(),
            handled,
            ttl_s: None,
            key: Some(&asked.key.to_string()),
            detail: Some(detail),
        }
        .append_to(headers);
    }

    /// The same for an answer that was asked for without the client's conditions.
    pub(super) fn passed_whole(
        &self,
        asked: &Asked,
        answer: Response<OriginBody>,
        fwd: Fwd,
    ) -> Response<Payload> {
        let mut response = self.passed(asked, answer, fwd);
        let (status, fields) = (response.status(), response.headers());
        if let Some((status, fields)) = conditional::shortened(&asked.headers, status, fields) {
            *response.status_mut() = status;
            *response.headers_mut() = fields;
            response.extensions_mut().clear();
            response.body_mut().cut();
        }
        response
    }

    pub(super) fn error_answer(
        &self,
        asked: Option<&Asked>,
        what: String,
        started: Instant,
        error: &ServeError,
        closes: bool,
    ) -> Response<Payload> {
        let (status, sentence) = error.answer();
        tracing::debug!(what, side = ?error.side(), kind = error.token(), detail = error.detail, "error answered");
        let mut trace = self.trace(asked, Outcome::Error, Source::Memory, status);
        trace.what = what;
        trace.started = started;
        let text = format!("{sentence}\n");
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, ERROR_TYPE);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let is_shed = matches!(error.kind, Kind::Overloaded | Kind::OriginBusy);
        let forwarded = asked.and_then(|asked| asked.forwarded.get());
        let handled = match forwarded.filter(|_| !is_shed) {
            None => Handled::Generated,
            Some(why) => Handled::Forwarded {
                why: *why,
                status: None,
                stored: false,
                collapsed: false,
            },
        };
        let node = self.shared.me.as_str();
        CacheStatus {
            node,
            handled,
            ttl_s: None,
            key: None,
            detail: Some(error.token()),
        }
        .append_to(&mut headers);
        let doubtful = matches!(
            error.kind,
            Kind::AmbiguousLength | Kind::UnknownCoding | Kind::NoHost | Kind::BadTarget
        );
        if closes || doubtful {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if error.kind == Kind::Blocked
            && let Some(url) = asked.and_then(|asked| asked.site.blocked_by.as_ref())
            && let Ok(link) = HeaderValue::try_from(format!("<{url}>; rel=\"blocked-by\""))
        {
            headers.insert(header::LINK, link); // RFC 7725 §4
        }
        if is_shed {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if matches!(error.kind, Kind::Connect | Kind::Trace) {
            headers.insert(header::ALLOW, forward::ALLOW);
        }
        let is_head = asked.is_some_and(|asked| asked.method == Method::HEAD);
        headers.insert(header::CONTENT_LENGTH, text.len().into());
        let payload = if is_head {
            Payload::empty(trace)
        } else {
            Payload::whole(text.into(), trace)
        };
        response(status, headers, payload)
    }

    pub(super) fn trace(
        &self,
        asked: Option<&Asked>,
        outcome: Outcome,
        source: Source,
        status: StatusCode,
    ) -> Trace {
        let started = asked.map_or_else(Instant::now, |asked| asked.started);
        // Words that nobody reads are not written.
        let told = asked.filter(|_| payload::is_logged());
        self.shared.metrics.answered(outcome, started.elapsed());
        Trace {
            metrics: self.shared.metrics.clone(),
            site: asked.map(|asked| asked.site_metrics.clone()),
            site_name: told.map_or_else(String::new, |asked| asked.site.name.clone()),
            what: told.map_or_else(String::new, |asked| {
                format!("{} {}", asked.method, asked.uri)
            }),
            started,
            outcome,
            source,
            status,
            from_disk: Arc::default(),
            growing: None,
            fetched: None,
            sent: 0,
        }
    }
}

/// How a request came to the entry it is answered with.
pub(super) struct How {
    pub(super) outcome: Outcome,
    pub(super) fwd: Option<Fwd>,
    pub(super) fwd_status: Option<StatusCode>,
    /// Whether this request began the fill.
    pub(super) leads: bool,
    /// Whether it is from a fill.
    pub(super) filled: bool,
    pub(super) detail: Option<String>,
}

impl How {
    /// Whether it is the outcome of asking for this very request, be it only that the origin fails.
    pub(super) fn is_asked_for(&self) -> bool {
        self.leads || self.fwd.is_some() && !self.filled
    }

    /// Whether the bytes come from where it was fetched, and not from what was here.
    pub(super) fn is_fetched(&self) -> bool {
        matches!(self.outcome, Outcome::Miss | Outcome::Collapsed)
    }

    pub(super) fn hit(outcome: Outcome) -> Self {
        Self {
            outcome,
            fwd: None,
            fwd_status: None,
            leads: false,
            filled: false,
            detail: None,
        }
    }

    /// With the stored response, which the origin has confirmed.
    pub(super) fn refreshed(leads: bool, fwd: Fwd) -> Self {
        Self {
            outcome: Outcome::Revalidated,
            ..Self::filled(leads, fwd, StatusCode::NOT_MODIFIED)
        }
    }

    /// With a stale response, because the origin was asked and there is only an error otherwise.
    pub(super) fn instead_of(error: &ServeError, fwd: Fwd) -> Self {
        Self {
            fwd: Some(fwd),
            detail: Some(error.token().to_owned()),
            ..Self::hit(Outcome::Stale)
        }
    }

    pub(super) fn filled(leads: bool, fwd: Fwd, status: StatusCode) -> Self {
        Self {
            outcome: if leads {
                Outcome::Miss
            } else {
                Outcome::Collapsed
            },
            fwd: Some(fwd),
            fwd_status: Some(status),
            leads,
            filled: true,
            detail: None,
        }
    }
}

pub(super) fn response(
    status: StatusCode,
    headers: HeaderMap,
    payload: Payload,
) -> Response<Payload> {
    let mut response = Response::new(payload);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
