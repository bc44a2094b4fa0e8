//! Process descriptors: the unsafe part of knowing processes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The kernel's number of the socket option that gives the pidfd of the peer (Linux 6.5).
const SO_PEERPIDFD: libc::c_int = 77;

/// Who made the other end of a local socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerCredentials {
    /// The process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
}

/// The credentials of the process that connected `stream`.
pub(super) fn credentials(stream: &UnixStream) -> io::Result<PeerCredentials> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    socket_option(stream, libc::SO_PEERCRED, &mut credentials)?;
    let pid = u32::try_from(credentials.pid).unwrap_or_default();
    if pid == 0 {
        return Err(io::Error::other("the peer is in a process namespace that is not visible here"));
    }
    Ok(PeerCredentials { pid, uid: credentials.uid })
}

/// The pidfd of the process that connected `stream`: no other process can have come in its place.
pub(super) fn of_peer(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    socket_option(stream, SO_PEERPIDFD, &mut fd)?;
    if fd < 0 {
        return Err(io::Error::other("the kernel gave no pidfd for the peer"));
    }
    // SAFETY: the kernel has just installed this descriptor for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The pidfd of process `pid`; the caller makes sure that it is the one that is meant.
pub(super) fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: the call takes two numbers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let Ok(fd) = libc::c_int::try_from(fd) else { return Err(io::Error::other("a descriptor out of range")) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above, a descriptor that was made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the process of `pidfd` has ended, all of its threads included.
pub(super) fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, valid for the call, which does not wait.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 1 && poll.revents & libc::POLLIN != 0
}

/// A pidfd as the reactor of the current runtime waits for it: readable once the process has ended.
pub(super) fn watched(pidfd: BorrowedFd<'_>) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    // SAFETY: a borrowed descriptor stays open, and the same, for as long as it is borrowed, which is longer than the
    // registration lives.
    unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.map_err(io::Error::from)
}

fn socket_option<T: Copy>(stream: &UnixStream, option: libc::c_int, value: &mut T) -> io::Result<()> {
    let Ok(mut length) = libc::socklen_t::try_from(size_of::<T>()) else {
        return Err(io::Error::other("a socket option out of range"));
    };
    // SAFETY: `value` is writable and as long as `length` says; the kernel writes at most that much. The callers' types
    // are plain numbers, for which any bytes are valid.
    let status = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_mut(value).cast(),
            &raw mut length,
        )
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
