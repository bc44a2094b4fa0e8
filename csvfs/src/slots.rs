//! Reply slots (L5, V4), of the coordinator and of the servers of files: a repeated command gets the reply of its first
//! execution.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};
use lockd::ids::{ClientId, Sequence, SlotId};
use lockd::rules::Rules;
use lockd::slots::{SlotDecision, SlotRefusal};

/// What a client's slot remembers: its last command and the reply's frame.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Slot {
    /// The last command.
    pub sequence: Sequence,
    /// Its reply.
    pub reply: Vec<u8>,
}

/// What to do with a command that changes only memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Begun {
    /// It is new: execute it, and call [`Cache::put`].
    Execute,
    /// It was executed; its reply.
    Repeated(Vec<u8>),
    /// It is being executed.
    UnderWay,
    /// It is a late copy of an older one.
    Refused(SlotRefusal),
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
    slots: BTreeMap<(ClientId, SlotId), Slot>,
    /// Commands that change only memory and have not been answered.
    under_way: BTreeMap<(ClientId, SlotId), Sequence>,
}

impl Cache {
    /// The slot, if it is here.
    pub fn get(&self, client: ClientId, slot: SlotId) -> Option<&Slot> {
        self.slots.get(&(client, slot))
    }

    /// Remembers a reply.
    pub fn put(&mut self, client: ClientId, slot: SlotId, sequence: Sequence, reply: Vec<u8>) {
        if self.under_way.get(&(client, slot)) == Some(&sequence) {
            self.under_way.remove(&(client, slot));
        }
        self.slots.insert((client, slot), Slot { sequence, reply });
    }

    /// A command that changes only memory has come.
    pub fn begin(&mut self, rules: Rules, client: ClientId, slot: SlotId, sequence: Sequence) -> Begun {
        let key = (client, slot);
        match decide(rules, self.slots.get(&key), sequence) {
            SlotDecision::Replay(reply) => Begun::Repeated(reply),
            SlotDecision::Refused(refusal) => Begun::Refused(refusal),
            SlotDecision::Execute => match self.under_way.get(&key) {
                Some(running) if *running == sequence => Begun::UnderWay,
                Some(running) if *running > sequence => {
                    Begun::Refused(SlotRefusal::Old { asked: sequence, last: *running })
                }
                _ => {
                    self.under_way.insert(key, sequence);
                    Begun::Execute
                }
            },
        }
    }

    /// What has been executed, to be handed on: nothing is under way.
    pub fn export(&self) -> Vec<(ClientId, SlotId, Slot)> {
        self.slots.iter().map(|((client, slot), kept)| (*client, *slot, kept.clone())).collect()
    }

    /// What another has executed; what is here and newer stays.
    pub fn import(&mut self, slots: Vec<(ClientId, SlotId, Slot)>) {
        for (client, slot, kept) in slots {
            let here = self.slots.get(&(client, slot));
            if here.is_none_or(|here| here.sequence < kept.sequence) {
                self.slots.insert((client, slot), kept);
            }
        }
    }

    /// Forgets a client's slots.
    pub fn forget(&mut self, client: ClientId) {
        self.slots.retain(|(owner, _), _| *owner != client);
        self.under_way.retain(|(owner, _), _| *owner != client);
    }
}
