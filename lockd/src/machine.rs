//! The replicated state machine: who lives, who holds what, which locks are held, and what happened.
//!
//! [`State::apply`] is a pure function of the state, a command, and the time that the leader put into the command's log
//! entry. It reads no clock and draws no random number, its iteration order is fixed, it never panics, and everything
//! that it keeps is bounded: so every voter that applies the same entries has the same state, byte for byte.
//!
//! What is *decided* elsewhere comes in as a command: that a session's lease has run out (the leader, by [`Lapse`]), that
//! a process is dead (its local lockd), that a victim is fenced or a request drained (whoever did it).
//!
//! - [`Command`] and [`Operation`] are what can be asked for, [`Reply`] and [`Refusal`] the answers. Operations come in a
//!   client's reply slots (L5) and take effect once.
//! - [`Event`]s tell what has changed, with a rising index; a bounded window of them is kept in the state.
//! - [`Query`] reads the state, after the leader was confirmed (L4).
//! - [`State::check`] looks at every invariant; tests call it after each step.
//!
//! **The time of an entry** is the cluster's own: it must never run faster than real time, also not across a change of
//! leader, because waiting times (lease + grace) are counted in it. A leader that takes office goes on from the last
//! entry's time by its own `CLOCK_BOOTTIME`.

mod bounds;
mod breaks;
mod check;
mod codec;
mod command;
mod event;
mod events;
mod fences;
mod holdings;
mod lapse;
mod locking;
mod once;
mod queries;
mod query;
mod reply;
mod sessions;
mod snapshot;
mod state;
mod transfer;

#[cfg(test)]
mod tests;

pub use bounds::*;
pub use codec::{CodecError, decode_command, decode_reply, encode_command, encode_reply};
pub use command::{
    BreakTarget, ClientKind, Command, Cookie, EndCause, FenceMethod, HoldMode, Move, Nonce, Operation,
    Report, Settings, Victim,
};
pub use event::{Audience, Event, EventIndex, EventKind};
pub use lapse::Lapse;
pub use query::{
    Answer, BreakRecord, ClientInfo, ClientState, EscrowInfo, FenceInfo, HolderInfo, HolderState, LockInfo,
    Query, ResourceInfo, SessionInfo, SessionState, VolumeInfo,
};
pub use reply::{AbortOutcome, Refusal, Reply};
pub use snapshot::SnapshotError;
pub use state::State;
