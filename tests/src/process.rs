//! The real binaries as processes: found or built, started, listened to, ended.

use std::{
    collections::{BTreeSet, VecDeque},
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::{OnceCell, broadcast},
    task::JoinHandle,
    time::{sleep, timeout},
};

/// Most lines of a process's log that are kept.
const LOG_LINES_MAX: usize = 20_000;
/// Lines of the log shown when a test fails.
const LOG_LINES_SHOWN: usize = 30;
/// How long a process may take to become ready, or to end when asked.
const PATIENCE: Duration = Duration::from_secs(60);
/// Ports handed out: below the range that the system takes outgoing ports from.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// Where the binaries are.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `edge-node`.
    pub edge_node: PathBuf,
    /// `control-plane`.
    pub control_plane: PathBuf,
}

impl Binaries {
    /// Where `TESTS_EDGE_NODE` and `TESTS_CONTROL_PLANE` say; else what cargo builds from this
    /// checkout in the profile of this executable. Built at most once per process.
    ///
    /// # Errors
    ///
    /// The build fails; cargo has said why.
    pub async fn find() -> Result<&'static Self> {
        static FOUND: OnceCell<Binaries> = OnceCell::const_new();
        FOUND
            .get_or_try_init(|| async {
                let given = |name| std::env::var_os(name).map(PathBuf::from);
                match (given("TESTS_EDGE_NODE"), given("TESTS_CONTROL_PLANE")) {
                    (Some(edge_node), Some(control_plane)) => Ok(Self {
                        edge_node,
                        control_plane,
                    }),
                    _ => Self::build().await,
                }
            })
            .await
    }

    async fn build() -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        let profile = if cfg!(debug_assertions) {
            "dev"
        } else {
            "release"
        };
        // With `tests` among the packages, the dependencies' features are those that this
        // executable was built with, so nothing is compiled twice.
        let mut command = Command::new(cargo);
        for (variable, _) in std::env::vars_os() {
            // What cargo tells a process of its package: build scripts (ring's) would take them for
            // their own, find them changed, and be run again, with all that depends on them.
            let text = variable.to_string_lossy();
            if [
                "CARGO_PKG_",
                "CARGO_MANIFEST_",
                "CARGO_BIN_",
                "CARGO_CRATE_",
            ]
            .iter()
            .any(|prefix| text.starts_with(prefix))
            {
                command.env_remove(&variable);
            }
        }
        let output = command
            .current_dir(checkout())
            .args(["build", "--locked", "--profile", profile, "--bins"])
            .args(["-p", "edge-node", "-p", "control-plane", "-p", "tests"])
            .arg("--message-format=json-render-diagnostics")
            .stderr(Stdio::inherit())
            .output()
            .await
            .context("cargo cannot be started")?;
        ensure!(output.status.success(), "cargo build failed");
        let binary = |name: &str| {
            let messages = output.stdout.split(|&b| b == b'\n');
            messages
                .filter_map(|m| serde_json::from_slice::<serde_json::Value>(m).ok())
                .filter(|m| m["target"]["name"] == name)
                .find_map(|m| m["executable"].as_str().map(PathBuf::from))
                .with_context(|| format!("cargo built no {name}"))
        };
        Ok(Self {
            edge_node: binary("edge-node")?,
            control_plane: binary("control-plane")?,
        })
    }
}

/// The root of the checkout that this was built from.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this package lies in the workspace")
}

/// A loopback port that is free for TCP and UDP right now, that the system will not hand to an outgoing
/// connection, and that no other test of this process was given: it may not have bound it yet.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    for _ in 0..1_000 {
        let port = rand::random_range(PORTS);
        let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
        if is_free(port) && given.insert(port) {
            return port;
        }
    }
    panic!("no free port in {PORTS:?}");
}

/// Whether nobody holds this loopback port.
pub fn is_free(port: u16) -> bool {
    let at = (Ipv4Addr::LOCALHOST, port);
    TcpListener::bind(at).is_ok() && UdpSocket::bind(at).is_ok()
}

