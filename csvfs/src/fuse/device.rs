//! One descriptor of the FUSE device. A reply goes back through the descriptor that its request came from: each has
//! a queue of its own in the kernel.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use super::sys;

/// One descriptor of a connection to the kernel.
#[derive(Debug)]
pub(super) struct Device {
    file: File,
    index: u8,
}

impl Device {
    /// `file` is a descriptor of the FUSE device, the `index`th of its connection, by which nobody waits (O_NONBLOCK).
    pub(super) fn new(file: File, index: u8) -> Self {
        Self { file, index }
    }

    /// A further descriptor of the same, mounted, connection.
    pub(super) fn duplicate(&self, index: u8) -> io::Result<Self> {
        Ok(Self { file: sys::clone_fuse_device(&self.file, libc::O_NONBLOCK)?, index })
    }

    /// Which of the connection's descriptors this is.
    pub(super) fn index(&self) -> u8 {
        self.index
    }

    /// Takes a request and scatters it; its length. EAGAIN where there is none. One system call.
    pub(super) fn receive(&self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&self.file).read_vectored(parts)
    }

    /// Readable when there is a request.
    pub(super) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Sends one whole reply or notification. One system call.
    pub(super) fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        // The device takes a message whole or not at all.
        (&self.file).write_vectored(parts).map(|_| ())
    }
}
