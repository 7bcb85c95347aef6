//! How a request between nodes, and a document of the control plane, proves that its sender knows
//! the cluster's secret.
//!
//! A request carries its sender, the time, a nonce and a MAC (keyed BLAKE3) over these, its
//! audience, its method and its path with the query. The receiver refuses what is older or newer
//! than [`TIME_WINDOW`], what is meant for somebody else, and what it has accepted before. Of a body,
//! where a request has one, the query carries the hash ([`body_parameter`]): so it is covered as well,
//! and who has no secret is sent away before its body is read.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{
    node::NodeId,
    secret::ClusterSecret,
    wire::{MAC_FIELD, NODE_FIELD, NONCE_FIELD, TIME_FIELD},
};

/// How far a sender's clock may be from ours, either way.
pub const TIME_WINDOW: Duration = Duration::from_secs(30);
/// Most nonces remembered per shard and generation: 17,000 requests per second in all, and at most
/// some 40 MiB. Beyond that requests are refused, because forgetting a nonce would allow a replay.
const NONCES_MAX: usize = 1 << 16;
/// The guard is split so that growing one set never holds up requests for long.
const SHARDS: usize = 16;
/// A request is acceptable from [`TIME_WINDOW`] before its time to as much after it, so a nonce
/// must be remembered that long at least.
const GENERATION_MS: u64 = 2 * TIME_WINDOW.as_millis() as u64;

/// Signs the requests of one node.
#[derive(Clone, Debug)]
pub struct Signer {
    secret: ClusterSecret,
    me: NodeId,
}

impl Signer {
    /// Signs for `me`.
    pub fn new(secret: ClusterSecret, me: NodeId) -> Self {
        Self { secret, me }
    }

    /// The header fields that authenticate one request of this node to `to`, once. `now_ms` is in
    /// Unix milliseconds.
    pub fn sign(
        &self,
        to: &NodeId,
        method: &str,
        path_and_query: &str,
        now_ms: u64,
    ) -> [(&'static str, String); 4] {
        let nonce: [u8; 16] = rand::random();
        let said = Said {
            from: self.me.as_str(),
            to: to.as_str(),
            method,
            path_and_query,
            time_ms: now_ms,
            nonce,
        };
        let mac = said.mac(&self.secret.sending().request);
        [
            (NODE_FIELD, self.me.as_str().to_owned()),
            (TIME_FIELD, now_ms.to_string()),
            (NONCE_FIELD, hex(&nonce)),
            (MAC_FIELD, mac.to_hex().to_string()),
        ]
    }
}

/// Verifies requests to one node, and remembers them for as long as they could be replayed.
#[derive(Debug)]
pub struct Verifier {
    secret: ClusterSecret,
    me: NodeId,
    seen: [Mutex<Seen>; SHARDS],
}

impl Verifier {
    /// Verifies what is sent to `me`.
    pub fn new(secret: ClusterSecret, me: NodeId) -> Self {
        Self {
            secret,
            me,
            seen: Default::default(),
        }
    }

    /// Who sent this request. `field` gives the value of a header field by its lower-case name;
    /// `now_ms` is in Unix milliseconds.
    ///
    /// # Errors
    ///
    /// Why the request must not be answered; all but [`Denied::Busy`] are the sender's fault.
    pub fn verify<'a>(
        &self,
        method: &str,
        path_and_query: &str,
        field: impl Fn(&str) -> Option<&'a str>,
        now_ms: u64,
    ) -> Result<NodeId, Denied> {
        let get = |name: &'static str| field(name).ok_or(Denied::Missing(name));
        let from = get(NODE_FIELD)?;
        let time_ms = get(TIME_FIELD)?
            .parse()
            .map_err(|_| Denied::Malformed(TIME_FIELD))?;
        let nonce: [u8; 16] = unhex(get(NONCE_FIELD)?).ok_or(Denied::Malformed(NONCE_FIELD))?;
        let mac = unhex(get(MAC_FIELD)?).ok_or(Denied::Malformed(MAC_FIELD))?;

        let said = Said {
            from,
            to: self.me.as_str(),
            method,
            path_and_query,
            time_ms,
            nonce,
        };
        let authentic = self
            .secret
            .accepted()
            .iter()
            // blake3::Hash compares in constant time.
            .any(|keys| said.mac(&keys.request) == blake3::Hash::from_bytes(mac));
        if !authentic {
            return Err(Denied::WrongMac);
        }
        // Only now is anything in the request worth a complaint of its own, or memory.
        let from = from.parse().map_err(|_| Denied::Malformed(NODE_FIELD))?;
        let apart_ms = now_ms.abs_diff(time_ms);
        if u128::from(apart_ms) > TIME_WINDOW.as_millis() {
            return Err(Denied::WrongTime { apart_ms });
        }
        let [a, b, c, d, e, f, g, h, shard, ..] = nonce;
        self.seen[usize::from(shard) % SHARDS]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .accept(u64::from_le_bytes([a, b, c, d, e, f, g, h]), now_ms)?;
        Ok(from)
    }
}

