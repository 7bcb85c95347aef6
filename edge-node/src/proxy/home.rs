//! A fill through the homes of its key: they are asked one after the other, then the origin is, all within
//! one time. What a home relays is seen block by block as it comes in; if the home is lost on the way, the
//! next source has to send the same bytes again before anything of it goes on.

use std::time::Duration;

use bytes::Bytes;
use cluster::manifest::PIECE_BYTES;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info};

use super::{
    Asked, Proxy,
    fetch::{Own, begins_at},
    purged::Moment,
};
use crate::{
    cache::{
        Filler, Writing,
        entry::{self, BodyStream, Entry, Head, Provenance},
        fill::BodyError,
        key,
        policy::{self, CacheControl, Freshness, Reuse, validator::EntityTag},
        vary,
    },
    error::{Kind, ServeError},
    forward,
    upstream::{
        fellows::SharedOut,
        home::{self, Home, Level, Way},
        origin::OriginBody,
        peer::{self, PeerError},
        relayed::{
            self, BLOCK_BYTES, OriginFault, PieceAt, Refusal, RelayError, RelayHead, Relayed, Said,
            Told, Wanted,
        },
        select::Candidate,
    },
};

impl Proxy {
    /// The homes to ask for this request; none where a home could not answer it for everybody, or would
    /// know it by another key.
    pub(super) fn way(&self, asked: &Asked, stored: Option<&Entry>) -> Way {
        let is_part = stored.is_some_and(|entry| entry.head.part.is_some());
        let wants_part = !asked.rules.fill_whole && asked.headers.contains_key(header::RANGE);
        if is_part || wants_part || asked.headers.contains_key(header::AUTHORIZATION) {
            return Way::new();
        }
        let way = self
            .shared
            .upstream
            .way(&asked.site, asked.key, asked.level);
        let same_key = || {
            let (site, rules) = (&asked.site.name, &asked.ruling.key);
            let fields = relayed::reaching_peers(&for_everybody(&asked.headers));
            key::key(site, &asked.host, asked.target(), &fields, rules) == asked.object_key()
        };
        if way.is_empty() || same_key() {
            way
        } else {
            Way::new()
        }
    }

