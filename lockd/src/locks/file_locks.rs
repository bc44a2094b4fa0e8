//! The lock table of one process, with callbacks for whoever waits.

use std::collections::BTreeMap;
use std::fmt;

use parking_lot::Mutex;

use super::error::LockError;
use super::lock::{Conflict, Listed, LockEvent, LockLimits, LockOutcome, LockOwner, LockRequest};
use super::range::ByteRange;
use super::table::LockTable;
use crate::ids::{ClientId, GrantId, Ticket};

/// The answer to a lock request.
pub type LockReply = Result<GrantId, LockError>;

/// What is called with the answer, once, on any thread, with no lock held. It may use the table again.
pub type OnLockReply = Box<dyn FnOnce(LockReply) + Send>;

/// The file locks of one process, by inode number.
pub struct FileLocks {
    state: Mutex<State>,
}

struct State {
    table: LockTable<u64>,
    waiting: BTreeMap<Ticket, OnLockReply>,
}

/// Answers that are due, called when the mutex is free again.
type Answers = Vec<(OnLockReply, LockReply)>;

impl FileLocks {
    /// An empty table.
    #[must_use]
    pub fn new(limits: LockLimits) -> Self {
        Self { state: Mutex::new(State { table: LockTable::new(limits), waiting: BTreeMap::new() }) }
    }

    /// Asks for a lock. `on_reply` is called exactly once: before this returns, or, with `wait`, when the lock is
    /// granted or the waiting ends. Returns the ticket by which the waiting can be cancelled, if the request waits; by
    /// the time the caller has it, the answer may already be on its way.
    pub fn set(&self, ino: u64, request: LockRequest, wait: bool, on_reply: OnLockReply) -> Option<Ticket> {
        self.with(|state, answers| {
            let mut events = Vec::new();
            let ticket = match state.table.set(&ino, request, wait, &mut events) {
                LockOutcome::Granted(grant) => {
                    answers.push((on_reply, Ok(grant)));
                    None
                }
                LockOutcome::Refused(error) => {
                    answers.push((on_reply, Err(error)));
                    None
                }
                LockOutcome::Waiting(ticket) => {
                    state.waiting.insert(ticket, on_reply);
                    Some(ticket)
                }
            };
            state.answer(events, answers);
            ticket.filter(|ticket| state.waiting.contains_key(ticket))
        })
    }

    /// Ends the waiting of a request, whose callback then gets [`LockError::Interrupted`]. False if it does not wait
    /// any more: its callback has got its answer, or is getting it.
    pub fn cancel(&self, ticket: Ticket) -> bool {
        self.change(|table, events| table.cancel(ticket, events))
    }

    /// The first lock that keeps `request` from being granted, if any (`F_GETLK`).
    #[must_use]
    pub fn test(&self, ino: u64, request: LockRequest) -> Option<Conflict> {
        self.state.lock().table.test(&ino, request)
    }

    /// Ends what `owner` holds of `range`.
    ///
    /// # Errors
    /// [`LockError::TooManyLocks`] when the unlock splits a lock and the client holds as many as it may.
    pub fn unlock(&self, ino: u64, owner: LockOwner, range: ByteRange) -> Result<(), LockError> {
        self.change(|table, events| table.unlock(&ino, owner, range, None, events))
    }

    /// Ends all that `owner` holds on `ino`: at FLUSH for a POSIX owner, at RELEASE for an open file. Requests of that
    /// owner that wait (other threads) wait on.
    pub fn release_owner(&self, ino: u64, owner: LockOwner) {
        self.change(|table, events| table.release_owner(&ino, owner, events));
    }

    /// Ends all locks and waiting requests of `client`; the latter are answered [`LockError::ClientEnded`].
    pub fn end_client(&self, client: ClientId) {
        self.change(|table, events| table.end_client(client, events));
    }

    /// Every lock and every waiting request.
    #[must_use]
    pub fn list(&self) -> Vec<Listed<u64>> {
        self.state.lock().table.list().collect()
    }

    fn change<T>(&self, change: impl FnOnce(&mut LockTable<u64>, &mut Vec<LockEvent>) -> T) -> T {
        self.with(|state, answers| {
            let mut events = Vec::new();
            let result = change(&mut state.table, &mut events);
            state.answer(events, answers);
            result
        })
    }

    /// Runs `act` under the mutex, and the answers that it collects after it.
    fn with<T>(&self, act: impl FnOnce(&mut State, &mut Answers) -> T) -> T {
        let mut answers = Answers::new();
        let result = act(&mut self.state.lock(), &mut answers);
        for (on_reply, reply) in answers {
            on_reply(reply);
        }
        result
    }
}

impl State {
    fn answer(&mut self, events: Vec<LockEvent>, answers: &mut Answers) {
        for LockEvent { ticket, reply } in events {
            let on_reply = self.waiting.remove(&ticket);
            answers.push((on_reply.expect("every ticket has a callback until its one event"), reply));
        }
    }
}

impl Default for FileLocks {
    fn default() -> Self {
        Self::new(LockLimits::default())
    }
}

impl fmt::Debug for FileLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("FileLocks").field("table", &state.table).finish_non_exhaustive()
    }
}
