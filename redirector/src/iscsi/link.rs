//! One session, and the thread that owns it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lockd::clock::{BootTime, Clock};
use lockd::iscsi::{Ended, IscsiUri, Session};
use parking_lot::{Condvar, Mutex};

use super::fate::{Fate, decide};
use super::flight::{Entry, Load, Terms};
use super::portal::{DRAINED, Word};
use super::registration::Reservation;
use super::wake::Bell;
use crate::lun::Outcome;
use crate::paths::latency::Latency;
use crate::paths::request::Request;
use crate::paths::way::{self, Abilities, Drained, Events, Link};

/// Commands in flight at most; the target may allow fewer (MaxCmdSN), which libiscsi looks after.
const WINDOW: usize = 128;
/// Requests that wait for a place in flight at most; submitters wait then.
const QUEUE_MAX: usize = 128;
/// The rest of a request that the target was too busy for.
const REST: Duration = Duration::from_millis(10);
/// How long the thread looks for news before it sleeps, with requests in flight.
const LOOK: Duration = Duration::from_micros(50);
/// How long a target may take to hear goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
struct Queue {
    requests: VecDeque<Request>,
    closed: Option<String>,
}

/// What the submitters and the thread share.
struct Shared {
    queue: Mutex<Queue>,
    room: Condvar,
    bell: Bell,
    asleep: AtomicBool,
    /// When the oldest command in flight was sent, in nanoseconds of the boot clock; zero for none.
    oldest: AtomicU64,
    waiting: AtomicUsize,
    latency: Latency,
    over: Mutex<bool>,
    ended: Condvar,
}

/// The session in use.
pub struct IscsiLink {
    shared: Arc<Shared>,
    abilities: Abilities,
    word: Arc<Word>,
}

impl fmt::Debug for IscsiLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IscsiLink").field("abilities", &self.abilities).finish_non_exhaustive()
    }
}

impl IscsiLink {
    /// Starts the thread of `session`. `registered`: as whom the client has registered, and where.
    pub fn start(
        session: Session<Load>,
        terms: Terms,
        abilities: Abilities,
        word: Arc<Word>,
        registered: Option<(IscsiUri, Reservation)>,
        events: Arc<dyn Events>,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            room: Condvar::new(),
            bell: Bell::new()?,
            asleep: AtomicBool::new(false),
            oldest: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            latency: Latency::default(),
            over: Mutex::new(false),
            ended: Condvar::new(),
        });
        let keeper = Keeper {
            shared: Arc::clone(&shared),
            session,
            terms,
            word: Arc::clone(&word),
            registered,
            events,
            clock,
            later: Vec::new(),
            taken: Vec::new(),
        };
        thread::Builder::new().name("iscsi".to_owned()).spawn(move || keeper.run())?;
        Ok(Arc::new(Self { shared, abilities, word }))
    }
}

impl Link for IscsiLink {
    fn submit(&self, request: Request) -> Result<(), Box<Request>> {
        let shared = &self.shared;
        let mut queue = shared.queue.lock();
        while queue.closed.is_none() && queue.requests.len() >= QUEUE_MAX && !way::completing() {
            shared.waiting.fetch_add(1, Ordering::Relaxed);
            shared.room.wait(&mut queue);
            shared.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        if queue.closed.is_some() {
            return Err(Box::new(request));
        }
        queue.requests.push_back(request);
        drop(queue);
        if shared.asleep.swap(false, Ordering::SeqCst) {
            shared.bell.ring();
        }
        Ok(())
    }

    fn abilities(&self) -> &Abilities {
        &self.abilities
    }

    fn drained(&self) -> Drained {
        DRAINED
    }

    fn connections(&self) -> usize {
        1
    }

    fn oldest(&self) -> Option<BootTime> {
        Some(self.shared.oldest.load(Ordering::Relaxed)).filter(|sent| *sent != 0).map(BootTime)
    }

    fn p999(&self) -> Option<Duration> {
        Latency::p999(std::iter::once(&self.shared.latency))
    }

    fn latencies(&self) -> Vec<(Duration, u64)> {
        Latency::classes(std::iter::once(&self.shared.latency))
    }

    fn close(&self, why: &str) {
        self.shared.queue.lock().closed.get_or_insert_with(|| why.to_owned());
        self.shared.room.notify_all();
        self.shared.bell.ring();
        if self.word.parting.load(Ordering::Acquire) {
            // The process may end next: the target is to hear of it first.
            let mut over = self.shared.over.lock();
            let until = Instant::now() + 3 * GOODBYE;
            while !*over && !self.shared.ended.wait_until(&mut over, until).timed_out() {}
        }
    }
}

/// Why the thread ends.
struct Break {
    why: String,
    /// Requests that were not executed.
    unsent: Vec<Request>,
    /// The session is well: it was asked to end.
    is_well: bool,
}

impl Break {
    fn new(why: impl Into<String>, unsent: Vec<Request>) -> Self {
        Self { why: why.into(), unsent, is_well: false }
    }
}

/// The thread's own.
struct Keeper {
    shared: Arc<Shared>,
    session: Session<Load>,
    terms: Terms,
    word: Arc<Word>,
    /// As whom this client has registered, and where; the registration is taken back when it leaves.
    registered: Option<(IscsiUri, Reservation)>,
    events: Arc<dyn Events>,
    clock: Arc<dyn Clock>,
    /// Requests that the target was too busy for, and when they are sent again.
    later: Vec<(Instant, Box<Entry>)>,
    taken: Vec<Request>,
}

impl Keeper {
    fn run(mut self) {
        way::mark_completing();
        let broken = loop {
            if let Err(broken) = self.round() {
                break broken;
            }
        };
        self.finish(broken);
    }

