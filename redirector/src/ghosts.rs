//! The ghosts of a LUN: copies of writes, trims and zeroes that were sent and may still land (P4, P6). Pure.
//!
//! A request of unknown outcome is re-issued with the same bytes, so its own ghost does it no harm; everything else that
//! would change the ghost's bytes waits until the ghost is dead. Dead it is by the target's proof, or when the target's
//! quiesce time has passed since it may have been sent last.

use std::ops::Range;

use lockd::clock::BootTime;

use crate::paths::way::Instance;

/// Who executes a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Executor {
    /// This process of the target, for requests that this client sends to it.
    Target(Instance),
    /// A peer, in this run: what it has sent to the target is known to nobody else.
    Peer(Instance),
}

/// A copy of a request that may still land.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ghost {
    /// The request that it is a copy of.
    pub token: u64,
    /// The bytes that it would change.
    pub range: Range<u64>,
    /// When it is dead without a proof.
    pub dead_at: BootTime,
    /// Who it was sent to, if that is known.
    pub executor: Option<Executor>,
}

/// All ghosts that may live. There is at most one for each request and each executor that it was sent to.
#[derive(Debug, Default)]
pub struct GhostTable {
    ghosts: Vec<Ghost>,
}

impl GhostTable {
    /// A copy of a request has an unknown outcome. A further copy sent to the same executor prolongs the ghost's life.
    pub fn add(&mut self, ghost: Ghost) {
        if ghost.range.is_empty() {
            return;
        }
        let same =
            self.ghosts.iter_mut().find(|old| old.token == ghost.token && old.executor == ghost.executor);
        match same {
            Some(old) => {
                old.dead_at = old.dead_at.max(ghost.dead_at);
                old.range = old.range.start.min(ghost.range.start)..old.range.end.max(ghost.range.end);
            }
            None => self.ghosts.push(ghost),
        }
    }

    /// Whether a change of `range` by the request `token` must wait: it overlaps a ghost of another request.
    #[must_use]
    pub fn blocks(&self, range: &Range<u64>, token: u64) -> bool {
        self.ghosts.iter().any(|ghost| {
            ghost.token != token && ghost.range.start < range.end && range.start < ghost.range.end
        })
    }

    /// Removes those that are dead by time. Whether there were any.
    pub fn expire(&mut self, now: BootTime) -> bool {
        self.retain(|ghost| ghost.dead_at > now)
    }

    /// It is proved that what `executor` accepted is executed. Whether that killed any.
    pub fn drained(&mut self, executor: Executor) -> bool {
        self.retain(|ghost| ghost.executor != Some(executor))
    }

    /// The target has proved that what any of its instances accepted from this client is executed. Whether that killed any.
    pub fn drained_everywhere(&mut self) -> bool {
        self.retain(|ghost| !matches!(ghost.executor, Some(Executor::Target(_))))
    }

    fn retain(&mut self, lives: impl FnMut(&Ghost) -> bool) -> bool {
        let before = self.ghosts.len();
        self.ghosts.retain(lives);
        self.ghosts.len() < before
    }

    /// Whether there is one such.
    #[must_use]
    pub fn any(&self, such: impl FnMut(&Ghost) -> bool) -> bool {
        self.ghosts.iter().any(such)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ghosts.is_empty()
    }

    /// When the next one dies by time.
    #[must_use]
    pub fn next_death(&self) -> Option<BootTime> {
        self.ghosts.iter().map(|ghost| ghost.dead_at).min()
    }

    /// The ranges under ghosts, in order, without overlaps.
    #[must_use]
    pub fn ranges(&self) -> Vec<Range<u64>> {
        let mut all: Vec<_> = self.ghosts.iter().map(|ghost| ghost.range.clone()).collect();
        all.sort_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in all {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// For each of 32 bytes the copies that may still land: (token, executor, death).
    #[derive(Default)]
    struct Model(Vec<Vec<(u64, Option<Executor>, u64)>>);

    /// Two targets and two peers.
    fn executor(id: u8) -> Executor {
        if id < 2 { Executor::Target([id; 16]) } else { Executor::Peer([id; 16]) }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(u64, u64, u64, Option<u8>, u64),
        Expire(u64),
        Drained(u8),
        Everywhere,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1..6u64, 0..32u64, 0..8u64, prop::option::of(0..4u8), 0..100u64)
                .prop_map(|(token, start, len, id, death)| Step::Add(token, start, len, id, death)),
            1 => (0..100u64).prop_map(Step::Expire),
            1 => (0..4u8).prop_map(Step::Drained),
            1 => Just(Step::Everywhere),
        ]
    }

    proptest! {
        #[test]
        fn the_table_is_as_a_model_byte_by_byte(steps in prop::collection::vec(step(), 0..40)) {
            let mut table = GhostTable::default();
            let mut model = Model(vec![Vec::new(); 40]);
            // A request has one range for life.
            let mut ranges = std::collections::HashMap::new();
            for step in steps {
                match step {
                    Step::Add(token, start, len, id, death) => {
                        let range = ranges.entry(token).or_insert(start..start + len).clone();
                        let executor = id.map(executor);
                        table.add(Ghost { token, range: range.clone(), dead_at: BootTime(death), executor });
                        for byte in range {
                            let copies = &mut model.0[usize::try_from(byte).unwrap()];
                            match copies.iter_mut().find(|copy| (copy.0, copy.1) == (token, executor)) {
                                Some(copy) => copy.2 = copy.2.max(death),
                                None => copies.push((token, executor, death)),
                            }
                        }
                    }
                    Step::Expire(now) => {
                        table.expire(BootTime(now));
                        model.0.iter_mut().for_each(|copies| copies.retain(|copy| copy.2 > now));
                    }
                    Step::Drained(id) => {
                        table.drained(executor(id));
                        model.0.iter_mut().for_each(|copies| copies.retain(|copy| copy.1 != Some(executor(id))));
                    }
                    Step::Everywhere => {
                        table.drained_everywhere();
                        model.0.iter_mut().for_each(|copies| copies.retain(|copy| !matches!(copy.1, Some(Executor::Target(_)))));
                    }
                }
                for token in 0..6 {
                    for byte in 0..40u64 {
                        let foreign = model.0[usize::try_from(byte).unwrap()].iter().any(|copy| copy.0 != token);
                        prop_assert_eq!(table.blocks(&(byte..byte + 1), token), foreign);
                    }
                }
                let covered: Vec<u64> = table.ranges().into_iter().flatten().collect();
                let expected: Vec<u64> =
                    (0..40).filter(|byte| !model.0[usize::try_from(*byte).unwrap()].is_empty()).collect();
                prop_assert_eq!(covered, expected);
                let death = model.0.iter().flatten().map(|copy| BootTime(copy.2)).min();
                prop_assert_eq!(table.next_death(), death);
                prop_assert_eq!(table.is_empty(), death.is_none());
            }
        }
    }
}
