//! The endpoint: a node's program on the network.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use super::inbound::Inbound;
use super::link::Link;
use super::rooms::Limits;
use super::status::{NodeConflict, PeerStatus};
use super::transport::Close;
use super::{accept, dial, transport, versions};
use crate::cluster::tls::{Credentials, TlsError};
use crate::cluster::{Cluster, Program};
use crate::ids::NodeName;
use crate::peers::{BoxFuture, Channel, FRAME_MAX, NotServed, PeerError, Peers, Serve};

/// How long [`QuicEndpoint::stop`] waits for the other nodes to hear of it.
const FAREWELL: Duration = Duration::from_millis(500);

/// What an endpoint is started with.
#[derive(Clone, Debug)]
pub struct QuicConfig {
    /// The cluster, as the cluster file describes it.
    pub cluster: Arc<Cluster>,
    /// Who we are, and whom we believe.
    pub credentials: Credentials,
    /// Which of the node's programs we are; it asks the same program of the other nodes.
    pub program: Program,
    /// How much may be in flight to each node, and from it.
    pub limits: Limits,
    /// The wire versions to speak, the newest first; what a release speaks, but in tests.
    versions: Vec<u16>,
}

impl QuicConfig {
    /// The usual configuration.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>, credentials: Credentials, program: Program) -> Self {
        Self { cluster, credentials, program, limits: Limits::default(), versions: versions::SPOKEN.to_vec() }
    }

    /// For tests: speaks other versions than this release does.
    #[must_use]
    pub fn speaking(mut self, versions: &[u16]) -> Self {
        self.versions = versions.to_vec();
        self
    }
}

/// Why an endpoint could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The certificates do not allow it.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The cluster file does not name this node.
    #[error("no node {0} is in the cluster file")]
    UnknownNode(NodeName),
    /// The address is taken or not this machine's.
    #[error(
        "cannot listen on {address}: {source}; is {program} running already, and is the address this machine's?"
    )]
    Listen {
        /// The address from the cluster file.
        address: SocketAddr,
        /// The program.
        program: Program,
        /// Why.
        source: std::io::Error,
    },
}

/// A program of a node on the network: asks the other nodes and serves them, over QUIC with mutual TLS.
///
/// Each pair of nodes has up to two connections, one for the requests of either side, made by who asks, at his first
/// request; when one is lost it is made again, with growing pauses. Requests wait for it within their time-out. On each
/// connection several long-lived streams carry length-prefixed frames, many requests in flight, replies in any order.
///
/// Drop it, or [stop](Self::stop) it, to close all connections.
pub struct QuicEndpoint {
    shared: Arc<Shared>,
}

/// What the tasks of an endpoint share.
pub(super) struct Shared {
    pub(super) node: NodeName,
    pub(super) address: SocketAddr,
    pub(super) program: Program,
    /// Drawn at random at each start.
    pub(super) incarnation: u64,
    pub(super) credentials: Credentials,
    pub(super) versions: Vec<u16>,
    pub(super) limits: Limits,
    pub(super) serve: Arc<dyn Serve>,
    pub(super) endpoint: quinn::Endpoint,
    /// The other nodes.
    pub(super) links: BTreeMap<NodeName, Arc<Link>>,
    pub(super) inbound: Mutex<HashMap<NodeName, Arc<Inbound>>>,
    pub(super) conflicts: Mutex<BTreeMap<NodeName, (NodeConflict, Instant)>>,
    pub(super) last_turned_away: Mutex<Option<Instant>>,
    pub(super) stop: watch::Sender<bool>,
    runtime: Handle,
}

impl QuicEndpoint {
    /// Listens on the node's address and serves the other nodes' requests by `serve`. Must be called in a tokio runtime
    /// with I/O and timers, on which everything then runs.
    ///
    /// # Errors
    /// If the address is taken, the node unknown, or the certificates do not allow it.
    pub fn start(config: QuicConfig, serve: Arc<dyn Serve>) -> Result<Self, StartError> {
        let QuicConfig { cluster, credentials, program, limits, versions } = config;
        let node = credentials.node().clone();
        let address = cluster.address(&node, program).ok_or_else(|| StartError::UnknownNode(node.clone()))?;
        let listen = |source| StartError::Listen { address, program, source };
        let socket = transport::socket(address).map_err(listen)?;
        let endpoint = quinn::Endpoint::new(
            transport::endpoint_config(&credentials)?,
            Some(transport::server_config(&credentials, &versions)?),
            socket,
            Arc::new(quinn::TokioRuntime),
        )
        .map_err(listen)?;
        let others = cluster.nodes.iter().filter(|other| other.name != node);
        let links = others
            .filter_map(|other| {
                let address = cluster.address(&other.name, program)?;
                Some((other.name.clone(), Arc::new(Link::new(other.name.clone(), address, limits))))
            })
            .collect();
        let shared = Arc::new(Shared {
            node,
            address,
            program,
            incarnation: rand::random(),
            credentials,
            versions,
            limits,
            serve,
            endpoint,
            links,
            inbound: Mutex::new(HashMap::new()),
            conflicts: Mutex::new(BTreeMap::new()),
            last_turned_away: Mutex::new(None),
            stop: watch::Sender::new(false),
            runtime: Handle::current(),
        });
        tokio::spawn(accept::accept_all(shared.clone()));
        for link in shared.links.values() {
            tokio::spawn(dial::keep_connected(shared.clone(), link.clone()));
        }
        tracing::info!(node = %shared.node, %address, days_left = shared.credentials.days_left(), "listening");
        Ok(Self { shared })
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        &self.shared.node
    }

