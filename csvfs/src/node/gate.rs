//! A file's gate: the requests in flight are counted, can be stopped and drained, and told apart by age.
//!
//! Entering and leaving is one atomic operation each. All of the count lives in one 64-bit word:
//!
//! | bits | what |
//! |---|---|
//! | 0..28 | requests in flight that entered in phase 0 |
//! | 28..56 | requests in flight that entered in phase 1 |
//! | 56 | the phase of those who enter now |
//! | 57 | somebody waits for a count to reach zero |
//! | 58 | stopped: nobody enters |
//!
//! The two phases answer a question that one count cannot: whether everything that was in flight *at some moment* has
//! ended, while new requests keep coming ([`Gate::grace`]). A reader of blocks that have been replaced is awaited so.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::task::{Receiver, Sender, promise};

const COUNT_BITS: u32 = 28;
const COUNT: u64 = (1 << COUNT_BITS) - 1;
const PHASE: u64 = 1 << 56;
const WATCHED: u64 = 1 << 57;
const STOPPED: u64 = 1 << 58;

fn in_phase(state: u64, phase: u32) -> u64 {
    state >> (phase * COUNT_BITS) & COUNT
}

fn current_phase(state: u64) -> u32 {
    u32::from(state & PHASE != 0)
}

#[derive(Default)]
struct Waiting {
    /// How many have stopped the gate and not reopened it.
    stops: u32,
    /// Who wants to enter, in order.
    parked: VecDeque<Sender<Pass>>,
    /// Who waits until nothing is in flight.
    drains: Vec<Sender<()>>,
    /// The grace period that runs: the phase that has to end, and who waits for that.
    grace: Option<(u32, Vec<Sender<()>>)>,
    /// Who asked while a grace period was running: theirs begins after it.
    next_grace: Vec<Sender<()>>,
}

#[derive(Default)]
struct Inner {
    state: AtomicU64,
    waiting: Mutex<Waiting>,
}

/// See the module.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<Inner>);

/// A request's passage: it counts as in flight until this is dropped.
#[must_use]
pub(super) struct Pass {
    gate: Arc<Inner>,
    phase: u32,
}

/// A stopped gate; reopened when this is dropped.
#[must_use]
pub(super) struct Stop(Gate);

impl Gate {
    /// Enters if the gate is open.
    #[inline]
    pub(super) fn try_enter(&self) -> Option<Pass> {
        let before = self.0.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
            let phase = current_phase(state);
            (state & STOPPED == 0 && in_phase(state, phase) < COUNT)
                .then(|| state + (1 << (phase * COUNT_BITS)))
        });
        before.ok().map(|state| Pass { gate: Arc::clone(&self.0), phase: current_phase(state) })
    }

    /// Enters, after those who are parked already if the gate is stopped.
    pub(super) async fn enter(&self) -> Pass {
        loop {
            if let Some(pass) = self.try_enter() {
                return pass;
            }
            let parked = {
                let mut waiting = self.0.waiting.lock();
                (waiting.stops > 0).then(|| {
                    let (sender, receiver) = promise();
                    waiting.parked.push_back(sender);
                    receiver
                })
            };
            if let Some(parked) = parked
                && let Some(pass) = parked.await
            {
                return pass;
            }
        }
    }

    /// Stops the gate: new requests are parked. Does not wait for those in flight.
    pub(super) fn stop(&self) -> Stop {
        let mut waiting = self.0.waiting.lock();
        waiting.stops += 1;
        self.0.state.fetch_or(STOPPED, Ordering::AcqRel);
        Stop(self.clone())
    }

    /// Waits until nothing is in flight. With the gate stopped it then stays so.
    pub(super) async fn drain(&self) {
        self.watch(|waiting, sender| waiting.drains.push(sender)).await;
    }

    /// Waits until every request that is in flight now has left.
    pub(super) async fn grace(&self) {
        self.watch(|waiting, sender| waiting.next_grace.push(sender)).await;
    }

    /// How many requests are in flight.
    pub(super) fn in_flight(&self) -> u64 {
        let state = self.0.state.load(Ordering::Acquire);
        in_phase(state, 0) + in_phase(state, 1)
    }

    fn watch(&self, register: impl FnOnce(&mut Waiting, Sender<()>)) -> Receiver<()> {
        let (sender, receiver) = promise();
        let reached = {
            let mut waiting = self.0.waiting.lock();
            register(&mut waiting, sender);
            self.0.settle(&mut waiting)
        };
        reached.into_iter().for_each(|sender| sender.send(()));
        receiver
    }
}

