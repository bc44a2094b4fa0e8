//! File locks through the cluster, with callbacks for whoever waits.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use parking_lot::Mutex;

use super::error::ClientError;
use super::lock_client::LockClient;
use super::upcalls::Upcalls;
use crate::ids::{ClientId, GrantId, ResourceId, Ticket};
use crate::locks::{
    ByteRange, Conflict, LockError, LockOutcome, LockOwner, LockReply, LockRequest, LockState, OnLockReply,
};
use crate::machine::{Answer, LockInfo, Operation, Query, Refusal, Reply};

/// How many decisions may come before the replies that name their tickets.
const EARLY_MAX: usize = 4096;

/// A lock request that may be waiting; by it the waiting is cancelled.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LockHandle(pub u64);

/// The lock requests that are not answered yet.
#[derive(Default)]
pub(super) struct LockWaits {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    waits: BTreeMap<LockHandle, Wait>,
    tickets: BTreeMap<Ticket, LockHandle>,
    /// Decisions about tickets that no reply has named yet.
    early: BTreeMap<Ticket, LockReply>,
}

struct Wait {
    request: LockRequest,
    on_reply: OnLockReply,
    ticket: Option<Ticket>,
    cancelled: bool,
}

impl fmt::Debug for LockWaits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("LockWaits").field("waits", &state.waits.len()).finish_non_exhaustive()
    }
}

fn answer(upcalls: &Upcalls, wait: Wait, reply: LockReply) {
    let on_reply = wait.on_reply;
    upcalls.call(Box::new(move || on_reply(reply)));
}

impl State {
    fn take(&mut self, handle: LockHandle) -> Option<Wait> {
        let wait = self.waits.remove(&handle)?;
        if let Some(ticket) = wait.ticket {
            self.tickets.remove(&ticket);
        }
        if self.waits.is_empty() {
            self.early.clear();
        }
        Some(wait)
    }
}

impl LockWaits {
    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().waits.is_empty()
    }

    pub(super) fn clients_waiting(&self) -> BTreeSet<ClientId> {
        self.state.lock().waits.values().map(|wait| wait.request.owner.client).collect()
    }

    fn begin(&self, request: LockRequest, on_reply: OnLockReply) -> LockHandle {
        let mut state = self.state.lock();
        state.last += 1;
        let handle = LockHandle(state.last);
        state.waits.insert(handle, Wait { request, on_reply, ticket: None, cancelled: false });
        handle
    }

    /// The request is answered.
    fn finish(&self, handle: LockHandle, reply: LockReply, upcalls: &Upcalls) {
        let wait = self.state.lock().take(handle);
        if let Some(wait) = wait {
            answer(upcalls, wait, reply);
        }
    }

    /// The request waits under `ticket`. Returns whether it is to be cancelled at once.
    fn waiting(&self, handle: LockHandle, ticket: Ticket, upcalls: &Upcalls) -> bool {
        let (wait, reply) = {
            let mut state = self.state.lock();
            let Some(reply) = state.early.remove(&ticket) else {
                let Some(wait) = state.waits.get_mut(&handle) else { return false };
                wait.ticket = Some(ticket);
                let cancelled = wait.cancelled;
                state.tickets.insert(ticket, handle);
                return cancelled;
            };
            (state.take(handle), reply)
        };
        if let Some(wait) = wait {
            answer(upcalls, wait, reply);
        }
        false
    }

    /// The cluster has decided about a ticket.
    pub(super) fn decided(&self, ticket: Ticket, reply: LockReply, upcalls: &Upcalls) {
        let wait = {
            let mut state = self.state.lock();
            match state.tickets.get(&ticket).copied() {
                Some(handle) => state.take(handle),
                None => {
                    if !state.waits.is_empty() && state.early.len() < EARLY_MAX {
                        state.early.insert(ticket, reply);
                    }
                    None
                }
            }
        };
        if let Some(wait) = wait {
            answer(upcalls, wait, reply);
        }
    }

    /// Looks at what `client` holds and waits for, after events were lost.
    pub(super) fn reconcile(&self, client: ClientId, locks: &[LockInfo], upcalls: &Upcalls) {
        let mut waiting = BTreeSet::new();
        let mut held: BTreeMap<LockOwner, Vec<(LockRequest, GrantId)>> = BTreeMap::new();
        for info in locks {
            let lock = info.listed.lock;
            match info.listed.state {
                LockState::Waiting(ticket) => drop(waiting.insert(ticket)),
                LockState::Held(grant) => held.entry(lock.owner).or_default().push((lock, grant)),
            }
        }
        let decided: Vec<(Wait, LockReply)> = {
            let mut state = self.state.lock();
            let gone = state.waits.iter().filter(|(_, wait)| {
                wait.request.owner.client == client
                    && wait.ticket.is_some_and(|ticket| !waiting.contains(&ticket))
            });
            let gone: Vec<LockHandle> = gone.map(|(handle, _)| *handle).collect();
            let waits: Vec<Wait> = gone.into_iter().filter_map(|handle| state.take(handle)).collect();
            let decide = |wait: Wait| {
                let reply = granted(&wait.request, held.get(&wait.request.owner));
                (wait, reply.ok_or(LockError::Interrupted))
            };
            waits.into_iter().map(decide).collect()
        };
        for (wait, reply) in decided {
            answer(upcalls, wait, reply);
        }
    }

    /// Nothing of `client` waits any more.
    pub(super) fn end_client(&self, client: ClientId, upcalls: &Upcalls) {
        let ended: Vec<Wait> = {
            let mut state = self.state.lock();
            let of_client = state.waits.iter().filter(|(_, wait)| wait.request.owner.client == client);
            let handles: Vec<LockHandle> = of_client.map(|(handle, _)| *handle).collect();
            handles.into_iter().filter_map(|handle| state.take(handle)).collect()
        };
        for wait in ended {
            answer(upcalls, wait, Err(LockError::ClientEnded(client)));
        }
    }
}

