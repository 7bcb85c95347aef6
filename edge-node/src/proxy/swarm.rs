//! Sharing out: when several nodes ask their home at once for a large object that is still coming in, or the only
//! one who holds it, each piece goes to one of them, and the others are told who that is
//! ([`crate::upstream::wants`] is their side). So the home sends it about once in all, and so does each of them.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::{Bytes, BytesMut};
use cluster::{
    manifest::{PIECE_BYTES, PieceHash},
    node::NodeId,
};
use futures_util::StreamExt as _;

use super::{
    Proxy,
    relay::{Left, Out},
};
use crate::{
    cache::{
        Cache,
        entry::{Body, Entry},
        fill::{BodyError, Follower, Growing},
    },
    upstream::{
        relayed::{BLOCK_BYTES, Frame, PieceAt},
        schedule::WINDOW_MAX,
    },
};

/// Objects of fewer pieces are relayed to everybody: they are through before sharing would pay, and their first
/// byte waits for no piece.
pub(super) const PIECES_MIN: u64 = 12;
/// Most nodes among which an object is shared out; more are relayed all of it.
const FELLOWS_MAX: usize = 64;
/// How far a node may be behind the piece that it is to have: as far as others look ahead.
const REACH: u32 = WINDOW_MAX;
/// What is left of the share of who was late with a piece.
const LATE_SHARE: f64 = 0.25;
/// Smallest share, where the largest is 1; a node that was slow once is tried again now and then.
const SHARE_MIN: f64 = 1.0 / 64.0;
/// How a share grows with each piece given.
const SHARE_GROWTH: f64 = 1.1;

/// Who has which piece of one object. Pure.
#[derive(Debug, Default)]
struct Sharing {
    fellows: Vec<Fellow>,
    holders: BTreeMap<u32, Holder>,
}

#[derive(Debug)]
struct Fellow {
    id: NodeId,
    /// Its region label.
    region: String,
    /// Relays under way to it.
    relays: u32,
    /// The piece that it is told of next.
    position: u32,
    /// Behind the last piece that it was told of.
    told: u32,
    /// Its part of the pieces, of at most 1.
    share: f64,
    /// What it was given less than its share.
    credit: f64,
}

#[derive(Debug)]
struct Holder {
    fellow: usize,
    /// Somebody else was late with it.
    took_over: bool,
}

impl Sharing {
    fn number(&self, id: &NodeId) -> Option<usize> {
        self.fellows.iter().position(|fellow| fellow.id == *id)
    }

    /// One more relay to `id`; `false` when there is no room.
    fn join(&mut self, id: &NodeId, region: &str) -> bool {
        match self.number(id) {
            Some(number) => self.fellows[number].relays += 1,
            None if self.fellows.len() < FELLOWS_MAX => self.fellows.push(Fellow {
                id: id.clone(),
                region: region.to_owned(),
                relays: 1,
                position: 0,
                told: 0,
                share: 1.0,
                credit: 0.0,
            }),
            None => return false,
        }
        true
    }

    /// A relay to `id` has ended; `true` when none is left.
    fn leave(&mut self, id: &NodeId) -> bool {
        if let Some(number) = self.number(id) {
            self.fellows[number].relays -= 1;
        }
        self.fellows.iter().all(|fellow| fellow.relays == 0)
    }

    /// Whether there is anybody to share with.
    fn is_shared(&self) -> bool {
        self.fellows.iter().filter(|f| f.relays > 0).count() > 1
    }

    /// `id` comes to `piece`: where it is told to get it. That is who has it, or is to have it; or another in
    /// its own region who was told of it before, so that a piece goes to each region once. As everybody is sent
    /// to somebody who was told earlier, nobody waits in a circle.
    fn holder(&mut self, piece: u32, id: &NodeId) -> NodeId {
        let holder = self.giver(piece, id);
        let region_of = |of: &NodeId| {
            let fellow = self.number(of).map(|number| &self.fellows[number]);
            fellow.map_or("", |fellow| &*fellow.region)
        };
        let region = region_of(id);
        let near = self.fellows.iter().find(|fellow| {
            fellow.region == region && fellow.id != *id && fellow.relays > 0 && fellow.told > piece
        });
        let is_far = holder != *id && region_of(&holder) != region;
        let told = match near {
            Some(near) if is_far => near.id.clone(),
            _ => holder,
        };
        if let Some(own) = self.number(id) {
            let own = &mut self.fellows[own];
            own.told = own.told.max(piece + 1);
        }
        told
    }

