//! etcd as the store, through its JSON gateway: nothing but HTTP is needed for it, neither a code generator nor
//! gRPC. With [`etcd/words.rs`](words) and [`etcd/line.rs`](line) the only place that names it.
//!
//! etcd's revision is the store's: it counts all that anybody commits there, and only grows. All keys stand
//! below a prefix, so that others may use the same etcd. A watch goes on at another member from where it was
//! when its member dies, or does not tell of what was changed from here; if what came in between was compacted,
//! who watches is told to begin anew. A change is made [once](once), at however many members it was asked for.

mod line;
mod once;
mod words;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use cluster::net::Net;
use hyper::body::Incoming;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout_at},
};
use tracing::{debug, info, warn};

use self::{
    line::{Line, LineError, Lines, Member},
    once::{Outcome, Places},
    words::{Events, KeyValue, Range, Ranged, Txn, TxnDone, WatchRequest},
};
use super::{
    COMMIT_MAX, Change, Committed, Condition, Health, Item, News, PAGE_BYTES_MAX, Page, StoreError,
    WATCH_WAITING_MAX, family,
};
use crate::tls::Tls;

/// Items of the first answer to a listing: at the greatest length they are as many as an answer may have.
const FIRST_CHUNK: usize = 32;
/// How often a listing asks again for fewer items, because an answer was too long: from all of a page to one.
const HALVINGS_MAX: usize = 10;
/// A watch is renewed that often, from where it was: so a member that is gone without a word holds nobody up
/// for longer. A watch that is renewed costs one request.
const WATCH_LIFE: Duration = Duration::from_secs(3);
/// A watch whose member does not tell for so long of what this process has changed goes on at another. That is
/// longer than a member is behind the one that made the change, and shorter than anybody waits for a purge.
const WATCH_SILENCE: Duration = Duration::from_millis(300);
/// How often a change is sent anew because its mark's key was put by something else: by what an earlier life of
/// this process sent, or another of its name.
const SURPRISES_MAX: usize = 8;
/// How long to wait before a watch is tried again at the next member.
const WATCH_RETRY: Duration = Duration::from_millis(200);
/// How long etcd may take to be there when a control plane starts.
const START_PATIENCE: Duration = Duration::from_secs(30);
const START_RETRY: Duration = Duration::from_millis(500);

/// Where etcd is and how to speak to it.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdConfig {
    /// `host:port` of its members.
    pub members: Vec<String>,
    /// What all keys begin with.
    pub prefix: String,
    /// What this process is called: no other that runs should have its name.
    pub name: String,
    /// Who we are to it: user and password.
    pub user: Option<(String, String)>,
    /// With which certificates it is spoken to over TLS, if it is. [Checked](Tls::check).
    pub tls: Option<Tls>,
}

impl std::fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EtcdConfig({})", self.members.join(","))
    }
}

/// etcd. Cheap to clone.
#[derive(Clone)]
pub(super) struct Etcd(Arc<Inner>);

struct Inner {
    line: Line,
    prefix: String,
    places: Places,
    /// The last revision of what was changed from here, by family.
    changed: watch::Sender<BTreeMap<String, u64>>,
}

