//! What gossip looks like on the wire: compressed, cut into datagrams that pass every path, sealed.
//!
//! ```text
//! version 1 | key id 8 | nonce 24 | XChaCha20-Poly1305 of:
//!     session 8 | message 8 | sent, Unix ms 8 | index 1 | count 1 | part of the zstd-compressed message
//! ```
//!
//! Version, key id and the cluster's name are authenticated with every datagram, so a datagram of
//! another cluster does not open even where the secret is the same. A session is one life of one
//! sender; its messages are numbered, and a receiver takes each number once and only near its time.
//!
//! No sockets and no clock here: bytes in, bytes out, times as arguments.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};

use crate::secret::ClusterSecret;

/// Longest datagram: with IP and UDP headers it stays under the 1,280 bytes that every IPv6 path
/// carries, so it is never fragmented by the network.
pub const DATAGRAM_BYTES_MAX: usize = 1200;
/// Longest message before compression. chitchat aims at 65,507 bytes but forgets a few of its own
/// header when it fills a message up.
pub const MESSAGE_BYTES_MAX: usize = 65_536;
/// How far a sender's clock may be from ours, either way; older datagrams may be replays.
pub const TIME_WINDOW: Duration = Duration::from_secs(30);
/// How long the parts of a message are kept while others are missing. Nobody sends parts again, and
/// the network delivers or loses within seconds.
pub const REASSEMBLY_TIME: Duration = Duration::from_secs(5);
/// Most unfinished messages of one source address; the oldest gives way.
pub const INCOMPLETE_PER_SOURCE_MAX: usize = 8;
/// Most unfinished messages in all: at most 18 MiB. Only those who know the secret can fill it.
pub const INCOMPLETE_MAX: usize = 256;
/// Most senders remembered. Each restart of a node is one, for the length of [`TIME_WINDOW`].
pub const SESSIONS_MAX: usize = 4096;

const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 8;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
const OUTER_BYTES: usize = 1 + KEY_ID_BYTES + NONCE_BYTES;
const INNER_BYTES: usize = 8 + 8 + 8 + 1 + 1;
const PART_BYTES_MAX: usize = DATAGRAM_BYTES_MAX - OUTER_BYTES - TAG_BYTES - INNER_BYTES;
/// Enough for a message that does not compress at all.
const PARTS_MAX: usize = 60;
/// Fast, and gossip is repetitive: idle traffic shrinks to an eighth.
const ZSTD_LEVEL: i32 = 1;

/// Seals the messages of one sender.
pub struct Sealer {
    cipher: XChaCha20Poly1305,
    associated: Vec<u8>,
    session: u64,
    next_message: AtomicU64,
}

impl Sealer {
    /// A sender in the cluster `cluster_name`, with a session of its own.
    pub fn new(secret: &ClusterSecret, cluster_name: &str) -> Self {
        let keys = secret.sending();
        Self {
            cipher: XChaCha20Poly1305::new(&keys.gossip.into()),
            associated: associated(keys.gossip_id, cluster_name),
            session: rand::random(),
            next_message: AtomicU64::new(1),
        }
    }

