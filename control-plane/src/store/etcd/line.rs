//! The line to etcd: HTTP to whichever member answers, within bounded time.
//!
//! A question goes to the next member as well when one is silent for a moment, and whoever answers first is
//! asked first from then on; so does a change that happens [once](super::once) whoever makes it. Any other goes
//! on only if it certainly was not sent: one that was sent may have happened, and is not made twice behind the
//! asker's back.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use cluster::net::{BoxStream, Net};
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, Response, StatusCode, Uri,
    body::{Body, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
    rt::{Read, ReadBufCursor, Write},
};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until, timeout},
};
use tower::Service;

use super::words::{Complaint, LoggedIn, Login, Streamed};
use crate::{
    store::{COMMIT_BYTES_MAX, Health, VALUE_BYTES_MAX},
    tls::{self, Tls},
};

/// For a connection to a member.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A member that is silent for so long is not waited for alone: many times what a commit takes on a busy disk.
const SILENCE: Duration = Duration::from_millis(500);
/// How often all of several members are asked, one each [`SILENCE`]: until the end of [`PATIENCE`].
const ROUNDS_MAX: usize = 4;
/// For all members together: longer than etcd takes to choose a leader anew (an election of 1 to 2 s), and less
/// than the API gives its answers.
const PATIENCE: Duration = Duration::from_secs(4);
/// Questions and changes at once; more wait.
const ASKING_MAX: usize = 64;
/// Kept connections per member.
const IDLE_MAX: usize = 16;
/// Kept that long without a question.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer: 32 of the largest values in base64, with room for keys.
const ANSWER_BYTES_MAX: usize = 32 * (VALUE_BYTES_MAX / 3 * 4 + (4 << 10));
/// Largest line of a stream: etcd gathers events of up to a thousand revisions in one. Beyond that the stream
/// is broken off, and begun anew from where it was.
const LINE_BYTES_MAX: usize = 64 * COMMIT_BYTES_MAX;
/// gRPC's codes for a token that is not known, or no longer: log in again.
const UNAUTHENTICATED: u32 = 16;
/// Said with other codes, depending on the version.
const STALE_TOKEN: &str = "invalid auth token";

/// Why etcd did not answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    /// Nobody answered.
    #[error("{member} {reason}")]
    Unanswered { member: String, reason: String },
    /// It answered, and does not do it.
    #[error("{0}")]
    Answer(String),
    /// It does not let us in.
    #[error("it does not let us in: {reason}")]
    Refused { reason: String },
    /// The answer is larger than [`ANSWER_BYTES_MAX`].
    #[error("an answer is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
}

/// Whether a request may have had an effect.
enum Failure {
    /// It was not sent.
    NotSent(LineError),
    /// It may have been.
    Sent(LineError),
}

/// What a member answered with.
enum Answered {
    /// All of its answer.
    Whole(Bytes),
    /// One that goes on.
    Begun(Incoming),
}

/// One of the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member(usize);

/// An answer, whose it is, and whether nobody else was asked.
type First = (Answered, Member, bool);

/// The members, and connections to them.
pub(super) struct Line {
    client: Client<HttpsConnector<Connector>, Full<Bytes>>,
    /// How URLs of members begin.
    scheme: &'static str,
    members: Vec<String>,
    /// Who answered last.
    good: AtomicUsize,
    places: Semaphore,
    health: Health,
    user: Option<(String, String)>,
    token: Mutex<Option<HeaderValue>>,
}

