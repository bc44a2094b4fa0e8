//! The lockd of a node.
//!
//! It holds the node's session (`session`), shares the lease with the clients on its node, serves them on a local socket
//! (`socket`, `connection`, `requests`), knows when they die (`clients`), finds the leader (`route`), carries requests to
//! holders (`forward`), hands events out (`events`), does its part in fencing (`fence`) and holds the watchdog back (`watchdog`). On a voter it also keeps the
//! replicated state (`voter`) and, when it leads, does the leader's duties (`office`).
//!
//! What it keeps on disk besides the voter's log is one number, by which it finds its session after a restart. What its
//! clients are is in the replicated state; who they are, the kernel says.

mod clients;
mod connection;
mod control;
mod core;
mod error;
mod events;
mod fence;
mod former;
mod forward;
mod nonce;
mod office;
mod replica;
mod requests;
mod route;
mod serve;
mod session;
mod socket;
mod status;
mod steward;
mod voter;
mod watchdog;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

pub use error::AgentError;
pub use watchdog::WatchdogError;

use self::core::{Core, Parts};
use crate::clock::{Clock, SystemClock};
use crate::cluster::tls::Credentials;
use crate::cluster::{Cluster, Program};
use crate::ids::NodeName;
use crate::lease::{BootId, LeasePage};
use crate::local::run_dir::{RunDir, RunDirLock};
use crate::machine::{Command, EndCause, Settings};
use crate::peers::Peers;
use crate::peers::quic::{QuicConfig, QuicEndpoint};
use crate::raft::{InitializeError, RaftConfig, RaftNode};
use crate::random::{Random, SystemRandom};
use crate::rules::Rules;
use office::Office;
use replica::Replica;
use route::{Route, Seat};
use serve::NodeServer;
use voter::Voter;

/// How long is waited before a cluster that could not be begun is tried again.
const INITIALIZE_RETRY: Duration = Duration::from_millis(200);
/// How long the cluster may take to take the clean end of a session.
const FAREWELL: Duration = Duration::from_secs(3);

/// What a lockd is told when it starts.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The cluster file.
    pub cluster: Cluster,
    /// This node.
    pub node: NodeName,
    /// The directory of what must outlive a restart: this node's alone.
    pub data: PathBuf,
    /// The directory below which run directories are.
    pub run_base: PathBuf,
    /// Which rules are kept.
    pub rules: Rules,
}

/// The lockd of a node, running.
#[derive(Debug)]
pub struct Agent {
    core: Arc<Core>,
    tasks: Vec<JoinHandle<()>>,
    watchdog: Option<Guarded>,
    _lock: RunDirLock,
}

/// The watchdog is held back by a task, which is told how lockd ends.
#[derive(Debug)]
struct Guarded {
    task: JoinHandle<()>,
    stop: oneshot::Sender<bool>,
}

