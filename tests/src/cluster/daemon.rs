//! A daemon of the lab: a program, its arguments, and how one sees that it is ready.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::identity::ProcessId;
use super::namespace::{Namespace, Reached};
use crate::wait::until;

/// How long the end of a killed process may take.
const END: Duration = Duration::from_secs(10);
/// How much of a log is read for its last lines, in bytes.
const TAIL_BYTES: u64 = 64 << 10;

/// How one sees that a daemon is ready.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ready {
    /// When it has started.
    Started,
    /// When it has printed a line with this text on its standard output.
    Line(String),
    /// When this address accepts connections, in its namespace.
    Accepts(SocketAddr),
    /// When this Unix socket accepts connections.
    Socket(PathBuf),
    /// When something is mounted here.
    Mounted(PathBuf),
}

/// A daemon's command line and what goes with it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DaemonSpec {
    /// Its name, unique on its host.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Further variables of its environment.
    pub environment: Vec<(String, String)>,
    /// How one sees that it is ready.
    pub ready: Ready,
    /// Within how many milliseconds it must be.
    pub ready_ms_max: u64,
}

impl DaemonSpec {
    /// The program with no arguments, ready when it has started.
    #[must_use]
    pub fn new(name: &str, program: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            program,
            arguments: Vec::new(),
            environment: Vec::new(),
            ready: Ready::Started,
            ready_ms_max: 20_000,
        }
    }

    /// With further arguments.
    #[must_use]
    pub fn args<S: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// With a variable of its environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.environment.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Ready when this holds.
    #[must_use]
    pub fn ready(self, ready: Ready) -> Self {
        Self { ready, ..self }
    }
}

/// A process that was started, and its handle if this program started it.
#[derive(Debug)]
struct Run {
    id: ProcessId,
    child: Option<Child>,
    /// How long its standard output was when it started.
    output_before: u64,
}

/// A daemon on one host of the lab. Killed by the lab, not by being dropped.
#[derive(Debug)]
pub struct Daemon {
    host: String,
    spec: DaemonSpec,
    namespace: Namespace,
    /// The folder of its logs: `NAME.out` and `NAME.log`.
    logs: PathBuf,
    detached: bool,
    run: Mutex<Option<Run>>,
}

/// Whether something is mounted on `path`.
#[must_use]
pub fn is_mounted(path: &Path) -> bool {
    super::removal::mounts_below(path).iter().any(|mount| mount == path)
}

/// The last lines of a file, at most `lines`.
fn tail(path: &Path, lines: usize) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

impl Daemon {
    /// A daemon that does not run yet.
    pub(super) fn new(
        host: &str,
        spec: DaemonSpec,
        namespace: Namespace,
        logs: PathBuf,
        detached: bool,
    ) -> Self {
        Self { host: host.to_owned(), spec, namespace, logs, detached, run: Mutex::new(None) }
    }

    /// One that another program has started.
    pub(super) fn adopt(self, id: Option<ProcessId>) -> Self {
        *self.run.lock() = id.map(|id| Run { id, child: None, output_before: 0 });
        self
    }

