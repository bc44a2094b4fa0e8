//! A file system that is too simple to be wrong, and the operations that are tried on it and on a real mount.

mod reference;
mod served;
mod world;

pub use reference::{Reference, Seen};
pub use served::{Served, call};
pub use world::{apply, look};

/// A path: names from a small set, so that operations meet.
pub type Path = Vec<u8>;

/// How a rename treats its target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rename {
    /// Replaces it.
    Plain,
    /// RENAME_NOREPLACE.
    NoReplace,
    /// RENAME_EXCHANGE.
    Exchange,
}

/// What fallocate does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocate {
    /// Allocates; the size grows.
    Grow,
    /// Allocates; the size stays.
    Keep,
    /// Punches a hole.
    Punch,
    /// Zeroes; the size grows.
    Zero,
}

/// One operation. Paths name their components by number; offsets and lengths are in bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// mkdir
    MakeDirectory(Path),
    /// open with O_CREAT | O_EXCL
    Create(Path),
    /// A symbolic link to a name that never exists.
    Symlink(Path),
    /// link
    Link(Path, Path),
    /// unlink
    Unlink(Path),
    /// rmdir
    RemoveDirectory(Path),
    /// renameat2
    Rename(Path, Path, Rename),
    /// pwrite of `len` bytes of the value.
    Write(Path, u32, u32, u8),
    /// ftruncate
    Truncate(Path, u32),
    /// fallocate
    Allocate(Path, u32, u32, Allocate),
    /// copy_file_range: from, its offset, to, its offset, length.
    Copy(Path, u32, Path, u32, u32),
    /// chmod
    Mode(Path, u16),
    /// setxattr `user.N` to a value of a length.
    SetAttribute(Path, u8, u16),
    /// removexattr `user.N`
    RemoveAttribute(Path, u8),
    /// The whole file through a shared mapping: each byte of a range set to the value.
    Map(Path, u32, u32, u8),
}
