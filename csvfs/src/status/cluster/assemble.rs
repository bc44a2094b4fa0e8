//! The table, from what was found. Pure.

use std::collections::BTreeMap;

use lockd::ids::SessionId;
use lockd::machine::{FenceInfo, Victim, VolumeInfo};

use super::lockd_document::{Document, Node};
use super::{ClusterStatus, ClusterVolume, FenceUnderWay, NodeStatus};
use crate::cluster::guarantee;
use crate::status::VolumeStatus;

/// What a mount has answered, or why it has not.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub node: String,
    pub volume: String,
    pub answer: Result<VolumeStatus, String>,
}

/// What the replicated state says of volumes and fences.
#[derive(Clone, Debug)]
pub(super) struct Registered {
    pub volumes: Vec<VolumeInfo>,
    /// Those that are not complete.
    pub fences: Vec<FenceInfo>,
    /// The cluster's time.
    pub now_ns: u64,
}

pub(super) fn assemble(
    document: &Document,
    registered: Option<&Registered>,
    asked: &[Asked],
    known: &[String],
) -> ClusterStatus {
    // By name, then by uuid: two volumes may have had one name.
    let mut found: BTreeMap<(String, Option<String>), Option<&VolumeInfo>> = BTreeMap::new();
    for info in registered.map_or(&[][..], |registered| &registered.volumes) {
        found.insert((info.name.clone(), Some(info.volume.to_string())), Some(info));
    }
    let is_new = |found: &BTreeMap<(String, Option<String>), _>, volume: &String| {
        !found.keys().any(|(_, uuid)| uuid.as_ref() == Some(volume))
    };
    for mount in asked.iter().filter_map(|asked| asked.answer.as_ref().ok()) {
        if is_new(&found, &mount.volume) {
            found.insert((mount.name.clone(), Some(mount.volume.clone())), None);
        }
    }
    // Of these not even a name is known.
    for volume in
        document.nodes.iter().flat_map(|node| &node.clients).filter_map(|client| client.volume.as_ref())
    {
        if is_new(&found, volume) {
            found.insert((String::new(), Some(volume.clone())), None);
        }
    }
    for name in known {
        if !found.keys().any(|(other, _)| other == name) {
            found.insert((name.clone(), None), None);
        }
    }
    let volumes = found
        .into_iter()
        .map(|((name, uuid), info)| volume(document, asked, name, uuid, info.zip(registered)))
        .collect();
    ClusterStatus {
        cluster: document.cluster.clone(),
        asked: document.asked.clone(),
        quorum: document.quorum,
        leader: document.leader.clone(),
        problem: document.problem.as_ref().map_or_else(String::new, |why| {
            let why = why.trim_start_matches("no quorum: ");
            format!(
                "no quorum ({why}): nothing changes hands, and leases run out; start lockd on more of the voters, or mend the \
                 network between them"
            )
        }),
        volumes,
    }
}

fn volume(
    document: &Document,
    asked: &[Asked],
    name: String,
    uuid: Option<String>,
    info: Option<(&VolumeInfo, &Registered)>,
) -> ClusterVolume {
    let mine: Vec<&Asked> = asked.iter().filter(|asked| Some(&asked.volume) == uuid.as_ref()).collect();
    let nodes: Vec<NodeStatus> = document
        .nodes
        .iter()
        .map(|node| {
            let answers = mine.iter().find(|asked| asked.node == node.node);
            status_of(document, node, uuid.as_deref(), answers.map(|asked| &asked.answer))
        })
        .collect();
    let holder = info.and_then(|(info, seen)| info.coordinator.as_ref().map(|holder| (holder, seen.now_ns)));
    let mounts = || mine.iter().filter_map(|asked| asked.answer.as_ref().ok());
    // Without a quorum the mounts' word counts, as long as they agree.
    let said = || {
        let mut said = mounts().map(|mount| &mount.coordinator);
        let first = said.next()?;
        said.all(|other| other == first).then(|| first.clone())
    };
    let coordinator = match info {
        Some(_) => holder.map(|(holder, _)| holder.node.to_string()),
        None => said(),
    };
    let problem = match &coordinator {
        None if info.is_some() && mine.iter().any(|asked| asked.answer.is_ok()) => {
            "nobody coordinates the volume: names and attributes wait; mount it on a node that reaches the LUN".to_owned()
        }
        Some(node) => nodes
            .iter()
            .find(|status| status.node == *node)
            .filter(|status| matches!(status.state.as_str(), "unreachable" | "silent" | "not mounted"))
            .map(|_| format!("the coordinator, node {node}, does not answer: names and attributes wait for it"))
            .unwrap_or_default(),
        None => String::new(),
    };
    let fence = match info {
        Some((info, _)) => guarantee(info.fence).to_owned(),
        None => mounts().next().map(|mount| mount.fence.clone()).unwrap_or_default(),
    };
    let fences = info.map_or_else(Vec::new, |(info, seen)| {
        let of_this = seen.fences.iter().filter(|fence| fence.volume == info.volume);
        of_this.map(|fence| under_way(document, info, fence, seen.now_ns)).collect()
    });
    ClusterVolume {
        fences,
        volume: uuid,
        name,
        coordinator,
        coordinator_epoch: holder.map(|(holder, _)| holder.epoch.0),
        coordinator_since_s: holder.map(|(holder, now_ns)| seconds(now_ns.saturating_sub(holder.since_ns))),
        fence,
        problem,
        nodes,
    }
}

