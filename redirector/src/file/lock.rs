//! The exclusive lock, and the proof that no earlier client's write is still on its way.
//!
//! A file LUN that is opened for writing takes an open file description's lock on the whole file (`F_OFD_SETLK`, write)
//! if it is free, and keeps it until it is dropped. The kernel releases such a lock when the last reference to the open
//! file goes; every request of an `io_uring` has one, so a killed process's lock is held until its last write has ended,
//! which may be some time after the process is gone (`tests::killed_writer` looks).
//!
//! The lock alone speaks of file LUNs only. An earlier client may have reached the file through another program (an NBD
//! server, a loop device) that takes no lock. So the proof asks for more: that nobody else has the file open at all.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::kernel;
use super::open::Opened;
use crate::lun::Proof;

/// How long the proof waits for the writes of a process that has just been killed.
const WAIT_MAX: Duration = Duration::from_secs(2);
const WAIT_STEP: Duration = Duration::from_millis(2);

/// File systems that only one kernel at a time mounts, so that its locks and open files are all there are: the magic
/// numbers of `linux/magic.h`.
const LOCAL: [(u32, &str); 9] = [
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0xf2f5_2010, "f2fs"),
    (0x0102_1994, "tmpfs"),
    (0x8584_58f6, "ramfs"),
    (0x794c_7630, "overlayfs"),
    (0x2fc1_2fc1, "zfs"),
    (0xca45_1a4e, "bcachefs"),
];

/// The name of the local file system that `file` is on; `None` if it is shared, or unknown.
fn local_filesystem(file: &File) -> Option<&'static str> {
    let magic = kernel::filesystem_magic(file).ok()?;
    LOCAL.iter().find(|(local, _)| *local == magic).map(|(_, name)| *name)
}

/// The exclusive lock is ours, until the LUN is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exclusive(());

/// Who has the file open, as far as this process can see.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Holder {
    /// This process itself has it open once more.
    ThisProcess,
    /// Another process.
    Process {
        /// Its process id.
        pid: u32,
        /// Its name (`/proc/PID/comm`).
        name: String,
    },
    /// Somebody: a process that cannot be looked at, or the kernel.
    Somebody,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ThisProcess => f.write_str("this process"),
            Self::Process { pid, name } => write!(f, "process {pid} ({name})"),
            Self::Somebody => f.write_str("another process"),
        }
    }
}

/// The lock of one open file.
#[derive(Debug, Default)]
pub struct Lock {
    held: Mutex<bool>,
}

impl Lock {
    /// Takes the lock if it is free, or ours already.
    pub fn try_exclusive(&self, opened: &Opened) -> Result<Exclusive, Holder> {
        let mut held = self.held.lock();
        if !*held {
            *held = kernel::try_lock(&opened.file).unwrap_or(false);
        }
        if *held { Ok(Exclusive(())) } else { Err(find_holder(&opened.file)) }
    }

    /// Whether the lock is ours.
    pub fn is_held(&self) -> bool {
        *self.held.lock()
    }

    /// Gives the lock up at once, whatever references to the file are left.
    pub fn release(&self, opened: &Opened) {
        if std::mem::take(&mut *self.held.lock())
            && let Err(error) = kernel::unlock(&opened.file)
        {
            tracing::warn!(path = %opened.path.display(), %error, "the lock stays until the process ends");
        }
    }

    /// Proves that whatever earlier clients of this file sent has ended.
    pub fn prove_ended(&self, opened: &Opened) -> Proof {
        // Whoever has a block device open on another host is not seen here.
        let Some(filesystem) = (!opened.is_device).then(|| local_filesystem(&opened.file)).flatten() else {
            return Proof::Unprovable;
        };
        if opened.read_only {
            return Proof::Unprovable;
        }
        let path = opened.path.display();
        let until = Instant::now() + WAIT_MAX;
        loop {
            let locked = self.try_exclusive(opened);
            let alone = locked.is_ok().then(|| kernel::is_only_open(&opened.file));
            let late = Instant::now() >= until;
            match (locked, alone) {
                (Err(holder), _) if late => {
                    return Proof::Alive(format!("{holder}, which has a lock on {path}"));
                }
                (Ok(_), Some(Ok(true))) => {
                    return Proof::Ended(format!(
                        "{path} is locked, and nobody else of this host has it open ({filesystem})"
                    ));
                }
                (Ok(_), Some(Ok(false))) if late => {
                    let holder = find_holder(&opened.file);
                    tracing::warn!("{holder} has {path} open and no lock on it: what it writes is unknown");
                    return Proof::Unprovable;
                }
                (Ok(_), Some(Err(error))) => {
                    tracing::warn!(%error, "who else has {path} open cannot be found out: no lease on it");
                    return Proof::Unprovable;
                }
                _ => thread::sleep(WAIT_STEP),
            }
        }
    }
}

/// Looks through the descriptors of all processes for one on the same inode.
fn find_holder(file: &File) -> Holder {
    let Ok(ours) = file.metadata() else { return Holder::Somebody };
    let is_same = |path: &Path| {
        fs::metadata(path).is_ok_and(|other| other.ino() == ours.ino() && other.dev() == ours.dev())
    };
    // Only then is a file looked at itself: one on a mount that hangs would not answer, and one that is looked at keeps
    // its mount busy for a moment.
    let ino = format!("ino:\t{}", ours.ino());
    let may_be_same = |pid: u32, name: &OsStr| {
        let info = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("fdinfo").join(name));
        info.is_ok_and(|info| !info.contains("ino:\t") || info.lines().any(|line| line == ino))
    };
    let count = |pid: u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors.filter(|one| may_be_same(pid, &one.file_name()) && is_same(&one.path())).count()
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let this = std::process::id();
    for pid in pids.filter(|pid| *pid != this) {
        if count(pid) > 0 {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            return Holder::Process { pid, name: name.trim().to_owned() };
        }
    }
    if count(this) > 1 { Holder::ThisProcess } else { Holder::Somebody }
}
