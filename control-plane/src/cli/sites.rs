//! `control-plane sites`: what is served, how it came to be so, and how it becomes something else.

mod file;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use axum::http::{HeaderName, Method};
use bytes::Bytes;
use clap::{Args, Subcommand};
use cluster::{
    site::Site,
    wire::{
        SITES, SiteAction, SiteChanged, SiteDifference, SiteHistory, SiteRollback, SitesAnswer,
        SitesPut, SitesPutAnswer,
    },
};
use tokio::time::Instant;

use self::file::{Named, SiteFile, sites_of};
use super::{Asking, print, table};
use crate::{api::sites::BY_FIELD, sites::change::SITES_AT_ONCE_MAX};

/// What `sites diff`, and `sites apply --dry-run`, end with when something differs.
const DIFFERS: u8 = 3;
/// From so many sites on, progress is told, and no differences but how many sites have some.
const MANY: usize = 20;
/// Most bytes of sites that are changed together, unless it is one: the store has each twice, and as it is kept
/// it may be longer than as it is written.
const TOGETHER_BYTES_MAX: usize = 256 << 10;
/// How often a line of progress is written where it cannot replace the last one.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Columns of a terminal.
const COLUMNS: usize = 80;

#[derive(Debug, Subcommand)]
pub(super) enum SitesCommand {
    /// All of them.
    List(Asking),
    /// One of them, in full.
    Show {
        /// Its name.
        name: String,
        /// As it was in this version.
        #[arg(long)]
        version: Option<u64>,
        #[command(flatten)]
        asking: Asking,
    },
    /// Have sites be as a file says; others stay as they are.
    Apply {
        #[command(flatten)]
        file: SiteFile,
        /// Check and compare only; ends with 3 if something differs.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        changing: Changing,
    },
    /// What a file would change; ends with 3 if something differs.
    Diff {
        #[command(flatten)]
        file: SiteFile,
        #[command(flatten)]
        asking: Asking,
    },
    /// Have a site be again what it was.
    Rollback {
        /// Its name.
        name: String,
        /// In which version; `sites history` lists them.
        #[arg(long)]
        version: u64,
        #[command(flatten)]
        changing: Changing,
    },
    /// Serve a site no longer.
    Delete {
        /// Its name.
        name: String,
        #[command(flatten)]
        changing: Changing,
    },
    /// The versions of a site, and who made them.
    History {
        /// Its name.
        name: String,
        #[command(flatten)]
        asking: Asking,
    },
}

#[derive(Debug, Args)]
pub(super) struct Changing {
    /// Who makes the change; stands in the history as long as there are no tokens.
    #[arg(long, env = "USER", value_name = "NAME", hide_env_values = true)]
    by: Option<String>,
    #[command(flatten)]
    asking: Asking,
}

impl SitesCommand {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let done = |()| ExitCode::SUCCESS;
        match self {
            Self::List(asking) => asking.tell(SITES, |answer| sites_table(&answer)).map(done),
            Self::Show {
                name,
                version,
                asking,
            } => {
                let version = version.map_or_else(String::new, |v| format!("?version={v}"));
                let tell =
                    |site: Site| toml::to_string_pretty(&site).unwrap_or_else(|e| format!("{e}\n"));
                asking
                    .tell(&format!("{}{version}", at(name)), tell)
                    .map(done)
            }
            Self::History { name, asking } => {
                let path = format!("{}/history", at(name));
                asking
                    .tell(&path, |history| history_table(&history))
                    .map(done)
            }
            Self::Rollback {
                name,
                version,
                changing,
            } => {
                let wanted = serde_json::to_vec(&SiteRollback { version: *version })?;
                let path = format!("{}/rollback", at(name));
                changing.make(Method::POST, &path, wanted.into())
            }
            Self::Delete { name, changing } => {
                changing.make(Method::DELETE, &at(name), Bytes::new())
            }
            Self::Apply {
                file,
                dry_run: false,
                changing,
            } => apply(file, changing),
            Self::Apply { file, changing, .. } => {
                let asking = &changing.asking;
                compare(asking, &checked(file, asking)?.1)
            }
            Self::Diff { file, asking } => compare(asking, &checked(file, asking)?.1),
        }
    }
}

