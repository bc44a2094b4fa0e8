//! The table of locks: every decision about them.

use std::collections::{BTreeMap, BTreeSet};

use super::error::LockError;
use super::index::Index;
use super::lock::{
    Conflict, Listed, LockEvent, LockKind, LockLimits, LockOutcome, LockOwner, LockRequest, LockState,
};
use super::range::ByteRange;
use super::resource::ResourceLocks;
use crate::ids::{ClientId, GrantId, Ticket};

/// The locks of all files, each known by a key of type `K`.
///
/// Methods that may let waiting requests go on append to `events`, in the order in which it happened; each ticket gets
/// exactly one event. Clients are not known here: whoever keeps the table refuses those that have ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LockTable<K = u64> {
    pub(super) limits: LockLimits,
    /// The number of the last ticket given out.
    pub(super) last_ticket: u64,
    /// The number of the last grant.
    pub(super) last_grant: u64,
    pub(super) resources: BTreeMap<K, ResourceLocks>,
    pub(super) index: Index<K>,
}

/// What keeps a request from being granted.
#[derive(Clone, Copy, Debug)]
enum Obstacle {
    /// A lock that is held.
    Lock,
    /// An earlier request, which it would overtake unfairly.
    Request(LockRequest),
}

impl<K: Ord + Clone> LockTable<K> {
    /// An empty table.
    #[must_use]
    pub fn new(limits: LockLimits) -> Self {
        Self { limits, last_ticket: 0, last_grant: 0, resources: BTreeMap::new(), index: Index::new() }
    }

    /// Asks for a lock on `key`; what the owner held of those bytes is replaced when it is granted. A request that
    /// cannot be granted at once is refused, or with `wait` gets a ticket.
    pub fn set(
        &mut self,
        key: &K,
        request: LockRequest,
        wait: bool,
        events: &mut Vec<LockEvent>,
    ) -> LockOutcome {
        let request = request.normalised();
        let mut dirty = BTreeSet::new();
        let outcome = match self.obstacle(key, None, &request) {
            None => match self.grant(key, &request) {
                Ok(grant) => {
                    self.follow_grant(key, &request, &mut dirty, events);
                    LockOutcome::Granted(grant)
                }
                Err(error) => LockOutcome::Refused(error),
            },
            Some(obstacle) => self.obstructed(key, &request, obstacle, wait, &mut dirty),
        };
        self.settle(dirty, events);
        outcome
    }

    /// Ends what `owner` holds of `range` on `key`; with `through`, only what it was granted up to that grant (L8).
    ///
    /// # Errors
    /// [`LockError::TooManyLocks`] when the unlock splits a lock and the client holds as many as it may.
    pub fn unlock(
        &mut self,
        key: &K,
        owner: LockOwner,
        range: ByteRange,
        through: Option<GrantId>,
        events: &mut Vec<LockEvent>,
    ) -> Result<(), LockError> {
        let range = if owner.kind == LockKind::Flock { ByteRange::WHOLE } else { range };
        let through = through.unwrap_or(GrantId(u64::MAX));
        let held = self.resources.get(key).and_then(|resource| resource.held.get(&owner));
        let Some(change) = held.map(|held| held.carving(range, through)) else { return Ok(()) };
        self.check_limit(owner.client, change.removed, change.added)?;
        if self.carve(key, owner, range, through) {
            self.settle(BTreeSet::from([key.clone()]), events);
        }
        Ok(())
    }

    /// Ends all that `owner` holds on `key`: its file was closed. Its waiting requests, of other threads, wait on.
    pub fn release_owner(&mut self, key: &K, owner: LockOwner, events: &mut Vec<LockEvent>) {
        if self.carve(key, owner, ByteRange::WHOLE, GrantId(u64::MAX)) {
            self.settle(BTreeSet::from([key.clone()]), events);
        }
    }

    /// Ends all locks and waiting requests of `client`.
    pub fn end_client(&mut self, client: ClientId, events: &mut Vec<LockEvent>) {
        let (tickets, held) = self.index.of_client(client);
        let mut dirty = BTreeSet::new();
        for ticket in tickets {
            dirty.extend(self.dequeue(ticket));
            events.push(LockEvent { ticket, reply: Err(LockError::ClientEnded(client)) });
        }
        for (owner, key) in held {
            self.carve(&key, owner, ByteRange::WHOLE, GrantId(u64::MAX));
            dirty.insert(key);
        }
        self.settle(dirty, events);
    }

    /// Lets a request wait no longer; it is answered [`LockError::Interrupted`]. False if it does not wait (any more).
    pub fn cancel(&mut self, ticket: Ticket, events: &mut Vec<LockEvent>) -> bool {
        let Some(key) = self.dequeue(ticket) else { return false };
        events.push(LockEvent { ticket, reply: Err(LockError::Interrupted) });
        self.settle(BTreeSet::from([key]), events);
        true
    }

