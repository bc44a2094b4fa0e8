//! A directory with our file system on it.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::options::MountOptions;
use super::sys;

/// The file system's type in `/proc/mounts`.
const KIND: &std::ffi::CStr = c"fuse.csvfs";

/// A mounted directory, and how to unmount it.
#[derive(Debug)]
pub(super) struct Mountpoint {
    path: PathBuf,
}

fn terminated(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

impl Mountpoint {
    /// Mounts the connection of `device` on `path`.
    pub(super) fn mount(path: &Path, device: &File, options: &MountOptions) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let (user, group) = sys::effective_ids();
        let data = options.data(device.as_raw_fd(), user, group);
        sys::mount(
            &terminated(OsStr::new(&options.source))?,
            &terminated(path.as_os_str())?,
            KIND,
            options.flags(),
            &terminated(OsStr::new(&data))?,
        )?;
        Ok(Self { path })
    }

    /// Unmounts; `flags` as for umount2(2).
    pub(super) fn unmount(&self, flags: libc::c_int) -> io::Result<()> {
        sys::unmount(&terminated(self.path.as_os_str())?, flags | libc::UMOUNT_NOFOLLOW)
    }

    /// Sets how far the kernel reads ahead. It begins with 128 KiB, and only this file makes it more.
    pub(super) fn read_ahead(&self, kib: u32) -> io::Result<()> {
        // Without asking the file system, which is this process: killed in the middle of that, it would wait for its own
        // answer for ever.
        let (major, minor) = sys::device_of(&terminated(self.path.as_os_str())?)?;
        std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string())
    }
}
