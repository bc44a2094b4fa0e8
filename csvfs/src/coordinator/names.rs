//! Names and inodes: making, linking and removing them.

use lockd::ids::ClientId;
use redb::ReadableTable;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::acl::{self, Acl};
use super::change::Change;
use super::opens::Opening;
use super::space::{add, subtract};
use super::stop::Stop;
use crate::proto::{Answer, Created};
use crate::refusal::Refusal;
use crate::store::cookie::HashKey;
use crate::store::record::{ACCESS_ACL, DEFAULT_ACL, EntryRecord, InodeRecord, LINKABLE, XATTRS};
use crate::store::{low, pair, xattr_key};
use crate::types::{Ino, Kind, LINK_MAX, NAME_MAX, SYMLINK_MAX, Timestamp};

/// Extents of a file that is removed in the transaction that takes its last name; larger ones are reclaimed in steps.
pub const REMOVE_AT_ONCE: usize = 64;

const SETGID: u32 = 0o2000;

/// What a name stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// Its position in the directory.
    pub cookie: u64,
    /// The inode.
    pub ino: Ino,
    /// Its type.
    pub kind: Kind,
}

/// Who makes an inode, and how.
#[derive(Clone, Copy, Debug)]
pub struct Maker {
    /// Permissions asked for.
    pub mode: u32,
    /// Bits not to give, unless the directory has a default ACL.
    pub umask: u32,
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory has its set-group-id bit.
    pub gid: u32,
}

/// Looks `name` up: what it stands for, or the first position that is free for it.
pub fn find<T>(
    entries: &T,
    key: &HashKey,
    parent: Ino,
    name: &[u8],
) -> Result<Result<Found, Option<u64>>, Stop>
where
    T: ReadableTable<u128, &'static [u8]>,
{
    let cookies = key.cookies(name);
    let mut free = Some(*cookies.start());
    for row in entries.range(pair(parent.0, *cookies.start())..=pair(parent.0, *cookies.end()))? {
        let (key, value) = row?;
        let cookie = low(key.value());
        let (ino, kind, found) = EntryRecord::parse(value.value())?;
        if found == name {
            return Ok(Ok(Found { cookie, ino, kind }));
        }
        if free == Some(cookie) {
            free = Some(cookie + 1);
        }
    }
    Ok(Err(free.filter(|cookie| cookies.contains(cookie))))
}

/// Refuses what cannot be a name.
pub fn check_name(name: &[u8]) -> Result<(), Refusal> {
    if name.len() > NAME_MAX {
        return Err(Refusal::NameTooLong);
    }
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|byte| matches!(byte, b'/' | 0)) {
        return Err(Refusal::Invalid("not a name of a directory entry".to_owned()));
    }
    Ok(())
}

impl Change<'_, '_> {
    /// What `name` stands for in `parent`, or where it can be put.
    pub fn find(&self, parent: Ino, name: &[u8]) -> Result<Result<Found, Option<u64>>, Stop> {
        find(self.tables.entries()?, &self.scene.key, parent, name)
    }

    /// What `name` stands for in `parent`; it must exist.
    pub fn existing(&self, parent: Ino, name: &[u8]) -> Result<Found, Stop> {
        check_name(name)?;
        self.find(parent, name)?.map_err(|_| Refusal::NotFound.into())
    }

    /// Puts a name at a free position.
    pub fn insert_entry(
        &mut self,
        parent: Ino,
        cookie: u64,
        ino: Ino,
        kind: Kind,
        name: &[u8],
    ) -> Result<(), Stop> {
        self.dirty = true;
        self.touch_name(parent, name);
        self.tables
            .entries_mut()?
            .insert(pair(parent.0, cookie), EntryRecord::value(ino, kind, name).as_slice())?;
        Ok(())
    }

    /// Takes the name at `cookie` away.
    pub fn remove_entry(&mut self, parent: Ino, cookie: u64) -> Result<(), Stop> {
        self.dirty = true;
        let name = match self.tables.entries_mut()?.remove(pair(parent.0, cookie))? {
            Some(value) => EntryRecord::parse(value.value())?.2.to_vec(),
            None => return Ok(()),
        };
        self.touch_name(parent, &name);
        Ok(())
    }

