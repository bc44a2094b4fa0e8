//! The server of the LUN, in the namespace of the SAN, and what it tells.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lockd::cluster::Cluster;
use lockd::cluster::tls::Credentials;
use lockd::fencing::TargetControl;
use redirector::target::{FaultId, FaultSpec};
use serde::Deserialize;
use serde_json::{Value, json};

use super::config::{self, CONTROL_PORT, LUN_PORT, VOLUME};
use super::daemon::{Daemon, DaemonSpec, Ready};
use super::namespace::Namespace;
use super::network::{Network, TARGET};
use super::plan::{Plan, TargetKind};
use crate::{programs, tgt};

/// How long a target may take to flush and end.
const STOP: Duration = Duration::from_secs(20);

/// How long an answer may take: a fence drains what the client has sent.
const ANSWER: Duration = Duration::from_secs(30);

/// What one client of the bundled target has asked for since it was first seen.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
pub struct ClientCounts {
    /// The incarnation; none: all clients together that did not say who they are.
    pub client: Option<u64>,
    /// The peers of its open connections, such as `10.78.0.1:40000`.
    pub connections: Vec<String>,
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Flush requests.
    pub flushes: u64,
    /// Trim requests.
    pub trims: u64,
    /// Write-zeroes requests.
    pub zeroes: u64,
    /// Bytes of the read requests.
    pub bytes_read: u64,
    /// Bytes of the write requests.
    pub bytes_written: u64,
}

impl ClientCounts {
    /// All requests but flushes: those that touch blocks.
    #[must_use]
    pub fn touching(&self) -> u64 {
        self.reads + self.writes + self.trims + self.zeroes
    }
}

/// Which part of a range a client has touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub struct Touched {
    /// The size of a region in bytes.
    pub region_bytes: u64,
    /// How many regions the range touches.
    pub regions: u64,
    /// In how many of them the client has read.
    pub read: u64,
    /// In how many of them it has written, zeroed or trimmed.
    pub changed: u64,
}

/// The server of the LUN.
#[derive(Debug)]
pub struct Target {
    kind: TargetKind,
    image: PathBuf,
    namespace: Namespace,
    daemon: Arc<Daemon>,
    /// The cluster file, if only its nodes may ask at the control port.
    cluster: Option<PathBuf>,
}

fn image(plan: &Plan, folder: &Path) -> PathBuf {
    plan.lun_folder.as_deref().unwrap_or(folder).join("lun.img")
}

/// The command line of the target that `plan` asks for, with its files in `folder`, of the lab in `cluster_folder`.
pub(super) fn spec(plan: &Plan, folder: &Path, cluster_folder: &Path) -> Result<DaemonSpec> {
    let address = Network::San.address(TARGET);
    let image = image(plan, folder);
    if !image.exists() {
        std::fs::File::create(&image)?.set_len(plan.lun_bytes)?;
    }
    let spec = match plan.target {
        TargetKind::CsvTarget => {
            let listen = format!("{address}:{LUN_PORT}");
            let tls = plan.has_control().then(|| cluster_folder.join("tls").into_os_string());
            let spec =
                DaemonSpec::new("target", programs::ours("csv-target")?).ready(Ready::Line("ready".into()));
            spec.args(["--export", VOLUME, "--listen", &listen, "--control"])
                .args([format!("{address}:{CONTROL_PORT}")])
                .args([Path::new("--file"), &image, Path::new("--state"), &folder.join("state")])
                .args(tls.into_iter().flat_map(|tls| ["--control-tls".into(), tls]))
                .env("RUST_LOG", "info")
        }
        TargetKind::Nbdkit => {
            let listening = SocketAddr::new(address.into(), LUN_PORT);
            let (address, port) = (address.to_string(), LUN_PORT.to_string());
            DaemonSpec::new("target", programs::installed("nbdkit")?)
                .ready(Ready::Accepts(listening))
                .args(["--foreground", "--threads=16", "--ipaddr", &address, "--port", &port, "file"])
                .args([image])
        }
        TargetKind::Tgt => DaemonSpec::new("target", programs::installed("sh")?)
            .ready(Ready::Line(tgt::READY.into()))
            .args(tgt::arguments(folder, &image, config::portal())?),
    };
    Ok(spec.args(&plan.target_args))
}

/// Asks with the certificate of the first node.
fn ask_as_a_node(cluster: &Path, address: &str, request: &Value) -> Result<Value> {
    let credentials = Credentials::load(&Cluster::read(cluster)?, &"n1".parse()?)?;
    Ok(TargetControl::new(&address.parse()?, &credentials)?.ask(request, ANSWER)?)
}

