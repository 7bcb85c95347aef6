//! `cargo planet`: simulates clusters of many sizes on the planet of [`harness::planet`], beside three
//! other ways of finding objects on the same demand, and writes what `docs/simulation.md` shows.

#![expect(
    clippy::print_stdout,
    reason = "this is a command; what it says goes to the terminal"
)]

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;
use harness::planet::{
    plan::{Plan, Strategy},
    report, run,
};

/// Simulates clusters on real round trips, over virtual time.
#[derive(Parser)]
struct Args {
    /// Numbers of nodes.
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000,2000")]
    nodes: Vec<usize>,
    /// The same seed gives the same run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Objects of the catalogue.
    #[arg(long)]
    objects: Option<u32>,
    /// Requests, whatever the number of nodes.
    #[arg(long)]
    requests: Option<u64>,
    /// Clients come as soon as nodes know of each other.
    #[arg(long)]
    cold: bool,
    /// Of a hundred nodes, how many die within the run, each for a minute.
    #[arg(long)]
    dying: Option<f64>,
    /// Of a hundred nodes, how many are slow.
    #[arg(long)]
    slow: Option<f64>,
    /// A file of lines `key,size`: what clients want, instead of a Zipf law.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Where to write the plot, as SVG.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// The project's own way only.
    #[arg(long)]
    alone: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let trace = args
        .trace
        .as_ref()
        .map(|path| std::fs::read_to_string(path).with_context(|| path.display().to_string()))
        .transpose()?;
    let strategies: &[Strategy] = if args.alone {
        &[Strategy::Measured]
    } else {
        &Strategy::ALL
    };
    let mut outcomes = Vec::new();
    for &nodes in &args.nodes {
        for &strategy in strategies {
            let mut plan = Plan::of(strategy, nodes);
            plan.seed = args.seed;
            plan.cold = args.cold;
            plan.trace.clone_from(&trace);
            plan.objects = args.objects.unwrap_or(plan.objects);
            plan.requests = args.requests.unwrap_or(plan.requests);
            plan.dying = args.dying.unwrap_or(plan.dying);
            plan.slow = args.slow.unwrap_or(plan.slow);
            let outcome = run(plan)?;
            tracing::info!(nodes, strategy = strategy.name(), "simulated");
            outcomes.push(outcome);
        }
    }
    print!("{}", report::table(&outcomes));
    if let Some(path) = args.plot {
        std::fs::write(&path, report::plot(&outcomes))
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}
