//! The invariants of the state, looked at one by one.

use std::collections::{BTreeMap, BTreeSet};

use super::bounds::{
    BREAKS_MAX, CLIENTS_MAX, ESCROWS_MAX, LOCKS_MAX, NODES_MAX, RESOURCES_MAX, SESSIONS_MAX, VOLUMES_MAX,
};
use super::command::{ClientKind, HoldMode, Victim};
use super::query::{ClientState, SessionState};
use super::state::{NUMBER_MAX, State, suits, volume_of};
use crate::ids::{ClientId, ResourceId};
use crate::locks::{Grants, LockState};

type Verdict = Result<(), String>;

/// Says what is wrong unless `holds`.
fn ensure(holds: bool, what: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(what()) }
}

impl State {
    /// Looks at every invariant. It costs a walk through the whole state: for tests, and for what was read from disk.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        self.check_bounds()?;
        self.check_sessions()?;
        self.check_clients()?;
        self.check_resources()?;
        self.check_locks()?;
        self.check_fences()?;
        self.events.check()
    }

    fn check_bounds(&self) -> Verdict {
        let counts = [
            ("nodes", self.nodes.len(), NODES_MAX),
            ("sessions", self.sessions.len(), SESSIONS_MAX),
            ("clients", self.clients.len(), CLIENTS_MAX),
            ("volumes", self.volumes.len(), VOLUMES_MAX),
            ("resources", self.resources.len(), RESOURCES_MAX),
            ("locks", self.locks.len(), LOCKS_MAX),
            ("escrows", self.escrows.len(), ESCROWS_MAX),
            ("breaks", self.breaks.len(), BREAKS_MAX),
        ];
        for (what, count, limit) in counts {
            ensure(count <= limit, || format!("{count} {what}, at most {limit} may be"))?;
        }
        let last = [self.last_session.0, self.last_client.0, self.last_epoch.0];
        ensure(last.iter().all(|last| *last <= NUMBER_MAX), || format!("numbers beyond their end: {last:?}"))
    }

    fn check_sessions(&self) -> Verdict {
        for (node, record) in &self.nodes {
            ensure(record.session <= self.last_session, || format!("{node} names a session that never was"))?;
        }
        let occupied: BTreeSet<_> = self.clients.values().map(|client| client.session).collect();
        let fenced: BTreeSet<_> = self.fences.keys().map(|(_, victim)| *victim).collect();
        for (id, session) in &self.sessions {
            ensure(id.0 >= 1 && *id <= self.last_session, || format!("{id} was never given out"))?;
            match session.state {
                // Which also means: at most one live session of a node.
                SessionState::Live => {
                    let record = self.nodes.get(&session.node);
                    ensure(record.is_some_and(|record| record.session == *id), || {
                        format!("{id} lives and is not the session of its node {}", session.node)
                    })?;
                }
                SessionState::Ended { .. } => {
                    ensure(occupied.contains(id) || fenced.contains(&Victim::Session(*id)), || {
                        format!("{id} has ended, nothing is left of it, and it is remembered")
                    })?;
                }
            }
        }
        Ok(())
    }

    fn check_clients(&self) -> Verdict {
        let slots = self.slots.clients();
        let live: BTreeSet<ClientId> = self.clients.keys().copied().filter(|id| self.is_live(*id)).collect();
        ensure(slots == live, || format!("slots of {slots:?}, live clients {live:?}"))?;
        for (id, client) in &self.clients {
            ensure(id.0 >= 1 && *id <= self.last_client, || format!("{id} was never given out"))?;
            ensure(self.sessions.contains_key(&client.session), || format!("{id} has no session"))?;
            let session_lives = self.is_live_session(client.session);
            ensure(session_lives == (client.state != ClientState::Orphaned), || {
                format!("{id} is {:?}, its session {} lives: {session_lives}", client.state, client.session)
            })?;
            if let ClientKind::Csvfs { volume } = client.kind {
                ensure(self.volumes.contains_key(&volume), || format!("{id} mounts an unknown volume"))?;
                let victim = match client.state {
                    ClientState::Live => continue,
                    ClientState::Draining => Victim::Client(*id),
                    ClientState::Orphaned => Victim::Session(client.session),
                };
                ensure(self.fences.contains_key(&(volume, victim)), || {
                    format!("{id} has ended and {victim} is not being fenced from {volume}")
                })?;
            } else {
                ensure(client.state != ClientState::Draining, || format!("{id} has nothing to drain"))?;
            }
        }
        Ok(())
    }

    fn check_resources(&self) -> Verdict {
        let mut held: BTreeMap<ClientId, BTreeSet<&ResourceId>> = BTreeMap::new();
        for (resource, holdings) in &self.resources {
            ensure(!holdings.is_empty(), || format!("{resource} is held by nobody"))?;
            // Invariant 1.
            let alone =
                holdings.len() == 1 || holdings.iter().all(|holding| holding.mode == HoldMode::Shared);
            ensure(alone, || format!("{resource} is held by several, not all in shared mode: {holdings:?}"))?;
            ensure(holdings.is_sorted_by(|a, b| a.client < b.client), || {
                format!("the holdings of {resource} are not in order: {holdings:?}")
            })?;
            for holding in holdings {
                let kind = self.clients.get(&holding.client).map(|client| client.kind);
                ensure(kind.is_some_and(|kind| suits(kind, resource)), || {
                    format!("{resource} is held by {}, which is {kind:?}", holding.client)
                })?;
                ensure(holding.epoch.0 >= 1 && holding.epoch <= self.last_epoch, || {
                    format!("{resource} is held in {}, which was never given out", holding.epoch)
                })?;
                held.entry(holding.client).or_default().insert(resource);
            }
        }
        let index: BTreeMap<ClientId, BTreeSet<&ResourceId>> =
            self.held.iter().map(|(client, held)| (*client, held.iter().collect())).collect();
        ensure(held == index, || "the index of holders does not agree with the resources".to_owned())
    }

    fn check_locks(&self) -> Verdict {
        let mut tickets = BTreeMap::new();
        for listed in self.locks.list() {
            let (resource, client) = (&listed.key, listed.lock.owner.client);
            ensure(matches!(resource, ResourceId::File(..)), || {
                format!("{resource} is locked, which is no file")
            })?;
            let known = self.clients.get(&client);
            ensure(known.is_none_or(|client| suits(client.kind, resource)), || {
                format!("{client} has a lock on {resource}, which is not of its volume")
            })?;
            match listed.state {
                LockState::Held(grant) => {
                    let escrow = self.escrows.get(&(resource.clone(), client));
                    let kept = escrow.is_some_and(|escrow| grant <= escrow.through);
                    ensure(known.is_some() || kept, || {
                        format!("the lock of {client} on {resource} is neither a client's nor in escrow")
                    })?;
                }
                LockState::Waiting(ticket) => {
                    ensure(self.is_live(client), || format!("{ticket} of {client}, which is dead, waits"))?;
                    tickets.insert(ticket, client);
                }
            }
        }
        ensure(tickets == self.tickets, || "the index of tickets does not agree with the locks".to_owned())?;
        for ((resource, source), escrow) in &self.escrows {
            ensure(self.sessions.contains_key(&escrow.target), || {
                format!("locks of {resource} are kept for {}, which is forgotten", escrow.target)
            })?;
            ensure(escrow.through <= self.locks.last_grant(), || {
                format!("locks of {resource} are kept up to a grant that never was")
            })?;
            ensure(self.locks.count(resource, *source, Grants::Through(escrow.through)) > 0, || {
                format!("no locks of {resource} and {source} are left in escrow")
            })?;
            ensure(volume_of(resource).is_some_and(|volume| self.volumes.contains_key(&volume)), || {
                format!("locks of {resource} are in escrow, whose volume is unknown")
            })?;
        }
        Ok(())
    }

    fn check_fences(&self) -> Verdict {
        for ((volume, victim), fence) in &self.fences {
            ensure(self.volumes.contains_key(volume), || format!("{victim} is fenced from nowhere"))?;
            let ended = match victim {
                Victim::Session(id) => self.sessions.contains_key(id) && !self.is_live_session(*id),
                Victim::Client(id) => {
                    self.clients.get(id).is_some_and(|client| client.state == ClientState::Draining)
                }
            };
            ensure(ended, || format!("{victim} is being fenced from {volume} and is not dead"))?;
            for waiting in &fence.waiting {
                // Somebody will speak for it: itself, or who fences it.
                let own = self.fences.get(&(*volume, Victim::Session(*waiting)));
                let heard = self.is_live_session(*waiting) || own.is_some_and(|own| own.method.is_none());
                ensure(heard, || format!("the fence of {victim} from {volume} waits for {waiting} in vain"))?;
            }
        }
        Ok(())
    }
}