impl Target {
    /// The target that `plan` asks for, as `daemon` in `namespace`, with its files in `folder`.
    pub(super) fn new(
        plan: &Plan,
        folder: &Path,
        namespace: Namespace,
        daemon: Arc<Daemon>,
        cluster: &Path,
    ) -> Self {
        let cluster = plan.has_control().then(|| cluster.to_owned());
        Self { kind: plan.target, image: image(plan, folder), namespace, daemon, cluster }
    }

    /// The daemon, which can be paused and resumed.
    #[must_use]
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// The URL of the LUN, as every node reaches it.
    #[must_use]
    pub fn url(&self) -> String {
        config::lun_url(self.kind)
    }

    /// The URL of the LUN's image, for programs that look at it while no target serves it.
    #[must_use]
    pub fn image_url(&self) -> String {
        format!("file:{}", self.image.display())
    }

    /// Asks the bundled target at its control port; the request is described there.
    pub fn control(&self, request: &Value) -> Result<Value> {
        ensure!(self.kind == TargetKind::CsvTarget, "only csv-target has a control port");
        let address = format!("{}:{CONTROL_PORT}", Network::San.address(TARGET));
        let (namespace, question, cluster) = (self.namespace.clone(), request.clone(), self.cluster.clone());
        let (sender, receiver) = mpsc::channel();
        // A paused target never answers: then this thread is left alone until it does, or is killed.
        std::thread::spawn(move || {
            let answer = namespace.within(|| match &cluster {
                None => Ok(redirector::target::ask(&address.parse()?, None, &question)?),
                Some(file) => ask_as_a_node(file, &address, &question),
            });
            // Nobody listens if it took too long.
            let _ = sender.send(answer);
        });
        let asking = || format!("asking the target for {request}");
        let answer = receiver.recv_timeout(ANSWER).context("it does not answer").with_context(asking)?;
        answer?.with_context(asking)
    }

    /// What each client has asked for, as the target counts it.
    pub fn counters(&self) -> Result<Vec<ClientCounts>> {
        let answer = self.control(&json!({"op": "counters"}))?;
        serde_json::from_value(answer["clients"].clone()).context("the target's counters")
    }

    /// How often a client has touched the LUN so far.
    pub fn asked_by(&self, client: Option<u64>) -> Result<u64> {
        let counters = self.counters()?;
        let of = counters.iter().find(|counts| counts.client == client);
        Ok(of.context("the target does not know the client")?.touching())
    }

    /// The counters of the client that has connections from the node with this number now.
    pub fn counters_of_node(&self, number: u8) -> Result<ClientCounts> {
        let address: Ipv4Addr = Network::San.address(number);
        let is_from = |peer: &String| {
            peer.parse::<SocketAddr>().map_or(peer == &address.to_string(), |peer| peer.ip() == address)
        };
        let all = self.counters()?;
        let mut found: Vec<ClientCounts> =
            all.iter().filter(|client| client.connections.iter().any(is_from)).cloned().collect();
        match (found.pop(), found.is_empty()) {
            (Some(one), true) => Ok(one),
            (Some(_), false) => bail!("node {number} has several clients at the target: {all:?}"),
            (None, _) => bail!("node {number} has no client at the target: {all:?}"),
        }
    }

    /// Which part of the LUN's bytes from `offset` on the client has touched since [`Target::forget_touched`].
    pub fn touched(&self, client: Option<u64>, offset: u64, length: u64) -> Result<Touched> {
        let answer =
            self.control(&json!({"op": "touched", "client": client, "offset": offset, "length": length}))?;
        serde_json::from_value(answer).context("the target's record of touched regions")
    }

    /// Begins the records of touched regions anew.
    pub fn forget_touched(&self) -> Result<()> {
        self.control(&json!({"op": "forget_touched"})).map(drop)
    }

    /// Switches a fault on.
    pub fn fault(&self, spec: &FaultSpec) -> Result<FaultId> {
        let mut request = serde_json::to_value(spec)?;
        request["op"] = json!("fault");
        let answer = self.control(&request)?;
        serde_json::from_value(answer["fault"].clone()).context("the number of the fault")
    }

    /// Switches a fault off and lets go what it holds back.
    pub fn clear_fault(&self, fault: FaultId) -> Result<()> {
        self.control(&json!({"op": "clear", "fault": fault})).map(drop)
    }

    /// Kills the target (SIGKILL).
    pub fn kill(&self) -> Result<()> {
        self.daemon.kill()
    }

    /// Asks it to end, which flushes.
    pub fn stop(&self) -> Result<()> {
        if self.kind == TargetKind::Tgt {
            // It ignores SIGTERM while it has a target. What it has acknowledged is in the kernel's cache.
            return self.kill();
        }
        self.daemon.stop(STOP).map(drop)
    }
}
