//! Exactly once: numbered reply slots (L5).
//!
//! A client has a few slots, and in each of them one command at a time. A command carries its slot and a sequence number
//! that is one higher than that of the slot's last command; by that, the client says that it has the last reply. Who
//! executes commands keeps each slot's last sequence and reply, so that a command that comes again, after a lost reply
//! or a change of leader, is answered and not executed a second time.
//!
//! [`decide`] is the rule by itself, for those who keep slots in a database; [`SlotTable`] keeps them in memory and is
//! part of a replicated state; [`SlotAllocator`] is the client's side.

mod allocator;
mod decision;
mod table;

#[cfg(test)]
mod tests;

pub use allocator::{NoSlot, SlotAllocator, SlotUse};
pub use decision::{SlotDecision, SlotRefusal, decide};
pub use table::{SlotError, SlotTable};

/// How many slots a client has: how many of its commands can be under way at once.
pub const SLOTS_PER_CLIENT: u32 = 64;

/// The longest reply that a slot keeps, in bytes.
pub const REPLY_BYTES_MAX: usize = 64 << 10;

/// How many clients a table knows at once.
pub const CLIENTS_MAX: usize = 4096;
