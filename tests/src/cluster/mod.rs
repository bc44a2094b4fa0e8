//! A cluster on one machine: every host is a network namespace.
//!
//! A [`Plan`] says what is wanted; [`Cluster::up`] makes N nodes `n1`, `n2`, ... and a host `san` that serves the LUN,
//! with a LAN between the nodes and a SAN to the target. Daemons are command lines ([`DaemonSpec`]) that are started,
//! stopped, killed, paused and resumed on a host; the networks can be shaped, cut and healed. Only the network is
//! separate: files, mounts and processes are seen by the whole machine, so that a test looks at every node's mount.
//!
//! | what | where |
//! |---|---|
//! | LAN | `lan` in each node, 10.77.0.N |
//! | SAN | `san` in each node, 10.78.0.N; the target is 10.78.0.254 |
//! | namespaces | `csvlab.LAB.n1`, ..., `csvlab.LAB.san`, `csvlab.LAB.switch` |
//! | files | `BASE/LAB/state.json`, `cluster.toml`, `n1/{run,data,log,mnt}`, ..., `san/` |
//!
//! A lab goes when its [`Cluster`] is dropped. One whose owner was killed is swept by the next [`Cluster::up`] with the
//! same base folder; one that is *kept* stays until it is removed.

mod config;
mod daemon;
mod identity;
mod namespace;
mod network;
mod node;
mod plan;
mod removal;
mod state;
mod sys;
mod target;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;

pub use config::{VOLUME, cluster_file, lun_url};
pub use daemon::{Daemon, DaemonSpec, Ready, is_mounted};
pub use identity::ProcessId;
pub use namespace::{Namespace, Reached};
pub use network::{Cut, Network, TARGET};
pub use node::Node;
pub use plan::{Plan, TargetKind, base_folder, voters_of};
pub use removal::{cluster_name, mounts_below, prefix, remove};
pub use state::{Base, CutState, DaemonState, State, labs, name_of};
pub use target::{ClientCounts, Target, Touched};

use network::Switch;

/// The name of the host that serves the LUN.
pub const SAN_HOST: &str = "san";
/// A port where nobody listens: a host that is reached refuses it.
const QUIET_PORT: u16 = 9;
/// How many lines of each log a failed test shows.
const LAST_LINES: usize = 30;
/// How long a daemon may take to end when the lab is ended in order.
const STOP: Duration = Duration::from_secs(20);

/// A running lab.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    nodes: Vec<Node>,
    switch: Switch,
    san: Namespace,
    target: Option<Target>,
    daemons: Mutex<BTreeMap<(String, String), Arc<Daemon>>>,
    state: Mutex<State>,
    /// Whether it goes when this is dropped.
    is_owner: bool,
}

