//! The site registry: what the edges serve, its version, and how it came to be so.
//!
//! The store has, for each site that is there, `sites/now/NAME`; for each version that it had lately,
//! `sites/was/NAME/VERSION`; and `sites/set`, the version and hash of all of them together. Every change is a
//! commit on the condition that `sites/set` is as it was when the change was judged, so what is judged is
//! what is made, whichever control planes make changes at the same time; and every one of them follows the
//! store.
//!
//! **Invariant:** the version never goes backwards and never names two different contents, because
//! an edge keeps what it has until it hears of another. A new version is at least the present
//! Unix time in seconds, so that this holds even when the store was lost.
//!
//! **Invariant:** nothing is handed out, and nothing gets into the store, that was not checked as a whole.
//!
//! Sites of the configuration file win: at start they are put into the registry, and nobody else changes
//! them. One that has left the file is deleted.

pub mod change;
pub mod diff;
mod seed;
pub mod snapshot;
pub mod stored;

use std::{sync::Arc, time::Duration};

use cluster::{
    clock::Clock,
    node::NodeId,
    site::{BadSite, Site, outside::PrivateOrigins},
    wire::{SiteAction, SiteChanged, SiteHistory},
};
use tokio::{
    sync::{Semaphore, watch},
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tracing::{error, info, warn};

pub use self::change::{Expected, Refusal, Wish};
use self::{
    change::{Asked, Surroundings, plan},
    snapshot::{Record, Snapshot},
    stored::{SET, Stored, changes_of, json, past, too_old, was},
};
use crate::store::{COMMIT_BYTES_MAX, Change, Committed, Condition, Item, News, Store, StoreError};

/// How often a change is judged anew when another came in between.
const TRIES_MAX: usize = 64;
/// How long an answer waits until this control plane itself sees what it has changed.
const SEEN_WITHIN: Duration = Duration::from_secs(5);
/// Pause after the store failed while it was followed.
const RETRY: Duration = Duration::from_secs(1);

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// It may not be.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// That version is not remembered.
    #[error("site {site:?} has no version {version}; GET /v1/sites/{site}/history lists them")]
    NoVersion {
        /// The site.
        site: String,
        /// The version.
        version: u64,
    },
    /// Others changed sites all the time, or made them what this control plane cannot follow.
    #[error(
        "others change sites at this moment, or this control plane cannot follow them; try again"
    )]
    Busy,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why the registry cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file's sites cannot be meant beside those of the registry.
    #[error("{0}")]
    Site(#[from] BadSite),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the store has of a site cannot be read.
    #[error("{key} in the store cannot be read: {reason}")]
    Damaged {
        /// Where.
        key: String,
        /// Why.
        reason: String,
    },
    /// Another control plane changed sites all the time.
    #[error("another control plane changes sites at this moment; start again")]
    Busy,
}

/// The site registry. Cheap to clone; all clones are the same.
#[derive(Clone, Debug)]
pub struct Sites {
    store: Store,
    snapshots: Arc<watch::Sender<Arc<Snapshot>>>,
    private: PrivateOrigins,
    clock: Clock,
    /// Whose change is judged and made; others, of this control plane, wait in line.
    turn: Arc<Semaphore>,
}

/// What [`Sites::open`] needs.
#[derive(Debug)]
pub struct SitesParts {
    /// Where it is kept.
    pub store: Store,
    /// This control plane.
    pub me: NodeId,
    /// The sites of its configuration file.
    pub configured: Vec<Site>,
    /// Private origins that may be named over the API.
    pub private: PrivateOrigins,
    /// A version that was handed out before there was a store.
    pub version_before: u64,
    /// The wall clock.
    pub clock: Clock,
}

impl Sites {
    /// Reads the registry and puts the configured sites into it. Nothing that stands already takes a new
    /// version.
    ///
    /// # Errors
    ///
    /// The sites contradict each other, or the store failed.
    pub async fn open(parts: SitesParts) -> Result<Self, OpenError> {
        let SitesParts {
            store,
            me,
            configured,
            private,
            version_before,
            clock,
        } = parts;
        let snapshot = seed::seeded(&store, &me, configured, version_before, &clock).await?;
        info!(
            version = snapshot.version(),
            sites = snapshot.map().sites().len(),
            "sites are there"
        );
        Ok(Self {
            store,
            snapshots: Arc::new(watch::Sender::new(Arc::new(snapshot))),
            private,
            clock,
            turn: Arc::new(Semaphore::new(1)),
        })
    }

