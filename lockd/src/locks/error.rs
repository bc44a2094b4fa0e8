//! Why a lock was not granted.

use bincode::{Decode, Encode};

use super::lock::Conflict;
use crate::ids::ClientId;

/// Why a lock request was refused, or stopped waiting.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode, thiserror::Error)]
pub enum LockError {
    /// The request would have to wait and must not (EAGAIN).
    #[error("the {0} is in the way; wait for it or try again later")]
    WouldBlock(Conflict),
    /// The request would wait, directly or through others, for its own owner (EDEADLK).
    #[error(
        "the lock would never be granted: its holder waits for a lock of the caller; unlock that one first"
    )]
    Deadlock,
    /// The client holds as many locks as it may (ENOLCK). Also an unlock can need one more, when it splits a lock.
    #[error("{client} has reached its limit of {limit} file locks; unlock some")]
    TooManyLocks {
        /// Which client.
        client: ClientId,
        /// How many it may hold.
        limit: u32,
    },
    /// As many of the client's requests wait as may (ENOLCK).
    #[error("{client} has reached its limit of {limit} waiting lock requests; try again later")]
    TooManyWaiters {
        /// Which client.
        client: ClientId,
        /// How many may wait.
        limit: u32,
    },
    /// The waiting was given up on request (EINTR).
    #[error("waiting for the lock was interrupted")]
    Interrupted,
    /// The client ended while its request waited.
    #[error("{0} has ended; its lock requests are void")]
    ClientEnded(ClientId),
}
