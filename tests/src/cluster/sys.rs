//! The system calls of the lab that the standard library lacks.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes `command` start in the network namespace `net`, and in no other namespace than its parent otherwise, so that
/// what it mounts is seen by everyone. With `detached` it gets a session of its own and outlives this program's terminal.
pub fn start_in(command: &mut Command, net: File, detached: bool) {
    let enter = move || {
        // SAFETY: a plain system call, which may be made between fork and exec; the descriptor is open as long as the
        // closure lives.
        check(unsafe { libc::setns(net.as_raw_fd(), libc::CLONE_NEWNET) })?;
        if detached {
            // SAFETY: a plain system call, which may be made between fork and exec. It fails if this is the leader of a
            // process group, which a forked child is not.
            unsafe { libc::setsid() };
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(enter) };
}

/// Moves the calling thread into the network namespace `net`.
pub fn enter(net: &File) -> io::Result<()> {
    // SAFETY: a plain system call on an open descriptor.
    check(unsafe { libc::setns(net.as_raw_fd(), libc::CLONE_NEWNET) })
}

/// A handle of the process that has the id `pid` now.
pub fn open_process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: a plain system call.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just opened it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `signal` to the process of the handle.
pub fn signal_process(handle: &OwnedFd, signal: i32) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a plain system call on an open descriptor; without an info the kernel fills one in.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, handle.as_raw_fd(), signal, no_info, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Detaches what is mounted at `path`, also while it is in use.
pub fn detach_mount(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a valid C string.
    check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) })
}
