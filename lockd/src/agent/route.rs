//! The way to the leader: found by asking the voters, followed when it changes.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::control::{self, Ask, Told};
use super::office::Office;
use super::voter::Voter;
use crate::ids::NodeName;
use crate::local::message::Failure;
use crate::machine::{Answer, Command, Query, Reply, decode_command, decode_reply, encode_command};
use crate::peers::{Channel, PeerError, Peers};

/// How long one attempt may take, the first and the longest.
const ATTEMPT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(4));
/// The least time that an attempt is given, even when the asker's patience is over.
const ATTEMPT_MIN: Duration = Duration::from_millis(100);
/// How long is waited after an attempt that led nowhere.
const PAUSE: Duration = Duration::from_millis(40);

/// The part of a lockd that takes part in the consensus.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) voter: Arc<Voter>,
    pub(super) office: Arc<Office>,
}

/// The way to the leader.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) node: NodeName,
    pub(super) peers: Arc<dyn Peers>,
    /// Of this node, where it is a voter.
    pub(super) seat: OnceLock<Seat>,
    /// The voters of the cluster file, then all other nodes: the voters may have been changed.
    nodes: Vec<NodeName>,
    voters: usize,
    leader: Mutex<Option<NodeName>>,
}

impl Route {
    pub(super) fn new(
        node: NodeName,
        peers: Arc<dyn Peers>,
        voters: Vec<NodeName>,
        others: Vec<NodeName>,
    ) -> Self {
        let count = voters.len();
        let nodes = voters.into_iter().chain(others).collect();
        Self { node, peers, seat: OnceLock::new(), nodes, voters: count, leader: Mutex::new(None) }
    }

    /// Has `command` applied.
    pub(super) async fn propose(
        &self,
        command: &Command,
        patience: Option<Duration>,
    ) -> Result<Reply, Failure> {
        let bytes = encode_command(command).map_err(|error| Failure::Refused(error.to_string()))?;
        let reply = self.propose_encoded(bytes, patience).await?;
        decode_reply(&reply).map_err(|error| Failure::Refused(error.to_string()))
    }

