//! A LUN in memory whose requests tests hold, fail and lose.

use std::cell::Cell;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use lockd::ids::ClientId;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use redirector::buffer::{Buffer, Slice};
use redirector::lun::{Geometry, Lun, OnDone, OnRead, Outcome, Proof};

thread_local! {
    /// This thread runs what follows a completion.
    pub static COMPLETES: Cell<bool> = const { Cell::new(false) };
}

/// What has happened, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    Write(Range<u64>),
    Flush,
    Message(String),
}

/// What may be held back until a test lets it go.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum What {
    Reads,
    Writes,
    Flushes,
}

enum Request {
    Read(u64, Buffer, OnRead),
    Write(u64, Slice, OnDone),
    Flush(OnDone),
}

#[derive(Default)]
struct State {
    image: Vec<u8>,
    /// What survives a crash for sure.
    durable: Vec<u8>,
    /// Writes since the last flush.
    volatile: Vec<Range<usize>>,
    hold: HashSet<What>,
    held: Vec<Request>,
    ghosts: Vec<Range<u64>>,
    /// Outcomes of the next writes and flushes.
    write_outcomes: Vec<Outcome>,
    flush_outcomes: Vec<Outcome>,
}

/// See the module.
pub struct Platter {
    state: Mutex<State>,
    pub events: Arc<Mutex<Vec<Event>>>,
    /// Requests go to a thread, which executes them in random order.
    shuffler: Option<std::sync::mpsc::Sender<Request>>,
}

impl std::fmt::Debug for Platter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Platter")
    }
}

fn span(range: &Range<u64>) -> Range<usize> {
    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
}

fn garbage(bytes: usize) -> Vec<u8> {
    (0xE0..=0xEC_u8).cycle().take(bytes).collect()
}

