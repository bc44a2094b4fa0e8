//! Virtual time, and who runs next: all that happens in a simulation is an act at a point of virtual time.
//!
//! One thread at a time runs acts, in the order of time and then of a number drawn from the seed. An act that has to wait
//! ([`Schedule::wait_for`]: the production code under simulation asks the control plane and blocks) keeps its thread, and
//! another thread goes on with the acts; when what it waits for is there, the thread that runs hands over to it and
//! rests. So exactly one thread is ever at work, and the run depends on the seed alone, while an act that never waits
//! costs no hand-over.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lockd::clock::{BootTime, Clock, WallTime};
use lockd::ids::SessionId;
use parking_lot::{Condvar, Mutex};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::trace::Trace;

/// Something that happens.
pub type Act = Box<dyn FnOnce() + Send>;

/// When virtual time begins: late enough that a lease never counts from zero.
const BEGIN: u64 = 1 << 40;
/// No simulation takes longer, in virtual time.
const END: u64 = BEGIN + 900 * 1_000_000_000;

/// A process of the simulated cluster: one incarnation of a node.
#[derive(Debug)]
pub struct Party {
    /// Which node.
    pub node: usize,
    /// Under which it speaks to other processes, once it has one.
    pub session: OnceLock<SessionId>,
    is_alive: AtomicBool,
    paused: Mutex<Option<Deferred>>,
}

#[derive(Default)]
struct Deferred(Vec<Act>);

impl std::fmt::Debug for Deferred {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Deferred({})", self.0.len())
    }
}

impl Party {
    /// A process on `node`.
    pub fn new(node: usize) -> Arc<Self> {
        Arc::new(Self {
            node,
            session: OnceLock::new(),
            is_alive: AtomicBool::new(true),
            paused: Mutex::default(),
        })
    }

    /// Whether it has not been killed.
    pub fn is_alive(&self) -> bool {
        self.is_alive.load(SeqCst)
    }

    /// Nothing happens in it any more.
    pub fn kill(&self) {
        self.is_alive.store(false, SeqCst);
    }

    /// What happens in it waits.
    pub fn pause(&self) {
        self.paused.lock().get_or_insert_default();
    }
}

/// A thread that waits.
struct Parked {
    /// Who waits.
    party: Arc<Party>,
    /// Its turn is due.
    called: AtomicBool,
    goes_on: Mutex<bool>,
    turn: Condvar,
}

/// An act, and the process in which it happens.
type Due = (Option<Arc<Party>>, Act);

struct State {
    acts: BTreeMap<(u64, u64), Due>,
    random: SmallRng,
    trace: Trace,
    /// Whom the running thread hands over to after its act.
    next: Option<Arc<Parked>>,
    /// The running thread waits: an idle one is to go on.
    offered: bool,
    idle: usize,
    /// What the dead would have done: not dropped before the end, as dropping it would be noticed.
    graves: Vec<Act>,
    ended: bool,
    failure: Option<String>,
}

/// See the module.
pub struct Schedule {
    now: AtomicU64,
    state: Mutex<State>,
    offers: Condvar,
    finished: Condvar,
}

impl std::fmt::Debug for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Schedule({:?})", self.time())
    }
}

impl Schedule {
    /// Everything that is drawn is drawn from `seed`.
    pub fn new(seed: u64, trace: Trace) -> Arc<Self> {
        Arc::new(Self {
            now: AtomicU64::new(BEGIN),
            state: Mutex::new(State {
                acts: BTreeMap::new(),
                random: SmallRng::seed_from_u64(seed),
                trace,
                next: None,
                offered: false,
                idle: 0,
                graves: Vec::new(),
                ended: false,
                failure: None,
            }),
            offers: Condvar::new(),
            finished: Condvar::new(),
        })
    }

    /// How much virtual time has passed.
    pub fn time(&self) -> Duration {
        Duration::from_nanos(self.now.load(SeqCst) - BEGIN)
    }

    /// Draws from the seed.
    pub fn draw<T>(&self, draw: impl FnOnce(&mut SmallRng) -> T) -> T {
        draw(&mut self.state.lock().random)
    }

    /// True with probability `p`.
    pub fn happens(&self, p: f64) -> bool {
        p > 0.0 && self.draw(|random| random.random_bool(p))
    }

