//! The cluster's secret: who knows it belongs to the cluster.
//!
//! The file holds one secret per line, one or two lines. This node speaks with the first and
//! listens to both, so a secret is replaced without a gap: append the new one everywhere, then swap
//! the lines everywhere, then drop the old one everywhere.
//!
//! **Invariant:** the secret itself is never used as a key. Every use has a key of its own, derived
//! under its own context, so that nothing seen in one place helps in another.

use std::{fmt, fs, io, path::Path, path::PathBuf, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use tracing::warn;

/// Shortest secret in bytes: 128 bits, if they are random.
pub const SECRET_BYTES_MIN: usize = 16;
/// Largest secret file in bytes; a file longer than this is some other file.
pub const SECRET_FILE_BYTES_MAX: u64 = 4096;
/// Most secrets in use at once: the one in use, and the one before or after it.
pub const SECRETS_MAX: usize = 2;

const GOSSIP_CONTEXT: &str = "geo cdn 2025 gossip datagrams v1";
const GOSSIP_ID_CONTEXT: &str = "geo cdn 2025 gossip key id v1";
const REQUEST_CONTEXT: &str = "geo cdn 2025 request mac v1";
const DOCUMENT_CONTEXT: &str = "geo cdn 2025 document mac v1";

/// The keys derived from the cluster's secret. Cheap to clone; never printed.
#[derive(Clone)]
pub struct ClusterSecret(Arc<[Keys]>);

/// What is derived from one line of the secret.
pub(crate) struct Keys {
    /// Seals gossip datagrams.
    pub(crate) gossip: [u8; 32],
    /// Public name of the gossip key: says nothing about it.
    pub(crate) gossip_id: [u8; 8],
    /// Authenticates requests between nodes.
    pub(crate) request: [u8; 32],
    /// Authenticates documents of the control plane.
    pub(crate) document: [u8; 32],
}

impl ClusterSecret {
    /// Reads the secret from a file of one or two lines.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is too long, or does not hold one or two secrets of at least
    /// [`SECRET_BYTES_MIN`] bytes. The operator's to mend.
    pub fn load(path: &Path) -> Result<Self, SecretError> {
        let fail = |reason| SecretError {
            path: path.to_owned(),
            reason,
        };
        let metadata = fs::metadata(path).map_err(|e| fail(BadSecret::Unreadable(e)))?;
        if metadata.len() > SECRET_FILE_BYTES_MAX {
            return Err(fail(BadSecret::TooLong));
        }
        #[cfg(unix)]
        if std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o004 != 0 {
            warn!(path = %path.display(), "everybody on this machine can read the cluster's secret");
        }
        let bytes = fs::read(path).map_err(|e| fail(BadSecret::Unreadable(e)))?;
        Self::from_bytes(&bytes).map_err(fail)
    }

    /// Takes what a secret file would hold: one or two lines, each trimmed.
    ///
    /// # Errors
    ///
    /// No secret, too many, or one that is too short.
    pub fn from_bytes(text: &[u8]) -> Result<Self, BadSecret> {
        let lines: Vec<&[u8]> = text
            .split(|b| *b == b'\n')
            .map(<[u8]>::trim_ascii)
            .filter(|line| !line.is_empty())
            .collect();
        match lines.len() {
            0 => return Err(BadSecret::Empty),
            1..=SECRETS_MAX => {}
            _ => return Err(BadSecret::TooMany),
        }
        if let Some(line) = lines.iter().position(|l| l.len() < SECRET_BYTES_MIN) {
            return Err(BadSecret::TooShort { line: line + 1 });
        }
        Ok(Self(lines.into_iter().map(Keys::derive).collect()))
    }

    /// The keys this node speaks with.
    pub(crate) fn sending(&self) -> &Keys {
        self.0.first().expect("from_bytes refuses an empty secret")
    }

    /// The keys this node listens to, the sending ones first.
    pub(crate) fn accepted(&self) -> &[Keys] {
        &self.0
    }
}

impl Keys {
    fn derive(secret: &[u8]) -> Self {
        let mut gossip_id = [0; 8];
        gossip_id.copy_from_slice(&blake3::derive_key(GOSSIP_ID_CONTEXT, secret)[..8]);
        Self {
            gossip: blake3::derive_key(GOSSIP_CONTEXT, secret),
            gossip_id,
            request: blake3::derive_key(REQUEST_CONTEXT, secret),
            document: blake3::derive_key(DOCUMENT_CONTEXT, secret),
        }
    }
}

/// A new secret: 32 random bytes in base64, to be put into a secret file.
pub fn generate() -> String {
    STANDARD.encode(rand::random::<[u8; 32]>())
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret")
    }
}

/// Why a secret file is of no use.
#[derive(Debug, thiserror::Error)]
#[error("secret file {}: {reason}", path.display())]
pub struct SecretError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub reason: BadSecret,
}

/// What is wrong with a secret.
#[derive(Debug, thiserror::Error)]
pub enum BadSecret {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    /// Larger than [`SECRET_FILE_BYTES_MAX`].
    #[error("is larger than {SECRET_FILE_BYTES_MAX} bytes, so it is hardly a secret")]
    TooLong,
    /// Nothing but white space.
    #[error("is empty")]
    Empty,
    /// More than [`SECRETS_MAX`] lines.
    #[error("holds more than {SECRETS_MAX} lines")]
    TooMany,
    /// A line is shorter than [`SECRET_BYTES_MIN`].
    #[error("line {line} is shorter than {SECRET_BYTES_MIN} bytes")]
    TooShort {
        /// Which secret, counted from 1.
        line: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_speaks_and_both_listen() {
        let secret =
            ClusterSecret::from_bytes(b" 0123456789abcdef \r\n\nfedcba9876543210\n").unwrap();
        let old = ClusterSecret::from_bytes(b"fedcba9876543210").unwrap();
        assert_eq!(secret.accepted().len(), 2);
        assert_eq!(secret.accepted()[1].gossip, old.sending().gossip);
        assert_ne!(secret.sending().gossip, old.sending().gossip);
        let keys = old.sending();
        assert_ne!(keys.gossip, keys.request);
        assert_ne!(keys.request, keys.document);
        assert_eq!(format!("{secret:?}"), "ClusterSecret");
    }

    #[test]
    fn an_unusable_file_names_itself_and_its_reason() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let complaint = |content: &[u8]| {
            fs::write(&path, content).unwrap();
            ClusterSecret::load(&path).unwrap_err().to_string()
        };
        for (content, reason) in [
            (&b" \n"[..], "is empty"),
            (b"0123456789abcdef\nshort", "line 2 is shorter"),
            (
                b"0123456789abcdef\n0123456789abcdef\n0123456789abcdef",
                "more than 2 lines",
            ),
            (&[b'x'; 5000], "larger than 4096"),
        ] {
            let message = complaint(content);
            assert!(
                message.contains(path.to_str().unwrap()) && message.contains(reason),
                "{message}"
            );
        }
        let message = ClusterSecret::load(&directory.path().join("absent"))
            .unwrap_err()
            .to_string();
        assert!(message.contains("absent: cannot be read"), "{message}");
    }

    #[test]
    fn generated_secrets_are_usable_and_differ() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        fs::write(&path, generate()).unwrap();
        ClusterSecret::load(&path).unwrap();
        assert_ne!(generate(), generate());
    }
}