    /// Asks the homes on this `way`. Gives back what it was given when the origin has to be asked from
    /// here. `stored` is stale.
    pub(super) async fn fill_from_homes(
        &self,
        mut filler: Filler,
        asked: &Asked,
        way: &[Home],
        stored: Option<&Entry>,
        own: Own,
    ) -> Option<(Filler, Own)> {
        if way.is_empty() {
            return Some((filler, own));
        }
        let deadline = *asked
            .deadline
            .get_or_init(|| Instant::now() + asked.patience());
        let mut fields = for_everybody(&asked.headers);
        forward::join_loop(&mut fields, &self.shared.me);
        let wanted = Wanted {
            have: stored.and_then(|entry| entry.head.headers.get(header::ETAG)),
            shares: true,
            ..asked.wanted(&fields)
        };
        let mut homes = self.shared.upstream.homes(way, wanted);
        let mut busy = None;
        loop {
            let (home, told) = match timeout_at(deadline, homes.next()).await {
                Ok(None) => match busy {
                    None => break,
                    Some(home) => {
                        filler.fail(self.shed_by_home(home, Kind::Overloaded));
                        return None;
                    }
                },
                Ok(Some((index, Ok(told)))) => (&way[index], told),
                Ok(Some((index, Err(error)))) => {
                    if error == PeerError::Busy {
                        busy = Some(&way[index].id);
                    }
                    debug!(home = %way[index].id, %error, "home could not help");
                    continue;
                }
                Err(_) => {
                    let detail = "a home waits for the origin";
                    filler.fail(ServeError::new(Kind::Timeout, detail));
                    return None;
                }
            };
            if let Told::Refused(refusal) = &told {
                debug!(home = %home.id, uri = %asked.uri, refusal = refusal.label(), "home refuses");
            }
            match told {
                Told::Refused(
                    Refusal::Crossed | Refusal::Unknown | Refusal::Behind | Refusal::SentOn,
                ) => filler.reaches(homes.reach() as u8),
                Told::Refused(Refusal::Busy) => busy = Some(&home.id),
                Told::Refused(Refusal::OriginBusy) => {
                    filler.fail(self.shed_by_home(&home.id, Kind::OriginBusy));
                    return None;
                }
                // A slice is not fetched from here instead: who wants it asks for what it needs by itself.
                Told::Refused(Refusal::Pass) if asked.slice.is_some() => {
                    filler.not_shared(false);
                    return None;
                }
                Told::Refused(Refusal::Pass) => break,
                Told::Refused(Refusal::TakenDown) => {
                    let detail = format!("taken down, says home {}", home.id);
                    filler.fail(ServeError::new(Kind::Blocked, detail));
                    return None;
                }
                Told::Refused(Refusal::OriginFailed { fault, detail }) => {
                    let detail = format!("home {}: {detail}", home.id);
                    filler.fail(ServeError::new(kind_of(fault), detail));
                    return None;
                }
                Told::Refused(Refusal::OriginError {
                    status,
                    fields,
                    body,
                }) => {
                    let Some(response) = error_response(status, &fields, body) else {
                        break;
                    };
                    let status = response.status();
                    if stored.is_some_and(|entry| self.outlives(asked, entry)) {
                        let detail = format!("origin answered {status} to home {}", home.id);
                        filler.fail(ServeError::new(Kind::BadAnswer, detail));
                    } else {
                        let moment = Moment::unknown(self.now());
                        self.fill_from_answer(filler, asked, response, moment, own)
                            .await;
                    }
                    return None;
                }
                // Another may know better.
                Told::Same(told) if !self.is_relayed_newer(asked, &told) => {}
                Told::Object(relayed) if !self.is_relayed_newer(asked, &relayed.head) => {}
                Told::Same(told) => {
                    let head = stored.and_then(|entry| {
                        let head = self.relayed_head(asked, &told)?;
                        (head.selected_by == entry.head.selected_by).then_some((entry, head))
                    });
                    let Some((entry, mut head)) = head else { break };
                    head.length = entry.length();
                    let from = Provenance::Home(home.id.clone());
                    filler.refresh(entry, head, from).await;
                    return None;
                }
                Told::Object(relayed) => {
                    let Some(head) = self.relayed_head(asked, &relayed.head) else {
                        debug!(home = %home.id, "home's object does not fit");
                        break;
                    };
                    let others = &way[homes.asked()..];
                    let kept = self.keep_relayed(filler, asked, head, *relayed, home, others);
                    match Box::pin(kept).await {
                        Ok(()) => return None,
                        Err(back) => filler = back,
                    }
                }
            }
        }
        Some((filler, own))
    }

    /// Whether what a home tells of is newer than all purges known here.
    fn is_relayed_newer(&self, asked: &Asked, told: &RelayHead) -> bool {
        let as_of = told.about.as_of;
        asked.purges.is_untouched(&asked.site.name, as_of)
            || self.is_newer(asked, &entry::fields_of(&told.about), as_of, "home")
    }

    /// The head of what a home tells, if this request may be answered with it. The home has looked at what
    /// the client said.
    fn relayed_head(&self, asked: &Asked, told: &RelayHead) -> Option<Head> {
        let (rules, now_ms) = (&*asked.rules, self.now());
        let mut headers = entry::fields_of(&told.about);
        let age = Duration::from_millis(told.age_ms);
        headers.insert(header::AGE, age.as_secs().into());
        // `Age` has whole seconds, and a hop shall not make it younger by one.
        let then_ms = now_ms.saturating_sub(u64::from(age.subsec_millis()));
        let status = entry::status_of(&told.about);
        let freshness = Freshness::of(status, &headers, rules, then_ms);
        let mut head = Head::from_manifest(&told.about, headers, freshness, then_ms);
        head.length = told.length;
        let reuse = policy::reuse(&head.freshness, &CacheControl::default(), rules, now_ms);
        let cache = &self.shared.cache;
        let fits = (told.asked_for_you || reuse == Reuse::Fresh)
            && told
                .length
                .is_none_or(|length| length <= cache.object_bytes_max())
            && !self.is_doubtful(asked, told.about.fetched_at)
            && vary::matches(&head.selected_by, &asked.headers)
            && policy::storable(&asked.facts(), head.status, &head.headers, rules, now_ms).is_ok();
        fits.then_some(head)
    }