impl Changing {
    /// Makes a change and shows what it was.
    fn make(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<ExitCode> {
        let told = self.send(method, path, &[], body)?;
        let text = match self.asking.json {
            true => format!("{}\n", String::from_utf8_lossy(&told)),
            false => changed_text(&read(&told)?),
        };
        print(&text).map(|()| ExitCode::SUCCESS)
    }

    fn send(
        &self,
        method: Method,
        path: &str,
        fields: &[(HeaderName, String)],
        body: Bytes,
    ) -> anyhow::Result<Bytes> {
        let by = self.by.clone().filter(|by| by.is_ascii());
        let by = by.map(|by| (BY_FIELD, by));
        let fields: Vec<_> = fields.iter().cloned().chain(by).collect();
        self.asking.send_with(method, path, &fields, body)
    }
}

fn read(told: &Bytes) -> anyhow::Result<SiteChanged> {
    serde_json::from_slice(told).context("this is not what a control plane answers")
}

/// The sites of a file, and what each would change. All of them may be, or it is an error.
fn checked(file: &SiteFile, asking: &Asking) -> anyhow::Result<(Vec<Named>, Vec<SiteChanged>)> {
    let sites = sites_of(&file.text()?).with_context(|| file.file.display().to_string())?;
    let mut progress = Progress::new("checked", sites.len());
    let mut checked = Vec::new();
    for some in together(&sites) {
        let body = put_of(some, &[])?;
        let told = asking.send(Method::POST, &format!("{SITES}?check=true"), body);
        let told = told.with_context(|| format!("{} refused, nothing was changed", named(some)));
        checked.extend(told_of(&told?)?);
        progress.step(some.len());
    }
    Ok((sites, checked))
}

/// Sites in the order of the file, as many together as the store takes in one commit.
fn together(sites: &[Named]) -> Vec<&[Named]> {
    let (mut all, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (end, (_, body)) in sites.iter().enumerate() {
        bytes += body.len();
        let is_full = end - begin >= SITES_AT_ONCE_MAX || bytes > TOGETHER_BYTES_MAX;
        if is_full && end > begin {
            all.push(&sites[begin..end]);
            (begin, bytes) = (end, body.len());
        }
    }
    all.push(&sites[begin..]);
    all.retain(|some| !some.is_empty());
    all
}

/// A request that makes sites what they are here, if they are at the versions that were looked at.
fn put_of(sites: &[Named], looked_at: &[&SiteChanged]) -> anyhow::Result<Bytes> {
    let versions = looked_at
        .iter()
        .map(|site| (site.site.clone(), site.version));
    let sites = sites.iter().map(|(_, body)| serde_json::from_str(body));
    let put = SitesPut {
        sites: sites.collect::<Result<_, _>>()?,
        versions: versions.collect(),
    };
    Ok(serde_json::to_vec(&put)?.into())
}

fn told_of(told: &Bytes) -> anyhow::Result<Vec<SiteChanged>> {
    let told: SitesPutAnswer =
        serde_json::from_slice(told).context("this is not what a control plane answers")?;
    Ok(told.sites)
}

/// Sites, in words.
fn named(sites: &[Named]) -> String {
    match sites {
        [(one, _)] => format!("site {one:?} is"),
        [(first, _), .., (last, _)] => {
            format!("{} sites, {first:?} to {last:?}, are", sites.len())
        }
        [] => "nothing is".to_owned(),
    }
}

/// Shows what a file would change.
fn compare(asking: &Asking, checked: &[SiteChanged]) -> anyhow::Result<ExitCode> {
    asking.show(checked, false)?;
    Ok(match checked.iter().any(|site| site.changed) {
        true => ExitCode::from(DIFFERS),
        false => ExitCode::SUCCESS,
    })
}

/// Makes every site of a file what it says there; as many as the store takes at once all together.
fn apply(file: &SiteFile, changing: &Changing) -> anyhow::Result<ExitCode> {
    let (sites, checked) = checked(file, &changing.asking)?;
    let looked_at: BTreeMap<&str, &SiteChanged> = checked
        .iter()
        .map(|site| (site.site.as_str(), site))
        .collect();
    let differs = |name: &str| looked_at.get(name).is_some_and(|site| site.changed);
    let differing: Vec<Named> = sites
        .into_iter()
        .filter(|(name, _)| differs(name))
        .collect();
    let mut progress = Progress::new("applied", differing.len());
    let mut made: Vec<SiteChanged> = Vec::new();
    for some in together(&differing) {
        // What was looked at is what is changed.
        let before: Vec<_> = (some.iter())
            .filter_map(|(name, _)| looked_at.get(name.as_str()).copied())
            .collect();
        let told = changing.send(Method::POST, SITES, &[], put_of(some, &before)?);
        let told = told.with_context(|| {
            let count = made.len();
            format!(
                "{} not changed ({count} before are); apply the file again",
                named(some)
            )
        });
        made.extend(told_of(&told?)?);
        progress.step(some.len());
    }
    let mut made: BTreeMap<_, _> = made.into_iter().map(|s| (s.site.clone(), s)).collect();
    let all = checked.iter();
    let all: Vec<_> = all
        .map(|site| made.remove(&site.site).unwrap_or_else(|| site.clone()))
        .collect();
    changing.asking.show(&all, true)?;
    Ok(ExitCode::SUCCESS)
}

impl Asking {
    fn show(&self, sites: &[SiteChanged], is_made: bool) -> anyhow::Result<()> {
        if self.json {
            return print(&format!("{}\n", serde_json::to_string(sites)?));
        }
        let changed = || sites.iter().filter(|site| site.changed);
        let (count, all) = (changed().count(), sites.len());
        let mut text = String::new();
        if all <= MANY {
            for site in changed() {
                text.push_str(&diff_text(&site.site, &site.diff));
            }
        }
        let words = if is_made { "changed" } else { "differ" };
        text.push_str(&format!("{count} of {all} sites {words}"));
        // Those of one commit have one version.
        let commits: BTreeSet<u64> = changed().map(|site| site.set_version).collect();
        if let (true, Some(newest)) = (is_made, commits.last()) {
            let (count, s) = (commits.len(), if commits.len() == 1 { "" } else { "s" });
            text.push_str(&format!(
                "; the sites are at version {newest}, by {count} commit{s}"
            ));
        }
        text.push('\n');
        print(&text)
    }
}

/// Where a site is. A name that cannot be one is for the control plane to refuse.
fn at(name: &str) -> String {
    let mut path = format!("{SITES}/");
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                path.push(char::from(byte))
            }
            _ => path.push_str(&format!("%{byte:02X}")),
        }
    }
    path
}

