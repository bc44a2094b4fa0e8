//! The replicated log of the cluster's voters: a deterministic [`Machine`] that every voter applies the same commands
//! to, in the same order.
//!
//! The consensus is openraft's; this module gives it a disk (`log`, `snapshot`), a network (frames on
//! [`Channel::Raft`](crate::peers::Channel::Raft)) and what the rest of lockd needs above it ([`RaftNode`]):
//!
//! - [`RaftNode::propose`] has a command applied; commands that come at the same time share one log entry.
//! - [`RaftNode::confirm_leader`] is rule L4: openraft's leader does not step down when it is cut off, it merely cannot
//!   commit any more. Whatever it answers from its memory (a keep-alive, a query) may be out of date unless a quorum has
//!   confirmed, *since the question came*, that it still leads.
//! - [`RaftNode::subscribe`] tells what was applied on this node, in order.
//! - [`RaftNode::status`] says who leads, how far each voter is, and plainly whether there is a quorum.
//!
//! Assumptions: a voter's directory is its own and is never rolled back (a restored backup is a lost directory: see
//! [`StorageId`]); `fdatasync` means what it says; a sector of 512 bytes is written whole or not at all.

mod codec;
mod config;
mod confirm;
mod contacts;
mod disk;
mod error;
mod identity;
mod log;
mod machine;
mod network;
mod node;
mod propose;
mod segment;
mod service;
mod snapshot;
mod state;
mod status;
mod storage_id;
mod time;
mod types;
mod wire;
mod writer;

pub use config::RaftConfig;
pub use error::{InitializeError, MembershipError, ProposeError, StartError};
pub use machine::{Machine, Output};
pub use node::RaftNode;
pub use state::Application;
pub use status::{Leadership, Quorum, Role, Status, VoterStatus};
pub use storage_id::StorageId;
pub use time::ClusterTime;
pub use types::Proposed;
