//! Reply slots (L5, V4): a repeated command gets the reply of its first execution.

use std::collections::HashMap;

use lockd::ids::{ClientId, Sequence, SlotId};

/// Slots that one client may use.
pub const SLOTS_MAX: u32 = 1024;

/// What a client's slot remembers: its last command and the reply's frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// The last command.
    pub sequence: Sequence,
    /// Its reply.
    pub reply: Vec<u8>,
}

/// What to do with a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Execute it. Its client has seen the replies to all earlier ones of the slot.
    Execute,
    /// It was executed: its reply is in the slot.
    Repeat,
    /// A later one was executed: nobody waits for this one any more.
    Stale,
}

/// Decides by the slot's last sequence. Gaps are allowed: what changes nothing durable leaves no mark in the slot.
pub fn decide(last: Option<Sequence>, sequence: Sequence) -> Decision {
    match last {
        Some(last) if sequence == last => Decision::Repeat,
        Some(last) if sequence < last => Decision::Stale,
        _ => Decision::Execute,
    }
}

/// The slots that this process has used; what is not here may be in the store.
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
