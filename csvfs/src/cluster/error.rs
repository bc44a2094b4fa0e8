//! Why a mount cannot take part in its cluster.

use lockd::authority::AuthorityError;
use lockd::client::ClientError;
use lockd::cluster::ClusterFileError;
use lockd::cluster::tls::TlsError;
use lockd::ids::NodeName;
use lockd::peers::quic::StartError;

/// Each says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The cluster file cannot be read, or has a mistake.
    #[error(transparent)]
    File(#[from] ClusterFileError),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate of the cluster's authority cannot be read.
    #[error("{path}, the certificate of the cluster's authority, cannot be read")]
    Certificate {
        /// Where it should be.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The network cannot be used.
    #[error(transparent)]
    Network(#[from] StartError),
    /// The node's lockd does not do what it is asked.
    #[error(transparent)]
    Lockd(#[from] ClientError),
    /// It refuses.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The cluster file has no such volume.
    #[error("the cluster file has no volume {asked:?}; it has {known}")]
    NoVolume {
        /// What was asked for.
        asked: String,
        /// What there is.
        known: String,
    },
    /// The cluster file has no such node.
    #[error("the cluster file has no node {0}; give this machine's name in it with --node")]
    NoNode(NodeName),
    /// The LUN does not do what the cluster file says of its fence.
    #[error("volume {volume:?} has fence = \"{fence}\", but {why}")]
    FenceUnproven {
        /// Which volume.
        volume: String,
        /// What the file says.
        fence: &'static str,
        /// What is missing.
        why: String,
    },
    /// Nothing proves that a silent node can be fenced.
    #[error(
        "nothing proves that a silent node can be fenced from volume {volume:?}: {why}. With fence = \"auto\" nothing less \
         is taken. Choose in the cluster file: csv-target with --control, --control-tls and --state, and `control` \
         (nbd-target); a fence agent that switches hosts off (fence = \"agent:COMMAND\"); or, asked for by name, waiting \
         for lease + grace (fence = \"lease\"), after which a node that was stopped between looking at its lease and \
         sending may still write"
    )]
    NoFence {
        /// Which volume.
        volume: String,
        /// What is missing for the strongest.
        why: String,
    },
    /// The cluster file names a LUN in a way that is not understood.
    #[error("the cluster file's volume: {0}")]
    Lun(String),
    /// A thread or the runtime of the network could not be started.
    #[error("a thread or a runtime could not be started: {0}")]
    Start(#[from] std::io::Error),
}
