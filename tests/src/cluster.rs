//! A control plane and edges as real processes on loopback, with lines between them.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use cluster::site::{Site, origin::Origin};
use tempfile::TempDir;
use toml::{Table, Value};

use crate::{
    client::{Client, Response},
    process::{Binaries, Log, Process, eventually, free_port, holder_of},
    proxy::{Conditions, Proxy},
    region::{REGIONS, Region},
};

/// Where the lab's ports begin unless told otherwise: the first edge.
pub const BASE_PORT: u16 = 8081;
/// Most edges, so that fixed ports do not run into each other.
pub const EDGES_MAX: usize = REGIONS.len();

/// How often a node is started that finds a port of its own taken.
const LAUNCHES_MAX: usize = 4;

/// What a cluster shall be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// One edge in each.
    pub regions: Vec<Region>,
    /// Whether there is a control plane; without one, the edges' own files name the site.
    pub control_plane: bool,
    /// Whether there is a second one, which the edges know as well.
    pub doubled: bool,
    /// The site.
    pub site: Site,
    /// The lines between the edges.
    pub lines: Lines,
    /// The first edge's port; the others follow from it. Free ports when absent.
    pub base_port: Option<u16>,
    /// Where everything is kept; a temporary directory when absent.
    pub data: Option<PathBuf>,
    /// Merged into every edge's configuration.
    pub edge_settings: Table,
    /// Merged into each control plane's configuration.
    pub control_settings: Table,
    /// Environment of every process.
    pub env: Vec<(String, String)>,
}

/// Lines between the edges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lines {
    /// Loopback itself.
    Direct,
    /// A proxy for each ordered pair, without delay; it can be made worse later.
    Perfect,
    /// A proxy before each edge, for all that others fetch from it; without delay or limit at first.
    Uplinks,
    /// A proxy for each ordered pair, as slow as the way is long; and one towards the origin, which
    /// stands at this place.
    Delayed {
        /// Where the origin stands.
        origin: Region,
    },
}

impl Plan {
    /// `edges` edges in different regions with a control plane, in front of `origin` (a base URL),
    /// for the hosts `site.test` and `*.site.test`.
    pub fn new(edges: usize, origin: &str) -> Self {
        Self {
            regions: REGIONS[..edges].to_vec(),
            control_plane: true,
            doubled: false,
            site: Site::new("site", &[HOST, "*.site.test"], &[origin]),
            lines: Lines::Direct,
            base_port: None,
            data: None,
            edge_settings: Table::new(),
            control_settings: Table::new(),
            env: vec![("RUST_LOG".into(), "info".into())],
        }
    }

    /// One edge that stands alone: no control plane, no cluster.
    pub fn alone(origin: &str) -> Self {
        Self {
            control_plane: false,
            ..Self::new(1, origin)
        }
    }

    /// With a setting of every edge, such as `("cache", "memory", "16MiB")`.
    #[must_use]
    pub fn edge_setting(mut self, section: &str, key: &str, value: impl Into<Value>) -> Self {
        set(&mut self.edge_settings, section, key, value);
        self
    }

    /// With these lines.
    #[must_use]
    pub fn lines(self, lines: Lines) -> Self {
        Self { lines, ..self }
    }

    /// With the site changed.
    #[must_use]
    pub fn site(mut self, change: impl FnOnce(&mut Site)) -> Self {
        change(&mut self.site);
        self
    }

    /// Writes the configurations and starts everything, the control plane first; ready when it
    /// returns.
    ///
    /// # Errors
    ///
    /// Something cannot be built, written or started, or does not become ready within a minute.
    pub async fn start(self) -> Result<Cluster> {
        let mut cluster = self.prepare().await?;
        for control in cluster.control.iter_mut().chain(&mut cluster.second) {
            control.start().await?;
        }
        for edge in &mut cluster.edges {
            edge.launch()?;
        }
        for edge in &mut cluster.edges {
            edge.ready().await?;
        }
        cluster.name_origin_callers();
        Ok(cluster)
    }

