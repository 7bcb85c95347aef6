//! What clients see of an edge, and the checks that an answer has to stand.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use harness::cache_status::{CacheStatus, Source};
use http::Method;
use tokio::time::{Instant, sleep, timeout};

use super::{
    facts::{Due, LONG_AGO, Learns, OBJECTS},
    world::{Answered, Stage, body, now, send},
};

/// The longest that a request may take: a home that falls silent (3 s) on each level, the origin's 5 s, and
/// what this machine is slow.
const BUDGET: Duration = Duration::from_secs(20);
/// An edge that starts listens within this.
const START_MAX: Duration = Duration::from_secs(10);

/// Who asked what.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) edge: &'static str,
    pub(super) n: usize,
}

/// Asks, and checks the answer. An edge that is killed meanwhile owes none, one that starts needs a moment.
pub(super) async fn ask(stage: &Stage, asked: Asked) -> Result<()> {
    let Asked { edge, n } = asked;
    let began = Instant::now();
    loop {
        let mut changes = stage.changes.subscribe();
        let asked_at = now();
        let by_check = [Learns::Nothing, Learns::Started, Learns::All]
            .map(|learns| stage.facts().due(edge, n, asked_at, learns));
        let life = by_check[0].life;
        if !life.is_up {
            return Ok(());
        }
        let at = format!("{edge}:8080");
        let request = send(&at, Method::GET, OBJECTS[n].target, &[], Bytes::new());
        let killed = async {
            let is_other = |_: &u64| stage.facts().lives[edge].count != life.count;
            // The sender lives as long as the stage.
            let _ = changes.wait_for(is_other).await;
        };
        let answered = tokio::select! {
            answered = timeout(BUDGET, request) => answered,
            () = killed => return Ok(()),
        };
        let place = || format!("{} of {edge}", OBJECTS[n].target);
        match answered {
            Err(_) => bail!("{} hangs for {BUDGET:?}", place()),
            Ok(Ok(answer)) => {
                let is_lost = stage.facts().is_lost_behind(edge, asked_at, now());
                let [nothing, started, all] = &by_check;
                let due = match (is_lost, source(&answer)) {
                    (false, _) => all,
                    // Who could not ask anybody meanwhile need not know more than before …
                    (true, Source::Hit) => started,
                    // … and neither need those who have it from others.
                    (true, _) => nothing,
                };
                return check(stage, edge, n, due, answer).with_context(place);
            }
            Ok(Err(error)) => {
                let is_starting = now() < life.since + START_MAX;
                ensure!(is_starting, "{}: {error:#}", place());
                ensure!(began.elapsed() < BUDGET, "{} does not listen", place());
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

fn source(answer: &Answered) -> Source {
    let said = answer.headers.get("cache-status");
    let said = said.and_then(|said| said.to_str().ok()).unwrap_or_default();
    CacheStatus::parse(said).source()
}

fn check(stage: &Stage, edge: &'static str, n: usize, due: &Due, answer: Answered) -> Result<()> {
    let text = |name: &str| {
        answer
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let said = text("cache-status").unwrap_or_default().to_owned();
    ensure!(answer.status == 200, "status {}, {said}", answer.status);
    let version: u64 = text("x-version").context("no version")?.parse()?;
    let status = CacheStatus::parse(&said);
    let mut facts = stage.facts();
    let object = &OBJECTS[n];
    let due_text = format!("{} hard, {} soft", due.hard.version, due.soft.version);
    facts.note(
        now(),
        format_args!(
            "  {edge}: {} is version {version} (due {due_text}), {said}",
            object.target
        ),
    );
    match status.source() {
        Source::Hit => facts.counts.hits += 1,
        Source::Peer(_) | Source::Home(_) => facts.counts.peers += 1,
        Source::Origin => facts.counts.origin += 1,
        Source::Unsaid => {}
    }
    ensure!(
        version <= facts.versions[n],
        "version {version} of the future"
    );
    match answer.body {
        Ok(bytes) => ensure!(
            bytes == body(n, version),
            "{} bytes of no version",
            bytes.len()
        ),
        // What it was a version of is gone. Seed 100658: since before the request, which joined a fetch.
        Err(error) => ensure!(
            facts.versions[n] > 0 && facts.changed[n] >= due.since,
            "cut without a reason: {error:#}"
        ),
    }
    let newest = if due.hard.version >= due.soft.version {
        &due.hard
    } else {
        &due.soft
    };
    facts.counts.bound += u64::from(newest.version > 0);
    facts.counts.limited += u64::from(newest.version > 0 && newest.why.ends_with(LONG_AGO));
    facts.counts.learnt += u64::from(newest.version > 0 && !newest.why.ends_with("acknowledged"));
    ensure!(
        version >= due.hard.version,
        "version {version} after {}: {} is due ({said})",
        due.hard.why,
        due.hard.version
    );
    if version < due.soft.version {
        // From its own store, while it looks whether that still holds; in the end it must have looked.
        let is_stale = object.while_revalidating && status.hit;
        ensure!(
            is_stale,
            "version {version} after the soft {}: {} is due ({said})",
            due.soft.why,
            due.soft.version
        );
        facts.counts.stale += 1;
    }
    Ok(())
}
