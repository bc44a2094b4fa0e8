//! The lease of a session as its clients see it: one atomic deadline, read before each write (L3).

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::{BootTime, Clock};

/// The deadline of a session's lease in `CLOCK_BOOTTIME` nanoseconds. Written by whoever holds the session, read by
/// the data path before each write starts and again before a read is answered.
///
/// An unlimited lease ([`Lease::unlimited`]) belongs to tools that hold a volume alone by other means (an exclusive
/// lock of a local image file).
#[derive(Debug, Default)]
pub struct Lease {
    deadline_ns: AtomicU64,
}

impl Lease {
    /// A lease that has not been granted yet.
    #[must_use]
    pub const fn lapsed() -> Self {
        Self { deadline_ns: AtomicU64::new(0) }
    }

    /// A lease without an end.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self { deadline_ns: AtomicU64::new(u64::MAX) }
    }

    /// Moves the deadline to `deadline`. It never moves backwards but by [`Lease::end`].
    pub fn extend(&self, deadline: BootTime) {
        self.deadline_ns.fetch_max(deadline.0, Ordering::Release);
    }

    /// Ends the lease at once: the session is over, or has been fenced.
    pub fn end(&self) {
        self.deadline_ns.store(0, Ordering::Release);
    }

    /// The deadline as it stands.
    #[must_use]
    pub fn deadline(&self) -> BootTime {
        BootTime(self.deadline_ns.load(Ordering::Acquire))
    }

    /// Whether the lease still runs by `clock`. An unlimited lease costs no clock read.
    #[must_use]
    #[inline]
    pub fn holds(&self, clock: &dyn Clock) -> bool {
        let deadline = self.deadline();
        deadline.0 == u64::MAX || clock.boot() < deadline
    }
}
