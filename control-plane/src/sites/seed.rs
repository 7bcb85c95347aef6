//! At start: the registry as it was left, with the sites of the configuration file in it.

use std::{collections::BTreeMap, sync::Arc};

use cluster::{clock::Clock, node::NodeId, site::Site, wire::SiteAction};
use tracing::info;

use super::{
    OpenError, TRIES_MAX,
    change::{SITES_AT_ONCE_MAX, next_version},
    snapshot::{Head, Record, Records, Snapshot},
    stored::{SET, Stored, changes_of, json, past, too_old},
};
use crate::store::{Change, Committed, Condition, Store};

/// Most bytes of one commit, half of what the store takes: a single site may be half a megabyte, twice.
const BYTES_AT_ONCE_MAX: usize = 512 << 10;

/// The sites to begin with.
pub(super) async fn seeded(
    store: &Store,
    me: &NodeId,
    configured: Vec<Site>,
    version_before: u64,
    clock: &Clock,
) -> Result<Snapshot, OpenError> {
    let configured: BTreeMap<String, Arc<Site>> = configured
        .into_iter()
        .map(|site| (site.name.clone(), Arc::new(site)))
        .collect();
    for _ in 0..TRIES_MAX {
        let (stored, _) = Stored::load(store).await?;
        let floor = stored.head.version.max(version_before);
        let now_ms = clock.unix_ms();
        let fresh = stamped(
            &stored.records,
            &configured,
            me,
            next_version(floor, now_ms / 1000),
            now_ms,
        );
        let before = stored.compiled().await;
        // A start that was killed in the middle has left records of a version that was never made.
        let is_whole = before
            .as_ref()
            .is_ok_and(|before| before.head() == stored.head || is_empty(before, &stored.head))
            && floor == stored.head.version;
        match before {
            Ok(before) if fresh.is_empty() && is_whole => return Ok(before),
            _ => {}
        }
        if let Some(made) = make(store, &stored, fresh, next_version(floor, now_ms / 1000)).await? {
            return Ok(made);
        }
    }
    Err(OpenError::Busy)
}

/// There are no sites, and never were any.
fn is_empty(before: &Snapshot, head: &Head) -> bool {
    before.records().is_empty() && *head == Head::default()
}

/// What the file changes in the registry, by name.
fn stamped(
    known: &Records,
    configured: &BTreeMap<String, Arc<Site>>,
    me: &NodeId,
    version: u64,
    now_ms: u64,
) -> Records {
    let record = |site: Option<Arc<Site>>, action| Record {
        version,
        at_ms: now_ms,
        by: format!("the configuration file of {me}"),
        action,
        in_file_of: site.is_some().then(|| me.to_string()),
        site,
    };
    let mut fresh = Records::new();
    for (name, site) in configured {
        let stands = known
            .get(name)
            .is_some_and(|known| known.site.as_ref() == Some(site) && known.in_file_of.is_some());
        if !stands {
            fresh.insert(name.clone(), record(Some(site.clone()), SiteAction::File));
        }
    }
    let is_own = |known: &Record| known.in_file_of.as_deref() == Some(me.as_str());
    for (name, known) in known {
        if is_own(known) && !configured.contains_key(name) {
            fresh.insert(name.clone(), record(None, SiteAction::Delete));
        }
    }
    fresh
}

/// Writes what is new, some sites at a time, and at last the version; `None`: somebody else was faster.
/// Nobody takes over what has no version yet.
async fn make(
    store: &Store,
    stored: &Stored,
    fresh: Records,
    version: u64,
) -> Result<Option<Snapshot>, OpenError> {
    let mut records = stored.records.clone();
    for (name, record) in &fresh {
        match &record.site {
            Some(_) => drop(records.insert(name.clone(), record.clone())),
            None => drop(records.remove(name)),
        }
    }
    let after = Stored {
        head: Head {
            version,
            hash: String::new(),
        },
        revision: 0,
        records,
    };
    let mut after = after.compiled().await?;
    let condition = || vec![Condition::at(SET, stored.revision)];
    let (mut changes, mut bytes, mut sites) = (Vec::new(), 0, 0);
    for (name, record) in &fresh {
        let mut own = changes_of(name, record);
        // The oldest leaves; there is one more with each start at most.
        let past = past(store, name).await?;
        own.extend(too_old(name, &past).take(1).map(Change::delete));
        let own_bytes: usize = own.iter().map(Change::bytes).sum();
        if sites >= SITES_AT_ONCE_MAX || (sites > 0 && bytes + own_bytes > BYTES_AT_ONCE_MAX) {
            let some = std::mem::take(&mut changes);
            if store.commit(condition(), some).await? == Committed::Conflict {
                return Ok(None);
            }
            (bytes, sites) = (0, 0);
        }
        changes.extend(own);
        (bytes, sites) = (bytes + own_bytes, sites + 1);
    }
    changes.push(Change::put(SET, json(&after.head())));
    match store.commit(condition(), changes).await? {
        Committed::Conflict => Ok(None),
        Committed::At(revision) => {
            after.revision = revision;
            info!(
                version,
                changed = fresh.len(),
                "sites of the configuration file are in the registry"
            );
            Ok(Some(after))
        }
    }
}
