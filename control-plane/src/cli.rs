//! The command line: to serve, to check a configuration, and to ask a running control plane.

mod paper;
mod sites;
mod tokens;
mod warm;
mod watching;

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use bytes::Bytes;
use clap::{Args, Parser, Subcommand};
use cluster::{
    clock::Clock,
    net::SystemNet,
    node::NodeId,
    process::{in_one_line, init_telemetry, shutdown_signal},
    settings,
    wire::{EDGES, EdgesAnswer, ErrorAnswer, NODES, NodesAnswer, PEERS, PeersAnswer, Place, SITES},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde::de::DeserializeOwned;
use toml::Value;

use crate::{
    api::status::{phase, role},
    config::{
        API_VARIABLE, COMMAND_VARIABLES, Config, ConfigFile, ENV_PREFIX, TOKEN_FILE_VARIABLE,
        TOKEN_VARIABLE,
    },
    control::{Control, Environment},
    tokens::Secret,
};

/// How long a control plane may take to answer a command.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer a command reads: ten thousand generous sites.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Most bytes of a token's file that are read: a token is shorter.
const TOKEN_FILE_BYTES_MAX: u64 = 1024;
/// What scripts go by.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  it failed; why, and what to do about it, is said on standard error
  2  the command line cannot be meant
  3  a purge is in the log, but not acknowledged by everybody yet";
/// Exit code of whatever went wrong but the usage, which is 2 as everywhere.
const FAILED: u8 = 1;

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

#[derive(Debug, Args)]
struct Asking {
    /// Where the control plane is.
    #[arg(
        long,
        env = API_VARIABLE,
        default_value = "http://127.0.0.1:7900"
    )]
    api: String,
    /// The token to ask with; in the environment it is seen by nobody else.
    #[arg(long, env = TOKEN_VARIABLE, hide = true, hide_env_values = true)]
    token: Option<Secret>,
    /// A file with the token to ask with, in place of CONTROL_PLANE_TOKEN.
    #[arg(long, env = TOKEN_FILE_VARIABLE, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The answer as JSON, for scripts.
    #[arg(long)]
    json: bool,
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
            ExitCode::from(FAILED)
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

impl Asking {
    /// Asks for `path` and prints the answer: as it is, or as `table` tells it.
    fn tell<T: DeserializeOwned>(
        &self,
        path: &str,
        table: impl FnOnce(T) -> String,
    ) -> anyhow::Result<()> {
        print(&self.told(path, table)?)
    }

    /// What [`Asking::tell`] prints.
    fn told<T: DeserializeOwned>(
        &self,
        path: &str,
        table: impl FnOnce(T) -> String,
    ) -> anyhow::Result<String> {
        let body = self.ask(path)?;
        if self.json {
            let mut text = String::from_utf8(body.to_vec()).context("the answer is not text")?;
            text.push('\n');
            return Ok(text);
        }
        let answer = serde_json::from_slice(&body)
            .with_context(|| format!("{} did not answer as a control plane does", self.api))?;
        Ok(table(answer))
    }

    fn ask(&self, path: &str) -> anyhow::Result<Bytes> {
        self.send(Method::GET, path, Bytes::new())
    }

    /// The token to ask with; the file is closer to the command than the environment.
    fn token(&self) -> anyhow::Result<Option<Secret>> {
        let Some(path) = &self.token_file else {
            return Ok(self.token.clone());
        };
        let token = std::fs::File::open(path).and_then(|file| {
            let mut text = String::new();
            file.take(TOKEN_FILE_BYTES_MAX).read_to_string(&mut text)?;
            Ok(Secret::from(text.trim().to_owned()))
        });
        let token = token.with_context(|| format!("--token-file: {}", path.display()))?;
        Ok(Some(token))
    }

    /// Sends a request, with a body of JSON if it has one, and gives the body of a good answer.
    fn send(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
        self.send_with(method, path, &[], body)
    }

