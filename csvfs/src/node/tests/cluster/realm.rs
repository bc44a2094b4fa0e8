//! A control plane with several sessions that can end.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use lockd::authority::{Authority, AuthorityError, Handover, Holding, Mount, Standing};
use lockd::ids::{ClientId, Epoch, ResourceId, SessionId, VolumeId};
use lockd::lease::Lease;
use parking_lot::Mutex;

struct Also(Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Also {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Also")
    }
}

#[derive(Debug, Default)]
struct State {
    sessions: HashMap<SessionId, Standing>,
    clients: HashMap<ClientId, SessionId>,
    holdings: BTreeMap<ResourceId, Holding>,
    epoch: u64,
    session: u64,
    client: u64,
    refuses: bool,
    /// Releases get lost.
    loses_releases: bool,
    lost_releases: u64,
    /// Done with the next transfer, before who asked for it is told.
    with_transfer: Option<Also>,
    /// Transfers that were done.
    entries: u64,
}

/// What all sessions see.
#[derive(Debug, Default)]
pub struct Realm(Mutex<State>);

/// One session's view.
#[derive(Debug)]
pub struct Seat {
    realm: Arc<Realm>,
    session: SessionId,
    lease: Arc<Lease>,
}

impl Realm {
    pub fn sit(self: &Arc<Self>) -> Arc<Seat> {
        let mut state = self.0.lock();
        state.session += 1;
        let session = SessionId(state.session);
        state.sessions.insert(session, Standing::Live);
        Arc::new(Seat { realm: Arc::clone(self), session, lease: Arc::new(Lease::unlimited()) })
    }

    /// Transfers are refused from now on, or not.
    pub fn refuse(&self, refuses: bool) {
        self.0.lock().refuses = refuses;
    }

    /// Releases get lost from now on, or not.
    pub fn lose_releases(&self, loses: bool) {
        self.0.lock().loses_releases = loses;
    }

    /// How many were lost.
    pub fn lost_releases(&self) -> u64 {
        self.0.lock().lost_releases
    }

    /// Does `also` with the next transfer, before who asked for it is told.
    pub fn with_transfer(&self, also: impl FnOnce() + Send + 'static) {
        self.0.lock().with_transfer = Some(Also(Box::new(also)));
    }

    /// How many transfers were done.
    pub fn entries(&self) -> u64 {
        self.0.lock().entries
    }

    /// Where a session stands.
    pub fn standing(&self, session: SessionId) -> Standing {
        self.0.lock().sessions.get(&session).copied().unwrap_or(Standing::Fenced)
    }

    /// The session stands so from now on; what a fenced one held is free.
    pub fn set(&self, session: SessionId, standing: Standing) {
        let mut state = self.0.lock();
        state.sessions.insert(session, standing);
        if standing == Standing::Fenced {
            state.holdings.retain(|_, holding| holding.session != session);
        }
    }
}

impl Authority for Seat {
    fn session(&self) -> SessionId {
        self.session
    }
    fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }
    fn add_client(&self) -> Result<ClientId, AuthorityError> {
        let mut state = self.realm.0.lock();
        state.client += 1;
        let client = ClientId(state.client);
        state.clients.insert(client, self.session);
        Ok(client)
    }
    fn end_client(&self, client: ClientId) {
        let mut state = self.realm.0.lock();
        state.holdings.retain(|_, holding| holding.client != client);
        state.clients.remove(&client);
    }
    fn acquire(&self, resource: &ResourceId, client: ClientId) -> Result<Holding, AuthorityError> {
        let mut state = self.realm.0.lock();
        if state.sessions.get(&self.session) != Some(&Standing::Live) {
            return Err(AuthorityError::SessionEnded(self.session));
        }
        if let Some(holding) = state.holdings.get(resource).copied() {
            if holding.client == client {
                return Ok(holding);
            }
            return Err(AuthorityError::Held { resource: resource.clone(), holding });
        }
        state.epoch += 1;
        let holding = Holding { session: self.session, client, epoch: Epoch(state.epoch) };
        state.holdings.insert(resource.clone(), holding);
        Ok(holding)
    }
    fn release(&self, resource: &ResourceId, client: ClientId, epoch: Epoch) -> Result<(), AuthorityError> {
        let mut state = self.realm.0.lock();
        if state.loses_releases {
            state.lost_releases += 1;
            return Err(AuthorityError::Stale { resource: resource.clone(), epoch });
        }
        match state.holdings.get(resource).copied() {
            Some(holding) if holding.client == client && holding.epoch == epoch => {
                state.holdings.remove(resource);
                Ok(())
            }
            _ => Err(AuthorityError::Stale { resource: resource.clone(), epoch }),
        }
    }
    fn transfer(&self, handover: &Handover) -> Result<Epoch, AuthorityError> {
        let Handover { holdings, from: client, to, .. } = handover;
        let mut state = self.realm.0.lock();
        if state.refuses || state.sessions.get(&to.0) != Some(&Standing::Live) {
            return Err(AuthorityError::SessionEnded(to.0));
        }
        for (resource, epoch) in holdings {
            let held = state.holdings.get(resource);
            let is_right = match held {
                None => *epoch == Epoch::NOBODY,
                Some(held) => held.client == *client && held.epoch == *epoch,
            };
            if !is_right {
                return Err(AuthorityError::Stale { resource: resource.clone(), epoch: *epoch });
            }
        }
        state.epoch += 1;
        for (resource, _) in holdings {
            let holding = Holding { session: to.0, client: to.1, epoch: Epoch(state.epoch) };
            state.holdings.insert(resource.clone(), holding);
        }
        state.entries += 1;
        if let Some(Also(also)) = state.with_transfer.take() {
            also();
        }
        Ok(Epoch(state.epoch))
    }
    fn holder(&self, resource: &ResourceId) -> Option<Holding> {
        self.realm.0.lock().holdings.get(resource).copied()
    }
    fn mounts(&self, _volume: VolumeId) -> Option<Vec<Mount>> {
        let state = self.realm.0.lock();
        let standing = |session: &SessionId| state.sessions.get(session).copied();
        let mount = |(client, session): (&ClientId, &SessionId)| {
            let standing = standing(session).filter(|standing| *standing != Standing::Fenced)?;
            Some(Mount { session: *session, client: *client, is_live: standing == Standing::Live })
        };
        let mut mounts: Vec<Mount> = state.clients.iter().filter_map(mount).collect();
        mounts.sort_unstable_by_key(|mount| mount.client);
        Some(mounts)
    }
    fn owned(&self, _volume: VolumeId) -> Option<Vec<(u64, Holding)>> {
        let state = self.realm.0.lock();
        let owned = state.holdings.iter().filter_map(|(resource, holding)| match resource {
            ResourceId::File(_, ino) => Some((*ino, *holding)),
            _ => None,
        });
        Some(owned.collect())
    }
    fn standing(&self, session: SessionId) -> Standing {
        self.realm.0.lock().sessions.get(&session).copied().unwrap_or(Standing::Fenced)
    }
}
