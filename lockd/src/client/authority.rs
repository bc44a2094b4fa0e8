//! A client of a cluster as the authority that a mount knows.

use std::sync::Arc;
use std::time::Duration;

use super::error::ClientError;
use super::lock_client::LockClient;
use crate::authority::{Authority, AuthorityError, Holding};
use crate::ids::{ClientId, Epoch, ResourceId, SessionId};
use crate::lease::Lease;
use crate::machine::{HoldMode, HolderInfo, Operation, Refusal, Reply};

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
