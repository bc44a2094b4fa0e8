//! The cluster's daemons and its volume on a running lab.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Cluster;
use super::config::VOLUME;
use super::plan::Plan;
use crate::history::{FileRegister, Register};
use crate::mounted::fsck_clean;
use crate::wait::until;

/// How long a mount may take to be in a state.
const STATE_WITHIN: Duration = Duration::from_secs(30);

impl Cluster {
    /// Makes a lab whose nodes all have the volume mounted, the first one as its coordinator; runs `test` on it, ends it
    /// in order, and demands that the volume is clean.
    pub fn run_mounted(plan: Plan, test: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        Self::run(plan, |cluster| {
            cluster.mount_all()?;
            test(cluster)?;
            cluster.end_clean()
        })
    }

    /// Certificates, lockd on all nodes, a fresh volume, and its mount on every node, the first one's first.
    pub fn mount_all(&self) -> Result<()> {
        self.init()?;
        self.start_lockd()?;
        self.format()?;
        self.nodes.iter().try_for_each(|node| self.mount(node.number()).map(drop))
    }

    /// Unmounts all nodes and ends the target in order, and demands that fsck finds nothing wrong.
    pub fn end_clean(&self) -> Result<()> {
        // The last first: as a rule no role is handed over for it.
        for node in self.nodes.iter().rev() {
            self.stop(&node.name(), "csvfs")?;
        }
        self.target().stop()?;
        fsck_clean(&self.target().image_url())
    }

    /// Runs lockctl on a node and demands that it succeeds; gives what it printed.
    pub fn lockctl(&self, node: &str, arguments: &[&str]) -> Result<String> {
        let output = self.exec_ours(node, "lockctl", arguments)?;
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The path of a file of the volume on a node's mount.
    #[must_use]
    pub fn path(&self, number: u8, name: &str) -> PathBuf {
        self.node(number).mount_point().join(name)
    }

    /// Makes a node the owner of these files, by hand.
    pub fn acquire<S: AsRef<str>>(&self, number: u8, names: &[S]) -> Result<()> {
        let node = self.node(number).name();
        let paths = names.iter().map(|name| self.path(number, name.as_ref()).display().to_string());
        let paths: Vec<String> = paths.collect();
        let mut arguments = vec!["acquire"];
        arguments.extend(paths.iter().map(String::as_str));
        arguments.extend(["--node", &node]);
        self.lockctl(&node, &arguments).map(drop)
    }

    /// Transfers these files as one set from the node that owns them to another; gives the pause that lockctl names.
    pub fn transfer<S: AsRef<str>>(&self, from: u8, to: u8, names: &[S]) -> Result<Duration> {
        let (node, to) = (self.node(from).name(), self.node(to).name());
        let path = |name: &str| self.path(from, name).display().to_string();
        // A resource is named as it is.
        let named = |name: &str| if name.starts_with("volume/") { name.to_owned() } else { path(name) };
        let paths: Vec<String> = names.iter().map(|name| named(name.as_ref())).collect();
        let mut arguments = vec!["--json", "transfer"];
        arguments.extend(paths.iter().map(String::as_str));
        arguments.extend(["--to", &to]);
        let said = self.lockctl(&node, &arguments)?;
        let document: Value = serde_json::from_str(&said).context("lockctl's answer is not JSON")?;
        let pause = document[0]["pause_s"].as_f64();
        Ok(Duration::from_secs_f64(pause.with_context(|| format!("no pause in {said}"))?))
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
        self.exec_ours("n1", "csvfs", &["format", "--cluster", &file, VOLUME, "--window-ms", &window])
            .map(drop)
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
    pub fn status(&self, number: u8) -> Result<Value> {
        let node = self.node(number);
        let run = node.run_folder().display().to_string();
        let output = self.exec_ours(&node.name(), "csvfs", &["status", "--json", "--run-dir", &run])?;
        let all: Value = serde_json::from_slice(&output.stdout).context("the status is not JSON")?;
        let volumes = all["volumes"].as_array().map_or(&[][..], Vec::as_slice);
        // A mount alone is a volume by itself; a cluster's volume has one on each node.
        let of_cluster = volumes.iter().filter_map(|volume| volume["nodes"].as_array()).flatten();
        let mounts = volumes.iter().chain(of_cluster.map(|node| &node["mount"]));
        let mine = |mount: &&Value| mount["node"] == node.name().as_str();
        mounts.into_iter().find(mine).cloned().with_context(|| format!("{} has no mount: {all}", node.name()))
    }

    /// What `csvfs status --json` says on a node of the cluster.
    pub fn cluster_status(&self, number: u8) -> Result<Value> {
        let node = self.node(number);
        let run = node.run_folder().display().to_string();
        let output = self.exec_ours(&node.name(), "csvfs", &["status", "--json", "--run-dir", &run])?;
        serde_json::from_slice(&output.stdout).context("the status is not JSON")
    }

    /// What is said on node `asked` of the volume's mount on node `of`.
    pub fn said_of(&self, asked: u8, of: &str) -> Result<Value> {
        let status = self.cluster_status(asked)?;
        let nodes =
            status["volumes"][0]["nodes"].as_array().with_context(|| format!("no table: {status}"))?;
        let found = nodes.iter().find(|node| node["node"] == of);
        found.cloned().with_context(|| format!("{of} is left out: {status}"))
    }

    /// Waits until the mount on node `of` is said to be in `state` on node `asked`, and gives what is said of it.
    pub fn await_state(&self, asked: u8, of: &str, state: &str) -> Result<Value> {
        until(&format!("{of} is {state}, seen on n{asked}"), STATE_WITHIN, || {
            self.said_of(asked, of).ok().filter(|node| node["state"] == state)
        })
    }

    /// The blocks of a file of the volume, as each of these nodes sees them through its mount.
    pub fn registers(&self, numbers: &[u8], file: &str) -> Result<Vec<Arc<dyn Register>>> {
        let open = |number: &u8| -> Result<Arc<dyn Register>> {
            let path = self.node(*number).mount_point().join(file);
            let register =
                FileRegister::open(&path).with_context(|| format!("opening {}", path.display()))?;
            Ok(Arc::new(register))
        };
        numbers.iter().map(open).collect()
    }
}
