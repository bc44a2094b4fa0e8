//! The locks of one file: held, and waited for.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};

use super::held::{Held, Piece};
use super::lock::{Conflict, LockOwner, LockRequest};
use super::range::ByteRange;
use crate::ids::Ticket;

/// The locks of one file. Tickets rise with time, so that the queue's order is the order of arrival.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub(super) struct ResourceLocks {
    pub(super) held: BTreeMap<LockOwner, Held>,
    pub(super) queue: BTreeMap<Ticket, LockRequest>,
}

impl ResourceLocks {
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.queue.is_empty()
    }

    /// The owners that hold what `request` wants.
    pub(super) fn blockers(&self, request: &LockRequest) -> impl Iterator<Item = LockOwner> {
        self.blocking(request).map(|(owner, _, _)| owner)
    }

    /// The locks that `request` would have to wait for, the first of each owner, as programs see them.
    pub(super) fn conflicts(&self, request: &LockRequest) -> impl Iterator<Item = Conflict> {
        self.blocking(request).map(|(owner, held, (bytes, piece))| {
            let range = held.merged(bytes, piece.mode);
            Conflict { owner, mode: piece.mode, range, pid: piece.pid }
        })
    }

    /// Whether anybody waits for what `owner` holds.
    pub(super) fn blocks(&self, owner: LockOwner) -> bool {
        let Some(held) = self.held.get(&owner) else { return false };
        self.queue.values().any(|waiting| {
            waiting.owner != owner
                && waiting.owner.kind.shares_space_with(owner.kind)
                && held.conflict(waiting.range, waiting.mode).is_some()
        })
    }

    fn blocking(
        &self,
        request: &LockRequest,
    ) -> impl Iterator<Item = (LockOwner, &Held, (ByteRange, &Piece))> {
        let LockRequest { owner: asking, mode, range, .. } = *request;
        let others = self.held.iter();
        let others =
            others.filter(move |(owner, _)| **owner != asking && owner.kind.shares_space_with(asking.kind));
        others.filter_map(move |(owner, held)| Some((*owner, held, held.conflict(range, mode)?)))
    }

    /// The requests that came before `ticket` (before now, if none) and cannot be granted together with `request`.
    pub(super) fn ahead(
        &self,
        ticket: Option<Ticket>,
        request: &LockRequest,
    ) -> impl Iterator<Item = (Ticket, &LockRequest)> {
        let before = ticket.unwrap_or(Ticket(u64::MAX));
        let earlier = self.queue.range(..before).map(|(ticket, earlier)| (*ticket, earlier));
        earlier.filter(move |(_, earlier)| earlier.conflicts_with(request))
    }
}
