//! A target in this process, on a Unix socket in a directory of its own.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use redirector::target::{Address, Config, Server, ServerHandle};
use tempfile::TempDir;

use crate::peer::Peer;

pub const MIB: u64 = 1 << 20;

pub struct Lab {
    pub server: ServerHandle,
    pub config: Config,
    dir: TempDir,
}

impl Lab {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// A target of 64 MiB named `vms`, with the given changes.
    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(dir.path().join("lun.img"));
        config.size = Some(64 * MIB);
        config.export = "vms".to_owned();
        config.listen = vec![Address::Unix(dir.path().join("nbd"))];
        config.state = Some(dir.path().join("state"));
        config.drain_patience = Duration::from_secs(10);
        change(&mut config);
        let server = Server::start(config.clone()).unwrap();
        Self { server, config, dir }
    }

    /// Stops the target and starts it again.
    pub fn restart(&mut self) {
        self.stop();
        self.server = Server::start(self.config.clone()).unwrap();
    }

    /// Stops the target by putting one in its place that serves nobody.
    pub fn stop(&mut self) {
        let mut idle = Config::new(self.path("idle"));
        idle.size = Some(4096);
        std::mem::replace(&mut self.server, Server::start(idle).unwrap()).stop().unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn uri(&self) -> String {
        self.server.uris()[0].clone()
    }

    /// A connection that has its greeting behind it.
    pub fn connect(&self) -> Peer {
        Peer::connect(&self.path("nbd"))
    }

    /// A connection that is ready for requests.
    pub fn peer(&self) -> Peer {
        let mut peer = self.connect();
        peer.go().unwrap();
        peer
    }

    /// A connection of `client` that is ready for requests.
    pub fn client(&self, client: u64) -> Peer {
        let mut peer = self.connect();
        peer.hello(client, cookie(client)).unwrap();
        peer.go().unwrap();
        peer
    }
}

/// The cookie that the tests' clients show.
pub fn cookie(client: u64) -> [u8; 16] {
    [u8::try_from(client % 251).unwrap(); 16]
}

/// Waits until `is_so`; fails the test when it does not come true.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !is_so() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a program of another project and returns its standard output.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} cannot be started ({error}); install it"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// Bytes without a pattern that repeats within a block, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    use rand::{RngCore, SeedableRng};
    let mut bytes = vec![0; length];
    rand::rngs::SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}