    /// The first lock that keeps `request` from being granted, if any (`F_GETLK`). Requests that wait do not count.
    #[must_use]
    pub fn test(&self, key: &K, request: LockRequest) -> Option<Conflict> {
        let conflicts = self.resources.get(key)?.conflicts(&request.normalised()).collect::<Vec<_>>();
        conflicts.into_iter().min_by_key(|conflict| (conflict.range, conflict.owner))
    }

    /// Every lock and every waiting request: by file, first what is held.
    pub fn list(&self) -> impl Iterator<Item = Listed<K>> {
        self.resources.iter().flat_map(|(key, resource)| resource.list(key))
    }

    /// Whether nothing is held and nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// The file and the request of a ticket that waits.
    pub(super) fn waiting(&self, ticket: Ticket) -> Option<(&ResourceLocks, &LockRequest)> {
        let resource = self.resources.get(self.index.key_of(ticket)?)?;
        Some((resource, resource.queue.get(&ticket)?))
    }

    /// What keeps `request` from being granted now.
    fn obstacle(&self, key: &K, ticket: Option<Ticket>, request: &LockRequest) -> Option<Obstacle> {
        let resource = self.resources.get(key)?;
        if resource.blockers(request).next().is_some() {
            return Some(Obstacle::Lock);
        }
        // Nobody can wait for an owner that holds nothing: the common case needs no search.
        let holder = self.index.holds_any(request.owner);
        let passes = |ahead: Ticket| holder && self.waits_for(ahead, request.owner);
        let (_, ahead) = resource.ahead(ticket, request).find(|(ahead, _)| !passes(*ahead))?;
        Some(Obstacle::Request(*ahead))
    }

    /// An obstacle as the caller is told of it.
    fn describe(&self, key: &K, request: &LockRequest, obstacle: Obstacle) -> Conflict {
        match obstacle {
            Obstacle::Lock => self.test(key, *request).expect("what stands in the way is a lock"),
            Obstacle::Request(LockRequest { owner, pid, mode, range }) => {
                Conflict { owner, mode, range, pid }
            }
        }
    }

    /// A request that cannot be granted at once waits or is refused.
    fn obstructed(
        &mut self,
        key: &K,
        request: &LockRequest,
        obstacle: Obstacle,
        wait: bool,
        dirty: &mut BTreeSet<K>,
    ) -> LockOutcome {
        let client = request.owner.client;
        if wait {
            let limit = self.limits.waiters_per_client;
            if self.index.usage(client).waiters >= limit as usize {
                return LockOutcome::Refused(LockError::TooManyWaiters { client, limit });
            }
            if self.resources.get(key).is_some_and(|resource| self.would_deadlock(resource, request)) {
                return LockOutcome::Refused(LockError::Deadlock);
            }
        }
        // As on Linux, a flock that changes its mode lets go first; otherwise two that want to would wait for each
        // other for ever.
        if request.owner.kind == LockKind::Flock
            && self.carve(key, request.owner, ByteRange::WHOLE, GrantId(u64::MAX))
        {
            dirty.insert(key.clone());
        }
        if !wait {
            return LockOutcome::Refused(LockError::WouldBlock(self.describe(key, request, obstacle)));
        }
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.resources.entry(key.clone()).or_default().queue.insert(ticket, *request);
        self.index.note_waiting(ticket, key, request.owner);
        self.dirty_behind(request.owner, ticket, dirty);
        LockOutcome::Waiting(ticket)
    }

    /// Somebody may now wait for more owners than before, through `owner` and its waiting request `ticket`. Requests of
    /// those owners may have become free to pass: their files are looked at again.
    fn dirty_behind(&self, owner: LockOwner, ticket: Ticket, dirty: &mut BTreeSet<K>) {
        let stands_in_the_way =
            |key: &K| self.resources.get(key).is_some_and(|resource| resource.blocks(owner));
        if !self.index.holds_of(owner).any(stands_in_the_way) {
            return;
        }
        let awaited = self.awaited_by(ticket);
        let tickets = awaited.into_iter().flat_map(|owner| self.index.waits_of(owner));
        dirty.extend(tickets.filter_map(|ticket| self.index.key_of(ticket).cloned()));
    }

    /// Records a lock that has no obstacle.
    fn grant(&mut self, key: &K, request: &LockRequest) -> Result<GrantId, LockError> {
        let LockRequest { owner, range, .. } = *request;
        let all = GrantId(u64::MAX);
        let held = self.resources.get(key).and_then(|resource| resource.held.get(&owner));
        let change = held.map(|held| held.carving(range, all)).unwrap_or_default();
        self.check_limit(owner.client, change.removed, change.added + 1)?;

        self.last_grant += 1;
        let grant = GrantId(self.last_grant);
        self.put(key, request, grant);
        Ok(grant)
    }

