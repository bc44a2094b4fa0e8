//! `csvfs clone`: a copy that shares its blocks.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

#[derive(Debug, Args)]
pub struct Clone {
    /// The file to copy.
    source: PathBuf,
    /// The new file; it must not exist.
    target: PathBuf,
}

/// As much as one call may copy; the kernel takes less than 2 GiB at once.
const STEP: usize = 1 << 30;

impl Clone {
    pub fn run(self) -> Result<ExitCode> {
        let source =
            File::open(&self.source).with_context(|| format!("opening {}", self.source.display()))?;
        let data = source.metadata()?;
        if !data.is_file() {
            bail!("{} is not a regular file", self.source.display());
        }
        let target = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(data.mode() & 0o777)
            .open(&self.target)
            .with_context(|| format!("creating {}", self.target.display()))?;
        let copied = copy(&source, &target, data.len())
            .with_context(|| format!("cloning {} to {}", self.source.display(), self.target.display()));
        if copied.is_err() {
            let _ = std::fs::remove_file(&self.target);
        }
        copied.map(|()| ExitCode::SUCCESS)
    }
}

fn copy(source: &File, target: &File, len: u64) -> Result<()> {
    if source.metadata()?.dev() != target.metadata()?.dev() {
        bail!("the two are not on one volume, so that they cannot share blocks; copy with cp(1)");
    }
    target.set_len(len)?;
    let (mut from, mut to) = (0_i64, 0_i64);
    loop {
        // SAFETY: both descriptors are open and the offsets are valid for the duration of the call.
        let copied = unsafe {
            libc::copy_file_range(source.as_raw_fd(), &mut from, target.as_raw_fd(), &mut to, STEP, 0)
        };
        match copied {
            0 => return Ok(()),
            count if count > 0 => {}
            _ => return Err(std::io::Error::last_os_error()).context("copy_file_range"),
        }
    }
}