    /// The datagrams that carry `message`, each of at most [`DATAGRAM_BYTES_MAX`]. `now_ms` is in
    /// Unix milliseconds.
    ///
    /// # Errors
    ///
    /// The message is longer than [`MESSAGE_BYTES_MAX`].
    pub fn seal(&self, message: &[u8], now_ms: u64) -> Result<Vec<Vec<u8>>, TooLong> {
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(TooLong(message.len()));
        }
        let compressed = zstd::bulk::compress(message, ZSTD_LEVEL)
            .expect("the bulk compressor sizes its own buffer");
        let parts: Vec<&[u8]> = compressed.chunks(PART_BYTES_MAX).collect();
        debug_assert!((1..=PARTS_MAX).contains(&parts.len()));
        let count = u8::try_from(parts.len()).expect("PARTS_MAX fits");
        let id = self.next_message.fetch_add(1, Ordering::Relaxed);
        let datagrams = parts.into_iter().zip(0u8..).map(|(part, index)| {
            let mut plain = Vec::with_capacity(INNER_BYTES + part.len());
            plain.extend(self.session.to_le_bytes());
            plain.extend(id.to_le_bytes());
            plain.extend(now_ms.to_le_bytes());
            plain.extend([index, count]);
            plain.extend(part);
            let nonce: [u8; NONCE_BYTES] = rand::random();
            let payload = Payload {
                msg: &plain,
                aad: &self.associated,
            };
            let sealed = self
                .cipher
                .encrypt(&XNonce::from(nonce), payload)
                .expect("a datagram is far below the cipher's limit");
            let mut datagram = Vec::with_capacity(OUTER_BYTES + sealed.len());
            datagram.extend(&self.associated[..=KEY_ID_BYTES]);
            datagram.extend(nonce);
            datagram.extend(sealed);
            datagram
        });
        Ok(datagrams.collect())
    }
}

/// A message that no receiver would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a gossip message of {0} bytes is longer than {MESSAGE_BYTES_MAX}")]
pub struct TooLong(pub usize);

/// Opens datagrams and puts messages together. Never panics, whatever arrives; memory is bounded by
/// the constants of this file.
pub struct Opener {
    keys: Vec<([u8; KEY_ID_BYTES], XChaCha20Poly1305, Vec<u8>)>,
    sessions: HashMap<u64, Session>,
    incomplete: HashMap<(SocketAddr, u64, u64), Incomplete>,
    swept_ms: u64,
    expired: u64,
}

impl Opener {
    /// A receiver in the cluster `cluster_name`.
    pub fn new(secret: &ClusterSecret, cluster_name: &str) -> Self {
        let keys = secret.accepted().iter().map(|keys| {
            (
                keys.gossip_id,
                XChaCha20Poly1305::new(&keys.gossip.into()),
                associated(keys.gossip_id, cluster_name),
            )
        });
        Self {
            keys: keys.collect(),
            sessions: HashMap::new(),
            incomplete: HashMap::new(),
            swept_ms: 0,
            expired: 0,
        }
    }

    /// Takes one datagram that came from `from` at `now_ms` (Unix milliseconds). Gives the message
    /// it completes, or `None` while parts are missing.
    ///
    /// # Errors
    ///
    /// Why the datagram counts for nothing.
    pub fn open(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now_ms: u64,
    ) -> Result<Option<Vec<u8>>, Rejected> {
        self.sweep(now_ms);
        let plain = self.decrypt(datagram)?;
        let part = Part::read(&plain)?;
        let apart_ms = now_ms.abs_diff(part.sent_ms);
        if apart_ms > millis(TIME_WINDOW) {
            return Err(Rejected::WrongTime { apart_ms });
        }
        if !self.sessions.contains_key(&part.session) && self.sessions.len() >= SESSIONS_MAX {
            return Err(Rejected::Full);
        }
        let session = self.sessions.entry(part.session).or_default();
        if session.has(part.message) {
            return Err(Rejected::Replayed);
        }
        session.newest_ms = session.newest_ms.max(part.sent_ms);

        let (id, message) = (part.session, part.message);
        let Some(compressed) = self.assemble(from, &part, now_ms)? else {
            return Ok(None);
        };
        if let Some(session) = self.sessions.get_mut(&id) {
            session.mark(message);
        }
        zstd::bulk::decompress(&compressed, MESSAGE_BYTES_MAX)
            .map(Some)
            .map_err(|_| Rejected::Malformed)
    }

    /// How many messages were given up because parts of them never came.
    pub fn expired(&self) -> u64 {
        self.expired
    }

