//! The page that a lockd shares with the clients of its sessions.
//!
//! A file in the run directory: a header, then a line per session. Lockd writes it, clients map it read-only. It outlives
//! lockd: a lockd that is started again goes on in the page that it finds, so that its clients' leases go on without
//! their doing anything (L11). One lockd at a time uses a run directory; it holds a lock on it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bincode::{Decode, Encode};

use super::header::{self, HEADER_BYTES, HeaderError};
use super::line::{DEADLINE_WORD, LINE_WORDS, LeaseLine, SESSION_WORD};
use super::mapping::{Mapping, PAGE_BYTES, WORDS};
use super::{ENDED, LAPSED, Lease};
use crate::ids::SessionId;

/// Lines of a page, the header's included.
const LINES: usize = WORDS / LINE_WORDS;

/// One start of the machine, by the kernel's random id for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootId(pub [u8; 16]);

impl BootId {
    /// The current one.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn current() -> io::Result<Self> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
        let number = u128::from_str_radix(&digits, 16);
        number.map(|number| Self(number.to_be_bytes())).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is not the id of a boot"))
        })
    }
}

/// The number of a session's line in the page, from 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Decode)]
pub struct LineNumber(pub u32);

/// Why the lease page cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LeasePageError {
    /// The file could not be made, opened or mapped.
    #[error("cannot use the lease page {path}: {source}; is the run directory writable, and lockd running?")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// What is there is not a page of this release and this boot.
    #[error("cannot use the lease page {path}: {source}")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: HeaderError,
    },
    /// The line is not that session's.
    #[error("line {line:?} of the lease page is not that of session {session}; register with lockd again")]
    NotThere {
        /// Whose line was expected.
        session: SessionId,
        /// Where.
        line: LineNumber,
    },
}

/// The lease page as its lockd sees it.
#[derive(Debug)]
pub struct LeasePage {
    mapping: Arc<Mapping>,
    path: PathBuf,
}

impl LeasePage {
    /// Goes on in the page at `path`, if it is one of this boot, or makes a new one. The caller is the only lockd of the
    /// run directory.
    ///
    /// # Errors
    /// If the file cannot be used.
    pub fn open(path: &Path, boot: BootId) -> Result<Self, LeasePageError> {
        match map(path, boot, true) {
            Ok(mapping) => Ok(Self { mapping: Arc::new(mapping), path: path.to_owned() }),
            Err(error) => {
                match &error {
                    LeasePageError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {}
                    LeasePageError::Header { source: HeaderError::EarlierBoot, .. } => {}
                    // It may be under clients of another release: they would never learn of a new one.
                    _ => return Err(error),
                }
                create(path, boot).map_err(|source| LeasePageError::Io { path: path.to_owned(), source })?;
                Ok(Self { mapping: Arc::new(map(path, boot, true)?), path: path.to_owned() })
            }
        }
    }

    /// Where the page is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The lease of `session`: the line that it has, or a new one, which has not been granted yet. All other sessions'
    /// leases end: a lockd has one session at a time.
    #[must_use]
    pub fn begin(&self, session: SessionId) -> (LineNumber, Lease) {
        let line = self.line_of(session).unwrap_or_else(|| self.oldest());
        for other in (1..LINES).filter(|other| *other != line) {
            self.word(other, DEADLINE_WORD).store(ENDED, Ordering::Release);
        }
        if self.word(line, SESSION_WORD).load(Ordering::Acquire) != session.0 {
            // In this order, so that who views the line as its last session's never sees the new deadline.
            self.word(line, DEADLINE_WORD).store(ENDED, Ordering::Release);
            self.word(line, SESSION_WORD).store(session.0, Ordering::Release);
            self.word(line, DEADLINE_WORD).store(LAPSED, Ordering::Release);
        }
        let lease = Lease::of_line(LeaseLine::new(Arc::clone(&self.mapping), line, session));
        (LineNumber(u32::try_from(line).unwrap_or(u32::MAX)), lease)
    }

    /// The lease of `session` as its clients see it, in line `line` of the page at `path`.
    ///
    /// # Errors
    /// If the file is no lease page of this boot, or the line is not the session's.
    pub fn view(
        path: &Path,
        boot: BootId,
        session: SessionId,
        line: LineNumber,
    ) -> Result<Lease, LeasePageError> {
        let mapping = map(path, boot, false)?;
        let not_there = LeasePageError::NotThere { session, line };
        let Some(index) = usize::try_from(line.0).ok().filter(|index| (1..LINES).contains(index)) else {
            return Err(not_there);
        };
        if mapping.word(index * LINE_WORDS + SESSION_WORD).load(Ordering::Acquire) != session.0 {
            return Err(not_there);
        }
        Ok(Lease::of_line(LeaseLine::new(Arc::new(mapping), index, session)))
    }

    fn word(&self, line: usize, word: usize) -> &std::sync::atomic::AtomicU64 {
        self.mapping.word(line * LINE_WORDS + word)
    }

    fn line_of(&self, session: SessionId) -> Option<usize> {
        (1..LINES).find(|line| self.word(*line, SESSION_WORD).load(Ordering::Acquire) == session.0)
    }

    /// The line to be used next: session ids rise, so that the smallest is the longest gone.
    fn oldest(&self) -> usize {
        (1..LINES).min_by_key(|line| self.word(*line, SESSION_WORD).load(Ordering::Acquire)).unwrap_or(1)
    }
}

fn map(path: &Path, boot: BootId, writable: bool) -> Result<Mapping, LeasePageError> {
    let failed = |source| LeasePageError::Io { path: path.to_owned(), source };
    let file = OpenOptions::new().read(true).write(writable).open(path).map_err(failed)?;
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, 0).map_err(failed)?;
    header::check(&bytes, boot, lines())
        .map_err(|source| LeasePageError::Header { path: path.to_owned(), source })?;
    Mapping::new(&file, writable).map_err(failed)
}

fn lines() -> u32 {
    u32::try_from(LINES).unwrap_or(u32::MAX)
}

/// Makes an empty page beside `path` and moves it there, so that a page is seen whole or not at all. Whoever has an
/// earlier file mapped keeps that one.
fn create(path: &Path, boot: BootId) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut bytes = vec![0; PAGE_BYTES];
    bytes[..HEADER_BYTES].copy_from_slice(&header::encode(boot, lines()));
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new)?;
    file.write_all(&bytes)?;
    std::fs::rename(&new, path)
}
