//! Taking a lab away, whoever made it and whatever state it is in.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::identity::ProcessId;
use super::namespace::Namespace;
use super::sys;
use crate::wait::until;

/// How long killed processes may take to end.
const END: Duration = Duration::from_secs(10);
/// Where daemons keep their sockets, unless they are told otherwise: in a folder of their cluster.
const RUN: &str = "/run/csvfs";

/// The beginning of the names of a lab's namespaces.
#[must_use]
pub fn prefix(lab: &str) -> String {
    // Names of labs have no dots, so that no lab's prefix is another's.
    format!("csvlab.{lab}.")
}

/// The name of a lab's cluster: not one that a real cluster of this machine is likely to have.
#[must_use]
pub fn cluster_name(lab: &str) -> String {
    format!("lab-{lab}")
}

/// A path of /proc/self/mountinfo, in which spaces and the like are octal.
fn unescape(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let byte = octal
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(byte.unwrap_or(bytes[at]));
        at += if byte.is_some() { 4 } else { 1 };
    }
    PathBuf::from(OsString::from_vec(out))
}

/// What is mounted at or below `folder`, the last mounted first.
#[must_use]
pub fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let paths = text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut found: Vec<PathBuf> = paths.filter(|path| path.starts_with(folder)).collect();
    found.reverse();
    found
}

fn kill_all(namespaces: &[Namespace], known: &[ProcessId]) -> Result<()> {
    until("the lab's processes end", END, || {
        let inside = namespaces.iter().flat_map(Namespace::processes);
        let alive: Vec<ProcessId> = inside.chain(known.iter().copied()).filter(|id| id.is_alive()).collect();
        for id in &alive {
            // One that cannot be signalled is still there in the next round.
            let _ = id.signal(libc::SIGKILL);
        }
        alive.is_empty().then_some(())
    })
}

/// Ends every process in the lab's namespaces and the `known` ones, detaches its mounts, and removes namespaces and
/// folder. What is not there is fine.
pub fn remove(lab: &str, folder: &Path, known: &[ProcessId]) -> Result<()> {
    let namespaces = Namespace::all(&prefix(lab));
    kill_all(&namespaces, known)?;
    let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    for mount in mounts_below(&folder) {
        sys::detach_mount(&mount).with_context(|| format!("detaching {}", mount.display()))?;
    }
    for namespace in &namespaces {
        namespace.remove()?;
    }
    let left: BTreeSet<PathBuf> = mounts_below(&folder).into_iter().collect();
    ensure!(left.is_empty(), "{left:?} are still mounted; {} is left as it is", folder.display());
    for folder in [folder, Path::new(RUN).join(cluster_name(lab))] {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", folder.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(r"/a\040b\134c"), Path::new(r"/a b\c"));
        assert_eq!(unescape(r"/a\04"), Path::new(r"/a\04"));
        assert_eq!(unescape("/plain"), Path::new("/plain"));
        assert!(mounts_below(Path::new("/")).contains(&PathBuf::from("/proc")));
        assert_eq!(mounts_below(Path::new("/proc/nothing-here")), Vec::<PathBuf>::new());
    }
}