    /// Writes the configurations and starts nothing.
    ///
    /// # Errors
    ///
    /// Something cannot be built or written.
    pub async fn prepare(mut self) -> Result<Cluster> {
        let binaries = Binaries::find().await?;
        let (root, temporary) = match &self.data {
            Some(path) => (path.clone(), None),
            None => {
                let dir = tempfile::Builder::new().prefix("cdn-").tempdir()?;
                (dir.path().to_owned(), Some(dir))
            }
        };
        fs::create_dir_all(&root).with_context(|| root.display().to_string())?;
        let secret = root.join("secret");
        if !secret.exists() {
            write_secret(&secret)?;
        }
        let origin_delays: OriginDelays = Arc::default();
        let origin_line = match self.lines {
            Lines::Delayed { .. } => self.put_origin_line(&origin_delays).await?,
            _ => None,
        };
        let ports = Ports(self.base_port);
        let names: Vec<_> = (1..=self.regions.len())
            .map(|n| format!("edge-{n}"))
            .collect();
        let mut edges: Vec<_> = (names.iter().zip(&self.regions).enumerate())
            .map(|(i, (name, region))| {
                let mut node = Node::new(name, &root, &binaries.edge_node, &self.env);
                node.region = Some(*region);
                node.http = ports.edge_http(i);
                node.admin = ports.edge(9091, i);
                node.peer = Some(ports.edge(7971, i));
                node.gossip = Some(ports.edge(7951, i));
                node
            })
            .collect();
        let planned = |name: &str, [http, gossip, steer]: [SocketAddr; 3]| {
            let mut node = Node::new(name, &root, &binaries.control_plane, &self.env);
            node.verb = Some("serve");
            node.http = http;
            node.admin = http;
            node.gossip = Some(gossip);
            node.steer = Some(steer);
            node
        };
        let control = (self.control_plane)
            .then(|| planned("control", [7900, 7946, 8088].map(|port| ports.at(port))));
        let second = (self.doubled).then(|| {
            let ports = [(); 3].map(|()| (Ipv4Addr::LOCALHOST, free_port()).into());
            planned("control-2", ports)
        });
        let controls: Vec<&Node> = control.iter().chain(&second).collect();
        let links = self.put_lines(&edges).await?;
        let seeds: Vec<Value> = (controls.iter().copied().chain(edges.first()))
            .filter_map(|n| n.gossip)
            .map(|at| at.to_string().into())
            .collect();
        for (i, edge) in edges.iter_mut().enumerate() {
            let reach: Table = (links.iter())
                .filter(|((from, to), _)| match from == to {
                    true => *to != i,
                    false => *from == i,
                })
                .map(|((_, to), line)| (names[*to].clone(), line.address().to_string().into()))
                .collect();
            let mut config = edge.listen_config();
            self.edge_config(&mut config, edge, &controls, &seeds, &secret, reach)?;
            if let Some(line) = links.get(&(i, i)) {
                // Control planes come that way, too.
                set(&mut config, "advertise", "peer", line.address().to_string());
            }
            merge(&mut config, &self.edge_settings);
            edge.write_config(&config)?;
        }
        for control in controls {
            let mut config = control.listen_config();
            set(&mut config, "cluster", "name", "test");
            set(&mut config, "cluster", "seeds", seeds.clone());
            set(&mut config, "cluster", "secret_file", path_text(&secret));
            config.insert(
                "site".into(),
                Value::Array(vec![Value::try_from(&self.site)?]),
            );
            merge(&mut config, &self.control_settings);
            control.write_config(&config)?;
        }
        Ok(Cluster {
            edges,
            control,
            second,
            links,
            origin_delays,
            origin_line,
            lines: self.lines,
            secret,
            root,
            _temporary: temporary,
        })
    }