    /// Whether the directory has no entry.
    pub fn is_empty(&self, ino: Ino) -> Result<bool, Stop> {
        Ok(self.tables.entries()?.range(pair(ino.0, 0)..=pair(ino.0, u64::MAX))?.next().is_none())
    }

    /// A new inode's record, its target, and its ACLs, by what its directory demands. Changes nothing.
    fn prepare(
        &self,
        parent: Ino,
        directory: &InodeRecord,
        what: &Created,
        maker: Maker,
        now: Timestamp,
    ) -> Result<Prepared, Stop> {
        let (kind, rdev) = match what {
            Created::File => (Kind::File, 0),
            Created::Directory => (Kind::Directory, 0),
            Created::Symlink(_) => (Kind::Symlink, 0),
            Created::Fifo => (Kind::Fifo, 0),
            Created::Socket => (Kind::Socket, 0),
            Created::CharDevice(rdev) => (Kind::CharDevice, *rdev),
            Created::BlockDevice(rdev) => (Kind::BlockDevice, *rdev),
        };
        let target = match what {
            Created::Symlink(target) if target.len() > SYMLINK_MAX => return Err(Refusal::NameTooLong.into()),
            Created::Symlink(target) if target.is_empty() || target.contains(&0) => {
                return Err(Refusal::Invalid("not a link's target".to_owned()).into());
            }
            Created::Symlink(target) => target.clone(),
            _ => Vec::new(),
        };
        let mut attributes = Vec::new();
        let mut mode = maker.mode & 0o7777;
        let mut flags = 0;
        if kind == Kind::Symlink {
            mode = 0o777;
        } else if directory.has(DEFAULT_ACL) {
            let inherited = self.acl(parent, acl::DEFAULT)?;
            if let Some(default) = inherited {
                let (access, masked) = default.inherit(mode);
                mode = masked;
                if !access.is_minimal() {
                    attributes.push((acl::ACCESS, access.value()));
                    flags |= ACCESS_ACL | XATTRS;
                }
                if kind == Kind::Directory {
                    attributes.push((acl::DEFAULT, default.value()));
                    flags |= DEFAULT_ACL | XATTRS;
                }
            }
        } else {
            mode &= !maker.umask;
        }
        let mut gid = maker.gid;
        if directory.permissions() & SETGID != 0 {
            gid = directory.gid.get();
            if kind == Kind::Directory {
                mode |= SETGID;
            }
        }
        let mut record = InodeRecord::new(kind, mode, maker.uid, gid, now);
        record.rdev = U32::new(rdev);
        record.flags = U32::new(flags);
        record.size = U64::new(target.len() as u64);
        if kind == Kind::Directory {
            record.nlink = U32::new(2);
            record.parent = U64::new(parent.0);
        }
        Ok(Prepared { record, target, attributes })
    }

    /// Stores a prepared inode under a new number.
    fn store_new(&mut self, new: &Prepared) -> Result<Ino, Stop> {
        self.dirty = true;
        let ino = Ino(self.counters.next_ino.get());
        add(&mut self.counters.next_ino, 1);
        add(&mut self.counters.inodes, 1);
        if new.target.is_empty() {
            self.tables.inodes_mut()?.insert(ino.0, new.record.as_bytes())?;
        } else {
            let value = [new.record.as_bytes(), &new.target].concat();
            self.tables.inodes_mut()?.insert(ino.0, value.as_slice())?;
        }
        for (name, value) in &new.attributes {
            self.tables.xattrs_mut()?.insert(xattr_key(ino.0, name).as_slice(), value.as_slice())?;
        }
        Ok(ino)
    }

