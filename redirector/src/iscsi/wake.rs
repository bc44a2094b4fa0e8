//! Wakes a thread that waits for descriptors.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// A descriptor that is readable once somebody has rung.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// One that nobody has rung.
    pub fn new() -> io::Result<Self> {
        // SAFETY: only numbers are passed.
        let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened, and nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    /// Rings.
    pub fn ring(&self) {
        let one = 1_u64;
        // SAFETY: eight bytes are read. It fails only when it has rung so often that it is readable anyway.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
    }

    /// It has been heard.
    pub fn still(&self) {
        let mut count = 0_u64;
        // SAFETY: eight bytes are written; it fails when nobody has rung.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
    }

    /// What becomes readable.
    pub fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
