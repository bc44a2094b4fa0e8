//! A LUN on which things go wrong as a test says.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use lockd::ids::ClientId;
use parking_lot::Mutex;

use crate::buffer::{Buffer, Pool, Slice};
use crate::lun::{Geometry, Lun, OnDone, OnRead, Outcome, Proof};

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A flush; its range is empty.
    Flush,
    /// Zeroing.
    Zero,
    /// Trimming.
    Trim,
}

/// A request, as the test that decides about it sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// What it is.
    pub kind: Kind,
    /// Bytes of the LUN.
    pub range: Range<u64>,
    /// How many requests came before it.
    pub number: u64,
}

/// What becomes of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It is executed.
    None,
    /// It fails with this errno and is not executed.
    Fail(i32),
    /// Its outcome is unknown. It is not executed now, but is when the ghosts are delivered; a read or flush never.
    Lose,
    /// Its outcome is unknown, and it is executed.
    LoseReply,
    /// It waits until what is held is released, and is executed then.
    Hold,
}

/// A change that was lost on the way and may still arrive.
enum Change {
    Write(Slice),
    Zero,
    Trim,
}

struct Ghost {
    range: Range<u64>,
    /// `None`: it has been executed, which the sender does not know.
    change: Option<Change>,
}

type Plan = dyn FnMut(&Asked) -> Fault + Send;
type Held = Box<dyn FnOnce(&dyn Lun) + Send>;

struct State {
    plan: Box<Plan>,
    asked: u64,
    ghosts: Vec<Ghost>,
    held: Vec<Held>,
}

/// A test device: a LUN before which requests fail, get lost or wait, as a plan decides for each.
pub struct FaultyLun {
    inner: Arc<dyn Lun>,
    state: Mutex<State>,
}

impl fmt::Debug for FaultyLun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyLun").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl FaultyLun {
    /// A LUN before `inner` on which nothing goes wrong yet.
    #[must_use]
    pub fn new(inner: Arc<dyn Lun>) -> Self {
        let plan = Box::new(|_: &Asked| Fault::None);
        Self { inner, state: Mutex::new(State { plan, asked: 0, ghosts: Vec::new(), held: Vec::new() }) }
    }

    /// From now on `plan` decides about each request. It must not call the LUN.
    pub fn plan(&self, plan: impl FnMut(&Asked) -> Fault + Send + 'static) {
        self.state.lock().plan = Box::new(plan);
    }

    /// From now on every request is executed.
    pub fn heal(&self) {
        self.plan(|_| Fault::None);
    }

    /// Delivers the lost changes late: they reach the LUN now, in the order in which they were sent. They stay ghosts
    /// until they are dead. Returns how many there were.
    pub fn deliver_ghosts(&self) -> usize {
        let changes: Vec<(Range<u64>, Change)> = {
            let mut state = self.state.lock();
            let lost = state.ghosts.iter_mut();
            lost.filter_map(|ghost| Some((ghost.range.clone(), ghost.change.take()?))).collect()
        };
        let count = changes.len();
        for (range, change) in changes {
            match change {
                Change::Write(data) => self.inner.write(range.start, data, false, Box::new(|_| {})),
                Change::Zero => self.inner.zero(range, Box::new(|_| {})),
                Change::Trim => self.inner.trim(range, Box::new(|_| {})),
            }
        }
        count
    }

    /// The target has proved that nothing lost will arrive any more.
    pub fn kill_ghosts(&self) {
        self.state.lock().ghosts.clear();
    }

    /// Executes what is held. Returns how many requests there were.
    pub fn release(&self) -> usize {
        let held = std::mem::take(&mut self.state.lock().held);
        let count = held.len();
        for request in held {
            request(&*self.inner);
        }
        count
    }

    /// How many requests are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.state.lock().held.len()
    }

    fn decide(&self, kind: Kind, range: Range<u64>) -> Fault {
        let mut state = self.state.lock();
        let asked = Asked { kind, range, number: state.asked };
        state.asked += 1;
        (state.plan)(&asked)
    }

    fn haunt(&self, range: Range<u64>, change: Option<Change>) {
        self.state.lock().ghosts.push(Ghost { range, change });
    }

    /// A zero or a trim.
    fn change(&self, kind: Kind, range: Range<u64>, on_done: OnDone) {
        let execute = move |inner: &dyn Lun, range: Range<u64>, on_done: OnDone| match kind {
            Kind::Trim => inner.trim(range, on_done),
            _ => inner.zero(range, on_done),
        };
        match self.decide(kind, range.clone()) {
            Fault::None => execute(&*self.inner, range, on_done),
            Fault::Fail(errno) => on_done(Outcome::Failed(errno)),
            Fault::Lose => {
                let change = if kind == Kind::Trim { Change::Trim } else { Change::Zero };
                self.haunt(range, Some(change));
                on_done(Outcome::Unknown);
            }
            Fault::LoseReply => {
                self.haunt(range.clone(), None);
                execute(&*self.inner, range, Box::new(|_| on_done(Outcome::Unknown)));
            }
            Fault::Hold => {
                self.state.lock().held.push(Box::new(move |inner| execute(inner, range, on_done)));
            }
        }
    }
}

