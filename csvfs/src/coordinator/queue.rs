//! The queue between those who ask and the one writer.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockd::ids::{ClientId, SessionId};
use lockd::network::{Carrier, OnReply};
use parking_lot::{Condvar, Mutex};

use crate::proto::Request;
use crate::refusal::Refusal;
use crate::types::Run;

/// Operations that may wait. Each client has at most [`lockd::slots::SLOTS_PER_CLIENT`] under way.
const QUEUE_MAX: usize = 16 << 10;
/// Operations that one transaction takes.
pub const GROUP_MAX: usize = 256;

/// What is called when a piece of internal work is committed or refused.
pub type OnInternal = Box<dyn FnOnce(Result<Option<u64>, Refusal>) + Send>;

/// A request on its way through the writer.
pub struct Pending {
    /// What is asked; boxed, as it goes from hand to hand.
    pub request: Box<Request>,
    /// Who waits for it.
    pub on_reply: OnReply,
    /// How far an operation of several steps has come.
    pub mark: u64,
    /// Space was waited for; it is not waited for again.
    pub last_try: bool,
}

/// The way to a client.
#[derive(Clone, Debug)]
pub struct Way(pub Arc<dyn Carrier>);

/// Work of the coordinator itself.
#[derive(Clone, Debug)]
pub enum Internal {
    /// A client is over.
    EndClient(ClientId),
    /// A client can be called back, and may have leases.
    Attach(SessionId, ClientId, Way),
    /// A step at orphans, from this inode number on.
    Reclaim(u64),
    /// Held-back runs become free, or go to quarantine.
    Release {
        /// Free.
        free: Vec<Run>,
        /// Under a ghost.
        ghosts: Vec<Run>,
    },
    /// Quarantined runs become free.
    ReleaseQuarantine(Vec<Run>),
    /// A pass of the reclaimer is over; those who wait for space try again.
    Passed {
        /// Whether it freed anything.
        progress: bool,
    },
}

/// A piece of work for the writer.
pub enum Work {
    /// An operation.
    Request(Pending),
    /// The coordinator's own.
    Internal(Internal, OnInternal),
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(pending) => f.debug_tuple("Request").field(&pending.request).finish(),
            Self::Internal(internal, _) => f.debug_tuple("Internal").field(internal).finish(),
        }
    }
}

/// Why work was not taken. It comes back.
#[derive(Debug)]
pub enum NotTaken {
    /// The queue is full.
    Full(Work),
    /// The coordinator has stopped.
    Stopped(Work),
}

/// How long a group waits for those who are likely to ask again: far less than a commit takes.
const GATHER: Duration = Duration::from_micros(300);

#[derive(Debug, Default)]
struct State {
    work: VecDeque<Work>,
    /// How many pieces the writer waits for.
    wanted: usize,
    stopped: bool,
}

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
}

impl Queue {
    /// Puts work at the end. The coordinator's own always fits: there is one piece at a time of each thread.
    pub fn push(&self, work: Work) -> Result<(), NotTaken> {
        let mut state = self.state.lock();
        if state.stopped {
            return Err(NotTaken::Stopped(work));
        }
        if matches!(work, Work::Request(_)) && state.work.len() >= QUEUE_MAX {
            return Err(NotTaken::Full(work));
        }
        state.work.push_back(work);
        if state.work.len() >= state.wanted {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// All that waits, up to a group; waits for the first unless `more` is at hand. `None` when stopped and empty.
    ///
    /// `answered` is how many requests have just been answered: those who asked are likely to ask again, at once and
    /// together, and one commit for all of them costs hardly more than one for the first. So the group waits a little
    /// for them, together with what is queued already; a single asker never waits.
    pub fn take(&self, more: bool, answered: usize) -> Option<Vec<Work>> {
        let mut state = self.state.lock();
        let expected = (state.work.len() + answered).min(GROUP_MAX);
        while state.work.is_empty() && !more {
            if state.stopped {
                return None;
            }
            state.wanted = 1;
            self.arrived.wait(&mut state);
        }
        if !more && !state.stopped && state.work.len() < expected {
            state.wanted = expected;
            let until = Instant::now() + GATHER;
            while state.work.len() < expected
                && !state.stopped
                && !self.arrived.wait_until(&mut state, until).timed_out()
            {}
        }
        state.wanted = 0;
        let count = state.work.len().min(GROUP_MAX);
        Some(state.work.drain(..count).collect())
    }

    /// What waits now, up to a group; `None` if nothing does and there is no `more` at hand.
    #[cfg(test)]
    pub fn take_now(&self, more: bool) -> Option<Vec<Work>> {
        let mut state = self.state.lock();
        let count = state.work.len().min(GROUP_MAX);
        (more || count > 0).then(|| state.work.drain(..count).collect())
    }

    /// Whether nothing waits.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.state.lock().work.is_empty()
    }

    /// Takes no more work; what is queued is still done.
    pub fn stop(&self) {
        self.state.lock().stopped = true;
        self.arrived.notify_all();
    }

    /// Whether [`Queue::stop`] was called.
    pub fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }
}
