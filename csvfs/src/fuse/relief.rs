//! Threads that take requests in the place of dispatchers that wait for the LUN.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};
use redirector::stand_in::StandIn;

use super::dispatcher::Dispatcher;
use super::rota::Rota;

/// Most of them. When so many wait as well, the mount waits with them: each waits for an answer of the LUN, which the
/// redirector bounds.
const RELIEFS_MAX: usize = 16;

/// Makes a dispatcher beside those of the mount.
pub(super) type Recruit = Box<dyn Fn(usize) -> io::Result<Dispatcher> + Send + Sync>;

#[derive(Default)]
struct State {
    /// Threads that wait for the LUN.
    away: usize,
    /// Threads that stand in for them; one may go on doing so until it has taken one more request.
    working: usize,
    threads: Vec<JoinHandle<()>>,
    ended: bool,
}

/// See the module. Nothing runs until somebody has to wait.
pub(super) struct Relief {
    recruit: Recruit,
    state: Mutex<State>,
    changed: Condvar,
}

impl std::fmt::Debug for Relief {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Relief").field("away", &state.away).field("working", &state.working).finish()
    }
}

/// What a dispatcher has for the time of its waiting.
pub(super) struct Call {
    pub(super) relief: Arc<Relief>,
    pub(super) rota: Option<Arc<Rota>>,
}

impl StandIn for Call {
    fn pauses(&self) {
        if let Some(rota) = &self.rota {
            rota.call();
        }
    }
    fn begin(&self) {
        self.relief.begin();
    }
    fn end(&self) {
        self.relief.state.lock().away -= 1;
    }
}

impl Relief {
    pub(super) fn new(recruit: Recruit) -> Arc<Self> {
        Arc::new(Self { recruit, state: Mutex::default(), changed: Condvar::new() })
    }

    fn begin(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.away += 1;
        // At the end of the mount the threads are out of the list, and some of them may still work.
        let has_idle = state.threads.len() > state.working;
        if state.ended || state.working >= state.away || has_idle {
            drop(state);
            self.changed.notify_one();
            return;
        }
        let number = state.threads.len();
        if number >= RELIEFS_MAX {
            return;
        }
        let relief = Arc::clone(self);
        let started = (self.recruit)(number).and_then(|dispatcher| {
            thread::Builder::new()
                .name(format!("fuse-relief-{number}"))
                .spawn(move || relief.serve(dispatcher))
        });
        match started {
            Ok(thread) => state.threads.push(thread),
            Err(error) => tracing::warn!(%error, "nobody takes requests in the place of a thread that waits"),
        }
    }

    /// Works whenever somebody is away.
    fn serve(self: &Arc<Self>, mut dispatcher: Dispatcher) {
        loop {
            {
                let mut state = self.state.lock();
                while !state.ended && state.working >= state.away {
                    self.changed.wait(&mut state);
                }
                if state.ended {
                    return;
                }
                state.working += 1;
            }
            let more = dispatcher.relieve(self, || self.is_wanted());
            self.state.lock().working -= 1;
            if !more {
                return;
            }
        }
    }

    fn is_wanted(&self) -> bool {
        let state = self.state.lock();
        !state.ended && state.working <= state.away
    }

    /// Ends all of them; they have been told of the end of the mount like all others.
    pub(super) fn end(&self) {
        let threads = {
            let mut state = self.state.lock();
            state.ended = true;
            std::mem::take(&mut state.threads)
        };
        self.changed.notify_all();
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread that takes requests has panicked");
            }
        }
    }
}
