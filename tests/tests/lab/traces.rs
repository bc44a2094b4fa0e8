//! What a lab may leave behind: nothing.

use std::path::Path;

use anyhow::{Result, ensure};
use lab::cluster::{Namespace, ProcessId, mounts_below, prefix};

/// Demands that there is nothing of the lab `name` in `folder` any more.
pub fn none(name: &str, folder: &Path, processes: &[ProcessId]) -> Result<()> {
    let namespaces = Namespace::all(&prefix(name));
    ensure!(namespaces.is_empty(), "left: {namespaces:?}");
    let mounts = mounts_below(folder);
    ensure!(mounts.is_empty(), "left: {mounts:?}");
    ensure!(!folder.exists(), "left: {}", folder.display());
    let alive: Vec<_> = processes.iter().filter(|process| process.is_alive()).collect();
    ensure!(alive.is_empty(), "left: {alive:?}");
    Ok(())
}