/// Which of `candidates` (process numbers) holds the loopback connection whose near end is `end`.
/// Reads the system's tables; blocks.
pub fn holder_of(end: SocketAddr, candidates: &[u32]) -> Option<u32> {
    let SocketAddr::V4(end) = end else {
        return None;
    };
    // The kernel writes the address in host order and the port in hexadecimal.
    let ip = u32::from_ne_bytes(end.ip().octets());
    let near = format!("{ip:08X}:{:04X}", end.port());
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let inode = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|words| words.get(1) == Some(&near.as_str()))?
        .get(9)?
        .to_string();
    let socket = format!("socket:[{inode}]");
    candidates.iter().copied().find(|id| {
        let Ok(open) = std::fs::read_dir(format!("/proc/{id}/fd")) else {
            return false;
        };
        open.flatten()
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .any(|target| target.as_os_str() == socket.as_str())
    })
}

/// A running process of ours. Dropping it kills it, and when a test is failing shows its last
/// words.
pub struct Process {
    name: String,
    child: Child,
    log: Log,
    readers: Vec<JoinHandle<()>>,
}

/// What a process has written so far.
#[derive(Clone)]
pub struct Log {
    lines: Arc<Mutex<VecDeque<String>>>,
    news: broadcast::Sender<String>,
}

impl Log {
    fn new() -> Self {
        Self {
            lines: Arc::default(),
            news: broadcast::channel(1_024).0,
        }
    }

    /// Lines that contain `text`.
    pub fn matching(&self, text: &str) -> Vec<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().filter(|l| l.contains(text)).cloned().collect()
    }

    /// The newest lines, oldest first.
    pub fn tail(&self, count: usize) -> Vec<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines
            .iter()
            .skip(lines.len().saturating_sub(count))
            .cloned()
            .collect()
    }

    /// Lines from now on; a reader that falls behind by 1,024 misses some.
    pub fn follow(&self) -> broadcast::Receiver<String> {
        self.news.subscribe()
    }

    async fn read(self, from: impl AsyncRead + Unpin) {
        let mut lines = BufReader::new(from).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            // Nobody may be following.
            let _ = self.news.send(line.clone());
            let mut kept = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == LOG_LINES_MAX {
                kept.pop_front();
            }
            kept.push_back(line);
        }
    }
}

impl Process {
    /// Starts `binary`, called `name` in messages, in a process group of its own: a Ctrl-C at the
    /// terminal reaches us, and we decide on the order.
    ///
    /// # Errors
    ///
    /// The system's error on starting it.
    pub fn start(name: &str, binary: &Path, args: &[&str], env: &[(&str, &str)]) -> Result<Self> {
        let mut command = Command::new(binary);
        for (variable, _) in std::env::vars_os() {
            let text = variable.to_string_lossy();
            if text.starts_with("EDGE_") || text.starts_with("CONTROL_PLANE_") {
                command.env_remove(&variable);
            }
        }
        let mut child = command
            .args(args)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let log = Log::new();
        let out = child.stdout.take().expect("stdout is piped");
        let err = child.stderr.take().expect("stderr is piped");
        let readers = vec![
            tokio::spawn(log.clone().read(out)),
            tokio::spawn(log.clone().read(err)),
        ];
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
            readers,
        })
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process number; `None` once it has ended.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// What it writes.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Resident memory in bytes, as the kernel counts it.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn resident_bytes(&self) -> Result<u64> {
        self.status_bytes("VmRSS:")
    }

    /// The most of it that there ever was.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub fn peak_resident_bytes(&self) -> Result<u64> {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, field: &str) -> Result<u64> {
        let id = self.id().context("has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status.lines().find_map(|l| l.strip_prefix(field));
        let kib: u64 = line
            .and_then(|l| l.trim().strip_suffix(" kB"))
            .with_context(|| format!("no {field}"))?
            .parse()?;
        Ok(kib << 10)
    }

    /// Whether it has ended by itself, and how.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end, and for the last of its log.
    ///
    /// # Errors
    ///
    /// It goes on for a minute.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        let ended = timeout(PATIENCE, self.child.wait()).await;
        let status = ended.with_context(|| format!("{} does not end", self.name))??;
        for reader in self.readers.drain(..) {
            let _ = timeout(PATIENCE, reader).await;
        }
        Ok(status)
    }

    /// Asks it to end, without waiting.
    pub fn ask_to_end(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGTERM, then waits.
    ///
    /// # Errors
    ///
    /// It goes on for a minute.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM);
        self.wait().await
    }

    /// SIGKILL, then waits.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub async fn kill9(&mut self) -> Result<()> {
        self.signal(Signal::KILL);
        self.wait().await.map(|_| ())
    }

    /// Stops it where it stands, as a machine that hangs; see [`Process::thaw`].
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        // A child that was not waited for keeps its number, so this reaches nobody else.
        if let Some(id) = self.id().and_then(|id| Pid::from_raw(id.cast_signed()))
            && let Err(error) = kill_process(id, signal)
        {
            tracing::warn!(name = self.name, %error, "cannot signal");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let tail = self.log.tail(LOG_LINES_SHOWN).join("\n  ");
            #[expect(
                clippy::print_stderr,
                reason = "the test's own output is the place for it"
            )]
            {
                eprintln!("--- last words of {}:\n  {tail}", self.name);
            }
        }
    }
}