    /// Keeps what a home relays. Gives the filler back if it failed before anybody saw anything.
    async fn keep_relayed(
        &self,
        mut filler: Filler,
        asked: &Asked,
        mut head: Head,
        mut relayed: Relayed,
        home: &Home,
        others: &[Home],
    ) -> Result<(), Filler> {
        let from = Provenance::Home(home.id.clone());
        let mut first = Vec::new();
        // A small one comes in one exchange, and is stored in one step.
        if head
            .length
            .is_some_and(|length| length <= BLOCK_BYTES as u64)
        {
            loop {
                match relayed.next().await {
                    Some(Ok(Said::Bytes(bytes))) if first.len() + bytes.len() <= BLOCK_BYTES => {
                        first.extend_from_slice(&bytes);
                    }
                    Some(_) => return Err(filler),
                    None => break,
                }
            }
            if head.length != Some(first.len() as u64) {
                return Err(filler);
            }
            let bytes = Bytes::from(std::mem::take(&mut first));
            let shared = filler.share_whole(head, from.clone(), HeaderMap::new(), bytes.clone());
            match shared.await {
                Ok(()) => return Ok(()),
                Err(back) => (filler, head, _) = *back,
            }
            first = bytes.into();
        }
        filler.body_reaches(home::reach(others).max(home.level) as u8);
        let mut writing = filler.share(head, from);
        let mut written: u64 = 0;
        let mut rest = Rest::Home(Box::new(relayed));
        let mut stopped = match write(&mut writing, &mut written, first.into()).await {
            Ok(()) => self.write_rest(&mut writing, &mut written, &mut rest).await,
            stopped => stopped,
        };
        if let (Err(Stopped::SharedOut(at)), Rest::Home(relayed)) = (&stopped, rest) {
            let at = at.clone();
            stopped = self
                .write_shared_out(&mut writing, &mut written, asked, home, *relayed, at)
                .await;
        }
        self.end(writing, asked, written, stopped, others).await;
        Ok(())
    }

    /// As what the only one who holds it is asked to relay an object: what it does not have any more it asks of the
    /// origin, and of nobody else.
    pub(super) const GO_ON_LEVEL: Level = Level::ClusterNext;

    /// Goes on with a body of which so many bytes are `written`, whole pieces, and which only `holder` has: that
    /// one is asked to relay the rest, so that it can share it out among all that want it now.
    pub(super) async fn go_on_from_holder(
        &self,
        writing: Writing,
        asked: &Asked,
        written: u64,
        holder: &Candidate,
    ) {
        let home = Home {
            id: holder.id.clone(),
            addr: holder.addr.clone(),
            level: Self::GO_ON_LEVEL,
            may_send_on: false,
        };
        let rest = Err(Stopped::Lost("only one holds it".to_owned()));
        let others = std::slice::from_ref(&home);
        self.end(writing, asked, written, rest, others).await;
    }

