//! The way to the coordinator: operations out, answers back, each change in a slot (L5).
//!
//! Who coordinates may change. Then there is a new *line*: what has not been answered on the old one is asked again on the
//! new one, in its slot (V4), as soon as the coordinator has been told who this node is and what it has open
//! ([`Channel::open`]). Nothing that is asked fails for that.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockd::ids::{ClientId, Epoch, Sequence, SessionId, SlotId};
use lockd::network::{Carrier, CarrierError};
use lockd::slots::SlotUse;
use parking_lot::Mutex;

use super::asker::{Asker, is_completing};
use super::cache::Cache;
use super::gate::{Gate, Pass};
use super::media::Media;
use super::slots::Slots;
use super::task::{Receiver, Sender, promise};
use crate::proto::{ATTACH_SLOT, Answer, Answered, Head, Operation, Reply, Request, codec};
use crate::refusal::Refusal;

/// What becomes of one attempt.
enum Told {
    /// The carrier has answered.
    Reply(Result<Vec<u8>, CarrierError>),
    /// There is another line.
    Cut,
}

/// An attempt that is under way: whoever is first tells what becomes of it.
type Attempt = Arc<Mutex<Option<Sender<Told>>>>;

fn tell(attempt: &Attempt, told: Told) {
    let sender = attempt.lock().take();
    if let Some(sender) = sender {
        sender.send(told);
    }
}

/// What a carrier is given: dropped without an answer, nobody waits for one.
struct Answerer(Attempt);

impl Drop for Answerer {
    fn drop(&mut self) {
        let sender = self.0.lock().take();
        drop(sender);
    }
}

/// The way to one coordinator.
struct Line {
    /// None while nobody coordinates whom this node knows.
    carrier: Option<Arc<dyn Carrier>>,
    coordinator: Epoch,
    /// Rises with each line.
    number: u64,
    /// The coordinator knows this node.
    is_open: bool,
    pending: BTreeMap<u64, Attempt>,
    attempts: u64,
    /// Who waits until it is open.
    waiting: Vec<Sender<()>>,
}

/// On which terms something is asked.
#[derive(Clone, Copy, Default)]
struct Terms<'a> {
    /// Entered while it is asked, and left between two lines.
    gate: Option<&'a Gate>,
    /// On this line only.
    only: Option<u64>,
}

/// What came of it.
struct Exchanged {
    reply: Reply,
    pass: Option<Pass>,
    /// It was asked on more than one line.
    again: bool,
}

/// What is sent on which line.
enum Next {
    Send(Arc<dyn Carrier>, Epoch, u64, Receiver<Told>, Attempt),
    Wait(Receiver<()>),
    Over,
}

/// How one attempt has gone.
enum Step {
    Answered(Box<Answered>),
    Again,
    /// The coordinator does not know this node yet.
    Wait(Receiver<()>),
}

/// See the module.
pub(super) struct Channel {
    line: Mutex<Line>,
    session: SessionId,
    client: ClientId,
    slots: Slots,
    /// The last sequence in [`ATTACH_SLOT`].
    attachments: Mutex<Sequence>,
    /// What may be kept of the answers.
    pub(super) cache: Cache,
    asker: Option<Asker>,
    media: Arc<Media>,
    /// Others use the volume: the coordinator may be another one later.
    is_cluster: bool,
}

fn closed(reason: &str) -> Refusal {
    Refusal::Io(format!("the coordinator does not answer: {reason}"))
}

fn other_coordinator() -> Refusal {
    Refusal::Stale("another mount coordinates the volume now".to_owned())
}

impl Channel {
    pub(super) fn new(
        carrier: Option<Arc<dyn Carrier>>,
        (session, client): (SessionId, ClientId),
        coordinator: Epoch,
        asker: Option<Asker>,
        media: Arc<Media>,
        is_cluster: bool,
    ) -> Self {
        let line = Line {
            carrier,
            coordinator,
            number: 0,
            // A mount that is alone tells nobody of itself.
            is_open: !is_cluster,
            pending: BTreeMap::new(),
            attempts: 0,
            waiting: Vec::new(),
        };
        Self {
            line: Mutex::new(line),
            session,
            client,
            slots: Slots::default(),
            attachments: Mutex::default(),
            cache: Cache::default(),
            asker,
            media,
            is_cluster,
        }
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
        self.line.lock().coordinator
    }

    /// This client.
    pub(super) fn client(&self) -> (SessionId, ClientId) {
        (self.session, self.client)
    }

