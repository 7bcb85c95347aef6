//! A shared answer while its body comes in: piece by piece to who follows, to memory and to disk.

use std::sync::Arc;

use bytes::Bytes;
use cluster::manifest::{PIECE_BYTES, PieceHash};
use http::HeaderMap;
use tokio::sync::Semaphore;

use super::{
    Shared,
    entry::{Body, Entry},
    fill::{BodyError, Growing, UNWRITTEN_PIECES_MAX},
    filler::{Filler, encode},
    memory::Item,
    store::{self, CLAIMED},
};

/// A shared answer whose body is being written. Dropping it before [`Writing::commit`] ends the body
/// early for all who follow, and stores nothing.
pub struct Writing {
    pub(super) filler: Filler,
    pub(super) entry: Arc<Entry>,
    pub(super) growing: Arc<Growing>,
    pub(super) hashes: Vec<PieceHash>,
    pub(super) unwritten: Arc<Semaphore>,
    pub(super) storing: bool,
}

impl Writing {
    /// The entry that grows.
    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// Appends `bytes`. Waits when the disk, or for a body that is not stored the slowest follower,
    /// is behind.
    ///
    /// # Errors
    ///
    /// Nobody follows a body that cannot be stored either: the fill is pointless.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), BodyError> {
        while !bytes.is_empty() {
            let part = bytes.split_to(self.growing.room().min(bytes.len()));
            self.growing.push(part);
            if self.growing.room() == 0 {
                self.finish_piece().await?;
            }
        }
        Ok(())
    }

    /// What came behind the body; see [`Growing::trail`].
    pub fn trail(&self, trailers: HeaderMap) {
        self.growing.trail(trailers);
    }

    /// Puts in a whole piece whose hash was verified, in whatever turn it comes. It can be passed on at once,
    /// and is seen by followers when all before it are there. Waits like [`Writing::write`].
    ///
    /// # Errors
    ///
    /// Like [`Writing::write`].
    pub async fn put(
        &mut self,
        index: u32,
        bytes: Bytes,
        hash: PieceHash,
    ) -> Result<(), BodyError> {
        self.growing.put_ahead(index, bytes, hash);
        while let Some((index, bytes, hash)) = self.growing.finish_ahead() {
            self.keep_piece(index, bytes, hash).await?;
        }
        Ok(())
    }

    /// Whose answers the rest may have to wait for from now on; see [`Growing::reaches`].
    pub fn reaches(&self, reach: u8) {
        self.growing.reaches(reach);
    }

    /// So many of the bytes were not sent by whom the entry names.
    pub fn came_from_peers(&self, bytes: u64) {
        self.growing.came_from_peers(bytes);
    }

    /// How many bytes followers see so far.
    pub fn length(&self) -> u64 {
        self.growing.length()
    }

    async fn finish_piece(&mut self) -> Result<(), BodyError> {
        let Some((index, bytes)) = self.growing.finish_piece() else {
            return Ok(());
        };
        let hash = self.filler.cache.hash(bytes.clone()).await;
        self.growing.hashed(hash);
        self.keep_piece(index, bytes, hash).await
    }

    async fn keep_piece(
        &mut self,
        index: u32,
        bytes: Bytes,
        hash: PieceHash,
    ) -> Result<(), BodyError> {
        self.hashes.push(hash);
        let cache = self.filler.cache.clone();
        if self.storing && self.growing.length() > cache.shared.object_bytes_max {
            self.stop_storing();
        }
        if !self.storing {
            return match self.growing.room_in_window().await {
                true => Ok(()),
                false => Err(BodyError::Abandoned),
            };
        }
        let place = self.unwritten.clone().acquire_owned().await;
        if self.unwritten.is_closed() {
            self.stop_storing();
            return Ok(());
        }
        let (store, growing) = (cache.shared.store.clone(), self.growing.clone());
        cache.pieces().keep(self.entry.object, index, bytes.clone());
        let (object, unwritten, cache) = (self.entry.object, self.unwritten.clone(), cache.clone());
        tokio::spawn(async move {
            let _place = place;
            match store.append_piece(object, index, bytes).await {
                Ok(piece) => growing.stored(index, piece, hash),
                Err(error) => {
                    cache.store_failed(&error);
                    unwritten.close();
                }
            }
        });
        Ok(())
    }

    fn stop_storing(&mut self) {
        self.storing = false;
        self.growing.stop_storing();
        // Whoever comes now could not have the beginning of this body any more.
        self.filler.release();
    }

    /// The body is complete: keeps it, if it is still wanted.
    pub async fn commit(mut self) {
        let length = self.growing.length();
        let cache = self.filler.cache.clone();
        let Shared { memory, store, .. } = &*cache.shared;
        let (object, key) = (self.entry.object, self.entry.key);
        // A body of one piece goes into one record together with its head.
        let whole: Option<Bytes> = if length <= PIECE_BYTES as u64 && self.hashes.is_empty() {
            let bytes = self
                .growing
                .finish_piece()
                .map(|(_, bytes)| bytes)
                .unwrap_or_default();
            if !bytes.is_empty() {
                let hash = cache.hash(bytes.clone()).await;
                self.growing.hashed(hash);
                self.hashes.push(hash);
            }
            Some(bytes)
        } else {
            if self.finish_piece().await.is_err() {
                self.storing = false;
            }
            None
        };
        if whole.is_none() {
            self.growing.end(Ok(()));
        }
        if whole.is_none() && self.storing {
            // All pieces are on disk when all places are free again; a failed write closes them.
            let places = u32::try_from(UNWRITTEN_PIECES_MAX).expect("a small constant");
            self.storing = self.unwritten.acquire_many(places).await.is_ok();
        }
        if !self.storing || !self.filler.is_current() {
            self.growing.end(Ok(()));
            self.forget_pieces();
            return;
        }
        let mut head = self.entry.head.clone();
        head.length = Some(head.part.as_ref().map_or(length, |part| part.of));
        let hashes = std::mem::take(&mut self.hashes);
        let Some(meta) = encode(&head, length, &hashes) else {
            self.growing.end(Ok(()));
            self.forget_pieces();
            return;
        };
        let from = self.entry.from.clone();
        let primary = self.filler.primary;
        let bytes = match whole {
            Some(bytes) if bytes.len() as u64 <= memory.object_bytes_max() && key == primary => {
                let entry = Entry::new(key, object, head, Body::Whole(bytes.clone()), from);
                let kept = self.filler.keep_whole(Arc::new(entry), meta, bytes).await;
                // Who has all of it and asks again, finds it.
                self.growing.end(Ok(()));
                return self.filler.finish(kept).await;
            }
            whole => whole,
        };
        let fits = bytes
            .as_ref()
            .is_none_or(|b| b.len() as u64 <= memory.object_bytes_max());
        let is_part = head.part.is_some();
        let pieces = u32::try_from(hashes.len()).unwrap_or(u32::MAX);
        let body = match &bytes {
            Some(bytes) => Body::Whole(bytes.clone()),
            None => Body::Pieces {
                hashes: hashes.into(),
                length,
            },
        };
        let entry = Entry::new(key, object, head, body, from);
        let item = Item::Entry(Arc::new(entry));
        if bytes.is_some() && fits {
            self.filler.keep(key, item.clone());
        }
        self.growing.end(Ok(()));
        let flags = if key == primary && !is_part {
            CLAIMED
        } else {
            0
        };
        let is_whole = bytes.is_some();
        let stored = match bytes {
            Some(bytes) => store::Body::Inline(bytes),
            None => store::Body::Pieces(pieces),
        };
        let mut written = store.append_object(key, object, flags, meta, stored).await;
        if written.is_ok() && key != primary {
            written = self.filler.store_marker().await;
        }
        // What was invalidated while it was written must not be there again.
        if !self.filler.is_current() {
            return cache.forget(key).await;
        }
        match written {
            Ok(()) => {
                if !is_whole && fits && self.filler.is_newest() {
                    self.filler.keep(key, item);
                } else if is_whole && !fits {
                    memory.remove(key);
                }
                if !is_part {
                    cache.announce(primary, &self.entry.head);
                }
            }
            Err(error) => {
                self.forget_pieces();
                cache.store_failed(&error);
            }
        }
    }

    /// The source failed: everybody who follows is told.
    pub fn fail(self, error: BodyError) {
        self.growing.end(Err(error));
        self.forget_pieces();
    }

    fn forget_pieces(&self) {
        let count = self.growing.length().div_ceil(PIECE_BYTES as u64);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let pieces = self.filler.cache.pieces();
        pieces.forget(self.entry.object, count);
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        // Only counts when the body has not been ended properly.
        self.growing.end(Err(BodyError::Abandoned));
    }
}
