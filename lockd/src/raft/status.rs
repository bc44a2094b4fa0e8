//! How a voter and its cluster are.

use std::time::Duration;

use super::StorageId;
use crate::ids::NodeName;

/// What a voter does at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It leads, as far as it knows; see [`Status::quorum`].
    Leader,
    /// It follows.
    Follower,
    /// It stands for election.
    Candidate,
    /// It receives the log without a vote: new, catching up, or not in the cluster yet.
    Learner,
    /// It has stopped; [`Status::trouble`] says why.
    Stopped,
}

/// Whether a majority of the voters answers, from where this voter stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Quorum {
    /// A majority answered the leader so long ago.
    Yes(Duration),
    /// No majority has answered for so long; nothing can be decided.
    No(Duration),
    /// This voter was never in touch with a leader since it started.
    Unknown,
}

/// Who leads, in which term.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leadership {
    /// The term, raised with every election.
    pub term: u64,
    /// The leader, when one is known.
    pub leader: Option<NodeName>,
    /// Whether this node is the leader, *as far as it knows* (L4).
    pub here: bool,
}

/// One voter, or learner, as the answering node sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VoterStatus {
    /// Its name.
    pub node: NodeName,
    /// Whether it has a vote.
    pub voter: bool,
    /// The directory that the cluster knows it by.
    pub storage: StorageId,
    /// The last entry that it is known to have; the leader knows.
    pub matched: Option<u64>,
    /// How many entries it is behind the leader; the leader knows.
    pub lag: Option<u64>,
    /// When it last answered, or asked, this node; zero for this node itself.
    pub last_contact: Option<Duration>,
    /// Why it is refused, or could not be asked, when it is so.
    pub trouble: Option<String>,
}

/// How a voter is, at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// This node.
    pub node: NodeName,
    /// This node's directory.
    pub storage: StorageId,
    /// What it does.
    pub role: Role,
    /// Who leads.
    pub leadership: Leadership,
    /// Whether there is a quorum.
    pub quorum: Quorum,
    /// Whether this node belongs to a cluster yet.
    pub initialized: bool,
    /// The last log entry here.
    pub last_log: Option<u64>,
    /// The last entry that this node knows to be committed.
    pub committed: Option<u64>,
    /// The last entry applied here.
    pub applied: Option<u64>,
    /// The last entry in the snapshot here.
    pub snapshot: Option<u64>,
    /// The last entry that is no longer in the log here.
    pub purged: Option<u64>,
    /// The cluster's time of the last command applied here, in nanoseconds: not civil time, see
    /// [`ClusterTime`](super::ClusterTime).
    pub time_ns: u64,
    /// All voters and learners, by name.
    pub voters: Vec<VoterStatus>,
    /// What is wrong with this voter, and what to do: refused by the others, disk failed.
    pub trouble: Option<String>,
}