impl Line {
    /// To these members, as this user.
    pub(super) fn new(
        members: Vec<String>,
        user: Option<(String, String)>,
        tls: Option<&Tls>,
        net: Arc<dyn Net>,
        health: Health,
    ) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_MAX)
            .build(tls::over(Connector(net), tls));
        Self {
            client,
            scheme: if tls.is_some() { "https" } else { "http" },
            members,
            good: AtomicUsize::new(0),
            places: Semaphore::new(ASKING_MAX),
            health,
            user,
            token: Mutex::default(),
        }
    }

    /// Asks something that may be asked twice.
    pub(super) async fn read<T: DeserializeOwned>(
        &self,
        path: &str,
        question: &impl Serialize,
    ) -> Result<T, LineError> {
        let (body, _) = self.ask(path, said(question), true).await?;
        parsed(&body)
    }

    /// Changes something, once by what is said, at whoever answers first. Also gives whether nobody else was
    /// asked, who might do it later.
    pub(super) async fn change<T: DeserializeOwned>(
        &self,
        path: &str,
        change: &impl Serialize,
    ) -> Result<(T, bool), LineError> {
        let (body, is_alone) = self.ask(path, said(change), true).await?;
        Ok((parsed(&body)?, is_alone))
    }

    /// Changes something. It may have happened although there is no answer.
    pub(super) async fn write<T: DeserializeOwned>(
        &self,
        path: &str,
        change: &impl Serialize,
    ) -> Result<T, LineError> {
        let (body, _) = self.ask(path, said(change), false).await?;
        parsed(&body)
    }

    /// Asks for something that is answered line by line, without end.
    pub(super) async fn stream(
        &self,
        path: &str,
        question: &impl Serialize,
    ) -> Result<(Member, Lines<Incoming>), LineError> {
        match self.anywhere(path, said(question), true, false).await? {
            (Answered::Begun(body), member, _) => {
                let lines = Lines {
                    body,
                    text: BytesMut::new(),
                    searched: 0,
                };
                Ok((member, lines))
            }
            (Answered::Whole(_), ..) => unreachable!("it was not asked for"),
        }
    }

    /// Lets others be asked before this member, unless they are already.
    pub(super) fn doubt(&self, Member(index): Member) {
        let next = (index + 1) % self.members.len();
        // Somebody else may have found a better one.
        let _ = (self.good).compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    async fn ask(
        &self,
        path: &str,
        question: Bytes,
        twice: bool,
    ) -> Result<(Bytes, bool), LineError> {
        let _place = self.places.acquire().await;
        match self.anywhere(path, question, twice, true).await? {
            (Answered::Whole(body), _, is_alone) => Ok((body, is_alone)),
            (Answered::Begun(_), ..) => unreachable!("all of it was asked for"),
        }
    }

    async fn anywhere(
        &self,
        path: &str,
        question: Bytes,
        twice: bool,
        whole: bool,
    ) -> Result<First, LineError> {
        let answered = self.one_of_all(path, question, twice, whole).await;
        let is_away = matches!(
            answered,
            Err(LineError::Unanswered { .. } | LineError::Refused { .. })
        );
        self.health.note(is_away);
        answered
    }

    /// Asks the last good member, and the next when nobody has answered for a moment, until one does; `twice`:
    /// more than one may do what is asked for; `whole`: with all of the answer.
    async fn one_of_all(
        &self,
        path: &str,
        question: Bytes,
        twice: bool,
        whole: bool,
    ) -> Result<First, LineError> {
        let deadline = Instant::now() + PATIENCE;
        let (first, count) = (self.good.load(Ordering::Relaxed), self.members.len());
        // What a member passed on to a leader that is gone is lost, so it is asked again once there is another.
        let rounds = if twice && count > 1 { ROUNDS_MAX } else { 1 };
        let mut order = (0..count * rounds).map(|n| (n, (first + n) % count));
        let (mut asked, mut last) = (FuturesUnordered::new(), None);
        let (mut next, mut sent) = (order.next(), 0);
        let mut next_at = Instant::now();
        loop {
            let is_first_round = next.is_some_and(|(n, _)| n < count);
            // Nobody is left, or nobody was even reached.
            if asked.is_empty() && (next.is_none() || (sent == 0 && !is_first_round)) {
                break;
            }
            let is_time = (asked.is_empty() && is_first_round)
                || ((twice || asked.is_empty()) && Instant::now() >= next_at);
            if let (true, Some((_, index))) = (is_time, next) {
                let attempt = self.attempt(&self.members[index], path, question.clone(), whole);
                asked.push(attempt.map(move |done| (index, done)));
                sent += 1;
                next_at = Instant::now() + SILENCE;
                next = order.next();
            }
            let done = tokio::select! {
                Some(done) = asked.next() => done,
                () = sleep_until(next_at), if (twice || asked.is_empty()) && next.is_some() => continue,
                () = sleep_until(deadline) => {
                    // The next question begins with another member.
                    self.doubt(Member(first));
                    return Err(LineError::Unanswered {
                        member: self.members[first].clone(),
                        reason: "does not answer in time".into(),
                    });
                }
            };
            match done {
                (index, Ok(answer)) => {
                    self.good.store(index, Ordering::Relaxed);
                    return Ok((answer, Member(index), sent == 1));
                }
                (_, Err(Failure::NotSent(error))) => {
                    // It will not do it later, either.
                    sent -= 1;
                    last = Some(error);
                }
                (index, Err(Failure::Sent(error @ LineError::Unanswered { .. }))) => {
                    self.doubt(Member(index));
                    if !twice {
                        return Err(error);
                    }
                    last = Some(error);
                }
                (_, Err(Failure::Sent(error))) => return Err(error),
            }
            if is_first_round {
                // Others need not wait for one that has failed.
                next_at = Instant::now();
            }
        }
        Err(last.unwrap_or_else(|| LineError::Answer("it has no members".into())))
    }

    async fn attempt(
        &self,
        member: &str,
        path: &str,
        question: Bytes,
        whole: bool,
    ) -> Result<Answered, Failure> {
        let answer = self.post(member, path, question).await?;
        Ok(match whole {
            true => Answered::Whole(collected(member, answer).await.map_err(Failure::Sent)?),
            false => Answered::Begun(answer.into_body()),
        })
    }

    /// Sends a request, logged in if we are somebody, and gives a good answer.
    async fn post(
        &self,
        member: &str,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        for is_second in [false, true] {
            let token = self.token(member, is_second).await?;
            let answer = self.send(member, path, body.clone(), token).await?;
            if answer.status() == StatusCode::OK {
                return Ok(answer);
            }
            let status = answer.status();
            let said = collected(member, answer).await.map_err(Failure::Sent)?;
            let said: Complaint = first_value(&said).unwrap_or_default();
            let is_stale = status == StatusCode::UNAUTHORIZED
                || said.code == UNAUTHENTICATED
                || said.message.contains(STALE_TOKEN);
            if is_stale && self.user.is_some() && !is_second {
                continue;
            }
            let reason = format!("{} ({status})", said.message);
            // What a member without a leader says, and one that is about to end.
            let is_away = matches!(
                status,
                StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
            );
            return Err(Failure::Sent(match (status, is_away) {
                (_, true) => LineError::Unanswered {
                    member: member.to_owned(),
                    reason: format!("answers: {reason}"),
                },
                (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                    LineError::Refused { reason }
                }
                // It wants to know who we are, and calls that a bad argument.
                _ if said.message.contains("user name is empty") => LineError::Refused { reason },
                _ => LineError::Answer(reason),
            }));
        }
        let reason = "its tokens are stale at once".into();
        Err(Failure::Sent(LineError::Refused { reason }))
    }

    /// What proves who we are; a new one if so asked.
    async fn token(&self, member: &str, anew: bool) -> Result<Option<HeaderValue>, Failure> {
        let Some((name, password)) = &self.user else {
            return Ok(None);
        };
        let known = self
            .token
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let (Some(token), false) = (known, anew) {
            return Ok(Some(token));
        }
        let login = said(&Login { name, password });
        let answer = self
            .send(member, "/v3/auth/authenticate", login, None)
            .await?;
        let status = answer.status();
        let body = collected(member, answer).await.map_err(Failure::NotSent)?;
        if status != StatusCode::OK {
            let said: Complaint = first_value(&body).unwrap_or_default();
            let reason = format!("user {name:?}: {} ({status})", said.message);
            return Err(Failure::Sent(LineError::Refused { reason }));
        }
        let LoggedIn { token } = parsed(&body).map_err(Failure::NotSent)?;
        let mut token = HeaderValue::try_from(token).map_err(|_| {
            let reason = "its token is no header value".into();
            Failure::Sent(LineError::Refused { reason })
        })?;
        token.set_sensitive(true);
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
        Ok(Some(token))
    }

    async fn send(
        &self,
        member: &str,
        path: &str,
        body: Bytes,
        token: Option<HeaderValue>,
    ) -> Result<Response<Incoming>, Failure> {
        let unanswered = |reason: String| LineError::Unanswered {
            member: member.to_owned(),
            reason,
        };
        let mut request = Request::post(format!("{}://{member}{path}", self.scheme))
            .header(CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| Failure::NotSent(unanswered(error.to_string())))?;
        self.client.request(request).await.map_err(|error| {
            let told = unanswered(format!("cannot be reached: {}", innermost(&error)));
            match error.is_connect() {
                true => Failure::NotSent(told),
                false => Failure::Sent(told),
            }
        })
    }
}

