//! This node's part in fencing (F1, L9, L10): it reports what its mounts have drained, and when waiting was enough.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::session::OpenSession;
use crate::ids::{SessionId, VolumeId};
use crate::local::message::{Failure, FromLockd};
use crate::machine::{
    Answer, ClientInfo, Command, FenceInfo, FenceMethod, Query, Refusal, Reply, Report, SessionInfo,
    SessionState, Victim, VolumeInfo,
};

/// How often the fences are looked at when nobody tells of one.
const LOOK: Duration = Duration::from_secs(10);
/// How often they are looked at while there are some.
const STEP: Duration = Duration::from_millis(250);
/// How long the cluster may take over a question.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a target may execute what has reached it, for a volume that the cluster file does not name (P5).
const QUIESCE: Duration = Duration::from_secs(10);

/// What the state says about fences.
struct Seen {
    time_ns: u64,
    fences: Vec<FenceInfo>,
    volumes: BTreeMap<VolumeId, VolumeInfo>,
    sessions: BTreeMap<SessionId, SessionInfo>,
    clients: Vec<ClientInfo>,
}

/// Does this node's part, for ever.
pub(super) async fn run(core: Arc<Core>) {
    let mut told = BTreeMap::new();
    loop {
        // Whichever comes first.
        let _ = tokio::time::timeout(LOOK, core.fences.notified()).await;
        while let Ok(true) = step(&core, &mut told).await {
            tokio::time::sleep(STEP).await;
        }
    }
}

/// Looks at the fences and does what can be done. False if there are none.
async fn step(core: &Core, told: &mut BTreeMap<(VolumeId, Victim), u32>) -> Result<bool, Failure> {
    let Some(open) = core.session_now() else { return Ok(false) };
    let Answer::Fences(fences) = core.route.query(Query::Fences, Some(PATIENCE)).await? else {
        return Ok(false);
    };
    let known: Vec<_> = told.keys().copied().collect();
    for (volume, victim) in known {
        if !fences.iter().any(|fence| (fence.volume, fence.victim) == (volume, victim)) {
            told.remove(&(volume, victim));
            for connection in core.connections.lock().values() {
                connection.forget_drained(volume, victim);
            }
        }
    }
    if fences.is_empty() {
        return Ok(false);
    }
    let seen = look(core, fences).await?;
    for fence in &seen.fences {
        let key = (fence.volume, fence.victim);
        if fence.waiting.contains(&open.session) && has_drained(core, fence, told.entry(key).or_default()) {
            report(core, &open, fence, Report::Drained).await?;
        }
        if fence.method.is_none()
            && let Some(method) = waited_enough(core, &open, &seen, fence)
        {
            report(core, &open, fence, Report::Fenced { method }).await?;
        }
    }
    Ok(true)
}

async fn look(core: &Core, fences: Vec<FenceInfo>) -> Result<Seen, Failure> {
    let mut seen =
        Seen { time_ns: 0, fences, volumes: BTreeMap::new(), sessions: BTreeMap::new(), clients: Vec::new() };
    for query in [Query::Volumes, Query::Sessions, Query::Clients, Query::Status] {
        match core.route.query(query, Some(PATIENCE)).await? {
            Answer::Volumes(volumes) => {
                seen.volumes = volumes.into_iter().map(|info| (info.volume, info)).collect();
            }
            Answer::Sessions(sessions) => {
                seen.sessions = sessions.into_iter().map(|info| (info.session, info)).collect();
            }
            Answer::Clients(clients) => seen.clients = clients,
            Answer::Status { time_ns, .. } => seen.time_ns = time_ns,
            _ => {}
        }
    }
    // The time of the last entry stands still while nothing happens.
    if let Some(seat) = core.route.seat.get() {
        seen.time_ns = seen.time_ns.max(seat.voter.raft.now_ns());
    }
    Ok(seen)
}

/// Whether all mounts of the volume on this node refuse the victim and have drained what they carried for it.
fn has_drained(core: &Core, fence: &FenceInfo, told: &mut u32) -> bool {
    let (volume, victim) = (fence.volume, fence.victim);
    if core.clients.has_mute_mount(volume) {
        return false;
    }
    let mounts = core.clients.mounts_of(volume);
    let waiting: Vec<_> = mounts.iter().filter(|mount| !mount.has_drained(volume, victim)).collect();
    // Again now and then: a message to a client that does not read is lost.
    if told.is_multiple_of(20) {
        for mount in &waiting {
            mount.push(&FromLockd::Fence { volume, victim });
        }
    }
    *told += 1;
    waiting.is_empty()
}

/// The method that waiting alone makes true by now, if it is this node that says so.
fn waited_enough(core: &Core, open: &OpenSession, seen: &Seen, fence: &FenceInfo) -> Option<FenceMethod> {
    let volume = seen.volumes.get(&fence.volume)?;
    match fence.victim {
        // `fence = "lease"`: lease and grace are over, by the cluster's own count. The lowest live session says so, which
        // may be on a witness.
        Victim::Session(victim) => {
            let is_live = |info: &&SessionInfo| info.state == SessionState::Live;
            let first = seen.sessions.values().find(is_live)?.session;
            let SessionState::Ended { lease_over_ns, .. } = seen.sessions.get(&victim)?.state else {
                return None;
            };
            let due = volume.fence == FenceMethod::Lease && first == open.session;
            // The time of this node may lag behind the leader's: a report that is too early is refused, and repeated.
            (due && seen.time_ns >= lease_over_ns).then_some(FenceMethod::Lease)
        }
        // L10: the target may still execute what the dead process had sent. Its own node waits for that.
        Victim::Client(victim) => {
            let info = seen.clients.iter().find(|info| info.client == victim)?;
            let (_, in_file) = core.cluster.volume(&volume.name).unzip();
            let quiesce = in_file.map_or(QUIESCE, |volume| volume.target_quiesce);
            let quiesce_ns = u64::try_from(quiesce.as_nanos()).unwrap_or(u64::MAX);
            let over = seen.time_ns >= fence.since_ns.saturating_add(quiesce_ns);
            (over && info.session == open.session).then_some(FenceMethod::Quiesce)
        }
    }
}

async fn report(core: &Core, open: &OpenSession, fence: &FenceInfo, report: Report) -> Result<(), Failure> {
    let FenceInfo { volume, victim, .. } = *fence;
    let command = Command::FenceReport { volume, victim, reporter: open.session, report };
    match core.route.propose(&command, Some(PATIENCE)).await? {
        Reply::Refused(Refusal::NoFence { .. } | Refusal::TooEarly { .. }) => {}
        Reply::Refused(refusal) => core.say(&format!("a fence report was refused: {refusal}")),
        _ => tracing::info!(%volume, %victim, ?report, "reported about a fence"),
    }
    Ok(())
}
