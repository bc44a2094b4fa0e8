//! Requests to one other voter, as openraft makes them.

use std::sync::Arc;
use std::time::Duration;

use openraft::SnapshotSegmentId;
use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, SnapshotMismatch, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};

use super::StorageId;
use super::contacts::Contacts;
use super::log::Log;
use super::types::{TypeConfig, Voter};
use super::wire::{Answer, Ask, Reply, Request};
use crate::ids::{NodeId, NodeName};
use crate::peers::{Channel, PeerError, Peers};

/// How long a voter that could not be reached is left alone.
const BACKOFF: Duration = Duration::from_millis(100);

/// What every request needs.
#[derive(Clone, Debug)]
pub(super) struct Network {
    pub(super) peers: Arc<dyn Peers>,
    pub(super) storage: StorageId,
    pub(super) contacts: Arc<Contacts>,
    pub(super) log: Log,
    /// Whether this node leads with a quorum at the moment.
    pub(super) quorum: Arc<std::sync::atomic::AtomicBool>,
}

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("{0}")]
    Refused(String),
    #[error("node {node} answered: {why}")]
    Failed { node: NodeName, why: String },
    #[error("node {0} answered something else than what it was asked")]
    Nonsense(NodeName),
}

impl Network {
    /// Asks `to`, which is expected to have directory `expected`.
    pub(super) async fn ask(
        &self,
        to: &NodeName,
        expected: Option<StorageId>,
        ask: Ask,
        timeout: Duration,
    ) -> Result<Reply, AskError> {
        let quorum = self.quorum.load(std::sync::atomic::Ordering::Relaxed);
        let frame = Request { storage: self.storage, expected, quorum, ask }.encode();
        let frame = self.peers.request(to, Channel::Raft, frame, timeout).await?;
        let reply = Reply::decode(&frame).map_err(|_| AskError::Nonsense(to.clone()))?;
        if let Some(expected) = expected
            && reply.storage != expected
        {
            return Err(AskError::Refused(lost_directory(to, expected, reply.storage)));
        }
        match reply.answer {
            Answer::Refused(why) => Err(AskError::Refused(why)),
            Answer::Failed(why) => Err(AskError::Failed { node: to.clone(), why }),
            _ => Ok(reply),
        }
    }
}

/// What to say of a voter whose directory is not the one that the cluster knows it by.
pub(super) fn lost_directory(node: &NodeName, known: StorageId, found: StorageId) -> String {
    format!(
        "voter {node} is refused: the cluster knows it by directory {known}, and it has directory {found}. If its \
         directory is lost, run `lockctl voters rejoin {node}`; otherwise start it with the right --data"
    )
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: NodeId, node: &Voter) -> Link {
        Link { network: self.clone(), target, voter: node.clone() }
    }
}

/// Requests to one other voter.
#[derive(Debug)]
pub(super) struct Link {
    network: Network,
    target: NodeId,
    voter: Voter,
}

type Failure<E = openraft::error::Infallible> = RPCError<NodeId, Voter, RaftError<NodeId, E>>;

impl Link {
    async fn ask<E: std::error::Error>(
        &self,
        ask: Ask,
        option: &RPCOption,
        acknowledges: impl FnOnce(&Answer) -> bool,
    ) -> Result<Answer, Failure<E>> {
        let sent = self.network.contacts.now();
        let (to, expected) = (&self.voter.name, Some(self.voter.storage));
        match self.network.ask(to, expected, ask, option.hard_ttl()).await {
            Ok(reply) => {
                self.network.contacts.answered(self.target, sent, acknowledges(&reply.answer));
                Ok(reply.answer)
            }
            Err(error) => {
                self.network.contacts.failed(self.target, error.to_string());
                Err(match error {
                    AskError::Peer(PeerError::TimedOut { .. }) => {
                        RPCError::Network(NetworkError::new(&error))
                    }
                    error => RPCError::Unreachable(Unreachable::new(&error)),
                })
            }
        }
    }

    fn nonsense<E: std::error::Error>(&self) -> Failure<E> {
        RPCError::Unreachable(Unreachable::new(&AskError::Nonsense(self.voter.name.clone())))
    }
}

impl RaftNetwork<TypeConfig> for Link {
    async fn append_entries(
        &mut self,
        mut rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, Failure> {
        // Promise 2 of `super::log`.
        rpc.leader_commit = rpc.leader_commit.and_then(|commit| self.network.log.durable_up_to(commit));
        let last = rpc.entries.last().map(|entry| entry.log_id).or(rpc.prev_log_id);
        let answer = self
            .ask(Ask::Append(rpc), &option, |answer| {
                !matches!(answer, Answer::Append(AppendEntriesResponse::HigherVote(_)))
            })
            .await?;
        let Answer::Append(response) = answer else { return Err(self.nonsense()) };
        if let Some(last) = last
            && matches!(response, AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_))
        {
            // Promise 1 of `super::log`.
            let serial = self.network.log.serial_of(last.index);
            self.network
                .log
                .durable(serial)
                .await
                .map_err(|why| RPCError::Unreachable(Unreachable::new(&std::io::Error::other(why))))?;
        }
        Ok(response)
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<NodeId>, Failure<InstallSnapshotError>> {
        match self.ask(Ask::Snapshot(rpc), &option, |_| false).await? {
            Answer::Snapshot(vote) => Ok(InstallSnapshotResponse { vote }),
            Answer::Mismatch { expected, got } => {
                let segment = |(id, offset): (String, u64)| SnapshotSegmentId { id, offset };
                let mismatch = SnapshotMismatch { expect: segment(expected), got: segment(got) };
                let error = RaftError::APIError(InstallSnapshotError::SnapshotMismatch(mismatch));
                Err(RPCError::RemoteError(RemoteError::new(self.target, error)))
            }
            _ => Err(self.nonsense()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, Failure> {
        match self.ask(Ask::Vote(rpc), &option, |_| false).await? {
            Answer::Vote(vote) => Ok(vote),
            _ => Err(self.nonsense()),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}
