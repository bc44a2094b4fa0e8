//! The system calls that the standard library does not have: the only unsafe code of the front end.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

/// `_IOR(229, 0, uint32_t)`: makes a fresh /dev/fuse descriptor another reader of an existing connection.
const FUSE_DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500;

fn checked(status: libc::c_int) -> io::Result<libc::c_int> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(status) }
}

/// A fresh descriptor of the FUSE device; `flags` are those of open(2).
pub(super) fn open_fuse_device(flags: libc::c_int) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(flags | libc::O_CLOEXEC).open("/dev/fuse")
}

/// A further descriptor of the connection that `device` serves, with a queue of its own.
pub(super) fn clone_fuse_device(device: &File, flags: libc::c_int) -> io::Result<File> {
    let clone = open_fuse_device(flags)?;
    let source: RawFd = device.as_raw_fd();
    // SAFETY: the request reads one u32 through the pointer, which is valid for the call; both descriptors are open.
    checked(unsafe { libc::ioctl(clone.as_raw_fd(), FUSE_DEV_IOC_CLONE, &raw const source) })?;
    Ok(clone)
}

/// mount(2).
pub(super) fn mount(
    source: &CStr,
    target: &CStr,
    kind: &CStr,
    flags: libc::c_ulong,
    data: &CStr,
) -> io::Result<()> {
    // SAFETY: all pointers are to NUL-terminated strings that outlive the call.
    checked(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast())
    })?;
    Ok(())
}

/// umount2(2).
pub(super) fn unmount(target: &CStr, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: the pointer is to a NUL-terminated string that outlives the call.
    checked(unsafe { libc::umount2(target.as_ptr(), flags) })?;
    Ok(())
}

/// The effective user and group of this process.
pub(super) fn effective_ids() -> (u32, u32) {
    // SAFETY: these calls have no preconditions and cannot fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// Two connected sockets that keep messages whole (SOCK_SEQPACKET), each able to hold `buffer` bytes.
pub(super) fn message_pair(buffer: libc::c_int) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends: [RawFd; 2] = [-1; 2];
    // SAFETY: `ends` is room for the two descriptors.
    checked(unsafe {
        libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr())
    })?;
    // SAFETY: the kernel has just made both, and nobody else owns them.
    let pair = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    for end in ends {
        // Beyond the system's limit where this process may go there, else up to it.
        if set_socket_buffer(end, libc::SO_SNDBUFFORCE, buffer).is_err() {
            set_socket_buffer(end, libc::SO_SNDBUF, buffer)?;
        }
    }
    Ok(pair)
}

fn set_socket_buffer(socket: RawFd, option: libc::c_int, bytes: libc::c_int) -> io::Result<()> {
    let len = libc::socklen_t::from(4_u8);
    // SAFETY: the option's value is an int of four bytes, valid for the call.
    checked(unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, option, (&raw const bytes).cast(), len) })?;
    Ok(())
}

/// Ends both directions of a socket, so that whoever reads from it or its peer sees the end.
pub(super) fn shut_down(socket: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open.
    checked(unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) })?;
    Ok(())
}

/// One of the descriptors that [`wait_for_any`] waits for.
pub(super) fn readable(descriptor: RawFd) -> libc::pollfd {
    libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 }
}

/// Waits until something of `set` is readable or has ended.
pub(super) fn wait_for_any(set: &mut [libc::pollfd]) {
    // SAFETY: the room that is passed lives through the call. Whatever the result, the caller looks itself.
    unsafe { libc::poll(set.as_mut_ptr(), set.len() as libc::nfds_t, -1) };
}

/// The device of the file system at `path`, as major and minor number. Nobody is asked but the kernel.
pub(super) fn device_of(path: &CStr) -> io::Result<(u32, u32)> {
    let mut status = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a C string, and the kernel writes one `statx` to `status`.
    let result = unsafe {
        libc::statx(libc::AT_FDCWD, path.as_ptr(), libc::AT_STATX_DONT_SYNC, 0, status.as_mut_ptr())
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed above, and every bit pattern is a `statx`.
    let status = unsafe { status.assume_init() };
    Ok((status.stx_dev_major, status.stx_dev_minor))
}