    /// Ends the body, or finds somebody who goes on with it.
    async fn end(
        &self,
        mut writing: Writing,
        asked: &Asked,
        mut written: u64,
        mut stopped: Result<(), Stopped>,
        others: &[Home],
    ) {
        let length = writing.entry().head.length;
        let mut others = others.iter();
        let mut asked_origin = false;
        loop {
            let lost = match stopped {
                Ok(()) if length.is_none_or(|length| length == written) => {
                    return writing.commit().await;
                }
                Ok(()) => {
                    let error = format!("{written} bytes of {}", length.unwrap_or(0));
                    return writing.fail(BodyError::Source(error));
                }
                // All of it is here, only the word that this was all is not.
                Err(Stopped::Lost(_)) if length == Some(written) => return writing.commit().await,
                Err(Stopped::Lost(error)) => error,
                Err(Stopped::SharedOut(_)) => "pieces that were not asked for".to_owned(),
                Err(Stopped::For(error)) => return writing.fail(error),
            };
            info!(uri = %asked.uri, written, error = lost, "source lost within a body");
            let home = others.next();
            // Who was lost is not waited for any more.
            let level = home.map_or(Level::Origin, |home| home.level);
            writing.reaches(home::reach(others.as_slice()).max(level) as u8);
            let next = match home {
                Some(home) => self.again_from_home(&writing, asked, home, written).await,
                None if asked_origin => return writing.fail(BodyError::Source(lost)),
                None => {
                    asked_origin = true;
                    self.again_from_origin(&writing, asked, written).await
                }
            };
            stopped = match next {
                Ok((mut rest, from)) => {
                    let stopped = match self.pass_over(&writing, &mut rest, from..written).await {
                        Ok(bytes) => match write(&mut writing, &mut written, bytes).await {
                            Ok(()) => self.write_rest(&mut writing, &mut written, &mut rest).await,
                            stopped => stopped,
                        },
                        Err(stopped) => Err(stopped),
                    };
                    match (stopped, rest, home) {
                        (Err(Stopped::SharedOut(at)), Rest::Home(relayed), Some(home)) => {
                            let (writing, written) = (&mut writing, &mut written);
                            self.write_shared_out(writing, written, asked, home, *relayed, at)
                                .await
                        }
                        (stopped, ..) => stopped,
                    }
                }
                Err(error) => Err(Stopped::Lost(error)),
            };
        }
    }

    /// Asks a home for the body once more: for the pieces behind `written`, if a strong validator makes sure that
    /// they are of the same version, or else for all of it. Also says where what it sends begins.
    async fn again_from_home(
        &self,
        writing: &Writing,
        asked: &Asked,
        home: &Home,
        written: u64,
    ) -> Result<(Rest, u64), String> {
        let mut fields = for_everybody(&asked.headers);
        forward::join_loop(&mut fields, &self.shared.me);
        let stored = &writing.entry().head.headers;
        let is_strong = EntityTag::of(stored).is_some_and(|tag| !tag.weak);
        let known = u32::try_from(written / PIECE_BYTES as u64).unwrap_or(0);
        let goes_on = is_strong && known > 0;
        let wanted = Wanted {
            have: stored.get(header::ETAG).filter(|_| goes_on),
            from: if goes_on { known } else { 0 },
            shares: goes_on,
            ..asked.wanted(&fields)
        };
        let asking = self.shared.upstream.fill(home, wanted);
        let told = timeout_at(Instant::now() + asked.patience(), asking).await;
        let tag = |headers: &HeaderMap| headers.get(header::ETAG).cloned();
        match told {
            Ok(Ok(Told::Object(relayed)))
                if tag(&entry::fields_of(&relayed.head.about))
                    == tag(&writing.entry().head.headers)
                    && relayed.head.from <= known =>
            {
                let from = u64::from(relayed.head.from) * PIECE_BYTES as u64;
                Ok((Rest::Home(relayed), from))
            }
            Ok(Ok(_)) => Err(format!("home {} does not have it", home.id)),
            Ok(Err(error)) => Err(format!("home {} {error}", home.id)),
            Err(_) => Err(format!("home {} does not answer in time", home.id)),
        }
    }

