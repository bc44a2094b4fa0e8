//! Reply slots (L5, V4): a repeated command gets the reply of its first execution.

use std::collections::HashMap;

use lockd::ids::{ClientId, Sequence, SlotId};
use lockd::rules::Rules;
use lockd::slots::{SlotDecision, SlotRefusal};

/// What a client's slot remembers: its last command and the reply's frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// The last command.
    pub sequence: Sequence,
    /// Its reply.
    pub reply: Vec<u8>,
}

/// Decides as [`lockd::slots::decide`] does, but lets commands be left out: opens, and refusals that a coordinator
/// before this one gave, leave no mark in the store.
pub fn decide(rules: Rules, last: Option<&Slot>, asked: Sequence) -> SlotDecision {
    let stored = last.map(|slot| (slot.sequence, slot.reply.as_slice()));
    match lockd::slots::decide(rules, stored, asked) {
        SlotDecision::Refused(SlotRefusal::Skips { .. }) => SlotDecision::Execute,
        decision => decision,
    }
}

/// The slots that this process has used; what is not here may be in the store. Bounded by the number of clients and
/// [`lockd::slots::SLOTS_PER_CLIENT`].
#[derive(Debug, Default)]
pub struct Cache {
    slots: HashMap<(ClientId, SlotId), Slot>,
}

impl Cache {
    /// The slot, if it is here.
    pub fn get(&self, client: ClientId, slot: SlotId) -> Option<&Slot> {
        self.slots.get(&(client, slot))
    }

    /// Remembers a reply.
    pub fn put(&mut self, client: ClientId, slot: SlotId, sequence: Sequence, reply: Vec<u8>) {
        self.slots.insert((client, slot), Slot { sequence, reply });
    }

    /// Forgets a client's slots.
    pub fn forget(&mut self, client: ClientId) {
        self.slots.retain(|(owner, _), _| *owner != client);
    }
}
