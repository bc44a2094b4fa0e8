//! Callbacks, run on a thread of their own and in their order.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use parking_lot::Mutex;

/// How many forwarded requests a client serves at once; more are refused.
pub const ASKS_MAX: usize = 32;

/// How many events may wait to be told; beyond, they count as missed.
const EVENTS_MAX: usize = 65_536;

pub(super) type Call = Box<dyn FnOnce() + Send>;

/// The queue of callbacks.
pub(super) struct Upcalls {
    queue: Mutex<Option<Sender<Call>>>,
    waiting: Arc<AtomicUsize>,
    asks: Arc<AtomicUsize>,
}

impl fmt::Debug for Upcalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upcalls").field("waiting", &self.waiting).field("asks", &self.asks).finish()
    }
}

impl Upcalls {
    /// A queue, and what its thread runs.
    pub(super) fn new() -> (Self, impl FnOnce() + Send + 'static) {
        let (sender, receiver): (Sender<Call>, Receiver<Call>) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&waiting);
        let run = move || {
            for call in receiver {
                counted.fetch_sub(1, Ordering::Relaxed);
                call();
            }
        };
        (Self { queue: Mutex::new(Some(sender)), waiting, asks: Arc::default() }, run)
    }

    /// Has `call` run after those before it. For what is bounded by something else.
    pub(super) fn call(&self, call: Call) {
        let queue = self.queue.lock();
        if let Some(queue) = queue.as_ref() {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            // The thread ends only after the queue was closed.
            let _ = queue.send(call);
        }
    }

    /// Whether there is room for events.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) < EVENTS_MAX
    }

    /// Has `call` run on a thread of its own; false if too many run.
    pub(super) fn ask(&self, call: Call) -> bool {
        let asks = Arc::clone(&self.asks);
        if asks.fetch_add(1, Ordering::Relaxed) >= ASKS_MAX {
            asks.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        let thread = std::thread::Builder::new().name("lockd-asked".to_owned());
        let counted = Arc::clone(&asks);
        let started = thread.spawn(move || {
            call();
            counted.fetch_sub(1, Ordering::Relaxed);
        });
        if started.is_err() {
            asks.fetch_sub(1, Ordering::Relaxed);
        }
        started.is_ok()
    }

    /// Ends the thread when it has run what waits.
    pub(super) fn close(&self) {
        self.queue.lock().take();
    }
}
