//! Opaque requests, to whoever holds something.

use std::sync::Arc;
use std::time::Duration;

use super::control::{Ask, Told};
use super::core::Core;
use crate::ids::{ClientId, NodeName, ResourceId};
use crate::local::message::{Failure, Recipient};
use crate::machine::{Answer, Query};

/// How long a client may take to answer, unless whoever asks has less patience.
const PATIENCE: Duration = Duration::from_secs(60);

fn refuse(why: String) -> Failure {
    Failure::Refused(why)
}

/// Sends `request` to a client anywhere, and returns its answer.
pub(super) async fn to(
    core: &Arc<Core>,
    to: Recipient,
    request: Vec<u8>,
    patience: Option<Duration>,
) -> Result<Vec<u8>, Failure> {
    let within = patience.unwrap_or(PATIENCE);
    let (node, ask) = match to {
        Recipient::Holder(resource) => {
            let Answer::Resource(info) =
                core.route.query(Query::Resource(resource.clone()), patience).await?
            else {
                return Err(refuse("the answer is none to the question who holds it".to_owned()));
            };
            let Some(holder) = info.holders.into_iter().next() else {
                return Err(refuse(format!("nobody holds {resource}")));
            };
            (holder.node, Ask::Forward { client: holder.client, request })
        }
        Recipient::Client(client) => {
            let Answer::Clients(clients) = core.route.query(Query::Clients, patience).await? else {
                return Err(refuse("the answer is none to the question which clients there are".to_owned()));
            };
            let found = clients.into_iter().find(|info| info.client == client);
            let Some(info) = found else { return Err(refuse(format!("there is no client {client}"))) };
            (info.node, Ask::Forward { client, request })
        }
        Recipient::Node { node, resource } => (node, Ask::ForwardToNode { resource, request }),
    };
    if core.cluster.node(&node).is_none() {
        return Err(refuse(format!("there is no node {node} in the cluster {}", core.cluster.name)));
    }
    if node == core.node {
        return here(core, &core.node, ask, within).await.map_err(refuse);
    }
    match core.route.ask(&node, &ask, within).await {
        Told::Forwarded(answer) => Ok(answer),
        Told::Refused(why) | Told::Unknown(why) => Err(refuse(format!("node {node}: {why}"))),
        other => Err(refuse(format!("node {node} gave an odd answer: {other:?}"))),
    }
}

/// Serves a request for a client of this node.
pub(super) async fn here(
    core: &Arc<Core>,
    from: &NodeName,
    ask: Ask,
    within: Duration,
) -> Result<Vec<u8>, String> {
    let (client, request) = match ask {
        Ask::Forward { client, request } => (client, request),
        Ask::ForwardToNode { resource, request } => match core.clients.suitable(&resource) {
            Some(client) => (client, request),
            None => return core.steward.serve(core, &request).await,
        },
        _ => return Err("this is not to be forwarded".to_owned()),
    };
    if core.steward.is(client).await {
        return core.steward.serve(core, &request).await;
    }
    ask_client(core, client, from, request, within).await
}

async fn ask_client(
    core: &Core,
    client: ClientId,
    from: &NodeName,
    request: Vec<u8>,
    within: Duration,
) -> Result<Vec<u8>, String> {
    match core.clients.connection_of(client) {
        Some(connection) => connection.ask(client, from.clone(), request, within).await,
        None => Err(format!("{client} of node {} is not connected to its lockd", core.node)),
    }
}

/// The client on `node` that can hold `resource`: a program, or the steward.
pub(super) async fn holder_on(
    core: &Arc<Core>,
    node: &NodeName,
    resource: &ResourceId,
) -> Result<ClientId, String> {
    if *node == core.node {
        return holder_here(core, resource).await;
    }
    match core.route.ask(node, &Ask::Steward(resource.clone()), Duration::from_secs(5)).await {
        Told::Client(client) => Ok(client),
        Told::Refused(why) | Told::Unknown(why) => Err(format!("node {node}: {why}")),
        other => Err(format!("node {node} gave an odd answer: {other:?}")),
    }
}

/// The client on this node that can hold `resource`.
pub(super) async fn holder_here(core: &Arc<Core>, resource: &ResourceId) -> Result<ClientId, String> {
    match core.clients.suitable(resource) {
        Some(client) => Ok(client),
        None => core.steward.client_for(core, resource).await,
    }
}
