//! Locks by which requests that overlap are executed one after the other.
//!
//! A disk executes a request for one of its blocks whole. A file does not: a read of a page beside a write of it may give a
//! part of each (tmpfs and ext4 do that). So whoever reads holds the regions that he reads for reading, and whoever changes
//! holds his for writing. Regions share locks; a lock that is free costs some tens of nanoseconds.

use std::ops::Range;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The size of a region, in bytes.
const REGION: u64 = 64 << 10;
/// How many locks there are.
const LOCKS: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Stripes {
    locks: Box<[RwLock<()>]>,
}

impl Stripes {
    pub(super) fn new() -> Self {
        Self { locks: (0..LOCKS).map(|_| RwLock::new(())).collect() }
    }

    /// The locks of `range`, in the order in which they are taken.
    fn of(&self, range: &Range<u64>) -> impl Iterator<Item = &RwLock<()>> {
        let regions = range.end.div_ceil(REGION).max(range.start / REGION + 1) - range.start / REGION;
        let count = usize::try_from(regions).unwrap_or(LOCKS).min(LOCKS);
        let first = usize::try_from(range.start / REGION % LOCKS as u64).unwrap_or_default();
        // A range that goes over the end of the table begins anew at its start, and those come first.
        let over = (first + count).saturating_sub(LOCKS);
        self.locks[..over].iter().chain(&self.locks[first..first + count - over])
    }

    pub(super) fn read(&self, range: &Range<u64>) -> Vec<RwLockReadGuard<'_, ()>> {
        self.of(range).map(RwLock::read).collect()
    }

    pub(super) fn write(&self, range: &Range<u64>) -> Vec<RwLockWriteGuard<'_, ()>> {
        self.of(range).map(RwLock::write).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn places(stripes: &Stripes, range: &Range<u64>) -> Vec<usize> {
        let base = stripes.locks.as_ptr().addr();
        let place = |lock| (std::ptr::from_ref::<RwLock<()>>(lock).addr() - base) / size_of::<RwLock<()>>();
        stripes.of(range).map(place).collect()
    }

    proptest! {
        #[test]
        fn what_overlaps_shares_a_lock_and_all_are_taken_in_order(
            start in 0..1_u64 << 30, len in 0..1_u64 << 28, other in 0..1_u64 << 28,
        ) {
            let stripes = Stripes::new();
            let range = start..start + len;
            let all = places(&stripes, &range);
            prop_assert!(!all.is_empty() && all.is_sorted() && all.windows(2).all(|two| two[0] != two[1]));
            if len > 0 {
                let at = start + other % len;
                let one = places(&stripes, &(at..at + 1));
                prop_assert!(one.len() == 1 && all.contains(&one[0]));
            }
        }
    }
}
