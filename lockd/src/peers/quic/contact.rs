//! When something was last heard of a node.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When something was last heard of a node.
#[derive(Debug)]
pub(super) struct Contact {
    start: Instant,
    /// Nanoseconds after `start`; 0 is never.
    last: AtomicU64,
}

impl Contact {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0) }
    }

    /// Something was heard just now.
    pub(super) fn note(&self) {
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1);
        self.last.fetch_max(now, Ordering::Relaxed);
    }

    /// How long ago that was, `None` if it never was.
    pub(super) fn ago(&self) -> Option<Duration> {
        let last = self.last.load(Ordering::Relaxed);
        (last > 0).then(|| self.start.elapsed().saturating_sub(Duration::from_nanos(last)))
    }
}