impl Inner {
    /// Takes out whoever has waited long enough, and keeps `WATCHED` right.
    fn settle(&self, waiting: &mut Waiting) -> Vec<Sender<()>> {
        let mut reached = Vec::new();
        // Set before the counts are read: whoever leaves after that comes here.
        let mut state = self.state.fetch_or(WATCHED, Ordering::AcqRel) | WATCHED;
        if in_phase(state, 0) + in_phase(state, 1) == 0 {
            reached.append(&mut waiting.drains);
        }
        loop {
            if let Some((phase, _)) = &waiting.grace
                && in_phase(state, *phase) == 0
                && let Some((_, ended)) = waiting.grace.take()
            {
                reached.extend(ended);
            }
            if waiting.grace.is_some() || waiting.next_grace.is_empty() {
                break;
            }
            // The other phase is empty, or its grace period would still run: those who enter from now on count there.
            let before = self.state.fetch_xor(PHASE, Ordering::AcqRel);
            waiting.grace = Some((current_phase(before), std::mem::take(&mut waiting.next_grace)));
            state = self.state.load(Ordering::Acquire);
        }
        if waiting.drains.is_empty() && waiting.grace.is_none() {
            self.state.fetch_and(!WATCHED, Ordering::AcqRel);
        }
        reached
    }
}

impl Drop for Pass {
    #[inline]
    fn drop(&mut self) {
        let one = 1 << (self.phase * COUNT_BITS);
        let state = self.gate.state.fetch_sub(one, Ordering::AcqRel) - one;
        if state & WATCHED != 0 && in_phase(state, self.phase) == 0 {
            let reached = self.gate.settle(&mut self.gate.waiting.lock());
            reached.into_iter().for_each(|sender| sender.send(()));
        }
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        let parked = {
            let mut waiting = self.0.0.waiting.lock();
            waiting.stops -= 1;
            if waiting.stops > 0 {
                return;
            }
            self.0.0.state.fetch_and(!STOPPED, Ordering::AcqRel);
            std::mem::take(&mut waiting.parked)
        };
        for sender in parked {
            // Stopped again meanwhile: the sender is dropped, and its receiver parks itself anew.
            if let Some(pass) = self.0.try_enter() {
                sender.send(pass);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::super::task::run;
    use super::*;

    fn flag(future: impl Future<Output = ()> + Send + 'static) -> Arc<AtomicBool> {
        let done = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&done);
        run(async move {
            future.await;
            told.store(true, Ordering::Release);
        });
        done
    }

    fn is(flag: &AtomicBool) -> bool {
        flag.load(Ordering::Acquire)
    }

    #[test]
    fn a_drain_waits_for_all_in_flight() {
        let gate = Gate::default();
        let (one, two) = (gate.try_enter(), gate.try_enter());
        let stop = gate.stop();
        let drained = flag({
            let gate = gate.clone();
            async move { gate.drain().await }
        });
        assert!(gate.try_enter().is_none());
        drop(one);
        assert!(!is(&drained));
        drop(two);
        assert!(is(&drained));
        drop(stop);
        assert!(gate.try_enter().is_some());
    }

    #[test]
    fn the_parked_enter_in_order_when_the_last_stop_ends() {
        let gate = Gate::default();
        let (first, second) = (gate.stop(), gate.stop());
        let log = Arc::new(Mutex::new(Vec::new()));
        for number in 0..3 {
            let (gate, log) = (gate.clone(), Arc::clone(&log));
            run(async move {
                let _pass = gate.enter().await;
                log.lock().push(number);
            });
        }
        drop(first);
        assert!(log.lock().is_empty());
        drop(second);
        assert_eq!(*log.lock(), [0, 1, 2]);
        assert_eq!(gate.in_flight(), 0);
    }

    #[test]
    fn a_grace_period_waits_for_the_earlier_only() {
        let gate = Gate::default();
        let early = gate.try_enter();
        let over = flag({
            let gate = gate.clone();
            async move { gate.grace().await }
        });
        let late = gate.try_enter();
        let second = flag({
            let gate = gate.clone();
            async move { gate.grace().await }
        });
        assert!(!is(&over));
        drop(early);
        assert!(is(&over), "the late one is not waited for");
        assert!(!is(&second), "but by the second, which began after it");
        drop(late);
        assert!(is(&second));
    }

    #[test]
    fn many_threads_never_pass_a_stopped_gate() {
        let gate = Gate::default();
        let exclusive = Arc::new(AtomicBool::new(false));
        let ends = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (gate, exclusive, ends) = (gate.clone(), Arc::clone(&exclusive), Arc::clone(&ends));
                std::thread::spawn(move || {
                    while !is(&ends) {
                        if let Some(_pass) = gate.try_enter() {
                            assert!(!is(&exclusive));
                        }
                    }
                })
            })
            .collect();
        for _ in 0..200 {
            let stop = gate.stop();
            let drained = flag({
                let gate = gate.clone();
                async move { gate.drain().await }
            });
            while !is(&drained) {
                std::thread::yield_now();
            }
            exclusive.store(true, Ordering::Release);
            std::thread::yield_now();
            exclusive.store(false, Ordering::Release);
            drop(stop);
        }
        ends.store(true, Ordering::Release);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
