//! What is read of lockd's own status document.

use lockd::ids::{NodeName, VolumeId};
use serde::Deserialize;

/// How the cluster is, by its lockds.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Document {
    pub cluster: String,
    pub asked: String,
    pub quorum: bool,
    pub problem: Option<String>,
    pub leader: Option<String>,
    pub state: Option<State>,
    pub nodes: Vec<Node>,
}

/// What the replicated state says; only with a quorum.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct State {
    #[serde(default)]
    pub sessions: Vec<Session>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Session {
    pub session: u64,
    pub node: String,
    pub ended: Option<Ended>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Ended {
    pub ago_s: f64,
}

/// One node.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Node {
    pub node: String,
    pub reachable: bool,
    pub address: Option<String>,
    pub last_contact_s: Option<f64>,
    pub trouble: Option<String>,
    #[serde(default)]
    pub clients: Vec<Client>,
}

/// A program that is registered with the node's lockd.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Client {
    pub volume: Option<String>,
    pub pid: Option<u32>,
    pub connected: bool,
}

impl Document {
    /// The mounts that can be asked.
    pub fn mounts(&self) -> impl Iterator<Item = (NodeName, VolumeId)> + '_ {
        self.nodes.iter().flat_map(|node| {
            let connected = node.clients.iter().filter(|client| client.connected);
            connected.filter_map(|client| {
                let volume = client.volume.as_ref()?.parse().ok()?;
                Some((node.node.parse().ok()?, volume))
            })
        })
    }
}
