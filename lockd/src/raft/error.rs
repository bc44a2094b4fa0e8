//! What can go wrong, and what to do.

use std::path::PathBuf;
use std::time::Duration;

use crate::ids::NodeName;

/// Why a voter did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process has the directory.
    #[error("{dir} is in use by another lockd; two voters never share a directory")]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory belongs to another node.
    #[error("{dir} is the directory of voter {found}, not of {node}; give each voter its own --data")]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// Who wrote it.
        found: NodeName,
        /// Who wanted to start.
        node: NodeName,
    },
    /// What was acknowledged cannot be read any more.
    #[error(
        "{path} is damaged at byte {offset}: {why}. What this voter had acknowledged is lost. If the other voters are \
         well, move the directory away, start lockd again and run `lockctl voters rejoin` for this node"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What is wrong there.
        why: String,
    },
    /// The files were written by another version of the program.
    #[error(
        "{path} has format version {found}; this lockd reads version {known}. Start the lockd that wrote it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: u32,
        /// The version of this program.
        known: u32,
    },
    /// The disk does not do what a voter needs.
    #[error("cannot {what} {path}; a voter needs a directory that it can write to, with space")]
    Disk {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// How it failed.
        #[source]
        source: std::io::Error,
    },
    /// The snapshot's state cannot be read.
    #[error("the state in snapshot {path} cannot be read: {why}")]
    State {
        /// The file.
        path: PathBuf,
        /// The machine's words.
        why: String,
    },
    /// The settings contradict each other.
    #[error("the voter's settings are wrong: {0}")]
    Settings(String),
    /// The consensus ended before it had begun.
    #[error("the consensus did not start: {0}")]
    Consensus(String),
}

/// Why a command was not applied, as far as is known, or a question not answered.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProposeError {
    /// This node does not lead. The command was not applied and will not be.
    #[error("this node does not lead the cluster; {}", .0.as_ref().map_or_else(
        || "no leader is known yet".to_owned(), |leader| format!("node {leader} does")))]
    NotLeader(Option<NodeName>),
    /// This node leads as far as it knows, and no majority of the voters answers. The command was not submitted.
    #[error(
        "no quorum: a majority of the voters has not answered for {silent:?}; nothing can be decided until it does"
    )]
    NoQuorum {
        /// Since when no majority has answered.
        silent: Duration,
    },
    /// The command was submitted and no outcome came in time: it may be applied yet (L7).
    #[error("no outcome within {within:?}: the command may have been applied, or be applied later")]
    Unknown {
        /// How long was waited.
        within: Duration,
    },
    /// The command is too large. It was not submitted.
    #[error("a command of {length} bytes is larger than the limit of {limit} bytes")]
    TooLarge {
        /// Its size in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Too many commands wait. It was not submitted.
    #[error("{limit} commands wait already; try again")]
    Busy {
        /// How many may wait.
        limit: usize,
    },
    /// This voter has stopped: it was shut down, or its disk failed. A command that was in flight may have been
    /// applied.
    #[error("this voter has stopped: {0}")]
    Stopped(String),
}

impl ProposeError {
    /// Whether the command has surely not been applied, and never will be.
    #[must_use]
    pub fn was_surely_not_applied(&self) -> bool {
        match self {
            Self::NotLeader(_) | Self::NoQuorum { .. } | Self::TooLarge { .. } | Self::Busy { .. } => true,
            Self::Unknown { .. } | Self::Stopped(_) => false,
        }
    }
}

/// Why the first set of voters was not made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InitializeError {
    /// Every voter of the first set must answer once, so that no voter of an earlier life of the cluster is overlooked.
    /// Try again.
    #[error("the cluster starts when all of its voters have been reached once; missing: {}", .0.join(", "))]
    Waiting(
        /// Who is missing, and why.
        Vec<String>,
    ),
    /// This node is not among the voters.
    #[error("node {0} is not among the voters and cannot start the cluster")]
    NotAVoter(NodeName),
    /// This voter has stopped.
    #[error("this voter has stopped: {0}")]
    Stopped(String),
}

/// Why the voters were not changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MembershipError {
    /// As for a command.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// A new voter must be reached before it counts.
    #[error("node {node} cannot become a voter: {why}")]
    Unreachable {
        /// The new voter.
        node: NodeName,
        /// Why it was not reached.
        why: String,
    },
    /// A new voter must have caught up before it counts.
    #[error("node {node} has not caught up within {within:?}; it stays a learner, try again")]
    Lagging {
        /// The new voter.
        node: NodeName,
        /// How long was waited.
        within: Duration,
    },
    /// A cluster has 1 to 7 voters.
    #[error("a cluster has 1 to 7 voters, not {0}")]
    Count(usize),
    /// Another change is under way.
    #[error("another change of the voters is under way: {0}")]
    InProgress(String),
    /// Only a voter can rejoin, and not the leader, which has its directory.
    #[error("node {node} cannot rejoin: {why}")]
    CannotRejoin {
        /// The node.
        node: NodeName,
        /// Why not.
        why: String,
    },
}
