//! The cluster's time.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock::{BootTime, Clock};

/// The cluster's time as this node estimates it, in nanoseconds. The leader puts it into each entry.
///
/// It starts as the node's civil time, runs on `CLOCK_BOOTTIME`, and is moved forward by every applied entry that is
/// ahead of it; it never goes backwards. So it is about civil time on a cluster whose clocks are, and goes on steadily
/// when the leader changes, when civil time is set, and when a node's clock is wrong (a clock that is ahead moves the
/// cluster's time ahead for good). It is for "since when" and for ordering. No lease hangs on it: those are counted
/// from what the leader itself received, on its own clock (L1).
///
/// That times rise from command to command does not depend on this estimate: whoever applies an entry takes the higher
/// of the entry's time and the last command's time plus one.
#[derive(Debug)]
pub struct ClusterTime {
    clock: Arc<dyn Clock>,
    anchor: Mutex<Anchor>,
}

#[derive(Clone, Copy, Debug)]
struct Anchor {
    time_ns: u64,
    at: BootTime,
    given: u64,
}

impl Anchor {
    fn estimate(&self, now: BootTime) -> u64 {
        let passed = u64::try_from(now.since(self.at).as_nanos()).unwrap_or(u64::MAX);
        self.time_ns.saturating_add(passed)
    }
}

impl ClusterTime {
    /// The time of a node that starts, whose last command was applied at `last_ns`.
    pub(super) fn new(clock: Arc<dyn Clock>, last_ns: u64) -> Self {
        let wall = u64::try_from(clock.wall().0).unwrap_or(0);
        let anchor = Anchor { time_ns: wall.max(last_ns), at: clock.boot(), given: last_ns };
        Self { clock, anchor: Mutex::new(anchor) }
    }

    /// A command was applied at `time_ns`.
    pub(super) fn observe(&self, time_ns: u64) {
        let now = self.clock.boot();
        let mut anchor = self.anchor.lock();
        if time_ns > anchor.estimate(now) {
            (anchor.time_ns, anchor.at) = (time_ns, now);
        }
        anchor.given = anchor.given.max(time_ns);
    }

    /// The times of the next `commands` commands: the first of them; each further one is a nanosecond later.
    pub(super) fn next(&self, commands: u64) -> u64 {
        let now = self.clock.boot();
        let mut anchor = self.anchor.lock();
        let first = anchor.estimate(now).max(anchor.given.saturating_add(1));
        anchor.given = first.saturating_add(commands.saturating_sub(1));
        first
    }

    /// Now.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        let now = self.clock.boot();
        let anchor = *self.anchor.lock();
        anchor.estimate(now).max(anchor.given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn time_goes_on_and_never_back() {
        let clock = Arc::new(ManualClock::default());
        let time = ClusterTime::new(clock, 1_000);
        let first = time.next(3);
        assert!(first > 1_000);
        assert_eq!(time.next(1), first + 3);
        time.observe(first + 1_000_000);
        assert_eq!(time.next(1), first + 1_000_001);
        time.observe(5);
        assert!(time.now_ns() >= first + 1_000_001);
    }
}