    /// The same with more fields.
    fn send_with(
        &self,
        method: Method,
        path: &str,
        fields: &[(HeaderName, String)],
        body: Bytes,
    ) -> anyhow::Result<Bytes> {
        let api = self.api.trim_end_matches('/');
        let uri: Uri = format!("{api}{path}")
            .parse()
            .with_context(|| format!("{api:?} is not a URL"))?;
        if uri.scheme_str() != Some("http") {
            bail!("{api:?} must begin with http://");
        }
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::CONTENT_TYPE, "application/json");
        for (name, value) in fields {
            request = request.header(name, value);
        }
        if let Some(token) = self.token()? {
            let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.reveal()))
                .map_err(|_| anyhow!("the token is not one: it holds strange characters"))?;
            bearer.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, bearer);
        }
        let request = request.body(Full::new(body))?;
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(async {
                tokio::time::timeout(ANSWER_TIMEOUT, fetch(request))
                    .await
                    .map_err(|_| anyhow!("no answer within {ANSWER_TIMEOUT:?}"))?
            })
            .with_context(|| format!("control plane at {api}"))
    }
}

async fn fetch(request: Request<Full<Bytes>>) -> anyhow::Result<Bytes> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let path = request.uri().path().to_owned();
    let answer = client
        .request(request)
        .await
        .map_err(|error| innermost(&error))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| anyhow!("the answer broke off: {error}"))?
        .to_bytes();
    if status.is_success() {
        return Ok(body);
    }
    match serde_json::from_slice::<ErrorAnswer>(&body) {
        Ok(answer) => bail!("{} ({status}){}", answer.error, next_step(status, &path)),
        Err(_) => bail!("answered {status}; --api says where a control plane is: is that one?"),
    }
}

/// What to do about a refusal that does not say it itself.
fn next_step(status: StatusCode, path: &str) -> &'static str {
    match status {
        StatusCode::NOT_FOUND if path.starts_with(PEERS) => "; `control-plane nodes` lists them",
        StatusCode::NOT_FOUND if path.starts_with(SITES) => {
            "; `control-plane sites list` lists them"
        }
        StatusCode::METHOD_NOT_ALLOWED => "; is the control plane older than this command?",
        _ => "",
    }
}

/// What really happened is at the end of a chain of "error trying to …".
fn innermost(error: &(dyn std::error::Error + 'static)) -> anyhow::Error {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    anyhow!("cannot be reached: {cause}; does it run? --api or {API_VARIABLE} says where it is")
}

fn nodes_table(answer: &NodesAnswer) -> String {
    let rows = answer.nodes.iter().map(|node| {
        [
            node.id.to_string(),
            role(node).to_owned(),
            if node.alive { phase(node) } else { "gone" }.to_owned(),
            node.region.clone(),
            node.location.as_ref().map_or_else(String::new, place),
            node.load.in_flight.to_string(),
            per_second(node.load.bytes_per_s),
            node.sites_version.to_string(),
        ]
    });
    table(
        [
            "NODE", "ROLE", "STATE", "REGION", "PLACE", "REQS", "RATE", "SITES",
        ],
        rows,
        [14, 7, 8, 8, 14, 5, 6, 10],
    )
}

fn peers_table(answer: &PeersAnswer) -> String {
    let rows = answer.peers.iter().map(|peer| {
        [
            peer.id.to_string(),
            peer.region.clone(),
            peer.peer_addr.clone(),
            kilometres(peer.distance_km),
            peer.rtt_ms
                .map_or_else(String::new, |ms| format!("{ms:.1}")),
            peer.load.in_flight.to_string(),
            format!("{:.1}", peer.score),
        ]
    });
    table(
        [
            "PEER", "REGION", "ADDRESS", "KM", "RTT MS", "REQS", "SCORE MS",
        ],
        rows,
        [16, 10, 21, 6, 7, 5, 8],
    )
}

fn edges_table(answer: &EdgesAnswer) -> String {
    let rows = answer.edges.iter().map(|edge| {
        [
            edge.id.to_string(),
            edge.region.clone(),
            edge.http.clone(),
            kilometres(edge.distance_km),
            edge.load.in_flight.to_string(),
            format!("{:.1}", edge.score),
        ]
    });
    let at = answer.location.as_ref().map_or_else(
        || "an unknown place".to_owned(),
        |p| format!("{} ({})", place(p), p.source),
    );
    let table = table(
        ["EDGE", "REGION", "CLIENTS", "KM", "REQS", "SCORE MS"],
        rows,
        [16, 12, 28, 6, 5, 8],
    );
    format!("{} is in {at}\n{table}", answer.client)
}

fn place(place: &Place) -> String {
    match (&place.city, &place.country) {
        (Some(city), Some(country)) => format!("{city}, {country}"),
        (_, Some(country)) => country.clone(),
        _ => format!("{:.2}, {:.2}", place.latitude, place.longitude),
    }
}

/// How long it is from one time to another, in its largest unit.
fn ago(from_ms: u64, to_ms: u64) -> String {
    let s = to_ms.saturating_sub(from_ms) / 1_000;
    match s {
        0..60 => format!("{s}s"),
        60..3_600 => format!("{}m", s / 60),
        3_600..86_400 => format!("{}h", s / 3_600),
        _ => format!("{}d", s / 86_400),
    }
}

fn kilometres(km: Option<f64>) -> String {
    km.map_or_else(String::new, |km| format!("{km:.0}"))
}

fn per_second(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes}B"),
        1_000..1_000_000 => format!("{}kB", bytes / 1_000),
        1_000_000..1_000_000_000 => format!("{}MB", bytes / 1_000_000),
        _ => format!("{}GB", bytes / 1_000_000_000),
    }
}

