//! The lease of a session as its clients see it: one atomic deadline, read before each write (L3).
//!
//! The deadline lives in this process, or in a page that the local lockd shares with its clients ([`LeasePage`]).

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::{BootTime, Clock};
use crate::rules::{Rule, Rules};

mod header;
mod line;
mod mapping;
mod page;

#[cfg(test)]
mod page_tests;
#[cfg(test)]
mod tests;

pub use header::HeaderError;
pub use page::{BootId, LeasePage, LeasePageError, LineNumber};

use line::LeaseLine;

/// The deadline of a session's lease in `CLOCK_BOOTTIME` nanoseconds. Written by whoever holds the session, read by
/// the data path before each write starts and again before a read is answered.
///
/// An unlimited lease ([`Lease::unlimited`]) belongs to tools that hold a volume alone by other means (an exclusive
/// lock of a local image file).
#[derive(Debug)]
pub struct Lease {
    word: Word,
}

#[derive(Debug)]
enum Word {
    /// Of this process alone.
    Own(AtomicU64),
    /// Of a page that lockd shares.
    Line(LeaseLine),
}

/// The deadline of a lease that has ended: no keep-alive that is answered late brings it back (L2).
const ENDED: u64 = 0;

/// The deadline of a lease that was never granted: before any time at which somebody could ask.
const LAPSED: u64 = 1;

impl Lease {
    /// A lease that has not been granted yet.
    #[must_use]
    pub const fn lapsed() -> Self {
        Self { word: Word::Own(AtomicU64::new(LAPSED)) }
    }

    /// A lease without an end.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self { word: Word::Own(AtomicU64::new(u64::MAX)) }
    }

    fn of_line(line: LeaseLine) -> Self {
        Self { word: Word::Line(line) }
    }

    /// Moves the deadline to `deadline`. It never moves backwards, and a lease that has ended stays so. A lease that is
    /// only viewed ([`LeasePage::view`]) is moved by the lockd that shares it and by nobody else: nothing happens.
    pub fn extend(&self, deadline: BootTime) {
        match &self.word {
            Word::Own(word) => extend(word, deadline),
            Word::Line(line) => line.extend(deadline),
        }
    }

    /// Ends the lease at once and for good: the session is over, or has been fenced. A new session has a new lease. Who
    /// only views a lease ends it for his own process.
    pub fn end(&self) {
        match &self.word {
            Word::Own(word) => word.store(ENDED, Ordering::Release),
            Word::Line(line) => line.end(),
        }
    }

    /// The deadline as it stands.
    #[must_use]
    #[inline]
    pub fn deadline(&self) -> BootTime {
        BootTime(match &self.word {
            Word::Own(word) => word.load(Ordering::Acquire),
            Word::Line(line) => line.deadline(),
        })
    }

    /// Whether the lease has ended for good.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.deadline().0 == ENDED
    }

    /// Whether the lease was granted at all: its deadline is a time then.
    #[must_use]
    pub fn was_granted(&self) -> bool {
        self.deadline().0 > LAPSED
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

/// Moves a deadline forwards, unless its lease has ended.
fn extend(word: &AtomicU64, deadline: BootTime) {
    let later = |now: u64| (now != ENDED && now < deadline.0).then_some(deadline.0);
    // Not later, or ended: nothing to do.
    let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, later);
}