    /// A time between `from` and `to`, in microseconds.
    pub fn between(&self, from: u64, to: u64) -> Duration {
        Duration::from_micros(self.draw(|random| random.random_range(from..to)))
    }

    /// Notes that something has happened; the trace of a seed is always the same.
    pub fn note(&self, what: &'static str, numbers: &[u64]) {
        let now = self.time();
        let mut state = self.state.lock();
        // Threads that waited when it ended come to their ends after it.
        if !state.ended {
            state.trace.note(now, what, numbers);
        }
    }

    /// Does `act` after a while, outside of every process: the network, the LUN.
    pub fn after(&self, delay: Duration, act: impl FnOnce() + Send + 'static) {
        self.put(delay, None, Box::new(act));
    }

    /// Does `act` in a process after a while: not before it goes on, if it is paused then, and not if it is dead.
    pub fn after_in(&self, party: &Arc<Party>, delay: Duration, act: impl FnOnce() + Send + 'static) {
        self.put(delay, Some(Arc::clone(party)), Box::new(act));
    }

    fn put(&self, delay: Duration, party: Option<Arc<Party>>, act: Act) {
        let mut state = self.state.lock();
        let at = self.now.load(SeqCst) + u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX >> 1);
        let mut order = state.random.random();
        while state.acts.contains_key(&(at, order)) {
            order = order.wrapping_add(1);
        }
        if !state.ended {
            state.acts.insert((at, order), (party, act));
        }
    }

    /// A paused process goes on with what has waited.
    pub fn resume(&self, party: &Arc<Party>) {
        if !party.is_alive() {
            return;
        }
        let deferred = party.paused.lock().take();
        // All at once, in their order.
        for (number, act) in deferred.unwrap_or_default().0.into_iter().enumerate() {
            self.put(Duration::from_nanos(number as u64), Some(Arc::clone(party)), act);
        }
    }

    /// Lets the running act wait, in `party`, until `answer` is there, but not longer than `within`. Nothing is there any
    /// more once the simulation is over: whoever waits in a loop asks [`Schedule::is_over`].
    pub fn wait_for<T>(
        self: &Arc<Self>,
        party: &Arc<Party>,
        answer: &Answer<T>,
        within: Duration,
    ) -> Option<T> {
        self.rest(party, answer, within)
    }

    /// Whether the simulation has ended.
    pub fn is_over(&self) -> bool {
        self.state.lock().ended
    }

    fn rest<T>(self: &Arc<Self>, party: &Arc<Party>, answer: &Answer<T>, within: Duration) -> Option<T> {
        let parked = Arc::new(Parked {
            party: Arc::clone(party),
            called: AtomicBool::new(false),
            goes_on: Mutex::new(false),
            turn: Condvar::new(),
        });
        {
            let mut slot = answer.0.lock();
            if let Some(value) = slot.value.take() {
                return Some(value);
            }
            slot.waits = Some(Arc::clone(&parked));
        }
        let (schedule, waits) = (Arc::clone(self), Arc::clone(&parked));
        self.after(within, move || schedule.call(&waits));
        self.park(&parked);
        let mut slot = answer.0.lock();
        slot.waits = None;
        slot.value.take()
    }

    /// `parked` goes on as soon as it is its turn.
    fn call(self: &Arc<Self>, parked: &Arc<Parked>) {
        if parked.called.swap(true, SeqCst) {
            return;
        }
        let (schedule, next) = (Arc::clone(self), Arc::clone(parked));
        self.after_in(&parked.party, Duration::ZERO, move || schedule.state.lock().next = Some(next));
    }

    /// Gives the turn away until it is this thread's again.
    fn park(self: &Arc<Self>, parked: &Parked) {
        {
            let mut state = self.state.lock();
            if !state.ended {
                state.offered = true;
                if state.idle == 0 {
                    let schedule = Arc::clone(self);
                    std::thread::spawn(move || schedule.work());
                } else {
                    self.offers.notify_one();
                }
            }
        }
        let mut goes_on = parked.goes_on.lock();
        while !*goes_on {
            // A simulation that has ended calls nobody: looked at now and then.
            parked.turn.wait_for(&mut goes_on, Duration::from_millis(20));
            if !*goes_on && self.state.lock().ended {
                return;
            }
        }
    }

    /// A thread: takes the turn when it is offered.
    fn work(self: Arc<Self>) {
        loop {
            {
                let mut state = self.state.lock();
                state.idle += 1;
                while !state.offered && !state.ended {
                    self.offers.wait(&mut state);
                }
                state.idle -= 1;
                if state.ended {
                    return;
                }
                state.offered = false;
            }
            self.act_by_act();
        }
    }

    /// Does one act after the other until the turn goes to a thread that has waited.
    fn act_by_act(&self) {
        loop {
            let (party, act) = {
                let mut state = self.state.lock();
                if state.ended {
                    return;
                }
                if let Some(next) = state.next.take() {
                    drop(state);
                    *next.goes_on.lock() = true;
                    next.turn.notify_one();
                    return;
                }
                let Some(((at, _), act)) = state.acts.pop_first() else {
                    drop(state);
                    return self.fail("nothing happens any more, and the simulation is not over".to_owned());
                };
                if at > END {
                    drop(state);
                    return self.fail("virtual time is over, and the simulation is not".to_owned());
                }
                self.now.store(at.max(self.now.load(SeqCst)), SeqCst);
                act
            };
            if let Some(party) = &party {
                if !party.is_alive() {
                    self.state.lock().graves.push(act);
                    continue;
                }
                if let Some(deferred) = party.paused.lock().as_mut() {
                    deferred.0.push(act);
                    continue;
                }
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(act)) {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                return self.fail(text.unwrap_or_else(|| "a panic".to_owned()));
            }
        }
    }

    /// Something is wrong: the simulation ends.
    pub fn fail(&self, why: String) {
        let time = self.time();
        let mut state = self.state.lock();
        if !state.ended {
            state.failure = Some(format!("after {time:?}: {why}"));
        }
        drop(state);
        self.end();
    }

    /// The simulation is over.
    pub fn end(&self) {
        let acts = {
            let mut state = self.state.lock();
            state.ended = true;
            (std::mem::take(&mut state.acts), std::mem::take(&mut state.graves))
        };
        self.offers.notify_all();
        self.finished.notify_all();
        // They hold what may itself put acts here when it is dropped.
        drop(acts);
    }

    /// Runs until [`Schedule::end`]. The hash of the trace, or what is wrong and the last of the trace.
    pub fn run(self: &Arc<Self>) -> Result<u64, String> {
        let schedule = Arc::clone(self);
        self.state.lock().offered = true;
        std::thread::spawn(move || schedule.work());
        let mut state = self.state.lock();
        while !state.ended {
            self.finished.wait(&mut state);
        }
        match state.failure.take() {
            Some(failure) => Err(format!("{failure}{}", state.trace.tail())),
            None => {
                if state.trace.is_kept() {
                    eprintln!("{}", state.trace.tail());
                }
                Ok(state.trace.hash())
            }
        }
    }
}

