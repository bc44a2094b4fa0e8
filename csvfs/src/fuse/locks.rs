//! File locks as the kernel asks for them: fcntl's and flock's, the waiting and its interruption, and what ends them.
//!
//! - A request for a POSIX lock and one for an OFD lock look alike; only the owner differs: a process's table of open
//!   files, or one open file. Both are kept as POSIX locks (so that two open files which wait for each other are told
//!   EDEADLK, where a local file system lets them wait).
//! - A POSIX lock ends when its process closes any descriptor of the file: FLUSH, with the owner. An OFD lock ends when
//!   its open file does, and RELEASE does not name the owner: each handle's owners are remembered. An owner that was
//!   flushed is forgotten for every handle of the file, since from then on it is a process, and what it locks later
//!   through another handle must not end with this one.
//! - A flock ends with its open file: RELEASE says so, with the owner.
//! - A waiter holds no thread. INTERRUPT, which may come before the request that it means (by another thread) and
//!   after its answer, ends the waiting with EINTR.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use lockd::ids::{ClientId, Ticket};
use lockd::locks::{ByteRange, Conflict, LockError, LockKind, LockMode, LockOwner, LockReply, LockRequest};
use parking_lot::Mutex;

use super::abi::{FileLock, LK_FLOCK, LkIn, LkOut};
use super::reply::Reply;
use crate::lock_service::LockService;
use crate::refusal::Refusal;
use crate::service::HandleId;
use crate::types::Ino;

/// How many interrupts of unknown requests are remembered. The request of one of them is being read by another thread
/// at that moment, so that a few would do; the others are of requests that cannot be interrupted, and never come.
const EARLY_MAX: usize = 1024;

/// The last byte that a lock can cover, as the kernel has it.
const OFFSET_MAX: u64 = i64::MAX as u64;

/// The locks of one mount's programs.
#[derive(Debug)]
pub(super) struct Locks {
    table: Arc<dyn LockService>,
    client: ClientId,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiters: HashMap<u64, Waiter>,
    early_interrupts: VecDeque<u64>,
    owners: HashMap<Ino, Vec<(HandleId, u64)>>,
}

/// A request that may wait.
#[derive(Clone, Copy, Debug)]
enum Waiter {
    /// The table has not said yet.
    Asking,
    /// As before, and it is interrupted already.
    AskingInterrupted,
    /// It waits.
    Waiting(Ticket),
}

fn refusal(error: &LockError) -> Refusal {
    match error {
        LockError::WouldBlock(_) => Refusal::WouldBlock,
        LockError::Deadlock => Refusal::Deadlock,
        LockError::TooManyLocks { .. } | LockError::TooManyWaiters { .. } => Refusal::TooManyLocks,
        LockError::Interrupted => Refusal::Interrupted,
        LockError::ClientEnded(client) => Refusal::Stale(format!("{client} has ended")),
    }
}

impl Locks {
    pub(super) fn new(table: Arc<dyn LockService>, client: ClientId) -> Self {
        Self { table, client, state: Mutex::default() }
    }

    fn owner(&self, kind: LockKind, id: u64) -> LockOwner {
        LockOwner { client: self.client, kind, id }
    }

    /// What is asked for; `None` to unlock.
    fn request(&self, asked: &LkIn) -> Result<(LockOwner, ByteRange, Option<LockRequest>), Refusal> {
        let kind = if asked.lk_flags & LK_FLOCK != 0 { LockKind::Flock } else { LockKind::Posix };
        let (owner, pid) = (self.owner(kind, asked.owner), asked.lock.pid);
        let range = ByteRange::new(asked.lock.start, asked.lock.end)
            .ok_or_else(|| Refusal::Invalid("a lock of no bytes".to_owned()))?;
        let mode = match asked.lock.kind.cast_signed() {
            libc::F_RDLCK => LockMode::Shared,
            libc::F_WRLCK => LockMode::Exclusive,
            libc::F_UNLCK => return Ok((owner, range, None)),
            other => return Err(Refusal::Invalid(format!("a lock of kind {other}"))),
        };
        Ok((owner, range, Some(LockRequest { owner, pid, mode, range })))
    }

    /// GETLK: what is in the way of a lock.
    pub(super) fn test(&self, ino: Ino, asked: &LkIn, reply: Reply) {
        let request = match self.request(asked) {
            Ok((_, _, Some(request))) => request,
            Ok((_, _, None)) => return reply.error(libc::EINVAL),
            Err(refusal) => return reply.refuse("getlk", &refusal),
        };
        let asked = asked.lock;
        let on_tested = move |tested: Result<Option<Conflict>, LockError>| {
            let lock = match tested {
                Ok(Some(conflict)) => {
                    let kind = match conflict.mode {
                        LockMode::Shared => libc::F_RDLCK,
                        LockMode::Exclusive => libc::F_WRLCK,
                    };
                    FileLock {
                        start: conflict.range.start(),
                        end: conflict.range.end().min(OFFSET_MAX),
                        kind: kind.cast_unsigned(),
                        pid: conflict.pid,
                    }
                }
                Ok(None) => FileLock { kind: libc::F_UNLCK.cast_unsigned(), ..asked },
                Err(error) => return reply.refuse("getlk", &refusal(&error)),
            };
            reply.structure(&LkOut { lock });
        };
        self.table.test(ino.0, request, Box::new(on_tested));
    }