    /// The number of the line.
    pub(super) fn number(&self) -> u64 {
        self.line.lock().number
    }

    /// Another coordinator, or none that is known: what is asked waits until [`Channel::open`]. Nothing that was kept is
    /// covered by a lease any more.
    pub(super) fn switch(&self, carrier: Option<Arc<dyn Carrier>>, coordinator: Epoch) -> u64 {
        let (number, pending, before) = {
            let mut line = self.line.lock();
            line.number += 1;
            (line.coordinator, line.is_open) = (coordinator, false);
            let before = std::mem::replace(&mut line.carrier, carrier);
            (line.number, std::mem::take(&mut line.pending), before)
        };
        drop(before);
        self.cache.switch(false);
        pending.into_values().for_each(|attempt| tell(&attempt, Told::Cut));
        // Who waits for the next look need not wait for it.
        self.media.tick();
        number
    }

    /// The coordinator on line `number` knows this node: everything may be asked. Whether that is still the line.
    pub(super) fn open(&self, number: u64) -> bool {
        let waiting = {
            let mut line = self.line.lock();
            if line.number != number {
                return false;
            }
            line.is_open = true;
            std::mem::take(&mut line.waiting)
        };
        waiting.into_iter().for_each(|waiter| waiter.send(()));
        self.media.tick();
        true
    }

    /// The session has ended: whoever waits for an answer, or for another coordinator, waits no longer.
    pub(super) fn end(&self) {
        let (pending, waiting) = {
            let mut line = self.line.lock();
            (std::mem::take(&mut line.pending), std::mem::take(&mut line.waiting))
        };
        pending.into_values().for_each(|attempt| tell(&attempt, Told::Cut));
        waiting.into_iter().for_each(|waiter| waiter.send(()));
    }

    /// Asks, again as long as no answer comes: a change in its slot, so that it is executed once.
    pub(super) async fn call(&self, operation: Operation) -> Reply {
        self.exchange(operation, Terms::default()).await.reply
    }

    /// The same, inside of `gate` while it is asked, but not between two lines. Whoever has stopped and drained the gate on
    /// a new line knows that no answer of the old one comes any more, and what has come has been noted under the pass that
    /// is returned. Also tells whether it was asked on more than one line.
    pub(super) async fn call_inside(&self, operation: Operation, gate: &Gate) -> (Reply, Pass, bool) {
        let Exchanged { reply, pass, again } =
            self.exchange(operation, Terms { gate: Some(gate), only: None }).await;
        match pass {
            Some(pass) => (reply, pass, again),
            None => (reply, gate.enter().await, again),
        }
    }

    /// Asks on this line, or not at all. What was asked may have been done all the same.
    pub(super) async fn call_on(&self, number: u64, operation: Operation) -> Reply {
        self.exchange(operation, Terms { gate: None, only: Some(number) }).await.reply
    }

    /// What is to be done now.
    fn next(&self, attaches: bool, only: Option<u64>) -> Next {
        let mut line = self.line.lock();
        if only.is_some_and(|only| only != line.number) {
            return Next::Over;
        }
        match &line.carrier {
            Some(carrier) if line.is_open || attaches => {
                let carrier = Arc::clone(carrier);
                let (sender, receiver) = promise();
                let attempt: Attempt = Arc::new(Mutex::new(Some(sender)));
                line.attempts += 1;
                let number = line.attempts;
                if self.is_cluster {
                    line.pending.insert(number, Arc::clone(&attempt));
                }
                Next::Send(carrier, line.coordinator, number, receiver, attempt)
            }
            _ if only.is_some() => Next::Over,
            _ => {
                let (sender, receiver) = promise();
                line.waiting.push(sender);
                Next::Wait(receiver)
            }
        }
    }

    fn is_over(&self) -> bool {
        self.is_cluster && self.media.has_ended()
    }

