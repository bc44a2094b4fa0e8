//! The lease of a session as its clients see it: one atomic deadline, read before each write (L3).

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::{BootTime, Clock};
use crate::rules::{Rule, Rules};

#[cfg(test)]
mod tests;

/// The deadline of a session's lease in `CLOCK_BOOTTIME` nanoseconds. Written by whoever holds the session, read by
/// the data path before each write starts and again before a read is answered.
///
/// An unlimited lease ([`Lease::unlimited`]) belongs to tools that hold a volume alone by other means (an exclusive
/// lock of a local image file).
#[derive(Debug)]
pub struct Lease {
    deadline_ns: AtomicU64,
}

/// The deadline of a lease that has ended: no keep-alive that is answered late brings it back (L2).
const ENDED: u64 = 0;

/// The deadline of a lease that was never granted: before any time at which somebody could ask.
const LAPSED: u64 = 1;

impl Lease {
    /// A lease that has not been granted yet.
    #[must_use]
    pub const fn lapsed() -> Self {
        Self { deadline_ns: AtomicU64::new(LAPSED) }
    }

    /// A lease without an end.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self { deadline_ns: AtomicU64::new(u64::MAX) }
    }

    /// Moves the deadline to `deadline`. It never moves backwards, and a lease that has ended stays so.
    pub fn extend(&self, deadline: BootTime) {
        let later = |now: u64| (now != ENDED && now < deadline.0).then_some(deadline.0);
        // Not later, or ended: nothing to do.
        let _ = self.deadline_ns.fetch_update(Ordering::AcqRel, Ordering::Acquire, later);
    }

    /// Ends the lease at once and for good: the session is over, or has been fenced. A new session has a new lease.
    pub fn end(&self) {
        self.deadline_ns.store(ENDED, Ordering::Release);
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
        deadline.0 == u64::MAX || (deadline.0 > LAPSED && clock.boot() < deadline)
    }

    /// Whether a write may start now, or a read that is done be answered (L3). The data path asks this, so that the rule
    /// has its switch in one place.
    #[must_use]
    #[inline]
    pub fn admits(&self, rules: Rules, clock: &dyn Clock) -> bool {
        !rules.keeps(Rule::L3) || self.holds(clock)
    }
}

impl Default for Lease {
    fn default() -> Self {
        Self::lapsed()
    }
}
