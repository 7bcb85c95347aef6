//! Arguments → configuration → telemetry → build → run → drain.

use std::process::ExitCode;

use clap::Parser;
use control_plane::cli::{self, Arguments};

fn main() -> ExitCode {
    cli::run(Arguments::parse(), std::env::vars_os())
}
