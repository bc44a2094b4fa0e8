//! The beginning of a coordinator that follows another one.
//!
//! What the last one had in memory it knows from the nodes: who has what open, who serves which file in which term. And what
//! nodes were leased by the last one it cannot call back: it serves nobody before each of them has dropped that, which it
//! does when it attaches, or is over (V9). Whoever the control plane lists when the coordinator begins may be such a node.
//! When all have come, the control plane is asked who owns which file: from then on no node gives a file away for the last
//! coordinator.
//!
//! Of a mount that is dead and not fenced yet nobody knows what it had open: as long as there is one, nothing without a name
//! is reclaimed (V10), and what it owns stays its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lockd::authority::{Mount, Standing};
use lockd::ids::{ClientId, SessionId};
use lockd::rules::Rule;
use parking_lot::Mutex;

use super::core::Core;
use super::memory::Finish;
use super::opens::Owner;
use super::queue::Internal;
use crate::proto::{Answer, Declared, Kept};
use crate::refusal::Refusal;
use crate::store::StoreError;
use crate::store::record::ENDED;
use crate::types::Ino;

#[derive(Default)]
struct State {
    is_settled: bool,
    /// The mounts that were there when it began, or when it was last looked.
    mounts: Vec<Mount>,
    /// Who has not attached yet, and lives.
    awaited: BTreeSet<ClientId>,
    /// Who has not attached, and may have something open, or requests under way.
    undeclared: BTreeSet<ClientId>,
    /// What clients have told in the first parts of their attachments.
    parts: BTreeMap<ClientId, (Vec<Declared>, Vec<Kept>)>,
    /// What the last coordinator's node hands on.
    kept: Vec<Kept>,
    /// Who has attached, and is answered when all have.
    waiting: Vec<Finish>,
}

/// See the module.
#[derive(Default)]
pub struct Assembly(Mutex<State>);

impl Assembly {
    /// Whether everybody may be served.
    pub fn is_settled(&self) -> bool {
        self.0.lock().is_settled
    }

    /// Whether `client` is waited for, or has left something that is not given away.
    pub fn knows(&self, client: ClientId) -> bool {
        self.0.lock().undeclared.contains(&client)
    }

    /// A part of what a client tells. All of it, if that was the last.
    pub fn gather(
        &self,
        client: ClientId,
        (first, last): (bool, bool),
        open: Vec<Declared>,
        kept: Vec<Kept>,
    ) -> Option<(Vec<Declared>, Vec<Kept>)> {
        let mut state = self.0.lock();
        if first {
            state.parts.remove(&client);
        }
        let parts = state.parts.entry(client).or_default();
        parts.0.extend(open);
        parts.1.extend(kept);
        if last { state.parts.remove(&client) } else { None }
    }
}

/// Begins: these mounts may know something of an earlier coordinator.
pub fn begin(core: &Core, mounts: &[Mount]) {
    let mut state = core.assembly.0.lock();
    state.undeclared = mounts.iter().map(|mount| mount.client).collect();
    if core.parts.rules.keeps(Rule::V9) {
        state.awaited = mounts.iter().filter(|mount| mount.is_live).map(|mount| mount.client).collect();
    }
    state.is_settled = mounts.is_empty();
    state.mounts = mounts.to_vec();
    let holds_back = !state.undeclared.is_empty() && core.parts.rules.keeps(Rule::V10);
    core.opens.lock().hold_back(holds_back);
}

/// A client has attached, and holds this open. It is answered by `finish`, which is given back if that can be now.
pub fn attached(
    core: &Core,
    (session, client): (SessionId, ClientId),
    open: &[Declared],
    kept: Vec<Kept>,
    finish: Finish,
) -> Option<Finish> {
    let mut state = core.assembly.0.lock();
    state.awaited.remove(&client);
    let was_undeclared = state.undeclared.remove(&client);
    if was_undeclared && state.undeclared.is_empty() {
        core.opens.lock().hold_back(false);
        core.call_reclaimer(false);
    }
    if state.is_settled {
        return Some(finish);
    }
    let mut opens = core.opens.lock();
    for Declared { ino, served, .. } in open {
        if let Some(served) = served {
            let owner = Owner { session, client, epoch: served.epoch };
            opens.claim(*ino, owner, served.tenure, served.since);
        }
    }
    state.kept.extend(kept);
    state.waiting.push(finish);
    None
}

