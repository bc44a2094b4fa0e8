//! Servers of LUNs: NBD servers, each on a Unix socket of its own, and an iSCSI target on a port of loopback.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process::Running;
use crate::wait::until;
use crate::{programs, tgt};

/// What serves the LUN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// nbdkit's memory plugin: gone with the server.
    NbdkitMemory,
    /// nbdkit's file plugin.
    NbdkitFile,
    /// nbdkit's memory plugin behind its error filter: reads fail while the file `fail-reads` is in the folder, writes
    /// while `fail-writes` is.
    NbdkitErrors,
    /// The bundled target.
    CsvTarget,
    /// tgt, by iSCSI.
    Tgt,
}

/// A running NBD server and its folder.
#[derive(Debug)]
pub struct Server {
    kind: Kind,
    folder: PathBuf,
    size: u64,
    process: Running,
    /// Where tgt listens.
    portal: SocketAddr,
    starts: u32,
    more: Vec<String>,
}

impl Server {
    /// Starts a server of `size` bytes with its socket, and its file if it has one, in `folder`.
    pub fn start(kind: Kind, folder: &Path, size: u64) -> Result<Self> {
        Self::with(kind, folder, size, &[])
    }

    /// As [`Server::start`], with further arguments at the end of the command line.
    pub fn with(kind: Kind, folder: &Path, size: u64, more: &[&str]) -> Result<Self> {
        let more: Vec<String> = more.iter().map(|word| (*word).to_owned()).collect();
        // Free at the moment.
        let portal = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let process = Self::spawn(kind, folder, size, 0, portal, &more)?;
        let mut server = Self { kind, folder: folder.to_owned(), size, process, portal, starts: 1, more };
        server.wait_ready()?;
        Ok(server)
    }

    fn spawn(
        kind: Kind,
        folder: &Path,
        size: u64,
        starts: u32,
        portal: SocketAddr,
        more: &[String],
    ) -> Result<Running> {
        let socket = folder.join("nbd.sock");
        let image = folder.join("lun.img");
        let _ = std::fs::remove_file(&socket);
        let mut command = match kind {
            Kind::NbdkitErrors => {
                let mut command = Command::new(programs::installed("nbdkit")?);
                command.args(["--foreground", "--threads=16", "--filter=error", "--unix"]).arg(&socket);
                command.args(["memory", &format!("size={size}")]);
                for (what, trigger) in [("pread", "fail-reads"), ("pwrite", "fail-writes")] {
                    let trigger = folder.join(trigger).display().to_string();
                    command.arg(format!("error-{what}=EIO")).arg(format!("error-{what}-rate=100%"));
                    command.arg(format!("error-{what}-file={trigger}"));
                }
                command
            }
            Kind::NbdkitMemory | Kind::NbdkitFile => {
                let mut command = Command::new(programs::installed("nbdkit")?);
                command.args(["--foreground", "--threads=16", "--unix"]).arg(&socket);
                if kind == Kind::NbdkitMemory {
                    command.args(["memory", &format!("size={size}")]);
                } else {
                    if !image.exists() {
                        std::fs::File::create(&image)?.set_len(size)?;
                    }
                    command.arg("file").arg(&image);
                }
                command
            }
            Kind::Tgt => {
                if !image.exists() {
                    std::fs::File::create(&image)?.set_len(size)?;
                }
                let mut command = Command::new("sh");
                command.args(tgt::arguments(folder, &image, portal)?);
                command
            }
            Kind::CsvTarget => {
                let mut command = Command::new(programs::ours("csv-target")?);
                command.arg("--file").arg(&image).args(["--size", &size.to_string(), "--export", "vms"]);
                command.arg("--listen").arg(format!("unix:{}", socket.display()));
                command.arg("--control").arg(format!("unix:{}", folder.join("control.sock").display()));
                command.arg("--state").arg(folder.join("state"));
                command
            }
        };
        command.args(more);
        Running::start("LUN server", &mut command, folder.join(format!("server-{starts}.log")))
    }

    fn wait_ready(&mut self) -> Result<()> {
        if self.kind == Kind::Tgt {
            return self.process.first_line().map(drop);
        }
        until("the NBD server answers", Duration::from_secs(10), || UnixStream::connect(self.socket()).ok())
            .map(drop)
            .with_context(|| self.process.errors())
    }

    /// The path of the socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("nbd.sock")
    }

    /// The name of the export.
    #[must_use]
    pub fn export(&self) -> &'static str {
        if self.kind == Kind::CsvTarget { "vms" } else { "" }
    }

    /// The URL of the LUN.
    #[must_use]
    pub fn url(&self) -> String {
        if self.kind == Kind::Tgt {
            return tgt::url(self.portal);
        }
        format!("nbd+unix:///{}?socket={}", self.export(), self.socket().display())
    }

    /// The process.
    pub fn process(&mut self) -> &mut Running {
        &mut self.process
    }

    /// The path of the control socket of the bundled target.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    /// Asks the bundled target at its control port.
    pub fn control(&self, request: &Value) -> Result<Value> {
        let address: redirector::target::Address = format!("unix:{}", self.control_socket().display())
            .parse()
            .map_err(|error| anyhow::anyhow!("the control address: {error}"))?;
        Ok(redirector::target::ask(&address, None, request)?)
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Kills the server with SIGKILL and starts it again on what its file holds.
    pub fn restart(&mut self) -> Result<()> {
        self.process.kill();
        self.process = Self::spawn(self.kind, &self.folder, self.size, self.starts, self.portal, &self.more)?;
        self.starts += 1;
        self.wait_ready()
    }
}
