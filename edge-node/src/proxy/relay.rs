//! What a home does when another node asks it to fill: it looks the object up like any request, fetches it
//! if need be, and relays it while it still comes in. All that ask at once wait for one fetch. What is large
//! is [shared out](super::swarm) among them.
//!
//! **Invariant:** a question makes this node ask only homes of a lower level, and wait only for fills, and for
//! bodies still coming in, that reach lower than itself ([`crate::upstream::home`]). A holder that it asks answers from its storage, and
//! waits for nobody.

use std::{net::IpAddr, pin::pin, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use cluster::{key::Key, manifest::PIECE_BYTES, node::NodeId};
use futures_util::{FutureExt as _, StreamExt as _};
use http::{Extensions, HeaderMap, Method, Response, Uri, Version, header};
use http_body_util::{BodyExt as _, Limited};
use tokio::{
    sync::mpsc::{self, Sender},
    time::{Instant, Interval, interval_at},
};

use super::{
    Asked, Caller, Parts, Proxy, ROUNDS_MAX,
    answer::How,
    swarm::{self, Member},
};
use crate::{
    cache::{
        Lookup, Outcome, Turn,
        entry::{Body, Entry},
        fill::Growing,
        key,
        policy::{self, CacheControl, Why, validator::EntityTag},
        vary,
    },
    deliver::cache_status::Fwd,
    error::{Kind, ServeError},
    forward, metrics,
    upstream::{
        home::{Level, may_join},
        origin::OriginBody,
        relayed::{self, BEAT, BLOCK_BYTES, Frame, OriginFault, Refusal, RelayHead, Slice},
    },
};

/// Frames that may wait for a slow asker, each of a block.
const FRAMES_WAITING_MAX: usize = 2;
/// How long a question waits until this node knows of the purges that the asker does: two round trips to a
/// control plane.
const CATCH_UP_MAX: Duration = Duration::from_millis(500);
/// Largest page with which an origin says that it failed that is relayed; for a larger one it is asked again.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// What another node asks of this one as the home of a key.
#[derive(Debug)]
pub struct Question {
    /// The key, by the asker.
    pub key: Key,
    /// As what it asks this node.
    pub level: Level,
    /// The node that asks.
    pub asker: NodeId,
    /// Its address.
    pub from: IpAddr,
    /// The fields of its question.
    pub fields: HeaderMap,
}

/// What comes of a question.
pub(super) enum Found {
    /// An object, and how this node has come to it.
    Entry(Arc<Entry>, How),
    /// A stale one that may be used, for the origin has failed: who asks may have one of its own for that.
    Instead(Arc<Entry>, How, Refusal),
    /// None.
    Refused(Refusal),
}

/// The way to the asker. An error: it has left.
pub(super) struct Out {
    frames: Sender<Bytes>,
    beat: Interval,
}

/// A body that may be shared out, and as what its asker takes part.
struct SharedOut {
    /// `None`: all of it is stored.
    growing: Option<Arc<Growing>>,
    length: u64,
    member: Member,
}

/// The asker has left.
pub(super) struct Left;

impl Out {
    fn new(frames: Sender<Bytes>) -> Self {
        let beat = interval_at(Instant::now() + BEAT, BEAT);
        Self { frames, beat }
    }

    /// Sends frames together.
    pub(super) async fn send(&mut self, frames: &[Frame]) -> Result<(), Left> {
        let mut out = BytesMut::new();
        for frame in frames {
            // One that cannot be written is missed, and its asker goes elsewhere.
            frame.write(&mut out).map_err(|_| Left)?;
        }
        if out.is_empty() {
            return Ok(());
        }
        self.beat.reset();
        self.frames.send(out.freeze()).await.map_err(|_| Left)
    }

    /// Waits for `what`, and says every now and then that it is not there yet.
    pub(super) async fn wait<T>(&mut self, what: impl Future<Output = T>) -> Result<T, Left> {
        let mut what = pin!(what);
        loop {
            tokio::select! {
                biased;
                what = &mut what => return Ok(what),
                () = self.frames.closed() => return Err(Left),
                _ = self.beat.tick() => self.send(&[Frame::Wait]).await?,
            }
        }
    }
}

impl Proxy {
    /// Answers `question`, frame by frame.
    pub fn relay(&self, question: Question) -> mpsc::Receiver<Bytes> {
        let (frames, answer) = mpsc::channel(FRAMES_WAITING_MAX);
        let proxy = self.clone();
        tokio::spawn(async move {
            // Whether the asker stays to the end is its own affair.
            let _ = proxy.relay_to(Out::new(frames), question).await;
        });
        answer
    }

    async fn relay_to(&self, mut out: Out, question: Question) -> Result<(), Left> {
        let have = question.fields.get(relayed::HAVE_FIELD).cloned();
        let from = relayed::from_in(&question.fields);
        let shares = question.fields.contains_key(relayed::FELLOWS_FIELD);
        let asker = question.asker.clone();
        let purged = relayed::purged_in(&question.fields);
        let catching_up = self.shared.purges.catch_up(purged, CATCH_UP_MAX);
        let Some(asked) = self.asked_by_node(question).map(Arc::new) else {
            return out.send(&[Frame::Refused(Refusal::Unknown)]).await;
        };
        let found = match out.wait(catching_up).await? {
            true => out.wait(self.found_admitted(&asked)).await?,
            // What it does not know of may be what the asker must not have.
            false => Found::Refused(Refusal::Behind),
        };
        let is_same_as =
            |entry: &Entry| have.is_some() && entry.head.headers.get(header::ETAG) == have.as_ref();
        let (entry, how) = match found {
            Found::Instead(entry, _, refusal) if is_same_as(&entry) => {
                return out.send(&[Frame::Refused(refusal)]).await;
            }
            Found::Entry(entry, how) | Found::Instead(entry, how, _) => (entry, how),
            Found::Refused(refusal) => return out.send(&[Frame::Refused(refusal)]).await,
        };
        let mut head = Box::new(self.relay_head(&entry, &asked, &how));
        let is_same = is_same_as(&entry);
        if is_same && from == 0 {
            return out.send(&[Frame::Same(head)]).await;
        }
        let start = u64::from(from) * PIECE_BYTES as u64;
        let is_strong = EntityTag::of(&entry.head.headers).is_some_and(|tag| !tag.weak);
        let goes_on = is_same && is_strong && entry.length().is_some_and(|length| start < length);
        let (start, from) = if goes_on { (start, from) } else { (0, 0) };
        head.from = from;
        let cache = &self.shared.cache;
        let Ok(reading) = entry.open(start..entry.length().unwrap_or(u64::MAX), cache) else {
            cache.forget(entry.key).await;
            return out.send(&[Frame::Refused(Refusal::Pass)]).await;
        };
        let mut body = reading.into_stream();
        let shared_out = match shares {
            true => self.shared_out(&entry, asker),
            false => None,
        };
        let mut frames = vec![Frame::Head(head)];
        let (mut gathered, mut total) = (0, 0);
        // What is here goes out together, a small object in one.
        loop {
            if let Some(SharedOut {
                growing,
                length,
                member,
            }) = &shared_out
                && (start + total) % PIECE_BYTES as u64 == 0
                && start + total < *length
                && let Ok(piece) = u32::try_from((start + total) / PIECE_BYTES as u64)
                && member.is_shared(piece)
                && let Ok(source) = match growing {
                    Some(growing) => growing
                        .follow(start + total)
                        .map(|follower| swarm::Source::Growing(growing.clone(), follower)),
                    None => Ok(swarm::Source::Stored(entry.clone(), cache.clone())),
                }
            {
                drop(body);
                out.send(&frames).await?;
                let body = source;
                let pieces = piece..piece_count(*length);
                return self.share_out(&mut out, body, pieces, total, member).await;
            }
            let mut next = body.next();
            let bytes = match (&mut next).now_or_never() {
                Some(bytes) => bytes,
                None => {
                    out.send(&frames).await?;
                    frames.clear();
                    gathered = 0;
                    out.wait(next).await?
                }
            };
            let mut bytes = match bytes {
                Some(Ok(bytes)) => bytes,
                Some(Err(error)) => {
                    frames.push(Frame::Failed(error.to_string()));
                    return out.send(&frames).await;
                }
                None => {
                    frames.push(Frame::End(total));
                    return out.send(&frames).await;
                }
            };
            total += bytes.len() as u64;
            while !bytes.is_empty() {
                let block = bytes.split_to(bytes.len().min(BLOCK_BYTES));
                gathered += block.len();
                frames.push(Frame::Block(block));
                if gathered >= BLOCK_BYTES {
                    out.send(&frames).await?;
                    frames.clear();
                    gathered = 0;
                }
            }
        }
    }

    /// What it takes to share `entry` out, if that is worth it: it is large, and of known length.
    fn shared_out(&self, entry: &Entry, asker: NodeId) -> Option<SharedOut> {
        let growing = match &entry.body {
            Body::Growing(growing) => Some(growing.clone()),
            Body::Pieces { .. } => None,
            Body::Whole(_) | Body::Shelved(_) => return None,
        };
        let length = entry.length().filter(|_| entry.head.part.is_none())?;
        if length < swarm::PIECES_MIN * PIECE_BYTES as u64 {
            return None;
        }
        let view = self.shared.upstream.view();
        let region = view.node(&asker).map_or("", |node| &node.region);
        Some(SharedOut {
            growing,
            length,
            member: self.shared.swarms.join(entry.object, asker, region)?,
        })
    }

    fn relay_head(&self, entry: &Entry, asked: &Asked, how: &How) -> RelayHead {
        let age = entry.head.freshness.age(self.now());
        let mut about = entry.head.manifest(0, Vec::new());
        about.selected_by = vary::selecting_as_well(&about.selected_by, &asked.headers);
        RelayHead {
            about,
            length: entry.length(),
            age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            asked_for_you: how.is_asked_for(),
            from: 0,
        }
    }

    /// The request that a node asks this one to fill; `None` if its key is not the one that this node makes
    /// of it.
    fn asked_by_node(&self, question: Question) -> Option<Asked> {
        let text = |name: &str| std::str::from_utf8(question.fields.get(name)?.as_bytes()).ok();
        let (site, host) = (text(relayed::SITE_FIELD)?, text(relayed::HOST_FIELD)?);
        let uri: Uri = text(relayed::TARGET_FIELD)?.parse().ok()?;
        let sites = self.shared.sites.load();
        let selected = sites.select(host)?;
        if selected.ruling.site.name != site {
            return None;
        }
        let site_metrics = self.shared.metrics.site(site);
        let mut headers = relayed::reaching_peers(&question.fields);
        policy::strip_hop_by_hop(&mut headers);
        let caller = Caller {
            client: question.from,
            host_sent: host.to_owned(),
            interim: None,
            spelling: None,
            site_metrics,
            started: Instant::now(),
        };
        let parts = Parts {
            method: Method::GET,
            uri,
            version: Version::HTTP_11,
            headers,
            extensions: Extensions::new(),
        };
        let asked = Asked {
            level: question.level,
            may_be_sent_on: relayed::may_be_sent_on(&question.fields),
            ..self.asked(&sites, selected, parts, caller, false)
        };
        let asked = match relayed::slice_in(&question.fields) {
            Some(Slice { piece, .. }) => Asked {
                key: key::slice_key(asked.key, piece),
                slice: Some(Slice {
                    piece,
                    whole: asked.key,
                }),
                changed_ms: self.shared.cache.changed_ms(asked.key),
                ..asked
            },
            None => asked,
        };
        (asked.key == question.key).then_some(asked)
    }

    /// What is found for a question, unless it is taken down: who asks mostly knows that, too.
    async fn found_admitted(&self, asked: &Arc<Asked>) -> Found {
        if self.admitted_to_nodes(asked).is_err() {
            return Found::Refused(Refusal::TakenDown);
        }
        match self.found(asked).await {
            Found::Entry(entry, _) | Found::Instead(entry, ..)
                if self.body_admitted(asked, &entry).await.is_err() =>
            {
                Found::Refused(Refusal::TakenDown)
            }
            found => found,
        }
    }

    /// The journey of a question, or of a slice: lookup → fetch.
    pub(super) async fn found(&self, asked: &Arc<Asked>) -> Found {
        asked.make_sure().await;
        if forward::is_loop(&asked.headers, &self.shared.me) {
            return Found::Refused(Refusal::Pass);
        }
        let target = asked.target();
        for _ in 0..ROUNDS_MAX {
            let ask = self.ask(asked);
            let (turn, stored, fwd) = match self.shared.cache.lookup(ask).await {
                Lookup::Fresh(entry)
                    if self.is_outdated(&asked.ruling, &asked.host, target, &entry) =>
                {
                    self.shared.cache.forget(entry.key).await;
                    continue;
                }
                Lookup::Fresh(entry) if !may_wait_for(asked, &entry) => {
                    return Found::Refused(Refusal::Crossed);
                }
                Lookup::Fresh(entry) if entry.head.part.is_some() => {
                    match self.shared.cache.claim_rest(ask, &entry).await {
                        Some(turn) => (turn, Some(entry), Fwd::Partial),
                        None => continue,
                    }
                }
                Lookup::Fresh(entry) => {
                    return Found::Entry(entry, How::hit(metrics::Outcome::Hit));
                }
                // What may be used once more here is not new enough to be kept elsewhere.
                Lookup::Stale { entry, must, turn } => {
                    let fwd = match must {
                        Some(Why::Request) => Fwd::Request,
                        _ => Fwd::Stale,
                    };
                    (turn, Some(entry), fwd)
                }
                Lookup::Filling(following) => (Turn::Follow(following), None, Fwd::UriMiss),
                Lookup::Absent(filler) if self.is_unsliced(asked) => {
                    filler.not_shared(false);
                    return Found::Refused(Refusal::Pass);
                }
                Lookup::Absent(filler) if filler.varies() => {
                    (Turn::Fill(filler), None, Fwd::VaryMiss)
                }
                Lookup::Absent(filler) => (Turn::Fill(filler), None, Fwd::UriMiss),
                Lookup::Unavailable | Lookup::Pass => return Found::Refused(Refusal::Pass),
            };
            if let Some(found) = self.filled(asked, turn, stored, fwd).await {
                return found;
            }
        }
        Found::Refused(Refusal::Pass)
    }

    /// Whether the asker is to have the next home fetch it.
    fn sends_on(&self, asked: &Asked) -> bool {
        let upstream = &self.shared.upstream;
        asked.may_be_sent_on && upstream.sends_on(&asked.site, asked.key, asked.level)
    }

    /// Fetches, or follows whoever does; `None`: look again.
    async fn filled(
        &self,
        asked: &Arc<Asked>,
        turn: Turn,
        stored: Option<Arc<Entry>>,
        fwd: Fwd,
    ) -> Option<Found> {
        let (mut filling, following) = match turn {
            Turn::Follow(mut following) => {
                let reach = following.reach().await;
                if reach.is_some_and(|reach| !may_join(asked.level, reach)) {
                    return Some(Found::Refused(Refusal::Crossed));
                }
                (None, following)
            }
            // What is fetched here already, or is here and only has to be validated, is never sent on: one node
            // decides for a key, and sticks to it.
            Turn::Fill(filler) if stored.is_none() && self.sends_on(asked) => {
                // Who has come to follow meanwhile looks again.
                filler.again();
                return Some(Found::Refused(Refusal::SentOn));
            }
            Turn::Fill(filler) => {
                let following = filler.follow();
                let filling = self.begin_fill(filler, asked, stored.clone(), Method::GET);
                (Some(filling), following)
            }
        };
        let leads = filling.is_some();
        let said = match following.is_known() {
            true => asked.said.clone(),
            false => CacheControl::default(),
        };
        let outcome = match &mut filling {
            Some(filling) => filling.outcome(following).await,
            None => following.outcome().await,
        };
        Some(match outcome {
            Outcome::Shared(entry) if !vary::matches(&entry.head.selected_by, &asked.headers) => {
                return None;
            }
            Outcome::Shared(entry) | Outcome::Refreshed(entry)
                if !leads && !asked.may_have(&entry) =>
            {
                return None;
            }
            Outcome::Shared(entry) | Outcome::Refreshed(entry)
                if !leads && !may_wait_for(asked, &entry) =>
            {
                Found::Refused(Refusal::Crossed)
            }
            // A part of it, for whom it was fetched.
            Outcome::Shared(entry) if entry.head.part.is_some() => Found::Refused(Refusal::Pass),
            Outcome::Shared(entry) | Outcome::Refreshed(entry)
                if !leads && !self.may_follow(asked, &said, &entry) =>
            {
                Found::Refused(Refusal::Pass)
            }
            Outcome::Shared(entry) => {
                let how = How::filled(leads, fwd, entry.head.status);
                Found::Entry(entry, how)
            }
            // Now that it is known to be fresh, the rest of it can be had.
            Outcome::Refreshed(entry) if entry.head.part.is_some() => return None,
            Outcome::Refreshed(entry) => Found::Entry(entry, How::refreshed(leads, fwd)),
            Outcome::NotShared => Found::Refused(match filling {
                Some(filling) => match filling.own_answer().await {
                    Some(answer) => error_of(answer).await.unwrap_or(Refusal::Pass),
                    None => Refusal::Pass,
                },
                None => Refusal::Pass,
            }),
            Outcome::Again => return None,
            Outcome::Failed(error) => match stored {
                Some(entry) if self.outlives(asked, &entry) => {
                    let how = How::instead_of(&error, fwd);
                    Found::Instead(entry, how, refusal_of(&error))
                }
                _ if self.is_ending() => Found::Refused(Refusal::Unknown),
                _ => Found::Refused(refusal_of(&error)),
            },
        })
    }
}

/// Whether the question may wait for the rest of this body: it is here, or whoever is waited for here does not wait
/// for who asks.
fn may_wait_for(asked: &Asked, entry: &Entry) -> bool {
    entry
        .reach()
        .is_none_or(|reach| may_join(asked.level, reach))
}

fn piece_count(length: u64) -> u32 {
    u32::try_from(length.div_ceil(PIECE_BYTES as u64)).unwrap_or(u32::MAX)
}

/// The word for an error here, to who asked as a node.
fn refusal_of(error: &ServeError) -> Refusal {
    let fault = match error.kind {
        Kind::Unreachable => OriginFault::Unreachable,
        Kind::BadAnswer => OriginFault::BadAnswer,
        Kind::Timeout => OriginFault::Timeout,
        Kind::Blocked => return Refusal::TakenDown,
        Kind::OriginBusy => return Refusal::OriginBusy,
        Kind::Overloaded => return Refusal::Busy,
        // Its own fault; another may do better.
        _ => return Refusal::Unknown,
    };
    Refusal::OriginFailed {
        fault,
        detail: error.detail.clone(),
    }
}

/// The page with which the origin says that it failed, if it is one. It was asked for without anything that
/// tells of a client, so it is nobody's own.
async fn error_of(answer: Response<OriginBody>) -> Option<Refusal> {
    let (head, body) = answer.into_parts();
    if !head.status.is_server_error() || head.headers.contains_key(header::SET_COOKIE) {
        return None;
    }
    let body = Limited::new(body, ERROR_BYTES_MAX).collect().await.ok()?;
    let fields = head.headers.iter();
    Some(Refusal::OriginError {
        status: head.status.as_u16(),
        fields: fields
            .filter(|(name, _)| **name != header::CONTENT_LENGTH)
            .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
            .collect(),
        body: body.to_bytes().into(),
    })
}
