//! Addresses to listen on, and the sockets of their connections: TCP or Unix, one interface.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::sys;

/// A TCP peer that is silent for so long is asked whether it is there; one that takes nothing for twice as long is gone.
const PEER_SILENCE: Duration = Duration::from_secs(10);
/// The send buffer of a connection: a reply of 1 MiB leaves without waiting for the reader.
const SEND_BUFFER: i32 = 2 << 20;

/// Where to listen: `HOST:PORT`, or `unix:PATH`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A TCP address, to be resolved; port 0 takes a free one.
    Tcp(String),
    /// A Unix socket.
    Unix(PathBuf),
}

/// A text that is no address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not an address: give HOST:PORT or unix:PATH")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Tcp(text.to_owned()))
            }
            _ => Err(AddressError(text.to_owned())),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A socket that accepts connections.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Listens on `address`. A Unix socket that a dead server left behind is replaced, one that somebody answers on is
    /// not.
    pub(super) fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => TcpListener::bind(address.as_str()).map(Self::Tcp),
            Address::Unix(path) => {
                if is_stale_socket(path) {
                    std::fs::remove_file(path)?;
                }
                Ok(Self::Unix(UnixListener::bind(path)?, path.clone()))
            }
        }
    }

    /// The address it really has, with the port that the system chose.
    pub(super) fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => Ok(Address::Tcp(listener.local_addr()?.to_string())),
            Self::Unix(_, path) => Ok(Address::Unix(path.clone())),
        }
    }

    pub(super) fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                stream.set_nodelay(true)?;
                sys::notice_dead_peers(&stream, PEER_SILENCE, PEER_SILENCE * 2)?;
                Ok(Socket { stream: Stream::Tcp(stream), peer: peer.to_string() })
            }
            Self::Unix(listener, path) => {
                let (stream, _) = listener.accept()?;
                sys::set_send_buffer(&stream, SEND_BUFFER)?;
                let peer = format!("unix:{}", path.display());
                Ok(Socket { stream: Stream::Unix(stream), peer })
            }
        }
    }

    /// Ends [`Listener::accept`] in the thread that waits in it, for good.
    pub(super) fn stop(&self) {
        match self {
            Self::Tcp(listener) => sys::stop_listening(listener),
            Self::Unix(listener, path) => {
                sys::stop_listening(listener);
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

fn is_stale_socket(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    is_socket
        && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection's socket; reading and writing are independent of each other.
#[derive(Debug)]
pub(super) struct Socket {
    stream: Stream,
    peer: String,
}

impl Socket {
    /// Connects, as a client.
    pub(super) fn connect(address: &Address) -> io::Result<Self> {
        let stream = match address {
            Address::Tcp(address) => Stream::Tcp(TcpStream::connect(address.as_str())?),
            Address::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
        };
        Ok(Self { stream, peer: address.to_string() })
    }

    /// Who is at the other end.
    pub(super) fn peer(&self) -> &str {
        &self.peer
    }

    /// Lets reads that wait longer fail with `WouldBlock`.
    pub(super) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match &self.stream {
            Stream::Tcp(stream) => stream.set_read_timeout(timeout),
            Stream::Unix(stream) => stream.set_read_timeout(timeout),
        }
    }

    fn shutdown(&self, how: Shutdown) {
        // It fails when the peer is gone already, which is as well.
        let _ = match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(how),
            Stream::Unix(stream) => stream.shutdown(how),
        };
    }

    /// Ends reading and writing, and wakes who waits in either.
    pub(super) fn shut(&self) {
        self.shutdown(Shutdown::Both);
    }

    /// Ends reading, and wakes who waits in it.
    pub(super) fn shut_read(&self) {
        self.shutdown(Shutdown::Read);
    }
}

impl Read for &Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.stream {
            Stream::Tcp(stream) => (&mut &*stream).read(buffer),
            Stream::Unix(stream) => (&mut &*stream).read(buffer),
        }
    }
}

impl Write for &Socket {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match &self.stream {
            Stream::Tcp(stream) => (&mut &*stream).write(data),
            Stream::Unix(stream) => (&mut &*stream).write(data),
        }
    }

    fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match &self.stream {
            Stream::Tcp(stream) => (&mut &*stream).write_vectored(parts),
            Stream::Unix(stream) => (&mut &*stream).write_vectored(parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!("10.78.0.9:10809".parse(), Ok(Address::Tcp("10.78.0.9:10809".into())));
        assert_eq!("[::1]:0".parse(), Ok(Address::Tcp("[::1]:0".into())));
        assert_eq!("unix:/run/t".parse(), Ok(Address::Unix("/run/t".into())));
        for wrong in ["", "unix:", "host", ":1", "host:70000", "host:x"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_socket_left_behind_is_replaced_and_one_in_use_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Unix(dir.path().join("s"));
        let first = Listener::bind(&address).unwrap();
        assert_eq!(Listener::bind(&address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        Listener::bind(&address).unwrap();
    }
}
