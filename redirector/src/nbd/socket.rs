//! A stream socket to an NBD server, with the options of rule P5. The only place of the client that calls the kernel
//! directly.

use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use crate::nbd::splice::{Pipe, Sent};
use crate::{attend, stand_in};

/// How long sent bytes may stay unacknowledged before a TCP connection counts as broken, in milliseconds (P5).
const USER_TIMEOUT_MS: libc::c_int = 3000;
/// Socket buffers in bytes, as far as the system allows.
const BUFFER_BYTES: libc::c_int = 4 << 20;
/// What is as long as this is received whole: the kernel waits for the rest instead of us, again and again.
pub const WHOLE_MIN: usize = 128 << 10;
/// Parts that one system call takes at most (UIO_MAXIOV of Linux).
const PARTS_MAX: usize = 1024;

/// How long a sender waits for room before others receive in its place, in milliseconds.
const ROOM_PATIENCE_MS: libc::c_int = 1;

/// Whether a receiver waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Not at all.
    No,
    /// As long as the socket's time-out, if it has one.
    Briefly,
}

/// A connected stream socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    tcp: bool,
}

fn set<T>(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: `value` is a live `T` of `len` bytes; the kernel only reads it.
    let status =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn span(time: Duration) -> libc::timeval {
    libc::timeval {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_usec: libc::suseconds_t::from(time.subsec_micros()),
    }
}

impl Socket {
    /// Connects by TCP. With `drops_unsent` (rule P5) what has not reached the server dies with the connection.
    pub fn tcp(address: SocketAddr, timeout: Duration, drops_unsent: bool) -> io::Result<Self> {
        let socket = Self { fd: TcpStream::connect_timeout(&address, timeout)?.into(), tcp: true };
        set(&socket.fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &1i32)?;
        if drops_unsent {
            set(&socket.fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, &USER_TIMEOUT_MS)?;
            set(&socket.fd, libc::SOL_SOCKET, libc::SO_LINGER, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        }
        // A server that vanishes while nothing is on its way to it is noticed by keep-alives, as fast.
        set(&socket.fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &1i32)?;
        for option in [libc::TCP_KEEPIDLE, libc::TCP_KEEPINTVL] {
            set(&socket.fd, libc::IPPROTO_TCP, option, &1i32)?;
        }
        set(&socket.fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, &3i32)?;
        Ok(socket)
    }

    /// Connects to a Unix socket.
    pub fn unix(path: &Path, timeout: Duration) -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` has just been made and nobody else owns it.
        let socket = Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, tcp: false };
        // Also bounds the wait for a place in the server's backlog.
        socket.set_timeout(Some(timeout))?;
        // SAFETY: an all-zero `sockaddr_un` is a valid value.
        let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        let family = libc::sa_family_t::try_from(libc::AF_UNIX).map_err(io::Error::other)?;
        address.sun_family = family;
        let bytes = path.as_os_str().as_bytes();
        if bytes.len() >= address.sun_path.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the path of a Unix socket has at most 107 bytes",
            ));
        }
        for (to, from) in address.sun_path.iter_mut().zip(bytes) {
            *to = from.cast_signed();
        }
        let len = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
        // SAFETY: `address` is a valid `sockaddr_un` of `len` bytes, terminated by zero.
        if unsafe { libc::connect(socket.fd.as_raw_fd(), (&raw const address).cast(), len) } != 0 {
            return Err(io::Error::last_os_error());
        }
        for (force, plain) in
            [(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF), (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF)]
        {
            if set(&socket.fd, libc::SOL_SOCKET, force, &BUFFER_BYTES).is_err() {
                // Only an optimisation; an unprivileged process gets what the system allows.
                let _ = set(&socket.fd, libc::SOL_SOCKET, plain, &BUFFER_BYTES);
            }
        }
        Ok(socket)
    }

    /// Lets sends and receives fail after `timeout`, or never.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        let time = span(timeout.unwrap_or_default());
        set(&self.fd, libc::SOL_SOCKET, libc::SO_SNDTIMEO, &time)?;
        set(&self.fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &time)
    }

    /// Lets receives fail after `timeout`, and sends never.
    pub fn set_receive_timeout(&self, timeout: Duration) -> io::Result<()> {
        set(&self.fd, libc::SOL_SOCKET, libc::SO_SNDTIMEO, &span(Duration::ZERO))?;
        set(&self.fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &span(timeout))
    }

    /// Sends `parts` whole and in order, by one system call if the socket has room; waits for room otherwise.
    pub fn send(&self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        self.send_before(parts, 0)
    }

    /// Sends `head`, and the pages of `data` by `pipe`; waits for room.
    pub fn send_pages(&self, head: &[u8], data: &[u8], pipe: &Pipe) -> io::Result<Sent> {
        self.send_before(&mut [IoSlice::new(head)], libc::MSG_MORE)?;
        let _away = if self.wait_for(libc::POLLOUT, ROOM_PATIENCE_MS) { None } else { leave() };
        pipe.send(self.fd.as_raw_fd(), data)
    }

    /// Sends `parts`; the flag MSG_MORE says that more follows at once.
    fn send_before(&self, mut parts: &mut [IoSlice<'_>], more: libc::c_int) -> io::Result<()> {
        IoSlice::advance_slices(&mut parts, 0);
        let mut flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | more;
        let mut away = None;
        while !parts.is_empty() {
            // SAFETY: an all-zero `msghdr` is a valid value.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iov = parts.as_mut_ptr().cast();
            message.msg_iovlen = parts.len().min(PARTS_MAX);
            // SAFETY: `message` points to `parts`, which are laid out as `iovec`s and whose slices live through the
            // call; the kernel only reads them.
            let sent = unsafe { libc::sendmsg(self.fd.as_raw_fd(), &raw const message, flags) };
            let Ok(sent) = usize::try_from(sent) else {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::Interrupted => continue,
                    io::ErrorKind::WouldBlock if flags & libc::MSG_DONTWAIT != 0 => {
                        if !self.wait_for(libc::POLLOUT, ROOM_PATIENCE_MS) {
                            away = away.or_else(leave);
                        }
                        flags &= !libc::MSG_DONTWAIT;
                        continue;
                    }
                    _ => return Err(error),
                }
            };
            IoSlice::advance_slices(&mut parts, sent);
        }
        Ok(())
    }

    /// Receives some bytes into `first` and then into `second`; zero at the end of the stream. If `second` is empty, all
    /// of a `first` that is [`WHOLE_MIN`] long, or what came in time. Fails with EAGAIN when nothing did.
    pub fn receive(&self, first: &mut [u8], second: &mut [u8], wait: Wait) -> io::Result<usize> {
        let flags = match wait {
            Wait::No => libc::MSG_DONTWAIT,
            Wait::Briefly if second.is_empty() && first.len() >= WHOLE_MIN => libc::MSG_WAITALL,
            Wait::Briefly => 0,
        };
        let mut parts = [
            libc::iovec { iov_base: first.as_mut_ptr().cast(), iov_len: first.len() },
            libc::iovec { iov_base: second.as_mut_ptr().cast(), iov_len: second.len() },
        ];
        // SAFETY: an all-zero `msghdr` is a valid value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len();
        loop {
            // SAFETY: both slices are writable for their lengths through the call and do not overlap.
            let received = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, flags) };
            match usize::try_from(received) {
                Ok(received) => return Ok(received),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// How many bytes can be received; none if that cannot be told.
    pub fn readable(&self) -> usize {
        let mut bytes: libc::c_int = 0;
        // SAFETY: FIONREAD fills in an int, which lives through the call.
        let told = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) } == 0;
        if told { usize::try_from(bytes).unwrap_or_default() } else { 0 }
    }

    /// Waits until something can be received, or the stream has ended.
    pub fn wait_readable(&self) {
        self.wait_for(libc::POLLIN, -1);
    }

    /// Whether a short message can be sent without waiting.
    pub fn is_writable(&self) -> bool {
        self.wait_for(libc::POLLOUT, 0)
    }

    /// Waits for an event of poll(2), at most `timeout` milliseconds: whether it, or the end of the stream, has come.
    fn wait_for(&self, events: libc::c_short, timeout: libc::c_int) -> bool {
        let mut wanted = libc::pollfd { fd: self.fd.as_raw_fd(), events, revents: 0 };
        // SAFETY: one `pollfd` is passed, and lives through the call. Whatever the result, the caller looks itself.
        unsafe { libc::poll(&raw mut wanted, 1, timeout) > 0 }
    }

    /// Breaks the connection: whoever waits in `send` or `receive`, now or later, gets an error or the end.
    pub fn shutdown(&self) {
        // SAFETY: no memory is passed. An error means that the connection is broken already.
        unsafe { libc::shutdown(self.fd.as_raw_fd(), libc::SHUT_RDWR) };
    }

    /// Before an orderly end: what has been sent shall arrive.
    pub fn deliver_on_close(&self) {
        if self.tcp {
            // An error costs the server an orderly end, nothing else.
            let _ =
                set(&self.fd, libc::SOL_SOCKET, libc::SO_LINGER, &libc::linger { l_onoff: 0, l_linger: 0 });
        }
    }
}

/// Others receive, and take this thread's place, as long as what is returned lives: the server may wait until somebody
/// receives what it sends.
fn leave() -> Option<impl Drop> {
    attend::leave();
    stand_in::go_away()
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}
