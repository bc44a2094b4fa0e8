//! The control plane of a mount without a cluster: it answers every question by itself.
//!
//! There is one session, whose id is the superblock epoch that the mount has claimed, and all clients are of this
//! process. Nothing is kept on disk (L11): with the process all of it ends, and the next mount has a higher epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::authority::{Authority, AuthorityError, Holding};
use crate::ids::{ClientId, Epoch, ResourceId, SessionId};
use crate::lease::Lease;
use crate::locks::FileLocks;

#[cfg(test)]
mod tests;

/// How many clients may live at once.
pub const CLIENTS_MAX: usize = 4096;

/// How many resources may be held at once.
pub const HOLDINGS_MAX: usize = 1 << 20;

/// The authority of one process for itself.
#[derive(Debug)]
pub struct Standalone {
    session: SessionId,
    /// Extended by whoever beats the volume's claim.
    lease: Arc<Lease>,
    locks: Arc<FileLocks>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ended: bool,
    next_client: ClientId,
    /// One count for all resources: so each resource's epochs rise, and nothing is kept of those that nobody holds.
    next_epoch: Epoch,
    clients: BTreeSet<ClientId>,
    holdings: BTreeMap<ResourceId, Holding>,
}

impl Standalone {
    /// An authority whose clients are numbered from `first_client`, and whose epochs start at `first_epoch`; neither
    /// may have been used before on the volume.
    #[must_use]
    pub fn new(session: SessionId, lease: Arc<Lease>, first_client: ClientId, first_epoch: Epoch) -> Self {
        let state = State {
            ended: false,
            next_client: first_client,
            next_epoch: first_epoch,
            clients: BTreeSet::new(),
            holdings: BTreeMap::new(),
        };
        Self { session, lease, locks: Arc::default(), state: Mutex::new(state) }
    }

    /// The file locks of the session's clients; those of a client go when it ends.
    #[must_use]
    pub fn locks(&self) -> &Arc<FileLocks> {
        &self.locks
    }

    /// Ends the session for good: its lease is over, nothing is held under it, and whatever is asked is refused. For a
    /// mount that has lost its volume to another, and for the last step of an unmount.
    pub fn end_session(&self) {
        self.lease.end();
        let clients = {
            let mut state = self.state.lock();
            state.ended = true;
            state.holdings.clear();
            std::mem::take(&mut state.clients)
        };
        for client in clients {
            self.locks.end_client(client);
        }
    }

    /// Everything that is held, and by whom.
    #[must_use]
    pub fn holdings(&self) -> Vec<(ResourceId, Holding)> {
        self.state.lock().holdings.iter().map(|(resource, holding)| (resource.clone(), *holding)).collect()
    }

    fn check_session(&self, state: &State) -> Result<(), AuthorityError> {
        if state.ended { Err(AuthorityError::SessionEnded(self.session)) } else { Ok(()) }
    }
}

impl Authority for Standalone {
    fn session(&self) -> SessionId {
        self.session
    }

    fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    fn add_client(&self) -> Result<ClientId, AuthorityError> {
        let mut state = self.state.lock();
        self.check_session(&state)?;
        if state.clients.len() >= CLIENTS_MAX {
            return Err(AuthorityError::Full { what: "clients", limit: CLIENTS_MAX });
        }
        let client = state.next_client;
        state.next_client = ClientId(client.0 + 1);
        state.clients.insert(client);
        Ok(client)
    }

    fn end_client(&self, client: ClientId) {
        {
            let mut state = self.state.lock();
            state.clients.remove(&client);
            state.holdings.retain(|_, holding| holding.client != client);
        }
        self.locks.end_client(client);
    }

    fn acquire(&self, resource: &ResourceId, client: ClientId) -> Result<Holding, AuthorityError> {
        let mut state = self.state.lock();
        self.check_session(&state)?;
        if !state.clients.contains(&client) {
            return Err(AuthorityError::ClientEnded(client));
        }
        if let Some(holding) = state.holdings.get(resource).copied() {
            if holding.client == client {
                return Ok(holding);
            }
            return Err(AuthorityError::Held { resource: resource.clone(), holding });
        }
        if state.holdings.len() >= HOLDINGS_MAX {
            return Err(AuthorityError::Full { what: "held resources", limit: HOLDINGS_MAX });
        }
        let holding = Holding { session: self.session, client, epoch: state.next_epoch };
        state.next_epoch = Epoch(holding.epoch.0 + 1);
        let other = state.holdings.insert(resource.clone(), holding);
        // Invariant 1.
        assert!(other.is_none(), "{resource} has two holders: {other:?} and {holding:?}");
        Ok(holding)
    }

    fn release(&self, resource: &ResourceId, client: ClientId, epoch: Epoch) -> Result<(), AuthorityError> {
        let mut state = self.state.lock();
        self.check_session(&state)?;
        match state.holdings.get(resource).copied() {
            Some(holding) if holding.client != client => {
                Err(AuthorityError::Held { resource: resource.clone(), holding })
            }
            Some(holding) if holding.epoch == epoch => {
                state.holdings.remove(resource);
                Ok(())
            }
            _ => Err(AuthorityError::Stale { resource: resource.clone(), epoch }),
        }
    }

    fn holder(&self, resource: &ResourceId) -> Option<Holding> {
        self.state.lock().holdings.get(resource).copied()
    }
}
