//! Which store, and how to speak to it.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{BadConfig, bad, host_and_port};
use crate::store::EtcdConfig;

/// Most members of etcd: it recommends seven at most.
pub const ETCD_MEMBERS_MAX: usize = 9;
/// Longest prefix of keys in etcd, in bytes.
pub const ETCD_PREFIX_BYTES_MAX: usize = 128;
/// Most bytes of a file with a user and a password that are read.
const CREDENTIALS_BYTES_MAX: u64 = 4096;

/// `[etcd]`: only with a store that is one.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EtcdSection {
    /// What all keys begin with, so that others may use the same etcd.
    pub prefix: String,
    /// File with one line, `user:password`; without, nobody in particular asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
}

impl Default for EtcdSection {
    fn default() -> Self {
        Self {
            prefix: "geo-cdn/".into(),
            credentials_file: None,
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
    pub(super) fn named(name: Option<&str>, etcd: &EtcdSection) -> Result<Self, BadConfig> {
        let members = match name {
            None | Some("embedded") => return Ok(Self::Embedded),
            Some(other) => other.strip_prefix("etcd://").ok_or_else(|| {
                let told = "\"embedded\" or \"etcd://host:2379,host2:2379\"";
                bad("store", format!("{told}, not {other:?}"))
            })?,
        };
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
            user: user.transpose()?,
        }))
    }
}

/// The user and the password in a file.
fn credentials(path: &Path) -> Result<(String, String), BadConfig> {
    let fail = |reason: String| {
        bad(
            "etcd.credentials_file",
            format!("{}: {reason}", path.display()),
        )
    };
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(CREDENTIALS_BYTES_MAX).read_to_string(&mut text))
        .map_err(|error| fail(format!("cannot be read: {error}")))?;
    let pair = text.trim().split_once(':');
    let pair = pair.filter(|(user, password)| {
        !user.is_empty() && !password.is_empty() && !password.contains('\n')
    });
    let (user, password) = pair.ok_or_else(|| fail("must be one line, user:password".into()))?;
    Ok((user.to_owned(), password.to_owned()))
}
