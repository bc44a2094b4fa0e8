//! stress-ng's file system class.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{run, text};
use crate::programs;

/// Stressors that do not touch the mount but the machine: devices, /proc, other file systems.
const LEFT_OUT: &str =
    "bind-mount,binderfs,dev,fanotify,file-ioctl,hdd,inotify,io,ioprio,procfs,sync-file,verity";

/// Each stressor of the class in turn, for so many seconds.
pub fn stress_ng(folder: &Path, scratch: &Path, seconds: u32) -> Result<()> {
    let mut command = Command::new(programs::installed("stress-ng")?);
    command
        .args(["--class", "filesystem", "--sequential", "1", "--timeout", &seconds.to_string(), "--verify"])
        .args(["--exclude", LEFT_OUT, "--temp-path"])
        .arg(folder)
        .current_dir(scratch);
    let output = run(&mut command)?;
    let text = text(&output);
    ensure!(output.status.success() && !text.contains("fail:"), "stress-ng ({}): {text}", output.status);
    Ok(())
}
