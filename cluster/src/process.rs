//! How every process of the project tells what it does, and how it is asked to end.

use std::{
    ffi::OsString,
    io::{self, IsTerminal},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};
use tracing_subscriber::{EnvFilter, util::SubscriberInitExt};

/// Exit code after a second signal: what shells report for an interrupted program.
const INTERRUPTED: i32 = 130;

/// Sends logs to standard error from now on. `filter` says which (`info`, `info,cluster=debug`);
/// the environment variable `variable`, where it is set and not empty, says it instead. `json`
/// writes one JSON object per line.
///
/// # Errors
///
/// The filter cannot be read, or the process has a log already.
pub fn init_telemetry(filter: &str, variable: &str, json: bool) -> Result<(), TelemetryError> {
    let (source, text) = chosen(filter, variable, std::env::var_os(variable));
    let filter = EnvFilter::builder()
        .parse(&text)
        .map_err(|e| TelemetryError::Filter {
            source_name: source,
            filter: text,
            reason: e.to_string(),
        })?;
    let base = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let installed = if json {
        base.json().flatten_event(true).finish().try_init()
    } else {
        base.finish().try_init()
    };
    installed.map_err(|e| TelemetryError::Installed(e.to_string()))
}

/// Where the filter comes from, and what it is.
fn chosen(filter: &str, variable: &str, value: Option<OsString>) -> (String, String) {
    match value {
        Some(value) if !value.is_empty() => {
            (variable.to_owned(), value.to_string_lossy().into_owned())
        }
        _ => ("the configuration".to_owned(), filter.to_owned()),
    }
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The operator's to mend.
    #[error("log filter {filter:?} from {source_name} cannot be read: {reason}")]
    Filter {
        /// Which setting it came from.
        source_name: String,
        /// The filter as written.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Called twice.
    #[error("the log cannot be set up: {0}")]
    Installed(String),
}

/// Lets this process open as many files and sockets as the system allows it: the usual soft limit of
/// 1,024 is for programs that call `select`. Returns the limit from now on.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    current.unwrap_or(u64::MAX)
}

/// A future that is ready when the process is asked to end, by SIGTERM or SIGINT. Signals are
/// caught from the call on, not from the first poll. A second signal ends the process at once:
/// whoever sends it does not want to wait for the drain.
///
/// # Errors
///
/// The system refuses to have signals caught.
pub fn shutdown_signal() -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut next = async move || {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    Ok(async move {
        let name = next().await;
        info!(signal = name, "asked to end; a second signal ends at once");
        tokio::spawn(async move {
            let name = next().await;
            warn!(signal = name, "ending at once");
            std::process::exit(INTERRUPTED);
        });
    })
}

/// An error and its causes in one line, for the operator. Many errors tell their cause themselves;
/// what has been said is not said again.
pub fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.contains(&cause) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&cause);
    }
    line
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        process::{Child, Command, Stdio},
        time::Duration,
    };

    use super::*;

    /// Not a test by itself: what the test below runs as a process of its own.
    #[tokio::test]
    #[ignore = "a process for the test below"]
    async fn drains_for_ever() {
        init_telemetry("info", "TEST_LOG", true).unwrap();
        let asked = shutdown_signal().unwrap();
        warn!("ready");
        asked.await;
        warn!("draining");
        tokio::time::sleep(Duration::from_secs(60)).await;
    }

    fn signal_to(child: &Child, name: &str) {
        let id = child.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &id])
                .status()
                .unwrap()
                .success()
        );
    }

    #[test]
    fn the_first_signal_drains_and_the_second_ends() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "process::tests::drains_for_ever",
                "--ignored",
                "--nocapture",
            ])
            .env("TEST_LOG", "warn")
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut next = |expected: &str| {
            let line = lines.next().unwrap().unwrap();
            assert!(line.starts_with('{') && line.contains(expected), "{line}");
        };
        next("ready");
        signal_to(&child, "-TERM");
        next("draining");
        signal_to(&child, "-INT");
        next("ending at once");
        assert_eq!(child.wait().unwrap().code(), Some(INTERRUPTED));
    }

    #[test]
    fn the_environment_overrides_the_filter_and_a_bad_one_is_named() {
        let set = |text: &str| Some(OsString::from(text));
        assert_eq!(chosen("info", "EDGE_LOG", set("debug")).1, "debug");
        assert_eq!(chosen("info", "EDGE_LOG", set("")).1, "info");
        assert_eq!(chosen("info", "EDGE_LOG", None).1, "info");
        let message = init_telemetry("cluster=loud", "TEST_UNSET", false)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("cluster=loud") && message.contains("the configuration"),
            "{message}"
        );
    }

    #[test]
    fn a_cause_that_was_told_is_not_told_again() {
        let cause = io::Error::other("no such disk");
        let error = anyhow::Error::new(cause)
            .context("data_dir: no such disk")
            .context("start");
        assert_eq!(in_one_line(&error), "start: data_dir: no such disk");
    }
}
