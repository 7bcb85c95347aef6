//! Fetching ahead of demand: the object of a URL is brought in by an ordinary fill, from peers or the
//! origin as ever, for nobody.
//!
//! It gives way to everything else: it begins only while there is [room](Fills::have_room), and since
//! nobody waits for it, it does not stand in line for an origin (`shedding.rs`). Who asks for the object
//! meanwhile follows this fill like any other, and then it stands in line for them.
//!
//! Of what varies by `Accept-Encoding`, the variants that most clients ask for are fetched as well (`ENCODINGS`).
//! Those by any other field are not: which of them will be asked for nobody knows.
//!
//! [`Fills::have_room`]: super::shedding::Fills::have_room

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use cluster::{key::Key, wire::WarmSource};
use http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header};
use tokio::time::Instant;

use super::{Asked, Caller, Parts, Proxy, ROUNDS_MAX, target};
use crate::{
    cache::{
        Lookup, Outcome, Turn,
        entry::{Body, Entry, Provenance},
    },
    deliver,
    error::{Kind, ServeError, Side},
    ruling::access::Verdict,
    upstream::plain::Spelling,
};

/// What clients say in `Accept-Encoding`, beside those that say nothing: today's Chromium and Firefox; Safari, and
/// the others until lately; and most programs. In one of these orders or another, which makes no difference.
const ENCODINGS: [&str; 3] = ["gzip, deflate, br, zstd", "gzip, deflate, br", "gzip"];

/// Why an object is not here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Cold {
    /// In words.
    pub reason: String,
    /// Whether it may be of use to try again.
    pub again: Again,
}

/// Whether, and when, it may be of use to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// It will be no different.
    Never,
    /// What went wrong may pass.
    Later,
    /// Nothing went wrong: there was more important work.
    WhenIdle,
}

impl Cold {
    fn new(again: Again, reason: impl ToString) -> Self {
        let reason = reason.to_string();
        Self { reason, again }
    }
}

impl From<ServeError> for Cold {
    fn from(error: ServeError) -> Self {
        let again = match (error.kind, error.side()) {
            (Kind::Overloaded | Kind::OriginBusy, _) => Again::WhenIdle,
            (_, Side::Client) => Again::Never,
            (_, Side::Origin | Side::Us) => Again::Later,
        };
        let (_, sentence) = error.answer();
        Self::new(again, format!("{sentence} {}", error.detail).trim_end())
    }
}

impl Proxy {
    /// Sees to it that the object of `url`, an absolute URL of `site`, is stored and fresh, and says
    /// where it came from and how long its body is; that of all its `ENCODINGS` together.
    ///
    /// With a `key`, only if that is the object's key on this node, and without other variants. Dropping the future gives up waiting; a
    /// fetch under way goes on.
    ///
    /// # Errors
    ///
    /// It is not, and why.
    pub async fn warm(
        &self,
        site: &str,
        url: &str,
        key: Option<Key>,
    ) -> Result<(WarmSource, u64), Cold> {
        let asked = self.asked_ahead(site, url, HeaderMap::new())?;
        if key.is_some_and(|key| key != asked.key) {
            return Err(Cold::new(Again::Never, "it has another key here"));
        }
        let (entry, from) = self.warmed(Arc::new(asked)).await?;
        let mut bytes = entry.length().unwrap_or(0);
        let names = |(name, _): &(String, _)| name == header::ACCEPT_ENCODING.as_str();
        if key.is_none() && entry.head.selected_by.iter().any(names) {
            for encoding in ENCODINGS {
                let fields = [(header::ACCEPT_ENCODING, HeaderValue::from_static(encoding))];
                let asked = self.asked_ahead(site, url, fields.into_iter().collect())?;
                let (variant, _) = self.warmed(Arc::new(asked)).await?;
                bytes += variant.length().unwrap_or(0);
            }
        }
        Ok((from, bytes))
    }

    /// What answers `asked`, stored and fresh, and where it came from.
    async fn warmed(&self, asked: Arc<Asked>) -> Result<(Arc<Entry>, WarmSource), Cold> {
        let target = asked.uri.path_and_query().map_or("/", |pq| pq.as_str());
        let mut from = WarmSource::Stored;
        for _ in 0..ROUNDS_MAX {
            let ask = self.ask(&asked);
            let (turn, stored) = match self.shared.cache.lookup(ask).await {
                Lookup::Fresh(entry)
                    if self.is_outdated(&asked.ruling, &asked.host, target, &entry) =>
                {
                    self.shared.cache.forget(entry.key).await;
                    continue;
                }
                Lookup::Fresh(entry)
                    if deliver::suffices(&asked.method, &asked.headers, &entry) =>
                {
                    return found(entry, from);
                }
                Lookup::Fresh(entry) => match self.shared.cache.claim_rest(ask, &entry).await {
                    Some(turn) => (turn, Some(entry)),
                    None => continue,
                },
                Lookup::Stale { entry, turn, .. } => (turn, Some(entry)),
                Lookup::Filling(following) => (Turn::Follow(following), None),
                Lookup::Absent(filler) => (Turn::Fill(filler), None),
                Lookup::Unavailable | Lookup::Pass => return Err(self.not_shared(&asked)),
            };
            if let Some(source) = self.fill_ahead(&asked, turn, stored).await? {
                from = source;
            }
        }
        Err(Cold::new(Again::Later, "it does not stay"))
    }