/// Tells how far something is, beside the output.
struct Progress {
    what: &'static str,
    done: usize,
    all: usize,
    written: Instant,
    on_screen: bool,
}

impl Progress {
    fn new(what: &'static str, all: usize) -> Self {
        Self {
            what,
            done: 0,
            all,
            written: Instant::now(),
            on_screen: io::stderr().is_terminal(),
        }
    }

    fn step(&mut self, count: usize) {
        self.done += count;
        if self.all < MANY {
            return;
        }
        let has_ended = self.done == self.all;
        if self.on_screen || has_ended || self.written.elapsed() >= LINE_EVERY {
            self.written = Instant::now();
            let (before, after) = match self.on_screen {
                true => ("\r\x1b[K", if has_ended { "\n" } else { "" }),
                false => ("", "\n"),
            };
            let Self {
                what, done, all, ..
            } = self;
            // Who cannot see it still has the output.
            let _ = write!(io::stderr(), "{before}{done} of {all} sites {what}{after}");
        }
    }
}

fn changed_text(changed: &SiteChanged) -> String {
    if !changed.changed {
        return format!(
            "site {} is so already, since version {}\n",
            changed.site, changed.version
        );
    }
    let diff = diff_text(&changed.site, &changed.diff);
    format!(
        "{diff}site {} is at version {}\n",
        changed.site, changed.version
    )
}

fn diff_text(site: &str, diff: &[SiteDifference]) -> String {
    let mut text = format!("site {site}\n");
    for difference in diff {
        let SiteDifference {
            field,
            removed,
            added,
        } = difference;
        if removed.is_none() && added.is_none() {
            text.push_str(&format!("  {field}\n"));
        }
        for (sign, value) in [('-', removed), ('+', added)] {
            if let Some(value) = value {
                text.push_str(&line(&format!("  {sign} {field}: {value}")));
            }
        }
    }
    text
}

