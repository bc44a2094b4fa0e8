//! The messages between a node and its volume's coordinator.
//!
//! The same frames go through the codec whether the two are in one process or on two machines. Control messages are
//! bincode behind [`codec`], so that replacing it is a change in one file; file data never travels in them.

mod callback;
pub mod codec;
mod operation;
mod reply;

use bincode::{Decode, Encode};
use lockd::ids::{ClientId, Epoch, Sequence, SessionId, SlotId};

pub use callback::{Call, CallAnswer, Callback, Key, Next};
pub use operation::{
    Allocation, Bequest, Claim, CommitPart, Created, Declared, FileSlots, Kept, Operation, RenameMode,
    Served, SetAttr, WrittenRun, XattrMode,
};
pub use reply::{Answer, Answered, LayoutPart, OpenedFile, Term};

use crate::refusal::Refusal;
use crate::types::Ino;

/// The version of the messages; the first byte of each frame.
pub const VERSION: u8 = 6;

/// The slot in which a client attaches: beyond those of its other requests, of which all may be waiting for that.
pub const ATTACH_SLOT: SlotId = SlotId(lockd::slots::SLOTS_PER_CLIENT);

/// Who asks, and in which slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Head {
    /// The session under which the client lives.
    pub session: SessionId,
    /// The asking client.
    pub client: ClientId,
    /// The epoch in which the client knows the coordinator.
    pub coordinator: Epoch,
    /// The client's reply slot; none for questions, which may be asked twice.
    pub slot: Option<(SlotId, Sequence)>,
}

/// A file that the asking client owns, and in which epoch: the fencing token of what it asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Owned {
    /// The file.
    pub ino: Ino,
    /// The epoch of the ownership.
    pub epoch: Epoch,
}

/// A request to the coordinator.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Request {
    /// Who asks.
    pub head: Head,
    /// What is asked.
    pub operation: Operation,
}

/// The coordinator's reply.
pub type Reply = Result<Answer, Refusal>;
