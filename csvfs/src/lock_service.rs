//! File locks, as a front end asks for them: kept in this process, or by the cluster.

use std::fmt::Debug;

use lockd::ids::{ClientId, Ticket};
use lockd::locks::{ByteRange, Conflict, FileLocks, LockError, LockOwner, LockRequest, OnLockReply};

/// What is called when an unlock is done, once, on any thread; it must not block.
pub type OnUnlocked = Box<dyn FnOnce(Result<(), LockError>) + Send>;
/// What is called with the lock that is in the way, if any; as [`OnUnlocked`].
pub type OnTested = Box<dyn FnOnce(Result<Option<Conflict>, LockError>) + Send>;

/// The file locks of a volume, by inode number. No method waits.
pub trait LockService: Send + Sync + Debug {
    /// Asks for a lock. `on_reply` is called exactly once, possibly before this returns. What is returned cancels the
    /// waiting, if the request may wait.
    fn set(&self, ino: u64, request: LockRequest, wait: bool, on_reply: OnLockReply) -> Option<Ticket>;

    /// Ends the waiting of a request, whose callback then gets [`LockError::Interrupted`], unless it has been answered.
    fn cancel(&self, ticket: Ticket);

    /// The first lock that keeps `request` from being granted, if any (`F_GETLK`).
    fn test(&self, ino: u64, request: LockRequest, on_tested: OnTested);

    /// Ends what `owner` holds of `range`.
    fn unlock(&self, ino: u64, owner: LockOwner, range: ByteRange, on_unlocked: OnUnlocked);

    /// Ends all that `owner` holds on `ino`; its requests that wait (other threads) wait on.
    fn release_owner(&self, ino: u64, owner: LockOwner, on_unlocked: OnUnlocked);

    /// Ends all locks and waiting requests of `client`.
    fn end_client(&self, client: ClientId);
}

impl LockService for FileLocks {
    fn set(&self, ino: u64, request: LockRequest, wait: bool, on_reply: OnLockReply) -> Option<Ticket> {
        Self::set(self, ino, request, wait, on_reply)
    }

    fn cancel(&self, ticket: Ticket) {
        Self::cancel(self, ticket);
    }

    fn test(&self, ino: u64, request: LockRequest, on_tested: OnTested) {
        on_tested(Ok(Self::test(self, ino, request)));
    }

    fn unlock(&self, ino: u64, owner: LockOwner, range: ByteRange, on_unlocked: OnUnlocked) {
        on_unlocked(Self::unlock(self, ino, owner, range));
    }

    fn release_owner(&self, ino: u64, owner: LockOwner, on_unlocked: OnUnlocked) {
        Self::release_owner(self, ino, owner);
        on_unlocked(Ok(()));
    }

    fn end_client(&self, client: ClientId) {
        Self::end_client(self, client);
    }
}
