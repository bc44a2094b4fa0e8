//! The state that is replicated.

use std::error::Error;
use std::fmt::Debug;

/// A deterministic state machine: the same commands at the same times give the same state and the same outputs on
/// every voter. It does no I/O, reads no clock and draws no random number.
pub trait Machine: Send + Sync + Sized + Debug + 'static {
    /// What a command makes known beside its reply, to whoever it concerns.
    type Event: Send + Sync + Debug + 'static;

    /// Applies one command. `time_ns` is the cluster's time in nanoseconds ([`crate::raft::ClusterTime`]): it is
    /// higher for each command than for the one before it, by no more than really passed between the two (and a
    /// nanosecond), so that waiting times may be counted in it.
    ///
    /// A command that cannot be decoded is answered, not refused: it is in the log already.
    fn apply(&mut self, time_ns: u64, command: &[u8]) -> Output<Self::Event>;

    /// The whole state as bytes, with the version of their format in them.
    fn snapshot(&self) -> Vec<u8>;

    /// The state that [`snapshot`](Self::snapshot) wrote.
    ///
    /// # Errors
    /// When the bytes are not a snapshot that this version of the program reads; the text says so to an operator.
    fn restore(bytes: &[u8]) -> Result<Self, Box<dyn Error + Send + Sync>>;
}

/// What came of a command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Output<E> {
    /// For the one who proposed it.
    pub reply: Vec<u8>,
    /// For those who are concerned, in order.
    pub events: Vec<E>,
}

impl<E> Output<E> {
    /// A reply without events.
    #[must_use]
    pub fn reply(reply: Vec<u8>) -> Self {
        Self { reply, events: Vec::new() }
    }
}
