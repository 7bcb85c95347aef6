//! What must not be served any more, whoever asks and wherever it is stored. As written, and checked; pure.

use http::Uri;
use serde::{Deserialize, Serialize};

use super::rules::{Bad, TEXT_BYTES_MAX};
use crate::manifest::{PIECE_BYTES, PieceHash, run_hash};

/// Most takedowns of a site: they are indexed, but the site is written and handed out as a whole.
pub const TAKEDOWNS_MAX: usize = 5_000;
/// Longest URL in one: what requests may be long.
const URL_BYTES_MAX: usize = 8 << 10;

/// `[[site.takedown]]`: what is answered with 451 on every node (RFC 7725), and neither fetched nor handed
/// to another node. Exactly one of `url`, `prefix` and `hash` says what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Takedown {
    /// A URL, `http://host/path?query`, or for every host of the site `/path?query`. Without a query, it
    /// is the path with every query; with one, that one, as far as it names an object by the site's rules.
    /// However the path is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// What paths begin with, however they are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The [content hash](content_hash), in hex. It is checked on what is stored and on what a peer offers;
    /// what comes from the origin has to come in whole first, and if it is large is on its way to clients
    /// by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// Why.
    pub reason: String,
    /// Who wanted it.
    pub by: String,
}

/// What a takedown is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// A URL: its host, where it names one, its path, and its query, where it has one.
    Url {
        /// The host, as written.
        host: Option<&'a str>,
        /// The path, as written.
        path: &'a str,
        /// What is behind the `?`.
        query: Option<&'a str>,
    },
    /// The beginning of paths.
    Prefix(&'a str),
    /// A [content hash](content_hash).
    Hash(PieceHash),
}

/// What names a body by its content, given the BLAKE3 hashes of its pieces of [`PIECE_BYTES`]: of a body
/// in one piece its BLAKE3 hash, of a longer one the BLAKE3 hash of the hashes of its pieces, one behind
/// the other. So it can be told without reading the body.
pub fn content_hash(pieces: &[PieceHash]) -> PieceHash {
    match pieces {
        [] => *blake3::hash(b"").as_bytes(),
        [one] => *one,
        many => run_hash(many),
    }
}

/// The [content hash](content_hash) of a body.
pub fn content_hash_of(body: &[u8]) -> PieceHash {
    let pieces = body.chunks(PIECE_BYTES);
    let hashes: Vec<_> = pieces
        .map(|piece| *blake3::hash(piece).as_bytes())
        .collect();
    content_hash(&hashes)
}

/// A hash in hex.
pub fn hash_in_hex(hash: &PieceHash) -> String {
    blake3::Hash::from_bytes(*hash).to_hex().to_string()
}

impl Takedown {
    /// What it is of; `None` if that is not clear, which [`super::Site::check`] refuses.
    pub fn target(&self) -> Option<Target<'_>> {
        match (&self.url, &self.prefix, &self.hash) {
            (Some(url), None, None) => parsed(url),
            (None, Some(prefix), None) => Some(Target::Prefix(prefix)),
            (None, None, Some(hash)) => {
                let hash = blake3::Hash::from_hex(hash).ok()?;
                Some(Target::Hash(*hash.as_bytes()))
            }
            _ => None,
        }
    }

    /// In a few words: what, why and who.
    pub fn in_words(&self) -> String {
        let what = match (&self.url, &self.prefix, &self.hash) {
            (Some(url), ..) => format!("url {url}"),
            (_, Some(prefix), _) => format!("prefix {prefix}"),
            (_, _, Some(hash)) => format!("hash {hash}"),
            _ => String::new(),
        };
        format!("{what}: {} ({})", self.reason, self.by)
    }

    pub(super) fn check(&self, is_own: impl Fn(&str) -> bool) -> Result<(), Bad> {
        let given = [&self.url, &self.prefix, &self.hash];
        if given.iter().filter(|what| what.is_some()).count() != 1 {
            let reason = "needs one of url, prefix and hash, and only one";
            return Err(("takedown", reason.to_owned()));
        }
        for (field, text) in [("takedown.reason", &self.reason), ("takedown.by", &self.by)] {
            let fits = !text.trim().is_empty()
                && text.len() <= TEXT_BYTES_MAX
                && !text.contains(char::is_control);
            if !fits {
                let reason = format!(
                    "{:?} is not 1 to {TEXT_BYTES_MAX} characters in one line",
                    text.chars().take(80).collect::<String>()
                );
                return Err((field, reason));
            }
        }
        if let Some(prefix) = &self.prefix {
            super::rules::paths("takedown.prefix", std::slice::from_ref(prefix))?;
        }
        if let Some(hash) = &self.hash
            && self.target().is_none()
        {
            let reason = format!("{hash:?} is not a BLAKE3 hash of 64 hex digits");
            return Err(("takedown.hash", reason));
        }
        let Some(url) = &self.url else {
            return Ok(());
        };
        match self.target() {
            Some(Target::Url {
                host: Some(host), ..
            }) if !is_own(host) => {
                let reason = format!("{url:?}: {host} is not a host of the site");
                Err(("takedown.url", reason))
            }
            Some(_) => Ok(()),
            None => {
                let reason = format!("{url:?} is not http://host/path or /path");
                Err(("takedown.url", reason))
            }
        }
    }
}