/// Columns as wide as they need to be, but not wider than `widths`: what is longer is cut, so that
/// a line has at most the widths and a space between each.
fn table<const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
    widths: [usize; N],
) -> String {
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(rows);
    let mut fitting = [0; N];
    for line in &lines {
        for ((fit, cell), width) in fitting.iter_mut().zip(line).zip(widths) {
            *fit = cell.chars().count().min(width).max(*fit);
        }
    }
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (cell, fit) in line.iter().zip(fitting) {
            let cell: String = if cell.chars().count() > fit {
                cell.chars().take(fit - 1).chain(['…']).collect()
            } else {
                // What a terminal would obey comes from other nodes; none of it is wanted.
                cell.clone()
            };
            let cell: String = cell
                .chars()
                .map(|c| if c.is_control() { '?' } else { c })
                .collect();
            row.push_str(&format!("{cell:fit$} "));
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use cluster::{
        node::{Load, NodeInfo, Phase, Role},
        view::ClusterView,
        wire::RankedPeer,
    };

    use super::*;
    use crate::{atlas::Atlas, places::Places};

    fn assert_fits(table: &str) {
        for line in table.lines() {
            assert!(
                line.chars().count() <= 80,
                "{} {line:?}",
                line.chars().count()
            );
        }
    }

    #[test]
    fn tables_fit_80_columns_whatever_nodes_are_called() {
        let long = "x".repeat(64);
        let mut node = NodeInfo::new(long.parse().unwrap(), Role::Control);
        node.region = "eu\x1b[31m-central-1-and-more".into();
        node.phase = Phase::Draining;
        node.location = cluster::geo::GeoPoint::new(-50.111_111, -108.682_222);
        node.sites_version = 1_780_000_000;
        node.load = Load {
            in_flight: 12_345,
            bytes_per_s: 999_000_000,
        };
        let view = ClusterView::new([node.clone()]);
        let atlas = Atlas::new(&view, vec![], &Places::new(vec![], None), |_| None);
        let nodes = nodes_table(&NodesAnswer {
            nodes: atlas.statuses(),
        });
        assert_fits(&nodes);
        assert!(
            nodes.contains("xxxxxxxxxxxxx… control draining eu?[31m… "),
            "{nodes}"
        );
        let peer = RankedPeer {
            id: node.id.clone(),
            region: long.clone(),
            peer_addr: format!("{long}:7947"),
            distance_km: Some(20_015.0),
            rtt_ms: Some(12_345.6),
            load: node.load,
            score: 12_345.6,
            why: String::new(),
        };
        assert_fits(&peers_table(&PeersAnswer {
            node: node.id.clone(),
            generated_at: 0,
            ttl_s: 30,
            peers: vec![peer.clone()],
        }));
        assert_fits(&edges_table(&EdgesAnswer {
            client: "1.2.3.4".into(),
            location: None,
            edges: vec![cluster::wire::RankedEdge {
                id: node.id,
                region: long.clone(),
                http: long.clone(),
                distance_km: Some(20_015.0),
                load: peer.load,
                score: 12_345.6,
            }],
        }));
        assert_fits(&sites::sites_table(&cluster::wire::SitesAnswer {
            version: 1,
            sites: vec![cluster::site::Site::new(&long, &[&long, &long], &[&long])],
        }));
    }

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