    fn edge_config(
        &self,
        config: &mut Table,
        edge: &Node,
        controls: &[&Node],
        seeds: &[Value],
        secret: &Path,
        reach: Table,
    ) -> Result<()> {
        if let Some(region) = edge.region {
            set(config, "node", "region", region.name);
            set(config, "node", "latitude", region.latitude);
            set(config, "node", "longitude", region.longitude);
        }
        // The same host on another port: a redirect keeps the cache key.
        let http = format!("http://{{host}}:{}", edge.http.port());
        set(config, "advertise", "http", http);
        if !controls.is_empty() {
            let urls = controls.iter().map(|control| Value::from(control.url("")));
            let urls: Vec<_> = urls.collect();
            set(config, "cluster", "control_plane", urls);
        } else {
            config.insert(
                "site".into(),
                Value::Array(vec![Value::try_from(&self.site)?]),
            );
        }
        if !controls.is_empty() || self.regions.len() > 1 {
            set(config, "cluster", "name", "test");
            set(config, "cluster", "seeds", seeds.to_vec());
            set(config, "cluster", "secret_file", path_text(secret));
        }
        if !reach.is_empty() {
            set(config, "cluster", "reach", reach);
        }
        Ok(())
    }

    /// Puts a line before the origin; its delay depends on which edge calls. A TLS origin is left
    /// alone: its certificate names it.
    async fn put_origin_line(&mut self, delays: &OriginDelays) -> Result<Option<Proxy>> {
        let Some(origin) = self.site.origins.first().cloned() else {
            return Ok(None);
        };
        let Some(authority) = origin.url.strip_prefix("http://") else {
            return Ok(None);
        };
        let authority = authority.trim_end_matches('/').to_owned();
        let to = if authority
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok())
        {
            authority.clone()
        } else {
            format!("{authority}:80")
        };
        let delays = delays.clone();
        let by = move |from| {
            let delays = delays
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            let ids: Vec<_> = delays.keys().copied().collect();
            holder_of(from, &ids).and_then(|id| delays.get(&id).copied())
        };
        let line = Proxy::start_by(&to, Conditions::default(), Arc::new(by)).await?;
        self.site.origins = vec![Origin::from(&*format!("http://{}", line.address()))];
        Ok(Some(line))
    }

    async fn put_lines(&self, edges: &[Node]) -> Result<BTreeMap<(usize, usize), Proxy>> {
        let mut lines = BTreeMap::new();
        if self.lines == Lines::Direct {
            return Ok(lines);
        }
        if self.lines == Lines::Uplinks {
            for (i, edge) in edges.iter().enumerate() {
                let peer = edge.peer.expect("every edge has a peer listener");
                let line = Proxy::start(&peer.to_string(), Conditions::default()).await?;
                lines.insert((i, i), line);
            }
            return Ok(lines);
        }
        for (i, from) in self.regions.iter().enumerate() {
            for (j, to) in self.regions.iter().enumerate().filter(|(j, _)| *j != i) {
                let conditions = match self.lines {
                    Lines::Delayed { .. } => Conditions::delay(from.one_way(*to)),
                    _ => Conditions::default(),
                };
                let peer = edges[j].peer.expect("every edge has a peer listener");
                let line = Proxy::start(&peer.to_string(), conditions).await?;
                lines.insert((i, j), line);
            }
        }
        Ok(lines)
    }
}

/// The first host of [`Plan::new`]'s site.
pub const HOST: &str = "site.test";

type OriginDelays = Arc<Mutex<HashMap<u32, Duration>>>;

struct Ports(Option<u16>);

impl Ports {
    /// The port that is `port` when the first edge is at [`BASE_PORT`].
    fn at(&self, port: u16) -> SocketAddr {
        let port = match self.0 {
            Some(base) => (port - 7900).saturating_add(base - (BASE_PORT - 7900)),
            None => free_port(),
        };
        (Ipv4Addr::LOCALHOST, port).into()
    }

    fn edge(&self, first: u16, index: usize) -> SocketAddr {
        self.at(first + u16::try_from(index).expect("few edges"))
    }

