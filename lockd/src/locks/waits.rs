//! Who waits for whom: the question behind fairness and behind deadlock detection.

use std::collections::BTreeSet;

use super::lock::{LockKind, LockOwner, LockRequest};
use super::resource::ResourceLocks;
use super::table::LockTable;
use crate::ids::Ticket;

impl<K: Ord + Clone> LockTable<K> {
    /// Every owner for which the waiting request `ticket` waits: those that hold what it wants, those that hold what
    /// the requests ahead of it want, and so on through what those owners wait for themselves.
    pub(super) fn awaited_by(&self, ticket: Ticket) -> BTreeSet<LockOwner> {
        let mut owners = BTreeSet::new();
        self.follow(ticket, &mut owners, |_| false);
        owners
    }

    /// Whether `owner` is among those that the waiting request `ticket` waits for.
    pub(super) fn waits_for(&self, ticket: Ticket, owner: LockOwner) -> bool {
        self.follow(ticket, &mut BTreeSet::new(), |awaited| awaited == owner)
    }

    /// Collects whom `ticket` waits for, until `stop` says yes to one of them; tells whether it did.
    fn follow(
        &self,
        ticket: Ticket,
        owners: &mut BTreeSet<LockOwner>,
        stop: impl Fn(LockOwner) -> bool,
    ) -> bool {
        let mut seen = BTreeSet::from([ticket]);
        let mut work = vec![ticket];
        while let Some(ticket) = work.pop() {
            let Some((resource, request)) = self.waiting(ticket) else { continue };
            for owner in resource.blockers(request) {
                if stop(owner) {
                    return true;
                }
                if owners.insert(owner) {
                    work.extend(self.index.waits_of(owner).filter(|next| seen.insert(*next)));
                }
            }
            let ahead = resource.ahead(Some(ticket), request).map(|(ahead, _)| ahead);
            work.extend(ahead.filter(|next| seen.insert(*next)));
        }
        false
    }

    /// Whether `request`, if it waited, would wait for its own owner. Only what is held counts, not the order of the
    /// queue: that gives way ([`LockTable::waits_for`]). Only POSIX owners are processes, which wait with all they
    /// hold; the owners of the other kinds are open files.
    pub(super) fn would_deadlock(&self, resource: &ResourceLocks, request: &LockRequest) -> bool {
        if request.owner.kind != LockKind::Posix || !self.index.holds_any(request.owner) {
            return false;
        }
        let mut seen: BTreeSet<LockOwner> = posix_holders(resource, request).collect();
        let mut work: Vec<LockOwner> = seen.iter().copied().collect();
        while let Some(owner) = work.pop() {
            if owner == request.owner {
                return true;
            }
            for (resource, waiting) in self.index.waits_of(owner).filter_map(|ticket| self.waiting(ticket)) {
                work.extend(posix_holders(resource, waiting).filter(|next| seen.insert(*next)));
            }
        }
        false
    }
}

/// The processes that hold what `request` wants.
fn posix_holders(resource: &ResourceLocks, request: &LockRequest) -> impl Iterator<Item = LockOwner> {
    resource.blockers(request).filter(|owner| owner.kind == LockKind::Posix)
}