/// Why a request between nodes was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// A header field is missing.
    #[error("header field {0} is missing")]
    Missing(&'static str),
    /// A header field cannot be read.
    #[error("header field {0} cannot be read")]
    Malformed(&'static str),
    /// The sender does not know the secret, or meant another node, method or path.
    #[error("the request is not authentic: another secret, another node, or altered on the way")]
    WrongMac,
    /// The clocks are too far apart, or the request is an old one.
    #[error("the request's time is {apart_ms} ms from this node's")]
    WrongTime {
        /// How far, in milliseconds.
        apart_ms: u64,
    },
    /// The same request was accepted before.
    #[error("the request was accepted before")]
    Replayed,
    /// So many requests that their nonces cannot be remembered; try again later.
    #[error("too many requests to remember")]
    Busy,
}

/// Nonces accepted lately: a set that fills up, and the one that was full before it.
#[derive(Debug, Default)]
struct Seen {
    current: HashSet<u64>,
    previous: HashSet<u64>,
    since_ms: u64,
}

impl Seen {
    fn accept(&mut self, nonce: u64, now_ms: u64) -> Result<(), Denied> {
        // A clock that was set back must not make the guard remember forever.
        if now_ms.abs_diff(self.since_ms) >= GENERATION_MS {
            self.previous = std::mem::take(&mut self.current);
            self.since_ms = now_ms;
        }
        if self.current.contains(&nonce) || self.previous.contains(&nonce) {
            return Err(Denied::Replayed);
        }
        if self.current.len() >= NONCES_MAX {
            return Err(Denied::Busy);
        }
        self.current.insert(nonce);
        Ok(())
    }
}

/// What the MAC of a request covers.
struct Said<'a> {
    from: &'a str,
    to: &'a str,
    method: &'a str,
    path_and_query: &'a str,
    time_ms: u64,
    nonce: [u8; 16],
}

impl Said<'_> {
    fn mac(&self, key: &[u8; 32]) -> blake3::Hash {
        mac(
            key,
            &[
                self.from.as_bytes(),
                self.to.as_bytes(),
                self.method.as_bytes(),
                self.path_and_query.as_bytes(),
                &self.time_ms.to_le_bytes(),
                &self.nonce,
            ],
        )
    }
}

/// The query of a request with this body.
pub fn body_parameter(body: &[u8]) -> String {
    format!("body={}", blake3::hash(body).to_hex())
}

/// The MAC, in hex, of a document that the control plane answers with at `path`.
pub fn document_mac(secret: &ClusterSecret, path: &str, body: &[u8]) -> String {
    mac(&secret.sending().document, &[path.as_bytes(), body])
        .to_hex()
        .to_string()
}

/// Whether `mac_hex` proves that somebody who knows the secret wrote `body` as the answer at `path`.
pub fn verify_document(secret: &ClusterSecret, path: &str, body: &[u8], mac_hex: &str) -> bool {
    unhex(mac_hex).is_some_and(|claimed| {
        secret.accepted().iter().any(|keys| {
            mac(&keys.document, &[path.as_bytes(), body]) == blake3::Hash::from_bytes(claimed)
        })
    })
}

