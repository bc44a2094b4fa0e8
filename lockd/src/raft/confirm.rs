//! Rule L4: asking a quorum whether this node still leads, once for all who ask at the same time.

use std::time::Duration;

use openraft::error::{CheckIsLeaderError, RaftError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use super::ProposeError;
use super::propose::{leader_name, stop_reason};
use super::types::Raft;

/// How many may wait for a confirmation.
pub(super) const QUEUE: usize = 65_536;
/// The pause before a quorum that did not answer is asked again.
const PAUSE: Duration = Duration::from_millis(20);

pub(super) type Answer = Result<(), ProposeError>;

/// Runs until the sender is dropped. A round begins after each of its callers has called, so that what it confirms
/// holds for all of them.
pub(super) async fn run(raft: Raft, patience: Duration, mut queue: mpsc::Receiver<oneshot::Sender<Answer>>) {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, QUEUE).await > 0 {
        let mut asked = std::mem::take(&mut waiting);
        let deadline = Instant::now() + patience;
        let outcome = loop {
            match ask(&raft, deadline).await {
                Err(ProposeError::NoQuorum { .. }) if Instant::now() + PAUSE < deadline => {
                    sleep(PAUSE).await;
                    // Those who came meanwhile are asked for by the next attempt as well.
                    while let Ok(another) = queue.try_recv() {
                        asked.push(another);
                    }
                }
                outcome => break outcome,
            }
        };
        for answer in asked {
            // Whoever does not listen any more does not need it.
            let _ = answer.send(outcome.clone());
        }
    }
}

async fn ask(raft: &Raft, deadline: Instant) -> Answer {
    let silent = || ProposeError::NoQuorum {
        silent: Duration::from_millis(raft.metrics().borrow().millis_since_quorum_ack.unwrap_or(0)),
    };
    match timeout_at(deadline, raft.ensure_linearizable()).await {
        Err(_) => Err(silent()),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to)))) => {
            Err(ProposeError::NotLeader(leader_name(to.leader_node)))
        }
        Ok(Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_)))) => Err(silent()),
        Ok(Err(RaftError::Fatal(_))) => Err(ProposeError::Stopped(stop_reason(raft))),
    }
}
