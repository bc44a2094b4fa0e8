//! The traffic of one path: requests on their way to the link, held ones, ghosts, and what is kept for a restart.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use lockd::clock::{BootTime, Clock};
use lockd::rules::{Rule, Rules};
use parking_lot::{Condvar, Mutex};

use crate::ghosts::{Executor, Ghost, GhostTable};
use crate::lun::{Identity, OnDone, Outcome};
use crate::paths::kept::{Change, Kept};
use crate::paths::request::{Command, Request};
use crate::paths::roster::Roster;
use crate::paths::state::Condition;
use crate::paths::tenure::{Standing, Tenure};
use crate::paths::way::{self, Abilities, Credentials, Direct, Events, Instance, Link, Way};
use crate::plug;

/// Held requests at which submission waits; as many may wait for ghosts.
const HELD_MAX: usize = 4096;

/// Set in the tokens of replayed changes.
pub(super) const REPLAYED: u64 = 1 << 63;

/// The link in use.
#[derive(Debug)]
pub struct Live {
    /// The link.
    pub link: Arc<dyn Link>,
    /// Its number among the links of this LUN.
    pub generation: u64,
    /// Whether it leads to the target itself.
    pub direct: bool,
    /// Set when it has been lost.
    pub broken: Arc<AtomicBool>,
}

/// What changes only when something goes wrong.
#[derive(Debug)]
pub struct Trouble {
    /// The paths' states.
    pub roster: Roster,
    /// Ghosts that may live.
    pub ghosts: GhostTable,
    /// Requests that wait for the path.
    pub held: VecDeque<Request>,
    /// Changes that wait for ghosts to die.
    pub waiting: Vec<Request>,
    /// The last token given to a request.
    pub last_token: u64,
    /// The number of the link in use, or of the last one.
    pub generation: u64,
    /// The last number that a link was given, also one that was never used.
    pub last_generation: u64,
    /// The process of the target that the link in use, or the last one, leads to.
    pub instance: Option<Instance>,
    /// How long the target may still execute what it was sent, where it proves nothing.
    pub target_quiesce: Duration,
    /// How the LUN is known.
    pub identity: Option<Identity>,
}

/// Everything that the callers, the link's threads and the supervisor share.
pub struct Traffic {
    /// In the order in which they are preferred.
    pub(super) ways: Vec<Arc<dyn Way>>,
    /// How many of them lead to the target itself: the first ones. The others lead through peers.
    pub(super) direct: usize,
    /// The way in use, or the last one.
    pub(super) current: AtomicUsize,
    pub(super) rules: Rules,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) hold: Duration,
    pub(super) abilities: Abilities,
    pub(super) live: ArcSwapOption<Live>,
    /// A link is in use and there are no ghosts: requests go straight to it.
    pub(super) calm: AtomicBool,
    /// Completed changes are kept (P9).
    pub(super) keeps: AtomicBool,
    /// Every write is made durable by itself: the paths may lead to several servers, and a flush by one would not cover what
    /// was written by another (P8).
    pub(super) durable: AtomicBool,
    pub(super) kept: Mutex<Kept>,
    /// The next flush fails: something may have been lost that was not kept.
    pub(super) flush_fails: AtomicBool,
    pub(super) flush_wanted: AtomicBool,
    pub(super) stopped: AtomicBool,
    /// The target refuses this client for good: no path comes back, and nothing is held.
    pub(super) refused: AtomicBool,
    /// The lease under which the LUN is changed, once there is one.
    pub(super) tenure: Mutex<Option<Tenure>>,
    pub(super) trouble: Mutex<Trouble>,
    /// Wakes the supervisor.
    pub(super) news: Condvar,
    /// Tells submitters that there is room among the held requests.
    pub(super) room: Condvar,
}

enum Route {
    /// To this link.
    Link(Arc<Live>, Request),
    /// It is held, or waits for a ghost.
    Stays,
    /// Nowhere.
    Refused(Request),
}

impl Traffic {
    /// The name of the way in use, or of the last one.
    pub fn name(&self) -> String {
        self.ways[self.current.load(Ordering::Acquire)].name()
    }

