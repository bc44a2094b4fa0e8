//! Why a request got no reply.

use std::time::Duration;

use super::Channel;
use crate::ids::NodeName;

/// Why a request got no reply.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PeerError {
    /// The cluster file does not name the node.
    #[error("no node {0} is in the cluster file")]
    UnknownNode(NodeName),
    /// No connection came about in time. The request was not sent.
    #[error("node {node} was not reached within {within:?}: {why}")]
    Unreachable {
        /// The node.
        node: NodeName,
        /// The request's time-out.
        within: Duration,
        /// What the last attempt met.
        why: String,
    },
    /// The node, or we, refuse the connection: certificate, cluster, wire version, a second node of one name. It will
    /// not heal by itself. The request was not sent.
    #[error("no connection to node {node}: {why}")]
    Refused {
        /// The node.
        node: NodeName,
        /// What is wrong, and what to do.
        why: String,
    },
    /// As many requests as may be were in flight, and none of them ended in time. The request was not sent.
    #[error(
        "node {node} is busy: {limit} requests were in flight on channel {channel} for all of {within:?}"
    )]
    Busy {
        /// The node.
        node: NodeName,
        /// Where the requests are.
        channel: Channel,
        /// How many may be in flight.
        limit: usize,
        /// The request's time-out.
        within: Duration,
    },
    /// The request, or its reply, is larger than a frame may be.
    #[error("a frame of {length} bytes for node {node} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// The node.
        node: NodeName,
        /// The frame's size in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The node answered that it does not serve the request, or not any more. Unless its words say so, that does not
    /// mean that it was not executed.
    #[error("node {node} does not serve this: {why}")]
    NotServed {
        /// The node.
        node: NodeName,
        /// Its words.
        why: String,
    },
    /// The connection was lost while the request was in flight. It may have been executed.
    #[error("the connection to node {node} was lost ({why}); the request may have been executed")]
    Lost {
        /// The node.
        node: NodeName,
        /// How it was lost.
        why: String,
    },
    /// No answer in time. The request may have been executed.
    #[error("no answer from node {node} within {within:?}; the request may have been executed")]
    TimedOut {
        /// The node.
        node: NodeName,
        /// The request's time-out.
        within: Duration,
    },
    /// This end has been stopped.
    #[error("the connection to the other nodes has been stopped")]
    Stopped,
}

impl PeerError {
    /// Whether the request cannot have been executed, nor will be.
    #[must_use]
    pub fn was_surely_not_executed(&self) -> bool {
        match self {
            Self::UnknownNode(_) | Self::Unreachable { .. } | Self::Refused { .. } | Self::Busy { .. } => {
                true
            }
            Self::TooLarge { .. }
            | Self::NotServed { .. }
            | Self::Lost { .. }
            | Self::TimedOut { .. }
            | Self::Stopped => false,
        }
    }
}

/// The answer of a node that gives no reply to a request: it is not the one to ask, or it stops.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotServed(
    /// Why, for the one who asked.
    pub String,
);
