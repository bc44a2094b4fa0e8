//! What a check remembers of every inode: little, because there may be many.

use redb::ReadableTable;

use super::{Findings, Progress};
use crate::store::record::{ACCESS_ACL, DEFAULT_ACL, InodeRecord, XATTRS};
use crate::store::{Result, Snapshot};
use crate::types::{Ino, Kind};

use super::finding::Finding;

/// Flags that the extended attributes of an inode must bear out.
pub const ATTRIBUTE_FLAGS: u32 = ACCESS_ACL | DEFAULT_ACL | XATTRS;

/// An inode, as it says it is and as it was found.
#[derive(Clone, Copy, Debug)]
pub struct Fact {
    /// Its number.
    pub ino: u64,
    /// The blocks it says it has.
    pub blocks: u64,
    /// The blocks of its extents.
    pub mapped: u64,
    /// The names it says it has.
    pub nlink: u32,
    /// The names that were found.
    pub names: u32,
    /// Its type.
    pub kind: Kind,
    /// Its [`ATTRIBUTE_FLAGS`].
    pub flags: u8,
    /// Those that its attributes bear out.
    pub attributes: u8,
    /// Whether it is on the list of orphans.
    pub orphan: bool,
}

/// What is remembered of a directory beside.
#[derive(Clone, Copy, Debug)]
pub struct DirectoryFact {
    /// Its number.
    pub ino: u64,
    /// Its `..`.
    pub parent: u64,
    /// The directory that names it, zero if none does.
    pub named_in: u64,
    /// Directories that it names.
    pub subdirectories: u32,
    /// How the climb to the root went.
    pub climb: Climb,
}

/// Whether the root was reached from a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Climb {
    /// Not tried.
    Unknown,
    /// Being tried.
    Trying,
    /// It was.
    Reached,
    /// It was not.
    Lost,
}

/// All inodes, ordered by number.
#[derive(Debug, Default)]
pub struct Facts {
    /// Every inode.
    pub inodes: Vec<Fact>,
    /// The directories among them.
    pub directories: Vec<DirectoryFact>,
    /// The highest number.
    pub last: u64,
}

impl Facts {
    /// Reads every inode.
    pub fn gather(snapshot: &Snapshot, findings: &mut Findings, progress: &mut Progress<'_>) -> Result<Self> {
        let mut facts = Self::default();
        let about = snapshot.counters.inodes.get();
        for row in snapshot.inodes.iter()? {
            let (key, value) = row?;
            let ino = key.value();
            facts.last = ino;
            let Ok((record, _)) = InodeRecord::parse(Ino(ino), value.value()) else {
                findings.push(Finding::UnreadableInode(Ino(ino)));
                continue;
            };
            let kind = record.kind();
            facts.inodes.push(Fact {
                ino,
                blocks: record.blocks.get(),
                mapped: 0,
                nlink: record.nlink.get(),
                names: 0,
                kind,
                flags: u8::try_from(record.flags.get() & ATTRIBUTE_FLAGS).unwrap_or(0),
                attributes: 0,
                orphan: false,
            });
            if kind == Kind::Directory {
                facts.directories.push(DirectoryFact {
                    ino,
                    parent: record.parent.get(),
                    named_in: 0,
                    subdirectories: 0,
                    climb: Climb::Unknown,
                });
            }
            progress.step("inodes", facts.inodes.len() as u64, about);
        }
        if facts.directory(Ino::ROOT.0).is_none() {
            findings.push(Finding::NoRoot);
        }
        for row in snapshot.orphans.iter()? {
            let ino = row?.0.value();
            match facts.inode(ino) {
                Some(fact) => fact.orphan = true,
                None => findings.push(Finding::NotAnOrphan(Ino(ino))),
            }
        }
        Ok(facts)
    }

    /// The inode of that number.
    pub fn inode(&mut self, ino: u64) -> Option<&mut Fact> {
        let at = self.inodes.binary_search_by_key(&ino, |fact| fact.ino).ok()?;
        self.inodes.get_mut(at)
    }

    /// The directory of that number.
    pub fn directory(&mut self, ino: u64) -> Option<&mut DirectoryFact> {
        let at = self.position(ino)?;
        self.directories.get_mut(at)
    }

    /// Where the directory is among them.
    pub fn position(&self, ino: u64) -> Option<usize> {
        self.directories.binary_search_by_key(&ino, |fact| fact.ino).ok()
    }
}
