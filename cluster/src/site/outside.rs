//! Which origins a site may name that was not written by whoever runs the machines: none on the machines
//! themselves, or on the network behind them, unless the operator allows it. Pure.
//!
//! What is judged is what is written. A name that resolves to such an address is not seen here, because
//! what it resolves to may change at any moment; whoever has to guard against that has to guard the
//! network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::origin::Origin;
use crate::network::Network;

/// Names below which nothing is outside (RFC 6761, RFC 6762, RFC 8375, RFC 9476).
const INSIDE: [&str; 4] = ["localhost", "local", "internal", "home.arpa"];

/// Which private origins are allowed: all, none, or those at addresses in these networks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "true, false, or a list of networks such as \"10.0.0.0/8\""
)]
pub enum PrivateOrigins {
    /// All, or none.
    All(bool),
    /// At these addresses.
    In(Vec<Network>),
}

impl Default for PrivateOrigins {
    fn default() -> Self {
        Self::All(false)
    }
}

impl PrivateOrigins {
    /// Whether this origin may be named.
    ///
    /// # Errors
    ///
    /// It may not: what it is, in words.
    pub fn allow(&self, origin: &Origin) -> Result<(), &'static str> {
        let Some((host, _)) = origin.address() else {
            return Err("has no host");
        };
        if is_wildcard(&host) {
            return Err("every address of a machine, and so none of one");
        }
        let Some((kind, address)) = inside(&host) else {
            return Ok(());
        };
        let allowed = match (self, address) {
            (Self::All(all), _) => *all,
            (Self::In(networks), Some(address)) => {
                networks.iter().any(|network| network.contains(address))
            }
            (Self::In(_), None) => false,
        };
        match allowed {
            true => Ok(()),
            false => Err(kind),
        }
    }
}

/// Whether a host is where one listens on all addresses, in whatever form the system reads: `0.0.0.0`, `0`, `::`.
fn is_wildcard(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    if let Ok(address) = bare.unwrap_or(host).parse::<IpAddr>() {
        return address.to_canonical().is_unspecified();
    }
    let is_zero = |part: &str| {
        let digits = part.strip_prefix("0x").or_else(|| part.strip_prefix("0X"));
        let digits = digits.unwrap_or(part);
        !digits.is_empty() && digits.bytes().all(|digit| digit == b'0')
    };
    host.split('.').count() <= 4 && host.split('.').all(is_zero)
}

/// What a host is that is not outside, and its address where that is known.
fn inside(host: &str) -> Option<(&'static str, Option<IpAddr>)> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    if let Ok(address) = bare.unwrap_or(host).parse::<IpAddr>() {
        let address = address.to_canonical();
        let kind = match address {
            IpAddr::V4(v4) => kind_of_v4(v4),
            IpAddr::V6(v6) => kind_of_v6(v6),
        }?;
        return Some((kind, Some(address)));
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let last = name.rsplit('.').next().unwrap_or_default();
    // As the system reads addresses: 127.1, 2130706433, 0x7f.1 (a top-level domain has a letter first).
    if last.bytes().next().is_some_and(|b| b.is_ascii_digit()) {
        return Some(("an address in an unusual form", None));
    }
    if name == "localhost" || name.ends_with(".localhost") {
        return Some(("this machine itself", Some(Ipv4Addr::LOCALHOST.into())));
    }
    let below = |inside: &str| name.strip_suffix(inside).is_some_and(|n| n.ends_with('.'));
    if !name.contains('.') || INSIDE.iter().any(|inside| below(inside)) {
        return Some(("a name of a local network", None));
    }
    None
}

fn kind_of_v4(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, ..] = address.octets();
    Some(match (a, b) {
        (127, _) => "a loopback address",
        (10, _) | (172, 16..=31) | (192, 168) => "a private address",
        (169, 254) => "a link-local address",
        (100, 64..=127) => "an address behind a carrier's NAT",
        (224..=239, _) => "a multicast address",
        (0, _) | (240..=255, _) => "an address of no machine",
        (192, 0) if address.octets()[2] == 0 => "an address of no machine",
        (198, 18..=19) => "an address for measurements",
        _ => return None,
    })
}

