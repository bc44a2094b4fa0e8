//! Messages of the local socket. Their version is that of the greeting ([`VERSIONS`](super::frame::VERSIONS)).

use bincode::{Decode, Encode};

use crate::ids::{ClientId, NodeName, ResourceId, SessionId, VolumeId};
use crate::lease::LineNumber;
use crate::machine::{Answer, ClientKind, Event, Query, Victim};

/// From a client to lockd.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum ToLockd {
    /// A question, or something to be done. Each is answered once.
    Request {
        /// By which the answer is known: a number that no open request of the connection has.
        id: u64,
        /// For how long lockd tries before it says that it cannot, in milliseconds; 0 for ever.
        patience_ms: u32,
        /// What.
        request: Request,
    },
    /// The answer to [`FromLockd::Ask`]; an error is why there is none.
    Answer {
        /// Of which.
        id: u64,
        /// The answer's bytes.
        answer: Result<Vec<u8>, String>,
    },
}

/// What a client asks of lockd.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Request {
    /// Registers a client of the asking process, or finds the one that the process registered under this number.
    Register {
        /// What it is.
        kind: ClientKind,
        /// A number that the process chose at random, once per client.
        number: u64,
        /// The session and the client that it was, when the connection is a new one.
        known: Option<(SessionId, ClientId)>,
    },
    /// A command of the state machine ([`encode_command`](crate::machine::encode_command)): an operation of a client
    /// that was registered on this connection, the registration of a volume, or that a victim is fenced.
    Command(Vec<u8>),
    /// A question to the state.
    Query(Query),
    /// An opaque request to a client anywhere in the cluster.
    Forward {
        /// To whom.
        to: Recipient,
        /// The request.
        request: Vec<u8>,
    },
    /// The cluster's and its voters' state, as a JSON document.
    Status,
    /// The voters are to change, or be told.
    Voters(VotersChange),
    /// Whether events that concern everyone are to be sent from now on.
    Watch(bool),
    /// The clients of this connection refuse `victim` on the volume from now on, and have drained what they carried for
    /// it: the answer to [`FromLockd::Fence`].
    Drained {
        /// On which volume.
        volume: VolumeId,
        /// Whom.
        victim: Victim,
    },
}

/// To whom a forwarded request goes.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Recipient {
    /// Whoever holds the resource.
    Holder(ResourceId),
    /// A client.
    Client(ClientId),
    /// On a node, the one that can hold the resource: a mount of its volume, a host of virtual machines; or the node's
    /// lockd itself, when there is none.
    Node {
        /// Which node.
        node: NodeName,
        /// For which resource.
        resource: ResourceId,
    },
}

/// A change of the voters.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum VotersChange {
    /// A node becomes a voter.
    Add(NodeName),
    /// A voter becomes a mere agent.
    Remove(NodeName),
    /// A voter that has lost its directory comes back with a new one.
    Rejoin(NodeName),
}

/// From lockd to a client.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum FromLockd {
    /// The answer to a request.
    Reply {
        /// Of which.
        id: u64,
        /// The answer, or why there is none.
        reply: Result<Response, Failure>,
    },
    /// A request that somebody in the cluster has sent to one of the connection's clients.
    Ask {
        /// By which the answer is known.
        id: u64,
        /// To which client.
        client: ClientId,
        /// From which node it comes.
        from: NodeName,
        /// The request.
        request: Vec<u8>,
    },
    /// What has happened.
    Events(Vec<Event>),
    /// Events were lost on their way: what was followed by them must be read anew.
    Missed,
    /// Somebody is to be fenced from a volume that a client of this connection has mounted: refuse him, drain what is
    /// carried for him, and say so ([`Request::Drained`]).
    Fence {
        /// From which volume.
        volume: VolumeId,
        /// Whom.
        victim: Victim,
    },
    /// The session has ended, and all of its clients with it.
    SessionEnded(SessionId),
}

/// The answer to a request.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Response {
    /// To Register.
    Registered(Registered),
    /// To Command: the reply's bytes ([`decode_reply`](crate::machine::decode_reply)).
    Replied(Vec<u8>),
    /// To Query.
    Answer(Answer),
    /// To Forward: the answer's bytes.
    Forwarded(Vec<u8>),
    /// To Status and Voters: a document.
    Document(String),
    /// It is done.
    Done,
}

/// A registered client.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Registered {
    /// The node's session.
    pub session: SessionId,
    /// The client.
    pub client: ClientId,
    /// Where the session's lease is in the lease page of the run directory.
    pub line: LineNumber,
    /// The cluster's name.
    pub cluster: String,
    /// The node's name.
    pub node: NodeName,
}

/// Why a request was not answered.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, thiserror::Error)]
pub enum Failure {
    /// No majority of the voters could be reached in time. What was asked for may be done later.
    #[error("no quorum: {0}")]
    NoQuorum(String),
    /// The client's session has ended.
    #[error("session {0} has ended; unmount and mount again")]
    SessionEnded(SessionId),
    /// The request cannot be done; the text says why.
    #[error("{0}")]
    Refused(String),
}
