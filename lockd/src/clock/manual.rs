//! A clock that stands still until it is moved: the clock of tests and of the simulation.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{BootTime, Clock, WallTime};

/// A clock that only [`ManualClock::advance`] moves. A thread that rests on it is woken when its time has come; whoever
/// moves the clock can see who rests ([`ManualClock::sleepers`]) and until when ([`ManualClock::next_wake`]).
#[derive(Debug, Default)]
pub struct ManualClock {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    boot: BootTime,
    wall: WallTime,
    /// When each resting thread wants to be woken.
    wakes: Vec<BootTime>,
}

impl ManualClock {
    /// A clock that shows `boot` and `wall`.
    #[must_use]
    pub fn new(boot: BootTime, wall: WallTime) -> Self {
        let state = State { boot, wall, wakes: Vec::new() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Moves both clocks on by `span` and wakes whoever has rested long enough.
    pub fn advance(&self, span: Duration) {
        let mut state = self.state.lock();
        state.boot = state.boot.after(span);
        let nanos = i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
        state.wall = WallTime(state.wall.0.saturating_add(nanos));
        self.changed.notify_all();
    }

    /// Sets civil time, which may jump either way; nobody is woken by it.
    pub fn set_wall(&self, wall: WallTime) {
        self.state.lock().wall = wall;
    }

    /// How many threads rest now.
    #[must_use]
    pub fn sleepers(&self) -> usize {
        self.state.lock().wakes.len()
    }

    /// When the next resting thread is to be woken.
    #[must_use]
    pub fn next_wake(&self) -> Option<BootTime> {
        self.state.lock().wakes.iter().min().copied()
    }

    /// Waits, in real time, until at least `count` threads rest: a test can then move the clock and know what happens.
    pub fn wait_for_sleepers(&self, count: usize) {
        let mut state = self.state.lock();
        while state.wakes.len() < count {
            self.changed.wait(&mut state);
        }
    }
}

impl Clock for ManualClock {
    fn boot(&self) -> BootTime {
        self.state.lock().boot
    }

    fn wall(&self) -> WallTime {
        self.state.lock().wall
    }

    fn sleep(&self, span: Duration) {
        let mut state = self.state.lock();
        let wake = state.boot.after(span);
        if state.boot >= wake {
            return;
        }
        state.wakes.push(wake);
        self.changed.notify_all();
        while state.boot < wake {
            self.changed.wait(&mut state);
        }
        let at = state.wakes.iter().position(|other| *other == wake);
        state.wakes.swap_remove(at.expect("only its own thread takes a wake time out"));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_thread_rests_until_the_clock_is_moved() {
        let clock = ManualClock::new(BootTime(1_000), WallTime(-5));
        let woken = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                clock.sleep(Duration::from_nanos(100));
                woken.store(true, Ordering::SeqCst);
                clock.sleep(Duration::from_nanos(50));
            });
            clock.wait_for_sleepers(1);
            assert_eq!(clock.next_wake(), Some(BootTime(1_100)));
            clock.advance(Duration::from_nanos(99));
            assert_eq!((clock.sleepers(), woken.load(Ordering::SeqCst)), (1, false));
            clock.advance(Duration::from_nanos(1));
            while clock.next_wake() != Some(BootTime(1_150)) {
                std::thread::yield_now();
            }
            assert!(woken.load(Ordering::SeqCst));
            clock.advance(Duration::from_secs(1));
        });
        assert_eq!((clock.sleepers(), clock.next_wake()), (0, None));
        assert_eq!(clock.wall(), WallTime(1_000_000_095));
        clock.sleep(Duration::ZERO);
    }
}
