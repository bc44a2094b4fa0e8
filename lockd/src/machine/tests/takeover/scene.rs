//! Everything but lockd: the mounts, what they have sent and what is on its way.

use std::collections::{BTreeMap, BTreeSet};

use super::control::Message;
use super::lun::{Lun, Store, Write};

/// The mount that coordinates at first.
pub(super) const A: usize = 0;
/// One that may follow it; it has a name cached and a file without a name open.
pub(super) const B: usize = 1;
/// The same; the program runs there, and it carries for the others. Its node lives.
pub(super) const C: usize = 2;
/// A mount of another cluster.
pub(super) const D: usize = 3;
/// The mounts that lockd knows.
pub(super) const MOUNTS: [usize; 3] = [A, B, C];

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) enum Life {
    /// It runs, and its lease does.
    #[default]
    Runs,
    /// Its beats have hung for half a window; so many steps of the round that would extend their lease are done (V1).
    Stalls(u8),
    /// It stands still, and its lease is over.
    Paused,
    /// It is dead, or its lease is over and it knows.
    Over,
}

/// By which way a write lingers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Way {
    /// On the mount's own path.
    Own,
    /// At node 3, which carries for it.
    Carried,
    /// In the process, which stands still between its look at the lease and the sending.
    Gap,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Lingering {
    pub(super) write: Write,
    pub(super) way: Way,
}

/// What a mount that has the role does next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Stage {
    Claims,
    /// A stranger: it looks whether anybody beats.
    Watches,
    /// A stranger: nobody did, and it says that it writes.
    Declares,
    /// A stranger: it looks once more.
    Judges,
    /// In place: the superblock; else the copy.
    Begins,
    /// The superblock of the copy.
    Marks,
    /// In place: the store is made durable with what its journal has.
    Replays,
    /// It waits for the nodes.
    Assembles,
    Serves,
    /// It serves no more, and closes the store to hand the role over.
    Closes,
}

/// The part of a mount that has the role.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Office {
    /// The role's epoch; of a stranger, none.
    pub(super) role: u64,
    /// Its own, on the LUN.
    pub(super) epoch: u8,
    pub(super) area: u8,
    pub(super) stage: Stage,
    /// What it answers by, and what it had of the slot when it began.
    pub(super) memory: Store,
    pub(super) found_slot: u8,
    /// Where the next record goes.
    pub(super) at: u8,
    /// Who lives and has not attached (V9), and who has not and may have something open (V10).
    pub(super) awaited: BTreeSet<usize>,
    pub(super) undeclared: BTreeSet<usize>,
    /// A change that is made and not answered; 0: none.
    pub(super) due: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Mount {
    pub(super) life: Life,
    pub(super) office: Option<Office>,
    pub(super) lingering: Option<Lingering>,
    /// The epoch of the role in which it last had it.
    pub(super) had: u64,
    /// The epoch of the coordinator that it asks.
    pub(super) line: u64,
    /// It knows by a lease that the name of the first change is absent (V9).
    pub(super) caches: bool,
    pub(super) acquisitions: u8,
    /// It has closed the store and handed the role on.
    pub(super) hands_on: bool,
    /// It is to give the role back that it had in this epoch.
    pub(super) gives_back: u64,
}

impl Mount {
    pub(super) fn serves(&self) -> bool {
        self.life == Life::Runs && self.office.as_ref().is_some_and(|office| office.stage == Stage::Serves)
    }
}

/// A change that the program asks of the coordinator of that epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Request {
    pub(super) to: usize,
    pub(super) role: u64,
    pub(super) change: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Scene {
    pub(super) lun: Lun,
    pub(super) mounts: [Mount; 4],
    /// How often a message to lockd can still arrive.
    pub(super) network: BTreeMap<Message, u8>,
    /// The same of requests.
    pub(super) requests: BTreeMap<Request, u8>,
    /// The target refuses this mount, and has done what it had accepted of it.
    pub(super) refused: [bool; 4],
    /// The last change that the program knows to be made.
    pub(super) answered: u8,
    /// Whether the file without a name that B has open has been reclaimed.
    pub(super) reclaimed: bool,
    pub(super) faults_left: u8,
    pub(super) failures_left: u8,
    /// How often the time of a fence by lease has passed.
    pub(super) waits: u8,
    /// A mount that stalled has beaten since the stranger watched.
    pub(super) has_beaten: bool,
    pub(super) seen: Seen,
    pub(super) broken: Option<String>,
}

/// What has happened in a run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Seen {
    /// A change was answered by a coordinator that found its reply in the store.
    pub(super) found: bool,
    /// A write landed when its sender did not have the role any more.
    pub(super) late: bool,
    /// A stranger was refused.
    pub(super) turned_away: bool,
}
