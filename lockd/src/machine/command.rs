//! What can be asked of the state machine.

use std::fmt;

use bincode::{Decode, Encode};

use crate::ids::{
    ClientId, Epoch, GrantId, NodeName, ResourceId, Sequence, SessionId, SlotId, Ticket, VolumeId,
};
use crate::locks::{ByteRange, LockOwner, LockRequest};

/// A random number that makes an incarnation known when its first message comes again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Encode, Decode)]
pub struct Nonce(pub u128);

/// The random number of a transfer: who shows it may adopt the locks that came with it (L8).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Encode, Decode)]
pub struct Cookie(pub u128);

impl fmt::Display for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::str::FromStr for Cookie {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match u128::from_str_radix(text, 16) {
            Ok(number) if text.len() == 32 => Ok(Self(number)),
            _ => Err(format!("{text:?} is not a transfer's cookie: 32 hexadecimal digits")),
        }
    }
}

/// Times that the whole cluster agrees on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Settings {
    /// The lease L of a session, in nanoseconds.
    pub lease_ns: u64,
    /// What is waited beyond the lease where nothing proves a fence, in nanoseconds.
    pub grace_ns: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { lease_ns: 8_000_000_000, grace_ns: 15_000_000_000 }
    }
}

/// What a client is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub enum ClientKind {
    /// A mount of a volume: it holds the volume's files and perhaps its coordinator role.
    Csvfs {
        /// Which volume.
        volume: VolumeId,
    },
    /// A host of virtual machines: it holds `vm/` resources.
    Vmhost,
    /// A command such as `lockctl`: it holds nothing.
    Tool,
}

impl fmt::Display for ClientKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Csvfs { volume } => write!(f, "csvfs mount of volume {volume}"),
            Self::Vmhost => f.write_str("vmhost"),
            Self::Tool => f.write_str("tool"),
        }
    }
}

/// Why a session ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum EndCause {
    /// The leader heard nothing from it for a full lease (L1), and says that the lease is over.
    Lapsed,
    /// Its node ends it: the lease may still run.
    Closed,
    /// A peer did not report about a fence and is fenced too (F1), or an operator ended it: the lease may still run.
    Forced,
}

/// How a resource is held.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub enum HoldMode {
    /// By one client.
    Exclusive,
    /// By several (sealed images, read by all).
    Shared,
}

impl fmt::Display for HoldMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
        })
    }
}

/// By what a victim was fenced from a volume, on every path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub enum FenceMethod {
    /// Persistent reservations.
    ScsiPr,
    /// The bundled target refuses the victim and has drained what it had accepted.
    NbdTarget,
    /// A fence agent switched the host off.
    Agent,
    /// Lease + grace were waited. Only for sessions, and only on a volume that is registered with this method.
    Lease,
    /// The requests of dead processes were waited for (`target_quiesce`, or the kernel finished them): of a client, or of
    /// an earlier session of the reporter's own host.
    Quiesce,
}

impl fmt::Display for FenceMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ScsiPr => "scsi-pr",
            Self::NbdTarget => "nbd-target",
            Self::Agent => "agent",
            Self::Lease => "lease",
            Self::Quiesce => "quiesce",
        })
    }
}

/// Whose requests must not reach a volume any more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub enum Victim {
    /// A session that has ended (L9).
    Session(SessionId),
    /// A client that is dead while its session lives (L10).
    Client(ClientId),
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(session) => write!(f, "session {session}"),
            Self::Client(client) => write!(f, "client {client}"),
        }
    }
}

/// What is reported about a victim's fence (F1, L10).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Report {
    /// The reporter refuses the victim from now on and has drained what it carried for it.
    Drained,
    /// The method succeeded on every path of the volume.
    Fenced {
        /// Which.
        method: FenceMethod,
    },
}

/// One resource of a transfer.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Move {
    /// What moves.
    pub resource: ResourceId,
    /// The epoch of the holding that the source has; [`Epoch::NOBODY`] if nobody holds it, and the source serves it.
    pub epoch: Epoch,
    /// The source.
    pub from: ClientId,
    /// The target.
    pub to: ClientId,
}

/// What an operator declares fenced (L12).
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum BreakTarget {
    /// What ended clients hold of one resource is freed.
    Resource(ResourceId),
    /// A whole ended session counts as fenced from all volumes.
    Session(SessionId),
}

impl fmt::Display for BreakTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resource(resource) => resource.fmt(f),
            Self::Session(session) => write!(f, "session {session}"),
        }
    }
}

