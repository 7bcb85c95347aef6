//! A real etcd on loopback, of one member or of several.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::{
    client::Client,
    process::{Process, eventually, free_port, run},
};

/// Members that find each other, in directories of their own. Dropping it kills them.
pub struct Etcd {
    members: Vec<Member>,
    binary: PathBuf,
    /// What one is spoken to with, over TLS.
    pub pem: Option<Pem>,
    _root: TempDir,
}

/// Files of a certificate, its key, and whoever signed it.
pub struct Pem {
    /// The authority.
    pub ca: PathBuf,
    /// Signed by it, for a server and for a client.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

impl Pem {
    /// Makes such files in `dir`, with the program `openssl`.
    ///
    /// # Errors
    ///
    /// It does not.
    pub async fn make(openssl: &Path, dir: &Path) -> Result<Self> {
        let file = |name: &str| dir.join(name);
        let [ca, ca_key, certificate, key] = ["ca.pem", "ca.key", "node.pem", "node.key"].map(file);
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (ca_text, ca_key_text) = (text(&ca), text(&ca_key));
        let (certificate_text, key_text) = (text(&certificate), text(&key));
        let make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
        let authority = ["-subj", "/CN=ca", "-keyout", &ca_key_text, "-out", &ca_text];
        let signed = [
            "-subj",
            "/CN=node",
            "-CA",
            &ca_text,
            "-CAkey",
            &ca_key_text,
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-addext",
            "extendedKeyUsage=serverAuth,clientAuth",
            "-keyout",
            &key_text,
            "-out",
            &certificate_text,
        ];
        for more in [&authority[..], &signed] {
            let args: Vec<_> = make.split(' ').chain(more.iter().copied()).collect();
            let (status, said) = run(openssl, &args, &[]).await?;
            ensure!(status.success(), "{said}");
        }
        Ok(Self {
            ca,
            certificate,
            key,
        })
    }
}

struct Member {
    client: String,
    /// Where it says how it is.
    health: String,
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
        Self::start_in(root, binary, count, None).await
    }

    /// Starts one member that is spoken to over TLS only, by who has a certificate as it has; `openssl` makes
    /// these.
    ///
    /// # Errors
    ///
    /// As for [`Etcd::start`].
    pub async fn start_over_tls(binary: &Path, openssl: &Path) -> Result<Self> {
        let root = tempfile::Builder::new().prefix("etcd-").tempdir()?;
        let pem = Pem::make(openssl, root.path()).await?;
        Self::start_in(root, binary, 1, Some(pem)).await
    }

    async fn start_in(
        root: TempDir,
        binary: &Path,
        count: usize,
        pem: Option<Pem>,
    ) -> Result<Self> {
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
            let mut args: Vec<_> = args.map(str::to_owned).collect();
            let mut health = client.clone();
            if let Some(pem) = &pem {
                for arg in args.iter_mut().filter(|arg| *arg == client) {
                    *arg = client.replace("http://", "https://");
                }
                health = url();
                let more = ["--listen-metrics-urls", &health, "--client-cert-auth"];
                args.extend(more.map(str::to_owned));
                for (flag, file) in [
                    ("--cert-file", &pem.certificate),
                    ("--key-file", &pem.key),
                    ("--trusted-ca-file", &pem.ca),
                ] {
                    args.extend([flag.to_owned(), file.to_string_lossy().into_owned()]);
                }
            }
            Member {
                client: client.clone(),
                health,
                args,
                process: None,
            }
        });
        let mut etcd = Self {
            members: members.collect(),
            binary: binary.to_owned(),
            pem,
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
        let scheme = if self.pem.is_some() { "etcds" } else { "etcd" };
        format!("{scheme}://{}", self.members().join(","))
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

    /// Stops a member, which keeps its connections, until [`Etcd::thaw`].
    pub fn freeze(&self, index: usize) {
        if let Some(process) = &self.members[index].process {
            process.freeze();
        }
    }

    /// Lets a member go on that was stopped.
    pub fn thaw(&self, index: usize) {
        if let Some(process) = &self.members[index].process {
            process.thaw();
        }
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
        let url = format!("{}/health", self.members[index].health);
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