/// Runs a command to its end: its status, and what it wrote to both outputs.
///
/// # Errors
///
/// It cannot be started, or goes on for a minute.
pub async fn run(
    binary: &Path,
    args: &[&str],
    env: &[(&str, &str)],
) -> Result<(ExitStatus, String)> {
    let name = binary.file_name().unwrap_or_default().to_string_lossy();
    let mut process = Process::start(&name, binary, args, env)?;
    let status = process.wait().await?;
    Ok((status, process.log.tail(LOG_LINES_MAX).join("\n")))
}

/// Asks `check` again and again until it holds.
///
/// # Errors
///
/// It does not hold within a minute; the error is the last one it gave.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let begun = tokio::time::Instant::now();
    loop {
        match check().await {
            Ok(value) => return Ok(value),
            Err(error) if begun.elapsed() > PATIENCE => {
                bail!("{what}: not within {PATIENCE:?}: {error:#}")
            }
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_started_heard_and_ended() {
        let sh = Path::new("/bin/sh");
        let script = "echo ready; trap 'echo bye; exit 3' TERM; while :; do sleep 0.05; done";
        let mut process = Process::start("shell", sh, &["-c", script], &[]).unwrap();
        let log = process.log().clone();
        eventually("it speaks", async || {
            ensure!(!log.matching("ready").is_empty());
            Ok(())
        })
        .await
        .unwrap();
        let resident = process.resident_bytes().unwrap();
        assert!(resident > 100 << 10);
        assert!(process.peak_resident_bytes().unwrap() >= resident);
        assert_eq!(process.terminate().await.unwrap().code(), Some(3));
        assert_eq!(log.tail(1), ["bye"]);
        let (status, said) = run(sh, &["-c", "echo a; echo b >&2; exit 4"], &[])
            .await
            .unwrap();
        assert_eq!(status.code(), Some(4));
        assert!(said.contains('a') && said.contains('b'));
    }

    #[tokio::test]
    async fn a_dropped_process_is_gone() {
        let process = Process::start("sleep", Path::new("/bin/sleep"), &["1000"], &[]).unwrap();
        let id = process.id().unwrap();
        drop(process);
        eventually("it is gone", async || {
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            ensure!(stat.is_empty() || stat.contains(") Z "), "{stat}");
            Ok(())
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn the_holder_of_a_connection_is_found() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let me = std::process::id();
        let end = near.local_addr().unwrap();
        assert_eq!(holder_of(end, &[1, me]), Some(me));
        assert_eq!(holder_of(end, &[1]), None);
    }
}
