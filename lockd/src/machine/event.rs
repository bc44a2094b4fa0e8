//! What has happened, for those who watch.

use bincode::{Decode, Encode};

use super::command::{Cookie, EndCause, Victim};
use super::query::HolderInfo;
use crate::ids::{ClientId, Epoch, GrantId, NodeName, ResourceId, SessionId, Ticket, VolumeId};
use crate::locks::LockError;

/// The number of an event; rises by one with each, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Encode, Decode)]
pub struct EventIndex(pub u64);

/// Whom an event concerns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Audience {
    /// Every session's agent, and whoever watches.
    Everyone,
    /// One client, through its agent.
    Client(ClientId),
}

/// Something that has happened.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Event {
    /// Its number.
    pub index: EventIndex,
    /// For whom.
    pub to: Audience,
    /// What.
    pub kind: EventKind,
}

/// What has happened.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum EventKind {
    /// A lock request that waited has been decided. To its client; each ticket has exactly one.
    Lock {
        /// Which.
        ticket: Ticket,
        /// Granted, or why not.
        reply: Result<GrantId, LockError>,
    },
    /// Resources came to the client by a transfer. To each target.
    Arrived {
        /// The transfer.
        cookie: Cookie,
        /// From which session.
        from: SessionId,
        /// The epoch of the holdings.
        epoch: Epoch,
        /// How many came to this client.
        count: u64,
    },
    /// A resource has another holder, or none. To everyone.
    HolderChanged {
        /// Which.
        resource: ResourceId,
        /// The holder; the first, if there are several.
        holder: Option<HolderInfo>,
    },
    /// A set of resources has other holders. To everyone.
    Moved {
        /// The source's session.
        from: SessionId,
        /// The target's.
        to: SessionId,
        /// The epoch of the new holdings.
        epoch: Epoch,
        /// The first resources of the set ([`EVENT_RESOURCES_MAX`](super::EVENT_RESOURCES_MAX)).
        resources: Vec<ResourceId>,
        /// How many there are.
        count: u64,
    },
    /// A session was opened. To everyone.
    SessionOpened {
        /// Which.
        session: SessionId,
        /// Whose.
        node: NodeName,
    },
    /// A session has ended, and all its clients with it. To everyone: refuse it, drain what you carry for it.
    SessionEnded {
        /// Which.
        session: SessionId,
        /// Whose.
        node: NodeName,
        /// Why.
        cause: EndCause,
    },
    /// A client has been registered. To everyone.
    ClientAdded {
        /// Which.
        client: ClientId,
        /// Under which session.
        session: SessionId,
    },
    /// A client has ended. To everyone.
    ClientEnded {
        /// Which.
        client: ClientId,
        /// Of which session.
        session: SessionId,
    },
    /// A victim must be fenced from a volume. To everyone: those who are named report, one who can fences.
    FenceWanted {
        /// From which.
        volume: VolumeId,
        /// Who.
        victim: Victim,
        /// Whose reports are waited for.
        waiting: Vec<SessionId>,
    },
    /// A fence is complete. To everyone.
    Fenced {
        /// From which.
        volume: VolumeId,
        /// Who.
        victim: Victim,
    },
    /// What an ended client held is free. To everyone.
    Freed {
        /// Whose it was.
        client: ClientId,
        /// The first resources ([`EVENT_RESOURCES_MAX`](super::EVENT_RESOURCES_MAX)).
        resources: Vec<ResourceId>,
        /// How many there are.
        count: u64,
    },
    /// An operator broke something (L12). To everyone.
    Broken {
        /// The node that was declared fenced.
        node: NodeName,
        /// How many holdings became free.
        freed: u64,
    },
}
