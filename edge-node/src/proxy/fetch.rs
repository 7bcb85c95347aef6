//! A fill: the one fetch that makes an entry grow. Holders by digest first, best ranked; else the
//! origin. It runs in a task of its own.

use std::sync::Arc;

use bytes::Bytes;
use cluster::manifest::{Manifest, PIECE_BYTES};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use tracing::{debug, info};

use super::{Asked, Proxy};
use crate::{
    cache::{
        Filler, Writing,
        entry::{self, Entry, Head, Provenance},
        fill::BodyError,
        policy::{self, Freshness, Reuse, validator::EntityTag},
        vary::{self, Vary},
    },
    error::{Kind, ServeError},
    forward,
    upstream::{
        origin::{OriginBody, OriginError},
        peer::{PeerObject, PieceStream},
        pool::{self, Fault},
        select::Candidate,
    },
};

impl Proxy {
    /// Starts the fill in a task of its own. An answer that is not for everybody comes through the
    /// returned channel instead of through the entry.
    pub(super) fn begin_fill(
        &self,
        filler: Filler,
        asked: &Arc<Asked>,
        stale: Option<Arc<Entry>>,
    ) -> oneshot::Receiver<Response<OriginBody>> {
        let (own, receiver) = oneshot::channel();
        let (proxy, asked) = (self.clone(), asked.clone());
        tokio::spawn(async move { Box::pin(proxy.fill(filler, &asked, stale, own)).await });
        receiver
    }

    async fn fill(
        &self,
        filler: Filler,
        asked: &Asked,
        stale: Option<Arc<Entry>>,
        own: oneshot::Sender<Response<OriginBody>>,
    ) {
        // Whoever holds what we hold, holds it no fresher: a stale object is the origin's business.
        let filler = match &stale {
            None => match self.fill_from_peers(filler, asked).await {
                Ok(()) => return,
                Err(filler) => filler,
            },
            Some(_) => filler,
        };
        let mut headers = asked.headers.clone();
        forward::make_whole(&mut headers);
        forward::add_hop(&mut headers, &self.hop(asked));
        if let Some(entry) = &stale {
            let (tag, date) = policy::conditional_fields(&entry.head.headers);
            let fields = [
                (header::IF_NONE_MATCH, tag),
                (header::IF_MODIFIED_SINCE, date),
            ];
            headers.extend(
                fields
                    .into_iter()
                    .filter_map(|(name, value)| Some((name, value?))),
            );
        }
        let asked_ms = self.shared.clock.unix_ms();
        let response = match self.ask_origin(asked, headers).await {
            Ok(response) => response,
            Err(error) => return filler.fail(origin_failed(error)),
        };
        match &stale {
            Some(entry) if response.status() == StatusCode::NOT_MODIFIED => {
                let now_ms = self.shared.clock.unix_ms();
                let fresh = policy::freshen(&entry.head.headers, response.headers(), now_ms);
                // The 304 may speak of another response, or forbid from now on to share this one.
                let (facts, status) = (asked.facts(), entry.head.status);
                let renewed = fresh.filter(|headers| {
                    policy::storable(&facts, status, headers, &asked.rules, asked_ms).is_ok()
                });
                let Some(headers) = renewed else {
                    self.shared.cache.forget(entry.key).await;
                    return filler.not_shared(false);
                };
                let head = self.head(asked, entry.head.status, headers, asked_ms);
                let head = Head {
                    length: entry.length(),
                    ..head
                };
                filler.refresh(entry, head).await;
            }
            Some(entry) if policy::is_error(response.status()) && self.outlives(asked, entry) => {
                let detail = format!("origin answered {}", response.status());
                filler.fail(ServeError::new(Kind::BadAnswer, detail));
            }
            _ => {
                self.fill_from_answer(filler, asked, response, asked_ms, own)
                    .await
            }
        }
    }

    /// Whether a stale entry may be used instead of an error.
    pub(super) fn outlives(&self, asked: &Asked, entry: &Entry) -> bool {
        let now_ms = self.shared.clock.unix_ms();
        policy::may_serve_on_error(&entry.head.freshness, &asked.said, &asked.rules, now_ms)
    }

