//! fio with verification.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{run, text};
use crate::programs;

/// fio that verifies each block by its checksum and stops at the first that is wrong; what it leaves behind goes to
/// `scratch`.
pub fn fio_verify_command(name: &str, scratch: &Path) -> Result<Command> {
    let mut command = Command::new(programs::installed("fio")?);
    command
        .arg(format!("--name={name}"))
        .args(["--verify=crc32c", "--verify_state_save=0", "--do_verify=1", "--verify_fatal=1"])
        // Where it leaves the state of its verification.
        .current_dir(scratch);
    Ok(command)
}

/// Writes and verifies files of so many MiB in `folder`, buffered and with O_DIRECT, in blocks of many sizes.
pub fn fio_verify(folder: &Path, scratch: &Path, mebibytes: u32) -> Result<()> {
    for (name, direct, engine, sizes) in [
        ("direct", "1", "io_uring", "4k-64k"),
        ("buffered", "0", "psync", "512-16k"),
        ("sync", "0", "sync", "4k-4k"),
    ] {
        let mut command = fio_verify_command(name, scratch)?;
        command
            .args(["--rw=randrw", "--iodepth=16", "--numjobs=2", "--fsync=64", "--randseed=3"])
            .arg(format!("--size={mebibytes}m"))
            .args([&format!("--direct={direct}"), &format!("--ioengine={engine}")])
            .args([&format!("--bsrange={sizes}"), &format!("--directory={}", folder.display())]);
        let output = run(&mut command)?;
        ensure!(output.status.success(), "fio {name}: {}", text(&output));
    }
    Ok(())
}
