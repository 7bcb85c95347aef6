//! A purge log that does as it is told: the side of a control plane that edges see, to show what they do when
//! it is slow, silent, or has forgotten.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use cluster::{
    auth::{self, Signer},
    clock::Clock,
    node::NodeId,
    purge::{Position, Purge, Record, Scope},
    secret::ClusterSecret,
    wire::{MAC_FIELD, PURGES, PurgeApplied, PurgePage, PurgePush},
};
use http::Method;

use crate::{
    client::Client,
    cluster::Node,
    origin::{Answer, Origin, Script, Seen},
};

/// A purge log, and who pushes it.
pub struct Purger {
    server: Origin,
    shared: Arc<Mutex<Shared>>,
    signer: Signer,
    client: Client,
}

struct Shared {
    secret: ClusterSecret,
    log: u64,
    records: Vec<Record>,
    has_forgotten: bool,
    /// Numbers of records of which pages say nothing, because later ones hit the same.
    left_out: Vec<u64>,
    /// Questions for what is behind this number, or any later one, are not answered.
    silent_from: Option<u64>,
    /// The numbers behind which pages were asked for.
    asked: Vec<u64>,
}

impl Purger {
    /// An empty log of a cluster with this secret.
    ///
    /// # Errors
    ///
    /// No free port, or no secret in that file.
    pub async fn start(secret: &Path) -> Result<Self> {
        let secret = ClusterSecret::load(secret)?;
        let id: NodeId = "purger".parse()?;
        let shared = Arc::new(Mutex::new(Shared {
            secret: secret.clone(),
            log: Clock::system().unix_ms(),
            records: Vec::new(),
            has_forgotten: false,
            left_out: Vec::new(),
            silent_from: None,
            asked: Vec::new(),
        }));
        let server = Origin::start().await?;
        let pages = shared.clone();
        server.route_by(PURGES, move |seen| lock(&pages).page(seen));
        Ok(Self {
            server,
            shared,
            signer: Signer::new(secret, id),
            client: Client::new(),
        })
    }

    /// Its base URL, for `cluster.control_plane`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Its address.
    pub fn address(&self) -> String {
        self.server.address().to_string()
    }

    /// Takes a purge into the log, and tells nobody.
    pub fn log(&self, scopes: &[Scope], soft: bool) -> Record {
        let mut shared = lock(&self.shared);
        let seq = |record: &Record| record.at.seq;
        let prev = shared.records.last().map_or(0, seq);
        let record = Record {
            // Numbers need not be contiguous.
            at: Position {
                log: shared.log,
                seq: prev + 3,
            },
            prev,
            purge: Purge {
                site: "site".to_owned(),
                scopes: scopes.to_vec(),
                soft,
            },
            taken_at: 0,
            by: "test".to_owned(),
        };
        shared.records.push(record.clone());
        record
    }

    /// Pushes records to an edge, as a control plane does.
    ///
    /// # Errors
    ///
    /// It does not acknowledge them.
    pub async fn push(&self, edge: &Node, records: &[Record]) -> Result<Position> {
        let push = PurgePush {
            records: records.to_vec(),
        };
        let body = serde_json::to_vec(&push)?;
        let path = format!("{PURGES}?{}", auth::body_parameter(&body));
        let now_ms = Clock::system().unix_ms();
        let signed = self.signer.sign(&edge.id.parse()?, "POST", &path, now_ms);
        let mut fields: Vec<(&str, &str)> = Vec::new();
        for (name, value) in &signed {
            fields.push((name, value));
        }
        let peer = edge.peer.context("an edge in a cluster")?;
        let url = format!("http://{peer}{path}");
        let answer = self
            .client
            .send(Method::POST, &url, &fields, Bytes::from(body))
            .await?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        let PurgeApplied { applied } = serde_json::from_slice(&answer.body)?;
        Ok(applied)
    }

    /// Purges, on this edge.
    ///
    /// # Errors
    ///
    /// It does not acknowledge it, or misses something before it.
    pub async fn purge(&self, edge: &Node, scopes: &[Scope], soft: bool) -> Result<()> {
        let record = self.log(scopes, soft);
        let applied = self.push(edge, std::slice::from_ref(&record)).await?;
        ensure!(applied >= record.at, "{applied:?} after {:?}", record.at);
        Ok(())
    }

    /// Says from now on that nothing is missing between any two numbers, and gives no record.
    pub fn forget(&self) {
        lock(&self.shared).has_forgotten = true;
    }

    /// Leaves a record out of all pages, because a later one hits the same.
    pub fn leave_out(&self, record: &Record) {
        lock(&self.shared).left_out.push(record.at.seq);
    }

    /// Does not answer questions for what is behind this number, or any later one.
    pub fn silent_from(&self, after: Option<u64>) {
        lock(&self.shared).silent_from = after;
    }

    /// The numbers behind which pages were asked for, in that order.
    pub fn asked(&self) -> Vec<u64> {
        lock(&self.shared).asked.clone()
    }
}

impl Shared {
    fn page(&mut self, seen: &Seen) -> Script {
        let number = |name: &str| -> u64 {
            let query = seen.target.split_once('?').map_or("", |(_, query)| query);
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            let value = pairs.find(|(own, _)| *own == name).map(|(_, value)| value);
            value.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        let after = if number("log") == self.log {
            number("after")
        } else {
            0
        };
        self.asked.push(after);
        if self.silent_from.is_some_and(|from| after >= from) {
            return Script::Silence;
        }
        let limit = usize::try_from(number("limit"))
            .unwrap_or(usize::MAX)
            .clamp(1, 100);
        let head = self.records.last().map_or(0, |record| record.at.seq);
        let is_told =
            |record: &&Record| record.at.seq > after && !self.left_out.contains(&record.at.seq);
        let behind = self.records.iter().filter(is_told);
        let records: Vec<_> = match self.has_forgotten {
            true => Vec::new(),
            false => behind.take(limit).cloned().collect(),
        };
        let last = records.last().map(|record| record.at.seq);
        let page = PurgePage {
            log: self.log,
            head,
            through: last.unwrap_or(head),
            records,
            age_ms: None,
            now_ms: None,
        };
        let body = serde_json::to_vec(&page).expect("plain data with text keys");
        let mac = auth::document_mac(&self.secret, &seen.target, &body);
        Answer::bytes(body).field(MAC_FIELD, mac).into()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
