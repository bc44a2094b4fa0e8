//! Which lockd of this machine a command asks.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::connection::Connection;
use super::error::ClientError;
use crate::ids::NodeName;
use crate::local::run_dir::RunDir;

/// How long a lockd may take to accept, when there are others to ask.
const ACCEPT: Duration = Duration::from_millis(500);

/// Why no lockd can be asked.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// None has a socket.
    #[error("no lockd{of} has a socket under {base}; start lockd, or name the directory with --run-dir")]
    NoSocket {
        /// Of which cluster, if one was named: " of the cluster NAME".
        of: String,
        /// Where they were looked for.
        base: PathBuf,
    },
    /// Several clusters have some.
    #[error("lockds of several clusters run here ({0}); name one with --cluster FILE")]
    SeveralClusters(String),
    /// None accepts.
    #[error("none of the lockds under {0} answers; look whether they run (systemctl status lockd)")]
    Silent(PathBuf),
    /// The one that was asked does not answer.
    #[error("lockd was not reached")]
    Unreached(#[from] ClientError),
}

/// Which lockd: the named node's, the only one, or any that answers.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The directory below which run directories are.
    pub run_base: PathBuf,
    /// The cluster's name; without it, the only one that there is.
    pub cluster: Option<String>,
    /// The node whose lockd is asked before all others.
    pub node: Option<NodeName>,
    /// How long it may take to accept.
    pub patience: Duration,
}

impl Choice {
    /// The run directories of the lockds that can be asked, the named node's first.
    ///
    /// # Errors
    /// If there is none, or they belong to several clusters and none was named.
    pub fn run_dirs(&self) -> Result<Vec<RunDir>, ChoiceError> {
        let mut dirs = RunDir::all(&self.run_base);
        match &self.cluster {
            Some(cluster) => dirs.retain(|dir| dir.cluster().is_some_and(|name| name == cluster.as_str())),
            None if clusters(&dirs).len() > 1 => {
                // Those of a cluster that is gone left their sockets.
                dirs.retain(accepts);
                let names = clusters(&dirs);
                if names.len() > 1 {
                    return Err(ChoiceError::SeveralClusters(names.join(", ")));
                }
            }
            None => {}
        }
        if let Some(node) = &self.node {
            dirs.sort_by_key(|dir| !dir.path().ends_with(node.as_str()));
        }
        if dirs.is_empty() {
            let of = self.cluster.as_ref().map(|name| format!(" of the cluster {name}")).unwrap_or_default();
            return Err(ChoiceError::NoSocket { of, base: self.run_base.clone() });
        }
        Ok(dirs)
    }

    /// A connection to one of them.
    ///
    /// # Errors
    /// If none can be asked, or none answers in time.
    pub fn connect(&self) -> Result<Connection, ChoiceError> {
        self.reach(|dir, accept| Ok(Connection::open(dir, accept)?.with_patience(self.patience)))
    }

    /// Tries `connect`, with the time that it may take, for each lockd that there is.
    ///
    /// # Errors
    /// If none can be asked, or none answers in time.
    pub fn reach<T>(
        &self,
        connect: impl Fn(&RunDir, Duration) -> Result<T, ClientError>,
    ) -> Result<T, ChoiceError> {
        let dirs = self.run_dirs()?;
        let mut failed = None;
        for dir in &dirs {
            // One that is killed leaves its socket.
            if dirs.len() > 1 && !accepts(dir) {
                continue;
            }
            let patience = if dirs.len() > 1 { ACCEPT } else { self.patience };
            match connect(dir, patience) {
                Ok(connection) => return Ok(connection),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.map_or_else(|| ChoiceError::Silent(self.run_base.clone()), ChoiceError::Unreached))
    }
}

fn accepts(dir: &RunDir) -> bool {
    UnixStream::connect(dir.socket()).is_ok()
}

fn clusters(dirs: &[RunDir]) -> Vec<&str> {
    let mut names: Vec<_> = dirs.iter().filter_map(RunDir::cluster).collect();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn choice(base: &std::path::Path) -> Choice {
        Choice { run_base: base.to_owned(), cluster: None, node: None, patience: Duration::from_millis(10) }
    }

    #[test]
    fn a_cluster_that_is_gone_is_not_in_the_way_of_one_that_runs() {
        let base = tempfile::tempdir().expect("a folder");
        let bind = |cluster: &str, node: &str| {
            let dir = RunDir::of(base.path(), cluster, node);
            std::fs::create_dir_all(dir.path()).expect("made");
            UnixListener::bind(dir.socket()).expect("bound")
        };
        let none = choice(base.path()).run_dirs().expect_err("nothing there").to_string();
        assert!(none.contains("no lockd has a socket"), "{none}");
        let gone = bind("old", "n1");
        let (_one, _two) = (bind("new", "n1"), bind("new", "n2"));
        let several = choice(base.path()).run_dirs().expect_err("two clusters").to_string();
        assert!(several.contains("new, old"), "{several}");
        drop(gone);
        let node = Some("n2".parse().expect("a name"));
        let dirs = Choice { node, ..choice(base.path()) }.run_dirs().expect("one cluster");
        assert_eq!(dirs.len(), 2);
        assert!(dirs[0].path().ends_with("new/n2"), "the named node comes first: {dirs:?}");
        let other = Choice { cluster: Some("third".to_owned()), ..choice(base.path()) };
        let missing = other.run_dirs().expect_err("there is none").to_string();
        assert!(missing.contains("of the cluster third"), "{missing}");
    }
}
