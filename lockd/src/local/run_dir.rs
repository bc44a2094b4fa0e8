//! The run directory of a node: `/run/csvfs/CLUSTER/NODE`, where its daemons keep their sockets and the lease page.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where run directories are, unless an option says otherwise.
pub const RUN_DIR: &str = "/run/csvfs";

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// It could not be made or read.
    #[error("cannot use the run directory {path}: {source}; run as root, or give another with --run-dir")]
    Io {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another lockd uses it.
    #[error("{path} is in use by another lockd, process {pid}; a node runs one")]
    InUse {
        /// The directory.
        path: PathBuf,
        /// What the other has written about itself.
        pid: String,
    },
    /// No node's lockd, or several, have a socket below the directory.
    #[error("{found} under {path}; name one with --node (and --cluster)")]
    Ambiguous {
        /// Where they were looked for.
        path: PathBuf,
        /// What was found.
        found: String,
    },
}

/// A node's run directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// That of `node` of `cluster` below `base`.
    #[must_use]
    pub fn of(base: &Path, cluster: &str, node: &str) -> Self {
        Self(base.join(cluster).join(node))
    }

    /// The only one below `base` with a lockd's socket; of `cluster` and `node`, when they are given.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn find(base: &Path, cluster: Option<&str>, node: Option<&str>) -> Result<Self, RunDirError> {
        let mut found = Vec::new();
        for clusters in entries(base) {
            if cluster.is_some_and(|name| !clusters.ends_with(name)) {
                continue;
            }
            let nodes = entries(&clusters).into_iter().map(Self);
            found.extend(
                nodes.filter(|dir| dir.socket().exists() && node.is_none_or(|name| dir.0.ends_with(name))),
            );
        }
        if found.len() > 1 {
            let path = base.to_owned();
            let names: Vec<_> = found.iter().map(|dir| dir.0.display().to_string()).collect();
            return Err(RunDirError::Ambiguous { path, found: format!("there are {}", names.join(", ")) });
        }
        found.pop().ok_or_else(|| {
            let found = "no lockd has its socket".to_owned();
            RunDirError::Ambiguous { path: base.to_owned(), found }
        })
    }

    /// All below `base` that have a lockd's socket.
    #[must_use]
    pub fn all(base: &Path) -> Vec<Self> {
        let nodes = entries(base).into_iter().flat_map(|cluster| entries(&cluster));
        nodes.map(Self).filter(|dir| dir.socket().exists()).collect()
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The name of the cluster.
    #[must_use]
    pub fn cluster(&self) -> Option<&str> {
        self.0.parent()?.file_name()?.to_str()
    }

    /// The socket of lockd.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.0.join("lockd.sock")
    }

    /// The lease page.
    #[must_use]
    pub fn lease_page(&self) -> PathBuf {
        self.0.join("lease")
    }

    /// Makes the directory and claims it for this lockd, until the lock is dropped or the process ends.
    ///
    /// # Errors
    /// If it cannot be used, or another lockd has it.
    pub fn claim(&self) -> Result<RunDirLock, RunDirError> {
        let failed = |source| RunDirError::Io { path: self.0.clone(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.0).map_err(failed)?;
        let path = self.0.join("lockd.pid");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o644);
        let mut file = options.open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(failed)?;
                let pid = pid.trim().to_owned();
                return Err(RunDirError::InUse { path: self.0.clone(), pid });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(RunDirLock { _file: file })
    }
}

/// Keeps a run directory for this process.
#[derive(Debug)]
pub struct RunDirLock {
    _file: File,
}

fn entries(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let mut paths: Vec<_> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    paths.sort();
    paths
}
