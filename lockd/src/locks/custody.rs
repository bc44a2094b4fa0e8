//! Locks whose client ends or hands them on: ended or given to another owner by their grants (L8, L9, L10).

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::error::LockError;
use super::held::Piece;
use super::lock::{Listed, LockEvent, LockKind, LockOwner, LockRequest};
use super::range::ByteRange;
use super::table::LockTable;
use crate::ids::{ClientId, GrantId, Ticket};

/// Which of a client's grants are meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Grants {
    /// Every one.
    All,
    /// Those up to this one.
    Through(GrantId),
    /// Those after this one.
    After(GrantId),
}

impl Grants {
    fn includes(self, grant: GrantId) -> bool {
        match self {
            Self::All => true,
            Self::Through(last) => grant <= last,
            Self::After(last) => grant > last,
        }
    }
}

/// All owners that `client` can have, in order.
pub(super) fn owners_of(client: ClientId) -> RangeInclusive<LockOwner> {
    LockOwner { client, kind: LockKind::Posix, id: 0 }..=LockOwner {
        client,
        kind: LockKind::Flock,
        id: u64::MAX,
    }
}

impl<K: Ord + Clone> LockTable<K> {
    /// How many locks are held, by all clients.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.locks()
    }

    /// The last grant that was made.
    #[must_use]
    pub fn last_grant(&self) -> GrantId {
        GrantId(self.last_grant)
    }

    /// Whose request waits with `ticket`, if it does.
    #[must_use]
    pub fn owner_of(&self, ticket: Ticket) -> Option<LockOwner> {
        self.waiting(ticket).map(|(_, request)| request.owner)
    }

    /// The files on which `client` holds locks.
    #[must_use]
    pub fn held_by(&self, client: ClientId) -> BTreeSet<K> {
        self.index.of_client(client).1.into_iter().map(|(_, key)| key).collect()
    }

    /// The files on which `client` holds locks or waits for some.
    #[must_use]
    pub fn files_of(&self, client: ClientId) -> BTreeSet<K> {
        let (tickets, _) = self.index.of_client(client);
        let waits = tickets.into_iter().filter_map(|ticket| self.index.key_of(ticket).cloned());
        self.held_by(client).into_iter().chain(waits).collect()
    }

    /// The locks and waiting requests of one file.
    pub fn list_of(&self, key: &K) -> impl Iterator<Item = Listed<K>> {
        self.resources.get_key_value(key).into_iter().flat_map(|(key, resource)| resource.list(key))
    }

    /// How many locks `client` holds on `key` by `grants`.
    #[must_use]
    pub fn count(&self, key: &K, client: ClientId, grants: Grants) -> usize {
        self.pieces(key, client, grants).count()
    }

    /// How many locks are held on `key` and how many requests wait there.
    #[must_use]
    pub fn count_all(&self, key: &K) -> (usize, usize) {
        let Some(resource) = self.resources.get(key) else { return (0, 0) };
        (resource.held.values().map(super::held::Held::len).sum(), resource.queue.len())
    }

    /// Ends what `client` holds on `key` by `grants`. Its requests wait on.
    pub fn end_grants(&mut self, key: &K, client: ClientId, grants: Grants, events: &mut Vec<LockEvent>) {
        let pieces: Vec<_> = self.pieces(key, client, grants).collect();
        for (owner, range, _) in &pieces {
            self.carve(key, *owner, *range, GrantId(u64::MAX));
        }
        if !pieces.is_empty() {
            self.settle(BTreeSet::from([key.clone()]), events);
        }
    }

    /// Ends the waiting of all requests of `client`: they are answered [`LockError::ClientEnded`].
    pub fn end_waits(&mut self, client: ClientId, events: &mut Vec<LockEvent>) {
        let mut dirty = BTreeSet::new();
        for ticket in self.index.of_client(client).0 {
            dirty.extend(self.dequeue(ticket));
            events.push(LockEvent { ticket, reply: Err(LockError::ClientEnded(client)) });
        }
        self.settle(dirty, events);
    }

    /// Gives what `from` was granted on `key`, up to `through`, to owners of the client `to`: of the same kind, with the
    /// number `id`, or their old one. The grants keep their numbers. Tells how many locks it were.
    ///
    /// # Errors
    /// [`LockError::TooManyLocks`] when `to` would have more than it may; then nothing has changed.
    pub fn adopt(
        &mut self,
        key: &K,
        from: ClientId,
        through: GrantId,
        to: ClientId,
        id: Option<u64>,
        events: &mut Vec<LockEvent>,
    ) -> Result<usize, LockError> {
        let mut pieces: Vec<_> = self.pieces(key, from, Grants::Through(through)).collect();
        // Each may split one that is there.
        self.check_limit(to, 0, 2 * pieces.len())?;
        pieces.sort_by_key(|(owner, range, piece)| (piece.grant, *range, *owner));
        let mut dirty = BTreeSet::from([key.clone()]);
        for (owner, range, piece) in &pieces {
            self.carve(key, *owner, *range, GrantId(u64::MAX));
            let owner = LockOwner { client: to, kind: owner.kind, id: id.unwrap_or(owner.id) };
            let request = LockRequest { owner, pid: piece.pid, mode: piece.mode, range: *range };
            // What the adopter itself has of these bytes is shared, as this is: one of the two is enough.
            self.put(key, &request, piece.grant);
            self.follow_grant(key, &request, &mut dirty, events);
        }
        self.settle(dirty, events);
        Ok(pieces.len())
    }

    fn pieces(
        &self,
        key: &K,
        client: ClientId,
        grants: Grants,
    ) -> impl Iterator<Item = (LockOwner, ByteRange, Piece)> {
        let held = self.resources.get(key).into_iter();
        held.flat_map(move |resource| resource.held.range(owners_of(client))).flat_map(
            move |(owner, held)| {
                let all = held.overlapping(ByteRange::WHOLE);
                all.filter(move |(_, piece)| grants.includes(piece.grant))
                    .map(move |(range, piece)| (*owner, range, *piece))
            },
        )
    }
}
