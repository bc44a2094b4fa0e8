//! F2: what this host has run under earlier sessions. A mount of a new session registers with a target that refuses
//! incarnations only when the old ones are dead and drained: otherwise the target would serve, side by side and for the
//! same host, who may write and who may not any more.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::core::Core;
use super::nonce::incarnation_of;
use crate::ids::{SessionId, VolumeId};
use crate::local::message::Failure;
use crate::local::process::{Incarnation, Process};
use crate::machine::{Answer, ClientInfo, ClientKind, FenceMethod, Query, SessionState, Victim};
use crate::rules::Rule;

/// How long a process that is being ended may take.
const ENDING: Duration = Duration::from_secs(5);
/// How often is looked whether nothing of an earlier session is left.
const LOOK: Duration = Duration::from_millis(50);

/// The mounts of earlier sessions whose processes may still run.
#[derive(Debug, Default)]
pub(super) struct Former(Mutex<Vec<(VolumeId, Incarnation)>>);

impl Former {
    /// The session of these mounts has ended.
    pub(super) fn add(&self, mounts: impl IntoIterator<Item = (VolumeId, Incarnation)>) {
        let mut all = self.0.lock();
        all.extend(mounts);
        all.sort_unstable();
        all.dedup();
    }

    /// A process that still runs and had mounted `volume` under an earlier session.
    fn alive(&self, volume: VolumeId) -> Option<Incarnation> {
        let mut all = self.0.lock();
        // Without proof it lives.
        all.retain(|(_, process)| !matches!(Process::open(*process), Ok(None)));
        all.iter().find(|(of, _)| *of == volume).map(|(_, process)| *process)
    }
}

/// Those of `clients` that are mounts of this host's ended sessions, and were started since the host was.
pub(super) fn mounts_among<'a>(
    core: &'a Core,
    clients: &'a [ClientInfo],
    session: SessionId,
) -> impl Iterator<Item = (VolumeId, Incarnation)> + 'a {
    let former = clients.iter().filter(move |info| info.node == core.node && info.session != session);
    former.filter_map(|info| match info.kind {
        ClientKind::Csvfs { volume } => Some((volume, incarnation_of(info.nonce, core.boot)?)),
        ClientKind::Vmhost | ClientKind::Tool => None,
    })
}

/// Waits until nothing is left of what this host's earlier sessions have run on `volume`.
pub(super) async fn wait_until_over(
    core: &Core,
    volume: VolumeId,
    patience: Option<Duration>,
) -> Result<(), Failure> {
    if !core.rules.keeps(Rule::F2) || !is_refused_by_target(core, volume, patience).await? {
        return Ok(());
    }
    let began = Instant::now();
    let mut said = false;
    loop {
        let alive = core.clients.former.alive(volume);
        if let Some(process) = alive.filter(|_| began.elapsed() >= ENDING) {
            return Err(Failure::Refused(format!(
                "{process} has had the volume mounted under an earlier session of this node, which has ended, and still \
                 runs: unmount its folder or end it, then mount again"
            )));
        }
        if alive.is_none() && !is_being_fenced(core, volume, patience).await? {
            return Ok(());
        }
        if patience.is_some_and(|patience| began.elapsed() >= patience) {
            let why = "an earlier session of this node is still being fenced from the volume: `lockctl fences` says what \
                       is waited for";
            return Err(Failure::Refused(why.to_owned()));
        }
        if !std::mem::replace(&mut said, true) {
            tracing::warn!(%volume, "a mount waits until an earlier session of this node is dead and fenced (F2)");
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn is_refused_by_target(
    core: &Core,
    volume: VolumeId,
    patience: Option<Duration>,
) -> Result<bool, Failure> {
    let Answer::Volumes(volumes) = core.route.query(Query::Volumes, patience).await? else {
        return Ok(false);
    };
    let mut registered = volumes.iter().filter(|info| info.volume == volume);
    Ok(registered.any(|info| matches!(info.fence, FenceMethod::NbdTarget | FenceMethod::ScsiPr)))
}

async fn is_being_fenced(core: &Core, volume: VolumeId, patience: Option<Duration>) -> Result<bool, Failure> {
    let Answer::Fences(fences) = core.route.query(Query::Fences, patience).await? else { return Ok(true) };
    if fences.is_empty() {
        return Ok(false);
    }
    let Answer::Sessions(sessions) = core.route.query(Query::Sessions, patience).await? else {
        return Ok(true);
    };
    let former = |session| {
        let mut of_this = sessions.iter().filter(|info| info.node == core.node);
        of_this.any(|info| info.session == session && info.state != SessionState::Live)
    };
    Ok(fences.iter().any(|fence| match fence.victim {
        Victim::Session(session) => fence.volume == volume && former(session),
        Victim::Client(_) => false,
    }))
}
