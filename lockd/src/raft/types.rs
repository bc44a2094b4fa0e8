//! The types that openraft works with.

use std::io::Cursor;
use std::sync::Arc;

use super::StorageId;
use super::time::Stamp;
use crate::ids::{NodeId, NodeName};

openraft::declare_raft_types!(
    /// The consensus of lockd's voters.
    pub TypeConfig:
        D = Batch,
        R = Replies,
        NodeId = NodeId,
        Node = Voter,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = openraft::TokioRuntime,
);

pub(super) type Entry = openraft::Entry<TypeConfig>;
pub(super) type LogId = openraft::LogId<NodeId>;
pub(super) type Vote = openraft::Vote<NodeId>;
pub(super) type Membership = openraft::Membership<NodeId, Voter>;
pub(super) type StoredMembership = openraft::StoredMembership<NodeId, Voter>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<NodeId, Voter>;
pub(super) type StorageError = openraft::StorageError<NodeId>;
pub(super) type Raft = openraft::Raft<TypeConfig>;

/// Commands that came at the same time and share a log entry: one write and one sync for all of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    /// The leader's time of the first; each further command is a nanosecond later.
    pub(super) stamp: Stamp,
    /// The commands in order.
    pub(super) commands: Arc<Vec<Vec<u8>>>,
}

/// What the commands of one entry were answered, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Replies(pub(super) Vec<Proposed>);

/// A command that has been applied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposed {
    /// The how-manieth command of the cluster it was, from 1: the same number on every voter.
    pub number: u64,
    /// The machine's reply.
    pub reply: Vec<u8>,
}

/// A member of the cluster as the membership names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Voter {
    /// Its name.
    pub(super) name: NodeName,
    /// Its directory.
    pub(super) storage: StorageId,
}

impl Default for Voter {
    fn default() -> Self {
        // openraft makes one for members that it was told nothing about; lockd always tells.
        let name = "unnamed".parse().expect("a valid name");
        Self { name, storage: StorageId::default() }
    }
}
