//! What a voter is told when it starts.

use std::path::PathBuf;
use std::time::Duration;

use crate::ids::NodeName;
use crate::rules::Rules;

/// What a voter is told when it starts.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    /// This node.
    pub node: NodeName,
    /// The directory of log, vote and snapshots: this voter's alone.
    pub dir: PathBuf,
    /// Which rules are kept.
    pub rules: Rules,
    /// How often the leader tells the others that it leads. It is also how long it waits for one answer.
    pub heartbeat: Duration,
    /// How long a voter without a leader waits before it stands for election: a random time between this and twice
    /// this. A voter that had a leader first waits twice this in addition, in which a leader that it still hears
    /// cannot be unseated.
    pub election: Duration,
    /// How long [`propose`](super::RaftNode::propose) and [`confirm_leader`](super::RaftNode::confirm_leader) wait for a
    /// quorum.
    pub patience: Duration,
    /// A snapshot is written after so many log entries...
    pub snapshot_entries: u64,
    /// ... or so many bytes of log.
    pub snapshot_bytes: u64,
    /// How many entries before the snapshot are kept, for a voter that was away for a moment.
    pub keep_entries: u64,
}

impl RaftConfig {
    /// The settings for node `node` with its data in `dir`.
    #[must_use]
    pub fn new(node: NodeName, dir: PathBuf) -> Self {
        Self {
            node,
            dir,
            rules: Rules::all(),
            heartbeat: Duration::from_millis(150),
            election: Duration::from_millis(300),
            patience: Duration::from_secs(3),
            snapshot_entries: 20_000,
            snapshot_bytes: 64 << 20,
            keep_entries: 5_000,
        }
    }
}
