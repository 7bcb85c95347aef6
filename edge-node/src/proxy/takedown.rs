//! What must not be served: told from a request's URL before anything is looked up, and from a body once it
//! is known; towards clients and towards other nodes.

use cluster::{
    manifest::{Manifest, PIECE_BYTES, PieceHash},
    site::takedown::content_hash,
};
use http::{HeaderMap, Method, Uri};
use tracing::{debug, info};

use super::{Asked, Proxy};
use crate::{
    cache::entry::{Body, Entry},
    error::{Kind, ServeError},
    ruling::{
        Ruling,
        access::{Verdict, Visit},
    },
    upstream::relayed,
};

impl Proxy {
    /// Whether a request is served at all.
    ///
    /// # Errors
    ///
    /// It is denied, or what it wants is taken down.
    pub(super) fn admitted(&self, asked: &Asked) -> Result<(), ServeError> {
        match asked.verdict {
            Verdict::Serve => Ok(()),
            Verdict::Gone { place } => Err(self.gone(asked, place)),
            Verdict::Deny { status, rule } => {
                let kind = match status {
                    451 => Kind::Blocked,
                    _ => Kind::Denied,
                };
                let detail = format!("access rule {} of site {}", rule + 1, asked.site.name);
                Err(ServeError::new(kind, detail))
            }
        }
    }

    /// Whether a question of another node is answered at all. Rules about clients are not for nodes.
    ///
    /// # Errors
    ///
    /// What it wants is taken down.
    pub(super) fn admitted_to_nodes(&self, asked: &Asked) -> Result<(), ServeError> {
        match asked.verdict {
            Verdict::Gone { place } => Err(self.gone(asked, place)),
            Verdict::Serve | Verdict::Deny { .. } => Ok(()),
        }
    }

    /// Whether a body may be handed out. One that still comes in is waited for if it is in one piece, for
    /// only then is it known what it is.
    ///
    /// # Errors
    ///
    /// It is taken down.
    pub(super) async fn body_admitted(
        &self,
        asked: &Asked,
        entry: &Entry,
    ) -> Result<(), ServeError> {
        if !asked.ruling.takedowns.is_about_bodies() {
            return Ok(());
        }
        let hash = match &entry.body {
            Body::Growing(growing) if is_one_piece(entry) => growing.piece_hash(0).await.ok(),
            _ => entry.content_hash(None),
        };
        self.hash_admitted(asked, hash.as_ref())
    }

    /// Whether what a peer has may be fetched.
    ///
    /// # Errors
    ///
    /// It is taken down.
    pub(super) fn manifest_admitted(
        &self,
        asked: &Asked,
        manifest: &Manifest,
    ) -> Result<(), ServeError> {
        if !asked.ruling.takedowns.is_about_bodies() {
            return Ok(());
        }
        self.hash_admitted(asked, Some(&content_hash(&manifest.pieces)))
    }

    fn hash_admitted(&self, asked: &Asked, hash: Option<&PieceHash>) -> Result<(), ServeError> {
        match hash.and_then(|hash| asked.ruling.takedowns.of_body(hash)) {
            Some(place) => Err(self.gone(asked, place)),
            None => Ok(()),
        }
    }

    /// Whether `entry` must not be handed to the node that asks for it with these fields, as far as they say
    /// what it is; with no entry, whether what they name must not.
    pub fn is_gone(&self, fields: &HeaderMap, entry: Option<&Entry>) -> bool {
        let text = |name: &str| fields.get(name)?.to_str().ok();
        let Some(host) = text(relayed::HOST_FIELD) else {
            return false;
        };
        let sites = self.shared.sites.load();
        let Some(selected) = sites.select(host) else {
            return false;
        };
        let takedowns = &selected.ruling.takedowns;
        if takedowns.is_empty() {
            return false;
        }
        let hash = entry.and_then(|entry| entry.content_hash(None));
        if hash.is_some_and(|hash| takedowns.of_body(&hash).is_some()) {
            return true;
        }
        let target = text(relayed::TARGET_FIELD).and_then(|target| target.parse().ok());
        target.is_some_and(|target: Uri| is_gone_url(&selected.ruling, &target, &selected.host))
    }

    fn gone(&self, asked: &Asked, place: usize) -> ServeError {
        let (site, takedowns) = (&asked.site.name, &asked.ruling.takedowns);
        let words = takedowns.get(place).map(|takedown| takedown.in_words());
        let words = words.unwrap_or_default();
        if takedowns.is_first(place) {
            info!(site, host = asked.host, uri = %asked.uri, takedown = words, "taken down, answered with 451");
        } else {
            debug!(site, host = asked.host, uri = %asked.uri, takedown = words, "taken down, answered with 451");
        }
        self.shared.metrics.taken_down(site);
        ServeError::new(Kind::Blocked, format!("takedown of site {site}: {words}"))
    }
}

/// Whether a URL is taken down, whoever asks for it.
fn is_gone_url(ruling: &Ruling, target: &Uri, host: &str) -> bool {
    let path = ruling.read(target.path().as_bytes());
    let visit = Visit {
        path: &path,
        method: &Method::GET,
        client: None,
    };
    let verdict = ruling.judge(visit, target.query(), host, |_| None);
    matches!(verdict, Verdict::Gone { .. })
}

fn is_one_piece(entry: &Entry) -> bool {
    let length = entry.length().filter(|_| entry.head.part.is_none());
    length.is_some_and(|length| (1..=PIECE_BYTES as u64).contains(&length))
}
