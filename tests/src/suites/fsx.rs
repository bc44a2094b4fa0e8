//! fsx 0.3: random operations on one file against what they should have done.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{run, text};
use crate::programs;

const WEIGHTS: &str = "[weights]\nclose_open = 2\ninvalidate = 2\ntruncate = 10\nfsync = 2\nfdatasync = 2\n\
    posix_fallocate = 5\npunch_hole = 10\nsendfile = 5\ncopy_file_range = 10\nposix_fadvise = 2\n";

/// So many operations with punch, copy and mmap on a file in `folder`.
pub fn fsx(folder: &Path, scratch: &Path, operations: u32, seed: u32) -> Result<()> {
    let settings = scratch.join("fsx.toml");
    std::fs::write(&settings, WEIGHTS)?;
    let mut command = Command::new(programs::installed("fsx")?);
    command.arg("-f").arg(&settings).args(["-N", &operations.to_string(), "-S", &seed.to_string(), "-P"]);
    let output = run(command.arg(scratch).arg(folder.join(format!("fsx-{seed}"))))?;
    ensure!(output.status.success(), "fsx with seed {seed}: {}", text(&output));
    Ok(())
}
