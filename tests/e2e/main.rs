//! The real binaries over real sockets: what a user of the CDN would notice.
//!
//! - [`serving`]: one edge, and what HTTP promises;
//! - [`conforming`]: one edge, and what the RFCs ask of a shared cache;
//! - [`forwarding`]: what goes through an edge, byte by byte, in both directions;
//! - [`clients`]: one edge, and the programs people use: curl, wget, players, WebSockets;
//! - [`crowding`]: as many clients at once as there can be;
//! - [`overload`]: more than a node or an origin may do at once;
//! - [`leading`]: one edge, and misses over a connection that was kept;
//! - [`sharing`]: several edges, and where the bytes come from;
//! - [`warming`]: URLs fetched ahead of demand;
//! - [`ranging`]: parts of one object from edges that hold it;
//! - [`slicing`]: parts of one object that nobody holds;
//! - [`gathering`]: one object from many edges at once;
//! - [`swarming`]: one object that many edges want at once, while it comes in;
//! - [`homing`]: several edges, and how often the origin is asked;
//! - [`shielding`]: homes that are silent or have too much to do;
//! - [`ruling`]: what a site's owner rules;
//! - [`purging`]: what was purged does not come back; [`purges`]: as it is asked for, and told of;
//! - [`originating`]: several origins of a site, and what they learn of clients;
//! - [`withdrawing`]: what sites take down;
//! - [`registering`]: sites that come, change and go while edges serve;
//! - [`clocks`]: a clock that is off;
//! - [`losing`]: processes that are killed, stopped, or cut off;
//! - [`storing`]: a disk that is full, read-only, damaged or robbed, and a process killed over it;
//! - [`admitting`]: who may change what, and who may not;
//! - [`terminating`]: a control plane behind something that speaks TLS;
//! - [`agreeing`]: the stores of a control plane, which do the same;
//! - [`describing`]: what the control plane says of its API, and whether that is true;
//! - [`doubled`]: two control planes on one etcd, and what is lost when one is killed: nothing;
//! - [`regressing`]: bugs that were there once;
//! - [`refusing`]: what must be refused, and how clearly;
//! - [`operating`]: what operators see and scrape.

#[cfg(test)]
mod admitting;
#[cfg(test)]
mod agreeing;
#[cfg(test)]
mod clients;
#[cfg(test)]
mod clocks;
#[cfg(test)]
mod conforming;
#[cfg(test)]
mod crowding;
#[cfg(test)]
mod describing;
#[cfg(test)]
mod doubled;
#[cfg(test)]
mod forwarding;
#[cfg(test)]
mod gathering;
#[cfg(test)]
mod homing;
#[cfg(test)]
mod leading;
#[cfg(test)]
mod losing;
#[cfg(test)]
mod operating;
#[cfg(test)]
mod originating;
#[cfg(test)]
mod overload;
#[cfg(test)]
mod purges;
#[cfg(test)]
mod purging;
#[cfg(test)]
mod ranging;
#[cfg(test)]
mod refusing;
#[cfg(test)]
mod registering;
#[cfg(test)]
mod regressing;
#[cfg(test)]
mod ruling;
#[cfg(test)]
mod serving;
#[cfg(test)]
mod sharing;
#[cfg(test)]
mod shielding;
#[cfg(test)]
mod slicing;
#[cfg(test)]
mod storing;
#[cfg(test)]
mod swarming;
#[cfg(test)]
mod terminating;
#[cfg(test)]
mod warming;
#[cfg(test)]
mod withdrawing;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    cluster::{Cluster, Node, Plan},
    origin::{Directory, Origin},
    process::eventually,
};

/// One edge alone in front of a scripted origin.
async fn alone() -> (Origin, Cluster) {
    let origin = Origin::start().await.expect("a free port");
    let cluster = started(Plan::alone(&origin.url())).await;
    (origin, cluster)
}

async fn started(plan: Plan) -> Cluster {
    match plan.start().await {
        Ok(cluster) => cluster,
        Err(error) => panic!("{error:#}"),
    }
}

/// A directory with files of many sizes, and an origin that serves it: the toolchain's own
/// documentation where it is installed, generated files elsewhere.
struct Docs {
    root: PathBuf,
    origin: Origin,
    _generated: Option<tempfile::TempDir>,
}

impl Docs {
    async fn new() -> Self {
        let (root, generated) = match installed_docs().await {
            Some(root) => (root, None),
            None => {
                let dir = tempfile::tempdir().expect("a temporary directory");
                generate(dir.path()).expect("room for a few MB");
                (dir.path().to_owned(), Some(dir))
            }
        };
        let directory = Directory {
            root: root.clone(),
            cache_control: |_| Some("max-age=3600"),
        };
        let at = ([127, 0, 0, 1], 0).into();
        let origin = Origin::start_at(at, Some(directory))
            .await
            .expect("a free port");
        Self {
            root,
            origin,
            _generated: generated,
        }
    }
}

async fn installed_docs() -> Option<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = tokio::process::Command::new(rustc)
        .args(["--print", "sysroot"])
        .output()
        .await
        .ok()?;
    let sysroot = String::from_utf8(output.stdout).ok()?;
    let docs = Path::new(sysroot.trim()).join("share/doc/rust/html");
    docs.is_dir().then_some(docs)
}

fn generate(root: &Path) -> std::io::Result<()> {
    use harness::pattern::Pattern;
    for n in 0..2_000_u64 {
        let directory = root.join(format!("part {}", n % 40));
        std::fs::create_dir_all(&directory)?;
        let body = Pattern::new(n, n * n % 60_000).bytes();
        std::fs::write(directory.join(format!("page-{n}.html")), body)?;
    }
    Ok(())
}

/// A program of the system, for the tests that are about it; those are skipped elsewhere.
#[expect(clippy::print_stdout, reason = "who reads the output should know")]
fn installed(program: &str) -> Option<PathBuf> {
    let found = ["/usr/bin", "/usr/sbin", "/usr/local/bin"]
        .into_iter()
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.is_file());
    if found.is_none() {
        println!("skipped: {program} is not installed");
    }
    found
}

/// Waits until the object for `path` is in the edge's store: a hit.
async fn stored(edge: &Node, path: &str) {
    eventually(&format!("{path} is stored"), async || {
        let answer = edge.get(path).await?;
        ensure!(answer.cache_status().hit, "{:?}", answer.cache_status());
        Ok(())
    })
    .await
    .expect("it is stored");
}

/// Waits until `edge` has heard that `of` holds at least `objects` objects.
async fn heard_of(edge: &Node, of: &str, objects: u64) -> Result<()> {
    eventually(&format!("{} hears what {of} holds", edge.id), async || {
        let answer = edge.ask("/peers").await?.json()?;
        let peers = answer["peers"].as_array().context("no peers")?;
        let peer = peers.iter().find(|p| p["id"] == of).context("not a peer")?;
        let held = peer["digest"]["objects"].as_u64().unwrap_or_default();
        ensure!(held >= objects, "{held} of {objects}");
        Ok(())
    })
    .await
}

const SECOND: Duration = Duration::from_secs(1);
