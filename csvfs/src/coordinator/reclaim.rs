//! The reclaimer: what is freed becomes free (V7), in bounded steps, in the background.
//!
//! Blocks that a transaction freed are held back in it. Here, after its commit: those that no ghost can reach are
//! trimmed, and when the trims are done a later transaction makes them free. Those under a ghost go to quarantine (P6)
//! until the ghost is dead. Inodes that have neither name nor opener lose their extents step by step.

use std::ops::Range;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use lockd::clock::BootTime;
use lockd::rules::Rule;

use super::core::Core;
use super::queue::Internal;
use crate::refusal::Refusal;
use crate::store::record::HeldRecord;
use crate::types::{LunBlock, Run};

/// Held-back runs that one step looks at.
const RUNS_AT_ONCE: usize = 1024;
/// Trims in flight.
const TRIMS_AT_ONCE: usize = 16;
/// The time between two passes that nobody waits for.
const REST: Duration = Duration::from_millis(200);
/// The time between two looks at the ghosts over quarantined blocks.
const GHOST_LOOK: Duration = Duration::from_millis(500);

/// Runs passes until the coordinator stops.
pub fn serve(core: &Core) {
    while let Some(told) = wait(core) {
        if !step(core, told) {
            break;
        }
    }
    // Nobody is to wait for a pass that will not be.
    let mut call = core.call.lock();
    call.stop = true;
    call.told.clear();
}

/// Does a pass, tells `told` of it, and notes when the next one is due. Whether to go on.
fn step(core: &Core, told: Vec<Sender<Result<u64, Refusal>>>) -> bool {
    let result = pass(core);
    let (progress, again) = match &result {
        Ok(passed) if passed.unsettled => {
            let mut call = core.call.lock();
            call.told.extend(told);
            call.urgent |= !call.told.is_empty();
            call.due = due(core, passed.again);
            return true;
        }
        Ok(passed) => (passed.freed > 0, passed.again),
        Err(refusal) => {
            tracing::warn!(%refusal, "freed blocks stay held back");
            // What fails for good is not tried again.
            (false, core.failure().is_none().then_some(GHOST_LOOK))
        }
    };
    core.call.lock().due = due(core, again);
    let passed = core.run(Internal::Passed { progress });
    for sender in told {
        let _ = sender.send(result.as_ref().map(|passed| passed.freed).map_err(Clone::clone));
    }
    passed.is_ok()
}

fn due(core: &Core, again: Option<Duration>) -> Option<BootTime> {
    again.map(|again| core.parts.clock.boot().after(again))
}

/// A pass if one is wanted or due, for those who start the coordinator without its threads.
#[cfg(test)]
pub fn round(core: &Core) {
    let told = {
        let mut call = core.call.lock();
        let is_due = call.due.is_some_and(|due| due <= core.parts.clock.boot());
        if !is_due && !call.wanted {
            return;
        }
        call.wanted = false;
        std::mem::take(&mut call.told)
    };
    step(core, told);
}

/// Waits until a pass is wanted or due. Returns who wants to hear of it, or nothing when the coordinator stops.
fn wait(core: &Core) -> Option<Vec<Sender<Result<u64, Refusal>>>> {
    let mut call = core.call.lock();
    while !call.wanted && !call.stop {
        match call.due.map(|due| due.since(core.parts.clock.boot())) {
            Some(left) if left.is_zero() => break,
            Some(left) => drop(core.called.wait_for(&mut call, left)),
            None => core.called.wait(&mut call),
        }
    }
    // Frees come in series; a pass for each would double the commits.
    if !call.urgent && !call.stop {
        core.called.wait_for(&mut call, REST);
    }
    if call.stop {
        return None;
    }
    (call.wanted, call.urgent) = (false, false);
    Some(std::mem::take(&mut call.told))
}

/// What a pass did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Passed {
    /// Blocks made free.
    freed: u64,
    /// Blocks are held back that are to be looked at again after that.
    again: Option<Duration>,
    /// Writes of earlier incarnations may land: nothing of what is held back was looked at.
    unsettled: bool,
}

