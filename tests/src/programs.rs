//! Where the programs are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The folder of the workspace's programs of the profile that this program was built with.
fn built() -> Result<PathBuf> {
    let here = env::current_exe().context("finding this program")?;
    let folder = here.parent().context("this program has no folder")?;
    Ok(if folder.ends_with("deps") || folder.ends_with("examples") {
        folder.parent().context("target folder")?.to_owned()
    } else {
        folder.to_owned()
    })
}

/// A program of this workspace.
///
/// # Errors
/// If it has not been built.
pub fn ours(name: &str) -> Result<PathBuf> {
    let path = built()?.join(name);
    if !path.exists() {
        bail!(
            "{} is not built; run `cargo build --workspace` (with --release for the bench)",
            path.display()
        );
    }
    Ok(path)
}

/// Where `scripts/emulator` unpacks what is not installed.
const EMULATOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/emulator");

/// A program of the system, of cargo's folder, or of the emulator's.
///
/// # Errors
/// If it is not installed.
pub fn installed(name: &str) -> Result<PathBuf> {
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".cargo/bin"));
    let folders =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default();
    let folders = folders.into_iter().chain(home).chain([PathBuf::from(EMULATOR)]);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.exists());
    found.with_context(|| format!("{name} is not installed; run `make tools`"))
}
