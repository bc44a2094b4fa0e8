//! qemu-img.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{run, text};
use crate::programs;

/// An image is made in `folder`, filled, compared, resized, checked and given a snapshot.
pub fn qemu_img(folder: &Path, scratch: &Path) -> Result<()> {
    let source = scratch.join("source.raw");
    let pattern: Vec<u8> =
        (0..8 << 20).map(|i: u32| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    std::fs::write(&source, pattern)?;
    let image = folder.join("disk.qcow2");
    let path = |path: &Path| path.to_str().map(str::to_owned).context("scratch paths are plain text");
    let (source, image) = (path(&source)?, path(&image)?);
    for arguments in [
        vec!["convert", "-O", "qcow2", "-t", "none", &source, &image],
        vec!["compare", &source, &image],
        vec!["resize", &image, "64M"],
        vec!["check", &image],
        vec!["snapshot", "-c", "first", &image],
    ] {
        let output = run(Command::new(programs::installed("qemu-img")?).args(&arguments))?;
        ensure!(output.status.success(), "qemu-img {arguments:?}: {}", text(&output));
    }
    Ok(())
}
