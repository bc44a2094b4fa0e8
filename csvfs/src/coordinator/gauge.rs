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
}

impl Gauge {
    /// A long measurement is followed by so many times its length without another.
    const REST: u32 = 4;

    /// Whether a measurement may find more room than is known of, after `commits` commits.
    pub fn may_find(&self, commits: u64, now: BootTime) -> bool {
        self.last.is_none_or(|(before, at, took)| before != commits && now.since(at) >= took * Self::REST)
    }
}