impl Agent {
    /// Starts the lockd of a node. Wants a tokio runtime with I/O and timers.
    ///
    /// # Errors
    /// If the node is not in the cluster, or a directory, a certificate or an address cannot be used.
    pub async fn start(config: AgentConfig) -> Result<Self, AgentError> {
        let AgentConfig { cluster, node, data, run_base, rules } = config;
        let me = cluster
            .node(&node)
            .ok_or_else(|| AgentError::UnknownNode { node: node.clone(), cluster: cluster.name.clone() })?;
        let (is_voter, watchdog) = (me.voter, me.watchdog.clone());
        let unusable = |path: &PathBuf, source| AgentError::Directory { path: path.clone(), source };
        std::fs::create_dir_all(&data).map_err(|source| unusable(&data, source))?;
        let run_dir = RunDir::of(&run_base, &cluster.name, node.as_str());
        let lock = run_dir.claim()?;
        let boot = BootId::current().map_err(AgentError::Boot)?;
        let page = LeasePage::open(&run_dir.lease_page(), boot)?;

        let credentials = Credentials::load(&cluster, &node)?;
        let server = Arc::new(NodeServer::default());
        let quic = QuicConfig::new(Arc::new(cluster.clone()), credentials.clone(), Program::Lockd);
        let endpoint = Arc::new(QuicEndpoint::start(quic, Arc::clone(&server) as _)?);
        let peers: Arc<dyn Peers> = Arc::clone(&endpoint) as _;

        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let random: Arc<dyn Random> = Arc::new(SystemRandom);
        let names = |voters: bool| {
            let nodes = cluster.nodes.iter().filter(move |node| node.voter == voters);
            nodes.map(|node| node.name.clone()).collect::<Vec<_>>()
        };
        let (voters, others) = (names(true), names(false));
        let route = Route::new(node.clone(), Arc::clone(&peers), voters.clone(), others);
        let mut tasks = Vec::new();
        if is_voter {
            let mut raft = RaftConfig::new(node.clone(), data.join("voter"));
            raft.rules = rules;
            let raft = RaftNode::start(raft, Replica::new(rules), peers, Arc::clone(&clock)).await?;
            let voter = Arc::new(Voter::new(raft.clone()));
            let settings = settings(&cluster);
            let office = Arc::new(Office::new(Arc::clone(&voter), Arc::clone(&clock), rules, settings));
            tasks.push(tokio::spawn(Arc::clone(&office).run()));
            tasks.push(tokio::spawn(initialize(raft, voters.into_iter().collect())));
            // It is set once.
            let _ = route.seat.set(Seat { voter, office });
        }
        let (open, opened) = watch::channel(None);
        let listener = socket::bind(&run_dir.socket())
            .map_err(|source| AgentError::Directory { path: run_dir.socket(), source })?;
        // Last of what may fail: from then on the host is restarted if lockd is not there.
        let device = watchdog.map(|path| watchdog::open(&path, cluster.grace)).transpose()?;
        let nonce = nonce::NonceFile::new(&data);
        let core = Arc::new(Core::new(Parts {
            cluster,
            node,
            rules,
            clock,
            random,
            boot,
            route,
            page,
            nonce,
            open: opened,
            endpoint: Arc::clone(&endpoint),
            credentials,
        }));
        server.begin(Arc::clone(&core));
        let watchdog = device.map(|device| {
            let (stop, stopped) = oneshot::channel();
            Guarded { task: tokio::spawn(watchdog::run(Arc::clone(&core), device, stopped)), stop }
        });
        tasks.push(tokio::spawn(session::run(Arc::clone(&core), open)));
        tasks.push(tokio::spawn(events::run(Arc::clone(&core))));
        tasks.push(tokio::spawn(fence::run(Arc::clone(&core))));
        tasks.push(tokio::spawn(socket::run(Arc::clone(&core), listener)));
        Ok(Self { core, tasks, watchdog, _lock: lock })
    }

    /// Ends: the session too, when no client is left. Clients that are left keep it; their lease goes on only if lockd is
    /// started again before it is over (L11).
    pub async fn stop(self) {
        // First: otherwise a new session would be opened for the one that ends here.
        for task in &self.tasks {
            task.abort();
        }
        let stewards = self.core.steward.count().await;
        let left = self.core.clients.list().len();
        match self.core.session_now() {
            Some(open) if left == 0 && stewards == 0 => {
                let command = Command::EndSession { session: open.session, cause: EndCause::Closed };
                open.lease.end();
                match self.core.route.propose(&command, Some(FAREWELL)).await {
                    // If the file stays, the next lockd is told that the session has ended.
                    Ok(_) => drop(self.core.nonce.forget()),
                    Err(failure) => tracing::warn!(%failure, "the session ends by its lease"),
                }
            }
            Some(open) => {
                tracing::warn!(session = %open.session, clients = left + stewards, "the session stays: clients are left");
            }
            None => {}
        }
        if let Some(Guarded { task, stop }) = self.watchdog {
            // Mounts that are left write as long as their lease runs: the next lockd must come in time.
            let _ = stop.send(!self.core.clients.has_mounts());
            let _ = task.await;
        }
        if let Some(seat) = self.core.route.seat.get() {
            seat.voter.raft.shutdown().await;
        }
        self.core.endpoint.stop().await;
    }
}

fn settings(cluster: &Cluster) -> Settings {
    let ns = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    Settings { lease_ns: ns(cluster.lease), grace_ns: ns(cluster.grace) }
}

/// Begins the cluster, if this voter does not belong to one yet.
async fn initialize(raft: RaftNode<Replica>, voters: BTreeSet<NodeName>) {
    let mut said = None;
    loop {
        match raft.initialize(&voters).await {
            Ok(()) => return,
            Err(error @ InitializeError::Waiting(_)) => {
                let text = error.to_string();
                if said.as_ref() != Some(&text) {
                    tracing::info!("{text}");
                    said = Some(text);
                }
            }
            Err(error) => {
                tracing::error!(%error, "this voter cannot begin the cluster");
                return;
            }
        }
        tokio::time::sleep(INITIALIZE_RETRY).await;
    }
}
