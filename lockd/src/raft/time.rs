//! The cluster's time: what the leader puts into log entries.
//!
//! Waiting times are counted in it by the machine: lease + grace before what a cut-off host held is free (L9, and the
//! `lease` fence). So of two entries, the later one's time may be ahead of the earlier one's by *no more than really
//! passed between them*, whatever the nodes' clocks say. Too little is safe: leases only seem longer.
//!
//! - Only spans of one node's `CLOCK_BOOTTIME` are ever added, never civil time: a leader whose civil time is an hour
//!   ahead would end all waiting at once. Civil time gives the very first command of a new cluster its time, so that
//!   the figures look familiar, and is not looked at again: after years of restarts they need not be civil time.
//! - A node counts from the last command: its own from when it gave the time, another's from when it was applied here,
//!   which is later than when it was given, so that less seems to have passed. When all voters were down, time stood
//!   still.
//! - Each applied command of another leader sets a node's estimate, *also back*. That leader may have counted too
//!   little (it applied late what it counted from); a node that went on from its own, higher estimate would add what
//!   was missing in one leap.
//! - A leader does not know all that the log holds before it has applied it, and cannot know whether it still leads
//!   when its entry gets into the log. So an entry says which command its time was counted from ([`Stamp::base_ns`]),
//!   and when it is applied and that is not the command before it, it counts as no time at all: a nanosecond. A leader
//!   that sees this, or that a command of its own was lost, lets what is on its way arrive before it gives the next
//!   time; otherwise under load no entry would ever count from the right one.
//!
//! A command is known by its time: for a lost one to be taken for the one in its place, two leaders must have given the
//! same nanosecond to both.
//!
//! A nanosecond per command is added in any case, so that times rise; no node applies a thousand million commands a
//! second.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock::{BootTime, Clock};
use crate::rules::{Rule, Rules};

#[cfg(test)]
mod tests;

/// The time of an entry's first command, and what it was counted from. Each further command is a nanosecond later.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Stamp {
    /// The time of the command that was the last one when the time was given; zero: there was none.
    pub(super) base_ns: u64,
    /// That, and the time that had passed since.
    pub(super) time_ns: u64,
}

/// The cluster's time as this node estimates it, in nanoseconds. The leader puts it into each entry. It runs as fast as
/// real time or slower, and on a leader is never behind the last command's. It is for waiting, for "since when" and for
/// ordering; it is about civil time only in a young cluster.
#[derive(Debug)]
pub struct ClusterTime {
    clock: Arc<dyn Clock>,
    rules: Rules,
    course: Mutex<Course>,
}

#[derive(Debug)]
struct Course {
    /// The time at `at`, on which the estimate runs on.
    time_ns: u64,
    at: BootTime,
    /// The time of the last command applied here.
    applied_ns: u64,
    /// The time of the last command that was given one here or applied here: the next is counted from it.
    given_ns: u64,
    /// What was given and is not applied yet.
    on_the_way: VecDeque<Stamp>,
    /// The command that `given_ns` is of may not be the last one when the next is applied.
    broken: bool,
}

impl Course {
    fn estimate(&self, now: BootTime) -> u64 {
        let passed = u64::try_from(now.since(self.at).as_nanos()).unwrap_or(u64::MAX);
        self.time_ns.saturating_add(passed)
    }

    fn count_from(&mut self, time_ns: u64, now: BootTime) {
        (self.time_ns, self.at) = (time_ns, now);
        (self.applied_ns, self.given_ns) = (time_ns, time_ns);
        self.lose();
    }

    fn lose(&mut self) {
        self.on_the_way.clear();
        self.broken = true;
    }
}

impl ClusterTime {
    /// The time of a node that starts, whose last command was applied at `last_ns`; zero: never.
    pub(super) fn new(clock: Arc<dyn Clock>, rules: Rules, last_ns: u64) -> Self {
        // Should there be commands that are not applied here yet, this counts from nothing that the log knows.
        let time_ns = if last_ns == 0 { civil(&*clock) } else { last_ns };
        let course = Course {
            time_ns,
            at: clock.boot(),
            applied_ns: last_ns,
            given_ns: last_ns,
            on_the_way: VecDeque::new(),
            broken: false,
        };
        Self { clock, rules, course: Mutex::new(course) }
    }

    /// Whether nothing may be on its way when [`next`](Self::next) is called.
    pub(super) fn is_broken(&self) -> bool {
        self.course.lock().broken
    }

    /// The time of the next `commands` commands, which share an entry. `alone`: nothing is on its way.
    pub(super) fn next(&self, commands: u64, alone: bool) -> Stamp {
        let now = self.clock.boot();
        let mut course = self.course.lock();
        if alone {
            course.given_ns = course.applied_ns;
            course.on_the_way.clear();
            course.broken = false;
        }
        let base_ns = course.given_ns;
        let mut time_ns = course.estimate(now);
        if !self.rules.keeps(Rule::L9) {
            // The mutant believes its civil time.
            time_ns = civil(&*self.clock);
        }
        let stamp = Stamp { base_ns, time_ns: time_ns.max(base_ns.saturating_add(1)) };
        course.given_ns = stamp.time_ns.saturating_add(commands.saturating_sub(1));
        course.on_the_way.push_back(stamp);
        stamp
    }

    /// What was given last was refused, or nobody knows.
    pub(super) fn lost(&self) {
        self.course.lock().lose();
    }

    /// The time of an entry's first command, whose stamp is `stamp`, when it is applied after a command of `last_ns`:
    /// the same on every voter.
    pub(super) fn settle(&self, stamp: Stamp, last_ns: u64) -> u64 {
        let next = last_ns.saturating_add(1);
        // L9: passed time counts only from the very command that it was measured from.
        let counts = stamp.base_ns == last_ns || !self.rules.keeps(Rule::L9);
        if counts { stamp.time_ns.max(next) } else { next }
    }

    /// An entry was applied: its first command at `first_ns`, its last at `last_ns`.
    pub(super) fn applied(&self, stamp: Stamp, first_ns: u64, last_ns: u64) {
        let now = self.clock.boot();
        let mut course = self.course.lock();
        if first_ns == stamp.time_ns && course.on_the_way.front() == Some(&stamp) {
            // Given here, and taken: it is counted from then, or all the time that commits take would be lost.
            course.on_the_way.pop_front();
            course.applied_ns = last_ns;
        } else {
            course.count_from(last_ns, now);
        }
    }

    /// The state was replaced by another whose last command is of `last_ns`.
    pub(super) fn replaced(&self, last_ns: u64) {
        let now = self.clock.boot();
        self.course.lock().count_from(last_ns, now);
    }

    /// Now.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        let now = self.clock.boot();
        let course = self.course.lock();
        course.estimate(now).max(course.given_ns)
    }
}

fn civil(clock: &dyn Clock) -> u64 {
    u64::try_from(clock.wall().0).unwrap_or(0)
}
