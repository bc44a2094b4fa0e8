//! A LUN in memory that records what is done to it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use lockd::ids::ClientId;
use parking_lot::{Condvar, Mutex};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::record::{Bytes, Change, Record};
use crate::buffer::{Buffer, Slice};
use crate::lun::{Geometry, Lun, OnDone, OnRead, Outcome, Proof};
use crate::memory::{self, Image};

/// What trimmed bytes read as: not zeros, so that whoever counts on zeros is found out.
pub const TRIMMED: u8 = 0xa5;

/// When requests are done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Completion {
    /// Before the method returns. A program that does not wait for its writes before it flushes goes unnoticed.
    Inline,
    /// Later and in an order drawn from this seed, on a thread of the LUN's own.
    Shuffled(u64),
}

enum Caller {
    Read(Buffer, OnRead),
    Change(usize, OnDone),
    Flush(usize, OnDone),
}

struct Pending {
    offset: u64,
    caller: Caller,
}

#[derive(Default)]
struct State {
    image: Image,
    record: Record,
    pending: Vec<Pending>,
    closing: bool,
}

struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
}

impl Shared {
    /// Executes a request and tells its caller.
    fn execute(&self, Pending { offset, caller }: Pending) {
        let mut state = self.state.lock();
        let State { image, record, .. } = &mut *state;
        match caller {
            Caller::Read(mut buffer, on_read) => {
                image.read(offset, &mut buffer);
                drop(state);
                on_read(Outcome::Done, buffer);
            }
            Caller::Change(number, on_done) => {
                if let Some(change) = &record.requests[number].change {
                    change.apply(image);
                }
                record.done(number);
                drop(state);
                on_done(Outcome::Done);
            }
            Caller::Flush(number, on_done) => {
                record.done(number);
                drop(state);
                on_done(Outcome::Done);
            }
        }
    }

    /// Executes what is pending, in random order, until the LUN is dropped.
    fn run(&self, seed: u64) {
        let mut random = SmallRng::seed_from_u64(seed);
        loop {
            let pending = {
                let mut state = self.state.lock();
                while state.pending.is_empty() {
                    if state.closing {
                        return;
                    }
                    self.arrived.wait(&mut state);
                }
                let chosen = random.random_range(0..state.pending.len());
                state.pending.swap_remove(chosen)
            };
            self.execute(pending);
        }
    }
}

/// A test device: a LUN in memory that records every change and flush.
pub struct RecordingLun {
    geometry: Geometry,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for RecordingLun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordingLun").field("geometry", &self.geometry).finish_non_exhaustive()
    }
}

impl RecordingLun {
    /// A LUN with `geometry` that holds `image`, which is durable.
    #[must_use]
    pub fn new(geometry: Geometry, image: Image, completion: Completion) -> Self {
        let record = Record { base: image.clone(), ..Record::default() };
        let state = State { image, record, ..State::default() };
        let shared = Arc::new(Shared { state: Mutex::new(state), arrived: Condvar::new() });
        let thread = match completion {
            Completion::Inline => None,
            Completion::Shuffled(seed) => {
                let shared = Arc::clone(&shared);
                Some(thread::spawn(move || shared.run(seed)))
            }
        };
        Self { geometry, shared, thread }
    }

    /// Notes that the program has acknowledged everything up to `mark` as durable.
    pub fn mark(&self, mark: u64) {
        self.shared.state.lock().record.mark(mark);
    }

    /// What has been recorded so far.
    #[must_use]
    pub fn record(&self) -> Record {
        self.shared.state.lock().record.clone()
    }

    /// The contents, with all that is done.
    #[must_use]
    pub fn snapshot(&self) -> Image {
        self.shared.state.lock().image.clone()
    }

    fn start(&self, offset: u64, caller: impl FnOnce(&mut Record) -> Caller) {
        let mut state = self.shared.state.lock();
        let caller = caller(&mut state.record);
        let pending = Pending { offset, caller };
        if self.thread.is_some() {
            state.pending.push(pending);
            self.shared.arrived.notify_one();
        } else {
            drop(state);
            self.shared.execute(pending);
        }
    }

    fn fill(&self, range: Range<u64>, byte: u8, on_done: OnDone) {
        if let Err(errno) = memory::check_range(&self.geometry, &range) {
            return on_done(Outcome::Failed(errno));
        }
        self.start(range.start, move |record| {
            let change = Change { range, bytes: Bytes::Filled(byte), fua: false };
            Caller::Change(record.start(Some(change)), on_done)
        });
    }
}

impl Drop for RecordingLun {
    fn drop(&mut self) {
        self.shared.state.lock().closing = true;
        self.shared.arrived.notify_one();
        let thread = self.thread.take().filter(|thread| thread.thread().id() != thread::current().id());
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a completion panicked");
        }
    }
}

impl Lun for RecordingLun {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, offset: u64, buffer: Buffer, on_read: OnRead) {
        match memory::check_transfer(&self.geometry, offset, buffer.len()) {
            Err(errno) => on_read(Outcome::Failed(errno), buffer),
            Ok(()) => self.start(offset, move |_| Caller::Read(buffer, on_read)),
        }
    }

    fn write(&self, offset: u64, data: Slice, fua: bool, on_done: OnDone) {
        if let Err(errno) = memory::check_transfer(&self.geometry, offset, data.len()) {
            return on_done(Outcome::Failed(errno));
        }
        let range = offset..offset + data.len() as u64;
        // A copy of its own: the record would keep the whole buffer.
        let bytes = Bytes::Data(Box::from(&data[..]));
        drop(data);
        self.start(offset, move |record| {
            Caller::Change(record.start(Some(Change { range, bytes, fua })), on_done)
        });
    }

    fn flush(&self, on_done: OnDone) {
        self.start(0, move |record| Caller::Flush(record.start(None), on_done));
    }

    fn zero(&self, range: Range<u64>, on_done: OnDone) {
        self.fill(range, 0, on_done);
    }

    fn trim(&self, range: Range<u64>, on_done: OnDone) {
        self.fill(range, TRIMMED, on_done);
    }

    fn ghosts(&self) -> Vec<Range<u64>> {
        Vec::new()
    }

    fn prove_ended(&self, _earlier: ClientId) -> Proof {
        Proof::Ended("memory of this process: nothing is on its way".to_owned())
    }

    fn prove_alone(&self) -> Proof {
        Proof::Ended("memory of this process: nobody else can reach it".to_owned())
    }

    fn describe(&self) -> String {
        format!("{} bytes of memory, recorded (a test device)", self.geometry.size)
    }
}
