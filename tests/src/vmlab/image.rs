//! What a machine boots: the initramfs, with everything that its host is to have.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::archive::Archive;
use crate::programs;

/// This workspace's programs that every machine has.
const OURS: [&str; 5] = ["csvfs", "csv-target", "lockd", "lockctl", "vm-agent"];
/// Those that `scripts/emulator` has unpacked.
const PACKAGED: [&str; 1] = ["iscsistart"];
/// The first program: mounts, modules, networks, the agent.
const INIT: &str = include_str!("init.sh");

/// A file of one machine.
#[derive(Clone, Debug)]
pub struct File {
    /// Where it lies in the machine.
    pub path: PathBuf,
    /// What it holds.
    pub contents: Vec<u8>,
}

impl File {
    /// A file that holds `contents`.
    pub fn new(path: impl Into<PathBuf>, contents: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), contents: contents.into() }
    }
}

/// The folder that `scripts/emulator` fills.
pub(super) fn unpacked() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/emulator/machine");
    ensure!(folder.join("vmlinuz").exists(), "the machines' kernel is not unpacked; run `make tools`");
    Ok(folder)
}

/// Writes the initramfs of a machine with these files to `path`.
pub(super) fn write(path: &Path, files: &[File]) -> Result<()> {
    let unpacked = unpacked()?;
    let mut archive = Archive::default();
    for folder in ["/dev", "/etc", "/log", "/mnt", "/proc", "/run", "/sys", "/tmp", "/var"] {
        archive.folder(Path::new(folder))?;
    }
    archive.file(Path::new("/init"), 0o755, INIT.as_bytes())?;
    archive.file(Path::new("/bin/busybox"), 0o755, &read(&unpacked.join("busybox"))?)?;
    archive.link(Path::new("/bin/sh"), "busybox")?;
    add_folder(&mut archive, &unpacked.join("modules"), Path::new("/lib/modules"))?;
    let mut libraries = BTreeSet::new();
    for name in OURS {
        let program = stripped(name, &programs::ours(name)?, &unpacked)?;
        libraries.extend(libraries_of(&program, &unpacked)?);
        archive.file(&Path::new("/bin").join(name), 0o755, &read(&program)?)?;
    }
    for name in PACKAGED {
        let program = unpacked.join("bin").join(name);
        libraries.extend(libraries_of(&program, &unpacked)?);
        archive.file(&Path::new("/bin").join(name), 0o755, &read(&program)?)?;
    }
    for (place, library) in libraries {
        archive.file(&place, 0o755, &read(&library)?)?;
    }
    for file in files {
        archive.file(&file.path, 0o600, &file.contents)?;
    }
    std::fs::write(path, archive.finish()?).with_context(|| path.display().to_string())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| path.display().to_string())
}

fn add_folder(archive: &mut Archive, from: &Path, to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            add_folder(archive, &entry.path(), &to)?;
        } else {
            archive.file(&to, 0o644, &read(&entry.path())?)?;
        }
    }
    Ok(())
}

/// The program without its symbols, which would be most of the initramfs; made once for each build of it.
fn stripped(name: &str, program: &Path, unpacked: &Path) -> Result<PathBuf> {
    let metadata = program.metadata()?;
    let folder = unpacked.join("stripped");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{name}-{}-{}-{}", metadata.dev(), metadata.ino(), metadata.mtime_nsec()));
    if path.exists() {
        return Ok(path);
    }
    for old in std::fs::read_dir(&folder)?.flatten() {
        if old.file_name().to_string_lossy().starts_with(&format!("{name}-{}-", metadata.dev())) {
            // Another test may have taken it away.
            let _ = std::fs::remove_file(old.path());
        }
    }
    let fresh = folder.join(format!("{}.{name}", std::process::id()));
    let status =
        Command::new("strip").arg("-o").arg(&fresh).arg(program).status().context("strip (binutils)")?;
    ensure!(status.success(), "strip {}: {status}", program.display());
    // Another test may have been faster, with the same.
    std::fs::rename(&fresh, &path)?;
    Ok(path)
}

/// The shared libraries that a program needs: where they are to lie, and where they are.
fn libraries_of(program: &Path, unpacked: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let output = Command::new("ldd")
        .env("LD_LIBRARY_PATH", unpacked.join("lib"))
        .arg(program)
        .output()
        .context("ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(name), Some("=>"), Some("not")) => {
                bail!("{} wants {name}, which is not there", program.display())
            }
            (Some(name), Some("=>"), Some(path)) => {
                found.push((Path::new("/lib").join(name), PathBuf::from(path)))
            }
            // The loader stands where the program says.
            (Some(path), _, _) if path.starts_with('/') => {
                found.push((PathBuf::from(path), PathBuf::from(path)))
            }
            _ => {}
        }
    }
    ensure!(!found.is_empty(), "ldd says nothing of {}: {output:?}", program.display());
    Ok(found)
}