/// Looks who is over of those that have not attached, and whether everybody may be served. May wait for the control plane.
pub fn look(core: &Core) {
    // Everybody has come: nobody is asked who is over.
    if !settle_if_all_have_come(core) {
        let is_over = {
            let state = core.assembly.0.lock();
            state.is_settled && state.undeclared.is_empty()
        };
        if is_over {
            return;
        }
        let Some(mounts) = core.parts.authority.mounts(core.parts.volume) else { return };
        for client in over(core, mounts) {
            end(core, client);
        }
        settle_if_all_have_come(core);
    }
}

fn settle_if_all_have_come(core: &Core) -> bool {
    let mounts = {
        let state = core.assembly.0.lock();
        (!state.is_settled && state.awaited.is_empty()).then(|| state.mounts.clone())
    };
    if let Some(mounts) = &mounts {
        settle(core, mounts);
    }
    mounts.is_some()
}

/// Those of the undeclared of whom nothing can come any more.
fn over(core: &Core, mounts: Vec<Mount>) -> Vec<ClientId> {
    let mut state = core.assembly.0.lock();
    state.mounts.clone_from(&mounts);
    let lives = |client: &ClientId| mounts.iter().any(|mount| mount.client == *client && mount.is_live);
    state.awaited.retain(lives);
    let is_listed = |client: &&ClientId| mounts.iter().any(|mount| mount.client == **client);
    state.undeclared.iter().filter(|client| !is_listed(client)).copied().collect()
}

fn end(core: &Core, client: ClientId) {
    if let Err(refusal) = core.run(Internal::EndClient(client)) {
        tracing::warn!(%client, %refusal, "a client that is over could not be ended");
        return;
    }
    let is_last = {
        let mut state = core.assembly.0.lock();
        state.undeclared.remove(&client);
        state.undeclared.is_empty()
    };
    if is_last {
        core.opens.lock().hold_back(false);
    }
    core.call_reclaimer(false);
}

/// Clients that the store knows, under sessions that live, and the control plane does not: they were over before this
/// coordinator began.
fn forgotten(core: &Core, mounts: &[Mount]) -> Result<Vec<ClientId>, StoreError> {
    let mut forgotten = Vec::new();
    for row in core.snapshot()?.clients.range::<u64>(..)? {
        let (client, record) = row?;
        let (client, record) = (ClientId(client.value()), record.value());
        let is_live = || core.parts.authority.standing(SessionId(record.session.get())) == Standing::Live;
        let is_listed = mounts.iter().any(|mount| mount.client == client);
        if record.flags.get() & ENDED == 0 && !is_listed && is_live() {
            forgotten.push(client);
        }
    }
    Ok(forgotten)
}

/// Inodes without a name: those that are open are reclaimed when they are closed.
fn orphans(core: &Core) -> Result<Vec<Ino>, StoreError> {
    let mut orphans = Vec::new();
    for row in core.snapshot()?.orphans.range::<u64>(..)? {
        orphans.push(Ino(row?.0.value()));
    }
    Ok(orphans)
}

/// Everybody who lives has attached.
fn settle(core: &Core, mounts: &[Mount]) {
    // An authority of one session lists none.
    if !mounts.is_empty() {
        match forgotten(core, mounts) {
            Ok(forgotten) => forgotten.into_iter().for_each(|client| end(core, client)),
            Err(error) => tracing::warn!(%error, "the clients of the last coordinator could not be read"),
        }
    }
    let orphans = match orphans(core) {
        Ok(orphans) => orphans,
        Err(error) => {
            tracing::warn!(%error, "the inodes without a name could not be read");
            Vec::new()
        }
    };
    let Some(owned) = core.parts.authority.owned(core.parts.volume) else { return };
    let owned = owned.into_iter().map(|(ino, holding)| {
        (Ino(ino), Owner { session: holding.session, client: holding.client, epoch: holding.epoch })
    });
    let waiting = {
        let mut state = core.assembly.0.lock();
        let lives = |client: ClientId| mounts.iter().any(|mount| mount.client == client && mount.is_live);
        let kept = std::mem::take(&mut state.kept);
        let mut opens = core.opens.lock();
        opens.settle(owned.collect(), lives, kept);
        opens.without_name(&orphans);
        drop(opens);
        state.is_settled = true;
        std::mem::take(&mut state.waiting)
    };
    tracing::debug!(clients = waiting.len(), "the coordinator serves");
    waiting.into_iter().for_each(|finish| finish.reply(Ok(Answer::Done)));
}

/// Refuses to serve before everybody may be served.
pub fn check(core: &Arc<Core>) -> Result<(), Refusal> {
    if core.assembly.is_settled() {
        return Ok(());
    }
    Err(Refusal::NotCoordinator("it has just taken over, and waits for the other nodes".to_owned()))
}