    /// [`crate::proto::Operation::Create`].
    #[expect(clippy::too_many_arguments, reason = "the operation's fields")]
    pub fn create(
        &mut self,
        client: ClientId,
        parent: Ino,
        name: &[u8],
        what: &Created,
        maker: Maker,
        exclusive: bool,
        open: bool,
        now: Timestamp,
    ) -> Result<Answer, Stop> {
        check_name(name)?;
        let mut directory = self.directory(parent)?;
        let mut begins_writing = false;
        let cookie = match self.find(parent, name)? {
            Ok(found) if exclusive || *what != Created::File => {
                let _ = found;
                return Err(Refusal::Exists.into());
            }
            Ok(found) if found.kind == Kind::Directory => return Err(Refusal::IsDirectory.into()),
            Ok(found) if found.kind != Kind::File => return Err(Refusal::Exists.into()),
            Ok(found) => {
                let record = self.inode(found.ino)?;
                if open {
                    match self.scene.opens.lock().open(found.ino, client, true) {
                        Opening::Refused => return Err(Refusal::NotFound.into()),
                        Opening::Open => {}
                        Opening::BeginsWriting => begins_writing = true,
                    }
                }
                if begins_writing {
                    self.touch_attr(found.ino);
                }
                return Ok(Answer::Entry(record.attr(found.ino)));
            }
            Err(cookie) => cookie.ok_or(Refusal::NoSpace)?,
        };
        self.room()?;
        let new = self.prepare(parent, &directory, what, maker, now)?;
        let kind = new.record.kind();
        if kind == Kind::Directory {
            more_links(&mut directory)?;
        }
        let ino = self.store_new(&new)?;
        self.insert_entry(parent, cookie, ino, kind, name)?;
        directory.touch(now);
        self.put(parent, &directory)?;
        let attr = new.record.attr(ino);
        if !open {
            return Ok(Answer::Entry(attr));
        }
        let mut opens = self.scene.opens.lock();
        opens.open(ino, client, true);
        Ok(match opens.term(ino, self.scene.home) {
            Some(term) => Answer::Opened { attr, term, slots: Vec::new() },
            None => Answer::Entry(attr),
        })
    }

    /// [`crate::proto::Operation::CreateUnnamed`].
    pub fn create_unnamed(
        &mut self,
        client: ClientId,
        parent: Ino,
        maker: Maker,
        now: Timestamp,
    ) -> Result<Answer, Stop> {
        let directory = self.directory(parent)?;
        self.room()?;
        let mut new = self.prepare(parent, &directory, &Created::File, maker, now)?;
        new.record.nlink = U32::ZERO;
        new.record.set(LINKABLE, true);
        let ino = self.store_new(&new)?;
        self.add_orphan(ino, now)?;
        self.scene.opens.lock().open_unnamed(ino, client);
        Ok(Answer::Entry(new.record.attr(ino)))
    }

    fn add_orphan(&mut self, ino: Ino, now: Timestamp) -> Result<(), Stop> {
        self.dirty = true;
        if self.tables.orphans_mut()?.insert(ino.0, now.0)?.is_none() {
            add(&mut self.counters.orphans, 1);
        }
        Ok(())
    }

    /// `ino` is no orphan any more.
    pub fn remove_orphan(&mut self, ino: Ino) -> Result<(), Stop> {
        self.dirty = true;
        if self.tables.orphans_mut()?.remove(ino.0)?.is_some() {
            subtract(&mut self.counters.orphans, 1)?;
        }
        Ok(())
    }

    /// [`crate::proto::Operation::Link`].
    pub fn link(&mut self, ino: Ino, parent: Ino, name: &[u8], now: Timestamp) -> Result<Answer, Stop> {
        check_name(name)?;
        let mut record = self.inode(ino)?;
        let mut directory = self.directory(parent)?;
        if record.kind() == Kind::Directory {
            return Err(Refusal::NotPermitted.into());
        }
        let unnamed = record.nlink.get() == 0;
        if unnamed && !record.has(LINKABLE) {
            return Err(Refusal::NotFound.into());
        }
        let cookie = match self.find(parent, name)? {
            Ok(_) => return Err(Refusal::Exists.into()),
            Err(cookie) => cookie.ok_or(Refusal::NoSpace)?,
        };
        self.room()?;
        more_links(&mut record)?;
        record.ctime.set(now.0);
        if unnamed {
            record.set(LINKABLE, false);
            self.remove_orphan(ino)?;
            self.scene.opens.lock().adopted(ino);
        }
        self.put(ino, &record)?;
        self.insert_entry(parent, cookie, ino, record.kind(), name)?;
        directory.touch(now);
        self.put(parent, &directory)?;
        Ok(Answer::Entry(record.attr(ino)))
    }

