//! A fill: the one fetch that makes an entry grow. Holders by digest first, best ranked; else the
//! origin. The request that leads it does the work, or else a task of its own ([`Filling`]).

use std::{
    future::poll_fn,
    ops::Range,
    pin::{Pin, pin},
    sync::Arc,
};

use cluster::manifest::PIECE_BYTES;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt;
use tokio::{runtime::Handle, sync::oneshot, time::timeout_at};
use tracing::debug;

use super::{Asked, Filled, Proxy, purged::Moment, shedding::FillPlace, slice};
use crate::{
    cache::{
        Filler, Following, Judge as _, Standing, Writing,
        entry::{self, Body, Entry, Head, Provenance},
        fill::BodyError,
        policy::{
            self, Freshness, RequestFacts, Unstorable,
            part::{Extent, Part},
            validator::{self, EntityTag},
        },
        refusals::Refusal,
        vary::{self, Vary},
    },
    deliver::{
        self,
        range::{self, Ranges},
    },
    error::{Kind, ServeError},
    forward::{self, Hop},
    upstream::{
        home::{self, Level, Way},
        origin::{OriginBody, OriginError},
        pool::{self, Fault},
    },
};

/// A fill that has begun, in the hands of the request that leads it. Dropping it, because the client has
/// left, because the rest of a body is still to come or because nobody needs to wait, has it go on in a
/// task of its own; one that ends before needs no task, and nobody has to be woken for it.
pub(super) struct Filling {
    work: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    answer: oneshot::Receiver<Response<OriginBody>>,
}

impl Filling {
    /// Does the work until it is known what comes of it, as `following` tells.
    pub(super) async fn outcome(&mut self, following: Following) -> Filled {
        let mut outcome = pin!(following.outcome());
        poll_fn(|context| {
            if let Some(work) = &mut self.work
                && work.as_mut().poll(context).is_ready()
            {
                self.work = None;
            }
            outcome.as_mut().poll(context)
        })
        .await
    }

    /// Does the work to its end.
    pub(super) async fn finish(&mut self) {
        if let Some(work) = &mut self.work {
            work.await;
            self.work = None;
        }
    }

    /// The answer, where it is not for everybody; `None` if there is no such.
    pub(super) async fn own_answer(mut self) -> Option<Response<OriginBody>> {
        self.go_on();
        (&mut self.answer).await.ok()
    }

    /// Leaves what is to be done to a task of its own.
    pub(super) fn go_on(&mut self) {
        // Without a runtime the process is about to end.
        if let (Some(work), Ok(runtime)) = (self.work.take(), Handle::try_current()) {
            runtime.spawn(work);
        }
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.go_on();
    }
}

impl Proxy {
    /// Begins the fill. `stored` is what is there and does not do: stale, or a part. With `HEAD` as the
    /// method, something stale is validated by a HEAD.
    pub(super) fn begin_fill(
        &self,
        filler: Filler,
        asked: &Arc<Asked>,
        stored: Option<Arc<Entry>>,
        method: Method,
    ) -> Filling {
        let (own, answer) = oneshot::channel();
        let place = match self.fill_place() {
            Ok(place) => place,
            Err(error) => {
                filler.fail(error);
                return Filling { work: None, answer };
            }
        };
        let way = self.way(asked, stored.as_deref());
        filler.reaches(home::reach(&way) as u8);
        let (proxy, asked) = (self.clone(), asked.clone());
        let work = async move {
            let _place = place;
            proxy.fill(filler, &asked, stored, method, way, own).await;
        };
        Filling {
            work: Some(Box::pin(work)),
            answer,
        }
    }

    /// Begins to keep an answer that is there already.
    pub(super) fn begin_keeping(
        &self,
        filler: Filler,
        asked: &Arc<Asked>,
        response: Response<OriginBody>,
        moment: Moment,
        place: FillPlace,
    ) -> Filling {
        let (own, answer) = oneshot::channel();
        filler.reaches(Level::Origin as u8);
        let (proxy, asked) = (self.clone(), asked.clone());
        let work = async move {
            let _place = place;
            proxy
                .fill_from_answer(filler, &asked, response, moment, own)
                .await;
        };
        Filling {
            work: Some(Box::pin(work)),
            answer,
        }
    }

