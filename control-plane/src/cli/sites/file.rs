//! A file with sites, as the operator writes it.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;
use cluster::site::SITES_MAX;

/// Largest file that is read: as much as an edge takes.
const FILE_BYTES_MAX: u64 = 32 << 20;

#[derive(Debug, Args)]
pub(crate) struct SiteFile {
    /// TOML with one site, or many as `[[site]]`; "-" for standard input.
    #[arg(short, long = "file", value_name = "FILE")]
    pub(super) file: PathBuf,
}

/// A site of a file: its name, and the site as JSON.
pub(super) type Named = (String, String);

impl SiteFile {
    pub(super) fn text(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        let read = if self.file == Path::new("-") {
            io::stdin()
                .take(FILE_BYTES_MAX + 1)
                .read_to_string(&mut text)
        } else {
            std::fs::File::open(&self.file)
                .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
        };
        let name = || self.file.display().to_string();
        let bytes = read.with_context(name)?;
        if bytes as u64 > FILE_BYTES_MAX {
            bail!(
                "{}: longer than {FILE_BYTES_MAX} bytes: make several files of it",
                name()
            );
        }
        Ok(text)
    }
}

/// The sites of a file, each with its name and as JSON. What is in them is for the control plane to judge.
pub(super) fn sites_of(text: &str) -> anyhow::Result<Vec<Named>> {
    let mut file: toml::Table = toml::from_str(text)?;
    let sites = match file.remove("site") {
        None => vec![toml::Value::Table(file)],
        Some(_) if !file.is_empty() => {
            let other: Vec<_> = file.keys().map(String::as_str).collect();
            bail!(
                "beside [[site]] there is {}; give a file with sites only",
                other.join(", ")
            );
        }
        Some(toml::Value::Array(sites)) => sites,
        Some(_) => bail!("`site` is no list; write [[site]]"),
    };
    if sites.is_empty() || sites.len() > SITES_MAX {
        bail!("{} sites in it; 1 to {SITES_MAX} are possible", sites.len());
    }
    let mut found: Vec<Named> = Vec::new();
    for (n, site) in sites.into_iter().enumerate() {
        let name = site.get("name").and_then(toml::Value::as_str);
        let name = name.with_context(|| format!("site {} of the file has no name", n + 1))?;
        if found.iter().any(|(known, _)| known == name) {
            bail!("site {name:?} is there twice");
        }
        found.push((name.to_owned(), serde_json::to_string(&site)?));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_site_or_many() {
        let one = "name = 'a'\nhosts = ['a.test']\norigins = ['http://o']";
        let found = sites_of(one).unwrap();
        assert_eq!(found[0].0, "a");
        assert!(
            found[0].1.contains(r#""hosts":["a.test"]"#),
            "{}",
            found[0].1
        );
        let many = format!("[[site]]\n{one}\n[[site]]\nname = 'b'\n");
        let names: Vec<_> = sites_of(&many)
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["a", "b"]);
        for (text, told) in [
            ("", "site 1 of the file has no name"),
            ("name = 1", "no name"),
            ("site = 1", "[[site]]"),
            ("site = []", "0 sites"),
            (
                "[[site]]\nname = 'a'\n[[site]]\nname = 'a'",
                "\"a\" is there twice",
            ),
            (
                "[node]\nid = 'x'\n[[site]]\nname = 'a'",
                "beside [[site]] there is node",
            ),
            ("name = ", "TOML parse error"),
        ] {
            let error = format!("{:#}", sites_of(text).unwrap_err());
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
