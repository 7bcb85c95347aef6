//! Requests that go to the origin in the client's own name: answers for one request only, and what they
//! do to what is stored.

use std::sync::Arc;

use cluster::key::Key;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;

use super::{Asked, Filled, Proxy, answer::How, fetch, invalidation, purged::Moment, upload};
use crate::{
    cache::{
        Ask, Lookup,
        entry::{self, Entry},
        key,
        policy::{self, CacheControl},
    },
    deliver::{self, cache_status::Fwd},
    error::{Kind, ServeError},
    forward,
    payload::Payload,
    ruling::Ruling,
    upstream::{origin::OriginBody, pool},
};

impl Proxy {
    /// Streams an answer through that is for this request only.
    pub(super) async fn pass(
        &self,
        asked: &Arc<Asked>,
        body: Option<Incoming>,
        fwd: Fwd,
    ) -> Result<Response<Payload>, ServeError> {
        // It goes by itself only because the last answer was not for everybody; this one may be.
        let may_keep = body.is_none()
            && asked.method == Method::GET
            && matches!(fwd, Fwd::UriMiss | Fwd::VaryMiss)
            && !forward::is_selective(&asked.headers);
        let headers = if may_keep {
            self.whole(asked)
        } else {
            let mut headers = asked.headers.clone();
            forward::add_hop(&mut headers, &self.hop(asked));
            headers
        };
        let Sent {
            response,
            moment,
            is_unread,
        } = self.send(asked, body, headers, fwd).await?;
        if policy::invalidates(&asked.method, response.status()) {
            self.changed(asked, response.headers()).await;
        }
        let mut response = if asked.method == Method::POST && self.is_reusable(asked, &response) {
            // Conditions and ranges of a POST are not about this answer.
            let plain = HeaderMap::new();
            self.keep(asked, response, moment, Fwd::Method, &plain)
                .await?
        } else if may_keep && self.is_for_all(asked, &response) {
            self.shared.cache.stop_passing(asked.key);
            self.keep(asked, response, moment, fwd, &asked.headers)
                .await?
        } else {
            self.passed(asked, response, fwd)
        };
        if is_unread {
            // The client may send its body or not; there is no telling where its next request begins.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        Ok(response)
    }

    /// The same for a request that `entry` would do for, if only the origin said so: asks whether it holds.
    pub(super) async fn pass_validating(
        &self,
        asked: &Arc<Asked>,
        entry: &Arc<Entry>,
        fwd: Fwd,
    ) -> Result<Response<Payload>, ServeError> {
        let stored = &entry.head.headers;
        let conditional = self.conditional(asked, stored);
        let conditional = conditional.filter(|_| {
            asked.method == Method::GET
                && self.may_share(asked, entry)
                && deliver::suffices(&asked.method, &asked.headers, entry)
        });
        let Some(headers) = conditional else {
            return self.pass(asked, None, fwd).await;
        };
        let response = self.send(asked, None, headers, fwd).await;
        let outlives = self.outlives(asked, entry);
        let how = match response {
            Ok(Sent { response, .. }) if response.status() == StatusCode::NOT_MODIFIED => {
                How::refreshed(false, fwd)
            }
            Ok(Sent { response, .. }) if outlives && policy::is_error(response.status()) => {
                let detail = format!("origin answered {}", response.status());
                How::instead_of(&ServeError::new(Kind::BadAnswer, detail), fwd)
            }
            Ok(Sent { response, .. }) => return Ok(self.passed_whole(asked, response, fwd)),
            Err(error) if outlives => How::instead_of(&error, fwd),
            Err(error) => return Err(error),
        };
        match self.deliver(asked, &asked.headers, entry, how).await? {
            Some(response) => Ok(response),
            None => self.pass(asked, None, fwd).await,
        }
    }

    /// Asks the origin in the client's name, in turn.
    async fn send(
        &self,
        asked: &Arc<Asked>,
        body: Option<Incoming>,
        mut headers: HeaderMap,
        fwd: Fwd,
    ) -> Result<Sent, ServeError> {
        let body = body.filter(|body| !body.is_end_stream());
        // RFC 9110 §10.1.1: it is for content, and HTTP/1.0 does not know it.
        if body.is_none() || asked.version == Version::HTTP_10 {
            policy::fields::remove(&mut headers, |name| name == header::EXPECT);
        }
        if body.is_some() && !headers.contains_key(header::CONTENT_LENGTH) {
            // hyper would send a GET without its body.
            let chunked = HeaderValue::from_static("chunked");
            headers.insert(header::TRANSFER_ENCODING, chunked);
        }
        let limits = self.shared.upload;
        if body.is_some()
            && entry::content_length(&headers).is_some_and(|length| length > limits.bytes_max)
        {
            return Err(ServeError::new(Kind::BodyTooLarge, ""));
        }
        let (body, upload) = match body {
            Some(body) => {
                let (body, upload) = upload::bounded(body, limits);
                (body, Some(upload))
            }
            None => (pool::empty(), None),
        };
        let place = self.origin_place(asked).await?;
        asked.forwarded.get_or_init(|| fwd);
        let moment = self.moment();
        asked.open_interim();
        let request = asked.onward(asked.method.clone(), headers, body);
        let response = self
            .shared
            .upstream
            .origin(&asked.site, asked.key, &asked.host, request, place)
            .await
            .map_err(|error| match &upload {
                Some(upload) if upload.is_over() => ServeError::new(Kind::BodyTooLarge, error),
                _ => fetch::origin_failed(error),
            })?;
        let is_unread =
            asked.version == Version::HTTP_11 && upload.is_some_and(|upload| upload.is_untouched());
        Ok(Sent {
            response,
            moment,
            is_unread,
        })
    }

    /// Whether the answer to a POST may answer later GETs (RFC 9110 §9.3.3): its lifetime is explicit,
    /// and it says that it is what stands at the target.
    fn is_reusable(&self, asked: &Asked, response: &Response<OriginBody>) -> bool {
        let (status, headers) = (response.status(), response.headers());
        let named = headers
            .get(header::CONTENT_LOCATION)
            .and_then(|v| v.to_str().ok());
        let target = asked.uri.path_and_query().map_or("/", |pq| pq.as_str());
        status.is_success()
            && named
                .and_then(|named| invalidation::resolve(named, &asked.uri, &asked.host_sent))
                .is_some_and(|named| named == target)
            && policy::storable(&asked.facts(), status, headers, &asked.rules, asked.now_ms)
                .is_ok_and(|freshness| freshness.basis.is_explicit())
    }

    /// Stores the answer to a POST under the target, and answers with it as it comes.
    async fn keep(
        &self,
        asked: &Arc<Asked>,
        response: Response<OriginBody>,
        moment: Moment,
        fwd: Fwd,
        fields: &HeaderMap,
    ) -> Result<Response<Payload>, ServeError> {
        let Ok(place) = self.fill_place() else {
            return Ok(self.passed(asked, response, fwd));
        };
        let said = CacheControl::default();
        let ask = Ask {
            said: &said,
            ..self.ask(asked)
        };
        let Lookup::Absent(filler) = self.shared.cache.lookup(ask).await else {
            // Somebody has begun to fetch it in this moment.
            return Ok(self.passed(asked, response, fwd));
        };
        let following = filler.follow();
        let mut keeping = self.begin_keeping(filler, asked, response, moment, place);
        if let Filled::Shared(entry) = keeping.outcome(following).await {
            let how = How::filled(true, fwd, entry.head.status);
            keeping.go_on();
            if let Some(response) = self.deliver(asked, fields, &entry, how).await? {
                return Ok(response);
            }
        }
        let error = || ServeError::new(Kind::Internal, "an answer was lost");
        let answer = keeping.own_answer().await.ok_or_else(error)?;
        Ok(self.passed(asked, answer, fwd))
    }

    /// Whether the answer to a GET is for everybody after all.
    fn is_for_all(&self, asked: &Asked, response: &Response<OriginBody>) -> bool {
        let (status, headers) = (response.status(), response.headers());
        policy::storable(&asked.facts(), status, headers, &asked.rules, asked.now_ms).is_ok()
    }

    /// Whether an object that its site keys by fields or cookies is from before its URL was invalidated,
    /// by a request with others.
    pub(super) fn is_outdated(
        &self,
        ruling: &Ruling,
        host: &str,
        target: &str,
        entry: &Entry,
    ) -> bool {
        whole_key(ruling, host, target)
            .is_some_and(|key| self.shared.cache.is_doubtful(key, entry.head.fetched_at))
    }
}

/// The name of all objects of a URL, where its site has several.
pub(super) fn whole_key(ruling: &Ruling, host: &str, target: &str) -> Option<Key> {
    let rules = ruling.whole_key.as_ref()?;
    let site = &ruling.site.name;
    Some(key::key(site, host, target, &HeaderMap::new(), rules))
}

/// What came of asking the origin in a client's name.
struct Sent {
    response: Response<OriginBody>,
    /// When it was asked, which may be long after the request came in.
    moment: Moment,
    /// Whether the client's body was left unread on HTTP/1.1.
    is_unread: bool,
}
