//! `control-plane warm`: takes a job, shows how far it is, lists jobs, cancels one.

use std::{
    io::{self, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use axum::http::Method;
use bytes::Bytes;
use clap::Args;
use cluster::{
    node::NodeId,
    wire::{WARM, WarmList, WarmNode, WarmRequest, WarmState, WarmStatus},
};
use tokio::time::Instant;

use super::{Asking, per_second, print, table, watching::Watch};
use crate::api::warm::REQUEST_BYTES_MAX;

/// How often a job is looked at while it is waited for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a line of progress is written where it cannot replace the last one.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// How long a control plane may be away while a job is waited for: it goes on after a restart.
const AWAY_MAX: Duration = Duration::from_secs(60);
/// Failures that are told when a job has ended.
const FAILURES_SHOWN: usize = 5;

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true)
    .args(["site", "status", "cancel", "jobs"]))]
pub(super) struct Warm {
    /// The site of the URLs.
    #[arg(long)]
    site: Option<String>,
    /// A URL of the site, or a path on its first host; may be given several times.
    #[arg(long, requires = "site")]
    url: Vec<String>,
    /// A file with one URL or path a line; "-" for standard input.
    #[arg(long, requires = "site")]
    list: Option<PathBuf>,
    /// An edge that shall have them; may be given several times. All, without any or a region.
    #[arg(long, requires = "site")]
    node: Vec<NodeId>,
    /// A region whose edges shall have them; may be given several times.
    #[arg(long, requires = "site")]
    region: Vec<String>,
    /// Wait for the end, and fail if anything has failed.
    #[arg(long, conflicts_with_all = ["cancel", "jobs"])]
    wait: bool,
    /// How far this job is.
    #[arg(long, value_name = "ID", conflicts_with_all = ["site", "cancel", "jobs"])]
    status: Option<String>,
    /// End this job.
    #[arg(long, value_name = "ID", conflicts_with_all = ["site", "jobs"])]
    cancel: Option<String>,
    /// List the jobs.
    #[arg(long, conflicts_with = "site")]
    jobs: bool,
    #[command(flatten)]
    watch: Watch,
    #[command(flatten)]
    asking: Asking,
}

impl Warm {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        if self.jobs {
            let table = |list| jobs_table(&list);
            return self.watch.tell(&self.asking, WARM, table);
        }
        if let (true, Some(id)) = (self.watch.is_asked_for(), &self.status) {
            let text = |status| status_text(&status);
            return self.watch.tell(&self.asking, &at(id), text);
        }
        let told = match (&self.status, &self.cancel) {
            (Some(id), _) => self.asking.ask(&at(id))?,
            (_, Some(id)) => self.asking.send(Method::DELETE, &at(id), Bytes::new())?,
            (None, None) => self.take()?,
        };
        if !self.wait {
            return self.show(&told);
        }
        let told = self.watch(told)?;
        self.show(&told)?;
        let status = parsed(&told)?;
        let failed: usize = status.nodes.iter().map(|node| node.failed).sum();
        match status.state {
            WarmState::Done if failed == 0 => Ok(()),
            WarmState::Done => bail!(
                "{failed} fetches failed; mend what the reasons name, and warm these URLs again"
            ),
            state => bail!("the job is {}", word(state)),
        }
    }

    fn take(&self) -> anyhow::Result<Bytes> {
        let request = WarmRequest {
            site: self.site.clone().unwrap_or_default(),
            urls: self.url.clone(),
            list: self.list.as_deref().map_or(Ok(String::new()), read)?,
            nodes: self.node.clone(),
            regions: self.region.clone(),
        };
        if request.urls.is_empty() && request.list.is_empty() {
            bail!("nothing to fetch: give --url URL or --list FILE");
        }
        let body = serde_json::to_vec(&request)?;
        self.asking.send(Method::POST, WARM, body.into())
    }

    /// Looks at a job until it has ended, and writes a line of progress beside the output.
    #[expect(
        clippy::disallowed_methods,
        reason = "a command has one thread, and no runtime to hold up"
    )]
    fn watch(&self, mut told: Bytes) -> anyhow::Result<Bytes> {
        let (begun, on_screen) = (Instant::now(), io::stderr().is_terminal());
        let (mut seen, mut written) = (Instant::now(), None);
        loop {
            let status = parsed(&told)?;
            let has_ended = status.state != WarmState::Running;
            let is_due = written.is_none_or(|at: Instant| at.elapsed() >= LINE_EVERY);
            if on_screen || is_due || has_ended {
                written = Some(Instant::now());
                let line = progress(&status, begun.elapsed());
                let (before, after) = match on_screen {
                    true => ("\r\x1b[K", if has_ended { "\n" } else { "" }),
                    false => ("", "\n"),
                };
                // Who cannot see it still has the output.
                let _ = write!(io::stderr(), "{before}{line}{after}");
            }
            if has_ended {
                return Ok(told);
            }
            thread::sleep(LOOK_EVERY);
            match self.asking.ask(&at(&status.id)) {
                Ok(newer) => (told, seen) = (newer, Instant::now()),
                Err(error) if seen.elapsed() > AWAY_MAX => {
                    let id = status.id;
                    return Err(error.context(format!("the job goes on; `--status {id}` tells")));
                }
                Err(_) => {}
            }
        }
    }

    fn show(&self, told: &Bytes) -> anyhow::Result<()> {
        if self.asking.json {
            return print(&format!("{}\n", String::from_utf8_lossy(told)));
        }
        print(&status_text(&parsed(told)?))
    }
}

fn at(id: &str) -> String {
    let id: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{WARM}/{id}")
}