    /// The host and the daemon, such as `n1/lockd`.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{}/{}", self.host, self.spec.name)
    }

    /// Its host.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its command line.
    #[must_use]
    pub fn spec(&self) -> &DaemonSpec {
        &self.spec
    }

    fn file(&self, ending: &str) -> PathBuf {
        self.logs.join(format!("{}.{ending}", self.spec.name))
    }

    /// Where its standard error goes.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.file("log")
    }

    /// What it has written to standard error, in all its runs.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The last lines of its standard output and its log.
    #[must_use]
    pub fn last_words(&self, lines: usize) -> String {
        format!("{}\n{}", tail(&self.file("out"), lines), tail(&self.log_path(), lines)).trim().to_owned()
    }

    /// Its process, if it was started and not seen to end.
    #[must_use]
    pub fn process(&self) -> Option<ProcessId> {
        self.run.lock().as_ref().map(|run| run.id)
    }

    /// Whether it runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.process().is_some_and(ProcessId::is_alive)
    }

    fn running(&self) -> Result<ProcessId> {
        let alive = self.process().filter(|id| id.is_alive());
        alive.with_context(|| format!("{} does not run", self.title()))
    }

    /// Starts it, and does not wait until it is ready.
    pub(super) fn launch(&self) -> Result<()> {
        ensure!(!self.is_alive(), "{} runs already", self.title());
        let open = |path: PathBuf| {
            let file = File::options().create(true).append(true).open(&path);
            file.with_context(|| format!("creating {}", path.display()))
        };
        let (output, log) = (open(self.file("out"))?, open(self.file("log"))?);
        let output_before = output.metadata()?.len();
        let mut command = if self.detached {
            self.namespace.detached_command(&self.spec.program)?
        } else {
            self.namespace.command(&self.spec.program)?
        };
        command.args(&self.spec.arguments).envs(self.spec.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(output).stderr(log);
        let child = command.spawn().with_context(|| format!("starting {}: {command:?}", self.title()))?;
        let id = ProcessId::of(child.id())
            .with_context(|| format!("{} has no process: {command:?}", self.title()))?;
        *self.run.lock() = Some(Run { id, child: Some(child), output_before });
        Ok(())
    }

    fn is_ready(&self) -> bool {
        match &self.spec.ready {
            Ready::Started => true,
            Ready::Line(part) => {
                let before = self.run.lock().as_ref().map_or(0, |run| run.output_before);
                let text = fs::read(self.file("out")).unwrap_or_default();
                let fresh = text.get(usize::try_from(before).unwrap_or(usize::MAX)..).unwrap_or_default();
                let text = String::from_utf8_lossy(fresh);
                text.split_inclusive('\n').any(|line| line.ends_with('\n') && line.contains(part))
            }
            Ready::Accepts(address) => {
                let reached = self.namespace.reaches(*address, Duration::from_millis(200));
                matches!(reached, Ok(Reached::Accepted))
            }
            Ready::Socket(path) => UnixStream::connect(path).is_ok(),
            Ready::Mounted(path) => is_mounted(path),
        }
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// If it ends first, or takes too long; with its last words.
    pub fn wait_ready(&self) -> Result<()> {
        let limit = Duration::from_millis(self.spec.ready_ms_max);
        let what = format!("{} is ready", self.title());
        let over = until(&what, limit, || (self.is_ready() || !self.is_alive()).then_some(()));
        let said = || format!("{} said:\n{}", self.title(), self.last_words(20));
        over.with_context(said)?;
        if !self.is_ready() {
            let ended =
                self.reap().map_or_else(|| "in an unknown way".to_owned(), |status| status.to_string());
            bail!("{} ended ({ended}) before it was ready; it {}", self.title(), said());
        }
        Ok(())
    }

    /// Waits for the end of a process that is ending; gives its status, if this program has started it.
    fn reap(&self) -> Option<ExitStatus> {
        let run = self.run.lock().take()?;
        // It has ended, so that this does not wait.
        run.child.and_then(|mut child| child.wait().ok())
    }

    fn wait_end(&self, id: ProcessId, limit: Duration) -> Result<Option<ExitStatus>> {
        until(&format!("{} ends", self.title()), limit, || (!id.is_alive()).then_some(()))
            .with_context(|| self.last_words(20))?;
        Ok(self.reap())
    }

    /// Asks it to end (SIGTERM) and waits for that; gives its status, if this program has started it.
    pub fn stop(&self, limit: Duration) -> Result<Option<ExitStatus>> {
        let id = self.running()?;
        id.signal(libc::SIGTERM)?;
        // A paused process would never see it.
        id.signal(libc::SIGCONT)?;
        self.wait_end(id, limit)
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub fn kill(&self) -> Result<()> {
        let id = self.running()?;
        id.signal(libc::SIGKILL)?;
        self.wait_end(id, END).map(drop)
    }

    /// Stops its threads (SIGSTOP); its sockets stay.
    pub fn pause(&self) -> Result<()> {
        let id = self.running()?;
        id.signal(libc::SIGSTOP)?;
        until(&format!("{} is paused", self.title()), END, || id.is_paused().then_some(()))
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        let id = self.running()?;
        id.signal(libc::SIGCONT)?;
        until(&format!("{} goes on", self.title()), END, || (!id.is_paused()).then_some(()))
    }

    /// Waits for its process, which must have been killed, so that it leaves nothing in the process table.
    pub(super) fn forget(&self) {
        if let Some(mut child) = self.run.lock().take().and_then(|run| run.child) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