    /// Who has `piece`, or is to have it.
    fn giver(&mut self, piece: u32, id: &NodeId) -> NodeId {
        let own = self.number(id);
        if let Some(own) = own {
            self.fellows[own].position = piece;
        }
        if let Some(holder) = self.holders.get(&piece) {
            return self.fellows[holder.fellow].id.clone();
        }
        let mut total = 0.0;
        let mut best: Option<usize> = None;
        for fellow in &mut self.fellows {
            if fellow.relays > 0 && fellow.position.saturating_add(REACH) >= piece {
                fellow.credit += fellow.share;
                total += fellow.share;
            }
        }
        for (number, fellow) in self.fellows.iter().enumerate() {
            let is_near = fellow.relays > 0 && fellow.position.saturating_add(REACH) >= piece;
            if is_near && best.is_none_or(|best| fellow.credit > self.fellows[best].credit) {
                best = Some(number);
            }
        }
        let Some(number) = best else {
            return id.clone();
        };
        let given = &mut self.fellows[number];
        given.credit -= total;
        given.share = (given.share * SHARE_GROWTH).min(1.0);
        let took_over = false;
        self.holders.insert(
            piece,
            Holder {
                fellow: number,
                took_over,
            },
        );
        self.fellows[number].id.clone()
    }

    /// `id` did not get `piece` from `late`: who has it by now, or nobody, and then `id` gets it here.
    fn late(&mut self, piece: u32, late: &NodeId, id: &NodeId) -> Option<NodeId> {
        let own = self.number(id)?;
        if let Some(holder) = self.holders.get(&piece) {
            let fellow = &mut self.fellows[holder.fellow];
            if fellow.id != *late && fellow.id != *id && fellow.relays > 0 {
                return Some(fellow.id.clone());
            }
            // Who took over got it later than others expect.
            if fellow.id == *late && !holder.took_over {
                fellow.share = (fellow.share * LATE_SHARE).max(SHARE_MIN);
            }
        }
        let (fellow, took_over) = (own, true);
        self.holders.insert(piece, Holder { fellow, took_over });
        self.level();
        None
    }

    /// The largest share is 1. One slow node holds the others up, and they are late for that; when all had little
    /// in the end, the slow one would have as much as any.
    fn level(&mut self) {
        let present = self.fellows.iter().filter(|fellow| fellow.relays > 0);
        let most = present.map(|fellow| fellow.share).fold(0.0, f64::max);
        if most > 0.0 {
            for fellow in &mut self.fellows {
                fellow.share = (fellow.share / most).min(1.0);
            }
        }
    }
}

/// The objects that are shared out here, by their numbers. A clone-able handle.
#[derive(Clone, Debug, Default)]
pub(super) struct Swarms(Arc<Mutex<HashMap<u64, Sharing>>>);

/// A body that is shared out.
pub(super) enum Source {
    /// It still comes in, and this keeps what is ahead of the asker from being let go.
    Growing(Arc<Growing>, Follower),
    /// All of it is in the store.
    Stored(Arc<Entry>, Cache),
}

impl Source {
    /// The hash of a piece, once that is here.
    async fn piece_hash(&self, index: u32) -> Result<PieceHash, BodyError> {
        match self {
            Self::Growing(growing, _) => growing.piece_hash(index).await,
            Self::Stored(entry, _) => match &entry.body {
                Body::Pieces { hashes, .. } => {
                    hashes.get(index as usize).copied().ok_or(BodyError::Gone)
                }
                _ => Err(BodyError::Gone),
            },
        }
    }

    /// The asker comes to a piece.
    fn pass(&mut self, index: u32) {
        if let Self::Growing(_, follower) = self {
            follower.pass(u64::from(index) * PIECE_BYTES as u64);
        }
    }

    /// The bytes of a piece that is here.
    async fn read_piece(&self, index: u32) -> Result<Bytes, BodyError> {
        match self {
            Self::Growing(growing, _) => growing.read_piece(index).await,
            Self::Stored(entry, cache) => {
                let start = u64::from(index) * PIECE_BYTES as u64;
                let end = start + PIECE_BYTES as u64;
                let mut stream = entry.open(start..end, cache)?.into_stream();
                let mut piece = BytesMut::new();
                while let Some(bytes) = stream.next().await {
                    let bytes = bytes?;
                    piece.extend_from_slice(&bytes);
                }
                Ok(piece.freeze())
            }
        }
    }
}

/// A node to which an object may be shared out, for as long as it is relayed to it.
pub(super) struct Member {
    swarms: Swarms,
    object: u64,
    id: NodeId,
}

impl Swarms {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Sharing>> {
        self.0
            .lock()
            .expect("no code panics while it holds this lock")
    }

    /// `id`, in that region, is relayed `object`; `None` when that has too many already.
    pub(super) fn join(&self, object: u64, id: NodeId, region: &str) -> Option<Member> {
        let is_in = self.lock().entry(object).or_default().join(&id, region);
        is_in.then(|| Member {
            swarms: self.clone(),
            object,
            id,
        })
    }
}

