//! Which dispatchers take requests.
//!
//! Every thread that waits for requests is woken by one, and two that are awake take processors from each other. So one
//! is on duty, and calls another when it has more than it gets done, or is going to wait for something itself.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

#[derive(Debug, Default)]
struct State {
    on_duty: usize,
    /// Threads that have been called and have not begun.
    called: usize,
    ended: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Rota {
    state: Mutex<State>,
    changed: Condvar,
    /// Threads that could be called.
    resting: AtomicUsize,
}

impl Rota {
    /// A rota of `threads`; the first that asks for duty has it.
    pub(super) fn new(threads: usize) -> Self {
        let state = State { on_duty: 0, called: 1, ended: false };
        let resting = AtomicUsize::new(threads.saturating_sub(1));
        Self { state: Mutex::new(state), changed: Condvar::new(), resting }
    }

    /// Waits until this thread is to take requests; false if there are no more.
    pub(super) fn waits_for_duty(&self) -> bool {
        let mut state = self.state.lock();
        while state.called == 0 && !state.ended {
            self.changed.wait(&mut state);
        }
        if state.ended {
            return false;
        }
        state.called -= 1;
        state.on_duty += 1;
        true
    }

    /// One more thread shall take requests, if there is one.
    pub(super) fn call(&self) {
        if self.resting.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut state = self.state.lock();
        let resting = self.resting.load(Ordering::Relaxed);
        if resting > 0 {
            self.resting.store(resting - 1, Ordering::Relaxed);
            state.called += 1;
            self.changed.notify_one();
        }
    }

    /// This thread has nothing to do: whether it may rest, because another one is on duty.
    pub(super) fn ends_duty(&self) -> bool {
        let mut state = self.state.lock();
        if state.on_duty < 2 {
            return false;
        }
        state.on_duty -= 1;
        self.resting.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// There are no more requests.
    pub(super) fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn one_is_always_on_duty_and_others_when_called() {
        let rota = Arc::new(Rota::new(3));
        assert!(rota.waits_for_duty());
        assert!(!rota.ends_duty(), "the only one");
        let second = thread::spawn({
            let rota = Arc::clone(&rota);
            move || rota.waits_for_duty()
        });
        rota.call();
        assert!(second.join().unwrap());
        rota.call();
        rota.call();
        assert_eq!(rota.state.lock().called, 1, "there is no fourth");
        assert!(rota.ends_duty());
        assert!(!rota.ends_duty());
        rota.end();
        assert!(!rota.waits_for_duty());
    }
}
