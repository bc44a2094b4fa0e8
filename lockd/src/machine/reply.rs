//! What the state machine answers.

use std::time::Duration;

use bincode::{Decode, Encode};

use super::bounds::Bound;
use super::command::{BreakTarget, Cookie, FenceMethod, Victim};
use super::query::HolderInfo;
use crate::ids::{ClientId, Epoch, NodeName, ResourceId, SessionId, Ticket, VolumeId};
use crate::locks::{LockError, LockOutcome, LockOwner};
use crate::slots::SlotRefusal;

/// The answer to a command.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Reply {
    /// It is done, and there is nothing to tell.
    Done,
    /// To OpenSession.
    Session(SessionId),
    /// To AddClient.
    Client(ClientId),
    /// To Acquire: the holding as it is now.
    Acquired(HolderInfo),
    /// To Transfer: the epoch of all holdings of the set from now on.
    Transferred {
        /// Which.
        epoch: Epoch,
    },
    /// To Abort.
    Abort(AbortOutcome),
    /// To Adopt and DropEscrow.
    Escrow {
        /// How many locks were adopted or dropped.
        locks: u64,
    },
    /// To Lock.
    Lock(LockOutcome),
    /// To Cancel: whether the request was still waiting.
    Cancelled(bool),
    /// To Break.
    Broken {
        /// How many holdings are free by it.
        freed: u64,
    },
    /// It is not done, and nothing has changed.
    Refused(Refusal),
}

/// What an Abort found (L7).
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum AbortOutcome {
    /// The command had not been applied, and never will be.
    Aborted,
    /// The command was applied first: this was its reply ([`decode_reply`](super::decode_reply)).
    Applied(Vec<u8>),
}

