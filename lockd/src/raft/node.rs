//! One voter, running.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::{ServerState, SnapshotPolicy};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::contacts::Contacts;
use super::disk::{Disk, RealDisk};
use super::identity::Identity;
use super::log::Log;
use super::network::Network;
use super::propose::{self, COMMAND_MAX, Waiting};
use super::state::{Application, State};
use super::types::{Proposed, Raft};
use super::{
    Leadership, Machine, ProposeError, Quorum, RaftConfig, Role, StartError, Status, StorageId, VoterStatus,
    confirm, service,
};
use crate::clock::Clock;
use crate::ids::{NodeId, NodeName};
use crate::peers::{BoxFuture, Peers};
use crate::random::SystemRandom;
use crate::rules::Rule;

mod directory;
mod members;

/// One voter, running. Clones are the same voter.
#[derive(Debug)]
pub struct RaftNode<M: Machine> {
    inner: Arc<Inner<M>>,
}

impl<M: Machine> Clone for RaftNode<M> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

struct Inner<M: Machine> {
    config: RaftConfig,
    id: NodeId,
    storage: StorageId,
    raft: Raft,
    log: Log,
    state: State<M>,
    network: Network,
    contacts: Arc<Contacts>,
    proposals: mpsc::Sender<Waiting>,
    confirmations: mpsc::Sender<oneshot::Sender<confirm::Answer>>,
    leadership: watch::Receiver<Leadership>,
    tasks: Vec<JoinHandle<()>>,
    /// One change of the members at a time.
    changing: tokio::sync::Mutex<()>,
}

impl<M: Machine> std::fmt::Debug for Inner<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftNode")
            .field("node", &self.config.node)
            .field("storage", &self.storage)
            .finish_non_exhaustive()
    }
}

