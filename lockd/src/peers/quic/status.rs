//! How the connections to the other nodes are, for a person.

use std::net::SocketAddr;
use std::time::Duration;

use crate::ids::NodeName;

/// How the connection to a node is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerState {
    /// Nothing has been asked of it yet.
    Unused,
    /// A connection is being made.
    Connecting,
    /// Connected.
    Connected,
    /// It was not reached, or the connection was lost; more attempts follow by themselves. Why.
    Unreachable(String),
    /// It refuses us, or we refuse it; somebody has to do something. What is wrong.
    Refused(String),
    /// This end has been stopped.
    Stopped,
}

/// A node as the transport sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerStatus {
    /// The node.
    pub node: NodeName,
    /// Where it is asked.
    pub address: SocketAddr,
    /// How the connection for our requests is.
    pub state: PeerState,
    /// Whether it has a connection to us for its requests.
    pub asks_us: bool,
    /// How long ago something was last heard of it; at most about a second while it is connected.
    pub last_contact: Option<Duration>,
    /// The round-trip time of packets, while connected.
    pub round_trip: Option<Duration>,
    /// The wire version that was agreed on, while connected.
    pub version: Option<u16>,
    /// Which incarnation of it we are connected to; a restart changes it.
    pub incarnation: Option<u64>,
    /// Requests of ours that it has not answered yet, those that wait for room or for the connection included.
    pub in_flight: usize,
    /// Requests of ours so far.
    pub requests: u64,
    /// Those of them that got no reply.
    pub failures: u64,
}

/// Two machines that both say that they are one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeConflict {
    /// The node.
    pub node: NodeName,
    /// Where the one is that was there first.
    pub accepted: SocketAddr,
    /// Where the one is that was refused.
    pub refused: SocketAddr,
    /// How long ago it was refused the last time.
    pub ago: Duration,
}

impl std::fmt::Display for NodeConflict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "two machines say that they are node {}: {} is accepted, {} is refused; give one of them another name and \
             certificate",
            self.node, self.accepted, self.refused
        )
    }
}