/// A fence that is not complete, in words.
fn under_way(document: &Document, volume: &VolumeInfo, fence: &FenceInfo, now_ns: u64) -> FenceUnderWay {
    let node_of = |session: SessionId| {
        let sessions = document.state.iter().flat_map(|state| &state.sessions);
        let found = sessions.into_iter().find(|known| known.session == session.0);
        found.map_or_else(|| format!("session {session}"), |known| format!("node {}", known.node))
    };
    let victim = match fence.victim {
        Victim::Session(session) => node_of(session),
        Victim::Client(client) => format!("a mount that has died ({client})"),
    };
    let waits_for = match fence.method {
        None => format!("fence {} has not succeeded yet; `lockctl fences` says what was tried", volume.fence),
        Some(_) => {
            let waiting: Vec<String> = fence.waiting.iter().map(|session| node_of(*session)).collect();
            format!("{} to report that they refuse it", waiting.join(", "))
        }
    };
    FenceUnderWay { victim, since_s: seconds(now_ns.saturating_sub(fence.since_ns)), waits_for }
}

fn seconds(ns: u64) -> f64 {
    std::time::Duration::from_nanos(ns).as_secs_f64()
}

fn status_of(
    document: &Document,
    node: &Node,
    uuid: Option<&str>,
    answer: Option<&Result<VolumeStatus, String>>,
) -> NodeStatus {
    let plain = |state: &str, since_s, problem| NodeStatus {
        node: node.node.clone(),
        state: state.to_owned(),
        since_s,
        problem,
        mount: None,
    };
    if let Some(Ok(mount)) = answer {
        let (state, since_s) = (mount.state.clone(), mount.since_s);
        let problem = mount.problem.clone();
        return NodeStatus { node: node.node.clone(), state, since_s, problem, mount: Some(mount.clone()) };
    }
    if !node.reachable {
        return plain("unreachable", node.last_contact_s, why_unreachable(document, node));
    }
    if let Some(Err(why)) = answer {
        let problem = format!("its mount does not answer ({why}); look at its log on {}", node.node);
        return plain("silent", None, problem);
    }
    let client =
        uuid.and_then(|uuid| node.clients.iter().find(|client| client.volume.as_deref() == Some(uuid)));
    match client {
        Some(client) => {
            let process = client.pid.map_or_else(String::new, |pid| format!(", process {pid},"));
            let problem =
                format!("its mount{process} is not connected to its lockd; look at its log on {}", node.node);
            plain("silent", None, problem)
        }
        None => plain("not mounted", None, String::new()),
    }
}

fn why_unreachable(document: &Document, node: &Node) -> String {
    let address = node.address.as_ref().map_or_else(String::new, |address| format!(" at {address}"));
    let heard = match node.last_contact_s {
        Some(_) => String::new(),
        None => format!(" (not heard of since lockd was started on {})", document.asked),
    };
    let sessions = document.state.as_ref().map_or(&[][..], |state| &state.sessions);
    let mine = || sessions.iter().filter(|session| session.node == node.node);
    let last_ended =
        mine().filter_map(|session| Some((session.session, session.ended.as_ref()?.ago_s))).next_back();
    let session = match last_ended {
        _ if mine().any(|session| session.ended.is_none()) => {
            "; its session lives still, so that its files stay its own".to_owned()
        }
        Some((session, ago_s)) => format!(
            "; its session {session} ended {ago_s:.0} s ago, and what it held is free when its fence is complete"
        ),
        // Ended and fenced, or never opened.
        None if document.state.is_some() => "; it has no session, and holds nothing".to_owned(),
        None => String::new(),
    };
    let why = node.trouble.as_deref().unwrap_or("no answer");
    format!(
        "lockd on {}{address} does not answer{heard}: {why}{session}; look whether the machine, its network and lockd run",
        node.node
    )
}
