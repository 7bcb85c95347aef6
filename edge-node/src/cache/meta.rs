//! What is stored beside a body, or in place of one.

use std::ops::Range;

use bytes::Bytes;
use cluster::{
    manifest::{Manifest, PieceHash},
    node::NodeId,
    purge::Position,
};
use serde::{Deserialize, Serialize};

use super::{
    entry::{Head, Variants, fields_of},
    packed::{Fields, Packed},
    policy::{Freshness, part::Part},
    store::crc,
};

/// First byte of every stored meta block; tells what follows and in which encoding.
const META_OBJECT: u8 = 6;
const META_VARIANTS: u8 = 4;
/// An object with its body beside it, behind the body's CRC.
const META_SMALL: u8 = 7;
/// Longest meta block of most objects: one allocation instead of several.
const META_BYTES_USUAL: usize = 512;

/// What a status takes at most.
const STATUS_BYTES_MAX: usize = 3;
/// What takes more behind the fields than this is stored in several pieces: long lists of request fields.
const BEHIND_BYTES_USUAL: usize = 256;

/// What is stored beside a body, or in place of one.
pub enum Meta {
    /// An object.
    Object(Box<Head>, Manifest),
    /// Variants under this key.
    Variants(Variants),
}

/// An object that is whole: its head, and what is to be written of it.
pub struct Small {
    /// The head, its fields packed as they stand in `meta`.
    pub head: Head,
    /// Its meta block; `None`: there is none for such a head.
    pub meta: Option<Bytes>,
    /// Its body.
    pub body: Bytes,
}

/// As a meta block is read: what [`encode_head`] writes.
#[derive(Deserialize)]
struct StoredHead {
    manifest: Manifest,
    asked_ms: u64,
    freshness: Freshness,
    part: Option<Part>,
}

/// What stands in a [`StoredHead`] behind the fields, in its order.
#[derive(Serialize)]
struct BehindFields<'a> {
    selected_by: &'a [(String, Option<Vec<u8>>)],
    length: u64,
    pieces: &'a [PieceHash],
    fetched_by: &'a NodeId,
    fetched_at: u64,
    as_of: Position,
    asked_ms: u64,
    freshness: Freshness,
    part: &'a Option<Part>,
}

/// Appends a [`StoredHead`] that needs no manifest to be made first to `block`; gives where its fields
/// stand there.
fn encode_head(
    head: &Head,
    length: u64,
    pieces: &[PieceHash],
    block: Vec<u8>,
) -> Option<(Vec<u8>, Range<usize>)> {
    let block = postcard::to_extend(&head.status.as_u16(), block).ok()?;
    let from = block.len();
    let block = postcard::to_extend(&Fields(&head.headers), block).ok()?;
    let fields = from..block.len();
    let behind = BehindFields::of(head, length, pieces);
    Some((postcard::to_extend(&behind, block).ok()?, fields))
}

impl<'a> BehindFields<'a> {
    fn of(head: &'a Head, length: u64, pieces: &'a [PieceHash]) -> Self {
        Self {
            selected_by: &head.selected_by,
            length,
            pieces,
            fetched_by: &head.fetched_by,
            fetched_at: head.fetched_at,
            as_of: head.as_of,
            asked_ms: head.asked_ms,
            freshness: head.freshness,
            part: &head.part,
        }
    }
}

impl Small {
    /// What is to be written of an object with this `head`, whose `body` stands beside it. On this disk its
    /// CRC tells whether it is still the same; a hash is what a peer needs to know, and is made for the
    /// first that asks.
    pub fn new(head: Head, body: Bytes) -> Self {
        let encoded = encode_small(&head, &body);
        let block = encoded.map(|(block, fields)| (Bytes::copy_from_slice(&block), fields));
        Self::of(head, block, body)
    }

    /// The same with all of it in one piece of memory, and `fields` for the head, which has none: most of what
    /// a large tier holds is written and evicted, and nothing in between, so what counts is of how many pieces
    /// it is.
    pub fn together<'a>(
        head: Head,
        fields: impl Iterator<Item = (&'a str, &'a [u8])> + Clone,
        body: &[u8],
    ) -> Option<Self> {
        let (mut before, mut behind) = ([0; STATUS_BYTES_MAX], [0; BEHIND_BYTES_USUAL]);
        let before = postcard::to_slice(&head.status.as_u16(), &mut before).ok()?;
        let stands_behind = BehindFields::of(&head, body.len() as u64, &[]);
        let behind = postcard::to_slice(&stands_behind, &mut behind).ok()?;
        let size = Packed::encoded_bytes(fields.clone());
        let start = 1 + size_of::<u32>() + before.len();
        let mut all = Vec::with_capacity(start + size + behind.len() + body.len());
        all.push(META_SMALL);
        all.extend_from_slice(&crc(body).to_le_bytes());
        all.extend_from_slice(before);
        Packed::encode(fields, &mut all);
        let fields = start..all.len();
        all.extend_from_slice(behind);
        let meta_bytes = all.len();
        all.extend_from_slice(body);
        let mut meta = Bytes::from(all);
        let body = meta.split_off(meta_bytes);
        Some(Self::of(head, Some((meta, fields)), body))
    }

    fn of(mut head: Head, meta: Option<(Bytes, Range<usize>)>, body: Bytes) -> Self {
        let meta = meta.map(|(meta, fields)| {
            head.headers = Packed::new(meta.slice(fields));
            meta
        });
        Self { head, meta, body }
    }
}

