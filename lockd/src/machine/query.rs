//! What can be read from the state, and how it is shown.

use std::fmt;

use bincode::{Decode, Encode};

use super::command::{
    BreakTarget, ClientKind, Cookie, EndCause, FenceMethod, HoldMode, Nonce, Settings, Victim,
};
use super::event::{Event, EventIndex};
use crate::ids::{ClientId, Epoch, NodeName, ResourceId, SessionId, VolumeId};
use crate::locks::{Conflict, Listed, LockRequest};

/// A question. Lists come in pages of at most [`PAGE_MAX`](super::PAGE_MAX) lines, each after the last line of the one
/// before.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Query {
    /// Time, settings and counts.
    Status,
    /// All sessions, the ended ones that are not yet fenced included.
    Sessions,
    /// All clients.
    Clients,
    /// All volumes.
    Volumes,
    /// Fences that are not complete.
    Fences,
    /// The log of broken holdings.
    Breaks,
    /// Held resources.
    Resources {
        /// Only this volume's (without: all, virtual machines included).
        volume: Option<VolumeId>,
        /// After this one.
        after: Option<ResourceId>,
    },
    /// One resource, held or not.
    Resource(ResourceId),
    /// The locks of one file, held and waited for.
    Locks(ResourceId),
    /// The locks in escrow under a cookie.
    Escrow(Cookie),
    /// The locks and waiting requests of one client.
    ClientLocks(ClientId),
    /// The first lock in the way of a request (`F_GETLK`).
    Test {
        /// Of which file.
        resource: ResourceId,
        /// Of what.
        request: LockRequest,
    },
    /// Events after an index.
    Events {
        /// Which.
        after: EventIndex,
    },
}

/// The answer to a [`Query`].
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Answer {
    /// To Status.
    Status {
        /// The time of the last entry, in nanoseconds: ages are counted from here.
        time_ns: u64,
        /// The cluster's times.
        settings: Settings,
        /// The last event.
        last_event: EventIndex,
        /// Live sessions.
        sessions: u64,
        /// Held resources.
        resources: u64,
        /// File locks.
        locks: u64,
    },
    /// To Sessions.
    Sessions(Vec<SessionInfo>),
    /// To Clients.
    Clients(Vec<ClientInfo>),
    /// To Volumes.
    Volumes(Vec<VolumeInfo>),
    /// To Fences.
    Fences(Vec<FenceInfo>),
    /// To Breaks.
    Breaks(Vec<BreakRecord>),
    /// To Resources.
    Resources(Vec<ResourceInfo>),
    /// To Resource.
    Resource(ResourceInfo),
    /// To Locks and ClientLocks.
    Locks(Vec<LockInfo>),
    /// To Escrow.
    Escrow(Vec<EscrowInfo>),
    /// To Test.
    Test(Option<Conflict>),
    /// To Events.
    Events {
        /// The events, in order.
        events: Vec<Event>,
        /// Some between the asked index and the first of these are no longer kept: read anew what you follow.
        missed: bool,
        /// The last event that there is.
        last: EventIndex,
    },
}

/// Whether a session lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum SessionState {
    /// It does.
    Live,
    /// It has ended; what it held is not yet free.
    Ended {
        /// When.
        at_ns: u64,
        /// Why.
        cause: EndCause,
        /// From when on lease and grace are over.
        lease_over_ns: u64,
    },
}

/// A session.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct SessionInfo {
    /// Which.
    pub session: SessionId,
    /// Whose.
    pub node: NodeName,
    /// Since when, in nanoseconds of the cluster's time.
    pub since_ns: u64,
    /// Live or ended.
    pub state: SessionState,
    /// How many clients it has.
    pub clients: u64,
}

/// Whether a client lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum ClientState {
    /// It does.
    Live,
    /// It is dead, its session lives, and its requests are not all known to be done (L10).
    Draining,
    /// Its session has ended and is not yet fenced (L9).
    Orphaned,
}

