//! What the coordinator asks of a node.
//!
//! Calls are repeated until they are answered, and may arrive late and more than once: each of them may be executed
//! again without harm.

use bincode::{Decode, Encode};
use lockd::ids::{ClientId, Epoch, SessionId};

use crate::refusal::Refusal;
use crate::types::Ino;

/// Something that a node may keep under a lease (V9).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub enum Key {
    /// What a name stands for, or that it is absent.
    Name {
        /// The directory.
        parent: Ino,
        /// The name.
        name: Vec<u8>,
    },
    /// The attributes of an inode.
    Attr(Ino),
    /// The layout of a sealed file, by which its data is read directly (V8).
    Layout(Ino),
}

/// A call of a client's node.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Call {
    /// Who is called.
    pub client: ClientId,
    /// The epoch in which the coordinator serves.
    pub coordinator: Epoch,
    /// What is asked.
    pub what: Callback,
}

/// What the coordinator asks.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Callback {
    /// Forget these; answers to questions that are under way are not to be kept either (V9).
    Invalidate {
        /// What.
        keys: Vec<Key>,
    },
    /// Stop serving a file: drain, flush, commit, and give it back. Answer: `Yielded`.
    Yield {
        /// The file.
        ino: Ino,
        /// The term of service that is to end.
        tenure: u64,
        /// Only if no handle of this node uses the file for writing, and it is not pinned.
        soft: bool,
        /// Who serves it next, and is to have the ownership; none if nobody is.
        next: Option<(SessionId, ClientId)>,
    },
}

/// A node's answer to a call.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum CallAnswer {
    /// It is done.
    Done,
    /// The file is not served here any more; the slots of its remote users, if it was.
    Yielded {
        /// See [`super::Operation::Close`].
        slots: Vec<u8>,
    },
    /// It cannot be done.
    Refused(Refusal),
}
