//! The client's side of reply slots: which slot and sequence a command gets.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::SLOTS_PER_CLIENT;
use crate::ids::{Sequence, SlotId};

/// Why there is no slot for a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoSlot {
    /// The allocator was closed: the client ends.
    #[error("the client is ending; no command starts any more")]
    Closed,
    /// In every slot is a command whose fate is unknown.
    #[error("the fate of a command is unknown in each of the client's slots; it must register anew")]
    AllLost,
}

/// Hands out the slots of one client, each to one command at a time; the lowest free one first, so that the other side
/// keeps no more slots than the client has had commands under way at once.
#[derive(Debug)]
pub struct SlotAllocator {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug)]
struct State {
    /// The free slots, and the sequence of the next command in each.
    free: BTreeMap<SlotId, Sequence>,
    /// How many slots are out of use for good.
    lost: u32,
    closed: bool,
}

impl SlotAllocator {
    /// All slots free and new. (A client that registers anew makes a new allocator.)
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::starting_at(Sequence(1))
    }

    /// As [`SlotAllocator::new`], with sequences from `first` on: the other side may remember those of an allocator
    /// before this one.
    #[must_use]
    pub fn starting_at(first: Sequence) -> Arc<Self> {
        let free = (0..SLOTS_PER_CLIENT).map(|slot| (SlotId(slot), first)).collect();
        let state = State { free, lost: 0, closed: false };
        Arc::new(Self { state: Mutex::new(state), freed: Condvar::new() })
    }

    /// A slot for a command; waits while all are in use.
    ///
    /// # Errors
    /// If there will be none: the allocator is closed, or all slots are lost.
    pub fn acquire(self: &Arc<Self>) -> Result<SlotUse, NoSlot> {
        let mut state = self.state.lock();
        loop {
            if let Some(used) = self.take(&mut state)? {
                return Ok(used);
            }
            self.freed.wait(&mut state);
        }
    }

    /// A slot for a command, or none if all are in use at the moment.
    ///
    /// # Errors
    /// As [`SlotAllocator::acquire`].
    pub fn try_acquire(self: &Arc<Self>) -> Result<Option<SlotUse>, NoSlot> {
        self.take(&mut self.state.lock())
    }

    /// Hands out no slot any more; those that wait for one are told.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.freed.notify_all();
    }

    /// How many commands are under way, those of unknown fate included.
    #[must_use]
    pub fn in_use(&self) -> usize {
        SLOTS_PER_CLIENT as usize - self.state.lock().free.len()
    }

    fn take(self: &Arc<Self>, state: &mut State) -> Result<Option<SlotUse>, NoSlot> {
        if state.closed {
            return Err(NoSlot::Closed);
        }
        if state.lost == SLOTS_PER_CLIENT {
            return Err(NoSlot::AllLost);
        }
        let Some((slot, sequence)) = state.free.pop_first() else { return Ok(None) };
        Ok(Some(SlotUse { allocator: Some(Arc::clone(self)), slot, sequence }))
    }

    fn give_back(&self, slot: SlotId, next: Sequence) {
        let taken = self.state.lock().free.insert(slot, next);
        assert!(taken.is_none(), "{slot} was given back twice");
        self.freed.notify_one();
    }

    fn lose(&self) {
        let mut state = self.state.lock();
        state.lost += 1;
        if state.lost == SLOTS_PER_CLIENT {
            self.freed.notify_all();
        }
    }
}

/// One command's use of a slot. Every copy of the command that is sent carries the same slot and sequence.
///
/// A use that is dropped without being told how the command ended leaves it unknown whether it was executed. Neither
/// its sequence nor the next one could then be used safely, so the slot is not used again.
#[derive(Debug)]
pub struct SlotUse {
    allocator: Option<Arc<SlotAllocator>>,
    slot: SlotId,
    sequence: Sequence,
}

impl SlotUse {
    /// The slot.
    #[must_use]
    pub fn slot(&self) -> SlotId {
        self.slot
    }

    /// The command's sequence in the slot.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// The reply has come: the slot is free, and its next command will acknowledge this one.
    pub fn answered(mut self) {
        if let Some(allocator) = self.allocator.take() {
            allocator.give_back(self.slot, Sequence(self.sequence.0 + 1));
        }
    }

    /// The command was never sent, or is known not to have been executed: the slot is free, its sequence unused.
    pub fn unused(mut self) {
        if let Some(allocator) = self.allocator.take() {
            allocator.give_back(self.slot, self.sequence);
        }
    }
}

impl Drop for SlotUse {
    fn drop(&mut self) {
        if let Some(allocator) = self.allocator.take() {
            allocator.lose();
        }
    }
}
