//! The reply slots of all clients, in memory.

use std::collections::{BTreeMap, BTreeSet};

use bincode::de::{BorrowDecoder, Decoder};
use bincode::error::DecodeError;
use bincode::{BorrowDecode, Decode, Encode};

use super::decision::{SlotDecision, SlotRefusal, decide};
use super::{CLIENTS_MAX, REPLY_BYTES_MAX, SLOTS_PER_CLIENT};
use crate::ids::{ClientId, Sequence, SlotId};
use crate::rules::{Rule, Rules};

/// What a slot remembers.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
struct Slot {
    /// The last executed command and its reply.
    last: Option<(Sequence, Vec<u8>)>,
    /// The command that is being executed.
    under_way: Option<Sequence>,
}

/// Why the table was not changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SlotError {
    /// A reply that no slot can keep. The command is still under way: finish it with a shorter reply, an error.
    #[error("a reply of {0} bytes is longer than a slot keeps ({REPLY_BYTES_MAX}); answer in parts")]
    ReplyTooLong(usize),
    /// The command was not begun, or its client has ended since.
    #[error("command {sequence} in {slot} of {client} is not under way; its reply goes nowhere")]
    NotUnderWay {
        /// Whose.
        client: ClientId,
        /// In which slot.
        slot: SlotId,
        /// Which.
        sequence: Sequence,
    },
    /// As many clients are registered as can be.
    #[error("{CLIENTS_MAX} clients are registered and no more can be; end some")]
    TooManyClients,
    /// The client's id was used before.
    #[error("{0} is registered already; the id of a client is never used again")]
    Registered(ClientId),
}

/// The reply slots of all registered clients. A client that has ended is not in the table, and its commands are refused;
/// ids are never used again, so that nothing needs to be remembered of it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode)]
pub struct SlotTable {
    clients: BTreeMap<ClientId, BTreeMap<SlotId, Slot>>,
}

impl SlotTable {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a client, all of whose slots are new.
    ///
    /// # Errors
    /// If the table is full, or the client is in it.
    pub fn add_client(&mut self, client: ClientId) -> Result<(), SlotError> {
        if self.clients.contains_key(&client) {
            return Err(SlotError::Registered(client));
        }
        if self.clients.len() >= CLIENTS_MAX {
            return Err(SlotError::TooManyClients);
        }
        self.clients.insert(client, BTreeMap::new());
        Ok(())
    }

    /// Forgets a client; commands of it that are still under way somewhere are refused.
    pub fn end_client(&mut self, client: ClientId) {
        self.clients.remove(&client);
    }

    /// A command has come: what to do with it (L5). If it is [`SlotDecision::Execute`], [`SlotTable::finish`] or
    /// [`SlotTable::abandon`] must follow.
    pub fn begin(
        &mut self,
        rules: Rules,
        client: ClientId,
        slot: SlotId,
        sequence: Sequence,
    ) -> SlotDecision {
        if slot.0 >= SLOTS_PER_CLIENT {
            return SlotDecision::Refused(SlotRefusal::NoSuchSlot(slot));
        }
        let Some(slots) = self.clients.get_mut(&client) else {
            return SlotDecision::Refused(SlotRefusal::ClientEnded(client));
        };
        let known = slots.get(&slot);
        let last = known.and_then(|slot| slot.last.as_ref());
        let decision = decide(rules, last.map(|(last, reply)| (*last, reply.as_slice())), sequence);
        if decision == SlotDecision::Execute {
            let slot = slots.entry(slot).or_default();
            if rules.keeps(Rule::L5) && slot.under_way == Some(sequence) {
                return SlotDecision::Refused(SlotRefusal::UnderWay(sequence));
            }
            slot.under_way = Some(sequence);
        }
        decision
    }

    /// Keeps the reply of a command that was executed.
    ///
    /// # Errors
    /// If the reply is too long, or no such command is under way.
    pub fn finish(
        &mut self,
        client: ClientId,
        slot: SlotId,
        sequence: Sequence,
        reply: Vec<u8>,
    ) -> Result<(), SlotError> {
        if reply.len() > REPLY_BYTES_MAX {
            return Err(SlotError::ReplyTooLong(reply.len()));
        }
        let under_way = self.under_way(client, slot, sequence)?;
        *under_way = Slot { last: Some((sequence, reply)), under_way: None };
        Ok(())
    }

    /// A command that was begun has not been executed, for certain: it may come again.
    ///
    /// # Errors
    /// If no such command is under way.
    pub fn abandon(&mut self, client: ClientId, slot: SlotId, sequence: Sequence) -> Result<(), SlotError> {
        self.under_way(client, slot, sequence)?.under_way = None;
        Ok(())
    }

    /// The registered clients.
    #[must_use]
    pub fn clients(&self) -> BTreeSet<ClientId> {
        self.clients.keys().copied().collect()
    }

    fn under_way(
        &mut self,
        client: ClientId,
        slot: SlotId,
        sequence: Sequence,
    ) -> Result<&mut Slot, SlotError> {
        let slots = self.clients.get_mut(&client).and_then(|slots| slots.get_mut(&slot));
        let under_way = slots.filter(|known| known.under_way == Some(sequence));
        under_way.ok_or(SlotError::NotUnderWay { client, slot, sequence })
    }
}

impl<Context> Decode<Context> for SlotTable {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let clients: BTreeMap<ClientId, BTreeMap<SlotId, Slot>> = Decode::decode(decoder)?;
        if clients.len() > CLIENTS_MAX {
            return Err(DecodeError::Other("the slot table has more clients than its limit"));
        }
        for (id, slot) in clients.values().flatten() {
            if id.0 >= SLOTS_PER_CLIENT {
                return Err(DecodeError::Other("the slot table has a slot that no client has"));
            }
            let last = slot.last.as_ref();
            if last.is_some_and(|(_, reply)| reply.len() > REPLY_BYTES_MAX) {
                return Err(DecodeError::Other("the slot table has a reply that is too long"));
            }
        }
        Ok(Self { clients })
    }
}

impl<'de, Context> BorrowDecode<'de, Context> for SlotTable {
    fn borrow_decode<D: BorrowDecoder<'de, Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Decode::decode(decoder)
    }
}
