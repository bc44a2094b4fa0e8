//! Joining a cluster, and leaving it.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use lockd::authority::Authority;
use lockd::client::{ClientConfig, ClientError, Deaf, LockClient};
use lockd::clock::Clock;
use lockd::cluster::tls::Credentials;
use lockd::cluster::{Cluster, Program};
use lockd::fencing::incarnation;
use lockd::ids::{ClientId, Epoch, NodeName, VolumeId};
use lockd::local::run_dir::RunDir;
use lockd::machine::{ClientKind, ClientState, Command, FenceMethod};
use lockd::network::{Carrier, InProcess, Service};
use lockd::peers::quic::{QuicConfig, QuicEndpoint};
use lockd::peers::sync::ServedBy;
use lockd::peers::{Channel, Switchboard};
use parking_lot::Mutex;
use redirector::uri::LunUri;
use twox_hash::XxHash3_128;

use super::error::ClusterError;
use super::holder::Roles;
use super::plane::Plane;
use super::ways::Ways;
use crate::coordinator::Coordinator;
use crate::disk::claim::ClusterMark;
use crate::node::Node;
use crate::volume::Reporter;

/// How long the cluster is asked for an answer before it is asked again, and its absence said.
const RETRY: Duration = Duration::from_millis(500);
/// Threads that serve the other nodes; some of them may wait for the LUN.
const THREADS: usize = 4;

/// A volume's place in a cluster: what a mount there needs to know before it opens anything.
#[derive(Clone, Debug)]
pub struct Place {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// This node.
    pub node: NodeName,
    /// The volume's name.
    pub volume: String,
    /// The paths to its LUN, in their order.
    pub luns: Vec<LunUri>,
    number: u8,
    run_dir: PathBuf,
}

impl Place {
    /// What the cluster file at `path` says of `volume`, for the node `node`; its daemons are below `run_dir`.
    ///
    /// # Errors
    /// If it has no such node or volume, or the volume cannot be used as it says.
    pub fn find(path: &Path, node: &NodeName, volume: &str, run_dir: &Path) -> Result<Self, ClusterError> {
        let cluster = Cluster::read(path)?;
        if cluster.node(node).is_none() {
            return Err(ClusterError::NoNode(node.clone()));
        }
        let Some((number, found)) = cluster.volume(volume) else {
            let names: Vec<_> = cluster.volumes.iter().map(|volume| volume.name.as_str()).collect();
            let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(ClusterError::NoVolume { asked: volume.to_owned(), known });
        };
        let lun =
            |text: &String| LunUri::from_str(text).map_err(|error| ClusterError::Lun(error.to_string()));
        let luns = found.lun.iter().map(lun).collect::<Result<_, _>>()?;
        Ok(Self {
            luns,
            number: u8::try_from(number).unwrap_or(u8::MAX),
            node: node.clone(),
            volume: volume.to_owned(),
            run_dir: run_dir.to_owned(),
            cluster: Arc::new(cluster),
        })
    }
}

impl Place {
    /// What the cluster file says of the volume.
    pub(crate) fn in_file(&self) -> &lockd::cluster::Volume {
        &self.cluster.volumes[usize::from(self.number)]
    }

    /// The cluster as claims on the LUN name it (V1): told from others of its name by its authority's certificate.
    ///
    /// # Errors
    /// If that cannot be read.
    pub fn mark(&self) -> Result<ClusterMark, ClusterError> {
        let path = self.cluster.tls_dir.join("ca.pem");
        let certificate = std::fs::read_to_string(&path);
        let certificate = certificate.map_err(|source| ClusterError::Certificate { path, source })?;
        // However its lines end.
        let text: String = certificate.split_whitespace().collect();
        let id = XxHash3_128::oneshot(text.as_bytes()).max(1).to_le_bytes();
        Ok(ClusterMark { id, name: self.cluster.name.clone() })
    }
}

/// A mount that has joined its cluster.
#[derive(Debug)]
pub struct Member {
    /// The control plane.
    pub plane: Arc<Plane>,
    /// The ways to the others.
    pub ways: Arc<Ways>,
    /// Who this mount is.
    pub client: ClientId,
    /// Under which number a target that fences clients knows this mount.
    pub incarnation: ClientId,
    /// By which method nodes are fenced from the volume.
    pub fence: FenceMethod,
    pub(super) switchboard: Arc<Switchboard>,
    pub(super) endpoint: Arc<QuicEndpoint>,
    pub(super) runtime: Mutex<Option<tokio::runtime::Runtime>>,
}

