//! The whole CDN on this machine: `cargo lab` starts a control plane and edges as real processes on
//! loopback in front of a demo origin, with the delays of real distances between them.

#![expect(
    clippy::print_stdout,
    reason = "this is a command; what it says goes to the terminal"
)]

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use cluster::{process::shutdown_signal, site::Site};
use harness::{
    cluster::{BASE_PORT, Cluster, EDGES_MAX, Lines, Node, Plan, set},
    origin::{Answer, Directory, Origin},
    pattern::Pattern,
    process::{Binaries, Log, checkout, is_free},
    region::{REGIONS, Region},
};

/// Size of the generated download.
const DOWNLOAD_BYTES: u64 = 48 << 20;
/// Its checksum; the pattern is always the same, so that a kept cache stays right.
const DOWNLOAD_SHA256: &str = "3ba7fa261bdac1c15f771760d606abdebc6dddbb4984389337dcf803ad17b1c6";
/// The hosts of the lab's site. Any other is answered by 421.
const HOSTS: [&str; 4] = ["demo.localhost", "localhost", "127.0.0.1", "*.localhost"];

/// Runs the whole CDN on this machine.
#[derive(Parser)]
#[command(name = "cargo lab")]
struct Arguments {
    /// How many edges, each in a region of its own.
    #[arg(long, default_value_t = 3, value_name = "N")]
    edges: usize,
    /// Put this origin behind them instead of the demo site.
    #[arg(long, value_name = "URL", conflicts_with = "site")]
    origin: Option<String>,
    /// Serve this directory as the origin.
    #[arg(long, value_name = "DIR")]
    site: Option<PathBuf>,
    /// Where the origin stands: a region or a city of the lab.
    #[arg(long, value_name = "PLACE", default_value = "Virginia")]
    origin_region: String,
    /// Without the delays of distance.
    #[arg(long)]
    no_delay: bool,
    /// Port of the first edge; all others follow from it.
    #[arg(long, value_name = "PORT", default_value_t = BASE_PORT,
          value_parser = clap::value_parser!(u16).range(1300..60_000))]
    base_port: u16,
    /// Keep caches and configurations here; a temporary directory otherwise.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// End by itself after that many seconds.
    #[arg(long, value_name = "SECONDS")]
    run_for: Option<u64>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "an error of a command")]
            {
                eprintln!("lab: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<()> {
    ensure!(
        (1..=EDGES_MAX).contains(&arguments.edges),
        "--edges: 1 to {EDGES_MAX}, not {}",
        arguments.edges
    );
    let place = &arguments.origin_region;
    let origin_place = Region::named(place).with_context(|| {
        let cities: Vec<_> = REGIONS.iter().map(|r| r.city).collect();
        format!(
            "--origin-region: {place:?} is none of {}",
            cities.join(", ")
        )
    })?;
    println!("Building what is not built yet (the first time takes minutes) …");
    Binaries::find().await?;
    let mut ended = Box::pin(shutdown_signal()?);

    let (origin, site, about) = origin_and_site(&arguments).await?;
    let mut plan = Plan {
        site,
        lines: if arguments.no_delay {
            Lines::Direct
        } else {
            Lines::Delayed {
                origin: origin_place,
            }
        },
        base_port: Some(arguments.base_port),
        data: arguments
            .data
            .as_ref()
            .map(std::path::absolute)
            .transpose()?,
        ..Plan::new(arguments.edges, "http://replaced.invalid")
    };
    // So that anybody can be tried out from here.
    let trusted = toml::Value::Array(vec!["127.0.0.0/8".into()]);
    set(
        &mut plan.control_settings,
        "steer",
        "trust_forwarded",
        trusted,
    );
    let mut cluster = plan.prepare().await?;
    check_ports(&cluster, arguments.base_port)?;
    println!("Starting a control plane and {} edges …", arguments.edges);
    let outcome = tokio::select! {
        outcome = live(&mut cluster, &arguments, origin_place, &about) => outcome,
        () = &mut ended => Ok(()),
    };
    println!("Stopping …");
    let stopped = cluster.stop().await;
    drop(origin);
    outcome.and(stopped)
}

/// Starts everything, says what there is, and watches until the time is over.
async fn live(
    cluster: &mut Cluster,
    arguments: &Arguments,
    origin_place: Region,
    about: &str,
) -> Result<()> {
    if let Some(control) = &mut cluster.control {
        control.launch()?;
        report_problems(&control.id, &control.log());
        control.ready().await?;
    }
    for edge in &mut cluster.edges {
        edge.launch()?;
        report_problems(&edge.id, &edge.log());
    }
    for edge in &mut cluster.edges {
        edge.ready().await?;
    }
    cluster.name_origin_callers();
    cluster.settled().await?;
    println!(
        "{}",
        description(cluster, arguments, origin_place, about).await?
    );
    let over = async {
        match arguments.run_for {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = over => Ok(()),
        never = watch_ends(cluster) => never,
    }
}

/// Says so when a process ends that nobody asked to; the others go on, as they would.
async fn watch_ends(cluster: &mut Cluster) -> Result<()> {
    let mut told = Vec::new();
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for node in cluster.edges.iter_mut().chain(&mut cluster.control) {
            if !told.contains(&node.id)
                && let Some(status) = node.process().ended()?
            {
                println!("[{}] has ended: {status}", node.id);
                told.push(node.id.clone());
            }
        }
    }
}

async fn origin_and_site(arguments: &Arguments) -> Result<(Option<Origin>, Site, String)> {
    let at: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    let site_at = |url: &str| Site::new("demo", &HOSTS, &[url]);
    if let Some(url) = &arguments.origin {
        let mut site = site_at(url.trim_end_matches('/'));
        // A foreign origin expects its own name.
        site.origin_host = url
            .split("://")
            .nth(1)
            .map(|a| a.trim_end_matches('/').to_owned());
        site.check().context("--origin")?;
        return Ok((None, site, url.clone()));
    }
    let (directory, about) = if let Some(root) = &arguments.site {
        ensure!(root.is_dir(), "--site: {} is no directory", root.display());
        let cache_control: fn(&str) -> Option<&'static str> = |_| Some("public, max-age=3600");
        let root = root.canonicalize()?;
        let about = root.display().to_string();
        (
            Directory {
                root,
                cache_control,
            },
            about,
        )
    } else {
        let root = checkout().join("deploy/demo-site");
        ensure!(
            root.is_dir(),
            "{} is missing from the checkout",
            root.display()
        );
        let about = "the demo site, and /download/horizons.bin".to_owned();
        (
            Directory {
                root,
                cache_control: demo_cache_control,
            },
            about,
        )
    };
    let origin = Origin::start_at(at, Some(directory)).await?;
    if arguments.site.is_none() {
        let download = Answer::pattern(&download())
            .field("content-type", "application/octet-stream")
            .field("etag", format!("\"{:.16}\"", DOWNLOAD_SHA256))
            .field("cache-control", IMMUTABLE);
        origin.route("/download/horizons.bin", download);
        let sums = Answer::bytes(format!("{DOWNLOAD_SHA256}  horizons.bin\n"))
            .field("content-type", "text/plain; charset=utf-8")
            .field("cache-control", IMMUTABLE);
        origin.route("/download/SHA256SUMS", sums);
    }
    let site = site_at(&origin.url());
    Ok((Some(origin), site, about))
}

const IMMUTABLE: &str = "public, max-age=31536000, immutable";

/// As deploy/nginx.conf says it: pages change, everything else never does under its name.
fn demo_cache_control(path: &str) -> Option<&'static str> {
    Some(if path.ends_with('/') || path.ends_with(".html") {
        "public, max-age=30, stale-while-revalidate=60, stale-if-error=86400"
    } else {
        IMMUTABLE
    })
}

