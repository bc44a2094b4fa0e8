//! What a lock, a request for one, and the decision about it are.

use std::fmt;

use bincode::{Decode, Encode};

use super::error::LockError;
use super::range::ByteRange;
use crate::ids::{ClientId, GrantId, Ticket};

/// The three interfaces by which programs lock files.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub enum LockKind {
    /// A record lock of a process (fcntl `F_SETLK`, lockf).
    Posix,
    /// A record lock of an open file (fcntl `F_OFD_SETLK`).
    Ofd,
    /// A whole-file lock of an open file (flock).
    Flock,
}

impl LockKind {
    /// Whether locks of the two kinds can conflict: flock lives in a space of its own.
    #[must_use]
    pub const fn shares_space_with(self, other: Self) -> bool {
        matches!(self, Self::Flock) == matches!(other, Self::Flock)
    }
}

/// Who holds a lock or asks for one. Locks of one owner never conflict with each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub struct LockOwner {
    /// The client whose program this is.
    pub client: ClientId,
    /// By which interface.
    pub kind: LockKind,
    /// Which of that client's lock owners: FUSE's `lk_owner`, or the open file's handle.
    pub id: u64,
}

/// Whether a lock can be held by several owners.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub enum LockMode {
    /// By several, as long as none has it exclusively (`F_RDLCK`, `LOCK_SH`).
    Shared,
    /// By one (`F_WRLCK`, `LOCK_EX`).
    Exclusive,
}

impl fmt::Display for LockMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "shared",
            Self::Exclusive => "exclusive",
        })
    }
}

/// A lock that is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Decode)]
pub struct LockRequest {
    /// For whom.
    pub owner: LockOwner,
    /// The process, as `F_GETLK` shows it to others.
    pub pid: u32,
    /// How.
    pub mode: LockMode,
    /// Which bytes. For a flock always the whole file, whatever is said here.
    pub range: ByteRange,
}

impl LockRequest {
    /// The request with a flock's range set right.
    pub(super) fn normalised(self) -> Self {
        match self.owner.kind {
            LockKind::Flock => Self { range: ByteRange::WHOLE, ..self },
            LockKind::Posix | LockKind::Ofd => self,
        }
    }

    /// Whether the two cannot be granted together.
    pub(super) fn conflicts_with(&self, other: &Self) -> bool {
        self.owner != other.owner
            && self.owner.kind.shares_space_with(other.owner.kind)
            && self.range.overlaps(other.range)
            && (self.mode == LockMode::Exclusive || other.mode == LockMode::Exclusive)
    }
}

/// What stands in the way of a request: a lock of another owner, or another's earlier request that waits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Decode)]
pub struct Conflict {
    /// Whose it is.
    pub owner: LockOwner,
    /// Its mode.
    pub mode: LockMode,
    /// Its bytes.
    pub range: ByteRange,
    /// The process that set it.
    pub pid: u32,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lock of process {} of {} on {}", self.mode, self.pid, self.owner.client, self.range)
    }
}

/// How much one client may use of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct LockLimits {
    /// Locks held. A lock that is split counts twice, and so do neighbours that were granted one by one.
    pub locks_per_client: u32,
    /// Requests that wait.
    pub waiters_per_client: u32,
}

impl Default for LockLimits {
    fn default() -> Self {
        Self { locks_per_client: 65_536, waiters_per_client: 1_024 }
    }
}

/// What became of a request at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum LockOutcome {
    /// It is granted.
    Granted(GrantId),
    /// It waits; an event will tell of its ticket.
    Waiting(Ticket),
    /// It is refused.
    Refused(LockError),
}

/// What became of a request that waited. Each ticket has exactly one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct LockEvent {
    /// Which.
    pub ticket: Ticket,
    /// Granted, or why not.
    pub reply: Result<GrantId, LockError>,
}

/// Whether a listed lock is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum LockState {
    /// Held, by this grant.
    Held(GrantId),
    /// Waited for.
    Waiting(Ticket),
}

/// One line of a table's listing.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Listed<K> {
    /// The file.
    pub key: K,
    /// The lock.
    pub lock: LockRequest,
    /// Held or waited for.
    pub state: LockState,
}