    /// All sites of the newest version.
    pub fn now(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// Follows the newest version.
    pub fn follow(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }

    /// Takes over what this control plane, or another one on the same store, changes; until it is dropped.
    pub async fn keep(self) {
        loop {
            if let Err(failed) = self.keep_until_reset().await {
                error!(error = %failed, "the sites in the store cannot be followed, going on with what is known");
                sleep(RETRY).await;
            }
        }
    }

    async fn keep_until_reset(&self) -> Result<(), OpenError> {
        let (mut stored, mut watch) = Stored::load_and_watch(&self.store).await?;
        loop {
            self.take_over(&stored).await;
            loop {
                match watch.next().await {
                    News::Reset => return Ok(()),
                    News::Commit { revision, changes } => {
                        if stored.apply(revision, changes)? {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Hands out what is in the store, if it can be meant.
    async fn take_over(&self, stored: &Stored) {
        if stored.head.version == self.now().version() {
            let revision = stored.revision;
            self.snapshots.send_modify(|now| {
                let mut same = Snapshot::clone(now);
                same.revision = revision;
                *now = Arc::new(same);
            });
            return;
        }
        match stored.compiled().await {
            Ok(snapshot) => {
                let (version, count) = (snapshot.version(), snapshot.map().sites().len());
                self.snapshots.send_replace(Arc::new(snapshot));
                info!(version, sites = count, "sites have a new version");
            }
            // Another version of this program may know more than this one.
            Err(error) => {
                warn!(%error, version = stored.head.version, "sites in the store refused")
            }
        }
    }

    /// Makes a change, and says what it was. `nodes` are the base URLs of the edges.
    ///
    /// # Errors
    ///
    /// It is not made.
    pub async fn change(
        &self,
        wish: Wish,
        expected: Expected,
        nodes: Vec<String>,
    ) -> Result<SiteChanged, ChangeError> {
        only(self.change_all(vec![(wish, expected)], nodes).await?)
    }

    /// Makes several changes in one commit, and says what they were, in the same order.
    ///
    /// # Errors
    ///
    /// None of them is made.
    pub async fn change_all(
        &self,
        asked: Vec<Asked>,
        nodes: Vec<String>,
    ) -> Result<Vec<SiteChanged>, ChangeError> {
        let asked: Arc<[Asked]> = asked.into();
        let _turn = self.turn.acquire().await.map_err(|_| ChangeError::Busy)?;
        for _ in 0..TRIES_MAX {
            let before = self.now();
            let (planned, answers) = self.judged(&before, &asked, &nodes).await?;
            if planned.fresh.is_empty() {
                return Ok(answers);
            }
            // Of many sites the oldest version leaves only: there is one more with each change.
            let leave_max = match planned.fresh.len() {
                1 => usize::MAX,
                _ => 1,
            };
            let mut changes = Vec::new();
            for (name, record) in &planned.fresh {
                changes.extend(changes_of(name, record));
                let past = past(&self.store, name).await?;
                let leave = too_old(name, &past).take(leave_max);
                changes.extend(leave.map(Change::delete));
            }
            changes.push(Change::put(SET, json(&planned.after.head())));
            let bytes = SET.len() + changes.iter().map(Change::bytes).sum::<usize>();
            if bytes > COMMIT_BYTES_MAX {
                return Err(Refusal::TooLargeAtOnce(bytes).into());
            }
            let unchanged = Condition::at(SET, before.revision);
            match self.store.commit(vec![unchanged], changes).await? {
                Committed::At(_) => {
                    let version = planned.after.version();
                    for (site, record) in &planned.fresh {
                        info!(site, version, by = record.by, action = ?record.action, "site changed");
                    }
                    // If it is not seen at once, it is made all the same.
                    self.sees(|now| now.version() >= version).await;
                    return Ok(answers);
                }
                Committed::Conflict => {
                    if !self.sees(|now| now.revision > before.revision).await {
                        break;
                    }
                }
            }
        }
        Err(ChangeError::Busy)
    }

    /// What a change would be; changes nothing.
    ///
    /// # Errors
    ///
    /// It would not be made.
    pub async fn check(
        &self,
        wish: Wish,
        expected: Expected,
        nodes: Vec<String>,
    ) -> Result<SiteChanged, ChangeError> {
        only(self.check_all(vec![(wish, expected)], nodes).await?)
    }

    /// What several changes in one commit would be; changes nothing.
    ///
    /// # Errors
    ///
    /// They would not be made.
    pub async fn check_all(
        &self,
        asked: Vec<Asked>,
        nodes: Vec<String>,
    ) -> Result<Vec<SiteChanged>, ChangeError> {
        let before = self.now();
        let (_, mut answers) = self.judged(&before, &asked.into(), &nodes).await?;
        for answer in &mut answers {
            let known = before.record(&answer.site);
            answer.version = known.map_or(0, |known| known.version);
            answer.set_version = before.version();
        }
        Ok(answers)
    }

    async fn judged(
        &self,
        before: &Arc<Snapshot>,
        asked: &Arc<[Asked]>,
        nodes: &[String],
    ) -> Result<(change::Planned, Vec<SiteChanged>), ChangeError> {
        let around = Surroundings {
            private: self.private.clone(),
            nodes: nodes.to_vec(),
        };
        let (before, asked) = (before.clone(), asked.clone());
        let now_ms = self.clock.unix_ms();
        // Thousands of sites take longer than a runtime thread may be kept.
        let judging = spawn_blocking(move || {
            let planned = plan(&before, &asked, &around, now_ms)?;
            let answer = |(wish, _): &Asked| SiteChanged {
                version: planned.after.record(&wish.name).map_or_else(
                    // It is gone, or never was.
                    || planned.after.version(),
                    |record| record.version,
                ),
                set_version: planned.after.version(),
                changed: planned.fresh.contains_key(&wish.name),
                diff: diff::between(before.site(&wish.name), wish.site.as_ref()),
                site: wish.name.clone(),
            };
            let answers = asked.iter().map(answer).collect();
            Ok((planned, answers))
        });
        let judged: Result<_, Refusal> = judging
            .await
            .map_err(|error| StoreError::Failed(error.to_string()))?;
        Ok(judged?)
    }

    /// Has a site be again what it was at `version`.
    ///
    /// # Errors
    ///
    /// That version is not remembered, or cannot be any more.
    pub async fn roll_back(
        &self,
        name: &str,
        version: u64,
        by: String,
        expected: Expected,
        nodes: Vec<String>,
    ) -> Result<SiteChanged, ChangeError> {
        let site = self.former(name, version).await?;
        let wish = Wish {
            name: name.to_owned(),
            site: Some(site),
            action: SiteAction::Rollback { to: version },
            by,
        };
        self.change(wish, expected, nodes).await
    }

    /// What a site was at `version`.
    ///
    /// # Errors
    ///
    /// It is not remembered.
    pub async fn former(&self, name: &str, version: u64) -> Result<Site, ChangeError> {
        let unknown = || ChangeError::NoVersion {
            site: name.to_owned(),
            version,
        };
        let item = self.store.get(&was(name, version)).await?;
        let record: Record = item
            .and_then(|item| serde_json::from_slice(&item.value).ok())
            .ok_or_else(unknown)?;
        record.site.as_deref().cloned().ok_or_else(unknown)
    }

    /// The versions of a site that are remembered; `None`: there never was one.
    ///
    /// # Errors
    ///
    /// The store failed.
    pub async fn history(&self, name: &str) -> Result<Option<SiteHistory>, ChangeError> {
        let past = past(&self.store, name).await?;
        let now = self.now();
        let known = now.record(name);
        let current = known.map(|record| record.version);
        let read = |item: &Item| serde_json::from_slice::<Record>(&item.value).ok();
        let versions: Vec<_> = past
            .iter()
            .rev()
            .filter_map(|item| Some(read(item)?.told(current)))
            .collect();
        Ok((!versions.is_empty()).then(|| SiteHistory {
            site: name.to_owned(),
            in_file_of: known.and_then(|record| record.in_file_of.clone()),
            versions,
        }))
    }

    /// Waits a moment for this control plane to see what is in the store; whether it does.
    async fn sees(&self, enough: impl Fn(&Snapshot) -> bool) -> bool {
        let mut snapshots = self.follow();
        let seen = timeout(SEEN_WITHIN, snapshots.wait_for(|now| enough(now))).await;
        seen.is_ok()
    }
}

/// The answer to the one change that was asked for.
fn only(mut changed: Vec<SiteChanged>) -> Result<SiteChanged, ChangeError> {
    changed.pop().ok_or(ChangeError::Busy)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod wishes;
