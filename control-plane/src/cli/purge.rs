//! `control-plane purge` and `control-plane purges`: purges, waits for the receipts, and shows them; lists
//! the log.

use std::{
    io::{self, IsTerminal, Write},
    thread,
    time::Duration,
};

use anyhow::Context;
use axum::http::Method;
use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use cluster::{
    purge::Scope,
    wire::{
        PURGE_PAGE_MAX, PURGES, PurgePage, PurgeReceipt, PurgeRequest, PurgeState, PurgeStatus,
        PurgeWait,
    },
};
use tokio::time::Instant;

use super::{Asking, ago, print, table, watching::Watch};
use crate::receipts::WAIT_MAX;

/// How often a purge is looked at while it is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long an edge that cannot be reached is waited for: it may be a moment's trouble.
const UNREACHABLE_MAX: Duration = Duration::from_secs(3);
/// Scopes of a record that a list shows.
const SCOPES_SHOWN: usize = 3;

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true)
    .args(["url", "prefix", "tag", "all"]))]
pub(super) struct PurgeCommand {
    /// The site.
    #[arg(long)]
    site: String,
    /// A URL of the site, or a path on all of its hosts; what ends with * is a prefix. May be given several
    /// times.
    #[arg(long)]
    url: Vec<String>,
    /// The beginning of URLs, or of paths on all of its hosts; may be given several times.
    #[arg(long)]
    prefix: Vec<String>,
    /// A tag that the origin gave; may be given several times.
    #[arg(long)]
    tag: Vec<String>,
    /// All of the site.
    #[arg(long)]
    all: bool,
    /// Mark stale only: it is used while it is validated, and when the origin fails.
    #[arg(long)]
    soft: bool,
    /// Whom to wait for, at most 10 seconds.
    #[arg(long, value_enum, default_value_t = Wait::All)]
    wait: Wait,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wait {
    /// Every live edge.
    All,
    /// More than half of them.
    Quorum,
    /// Nobody.
    None,
}

#[derive(Debug, Subcommand)]
pub(super) enum PurgesCommand {
    /// The purges that still count, the last of them, in their order.
    List {
        /// Those behind this number, not the last.
        #[arg(long)]
        after: Option<u64>,
        /// At most this many.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=PURGE_PAGE_MAX as i64))]
        limit: u16,
        #[command(flatten)]
        watch: Watch,
        #[command(flatten)]
        asking: Asking,
    },
    /// What became of one of them at each edge.
    Show {
        /// Its number.
        seq: u64,
        #[command(flatten)]
        watch: Watch,
        #[command(flatten)]
        asking: Asking,
    },
}

/// A purge that is in the log, and not acknowledged by all that were waited for.
#[derive(Debug, thiserror::Error)]
#[error(
    "purge {seq} is in the log, but {}; they get it as soon as they can be reached; \
     `control-plane purges show {seq}` tells",
    match all {
        0 => "this control plane knows of no edge now".to_owned(),
        all => format!("{missing} of {all} edges have not acknowledged it yet"),
    }
)]
pub(super) struct Incomplete {
    seq: u64,
    missing: usize,
    all: usize,
}

