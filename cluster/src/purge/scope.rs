//! From a scope as somebody wrote it to the hash of what objects are named by. Pure.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Position, Record, Scope};
use crate::{path::without_dot_segments, site::normal_host};

/// How the sites of a node name objects; what is in their rules.
pub trait Naming {
    /// The name of `sent`, a path and query, within `site`.
    fn name(&self, site: &str, sent: &str) -> Named;
}

/// A path and query, as cache keys have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// The site counts queries as they are sent: this is the canonical form.
    AsSent(Vec<u8>),
    /// The site has rules for queries.
    Ruled {
        /// The canonical form.
        canonical: Vec<u8>,
        /// What the rules make of it.
        ruled: Vec<u8>,
    },
    /// The site is not known here, and so are its rules: this is the canonical form.
    Unknown(Vec<u8>),
}

impl Named {
    fn canonical(&self) -> &[u8] {
        match self {
            Self::AsSent(canonical) | Self::Ruled { canonical, .. } | Self::Unknown(canonical) => {
                canonical
            }
        }
    }
}

/// A [`Record`] as a [`Table`](super::Table) takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its place in the log.
    pub at: Position,
    /// The number before it in the same log.
    pub prev: u64,
    /// The site's name.
    pub site: String,
    /// Only stale, not gone.
    pub soft: bool,
    /// What it hits.
    pub marks: Vec<Mark>,
}

/// What a purge hits, as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Mark {
    /// All of the site.
    All,
    /// What this is the hash of.
    Exact(u128),
    /// What begins with the text of this hash.
    Prefix {
        /// The hash.
        hash: u128,
        /// The length of that text, in bytes.
        length: u16,
    },
}

/// What a hash is of; no two kinds have a hash in common.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Url = 1,
    Prefix = 2,
    Tag = 3,
}

/// The beginning of a hash: of a `kind`, and of one host or (empty) of all hosts.
pub(super) fn hasher(kind: Kind, host: &str) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[kind as u8]);
    hasher.update(&(host.len() as u64).to_le_bytes());
    hasher.update(host.as_bytes());
    hasher
}

/// The first half of what it has come to.
pub(super) fn half(hasher: &blake3::Hasher) -> u128 {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(bytes)
}

pub(super) fn hash(kind: Kind, host: &str, text: &[u8]) -> u128 {
    let mut hasher = hasher(kind, host);
    hasher.update(text);
    half(&hasher)
}

impl Step {
    /// What `record` hits, by the names that `naming` has for it.
    ///
    /// A URL is marked by the name that it has now and by what was written, so that it is found under
    /// either. Where the rules that make a name are not known, or do not tell what begins with a part of a
    /// query, more is hit than was meant, never less.
    pub fn of(record: &Record, naming: &impl Naming) -> Self {
        let purge = &record.purge;
        let mut marks = BTreeSet::new();
        for scope in &purge.scopes {
            match scope {
                Scope::All => {
                    marks.insert(Mark::All);
                }
                Scope::Tag(tag) => {
                    marks.insert(Mark::Exact(hash(Kind::Tag, "", tag.as_bytes())));
                }
                Scope::Url(url) => {
                    let (host, target) = split(url);
                    let named = naming.name(&purge.site, target);
                    let exact = |target: &[u8]| Mark::Exact(hash(Kind::Url, &host, target));
                    marks.insert(exact(named.canonical()));
                    marks.extend(resolved(named.canonical()).as_deref().map(exact));
                    match &named {
                        Named::AsSent(_) => {}
                        Named::Ruled { ruled, .. } => {
                            marks.insert(exact(ruled));
                            marks.extend(resolved(ruled).as_deref().map(exact));
                        }
                        Named::Unknown(canonical) => {
                            if let Some((path, _)) = cut(canonical) {
                                marks.extend([exact(path), prefix(&host, &with_question(path))]);
                            }
                        }
                    }
                }
                Scope::Prefix(text) => {
                    let (host, begins) = split(text);
                    let named = naming.name(&purge.site, begins);
                    let canonical = named.canonical();
                    // What ends within a segment may go on: `/.` is the beginning of `/.well-known`.
                    if !canonical.ends_with(b".") {
                        let plain = resolved(canonical);
                        marks.extend(plain.map(|plain| prefix(&host, &plain)));
                    }
                    match (cut(canonical), &named) {
                        (None, _) | (_, Named::AsSent(_)) => {
                            marks.insert(prefix(&host, canonical));
                        }
                        // Its query may stand in another order, or not at all.
                        (Some((path, _)), _) => {
                            let exact = Mark::Exact(hash(Kind::Url, &host, path));
                            marks.extend([exact, prefix(&host, &with_question(path))]);
                        }
                    }
                }
            }
        }
        Self {
            at: record.at,
            prev: record.prev,
            site: purge.site.clone(),
            soft: purge.soft,
            marks: marks.into_iter().collect(),
        }
    }
}

/// A target without dot segments (RFC 3986 §6.2.2.3) and without an empty query; `None`: it has none of them.
///
/// Keys have what was sent, because an origin may answer otherwise to `/a/../b` than to `/b`, and so must not be
/// asked for one and be believed for the other. A purge hits either by any of both: rather more than was meant
/// than less.
pub(super) fn resolved(target: &[u8]) -> Option<Vec<u8>> {
    let end = target
        .iter()
        .position(|byte| *byte == b'?')
        .unwrap_or(target.len());
    let (path, query) = target.split_at(end);
    let query = if query == b"?" { &[][..] } else { query };
    let plain = without_dot_segments(path);
    (plain.len() + query.len() < target.len()).then(|| [&plain, query].concat())
}

/// The mark of what begins with `text`; of what is longer than a scope may be, of what begins with as much
/// of it as can be told.
fn prefix(host: &str, text: &[u8]) -> Mark {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    let text = &text[..usize::from(length)];
    Mark::Prefix {
        hash: hash(Kind::Prefix, host, text),
        length,
    }
}

/// A target at its question mark.
fn cut(target: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = target.iter().position(|byte| *byte == b'?')?;
    Some((&target[..at], &target[at + 1..]))
}

fn with_question(path: &[u8]) -> Vec<u8> {
    [path, b"?"].concat()
}

/// The host of a scope as keys have it, empty for all hosts, and its path and query.
fn split(text: &str) -> (String, &str) {
    let Some(rest) = text.strip_prefix("//") else {
        return (String::new(), text);
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, target) = rest.split_at(end);
    (normal_host(host), target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_segments_and_an_empty_query_are_no_part_of_a_name() {
        for (target, plain) in [
            ("/d/../dd", Some("/dd")),
            ("/d/./dd", Some("/d/dd")),
            ("/a/b/c/./../../g", Some("/a/g")),
            ("/../../g", Some("/g")),
            ("/a/..", Some("/")),
            ("/a/b/.", Some("/a/b/")),
            ("/a/b/..", Some("/a/")),
            ("/..", Some("/")),
            ("/a/../b?x=/../y", Some("/b?x=/../y")),
            ("/a//../b", Some("/a/b")),
            ("/g?", Some("/g")),
            ("/./g?", Some("/g")),
            ("/g", None),
            ("/g?x", None),
            ("/g??", None),
            ("/g?a=/../", None),
            ("/.a/..b/c.", None),
            ("/", None),
        ] {
            let found = resolved(target.as_bytes());
            let found = found
                .as_deref()
                .map(|text| std::str::from_utf8(text).unwrap());
            assert_eq!(found, plain, "{target}");
        }
    }
}
