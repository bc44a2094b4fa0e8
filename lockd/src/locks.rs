//! Locks on files: POSIX record locks (fcntl), locks of open file descriptions (OFD), and flock.
//!
//! [`LockTable`] decides and does nothing else: no clock, no callback, no I/O. What it decides comes out as values, so
//! that the same table serves a mount without a cluster and, as part of the replicated state, a whole cluster. Its
//! iteration order is fixed, it is encoded whole, and it is bounded. [`FileLocks`] is the table of one process: a mutex
//! around it, and whoever waits is called back.
//!
//! What is decided follows Linux (`fs/locks.c`):
//! - POSIX and OFD locks live in one space and conflict with each other; flock has a space of its own. An owner never
//!   conflicts with itself: a new lock replaces what it overlaps of the same owner, splitting what sticks out.
//! - To change the mode of a flock drops the old lock first, so that a refused or interrupted change leaves none.
//! - A POSIX request that could only be granted after its own owner lets go of something is refused
//!   ([`LockError::Deadlock`]), over all files of the table. OFD and flock requests are not: their owners are open
//!   files, which wait for nothing.
//!
//! Where Linux wakes all waiters and lets them race, this table is fair: requests for the same bytes are granted in the
//! order in which they came, and a request that need not wait does not overtake one that does. The exception keeps
//! fairness from making deadlocks of its own: a request passes those that wait, directly or through others, for its
//! owner. Who holds a lock can thus always change or extend it when no other *holder* stands in the way.
//!
//! Neighbouring locks of one owner are shown as one ([`LockTable::test`]), but kept apart by their grants: an unlock
//! can name the newest grant that it means (L8), and one that comes late then leaves newer grants alone.

mod codec;
mod custody;
mod error;
mod file_locks;
mod held;
mod index;
mod lock;
mod range;
mod resource;
mod table;
mod waits;

#[cfg(test)]
mod file_locks_tests;
#[cfg(test)]
mod kernel_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

pub use crate::ids::{GrantId, Ticket};
pub use custody::Grants;
pub use error::LockError;
pub use file_locks::{FileLocks, LockReply, OnLockReply};
pub use lock::{
    Conflict, Listed, LockEvent, LockKind, LockLimits, LockMode, LockOutcome, LockOwner, LockRequest,
    LockState,
};
pub use range::ByteRange;
pub use table::LockTable;