impl Etcd {
    /// Waits a bounded time until etcd answers.
    /// `health` is noted by whatever is sent, the renewals of watches included.
    pub(super) async fn open(
        config: EtcdConfig,
        net: Arc<dyn Net>,
        health: Health,
    ) -> Result<Self, StoreError> {
        let etcd = Self(Arc::new(Inner {
            line: Line::new(
                config.members,
                config.user,
                config.tls.as_ref(),
                net,
                health,
            ),
            places: Places::new(&config.prefix, &config.name),
            prefix: config.prefix,
            changed: watch::Sender::default(),
        }));
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            match etcd.range(Range::of_key(etcd.key("start"))).await {
                Ok(_) => return Ok(etcd),
                // What waiting does not mend.
                Err(error @ LineError::Refused { .. }) => return Err(failed(error)),
                Err(error) if Instant::now() >= deadline => return Err(failed(error)),
                Err(error) => {
                    info!(%error, "waiting for etcd");
                    sleep(START_RETRY).await;
                }
            }
        }
    }

    pub(super) async fn get(&self, key: &str) -> Result<Option<Item>, StoreError> {
        let ranged = self.range(Range::of_key(self.key(key))).await;
        let items = self.items(ranged.map_err(failed)?.kvs)?;
        Ok(items.into_iter().next())
    }

    pub(super) async fn list(
        &self,
        prefix: &str,
        limit: usize,
        after: Option<&str>,
    ) -> Result<Page, StoreError> {
        let first = match after {
            Some(after) if after >= prefix => [self.key(after), vec![0]].concat(),
            _ => self.key(prefix),
        };
        let end = words::end_of(&self.key(prefix));
        let mut page = Page::default();
        let mut pages = Pages::new(limit);
        let mut from = first;
        loop {
            let asked = Range {
                range_end: end.clone(),
                revision: page.revision,
                limit: pages.chunk,
                ..Range::of_key(from.clone())
            };
            let ranged = match self.range(asked).await {
                Err(LineError::TooLong) if pages.halve() => continue,
                ranged => ranged.map_err(failed)?,
            };
            if page.revision == 0 {
                page.revision = ranged.header.revision;
            }
            let items = self.items(ranged.kvs)?;
            let Some(last) = items.last() else {
                return Ok(page);
            };
            from = [self.key(&last.key), vec![0]].concat();
            for item in items {
                page.more = !pages.takes(&item);
                if page.more {
                    return Ok(page);
                }
                page.items.push(item);
            }
            if !ranged.more {
                return Ok(page);
            }
            if pages.is_full() {
                page.more = true;
                return Ok(page);
            }
        }
    }

    pub(super) async fn since(
        &self,
        prefix: &str,
        revision: u64,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let all = || Range {
            range_end: words::end_of(&self.key(prefix)),
            by_revision: true,
            ..Range::of_key(self.key(prefix))
        };
        if revision == u64::MAX || i64::try_from(revision).is_err() {
            let ranged = self.range(Range::of_key(self.key(prefix))).await;
            return Ok(Page {
                revision: ranged.map_err(failed)?.header.revision,
                ..Page::default()
            });
        }
        let mut pages = Pages::new(limit);
        // The whole limit at once: etcd sorts all there is for every answer.
        pages.chunk = limit;
        let ranged = loop {
            let asked = Range {
                min_mod_revision: revision + 1,
                limit: pages.chunk,
                ..all()
            };
            match self.range(asked).await {
                Err(LineError::TooLong) if pages.halve() => {}
                ranged => break ranged.map_err(failed)?,
            }
        };
        let mut page = Page {
            revision: ranged.header.revision,
            ..Page::default()
        };
        let mut items = self.items(ranged.kvs)?;
        if let (true, Some(last)) = (ranged.more, items.last().map(|item| item.revision)) {
            // The rest of the last commit.
            let asked = Range {
                min_mod_revision: last,
                max_mod_revision: last,
                revision: page.revision,
                limit: COMMIT_MAX,
                ..all()
            };
            let commit = self.range(asked).await.map_err(failed)?;
            items.retain(|item| item.revision < last);
            items.extend(self.items(commit.kvs)?);
            page.more = true;
        }
        items.sort_by(|a, b| (a.revision, &a.key).cmp(&(b.revision, &b.key)));
        for item in items {
            let same = page.items.last().map(|last: &Item| last.revision) == Some(item.revision);
            if !pages.takes(&item) && !same {
                page.more = true;
                return Ok(page);
            }
            page.items.push(item);
        }
        // What was asked for may have ended with the last commit.
        if page.more
            && let Some(last) = page.items.last()
        {
            let asked = Range {
                min_mod_revision: last.revision + 1,
                revision: page.revision,
                limit: 1,
                ..all()
            };
            page.more = !self.range(asked).await.map_err(failed)?.kvs.is_empty();
        }
        Ok(page)
    }

    pub(super) async fn commit(
        &self,
        conditions: Vec<Condition>,
        changes: Vec<Change>,
    ) -> Result<Committed, StoreError> {
        let mut txn = Txn::default();
        for Condition { key, revision } in conditions {
            txn.last_put_by(self.key(&key), revision);
        }
        let changed: Vec<_> = (changes.iter())
            .map(|change| family(change.key()).to_owned())
            .collect();
        let mut puts = false;
        for change in changes {
            match change {
                Change::Put { key, value } => {
                    txn.put(self.key(&key), value);
                    puts = true;
                }
                Change::Delete { key } => txn.delete(self.key(&key)),
            }
        }
        let committed = match puts {
            true => self.once(&txn).await,
            // Whoever deletes what is not there takes no revision; a mark would.
            false => (self.0.line.write("/v3/kv/txn", &txn).await).map(|done: TxnDone| match done
                .succeeded
            {
                true => Committed::At(done.header.revision),
                false => Committed::Conflict,
            }),
        };
        let committed = committed.map_err(failed)?;
        if let Committed::At(revision) = committed {
            self.0.changed.send_modify(|last| {
                for family in changed {
                    let last = last.entry(family).or_default();
                    *last = revision.max(*last);
                }
            });
        }
        Ok(committed)
    }

    /// Makes a change at whichever member answers, once.
    async fn once(&self, change: &Txn) -> Result<Committed, LineError> {
        const TXN: &str = "/v3/kv/txn";
        let line = &self.0.line;
        let mut held = self.0.places.hold().await;
        for _ in 0..SURPRISES_MAX {
            let mark = held.mark();
            let (done, is_alone): (TxnDone, bool) =
                line.change(TXN, &held.once(change, &mark)).await?;
            match held.outcome(&done, &mark) {
                Outcome::Made(revision) => return Ok(Committed::At(revision)),
                Outcome::Anew => {}
                Outcome::Conflict => {
                    if !is_alone {
                        // A copy that comes late might find that the condition holds again.
                        let _: (TxnDone, bool) = line.change(TXN, &held.end(&held.mark())).await?;
                    }
                    return Ok(Committed::Conflict);
                }
            }
        }
        let reason = "another control plane has this one's name".to_owned();
        Err(LineError::Answer(reason))
    }

    pub(super) async fn watch(
        &self,
        prefix: &str,
        from: u64,
    ) -> Result<mpsc::Receiver<News>, StoreError> {
        // One place more, for the word that something was missed.
        let (news, watch) = mpsc::channel(WATCH_WAITING_MAX + 1);
        let watching = Watching {
            etcd: self.clone(),
            prefix: prefix.to_owned(),
            from,
            news,
        };
        // The first one is begun here, so that it fails here.
        let stream = watching.begin().await.map_err(failed)?;
        tokio::spawn(watching.run(stream));
        Ok(watch)
    }

    async fn range(&self, range: Range) -> Result<Ranged, LineError> {
        self.0.line.read("/v3/kv/range", &range).await
    }

    fn key(&self, key: &str) -> Vec<u8> {
        [self.0.prefix.as_bytes(), key.as_bytes()].concat()
    }

    fn items(&self, kvs: Vec<KeyValue>) -> Result<Vec<Item>, StoreError> {
        let items = kvs.into_iter().map(|kv| {
            let key = self.own(&kv.key)?;
            Ok(Item {
                key,
                value: kv.value.into(),
                revision: kv.mod_revision,
            })
        });
        items.collect()
    }

    /// The key without what all keys begin with.
    fn own(&self, key: &[u8]) -> Result<String, StoreError> {
        let own = key.strip_prefix(self.0.prefix.as_bytes());
        own.and_then(|own| String::from_utf8(own.to_vec()).ok())
            .ok_or_else(|| StoreError::Failed("etcd: a key is not one of ours".into()))
    }
}