    async fn exchange(&self, operation: Operation, terms: Terms<'_>) -> Exchanged {
        let attaches = matches!(operation, Operation::Attach { .. });
        let slot = if operation.changes() && !attaches {
            match self.slots.take().await {
                Ok(slot) => Some(slot),
                Err(refusal) => return Exchanged { reply: Err(refusal), pass: None, again: false },
            }
        } else {
            None
        };
        let number = if attaches {
            let mut last = self.attachments.lock();
            last.0 += 1;
            Some((ATTACH_SLOT, *last))
        } else {
            slot.as_ref().map(|used| (used.slot(), used.sequence()))
        };
        let (mut again, mut first) = (false, None);
        let asked = self.cache.ask();
        let mut request = Request { head: self.head(number), operation };
        let mut pass = None;
        let (answered, end) = loop {
            if let (Some(gate), None) = (terms.gate, &pass) {
                pass = Some(gate.enter().await);
            }
            match self.attempt(&mut request, attaches, terms.only, &mut first, &mut again).await {
                Ok(Step::Answered(answered)) => break (*answered, SlotUse::answered as fn(SlotUse)),
                Ok(Step::Again) => {}
                Ok(Step::Wait(open)) => {
                    // What is open is listed meanwhile.
                    pass = None;
                    open.await;
                }
                Err((refusal, end)) => break (Answered::from(Err(refusal)), end),
            }
        };
        // Before the slot is free, and before the caller goes on.
        self.cache.answered(asked, &request.operation, &answered);
        self.slots.free(slot, end);
        Exchanged { reply: answered.reply, pass, again }
    }

    fn head(&self, slot: Option<(SlotId, Sequence)>) -> Head {
        Head { session: self.session, client: self.client, coordinator: self.coordinator(), slot }
    }

    /// Asks once. A refusal comes with what becomes of the slot.
    async fn attempt(
        &self,
        request: &mut Request,
        attaches: bool,
        only: Option<u64>,
        first: &mut Option<u64>,
        again: &mut bool,
    ) -> Result<Step, (Refusal, fn(SlotUse))> {
        // A slot that is dropped is lost: nobody knows whether its command was executed.
        let lose: fn(SlotUse) = drop;
        if self.is_over() {
            return Err((Refusal::Stale("the session of this node has ended; mount again".to_owned()), lose));
        }
        let (carrier, coordinator, number, receiver, attempt) = match self.next(attaches, only) {
            Next::Send(carrier, coordinator, number, receiver, attempt) => {
                (carrier, coordinator, number, receiver, attempt)
            }
            Next::Over => return Err((other_coordinator(), lose)),
            Next::Wait(open) => return Ok(Step::Wait(open)),
        };
        *again |= first.replace(coordinator.0).is_some_and(|before| before != coordinator.0);
        request.head.coordinator = coordinator;
        let frame = match codec::encode(request) {
            Ok(frame) => frame,
            Err(error) => {
                self.forget(number);
                return Err((Refusal::Io(error.to_string()), SlotUse::unused));
            }
        };
        let reads_store = reads_store(&request.operation);
        let answerer = Answerer(attempt);
        let send =
            move || carrier.request(frame, Box::new(move |reply| tell(&answerer.0, Told::Reply(reply))));
        match &self.asker {
            Some(asker) if reads_store && is_completing() => asker.run(send),
            _ => send(),
        }
        let told = receiver.await;
        self.forget(number);
        match told {
            Some(Told::Reply(Ok(reply))) => {
                let answered = codec::decode::<Answered>(&reply).unwrap_or_else(|error| {
                    let error = format!("the coordinator's answer is not understood: {error}");
                    Answered::from(Err(Refusal::Io(error)))
                });
                if self.is_cluster && matches!(answered.reply, Err(Refusal::NotCoordinator(_))) {
                    self.media.tick_passed().await;
                    return Ok(Step::Again);
                }
                Ok(Step::Answered(Box::new(answered)))
            }
            Some(Told::Reply(Err(CarrierError::TimedOut(_))) | Told::Cut) => Ok(Step::Again),
            // Nobody answers there, or the coordinator is going away: there will be another one.
            Some(Told::Reply(Err(CarrierError::Closed(_)))) | None if self.is_cluster => {
                self.media.tick_passed().await;
                Ok(Step::Again)
            }
            Some(Told::Reply(Err(CarrierError::Closed(reason)))) => {
                self.cache.clear();
                Err((closed(&reason), lose))
            }
            None => Err((closed("the request was dropped"), lose)),
        }
    }

    fn forget(&self, number: u64) {
        if self.is_cluster {
            self.line.lock().pending.remove(&number);
        }
    }
}

/// What a coordinator of this process answers on the asking thread, from its store.
fn reads_store(operation: &Operation) -> bool {
    !operation.changes()
        || matches!(
            operation,
            Operation::Open { .. }
                | Operation::OpenSet { .. }
                | Operation::Acquire { .. }
                | Operation::Attach { .. }
        )
}

/// An answer of another kind than the operation has.
pub(super) fn unexpected(answer: &Answer) -> Refusal {
    Refusal::Io(format!("the coordinator's answer does not fit the question: {answer:?}"))
}
