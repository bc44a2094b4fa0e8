//! What the rules of paths need of a way to reach the LUN, and what it tells them.

use std::cell::Cell;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bincode::{Decode, Encode};
use lockd::clock::BootTime;
use lockd::ids::{ClientId, NodeName};
use lockd::reservation::{Shown, Trial};

use crate::ghosts::Executor;
use crate::lun::{Geometry, NO_RESERVATIONS, Outcome, Proof};
use crate::open::OpenError;
use crate::paths::request::Request;

/// Which process of the target executes requests, where the target can tell (csv-target's boot id).
pub type Instance = [u8; 16];

/// The list of clients that the target refuses for good, where it has one that outlives its process.
pub type ListId = [u8; 16];

/// What a target can do, as it said when the link was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Abilities {
    /// Size and limits.
    pub geometry: Geometry,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether a write can be made durable by itself.
    pub fua: bool,
    /// Whether flush is known.
    pub flush: bool,
    /// Whether a flush on one connection covers what was completed on another (P8).
    pub multi_conn: bool,
    /// The executor, where it is known (P9).
    pub instance: Option<Instance>,
    /// Its list of refused clients.
    pub list: Option<ListId>,
    /// How a restart of it is noticed.
    pub restarts: Restarts,
}

/// How a restart of the target is told from a lost connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Restarts {
    /// Not at all.
    Unseen,
    /// By csv-target's boot id.
    ByBootId,
    /// By a SCSI unit attention.
    ByAttention,
}

/// What a drain of the earlier connections has proved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drained {
    /// Nothing.
    Unproven,
    /// What this instance had accepted is executed.
    ThisInstance,
    /// What any instance had accepted is executed.
    EveryInstance,
}

/// By what a client is known to a target that admits clients: csv-target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Credentials {
    /// The client incarnation.
    pub client: ClientId,
    /// The secret that it drew.
    pub cookie: [u8; 16],
}

/// What a link is made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// To see whether the target answers: one connection.
    Probe,
    /// The first link of this client.
    First,
    /// A link after an earlier one was lost: earlier requests are drained first.
    Again,
}

/// A way to reach the LUN: makes links.
pub trait Way: Send + Sync + Debug {
    /// Connects. `events` hears of what becomes of the requests of this link.
    fn connect(&self, purpose: Purpose, events: Arc<dyn Events>) -> Result<Arc<dyn Link>, OpenError>;

    /// Ends an earlier client of the same target for good (see [`crate::lun::Lun::prove_ended`]).
    fn prove_ended(&self, earlier: ClientId) -> Proof;

    /// Its name in messages.
    fn name(&self) -> String;

    /// Tries persistent reservations (see [`crate::lun::Lun::try_reservations`]).
    fn try_reservations(&self, trial: Trial<'_>) -> Result<Shown, String> {
        let _ = trial;
        Err(NO_RESERVATIONS.to_owned())
    }

    /// The client leaves in order: what a link holds at the target is given back when it is closed.
    fn part(&self) {}

    /// Has the target end the connections of another of its clients, which has given them up, and execute what it had
    /// accepted from them (P4). The target's instance, if all of that is done.
    fn drain_for(&self, other: Credentials) -> Option<Instance> {
        let _ = other;
        None
    }

    /// The peer through which it leads; none: it leads to the target itself.
    fn through(&self) -> Option<&NodeName> {
        None
    }
}

/// A live connection, or several, to one target.
pub trait Link: Send + Sync + Debug {
    /// Sends `request`. It comes back when the link is closed and nothing of it has been sent. Waits for room, but not
    /// on a thread that completes requests (see [`completing`]).
    fn submit(&self, request: Request) -> Result<(), Box<Request>>;

    /// What the target can do.
    fn abilities(&self) -> &Abilities;

    /// What was proved when the link was made.
    fn drained(&self) -> Drained;

    /// How many connections it has.
    fn connections(&self) -> usize;

    /// When the oldest request in flight was sent.
    fn oldest(&self) -> Option<BootTime>;

    /// The 99.9th percentile of the latencies seen, if there were enough of them.
    fn p999(&self) -> Option<Duration>;

    /// The latencies seen: how many below each bound, and not below the one before.
    fn latencies(&self) -> Vec<(Duration, u64)> {
        Vec::new()
    }

    /// Who executes its requests, as far as that is known: proves by a drain that they are executed (P4).
    fn executor(&self) -> Option<Executor> {
        self.abilities().instance.map(Executor::Target)
    }

    /// The target by which a peer has had this client's own earlier connections drained.
    fn drained_at(&self) -> Option<Instance> {
        None
    }

    /// For how long a request may rest on its way to the target at most, when nobody hears of it any more.
    fn kept_at_most(&self) -> Duration {
        Duration::ZERO
    }

    /// Breaks the link: its requests are reported as lost.
    fn close(&self, why: &str);
}

/// A LUN's own way to the target, as far as peers may use it (R1).
pub trait Direct: Send + Sync + Debug {
    /// The number of the link in use, and what its target can do.
    ///
    /// # Errors
    /// Why nothing can be executed for others now: no link leads to the target itself, or the lease does not hold.
    fn seat(&self) -> Result<(u64, Abilities), String>;

    /// Executes a peer's `request` by the link `seat`. What becomes of it is told by its own callback: unknown, if that
    /// link is lost.
    ///
    /// # Errors
    /// The request comes back, with the reason, when it is surely not executed.
    fn carry(&self, seat: u64, request: Request) -> Result<(), (Box<Request>, String)>;

    /// As [`Way::drain_for`], by the path in use.
    fn drain_for(&self, other: Credentials) -> Option<Instance>;

    /// Byte ranges under ghosts, those of carried requests included.
    fn ghosts(&self) -> Vec<Range<u64>>;
}

/// Hears what becomes of a link's requests. Called on threads that must not block.
pub trait Events: Send + Sync {
    /// The target has answered.
    fn ended(&self, request: Request, outcome: Outcome);

    /// The link is broken, because of `why`. The `sent` requests have an unknown outcome, `unsent` ones have not
    /// reached the target. May be called more than once.
    fn lost(&self, why: &str, sent: Vec<Request>, unsent: Vec<Request>);
}

thread_local! {
    static COMPLETING: Cell<bool> = const { Cell::new(false) };
}

/// Marks the current thread for good as one that completes requests: what is submitted on it is handed to another
/// thread, because waiting for room here would wait for itself.
pub fn mark_completing() {
    COMPLETING.set(true);
}

/// Runs `complete`, during which the current thread completes requests.
pub fn while_completing<T>(complete: impl FnOnce() -> T) -> T {
    let before = COMPLETING.replace(true);
    let result = complete();
    COMPLETING.set(before);
    result
}

/// Whether the current thread completes requests.
#[must_use]
pub fn completing() -> bool {
    COMPLETING.get()
}
