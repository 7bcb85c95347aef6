//! What of an entry answers a question for pieces: of all of an object, or of the part of it that is here. Pure.

use std::ops::Range;

use bytes::Bytes;
use cluster::manifest::{PIECE_BYTES, run_hash};

use crate::{cache::entry::Entry, upstream::peer};

/// What an answer begins with before bytes of the body, and which bytes of that; else the word for why not.
///
/// A part answers for the pieces that it has to who knows their hashes: it cannot tell those of the others, of
/// which a manifest consists.
pub(super) fn of(entry: &Entry, asked: &peer::Asked) -> Result<(Bytes, Range<u64>), &'static str> {
    let (first, hashes, head) = match (entry.part_pieces(), asked.hash) {
        (Some((first, hashes)), Some(_)) => (first, hashes, Bytes::new()),
        (_, hash) => {
            let manifest = entry.manifest().ok_or("miss")?;
            let head = match hash {
                Some(_) => Bytes::new(),
                None => peer::encode_answer_head(&manifest.encode().map_err(|_| "miss")?),
            };
            (0, manifest.pieces, head)
        }
    };
    let length = entry.length().ok_or("miss")?;
    let end = first.saturating_add(u32::try_from(hashes.len()).unwrap_or(u32::MAX));
    let within = |piece: u32| piece.clamp(first, end);
    let pieces = within(asked.pieces.start)..within(asked.pieces.end);
    if let Some(hash) = asked.hash {
        let at = |piece: u32| (piece - first) as usize;
        if run_hash(&hashes[at(pieces.start)..at(pieces.end)]) != hash {
            return Err("other");
        }
    }
    let at = |piece: u32| (u64::from(piece) * PIECE_BYTES as u64).min(length);
    Ok((head, at(pieces.start)..at(pieces.end)))
}

#[cfg(test)]
mod tests {
    use cluster::purge::Position;
    use http::{HeaderMap, StatusCode};

    use super::*;
    use crate::cache::{
        entry::{Body, Head, Provenance},
        policy::{Freshness, Rules, part::Part},
    };

    fn head(part: Option<Range<u64>>, of: u64) -> Head {
        let (status, headers) = (StatusCode::OK, HeaderMap::new());
        Head {
            freshness: Freshness::of(status, &headers, &Rules::default(), 0),
            status,
            headers: headers.into(),
            asked_ms: 0,
            selected_by: Vec::new(),
            length: Some(of),
            part: part.map(|range| Part { range, of }),
            fetched_by: "edge-1".parse().unwrap(),
            fetched_at: 0,
            as_of: Position::default(),
        }
    }

    #[test]
    fn a_part_answers_for_its_pieces_and_no_others() {
        const PIECE: u64 = PIECE_BYTES as u64;
        let body: Vec<u8> = (0..5 * PIECE_BYTES / 2).map(|i| (i % 251) as u8).collect();
        let hashes: Vec<_> = body.chunks(PIECE_BYTES).map(blake3::hash).collect();
        let hash = |pieces: Range<usize>| {
            let pieces: Vec<_> = hashes[pieces].iter().map(|hash| *hash.as_bytes()).collect();
            Some(run_hash(&pieces))
        };
        let entry = |range: Range<u64>| {
            let at = |position: u64| usize::try_from(position).unwrap();
            let bytes = Bytes::copy_from_slice(&body[at(range.start)..at(range.end)]);
            let part = (range != (0..body.len() as u64)).then_some(range);
            let head = head(part, body.len() as u64);
            Entry::new(
                cluster::key::Key(1),
                1,
                head,
                Body::Whole(bytes),
                Provenance::Origin,
            )
        };
        let length = body.len() as u64;
        let (whole, middle) = (entry(0..length), entry(PIECE..2 * PIECE));
        let (end, crooked) = (entry(PIECE..length), entry(PIECE + 1..length));
        for (entry, pieces, hash, expected) in [
            (&whole, 0..1, hash(0..1), Ok(0..PIECE)),
            (&whole, 1..9, hash(1..3), Ok(PIECE..length)),
            (&whole, 1..2, hash(0..1), Err("other")),
            (&middle, 1..2, hash(1..2), Ok(PIECE..2 * PIECE)),
            (&middle, 0..2, hash(0..2), Err("other")),
            (&middle, 1..3, hash(1..3), Err("other")),
            (&middle, 0..1, hash(0..1), Err("other")),
            (&middle, 2..3, hash(2..3), Err("other")),
            (&middle, 1..2, None, Err("miss")),
            (&end, 1..3, hash(1..3), Ok(PIECE..length)),
            (&end, 2..3, hash(2..3), Ok(2 * PIECE..length)),
            (&crooked, 1..2, hash(1..2), Err("miss")),
        ] {
            let asked = peer::Asked { pieces, hash };
            let answer = of(entry, &asked).map(|(_, range)| range);
            assert_eq!(answer, expected, "{asked:?}");
        }
        let all = peer::Asked {
            pieces: 0..1,
            hash: None,
        };
        let (head, range) = of(&whole, &all).unwrap();
        assert!(!head.is_empty() && range == (0..PIECE));
    }
}
