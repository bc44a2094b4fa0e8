//! Voters in one process, for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::{BootTime, Clock, SystemClock, WallTime};
use crate::ids::NodeName;
use crate::peers::local::LocalNetwork;
use crate::peers::{BoxFuture, Channel, NotServed, Serve};
use crate::raft::{Machine, Output, ProposeError, Proposed, RaftConfig, RaftNode, Status};
use crate::rules::Rules;

/// A machine that remembers every command.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Ledger {
    pub(super) commands: Vec<Vec<u8>>,
    pub(super) times: Vec<u64>,
}

impl Machine for Ledger {
    type Event = String;

    fn apply(&mut self, time_ns: u64, command: &[u8]) -> Output<String> {
        self.commands.push(command.to_vec());
        self.times.push(time_ns);
        let reply = self.commands.len().to_string();
        Output { events: vec![format!("applied {reply}")], reply: reply.into_bytes() }
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (command, time) in self.commands.iter().zip(&self.times) {
            bytes.extend_from_slice(&time.to_le_bytes());
            bytes.extend_from_slice(&(command.len() as u64).to_le_bytes());
            bytes.extend_from_slice(command);
        }
        bytes
    }

    fn restore(mut bytes: &[u8]) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let mut ledger = Self::default();
        while !bytes.is_empty() {
            let (head, rest) = bytes.split_at_checked(16).ok_or("too short")?;
            let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
            let (command, rest) = rest.split_at_checked(usize::try_from(number(8))?).ok_or("too short")?;
            ledger.times.push(number(0));
            ledger.commands.push(command.to_vec());
            bytes = rest;
        }
        Ok(ledger)
    }
}

#[derive(Debug)]
struct RaftOnly(RaftNode<Ledger>);

impl Serve for RaftOnly {
    fn serve<'a>(
        &'a self,
        from: &'a NodeName,
        channel: Channel,
        frame: Vec<u8>,
    ) -> BoxFuture<'a, Result<Vec<u8>, NotServed>> {
        Box::pin(async move {
            match channel {
                Channel::Raft => Ok(self.0.serve(from, frame).await),
                other => Err(NotServed(format!("no {other} here"))),
            }
        })
    }
}

pub(super) fn name(number: usize) -> NodeName {
    format!("n{number}").parse().unwrap()
}

/// Waits until `found` finds something.
pub(super) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut found: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        if let Some(found) = found().await {
            return found;
        }
        assert!(Instant::now() < deadline, "this did not come about: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The machine's clocks, but civil time is off by so many hours.
#[derive(Debug)]
struct WrongClock(i64);

impl Clock for WrongClock {
    fn boot(&self) -> BootTime {
        SystemClock.boot()
    }

    fn wall(&self) -> WallTime {
        WallTime(SystemClock.wall().0 + self.0 * 3_600_000_000_000)
    }

    fn sleep(&self, span: Duration) {
        SystemClock.sleep(span);
    }
}

/// Voters n1, n2, ... with their directories.
pub(super) struct Cluster {
    pub(super) network: LocalNetwork,
    pub(super) nodes: BTreeMap<NodeName, RaftNode<Ledger>>,
    pub(super) dir: tempfile::TempDir,
    pub(super) tune: fn(&mut RaftConfig),
    /// By how many hours civil time is off on the nodes that start.
    pub(super) hours_off: i64,
}

impl Cluster {
    /// `voters` voters, with a leader.
    pub(super) async fn new(voters: usize) -> Self {
        Self::tuned(voters, |_| {}).await
    }

    pub(super) async fn tuned(voters: usize, tune: fn(&mut RaftConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster =
            Self { network: LocalNetwork::new(1), nodes: BTreeMap::new(), dir, tune, hours_off: 0 };
        for number in 1..=voters {
            cluster.start(&name(number)).await;
        }
        cluster.initialize(voters).await;
        cluster.leader().await;
        cluster
    }

    pub(super) fn config(&self, node: &NodeName) -> RaftConfig {
        let mut config = RaftConfig::new(node.clone(), self.dir.path().join(node.as_str()));
        config.rules = Rules::from_test_environment();
        (self.tune)(&mut config);
        config
    }

    pub(super) async fn start(&mut self, node: &NodeName) {
        let peers = self.network.peers(node);
        let clock = Arc::new(WrongClock(self.hours_off));
        let started = RaftNode::start(self.config(node), Ledger::default(), peers, clock).await;
        let started = started.unwrap();
        self.network.start(node, Arc::new(RaftOnly(started.clone())));
        self.nodes.insert(node.clone(), started);
    }

    pub(super) async fn stop(&mut self, node: &NodeName) {
        self.network.stop(node);
        if let Some(stopped) = self.nodes.remove(node) {
            stopped.shutdown().await;
        }
    }

    pub(super) async fn initialize(&self, voters: usize) {
        let voters: BTreeSet<NodeName> = (1..=voters).map(name).collect();
        for node in self.nodes.values().filter(|node| voters.contains(node.node())) {
            node.initialize(&voters).await.unwrap();
        }
    }

    pub(super) fn node(&self, node: &NodeName) -> &RaftNode<Ledger> {
        &self.nodes[node]
    }

    /// The leader that a quorum confirms.
    pub(super) async fn leader(&self) -> NodeName {
        until("a leader", || async {
            for node in self.nodes.values() {
                if node.leadership().here && node.confirm_leader().await.is_ok() {
                    return Some(node.node().clone());
                }
            }
            None
        })
        .await
    }

    /// Some node but these.
    pub(super) fn other(&self, not: &[&NodeName]) -> NodeName {
        self.nodes.keys().find(|name| !not.contains(name)).unwrap().clone()
    }

    /// Proposes to whoever leads, as an agent does, until it is surely applied.
    pub(super) async fn propose(&self, command: &str) -> Proposed {
        until("a command is applied", || async {
            for node in self.nodes.values().filter(|node| node.leadership().here) {
                match node.propose(command.as_bytes().to_vec()).await {
                    Ok(proposed) => return Some(proposed),
                    Err(error) => assert!(
                        error.was_surely_not_applied() || matches!(error, ProposeError::Unknown { .. }),
                        "{error}"
                    ),
                }
            }
            None
        })
        .await
    }

    /// Waits until all running nodes have applied `number` commands, and compares them.
    pub(super) async fn agree(&self, number: usize) -> Ledger {
        let ledger = until("all commands are applied everywhere, in one order", || async {
            let mut ledgers = self.nodes.values().map(|node| node.peek(Ledger::clone));
            let first = ledgers.next().unwrap();
            let agreed = first.commands.len() >= number && ledgers.all(|ledger| ledger == first);
            agreed.then_some(first)
        })
        .await;
        assert!(ledger.times.is_sorted_by(|one, next| one < next), "time went back: {:?}", ledger.times);
        ledger
    }

    pub(super) async fn status_where(&self, node: &NodeName, fits: impl Fn(&Status) -> bool) -> Status {
        until("a status", || async {
            let status = self.node(node).status();
            fits(&status).then_some(status)
        })
        .await
    }

    pub(super) async fn end(mut self) {
        for node in self.nodes.keys().cloned().collect::<Vec<_>>() {
            self.stop(&node).await;
        }
    }
}
