//! Handing a set of resources over, with a way back until it is done (L6, L7).

use std::sync::mpsc::sync_channel;
use std::time::Duration;

use super::error::ClientError;
use super::lock_client::{LockClient, refused};
use crate::ids::{ClientId, Epoch, ResourceId};
use crate::machine::{AbortOutcome, Cookie, Move, Operation, Reply, decode_reply};
use crate::random::{Random, SystemRandom};

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

    /// Hands `moves` over, all or nothing. If that takes longer than `within`, it is aborted; whichever is applied first
    /// wins, and the answer is certain: as long as it is not (no quorum), this waits, and the source stays paused (L7).
    ///
    /// # Errors
    /// If it is refused, nothing has moved. If the session has ended, nobody here holds anything any more.
    pub fn transfer(
        &self,
        client: ClientId,
        cookie: Cookie,
        moves: Vec<Move>,
        escrow: bool,
        within: Duration,
    ) -> Result<Transferred, ClientError> {
        let inner = &self.inner;
        let slot = inner.slot(client)?;
        let (of, sequence) = (slot.slot(), slot.sequence());
        let (sender, outcome) = sync_channel(4);
        let aborted = sender.clone();
        let told = Box::new(move |reply| drop(sender.send(reply)));
        inner.operate_in(slot, client, Operation::Transfer { cookie, moves, escrow }, told)?;
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
