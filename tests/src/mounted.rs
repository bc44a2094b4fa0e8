//! A volume mounted by a real `csvfs` process.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::Running;
use crate::programs;

/// A mounted volume; unmounted and its process ended when dropped.
#[derive(Debug)]
pub struct Mounted {
    folder: PathBuf,
    process: Running,
}

/// Runs `csvfs` with `arguments` to its end.
pub fn csvfs(arguments: &[&str]) -> Result<Output> {
    Command::new(programs::ours("csvfs")?).args(arguments).output().context("running csvfs")
}

/// Runs `csvfs` with `arguments` and demands that it succeeds; gives its standard output.
pub fn csvfs_ok(arguments: &[&str]) -> Result<String> {
    let output = csvfs(arguments)?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "csvfs {arguments:?} failed ({}): {errors}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Formats the LUN at `url`.
pub fn format(url: &str) -> Result<()> {
    csvfs_ok(&["format", "--lun", url]).map(drop)
}

/// Demands that `csvfs fsck` finds nothing wrong.
pub fn fsck_clean(url: &str) -> Result<()> {
    csvfs_ok(&["fsck", "--lun", url]).map(drop).context("fsck must find the volume clean")
}

impl Mounted {
    /// Mounts the LUN at `url` on `folder`, which is made if needed, with further options.
    pub fn with(url: &str, folder: &Path, options: &[&str]) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut command = Command::new(programs::ours("csvfs")?);
        command.args(["mount", "--foreground", "--lun", url]).arg(folder).args(options);
        let stamp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
        let log = folder.with_extension(format!("{stamp}.log"));
        let mut process = Running::start("csvfs mount", &mut command, log)?;
        process.first_line()?;
        Ok(Self { folder: folder.to_owned(), process })
    }

    /// Mounts the LUN at `url` on `folder`.
    pub fn new(url: &str, folder: &Path) -> Result<Self> {
        Self::with(url, folder, &[])
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The process that serves it.
    pub fn process(&mut self) -> &mut Running {
        &mut self.process
    }

    /// Unmounts cleanly and waits until the process has ended well.
    pub fn unmount(mut self) -> Result<()> {
        let target = CString::new(self.folder.as_os_str().as_bytes())?;
        // SAFETY: `target` is a valid C string.
        let status = unsafe { libc::umount2(target.as_ptr(), 0) };
        ensure!(status == 0, "umount {}: {}", self.folder.display(), std::io::Error::last_os_error());
        let ended = self.process.end(Duration::from_secs(60))?;
        ensure!(ended.success(), "csvfs ended with {ended}: {}", self.process.errors());
        Ok(())
    }

    /// Kills the process with SIGKILL, as a crash of the node would, and detaches the dead mount.
    pub fn crash(mut self) {
        self.process.kill();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Ok(target) = CString::new(self.folder.as_os_str().as_bytes()) {
            // SAFETY: `target` is a valid C string. A folder that is not mounted gives an error that does not matter.
            unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
        }
        let _ = self.process.end(Duration::from_secs(5));
    }
}
