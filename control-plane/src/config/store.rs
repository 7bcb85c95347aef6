//! Which store, and how to speak to it.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{BadConfig, bad, host_and_port};
use crate::{
    store::EtcdConfig,
    tls::{Tls, UnusableTls},
};

/// Most members of etcd: it recommends seven at most.
pub const ETCD_MEMBERS_MAX: usize = 9;
/// Longest prefix of keys in etcd, in bytes.
pub const ETCD_PREFIX_BYTES_MAX: usize = 128;
/// Most bytes of a file with a user and a password that are read.
const CREDENTIALS_BYTES_MAX: u64 = 4096;
/// Most bytes of a file with certificates that are read: some hundred authorities.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// `[etcd]`: only with a store that is one.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EtcdSection {
    /// What all keys begin with, so that others may use the same etcd.
    pub prefix: String,
    /// File with one line, `user:password`; without, nobody in particular asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
    /// With `etcds://`: whose certificates are believed (PEM); without, those of the public authorities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// With `etcds://`: the certificate with which to come (PEM); goes with `key_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Its key (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

impl Default for EtcdSection {
    fn default() -> Self {
        Self {
            prefix: "geo-cdn/".into(),
            credentials_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
        }
    }
}

/// Which store a control plane keeps in what it answers for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StoreAddress {
    /// A part of this process, in the data directory.
    #[default]
    Embedded,
    /// etcd.
    Etcd(EtcdConfig),
}

impl StoreAddress {
    /// What `name` says, for a control plane that is called `node`.
    pub(super) fn named(
        name: Option<&str>,
        etcd: &EtcdSection,
        node: &str,
    ) -> Result<Self, BadConfig> {
        let members = match name {
            None | Some("embedded") => return Ok(Self::Embedded),
            Some(other) => match other.split_once("://") {
                Some(("etcd", members)) => (members, false),
                Some(("etcds", members)) => (members, true),
                _ => {
                    let told = "\"embedded\" or \"etcd://host:2379,host2:2379\"";
                    let reason = format!("{told}, not {other:?}; \"etcds://…\" over TLS");
                    return Err(bad("store", reason));
                }
            },
        };
        let (members, is_secure) = members;
        let members: Vec<String> = members.split(',').map(|m| m.trim().to_owned()).collect();
        if members.len() > ETCD_MEMBERS_MAX {
            return Err(bad("store", format!("at most {ETCD_MEMBERS_MAX} members")));
        }
        for member in &members {
            host_and_port("store", member)?;
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        if etcd.prefix.len() > ETCD_PREFIX_BYTES_MAX || !etcd.prefix.chars().all(fits) {
            let reason = format!(
                "at most {ETCD_PREFIX_BYTES_MAX} letters, digits, slashes, dots, dashes and \
                 underscores, not {:?}",
                etcd.prefix
            );
            return Err(bad("etcd.prefix", reason));
        }
        let user = etcd.credentials_file.as_deref().map(credentials);
        Ok(Self::Etcd(EtcdConfig {
            members,
            prefix: etcd.prefix.clone(),
            name: node.to_owned(),
            user: user.transpose()?,
            tls: match is_secure {
                true => Some(tls(etcd)?),
                false => no_tls(etcd)?,
            },
        }))
    }
}

/// Files for TLS would mean nothing.
fn no_tls(etcd: &EtcdSection) -> Result<Option<Tls>, BadConfig> {
    for (key, file) in [
        ("etcd.ca_file", &etcd.ca_file),
        ("etcd.cert_file", &etcd.cert_file),
        ("etcd.key_file", &etcd.key_file),
    ] {
        if file.is_some() {
            return Err(bad(key, "only over TLS: write store = \"etcds://…\""));
        }
    }
    Ok(None)
}

/// What the files say.
fn tls(etcd: &EtcdSection) -> Result<Tls, BadConfig> {
    let pem = |key: &'static str, file: &Option<PathBuf>| match file {
        None => Ok(None),
        Some(path) => read(path, PEM_BYTES_MAX)
            .map(|text| Some(text.into_bytes()))
            .map_err(|error| bad(key, format!("{}: {error}", path.display()))),
    };
    let certificate = pem("etcd.cert_file", &etcd.cert_file)?;
    let key = pem("etcd.key_file", &etcd.key_file)?;
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => return Err(bad("etcd.key_file", "missing beside cert_file")),
        (None, Some(_)) => return Err(bad("etcd.cert_file", "missing beside key_file")),
    };
    let ca = pem("etcd.ca_file", &etcd.ca_file)?;
    let tls = Tls { ca, identity };
    tls.check().map_err(|unusable| match unusable {
        UnusableTls::Ca(reason) => bad("etcd.ca_file", reason),
        UnusableTls::Certificate(reason) => bad("etcd.cert_file", reason),
        UnusableTls::Key(reason) => bad("etcd.key_file", reason),
    })?;
    Ok(tls)
}

/// At most so much of a file.
fn read(path: &Path, bytes_max: u64) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(bytes_max)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// The user and the password in a file.
fn credentials(path: &Path) -> Result<(String, String), BadConfig> {
    let fail = |reason: String| {
        bad(
            "etcd.credentials_file",
            format!("{}: {reason}", path.display()),
        )
    };
    let text = read(path, CREDENTIALS_BYTES_MAX)
        .map_err(|error| fail(format!("cannot be read: {error}")))?;
    let pair = text.trim().split_once(':');
    let pair = pair.filter(|(user, password)| {
        !user.is_empty() && !password.is_empty() && !password.contains('\n')
    });
    let (user, password) = pair.ok_or_else(|| fail("must be one line, user:password".into()))?;
    Ok((user.to_owned(), password.to_owned()))
}