fn kind_of_v6(address: Ipv6Addr) -> Option<&'static str> {
    let segments = address.segments();
    Some(match segments {
        [0, 0, 0, 0, 0, 0, 0, 1] => "a loopback address",
        [0, 0, 0, 0, 0, 0, 0, 0] => "an address of no machine",
        // An IPv4 address in one of its other clothes (RFC 4291 §2.5.5.1, RFC 6052, RFC 3056).
        [0, 0, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            return kind_of_v4(v4(high, low));
        }
        [0x2002, high, low, ..] => return kind_of_v4(v4(high, low)),
        [first, ..] if first & 0xfe00 == 0xfc00 => "a private address",
        [first, ..] if first & 0xff80 == 0xfe80 => "a link-local address",
        [first, ..] if first & 0xff00 == 0xff00 => "a multicast address",
        _ => return None,
    })
}

fn v4(high: u16, low: u16) -> Ipv4Addr {
    ((u32::from(high) << 16) | u32::from(low)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(policy: &PrivateOrigins, host: &str) -> Option<&'static str> {
        let origin = Origin::from(&*format!("http://{host}"));
        policy.allow(&origin).err()
    }

    #[test]
    fn what_is_inside_is_refused_in_whatever_clothes() {
        let none = PrivateOrigins::default();
        for (host, kind) in [
            ("127.0.0.1:80", "loopback"),
            ("[::1]", "loopback"),
            ("[::ffff:127.0.0.1]", "loopback"),
            ("[::127.0.0.1]", "loopback"),
            ("[64:ff9b::7f00:1]", "loopback"),
            ("[2002:a00:1::]", "private"),
            ("10.1.2.3", "private"),
            ("172.31.0.1", "private"),
            ("192.168.0.1:8080", "private"),
            ("[fd00::1]", "private"),
            ("169.254.169.254", "link-local"),
            ("[fe80::1]", "link-local"),
            ("100.64.0.1", "carrier"),
            ("224.0.0.1", "multicast"),
            ("[ff02::1]", "multicast"),
            ("255.255.255.255", "no machine"),
            ("127.1", "unusual form"),
            ("2130706433", "unusual form"),
            ("0x7f.0x1", "unusual form"),
            ("localhost", "this machine"),
            ("LOCALHOST", "this machine"),
            ("localhost.", "this machine"),
            ("a.localhost:80", "this machine"),
            ("redis", "local network"),
            ("printer.local", "local network"),
            ("metadata.google.internal", "local network"),
        ] {
            let found = refused(&none, host).unwrap_or_default();
            assert!(found.contains(kind), "{host}: {found:?}");
            assert_eq!(refused(&PrivateOrigins::All(true), host), None, "{host}");
        }
        for host in [
            "0.0.0.0",
            "0.0.0.0:80",
            "0",
            "0x0.00",
            "[::]",
            "[::ffff:0.0.0.0]",
        ] {
            for policy in [&none, &PrivateOrigins::All(true)] {
                let found = refused(policy, host).unwrap_or_default();
                assert!(found.contains("every address"), "{host}: {found:?}");
            }
        }
        for host in [
            "example.com",
            "8.8.8.8",
            "[2606:4700::1]",
            "172.32.0.1",
            "localhost.example.com",
        ] {
            assert_eq!(refused(&none, host), None, "{host}");
        }
    }

    #[test]
    fn networks_allow_what_is_in_them() {
        #[derive(Deserialize)]
        struct Written {
            allow: PrivateOrigins,
        }
        let read = |text: &str| toml::from_str::<Written>(text).map(|w| w.allow);
        let some = read("allow = ['10.0.0.0/8', '127.0.0.0/8']").unwrap();
        for (host, allowed) in [
            ("10.9.9.9", true),
            ("127.0.0.1", true),
            ("localhost", true),
            ("192.168.0.1", false),
            ("redis", false),
            ("127.1", false),
        ] {
            assert_eq!(refused(&some, host).is_none(), allowed, "{host}");
        }
        assert_eq!(read("allow = true").unwrap(), PrivateOrigins::All(true));
        let error = read("allow = 'all'").err().unwrap().to_string();
        assert!(error.contains("a list of networks"), "{error}");
    }
}
