//! A set of files that several mounts own is handed over by one of them (L6): the others hand it theirs before, each all that it
//! has of the set in one entry.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use lockd::client::{Connection, HolderRequest};
use lockd::ids::{ClientId, NodeName, ResourceId};
use lockd::local::message::Recipient;

use crate::Common;
use crate::holdings::{ask, called, holders, volume_of};

/// What one program holds of a set.
struct Part {
    client: ClientId,
    node: NodeName,
    resources: Vec<ResourceId>,
}

/// What is left to be handed over by one, and how long what has come together was stopped for that.
pub(crate) struct Gathered {
    pub(crate) resources: Vec<ResourceId>,
    pub(crate) pause: Duration,
}

fn parts(connection: &Connection, resources: &[ResourceId]) -> anyhow::Result<Vec<Part>> {
    let mut parts: BTreeMap<ClientId, Part> = BTreeMap::new();
    for (resource, holder) in resources.iter().zip(holders(connection, resources)?) {
        let Some(holder) = holder else { continue };
        let (client, node) = (holder.client, holder.node);
        let part = parts.entry(client).or_insert_with(|| Part { client, node, resources: Vec::new() });
        part.resources.push(resource.clone());
    }
    Ok(parts.into_values().collect())
}

/// Whether these are files of one volume.
fn are_files(resources: &[ResourceId]) -> bool {
    let is_file = |resource: &ResourceId| matches!(resource, ResourceId::File(..));
    let volume = resources.first().map(volume_of);
    resources.iter().all(|resource| is_file(resource) && Some(volume_of(resource)) == volume)
}

/// Has files that are owned on several nodes come to one of them: to the one that has most, and is not `to`, where what is there
/// already stays. `whole`: why the set must have one owner as it is.
pub(crate) fn gather(
    common: &Common,
    connection: &Connection,
    resources: &[ResourceId],
    to: &NodeName,
    whole: Option<&str>,
) -> anyhow::Result<Gathered> {
    let mut parts = parts(connection, resources)?;
    let mut gathered = Gathered { resources: resources.to_vec(), pause: Duration::ZERO };
    if parts.len() < 2 || !are_files(resources) {
        return Ok(gathered);
    }
    if let Some(why) = whole {
        let named = |part: &Part| format!("{} files on {}", part.resources.len(), part.node);
        let named: Vec<String> = parts.iter().map(named).collect();
        bail!("{why}, and these have {} ({}): name each owner's apart", parts.len(), named.join(", "));
    }
    let hand_over = |part: &Part, to: &NodeName| {
        let (resources, to) = (part.resources.clone(), to.clone());
        let request = HolderRequest::Transfer { resources, to, with_locks: false };
        ask(common, connection, &request, || Ok(Recipient::Client(part.client)))
    };
    for there in parts.extract_if(.., |part| part.node == *to) {
        // From now on because somebody wants it.
        hand_over(&there, to)?;
        gathered.resources.retain(|resource| !there.resources.contains(resource));
    }
    parts.sort_by_key(|part| part.resources.len());
    let Some(most) = parts.pop() else { return Ok(gathered) };
    for part in parts {
        let done = hand_over(&part, &most.node).with_context(|| {
            let (what, from) = (called(&part.resources), &part.node);
            format!(
                "{what} of node {from} did not come to {} before; nothing of the others has moved on",
                most.node
            )
        })?;
        gathered.pause += done.pause;
    }
    Ok(gathered)
}
