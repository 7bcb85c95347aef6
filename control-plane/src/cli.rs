//! The command line: to serve, to check a configuration, and to ask a running control plane.

mod asking;
mod hash;
mod paper;
mod purge;
mod sites;
mod tables;
mod tokens;
mod warm;
mod watching;

use std::{
    ffi::OsString,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use cluster::{
    clock::Clock,
    net::SystemNet,
    node::NodeId,
    process::{in_one_line, init_telemetry, shutdown_signal},
    settings,
    wire::{EDGES, NODES, PEERS},
};
use toml::Value;

use self::{
    asking::Asking,
    tables::{ago, edges_table, nodes_table, peers_table, per_second, table},
};
use crate::{
    config::{COMMAND_VARIABLES, Config, ConfigFile, ENV_PREFIX},
    control::{Control, Environment},
};

/// What scripts go by.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  it failed; why, and what to do about it, is said on standard error
  2  the command line cannot be meant
  3  a purge is in the log, but not acknowledged by every edge yet; a site differs (`sites diff`)";
/// Exit code of whatever went wrong but the usage, which is 2 as everywhere.
const FAILED: u8 = 1;
/// Exit code of a purge that not every edge has acknowledged.
const INCOMPLETE: u8 = 3;

/// Knows where every node is: ranks peers, steers clients, hands out sites.
#[derive(Debug, Parser)]
#[command(name = "control-plane", version, after_help = EXIT_CODES)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a control plane.
    Serve(ServeArguments),
    /// Check a configuration and print the one in effect.
    Check(ServeArguments),
    /// Everybody in the cluster.
    Nodes {
        #[command(flatten)]
        watch: watching::Watch,
        #[command(flatten)]
        asking: Asking,
    },
    /// The ranked peers of a node.
    Peers {
        /// Whose peers.
        #[arg(long)]
        node: NodeId,
        /// At most this many.
        #[arg(long)]
        limit: Option<u16>,
        #[command(flatten)]
        asking: Asking,
    },
    /// The ranked edges for a client.
    Edges {
        /// The client's address.
        #[arg(long)]
        client: IpAddr,
        /// At most this many.
        #[arg(long)]
        limit: Option<u16>,
        #[command(flatten)]
        asking: Asking,
    },
    /// The sites that are handed out: what they are, were, and shall be.
    Sites {
        #[command(subcommand)]
        command: sites::SitesCommand,
    },
    /// Have edges fetch URLs ahead of demand.
    Warm(warm::Warm),
    /// Purge what a site has cached, everywhere, and show who has acknowledged it.
    Purge(purge::PurgeCommand),
    /// The purge log.
    Purges {
        #[command(subcommand)]
        command: purge::PurgesCommand,
    },
    /// Content hashes of files, as `[[site.takedown]]` takes them; asks nobody.
    Hash(hash::Hash),
    /// Tokens: who may change what.
    Tokens {
        #[command(subcommand)]
        command: tokens::Tokens,
    },
    /// Succeeds if the control plane is ready (for health checks).
    Healthy(Asking),
    /// Print what a shell needs to complete these commands: `source <(control-plane completions bash)`.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Write a man page for each command into a directory.
    Man {
        /// The directory; it is made if it is not there.
        dir: PathBuf,
    },
}

