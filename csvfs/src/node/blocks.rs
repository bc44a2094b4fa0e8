//! Block locks of a file (V11): writers of whole blocks share, whoever changes a part of a block excludes.
//!
//! Sixty-four slots stand for all blocks of a file; blocks in groups of 64 (256 KiB) share one, so that a request
//! touches few. Whole-block writes take their slots shared, with one atomic operation each. A write of part of a block
//! reads, changes and writes it, and takes its slot alone, as does a copy on write. Who cannot have its slots is
//! parked, and from then on nobody overtakes it in any of them.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use super::task::{Sender, promise};
use crate::types::FileBlock;

const SLOTS: usize = 64;
const GROUP: u64 = 64;
const ALONE: u32 = 1 << 31;
const AWAITED: u32 = 1 << 30;

/// Which slots, shared and alone, one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Claim {
    shared: u64,
    alone: u64,
}

fn bits(blocks: &Range<FileBlock>) -> u64 {
    if blocks.start >= blocks.end {
        return 0;
    }
    let (first, last) = (blocks.start.0 / GROUP, (blocks.end.0 - 1) / GROUP);
    if last - first >= u64::from(u64::BITS) - 1 {
        return u64::MAX;
    }
    (first..=last).fold(0, |bits, group| bits | 1 << (group % u64::from(u64::BITS)))
}

impl Claim {
    /// `whole` blocks shared, and the blocks of each of `partial` alone.
    pub(super) fn new(whole: &Range<FileBlock>, partial: &[Range<FileBlock>]) -> Self {
        let alone = partial.iter().fold(0, |all, blocks| all | bits(blocks));
        Self { shared: bits(whole) & !alone, alone }
    }

    /// All of `blocks` alone.
    pub(super) fn alone(blocks: &Range<FileBlock>) -> Self {
        Self { shared: 0, alone: bits(blocks) }
    }

    /// Every block of the file.
    pub(super) fn everything() -> Self {
        Self { shared: 0, alone: u64::MAX }
    }

    fn all(self) -> u64 {
        self.shared | self.alone
    }
}

struct Inner {
    slots: [AtomicU32; SLOTS],
    waiting: Mutex<VecDeque<(Claim, Sender<Hold>)>>,
}

/// See the module.
#[derive(Clone)]
pub(super) struct BlockLocks(Arc<Inner>);

/// Slots that are held until this is dropped.
#[must_use]
pub(super) struct Hold {
    locks: Arc<Inner>,
    claim: Claim,
}

impl Default for BlockLocks {
    fn default() -> Self {
        Self(Arc::new(Inner { slots: [const { AtomicU32::new(0) }; SLOTS], waiting: Mutex::default() }))
    }
}

fn each(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let slot = bits.trailing_zeros() as usize;
        bits &= bits.wrapping_sub(1);
        (slot < SLOTS).then_some(slot)
    })
}

impl Inner {
    /// Takes all slots of `claim` or none, and then the error tells whether somebody waits for one that was held for a
    /// moment. `overtake`: also slots that somebody waits for.
    fn try_take(&self, claim: Claim, overtake: bool) -> Result<(), bool> {
        let mut taken = Claim::default();
        for slot in each(claim.all()) {
            let alone = claim.alone & 1 << slot != 0;
            let got = self.slots[slot].fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
                let awaited = state & AWAITED;
                if awaited != 0 && !overtake {
                    return None;
                }
                match state & !AWAITED {
                    0 if alone => Some(ALONE | awaited),
                    held if !alone && held & ALONE == 0 => Some(state + 1),
                    _ => None,
                }
            });
            if got.is_err() {
                return Err(self.give_back(taken));
            }
            *(if alone { &mut taken.alone } else { &mut taken.shared }) |= 1 << slot;
        }
        Ok(())
    }

    /// Gives slots back; whether somebody waits for one.
    fn give_back(&self, claim: Claim) -> bool {
        let mut before = 0;
        for slot in each(claim.shared) {
            before |= self.slots[slot].fetch_sub(1, Ordering::AcqRel);
        }
        for slot in each(claim.alone) {
            before |= self.slots[slot].fetch_and(!ALONE, Ordering::AcqRel);
        }
        before & AWAITED != 0
    }

    /// Gives those who wait what they can have now, the earlier first.
    fn serve(self: &Arc<Self>) {
        let mut served = Vec::new();
        {
            let mut waiting = self.waiting.lock();
            let mut wanted_earlier = 0;
            let mut kept = VecDeque::with_capacity(waiting.len());
            for (claim, sender) in waiting.drain(..) {
                if claim.all() & wanted_earlier == 0 && self.try_take(claim, true).is_ok() {
                    served.push((claim, sender));
                } else {
                    wanted_earlier |= claim.all();
                    kept.push_back((claim, sender));
                }
            }
            *waiting = kept;
            for slot in each(!wanted_earlier) {
                self.slots[slot].fetch_and(!AWAITED, Ordering::AcqRel);
            }
        }
        for (claim, sender) in served {
            sender.send(Hold { locks: Arc::clone(self), claim });
        }
    }
}

