//! Buffers for what is read from disk, sent, and forgotten: they are used again at once, so they are
//! neither cleared for each read nor new to the processor's caches.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

/// The smallest buffer, and how many sizes there are, each twice the one before: none is more than half
/// empty, so a client that takes its time holds no more than twice what it was promised.
const SMALLEST: usize = 4 << 10;
const SIZES: usize = 6;
/// Buffers kept of each size, 4 MiB in all: answers that are written in one go need one for each thread,
/// others as many as there are under way.
const SPARE_MAX: usize = 16;

/// Spare buffers of each size. A clone-able handle.
#[derive(Clone, Default)]
pub struct Buffers(Arc<[Mutex<Vec<Vec<u8>>>; SIZES]>);

impl Buffers {
    /// `len` bytes as `read` leaves them; `None` if it says so. What it does not write is anything.
    pub fn filled(&self, len: usize, read: impl FnOnce(&mut [u8]) -> bool) -> Option<Bytes> {
        let size = size_for(len);
        let (class, capacity) = match size {
            Some(class) => (Some(class), SMALLEST << class),
            None => (None, len),
        };
        let spare = class.and_then(|class| self.spare(class).pop());
        let mut lent = Lent {
            bytes: spare.unwrap_or_else(|| vec![0; capacity]),
            len,
            home: class.map(|class| (self.clone(), class)),
        };
        read(&mut lent.bytes[..len]).then(|| Bytes::from_owner(lent))
    }

    fn spare(&self, class: usize) -> MutexGuard<'_, Vec<Vec<u8>>> {
        // Nothing panics half-way through a push or a pop.
        self.0[class].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Buffers")
    }
}

/// Which size holds `len` bytes.
fn size_for(len: usize) -> Option<usize> {
    (0..SIZES).find(|class| len <= SMALLEST << class)
}

/// A buffer in use; comes back when it is dropped.
struct Lent {
    bytes: Vec<u8>,
    len: usize,
    home: Option<(Buffers, usize)>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some((home, class)) = self.home.take() {
            let mut spare = home.spare(class);
            if spare.len() < SPARE_MAX {
                spare.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_when_nobody_has_it_any_more() {
        let buffers = Buffers::default();
        let fill = |len, with| {
            let read = |bytes: &mut [u8]| {
                bytes.fill(with);
                true
            };
            buffers.filled(len, read).unwrap()
        };
        let (first, second) = (fill(5000, 1), fill(6000, 2));
        let kept = first.slice(10..20);
        let at = second.as_ptr();
        drop((first, second));
        assert_eq!(kept, [1; 10][..], "somebody still has it");
        let third = fill(8192, 3);
        assert_eq!((third.as_ptr(), third.len()), (at, 8192));
        assert_eq!(fill(1 << 20, 4).len(), 1 << 20, "larger than any");
        assert!(buffers.filled(10, |_| false).is_none());
    }

    #[test]
    fn spare_buffers_are_bounded() {
        let buffers = Buffers::default();
        let all: Vec<_> = (0..100).map(|_| buffers.filled(1, |_| true)).collect();
        drop(all);
        assert_eq!(buffers.spare(0).len(), SPARE_MAX);
    }
}
