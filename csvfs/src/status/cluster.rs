//! The volumes of a cluster on all of its nodes, asked for at any of them.
//!
//! lockd says which nodes there are, when it last heard of each and which mounts are registered with it; each mount is then
//! asked by way of its lockd. None of this needs a quorum: without one only the coordinator's term is not known. A node that
//! does not answer is in the table like the others, with what is known of it.

mod assemble;
mod lockd_document;
#[cfg(test)]
mod tests;

use std::time::Duration;

use lockd::client::{ClientError, Connection, HolderReply, HolderRequest};
use lockd::ids::{NodeName, ResourceId, VolumeId};
use lockd::local::message::Recipient;
use lockd::machine::{Answer, Query};
use serde::{Deserialize, Serialize};

use super::VolumeStatus;
use assemble::{Asked, Registered, assemble};
use lockd_document::Document;

/// How long a mount may take to answer: more than it may take to find that the coordinator does not.
const PATIENCE: Duration = Duration::from_secs(3);

/// The volumes of a cluster.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The cluster's name.
    pub cluster: String,
    /// The node whose lockd was asked.
    pub asked: String,
    /// Whether a majority of the voters answers.
    pub quorum: bool,
    /// The node that leads lockd's voters.
    pub leader: Option<String>,
    /// What is wrong with the cluster; empty when all is well.
    pub problem: String,
    /// Its volumes.
    pub volumes: Vec<ClusterVolume>,
}

/// One volume on all nodes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ClusterVolume {
    /// Its uuid; none if it was never mounted.
    pub volume: Option<String>,
    /// Its name.
    pub name: String,
    /// The node whose mount may change the metadata; none if nobody has the role, or it is not known.
    pub coordinator: Option<String>,
    /// The epoch of its term.
    pub coordinator_epoch: Option<u64>,
    /// For how long it has had the role, in seconds.
    pub coordinator_since_s: Option<f64>,
    /// How a node is kept from writing when it should not, and what that guarantees.
    pub fence: String,
    /// Who is being fenced from it.
    #[serde(default)]
    pub fences: Vec<FenceUnderWay>,
    /// What is wrong with the volume as a whole, and what to do about it; empty when all is well.
    pub problem: String,
    /// The volume on each node of the cluster.
    pub nodes: Vec<NodeStatus>,
}

/// Somebody is being fenced from a volume.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct FenceUnderWay {
    /// Who, in words.
    pub victim: String,
    /// For how long, in seconds.
    pub since_s: f64,
    /// What is waited for, in words.
    pub waits_for: String,
}

/// One volume on one node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node.
    pub node: String,
    /// As [`VolumeStatus::state`]; and `not mounted`, `unreachable` when the node's lockd does not answer, `silent` when its
    /// mount does not.
    pub state: String,
    /// Since when, in seconds before now; for a node that does not answer: since it was last heard of.
    pub since_s: Option<f64>,
    /// What is wrong, and what to do about it; empty when all is well.
    pub problem: String,
    /// What its mount says of itself.
    pub mount: Option<VolumeStatus>,
}

/// Asks the lockd behind `connection`, and by way of it all mounts; what is known of `local` mounts is not asked for again.
/// `known` are the volumes that the cluster file has.
///
/// # Errors
/// If lockd does not answer.
pub fn ask(
    connection: &Connection,
    local: &[VolumeStatus],
    known: &[String],
) -> Result<ClusterStatus, ClientError> {
    let document: Document = serde_json::from_str(&connection.status()?)
        .map_err(|error| ClientError::Failed(format!("lockd's status is of another release: {error}")))?;
    // Without a quorum nobody can say; the mounts say themselves who coordinates.
    let registered = if document.quorum { registered(connection) } else { None };
    let wanted: Vec<(NodeName, VolumeId)> = document
        .mounts()
        .filter(|(node, volume)| !local.iter().any(|mount| is_of(mount, &document.cluster, node, *volume)))
        .collect();
    let asked: Vec<Asked> = std::thread::scope(|scope| {
        let threads: Vec<_> = wanted
            .into_iter()
            .map(|(node, volume)| {
                scope.spawn(move || {
                    let answer = ask_mount(connection, &node, volume);
                    Asked { node: node.to_string(), volume: volume.to_string(), answer }
                })
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let here =
        local.iter().filter(|mount| mount.cluster.as_deref() == Some(&document.cluster)).map(|mount| Asked {
            node: mount.node.clone(),
            volume: mount.volume.clone(),
            answer: Ok(mount.clone()),
        });
    let asked: Vec<Asked> = asked.into_iter().chain(here).collect();
    Ok(assemble(&document, registered.as_ref(), &asked, known))
}

fn is_of(mount: &VolumeStatus, cluster: &str, node: &NodeName, volume: VolumeId) -> bool {
    mount.cluster.as_deref() == Some(cluster)
        && mount.node == node.as_str()
        && mount.volume == volume.to_string()
}

fn registered(connection: &Connection) -> Option<Registered> {
    let Ok(Answer::Volumes(volumes)) = connection.query(Query::Volumes) else { return None };
    let Ok(Answer::Fences(fences)) = connection.query(Query::Fences) else { return None };
    // Ages are counted from the cluster's time.
    let Ok(Answer::Status { time_ns, .. }) = connection.query(Query::Status) else { return None };
    Some(Registered { volumes, fences, now_ns: time_ns })
}

fn ask_mount(connection: &Connection, node: &NodeName, volume: VolumeId) -> Result<VolumeStatus, String> {
    let to = Recipient::Node { node: node.clone(), resource: ResourceId::Coordinator(volume) };
    match connection.ask_holder_within(to, &HolderRequest::Status, PATIENCE) {
        Ok(HolderReply::Document(text)) => {
            serde_json::from_str(&text).map_err(|error| format!("its answer is of another release: {error}"))
        }
        Ok(HolderReply::Refused(why) | HolderReply::Passing(why)) => Err(why),
        Ok(HolderReply::Done { .. } | HolderReply::Locks(_)) => {
            Err("its answer is of another release".to_owned())
        }
        Err(error) => Err(error.to_string()),
    }
}