struct Slot<T> {
    value: Option<T>,
    waits: Option<Arc<Parked>>,
}

/// Something that an act waits for.
pub struct Answer<T>(Arc<Mutex<Slot<T>>>);

impl<T> Clone for Answer<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Answer<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Slot { value: None, waits: None })))
    }
}

impl<T> Answer<T> {
    /// It is there; a second one is dropped.
    pub fn fill(&self, schedule: &Arc<Schedule>, value: T) {
        let waits = {
            let mut slot = self.0.lock();
            if slot.value.is_some() {
                return;
            }
            slot.value = Some(value);
            slot.waits.clone()
        };
        if let Some(parked) = waits {
            schedule.call(&parked);
        }
    }
}

/// Virtual time as a process sees it.
#[derive(Clone, Debug)]
pub struct VirtualClock {
    /// Whose time.
    pub schedule: Arc<Schedule>,
    /// Who sleeps.
    pub party: Arc<Party>,
}

impl Clock for VirtualClock {
    fn boot(&self) -> BootTime {
        BootTime(self.schedule.now.load(SeqCst))
    }

    fn wall(&self) -> WallTime {
        WallTime(i64::try_from(self.boot().0).unwrap_or(i64::MAX))
    }

    fn sleep(&self, span: Duration) {
        let never = Answer::<()>::default();
        let _ = self.schedule.wait_for(&self.party, &never, span);
    }
}
