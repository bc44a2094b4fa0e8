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
mod failpoints;
mod faults;
mod identity;
mod namespace;
mod network;
mod node;
mod plan;
mod power;
mod removal;
mod roles;
mod running;
mod state;
mod sys;
mod target;
mod volume;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;

pub use config::{VOLUME, cluster_file, lun_url};
pub use daemon::{Daemon, DaemonSpec, Ready, is_mounted};
pub use faults::Scissors;
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
/// How many lines of each log a failed test shows.
const LAST_LINES: usize = 30;

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
    ///
    /// # Errors
    /// If the plan cannot be, root is missing, or a step fails; what was made until then is taken away.
    pub fn up(plan: Plan) -> Result<Self> {
        plan.check()?;
        let user = std::fs::metadata("/proc/self").context("/proc is not mounted")?.uid();
        ensure!(user == 0, "the lab makes network namespaces and mounts: run it as root, not as user {user}");
        let name = plan.name.clone().unwrap_or_else(fresh_name);
        let state = State::new(&name, &plan)?;
        let base = Base::hold(&plan.base)?;
        // What cannot be taken away of another lab is no reason not to make this one.
        if let Err(error) = base.sweep() {
            eprintln!("{error:#}");
        }
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
        let cluster = cluster_name(&state.name);
        let nodes = (1..=state.plan.nodes)
            .map(|number| Node::new(number, &folder, namespace(&format!("n{number}")), &cluster));
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
        if plan.has_control() {
            // The target obeys whom its authority has certified.
            self.init()?;
        }
        let spec = target::spec(&plan, &san_folder, &self.folder)?;
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
        let (folder, file) = (self.folder.join(SAN_HOST), self.cluster_file());
        Target::new(&self.plan(), &folder, self.san.clone(), daemon, &file)
    }

    fn new_daemon(&self, host: &str, spec: DaemonSpec) -> Result<Daemon> {
        let logs = self.folder.join(host).join("log");
        Ok(Daemon::new(host, spec, self.namespace(host)?.clone(), logs, self.plan().kept))
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
