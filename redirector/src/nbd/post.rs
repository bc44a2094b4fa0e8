//! Who receives on a connection: its own thread, or, in its place, one that attends it (see [`crate::attend`]).

use std::fmt;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::attend::{Outlook, Polled, Source};
use crate::nbd::connection::Connection;
use crate::nbd::link::NbdLink;
use crate::nbd::receiver::{Ready, Receiver};
use crate::paths::way;

/// How often the connection's own thread looks whether somebody receives, while requests are in flight.
const TICK: Duration = Duration::from_millis(5);
/// Looks without a request in flight after which it sleeps until there is one.
const QUIET_MAX: u32 = 20;

#[derive(Default)]
struct State {
    attended: bool,
    /// Nobody may take the place any more: the connection's own thread sees the end.
    broken: bool,
    ended: bool,
}

/// See the module.
pub struct Post {
    connection: Arc<Connection>,
    link: Weak<NbdLink>,
    receiver: Mutex<Option<Receiver>>,
    state: Mutex<State>,
    changed: Condvar,
    /// The connection's own thread sleeps until it is told of a request.
    asleep: AtomicBool,
    /// How often somebody in its place has looked.
    passes: AtomicU64,
    /// Large replies come, which only the connection's own thread may wait for.
    at_large: AtomicBool,
}

impl fmt::Debug for Post {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Post").field("attended", &self.state.lock().attended).finish_non_exhaustive()
    }
}

impl Post {
    /// The post of `connection`, which belongs to `link`.
    pub fn new(connection: &Arc<Connection>, receiver: Receiver, link: Weak<NbdLink>) -> Self {
        Self {
            connection: Arc::clone(connection),
            link,
            receiver: Mutex::new(Some(receiver)),
            state: Mutex::default(),
            changed: Condvar::new(),
            asleep: AtomicBool::new(false),
            passes: AtomicU64::new(0),
            at_large: AtomicBool::new(false),
        }
    }

    /// The work of the connection's own thread, until the connection ends.
    pub fn serve(&self) {
        way::mark_completing();
        let mut watch = Watch::default();
        loop {
            let attended = {
                let mut state = self.state.lock();
                if state.attended && !state.ended {
                    self.rest(&mut state);
                }
                if state.ended {
                    return;
                }
                state.attended
            };
            if attended {
                if watch.sees_nobody(self) {
                    self.pass(true);
                }
            } else {
                watch = Watch::default();
                self.connection.channel.socket().wait_readable();
                self.pass(true);
            }
        }
    }

    /// Sleeps while somebody else receives.
    fn rest(&self, state: &mut parking_lot::MutexGuard<'_, State>) {
        if self.asleep.load(Ordering::SeqCst) {
            // A request that was sent before the sleep was announced has been seen, or it wakes.
            if self.connection.flight().is_empty() {
                self.changed.wait(state);
            }
            self.asleep.store(false, Ordering::SeqCst);
        } else {
            self.changed.wait_for(state, TICK);
        }
    }

    /// Called after a request was sent.
    pub fn has_sent(&self) {
        if self.asleep.load(Ordering::SeqCst) {
            let _state = self.state.lock();
            self.asleep.store(false, Ordering::SeqCst);
            self.changed.notify_one();
        }
    }

    /// The connection has been shut down: its own thread shall see it.
    pub fn has_broken(&self) {
        let mut state = self.state.lock();
        (state.attended, state.broken) = (false, true);
        self.changed.notify_all();
    }

    /// Receives what is there; with `waits`, the whole of a reply that has begun.
    fn pass(&self, waits: bool) -> Polled {
        let Some(mut guard) = self.receiver.try_lock() else { return Polled::Nothing };
        let Some(receiver) = guard.as_mut() else { return Polled::Ended };
        let error = match receiver.ready(waits) {
            Ok(ready) => {
                self.at_large.store(ready == Ready::Large || receiver.is_at_large(), Ordering::Relaxed);
                return match ready {
                    Ready::Some => Polled::Some,
                    Ready::Nothing => Polled::Nothing,
                    Ready::Large => Polled::Left,
                };
            }
            Err(error) => error,
        };
        let current = guard.take().and_then(Receiver::into_current);
        drop(guard);
        {
            self.state.lock().ended = true;
            self.changed.notify_all();
        }
        if let Some(link) = self.link.upgrade() {
            link.break_with(&error.to_string(), current);
        }
        Polled::Ended
    }
}

impl Source for Post {
    fn descriptor(&self) -> RawFd {
        self.connection.channel.socket().as_raw_fd()
    }

    fn poll(&self, anyway: bool) -> Polled {
        self.passes.fetch_add(1, Ordering::Relaxed);
        if !anyway && self.connection.flight().is_empty() {
            return Polled::Nothing;
        }
        match way::while_completing(|| self.pass(false)) {
            Polled::Left => {
                self.leave();
                Polled::Left
            }
            polled => polled,
        }
    }

    fn outlook(&self) -> Outlook {
        let in_flight = self.connection.flight().len();
        if in_flight == 0 {
            return Outlook::default();
        }
        let waiting = self.connection.channel.socket().readable();
        let flight = self.connection.flight();
        Outlook { in_flight: flight.len(), answered: flight.answered(waiting) }
    }

    fn peek(&self) -> Polled {
        if self.state.lock().ended { Polled::Ended } else { Polled::Nothing }
    }

    fn enter(&self) -> bool {
        // With TLS, what has come may be in the cipher's memory already, so that the socket does not tell of it.
        if self.at_large.load(Ordering::Relaxed) || !self.connection.channel.is_plain() {
            return false;
        }
        let mut state = self.state.lock();
        !state.broken && !state.ended && !std::mem::replace(&mut state.attended, true)
    }

    fn leave(&self) {
        self.state.lock().attended = false;
        self.changed.notify_all();
    }
}

/// What the connection's own thread has seen of who receives in its place.
#[derive(Default)]
struct Watch {
    passes: u64,
    quiet: u32,
}

impl Watch {
    /// Whether requests are in flight and nobody has received since the last look.
    fn sees_nobody(&mut self, post: &Post) -> bool {
        let passes = post.passes.load(Ordering::Relaxed);
        let moved = std::mem::replace(&mut self.passes, passes) != passes;
        if !post.connection.flight().is_empty() {
            self.quiet = 0;
            return !moved;
        }
        self.quiet += 1;
        if self.quiet > QUIET_MAX {
            self.quiet = 0;
            post.asleep.store(true, Ordering::SeqCst);
        }
        false
    }
}
