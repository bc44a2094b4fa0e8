//! Who may do what: the questions that a client of the control plane asks.
//!
//! In a cluster a session's lockd answers them; a standalone mount answers them by itself. The node and the coordinator
//! of a volume know only this trait.

use std::fmt::Debug;
use std::sync::Arc;

use crate::ids::{ClientId, Epoch, ResourceId, SessionId, VolumeId};
use crate::lease::Lease;
use crate::machine::Cookie;

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

/// A set of files that goes to another client, or that nobody held and that a client gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Handover {
    /// The set, each with the epoch of the source's holding; [`Epoch::NOBODY`] for what nobody holds.
    pub holdings: Vec<(ResourceId, Epoch)>,
    /// The source: it serves all of them.
    pub from: ClientId,
    /// The target; the source itself for what nobody holds.
    pub to: (SessionId, ClientId),
    /// Whether the target keeps them until they are released explicitly.
    pub pinned: bool,
    /// The source's locks go into escrow under this cookie (L8); none: they stay with the programs that have them.
    pub escrow: Option<Cookie>,
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

/// A mount of a volume. It is listed until nothing of it is left: it has left drained, or it is dead and fenced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mount {
    /// Its session.
    pub session: SessionId,
    /// Which.
    pub client: ClientId,
    /// Whether it lives; else its session has ended, or its process.
    pub is_live: bool,
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

    /// Gives many back. All of them are tried; the first refusal is told.
    fn release_all(
        &self,
        holdings: Vec<(ResourceId, Epoch)>,
        client: ClientId,
    ) -> Result<(), AuthorityError> {
        let release = |(resource, epoch): (ResourceId, Epoch)| self.release(&resource, client, epoch);
        holdings.into_iter().map(release).fold(Ok(()), Result::and)
    }

    /// Holdings of `client` are to stay until they are released explicitly: it is said so where holdings are listed.
    fn pin(&self, resources: &[ResourceId], client: ClientId) -> Result<(), AuthorityError> {
        let _ = (resources, client);
        Ok(())
    }

    /// Hands a set over, all of it or nothing (L6); the epoch that all of it has from then on. An authority of one session
    /// has nobody to give anything to.
    fn transfer(&self, handover: &Handover) -> Result<Epoch, AuthorityError> {
        match handover.holdings.first() {
            Some((resource, _)) => {
                let why = "this mount is alone: there is no other node".to_owned();
                Err(AuthorityError::Unavailable { resource: resource.clone(), why })
            }
            None => Ok(Epoch::NOBODY),
        }
    }

    /// `client`, of this process, has got these by a transfer of another, in `epoch`.
    fn arrived(&self, resources: &[ResourceId], client: ClientId, epoch: Epoch) {
        let _ = (resources, client, epoch);
    }

    /// Another client holds these from now on: known to this process because it had a part in it.
    fn learn(&self, resources: &[ResourceId], holding: Holding) {
        let _ = (resources, holding);
    }

    /// Who holds each of these, confirmed.
    fn holders(&self, resources: &[ResourceId]) -> Vec<Option<Holding>> {
        resources.iter().map(|resource| self.confirmed_holder(resource)).collect()
    }

    /// The current holding of `resource`.
    fn holder(&self, resource: &ResourceId) -> Option<Holding>;

    /// The current holding of `resource`, where [`Authority::holder`] may answer from what it was last told: asked when that
    /// is not what was expected.
    fn confirmed_holder(&self, resource: &ResourceId) -> Option<Holding> {
        self.holder(resource)
    }

    /// The mounts of a volume, confirmed. None if this process's own session has ended. An authority of one session knows of
    /// none that it would have to look after.
    fn mounts(&self, volume: VolumeId) -> Option<Vec<Mount>> {
        let _ = volume;
        Some(Vec::new())
    }

    /// The files of a volume that somebody owns, by inode, confirmed. None if this process's own session has ended.
    fn owned(&self, volume: VolumeId) -> Option<Vec<(u64, Holding)>> {
        let _ = volume;
        Some(Vec::new())
    }

    /// Where `session` stands. An authority that knows only its own session takes all others to be over: it has proved
    /// that when it began.
    fn standing(&self, session: SessionId) -> Standing {
        if session == self.session() { Standing::Live } else { Standing::Fenced }
    }
}
