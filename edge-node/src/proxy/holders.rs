//! A fill from the peers that hold an object: all of it, or the pieces that a range needs. What they send is
//! verified by the manifest before anybody sees it; when nobody is left who has a piece, the origin sends it.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use cluster::manifest::Manifest;
use futures_util::stream;
use http::{Method, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use tracing::{debug, info};

use super::{Asked, Proxy, answer::response, fetch::begins_at, part, shedding::FillPlace, swarm};
use crate::{
    cache::{
        Filler, Writing,
        entry::{self, Body, Entry, Head, Provenance, Reading},
        fill::BodyError,
        policy::{self, Freshness, Reuse, part::Part, validator::EntityTag},
        vary,
    },
    deliver::{self, Content, Delivery, cache_status::Fwd, range},
    error::{Kind, ServeError},
    metrics::{Outcome, Source},
    payload::Payload,
    upstream::{
        home::Level,
        many::Gathering,
        peer::{PeerError, PeerObject},
        relayed,
        schedule::FIRST_PIECES,
        select::{Candidate, HOLDERS_ASKED_BY_HOME_MAX, HOLDERS_ASKED_MAX},
    },
};

/// What a peer holds, and does for a request.
pub(super) struct Held {
    /// The peer, and then the others, best first.
    pub(super) holders: Vec<Candidate>,
    /// The object, with what came of it at once.
    pub(super) object: PeerObject,
    /// Its head.
    pub(super) head: Head,
    /// The pieces that the request needs.
    pub(super) pieces: Range<u32>,
}

impl Proxy {
    /// Asks the holders, best first. Gives the filler back when none of them could help. Of an object of
    /// which a client wants a range, the pieces of that are kept, as a part.
    pub(super) async fn fill_from_peers(
        &self,
        mut filler: Filler,
        asked: &Asked,
        candidates: &[Candidate],
    ) -> Result<(), Filler> {
        let held = match self.held(asked, candidates).await {
            Ok(Some(held)) => held,
            Ok(None) => return Err(filler),
            Err(error) => {
                filler.fail(error);
                return Ok(());
            }
        };
        let Held {
            holders,
            object,
            mut head,
            pieces,
        } = held;
        let length = object.manifest.length;
        let range = part::bytes_of(&pieces, length);
        if range != (0..length) {
            head.headers.remove(header::CONTENT_LENGTH);
            head.part = Some(Part { range, of: length });
        }
        if holders.len() == 1 && is_shared_out(&head, &object.manifest, &pieces) {
            filler.body_reaches(Self::GO_ON_LEVEL as u8);
        }
        let writing = filler.share(head, Provenance::Peer(holders[0].id.clone()));
        Box::pin(self.fill_from_pieces(writing, asked, object, holders, pieces)).await;
        Ok(())
    }

    /// Answers a request for a range with its pieces from holders, and keeps nothing of them: for whom it would
    /// take too long until another's fetch comes there. `None` if that cannot be.
    ///
    /// # Errors
    ///
    /// It is taken down.
    pub(super) async fn pass_from_holders(
        &self,
        asked: &Asked,
    ) -> Result<Option<Response<Payload>>, ServeError> {
        if asked.method != Method::GET || part::pieces_at_first(&asked.headers).is_none() {
            return Ok(None);
        }
        let upstream = &self.shared.upstream;
        let candidates = upstream.holders(asked.key);
        if candidates.is_empty() {
            return Ok(None);
        }
        let Some(place) = self.fill_place_at_once() else {
            return Ok(None);
        };
        let held = self.held(asked, &candidates).await?;
        Ok(held.and_then(|held| self.passed_from(asked, held, place)))
    }

    /// The answer with what is `held`; `None` if that is not one range of it.
    fn passed_from(
        &self,
        asked: &Asked,
        held: Held,
        place: FillPlace,
    ) -> Option<Response<Payload>> {
        let Held {
            holders,
            object,
            mut head,
            pieces,
        } = held;
        let PeerObject {
            manifest,
            pieces: begun,
            ..
        } = object;
        let from = Provenance::Peer(holders[0].id.clone());
        let range = part::bytes_of(&pieces, manifest.length);
        let of = manifest.length;
        head.part = Some(Part { range, of });
        let nothing = Body::Whole(Bytes::new());
        let entry = Entry::new(asked.key, 0, head, nothing, from.clone());
        let delivery = deliver::plan(&asked.method, &asked.headers, &entry, self.now());
        let Delivery {
            mut head,
            content: Content::Range(range),
            length,
        } = delivery
        else {
            return None;
        };
        asked.rules.consume_targets(&mut head.headers);
        let (detail, status) = (from.to_string(), head.status);
        self.tell_unstored(asked, Fwd::Partial, status, &detail, &mut head.headers);
        let begun =
            (begun.position() == pieces.start && begun.end() > pieces.start).then_some(begun);
        let skipped = range.start - part::bytes_of(&pieces, of).start;
        let rest = Rest {
            gathering: self.shared.upstream.gather(
                asked.key,
                &asked.headers,
                Arc::new(manifest),
                pieces,
                begun,
                holders,
            ),
            skip: usize::try_from(skipped).ok()?,
            left: range.end - range.start,
            _place: place,
        };
        let bytes = stream::unfold(Some(rest), async |rest| rest?.next().await);
        let trace = self.trace(Some(asked), Outcome::Miss, Source::Peer, head.status);
        let payload = Payload::reading(Reading::Stream(Box::pin(bytes)), length, trace);
        Some(response(head.status, head.headers, payload))
    }

    /// The first of `candidates` that holds what does for this request.
    ///
    /// # Errors
    ///
    /// It is taken down.
    pub(super) async fn held(
        &self,
        asked: &Asked,
        candidates: &[Candidate],
    ) -> Result<Option<Held>, ServeError> {
        let Ok(fields) = relayed::question_fields(asked.wanted(&asked.headers)) else {
            return Ok(None);
        };
        let most = candidates.len().min(match asked.level {
            Level::Client => HOLDERS_ASKED_MAX,
            _ => HOLDERS_ASKED_BY_HOME_MAX,
        });
        let range = (asked.level == Level::Client && asked.method == Method::GET)
            .then(|| part::pieces_at_first(&asked.headers))
            .flatten();
        let first = range.clone().unwrap_or(0..FIRST_PIECES);
        let mut tried = 0;
        while tried < most {
            let left = &candidates[tried..most];
            let upstream = &self.shared.upstream;
            // Most fills ask no peer, and should not be as large as those that do.
            let asking = upstream.ask_first(left, asked.key, &fields, first.clone());
            let answered = Box::pin(asking).await;
            let by = &left[answered.by];
            tried += answered.asked;
            let object = match answered.answer {
                Ok(object) => object,
                Err(PeerError::TakenDown) => {
                    let detail = format!("taken down, says peer {}", by.id);
                    return Err(ServeError::new(Kind::Blocked, detail));
                }
                Err(error) => {
                    debug!(peer = %by.id, %error, "peer could not help");
                    continue;
                }
            };
            self.manifest_admitted(asked, &object.manifest)?;
            let Some(head) = self.usable(asked, &object) else {
                debug!(peer = %by.id, "peer's object does not fit");
                continue;
            };
            let length = object.manifest.length;
            let pieces = match range {
                Some(_) => part::pieces(&asked.headers, &head.headers, length),
                None => part::all(length),
            };
            let others = candidates.iter().filter(|other| other.id != by.id);
            let holders = [by].into_iter().chain(others).cloned().collect();
            return Ok(Some(Held {
                holders,
                object,
                head,
                pieces,
            }));
        }
        Ok(None)
    }

    /// The head of a peer's object, if this request may be answered with it.
    fn usable(&self, asked: &Asked, object: &PeerObject) -> Option<Head> {
        let now_ms = self.shared.clock.unix_ms();
        let (facts, rules) = (asked.facts(), &*asked.rules);
        let mut headers = entry::fields_of(&object.manifest);
        headers.insert(header::AGE, object.age.as_secs().into());
        // `Age` has whole seconds, and a hop shall not make it younger by one.
        let then_ms = now_ms.saturating_sub(u64::from(object.age.subsec_millis()));
        let status = entry::status_of(&object.manifest);
        let freshness = Freshness::of(status, &headers, rules, then_ms);
        let head = Head::from_manifest(&object.manifest, headers, freshness, then_ms);
        let fits = policy::reuse(&head.freshness, &asked.said, rules, now_ms) == Reuse::Fresh
            && object.manifest.length <= self.shared.cache.object_bytes_max()
            && !self.is_doubtful(asked, object.manifest.fetched_at)
            && vary::matches(&head.selected_by, &asked.headers)
            && policy::storable(&facts, head.status, &head.headers, rules, now_ms).is_ok()
            && self.is_newer(asked, &head.headers, head.as_of, "peer");
        fits.then_some(head)
    }

    /// Writes the `wanted` pieces, verified, from whoever has them, the first of `holders` first, which sends `object`;
    /// when nobody is left, the origin finishes.
    async fn fill_from_pieces(
        &self,
        mut writing: Writing,
        asked: &Asked,
        object: PeerObject,
        holders: Vec<Candidate>,
        wanted: Range<u32>,
    ) {
        let PeerObject {
            manifest, pieces, ..
        } = object;
        let mut under_way = None;
        if pieces.position() == wanted.start && pieces.end() > wanted.start {
            under_way = Some(pieces);
        }
        if wanted.len() == 1
            && let Some(pieces) = &mut under_way
            && let Some(Ok(bytes)) = pieces.next().await
        {
            // What is small comes at once and takes no task.
            return match writing.write(bytes).await {
                Ok(()) => writing.commit().await,
                Err(error) => writing.fail(error),
            };
        }
        if let (Some(begun), [holder]) = (&mut under_way, &holders[..])
            && is_shared_out(&writing.entry().head, &manifest, &wanted)
        {
            // One piece, so that it can be gone on from; what more a crowd would be sent at first, each would be
            // sent.
            let mut written = 0;
            if let Some(Ok(bytes)) = begun.next().await {
                writing.came_from_peers(bytes.len() as u64);
                written += bytes.len() as u64;
                if let Err(error) = writing.write(bytes).await {
                    return writing.fail(error);
                }
            }
            drop(under_way);
            return Box::pin(self.go_on_from_holder(writing, asked, written, holder)).await;
        }
        // One that failed at its only piece has nothing more to say.
        let under_way = under_way.filter(|pieces| pieces.end() > wanted.start);
        let manifest = Arc::new(manifest);
        let mut gathering = self.shared.upstream.gather(
            asked.key,
            &asked.headers,
            manifest.clone(),
            wanted.clone(),
            under_way,
            holders,
        );
        while let Some(piece) = gathering.next().await {
            match piece {
                Ok(bytes) => {
                    if let Err(error) = writing.write(bytes).await {
                        return writing.fail(error);
                    }
                }
                Err(error) => {
                    info!(uri = %asked.uri, %error, "the origin sends the rest");
                    drop(gathering);
                    return self
                        .finish_from_origin(writing, asked, &manifest, error.piece..wanted.end)
                        .await;
                }
            }
        }
        // Whoever sees the end of the body also finds what was learnt, and room for the next.
        drop(gathering);
        writing.commit().await;
    }

    /// Fetches the `missing` pieces from the origin; only bytes that match the
    /// manifest go on, so two versions are never mixed.
    async fn finish_from_origin(
        &self,
        mut writing: Writing,
        asked: &Asked,
        manifest: &Manifest,
        missing: Range<u32>,
    ) {
        let Range { start, end } = part::bytes_of(&missing, manifest.length);
        let mut headers = self.whole(asked);
        let stored = &writing.entry().head.headers;
        let strong = EntityTag::of(stored).is_some_and(|tag| !tag.weak);
        let is_part = start > 0 || end < manifest.length;
        if let (true, true, Some(validator)) = (is_part, strong, stored.get(header::ETAG)) {
            let validator = validator.clone();
            headers.insert(header::RANGE, range::field(&(start..end), manifest.length));
            headers.insert(header::IF_RANGE, validator);
        }
        let response = match self.ask_origin(None, asked, Method::GET, headers).await {
            Ok((response, _)) => response,
            Err(error) => return writing.fail(BodyError::Source(error.detail)),
        };
        let begins = asked.begins() + start;
        let mut skip = match response.status() {
            StatusCode::PARTIAL_CONTENT if begins_at(response.headers(), begins) => 0,
            StatusCode::OK => begins,
            status => {
                let error = format!("origin answered {status} to the rest of an object");
                return writing.fail(BodyError::Source(error));
            }
        };
        let mut body = response.into_body();
        let mut piece: Vec<u8> = Vec::new();
        for index in missing {
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
}

/// What is still to come of a range.
struct Rest {
    gathering: Gathering,
    /// Bytes of the first piece that lie before the range.
    skip: usize,
    left: u64,
    _place: FillPlace,
}

impl Rest {
    /// The next bytes, and what comes then.
    async fn next(mut self) -> Option<(Result<Bytes, BodyError>, Option<Self>)> {
        let mut bytes = match self.gathering.next().await? {
            Ok(bytes) => bytes,
            Err(error) => return Some((Err(BodyError::Source(error.to_string())), None)),
        };
        let _ = bytes.split_to(self.skip.min(bytes.len()));
        self.skip = 0;
        bytes.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= bytes.len() as u64;
        Some((Ok(bytes), (self.left > 0).then_some(self)))
    }
}

/// Whether the one who holds this is to share it out: it is large, all of it is wanted, and whoever goes on in the
/// middle can be sure that it is of one version.
fn is_shared_out(head: &Head, manifest: &Manifest, wanted: &Range<u32>) -> bool {
    let is_strong = EntityTag::of(&head.headers).is_some_and(|tag| !tag.weak);
    is_strong && *wanted == part::all(manifest.length) && wanted.len() as u64 >= swarm::PIECES_MIN
}