    fn decrypt(&self, datagram: &[u8]) -> Result<Vec<u8>, Rejected> {
        if datagram.len() > DATAGRAM_BYTES_MAX {
            return Err(Rejected::Malformed);
        }
        let (&version, rest) = datagram.split_first().ok_or(Rejected::Malformed)?;
        let (key_id, rest) = rest.split_first_chunk().ok_or(Rejected::Malformed)?;
        let (nonce, sealed) = rest
            .split_first_chunk::<NONCE_BYTES>()
            .ok_or(Rejected::Malformed)?;
        if version != VERSION {
            return Err(Rejected::Malformed);
        }
        let (_, cipher, aad) = self
            .keys
            .iter()
            .find(|(id, ..)| id == key_id)
            .ok_or(Rejected::OtherSecret)?;
        let payload = Payload { msg: sealed, aad };
        cipher
            .decrypt(&XNonce::from(*nonce), payload)
            .map_err(|_| Rejected::NotAuthentic)
    }

    /// The whole compressed message, once `part` was the last that was missing.
    fn assemble(
        &mut self,
        from: SocketAddr,
        part: &Part<'_>,
        now_ms: u64,
    ) -> Result<Option<Vec<u8>>, Rejected> {
        if part.count == 1 {
            return Ok(Some(part.bytes.to_vec()));
        }
        let key = (from, part.session, part.message);
        if !self.incomplete.contains_key(&key) {
            self.make_room(from)?;
        }
        let unfinished = self.incomplete.entry(key).or_insert_with(|| Incomplete {
            parts: vec![Vec::new(); usize::from(part.count)],
            missing: usize::from(part.count),
            since_ms: now_ms,
        });
        let place = unfinished
            .parts
            .get_mut(usize::from(part.index))
            .ok_or(Rejected::Malformed)?;
        if !place.is_empty() {
            return Err(Rejected::Replayed);
        }
        part.bytes.clone_into(place);
        unfinished.missing -= 1;
        if unfinished.missing > 0 {
            return Ok(None);
        }
        Ok(self
            .incomplete
            .remove(&key)
            .map(|whole| whole.parts.concat()))
    }

    /// Makes room for one more unfinished message from `from`.
    fn make_room(&mut self, from: SocketAddr) -> Result<(), Rejected> {
        let of_source = || {
            self.incomplete
                .iter()
                .filter(|((source, ..), _)| *source == from)
        };
        if of_source().count() >= INCOMPLETE_PER_SOURCE_MAX {
            let oldest = of_source().min_by_key(|(_, unfinished)| unfinished.since_ms);
            if let Some(key) = oldest.map(|(key, _)| *key) {
                self.incomplete.remove(&key);
                self.expired += 1;
            }
        } else if self.incomplete.len() >= INCOMPLETE_MAX {
            return Err(Rejected::Full);
        }
        Ok(())
    }

    /// Forgets, once a second, what can no longer matter.
    fn sweep(&mut self, now_ms: u64) {
        if now_ms.abs_diff(self.swept_ms) < 1000 {
            return;
        }
        self.swept_ms = now_ms;
        let before = self.incomplete.len();
        self.incomplete
            .retain(|_, one| now_ms.abs_diff(one.since_ms) < millis(REASSEMBLY_TIME));
        self.expired += (before - self.incomplete.len()) as u64;
        // What a session has sent by then is refused for its time, so its numbers may be forgotten.
        self.sessions
            .retain(|_, session| now_ms <= session.newest_ms.saturating_add(millis(TIME_WINDOW)));
    }
}

/// Why a datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Not one of our datagrams, or its content contradicts itself.
    #[error("not a gossip datagram of this version")]
    Malformed,
    /// Sealed with a key we do not know.
    #[error("sealed with another secret")]
    OtherSecret,
    /// Sealed with a key of this name, but does not open.
    #[error("of another cluster with the same secret, or altered on the way")]
    NotAuthentic,
    /// The clocks are too far apart, or the datagram is an old one.
    #[error(
        "sent {apart_ms} ms away from this node's time: one of the two clocks is wrong, or it is a replay"
    )]
    WrongTime {
        /// How far, in milliseconds.
        apart_ms: u64,
    },
    /// Taken before, or too far behind its sender's newest.
    #[error("taken before")]
    Replayed,
    /// No room to remember the sender or to put the message together.
    #[error("too many senders or unfinished messages")]
    Full,
}