    /// Leaves out the steering listener's port.
    fn edge_http(&self, index: usize) -> SocketAddr {
        self.edge(BASE_PORT, if index < 7 { index } else { index + 1 })
    }
}

/// Processes, and the lines between them. Dropping it kills what still runs.
pub struct Cluster {
    /// The edges: `edge-1`, `edge-2`, ….
    pub edges: Vec<Node>,
    /// The control plane.
    pub control: Option<Node>,
    /// The second one, in a plan that is doubled.
    pub second: Option<Node>,
    /// From one edge to another; from an edge to itself: its uplink.
    links: BTreeMap<(usize, usize), Proxy>,
    origin_delays: OriginDelays,
    origin_line: Option<Proxy>,
    lines: Lines,
    /// The file with the cluster's secret.
    pub secret: PathBuf,
    /// Where everything is kept.
    pub root: PathBuf,
    _temporary: Option<TempDir>,
}

impl Cluster {
    /// The control plane, in a plan that has one.
    pub fn control(&mut self) -> &mut Node {
        self.control.as_mut().expect("the plan has a control plane")
    }

    /// The line from edge `from` to edge `to`, by their indices, in a plan that has lines.
    pub fn line(&self, from: usize, to: usize) -> &Proxy {
        &self.links[&(from, to)]
    }

    /// The line over which all others fetch what edge `of` gives, in a plan with uplinks.
    pub fn uplink(&self, of: usize) -> &Proxy {
        &self.links[&(of, of)]
    }