    /// Lets the fill come to its end, and says where the body came from if there is one.
    async fn fill_ahead(
        &self,
        asked: &Arc<Asked>,
        turn: Turn,
        stored: Option<Arc<Entry>>,
    ) -> Result<Option<WarmSource>, Cold> {
        let (outcome, own) = match turn {
            Turn::Follow(following) => (Some(following.outcome().await), None),
            Turn::Fill(filler) if !self.shared.fills.have_room() => {
                // Who has come to follow meanwhile looks again.
                filler.again();
                return Err(Cold::new(Again::WhenIdle, "too many fills are under way"));
            }
            Turn::Fill(filler) => {
                let onlooker = filler.look_on();
                let mut filling = self.begin_fill(filler, asked, stored, Method::GET);
                filling.finish().await;
                (onlooker.outcome(), filling.own_answer().await)
            }
        };
        match outcome {
            Some(Outcome::Shared(entry)) => {
                if let Body::Growing(growing) = &entry.body
                    && let Err(error) = growing.ended().await
                {
                    return Err(Cold::new(Again::Later, error));
                }
                Ok(Some(source(&entry.from)))
            }
            Some(Outcome::Refreshed(entry)) => Ok(Some(source(&entry.from))),
            Some(Outcome::Again) => Ok(None),
            Some(Outcome::NotShared) => match own.map(|answer| answer.status()) {
                Some(status) if !status.is_success() => Err(answered(status)),
                _ => Err(self.not_shared(asked)),
            },
            Some(Outcome::Failed(error)) => Err(error.into()),
            None => Err(Cold::new(Again::Later, "the fill was abandoned")),
        }
    }

    /// The answer may not be stored.
    fn not_shared(&self, asked: &Asked) -> Cold {
        let why = self.shared.refusals.find(asked.key).map_or_else(
            || "the answer is not for everybody".to_owned(),
            |refusal| refusal.why,
        );
        Cold::new(Again::Never, format!("may not be stored: {why}"))
    }

    /// A GET for `url` by nobody, with these fields and no condition.
    fn asked_ahead(&self, site: &str, url: &str, headers: HeaderMap) -> Result<Asked, Cold> {
        let never = |reason: &str| Cold::new(Again::Never, reason);
        let uri: Uri = url.parse().map_err(|_| never("not a URL"))?;
        let (Some(authority), Some(path)) = (uri.authority(), uri.path_and_query()) else {
            return Err(never("not an absolute URL"));
        };
        let host = target::host(authority.as_str()).ok_or_else(|| never("no host in it"))?;
        let sites = self.shared.sites.load();
        let selected = sites
            .select(host)
            .filter(|selected| selected.ruling.site.name == site)
            // A node that has just started may not have heard of it yet.
            .ok_or_else(|| Cold::new(Again::Later, "this node does not serve it for this site"))?;
        let caller = Caller {
            client: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            host_sent: host.to_owned(),
            interim: None,
            spelling: Some(Spelling::default()),
            site_metrics: self.shared.metrics.site(site),
            started: Instant::now(),
        };
        let parts = Parts {
            method: Method::GET,
            uri: Uri::from(path.clone()),
            version: Version::HTTP_11,
            headers,
            extensions: Extensions::new(),
        };
        let asked = self.asked(&sites, selected, parts, caller, false);
        match asked.verdict {
            Verdict::Deny { rule, .. } => {
                let reason = format!("access rule {} of the site denies it", rule + 1);
                Err(Cold::new(Again::Never, reason))
            }
            Verdict::Gone { .. } => Err(never("the site has taken it down")),
            Verdict::Serve if asked.bypasses => Err(never("the site has it go past the cache")),
            Verdict::Serve => Ok(asked),
        }
    }
}

/// What is stored, if it is what was wanted.
fn found(entry: Arc<Entry>, from: WarmSource) -> Result<(Arc<Entry>, WarmSource), Cold> {
    let status = entry.head.status;
    if status.is_client_error() || status.is_server_error() {
        return Err(answered(status));
    }
    Ok((entry, from))
}

fn answered(status: StatusCode) -> Cold {
    let again = match status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        true => Again::Later,
        false => Again::Never,
    };
    Cold::new(again, format!("answered {}", status.as_u16()))
}

fn source(from: &Provenance) -> WarmSource {
    match from {
        Provenance::Store => WarmSource::Stored,
        Provenance::Peer(_) => WarmSource::Peer,
        Provenance::Home(_) => WarmSource::Home,
        Provenance::Origin => WarmSource::Origin,
    }
}
