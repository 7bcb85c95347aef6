//! Purges in simulated time: real edges with real directories fill their caches, fetch from each other, fall
//! silent, are killed and come back, and so does the control plane, while the origin changes what it has and
//! has it purged. What an edge has acknowledged it never answers with again; what it missed it does not
//! answer with either, as soon as it can know; when all is well again, all know the same.
//!
//! `SIM_SEED` replays one run, `SIM_RUNS` makes more of them, from seed `SIM_FROM` on.

mod ask;
mod facts;
mod story;
mod world;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use cluster::purge::{Position, table::Said};
use edge_node::purges::journal::Journal;
use harness::{cluster::write_secret, simulation::Simulation};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use self::{
    facts::{Counts, Facts},
    story::Story,
    world::{EdgePlan, Stage},
};

/// Runs where `SIM_RUNS` does not say.
const RUNS: u64 = 3;
/// Simulated time of one step.
const TICK: Duration = Duration::from_millis(5);
/// The slowest message: a check on demand (300 ms) is two round trips and the disk.
const LATENCY_MAX: Duration = Duration::from_millis(30);
/// Real time per step: threads that write purges down, and read from disk, have work.
const PACE: Duration = Duration::from_micros(100);
/// The same while a deadline of 300 ms must be kept that a thread has a part in.
const PACE_CAREFUL: Duration = Duration::from_millis(1);
/// What tables are read with.
const SCOPES_MAX: usize = 1_000_000;
static EDGES: [&str; 4] = ["edge-1", "edge-2", "edge-3", "edge-4"];

/// What happens in a run.
#[derive(Clone, Copy)]
enum Tale {
    /// Whatever the seed says.
    Any,
    /// Two edges hear of nobody but each other.
    Together,
}

/// One run.
fn run(seed: u64, tale: Tale) -> Result<Counts> {
    let dir = data_dir()?;
    let secret = dir.path().join("secret");
    write_secret(&secret)?;
    let mut random = StdRng::seed_from_u64(seed);
    let edges = &EDGES[..random.random_range(3..=EDGES.len())];
    let shield = ["none", "region", "cluster"][random.random_range(0..3)];
    let regions = random.random_range(1..=2);
    let mut simulation = Simulation::of(seed, TICK, TICK..=LATENCY_MAX);
    let stage = Stage::new(dir.path(), shield);
    stage.note(format_args!(
        "{} edges in {regions} regions, shield {shield}",
        edges.len()
    ));
    let at_origin = stage.clone();
    simulation
        .sim
        .host("origin", move || world::origin(at_origin.clone(), seed));
    let (at_control, proof) = (stage.clone(), secret.clone());
    simulation.sim.host("control", move || {
        let control = world::control(at_control.clone(), proof.clone());
        async move { Ok(control.await?) }
    });
    for (n, &name) in edges.iter().enumerate() {
        let plan = Arc::new(EdgePlan {
            name,
            region: ["eu", "us"][n % regions],
            secret: secret.clone(),
        });
        let stage = stage.clone();
        simulation.sim.host(name, move || {
            let edge = world::edge(plan.clone(), stage.clone());
            async move { Ok(edge.await?) }
        });
    }
    for &host in edges.iter().chain(&["control"]) {
        stage.facts().lives(host, true, Duration::ZERO);
    }
    let story = Story::new(stage.clone(), edges.to_vec(), random);
    simulation.sim.client("client", async move {
        let told = match tale {
            Tale::Any => story.tell().await,
            Tale::Together => story.tell_of_two_cut_off_together().await,
        };
        Ok(told.map_err(|error| anyhow!("{error:#}"))?)
    });
    let told = drive(&mut simulation, &stage).and_then(|()| {
        // As if all had been killed at once.
        drop(simulation);
        agree(dir.path(), edges, stage.facts().head)
    });
    let facts = stage.facts();
    told.with_context(|| traced(seed, &facts))?;
    Ok(facts.counts)
}

/// Where nothing has to wait for a disk, if there is such a place.
fn data_dir() -> Result<tempfile::TempDir> {
    let memory = PathBuf::from("/dev/shm");
    let dir = match memory.is_dir() {
        true => tempfile::tempdir_in(memory)?,
        false => tempfile::tempdir()?,
    };
    Ok(dir)
}

/// Steps until the story is told.
fn drive(simulation: &mut Simulation, stage: &Stage) -> Result<()> {
    loop {
        let wishes = std::mem::take(&mut *stage.wishes.lock().unwrap());
        for (host, up) in wishes {
            match up {
                _ if stage.facts().is_up(host) == up => continue,
                true => simulation.sim.bounce(host),
                false => simulation.sim.crash(host),
            }
            stage.facts().lives(host, up, simulation.sim.elapsed());
            stage.changes.send_modify(|count| *count += 1);
        }
        simulation.pace = match stage.careful.load(Ordering::Relaxed) {
            0 => PACE,
            _ => PACE_CAREFUL,
        };
        if simulation.step()? {
            return Ok(());
        }
    }
}

/// What all edges would find after a restart is one and the same, and the log's end.
fn agree(dir: &Path, edges: &[&str], head: Position) -> Result<()> {
    let mut first: Option<Said> = None;
    for edge in edges {
        let (_, table) = Journal::open(&dir.join(edge), SCOPES_MAX)?;
        let applied = table.applied();
        ensure!(
            applied == head,
            "{edge} has {applied:?} on disk, the log {head:?}"
        );
        let said = table.said();
        match &first {
            None => first = Some(said),
            Some(first) => ensure!(*first == said, "{edge} says {said:?}, the first {first:?}"),
        }
    }
    Ok(())
}

fn traced(seed: u64, facts: &Facts) -> String {
    format!("SIM_SEED={seed}, after\n{}\n", facts.trace.join("\n"))
}

fn setting(name: &str) -> Option<u64> {
    std::env::var_os(name)?.to_str()?.parse().ok()
}

#[test]
fn what_was_purged_is_not_served_whatever_dies_or_falls_silent() {
    let (from, runs) = match setting("SIM_SEED") {
        Some(seed) => (seed, 1),
        None => {
            let from = setting("SIM_FROM").unwrap_or_else(|| rand::random_range(0..1 << 32));
            (from, setting("SIM_RUNS").unwrap_or(RUNS))
        }
    };
    println!("{runs} runs, SIM_FROM={from}");
    let mut counts = Counts::default();
    for seed in from..from + runs {
        counts += run(seed, Tale::Any).unwrap_or_else(|error| panic!("{error:?}"));
    }
    println!("{runs} runs: {counts:?}");
    // Else nothing was shown.
    let happened = [
        counts.hits,
        counts.peers,
        counts.origin,
        counts.receipts,
        counts.bound,
    ];
    assert!(happened.iter().all(|count| *count > 0), "{counts:?}");
}

#[test]
fn edges_that_are_cut_off_together_do_not_vouch_for_each_other_beyond_the_limit() {
    let seed = setting("SIM_SEED").unwrap_or_else(|| rand::random_range(0..1 << 32));
    let counts = run(seed, Tale::Together).unwrap_or_else(|error| panic!("{error:?}"));
    println!("{counts:?}");
    // Within the limit they answer as before.
    assert!(counts.hits > 0 && counts.limited > 0, "{counts:?}");
}
