//! The cluster's daemons and its volume on a running lab.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Cluster;
use super::config::VOLUME;
use crate::history::{FileRegister, Register};

impl Cluster {
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