    /// Fills from the homes on the `way`, or else from the origin.
    pub(super) async fn fill_from_afar(
        &self,
        filler: Filler,
        asked: &Asked,
        stored: Option<Arc<Entry>>,
        method: Method,
        way: Way,
        own: Own,
    ) {
        let (stale, part) = match stored {
            Some(entry) if entry.head.part.is_none() => (Some(entry), None),
            part => (None, part),
        };
        let stored = stale.as_deref();
        let Some((filler, own)) = self.fill_from_homes(filler, asked, &way, stored, own).await
        else {
            return;
        };
        filler.reaches(Level::Origin as u8);
        match (stale, part) {
            (Some(stale), _) => self.validate(filler, asked, &stale, method, own).await,
            (None, Some(part)) => self.fetch_rest(filler, asked, &part, own).await,
            (None, None) => self.fetch(filler, asked, own).await,
        }
    }

    /// Asks the origin for what is not stored. Where other variants are, it is offered their tags: it
    /// may answer that this request selects one of them (RFC 9111 §4.3.1, §4.3.4).
    async fn fetch(&self, filler: Filler, asked: &Asked, own: Own) {
        let mut headers = self.missing(asked);
        // What a 304 tells this request of may be this request's alone (RFC 9111 §3.5).
        let offers = match asked.headers.contains_key(header::AUTHORIZATION) {
            true => String::new(),
            false => filler.offers().join(", "),
        };
        if let (false, Ok(offers)) = (offers.is_empty(), HeaderValue::try_from(offers)) {
            headers.insert(header::IF_NONE_MATCH, offers);
        }
        let (response, moment) = match self
            .ask_origin(Some(&filler), asked, Method::GET, headers)
            .await
        {
            Ok(answered) => answered,
            Err(error) => return filler.fail(error),
        };
        if policy::is_error(response.status()) && filler.has_rescue() {
            let detail = format!("origin answered {}", response.status());
            return filler.fail(ServeError::new(Kind::BadAnswer, detail));
        }
        if response.status() != StatusCode::NOT_MODIFIED {
            let answer = self.fill_from_answer(filler, asked, response, moment, own);
            return answer.await;
        }
        let selected = match EntityTag::of(response.headers()) {
            Some(tag) => filler.offered(&tag).await,
            None => None,
        };
        match selected {
            Some(entry)
                if asked.standing(&entry) != Standing::Gone
                    && vary::takes_coding(&asked.headers, &entry.head.headers)
                    && deliver::suffices(&asked.method, &asked.headers, &entry) =>
            {
                let fresh = policy::freshen(
                    &entry.head.headers,
                    response.headers(),
                    &asked.rules.targets,
                    self.now(),
                );
                self.renew(filler, asked, &entry, fresh, moment, own).await;
            }
            _ => self.fetch_anew(filler, asked, own).await,
        }
    }

    /// The fields with which the origin is asked for what is not stored.
    fn missing(&self, asked: &Asked) -> HeaderMap {
        let mut headers = self.whole(asked);
        if !asked.rules.fill_whole {
            // The whole is not wanted for the sake of a part of it.
            for name in [header::RANGE, header::IF_RANGE] {
                if let Some(value) = asked.headers.get(&name) {
                    headers.insert(name, value.clone());
                }
            }
        }
        headers
    }

    /// Asks the origin, with no condition.
    async fn fetch_anew(&self, filler: Filler, asked: &Asked, own: Own) {
        let headers = self.missing(asked);
        match self
            .ask_origin(Some(&filler), asked, Method::GET, headers)
            .await
        {
            Ok((response, moment)) => {
                self.fill_from_answer(filler, asked, response, moment, own)
                    .await;
            }
            Err(error) => filler.fail(error),
        }
    }