impl Member {
    /// Joins: waits for lockd and a quorum, registers this process and the volume, whose fence has been proved, and listens
    /// for the others. A session that ends meanwhile takes nothing along: it is joined under the next one.
    ///
    /// # Errors
    /// If lockd refuses, or the network cannot be used.
    pub fn join(
        place: &Place,
        volume: VolumeId,
        fence: FenceMethod,
        seen: Epoch,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ClusterError> {
        loop {
            match Self::join_session(place, volume, fence, seen, Arc::clone(&clock)) {
                Err(ClusterError::Lockd(ClientError::SessionEnded(session))) => {
                    tracing::warn!(%session, "the session of this node has ended while the mount joined; joining the next");
                }
                joined => return joined,
            }
        }
    }

    fn join_session(
        place: &Place,
        volume: VolumeId,
        fence: FenceMethod,
        seen: Epoch,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ClusterError> {
        let plane = Plane::new(volume, clock);
        let run_dir = RunDir::of(&place.run_dir, &place.cluster.name, place.node.as_str());
        let config = |kind, listener| ClientConfig {
            run_dir: run_dir.clone(),
            kind,
            wait: None,
            patience: None,
            listener,
        };
        // Only mounts of a volume that the cluster knows are registered.
        let tool = LockClient::connect(config(ClientKind::Tool, Arc::new(Deaf)))?;
        tool.register_volume(&Command::RegisterVolume {
            volume,
            name: place.volume.clone(),
            fence,
            quiesce_ns: u64::try_from(place.in_file().target_quiesce.as_nanos()).unwrap_or(u64::MAX),
            epoch_floor: seen,
        })?;
        tool.leave(tool.client())?;
        drop(tool);
        let kind = ClientKind::Csvfs { volume };
        let client = Arc::new(LockClient::connect(config(kind, Arc::clone(&plane) as _))?);
        let me = client.client();
        let registered = client.clients_of(kind)?.into_iter().find(|info| info.client == me);
        let registered = registered.filter(|info| info.state == ClientState::Live);
        let registered = registered.ok_or_else(|| ClientError::SessionEnded(client.session_id()))?;
        let incarnation = incarnation(registered.nonce);
        plane.connect(Arc::clone(&client));
        client.watch()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("csvfs-peers")
            .enable_all()
            .build()?;
        let credentials = Credentials::load(&place.cluster, &place.node)?;
        let config = QuicConfig::new(Arc::clone(&place.cluster), credentials, Program::Mount(place.number));
        let switchboard = Arc::new(Switchboard::new());
        let endpoint = {
            let _entered = runtime.enter();
            Arc::new(QuicEndpoint::start(config, Arc::clone(&switchboard) as _)?)
        };
        let ways = Ways::new(&plane, Arc::clone(&endpoint), runtime.handle().clone());
        let runtime = Mutex::new(Some(runtime));
        Ok(Self { plane, ways, client: me, incarnation, fence, switchboard, endpoint, runtime })
    }

    /// Serves the others' questions by `coordinator`, and returns the way to it.
    pub fn serve_coordinator(&self, coordinator: &Arc<Coordinator>) -> Arc<dyn Carrier> {
        self.plane.tell(coordinator);
        self.switchboard.connect(Channel::Control, Arc::new(ServedBy(Weakly(Arc::downgrade(coordinator)))));
        Arc::new(InProcess(Arc::clone(coordinator)))
    }

    /// There is no coordinator here any more.
    pub fn serve_no_coordinator(&self) {
        self.switchboard.disconnect(Channel::Control);
        self.plane.tell_nobody();
    }

    /// The coordinator's role is handed over by `roles`.
    pub fn hand_over_by<R: Roles + 'static>(&self, roles: &Arc<R>) {
        let roles: std::sync::Weak<R> = Arc::downgrade(roles);
        self.plane.holder.hands_role_over_by(roles);
    }

    /// The way to the coordinator on `node`.
    #[must_use]
    pub fn way_to_coordinator(&self, node: &NodeName) -> Arc<dyn Carrier> {
        self.ways.to(node, Channel::Control)
    }

    /// Serves the others' I/O, and the coordinator's calls, by `node`.
    pub fn serve_node(&self, node: &Arc<Node>) {
        self.ways.is_here(self.client, node);
        self.plane.holder.is_served_by(node);
        self.switchboard.connect(Channel::File, Arc::new(ServedBy(Weakly(Arc::downgrade(node)))));
    }

    /// `csvfs status` on other nodes is told by `reporter` how this mount is.
    pub fn tell_status(&self, reporter: &Arc<Reporter>) {
        self.plane.holder.is_told_by(reporter);
    }

    /// Files that were acquired by hand are let go: the mount ends.
    pub fn let_go(&self) {
        self.plane.holder.end();
    }

    /// Leaves the cluster: nothing is served and nothing held any more.
    pub fn leave(&self) {
        self.host_nobody();
        for channel in [Channel::Control, Channel::File] {
            self.switchboard.disconnect(channel);
        }
        self.plane.end_client(self.client);
        let runtime = self.runtime.lock().take();
        if let Some(runtime) = runtime {
            runtime.block_on(self.endpoint.stop());
            runtime.shutdown_timeout(RETRY);
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.get_mut().take() {
            runtime.shutdown_background();
        }
    }
}

/// A service that is there as long as its owner keeps it.
#[derive(Debug)]
struct Weakly<S>(std::sync::Weak<S>);

impl<S: Service> Service for Weakly<S> {
    fn serve(&self, frame: Vec<u8>, on_reply: lockd::network::OnReply) {
        match self.0.upgrade() {
            Some(service) => service.serve(frame, on_reply),
            None => {
                on_reply(Err(lockd::network::CarrierError::Closed("the mount is being closed".to_owned())))
            }
        }
    }
}
