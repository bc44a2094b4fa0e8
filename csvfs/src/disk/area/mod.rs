//! An area: the store's address space on chunks of the LUN.
//!
//! The space is thin: redb sets a length ([`Area`] keeps it in the chunk map), and a chunk is given to a place only
//! when something is written there. Places that were never written read as zeros; the rest of a chunk that was given
//! reads as whatever it held before, which redb never asks for.
//!
//! # Cost of a commit
//!
//! redb commits in two steps (with `quick_repair`): all changed pages and the header, *sync*, the header with its
//! primary bit turned, *sync*. Writes only fill a buffer here; a sync
//!
//! 1. sends all of it side by side, pages that lie together on the LUN joined up to the LUN's longest request, and
//!    waits for the completions;
//! 2. flushes; or, when it is no more than [`FUA_REQUESTS_MAX`] requests (the second sync: one page), writes them with
//!    FUA in step 1 and needs no flush. A LUN without a volatile cache needs neither.
//!
//! So a commit is three round trips (write, flush, write with FUA), two without a volatile cache, whatever its size,
//! and 90 KB or so. When chunks were given or the length has changed, the chunk map goes along: its first copy with
//! FUA beside step 1, its second with FUA beside step 2; no further round trip.
//!
//! So a group of operations is usually made durable by a record in the redo journal ([`super::journal`]), and the store only
//! now and then.
//!
//! # Order
//!
//! At the end of a sync everything before it is durable: pages, both copies of the map, length. Within a sync no order
//! is needed. A chunk that was given is a spare chunk in the old map, and no committed page lies in it; the header that
//! makes the new pages readable comes in a later sync (V5 for the store itself). The second copy of the map starts when
//! the first one is durable, so that one of them is whole whenever the power goes.
//!
//! # Checks
//!
//! Every page is compared with its checksum when it is read from the LUN (`Ledger`): redb would believe it. A page
//! that is not right is read once more, and is then an error: it never reaches redb, and nothing is changed any more.
//!
//! # Failure
//!
//! A write that failed or whose outcome is unknown ends the area for good: every later call fails and says why, for
//! redb's pages and what it has in memory may now differ. The volume is then opened anew. Ghosts of the area's writes
//! need no quarantine of their own (P6): there is at most one incarnation's worth of them, the area writes nothing
//! after the first, and the next incarnation goes to a fresh area unless they are known to have ended (V2).

mod backend;
mod pages;
mod publish;
mod space;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use lockd::clock::Clock;
use lockd::lease::Lease;
use lockd::rules::{Rule, Rules};
use parking_lot::{Condvar, Mutex};
use redirector::buffer::Pool;
use redirector::lun::{Lun, Outcome};

pub use backend::AreaBackend;
pub(super) use backend::pieces;
use pages::Pages;
pub(super) use space::Budget;

use super::batch::Failure;
use super::label::Label;
use super::map::ChunkMap;
use super::superblock::Side;
use super::tree::Ledger;

/// Up to so many requests a sync uses FUA instead of a flush.
pub const FUA_REQUESTS_MAX: usize = 2;
/// The most bytes that wait for a sync; then they are sent early.
pub const DIRTY_MAX: usize = 32 << 20;
/// How often a lapsed lease is looked at.
const LEASE_POLL: Duration = Duration::from_millis(5);

/// Why the store cannot go on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AreaError {
    /// The LUN refused a write or flush.
    #[error("the LUN failed a {what} of the metadata store (errno {errno}); the volume must be opened anew")]
    Failed {
        /// Write or flush, and where.
        what: String,
        /// What the LUN said.
        errno: i32,
    },
    /// Nobody knows whether a write or flush was done.
    #[error("the outcome of a {what} of the metadata store is unknown; the volume must be opened anew")]
    Unknown {
        /// Write or flush, and where.
        what: String,
    },
    /// The store could not be read.
    #[error("the metadata store cannot be read at byte {offset} of the LUN (errno {errno})")]
    Read {
        /// Where on the LUN.
        offset: u64,
        /// What the LUN said.
        errno: i32,
    },
    /// A page of the store is not what was written.
    #[error(
        "the metadata store is corrupt: the page at byte {at} of its area, of the table {table:?}, does not match its \
         checksum (byte {offset} of the LUN); nothing is changed any more: unmount the volume and run csvfs fsck"
    )]
    Corrupt {
        /// Where in the area, in bytes.
        at: u64,
        /// Where on the LUN.
        offset: u64,
        /// The table that has the page.
        table: String,
    },
    /// No chunk is left to grow into.
    #[error("the metadata store has used up all of its chunks; delete files, or let the LUN grow")]
    Full,
    /// The session is over.
    #[error("the lease has ended: another session may write to the volume; unmount and mount again")]
    LeaseEnded,
    /// The lease was not won back in time.
    #[error(
        "no heartbeat has reached the LUN for {} s: nothing may be written (look after the LUN, then mount anew)",
        .0.as_secs()
    )]
    NoHeartbeat(Duration),
    /// Something beyond the end was asked for.
    #[error("bytes {offset}+{len} are beyond the end of the metadata store, {end}")]
    Beyond {
        /// The first byte.
        offset: u64,
        /// How many.
        len: usize,
        /// The store's length.
        end: u64,
    },
    /// It has been closed by its owner.
    #[error("the volume has been closed")]
    Closed,
}

impl AreaError {
    /// The errno for callers that know no more.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Failed { errno, .. } | Self::Read { errno, .. } => *errno,
            Self::Full => libc::ENOSPC,
            Self::Unknown { .. }
            | Self::LeaseEnded
            | Self::NoHeartbeat(_)
            | Self::Beyond { .. }
            | Self::Corrupt { .. }
            | Self::Closed => libc::EIO,
        }
    }
}

