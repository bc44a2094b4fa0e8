//! Exactly once, and the abort of what may be on its way (L5, L7).

use super::codec::{decode_reply, encode_reply};
use super::command::Operation;
use super::reply::{AbortOutcome, Refusal, Reply};
use super::state::{Outcome, State};
use crate::ids::{ClientId, Sequence, SlotId};
use crate::rules::{Rule, Rules};
use crate::slots::{SlotDecision, SlotError, SlotRefusal};

impl State {
    /// Executes a command of a slot, or finds its reply (L5).
    pub(super) fn in_slot(
        &mut self,
        rules: Rules,
        client: ClientId,
        slot: SlotId,
        sequence: Sequence,
        operation: &Operation,
    ) -> Outcome {
        match self.slots.begin(rules, client, slot, sequence) {
            SlotDecision::Refused(refusal) => Err(refuse(refusal)),
            SlotDecision::Replay(bytes) => decode_reply(&bytes).map_err(|_| Refusal::ReplyTooLong),
            SlotDecision::Execute => {
                let aborts_itself =
                    matches!(operation, Operation::Abort { slot: other, .. } if *other == slot);
                let outcome = if aborts_itself {
                    Err(Refusal::Slot(SlotRefusal::UnderWay(sequence)))
                } else {
                    self.operate(rules, client, operation)
                };
                Ok(self.keep(client, slot, sequence, outcome.unwrap_or_else(Reply::Refused)))
            }
        }
    }

    /// Keeps a reply in its slot. A reply that cannot be kept is not given either: its copy could not be given again.
    fn keep(&mut self, client: ClientId, slot: SlotId, sequence: Sequence, reply: Reply) -> Reply {
        let bytes = encode_reply(&reply).unwrap_or_default();
        match self.slots.finish(client, slot, sequence, bytes) {
            // A client that has just left has no slots any more.
            Ok(()) | Err(SlotError::NotUnderWay { .. }) => reply,
            Err(_) => {
                let reply = Reply::Refused(Refusal::ReplyTooLong);
                let bytes = encode_reply(&reply).unwrap_or_default();
                let _short = self.slots.finish(client, slot, sequence, bytes);
                reply
            }
        }
    }

    /// Makes sure that a command is never applied, unless it has been (L7): whichever is applied first wins, and the
    /// slot remembers it.
    pub(super) fn abort(
        &mut self,
        rules: Rules,
        client: ClientId,
        slot: SlotId,
        sequence: Sequence,
    ) -> Outcome {
        match self.slots.begin(rules, client, slot, sequence) {
            SlotDecision::Refused(refusal) => Err(refuse(refusal)),
            SlotDecision::Replay(bytes) => Ok(Reply::Abort(match decode_reply(&bytes) {
                Ok(Reply::Refused(Refusal::Aborted)) => AbortOutcome::Aborted,
                _ => AbortOutcome::Applied(bytes),
            })),
            SlotDecision::Execute => {
                if rules.keeps(Rule::L7) {
                    self.keep(client, slot, sequence, Reply::Refused(Refusal::Aborted));
                } else {
                    let _begun = self.slots.abandon(client, slot, sequence);
                }
                Ok(Reply::Abort(AbortOutcome::Aborted))
            }
        }
    }
}

fn refuse(refusal: SlotRefusal) -> Refusal {
    match refusal {
        SlotRefusal::ClientEnded(client) => Refusal::ClientEnded(client),
        other => Refusal::Slot(other),
    }
}
