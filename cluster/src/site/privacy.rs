//! What the origin learns of a client. As written; pure.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Bits of an IPv4 address that are told of a truncated one: those of a network that is routed by itself,
/// in which a few hundred clients are.
const IPV4_BITS: u32 = 24;
/// The same for IPv6: what a site is given at most (RFC 6177).
const IPV6_BITS: u32 = 48;

/// `[site.privacy]`: what the origin learns of a client beyond what it wants. Everything, when absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Privacy {
    /// How much of the client's address is told, in `Forwarded` and `X-Forwarded-For`. With anything but
    /// `full`, what proxies before this one said of addresses is not told either.
    #[serde(skip_serializing_if = "is_full")]
    pub client_address: ClientAddress,
    /// Whether `User-Agent`, and the `Sec-CH-UA` fields that say the same, are told.
    #[serde(skip_serializing_if = "is_true")]
    pub user_agent: bool,
    /// Whether `Referer` is told.
    #[serde(skip_serializing_if = "is_true")]
    pub referer: bool,
    /// Whether cookies are told. Rules about cookies look at them in any case.
    #[serde(skip_serializing_if = "is_true")]
    pub cookies: bool,
}

/// How much of a client's address is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAddress {
    /// All of it.
    #[default]
    Full,
    /// The network it is in: the first 24 bits of an IPv4 address, the first 48 of an IPv6 address.
    Truncated,
    /// Nothing.
    None,
}

impl Default for Privacy {
    fn default() -> Self {
        Self {
            client_address: ClientAddress::Full,
            user_agent: true,
            referer: true,
            cookies: true,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_full(told: &ClientAddress) -> bool {
    *told == ClientAddress::Full
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_true(value: &bool) -> bool {
    *value
}

impl ClientAddress {
    /// What is told of `address`.
    pub fn told(self, address: IpAddr) -> Option<IpAddr> {
        match (self, address.to_canonical()) {
            (Self::Full, address) => Some(address),
            (Self::None, _) => None,
            (Self::Truncated, IpAddr::V4(v4)) => {
                let bits = v4.to_bits() & (u32::MAX << (u32::BITS - IPV4_BITS));
                Some(IpAddr::V4(bits.into()))
            }
            (Self::Truncated, IpAddr::V6(v6)) => {
                let bits = v6.to_bits() & (u128::MAX << (u128::BITS - IPV6_BITS));
                Some(IpAddr::V6(bits.into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_address_all_its_network_or_nothing_is_told() {
        use ClientAddress::{Full, None, Truncated};
        for (how, address, told) in [
            (Full, "192.0.2.7", Some("192.0.2.7")),
            (Full, "::ffff:192.0.2.7", Some("192.0.2.7")),
            (Truncated, "192.0.2.7", Some("192.0.2.0")),
            (Truncated, "::ffff:192.0.2.7", Some("192.0.2.0")),
            (Truncated, "2001:db8:1:2:3::4", Some("2001:db8:1::")),
            (None, "192.0.2.7", Option::None),
        ] {
            let found = how.told(address.parse().unwrap());
            assert_eq!(
                found,
                told.map(|t: &str| t.parse().unwrap()),
                "{how:?} {address}"
            );
        }
    }
}