impl From<Failure> for AreaError {
    fn from(failure: Failure) -> Self {
        let what = failure.offset.map_or_else(|| "flush".to_owned(), |at| format!("write at byte {at}"));
        match failure.outcome {
            Outcome::Failed(errno) => Self::Failed { what, errno },
            Outcome::Unknown | Outcome::Done => Self::Unknown { what },
        }
    }
}

impl From<AreaError> for io::Error {
    fn from(error: AreaError) -> Self {
        let kind = match error {
            AreaError::Full => io::ErrorKind::StorageFull,
            AreaError::Beyond { .. } => io::ErrorKind::UnexpectedEof,
            AreaError::Corrupt { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// What an area needs to know of its surroundings.
#[derive(Clone, Debug)]
pub(super) struct Surroundings {
    pub lun: Arc<dyn Lun>,
    pub pool: Pool,
    pub label: Label,
    pub lease: Arc<Lease>,
    pub clock: Arc<dyn Clock>,
    pub rules: Rules,
    /// How long a lapsed lease is waited for (P2).
    pub hold: Duration,
}

impl Surroundings {
    /// Waits until the lease holds (L3), as long as I/O is held for a LUN that is gone (P2); an ended one never does
    /// again.
    pub(super) fn await_lease(&self) -> Result<(), AreaError> {
        self.await_lease_unless(|| None)
    }

    /// Waits until the lease holds, or until there is a reason not to wait any more.
    fn await_lease_unless(&self, given_up: impl Fn() -> Option<AreaError>) -> Result<(), AreaError> {
        let began = self.clock.boot();
        loop {
            if !self.rules.keeps(Rule::L3) || self.lease.holds(self.clock.as_ref()) {
                return Ok(());
            }
            if self.lease.deadline().0 == 0 {
                return Err(AreaError::LeaseEnded);
            }
            if let Some(reason) = given_up() {
                return Err(reason);
            }
            if self.rules.keeps(Rule::P2) && self.clock.boot().since(began) > self.hold {
                return Err(AreaError::NoHeartbeat(self.hold));
            }
            self.clock.sleep(LEASE_POLL);
        }
    }

    /// The longest request that is sent, in bytes: whole blocks, at most 1 MiB.
    pub(super) fn request_max(&self) -> u64 {
        let most = u64::from(self.lun.geometry().request_max).clamp(4096, 1 << 20);
        most / 4096 * 4096
    }
}

#[derive(Debug)]
struct State {
    pages: Pages,
    map: ChunkMap,
    /// Whether `map` differs from what is on the LUN.
    map_changed: bool,
    /// Whether something was written that no flush has covered.
    unflushed: bool,
    /// Whether somebody is sending pages or the map.
    busy: bool,
    broken: Option<AreaError>,
    /// The first page that was found to be damaged.
    damage: Option<AreaError>,
    /// Bytes inside of the area's chunks that are free for certain.
    slack: u64,
}

/// The store's address space on chunks of the LUN; see the module's text.
#[derive(Debug)]
pub struct Area {
    around: Surroundings,
    side: Side,
    state: Mutex<State>,
    changed: Condvar,
    /// What every page must be.
    ledger: Ledger,
}

impl Area {
    pub(super) fn new(around: Surroundings, map: ChunkMap, side: Side) -> Self {
        let state = State {
            pages: Pages::default(),
            map,
            map_changed: false,
            unflushed: false,
            busy: false,
            broken: None,
            damage: None,
            slack: 0,
        };
        Self { around, side, state: Mutex::new(state), changed: Condvar::new(), ledger: Ledger::default() }
    }

    /// Which of the two areas it is.
    #[must_use]
    pub fn side(&self) -> Side {
        self.side
    }

    /// Why the area cannot go on, if it cannot.
    #[must_use]
    pub fn broken(&self) -> Option<AreaError> {
        self.state.lock().broken.clone()
    }

    /// Ends the area: every later call fails with `cause`, unless it had failed before.
    pub fn end(&self, cause: AreaError) {
        self.state.lock().broken.get_or_insert(cause);
        self.changed.notify_all();
    }

    /// How many pages were read of which nothing was known, so that they could not be checked.
    #[must_use]
    pub fn unchecked(&self) -> u64 {
        self.ledger.unknown()
    }

    /// The chunk map as it stands.
    #[must_use]
    pub fn map(&self) -> ChunkMap {
        self.state.lock().map.clone()
    }

    /// How many bytes of the LUN the area occupies.
    #[must_use]
    pub fn occupied(&self) -> u64 {
        self.state.lock().map.area(self.side).count() as u64 * self.around.label.chunk_size
    }

    /// Waits until the lease holds, unless the area has ended (L3).
    pub(super) fn await_lease(&self) -> Result<(), AreaError> {
        self.around.await_lease_unless(|| self.broken())
    }

    pub(super) fn around(&self) -> &Surroundings {
        &self.around
    }

    /// Remembers that `error` has ended the area, unless another one had before; that one is returned then.
    pub(super) fn fail(&self, error: AreaError) -> AreaError {
        let cause = self.state.lock().broken.get_or_insert(error).clone();
        self.changed.notify_all();
        tracing::error!(%cause, "the metadata store has stopped");
        cause
    }
}

impl Area {
    /// Keeps whole chunks in memory, by index, while a copy is checked; an empty map ends it. What was copied is not
    /// durable yet: the next sync flushes.
    pub(super) fn keep(&self, chunks: super::copy::Kept) {
        let mut state = self.state.lock();
        state.unflushed = true;
        state.pages.warm(chunks, self.around.label.chunk_size);
    }
}