/// Why a command is refused.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, thiserror::Error)]
pub enum Refusal {
    /// The session has ended, or never was.
    #[error("session {0} has ended; its node must start a new one")]
    SessionEnded(SessionId),
    /// The node has another session.
    #[error(
        "node {node} has session {session} already: it ends when its lease is over; if it does not, another machine \
         uses the name {node}"
    )]
    NodeHasSession {
        /// Which node.
        node: NodeName,
        /// Its session.
        session: SessionId,
    },
    /// The client has ended, or never was.
    #[error("{0} has ended; it must register again")]
    ClientEnded(ClientId),
    /// The client is of another session.
    #[error("{client} is not of session {session}, which alone can speak for its clients")]
    NotOfSession {
        /// The client.
        client: ClientId,
        /// The session that spoke.
        session: SessionId,
    },
    /// The slot does not allow it (L5).
    #[error(transparent)]
    Slot(SlotRefusal),
    /// The command was aborted before it was applied (L7).
    #[error("the command was aborted before it was applied; it has had no effect")]
    Aborted,
    /// Somebody else holds the resource.
    #[error("{resource} is held by {holder}")]
    Held {
        /// What was asked for.
        resource: ResourceId,
        /// Who has it.
        holder: HolderInfo,
    },
    /// The named holding is not the current one.
    #[error(
        "{resource} is not held by {client} in {epoch}: that ownership is over; look who holds it and start again"
    )]
    NotHeld {
        /// What was named.
        resource: ResourceId,
        /// By whom it should be held.
        client: ClientId,
        /// The epoch that was named.
        epoch: Epoch,
    },
    /// A client of this kind cannot hold or lock this resource.
    #[error(
        "{client} cannot hold or lock {resource}: files and coordinators belong to mounts of their volume, virtual \
         machines to vmhosts"
    )]
    WrongKind {
        /// Which client.
        client: ClientId,
        /// What it asked for.
        resource: ResourceId,
    },
    /// A name is empty, too long or has odd characters.
    #[error("{0:?} is not a name that can be used: 1 to 128 bytes without slash or control characters")]
    BadName(String),
    /// The volume is not registered.
    #[error("volume {0} is not registered in this cluster; mount it, or look at the cluster file")]
    UnknownVolume(VolumeId),
    /// The name belongs to another volume that is in use.
    #[error("the name {name:?} belongs to volume {volume}, which is in use; unmount it everywhere first")]
    VolumeName {
        /// The name.
        name: String,
        /// Whose it is.
        volume: VolumeId,
    },
    /// A bound is reached.
    #[error("there are {limit} {0} and there cannot be more; end or release some", limit = .0.limit())]
    Full(Bound),
    /// The lease cannot be shortened now.
    #[error("the lease can be shortened only while no session lives; stop the nodes first")]
    LeaseInUse,
    /// A setting is out of its range.
    #[error("{what} of {value_ns} ns is outside of what is allowed, {min_ns} to {max_ns} ns")]
    Setting {
        /// Which.
        what: String,
        /// What was asked for.
        value_ns: u64,
        /// The least.
        min_ns: u64,
        /// The most.
        max_ns: u64,
    },
    /// A transfer of nothing.
    #[error("the transfer names no resource")]
    NothingToMove,
    /// A transfer names a resource twice.
    #[error("the transfer names {0} twice")]
    MovedTwice(ResourceId),
    /// Only a client of the session that holds the set may submit its transfer.
    #[error(
        "{resource} would move from {from}, which is no live client of the session that asks; ask its holder"
    )]
    NotSource {
        /// What.
        resource: ResourceId,
        /// The source that was named.
        from: ClientId,
    },
    /// The target has ended, is the source, or is not of the same session as the other targets.
    #[error(
        "{resource} cannot move to {to}: it has ended, is the source, or is not on the other targets' node"
    )]
    NotTarget {
        /// What.
        resource: ResourceId,
        /// The target that was named.
        to: ClientId,
    },
    /// The cookie is in use.
    #[error("cookie {0} is in use by an earlier transfer; draw another")]
    CookieInUse(Cookie),
    /// There are no locks in escrow that the caller may have.
    #[error(
        "no locks of {resource} are kept for this node under cookie {cookie}; they were adopted or released"
    )]
    NoEscrow {
        /// Which resource.
        resource: ResourceId,
        /// The cookie that was shown.
        cookie: Cookie,
    },
    /// The lock table refuses.
    #[error(transparent)]
    Lock(LockError),
    /// The lock owner is of another client.
    #[error("lock owner {} is of {}, and only that client can ask for it", .0.id, .0.client)]
    NotOwner(LockOwner),
    /// The ticket is of another client.
    #[error("{0} is of another client")]
    NotTicket(Ticket),
    /// Nothing is being fenced there.
    #[error("{victim} is not being fenced from volume {volume}: it lives, or the fence is complete")]
    NoFence {
        /// From which volume.
        volume: VolumeId,
        /// Who.
        victim: Victim,
    },
    /// The method does not count here.
    #[error(
        "{method} does not fence {victim} from volume {volume}: `lease` must be named in the cluster file and is for \
         sessions; `quiesce` is for clients and, where no target refuses them, for sessions of the reporter's own host"
    )]
    FenceMethod {
        /// From which volume.
        volume: VolumeId,
        /// Who.
        victim: Victim,
        /// What was reported.
        method: FenceMethod,
    },
    /// Lease + grace are not over.
    #[error("it is too early by {wait_ns} ns: lease and grace are not over; report again then")]
    TooEarly {
        /// How long to wait yet.
        wait_ns: u64,
    },
    /// Nothing there can be broken.
    #[error("{0} has no holder that has ended; a live one releases or transfers it")]
    NothingToBreak(BreakTarget),
    /// The operator has not confirmed the right node.
    #[error(
        "{target} is held by {holder}; make sure that node {node} is off or cut off from the storage, and confirm it by \
         that name"
    )]
    Unconfirmed {
        /// What is to be broken.
        target: BreakTarget,
        /// The node to confirm.
        node: NodeName,
        /// Who holds it (for a session: its last holding or itself), and since when.
        holder: String,
    },
    /// The reply does not fit into a slot.
    #[error("the reply is too long to be kept; ask for less at once")]
    ReplyTooLong,
    /// The volume is in use with another fence.
    #[error(
        "volume {volume} is mounted, or somebody is being fenced from it, with fence = \"{registered}\", and this mount \
         would have \"{asked}\": give all nodes the same cluster file; to change the fence, unmount everywhere first"
    )]
    OtherFence {
        /// Which volume.
        volume: VolumeId,
        /// What the others have.
        registered: FenceMethod,
        /// What was asked for.
        asked: FenceMethod,
    },
    /// The volume is in use with another quiesce time.
    #[error(
        "volume {volume} is mounted, or somebody is being fenced from it, with target_quiesce_s = {}, and this mount \
         would have {}: give all nodes the same cluster file; to change it, unmount everywhere first",
        Duration::from_nanos(*registered_ns).as_secs_f64(),
        Duration::from_nanos(*asked_ns).as_secs_f64()
    )]
    OtherQuiesce {
        /// Which volume.
        volume: VolumeId,
        /// What the others have, in nanoseconds.
        registered_ns: u64,
        /// What was asked for, in nanoseconds.
        asked_ns: u64,
    },
}