fn failed(error: LineError) -> StoreError {
    StoreError::Failed(format!("etcd: {error}"))
}

/// How much a page still takes, and how much of it is asked for at once. It takes one item always.
struct Pages {
    items: usize,
    bytes: usize,
    taken: usize,
    taken_bytes: usize,
    chunk: usize,
    halvings: usize,
}

impl Pages {
    fn new(limit: usize) -> Self {
        Self {
            items: limit,
            bytes: PAGE_BYTES_MAX,
            taken: 0,
            taken_bytes: 0,
            chunk: limit.min(FIRST_CHUNK),
            halvings: 0,
        }
    }

    fn is_full(&self) -> bool {
        self.items == 0 || self.bytes == 0
    }

    fn takes(&mut self, item: &Item) -> bool {
        let bytes = item.key.len() + item.value.len();
        let takes = self.taken == 0 || (self.items > 0 && bytes <= self.bytes);
        if takes {
            self.items = self.items.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(bytes);
            self.taken += 1;
            self.taken_bytes += bytes;
            // As many as fit if they go on like that.
            let fit = self.bytes / (self.taken_bytes / self.taken).max(1);
            self.chunk = fit.clamp(1, self.items.max(1));
        }
        takes
    }

    /// Asks for half of it. False: it has been done often enough.
    fn halve(&mut self) -> bool {
        self.halvings += 1;
        self.chunk = (self.chunk / 2).max(1);
        self.halvings <= HALVINGS_MAX
    }
}

/// One who watches.
struct Watching {
    etcd: Etcd,
    prefix: String,
    /// Everything up to here was told.
    from: u64,
    news: mpsc::Sender<News>,
}

