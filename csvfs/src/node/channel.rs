//! The way to the coordinator: operations out, answers back, each change in a slot (L5).

use std::collections::VecDeque;
use std::sync::Arc;

use lockd::ids::{ClientId, Epoch, SessionId};
use lockd::network::{Carrier, CarrierError};
use lockd::slots::{SlotAllocator, SlotUse};
use parking_lot::Mutex;

use super::asker::{Asker, is_completing};
use super::task::{Sender, promise};
use crate::proto::{Answer, Head, Operation, Reply, Request, codec};
use crate::refusal::Refusal;

/// How many changes may wait for a free slot: more than a front end has requests in flight.
const QUEUE_MAX: usize = 65_536;

/// See the module.
pub(super) struct Channel {
    carrier: Arc<dyn Carrier>,
    session: SessionId,
    client: ClientId,
    coordinator: Epoch,
    slots: Arc<SlotAllocator>,
    /// Who waits for a free slot.
    waiting: Mutex<VecDeque<Sender<SlotUse>>>,
    asker: Option<Asker>,
}

fn closed(reason: &str) -> Refusal {
    Refusal::Io(format!("the coordinator does not answer: {reason}"))
}

impl Channel {
    pub(super) fn new(
        carrier: Arc<dyn Carrier>,
        session: SessionId,
        client: ClientId,
        coordinator: Epoch,
        asker: Option<Asker>,
    ) -> Self {
        let (slots, waiting) = (SlotAllocator::new(), Mutex::default());
        Self { carrier, session, client, coordinator, slots, waiting, asker }
    }

    /// Asks, again as long as no answer comes: a change in its slot, so that it is executed once.
    pub(super) async fn call(&self, operation: Operation) -> Reply {
        // What a coordinator of this process answers on the asking thread, from its store.
        let reads_store = !operation.changes() || matches!(operation, Operation::Open { .. });
        let slot = if operation.changes() { Some(self.slot().await?) } else { None };
        let head = Head {
            session: self.session,
            client: self.client,
            coordinator: self.coordinator,
            slot: slot.as_ref().map(|used| (used.slot(), used.sequence())),
        };
        let frame = match codec::encode(&Request { head, operation }) {
            Ok(frame) => frame,
            Err(error) => {
                self.free(slot, SlotUse::unused);
                return Err(Refusal::Io(error.to_string()));
            }
        };
        loop {
            let (sender, receiver) = promise();
            let (carrier, frame) = (Arc::clone(&self.carrier), frame.clone());
            let send = move || carrier.request(frame, Box::new(move |reply| sender.send(reply)));
            match &self.asker {
                Some(asker) if reads_store && is_completing() => asker.run(send),
                _ => send(),
            }
            match receiver.await {
                Some(Ok(reply)) => {
                    self.free(slot, SlotUse::answered);
                    return codec::decode::<Reply>(&reply).unwrap_or_else(|error| {
                        Err(Refusal::Io(format!("the coordinator's answer is not understood: {error}")))
                    });
                }
                Some(Err(CarrierError::TimedOut(_))) => {}
                // The slot is lost with that: nobody knows whether its command was executed.
                Some(Err(CarrierError::Closed(reason))) => return Err(closed(&reason)),
                None => return Err(closed("the request was dropped")),
            }
        }
    }

    async fn slot(&self) -> Result<SlotUse, Refusal> {
        let waits = {
            let mut waiting = self.waiting.lock();
            match self.slots.try_acquire() {
                Ok(Some(slot)) => return Ok(slot),
                Ok(None) if waiting.len() >= QUEUE_MAX => {
                    return Err(Refusal::Busy(format!("{QUEUE_MAX} operations wait for the coordinator")));
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
    fn free(&self, slot: Option<SlotUse>, end: impl FnOnce(SlotUse)) {
        let Some(slot) = slot else { return };
        let next = {
            let mut waiting = self.waiting.lock();
            end(slot);
            waiting.pop_front().map(|waiter| (self.slots.try_acquire(), waiter))
        };
        // Without a slot the waiter is dropped, and so told.
        if let Some((Ok(Some(slot)), waiter)) = next {
            waiter.send(slot);
        }
    }
}

/// An answer of another kind than the operation has.
pub(super) fn unexpected(answer: &Answer) -> Refusal {
    Refusal::Io(format!("the coordinator's answer does not fit the question: {answer:?}"))
}