fn download() -> Pattern {
    Pattern::new(1, DOWNLOAD_BYTES)
}

fn check_ports(cluster: &Cluster, base_port: u16) -> Result<()> {
    for node in cluster.nodes() {
        let all = [
            Some(node.http),
            Some(node.admin),
            node.peer,
            node.gossip,
            node.steer,
        ];
        if let Some(taken) = all.into_iter().flatten().find(|at| !is_free(at.port())) {
            bail!(
                "port {} for {} is taken; end what holds it, or move the lab: --base-port {}",
                taken.port(),
                node.id,
                base_port.saturating_add(1_000).min(59_999)
            );
        }
    }
    Ok(())
}

/// Prints warnings and errors of a process as they come.
fn report_problems(name: &str, log: &Log) {
    let name = name.to_owned();
    let mut lines = log.follow();
    tokio::spawn(async move {
        use tokio::sync::broadcast::error::RecvError;
        loop {
            match lines.recv().await {
                Ok(line) if line.contains(" WARN ") || line.contains(" ERROR ") => {
                    println!("[{name}] {line}");
                }
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    });
}

async fn description(
    cluster: &Cluster,
    arguments: &Arguments,
    origin_place: Region,
    about: &str,
) -> Result<String> {
    let mut text = String::from("\n");
    let control = cluster
        .control
        .as_ref()
        .context("the lab has a control plane")?;
    let steer = control.steer.context("it steers")?;
    writeln!(text, "  origin         {about}, in {}", origin_place.city)?;
    writeln!(
        text,
        "  control plane  http://{}   steering http://{steer}",
        control.http
    )?;
    for edge in &cluster.edges {
        let region = edge
            .region
            .context("every edge of the lab stands somewhere")?;
        write!(
            text,
            "  {:<14} http://{}   admin http://{}   {}",
            edge.id, edge.http, edge.admin, region.city
        )?;
        if !arguments.no_delay {
            let round_trip = region.one_way(origin_place) * 2;
            write!(text, ", {} ms from the origin", round_trip.as_millis())?;
        }
        text.push('\n');
    }
    writeln!(text, "  kept in        {}", cluster.root.display())?;

    let demo = arguments.origin.is_none() && arguments.site.is_none();
    let path = if demo { "/style.css" } else { "/" };
    let first = &cluster.edges[0];
    let last = &cluster.edges[cluster.edges.len() - 1];
    let at = |node: &Node| format!("http://localhost:{}", node.http.port());
    let binaries = Binaries::find().await?;
    let operator = binaries.control_plane.display();
    let api = format!("--api http://{}", control.http);
    writeln!(text, "\nTry, and look at Cache-Status:")?;
    writeln!(
        text,
        "  curl -sD- -o/dev/null {}{path}      # the origin's",
        at(first)
    )?;
    writeln!(
        text,
        "  curl -sD- -o/dev/null {}{path}      # a hit",
        at(first)
    )?;
    if cluster.edges.len() > 1 {
        writeln!(
            text,
            "  curl -sD- -o/dev/null {}{path}      # a peer's, a moment later",
            at(last)
        )?;
    }
    if demo {
        writeln!(
            text,
            "  curl -s {}/download/horizons.bin | sha256sum; curl -s {}/download/SHA256SUMS",
            at(last),
            at(first)
        )?;
    }
    writeln!(
        text,
        "  curl -sD- -o/dev/null -H 'Host: elsewhere.test' {}/     # 421",
        at(first)
    )?;
    writeln!(
        text,
        "  curl -sL -D- -o/dev/null http://localhost:{}{path}      # steered",
        steer.port()
    )?;
    writeln!(
        text,
        "  curl -sD- -o/dev/null -H 'X-Forwarded-For: 1.1.1.1' http://localhost:{}{path}   # steered from elsewhere",
        steer.port()
    )?;
    writeln!(text, "Look inside:")?;
    writeln!(text, "  curl -s http://{}/peers", first.admin)?;
    writeln!(
        text,
        "  curl -s 'http://{}/explain?url=http://localhost{path}'",
        first.admin
    )?;
    writeln!(text, "  curl -s http://{}/metrics", first.admin)?;
    writeln!(text, "  {operator} nodes {api}")?;
    writeln!(text, "  {operator} peers {api} --node {}", first.id)?;
    writeln!(text, "  {operator} edges {api} --client 8.8.8.8")?;
    match arguments.run_for {
        Some(seconds) => writeln!(text, "Ends in {seconds} s. Warnings and errors follow.")?,
        None => writeln!(text, "Ctrl-C ends it. Warnings and errors follow.")?,
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    #[test]
    fn the_checksum_is_the_downloads() {
        let mut child = Command::new("sha256sum")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(&download().bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said.split(' ').next(), Some(DOWNLOAD_SHA256));
    }

    #[test]
    fn arguments_are_understood() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