fn parsed(url: &str) -> Option<Target<'_>> {
    if url.len() > URL_BYTES_MAX || url.contains('#') || url.contains(char::is_control) {
        return None;
    }
    let (host, target) = if url.starts_with('/') {
        (None, url)
    } else {
        let rest = url
            .strip_prefix("http://")
            .or_else(|| url.strip_prefix("https://"))?;
        let (host, target) = rest.split_at(rest.find('/')?);
        let uri: Uri = format!("http://{host}/").parse().ok()?;
        uri.authority()
            .filter(|authority| !authority.as_str().contains('@'))?;
        (Some(host), target)
    };
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    Some(Target::Url { host, path, query })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takedown(text: &str) -> Takedown {
        toml::from_str(&format!("{text}\nreason = 'r'\nby = 'b'")).unwrap()
    }

    #[test]
    fn a_takedown_is_of_one_thing() {
        let url = |host, path, query| Some(Target::Url { host, path, query });
        for (text, target) in [
            ("url = '/a/b'", url(None, "/a/b", None)),
            ("url = '/a?'", url(None, "/a", Some(""))),
            ("url = '/a?b?c'", url(None, "/a", Some("b?c"))),
            ("url = 'http://a.test/b'", url(Some("a.test"), "/b", None)),
            (
                "url = 'https://a.test:8443/?x'",
                url(Some("a.test:8443"), "/", Some("x")),
            ),
            ("url = 'http://a.test'", None),
            ("url = 'a'", None),
            ("url = 'http://u@a.test/'", None),
            ("url = '/a#b'", None),
            ("prefix = '/a/'", Some(Target::Prefix("/a/"))),
            ("hash = 'abc'", None),
            ("", None),
        ] {
            assert_eq!(takedown(text).target(), target, "{text}");
        }
        let hash = hash_in_hex(&content_hash_of(b"body"));
        let of = takedown(&format!("hash = '{hash}'"));
        assert_eq!(
            of.target(),
            Some(Target::Hash(*blake3::hash(b"body").as_bytes()))
        );
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_field() {
        let check = |text: &str| takedown(text).check(|host| host == "a.test");
        for (text, field) in [
            ("", "takedown"),
            ("url = '/a'\nprefix = '/a'", "takedown"),
            ("prefix = 'a'", "takedown.prefix"),
            ("prefix = '/a?b'", "takedown.prefix"),
            ("hash = 'abc'", "takedown.hash"),
            ("url = 'a'", "takedown.url"),
            ("url = 'http://b.test/'", "takedown.url"),
        ] {
            assert_eq!(check(text).unwrap_err().0, field, "{text}");
        }
        assert_eq!(check("url = 'http://a.test/'"), Ok(()));
        let silent = Takedown {
            reason: " ".into(),
            ..takedown("url = '/'")
        };
        assert_eq!(silent.check(|_| true).unwrap_err().0, "takedown.reason");
        let nobody = Takedown {
            by: "a\nb".into(),
            ..takedown("url = '/'")
        };
        assert_eq!(nobody.check(|_| true).unwrap_err().0, "takedown.by");
    }

    #[test]
    fn a_body_of_one_piece_is_named_by_its_own_hash() {
        assert_eq!(content_hash_of(b""), *blake3::hash(b"").as_bytes());
        let one = vec![7; PIECE_BYTES];
        assert_eq!(content_hash_of(&one), *blake3::hash(&one).as_bytes());
        let two = vec![7; PIECE_BYTES + 1];
        let pieces = [
            *blake3::hash(&one).as_bytes(),
            *blake3::hash(&[7]).as_bytes(),
        ];
        assert_eq!(content_hash_of(&two), run_hash(&pieces));
        assert_ne!(content_hash_of(&two), *blake3::hash(&two).as_bytes());
    }
}
