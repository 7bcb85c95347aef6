//! What takes a file down wherever it is: its content hash.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use clap::Args;
use cluster::{
    manifest::{PIECE_BYTES, PieceHash},
    site::takedown::{content_hash, hash_in_hex},
};

use super::print;

/// Longest file: beyond what any edge keeps, and its hashes still fit in memory.
const PIECES_MAX: usize = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct Hash {
    /// Files; "-" for standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl Hash {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        for path in &self.files {
            let hash = match path == Path::new("-") {
                true => hash_of(io::stdin().lock()),
                false => File::open(path).map_err(Into::into).and_then(hash_of),
            };
            let hash = hash.with_context(|| path.display().to_string())?;
            print(&format!("{}  {}\n", hash_in_hex(&hash), path.display()))?;
        }
        Ok(())
    }
}

fn hash_of(mut body: impl Read) -> anyhow::Result<PieceHash> {
    let mut hashes = Vec::new();
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    loop {
        piece.clear();
        let read = body
            .by_ref()
            .take(PIECE_BYTES as u64)
            .read_to_end(&mut piece)?;
        if read > 0 {
            ensure!(hashes.len() < PIECES_MAX, "too long");
            hashes.push(*blake3::hash(&piece).as_bytes());
        }
        if read < PIECE_BYTES {
            return Ok(content_hash(&hashes));
        }
    }
}

#[cfg(test)]
mod tests {
    use cluster::site::takedown::content_hash_of;

    use super::*;

    #[test]
    fn a_file_has_the_hash_that_an_edge_gives_it() {
        for length in [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES] {
            let body: Vec<u8> = (0..length).map(|n| n as u8).collect();
            assert_eq!(
                hash_of(&body[..]).unwrap(),
                content_hash_of(&body),
                "{length}"
            );
        }
    }
}
