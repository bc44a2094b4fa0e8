//! What the node has done, for status and metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counted by requests as they come; relaxed, for nothing is decided by them.
#[derive(Debug, Default)]
pub(super) struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    syncs: AtomicU64,
}

/// A node's state in figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// Reads asked for since the mount.
    pub reads: u64,
    /// Bytes that they asked for.
    pub read_bytes: u64,
    /// Writes asked for since the mount.
    pub writes: u64,
    /// Bytes that they brought.
    pub written_bytes: u64,
    /// Syncs asked for since the mount.
    pub syncs: u64,
    /// Data requests in flight now.
    pub in_flight: u64,
    /// Files and directories open towards the coordinator now.
    pub open: u64,
    /// Handles of the front end now.
    pub handles: u64,
    /// Free blocks of 4 KiB in the node's reserve now.
    pub reserve_blocks: u64,
}

impl Counters {
    #[inline]
    pub(super) fn read(&self, len: u32) {
        self.reads.fetch_add(1, Relaxed);
        self.read_bytes.fetch_add(u64::from(len), Relaxed);
    }

    #[inline]
    pub(super) fn write(&self, len: usize) {
        self.writes.fetch_add(1, Relaxed);
        self.written_bytes.fetch_add(len as u64, Relaxed);
    }

    pub(super) fn sync(&self) {
        self.syncs.fetch_add(1, Relaxed);
    }

    pub(super) fn figures(&self) -> Figures {
        Figures {
            reads: self.reads.load(Relaxed),
            read_bytes: self.read_bytes.load(Relaxed),
            writes: self.writes.load(Relaxed),
            written_bytes: self.written_bytes.load(Relaxed),
            syncs: self.syncs.load(Relaxed),
            ..Figures::default()
        }
    }
}
