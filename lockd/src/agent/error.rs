//! Why a lockd does not start.

use std::io;
use std::path::PathBuf;

use crate::cluster::tls::TlsError;
use crate::ids::NodeName;
use crate::lease::LeasePageError;
use crate::local::run_dir::RunDirError;

/// Why a lockd does not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The cluster file does not name this node.
    #[error("there is no node {node} in the cluster file of {cluster}; look at --node")]
    UnknownNode {
        /// The name that was given.
        node: NodeName,
        /// The cluster.
        cluster: String,
    },
    /// The run directory cannot be used.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// The lease page cannot be used.
    #[error(transparent)]
    Lease(#[from] LeasePageError),
    /// A directory or socket cannot be used.
    #[error("cannot use {path}: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The kernel does not tell which boot this is.
    #[error("cannot read the id of this boot: {0}")]
    Boot(#[source] io::Error),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The network address cannot be used.
    #[error(transparent)]
    Network(#[from] crate::peers::quic::StartError),
    /// The watchdog cannot be used.
    #[error(transparent)]
    Watchdog(#[from] super::WatchdogError),
    /// The voter's directory cannot be used.
    #[error(transparent)]
    Voter(#[from] crate::raft::StartError),
}