/// An answer without end, value by value.
pub(super) struct Lines<B> {
    body: B,
    text: BytesMut,
    /// How much of it has no end of a line.
    searched: usize,
}

impl<B: Body<Data = Bytes, Error = hyper::Error> + Unpin> Lines<B> {
    /// The next value. Dropping the future loses nothing.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<T, LineError> {
        let broken = |reason: String| LineError::Unanswered {
            member: "a member".into(),
            reason,
        };
        loop {
            let fresh = &self.text[self.searched..];
            if let Some(end) = fresh.iter().position(|byte| *byte == b'\n') {
                let line = self.text.split_to(self.searched + end);
                self.text.advance(1);
                self.searched = 0;
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let said: Streamed<T> = parsed(&line)?;
                let complaint = said.error.unwrap_or_default();
                return said
                    .result
                    .ok_or_else(|| broken(format!("ends a watch: {}", complaint.message)));
            }
            self.searched = self.text.len();
            if self.text.len() > LINE_BYTES_MAX {
                return Err(LineError::TooLong);
            }
            let frame = self.body.frame().await;
            let frame = frame.ok_or_else(|| broken("ends a watch".into()))?;
            let frame = frame.map_err(|error| broken(format!("breaks off: {error}")))?;
            if let Some(data) = frame.data_ref() {
                self.text.extend_from_slice(data);
            }
        }
    }
}

