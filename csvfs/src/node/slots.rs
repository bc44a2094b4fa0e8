//! Reply slots of this node's requests (L5), for tasks that wait.

use std::collections::VecDeque;
use std::sync::Arc;

use lockd::ids::Sequence;
use lockd::slots::{SlotAllocator, SlotUse};
use parking_lot::Mutex;

use super::task::{Sender, promise};
use crate::refusal::Refusal;

/// How many changes may wait for a free slot: more than a front end has requests in flight.
const QUEUE_MAX: usize = 65_536;

/// The slots towards one other side.
pub(super) struct Slots {
    allocator: Arc<SlotAllocator>,
    /// Who waits for a free slot.
    waiting: Mutex<VecDeque<Sender<SlotUse>>>,
}

/// Sequences of one incarnation of a file's slots: more than it will ever use.
const SEQUENCE_BITS: u32 = 32;

impl Default for Slots {
    fn default() -> Self {
        Self { allocator: SlotAllocator::new(), waiting: Mutex::default() }
    }
}

impl Slots {
    /// The `incarnation`th slots of this node towards a server that may remember earlier ones: a file that was closed
    /// and opened again, while it stayed open there.
    pub(super) fn of(incarnation: u64) -> Self {
        let first = Sequence((incarnation << SEQUENCE_BITS) + 1);
        Self { allocator: SlotAllocator::starting_at(first), waiting: Mutex::default() }
    }
}

fn closed(reason: &str) -> Refusal {
    Refusal::Io(format!("nothing can be asked any more: {reason}"))
}

impl Slots {
    /// A free slot, in the order of asking.
    pub(super) async fn take(&self) -> Result<SlotUse, Refusal> {
        let waits = {
            let mut waiting = self.waiting.lock();
            match self.allocator.try_acquire() {
                Ok(Some(slot)) => return Ok(slot),
                Ok(None) if waiting.len() >= QUEUE_MAX => {
                    return Err(Refusal::Busy(format!("{QUEUE_MAX} operations wait for an answer")));
                }
                Ok(None) => {
                    let (sender, receiver) = promise();
                    waiting.push_back(sender);
                    receiver
                }
                Err(none) => return Err(closed(&none.to_string())),
            }
        };
        waits.await.ok_or_else(|| closed("every slot is lost"))
    }

    /// Ends the use of a slot, and gives it to whoever has waited longest.
    pub(super) fn free(&self, slot: Option<SlotUse>, end: impl FnOnce(SlotUse)) {
        let Some(slot) = slot else { return };
        let next = {
            let mut waiting = self.waiting.lock();
            end(slot);
            waiting.pop_front().map(|waiter| (self.allocator.try_acquire(), waiter))
        };
        // Without a slot the waiter is dropped, and so told.
        if let Some((Ok(Some(slot)), waiter)) = next {
            waiter.send(slot);
        }
    }
}