    /// Records a lock in place of what its owner has of its bytes.
    pub(super) fn put(&mut self, key: &K, request: &LockRequest, grant: GrantId) {
        let LockRequest { owner, range, .. } = *request;
        let resource = self.resources.entry(key.clone()).or_default();
        let held = resource.held.entry(owner).or_default();
        let mut change = held.carve(range, GrantId(u64::MAX));
        held.put(request, grant);
        change.added += 1;
        self.index.note_held(key, owner, change, true);
        let other = resource.blockers(request).next();
        assert!(other.is_none(), "two locks conflict: {request:?} was granted beside one of {other:?}");
    }

    /// Refuses a change that would leave `client` with more locks than it may have.
    pub(super) fn check_limit(
        &self,
        client: ClientId,
        removed: usize,
        added: usize,
    ) -> Result<(), LockError> {
        let limit = self.limits.locks_per_client;
        let after = self.index.usage(client).locks + added - removed;
        if added > removed && after > limit as usize {
            return Err(LockError::TooManyLocks { client, limit });
        }
        Ok(())
    }

    /// Takes locks away; true if there were any.
    pub(super) fn carve(&mut self, key: &K, owner: LockOwner, range: ByteRange, through: GrantId) -> bool {
        let Some(resource) = self.resources.get_mut(key) else { return false };
        let Some(held) = resource.held.get_mut(&owner) else { return false };
        let change = held.carve(range, through);
        let holding = !held.is_empty();
        if !holding {
            resource.held.remove(&owner);
        }
        if resource.is_empty() {
            self.resources.remove(key);
        }
        self.index.note_held(key, owner, change, holding);
        change.removed > 0
    }

    /// Takes a request out of its queue and tells its file.
    pub(super) fn dequeue(&mut self, ticket: Ticket) -> Option<K> {
        let key = self.index.note_not_waiting(ticket)?;
        if let Some(resource) = self.resources.get_mut(&key) {
            resource.queue.remove(&ticket);
            if resource.is_empty() {
                self.resources.remove(&key);
            }
        }
        Some(key)
    }

    /// Grants what has become free to be granted on the `dirty` files, oldest first, until nothing more has.
    pub(super) fn settle(&mut self, mut dirty: BTreeSet<K>, events: &mut Vec<LockEvent>) {
        while let Some(key) = dirty.pop_first() {
            let Some(resource) = self.resources.get(&key) else { continue };
            let tickets: Vec<Ticket> = resource.queue.keys().copied().collect();
            for ticket in tickets {
                let request =
                    self.resources.get(&key).and_then(|resource| resource.queue.get(&ticket)).copied();
                let Some(request) = request else { continue };
                if self.obstacle(&key, Some(ticket), &request).is_some() {
                    continue;
                }
                self.dequeue(ticket);
                let reply = self.grant(&key, &request);
                events.push(LockEvent { ticket, reply });
                if reply.is_ok() {
                    self.follow_grant(&key, &request, &mut dirty, events);
                }
            }
        }
    }

    /// What a grant changes for others: it may have replaced a stronger lock of its owner, and whoever waits on this
    /// file may now wait for that owner, which matters if another thread of it waits too.
    pub(super) fn follow_grant(
        &mut self,
        key: &K,
        granted: &LockRequest,
        dirty: &mut BTreeSet<K>,
        events: &mut Vec<LockEvent>,
    ) {
        let Some(resource) = self.resources.get(key) else { return };
        if resource.queue.is_empty() {
            return;
        }
        dirty.insert(key.clone());
        let others: Vec<Ticket> = self.index.waits_of(granted.owner).collect();
        if others.is_empty() {
            return;
        }
        let stuck: Vec<Ticket> = resource
            .ahead(None, granted)
            .filter(|(_, waiting)| self.would_deadlock(resource, waiting))
            .map(|(ticket, _)| ticket)
            .collect();
        for ticket in stuck {
            // Each one that goes may have been what the others' cycles had in common.
            let waits = self
                .waiting(ticket)
                .is_some_and(|(resource, request)| self.would_deadlock(resource, request));
            if waits {
                self.dequeue(ticket);
                events.push(LockEvent { ticket, reply: Err(LockError::Deadlock) });
            }
        }
        for ticket in others {
            self.dirty_behind(granted.owner, ticket, dirty);
        }
    }
}

impl ResourceLocks {
    pub(super) fn list<K: Clone>(&self, key: &K) -> impl Iterator<Item = Listed<K>> {
        let held = self.held.iter().flat_map(|(owner, held)| {
            held.iter().filter_map(|(start, piece)| {
                let range = ByteRange::new(start, piece.end)?;
                let lock = LockRequest { owner: *owner, pid: piece.pid, mode: piece.mode, range };
                Some((lock, LockState::Held(piece.grant)))
            })
        });
        let queue = self.queue.iter().map(|(ticket, request)| (*request, LockState::Waiting(*ticket)));
        held.chain(queue).map(|(lock, state)| Listed { key: key.clone(), lock, state })
    }
}