impl Platter {
    /// A LUN full of what earlier files left.
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self::of(garbage(bytes)))
    }

    fn of(image: Vec<u8>) -> Self {
        let state = State { durable: image.clone(), image, ..State::default() };
        Self { state: Mutex::new(state), events: Arc::default(), shuffler: None }
    }

    /// One that completes its requests on another thread, in random order.
    pub fn shuffling(bytes: usize, seed: u64) -> Arc<Self> {
        let (sender, requests) = std::sync::mpsc::channel();
        let platter = Arc::new(Self { shuffler: Some(sender), ..Self::of(garbage(bytes)) });
        let weak = Arc::downgrade(&platter);
        std::thread::spawn(move || {
            let mut random = SmallRng::seed_from_u64(seed);
            let mut waiting = Vec::new();
            while let Ok(first) = requests.recv() {
                waiting.push(first);
                while !waiting.is_empty() {
                    if random.random_bool(0.3) {
                        std::thread::yield_now();
                    }
                    waiting.extend(requests.try_iter());
                    let request = waiting.swap_remove(random.random_range(0..waiting.len()));
                    let Some(platter) = weak.upgrade() else { return };
                    platter.execute(request);
                }
            }
        });
        platter
    }

    /// The LUN as it is found after the power has failed: of what was not flushed some is there, some is not.
    pub fn crash(&self, seed: u64) -> Arc<Self> {
        let state = self.state.lock();
        let mut random = SmallRng::seed_from_u64(seed);
        let mut image = state.durable.clone();
        for range in &state.volatile {
            for at in range.clone().step_by(512) {
                if random.random() {
                    let sector = at..(at + 512).min(range.end);
                    image[sector.clone()].copy_from_slice(&state.image[sector]);
                }
            }
        }
        Arc::new(Self::of(image))
    }

    pub fn hold(&self, what: What) {
        self.state.lock().hold.insert(what);
    }

    /// How many requests are held.
    pub fn held(&self) -> usize {
        self.state.lock().held.len()
    }

    /// Whether a flush is held.
    pub fn holds_a_flush(&self) -> bool {
        self.state.lock().held.iter().any(|request| matches!(request, Request::Flush(_)))
    }

    /// Executes what is held, and holds no more.
    pub fn let_go(&self) {
        let held = {
            let mut state = self.state.lock();
            state.hold.clear();
            std::mem::take(&mut state.held)
        };
        held.into_iter().for_each(|request| self.execute(request));
    }

    pub fn fail_next_write(&self, outcome: Outcome) {
        self.state.lock().write_outcomes.push(outcome);
    }

    pub fn fail_next_flush(&self, outcome: Outcome) {
        self.state.lock().flush_outcomes.push(outcome);
    }

    /// Nothing fails any more.
    pub fn recover(&self) {
        let mut state = self.state.lock();
        state.write_outcomes.clear();
        state.flush_outcomes.clear();
    }

    /// Ghosts appear by themselves with unknown outcomes; this sets them.
    pub fn set_ghosts(&self, ghosts: Vec<Range<u64>>) {
        self.state.lock().ghosts = ghosts;
    }

    fn take(&self, request: Request) {
        let what = match &request {
            Request::Read(..) => What::Reads,
            Request::Write(..) => What::Writes,
            Request::Flush(_) => What::Flushes,
        };
        {
            let mut state = self.state.lock();
            if state.hold.contains(&what) {
                state.held.push(request);
                return;
            }
        }
        match &self.shuffler {
            Some(shuffler) => shuffler.send(request).unwrap(),
            None => self.execute(request),
        }
    }

    fn execute(&self, request: Request) {
        let before = COMPLETES.replace(true);
        self.complete(request);
        COMPLETES.set(before);
    }

    fn complete(&self, request: Request) {
        match request {
            Request::Read(offset, mut buffer, on_read) => {
                let range = span(&(offset..offset + buffer.len() as u64));
                buffer.copy_from_slice(&self.state.lock().image[range]);
                on_read(Outcome::Done, buffer);
            }
            Request::Write(offset, data, on_done) => {
                let bytes = offset..offset + data.len() as u64;
                let range = span(&bytes);
                let outcome = {
                    let mut state = self.state.lock();
                    let outcome = state.write_outcomes.pop().unwrap_or(Outcome::Done);
                    match outcome {
                        Outcome::Done => {
                            state.image[range.clone()].copy_from_slice(&data);
                            state.volatile.push(range);
                        }
                        Outcome::Unknown => state.ghosts.push(bytes.clone()),
                        Outcome::Failed(_) => {}
                    }
                    outcome
                };
                self.events.lock().push(Event::Write(bytes));
                on_done(outcome);
            }
            Request::Flush(on_done) => {
                let outcome = {
                    let mut state = self.state.lock();
                    let outcome = state.flush_outcomes.pop().unwrap_or(Outcome::Done);
                    if outcome == Outcome::Done {
                        let State { image, durable, volatile, .. } = &mut *state;
                        for range in volatile.drain(..) {
                            durable[range.clone()].copy_from_slice(&image[range]);
                        }
                    }
                    outcome
                };
                self.events.lock().push(Event::Flush);
                on_done(outcome);
            }
        }
    }
}

impl Lun for Platter {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.state.lock().image.len() as u64,
            block_size: 512,
            request_max: 256 << 10,
            trim: false,
            write_zeroes: true,
            volatile_cache: true,
        }
    }
    fn read(&self, offset: u64, buffer: Buffer, on_read: OnRead) {
        assert!(offset.is_multiple_of(4096) && buffer.len().is_multiple_of(4096));
        self.take(Request::Read(offset, buffer, on_read));
    }
    fn write(&self, offset: u64, data: Slice, _fua: bool, on_done: OnDone) {
        assert!(offset.is_multiple_of(4096) && data.len().is_multiple_of(4096) && !data.is_empty());
        self.take(Request::Write(offset, data, on_done));
    }
    fn flush(&self, on_done: OnDone) {
        self.take(Request::Flush(on_done));
    }
    fn zero(&self, _range: Range<u64>, on_done: OnDone) {
        on_done(Outcome::Done);
    }
    fn trim(&self, _range: Range<u64>, on_done: OnDone) {
        on_done(Outcome::Done);
    }
    fn ghosts(&self) -> Vec<Range<u64>> {
        self.state.lock().ghosts.clone()
    }
    fn prove_ended(&self, _earlier: ClientId) -> Proof {
        Proof::Unprovable
    }
    fn describe(&self) -> String {
        "a platter".to_owned()
    }
}
