//! One descriptor of the FUSE device. A reply goes back through the descriptor that its request came from: each has
//! a queue of its own in the kernel.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};

use super::sys;

/// One descriptor of a connection to the kernel.
#[derive(Debug)]
pub(super) struct Device {
    file: File,
    index: u8,
}

impl Device {
    /// `file` is a descriptor of the FUSE device, the `index`th of its connection.
    pub(super) fn new(file: File, index: u8) -> Self {
        Self { file, index }
    }

    /// A further descriptor of the same, mounted, connection. With `waits` unset, [`Device::receive`] fails with
    /// EAGAIN where there is no request.
    pub(super) fn duplicate(&self, index: u8, waits: bool) -> io::Result<Self> {
        let flags = if waits { 0 } else { libc::O_NONBLOCK };
        Ok(Self { file: sys::clone_fuse_device(&self.file, flags)?, index })
    }

    /// Which of the connection's descriptors this is.
    pub(super) fn index(&self) -> u8 {
        self.index
    }

    /// Takes a request and scatters it; its length. One system call.
    pub(super) fn receive(&self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&self.file).read_vectored(parts)
    }

    /// Sends one whole reply or notification. One system call.
    pub(super) fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        // The device takes a message whole or not at all.
        (&self.file).write_vectored(parts).map(|_| ())
    }
}
