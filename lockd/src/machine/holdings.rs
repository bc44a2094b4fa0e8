//! Who holds which resource: acquire and release.

use super::bounds::{Bound, RESOURCES_MAX};
use super::command::HoldMode;
use super::event::{Audience, EventKind};
use super::reply::{Refusal, Reply};
use super::sessions::check_name;
use super::state::{Holding, Outcome, State};
use crate::ids::{ClientId, Epoch, ResourceId};

impl State {
    pub(super) fn acquire(
        &mut self,
        client: ClientId,
        resource: &ResourceId,
        mode: HoldMode,
        pinned: bool,
    ) -> Outcome {
        self.check_kind(client, resource)?;
        if let ResourceId::Vm(name) = resource {
            check_name(name)?;
        }
        let holdings = self.resources.get(resource).map(Vec::as_slice).unwrap_or_default();
        let mine = holdings.iter().find(|holding| holding.client == client).copied();
        let other = holdings.iter().find(|holding| holding.client != client);
        if let Some(other) = other
            && (mode == HoldMode::Exclusive || other.mode == HoldMode::Exclusive)
        {
            let holder = self.show(other);
            return Err(Refusal::Held { resource: resource.clone(), holder });
        }
        if holdings.is_empty() && self.resources.len() >= RESOURCES_MAX {
            return Err(Refusal::Full(Bound::Resources));
        }
        let holding = match mine {
            Some(mine) if mine.mode == mode => Holding { pinned, ..mine },
            _ => Holding { client, mode, epoch: self.next_epoch()?, since_ns: self.time_ns, pinned },
        };
        let holdings = self.resources.entry(resource.clone()).or_default();
        match holdings.binary_search_by_key(&client, |holding| holding.client) {
            Ok(at) => holdings[at] = holding,
            Err(at) => {
                holdings.reserve_exact(1);
                holdings.insert(at, holding);
            }
        }
        if mine.is_none() {
            self.held.entry(client).or_default().insert(resource.clone());
        }
        let holder = self.show(&holding);
        if mine != Some(holding) {
            self.tell_holder(resource);
        }
        Ok(Reply::Acquired(holder))
    }

    pub(super) fn release(&mut self, client: ClientId, resource: &ResourceId, epoch: Epoch) -> Outcome {
        let holding = self.holding(client, resource);
        if holding.is_none_or(|holding| holding.epoch != epoch) {
            return Err(Refusal::NotHeld { resource: resource.clone(), client, epoch });
        }
        self.forget_holding(client, resource);
        self.tell_holder(resource);
        Ok(Reply::Done)
    }

    /// The holding that `client` has of `resource`.
    pub(super) fn holding(&self, client: ClientId, resource: &ResourceId) -> Option<&Holding> {
        self.resources.get(resource)?.iter().find(|holding| holding.client == client)
    }

    /// Takes a holding away.
    pub(super) fn forget_holding(&mut self, client: ClientId, resource: &ResourceId) {
        if let Some(holdings) = self.resources.get_mut(resource) {
            holdings.retain(|holding| holding.client != client);
            if holdings.is_empty() {
                self.resources.remove(resource);
            }
        }
        self.forget_held(client, resource);
    }

    /// Takes a resource out of the index.
    pub(super) fn forget_held(&mut self, client: ClientId, resource: &ResourceId) {
        if let Some(held) = self.held.get_mut(&client) {
            held.remove(resource);
            if held.is_empty() {
                self.held.remove(&client);
            }
        }
    }

    pub(super) fn tell_holder(&mut self, resource: &ResourceId) {
        let first = self.resources.get(resource).and_then(|holdings| holdings.first());
        let holder = first.map(|holding| self.show(holding));
        self.tell(Audience::Everyone, EventKind::HolderChanged { resource: resource.clone(), holder });
    }
}
