//! A network namespace: the network of one host.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::identity::ProcessId;
use super::sys;

/// Where `ip netns` keeps its namespaces.
const FOLDER: &str = "/run/netns";

/// A network namespace by its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespace {
    name: String,
}

/// How a connection attempt went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reached {
    /// Somebody listens.
    Accepted,
    /// The host answers that nobody listens.
    Refused,
    /// No answer in time.
    Silence,
    /// The own host says that there is no way.
    NoWay,
}

/// Runs `program` with `lines` on its standard input.
fn feed(program: &'static str, arguments: &[&str], lines: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments);
    Feeder::start(program, command)?.feed(lines)
}

/// A program that waits for its lines.
#[derive(Debug)]
pub(super) struct Feeder {
    program: &'static str,
    child: Child,
}

impl Feeder {
    fn start(program: &'static str, mut command: Command) -> Result<Self> {
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {program} (of the package iproute2)"))?;
        Ok(Self { program, child })
    }

    /// Has it do what they say.
    pub(super) fn feed(mut self, lines: &str) -> Result<()> {
        let mut input = self.child.stdin.take().context("its standard input is a pipe")?;
        // One that ends early says why by its exit code.
        let _ = input.write_all(lines.as_bytes());
        drop(input);
        let status = self.child.wait()?;
        let mut errors = String::new();
        if let Some(mut said) = self.child.stderr.take() {
            said.read_to_string(&mut errors)?;
        }
        ensure!(status.success(), "{} failed on\n{lines}{errors}", self.program);
        Ok(())
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        // Not by closing its input: a process that is being started may have a copy of that.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Namespace {
    /// The namespace `name`, whether it is there or not.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// Makes it, with its loopback interface up.
    pub fn make(&self) -> Result<()> {
        feed("ip", &["-batch", "-"], &format!("netns add {}\n", self.name))?;
        self.ip("link set lo up\n")
    }

    /// All namespaces whose names begin with `prefix`.
    #[must_use]
    pub fn all(prefix: &str) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(FOLDER) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.starts_with(prefix)).map(|name| Self { name }).collect()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.name)
    }

    fn open(&self) -> Result<File> {
        File::open(self.path()).with_context(|| format!("there is no network namespace {}", self.name))
    }

    /// Runs lines of ip(8) in it.
    pub fn ip(&self, lines: &str) -> Result<()> {
        feed("ip", &["-n", &self.name, "-batch", "-"], lines)
    }

    /// An ip(8) in it that waits for its lines. It shares the mounts: `ip -n` would keep a copy of each, which then outlives
    /// its unmounting.
    pub(super) fn ready_ip(&self) -> Result<Feeder> {
        let mut command = self.command("ip")?;
        command.args(["-batch", "-"]);
        Feeder::start("ip", command)
    }

    /// Runs lines of tc(8) in it.
    pub fn tc(&self, lines: &str) -> Result<()> {
        feed("tc", &["-n", &self.name, "-batch", "-"], lines)
    }

    /// A command that will run in it, and share everything but the network with this process.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        self.prepare(program, false)
    }

    /// As [`Namespace::command`], in a session of its own.
    pub(super) fn detached_command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        self.prepare(program, true)
    }

    fn prepare(&self, program: impl AsRef<OsStr>, detached: bool) -> Result<Command> {
        let mut command = Command::new(program);
        sys::start_in(&mut command, self.open()?, detached);
        Ok(command)
    }

    /// Does `work` in it, on a thread of its own: sockets that are made there belong to this namespace for good.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let net = self.open()?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || sys::enter(&net).map(|()| work()));
            match thread.join() {
                Ok(done) => done.with_context(|| format!("entering the namespace {}", self.name)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Tries to connect from it to `address`, for at most `limit`.
    pub fn reaches(&self, address: SocketAddr, limit: Duration) -> Result<Reached> {
        use std::io::ErrorKind;
        let tried = self.within(|| TcpStream::connect_timeout(&address, limit))?;
        let Err(error) = tried else { return Ok(Reached::Accepted) };
        match error.kind() {
            ErrorKind::ConnectionRefused => Ok(Reached::Refused),
            ErrorKind::TimedOut => Ok(Reached::Silence),
            ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => Ok(Reached::NoWay),
            _ => Err(error).with_context(|| format!("connecting from {} to {address}", self.name)),
        }
    }

    /// The processes that run in it.
    #[must_use]
    pub fn processes(&self) -> Vec<ProcessId> {
        let Ok(own) = fs::metadata(self.path()) else { return Vec::new() };
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let is_here = |pid: &u32| {
            let theirs = fs::metadata(format!("/proc/{pid}/ns/net"));
            theirs.is_ok_and(|theirs| (theirs.dev(), theirs.ino()) == (own.dev(), own.ino()))
        };
        let pids: BTreeSet<u32> =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        pids.into_iter().filter(is_here).filter_map(ProcessId::of).filter(|id| id.is_alive()).collect()
    }

    /// Takes it away. Its interfaces go when the last process in it has ended.
    pub fn remove(&self) -> Result<()> {
        if !self.path().exists() {
            bail!("there is no network namespace {}", self.name);
        }
        feed("ip", &["-batch", "-"], &format!("netns delete {}\n", self.name))
    }
}
