//! A real etcd on loopback, of one member or of several.

use std::{net::Ipv4Addr, path::Path};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::{
    client::Client,
    process::{Process, eventually, free_port},
};

/// Members that find each other, in directories of their own. Dropping it kills them.
pub struct Etcd {
    members: Vec<Member>,
    binary: std::path::PathBuf,
    _root: TempDir,
}

struct Member {
    client: String,
    args: Vec<String>,
    process: Option<Process>,
}

impl Etcd {
    /// Starts `count` members of the executable `binary`; ready when it returns.
    ///
    /// # Errors
    ///
    /// They cannot be started, or are not ready within a minute.
    pub async fn start(binary: &Path, count: usize) -> Result<Self> {
        let root = tempfile::Builder::new().prefix("etcd-").tempdir()?;
        let url = || format!("http://{}:{}", Ipv4Addr::LOCALHOST, free_port());
        let places: Vec<_> = (1..=count)
            .map(|n| (format!("m{n}"), url(), url()))
            .collect();
        let all: Vec<_> = (places.iter())
            .map(|(name, _, peer)| format!("{name}={peer}"))
            .collect();
        let members = places.iter().map(|(name, client, peer)| {
            let data = root.path().join(name).to_string_lossy().into_owned();
            let args = [
                ("--name", name.as_str()),
                ("--data-dir", &data),
                ("--listen-client-urls", client),
                ("--advertise-client-urls", client),
                ("--listen-peer-urls", peer),
                ("--initial-advertise-peer-urls", peer),
                ("--initial-cluster", &all.join(",")),
                ("--logger", "zap"),
            ];
            let args = args.iter().flat_map(|(flag, value)| [*flag, *value]);
            Member {
                client: client.clone(),
                args: args.map(str::to_owned).collect(),
                process: None,
            }
        });
        let mut etcd = Self {
            members: members.collect(),
            binary: binary.to_owned(),
            _root: root,
        };
        for index in 0..count {
            etcd.launch(index)?;
        }
        for index in 0..count {
            etcd.ready(index).await?;
        }
        Ok(etcd)
    }

    /// `host:port` of each member.
    pub fn members(&self) -> Vec<String> {
        let members = self.members.iter();
        members
            .map(|member| member.client.trim_start_matches("http://").to_owned())
            .collect()
    }

    /// What a control plane's configuration says.
    pub fn url(&self) -> String {
        format!("etcd://{}", self.members().join(","))
    }

    /// The base URL of a member.
    pub fn client(&self, index: usize) -> &str {
        &self.members[index].client
    }

    /// Kills a member with SIGKILL.
    ///
    /// # Errors
    ///
    /// It does not run.
    pub async fn kill9(&mut self, index: usize) -> Result<()> {
        let process = self.members[index].process.take();
        process.context("it does not run")?.kill9().await
    }

    /// Starts a member again.
    ///
    /// # Errors
    ///
    /// It cannot be started, or is not ready within a minute.
    pub async fn restart(&mut self, index: usize) -> Result<()> {
        self.launch(index)?;
        self.ready(index).await
    }

    fn launch(&mut self, index: usize) -> Result<()> {
        let member = &mut self.members[index];
        let args: Vec<_> = member.args.iter().map(String::as_str).collect();
        member.process = Some(Process::start("etcd", &self.binary, &args, &[])?);
        Ok(())
    }

    async fn ready(&self, index: usize) -> Result<()> {
        let url = format!("{}/health", self.members[index].client);
        eventually("etcd is healthy", async || {
            let answer = Client::new().get(&url).await?;
            ensure!(
                answer.text().contains(r#""health":"true""#),
                "{}",
                answer.text()
            );
            Ok(())
        })
        .await
    }
}
