//! The first voters, and every change of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::error::{
    ChangeMembershipError, ClientWriteError, InitializeError as RaftInitializeError, RaftError,
};
use tokio::time::{Instant, sleep, timeout};

use super::RaftNode;
use crate::ids::{NodeId, NodeName};
use crate::raft::network::AskError;
use crate::raft::propose::{leader_name, stop_reason};
use crate::raft::types::Voter;
use crate::raft::wire::{Answer, Ask};
use crate::raft::{InitializeError, Machine, MembershipError, ProposeError, StorageId};

/// How many voters a cluster has at most.
const VOTERS_MAX: usize = 7;
/// How long one voter is waited for.
const HELLO: Duration = Duration::from_secs(1);
/// How long a new voter may take to catch up.
const CATCH_UP: Duration = Duration::from_secs(60);
/// How far behind a new voter may be when it gets its vote.
const LAG_MAX: u64 = 64;

impl<M: Machine> RaftNode<M> {
    /// Makes the cluster, with `voters` as its first voters. May be called on each of them, at every start: when this
    /// node belongs to a cluster already, or another of the voters does (which will bring this one in, or refuse it),
    /// nothing is done.
    ///
    /// All voters must be reached once. Otherwise two of three voters that have lost their directories would begin an
    /// empty cluster, and the third would be the only one to know better.
    ///
    /// # Errors
    /// [`InitializeError::Waiting`]: call again.
    pub async fn initialize(&self, voters: &BTreeSet<NodeName>) -> Result<(), InitializeError> {
        let inner = &self.inner;
        let stopped = || InitializeError::Stopped(stop_reason(&inner.raft));
        if inner.raft.is_initialized().await.map_err(|_| stopped())? {
            return Ok(());
        }
        if !voters.contains(&inner.config.node) {
            return Err(InitializeError::NotAVoter(inner.config.node.clone()));
        }
        let mut members = BTreeMap::new();
        let mut missing = Vec::new();
        for name in voters {
            if *name == inner.config.node {
                members.insert(inner.id, Voter { name: name.clone(), storage: inner.storage });
                continue;
            }
            match self.hello(name).await {
                Ok((_, true)) => return Ok(()),
                Ok((storage, false)) => {
                    members.insert(name.id(), Voter { name: name.clone(), storage });
                }
                Err(error) => missing.push(format!("{name} ({error})")),
            }
        }
        if !missing.is_empty() {
            return Err(InitializeError::Waiting(missing));
        }
        match inner.raft.initialize(members).await {
            // Not allowed: another voter's first entry came in between.
            Ok(()) | Err(RaftError::APIError(RaftInitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(RaftInitializeError::NotInMembers(_))) => {
                Err(InitializeError::NotAVoter(inner.config.node.clone()))
            }
            Err(RaftError::Fatal(_)) => Err(stopped()),
        }
    }

    /// Makes `voters` the voters, on the leader: new ones are brought up to date first, then the change is made in two
    /// steps, in which both the old and the new majority must agree. Voters that are no longer among them are out.
    /// Calling it again is right when the outcome is unknown.
    ///
    /// # Errors
    /// Nothing has changed, or the change is under way ([`ProposeError::Unknown`]); new voters may have become
    /// learners.
    pub async fn change_voters(&self, voters: &BTreeSet<NodeName>) -> Result<(), MembershipError> {
        let _one = self.inner.changing.lock().await;
        self.change(voters).await
    }

    /// Lets voter `node` take part again after it has lost its directory: takes it out of the cluster and puts it in
    /// again with its new directory. On the leader, while a majority of the voters is well.
    ///
    /// # Errors
    /// As [`change_voters`](Self::change_voters); after an error the node may be out of the cluster, and calling it
    /// again, or `change_voters`, puts it in.
    pub async fn rejoin(&self, node: &NodeName) -> Result<(), MembershipError> {
        let _one = self.inner.changing.lock().await;
        let refuse = |why: &str| MembershipError::CannotRejoin { node: node.clone(), why: why.to_owned() };
        if *node == self.inner.config.node {
            return Err(refuse("it leads, with the directory that the cluster knows"));
        }
        self.may_propose()?;
        let (storage, _) = self.reach(node).await?;
        let mut voters = self.voter_names();
        if self.known_storage(node) == Some(storage) {
            return Err(refuse(
                "its directory is the one that the cluster knows it by; nothing is to be done",
            ));
        }
        voters.remove(node);
        if voters.is_empty() {
            return Err(refuse("it is the only voter"));
        }
        self.change(&voters).await?;
        voters.insert(node.clone());
        self.change(&voters).await
    }

    async fn hello(&self, node: &NodeName) -> Result<(StorageId, bool), AskError> {
        let reply = self.inner.network.ask(node, None, Ask::Hello, HELLO).await?;
        match reply.answer {
            Answer::Hello { initialized } => Ok((reply.storage, initialized)),
            _ => Err(AskError::Nonsense(node.clone())),
        }
    }

    async fn reach(&self, node: &NodeName) -> Result<(StorageId, bool), MembershipError> {
        self.hello(node)
            .await
            .map_err(|error| MembershipError::Unreachable { node: node.clone(), why: error.to_string() })
    }

    fn voter_names(&self) -> BTreeSet<NodeName> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let names =
            membership.voter_ids().filter_map(|id| membership.get_node(&id)).map(|voter| voter.name.clone());
        names.collect()
    }

