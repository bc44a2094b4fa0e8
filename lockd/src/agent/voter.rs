//! The replicated state on this node, where it is a voter.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

use super::control::Told;
use super::replica::Replica;
use crate::failpoint;
use crate::ids::NodeName;
use crate::local::message::VotersChange;
use crate::machine::{Answer, Command, EventIndex, Operation, Query, decode_command};
use crate::raft::{MembershipError, ProposeError, RaftNode};

/// The replicated state on this node, and how far its events go.
#[derive(Debug)]
pub(super) struct Voter {
    pub(super) raft: RaftNode<Replica>,
    last_event: watch::Receiver<EventIndex>,
}

impl Voter {
    pub(super) fn new(raft: RaftNode<Replica>) -> Self {
        let (sender, last_event) = watch::channel(EventIndex::default());
        let mut applied = raft.subscribe();
        let watched = raft.clone();
        tokio::spawn(async move {
            while let Ok(()) | Err(RecvError::Lagged(_)) = applied.recv().await.map(drop) {
                let last = last_event_of(&watched);
                sender.send_if_modified(|known| std::mem::replace(known, last) != last);
            }
        });
        Self { raft, last_event }
    }

    /// Has a command applied.
    pub(super) async fn propose(&self, command: Vec<u8>) -> Told {
        let moves = failpoint::is_on() && is_transfer(&command);
        if moves {
            failpoint::reached("lockd.transfer.received");
        }
        match self.raft.propose(command).await {
            Ok(proposed) => {
                if moves {
                    failpoint::reached("lockd.transfer.applied");
                }
                Told::Replied(proposed.reply)
            }
            Err(error) => told(error),
        }
    }

    /// What the state says, the leader having been confirmed (L4).
    pub(super) async fn query(&self, query: &Query) -> Told {
        match self.raft.read(|replica| replica.state.query(query)).await {
            Ok(answer) => Told::Answer(answer),
            Err(error) => told(error),
        }
    }

    /// Changes the voters.
    pub(super) async fn change(&self, change: &VotersChange) -> Told {
        let status = self.raft.status();
        let voters = status.voters.iter().filter(|voter| voter.voter).map(|voter| voter.node.clone());
        let mut voters: BTreeSet<NodeName> = voters.collect();
        let changed = match change {
            VotersChange::Add(node) => {
                voters.insert(node.clone());
                self.raft.change_voters(&voters).await
            }
            VotersChange::Remove(node) => {
                voters.remove(node);
                self.raft.change_voters(&voters).await
            }
            VotersChange::Rejoin(node) => self.raft.rejoin(node).await,
        };
        match changed {
            Ok(()) => Told::Done,
            Err(MembershipError::Propose(error)) => told(error),
            Err(error) => Told::Refused(error.to_string()),
        }
    }

    /// The events after an index, as far as they are known here, when there are some or after `wait`. They are facts,
    /// whoever leads by now.
    pub(super) async fn events(&self, after: EventIndex, wait: Duration) -> Answer {
        let mut last = self.last_event.clone();
        // On time-out there are none, which is an answer.
        let _ = tokio::time::timeout(wait, last.wait_for(|last| *last > after)).await;
        self.raft.peek(|replica| replica.state.query(&Query::Events { after }))
    }
}

fn is_transfer(command: &[u8]) -> bool {
    matches!(decode_command(command), Ok(Command::Client { operation: Operation::Transfer { .. }, .. }))
}

fn last_event_of(raft: &RaftNode<Replica>) -> EventIndex {
    raft.peek(|replica| match replica.state.query(&Query::Status) {
        Answer::Status { last_event, .. } => last_event,
        _ => EventIndex::default(),
    })
}

/// An outcome of the consensus in the words of the control channel.
pub(super) fn told(error: ProposeError) -> Told {
    match error {
        ProposeError::NotLeader(leader) => Told::NotLeader(leader),
        ProposeError::NoQuorum { .. } | ProposeError::Busy { .. } => Told::NoQuorum(error.to_string()),
        ProposeError::Unknown { .. } | ProposeError::Stopped(_) => Told::Unknown(error.to_string()),
        ProposeError::TooLarge { .. } => Told::Refused(error.to_string()),
    }
}
