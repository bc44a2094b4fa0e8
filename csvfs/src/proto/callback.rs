//! What the coordinator asks of a node.
//!
//! Calls are repeated until they are answered, and may arrive late and more than once: each of them may be executed
//! again without harm.

use bincode::{Decode, Encode};
use lockd::ids::{ClientId, Epoch, SessionId};
use lockd::machine::Cookie;

use super::FileSlots;
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
    /// All names of a directory: any other is absent.
    Names(Ino),
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
    /// Stop serving files: drain, flush, commit, and give them away, all or none. Answer: `Yielded`.
    Yield {
        /// The number of this journey: never used for another.
        journey: u64,
        /// The files, and the terms of service that are to end.
        files: Vec<(Ino, u64)>,
        /// Only if no handle of this node uses a file for writing.
        soft: bool,
        /// Who is to have the ownership; none: nobody, and the coordinator's node serves.
        next: Option<Next>,
    },
}

/// The next owner of files.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Next {
    /// Its session.
    pub session: SessionId,
    /// Who.
    pub client: ClientId,
    /// It keeps them until they are released explicitly.
    pub pinned: bool,
    /// It names this offer of the server's.
    pub offer: Option<Cookie>,
}

/// A node's answer to a call.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum CallAnswer {
    /// It is done.
    Done,
    /// The files have gone to the next owner.
    Yielded {
        /// The epoch of the ownership, if somebody has it.
        epoch: Option<Epoch>,
        /// The slots of remote users, where there are any and they have not been handed over before.
        slots: Vec<FileSlots>,
    },
    /// It cannot be done.
    Refused(Refusal),
}
