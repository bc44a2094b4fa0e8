//! Aligned memory for I/O, recycled.
//!
//! A [`Buffer`] is 4 KiB-aligned (what `O_DIRECT` asks for) and owned by one request at a time. A write's data is a
//! [`Slice`]: a shared, read-only part of a buffer, so that one request of the front end can become several of the LUN
//! without a copy. Memory returns to its [`Pool`] when the last owner drops it.
//!
//! The kernel may be given the pages themselves of a slice, to send them: they are on [`Loan`] then. Memory that is not known
//! to have been given back gets new pages before anything else is put there.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

/// The alignment of every buffer, in bytes.
pub const ALIGNMENT: usize = 4096;

/// Size classes in bytes: a request takes the smallest that holds it; larger ones are allocated exactly.
const CLASSES: [usize; 4] = [4 << 10, 64 << 10, 256 << 10, (1 << 20) + ALIGNMENT];
/// The size of the kernel's large pages, in bytes. A buffer of more than half of one gets whole ones: the kernel's copies
/// into and out of it then look up one page instead of some hundreds.
const LARGE_PAGE: usize = 2 << 20;
/// Bytes that each class keeps for reuse at most.
const KEPT_BYTES: usize = 32 << 20;

struct Memory {
    start: NonNull<u8>,
    capacity: usize,
}

// SAFETY: `Memory` is the only owner of its allocation; access goes through `&` and `&mut` of its owner.
unsafe impl Send for Memory {}
// SAFETY: as above; a shared reference allows only reads.
unsafe impl Sync for Memory {}

impl Memory {
    fn layout(capacity: usize) -> Layout {
        let (size, alignment) = match capacity {
            large if large > LARGE_PAGE / 2 => (large.next_multiple_of(LARGE_PAGE), LARGE_PAGE),
            small => (small, ALIGNMENT),
        };
        Layout::from_size_align(size, alignment).expect("a buffer's size fits into the address space")
    }

    fn new(capacity: usize) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is not zero: `Pool::take` rounds up to `ALIGNMENT`.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        if layout.align() == LARGE_PAGE {
            // SAFETY: whole pages of this allocation alone. A kernel without large pages refuses, and nothing is lost.
            unsafe { libc::madvise(start.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE) };
        }
        // SAFETY: the allocation is `capacity` bytes long. Zeroed once, so that every byte is initialised; a recycled
        // buffer holds the bytes of an earlier request.
        unsafe { start.as_ptr().write_bytes(0, capacity) };
        Self { start, capacity }
    }

    /// Has the old pages stay as they are for whoever else has them, and new ones here. The memory is lost if the system
    /// does not do that.
    fn renew(self) -> Option<Self> {
        let size = Self::layout(self.capacity).size();
        // SAFETY: whole pages of this allocation alone, which nobody else refers to; they read as zeros from now on.
        let status = unsafe { libc::madvise(self.start.as_ptr().cast(), size, libc::MADV_DONTNEED) };
        if status != 0 {
            std::mem::forget(self);
            return None;
        }
        Some(self)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) };
    }
}

#[derive(Default)]
struct Shelves {
    free: [Mutex<Vec<Memory>>; CLASSES.len()],
}

/// A shared stock of buffers. Cloning it is cheap and shares the stock.
#[derive(Clone, Default)]
pub struct Pool {
    shelves: Arc<Shelves>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    /// A buffer of `len` bytes. Its contents are unspecified: those of an earlier request, or zeros.
    #[must_use]
    pub fn take(&self, len: usize) -> Buffer {
        let class = CLASSES.iter().position(|size| len <= *size);
        let memory = match class {
            Some(class) => {
                self.shelves.free[class].lock().pop().unwrap_or_else(|| Memory::new(CLASSES[class]))
            }
            None => Memory::new(len.next_multiple_of(ALIGNMENT)),
        };
        Buffer { memory: Some(memory), len, class, lent: AtomicUsize::new(0), pool: self.clone() }
    }

    /// A buffer of `len` zero bytes.
    #[must_use]
    pub fn take_zeroed(&self, len: usize) -> Buffer {
        let mut buffer = self.take(len);
        buffer.fill(0);
        buffer
    }
}