    /// Asks the origin whether `entry` still holds.
    async fn validate(
        &self,
        filler: Filler,
        asked: &Asked,
        entry: &Entry,
        method: Method,
        own: Own,
    ) {
        let stored = &entry.head.headers;
        let headers = self
            .conditional(asked, stored)
            .unwrap_or_else(|| self.whole(asked));
        let is_head = method == Method::HEAD;
        let (response, moment) = match self.ask_origin(Some(&filler), asked, method, headers).await
        {
            Ok(answered) => answered,
            Err(error) => return filler.fail(error),
        };
        let status = response.status();
        if status == StatusCode::NOT_MODIFIED {
            let fresh =
                policy::freshen(stored, response.headers(), &asked.rules.targets, self.now());
            self.renew(filler, asked, entry, fresh, moment, own).await;
        } else if policy::is_error(status) && self.outlives(asked, entry) {
            let detail = format!("origin answered {status}");
            filler.fail(ServeError::new(Kind::BadAnswer, detail));
        } else if !is_head {
            self.fill_from_answer(filler, asked, response, moment, own)
                .await;
        } else {
            let length = entry.length().filter(|_| status == StatusCode::OK);
            let fresh = length.and_then(|length| {
                policy::freshen_by_head(
                    stored,
                    length,
                    response.headers(),
                    &asked.rules.targets,
                    self.now(),
                )
            });
            if fresh.is_some() {
                return self.renew(filler, asked, entry, fresh, moment, own).await;
            }
            // RFC 9111 §4.3.5: another representation than the stored one.
            if status == StatusCode::OK {
                self.shared.cache.forget(entry.key).await;
            }
            filler.again();
            let _ = own.send(response);
        }
    }

    /// Keeps `entry` with renewed fields. Where there are none, or they forbid from now on to share it,
    /// it goes, and is fetched anew.
    async fn renew(
        &self,
        filler: Filler,
        asked: &Asked,
        entry: &Entry,
        fresh: Option<HeaderMap>,
        moment: Moment,
        own: Own,
    ) {
        // What this one request does not want stored says nothing of what is stored for others.
        let facts = RequestFacts::of(&Method::GET, &HeaderMap::new());
        let status = entry.head.status;
        let selects_by = vary::selecting_fields(&entry.head.headers);
        let renewed = fresh.filter(|headers| {
            let rules = &*asked.rules;
            let storable = policy::storable(&facts, status, headers, rules, moment.ms);
            if let Err(reason) = storable {
                let refusal = Refusal::of(reason, status, headers, rules, self.now());
                self.shared.refusals.remember(asked.key, refusal);
            }
            // By which fields it was selected is known; whether it would be by others is not.
            storable.is_ok() && vary::selecting_fields(headers) == selects_by
        });
        let Some(headers) = renewed else {
            if entry.key == filler.key() {
                filler.forget_stored().await;
            } else {
                self.shared.cache.forget(entry.key).await;
            }
            return Box::pin(self.fetch_anew(filler, asked, own)).await;
        };
        let head = Head {
            length: entry.length(),
            part: entry.head.part.clone(),
            selected_by: entry.head.selected_by.clone(),
            ..self.head(asked, status, headers, None, moment)
        };
        filler.refresh(entry, head, Provenance::Origin).await;
    }