    /// Sends `request`, or holds it.
    pub fn dispatch(&self, mut request: Request) {
        if self.calm.load(Ordering::Acquire)
            && let Some(live) = &*self.live.load()
        {
            match live.link.submit(request) {
                Ok(()) => return,
                Err(back) => request = *back,
            }
        }
        // Here it may wait for room.
        plug::flush();
        loop {
            // The lock is not held while something is sent.
            let route = self.route(request);
            match route {
                Route::Stays => return self.wake(),
                Route::Refused(request) => return request.give_up(),
                Route::Link(live, routed) => match live.link.submit(routed) {
                    Ok(()) => return,
                    Err(back) => match self.hold_for(live.generation, *back) {
                        Some(back) => request = back,
                        None => return self.wake(),
                    },
                },
            }
        }
    }

    /// Sends what was held, or has waited for a ghost. L3: a change only under the lease, which may have run out
    /// meanwhile; it is held on until the lease is won back, and given up when that has ended.
    pub fn dispatch_late(&self, requests: impl IntoIterator<Item = Request>) {
        let tenure = self.tenure.lock().clone();
        for request in requests {
            let standing = tenure
                .as_ref()
                .map_or(Standing::Holds, |tenure| tenure.standing(&request, self.rules, &*self.clock));
            match standing {
                Standing::Holds => self.dispatch(request),
                Standing::Lapsed => {
                    let mut trouble = self.trouble.lock();
                    if self.stopped.load(Ordering::Acquire) || self.refused.load(Ordering::Acquire) {
                        drop(trouble);
                        request.give_up();
                    } else {
                        trouble.held.push_back(request);
                    }
                }
                Standing::Ended => request.give_up(),
            }
        }
    }

    /// Holds a request that the broken link `generation` did not take. It comes back if that link has been replaced.
    ///
    /// The path is taken down by the link's own report only, together with the ghosts that the report makes: a new link
    /// must not be in use before these are known.
    fn hold_for(&self, generation: u64, request: Request) -> Option<Request> {
        let mut trouble = self.trouble.lock();
        let over = self.stopped.load(Ordering::Acquire) || self.refused.load(Ordering::Acquire);
        if trouble.generation != generation || !self.rules.keeps(Rule::P2) || over {
            return Some(request);
        }
        trouble.held.push_back(request);
        None
    }

    fn wake(&self) {
        self.news.notify_all();
    }

    /// Decides where a request goes.
    fn route(&self, request: Request) -> Route {
        let mut trouble = self.trouble.lock();
        loop {
            if self.stopped.load(Ordering::Acquire) {
                return Route::Refused(request);
            }
            if let Some(live) = self.live.load_full() {
                // P4: what overlaps a ghost waits until the ghost is dead.
                let waits = self.rules.keeps(Rule::P4)
                    && request.changes().is_some_and(|range| trouble.ghosts.blocks(&range, request.token));
                if !waits {
                    return Route::Link(live, request);
                }
                if trouble.waiting.len() < HELD_MAX || way::completing() {
                    trouble.waiting.push(request);
                    return Route::Stays;
                }
                self.room.wait(&mut trouble);
                continue;
            }
            // P2: while no path works, I/O is held; but not where none ever will.
            if !self.rules.keeps(Rule::P2) || self.refused.load(Ordering::Acquire) {
                return Route::Refused(request);
            }
            if trouble.held.len() < HELD_MAX || way::completing() {
                trouble.held.push_back(request);
                return Route::Stays;
            }
            self.room.wait(&mut trouble);
        }
    }

    /// The link `generation` is broken: nothing goes to it any more.
    pub fn take_down(&self, trouble: &mut Trouble, generation: u64, why: &str) {
        if trouble.generation == generation && trouble.roster.is_live() {
            let others = trouble.roster.paths().iter().filter(|path| path.state.condition() == Condition::Up);
            let others = others.count() - usize::from(trouble.roster.state().condition() == Condition::Up);
            tracing::warn!(
                lun = self.name(),
                why,
                others,
                "the path is down; I/O is held until another one is used"
            );
            self.calm.store(false, Ordering::Release);
            self.live.store(None);
            trouble.roster.lost(why, self.clock.boot());
        }
    }

