//! File locks, and those in escrow (L8).

use super::bounds::{Bound, LOCKS_MAX};
use super::command::Cookie;
use super::event::{Audience, EventKind};
use super::reply::{Refusal, Reply};
use super::state::{Escrow, Outcome, State};
use crate::ids::{ClientId, GrantId, ResourceId, SessionId, Ticket, VolumeId};
use crate::locks::{ByteRange, Grants, LockEvent, LockOutcome, LockOwner, LockRequest, LockTable};
use crate::rules::{Rule, Rules};

impl State {
    pub(super) fn lock(
        &mut self,
        client: ClientId,
        resource: &ResourceId,
        request: LockRequest,
        wait: bool,
    ) -> Outcome {
        self.check_owner(client, resource, request.owner)?;
        // A lock in the middle of another leaves three.
        if self.locks.len() + 2 > LOCKS_MAX {
            return Err(Refusal::Full(Bound::Locks));
        }
        let mut events = Vec::new();
        let outcome = self.locks.set(resource, request, wait, &mut events);
        if let LockOutcome::Waiting(ticket) = outcome {
            self.tickets.insert(ticket, client);
        }
        self.tell_locks(&events);
        self.tidy_escrow(resource, client);
        match outcome {
            LockOutcome::Refused(error) => Err(Refusal::Lock(error)),
            other => Ok(Reply::Lock(other)),
        }
    }

    pub(super) fn unlock(
        &mut self,
        client: ClientId,
        resource: &ResourceId,
        owner: LockOwner,
        range: ByteRange,
        through: Option<GrantId>,
    ) -> Outcome {
        self.check_owner(client, resource, owner)?;
        self.changing_locks(|locks, events| locks.unlock(resource, owner, range, through, events))
            .map_err(Refusal::Lock)?;
        self.tidy_escrow(resource, client);
        Ok(Reply::Done)
    }

    pub(super) fn release_owner(
        &mut self,
        client: ClientId,
        resource: &ResourceId,
        owner: LockOwner,
    ) -> Outcome {
        self.check_owner(client, resource, owner)?;
        self.changing_locks(|locks, events| locks.release_owner(resource, owner, events));
        self.tidy_escrow(resource, client);
        Ok(Reply::Done)
    }

    pub(super) fn cancel(&mut self, client: ClientId, ticket: Ticket) -> Outcome {
        match self.locks.owner_of(ticket) {
            None => Ok(Reply::Cancelled(false)),
            Some(owner) if owner.client != client => Err(Refusal::NotTicket(ticket)),
            Some(_) => {
                Ok(Reply::Cancelled(self.changing_locks(|locks, events| locks.cancel(ticket, events))))
            }
        }
    }

    /// A file of the client's own volume, an owner of its own.
    fn check_owner(&self, client: ClientId, resource: &ResourceId, owner: LockOwner) -> Result<(), Refusal> {
        self.check_kind(client, resource)?;
        if !matches!(resource, ResourceId::File(..)) {
            return Err(Refusal::WrongKind { client, resource: resource.clone() });
        }
        if owner.client == client { Ok(()) } else { Err(Refusal::NotOwner(owner)) }
    }

    /// The locks that came with a transfer become the adopter's: who shows the cookie gets them (L8).
    pub(super) fn adopt(
        &mut self,
        rules: Rules,
        client: ClientId,
        cookie: Cookie,
        resource: &ResourceId,
        id: Option<u64>,
    ) -> Outcome {
        let escrows = self.escrows_for(rules, client, cookie, resource)?;
        let count = |(source, escrow): &(ClientId, Escrow)| {
            self.locks.count(resource, *source, Grants::Through(escrow.through))
        };
        let all: usize = escrows.iter().map(count).sum();
        if self.locks.len() + 2 * all > LOCKS_MAX {
            return Err(Refusal::Full(Bound::Locks));
        }
        let mut adopted = 0;
        for (source, Escrow { through, .. }) in escrows {
            let done = self
                .changing_locks(|locks, events| locks.adopt(resource, source, through, client, id, events));
            adopted += done.map_err(Refusal::Lock)?;
            self.escrows.remove(&(resource.clone(), source));
        }
        Ok(Reply::Escrow { locks: adopted as u64 })
    }

    pub(super) fn drop_escrow(
        &mut self,
        rules: Rules,
        client: ClientId,
        cookie: Cookie,
        resource: &ResourceId,
    ) -> Outcome {
        let mut dropped = 0;
        for (source, Escrow { through, .. }) in self.escrows_for(rules, client, cookie, resource)? {
            let grants = Grants::Through(through);
            dropped += self.locks.count(resource, source, grants);
            self.changing_locks(|locks, events| locks.end_grants(resource, source, grants, events));
            self.escrows.remove(&(resource.clone(), source));
        }
        Ok(Reply::Escrow { locks: dropped as u64 })
    }

