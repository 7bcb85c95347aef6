//! One edge as the shared HTTP cache of the RFCs, row by row: each [`Case`] cites the section that
//! it follows from, and is a handful of exchanges on a path of its own.
//!
//! All cases run against one edge at once, so that their pauses cost nothing. What fails is told
//! together. `TESTS_ROWS=Vary` runs those whose section or name contains the word.
//!
//! The words of a [`row`] are played on a [`stage`]. The rows:
//!
//! - [`storing`]: what is kept, and which of its fields;
//! - [`joining`]: parts of it, and what becomes of them;
//! - [`choosing`]: which stored answer is for whom: keys and `Vary`;
//! - [`aging`]: how long it is fresh;
//! - [`expired`]: what may be done with it afterwards;
//! - [`validating`]: how the origin is asked whether it still holds, and how clients ask;
//! - [`changing`]: methods that make it doubtful;
//! - [`asking`]: what clients ask of the cache;
//! - [`cutting`]: ranges of it;
//! - [`telling`]: what `Cache-Status` says of all this;
//! - [`scenes`]: what is no sequence of exchanges.

mod aging;
mod asking;
mod changing;
mod choosing;
mod cutting;
mod expired;
mod gaps;
mod joining;
mod row;
mod scenes;
mod stage;
mod storing;
mod telling;
mod validating;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use harness::client::Client;
use tokio::{sync::Semaphore, task::JoinSet};

use self::{
    gaps::KNOWN_GAPS,
    row::{Case, Exchange, Forwarding, case, get, head, kept, kept_if, not_kept, request},
    stage::Stage,
};
use crate::alone;

/// How many cases run at once. Most of them sleep; with more, the others would take turns.
const AT_ONCE: usize = 250;
/// Long enough for what is fresh for a second to be stale, whatever part of a second is rounded.
const A_SECOND_PASSES: Duration = Duration::from_millis(2_300);
/// A date long past, as a validator.
const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
/// An earlier and a later one.
const EARLIER: &str = "Sat, 05 Nov 1994 08:49:37 GMT";
const LATER: &str = "Mon, 07 Nov 1994 08:49:37 GMT";

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_does_as_the_rfcs_say() {
    let wanted = std::env::var_os("TESTS_ROWS").unwrap_or_default();
    let wanted = wanted.to_str().expect("a readable word");
    let cases: Vec<Case> = [
        storing::cases(),
        joining::cases(),
        choosing::cases(),
        aging::cases(),
        expired::cases(),
        validating::cases(),
        changing::cases(),
        asking::cases(),
        cutting::cases(),
        telling::cases(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let names: BTreeSet<String> = cases.iter().map(Case::title).collect();
    assert_eq!(names.len(), cases.len(), "a row's name is there once");
    for gap in KNOWN_GAPS {
        assert!(names.contains(*gap), "no row is called {gap:?}");
    }

    let (origin, cluster) = alone().await;
    let (origin, edge) = (Arc::new(origin), cluster.edges[0].url(""));
    let (client, permits) = (Client::new(), Arc::new(Semaphore::new(AT_ONCE)));
    let mut running = JoinSet::new();
    for (number, case) in cases.into_iter().enumerate() {
        if !case.title().contains(wanted) {
            continue;
        }
        let (origin, client, permits) = (origin.clone(), client.clone(), permits.clone());
        let edge = edge.clone();
        running.spawn(async move {
            let _permit = permits.acquire().await.expect("it is never closed");
            let stage = Stage::new(&origin, number, &case);
            let failure = case.run(&stage, &client, &edge).await.err();
            (case.title(), failure)
        });
    }
    let (mut failures, mut gaps) = (Vec::new(), Vec::new());
    let total = running.len();
    for (title, failure) in running.join_all().await {
        let known = KNOWN_GAPS.contains(&title.as_str());
        match failure {
            Some(failure) if known => gaps.push(format!("{title}\n    {failure}")),
            Some(failure) => failures.push(format!("{title}\n    {failure}")),
            None if known => failures.push(format!("{title}\n    holds now: no gap any more")),
            None => {}
        }
    }
    gaps.sort();
    failures.sort();
    println!(
        "{total} rows, {} known gaps\n{}",
        gaps.len(),
        gaps.join("\n")
    );
    assert!(
        failures.is_empty(),
        "{} of {total} rows:\n{}",
        failures.len(),
        failures.join("\n")
    );
}
