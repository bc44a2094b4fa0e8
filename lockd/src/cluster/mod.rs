//! The cluster as its administrator describes it: the cluster file, and the certificates that prove who a node is.
//!
//! [`Cluster::read`] reads the file (section 8 of the design); every mistake in it is an error that names file, line,
//! column and field. All nodes have the same file. [`tls`] makes and checks the certificates that it speaks of.

mod control;
mod error;
mod fence;
mod file;
mod program;
pub mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use control::{ControlAddress, InvalidControl};
pub use error::ClusterFileError;
pub use fence::{FenceChoice, InvalidFence};
pub use program::Program;

use crate::ids::{NodeId, NodeName};

/// The port of a node's lockd, when the cluster file names none.
pub const PORT_DEFAULT: u16 = 7400;

/// A cluster, as its file describes it. What it holds has been checked: names are valid and unique, the voters are 1,
/// 3 or 5, ports do not collide, times are within their limits.
#[derive(Clone, PartialEq, Debug)]
pub struct Cluster {
    /// The cluster's name. It stands in every certificate.
    pub name: String,
    /// Where `ca.pem`, `NODE.pem` and `NODE.key` are.
    pub tls_dir: PathBuf,
    /// The nodes, in the order of the file.
    pub nodes: Vec<Node>,
    /// The volumes, in the order of the file. The order decides the ports of their mounts ([`Program::Mount`]).
    pub volumes: Vec<Volume>,
    /// L1: how long a session's lease lasts.
    pub lease: Duration,
    /// How long after the end of a lease `fence = "lease"` waits before it takes the session for silent.
    pub grace: Duration,
    /// P2: how long I/O is held when no path works.
    pub hold: Duration,
}

/// A host of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Where the other nodes reach it.
    pub address: IpAddr,
    /// The port of its lockd; its other programs have the ports that follow ([`Program::port_offset`]).
    pub port: u16,
    /// Whether its lockd takes part in the consensus.
    pub voter: bool,
    /// What a fence agent needs to know of this host, beside its name: it goes before the volume's.
    pub agent: BTreeMap<String, String>,
    /// The device that restarts the host when its lease is over and lockd does not come to it any more.
    pub watchdog: Option<PathBuf>,
}

/// A volume of the cluster.
#[derive(Clone, PartialEq, Debug)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// The paths to its LUN, in order of preference.
    pub lun: Vec<String>,
    /// How a node that went silent is kept away from it.
    pub fence: FenceChoice,
    /// P5: how long the target may still execute what has reached it.
    pub target_quiesce: Duration,
    /// The control ports of the targets, one for each path in `lun`; or none.
    pub control: Vec<ControlAddress>,
    /// What a fence agent is told of every host.
    pub agent: BTreeMap<String, String>,
    /// How long a fence agent may take.
    pub agent_timeout: Duration,
}

impl Cluster {
    /// The node of that name.
    #[must_use]
    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == *name)
    }

    /// The node with that number. The numbers of a cluster's nodes differ: the file is checked for that.
    #[must_use]
    pub fn node_by_id(&self, id: NodeId) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name.id() == id)
    }

    /// The nodes whose lockd takes part in the consensus: 1, 3 or 5.
    pub fn voters(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.voter)
    }

    /// The volume of that name, with its place in the file.
    #[must_use]
    pub fn volume(&self, name: &str) -> Option<(usize, &Volume)> {
        self.volumes.iter().enumerate().find(|(_, volume)| volume.name == name)
    }

    /// The hosts of all control ports.
    #[must_use]
    pub fn control_hosts(&self) -> BTreeSet<String> {
        let all = self.volumes.iter().flat_map(|volume| &volume.control);
        all.map(|address| address.host.clone()).collect()
    }

    /// Where `program` of node `name` listens for the other nodes. `None`: no such node.
    #[must_use]
    pub fn address(&self, name: &NodeName, program: Program) -> Option<SocketAddr> {
        let node = self.node(name)?;
        Some(SocketAddr::new(node.address, node.port.checked_add(program.port_offset())?))
    }
}
