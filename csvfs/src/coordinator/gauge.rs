//! Room inside of the store.

use std::time::Duration;

use lockd::clock::BootTime;

/// When the room inside of the store was measured. That reads the whole store, so it is done when there seems to be no
/// room, and something was committed since.
#[derive(Default)]
pub struct Gauge {
    /// The next group begins with it.
    pub wanted: bool,
    /// Of the last one: how many commits there had been, when it began, and how long it took.
    pub last: Option<(u64, BootTime, Duration)>,
    /// This group is committed even if it changes nothing: what a commit frees can be used after the next one.
    pub settles: bool,
    /// How many commits there had been after the last one that changed nothing.
    pub settled: u64,
}

impl Gauge {
    /// A long measurement is followed by so many times its length without another.
    const REST: u32 = 4;

    /// Whether there has been no room by a measurement after the last of `commits` commits, which may have freed what one more
    /// commit makes usable.
    pub fn may_settle(&self, commits: u64) -> bool {
        self.settled != commits && self.last.is_some_and(|(before, ..)| before == commits)
    }

    /// Whether a measurement may find more room than is known of, after `commits` commits.
    pub fn may_find(&self, commits: u64, now: BootTime) -> bool {
        self.last.is_none_or(|(before, at, took)| before != commits && now.since(at) >= took * Self::REST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_looked_for_once_more_after_a_commit_that_only_settles() {
        let now = BootTime(1_000_000);
        let mut gauge = Gauge::default();
        assert!(gauge.may_find(7, now) && !gauge.may_settle(7), "first it is measured");
        gauge.last = Some((7, BootTime(0), Duration::from_nanos(1)));
        assert!(!gauge.may_find(7, now) && gauge.may_settle(7), "the last commit may have freed something");
        gauge.settled = 8;
        assert!(gauge.may_find(8, now), "that was a commit, too");
        gauge.last = Some((8, BootTime(0), Duration::from_nanos(1)));
        assert!(!gauge.may_find(8, now) && !gauge.may_settle(8), "there is no more to find");
        assert!(gauge.may_find(9, now));
    }
}
