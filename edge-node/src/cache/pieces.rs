//! Pieces of large bodies, from whichever tier has them.
//!
//! A piece is hashed once: by the fill that wrote it, or by the reading thread when it comes from
//! disk. In memory it is what was verified, for as long as it stays there.
//!
//! The disk decides what exists: an object of which the disk has lost a piece is gone, even if memory
//! still has some of it, so that a body which begins also ends. The one exception is a range within a
//! single piece: that is a matter of one look, and cannot end in the middle.

use std::ops::Range;

use bytes::Bytes;
use cluster::manifest::PieceHash;

use super::{
    memory::Memory,
    store::{PieceRef, ReadError, Store},
};
use crate::metrics::Source;

/// Reads and keeps pieces. A clone-able handle.
#[derive(Clone)]
pub struct Pieces {
    memory: Memory,
    store: Store,
}

impl Pieces {
    /// Pieces in these tiers.
    pub fn new(memory: Memory, store: Store) -> Self {
        Self { memory, store }
    }

    /// Piece `index` of `object`, if memory has it.
    pub fn at_hand(&self, object: u64, index: u32) -> Option<Bytes> {
        self.memory.piece(object, index)
    }

    /// These pieces of `object`, to be read one after the other: all or nothing.
    pub fn of(&self, object: u64, numbers: Range<u32>) -> Option<Vec<PieceRef>> {
        self.store.pieces(object, numbers)
    }

    /// A piece, and where it was: without touching the disk if memory has it; else read, verified, and
    /// kept in memory.
    ///
    /// # Errors
    ///
    /// As [`Store::read_piece`].
    pub async fn read(
        &self,
        piece: &PieceRef,
        hash: &PieceHash,
    ) -> Result<(Bytes, Source), ReadError> {
        let (object, index) = piece.name();
        if let Some(bytes) = self.memory.piece(object, index) {
            return Ok((bytes, Source::Memory));
        }
        let bytes = self.store.read_piece(piece, hash).await?;
        self.memory.insert_piece(object, index, bytes.clone());
        Ok((bytes, Source::Disk))
    }

    /// Keeps in memory a piece that has just been hashed, and is about to be stored.
    pub fn keep(&self, object: u64, index: u32, bytes: Bytes) {
        self.memory.insert_piece(object, index, bytes);
    }

    /// Forgets the pieces of an object that will not come to be, `count` at most.
    pub fn forget(&self, object: u64, count: usize) {
        self.store.forget_pieces(object);
        self.memory.forget_pieces(object, count);
    }
}
