//! The locks of one file: held, and waited for.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};

use super::held::Held;
use super::lock::{Conflict, LockOwner, LockRequest};
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

    /// What `request` would have to wait for, one conflict per owner that holds any.
    pub(super) fn conflicts(&self, request: &LockRequest) -> impl Iterator<Item = Conflict> {
        let LockRequest { owner: asking, mode, range, .. } = *request;
        let others = self
            .held
            .iter()
            .filter(move |(owner, _)| **owner != asking && owner.kind.shares_space_with(asking.kind));
        others.filter_map(move |(owner, held)| {
            let (bytes, piece) = held.conflict(range, mode)?;
            let range = held.merged(bytes, piece.mode);
            Some(Conflict { owner: *owner, mode: piece.mode, range, pid: piece.pid })
        })
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