/// A client.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct ClientInfo {
    /// Which.
    pub client: ClientId,
    /// Its session.
    pub session: SessionId,
    /// Its node.
    pub node: NodeName,
    /// What it is.
    pub kind: ClientKind,
    /// Its process.
    pub pid: u32,
    /// Of which incarnation it is; its lockd put the process's start time into it.
    pub nonce: Nonce,
    /// Since when, in nanoseconds of the cluster's time.
    pub since_ns: u64,
    /// Live or not.
    pub state: ClientState,
    /// How many resources it holds.
    pub holds: u64,
}

/// A volume.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct VolumeInfo {
    /// Which.
    pub volume: VolumeId,
    /// Its name.
    pub name: String,
    /// How sessions are fenced from it.
    pub fence: FenceMethod,
    /// For how long its target may execute what it was sent by those who are gone, in nanoseconds.
    pub quiesce_ns: u64,
    /// Who coordinates it.
    pub coordinator: Option<HolderInfo>,
    /// The live sessions that have it mounted.
    pub sessions: Vec<SessionId>,
}

/// A fence that is not complete.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct FenceInfo {
    /// From which volume.
    pub volume: VolumeId,
    /// Who.
    pub victim: Victim,
    /// Since when, in nanoseconds of the cluster's time.
    pub since_ns: u64,
    /// Whether a method has succeeded, and which.
    pub method: Option<FenceMethod>,
    /// Whose reports are waited for.
    pub waiting: Vec<SessionId>,
}

/// Whether a holder lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum HolderState {
    /// It does.
    Live,
    /// It is dead and its requests are not all known to be done (L10).
    Draining,
    /// Its session has ended and is not yet fenced (L9).
    Orphaned,
}

impl fmt::Display for HolderState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Live => "live",
            Self::Draining => "dead, its requests are being drained",
            Self::Orphaned => "its session has ended and is being fenced",
        })
    }
}

/// A holding of a resource.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct HolderInfo {
    /// Who.
    pub client: ClientId,
    /// Under which session.
    pub session: SessionId,
    /// On which node.
    pub node: NodeName,
    /// How.
    pub mode: HoldMode,
    /// The fencing token.
    pub epoch: Epoch,
    /// Since when, in nanoseconds of the cluster's time.
    pub since_ns: u64,
    /// Whether it stays until it is released explicitly.
    pub pinned: bool,
    /// Whether the holder lives.
    pub state: HolderState,
}

impl fmt::Display for HolderInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, session, node, mode, epoch, state, .. } = self;
        write!(f, "{client} (session {session}, node {node}, {mode}, {epoch}, {state})")
    }
}

/// A resource: who holds it, and its locks.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct ResourceInfo {
    /// Which.
    pub resource: ResourceId,
    /// The holders: none, one, or several in shared mode.
    pub holders: Vec<HolderInfo>,
    /// How many file locks are held on it.
    pub locks: u64,
    /// How many of those are in escrow.
    pub locks_in_escrow: u64,
    /// How many lock requests wait.
    pub waiting: u64,
}

/// A lock, or a request for one that waits.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct LockInfo {
    /// The lock.
    pub listed: Listed<ResourceId>,
    /// The node of its owner; none if only the escrow keeps it.
    pub node: Option<NodeName>,
    /// The session for which it is in escrow.
    pub escrow: Option<SessionId>,
}

/// Locks of a resource in escrow (L8). Whoever reads it shows the cookie; it is not given out.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct EscrowInfo {
    /// Of which resource.
    pub resource: ResourceId,
    /// Whose locks they were.
    pub source: ClientId,
    /// For which session.
    pub target: SessionId,
    /// Since when, in nanoseconds of the cluster's time.
    pub since_ns: u64,
}

/// An entry of the log of broken holdings (L12), kept for good.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct BreakRecord {
    /// When, in nanoseconds of the cluster's time.
    pub time_ns: u64,
    /// When, in nanoseconds since 1970 by the operator's clock.
    pub wall_ns: i64,
    /// Who.
    pub operator: String,
    /// What.
    pub target: BreakTarget,
    /// The node that was declared fenced.
    pub node: NodeName,
    /// The session that was declared fenced.
    pub session: SessionId,
    /// How many holdings became free by it.
    pub freed: u64,
}