    /// Everything that may run.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.control.iter().chain(&self.second).chain(&self.edges)
    }

    /// Waits until every running edge lists every other running edge as its peer, and every
    /// control plane knows as many that live.
    ///
    /// # Errors
    ///
    /// They do not find each other within a minute.
    pub async fn settled(&self) -> Result<()> {
        let running: Vec<_> = self.edges.iter().filter(|e| e.process.is_some()).collect();
        for edge in &running {
            let mut others: Vec<_> = running.iter().map(|e| e.id.as_str()).collect();
            others.retain(|id| *id != edge.id);
            others.sort_unstable();
            eventually(&format!("{} knows {others:?}", edge.id), async || {
                let known = edge.peers().await?;
                ensure!(known == others, "it knows {known:?}");
                Ok(())
            })
            .await?;
        }
        let wanted = u32::try_from(running.len())?;
        let controls = self.control.iter().chain(&self.second);
        for control in controls.filter(|control| control.process.is_some()) {
            eventually(&format!("{} knows all edges", control.id), async || {
                let all = control.metric("control_plane_nodes", &[]).await?;
                let departed = ["state=\"departed\""];
                let departed = control.metric("control_plane_nodes", &departed).await?;
                let alive = all - departed;
                ensure!(alive >= f64::from(wanted), "it knows {alive}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Asks everything to end, and waits.
    ///
    /// # Errors
    ///
    /// Something goes on for a minute.
    pub async fn stop(&mut self) -> Result<()> {
        for node in self.nodes() {
            if let Some(process) = &node.process {
                process.ask_to_end();
            }
        }
        // A second signal would end them at once, so this only waits.
        let controls = self.control.iter_mut().chain(&mut self.second);
        for node in self.edges.iter_mut().chain(controls) {
            if let Some(mut process) = node.process.take() {
                process.wait().await?;
            }
        }
        Ok(())
    }

    /// Tells the origin's line which process stands where; again after a restart.
    pub fn name_origin_callers(&self) {
        let Lines::Delayed { origin } = self.lines else {
            return;
        };
        if self.origin_line.is_none() {
            return;
        }
        let callers = self.edges.iter().filter_map(|edge| {
            let id = edge.process.as_ref()?.id()?;
            Some((id, edge.region?.one_way(origin)))
        });
        let mut delays = self
            .origin_delays
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *delays = callers.collect();
    }
}

/// One process of the cluster, running or not, with its configuration and directory.
pub struct Node {
    /// Its name in the cluster.
    pub id: String,
    /// Where an edge stands.
    pub region: Option<Region>,
    /// The public listener, or the control plane's API.
    pub http: SocketAddr,
    /// Where `/metrics` and the like are.
    pub admin: SocketAddr,
    /// The peer listener of an edge.
    pub peer: Option<SocketAddr>,
    /// Gossip.
    pub gossip: Option<SocketAddr>,
    /// The steering listener of a control plane.
    pub steer: Option<SocketAddr>,
    /// Its configuration file.
    pub config: PathBuf,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// The executable.
    pub binary: PathBuf,
    verb: Option<&'static str>,
    env: Vec<(String, String)>,
    process: Option<Process>,
    client: Client,
}

impl Node {
    fn new(id: &str, root: &Path, binary: &Path, env: &[(String, String)]) -> Self {
        let nowhere = (Ipv4Addr::LOCALHOST, 0).into();
        Self {
            id: id.to_owned(),
            region: None,
            http: nowhere,
            admin: nowhere,
            peer: None,
            gossip: None,
            steer: None,
            config: root.join(format!("{id}.toml")),
            data_dir: root.join(id),
            binary: binary.to_owned(),
            verb: None,
            env: env.to_vec(),
            process: None,
            client: Client::new(),
        }
    }

    fn listen_config(&self) -> Table {
        let mut config = Table::new();
        set(&mut config, "node", "id", self.id.as_str());
        set(&mut config, "node", "data_dir", path_text(&self.data_dir));
        set(&mut config, "listen", "http", self.http.to_string());
        if self.admin != self.http {
            set(&mut config, "listen", "admin", self.admin.to_string());
        }
        for (key, at) in [
            ("peer", self.peer),
            ("gossip", self.gossip),
            ("steer", self.steer),
        ] {
            if let Some(at) = at {
                set(&mut config, "listen", key, at.to_string());
            }
        }
        config
    }

    /// Replaces its configuration file.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn write_config(&self, config: &Table) -> Result<()> {
        fs::write(&self.config, toml::to_string(config)?)
            .with_context(|| self.config.display().to_string())
    }

    /// Its configuration file, as it is now.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn read_config(&self) -> Result<Table> {
        Ok(fs::read_to_string(&self.config)?.parse()?)
    }

    /// Changes one setting in its configuration file.
    ///
    /// # Errors
    ///
    /// It cannot be read or written.
    pub fn configure(&self, section: &str, key: &str, value: impl Into<Value>) -> Result<()> {
        let mut config = self.read_config()?;
        set(&mut config, section, key, value);
        self.write_config(&config)
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    ///
    /// It cannot be started, ends, or is not ready within a minute.
    pub async fn start(&mut self) -> Result<()> {
        self.launch()?;
        self.ready().await
    }

    /// Starts it without waiting.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn launch(&mut self) -> Result<()> {
        let config = path_text(&self.config);
        let args: Vec<_> = self.verb.into_iter().chain(["--config", &config]).collect();
        let env: Vec<_> = self
            .env
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        self.process = Some(Process::start(&self.id, &self.binary, &args, &env)?);
        Ok(())
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    ///
    /// It ends, or is not ready within a minute.
    pub async fn ready(&mut self) -> Result<()> {
        let begun = tokio::time::Instant::now();
        let mut launches_left = LAUNCHES_MAX - 1;
        loop {
            let process = self.process.as_mut().context("it was not started")?;
            if let Some(status) = process.ended()? {
                process.wait().await?;
                let words = process.log().tail(20).join("\n");
                self.process = None;
                // Somebody else on this machine held one of its ports for a moment.
                if launches_left > 0 && words.contains("in use") {
                    launches_left -= 1;
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    self.launch()?;
                    continue;
                }
                anyhow::bail!("{} ended with {status}:\n{words}", self.id);
            }
            let answer = self
                .client
                .get(&format!("http://{}/readyz", self.admin))
                .await;
            match answer {
                Ok(answer) if answer.status == 200 => return Ok(()),
                other if begun.elapsed() > Duration::from_secs(60) => {
                    let words = process.log().tail(20).join("\n");
                    let said = other.map(|a| a.text());
                    anyhow::bail!("{} is not ready: {said:?}\n{words}", self.id);
                }
                _ => tokio::time::sleep(Duration::from_millis(30)).await,
            }
        }
    }

    /// The running process.
    ///
    /// # Panics
    ///
    /// It does not run.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it runs")
    }

    /// The log of the running process.
    ///
    /// # Panics
    ///
    /// It does not run.
    pub fn log(&self) -> Log {
        self.process.as_ref().expect("it runs").log().clone()
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    ///
    /// It goes on for a minute.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        self.process
            .take()
            .context("it does not run")?
            .terminate()
            .await
    }

    /// SIGKILL.
    ///
    /// # Errors
    ///
    /// It does not run.
    pub async fn kill9(&mut self) -> Result<()> {
        self.process
            .take()
            .context("it does not run")?
            .kill9()
            .await
    }

    /// A URL on its public listener (or the control plane's API).
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    /// GET for [`HOST`] on the public listener.
    ///
    /// # Errors
    ///
    /// No whole response came.
    pub async fn get(&self, path: &str) -> Result<Response> {
        self.get_with(path, &[]).await
    }

    /// GET for [`HOST`] with more header fields.
    ///
    /// # Errors
    ///
    /// No whole response came.
    pub async fn get_with(&self, path: &str, fields: &[(&str, &str)]) -> Result<Response> {
        let mut all = Vec::from(fields);
        if !fields.iter().any(|(name, _)| *name == "host") {
            all.push(("host", HOST));
        }
        self.client.get_with(&self.url(path), &all).await
    }

    /// GET on the admin listener (or the control plane's API).
    ///
    /// # Errors
    ///
    /// No whole response came.
    pub async fn ask(&self, path: &str) -> Result<Response> {
        self.client
            .get(&format!("http://{}{path}", self.admin))
            .await
    }

    /// The names in its `/peers`, in order.
    ///
    /// # Errors
    ///
    /// No such answer.
    pub async fn peers(&self) -> Result<Vec<String>> {
        let answer = self.ask("/peers").await?.json()?;
        let peers = answer["peers"].as_array().context("no peers in it")?;
        let ids = peers.iter().filter_map(|p| p["id"].as_str());
        let mut ids: Vec<_> = ids.map(str::to_owned).collect();
        ids.sort();
        Ok(ids)
    }

    /// The sum of a metric over all series whose labels contain each of `labels`
    /// (`source="peer"`).
    ///
    /// # Errors
    ///
    /// No answer.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let text = self.ask("/metrics").await?.text();
        let series = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (this, inside) = series.split_once('{').unwrap_or((series, ""));
            let fits = this == name && labels.iter().all(|l| inside.contains(l));
            fits.then(|| value.parse::<f64>().ok())?
        });
        Ok(series.sum())
    }
}

/// Sets `section.key` in a configuration.
pub fn set(config: &mut Table, section: &str, key: &str, value: impl Into<Value>) {
    let section = config
        .entry(section)
        .or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(section) = section {
        section.insert(key.to_owned(), value.into());
    }
}

fn merge(into: &mut Table, from: &Table) {
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (Some(Value::Table(into)), Value::Table(from)) => merge(into, from),
            _ => {
                into.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Writes a new secret that only this user may read.
///
/// # Errors
///
/// The system's error.
pub fn write_secret(file: &Path) -> Result<()> {
    let mut text = String::new();
    for byte in rand::random::<[u8; 32]>() {
        let _ = write!(text, "{byte:02x}");
    }
    fs::write(file, text + "\n").with_context(|| file.display().to_string())?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o600))?;
    Ok(())
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
