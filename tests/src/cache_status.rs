//! What an edge says it did for a response: the `Cache-Status` field (RFC 9211).

use std::fmt;

/// Where the bytes of a response came from, by what the edge says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Its own store.
    Hit,
    /// The peer of this name.
    Peer(String),
    /// The key's home of this name.
    Home(String),
    /// The origin.
    Origin,
    /// It does not say.
    Unsaid,
}

/// The member of a `Cache-Status` field that the nearest cache wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheStatus {
    /// Who wrote it.
    pub node: String,
    /// Whether it was answered without going forward.
    pub hit: bool,
    /// Why it went forward.
    pub fwd: Option<String>,
    /// Whether the answer was put into the store.
    pub stored: bool,
    /// Remaining freshness in seconds.
    pub ttl: Option<i64>,
    /// The free detail.
    pub detail: Option<String>,
}

impl CacheStatus {
    /// Reads a field: the last member is the nearest cache's (RFC 9211, 2).
    pub fn parse(field: &str) -> Self {
        let last = members(field).pop().unwrap_or_default();
        let mut parts = last.iter().map(String::as_str);
        let mut status = Self {
            node: unquoted(parts.next().unwrap_or_default()),
            ..Self::default()
        };
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match name.trim() {
                "hit" => status.hit = true,
                "stored" => status.stored = true,
                "fwd" => status.fwd = Some(unquoted(value)),
                "ttl" => status.ttl = value.trim().parse().ok(),
                "detail" => status.detail = Some(unquoted(value)),
                _ => {}
            }
        }
        status
    }

    /// Where it says the bytes came from.
    pub fn source(&self) -> Source {
        let detail = self.detail.as_deref().unwrap_or_default();
        if self.hit {
            Source::Hit
        } else if let Some(id) = detail.strip_prefix("peer:") {
            Source::Peer(id.to_owned())
        } else if let Some(id) = detail.strip_prefix("home:") {
            Source::Home(id.to_owned())
        } else if detail == "origin" {
            Source::Origin
        } else {
            Source::Unsaid
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hit => f.write_str("hit"),
            Self::Peer(id) => write!(f, "peer:{id}"),
            Self::Home(id) => write!(f, "home:{id}"),
            Self::Origin => f.write_str("origin"),
            Self::Unsaid => f.write_str("unsaid"),
        }
    }
}

/// Members and their parameters, split outside of quotes.
fn members(field: &str) -> Vec<Vec<String>> {
    let mut members = vec![vec![String::new()]];
    let (mut quoted, mut escaped) = (false, false);
    for c in field.chars() {
        let member = members.last_mut().expect("begins with one");
        match c {
            ',' if !quoted => members.push(vec![String::new()]),
            ';' if !quoted => member.push(String::new()),
            _ => {
                quoted ^= c == '"' && !escaped;
                member.last_mut().expect("begins with one").push(c);
            }
        }
        escaped = c == '\\' && quoted && !escaped;
    }
    members
}

fn unquoted(text: &str) -> String {
    let text = text.trim();
    let inner = text.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
    inner.unwrap_or(text).replace("\\\"", "\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_member_counts() {
        let status = CacheStatus::parse(
            "far; hit, edge-1; fwd=uri-miss; stored; ttl=30; detail=\"peer:edge, 2; x\"",
        );
        assert_eq!(status.node, "edge-1");
        assert_eq!(status.source(), Source::Peer("edge, 2; x".into()));
        assert!(status.stored && !status.hit);
        assert_eq!(
            (status.ttl, status.fwd.as_deref()),
            (Some(30), Some("uri-miss"))
        );
    }

    #[test]
    fn hits_origins_and_silence_are_told_apart() {
        for (field, source) in [
            ("\"edge 1\"; hit; ttl=-3", Source::Hit),
            ("e; fwd=uri-miss; detail=origin", Source::Origin),
            (
                "e; fwd=stale; detail=\"home:e2\"",
                Source::Home("e2".into()),
            ),
            ("e; fwd=uri-miss", Source::Unsaid),
            ("", Source::Unsaid),
        ] {
            assert_eq!(CacheStatus::parse(field).source(), source, "{field}");
        }
    }
}
