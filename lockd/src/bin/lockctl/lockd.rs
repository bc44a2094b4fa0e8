//! Which lockd is asked.

use std::time::Duration;

use anyhow::{Context, bail};
use lockd::client::Connection;
use lockd::cluster::Cluster;
use lockd::local::run_dir::RunDir;

use crate::Common;

/// How long a lockd may take to accept, when there are others to ask.
const ACCEPT: Duration = Duration::from_millis(500);

impl Common {
    /// How long to try.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs_f64(self.timeout)
    }

    /// The run directories of the lockds that can be asked, the named node's first.
    pub(crate) fn run_dirs(&self) -> anyhow::Result<Vec<RunDir>> {
        let cluster = match &self.cluster {
            Some(file) => Some(Cluster::read(file)?.name),
            None => None,
        };
        let mut dirs = RunDir::all(&self.run_dir);
        if let Some(cluster) = &cluster {
            dirs.retain(|dir| dir.path().parent().is_some_and(|parent| parent.ends_with(cluster)));
        }
        let mut clusters: Vec<_> = dirs.iter().filter_map(|dir| dir.path().parent()).collect();
        clusters.dedup();
        if clusters.len() > 1 {
            bail!("lockds of several clusters run here; name one with --cluster");
        }
        if let Some(node) = &self.node {
            dirs.sort_by_key(|dir| !dir.path().ends_with(node.as_str()));
        }
        if dirs.is_empty() {
            let base = self.run_dir.display();
            bail!("no lockd has a socket under {base}; start lockd, or name the directory with --run-dir");
        }
        Ok(dirs)
    }

    /// A connection to a lockd: the named node's, the only one, or any that answers.
    pub(crate) fn connect(&self) -> anyhow::Result<Connection> {
        self.reach(|dir, accept| Ok(Connection::open(dir, accept)?.with_patience(self.patience())))
    }

    /// Tries `connect` with each lockd that there is.
    pub(crate) fn reach<T>(
        &self,
        connect: impl Fn(&RunDir, Duration) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let dirs = self.run_dirs()?;
        let mut failed = None;
        for dir in &dirs {
            // One that is killed leaves its socket.
            if dirs.len() > 1 && std::os::unix::net::UnixStream::connect(dir.socket()).is_err() {
                continue;
            }
            let patience = if dirs.len() > 1 { ACCEPT } else { self.patience() };
            match connect(dir, patience) {
                Ok(connection) => return Ok(connection),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| {
            anyhow::anyhow!("none of the lockds under {} answers", self.run_dir.display())
        }))
        .context("lockd was not reached")
    }
}
