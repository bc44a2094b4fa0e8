//! What to do with a command, given what its slot remembers.

use bincode::{Decode, Encode};

use crate::ids::{ClientId, Sequence, SlotId};
use crate::rules::{Rule, Rules};

use super::SLOTS_PER_CLIENT;

/// What to do with a command.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum SlotDecision {
    /// It is new: execute it, and keep its reply.
    Execute,
    /// It was executed before: this was the reply.
    Replay(Vec<u8>),
    /// Do not execute it.
    Refused(SlotRefusal),
}

/// Why a command is not executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode, thiserror::Error)]
pub enum SlotRefusal {
    /// A later command of the slot was executed: this one is a late copy, whose reply the client has had.
    #[error("command {asked} is older than the slot's last, {last}; it was answered long ago")]
    Old {
        /// The command's sequence.
        asked: Sequence,
        /// The slot's last.
        last: Sequence,
    },
    /// Commands between the slot's last and this one are missing: the client has lost count.
    #[error("command {asked} skips: the slot's last was {last}; the client must register anew")]
    Skips {
        /// The command's sequence.
        asked: Sequence,
        /// The slot's last; 0 if it has had none.
        last: Sequence,
    },
    /// An earlier copy of the command is being executed.
    #[error("command {0} is being executed; its reply is on its way, or ask again")]
    UnderWay(Sequence),
    /// No client has this slot.
    #[error("there is no {0}; slots are numbered from 0 to {last}", last = SLOTS_PER_CLIENT - 1)]
    NoSuchSlot(SlotId),
    /// The client has ended, or was never registered here.
    #[error("{0} has ended; mount again")]
    ClientEnded(ClientId),
}

/// What to do with command `asked` of a slot whose last executed command and its reply are `stored`.
///
/// This is rule L5; with it switched off, everything is executed.
#[must_use]
pub fn decide(rules: Rules, stored: Option<(Sequence, &[u8])>, asked: Sequence) -> SlotDecision {
    if !rules.keeps(Rule::L5) {
        return SlotDecision::Execute;
    }
    let (last, reply) = stored.unwrap_or((Sequence(0), &[]));
    match asked.0.checked_sub(last.0) {
        None => SlotDecision::Refused(SlotRefusal::Old { asked, last }),
        Some(0) if stored.is_some() => SlotDecision::Replay(reply.to_vec()),
        Some(1) => SlotDecision::Execute,
        Some(_) => SlotDecision::Refused(SlotRefusal::Skips { asked, last }),
    }
}