/// The grant by which `request` is held, if it is: the newest of those that cover its bytes.
fn granted(request: &LockRequest, held: Option<&Vec<(LockRequest, GrantId)>>) -> Option<GrantId> {
    let overlapping = held?.iter().filter(|(lock, _)| lock.range.overlaps(request.range));
    overlapping.filter(|(lock, _)| lock.mode == request.mode).map(|(_, grant)| *grant).max()
}

/// Why a lock was not granted, when the cluster did not even look at it.
fn lock_error(client: ClientId, error: &ClientError) -> LockError {
    match error {
        ClientError::Refused(refusal) => match **refusal {
            Refusal::Lock(error) => error,
            _ => LockError::ClientEnded(client),
        },
        ClientError::SessionEnded(_) | ClientError::Closed => LockError::ClientEnded(client),
        _ => LockError::Interrupted,
    }
}

impl LockClient {
    /// Asks for a lock of a file. `on_reply` is called exactly once: with the grant, or with why there is none. It runs
    /// on the thread of the callbacks, may block, and may use this client; it must not wait for another lock.
    pub fn set_lock(
        &self,
        resource: &ResourceId,
        request: LockRequest,
        wait: bool,
        on_reply: OnLockReply,
    ) -> LockHandle {
        let client = request.owner.client;
        let handle = self.inner.waits.begin(request, on_reply);
        let operation = Operation::Lock { resource: resource.clone(), request, wait };
        let inner = std::sync::Arc::clone(&self.inner);
        let replied = Box::new(move |reply: Result<Reply, ClientError>| {
            match reply.and_then(super::lock_client::refused) {
                Ok(Reply::Lock(LockOutcome::Granted(grant))) => {
                    inner.waits.finish(handle, Ok(grant), &inner.upcalls);
                }
                Ok(Reply::Lock(LockOutcome::Refused(error))) => {
                    inner.waits.finish(handle, Err(error), &inner.upcalls);
                }
                Ok(Reply::Lock(LockOutcome::Waiting(ticket))) => {
                    if inner.waits.waiting(handle, ticket, &inner.upcalls) {
                        let again = std::sync::Arc::clone(&inner);
                        inner.upcalls.call(Box::new(move || cancel_ticket(&again, client, ticket)));
                    }
                }
                Ok(_) => inner.waits.finish(handle, Err(LockError::Interrupted), &inner.upcalls),
                Err(error) => {
                    if !matches!(error, ClientError::Refused(_)) {
                        tracing::warn!(%client, %error, "a lock request was not answered");
                    }
                    inner.waits.finish(handle, Err(lock_error(client, &error)), &inner.upcalls);
                }
            }
        });
        if let Err(error) = self.inner.operate(client, operation, replied) {
            self.inner.waits.finish(handle, Err(lock_error(client, &error)), &self.inner.upcalls);
        }
        handle
    }

