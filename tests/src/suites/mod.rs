//! Programs of others that must be content with a mount: the same runs for a mount by itself and for those of a cluster.
//!
//! Each works in a folder of the mount, and puts what it needs beside it into a scratch folder elsewhere. It fails with
//! what the program said.

mod emulator;
mod fio;
mod fsx;
mod pjdfstest;
mod qemu_img;
mod stress;

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result};

pub use emulator::{Machine, boot_image};
pub use fio::{fio_verify, fio_verify_command};
pub use fsx::fsx;
pub use pjdfstest::pjdfstest;
pub use qemu_img::qemu_img;
pub use stress::stress_ng;

/// Whether the long variants are asked for (`make soak`).
#[must_use]
pub fn is_soak() -> bool {
    std::env::var_os("CSV_SOAK").is_some()
}

/// Runs `command` to its end.
fn run(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| format!("running {command:?}"))
}

/// All that a program has printed.
fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Lets every user in.
fn open_to_all(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?)
}
