//! Processes as lockd knows them: which one, and the proof that it is dead (L10).

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::pidfd;
pub use super::pidfd::PeerCredentials;

/// One process, for as long as the machine runs: process ids are used again, but not with the same start time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Incarnation {
    /// Its id.
    pub pid: u32,
    /// When it was started, in clock ticks since the machine was.
    pub start_ticks: u64,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)
    }
}

impl Incarnation {
    /// The process that has the id `pid` now.
    ///
    /// # Errors
    /// If there is none.
    pub fn of(pid: u32) -> io::Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The second field is the program's name in parentheses, which may itself contain both.
        let fields = text.rsplit_once(')').map(|(_, fields)| fields);
        let start = fields.and_then(|fields| fields.split_ascii_whitespace().nth(19));
        let start_ticks = start.and_then(|start| start.parse().ok());
        start_ticks.map(|start_ticks| Self { pid, start_ticks }).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time"))
        })
    }
}

/// A process that is watched. The kernel keeps the descriptor to exactly this process, whoever gets its id later.
#[derive(Debug)]
pub struct Process {
    incarnation: Incarnation,
    pidfd: OwnedFd,
}

impl Process {
    /// The process that connected `stream`, and its user.
    ///
    /// # Errors
    /// If it has ended, or the kernel does not tell.
    pub fn of_peer(stream: &UnixStream) -> io::Result<(Self, PeerCredentials)> {
        let credentials = pidfd::credentials(stream)?;
        let pidfd = match pidfd::of_peer(stream) {
            Ok(pidfd) => pidfd,
            // Before Linux 6.5: by its id, which is the peer's as long as the connection's end is not closed; that it
            // still was the peer's is seen below, when it is alive and holds the connection.
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => pidfd::open(credentials.pid)?,
            Err(error) => return Err(error),
        };
        let incarnation = Incarnation::of(credentials.pid)?;
        // It lived when its start time was read: otherwise that may be another's.
        if pidfd::has_ended(&pidfd) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok((Self { incarnation, pidfd }, credentials))
    }

    /// The process `incarnation`, or none if it has ended.
    ///
    /// # Errors
    /// If the kernel refuses for another reason.
    pub fn open(incarnation: Incarnation) -> io::Result<Option<Self>> {
        let pidfd = match pidfd::open(incarnation.pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        let process = Self { incarnation, pidfd };
        match Incarnation::of(incarnation.pid) {
            Ok(now) if now == incarnation && !process.has_ended() => Ok(Some(process)),
            // Another has its id now, or it has just ended.
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound || process.has_ended() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Which process it is.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Whether it has ended: no thread of it runs any more, nor ever will.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        pidfd::has_ended(&self.pidfd)
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// If the descriptor cannot be waited for.
    pub async fn ended(&self) -> io::Result<()> {
        let watched = pidfd::watched(self.pidfd.as_fd())?;
        while !self.has_ended() {
            watched.readable().await?.clear_ready();
        }
        Ok(())
    }
}