    /// Takes what was submitted, waits for news, completes what has ended.
    fn round(&mut self) -> Result<(), Break> {
        self.take()?;
        // At once: without asking first whether the socket takes it.
        self.service(libc::POLLOUT)?;
        self.note_oldest();
        let events = self.wait();
        self.service(events)?;
        Ok(())
    }

    fn take(&mut self) -> Result<(), Break> {
        let room = WINDOW.saturating_sub(self.session.in_flight() + self.later.len());
        {
            let mut queue = self.shared.queue.lock();
            if let Some(why) = &queue.closed {
                return Err(Break { why: why.clone(), unsent: Vec::new(), is_well: true });
            }
            let count = room.min(queue.requests.len());
            self.taken.extend(queue.requests.drain(..count));
        }
        if !self.taken.is_empty() && self.shared.waiting.load(Ordering::Relaxed) > 0 {
            self.shared.room.notify_all();
        }
        let now = if self.taken.is_empty() { BootTime(0) } else { self.clock.boot() };
        let mut taken = std::mem::take(&mut self.taken).into_iter();
        while let Some(request) = taken.next() {
            if let Err(mut broken) = self.start(Box::new(Entry::new(request, now))) {
                broken.unsent.extend(taken);
                return Err(broken);
            }
        }
        let now = Instant::now();
        while let Some(at) = self.later.iter().position(|(due, _)| *due <= now) {
            let (_, entry) = self.later.swap_remove(at);
            self.start(entry)?;
        }
        Ok(())
    }

    fn start(&mut self, mut entry: Box<Entry>) -> Result<(), Break> {
        let cdb = entry.command(&self.terms);
        self.session.start(&cdb, Load::Io(entry)).map_err(|load| {
            Break::new("libiscsi takes no command any more", request_of(load).into_iter().collect())
        })
    }

    fn note_oldest(&self) {
        let in_flight = self.session.payloads().filter_map(|load| match load {
            Load::Io(entry) => Some(entry.sent),
            Load::Own(_) => None,
        });
        let oldest = in_flight.chain(self.later.iter().map(|(_, entry)| entry.sent)).min();
        self.shared.oldest.store(oldest.map_or(0, |sent| sent.0.max(1)), Ordering::Relaxed);
    }

    /// Waits for the target or for a request; says what can be done at the socket.
    fn wait(&self) -> libc::c_short {
        let socket =
            libc::pollfd { fd: self.session.descriptor(), events: self.session.events(), revents: 0 };
        let bell = libc::pollfd { fd: self.shared.bell.descriptor(), events: libc::POLLIN, revents: 0 };
        let mut both = [socket, bell];
        let look_until = (self.session.in_flight() > 0).then(|| Instant::now() + LOOK);
        loop {
            let looks = look_until.is_some_and(|until| Instant::now() < until);
            let pause = if looks {
                0
            } else if self.later.is_empty() {
                -1
            } else {
                i32::try_from(REST.as_millis()).unwrap_or(1)
            };
            if !looks {
                self.shared.asleep.store(true, Ordering::SeqCst);
            }
            let has_room = self.session.in_flight() + self.later.len() < WINDOW;
            let has_work = {
                let queue = self.shared.queue.lock();
                queue.closed.is_some() || (has_room && !queue.requests.is_empty())
            };
            let pause = if has_work { 0 } else { pause };
            // SAFETY: two `pollfd`.
            unsafe { libc::poll(both.as_mut_ptr(), 2, pause) };
            self.shared.asleep.store(false, Ordering::SeqCst);
            if both[1].revents != 0 {
                self.shared.bell.still();
            }
            if both.iter().any(|one| one.revents != 0) || has_work || !looks {
                return both[0].revents;
            }
            std::hint::spin_loop();
        }
    }

