//! The vm lab: hosts as whole machines under QEMU, with Debian's kernel, so that a test has what this machine lacks:
//! a kernel's own iSCSI, a target with real persistent reservations, a watchdog that restarts the host, power that fails.
//!
//! A machine boots the kernel that `scripts/emulator` has unpacked, with an initramfs made here: busybox, the modules, this
//! workspace's programs and the libraries that they need. An agent in it (`vm-agent`) runs scripts and sends back what
//! they print. QEMU works by software emulation: some ten times slower than the processor, about ten seconds to boot.
//!
//! | module | what |
//! |---|---|
//! | `archive` | the initramfs's format |
//! | `image` | what is in it |
//! | `guest` | the agent in the machine |
//! | `channel` | this end of the line to it |
//! | `machine` | QEMU |
//! | `lio` | a machine as an iSCSI target |
//! | `nodes` | machines as the nodes of a cluster |
//!
//! Machines see each other by two networks, as the hosts of the other lab do ([`Network`]): 10.77.0.N
//! and 10.78.0.N. Those are multicast groups on the loopback interface, one for each lab and network. Nothing stays
//! behind: a machine is one process, which is killed when it is dropped, and its files are in the lab's scratch folder.

mod archive;
mod channel;
pub mod guest;
mod image;
mod lio;
mod machine;
mod nodes;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::cluster::Network;

pub use channel::Said;
pub use image::File;
pub use lio::{INITIATORS, Lio, TARGET_NAME};
pub use machine::{Machine, Plan};
pub use nodes::Nodes;

/// One test's machines.
#[derive(Debug)]
pub struct VmLab {
    folder: TempDir,
    number: u16,
}

impl VmLab {
    /// Runs `test` in a lab of its own. If it fails, the ends of all consoles and logs are printed.
    pub fn run(test: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        static NUMBER: AtomicU16 = AtomicU16::new(0);
        let folder = TempDir::new().context("a scratch folder")?;
        let lab = Self { folder, number: NUMBER.fetch_add(1, Ordering::Relaxed) };
        test(&lab).inspect_err(|_| lab.print_consoles())
    }

    /// A path of the lab's scratch folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An image of so many bytes, for a machine's disk: it outlives the machine.
    pub fn disk(&self, name: &str, bytes: u64) -> Result<PathBuf> {
        let path = self.path(name);
        std::fs::File::create(&path)?.set_len(bytes)?;
        Ok(path)
    }

    /// The multicast group that is one of the lab's networks.
    fn group(&self, network: Network) -> String {
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let port = 20_000 + self.number * 2 + u16::from(network == Network::San);
        format!("239.77.{high}.{low}:{port}")
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn print_consoles(&self) {
        let Ok(entries) = std::fs::read_dir(self.folder.path()) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|ext| ext == "console") {
                let text = std::fs::read(&path).unwrap_or_default();
                let text = String::from_utf8_lossy(&text);
                let lines: Vec<&str> = text.lines().rev().take(60).collect();
                let lines: Vec<&str> = lines.into_iter().rev().collect();
                eprintln!("--- {}:\n{}", path.display(), lines.join("\n"));
            }
        }
    }
}
