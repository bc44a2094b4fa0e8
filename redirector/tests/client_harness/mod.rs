//! Real NBD servers for tests, each in a process of its own that dies with its handle.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod exercise;
pub mod fake;
pub mod portal;
pub mod tgt;

use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use lockd::ids::ClientId;
use lockd::rules::Rules;
use redirector::buffer::{Buffer, Pool};
use redirector::lun::{Lun, Outcome};
use redirector::open::{OpenError, OpenOptions, open, open_all};

/// Longer than anything that goes well takes.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A server process.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Of a server that puts itself into the background.
    daemon: Option<libc::pid_t>,
}

impl Server {
    /// Starts `program`, and waits until `ready`.
    pub fn start(program: &str, arguments: &[&str], ready: impl Fn() -> bool) -> Self {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program} cannot be started: {error}"));
        let mut server = Self { child, daemon: None };
        wait_for(&format!("{program} to listen"), || {
            assert_eq!(server.child.try_wait().unwrap(), None, "{program} {arguments:?} ended");
            ready()
        });
        server
    }

    /// Starts a `program` that goes to the background and writes its pid to `pid_file`.
    pub fn start_daemon(
        program: &str,
        arguments: &[&str],
        pid_file: &Path,
        ready: impl Fn() -> bool,
    ) -> Self {
        let mut child = Command::new(program).args(arguments).stdin(Stdio::null()).spawn().unwrap();
        assert!(child.wait().unwrap().success(), "{program} {arguments:?}");
        let mut pid = None;
        wait_for(&format!("{program} to listen"), || {
            let text = std::fs::read_to_string(pid_file).unwrap_or_default();
            pid = text.trim().parse().ok();
            pid.is_some() && ready()
        });
        Self { child, daemon: pid }
    }

    /// `nbdkit` with these arguments on a Unix socket.
    pub fn nbdkit(socket: &Path, arguments: &[&str]) -> Self {
        // A socket that a killed server left.
        let _ = std::fs::remove_file(socket);
        let mut all = vec!["-f", "-U", socket.to_str().unwrap()];
        all.extend(arguments);
        Self::start("nbdkit", &all, || UnixStream::connect(socket).is_ok())
    }

    /// Stops it (SIGSTOP), and waits until each of its threads has stopped: until then they still answer.
    pub fn stop(&self) {
        self.signal(libc::SIGSTOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        wait_for("the server to have stopped", || {
            std::fs::read_dir(&tasks).is_ok_and(|tasks| {
                tasks.flatten().all(|task| {
                    let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
                })
            })
        });
    }

    /// Sends a signal.
    pub fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: no memory is passed; the child has not been waited for, so the pid is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Kills it.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(pid) = self.daemon.take() {
            // SAFETY: no memory is passed; the server wrote this pid and runs until now.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits for a condition.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A directory and a pool.
#[derive(Debug)]
pub struct Place {
    pub dir: tempfile::TempDir,
    pub pool: Pool,
}

impl Place {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), pool: Pool::default() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of `size` zero bytes.
    pub fn image(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path(name);
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        path
    }

    pub fn filled(&self, byte: u8, len: usize) -> Buffer {
        let mut buffer = self.pool.take(len);
        buffer.fill(byte);
        buffer
    }
}

/// A port of loopback that nobody listens at.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Short times, and the rules of the environment.
pub fn options() -> OpenOptions {
    let mut options = OpenOptions::new(ClientId(7), [9; 16]);
    options.rules = Rules::from_test_environment();
    options.probe_every = Duration::from_millis(30);
    options.target_quiesce = Duration::from_millis(2000);
    options
}

pub fn try_open(uri: &str, options: &OpenOptions) -> Result<Arc<dyn Lun>, OpenError> {
    open(&uri.parse().unwrap(), options)
}

/// Opens a LUN by several paths.
pub fn open_paths(uris: &[String], options: &OpenOptions) -> Result<Arc<dyn Lun>, OpenError> {
    open_all(&uris.iter().map(|uri| uri.parse().unwrap()).collect::<Vec<_>>(), options)
}

pub fn unix(socket: &Path, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", socket.display())
}

pub fn start_write(lun: &dyn Lun, offset: u64, data: Buffer, fua: bool) -> Receiver<Outcome> {
    let (sender, receiver) = mpsc::channel();
    lun.write(offset, data.share(), fua, Box::new(move |outcome| sender.send(outcome).unwrap_or_default()));
    receiver
}

pub fn start_read(lun: &dyn Lun, offset: u64, buffer: Buffer) -> Receiver<(Outcome, Buffer)> {
    let (sender, receiver) = mpsc::channel();
    lun.read(
        offset,
        buffer,
        Box::new(move |outcome, buffer| sender.send((outcome, buffer)).unwrap_or_default()),
    );
    receiver
}

pub fn start_flush(lun: &dyn Lun) -> Receiver<Outcome> {
    let (sender, receiver) = mpsc::channel();
    lun.flush(Box::new(move |outcome| sender.send(outcome).unwrap_or_default()));
    receiver
}

pub fn start_zero(lun: &dyn Lun, range: std::ops::Range<u64>) -> Receiver<Outcome> {
    let (sender, receiver) = mpsc::channel();
    lun.zero(range, Box::new(move |outcome| sender.send(outcome).unwrap_or_default()));
    receiver
}

pub fn start_trim(lun: &dyn Lun, range: std::ops::Range<u64>) -> Receiver<Outcome> {
    let (sender, receiver) = mpsc::channel();
    lun.trim(range, Box::new(move |outcome| sender.send(outcome).unwrap_or_default()));
    receiver
}

pub fn end<T>(receiver: &Receiver<T>) -> T {
    receiver.recv_timeout(PATIENCE).expect("a request ends")
}