    /// Serves the session and completes what has ended.
    fn service(&mut self, events: libc::c_short) -> Result<(), Break> {
        let served = if events == 0 { Ok(()) } else { self.session.service(events) };
        let mut broken = served.err().map(|error| Break::new(error.to_string(), Vec::new()));
        let ended = self.session.ended();
        let now = if ended.is_empty() { BootTime(0) } else { self.clock.boot() };
        for (load, how) in ended {
            let Load::Io(entry) = load else { continue };
            if let Err(more) = self.complete(entry, how, now) {
                let all = broken.get_or_insert_with(|| Break::new(more.why, Vec::new()));
                all.unsent.extend(more.unsent);
            }
        }
        broken.map_or(Ok(()), Err)
    }

    fn complete(&mut self, mut entry: Box<Entry>, how: Ended, now: BootTime) -> Result<(), Break> {
        let how = match how {
            // Of parameters, some targets say that nothing was transferred.
            Ended::Good(_) if !entry.moves_data() => Ended::Good(0),
            how => how,
        };
        let fate = decide(how, self.registered.is_some(), entry.tries);
        if fate != Fate::Finish(Outcome::Done) && how != Ended::Lost {
            tracing::debug!(request = ?entry.request, %how, ?fate, "a command has ended otherwise than well");
        }
        let not_executed = |why: &str, entry: Entry| Break::new(why, vec![entry.request]);
        match fate {
            Fate::Finish(Outcome::Done) if !entry.has_done() => self.start(entry),
            Fate::Finish(outcome) => {
                self.shared.latency.record(now.since(entry.sent));
                self.events.ended(entry.request, outcome);
                Ok(())
            }
            Fate::Again => self.start(entry),
            Fate::Later => {
                self.later.push((Instant::now() + REST, entry));
                Ok(())
            }
            Fate::Anew(why) => Err(not_executed(why, *entry)),
            Fate::Reset(why) => {
                self.word.has_reset();
                Err(not_executed(why, *entry))
            }
            Fate::Refused(why) => {
                self.word.refused.lock().get_or_insert_with(|| why.to_owned());
                self.events.ended(entry.request, Outcome::Failed(libc::EIO));
                Err(Break::new(why, Vec::new()))
            }
            Fate::Unknown(why) => {
                self.events.lost(why, vec![entry.request], Vec::new());
                Err(Break::new(why, Vec::new()))
            }
        }
    }

    /// Says goodbye if the session is well and has nothing in flight, and gives back all that is not done.
    fn finish(self, broken: Break) {
        let Self { shared, mut session, word, registered, events, later, .. } = self;
        let Break { why, mut unsent, is_well } = broken;
        unsent.extend(later.into_iter().map(|(_, entry)| entry.request));
        {
            let mut queue = shared.queue.lock();
            queue.closed.get_or_insert_with(|| why.clone());
            unsent.extend(queue.requests.drain(..));
        }
        shared.room.notify_all();
        let sent: Vec<_> = if is_well && session.in_flight() == 0 {
            if word.parting.load(Ordering::Acquire) {
                let left =
                    registered.map(|(uri, own)| own.leave(&uri, &mut session, Instant::now() + GOODBYE));
                if let Some(Err(error)) = left {
                    tracing::warn!(%error, "the registration with the LUN could not be taken back");
                }
            }
            session.log_out(GOODBYE);
            Vec::new()
        } else {
            session.end().into_iter().filter_map(request_of).collect()
        };
        shared.oldest.store(0, Ordering::Relaxed);
        events.lost(&why, sent, unsent);
        *shared.over.lock() = true;
        shared.ended.notify_all();
    }
}

fn request_of(load: Load) -> Option<Request> {
    match load {
        Load::Io(entry) => Some(entry.request),
        Load::Own(_) => None,
    }
}
