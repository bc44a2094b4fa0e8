//! The daemons of a running lab.

use std::ffi::OsStr;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::daemon::{Daemon, DaemonSpec, is_mounted};
use super::state::{DaemonState, State};
use super::{Cluster, SAN_HOST, sys};
use crate::programs;

/// How long a daemon may take to end when it is asked to.
const STOP: Duration = Duration::from_secs(20);

/// How many arguments of a command that failed are shown: there may be thousands of paths.
const ARGUMENTS_SHOWN: usize = 8;

impl Cluster {
    pub(super) fn remember(&self, daemon: Arc<Daemon>) {
        self.daemons.lock().insert((daemon.host().to_owned(), daemon.spec().name.clone()), daemon);
    }

    /// Writes down what has changed.
    pub(super) fn save(&self, change: impl FnOnce(&mut State)) -> Result<()> {
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

    /// Asks all to end that run, the target last, and demands that they end well.
    pub(super) fn stop_all(&self) -> Result<()> {
        let rank = |daemon: &Arc<Daemon>| match daemon.spec().name.as_str() {
            _ if is_target(daemon) => 2,
            "lockd" => 1,
            _ => 0,
        };
        let mut daemons = self.daemons();
        // The last first: the mount that was started first coordinates the volume, as a rule, and need not hand that on.
        daemons.reverse();
        daemons.sort_by_key(rank);
        let mut done = Ok(());
        for daemon in daemons.iter().filter(|daemon| daemon.is_alive()) {
            done = done.and(self.stop(daemon.host(), &daemon.spec().name));
        }
        done
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
        let mut command = self.exec(host, programs::ours(program)?)?;
        let output = command.args(arguments).output().with_context(|| format!("running {program}"))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        let (shown, all) = (&arguments[..arguments.len().min(ARGUMENTS_SHOWN)], arguments.len());
        ensure!(
            output.status.success(),
            "{program} {shown:?} ({all} arguments) on {host} failed ({}): {errors}",
            output.status
        );
        Ok(output)
    }
}

fn is_target(daemon: &Daemon) -> bool {
    daemon.host() == SAN_HOST
}