/// Owned, aligned memory of a fixed length.
pub struct Buffer {
    memory: Option<Memory>,
    len: usize,
    class: Option<usize>,
    /// Loans that have not been given back.
    lent: AtomicUsize,
    pool: Pool,
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

impl Buffer {
    fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("a buffer has its memory until it is dropped")
    }

    /// Shortens the buffer to `len` bytes; longer lengths change nothing.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Shares the whole buffer, read-only from now on.
    #[must_use]
    pub fn share(self) -> Slice {
        let range = 0..self.len;
        Slice { buffer: Arc::new(self), range }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let memory = self.memory();
        // SAFETY: `len <= capacity`, all bytes are initialised, and `&self` forbids writers.
        unsafe { std::slice::from_raw_parts(memory.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let (start, len) = (self.memory().start, self.len);
        // SAFETY: as in `deref`, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut memory = self.memory.take();
        if *self.lent.get_mut() > 0 {
            memory = memory.and_then(Memory::renew);
        }
        let (Some(memory), Some(class)) = (memory, self.class) else { return };
        let mut shelf = self.pool.shelves.free[class].lock();
        if shelf.len() < (KEPT_BYTES / Memory::layout(CLASSES[class]).size()).max(1) {
            shelf.push(memory);
        }
    }
}

/// A shared, read-only part of a buffer.
#[derive(Clone, Debug)]
pub struct Slice {
    buffer: Arc<Buffer>,
    range: Range<usize>,
}

impl Slice {
    /// The part `range` of this slice, in bytes from its start.
    ///
    /// # Panics
    /// If `range` does not lie within the slice.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len(),
            "{range:?} of a slice of {} bytes",
            self.len()
        );
        let start = self.range.start + range.start;
        Self { buffer: Arc::clone(&self.buffer), range: start..start + range.len() }
    }

    /// Before its pages are given to the kernel, which may read them until somebody proves that it has.
    #[must_use]
    pub fn lend(&self) -> Loan {
        self.buffer.lent.fetch_add(1, Ordering::Relaxed);
        Loan(Arc::clone(&self.buffer))
    }

    /// Whether the slice begins at an address that `O_DIRECT` accepts.
    #[must_use]
    pub fn is_aligned(&self) -> bool {
        self.range.start.is_multiple_of(ALIGNMENT)
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

/// Pages that the kernel may still read. Dropped without having been given back, they are given up.
#[derive(Debug)]
pub struct Loan(Arc<Buffer>);

impl Loan {
    /// Whoever the pages were sent to has read them.
    pub fn returned(self) {
        self.0.lent.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_new_after_a_loan_that_was_not_given_back() {
        let pool = Pool::default();
        let filled = || {
            let mut buffer = pool.take(CLASSES[3]);
            buffer.fill(7);
            buffer.share()
        };
        let first = filled();
        let loan = first.lend();
        loan.returned();
        drop(first);
        assert!(pool.take(CLASSES[3]).iter().all(|byte| *byte == 7), "recycled as it was");
        let first = filled();
        // One that was given back does not stand for another.
        first.lend().returned();
        drop(first.lend());
        drop(first);
        assert!(pool.take(CLASSES[3]).iter().all(|byte| *byte == 0), "new pages");
    }

    #[test]
    fn buffers_are_aligned_and_recycled() {
        let pool = Pool::default();
        let first = pool.take(5000);
        let address = first.as_ptr();
        assert_eq!(address as usize % ALIGNMENT, 0);
        assert_eq!(first.len(), 5000);
        drop(first);
        assert_eq!(pool.take(60_000).as_ptr(), address, "the same class gives the same memory again");
        assert_eq!(pool.take(3 << 20).len(), 3 << 20);
    }

    #[test]
    fn parts_of_a_slice_share_its_memory() {
        let pool = Pool::default();
        let mut buffer = pool.take_zeroed(8192);
        buffer[4096] = 7;
        let slice = buffer.share();
        let part = slice.part(4096..8192);
        assert_eq!(part[0], 7);
        assert!(part.is_aligned());
        assert!(!slice.part(1..2).is_aligned());
        assert_eq!(part.part(0..1).len(), 1);
    }
}