    /// Remembers that copies of these requests may still land, and names them.
    fn haunt(&self, trouble: &mut Trouble, sent: &mut [Request], by: Carrying, trial: bool) {
        let dead_at = self.clock.boot().after(by.kept_at_most + trouble.target_quiesce);
        for request in sent {
            // P6: trims and zeroes count like writes.
            let counts = matches!(request.command, Command::Write(..)) || self.rules.keeps(Rule::P6);
            let Some(range) = request.changes().filter(|_| counts) else { continue };
            if request.token == 0 {
                trouble.last_token += 1;
                request.token = trouble.last_token | if trial { REPLAYED } else { 0 };
            }
            trouble.ghosts.add(Ghost { token: request.token, range, dead_at, executor: by.executor });
        }
        if !trouble.ghosts.is_empty() {
            self.calm.store(false, Ordering::Release);
        }
    }

    /// P7: drained means that no ghosts are left.
    pub fn ghosts(&self) -> Vec<Range<u64>> {
        if !self.rules.keeps(Rule::P7) {
            return Vec::new();
        }
        self.trouble.lock().ghosts.ranges()
    }

    /// The caller's flush.
    pub fn flush(&self, on_done: OnDone) {
        // P9: what could not be kept is reported once.
        if self.flush_fails.swap(false, Ordering::AcqRel) {
            return on_done(Outcome::Failed(libc::EIO));
        }
        self.send_flush(on_done, false, None);
    }

    /// Makes one write durable.
    pub fn flush_write(&self, written: Range<u64>, on_done: OnDone) {
        self.send_flush(on_done, false, Some(written));
    }

    /// A flush by which kept changes need not be kept any more.
    pub fn flush_kept(&self) {
        self.send_flush(Box::new(|_| {}), true, None);
    }

    fn send_flush(&self, on_done: OnDone, background: bool, after: Option<Range<u64>>) {
        let mut request = Request::new(Command::Flush(on_done), self.clock.boot());
        (request.background, request.after) = (background, after);
        if self.keeps.load(Ordering::Acquire) {
            request.covers = self.kept.lock().last();
        }
        self.dispatch(request);
    }

    /// Keeps what a restart of the target may lose (P9).
    fn note(&self, request: &Request, outcome: Outcome) {
        if let Command::Flush(_) = request.command {
            let mut kept = self.kept.lock();
            if outcome == Outcome::Done {
                kept.flushed(request.covers)
            } else {
                kept.not_flushed()
            }
            return;
        }
        if outcome != Outcome::Done {
            return;
        }
        let change = match &request.command {
            // A write with FUA is kept too: replaying an older one over it would undo it.
            Command::Write(offset, data, ..) => Change::Write(*offset, data.clone()),
            Command::Zero(range, _) => Change::Zero(range.clone()),
            Command::Read(..) | Command::Flush(_) | Command::Trim(..) => return,
        };
        if self.kept.lock().keep(change) {
            self.flush_wanted.store(true, Ordering::Release);
            self.news.notify_all();
        }
    }

    /// Ends all that is held; nothing is taken any more.
    pub fn stop(&self) {
        self.ways.iter().for_each(|way| way.part());
        let live = {
            let _trouble = self.trouble.lock();
            self.stopped.store(true, Ordering::Release);
            self.calm.store(false, Ordering::Release);
            self.live.swap(None)
        };
        if let Some(live) = live {
            live.link.close("the LUN is closed");
        }
        let left: Vec<_> = {
            let mut trouble = self.trouble.lock();
            let waiting = std::mem::take(&mut trouble.waiting);
            trouble.held.drain(..).chain(waiting).collect()
        };
        self.news.notify_all();
        self.room.notify_all();
        left.into_iter().for_each(Request::give_up);
    }
}

/// Who has the requests of a link, and for how long at most before they reach the target.
#[derive(Clone, Copy, Debug, Default)]
struct Carrying {
    executor: Option<Executor>,
    kept_at_most: Duration,
}

/// Hears what becomes of the requests of one link.
pub struct LinkEvents {
    traffic: Arc<Traffic>,
    generation: u64,
    /// Set while the link is only being tried: what it loses then is given up, for whoever tries to see.
    trial: AtomicBool,
    carrying: Mutex<Carrying>,
    broken: Arc<AtomicBool>,
}

