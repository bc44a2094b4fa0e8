//! Handing a set of resources over, with a way back until it is done (L6, L7).

use std::sync::mpsc::sync_channel;
use std::time::Duration;

use super::error::ClientError;
use super::lock_client::{LockClient, refused};
use crate::ids::{ClientId, Epoch, ResourceId};
use crate::machine::{AbortOutcome, Cookie, Move, Operation, Reply, decode_reply};
use crate::random::{Random, SystemRandom};

/// A set that is to change hands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Set {
    /// Under which locks go into escrow.
    pub cookie: Cookie,
    /// What moves.
    pub moves: Vec<Move>,
    /// Whether the source's locks go into escrow for the target (L8).
    pub escrow: bool,
    /// Whether the target keeps them until they are released explicitly.
    pub pinned: bool,
}

/// What became of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transferred {
    /// The set is the target's, in this epoch.
    Done(Epoch),
    /// It took too long and was aborted: it has not been applied, and never will be. The source goes on.
    Aborted,
}

impl LockClient {
    /// A cookie for a transfer, drawn at random.
    #[must_use]
    pub fn cookie(&self) -> Cookie {
        let mut bytes = [0; 16];
        SystemRandom.fill(&mut bytes);
        Cookie(u128::from_le_bytes(bytes))
    }

    /// Hands `set` over, all or nothing. If that takes longer than `within`, it is aborted; whichever is applied first
    /// wins, and the answer is certain: as long as it is not (no quorum), this waits, and the source stays paused (L7).
    ///
    /// # Errors
    /// If it is refused, nothing has moved. If the session has ended, nobody here holds anything any more.
    pub fn transfer(&self, client: ClientId, set: Set, within: Duration) -> Result<Transferred, ClientError> {
        let inner = &self.inner;
        let slot = inner.slot(client)?;
        let (of, sequence) = (slot.slot(), slot.sequence());
        let (sender, outcome) = sync_channel(4);
        let aborted = sender.clone();
        let told = Box::new(move |reply| drop(sender.send(reply)));
        let Set { cookie, moves, escrow, pinned } = set;
        inner.operate_in(slot, client, Operation::Transfer { cookie, moves, escrow, pinned }, told)?;
        match outcome.recv_timeout(within) {
            // Without a quorum the command goes on in the background: it must be aborted like a slow one.
            Ok(Err(ClientError::NoQuorum(_))) | Err(_) => {}
            Ok(reply) => return transferred(reply),
        }
        loop {
            let told = aborted.clone();
            inner.operate(
                client,
                Operation::Abort { slot: of, sequence },
                Box::new(move |reply| drop(told.send(reply))),
            )?;
            match outcome.recv().map_err(|_| ClientError::Closed)? {
                Ok(Reply::Abort(AbortOutcome::Aborted)) => return Ok(Transferred::Aborted),
                Ok(Reply::Abort(AbortOutcome::Applied(reply))) => {
                    return transferred(Ok(decode_reply(&reply)?));
                }
                Err(ClientError::NoQuorum(why)) => {
                    tracing::warn!(%client, %why, "whether the transfer was applied is not known; asking again");
                }
                reply => return transferred(reply),
            }
        }
    }

    /// Takes the locks over that came with a transfer to this client (L8). Returns how many there were.
    ///
    /// # Errors
    /// If there are none under the cookie.
    pub fn adopt(
        &self,
        client: ClientId,
        cookie: Cookie,
        resource: &ResourceId,
        to: Option<u64>,
    ) -> Result<u64, ClientError> {
        match self.operate(client, Operation::Adopt { cookie, resource: resource.clone(), to })? {
            Reply::Escrow { locks } => Ok(locks),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Drops the locks that came with a transfer to this client's session (L8). Returns how many there were.
    ///
    /// # Errors
    /// If there are none under the cookie.
    pub fn drop_escrow(
        &self,
        client: ClientId,
        cookie: Cookie,
        resource: &ResourceId,
    ) -> Result<u64, ClientError> {
        match self.operate(client, Operation::DropEscrow { cookie, resource: resource.clone() })? {
            Reply::Escrow { locks } => Ok(locks),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Gives `holdings` of `client` back, many at a time. All of them are tried; the first refusal is told.
    ///
    /// # Errors
    /// If one of them is refused.
    pub fn release_all(
        &self,
        client: ClientId,
        holdings: Vec<(ResourceId, Epoch)>,
    ) -> Result<(), ClientError> {
        let (sender, outcomes) = sync_channel(holdings.len());
        let mut count = 0;
        for (resource, epoch) in holdings {
            let told = sender.clone();
            let told = Box::new(move |reply: Result<Reply, ClientError>| drop(told.send(reply)));
            self.inner.operate(client, Operation::Release { resource, epoch }, told)?;
            count += 1;
        }
        let mut result = Ok(());
        for _ in 0..count {
            let outcome = outcomes.recv().map_err(|_| ClientError::Closed)?;
            result = result.and(outcome.and_then(refused).map(drop));
        }
        result
    }
}

fn transferred(reply: Result<Reply, ClientError>) -> Result<Transferred, ClientError> {
    match reply.map(|reply| match reply {
        Reply::Refused(crate::machine::Refusal::Aborted) => Ok(Transferred::Aborted),
        reply => refused(reply).and_then(|reply| match reply {
            Reply::Transferred { epoch } => Ok(Transferred::Done(epoch)),
            _ => Err(ClientError::Unexpected),
        }),
    }) {
        Ok(outcome) => outcome,
        Err(error) => Err(error),
    }
}