    /// Asks the origin for what `entry`, a part, lacks of what is wanted, and joins both if they are of
    /// the same version for certain (RFC 9111 §3.4).
    async fn fetch_rest(&self, filler: Filler, asked: &Asked, entry: &Entry, own: Own) {
        let (stored, part) = (&entry.head.headers, &entry.head.part);
        let wanted = match range::requested(&asked.headers, stored, entry.length().unwrap_or(0)) {
            Ranges::One(range) if !asked.rules.fill_whole => Some(range),
            _ => part.as_ref().and_then(Part::missing),
        };
        let (Some(part), Some(wanted), Some(condition), Body::Whole(bytes)) = (
            part,
            wanted,
            validator::range_condition(stored),
            &entry.body,
        ) else {
            return self.fetch(filler, asked, own).await;
        };
        let mut headers = self.whole(asked);
        headers.insert(header::RANGE, range::field(&wanted, part.of));
        headers.insert(header::IF_RANGE, condition);
        let (response, moment) = match self
            .ask_origin(Some(&filler), asked, Method::GET, headers)
            .await
        {
            Ok(answered) => answered,
            Err(error) => return filler.fail(error),
        };
        if response.status() != StatusCode::PARTIAL_CONTENT {
            let answer = self.fill_from_answer(filler, asked, response, moment, own);
            return answer.await;
        }
        let fields = response.headers();
        let joined = match Extent::of(response.status(), fields) {
            Extent::Part(fetched) => part.join(&fetched).map(|joined| (joined, fetched)),
            Extent::Whole(_) | Extent::Unknown => None,
        };
        let keeps = |extent: &Extent| match extent {
            Extent::Part(part) => part.length() <= PIECE_BYTES as u64,
            _ => true,
        };
        let headers = policy::combined(stored, fields, &asked.rules.targets, self.now());
        let (Some((joined, fetched)), Some(headers)) =
            (joined.filter(|(joined, _)| keeps(&joined.extent)), headers)
        else {
            // Another version, or a part that is of no help.
            return match asked.rules.fill_whole || !asked.headers.contains_key(header::RANGE) {
                true => {
                    // Its place is needed.
                    drop(response);
                    self.fetch_anew(filler, asked, own).await;
                }
                false => {
                    self.fill_from_answer(filler, asked, response, moment, own)
                        .await;
                }
            };
        };
        let mut head = self.head(asked, StatusCode::OK, headers, None, moment);
        head.length = Some(part.of);
        head.part = match joined.extent {
            Extent::Part(part) => Some(part),
            _ => None,
        };
        let own_bytes = |range: Range<u64>| {
            let at = |position| {
                usize::try_from(position)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len())
            };
            bytes.slice(at(range.start)..at(range.end))
        };
        let (before, after) = (own_bytes(joined.before), own_bytes(joined.after));
        let mut writing = filler.share(head, Provenance::Origin);
        let written = async {
            writing.write(before).await?;
            pump(&mut writing, response.into_body(), Some(fetched.length())).await?;
            writing.write(after).await
        };
        match written.await {
            Ok(()) => writing.commit().await,
            Err(error) => writing.fail(error),
        }
    }

    /// Whether a stale entry may be used instead of an error.
    pub(super) fn outlives(&self, asked: &Asked, entry: &Entry) -> bool {
        let (stored, now_ms) = (&entry.head.freshness, self.shared.clock.unix_ms());
        let standing = asked.standing(entry);
        standing.may_serve_on_error(stored, &asked.said, &asked.rules, now_ms)
    }

    pub(super) async fn fill_from_answer(
        &self,
        filler: Filler,
        asked: &Asked,
        response: Response<OriginBody>,
        moment: Moment,
        own: Own,
    ) {
        let facts = asked.facts();
        let length = entry::content_length(response.headers());
        let limit = asked.rules.object_bytes_max;
        let limit = limit.min(self.shared.cache.object_bytes_max());
        let (status, fields) = (response.status(), response.headers());
        let extent = match Extent::of(status, fields) {
            _ if let Some(slice) = &asked.slice => {
                slice::extent(slice.piece, status, fields, limit)
            }
            // It answers what nobody asked (RFC 9110 §15.3.7); stored, it would be asked for the rest.
            Extent::Part(_) if !asked.headers.contains_key(header::RANGE) => Extent::Unknown,
            extent => extent,
        };
        // A 206 is judged as the 200 that it is a part of.
        let status = match extent {
            Extent::Whole(_) | Extent::Part(_) if status == StatusCode::PARTIAL_CONTENT => {
                StatusCode::OK
            }
            _ => status,
        };
        let storable = policy::storable(&facts, status, fields, &asked.rules, moment.ms);
        if let Err(reason) = storable {
            debug!(uri = %asked.uri, %reason, "answer is not for everybody");
        }
        let fits = match &extent {
            Extent::Whole(told) => told.or(length).is_none_or(|length| length <= limit),
            // Kept for as long as it is fresh, and in one piece.
            Extent::Part(part) => {
                let fresh = storable.is_ok_and(|f| !f.no_cache && f.is_fresh(self.now()));
                fresh && part.length() <= PIECE_BYTES as u64
            }
            Extent::Unknown => false,
        };
        if storable.is_err() || !fits {
            let now_ms = self.now();
            let refusal = match (storable, length) {
                (Err(reason), _) => Refusal::of(reason, status, fields, &asked.rules, now_ms),
                (Ok(_), Some(length)) if length > limit => {
                    Refusal::too_large(length, limit, now_ms)
                }
                (Ok(_), _) => Refusal::partial(now_ms),
            };
            self.shared.refusals.remember(asked.key, refusal);
            // What is said of one request, or may be gone in a moment, says nothing of others.
            // An error may be of one request's own making.
            let lasting = matches!(status.as_u16(), 200..=399 | 404 | 410);
            let remember = storable.as_ref().err().is_none_or(Unstorable::is_lasting)
                && (matches!(extent, Extent::Whole(_)) || asked.slice.is_some())
                && lasting
                && !facts.authorized;
            if remember && storable.is_err() && !status.is_client_error() {
                filler.forget_stored().await;
            }
            filler.not_shared(remember);
            if let Some(slice) = &asked.slice
                && remember
                && response.status().is_success()
            {
                self.leave_unsliced(slice.whole);
            }
            // The client may have left; then nobody wants it.
            let _ = own.send(response);
            return;
        }
        let (parts, body) = response.into_parts();
        let (mut headers, withheld) =
            policy::divided_fields(&parts.headers, &asked.rules.targets, self.now());
        if parts.status == StatusCode::PARTIAL_CONTENT && asked.slice.is_none() {
            headers.remove(header::CONTENT_RANGE);
        }
        let mut head = self.head(asked, status, headers, storable.ok(), moment);
        head.length = length;
        let expected = match &extent {
            Extent::Whole(told) => *told,
            Extent::Part(part) => Some(part.length()),
            Extent::Unknown => None,
        };
        if expected.is_some() {
            head.headers.remove(header::CONTENT_LENGTH);
            head.length = expected;
        }
        if let Extent::Part(part) = extent {
            (head.length, head.part) = (Some(part.of), Some(part));
        }
        let from = Provenance::Origin;
        let (filler, head, withheld) = match body.whole() {
            Some(bytes) if expected.is_none_or(|length| length == bytes.len() as u64) => {
                match filler
                    .share_whole(head, from.clone(), withheld, bytes)
                    .await
                {
                    Ok(()) => return,
                    Err(back) => *back,
                }
            }
            _ => (filler, head, withheld),
        };
        let mut writing = filler.share_first(head, from, withheld);
        match pump(&mut writing, body, expected).await {
            Ok(()) => writing.commit().await,
            Err(error) => {
                debug!(uri = %asked.uri, %error, "fill ended early");
                writing.fail(error);
            }
        }
    }

    /// The client's fields as they go to the origin with a request for the whole object, or for all of a slice.
    pub(super) fn whole(&self, asked: &Asked) -> HeaderMap {
        let mut headers = asked.headers.clone();
        forward::make_whole(&mut headers);
        // The host as the key has it: what is answered is for everybody who writes it in another way.
        let hop = Hop {
            host: &asked.host,
            ..self.hop(asked)
        };
        forward::add_hop(&mut headers, &hop);
        if asked.slice.is_some() {
            headers.insert(header::RANGE, asked.rest(0));
        }
        headers
    }

    /// The same with the question whether what is stored with these fields still holds (RFC 9111 §4.3.1);
    /// `None` if it has no validator.
    pub(super) fn conditional(&self, asked: &Asked, stored: &HeaderMap) -> Option<HeaderMap> {
        let (tag, date) = policy::conditional_fields(stored);
        let conditions = [
            (header::IF_NONE_MATCH, tag),
            (header::IF_MODIFIED_SINCE, date),
        ];
        let mut conditions = conditions
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .peekable();
        conditions.peek()?;
        let mut headers = self.whole(asked);
        headers.extend(conditions);
        Some(headers)
    }

    pub(super) fn now(&self) -> u64 {
        self.shared.clock.unix_ms()
    }

    /// Asks the origin, in turn; for a `filler` only as long as anybody waits for it. Also says when it
    /// was asked: an answer is as old as that, however long it had to wait before.
    pub(super) async fn ask_origin(
        &self,
        filler: Option<&Filler>,
        asked: &Asked,
        method: Method,
        headers: HeaderMap,
    ) -> Result<(Response<OriginBody>, Moment), ServeError> {
        let answered = self.ask_origin_in_turn(filler, asked, method, headers);
        match asked.deadline.get().filter(|_| filler.is_some()) {
            // Of the time that it may take, homes have used some.
            Some(deadline) => match timeout_at(*deadline, answered).await {
                Ok(answered) => answered,
                Err(_) => Err(ServeError::new(Kind::Timeout, "homes took the time")),
            },
            None => answered.await,
        }
    }

    async fn ask_origin_in_turn(
        &self,
        filler: Option<&Filler>,
        asked: &Asked,
        method: Method,
        headers: HeaderMap,
    ) -> Result<(Response<OriginBody>, Moment), ServeError> {
        if let Some((begun, as_of)) = asked.begun() {
            let ms = begun.asked_ms;
            let request = asked.onward(method, headers, pool::empty());
            let answered = self.shared.upstream.conclude(&asked.site, request, begun);
            let answered = answered.await;
            return answered
                .map(|response| (response, Moment { ms, as_of }))
                .map_err(origin_failed);
        }
        let place = match filler {
            Some(filler) => self.fill_origin_place(asked, filler).await?,
            None => self.origin_place(asked).await?,
        };
        let moment = self.moment();
        let request = asked.onward(method, headers, pool::empty());
        let answered = self
            .shared
            .upstream
            .origin(&asked.site, asked.object_key(), &asked.host, request, place)
            .await;
        answered
            .map(|response| (response, moment))
            .map_err(origin_failed)
    }

    /// The head of what is stored with these fields; `judged` is its freshness where that is known from
    /// the fields as received.
    fn head(
        &self,
        asked: &Asked,
        status: StatusCode,
        headers: HeaderMap,
        judged: Option<Freshness>,
        moment: Moment,
    ) -> Head {
        let asked_ms = moment.ms;
        let selected_by = match vary::selecting_fields(&headers) {
            Vary::Fields(fields) => vary::normal_values(&fields, &asked.headers),
            Vary::None | Vary::Any => Vec::new(),
        };
        Head {
            freshness: judged
                .unwrap_or_else(|| Freshness::of(status, &headers, &asked.rules, asked_ms)),
            status,
            headers: headers.into(),
            asked_ms,
            selected_by,
            length: None,
            part: None,
            fetched_by: self.shared.me.clone(),
            fetched_at: asked_ms,
            as_of: moment.as_of,
        }
    }
}

/// Where the one request that leads a fill gets an answer which is not for everybody.
pub(super) type Own = oneshot::Sender<Response<OriginBody>>;

/// Writes the origin's body, which must be `expected` bytes long where that is known.
async fn pump(
    writing: &mut Writing,
    mut body: OriginBody,
    expected: Option<u64>,
) -> Result<(), BodyError> {
    let mut length: u64 = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| BodyError::Source(error.to_string()))?;
        match frame.into_data() {
            Ok(bytes) => {
                length += bytes.len() as u64;
                writing.write(bytes).await?;
            }
            Err(frame) => writing.trail(frame.into_trailers().unwrap_or_default()),
        }
    }
    match expected {
        Some(expected) if expected != length => {
            let error = format!("{length} bytes of a part of {expected}");
            Err(BodyError::Source(error))
        }
        _ => Ok(()),
    }
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
pub(super) fn begins_at(headers: &HeaderMap, start: u64) -> bool {
    headers
        .get(header::CONTENT_RANGE)
        .and_then(|value| value.to_str().ok()?.strip_prefix("bytes ")?.split_once('-'))
        .is_some_and(|(first, _)| first.parse() == Ok(start))
}
