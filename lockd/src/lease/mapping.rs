//! A file of one page as shared memory: the only unsafe code of the lease.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// The size of the page in bytes.
pub(super) const PAGE_BYTES: usize = 4096;

/// How many words of 8 bytes the page has.
pub(super) const WORDS: usize = PAGE_BYTES / 8;

/// The first page of a file, shared with every process that maps it. Seen as atomic words only.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<AtomicU64>,
    writable: bool,
}

// SAFETY: the mapping is plain memory that is only reached through atomics; any thread may read, write and unmap it.
unsafe impl Send for Mapping {}
// SAFETY: as above; every access through a shared reference is atomic.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `file`, which must have been opened for writing too if `writable`.
    pub(super) fn new(file: &File, writable: bool) -> io::Result<Self> {
        if file.metadata()?.len() < PAGE_BYTES as u64 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than a page"));
        }
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a new mapping at an address of the kernel's choice, of a descriptor that is open; the length is not
        // zero. The file is as long as the mapping, and lockd never shortens it.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), PAGE_BYTES, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { start, writable })
    }

    /// Whether words may be stored to.
    pub(super) fn writable(&self) -> bool {
        self.writable
    }

    /// One word of the page. Storing to it needs a writable mapping.
    #[inline]
    pub(super) fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < WORDS, "word {index} is outside of the lease page");
        // SAFETY: the index is inside of the mapped page, which is aligned for words and lives as long as `self`;
        // other processes too reach it by atomic instructions only.
        unsafe { self.start.add(index).as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the address and length are those of the mapping made in `new`, and no reference outlives `self`.
        let status = unsafe { libc::munmap(self.start.as_ptr().cast(), PAGE_BYTES) };
        debug_assert_eq!(status, 0, "munmap of the lease page failed");
    }
}