    /// Asks the origin for what is behind `written`, if a strong validator makes sure that it is of the same
    /// version, or else for the whole. Also says where what it sends begins.
    async fn again_from_origin(
        &self,
        writing: &Writing,
        asked: &Asked,
        written: u64,
    ) -> Result<(Rest, u64), String> {
        let stored = &writing.entry().head.headers;
        let mut headers = self.whole(asked);
        let tag = stored.get(header::ETAG);
        if let Some(tag) = tag.filter(|_| EntityTag::of(stored).is_some_and(|tag| !tag.weak)) {
            headers.insert(header::RANGE, asked.rest(written));
            headers.insert(header::IF_RANGE, tag.clone());
        }
        let asking = self.ask_origin(None, asked, Method::GET, headers);
        let (response, _) = asking.await.map_err(|error| error.detail)?;
        let (begins, fields) = (asked.begins(), response.headers());
        let from = match response.status() {
            StatusCode::PARTIAL_CONTENT if begins_at(fields, begins + written) => written,
            StatusCode::PARTIAL_CONTENT if asked.slice.is_some() && begins_at(fields, begins) => 0,
            StatusCode::OK if asked.slice.is_none() => 0,
            status => return Err(format!("origin answered {status} to the rest of an object")),
        };
        if response.headers().get(header::ETAG) != tag {
            return Err("the object has changed at the origin meanwhile".to_owned());
        }
        Ok((Rest::Origin(Box::new(response.into_body())), from))
    }

    /// Passes over what is `known` of the body already, which must be the same again: then what follows
    /// is of the same version. Returns the first bytes behind it.
    async fn pass_over(
        &self,
        writing: &Writing,
        rest: &mut Rest,
        known: std::ops::Range<u64>,
    ) -> Result<Bytes, Stopped> {
        let mut left = known.end - known.start;
        if left == 0 {
            return Ok(Bytes::new());
        }
        let own = writing.entry().open(known, &self.shared.cache);
        let mut own = ReadBack {
            stream: own.map_err(Stopped::For)?.into_stream(),
            bytes: Bytes::new(),
        };
        while let Some(bytes) = rest.next().await {
            let mut bytes = bytes?;
            while left > 0 && !bytes.is_empty() {
                let own = own.next(bytes.len()).await?;
                left -= own.len() as u64;
                if bytes.split_to(own.len()) != own {
                    let error = "the object has changed at the origin meanwhile".to_owned();
                    return Err(Stopped::For(BodyError::Source(error)));
                }
            }
            if left == 0 {
                return Ok(bytes);
            }
        }
        let error = "the object has become shorter at the origin meanwhile".to_owned();
        Err(Stopped::For(BodyError::Source(error)))
    }

    /// Writes what `home` shares out, from the piece at `first` on, as it comes from there and from the others.
    async fn write_shared_out(
        &self,
        writing: &mut Writing,
        written: &mut u64,
        asked: &Asked,
        home: &Home,
        relayed: Relayed,
        first: PieceAt,
    ) -> Result<(), Stopped> {
        let begins = u64::from(first.index) * PIECE_BYTES as u64;
        let length = writing.entry().head.length;
        let Some(length) = length.filter(|length| begins == *written && begins < *length) else {
            return Err(Stopped::Lost("a piece out of place".to_owned()));
        };
        let what = SharedOut {
            key: asked.key,
            fields: &asked.headers,
            home,
            length,
        };
        let mut fellows = self.shared.upstream.fellows(&what, relayed, first);
        while let Some(piece) = fellows.next().await {
            let piece = piece.map_err(stopped_by)?;
            if piece.from_peer {
                writing.came_from_peers(piece.bytes.len() as u64);
            }
            let put = writing.put(piece.index, piece.bytes, piece.hash).await;
            *written = writing.length();
            put.map_err(Stopped::For)?;
        }
        Ok(())
    }

    async fn write_rest(
        &self,
        writing: &mut Writing,
        written: &mut u64,
        rest: &mut Rest,
    ) -> Result<(), Stopped> {
        while let Some(bytes) = rest.next().await {
            write(writing, written, bytes?).await?;
        }
        Ok(())
    }
}

impl Asked {
    pub(super) fn target(&self) -> &str {
        self.uri.path_and_query().map_or("/", |pq| pq.as_str())
    }

