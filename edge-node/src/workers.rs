//! What goes on beside the requests: each worker has one small job and a name.

pub mod checks;
pub mod gauges;
pub mod nearness;
pub mod publish;
pub mod purges;
pub mod seeds;
pub mod sites;

use std::{io, path::Path};

/// Replaces a small file as a whole: a crash leaves the old one or the new one.
fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, bytes)?;
    std::fs::rename(new, path)
}