struct Incomplete {
    /// Empty where the part is missing; no part is empty.
    parts: Vec<Vec<u8>>,
    missing: usize,
    since_ms: u64,
}

/// What is inside a datagram.
struct Part<'a> {
    session: u64,
    message: u64,
    sent_ms: u64,
    index: u8,
    count: u8,
    bytes: &'a [u8],
}

impl<'a> Part<'a> {
    fn read(plain: &'a [u8]) -> Result<Self, Rejected> {
        fn number(from: &[u8]) -> Result<(u64, &[u8]), Rejected> {
            let (bytes, rest) = from.split_first_chunk().ok_or(Rejected::Malformed)?;
            Ok((u64::from_le_bytes(*bytes), rest))
        }
        let (session, rest) = number(plain)?;
        let (message, rest) = number(rest)?;
        let (sent_ms, rest) = number(rest)?;
        let [index, count, bytes @ ..] = rest else {
            return Err(Rejected::Malformed);
        };
        if bytes.is_empty() || index >= count || usize::from(*count) > PARTS_MAX {
            return Err(Rejected::Malformed);
        }
        Ok(Self {
            session,
            message,
            sent_ms,
            index: *index,
            count: *count,
            bytes,
        })
    }
}

/// Messages taken from one sender: the newest, and which of the 1,024 up to it. Datagrams may
/// overtake each other by a few; what is further behind counts as taken.
#[derive(Default)]
struct Session {
    newest: u64,
    newest_ms: u64,
    taken: [u64; Self::WORDS],
}

impl Session {
    const WORDS: usize = 16;
    const WIDTH: u64 = 64 * Self::WORDS as u64;

    fn bit(message: u64) -> (usize, u64) {
        let at = message % Self::WIDTH;
        let word = usize::try_from(at / 64).expect("smaller than WORDS");
        (word, 1 << (at % 64))
    }

    fn has(&self, message: u64) -> bool {
        if message > self.newest {
            return false;
        }
        let (word, bit) = Self::bit(message);
        self.newest - message >= Self::WIDTH || self.taken[word] & bit != 0
    }

    fn mark(&mut self, message: u64) {
        if message > self.newest {
            let ahead = message - self.newest;
            if ahead >= Self::WIDTH {
                self.taken = [0; Self::WORDS];
            } else {
                for skipped in self.newest + 1..=message {
                    let (word, bit) = Self::bit(skipped);
                    self.taken[word] &= !bit;
                }
            }
            self.newest = message;
        }
        let (word, bit) = Self::bit(message);
        self.taken[word] |= bit;
    }
}