/// A line that fits a terminal, with nothing in it that a terminal would obey.
fn line(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { '?' } else { c });
    let mut line: String = plain.take(COLUMNS + 1).collect();
    if line.chars().count() > COLUMNS {
        line = line.chars().take(COLUMNS - 1).collect();
        line.push('…');
    }
    line.push('\n');
    line
}

pub(super) fn sites_table(answer: &SitesAnswer) -> String {
    let rows = answer.sites.iter().map(|site| {
        let origins: Vec<_> = site.origins.iter().map(ToString::to_string).collect();
        [site.name.clone(), site.hosts.join(" "), origins.join(" ")]
    });
    let table = table(["SITE", "HOSTS", "ORIGINS"], rows, [16, 31, 31]);
    format!("version {}\n{table}", answer.version)
}

fn history_table(history: &SiteHistory) -> String {
    let rows = history.versions.iter().map(|version| {
        [
            version.version.to_string(),
            moment(version.at_ms / 1000),
            match version.action {
                SiteAction::Put => "put".to_owned(),
                SiteAction::File => "from the file".to_owned(),
                SiteAction::Rollback { to } => format!("back to {to}"),
                SiteAction::Delete => "deleted".to_owned(),
            },
            version.by.clone(),
            if version.current { "served" } else { "" }.to_owned(),
        ]
    });
    let table = table(
        ["VERSION", "WHEN (UTC)", "HOW", "BY", ""],
        rows,
        [10, 19, 18, 21, 6],
    );
    match &history.in_file_of {
        Some(file) => {
            format!("{table}in the configuration file of {file}: it is changed there only\n")
        }
        None => table,
    }
}

/// Date and time of so many seconds since 1970 (the calendar's days by Howard Hinnant's algorithm).
fn moment(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    let since_march = days + 719_468;
    let (era, day_of_era) = (since_march / 146_097, since_march % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use cluster::wire::SiteVersion;

    use super::*;

    fn fits(text: &str) {
        for line in text.lines() {
            let columns = line.chars().count();
            assert!(columns <= COLUMNS, "{columns}: {line}");
        }
    }

    #[test]
    fn what_is_told_fits_80_columns() {
        let changed = SiteChanged {
            site: "s".repeat(64),
            version: 1_790_000_000,
            set_version: 1_790_000_000,
            changed: true,
            diff: vec![
                SiteDifference {
                    field: "bypass.paths".into(),
                    removed: Some("x".repeat(200).into()),
                    added: Some(serde_json::json!(["a\u{1b}[31m"])),
                },
                SiteDifference {
                    field: "and 7 more".into(),
                    removed: None,
                    added: None,
                },
            ],
        };
        let text = diff_text("www", &changed.diff);
        fits(&text);
        assert!(
            text.contains("  + bypass.paths: [\"a\\u001b[31m\"]\n"),
            "{text}"
        );
        assert!(text.ends_with("  and 7 more\n"), "{text}");
        let told = changed_text(&SiteChanged {
            changed: false,
            ..changed
        });
        assert!(
            told.ends_with("is so already, since version 1790000000\n"),
            "{told}"
        );
        let version = |action| SiteVersion {
            version: 1_790_000_000,
            at_ms: 1_790_000_000_000,
            by: "somebody with a long name on this machine".into(),
            action,
            current: true,
        };
        let table = history_table(&SiteHistory {
            site: "www".into(),
            in_file_of: Some("cp".into()),
            versions: vec![
                version(SiteAction::Rollback { to: 1_790_000_000 }),
                version(SiteAction::File),
            ],
        });
        fits(&table);
        assert!(
            table.contains("2026-09-21 14:13:20 back to 1790000000"),
            "{table}"
        );
    }

    #[test]
    fn a_moment_is_told_as_people_do() {
        for (unix_s, told) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(moment(unix_s), told);
        }
    }

    #[test]
    fn a_name_in_a_path_cannot_be_another_path() {
        assert_eq!(at("a.b-c_1"), "/v1/sites/a.b-c_1");
        assert_eq!(at("../x?y"), "/v1/sites/..%2Fx%3Fy");
    }
}