    /// This incarnation: drawn at random at the start.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.shared.incarnation
    }

    /// How many whole days our certificate is still valid.
    #[must_use]
    pub fn certificate_days_left(&self) -> u64 {
        self.shared.credentials.days_left()
    }

    /// How the connections to the other nodes are, in the order of their names.
    #[must_use]
    pub fn status(&self) -> Vec<PeerStatus> {
        let inbound: Vec<NodeName> = self.shared.inbound.lock().keys().cloned().collect();
        self.shared.links.values().map(|link| link.status(inbound.contains(&link.node))).collect()
    }

    /// The machines that were refused in the last minute because another one has their name.
    #[must_use]
    pub fn conflicts(&self) -> Vec<NodeConflict> {
        self.shared.conflicts()
    }

    /// Closes all connections and tells the other nodes, who connect anew when they have something to ask. Requests
    /// that wait get an error; what this node is just serving goes on, unanswered.
    pub async fn stop(&self) {
        self.shared.close();
        // Who does not hear of it finds out by the idle time-out.
        let _ = timeout(FAREWELL, self.shared.endpoint.wait_idle()).await;
    }
}

#[cfg(test)]
impl QuicEndpoint {
    /// The packets of the connection to a node, in words.
    pub(super) fn path_stats(&self, node: &NodeName) -> String {
        match &*self.shared.links[node].state.borrow() {
            super::link::LinkState::Up(outbound) => {
                let path = outbound.connection.stats().path;
                format!(
                    "MTU {}, {} sent, {} lost, window {}",
                    path.current_mtu, path.sent_packets, path.lost_packets, path.cwnd
                )
            }
            _ => "not connected".to_owned(),
        }
    }
}

impl Drop for QuicEndpoint {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    fn close(&self) {
        self.stop.send_replace(true);
        let words = format!("{} of node {} has been stopped", self.program, self.node);
        self.endpoint.close(Close::Stopped.code(), words.as_bytes());
    }

    async fn request(
        self: Arc<Self>,
        to: NodeName,
        channel: Channel,
        frame: Vec<u8>,
        within: Duration,
    ) -> Result<Vec<u8>, PeerError> {
        if frame.len() > FRAME_MAX {
            return Err(PeerError::TooLarge { node: to, length: frame.len(), limit: FRAME_MAX });
        }
        if to == self.node {
            return self.serve_ourselves(channel, frame, within).await;
        }
        let Some(link) = self.links.get(&to) else { return Err(PeerError::UnknownNode(to)) };
        link.request(channel, frame, within).await
    }

    /// A request to ourselves does not leave the process.
    async fn serve_ourselves(
        self: Arc<Self>,
        channel: Channel,
        frame: Vec<u8>,
        within: Duration,
    ) -> Result<Vec<u8>, PeerError> {
        let node = self.node.clone();
        // In a task of its own: it goes on when the one who asked has given up.
        let (serve, from) = (self.serve.clone(), self.node.clone());
        let served = self.runtime.spawn(async move { serve.serve(&from, channel, frame).await });
        match timeout(within, served).await {
            Ok(Ok(Ok(reply))) if reply.len() > FRAME_MAX => {
                Err(PeerError::TooLarge { node, length: reply.len(), limit: FRAME_MAX })
            }
            Ok(Ok(Ok(reply))) => Ok(reply),
            Ok(Ok(Err(NotServed(why)))) => Err(PeerError::NotServed { node, why }),
            Ok(Err(_)) | Err(_) => Err(PeerError::TimedOut { node, within }),
        }
    }
}

impl Peers for QuicEndpoint {
    fn request(
        &self,
        to: &NodeName,
        channel: Channel,
        frame: Vec<u8>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, PeerError>> {
        Box::pin(self.shared.clone().request(to.clone(), channel, frame, timeout))
    }
}

impl fmt::Debug for QuicEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicEndpoint")
            .field("node", &self.shared.node)
            .field("address", &self.shared.address)
            .field("program", &self.shared.program)
            .finish_non_exhaustive()
    }
}
