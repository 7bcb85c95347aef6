//! What happens in a run, by its seed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster::{
    purge::{Position, Scope},
    wire::{PURGES, PurgePage, PurgeRequest, PurgeState, PurgeStatus, PurgeWait},
};
use http::Method;
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    ask::{Asked, ask},
    facts::{LIMIT, OBJECTS, ends},
    world::{CONTROL, Careful, Stage, now, send, told},
};

/// Things that happen in a run.
const ACTIONS: usize = 45;
/// Longest pause between two of them.
const PAUSE_MAX_MS: u64 = 250;
/// Ways that are cut at once, at most.
const CUTS_MAX: usize = 3;
/// Requests, and purges, under way at once.
const TASKS_MAX: usize = 12;
/// How long a control plane may take to answer a purge.
const PURGE_MAX: Duration = Duration::from_secs(12);
/// How often it is looked who is late, and how long after another.
const LATE_LOOKS: usize = 3;
const LATE_LOOK: Duration = Duration::from_secs(1);
/// In this time all is well again.
const HEALING_MAX: Duration = Duration::from_secs(60);

pub(super) struct Story {
    stage: Stage,
    edges: Vec<&'static str>,
    random: StdRng,
    /// Requests and purges under way.
    tasks: JoinSet<Result<()>>,
}

impl Story {
    pub(super) fn new(stage: Stage, edges: Vec<&'static str>, random: StdRng) -> Self {
        let tasks = JoinSet::new();
        Self {
            stage,
            edges,
            random,
            tasks,
        }
    }

    pub(super) async fn tell(mut self) -> Result<()> {
        self.begin().await?;
        for _ in 0..ACTIONS {
            self.act().await?;
            let pause = self.random.random_range(0..=PAUSE_MAX_MS);
            sleep(Duration::from_millis(pause)).await;
            while self.tasks.len() >= TASKS_MAX {
                self.one_ends().await?;
            }
            while let Some(ended) = self.tasks.try_join_next() {
                ended??;
            }
        }
        self.end().await
    }

    /// Nothing happens but that two edges hear of nobody but each other.
    pub(super) async fn tell_of_two_cut_off_together(mut self) -> Result<()> {
        self.begin().await?;
        while !self.tasks.is_empty() {
            self.one_ends().await?;
        }
        self.purged_while_cut_off_together().await?;
        self.end().await
    }

