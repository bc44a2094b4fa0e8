//! A client of a cluster as the authority that a mount knows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::error::ClientError;
use super::lock_client::LockClient;
use super::transfer::{Set, Transferred};
use crate::authority::{Authority, AuthorityError, Handover, Holding};
use crate::ids::{ClientId, Epoch, ResourceId, SessionId};
use crate::lease::Lease;
use crate::machine::{Answer, HoldMode, HolderInfo, Move, Operation, Query, Refusal, Reply};

/// How long a transfer may take before it is aborted (L7).
const TRANSFER_WITHIN: Duration = Duration::from_secs(5);
/// How many resources are looked up one by one; more are looked up in the list of all.
const ONE_BY_ONE: usize = 16;
/// How long is waited before a question that could not be answered is asked again.
const RETRY: Duration = Duration::from_millis(200);

impl From<&HolderInfo> for Holding {
    fn from(info: &HolderInfo) -> Self {
        Self { session: info.session, client: info.client, epoch: info.epoch }
    }
}

/// A refusal of an operation on `resource` in the words of [`AuthorityError`].
fn authority_error(session: SessionId, resource: &ResourceId, error: ClientError) -> AuthorityError {
    let other = |why: String| AuthorityError::Unavailable { resource: resource.clone(), why };
    match error {
        ClientError::SessionEnded(session) => AuthorityError::SessionEnded(session),
        ClientError::Refused(refusal) => match *refusal {
            Refusal::Held { resource, holder } => {
                AuthorityError::Held { resource, holding: Holding::from(&holder) }
            }
            Refusal::NotHeld { resource, epoch, .. } => AuthorityError::Stale { resource, epoch },
            Refusal::ClientEnded(client) => AuthorityError::ClientEnded(client),
            Refusal::SessionEnded(session) => AuthorityError::SessionEnded(session),
            refusal => other(refusal.to_string()),
        },
        ClientError::Closed => AuthorityError::SessionEnded(session),
        error => other(error.to_string()),
    }
}

impl LockClient {
    /// Everything that is held; nothing when the session has ended.
    fn all_holders(&self) -> HashMap<ResourceId, Holding> {
        let mut all = HashMap::new();
        let mut after = None;
        loop {
            match self.query(Query::Resources { volume: None, after: after.clone() }) {
                Ok(Answer::Resources(page)) => {
                    let Some(last) = page.last() else { return all };
                    after = Some(last.resource.clone());
                    for info in page {
                        if let Some(holder) = info.holders.first() {
                            all.insert(info.resource, Holding::from(holder));
                        }
                    }
                }
                Err(ClientError::Closed | ClientError::SessionEnded(_)) => return HashMap::new(),
                _ if self.has_ended() => return HashMap::new(),
                _ => std::thread::sleep(RETRY),
            }
        }
    }
}

/// Waits for lockd and for a quorum as long as the client's patience says: for ever, for a mount.
impl Authority for LockClient {
    fn session(&self) -> SessionId {
        self.session_id()
    }

    fn lease(&self) -> &Arc<Lease> {
        self.shared_lease()
    }

    fn add_client(&self) -> Result<ClientId, AuthorityError> {
        let kind = self.kind();
        self.register(kind).map_err(|error| match error {
            ClientError::SessionEnded(session) => AuthorityError::SessionEnded(session),
            error => AuthorityError::NotRegistered(error.to_string()),
        })
    }

    fn end_client(&self, client: ClientId) {
        if let Err(error) = self.leave(client) {
            // It goes with the process, or with the session.
            tracing::warn!(%client, %error, "the client could not be ended");
        }
    }

    fn acquire(&self, resource: &ResourceId, client: ClientId) -> Result<Holding, AuthorityError> {
        let mode = HoldMode::Exclusive;
        let operation = Operation::Acquire { resource: resource.clone(), mode, pinned: false };
        match self.operate(client, operation) {
            Ok(Reply::Acquired(info)) => Ok(Holding::from(&info)),
            Ok(_) => Err(authority_error(self.session_id(), resource, ClientError::Unexpected)),
            Err(error) => Err(authority_error(self.session_id(), resource, error)),
        }
    }

    fn release(&self, resource: &ResourceId, client: ClientId, epoch: Epoch) -> Result<(), AuthorityError> {
        let operation = Operation::Release { resource: resource.clone(), epoch };
        let released = self.operate(client, operation).map(drop);
        released.map_err(|error| authority_error(self.session_id(), resource, error))
    }

    fn release_all(
        &self,
        holdings: Vec<(ResourceId, Epoch)>,
        client: ClientId,
    ) -> Result<(), AuthorityError> {
        let Some((first, _)) = holdings.first().cloned() else { return Ok(()) };
        let released = LockClient::release_all(self, client, holdings);
        released.map_err(|error| authority_error(self.session_id(), &first, error))
    }

    fn pin(&self, resources: &[ResourceId], client: ClientId) -> Result<(), AuthorityError> {
        for resource in resources {
            let (resource, mode) = (resource.clone(), HoldMode::Exclusive);
            let pinned =
                self.operate(client, Operation::Acquire { resource: resource.clone(), mode, pinned: true });
            pinned.map_err(|error| authority_error(self.session_id(), &resource, error))?;
        }
        Ok(())
    }

    /// If the set was aborted, nothing has moved.
    fn transfer(&self, handover: &Handover) -> Result<Epoch, AuthorityError> {
        let Some((first, _)) = handover.holdings.first() else { return Ok(Epoch::NOBODY) };
        let one = |(resource, epoch): &(ResourceId, Epoch)| Move {
            resource: resource.clone(),
            epoch: *epoch,
            from: handover.from,
            to: handover.to.1,
        };
        let set = Set {
            cookie: handover.escrow.unwrap_or_else(|| self.cookie()),
            moves: handover.holdings.iter().map(one).collect(),
            escrow: handover.escrow.is_some(),
            pinned: handover.pinned,
        };
        match LockClient::transfer(self, handover.from, set, TRANSFER_WITHIN) {
            Ok(Transferred::Done(epoch)) => Ok(epoch),
            Ok(Transferred::Aborted) => Err(AuthorityError::Unavailable {
                resource: first.clone(),
                why: format!("not done within {} s, and called off", TRANSFER_WITHIN.as_secs()),
            }),
            Err(error) => Err(authority_error(self.session_id(), first, error)),
        }
    }

    fn holders(&self, resources: &[ResourceId]) -> Vec<Option<Holding>> {
        if resources.len() <= ONE_BY_ONE {
            return resources.iter().map(|resource| Authority::holder(self, resource)).collect();
        }
        let all = self.all_holders();
        resources.iter().map(|resource| all.get(resource).copied()).collect()
    }

    /// Asks until there is an answer; none when the session has ended in the meantime, too.
    fn holder(&self, resource: &ResourceId) -> Option<Holding> {
        loop {
            match self.resource(resource) {
                Ok(info) => return info.holders.first().map(Holding::from),
                Err(ClientError::Closed | ClientError::SessionEnded(_)) => return None,
                Err(_) if self.has_ended() => return None,
                Err(error) => {
                    tracing::warn!(%resource, %error, "asking again who holds it");
                    std::thread::sleep(RETRY);
                }
            }
        }
    }
}
