//! How the cluster is, plainly, also when there is no quorum: a JSON document.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::control::{Ask, Told};
use super::core::Core;
use crate::ids::{NodeName, VolumeId};
use crate::machine::{Answer, ClientKind, Query, SessionState};
use crate::raft::{Quorum, Role, Status};

/// How long a node may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(1);

/// How this node is.
pub(super) fn node(core: &Core) -> Value {
    let session = core.session_now();
    let lease_left = session.as_ref().map(|open| {
        let left = open.lease.deadline().since(core.clock.boot());
        left.as_secs_f64()
    });
    let clients = core.clients.list().into_iter().map(|(client, kind, process, connected)| {
        json!({
            "client": client.0,
            "kind": kind.to_string(),
            "volume": volume_of(kind).map(|volume| volume.to_string()),
            "pid": process.map(|process| process.pid),
            "connected": connected,
        })
    });
    let clients: Vec<Value> = clients.collect();
    // Two machines that use one name: the one that came second is refused.
    let conflicts = core.endpoint.conflicts().into_iter().map(|conflict| {
        let (node, refused) = (conflict.node, conflict.refused);
        format!("a second machine, at {refused}, calls itself node {node}; it is refused: look at its --node")
    });
    let conflicts: Vec<String> = conflicts.collect();
    json!({
        "node": core.node.as_str(),
        "reachable": true,
        "session": session.map(|open| open.session.0),
        "lease_left_s": lease_left,
        "clients": clients,
        "certificate_days_left": core.endpoint.certificate_days_left(),
        "trouble": core.trouble(),
        "conflicts": conflicts,
        "fences": core.attempts.document(),
        "voter": core.route.seat.get().map(|seat| voter(&seat.voter.raft.status())),
        "version": env!("CARGO_PKG_VERSION"),
    })
}

fn voter(status: &Status) -> Value {
    let role = match status.role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
        Role::Stopped => "stopped",
    };
    let (quorum, quorum_age) = match status.quorum {
        Quorum::Yes(age) => ("yes", Some(age)),
        Quorum::No(age) => ("no", Some(age)),
        Quorum::Unknown => ("unknown", None),
    };
    let others: Vec<Value> = status
        .voters
        .iter()
        .map(|other| {
            json!({
                "node": other.node.as_str(),
                "voter": other.voter,
                "matched": other.matched,
                "lag": other.lag,
                "last_contact_s": other.last_contact.map(|ago| ago.as_secs_f64()),
                "trouble": other.trouble,
            })
        })
        .collect();
    json!({
        "role": role,
        "term": status.leadership.term,
        "leader": status.leadership.leader.as_ref().map(|leader| leader.as_str()),
        "quorum": quorum,
        "quorum_age_s": quorum_age.map(|age| age.as_secs_f64()),
        "initialized": status.initialized,
        "last_log": status.last_log,
        "committed": status.committed,
        "applied": status.applied,
        "snapshot": status.snapshot,
        "voters": others,
        "trouble": status.trouble,
    })
}

/// How every node is, and what the leader says.
pub(super) async fn cluster(core: &Arc<Core>) -> String {
    let mut asked = tokio::task::JoinSet::new();
    for (place, other) in core.cluster.nodes.iter().enumerate() {
        let (core, name) = (Arc::clone(core), other.name.clone());
        asked.spawn(async move { (place, of_node(&core, name).await) });
    }
    let leader = leader(core);
    let mut nodes = Vec::new();
    while let Some(Ok(answer)) = asked.join_next().await {
        nodes.push(answer);
    }
    nodes.sort_by_key(|(place, _)| *place);
    let nodes: Vec<Value> = nodes.into_iter().map(|(_, node)| node).collect();
    let (state, problem) = match leader.await {
        Ok(state) => (state, None),
        Err(why) => (Value::Null, Some(why)),
    };
    let leading = nodes
        .iter()
        .filter_map(|node| node.pointer("/voter"))
        .filter(|voter| voter["role"] == "leader" && voter["quorum"] != "no");
    let leader = leading.max_by_key(|voter| voter["term"].as_u64()).map(|voter| voter["leader"].clone());
    let document = json!({
        "cluster": core.cluster.name,
        "asked": core.node.as_str(),
        "quorum": problem.is_none(),
        "problem": problem,
        "leader": leader.unwrap_or(Value::Null),
        "state": state,
        "nodes": nodes,
    });
    document.to_string()
}

/// The volume that a client has mounted.
fn volume_of(kind: ClientKind) -> Option<VolumeId> {
    match kind {
        ClientKind::Csvfs { volume } => Some(volume),
        ClientKind::Vmhost | ClientKind::Tool => None,
    }
}

async fn of_node(core: &Arc<Core>, name: NodeName) -> Value {
    if name == core.node {
        return node(core);
    }
    // Before it is asked: what is asked of it now is heard as well, if it answers.
    let peer = core.endpoint.status().into_iter().find(|peer| peer.node == name);
    let last_contact = peer.as_ref().and_then(|peer| peer.last_contact);
    let address = peer.map(|peer| peer.address.to_string());
    let why = match core.route.ask(&name, &Ask::Status, PATIENCE).await {
        Told::Document(text) => match serde_json::from_str(&text) {
            Ok(value) => return value,
            Err(error) => error.to_string(),
        },
        Told::Refused(why) | Told::Unknown(why) => why,
        other => format!("an odd answer: {other:?}"),
    };
    // To ask how a node is changes nothing: whether it was asked is not worth a word.
    let why = why.split("; the request may").next().unwrap_or(&why).to_owned();
    json!({
        "node": name.as_str(),
        "reachable": false,
        "address": address,
        "last_contact_s": last_contact.map(|ago| ago.as_secs_f64()),
        "trouble": why,
    })
}

/// What the state says; an error when there is no quorum.
async fn leader(core: &Core) -> Result<Value, String> {
    let ask = |query| core.route.query(query, Some(PATIENCE));
    let Answer::Status { time_ns, settings, sessions, resources, locks, .. } =
        ask(Query::Status).await.map_err(|failure| failure.to_string())?
    else {
        return Err("an odd answer".to_owned());
    };
    let all = match ask(Query::Sessions).await.map_err(|failure| failure.to_string())? {
        Answer::Sessions(all) => all,
        _ => Vec::new(),
    };
    let all: Vec<Value> = all.into_iter().map(|info| {
        let ended = match info.state {
            SessionState::Live => Value::Null,
            SessionState::Ended { at_ns, cause, .. } => {
                json!({ "ago_s": seconds(time_ns.saturating_sub(at_ns)), "cause": format!("{cause:?}").to_lowercase() })
            }
        };
        json!({
            "session": info.session.0,
            "node": info.node.as_str(),
            "age_s": seconds(time_ns.saturating_sub(info.since_ns)),
            "clients": info.clients,
            "ended": ended,
        })
    }).collect();
    Ok(json!({
        "lease_s": seconds(settings.lease_ns),
        "grace_s": seconds(settings.grace_ns),
        "live_sessions": sessions,
        "resources": resources,
        "locks": locks,
        "sessions": all,
    }))
}

#[allow(clippy::cast_precision_loss)] // For people, who need three digits.
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
