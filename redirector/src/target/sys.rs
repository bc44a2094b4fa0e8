//! The system calls that the standard library does not offer: reads that do not wait, durable writes, `fallocate`,
//! socket options, and waiting for signals. All of the target's `unsafe` is here.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

fn offset_of(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Reads at `offset` what is in memory, without waiting for the disk. Returns the bytes read, which may be fewer than
/// asked for; `EAGAIN` when nothing is in memory, `EOPNOTSUPP` when the file system cannot tell.
pub(super) fn read_without_waiting(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let offset = offset_of(offset)?;
    // SAFETY: the one iovec describes `buffer`, which is writable and outlives the call.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &raw const iov, 1, offset, libc::RWF_NOWAIT) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Writes at `offset`, durable when it returns. Returns the bytes written, which may be fewer than given.
pub(super) fn write_durably(file: &File, data: &[u8], offset: u64) -> io::Result<usize> {
    let iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let offset = offset_of(offset)?;
    // SAFETY: the one iovec describes `data`, which the kernel only reads and which outlives the call.
    let written = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const iov, 1, offset, libc::RWF_DSYNC) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// `fallocate(2)` with `mode` on `length` bytes from `offset`; never changes the file's size.
pub(super) fn fallocate(file: &File, mode: libc::c_int, offset: u64, length: u64) -> io::Result<()> {
    let (offset, length) = (offset_of(offset)?, offset_of(length)?);
    loop {
        // SAFETY: plain numbers and a descriptor that `file` keeps open.
        let status =
            unsafe { libc::fallocate(file.as_raw_fd(), mode | libc::FALLOC_FL_KEEP_SIZE, offset, length) };
        if status == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Where the next data at or after `offset` begins; `None` when only a hole follows.
pub(super) fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    let offset = offset_of(offset)?;
    // SAFETY: plain numbers and a descriptor that `file` keeps open. The target uses no file position.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, libc::SEEK_DATA) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

/// Shuts a listening socket down, which wakes the thread that waits in `accept`.
pub(super) fn stop_listening(socket: &impl AsRawFd) {
    // SAFETY: plain numbers and a descriptor that `socket` keeps open. Failure changes nothing.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
}

fn set_option(fd: RawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4);
    // SAFETY: `value` is a live int and `length` its size.
    let status = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), length) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a TCP connection whose peer is gone end by itself: `idle` without traffic, then probes; and data that the peer
/// does not take for `patience`.
pub(super) fn notice_dead_peers(socket: &impl AsRawFd, idle: Duration, patience: Duration) -> io::Result<()> {
    let seconds = |span: Duration| libc::c_int::try_from(span.as_secs().max(1)).unwrap_or(libc::c_int::MAX);
    let fd = socket.as_raw_fd();
    set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, seconds(idle))?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 2)?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 3)?;
    let patience_ms = libc::c_int::try_from(patience.as_millis()).unwrap_or(libc::c_int::MAX);
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, patience_ms)
}

/// Asks for a send buffer of `bytes`: as root beyond the system's limit, otherwise up to it.
pub(super) fn set_send_buffer(socket: &impl AsRawFd, bytes: i32) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes)
        .or_else(|_| set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes))
}

/// SIGTERM and SIGINT, held back for [`Signals::wait`]. Make it before any thread starts: they inherit it.
#[derive(Debug)]
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Holds the two signals back from this thread and those that it starts.
    pub fn hold() -> io::Result<Self> {
        // SAFETY: an all-zero `sigset_t` is a valid object to initialise, and `sigemptyset` initialises it.
        let set = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            set
        };
        // SAFETY: `set` is initialised; the old mask is not asked for.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
            0 => Ok(Self(set)),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Waits for one of them and returns its number.
    #[must_use]
    pub fn wait(&self) -> i32 {
        let mut signal = 0;
        loop {
            // SAFETY: the set is initialised and `signal` is a live int.
            if unsafe { libc::sigwait(&raw const self.0, &raw mut signal) } == 0 {
                return signal;
            }
        }
    }
}
