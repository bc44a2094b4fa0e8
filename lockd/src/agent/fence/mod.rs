//! This node's part in fencing (F1, L9, L10).
//!
//! It tells its mounts whom to refuse and reports what they have drained; and where it is this node's turn, it has the
//! victim fenced by the volume's method (`method`) and reports that. Nothing is polled for: whoever has news (an event, a
//! mount's answer, an attempt that has ended) calls, and what is due by the clock is waited for. What was tried, and what
//! came of it, is in `attempts`.

mod attempts;
mod method;
mod seen;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) use attempts::Attempts;
use method::{Plan, Step};
use seen::Seen;

use super::core::Core;
use super::session::OpenSession;
use crate::ids::VolumeId;
use crate::local::message::{Failure, FromLockd};
use crate::machine::{Answer, Command, FenceInfo, Query, Refusal, Reply, Report, Victim};

/// How often the fences are looked at when nobody tells of one.
const LOOK: Duration = Duration::from_secs(10);
/// How often at least while there are some: a report may have been lost, or a node have ended.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long is waited after a question that nobody answered.
const RETRY: Duration = Duration::from_millis(250);
/// After how long a mount that has not answered is told again: a message to a client that does not read is lost.
const TELL_AGAIN: Duration = Duration::from_secs(5);
/// How long the cluster may take over a question.
const PATIENCE: Duration = Duration::from_secs(5);

/// When the mounts here were told of a fence.
type Told = BTreeMap<(VolumeId, Victim), Instant>;

/// Does this node's part, for ever.
pub(super) async fn run(core: Arc<Core>) {
    let mut told = Told::new();
    loop {
        let pause = match step(&core, &mut told).await {
            Ok(pause) => pause,
            Err(failure) => {
                tracing::debug!(%failure, "the fences cannot be looked at");
                RETRY
            }
        };
        // Whichever comes first.
        let _ = tokio::time::timeout(pause, core.fences.notified()).await;
    }
}

/// Looks at the fences and does what can be done. Returns when to look again, if nobody calls before.
async fn step(core: &Arc<Core>, told: &mut Told) -> Result<Duration, Failure> {
    let Some(open) = core.session_now() else { return Ok(LOOK_AGAIN) };
    let Answer::Fences(fences) = core.route.query(Query::Fences, Some(PATIENCE)).await? else {
        return Ok(LOOK);
    };
    let is_open = |key: &(VolumeId, Victim)| fences.iter().any(|fence| (fence.volume, fence.victim) == *key);
    core.attempts.retain(is_open);
    for (volume, victim) in told.extract_if(.., |key, _| !is_open(key)).map(|(key, _)| key) {
        for connection in core.connections.lock().values() {
            connection.forget_drained(volume, victim);
        }
    }
    if fences.is_empty() {
        return Ok(LOOK);
    }
    let seen = Seen::look(core, fences).await?;
    let mut pause = LOOK_AGAIN;
    // First what takes longest.
    for fence in seen.fences.iter().filter(|fence| fence.method.is_none()) {
        pause = pause.min(pursue(core, &open, &seen, fence).await?);
    }
    for fence in seen.fences.iter().filter(|fence| fence.waiting.contains(&open.session)) {
        if has_drained(core, fence, told) {
            report(core, &open, fence, Report::Drained).await?;
        }
    }
    Ok(pause)
}

/// Whether all mounts of the volume on this node refuse the victim and have drained what they carried for it.
fn has_drained(core: &Core, fence: &FenceInfo, told: &mut Told) -> bool {
    let (volume, victim) = (fence.volume, fence.victim);
    if core.clients.has_mute_mount(volume) {
        return false;
    }
    let mounts = core.clients.mounts_of(volume);
    let waiting: Vec<_> = mounts.iter().filter(|mount| !mount.has_drained(volume, victim)).collect();
    let last = told.get(&(volume, victim));
    if last.is_none_or(|last| last.elapsed() >= TELL_AGAIN) {
        for mount in &waiting {
            mount.push(&FromLockd::Fence { volume, victim });
        }
        told.insert((volume, victim), Instant::now());
    }
    waiting.is_empty()
}

/// Does what this node is to do so that the victim itself reaches the volume no more. Returns when to look again.
async fn pursue(
    core: &Arc<Core>,
    open: &OpenSession,
    seen: &Seen,
    fence: &FenceInfo,
) -> Result<Duration, Failure> {
    let key = (fence.volume, fence.victim);
    if let Some(method) = core.attempts.success(key) {
        // The report was lost.
        report(core, open, fence, Report::Fenced { method }).await?;
        return Ok(LOOK_AGAIN);
    }
    match method::plan(core, open, seen, fence) {
        Plan::Others => Ok(LOOK_AGAIN),
        Plan::In(time) => Ok(time),
        Plan::Waited(method) => {
            report(core, open, fence, Report::Fenced { method }).await?;
            Ok(LOOK_AGAIN)
        }
        Plan::Step(step) => {
            if core.attempts.begin(key, step.to_string()) {
                let (core, open, fence) = (Arc::clone(core), open.clone(), fence.clone());
                tokio::spawn(async move { attempt(&core, &open, &fence, step).await });
            }
            Ok(LOOK_AGAIN)
        }
    }
}

/// Takes a step on a thread that may wait, and reports what came of it.
async fn attempt(core: &Arc<Core>, open: &OpenSession, fence: &FenceInfo, step: Step) {
    let (key, method) = ((fence.volume, fence.victim), step.method());
    let FenceInfo { volume, victim, .. } = *fence;
    let done = tokio::task::spawn_blocking(move || step.take()).await;
    let done = done.unwrap_or_else(|error| Err(format!("the attempt broke off: {error}")));
    match &done {
        Ok(seen) => tracing::warn!(%volume, %victim, %method, seen, "fenced"),
        Err(why) => {
            tracing::error!(%volume, %victim, %method, why, "the fence has failed; it is tried again")
        }
    }
    core.attempts.ended(key, done.map(|_| method));
    if core.attempts.success(key).is_some()
        && let Err(failure) = report(core, open, fence, Report::Fenced { method }).await
    {
        core.say(&format!("{victim} is fenced, but that could not be reported yet: {failure}"));
    }
    core.fences.notify_one();
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
