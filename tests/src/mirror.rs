//! Fetches a whole directory through an edge, compares every byte with the files, and tallies where
//! the edge says it came from.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, stream};

use crate::{cache_status::Source, client::Client};

/// Most failures described in a tally; all are counted.
const ERRORS_SHOWN_MAX: usize = 20;
/// Most directories below each other.
const DEPTH_MAX: usize = 64;

/// A directory to be fetched.
#[derive(Clone, Debug)]
pub struct Mirror {
    root: PathBuf,
    files: Vec<PathBuf>,
    bytes: u64,
}

/// What came of a mirror run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Files fetched and found equal.
    pub equal: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Of these, answered from the edge's own store.
    pub hits: usize,
    /// Of these, fetched from a peer.
    pub peers: usize,
    /// Of these, fetched through the key's home.
    pub homes: usize,
    /// Of these, fetched from the origin.
    pub origin: usize,
    /// Of these, those that do not say.
    pub unsaid: usize,
    /// Files that did not come, or came different.
    pub failed: usize,
    /// The first failures, described.
    pub errors: Vec<String>,
}

impl Mirror {
    /// The regular files below `root`, in order of their paths; at most `files_max` of them.
    ///
    /// # Errors
    ///
    /// A directory cannot be read, or there is no file at all.
    pub fn of(root: &Path, files_max: usize) -> Result<Self> {
        let mut files = Vec::new();
        let mut bytes = 0;
        list(root, DEPTH_MAX, &mut |path, length| {
            files.push((path, length));
        })
        .with_context(|| root.display().to_string())?;
        files.sort();
        files.truncate(files_max);
        ensure!(!files.is_empty(), "{} holds no file", root.display());
        let paths = files.into_iter().map(|(path, length)| {
            bytes += length;
            path
        });
        Ok(Self {
            root: root.to_owned(),
            files: paths.collect(),
            bytes,
        })
    }

    /// How many files there are.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// How many bytes they have together.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Path and query of every file, as a client asks for it.
    pub fn targets(&self) -> impl Iterator<Item = String> {
        self.files.iter().map(|file| {
            let below = file
                .strip_prefix(&self.root)
                .expect("listed below the root");
            target(below)
        })
    }

    /// Fetches every file from `edge` (a base URL) under `host`, at most `at_once` at a time.
    pub async fn fetch(&self, edge: &str, host: &str, at_once: usize) -> Tally {
        let client = Client::new();
        let jobs: Vec<_> = self.files.iter().cloned().zip(self.targets()).collect();
        let mut outcomes = stream::iter(jobs)
            .map(|(file, target)| {
                let client = client.clone();
                async move {
                    let url = format!("{edge}{target}");
                    fetch_one(&client, &url, host, &file)
                        .await
                        .with_context(|| target)
                }
            })
            .buffer_unordered(at_once);
        let mut tally = Tally::default();
        while let Some(outcome) = outcomes.next().await {
            tally.add(outcome);
        }
        tally
    }
}

async fn fetch_one(client: &Client, url: &str, host: &str, file: &Path) -> Result<(u64, Source)> {
    let answer = client.digest(url, &[("host", host)]).await?;
    ensure!(answer.status == 200, "status {}", answer.status);
    let path = file.to_owned();
    let expected = tokio::task::spawn_blocking(move || hash_file(&path)).await??;
    ensure!(
        answer.hash == expected,
        "{} bytes that are not the file's",
        answer.bytes
    );
    Ok((answer.bytes, answer.cache_status().source()))
}

/// The hash of a file's bytes. Blocks.
///
/// # Errors
///
/// The system's error.
pub fn hash_file(path: &Path) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize())
}

impl Tally {
    fn add(&mut self, outcome: Result<(u64, Source)>) {
        match outcome {
            Ok((bytes, source)) => {
                self.equal += 1;
                self.bytes += bytes;
                *match source {
                    Source::Hit => &mut self.hits,
                    Source::Peer(_) => &mut self.peers,
                    Source::Home(_) => &mut self.homes,
                    Source::Origin => &mut self.origin,
                    Source::Unsaid => &mut self.unsaid,
                } += 1;
            }
            Err(error) => {
                self.failed += 1;
                if self.errors.len() < ERRORS_SHOWN_MAX {
                    self.errors.push(format!("{error:#}"));
                }
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} equal ({} bytes): {} hit, {} peer, {} home, {} origin, {} unsaid; {} failed",
            self.equal,
            self.bytes,
            self.hits,
            self.peers,
            self.homes,
            self.origin,
            self.unsaid,
            self.failed
        )?;
        for error in &self.errors {
            write!(f, "\n  {error}")?;
        }
        Ok(())
    }
}

fn list(directory: &Path, depth: usize, found: &mut impl FnMut(PathBuf, u64)) -> io::Result<()> {
    if depth == 0 {
        return Ok(());
    }
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            list(&entry.path(), depth - 1, found)?;
        } else if kind.is_file() {
            found(entry.path(), entry.metadata()?.len());
        }
    }
    Ok(())
}

/// A relative path as a request target; all but unreserved characters are escaped (RFC 3986, 2.3).
fn target(below: &Path) -> String {
    let mut target = String::new();
    for part in below.iter() {
        target.push('/');
        for byte in part.as_encoded_bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    target.push(char::from(*byte));
                }
                _ => target.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::{Answer, Directory, Origin};

    #[tokio::test]
    async fn a_mirror_finds_what_is_equal_and_what_is_not() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b c")).unwrap();
        for name in ["a/b c/ü.html", "a/x", "one", "two"] {
            std::fs::write(dir.path().join(name), name.repeat(10_000)).unwrap();
        }
        let directory = Directory {
            root: dir.path().to_owned(),
            cache_control: |_| None,
        };
        let at = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let origin = Origin::start_at(at, Some(directory)).await.unwrap();
        let said = Answer::bytes("one".repeat(10_000)).field("cache-status", "e; hit");
        origin.route("/one", said);
        origin.route("/two", Answer::bytes("other"));
        let mirror = Mirror::of(dir.path(), 100).unwrap();
        let tally = mirror.fetch(&origin.url(), "a.test", 3).await;
        assert_eq!((tally.equal, tally.failed), (3, 1), "{tally}");
        assert_eq!((tally.hits, tally.unsaid), (1, 2), "{tally}");
        assert!(tally.errors[0].contains("/two"), "{tally}");
        assert_eq!(mirror.targets().next().unwrap(), "/a/b%20c/%C3%BC.html");
        assert_eq!(Mirror::of(dir.path(), 2).unwrap().files(), 2);
    }
}