    /// [`crate::proto::Operation::Unlink`].
    pub fn unlink(&mut self, parent: Ino, name: &[u8], now: Timestamp) -> Result<Answer, Stop> {
        let mut directory = self.directory(parent)?;
        let found = self.existing(parent, name)?;
        if found.kind == Kind::Directory {
            return Err(Refusal::IsDirectory.into());
        }
        self.remove_entry(parent, found.cookie)?;
        directory.touch(now);
        self.put(parent, &directory)?;
        self.lose_name(found.ino, now)
    }

    /// An inode that is not a directory has lost a name.
    pub fn lose_name(&mut self, ino: Ino, now: Timestamp) -> Result<Answer, Stop> {
        let mut record = self.inode(ino)?;
        let nlink = record.nlink.get().saturating_sub(1);
        record.nlink = U32::new(nlink);
        record.ctime.set(now.0);
        if nlink == 0 {
            self.lose_inode(ino, &mut record, now)?;
        } else {
            self.put(ino, &record)?;
        }
        Ok(Answer::Removed { ino, nlink })
    }

    /// The last name of `ino` is gone: it is removed at once if nobody holds it open and it is small.
    pub fn lose_inode(&mut self, ino: Ino, record: &mut InodeRecord, now: Timestamp) -> Result<(), Stop> {
        let buried = self.scene.opens.lock().bury(ino);
        if buried {
            self.dying.push(ino);
            if self.remove_inode(ino, record, REMOVE_AT_ONCE)?.is_some() {
                return Ok(());
            }
        }
        self.put(ino, record)?;
        self.add_orphan(ino, now)
    }

    /// [`crate::proto::Operation::RemoveDirectory`].
    pub fn remove_directory(&mut self, parent: Ino, name: &[u8], now: Timestamp) -> Result<Answer, Stop> {
        let mut directory = self.directory(parent)?;
        let found = self.existing(parent, name)?;
        if found.kind != Kind::Directory {
            return Err(Refusal::NotDirectory.into());
        }
        if !self.is_empty(found.ino)? {
            return Err(Refusal::NotEmpty.into());
        }
        self.remove_entry(parent, found.cookie)?;
        fewer_links(&mut directory);
        directory.touch(now);
        self.put(parent, &directory)?;
        self.lose_directory(found.ino, now)?;
        Ok(Answer::Removed { ino: found.ino, nlink: 0 })
    }

    /// An empty directory has lost its name.
    pub fn lose_directory(&mut self, ino: Ino, now: Timestamp) -> Result<(), Stop> {
        let mut record = self.inode(ino)?;
        record.nlink = U32::ZERO;
        record.touch(now);
        self.lose_inode(ino, &mut record, now)
    }
}

/// An inode that is to be stored.
#[derive(Debug)]
struct Prepared {
    record: InodeRecord,
    target: Vec<u8>,
    attributes: Vec<(&'static [u8], Vec<u8>)>,
}

/// Counts a name more, if there may be one more.
pub fn more_links(record: &mut InodeRecord) -> Result<(), Refusal> {
    if record.nlink.get() >= LINK_MAX {
        return Err(Refusal::TooManyLinks);
    }
    record.nlink = U32::new(record.nlink.get() + 1);
    Ok(())
}

/// Counts a name less.
pub fn fewer_links(record: &mut InodeRecord) {
    record.nlink = U32::new(record.nlink.get().saturating_sub(1));
}

impl Change<'_, '_> {
    /// An ACL that the inode is flagged to have.
    pub fn acl(&self, ino: Ino, which: &[u8]) -> Result<Option<Acl>, Stop> {
        match self.tables.xattrs()?.get(xattr_key(ino.0, which).as_slice())? {
            Some(value) => Ok(Acl::parse(value.value())?),
            None => Ok(None),
        }
    }
}