    /// What is in escrow for the session of `client` under `cookie`.
    fn escrows_for(
        &self,
        rules: Rules,
        client: ClientId,
        cookie: Cookie,
        resource: &ResourceId,
    ) -> Result<Vec<(ClientId, Escrow)>, Refusal> {
        self.check_kind(client, resource)?;
        let session = self.clients.get(&client).ok_or(Refusal::ClientEnded(client))?.session;
        let shown =
            |escrow: &Escrow| !rules.keeps(Rule::L8) || (escrow.cookie == cookie && escrow.target == session);
        let escrows: Vec<_> = self.escrows_on(resource).filter(|(_, escrow)| shown(escrow)).collect();
        if escrows.is_empty() {
            return Err(Refusal::NoEscrow { resource: resource.clone(), cookie });
        }
        Ok(escrows)
    }

    /// What is in escrow of one file, by source.
    pub(super) fn escrows_on(&self, resource: &ResourceId) -> impl Iterator<Item = (ClientId, Escrow)> {
        let range = (resource.clone(), ClientId(0))..=(resource.clone(), ClientId(u64::MAX));
        self.escrows.range(range).map(|((_, source), escrow)| (*source, *escrow))
    }

    /// A file has moved: what its source client has locked is kept for the target, and so is what was kept there for the
    /// source's session and not adopted.
    pub(super) fn put_in_escrow(
        &mut self,
        resource: &ResourceId,
        from: ClientId,
        source: SessionId,
        cookie: Cookie,
        target: SessionId,
    ) {
        let since_ns = self.time_ns;
        let kept: Vec<_> = self.escrows_on(resource).filter(|(_, escrow)| escrow.target == source).collect();
        for (of, Escrow { through, .. }) in kept {
            let home = self.is_live(of) && self.clients.get(&of).is_some_and(|of| of.session == target);
            if home {
                // They came back to whom they belong.
                self.escrows.remove(&(resource.clone(), of));
            } else {
                let escrow = Escrow { cookie, target, through, since_ns };
                self.escrows.insert((resource.clone(), of), escrow);
            }
        }
        let through = self.locks.last_grant();
        if self.locks.count(resource, from, Grants::All) > 0 {
            let escrow = Escrow { cookie, target, through, since_ns };
            self.escrows.insert((resource.clone(), from), escrow);
        }
    }

    /// Forgets an escrow whose locks are gone.
    pub(super) fn tidy_escrow(&mut self, resource: &ResourceId, source: ClientId) {
        let key = (resource.clone(), source);
        let Some(escrow) = self.escrows.get(&key) else { return };
        if self.locks.count(resource, source, Grants::Through(escrow.through)) == 0 {
            self.escrows.remove(&key);
        }
    }

    /// An ended client's locks on one file go; those in escrow stay (L8).
    pub(super) fn end_locks(&mut self, resource: &ResourceId, client: ClientId) {
        let escrow = self.escrows.get(&(resource.clone(), client));
        let grants = escrow.map_or(Grants::All, |escrow| Grants::After(escrow.through));
        self.changing_locks(|locks, events| locks.end_grants(resource, client, grants, events));
    }

    /// The session for which locks were kept is fenced (from `volume`, or altogether): the locks go back to the clients
    /// that had them, or go with those.
    pub(super) fn end_escrows_of(&mut self, target: SessionId, volume: Option<VolumeId>) {
        let ends = |resource: &ResourceId| volume.is_none() || super::state::volume_of(resource) == volume;
        let over: Vec<_> = self
            .escrows
            .iter()
            .filter(|((resource, _), escrow)| escrow.target == target && ends(resource))
            .map(|(key, escrow)| (key.clone(), *escrow))
            .collect();
        for (key, Escrow { through, .. }) in over {
            self.escrows.remove(&key);
            let (resource, source) = key;
            if !self.clients.contains_key(&source) {
                self.changing_locks(|locks, events| {
                    locks.end_grants(&resource, source, Grants::Through(through), events);
                });
            }
        }
    }

    /// Changes locks and tells those whose waiting ended by it.
    pub(super) fn changing_locks<T>(
        &mut self,
        change: impl FnOnce(&mut LockTable<ResourceId>, &mut Vec<LockEvent>) -> T,
    ) -> T {
        let mut events = Vec::new();
        let result = change(&mut self.locks, &mut events);
        self.tell_locks(&events);
        result
    }

    /// Tells what became of requests that waited.
    fn tell_locks(&mut self, events: &[LockEvent]) {
        for LockEvent { ticket, reply } in events {
            if let Some(client) = self.tickets.remove(ticket) {
                self.tell(Audience::Client(client), EventKind::Lock { ticket: *ticket, reply: *reply });
            }
        }
    }
}
