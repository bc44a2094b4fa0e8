//! Who may do what: the questions that a client of the control plane asks.
//!
//! In a cluster a session's lockd answers them; a standalone mount answers them by itself. The node and the coordinator
//! of a volume know only this trait.

use std::fmt::Debug;
use std::sync::Arc;

use crate::ids::{ClientId, Epoch, ResourceId, SessionId};
use crate::lease::Lease;

/// A holding of a resource: who, and the fencing token of that holding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holding {
    /// The session under which the holder lives.
    pub session: SessionId,
    /// The holder.
    pub client: ClientId,
    /// The epoch of this holding; the next holder's is higher.
    pub epoch: Epoch,
}

/// Why an acquisition, a release or an epoch check was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Somebody else holds the resource.
    #[error("{resource} is held by {} of session {} since epoch {}", .holding.client, .holding.session, .holding.epoch)]
    Held {
        /// What was asked for.
        resource: ResourceId,
        /// Who has it.
        holding: Holding,
    },
    /// The caller named a holding that is not the current one.
    #[error("{resource} is not held in {epoch}: the caller's ownership is over; it must acquire again")]
    Stale {
        /// What was named.
        resource: ResourceId,
        /// The caller's epoch.
        epoch: Epoch,
    },
    /// The session has ended; nothing can be held under it any more.
    #[error("session {0} has ended; unmount and mount again")]
    SessionEnded(SessionId),
    /// The client has ended, or was never registered.
    #[error("{0} has ended; nothing can be held by it any more")]
    ClientEnded(ClientId),
    /// The control plane did not do it; what was asked for may be done later if it did not answer in time.
    #[error("{resource}: {why}")]
    Unavailable {
        /// What was asked for.
        resource: ResourceId,
        /// Why, and what to do.
        why: String,
    },
    /// The client could not be registered.
    #[error("the client could not be registered: {0}")]
    NotRegistered(String),
    /// A table has reached its bound.
    #[error("there are {limit} {what} and there cannot be more; end or release some")]
    Full {
        /// What is counted.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
}

/// Where a session stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Its lease may be running: what it was promised holds.
    Live,
    /// Its lease is over for good: it answers nothing and starts no write. What it sent before may still land.
    Ended,
    /// Nothing that it sent can reach the LUN any more: what it held may be given away.
    Fenced,
}

/// The control plane as one session's clients see it.
pub trait Authority: Send + Sync + Debug {
    /// The session of this process.
    fn session(&self) -> SessionId;

    /// The lease of that session.
    fn lease(&self) -> &Arc<Lease>;

    /// Registers a client process under the session; its id is never used again.
    fn add_client(&self) -> Result<ClientId, AuthorityError>;

    /// Ends `client`: everything that it holds is free, its locks are gone.
    fn end_client(&self, client: ClientId);

    /// Grants `resource` to `client` with a new epoch, or returns the holding that `client` already has.
    fn acquire(&self, resource: &ResourceId, client: ClientId) -> Result<Holding, AuthorityError>;

    /// Gives `resource` back.
    fn release(&self, resource: &ResourceId, client: ClientId, epoch: Epoch) -> Result<(), AuthorityError>;

    /// Gives holdings of `client` to the client `to`, all of them or none, each in a new epoch (L6). Who has got them
    /// learns the epochs by [`Authority::acquire`]. An authority of one session has nobody to give them to: it releases
    /// them, and the next client acquires them.
    fn transfer(
        &self,
        holdings: &[(ResourceId, Epoch)],
        client: ClientId,
        to: (SessionId, ClientId),
    ) -> Result<(), AuthorityError> {
        let _ = to;
        holdings.iter().try_for_each(|(resource, epoch)| self.release(resource, client, *epoch))
    }

    /// The current holding of `resource`.
    fn holder(&self, resource: &ResourceId) -> Option<Holding>;

    /// The current holding of `resource`, where [`Authority::holder`] may answer from what it was last told: asked when that
    /// is not what was expected.
    fn confirmed_holder(&self, resource: &ResourceId) -> Option<Holding> {
        self.holder(resource)
    }

    /// Where `session` stands. An authority that knows only its own session takes all others to be over: it has proved
    /// that when it began.
    fn standing(&self, session: SessionId) -> Standing {
        if session == self.session() { Standing::Live } else { Standing::Fenced }
    }
}