async fn collected(member: &str, answer: Response<Incoming>) -> Result<Bytes, LineError> {
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
    match body.collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(LineError::TooLong),
        Err(error) => Err(LineError::Unanswered {
            member: member.to_owned(),
            reason: format!("breaks off: {error}"),
        }),
    }
}

fn said(what: &impl Serialize) -> Bytes {
    serde_json::to_vec(what).expect("plain data").into()
}

fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T, LineError> {
    serde_json::from_slice(body)
        .map_err(|error| LineError::Answer(format!("it does not speak as etcd does: {error}")))
}

/// The first value of a body: behind errors, etcd's gateway writes words of its own.
fn first_value<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    let mut values = serde_json::Deserializer::from_slice(body).into_iter();
    values.next()?.ok()
}

/// What really happened is at the end of a chain.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Opens connections through the network that it was given.
#[derive(Clone)]
struct Connector(Arc<dyn Net>);

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, std::io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let net = self.0.clone();
        Box::pin(async move {
            let at = to.authority().map_or("", |authority| authority.as_str());
            let connecting = timeout(CONNECT_TIMEOUT, net.connect(at));
            let stream = connecting.await.map_err(|_| {
                std::io::Error::new(std::io::ErrorKind::TimedOut, "no connection in time")
            })??;
            Ok(Stream(TokioIo::new(stream)))
        })
    }
}

/// A connection, as hyper's client wants it.
struct Stream(TokioIo<BoxStream>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