/// A MAC over parts, each with its length before it, so that no two lists of parts look the same.
fn mac(key: &[u8; 32], parts: &[&[u8]]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(key);
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize()
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .map(|nibble| char::from(DIGITS[usize::from(nibble)]))
        .collect()
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let digit = |b: u8| char::from(b).to_digit(16);
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn secret(text: &str) -> ClusterSecret {
        ClusterSecret::from_bytes(text.as_bytes()).unwrap()
    }

    fn id(text: &str) -> NodeId {
        text.parse().unwrap()
    }

    fn signed(text: &str) -> [(&'static str, String); 4] {
        Signer::new(secret(text), id("edge-1")).sign(&id("edge-2"), "GET", "/v1/hold/ab?x=1", NOW)
    }

    fn check(
        verifier: &Verifier,
        fields: &[(&'static str, String)],
        now: u64,
    ) -> Result<NodeId, Denied> {
        verifier.verify("GET", "/v1/hold/ab?x=1", |name| look(fields, name), now)
    }

    fn look<'a>(fields: &'a [(&'static str, String)], name: &str) -> Option<&'a str> {
        fields
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, v)| v.as_str())
    }

    #[test]
    fn a_signed_request_is_accepted_once() {
        let verifier = Verifier::new(secret("0123456789abcdef"), id("edge-2"));
        let fields = signed("0123456789abcdef");
        assert_eq!(check(&verifier, &fields, NOW), Ok(id("edge-1")));
        assert_eq!(
            check(&verifier, &fields, NOW + 29_000),
            Err(Denied::Replayed)
        );
        assert_eq!(
            check(&verifier, &fields, NOW + 31_000),
            Err(Denied::WrongTime { apart_ms: 31_000 })
        );
    }

    #[test]
    fn anything_altered_is_refused() {
        let verifier = Verifier::new(secret("0123456789abcdef"), id("edge-2"));
        let fields = signed("0123456789abcdef");
        let get = |name: &str| look(&fields, name);
        let denied = Err(Denied::WrongMac);
        assert_eq!(verifier.verify("POST", "/v1/hold/ab?x=1", get, NOW), denied);
        assert_eq!(verifier.verify("GET", "/v1/hold/ab?x=2", get, NOW), denied);
        let elsewhere = Verifier::new(secret("0123456789abcdef"), id("edge-3"));
        assert_eq!(check(&elsewhere, &fields, NOW), denied);
        let stranger = Verifier::new(secret("another secret 16"), id("edge-2"));
        assert_eq!(check(&stranger, &fields, NOW), denied);
        for (i, value, expected) in [
            (0, "edge-9".to_owned(), Denied::WrongMac),
            (1, (NOW + 1).to_string(), Denied::WrongMac),
            (1, "soon".to_owned(), Denied::Malformed(TIME_FIELD)),
            (2, "00".repeat(16), Denied::WrongMac),
            (2, "zz".repeat(16), Denied::Malformed(NONCE_FIELD)),
            (3, "00".repeat(32), Denied::WrongMac),
            (3, String::new(), Denied::Malformed(MAC_FIELD)),
        ] {
            let mut altered = fields.clone();
            altered[i].1 = value;
            assert_eq!(check(&verifier, &altered, NOW), Err(expected));
        }
        for i in 0..4 {
            let mut fewer = fields.to_vec();
            let (name, _) = fewer.remove(i);
            assert_eq!(check(&verifier, &fewer, NOW), Err(Denied::Missing(name)));
        }
        assert!(
            check(&verifier, &fields, NOW).is_ok(),
            "refusals remember nothing"
        );
    }

    #[test]
    fn secrets_rotate_without_a_gap() {
        let both = "0123456789abcdef\nfedcba9876543210";
        let verifier = Verifier::new(secret(both), id("edge-2"));
        assert!(check(&verifier, &signed("fedcba9876543210"), NOW).is_ok());
        assert!(check(&verifier, &signed(both), NOW).is_ok());

        let mac = document_mac(&secret("fedcba9876543210"), "/v1/sites", b"{}");
        assert!(verify_document(&secret(both), "/v1/sites", b"{}", &mac));
        assert!(!verify_document(&secret(both), "/v1/sites", b"{ }", &mac));
        assert!(!verify_document(&secret(both), "/v1/peers", b"{}", &mac));
        assert!(!verify_document(
            &secret("0123456789abcdef"),
            "/v1/sites",
            b"{}",
            &mac
        ));
        assert!(!verify_document(&secret(both), "/v1/sites", b"{}", "é"));
    }

    #[test]
    fn the_guard_refuses_rather_than_forgets_and_forgets_in_time() {
        let mut seen = Seen::default();
        for nonce in 0..NONCES_MAX as u64 {
            seen.accept(nonce, NOW).unwrap();
        }
        assert_eq!(seen.accept(u64::MAX, NOW), Err(Denied::Busy));
        assert_eq!(seen.accept(7, NOW + GENERATION_MS), Err(Denied::Replayed));
        assert_eq!(seen.accept(u64::MAX, NOW + GENERATION_MS), Ok(()));
        assert_eq!(seen.accept(7, NOW + 2 * GENERATION_MS), Ok(()));
    }
}
