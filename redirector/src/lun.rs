//! The LUN as the upper layers see it.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use lockd::ids::{ClientId, NodeName};
use lockd::lease::Lease;
use lockd::reservation::{Shown, Trial};

use crate::buffer::{Buffer, Slice};
use crate::paths::way::Direct;

/// Why a LUN that is reached by something else has no reservations.
pub(crate) const NO_RESERVATIONS: &str = "the LUN is reached neither over iscsi:// nor as a block device";

/// What a LUN is and can do. Sizes in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// The size of the LUN.
    pub size: u64,
    /// Offsets and lengths of reads and writes are multiples of this (a power of two, at most 4096).
    pub block_size: u32,
    /// The longest read or write.
    pub request_max: u32,
    /// Whether `trim` reaches the target. If not, it is done at once and does nothing.
    pub trim: bool,
    /// Whether the target zeroes ranges by itself. If not, zeros are written.
    pub write_zeroes: bool,
    /// Whether the target may lose a completed write before a flush.
    pub volatile_cache: bool,
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The target has executed it.
    Done,
    /// The target has refused it with this errno (positive); it has not been and will not be executed.
    Failed(i32),
    /// Nobody knows: it may have been executed, and may still be later. A write, trim or zero is now a ghost.
    Unknown,
}

impl Outcome {
    /// The outcome as a result; unknown is `EIO`.
    pub fn ok(self) -> Result<(), i32> {
        match self {
            Self::Done => Ok(()),
            Self::Failed(errno) => Err(errno),
            Self::Unknown => Err(libc::EIO),
        }
    }
}

/// What is called, once and on any thread, when a read has ended; the buffer holds the data if it is done. It must not
/// block: it runs on the thread that receives completions.
pub type OnRead = Box<dyn FnOnce(Outcome, Buffer) + Send>;
/// What is called, once and on any thread, when any other request has ended. It must not block.
pub type OnDone = Box<dyn FnOnce(Outcome) + Send>;

/// The proof that nothing which an earlier client sent can still reach the LUN (rule V2 opens in place only with it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The earlier client's requests are all executed or refused for good; how it is known.
    Ended(String),
    /// The earlier client is connected now; who it is, as the target sees it.
    Alive(String),
    /// This target cannot tell.
    Unprovable,
}

/// The bytes by which a LUN is known: the part of the volume's label that holds its uuid (P3).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Where they lie, in bytes.
    pub offset: u64,
    /// What must be there, at most 4096 bytes.
    pub bytes: Vec<u8>,
}

/// By what csv-target is known: its control port says the same of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TargetMark {
    /// This run of it.
    pub boot: [u8; 16],
    /// Its list of the clients that it refuses for good, if that outlives the run.
    pub list: Option<[u8; 16]>,
}

/// One path of a LUN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PathFigures {
    /// The path's name.
    pub name: String,
    /// Whether it answers.
    pub up: bool,
    /// Whether it is the one in use, or, while none is, the last one.
    pub used: bool,
    /// The peer through which it leads; none: it leads to the target itself.
    pub through: Option<NodeName>,
    /// Why it is as it is.
    pub why: String,
}

/// A LUN's state in figures.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LunFigures {
    /// Requests that wait for a path, or for ghosts to die.
    pub held: u64,
    /// Byte ranges under ghosts.
    pub ghosts: u64,
    /// How many requests took less than each time, and not less than the one before, since the path was connected last.
    /// Empty where that is not measured.
    pub latencies: Vec<(Duration, u64)>,
    /// The LUN is connected, and a request has waited longer for its answer than the path time-out (P1).
    pub overdue: bool,
    /// For how long the LUN has been reached, or not, as it is now; none where that is not known.
    pub state_age: Option<Duration>,
    /// Its paths, the preferred one first; empty where there are none to choose from.
    pub paths: Vec<PathFigures>,
}

/// A shared block device: asynchronous, many requests in flight, in no order.
///
/// Requests that overlap and are in flight together end in either order. Every method returns at once but for
/// back-pressure: when the target's queue is full, submission waits.
pub trait Lun: Send + Sync + Debug {
    /// Size and abilities.
    fn geometry(&self) -> Geometry;

    /// Reads `buffer.len()` bytes at `offset`.
    fn read(&self, offset: u64, buffer: Buffer, on_read: OnRead);

    /// Writes `data` at `offset`; with `fua` it is durable when done.
    fn write(&self, offset: u64, data: Slice, fua: bool, on_done: OnDone);

    /// Makes every write that was done before this call durable.
    fn flush(&self, on_done: OnDone);

    /// Makes `range` read as zeros; allocation may be given up. Not durable before a flush.
    fn zero(&self, range: Range<u64>, on_done: OnDone);

    /// Tells the target that the contents of `range` do not matter any more.
    fn trim(&self, range: Range<u64>, on_done: OnDone);

    /// Byte ranges whose writes, trims or zeroes have an unknown outcome (P4, P6). Empty means drained when nothing is
    /// in flight (P7).
    fn ghosts(&self) -> Vec<Range<u64>>;

    /// Proves that requests of `earlier`, a client that used this LUN before, have ended for good.
    fn prove_ended(&self, earlier: ClientId) -> Proof;

    /// The csv-target behind the LUN, if it is one.
    fn target(&self) -> Option<TargetMark> {
        None
    }

    /// Tries whether the target keeps out, by SCSI persistent reservations, who has been fenced.
    ///
    /// # Errors
    /// Why it does not, or cannot be asked.
    fn try_reservations(&self, trial: Trial<'_>) -> Result<Shown, String> {
        let _ = trial;
        Err(NO_RESERVATIONS.to_owned())
    }

    /// What must be read at a place of the LUN whenever it is reached anew, known once the volume's label has been read
    /// (P3). Ways that never reconnect need not look.
    fn expect(&self, identity: Identity) {
        let _ = identity;
    }

    /// For how long a target that proves nothing may still execute what it was sent (P4), known once it is known which
    /// volume is on the LUN. Ways that leave no ghosts need not look.
    fn assume_quiesce(&self, quiesce: Duration) {
        let _ = quiesce;
    }

    /// Under whose lease the LUN is changed from now on (L3): a change that was held because no path worked, or that
    /// waited for a ghost, is sent only while `lease` holds, and given up when it has ended; who submitted it saw the
    /// lease before that. Changes within `free`, the blocks by which the lease is kept alive, need none. Ways that hold
    /// nothing back need not look.
    fn under(&self, lease: Arc<Lease>, free: Range<u64>) {
        let _ = (lease, free);
    }

    /// Proves, without ending anybody, that no other writer can have this LUN open at all, now and as long as it is open
    /// here: a local image file whose lock is held. Such a LUN needs no wait before it is used (V1). Most cannot tell.
    fn prove_alone(&self) -> Proof {
        Proof::Unprovable
    }

    /// What peers without a path may use of this LUN (R1); none where it has no paths that can be told from it.
    fn direct(&self) -> Option<Weak<dyn Direct>> {
        None
    }

    /// The peer through which it is reached, while no path of this node leads to it.
    fn through(&self) -> Option<NodeName> {
        None
    }

    /// Whether the LUN can be reached now; if not, requests are held (P2).
    fn is_working(&self) -> bool {
        true
    }

    /// The state in figures.
    fn figures(&self) -> LunFigures {
        LunFigures { ghosts: self.ghosts().len() as u64, ..LunFigures::default() }
    }

    /// A sentence for status: the path, its state, and what is assumed of the target.
    fn describe(&self) -> String;
}
