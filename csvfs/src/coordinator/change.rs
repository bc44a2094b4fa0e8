//! One write transaction in the making: the tables, the numbers, and what operations need beside them.
//!
//! Operations are methods of [`Change`], by subject: `names`, `rename`, `attributes`, `xattrs`, `mapping`, `reserve`.
//! Each checks first and changes after: the transaction is shared by a group, so that a refused operation must leave
//! no trace in it. [`Change`] neither commits nor answers: that is the writer's.

use lockd::ids::{ClientId, Epoch, SessionId};
use lockd::rules::Rules;
use parking_lot::Mutex;
use redb::ReadableTable;
use zerocopy::IntoBytes;

use super::opens::Opens;
use super::stop::Stop;
use crate::proto::{Answer, Key};
use crate::refusal::Refusal;
use crate::store::cookie::HashKey;
use crate::store::record::{Counters, InodeRecord};
use crate::store::{COUNTERS_ROW, Result, Tables};
use crate::types::{Attr, Ino, Kind};

/// How an operation went that was not stopped.
#[derive(Debug)]
pub enum Verdict {
    /// It is complete.
    Done(Answer),
    /// A consistent part of it is applied; the rest continues from the mark in a later transaction.
    More(u64),
}

impl From<Answer> for Verdict {
    fn from(answer: Answer) -> Self {
        Self::Done(answer)
    }
}

/// Where the search for free blocks goes on. Only a hint: lost with the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hints {
    /// For file data.
    pub data: u64,
    /// For chunks of the metadata area.
    pub chunk: u64,
}

/// What operations know of their surroundings.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The rules that are kept.
    pub rules: Rules,
    /// The key of names.
    pub key: HashKey,
    /// Who has what open.
    pub opens: &'a Mutex<Opens>,
    /// Who serves what nobody owns.
    pub home: (SessionId, ClientId),
    /// Whether operations that create must be refused: the metadata area has too little room.
    pub scarce: bool,
    /// Civil time of the group, in nanoseconds.
    pub now: i64,
    /// Whether it is noted what names and attributes an operation touches (V9).
    pub tracks: bool,
}

/// A write transaction in the making.
#[derive(Debug)]
pub struct Change<'a, 't> {
    /// The tables.
    pub tables: Tables<'t>,
    /// The numbers, written at the end.
    pub counters: Counters,
    /// The numbers at the start.
    before: Counters,
    /// Whether a table was written.
    pub dirty: bool,
    /// Hints of the allocator.
    pub hints: Hints,
    /// The surroundings.
    pub scene: Scene<'a>,
    /// Inodes that this transaction removes; they cannot be opened from now on.
    pub dying: Vec<Ino>,
    /// What the operation under way has touched, if that is noted.
    pub touched: Vec<Key>,
    /// The directories among it, as they are now.
    pub directories: Vec<Attr>,
}

impl<'a, 't> Change<'a, 't> {
    /// A transaction that has changed nothing yet.
    pub fn new(tables: Tables<'t>, counters: Counters, hints: Hints, scene: Scene<'a>) -> Self {
        Self {
            tables,
            counters,
            before: counters,
            dirty: false,
            hints,
            scene,
            dying: Vec::new(),
            touched: Vec::new(),
            directories: Vec::new(),
        }
    }

    /// Writes the numbers, if they changed. Tells whether there is anything to commit. `journal` is the epoch of the redo
    /// journal's records: what is committed is the next of them then, and its numbers its last row.
    pub fn finish(&mut self, journal: Option<Epoch>) -> Result<bool> {
        if let Some(epoch) = journal.filter(|_| self.dirty || self.counters != self.before) {
            self.counters.journal_epoch.set(epoch.0);
            self.counters.journal_sequence += 1;
        }
        if self.counters != self.before {
            self.tables.counters_mut()?.insert(COUNTERS_ROW, self.counters)?;
            self.dirty = true;
        }
        Ok(self.dirty)
    }

    /// The record of `ino`, which exists.
    pub fn inode(&self, ino: Ino) -> Result<InodeRecord, Stop> {
        match self.tables.inodes()?.get(ino.0)? {
            Some(value) => Ok(InodeRecord::parse(ino, value.value())?.0),
            None => Err(Refusal::NotFound.into()),
        }
    }

    /// The record of `ino`, a directory that still has its name.
    pub fn directory(&self, ino: Ino) -> Result<InodeRecord, Stop> {
        let record = self.inode(ino)?;
        if record.kind() != Kind::Directory {
            return Err(Refusal::NotDirectory.into());
        }
        if record.nlink.get() == 0 {
            return Err(Refusal::NotFound.into());
        }
        Ok(record)
    }

    /// The record of `ino`, a regular file.
    pub fn file(&self, ino: Ino) -> Result<InodeRecord, Stop> {
        let record = self.inode(ino)?;
        match record.kind() {
            Kind::File => Ok(record),
            Kind::Directory => Err(Refusal::IsDirectory.into()),
            _ => Err(Refusal::Invalid("not a regular file".to_owned()).into()),
        }
    }

    /// Stores `record`, keeping the tail of an inode that has one.
    pub fn put(&mut self, ino: Ino, record: &InodeRecord) -> Result<(), Stop> {
        self.dirty = true;
        self.touch_attr(ino);
        if self.scene.tracks && record.kind() == Kind::Directory {
            self.directories.retain(|known| known.ino != ino);
            self.directories.push(record.attr(ino));
        }
        if record.kind() == Kind::Symlink {
            let value = match self.tables.inodes()?.get(ino.0)? {
                Some(old) => [record.as_bytes(), InodeRecord::parse(ino, old.value())?.1].concat(),
                None => record.as_bytes().to_vec(),
            };
            self.tables.inodes_mut()?.insert(ino.0, value.as_slice())?;
        } else {
            self.tables.inodes_mut()?.insert(ino.0, record.as_bytes())?;
        }
        Ok(())
    }

    /// The attributes of `ino` are others than before (V9).
    pub fn touch_attr(&mut self, ino: Ino) {
        if self.scene.tracks {
            self.touched.push(Key::Attr(ino));
        }
    }

    /// A name stands for something else than before, or for nothing (V9).
    pub fn touch_name(&mut self, parent: Ino, name: &[u8]) {
        if self.scene.tracks {
            self.touched.push(Key::Name { parent, name: name.to_vec() });
            self.touched.push(Key::Names(parent));
        }
    }

    /// An operation begins.
    pub fn begin(&mut self) {
        self.touched.clear();
        self.directories.clear();
    }

    /// The directories that the operation that ends here has changed.
    pub fn take_directories(&mut self) -> Vec<Attr> {
        let mut directories = std::mem::take(&mut self.directories);
        directories.retain(|attr| attr.nlink > 0);
        directories
    }

    /// What the operation that ends here has touched.
    pub fn take_touched(&mut self) -> Vec<Key> {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    /// Refuses when the metadata area has no room for more.
    pub fn room(&self) -> Result<(), Stop> {
        if self.scene.scarce { Err(Refusal::NoSpace.into()) } else { Ok(()) }
    }
}
