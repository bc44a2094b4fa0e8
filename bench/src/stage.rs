//! What the figures are measured on: a server, a mount, and what stands beside it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::mounted::{csvfs_ok, format};
use lab::server::Kind;
use lab::{Mounted, Running, Server, programs, wait};

/// How long and how often is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Interleaved rounds.
    pub rounds: u32,
    /// Seconds of one run of fio.
    pub seconds: u32,
}

/// A freshly formatted volume, mounted.
#[derive(Debug)]
pub struct Volume {
    /// The mount; before its server, so that it ends first.
    pub mount: Mounted,
    /// The server, if the LUN is not a file.
    pub _server: Option<Server>,
}

impl Volume {
    /// A volume of `size` bytes on a server of `kind` in `folder`.
    pub fn served(kind: Kind, folder: &Path, size: u64) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let server = Server::start(kind, folder, size)?;
        format(&server.url())?;
        let mount = Mounted::new(&server.url(), &folder.join("mnt"))?;
        Ok(Self { mount, _server: Some(server) })
    }

    /// A volume on a file of `size` bytes in `folder`.
    pub fn on_file(folder: &Path, size: u64) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let image = folder.join("lun.img");
        std::fs::File::create(&image)?.set_len(size)?;
        let url = format!("file:{}", image.display());
        format(&url)?;
        Ok(Self { mount: Mounted::new(&url, &folder.join("mnt"))?, _server: None })
    }

    /// A file on the mount, allocated and written once.
    pub fn prepared_file(&self, name: &str, size: u64) -> Result<PathBuf> {
        let path = self.mount.path().join(name);
        fill(&path, size)?;
        Ok(path)
    }
}

/// Writes `size` bytes of a pattern to `path` and syncs it.
pub fn fill(path: &Path, size: u64) -> Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let block: Vec<u8> = (0..1 << 20).map(|i: u32| i.to_le_bytes()[0] | 1).collect();
    for _ in 0..size / (1 << 20) {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(())
}

/// A foreign program that shows an NBD export as one file.
#[derive(Debug)]
pub struct Peer {
    /// The file.
    pub file: PathBuf,
    folder: PathBuf,
    process: Running,
    _server: Server,
}

impl Peer {
    /// `nbdfuse` on a server of its own.
    pub fn nbdfuse(folder: &Path, size: u64) -> Result<Self> {
        let mount = folder.join("mnt");
        std::fs::create_dir_all(&mount)?;
        let server = Server::start(Kind::NbdkitMemory, folder, size)?;
        let mut command = Command::new(programs::installed("nbdfuse")?);
        command.arg(&mount).arg(server.url());
        Self::started("nbdfuse", &mut command, folder, mount.join("nbd"), mount, server)
    }

    /// qemu-storage-daemon's FUSE export on a server of its own.
    pub fn storage_daemon(folder: &Path, size: u64) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let server = Server::start(Kind::NbdkitMemory, folder, size)?;
        let file = folder.join("export");
        std::fs::write(&file, b"")?;
        let mut command = Command::new(programs::installed("qemu-storage-daemon")?);
        command.arg("--blockdev").arg(format!(
            "driver=nbd,node-name=lun,server.type=unix,server.path={},cache.direct=on",
            server.socket().display()
        ));
        command
            .arg("--export")
            .arg(format!("type=fuse,id=e,node-name=lun,mountpoint={},writable=on", file.display()));
        Self::started("qemu-storage-daemon", &mut command, folder, file.clone(), file, server)
    }

    fn started(
        name: &str,
        command: &mut Command,
        folder: &Path,
        file: PathBuf,
        mount: PathBuf,
        server: Server,
    ) -> Result<Self> {
        let process = Running::start(name, command, folder.join("peer.log"))?;
        let peer = Self { file, folder: mount, process, _server: server };
        wait::until(&format!("{name} shows its file"), Duration::from_secs(10), || {
            std::fs::metadata(&peer.file).ok().filter(|data| data.len() > 0)
        })
        .with_context(|| peer.process.errors())?;
        Ok(peer)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
        self.process.kill();
    }
}

/// The mount of a file system that answers at once: what FUSE itself costs.
#[derive(Debug)]
pub struct NullMount {
    /// Its one file.
    pub file: PathBuf,
    folder: PathBuf,
    process: Running,
}

impl NullMount {
    /// Mounts it in `folder`, with one file of `size` bytes.
    pub fn new(folder: &Path, size: u64) -> Result<Self> {
        let mount = folder.join("mnt");
        std::fs::create_dir_all(&mount)?;
        let program = programs::ours("examples/null_mount")?;
        let mut command = Command::new(program);
        command.arg(&mount).arg((size >> 20).to_string());
        let mut process = Running::start("null_mount", &mut command, folder.join("null.log"))?;
        process.first_line()?;
        Ok(Self { file: mount.join("data"), folder: mount, process })
    }
}

impl Drop for NullMount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
        self.process.kill();
    }
}

/// How long `work` takes.
pub fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let start = Instant::now();
    let value = work()?;
    Ok((value, start.elapsed()))
}

/// The largest resident size that process `pid` has had, in bytes.
pub fn peak_resident(pid: u32) -> Result<u64> {
    status_bytes(pid, "VmHWM:")
}

/// The resident size of process `pid`, in bytes.
pub fn resident(pid: u32) -> Result<u64> {
    status_bytes(pid, "VmRSS:")
}

fn status_bytes(pid: u32, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(field)).context("no such field in status")?;
    let kib: u64 = line.split_whitespace().nth(1).context("no value")?.parse()?;
    ensure!(kib > 0, "{field} is zero");
    Ok(kib << 10)
}

/// Runs fsck on `url` and demands a clean volume.
pub fn fsck(url: &str) -> Result<()> {
    csvfs_ok(&["fsck", "--lun", url]).map(drop)
}