impl Lun for FaultyLun {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn read(&self, offset: u64, buffer: Buffer, on_read: OnRead) {
        match self.decide(Kind::Read, offset..offset + buffer.len() as u64) {
            Fault::None => self.inner.read(offset, buffer, on_read),
            Fault::Fail(errno) => on_read(Outcome::Failed(errno), buffer),
            Fault::Lose | Fault::LoseReply => {
                on_read(Outcome::Unknown, Pool::default().take_zeroed(buffer.len()));
            }
            Fault::Hold => {
                let held: Held = Box::new(move |inner| inner.read(offset, buffer, on_read));
                self.state.lock().held.push(held);
            }
        }
    }

    fn write(&self, offset: u64, data: Slice, fua: bool, on_done: OnDone) {
        let range = offset..offset + data.len() as u64;
        match self.decide(Kind::Write, range.clone()) {
            Fault::None => self.inner.write(offset, data, fua, on_done),
            Fault::Fail(errno) => on_done(Outcome::Failed(errno)),
            Fault::Lose => {
                self.haunt(range, Some(Change::Write(data)));
                on_done(Outcome::Unknown);
            }
            Fault::LoseReply => {
                self.haunt(range, None);
                self.inner.write(offset, data, fua, Box::new(|_| on_done(Outcome::Unknown)));
            }
            Fault::Hold => {
                let held: Held = Box::new(move |inner| inner.write(offset, data, fua, on_done));
                self.state.lock().held.push(held);
            }
        }
    }

    fn flush(&self, on_done: OnDone) {
        match self.decide(Kind::Flush, 0..0) {
            Fault::None => self.inner.flush(on_done),
            Fault::Fail(errno) => on_done(Outcome::Failed(errno)),
            Fault::Lose => on_done(Outcome::Unknown),
            Fault::LoseReply => self.inner.flush(Box::new(|_| on_done(Outcome::Unknown))),
            Fault::Hold => self.state.lock().held.push(Box::new(move |inner| inner.flush(on_done))),
        }
    }

    fn zero(&self, range: Range<u64>, on_done: OnDone) {
        self.change(Kind::Zero, range, on_done);
    }

    fn trim(&self, range: Range<u64>, on_done: OnDone) {
        self.change(Kind::Trim, range, on_done);
    }

    fn ghosts(&self) -> Vec<Range<u64>> {
        let own = self.state.lock().ghosts.iter().map(|ghost| ghost.range.clone()).collect::<Vec<_>>();
        [own, self.inner.ghosts()].concat()
    }

    fn prove_ended(&self, earlier: ClientId) -> Proof {
        if self.state.lock().ghosts.is_empty() { self.inner.prove_ended(earlier) } else { Proof::Unprovable }
    }

    fn describe(&self) -> String {
        format!("{} with faults (a test device)", self.inner.describe())
    }
}