fn parsed(told: &Bytes) -> anyhow::Result<WarmStatus> {
    serde_json::from_slice(told).context("this is not what a control plane answers")
}

fn read(list: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let most = REQUEST_BYTES_MAX as u64;
    let read = if list == Path::new("-") {
        io::stdin().take(most + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(list).and_then(|file| file.take(most + 1).read_to_string(&mut text))
    };
    let bytes = read.with_context(|| list.display().to_string())?;
    if bytes as u64 > most {
        bail!(
            "{}: longer than {most} bytes: make several jobs of it",
            list.display()
        );
    }
    Ok(text)
}

fn word(state: WarmState) -> &'static str {
    match state {
        WarmState::Running => "running",
        WarmState::Done => "done",
        WarmState::Cancelled => "cancelled",
        WarmState::Expired => "expired",
    }
}

fn sum(status: &WarmStatus, of: impl Fn(&WarmNode) -> u64) -> u64 {
    status.nodes.iter().map(of).sum()
}

/// One line: how far a job is.
fn progress(status: &WarmStatus, elapsed: Duration) -> String {
    let all = status.urls * status.nodes.len();
    let settled = sum(status, |node| (node.done + node.failed) as u64);
    let bytes = sum(status, |node| node.bytes);
    let failed = sum(status, |node| node.failed as u64);
    let troubled = status.nodes.iter().filter(|node| node.trouble.is_some());
    let mut line = format!(
        "{} {}: {settled} of {all} fetches, {}, {failed} failed, {} s",
        status.id,
        word(status.state),
        per_second(bytes),
        elapsed.as_secs(),
    );
    match troubled.count() {
        0 => {}
        count => line.push_str(&format!("; {count} of the nodes wait")),
    }
    line
}

fn status_text(status: &WarmStatus) -> String {
    let rows = status.nodes.iter().map(|node| {
        let from = |source| node.sources.get(&source).map_or(0, |tally| tally.objects);
        use cluster::wire::WarmSource::{Home, Origin, Peer, Stored};
        [
            node.node.to_string(),
            format!("{}/{}", node.done + node.failed, status.urls),
            node.failed.to_string(),
            per_second(node.bytes),
            from(Stored).to_string(),
            (from(Peer) + from(Home)).to_string(),
            from(Origin).to_string(),
            node.trouble.clone().unwrap_or_default(),
        ]
    });
    let head = [
        "NODE",
        "SETTLED",
        "FAILED",
        "BYTES",
        "STORED",
        "PEERS",
        "ORIGIN",
        "WAITS BECAUSE IT",
    ];
    let mut text = format!(
        "job {} of site {}: {}\n{}",
        status.id,
        status.site,
        word(status.state),
        table(head, rows, [12, 13, 6, 6, 6, 6, 6, 18])
    );
    let failures = status.nodes.iter().flat_map(|node| {
        let of = move |failure| (&node.node, failure);
        node.failures.iter().map(of)
    });
    for (node, failure) in failures.take(FAILURES_SHOWN) {
        text.push_str(&format!("{node}: {}: {}\n", failure.url, failure.reason));
    }
    text
}

fn jobs_table(list: &WarmList) -> String {
    let rows = list.jobs.iter().map(|job| {
        [
            job.id.clone(),
            job.site.clone(),
            word(job.state).to_owned(),
            job.urls.to_string(),
            job.nodes.len().to_string(),
            sum(job, |node| node.done as u64).to_string(),
            sum(job, |node| node.failed as u64).to_string(),
            per_second(sum(job, |node| node.bytes)),
        ]
    });
    table(
        [
            "JOB", "SITE", "STATE", "URLS", "NODES", "DONE", "FAILED", "BYTES",
        ],
        rows,
        [13, 18, 9, 7, 6, 9, 6, 6],
    )
}

#[cfg(test)]
mod tests {
    use cluster::wire::{WarmFailure, WarmSource, WarmTally};

    use super::*;

    fn status() -> WarmStatus {
        let node = WarmNode {
            node: "x".repeat(64).parse().unwrap(),
            done: 99_990,
            failed: 10,
            bytes: 999_000_000_000,
            sources: [(
                WarmSource::Origin,
                WarmTally {
                    objects: 99_990,
                    bytes: 999_000_000_000,
                },
            )]
            .into(),
            failures: vec![WarmFailure {
                url: "http://www.test/a".into(),
                reason: "answered 404".into(),
            }],
            trouble: Some("10.0.0.1:7947 has been silent for 15s".into()),
        };
        WarmStatus {
            id: "19a5b3c7d2e".into(),
            site: "s".repeat(64),
            state: WarmState::Running,
            urls: 100_000,
            taken_at: 0,
            expires_at: 1,
            nodes: vec![node],
        }
    }

    #[test]
    fn what_is_told_fits_80_columns() {
        let text = status_text(&status());
        let list = jobs_table(&WarmList {
            jobs: vec![status()],
        });
        let tables = text.lines().skip(1).take(2).chain(list.lines());
        for line in tables {
            assert!(
                line.chars().count() <= 80,
                "{} {line:?}",
                line.chars().count()
            );
        }
        assert!(text.contains("http://www.test/a: answered 404"), "{text}");
        let line = progress(&status(), Duration::from_secs(7));
        assert_eq!(
            line,
            "19a5b3c7d2e running: 100000 of 100000 fetches, 999GB, 10 failed, 7 s; \
             1 of the nodes wait"
        );
    }

    #[test]
    fn a_name_in_a_path_is_letters_and_digits() {
        assert_eq!(at("19a5/../x?y"), "/v1/warm/19a5xy");
    }
}
