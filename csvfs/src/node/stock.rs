//! The free blocks of the node's reserve: granted by the coordinator, not yet given to a file.

use std::collections::BTreeMap;

use crate::types::{LunBlock, Run};

/// Runs of free blocks, without overlap, neighbours merged.
#[derive(Default, Debug)]
pub(super) struct Stock {
    runs: BTreeMap<LunBlock, u64>,
    free: u64,
}

impl Stock {
    /// How many blocks are free.
    pub(super) fn free(&self) -> u64 {
        self.free
    }

    /// Adds a run.
    ///
    /// # Panics
    /// If a part of it is here already: a block would be given to two files.
    pub(super) fn add(&mut self, run: Run) {
        let (mut start, mut len) = (run.start, run.len);
        if let Some((&before, &before_len)) = self.runs.range(..start).next_back() {
            assert!(before + before_len <= start, "{run:?} is in the reserve twice");
            if before + before_len == start {
                self.runs.remove(&before);
                (start, len) = (before, before_len + len);
            }
        }
        if let Some((&after, &after_len)) = self.runs.range(run.start..).next() {
            assert!(run.end() <= after, "{run:?} is in the reserve twice");
            if run.end() == after {
                self.runs.remove(&after);
                len += after_len;
            }
        }
        self.runs.insert(start, len);
        self.free += run.len;
    }

    /// Takes at most `want` consecutive blocks: at `near` if those are free, or the first run that is long enough, or
    /// the longest.
    pub(super) fn take(&mut self, want: u64, near: Option<LunBlock>) -> Option<Run> {
        if want == 0 {
            return None;
        }
        let at_near = near.and_then(|near| self.runs.get_key_value(&near));
        let fits = || self.runs.iter().find(|(_, len)| **len >= want);
        let longest = || self.runs.iter().max_by_key(|(_, len)| **len);
        let (&start, &len) = at_near.or_else(fits).or_else(longest)?;
        self.runs.remove(&start);
        let taken = len.min(want);
        if taken < len {
            self.runs.insert(start + taken, len - taken);
        }
        self.free -= taken;
        Some(Run { start, len: taken })
    }

    /// Takes everything.
    pub(super) fn take_all(&mut self) -> Vec<Run> {
        self.free = 0;
        std::mem::take(&mut self.runs).into_iter().map(|(start, len)| Run { start, len }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, len: u64) -> Run {
        Run { start: LunBlock(start), len }
    }

    #[test]
    fn neighbours_merge() {
        let mut stock = Stock::default();
        stock.add(run(10, 5));
        stock.add(run(20, 5));
        stock.add(run(15, 5));
        assert_eq!(stock.free(), 15);
        assert_eq!(stock.take_all(), [run(10, 15)]);
    }

    #[test]
    fn a_run_goes_on_where_the_file_ended() {
        let mut stock = Stock::default();
        stock.add(run(100, 8));
        stock.add(run(200, 100));
        assert_eq!(stock.take(4, Some(LunBlock(200))), Some(run(200, 4)));
        assert_eq!(stock.take(4, Some(LunBlock(204))), Some(run(204, 4)));
        assert_eq!(stock.take(9, None), Some(run(208, 9)));
        assert_eq!(stock.take(1000, None), Some(run(217, 83)), "the longest when none is long enough");
        assert_eq!(stock.take(1000, None), Some(run(100, 8)));
        assert_eq!(stock.take(1, None), None);
    }

    #[test]
    #[should_panic(expected = "twice")]
    fn a_block_is_never_here_twice() {
        let mut stock = Stock::default();
        stock.add(run(10, 5));
        stock.add(run(14, 1));
    }
}
