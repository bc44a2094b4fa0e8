//! Rename, in its three ways.

use zerocopy::little_endian::U64;

use super::change::Change;
use super::names::{Found, check_name, fewer_links, more_links};
use super::stop::Stop;
use crate::proto::{Answer, RenameMode};
use crate::refusal::Refusal;
use crate::types::{Ino, Kind, Timestamp};

/// A name in a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place<'n> {
    /// The directory.
    pub parent: Ino,
    /// The name in it.
    pub name: &'n [u8],
}

fn into_itself() -> Stop {
    Refusal::Invalid("a directory cannot be moved into itself".to_owned()).into()
}

impl Change<'_, '_> {
    /// [`crate::proto::Operation::Rename`].
    pub fn rename(
        &mut self,
        from: Place<'_>,
        to: Place<'_>,
        mode: RenameMode,
        now: Timestamp,
    ) -> Result<Answer, Stop> {
        check_name(to.name)?;
        self.directory(from.parent)?;
        self.directory(to.parent)?;
        let source = self.existing(from.parent, from.name)?;
        let target = self.find(to.parent, to.name)?;
        if source.kind == Kind::Directory {
            self.not_within(to.parent, source.ino)?;
        }
        match (mode, target) {
            (RenameMode::Exchange, Ok(target)) => self.exchange(from, source, to, target, now),
            (RenameMode::Exchange, Err(_)) => Err(Refusal::NotFound.into()),
            (RenameMode::NoReplace, Ok(_)) => Err(Refusal::Exists.into()),
            (_, Ok(target)) => self.replace_name(from, source, to, target, now),
            (_, Err(cookie)) => {
                let cookie = cookie.ok_or(Refusal::NoSpace)?;
                self.room()?;
                self.move_name(from, source, to, cookie, now)
            }
        }
    }

    /// Refuses if `directory` is `ancestor` or lies below it.
    fn not_within(&self, directory: Ino, ancestor: Ino) -> Result<(), Stop> {
        let mut at = directory;
        // As many steps as there are inodes would be a ring, which the checks here keep from coming to be.
        for _ in 0..=self.counters.inodes.get() {
            if at == ancestor {
                return Err(into_itself());
            }
            if at == Ino::ROOT {
                return Ok(());
            }
            at = Ino(self.inode(at)?.parent.get());
        }
        Err(crate::store::StoreError::Damaged(format!("the parents of {directory} form a ring")).into())
    }

    /// Moves a name to a free one.
    fn move_name(
        &mut self,
        from: Place<'_>,
        source: Found,
        to: Place<'_>,
        cookie: u64,
        now: Timestamp,
    ) -> Result<Answer, Stop> {
        let moves_directory = source.kind == Kind::Directory && from.parent != to.parent;
        if moves_directory {
            more_links(&mut self.inode(to.parent)?)?;
        }
        self.remove_entry(from.parent, source.cookie)?;
        self.insert_entry(to.parent, cookie, source.ino, source.kind, to.name)?;
        self.touch_directory(from.parent, if moves_directory { -1 } else { 0 }, now)?;
        if from.parent != to.parent {
            self.touch_directory(to.parent, i32::from(moves_directory), now)?;
        }
        self.touch_moved(source, to.parent, now)?;
        Ok(Answer::Done)
    }

    /// Moves a name over another, whose inode loses it.
    fn replace_name(
        &mut self,
        from: Place<'_>,
        source: Found,
        to: Place<'_>,
        target: Found,
        now: Timestamp,
    ) -> Result<Answer, Stop> {
        if source.ino == target.ino {
            return Ok(Answer::Done);
        }
        let (source_is, target_is) = (source.kind == Kind::Directory, target.kind == Kind::Directory);
        match (source_is, target_is) {
            (true, false) => return Err(Refusal::NotDirectory.into()),
            (false, true) => return Err(Refusal::IsDirectory.into()),
            (true, true) if !self.is_empty(target.ino)? => return Err(Refusal::NotEmpty.into()),
            _ => {}
        }
        self.remove_entry(from.parent, source.cookie)?;
        self.insert_entry(to.parent, target.cookie, source.ino, source.kind, to.name)?;
        // A moved directory takes its `..` from one parent to the other; the replaced one's `..` is gone.
        if from.parent == to.parent {
            self.touch_directory(from.parent, if target_is { -1 } else { 0 }, now)?;
        } else {
            self.touch_directory(from.parent, if source_is { -1 } else { 0 }, now)?;
            self.touch_directory(to.parent, i32::from(source_is) - i32::from(target_is), now)?;
        }
        self.touch_moved(source, to.parent, now)?;
        if target_is {
            self.lose_directory(target.ino, now)?;
            return Ok(Answer::Removed { ino: target.ino, nlink: 0 });
        }
        self.lose_name(target.ino, now)
    }

    /// Swaps what two names stand for.
    fn exchange(
        &mut self,
        from: Place<'_>,
        source: Found,
        to: Place<'_>,
        target: Found,
        now: Timestamp,
    ) -> Result<Answer, Stop> {
        if source.ino == target.ino {
            return Ok(Answer::Done);
        }
        let (source_is, target_is) = (source.kind == Kind::Directory, target.kind == Kind::Directory);
        if target_is {
            self.not_within(from.parent, target.ino)?;
        }
        let across = from.parent != to.parent;
        let gain = if across { i32::from(target_is) - i32::from(source_is) } else { 0 };
        for (parent, gain) in [(from.parent, gain), (to.parent, -gain)] {
            if gain > 0 {
                more_links(&mut self.inode(parent)?)?;
            }
        }
        self.insert_entry(from.parent, source.cookie, target.ino, target.kind, from.name)?;
        self.insert_entry(to.parent, target.cookie, source.ino, source.kind, to.name)?;
        self.touch_directory(from.parent, gain, now)?;
        if across {
            self.touch_directory(to.parent, -gain, now)?;
        }
        self.touch_moved(source, to.parent, now)?;
        self.touch_moved(target, from.parent, now)?;
        Ok(Answer::Done)
    }

    /// A directory's entries changed, and it has `links` subdirectories more.
    fn touch_directory(&mut self, ino: Ino, links: i32, now: Timestamp) -> Result<(), Stop> {
        let mut record = self.inode(ino)?;
        match links {
            1 => more_links(&mut record)?,
            -1 => fewer_links(&mut record),
            _ => {}
        }
        record.touch(now);
        self.put(ino, &record)
    }

    /// An inode has another name, and a directory perhaps another parent.
    fn touch_moved(&mut self, moved: Found, parent: Ino, now: Timestamp) -> Result<(), Stop> {
        let mut record = self.inode(moved.ino)?;
        record.ctime.set(now.0);
        if moved.kind == Kind::Directory {
            record.parent = U64::new(parent.0);
        }
        self.put(moved.ino, &record)
    }
}