fn encode_small(head: &Head, body: &[u8]) -> Option<(Vec<u8>, Range<usize>)> {
    let mut block = Vec::with_capacity(META_BYTES_USUAL);
    block.push(META_SMALL);
    block.extend_from_slice(&crc(body).to_le_bytes());
    encode_head(head, body.len() as u64, &[], block)
}

impl Meta {
    /// The meta block of an object with this `head` and a body of `length` bytes, whose pieces have these
    /// hashes.
    pub fn encode_object(head: &Head, length: u64, pieces: &[PieceHash]) -> Option<Bytes> {
        let mut block = Vec::with_capacity(META_BYTES_USUAL);
        block.push(META_OBJECT);
        let (block, _) = encode_head(head, length, pieces, block)?;
        Some(block.into())
    }

    /// That of an object whose `body` stands beside it, as in [`Small`].
    pub fn encode_small(head: &Head, body: &[u8]) -> Option<Bytes> {
        let (block, _) = encode_small(head, body)?;
        Some(block.into())
    }

    /// Whether `body`, read from beside a meta block, is the one that the block was written for.
    pub fn is_of(bytes: &[u8], body: &[u8]) -> bool {
        if let Some((&META_SMALL, rest)) = bytes.split_first() {
            return rest.first_chunk().copied().map(u32::from_le_bytes) == Some(crc(body));
        }
        match Self::decode(bytes) {
            Some(Self::Object(_, manifest)) => match manifest.pieces.first() {
                Some(hash) => blake3::hash(body) == *hash,
                None => body.is_empty(),
            },
            Some(Self::Variants(_)) => true,
            None => false,
        }
    }

    /// The meta block that says a key has variants.
    pub fn encode_variants(variants: &Variants) -> Option<Bytes> {
        // All were invalidated in this moment: then there is nothing by which a request could select one.
        if variants.specs.is_empty() {
            return None;
        }
        let block = vec![META_VARIANTS];
        postcard::to_extend(variants, block).ok().map(Bytes::from)
    }

    /// Reads a meta block; `None` when it is not one (of this version).
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (tag, rest) = bytes.split_first()?;
        match *tag {
            META_OBJECT | META_SMALL => {
                let rest = match *tag {
                    META_SMALL => rest.get(size_of::<u32>()..)?,
                    _ => rest,
                };
                let stored: StoredHead = postcard::from_bytes(rest).ok()?;
                let (headers, asked_ms) = (fields_of(&stored.manifest), stored.asked_ms);
                let head =
                    Head::from_manifest(&stored.manifest, headers, stored.freshness, asked_ms);
                let head = Head {
                    part: stored.part,
                    ..head
                };
                Some(Self::Object(Box::new(head), stored.manifest))
            }
            META_VARIANTS => postcard::from_bytes(rest).ok().map(Self::Variants),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;
    use crate::cache::policy::Rules;

    #[test]
    fn one_piece_of_memory_holds_what_several_would() {
        const NOW: u64 = 1_790_000_000_000;
        for (status, value) in [
            (200, "x".repeat(3)),
            (200, "x".repeat(300)),
            (404, String::new()),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("cache-control", "max-age=60".parse().unwrap());
            headers.insert("x-a", value.parse().unwrap());
            let status = StatusCode::from_u16(status).unwrap();
            let head = Head {
                status,
                freshness: Freshness::of(status, &headers, &Rules::default(), NOW),
                headers: headers.clone().into(),
                asked_ms: NOW,
                selected_by: Vec::new(),
                length: Some(2),
                part: None,
                fetched_by: "a".parse().unwrap(),
                fetched_at: NOW,
                as_of: Position { log: NOW, seq: 7 },
            };
            let apart = Small::new(head.clone(), Bytes::from_static(b"hi"));
            let bare = Head {
                headers: Packed::default(),
                ..head
            };
            let fields = [
                ("Cache-Control", &b"max-age=60"[..]),
                ("X-A", value.as_bytes()),
            ];
            let together = Small::together(bare, fields.into_iter(), b"hi").unwrap();
            assert_eq!((&together.meta, &together.body), (&apart.meta, &apart.body));
            for small in [apart, together] {
                assert_eq!(small.head.headers.to_map(), headers);
                let meta = small.meta.unwrap();
                assert!(Meta::is_of(&meta, b"hi"));
                let Some(Meta::Object(read, _)) = Meta::decode(&meta) else {
                    panic!("it is one")
                };
                assert_eq!((&*read.headers, read.status), (&headers, status));
                assert_eq!((read.as_of.seq, read.freshness), (7, small.head.freshness));
            }
        }
    }
}
