//! What a store of very many small objects costs: to open, in memory, and on disk beyond what was
//! stored. Prints a table and judges nothing; `cargo bench --bench store -- 1000000`.
//!
//! Every opening is a process of its own, so that its memory is its own.

#![expect(
    clippy::print_stdout,
    reason = "this is a command; what it says goes to the terminal"
)]

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use cluster::key::Key;
use edge_node::cache::store::{Body, CLAIMED, Store, StoreConfig};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

/// How many, unless the command line says otherwise.
const OBJECTS: u64 = 1_000_000;
/// A small page: what heads and short bodies usually take.
const META_BYTES: usize = 250;
const BODY_BYTES: usize = 2_000;
const DISK_BYTES_MAX: u64 = 64 << 30;
/// Appends under way at once.
const APPENDS: usize = 512;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<_> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["open", dir] => open(Path::new(dir)).await,
        [] => measure(OBJECTS).await,
        [objects] => measure(objects.parse().context("a number of objects")?).await,
        _ => anyhow::bail!("usage: store [OBJECTS]"),
    }
}

async fn measure(objects: u64) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let started = Instant::now();
    fill(dir.path(), objects).await?;
    let secs = started.elapsed().as_secs_f64();
    let stored = objects * (META_BYTES + BODY_BYTES) as u64;
    println!("objects                 {objects} of {META_BYTES} + {BODY_BYTES} bytes");
    println!(
        "filled in               {secs:.1} s, {:.0} a second",
        objects as f64 / secs
    );
    println!(
        "on disk                 {:.3} times what was stored, index included",
        bytes_in(dir.path())? as f64 / stored as f64
    );
    println!(
        "index                   {:.1} bytes per object",
        bytes_in(&dir.path().join("index"))? as f64 / objects as f64
    );
    open_elsewhere(dir.path(), "after a clean stop")?;
    std::fs::remove_dir_all(dir.path().join("index"))?;
    open_elsewhere(dir.path(), "without an index")
}

async fn fill(dir: &Path, objects: u64) -> Result<()> {
    let store = Store::open(&config(dir), Arc::new(|_| {}))?;
    let (meta, body) = (
        Bytes::from(vec![1; META_BYTES]),
        Bytes::from(vec![2; BODY_BYTES]),
    );
    stream::iter(0..objects)
        .map(|n| {
            let key = Key::of(&[b"bench", &n.to_le_bytes()]);
            let (id, body) = (store.next_object_id(), Body::Inline(body.clone()));
            store.append_object(key, id, CLAIMED, meta.clone(), body)
        })
        .buffer_unordered(APPENDS)
        .try_collect::<()>()
        .await?;
    store.close().await;
    Ok(())
}

fn open_elsewhere(dir: &Path, how: &str) -> Result<()> {
    print!("open {how:19}");
    std::io::Write::flush(&mut std::io::stdout())?;
    let status = Command::new(env::current_exe()?)
        .arg("open")
        .arg(dir)
        .status()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

async fn open(dir: &Path) -> Result<()> {
    let before = resident_bytes()?;
    let started = Instant::now();
    let store = Store::open(&config(dir), Arc::new(|_| {}))?;
    let took = started.elapsed();
    let objects = store.stats().objects;
    let bytes = resident_bytes()? - before;
    println!(
        "{:.2} s, {:.0} bytes of memory per object ({objects} objects)",
        took.as_secs_f64(),
        bytes as f64 / objects as f64
    );
    store.close().await;
    Ok(())
}

fn config(dir: &Path) -> StoreConfig {
    StoreConfig {
        dir: dir.to_owned(),
        disk_bytes_max: DISK_BYTES_MAX,
        read_threads: 2,
    }
}

fn resident_bytes() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm
        .split_whitespace()
        .nth(1)
        .context("resident pages")?
        .parse()?;
    Ok(pages * 4096)
}

fn bytes_in(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    let mut left = vec![PathBuf::from(dir)];
    while let Some(path) = left.pop() {
        let metadata = std::fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            let entries = std::fs::read_dir(&path)?;
            left.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
        } else {
            bytes += metadata.len();
        }
    }
    Ok(bytes)
}