fn fresh_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("t{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

impl Cluster {
    /// Takes away abandoned labs, and makes this one: namespaces, networks, the target, the cluster file.
    pub fn up(plan: Plan) -> Result<Self> {
        plan.check()?;
        let name = plan.name.clone().unwrap_or_else(fresh_name);
        let state = State::new(&name, &plan)?;
        let base = Base::hold(&plan.base)?;
        base.sweep()?;
        let folder = base.found(&state)?;
        drop(base);
        let mut cluster = Self::assemble(folder, state, true);
        // From here on a failure takes away what was made.
        cluster.build()?;
        // A kept lab is the folder's from now on.
        cluster.is_owner = !plan.kept;
        Ok(cluster)
    }

    /// The lab in `folder`, which another program has made. It stays when this is dropped.
    pub fn attach(folder: &Path) -> Result<Self> {
        let state = State::read(folder)?;
        ensure!(!state.is_abandoned()?, "the lab {} is left over; end it by `lab down`", state.name);
        let mut cluster = Self::assemble(folder.to_owned(), state, false);
        let daemons = cluster.state.lock().daemons.clone();
        for DaemonState { host, spec, process } in daemons {
            let daemon = Arc::new(cluster.new_daemon(&host, spec)?.adopt(process));
            if host == SAN_HOST {
                cluster.target = Some(cluster.new_target(Arc::clone(&daemon)));
            }
            cluster.remember(daemon);
        }
        Ok(cluster)
    }

    /// Makes a lab, runs `test` on it, and takes it away; if the test fails, the last lines of every log are printed.
    pub fn run(plan: Plan, test: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let cluster = Self::up(plan)?;
        let done = test(&cluster);
        if done.is_err() {
            eprintln!("{}", cluster.last_words(LAST_LINES));
        }
        done
    }

    fn assemble(folder: PathBuf, state: State, is_owner: bool) -> Self {
        let namespace = |host: &str| Namespace::named(&format!("{}{host}", prefix(&state.name)));
        let nodes = (1..=state.plan.nodes).map(|number| {
            let name = format!("n{number}");
            Node::new(number, folder.join(&name), namespace(&name), folder.join("cluster.toml"))
        });
        Self {
            nodes: nodes.collect(),
            switch: Switch::new(namespace("switch")),
            san: namespace(SAN_HOST),
            target: None,
            daemons: Mutex::default(),
            folder,
            state: Mutex::new(state),
            is_owner,
        }
    }

    fn build(&mut self) -> Result<()> {
        let plan = self.plan();
        self.switch.make()?;
        self.san.make()?;
        self.switch.plug(&self.san, Network::San, TARGET)?;
        for node in &self.nodes {
            node.make_folders()?;
            node.namespace().make()?;
            for network in Network::ALL {
                self.switch.plug(node.namespace(), network, node.number())?;
            }
        }
        for (network, rate) in [(Network::Lan, plan.rate_lan), (Network::San, plan.rate_san)] {
            for node in self.nodes.iter().filter(|_| rate.is_some()) {
                self.switch.shape(node.namespace(), network, node.number(), rate)?;
            }
        }
        let file = cluster_file(&self.cluster_name(), &plan);
        std::fs::write(self.cluster_file(), file).context("writing the cluster file")?;
        let san_folder = self.folder.join(SAN_HOST);
        std::fs::create_dir_all(san_folder.join("log"))?;
        let spec = target::spec(&plan, &san_folder)?;
        let daemon = self.start(SAN_HOST, spec).context("the target")?;
        self.target = Some(self.new_target(daemon));
        Ok(())
    }

    fn plan(&self) -> Plan {
        self.state.lock().plan.clone()
    }

    /// The lab's name.
    #[must_use]
    pub fn name(&self) -> String {
        self.state.lock().name.clone()
    }

    /// The cluster's name in the cluster file.
    #[must_use]
    pub fn cluster_name(&self) -> String {
        cluster_name(&self.name())
    }

    /// The lab's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path of the cluster file.
    #[must_use]
    pub fn cluster_file(&self) -> PathBuf {
        self.folder.join("cluster.toml")
    }

    /// What is written down of it.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.lock().clone()
    }

    /// The nodes, `n1` first.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node with this number, from 1 on.
    ///
    /// # Panics
    /// If there is none: a test knows its nodes.
    #[must_use]
    pub fn node(&self, number: u8) -> &Node {
        let found = self.nodes.iter().find(|node| node.number() == number);
        found.unwrap_or_else(|| panic!("there is no node {number}"))
    }

    /// The node of this name.
    ///
    /// # Errors
    /// Names those that there are.
    pub fn node_named(&self, name: &str) -> Result<&Node> {
        let found = self.nodes.iter().find(|node| node.name() == name);
        found.with_context(|| {
            let names: Vec<String> = self.nodes.iter().map(Node::name).collect();
            format!("there is no node {name}: the lab has {}", names.join(", "))
        })
    }

    /// The server of the LUN.
    ///
    /// # Panics
    /// If the lab was not made to its end.
    #[must_use]
    pub fn target(&self) -> &Target {
        self.target.as_ref().expect("a lab that is up has a target")
    }

    /// The namespace of a host: a node's name, or `san`.
    pub fn namespace(&self, host: &str) -> Result<&Namespace> {
        if host == SAN_HOST { Ok(&self.san) } else { Ok(self.node_named(host)?.namespace()) }
    }

    fn new_target(&self, daemon: Arc<Daemon>) -> Target {
        Target::new(self.plan().target, self.folder.join(SAN_HOST), self.san.clone(), daemon)
    }

    fn new_daemon(&self, host: &str, spec: DaemonSpec) -> Result<Daemon> {
        let logs = self.folder.join(host).join("log");
        Ok(Daemon::new(host, spec, self.namespace(host)?.clone(), logs, self.plan().kept))
    }

    fn remember(&self, daemon: Arc<Daemon>) {
        self.daemons.lock().insert((daemon.host().to_owned(), daemon.spec().name.clone()), daemon);
    }

    /// Writes down what has changed.
    fn save(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        // The lock is held while the file is written: nothing else waits for it but the next who writes the file.
        let mut state = self.state.lock();
        change(&mut state);
        state.write(&self.folder)
    }

    fn save_daemon(&self, daemon: &Daemon) -> Result<()> {
        let now = DaemonState {
            host: daemon.host().to_owned(),
            spec: daemon.spec().clone(),
            process: daemon.process(),
        };
        self.save(|state| {
            state.daemons.retain(|old| (&old.host, &old.spec.name) != (&now.host, &now.spec.name));
            state.daemons.push(now);
        })
    }

    /// Starts a daemon on `host` and waits until it is ready.
    pub fn start(&self, host: &str, spec: DaemonSpec) -> Result<Arc<Daemon>> {
        let daemon = self.launch(host, spec)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Starts a daemon on `host`, and does not wait until it is ready: for several that need each other.
    pub fn launch(&self, host: &str, spec: DaemonSpec) -> Result<Arc<Daemon>> {
        let key = (host.to_owned(), spec.name.clone());
        let before = self.daemons.lock().get(&key).cloned();
        if let Some(before) = before.filter(|daemon| daemon.is_alive()) {
            bail!("{} runs already", before.title());
        }
        let daemon = Arc::new(self.new_daemon(host, spec)?);
        daemon.launch()?;
        self.remember(Arc::clone(&daemon));
        self.save_daemon(&daemon)?;
        Ok(daemon)
    }

    /// The daemon of this name on `host`, whether it runs or not.
    pub fn daemon(&self, host: &str, name: &str) -> Result<Arc<Daemon>> {
        let found = self.daemons.lock().get(&(host.to_owned(), name.to_owned())).cloned();
        found.with_context(|| {
            let there: Vec<String> = self.daemons().iter().map(|daemon| daemon.title()).collect();
            format!("there is no {host}/{name}: the lab has {}", there.join(", "))
        })
    }

    /// All daemons that were started.
    #[must_use]
    pub fn daemons(&self) -> Vec<Arc<Daemon>> {
        self.daemons.lock().values().cloned().collect()
    }

    /// Starts a daemon again that has ended, with its command line.
    pub fn restart(&self, host: &str, name: &str) -> Result<()> {
        let daemon = self.daemon(host, name)?;
        if !is_target(&daemon) {
            self.clear_mount(&daemon)?;
        }
        daemon.launch()?;
        self.save_daemon(&daemon)?;
        daemon.wait_ready()
    }

    /// Detaches what a killed mount has left.
    fn clear_mount(&self, daemon: &Daemon) -> Result<()> {
        ensure!(!daemon.is_alive(), "{} runs already", daemon.title());
        let at = self.folder.join(daemon.host()).join("mnt");
        if daemon.spec().name == "csvfs" && is_mounted(&at) {
            sys::detach_mount(&at).with_context(|| format!("detaching {}", at.display()))?;
        }
        Ok(())
    }

    /// Asks a daemon to end (SIGTERM), waits for that, and demands that it ends well.
    pub fn stop(&self, host: &str, name: &str) -> Result<()> {
        let daemon = self.daemon(host, name)?;
        let status = daemon.stop(STOP)?;
        self.save_daemon(&daemon)?;
        if let Some(status) = status {
            ensure!(status.success(), "{} ended with {status}: {}", daemon.title(), daemon.last_words(20));
        }
        Ok(())
    }

    /// Kills a daemon (SIGKILL). What a mount leaves is detached, so that nobody waits for it.
    pub fn kill(&self, host: &str, name: &str) -> Result<()> {
        let daemon = self.daemon(host, name)?;
        daemon.kill()?;
        self.clear_mount(&daemon)?;
        self.save_daemon(&daemon)
    }

    /// Stops a daemon's threads; its sockets stay.
    pub fn pause(&self, host: &str, name: &str) -> Result<()> {
        self.daemon(host, name)?.pause()
    }

    /// Lets a paused daemon go on.
    pub fn resume(&self, host: &str, name: &str) -> Result<()> {
        self.daemon(host, name)?.resume()
    }

    /// Kills every daemon of a node, as a loss of its power would.
    pub fn crash(&self, host: &str) -> Result<()> {
        for daemon in self.daemons().into_iter().filter(|daemon| daemon.host() == host && daemon.is_alive()) {
            self.kill(host, &daemon.spec().name)?;
        }
        Ok(())
    }

    /// A command that will run on `host`, with the variables that name the cluster and the node.
    pub fn exec(&self, host: &str, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = self.namespace(host)?.command(program)?;
        command.env("CSV_CLUSTER", self.cluster_file());
        if let Ok(node) = self.node_named(host) {
            command.env("CSV_NODE", node.name()).env("CSV_RUN_DIR", node.run_folder());
        }
        Ok(command)
    }

    /// Runs one of our programs on `host` to its end and demands that it succeeds.
    pub fn exec_ours(&self, host: &str, program: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = self.exec(host, crate::programs::ours(program)?)?;
        let output = command.args(arguments).output().with_context(|| format!("running {program}"))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{program} {arguments:?} on {host} failed ({}): {errors}",
            output.status
        );
        Ok(output)
    }

    /// Makes the cluster's certificates: `lockctl init`.
    pub fn init(&self) -> Result<()> {
        let file = self.cluster_file().display().to_string();
        self.exec_ours("n1", "lockctl", &["init", &file]).map(drop)
    }

    /// Starts lockd on all nodes, and waits until each is ready.
    pub fn start_lockd(&self) -> Result<()> {
        let started: Result<Vec<_>> =
            self.nodes.iter().map(|node| self.launch(&node.name(), node.lockd()?)).collect();
        // A voter is ready only when others are there.
        started?.iter().try_for_each(|daemon| daemon.wait_ready())
    }

    /// Formats the cluster's volume, with the plan's window.
    pub fn format(&self) -> Result<()> {
        let file = self.cluster_file().display().to_string();
        let window = self.plan().window_ms.to_string();
        let times = ["--window-ms", &window, "--quiesce-ms", &window];
        let arguments = [&["format", "--cluster", &file, VOLUME], &times[..]].concat();
        self.exec_ours("n1", "csvfs", &arguments).map(drop)
    }

    /// Mounts the cluster's volume on a node.
    pub fn mount(&self, number: u8) -> Result<PathBuf> {
        let node = self.node(number);
        self.start(&node.name(), node.mount()?)?;
        Ok(node.mount_point())
    }

    /// Formats the LUN for a mount without a cluster.
    pub fn format_standalone(&self) -> Result<()> {
        let window = self.plan().window_ms.to_string();
        let url = self.target().url();
        let arguments = ["format", "--lun", &url, "--window-ms", &window, "--quiesce-ms", &window];
        self.exec_ours("n1", "csvfs", &arguments).map(drop)
    }

    /// Mounts the LUN on a node, without a cluster.
    pub fn mount_standalone(&self, number: u8) -> Result<PathBuf> {
        let node = self.node(number);
        self.start(&node.name(), node.standalone_mount(&self.target().url())?)?;
        Ok(node.mount_point())
    }

    /// What `csvfs status --json` says of the mount on a node.
    pub fn status(&self, number: u8) -> Result<serde_json::Value> {
        let node = self.node(number);
        let run = node.run_folder().display().to_string();
        let output = self.exec_ours(&node.name(), "csvfs", &["status", "--json", "--run-dir", &run])?;
        let all: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("the status is not JSON")?;
        let mine = |volume: &&serde_json::Value| volume["node"] == node.name().as_str();
        let volume = all["volumes"].as_array().and_then(|volumes| volumes.iter().find(mine));
        volume.cloned().with_context(|| format!("{} has no mount: {all}", node.name()))
    }

    /// Limits a node's interface to so many bytes a second and direction; no number lifts the limit.
    pub fn shape(&self, number: u8, network: Network, bytes_s: Option<u64>) -> Result<()> {
        self.switch.shape(self.node(number).namespace(), network, number, bytes_s)
    }

    /// Cuts a node off a network.
    pub fn cut(&self, number: u8, network: Network, how: Cut) -> Result<()> {
        let node = self.node(number);
        self.switch.cut(node.namespace(), network, number, how)?;
        let cut = CutState { host: node.name(), to: None, network, how };
        self.save(|state| {
            state.cuts.retain(|old| !old.is_of(&cut));
            state.cuts.push(cut);
        })
    }

    /// Gives a node its network back. What is cut between it and single others stays cut.
    pub fn heal(&self, number: u8, network: Network) -> Result<()> {
        self.switch.heal(network, number)?;
        let host = self.node(number).name();
        let cut = CutState { host, to: None, network, how: Cut::Silent };
        self.save(|state| state.cuts.retain(|old| !old.is_of(&cut)))
    }

    /// Cuts two nodes off each other, in both directions; each still reaches the others.
    pub fn cut_link(&self, one: u8, other: u8, network: Network) -> Result<()> {
        self.cut_way(one, other, network)?;
        self.cut_way(other, one, network)
    }

    /// Undoes [`Cluster::cut_link`].
    pub fn heal_link(&self, one: u8, other: u8, network: Network) -> Result<()> {
        self.heal_way(one, other, network)?;
        self.heal_way(other, one, network)
    }

    fn way(&self, from: u8, to: u8, network: Network) -> CutState {
        let [host, to] = [from, to].map(|number| self.node(number).name());
        CutState { host, to: Some(to), network, how: Cut::Silent }
    }

    /// Loses what one node sends to another; the other direction still works.
    pub fn cut_way(&self, from: u8, to: u8, network: Network) -> Result<()> {
        let cut = self.way(from, to, network);
        self.switch.cut_way(self.node(from).namespace(), to, network)?;
        self.save(|state| {
            state.cuts.retain(|old| !old.is_of(&cut));
            state.cuts.push(cut);
        })
    }

    /// Undoes [`Cluster::cut_way`].
    pub fn heal_way(&self, from: u8, to: u8, network: Network) -> Result<()> {
        let cut = self.way(from, to, network);
        self.switch.heal_way(self.node(from).namespace(), to, network)?;
        self.save(|state| state.cuts.retain(|old| !old.is_of(&cut)))
    }

    /// Whether packets go from one node to another and back.
    pub fn ping(&self, from: u8, to: u8, network: Network, limit: Duration) -> Result<bool> {
        let address = SocketAddr::new(network.address(to).into(), QUIET_PORT);
        // A host that refuses has been reached.
        Ok(matches!(
            self.node(from).namespace().reaches(address, limit)?,
            Reached::Accepted | Reached::Refused
        ))
    }

    /// The last lines of every daemon's log.
    #[must_use]
    pub fn last_words(&self, lines: usize) -> String {
        let mut text = format!("--- the lab {} in {}", self.name(), self.folder.display());
        for daemon in self.daemons() {
            let runs = if daemon.is_alive() { "runs" } else { "has ended" };
            text += &format!("\n--- {} ({runs}) said:\n{}", daemon.title(), daemon.last_words(lines));
        }
        text
    }

    /// Ends the lab in order: mounts are unmounted and daemons asked to end, the target last. Then nothing of it is left.
    ///
    /// # Errors
    /// If a daemon did not end well. Everything is taken away all the same.
    pub fn down(mut self) -> Result<()> {
        let done = self.stop_all();
        self.is_owner = false;
        self.remove().and(done)
    }

    fn stop_all(&self) -> Result<()> {
        let rank = |daemon: &Arc<Daemon>| match daemon.spec().name.as_str() {
            _ if is_target(daemon) => 2,
            "lockd" => 1,
            _ => 0,
        };
        let mut daemons = self.daemons();
        daemons.sort_by_key(rank);
        let mut done = Ok(());
        for daemon in daemons.iter().filter(|daemon| daemon.is_alive()) {
            done = done.and(self.stop(daemon.host(), &daemon.spec().name));
        }
        done
    }

    fn remove(&self) -> Result<()> {
        let (name, known) = {
            let state = self.state.lock();
            (state.name.clone(), state.processes())
        };
        let removed = remove(&name, &self.folder, &known);
        for daemon in self.daemons() {
            daemon.forget();
        }
        removed
    }
}

fn is_target(daemon: &Daemon) -> bool {
    daemon.host() == SAN_HOST
}

impl CutState {
    /// Whether both are about the same connection.
    fn is_of(&self, other: &Self) -> bool {
        (&self.host, &self.to, self.network) == (&other.host, &other.to, other.network)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.is_owner {
            return;
        }
        if std::thread::panicking() {
            eprintln!("{}", self.last_words(LAST_LINES));
        }
        if let Err(error) = self.remove() {
            eprintln!("the lab {} is not removed: {error:#}", self.name());
        }
    }
}
