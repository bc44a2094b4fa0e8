//! A place of its own for one test: an image, a server, mounts, all in one scratch folder.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::mounted::{Mounted, csvfs};
use crate::process::Running;
use crate::programs;
use crate::wait::until;

/// The window of claims in most tests, in milliseconds: long enough that a busy machine keeps it.
pub const WINDOW_MS: u64 = 2000;
/// The size of most LUNs in bytes: the least.
pub const SIZE: u64 = 64 << 20;

/// What a command that had to fail has said.
#[derive(Debug)]
pub struct Refused {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to standard error.
    pub said: String,
}

impl Refused {
    fn of(output: &Output, what: &[&str]) -> Result<Self> {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "csvfs {what:?} should have failed; it printed {output:?}");
        let code = output.status.code().with_context(|| format!("csvfs {what:?} was killed: {said}"))?;
        Ok(Self { code, said })
    }

    /// Demands that it exited with 1 and said each of `parts`.
    pub fn saying(self, parts: &[&str]) -> Result<Self> {
        ensure!(self.code == 1, "exit code {} instead of 1: {}", self.code, self.said);
        for part in parts {
            ensure!(self.said.contains(part), "it does not say {part:?}, but: {}", self.said);
        }
        ensure!(!self.said.contains("panicked"), "{}", self.said);
        Ok(self)
    }
}

/// Runs `csvfs` with arguments that must be refused.
pub fn refused(arguments: &[&str]) -> Result<Refused> {
    Refused::of(&csvfs(arguments)?, arguments)
}

/// A scratch folder with its things.
#[derive(Debug)]
pub struct Site {
    folder: TempDir,
}

impl Site {
    /// An empty place.
    pub fn new() -> Result<Self> {
        let folder = TempDir::new().context("a scratch folder")?;
        std::fs::create_dir(folder.path().join("run"))?;
        Ok(Self { folder })
    }

    /// A path in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A path in it, as text.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The path of the image.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.path("lun.img")
    }

    /// Makes an empty image and gives its URL.
    pub fn new_image(&self, size: u64) -> Result<String> {
        std::fs::File::create(self.image())?.set_len(size)?;
        Ok(self.image_url())
    }

    /// The URL of the image.
    #[must_use]
    pub fn image_url(&self) -> String {
        format!("file:{}", self.image().display())
    }

    /// An image with a fresh volume on it; its URL.
    pub fn volume(&self) -> Result<String> {
        let url = self.new_image(SIZE)?;
        format_quick(&url)?;
        Ok(url)
    }

    /// Mounts the LUN at `url` on the folder `name`.
    pub fn mount_at(&self, url: &str, name: &str, options: &[&str]) -> Result<Mounted> {
        let run = self.text("run");
        let mut all = vec!["--run-dir", &run];
        all.extend(options);
        Mounted::with(url, &self.path(name), &all)
    }

    /// Mounts the LUN at `url`.
    pub fn mount(&self, url: &str) -> Result<Mounted> {
        self.mount_at(url, "mnt", &[])
    }

    /// Tries a mount that must be refused.
    pub fn mount_refused(&self, url: &str, options: &[&str]) -> Result<Refused> {
        let (folder, run) = (self.text("refused"), self.text("run"));
        std::fs::create_dir_all(&folder)?;
        let mut arguments = vec!["mount", "--foreground", "--lun", url, &folder, "--run-dir", &run];
        arguments.extend(options);
        let mut command = Command::new(programs::ours("csvfs")?);
        command.args(&arguments);
        let mut process = Running::start("csvfs mount", &mut command, self.path("refused.log"))?;
        let is_mounted = || {
            let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
            mounts.lines().any(|line| line.split(' ').nth(1) == Some(&folder))
        };
        let over = until("the mount is refused", Duration::from_secs(30), || {
            (!process.is_alive() || is_mounted()).then_some(())
        });
        if over.is_err() || is_mounted() {
            // Ended before its mount is taken away, lest it closes the volume.
            process.kill();
            let _ = Command::new("umount").arg("-l").arg(&folder).status();
            over?;
            bail!("csvfs {arguments:?} should have failed; it has mounted the volume");
        }
        let ended = process.end(Duration::from_secs(5))?;
        let said = process.errors();
        let code = ended.code().with_context(|| format!("csvfs {arguments:?} was killed: {said}"))?;
        Ok(Refused { code, said })
    }

    /// What `csvfs status --json` says of the mount on `mnt`.
    pub fn status(&self) -> Result<Value> {
        let run = self.text("run");
        let output = csvfs(&["status", "--json", "--run-dir", &run])?;
        ensure!(output.status.success(), "csvfs status: {output:?}");
        let all: Value = serde_json::from_slice(&output.stdout).context("the status is JSON")?;
        Ok(all["volumes"][0].clone())
    }

    /// Waits until the mount's state is `state`; gives the whole status.
    pub fn wait_state(&self, state: &str, limit: Duration) -> Result<Value> {
        until(&format!("the mount is {state}"), limit, || {
            self.status().ok().filter(|status| status["state"] == state)
        })
    }
}

/// Formats the LUN at `url` with a short window.
pub fn format_quick(url: &str) -> Result<()> {
    let window = WINDOW_MS.to_string();
    crate::mounted::csvfs_ok(&["format", "--lun", url, "--window-ms", &window, "--quiesce-ms", &window])
        .map(drop)
}
