//! Sends memory without copying it: its pages go by a pipe into the socket (vmsplice(2), splice(2)).
//!
//! The server reads the very pages that the caller owns, whenever it does; so they are on loan ([`crate::buffer::Loan`])
//! until it has answered. For 1 MiB this is twice as fast as a copy into the socket's buffers (`docs/PERFORMANCE.md`).

use std::io::{self, PipeReader, PipeWriter, pipe};
use std::os::fd::{AsRawFd, RawFd};

/// Data of this length and more is worth the system calls: two instead of a part of one.
pub const LENT_MIN: usize = 64 << 10;
/// Bytes of pages that the pipe holds: what a user's processes may have by default.
const PIPE_BYTES: libc::c_int = 1 << 20;

/// The pipe of one sender. What is in it, nobody but the socket gets: after an error it is thrown away.
#[derive(Debug)]
pub struct Pipe {
    reader: PipeReader,
    writer: PipeWriter,
}

/// How far [`Pipe::send`] came.
#[derive(Debug)]
pub enum Sent {
    /// To the end.
    All,
    /// So many bytes; the kernel cannot pass pages into this socket.
    Part(usize),
}

impl Pipe {
    /// A pipe, if the system lets us have a large one: with a small one a copy is as good.
    ///
    /// # Errors
    /// If it does not.
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = pipe()?;
        // SAFETY: no memory is passed; the descriptor is ours.
        let size = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_BYTES) };
        if size < PIPE_BYTES {
            return Err(io::Error::other("a pipe may not be that large"));
        }
        Ok(Self { reader, writer })
    }

    /// Sends `data` into `socket`; its bytes must not change until the other end has them.
    ///
    /// # Errors
    /// If the socket fails; the pipe is not to be used any more.
    pub fn send(&self, socket: RawFd, data: &[u8]) -> io::Result<Sent> {
        let mut sent = 0;
        while sent < data.len() {
            let taken = match self.take_in(&data[sent..]) {
                Ok(taken) => taken,
                Err(error) if is_not_possible(&error) => return Ok(Sent::Part(sent)),
                Err(error) => return Err(error),
            };
            let mut left = taken;
            while left > 0 {
                match self.give_out(socket, left) {
                    Ok(given) => left -= given,
                    Err(error) if is_not_possible(&error) => return Ok(Sent::Part(sent + taken - left)),
                    Err(error) => return Err(error),
                }
            }
            sent += taken;
        }
        Ok(Sent::All)
    }

    /// Puts the pages of `data` into the pipe, as many as it holds.
    fn take_in(&self, data: &[u8]) -> io::Result<usize> {
        let part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
        moved(|| {
            // SAFETY: one `iovec` is passed, which lives through the call; the kernel only reads the memory.
            unsafe { libc::vmsplice(self.writer.as_raw_fd(), &raw const part, 1, libc::SPLICE_F_NONBLOCK) }
        })
    }

    /// Moves up to `len` bytes of the pipe into `socket`; waits for room.
    fn give_out(&self, socket: RawFd, len: usize) -> io::Result<usize> {
        let (from, none) = (self.reader.as_raw_fd(), std::ptr::null_mut());
        moved(|| {
            // SAFETY: no memory is passed: neither end has an offset.
            unsafe { libc::splice(from, none, socket, none, len, 0) }
        })
    }
}

/// The system does not do it with this socket, or this memory.
fn is_not_possible(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM))
}

/// Repeats an interrupted call; nothing moved is an error.
fn moved(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => return Ok(bytes),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::buffer::{Pool, Slice};

    const LEN: usize = 1 << 20;

    fn filled(pool: &Pool, byte: u8) -> Slice {
        let mut buffer = pool.take(LEN);
        buffer.fill(byte);
        buffer.share()
    }

    /// A pair that takes all that is sent without a reader.
    fn roomy() -> (UnixStream, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        let size: libc::c_int = 4 << 20;
        // SAFETY: one `int` is passed, which lives through the call.
        let status = unsafe {
            let value = (&raw const size).cast();
            libc::setsockopt(near.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, value, 4)
        };
        assert_eq!(status, 0);
        (near, far)
    }

    /// What the other end reads of data that was sent, and whose memory was taken for other data since.
    fn read_late(is_answered: bool) -> Vec<u8> {
        let (pool, (near, mut far)) = (Pool::default(), roomy());
        let data = filled(&pool, 7);
        let loan = data.lend();
        let address = data.as_ptr();
        assert!(matches!(Pipe::new().unwrap().send(near.as_raw_fd(), &data).unwrap(), Sent::All));
        if is_answered {
            loan.returned()
        } else {
            drop(loan)
        }
        drop(data);
        let other = filled(&pool, 9);
        assert_eq!(other.as_ptr(), address, "the same memory");
        let mut seen = vec![0; LEN];
        far.read_exact(&mut seen).unwrap();
        seen
    }

    #[test]
    fn p4_what_nobody_has_answered_is_read_late_as_it_was_sent() {
        assert!(read_late(false).iter().all(|byte| *byte == 7));
    }

    #[test]
    fn nothing_is_copied() {
        assert!(read_late(true).iter().all(|byte| *byte == 9), "these are the sender's own pages");
    }

    #[test]
    fn data_of_any_place_and_length_arrives_whole() {
        let pool = Pool::default();
        let mut buffer = pool.take(LEN);
        (0..LEN).for_each(|at| buffer[at] = u8::try_from(at % 251).unwrap());
        let data = buffer.share();
        let (near, mut far) = UnixStream::pair().unwrap();
        let pipe = Pipe::new().unwrap();
        for range in [0..LEN, 1..LEN, 4095..LEN - 1, 4096..LENT_MIN, 5..6] {
            let part = data.part(range);
            let mut seen = vec![0; part.len()];
            std::thread::scope(|scope| {
                scope.spawn(|| far.read_exact(&mut seen).unwrap());
                assert!(matches!(pipe.send(near.as_raw_fd(), &part).unwrap(), Sent::All));
            });
            assert!(seen == *part);
        }
    }

    #[test]
    fn a_broken_socket_is_an_error_and_one_that_takes_no_pages_is_told() {
        let data = filled(&Pool::default(), 1);
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        assert!(Pipe::new().unwrap().send(near.as_raw_fd(), &data).is_err());
        // Nothing can be spliced into an epoll descriptor.
        // SAFETY: no memory is passed.
        let other = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        let sent = Pipe::new().unwrap().send(other, &data);
        // SAFETY: opened above, and closed once.
        unsafe { libc::close(other) };
        assert!(matches!(sent, Ok(Sent::Part(0))), "{sent:?}");
    }
}
