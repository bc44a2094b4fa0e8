//! A node of the lab: its folders, and the command lines of the daemons that run on it.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::config::VOLUME;
use super::daemon::{DaemonSpec, Ready};
use super::namespace::Namespace;
use crate::programs;

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    number: u8,
    folder: PathBuf,
    namespace: Namespace,
    cluster: String,
    cluster_file: PathBuf,
}

impl Node {
    /// A node of the cluster `cluster` in the lab's folder `lab`.
    pub(super) fn new(number: u8, lab: &Path, namespace: Namespace, cluster: &str) -> Self {
        let folder = lab.join(format!("n{number}"));
        let cluster_file = lab.join("cluster.toml");
        Self { number, folder, namespace, cluster: cluster.to_owned(), cluster_file }
    }

    /// Its number, from 1 on: the last byte of its addresses.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its name, such as `n1`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("n{}", self.number)
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where its daemons keep their sockets.
    #[must_use]
    pub fn run_folder(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// Where its lockd keeps its data.
    #[must_use]
    pub fn data_folder(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Where the logs of its daemons are.
    #[must_use]
    pub fn log_folder(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Where the volume is mounted on it. The mount is seen on the whole machine.
    #[must_use]
    pub fn mount_point(&self) -> PathBuf {
        self.folder.join("mnt")
    }

    pub(super) fn make_folders(&self) -> Result<()> {
        for folder in [self.run_folder(), self.data_folder(), self.log_folder(), self.mount_point()] {
            std::fs::create_dir_all(folder)?;
        }
        Ok(())
    }

    /// The socket of its lockd.
    #[must_use]
    pub fn lockd_socket(&self) -> PathBuf {
        self.run_folder().join(&self.cluster).join(self.name()).join("lockd.sock")
    }

    fn with_environment(&self, spec: DaemonSpec) -> DaemonSpec {
        let folder = self.failpoint_folder();
        let spec =
            if folder.exists() { spec.env("CSV_FAILPOINTS", &folder.display().to_string()) } else { spec };
        spec.env("CSV_CLUSTER", &self.cluster_file.display().to_string())
            .env("CSV_NODE", &self.name())
            .env("CSV_RUN_DIR", &self.run_folder().display().to_string())
    }

    /// The lockd of this node: ready when its socket accepts clients.
    pub fn lockd(&self) -> Result<DaemonSpec> {
        let spec = DaemonSpec::new("lockd", programs::ours("lockd")?)
            .args([Path::new("--cluster"), &self.cluster_file])
            .args(["--node", &self.name()])
            .args([Path::new("--data"), &self.data_folder(), Path::new("--run-dir"), &self.run_folder()])
            .ready(Ready::Socket(self.lockd_socket()));
        Ok(self.with_environment(spec))
    }

    /// The mount of the cluster's volume on this node: ready when it is mounted.
    pub fn mount(&self) -> Result<DaemonSpec> {
        let mount_point = self.mount_point();
        let spec = DaemonSpec::new("csvfs", programs::ours("csvfs")?)
            .args([Path::new("mount"), Path::new("--foreground"), Path::new("--cluster"), &self.cluster_file])
            .args(["--node", &self.name(), VOLUME])
            .args([&mount_point, Path::new("--run-dir"), &self.run_folder()])
            .ready(Ready::Line(mount_point.display().to_string()));
        Ok(self.with_environment(spec))
    }

    /// A mount of the LUN at `url` on this node, without a cluster.
    pub fn standalone_mount(&self, url: &str) -> Result<DaemonSpec> {
        let mount_point = self.mount_point();
        Ok(DaemonSpec::new("csvfs", programs::ours("csvfs")?)
            .args(["mount", "--foreground", "--node", &self.name(), "--lun", url])
            .args([&mount_point, Path::new("--run-dir"), &self.run_folder()])
            .ready(Ready::Line(mount_point.display().to_string())))
    }
}