    async fn fill_from_answer(
        &self,
        filler: Filler,
        asked: &Asked,
        response: Response<OriginBody>,
        asked_ms: u64,
        own: oneshot::Sender<Response<OriginBody>>,
    ) {
        let facts = asked.facts();
        let length = entry::content_length(response.headers());
        let limit = self.shared.cache.object_bytes_max();
        let limit = limit.min(asked.rules.object_bytes_max);
        let (status, fields) = (response.status(), response.headers());
        let storable = policy::storable(&facts, status, fields, &asked.rules, asked_ms);
        if let Err(reason) = storable {
            debug!(uri = %asked.uri, %reason, "answer is not for everybody");
        }
        if storable.is_err() || length.is_some_and(|length| length > limit) {
            // An error may be gone in a moment, and authorised answers say nothing of others.
            let remember = !response.status().is_server_error() && !facts.authorized;
            filler.not_shared(remember);
            // The client may have left; then nobody wants it.
            let _ = own.send(response);
            return;
        }
        let (parts, mut body) = response.into_parts();
        let headers = policy::storable_fields(&parts.headers, self.shared.clock.unix_ms());
        let mut head = self.head(asked, parts.status, headers, asked_ms);
        head.length = length;
        let mut writing = filler.share(head, Provenance::Origin);
        while let Some(frame) = body.frame().await {
            let written = match frame {
                Ok(frame) => match frame.into_data() {
                    Ok(bytes) => writing.write(bytes).await,
                    // Trailers: not stored, not needed (RFC 9110 §6.5.1).
                    Err(_) => Ok(()),
                },
                Err(error) => Err(BodyError::Source(error.to_string())),
            };
            if let Err(error) = written {
                debug!(uri = %asked.uri, %error, "fill ended early");
                return writing.fail(error);
            }
        }
        writing.commit().await;
    }

    /// Asks the holders, best first. Gives the filler back when none of them could help.
    async fn fill_from_peers(&self, filler: Filler, asked: &Asked) -> Result<(), Filler> {
        let candidates = self.shared.upstream.holders(asked.key);
        for (index, candidate) in candidates.iter().enumerate() {
            let answer = self
                .shared
                .upstream
                .ask(candidate, asked.key, &asked.headers, 0)
                .await;
            let object = match answer {
                Ok(object) => object,
                Err(error) => {
                    debug!(peer = %candidate.id, %error, "peer could not help");
                    continue;
                }
            };
            let Some(head) = self.usable(asked, &object) else {
                debug!(peer = %candidate.id, "peer's object does not fit");
                continue;
            };
            let writing = filler.share(head, Provenance::Peer(candidate.id.clone()));
            let others = &candidates[index + 1..];
            Box::pin(self.fill_from_pieces(writing, asked, object, others)).await;
            return Ok(());
        }
        Err(filler)
    }

    /// The head of a peer's object, if this request may be answered with it.
    fn usable(&self, asked: &Asked, object: &PeerObject) -> Option<Head> {
        let now_ms = self.shared.clock.unix_ms();
        let (facts, rules) = (asked.facts(), &*asked.rules);
        let mut headers = entry::fields_of(&object.manifest);
        headers.insert(header::AGE, object.age.as_secs().into());
        let status = entry::status_of(&object.manifest);
        let freshness = Freshness::of(status, &headers, rules, now_ms);
        let head = Head::from_manifest(&object.manifest, headers, freshness, now_ms);
        let fits = policy::reuse(&head.freshness, &asked.said, rules, now_ms) == Reuse::Fresh
            && object.manifest.length <= self.shared.cache.object_bytes_max()
            && vary::matches(&head.selected_by, &asked.headers)
            && policy::storable(&facts, head.status, &head.headers, rules, now_ms).is_ok();
        fits.then_some(head)
    }

    /// Writes verified pieces from one peer, and when it fails from whoever else has them.
    async fn fill_from_pieces(
        &self,
        mut writing: Writing,
        asked: &Asked,
        object: PeerObject,
        others: &[Candidate],
    ) {
        let manifest = object.manifest;
        let mut next: u32 = 0;
        let mut pieces = object.pieces;
        let mut others = others.iter();
        loop {
            match self
                .write_pieces(&mut writing, &mut pieces, &mut next, &manifest)
                .await
            {
                Ok(()) => return writing.commit().await,
                Err(Stopped::Pointless(error)) => return writing.fail(error),
                Err(Stopped::Source(error)) => {
                    info!(uri = %asked.uri, piece = next, error, "peer failed within a body");
                }
            }
            pieces = loop {
                let Some(candidate) = others.next() else {
                    return self
                        .finish_from_origin(writing, asked, &manifest, next)
                        .await;
                };
                let answer = self
                    .shared
                    .upstream
                    .ask(candidate, asked.key, &asked.headers, next)
                    .await;
                match answer {
                    Ok(o) if o.manifest.pieces == manifest.pieces => break o.pieces,
                    Ok(_) | Err(_) => {}
                }
            };
        }
    }

    async fn write_pieces(
        &self,
        writing: &mut Writing,
        pieces: &mut PieceStream,
        next: &mut u32,
        manifest: &Manifest,
    ) -> Result<(), Stopped> {
        while (*next as usize) < manifest.pieces.len() {
            match pieces.next().await {
                Some(Ok(bytes)) => {
                    writing.write(bytes).await.map_err(Stopped::Pointless)?;
                    *next += 1;
                }
                Some(Err(error)) => return Err(Stopped::Source(error.to_string())),
                None => return Err(Stopped::Source("ended early".to_owned())),
            }
        }
        Ok(())
    }