    async fn one_ends(&mut self) -> Result<()> {
        if let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// Everybody is there, and has something.
    async fn begin(&mut self) -> Result<()> {
        self.ready().await?;
        for n in 0..OBJECTS.len() {
            self.ask(self.edges[n % self.edges.len()], n);
        }
        Ok(())
    }

    /// Waits until all say that they are ready.
    async fn ready(&self) -> Result<()> {
        let began = Instant::now();
        let edges = self.edges.iter().map(|edge| format!("{edge}:9090"));
        for at in edges.chain([CONTROL.to_owned()]) {
            while told(&at, "/readyz").await.is_err() {
                ensure!(began.elapsed() < HEALING_MAX, "{at} is not ready");
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    async fn act(&mut self) -> Result<()> {
        match self.random.random_range(0..100) {
            0..40 => {
                for _ in 0..self.random.random_range(1..=3) {
                    let (edge, n) = (self.an_edge(), self.object());
                    self.ask(edge, n);
                }
            }
            40..62 => {
                let (scopes, soft) = self.scopes();
                self.purge(scopes, soft);
            }
            62..70 => self.cut(),
            70..78 => self.heal(),
            78..83 => self.kill(),
            83..88 => self.start(),
            88..92 => self.purged_while_alone().await?,
            92..96 => self.purged_while_filling().await?,
            96..98 => self.purged_while_dead().await?,
            98 => self.purged_while_cut_off_together().await?,
            _ => self.lose_the_log().await?,
        }
        Ok(())
    }

    fn an_edge(&mut self) -> &'static str {
        self.edges
            .choose(&mut self.random)
            .expect("there are edges")
    }

    fn object(&mut self) -> usize {
        self.random.random_range(0..OBJECTS.len())
    }

    fn scopes(&mut self) -> (Vec<Scope>, bool) {
        let count = if self.random.random_bool(0.2) { 2 } else { 1 };
        let scopes = (0..count).map(|_| {
            let object = &OBJECTS[self.random.random_range(0..OBJECTS.len())];
            let host = if self.random.random_bool(0.5) {
                "//site.test"
            } else {
                ""
            };
            match self.random.random_range(0..10) {
                0..4 => Scope::Url(format!("{host}{}", object.target)),
                4..6 => Scope::Prefix(format!("{host}{}", &object.target[..2])),
                6..9 => {
                    let tags: Vec<_> = object.tags.split(' ').collect();
                    let tag = *tags.choose(&mut self.random).expect("each has two");
                    Scope::Tag(tag.to_owned())
                }
                _ => Scope::All,
            }
        });
        (scopes.collect(), self.random.random_bool(0.25))
    }

    fn ask(&mut self, edge: &'static str, n: usize) {
        let stage = self.stage.clone();
        self.tasks
            .spawn(async move { ask(&stage, Asked { edge, n }).await });
    }

    /// The origin has something new from now on, and it is purged.
    fn purge(&mut self, scopes: Vec<Scope>, soft: bool) {
        self.purge_waiting(scopes, soft, PurgeWait::All);
    }

    fn purge_waiting(&mut self, scopes: Vec<Scope>, soft: bool, wait: PurgeWait) {
        let (stage, edges) = (self.stage.clone(), self.edges.clone());
        self.tasks
            .spawn(async move { purge(&stage, &edges, scopes, soft, wait).await.map(drop) });
    }

    fn cut(&mut self) {
        let one = self.an_edge();
        let other = match self.random.random_bool(0.5) {
            true => "control",
            false => self.an_edge(),
        };
        let cut = self.stage.facts().cut();
        if one != other && cut.len() < CUTS_MAX && !cut.contains(&(one, other)) {
            way(&self.stage, one, other, true);
        }
    }

    fn heal(&mut self) {
        let cut = self.stage.facts().cut();
        if let Some((one, other)) = cut.choose(&mut self.random) {
            way(&self.stage, one, other, false);
        }
    }

    fn dead(&self) -> Vec<&'static str> {
        let facts = self.stage.facts();
        let hosts = self.edges.iter().copied().chain(["control"]);
        hosts.filter(|host| !facts.is_up(host)).collect()
    }

    fn kill(&mut self) {
        let host = match self.random.random_bool(0.3) {
            true => "control",
            false => self.an_edge(),
        };
        if self.dead().is_empty() {
            self.stage.wishes.lock().unwrap().push((host, false));
        }
    }

    fn start(&mut self) {
        for host in self.dead() {
            self.stage.wishes.lock().unwrap().push((host, true));
        }
    }

    /// Waits until a host is as it was wished.
    async fn until(&self, host: &'static str, is_up: bool) {
        let mut changes = self.stage.changes.subscribe();
        let is_so = |_: &u64| self.stage.facts().is_up(host) == is_up;
        // The sender lives as long as the stage.
        let _ = changes.wait_for(is_so).await;
    }

    /// An edge that hears of nobody while something is purged, and is asked as soon as it does again.
    async fn purged_while_alone(&mut self) -> Result<()> {
        let edge = self.an_edge();
        let n = self.object();
        let others: Vec<_> = self
            .edges
            .iter()
            .copied()
            .chain(["control"])
            .filter(|h| *h != edge)
            .collect();
        let before = self.stage.facts().cut();
        let is_cut = |other: &str| {
            before
                .iter()
                .any(|way| *way == (edge, other) || *way == (other, edge))
        };
        self.ask(edge, n);
        let from = now();
        for other in others.iter().filter(|other| !is_cut(other)) {
            way(&self.stage, edge, other, true);
        }
        sleep(Duration::from_millis(500)).await;
        self.purge_waiting(
            vec![Scope::Url(OBJECTS[n].target.to_owned())],
            false,
            PurgeWait::None,
        );
        let rest = self.random.random_range(1_000..3_500);
        sleep(Duration::from_millis(rest)).await;
        for other in &others {
            way(&self.stage, edge, other, false);
        }
        self.stage.facts().was_alone(edge, from, now());
        for _ in 0..3 {
            let (stage, careful) = (self.stage.clone(), Careful::new(&self.stage));
            self.tasks.spawn(async move {
                let asked = ask(&stage, Asked { edge, n }).await;
                drop(careful);
                asked
            });
        }
        Ok(())
    }

    /// Edges that hear of each other only while something is purged: for some time each may answer with what it
    /// has, as if it were alone, and for no longer.
    async fn purged_while_cut_off_together(&mut self) -> Result<()> {
        let n = self.object();
        let together = self.edges[..2].to_vec();
        let before = self.stage.facts().cut();
        let outside = self.edges[2..].iter().copied().chain(["control"]);
        let ways: Vec<_> = outside
            .flat_map(|other| together.iter().map(move |edge| (*edge, other)))
            .filter(|(one, other)| !before.iter().any(|way| *way == ends(one, other)))
            .collect();
        for edge in &together {
            self.ask(edge, n);
        }
        sleep(Duration::from_millis(self.random.random_range(0..500))).await;
        for (one, other) in &ways {
            way(&self.stage, one, other, true);
        }
        self.purge_waiting(
            vec![Scope::Url(OBJECTS[n].target.to_owned())],
            false,
            PurgeWait::None,
        );
        // Every edge is asked a few times while it may, and soon after that.
        for _ in 0..4 {
            sleep(LIMIT / 4 + Duration::from_millis(150)).await;
            for edge in &together {
                self.ask(edge, n);
            }
        }
        for (one, other) in &ways {
            way(&self.stage, one, other, false);
        }
        Ok(())
    }

    /// What the origin is about to answer with is purged before it does.
    async fn purged_while_filling(&mut self) -> Result<()> {
        let n = self.object();
        let scope = Scope::Url(OBJECTS[n].target.to_owned());
        // It is fetched anew …
        purge(
            &self.stage,
            &self.edges,
            vec![scope.clone()],
            false,
            PurgeWait::All,
        )
        .await?;
        self.stage.hold(
            n,
            Duration::from_millis(self.random.random_range(500..1_500)),
        );
        let (one, other) = (self.an_edge(), self.an_edge());
        self.ask(one, n);
        self.ask(other, n);
        sleep(Duration::from_millis(self.random.random_range(50..300))).await;
        // … and is old before it is there.
        let soft = self.random.random_bool(0.3);
        purge(&self.stage, &self.edges, vec![scope], soft, PurgeWait::All).await?;
        for edge in self.edges.clone() {
            self.ask(edge, n);
        }
        Ok(())
    }

    /// An edge that is dead while something is purged, and is asked as soon as it listens again.
    async fn purged_while_dead(&mut self) -> Result<()> {
        let (edge, n) = (self.an_edge(), self.object());
        let dead = self.dead().first().copied().unwrap_or(edge);
        self.stage.wishes.lock().unwrap().push((dead, false));
        self.until(dead, false).await;
        let scope = Scope::Url(OBJECTS[n].target.to_owned());
        purge(
            &self.stage,
            &self.edges,
            vec![scope],
            self.random.random_bool(0.3),
            PurgeWait::All,
        )
        .await?;
        self.start();
        self.until(dead, true).await;
        for _ in 0..3 {
            self.ask(edge, n);
            sleep(Duration::from_millis(self.random.random_range(0..200))).await;
        }
        Ok(())
    }

    /// The control plane begins anew with nothing.
    async fn lose_the_log(&mut self) -> Result<()> {
        if self.dead().is_empty() {
            self.stage.wishes.lock().unwrap().push(("control", false));
            self.until("control", false).await;
            let dir = self.stage.dir.join("control");
            // Threads of the life before may still be writing.
            let mut tries = 0;
            while let Err(error) = std::fs::remove_dir_all(&dir) {
                tries += 1;
                ensure!(tries < 100, "{}: {error}", dir.display());
                sleep(Duration::from_millis(50)).await;
            }
            self.stage.facts().log_lost(now());
            self.start();
            self.until("control", true).await;
        }
        Ok(())
    }

    /// All is well again: everybody knows the same, and has what the origin has.
    async fn end(&mut self) -> Result<()> {
        // What was wished last has happened by then.
        sleep(Duration::from_millis(50)).await;
        let cut = self.stage.facts().cut();
        for (one, other) in cut {
            way(&self.stage, one, other, false);
        }
        self.start();
        for host in self.edges.clone() {
            self.until(host, true).await;
        }
        self.until("control", true).await;
        while !self.tasks.is_empty() {
            self.one_ends().await?;
        }
        self.ready().await?;
        // What the log does not have, or not any more, is purged again. Of a log that was lost, some know
        // what nobody can tell the others: then all goes.
        let again = self.stage.facts().unknown(&self.edges);
        let is_lost = self.stage.facts().counts.logs_lost > 0;
        let scopes: Vec<_> = match is_lost {
            true => vec![Scope::All],
            false => {
                let target = |n: usize| OBJECTS[n].target.to_owned();
                again.into_iter().map(|n| Scope::Url(target(n))).collect()
            }
        };
        if !scopes.is_empty() {
            let is_taken = purge(&self.stage, &self.edges, scopes, false, PurgeWait::All).await?;
            ensure!(is_taken, "the control plane takes no purge");
        }
        self.same_head().await?;
        // What may be used stale is validated by the first that asks.
        for pause in [Duration::from_secs(3), Duration::ZERO] {
            for edge in self.edges.clone() {
                for n in 0..OBJECTS.len() {
                    self.ask(edge, n);
                }
            }
            while !self.tasks.is_empty() {
                self.one_ends().await?;
            }
            sleep(pause).await;
            self.stage.facts().all_is_due();
        }
        Ok(())
    }

    /// Waits until all edges have what the log has.
    async fn same_head(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            let page = told(CONTROL, &format!("{PURGES}?after=0")).await?;
            let page: PurgePage = serde_json::from_str(&page)?;
            let head = page.head;
            let mut behind = Vec::new();
            for edge in &self.edges {
                let applied = applied(edge).await;
                if applied.as_ref().ok() != Some(&head) {
                    behind.push(format!("{edge} at {applied:?}"));
                }
            }
            if behind.is_empty() {
                self.stage.facts().head = Position {
                    log: page.log,
                    seq: head,
                };
                return Ok(());
            }
            ensure!(
                began.elapsed() < HEALING_MAX,
                "the log is at {head}, {behind:?}"
            );
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The number of the last purge that an edge says it has.
async fn applied(edge: &str) -> Result<u64> {
    let metrics = told(&format!("{edge}:9090"), "/metrics").await?;
    let mut lines = metrics.lines();
    let line = lines.find_map(|line| line.strip_prefix("edge_purge_seq_applied "));
    Ok(line.context("no such metric")?.parse()?)
}

fn way(stage: &Stage, one: &'static str, other: &'static str, is_cut: bool) {
    match is_cut {
        true => turmoil::partition(one, other),
        false => turmoil::repair(one, other),
    }
    stage.facts().way(one, other, is_cut, now());
}

/// The origin has something new from now on, and it is purged; whether the control plane says so.
async fn purge(
    stage: &Stage,
    edges: &[&'static str],
    scopes: Vec<Scope>,
    soft: bool,
    wait: PurgeWait,
) -> Result<bool> {
    let mut request = PurgeRequest {
        site: "sim".to_owned(),
        soft,
        wait,
        ..PurgeRequest::default()
    };
    for scope in &scopes {
        match scope.clone() {
            Scope::Url(url) => request.urls.push(url),
            Scope::Prefix(prefix) => request.prefixes.push(prefix),
            Scope::Tag(tag) => request.tags.push(tag),
            Scope::All => request.all = true,
        }
    }
    let covers = stage.facts().edit(&scopes, now());
    let logs_lost = stage.facts().counts.logs_lost;
    stage.note(format_args!(
        "purge of {scopes:?}, soft {soft}: versions {covers:?}"
    ));
    let body = serde_json::to_vec(&request)?;
    let sent = send(CONTROL, Method::POST, PURGES, &[], body.into());
    let answer = match timeout(PURGE_MAX, sent).await {
        Ok(Ok(answer)) if answer.status == 200 => answer.body.ok(),
        _ => None,
    };
    let Some(answer) = answer else {
        let mut facts = stage.facts();
        facts.unanswered(covers);
        facts.note(now(), "a purge is not answered");
        return Ok(false);
    };
    let mut status: PurgeStatus = serde_json::from_slice(&answer)?;
    let taken = stage
        .facts()
        .took(status.seq, covers, soft, logs_lost, now());
    for _ in 0..LATE_LOOKS {
        receipts(stage, edges, taken, &status)?;
        if status.complete {
            break;
        }
        // Those that are late may still acknowledge it.
        sleep(LATE_LOOK).await;
        let path = format!("{PURGES}/{}", status.seq);
        let Ok(later) = told(CONTROL, &path).await else {
            break;
        };
        let later: PurgeStatus = serde_json::from_str(&later)?;
        if later.log != status.log {
            break;
        }
        status = later;
    }
    Ok(true)
}

/// Takes in who has acknowledged a purge.
fn receipts(
    stage: &Stage,
    edges: &[&'static str],
    taken: usize,
    status: &PurgeStatus,
) -> Result<()> {
    let mut facts = stage.facts();
    let mut text = format!("purge {}:", status.seq);
    for receipt in &status.nodes {
        let edge = edges.iter().find(|edge| **edge == receipt.node.as_str());
        let edge = edge.context("a receipt of nobody")?;
        match receipt.state {
            PurgeState::Acknowledged => facts.acknowledged(taken, edge),
            _ => facts.counts.late += 1,
        }
        text += &format!(" {edge} {:?}", receipt.state);
    }
    facts.note(now(), text);
    Ok(())
}
