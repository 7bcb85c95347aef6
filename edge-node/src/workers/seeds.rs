//! Remembers where the others gossip, so that a node that starts again finds them even when none of
//! the configured seeds is there.

use std::{collections::BTreeSet, io, path::Path, sync::Arc};

use cluster::{membership::Membership, node::NodeId};
use tokio::time::{Duration, sleep};
use tracing::warn;

/// The list's file in the data directory.
const FILE: &str = "seeds.json";
/// Most addresses remembered, beside the configured ones; gossip finds the rest.
const REMEMBERED_MAX: usize = 16;
/// Pause between two looks at the view: members change rarely, load all the time.
const EVERY: Duration = Duration::from_secs(5);

/// The configured seeds and those remembered.
pub fn with_remembered(configured: &[String], data_dir: &Path) -> Vec<String> {
    let mut seeds = configured.to_vec();
    match read(&data_dir.join(FILE)) {
        Ok(remembered) => seeds.extend(remembered.into_iter().take(REMEMBERED_MAX)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => warn!(%error, "remembered seeds cannot be read"),
    }
    seeds
}

/// Keeps the list up to date, until it is dropped.
pub async fn remember(
    me: NodeId,
    membership: Option<Arc<Membership>>,
    data_dir: std::path::PathBuf,
) {
    let Some(membership) = membership else { return };
    let mut known = BTreeSet::new();
    loop {
        sleep(EVERY).await;
        let view = membership.view().borrow().clone();
        let others = view
            .nodes()
            .filter(|node| node.id != me && !node.gossip.is_empty());
        let now: BTreeSet<_> = others
            .map(|node| node.gossip.clone())
            .take(REMEMBERED_MAX)
            .collect();
        // Alone is no news: it is then that the list is needed.
        if now.is_empty() || now == known {
            continue;
        }
        let (path, list) = (data_dir.join(FILE), now.clone());
        match tokio::task::spawn_blocking(move || write(&path, &list)).await {
            Ok(Ok(())) => known = now,
            Ok(Err(error)) => warn!(%error, "seeds could not be kept on disk"),
            Err(_) => return,
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<String>> {
    serde_json::from_slice(&std::fs::read(path)?).map_err(io::Error::from)
}

fn write(path: &Path, seeds: &BTreeSet<String>) -> io::Result<()> {
    super::replace_file(path, &serde_json::to_vec_pretty(seeds)?)
}