impl Member {
    /// Whether others are relayed the same; this one is at `piece`.
    pub(super) fn is_shared(&self, piece: u32) -> bool {
        let mut swarms = self.swarms.lock();
        let sharing = swarms.get_mut(&self.object);
        sharing.is_some_and(|sharing| {
            if let Some(number) = sharing.number(&self.id) {
                sharing.fellows[number].position = piece;
            }
            sharing.is_shared()
        })
    }

    /// Who has `piece`; `None`: this one is to have it.
    fn holder(&self, piece: u32) -> Option<NodeId> {
        let mut swarms = self.swarms.lock();
        let holder = swarms.get_mut(&self.object)?.holder(piece, &self.id);
        (holder != self.id).then_some(holder)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut swarms = self.swarms.lock();
        if swarms
            .get_mut(&self.object)
            .is_some_and(|s| s.leave(&self.id))
        {
            swarms.remove(&self.object);
        }
    }
}

impl Proxy {
    /// `id` did not get piece `index` of `object` from `late`: who has it by now; `None`: it gets it here.
    pub fn passed_over(
        &self,
        object: u64,
        index: u32,
        late: &NodeId,
        id: &NodeId,
    ) -> Option<NodeId> {
        let mut swarms = self.shared.swarms.lock();
        swarms.get_mut(&object)?.late(index, late, id)
    }

    /// Relays these `pieces` of a body to a `member`: those that it is to have, and of the others where they are.
    /// So many bytes were `sent` before, as they came.
    pub(super) async fn share_out(
        &self,
        out: &mut Out,
        mut body: Source,
        pieces: Range<u32>,
        mut sent: u64,
        member: &Member,
    ) -> Result<(), Left> {
        for index in pieces {
            let hash = match out.wait(body.piece_hash(index)).await? {
                Ok(hash) => hash,
                Err(error) => return out.send(&[failed(&error)]).await,
            };
            body.pass(index);
            let holder = member.holder(index);
            let is_own = holder.is_none();
            let at = PieceAt {
                index,
                hash,
                holder,
            };
            out.send(&[Frame::Piece(at)]).await?;
            if is_own {
                let mut bytes: Bytes = match out.wait(body.read_piece(index)).await? {
                    Ok(bytes) => bytes,
                    Err(error) => return out.send(&[failed(&error)]).await,
                };
                sent += bytes.len() as u64;
                while !bytes.is_empty() {
                    let block = bytes.split_to(bytes.len().min(BLOCK_BYTES));
                    out.send(&[Frame::Block(block)]).await?;
                }
            }
        }
        out.send(&[Frame::End(sent)]).await
    }
}