    /// Fetches what is missing from piece `next` on from the origin; only bytes that match the
    /// manifest go on, so two versions are never mixed.
    async fn finish_from_origin(
        &self,
        mut writing: Writing,
        asked: &Asked,
        manifest: &Manifest,
        next: u32,
    ) {
        let start = u64::from(next) * PIECE_BYTES as u64;
        let mut headers = asked.headers.clone();
        forward::make_whole(&mut headers);
        forward::add_hop(&mut headers, &self.hop(asked));
        let stored = &writing.entry().head.headers;
        let strong = EntityTag::of(stored).is_some_and(|tag| !tag.weak);
        if let (true, true, Some(validator)) = (start > 0, strong, stored.get(header::ETAG)) {
            let validator = validator.clone();
            let range = HeaderValue::from_str(&format!("bytes={start}-"));
            headers.insert(header::RANGE, range.expect("digits and a dash"));
            headers.insert(header::IF_RANGE, validator);
        }
        let response = match self.ask_origin(asked, headers).await {
            Ok(response) => response,
            Err(error) => return writing.fail(BodyError::Source(error.to_string())),
        };
        let mut skip = match response.status() {
            StatusCode::PARTIAL_CONTENT if begins_at(response.headers(), start) => 0,
            StatusCode::OK => start,
            status => {
                let error = format!("origin answered {status} to the rest of an object");
                return writing.fail(BodyError::Source(error));
            }
        };
        let mut body = response.into_body();
        let mut piece: Vec<u8> = Vec::new();
        for index in next..u32::try_from(manifest.pieces.len()).unwrap_or(u32::MAX) {
            let length = manifest.piece_length(index);
            while piece.len() < length {
                let bytes = match body.frame().await {
                    Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                    Some(Err(error)) => return writing.fail(BodyError::Source(error.to_string())),
                    None => {
                        let error = "the origin's body is shorter than the peer's".to_owned();
                        return writing.fail(BodyError::Source(error));
                    }
                };
                let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
                skip -= skipped as u64;
                piece.extend_from_slice(&bytes[skipped..]);
            }
            let rest = piece.split_off(length);
            let bytes = Bytes::from(std::mem::replace(&mut piece, rest));
            if *blake3::hash(&bytes).as_bytes() != manifest.pieces[index as usize] {
                let error = "the object has changed at the origin meanwhile".to_owned();
                return writing.fail(BodyError::Source(error));
            }
            if let Err(error) = writing.write(bytes).await {
                return writing.fail(error);
            }
        }
        writing.commit().await;
    }

    async fn ask_origin(
        &self,
        asked: &Asked,
        headers: HeaderMap,
    ) -> Result<Response<OriginBody>, OriginError> {
        let mut request = Request::new(pool::empty());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = asked.uri.clone();
        *request.headers_mut() = headers;
        self.shared
            .upstream
            .origin(&asked.site, &asked.host, request)
            .await
    }

    fn head(&self, asked: &Asked, status: StatusCode, headers: HeaderMap, asked_ms: u64) -> Head {
        let selected_by = match vary::selecting_fields(&headers) {
            Vary::Fields(fields) => vary::normal_values(&fields, &asked.headers),
            Vary::None | Vary::Any => Vec::new(),
        };
        Head {
            freshness: Freshness::of(status, &headers, &asked.rules, asked_ms),
            status,
            headers,
            asked_ms,
            selected_by,
            length: None,
            fetched_by: self.shared.me.clone(),
            fetched_at: asked_ms,
            as_of: 0,
        }
    }
}

enum Stopped {
    /// The source failed; another may do.
    Source(String),
    /// Nobody wants the body any more.
    Pointless(BodyError),
}

/// What a client is told when the origin failed.
pub(super) fn origin_failed(error: OriginError) -> ServeError {
    let kind = match error.kind {
        Fault::Connect | Fault::Tls => Kind::Unreachable,
        Fault::ConnectTimeout | Fault::HeadTimeout | Fault::BodyTimeout => Kind::Timeout,
        Fault::Garbage | Fault::TooLarge | Fault::ClosedEarly => Kind::BadAnswer,
        Fault::RequestBody => Kind::RequestBody,
    };
    ServeError::new(kind, error)
}

/// Whether a partial answer begins at byte `start` (RFC 9110 §14.4).
fn begins_at(headers: &HeaderMap, start: u64) -> bool {
    headers
        .get(header::CONTENT_RANGE)
        .and_then(|value| value.to_str().ok()?.strip_prefix("bytes ")?.split_once('-'))
        .is_some_and(|(first, _)| first.parse() == Ok(start))
}