/// Flags beat the environment (CONTROL_PLANE_LISTEN__HTTP=…), which beats the file.
#[derive(Debug, Default, Args)]
struct ServeArguments {
    /// Configuration file (TOML).
    #[arg(long)]
    config: Option<PathBuf>,
    /// Name in the cluster; the host name without it.
    #[arg(long)]
    id: Option<String>,
    /// Where the site registry is kept.
    #[arg(long)]
    data_dir: Option<String>,
    /// Where the purge log is kept: "embedded", in the data directory.
    #[arg(long)]
    store: Option<String>,
    /// Address of the API.
    #[arg(long)]
    http: Option<SocketAddr>,
    /// Address of gossip.
    #[arg(long)]
    gossip: Option<SocketAddr>,
    /// Address of the steering listener.
    #[arg(long)]
    steer: Option<SocketAddr>,
    /// `host:port` of the API, for others.
    #[arg(long)]
    advertise_http: Option<String>,
    /// `host:port` of gossip, for others.
    #[arg(long)]
    advertise_gossip: Option<String>,
    /// Name of the cluster.
    #[arg(long)]
    cluster: Option<String>,
    /// `host:port` of some node's gossip; may be given several times.
    #[arg(long)]
    seed: Vec<String>,
    /// File with the cluster's secret.
    #[arg(long)]
    secret_file: Option<String>,
    /// MaxMind database, City or Country; "none" for none.
    #[arg(long)]
    geo: Option<String>,
    /// A site to hand out, as HOST=ORIGIN (www.example.com=http://10.0.0.5:80), in place of those
    /// in the file; may be given several times.
    #[arg(long, value_parser = site_flag)]
    site: Vec<(String, String)>,
}

fn site_flag(text: &str) -> Result<(String, String), String> {
    let (host, origin) = text.split_once('=').ok_or("must be HOST=ORIGIN")?;
    Ok((host.to_owned(), origin.to_owned()))
}

impl ServeArguments {
    /// The flags that were given, by the key they set.
    fn flags(&self) -> Vec<(String, Value)> {
        let text = |value: &Option<String>| value.clone().map(Value::String);
        let address = |value: &Option<SocketAddr>| value.map(|a| Value::String(a.to_string()));
        let list = |values: Vec<Value>| (!values.is_empty()).then_some(Value::Array(values));
        let seeds = self.seed.iter().cloned().map(Value::String);
        let sites = self.site.iter().map(|(host, origin)| {
            let name = host.replace("*.", "").replace('*', "all");
            let strings = |one: &String| Value::Array(vec![Value::String(one.clone())]);
            Value::Table(toml::Table::from_iter([
                ("name".to_owned(), Value::String(name)),
                ("hosts".to_owned(), strings(host)),
                ("origins".to_owned(), strings(origin)),
            ]))
        });
        [
            ("node.id", text(&self.id)),
            ("node.data_dir", text(&self.data_dir)),
            ("store", text(&self.store)),
            ("listen.http", address(&self.http)),
            ("listen.gossip", address(&self.gossip)),
            ("listen.steer", address(&self.steer)),
            ("advertise.http", text(&self.advertise_http)),
            ("advertise.gossip", text(&self.advertise_gossip)),
            ("cluster.name", text(&self.cluster)),
            ("cluster.seeds", list(seeds.collect())),
            ("cluster.secret_file", text(&self.secret_file)),
            ("geo.database", text(&self.geo)),
            ("site", list(sites.collect())),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)))
        .collect()
    }

    fn read(
        &self,
        env: impl Iterator<Item = (OsString, OsString)>,
    ) -> anyhow::Result<(ConfigFile, Config)> {
        let file = self.file(env)?;
        let config = file.clone().check(&host_name())?;
        Ok((file, config))
    }

    /// The configuration as written, with the environment and the flags in it; not checked.
    fn file(&self, env: impl Iterator<Item = (OsString, OsString)>) -> anyhow::Result<ConfigFile> {
        // A variable that is not text cannot be ours, unless its name says so.
        let env = env.filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            (!COMMAND_VARIABLES.contains(&&*name))
                .then(|| (name, value.to_string_lossy().into_owned()))
        });
        let file = settings::load(self.config.as_deref(), ENV_PREFIX, env, self.flags())?;
        Ok(file)
    }
}