impl LinkEvents {
    /// Events of the link `generation`, which is on trial.
    pub fn new(traffic: Arc<Traffic>, generation: u64) -> Self {
        let (trial, broken) = (AtomicBool::new(true), Arc::default());
        Self { traffic, generation, trial, carrying: Mutex::default(), broken }
    }

    /// The requests go by `link`.
    pub fn is_by(&self, link: &dyn Link) {
        *self.carrying.lock() = Carrying { executor: link.executor(), kept_at_most: link.kept_at_most() };
    }

    /// Whether the link has been lost.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// What is set when the link is lost.
    pub fn broken(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.broken)
    }

    /// Takes the link into use, unless it is broken. The caller holds the lock of the trouble.
    pub fn accept(&self) -> bool {
        self.trial.store(false, Ordering::Release);
        !self.is_broken()
    }
}

impl Events for LinkEvents {
    fn ended(&self, request: Request, outcome: Outcome) {
        let own = !self.trial.load(Ordering::Acquire) && !request.carried;
        if own && self.traffic.keeps.load(Ordering::Acquire) {
            self.traffic.note(&request, outcome);
        }
        request.finish(outcome);
    }

    fn lost(&self, why: &str, mut sent: Vec<Request>, unsent: Vec<Request>) {
        let traffic = &self.traffic;
        let carried;
        let given_up = {
            let mut trouble = traffic.trouble.lock();
            self.broken.store(true, Ordering::Release);
            let trial = self.trial.load(Ordering::Acquire);
            traffic.haunt(&mut trouble, &mut sent, *self.carrying.lock(), trial);
            if !trial && !traffic.stopped.load(Ordering::Acquire) {
                traffic.take_down(&mut trouble, self.generation, why);
            }
            // Whoever had a request carried hears that nobody knows, and decides.
            let (others, all): (Vec<_>, Vec<_>) =
                sent.into_iter().chain(unsent).partition(|request| request.carried);
            carried = others;
            // P2: no error of a path reaches the caller.
            let over = traffic.stopped.load(Ordering::Acquire) || traffic.refused.load(Ordering::Acquire);
            if trial || !traffic.rules.keeps(Rule::P2) || over {
                all
            } else {
                trouble.held.extend(all);
                Vec::new()
            }
        };
        traffic.news.notify_all();
        given_up.into_iter().for_each(Request::give_up);
        carried.into_iter().for_each(|request| request.finish(Outcome::Unknown));
    }
}

impl std::fmt::Debug for Traffic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Traffic({})", self.name())
    }
}

impl Direct for Traffic {
    fn seat(&self) -> Result<(u64, Abilities), String> {
        match &*self.live.load() {
            Some(live) if live.direct => Ok((live.generation, live.link.abilities().clone())),
            Some(_) => Err("it has lost its own paths to the LUN, and goes through a peer itself".to_owned()),
            None => Err("it has no path to the LUN".to_owned()),
        }
    }

    fn carry(&self, seat: u64, mut request: Request) -> Result<(), (Box<Request>, String)> {
        let back = |request, why: &str| Err((request, why.to_owned()));
        let Some(live) = self.live.load_full().filter(|live| live.direct && live.generation == seat) else {
            return back(Box::new(request), "the path by which it was to be executed is not in use any more");
        };
        // L3: what is sent under this node's name, it sends under its lease.
        let standing = self.tenure.lock().as_ref().map(|tenure| tenure.now(self.rules, &*self.clock));
        if request.changes().is_some() && !matches!(standing, None | Some(Standing::Holds)) {
            return back(Box::new(request), "the lease of the peer's session does not hold");
        }
        request.carried = true;
        match way::while_completing(|| live.link.submit(request)) {
            Ok(()) => Ok(()),
            Err(request) => back(request, "the path by which it was to be executed is closed"),
        }
    }

    fn drain_for(&self, other: Credentials) -> Option<Instance> {
        let current = self.current.load(Ordering::Acquire);
        self.ways.get(current).filter(|way| way.through().is_none())?.drain_for(other)
    }

    fn ghosts(&self) -> Vec<Range<u64>> {
        self.ghosts()
    }
}

/// When a held request is given up.
pub fn given_up_at(request: &Request, hold: Duration) -> BootTime {
    request.born.after(hold)
}