impl BlockLocks {
    /// Takes the slots of `claim` if they can be had at once.
    #[inline]
    pub(super) fn try_hold(&self, claim: Claim) -> Option<Hold> {
        match self.0.try_take(claim, false) {
            Ok(()) => return Some(Hold { locks: Arc::clone(&self.0), claim }),
            Err(true) => self.0.serve(),
            Err(false) => {}
        }
        None
    }

    /// Takes the slots of `claim`, in the order of asking. Whoever waits here must hold no other slot of this file.
    pub(super) async fn hold(&self, claim: Claim) -> Hold {
        if let Some(hold) = self.try_hold(claim) {
            return hold;
        }
        let (sender, receiver) = promise();
        {
            let mut waiting = self.0.waiting.lock();
            waiting.push_back((claim, sender));
            for slot in each(claim.all()) {
                self.0.slots[slot].fetch_or(AWAITED, Ordering::AcqRel);
            }
        }
        // They may have been given back before the marks were set.
        self.0.serve();
        receiver.await.expect("a waiter is kept until it is served")
    }
}

impl Drop for Hold {
    #[inline]
    fn drop(&mut self) {
        if self.locks.give_back(self.claim) {
            self.locks.serve();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::super::task::run;
    use super::*;

    fn blocks(range: Range<u64>) -> Range<FileBlock> {
        FileBlock(range.start)..FileBlock(range.end)
    }

    fn shared(range: Range<u64>) -> Claim {
        Claim::new(&blocks(range), &[])
    }

    #[test]
    fn claims_cover_their_groups() {
        assert_eq!(shared(0..1).shared, 1);
        assert_eq!(shared(63..65).shared, 0b11);
        assert_eq!(shared(0..64 * 64).shared, u64::MAX);
        assert_eq!(shared(64 * 64..64 * 64 + 1).shared, 1, "slots come round");
        let mixed = Claim::new(&blocks(0..130), &[blocks(129..130)]);
        assert_eq!((mixed.shared, mixed.alone), (0b011, 0b100));
        assert_eq!(shared(5..5), Claim::default());
    }

    #[test]
    fn sharers_share_and_a_lone_holder_excludes() {
        let locks = BlockLocks::default();
        let first = locks.try_hold(shared(0..4));
        let second = locks.try_hold(shared(2..8));
        assert!(first.is_some() && second.is_some());
        assert!(locks.try_hold(Claim::alone(&blocks(3..4))).is_none());
        drop((first, second));
        let alone = locks.try_hold(Claim::alone(&blocks(3..4)));
        assert!(alone.is_some());
        assert!(locks.try_hold(shared(0..1)).is_none());
        assert!(locks.try_hold(shared(64..65)).is_some(), "another group");
    }

    #[test]
    fn nobody_overtakes_who_waits() {
        let locks = BlockLocks::default();
        let log = Arc::new(Mutex::new(Vec::new()));
        let first = locks.try_hold(shared(0..1));
        for (name, claim) in [("alone", Claim::alone(&blocks(0..1))), ("shared", shared(0..1))] {
            let (locks, log) = (locks.clone(), Arc::clone(&log));
            run(async move {
                let _hold = locks.hold(claim).await;
                log.lock().push(name);
            });
        }
        assert!(locks.try_hold(shared(0..1)).is_none(), "a newcomer waits behind the parked");
        drop(first);
        assert_eq!(*log.lock(), ["alone", "shared"]);
        assert!(locks.try_hold(Claim::everything()).is_some(), "no mark stays behind");
    }

    #[test]
    fn a_lone_holder_is_alone_among_threads() {
        let locks = BlockLocks::default();
        let inside = Arc::new(AtomicU64::new(0));
        let done = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..4_u64)
            .map(|thread| {
                let (locks, inside, done) = (locks.clone(), Arc::clone(&inside), Arc::clone(&done));
                std::thread::spawn(move || {
                    for round in 0..2000 {
                        let (locks, inside, done) = (locks.clone(), Arc::clone(&inside), Arc::clone(&done));
                        run(async move {
                            if (thread + round) % 3 == 0 {
                                let _hold = locks.hold(Claim::alone(&blocks(0..100))).await;
                                assert_eq!(inside.fetch_add(1 << 32, Ordering::AcqRel), 0);
                                inside.fetch_sub(1 << 32, Ordering::AcqRel);
                            } else {
                                let _hold = locks.hold(shared(50..70)).await;
                                assert!(inside.fetch_add(1, Ordering::AcqRel) < 1 << 32);
                                inside.fetch_sub(1, Ordering::AcqRel);
                            }
                            done.fetch_add(1, Ordering::AcqRel);
                        });
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(done.load(Ordering::Acquire), 8000);
    }
}