    fn known_storage(&self, node: &NodeName) -> Option<StorageId> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow();
        metrics.membership_config.membership().get_node(&node.id()).map(|voter| voter.storage)
    }

    async fn change(&self, voters: &BTreeSet<NodeName>) -> Result<(), MembershipError> {
        if voters.is_empty() || voters.len() > VOTERS_MAX {
            return Err(MembershipError::Count(voters.len()));
        }
        self.may_propose()?;
        let present = self.voter_names();
        for name in voters.difference(&present) {
            self.teach(name).await?;
        }
        let ids: BTreeSet<NodeId> = voters.iter().map(NodeName::id).collect();
        self.submit(ChangeMembers::ReplaceAllVoters(ids)).await?;
        Ok(())
    }

    /// Makes a node a learner and waits until it has caught up.
    async fn teach(&self, name: &NodeName) -> Result<(), MembershipError> {
        let (storage, _) = self.reach(name).await?;
        let id = name.id();
        if self.known_storage(name).is_some_and(|known| known != storage) {
            // A learner that has lost its directory.
            self.submit(ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await?;
        }
        let learner = BTreeMap::from([(id, Voter { name: name.clone(), storage })]);
        self.submit(ChangeMembers::AddNodes(learner)).await?;
        let deadline = Instant::now() + CATCH_UP;
        loop {
            let behind = {
                let metrics = self.inner.raft.metrics();
                let metrics = metrics.borrow();
                let Some(replication) = &metrics.replication else { return Err(self.not_leader().into()) };
                let next = |index: Option<u64>| index.map_or(0, |index| index + 1);
                let matched = replication.get(&id).copied().flatten().map(|matched| matched.index);
                matched.map(|matched| next(metrics.last_log_index).saturating_sub(matched + 1))
            };
            if behind.is_some_and(|behind| behind <= LAG_MAX) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(MembershipError::Lagging { node: name.clone(), within: CATCH_UP });
            }
            sleep(self.inner.config.heartbeat / 4).await;
        }
    }

    async fn submit(&self, change: ChangeMembers<NodeId, Voter>) -> Result<(), MembershipError> {
        let within = self.inner.config.patience;
        match timeout(within, self.inner.raft.change_membership(change, false)).await {
            Err(_) => Err(ProposeError::Unknown { within }.into()),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => {
                Err(ProposeError::NotLeader(leader_name(to.leader_node)).into())
            }
            Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error)))) => {
                Err(match error {
                    ChangeMembershipError::EmptyMembership(_) => MembershipError::Count(0),
                    error @ (ChangeMembershipError::InProgress(_)
                    | ChangeMembershipError::LearnerNotFound(_)) => {
                        MembershipError::InProgress(error.to_string())
                    }
                })
            }
            Ok(Err(RaftError::Fatal(_))) => Err(ProposeError::Stopped(stop_reason(&self.inner.raft)).into()),
        }
    }
}