/// One pass over all that is to be reclaimed.
fn pass(core: &Core) -> Result<Passed, Refusal> {
    let mut next = Some(0);
    while let Some(from) = next {
        next = core.run(Internal::Reclaim(from))?;
    }
    let mut passed = Passed::default();
    let since = core.parts.clock.boot().since(core.started);
    if let Some(left) = core.parts.settle.checked_sub(since).filter(|left| !left.is_zero()) {
        let counters = snapshot(core)?.counters;
        passed.unsettled = counters.pending.get() > 0;
        passed.again = (passed.unsettled || counters.quarantined.get() > 0).then_some(left);
        return Ok(passed);
    }
    loop {
        let runs = held(core, false)?;
        if runs.is_empty() {
            break;
        }
        let (free, ghosts) = trimmed(core, &runs)?;
        passed.freed += free.iter().map(|run| run.len).sum::<u64>();
        core.run(Internal::Release { free, ghosts })?;
    }
    let quarantined = held(core, true)?;
    let (count, now) = (quarantined.len(), core.parts.clock.boot());
    let runs = core.quarantine.lock().over(quarantined, (core.started, now), core.parts.quiesce);
    let mut is_left = runs.len() < count;
    if !runs.is_empty() {
        let (free, ghosts) = trimmed(core, &runs)?;
        is_left |= !ghosts.is_empty();
        passed.freed += free.iter().map(|run| run.len).sum::<u64>();
        if !free.is_empty() {
            core.run(Internal::ReleaseQuarantine(free))?;
        }
    }
    passed.again = is_left.then_some(GHOST_LOOK);
    Ok(passed)
}

fn broken(error: &crate::store::StoreError) -> Refusal {
    Refusal::Io(error.to_string())
}

fn snapshot(core: &Core) -> Result<std::sync::Arc<crate::store::Snapshot>, Refusal> {
    core.snapshot().map_err(|error| broken(&error))
}

/// Runs that are held back: pending, or in quarantine and reached by no ghost now.
fn held(core: &Core, quarantine: bool) -> Result<Vec<Run>, Refusal> {
    let snapshot = snapshot(core)?;
    let table = if quarantine { &snapshot.quarantine } else { &snapshot.pending };
    let mut runs = Vec::new();
    let rows = table.range::<u64>(..).map_err(|error| broken(&error.into()))?;
    for row in rows {
        let (start, record) = row.map_err(|error| broken(&error.into()))?;
        let record: HeldRecord = record.value();
        runs.push(Run { start: LunBlock(start.value()), len: record.len.get() });
        if runs.len() == RUNS_AT_ONCE && !quarantine {
            break;
        }
    }
    Ok(runs)
}

/// P6: what a write, trim or zero of unknown outcome may still change.
fn ghosts(core: &Core) -> Vec<Range<u64>> {
    if core.parts.rules.keeps(Rule::P6) { core.parts.lun.ghosts() } else { Vec::new() }
}

fn is_haunted(run: &Run, ghosts: &[Range<u64>]) -> bool {
    let bytes = run.bytes();
    ghosts.iter().any(|ghost| ghost.start < bytes.end && bytes.start < ghost.end)
}

/// Trims the runs that no ghost reaches and waits for it. Returns those, and the others. None of a trim that was sent stays
/// under way, also when there is an error.
fn trimmed(core: &Core, runs: &[Run]) -> Result<(Vec<Run>, Vec<Run>), Refusal> {
    let before = ghosts(core);
    let (mut under, clear): (Vec<Run>, Vec<Run>) = runs.iter().partition(|run| is_haunted(run, &before));
    if !core.parts.discard || !core.parts.lun.geometry().trim {
        return Ok((clear, under));
    }
    let mut lost = Vec::new();
    let joined = join(&clear);
    let (sender, receiver) = mpsc::channel();
    let mut in_flight = 0;
    let mut waiting = joined.into_iter();
    let mut has_lease = true;
    loop {
        while in_flight < TRIMS_AT_ONCE {
            // L3: who stood still may have been replaced, and the blocks may be another's by now.
            has_lease &= core.parts.authority.lease().admits(core.parts.rules, &*core.parts.clock);
            let Some(run) = waiting.next().filter(|_| has_lease) else { break };
            let sender = sender.clone();
            let done = Box::new(move |outcome| {
                let _ = sender.send((run, outcome));
            });
            core.parts.lun.trim(run.bytes(), done);
            in_flight += 1;
        }
        if in_flight == 0 {
            break;
        }
        let Some((run, outcome)) = core.receive(&receiver) else { break };
        in_flight -= 1;
        // A refused trim has not been and will not be executed: the blocks may be used. One of unknown outcome is a
        // ghost now.
        if outcome == redirector::lun::Outcome::Unknown {
            lost.push(run);
        }
    }
    if !has_lease {
        return Err(Refusal::Io("the lease of this node has run out: nothing is trimmed".to_owned()));
    }
    // Also of a trim that was lost on its way, sent again and then done an earlier copy may still land.
    let after = ghosts(core);
    let (more, clear): (Vec<Run>, Vec<Run>) =
        clear.iter().partition(|run| is_haunted(run, &after) || lost.iter().any(|lost| lost.overlaps(**run)));
    under.extend(more);
    Ok((clear, under))
}

/// Neighbouring runs as one.
fn join(runs: &[Run]) -> Vec<Run> {
    let mut joined: Vec<Run> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if last.end() == run.start => last.len += run.len,
            _ => joined.push(*run),
        }
    }
    joined
}