impl PurgeCommand {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let request = PurgeRequest {
            site: self.site.clone(),
            urls: self.url.clone(),
            prefixes: self.prefix.clone(),
            tags: self.tag.clone(),
            all: self.all,
            soft: self.soft,
            // This command looks for itself, and can say how far it is.
            wait: PurgeWait::None,
        };
        let body = serde_json::to_vec(&request)?;
        let told = self.asking.send(Method::POST, PURGES, body.into())?;
        let told = match self.wait {
            Wait::None => told,
            _ => self.watch(told)?,
        };
        show(&self.asking, &told)?;
        let status = parsed(&told)?;
        let done = acknowledged(&status);
        let is_enough = match self.wait {
            Wait::All => status.complete,
            Wait::Quorum => done * 2 > status.nodes.len() || status.complete,
            Wait::None => true,
        };
        match is_enough {
            true => Ok(()),
            false => Err(Incomplete {
                seq: status.seq,
                missing: status.nodes.len() - done,
                all: status.nodes.len(),
            }
            .into()),
        }
    }

    /// Looks at a purge until those that are waited for have acknowledged it, and tells how far it is.
    #[expect(
        clippy::disallowed_methods,
        reason = "a command has one thread, and no runtime to hold up"
    )]
    fn watch(&self, mut told: Bytes) -> anyhow::Result<Bytes> {
        let (begun, on_screen) = (Instant::now(), io::stderr().is_terminal());
        let mut before = None;
        loop {
            let status = parsed(&told)?;
            let done = acknowledged(&status);
            let is_open = |node: &&PurgeReceipt| node.state == PurgeState::Pending;
            let is_known = begun.elapsed() >= UNREACHABLE_MAX;
            let ends = match self.wait {
                Wait::Quorum => done * 2 > status.nodes.len(),
                _ => status.complete && !status.nodes.is_empty(),
            } || (is_known && status.nodes.iter().find(is_open).is_none())
                || begun.elapsed() >= WAIT_MAX;
            if before != Some(done) || (ends && on_screen) {
                before = Some(done);
                let line = format!(
                    "purge {}: acknowledged by {done} of {} edges, {} ms",
                    status.seq,
                    status.nodes.len(),
                    begun.elapsed().as_millis()
                );
                let (start, end) = match on_screen {
                    true => ("\r\x1b[K", if ends { "\n" } else { "" }),
                    false => ("", "\n"),
                };
                // Who cannot see it still has the output.
                let _ = write!(io::stderr(), "{start}{line}{end}");
            }
            if ends {
                return Ok(told);
            }
            thread::sleep(LOOK_EVERY);
            match self.asking.ask(&at(status.seq)) {
                Ok(newer) => told = newer,
                // It may be about to come back; the purge is in the log.
                Err(error) if begun.elapsed() >= WAIT_MAX => return Err(error),
                Err(_) => {}
            }
        }
    }
}

impl PurgesCommand {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::List {
                after,
                limit,
                watch,
                asking,
            } => {
                let path = match after {
                    Some(after) => format!("{PURGES}?after={after}&limit={limit}"),
                    None => format!("{PURGES}?last={limit}"),
                };
                watch.tell(asking, &path, |page| page_text(&page))
            }
            Self::Show { seq, watch, asking } => {
                watch.tell(asking, &at(*seq), |status| status_text(&status))
            }
        }
    }
}

fn at(seq: u64) -> String {
    format!("{PURGES}/{seq}")
}

fn parsed(told: &Bytes) -> anyhow::Result<PurgeStatus> {
    serde_json::from_slice(told).context("this is not what a control plane answers")
}

fn show(asking: &Asking, told: &Bytes) -> anyhow::Result<()> {
    if asking.json {
        return print(&format!("{}\n", String::from_utf8_lossy(told)));
    }
    print(&status_text(&parsed(told)?))
}

fn acknowledged(status: &PurgeStatus) -> usize {
    let is_done = |node: &&PurgeReceipt| node.state == PurgeState::Acknowledged;
    status.nodes.iter().filter(is_done).count()
}

fn word(state: PurgeState) -> &'static str {
    match state {
        PurgeState::Pending => "pending",
        PurgeState::Acknowledged => "acknowledged",
        PurgeState::Late => "late",
        PurgeState::Unreachable => "unreachable",
    }
}

fn status_text(status: &PurgeStatus) -> String {
    let rows = status.nodes.iter().map(|node| {
        [
            node.node.to_string(),
            word(node.state).to_owned(),
            node.ms.map_or_else(String::new, |ms| ms.to_string()),
            node.reason.clone().unwrap_or_default(),
        ]
    });
    let how = if status.soft { "soft purge" } else { "purge" };
    let done = acknowledged(status);
    let last = match done {
        0 => String::new(),
        _ => format!(", the last after {} ms", status.elapsed_ms),
    };
    format!(
        "{how} {} of site {}: {}\nacknowledged by {done} of {} edges{last}\n{}",
        status.seq,
        status.site,
        scopes(&status.scopes),
        status.nodes.len(),
        table(["NODE", "STATE", "MS", "BECAUSE IT"], rows, [20, 12, 6, 39])
    )
}