    /// Has an encoded command applied; it may be sent several times.
    pub(super) async fn propose_encoded(
        &self,
        command: Vec<u8>,
        patience: Option<Duration>,
    ) -> Result<Vec<u8>, Failure> {
        match self.ask_leader(Ask::Propose(command), patience).await? {
            Told::Replied(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// What the state says.
    pub(super) async fn query(&self, query: Query, patience: Option<Duration>) -> Result<Answer, Failure> {
        match self.ask_leader(Ask::Query(query), patience).await? {
            Told::Answer(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks the leader, whoever it is by now, until there is an answer or the patience is over.
    pub(super) async fn ask_leader(&self, ask: Ask, patience: Option<Duration>) -> Result<Told, Failure> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        let mut met: BTreeMap<NodeName, String> = BTreeMap::new();
        let mut turn = 0;
        let mut attempt = ATTEMPT.0;
        let mut hint = self.guess();
        loop {
            let target = hint.take().unwrap_or_else(|| {
                turn += 1;
                self.nodes[(turn - 1) % self.nodes.len()].clone()
            });
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let within = left.map_or(attempt, |left| attempt.min(left.max(ATTEMPT_MIN)));
            let told = self.attempt(&target, &ask, within, left).await;
            let (why, next) = match told {
                Told::NotLeader(leader) => ("does not lead".to_owned(), leader),
                Told::NoQuorum(why) => {
                    // It is the leader, and alone: perhaps others have elected another one.
                    (why, None)
                }
                Told::Unknown(why) => {
                    attempt = (attempt * 2).min(ATTEMPT.1);
                    (why, None)
                }
                told => {
                    *self.leader.lock() = Some(target);
                    return match told {
                        Told::Refused(why) => Err(Failure::Refused(why)),
                        told => Ok(told),
                    };
                }
            };
            met.insert(target.clone(), why);
            // Whoever did not answer as the leader a moment ago is not asked again on another's word at once.
            let fresh = next.filter(|next| *next != target && !met.contains_key(next));
            if let Some(next) = fresh {
                hint = Some(next);
                continue;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Failure::NoQuorum(self.describe(&met)));
            }
            self.pause().await;
            hint = self.guess().filter(|guess| *guess != target);
            if hint.is_some() {
                met.clear();
            }
        }
    }

    /// The voters of the cluster file, the one that is taken for the leader first.
    pub(super) fn voters_leader_first(&self) -> Vec<NodeName> {
        let mut voters = self.nodes[..self.voters].to_vec();
        if let Some(leader) = self.leader.lock().clone() {
            voters.retain(|voter| *voter != leader);
            voters.insert(0, leader);
        }
        voters
    }

    /// Whom to ask first.
    fn guess(&self) -> Option<NodeName> {
        let here = self.seat.get().and_then(|seat| seat.voter.raft.leadership().leader);
        here.or_else(|| self.leader.lock().clone())
    }

    /// Waits a moment, or until this voter knows of another leader.
    async fn pause(&self) {
        match self.seat.get() {
            Some(seat) => {
                let mut leadership = seat.voter.raft.watch_leadership();
                leadership.mark_unchanged();
                // Whichever comes first.
                let _ = tokio::time::timeout(PAUSE, leadership.changed()).await;
            }
            None => tokio::time::sleep(PAUSE).await,
        }
    }

    /// Asks one node. A voter that learns of another leader meanwhile gives up.
    async fn attempt(&self, target: &NodeName, ask: &Ask, within: Duration, left: Option<Duration>) -> Told {
        if *target == self.node {
            let Some(seat) = self.seat.get() else { return Told::NotLeader(None) };
            // Nothing is lost between here and this node's own voter, which gives up by itself.
            let left = left.unwrap_or(ATTEMPT.1).max(ATTEMPT_MIN);
            let answered = tokio::time::timeout(left, seat.answer(ask)).await;
            let silent = |_| Told::Unknown("it leads, and no majority of the voters answers it".to_owned());
            return answered.unwrap_or_else(silent);
        }
        let asked = self.ask(target, ask, within);
        match self.seat.get() {
            Some(seat) => {
                let mut leadership = seat.voter.raft.watch_leadership();
                let other = |now: &crate::raft::Leadership| {
                    now.leader.as_ref().is_some_and(|leader| leader != target)
                };
                tokio::select! {
                    told = asked => told,
                    Ok(_) = leadership.wait_for(other) => {
                        Told::Unknown("another node leads by now".to_owned())
                    }
                }
            }
            None => asked.await,
        }
    }

    /// Asks one other node.
    pub(super) async fn ask(&self, target: &NodeName, ask: &Ask, within: Duration) -> Told {
        let frame = match control::encode(ask) {
            Ok(frame) => frame,
            Err(why) => return Told::Refused(why),
        };
        match self.peers.request(target, Channel::Control, frame, within).await {
            Ok(reply) => control::decode(&reply).unwrap_or_else(Told::Unknown),
            Err(error @ PeerError::TooLarge { .. }) => Told::Refused(error.to_string()),
            Err(error) => Told::Unknown(error.to_string()),
        }
    }

    /// What was met on the way, plainly.
    fn describe(&self, met: &BTreeMap<NodeName, String>) -> String {
        let voters = &self.nodes[..self.voters];
        let names: Vec<_> = voters.iter().map(NodeName::as_str).collect();
        let met: Vec<_> = met.iter().map(|(node, why)| format!("{node}: {why}")).collect();
        format!(
            "no majority of the voters {} can be reached from node {}, so nothing can be decided; {}",
            names.join(", "),
            self.node,
            met.join("; ")
        )
    }
}

impl Seat {
    /// Answers what is for the leader.
    pub(super) async fn answer(&self, ask: &Ask) -> Told {
        match ask {
            Ask::Propose(command) => {
                if !self.office.leads() {
                    return Told::NotLeader(self.voter.raft.leadership().leader);
                }
                if !self.office.is_ready() {
                    return Told::Unknown("the leader is taking office".to_owned());
                }
                self.voter.propose(command.clone()).await
            }
            Ask::KeepAlive(session) => self.office.keep_alive(*session).await,
            Ask::Query(query) => self.voter.query(query).await,
            Ask::Voters(change) => self.voter.change(change).await,
            Ask::Events { after, wait_ms } => {
                Told::Answer(self.voter.events(*after, Duration::from_millis(u64::from(*wait_ms))).await)
            }
            _ => Told::Refused("this is not for the leader".to_owned()),
        }
    }
}

/// Whether `from` may have `command` proposed: what only the leader decides, it decides by itself.
pub(super) fn check_command(from: &NodeName, command: &[u8]) -> Result<(), String> {
    match decode_command(command).map_err(|error| error.to_string())? {
        Command::OpenSession { node, .. } if node != *from => {
            Err(format!("node {from} cannot open a session of node {node}"))
        }
        Command::Configure(_) | Command::Tick => Err("only the leader proposes this".to_owned()),
        _ => Ok(()),
    }
}

pub(super) fn unexpected(told: &Told) -> Failure {
    Failure::Refused(format!("the leader gave an answer that does not belong to the question: {told:?}"))
}
