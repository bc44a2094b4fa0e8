//! The way to the coordinator: operations out, answers back, each change in a slot (L5).

use std::sync::Arc;

use lockd::ids::{ClientId, Epoch, SessionId};
use lockd::network::{Carrier, CarrierError};
use lockd::slots::SlotUse;

use super::asker::{Asker, is_completing};
use super::cache::Cache;
use super::slots::Slots;
use super::task::promise;
use crate::proto::{Answer, Answered, Head, Operation, Reply, Request, codec};
use crate::refusal::Refusal;

/// See the module.
pub(super) struct Channel {
    carrier: Arc<dyn Carrier>,
    session: SessionId,
    client: ClientId,
    coordinator: Epoch,
    slots: Slots,
    /// What may be kept of the answers.
    pub(super) cache: Cache,
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
        let (slots, cache) = (Slots::default(), Cache::default());
        Self { carrier, session, client, coordinator, slots, cache, asker }
    }

    /// Runs `job` where it may wait.
    pub(super) fn aside(&self, job: impl FnOnce() + Send + 'static) {
        match &self.asker {
            Some(asker) => asker.run(job),
            None => job(),
        }
    }

    /// The epoch in which this client knows the coordinator.
    pub(super) fn coordinator(&self) -> Epoch {
        self.coordinator
    }

    /// This client.
    pub(super) fn client(&self) -> (SessionId, ClientId) {
        (self.session, self.client)
    }

    /// Asks, again as long as no answer comes: a change in its slot, so that it is executed once.
    pub(super) async fn call(&self, operation: Operation) -> Reply {
        // What a coordinator of this process answers on the asking thread, from its store.
        let reads_store = !operation.changes()
            || matches!(
                operation,
                Operation::Open { .. }
                    | Operation::OpenSet { .. }
                    | Operation::Acquire { .. }
                    | Operation::Attach { .. }
            );
        let slot = if operation.changes() { Some(self.slots.take().await?) } else { None };
        let head = Head {
            session: self.session,
            client: self.client,
            coordinator: self.coordinator,
            slot: slot.as_ref().map(|used| (used.slot(), used.sequence())),
        };
        let request = Request { head, operation };
        let frame = match codec::encode(&request) {
            Ok(frame) => frame,
            Err(error) => {
                self.slots.free(slot, SlotUse::unused);
                return Err(Refusal::Io(error.to_string()));
            }
        };
        let asked = self.cache.ask();
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
                    let answered = codec::decode::<Answered>(&reply).unwrap_or_else(|error| {
                        let error = format!("the coordinator's answer is not understood: {error}");
                        Answered::from(Err(Refusal::Io(error)))
                    });
                    // Before the slot is free, and before the caller goes on.
                    self.cache.answered(asked, &request.operation, &answered);
                    self.slots.free(slot, SlotUse::answered);
                    return answered.reply;
                }
                Some(Err(CarrierError::TimedOut(_))) => {}
                // The slot is lost with that: nobody knows whether its command was executed.
                Some(Err(CarrierError::Closed(reason))) => {
                    self.cache.clear();
                    let reply = Err(closed(&reason));
                    self.cache.answered(asked, &request.operation, &Answered::from(reply.clone()));
                    return reply;
                }
                None => {
                    let reply = Err(closed("the request was dropped"));
                    self.cache.answered(asked, &request.operation, &Answered::from(reply.clone()));
                    return reply;
                }
            }
        }
    }
}

/// An answer of another kind than the operation has.
pub(super) fn unexpected(answer: &Answer) -> Refusal {
    Refusal::Io(format!("the coordinator's answer does not fit the question: {answer:?}"))
}