impl<M: Machine> Drop for Inner<M> {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl<M: Machine> RaftNode<M> {
    /// Starts the voter of `config.dir`, or a new one that belongs to no cluster yet. `machine` is the state before
    /// the first command, the same on every voter. Wants a tokio runtime with timers.
    ///
    /// # Errors
    /// The directory cannot be used; the text says what to do.
    pub async fn start(
        config: RaftConfig,
        machine: M,
        peers: Arc<dyn Peers>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&config.dir)?);
        Self::start_on(disk, config, machine, peers, clock).await
    }

    /// Starts the voter on `disk`.
    pub(super) async fn start_on(
        disk: Arc<dyn Disk>,
        config: RaftConfig,
        machine: M,
        peers: Arc<dyn Peers>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let settings = settings(&config)?;
        let id = config.node.id();
        let (identity, recovered) = {
            let (disk, node) = (disk.clone(), config.node.clone());
            let opened = tokio::task::spawn_blocking(move || directory::open(&*disk, &node, &SystemRandom));
            opened.await.map_err(|error| StartError::Consensus(error.to_string()))??
        };
        let Identity { storage, .. } = identity;
        let log = Log::start(id, storage, disk.clone(), recovered).map_err(|source| StartError::Disk {
            what: "start a thread to write",
            path: disk.path().to_owned(),
            source,
        })?;
        let state = State::open(disk, log.clone(), clock.clone(), config.rules, machine)?;
        let contacts = Arc::new(Contacts::new(clock));
        let quorum = Arc::new(AtomicBool::new(false));
        let network = Network { peers, storage, contacts: contacts.clone(), log: log.clone(), quorum };
        let raft = Raft::new(id, Arc::new(settings), network.clone(), log.clone(), state.clone()).await;
        let raft = raft.map_err(|error| StartError::Consensus(error.to_string()))?;

        let (proposals, queue) = mpsc::channel(propose::QUEUE);
        let proposing = tokio::spawn(propose::run(raft.clone(), state.clone(), queue));
        let (confirmations, queue) = mpsc::channel(confirm::QUEUE);
        let confirming = tokio::spawn(confirm::run(raft.clone(), config.patience, queue));
        let (leads, leadership) = watch::channel(Leadership::default());
        let watching = tokio::spawn(watch_leadership(id, raft.clone(), leads));
        let keeping = tokio::spawn(keep(id, config.clone(), raft.clone(), log.clone(), network.clone()));
        let tasks = vec![proposing, confirming, watching, keeping];
        let inner = Inner {
            config,
            id,
            storage,
            raft,
            log,
            state,
            network,
            contacts,
            proposals,
            confirmations,
            leadership,
            tasks,
            changing: tokio::sync::Mutex::new(()),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// This node's name.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        &self.inner.config.node
    }

    /// The identity of this node's directory.
    #[must_use]
    pub fn storage(&self) -> StorageId {
        self.inner.storage
    }

    /// Answers a frame of node `from` on [`Channel::Raft`](crate::peers::Channel::Raft).
    pub fn serve<'a>(&'a self, from: &'a NodeName, frame: Vec<u8>) -> BoxFuture<'a, Vec<u8>> {
        let inner = self.inner.clone();
        Box::pin(async move {
            service::serve(&inner.config.node, inner.storage, &inner.raft, &inner.contacts, from, &frame)
                .await
        })
    }

    /// Has `command` applied by the cluster, and returns the machine's reply. The command's entry is durable on a
    /// quorum of the voters, this one among them, before the reply is there.
    ///
    /// # Errors
    /// [`ProposeError::was_surely_not_applied`] tells whether it may be applied yet.
    pub async fn propose(&self, command: Vec<u8>) -> Result<Proposed, ProposeError> {
        if command.len() > COMMAND_MAX {
            return Err(ProposeError::TooLarge { length: command.len(), limit: COMMAND_MAX });
        }
        self.may_propose()?;
        let (answer, answered) = oneshot::channel();
        let queued = self.inner.proposals.try_send(Waiting { command, answer });
        queued.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Busy { limit: propose::QUEUE },
            mpsc::error::TrySendError::Closed(_) => self.stopped(),
        })?;
        let within = self.inner.config.patience;
        match timeout(within, answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(self.stopped()),
            Err(_) => Err(ProposeError::Unknown { within }),
        }
    }

    /// Returns when a quorum of the voters has confirmed, since this was called, that this node leads (L4); what was
    /// committed before the call is applied here then. Concurrent callers share a round.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`], [`ProposeError::NoQuorum`] after the configured patience, or
    /// [`ProposeError::Stopped`].
    pub async fn confirm_leader(&self) -> Result<(), ProposeError> {
        if !self.inner.config.rules.keeps(Rule::L4) {
            // The mutant trusts what this node remembers.
            return if self.leadership().here { Ok(()) } else { Err(self.not_leader()) };
        }
        let (answer, answered) = oneshot::channel();
        let queued = self.inner.confirmations.try_send(answer);
        queued.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Busy { limit: confirm::QUEUE },
            mpsc::error::TrySendError::Closed(_) => self.stopped(),
        })?;
        answered.await.unwrap_or_else(|_| Err(self.stopped()))
    }

    /// Looks at the state as of now: after [`confirm_leader`](Self::confirm_leader).
    ///
    /// # Errors
    /// As [`confirm_leader`](Self::confirm_leader).
    pub async fn read<R>(&self, look: impl FnOnce(&M) -> R) -> Result<R, ProposeError> {
        self.confirm_leader().await?;
        Ok(self.peek(look))
    }

    /// Looks at the state that this node happens to have. It may be old. `look` must be quick: nothing is applied
    /// meanwhile.
    pub fn peek<R>(&self, look: impl FnOnce(&M) -> R) -> R {
        self.inner.state.read(look)
    }

    /// From now on, every command that is applied here, and what came of it, in order. A subscriber that is too slow
    /// is told how many it has missed.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Application<M::Event>>> {
        self.inner.state.subscribe()
    }

    /// The cluster's time as this node estimates it, in nanoseconds: see [`super::ClusterTime`].
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.inner.state.time().now_ns()
    }

    /// Who leads, as far as this node knows.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        self.inner.leadership.borrow().clone()
    }

    /// Whether this node leads and a quorum has answered it lately.
    #[must_use]
    pub fn leads_with_quorum(&self) -> bool {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow();
        let configs = metrics.membership_config.membership().get_joint_config();
        metrics.state == ServerState::Leader && matches!(self.quorum(Role::Leader, configs), Quorum::Yes(_))
    }

    /// Who leads, and every change of it: a new leader has duties (L1).
    #[must_use]
    pub fn watch_leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// How this voter is, and the others as it sees them.
    #[must_use]
    pub fn status(&self) -> Status {
        let inner = &*self.inner;
        let metrics = inner.raft.metrics().borrow().clone();
        let membership = metrics.membership_config.membership();
        let role = match metrics.state {
            ServerState::Leader => Role::Leader,
            ServerState::Follower => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Learner => Role::Learner,
            ServerState::Shutdown => Role::Stopped,
        };
        let quorum = self.quorum(role, membership.get_joint_config());
        let has_vote: BTreeSet<NodeId> = membership.voter_ids().collect();
        let voters = membership.nodes().map(|(id, voter)| {
            let here = *id == inner.id;
            let matched = match &metrics.replication {
                Some(replication) if !here => {
                    replication.get(id).copied().flatten().map(|matched| matched.index)
                }
                _ if here => metrics.last_log_index,
                _ => None,
            };
            let (last_contact, trouble) =
                if here { (Some(Duration::ZERO), None) } else { inner.contacts.of(*id) };
            let lag = (role == Role::Leader).then(|| {
                let behind = |index: Option<u64>| index.map_or(0, |index| index + 1);
                behind(metrics.last_log_index).saturating_sub(behind(matched))
            });
            VoterStatus {
                node: voter.name.clone(),
                voter: has_vote.contains(id),
                storage: voter.storage,
                matched,
                lag,
                last_contact,
                trouble,
            }
        });
        let mut voters: Vec<VoterStatus> = voters.collect();
        voters.sort_by(|one, other| one.node.cmp(&other.node));
        let failed = inner.log.failed().map(|why| why.to_string());
        let stopped = (role == Role::Stopped).then(|| propose::stop_reason(&inner.raft));
        Status {
            node: inner.config.node.clone(),
            storage: inner.storage,
            role,
            leadership: self.leadership(),
            quorum,
            initialized: metrics.membership_config.log_id().is_some(),
            last_log: metrics.last_log_index,
            committed: inner.log.committed().max(metrics.last_applied).map(|committed| committed.index),
            applied: metrics.last_applied.map(|applied| applied.index),
            snapshot: metrics.snapshot.map(|snapshot| snapshot.index),
            purged: metrics.purged.map(|purged| purged.index),
            time_ns: inner.state.last().0,
            voters,
            trouble: failed.or(stopped).or_else(|| inner.contacts.refusal()),
        }
    }

    /// Ends the voter: what it has taken on is written, nothing more is answered.
    pub async fn shutdown(&self) {
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::error!("the consensus did not end cleanly: {error}");
        }
        self.inner.tasks.iter().for_each(JoinHandle::abort);
        let log = self.inner.log.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || log.close()).await {
            tracing::error!("the log was not closed cleanly: {error}");
        }
        self.inner.state.close().await;
    }

    /// How long a leader may go without a quorum's answers before it says so.
    fn silence_max(&self) -> Duration {
        silence_max(&self.inner.config)
    }

    fn quorum(&self, role: Role, configs: &[BTreeSet<NodeId>]) -> Quorum {
        let inner = &*self.inner;
        if role == Role::Leader {
            return match inner.contacts.quorum_age(inner.id, configs) {
                Some(age) if age <= self.silence_max() => Quorum::Yes(age),
                Some(age) => Quorum::No(age),
                None => Quorum::Unknown,
            };
        }
        match inner.contacts.leader() {
            Some((age, true)) if age <= self.silence_max() => Quorum::Yes(age),
            Some((age, _)) => Quorum::No(age),
            None => Quorum::Unknown,
        }
    }

    fn may_propose(&self) -> Result<(), ProposeError> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow();
        match metrics.state {
            ServerState::Leader => {}
            ServerState::Shutdown => return Err(self.stopped()),
            _ => return Err(self.not_leader()),
        }
        let configs = metrics.membership_config.membership().get_joint_config();
        match self.quorum(Role::Leader, configs) {
            Quorum::No(silent) => Err(ProposeError::NoQuorum { silent }),
            Quorum::Yes(_) | Quorum::Unknown => Ok(()),
        }
    }

    fn not_leader(&self) -> ProposeError {
        let Leadership { leader, here, .. } = self.leadership();
        ProposeError::NotLeader(leader.filter(|_| !here))
    }

    fn stopped(&self) -> ProposeError {
        let why = self.inner.log.failed().map(|why| why.to_string());
        ProposeError::Stopped(why.unwrap_or_else(|| propose::stop_reason(&self.inner.raft)))
    }
}

