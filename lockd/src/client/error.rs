//! Why the control plane did not do what it was asked.

use std::path::PathBuf;
use std::time::Duration;

use crate::ids::SessionId;
use crate::lease::LeasePageError;
use crate::local::message::Failure;
use crate::machine::{CodecError, Refusal};
use crate::slots::NoSlot;

/// Why the control plane did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Lockd is not there, and was not for as long as the caller would wait.
    #[error("no lockd answers on {socket} ({why}); start lockd on this node")]
    NotThere {
        /// Its socket.
        socket: PathBuf,
        /// What the last attempt met.
        why: String,
    },
    /// No majority of the voters could be reached in time. What was asked for may be done later.
    #[error("no quorum: {0}")]
    NoQuorum(String),
    /// No answer in time.
    #[error("no answer from lockd within {0:?}; what was asked for may have been done, or be done later")]
    TimedOut(Duration),
    /// The client's session has ended.
    #[error("session {0} has ended; unmount and mount again")]
    SessionEnded(SessionId),
    /// The cluster refuses, and nothing has changed.
    #[error(transparent)]
    Refused(#[from] Box<Refusal>),
    /// Lockd or the one that was asked refuses; the text says why.
    #[error("{0}")]
    Failed(String),
    /// The command cannot be sent.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
    /// A message is too long, or of another release.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The lease cannot be seen.
    #[error(transparent)]
    Lease(#[from] LeasePageError),
    /// An answer of a kind that does not belong to the question.
    #[error("lockd gave an answer that does not belong to the question; use programs of one release")]
    Unexpected,
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// This client of lockd has been closed.
    #[error("the connection to lockd has been closed by this program")]
    Closed,
}

impl From<Failure> for ClientError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NoQuorum(why) => Self::NoQuorum(why),
            Failure::SessionEnded(session) => Self::SessionEnded(session),
            Failure::Refused(why) => Self::Failed(why),
        }
    }
}
