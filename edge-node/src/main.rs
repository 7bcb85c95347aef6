//! Arguments → configuration → telemetry → build → run → drain.

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use cluster::{geo::Database, process, settings, site::Site};
use edge_node::{
    config::{Config, ConfigFile},
    edge::{Edge, Environment},
};
use toml::Value;

/// An edge node of the CDN: caches in front of an origin, alone or with its peers.
#[derive(Parser)]
#[command(version, about, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    serve: ServeArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Check a configuration and print what is in effect, and what the sites' rules mean.
    Check(ServeArgs),
    /// Ask a running node whether it is ready; exit code 0 if so.
    Healthy {
        /// Its admin listener.
        #[arg(long, default_value = "127.0.0.1:9090")]
        admin: SocketAddr,
    },
}

#[derive(Args)]
struct ServeArgs {
    /// Configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Cache for every host in front of this origin (http://host:port).
    #[arg(long, value_name = "URL")]
    origin: Option<String>,
    /// Where to listen for clients.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where to listen for the operator.
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// Where to keep objects.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// What to log, as in RUST_LOG.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
    /// Log as JSON, one object a line.
    #[arg(long)]
    log_json: bool,
}

impl ServeArgs {
    fn config_file(&self) -> anyhow::Result<ConfigFile> {
        let mut flags = Vec::new();
        let mut flag = |path: &str, value: Option<String>| {
            if let Some(value) = value {
                flags.push((path.to_owned(), Value::String(value)));
            }
        };
        flag("listen.http", self.listen.map(|a| a.to_string()));
        flag("listen.admin", self.admin.map(|a| a.to_string()));
        flag(
            "node.data_dir",
            self.data_dir.as_ref().map(|d| d.display().to_string()),
        );
        if self.config.is_none() && self.origin.is_some() {
            // Alone and without a file, a node is for this machine only unless told otherwise.
            flag(
                "listen.http",
                self.listen.is_none().then(|| "127.0.0.1:8080".to_owned()),
            );
        }
        let mut file: ConfigFile =
            settings::load(self.config.as_deref(), "EDGE_", std::env::vars(), flags)?;
        if let Some(origin) = &self.origin {
            if !file.site.is_empty() {
                bail!("--origin: the configuration has sites already; use one or the other");
            }
            let site = Site::new("default", &["*"], &[origin]);
            site.check().context("--origin")?;
            file.site.push(site);
        }
        if self.config.is_none()
            && self.origin.is_none()
            && file.site.is_empty()
            && file.cluster.control_plane.is_empty()
        {
            bail!("nothing to serve: give --config FILE or --origin URL (see --help)");
        }
        Ok(file)
    }
}

/// Every miss allocates and frees on different threads what then lives for hours or for a moment; the
/// system's allocator takes longer for that, and keeps more.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Command::Check(args)) => check(&args),
        Some(Command::Healthy { admin }) => healthy(admin),
        None => serve(&cli.serve),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The one line an operator reads when a node does not start.
            let _ = writeln!(io::stderr(), "edge-node: {}", process::in_one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let config = meant(args.config_file()?)?;
    process::init_telemetry(&args.log, "RUST_LOG", args.log_json)?;
    let descriptors = process::raise_descriptor_limit();
    // A client takes one, and another while its request is with the origin.
    if descriptors < 2 * config.limits.connections as u64 {
        let connections = config.limits.connections;
        tracing::warn!(
            descriptors,
            connections,
            "the system allows fewer open files than limits.connections may need"
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let shutdown = process::shutdown_signal()?;
        let edge = Edge::build(config, Environment::real()).await?;
        edge.run(shutdown).await;
        Ok(())
    })
}

fn check(args: &ServeArgs) -> anyhow::Result<()> {
    let file = args.config_file()?;
    let config = meant(file.clone())?;
    if let Database::File(_) = &config.database {
        config.database.open().context("geo.database")?;
    }
    let mut text = toml::to_string_pretty(&file)?;
    for site in &config.sites.sites {
        text.push_str(&site.in_comments());
    }
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn meant(file: ConfigFile) -> anyhow::Result<Config> {
    let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Ok(file.check(host_name.trim())?)
}

/// A bare HTTP/1.0 exchange: enough for a health check, and no client library in sight.
fn healthy(admin: SocketAddr) -> anyhow::Result<()> {
    use std::io::Read;
    let limit = std::time::Duration::from_secs(3);
    let mut stream = std::net::TcpStream::connect_timeout(&admin, limit)
        .with_context(|| format!("no node answers at {admin}"))?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer)?;
    if answer.split(' ').nth(1) == Some("200") {
        return Ok(());
    }
    let why = answer.rsplit("\r\n").next().unwrap_or_default().trim();
    bail!("not ready: {why}")
}