fn failed(error: &BodyError) -> Frame {
    Frame::Failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: usize) -> NodeId {
        format!("edge-{number}").parse().unwrap()
    }

    fn sharing(fellows: usize) -> Sharing {
        let mut sharing = Sharing::default();
        for number in 0..fellows {
            assert!(sharing.join(&id(number), ""));
        }
        sharing
    }

    /// How many of these pieces each fellow has when all of them ask for all in order.
    fn given(sharing: &mut Sharing, fellows: usize, pieces: Range<u32>) -> Vec<usize> {
        let mut given = vec![0; fellows];
        for piece in pieces {
            let holder = sharing.holder(piece, &id(piece as usize % fellows));
            for (number, given) in given.iter_mut().enumerate() {
                assert_eq!(sharing.holder(piece, &id(number)), holder);
                *given += usize::from(id(number) == holder);
            }
        }
        given
    }

    #[test]
    fn a_piece_goes_to_each_region_once() {
        let regions = ["eu", "eu", "eu", "us", "us", "asia"];
        let mut sharing = Sharing::default();
        for (number, region) in regions.iter().enumerate() {
            assert!(sharing.join(&id(number), region));
        }
        for piece in 0..60 {
            let mut from: Vec<(usize, usize)> = Vec::new();
            // Each comes to it in another turn.
            for turn in 0..regions.len() {
                let asker = (turn * 5 + piece as usize) % regions.len();
                let holder = sharing.holder(piece, &id(asker));
                let holder = (0..regions.len()).find(|n| id(*n) == holder).unwrap();
                from.push((asker, holder));
            }
            let giver = from
                .iter()
                .find(|(asker, holder)| asker == holder)
                .unwrap()
                .0;
            for region in ["eu", "us", "asia"] {
                let across = from
                    .iter()
                    .filter(|(asker, holder)| {
                        regions[*asker] == region && regions[*holder] != region
                    })
                    .count();
                let expected = usize::from(regions[giver] != region);
                assert_eq!(across, expected, "{piece}, {region}: {from:?}");
            }
            // Whoever is followed gets to the one who has it.
            for (asker, _) in &from {
                let mut at = *asker;
                for _ in 0..regions.len() {
                    at = from.iter().find(|(asker, _)| *asker == at).unwrap().1;
                }
                assert_eq!(at, giver, "{from:?}");
            }
        }
    }

    #[test]
    fn everybody_gets_the_same_and_who_was_late_less() {
        let mut sharing = sharing(4);
        assert!(sharing.is_shared());
        assert_eq!(given(&mut sharing, 4, 0..40), [10, 10, 10, 10]);
        let of_one = (0..40).find(|piece| sharing.holder(*piece, &id(0)) == id(1));
        // Whoever comes first has it from the home, the others from that one.
        let piece = of_one.unwrap();
        assert_eq!(sharing.late(piece, &id(1), &id(2)), None);
        assert_eq!(sharing.late(piece, &id(1), &id(3)), Some(id(2)));
        assert_eq!(sharing.late(piece, &id(2), &id(3)), None);
        assert_eq!(sharing.late(piece, &id(2), &id(0)), Some(id(3)));
        let given = given(&mut sharing, 4, 40..100);
        assert!(given[1] > 0 && given[1] * 2 < given[0], "{given:?}");
        assert!(given[2].abs_diff(given[0]) <= 1, "{given:?}");
    }

    /// One uplink of ten was slow, and all were late at times because of it: it was given a ninth again and again.
    #[test]
    fn who_is_always_late_has_less_than_who_is_late_at_times() {
        let mut sharing = sharing(4);
        let mut slow = 0;
        for piece in 0..400 {
            let giver = (0..4).map(|number| sharing.holder(piece, &id(number)));
            let giver = giver.last().unwrap();
            let is_slow = giver == id(1);
            slow += u32::from(is_slow && piece >= 100);
            if is_slow || piece % 4 == 0 {
                let asker = if giver == id(0) { id(2) } else { id(0) };
                assert_eq!(sharing.late(piece, &giver, &asker), None);
            }
        }
        assert!((1..25).contains(&slow), "{slow} of 300");
    }

    #[test]
    fn who_has_left_or_is_far_behind_is_given_nothing_more() {
        let mut sharing = sharing(3);
        assert!(!sharing.leave(&id(2)));
        for piece in 0..10 {
            assert_ne!(sharing.holder(piece, &id(0)), id(2));
        }
        let far = 10 + REACH + 1;
        for piece in far..far + 10 {
            assert_eq!(sharing.holder(piece, &id(0)), id(0), "edge-1 is at 0");
        }
        // The late-comer shares what comes before as well.
        let before: Vec<_> = (10..20)
            .map(|piece| sharing.holder(piece, &id(1)))
            .collect();
        assert!(
            before.contains(&id(0)) && before.contains(&id(1)),
            "{before:?}"
        );
        assert!(!sharing.leave(&id(0)) && !sharing.is_shared());
        assert!(sharing.leave(&id(1)));
    }

    #[test]
    fn an_object_is_shared_among_so_many() {
        let mut sharing = sharing(FELLOWS_MAX);
        assert!(!sharing.join(&id(FELLOWS_MAX), ""));
        assert!(sharing.join(&id(0), ""), "a second relay to the same");
        assert!(!sharing.leave(&id(0)));
        assert_eq!(sharing.fellows[0].relays, 1);
    }

    proptest! {
        /// Whatever happens, a piece has one holder at a time, who is among those that ask; and who asks the
        /// home about the one that it was told of is served after at most as many rounds as there are others.
        #[test]
        fn who_is_sent_on_arrives(
            fellows in 2..8_usize,
            events in prop::collection::vec((0..8_usize, 0..8_usize, 0..20_u32, 0..4_u8), 0..200),
        ) {
            let mut sharing = sharing(fellows);
            for (one, other, piece, kind) in events {
                let (one, other) = (id(one % fellows), id(other % fellows));
                match kind {
                    0 if sharing.fellows.iter().filter(|f| f.relays > 0).count() > 1 => {
                        let number = sharing.number(&one).unwrap();
                        if sharing.fellows[number].relays > 0 {
                            sharing.leave(&one);
                        }
                    }
                    1 => {
                        sharing.join(&one, "");
                    }
                    2 => {
                        let first = sharing.holder(piece, &one);
                        prop_assert_eq!(sharing.holder(piece, &other), first);
                    }
                    _ => {
                        let mut late = other;
                        let mut rounds = 0;
                        while let Some(next) = sharing.late(piece, &late, &one) {
                            prop_assert_ne!(&next, &one);
                            late = next;
                            rounds += 1;
                            prop_assert!(rounds <= 1);
                        }
                        prop_assert_eq!(sharing.holder(piece, &one), one.clone());
                    }
                }
                for fellow in &sharing.fellows {
                    prop_assert!((SHARE_MIN..=1.0).contains(&fellow.share));
                }
            }
        }
    }
}
