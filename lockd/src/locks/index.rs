//! Where in the table an owner, a client or a ticket is found. All of it can be made again from the table's files.

use std::collections::{BTreeMap, BTreeSet};

use super::custody::owners_of;
use super::held::Change;
use super::lock::LockOwner;
use crate::ids::{ClientId, Ticket};

/// What one client uses of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Usage {
    pub(super) locks: usize,
    pub(super) waiters: usize,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Index<K> {
    tickets: BTreeMap<Ticket, (K, LockOwner)>,
    waits: BTreeMap<LockOwner, BTreeSet<Ticket>>,
    holds: BTreeMap<LockOwner, BTreeSet<K>>,
    usage: BTreeMap<ClientId, Usage>,
    /// Locks held by all clients.
    locks: usize,
}

impl<K: Ord + Clone> Index<K> {
    pub(super) fn new() -> Self {
        Self {
            tickets: BTreeMap::new(),
            waits: BTreeMap::new(),
            holds: BTreeMap::new(),
            usage: BTreeMap::new(),
            locks: 0,
        }
    }

    /// The file for which `ticket` waits.
    pub(super) fn key_of(&self, ticket: Ticket) -> Option<&K> {
        self.tickets.get(&ticket).map(|(key, _)| key)
    }

    /// The waiting requests of `owner`.
    pub(super) fn waits_of(&self, owner: LockOwner) -> impl Iterator<Item = Ticket> {
        self.waits.get(&owner).into_iter().flatten().copied()
    }

    /// Whether `owner` holds any lock on any file: otherwise nobody waits for it.
    pub(super) fn holds_any(&self, owner: LockOwner) -> bool {
        self.holds.contains_key(&owner)
    }

    /// The files on which `owner` holds locks.
    pub(super) fn holds_of(&self, owner: LockOwner) -> impl Iterator<Item = &K> {
        self.holds.get(&owner).into_iter().flatten()
    }

    /// How many locks all clients hold.
    pub(super) fn locks(&self) -> usize {
        self.locks
    }

    pub(super) fn usage(&self, client: ClientId) -> Usage {
        self.usage.get(&client).copied().unwrap_or_default()
    }

    /// The waiting requests of `client`, and what it holds.
    pub(super) fn of_client(&self, client: ClientId) -> (Vec<Ticket>, Vec<(LockOwner, K)>) {
        let waits = self.waits.range(owners_of(client));
        let holds = self.holds.range(owners_of(client));
        (
            waits.flat_map(|(_, tickets)| tickets.iter().copied()).collect(),
            holds.flat_map(|(owner, keys)| keys.iter().map(|key| (*owner, key.clone()))).collect(),
        )
    }

    pub(super) fn note_waiting(&mut self, ticket: Ticket, key: &K, owner: LockOwner) {
        self.tickets.insert(ticket, (key.clone(), owner));
        self.waits.entry(owner).or_default().insert(ticket);
        self.change_usage(owner.client, |usage| usage.waiters += 1);
    }

    /// Forgets a waiting request and tells its file.
    pub(super) fn note_not_waiting(&mut self, ticket: Ticket) -> Option<K> {
        let (key, owner) = self.tickets.remove(&ticket)?;
        if let Some(tickets) = self.waits.get_mut(&owner) {
            tickets.remove(&ticket);
            if tickets.is_empty() {
                self.waits.remove(&owner);
            }
        }
        self.change_usage(owner.client, |usage| usage.waiters -= 1);
        Some(key)
    }

    /// Counts a change of what `owner` holds on `key`; `holding` tells whether it still holds anything there.
    pub(super) fn note_held(&mut self, key: &K, owner: LockOwner, change: Change, holding: bool) {
        self.change_usage(owner.client, |usage| usage.locks = usage.locks + change.added - change.removed);
        self.locks = self.locks + change.added - change.removed;
        if holding {
            let keys = self.holds.entry(owner).or_default();
            if !keys.contains(key) {
                keys.insert(key.clone());
            }
        } else if let Some(keys) = self.holds.get_mut(&owner) {
            keys.remove(key);
            if keys.is_empty() {
                self.holds.remove(&owner);
            }
        }
    }

    fn change_usage(&mut self, client: ClientId, change: impl FnOnce(&mut Usage)) {
        let usage = self.usage.entry(client).or_default();
        change(usage);
        if *usage == Usage::default() {
            self.usage.remove(&client);
        }
    }
}
