//! What a frame is for.

use std::fmt;

/// What a frame is for: who among the programs of a node answers it. One byte on the wire; the numbers are never used
/// for something else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Channel {
    /// The consensus of lockd's voters.
    Raft = 1,
    /// Commands, queries and keep-alives of lockd; requests forwarded to holders.
    Control = 2,
    /// Operations on files: node to coordinator, node to owner.
    File = 3,
    /// Blocks of the LUN, carried for a node that has lost its own path.
    Block = 4,
    /// Migration of virtual machines.
    Migrate = 5,
}

impl Channel {
    /// Every channel.
    pub const ALL: [Self; 5] = [Self::Raft, Self::Control, Self::File, Self::Block, Self::Migrate];

    /// The channel's byte on the wire.
    #[must_use]
    pub const fn byte(self) -> u8 {
        self as u8
    }

    /// The channel of a byte from the wire.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|channel| channel.byte() == byte)
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raft => "raft",
            Self::Control => "control",
            Self::File => "file",
            Self::Block => "block",
            Self::Migrate => "migrate",
        })
    }
}
