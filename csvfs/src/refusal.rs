//! Why an operation on the volume was refused.

use bincode::{Decode, Encode};

/// A refusal, with the errno that a program sees. The errno is made from it once, at the front end.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, thiserror::Error)]
pub enum Refusal {
    /// No such name or inode.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("the name exists already")]
    Exists,
    /// A directory is needed here.
    #[error("not a directory")]
    NotDirectory,
    /// A directory cannot be used here.
    #[error("is a directory")]
    IsDirectory,
    /// The directory still has entries.
    #[error("the directory is not empty")]
    NotEmpty,
    /// No block, or no room for metadata, is left.
    #[error("no space is left on the volume; delete files, or grow the LUN")]
    NoSpace,
    /// A name or a link's target is too long.
    #[error("the name is too long")]
    NameTooLong,
    /// The file would be larger than a file can be.
    #[error("the file would be too large")]
    FileTooLarge,
    /// The inode has as many links as it can have.
    #[error("too many links")]
    TooManyLinks,
    /// The caller may not do this.
    #[error("operation not permitted")]
    NotPermitted,
    /// The request makes no sense: a directory moved into itself, an unknown flag.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// There is no such extended attribute, or no data after the offset.
    #[error("no such attribute or data")]
    NoData,
    /// SEEK_DATA or SEEK_HOLE beyond the end of the file.
    #[error("beyond the end of the file")]
    BeyondEnd,
    /// A value is too large for the caller's buffer or for the volume.
    #[error("too large for the buffer")]
    OutOfRange,
    /// An extended attribute's value, or the list of names, is larger than the volume keeps.
    #[error("the attribute is too large")]
    TooBig,
    /// The volume is mounted read-only, or has a feature that this version can only read.
    #[error("the volume is read-only")]
    ReadOnly,
    /// The volume does not do this.
    #[error("not supported")]
    NotSupported,
    /// The file is used in a way that forbids this.
    #[error("busy: {0}")]
    Busy(String),
    /// The same, for a moment: what is in the way passes by itself.
    #[error("busy for a moment: {0}")]
    Passing(String),
    /// A lock could not be had at once.
    #[error("locked by another process")]
    WouldBlock,
    /// Waiting for each other: the lock would never be granted.
    #[error("the lock would deadlock")]
    Deadlock,
    /// As many locks, or other bounded things, are in use as there may be.
    #[error("too many locks")]
    TooManyLocks,
    /// The caller was interrupted while it waited.
    #[error("interrupted")]
    Interrupted,
    /// The caller's session, ownership or coordinator is not the current one any more.
    #[error("stale: {0}")]
    Stale(String),
    /// The LUN or the metadata store failed, or its state is unknown.
    #[error("input/output error: {0}")]
    Io(String),
    /// Who was asked does not coordinate the volume, or not any more, or not yet: nothing was done, and the one who does is
    /// asked. No program sees it.
    #[error("not the coordinator: {0}")]
    NotCoordinator(String),
}

impl Refusal {
    /// The errno of this refusal, positive.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::Exists => libc::EEXIST,
            Self::NotDirectory => libc::ENOTDIR,
            Self::IsDirectory => libc::EISDIR,
            Self::NotEmpty => libc::ENOTEMPTY,
            Self::NoSpace => libc::ENOSPC,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::FileTooLarge => libc::EFBIG,
            Self::TooManyLinks => libc::EMLINK,
            Self::NotPermitted => libc::EPERM,
            Self::Invalid(_) => libc::EINVAL,
            Self::NoData => libc::ENODATA,
            Self::BeyondEnd => libc::ENXIO,
            Self::OutOfRange => libc::ERANGE,
            Self::TooBig => libc::E2BIG,
            Self::ReadOnly => libc::EROFS,
            Self::NotSupported => libc::EOPNOTSUPP,
            Self::Busy(_) | Self::Passing(_) => libc::EBUSY,
            Self::WouldBlock => libc::EAGAIN,
            Self::Deadlock => libc::EDEADLK,
            Self::TooManyLocks => libc::ENOLCK,
            Self::Interrupted => libc::EINTR,
            Self::Stale(_) => libc::ESTALE,
            Self::Io(_) => libc::EIO,
            Self::NotCoordinator(_) => libc::EAGAIN,
        }
    }
}