fn silence_max(config: &RaftConfig) -> Duration {
    config.election * 3
}

fn settings(config: &RaftConfig) -> Result<openraft::Config, StartError> {
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let settings = openraft::Config {
        cluster_name: "lockd".to_owned(),
        heartbeat_interval: millis(config.heartbeat),
        election_timeout_min: millis(config.election),
        election_timeout_max: millis(config.election * 2),
        install_snapshot_timeout: 5_000,
        max_payload_entries: 256,
        replication_lag_threshold: config.keep_entries.max(1_000),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_entries),
        snapshot_max_chunk_size: 1 << 20,
        max_in_snapshot_log_to_keep: config.keep_entries,
        purge_batch_size: (config.keep_entries / 16).max(1),
        ..openraft::Config::default()
    };
    settings.validate().map_err(|error| StartError::Settings(error.to_string()))
}

async fn watch_leadership(id: NodeId, raft: Raft, leads: watch::Sender<Leadership>) {
    let mut metrics = raft.metrics();
    loop {
        let now = {
            let metrics = metrics.borrow_and_update();
            let membership = metrics.membership_config.membership();
            let leader = metrics.current_leader.and_then(|leader| membership.get_node(&leader));
            Leadership {
                term: metrics.current_term,
                leader: leader.map(|voter| voter.name.clone()),
                here: metrics.state == ServerState::Leader && metrics.current_leader == Some(id),
            }
        };
        leads.send_if_modified(|was| {
            let changed = *was != now;
            if changed {
                *was = now;
            }
            changed
        });
        if metrics.changed().await.is_err() {
            leads.send_modify(|was| *was = Leadership { term: was.term, ..Leadership::default() });
            return;
        }
    }
}

/// What is looked at a few times a second: whether the followers may be told of a quorum, and the size of the log.
async fn keep(id: NodeId, config: RaftConfig, raft: Raft, log: Log, network: Network) {
    let metrics = raft.metrics();
    let mut next_snapshot = config.snapshot_bytes;
    loop {
        let quorum = {
            let metrics = metrics.borrow();
            let configs = metrics.membership_config.membership().get_joint_config();
            metrics.state == ServerState::Leader
                && network.contacts.quorum_age(id, configs).is_some_and(|age| age <= silence_max(&config))
        };
        network.quorum.store(quorum, Ordering::Relaxed);
        let bytes = log.bytes();
        if bytes >= next_snapshot {
            // Ended: the voter has stopped.
            let Ok(()) = raft.trigger().snapshot().await else { return };
            next_snapshot = bytes.saturating_add(config.snapshot_bytes / 2);
        } else if bytes < config.snapshot_bytes {
            next_snapshot = config.snapshot_bytes;
        }
        tokio::time::sleep(config.heartbeat).await;
    }
}

#[cfg(test)]
mod tests;