fn associated(key_id: [u8; KEY_ID_BYTES], cluster_name: &str) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.extend(key_id);
    bytes.extend(cluster_name.as_bytes());
    bytes
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn from() -> SocketAddr {
        "10.0.0.1:7946".parse().unwrap()
    }

    fn secret() -> ClusterSecret {
        ClusterSecret::from_bytes(b"0123456789abcdef").unwrap()
    }

    fn pair() -> (Sealer, Opener) {
        (
            Sealer::new(&secret(), "test"),
            Opener::new(&secret(), "test"),
        )
    }

    /// Bytes that no compressor makes shorter.
    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn the_largest_message_passes_in_small_datagrams_in_any_order() {
        let (sealer, mut opener) = pair();
        let message = noise(MESSAGE_BYTES_MAX);
        let datagrams = sealer.seal(&message, NOW).unwrap();
        assert_eq!(datagrams.len(), 59);
        assert!(datagrams.iter().all(|d| d.len() <= DATAGRAM_BYTES_MAX));
        for datagram in datagrams[1..].iter().rev() {
            assert_eq!(opener.open(from(), datagram, NOW), Ok(None));
            assert_eq!(opener.open(from(), datagram, NOW), Err(Rejected::Replayed));
        }
        assert_eq!(opener.open(from(), &datagrams[0], NOW), Ok(Some(message)));
        for datagram in &datagrams {
            assert_eq!(opener.open(from(), datagram, NOW), Err(Rejected::Replayed));
        }
        assert!(opener.incomplete.is_empty());
        assert_eq!(
            sealer.seal(&noise(MESSAGE_BYTES_MAX + 1), NOW),
            Err(TooLong(65_537))
        );
    }

    #[test]
    fn strangers_and_neighbours_are_told_apart() {
        let (_, mut opener) = pair();
        let other = ClusterSecret::from_bytes(b"fedcba9876543210").unwrap();
        for (sealer, reason) in [
            (Sealer::new(&other, "test"), Rejected::OtherSecret),
            (Sealer::new(&secret(), "prod"), Rejected::NotAuthentic),
        ] {
            let datagrams = sealer.seal(b"hello", NOW).unwrap();
            assert_eq!(opener.open(from(), &datagrams[0], NOW), Err(reason));
        }
        let both = ClusterSecret::from_bytes(b"fedcba9876543210\n0123456789abcdef").unwrap();
        let datagrams = Sealer::new(&secret(), "test").seal(b"hello", NOW).unwrap();
        let opened = Opener::new(&both, "test").open(from(), &datagrams[0], NOW);
        assert_eq!(opened, Ok(Some(b"hello".to_vec())));
    }

    #[test]
    fn a_message_counts_once_and_near_its_time() {
        let (sealer, mut opener) = pair();
        let sealed = |i: u64| sealer.seal(&i.to_le_bytes(), NOW).unwrap().remove(0);
        let datagrams: Vec<_> = (0..2000).map(sealed).collect();
        assert!(opener.open(from(), &datagrams[1999], NOW).is_ok());
        assert!(
            opener.open(from(), &datagrams[1990], NOW).is_ok(),
            "overtaken, not replayed"
        );
        assert_eq!(
            opener.open(from(), &datagrams[1990], NOW),
            Err(Rejected::Replayed)
        );
        assert_eq!(
            opener.open(from(), &datagrams[0], NOW),
            Err(Rejected::Replayed)
        );
        for (now, apart_ms) in [(NOW + 30_001, 30_001), (NOW - 40_000, 40_000)] {
            let rejected = Err(Rejected::WrongTime { apart_ms });
            assert_eq!(opener.open(from(), &datagrams[1980], now), rejected);
            assert_eq!(opener.open(from(), &datagrams[1999], now), rejected);
        }
    }

    #[test]
    fn memory_is_bounded_and_given_back() {
        let (sealer, mut opener) = pair();
        let first = |now| sealer.seal(&noise(5000), now).unwrap().remove(0);
        for port in 1..=100u16 {
            let source = SocketAddr::from(([10, 0, 0, 1], port));
            for _ in 0..10 {
                let _ = opener.open(source, &first(NOW), NOW);
            }
        }
        assert_eq!(opener.incomplete.len(), INCOMPLETE_MAX);
        assert_eq!(opener.open(from(), &first(NOW), NOW), Err(Rejected::Full));
        assert_eq!(
            opener.open(from(), &first(NOW + 5000), NOW + 5000),
            Ok(None)
        );
        assert_eq!(opener.incomplete.len(), 1);
        assert_eq!(opener.expired(), 2 * 32 + 256);

        for _ in 0..SESSIONS_MAX {
            let datagrams = Sealer::new(&secret(), "test").seal(b"x", NOW).unwrap();
            let _ = opener.open(from(), &datagrams[0], NOW);
        }
        let newcomer = Sealer::new(&secret(), "test")
            .seal(b"x", NOW + 40_000)
            .unwrap();
        assert_eq!(opener.sessions.len(), SESSIONS_MAX);
        assert!(opener.open(from(), &newcomer[0], NOW + 40_000).is_ok());
        assert_eq!(opener.sessions.len(), 1);
    }

    #[test]
    fn a_small_datagram_cannot_become_a_large_message() {
        let (sealer, mut opener) = pair();
        let bomb = zstd::bulk::compress(&vec![0; 16 << 20], 1).unwrap();
        let mut plain = Vec::new();
        plain.extend([7u64, 1, NOW].iter().flat_map(|n| n.to_le_bytes()));
        plain.extend([0, 1]);
        plain.extend(&bomb[..bomb.len().min(PART_BYTES_MAX)]);
        let payload = Payload {
            msg: &plain,
            aad: &sealer.associated,
        };
        let sealed = sealer
            .cipher
            .encrypt(&XNonce::from([1; 24]), payload)
            .unwrap();
        let datagram = [&sealer.associated[..9], &[1; 24], &sealed].concat();
        assert_eq!(
            opener.open(from(), &datagram, NOW),
            Err(Rejected::Malformed)
        );
    }

    proptest! {
        #[test]
        fn every_message_arrives_whole_or_not_at_all(
            message in proptest::collection::vec(any::<u8>(), 0..20_000),
            lost in any::<Option<proptest::sample::Index>>(),
            order in any::<u64>(),
        ) {
            let (sealer, mut opener) = pair();
            let mut datagrams = sealer.seal(&message, NOW).unwrap();
            datagrams.sort_by_key(|d| blake3::hash(&[&order.to_le_bytes(), &d[..]].concat()).as_bytes()[0]);
            if let Some(lost) = lost {
                datagrams.remove(lost.index(datagrams.len()));
            }
            let arrived: Vec<_> = datagrams
                .iter()
                .filter_map(|d| opener.open(from(), d, NOW).unwrap())
                .collect();
            prop_assert_eq!(arrived, if lost.is_some() { vec![] } else { vec![message] });
        }

        #[test]
        fn hostile_bytes_open_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..1500)) {
            let (sealer, mut opener) = pair();
            prop_assert!(opener.open(from(), &bytes, NOW).is_err());
            // Behind a right header, and inside a right seal.
            let named = [&sealer.associated[..9], &bytes].concat();
            prop_assert!(opener.open(from(), &named, NOW).is_err());
            let payload = Payload { msg: &bytes, aad: &sealer.associated };
            let sealed = sealer.cipher.encrypt(&XNonce::from([1; 24]), payload).unwrap();
            let _ = opener.open(from(), &[&sealer.associated[..9], &[1; 24], &sealed].concat(), NOW);
        }

        #[test]
        fn one_flipped_bit_spoils_a_datagram(at in any::<proptest::sample::Index>(), bit in 0..8u8) {
            let (sealer, mut opener) = pair();
            let mut datagram = sealer.seal(b"some message", NOW).unwrap().remove(0);
            let at = at.index(datagram.len());
            datagram[at] ^= 1 << bit;
            prop_assert!(opener.open(from(), &datagram, NOW).is_err());
        }

        #[test]
        fn a_session_takes_each_number_once(numbers in proptest::collection::vec(0..3000u64, 1..300)) {
            let mut session = Session::default();
            let mut taken = HashSet::from([0]);
            for number in numbers {
                let newest = taken.iter().max().copied().unwrap();
                let expected = taken.contains(&number) || newest >= number + Session::WIDTH;
                if number != 0 {
                    prop_assert_eq!(session.has(number), expected);
                    if !expected {
                        session.mark(number);
                        taken.insert(number);
                    }
                }
            }
        }
    }
}
