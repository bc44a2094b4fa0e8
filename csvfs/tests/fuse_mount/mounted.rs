//! A mount for one test, gone when the test is, also when it fails.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use csvfs::fuse::{MountHandle, MountOptions, mount};
use lockd::ids::ClientId;
use redirector::buffer::Pool;
use tempfile::TempDir;

use crate::memory::Memory;

/// A mounted file system in memory.
pub struct Mounted {
    pub memory: Arc<Memory>,
    // Dropped in this order: first the mount, then its folder.
    pub handle: Option<MountHandle>,
    directory: TempDir,
}

impl Mounted {
    pub fn new() -> Self {
        Self::with(&MountOptions::default())
    }

    pub fn with(options: &MountOptions) -> Self {
        let directory = TempDir::new().unwrap();
        let memory = Arc::new(Memory::new());
        let handle = mount(
            directory.path(),
            options,
            Arc::clone(&memory) as _,
            Arc::new(lockd::locks::FileLocks::default()),
            ClientId(1),
            &Pool::default(),
        );
        Self { memory, handle: Some(handle.unwrap()), directory }
    }

    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// The result of a system call that returns -1 on failure.
pub fn checked<T: Into<i64>>(status: T) -> io::Result<i64> {
    let status = status.into();
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(status) }
}

/// The errno of what must fail.
pub fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().expect("this must fail").raw_os_error().expect("it fails with an errno")
}

pub fn terminated(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// fcntl's three lock commands on a whole or partial file.
pub fn record_lock(file: &File, command: i32, kind: i32, start: i64, len: i64) -> io::Result<libc::flock> {
    // SAFETY: all zeros is a valid `flock`.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind.try_into().unwrap();
    lock.l_whence = libc::SEEK_SET.try_into().unwrap();
    (lock.l_start, lock.l_len) = (start, len);
    // SAFETY: the descriptor is open and `lock` is valid for the call.
    checked(unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) })?;
    Ok(lock)
}

pub fn flock(file: &File, operation: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open.
    checked(unsafe { libc::flock(file.as_raw_fd(), operation) }).map(|_| ())
}
