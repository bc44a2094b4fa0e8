//! `csvfs seal` and `csvfs unseal`: files that nobody changes, and that every node reads directly.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

#[derive(Debug, Args)]
pub struct Seal {
    /// Files of mounted volumes.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
}

/// What the mount is asked by; the kernel lets only root set it.
const ATTRIBUTE: &std::ffi::CStr = c"trusted.csvfs.sealed";

impl Seal {
    /// Seals them, or takes the seal off.
    pub fn run(self, seal: bool) -> Result<ExitCode> {
        for path in &self.paths {
            set(path, seal)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn set(path: &Path, seal: bool) -> Result<()> {
    if !path.metadata().with_context(|| format!("looking at {}", path.display()))?.is_file() {
        bail!("{} is not a regular file", path.display());
    }
    let name = CString::new(path.as_os_str().as_bytes())?;
    let value: &[u8] = if seal { b"1" } else { b"0" };
    // SAFETY: both strings end with NUL, and the value is as long as it is said to be.
    let status =
        unsafe { libc::setxattr(name.as_ptr(), ATTRIBUTE.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if status == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    let what = if seal { "sealed" } else { "unsealed" };
    let hint = match error.raw_os_error() {
        Some(libc::EBUSY) => "a program has it open such that it may map its pages; the mount's log names it",
        Some(libc::EPERM) => "that needs root",
        Some(libc::EOPNOTSUPP) => "it is not on a csvfs volume",
        _ => "the mount's log may tell more",
    };
    Err(error).with_context(|| format!("{} is not {what}: {hint}", path.display()))
}