/// How a stream of events ended.
enum Ended {
    /// It is to be begun again from where it was.
    Renew,
    /// It is, at another member: this one does not tell of what there is.
    Silent(Member),
    /// Its member died, or it could not be begun.
    Failed(LineError),
    /// Something was missed, or nobody listens any more.
    Over,
}

impl Watching {
    async fn begin(&self) -> Result<(Member, Lines<Incoming>), LineError> {
        let key = self.etcd.key(&self.prefix);
        let request = WatchRequest::new(words::end_of(&key), key, self.from + 1);
        self.etcd.0.line.stream("/v3/watch", &request).await
    }

    async fn run(mut self, first: (Member, Lines<Incoming>)) {
        let mut begun = Ok(first);
        loop {
            let ended = match begun {
                Ok(stream) => {
                    let news = self.news.clone();
                    tokio::select! {
                        ended = self.follow(stream) => ended,
                        () = news.closed() => Ended::Over,
                    }
                }
                Err(error) => Ended::Failed(error),
            };
            match ended {
                Ended::Renew => {}
                Ended::Silent(member) => {
                    debug!(
                        prefix = self.prefix,
                        "a watch of etcd is silent, and begun elsewhere"
                    );
                    self.etcd.0.line.doubt(member);
                }
                Ended::Over => return,
                Ended::Failed(LineError::TooLong) => {
                    drop(self.news.try_send(News::Reset));
                    return;
                }
                Ended::Failed(error) => {
                    debug!(%error, prefix = self.prefix, "watch of etcd is begun again");
                    tokio::select! {
                        () = sleep(WATCH_RETRY) => {}
                        () = self.news.closed() => return,
                    }
                }
            }
            begun = self.begin().await;
        }
    }

    async fn follow(&mut self, (member, mut stream): (Member, Lines<Incoming>)) -> Ended {
        let end = Instant::now() + WATCH_LIFE;
        let mut changed = self.etcd.0.changed.subscribe();
        // What the member is known to know, and until when it may be silent of what it should.
        let (mut shown, mut silent_at) = (self.from, None);
        loop {
            let made = changed
                .borrow_and_update()
                .get(family(&self.prefix))
                .copied();
            silent_at = match made.is_some_and(|made| made > shown) {
                true => silent_at.or_else(|| Some(Instant::now() + WATCH_SILENCE)),
                false => None,
            };
            let until = silent_at.map_or(end, |at: Instant| at.min(end));
            let said = tokio::select! {
                said = timeout_at(until, stream.next()) => said,
                // Its sender lives as long as the store.
                Ok(()) = changed.changed() => continue,
            };
            let events: Events = match said {
                Err(_) if Instant::now() < end => return Ended::Silent(member),
                Err(_) => return Ended::Renew,
                Ok(Err(error)) => return Ended::Failed(error),
                Ok(Ok(events)) => events,
            };
            shown = shown.max(events.header.revision);
            // Also where its data were lost, and it counts from the beginning.
            let is_behind = events.created && events.header.revision < self.from;
            if events.compact_revision > 0 || is_behind {
                warn!(
                    prefix = self.prefix,
                    from = self.from,
                    "a watch of etcd missed something"
                );
                drop(self.news.try_send(News::Reset));
                return Ended::Over;
            }
            if events.canceled {
                return Ended::Failed(LineError::Answer(events.cancel_reason));
            }
            for news in self.commits(events) {
                if !self.tell(news) {
                    return Ended::Over;
                }
            }
        }
    }

    /// The events, by commit: etcd tells those of one revision together.
    fn commits(&self, events: Events) -> Vec<News> {
        let mut commits: Vec<(u64, Vec<Change>)> = Vec::new();
        for event in events.events {
            let revision = event.kv.mod_revision;
            // A member may tell of what another told before.
            let Ok(key) = self.etcd.own(&event.kv.key) else {
                continue;
            };
            if revision <= self.from {
                continue;
            }
            let change = match event.is_delete {
                true => Change::delete(key),
                false => Change::put(key, event.kv.value),
            };
            match commits.last_mut() {
                Some((last, changes)) if *last == revision => changes.push(change),
                _ => commits.push((revision, vec![change])),
            }
        }
        let commits = commits.into_iter();
        commits
            .map(|(revision, changes)| News::Commit { revision, changes })
            .collect()
    }

    /// False: this one is not to be told anything any more.
    fn tell(&mut self, news: News) -> bool {
        if let News::Commit { revision, .. } = &news {
            self.from = *revision;
        }
        let is_last_place = self.news.capacity() <= 1;
        let news = if is_last_place { News::Reset } else { news };
        self.news.try_send(news).is_ok() && !is_last_place
    }
}