fn page_text(page: &PurgePage) -> String {
    let newest = page.records.iter().map(|record| record.taken_at).max();
    let rows = page.records.iter().map(|record| {
        [
            record.at.seq.to_string(),
            record.purge.site.clone(),
            if record.purge.soft { "soft" } else { "hard" }.to_owned(),
            ago(record.taken_at, newest.unwrap_or(record.taken_at)),
            record.by.clone(),
            scopes(&record.purge.scopes),
        ]
    });
    let table = table(
        ["SEQ", "SITE", "HOW", "BEFORE", "BY", "WHAT"],
        rows,
        [10, 14, 4, 6, 10, 31],
    );
    let more = match page.through < page.head {
        true => format!("more: --after {}\n", page.through),
        false => String::new(),
    };
    let earlier = match page.records.first() {
        Some(first) if first.prev > 0 && more.is_empty() => "earlier: --after 0\n",
        _ => "",
    };
    format!(
        "log {}, up to {}\n{table}{earlier}{more}",
        page.log, page.head
    )
}

fn scopes(scopes: &[Scope]) -> String {
    let shown = scopes.iter().take(SCOPES_SHOWN).map(|scope| match scope {
        Scope::Url(url) => url.clone(),
        Scope::Prefix(prefix) => format!("{prefix}*"),
        Scope::Tag(tag) => format!("tag {tag}"),
        Scope::All => "all of it".to_owned(),
    });
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if scopes.len() > SCOPES_SHOWN {
        text.push_str(&format!(", and {} more", scopes.len() - SCOPES_SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use cluster::purge::{Position, Purge, Record};

    use super::*;

    #[test]
    fn what_is_told_fits_80_columns() {
        let long = "x".repeat(64);
        let all: Vec<_> = (0..5).map(|n| Scope::Tag(format!("t{n}"))).collect();
        let receipt = |state, ms, reason: Option<&str>| PurgeReceipt {
            node: long.parse().unwrap(),
            state,
            ms,
            reason: reason.map(str::to_owned),
        };
        let status = PurgeStatus {
            seq: u64::from(u32::MAX),
            log: 1,
            site: "www".into(),
            scopes: all.clone(),
            soft: true,
            taken_at: 0,
            by: "ops".into(),
            complete: false,
            elapsed_ms: 86_400_000,
            nodes: vec![
                receipt(PurgeState::Acknowledged, Some(999_999), None),
                receipt(
                    PurgeState::Unreachable,
                    None,
                    Some("10.0.0.1:7947 cannot be reached: connection refused"),
                ),
            ],
        };
        let text = status_text(&status);
        assert!(
            text.starts_with(
                "soft purge 4294967295 of site www: tag t0, tag t1, tag t2, and 2 more\n"
            ),
            "{text}"
        );
        assert!(text.contains("acknowledged by 1 of 2 edges"), "{text}");
        let record = Record {
            at: Position {
                log: 1,
                seq: 9_999_999_999,
            },
            prev: 0,
            purge: Purge {
                site: long.clone(),
                scopes: all,
                soft: false,
            },
            taken_at: 0,
            by: long.clone(),
        };
        let list = page_text(&PurgePage {
            log: 1_780_000_000_000,
            head: 9_999_999_999,
            through: 7,
            records: vec![record],
            age_ms: None,
            now_ms: None,
        });
        assert!(list.ends_with("more: --after 7\n"), "{list}");
        for line in text.lines().skip(1).chain(list.lines()) {
            let width = line.chars().count();
            assert!(width <= 80, "{width} {line:?}");
        }
    }
}