    pub(super) fn wanted<'a>(&'a self, fields: &'a HeaderMap) -> Wanted<'a> {
        Wanted {
            key: self.key,
            site: &self.site.name,
            host: &self.host,
            target: self.target(),
            slice: self.slice,
            fields,
            have: None,
            from: 0,
            shares: false,
            purged: self.purges.applied(),
        }
    }

    /// How long a fill that goes through homes may take until it is known what comes of it: what the origin
    /// alone may take, and the way there. A home gives up somewhat earlier, and says why.
    fn patience(&self) -> Duration {
        let queue = self.site.origin_queue_timeout;
        let queue = queue.unwrap_or(cluster::site::ORIGIN_QUEUE_TIMEOUT_DEFAULT);
        queue.0 + self.site.connect_timeout.0 + self.site.first_byte_timeout.0 + peer::HEAD_TIMEOUT
    }
}

/// The client's fields without those that make its request another than that for everybody.
fn for_everybody(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    forward::make_whole(&mut headers);
    headers
}

pub(super) fn kind_of(fault: OriginFault) -> Kind {
    match fault {
        OriginFault::Unreachable => Kind::Unreachable,
        OriginFault::BadAnswer => Kind::BadAnswer,
        OriginFault::Timeout => Kind::Timeout,
    }
}

pub(super) fn error_response(
    status: u16,
    fields: &[(String, Vec<u8>)],
    body: Vec<u8>,
) -> Option<Response<OriginBody>> {
    let mut response = Response::new(OriginBody::relayed(body.into()));
    *response.status_mut() = StatusCode::from_u16(status)
        .ok()
        .filter(StatusCode::is_server_error)?;
    for (name, value) in fields {
        let name = http::HeaderName::from_bytes(name.as_bytes()).ok()?;
        let value = HeaderValue::from_bytes(value).ok()?;
        response.headers_mut().append(name, value);
    }
    Some(response)
}

/// Why a source gives no more of a body.
enum Stopped {
    /// It was lost; another may do.
    Lost(String),
    /// From here on it is shared out; this is where its next piece is.
    SharedOut(PieceAt),
    /// For good.
    For(BodyError),
}

fn stopped_by(error: RelayError) -> Stopped {
    match error {
        RelayError::Home(error) => Stopped::Lost(error.to_string()),
        RelayError::Source(error) => Stopped::For(BodyError::Source(error)),
    }
}

async fn write(writing: &mut Writing, written: &mut u64, bytes: Bytes) -> Result<(), Stopped> {
    let length = bytes.len() as u64;
    writing.write(bytes).await.map_err(Stopped::For)?;
    *written += length;
    Ok(())
}

/// Where the rest of a body comes from.
enum Rest {
    Home(Box<Relayed>),
    Origin(Box<OriginBody>),
}

impl Rest {
    async fn next(&mut self) -> Option<Result<Bytes, Stopped>> {
        match self {
            Self::Home(relayed) => Some(match relayed.next().await? {
                Ok(Said::Bytes(bytes)) => Ok(bytes),
                Ok(Said::Piece(at)) => Err(Stopped::SharedOut(at)),
                Err(error) => Err(stopped_by(error)),
            }),
            Self::Origin(body) => match body.frame().await? {
                Ok(frame) => Some(Ok(frame.into_data().unwrap_or_default())),
                Err(error) => Some(Err(Stopped::Lost(error.to_string()))),
            },
        }
    }
}

/// What was written of a body, read back in parts of any length.
struct ReadBack {
    stream: BodyStream,
    bytes: Bytes,
}

impl ReadBack {
    /// The next bytes, at most `most`, and at least one.
    async fn next(&mut self, most: usize) -> Result<Bytes, Stopped> {
        while self.bytes.is_empty() {
            let next = self.stream.next().await;
            self.bytes = next.unwrap_or(Err(BodyError::Gone)).map_err(Stopped::For)?;
        }
        Ok(self.bytes.split_to(most.min(self.bytes.len())))
    }
}
