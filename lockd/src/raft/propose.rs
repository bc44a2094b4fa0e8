//! Commands on their way into the log: those that come at the same time share an entry.

use std::sync::Arc;

use openraft::error::{ClientWriteError, Fatal};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::types::{Batch, Proposed, Raft};
use super::{Machine, ProposeError, state::State};
use crate::ids::NodeName;

/// The largest command in bytes.
pub(super) const COMMAND_MAX: usize = 4 << 20;
/// How many commands may wait.
pub(super) const QUEUE: usize = 8192;
/// How many commands share an entry at most...
const BATCH: usize = 512;
/// ... and from how many bytes on no more are added.
const BATCH_BYTES: usize = 512 << 10;
/// How many entries are on their way at once: one is being synced while the next fills.
const IN_FLIGHT: usize = 2;
/// The places that one entry leaves for others.
const OTHERS: u32 = 1;
const _: () = assert!(OTHERS as usize + 1 == IN_FLIGHT);

type Answer = Result<Proposed, ProposeError>;

/// A command that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) command: Vec<u8>,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// Runs until the sender is dropped.
pub(super) async fn run<M: Machine>(raft: Raft, state: State<M>, mut queue: mpsc::Receiver<Waiting>) {
    let places = Arc::new(Semaphore::new(IN_FLIGHT));
    while let Some(first) = queue.recv().await {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let alone = if state.time().is_broken() {
            let Ok(all_others) = places.clone().acquire_many_owned(OTHERS).await else { return };
            Some(all_others)
        } else {
            None
        };
        // Whoever was answered together asks again together: let them.
        tokio::task::yield_now().await;
        let mut bytes = first.command.len();
        let (mut commands, mut answers) = (vec![first.command], vec![first.answer]);
        while commands.len() < BATCH
            && bytes < BATCH_BYTES
            && let Ok(next) = queue.try_recv()
        {
            bytes += next.command.len();
            commands.push(next.command);
            answers.push(next.answer);
        }
        let stamp = state.time().next(commands.len() as u64, alone.is_some());
        let batch = Batch { stamp, commands: Arc::new(commands) };
        // Handed over here, in order; awaited elsewhere.
        let submitted = raft.client_write_ff(batch).await;
        drop(alone);
        let (raft, state) = (raft.clone(), state.clone());
        tokio::spawn(async move {
            let outcome = match submitted {
                Ok(written) => match written.await {
                    Ok(Ok(written)) => Ok(written.data.0),
                    Ok(Err(error)) => Err(refusal(error)),
                    Err(_) => Err(ProposeError::Stopped(stop_reason(&raft))),
                },
                Err(Fatal::Stopped | Fatal::Panicked | Fatal::StorageError(_)) => {
                    Err(ProposeError::Stopped(stop_reason(&raft)))
                }
            };
            if outcome.is_err() {
                state.time().lost();
            }
            drop(place);
            tell(answers, outcome);
        });
    }
}

fn tell(answers: Vec<oneshot::Sender<Answer>>, outcome: Result<Vec<Proposed>, ProposeError>) {
    // Whoever does not listen any more has been told that the outcome is unknown.
    match outcome {
        Ok(replies) => {
            answers.into_iter().zip(replies).for_each(|(answer, reply)| drop(answer.send(Ok(reply))))
        }
        Err(error) => answers.into_iter().for_each(|answer| drop(answer.send(Err(error.clone())))),
    }
}

/// Why the consensus has ended.
pub(super) fn stop_reason(raft: &Raft) -> String {
    match &raft.metrics().borrow().running_state {
        Ok(()) | Err(Fatal::Stopped) => "it was shut down".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn refusal(error: ClientWriteError<crate::ids::NodeId, super::types::Voter>) -> ProposeError {
    match error {
        ClientWriteError::ForwardToLeader(to) => ProposeError::NotLeader(leader_name(to.leader_node)),
        // Not for a command; said all the same.
        ClientWriteError::ChangeMembershipError(error) => ProposeError::Stopped(error.to_string()),
    }
}

/// The name of the leader that openraft points to.
pub(super) fn leader_name(leader: Option<super::types::Voter>) -> Option<NodeName> {
    leader.map(|voter| voter.name)
}
