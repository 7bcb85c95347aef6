//! Where a client's request is sent. Pure.

use std::net::{IpAddr, SocketAddr};

use cluster::{network::Network, wire::RankedEdge};

/// Edges within this much of the best are alike: places of clients are known to about a hundred
/// kilometres, and that is about what a hundred kilometres cost.
pub const ALIKE_MS: f64 = 2.0;

/// Why an edge was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is the nearest to the client, load considered.
    Nearest,
    /// The client's place is unknown: those in its region, else all, take turns by load.
    Unplaced,
}

impl Reason {
    /// As metrics and logs say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::Unplaced => "unplaced",
        }
    }
}

/// The edge to send a client to. `ranked` is best first, as [`crate::rank::edges_for`] makes it;
/// those [alike](ALIKE_MS) to the best take turns, and `turn` says whose it is. `None`: there is no
/// edge.
pub fn choose(ranked: &[RankedEdge], turn: u64) -> Option<&RankedEdge> {
    let best = ranked.first()?;
    let alike = ranked
        .iter()
        .take_while(|edge| edge.score <= best.score + ALIKE_MS)
        .count();
    let alike = alike.max(1) as u64;
    ranked.get(usize::try_from(turn % alike).unwrap_or(0))
}

/// Whose request it is: the socket's other end; or, if that is a trusted proxy, the last address in
/// `X-Forwarded-For` (its lines in order) that is not one. What cannot be read ends the search,
/// because nothing before it can be believed.
pub fn client_address<'a>(
    socket: IpAddr,
    forwarded_for: impl DoubleEndedIterator<Item = &'a str>,
    trusted: &[Network],
) -> IpAddr {
    let is_trusted = |address| trusted.iter().any(|network| network.contains(address));
    let mut client = socket.to_canonical();
    for entry in forwarded_for.rev().flat_map(|line| line.rsplit(',')) {
        if !is_trusted(client) {
            break;
        }
        let entry = entry.trim();
        let address = entry.parse::<IpAddr>().ok();
        let Some(address) = address.or_else(|| Some(entry.parse::<SocketAddr>().ok()?.ip())) else {
            break;
        };
        client = address.to_canonical();
    }
    client
}

/// The URL at the edge of base URL `base` for a request to `host` (lower case, without port):
/// `{host}` in the base becomes the host; path and query are kept byte by byte.
pub fn location(base: &str, host: &str, path_and_query: &str) -> String {
    let base = base.trim_end_matches('/').replace("{host}", host);
    // `OPTIONS *` asks the server as a whole (RFC 9112 §3.2.4), which a URL cannot say.
    let path = path_and_query.strip_prefix('*').unwrap_or(path_and_query);
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!("{base}{slash}{path}")
}

#[cfg(test)]
mod tests {
    use cluster::node::Load;

    use super::*;

    fn ranked(scores: &[(&str, f64)]) -> Vec<RankedEdge> {
        scores
            .iter()
            .map(|(id, score)| RankedEdge {
                id: id.parse().unwrap(),
                region: String::new(),
                http: format!("http://{id}"),
                distance_km: None,
                load: Load::default(),
                score: *score,
            })
            .collect()
    }

    #[test]
    fn the_best_is_chosen_and_those_alike_take_turns() {
        let turns = |edges: &[RankedEdge]| -> Vec<String> {
            (0..4)
                .filter_map(|turn| choose(edges, turn))
                .map(|e| e.id.to_string())
                .collect()
        };
        assert_eq!(turns(&ranked(&[("a", 5.0), ("b", 8.0)])), ["a"; 4]);
        assert_eq!(
            turns(&ranked(&[("a", 150.0), ("b", 151.5), ("c", 153.0)])),
            ["a", "b", "a", "b"]
        );
        assert!(turns(&[]).is_empty());
    }

    #[test]
    fn forwarded_addresses_are_believed_from_trusted_proxies_only() {
        let trusted: Vec<Network> = ["10.0.0.0/8", "127.0.0.1"]
            .map(|n| n.parse().unwrap())
            .to_vec();
        for (socket, lines, client) in [
            ("203.0.113.9", &["198.51.100.1"][..], "203.0.113.9"),
            ("127.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("::ffff:127.0.0.1", &["2001:db8::1"], "2001:db8::1"),
            (
                "127.0.0.1",
                &["6.6.6.6", "198.51.100.1, 10.0.0.1"],
                "198.51.100.1",
            ),
            ("127.0.0.1", &["198.51.100.1:555"], "198.51.100.1"),
            ("127.0.0.1", &["198.51.100.1, unknown"], "127.0.0.1"),
            ("127.0.0.1", &[], "127.0.0.1"),
            ("127.0.0.1", &["10.0.0.1"], "10.0.0.1"),
        ] {
            let socket = socket.parse().unwrap();
            let told = client_address(socket, lines.iter().copied(), &trusted);
            assert_eq!(told, client.parse::<IpAddr>().unwrap(), "{lines:?}");
        }
    }

    #[test]
    fn path_and_query_are_kept_byte_by_byte() {
        for (base, host, path, url) in [
            (
                "http://e1:8080",
                "www.a.test",
                "/x/../y?b=%2F&c",
                "http://e1:8080/x/../y?b=%2F&c",
            ),
            (
                "http://{host}.fra.cdn.test",
                "www.a.test",
                "/",
                "http://www.a.test.fra.cdn.test/",
            ),
            ("http://{host}:8081", "[::1]", "/?", "http://[::1]:8081/?"),
            ("https://e1/", "a", "//evil.test/", "https://e1//evil.test/"),
            ("http://e1", "a", "*", "http://e1/"),
            ("http://e1", "a", "?q", "http://e1/?q"),
        ] {
            assert_eq!(location(base, host, path), url);
        }
    }
}
