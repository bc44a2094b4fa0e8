//! File locks that hold on every node: kept by lockd.

use std::sync::Arc;

use lockd::client::{LockClient, LockHandle};
use lockd::ids::{ClientId, ResourceId, Ticket, VolumeId};
use lockd::locks::{ByteRange, LockError, LockOwner, LockRequest, OnLockReply};

use crate::lock_service::{LockService, OnTested, OnUnlocked};

/// The locks of a volume's files, under the volume's resources.
#[derive(Debug)]
pub struct ClusterLocks {
    client: Arc<LockClient>,
    volume: VolumeId,
}

impl ClusterLocks {
    /// Those of `volume`, asked for by `client`.
    #[must_use]
    pub fn new(client: &Arc<LockClient>, volume: VolumeId) -> Self {
        Self { client: Arc::clone(client), volume }
    }

    fn file(&self, ino: u64) -> ResourceId {
        ResourceId::File(self.volume, ino)
    }
}

impl LockService for ClusterLocks {
    fn set(&self, ino: u64, request: LockRequest, wait: bool, on_reply: OnLockReply) -> Option<Ticket> {
        let handle = self.client.set_lock(&self.file(ino), request, wait, on_reply);
        wait.then_some(Ticket(handle.0))
    }

    fn cancel(&self, ticket: Ticket) {
        self.client.cancel_lock(LockHandle(ticket.0));
    }

    fn test(&self, ino: u64, request: LockRequest, on_tested: OnTested) {
        let asking = request.owner.client;
        self.client.test_lock_async(&self.file(ino), request, move |tested| {
            on_tested(tested.map_err(|error| {
                tracing::warn!(%error, "who holds a lock could not be asked");
                LockError::ClientEnded(asking)
            }));
        });
    }

    fn unlock(&self, ino: u64, owner: LockOwner, range: ByteRange, on_unlocked: OnUnlocked) {
        self.client.unlock_async(&self.file(ino), owner, range, on_unlocked);
    }

    fn release_owner(&self, ino: u64, owner: LockOwner, on_unlocked: OnUnlocked) {
        self.client.release_owner_async(&self.file(ino), owner, on_unlocked);
    }

    /// They end with the client, when it leaves.
    fn end_client(&self, _client: ClientId) {}
}