    /// Ends the waiting of a request, whose callback then gets [`LockError::Interrupted`], unless it was decided before
    /// the cluster heard of it. False if it has been answered already.
    pub fn cancel_lock(&self, handle: LockHandle) -> bool {
        let (client, ticket) = {
            let mut state = self.inner.waits.state.lock();
            let Some(wait) = state.waits.get_mut(&handle) else { return false };
            wait.cancelled = true;
            (wait.request.owner.client, wait.ticket)
        };
        if let Some(ticket) = ticket {
            cancel_ticket(&self.inner, client, ticket);
        }
        true
    }

    /// The first lock that keeps `request` from being granted, if any (`F_GETLK`).
    ///
    /// # Errors
    /// If there is no quorum, or no answer in time.
    pub fn test_lock(
        &self,
        resource: &ResourceId,
        request: LockRequest,
    ) -> Result<Option<Conflict>, ClientError> {
        match self.query(Query::Test { resource: resource.clone(), request })? {
            Answer::Test(conflict) => Ok(conflict),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// As [`LockClient::test_lock`], without waiting: `on_reply` is called once, on the connection's thread, and must not
    /// block.
    pub fn test_lock_async(
        &self,
        resource: &ResourceId,
        request: LockRequest,
        on_reply: impl FnOnce(Result<Option<Conflict>, ClientError>) + Send + 'static,
    ) {
        let query = Query::Test { resource: resource.clone(), request };
        self.inner.query_async(
            query,
            Box::new(move |answer| {
                on_reply(answer.and_then(|answer| match answer {
                    Answer::Test(conflict) => Ok(conflict),
                    _ => Err(ClientError::Unexpected),
                }));
            }),
        );
    }

    /// As [`LockClient::unlock`] of all grants, without waiting: `on_reply` is called once, on the connection's thread, and
    /// must not block.
    pub fn unlock_async(
        &self,
        resource: &ResourceId,
        owner: LockOwner,
        range: ByteRange,
        on_reply: impl FnOnce(Result<(), LockError>) + Send + 'static,
    ) {
        let operation = Operation::Unlock { resource: resource.clone(), owner, range, grant: None };
        self.ended_async(owner.client, operation, on_reply);
    }

    /// As [`LockClient::release_owner`], without waiting: `on_reply` is called once, on the connection's thread, and must
    /// not block.
    pub fn release_owner_async(
        &self,
        resource: &ResourceId,
        owner: LockOwner,
        on_reply: impl FnOnce(Result<(), LockError>) + Send + 'static,
    ) {
        let operation = Operation::ReleaseOwner { resource: resource.clone(), owner };
        self.ended_async(owner.client, operation, on_reply);
    }

    fn ended_async(
        &self,
        client: ClientId,
        operation: Operation,
        on_reply: impl FnOnce(Result<(), LockError>) + Send + 'static,
    ) {
        let on_reply = std::sync::Arc::new(Mutex::new(Some(on_reply)));
        let once = std::sync::Arc::clone(&on_reply);
        let answer = move |result: Result<(), LockError>| {
            let on_reply = once.lock().take();
            if let Some(on_reply) = on_reply {
                on_reply(result);
            }
        };
        let refused_at_once = answer.clone();
        let replied = Box::new(move |reply: Result<Reply, ClientError>| {
            let ended = reply.and_then(super::lock_client::refused).map(drop);
            answer(ended.map_err(|error| lock_error(client, &error)));
        });
        if let Err(error) = self.inner.operate(client, operation, replied) {
            refused_at_once(Err(lock_error(client, &error)));
        }
    }

    /// Ends what `owner` holds of `range`; with `grant`, only what it was granted up to that one (L8).
    ///
    /// # Errors
    /// If it is refused ([`LockError::TooManyLocks`]), or its outcome is not known in time.
    pub fn unlock(
        &self,
        resource: &ResourceId,
        owner: LockOwner,
        range: ByteRange,
        grant: Option<GrantId>,
    ) -> Result<(), ClientError> {
        let resource = resource.clone();
        self.operate(owner.client, Operation::Unlock { resource, owner, range, grant }).map(drop)
    }

    /// Ends all that `owner` holds of the file: at FLUSH for a POSIX owner, at RELEASE for an open file.
    ///
    /// # Errors
    /// If its outcome is not known in time.
    pub fn release_owner(&self, resource: &ResourceId, owner: LockOwner) -> Result<(), ClientError> {
        let resource = resource.clone();
        self.operate(owner.client, Operation::ReleaseOwner { resource, owner }).map(drop)
    }
}

fn cancel_ticket(inner: &super::lock_client::Inner, client: ClientId, ticket: Ticket) {
    // Its effect comes as the event about the ticket. If it cannot be sent, the client ends.
    let _ = inner.operate(client, Operation::Cancel { ticket }, Box::new(|_| ()));
}
