//! The way to the coordinator: operations out, answers back, each change in a slot (L5).

use std::collections::VecDeque;
use std::sync::Arc;

use lockd::ids::{ClientId, Epoch, Sequence, SessionId, SlotId};
use lockd::network::{Carrier, CarrierError};
use parking_lot::Mutex;

use super::task::{Receiver, Sender, promise};
use crate::proto::{Answer, Head, Operation, Reply, Request, codec};
use crate::refusal::Refusal;

/// How many changes may wait for a free slot: more than a front end has requests in flight.
const QUEUE_MAX: usize = 65_536;

struct Slots {
    free: Vec<(SlotId, Sequence)>,
    waiting: VecDeque<Sender<(SlotId, Sequence)>>,
}

/// See the module.
pub(super) struct Channel {
    carrier: Arc<dyn Carrier>,
    session: SessionId,
    client: ClientId,
    coordinator: Epoch,
    slots: Mutex<Slots>,
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
        slots: u32,
    ) -> Self {
        let free = (0..slots.max(1)).rev().map(|slot| (SlotId(slot), Sequence(1))).collect();
        let slots = Mutex::new(Slots { free, waiting: VecDeque::new() });
        Self { carrier, session, client, coordinator, slots }
    }

    /// Asks, again as long as no answer comes: a change in its slot, so that it is executed once.
    pub(super) async fn call(&self, operation: Operation) -> Reply {
        let slot = if operation.changes() { Some(self.slot().await?) } else { None };
        let head = Head { session: self.session, client: self.client, coordinator: self.coordinator, slot };
        let request = Request { head, operation };
        let frame = codec::encode(&request).map_err(|error| Refusal::Io(error.to_string()));
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                if let Some(slot) = slot {
                    self.free(slot);
                }
                return Err(error);
            }
        };
        loop {
            let (sender, receiver) = promise();
            self.carrier.request(frame.clone(), Box::new(move |reply| sender.send(reply)));
            match receiver.await {
                Some(Ok(reply)) => {
                    if let Some((id, Sequence(used))) = slot {
                        self.free((id, Sequence(used + 1)));
                    }
                    return codec::decode::<Reply>(&reply).unwrap_or_else(|error| {
                        Err(Refusal::Io(format!("the coordinator's answer is not understood: {error}")))
                    });
                }
                Some(Err(CarrierError::TimedOut(_))) => {}
                // The slot is not used again: nobody knows whether its command was executed.
                Some(Err(CarrierError::Closed(reason))) => return Err(closed(&reason)),
                None => return Err(closed("the request was dropped")),
            }
        }
    }

    async fn slot(&self) -> Result<(SlotId, Sequence), Refusal> {
        let waits = {
            let mut slots = self.slots.lock();
            match slots.free.pop() {
                Some(slot) => return Ok(slot),
                None if slots.waiting.len() >= QUEUE_MAX => {
                    return Err(Refusal::Busy(format!("{QUEUE_MAX} operations wait for the coordinator")));
                }
                None => self.wait(&mut slots),
            }
        };
        waits.await.ok_or_else(|| closed("no slot became free"))
    }

    fn wait(&self, slots: &mut Slots) -> Receiver<(SlotId, Sequence)> {
        let (sender, receiver) = promise();
        slots.waiting.push_back(sender);
        receiver
    }

    fn free(&self, slot: (SlotId, Sequence)) {
        let next = {
            let mut slots = self.slots.lock();
            let next = slots.waiting.pop_front();
            if next.is_none() {
                slots.free.push(slot);
            }
            next
        };
        if let Some(next) = next {
            next.send(slot);
        }
    }
}

/// An answer of another kind than the operation has.
pub(super) fn unexpected(answer: &Answer) -> Refusal {
    Refusal::Io(format!("the coordinator's answer does not fit the question: {answer:?}"))
}