/// A command: one entry of the log.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Command {
    /// Sets the cluster's times. A shorter lease is refused while sessions live, which may count on the longer one.
    Configure(Settings),
    /// Frees what has become free by the passing of time ([`State::wakes_at_ns`](super::State::wakes_at_ns)).
    Tick,
    /// Opens a session of `node`, or finds the one that the same nonce opened.
    OpenSession {
        /// Whose.
        node: NodeName,
        /// Of this incarnation.
        nonce: Nonce,
    },
    /// Ends a session and all its clients, for good (L2). Whoever proposes it has made sure that it may (L1).
    EndSession {
        /// Which.
        session: SessionId,
        /// Why.
        cause: EndCause,
    },
    /// Registers a client under a session, or finds the one that the same nonce registered.
    AddClient {
        /// Under which.
        session: SessionId,
        /// Of this incarnation.
        nonce: Nonce,
        /// What it is.
        kind: ClientKind,
        /// Its process.
        pid: u32,
    },
    /// The local lockd has proof that a client's process is dead (L10).
    ClientGone {
        /// Whose lockd says so; must be the client's.
        session: SessionId,
        /// Which.
        client: ClientId,
    },
    /// A volume is there: its id, name, fence and quiesce time. All who have it mounted have registered it with the same ones.
    RegisterVolume {
        /// By its superblock.
        volume: VolumeId,
        /// By the cluster file.
        name: String,
        /// The method that was proven.
        fence: FenceMethod,
        /// For how long its target may execute what it was sent by those who are gone (P4, P5, L10), in nanoseconds.
        quiesce_ns: u64,
        /// No epoch is granted from now on that is not above this one: the highest that the volume has seen.
        epoch_floor: Epoch,
    },
    /// What became of a fence (F1, L10).
    FenceReport {
        /// From which volume.
        volume: VolumeId,
        /// Who is fenced.
        victim: Victim,
        /// Who reports; must live.
        reporter: SessionId,
        /// What.
        report: Report,
    },
    /// A client's operation, exactly once (L5).
    Client {
        /// Whose.
        client: ClientId,
        /// In which of its slots.
        slot: SlotId,
        /// The number in the slot.
        sequence: Sequence,
        /// What.
        operation: Operation,
    },
}

/// What a client can do.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Operation {
    /// Holds a resource, or finds that it does already.
    Acquire {
        /// What.
        resource: ResourceId,
        /// How.
        mode: HoldMode,
        /// Whether it is to stay until it is released explicitly.
        pinned: bool,
    },
    /// Gives a resource back.
    Release {
        /// What.
        resource: ResourceId,
        /// The epoch of the holding.
        epoch: Epoch,
    },
    /// Hands a set of resources over, all or nothing (L6).
    Transfer {
        /// Under which the locks are kept for the target.
        cookie: Cookie,
        /// The set.
        moves: Vec<Move>,
        /// Whether the source's locks on the set go into escrow for the target (L8), because the program that has them
        /// moves too. Otherwise they stay with the programs that have them.
        escrow: bool,
        /// Whether the target is to keep them until they are released explicitly. What was pinned stays so in any case.
        pinned: bool,
    },
    /// Makes sure that the command in another slot of this client is not applied later (L7).
    Abort {
        /// In which slot.
        slot: SlotId,
        /// Which.
        sequence: Sequence,
    },
    /// Takes the locks over that came with a transfer (L8).
    Adopt {
        /// Of the transfer.
        cookie: Cookie,
        /// Of which resource.
        resource: ResourceId,
        /// The adopter's lock owner that gets them all; without, each keeps its owner's number.
        to: Option<u64>,
    },
    /// Drops the locks that came with a transfer (L8).
    DropEscrow {
        /// Of the transfer.
        cookie: Cookie,
        /// Of which resource.
        resource: ResourceId,
    },
    /// Locks bytes of a file. The owner must be of the asking client.
    Lock {
        /// The file.
        resource: ResourceId,
        /// Owner, mode, bytes.
        request: LockRequest,
        /// Whether to wait: the reply then names a ticket, and an event tells of it.
        wait: bool,
    },
    /// Unlocks bytes of a file.
    Unlock {
        /// The file.
        resource: ResourceId,
        /// The owner, of the asking client.
        owner: LockOwner,
        /// Which bytes.
        range: ByteRange,
        /// The newest grant that is meant (L8); without, all.
        grant: Option<GrantId>,
    },
    /// Drops all that an owner has locked of a file: it was closed.
    ReleaseOwner {
        /// The file.
        resource: ResourceId,
        /// The owner, of the asking client.
        owner: LockOwner,
    },
    /// Lets a lock request of the asking client wait no longer.
    Cancel {
        /// Which.
        ticket: Ticket,
    },
    /// Frees what the cluster cannot fence by itself, on an operator's word (L12).
    Break {
        /// What.
        target: BreakTarget,
        /// The name of the node that the operator has made sure is off or cut off.
        confirmed_node: String,
        /// Who says so.
        operator: String,
        /// When, in nanoseconds since 1970 by the operator's clock, for the log.
        wall_ns: i64,
    },
    /// The client ends by itself, drained, all of whose requests have had a known outcome: what it holds is free.
    Leave,
}