/// The machine's name; empty when it cannot be told.
fn host_name() -> String {
    std::fs::read_to_string(Path::new("/proc/sys/kernel/hostname"))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Does what the command line asks, and tells how that went.
pub fn run(arguments: Arguments, env: impl Iterator<Item = (OsString, OsString)>) -> ExitCode {
    let done = match arguments.command {
        Command::Serve(arguments) => serve(&arguments, env),
        Command::Check(arguments) => check(&arguments, env),
        Command::Nodes { watch, asking } => {
            watch.tell(&asking, NODES, |answer| nodes_table(&answer))
        }
        Command::Peers {
            node,
            limit,
            asking,
        } => asking.tell(
            &format!("{PEERS}?node={node}{}", limit_parameter(limit)),
            |answer| peers_table(&answer),
        ),
        Command::Edges {
            client,
            limit,
            asking,
        } => asking.tell(
            &format!("{EDGES}?client={client}{}", limit_parameter(limit)),
            |answer| edges_table(&answer),
        ),
        Command::Sites { command } => match command.run() {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Warm(warm) => warm.run(),
        Command::Purge(purge) => purge.run(),
        Command::Purges { command } => command.run(),
        Command::Hash(hash) => hash.run(),
        Command::Tokens { command } => command.run(env),
        Command::Healthy(asking) => asking.ask("/readyz").map(|_| ()),
        Command::Completions { shell } => paper::completions(shell),
        Command::Man { dir } => paper::man(&dir),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing can be done if even this cannot be said.
            let _ = writeln!(io::stderr(), "control-plane: {}", in_one_line(&error));
            ExitCode::from(match error.is::<purge::Incomplete>() {
                true => INCOMPLETE,
                false => FAILED,
            })
        }
    }
}

fn limit_parameter(limit: Option<u16>) -> String {
    limit.map_or_else(String::new, |limit| format!("&limit={limit}"))
}

fn serve(
    arguments: &ServeArguments,
    env: impl Iterator<Item = (OsString, OsString)>,
) -> anyhow::Result<()> {
    init_telemetry("info", "RUST_LOG", false)?;
    let (_, config) = arguments.read(env)?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let shutdown = shutdown_signal()?;
        let environment = Environment {
            net: Arc::new(SystemNet),
            clock: Clock::system(),
        };
        Control::build(config, environment)
            .await?
            .run(shutdown)
            .await;
        Ok(())
    })
}

fn check(
    arguments: &ServeArguments,
    env: impl Iterator<Item = (OsString, OsString)>,
) -> anyhow::Result<()> {
    let (mut file, config) = arguments.read(env)?;
    if let cluster::geo::Database::File(path) = &config.database {
        cluster::geo::GeoDb::open(path).context("geo.database")?;
    }
    file.node.id = Some(config.id.to_string());
    let mut text = toml::to_string_pretty(&file)?;
    text.extend(config.sites.iter().map(cluster::site::Site::in_comments));
    print(&text)
}

fn print(text: &str) -> anyhow::Result<()> {
    write_out(text).map(|_| ())
}

/// Writes to standard output. False: whoever reads has read enough.
fn write_out(text: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        other => Ok(other.map(|()| true)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_the_keys_they_name() {
        let arguments = Arguments::try_parse_from([
            "control-plane",
            "serve",
            "--id",
            "cp",
            "--http",
            "127.0.0.1:0",
            "--seed",
            "a:1",
            "--seed",
            "b:2",
            "--secret-file",
            "s",
            "--site",
            "*.a.test=http://o:80",
        ])
        .unwrap();
        let Command::Serve(arguments) = arguments.command else {
            panic!("not serve");
        };
        let file: ConfigFile =
            settings::load(None, ENV_PREFIX, [].into_iter(), arguments.flags()).unwrap();
        assert_eq!(file.node.id.as_deref(), Some("cp"));
        assert_eq!(file.listen.http, "127.0.0.1:0".parse().unwrap());
        assert_eq!(file.listen.gossip.port(), 7946);
        assert_eq!(file.cluster.seeds, ["a:1", "b:2"]);
        assert_eq!(file.site[0].name, "a.test");
        assert_eq!(file.site[0].hosts, ["*.a.test"]);
        assert!(file.site[0].check().is_ok());
    }
}