    /// SETLK, and with `wait` SETLKW, of request number `unique`.
    pub(super) fn set(self: &Arc<Self>, unique: u64, ino: Ino, asked: &LkIn, wait: bool, reply: Reply) {
        let request = match self.request(asked) {
            Ok((_, _, Some(request))) => request,
            Ok((owner, range, None)) => {
                let on_unlocked = move |unlocked: Result<(), LockError>| {
                    reply.result("unlock", unlocked.map_err(|error| refusal(&error)));
                };
                return self.table.unlock(ino.0, owner, range, Box::new(on_unlocked));
            }
            Err(refusal) => return reply.refuse("setlk", &refusal),
        };
        if wait && !self.begin(unique) {
            return reply.refuse("setlk", &Refusal::Interrupted);
        }
        let (locks, handle) = (Arc::clone(self), HandleId(asked.fh));
        let on_reply = move |answer: LockReply| {
            locks.answered(unique, wait);
            if answer.is_ok() && request.owner.kind == LockKind::Posix {
                locks.remember(ino, handle, request.owner.id);
            }
            reply.result("setlk", answer.map(|_| ()).map_err(|error| refusal(&error)));
        };
        if let Some(ticket) = self.table.set(ino.0, request, wait, Box::new(on_reply))
            && self.waits(unique, ticket)
        {
            self.table.cancel(ticket);
        }
    }

    /// Notes that `unique` may wait; false if it was interrupted before it came.
    fn begin(&self, unique: u64) -> bool {
        let mut state = self.state.lock();
        if let Some(place) = state.early_interrupts.iter().position(|early| *early == unique) {
            state.early_interrupts.remove(place);
            return false;
        }
        state.waiters.insert(unique, Waiter::Asking);
        true
    }

    /// Notes by which ticket `unique` waits; whether it was interrupted in the meantime.
    fn waits(&self, unique: u64, ticket: Ticket) -> bool {
        let mut state = self.state.lock();
        match state.waiters.get_mut(&unique) {
            Some(Waiter::AskingInterrupted) => true,
            Some(waiter) => {
                *waiter = Waiter::Waiting(ticket);
                false
            }
            // Answered already.
            None => false,
        }
    }

    fn answered(&self, unique: u64, waited: bool) {
        if waited {
            self.state.lock().waiters.remove(&unique);
        }
    }

    fn remember(&self, ino: Ino, handle: HandleId, owner: u64) {
        let mut state = self.state.lock();
        let owners = state.owners.entry(ino).or_default();
        if !owners.contains(&(handle, owner)) {
            owners.push((handle, owner));
        }
    }

    /// INTERRUPT of request number `unique`.
    pub(super) fn interrupt(&self, unique: u64) {
        let ticket = {
            let mut state = self.state.lock();
            match state.waiters.get_mut(&unique) {
                Some(Waiter::Waiting(ticket)) => Some(*ticket),
                Some(waiter) => {
                    *waiter = Waiter::AskingInterrupted;
                    None
                }
                None => {
                    if state.early_interrupts.len() == EARLY_MAX {
                        state.early_interrupts.pop_front();
                    }
                    state.early_interrupts.push_back(unique);
                    None
                }
            }
        };
        if let Some(ticket) = ticket {
            self.table.cancel(ticket);
        }
    }

    /// FLUSH: a process has closed a descriptor of the file. Answered when its locks are gone.
    pub(super) fn flushed(&self, ino: Ino, owner: u64, reply: Reply) {
        let held = {
            let mut state = self.state.lock();
            match state.owners.get_mut(&ino) {
                None => false,
                Some(owners) => {
                    let before = owners.len();
                    owners.retain(|(_, other)| *other != owner);
                    let held = owners.len() < before;
                    if owners.is_empty() {
                        state.owners.remove(&ino);
                    }
                    held
                }
            }
        };
        if !held {
            return reply.done();
        }
        // Who closes a file is not told of a lock that could not be ended: it ends with the session then.
        let on_unlocked = Box::new(move |_| reply.done());
        self.table.release_owner(ino.0, self.owner(LockKind::Posix, owner), on_unlocked);
    }

    /// RELEASE: an open file is no more; `flock_owner` if it may have had a flock.
    pub(super) fn released(&self, ino: Ino, handle: HandleId, flock_owner: Option<u64>) {
        if let Some(owner) = flock_owner {
            self.table.release_owner(ino.0, self.owner(LockKind::Flock, owner), Box::new(|_| ()));
        }
        let mut ended = Vec::new();
        {
            let mut state = self.state.lock();
            let Some(owners) = state.owners.get_mut(&ino) else { return };
            owners.retain(|(of, owner)| {
                let stays = *of != handle;
                if !stays {
                    ended.push(*owner);
                }
                stays
            });
            if owners.is_empty() {
                state.owners.remove(&ino);
            }
        }
        for owner in ended {
            self.table.release_owner(ino.0, self.owner(LockKind::Posix, owner), Box::new(|_| ()));
        }
    }

    /// The mount is gone: so are its programs' locks.
    pub(super) fn end(&self) {
        self.table.end_client(self.client);
    }
}
